/* io_uring receive: one multishot recvmsg that stays armed, filling buffers of a provided-buffer ring.
 * Kernel interface: io_uring_prep_recvmsg_multishot(3), io_uring_register_buf_ring(3).
 *
 * The multishot ends when the kernel finds no buffer (ENOBUFS), on a socket error, or when it likes; the
 * datagram in question stays in the socket's queue. It is armed again as soon as the kernel has a buffer. */
#define _GNU_SOURCE
#include "uring.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

#define BUFFER_GROUP 0 /* The ring is ours alone, so is the number space. */

static uint8_t *buffer_at(const struct uring *u, uint32_t buffer) {
    return u->rx.pages.base + (size_t)buffer * URING_RX_STRIDE_BYTES;
}

/* Write one buffer into the ring; the kernel sees it after io_uring_buf_ring_advance, whose release store
 * orders the entry before the new tail that the kernel acquires. */
static void stage_buffer(struct uring *u, uint32_t buffer, int offset) {
    io_uring_buf_ring_add(u->rx.ring, buffer_at(u, buffer), URING_RX_HEADER_BYTES + IO_TRAIN_BYTES,
                          (unsigned short)buffer, io_uring_buf_ring_mask(u->rx.count), offset);
    u->rx.state[buffer] = URING_BUFFER_KERNEL;
}

static void publish_buffers(struct uring *u, int n) {
    io_uring_buf_ring_advance(u->rx.ring, n);
    u->rx.posted += (uint32_t)n;
}

uint32_t uring_rx_count(uint32_t wish) {
    uint32_t least = wish == 0 ? URING_RX_DEFAULT_BUFFERS : wish;
    uint32_t count = 1;
    while (count < least && count < URING_RX_MAX_BUFFERS) {
        count *= 2;
    }
    return count;
}

bool uring_rx_open(struct uring *u, uint32_t buffers, struct io_text *why) {
    struct uring_rx *rx = &u->rx;
    rx->count = uring_rx_count(buffers);
    rx->ready = calloc(rx->count, sizeof *rx->ready);
    rx->state = calloc(rx->count, sizeof *rx->state);
    if (rx->ready == NULL || rx->state == NULL ||
        !pages_map(&rx->pages, (size_t)rx->count * URING_RX_STRIDE_BYTES) ||
        !pages_map(&rx->ring_pages, rx->count * sizeof(struct io_uring_buf))) {
        io_text_add(why, "no memory for %u receive buffers", rx->count);
        return false;
    }
    rx->ring = (struct io_uring_buf_ring *)(void *)rx->ring_pages.base;
    io_uring_buf_ring_init(rx->ring);
    struct io_uring_buf_reg reg = {
        .ring_addr = (uintptr_t)rx->ring, .ring_entries = rx->count, .bgid = BUFFER_GROUP};
    int result = io_uring_register_buf_ring(&u->ring, &reg, 0);
    if (result != 0) {
        io_text_add(why, "buffer ring: %s (Linux 5.19 has it)", strerror(-result));
        return false;
    }
    for (uint32_t i = 0; i < rx->count; i++) {
        stage_buffer(u, i, (int)i);
    }
    publish_buffers(u, (int)rx->count);

    rx->message = (struct msghdr){.msg_namelen = UDP_RX_NAME_BYTES, .msg_controllen = UDP_RX_CONTROL_BYTES};
    uring_rx_arm(u);
    uring_submit(u);
    uring_reap(u);
    if (!rx->armed) { /* Refused on the spot: the kernel does not know the operation. */
        io_text_add(why, "multishot recvmsg refused (Linux 6.0 has it)");
        return false;
    }
    return true;
}

void uring_rx_close(struct uring *u) {
    pages_unmap(&u->rx.pages);
    pages_unmap(&u->rx.ring_pages);
    free(u->rx.ready);
    free(u->rx.state);
}

void uring_rx_arm(struct uring *u) {
    struct io_uring_sqe *sqe = uring_sqe(u);
    io_uring_prep_recvmsg_multishot(sqe, u->socket.fd, &u->rx.message, 0);
    uring_use_socket(u, sqe);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = BUFFER_GROUP;
    io_uring_sqe_set_data64(sqe, uring_user_data(URING_RX, 0));
    u->rx.armed = true;
}

static void return_buffer(struct uring *u, uint32_t buffer) {
    stage_buffer(u, buffer, 0);
    publish_buffers(u, 1);
}

void uring_rx_complete(struct uring *u, const struct io_uring_cqe *cqe) {
    struct uring_rx *rx = &u->rx;
    if ((cqe->flags & IORING_CQE_F_MORE) == 0) {
        rx->armed = false;
    }
    if ((cqe->flags & IORING_CQE_F_BUFFER) != 0) {
        uint32_t buffer = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
        assert(buffer < rx->count && rx->state[buffer] == URING_BUFFER_KERNEL);
        rx->posted--;
        if (cqe->res >= 0) {
            rx->state[buffer] = URING_BUFFER_READY;
            rx->ready[rx->tail++ & (rx->count - 1)] = (struct uring_ready){(uint16_t)buffer, cqe->res};
            return;
        }
        return_buffer(u, buffer);
    }
    if (cqe->res == -ENOBUFS) {
        u->stats.rx_no_buffer++;
    } else if (cqe->res < 0 && cqe->res != -ECANCELED) {
        u->stats.rx_errors++; /* A socket error, say from ICMP: reported once, the socket goes on. */
    }
}

static bool parse(struct uring *u, struct uring_ready ready, struct io_rx *out) {
    uint8_t *buffer = buffer_at(u, ready.buffer);
    struct io_uring_recvmsg_out *header = io_uring_recvmsg_validate(buffer, ready.bytes, &u->rx.message);
    if (header == NULL) {
        u->stats.rx_errors++;
        return false;
    }
    struct udp_rx_message m = {
        .name = io_uring_recvmsg_name(header),
        .name_len = header->namelen,
        .control = buffer + sizeof *header + UDP_RX_NAME_BYTES,
        .control_len = header->controllen < UDP_RX_CONTROL_BYTES ? header->controllen : UDP_RX_CONTROL_BYTES,
        .flags = header->flags,
        .data = io_uring_recvmsg_payload(header, &u->rx.message),
        .len = io_uring_recvmsg_payload_length(header, ready.bytes, &u->rx.message),
    };
    if (udp_rx_parse(&u->socket, &m, out, &u->stats) != UDP_RX_OK) {
        return false;
    }
    out->handle = ready.buffer;
    return true;
}

int uring_rx(struct io *io, struct io_rx *out, int max) {
    struct uring *u = (struct uring *)io;
    struct uring_rx *rx = &u->rx;
    if (!uring_rx_is_ready(u)) {
        /* With deferred task work the kernel only copies datagrams into buffers when we enter it; this flag
         * says that there are some, so an idle poll costs no system call. */
        if (io_uring_cq_ready(&u->ring) == 0 &&
            (IO_URING_READ_ONCE(*u->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0) {
            io_uring_get_events(&u->ring);
            u->stats.syscalls++;
        }
        uring_reap(u);
        if (!rx->armed && rx->posted > 0) {
            uring_rx_arm(u);
            uring_submit(u);
        }
    }
    int n = 0;
    while (n < max && uring_rx_is_ready(u)) {
        struct uring_ready ready = rx->ready[rx->head++ & (rx->count - 1)];
        if (parse(u, ready, &out[n])) {
            rx->state[ready.buffer] = URING_BUFFER_WORKER;
            n++;
        } else {
            return_buffer(u, ready.buffer);
        }
    }
    return n;
}

void uring_rx_release(struct io *io, const struct io_rx *v, int n) {
    struct uring *u = (struct uring *)io;
    for (int i = 0; i < n; i++) {
        assert(v[i].handle < u->rx.count && u->rx.state[v[i].handle] == URING_BUFFER_WORKER);
        stage_buffer(u, v[i].handle, i);
    }
    publish_buffers(u, n);
}
