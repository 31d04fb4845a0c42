/* What the guard thinks of a QUIC packet (RFC 9000 section 17, RFC 8999) to one of our ports and addresses.
 * Only the first packet of a datagram is looked at. BPF only.
 *
 * Ours is: what has a connection id that a worker has entered into `cids`; an Initial with a good Retry
 * token; and, within its rate each, what may begin something: an Initial, an unknown version, an unknown id
 * (which the engine answers with a stateless reset, and which a peer's own stateless reset looks like).
 */
#ifndef STOQ_BPF_RULES_H
#define STOQ_BPF_RULES_H

#include "rates.h"

#define GUARD_MIN_INITIAL_BYTES 1200u /* RFC 9000 section 14.1. */
#define GUARD_CID_BYTES         8u    /* Ours. */
/* First byte, our id, longest packet number, header protection sample: RFC 9001 section 5.4.2. */
#define GUARD_MIN_SHORT_BYTES (1u + GUARD_CID_BYTES + 4u + 16u)
/* RFC 9000 section 10.3: the shortest stateless reset. */
#define GUARD_MIN_RESET_BYTES 21u
#define GUARD_LONG_HEAD_BYTES 7u /* First byte, version, two id lengths. */
/* Behind a longer token nothing is looked at (the verifier wants a bound): the engine's have at most 128
 * bytes, and what other servers issue has to fit an Initial beside a ClientHello. */
#define GUARD_MAX_TOKEN_BYTES 1024u

enum guard_known {
    GUARD_UNKNOWN,
    GUARD_KNOWN,
    GUARD_UNTOLD /* There is no table. */
};

GUARD_INLINE enum guard_known guard_look_up(const struct guard_policy *p, __u64 id) {
    if (!p->cid_buckets)
        return GUARD_UNTOLD;
    __u32 worker = (id >> 8) & 0xff;
    if (worker >= p->workers || !id) /* 0 is a free place, not an id. */
        return GUARD_UNKNOWN;
    __u32 bucket = worker * p->cid_buckets + ((__u32)(id >> 16) & (p->cid_buckets - 1));
    /* Plain loads of words that one worker writes with plain stores: each is whole, and an id that is just
     * being entered belongs to no packet of a peer yet. */
    struct guard_cids *c = bpf_map_lookup_elem(&cids, &bucket);
    if (!c)
        return GUARD_UNKNOWN;
    __u64 differs = 1;
#pragma unroll
    for (int i = 0; i < (int)GUARD_CID_WAYS; i++)
        differs = c->id[i] == id ? 0 : differs;
    return !differs || c->overflow ? GUARD_KNOWN : GUARD_UNKNOWN;
}

GUARD_INLINE int guard_unknown(const struct guard_policy *p) {
    return p->unknown_limit && guard_within(GUARD_LIMIT_UNKNOWN, p->unknown_limit)
               ? STOQ_VERDICT_XSK
               : STOQ_VERDICT_DROP_UNKNOWN_CID;
}

/* Is it a copy of a packet that was here lately? Fingerprints are of the first bytes of ciphertext, which no
 * two packets share, under a key, so that nobody can make one that a given packet will be taken for. Racing
 * CPUs may let a copy through. A man on the side who sees a packet can have it dropped by sending a changed
 * copy first; its sender then repeats the contents in another packet. */
GUARD_INLINE int guard_replayed(const struct guard_policy *p, __u64 a, __u64 b, __u32 bytes) {
    /* Two rounds of multiply and fold (odd constants of good bit mixture); no more is asked of it. */
    __u64 x = (a ^ p->retry_key[0]) * 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 32 ^ b ^ p->retry_key[1]) * 0xff51afd7ed558ccdull;
    x = (x ^ x >> 29 ^ bytes) * 0xc4ceb9fe1a85ec53ull;
    x ^= x >> 32;
    __u32 slot = (__u32)x & (GUARD_REPLAY_SLOTS - 1);
    __u64 *seen = bpf_map_lookup_elem(&replays, &slot);
    if (!seen)
        return 0;
    x |= 1ull << 63; /* An empty slot is nobody's fingerprint. */
    if (*seen == x)
        return 1;
    *seen = x;
    return 0;
}

GUARD_INLINE int guard_judge_short(const struct guard_policy *p, const __u8 *q, const __u8 *end,
                                   __u32 bytes) {
    if (!(q[0] & 0x40))
        return STOQ_VERDICT_DROP_FIXED_BIT;
    if (bytes < GUARD_MIN_RESET_BYTES)
        return STOQ_VERDICT_DROP_SHORT;
    if (bytes < GUARD_MIN_SHORT_BYTES) /* Could be a stateless reset, and nothing else. */
        return guard_unknown(p);
    if (!parse_room(q, GUARD_MIN_SHORT_BYTES, end))
        return STOQ_VERDICT_ERROR;
    if (guard_look_up(p, parse_load64(q + 1)) == GUARD_UNKNOWN)
        return guard_unknown(p);
    if (p->flags & GUARD_REPLAY_FILTER && guard_replayed(p, parse_load64(q + 9), parse_load64(q + 17), bytes))
        return STOQ_VERDICT_DROP_REPLAY;
    return STOQ_VERDICT_XSK;
}

/* An Initial whose token (none: 0 bytes) is at `token_at` in the frame; `id`: the destination if it has eight
 * bytes. */
__noinline int guard_judge_initial(struct xdp_md *ctx, struct guard_packet *f, __u32 token_at,
                                   __u32 token_bytes, __u64 id) {
    struct guard_policy *p = guard_policy_now();
    struct guard_scratch *s = guard_scratch_here();
    if (!p || !s || !f)
        return STOQ_VERDICT_ERROR;
    enum guard_known known = f->dcid_len == GUARD_CID_BYTES ? guard_look_up(p, id) : GUARD_UNKNOWN;
    if (known == GUARD_KNOWN)
        return STOQ_VERDICT_XSK;
    if (f->at.payload_bytes <
        GUARD_MIN_INITIAL_BYTES) /* A server's may be small; whose it is we can't tell. */
        return known == GUARD_UNTOLD ? guard_unknown(p) : STOQ_VERDICT_DROP_INITIAL_SMALL;
    if (f->dcid_len < 8) /* Section 7.2: a client's first choice is not shorter. */
        return STOQ_VERDICT_DROP_HEADER;

    if (token_bytes && token_bytes <= RETRY_TOKEN_MAX_BYTES) {
        if (bpf_xdp_load_bytes(ctx, token_at, s->token, RETRY_TOKEN_MAX_BYTES))
            return STOQ_VERDICT_DROP_HEADER; /* A packet has more behind its token than the token lacks. */
        __u64 dcid = id;
        __u32 slot = (__u32)(bpf_ktime_get_ns() / RETRY_TOKEN_SLOT_NS);
        switch (retry_token_check(p->retry_key, f->at.src, (const __u8 *)&f->at.sport, slot, s->token,
                                  token_bytes, (const __u8 *)&dcid, f->dcid_len)) {
        case RETRY_TOKEN_GOOD:
            return STOQ_VERDICT_XSK;
        case RETRY_TOKEN_BAD:
            /* A client puts the token into all its Initials, the later ones to an id of the server's own
             * making. Those are known, if there is a table. */
            return known == GUARD_UNTOLD ? guard_unknown(p) : STOQ_VERDICT_DROP_TOKEN;
        case RETRY_TOKEN_FOREIGN:
            break;
        }
    }

    __u64 prefix = retry_load64(f->at.src);
    int fresh;
    if (!guard_bucket_take(p, prefix, &fresh))
        return STOQ_VERDICT_DROP_INITIAL_RATE;
    if (p->flags & GUARD_RETRY_ALWAYS ||
        (p->retry_above && !guard_within(GUARD_LIMIT_INITIAL, p->retry_above)))
        return p->retry_limit && !guard_within(GUARD_LIMIT_RETRY, p->retry_limit)
                   ? STOQ_VERDICT_DROP_RETRY_RATE
                   : STOQ_VERDICT_ANSWER_RETRY;
    if (fresh)
        guard_bucket_enter(p, prefix);
    return STOQ_VERDICT_XSK;
}

/* The variable-length integer (RFC 9000 section 16) at *q, of *left bytes of the packet. Moves on and gives
 * 0, or a verdict. Eight bytes are read whatever its length: in a well-formed packet more than that follow.
 */
GUARD_INLINE int guard_varint(const __u8 **q, const __u8 *end, __u32 *left, __u64 *out) {
    if (*left < 8)
        return STOQ_VERDICT_DROP_HEADER;
    if (!parse_room(*q, 8, end))
        return STOQ_VERDICT_ERROR;
    __u32 bytes = 1u << ((*q)[0] >> 6);
    asm volatile("" : "+r"(bytes)); /* The verifier does not follow the shift: the mask tells it. */
    bytes &= 15;
    *out = __builtin_bswap64(parse_load64(*q)) << 2 >> 2 >> (64 - 8 * bytes);
    *q += bytes;
    *left -= bytes;
    return 0;
}

/* The length field, and what it says, in `left` bytes from `q` on: 0, or a verdict. */
GUARD_INLINE int guard_length(const __u8 *q, const __u8 *end, __u32 left) {
    __u64 length = 0;
    int wrong = guard_varint(&q, end, &left, &length);
    return wrong ? wrong : length > left ? STOQ_VERDICT_DROP_HEADER : 0;
}

/* A packet with a long header. */
__noinline int guard_judge_long(struct xdp_md *ctx, struct guard_packet *f) {
    const __u8 *data = (const __u8 *)(long)ctx->data, *end = (const __u8 *)(long)ctx->data_end;
    struct guard_policy *p = guard_policy_now();
    if (!p || !f)
        return STOQ_VERDICT_ERROR;
    __u32 bytes = f->at.payload_bytes, at = f->at.payload & 511;
    const __u8 *q = data + at;
    if (bytes < GUARD_LONG_HEAD_BYTES)
        return STOQ_VERDICT_DROP_SHORT;
    if (!parse_room(q, GUARD_LONG_HEAD_BYTES, end))
        return STOQ_VERDICT_ERROR;
    __u32 version = parse_load16(q + 1) | (__u32)parse_load16(q + 3) << 16; /* Network order. */
    __u32 dcid_len = q[5], type = q[0] >> 4 & 3;
    if (version != 0 && version != __builtin_bswap32(1)) {
        /* Section 5.2.2: a server negotiates only with who sent enough for a first packet. (255 bytes are the
         * longest ids, so their lengths are within it.) */
        if (bytes < GUARD_MIN_INITIAL_BYTES || !p->version_limit ||
            !guard_within(GUARD_LIMIT_VERSION, p->version_limit))
            return STOQ_VERDICT_DROP_VERSION;
        return STOQ_VERDICT_XSK;
    }
    if (version != 0 && !(q[0] & 0x40))
        return STOQ_VERDICT_DROP_FIXED_BIT;
    if (GUARD_LONG_HEAD_BYTES + dcid_len > bytes)
        return STOQ_VERDICT_DROP_HEADER;
    __u64 id = 0;
    if (dcid_len == GUARD_CID_BYTES) {
        if (!parse_room(q, 6 + GUARD_CID_BYTES, end))
            return STOQ_VERDICT_ERROR;
        id = parse_load64(q + 6);
    }
    enum guard_known known = dcid_len == GUARD_CID_BYTES ? guard_look_up(p, id) : GUARD_UNKNOWN;
    if (version == 0) /* Answers us: to an id of ours, or to nobody. */
        return known != GUARD_UNKNOWN ? STOQ_VERDICT_XSK : guard_unknown(p);

    if (dcid_len > RETRY_TOKEN_MAX_CID)
        return STOQ_VERDICT_DROP_HEADER;
    q += 6 + dcid_len;
    if (!parse_room(q, 1, end))
        return STOQ_VERDICT_ERROR;
    __u32 scid_len = q[0];
    if (scid_len > RETRY_TOKEN_MAX_CID || GUARD_LONG_HEAD_BYTES + dcid_len + scid_len > bytes)
        return STOQ_VERDICT_DROP_HEADER;
    q += 1 + scid_len;
    at += GUARD_LONG_HEAD_BYTES + dcid_len + scid_len;
    __u32 left = bytes - (GUARD_LONG_HEAD_BYTES + dcid_len + scid_len);
    if (type == 3) { /* Retry: a token, not empty, and the tag. */
        if (left <= RETRY_TAG_BYTES)
            return STOQ_VERDICT_DROP_HEADER;
        return known != GUARD_UNKNOWN ? STOQ_VERDICT_XSK : guard_unknown(p);
    }
    /* From here on everything read lies before the packet number, so within the first buffer if the driver
     * put the headers there at all. */
    if (type != 0) {
        int wrong = guard_length(q, end, left);
        if (wrong)
            return wrong;
        return known != GUARD_UNKNOWN ? STOQ_VERDICT_XSK : guard_unknown(p);
    }
    __u64 token_bytes = 0;
    __u32 before = left;
    int wrong = guard_varint(&q, end, &left, &token_bytes);
    if (wrong)
        return wrong;
    if (token_bytes > left)
        return STOQ_VERDICT_DROP_HEADER;
    at += before - left;
    if (token_bytes <= GUARD_MAX_TOKEN_BYTES) {
        wrong = guard_length(q + token_bytes, end, left - (__u32)token_bytes);
        if (wrong)
            return wrong;
    }
    f->dcid_len = (__u8)dcid_len;
    f->scid_len = (__u8)scid_len;
    return guard_judge_initial(ctx, f, at, (__u32)token_bytes, id);
}

#endif
