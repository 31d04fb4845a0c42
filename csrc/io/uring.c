/* io_uring backend: set-up and what the kernel grants, waiting and waking, completions. See uring.h for the
 * rest. Kernel interface: io_uring_setup(2), io_uring_enter(2), io_uring_register(2).
 *
 * open() belongs into the worker's own thread: IORING_SETUP_SINGLE_ISSUER ties the ring to the thread that
 * made it. */
#define _GNU_SOURCE
#include "uring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "socket.h"
#include "text.h"

/* Entries beside the sends: receive re-armed, eventfd read, cancel, and one to spare. */
#define SPARE_ENTRIES 4
/* SQPOLL: so long the kernel's thread looks for work before it sleeps. */
#define SQ_THREAD_IDLE_MS 2

struct io_uring_sqe *uring_sqe(struct uring *u) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    while (sqe == NULL) { /* Only after a refused submit (see uring_submit) can the queue still be full. */
        uring_submit(u);
        uring_reap(u);
        sqe = io_uring_get_sqe(&u->ring);
    }
    return sqe;
}

void uring_use_socket(struct uring *u, struct io_uring_sqe *sqe) {
    if (u->fixed_files) {
        sqe->fd = 0; /* The only entry of the file table: saves a reference taken and dropped each time. */
        sqe->flags |= IOSQE_FIXED_FILE;
    }
}

void uring_submit(struct uring *u) {
    /* EAGAIN (no memory for requests) and EBUSY (completions to be taken first) leave the entries queued: the
     * next submit takes them along. */
    io_uring_submit(&u->ring);
    u->stats.syscalls++;
}

void uring_reap(struct uring *u) {
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;
    io_uring_for_each_cqe(&u->ring, head, cqe) {
        uint64_t data = io_uring_cqe_get_data64(cqe);
        n++;
        switch ((enum uring_tag)(data & ((1u << URING_TAG_BITS) - 1))) {
        case URING_RX:
            uring_rx_complete(u, cqe);
            break;
        case URING_TX:
            uring_tx_done(u, &u->tx.slots[data >> URING_TAG_BITS], cqe);
            break;
        case URING_WAKE:
            u->wake_armed = false;
            break;
        case URING_CANCEL:
            break;
        }
    }
    if (n != 0) {
        io_uring_cq_advance(&u->ring, n);
    }
}

static void uring_wait(struct io *io, int64_t timeout_ns) {
    struct uring *u = (struct uring *)io;
    bool starved = u->tx.starved;
    u->stats.waits++;
    if (!waker_prepare(&u->waker)) {
        u->stats.wakeups++;
        return;
    }
    uring_reap(u);
    if (!uring_rx_is_ready(u) && !(starved && !u->tx.starved)) {
        if (!u->wake_armed) {
            struct io_uring_sqe *sqe = uring_sqe(u);
            io_uring_prep_read(sqe, u->waker.fd, &u->wake_value, sizeof u->wake_value, 0);
            io_uring_sqe_set_data64(sqe, uring_user_data(URING_WAKE, 0));
            u->wake_armed = true;
        }
        if (!u->rx.armed && u->rx.posted > 0) {
            uring_rx_arm(u);
        }
        struct __kernel_timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
        struct io_uring_cqe *cqe;
        /* Errors are the time-out (ETIME) and a signal (EINTR): both are good reasons to return. */
        io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, timeout_ns < 0 ? NULL : &ts, NULL);
        u->stats.syscalls++;
    }
    if (waker_finish(&u->waker)) {
        u->stats.wakeups++;
    }
}

static void uring_wake(struct io *io) {
    waker_wake(&((struct uring *)io)->waker);
}

/* Newest first: each step drops what an older kernel refuses with EINVAL. */
static int ring_init(struct uring *u, unsigned sq_entries, unsigned cq_entries) {
    /* DEFER_TASKRUN (6.1): the kernel's part of a receive runs when we enter it, not by interrupting us.
     * COOP_TASKRUN (5.19): the same without an interrupt. TASKRUN_FLAG: tells us that there is some.
     * SUBMIT_ALL (5.18): one bad entry does not hold up the others. */
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN |
            IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        0,
    };
    /* With SQPOLL the kernel's thread runs the task work, and the flags above are refused. */
    static const unsigned polled = IORING_SETUP_SQPOLL | IORING_SETUP_SUBMIT_ALL;
    int result = -EINVAL;
    for (size_t i = 0; i < sizeof flags / sizeof flags[0] && result == -EINVAL; i++) {
        unsigned use = u->options.sqpoll ? polled : flags[i];
        /* R_DISABLED (5.10): nothing can be submitted before uring_restrict has said what. */
        struct io_uring_params params = {.flags = use | IORING_SETUP_CQSIZE | IORING_SETUP_R_DISABLED,
                                         .cq_entries = cq_entries,
                                         .sq_thread_idle = SQ_THREAD_IDLE_MS};
        result = io_uring_queue_init_params(sq_entries, &u->ring, &params);
        u->deferred = (use & IORING_SETUP_DEFER_TASKRUN) != 0;
        u->options.sqpoll = u->options.sqpoll && result == 0;
    }
    return result;
}

/* From here on the ring takes the operations of this backend and no others: seccomp does not see what is
 * submitted, and a worker's filter would be worth nothing if the ring could open files (../worker/sandbox.h).
 * For good; the kernel refuses the rest with EACCES. The system call itself, because Debian's liburing 2.3
 * declares its functions for this and does not export them. */
static int uring_restrict(struct uring *u) {
    const uint8_t operations[] = {IORING_OP_RECVMSG, IORING_OP_SENDMSG, IORING_OP_READ,
                                  IORING_OP_ASYNC_CANCEL,
                                  u->options.zero_copy_bytes != 0 ? IORING_OP_SENDMSG_ZC : IORING_OP_SENDMSG};
    static const uint8_t registrations[] = {IORING_REGISTER_PBUF_RING, IORING_UNREGISTER_FILES,
                                            IORING_UNREGISTER_RING_FDS};
    struct io_uring_restriction list[sizeof operations + sizeof registrations + 1];
    unsigned n = 0;
    memset(list, 0, sizeof list); /* The kernel wants its reserved fields zero. */
    for (size_t i = 0; i < sizeof operations; i++) {
        list[n].opcode = IORING_RESTRICTION_SQE_OP;
        list[n++].sqe_op = operations[i];
    }
    for (size_t i = 0; i < sizeof registrations; i++) {
        list[n].opcode = IORING_RESTRICTION_REGISTER_OP;
        list[n++].register_op = registrations[i];
    }
    list[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    list[n++].sqe_flags = IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT;
    int fd = u->ring.ring_fd;
    if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_RESTRICTIONS, list, n) != 0 ||
        syscall(SYS_io_uring_register, fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) != 0)
        return -errno;
    return 0;
}

/* Everything of io_uring, with the socket open already. False: `why` says what the kernel refused. */
static bool uring_start(struct uring *u, const struct io_config *config, struct io_text *why) {
    if (!udp_tx_open(&u->tx, &u->socket, &u->stats, config->tx_buffers)) {
        io_text_add(why, "no memory for send buffers");
        return false;
    }
    /* Room in the completion queue for everything that can complete at once, so that it never overflows. */
    uint32_t sends = u->tx.count + SPARE_ENTRIES;
    uint32_t each = u->options.zero_copy_bytes != 0 ? 2 : 1; /* Completions of a send. */
    int result = ring_init(u, sends, each * sends + uring_rx_count(config->rx_buffers));
    if (result != 0) {
        const char *hint = result == -EPERM    ? " (sysctl kernel.io_uring_disabled, or a seccomp filter)"
                           : result == -ENOSYS ? " (kernel built without it)"
                           : result == -ENOMEM ? " (raise RLIMIT_MEMLOCK)"
                                               : "";
        io_text_add(why, "io_uring_setup: %s%s", strerror(-result), hint);
        return false;
    }
    u->ring_open = true;
    if (!u->options.no_files) {
        io_uring_register_ring_fd(&u->ring); /* 5.18: saves a descriptor look-up a call. */
        u->fixed_files = io_uring_register_files(&u->ring, &u->socket.fd, 1) == 0;
    }
    uring_zc_open(u);
    uring_napi_open(u);
    result = uring_restrict(u);
    if (result != 0) {
        io_text_add(why, "io_uring restrictions: %s (Linux 5.10 has them)", strerror(-result));
        return false;
    }
    if (!waker_open(&u->waker, 0)) { /* Blocking, like the socket and for the same reason. */
        io_text_add(why, "eventfd: %s", strerror(errno));
        return false;
    }
    return uring_rx_open(u, config->rx_buffers, why);
}

/* Take everything back from the kernel, so that the memory is ours and the port is free when close() returns;
 * the kernel would otherwise tear the ring down in its own time. */
static void uring_quiesce(struct uring *u) {
    struct io_uring_sqe *sqe = uring_sqe(u);
    io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
    io_uring_sqe_set_data64(sqe, uring_user_data(URING_CANCEL, 0));
    /* 100 × 10 ms: the first round does it as a rule; the bound is for a kernel that cannot cancel any. */
    for (int round = 0; round < 100 && (u->rx.armed || u->wake_armed || u->in_kernel > 0); round++) {
        struct __kernel_timespec ts = {.tv_nsec = 10000000};
        struct io_uring_cqe *cqe;
        io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
        uring_reap(u);
    }
}

static void uring_close(struct io *io) {
    struct uring *u = (struct uring *)io;
    if (u->ring_open) {
        uring_flush(io); /* What was committed last still goes out. */
        uring_quiesce(u);
        if (u->fixed_files) {
            io_uring_unregister_files(&u->ring);
        }
        io_uring_queue_exit(&u->ring);
    }
    waker_close(&u->waker);
    uring_rx_close(u);
    udp_tx_close(&u->tx);
    udp_socket_close(&u->socket);
    free(u);
}

static struct io *uring_open(const struct io_config *config, struct io_text *why) {
    struct io_text refused = {{0}};
    io_text_clear(why);
    struct uring *u = calloc(1, sizeof *u);
    if (u == NULL) {
        io_text_add(why, "no memory");
        return NULL;
    }
    u->io.ops = &io_uring_ops;
    u->options = config->uring;
    u->waker.fd = -1;
    if (!udp_socket_open(&u->socket, config, why)) {
        free(u);
        return NULL;
    }
    if (!uring_start(u, config, &refused)) {
        uring_close(&u->io);
        return io_socket_open_instead(config, &refused, why);
    }
    return &u->io;
}

static void uring_local(const struct io *io, struct quic_addr *out) {
    *out = ((const struct uring *)io)->socket.local;
}

static void uring_stats(const struct io *io, struct io_stats *out) {
    *out = ((const struct uring *)io)->stats;
}

static void uring_describe(const struct io *io, struct io_text *out) {
    const struct uring *u = (const struct uring *)io;
    io_text_clear(out);
    io_text_add(out, "io_uring: multishot recvmsg, buffer ring %u x 64 KiB", u->rx.count);
    if (u->deferred) {
        io_text_add(out, ", deferred task work");
    }
    uring_options_describe(u, out);
    io_text_add(out, ", restricted to its own operations, %s pages", pages_kind_name(u->rx.pages.kind));
    udp_socket_describe(&u->socket, u->tx.max_segments, out);
    if (!u->deferred && !u->options.sqpoll) {
        io_text_add(out, "; task work not deferred: Linux 6.1 has it");
    }
    udp_tx_describe(&u->tx, out);
}

/* With deferred task work a datagram stays in the socket until we enter the ring, and the ring's descriptor
 * does not tell of the work that waits (tried on 6.18): so the socket's, while there is a buffer to receive
 * into. Else the ring's, which is readable when completions wait. */
static int uring_poll_fd(struct io *io, bool *ready) {
    struct uring *u = (struct uring *)io;
    uring_reap(u);
    if (!u->rx.armed && u->rx.posted > 0) {
        uring_rx_arm(u);
        uring_submit(u);
        uring_reap(u);
    }
    *ready = *ready || uring_rx_is_ready(u);
    if (!u->deferred) {
        return u->ring.ring_fd;
    }
    return u->rx.posted > 0 ? u->socket.fd : -1;
}

const struct io_ops io_uring_ops = {
    .name = "io_uring",
    .open = uring_open,
    .close = uring_close,
    .rx = uring_rx,
    .rx_release = uring_rx_release,
    .tx_acquire = uring_tx_acquire,
    .tx_commit = uring_tx_commit,
    .tx_cancel = uring_tx_cancel,
    .flush = uring_flush,
    .wait = uring_wait,
    .wake = uring_wake,
    .local = uring_local,
    .stats = uring_stats,
    .describe = uring_describe,
    .poll_fd = uring_poll_fd,
};
