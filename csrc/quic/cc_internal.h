/* What the congestion controllers share among themselves; nothing else includes this. */
#ifndef STOQ_QUIC_CC_INTERNAL_H
#define STOQ_QUIC_CC_INTERNAL_H

#include "cc.h"

/* RFC 9002 section 7.2: the window is never less than two datagrams. */
static inline uint64_t quic_cc_min_window(const struct quic_cc *cc) {
    return 2 * (uint64_t)cc->mss;
}

static inline bool quic_cc_in_slow_start(const struct quic_cc *cc) {
    return cc->window < cc->ssthresh;
}

/* Was a packet sent at `sent_ns` already on its way when the present recovery period began (RFC 9002 section
 * 7.3.2)? Its loss does not reduce again, its acknowledgement does not grow. */
static inline bool quic_cc_in_recovery(const struct quic_cc *cc, uint64_t sent_ns) {
    return cc->recovery_start_ns != 0 && sent_ns <= cc->recovery_start_ns;
}

/* Slow start for one acknowledgement. Returns the bytes that are left for congestion avoidance: 0 unless slow
 * start was over, or ended with this acknowledgement at ssthresh. */
uint64_t quic_cc_slow_start(struct quic_cc *cc, const struct quic_cc_ack *ack);

/* A recovery period begins at `now`: the window and ssthresh become `window`, at least the minimum. */
void quic_cc_reduce(struct quic_cc *cc, uint64_t now, uint64_t window);

#endif
