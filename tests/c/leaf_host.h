/* A quic_host for tests of single modules: memory from malloc, counted, and refused on demand. */
#ifndef STOQ_TESTS_LEAF_HOST_H
#define STOQ_TESTS_LEAF_HOST_H

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "quic/quic.h"

struct leaf_memory {
    size_t bytes;       /* Given out now. */
    size_t blocks;      /* Likewise. */
    size_t allocations; /* Ever. */
    bool empty;         /* Refuse from now on. */
};

static void *leaf_alloc(void *ctx, size_t bytes) {
    struct leaf_memory *memory = ctx;
    if (memory->empty)
        return NULL;
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p == NULL)
        abort();
    memset(p, 0, bytes);
    memory->bytes += bytes;
    memory->blocks++;
    memory->allocations++;
    return p;
}

static void leaf_free(void *ctx, void *p, size_t bytes) {
    struct leaf_memory *memory = ctx;
    memory->bytes -= bytes; /* A size other than alloc's shows as an imbalance. */
    memory->blocks--;
    free(p);
}

static inline struct quic_host leaf_host(struct leaf_memory *memory) {
    return (struct quic_host){.ctx = memory, .alloc = leaf_alloc, .free = leaf_free};
}

static inline void leaf_timer(void *ctx, struct quic_timer *timer, uint64_t deadline_ns) {
    (void)ctx;
    timer->deadline_ns = deadline_ns;
}

static inline void leaf_random(void *ctx, uint8_t *out, size_t len) {
    (void)ctx;
    check_rand_bytes(out, len);
}

/* The same for a whole endpoint: timers are only remembered, randomness is the test's. */
static inline struct quic_host leaf_endpoint_host(struct leaf_memory *memory) {
    struct quic_host host = leaf_host(memory);
    host.timer_set = leaf_timer;
    host.random = leaf_random;
    return host;
}

#endif
