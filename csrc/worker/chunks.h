/* Chunks: stream bytes in memory that worker and control plane both map, named by number.
 *
 * There are two pools in the shared area. Each has two classes and one numbering:
 *
 *      number   0 .......... small-1 | small .............. small+large-1
 *      bytes        4096 each        |        65536 each
 *
 *   receive pool: the worker allocates, counts references, and lends chunks out with events.
 *
 *      free ──alloc──▶ refs 1 (engine) ──STREAM_DATA──▶ refs, lent 1 (control plane reads)
 *        ▲                                                   │ STREAM_CONSUMED, CHUNK_RELEASE
 *        └────────────────────── refs 0 ◀────────────────────┘
 *
 *   send pool: the control plane allocates; a command carries the chunk to the worker; when all of it is
 *   acknowledged, its number comes back through the return ring.
 *
 *      free (control) ──alloc──▶ being filled ──command──▶ refs 1 (worker) ──return ring──▶ free (control)
 *
 * Address space is reserved for both pools in full; pages exist only for chunks that were used. Free lists
 * are LIFO, so that a light load circulates a few chunks that stay in the cache. All bookkeeping is in
 * private memory of its owner: what the other side scribbles cannot corrupt it. `lent` makes a double release
 * by the control plane a counted error instead of a use after free.
 */
#ifndef STOQ_WORKER_CHUNKS_H
#define STOQ_WORKER_CHUNKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../stoq.h"

/* How many chunks of each class a pool has, and where a chunk's data lies. */
struct chunk_layout {
    uint32_t small, large;
};

static inline uint32_t chunk_count(const struct chunk_layout *l) {
    return l->small + l->large;
}

static inline uint32_t chunk_bytes(const struct chunk_layout *l, uint32_t chunk) {
    return chunk < l->small ? STOQ_SMALL_CHUNK_BYTES : STOQ_LARGE_CHUNK_BYTES;
}

/* Offset of a chunk's data from the pool's start. */
static inline uint64_t chunk_offset(const struct chunk_layout *l, uint32_t chunk) {
    if (chunk < l->small)
        return (uint64_t)chunk * STOQ_SMALL_CHUNK_BYTES;
    return (uint64_t)l->small * STOQ_SMALL_CHUNK_BYTES +
           (uint64_t)(chunk - l->small) * STOQ_LARGE_CHUNK_BYTES;
}

static inline uint64_t chunk_pool_bytes(const struct chunk_layout *l) {
    return (uint64_t)l->small * STOQ_SMALL_CHUNK_BYTES + (uint64_t)l->large * STOQ_LARGE_CHUNK_BYTES;
}

/* Divide `bytes` of address space: a quarter to small chunks (messages, handshakes), the rest to large ones
 * (bulk). */
struct chunk_layout chunk_layout_for(uint64_t bytes);

/* Free chunks of one class: a stack of those freed, and below it the numbers never used. */
struct chunk_free {
    uint32_t *stack;
    uint32_t freed; /* Numbers on the stack. */
    uint32_t fresh; /* Next number never used. */
    uint32_t end;   /* One past this class's last number. */
};

static inline uint32_t chunk_free_count(const struct chunk_free *f) {
    return f->freed + (f->end - f->fresh);
}

/* Take a number; STOQ_NO_CHUNK: none. */
static inline uint32_t chunk_take(struct chunk_free *f) {
    if (f->freed > 0)
        return f->stack[--f->freed];
    return f->fresh < f->end ? f->fresh++ : STOQ_NO_CHUNK;
}

/* Both classes of a pool, with the state of each chunk. Private to the side that allocates. */
struct chunk_pool {
    struct chunk_layout layout;
    struct chunk_free small, large;
    void *memory; /* The stacks and (by the owner's choice) states; one mapping. */
    size_t memory_bytes;
};

/* Make the free lists. False: errno. */
bool chunk_pool_init(struct chunk_pool *p, const struct chunk_layout *layout);
void chunk_pool_destroy(struct chunk_pool *p);
/* A chunk of the class for `bytes` (STOQ_SMALL_CHUNK_BYTES or less: small), leaving `reserve` of it. */
uint32_t chunk_pool_take(struct chunk_pool *p, uint32_t bytes, uint32_t reserve);
/* A chunk that was taken: the caller knows that it is not free. */
void chunk_pool_give(struct chunk_pool *p, uint32_t chunk);

/* ---- the receive pool ---- */

struct chunk_state {
    uint32_t refs; /* In all; 0: free. */
    uint32_t lent; /* Of these, references the control plane holds. */
};

struct receive_pool {
    struct chunk_pool pool;
    struct chunk_state *state;
    size_t state_bytes;
    uint8_t *data; /* In the shared area. */
};

bool receive_pool_init(struct receive_pool *r, const struct chunk_layout *layout, uint8_t *data);
void receive_pool_destroy(struct receive_pool *r);

static inline uint8_t *receive_pool_data(const struct receive_pool *r, uint32_t chunk) {
    return r->data + chunk_offset(&r->pool.layout, chunk);
}

/* One reference. STOQ_NO_CHUNK when no more than `reserve` are free. */
uint32_t receive_pool_alloc(struct receive_pool *r, uint32_t bytes, uint32_t reserve);

static inline void receive_pool_ref(struct receive_pool *r, uint32_t chunk) {
    r->state[chunk].refs++;
}

/* The last reference is gone. */
void receive_pool_release(struct receive_pool *r, uint32_t chunk);

static inline void receive_pool_unref(struct receive_pool *r, uint32_t chunk) {
    if (--r->state[chunk].refs == 0)
        receive_pool_release(r, chunk);
}

/* One reference passes to the control plane. */
static inline void receive_pool_lend(struct receive_pool *r, uint32_t chunk) {
    r->state[chunk].lent++;
}

/* The control plane gives a reference back. False: it holds none (or names no chunk); nothing is changed. */
bool receive_pool_return(struct receive_pool *r, uint32_t chunk);

/* ---- chunks of the send pool while the worker has them ---- */

struct send_chunks {
    struct chunk_layout layout;
    uint32_t *refs; /* 0: the control plane's. */
    size_t refs_bytes;
    uint8_t *data; /* In the shared area. */
};

bool send_chunks_init(struct send_chunks *s, const struct chunk_layout *layout, uint8_t *data);
void send_chunks_destroy(struct send_chunks *s);

/* A command brought this chunk. False: no such chunk, or the worker has it already. */
static inline bool send_chunks_adopt(struct send_chunks *s, uint32_t chunk) {
    if (chunk >= chunk_count(&s->layout) || s->refs[chunk] != 0)
        return false;
    s->refs[chunk] = 1;
    return true;
}

#endif
