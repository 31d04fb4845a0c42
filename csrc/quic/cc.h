/* Congestion control: RFC 9002 section 7 behind a table of functions; HyStart++ (RFC 9406) shared by the
 * controllers.
 *
 *   slow start ──(loss, or HyStart++: conservative slow start, then)──▶ congestion avoidance ──loss──▶
 * recovery ▲─────────────────── persistent congestion ───────────────────────────┘
 *
 * A controller owns struct quic_cc alone; it reads no clock and knows no packet: bytes and times are
 * arguments. One that models the path (BBR) has memory of its own beside it, is asked about each loss, and
 * sets the rate at which packets leave; all that is behind `rate`, which for the others is NULL.
 */
#ifndef STOQ_QUIC_CC_H
#define STOQ_QUIC_CC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../tables.h"
#include "rate.h"

#define QUIC_HYSTART_MIN_SAMPLES 8 /* RFC 9406 N_RTT_SAMPLE */

struct quic_cc;
struct quic_bbr; /* bbr.h */

struct quic_cc_ack {
    uint64_t now;
    uint64_t bytes;                     /* Newly acknowledged, in flight until now. */
    uint64_t bytes_in_flight;           /* Before this acknowledgement. */
    uint64_t largest_acked_sent_ns;     /* When the largest newly acknowledged packet was sent. */
    uint64_t largest_acked_pn, next_pn; /* HyStart++ rounds. */
    uint64_t rtt_latest_ns, rtt_smoothed_ns, rtt_min_ns; /* rtt_latest 0: no sample in this ACK. */
    bool app_limited;   /* The window was not in use: do not grow (RFC 9002 section 7.8). */
    uint64_t in_flight; /* Bytes now: without what was acknowledged or found lost. */
};

struct quic_cc_lost {
    uint64_t now, pn, sent_ns;
    const struct quic_rate_packet *at_send;
    uint32_t bytes;
};

struct quic_cc_ops {
    const char *name;
    void (*on_ack)(struct quic_cc *cc, const struct quic_cc_ack *ack);
    /* Loss or CE of packets, the newest of which was sent at `sent_ns`; at most one reduction a round trip.
     * True: reduced. */
    bool (*on_congestion)(struct quic_cc *cc, uint64_t now, uint64_t sent_ns, bool ecn);
    void (*on_persistent_congestion)(struct quic_cc *cc, uint64_t now);
    /* Of controllers with `rate` only. A packet leaves; `in_flight` without it. */
    void (*on_sent)(struct quic_cc *cc, uint64_t now, uint64_t in_flight, uint32_t bytes);
    /* Each packet found lost; on_congestion follows when all were told. */
    void (*on_lost)(struct quic_cc *cc, const struct quic_cc_lost *lost);
    /* A packet that was told as lost has been acknowledged. */
    void (*on_spurious_loss)(struct quic_cc *cc, uint64_t now, uint64_t sent_ns);
};

struct quic_cc {
    const struct quic_cc_ops *ops;
    uint64_t window, ssthresh;  /* Bytes; ssthresh UINT64_MAX before the first reduction. */
    uint64_t recovery_start_ns; /* Packets sent before it do not reduce again; 0: never in recovery. */
    uint32_t mss;               /* max_datagram_size, bytes. */
    uint32_t send_quantum;      /* Bytes that may leave at once; 0: pacing decides. */
    uint64_t pacing_rate;       /* Bytes a second; 0: from the window and the round trip time. */
    struct quic_rate *rate;     /* NULL: wants no delivery-rate samples. */
    struct quic_bbr *bbr;       /* BBR's own state, zeroed by its owner before init. */
    /* HyStart++ */
    struct {
        bool css, done;
        uint8_t css_rounds, samples;
        uint64_t round_end_pn, last_min_ns, current_min_ns, css_baseline_ns;
    } hystart;
    uint64_t avoidance_bytes; /* NewReno: acknowledged bytes not yet turned into growth. */
    struct {
        double k_s, w_max, w_prior, w_est; /* Segments; K in seconds (RFC 9438; w_prior: its cwnd_prior). */
        double carry_bytes;                /* Growth of less than a byte, kept for the next ACK. */
        uint64_t epoch_ns;                 /* 0: no epoch yet */
        uint64_t last_ack_ns;              /* To stop the epoch's clock while the application limits. */
        bool drained;                      /* The last ACK left nothing in flight. */
    } cubic;
};

/* Memory a controller needs beside struct quic_cc, bytes; 0 for most. */
size_t quic_cc_state_bytes(enum stoq_congestion_controller which);
/* `initial_window` in packets (RFC 9002 section 7.2: 10, floored to max(14720, 2 * mss) rules there).
 * `state`: quic_cc_state_bytes of memory, the caller's; NULL when that is 0. */
void quic_cc_init(struct quic_cc *cc, enum stoq_congestion_controller which, uint32_t mss,
                  uint32_t initial_window, void *state);
/* The path's datagram size changed. The window never falls below two datagrams. */
void quic_cc_set_mss(struct quic_cc *cc, uint32_t mss);
/* Shared by the controllers: HyStart++; true when slow start is to end now (window becomes ssthresh). */
bool quic_hystart_on_ack(struct quic_cc *cc, const struct quic_cc_ack *ack, uint64_t *growth);

extern const struct quic_cc_ops quic_cc_newreno;
extern const struct quic_cc_ops quic_cc_cubic;
extern const struct quic_cc_ops quic_cc_bbr;

#endif
