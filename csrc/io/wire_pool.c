/* Buffers of the wire backend: see wire_pool.h. */
#define _GNU_SOURCE
#include "wire_pool.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __has_feature /* Clang's way of asking; gcc defines __SANITIZE_ADDRESS__ itself. */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

/* Small holds any datagram of an ordinary Ethernet, medium one of jumbo frames, train the largest UDP
 * payload. */
static const uint32_t class_bytes[WIRE_CLASS_COUNT] = {2048, 16384, 65536};

static void unguard(struct wire_packet *packet) {
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(packet->tx.data, class_bytes[packet->klass]);
#else
    (void)packet;
#endif
}

void wire_pool_guard(struct wire_packet *packet) {
#ifdef __SANITIZE_ADDRESS__
    ASAN_POISON_MEMORY_REGION(packet->tx.data + packet->tx.len, class_bytes[packet->klass] - packet->tx.len);
#else
    (void)packet;
#endif
}

/* A new slab of the class onto its free list. */
static bool grow(struct wire_pool *pool, enum wire_class klass) {
    if (pool->slab_count == pool->slab_cap) {
        uint32_t cap = pool->slab_cap ? pool->slab_cap * 2 : 64;
        struct wire_slab **slabs = realloc(pool->slabs, cap * sizeof *slabs);
        if (!slabs)
            return false;
        pool->slabs = slabs;
        pool->slab_cap = cap;
    }
    struct wire_slab *slab = calloc(1, sizeof *slab);
    if (!slab)
        return false;
    slab->bytes = (size_t)class_bytes[klass] * WIRE_SLAB_PACKETS;
    slab->memory = mmap(NULL, slab->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (slab->memory == MAP_FAILED) {
        free(slab);
        return false;
    }
    for (uint32_t i = WIRE_SLAB_PACKETS; i-- > 0;) {
        struct wire_packet *packet = &slab->packets[i];
        packet->tx.data = slab->memory + (size_t)i * class_bytes[klass];
        packet->index = pool->slab_count * WIRE_SLAB_PACKETS + i;
        packet->klass = (uint8_t)klass;
        packet->next = pool->free[klass];
        pool->free[klass] = packet;
    }
    pool->slabs[pool->slab_count++] = slab;
    return true;
}

void wire_pool_destroy(struct wire_pool *pool) {
    for (uint32_t i = 0; i < pool->slab_count; i++) {
        for (uint32_t j = 0; j < WIRE_SLAB_PACKETS; j++)
            unguard(&pool->slabs[i]->packets[j]);
        munmap(pool->slabs[i]->memory, pool->slabs[i]->bytes);
        free(pool->slabs[i]);
    }
    free(pool->slabs);
    memset(pool, 0, sizeof *pool);
}

struct wire_packet *wire_pool_take(struct wire_pool *pool, uint32_t bytes) {
    enum wire_class klass = WIRE_SMALL;
    while (klass < WIRE_TRAIN && class_bytes[klass] < bytes)
        klass++;
    if (!pool->free[klass] && !grow(pool, klass))
        return NULL;
    struct wire_packet *packet = pool->free[klass];
    pool->free[klass] = packet->next;
    packet->next = NULL;
    packet->counted = false;
    pool->used++;
    return packet;
}

void wire_pool_give(struct wire_pool *pool, struct wire_packet *packet) {
    unguard(packet);
    packet->next = pool->free[packet->klass];
    pool->free[packet->klass] = packet;
    pool->used--;
}

struct wire_packet *wire_pool_at(const struct wire_pool *pool, uint32_t index) {
    return &pool->slabs[index / WIRE_SLAB_PACKETS]->packets[index % WIRE_SLAB_PACKETS];
}
