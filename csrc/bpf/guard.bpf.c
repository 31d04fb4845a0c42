// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/* The guard at the network card: an XDP program that sees every frame of an interface before the kernel does.
 *
 *      frame ─▶ near? ─no▶ parse ─▶ port? address? ─▶ blocked? ─▶ malformed? ─▶ rules (rules.h) ─▶ verdict
 *                          │ no                                          │
 *                          ▼                                            ├▶ drop
 *                     the kernel, untouched                             ├▶ Retry, back out (answer.h)
 *                                                                       └▶ ours: the queue's AF_XDP socket,
 *                                                                          or the kernel's socket
 *
 * Every frame counts one verdict of STOQ_VERDICTS. What is not clearly ours passes, even if it is malformed:
 * host traffic is the kernel's. There is one exception: a chain of extension headers past parse.h's bound to
 * one of our addresses is dropped, although nobody knows which port (or protocol) it would have led to.
 * Fragments pass too (the kernel reassembles, within its own bound, and hands what comes of it to the socket
 * path), so neither the blocklist nor the rules see them.
 *
 * The longest match of the blocklist decides: while an expired entry has not been removed by the control
 * plane, it hides a shorter prefix that holds it.
 *
 * Maps and who writes them: layout.h. Kernel documentation: bpf/, networking/af_xdp.rst. Linux 6.1 or newer.
 * Multi-buffer frames are taken ("xdp.frags"); their headers have to be in the first buffer.
 */
#include "maps.h"
#include "rates.h"
#include "rules.h"
#include "answer.h"

/* Helpers that the program uses are for programs under the GPL only; this file is under either licence. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";

GUARD_INLINE int guard_is_port(__u16 port) {
    return bpf_map_lookup_elem(&ports, &port) != 0;
}

GUARD_INLINE int guard_is_address(const __u8 ip[16]) {
    struct guard_ip key;
    retry_store64(key.ip, retry_load64(ip));
    retry_store64(key.ip + 8, retry_load64(ip + 8));
    return bpf_map_lookup_elem(&addresses, &key) != 0;
}

GUARD_INLINE int guard_is_blocked(const struct guard_policy *p, const __u8 ip[16]) {
    if (!p || !(p->flags & GUARD_BLOCKS))
        return 0;
    struct guard_prefix key = {.prefix_bits = 128};
    __u64 words[2] = {parse_load64(ip), parse_load64(ip + 8)};
    __builtin_memcpy(key.ip, words, sizeof key.ip);
    struct guard_block *b = bpf_map_lookup_elem(&blocklist, &key);
    return b && (b->expires_ns == 0 || b->expires_ns > bpf_ktime_get_ns());
}

/* A global function: verified once, and its result is one unknown number to the caller, not a state for each
 * way through the extension headers. */
__noinline int guard_parse(struct xdp_md *ctx, struct guard_packet *f) {
    if (!f)
        return PARSE_NOT_IP;
    return parse_frame((const void *)(long)ctx->data, (const void *)(long)ctx->data_end, f->frame_bytes,
                       &f->at);
}

/* A datagram to our port and address that parses. STOQ_VERDICT_XSK stands for "ours". */
GUARD_INLINE int guard_judge_quic(struct xdp_md *ctx, struct guard_packet *f) {
    const __u8 *data = (const __u8 *)(long)ctx->data, *end = (const __u8 *)(long)ctx->data_end;
    const __u8 *q = data + (f->at.payload & 511); /* PARSE_MAX_HEADER_BYTES is less. */
    struct guard_policy *p = guard_policy_now();
    if (f->at.payload_bytes == 0)
        return STOQ_VERDICT_DROP_SHORT;
    if (!p || !parse_room(q, 1, end))
        return STOQ_VERDICT_ERROR;
    return q[0] & 0x80 ? guard_judge_long(ctx, f) : guard_judge_short(p, q, end, f->at.payload_bytes);
}

GUARD_INLINE int guard_judge(struct xdp_md *ctx, struct guard_packet *f) {
    int status = guard_parse(ctx, f);
    switch (status) {
    case PARSE_IPV4:
        return f->at.has_ports && guard_is_port(f->at.dport) ? STOQ_VERDICT_DROP_IPV4
                                                             : STOQ_VERDICT_PASS_OTHER;
    case PARSE_ICMPV6:
        return STOQ_VERDICT_PASS_MANAGEMENT;
    case PARSE_FRAGMENT:
        return STOQ_VERDICT_PASS_FRAGMENT;
    case PARSE_EXTENSIONS:
        return guard_is_address(f->at.dst) ? STOQ_VERDICT_DROP_EXTENSIONS : STOQ_VERDICT_PASS_OTHER;
    case PARSE_UDP:
    case PARSE_BAD_IPV6:
    case PARSE_BAD_UDP:
        break;
    default:
        return STOQ_VERDICT_PASS_OTHER;
    }
    if (!guard_is_port(f->at.dport))
        return STOQ_VERDICT_PASS_OTHER;
    if (!guard_is_address(f->at.dst))
        return STOQ_VERDICT_PASS_ADDRESS;
    if (guard_is_blocked(guard_policy_now(), f->at.src))
        return STOQ_VERDICT_DROP_BLOCKED;
    if (status != PARSE_UDP)
        return status == PARSE_BAD_IPV6 ? STOQ_VERDICT_DROP_IPV6 : STOQ_VERDICT_DROP_UDP;
    return guard_judge_quic(ctx, f);
}

/* A copy of the frame, as it came, for whoever reads `mirror`. */
__noinline int guard_mirror(struct xdp_md *ctx, __u32 verdict, __u32 frame_bytes, __u32 queue) {
    __u32 zero = 0;
    struct guard_policy *p = guard_policy_now();
    struct guard_scratch *s = guard_scratch_here();
    struct guard_mirroring *m = bpf_map_lookup_elem(&mirroring, &zero);
    if (!p || !s || !m || !p->mirror_sample)
        return 0;
    /* The n-th of each CPU, so that CPUs share nothing here. */
    if (m->chosen++ % p->mirror_sample)
        return 0;
    __u32 bytes = p->mirror_snap < frame_bytes ? p->mirror_snap : frame_bytes;
    if (bytes > GUARD_SNAP_BYTES)
        bytes = GUARD_SNAP_BYTES;
    __u64 last = (__u64)bytes - 1; /* In a form whose bounds every verifier sees: 0 to 2047, plus 1. */
    if (last >= GUARD_SNAP_BYTES)
        return 0;
    asm volatile("" : "+r"(last));
    last &= GUARD_SNAP_BYTES - 1;
    if (bpf_xdp_load_bytes(ctx, 0, s->snap, last + 1))
        return 0;
    s->head.time_ns = bpf_ktime_get_ns();
    s->head.frame_bytes = frame_bytes;
    s->head.snapped_bytes = last + 1;
    s->head.queue = queue;
    s->head.verdict = verdict;
    if (bpf_ringbuf_output(&mirror, &s->head, sizeof s->head + last + 1, 0))
        m->lost++;
    return 0;
}

GUARD_INLINE void guard_count_one(__u32 verdict, __u32 frame_bytes) {
    struct guard_count *c = bpf_map_lookup_elem(&verdicts, &verdict);
    if (c) {
        c->packets++;
        c->bytes += frame_bytes;
    }
}

/* What is done about a verdict, but for an answer. */
GUARD_INLINE int guard_conclude(struct xdp_md *ctx, const struct guard_policy *p, int verdict,
                                __u32 frame_bytes, __u32 queue) {
    int action = XDP_PASS;
    if (verdict == STOQ_VERDICT_XSK) {
        action = bpf_redirect_map(&xsks, queue, XDP_PASS);
        if (action != XDP_REDIRECT)
            verdict = STOQ_VERDICT_SOCKET;
    } else if (verdict >= STOQ_VERDICT_DROP_IPV4 && verdict <= STOQ_VERDICT_DROP_RETRY_RATE) {
        action = XDP_DROP;
    }
    if (p && p->mirror_sample && p->mirror_verdicts >> (verdict & 63) & 1)
        guard_mirror(ctx, verdict, frame_bytes, queue);
    guard_count_one(verdict, frame_bytes);
    return action;
}

/* Any frame. */
__noinline int guard_any(struct xdp_md *ctx) {
    struct guard_packet f;
    __builtin_memset(&f, 0, sizeof f);
    f.frame_bytes = (__u32)bpf_xdp_get_buff_len(ctx);
    f.queue = ctx->rx_queue_index;
    int verdict = guard_judge(ctx, &f);
    struct guard_policy *p = guard_policy_now();
    if (verdict != STOQ_VERDICT_ANSWER_RETRY)
        return guard_conclude(ctx, p, verdict, f.frame_bytes, f.queue);
    if (p && p->mirror_sample && p->mirror_verdicts >> STOQ_VERDICT_ANSWER_RETRY & 1)
        guard_mirror(ctx, verdict, f.frame_bytes, f.queue);
    int answered = guard_answer(ctx, &f);
    guard_count_one(answered > 0 ? STOQ_VERDICT_ANSWER_RETRY : STOQ_VERDICT_ERROR, f.frame_bytes);
    return answered > 0 ? XDP_TX : answered < 0 ? XDP_ABORTED : XDP_PASS;
}

#define GUARD_FAR            (-1)
#define GUARD_NEAR_L4        (PARSE_ETHERNET_BYTES + PARSE_IPV6_BYTES)
#define GUARD_NEAR_PAYLOAD   (GUARD_NEAR_L4 + PARSE_UDP_BYTES)
#define GUARD_NEAR_ETHERTYPE 0xdd86 /* 0x86dd as it is loaded. */

/* What nearly every frame of a busy node is: a 1-RTT packet to `near`, without tags and extension headers,
 * with lengths that are each other's. The same verdict as guard_any's in a third of the instructions and none
 * of its look-ups in hash tables; GUARD_FAR: guard_any must say. */
GUARD_INLINE int guard_near(struct xdp_md *ctx, const struct guard_policy *p, __u32 frame_bytes) {
    const __u8 *eth = (const __u8 *)(long)ctx->data, *end = (const __u8 *)(long)ctx->data_end;
    const __u8 *ip = eth + PARSE_ETHERNET_BYTES, *udp = eth + GUARD_NEAR_L4, *q = eth + GUARD_NEAR_PAYLOAD;
    if (!p->near_port || !parse_room(eth, GUARD_NEAR_PAYLOAD + GUARD_MIN_SHORT_BYTES, end))
        return GUARD_FAR;
    __u64 differs = parse_load16(eth + 12) ^ GUARD_NEAR_ETHERTYPE;
    differs |= (ip[0] & 0xf0) ^ 0x60;
    differs |= ip[6] ^ 17;
    differs |= (parse_load64(ip + 24) ^ p->near_ip[0]) | (parse_load64(ip + 32) ^ p->near_ip[1]);
    differs |= parse_load16(udp + 2) ^ p->near_port;
    differs |= parse_load16(udp + 4) ^ parse_load16(ip + 4);
    differs |= (q[0] & 0xc0) ^ 0x40;
    __u32 udp_bytes = parse_swap16(parse_load16(udp + 4));
    differs |= GUARD_NEAR_L4 + udp_bytes ^ frame_bytes;
    if (differs || parse_load16(udp + 6) == 0 || ip[8] == 0xff ||
        !(parse_load64(ip + 8) | parse_load64(ip + 16)))
        return GUARD_FAR;
    if (guard_is_blocked(p, ip + 8))
        return STOQ_VERDICT_DROP_BLOCKED;
    return guard_judge_short(p, q, end, udp_bytes - PARSE_UDP_BYTES);
}

SEC("xdp.frags")
int stoq_guard(struct xdp_md *ctx) {
    __u32 frame_bytes = (__u32)bpf_xdp_get_buff_len(ctx);
    struct guard_policy *p = guard_policy_now();
    int verdict = p ? guard_near(ctx, p, frame_bytes) : GUARD_FAR;
    return verdict == GUARD_FAR ? guard_any(ctx)
                                : guard_conclude(ctx, p, verdict, frame_bytes, ctx->rx_queue_index);
}
