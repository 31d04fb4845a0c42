/* BBR version 3, draft-ietf-ccwg-bbr, behind the table of cc.h: a model of the path (how fast it delivers,
 * how long the way is, how much it holds without loss) instead of a window that follows losses.
 *
 *                    bandwidth has stopped growing,              what is in flight is back
 *                    or a round lost too much                    to what the pipe holds
 *   ──▶ STARTUP ─────────────────────────────▶ DRAIN ─────────────────────────▶ PROBE_BW
 *          ▲                                                                       │ ▲
 *          └─(the pipe was never full)─ PROBE_RTT ─(was full)──────────────────────┼─┘
 *                                           ▲                                      │
 *                                           └─────(no new minimum for 5 s)─────────┘
 *
 *   PROBE_BW:  DOWN ──drained──▶ CRUISE ──time──▶ REFILL ──a round──▶ UP ──full, or loss──▶ DOWN
 *              0.90              1.00             1.00                1.25      of the estimated bandwidth
 *
 * Files: cc_bbr.c the events and states, bbr_probe.c PROBE_BW, bbr_model.c what is measured. All three are
 * arithmetic on struct quic_bbr; names are the draft's. Rates are bytes a second, volumes bytes, gains per
 * cent.
 */
#ifndef STOQ_QUIC_BBR_H
#define STOQ_QUIC_BBR_H

#include "cc_internal.h"

#define QUIC_BBR_INFINITY UINT64_MAX

/* Section 2: constants of the draft. */
#define QUIC_BBR_STARTUP_GAIN          277u /* 4 ln 2 */
#define QUIC_BBR_DRAIN_GAIN            50u
#define QUIC_BBR_DOWN_GAIN             90u
#define QUIC_BBR_UP_GAIN               125u
#define QUIC_BBR_CWND_GAIN             200u
#define QUIC_BBR_UP_CWND_GAIN          225u
#define QUIC_BBR_PROBE_RTT_CWND_GAIN   50u
#define QUIC_BBR_PACING_MARGIN_PERCENT 1u
#define QUIC_BBR_LOSS_THRESH_PERCENT   2u
#define QUIC_BBR_BETA_PERCENT          70u
#define QUIC_BBR_HEADROOM_PERCENT      15u
#define QUIC_BBR_STARTUP_LOST_RANGES   6u
#define QUIC_BBR_EXTRA_ACKED_ROUNDS    10u
#define QUIC_BBR_MIN_RTT_NS            UINT64_C(10000000000) /* MinRTTFilterLen */
#define QUIC_BBR_PROBE_RTT_INTERVAL_NS UINT64_C(5000000000)
#define QUIC_BBR_PROBE_RTT_NS          UINT64_C(200000000) /* ProbeRTTDuration */

enum quic_bbr_state {
    QUIC_BBR_STARTUP,
    QUIC_BBR_DRAIN,
    QUIC_BBR_DOWN,
    QUIC_BBR_CRUISE,
    QUIC_BBR_REFILL,
    QUIC_BBR_UP,
    QUIC_BBR_PROBE_RTT,
    QUIC_BBR_NONE /* undo_state: nothing to go back to. */
};

/* What the ACKs that come in now tell about, with respect to probing. */
enum quic_bbr_ack_phase {
    QUIC_BBR_ACKS_INIT,
    QUIC_BBR_ACKS_REFILLING,
    QUIC_BBR_ACKS_STARTING,
    QUIC_BBR_ACKS_FEEDBACK,
    QUIC_BBR_ACKS_STOPPING
};

struct quic_bbr {
    struct quic_rate rate;
    struct quic_rate_sample rs;
    uint64_t in_flight, prior_in_flight; /* C.inflight after the ACK that is being handled, and before it. */

    enum quic_bbr_state state, undo_state;
    enum quic_bbr_ack_phase ack_phase;
    uint32_t pacing_gain, cwnd_gain;

    /* Rounds: from a packet's sending to the ACK of one sent after that ACK. */
    bool round_start;
    uint64_t round_count, next_round_delivered, drain_start_round;

    /* Bandwidth: of this cycle of PROBE_BW and the one before. */
    uint64_t max_bw_filter[2], max_bw, bw_shortterm, bw, bw_latest;

    /* Round trip. */
    uint64_t min_rtt_ns, min_rtt_stamp_ns, probe_rtt_min_ns, probe_rtt_min_stamp_ns, probe_rtt_done_ns;
    bool rtt_seen, probe_rtt_expired, probe_rtt_round_done, idle_restart;

    /* Volume. */
    uint64_t inflight_longterm, inflight_shortterm, inflight_latest, max_inflight;
    uint64_t initial_cwnd, prior_cwnd;
    bool cwnd_limited, cwnd_limited_before; /* In this round; in the last. */

    /* Aggregation: the most of each of the last rounds. */
    uint64_t extra_acked, extra_acked_start_ns, extra_acked_delivered;
    uint64_t extra_acked_filter[QUIC_BBR_EXTRA_ACKED_ROUNDS];

    /* The full pipe. */
    bool full_bw_reached, full_bw_now;
    uint32_t full_bw_count;
    uint64_t full_bw;

    /* Loss. */
    bool in_recovery, episode_begun, loss_round_start, loss_in_round, ce_in_round;
    uint32_t lost_ranges;    /* In this round; */
    uint64_t newest_lost_pn; /* of which the last ends here. */
    uint64_t loss_round_delivered;
    uint64_t episode_lost, episode_spurious, episode_after_ns; /* Packets of this recovery, sent after… */
    uint64_t undo_bw_shortterm, undo_inflight_shortterm, undo_inflight_longterm;

    /* PROBE_BW. */
    bool bw_probe_sample, prev_probe_too_high, prev_probe_precautionary;
    uint32_t bw_probe_up_rounds;
    uint64_t rounds_since_probe_up, bw_probe_wait_ns, cycle_stamp_ns, bw_probe_up_acked,
        probe_up_acked_per_inc;
    uint64_t random; /* Only so that flows do not probe in step. */
};

static inline uint64_t quic_bbr_max(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}
static inline uint64_t quic_bbr_min(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* a * b / c of which only the result must fit. */
static inline uint64_t quic_bbr_scale(uint64_t a, uint64_t b, uint64_t c) {
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)((wide)a * b / c);
}

static inline bool quic_bbr_in_probe_bw(const struct quic_bbr *b) {
    return b->state >= QUIC_BBR_DOWN && b->state <= QUIC_BBR_UP;
}

/* BBR.MinPipeCwnd */
static inline uint64_t quic_bbr_min_pipe(const struct quic_cc *cc) {
    return 4 * (uint64_t)cc->mss;
}

/* C.is_cwnd_limited: at any point of the last round. */
static inline bool quic_bbr_cwnd_limited(const struct quic_bbr *b) {
    return b->cwnd_limited || b->cwnd_limited_before;
}

void quic_bbr_init(struct quic_cc *cc, struct quic_bbr *bbr);

/* cc_bbr.c */
void quic_bbr_set_state(struct quic_bbr *b, enum quic_bbr_state state); /* With its gains. */
void quic_bbr_start_round(struct quic_bbr *b);
void quic_bbr_set_pacing_rate(struct quic_cc *cc, uint32_t gain);

/* bbr_model.c: how the path is. */
void quic_bbr_update_signals(struct quic_cc *cc, uint64_t now); /* Near the start of an ACK; */
void quic_bbr_advance_signals(struct quic_bbr *b);              /* near its end. */
void quic_bbr_reset_congestion(struct quic_bbr *b);
void quic_bbr_reset_short_term(struct quic_bbr *b);
void quic_bbr_advance_max_bw(struct quic_bbr *b); /* A cycle is over. */
void quic_bbr_reset_full_bw(struct quic_bbr *b);
void quic_bbr_check_full_bw(struct quic_bbr *b);
bool quic_bbr_update_min_rtt(struct quic_bbr *b, uint64_t now, uint64_t rtt_ns);
uint64_t quic_bbr_bdp(const struct quic_bbr *b, uint64_t bw, uint32_t gain);
uint64_t quic_bbr_inflight(const struct quic_cc *cc, uint64_t bw, uint32_t gain); /* With room for trains. */
uint64_t quic_bbr_target_inflight(const struct quic_cc *cc);
uint64_t quic_bbr_inflight_with_headroom(const struct quic_cc *cc);
uint64_t quic_bbr_quantization(const struct quic_cc *cc, uint64_t inflight);
/* Did more than LossThresh of `in_flight` get lost? */
static inline bool quic_bbr_too_high(uint64_t lost, uint64_t in_flight) {
    return lost * 100 > in_flight * QUIC_BBR_LOSS_THRESH_PERCENT;
}

/* bbr_probe.c: PROBE_BW. */
void quic_bbr_start_down(struct quic_cc *cc, uint64_t now);
void quic_bbr_start_refill(struct quic_bbr *b);
void quic_bbr_update_cycle(struct quic_cc *cc, uint64_t now);
void quic_bbr_handle_too_high(struct quic_cc *cc, uint64_t now, uint64_t in_flight, bool app_limited);

#endif
