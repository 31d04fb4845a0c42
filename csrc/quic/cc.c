/* What all congestion controllers have in common: RFC 9002 section 7. The initial and minimum window, slow
 * start, entering recovery. The rest is a file a controller: cc_newreno.c, cc_cubic.c, cc_bbr.c; HyStart++:
 * hystart.c.
 */
#include "bbr.h"
#include "cc_internal.h"

#include <math.h>
#include <string.h>

#define DEFAULT_INITIAL_PACKETS 10 /* RFC 9002 section 7.2. */

/* Section 7.2 caps ten datagrams at 14720 bytes: 1472 each, the payload of a 1500 byte packet over IPv4. The
 * cap goes with the configured number of packets. */
#define INITIAL_PACKET_CAP_BYTES 1472

static uint64_t max64(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static uint64_t min64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

size_t quic_cc_state_bytes(enum stoq_congestion_controller which) {
    return which == STOQ_CC_BBR ? sizeof(struct quic_bbr) : 0;
}

void quic_cc_init(struct quic_cc *cc, enum stoq_congestion_controller which, uint32_t mss,
                  uint32_t initial_window, void *state) {
    static const struct quic_cc_ops *const controllers[STOQ_CC_COUNT] = {
        [STOQ_CC_NEWRENO] = &quic_cc_newreno,
        [STOQ_CC_CUBIC] = &quic_cc_cubic,
        [STOQ_CC_BBR] = &quic_cc_bbr,
    };
    uint64_t packets = initial_window != 0 ? initial_window : DEFAULT_INITIAL_PACKETS;
    memset(cc, 0, sizeof *cc);
    cc->ops = controllers[which];
    cc->mss = mss;
    cc->window = min64(packets * mss, max64(packets * INITIAL_PACKET_CAP_BYTES, quic_cc_min_window(cc)));
    cc->window = max64(cc->window, quic_cc_min_window(cc));
    cc->ssthresh = UINT64_MAX;
    cc->hystart.last_min_ns = UINT64_MAX;
    cc->hystart.current_min_ns = UINT64_MAX;
    if (which == STOQ_CC_BBR)
        quic_bbr_init(cc, state);
}

void quic_cc_set_mss(struct quic_cc *cc, uint32_t mss) {
    /* CUBIC counts in segments: the same bytes are another number of them, and K goes with the cube root of
     * a window (RFC 9438 section 4.2). */
    double scale = (double)cc->mss / mss;
    cc->cubic.w_max *= scale;
    cc->cubic.w_prior *= scale;
    cc->cubic.w_est *= scale;
    cc->cubic.k_s *= cbrt(scale);
    cc->mss = mss;
    cc->window = max64(cc->window, quic_cc_min_window(cc));
}

uint64_t quic_cc_slow_start(struct quic_cc *cc, const struct quic_cc_ack *ack) {
    if (!quic_cc_in_slow_start(cc))
        return ack->bytes;
    uint64_t growth = ack->bytes;
    bool end = quic_hystart_on_ack(cc, ack, &growth);
    uint64_t room = cc->ssthresh - cc->window;
    uint64_t used = min64(growth, room);
    cc->window += used;
    if (end) {
        cc->ssthresh = cc->window;
        return 0;
    }
    return growth - used;
}

void quic_cc_reduce(struct quic_cc *cc, uint64_t now, uint64_t window) {
    cc->window = max64(window, quic_cc_min_window(cc));
    cc->ssthresh = cc->window;
    cc->recovery_start_ns = max64(now, 1); /* 0 says: never. */
    cc->hystart.done = true;               /* RFC 9406 section 4.3: only before the first reduction. */
}
