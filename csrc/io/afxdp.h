/* AF_XDP backend: one socket (XSK) on one queue of one interface, and beside it a UDP socket on the same
 * port.
 *
 *   UMEM: one area of equal frames, each owned by exactly one of these at any time
 *
 *                 ┌────────── FILL ring ◀── release ──┐
 *                 ▼                                   │
 *      receive   kernel ──▶ RX ring ──▶ rx() ──▶ worker (opens in place)
 *
 *      send      free slots ──▶ tx_acquire ──▶ worker (builds) ──▶ commit ──▶ TX ring ──▶ kernel
 *                    ▲                                                                     │
 *                    └──────────────────────────── COMPLETION ring ◀───────────────────────┘
 *
 * A send slot is IO_TRAIN_PACKETS frames in a row, so that a train is built straight into the frames that
 * leave: the headers go before each datagram, nothing is copied.
 *
 * The socket path. The UDP socket holds the port (no other process can have it, and the kernel never answers
 * with "port unreachable"), takes what the XDP program passes on, and carries what cannot leave by the XSK:
 * other interfaces, and peers whose link address is not known yet. The kernel then resolves the neighbour,
 * holding the packets in its own bounded queue, and the control plane hears of the result and tells us
 * (learn_neighbour). One train to each neighbour every AFXDP_CONFIRM_NS goes that way on purpose: it keeps
 * the kernel's own reachability check (RFC 4861 section 7.3) running for peers that only we talk to.
 *
 * Kernel documentation: Documentation/networking/af_xdp.rst, xsk-tx-metadata.rst.
 */
#ifndef STOQ_IO_AFXDP_H
#define STOQ_IO_AFXDP_H

#include "io.h"

#define AFXDP_CONFIRM_NS UINT64_C(10000000000) /* A third of the kernel's base reachable time. */

enum afxdp_mode { AFXDP_MODE_AUTO, AFXDP_MODE_COPY, AFXDP_MODE_ZERO_COPY };

struct afxdp_config {
    uint32_t ifindex;
    uint32_t queue;
    enum afxdp_mode
        mode;    /* AUTO: zero copy, else copy, and describe() says why. The others: that or an error. */
    bool native; /* What the guard got; for the report, and for the fall-back that bind may need. */
    int xsks_fd; /* XSKMAP to enter the socket into; -1: none (send only, or somebody else enters it). */
    uint32_t rx_frames;   /* A power of two; 0: 4096. */
    uint32_t tx_slots;    /* Trains; 0: 32. */
    uint32_t busy_budget; /* Packets a busy-poll call may handle; 0: no preferred busy polling. */
    bool no_tx_checksum;  /* Compute the checksum here even where the kernel would. */
    /* The driver's zero-copy path computes the checksums that transmit metadata asks for (netdev family,
     * xsk-features). In zero copy nobody does where the driver does not; in copy mode the kernel always does.
     */
    bool driver_checksum;
    bool no_socket;                  /* No UDP socket beside it: benchmarks and tests of the rings alone. */
    const struct io_ops *socket_ops; /* Backend of the socket path; NULL: io_uring. */
    /* For no_socket and tests: what the interface's link address is; all zero: asked of the kernel. */
    uint8_t link[6];
};

#endif
