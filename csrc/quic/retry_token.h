/* The Retry token (RFC 9000 section 8.1.2), shared by the engine and the XDP program: freestanding, no libc,
 * no memory but its arguments, loops of constant length.
 *
 *      kind (1) = 1   slot (4)   original id: length (1), bytes (0-20)   mac (8)
 *
 * The slot is the time of issue in seconds of CLOCK_MONOTONIC, in network order; the mac is a little endian
 * word.
 *
 * The token is not secret, only unforgeable: it holds what the client itself sent, and the mac binds that to
 * the client's address and port, to the id that the Retry gave (which comes back as the destination of the
 * client's next Initial and so needs no place in the token) and to the time. SipHash-2-4 with a 128-bit key:
 * a forger has one chance in 2^64 a packet, and a token lives ten seconds. All workers and the XDP program
 * share the key, so any of them verifies what another issued.
 */
#ifndef STOQ_QUIC_RETRY_TOKEN_H
#define STOQ_QUIC_RETRY_TOKEN_H

#define RETRY_TOKEN_KIND       1
#define RETRY_TOKEN_SCID_BYTES 8  /* QUIC_LOCAL_CID_BYTES */
#define RETRY_TOKEN_MAX_CID    20 /* RFC 9000 section 17.2. */
#define RETRY_TOKEN_HEAD_BYTES 6  /* kind, slot, length of the original id */
#define RETRY_TOKEN_MAC_BYTES  8
#define RETRY_TOKEN_MAX_BYTES  (RETRY_TOKEN_HEAD_BYTES + RETRY_TOKEN_MAX_CID + RETRY_TOKEN_MAC_BYTES)
/* A client answers a Retry within a few round trips; ten seconds leave room for a lost packet or three. */
#define RETRY_TOKEN_LIFE_SLOTS 10
#define RETRY_TOKEN_SLOT_NS    1000000000ull
/* A worker may hold a time read shortly before another core issued the token: one slot of slack. */
#define RETRY_TOKEN_SLACK_SLOTS 1

typedef unsigned char retry_u8;
typedef unsigned int retry_u32;
typedef unsigned long long retry_u64;

/* What the mac covers, of one size whatever the id's length; unused bytes are zero. */
struct retry_token_input {
    retry_u8 ip[16];
    retry_u32 slot;
    retry_u8 port[2]; /* Network order. */
    retry_u8 odcid_len;
    retry_u8 zero;
    retry_u8 odcid[RETRY_TOKEN_MAX_CID];
    retry_u8 pad[4];
    retry_u8 scid[RETRY_TOKEN_SCID_BYTES];
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct retry_token_input) == 56, "seven words");

static inline __attribute__((always_inline)) retry_u64 retry_rotl(retry_u64 x, int by) {
    return x << by | x >> (64 - by);
}

static inline __attribute__((always_inline)) void retry_sip_round(retry_u64 v[4]) {
    v[0] += v[1];
    v[1] = retry_rotl(v[1], 13) ^ v[0];
    v[0] = retry_rotl(v[0], 32);
    v[2] += v[3];
    v[3] = retry_rotl(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = retry_rotl(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = retry_rotl(v[1], 17) ^ v[2];
    v[2] = retry_rotl(v[2], 32);
}

/* SipHash-2-4 (Aumasson, Bernstein) of the input under `key`, little endian words on a little endian machine.
 */
static inline __attribute__((always_inline)) retry_u64 retry_token_mac(const retry_u64 key[2],
                                                                       const struct retry_token_input *in) {
    retry_u64 v[4] = {key[0] ^ 0x736f6d6570736575ull, key[1] ^ 0x646f72616e646f6dull,
                      key[0] ^ 0x6c7967656e657261ull, key[1] ^ 0x7465646279746573ull};
    for (int i = 0; i < (int)(sizeof *in / 8); i++) {
        retry_u64 word;
        __builtin_memcpy(&word, (const retry_u8 *)in + i * 8, 8);
        v[3] ^= word;
        retry_sip_round(v);
        retry_sip_round(v);
        v[0] ^= word;
    }
    retry_u64 last = (retry_u64)sizeof *in << 56;
    v[3] ^= last;
    retry_sip_round(v);
    retry_sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for (int i = 0; i < 4; i++)
        retry_sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* Is a token issued in `slot` still good in `now_slot`? Both wrap after 136 years. */
static inline __attribute__((always_inline)) int retry_token_fresh(retry_u32 slot, retry_u32 now_slot) {
    return now_slot - slot + RETRY_TOKEN_SLACK_SLOTS <= RETRY_TOKEN_LIFE_SLOTS + RETRY_TOKEN_SLACK_SLOTS;
}

#endif
