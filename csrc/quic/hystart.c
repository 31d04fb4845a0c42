/* HyStart++, RFC 9406: leave slow start when the round trip time rises, before the queue overflows.
 *
 *   slow start ──(a round's least RTT is up by RttThresh)──▶ conservative slow start ──5 rounds──▶ done
 *        ▲                                                            │
 *        └───────────────(a round's least RTT is down again)──────────┘
 *
 * A round ends when the packet is acknowledged that was the next to be sent at its start; that
 * acknowledgement belongs to the round after. Growth per acknowledgement is not limited (the RFC's L is
 * infinite): the engine paces, and acknowledges trains with one ACK.
 */
#include "cc.h"

/* RFC 9406 section 4.3, the recommended values. */
#define MIN_RTT_THRESH_NS  UINT64_C(4000000)
#define MAX_RTT_THRESH_NS  UINT64_C(16000000)
#define MIN_RTT_DIVISOR    8
#define CSS_GROWTH_DIVISOR 4
#define CSS_ROUNDS         5

/* Section 4.2: both rounds must be known, and this one well enough. */
static bool delay_rose(const struct quic_cc *cc) {
    uint64_t last = cc->hystart.last_min_ns;
    if (last == UINT64_MAX)
        return false;
    uint64_t thresh = last / MIN_RTT_DIVISOR;
    thresh = thresh < MIN_RTT_THRESH_NS ? MIN_RTT_THRESH_NS : thresh;
    thresh = thresh > MAX_RTT_THRESH_NS ? MAX_RTT_THRESH_NS : thresh;
    return cc->hystart.current_min_ns >= last + thresh;
}

static void take_sample(struct quic_cc *cc, uint64_t rtt_ns) {
    if (rtt_ns < cc->hystart.current_min_ns)
        cc->hystart.current_min_ns = rtt_ns;
    if (cc->hystart.samples < QUIC_HYSTART_MIN_SAMPLES)
        cc->hystart.samples++;
    if (cc->hystart.samples < QUIC_HYSTART_MIN_SAMPLES)
        return;
    if (!cc->hystart.css && delay_rose(cc)) {
        cc->hystart.css = true;
        cc->hystart.css_rounds = 0;
        cc->hystart.css_baseline_ns = cc->hystart.current_min_ns;
    } else if (cc->hystart.css && cc->hystart.current_min_ns < cc->hystart.css_baseline_ns) {
        cc->hystart.css = false; /* It was jitter. */
    }
}

static void begin_round(struct quic_cc *cc, uint64_t next_pn) {
    cc->hystart.round_end_pn = next_pn;
    cc->hystart.last_min_ns = cc->hystart.current_min_ns;
    cc->hystart.current_min_ns = UINT64_MAX;
    cc->hystart.samples = 0;
}

bool quic_hystart_on_ack(struct quic_cc *cc, const struct quic_cc_ack *ack, uint64_t *growth) {
    /* Section 4.3: for the first slow start only. Later ones know ssthresh. */
    if (cc->hystart.done || cc->ssthresh != UINT64_MAX)
        return false;
    if (ack->largest_acked_pn >= cc->hystart.round_end_pn) {
        begin_round(cc, ack->next_pn);
        /* The round in which the delay rose counts, though only part of it was spent here. */
        cc->hystart.done = cc->hystart.css && ++cc->hystart.css_rounds >= CSS_ROUNDS;
    }
    if (ack->rtt_latest_ns != 0)
        take_sample(cc, ack->rtt_latest_ns);
    if (cc->hystart.css)
        *growth /= CSS_GROWTH_DIVISOR;
    return cc->hystart.done;
}
