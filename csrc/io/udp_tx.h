/* Send buffers of the two UDP backends, and the msghdr that carries each one's train to the kernel.
 *
 *      FREE ── take ──▶ WORKER ── prepare ──▶ KERNEL ── complete ──▶ FREE
 *        ▲                │ give                        (EIO on a train: offload off, sent again one by one)
 *        └────────────────┘
 *
 * The free list is a stack: the buffer sent last, still in the cache, is the next to be filled. */
#ifndef STOQ_IO_UDP_TX_H
#define STOQ_IO_UDP_TX_H

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "io.h"
#include "pages.h"
#include "udp_socket.h"

/* A train's bytes: what fits 65,535 with the IPv6 (40), UDP (8) and Ethernet (14) headers and two VLAN tags
 * (8). One byte more and the device's gso_max_size (65,536) makes the kernel segment in software. */
#define UDP_TX_TRAIN_BYTES (65535 - 40 - 8 - 14 - 8)
#define UDP_TX_SLOT_BYTES  65536 /* Distance of two buffers: page aligned. */
/* UDP_SEGMENT (24), IPV6_TCLASS (24), IPV6_PKTINFO (40). */
#define UDP_TX_CONTROL_BYTES                                                                                 \
    (CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct in6_pktinfo)))

enum udp_tx_state { UDP_TX_FREE, UDP_TX_WORKER, UDP_TX_KERNEL };

struct udp_tx_slot {
    struct io_tx tx; /* First: the worker's pointer is the slot's. */
    enum udp_tx_state state;
    bool zero_copy; /* uring_zc.c: how it was sent last; the result, until the buffer comes back. */
    int result;
    struct msghdr message;
    struct iovec iov;
    struct sockaddr_in6 to;
    _Alignas(struct cmsghdr) uint8_t control[UDP_TX_CONTROL_BYTES];
};

struct udp_tx_pool {
    struct udp_socket *socket;
    struct io_stats *stats;
    struct pages pages;
    struct udp_tx_slot *slots;
    uint32_t *free; /* Stack of slot indices. */
    uint32_t count, free_count;
    uint32_t max_segments;
    int last_error; /* errno of the last failed send, 0 for none: describe() shows it. */
    bool starved;   /* take() failed since the last time something came back. */
};

#define UDP_TX_MAX_BUFFERS 4096 /* 256 MiB. */
#define UDP_TX_DEFAULT_BUFFERS                                                                               \
    64 /* 4 MiB; sends complete at once as a rule, so only the top few are ever touched. */

bool udp_tx_open(struct udp_tx_pool *p, struct udp_socket *socket, struct io_stats *stats, uint32_t buffers);
void udp_tx_close(struct udp_tx_pool *p);

struct udp_tx_slot *udp_tx_take(struct udp_tx_pool *p);
void udp_tx_give(struct udp_tx_pool *p, struct udp_tx_slot *slot);
/* The worker's train is final: check it and fill slot->message. False: nothing is left for the caller to send
 * (it was refused and counted, or already sent datagram by datagram) and the slot is free again. */
bool udp_tx_prepare(struct udp_tx_pool *p, struct udp_tx_slot *slot);
/* `result`: bytes sent or -errno. Counts and frees the slot; never fails. */
void udp_tx_complete(struct udp_tx_pool *p, struct udp_tx_slot *slot, int result);
/* Append what is known of send errors. */
void udp_tx_describe(const struct udp_tx_pool *p, struct io_text *out);

#endif
