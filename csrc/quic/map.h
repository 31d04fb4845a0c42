/* A hash map from 64-bit keys to pointers: connection ids, original connection ids, stateless reset tokens.
 *
 * Open addressing with linear probing and backward-shift deletion, so there are no tombstones and a lookup
 * stays short after any amount of churn. Keys must already be well mixed and not the peer's to choose: our
 * own random ids, or SipHash-2-4 under the endpoint's secret of what a peer chose.
 */
#ifndef STOQ_QUIC_MAP_H
#define STOQ_QUIC_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct quic_host;

struct quic_map_entry {
    uint64_t key;
    void *value; /* NULL: empty */
};

struct quic_map {
    struct quic_map_entry *v;
    uint32_t mask, count; /* mask + 1 slots; at most 3/4 in use. */
};

/* False: no memory. */
bool quic_map_init(struct quic_map *map, const struct quic_host *host, uint32_t slots);
void quic_map_free(struct quic_map *map, const struct quic_host *host);
/* False: the key is there already, or no memory to grow. */
bool quic_map_put(struct quic_map *map, const struct quic_host *host, uint64_t key, void *value);
/* Removes the key if it maps to `value`. */
void quic_map_remove(struct quic_map *map, uint64_t key, const void *value);

static inline void *quic_map_get(const struct quic_map *map, uint64_t key) {
    for (uint32_t i = (uint32_t)(key ^ key >> 32) & map->mask;; i = (i + 1) & map->mask) {
        if (map->v[i].value == NULL || map->v[i].key == key)
            return map->v[i].value;
    }
}

/* SipHash-2-4 (Aumasson, Bernstein) of `data` under a 16-byte key. */
uint64_t quic_siphash(const uint8_t key[16], const uint8_t *data, size_t len);

#endif
