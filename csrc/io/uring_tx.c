/* io_uring send: each train is one sendmsg entry, all committed since the last flush enter the kernel in one
 * call. UDP sends complete while they are submitted, unless the send buffer is full: then io_uring keeps the
 * entry and sends when there is room, which is the back-pressure that tx_acquire shows by running out of
 * buffers.
 *
 * Measured over veth on a busy machine, the sender's processor time for a packet of 1,452 bytes, median of
 * five: 292 ns this way, 280 ns by sendmmsg(2) in socket.c, single trials from 243 to 338. The difference is
 * within the noise; a direct sendmsg(2) beside the ring has not been tried. */
#define _GNU_SOURCE
#include "uring.h"

struct io_tx *uring_tx_acquire(struct io *io) {
    struct uring *u = (struct uring *)io;
    if (u->tx.free_count == 0) {
        uring_flush(io); /* What was committed must get under way, or nothing would ever come back. */
    }
    struct udp_tx_slot *slot = udp_tx_take(&u->tx);
    return slot != NULL ? &slot->tx : NULL;
}

void uring_tx_commit(struct io *io, struct io_tx *tx) {
    struct uring *u = (struct uring *)io;
    struct udp_tx_slot *slot = (struct udp_tx_slot *)tx;
    if (!udp_tx_prepare(&u->tx, slot)) {
        return;
    }
    struct io_uring_sqe *sqe = uring_sqe(u);
    io_uring_prep_sendmsg(sqe, u->socket.fd, &slot->message, 0);
    uring_use_socket(u, sqe);
    io_uring_sqe_set_data64(sqe, uring_user_data(URING_TX, slot->tx.handle));
    u->in_kernel++;
}

void uring_tx_cancel(struct io *io, struct io_tx *tx) {
    struct uring *u = (struct uring *)io;
    udp_tx_give(&u->tx, (struct udp_tx_slot *)tx);
}

void uring_flush(struct io *io) {
    struct uring *u = (struct uring *)io;
    if (io_uring_sq_ready(&u->ring) != 0) {
        uring_submit(u);
    }
    uring_reap(u); /* The sends are done as a rule: their buffers are free again while still in the cache. */
}
