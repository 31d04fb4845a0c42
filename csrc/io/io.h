/* Packet I/O backends behind one table. A backend moves UDP datagrams over IPv6 and parses no QUIC.
 *
 * The unit is the train: datagrams of one size (only the last may be shorter), all from or to one address,
 * laid at equal distances in one buffer: end to end where the kernel cuts and joins them (UDP_SEGMENT,
 * UDP_GRO), a frame's length apart where each lies in a frame of its own (AF_XDP). A single datagram is a
 * train of one.
 *
 * Who owns a buffer when:
 *
 *      receive   backend ── rx() ──▶ worker (reads, decrypts in place) ── rx_release() ──▶ backend
 *      send      backend ── tx_acquire() ──▶ worker (builds the train in it)
 *                        ◀── tx_commit() or tx_cancel() ── worker
 *      flush() hands what was committed to the kernel; the buffer comes back to the backend's free list when
 * the kernel has completed it. The worker never sees a buffer that the kernel still reads.
 *
 * One instance belongs to one worker thread; nothing here is thread safe but wake().
 */
#ifndef STOQ_IO_H
#define STOQ_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../quic/addr.h"
#include "uring_options.h"

#define IO_TRAIN_BYTES                                                                                       \
    65535 /* Most one train may hold: UDP_SEGMENT's limit less the headers is enforced by io_tx.cap. */
#define IO_TRAIN_PACKETS 64 /* Kernel's UDP_MAX_SEGMENTS on kernels before 6.9; a safe limit everywhere. */

struct io; /* A backend instance; each backend embeds it first in its own struct. */

struct io_rx {
    uint8_t *data;          /* Writable: opened in place. */
    uint32_t len;           /* Bytes of the datagrams in all; what lies between them does not count. */
    uint32_t stride;        /* From the start of one datagram to the next; 0: end to end. */
    uint32_t handle;        /* Backend's own, for rx_release. */
    uint16_t segment;       /* Bytes of each datagram but the last; equals len for a single one. Never 0. */
    uint8_t ecn;            /* IP ECN bits, RFC 3168: 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE. */
    uint32_t ifindex;       /* Interface it came in on, 0 if unknown. */
    struct quic_addr peer;  /* Source. */
    struct quic_addr local; /* Destination. Its port is always set; its ip may be :: when unknown. */
};

struct io_tx {
    uint8_t *data;
    uint32_t cap;          /* Bytes that fit; with a stride, that fit each datagram. */
    uint32_t stride;       /* From the start of one datagram to the next; 0: end to end. */
    uint32_t max_segments; /* Most datagrams in this train: 1 where the path has no segmentation offload. */
    uint32_t handle;       /* Backend's own. */
    /* Filled by the worker before tx_commit: */
    uint32_t len;
    uint16_t segment;
    uint8_t ecn;
    uint32_t ifindex;
    struct quic_addr peer;
    struct quic_addr local; /* Source to send from; ip :: lets the kernel choose. */
};

/* Counted since open. Names are shared with Python and metrics through csrc/tables.h. */
struct io_stats {
    uint64_t rx_packets, rx_bytes, rx_trains, rx_errors;
    /* Dropped by the kernel: the socket's queue was full, or a checksum was wrong (SO_RXQ_OVFL). A train that
     * the kernel had coalesced counts once. Becomes known with the next datagram that gets through. */
    uint64_t rx_dropped_queue;
    uint64_t rx_dropped_truncated; /* Larger than a receive buffer. */
    uint64_t rx_dropped_empty;     /* No payload at all. */
    uint64_t rx_dropped_ipv4;      /* v4-mapped source or destination. */
    uint64_t rx_no_buffer; /* Times the kernel found no buffer of ours; the datagrams wait in the socket. */
    uint64_t tx_packets, tx_bytes, tx_trains, tx_errors;
    uint64_t tx_full; /* tx_acquire found no free buffer. */
    uint64_t wakeups, waits, syscalls;
};

/* How the way to a peer looks in the kernel's tables; learned from the control plane (AF_XDP needs it: there
 * is no kernel below it that would know). */
struct io_route {
    uint8_t prefix[16];  /* Bits behind `bits` are zero. */
    uint8_t gateway[16]; /* ::: on link. */
    uint8_t source[16];  /* Preferred source address; ::: none. */
    uint8_t bits;        /* 0 to 128 */
    bool ours;           /* Leaves by the backend's interface; else by another: the socket path's. */
    bool gone;           /* No longer there. */
    uint16_t mtu;        /* Of the link; 0: unknown. */
};

struct io_neighbour {
    uint8_t ip[16];
    uint8_t link[6]; /* Link-layer address. */
    bool gone;       /* Unknown or unreachable now. */
};

/* A queue with rings shared with the kernel, as `stoq status` shows it. Words only, so that it can be
 * published as they are. Frames are of the whole queue: their sum is `frames` whenever nothing is under way.
 */
struct io_queue_stats {
    uint64_t queue, ifindex;
    uint64_t native;                                            /* 1: XDP runs in the driver; 0: generic. */
    uint64_t zero_copy;                                         /* 1: zero copy; 0: copy. */
    uint64_t need_wakeup, busy_poll, multi_buffer, tx_checksum; /* 1: in use. */
    uint64_t frames, frame_bytes;
    uint64_t frames_fill;       /* FILL ring, or with the driver: given and not come back. */
    uint64_t frames_rx;         /* RX ring: arrived, not taken yet. */
    uint64_t frames_worker;     /* Being read or built by the worker. */
    uint64_t frames_free;       /* Pool. */
    uint64_t frames_tx;         /* TX ring, or with the driver: committed, not completed. */
    uint64_t frames_completion; /* COMPLETION ring: completed, not taken back yet. */
    uint64_t ring_fill, ring_rx, ring_tx, ring_completion; /* Entries in each ring now. */
    uint64_t wakeups_rx, wakeups_tx;                       /* System calls made to wake the kernel's side. */
    uint64_t rx_batches, tx_batches; /* Ring batches; packets over batches is their mean size. */
    uint64_t
        tx_socket; /* Trains that went by the socket path: no neighbour known yet, or another interface. */
    uint64_t rx_socket;          /* Trains that came by it. */
    uint64_t routes, neighbours; /* Known now. */
    /* XDP_STATISTICS of the kernel, since open. */
    uint64_t kernel_rx_dropped, kernel_rx_invalid, kernel_tx_invalid, kernel_rx_ring_full, kernel_fill_empty,
        kernel_tx_empty;
};

struct io_config {
    struct quic_addr bind;         /* ip :: for any; port 0 for an ephemeral one (read back with local()). */
    uint32_t ifindex;              /* Bind to this interface only; 0 for any. */
    uint32_t rx_buffers;           /* Receive buffers of IO_TRAIN_BYTES each; 0 for the default. */
    uint32_t tx_buffers;           /* Send buffers; 0 for the default. */
    uint32_t socket_bytes;         /* SO_RCVBUF / SO_SNDBUF wish; 0 for the default. */
    bool reuse_port;               /* Several workers share the port. */
    uint32_t worker;               /* Ours among them. */
    int steer_program;             /* SK_REUSEPORT program that picks one by connection id, */
    int steer_sockets;             /* and its array of sockets, by worker. 0: none. */
    struct io_uring_options uring; /* io_uring's own. */
    bool no_gso, no_gro;           /* Switch an offload off: for tests and for devices that get it wrong. */
    void *backend;                 /* Backend-specific part, NULL for none (wire: struct wire_net *). */
};

/* Text for people: what was asked for, what was got and why. Written by open and describe. */
struct io_text {
    char text[512];
};

struct io_ops {
    const char *name;
    /* Returns NULL and writes `why` (what failed and what to do about it) on failure. */
    struct io *(*open)(const struct io_config *config, struct io_text *why);
    void (*close)(struct io *io);

    /* Up to `max` trains that have arrived; 0 when there are none now; never blocks. */
    int (*rx)(struct io *io, struct io_rx *out, int max);
    void (*rx_release)(struct io *io, const struct io_rx *v, int n);

    /* A free send buffer, or NULL when all are with the kernel (counted; try again after wait). */
    struct io_tx *(*tx_acquire)(struct io *io);
    void (*tx_commit)(struct io *io, struct io_tx *tx);
    void (*tx_cancel)(struct io *io, struct io_tx *tx);
    /* Hand committed trains to the kernel. Errors are counted, not returned: to QUIC they are loss. */
    void (*flush)(struct io *io);

    /* Sleep until something arrives, a send completes, wake() is called, or timeout_ns passes (-1: for ever).
     */
    void (*wait)(struct io *io, int64_t timeout_ns);
    /* From any thread: make wait() return, now or the next time it is called. */
    void (*wake)(struct io *io);

    void (*local)(const struct io *io, struct quic_addr *out);
    void (*stats)(const struct io *io, struct io_stats *out);
    /* Features in use and each fallback taken, with its reason. */
    void (*describe)(const struct io *io, struct io_text *out);

    /* Optional, NULL where they mean nothing. The first two come from the worker's thread. */
    void (*learn_route)(struct io *io, const struct io_route *route);
    void (*learn_neighbour)(struct io *io, const struct io_neighbour *neighbour);
    void (*queue)(const struct io *io, struct io_queue_stats *out);
    /* For a backend that waits for this one, right before each poll(2): a descriptor that becomes readable
     * when rx() will have something; -1: nothing to wait for. `*ready` is set when rx() has it now. */
    int (*poll_fd)(struct io *io, bool *ready);
};

struct io {
    /* Call through this, not open()'s table: where io_uring is refused, its open() gives a socket instance.
     */
    const struct io_ops *ops;
};

extern const struct io_ops io_uring_ops;
extern const struct io_ops io_socket_ops;
extern const struct io_ops io_afxdp_ops; /* io_config.backend: struct afxdp_config of afxdp.h. */
extern const struct io_ops io_wire_ops;

/* The backend called `name`, or NULL. */
const struct io_ops *io_backend_by_name(const char *name);

#endif
