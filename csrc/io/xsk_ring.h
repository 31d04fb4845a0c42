/* The four rings an AF_XDP socket shares with the kernel, seen from our side. One writer and one reader each:
 *
 *      ring         we        the kernel    entries
 *      FILL         produce   consumes      frame addresses to receive into
 *      RX           consume   produces      descriptors of what arrived
 *      TX           produce   consumes      descriptors to send
 *      COMPLETION   consume   produces      frame addresses that are sent
 *
 * Both indices run free over 32 bits. `here` is ours; the kernel sees what was written to the ring, and that
 * we are done with what we read, only when it is published. Kernel documentation: af_xdp.rst. */
#ifndef STOQ_IO_XSK_RING_H
#define STOQ_IO_XSK_RING_H

#include <linux/if_xdp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct xsk_ring {
    uint32_t *producer, *consumer; /* Shared words: one is the kernel's to write, one ours. */
    uint32_t *flags;
    void *entries; /* struct xdp_desc (RX, TX) or uint64_t (FILL, COMPLETION). */
    uint32_t size; /* A power of two. */
    uint32_t here; /* Our index, ahead of the shared one until published. */
    void *map;
    size_t map_bytes;
};

static inline struct xdp_desc *xsk_ring_desc(const struct xsk_ring *r, uint32_t index) {
    return &((struct xdp_desc *)r->entries)[index & (r->size - 1)];
}

static inline uint64_t *xsk_ring_addr(const struct xsk_ring *r, uint32_t index) {
    return &((uint64_t *)r->entries)[index & (r->size - 1)];
}

/* Producing: entries we may write. Acquire: the kernel has read an entry before it moved its index past it;
 * our next write to that place comes after. */
static inline uint32_t xsk_ring_room(const struct xsk_ring *r) {
    return r->size - (r->here - __atomic_load_n(r->consumer, __ATOMIC_ACQUIRE));
}

/* Producing: show the kernel what was written up to `here`. Release: entries (and the frames they name) are
 * seen before the index; pairs with the kernel's acquire of it. */
static inline void xsk_ring_publish(struct xsk_ring *r) {
    __atomic_store_n(r->producer, r->here, __ATOMIC_RELEASE);
}

/* Consuming: entries that wait. Acquire: pairs with the kernel's release of its index; entries and frames are
 * read after. */
static inline uint32_t xsk_ring_waiting(const struct xsk_ring *r) {
    return __atomic_load_n(r->producer, __ATOMIC_ACQUIRE) - r->here;
}

/* Consuming: the kernel may overwrite the entries before `here`. Release: we have read them before; pairs
 * with the kernel's acquire. */
static inline void xsk_ring_release(struct xsk_ring *r) {
    __atomic_store_n(r->consumer, r->here, __ATOMIC_RELEASE);
}

/* Published and not yet taken, as both sides see it now; the kernel may publish its index late. Acquire, so
 * that what lies between may be looked at. */
static inline uint32_t xsk_ring_count(const struct xsk_ring *r) {
    uint32_t consumer = __atomic_load_n(r->consumer, __ATOMIC_ACQUIRE);
    return __atomic_load_n(r->producer, __ATOMIC_ACQUIRE) - consumer;
}

/* The kernel's side sleeps and wants a system call to go on (FILL and TX). Relaxed: a hint, looked at again
 * each time. */
static inline bool xsk_ring_needs_wakeup(const struct xsk_ring *r) {
    return (__atomic_load_n(r->flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP) != 0;
}

#endif
