/* Datagrams between workers; handoff.h draws it. */
#define _GNU_SOURCE
#include "handoff.h"

#include <sys/mman.h>

struct handoff_slot {
    struct quic_addr peer, local;
    uint32_t at; /* Position of the first byte, counted for ever; modulo 2^32. */
    uint32_t len;
    uint16_t segment;
    uint8_t ecn;
};
_Static_assert(sizeof(struct handoff_slot) <= RING_SLOT_BYTES, "a descriptor is one slot");

struct handoff {
    struct ring_producer producer;
    uint32_t head; /* Producer: position of the next free byte. */
    alignas(64) struct ring_consumer consumer;
    alignas(64) _Atomic uint32_t tail; /* Consumer: bytes before this may be overwritten. */
    alignas(64) uint8_t ring[sizeof(struct ring) + HANDOFF_SLOTS * RING_SLOT_BYTES];
    uint8_t bytes[HANDOFF_BYTES];
};

struct handoff *handoff_create(void) {
    struct handoff *h =
        mmap(NULL, sizeof *h, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (h == MAP_FAILED)
        return NULL;
    ring_init(h->ring, HANDOFF_SLOTS);
    h->producer = ring_attach_producer(h->ring, HANDOFF_SLOTS);
    h->consumer = ring_attach_consumer(h->ring, HANDOFF_SLOTS);
    return h;
}

void handoff_destroy(struct handoff *h) {
    if (h)
        munmap(h, sizeof *h);
}

bool handoff_push(struct handoff *h, const struct quic_rx *rx) {
    uint32_t at = h->head;
    uint32_t offset = at % HANDOFF_BYTES;
    if (rx->len > HANDOFF_BYTES - offset)
        at += HANDOFF_BYTES - offset; /* Does not fit before the end: a train lies in one piece. */
    /* Acquire, with handoff_pop: the consumer has finished with the bytes we are about to overwrite. */
    uint32_t tail = atomic_load_explicit(&h->tail, memory_order_acquire);
    if (rx->len > HANDOFF_BYTES || at + rx->len - tail > HANDOFF_BYTES)
        return false;
    struct handoff_slot *slot = ring_reserve(&h->producer);
    if (!slot)
        return false;
    uint8_t *to = h->bytes + at % HANDOFF_BYTES;
    if (rx->stride == 0 || rx->len <= rx->segment) {
        memcpy(to, rx->data, rx->len);
    } else { /* The copy closes the gaps. */
        const uint8_t *from = rx->data;
        for (uint32_t left = rx->len; left > 0; from += rx->stride) {
            uint32_t n = left < rx->segment ? left : rx->segment;
            memcpy(to, from, n);
            to += n;
            left -= n;
        }
    }
    *slot = (struct handoff_slot){.peer = rx->peer,
                                  .local = rx->local,
                                  .at = at,
                                  .len = rx->len,
                                  .segment = rx->segment,
                                  .ecn = rx->ecn};
    h->head = at + rx->len;
    return true;
}

bool handoff_publish(struct handoff *h) {
    return ring_publish(&h->producer);
}

bool handoff_peek(struct handoff *h, struct quic_rx *rx) {
    const struct handoff_slot *slot = ring_peek(&h->consumer);
    if (!slot)
        return false;
    *rx = (struct quic_rx){.data = h->bytes + slot->at % HANDOFF_BYTES,
                           .len = slot->len,
                           .segment = slot->segment,
                           .ecn = slot->ecn,
                           .peer = slot->peer,
                           .local = slot->local};
    return true;
}

void handoff_pop(struct handoff *h) {
    const struct handoff_slot *slot = ring_peek(&h->consumer);
    /* Release, with handoff_push's acquire: our use of the bytes is over before the producer writes there
     * again. */
    atomic_store_explicit(&h->tail, slot->at + slot->len, memory_order_release);
    ring_pop(&h->consumer);
    ring_release(&h->consumer);
}

bool handoff_waiting(const struct handoff *h) {
    return ring_waiting((const struct ring *)h->ring);
}
