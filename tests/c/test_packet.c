/* csrc/quic/varint.h and packet.c: RFC 9000 appendices A.1 to A.3, header parsing against the packets of
 * RFC 9001 appendix A, each way a header can be wrong, and the stateless packets.
 */
#include "check.h"
#include "rfc9001_vectors.h"

#include "quic/packet.h"
#include "quic/varint.h"

#define CHECK_DROP(result, reason) CHECK_EQ(result, (int)(STOQ_DROP_##reason) + 1)

static struct quic_cid cid(const void *id, size_t len) {
    struct quic_cid c = {.len = (uint8_t)len};
    memcpy(c.id, id, len);
    return c;
}

/* Parses a copy of exactly `len` bytes on the heap, so that a sanitizer sees a read past the end. The header
 * may point into freed memory afterwards: only its numbers are looked at. */
static int parse_exact(const uint8_t *data, size_t len, size_t short_dcid_len, struct quic_header *out) {
    uint8_t *copy = malloc(len);
    if (len > 0)
        memcpy(copy, data, len);
    int result = quic_packet_parse(copy, len, short_dcid_len, out);
    free(copy);
    return result;
}

/* ---- varints ---- */

static void varint_vectors(void) {
    static const struct {
        uint8_t bytes[8];
        size_t len;
        uint64_t value;
        bool shortest;
    } vectors[] = {
        {{0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c}, 8, 151288809941952652, true},
        {{0x9d, 0x7f, 0x3e, 0x7d}, 4, 494878333, true},
        {{0x7b, 0xbd}, 2, 15293, true},
        {{0x25}, 1, 37, true},
        {{0x40, 0x25}, 2, 37, false},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        check_note("vector %zu", i);
        uint64_t value = 0;
        struct quic_reader r = {vectors[i].bytes, vectors[i].bytes + vectors[i].len};
        CHECK(quic_read_varint(&r, &value));
        CHECK_EQ(value, vectors[i].value);
        CHECK_EQ(quic_left(&r), 0);
        if (vectors[i].shortest) {
            uint8_t out[8];
            CHECK_EQ(quic_put_varint(out, value) - out, vectors[i].len);
            CHECK_EQ(quic_varint_size(value), vectors[i].len);
            CHECK_MEM(out, vectors[i].bytes, vectors[i].len);
        }
        for (size_t cut = 0; cut < vectors[i].len; cut++) {
            struct quic_reader s = {vectors[i].bytes, vectors[i].bytes + cut};
            CHECK(!quic_read_varint(&s, &value));
            CHECK(s.p == vectors[i].bytes);
        }
    }
}

static void varint_edges(void) {
    static const uint64_t edges[] = {0, 63, 64, 16383, 16384, (1u << 30) - 1, 1u << 30, QUIC_VARINT_MAX};
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++) {
        uint8_t out[8];
        const uint8_t *end = quic_put_varint(out, edges[i]);
        uint64_t back = 1;
        struct quic_reader r = {out, end};
        CHECK_EQ(end - out, quic_varint_size(edges[i]));
        CHECK(quic_read_varint(&r, &back));
        CHECK(back == edges[i]);
    }
    uint8_t two[2];
    uint64_t value;
    CHECK(quic_put_varint2(two, 5) == two + 2);
    struct quic_reader r = {two, two + 2};
    CHECK(quic_read_varint(&r, &value) && value == 5);
}

/* ---- packet numbers ---- */

static void pn_vectors(void) {
    /* A.2 */
    CHECK_EQ(quic_pn_bytes(0xac5c02, 0xabe8b3), 2);
    CHECK_EQ(quic_pn_bytes(0xace8fe, 0xabe8b3), 3);
    CHECK_EQ(quic_pn_bytes(0, QUIC_NO_PN), 1);
    CHECK_EQ(quic_pn_bytes(126, QUIC_NO_PN), 1);
    CHECK_EQ(quic_pn_bytes(128, QUIC_NO_PN), 2);
    /* A.3 */
    CHECK_EQ(quic_pn_decode(0xa82f30ea, 0x9b32, 2), 0xa82f9b32);
    CHECK_EQ(quic_pn_decode(QUIC_NO_PN, 0, 1), 0);
    CHECK_EQ(quic_pn_decode(QUIC_NO_PN, 2, 4), 2);
    CHECK_EQ(quic_pn_decode(255, 0, 1), 256);                                /* Up into the next window. */
    CHECK_EQ(quic_pn_decode(256, 0xff, 1), 255);                             /* Back into the last one. */
    CHECK_EQ(quic_pn_decode(0, 0xff, 1), 255);                               /* Nothing is below zero. */
    CHECK_EQ(quic_pn_decode(QUIC_VARINT_MAX - 1, 0xff, 1), QUIC_VARINT_MAX); /* Nothing above 2^62 - 1. */
    CHECK_EQ(quic_pn_decode(QUIC_VARINT_MAX - 1, 0x00, 1), QUIC_VARINT_MAX - 255);
}

/* What any sender encodes after any acknowledgement, any receiver that has seen that much decodes. */
static void pn_round_trip(void) {
    for (int i = 0; i < 100000; i++) {
        uint64_t acked = check_rand() >> (2 + check_rand() % 62);
        uint64_t pn = acked + 1 + (check_rand() >> (33 + check_rand() % 31));
        if (pn > QUIC_VARINT_MAX)
            continue;
        uint64_t seen = acked + check_rand() % (pn - acked); /* At least what was acknowledged. */
        unsigned bytes = quic_pn_bytes(pn, acked);
        uint64_t truncated = pn & (~UINT64_C(0) >> (64 - 8 * bytes));
        if (!CHECK(quic_pn_decode(seen, truncated, bytes) == pn))
            printf("# pn %llu acked %llu seen %llu\n", (unsigned long long)pn, (unsigned long long)acked,
                   (unsigned long long)seen);
    }
}

/* ---- headers ---- */

static void parse_rfc9001(void) {
    struct quic_header h;
    uint8_t packet[1200];
    memcpy(packet, rfc9001_client_packet, sizeof packet);
    REQUIRE(quic_packet_parse(packet, sizeof packet, 8, &h) == QUIC_PARSE_OK);
    CHECK_EQ(h.type, QUIC_PACKET_INITIAL);
    CHECK_EQ(h.first, 0xc0);
    CHECK_EQ(h.version, QUIC_VERSION_1);
    CHECK_EQ(h.dcid_len, 8);
    CHECK_MEM(h.dcid, rfc9001_dcid, 8);
    CHECK_EQ(h.scid_len, 0);
    CHECK_EQ(h.token_len, 0);
    CHECK_EQ(h.len, 1200);
    CHECK_EQ(h.pn_offset, sizeof rfc9001_client_header - RFC9001_CLIENT_PN_BYTES);
    CHECK_MEM(h.packet + h.pn_offset + 4, rfc9001_client_sample, sizeof rfc9001_client_sample);

    uint8_t reply[sizeof rfc9001_server_packet + 1];
    memcpy(reply, rfc9001_server_packet, sizeof rfc9001_server_packet);
    reply[sizeof reply - 1] = 0x40; /* The next coalesced packet. */
    REQUIRE(quic_packet_parse(reply, sizeof reply, 8, &h) == QUIC_PARSE_OK);
    CHECK_EQ(h.type, QUIC_PACKET_INITIAL);
    CHECK_EQ(h.dcid_len, 0);
    CHECK_EQ(h.scid_len, 8);
    CHECK_EQ(h.len, sizeof rfc9001_server_packet);
    CHECK_EQ(h.pn_offset, sizeof rfc9001_server_header - RFC9001_SERVER_PN_BYTES);

    uint8_t one[sizeof rfc9001_chacha_packet];
    memcpy(one, rfc9001_chacha_packet, sizeof one);
    REQUIRE(quic_packet_parse(one, sizeof one, 0, &h) == QUIC_PARSE_OK);
    CHECK_EQ(h.type, QUIC_PACKET_ONE_RTT);
    CHECK_EQ(h.first, 0x4c);
    CHECK_EQ(h.pn_offset, 1);
    CHECK_EQ(h.dcid_len, 0);
    CHECK_EQ(h.len, sizeof one);
    CHECK_MEM(h.packet + h.pn_offset + 4, rfc9001_chacha_sample, sizeof rfc9001_chacha_sample);
}

static void parse_truncated(void) {
    struct quic_header h;
    for (size_t len = 0; len < sizeof rfc9001_server_packet; len++) {
        check_note("length %zu", len);
        CHECK(parse_exact(rfc9001_server_packet, len, 8, &h) != QUIC_PARSE_OK);
    }
    for (size_t len = 0; len < sizeof rfc9001_chacha_packet; len++)
        CHECK(parse_exact(rfc9001_chacha_packet, len, 0, &h) != QUIC_PARSE_OK);
    CHECK_DROP(parse_exact(rfc9001_server_packet, 0, 8, &h), SHORT);
    CHECK_DROP(parse_exact(rfc9001_server_packet, 6, 8, &h), SHORT);
    CHECK_DROP(parse_exact(rfc9001_server_packet, 14, 8, &h), HEADER);
    CHECK_DROP(parse_exact(rfc9001_server_packet, sizeof rfc9001_server_packet - 1, 8, &h), HEADER);
    CHECK_DROP(parse_exact(rfc9001_chacha_packet, sizeof rfc9001_chacha_packet - 1, 0, &h), SHORT);
}

static void parse_short_header(void) {
    uint8_t packet[1 + 8 + 20] = {0x40, 1, 2, 3, 4, 5, 6, 7, 8};
    struct quic_header h;
    REQUIRE(parse_exact(packet, sizeof packet, 8, &h) == QUIC_PARSE_OK);
    CHECK_EQ(h.type, QUIC_PACKET_ONE_RTT);
    CHECK_EQ(h.dcid_len, 8);
    CHECK_EQ(h.scid_len, 0);
    CHECK_EQ(h.pn_offset, 9);
    CHECK_EQ(h.len, sizeof packet);
    CHECK_DROP(parse_exact(packet, sizeof packet - 1, 8, &h), SHORT);
    packet[0] = 0x3f;
    CHECK_DROP(parse_exact(packet, sizeof packet, 8, &h), FIXED_BIT);
}

/* first, version 1, dcid 8 bytes, scid 4 bytes; then what the caller adds. */
static size_t long_head(uint8_t *p, uint8_t first) {
    static const uint8_t head[] = {0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 4, 9, 9, 9, 9};
    memcpy(p, head, sizeof head);
    p[0] = first;
    return sizeof head;
}

static void parse_long_types(void) {
    static const struct {
        uint8_t first;
        enum quic_packet_type type;
    } types[] = {{0xc3, QUIC_PACKET_INITIAL}, {0xd3, QUIC_PACKET_ZERO_RTT}, {0xe3, QUIC_PACKET_HANDSHAKE}};
    for (size_t i = 0; i < 3; i++) {
        check_note("first byte %02x", types[i].first);
        uint8_t packet[100] = {0};
        size_t n = long_head(packet, types[i].first);
        if (types[i].type == QUIC_PACKET_INITIAL) {
            packet[n] = 3; /* Token. */
            n += 4;
        }
        packet[n++] = 20; /* The shortest that header protection can be removed from. */
        struct quic_header h;
        REQUIRE(quic_packet_parse(packet, n + 20 + 7, 8, &h) == QUIC_PARSE_OK);
        CHECK_EQ(h.type, types[i].type);
        CHECK_EQ(h.pn_offset, n);
        CHECK_EQ(h.len, n + 20); /* Seven bytes are the next packet's. */
        CHECK_EQ(h.dcid_len, 8);
        CHECK_EQ(h.scid_len, 4);
        CHECK(h.dcid == packet + 6 && h.scid == packet + 15);
        CHECK_EQ(h.token_len, types[i].type == QUIC_PACKET_INITIAL ? 3 : 0);

        packet[n - 1] = 19;
        CHECK_DROP(parse_exact(packet, n + 20, 8, &h), SHORT);
        packet[n - 1] = 20;
        CHECK_DROP(parse_exact(packet, n + 19, 8, &h), HEADER); /* Length passes the end. */
        packet[0] &= 0xbf;
        CHECK_DROP(parse_exact(packet, n + 20, 8, &h), FIXED_BIT);
    }
}

static void parse_long_violations(void) {
    struct quic_header h;
    uint8_t packet[100] = {0};
    size_t n = long_head(packet, 0xc0);
    packet[5] = 21;
    CHECK_DROP(parse_exact(packet, sizeof packet, 8, &h), CID_LENGTH);
    packet[5] = 8;
    packet[14] = 21;
    CHECK_DROP(parse_exact(packet, sizeof packet, 8, &h), CID_LENGTH);
    packet[5] = 20;
    CHECK_DROP(parse_exact(packet, 26, 8, &h), HEADER); /* No room for the source id's length. */
    packet[5] = 8;
    packet[14] = 20;
    CHECK_DROP(parse_exact(packet, 30, 8, &h), HEADER);
    packet[14] = 4;
    packet[n] = 62; /* A token as long as all that is left: then there is no length. */
    CHECK_DROP(parse_exact(packet, n + 1 + 62, 8, &h), HEADER);
    packet[n] = 63;
    CHECK_DROP(parse_exact(packet, n + 1 + 62, 8, &h), HEADER);
    memset(packet + n, 0xff, 8); /* A token of 2^62 - 1 bytes. */
    CHECK_DROP(parse_exact(packet, sizeof packet, 8, &h), HEADER);
    packet[n] = 0;
    memset(packet + n + 1, 0xff, 8); /* A packet of 2^62 - 1 bytes. */
    CHECK_DROP(parse_exact(packet, sizeof packet, 8, &h), HEADER);
}

static void parse_other_versions(void) {
    uint8_t packet[300] = {0};
    struct quic_header h;
    packet[0] = 0x80; /* Neither fixed bit nor id lengths of version 1 bind another version. */
    packet[1] = 0xba;
    packet[5] = 255;
    packet[6 + 255] = 30;
    size_t len = 6 + 255 + 1 + 30;
    REQUIRE(quic_packet_parse(packet, len, 8, &h) == QUIC_PARSE_OK);
    CHECK_EQ(h.type, QUIC_PACKET_UNKNOWN_VERSION);
    CHECK_EQ(h.version, 0xba000000);
    CHECK_EQ(h.dcid_len, 255);
    CHECK_EQ(h.scid_len, 30);
    CHECK(h.scid == packet + 262);
    CHECK_EQ(h.len, len);
    CHECK_DROP(parse_exact(packet, len - 1, 8, &h), HEADER);
    CHECK_DROP(parse_exact(packet, 261, 8, &h), HEADER);
}

static void version_negotiation(void) {
    static const uint8_t dcid[] = {1, 2, 3}, scid[255] = {7};
    uint8_t packet[300];
    struct quic_header h;
    size_t len =
        quic_put_version_negotiation(packet, sizeof packet, dcid, sizeof dcid, scid, sizeof scid, 0x2a);
    REQUIRE(len == 7 + 3 + 255 + 4);
    CHECK_EQ(packet[0], 0xea);
    CHECK_EQ(quic_put_version_negotiation(packet, len - 1, dcid, sizeof dcid, scid, sizeof scid, 0x2a), 0);
    REQUIRE(quic_packet_parse(packet, len, 8, &h) == QUIC_PARSE_OK);
    CHECK_EQ(h.type, QUIC_PACKET_VERSION_NEGOTIATION);
    CHECK_EQ(h.version, 0);
    CHECK_EQ(h.dcid_len, 3);
    CHECK_MEM(h.dcid, dcid, 3);
    CHECK_EQ(h.scid_len, 255);
    CHECK_EQ(h.token_len, 4);
    CHECK_EQ(quic_load32(h.token), QUIC_VERSION_1);
    CHECK_EQ(h.len, len);
    for (size_t cut = 1; cut <= 4; cut++) /* No whole version, or none. */
        CHECK_DROP(parse_exact(packet, len - cut, 8, &h), HEADER);
    packet[0] = 0x80; /* The unused bits, fixed bit included, mean nothing. */
    CHECK_EQ(parse_exact(packet, len, 8, &h), QUIC_PARSE_OK);
}

static void retry_rfc9001(void) {
    static const uint8_t server_cid[] = {0xf0, 0x67, 0xa5, 0x50, 0x2a, 0x42, 0x62, 0xb5};
    struct quic_cid none = {0}, scid = cid(server_cid, 8), odcid = cid(rfc9001_dcid, 8);
    uint8_t packet[sizeof rfc9001_retry_packet];
    struct quic_header h;
    memcpy(packet, rfc9001_retry_packet, sizeof packet);
    REQUIRE(quic_packet_parse(packet, sizeof packet, 8, &h) == QUIC_PARSE_OK);
    CHECK_EQ(h.type, QUIC_PACKET_RETRY);
    CHECK_EQ(h.token_len, 5);
    CHECK_MEM(h.token, "token", 5);
    CHECK_EQ(h.scid_len, 8);
    CHECK_EQ(h.len, sizeof packet);
    CHECK(quic_retry_valid(&h, &odcid));
    CHECK(!quic_retry_valid(&h, &scid)); /* Made for another Initial. */
    for (size_t i = 0; i < sizeof packet; i++) {
        packet[i] ^= 1; /* The header as parsed still stands: only the tag speaks. */
        CHECK(!quic_retry_valid(&h, &odcid));
        packet[i] ^= 1;
    }

    /* The same Retry built here; the vector has the unused bits set, we leave them zero. */
    uint8_t built[64];
    size_t len = quic_put_retry(built, sizeof built, QUIC_VERSION_1, &none, &scid, &odcid,
                                (const uint8_t *)"token", 5);
    REQUIRE(len == sizeof packet);
    CHECK_EQ(built[0], 0xf0);
    CHECK_MEM(built + 1, packet + 1, len - 1 - CRYPTO_TAG_BYTES);
    REQUIRE(quic_packet_parse(built, len, 8, &h) == QUIC_PARSE_OK);
    CHECK(quic_retry_valid(&h, &odcid));
}

static void retry_limits(void) {
    struct quic_cid a = cid("abcd", 4), b = cid("12345678", 8);
    uint8_t token[2000] = {0}, out[2100];
    struct quic_header h;
    size_t len = quic_put_retry(out, sizeof out, QUIC_VERSION_1, &a, &b, &b, token, 100);
    REQUIRE(len == 7 + 12 + 100 + 16);
    CHECK_EQ(quic_put_retry(out, len - 1, QUIC_VERSION_1, &a, &b, &b, token, 100), 0);
    CHECK_EQ(quic_put_retry(out, sizeof out, QUIC_VERSION_1, &a, &b, &b, token, 0), 0);
    CHECK_EQ(quic_put_retry(out, sizeof out, QUIC_VERSION_1, &a, &b, &b, token, sizeof token), 0);
    /* A Retry with no token, and one too short for a tag. */
    len = quic_put_retry(out, sizeof out, QUIC_VERSION_1, &a, &b, &b, token, 1);
    REQUIRE(len == 7 + 12 + 1 + 16);
    CHECK_EQ(parse_exact(out, len, 8, &h), QUIC_PARSE_OK);
    CHECK_DROP(parse_exact(out, len - 1, 8, &h), RETRY);
    CHECK_DROP(parse_exact(out, 20, 8, &h), RETRY);
    /* One larger than we could ever answer parses, and is not valid. */
    memset(out, 0, sizeof out);
    out[0] = 0xf0;
    out[4] = 1;
    REQUIRE(quic_packet_parse(out, sizeof out, 8, &h) == QUIC_PARSE_OK);
    CHECK(!quic_retry_valid(&h, &b));
}

static void long_header(void) {
    struct quic_cid dcid = cid("12345678901234567890", 20), none = {0};
    uint8_t out[64];
    static const uint8_t firsts[] = {0xc0, 0xd0, 0xe0, 0xf0};
    for (unsigned type = QUIC_PACKET_INITIAL; type <= QUIC_PACKET_RETRY; type++) {
        uint8_t *end = quic_put_long_header(out, (enum quic_packet_type)type, QUIC_VERSION_1, &dcid, &none);
        CHECK_EQ(end - out, 27);
        CHECK_EQ(out[0], firsts[type]);
        CHECK_EQ(quic_load32(out + 1), QUIC_VERSION_1);
        CHECK_EQ(out[5], 20);
        CHECK_MEM(out + 6, dcid.id, 20);
        CHECK_EQ(out[26], 0);
    }
}

static void stateless_reset(void) {
    uint8_t random[64], token[16], out[64];
    struct quic_header h;
    check_rand_bytes(random, sizeof random);
    check_rand_bytes(token, sizeof token);
    CHECK_EQ(quic_put_stateless_reset(out, 20, random, token), 0);
    for (unsigned first = 0; first < 256; first++) {
        random[0] = (uint8_t)first;
        CHECK_EQ(quic_put_stateless_reset(out, 43, random, token), 43);
        CHECK_EQ(out[0] & 0xc0, 0x40); /* Looks like a short header. */
        CHECK_EQ(out[0] & 0x3f, first & 0x3f);
    }
    CHECK_MEM(out + 1, random + 1, 26);
    CHECK_MEM(out + 27, token, 16);
    CHECK_EQ(quic_packet_parse(out, 43, 8, &h), QUIC_PARSE_OK);
    CHECK_EQ(quic_put_stateless_reset(out, 21, random, token), 21);
    CHECK_MEM(out + 5, token, 16);
}

static void cid_equal(void) {
    struct quic_cid a = cid("abcd", 4), b = cid("abcd", 4), c = cid("abc", 3), d = cid("abce", 4), none = {0};
    CHECK(quic_cid_equal(&a, &b));
    CHECK(!quic_cid_equal(&a, &c));
    CHECK(!quic_cid_equal(&a, &d));
    CHECK(!quic_cid_equal(&none, &c));
    CHECK(quic_cid_equal(&none, &none));
}

static const struct check_case cases[] = {
    {"varint_vectors", varint_vectors},
    {"varint_edges", varint_edges},
    {"pn_vectors", pn_vectors},
    {"pn_round_trip", pn_round_trip},
    {"parse_rfc9001", parse_rfc9001},
    {"parse_truncated", parse_truncated},
    {"parse_short_header", parse_short_header},
    {"parse_long_types", parse_long_types},
    {"parse_long_violations", parse_long_violations},
    {"parse_other_versions", parse_other_versions},
    {"version_negotiation", version_negotiation},
    {"retry_rfc9001", retry_rfc9001},
    {"retry_limits", retry_limits},
    {"long_header", long_header},
    {"stateless_reset", stateless_reset},
    {"cid_equal", cid_equal},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
