/* A worker's private memory: one mapping made at start, cut into size classes.
 *
 *      ┌ classes: 64, 128, 192, 256, 320, 384, 448, 512, 640 … 56 MiB, 64 MiB ───────────────┐
 *      │  free[class] ─▶ block ─▶ block ─▶ …        LIFO: the block freed last is still cached │
 *      └─────────────────────────────────────────────────────────────────────────────────────┘
 *      mapping: [ handed out once or more ......... | fresh: never touched, zero already ]
 *                                                    ▲ bump pointer
 *
 * A block comes from its class's list, else from the fresh end, else — when the mapping is used up — by
 * cutting a larger free block. All of it is bounded work and none of it enters the kernel (but for the first
 * touch of a page). Blocks of a class are not merged again: the classes settle at what the traffic needs.
 *
 * Pages: MAP_HUGETLB when the operator reserved enough huge pages, else ordinary pages with MADV_HUGEPAGE, so
 * that a connection lookup costs one TLB entry for 2 MiB. NUMA: nothing is touched at creation; the default
 * policy puts a page on the node of the thread that first writes it, and that is the worker, already pinned
 * to its core.
 *
 * Owner: one worker. Not thread safe; arena_used and the sizes may be read by its own thread only.
 */
#ifndef STOQ_WORKER_ARENA_H
#define STOQ_WORKER_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARENA_ALIGN   64u /* A cache line, as struct quic_host promises. */
#define ARENA_CLASSES 76u /* 64 .. 64 MiB, four steps a doubling. */
/* Largest block: a connection id map of 2^21 entries and twice as many slots. */
#define ARENA_MAX_BYTES (64u << 20)

struct arena_block;

struct arena {
    uint8_t *base;
    size_t bytes; /* Of the mapping. */
    size_t fresh; /* Offset of the first byte never handed out. */
    size_t used;  /* Bytes in blocks handed out now, by class size. */
    bool huge;    /* MAP_HUGETLB was granted. */
    struct arena_block *free[ARENA_CLASSES];
};

/* Map `bytes` (rounded up to 2 MiB). False: errno says why. */
bool arena_init(struct arena *a, size_t bytes);
void arena_destroy(struct arena *a);

/* Zeroed, 64-byte aligned. NULL: used up, or `bytes` is 0 or beyond ARENA_MAX_BYTES. */
void *arena_alloc(struct arena *a, size_t bytes);
/* `bytes` as given to arena_alloc. NULL is let pass. */
void arena_free(struct arena *a, void *p, size_t bytes);

/* The class that holds `bytes` and what it really takes; for tests and statistics. */
unsigned arena_class(size_t bytes);
size_t arena_class_bytes(unsigned class);

#endif
