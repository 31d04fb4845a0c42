/* A packet number space, RFC 9000 section 12.3: what was received (and must be acknowledged), what was sent
 * (and must be acknowledged by the peer), the CRYPTO stream of its level, and its keys. */
#ifndef STOQ_QUIC_SPACE_H
#define STOQ_QUIC_SPACE_H

#include <stdbool.h>
#include <stdint.h>

#include "protect.h"
#include "ranges.h"
#include "sent.h"
#include "timer.h"

enum quic_space_id { QUIC_SPACE_INITIAL = 0, QUIC_SPACE_HANDSHAKE = 1, QUIC_SPACE_APP = 2, QUIC_SPACE_COUNT };

#define QUIC_RECEIVED_RANGES                                                                                 \
    256u /* Gaps remembered, to tell duplicates; older numbers are then taken for duplicates. */
#define QUIC_ACK_RANGES 32u /* Ranges in one ACK frame: over 32 gaps in a round trip is a broken path. */
#define QUIC_MAX_CRYPTO_BUFFER                                                                               \
    65536u /* RFC 9000 section 7.5 asks for at least 4096; a long certificate chain needs more. */
#define QUIC_CRYPTO_RANGES 64u

/* CRYPTO stream of one level, both directions (RFC 9000 section 7.5). Buffers come from the host and go with
 * the level. */
struct quic_crypto {
    /* Sending: all bytes ever queued; [0, send_next) were sent at least once. */
    uint8_t *send;
    uint32_t send_cap, send_len, send_next;
    struct quic_ranges acked, lost;
    /* Receiving: bytes [read, read + recv_cap) may be in the buffer, at offset modulo nothing: buffer[0] is
     * offset `read`. */
    uint8_t *recv;
    uint32_t recv_cap;
    uint64_t read; /* Delivered so far. */
    struct quic_ranges received;
};

/* When to acknowledge 1-RTT packets: RFC 9000 section 13.2, or as the peer asked with ACK_FREQUENCY
 * (draft-ietf-quic-ack-frequency section 6). */
struct quic_ack_policy {
    uint64_t max_delay_ns;
    uint32_t threshold; /* Ack-eliciting packets that need no ACK at once: 1 is every second. */
    uint32_t reorder;   /* 1: any packet out of order calls for one; n: a gap of n; 0: none does. */
    uint64_t sequence;  /* Of the next ACK_FREQUENCY to be believed. */
};

struct quic_space {
    /* Receiving. */
    struct quic_ranges received;
    uint64_t duplicate_below; /* Numbers below were forgotten: count as seen. */
    uint64_t largest_received, largest_received_ns;
    uint64_t largest_told;    /* The largest number in an ACK we sent; QUIC_NO_PN: none. */
    uint64_t ack_floor;       /* The peer has our acknowledgement of everything below: not repeated. */
    uint64_t ack_deadline_ns; /* QUIC_NEVER: no ACK is owed. */
    uint32_t ack_eliciting;   /* Ack-eliciting packets since the last ACK we sent. */
    bool ack_now;
    uint64_t ect0, ect1, ce;

    /* Sending. */
    struct quic_sent sent;
    uint64_t largest_acked;              /* QUIC_NO_PN: none */
    uint64_t loss_time_ns;               /* When the next packet becomes lost by time; QUIC_NEVER. */
    uint64_t last_eliciting_ns;          /* When the last ack-eliciting packet was sent. */
    uint64_t eliciting_in_flight;        /* Packets. */
    uint32_t probes;                     /* Probe packets a PTO asked for. */
    uint64_t ecn_peer_ect0, ecn_peer_ce; /* Highest counts the peer reported. */
    uint64_t ecn_sent;                   /* Packets marked ECT(0), on every path. */

    struct quic_keys keys;
    struct quic_crypto crypto;
    bool discarded;
};

/* Stands for every space that was discarded and given back: nothing received, nothing owed, no keys. Never
 * written. */
extern const struct quic_space quic_space_gone;

void quic_space_init(struct quic_space *space, const struct crypto_provider *crypto,
                     const struct quic_host *host);
/* Keys, buffers and rings given back; what was in flight has been taken off by the caller. */
void quic_space_discard(struct quic_space *space, const struct quic_host *host);

/* Was packet `pn` seen before (or is it too old to tell)? */
static inline bool quic_space_seen(const struct quic_space *space, uint64_t pn) {
    if (pn < space->duplicate_below)
        return true;
    /* Nearly always the next number. */
    if (space->received.count && pn >= space->received.v[space->received.count - 1].hi)
        return false;
    return quic_ranges_contains(&space->received, pn);
}

/* Record a packet that was opened and processed. */
void quic_space_received(struct quic_space *space, const struct quic_host *host, uint64_t now, uint64_t pn,
                         bool eliciting, uint8_t ecn, const struct quic_ack_policy *policy);

/* The same for a run of ack-eliciting packets whose numbers the caller has recorded: each the next one. */
void quic_space_received_run(struct quic_space *space, uint64_t now, uint32_t packets, uint8_t ecn,
                             const struct quic_ack_policy *policy);

/* Write an ACK frame of what was received; NULL if nothing fits or nothing was received. `delay_exponent` is
 * ours. Clears what was owed. */
uint8_t *quic_space_put_ack(struct quic_space *space, uint64_t now, uint8_t delay_exponent, bool ecn,
                            uint8_t *p, const uint8_t *end);

/* CRYPTO sending: is there something to (re)send, and the next piece, at most `max` bytes. */
bool quic_crypto_pending(const struct quic_crypto *c);
bool quic_crypto_queue(struct quic_crypto *c, const struct quic_host *host, const uint8_t *data, size_t len);
uint32_t quic_crypto_next(struct quic_crypto *c, const struct quic_host *host, uint32_t max,
                          uint32_t *offset);
void quic_crypto_acked(struct quic_crypto *c, const struct quic_host *host, uint64_t offset, uint32_t len);
void quic_crypto_lost(struct quic_crypto *c, const struct quic_host *host, uint64_t offset, uint32_t len);
/* Send everything again from the start (Retry, version negotiation). */
void quic_crypto_restart(struct quic_crypto *c, const struct quic_host *host);
/* Give back buffers whose bytes are all acknowledged (nothing is in flight) or all read. */
void quic_crypto_rest(struct quic_crypto *c, const struct quic_host *host);
/* CRYPTO receiving: 0 or a transport error. */
int quic_crypto_receive(struct quic_crypto *c, const struct quic_host *host, uint64_t offset,
                        const uint8_t *data, size_t len);
/* Bytes in order and not yet delivered; `quic_crypto_consume` takes them. */
uint32_t quic_crypto_readable(const struct quic_crypto *c);
void quic_crypto_consume(struct quic_crypto *c, const struct quic_host *host, uint32_t n);

#endif
