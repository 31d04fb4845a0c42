/* The UDP socket that the io_uring and the plain socket backend share: its options, and what the kernel
 * granted.
 *
 * The descriptor is left blocking on purpose. io_uring gives up with EAGAIN on an O_NONBLOCK file where it
 * would otherwise arm a poll, and a multishot receive would end at once. Nothing blocks all the same:
 * io_uring issues without waiting, and every direct call passes MSG_DONTWAIT. */
#ifndef STOQ_IO_UDP_SOCKET_H
#define STOQ_IO_UDP_SOCKET_H

#include <netinet/in.h>

#include "io.h"

struct udp_socket {
    int fd;
    struct quic_addr local; /* As bound: its port is the real one. */
    bool gso;               /* UDP_SEGMENT may be used. */
    bool gro;               /* UDP_GRO is on. */
    bool ecn;               /* IPV6_RECVTCLASS is on. */
    bool pktinfo;           /* IPV6_RECVPKTINFO is on. */
    uint32_t rcvbuf_bytes;  /* As granted, by the kernel's accounting (twice the wish). */
    uint32_t sndbuf_bytes;
    uint32_t queue_drops; /* Of SO_RXQ_OVFL, as far as counted (udp_rx.c). */
    struct io_text notes; /* Each fallback with its reason, every one led by "; ". */
};

/* False: `why` says what failed and what to do. On success s->fd is bound. */
bool udp_socket_open(struct udp_socket *s, const struct io_config *config, struct io_text *why);
/* Safe when s->fd is -1. */
void udp_socket_close(struct udp_socket *s);
/* Append the socket's features and fallbacks. `max_segments`: most datagrams a train may have now. */
void udp_socket_describe(const struct udp_socket *s, uint32_t max_segments, struct io_text *out);

struct sockaddr_in6 udp_sockaddr(const struct quic_addr *a);

#endif
