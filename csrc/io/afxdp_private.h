/* The AF_XDP backend's own state, shared by its files:
 *
 *      afxdp.c      life, waiting and waking, reports
 *      afxdp_rx.c   from RX ring to trains, and back into the FILL ring; the socket path's arrivals
 *      afxdp_tx.c   send slots, headers and checksums, TX and COMPLETION rings; what goes by the socket path
 *
 * below them paths (headers for a destination), xsk (the socket), umem (the frames and their books).
 *
 * A send frame; the worker writes from FRAME_PAYLOAD_AT on, everything before is ours:
 *
 *      0        42           66          80      120   128
 *      │ unused │ metadata   │ Ethernet  │ IPv6  │ UDP │ payload ...
 *
 * Where a datagram takes several frames they follow each other, so that the payload is in one piece for the
 * worker; only then there is no room for metadata before each of the frames, and the checksum is computed
 * here. */
#ifndef STOQ_IO_AFXDP_PRIVATE_H
#define STOQ_IO_AFXDP_PRIVATE_H

#include "afxdp.h"
#include "paths.h"
#include "umem.h"
#include "waker.h"
#include "xsk.h"

#define FRAME_PAYLOAD_AT 128u /* A cache line's start, with room for headers and metadata. */
#define FRAME_HEADER_AT  (FRAME_PAYLOAD_AT - PATHS_HEADER_BYTES)
#define ETHERNET_BYTES   14u
#define VLAN_BYTES       4u     /* Of a tag that the device leaves in the frame. */
#define IP_UDP_BYTES     48u    /* IPv6 and UDP headers: what a link's MTU counts beside the payload. */
#define LINEAR_BUFFERS   128u   /* Received packets in several frames that the worker may hold: two trains. */
#define LINEAR_MAX_BYTES 16384u /* Above any Ethernet MTU in use (9,000 to 9,600). */

/* Kinds of io_rx.handle: what the train lies in. */
#define HANDLE_SOCKET 0x80000000u /* The socket path's; the rest is its own handle. */
#define HANDLE_LINEAR 0x40000000u /* Linear buffers; the rest is the first one's index. */

enum afxdp_slot_state { SLOT_FREE, SLOT_WORKER, SLOT_KERNEL };

struct afxdp_slot {
    struct io_tx tx; /* First: the worker's pointer is the slot's. */
    enum afxdp_slot_state state;
    uint32_t pending; /* Frames that the kernel has not given back. */
};

/* Packets that came in several frames, copied together: end to end within, equally far apart. Taken in a
 * circle, so that those of one train lie in a row. */
struct afxdp_linear {
    struct pages pages;
    uint32_t bytes; /* Of each; 0: none, every packet fits a frame. */
    uint32_t next;  /* The next to be taken, if it is free. */
    bool *used;
};

struct afxdp {
    struct io io; /* First: see io.h. */
    struct afxdp_config config;
    struct quic_addr bind; /* As asked; the port as got. */
    uint32_t mtu;
    char interface[16];
    struct umem umem;
    struct xsk xsk;
    struct io *inner; /* The socket path; NULL: none. */
    struct paths paths;
    struct waker waker;

    struct afxdp_slot *slots;
    uint32_t *slots_free; /* Stack: the one used last is still in the cache. */
    uint32_t slot_count, slot_free_count;
    uint32_t datagram_frames; /* Frames a datagram takes in a slot. */
    uint32_t datagram_bytes;  /* That fit it. */
    bool offload;             /* Checksums by transmit metadata. */
    bool starved;             /* tx_acquire failed since the last slot came back. */
    bool inner_committed;     /* The socket path has something to flush. */

    uint8_t *run; /* Of each frame or linear buffer that a train begins with: how many it has. */
    struct afxdp_linear linear;
    uint32_t inner_skipped; /* Turns since the socket path was last asked. */

    struct io_stats stats;       /* Without the socket path's. */
    struct io_queue_stats queue; /* Counters only; what can be read off is filled in by queue(). */
    uint64_t linearised;         /* Packets received in several frames. */
    uint64_t tx_again;           /* Times the kernel left something in the TX ring (EAGAIN, ENOBUFS). */
    int tx_error;                /* errno of the last other failure, 0 for none. */
    struct io_text notes;        /* What was not granted and why, each led by "; ". */
};

/* afxdp_rx.c */
bool afxdp_rx_open(struct afxdp *a);
void afxdp_rx_close(struct afxdp *a);
int afxdp_rx(struct io *io, struct io_rx *out, int max);
void afxdp_rx_release(struct io *io, const struct io_rx *v, int n);

/* afxdp_tx.c */
bool afxdp_tx_open(struct afxdp *a);
void afxdp_tx_close(struct afxdp *a);
struct io_tx *afxdp_tx_acquire(struct io *io);
void afxdp_tx_commit(struct io *io, struct io_tx *tx);
void afxdp_tx_cancel(struct io *io, struct io_tx *tx);
void afxdp_flush(struct io *io);
/* Take back what is sent; does not enter the kernel. */
void afxdp_tx_reap(struct afxdp *a);

/* Tests and debugging: do the frames' books agree with the rings? See umem_check. */
bool afxdp_check(const struct io *io, bool exact, struct io_text *why);

#endif
