/* BBR's model of the path: draft-ietf-ccwg-bbr section 5.5. Bandwidth, round trip, aggregation, the full
 * pipe, and what losses say about how much the path can take. */
#include "bbr.h"

#define NS_PER_S UINT64_C(1000000000)

void quic_bbr_reset_congestion(struct quic_bbr *b) {
    b->loss_in_round = b->ce_in_round = false;
    b->bw_latest = b->inflight_latest = 0;
}

void quic_bbr_reset_short_term(struct quic_bbr *b) {
    b->bw_shortterm = b->inflight_shortterm = QUIC_BBR_INFINITY;
}

/* ---- volumes ---- */

uint64_t quic_bbr_bdp(const struct quic_bbr *b, uint64_t bw, uint32_t gain) {
    if (b->min_rtt_ns == QUIC_BBR_INFINITY)
        return b->initial_cwnd;
    return quic_bbr_scale(quic_bbr_scale(bw, b->min_rtt_ns, NS_PER_S), gain, 100);
}

uint64_t quic_bbr_quantization(const struct quic_cc *cc, uint64_t inflight) {
    inflight = quic_bbr_max(inflight, cc->send_quantum); /* Section 5.5.8.2: QUIC's offload budget. */
    inflight = quic_bbr_max(inflight, quic_bbr_min_pipe(cc));
    return cc->bbr->state == QUIC_BBR_UP ? inflight + 2 * (uint64_t)cc->mss : inflight;
}

uint64_t quic_bbr_inflight(const struct quic_cc *cc, uint64_t bw, uint32_t gain) {
    return quic_bbr_quantization(cc, quic_bbr_bdp(cc->bbr, bw, gain));
}

uint64_t quic_bbr_target_inflight(const struct quic_cc *cc) {
    return quic_bbr_min(quic_bbr_bdp(cc->bbr, cc->bbr->bw, 100), cc->window);
}

uint64_t quic_bbr_inflight_with_headroom(const struct quic_cc *cc) {
    uint64_t limit = cc->bbr->inflight_longterm;
    if (limit == QUIC_BBR_INFINITY)
        return limit;
    uint64_t headroom = quic_bbr_max(cc->mss, quic_bbr_scale(limit, QUIC_BBR_HEADROOM_PERCENT, 100));
    return quic_bbr_max(limit > headroom ? limit - headroom : 0, quic_bbr_min_pipe(cc));
}

/* ---- bandwidth ---- */

void quic_bbr_advance_max_bw(struct quic_bbr *b) {
    if (b->max_bw_filter[1] == 0)
        return; /* Nothing was measured in this cycle: what was before still stands. */
    b->max_bw_filter[0] = b->max_bw_filter[1];
    b->max_bw_filter[1] = 0;
    b->max_bw = b->max_bw_filter[0];
}

static void update_round(struct quic_bbr *b) {
    b->round_start = b->rs.prior_delivered >= b->next_round_delivered;
    if (!b->round_start)
        return;
    quic_bbr_start_round(b);
    b->round_count++;
    b->rounds_since_probe_up++;
    b->cwnd_limited_before = b->cwnd_limited;
    b->cwnd_limited = false;
    b->extra_acked_filter[b->round_count % QUIC_BBR_EXTRA_ACKED_ROUNDS] = 0;
}

static void update_max_bw(struct quic_bbr *b) {
    update_round(b);
    uint64_t rate = b->rs.delivery_rate;
    if (rate == 0 || (rate < b->max_bw && b->rs.app_limited))
        return;
    b->max_bw_filter[1] = quic_bbr_max(b->max_bw_filter[1], rate);
    b->max_bw = quic_bbr_max(b->max_bw_filter[0], b->max_bw_filter[1]);
}

/* ---- loss, once a round ---- */

static bool probing(const struct quic_bbr *b) {
    return b->state == QUIC_BBR_STARTUP || b->state == QUIC_BBR_REFILL || b->state == QUIC_BBR_UP;
}

/* Losses while not probing: slow down towards what the path delivered in the last round. */
static void adapt_lower_bounds(struct quic_cc *cc) {
    struct quic_bbr *b = cc->bbr;
    if (probing(b) || !b->loss_in_round)
        return;
    if (b->bw_shortterm == QUIC_BBR_INFINITY)
        b->bw_shortterm = b->max_bw;
    if (b->inflight_shortterm == QUIC_BBR_INFINITY)
        b->inflight_shortterm = cc->window;
    b->bw_shortterm = quic_bbr_max(b->bw_latest, quic_bbr_scale(b->bw_shortterm, QUIC_BBR_BETA_PERCENT, 100));
    b->inflight_shortterm =
        quic_bbr_max(b->inflight_latest, quic_bbr_scale(b->inflight_shortterm, QUIC_BBR_BETA_PERCENT, 100));
}

/* ---- aggregation: more was acknowledged than the bandwidth explains ---- */

static void update_ack_aggregation(struct quic_cc *cc, uint64_t now) {
    struct quic_bbr *b = cc->bbr;
    uint64_t expected = quic_bbr_scale(b->bw, now - b->extra_acked_start_ns, NS_PER_S);
    if (b->extra_acked_delivered <= expected) {
        b->extra_acked_delivered = 0;
        b->extra_acked_start_ns = now;
        expected = 0;
    }
    b->extra_acked_delivered += b->rs.newly_acked;
    uint64_t extra = b->extra_acked_delivered > expected
                         ? quic_bbr_min(b->extra_acked_delivered - expected, cc->window)
                         : 0;
    uint64_t *slot = &b->extra_acked_filter[b->round_count % QUIC_BBR_EXTRA_ACKED_ROUNDS];
    *slot = quic_bbr_max(*slot, extra);
    b->extra_acked = *slot; /* In Startup one round is remembered. */
    for (unsigned i = 0; b->full_bw_reached && i < QUIC_BBR_EXTRA_ACKED_ROUNDS; i++)
        b->extra_acked = quic_bbr_max(b->extra_acked, b->extra_acked_filter[i]);
}

void quic_bbr_update_signals(struct quic_cc *cc, uint64_t now) {
    struct quic_bbr *b = cc->bbr;
    /* UpdateLatestDeliverySignals */
    b->loss_round_start = b->rs.prior_delivered >= b->loss_round_delivered;
    b->bw_latest = quic_bbr_max(b->bw_latest, b->rs.delivery_rate);
    b->inflight_latest = quic_bbr_max(b->inflight_latest, b->rs.delivered);
    if (b->loss_round_start)
        b->loss_round_delivered = b->rate.delivered;
    /* UpdateCongestionSignals; CheckStartupHighLoss still wants to know of this round's losses. */
    update_max_bw(b);
    if (b->loss_round_start)
        adapt_lower_bounds(cc);
    update_ack_aggregation(cc, now);
}

void quic_bbr_advance_signals(struct quic_bbr *b) {
    if (!b->loss_round_start)
        return;
    b->bw_latest = b->rs.delivery_rate;
    b->inflight_latest = b->rs.delivered;
    b->loss_in_round = b->ce_in_round = false;
    b->lost_ranges = 0;
}

/* ---- the full pipe ---- */

void quic_bbr_reset_full_bw(struct quic_bbr *b) {
    b->full_bw = 0;
    b->full_bw_count = 0;
    b->full_bw_now = false;
}

void quic_bbr_check_full_bw(struct quic_bbr *b) {
    if (b->full_bw_now || !b->round_start || b->rs.app_limited)
        return;
    if (b->rs.delivery_rate >= quic_bbr_scale(b->full_bw, 125, 100)) {
        quic_bbr_reset_full_bw(b);
        b->full_bw = b->rs.delivery_rate;
        return;
    }
    b->full_bw_now = ++b->full_bw_count >= 3;
    if (b->full_bw_now)
        b->full_bw_reached = true;
}

/* ---- round trip ---- */

/* True: no smaller round trip was seen for ProbeRTTInterval. `rtt_ns` 0: no sample. */
bool quic_bbr_update_min_rtt(struct quic_bbr *b, uint64_t now, uint64_t rtt_ns) {
    b->probe_rtt_expired = b->probe_rtt_min_ns != QUIC_BBR_INFINITY &&
                           now > b->probe_rtt_min_stamp_ns + QUIC_BBR_PROBE_RTT_INTERVAL_NS;
    if (rtt_ns && (rtt_ns < b->probe_rtt_min_ns || b->probe_rtt_expired)) {
        b->probe_rtt_min_ns = rtt_ns;
        b->probe_rtt_min_stamp_ns = now;
    }
    if (b->probe_rtt_min_ns < b->min_rtt_ns || now > b->min_rtt_stamp_ns + QUIC_BBR_MIN_RTT_NS) {
        b->min_rtt_ns = b->probe_rtt_min_ns;
        b->min_rtt_stamp_ns = b->probe_rtt_min_stamp_ns;
    }
    return b->probe_rtt_expired;
}
