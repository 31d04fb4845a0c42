/* Frames and QUIC packets for the guard's tests, made by hand: the program's own words are not used to test
 * it. Include in one file per test program: the functions are static. */
#ifndef STOQ_TESTS_GUARD_FRAMES_H
#define STOQ_TESTS_GUARD_FRAMES_H

#include "check.h"
#include "quic/varint.h"

#define PORT      9292
#define FRAME_MAX 9216

static const uint8_t our_ip[16] = {0x20, 0x01, 0x0d, 0xb8, [7] = 1, [15] = 1};
static const uint8_t peer_ip[16] = {0x20, 0x01, 0x0d, 0xb8, [7] = 2, [15] = 9};
/* ---- frames ---- */

struct frame {
    uint8_t b[FRAME_MAX];
    size_t len;
    size_t l3, l4; /* Offsets. */
};

/* What the next frame looks like around its payload; `plain` is the ordinary one. */
struct shape {
    unsigned tags;
    const uint8_t *chain; /* Extension headers, the last one's next header filled in by make_frame. */
    size_t chain_bytes, chain_last; /* chain_last: offset of the last header. */
    uint8_t chain_first;            /* Kind of the first. */
    uint8_t src[16], dst[16];
    uint16_t sport, dport;
    uint8_t upper; /* 17 */
};

static struct shape plain(void) {
    struct shape s = {.sport = 40000, .dport = PORT, .upper = 17};
    memcpy(s.src, peer_ip, 16);
    memcpy(s.dst, our_ip, 16);
    return s;
}

static uint32_t sum16(uint32_t sum, const uint8_t *p, size_t len) {
    for (size_t i = 0; i < len; i++)
        sum += i % 2 ? p[i] : (uint32_t)p[i] << 8;
    return sum;
}

/* The sum over pseudo-header, UDP header and payload as a receiver takes it: ffff when all is right. */
static uint16_t udp_sum(const uint8_t *ip, const uint8_t *udp, size_t len) {
    uint32_t sum = sum16((uint32_t)len + 17, ip + 8, 32);
    sum = sum16(sum, udp, len);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static void set_checksum(struct frame *f) {
    size_t len = f->len - f->l4;
    quic_store16(f->b + f->l4 + 6, 0);
    uint16_t sum = (uint16_t)~udp_sum(f->b + f->l3, f->b + f->l4, len);
    quic_store16(f->b + f->l4 + 6, sum ? sum : 0xffff);
}

static void make_frame(struct frame *f, const struct shape *s, const void *payload, size_t len) {
    static const uint8_t ethernet[12] = {0x02, 0xaa, 0xaa, 0xaa, 0xaa, 0x01, 0x02, 0xbb, 0xbb, 0xbb, 0xbb, 2};
    memset(f, 0, sizeof *f);
    memcpy(f->b, ethernet, 12);
    uint8_t *p = f->b + 12;
    for (unsigned i = 0; i < s->tags; i++, p += 4) {
        quic_store16(p, i + 1 < s->tags ? 0x88a8 : 0x8100);
        quic_store16(p + 2, (uint16_t)(100 + i));
    }
    quic_store16(p, 0x86dd);
    p += 2;
    f->l3 = (size_t)(p - f->b);
    p[0] = 0x60;
    quic_store16(p + 4, (uint16_t)(s->chain_bytes + 8 + len));
    p[6] = s->chain_bytes ? s->chain_first : s->upper;
    p[7] = 61;
    memcpy(p + 8, s->src, 16);
    memcpy(p + 24, s->dst, 16);
    p += 40;
    if (s->chain_bytes) {
        memcpy(p, s->chain, s->chain_bytes);
        p[s->chain_last] = s->upper;
    }
    p += s->chain_bytes;
    f->l4 = (size_t)(p - f->b);
    quic_store16(p, s->sport);
    quic_store16(p + 2, s->dport);
    quic_store16(p + 4, (uint16_t)(8 + len));
    if (len)
        memcpy(p + 8, payload, len);
    f->len = f->l4 + 8 + len;
    set_checksum(f);
}

/* ---- QUIC packets ---- */

/* A 1-RTT packet of `len` bytes with random contents. */
__attribute__((unused)) static void make_short(uint8_t *p, size_t len, uint64_t id) {
    check_rand_bytes(p, len);
    p[0] = (uint8_t)(0x40 | (p[0] & 0x3f));
    memcpy(p + 1, &id, len < 9 ? len - 1 : 8);
}

struct long_packet {
    unsigned type;
    uint32_t version;
    uint8_t dcid[255], scid[255];
    uint8_t dcid_len, scid_len;
    uint8_t token[300];
    size_t token_len;
    size_t bytes; /* In all; the length field covers what is left. */
};

/* An ordinary client's first: random ids of eight bytes, 1200 bytes. */
__attribute__((unused)) static struct long_packet first_initial(void) {
    struct long_packet l = {.version = 1, .dcid_len = 8, .scid_len = 8, .bytes = 1200};
    check_rand_bytes(l.dcid, sizeof l.dcid);
    check_rand_bytes(l.scid, sizeof l.scid);
    l.dcid[1] = 0xee; /* No worker's. */
    return l;
}

/* Returns where the length field is. */
__attribute__((unused)) static size_t make_long(uint8_t *out, const struct long_packet *l) {
    check_rand_bytes(out, l->bytes);
    uint8_t *p = out;
    *p++ = (uint8_t)(0xc0 | l->type << 4 | (out[0] & 15));
    quic_store32(p, l->version);
    p += 4;
    *p++ = l->dcid_len;
    memcpy(p, l->dcid, l->dcid_len);
    p += l->dcid_len;
    *p++ = l->scid_len;
    memcpy(p, l->scid, l->scid_len);
    p += l->scid_len;
    if (l->type == 0) {
        quic_store16(p, (uint16_t)(0x4000 | l->token_len)); /* Two bytes always: legal, and simple. */
        memcpy(p + 2, l->token, l->token_len);
        p += 2 + l->token_len;
    }
    if (l->type != 3)
        quic_store16(p, (uint16_t)(0x4000 | (l->bytes - (size_t)(p - out) - 2)));
    return (size_t)(p - out);
}

__attribute__((unused)) static void make_long_frame(struct frame *f, const struct shape *s,
                                                    const struct long_packet *l) {
    uint8_t packet[FRAME_MAX];
    make_long(packet, l);
    make_frame(f, s, packet, l->bytes);
}

#endif
