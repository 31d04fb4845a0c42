/* Sent packets of one packet number space (RFC 9002 Appendix A.1), in two rings.
 *
 *   packets: slot = packet number & mask, for numbers base .. next-1
 *   frames:  a log; a packet's records are consecutive, so a packet needs only where they begin and how many
 *
 *        base                     next                      frames_base                    frames_next
 *   ──────┬──┬──┬──┬──┬──┬──┬──┬───                     ───────┬────┬────┬────┬────┬────┬────
 *         │A │L │O │A │O │O │O │                               │ f  │ f  │ f  │ f  │ f  │
 *
 * Both rings grow by doubling when full (memory from the host; amortised to nothing in steady state) up to a
 * limit. The oldest slots are released as soon as nothing there is outstanding. No list, no allocation and no
 * lookup per packet. For a congestion controller that measures delivery rates a third ring runs beside the
 * packets, slot for slot.
 */
#ifndef STOQ_QUIC_SENT_H
#define STOQ_QUIC_SENT_H

#include <stdbool.h>
#include <stdint.h>

#include "frame.h"
#include "rate.h"

struct quic_host;

#define QUIC_SENT_MIN   32u        /* First allocation: a handshake's worth. */
#define QUIC_SENT_LIMIT (1u << 20) /* Packets tracked at most: 40 Gbit/s * 250 ms of 1350-byte packets. */

enum quic_sent_state { QUIC_SENT_EMPTY = 0, QUIC_SENT_OUT, QUIC_SENT_ACKED, QUIC_SENT_LOST };

#define QUIC_SENT_ELICITING 0x01u
#define QUIC_SENT_IN_FLIGHT 0x02u
#define QUIC_SENT_MTU_PROBE 0x04u
#define QUIC_SENT_ECT       0x08u
#define QUIC_SENT_OLD_PATH                                                                                   \
    0x10u /* Sent before a migration: no part in congestion control or RTT any more.                         \
           */

struct quic_sent_packet {
    uint64_t time_ns;
    uint32_t frames; /* Log position of the first record. */
    uint16_t bytes;  /* On the wire. */
    uint8_t frame_count;
    uint8_t state : 2; /* enum quic_sent_state */
    uint8_t flags : 6;
};

/* What must happen when the packet is acknowledged or lost. */
struct quic_sent_frame {
    uint64_t a; /* Stream id; sequence; for ACK the largest packet number it acknowledged. */
    uint64_t b; /* Offset or value. */
    uint32_t len;
    uint8_t type; /* enum quic_frame_type; STREAM without flag bits. */
    bool fin;
};

struct quic_sent {
    struct quic_sent_packet *packets;
    struct quic_sent_frame *frames;
    struct quic_rate_packet *rates; /* As many as `packets`, if `with_rates`. */
    bool with_rates;
    uint32_t packet_mask, frame_mask; /* 0 while not allocated */
    uint32_t frames_base, frames_next;
    uint64_t base, next; /* Packet numbers; next is the next to send. */
};

void quic_sent_free(struct quic_sent *sent, const struct quic_host *host);
/* Room for one more packet with up to `frames` records? Grows if need be. */
bool quic_sent_reserve(struct quic_sent *sent, const struct quic_host *host, uint32_t frames);
/* Room for `packets` more packets of one record each? */
bool quic_sent_reserve_many(struct quic_sent *sent, const struct quic_host *host, uint32_t packets);

static inline struct quic_sent_packet *quic_sent_at(const struct quic_sent *sent, uint64_t pn) {
    return &sent->packets[pn & sent->packet_mask];
}

static inline struct quic_sent_frame *quic_sent_frame_at(const struct quic_sent *sent, uint32_t position) {
    return &sent->frames[position & sent->frame_mask];
}

static inline struct quic_rate_packet *quic_sent_rate_at(const struct quic_sent *sent, uint64_t pn) {
    return &sent->rates[pn & sent->packet_mask];
}

/* Append a record for the packet being built (pn == sent->next). quic_sent_reserve came first. */
static inline struct quic_sent_frame *quic_sent_log(struct quic_sent *sent, uint64_t type) {
    struct quic_sent_frame *f = quic_sent_frame_at(sent, sent->frames_next++);
    *f = (struct quic_sent_frame){.type = (uint8_t)type};
    return f;
}

/* Release acknowledged packets, and lost ones sent before `lost_before_ns`, from the old end. */
void quic_sent_trim(struct quic_sent *sent, uint64_t lost_before_ns);

#endif
