/* BBR's PROBE_BW: draft-ietf-ccwg-bbr sections 5.3.3 and 5.5.10.2. The cycle DOWN, CRUISE, REFILL, UP, and
 * inflight_longterm, the volume above which probing met too much loss. */
#include "bbr.h"

#define RENO_ROUNDS   63u /* Section 5.3.3.9: not rarer than Reno would fill a small pipe. */
#define PROBE_WAIT_NS UINT64_C(2000000000)
#define PROBE_MORE_NS UINT64_C(1000000000)

/* splitmix64; what goes in differs between flows. */
static uint64_t draw(struct quic_bbr *b, uint64_t now) {
    uint64_t x = b->random += now ^ b->rate.delivered ^ b->min_rtt_ns << 32;
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

void quic_bbr_start_down(struct quic_cc *cc, uint64_t now) {
    struct quic_bbr *b = cc->bbr;
    quic_bbr_reset_congestion(b);
    b->probe_up_acked_per_inc = QUIC_BBR_INFINITY;
    uint64_t x = draw(b, now); /* PickProbeWait */
    b->rounds_since_probe_up = x & 1;
    b->bw_probe_wait_ns = PROBE_WAIT_NS + (x >> 1) % PROBE_MORE_NS;
    b->cycle_stamp_ns = now;
    b->ack_phase = QUIC_BBR_ACKS_STOPPING;
    quic_bbr_start_round(b);
    quic_bbr_set_state(b, QUIC_BBR_DOWN);
}

void quic_bbr_start_refill(struct quic_bbr *b) {
    quic_bbr_reset_short_term(b);
    b->bw_probe_up_rounds = 0;
    b->bw_probe_up_acked = 0;
    b->prev_probe_precautionary = false;
    b->ack_phase = QUIC_BBR_ACKS_REFILLING;
    quic_bbr_start_round(b);
    quic_bbr_set_state(b, QUIC_BBR_REFILL);
}

/* Growth of inflight_longterm: 1, 2, 4… segments in successive rounds. */
static void raise_slope(struct quic_cc *cc) {
    struct quic_bbr *b = cc->bbr;
    uint64_t growth = UINT64_C(1) << b->bw_probe_up_rounds;
    if (b->bw_probe_up_rounds < 30)
        b->bw_probe_up_rounds++;
    b->probe_up_acked_per_inc = quic_bbr_max(cc->window / growth, cc->mss);
}

static void start_up(struct quic_cc *cc) {
    struct quic_bbr *b = cc->bbr;
    b->ack_phase = QUIC_BBR_ACKS_STARTING;
    quic_bbr_start_round(b);
    quic_bbr_reset_full_bw(b);
    b->full_bw = b->rs.delivery_rate;
    quic_bbr_set_state(b, QUIC_BBR_UP);
    raise_slope(cc);
}

static void probe_longterm_upward(struct quic_cc *cc) {
    struct quic_bbr *b = cc->bbr;
    if (!quic_bbr_cwnd_limited(b) || cc->window < b->inflight_longterm)
        return; /* It is not what limits. */
    b->bw_probe_up_acked += b->rs.newly_acked;
    if (b->bw_probe_up_acked >= b->probe_up_acked_per_inc) {
        b->inflight_longterm += b->bw_probe_up_acked / b->probe_up_acked_per_inc * cc->mss;
        b->bw_probe_up_acked %= b->probe_up_acked_per_inc;
    }
    if (b->round_start)
        raise_slope(cc);
}

/* AdaptLongTermModel. True: the state has changed already. */
static bool adapt_longterm(struct quic_cc *cc) {
    struct quic_bbr *b = cc->bbr;
    if (b->ack_phase == QUIC_BBR_ACKS_STARTING && b->round_start)
        b->ack_phase = QUIC_BBR_ACKS_FEEDBACK;
    if (b->ack_phase == QUIC_BBR_ACKS_STOPPING && b->round_start) {
        /* The last of what probing sent has been heard of. */
        b->bw_probe_sample = false;
        b->ack_phase = QUIC_BBR_ACKS_INIT;
        if (quic_bbr_in_probe_bw(b) && !b->rs.app_limited)
            quic_bbr_advance_max_bw(b);
        if (quic_bbr_in_probe_bw(b) && b->prev_probe_precautionary && !b->prev_probe_too_high) {
            quic_bbr_start_refill(b);
            return true;
        }
    }
    if (b->inflight_longterm == QUIC_BBR_INFINITY || quic_bbr_too_high(b->rs.lost, b->rs.in_flight))
        return false;
    b->inflight_longterm = quic_bbr_max(b->inflight_longterm, b->rs.in_flight);
    if (b->state == QUIC_BBR_UP)
        probe_longterm_upward(cc);
    return false;
}

/* From DOWN or CRUISE to REFILL? */
static bool time_to_probe(const struct quic_cc *cc, uint64_t now) {
    const struct quic_bbr *b = cc->bbr;
    uint64_t reno_rounds = quic_bbr_target_inflight(cc) / cc->mss;
    return now > b->cycle_stamp_ns + b->bw_probe_wait_ns ||
           b->rounds_since_probe_up >= quic_bbr_min(reno_rounds, RENO_ROUNDS);
}

static bool time_to_cruise(const struct quic_cc *cc) {
    const struct quic_bbr *b = cc->bbr;
    return b->in_flight <= quic_bbr_inflight_with_headroom(cc) &&
           b->in_flight <= quic_bbr_inflight(cc, b->max_bw, 100);
}

static bool time_to_go_down(struct quic_cc *cc) {
    struct quic_bbr *b = cc->bbr;
    /* Reached, as far as whole packets can, before this ACK made room. */
    if (b->prev_probe_too_high && b->prior_in_flight + cc->mss > b->inflight_longterm) {
        b->prev_probe_precautionary = true;
        return true;
    }
    if (quic_bbr_cwnd_limited(b) && cc->window >= b->inflight_longterm) {
        quic_bbr_reset_full_bw(b); /* Not the path but inflight_longterm limits the rate. */
        b->full_bw = b->rs.delivery_rate;
        return false;
    }
    return b->full_bw_now;
}

void quic_bbr_update_cycle(struct quic_cc *cc, uint64_t now) {
    struct quic_bbr *b = cc->bbr;
    if (!b->full_bw_reached || adapt_longterm(cc))
        return;
    switch (b->state) {
    case QUIC_BBR_DOWN:
        if (time_to_probe(cc, now))
            quic_bbr_start_refill(b);
        else if (time_to_cruise(cc))
            quic_bbr_set_state(b, QUIC_BBR_CRUISE);
        break;
    case QUIC_BBR_CRUISE:
        if (time_to_probe(cc, now))
            quic_bbr_start_refill(b);
        break;
    case QUIC_BBR_REFILL:
        if (b->round_start) {
            b->bw_probe_sample = true;
            start_up(cc);
        }
        break;
    case QUIC_BBR_UP:
        if (time_to_go_down(cc)) {
            b->prev_probe_too_high = false;
            quic_bbr_start_down(cc, now);
        }
        break;
    default:
        break;
    }
}

void quic_bbr_handle_too_high(struct quic_cc *cc, uint64_t now, uint64_t in_flight, bool app_limited) {
    struct quic_bbr *b = cc->bbr;
    b->prev_probe_too_high = true;
    b->bw_probe_sample = false; /* Once a probe. */
    if (!app_limited)
        b->inflight_longterm =
            quic_bbr_max(in_flight, quic_bbr_scale(quic_bbr_target_inflight(cc), QUIC_BBR_BETA_PERCENT, 100));
    if (b->state == QUIC_BBR_UP) {
        b->undo_state = QUIC_BBR_UP;
        quic_bbr_start_down(cc, now);
    }
}
