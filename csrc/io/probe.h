/* What this kernel's io_uring can do, asked by doing it: for `stoq doctor`. Makes a ring and a socket for the
 * moment and leaves nothing behind.
 *
 * Kernel interface: io_uring_setup(2), io_uring_register(2). */
#ifndef STOQ_IO_PROBE_H
#define STOQ_IO_PROBE_H

#include <stdbool.h>

struct io_uring_report {
    int setup_error;                   /* Negative errno of io_uring_setup; 0: there is io_uring. */
    bool single_issuer, defer_taskrun; /* Setup flags, Linux 6.0 and 6.1. */
    bool restrictions;                 /* A ring can be limited to its own operations, 5.10. */
    bool buffer_rings;                 /* IORING_REGISTER_PBUF_RING, 5.19. */
    bool recvmsg_multishot;            /* One receive that stays, 6.0: took a datagram over ::1. */
    bool sendmsg_zero_copy;            /* The operation is there, 6.1. */
    bool napi;                         /* IORING_REGISTER_NAPI: busy polling from the ring, 6.9. */
};

void io_probe_uring(struct io_uring_report *out);

#endif
