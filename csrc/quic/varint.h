/* Variable-length integers, RFC 9000 section 16, and big-endian fields. Every reader checks its bounds. */
#ifndef STOQ_QUIC_VARINT_H
#define STOQ_QUIC_VARINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define QUIC_VARINT_MAX ((UINT64_C(1) << 62) - 1)

/* A read position in bytes that are not trusted. */
struct quic_reader {
    const uint8_t *p, *end;
};

static inline size_t quic_left(const struct quic_reader *r) {
    return (size_t)(r->end - r->p);
}

static inline uint16_t quic_load16(const uint8_t *p) {
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t quic_load32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return __builtin_bswap32(v);
}

static inline uint64_t quic_load64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return __builtin_bswap64(v);
}

static inline void quic_store16(uint8_t *p, uint16_t v) {
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void quic_store32(uint8_t *p, uint32_t v) {
    v = __builtin_bswap32(v);
    memcpy(p, &v, 4);
}

static inline void quic_store64(uint8_t *p, uint64_t v) {
    v = __builtin_bswap64(v);
    memcpy(p, &v, 8);
}

/* False: the bytes end first; `r` is then unchanged. */
static inline bool quic_read_varint(struct quic_reader *r, uint64_t *out) {
    if (r->p == r->end)
        return false;
    size_t n = (size_t)1 << (*r->p >> 6);
    if (quic_left(r) < n)
        return false;
    switch (n) {
    case 1:
        *out = r->p[0];
        break;
    case 2:
        *out = quic_load16(r->p) & 0x3fff;
        break;
    case 4:
        *out = quic_load32(r->p) & 0x3fffffff;
        break;
    default:
        *out = quic_load64(r->p) & QUIC_VARINT_MAX;
        break;
    }
    r->p += n;
    return true;
}

static inline bool quic_read_bytes(struct quic_reader *r, const uint8_t **out, size_t n) {
    if (quic_left(r) < n)
        return false;
    *out = r->p;
    r->p += n;
    return true;
}

static inline size_t quic_varint_size(uint64_t v) {
    return v < 64 ? 1 : v < 16384 ? 2 : v < (UINT64_C(1) << 30) ? 4 : 8;
}

/* Writes the shortest encoding of `v` (at most QUIC_VARINT_MAX); the caller has checked that there is room.
 */
static inline uint8_t *quic_put_varint(uint8_t *p, uint64_t v) {
    if (v < 64) {
        *p = (uint8_t)v;
        return p + 1;
    }
    if (v < 16384) {
        quic_store16(p, (uint16_t)(v | 0x4000));
        return p + 2;
    }
    if (v < (UINT64_C(1) << 30)) {
        quic_store32(p, (uint32_t)v | 0x80000000u);
        return p + 4;
    }
    quic_store64(p, v | (UINT64_C(3) << 62));
    return p + 8;
}

/* Two bytes always: a length that is filled in after what it counts. `v` is at most 16383. */
static inline uint8_t *quic_put_varint2(uint8_t *p, uint16_t v) {
    quic_store16(p, (uint16_t)(v | 0x4000));
    return p + 2;
}

#endif
