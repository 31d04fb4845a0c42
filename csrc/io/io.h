/* Packet I/O backends behind one table. A backend moves UDP datagrams over IPv6 and parses no QUIC.
 *
 * The unit is the train: datagrams of one size laid end to end in one buffer (only the last may be shorter),
 * all from or to one address. A single datagram is a train of one.
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

#define IO_TRAIN_BYTES                                                                                       \
    65535 /* Most one train may hold: UDP_SEGMENT's limit less the headers is enforced by io_tx.cap. */
#define IO_TRAIN_PACKETS 64 /* Kernel's UDP_MAX_SEGMENTS on kernels before 6.9; a safe limit everywhere. */

struct io; /* A backend instance; each backend embeds it first in its own struct. */

struct io_rx {
    uint8_t *data;          /* Writable: opened in place. */
    uint32_t len;           /* Bytes in all. */
    uint32_t handle;        /* Backend's own, for rx_release. */
    uint16_t segment;       /* Bytes of each datagram but the last; equals len for a single one. Never 0. */
    uint8_t ecn;            /* IP ECN bits, RFC 3168: 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE. */
    uint32_t ifindex;       /* Interface it came in on, 0 if unknown. */
    struct quic_addr peer;  /* Source. */
    struct quic_addr local; /* Destination. Its port is always set; its ip may be :: when unknown. */
};

struct io_tx {
    uint8_t *data;
    uint32_t cap;          /* Bytes that fit. */
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

struct io_config {
    struct quic_addr bind; /* ip :: for any; port 0 for an ephemeral one (read back with local()). */
    uint32_t ifindex;      /* Bind to this interface only; 0 for any. */
    uint32_t rx_buffers;   /* Receive buffers of IO_TRAIN_BYTES each; 0 for the default. */
    uint32_t tx_buffers;   /* Send buffers; 0 for the default. */
    uint32_t socket_bytes; /* SO_RCVBUF / SO_SNDBUF wish; 0 for the default. */
    bool reuse_port;       /* Several workers share the port. */
    bool no_gso, no_gro;   /* Switch an offload off: for tests and for devices that get it wrong. */
    void *backend;         /* Backend-specific part, NULL for none (wire: struct wire_net *). */
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
};

struct io {
    /* Call through this, not open()'s table: where io_uring is refused, its open() gives a socket instance.
     */
    const struct io_ops *ops;
};

extern const struct io_ops io_uring_ops;
extern const struct io_ops io_socket_ops;
extern const struct io_ops io_wire_ops;

/* The backend called `name`, or NULL. */
const struct io_ops *io_backend_by_name(const char *name);

#endif
