/* Hash map with linear probing, and SipHash-2-4. See map.h. */
#include "map.h"

#include <string.h>

#include "quic.h"

static uint32_t slot_of(const struct quic_map *map, uint64_t key) {
    return (uint32_t)(key ^ key >> 32) & map->mask;
}

bool quic_map_init(struct quic_map *map, const struct quic_host *host, uint32_t slots) {
    map->v = host->alloc(host->ctx, slots * sizeof *map->v);
    map->mask = slots - 1;
    map->count = 0;
    return map->v != NULL;
}

void quic_map_free(struct quic_map *map, const struct quic_host *host) {
    if (map->v)
        host->free(host->ctx, map->v, ((size_t)map->mask + 1) * sizeof *map->v);
    map->v = NULL;
}

static void insert(struct quic_map *map, uint64_t key, void *value) {
    uint32_t i = slot_of(map, key);
    while (map->v[i].value)
        i = (i + 1) & map->mask;
    map->v[i] = (struct quic_map_entry){key, value};
}

static bool grow(struct quic_map *map, const struct quic_host *host) {
    struct quic_map bigger;
    if (!quic_map_init(&bigger, host, (map->mask + 1) * 2))
        return false;
    for (uint32_t i = 0; i <= map->mask; i++) {
        if (map->v[i].value)
            insert(&bigger, map->v[i].key, map->v[i].value);
    }
    bigger.count = map->count;
    quic_map_free(map, host);
    *map = bigger;
    return true;
}

bool quic_map_put(struct quic_map *map, const struct quic_host *host, uint64_t key, void *value) {
    if (quic_map_get(map, key))
        return false;
    if ((map->count + 1) > (map->mask + 1) / 4 * 3 && !grow(map, host))
        return false;
    insert(map, key, value);
    map->count++;
    return true;
}

void quic_map_remove(struct quic_map *map, uint64_t key, const void *value) {
    uint32_t i = slot_of(map, key);
    while (map->v[i].value && map->v[i].key != key)
        i = (i + 1) & map->mask;
    if (map->v[i].value != value || value == NULL)
        return;
    /* Close the hole: move back every later entry of the run that may not stay behind it. */
    for (uint32_t j = (i + 1) & map->mask; map->v[j].value; j = (j + 1) & map->mask) {
        uint32_t home = slot_of(map, map->v[j].key);
        if (((j - home) & map->mask) >= ((j - i) & map->mask)) {
            map->v[i] = map->v[j];
            i = j;
        }
    }
    map->v[i] = (struct quic_map_entry){0, NULL};
    map->count--;
}

static inline uint64_t rotl(uint64_t x, int n) {
    return x << n | x >> (64 - n);
}

static inline void sip_round(uint64_t v[4]) {
    v[0] += v[1];
    v[1] = rotl(v[1], 13) ^ v[0];
    v[0] = rotl(v[0], 32);
    v[2] += v[3];
    v[3] = rotl(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = rotl(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = rotl(v[1], 17) ^ v[2];
    v[2] = rotl(v[2], 32);
}

uint64_t quic_siphash(const uint8_t key[16], const uint8_t *data, size_t len) {
    uint64_t k[2], m;
    memcpy(k, key, 16);
    uint64_t v[4] = {k[0] ^ 0x736f6d6570736575u, k[1] ^ 0x646f72616e646f6du, k[0] ^ 0x6c7967656e657261u,
                     k[1] ^ 0x7465646279746573u};
    size_t left = len;
    for (; left >= 8; left -= 8, data += 8) {
        memcpy(&m, data, 8);
        v[3] ^= m;
        sip_round(v);
        sip_round(v);
        v[0] ^= m;
    }
    m = (uint64_t)len << 56;
    for (size_t i = 0; i < left; i++)
        m |= (uint64_t)data[i] << (8 * i);
    v[3] ^= m;
    sip_round(v);
    sip_round(v);
    v[0] ^= m;
    v[2] ^= 0xff;
    for (int i = 0; i < 4; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}
