/* The Internet checksum against the definition (RFC 1071 section 1), for every length a frame may have and
 * every alignment of a cache line. */
#include "../../csrc/io/csum.h"
#include "check.h"

/* Word by word, carries back in at each step: as the RFC says it. */
static uint16_t naive(const uint8_t *p, size_t len) {
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i += 2) {
        uint16_t word = 0;
        memcpy(&word, p + i, len - i < 2 ? 1 : 2);
        sum += word;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint16_t)sum;
}

static void lengths_and_alignments(void) {
    static uint8_t area[4096 + 64];
    check_rand_bytes(area, sizeof area);
    for (size_t len = 0; len <= 4096; len++) {
        for (size_t at = 0; at < 64; at += len < 300 ? 1 : 7) {
            check_note("%zu bytes at %zu", len, at);
            REQUIRE(csum_fold(csum_partial(area + at, len)) == naive(area + at, len));
        }
    }
}

/* The largest sums there are: nothing overflows, folding brings back every carry. */
static void all_ones(void) {
    static uint8_t area[65536];
    memset(area, 0xff, sizeof area);
    for (size_t len = 0; len <= sizeof area; len += len < 300 ? 1 : 1237) {
        REQUIRE(csum_fold(csum_partial(area, len)) == naive(area, len));
    }
    REQUIRE(csum_fold(csum_partial(area, sizeof area) * 3) == 0xffff);
    REQUIRE(csum_fold(UINT64_MAX) == 0xffff && csum_fold(0) == 0);
    REQUIRE(csum_fold(0xffff0001) == naive((const uint8_t *)&(uint32_t){0xffff0001}, 4));
}

static void never_zero(void) {
    REQUIRE(csum_udp(0xffff) == 0xffff);
    REQUIRE(csum_udp(0xffff0000) == 0xffff);
    REQUIRE(csum_udp(1) == 0xfffe);
}

/* Parts of even length may be summed apart: headers and payload lie apart. */
static void parts(void) {
    uint8_t area[1500];
    check_rand_bytes(area, sizeof area);
    for (size_t cut = 0; cut <= sizeof area; cut += 2) {
        REQUIRE(csum_fold(csum_partial(area, cut) + csum_partial(area + cut, sizeof area - cut)) ==
                naive(area, sizeof area));
    }
}

static const struct check_case cases[] = {
    {"csum_lengths_and_alignments", lengths_and_alignments},
    {"csum_all_ones", all_ones},
    {"csum_never_zero", never_zero},
    {"csum_parts", parts},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
