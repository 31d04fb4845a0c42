/* From a frame to its UDP payload: Ethernet with up to two VLAN tags, IPv6 (RFC 8200) with extension headers
 * within a bound, UDP. One parser for the XDP program and for the AF_XDP backend, so that both always agree
 * on what is a datagram. Freestanding, no memory but its arguments.
 *
 *      data                                            end          frame_bytes
 *      ├ Ethernet ┬ tags ┬ IPv6 ┬ extensions ┬ UDP ┬ payload ├ (further buffers) ┤
 *      0                 l3                  l4    payload
 *
 * Only [data, end) is read. A frame may go on behind it (multi-buffer): lengths are checked against
 * frame_bytes.
 *
 * The walk goes on as far as it can even where a length is wrong, because what a frame is (whose port it is
 * for) decides who may judge it: a result with `has_ports` has a destination port to look at.
 */
#ifndef STOQ_BPF_PARSE_H
#define STOQ_BPF_PARSE_H

#include <linux/types.h>

/* RFC 8200 section 4.1 lists the order of extension headers, each once, destination options twice:
 * hop-by-hop, destination, routing, fragment, authentication, destination. Six before the upper layer;
 * whoever sends more is not a host that we want to talk to, and RFC 8504 section 5.3 lets a host set such
 * limits. */
#define PARSE_MAX_EXTENSIONS 6
/* Of all of them together: above what the above come to with options in ordinary use (8 to 40 bytes each),
 * and little enough that all headers are in the first buffer of any driver (at least 512 bytes). */
#define PARSE_MAX_EXTENSION_BYTES 256
#define PARSE_MAX_TAGS            2 /* IEEE 802.1ad: a service tag and a customer tag. */

#define PARSE_ETHERNET_BYTES 14
#define PARSE_TAG_BYTES      4
#define PARSE_IPV6_BYTES     40
#define PARSE_UDP_BYTES      8
/* Upper bound of `payload` below. */
#define PARSE_MAX_HEADER_BYTES                                                                               \
    (PARSE_ETHERNET_BYTES + PARSE_MAX_TAGS * PARSE_TAG_BYTES + PARSE_IPV6_BYTES +                            \
     PARSE_MAX_EXTENSION_BYTES + PARSE_UDP_BYTES)

enum parse_status {
    PARSE_UDP,        /* An IPv6 UDP datagram, all of it in the frame. Everything below is filled in. */
    PARSE_NOT_IP,     /* Neither IPv4 nor IPv6, or no whole header of it. */
    PARSE_IPV4,       /* has_ports: a UDP datagram's. */
    PARSE_ICMPV6,     /* From here on IPv6: src, dst, ecn, l3 are filled in. */
    PARSE_NOT_UDP,    /* Another upper layer, or a routing header that sends it on. */
    PARSE_FRAGMENT,   /* Not whole: first or later fragment. */
    PARSE_EXTENSIONS, /* More or longer extension headers than are looked through. */
    PARSE_TRUNCATED,  /* Ends before the UDP header does. */
    PARSE_BAD_IPV6,   /* has_ports. Longer than the frame, or from an address that nobody can have. */
    PARSE_BAD_UDP     /* has_ports. Its length is not within the packet's, or it has no checksum. */
};

struct parse_frame {
    __u8 src[16], dst[16];
    __u16 sport, dport;  /* Network order. */
    __u16 l3, l4;        /* Offsets of the IP and the UDP header. */
    __u16 payload;       /* Offset of the UDP payload. */
    __u16 payload_bytes; /* PARSE_UDP: within the frame, perhaps not within the first buffer. */
    __u8 ecn;            /* RFC 3168 bits. */
    __u8 has_ports;
    __u8 pad[2];
};

#define PARSE_INLINE static inline __attribute__((always_inline))

/* Bytes of a frame lie at any address. BPF loads are of any alignment; C has to be told so. */
#ifdef __bpf__
PARSE_INLINE __u16 parse_load16(const void *p) {
    return *(const __u16 *)p;
}
PARSE_INLINE __u64 parse_load64(const void *p) {
    return *(const __u64 *)p;
}
/* The form that the verifier learns a bound from. */
PARSE_INLINE int parse_room(const __u8 *p, __u32 bytes, const __u8 *end) {
    return p + bytes <= end;
}
#else
PARSE_INLINE __u16 parse_load16(const void *p) {
    __u16 v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
PARSE_INLINE __u64 parse_load64(const void *p) {
    __u64 v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
/* `p` is at most `end`. */
PARSE_INLINE int parse_room(const __u8 *p, __u32 bytes, const __u8 *end) {
    return (__u64)(end - p) >= bytes;
}
#endif

PARSE_INLINE __u16 parse_swap16(__u16 v) { /* Network to host order and back. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return __builtin_bswap16(v);
#else
    return v;
#endif
}

PARSE_INLINE void parse_copy_ip(__u8 to[16], const __u8 *from) {
    __u64 words[2] = {parse_load64(from), parse_load64(from + 8)};
    __builtin_memcpy(to, words, sizeof words);
}

/* IPv4 is looked into only to know whose it is; a later fragment has no port. */
PARSE_INLINE enum parse_status parse_ipv4(const __u8 *p, const __u8 *end, struct parse_frame *out) {
    if (!parse_room(p, 20, end) || p[0] >> 4 != 4)
        return PARSE_NOT_IP;
    __u32 header_bytes = (p[0] & 15u) * 4;
    int first = !(p[6] & 0x1f) && !p[7]; /* Fragment offset 0. */
    if (p[9] != 17 || !first || header_bytes < 20)
        return PARSE_IPV4;
    if (!parse_room(p, header_bytes, end))
        return PARSE_IPV4;
    p += header_bytes;
    if (!parse_room(p, 4, end))
        return PARSE_IPV4;
    out->sport = parse_load16(p);
    out->dport = parse_load16(p + 2);
    out->has_ports = 1;
    return PARSE_IPV4;
}

/* `p` at the UDP header, at offset `l4`; `ip_end` is where the IPv6 packet says that it ends. */
PARSE_INLINE enum parse_status parse_udp(const __u8 *p, const __u8 *end, __u32 l4, __u32 ip_end,
                                         __u32 frame_bytes, struct parse_frame *out) {
    if (!parse_room(p, PARSE_UDP_BYTES, end))
        return PARSE_TRUNCATED;
    out->sport = parse_load16(p);
    out->dport = parse_load16(p + 2);
    out->has_ports = 1;
    out->l4 = (__u16)l4;
    out->payload = (__u16)(l4 + PARSE_UDP_BYTES);
    if (ip_end > frame_bytes)
        return PARSE_BAD_IPV6;
    /* RFC 4291 sections 2.5.2 and 2.7: the unspecified and multicast addresses are never a datagram's source
     * that could be answered. */
    if (out->src[0] == 0xff || !(parse_load64(out->src) | parse_load64(out->src + 8)))
        return PARSE_BAD_IPV6;
    __u32 udp_bytes = parse_swap16(parse_load16(p + 4));
    /* RFC 8200 section 8.1: no checksum is no datagram. (Of a packet that this machine sent to itself the
     * kernel may not have finished the sum, but what it leaves there is never 0.) */
    if (udp_bytes < PARSE_UDP_BYTES || l4 + udp_bytes > ip_end || parse_load16(p + 6) == 0)
        return PARSE_BAD_UDP;
    out->payload_bytes = (__u16)(udp_bytes - PARSE_UDP_BYTES);
    return PARSE_UDP;
}

PARSE_INLINE enum parse_status parse_ipv6(const __u8 *p, const __u8 *end, __u32 l3, __u32 frame_bytes,
                                          struct parse_frame *out) {
    if (!parse_room(p, PARSE_IPV6_BYTES, end) || p[0] >> 4 != 6)
        return PARSE_NOT_IP;
    out->l3 = (__u16)l3;
    out->ecn = p[1] >> 4 & 3;
    parse_copy_ip(out->src, p + 8);
    parse_copy_ip(out->dst, p + 24);
    __u32 ip_end = l3 + PARSE_IPV6_BYTES + parse_swap16(parse_load16(p + 4));
    __u8 next = p[6];
    __u32 extension_bytes = 0;
    p += PARSE_IPV6_BYTES;
    for (int i = 0; i <= PARSE_MAX_EXTENSIONS; i++) {
        __u32 bytes;
        if (next == 17)
            return parse_udp(p, end, l3 + PARSE_IPV6_BYTES + extension_bytes, ip_end, frame_bytes, out);
        if (next == 58)
            return PARSE_ICMPV6;
        /* Hop-by-hop, routing, fragment, authentication (RFC 4302), destination. */
        if (next != 0 && next != 43 && next != 44 && next != 51 && next != 60)
            return PARSE_NOT_UDP;
        if (i == PARSE_MAX_EXTENSIONS)
            break;
        if (!parse_room(p, 8, end))
            return PARSE_TRUNCATED;
        if (next == 44) {
            /* Offset and the more-fragments bit; both zero is a whole packet (RFC 6946). */
            if (parse_swap16(parse_load16(p + 2)) & 0xfff9)
                return PARSE_FRAGMENT;
            bytes = 8;
        } else if (next == 51) {
            bytes = (p[1] + 2u) * 4;
        } else {
            if (next == 43 && p[3] != 0) /* Segments left: `dst` is a station on its way. */
                return PARSE_NOT_UDP;
            bytes = (p[1] + 1u) * 8;
        }
        extension_bytes += bytes;
        if (extension_bytes > PARSE_MAX_EXTENSION_BYTES)
            break;
        if (!parse_room(p, bytes, end))
            return PARSE_TRUNCATED;
        next = p[0];
        p += bytes;
    }
    return PARSE_EXTENSIONS;
}

/* `data` to `end`: the first buffer of a frame of `frame_bytes`. `*out` is written whatever the result. */
PARSE_INLINE enum parse_status parse_frame(const void *data, const void *end, __u32 frame_bytes,
                                           struct parse_frame *out) {
    const __u8 *p = (const __u8 *)data, *stop = (const __u8 *)end;
    __builtin_memset(out, 0, sizeof *out);
    if (!parse_room(p, PARSE_ETHERNET_BYTES, stop))
        return PARSE_NOT_IP;
    __u16 type = parse_swap16(parse_load16(p + 12));
    __u32 l3 = PARSE_ETHERNET_BYTES;
    p += PARSE_ETHERNET_BYTES;
    for (int i = 0; i < PARSE_MAX_TAGS && (type == 0x8100 || type == 0x88a8); i++) {
        if (!parse_room(p, PARSE_TAG_BYTES, stop))
            return PARSE_NOT_IP;
        type = parse_swap16(parse_load16(p + 2));
        l3 += PARSE_TAG_BYTES;
        p += PARSE_TAG_BYTES;
    }
    if (type == 0x86dd)
        return parse_ipv6(p, stop, l3, frame_bytes, out);
    if (type == 0x0800)
        return parse_ipv4(p, stop, out);
    return PARSE_NOT_IP;
}

#endif
