/* AF_XDP receive: descriptors of the RX ring become trains in place.
 *
 * Packets of one flow and size whose frames lie one after the other make one train with the frame's size as
 * stride. Frames come in the order in which the FILL ring had them, and rx_release gives them back in the
 * order in which they came, so that they stay in a row.
 *
 * The UDP checksum is not verified here: devices do that before the packet is redirected as a rule, packets
 * from this machine carry an unfinished one, and every QUIC packet is authenticated anyway. Lengths are
 * trusted nowhere. */
#define _GNU_SOURCE
#include "afxdp_private.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "../bpf/parse.h"

/* Turns after which the socket path is asked though the ring is busy, where asking costs a system call. */
#define INNER_TURNS 16
#define PREFETCH    4 /* Packets ahead: about what a miss to memory takes. */

bool afxdp_rx_open(struct afxdp *a) {
    uint32_t places = a->umem.rx_frames > LINEAR_BUFFERS ? a->umem.rx_frames : LINEAR_BUFFERS;
    struct afxdp_linear *l = &a->linear;
    a->run = calloc(places, sizeof *a->run);
    if (a->run == NULL) {
        return false;
    }
    if (l->bytes != 0) {
        l->used = calloc(LINEAR_BUFFERS, sizeof *l->used);
        if (l->used == NULL || !pages_map(&l->pages, (size_t)LINEAR_BUFFERS * l->bytes)) {
            return false;
        }
    }
    struct xsk_ring *fill = &a->xsk.fill;
    for (uint32_t f = 0; f < a->umem.rx_frames; f++) {
        *xsk_ring_addr(fill, fill->here++) = umem_addr(&a->umem, f);
    }
    xsk_ring_publish(fill);
    return true;
}

void afxdp_rx_close(struct afxdp *a) {
    free(a->run);
    free(a->linear.used);
    pages_unmap(&a->linear.pages);
}

/* There is room: the ring has a place for every receive frame. Not published here. */
static void refill(struct afxdp *a, uint32_t frame) {
    struct xsk_ring *fill = &a->xsk.fill;
    *xsk_ring_addr(fill, fill->here++) = umem_addr(&a->umem, frame);
}

/* A received packet in one piece, and what it lies in. */
struct packet {
    uint8_t *bytes;
    uint32_t len;
    uint32_t place; /* Frame, or linear buffer. */
    bool linear;
};

/* The train being put together: the head of its last packet is compared with the next one's. */
struct building {
    struct io_rx *train;
    const uint8_t *head; /* NULL: nothing may be added. */
    uint8_t *next;       /* Where the next datagram has to lie. */
    uint32_t count;
    uint32_t place;
    bool linear;
};

static uint16_t load16(const uint8_t *p) {
    return (uint16_t)(p[0] << 8 | p[1]);
}

/* Ethernet, IPv6, UDP and nothing between, with lengths that agree: the payload's length, else 0. */
static inline uint32_t plain_payload(const uint8_t *p, uint32_t len) {
    if (len < PATHS_HEADER_BYTES || p[12] != 0x86 || p[13] != 0xdd || p[14] >> 4 != 6 || p[20] != 17) {
        return 0;
    }
    uint32_t udp_bytes = load16(p + 58);
    if (udp_bytes <= 8 || udp_bytes != load16(p + 18) || PATHS_UDP_AT + udp_bytes > len ||
        (p[60] | p[61]) == 0) {
        return 0;
    }
    return udp_bytes - 8;
}

/* Another datagram for the train: same addresses, ports and traffic class (which has the ECN bits), not
 * longer than the ones before, in the next frame. */
static inline bool extend(struct afxdp *a, struct building *b, const struct packet *p) {
    uint32_t payload_bytes = plain_payload(p->bytes, p->len);
    if (payload_bytes == 0 || p->linear != b->linear || p->bytes + PATHS_HEADER_BYTES != b->next ||
        memcmp(p->bytes + 14, b->head + 14, 2) != 0 || memcmp(p->bytes + 22, b->head + 22, 36) != 0) {
        return false;
    }
    struct io_rx *t = b->train;
    if (payload_bytes > t->segment || t->len + payload_bytes > IO_TRAIN_BYTES) {
        return false;
    }
    t->len += payload_bytes;
    b->next += b->linear ? a->linear.bytes : a->umem.frame_bytes;
    a->run[b->place] = (uint8_t)++b->count;
    if (payload_bytes < t->segment || b->count == IO_TRAIN_PACKETS) {
        b->head = NULL;
    }
    return true;
}

static bool is_for_us(const struct afxdp *a, const struct quic_addr *local) {
    static const uint8_t any[16];
    return local->port == a->bind.port &&
           (memcmp(a->bind.ip, any, sizeof any) == 0 || memcmp(a->bind.ip, local->ip, sizeof any) == 0);
}

static void set_addr(struct quic_addr *out, const uint8_t ip[16], uint16_t port, uint32_t ifindex) {
    memcpy(out->ip, ip, sizeof out->ip);
    out->port = port;
    out->pad = 0;
    out->scope_id = ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80 ? ifindex : 0;
}

/* Begin a train with this packet. False: it is none of ours, and counted. */
static bool begin(struct afxdp *a, struct building *b, const struct packet *p, struct io_rx *t) {
    struct parse_frame f;
    b->head = NULL;
    enum parse_status status = parse_frame(p->bytes, p->bytes + p->len, p->len, &f);
    if (status == PARSE_IPV4) {
        a->stats.rx_dropped_ipv4++;
        return false;
    }
    if (status != PARSE_UDP) {
        a->stats.rx_errors++;
        return false;
    }
    if (f.payload_bytes == 0) {
        a->stats.rx_dropped_empty++;
        return false;
    }
    *t = (struct io_rx){.data = p->bytes + f.payload,
                        .len = f.payload_bytes,
                        .segment = f.payload_bytes,
                        .ecn = f.ecn,
                        .ifindex = a->config.ifindex,
                        .handle = p->place | (p->linear ? HANDLE_LINEAR : 0)};
    set_addr(&t->peer, f.src, parse_swap16(f.sport), a->config.ifindex);
    set_addr(&t->local, f.dst, parse_swap16(f.dport), a->config.ifindex);
    if (quic_addr_is_v4_mapped(&t->peer) || quic_addr_is_v4_mapped(&t->local)) {
        a->stats.rx_dropped_ipv4++;
        return false;
    }
    if (!is_for_us(a, &t->local)) {
        a->stats.rx_errors++;
        return false;
    }
    uint32_t unit = p->linear ? a->linear.bytes : a->umem.frame_bytes;
    *b = (struct building){.train = t,
                           .head = f.payload == PATHS_HEADER_BYTES ? p->bytes : NULL,
                           .next = t->data + unit,
                           .count = 1,
                           .place = p->place,
                           .linear = p->linear};
    a->run[p->place] = 1;
    return true;
}

static void count_train(struct afxdp *a, struct building *b) {
    if (b->train != NULL) {
        if (b->count > 1) {
            b->train->stride = b->linear ? a->linear.bytes : a->umem.frame_bytes;
        }
        a->stats.rx_trains++;
        a->stats.rx_packets += b->count;
        a->stats.rx_bytes += b->train->len;
    }
}

/* Frames of the packet at the head of the ring; 0: its end has not arrived. */
static uint32_t packet_frames(const struct xsk_ring *r, uint32_t waiting) {
    for (uint32_t i = 0; i < waiting; i++) {
        if ((xsk_ring_desc(r, r->here + i)->options & XSK_PKT_CONTD) == 0) {
            return i + 1;
        }
    }
    return 0;
}

/* Copy a packet of several frames together and give these back. False: it is too long, and counted. */
static bool linearise(struct afxdp *a, uint32_t frames, struct packet *p) {
    struct xsk_ring *r = &a->xsk.rx;
    struct afxdp_linear *l = &a->linear;
    p->linear = true;
    p->place = l->next;
    p->len = 0;
    p->bytes = l->pages.base + (size_t)l->next * l->bytes;
    bool fits = l->bytes != 0;
    for (uint32_t i = 0; i < frames; i++) {
        const struct xdp_desc d = *xsk_ring_desc(r, r->here++);
        uint32_t frame = umem_frame(&a->umem, d.addr);
        if (fits && d.len <= l->bytes - p->len) {
            memcpy(p->bytes + p->len, umem_at(&a->umem, d.addr), d.len);
            p->len += d.len;
        } else {
            fits = false;
        }
        refill(a, frame);
    }
    a->linearised += fits;
    a->stats.rx_dropped_truncated += !fits;
    return fits;
}

/* The next packet: 1, or 0 when it is dropped, -1 when none can be taken now. */
static int next_packet(struct afxdp *a, uint32_t *waiting, struct packet *p) {
    struct xsk_ring *r = &a->xsk.rx;
    const struct xdp_desc d = *xsk_ring_desc(r, r->here);
    if ((d.options & XSK_PKT_CONTD) == 0) {
        uint32_t frame = umem_frame(&a->umem, d.addr);
        *p = (struct packet){.bytes = umem_at(&a->umem, d.addr), .len = d.len, .place = frame};
        umem_move(&a->umem, frame, UMEM_KERNEL_RX, UMEM_WORKER);
        r->here++;
        *waiting -= 1;
        return 1;
    }
    uint32_t frames = packet_frames(r, *waiting);
    if (frames == 0 || (a->linear.bytes != 0 && a->linear.used[a->linear.next])) {
        return -1;
    }
    *waiting -= frames;
    return linearise(a, frames, p) ? 1 : 0;
}

static void keep(struct afxdp *a, const struct packet *p) {
    if (p->linear) {
        a->linear.used[p->place] = true;
        a->linear.next = (p->place + 1) % LINEAR_BUFFERS;
    }
}

static void drop(struct afxdp *a, const struct packet *p) {
    if (!p->linear) {
        umem_move(&a->umem, p->place, UMEM_WORKER, UMEM_KERNEL_RX);
        refill(a, p->place);
    }
}

/* Up to `max` trains out of the ring. */
static int take(struct afxdp *a, uint32_t waiting, struct io_rx *out, int max) {
    struct xsk_ring *r = &a->xsk.rx;
    struct building b = {0};
    int n = 0;
    while (waiting > 0) {
        struct packet p;
        if (n == max && (b.head == NULL || (xsk_ring_desc(r, r->here)->options & XSK_PKT_CONTD) != 0)) {
            break; /* No more trains, and this packet cannot be another of the last one's. */
        }
        if (waiting > PREFETCH) {
            __builtin_prefetch(umem_at(&a->umem, xsk_ring_desc(r, r->here + PREFETCH)->addr));
        }
        int got = next_packet(a, &waiting, &p);
        if (got < 0) {
            break;
        }
        if (got == 0) {
            continue;
        }
        if (b.head != NULL && extend(a, &b, &p)) {
            keep(a, &p);
            continue;
        }
        if (n == max) { /* As if it had not been looked at. */
            umem_move(&a->umem, p.place, UMEM_WORKER, UMEM_KERNEL_RX);
            r->here--;
            break;
        }
        count_train(a, &b);
        b.train = NULL;
        if (begin(a, &b, &p, &out[n])) {
            keep(a, &p);
            n++;
        } else {
            drop(a, &p);
        }
    }
    count_train(a, &b);
    xsk_ring_release(r);
    return n;
}

/* What came by the socket path. Asking io_uring is a look at a ring; a plain socket costs a system call each
 * time. */
static int take_socket(struct afxdp *a, struct io_rx *out, int max, bool busy) {
    if (a->inner == NULL || max <= 0 ||
        (busy && a->inner->ops != &io_uring_ops && ++a->inner_skipped < INNER_TURNS)) {
        return 0;
    }
    a->inner_skipped = 0;
    int n = a->inner->ops->rx(a->inner, out, max);
    for (int i = 0; i < n; i++) {
        assert((out[i].handle & (HANDLE_SOCKET | HANDLE_LINEAR)) == 0); /* Few buffers, by their index. */
        out[i].handle |= HANDLE_SOCKET;
    }
    a->queue.rx_socket += (uint64_t)n;
    return n;
}

/* Run the queue's NAPI, or wake a driver that waits for frames. */
static void wake_rx(struct afxdp *a) {
    a->stats.syscalls++;
    a->queue.wakeups_rx++;
    (void)recvfrom(a->xsk.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL); /* Has nothing to say. */
}

int afxdp_rx(struct io *io, struct io_rx *out, int max) {
    struct afxdp *a = (struct afxdp *)io;
    int n = 0;
    uint32_t waiting = xsk_ring_waiting(&a->xsk.rx);
    if ((waiting == 0 && a->xsk.busy_poll) || xsk_ring_needs_wakeup(&a->xsk.fill)) {
        wake_rx(a);
        waiting = xsk_ring_waiting(&a->xsk.rx);
    }
    if (waiting > 0 && max > 0) {
        n = take(a, waiting, out, max);
        a->queue.rx_batches++;
        if (n > 0) {
            paths_received_on(&a->paths, out[n - 1].local.ip);
        }
        xsk_ring_publish(&a->xsk.fill); /* Frames of what was dropped or copied. */
    }
    return n + take_socket(a, out + n, max - n, n > 0);
}

/* Frames come back in the order of the trains: see the top. */
void afxdp_rx_release(struct io *io, const struct io_rx *v, int n) {
    struct afxdp *a = (struct afxdp *)io;
    for (int i = 0; i < n; i++) {
        uint32_t place = v[i].handle & ~(HANDLE_SOCKET | HANDLE_LINEAR);
        if ((v[i].handle & HANDLE_SOCKET) != 0) {
            struct io_rx theirs = v[i];
            theirs.handle = place;
            a->inner->ops->rx_release(a->inner, &theirs, 1);
        } else if ((v[i].handle & HANDLE_LINEAR) != 0) {
            for (uint32_t k = 0; k < a->run[place]; k++) {
                assert(a->linear.used[place + k]);
                a->linear.used[place + k] = false;
            }
        } else {
            for (uint32_t k = 0; k < a->run[place]; k++) {
                umem_move(&a->umem, place + k, UMEM_WORKER, UMEM_KERNEL_RX);
                refill(a, place + k);
            }
        }
    }
    xsk_ring_publish(&a->xsk.fill);
}
