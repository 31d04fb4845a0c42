/* Chunk pools: free lists and reference counts; chunks.h draws their life. */
#define _GNU_SOURCE
#include "chunks.h"
#include "poison.h"

#include <sys/mman.h>

/* Private, zeroed, and touched only where it is used. NULL on failure. */
static void *map_private(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

struct chunk_layout chunk_layout_for(uint64_t bytes) {
    /* 2^30 chunks would still leave the top bit of a number free, which the worker uses to tell the pools
     * apart. */
    uint64_t limit = (uint64_t)1 << 30;
    uint64_t small = bytes / 4 / STOQ_SMALL_CHUNK_BYTES;
    uint64_t large = (bytes - bytes / 4) / STOQ_LARGE_CHUNK_BYTES;
    return (struct chunk_layout){.small = (uint32_t)(small < limit ? small : limit),
                                 .large = (uint32_t)(large < limit ? large : limit)};
}

bool chunk_pool_init(struct chunk_pool *p, const struct chunk_layout *layout) {
    *p = (struct chunk_pool){.layout = *layout, .memory_bytes = chunk_count(layout) * sizeof(uint32_t)};
    p->memory = map_private(p->memory_bytes);
    if (!p->memory)
        return false;
    p->small = (struct chunk_free){.stack = p->memory, .end = layout->small};
    p->large = (struct chunk_free){
        .stack = (uint32_t *)p->memory + layout->small, .fresh = layout->small, .end = chunk_count(layout)};
    return true;
}

void chunk_pool_destroy(struct chunk_pool *p) {
    if (p->memory)
        munmap(p->memory, p->memory_bytes);
    *p = (struct chunk_pool){0};
}

uint32_t chunk_pool_take(struct chunk_pool *p, uint32_t bytes, uint32_t reserve) {
    struct chunk_free *f = bytes <= STOQ_SMALL_CHUNK_BYTES ? &p->small : &p->large;
    if (bytes > STOQ_LARGE_CHUNK_BYTES || chunk_free_count(f) <= reserve)
        return STOQ_NO_CHUNK;
    return chunk_take(f);
}

void chunk_pool_give(struct chunk_pool *p, uint32_t chunk) {
    struct chunk_free *f = chunk < p->layout.small ? &p->small : &p->large;
    f->stack[f->freed++] = chunk;
}

bool receive_pool_init(struct receive_pool *r, const struct chunk_layout *layout, uint8_t *data) {
    *r = (struct receive_pool){.data = data, .state_bytes = chunk_count(layout) * sizeof *r->state};
    if (!chunk_pool_init(&r->pool, layout))
        return false;
    r->state = map_private(r->state_bytes);
    if (!r->state)
        chunk_pool_destroy(&r->pool);
    return r->state != NULL;
}

void receive_pool_destroy(struct receive_pool *r) {
    if (r->data) { /* What was ever used of each class. Whoever maps this place next starts clean. */
        uint32_t small = r->pool.layout.small, large = r->pool.large.fresh - small;
        unpoison(r->data, (size_t)r->pool.small.fresh * STOQ_SMALL_CHUNK_BYTES);
        unpoison(receive_pool_data(r, small), (size_t)large * STOQ_LARGE_CHUNK_BYTES);
    }
    if (r->state)
        munmap(r->state, r->state_bytes);
    chunk_pool_destroy(&r->pool);
    *r = (struct receive_pool){0};
}

uint32_t receive_pool_alloc(struct receive_pool *r, uint32_t bytes, uint32_t reserve) {
    uint32_t chunk = chunk_pool_take(&r->pool, bytes, reserve);
    if (chunk != STOQ_NO_CHUNK) {
        r->state[chunk] = (struct chunk_state){.refs = 1};
        unpoison(receive_pool_data(r, chunk), chunk_bytes(&r->pool.layout, chunk));
    }
    return chunk;
}

void receive_pool_release(struct receive_pool *r, uint32_t chunk) {
    poison(receive_pool_data(r, chunk), chunk_bytes(&r->pool.layout, chunk));
    chunk_pool_give(&r->pool, chunk);
}

bool receive_pool_return(struct receive_pool *r, uint32_t chunk) {
    if (chunk >= chunk_count(&r->pool.layout) || r->state[chunk].lent == 0)
        return false;
    r->state[chunk].lent--;
    receive_pool_unref(r, chunk);
    return true;
}

bool send_chunks_init(struct send_chunks *s, const struct chunk_layout *layout, uint8_t *data) {
    *s = (struct send_chunks){
        .layout = *layout, .data = data, .refs_bytes = chunk_count(layout) * sizeof(uint32_t)};
    s->refs = map_private(s->refs_bytes);
    return s->refs != NULL;
}

void send_chunks_destroy(struct send_chunks *s) {
    if (s->refs)
        munmap(s->refs, s->refs_bytes);
    *s = (struct send_chunks){0};
}
