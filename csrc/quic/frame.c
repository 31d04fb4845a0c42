/* Frames: RFC 9000 section 19, RFC 9221, draft-ietf-quic-ack-frequency. The parser copies nothing and keeps
 * nothing; what it returns points into the packet. STREAM and ACK, which are nearly all frames of a busy
 * connection, come first.
 */
#include "frame.h"

#include <string.h>

#define MAX_STREAMS (UINT64_C(1) << 60) /* Section 4.6: a larger count has ids past 2^62 - 1. */

/* Which packets may carry a frame type: RFC 9000 section 12.4, Table 3, one bit per enum quic_packet_type.
 * 0: the type is unknown. RETIRE_CONNECTION_ID is refused in 0-RTT as section 12.5 permits: a client that
 * sends 0-RTT has not been given an id it could retire. */
#define I (1u << QUIC_PACKET_INITIAL)
#define H (1u << QUIC_PACKET_HANDSHAKE)
#define Z (1u << QUIC_PACKET_ZERO_RTT)
#define O (1u << QUIC_PACKET_ONE_RTT)
static const uint8_t carriers[] = {
    [QUIC_FRAME_PADDING] = I | H | Z | O,
    [QUIC_FRAME_PING] = I | H | Z | O,
    [QUIC_FRAME_ACK] = I | H | O,
    [QUIC_FRAME_ACK_ECN] = I | H | O,
    [QUIC_FRAME_RESET_STREAM] = Z | O,
    [QUIC_FRAME_STOP_SENDING] = Z | O,
    [QUIC_FRAME_CRYPTO] = I | H | O,
    [QUIC_FRAME_NEW_TOKEN] = O,
    [QUIC_FRAME_STREAM] = Z | O,
    [QUIC_FRAME_STREAM + 1] = Z | O,
    [QUIC_FRAME_STREAM + 2] = Z | O,
    [QUIC_FRAME_STREAM + 3] = Z | O,
    [QUIC_FRAME_STREAM + 4] = Z | O,
    [QUIC_FRAME_STREAM + 5] = Z | O,
    [QUIC_FRAME_STREAM + 6] = Z | O,
    [QUIC_FRAME_STREAM + 7] = Z | O,
    [QUIC_FRAME_MAX_DATA] = Z | O,
    [QUIC_FRAME_MAX_STREAM_DATA] = Z | O,
    [QUIC_FRAME_MAX_STREAMS_BIDI] = Z | O,
    [QUIC_FRAME_MAX_STREAMS_UNI] = Z | O,
    [QUIC_FRAME_DATA_BLOCKED] = Z | O,
    [QUIC_FRAME_STREAM_DATA_BLOCKED] = Z | O,
    [QUIC_FRAME_STREAMS_BLOCKED_BIDI] = Z | O,
    [QUIC_FRAME_STREAMS_BLOCKED_UNI] = Z | O,
    [QUIC_FRAME_NEW_CONNECTION_ID] = Z | O,
    [QUIC_FRAME_RETIRE_CONNECTION_ID] = O,
    [QUIC_FRAME_PATH_CHALLENGE] = Z | O,
    [QUIC_FRAME_PATH_RESPONSE] = O,
    [QUIC_FRAME_CONNECTION_CLOSE] = I | H | Z | O,
    [QUIC_FRAME_CONNECTION_CLOSE_APP] = Z | O,
    [QUIC_FRAME_HANDSHAKE_DONE] = O,
    [QUIC_FRAME_IMMEDIATE_ACK] = Z | O,
    [QUIC_FRAME_DATAGRAM] = Z | O,
    [QUIC_FRAME_DATAGRAM + 1] = Z | O,
};
#undef I
#undef H
#undef Z
#undef O

/* quic_read_varint without a branch on the length, which in a run of frames no predictor can guess. Only the
 * last seven bytes of a packet take the checked way. */
static inline bool take(struct quic_reader *r, uint64_t *out) {
    if (__builtin_expect(quic_left(r) < 8, 0))
        return quic_read_varint(r, out);
    unsigned n = 1u << (*r->p >> 6);
    *out = (quic_load64(r->p) & QUIC_VARINT_MAX) >> (64 - 8 * n);
    r->p += n;
    return true;
}

/* A length and as many bytes. */
static inline bool take_counted(struct quic_reader *r, struct quic_frame *f) {
    uint64_t n;
    if (!take(r, &n) || n > quic_left(r))
        return false;
    f->data = r->p;
    f->len = (size_t)n;
    r->p += n;
    return true;
}

static inline bool take_rest(struct quic_reader *r, struct quic_frame *f) {
    f->data = r->p;
    f->len = quic_left(r);
    r->p = r->end;
    return true;
}

static inline bool parse_stream(struct quic_reader *r, uint8_t type, struct quic_frame *f) {
    f->fin = type & QUIC_STREAM_FIN;
    f->offset = 0;
    if (!take(r, &f->stream_id))
        return false;
    if (type & QUIC_STREAM_OFF && !take(r, &f->offset))
        return false;
    if (!(type & QUIC_STREAM_LEN ? take_counted(r, f) : take_rest(r, f)))
        return false;
    return f->offset + f->len <= QUIC_VARINT_MAX;
}

static inline bool parse_ack(struct quic_reader *r, uint8_t type, struct quic_frame *f) {
    if (!take(r, &f->largest_acked) || !take(r, &f->ack_delay) || !take(r, &f->ack_range_count) ||
        !take(r, &f->first_ack_range) || f->first_ack_range > f->largest_acked)
        return false;
    f->ack_ranges.p = r->p;
    uint64_t smallest = f->largest_acked - f->first_ack_range;
    for (uint64_t left = f->ack_range_count; left > 0; left--) { /* At least two bytes a turn: bounded. */
        uint64_t gap, len;
        if (!take(r, &gap) || !take(r, &len))
            return false;
        /* Section 19.3.1: the next range ends at smallest - gap - 2. No sum here can pass 2^63. */
        if (gap + 2 + len > smallest)
            return false;
        smallest -= gap + 2 + len;
    }
    f->ack_ranges.end = r->p;
    f->ect0 = f->ect1 = f->ce = 0;
    return type == QUIC_FRAME_ACK || (take(r, &f->ect0) && take(r, &f->ect1) && take(r, &f->ce));
}

static bool parse_padding(struct quic_reader *r, struct quic_frame *f) {
    const uint8_t *p = r->p;
    while (r->end - p >= 8) { /* An Initial has some thousand bytes of it. */
        uint64_t eight;
        memcpy(&eight, p, 8);
        if (eight != 0)
            break;
        p += 8;
    }
    while (p < r->end && *p == 0)
        p++;
    f->len = 1 + (size_t)(p - r->p); /* One was the type itself. */
    r->p = p;
    return true;
}

static bool parse_new_connection_id(struct quic_reader *r, struct quic_frame *f) {
    const uint8_t *len, *id;
    if (!take(r, &f->sequence) || !take(r, &f->retire_prior_to) || f->retire_prior_to > f->sequence ||
        !quic_read_bytes(r, &len, 1) || *len == 0 || *len > QUIC_MAX_CID_BYTES ||
        !quic_read_bytes(r, &id, *len) || !quic_read_bytes(r, &f->reset_token, QUIC_RESET_TOKEN_BYTES))
        return false;
    f->cid.len = *len;
    memcpy(f->cid.id, id, *len);
    return true;
}

static bool parse_path(struct quic_reader *r, struct quic_frame *f) {
    f->len = 8;
    return quic_read_bytes(r, &f->data, 8);
}

/* All types but STREAM and ACK. */
static bool parse_other(struct quic_reader *r, uint8_t type, struct quic_frame *f) {
    switch (type) {
    case QUIC_FRAME_PADDING:
        return parse_padding(r, f);
    case QUIC_FRAME_PING:
    case QUIC_FRAME_HANDSHAKE_DONE:
    case QUIC_FRAME_IMMEDIATE_ACK:
        return true;
    case QUIC_FRAME_RESET_STREAM:
        return take(r, &f->stream_id) && take(r, &f->code) && take(r, &f->value);
    case QUIC_FRAME_STOP_SENDING:
        return take(r, &f->stream_id) && take(r, &f->code);
    case QUIC_FRAME_CRYPTO:
        return take(r, &f->offset) && take_counted(r, f) && f->offset + f->len <= QUIC_VARINT_MAX;
    case QUIC_FRAME_NEW_TOKEN:
        return take_counted(r, f) && f->len > 0;
    case QUIC_FRAME_MAX_STREAM_DATA:
    case QUIC_FRAME_STREAM_DATA_BLOCKED:
        return take(r, &f->stream_id) && take(r, &f->value);
    case QUIC_FRAME_MAX_STREAMS_BIDI:
    case QUIC_FRAME_MAX_STREAMS_UNI:
    case QUIC_FRAME_STREAMS_BLOCKED_BIDI:
    case QUIC_FRAME_STREAMS_BLOCKED_UNI:
        return take(r, &f->value) && f->value <= MAX_STREAMS;
    case QUIC_FRAME_MAX_DATA:
    case QUIC_FRAME_DATA_BLOCKED:
    case QUIC_FRAME_RETIRE_CONNECTION_ID:
        return take(r, &f->value);
    case QUIC_FRAME_NEW_CONNECTION_ID:
        return parse_new_connection_id(r, f);
    case QUIC_FRAME_PATH_CHALLENGE:
    case QUIC_FRAME_PATH_RESPONSE:
        return parse_path(r, f);
    case QUIC_FRAME_CONNECTION_CLOSE:
        return take(r, &f->code) && take(r, &f->close_frame_type) && take_counted(r, f);
    case QUIC_FRAME_CONNECTION_CLOSE_APP:
        f->close_frame_type = 0; /* This kind has none. */
        return take(r, &f->code) && take_counted(r, f);
    case QUIC_FRAME_DATAGRAM:
        return take_rest(r, f);
    default: /* DATAGRAM with a length: the table of carriers has no other. */
        return take_counted(r, f);
    }
}

/* The type is not one of those that we know in one byte: ACK_FREQUENCY has two; else, which error is it? */
static int parse_long_type(struct quic_reader *r, enum quic_packet_type packet, struct quic_frame *out) {
    struct quic_reader rest = *r;
    out->type = 0; /* Section 19.19: 0 when the type is not known. */
    if (!quic_read_varint(&rest, &out->type))
        return QUIC_FRAME_ENCODING_ERROR;
    bool wanted = out->type == QUIC_FRAME_ACK_FREQUENCY;
    bool known = wanted || (out->type < sizeof carriers && carriers[out->type] != 0);
    /* Section 12.4: a type that is known must be in its shortest encoding. */
    if (!known || (size_t)(rest.p - r->p) != quic_varint_size(out->type))
        return known ? QUIC_PROTOCOL_VIOLATION : QUIC_FRAME_ENCODING_ERROR;
    if (packet != QUIC_PACKET_ZERO_RTT && packet != QUIC_PACKET_ONE_RTT)
        return QUIC_PROTOCOL_VIOLATION;
    bool ok = take(&rest, &out->sequence) && take(&rest, &out->ack_threshold) &&
              take(&rest, &out->ack_max_delay_us) && take(&rest, &out->ack_reorder);
    r->p = rest.p;
    return ok ? 0 : QUIC_FRAME_ENCODING_ERROR;
}

int quic_frame_parse(struct quic_reader *r, enum quic_packet_type packet, struct quic_frame *out) {
    if (__builtin_expect(r->p == r->end || *r->p >= sizeof carriers || carriers[*r->p] == 0, 0))
        return parse_long_type(r, packet, out);
    uint8_t type = *r->p;
    struct quic_reader rest = {r->p + 1, r->end};
    bool stream = (type & 0xf8) == QUIC_FRAME_STREAM;
    out->type = stream ? QUIC_FRAME_STREAM : type == QUIC_FRAME_DATAGRAM + 1 ? QUIC_FRAME_DATAGRAM : type;
    if (__builtin_expect(!(carriers[type] >> packet & 1), 0))
        return QUIC_PROTOCOL_VIOLATION;
    bool ok;
    if (stream)
        ok = parse_stream(&rest, type, out);
    else if (type == QUIC_FRAME_ACK || type == QUIC_FRAME_ACK_ECN)
        ok = parse_ack(&rest, type, out);
    else
        ok = parse_other(&rest, type, out);
    r->p = rest.p;
    return ok ? 0 : QUIC_FRAME_ENCODING_ERROR;
}

void quic_ack_begin(struct quic_ack_iter *it, const struct quic_frame *ack) {
    it->r = ack->ack_ranges;
    it->left = ack->ack_range_count;
    it->hi = ack->largest_acked;
    it->lo = ack->largest_acked - ack->first_ack_range;
}

bool quic_ack_next(struct quic_ack_iter *it) {
    uint64_t gap, len;
    if (it->left == 0 || !take(&it->r, &gap) || !take(&it->r, &len))
        return false;
    it->left--;
    it->hi = it->lo - gap - 2;
    it->lo = it->hi - len;
    return true;
}

static bool fits(const uint8_t *p, const uint8_t *end, size_t n) {
    return (size_t)(end - p) >= n;
}

uint8_t *quic_put_frame1(uint8_t *p, const uint8_t *end, uint64_t type, uint64_t a) {
    if (!fits(p, end, quic_varint_size(type) + quic_varint_size(a)))
        return NULL;
    return quic_put_varint(quic_put_varint(p, type), a);
}

uint8_t *quic_put_frame2(uint8_t *p, const uint8_t *end, uint64_t type, uint64_t a, uint64_t b) {
    if (!fits(p, end, quic_varint_size(type) + quic_varint_size(a) + quic_varint_size(b)))
        return NULL;
    return quic_put_varint(quic_put_varint(quic_put_varint(p, type), a), b);
}

uint8_t *quic_put_frame3(uint8_t *p, const uint8_t *end, uint64_t type, uint64_t a, uint64_t b, uint64_t c) {
    size_t n = quic_varint_size(type) + quic_varint_size(a) + quic_varint_size(b) + quic_varint_size(c);
    if (!fits(p, end, n))
        return NULL;
    return quic_put_varint(quic_put_varint(quic_put_varint(quic_put_varint(p, type), a), b), c);
}

uint8_t *quic_put_ack_frequency(uint8_t *p, const uint8_t *end, uint64_t sequence, uint64_t threshold,
                                uint64_t max_delay_us, uint64_t reorder) {
    const uint64_t v[] = {QUIC_FRAME_ACK_FREQUENCY, sequence, threshold, max_delay_us, reorder};
    size_t n = 0;
    for (unsigned i = 0; i < 5; i++)
        n += quic_varint_size(v[i]);
    if (!fits(p, end, n))
        return NULL;
    for (unsigned i = 0; i < 5; i++)
        p = quic_put_varint(p, v[i]);
    return p;
}

uint8_t *quic_put_path_frame(uint8_t *p, const uint8_t *end, uint64_t type, const uint8_t data[8]) {
    if (!fits(p, end, quic_varint_size(type) + 8))
        return NULL;
    p = quic_put_varint(p, type);
    memcpy(p, data, 8);
    return p + 8;
}

uint8_t *quic_put_new_connection_id(uint8_t *p, const uint8_t *end, uint64_t sequence,
                                    uint64_t retire_prior_to, const struct quic_cid *cid,
                                    const uint8_t token[QUIC_RESET_TOKEN_BYTES]) {
    size_t n = 1 + quic_varint_size(sequence) + quic_varint_size(retire_prior_to) + 1 + cid->len +
               QUIC_RESET_TOKEN_BYTES;
    if (!fits(p, end, n))
        return NULL;
    *p++ = QUIC_FRAME_NEW_CONNECTION_ID;
    p = quic_put_varint(quic_put_varint(p, sequence), retire_prior_to);
    *p++ = cid->len;
    memcpy(p, cid->id, cid->len);
    p += cid->len;
    memcpy(p, token, QUIC_RESET_TOKEN_BYTES);
    return p + QUIC_RESET_TOKEN_BYTES;
}

uint8_t *quic_put_new_token(uint8_t *p, const uint8_t *end, const uint8_t *token, size_t len) {
    if (!fits(p, end, 1 + quic_varint_size(len) + len))
        return NULL;
    *p++ = QUIC_FRAME_NEW_TOKEN;
    p = quic_put_varint(p, len);
    memcpy(p, token, len);
    return p + len;
}

uint8_t *quic_put_close(uint8_t *p, const uint8_t *end, bool app, uint64_t code, uint64_t frame_type,
                        const char *reason, size_t reason_len) {
    size_t head = 1 + quic_varint_size(code) + (app ? 0 : quic_varint_size(frame_type));
    if (!fits(p, end, head + 1))
        return NULL;
    size_t room = (size_t)(end - p) - head;
    size_t keep = reason_len < room ? reason_len : room;
    while (keep > 0 && quic_varint_size(keep) + keep > room)
        keep--;
    /* The reason is UTF-8: a cut must not leave part of a character. */
    while (keep > 0 && keep < reason_len && ((uint8_t)reason[keep] & 0xc0) == 0x80)
        keep--;
    *p++ = app ? QUIC_FRAME_CONNECTION_CLOSE_APP : QUIC_FRAME_CONNECTION_CLOSE;
    p = quic_put_varint(p, code);
    if (!app)
        p = quic_put_varint(p, frame_type);
    p = quic_put_varint(p, keep);
    if (keep > 0)
        memcpy(p, reason, keep);
    return p + keep;
}
