/* See udp_socket.h. Kernel documentation: udp(7), ipv6(7), socket(7); RFC 3542 for the IPV6_* options. */
#define _GNU_SOURCE
#include "udp_socket.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "text.h"

#ifndef SO_BINDTOIFINDEX
#define SO_BINDTOIFINDEX 62 /* asm-generic/socket.h, Linux 5.1; older libc headers lack it. */
#endif

/* 8 MiB holds some 120 trains as the kernel counts them: 1.6 ms at 40 Gbit/s, more than a worker is ever
 * away. */
#define DEFAULT_SOCKET_BYTES (8u << 20)

static bool set_int(int fd, int level, int option, int value) {
    return setsockopt(fd, level, option, &value, sizeof value) == 0;
}

/* Ask past the administrator's limit first (needs CAP_NET_ADMIN), then within it. Returns what was granted.
 */
static uint32_t set_buffer(int fd, int force_option, int option, uint32_t wish) {
    int value = wish > INT32_MAX / 2 ? INT32_MAX / 2 : (int)wish;
    if (!set_int(fd, SOL_SOCKET, force_option, value)) {
        set_int(fd, SOL_SOCKET, option,
                value); /* Never fails for its size: the kernel cuts it to its limit. */
    }
    int granted = 0;
    socklen_t len = sizeof granted;
    if (getsockopt(fd, SOL_SOCKET, option, &granted, &len) != 0 || granted < 0) {
        return 0;
    }
    return (uint32_t)granted;
}

struct sockaddr_in6 udp_sockaddr(const struct quic_addr *a) {
    struct sockaddr_in6 sa = {
        .sin6_family = AF_INET6, .sin6_port = htons(a->port), .sin6_scope_id = a->scope_id};
    memcpy(&sa.sin6_addr, a->ip, sizeof a->ip);
    return sa;
}

/* What the engine cannot do without. */
static bool set_required(int fd, const struct io_config *config, struct io_text *why) {
    const struct {
        int level, option, value;
        bool wanted;
        const char *name;
    } required[] = {
        {IPPROTO_IPV6, IPV6_V6ONLY, 1, true, "IPV6_V6ONLY"},
        /* Neither fragment nor believe ICMP about the path MTU: DPLPMTUD (RFC 8899) is the engine's. */
        {IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE, true, "IPV6_MTU_DISCOVER=PROBE"},
        {IPPROTO_IPV6, IPV6_DONTFRAG, 1, true, "IPV6_DONTFRAG"},
        {SOL_SOCKET, SO_REUSEPORT, 1, config->reuse_port, "SO_REUSEPORT"},
        {SOL_SOCKET, SO_BINDTOIFINDEX, (int)config->ifindex, config->ifindex != 0, "SO_BINDTOIFINDEX"},
    };
    for (size_t i = 0; i < sizeof required / sizeof required[0]; i++) {
        if (required[i].wanted && !set_int(fd, required[i].level, required[i].option, required[i].value)) {
            io_text_add(why, "socket option %s: %s", required[i].name, strerror(errno));
            return false;
        }
    }
    return true;
}

/* What it can do without, at a price that describe() names. */
static void set_optional(struct udp_socket *s, const struct io_config *config) {
    s->ecn = set_int(s->fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
    if (!s->ecn) {
        io_text_add(&s->notes, "; ECN not readable: IPV6_RECVTCLASS: %s", strerror(errno));
    }
    s->pktinfo = set_int(s->fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
    if (!s->pktinfo) {
        io_text_add(&s->notes, "; destination address unknown: IPV6_RECVPKTINFO: %s", strerror(errno));
    }
    if (!set_int(s->fd, SOL_SOCKET, SO_RXQ_OVFL, 1)) {
        io_text_add(&s->notes, "; drops at a full receive queue not counted: SO_RXQ_OVFL: %s",
                    strerror(errno));
    }
    if (config->no_gro) {
        io_text_add(&s->notes, "; UDP_GRO off: configured");
    } else {
        s->gro = set_int(s->fd, SOL_UDP, UDP_GRO, 1);
        if (!s->gro) {
            io_text_add(&s->notes, "; UDP_GRO off: %s (Linux 5.0 has it)", strerror(errno));
        }
    }
    if (config->no_gso) {
        io_text_add(&s->notes, "; UDP_SEGMENT off: configured");
    } else {
        int value = 0;
        socklen_t len = sizeof value;
        s->gso = getsockopt(s->fd, SOL_UDP, UDP_SEGMENT, &value, &len) == 0;
        if (!s->gso) {
            io_text_add(&s->notes, "; UDP_SEGMENT off: %s (Linux 4.18 has it)", strerror(errno));
        }
    }

    uint32_t wish = config->socket_bytes != 0 ? config->socket_bytes : DEFAULT_SOCKET_BYTES;
    s->rcvbuf_bytes = set_buffer(s->fd, SO_RCVBUFFORCE, SO_RCVBUF, wish);
    s->sndbuf_bytes = set_buffer(s->fd, SO_SNDBUFFORCE, SO_SNDBUF, wish);
    if (s->rcvbuf_bytes / 2 < wish) { /* The kernel reports twice what it was asked for: its own overhead. */
        io_text_add(&s->notes,
                    "; receive buffer %u KiB of %u: raise net.core.rmem_max or grant CAP_NET_ADMIN",
                    s->rcvbuf_bytes / 2 / 1024, wish / 1024);
    }
    if (s->sndbuf_bytes / 2 < wish) {
        io_text_add(&s->notes, "; send buffer %u KiB of %u: raise net.core.wmem_max or grant CAP_NET_ADMIN",
                    s->sndbuf_bytes / 2 / 1024, wish / 1024);
    }
}

/* The program of a group is its sockets' own business: attaching it again changes nothing. */
static void join_group(struct udp_socket *s, const struct io_config *config) {
    if (!config->reuse_port)
        return;
    if (config->steer_program <= 0) {
        io_text_add(&s->notes, "; no steering by connection id: strays cross by ring");
        return;
    }
    uint64_t fd = (uint64_t)s->fd;
    if (bpf_map_update_elem(config->steer_sockets, &config->worker, &fd, BPF_ANY) != 0 ||
        !set_int(s->fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, config->steer_program))
        io_text_add(&s->notes, "; no steering by connection id: %s", strerror(errno));
    else
        io_text_add(&s->notes, "; steered by connection id");
}

bool udp_socket_open(struct udp_socket *s, const struct io_config *config, struct io_text *why) {
    *s = (struct udp_socket){.fd = -1};
    if (quic_addr_is_v4_mapped(&config->bind)) {
        io_text_add(why, "bind address is IPv4-mapped: STOQ is IPv6 only, give an IPv6 address");
        return false;
    }
    s->fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDP);
    if (s->fd < 0) {
        io_text_add(why, "IPv6 UDP socket: %s", strerror(errno));
        return false;
    }
    if (!set_required(s->fd, config, why)) {
        udp_socket_close(s);
        return false;
    }
    set_optional(s, config);

    struct sockaddr_in6 sa = udp_sockaddr(&config->bind);
    socklen_t len = sizeof sa;
    if (bind(s->fd, (struct sockaddr *)&sa, sizeof sa) != 0) {
        const char *hint = errno == EADDRINUSE      ? " (another process has this port)"
                           : errno == EADDRNOTAVAIL ? " (no interface has this address)"
                           : errno == EACCES        ? " (a port below 1024 needs CAP_NET_BIND_SERVICE)"
                                                    : "";
        io_text_add(why, "bind to UDP port %u: %s%s", config->bind.port, strerror(errno), hint);
        udp_socket_close(s);
        return false;
    }
    if (getsockname(s->fd, (struct sockaddr *)&sa, &len) != 0) {
        io_text_add(why, "getsockname: %s", strerror(errno));
        udp_socket_close(s);
        return false;
    }
    s->local = config->bind;
    s->local.port = ntohs(sa.sin6_port);
    s->local.pad = 0;
    join_group(s, config);
    return true;
}

void udp_socket_close(struct udp_socket *s) {
    if (s->fd >= 0) {
        close(s->fd);
    }
    s->fd = -1;
}

void udp_socket_describe(const struct udp_socket *s, uint32_t max_segments, struct io_text *out) {
    if (s->gro) {
        io_text_add(out, ", UDP_GRO");
    }
    if (max_segments > 1) {
        io_text_add(out, ", UDP_SEGMENT up to %u datagrams", max_segments);
    }
    io_text_add(out, "%s%s, socket buffers %u/%u KiB", s->ecn ? ", ECN" : "", s->pktinfo ? ", pktinfo" : "",
                s->rcvbuf_bytes / 2 / 1024, s->sndbuf_bytes / 2 / 1024);
    io_text_add(out, "%s", s->notes.text);
}
