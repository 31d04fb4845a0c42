/* Delivery-rate samples: draft-ietf-ccwg-bbr section 4.1. How fast did the path deliver what was on its way
 * when the newest acknowledged packet was sent?
 *
 *    sent, first ──send_elapsed──▶ sent, newest        the slower of the two: a burst of sends or a bunch of
 *    acked, before it left ─ack_elapsed─▶ now          ACKs alone would say too much
 *
 * Owns the connection's totals and the sample that an ACK builds up. What is remembered of each packet in
 * flight lies in a ring beside the sent packets (sent.h), which only a controller that wants samples has: the
 * others pay neither its memory nor its time.
 */
#ifndef STOQ_QUIC_RATE_H
#define STOQ_QUIC_RATE_H

#include <stdbool.h>
#include <stdint.h>

/* The totals as they were when a packet left. Two to a cache line. */
struct quic_rate_packet {
    uint64_t delivered, delivered_ns, first_sent_ns; /* P.delivered, P.delivered_time, P.first_send_time */
    uint32_t lost;           /* P.lost; its low half: between sending and ACK less than 4 GiB are lost. */
    uint32_t in_flight : 31; /* P.tx_in_flight: with this packet; 2 GiB stand for more. */
    uint32_t app_limited : 1;
};

struct quic_rate {
    uint64_t delivered, lost; /* Bytes in all. */
    uint64_t delivered_ns;    /* When `delivered` grew last, */
    uint64_t first_sent_ns;   /* and when the newest packet of that was sent. */
    uint64_t app_limited;     /* Samples are the application's until so much is delivered; 0: they are not. */
    struct {                  /* What this ACK said so far. */
        bool any;
        struct quic_rate_packet newest; /* As it was sent, */
        uint64_t newest_sent_ns, newest_pn;
        uint64_t bytes; /* of all of them. */
    } acked;
};

struct quic_rate_sample {
    uint64_t delivery_rate; /* Bytes a second; 0: none that can be relied on. */
    uint64_t delivered, prior_delivered, newly_acked;
    uint64_t lost, in_flight; /* Lost since the newest packet was sent; in flight just then. */
    bool app_limited;
};

/* A packet of `bytes` leaves at `now`; `in_flight` before it. */
void quic_rate_on_sent(struct quic_rate *rate, struct quic_rate_packet *packet, uint64_t now,
                       uint64_t in_flight, uint32_t bytes);
/* Acknowledged for the first time, be it after it had been taken for lost. */
void quic_rate_on_acked(struct quic_rate *rate, const struct quic_rate_packet *packet, uint64_t now,
                        uint64_t sent_ns, uint64_t pn, uint32_t bytes);
/* The sample of the ACK just processed; the next starts empty. `min_rtt_ns`: nothing is delivered faster. */
struct quic_rate_sample quic_rate_take(struct quic_rate *rate, uint64_t min_rtt_ns);
/* There was room for more and nothing to send. */
void quic_rate_mark_app_limited(struct quic_rate *rate, uint64_t in_flight);

/* Bytes lost since `packet` was sent. */
static inline uint64_t quic_rate_lost_since(const struct quic_rate *rate,
                                            const struct quic_rate_packet *packet) {
    return (uint32_t)rate->lost - packet->lost;
}

#endif
