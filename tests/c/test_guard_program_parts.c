/* The parts of the XDP program that run in user space too: the Retry's tag without AES, and the parser.
 */
#include <arpa/inet.h>

#include "bpf/parse.h"
#include "bpf/retry.h"
#include "crypto/crypto.h"
#include "guard_frames.h"

static uint8_t packet[FRAME_MAX];

/* ---- the tag ---- */

/* NIST SP 800-38D section 6.3, bit by bit; a block as big endian words. */
static void multiply(uint64_t z[2], const uint64_t x[2], const uint64_t y[2]) {
    uint64_t v[2] = {y[0], y[1]};
    z[0] = z[1] = 0;
    for (int i = 0; i < 128; i++) {
        if (x[i / 64] >> (63 - i % 64) & 1) {
            z[0] ^= v[0];
            z[1] ^= v[1];
        }
        bool low = v[1] & 1;
        v[1] = v[1] >> 1 | v[0] << 63;
        v[0] = v[0] >> 1 ^ (low ? UINT64_C(0xe1) << 56 : 0);
    }
}

static void table_is_the_field_s(void) {
    const uint64_t h[2] = {0x72956a454ffaff54, 0x85a13a1244d01d47};
    for (int k = 0; k < 32; k++) {
        for (uint64_t nibble = 0; nibble < 16; nibble++) {
            uint64_t little[2] = {0, 0}, z[2];
            little[k / 16] = nibble << (4 * (k % 16));
            uint64_t x[2] = {__builtin_bswap64(little[0]), __builtin_bswap64(little[1])};
            multiply(z, x, h);
            check_note("place %d, nibble %d", k, (int)nibble);
            CHECK(ghash_table[k][nibble][0] == __builtin_bswap64(z[0]));
            CHECK(ghash_table[k][nibble][1] == __builtin_bswap64(z[1]));
        }
    }
}

static void tag_is_the_library_s(void) {
    for (size_t len = 0; len <= 200; len++) {
        uint8_t data[208] = {0}, want[16];
        __u64 y[2] = {0, 0};
        check_rand_bytes(data, len);
        REQUIRE(crypto_retry_tag(data, len, want));
        for (size_t at = 0; at < len; at += 16)
            ghash_step(y, retry_load64(data + at), retry_load64(data + at + 8));
        ghash_retry_finish(y, (uint32_t)len);
        check_note("%zu bytes", len);
        CHECK_MEM(y, want, 16);
    }
}

/* RFC 9001 appendix A.4: the Retry of the example, whose token is "token". */
static void tag_of_the_rfc(void) {
    static const uint8_t pseudo[] = {8,    0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08, 0xff,
                                     0,    0,    0,    1,    0,    8,    0xf0, 0x67, 0xa5, 0x50,
                                     0x2a, 0x42, 0x62, 0xb5, 't',  'o',  'k',  'e',  'n'};
    static const uint8_t tag[] = {0x04, 0xa2, 0x65, 0xba, 0x2e, 0xff, 0x4d, 0x82,
                                  0x90, 0x58, 0xfb, 0x3f, 0x0f, 0x24, 0x96, 0xba};
    uint8_t data[32] = {0};
    __u64 y[2] = {0, 0};
    memcpy(data, pseudo, sizeof pseudo);
    for (size_t at = 0; at < sizeof data; at += 16)
        ghash_step(y, retry_load64(data + at), retry_load64(data + at + 8));
    ghash_retry_finish(y, sizeof pseudo);
    CHECK_MEM(y, tag, 16);
}

/* ---- the parser, in user space: no byte behind the end is read (under ASan) ---- */

static void parser_stays_inside(void) {
    struct frame f;
    uint8_t chain[PARSE_MAX_EXTENSION_BYTES] = {0};
    for (int round = 0; round < 3000; round++) {
        struct shape s = plain();
        s.tags = check_rand() % 4;
        s.chain = chain;
        s.chain_first = (uint8_t[]){0, 43, 44, 51, 60}[check_rand() % 5];
        s.chain_bytes = check_rand() % 3 ? 8 * (check_rand() % 8) : 0;
        make_frame(&f, &s, packet, check_rand() % 64);
        for (unsigned i = 0; i < check_rand() % 4; i++) /* Random damage. */
            f.b[12 + check_rand() % (f.len - 12)] = (uint8_t)check_rand();
        for (size_t len = 0; len <= f.len; len += 1 + check_rand() % 7) {
            uint8_t *copy = malloc(len ? len : 1);
            struct parse_frame out;
            memcpy(copy, f.b, len);
            enum parse_status status = parse_frame(copy, copy + len, (uint32_t)len, &out);
            if (status == PARSE_UDP) {
                CHECK((size_t)out.payload + out.payload_bytes <= len);
                CHECK(out.payload <= PARSE_MAX_HEADER_BYTES && out.has_ports);
            }
            free(copy);
        }
    }
}

/* Addresses, ports, offsets and ECN of a well-formed frame, behind 0 to 2 tags. */
static void parser_fills_in_every_field(void) {
    static const struct {
        unsigned tags;
        uint16_t payload;
    } cases[] = {{0, 1}, {1, 1000}, {2, 1400}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct frame f;
        struct shape s = plain();
        struct parse_frame out;
        s.tags = cases[i].tags;
        make_frame(&f, &s, packet, cases[i].payload);
        f.b[f.l3 + 1] |= 3 << 4; /* CE */
        CHECK_EQ(parse_frame(f.b, f.b + f.len, (uint32_t)f.len, &out), PARSE_UDP);
        CHECK_MEM(out.src, peer_ip, 16);
        CHECK_MEM(out.dst, our_ip, 16);
        CHECK_EQ(ntohs(out.sport), 40000);
        CHECK_EQ(ntohs(out.dport), PORT);
        CHECK_EQ(out.l3, f.l3);
        CHECK_EQ(out.l4, f.l4);
        CHECK_EQ(out.payload, f.l4 + 8);
        CHECK_EQ(out.payload_bytes, cases[i].payload);
        CHECK_EQ(out.ecn, 3);
    }
}

static const struct check_case cases[] = {
    {"table_is_the_field_s", table_is_the_field_s},
    {"tag_is_the_library_s", tag_is_the_library_s},
    {"tag_of_the_rfc", tag_of_the_rfc},
    {"parser_stays_inside", parser_stays_inside},
    {"parser_fills_in_every_field", parser_fills_in_every_field},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
