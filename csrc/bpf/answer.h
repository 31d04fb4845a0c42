/* A stateless Retry in place of the Initial that came (RFC 9000 section 8.1.2): the frame is cut to the
 * answer's length, turned round and sent out of the interface that it came in by. It is at most a ninth of
 * what it answers, so nothing is amplified. BPF only.
 */
#ifndef STOQ_BPF_ANSWER_H
#define STOQ_BPF_ANSWER_H

#include "maps.h"

#define GUARD_HOP_LIMIT 64 /* As the kernel's own default. */

/* The Retry for an Initial that passed the rules, into scratch. It is a global function, so the verifier
 * looks at it once, whatever the caller knows. */
__noinline int guard_build(struct guard_scratch *s) {
    return s ? retry_build(&s->request, &s->answer) : 0;
}

/* Ones' complement sum to 16 bits, complemented (RFC 1071); 0 is sent as ffff (RFC 8200 section 8.1). */
GUARD_INLINE __u16 guard_fold(__u64 sum) {
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    __u16 folded = ~(__u16)sum;
    return folded ? folded : 0xffff;
}

GUARD_INLINE __u64 guard_add64(__u64 sum, __u64 word) {
    return sum + (word & 0xffffffff) + (word >> 32);
}

/* 1: the frame is a Retry now. 0: it is as it was. Negative: it is neither, and must go nowhere. */
__noinline int guard_answer(struct xdp_md *ctx, struct guard_packet *f) {
    struct guard_policy *p = guard_policy_now();
    struct guard_scratch *s = guard_scratch_here();
    if (!p || !s || !f)
        return 0;
    struct retry_request *r = &s->request;
    __u32 l3 = f->at.l3 & 31, dcid_at = (f->at.payload & 511) + 6;
    r->key[0] = p->retry_key[0];
    r->key[1] = p->retry_key[1];
    retry_store64(r->ip, retry_load64(f->at.src));
    retry_store64(r->ip + 8, retry_load64(f->at.src + 8));
    r->port[0] = (__u8)f->at.sport;
    r->port[1] = (__u8)(f->at.sport >> 8);
    r->slot = (__u32)(bpf_ktime_get_ns() / RETRY_TOKEN_SLOT_NS);
    r->odcid_len = f->dcid_len;
    r->scid_len = f->scid_len;
    /* The packet is an Initial of 1200 bytes or more: twenty bytes from either id on are its own. */
    if (bpf_xdp_load_bytes(ctx, dcid_at, r->odcid, RETRY_TOKEN_MAX_CID) ||
        bpf_xdp_load_bytes(ctx, dcid_at + f->dcid_len + 1, r->scid, RETRY_TOKEN_MAX_CID))
        return 0;
    /* Our id: three free bits, the worker, six random bytes; never all zero (layout.h). */
    __u64 id = (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32();
    id = (id & ~0xffe0ull) | (__u64)p->worker_of_queue[f->queue & (GUARD_MAX_QUEUES - 1)] << 8;
    retry_store64(r->new_scid, id ? id : 1ull << 63);
    if (!guard_build(s))
        return 0;
    /* Bounds that the verifier sees: both are retry_build's. */
    __u32 start = s->answer.start, over = s->answer.len - RETRY_MIN_BYTES;
    if (over > RETRY_MAX_BYTES - RETRY_MIN_BYTES || start > 1 + RETRY_TOKEN_MAX_CID)
        return 0;
    asm volatile("" : "+r"(over));
    __u32 bytes = RETRY_MIN_BYTES + over;

    int cut = (int)(l3 + PARSE_IPV6_BYTES + PARSE_UDP_BYTES + bytes) - (int)f->frame_bytes;
    if (cut >= 0 || bpf_xdp_adjust_tail(ctx, cut))
        return 0;
    __u8 *eth = (__u8 *)(long)ctx->data, *end = (__u8 *)(long)ctx->data_end, *ip = eth + l3;
    if (ip + PARSE_IPV6_BYTES + PARSE_UDP_BYTES > end || eth + PARSE_ETHERNET_BYTES > end)
        return -1;
    __u64 macs = parse_load64(eth);
    __u32 rest = parse_load16(eth + 8) | (__u32)parse_load16(eth + 10) << 16;
    retry_store32(eth, (__u32)(macs >> 48) | rest << 16);
    *(__u16 *)(eth + 4) = (__u16)(rest >> 16);
    retry_store32(eth + 6, (__u32)macs);
    *(__u16 *)(eth + 10) = (__u16)(macs >> 32);

    __u16 udp_bytes = parse_swap16((__u16)(PARSE_UDP_BYTES + bytes));
    __u64 a0 = retry_load64(f->at.dst), a1 = retry_load64(f->at.dst + 8);
    __u64 b0 = retry_load64(f->at.src), b1 = retry_load64(f->at.src + 8);
    retry_store32(ip, 0x60); /* Version 6, no traffic class (not ECN capable: RFC 3168), no flow label. */
    *(__u16 *)(ip + 4) = udp_bytes;
    ip[6] = 17;
    ip[7] = GUARD_HOP_LIMIT;
    retry_store64(ip + 8, a0);
    retry_store64(ip + 16, a1);
    retry_store64(ip + 24, b0);
    retry_store64(ip + 32, b1);
    __u8 *udp = ip + PARSE_IPV6_BYTES;
    *(__u16 *)udp = f->at.dport;
    *(__u16 *)(udp + 2) = f->at.sport;
    *(__u16 *)(udp + 4) = udp_bytes;

    /* In host order throughout: the ones' complement sum does not mind (RFC 1071 section 2 B). */
    __u64 sum = guard_add64(guard_add64(guard_add64(guard_add64(0, a0), a1), b0), b1);
    sum += (__u64)udp_bytes + parse_swap16(17) + f->at.dport + f->at.sport + udp_bytes;
    const __u8 *retry = s->answer.bytes + start;
    /* A multiple of four is summed: zeros behind the end. */
    retry_store32(s->answer.bytes + start + bytes, 0);
    __s64 part = bpf_csum_diff(0, 0, (__be32 *)retry, (bytes + 3) & ~3u, 0);
    if (part < 0)
        return -1;
    *(__u16 *)(udp + 6) = guard_fold(sum + (__u32)part);
    return bpf_xdp_store_bytes(ctx, l3 + PARSE_IPV6_BYTES + PARSE_UDP_BYTES, (void *)retry, bytes) ? -1 : 1;
}

#endif
