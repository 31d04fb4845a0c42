/* AF_XDP send: trains built in place, headers before each datagram, one descriptor a frame. See
 * afxdp_private.h for a frame's layout.
 *
 *      SLOT_FREE ── acquire ──▶ SLOT_WORKER ── commit ──▶ SLOT_KERNEL ── all frames completed ──▶ SLOT_FREE
 *                                   └── cancel, or sent by the socket path ──▶ SLOT_FREE
 *
 * The TX ring has room for the frames of all slots, so a commit never finds it full: what is committed stays
 * in the ring until the kernel takes it. Running out of slots is the back-pressure. */
#define _GNU_SOURCE
#include "afxdp_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "csum.h"

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

bool afxdp_tx_open(struct afxdp *a) {
    struct umem *u = &a->umem;
    a->slots = calloc(a->slot_count, sizeof *a->slots);
    a->slots_free = calloc(a->slot_count, sizeof *a->slots_free);
    if (a->slots == NULL || a->slots_free == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < a->slot_count; i++) {
        uint32_t frame = u->rx_frames + i * IO_TRAIN_PACKETS;
        a->slots[i].tx.data = umem_at(u, umem_addr(u, frame) + FRAME_PAYLOAD_AT);
        a->slots[i].tx.handle = i;
        a->slots_free[a->slot_free_count++] = a->slot_count - 1 - i;
    }
    /* The same for every datagram, and nothing else is written there: once is enough. */
    for (uint32_t f = u->rx_frames; a->offload && f < u->frames; f++) {
        struct xsk_tx_checksum request = {
            .flags = XSK_TXMD_FLAGS_CHECKSUM, .csum_start = PATHS_UDP_AT, .csum_offset = 6};
        memcpy(umem_at(u, umem_addr(u, f) + FRAME_HEADER_AT - sizeof request), &request, sizeof request);
    }
    return true;
}

void afxdp_tx_close(struct afxdp *a) {
    free(a->slots);
    free(a->slots_free);
}

static uint32_t first_frame(const struct afxdp *a, const struct afxdp_slot *slot) {
    return a->umem.rx_frames + slot->tx.handle * IO_TRAIN_PACKETS;
}

static void move_slot(struct afxdp *a, const struct afxdp_slot *slot, enum umem_owner from,
                      enum umem_owner to) {
    uint32_t first = first_frame(a, slot);
    for (uint32_t i = 0; i < IO_TRAIN_PACKETS; i++) {
        umem_move(&a->umem, first + i, from, to);
    }
}

static void free_slot(struct afxdp *a, struct afxdp_slot *slot) {
    slot->state = SLOT_FREE;
    a->slots_free[a->slot_free_count++] = slot->tx.handle;
    a->starved = false;
}

void afxdp_tx_reap(struct afxdp *a) {
    struct xsk_ring *r = &a->xsk.completion;
    uint32_t n = xsk_ring_waiting(r);
    if (n == 0) {
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t frame = umem_frame(&a->umem, *xsk_ring_addr(r, r->here + i));
        umem_move(&a->umem, frame, UMEM_KERNEL_TX, UMEM_FREE); /* So it is a send frame. */
        struct afxdp_slot *slot = &a->slots[(frame - a->umem.rx_frames) / IO_TRAIN_PACKETS];
        if (--slot->pending == 0) {
            free_slot(a, slot);
        }
    }
    r->here += n;
    xsk_ring_release(r);
}

struct io_tx *afxdp_tx_acquire(struct io *io) {
    struct afxdp *a = (struct afxdp *)io;
    if (a->slot_free_count == 0) {
        afxdp_flush(io); /* What was committed must get under way, or nothing would ever come back. */
        if (a->slot_free_count == 0) {
            a->stats.tx_full++;
            a->starved = true;
            return NULL;
        }
    }
    struct afxdp_slot *slot = &a->slots[a->slots_free[--a->slot_free_count]];
    assert(slot->state == SLOT_FREE && slot->pending == 0);
    slot->state = SLOT_WORKER;
    move_slot(a, slot, UMEM_FREE, UMEM_WORKER);
    slot->tx = (struct io_tx){.data = slot->tx.data,
                              .cap = a->datagram_bytes,
                              .stride = a->datagram_frames << a->umem.frame_shift,
                              .max_segments = IO_TRAIN_PACKETS / a->datagram_frames,
                              .handle = slot->tx.handle};
    return &slot->tx;
}

void afxdp_tx_cancel(struct io *io, struct io_tx *tx) {
    struct afxdp *a = (struct afxdp *)io;
    struct afxdp_slot *slot = (struct afxdp_slot *)tx;
    assert(slot->state == SLOT_WORKER);
    move_slot(a, slot, UMEM_WORKER, UMEM_FREE);
    free_slot(a, slot);
}

/* By the socket path, in as many trains as its buffers and the kernel's limits make of it. */
static void send_by_socket(struct afxdp *a, const struct io_tx *tx, uint32_t datagrams) {
    const struct io_ops *ops = a->inner != NULL ? a->inner->ops : NULL;
    uint32_t done = 0;
    a->queue.tx_socket++;
    while (done < datagrams) {
        struct io_tx *to = ops != NULL ? ops->tx_acquire(a->inner) : NULL;
        if (to == NULL || tx->segment > to->cap) {
            a->stats.tx_errors += datagrams - done; /* To QUIC it is loss. */
            if (to != NULL) {
                ops->tx_cancel(a->inner, to);
            }
            return;
        }
        uint32_t n = least(datagrams - done, least(to->max_segments, to->cap / tx->segment));
        uint32_t len = 0;
        for (uint32_t i = 0; i < n; i++, done++) {
            uint32_t bytes = least(tx->len - done * tx->segment, tx->segment);
            memcpy(to->data + len, tx->data + (size_t)done * tx->stride, bytes);
            len += bytes;
        }
        to->len = len;
        to->segment = tx->segment;
        to->ecn = tx->ecn;
        to->ifindex = tx->ifindex;
        to->peer = tx->peer;
        to->local = tx->local;
        ops->tx_commit(a->inner, to);
        a->inner_committed = true;
    }
}

/* Headers of one datagram, right before its payload. */
static void write_headers(const struct afxdp *a, uint8_t *payload, uint32_t len, uint8_t ecn,
                          const struct paths_head *head) {
    uint8_t *p = payload - PATHS_HEADER_BYTES;
    uint16_t udp_bytes = (uint16_t)(len + 8);
    uint16_t wire = __builtin_bswap16(udp_bytes);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    wire = udp_bytes;
#endif
    memcpy(p, head->bytes, PATHS_HEADER_BYTES);
    p[15] |= (uint8_t)((ecn & 3) << 4);
    memcpy(p + 18, &wire, sizeof wire);
    memcpy(p + 58, &wire, sizeof wire);
    /* With the offload the field holds the pseudo-header's sum, for the device to add to. */
    uint16_t checksum = a->offload ? csum_fold(head->pseudo_only + wire)
                                   : csum_udp(head->pseudo + 2u * wire + csum_partial(payload, len));
    memcpy(p + 60, &checksum, sizeof checksum);
}

/* Descriptors of one datagram that begins in `frame`; returns the frames it takes. */
static uint32_t describe_frames(struct afxdp *a, uint32_t frame, uint32_t payload_bytes) {
    struct xsk_ring *r = &a->xsk.tx;
    uint64_t addr = umem_addr(&a->umem, frame) + FRAME_HEADER_AT;
    uint32_t left = PATHS_HEADER_BYTES + payload_bytes, n = 0;
    while (left > 0) {
        uint32_t room = a->umem.frame_bytes - (uint32_t)(addr & (a->umem.frame_bytes - 1));
        uint32_t len = least(left, room);
        left -= len;
        *xsk_ring_desc(r, r->here++) =
            (struct xdp_desc){.addr = addr,
                              .len = len,
                              .options = (left > 0 ? XSK_PKT_CONTD : 0) | (a->offload ? XSK_TX_METADATA : 0)};
        umem_move(&a->umem, frame + n, UMEM_WORKER, UMEM_KERNEL_TX);
        addr += len;
        n++;
    }
    return n;
}

static uint64_t coarse_ns(void) { /* For an interval of seconds; costs a few nanoseconds. */
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void afxdp_tx_commit(struct io *io, struct io_tx *tx) {
    static const uint8_t any[16];
    struct afxdp *a = (struct afxdp *)io;
    struct afxdp_slot *slot = (struct afxdp_slot *)tx;
    assert(slot->state == SLOT_WORKER);
    uint32_t datagrams = tx->segment == 0 ? 0 : (tx->len + tx->segment - 1) / tx->segment;
    if (datagrams == 0 || datagrams > tx->max_segments || least(tx->segment, tx->len) > tx->cap) {
        a->stats.tx_errors++;
        afxdp_tx_cancel(io, tx);
        return;
    }
    if (memcmp(tx->local.ip, any, sizeof any) == 0) {
        memcpy(tx->local.ip, a->bind.ip, sizeof any);
    }
    const struct paths_head *head = tx->ifindex == 0 || tx->ifindex == a->config.ifindex
                                        ? paths_find(&a->paths, &tx->peer, &tx->local, coarse_ns())
                                        : NULL;
    if (head == NULL) {
        send_by_socket(a, tx, datagrams);
        afxdp_tx_cancel(io, tx);
        return;
    }
    uint32_t first = first_frame(a, slot), pending = 0;
    for (uint32_t i = 0; i < datagrams; i++) {
        uint32_t len = least(tx->len - i * tx->segment, tx->segment);
        write_headers(a, tx->data + (size_t)i * tx->stride, len, tx->ecn, head);
        uint32_t frame = first + i * a->datagram_frames;
        uint32_t used = describe_frames(a, frame, len);
        for (uint32_t f = used; f < a->datagram_frames; f++) {
            umem_move(&a->umem, frame + f, UMEM_WORKER, UMEM_FREE);
        }
        pending += used;
    }
    for (uint32_t f = datagrams * a->datagram_frames; f < IO_TRAIN_PACKETS; f++) {
        umem_move(&a->umem, first + f, UMEM_WORKER, UMEM_FREE); /* Free, though bound to the slot. */
    }
    slot->state = SLOT_KERNEL;
    slot->pending = pending;
    a->stats.tx_trains++;
    a->stats.tx_packets += datagrams;
    a->stats.tx_bytes += tx->len;
}

/* What says that a call of the kernel moved something: either index may be published late. */
static uint64_t progress(const struct xsk *x) {
    return (uint64_t)__atomic_load_n(x->tx.consumer, __ATOMIC_RELAXED) << 32 |
           __atomic_load_n(x->completion.producer, __ATOMIC_RELAXED);
}

/* Have the kernel take what is in the TX ring. Copy mode takes up to a budget of packets a call and says
 * EAGAIN: go on while it gets anywhere. Whatever it refuses stays in the ring, for the next flush or wait. */
static void wake_tx(struct afxdp *a) {
    struct xsk *x = &a->xsk;
    while (xsk_ring_count(&x->tx) > 0 && xsk_ring_needs_wakeup(&x->tx)) {
        uint64_t before = progress(x);
        a->stats.syscalls++;
        a->queue.wakeups_tx++;
        if (sendto(x->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0) {
            return;
        }
        if (errno == EBUSY) {
            a->stats.tx_errors++; /* The device dropped a packet that it had taken; the rest waits. */
        } else if (errno == EAGAIN || errno == ENOBUFS) {
            a->tx_again++;
        } else if (errno != EINTR) {
            a->tx_error = errno; /* ENETDOWN: the ring waits until it is up again. */
        }
        if (progress(x) == before) {
            return;
        }
    }
}

void afxdp_flush(struct io *io) {
    struct afxdp *a = (struct afxdp *)io;
    struct xsk_ring *tx = &a->xsk.tx;
    if (tx->here != __atomic_load_n(tx->producer, __ATOMIC_RELAXED)) { /* Ours alone to write. */
        xsk_ring_publish(tx);
        a->queue.tx_batches++;
    }
    if (a->umem.owned[UMEM_KERNEL_TX] > 0) {
        wake_tx(a);
        afxdp_tx_reap(a);
    }
    if (a->inner_committed) {
        a->inner_committed = false;
        a->inner->ops->flush(a->inner);
    }
}
