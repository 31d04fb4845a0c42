/* See garbage.h. */
#include "garbage.h"

#include <stdbool.h>
#include <string.h>

#define V1             0x00000001u /* RFC 9000 section 15. */
#define ETHERNET_BYTES 1452        /* Largest payload that leaves a link of MTU 1500 in one piece. */
#define INITIAL_BYTES  1200        /* RFC 9000 section 14.1. */
#define MAX_CID_BYTES  20          /* RFC 9000 section 17.2. */
/* First byte, version, two lengths: nothing with a long header is shorter. */
#define LONG_BYTES 7
/* Longest packet number and the sample of header protection (RFC 9001 section 5.4.2). */
#define PROTECTED_BYTES 20

enum long_type { INITIAL = 0xc0, ZERO_RTT = 0xd0, HANDSHAKE = 0xe0, RETRY = 0xf0 };

/* A write position; what does not fit is left out, so that every length gives a header cut somewhere. */
struct writer {
    uint8_t *p, *end;
};

static void put(struct writer *w, uint8_t byte) {
    if (w->p < w->end)
        *w->p++ = byte;
}

static void put_random(struct writer *w, struct prng *r, size_t n) {
    size_t left = (size_t)(w->end - w->p);
    n = n < left ? n : left;
    prng_fill(r, w->p, n);
    w->p += n;
}

static void put_version(struct writer *w, uint32_t version) {
    for (int shift = 24; shift >= 0; shift -= 8)
        put(w, (uint8_t)(version >> shift));
}

/* In two bytes, which hold what a datagram of a usual path can. */
static void put_length(struct writer *w, size_t n) {
    put(w, (uint8_t)(0x40 | n >> 8));
    put(w, (uint8_t)n);
}

static void put_cid(struct writer *w, struct prng *r, size_t n) {
    put(w, (uint8_t)n);
    put_random(w, r, n);
}

/* First byte to source id. */
static void put_long(struct writer *w, struct prng *r, enum long_type type, uint32_t version, size_t dcid,
                     size_t scid) {
    put(w, (uint8_t)(type | (prng_next(r) & 0x0f)));
    put_version(w, version);
    put_cid(w, r, dcid);
    put_cid(w, r, scid);
}

static size_t any_cid(struct prng *r) {
    return (size_t)prng_below(r, MAX_CID_BYTES + 1);
}

static size_t initial_cid(struct prng *r) {
    return (size_t)prng_range(r, 8, MAX_CID_BYTES); /* Section 7.2: at least 8 bytes. */
}

/* Whole and right in every field that is not protected; what is, is noise. */
static void put_initial(struct writer *w, struct prng *r, size_t dcid, size_t token) {
    put_long(w, r, INITIAL, V1, dcid, any_cid(r));
    put_length(w, token);
    put_random(w, r, token);
    put_length(w, (size_t)(w->end - w->p) - 2);
    put_random(w, r, (size_t)(w->end - w->p));
}

static void build_random(struct prng *r, uint8_t *out, size_t len) {
    prng_fill(r, out, len);
}

static void build_short(struct prng *r, uint8_t *out, size_t len) {
    prng_fill(r, out, len);
    out[0] = (uint8_t)(0x40 | (out[0] & 0x3f));
}

static void build_fixed_bit(struct prng *r, uint8_t *out, size_t len) {
    struct writer w = {out, out + len};
    if (prng_below(r, 2)) {
        prng_fill(r, out, len);
        out[0] &= 0x3f;
        return;
    }
    put_initial(&w, r, initial_cid(r), 0);
    out[0] &= 0xbf;
}

static void build_initial(struct prng *r, uint8_t *out, size_t len) {
    struct writer w = {out, out + len};
    put_initial(&w, r, initial_cid(r), 0);
}

static void build_initial_token(struct prng *r, uint8_t *out, size_t len) {
    struct writer w = {out, out + len};
    put_initial(&w, r, initial_cid(r), (size_t)prng_range(r, 1, 256));
}

static void build_initial_dcid(struct prng *r, uint8_t *out, size_t len) {
    struct writer w = {out, out + len};
    put_initial(&w, r, (size_t)prng_below(r, 8), 0);
}

/* Two packets in one datagram: the second must not be counted apart from it. */
static void build_coalesced(struct prng *r, uint8_t *out, size_t len) {
    struct writer first = {out, out + len / 2}, second = {out + len / 2, out + len};
    put_initial(&first, r, initial_cid(r), 0);
    put_long(&second, r, HANDSHAKE, V1, 8, 8);
    put_length(&second, (size_t)(second.end - second.p) - 2);
    put_random(&second, r, len);
}

static uint32_t unknown_version(struct prng *r) {
    if (prng_below(r, 2)) /* Reserved to exercise version negotiation, section 15. */
        return (uint32_t)(prng_next(r) & 0xf0f0f0f0) | 0x0a0a0a0a;
    return (uint32_t)prng_range(r, 2, UINT32_MAX);
}

static void build_version(struct prng *r, uint8_t *out, size_t len) {
    struct writer w = {out, out + len};
    put_long(&w, r, INITIAL, unknown_version(r), any_cid(r), any_cid(r));
    put_random(&w, r, len);
}

/* RFC 8999 section 5.1: other versions' ids may have up to 255 bytes. */
static void build_version_cids(struct prng *r, uint8_t *out, size_t len) {
    struct writer w = {out, out + len};
    put_long(&w, r, INITIAL, unknown_version(r), (size_t)prng_range(r, 21, 255),
             (size_t)prng_range(r, 21, 255));
    put_random(&w, r, len);
}

static void put_numbered(struct prng *r, uint8_t *out, size_t len, enum long_type type) {
    struct writer w = {out, out + len};
    put_long(&w, r, type, V1, any_cid(r), any_cid(r));
    put_length(&w, (size_t)(w.end - w.p) - 2);
    put_random(&w, r, len);
}

static void build_handshake(struct prng *r, uint8_t *out, size_t len) {
    put_numbered(r, out, len, HANDSHAKE);
}

static void build_zero_rtt(struct prng *r, uint8_t *out, size_t len) {
    put_numbered(r, out, len, ZERO_RTT);
}

static void build_retry(struct prng *r, uint8_t *out, size_t len) {
    struct writer w = {out, out + len};
    put_long(&w, r, RETRY, V1, any_cid(r), any_cid(r));
    put_random(&w, r, len);
}

static void build_negotiation(struct prng *r, uint8_t *out, size_t len) {
    struct writer w = {out, out + len};
    put_long(&w, r, INITIAL, 0, any_cid(r), any_cid(r));
    put_random(&w, r, len);
}

/* An Initial's header that ends before its length field says so. */
static void build_cut(struct prng *r, uint8_t *out, size_t len) {
    uint8_t whole[INITIAL_BYTES];
    struct writer w = {whole, whole + sizeof whole};
    put_initial(&w, r, initial_cid(r), 64);
    memcpy(out, whole, len);
}

static void build_oversized_cid(struct prng *r, uint8_t *out, size_t len) {
    struct writer w = {out, out + len};
    bool which = prng_below(r, 2);
    size_t large = (size_t)prng_range(r, MAX_CID_BYTES + 1, 255), small = any_cid(r);
    put_long(&w, r, prng_below(r, 2) ? INITIAL : HANDSHAKE, V1, which ? large : small, which ? small : large);
    put_random(&w, r, len);
}

/* The length field promises more than there is, or too little for a packet. */
static void build_false_length(struct prng *r, uint8_t *out, size_t len) {
    struct writer w = {out, out + len};
    put_long(&w, r, INITIAL, V1, initial_cid(r), any_cid(r));
    put_length(&w, 0);
    size_t left = (size_t)(w.end - w.p) - 2;
    put_length(&w, prng_below(r, 2) ? (size_t)prng_range(r, left + 1, 16383)
                                    : (size_t)prng_below(r, PROTECTED_BYTES));
    put_random(&w, r, len);
}

/* Something of another kind with a few bits flipped. */
static void build_corrupt(struct prng *r, uint8_t *out, size_t len) {
    static void (*const origins[])(struct prng *, uint8_t *, size_t) = {
        build_initial,  build_initial_token, build_coalesced,   build_version, build_handshake,
        build_zero_rtt, build_retry,         build_negotiation, build_short};
    origins[prng_below(r, sizeof origins / sizeof origins[0])](r, out, len);
    for (uint64_t n = prng_range(r, 1, 8); n > 0; n--)
        out[prng_below(r, prng_below(r, 2) ? 64 : len)] ^= (uint8_t)(1u << prng_below(r, 8));
}

static void build_nothing(struct prng *r, uint8_t *out, size_t len) {
    (void)r;
    (void)out;
    (void)len;
}

static void build_huge(struct prng *r, uint8_t *out, size_t len) {
    prng_fill(r, out, len);
    if (prng_below(r, 2)) {
        struct writer w = {out, out + ETHERNET_BYTES};
        put_initial(&w, r, initial_cid(r), 0);
    }
}

/* `huge` leaves in 45 fragments and is worth one datagram: rare, or it would be most of the traffic. */
const struct garbage_kind garbage_kinds[] = {
    {"random", 120, 1, ETHERNET_BYTES, build_random},
    {"short_header", 120, 1 + 8 + PROTECTED_BYTES, ETHERNET_BYTES, build_short},
    {"short_header_cut", 30, 1, 8 + PROTECTED_BYTES, build_short},
    {"fixed_bit", 30, 64, ETHERNET_BYTES, build_fixed_bit},
    {"initial", 100, INITIAL_BYTES, ETHERNET_BYTES, build_initial},
    {"initial_token", 30, INITIAL_BYTES, ETHERNET_BYTES, build_initial_token},
    {"initial_small", 40, 96, INITIAL_BYTES - 1, build_initial},
    {"initial_dcid_small", 20, INITIAL_BYTES, ETHERNET_BYTES, build_initial_dcid},
    {"coalesced", 30, INITIAL_BYTES, ETHERNET_BYTES, build_coalesced},
    {"version", 40, INITIAL_BYTES, ETHERNET_BYTES, build_version},
    {"version_small", 40, LONG_BYTES + 2 * MAX_CID_BYTES, INITIAL_BYTES - 1, build_version},
    {"version_cids", 20, INITIAL_BYTES, ETHERNET_BYTES, build_version_cids},
    {"handshake", 40, 96, ETHERNET_BYTES, build_handshake},
    {"zero_rtt", 30, 96, ETHERNET_BYTES, build_zero_rtt},
    {"retry", 30, 96, ETHERNET_BYTES, build_retry},
    {"version_negotiation", 30, LONG_BYTES + 2 * MAX_CID_BYTES, ETHERNET_BYTES, build_negotiation},
    {"initial_cut", 40, 2, 80, build_cut},
    {"oversized_cid", 30, 600, ETHERNET_BYTES, build_oversized_cid},
    {"false_length", 30, 96, ETHERNET_BYTES, build_false_length},
    {"corrupt", 60, INITIAL_BYTES, ETHERNET_BYTES, build_corrupt},
    {"one_byte", 30, 1, 1, build_random},
    {"empty", 20, 0, 0, build_nothing},
    {"huge", 2, 60000, GARBAGE_MAX_BYTES, build_huge},
};
const size_t garbage_kind_count = sizeof garbage_kinds / sizeof garbage_kinds[0];

const struct garbage_kind *garbage_by_name(const char *name) {
    for (size_t i = 0; i < garbage_kind_count; i++)
        if (strcmp(garbage_kinds[i].name, name) == 0)
            return &garbage_kinds[i];
    return NULL;
}

const struct garbage_kind *garbage_draw(struct prng *r) {
    uint32_t total = 0;
    for (size_t i = 0; i < garbage_kind_count; i++)
        total += garbage_kinds[i].weight;
    uint64_t n = prng_below(r, total);
    size_t i = 0;
    for (; n >= garbage_kinds[i].weight; i++)
        n -= garbage_kinds[i].weight;
    return &garbage_kinds[i];
}
