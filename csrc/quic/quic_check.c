/* Connection invariants. See quic_check.h. */
#include "quic_check.h"

#include <stdio.h>

#include "conn.h"

struct check {
    char *why;
    size_t cap;
    bool ok;
};

static void expect(struct check *c, bool holds, const char *text, uint64_t a, uint64_t b) {
    if (holds || !c->ok)
        return;
    c->ok = false;
    snprintf(c->why, c->cap, "%s (%llu, %llu)", text, (unsigned long long)a, (unsigned long long)b);
}

static void check_ranges(struct check *c, const struct quic_ranges *set, const char *name) {
    for (uint32_t i = 0; i < set->count; i++) {
        expect(c, set->v[i].lo < set->v[i].hi, name, set->v[i].lo, set->v[i].hi);
        if (i)
            expect(c, set->v[i - 1].hi < set->v[i].lo, name, set->v[i - 1].hi, set->v[i].lo);
    }
    expect(c, set->count <= set->limit, name, set->count, set->limit);
}

static uint64_t check_space(struct check *c, const struct quic_space *space) {
    const struct quic_sent *sent = &space->sent;
    uint64_t in_flight = 0, eliciting = 0;
    check_ranges(c, &space->received, "received packet numbers");
    check_ranges(c, &space->crypto.lost, "lost CRYPTO ranges");
    check_ranges(c, &space->crypto.acked, "acknowledged CRYPTO ranges");
    expect(c, sent->base <= sent->next, "packet numbers run backwards", sent->base, sent->next);
    expect(c, !sent->packets || sent->next - sent->base <= (uint64_t)sent->packet_mask + 1,
           "sent ring overrun", sent->base, sent->next);
    uint32_t frames = sent->frames_base;
    for (uint64_t pn = sent->base; pn < sent->next && c->ok; pn++) {
        const struct quic_sent_packet *p = quic_sent_at(sent, pn);
        expect(c, p->frames == frames, "frame log out of step with packets", p->frames, frames);
        frames = p->frames + p->frame_count;
        if (p->state != QUIC_SENT_OUT)
            continue;
        if ((p->flags & QUIC_SENT_IN_FLIGHT) && !(p->flags & QUIC_SENT_OLD_PATH))
            in_flight += p->bytes;
        eliciting += (p->flags & QUIC_SENT_ELICITING) != 0;
    }
    expect(c, sent->base == sent->next || frames == sent->frames_next, "frame log's end out of step", frames,
           sent->frames_next);
    expect(c, eliciting == space->eliciting_in_flight, "ack-eliciting packets in flight", eliciting,
           space->eliciting_in_flight);
    expect(c, space->largest_acked == QUIC_NO_PN || space->largest_acked < sent->next,
           "acknowledged the unsent", space->largest_acked, sent->next);
    return in_flight;
}

static void check_stream(struct check *c, const struct quic_stream *s, uint64_t *sent, uint64_t *received) {
    const struct quic_send_part *p = &s->send;
    const struct quic_recv_part *r = &s->recv;
    check_ranges(c, &p->acked, "acknowledged stream ranges");
    check_ranges(c, &p->lost, "lost stream ranges");
    check_ranges(c, &r->received, "received stream ranges");
    if (p->state != QUIC_SEND_NONE) {
        expect(c, p->base <= p->next && p->next <= p->end, "send offsets out of order", p->base, p->next);
        expect(c, p->next <= p->max, "sent past MAX_STREAM_DATA", p->next, p->max);
        expect(c, !p->lost.count || p->lost.v[p->lost.count - 1].hi <= p->next, "lost bytes never sent",
               p->next, 0);
        bool live = p->state == QUIC_SEND_OPEN || p->state == QUIC_SEND_DATA_SENT;
        if (live && p->head != p->tail) {
            const struct quic_segment *g = &p->segments[p->head & p->mask];
            expect(c, g->offset <= p->base && p->base < g->offset + g->len, "segment before base kept",
                   g->offset, p->base);
        }
        expect(c, !live || p->head != p->tail || p->base == p->end, "segments missing", p->base, p->end);
        *sent += p->next;
    }
    if (r->state != QUIC_RECV_NONE) {
        expect(c, r->delivered <= r->highest, "delivered more than received", r->delivered, r->highest);
        expect(c, r->consumed <= r->delivered, "consumed more than delivered", r->consumed, r->delivered);
        expect(c, r->highest <= r->max, "received past MAX_STREAM_DATA", r->highest, r->max);
        expect(c, r->final_size == UINT64_MAX || r->highest <= r->final_size, "received past the final size",
               r->highest, r->final_size);
        *received += r->highest;
    }
}

bool quic_conn_check(const struct quic_conn *conn, char *why, size_t cap) {
    struct check c = {why, cap, true};
    uint64_t in_flight = 0, sent = 0, received = 0, streams = 0, unsent = 0;
    for (int i = 0; i < QUIC_SPACE_COUNT; i++)
        in_flight += check_space(&c, conn->spaces[i]);
    if (conn->state <= QUIC_CONN_CONNECTED)
        expect(&c, in_flight == conn->recovery.bytes_in_flight, "bytes in flight", in_flight,
               conn->recovery.bytes_in_flight);
    for (uint32_t b = 0; conn->buckets && b <= conn->bucket_mask; b++) {
        for (const struct quic_stream *s = conn->buckets[b]; s; s = s->next_in_bucket, streams++) {
            check_stream(&c, s, &sent, &received);
            if (s->send.state == QUIC_SEND_OPEN || s->send.state == QUIC_SEND_DATA_SENT)
                unsent += s->send.end - s->send.next;
        }
    }
    expect(&c, conn->state > QUIC_CONN_CONNECTED || unsent == conn->unsent, "unsent stream bytes", unsent,
           conn->unsent);
    expect(&c, streams == conn->stream_count, "stream table count", streams, conn->stream_count);
    expect(&c, sent <= conn->send_total, "stream bytes sent", sent, conn->send_total);
    expect(&c, conn->send_total <= conn->send_max, "sent past MAX_DATA", conn->send_total, conn->send_max);
    expect(&c, received <= conn->recv_total, "stream bytes received", received, conn->recv_total);
    expect(&c, conn->recv_total <= conn->recv_max, "received past MAX_DATA", conn->recv_total,
           conn->recv_max);
    expect(&c, conn->recv_consumed <= conn->recv_total, "consumed past received", conn->recv_consumed,
           conn->recv_total);
    expect(&c, conn->recovery.cc.window >= 2 * (uint64_t)QUIC_MIN_INITIAL_BYTES,
           "congestion window below two packets", conn->recovery.cc.window, conn->recovery.cc.mss);
    const struct quic_handshake *hs = conn->handshake;
    expect(&c, !hs || hs->pending_count <= QUIC_PENDING_PACKETS, "pending packets",
           hs ? hs->pending_count : 0, 0);
    expect(&c, hs || conn->confirmed, "handshake given back before its end", conn->state, 0);
    return c.ok;
}
