/* Building a Retry packet (RFC 9000 section 17.2.5) with a token of retry_token.h and its integrity tag, and
 * checking such a token: the part of the XDP program's work that needs no packet and no map, so that tests
 * can run it in user space too. Freestanding.
 *
 * The tag covers the pseudo-packet, which begins with the client's first destination id. It is laid right
 * before the packet:
 *
 *   bytes                start                                                                 start + len
 *   ├ length, odcid (0-20) ┼ f0 version  length, scid   8, our id   token  ┼ tag (16) ┼ zeros
 *   └───────────────────── pseudo-packet ──────────────────────────────────┘
 */
#ifndef STOQ_BPF_RETRY_H
#define STOQ_BPF_RETRY_H

#include <linux/types.h>

#include "../quic/retry_token.h"
#include "ghash.h"

#define RETRY_TAG_BYTES 16
/* first byte, version, two lengths */
#define RETRY_HEAD_BYTES 7
#define RETRY_MAX_BYTES                                                                                      \
    (RETRY_HEAD_BYTES + RETRY_TOKEN_MAX_CID + RETRY_TOKEN_SCID_BYTES + RETRY_TOKEN_MAX_BYTES +               \
     RETRY_TAG_BYTES)
/* Both ids of the client empty. */
#define RETRY_MIN_BYTES                                                                                      \
    (RETRY_HEAD_BYTES + RETRY_TOKEN_SCID_BYTES + RETRY_TOKEN_HEAD_BYTES + RETRY_TOKEN_MAC_BYTES +            \
     RETRY_TAG_BYTES)
#define RETRY_PSEUDO_BYTES (1 + RETRY_TOKEN_MAX_CID + RETRY_MAX_BYTES - RETRY_TAG_BYTES)
#define RETRY_BLOCKS       ((RETRY_PSEUDO_BYTES + GHASH_BLOCK_BYTES - 1) / GHASH_BLOCK_BYTES)

/* What a Retry is made of. The ids' places hold whatever followed them in the packet, too. */
struct retry_request {
    __u64 key[2];
    __u8 ip[16];
    __u32 slot;
    __u8 port[2]; /* Network order. */
    __u8 odcid_len, scid_len;
    __u8 odcid[24], scid[24]; /* 20 bytes each at most; whole words. */
    __u8 new_scid[RETRY_TOKEN_SCID_BYTES];
};

struct retry_answer {
    __u32 start, len;
    __u8 bytes[RETRY_PSEUDO_BYTES + 38]; /* 128: 16 bytes of padding and a last copy of 20 stay inside. */
};
_Static_assert(sizeof(struct retry_answer) == 136, "no hole");

#define RETRY_INLINE static inline __attribute__((always_inline))

/* BPF stores are of any alignment; C has to be told so. */
#ifdef __bpf__
RETRY_INLINE void retry_store32(__u8 *p, __u32 v) {
    *(__u32 *)p = v;
}
RETRY_INLINE void retry_store64(__u8 *p, __u64 v) {
    *(__u64 *)p = v;
}
RETRY_INLINE __u64 retry_load64(const __u8 *p) {
    return *(const __u64 *)p;
}
#else
RETRY_INLINE void retry_store32(__u8 *p, __u32 v) {
    __builtin_memcpy(p, &v, sizeof v);
}
RETRY_INLINE void retry_store64(__u8 *p, __u64 v) {
    __builtin_memcpy(p, &v, sizeof v);
}
RETRY_INLINE __u64 retry_load64(const __u8 *p) {
    __u64 v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
#endif

/* 20 bytes, whatever of them count: what follows overwrites the rest. */
RETRY_INLINE void retry_put_id(__u8 *p, const __u8 id[24]) {
    retry_store64(p, retry_load64(id));
    retry_store64(p + 8, retry_load64(id + 8));
    retry_store32(p + 16, (__u32)retry_load64(id + 16));
}

/* The first `n` bytes of a word of packet bytes, the others zero. */
RETRY_INLINE __u64 retry_first_bytes(__u64 word, int n) {
    return n >= 8 ? word : n <= 0 ? 0 : word & ((1ull << (8 * n)) - 1);
}

/* The mac of a token; of odcid's 24 bytes the first odcid_len (at most 20) count. */
RETRY_INLINE __u64 retry_mac(const __u64 key[2], const __u8 ip[16], const __u8 port[2], __u32 slot,
                             __u32 odcid_len, const __u8 odcid[24], const __u8 scid[8]) {
    struct retry_token_input in;
    const retry_u64 k[2] = {key[0], key[1]};
    __builtin_memset(&in, 0, sizeof in);
    retry_store64(in.ip, retry_load64(ip));
    retry_store64(in.ip + 8, retry_load64(ip + 8));
    in.slot = slot;
    in.port[0] = port[0];
    in.port[1] = port[1];
    in.odcid_len = (__u8)odcid_len;
    retry_store64(in.odcid, retry_first_bytes(retry_load64(odcid), (int)odcid_len));
    retry_store64(in.odcid + 8, retry_first_bytes(retry_load64(odcid + 8), (int)odcid_len - 8));
    retry_store32(in.odcid + 16, (__u32)retry_first_bytes(retry_load64(odcid + 16), (int)odcid_len - 16));
    retry_store64(in.scid, retry_load64(scid));
    return retry_token_mac(k, &in);
}

RETRY_INLINE int retry_build(const struct retry_request *r, struct retry_answer *out) {
    __u32 odcid_len = r->odcid_len, scid_len = r->scid_len;
    if (odcid_len > RETRY_TOKEN_MAX_CID || scid_len > RETRY_TOKEN_MAX_CID)
        return 0;
    __u8 *p = out->bytes;
    p[0] = (__u8)odcid_len;
    retry_put_id(p + 1, r->odcid);
    __u32 at = 1 + odcid_len;
    out->start = at;
    p = out->bytes + at;
    p[0] = 0xf0; /* Long header, fixed bit, type 3; the other four bits mean nothing. */
    retry_store32(p + 1, __builtin_bswap32(1));
    p[5] = (__u8)scid_len;
    retry_put_id(p + 6, r->scid);
    at += 6 + scid_len;
    p = out->bytes + at;
    p[0] = RETRY_TOKEN_SCID_BYTES;
    retry_store64(p + 1, retry_load64(r->new_scid));
    p[9] = RETRY_TOKEN_KIND;
    retry_store32(p + 10, __builtin_bswap32(r->slot));
    p[14] = (__u8)odcid_len;
    retry_put_id(p + 15, r->odcid);
    at += 9 + RETRY_TOKEN_HEAD_BYTES + odcid_len;
    p = out->bytes + at;
    retry_store64(p, retry_mac(r->key, r->ip, r->port, r->slot, odcid_len, r->odcid, r->new_scid));
    at += RETRY_TOKEN_MAC_BYTES;
    p = out->bytes + at;
    retry_store64(p, 0); /* Pads the last block. */
    retry_store64(p + 8, 0);

    __u64 y[2] = {0, 0};
    for (__u32 i = 0; i < RETRY_BLOCKS; i++) {
        if (i * GHASH_BLOCK_BYTES >= at)
            break;
        const __u8 *block = out->bytes + i * GHASH_BLOCK_BYTES;
        ghash_step(y, retry_load64(block), retry_load64(block + 8));
    }
    ghash_retry_finish(y, at);
    retry_store64(p, y[0]);
    retry_store64(p + 8, y[1]);
    out->len = at + RETRY_TAG_BYTES - out->start;
    return 1;
}

/* A token of an Initial, judged. `token` has 40 bytes of which `len` are the token's. */
enum retry_token_state {
    RETRY_TOKEN_FOREIGN, /* Not of this form: another kind, or nobody's. */
    RETRY_TOKEN_GOOD,
    RETRY_TOKEN_BAD /* Of this form, but expired, forged, for another address or another id. */
};

/* `now_slot`: CLOCK_MONOTONIC in RETRY_TOKEN_SLOT_NS. */
RETRY_INLINE enum retry_token_state retry_token_check(const __u64 key[2], const __u8 ip[16],
                                                      const __u8 port[2], __u32 now_slot,
                                                      const __u8 token[40], __u32 len, const __u8 *dcid,
                                                      __u32 dcid_len) {
    __u32 odcid_len = token[5];
    if (token[0] != RETRY_TOKEN_KIND || odcid_len > RETRY_TOKEN_MAX_CID ||
        len != RETRY_TOKEN_HEAD_BYTES + odcid_len + RETRY_TOKEN_MAC_BYTES)
        return RETRY_TOKEN_FOREIGN;
    if (dcid_len != RETRY_TOKEN_SCID_BYTES)
        return RETRY_TOKEN_BAD;
    __u32 slot = (__u32)token[1] << 24 | (__u32)token[2] << 16 | (__u32)token[3] << 8 | token[4];
    __u64 mac = retry_mac(key, ip, port, slot, odcid_len, token + RETRY_TOKEN_HEAD_BYTES, dcid);
    if (mac != retry_load64(token + RETRY_TOKEN_HEAD_BYTES + odcid_len))
        return RETRY_TOKEN_BAD;
    return retry_token_fresh(slot, now_slot) ? RETRY_TOKEN_GOOD : RETRY_TOKEN_BAD;
}

#endif
