/* Packet headers and packet numbers: RFC 9000 section 17 and Appendix A, RFC 8999. Stateless; nothing here is
 * decrypted. */
#ifndef STOQ_QUIC_PACKET_H
#define STOQ_QUIC_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quic.h"

struct quic_cid {
    uint8_t len; /* 0 to QUIC_MAX_CID_BYTES */
    uint8_t id[QUIC_MAX_CID_BYTES];
};

static inline bool quic_cid_equal(const struct quic_cid *a, const struct quic_cid *b) {
    return a->len == b->len && __builtin_memcmp(a->id, b->id, a->len) == 0;
}

enum quic_packet_type {
    QUIC_PACKET_INITIAL,
    QUIC_PACKET_ZERO_RTT,
    QUIC_PACKET_HANDSHAKE,
    QUIC_PACKET_RETRY,
    QUIC_PACKET_VERSION_NEGOTIATION,
    QUIC_PACKET_ONE_RTT,
    QUIC_PACKET_UNKNOWN_VERSION /* Long header of a version we do not speak: only the invariants are parsed.
                                 */
};

/* One packet of a datagram, before header protection is removed. Pointers are into the datagram. */
struct quic_header {
    enum quic_packet_type type;
    uint8_t first;
    uint32_t version;
    const uint8_t *dcid, *scid; /* scid: long headers only. */
    uint8_t dcid_len, scid_len;
    const uint8_t *token; /* Initial and Retry. */
    size_t token_len;
    uint8_t *packet;  /* First byte of the packet. */
    size_t len;       /* Bytes of this packet, from its first byte; the next coalesced packet follows. */
    size_t pn_offset; /* From `packet`: where the protected packet number begins. */
};

/* Result of parsing: 0, or the drop reason + 1. */
typedef int quic_parse_result;
#define QUIC_PARSE_OK 0
static inline quic_parse_result quic_parse_drop(enum stoq_drop_reason reason) {
    return (int)reason + 1;
}

/* Parse the packet that begins at data[0]. Short headers: the destination id is taken as QUIC_LOCAL_CID_BYTES
 * long
 * (`short_dcid_len`). A packet whose pn_offset + 4 + CRYPTO_SAMPLE_BYTES passes its end is refused (SHORT):
 * header protection could not be removed. For VERSION_NEGOTIATION and RETRY `len` is all that is left; for
 * VN, `token` is the list of versions (token_len a multiple of 4, at least 4). The fixed bit of VN and
 * unknown versions is not looked at. */
quic_parse_result quic_packet_parse(uint8_t *data, size_t len, size_t short_dcid_len,
                                    struct quic_header *out);

/* Packet numbers, RFC 9000 section 17.1 and Appendices A.2, A.3. `largest_acked` is QUIC_NO_PN when none was.
 */
#define QUIC_NO_PN UINT64_MAX
/* Bytes (1 to 4) to encode `pn`. */
static inline unsigned quic_pn_bytes(uint64_t pn, uint64_t largest_acked) {
    uint64_t unacked = largest_acked == QUIC_NO_PN ? pn + 1 : pn - largest_acked;
    uint64_t twice = 2 * unacked; /* The window must be over twice the distance. */
    return twice < (1u << 8) ? 1 : twice < (1u << 16) ? 2 : twice < (1u << 24) ? 3 : 4;
}
uint64_t quic_pn_decode(uint64_t largest_received, uint64_t truncated, unsigned bytes);

/* Long header up to and without the length field: first byte (packet number length bits zero), version, ids.
 * Returns the new end. The caller has room for 7 + 2 * QUIC_MAX_CID_BYTES. */
uint8_t *quic_put_long_header(uint8_t *p, enum quic_packet_type type, uint32_t version,
                              const struct quic_cid *dcid, const struct quic_cid *scid);

/* Whole stateless packets; each returns its length, 0 if it does not fit. */
size_t quic_put_version_negotiation(uint8_t *out, size_t cap, const uint8_t *dcid, size_t dcid_len,
                                    const uint8_t *scid, size_t scid_len, uint8_t unused_bits);
size_t quic_put_retry(uint8_t *out, size_t cap, uint32_t version, const struct quic_cid *dcid,
                      const struct quic_cid *scid, const struct quic_cid *original_dcid, const uint8_t *token,
                      size_t token_len);
/* Does the Retry's integrity tag match (RFC 9001 section 5.8)? */
bool quic_retry_valid(const struct quic_header *retry, const struct quic_cid *original_dcid);
/* Stateless reset, RFC 9000 section 10.3: `len` bytes in all, at least 21; `random` has len - 16 bytes. */
size_t quic_put_stateless_reset(uint8_t *out, size_t len, const uint8_t *random,
                                const uint8_t token[QUIC_RESET_TOKEN_BYTES]);

#endif
