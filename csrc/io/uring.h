/* The io_uring backend's own state, shared by its four files:
 *
 *      uring.c     set-up, probing, waiting, waking, taking completions off the ring
 *      uring_rx.c  multishot recvmsg, the buffer ring, arrived trains
 *      uring_tx.c  sendmsg of trains
 *      uring_zc.c  zero-copy sends, and what else uring_options.h switches
 *
 * One ring carries everything. Its completions are told apart by the tag in user_data:
 *
 *      URING_RX     a train arrived in a buffer of the ring (or the multishot ended)  → ready queue → rx()
 *      URING_TX     a send is done; the slot's index is in the upper bits             → udp_tx_complete
 *      URING_WAKE   the eventfd read is done                                          → armed again by wait()
 *      URING_CANCEL close() only
 *
 * A receive buffer's life:   KERNEL (buffer ring) ─▶ READY (arrived) ─▶ WORKER (rx) ─▶ KERNEL (rx_release) */
#ifndef STOQ_IO_URING_H
#define STOQ_IO_URING_H

#include <liburing.h>

#include "io.h"
#include "pages.h"
#include "udp_rx.h"
#include "udp_socket.h"
#include "udp_tx.h"
#include "uring_options.h"
#include "waker.h"

enum uring_tag { URING_RX = 1, URING_TX, URING_WAKE, URING_CANCEL };
#define URING_TAG_BITS 8

enum uring_buffer_state { URING_BUFFER_KERNEL, URING_BUFFER_READY, URING_BUFFER_WORKER };

/* Header area the kernel writes before the payload: io_uring_recvmsg_out, name, control messages. 192 bytes.
 */
#define URING_RX_HEADER_BYTES (sizeof(struct io_uring_recvmsg_out) + UDP_RX_NAME_BYTES + UDP_RX_CONTROL_BYTES)
/* Distance of two receive buffers: header area and IO_TRAIN_BYTES, rounded up to a cache line. Not a power of
 * two, so that the buffers' headers do not all fall into the same cache set. */
#define URING_RX_STRIDE_BYTES (65536 + 256)
/* A power of two, as the kernel wants it. Few, because the ring is a FIFO and walks through all of them: 16
 * are 1 MiB, a second-level cache. Measured over veth without crypto, processor time of the receiver for a
 * packet of 1,452 bytes, median of three on a busy 2-core machine: 137 ns with 4 buffers, 147 with 8, 162
 * with 16, 179 with 32, 369 with 128. Not fewer, for a single datagram takes a buffer too, and each time they
 * run out costs a call. While none is free, datagrams wait in the socket's queue. */
#define URING_RX_DEFAULT_BUFFERS 16
#define URING_RX_MAX_BUFFERS     4096 /* 256 MiB. */

struct uring_ready {
    uint16_t buffer;
    int32_t bytes; /* Of the completion: header area and payload. */
};

struct uring_rx {
    struct pages pages;
    struct pages ring_pages;
    struct io_uring_buf_ring *ring;
    struct msghdr message;     /* Template: the lengths of the header area's parts. */
    struct uring_ready *ready; /* FIFO of `count` entries; head and tail run free. */
    uint8_t *state;            /* enum uring_buffer_state of each buffer. */
    uint32_t head, tail;
    uint32_t count;  /* Buffers; a power of two. */
    uint32_t posted; /* Buffers the kernel has. */
    bool armed;      /* The multishot receive is with the kernel. */
};

struct uring {
    struct io io; /* First: see io.h. */
    struct io_uring ring;
    struct udp_socket socket;
    struct waker waker;
    struct uring_rx rx;
    struct udp_tx_pool tx;
    struct io_stats stats;
    uint64_t wake_value;      /* Where the eventfd is read to. */
    struct udp_tx_slot *lone; /* Committed since the last flush, when it is the only one; not yet an entry. */
    uint32_t in_kernel;       /* Sends not yet completed. */
    bool wake_armed;
    bool ring_open, fixed_files, fixed_buffers;
    bool deferred;                   /* IORING_SETUP_DEFER_TASKRUN is in use. */
    struct io_uring_options options; /* As in use: what the kernel refused is off. */
    uint32_t copied;                 /* Zero-copy sends in a row that the kernel copied. */
};

static inline uint64_t uring_user_data(enum uring_tag tag, uint32_t index) {
    return (uint64_t)index << URING_TAG_BITS | (uint64_t)tag;
}

/* uring.c */
/* A submission entry for the socket; never NULL, for the ring is sized for everything that can be under way.
 */
struct io_uring_sqe *uring_sqe(struct uring *u);
void uring_use_socket(struct uring *u, struct io_uring_sqe *sqe);
/* Hand what was prepared to the kernel. */
void uring_submit(struct uring *u);
/* Take every completion that is there off the ring; does not enter the kernel. */
void uring_reap(struct uring *u);

/* uring_rx.c */
uint32_t uring_rx_count(uint32_t wish); /* Buffers to open for a wish of io_config. */
bool uring_rx_open(struct uring *u, uint32_t buffers, struct io_text *why);
void uring_rx_close(struct uring *u);
void uring_rx_arm(struct uring *u);
void uring_rx_complete(struct uring *u, const struct io_uring_cqe *cqe);
int uring_rx(struct io *io, struct io_rx *out, int max);
void uring_rx_release(struct io *io, const struct io_rx *v, int n);

static inline bool uring_rx_is_ready(const struct uring *u) {
    return u->rx.head != u->rx.tail;
}

/* uring_tx.c */
struct io_tx *uring_tx_acquire(struct io *io);
void uring_tx_commit(struct io *io, struct io_tx *tx);
void uring_tx_cancel(struct io *io, struct io_tx *tx);
void uring_flush(struct io *io);
void uring_tx_queue(struct uring *u, struct udp_tx_slot *slot); /* As an entry of the ring. */

/* uring_zc.c */
void uring_zc_open(struct uring *u); /* Before the ring is restricted. */
void uring_zc_stop(struct uring *u, const char *why);
void uring_zc_prepare(struct uring *u, struct io_uring_sqe *sqe, struct udp_tx_slot *slot);
void uring_tx_done(struct uring *u, struct udp_tx_slot *slot, const struct io_uring_cqe *cqe);
void uring_napi_open(struct uring *u); /* Likewise. */
void uring_options_describe(const struct uring *u, struct io_text *out);

#endif
