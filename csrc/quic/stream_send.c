/* A stream's sending part: segments, what was acknowledged, what was lost. See stream.h. */
#include <string.h>

#include "stream.h"

#define FIRST_SEGMENTS 4u /* A short message is one chunk and a FIN. */

void quic_send_part_init(struct quic_send_part *s, uint64_t max) {
    s->state = QUIC_SEND_OPEN;
    s->max = max;
    quic_ranges_init(&s->acked, QUIC_STREAM_RANGES);
    quic_ranges_init(&s->lost, QUIC_STREAM_RANGES);
}

static struct quic_segment *segment_at(const struct quic_send_part *s, uint32_t i) {
    return &s->segments[i & s->mask];
}

void quic_send_part_release(struct quic_send_part *s, const struct quic_host *host) {
    for (; s->head != s->tail; s->head++)
        host->chunk_unref(host->ctx, segment_at(s, s->head)->chunk);
    if (s->segments)
        host->free(host->ctx, s->segments, ((size_t)s->mask + 1) * sizeof *s->segments);
    s->segments = NULL;
    s->mask = 0;
    quic_ranges_clear(&s->acked, host);
    quic_ranges_clear(&s->lost, host);
}

bool quic_send_part_append(struct quic_send_part *s, const struct quic_host *host, uint32_t chunk,
                           const uint8_t *data, uint32_t len) {
    uint32_t used = s->tail - s->head;
    if (!s->segments || used > s->mask) {
        uint32_t old = s->segments ? s->mask + 1 : 0;
        uint32_t slots = old ? old * 2 : FIRST_SEGMENTS;
        if (slots > QUIC_MAX_SEGMENTS)
            return false;
        struct quic_segment *v = host->alloc(host->ctx, slots * sizeof *v);
        if (!v)
            return false;
        for (uint32_t i = s->head; i != s->tail; i++)
            v[i & (slots - 1)] = *segment_at(s, i);
        if (s->segments)
            host->free(host->ctx, s->segments, old * sizeof *v);
        s->segments = v;
        s->mask = slots - 1;
    }
    *segment_at(s, s->tail++) = (struct quic_segment){data, s->end, chunk, len};
    s->end += len;
    return true;
}

bool quic_send_part_pending(const struct quic_send_part *s) {
    if (s->state != QUIC_SEND_OPEN && s->state != QUIC_SEND_DATA_SENT)
        return false;
    if (s->lost.count || s->fin_lost)
        return true;
    if (s->next < s->end)
        return s->next < s->max;
    return s->fin && !s->fin_sent;
}

uint32_t quic_send_part_next(struct quic_send_part *s, const struct quic_host *host, uint32_t room,
                             uint64_t credit, uint64_t *offset, bool *fin, uint32_t *fresh) {
    uint64_t len;
    *fresh = 0;
    if (s->lost.count) {
        struct quic_range r = s->lost.v[0];
        len = r.hi - r.lo < room ? r.hi - r.lo : room;
        *offset = r.lo;
        if (len)
            (void)quic_ranges_remove(&s->lost, host, r.lo, r.lo + len); /* From one end: never splits. */
    } else {
        len = s->end - s->next;
        uint64_t allowed = s->max > s->next ? s->max - s->next : 0;
        if (allowed > credit)
            allowed = credit;
        if (len > allowed)
            len = allowed;
        if (len > room)
            len = room;
        *offset = s->next;
        s->next += len;
        *fresh = (uint32_t)len;
    }
    /* The FIN rides on whatever ends at the final size; alone it needs no flow control. */
    *fin = s->fin && *offset + len == s->end && s->next == s->end && (len || s->fin_lost || !s->fin_sent);
    if (*fin) {
        s->fin_sent = true;
        s->fin_lost = false;
        s->state = QUIC_SEND_DATA_SENT;
    }
    return (uint32_t)len;
}

/* The segment that holds `offset`: near the cursor for new data, else by bisection. */
uint32_t quic_send_part_segment(const struct quic_send_part *s, uint64_t offset) {
    uint32_t i = s->cursor;
    if (i - s->head < s->tail - s->head) {
        const struct quic_segment *g = segment_at(s, i);
        if (offset >= g->offset && offset < g->offset + g->len)
            return i;
        if (offset == g->offset + g->len && i + 1 != s->tail)
            return i + 1;
    }
    uint32_t lo = 0, hi = s->tail - s->head - 1;
    while (lo < hi) {
        uint32_t mid = (lo + hi + 1) / 2;
        if (segment_at(s, s->head + mid)->offset <= offset)
            lo = mid;
        else
            hi = mid - 1;
    }
    return s->head + lo;
}

void quic_send_part_copy(struct quic_send_part *s, uint64_t offset, uint32_t len, uint8_t *out) {
    if (!len)
        return;
    uint32_t i = quic_send_part_segment(s, offset);
    for (;;) {
        const struct quic_segment *g = segment_at(s, i);
        uint32_t skip = (uint32_t)(offset - g->offset);
        uint32_t n = g->len - skip < len ? g->len - skip : len;
        memcpy(out, g->data + skip, n);
        len -= n;
        if (!len)
            break;
        out += n;
        offset += n;
        i++;
    }
    s->cursor = i;
}

bool quic_send_part_acked(struct quic_send_part *s, const struct quic_host *host, uint64_t offset,
                          uint32_t len, bool fin) {
    if (s->state != QUIC_SEND_OPEN && s->state != QUIC_SEND_DATA_SENT)
        return false;
    uint64_t end = offset + len, old_base = s->base;
    if (len && s->lost.count)
        (void)quic_ranges_remove(&s->lost, host, offset, end);
    if (fin) {
        s->fin_acked = true;
        s->fin_lost = false;
    }
    if (len && end > s->base) {
        if (offset <= s->base)
            s->base = end;
        else
            (void)quic_ranges_add(&s->acked, host, offset,
                                  end); /* Forgotten when full: only sent once more. */
        while (s->acked.count && s->acked.v[0].lo <= s->base) {
            if (s->acked.v[0].hi > s->base)
                s->base = s->acked.v[0].hi;
            quic_ranges_pop_first(&s->acked);
        }
    }
    /* What is below base has no segment any more, so it must not be sent again, even where the removal above
     * found no room to split a range. This one takes from one end and never splits. */
    if (s->base != old_base && s->lost.count)
        (void)quic_ranges_remove(&s->lost, host, 0, s->base);
    while (s->head != s->tail) {
        struct quic_segment *g = segment_at(s, s->head);
        if (g->offset + g->len > s->base)
            break;
        host->chunk_unref(host->ctx, g->chunk);
        s->head++;
    }
    if (s->fin_acked && s->base == s->end && s->state == QUIC_SEND_DATA_SENT) {
        s->state = QUIC_SEND_DATA_RECVD;
        return true;
    }
    return s->base != old_base;
}

void quic_send_part_lost(struct quic_send_part *s, const struct quic_host *host, uint64_t offset,
                         uint32_t len, bool fin) {
    if (s->state != QUIC_SEND_OPEN && s->state != QUIC_SEND_DATA_SENT)
        return;
    if (fin && !s->fin_acked)
        s->fin_lost = true;
    uint64_t end = offset + len, at = offset < s->base ? s->base : offset;
    while (at < end) {
        uint32_t i = quic_ranges_find(&s->acked, at);
        uint64_t hi = end;
        if (i < s->acked.count && s->acked.v[i].lo <= at) {
            at = s->acked.v[i].hi;
            continue;
        }
        if (i < s->acked.count && s->acked.v[i].lo < end)
            hi = s->acked.v[i].lo;
        if (!quic_ranges_add(&s->lost, host, at, hi)) {
            /* No room for another gap: widen the last range over it. Costs bytes on the wire, loses none. */
            struct quic_range *last = &s->lost.v[s->lost.count - 1];
            uint64_t lo = at < last->lo ? at : last->lo;
            uint64_t top = hi > last->hi ? hi : last->hi;
            while (s->lost.count && s->lost.v[s->lost.count - 1].hi > lo)
                s->lost.count--;
            (void)quic_ranges_add(&s->lost, host, lo, top);
        }
        at = hi;
    }
}
