/* Single-producer, single-consumer ring of 64-byte slots in shared memory.
 *
 * The shared part is a header of three cache lines followed by the slots. It holds counts and no pointers, so
 * both ends may map it at different addresses, and either end may go away and attach again: the positions
 * tell where it was.
 *
 *      line 0: slots (constant)      line 1: head, the producer's      line 2: tail, the consumer's
 *
 *             tail                 head
 *              ▼                    ▼                free slots  = capacity - (head - tail)
 *      ┌────┬────┬────┬────┬────┬────┬────┐          filled      = head - tail
 *      │    │████│████│████│████│    │    │          positions only grow; slot = position & (capacity - 1)
 *      └────┴────┴────┴────┴────┴────┴────┘
 *
 * Who owns a slot when: the producer from the moment tail passed it until its ring_publish, the consumer from
 * then until its ring_release. Each side works on its own end (struct ring_producer, struct ring_consumer:
 * private memory) and keeps a copy of the other's position there, so the peer's cache line is fetched only
 * when the copy says full or empty.
 *
 * A peer that scribbles over the positions can lose messages but not lead us outside the slots: indexes are
 * masked with the private capacity, and a count beyond the capacity reads as a full or an empty ring.
 */
#ifndef STOQ_WORKER_RING_H
#define STOQ_WORKER_RING_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define RING_SLOT_BYTES 64u /* One cache line: a message costs one transfer between cores. */

struct ring {
    alignas(64) uint64_t slots;        /* Capacity, a power of two. Written by ring_init only. */
    alignas(64) _Atomic uint64_t head; /* Next position to be published. */
    alignas(64) _Atomic uint64_t tail; /* Next position to be released. */
};

struct ring_producer {
    struct ring *ring;
    uint8_t *slots;
    uint64_t capacity;
    uint64_t head;        /* Reserved up to here; published up to ring->head. */
    uint64_t tail_cached; /* Consumer's position when last read. */
};

struct ring_consumer {
    struct ring *ring;
    uint8_t *slots;
    uint64_t capacity;
    uint64_t tail;        /* Taken up to here; released up to ring->tail. */
    uint64_t head_cached; /* Producer's position when last read. */
};

static inline size_t ring_bytes(uint64_t slots) {
    return sizeof(struct ring) + slots * RING_SLOT_BYTES;
}

/* `memory`: ring_bytes(slots) bytes, 64-byte aligned, zeroed. `slots`: a power of two. */
static inline void ring_init(void *memory, uint64_t slots) {
    ((struct ring *)memory)->slots = slots;
}

static inline struct ring_producer ring_attach_producer(void *memory, uint64_t slots) {
    struct ring *ring = memory;
    /* Relaxed: this end alone writes head; tail may be old, which only makes the ring look fuller. */
    return (struct ring_producer){
        .ring = ring,
        .slots = (uint8_t *)(ring + 1),
        .capacity = slots,
        .head = atomic_load_explicit(&ring->head, memory_order_relaxed),
        .tail_cached = atomic_load_explicit(&ring->tail, memory_order_relaxed),
    };
}

static inline struct ring_consumer ring_attach_consumer(void *memory, uint64_t slots) {
    struct ring *ring = memory;
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    /* Relaxed, and starting from "nothing there": the first ring_peek fetches head with acquire. */
    return (struct ring_consumer){
        .ring = ring, .slots = (uint8_t *)(ring + 1), .capacity = slots, .tail = tail, .head_cached = tail};
}

/* Slots that can be reserved now; at least `want` if there are so many. */
static inline uint64_t ring_free(struct ring_producer *p, uint64_t want) {
    uint64_t used = p->head - p->tail_cached;
    if (used > p->capacity || p->capacity - used < want) {
        /* Acquire, with ring_release: the consumer has finished reading the slots before we write them again.
         */
        p->tail_cached = atomic_load_explicit(&p->ring->tail, memory_order_acquire);
        used = p->head - p->tail_cached;
    }
    return used > p->capacity ? 0 : p->capacity - used;
}

/* The next slot to fill, or NULL: full. Not seen by the consumer before ring_publish. */
static inline void *ring_reserve(struct ring_producer *p) {
    if (ring_free(p, 1) == 0)
        return NULL;
    return p->slots + (p->head++ & (p->capacity - 1)) * RING_SLOT_BYTES;
}

/* Show every reserved slot to the consumer. False: there was nothing new. */
static inline bool ring_publish(struct ring_producer *p) {
    /* Relaxed: only we write head. */
    if (atomic_load_explicit(&p->ring->head, memory_order_relaxed) == p->head)
        return false;
    /* Release, with ring_peek's acquire: the slots' contents are visible before the position that covers
     * them. */
    atomic_store_explicit(&p->ring->head, p->head, memory_order_release);
    return true;
}

/* The next filled slot, or NULL: empty. It stays ours until ring_release. */
static inline const void *ring_peek(struct ring_consumer *c) {
    if (c->tail == c->head_cached) {
        /* Acquire, with ring_publish: what the producer wrote into the slots is visible once its position is.
         */
        uint64_t head = atomic_load_explicit(&c->ring->head, memory_order_acquire);
        if (head - c->tail > c->capacity)
            return NULL; /* Not a position a sane producer writes. */
        c->head_cached = head;
        if (c->tail == head)
            return NULL;
    }
    return c->slots + (c->tail & (c->capacity - 1)) * RING_SLOT_BYTES;
}

/* Done with the slot ring_peek gave; goes on to the next. */
static inline void ring_pop(struct ring_consumer *c) {
    c->tail++;
}

/* Let the producer fill the popped slots again. */
static inline void ring_release(struct ring_consumer *c) {
    /* Release, with ring_free's acquire: our reads of the slots are over before the producer may write them.
     * Relaxed load: only we write tail; the check spares the producer's cache line when nothing was popped.
     */
    if (atomic_load_explicit(&c->ring->tail, memory_order_relaxed) != c->tail)
        atomic_store_explicit(&c->ring->tail, c->tail, memory_order_release);
}

/* Is anything published that was not yet released? Either end, or an onlooker; only a hint about the other
 * end. */
static inline bool ring_waiting(const struct ring *ring) {
    /* Relaxed: the caller that needs an order (sleep and wake) puts a fence before this. */
    return atomic_load_explicit(&ring->head, memory_order_relaxed) !=
           atomic_load_explicit(&ring->tail, memory_order_relaxed);
}

#endif
