/* RTT, loss detection, probe timeouts, congestion and pacing: RFC 9002 with the names of its Appendices A and
 * B. */
#include "conn.h"

#define PERSISTENT_CONGESTION_THRESHOLD 3u /* RFC 9002 section 7.6.1. */
#define PACE_BURST_PACKETS              10u /* RFC 9002 section 7.7: a burst no larger than the initial window. */
#define PACE_TRAIN_BYTES                65536u /* At high rates a train is the unit: what one send can carry. */
#define PACE_TRAIN_NS                   QUIC_MS /* Bucket: a millisecond's worth, so that one timer tick fills it. */
#define ECN_TESTING_PACKETS             10u /* RFC 9000 Appendix A.4: packets marked before the path is judged. */
#define ECN_TESTING_PTOS                3u /* Likewise: probe timeouts. */

void quic_recovery_init(struct quic_conn *conn) {
    struct quic_recovery *r = &conn->recovery;
    const struct quic_config *config = &conn->ep->config;
    r->rtt_smoothed_ns = config->initial_rtt_ns;
    r->rtt_var_ns = config->initial_rtt_ns / 2;
    r->ecn = config->no_ecn ? QUIC_ECN_FAILED : QUIC_ECN_TESTING;
    quic_cc_init(&r->cc, config->cc, conn->mtu.current, config->initial_window_packets, r->cc.bbr);
    r->pace_tokens = PACE_BURST_PACKETS * (uint64_t)conn->mtu.current;
    r->pace_next_ns = QUIC_NEVER;
}

void quic_recovery_release(struct quic_conn *conn) {
    const struct quic_host *host = quic_host_of(conn);
    if (conn->recovery.cc.bbr)
        host->free(host->ctx, conn->recovery.cc.bbr, quic_cc_state_bytes(conn->ep->config.cc));
    conn->recovery.cc.bbr = NULL;
    conn->recovery.cc.rate = NULL;
}

void quic_recovery_rtt(struct quic_conn *conn, uint64_t now, uint64_t sample_ns, uint64_t ack_delay_ns) {
    struct quic_recovery *r = &conn->recovery;
    if (sample_ns == 0)
        sample_ns = 1;
    r->rtt_latest_ns = sample_ns;
    if (!r->first_sample_ns) {
        r->first_sample_ns = now;
        r->rtt_min_ns = r->rtt_smoothed_ns = sample_ns;
        r->rtt_var_ns = sample_ns / 2;
        return;
    }
    r->rtt_min_ns = quic_min(r->rtt_min_ns, sample_ns);
    if (conn->confirmed)
        ack_delay_ns = quic_min(ack_delay_ns, conn->peer_ack_delay_ns);
    uint64_t adjusted = sample_ns >= r->rtt_min_ns + ack_delay_ns ? sample_ns - ack_delay_ns : sample_ns;
    uint64_t distance =
        r->rtt_smoothed_ns > adjusted ? r->rtt_smoothed_ns - adjusted : adjusted - r->rtt_smoothed_ns;
    r->rtt_var_ns = (3 * r->rtt_var_ns + distance) / 4;
    r->rtt_smoothed_ns = (7 * r->rtt_smoothed_ns + adjusted) / 8;
}

uint64_t quic_recovery_pto(const struct quic_conn *conn, enum quic_space_id id) {
    const struct quic_recovery *r = &conn->recovery;
    uint64_t pto = r->rtt_smoothed_ns + quic_max(4 * r->rtt_var_ns, QUIC_GRANULARITY_NS);
    if (id == QUIC_SPACE_APP)
        pto += conn->peer_ack_delay_ns;
    return pto;
}

static void leave_flight(struct quic_conn *conn, struct quic_space *space, const struct quic_sent_packet *p) {
    if ((p->flags & QUIC_SENT_IN_FLIGHT) && !(p->flags & QUIC_SENT_OLD_PATH))
        conn->recovery.bytes_in_flight -= p->bytes;
    if (p->flags & QUIC_SENT_ELICITING)
        space->eliciting_in_flight--;
}

/* The delivery-rate estimator and the controller that has one hear of a lost packet. */
static void tell_lost(struct quic_conn *conn, uint64_t now, const struct quic_sent *sent, uint64_t pn) {
    struct quic_cc *cc = &conn->recovery.cc;
    const struct quic_sent_packet *p = quic_sent_at(sent, pn);
    cc->rate->lost += p->bytes;
    struct quic_cc_lost lost = {now, pn, p->time_ns, quic_sent_rate_at(sent, pn), p->bytes};
    cc->ops->on_lost(cc, &lost);
}

/* RFC 9002 section 6.1 and Appendix A.10, with persistent congestion (section 7.6) found on the same walk. */
void quic_recovery_detect_loss(struct quic_conn *conn, uint64_t now, enum quic_space_id id) {
    struct quic_space *space = conn->spaces[id];
    struct quic_sent *sent = &space->sent;
    struct quic_recovery *r = &conn->recovery;
    space->loss_time_ns = QUIC_NEVER;
    if (space->largest_acked == QUIC_NO_PN)
        return;
    uint64_t delay = quic_max(r->rtt_latest_ns, r->rtt_smoothed_ns);
    delay = quic_max(delay + delay / 8, QUIC_GRANULARITY_NS);
    uint64_t lost_before = now > delay ? now - delay : 0;
    uint64_t newest_lost_ns = 0, run_start_ns = 0, run_longest_ns = 0;
    uint64_t lost_packets = 0;
    uint32_t ect_lost = 0;
    bool congestion = false;

    for (uint64_t pn = sent->base; pn < sent->next && pn <= space->largest_acked; pn++) {
        struct quic_sent_packet *p = quic_sent_at(sent, pn);
        if (p->state == QUIC_SENT_ACKED) {
            run_start_ns = 0;
            continue;
        }
        if (p->state != QUIC_SENT_OUT)
            continue;
        if (p->time_ns > lost_before && space->largest_acked - pn < QUIC_PACKET_THRESHOLD) {
            if (p->flags & QUIC_SENT_IN_FLIGHT)
                space->loss_time_ns = quic_min(space->loss_time_ns, p->time_ns + delay);
            continue;
        }
        p->state = QUIC_SENT_LOST;
        leave_flight(conn, space, p);
        if (!(p->flags & QUIC_SENT_IN_FLIGHT))
            continue;
        lost_packets++;
        quic_conn_frames_lost(conn, id, p);
        if (p->flags & QUIC_SENT_OLD_PATH)
            continue;
        if (p->flags & QUIC_SENT_MTU_PROBE) {
            quic_mtu_on_probe(conn, now, false, p->bytes);
            continue; /* RFC 8899 section 3: no sign of congestion. */
        }
        congestion = true;
        if (r->cc.rate)
            tell_lost(conn, now, sent, pn);
        newest_lost_ns = quic_max(newest_lost_ns, p->time_ns);
        ect_lost += (p->flags & QUIC_SENT_ECT) != 0;
        if (id == QUIC_SPACE_APP)
            quic_mtu_on_loss(conn, pn, p->bytes);
        if ((p->flags & QUIC_SENT_ELICITING) && r->first_sample_ns && p->time_ns > r->first_sample_ns) {
            if (!run_start_ns)
                run_start_ns = p->time_ns;
            run_longest_ns = quic_max(run_longest_ns, p->time_ns - run_start_ns);
        }
    }
    if (!lost_packets)
        return;
    quic_count(conn, STOQ_COUNTER_PACKETS_LOST, lost_packets);
    conn->stats.packets_lost += lost_packets;
    r->ecn_lost += ect_lost;
    if (r->ecn == QUIC_ECN_TESTING && r->ecn_acked == 0 && r->ecn_lost >= ECN_TESTING_PACKETS)
        r->ecn = QUIC_ECN_FAILED; /* Everything marked was lost: the path may drop ECT (section 13.4.2.1). */
    if (congestion && r->cc.ops->on_congestion(&r->cc, now, newest_lost_ns, false))
        quic_count(conn, STOQ_COUNTER_CONGESTION_EVENTS, 1);
    uint64_t period =
        (r->rtt_smoothed_ns + quic_max(4 * r->rtt_var_ns, QUIC_GRANULARITY_NS) + conn->peer_ack_delay_ns) *
        PERSISTENT_CONGESTION_THRESHOLD;
    if (run_longest_ns > period) {
        r->cc.ops->on_persistent_congestion(&r->cc, now);
        quic_count(conn, STOQ_COUNTER_PERSISTENT_CONGESTION, 1);
        r->first_sample_ns = 0; /* Section 5.2: min_rtt is re-established. */
    }
}

/* Appendix A.8, GetPtoTimeAndSpace. */
static uint64_t pto_deadline(const struct quic_conn *conn, enum quic_space_id *which) {
    const struct quic_recovery *r = &conn->recovery;
    uint32_t shift = r->pto_count < 20 ? r->pto_count : 20; /* 2^20 PTOs is past any idle timeout. */
    uint64_t best = QUIC_NEVER;
    bool any = false;
    for (int i = 0; i < QUIC_SPACE_COUNT; i++) {
        const struct quic_space *space = conn->spaces[i];
        if (space->discarded || !space->eliciting_in_flight)
            continue;
        if (i == QUIC_SPACE_APP && !conn->handshake_done)
            continue; /* Section 6.2.1: not before the handshake is complete. */
        any = true;
        uint64_t t = space->last_eliciting_ns + (quic_recovery_pto(conn, i) << shift);
        if (t < best) {
            best = t;
            *which = i;
        }
    }
    /* Section 6.2.2.1: a client whose address may not be validated yet must not let the server stall at its
     * limit. */
    if (!any && !conn->server && !conn->confirmed && !conn->spaces[QUIC_SPACE_HANDSHAKE]->discarded) {
        const struct quic_space *handshake = conn->spaces[QUIC_SPACE_HANDSHAKE];
        if (handshake->largest_acked == QUIC_NO_PN) {
            *which = quic_can_send(&handshake->keys) ? QUIC_SPACE_HANDSHAKE : QUIC_SPACE_INITIAL;
            uint64_t from = quic_max(conn->spaces[*which]->last_eliciting_ns, conn->last_received_ns);
            return from + (quic_recovery_pto(conn, *which) << shift);
        }
    }
    return best;
}

uint64_t quic_recovery_deadline(const struct quic_conn *conn, enum quic_space_id *which, bool *is_loss) {
    uint64_t earliest = QUIC_NEVER;
    *is_loss = false;
    for (int i = 0; i < QUIC_SPACE_COUNT; i++) {
        if (conn->spaces[i]->loss_time_ns < earliest) {
            earliest = conn->spaces[i]->loss_time_ns;
            *which = i;
            *is_loss = true;
        }
    }
    if (*is_loss)
        return earliest;
    /* A server at its anti-amplification limit cannot send a probe (section 6.2.2.1). */
    if (quic_path_blocked(conn))
        return QUIC_NEVER;
    return pto_deadline(conn, which);
}

/* What a probe should carry: the oldest unacknowledged data of the space, while it stays in flight. */
static void queue_probe_data(struct quic_conn *conn, enum quic_space_id id) {
    struct quic_space *space = conn->spaces[id];
    unsigned packets =
        id == QUIC_SPACE_APP ? 2 : QUIC_SENT_MIN; /* Of a handshake flight everything, of data two packets. */
    for (uint64_t pn = space->sent.base; pn < space->sent.next && packets; pn++) {
        const struct quic_sent_packet *p = quic_sent_at(&space->sent, pn);
        if (p->state != QUIC_SENT_OUT || !(p->flags & QUIC_SENT_ELICITING) ||
            (p->flags & QUIC_SENT_MTU_PROBE))
            continue;
        quic_conn_frames_lost(conn, id, p);
        packets--;
    }
}

void quic_recovery_on_timer(struct quic_conn *conn, uint64_t now) {
    enum quic_space_id id = QUIC_SPACE_INITIAL;
    bool is_loss;
    if (quic_recovery_deadline(conn, &id, &is_loss) > now)
        return;
    if (is_loss) {
        quic_recovery_detect_loss(conn, now, id);
        return;
    }
    struct quic_space *space = conn->spaces[id];
    conn->recovery.pto_count++;
    if (conn->recovery.ecn == QUIC_ECN_TESTING && conn->recovery.pto_count >= ECN_TESTING_PTOS)
        conn->recovery.ecn = QUIC_ECN_FAILED; /* Nothing marked ever came through: go on without. */
    conn->stats.pto_count++;
    quic_count(conn, STOQ_COUNTER_PTO, 1);
    space->probes = 2; /* Section 6.2.4: one or two; two survive one more loss. */
    queue_probe_data(conn, id);
    /* Section 6.2.4: with data in flight at other levels, probe there too: theirs may be the keys the peer
     * still has. */
    for (int other = 0; other < QUIC_SPACE_COUNT; other++) {
        struct quic_space *o = conn->spaces[other];
        bool useful = other == QUIC_SPACE_APP ? conn->handshake_done && quic_can_send(&o->keys)
                                              : o->eliciting_in_flight > 0 || quic_crypto_pending(&o->crypto);
        if (other == (int)id || !useful)
            continue;
        o->probes = 1;
        queue_probe_data(conn, other);
    }
}

static void eliciting_sent(struct quic_conn *conn, uint64_t now, enum quic_space_id id, uint32_t packets) {
    conn->spaces[id]->last_eliciting_ns = now;
    conn->spaces[id]->eliciting_in_flight += packets;
    if (conn->eliciting_since_receive)
        return;
    /* RFC 9000 section 10.1: the idle timer restarts with the first such packet after one was received. */
    conn->eliciting_since_receive = true;
    if (conn->idle_timeout_ns)
        conn->idle_deadline_ns = now + quic_max(conn->idle_timeout_ns, 3 * quic_recovery_pto(conn, id));
}

/* `count` packets from `pn` on leave; bytes_in_flight is still without them. */
static void rate_sent(struct quic_conn *conn, uint64_t now, enum quic_space_id id, uint64_t pn,
                      uint32_t count) {
    struct quic_cc *cc = &conn->recovery.cc;
    const struct quic_sent *sent = &conn->spaces[id]->sent;
    uint64_t in_flight = conn->recovery.bytes_in_flight;
    for (; count > 0; count--, pn++) {
        uint16_t bytes = quic_sent_at(sent, pn)->bytes;
        cc->ops->on_sent(cc, now, in_flight, bytes);
        quic_rate_on_sent(cc->rate, quic_sent_rate_at(sent, pn), now, in_flight, bytes);
        in_flight += bytes;
    }
}

void quic_recovery_drained(struct quic_conn *conn, uint64_t now) {
    const struct quic_recovery *r = &conn->recovery;
    if (conn->unsent == 0 && r->bytes_in_flight + r->cc.mss <= r->cc.window &&
        !quic_write_pending(conn, now, QUIC_SPACE_APP, false))
        quic_rate_mark_app_limited(r->cc.rate, r->bytes_in_flight);
}

void quic_recovery_sent(struct quic_conn *conn, uint64_t now, enum quic_space_id id,
                        struct quic_sent_packet *p) {
    struct quic_space *space = conn->spaces[id];
    struct quic_recovery *r = &conn->recovery;
    if (p->flags & QUIC_SENT_ELICITING) {
        eliciting_sent(conn, now, id, 1);
        /* Section 6.2.4: a probe should carry data. Of a handshake that is what is unacknowledged, once more:
         * a bare PING does nothing for a peer that has lost everything so far. */
        if (space->probes && --space->probes && id != QUIC_SPACE_APP && !quic_crypto_pending(&space->crypto))
            queue_probe_data(conn, id);
    }
    if (p->flags & QUIC_SENT_IN_FLIGHT) {
        if (r->cc.rate)
            rate_sent(conn, now, id, space->sent.next - 1, 1);
        r->bytes_in_flight += p->bytes;
        r->pace_tokens -= quic_min(r->pace_tokens, p->bytes);
    }
    space->ecn_sent += (p->flags & QUIC_SENT_ECT) != 0;
}

void quic_recovery_sent_many(struct quic_conn *conn, uint64_t now, uint32_t packets, uint64_t bytes,
                             bool ect) {
    struct quic_recovery *r = &conn->recovery;
    eliciting_sent(conn, now, QUIC_SPACE_APP, packets);
    if (r->cc.rate)
        rate_sent(conn, now, QUIC_SPACE_APP, quic_app(conn)->sent.next - packets, packets);
    r->bytes_in_flight += bytes;
    r->pace_tokens -= quic_min(r->pace_tokens, bytes);
    if (ect)
        quic_app(conn)->ecn_sent += packets;
}

void quic_recovery_remove_space(struct quic_conn *conn, enum quic_space_id id) {
    struct quic_space *space = conn->spaces[id];
    for (uint64_t pn = space->sent.base; pn < space->sent.next; pn++) {
        struct quic_sent_packet *p = quic_sent_at(&space->sent, pn);
        if (p->state == QUIC_SENT_OUT)
            leave_flight(conn, space, p);
        p->state = QUIC_SENT_EMPTY;
    }
    conn->recovery.pto_count = 0; /* Section 6.2.2. */
}

void quic_recovery_resend_space(struct quic_conn *conn, enum quic_space_id id) {
    struct quic_space *space = conn->spaces[id];
    for (uint64_t pn = space->sent.base; pn < space->sent.next; pn++) {
        struct quic_sent_packet *p = quic_sent_at(&space->sent, pn);
        if (p->state != QUIC_SENT_OUT)
            continue;
        p->state = QUIC_SENT_LOST;
        leave_flight(conn, space, p);
        quic_conn_frames_lost(conn, id, p);
    }
    space->loss_time_ns = QUIC_NEVER;
    quic_schedule_send(conn);
}

void quic_recovery_new_path(struct quic_conn *conn, bool same_ip) {
    struct quic_recovery *r = &conn->recovery;
    if (same_ip) /* RFC 9000 section 9.4: only the port changed, so it is the same path to all likelihood. */
        return;
    struct quic_space *space = quic_app(conn);
    for (uint64_t pn = space->sent.base; pn < space->sent.next; pn++) {
        struct quic_sent_packet *p = quic_sent_at(&space->sent, pn);
        if (p->state == QUIC_SENT_OUT && (p->flags & QUIC_SENT_IN_FLIGHT) && !(p->flags & QUIC_SENT_OLD_PATH))
            r->bytes_in_flight -= p->bytes;
        p->flags |= QUIC_SENT_OLD_PATH;
    }
    *r = (struct quic_recovery){.bytes_in_flight = r->bytes_in_flight, .cc.bbr = r->cc.bbr};
    quic_mtu_reset(conn);
    quic_recovery_init(conn);
}

/* Bytes a second that pacing lets out: the controller's own rate, or somewhat more than the window a round
 * trip, twice that in slow start. */
static uint64_t pacing_rate(const struct quic_recovery *r) {
    if (r->cc.pacing_rate)
        return r->cc.pacing_rate;
    uint64_t rtt = r->rtt_smoothed_ns ? r->rtt_smoothed_ns : 1;
    unsigned __int128 rate = (unsigned __int128)r->cc.window * QUIC_S / rtt;
    rate = r->cc.window < r->cc.ssthresh ? rate * 2 : rate * 5 / 4;
    return rate > UINT64_MAX / 8 ? UINT64_MAX / 8 : (uint64_t)rate;
}

uint64_t quic_recovery_allowance(struct quic_conn *conn, uint64_t now) {
    struct quic_recovery *r = &conn->recovery;
    uint64_t mtu = conn->mtu.current;
    r->pace_next_ns = QUIC_NEVER;
    if (r->bytes_in_flight >= r->cc.window)
        return 0;
    uint64_t window = r->cc.window - r->bytes_in_flight;
    if (conn->ep->config.no_pacing || !r->first_sample_ns)
        return window;
    uint64_t rate = pacing_rate(r);
    uint64_t bucket = (uint64_t)((unsigned __int128)rate * PACE_TRAIN_NS / QUIC_S);
    uint64_t burst = r->cc.send_quantum ? quic_max(r->cc.send_quantum, 2 * mtu) : PACE_BURST_PACKETS * mtu;
    bucket = quic_max(quic_min(bucket, 4 * PACE_TRAIN_BYTES), burst);
    uint64_t elapsed = now - r->pace_updated_ns;
    unsigned __int128 earned = (unsigned __int128)rate * elapsed / QUIC_S;
    r->pace_tokens = r->pace_tokens + earned > bucket ? bucket : r->pace_tokens + (uint64_t)earned;
    /* Time that has not made a whole byte yet still counts: a worker that polls asks every microsecond. */
    uint64_t rest = rate * elapsed - (uint64_t)earned * QUIC_S;
    r->pace_updated_ns = rate ? now - rest / rate : now;
    /* Wait for a worthwhile train: a quarter of the bucket, or one packet at low rates. */
    uint64_t unit = quic_max(mtu, quic_min(bucket / 4, PACE_TRAIN_BYTES));
    if (r->pace_tokens < unit) {
        uint64_t missing = unit - r->pace_tokens;
        r->pace_next_ns = now + (uint64_t)((unsigned __int128)missing * QUIC_S / (rate ? rate : 1)) + 1;
        return 0;
    }
    return quic_min(window, r->pace_tokens);
}

/* RFC 9000 section 13.4.2.1: are the peer's counts possible? Then, has CE grown? Counts are of all paths, the
 * judgement is of the present one: only what was sent on it is in `newly_acked_ect`. */
void quic_recovery_ecn(struct quic_conn *conn, uint64_t now, struct quic_space *space,
                       const struct quic_frame *ack, uint64_t newly_acked_ect, uint64_t largest_sent_ns) {
    struct quic_recovery *r = &conn->recovery;
    bool counted = ack->type == QUIC_FRAME_ACK_ECN;
    uint64_t ect0 = counted ? ack->ect0 - space->ecn_peer_ect0 : 0;
    uint64_t ce = counted ? ack->ce - space->ecn_peer_ce : 0;
    bool back = counted && (ack->ect0 < space->ecn_peer_ect0 || ack->ce < space->ecn_peer_ce);
    if (counted && !back) { /* Also when this path has failed: the next one is judged by what comes on top. */
        space->ecn_peer_ect0 = ack->ect0;
        space->ecn_peer_ce = ack->ce;
    }
    if (r->ecn == QUIC_ECN_FAILED)
        return;
    /* Not reported, erased on the way, or marks that were never sent: ECT(1), or more than there were. */
    if (ect0 + ce < newly_acked_ect || back ||
        (counted && (ack->ect1 || ack->ect0 > space->ecn_sent || ack->ce > space->ecn_sent - ack->ect0))) {
        r->ecn = QUIC_ECN_FAILED;
        quic_count(conn, STOQ_COUNTER_ECN_FAILED, 1);
        return;
    }
    if (!newly_acked_ect)
        return;
    r->ecn_acked += (uint32_t)newly_acked_ect;
    r->ecn = QUIC_ECN_CAPABLE;
    if (ce && r->cc.ops->on_congestion(&r->cc, now, largest_sent_ns, true))
        quic_count(conn, STOQ_COUNTER_CONGESTION_EVENTS, 1);
}
