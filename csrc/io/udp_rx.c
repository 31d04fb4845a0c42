/* See udp_rx.h. RFC 3542 sections 6.1 (IPV6_PKTINFO) and 6.5 (IPV6_TCLASS); udp(7) for UDP_GRO. */
#define _GNU_SOURCE
#include "udp_rx.h"

#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>

static uint8_t address_scoped(const uint8_t ip[16]) {
    return ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80; /* fe80::/10, RFC 4291 section 2.5.6. */
}

static bool read_int(const struct cmsghdr *c, int *value) {
    if (c->cmsg_len < CMSG_LEN(sizeof *value)) {
        return false;
    }
    memcpy(value, CMSG_DATA(c), sizeof *value);
    return true;
}

/* The kernel stamps each datagram with the socket's drops until it was queued: 32 bits that wrap. Datagrams
 * of several senders' cores may be queued in another order than they were stamped; a step back is no drop. */
static void count_queue_drops(struct udp_socket *s, uint32_t dropped, struct io_stats *stats) {
    int32_t step = (int32_t)(dropped - s->queue_drops);
    if (step > 0) {
        stats->rx_dropped_queue += (uint32_t)step;
        s->queue_drops = dropped;
    }
}

static void read_control(struct udp_socket *s, const struct udp_rx_message *m, struct io_rx *out,
                         size_t *segment, struct io_stats *stats) {
    struct msghdr h = {.msg_control = m->control, .msg_controllen = m->control_len};
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c != NULL; c = CMSG_NXTHDR(&h, c)) {
        int value = 0;
        if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
            if (read_int(c, &value) && value > 0 && (size_t)value < m->len) {
                *segment = (size_t)value;
            }
        } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
            if (read_int(c, &value)) {
                count_queue_drops(s, (uint32_t)value, stats);
            }
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
            if (read_int(c, &value)) {
                out->ecn = (uint8_t)value & 3;
            }
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo info;
            if (c->cmsg_len >= CMSG_LEN(sizeof info)) {
                memcpy(&info, CMSG_DATA(c), sizeof info);
                memcpy(out->local.ip, &info.ipi6_addr, sizeof out->local.ip);
                out->ifindex = (uint32_t)info.ipi6_ifindex;
            }
        }
    }
}

enum udp_rx_verdict udp_rx_parse(struct udp_socket *s, const struct udp_rx_message *m, struct io_rx *out,
                                 struct io_stats *stats) {
    struct sockaddr_in6 from;
    *out = (struct io_rx){.data = m->data, .len = (uint32_t)m->len};
    out->local = s->local;
    size_t segment = m->len;
    read_control(s, m, out, &segment, stats);
    if ((m->flags & MSG_TRUNC) != 0) {
        stats->rx_dropped_truncated++;
        return UDP_RX_TRUNCATED;
    }
    if (m->len == 0) {
        stats->rx_dropped_empty++;
        return UDP_RX_EMPTY;
    }
    if (m->name_len < sizeof from || m->len > IO_TRAIN_BYTES || (m->flags & MSG_CTRUNC) != 0) {
        stats->rx_errors++; /* With control messages cut, where one datagram ends and the next begins is
                               unknown. */
        return UDP_RX_BAD;
    }
    memcpy(&from, m->name, sizeof from);
    if (from.sin6_family != AF_INET6) {
        stats->rx_errors++;
        return UDP_RX_BAD;
    }

    memcpy(out->peer.ip, &from.sin6_addr, sizeof out->peer.ip);
    out->peer.port = ntohs(from.sin6_port);
    out->peer.scope_id = address_scoped(out->peer.ip) ? from.sin6_scope_id : 0;
    out->segment = (uint16_t)segment;
    out->local.scope_id = address_scoped(out->local.ip) ? out->ifindex : 0;
    if (quic_addr_is_v4_mapped(&out->peer) || quic_addr_is_v4_mapped(&out->local)) {
        stats->rx_dropped_ipv4++;
        return UDP_RX_IPV4;
    }
    stats->rx_trains++;
    stats->rx_packets += (m->len + segment - 1) / segment;
    stats->rx_bytes += m->len;
    return UDP_RX_OK;
}
