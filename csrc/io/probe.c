/* See probe.h. */
#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/io_uring.h of Linux 6.9; Debian 12's headers are older. */
#define REGISTER_NAPI 27
struct napi_registration {
    uint32_t busy_poll_to;
    uint8_t prefer_busy_poll;
    uint8_t pad[3];
    uint64_t reserved;
};

#define ENTRIES      4
#define BUFFER_COUNT 2
#define BUFFER_BYTES 512

static int ring_with(struct io_uring *ring, unsigned flags) {
    struct io_uring_params params = {.flags = flags};
    return io_uring_queue_init_params(ENTRIES, ring, &params);
}

static bool ring_takes(unsigned flags) {
    struct io_uring ring;
    if (ring_with(&ring, flags) != 0)
        return false;
    io_uring_queue_exit(&ring);
    return true;
}

static bool restrictable(void) {
    struct io_uring ring;
    struct io_uring_restriction only_nop;
    if (ring_with(&ring, IORING_SETUP_R_DISABLED) != 0)
        return false;
    memset(&only_nop, 0, sizeof only_nop);
    only_nop.opcode = IORING_RESTRICTION_SQE_OP;
    only_nop.sqe_op = IORING_OP_NOP;
    /* The system call: Debian's liburing 2.3 does not export its function for it. */
    bool ok = syscall(SYS_io_uring_register, ring.ring_fd, IORING_REGISTER_RESTRICTIONS, &only_nop, 1) == 0;
    io_uring_queue_exit(&ring);
    return ok;
}

static bool has_operation(struct io_uring *ring, int operation) {
    struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
    bool has = probe != NULL && io_uring_opcode_supported(probe, operation);
    io_uring_free_probe(probe);
    return has;
}

/* A UDP socket that has sent itself one datagram; -1 where there is no IPv6 loopback. */
static int socket_with_a_datagram(void) {
    struct sockaddr_in6 self = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    socklen_t len = sizeof self;
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDP);
    if (fd < 0)
        return -1;
    if (bind(fd, (struct sockaddr *)&self, len) == 0 &&
        getsockname(fd, (struct sockaddr *)&self, &len) == 0 &&
        sendto(fd, "x", 1, 0, (struct sockaddr *)&self, len) == 1)
        return fd;
    close(fd);
    return -1;
}

/* One multishot receive into the buffer ring, which must be registered as group 0. */
static bool receives_multishot(struct io_uring *ring, int fd) {
    struct msghdr message = {.msg_namelen = sizeof(struct sockaddr_in6)};
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    struct __kernel_timespec second = {.tv_sec = 1}; /* The datagram is there already. */
    struct io_uring_cqe *cqe;
    io_uring_prep_recvmsg_multishot(sqe, fd, &message, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    if (io_uring_submit_and_wait_timeout(ring, &cqe, 1, &second, NULL) < 0)
        return false;
    bool ok = cqe->res > 0 && (cqe->flags & IORING_CQE_F_MORE) != 0;
    io_uring_cqe_seen(ring, cqe);
    return ok;
}

static void try_receiving(struct io_uring *ring, struct io_uring_report *out) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE); /* The kernel wants the buffer ring on a page of its own. */
    struct io_uring_buf_ring *buffers = aligned_alloc(page, page);
    uint8_t *bytes = calloc(BUFFER_COUNT, BUFFER_BYTES);
    int fd = -1;
    if (buffers != NULL && bytes != NULL) {
        struct io_uring_buf_reg reg = {.ring_addr = (uintptr_t)buffers, .ring_entries = BUFFER_COUNT};
        memset(buffers, 0, page);
        io_uring_buf_ring_init(buffers);
        for (int i = 0; i < BUFFER_COUNT; i++)
            io_uring_buf_ring_add(buffers, bytes + i * BUFFER_BYTES, BUFFER_BYTES, (unsigned short)i,
                                  io_uring_buf_ring_mask(BUFFER_COUNT), i);
        io_uring_buf_ring_advance(buffers, BUFFER_COUNT);
        out->buffer_rings = io_uring_register_buf_ring(ring, &reg, 0) == 0;
        fd = out->buffer_rings ? socket_with_a_datagram() : -1;
        out->recvmsg_multishot = fd >= 0 && receives_multishot(ring, fd);
    }
    if (fd >= 0) {
        /* The receive is still armed: end it before its buffers go, or a datagram could be written there. */
        struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
        struct io_uring_cqe *cqe;
        struct __kernel_timespec second = {.tv_sec = 1};
        io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ANY);
        io_uring_submit_and_wait_timeout(ring, &cqe, 2, &second, NULL); /* Its end, and the cancel's own. */
        close(fd);
    }
    if (out->buffer_rings)
        io_uring_unregister_buf_ring(ring, 0);
    free(buffers);
    free(bytes);
}

void io_probe_uring(struct io_uring_report *out) {
    struct io_uring ring;
    *out = (struct io_uring_report){0};
    out->setup_error = ring_with(&ring, 0);
    if (out->setup_error != 0)
        return;
    out->single_issuer = ring_takes(IORING_SETUP_SINGLE_ISSUER);
    out->defer_taskrun = ring_takes(IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
    out->restrictions = restrictable();
    out->sendmsg_zero_copy = has_operation(&ring, IORING_OP_SENDMSG_ZC);
    struct napi_registration napi = {.busy_poll_to = 1};
    out->napi = syscall(SYS_io_uring_register, ring.ring_fd, REGISTER_NAPI, &napi, 1) == 0;
    try_receiving(&ring, out);
    io_uring_queue_exit(&ring);
}
