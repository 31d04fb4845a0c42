/* Frames: RFC 9000 section 19, RFC 9221, draft-ietf-quic-ack-frequency. One parser for every frame type;
 * writers for those with several fields. */
#ifndef STOQ_QUIC_FRAME_H
#define STOQ_QUIC_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "packet.h"
#include "varint.h"

enum quic_frame_type {
    QUIC_FRAME_PADDING = 0x00,
    QUIC_FRAME_PING = 0x01,
    QUIC_FRAME_ACK = 0x02,
    QUIC_FRAME_ACK_ECN = 0x03,
    QUIC_FRAME_RESET_STREAM = 0x04,
    QUIC_FRAME_STOP_SENDING = 0x05,
    QUIC_FRAME_CRYPTO = 0x06,
    QUIC_FRAME_NEW_TOKEN = 0x07,
    QUIC_FRAME_STREAM = 0x08, /* to 0x0f */
    QUIC_FRAME_MAX_DATA = 0x10,
    QUIC_FRAME_MAX_STREAM_DATA = 0x11,
    QUIC_FRAME_MAX_STREAMS_BIDI = 0x12,
    QUIC_FRAME_MAX_STREAMS_UNI = 0x13,
    QUIC_FRAME_DATA_BLOCKED = 0x14,
    QUIC_FRAME_STREAM_DATA_BLOCKED = 0x15,
    QUIC_FRAME_STREAMS_BLOCKED_BIDI = 0x16,
    QUIC_FRAME_STREAMS_BLOCKED_UNI = 0x17,
    QUIC_FRAME_NEW_CONNECTION_ID = 0x18,
    QUIC_FRAME_RETIRE_CONNECTION_ID = 0x19,
    QUIC_FRAME_PATH_CHALLENGE = 0x1a,
    QUIC_FRAME_PATH_RESPONSE = 0x1b,
    QUIC_FRAME_CONNECTION_CLOSE = 0x1c,
    QUIC_FRAME_CONNECTION_CLOSE_APP = 0x1d,
    QUIC_FRAME_HANDSHAKE_DONE = 0x1e,
    QUIC_FRAME_IMMEDIATE_ACK = 0x1f,
    QUIC_FRAME_DATAGRAM = 0x30, /* and 0x31 with length */
    QUIC_FRAME_ACK_FREQUENCY = 0xaf,
};

#define QUIC_STREAM_FIN 0x01
#define QUIC_STREAM_LEN 0x02
#define QUIC_STREAM_OFF 0x04

/* One parsed frame. Only the members of its type are set. Data points into the packet. */
struct quic_frame {
    uint64_t type; /* As on the wire; all STREAM types as QUIC_FRAME_STREAM, DATAGRAM as 0x30. */
    bool fin;
    uint64_t stream_id; /* Also of RESET_STREAM, STOP_SENDING, MAX_STREAM_DATA, STREAM_DATA_BLOCKED. */
    uint64_t offset;    /* STREAM, CRYPTO */
    uint64_t value;     /* MAX_*, *_BLOCKED limits; RESET_STREAM final size; RETIRE_CONNECTION_ID sequence. */
    uint64_t code;      /* RESET_STREAM, STOP_SENDING, CONNECTION_CLOSE */
    const uint8_t *data; /* STREAM, CRYPTO, NEW_TOKEN, DATAGRAM, close reason, 8 bytes of PATH_*. */
    size_t len;          /* PADDING: how many bytes of it. */
    /* ACK: */
    uint64_t largest_acked, ack_delay, ack_range_count, first_ack_range;
    struct quic_reader ack_ranges; /* The encoded gap/length pairs, checked by the parser to be valid. */
    uint64_t ect0, ect1, ce;
    /* NEW_CONNECTION_ID: */
    uint64_t sequence, retire_prior_to;
    struct quic_cid cid;
    const uint8_t *reset_token;
    uint64_t close_frame_type; /* CONNECTION_CLOSE 0x1c */
    /* ACK_FREQUENCY, with `sequence`: packets that need no ACK at once, at most how long one may be put off,
     * and how far out of order calls for one (0: never). */
    uint64_t ack_threshold, ack_max_delay_us, ack_reorder;
};

/* Parse the next frame. Returns 0, or the QUIC transport error (enum quic_transport_error) the RFC demands:
 * FRAME_ENCODING_ERROR for what does not parse (unknown type, non-shortest type encoding is
 * PROTOCOL_VIOLATION, NEW_CONNECTION_ID with id length 0 or over 20 or retire_prior_to > sequence, stream
 * offset + length over 2^62-1, MAX_STREAMS over 2^60, empty NEW_TOKEN, ACK ranges below zero),
 * PROTOCOL_VIOLATION for a frame that this packet type may not carry (section 12.4, Table 3). `out->type` is
 * set in either case, for the close frame. */
int quic_frame_parse(struct quic_reader *r, enum quic_packet_type packet, struct quic_frame *out);

/* Steps through an ACK frame's ranges from the largest: call first with *started = false. False: no more. The
 * parser has checked them all, so this cannot fail. */
struct quic_ack_iter {
    struct quic_reader r;
    uint64_t left, lo, hi; /* Ranges left; the present range, both ends inclusive. */
};
void quic_ack_begin(struct quic_ack_iter *it, const struct quic_frame *ack); /* lo..hi is the first range. */
bool quic_ack_next(struct quic_ack_iter *it);

static inline bool quic_frame_ack_eliciting(uint64_t type) {
    return type != QUIC_FRAME_PADDING && type != QUIC_FRAME_ACK && type != QUIC_FRAME_ACK_ECN &&
           type != QUIC_FRAME_CONNECTION_CLOSE && type != QUIC_FRAME_CONNECTION_CLOSE_APP;
}

/* RFC 9000 section 9.1: PATH_CHALLENGE, PATH_RESPONSE, NEW_CONNECTION_ID and PADDING are probing frames. */
static inline bool quic_frame_probing(uint64_t type) {
    return type == QUIC_FRAME_PADDING || type == QUIC_FRAME_PATH_CHALLENGE ||
           type == QUIC_FRAME_PATH_RESPONSE || type == QUIC_FRAME_NEW_CONNECTION_ID;
}

/* Writers: return the new end, or NULL when the frame does not fit before `end`. */
uint8_t *quic_put_frame1(uint8_t *p, const uint8_t *end, uint64_t type, uint64_t a);
uint8_t *quic_put_frame2(uint8_t *p, const uint8_t *end, uint64_t type, uint64_t a, uint64_t b);
uint8_t *quic_put_frame3(uint8_t *p, const uint8_t *end, uint64_t type, uint64_t a, uint64_t b, uint64_t c);
/* Four values: ACK_FREQUENCY alone. */
uint8_t *quic_put_ack_frequency(uint8_t *p, const uint8_t *end, uint64_t sequence, uint64_t threshold,
                                uint64_t max_delay_us, uint64_t reorder);
uint8_t *quic_put_path_frame(uint8_t *p, const uint8_t *end, uint64_t type, const uint8_t data[8]);
uint8_t *quic_put_new_connection_id(uint8_t *p, const uint8_t *end, uint64_t sequence,
                                    uint64_t retire_prior_to, const struct quic_cid *cid,
                                    const uint8_t token[QUIC_RESET_TOKEN_BYTES]);
uint8_t *quic_put_new_token(uint8_t *p, const uint8_t *end, const uint8_t *token, size_t len);
/* frame_type is written for the transport kind (app false) only; the reason is cut to what fits. */
uint8_t *quic_put_close(uint8_t *p, const uint8_t *end, bool app, uint64_t code, uint64_t frame_type,
                        const char *reason, size_t reason_len);

#endif
