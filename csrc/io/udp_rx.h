/* From what recvmsg(2) gives (name, control messages, flags) to a struct io_rx. No I/O in here. */
#ifndef STOQ_IO_UDP_RX_H
#define STOQ_IO_UDP_RX_H

#include <netinet/in.h>

#include "io.h"
#include "udp_socket.h"

/* Room for IPV6_PKTINFO (40), IPV6_TCLASS (24), UDP_GRO (24) and SO_RXQ_OVFL (24) makes 112; 144 leaves space
 * for one more small one and, with the 16-byte io_uring_recvmsg_out and UDP_RX_NAME_BYTES before it, starts
 * the payload on a cache line. */
#define UDP_RX_CONTROL_BYTES 144
#define UDP_RX_NAME_BYTES                                                                                    \
    32 /* sockaddr_in6 is 28; rounded up to keep the control messages 8-byte aligned.                        \
        */

enum udp_rx_verdict {
    UDP_RX_OK,
    UDP_RX_TRUNCATED, /* Larger than the buffer: rx_dropped_truncated. */
    UDP_RX_IPV4,      /* v4-mapped: rx_dropped_ipv4. */
    UDP_RX_EMPTY,     /* No payload: rx_dropped_empty. */
    UDP_RX_BAD        /* Not IPv6, or control messages cut: rx_errors. */
};

struct udp_rx_message {
    const void *name;
    size_t name_len;
    void *control; /* 8-byte aligned; read only. */
    size_t control_len;
    uint32_t flags; /* msg_flags. */
    uint8_t *data;
    size_t len;
};

/* Fills all of `out` but the handle, and counts into `stats`; `s` remembers what the kernel said last of its
 * drops. Only on UDP_RX_OK is `out` to be used. */
enum udp_rx_verdict udp_rx_parse(struct udp_socket *s, const struct udp_rx_message *m, struct io_rx *out,
                                 struct io_stats *stats);

#endif
