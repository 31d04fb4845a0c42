// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/* Which worker's socket a datagram goes to, on the socket path: BPF_PROG_TYPE_SK_REUSEPORT (kernel 4.19).
 *
 * Our connection ids carry the worker in their second byte (quic-load-balancers layout), so a datagram finds
 * its connection's worker however the client's address changes. What carries no id of ours (a client's first
 * packets, garbage) is spread by the kernel's hash of addresses, and so is what names a worker without a
 * socket: the worker that gets it passes it on by ring.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define UDP_HEADER_BYTES 8
#define LOCAL_CID_BYTES  8 /* QUIC_LOCAL_CID_BYTES */
#define LONG_HEADER      0x80
#define TYPE_MASK        0x30
#define TYPE_ZERO_RTT    0x10
#define MAX_WORKERS      64 /* STOQ_MAX_WORKERS */

struct {
    __uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
    __uint(max_entries, MAX_WORKERS);
    __type(key, __u32);
    __type(value, __u64);
} sockets SEC(".maps");

SEC("sk_reuseport")
int steer(struct sk_reuseport_md *ctx) {
    __u8 head[7 + LOCAL_CID_BYTES]; /* First byte, version, length of the id, the id; of a short header the
                                       first nine. */
    __u32 worker;
    if (bpf_skb_load_bytes(ctx, UDP_HEADER_BYTES, head, 1 + LOCAL_CID_BYTES))
        return SK_PASS;
    if (!(head[0] & LONG_HEADER)) {
        worker = head[2];
    } else {
        /* Initial and 0-RTT packets may carry an id of the client's own making (RFC 9000 section 7.2). */
        __u8 type = head[0] & TYPE_MASK;
        if (head[1] || head[2] || head[3] || head[4] != 1 || head[5] != LOCAL_CID_BYTES || type == 0 ||
            type == TYPE_ZERO_RTT)
            return SK_PASS;
        worker = head[7];
    }
    bpf_sk_select_reuseport(ctx, &sockets, &worker,
                            0); /* Fails where there is no socket: the hash decides. */
    return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
