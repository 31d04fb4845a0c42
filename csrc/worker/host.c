/* What a worker gives the engine (struct quic_host): memory, chunks of both pools, timers, randomness. */
#define _GNU_SOURCE
#include "private.h"

#include <stdlib.h>
#include <sys/random.h>

static void *host_alloc(void *ctx, size_t bytes) {
    struct worker *w = ctx;
    return arena_alloc(&w->arena, bytes);
}

static void host_free(void *ctx, void *p, size_t bytes) {
    struct worker *w = ctx;
    arena_free(&w->arena, p, bytes);
}

static uint32_t host_chunk_alloc(void *ctx, uint32_t bytes, uint8_t **data) {
    struct worker *w = ctx;
    uint32_t reserve = bytes <= STOQ_SMALL_CHUNK_BYTES ? EVENT_SMALL_CHUNKS : EVENT_LARGE_CHUNKS;
    uint32_t chunk = receive_pool_alloc(&w->receive, bytes, reserve);
    if (chunk != STOQ_NO_CHUNK)
        *data = receive_pool_data(&w->receive, chunk);
    return chunk;
}

static void host_chunk_ref(void *ctx, uint32_t chunk) {
    struct worker *w = ctx;
    if (chunk & CHUNK_OF_SEND_POOL)
        w->send.refs[chunk & ~CHUNK_OF_SEND_POOL]++;
    else
        receive_pool_ref(&w->receive, chunk);
}

static void host_chunk_unref(void *ctx, uint32_t chunk) {
    struct worker *w = ctx;
    if (chunk & CHUNK_OF_SEND_POOL)
        worker_return_chunk(w, chunk & ~CHUNK_OF_SEND_POOL);
    else
        receive_pool_unref(&w->receive, chunk);
}

static void host_timer_set(void *ctx, struct quic_timer *timer, uint64_t deadline_ns) {
    struct worker *w = ctx;
    wheel_set(&w->wheel, timer, deadline_ns);
}

static void host_cid_in_use(void *ctx, uint64_t id, bool in_use) {
    struct worker *w = ctx;
    if (in_use)
        guard_cid_add(w->cid_region, guard_cid_buckets(w->guard), id);
    else
        guard_cid_remove(w->cid_region, guard_cid_buckets(w->guard), id);
}

struct quic_host worker_host(struct worker *w) {
    return (struct quic_host){.ctx = w,
                              .alloc = host_alloc,
                              .free = host_free,
                              .chunk_alloc = host_chunk_alloc,
                              .chunk_ref = host_chunk_ref,
                              .chunk_unref = host_chunk_unref,
                              .timer_set = host_timer_set,
                              .random = worker_random,
                              .cid_in_use = w->cid_region ? host_cid_in_use : NULL};
}

/* The kernel's generator through a buffer: one getrandom for some 200 connection ids. */
static void refill(struct worker *w) {
    size_t got = 0;
    while (got < sizeof w->random_bytes) {
        ssize_t n = getrandom(w->random_bytes + got, sizeof w->random_bytes - got, 0);
        if (n > 0)
            got += (size_t)n;
        else if (n < 0 && errno != EINTR)
            abort(); /* ENOSYS only: a kernel before 3.17. Connection ids must not be guessable. */
    }
    w->random_left = sizeof w->random_bytes;
}

void worker_random(void *ctx, uint8_t *out, size_t len) {
    struct worker *w = ctx;
    if (w->seeded) {
        prng_fill(&w->prng, out, len);
        return;
    }
    while (len > 0) {
        if (w->random_left == 0)
            refill(w);
        size_t n = len < w->random_left ? len : w->random_left;
        uint8_t *from = w->random_bytes + sizeof w->random_bytes - w->random_left;
        memcpy(out, from, n);
        crypto_wipe(from, n); /* Used once, kept nowhere else. */
        w->random_left -= (uint32_t)n;
        out += n;
        len -= n;
    }
}

void worker_return_chunk(struct worker *w, uint32_t chunk) {
    if (--w->send.refs[chunk] > 0)
        return;
    if (!w->returning) {
        w->returning = ring_reserve(&w->returns); /* A slot for each chunk there is: never full. */
        w->returning->count = 0;
    }
    w->returning->chunk[w->returning->count++] = chunk;
    if (w->returning->count == RETURN_SLOT_CHUNKS)
        w->returning = NULL;
}

void worker_flush_returns(struct worker *w) {
    w->returning = NULL;
    ring_publish(&w->returns);
}
