/* The least that AF_XDP costs: generator, sink and ping-pong straight on the rings, the yardstick of `stoq
 * bench packets`. No QUIC, no backend, no checksum, no neighbours, no pool: prepared frames are sent in a
 * circle, arrived ones go back to the FILL ring at once. What packet_run.h writes into each frame is all that
 * is written; what it reads is all that is read.
 *
 *      xskloop --role sink --interface stoq0 --local fd00::2 --peer fd00::1 --link … --peer-link … --core 1
 *      xskloop --role generate --interface stoq0 --local fd00::1 --peer fd00::2 … --core 0 --seconds 5
 *
 *   UMEM    | frames 0 … n-1: received    | frames n … 2n-1: sent |
 *           FILL ──▶ kernel ──▶ RX ──▶ sink ──▶ FILL
 *                                       └─ answer: swapped in place ──▶ TX ──▶ kernel ──▶ COMPLETION ──▶ FILL
 *
 * Copy mode, need-wakeup. Kernel documentation: networking/af_xdp.rst. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_xdp.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../io/pages.h"
#include "packet_run.h"
#include "xdp_redirect.h"

/* Newer than the headers we build with. */
#define OUR_SO_PREFER_BUSY_POLL   69
#define OUR_SO_BUSY_POLL_BUDGET   70
#define OUR_XDP_MAX_TX_SKB_BUDGET 9  /* Linux 6.17: packets one sendto takes off the TX ring in copy mode. */
#define BUSY_POLL_US              20 /* A call spins at most so long in the kernel when nothing comes. */
#define KERNEL_HEADROOM_BYTES     256u /* XDP_PACKET_HEADROOM */
#define ETHERNET_BYTES            14u
#define HEADERS_BYTES             (ETHERNET_BYTES + 40u + 8u)
#define SOCKET_BYTES              (32u << 20) /* As the backend: all frames may be under way at once. */
#define BIND_NS                   BENCH_NS /* The kernel frees a queue's last socket asynchronously: EBUSY meanwhile. */
#define LOST_NS                   BENCH_NS
#define SLEEP_MS                  100
#define PING_WARM_UP              1000
#define CHECK_EACH                1024 /* Looks at the ring between two at the clock. */

/* One ring: ours is `mine`, the kernel's is read only when `mine` catches up with what was last seen of it.
 */
struct ring {
    uint32_t *producer, *consumer, *flags;
    void *entries;
    uint32_t mask;
    uint32_t mine, theirs;
};

struct loop {
    const struct packet_options *o;
    int fd;
    struct pages umem;
    struct ring fill, completion, rx, tx;
    uint64_t syscalls;
    uint32_t frame_bytes; /* A power of two. */
    uint32_t napi;        /* Id of the NAPI instance that busy polling would run; 0: none, it does nothing. */
};

/* Entries a consumer may take. */
static inline uint32_t ring_ready(struct ring *r) {
    if (r->theirs == r->mine) {
        /* Acquire: the entries (and their frames) were written before the kernel moved its producer. */
        r->theirs = __atomic_load_n(r->producer, __ATOMIC_ACQUIRE);
    }
    return r->theirs - r->mine;
}

/* A consumer is through with `n` entries. */
static inline void ring_release(struct ring *r, uint32_t n) {
    r->mine += n;
    /* Release: our reads of the entries are done before the kernel may overwrite them. */
    __atomic_store_n(r->consumer, r->mine, __ATOMIC_RELEASE);
}

/* A producer has written `n` entries. */
static inline void ring_submit(struct ring *r, uint32_t n) {
    r->mine += n;
    /* Release: entries and frames are written before the kernel sees the producer move. */
    __atomic_store_n(r->producer, r->mine, __ATOMIC_RELEASE);
}

static inline uint64_t *ring_addr(struct ring *r, uint32_t i) {
    return (uint64_t *)r->entries + ((r->mine + i) & r->mask);
}

static inline struct xdp_desc *ring_desc(struct ring *r, uint32_t i) {
    return (struct xdp_desc *)r->entries + ((r->mine + i) & r->mask);
}

static void set_option(int fd, int level, int name, uint32_t value, const char *what) {
    if (setsockopt(fd, level, name, &value, sizeof value) != 0) {
        bench_fail("%s: %s", what, strerror(errno));
    }
}

static struct ring map_ring(int fd, const struct xdp_ring_offset *at, off_t page, uint32_t entries,
                            size_t entry_bytes) {
    uint8_t *base = mmap(NULL, at->desc + entries * entry_bytes, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_POPULATE, fd, page);
    if (base == MAP_FAILED) {
        bench_fail("mapping a ring: %s", strerror(errno));
    }
    return (struct ring){.producer = (uint32_t *)(void *)(base + at->producer),
                         .consumer = (uint32_t *)(void *)(base + at->consumer),
                         .flags = (uint32_t *)(void *)(base + at->flags),
                         .entries = base + at->desc,
                         .mask = entries - 1};
}

static void open_rings(struct loop *l) {
    const uint32_t n = l->o->frames;
    struct xdp_umem_reg reg = {.addr = (uintptr_t)l->umem.base, .len = (uint64_t)2 * n * l->frame_bytes};
    struct xdp_mmap_offsets at;
    socklen_t len = sizeof at;
    reg.chunk_size = l->frame_bytes;
    if (setsockopt(l->fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof reg) != 0) {
        bench_fail("UMEM: %s", strerror(errno));
    }
    /* Answers wait in COMPLETION for as long as all frames of both kinds. */
    set_option(l->fd, SOL_XDP, XDP_UMEM_FILL_RING, n, "FILL ring");
    set_option(l->fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, 2 * n, "COMPLETION ring");
    set_option(l->fd, SOL_XDP, XDP_RX_RING, n, "RX ring");
    set_option(l->fd, SOL_XDP, XDP_TX_RING, n, "TX ring");
    if (getsockopt(l->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &len) != 0) {
        bench_fail("ring offsets: %s", strerror(errno));
    }
    l->fill = map_ring(l->fd, &at.fr, (off_t)XDP_UMEM_PGOFF_FILL_RING, n, sizeof(uint64_t));
    l->completion = map_ring(l->fd, &at.cr, (off_t)XDP_UMEM_PGOFF_COMPLETION_RING, 2 * n, sizeof(uint64_t));
    l->rx = map_ring(l->fd, &at.rx, XDP_PGOFF_RX_RING, n, sizeof(struct xdp_desc));
    l->tx = map_ring(l->fd, &at.tx, XDP_PGOFF_TX_RING, n, sizeof(struct xdp_desc));
    for (uint32_t i = 0; i < n; i++) {
        *ring_addr(&l->fill, i) = (uint64_t)i * l->frame_bytes;
    }
    ring_submit(&l->fill, n);
}

static void open_socket(struct loop *l) {
    const struct packet_options *o = l->o;
    struct sockaddr_xdp to = {.sxdp_family = AF_XDP,
                              .sxdp_flags = XDP_COPY | XDP_USE_NEED_WAKEUP,
                              .sxdp_ifindex = o->ifindex,
                              .sxdp_queue_id = o->queue};
    l->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (l->fd < 0 || !pages_map(&l->umem, (size_t)2 * o->frames * l->frame_bytes)) {
        bench_fail("AF_XDP socket: %s", strerror(errno));
    }
    open_rings(l);
    if (o->busy_budget != 0) {
        set_option(l->fd, SOL_SOCKET, OUR_SO_PREFER_BUSY_POLL, 1, "SO_PREFER_BUSY_POLL");
        set_option(l->fd, SOL_SOCKET, SO_BUSY_POLL, BUSY_POLL_US, "SO_BUSY_POLL");
        set_option(l->fd, SOL_SOCKET, OUR_SO_BUSY_POLL_BUDGET, o->busy_budget, "SO_BUSY_POLL_BUDGET");
    }
    set_option(l->fd, SOL_SOCKET, SO_SNDBUFFORCE, o->socket_bytes != 0 ? o->socket_bytes : SOCKET_BYTES,
               "SO_SNDBUF");
    int64_t end = bench_now_ns() + BIND_NS;
    while (bind(l->fd, (struct sockaddr *)&to, sizeof to) != 0) {
        if (errno != EBUSY || bench_now_ns() > end) {
            bench_fail("bind to queue %u: %s", o->queue, strerror(errno));
        }
    }
    socklen_t len = sizeof l->napi;
    getsockopt(l->fd, SOL_SOCKET, SO_INCOMING_NAPI_ID, &l->napi, &len);
    /* One sendto may take all that is in the ring; an older kernel takes 32 packets a call. */
    uint32_t budget = o->tx_budget != 0 ? o->tx_budget : o->frames;
    (void)setsockopt(l->fd, SOL_XDP, OUR_XDP_MAX_TX_SKB_BUDGET, &budget, sizeof budget);
}

/* ---- frames ---- */

static uint32_t sum_words(const uint8_t *p, uint32_t bytes, uint32_t sum) {
    for (uint32_t i = 0; i < bytes; i++) {
        sum += (i & 1) != 0 ? p[i] : (uint32_t)p[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return sum;
}

/* Ethernet, IPv6, UDP and a payload of zeros that carries number 0. */
static void prepare(const struct packet_options *o, uint8_t *f) {
    const uint32_t udp_bytes = 8 + o->bytes;
    uint8_t *ip = f + ETHERNET_BYTES, *udp = ip + 40;
    memset(f, 0, HEADERS_BYTES + o->bytes);
    memcpy(f, o->peer_link, 6);
    memcpy(f + 6, o->link, 6);
    f[12] = 0x86;
    f[13] = 0xdd;
    ip[0] = 0x60;
    ip[4] = (uint8_t)(udp_bytes >> 8);
    ip[5] = (uint8_t)udp_bytes;
    ip[6] = IPPROTO_UDP;
    ip[7] = 64;
    memcpy(ip + 8, o->local.ip, 16);
    memcpy(ip + 24, o->peer.ip, 16);
    udp[0] = udp[2] = (uint8_t)(o->peer.port >> 8);
    udp[1] = udp[3] = (uint8_t)o->peer.port;
    udp[4] = ip[4];
    udp[5] = ip[5];
    packet_write(udp + 8, 0);
    /* RFC 8200 section 8.1: over the addresses, length, next header, and the datagram. */
    uint32_t sum = sum_words(udp, udp_bytes, sum_words(ip + 8, 32, udp_bytes + IPPROTO_UDP));
    uint16_t checksum = (uint16_t)~sum;
    checksum = checksum == 0 ? 0xffff : checksum;
    udp[6] = (uint8_t)(checksum >> 8);
    udp[7] = (uint8_t)checksum;
}

static void swap_bytes(uint8_t *a, uint8_t *b, size_t n) {
    uint8_t t[16];
    memcpy(t, a, n);
    memcpy(a, b, n);
    memcpy(b, t, n);
}

/* Back to where it came from; the checksum stays. Ports are equal on both sides. */
static void turn_round(uint8_t *f) {
    swap_bytes(f, f + 6, 6);
    swap_bytes(f + ETHERNET_BYTES + 8, f + ETHERNET_BYTES + 24, 16);
}

static inline uint8_t *payload_at(const struct loop *l, uint64_t addr) {
    return l->umem.base + addr + HEADERS_BYTES;
}

/* ---- loops ---- */

static inline void kick_tx(struct loop *l) {
    if ((*l->tx.flags & XDP_RING_NEED_WAKEUP) != 0 || l->o->busy_budget != 0) {
        l->syscalls++;
        sendto(l->fd, NULL, 0, MSG_DONTWAIT, NULL, 0);
    }
}

static inline void kick_rx(struct loop *l) {
    if ((*l->fill.flags & XDP_RING_NEED_WAKEUP) != 0 || l->o->busy_budget != 0) {
        l->syscalls++;
        recvfrom(l->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    }
}

static uint64_t generate(struct loop *l) {
    const struct packet_options *o = l->o;
    const uint32_t n = o->frames, len = HEADERS_BYTES + o->bytes;
    uint64_t sent = 0, done = 0;
    uint32_t next = 0; /* Frame. */
    int64_t end = bench_now_ns() + (int64_t)(o->seconds * (double)BENCH_NS);
    while (bench_now_ns() < end) {
        uint32_t completed = ring_ready(&l->completion);
        ring_release(&l->completion, completed);
        done += completed;
        next = sent == done ? 0 : next; /* Nothing under way: the first frames are still in the cache. */
        if (sent - done + o->batch <= n) {
            for (uint32_t i = 0; i < o->batch; i++, next++) {
                uint64_t addr = (n + (next & (n - 1))) * (uint64_t)l->frame_bytes;
                *ring_desc(&l->tx, i) = (struct xdp_desc){.addr = addr, .len = len};
                packet_write(payload_at(l, addr), sent + i);
            }
            ring_submit(&l->tx, o->batch);
            sent += o->batch;
        }
        kick_tx(l);
    }
    return done;
}

static uint32_t receive(struct loop *l, struct packet_tally *t) {
    uint32_t n = ring_ready(&l->rx);
    n = n < l->o->batch ? n : l->o->batch;
    if (n == 0) {
        kick_rx(l);
        if (l->o->sleep) {
            l->syscalls++;
            poll(&(struct pollfd){.fd = l->fd, .events = POLLIN}, 1, SLEEP_MS);
        }
        return 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct xdp_desc *d = ring_desc(&l->rx, i);
        packet_read(t, payload_at(l, d->addr), d->len - HEADERS_BYTES, l->o->bytes);
        /* There is always room: FILL holds as many entries as there are frames of this kind. */
        *ring_addr(&l->fill, i) = d->addr & ~(uint64_t)(l->frame_bytes - 1);
    }
    ring_release(&l->rx, n);
    ring_submit(&l->fill, n);
    return n;
}

static void answer(struct loop *l) {
    for (bool on = true; on;) {
        uint32_t completed = ring_ready(&l->completion);
        for (uint32_t i = 0; i < completed; i++) {
            *ring_addr(&l->fill, i) = *ring_addr(&l->completion, i) & ~(uint64_t)(l->frame_bytes - 1);
        }
        if (completed > 0) {
            ring_release(&l->completion, completed);
            ring_submit(&l->fill, completed);
        }
        uint32_t n = ring_ready(&l->rx);
        if (n == 0) {
            kick_rx(l);
            continue;
        }
        /* As many TX entries as frames that can arrive: there is always room. */
        for (uint32_t i = 0; i < n; i++) {
            const struct xdp_desc *d = ring_desc(&l->rx, i);
            uint64_t sequence;
            memcpy(&sequence, payload_at(l, d->addr), sizeof sequence);
            on = on && sequence != PACKET_END;
            turn_round(l->umem.base + d->addr);
            *ring_desc(&l->tx, i) = (struct xdp_desc){.addr = d->addr, .len = d->len};
        }
        ring_release(&l->rx, n);
        ring_submit(&l->tx, n);
        kick_tx(l);
    }
}

static void send_one(struct loop *l, uint64_t sequence, uint32_t len) {
    uint64_t addr = (uint64_t)l->o->frames * l->frame_bytes; /* One at a time: always the same frame. */
    ring_release(&l->completion, ring_ready(&l->completion));
    packet_write(payload_at(l, addr), sequence);
    *ring_desc(&l->tx, 0) = (struct xdp_desc){.addr = addr, .len = len};
    ring_submit(&l->tx, 1);
    kick_tx(l);
}

static bool await_answer(struct loop *l, uint64_t want, int64_t sent) {
    for (uint32_t spins = 1;; spins++) {
        if (ring_ready(&l->rx) > 0) {
            uint64_t sequence, addr = ring_desc(&l->rx, 0)->addr;
            memcpy(&sequence, payload_at(l, addr), sizeof sequence);
            *ring_addr(&l->fill, 0) = addr & ~(uint64_t)(l->frame_bytes - 1);
            ring_release(&l->rx, 1);
            ring_submit(&l->fill, 1);
            if (sequence == want) {
                return true;
            }
        } else {
            kick_rx(l);
        }
        if (spins % CHECK_EACH == 0 && bench_now_ns() - sent > LOST_NS) {
            return false;
        }
    }
}

static uint32_t ping(struct loop *l, uint32_t *times_ns) {
    const struct packet_options *o = l->o;
    const uint32_t len = HEADERS_BYTES + o->bytes;
    uint32_t got = 0, lost = 0;
    prepare(o, l->umem.base + (uint64_t)o->frames * l->frame_bytes);
    for (uint64_t sequence = 0; got < o->count; sequence++) {
        int64_t sent = bench_now_ns();
        send_one(l, sequence, len);
        if (!await_answer(l, sequence, sent)) {
            if (++lost > 10) {
                bench_fail("no answer");
            }
        } else if (sequence >= PING_WARM_UP) {
            times_ns[got++] = (uint32_t)(bench_now_ns() - sent); /* Below LOST_NS, so it fits. */
        }
    }
    int64_t now = bench_now_ns();
    send_one(l, PACKET_END, len);
    await_answer(l, PACKET_END, now);
    return lost;
}

static void report_sink(const struct loop *l, const struct packet_tally *t) {
    struct xdp_statistics st = {0};
    socklen_t len = sizeof st;
    getsockopt(l->fd, SOL_XDP, XDP_STATISTICS, &st, &len);
    const struct packet_figure more[] = {{"syscalls", l->syscalls},
                                         {"napi_id", l->napi},
                                         {"rx_dropped", st.rx_dropped},
                                         {"rx_ring_full", st.rx_ring_full},
                                         {"fill_empty", st.rx_fill_ring_empty_descs},
                                         {NULL, 0}};
    packet_report_sink(l->o, "raw", t, more);
}

int main(int argc, char **argv) {
    const struct packet_options o = packet_options(argc, argv, false);
    /* The least the kernel takes that holds a packet behind its headroom: fewer pages, fewer cache misses. */
    struct loop l = {.o = &o,
                     .frame_bytes = KERNEL_HEADROOM_BYTES + HEADERS_BYTES + o.bytes <= 2048 ? 2048 : 4096};
    struct packet_tally t = {.sleep = o.sleep};
    /* The program before the socket: bind() takes down which NAPI instance serves the queue, and veth has
     * none before it has a program; without it busy polling is accepted and does nothing. A generator too has
     * a program: what it costs the peer to answer depends on it. */
    struct xdp_redirect redirect = xdp_redirect_open(o.ifindex, o.local.port);
    open_socket(&l);
    xdp_redirect_set(&redirect, o.queue, l.fd);
    fprintf(stderr, "ready\n"); /* For the script: now start the other side. */
    if (o.role == PACKET_SINK) {
        while (packet_tally_round(&t, receive(&l, &t))) {
        }
        report_sink(&l, &t);
    } else if (o.role == PACKET_GENERATE) {
        for (uint32_t i = 0; i < o.frames; i++) {
            prepare(&o, l.umem.base + (uint64_t)(o.frames + i) * l.frame_bytes);
        }
        struct packet_start start = packet_start();
        uint64_t done = generate(&l);
        const struct packet_figure more[] = {{"syscalls", l.syscalls}, {NULL, 0}};
        packet_report_generate(&o, "raw", done, start, more);
    } else if (o.role == PACKET_ANSWER) {
        answer(&l);
    } else {
        uint32_t *times_ns = calloc(o.count, sizeof *times_ns);
        if (times_ns == NULL) {
            bench_fail("no memory");
        }
        uint32_t lost = ping(&l, times_ns);
        const struct packet_figure more[] = {{"syscalls", l.syscalls}, {NULL, 0}};
        packet_report_ping(&o, "raw", times_ns, lost, more);
        free(times_ns);
    }
    xdp_redirect_close(&redirect);
    close(l.fd);
    pages_unmap(&l.umem);
    return 0;
}
