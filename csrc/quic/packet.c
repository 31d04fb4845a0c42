/* Packet headers and packet numbers: RFC 9000 section 17 and Appendix A, RFC 8999 (invariants), and the
 * stateless packets: Version Negotiation, Retry, stateless reset. Owns nothing, keeps nothing; header
 * protection and payloads are the caller's.
 */
#include "packet.h"

#include <string.h>

#include "varint.h"

#define FORM_LONG  0x80
#define FIXED_BIT  0x40
#define TYPE_SHIFT 4 /* Long header packet type: two bits, section 17.2. */

/* First byte, version, one length byte for each connection id: nothing with a long header is shorter. */
#define LONG_HEADER_MIN_BYTES 7

/* What header protection needs from the packet number's offset on: the longest packet number, then the
 * sample (RFC 9001 section 5.4.2). */
#define PROTECTED_MIN_BYTES (4 + CRYPTO_SAMPLE_BYTES)

/* Largest Retry that is built or believed. Its token has to come back in one Initial, which is never larger
 * than a datagram of an ordinary path (1452 bytes), so a longer token could not be used in any case. */
#define RETRY_MAX_BYTES 1500

static quic_parse_result parse_short(uint8_t *data, size_t len, size_t dcid_len, struct quic_header *out) {
    if (!(data[0] & FIXED_BIT))
        return quic_parse_drop(STOQ_DROP_FIXED_BIT);
    if (len < 1 + dcid_len + PROTECTED_MIN_BYTES)
        return quic_parse_drop(STOQ_DROP_SHORT);
    out->type = QUIC_PACKET_ONE_RTT;
    out->version = 0; /* Not in the packet. */
    out->dcid = data + 1;
    out->dcid_len = (uint8_t)dcid_len;
    out->scid = NULL;
    out->scid_len = 0;
    out->token = NULL;
    out->token_len = 0;
    out->len = len;
    out->pn_offset = 1 + dcid_len;
    return QUIC_PARSE_OK;
}

/* After the ids of a packet of version 1. */
static quic_parse_result parse_v1(struct quic_reader r, struct quic_header *out) {
    out->type = (enum quic_packet_type)(out->first >> TYPE_SHIFT & 3);
    if (out->type == QUIC_PACKET_RETRY) {
        /* Section 17.2.5.2: a Retry without a token is discarded. */
        if (quic_left(&r) <= CRYPTO_TAG_BYTES)
            return quic_parse_drop(STOQ_DROP_RETRY);
        out->token = r.p;
        out->token_len = quic_left(&r) - CRYPTO_TAG_BYTES;
        out->pn_offset = 0;
        return QUIC_PARSE_OK;
    }
    uint64_t n;
    if (out->type == QUIC_PACKET_INITIAL) {
        if (!quic_read_varint(&r, &n) || n > quic_left(&r))
            return quic_parse_drop(STOQ_DROP_HEADER);
        out->token = r.p;
        out->token_len = (size_t)n;
        r.p += n;
    }
    if (!quic_read_varint(&r, &n) || n > quic_left(&r))
        return quic_parse_drop(STOQ_DROP_HEADER);
    if (n < PROTECTED_MIN_BYTES)
        return quic_parse_drop(STOQ_DROP_SHORT);
    out->pn_offset = (size_t)(r.p - out->packet);
    out->len = out->pn_offset + (size_t)n;
    return QUIC_PARSE_OK;
}

quic_parse_result quic_packet_parse(uint8_t *data, size_t len, size_t short_dcid_len,
                                    struct quic_header *out) {
    if (len == 0)
        return quic_parse_drop(STOQ_DROP_SHORT);
    out->first = data[0];
    out->packet = data;
    if (!(data[0] & FORM_LONG))
        return parse_short(data, len, short_dcid_len, out);

    if (len < LONG_HEADER_MIN_BYTES)
        return quic_parse_drop(STOQ_DROP_SHORT);
    out->version = quic_load32(data + 1);
    bool v1 = out->version == QUIC_VERSION_1;
    if (v1 && !(data[0] & FIXED_BIT))
        return quic_parse_drop(STOQ_DROP_FIXED_BIT);
    struct quic_reader r = {data + 5, data + len};

    out->dcid_len = *r.p++;
    if (v1 && out->dcid_len > QUIC_MAX_CID_BYTES)
        return quic_parse_drop(STOQ_DROP_CID_LENGTH);
    if (quic_left(&r) < (size_t)out->dcid_len + 1) /* And the next id's length. */
        return quic_parse_drop(STOQ_DROP_HEADER);
    out->dcid = r.p;
    r.p += out->dcid_len;

    out->scid_len = *r.p++;
    if (v1 && out->scid_len > QUIC_MAX_CID_BYTES)
        return quic_parse_drop(STOQ_DROP_CID_LENGTH);
    if (quic_left(&r) < out->scid_len)
        return quic_parse_drop(STOQ_DROP_HEADER);
    out->scid = r.p;
    r.p += out->scid_len;

    out->token = NULL;
    out->token_len = 0;
    out->len = len;
    if (v1)
        return parse_v1(r, out);

    out->pn_offset = 0;
    if (out->version != 0) {
        out->type = QUIC_PACKET_UNKNOWN_VERSION;
        return QUIC_PARSE_OK;
    }
    out->type = QUIC_PACKET_VERSION_NEGOTIATION;
    out->token = r.p;
    out->token_len = quic_left(&r);
    return out->token_len >= 4 && out->token_len % 4 == 0 ? QUIC_PARSE_OK : quic_parse_drop(STOQ_DROP_HEADER);
}

uint64_t quic_pn_decode(uint64_t largest_received, uint64_t truncated, unsigned bytes) {
    uint64_t expected = largest_received + 1; /* QUIC_NO_PN wraps to 0: the first packet number. */
    uint64_t window = UINT64_C(1) << (8 * bytes);
    uint64_t candidate = (expected & ~(window - 1)) | truncated;
    /* Sums instead of the RFC's differences, so that nothing falls below zero. */
    if (candidate + window / 2 <= expected && candidate < QUIC_VARINT_MAX + 1 - window)
        return candidate + window;
    if (candidate > expected + window / 2 && candidate >= window)
        return candidate - window;
    return candidate;
}

static uint8_t *put_cid(uint8_t *p, const uint8_t *id, size_t len) {
    *p++ = (uint8_t)len;
    if (len > 0)
        memcpy(p, id, len);
    return p + len;
}

uint8_t *quic_put_long_header(uint8_t *p, enum quic_packet_type type, uint32_t version,
                              const struct quic_cid *dcid, const struct quic_cid *scid) {
    *p = (uint8_t)(FORM_LONG | FIXED_BIT | (unsigned)type << TYPE_SHIFT);
    quic_store32(p + 1, version);
    return put_cid(put_cid(p + 5, dcid->id, dcid->len), scid->id, scid->len);
}

size_t quic_put_version_negotiation(uint8_t *out, size_t cap, const uint8_t *dcid, size_t dcid_len,
                                    const uint8_t *scid, size_t scid_len, uint8_t unused_bits) {
    /* Version 1 alone: a reserved version beside it (section 6.3) could be the very one the client tried,
     * and a client discards a list that names it (section 6.2). */
    size_t len = LONG_HEADER_MIN_BYTES + dcid_len + scid_len + 4;
    if (dcid_len > UINT8_MAX || scid_len > UINT8_MAX || cap < len)
        return 0;
    /* Section 17.2.1: 0x40 should be set, so that the packet can be told from other protocols'. */
    out[0] = FORM_LONG | FIXED_BIT | unused_bits;
    quic_store32(out + 1, 0);
    uint8_t *p = put_cid(put_cid(out + 5, dcid, dcid_len), scid, scid_len);
    quic_store32(p, QUIC_VERSION_1);
    return len;
}

/* The tag over the Retry pseudo-packet: the client's first destination id, then the Retry without its tag. */
static bool retry_tag(const struct quic_cid *original_dcid, const uint8_t *retry, size_t len_without_tag,
                      uint8_t tag[CRYPTO_TAG_BYTES]) {
    uint8_t pseudo[1 + QUIC_MAX_CID_BYTES + RETRY_MAX_BYTES];
    if (len_without_tag > RETRY_MAX_BYTES)
        return false;
    uint8_t *p = put_cid(pseudo, original_dcid->id, original_dcid->len);
    memcpy(p, retry, len_without_tag);
    return crypto_retry_tag(pseudo, (size_t)(p - pseudo) + len_without_tag, tag);
}

size_t quic_put_retry(uint8_t *out, size_t cap, uint32_t version, const struct quic_cid *dcid,
                      const struct quic_cid *scid, const struct quic_cid *original_dcid, const uint8_t *token,
                      size_t token_len) {
    size_t head = LONG_HEADER_MIN_BYTES + (size_t)dcid->len + scid->len;
    if (token_len == 0 || token_len > RETRY_MAX_BYTES || cap < head + token_len + CRYPTO_TAG_BYTES)
        return 0;
    uint8_t *p = quic_put_long_header(out, QUIC_PACKET_RETRY, version, dcid, scid);
    memcpy(p, token, token_len);
    p += token_len;
    if (!retry_tag(original_dcid, out, (size_t)(p - out), p))
        return 0;
    return head + token_len + CRYPTO_TAG_BYTES;
}

bool quic_retry_valid(const struct quic_header *retry, const struct quic_cid *original_dcid) {
    size_t len = retry->len - CRYPTO_TAG_BYTES; /* The parser has seen that there is a tag. */
    uint8_t tag[CRYPTO_TAG_BYTES];
    return retry_tag(original_dcid, retry->packet, len, tag) &&
           crypto_equal(tag, retry->packet + len, sizeof tag);
}

size_t quic_put_stateless_reset(uint8_t *out, size_t len, const uint8_t *random,
                                const uint8_t token[QUIC_RESET_TOKEN_BYTES]) {
    /* Section 10.3: 5 bytes before the token, or it could not pass for a short header packet. */
    if (len < 5 + QUIC_RESET_TOKEN_BYTES)
        return 0;
    memcpy(out, random, len - QUIC_RESET_TOKEN_BYTES);
    out[0] = (uint8_t)(FIXED_BIT | (random[0] & 0x3f));
    memcpy(out + len - QUIC_RESET_TOKEN_BYTES, token, QUIC_RESET_TOKEN_BYTES);
    return len;
}
