/* Plain socket backend: recvmmsg, sendmmsg and ppoll, with the same trains, control messages and counters as
 * the io_uring one. For kernels that have no io_uring or forbid it, and to compare with. See recvmmsg(2),
 * sendmmsg(2). */
#define _GNU_SOURCE
#include "socket.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pages.h"
#include "text.h"
#include "udp_rx.h"
#include "udp_socket.h"
#include "udp_tx.h"
#include "waker.h"

#define RX_DEFAULT_BUFFERS 32   /* Two batches: the worker may hold one while it asks for the next. */
#define RX_MAX_BUFFERS     4096 /* 256 MiB. */
#define RX_BATCH           16   /* Trains one recvmmsg may take: 1 MiB, what the second-level cache holds. */
#define TX_BATCH           16   /* As many a sendmmsg, so that a batch stays on the stack. */
#define RX_STRIDE_BYTES    65536

/* What recvmmsg writes beside the payload. */
struct rx_header {
    struct sockaddr_in6 name;
    _Alignas(struct cmsghdr) uint8_t control[UDP_RX_CONTROL_BYTES];
};

struct plain {
    struct io io; /* First: see io.h. */
    struct udp_socket socket;
    struct waker waker;
    struct udp_tx_pool tx;
    struct io_stats stats;
    struct pages rx_pages;
    struct rx_header *rx_headers; /* One a buffer. */
    uint32_t *rx_free;            /* Stack of buffers. */
    uint32_t rx_count, rx_free_count;
    uint32_t
        *committed; /* FIFO of send slots, tx.count entries; head and tail run free, modulo tx.count below. */
    uint64_t committed_head, committed_tail;
    /* The last look brought something. Else the next asks for one train only: a batch would look a second
     * time after the first, on the way of an answer that somebody waits for. */
    bool rx_dense;
    bool rx_starved; /* No buffer was free at the last rx(): wait() must not wait for what could not be taken.
                      */
};

static int plain_rx(struct io *io, struct io_rx *out, int max) {
    struct plain *p = (struct plain *)io;
    struct mmsghdr messages[RX_BATCH];
    struct iovec iov[RX_BATCH];
    uint32_t buffers[RX_BATCH];
    uint32_t want = max < RX_BATCH ? (uint32_t)(max < 0 ? 0 : max) : RX_BATCH;
    if (p->rx_free_count == 0) {
        p->stats.rx_no_buffer += !p->rx_starved; /* Once each time they run out, as io_uring reports it. */
        p->rx_starved = true;
        return 0;
    }
    want = want < p->rx_free_count ? want : p->rx_free_count;
    want = p->rx_dense || want == 0 ? want : 1;
    for (uint32_t i = 0; i < want; i++) {
        uint32_t b = buffers[i] = p->rx_free[p->rx_free_count - 1 - i];
        iov[i] = (struct iovec){p->rx_pages.base + (size_t)b * RX_STRIDE_BYTES, IO_TRAIN_BYTES};
        messages[i].msg_hdr = (struct msghdr){.msg_name = &p->rx_headers[b].name,
                                              .msg_namelen = sizeof p->rx_headers[b].name,
                                              .msg_iov = &iov[i],
                                              .msg_iovlen = 1,
                                              .msg_control = p->rx_headers[b].control,
                                              .msg_controllen = sizeof p->rx_headers[b].control};
    }
    int got = want == 0 ? 0 : recvmmsg(p->socket.fd, messages, want, MSG_DONTWAIT, NULL);
    p->stats.syscalls += want != 0;
    p->rx_dense = got > 0;
    if (got < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            p->stats.rx_errors++; /* A socket error, say from ICMP: reported once, the socket goes on. */
        }
        return 0;
    }
    p->rx_free_count -= (uint32_t)got;
    int n = 0;
    for (int i = 0; i < got; i++) {
        const struct msghdr *h = &messages[i].msg_hdr;
        struct udp_rx_message m = {.name = h->msg_name,
                                   .name_len = h->msg_namelen,
                                   .control = h->msg_control,
                                   .control_len = h->msg_controllen,
                                   .flags = (uint32_t)h->msg_flags,
                                   .data = iov[i].iov_base,
                                   .len = messages[i].msg_len};
        if (udp_rx_parse(&p->socket, &m, &out[n], &p->stats) == UDP_RX_OK) {
            out[n++].handle = buffers[i];
        } else {
            p->rx_free[p->rx_free_count++] = buffers[i];
        }
    }
    return n;
}

static void plain_rx_release(struct io *io, const struct io_rx *v, int n) {
    struct plain *p = (struct plain *)io;
    for (int i = 0; i < n; i++) {
        assert(p->rx_free_count < p->rx_count && v[i].handle < p->rx_count);
        p->rx_free[p->rx_free_count++] = v[i].handle;
    }
    p->rx_starved = p->rx_starved && p->rx_free_count == 0;
}

static struct udp_tx_slot *committed_at(struct plain *p, uint64_t position) {
    return &p->tx.slots[p->committed[position % p->tx.count]];
}

static void plain_flush(struct io *io) {
    struct plain *p = (struct plain *)io;
    while (p->committed_head != p->committed_tail) {
        struct mmsghdr messages[TX_BATCH];
        uint64_t left = p->committed_tail - p->committed_head;
        unsigned n = left < TX_BATCH ? (unsigned)left : TX_BATCH;
        for (unsigned i = 0; i < n; i++) {
            messages[i].msg_hdr = committed_at(p, p->committed_head + i)->message;
        }
        int sent = sendmmsg(p->socket.fd, messages, n, MSG_DONTWAIT);
        int error = sent < 0 ? errno : 0;
        p->stats.syscalls++;
        for (int i = 0; i < sent; i++) {
            udp_tx_complete(&p->tx, committed_at(p, p->committed_head++), (int)messages[i].msg_len);
        }
        if (error == EAGAIN) {
            return; /* The send buffer is full: they stay committed, and wait() waits for room. */
        }
        if (error != 0 && error != EINTR) { /* The first one's; it is dropped, the rest go on. */
            udp_tx_complete(&p->tx, committed_at(p, p->committed_head++), -error);
        }
    }
}

static struct io_tx *plain_tx_acquire(struct io *io) {
    struct plain *p = (struct plain *)io;
    if (p->tx.free_count == 0) {
        plain_flush(io); /* What was committed must get under way, or nothing would ever come back. */
    }
    struct udp_tx_slot *slot = udp_tx_take(&p->tx);
    return slot != NULL ? &slot->tx : NULL;
}

static void plain_tx_commit(struct io *io, struct io_tx *tx) {
    struct plain *p = (struct plain *)io;
    if (udp_tx_prepare(&p->tx, (struct udp_tx_slot *)tx)) {
        p->committed[p->committed_tail++ % p->tx.count] = tx->handle;
    }
}

static void plain_tx_cancel(struct io *io, struct io_tx *tx) {
    udp_tx_give(&((struct plain *)io)->tx, (struct udp_tx_slot *)tx);
}

static void plain_wait(struct io *io, int64_t timeout_ns) {
    struct plain *p = (struct plain *)io;
    p->stats.waits++;
    if (!waker_prepare(&p->waker)) {
        p->stats.wakeups++;
        return;
    }
    bool backlog = p->committed_head != p->committed_tail;
    struct pollfd fds[2] = {
        {.fd = p->socket.fd, .events = (short)((p->rx_starved ? 0 : POLLIN) | (backlog ? POLLOUT : 0))},
        {.fd = p->waker.fd, .events = POLLIN}};
    struct timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    ppoll(fds, 2, timeout_ns < 0 ? NULL : &ts, NULL);
    p->stats.syscalls++;
    if (fds[1].revents != 0) {
        uint64_t count;
        ssize_t ignored = read(p->waker.fd, &count, sizeof count); /* Non-blocking; only resets it. */
        (void)ignored;
    }
    if (waker_finish(&p->waker)) {
        p->stats.wakeups++;
    }
    if (backlog) {
        plain_flush(io);
    }
}

static void plain_wake(struct io *io) {
    waker_wake(&((struct plain *)io)->waker);
}

static void plain_close(struct io *io) {
    struct plain *p = (struct plain *)io;
    waker_close(&p->waker);
    udp_tx_close(&p->tx);
    pages_unmap(&p->rx_pages);
    free(p->rx_headers);
    free(p->rx_free);
    free(p->committed);
    udp_socket_close(&p->socket);
    free(p);
}

static bool plain_start(struct plain *p, const struct io_config *config, struct io_text *why) {
    if (!udp_socket_open(&p->socket, config, why)) {
        return false;
    }
    if (!waker_open(&p->waker, EFD_NONBLOCK)) {
        io_text_add(why, "eventfd: %s", strerror(errno));
        return false;
    }
    uint32_t wish = config->rx_buffers != 0 ? config->rx_buffers : RX_DEFAULT_BUFFERS;
    p->rx_count = wish < RX_MAX_BUFFERS ? wish : RX_MAX_BUFFERS;
    p->rx_headers = calloc(p->rx_count, sizeof *p->rx_headers);
    p->rx_free = calloc(p->rx_count, sizeof *p->rx_free);
    if (!udp_tx_open(&p->tx, &p->socket, &p->stats, config->tx_buffers) || p->rx_headers == NULL ||
        p->rx_free == NULL || (p->committed = calloc(p->tx.count, sizeof *p->committed)) == NULL ||
        !pages_map(&p->rx_pages, (size_t)p->rx_count * RX_STRIDE_BYTES)) {
        io_text_add(why, "no memory for packet buffers");
        return false;
    }
    while (p->rx_free_count < p->rx_count) {
        p->rx_free[p->rx_free_count] = p->rx_count - 1 - p->rx_free_count;
        p->rx_free_count++;
    }
    return true;
}

static struct io *plain_open(const struct io_config *config, struct io_text *why) {
    io_text_clear(why);
    struct plain *p = calloc(1, sizeof *p);
    if (p == NULL) {
        io_text_add(why, "no memory");
        return NULL;
    }
    p->io.ops = &io_socket_ops;
    p->waker.fd = -1;
    p->socket.fd = -1;
    if (!plain_start(p, config, why)) {
        plain_close(&p->io);
        return NULL;
    }
    return &p->io;
}

struct io *io_socket_open_instead(const struct io_config *config, const struct io_text *refused,
                                  struct io_text *why) {
    struct io *io = plain_open(config, why);
    if (io != NULL) {
        io_text_add(&((struct plain *)io)->socket.notes, "; instead of io_uring: %s", refused->text);
    }
    return io;
}

static void plain_local(const struct io *io, struct quic_addr *out) {
    *out = ((const struct plain *)io)->socket.local;
}

static void plain_stats(const struct io *io, struct io_stats *out) {
    *out = ((const struct plain *)io)->stats;
}

static void plain_describe(const struct io *io, struct io_text *out) {
    const struct plain *p = (const struct plain *)io;
    io_text_clear(out);
    io_text_add(out, "socket: recvmmsg and sendmmsg, %u receive buffers x 64 KiB, %s pages", p->rx_count,
                pages_kind_name(p->rx_pages.kind));
    udp_socket_describe(&p->socket, p->tx.max_segments, out);
    udp_tx_describe(&p->tx, out);
}

/* Without a free buffer there is no use in waiting for a datagram. */
static int plain_poll_fd(struct io *io, bool *ready) {
    struct plain *p = (struct plain *)io;
    (void)ready; /* Not known without a system call; the poll will tell. */
    plain_flush(io);
    return p->rx_starved ? -1 : p->socket.fd;
}

const struct io_ops io_socket_ops = {
    .name = "socket",
    .open = plain_open,
    .close = plain_close,
    .rx = plain_rx,
    .rx_release = plain_rx_release,
    .tx_acquire = plain_tx_acquire,
    .tx_commit = plain_tx_commit,
    .tx_cancel = plain_tx_cancel,
    .flush = plain_flush,
    .wait = plain_wait,
    .wake = plain_wake,
    .local = plain_local,
    .stats = plain_stats,
    .describe = plain_describe,
    .poll_fd = plain_poll_fd,
};
