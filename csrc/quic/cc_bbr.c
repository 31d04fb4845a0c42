/* BBR: its events, STARTUP, DRAIN and PROBE_RTT, and what it sets: window, pacing rate, send quantum. See
 * bbr.h; draft-ietf-ccwg-bbr sections 5.2 to 5.4 and 5.6.
 *
 * Where QUIC and the draft's TCP words differ: a recovery episode is RFC 9002's recovery period (from the
 * first loss until something sent after that is acknowledged); RTO is persistent congestion (RFC 9002
 * section 7.6), which takes the window to its minimum. A CE mark counts as loss (the draft names no response
 * of its own): it ends a probe and Startup, and outside of those makes the round one with loss.
 */
#include "bbr.h"

#include <string.h>

#define NS_PER_S      UINT64_C(1000000000)
#define QUANTUM_NS    UINT64_C(1000000) /* Section 5.6.3: a millisecond's worth, */
#define QUANTUM_BYTES 65536u            /* a train at most. */

void quic_bbr_set_state(struct quic_bbr *b, enum quic_bbr_state state) {
    static const struct {
        uint16_t pacing, cwnd;
    } gains[] = {
        [QUIC_BBR_STARTUP] = {QUIC_BBR_STARTUP_GAIN, QUIC_BBR_CWND_GAIN},
        [QUIC_BBR_DRAIN] = {QUIC_BBR_DRAIN_GAIN, QUIC_BBR_CWND_GAIN},
        [QUIC_BBR_DOWN] = {QUIC_BBR_DOWN_GAIN, QUIC_BBR_CWND_GAIN},
        [QUIC_BBR_CRUISE] = {100, QUIC_BBR_CWND_GAIN},
        [QUIC_BBR_REFILL] = {100, QUIC_BBR_CWND_GAIN},
        [QUIC_BBR_UP] = {QUIC_BBR_UP_GAIN, QUIC_BBR_UP_CWND_GAIN},
        [QUIC_BBR_PROBE_RTT] = {100, QUIC_BBR_PROBE_RTT_CWND_GAIN},
    };
    b->state = state;
    b->pacing_gain = gains[state].pacing;
    b->cwnd_gain = gains[state].cwnd;
}

void quic_bbr_start_round(struct quic_bbr *b) {
    b->next_round_delivered = b->rate.delivered;
}

/* ---- control parameters ---- */

void quic_bbr_set_pacing_rate(struct quic_cc *cc, uint32_t gain) {
    const struct quic_bbr *b = cc->bbr;
    uint64_t rate = quic_bbr_scale(b->bw, (uint64_t)gain * (100 - QUIC_BBR_PACING_MARGIN_PERCENT), 10000);
    if (rate != 0 && (b->full_bw_reached || rate > cc->pacing_rate))
        cc->pacing_rate = rate;
}

/* Before anything was delivered: as if the initial window were what the path carries in a round trip. */
static void init_pacing_rate(struct quic_cc *cc, uint64_t rtt_ns) {
    uint64_t rate = quic_bbr_scale(cc->bbr->initial_cwnd, NS_PER_S, rtt_ns);
    cc->pacing_rate = quic_bbr_max(quic_bbr_scale(rate, QUIC_BBR_STARTUP_GAIN, 100), 1);
}

static void set_send_quantum(struct quic_cc *cc) {
    uint64_t quantum = quic_bbr_scale(cc->pacing_rate, QUANTUM_NS, NS_PER_S);
    quantum = quic_bbr_max(quic_bbr_min(quantum, QUANTUM_BYTES), 2 * (uint64_t)cc->mss);
    cc->send_quantum = (uint32_t)quantum;
}

static uint64_t probe_rtt_cwnd(const struct quic_cc *cc) {
    return quic_bbr_max(quic_bbr_bdp(cc->bbr, cc->bbr->bw, QUIC_BBR_PROBE_RTT_CWND_GAIN),
                        quic_bbr_min_pipe(cc));
}

static void bound_cwnd_for_model(struct quic_cc *cc) {
    const struct quic_bbr *b = cc->bbr;
    uint64_t cap = QUIC_BBR_INFINITY;
    if (b->state == QUIC_BBR_CRUISE || b->state == QUIC_BBR_PROBE_RTT)
        cap = quic_bbr_inflight_with_headroom(cc);
    else if (quic_bbr_in_probe_bw(b))
        cap = b->inflight_longterm;
    cap = quic_bbr_max(quic_bbr_min(cap, b->inflight_shortterm), quic_bbr_min_pipe(cc));
    cc->window = quic_bbr_min(cc->window, cap);
}

static void set_cwnd(struct quic_cc *cc) {
    struct quic_bbr *b = cc->bbr;
    b->max_inflight = quic_bbr_quantization(cc, quic_bbr_bdp(b, b->bw, b->cwnd_gain) + b->extra_acked);
    if (b->full_bw_reached)
        cc->window = quic_bbr_min(cc->window + b->rs.newly_acked, b->max_inflight);
    else if (cc->window < b->max_inflight || b->rate.delivered < b->initial_cwnd)
        cc->window += b->rs.newly_acked;
    cc->window = quic_bbr_max(cc->window, quic_bbr_min_pipe(cc));
    if (b->state == QUIC_BBR_PROBE_RTT)
        cc->window = quic_bbr_min(cc->window, probe_rtt_cwnd(cc));
    bound_cwnd_for_model(cc);
}

static void save_cwnd(struct quic_cc *cc) {
    struct quic_bbr *b = cc->bbr;
    bool modulated = b->in_recovery || b->state == QUIC_BBR_PROBE_RTT;
    b->prior_cwnd = modulated ? quic_bbr_max(b->prior_cwnd, cc->window) : cc->window;
}

static void restore_cwnd(struct quic_cc *cc) {
    cc->window = quic_bbr_max(cc->window, cc->bbr->prior_cwnd);
}

/* ---- STARTUP and DRAIN ---- */

/* CheckStartupHighLoss: a whole round of recovery with too much loss, in several places; or a mark. */
static void check_startup_high_loss(struct quic_cc *cc) {
    struct quic_bbr *b = cc->bbr;
    if (b->full_bw_reached || !b->loss_round_start)
        return;
    bool lossy = b->in_recovery && b->lost_ranges >= QUIC_BBR_STARTUP_LOST_RANGES &&
                 quic_bbr_too_high(b->rs.lost, b->rs.in_flight);
    if (!lossy && !b->ce_in_round)
        return;
    b->undo_state = QUIC_BBR_STARTUP;
    b->full_bw_reached = true;
    b->inflight_longterm = quic_bbr_max(quic_bbr_bdp(b, b->max_bw, 100), b->inflight_latest);
}

static void check_startup_done(struct quic_cc *cc) {
    struct quic_bbr *b = cc->bbr;
    check_startup_high_loss(cc);
    if (b->state != QUIC_BBR_STARTUP || !b->full_bw_reached)
        return;
    quic_bbr_set_state(b, QUIC_BBR_DRAIN);
    b->drain_start_round = b->round_count;
}

static void check_drain_done(struct quic_cc *cc, uint64_t now) {
    struct quic_bbr *b = cc->bbr;
    if (b->state == QUIC_BBR_DRAIN &&
        (b->in_flight <= quic_bbr_inflight(cc, b->bw, 100) || b->round_count > b->drain_start_round + 3))
        quic_bbr_start_down(cc, now);
}

/* ---- PROBE_RTT ---- */

static void check_probe_rtt_done(struct quic_cc *cc, uint64_t now) {
    struct quic_bbr *b = cc->bbr;
    if (b->probe_rtt_done_ns == 0 || now <= b->probe_rtt_done_ns)
        return;
    b->probe_rtt_min_stamp_ns = now; /* The next is due an interval from now. */
    restore_cwnd(cc);
    quic_bbr_reset_short_term(b);
    if (b->full_bw_reached) {
        quic_bbr_start_down(cc, now);
        quic_bbr_set_state(b, QUIC_BBR_CRUISE);
    } else {
        quic_bbr_set_state(b, QUIC_BBR_STARTUP);
    }
}

static void check_probe_rtt(struct quic_cc *cc, uint64_t now) {
    struct quic_bbr *b = cc->bbr;
    if (b->state != QUIC_BBR_PROBE_RTT && b->probe_rtt_expired && !b->idle_restart) {
        save_cwnd(cc);
        quic_bbr_set_state(b, QUIC_BBR_PROBE_RTT);
        b->probe_rtt_done_ns = 0;
        b->ack_phase = QUIC_BBR_ACKS_STOPPING;
        quic_bbr_start_round(b);
    }
    if (b->state == QUIC_BBR_PROBE_RTT) {
        quic_rate_mark_app_limited(&b->rate, b->in_flight); /* The low rate is of our own making. */
        if (b->probe_rtt_done_ns == 0 && b->in_flight <= probe_rtt_cwnd(cc)) {
            b->probe_rtt_done_ns = now + QUIC_BBR_PROBE_RTT_NS;
            b->probe_rtt_round_done = false;
            quic_bbr_start_round(b);
        } else if (b->probe_rtt_done_ns != 0) {
            b->probe_rtt_round_done |= b->round_start;
            if (b->probe_rtt_round_done)
                check_probe_rtt_done(cc, now);
        }
    }
    if (b->rs.delivered > 0)
        b->idle_restart = false;
}

/* ---- events ---- */

void quic_bbr_init(struct quic_cc *cc, struct quic_bbr *b) {
    memset(b, 0, sizeof *b);
    cc->bbr = b;
    cc->rate = &b->rate;
    b->min_rtt_ns = b->probe_rtt_min_ns = QUIC_BBR_INFINITY;
    b->inflight_longterm = b->probe_up_acked_per_inc = QUIC_BBR_INFINITY;
    b->undo_state = QUIC_BBR_NONE;
    b->initial_cwnd = cc->window;
    quic_bbr_reset_short_term(b);
    quic_bbr_set_state(b, QUIC_BBR_STARTUP);
    init_pacing_rate(cc, QUANTUM_NS); /* Section 5.6.2: a millisecond, until a round trip is known. */
    set_send_quantum(cc);
}

static void on_ack(struct quic_cc *cc, const struct quic_cc_ack *ack) {
    struct quic_bbr *b = cc->bbr;
    b->rs = quic_rate_take(&b->rate, ack->rtt_min_ns);
    b->in_flight = ack->in_flight;
    b->prior_in_flight = ack->bytes_in_flight;
    if (!b->rtt_seen && ack->rtt_latest_ns) {
        b->rtt_seen = true;
        init_pacing_rate(cc, ack->rtt_smoothed_ns ? ack->rtt_smoothed_ns : ack->rtt_latest_ns);
    }
    quic_bbr_update_signals(cc, ack->now);
    quic_bbr_check_full_bw(b);
    check_startup_done(cc);
    check_drain_done(cc, ack->now);
    quic_bbr_update_cycle(cc, ack->now);
    quic_bbr_update_min_rtt(b, ack->now, ack->rtt_latest_ns);
    check_probe_rtt(cc, ack->now);
    quic_bbr_advance_signals(b);
    b->bw = quic_bbr_min(b->max_bw, b->bw_shortterm); /* BoundBWForModel */
    if (b->in_recovery && !quic_cc_in_recovery(cc, ack->largest_acked_sent_ns)) {
        b->in_recovery = false;
        restore_cwnd(cc);
    }
    quic_bbr_set_pacing_rate(cc, b->pacing_gain);
    set_send_quantum(cc);
    set_cwnd(cc);
}

static void on_sent(struct quic_cc *cc, uint64_t now, uint64_t in_flight, uint32_t bytes) {
    struct quic_bbr *b = cc->bbr;
    if (in_flight + bytes + cc->mss > cc->window)
        b->cwnd_limited = true; /* No further packet fits. */
    if (in_flight != 0 || b->rate.app_limited == 0)
        return;
    /* HandleRestartFromIdle */
    b->idle_restart = true;
    b->extra_acked_start_ns = now;
    if (quic_bbr_in_probe_bw(b))
        quic_bbr_set_pacing_rate(cc, 100);
    else if (b->state == QUIC_BBR_PROBE_RTT)
        check_probe_rtt_done(cc, now);
}

/* A recovery begins: what is to be restored should it turn out that nothing was lost (SaveStateUponLoss).
 * Once a recovery, not once a round with loss: a probe that ends begins a new round in the middle of its
 * losses. */
static void begin_episode(struct quic_cc *cc) {
    struct quic_bbr *b = cc->bbr;
    b->episode_begun = true;
    b->episode_after_ns = cc->recovery_start_ns;
    b->episode_lost = b->episode_spurious = 0;
    save_cwnd(cc);
    b->undo_state = QUIC_BBR_NONE;
    b->undo_bw_shortterm = b->bw_shortterm;
    b->undo_inflight_shortterm = b->inflight_shortterm;
    b->undo_inflight_longterm = b->inflight_longterm;
}

static void note_loss(struct quic_cc *cc, uint64_t sent_ns) {
    struct quic_bbr *b = cc->bbr;
    if (!quic_cc_in_recovery(cc, sent_ns) && !b->episode_begun)
        begin_episode(cc);
    if (!b->loss_in_round)
        b->loss_round_delivered = b->rate.delivered;
    b->loss_in_round = true;
}

/* InflightAtLoss: what was in flight when the losses passed LossThresh, somewhere within this packet. */
static uint64_t inflight_at_loss(uint64_t in_flight, uint64_t lost, uint32_t bytes) {
    uint64_t inflight_prev = in_flight > bytes ? in_flight - bytes : 0;
    uint64_t lost_prev = lost > bytes ? lost - bytes : 0;
    uint64_t allowed = quic_bbr_scale(inflight_prev, QUIC_BBR_LOSS_THRESH_PERCENT, 100);
    uint64_t prefix = allowed > lost_prev ? allowed - lost_prev : 0;
    return inflight_prev + quic_bbr_scale(prefix, 100, 100 - QUIC_BBR_LOSS_THRESH_PERCENT);
}

static void on_lost(struct quic_cc *cc, const struct quic_cc_lost *lost) {
    struct quic_bbr *b = cc->bbr;
    note_loss(cc, lost->sent_ns);
    if (b->lost_ranges == 0 || lost->pn != b->newest_lost_pn + 1)
        b->lost_ranges++;
    b->newest_lost_pn = lost->pn;
    if (lost->sent_ns > b->episode_after_ns)
        b->episode_lost++;
    if (!b->bw_probe_sample)
        return;
    uint64_t since = quic_rate_lost_since(&b->rate, lost->at_send), in_flight = lost->at_send->in_flight;
    if (quic_bbr_too_high(since, in_flight))
        quic_bbr_handle_too_high(cc, lost->now, inflight_at_loss(in_flight, since, lost->bytes),
                                 lost->at_send->app_limited);
}

static bool on_congestion(struct quic_cc *cc, uint64_t now, uint64_t sent_ns, bool ecn) {
    struct quic_bbr *b = cc->bbr;
    if (ecn) {
        note_loss(cc, sent_ns);
        b->ce_in_round = true;
        if (b->bw_probe_sample)
            quic_bbr_handle_too_high(cc, now, b->rate.acked.newest.in_flight,
                                     b->rate.acked.newest.app_limited);
    }
    if (quic_cc_in_recovery(cc, sent_ns))
        return false;
    cc->recovery_start_ns = quic_bbr_max(now, 1);
    b->in_recovery = true;
    b->episode_begun = false;
    return true;
}

static void on_persistent_congestion(struct quic_cc *cc, uint64_t now) {
    (void)now;
    save_cwnd(cc);
    cc->window = quic_cc_min_window(cc); /* RFC 9002 section 7.6.2. */
}

/* HandleSpuriousLossDetection, when nothing that this recovery took for lost was. */
static void on_spurious_loss(struct quic_cc *cc, uint64_t now, uint64_t sent_ns) {
    struct quic_bbr *b = cc->bbr;
    (void)now;
    if (sent_ns <= b->episode_after_ns || ++b->episode_spurious < b->episode_lost)
        return;
    b->episode_lost = b->episode_spurious = 0;
    restore_cwnd(cc);
    b->loss_in_round = false;
    quic_bbr_reset_full_bw(b);
    b->bw_shortterm = quic_bbr_max(b->bw_shortterm, b->undo_bw_shortterm);
    b->inflight_shortterm = quic_bbr_max(b->inflight_shortterm, b->undo_inflight_shortterm);
    b->inflight_longterm = quic_bbr_max(b->inflight_longterm, b->undo_inflight_longterm);
    if (b->undo_state == QUIC_BBR_STARTUP && b->state != QUIC_BBR_STARTUP) {
        b->full_bw_reached = false;
        if (b->state != QUIC_BBR_PROBE_RTT)
            quic_bbr_set_state(b, QUIC_BBR_STARTUP);
    } else if (b->undo_state == QUIC_BBR_UP && b->state != QUIC_BBR_UP && b->state != QUIC_BBR_PROBE_RTT) {
        quic_bbr_start_refill(b);
    }
    b->undo_state = QUIC_BBR_NONE;
}

const struct quic_cc_ops quic_cc_bbr = {
    .name = "bbr",
    .on_ack = on_ack,
    .on_congestion = on_congestion,
    .on_persistent_congestion = on_persistent_congestion,
    .on_sent = on_sent,
    .on_lost = on_lost,
    .on_spurious_loss = on_spurious_loss,
};
