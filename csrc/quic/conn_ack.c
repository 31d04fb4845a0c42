/* What an ACK frame does, and what acknowledged and lost frames mean: RFC 9000 section 13, RFC 9002 Appendix
 * A.7. */
#include "conn.h"

static void frame_acked(struct quic_conn *conn, enum quic_space_id id, const struct quic_sent_frame *f) {
    struct quic_space *space = conn->spaces[id];
    const struct quic_host *host = quic_host_of(conn);
    struct quic_stream *s;
    switch (f->type) {
    case QUIC_FRAME_STREAM:
        s = quic_stream_find(conn, f->a);
        if (s && quic_send_part_acked(&s->send, host, f->b, f->len, f->fin)) {
            quic_stream_tell(conn, s, QUIC_TELL_ACKED);
            quic_stream_maybe_close(conn, s);
        }
        break;
    case QUIC_FRAME_ACK:
        space->ack_floor = quic_max(space->ack_floor, f->a + 1);
        break;
    case QUIC_FRAME_ACK_FREQUENCY:
        quic_ack_frequency_acked(conn, f->a);
        break;
    case QUIC_FRAME_CRYPTO:
        quic_crypto_acked(&space->crypto, host, f->b, f->len);
        break;
    case QUIC_FRAME_RESET_STREAM:
        s = quic_stream_find(conn, f->a);
        if (s && s->send.state == QUIC_SEND_RESET_SENT) {
            s->send.state = QUIC_SEND_RESET_RECVD;
            quic_stream_maybe_close(conn, s);
        }
        break;
    default:
        break;
    }
}

static void frame_lost(struct quic_conn *conn, enum quic_space_id id, const struct quic_sent_frame *f) {
    struct quic_space *space = conn->spaces[id];
    const struct quic_host *host = quic_host_of(conn);
    struct quic_stream *s;
    switch (f->type) {
    case QUIC_FRAME_STREAM:
        s = quic_stream_find(conn, f->a);
        if (s) {
            quic_send_part_lost(&s->send, host, f->b, f->len, f->fin);
            quic_stream_schedule(conn, s);
        }
        break;
    case QUIC_FRAME_CRYPTO:
        quic_crypto_lost(&space->crypto, host, f->b, f->len);
        break;
    case QUIC_FRAME_RESET_STREAM:
        s = quic_stream_find(conn, f->a);
        if (s && s->send.state == QUIC_SEND_RESET_SENT)
            quic_stream_owe(conn, s, QUIC_OWES_RESET);
        break;
    case QUIC_FRAME_STOP_SENDING:
        s = quic_stream_find(conn, f->a);
        if (s && s->recv.state == QUIC_RECV_OPEN)
            quic_stream_owe(conn, s, QUIC_OWES_STOP);
        break;
    case QUIC_FRAME_MAX_STREAM_DATA:
        s = quic_stream_find(conn, f->a);
        if (s && s->recv.state == QUIC_RECV_OPEN && f->b == s->recv.max)
            quic_stream_owe(conn, s, QUIC_OWES_MAX_DATA);
        break;
    case QUIC_FRAME_STREAM_DATA_BLOCKED:
        s = quic_stream_find(conn, f->a);
        if (s && s->send.state == QUIC_SEND_OPEN && f->b == s->send.max)
            quic_stream_owe(conn, s, QUIC_OWES_BLOCKED);
        break;
    case QUIC_FRAME_MAX_DATA:
        if (f->b == conn->recv_max)
            conn->owes |= QUIC_OWES_CONN_MAX_DATA;
        break;
    case QUIC_FRAME_MAX_STREAMS_BIDI:
        conn->owes |= QUIC_OWES_MAX_STREAMS_BIDI;
        break;
    case QUIC_FRAME_MAX_STREAMS_UNI:
        conn->owes |= QUIC_OWES_MAX_STREAMS_UNI;
        break;
    case QUIC_FRAME_DATA_BLOCKED:
        if (f->b == conn->send_max)
            conn->owes |= QUIC_OWES_CONN_BLOCKED;
        break;
    case QUIC_FRAME_NEW_TOKEN:
        conn->owes |= QUIC_OWES_NEW_TOKEN;
        break;
    case QUIC_FRAME_HANDSHAKE_DONE:
        conn->owes |= QUIC_OWES_HANDSHAKE_DONE;
        break;
    case QUIC_FRAME_NEW_CONNECTION_ID:
        for (uint32_t i = 0; i < QUIC_LOCAL_CIDS; i++) {
            if (conn->local_cids[i].used && conn->local_cids[i].sequence == f->a) {
                conn->local_cids[i].owed = true;
                conn->owes |= QUIC_OWES_NEW_CID;
            }
        }
        break;
    case QUIC_FRAME_RETIRE_CONNECTION_ID:
        if (conn->retire_tail - conn->retire_head < QUIC_RETIRE_QUEUE) {
            conn->retire_queue[conn->retire_tail++ % QUIC_RETIRE_QUEUE] = f->a;
            conn->owes |= QUIC_OWES_RETIRE;
        }
        break;
    case QUIC_FRAME_ACK_FREQUENCY:
        quic_ack_frequency_lost(conn, f->a);
        break;
    default:
        break; /* PING, IMMEDIATE_ACK, PATH_*, DATAGRAM and CONNECTION_CLOSE are not repeated because of loss.
                */
    }
}

void quic_conn_frames_lost(struct quic_conn *conn, enum quic_space_id id, const struct quic_sent_packet *p) {
    for (uint32_t i = 0; i < p->frame_count; i++) {
        struct quic_sent_frame f = *quic_sent_frame_at(&conn->spaces[id]->sent, p->frames + i);
        frame_lost(conn, id, &f);
    }
}

struct ack_totals {
    uint64_t bytes; /* Leaving the flight on the present path. */
    uint64_t ect;
    uint64_t largest, largest_sent_ns;
    uint64_t acked;
    bool eliciting, largest_here, any_new;
    /* Neighbouring stretches of one stream become one: [lo, hi), empty when there is none. */
    uint64_t stream_id, lo, hi;
};

static void stretch_end(struct quic_conn *conn, struct ack_totals *t) {
    struct quic_stream *s = t->hi > t->lo ? quic_stream_find(conn, t->stream_id) : NULL;
    if (s && quic_send_part_acked(&s->send, quic_host_of(conn), t->lo, (uint32_t)(t->hi - t->lo), false)) {
        quic_stream_tell(conn, s, QUIC_TELL_ACKED);
        quic_stream_maybe_close(conn, s);
    }
    t->lo = t->hi = 0;
}

static void logged_frame_acked(struct quic_conn *conn, enum quic_space_id id, const struct quic_sent_frame *f,
                               struct ack_totals *t) {
    if (f->type != QUIC_FRAME_STREAM || f->fin) {
        if (f->type == QUIC_FRAME_STREAM)
            stretch_end(conn, t);
        frame_acked(conn, id, f);
        return;
    }
    if (f->a != t->stream_id || f->b != t->hi || t->hi - t->lo + f->len > UINT32_MAX || t->lo == t->hi) {
        stretch_end(conn, t);
        t->stream_id = f->a;
        t->lo = f->b;
    }
    t->hi = f->b + f->len;
}

/* For a controller that measures delivery rates. */
static void rate_acked(struct quic_conn *conn, uint64_t now, const struct quic_sent *sent, uint64_t pn,
                       bool spurious) {
    struct quic_cc *cc = &conn->recovery.cc;
    const struct quic_sent_packet *p = quic_sent_at(sent, pn);
    quic_rate_on_acked(cc->rate, quic_sent_rate_at(sent, pn), now, p->time_ns, pn, p->bytes);
    if (spurious)
        cc->ops->on_spurious_loss(cc, now, p->time_ns);
}

static void packet_acked(struct quic_conn *conn, uint64_t now, enum quic_space_id id, uint64_t pn,
                         struct ack_totals *t) {
    struct quic_space *space = conn->spaces[id];
    struct quic_sent_packet *p = quic_sent_at(&space->sent, pn);
    bool was_out = p->state == QUIC_SENT_OUT;
    if (!was_out) {
        if (p->state != QUIC_SENT_LOST)
            return;
        quic_count(conn, STOQ_COUNTER_PACKETS_LOST_SPURIOUS, 1);
        conn->stats.packets_lost_spurious++;
    }
    p->state = QUIC_SENT_ACKED;
    t->any_new = true;
    t->acked++;
    bool here = !(p->flags & QUIC_SENT_OLD_PATH);
    if (!t->largest_sent_ns || pn > t->largest) {
        t->largest = pn;
        t->largest_sent_ns = p->time_ns;
        t->largest_here = here;
    }
    if (p->flags & QUIC_SENT_ELICITING) {
        t->eliciting = true;
        if (was_out)
            space->eliciting_in_flight--;
    }
    if (was_out && here && (p->flags & QUIC_SENT_IN_FLIGHT)) {
        conn->recovery.bytes_in_flight -= p->bytes;
        t->bytes += p->bytes;
    }
    if (here && (p->flags & QUIC_SENT_ECT))
        t->ect++;
    if (conn->recovery.cc.rate && here && (p->flags & QUIC_SENT_IN_FLIGHT))
        rate_acked(conn, now, &space->sent, pn, !was_out);
    if (here && (p->flags & QUIC_SENT_MTU_PROBE))
        quic_mtu_on_probe(conn, now, true, p->bytes);
    if (here && id == QUIC_SPACE_APP)
        quic_mtu_on_ack(conn, pn, p->bytes);
    for (uint32_t i = 0; i < p->frame_count; i++) {
        struct quic_sent_frame f = *quic_sent_frame_at(&space->sent, p->frames + i);
        logged_frame_acked(conn, id, &f, t);
    }
}

/* RFC 9002 section 7.8: a window that is not in use says nothing about the path and does not grow. Pacing and
 * trains leave up to a quarter of it, at most a train, unused at any moment. */
static bool window_in_use(const struct quic_recovery *r, uint64_t in_flight) {
    uint64_t slack = quic_max(3 * (uint64_t)r->cc.mss, quic_min(r->cc.window / 4, 65536));
    if (in_flight + slack >= r->cc.window)
        return true;
    return r->cc.window < r->cc.ssthresh && in_flight > r->cc.window / 2;
}

int quic_conn_on_ack(struct quic_conn *conn, uint64_t now, enum quic_space_id id,
                     const struct quic_frame *ack, const char **why) {
    struct quic_space *space = conn->spaces[id];
    struct quic_recovery *r = &conn->recovery;
    quic_count(conn, STOQ_COUNTER_ACKS_RECEIVED, 1);
    if (ack->largest_acked >= space->sent.next) {
        *why = "acknowledgement of a packet that was never sent";
        return QUIC_PROTOCOL_VIOLATION;
    }
    struct ack_totals t = {0};
    uint64_t in_flight = r->bytes_in_flight;
    struct quic_ack_iter it;
    quic_ack_begin(&it, ack);
    do {
        if (it.hi < space->sent.base)
            break; /* Ranges descend: the rest is settled long since. */
        for (uint64_t pn = quic_max(it.lo, space->sent.base); pn <= it.hi; pn++)
            packet_acked(conn, now, id, pn, &t);
    } while (quic_ack_next(&it));
    stretch_end(conn, &t);

    bool advanced = space->largest_acked == QUIC_NO_PN || ack->largest_acked > space->largest_acked;
    if (advanced)
        space->largest_acked = ack->largest_acked;
    if (!t.any_new)
        return 0;
    uint64_t sample = 0;
    if (t.largest == ack->largest_acked && t.eliciting && t.largest_here) {
        /* Section 5.1: a sample needs the largest to be newly acknowledged and something ack-eliciting with
         * it. */
        uint64_t exponent = id == QUIC_SPACE_APP ? conn->peer_params.ack_delay_exponent : 0;
        uint64_t delay_us =
            id == QUIC_SPACE_APP && ack->ack_delay < (UINT64_C(1) << 40) ? ack->ack_delay << exponent : 0;
        sample = now > t.largest_sent_ns ? now - t.largest_sent_ns : 1;
        quic_recovery_rtt(conn, now, sample, quic_min(delay_us, UINT64_C(1) << 40) * 1000);
    }
    bool app_limited = !window_in_use(r, in_flight);
    if (advanced)
        quic_recovery_ecn(conn, now, space, ack, t.ect, t.largest_sent_ns);
    quic_recovery_detect_loss(conn, now, id); /* Appendix A.7: before the window may grow. */
    if (t.bytes || (r->cc.rate && r->cc.rate->acked.any)) {
        struct quic_cc_ack c = {
            .now = now,
            .bytes = t.bytes,
            .bytes_in_flight = in_flight,
            .largest_acked_sent_ns = t.largest_sent_ns,
            .largest_acked_pn = t.largest,
            .next_pn = space->sent.next,
            .rtt_latest_ns = sample,
            .rtt_smoothed_ns = r->rtt_smoothed_ns,
            .rtt_min_ns = r->rtt_min_ns,
            .app_limited = app_limited,
            .in_flight = r->bytes_in_flight,
        };
        r->cc.ops->on_ack(&r->cc, &c);
    }
    /* Section 6.2.1: not by a client that cannot know whether the server has validated its address. */
    if (conn->server || conn->confirmed || id != QUIC_SPACE_INITIAL)
        r->pto_count = 0;
    if (id == QUIC_SPACE_APP)
        quic_ack_frequency_update(conn);
    uint64_t keep = 3 * quic_recovery_pto(conn, id);
    quic_sent_trim(&space->sent, now > keep ? now - keep : 0);
    return 0;
}
