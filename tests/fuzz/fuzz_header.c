/* A datagram of coalesced packets, as quic_packet_parse walks it (packet.c).
 *
 * Input: length of our connection ids (one byte), then the datagram. Properties: nothing outside the datagram
 * is read or pointed to; every packet is in the datagram and leaves room for the header protection sample; a
 * long header written again from what was parsed is the same; Version Negotiation and Retry built from what
 * was parsed parse to the same, and the Retry is valid; packet numbers decode to what was encoded.
 */
#include "fuzz.h"

#include "quic/packet.h"
#include "quic/varint.h"

static struct quic_cid cid_of(const uint8_t *id, uint8_t len) {
    struct quic_cid cid = {.len = len};
    if (len > 0)
        memcpy(cid.id, id, len);
    return cid;
}

static void expect_inside(const struct quic_header *h, const void *p, size_t n) {
    const uint8_t *b = p;
    EXPECT(b >= h->packet && b + n <= h->packet + h->len);
}

static void check_long(const struct quic_header *h) {
    expect_inside(h, h->dcid, h->dcid_len);
    expect_inside(h, h->scid, h->scid_len);
    if (h->type == QUIC_PACKET_UNKNOWN_VERSION || h->type == QUIC_PACKET_VERSION_NEGOTIATION)
        return;
    EXPECT(h->version == QUIC_VERSION_1);
    struct quic_cid dcid = cid_of(h->dcid, h->dcid_len), scid = cid_of(h->scid, h->scid_len);
    uint8_t again[7 + 2 * QUIC_MAX_CID_BYTES];
    size_t len = (size_t)(quic_put_long_header(again, h->type, h->version, &dcid, &scid) - again);
    EXPECT(len == 7u + h->dcid_len + h->scid_len);
    EXPECT(again[0] == (h->first & 0xf0));
    EXPECT(memcmp(again + 1, h->packet + 1, len - 1) == 0);
}

static void check_version_negotiation(const struct quic_header *h) {
    uint8_t again[7 + 2 * 255 + 4];
    struct quic_header second;
    EXPECT(h->token_len >= 4 && h->token_len % 4 == 0);
    expect_inside(h, h->token, h->token_len);
    size_t len = quic_put_version_negotiation(again, sizeof again, h->dcid, h->dcid_len, h->scid, h->scid_len,
                                              h->first & 0x7f);
    EXPECT(len > 0 && quic_packet_parse(again, len, 8, &second) == QUIC_PARSE_OK);
    EXPECT(second.type == QUIC_PACKET_VERSION_NEGOTIATION);
    EXPECT(second.dcid_len == h->dcid_len && memcmp(second.dcid, h->dcid, h->dcid_len) == 0);
    EXPECT(second.scid_len == h->scid_len && memcmp(second.scid, h->scid, h->scid_len) == 0);
}

static void check_retry(const struct quic_header *h) {
    static uint8_t again[2048];
    struct quic_cid dcid = cid_of(h->dcid, h->dcid_len), scid = cid_of(h->scid, h->scid_len);
    struct quic_header second;
    EXPECT(h->token_len > 0);
    expect_inside(h, h->token, h->token_len + CRYPTO_TAG_BYTES);
    (void)quic_retry_valid(h, &scid);
    size_t len = quic_put_retry(again, sizeof again, h->version, &dcid, &scid, &dcid, h->token, h->token_len);
    if (len == 0) {
        EXPECT(h->len > 1500); /* Only what is too long to be of use is refused. */
        return;
    }
    EXPECT(quic_packet_parse(again, len, 8, &second) == QUIC_PARSE_OK);
    EXPECT(second.token_len == h->token_len && memcmp(second.token, h->token, h->token_len) == 0);
    EXPECT(quic_retry_valid(&second, &dcid));
    again[len - 1] ^= 1;
    EXPECT(!quic_retry_valid(&second, &dcid));
}

static void check_packet_number(const uint8_t *data, size_t len) {
    uint64_t acked = fuzz_take(&data, &len, 8) & QUIC_VARINT_MAX;
    uint64_t pn = acked + 1 + fuzz_take(&data, &len, 4) / 2; /* Four bytes carry a distance under 2^31. */
    if (pn > QUIC_VARINT_MAX)
        return;
    uint64_t seen = acked + fuzz_take(&data, &len, 4) % (pn - acked);
    unsigned bytes = quic_pn_bytes(pn, acked);
    EXPECT(bytes >= 1 && bytes <= 4);
    EXPECT(quic_pn_decode(seen, pn & (UINT64_MAX >> (64 - 8 * bytes)), bytes) == pn);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    if (len < 1)
        return 0;
    size_t short_dcid_len = data[0] % (QUIC_MAX_CID_BYTES + 1), left = len - 1;
    uint8_t *copy = fuzz_copy(data + 1, left), *p = copy;
    struct quic_header h;
    check_packet_number(p, left);
    while (quic_packet_parse(p, left, short_dcid_len, &h) == QUIC_PARSE_OK) {
        EXPECT(h.packet == p && h.first == p[0]);
        EXPECT(h.len > 0 && h.len <= left);
        if (h.type == QUIC_PACKET_ONE_RTT)
            EXPECT(h.dcid == p + 1 && h.dcid_len == short_dcid_len && h.len == left);
        else
            check_long(&h);
        if (h.type == QUIC_PACKET_VERSION_NEGOTIATION)
            check_version_negotiation(&h);
        else if (h.type == QUIC_PACKET_RETRY)
            check_retry(&h);
        else if (h.type != QUIC_PACKET_UNKNOWN_VERSION)
            EXPECT(h.pn_offset + 4 + CRYPTO_SAMPLE_BYTES <= h.len);
        if (h.type == QUIC_PACKET_INITIAL)
            expect_inside(&h, h.token, h.token_len);
        p += h.len;
        left -= h.len;
    }
    fuzz_release(copy);
    return 0;
}
