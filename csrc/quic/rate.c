/* See rate.h; the names in comments are those of draft-ietf-ccwg-bbr section 4.1.2. */
#include "rate.h"

#define IN_FLIGHT_MAX ((UINT64_C(1) << 31) - 1)
#define NS_PER_S      UINT64_C(1000000000)

static uint64_t max64(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

void quic_rate_on_sent(struct quic_rate *rate, struct quic_rate_packet *packet, uint64_t now,
                       uint64_t in_flight, uint32_t bytes) {
    if (in_flight == 0)
        rate->first_sent_ns = rate->delivered_ns = now; /* An idle pipe: the interval begins here. */
    uint64_t with = in_flight + bytes;
    packet->delivered = rate->delivered;
    packet->delivered_ns = rate->delivered_ns;
    packet->first_sent_ns = rate->first_sent_ns;
    packet->lost = (uint32_t)rate->lost;
    packet->in_flight = (with < IN_FLIGHT_MAX ? with : IN_FLIGHT_MAX) & IN_FLIGHT_MAX;
    packet->app_limited = rate->app_limited != 0;
}

void quic_rate_on_acked(struct quic_rate *rate, const struct quic_rate_packet *packet, uint64_t now,
                        uint64_t sent_ns, uint64_t pn, uint32_t bytes) {
    rate->delivered += bytes;
    rate->delivered_ns = now;
    rate->acked.bytes += bytes;
    /* IsNewestPacket */
    bool newer = sent_ns > rate->acked.newest_sent_ns ||
                 (sent_ns == rate->acked.newest_sent_ns && pn > rate->acked.newest_pn);
    if (rate->acked.any && !newer)
        return;
    rate->acked.any = true;
    rate->acked.newest = *packet;
    rate->acked.newest_sent_ns = sent_ns;
    rate->acked.newest_pn = pn;
    rate->first_sent_ns = sent_ns;
}

struct quic_rate_sample quic_rate_take(struct quic_rate *rate, uint64_t min_rtt_ns) {
    if (rate->app_limited && rate->delivered > rate->app_limited)
        rate->app_limited = 0; /* The bubble has left the pipe. */
    struct quic_rate_sample s = {.newly_acked = rate->acked.bytes};
    if (rate->acked.any) {
        const struct quic_rate_packet *p = &rate->acked.newest;
        s.prior_delivered = p->delivered;
        s.delivered = rate->delivered - p->delivered;
        s.lost = quic_rate_lost_since(rate, p);
        s.in_flight = p->in_flight;
        s.app_limited = p->app_limited;
        uint64_t interval = max64(rate->acked.newest_sent_ns - p->first_sent_ns, /* send_elapsed */
                                  rate->delivered_ns - p->delivered_ns);         /* ack_elapsed */
        /* Shorter than any round trip: of a packet taken for lost by mistake. */
        __extension__ typedef unsigned __int128 wide;
        if (interval >= min_rtt_ns && interval != 0)
            s.delivery_rate = (uint64_t)((wide)s.delivered * NS_PER_S / interval);
    }
    rate->acked.any = false;
    rate->acked.bytes = 0;
    return s;
}

void quic_rate_mark_app_limited(struct quic_rate *rate, uint64_t in_flight) {
    rate->app_limited = max64(rate->delivered + in_flight, 1);
}
