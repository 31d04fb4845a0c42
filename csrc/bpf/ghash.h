/* The Retry integrity tag (RFC 9001 section 5.8) without AES: for the XDP program, which has none, and for
 * the tests, which hold it against OpenSSL. Freestanding.
 *
 * The tag is AES-128-GCM of nothing, with the Retry pseudo-packet as associated data, under a key and a nonce
 * that the RFC gives:
 *
 *      tag = GHASH(H, A padded, bits of A, 0 bits) ^ E        H = AES(key, 0)   E = AES(key, nonce 00000001)
 *
 *      key be0c690b9f66575a1d766b54e368c84e, nonce 461599d35d632bf2239825bb
 *      H   72956a454ffaff5485a13a1244d01d47, E     555e4b7493556eeaaf75d35bd7fba5d8
 *
 * All is constant but A. Multiplying by a constant is linear, so a product is the sum of 32 table entries,
 * one for each nibble of the other factor: independent loads from 8 KiB, no reduction.
 */
#ifndef STOQ_BPF_GHASH_H
#define STOQ_BPF_GHASH_H

#include <linux/types.h>

#include "ghash_table.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "blocks are taken as little endian words here"
#endif

#define GHASH_BLOCK_BYTES 16
/* E above, as two words. */
#define GHASH_RETRY_E0 0xea6e5593744b5e55u
#define GHASH_RETRY_E1 0xd8a5fbd75bd375afu

/* y = (y ^ x) * H */
static inline __attribute__((always_inline)) void ghash_step(__u64 y[2], __u64 x0, __u64 x1) {
    __u64 a = y[0] ^ x0, b = y[1] ^ x1, z0 = 0, z1 = 0;
    for (int k = 0; k < 16; k++) {
        const __u64 *p = ghash_table[k][a & 15], *q = ghash_table[16 + k][b & 15];
        z0 ^= p[0] ^ q[0];
        z1 ^= p[1] ^ q[1];
        a >>= 4;
        b >>= 4;
    }
    y[0] = z0;
    y[1] = z1;
}

/* The last block, of lengths, and the mask: y becomes the tag of `bytes` of associated data. */
static inline __attribute__((always_inline)) void ghash_retry_finish(__u64 y[2], __u32 bytes) {
    ghash_step(y, __builtin_bswap64((__u64)bytes * 8), 0);
    y[0] ^= GHASH_RETRY_E0;
    y[1] ^= GHASH_RETRY_E1;
}

#endif
