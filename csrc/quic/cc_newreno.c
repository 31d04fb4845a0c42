/* NewReno as RFC 9002 section 7 and Appendix B describe it. The default: simple, and what a peer's
 * expectations are built on.
 */
#include "cc_internal.h"

static void on_ack(struct quic_cc *cc, const struct quic_cc_ack *ack) {
    if (ack->app_limited || quic_cc_in_recovery(cc, ack->largest_acked_sent_ns))
        return;
    cc->avoidance_bytes += quic_cc_slow_start(cc, ack);
    /* Section 7.3.3: one datagram for each window acknowledged. Whole windows are counted, so that nothing
     * is lost to rounding, however large the window. */
    while (cc->avoidance_bytes >= cc->window) {
        cc->avoidance_bytes -= cc->window;
        cc->window += cc->mss;
    }
}

static bool on_congestion(struct quic_cc *cc, uint64_t now, uint64_t sent_ns, bool ecn) {
    (void)ecn; /* Section 7.1: a CE mark means what a loss means. */
    if (quic_cc_in_recovery(cc, sent_ns))
        return false;
    quic_cc_reduce(cc, now, cc->window / 2); /* kLossReductionFactor, Appendix B.1. */
    cc->avoidance_bytes = 0;
    return true;
}

static void on_persistent_congestion(struct quic_cc *cc, uint64_t now) {
    (void)now;
    cc->window = quic_cc_min_window(cc);
    cc->recovery_start_ns = 0; /* Appendix B.8: slow start at once. */
    cc->avoidance_bytes = 0;
}

const struct quic_cc_ops quic_cc_newreno = {
    .name = "newreno",
    .on_ack = on_ack,
    .on_congestion = on_congestion,
    .on_persistent_congestion = on_persistent_congestion,
};
