/* CUBIC, RFC 9438, on RFC 9002's recovery periods. Windows are in segments (mss) here, times in seconds: the
 * RFC's units, so that its formulas stand as they are printed.
 *
 *        W_max ┤- - - - - - -.---·''     t runs from the first acknowledgement after recovery; at t = K the
 *              │        .-'    convex     window is back at W_max, where the loss was. Where Reno would be
 *   cwnd_epoch ┤ .-' concave              faster (short round trips), the window is Reno's estimate W_est.
 *              └─┴───────────┴──────▶ t
 *               epoch        K
 */
#include "cc_internal.h"

#include <math.h>

#define C                  0.4 /* RFC 9438 section 5.1: aggressiveness, segments/s^3. */
#define BETA               0.7 /* Section 4.6, for loss and for ECN alike. */
#define ALPHA              (3 * (1 - BETA) / (1 + BETA)) /* Section 4.3: as fair as Reno with beta 0.5. */
#define MAX_ROUND_INCREASE 1.5                           /* Section 4.2: target's bound, in windows. */
#define NS_PER_S           1e9

/* Congestion avoidance begins: after recovery, or after a slow start without loss. */
static void begin_epoch(struct quic_cc *cc, uint64_t now) {
    double cwnd = (double)cc->window / cc->mss;
    cc->cubic.epoch_ns = now != 0 ? now : 1; /* 0 says: no epoch. */
    cc->cubic.last_ack_ns = cc->cubic.epoch_ns;
    cc->cubic.drained = false;
    cc->cubic.w_est = cwnd;
    cc->cubic.carry_bytes = 0;
    if (cc->cubic.w_max <= cwnd) { /* Sections 4.8 and 4.10: also when W_max was never known. */
        cc->cubic.w_max = cwnd;
        cc->cubic.k_s = 0;
    } else {
        cc->cubic.k_s = cbrt((cc->cubic.w_max - cwnd) / C);
    }
}

static double w_cubic(const struct quic_cc *cc, double t) {
    double d = t - cc->cubic.k_s;
    return C * d * d * d + cc->cubic.w_max;
}

/* Section 5.8: t does not run while the application, not the window, limits. The time since the last
 * acknowledgement did not count if this one says so. Nor did the time in which nothing was on its way: if the
 * last one left nothing in flight, until the sending of what is acknowledged now. */
static void stop_clock_while_limited(struct quic_cc *cc, const struct quic_cc_ack *ack) {
    uint64_t last = cc->cubic.last_ack_ns;
    uint64_t until = ack->app_limited ? ack->now : cc->cubic.drained ? ack->largest_acked_sent_ns : last;
    if (until > last)
        cc->cubic.epoch_ns += until - last;
    cc->cubic.last_ack_ns = ack->now;
    cc->cubic.drained = ack->bytes_in_flight <= ack->bytes;
}

static void on_ack(struct quic_cc *cc, const struct quic_cc_ack *ack) {
    if (cc->cubic.epoch_ns != 0)
        stop_clock_while_limited(cc, ack);
    if (ack->app_limited || quic_cc_in_recovery(cc, ack->largest_acked_sent_ns))
        return;
    uint64_t bytes = quic_cc_slow_start(cc, ack);
    if (bytes == 0)
        return;
    if (cc->cubic.epoch_ns == 0)
        begin_epoch(cc, ack->now);

    double mss = cc->mss;
    double cwnd = (double)cc->window / mss;
    double windows_acked = (double)bytes / (double)cc->window;
    double t = ack->now > cc->cubic.epoch_ns ? (double)(ack->now - cc->cubic.epoch_ns) / NS_PER_S : 0;

    /* Section 4.3. Once W_est has passed the window of the last reduction it grows as Reno does. */
    cc->cubic.w_est += (cc->cubic.w_est < cc->cubic.w_prior ? ALPHA : 1) * windows_acked;
    if (w_cubic(cc, t) < cc->cubic.w_est) { /* The Reno-friendly region. */
        uint64_t est = (uint64_t)(cc->cubic.w_est * mss);
        if (est > cc->window)
            cc->window = est;
        return;
    }
    /* Sections 4.4 and 4.5: towards where the curve will be in a round trip. */
    double target = w_cubic(cc, t + (double)ack->rtt_smoothed_ns / NS_PER_S);
    if (target > MAX_ROUND_INCREASE * cwnd)
        target = MAX_ROUND_INCREASE * cwnd;
    if (target <= cwnd)
        return;
    double share =
        windows_acked < 1 ? windows_acked : 1; /* One ACK for several windows: not past the target. */
    cc->cubic.carry_bytes += (target - cwnd) * share * mss;
    uint64_t whole = (uint64_t)cc->cubic.carry_bytes;
    cc->window += whole;
    cc->cubic.carry_bytes -= (double)whole;
}

static bool on_congestion(struct quic_cc *cc, uint64_t now, uint64_t sent_ns, bool ecn) {
    (void)ecn; /* RFC 9438 section 4.6: ECN reduces as loss does. */
    if (quic_cc_in_recovery(cc, sent_ns))
        return false;
    double cwnd = (double)cc->window / cc->mss;
    /* Section 4.7, fast convergence: a second loss below W_max says that others need room. */
    cc->cubic.w_max = cwnd < cc->cubic.w_max ? cwnd * (1 + BETA) / 2 : cwnd;
    cc->cubic.w_prior = cwnd;
    cc->cubic.epoch_ns = 0;
    quic_cc_reduce(cc, now, (uint64_t)((double)cc->window * BETA));
    return true;
}

static void on_persistent_congestion(struct quic_cc *cc, uint64_t now) {
    (void)now;
    cc->window = quic_cc_min_window(cc);
    cc->recovery_start_ns = 0;
    /* Section 4.8: the next congestion avoidance starts with K = 0 and W_max as its own window. */
    cc->cubic.w_max = 0;
    cc->cubic.epoch_ns = 0;
}

const struct quic_cc_ops quic_cc_cubic = {
    .name = "cubic",
    .on_ack = on_ack,
    .on_congestion = on_congestion,
    .on_persistent_congestion = on_persistent_congestion,
};
