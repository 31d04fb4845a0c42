/* A stream's receiving part: chunk slots by offset, delivery in order. See stream.h. */
#include <string.h>

#include "stream.h"

#define FIRST_SLOTS 4u /* 16 KiB of small chunks. */

void quic_recv_part_init(struct quic_recv_part *r, uint64_t window) {
    r->state = QUIC_RECV_OPEN;
    r->final_size = UINT64_MAX;
    r->window = r->max = window;
    quic_ranges_init(&r->received, QUIC_STREAM_RANGES);
}

static struct quic_recv_slot *slot_at(const struct quic_recv_part *r, uint32_t index) {
    return &r->slots[index & r->slot_mask];
}

void quic_recv_part_release(struct quic_recv_part *r, const struct quic_host *host) {
    for (uint32_t i = 0; r->slots && i <= r->slot_mask; i++) {
        if (r->slots[i].data)
            host->chunk_unref(host->ctx, r->slots[i].chunk);
    }
    if (r->slots)
        host->free(host->ctx, r->slots, ((size_t)r->slot_mask + 1) * sizeof *r->slots);
    r->slots = NULL;
    r->slot_mask = 0;
    quic_ranges_clear(&r->received, host);
}

/* Slots for every chunk index up to `last`. */
static bool reserve_slots(struct quic_recv_part *r, const struct quic_host *host, uint32_t last) {
    uint32_t need = last - r->slot_first + 1;
    if (r->slots && need <= r->slot_mask + 1)
        return true;
    uint32_t old = r->slots ? r->slot_mask + 1 : 0;
    uint32_t slots = old ? old : FIRST_SLOTS;
    while (slots < need)
        slots *= 2;
    struct quic_recv_slot *v = host->alloc(host->ctx, slots * sizeof *v);
    if (!v)
        return false;
    for (uint32_t i = 0; i < old; i++)
        v[(r->slot_first + i) & (slots - 1)] = *slot_at(r, r->slot_first + i);
    if (r->slots)
        host->free(host->ctx, r->slots, old * sizeof *v);
    r->slots = v;
    r->slot_mask = slots - 1;
    return true;
}

bool quic_recv_part_write(struct quic_recv_part *r, const struct quic_host *host, uint64_t offset,
                          const uint8_t *data, uint32_t len) {
    uint64_t end = offset + len;
    /* Already contiguous up to here: the part below is a duplicate (and its chunk may be gone). */
    uint64_t have = r->received.count && r->received.v[0].lo == 0 ? r->received.v[0].hi : 0;
    if (end <= have)
        return true;
    if (offset < have) {
        data += have - offset;
        offset = have;
    }
    if (!reserve_slots(r, host, quic_chunk_index(end - 1)))
        return false;
    /* All chunks first, so that a failure leaves nothing half done. */
    for (uint32_t i = quic_chunk_index(offset); i <= quic_chunk_index(end - 1); i++) {
        struct quic_recv_slot *slot = slot_at(r, i);
        if (slot->data)
            continue;
        slot->chunk = host->chunk_alloc(host->ctx, quic_chunk_bytes(i), &slot->data);
        if (slot->chunk == QUIC_NO_CHUNK) {
            slot->data = NULL;
            return false;
        }
    }
    if (!quic_ranges_add(&r->received, host, offset, end))
        return false;
    while (offset < end) {
        uint32_t i = quic_chunk_index(offset);
        uint32_t at = (uint32_t)(offset - quic_chunk_start(i));
        uint64_t n = quic_chunk_bytes(i) - at;
        if (n > end - offset)
            n = end - offset;
        memcpy(slot_at(r, i)->data + at, data, n);
        data += n;
        offset += n;
    }
    return true;
}

uint8_t *quic_recv_part_place(const struct quic_recv_part *r, uint32_t before, uint32_t len) {
    const struct quic_range *have = r->received.v;
    if (r->received.count != 1 || have->lo != 0 || have->hi != r->highest || !r->slots ||
        r->highest < r->delivered + before)
        return NULL;
    uint32_t i = quic_chunk_index(r->highest);
    uint32_t at = (uint32_t)(r->highest - quic_chunk_start(i));
    if (at < before || at + len > quic_chunk_bytes(i) || i - r->slot_first > r->slot_mask ||
        !slot_at(r, i)->data)
        return NULL;
    return slot_at(r, i)->data + at;
}

bool quic_recv_part_append(struct quic_recv_part *r, const uint8_t *data, uint32_t len) {
    uint8_t *place = quic_recv_part_place(r, 0, len);
    if (!place)
        return false;
    memcpy(place, data, len);
    r->received.v[0].hi += len;
    return true;
}

uint64_t quic_recv_part_readable(const struct quic_recv_part *r) {
    if (!r->received.count || r->received.v[0].lo > 0 || r->received.v[0].hi <= r->delivered)
        return 0;
    return r->received.v[0].hi - r->delivered;
}

uint32_t quic_recv_part_deliver(struct quic_recv_part *r, const struct quic_host *host, uint32_t *chunk,
                                uint32_t *chunk_offset, const uint8_t **data) {
    uint64_t readable = quic_recv_part_readable(r);
    if (!readable)
        return 0;
    uint32_t i = quic_chunk_index(r->delivered);
    struct quic_recv_slot *slot = slot_at(r, i);
    uint32_t at = (uint32_t)(r->delivered - quic_chunk_start(i));
    uint32_t n = quic_chunk_bytes(i) - at;
    bool last = n <= readable;
    if (!last)
        n = (uint32_t)readable;
    r->delivered += n;
    if (r->delivered == r->final_size)
        last = true;
    *chunk = slot->chunk;
    *chunk_offset = at;
    *data = slot->data + at;
    if (last) {
        *slot = (struct quic_recv_slot){NULL, 0}; /* The slot's own reference goes to the reader. */
        r->slot_first = i + 1;
    } else {
        host->chunk_ref(host->ctx, slot->chunk);
    }
    return n;
}
