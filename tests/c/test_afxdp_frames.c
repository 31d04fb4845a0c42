/* What AF_XDP makes of frames that somebody writes by hand: which are datagrams, which of them make one
 * train, and that nothing in them leads outside the frame. The XDP program lets everything through, the guard
 * would not. */
#define _GNU_SOURCE
#include "check.h"

#include <linux/if_packet.h>
#include <sys/socket.h>
#include <time.h>

#include "afxdp_scene.h"

#define MAX_RX 64

static struct scene stage;
static struct io *io;
static int wire = -1; /* Packet socket on the other end. */

static void open_stage(void) {
    stage = scene_open(1500, true);
    struct afxdp_config c = {.ifindex = stage.b.ifindex,
                             .native = true,
                             .xsks_fd = stage.b.map,
                             .rx_frames = 256,
                             .no_socket = true};
    struct io_config config = {.bind.port = SCENE_PORT, .backend = &c};
    struct io_text why = {{0}};
    enter(stage.b.ns);
    io = io_afxdp_ops.open(&config, &why);
    enter(stage.a.ns);
    shell("echo 1 > /proc/sys/net/ipv6/conf/va/disable_ipv6"); /* Its kernel has nothing to say. */
    wire = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)stage.a.ifindex};
    bool ok = io != NULL && wire >= 0 && bind(wire, (struct sockaddr *)&to, sizeof to) == 0;
    enter(home_ns);
    REQUIRE(ok);
}

static void close_stage(void) {
    struct io_text why;
    bool ok = afxdp_check(io, true, &why);
    check_note("%s", why.text);
    REQUIRE(ok);
    close(wire);
    io->ops->close(io);
    scene_close(&stage);
}

static struct io_stats stats(void) {
    struct io_stats s;
    io->ops->stats(io, &s);
    return s;
}

/* Packets that came out of the RX ring, as datagrams or dropped. */
static uint64_t seen(void) {
    struct io_stats s = stats();
    return s.rx_packets + s.rx_errors + s.rx_dropped_ipv4 + s.rx_dropped_empty + s.rx_dropped_truncated;
}

struct frame {
    uint8_t bytes[1600];
    size_t len;
};

static void put16(uint8_t *at, uint32_t v) {
    at[0] = (uint8_t)(v >> 8);
    at[1] = (uint8_t)v;
}

/* A good datagram of `payload` bytes, each of them `fill`; `extra` bytes of room before the UDP header. */
static struct frame datagram(uint32_t payload, uint8_t fill, uint32_t extra) {
    struct frame f = {.len = 62 + extra + payload};
    uint8_t *p = f.bytes;
    memcpy(p, stage.b.mac, 6);
    memcpy(p + 6, stage.a.mac, 6);
    put16(p + 12, 0x86dd);
    p[14] = 0x60;
    put16(p + 18, extra + 8 + payload);
    p[20] = 17;
    p[21] = 64;
    memcpy(p + 22, stage.a.ip, 16);
    memcpy(p + 38, stage.b.ip, 16);
    uint8_t *udp = p + 54 + extra;
    put16(udp, 5555);
    put16(udp + 2, SCENE_PORT);
    put16(udp + 4, 8 + payload);
    put16(udp + 6, 0x1234); /* Any but none: not verified here. */
    memset(udp + 8, fill, payload);
    return f;
}

static void inject(const struct frame *f) {
    REQUIRE(send(wire, f->bytes, f->len, 0) == (ssize_t)f->len);
}

/* Take until `packets` more than `before` were seen; returns the trains. */
static int collect(uint64_t before, uint64_t packets, struct io_rx *v) {
    int n = 0;
    for (int tries = 0; seen() < before + packets; tries++) {
        REQUIRE(tries < 1000 && n < MAX_RX);
        n += io->ops->rx(io, v + n, MAX_RX - n);
        if (seen() < before + packets) {
            io->ops->wait(io, 10000000);
        }
    }
    return n;
}

/* The kernel on the other end says something of its own when the link comes up: let it pass, and count anew.
 */
static void quiet(void) {
    struct io_rx v[MAX_RX];
    uint64_t before;
    do {
        before = seen();
        io->ops->rx_release(io, v, io->ops->rx(io, v, MAX_RX));
        io->ops->wait(io, 30000000);
    } while (seen() != before || xsk_ring_waiting(&((struct afxdp *)io)->xsk.rx) > 0);
}

enum verdict { TAKEN, ERROR, IPV4, EMPTY };

static enum verdict judge(const struct frame *f, struct io_rx *v) {
    struct io_stats before = stats();
    struct io_rx trains[MAX_RX];
    inject(f);
    int n = collect(seen(), 1, trains);
    struct io_stats after = stats();
    REQUIRE(n == (after.rx_packets != before.rx_packets));
    if (n == 1) {
        *v = trains[0];
        return TAKEN;
    }
    return after.rx_errors != before.rx_errors               ? ERROR
           : after.rx_dropped_ipv4 != before.rx_dropped_ipv4 ? IPV4
                                                             : EMPTY;
}

static void take_one(const struct frame *f, uint32_t len, uint8_t fill) {
    struct io_rx v;
    REQUIRE(judge(f, &v) == TAKEN);
    REQUIRE(v.len == len && v.segment == len && v.data[0] == fill && v.data[len - 1] == fill);
    REQUIRE(v.peer.port == 5555 && memcmp(v.peer.ip, stage.a.ip, 16) == 0 && v.local.port == SCENE_PORT);
    io->ops->rx_release(io, &v, 1);
}

static void good_ones(void) {
    open_stage();
    quiet();
    struct frame f = datagram(100, 1, 0);
    take_one(&f, 100, 1);
    f = datagram(1, 2, 0);
    take_one(&f, 1, 2);
    f = datagram(1452, 3, 0);
    take_one(&f, 1452, 3);
    f = datagram(100, 4, 0); /* Padding behind the packet, as short Ethernet frames have it. */
    f.len += 200;
    take_one(&f, 100, 4);
    f = datagram(100, 5, 8); /* Hop-by-hop options: one PadN. */
    f.bytes[20] = 0;
    memcpy(f.bytes + 54, (const uint8_t[8]){17, 0, 1, 4}, 8);
    take_one(&f, 100, 5);
    f = datagram(100, 6, 0); /* A VLAN tag that nobody took off. */
    memmove(f.bytes + 16, f.bytes + 12, f.len - 12);
    put16(f.bytes + 12, 0x8100);
    put16(f.bytes + 14, 7);
    f.len += 4;
    take_one(&f, 100, 6);
    f = datagram(100, 7, 0);
    f.bytes[15] = 0x30; /* CE */
    struct io_rx v;
    REQUIRE(judge(&f, &v) == TAKEN && v.ecn == 3);
    io->ops->rx_release(io, &v, 1);
    close_stage();
}

static void bad_ones(void) {
    open_stage();
    quiet();
    struct io_rx v;
    static const struct {
        const char *what;
        uint16_t at;
        uint8_t value;
        enum verdict verdict;
    } spoilt[] = {
        {"not IPv6", 12, 0x88, ERROR},
        {"IPv4", 12, 0x08, ERROR /* 0x08dd */},
        {"version 5", 14, 0x50, ERROR},
        {"IPv6 length beyond the frame", 18, 0x06, ERROR},
        {"no room for UDP", 19, 4, ERROR},
        {"TCP", 20, 6, ERROR},
        {"multicast source", 22, 0xff, ERROR},
        {"port", 56, 0x24 + 1, ERROR},
        {"UDP longer than the packet", 59, 110, ERROR},
        {"UDP shorter than its header", 59, 7, ERROR},
        {"empty", 59, 8, EMPTY},
    };
    for (size_t i = 0; i < sizeof spoilt / sizeof spoilt[0]; i++) {
        struct frame f = datagram(100, 1, 0);
        f.bytes[spoilt[i].at] = spoilt[i].value;
        check_note("%s", spoilt[i].what);
        REQUIRE(judge(&f, &v) == spoilt[i].verdict);
    }
    struct frame f = datagram(100, 1, 0);
    put16(f.bytes + 60, 0);
    check_note("no checksum");
    REQUIRE(judge(&f, &v) == ERROR);
    f = datagram(100, 1, 0);
    memcpy(f.bytes + 22, (const uint8_t[16]){[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 1}, 16);
    check_note("v4-mapped source");
    REQUIRE(judge(&f, &v) == IPV4);
    put16(f.bytes + 12, 0x0800);
    f.bytes[14] = 0x45;
    check_note("IPv4");
    REQUIRE(judge(&f, &v) == IPV4);
    for (size_t len = 14; len < 62; len += 3) {
        f = datagram(100, 1, 0);
        f.len = len;
        check_note("cut to %zu", len);
        REQUIRE(judge(&f, &v) == ERROR);
    }
    close_stage();
}

/* Which neighbours in the ring make one train. */
static void merging(void) {
    static const struct {
        uint16_t sizes[6]; /* 0 ends. */
        uint8_t other;     /* From this one on the source port is another; 0: all the same. */
        uint8_t marked;    /* Likewise CE. */
        uint8_t foreign;   /* This one is for another port. */
        uint8_t trains[6]; /* Datagrams of each. */
    } rows[] = {
        {{100, 100, 100, 100}, 0, 0, 0, {4}},         {{100, 100, 50, 100}, 0, 0, 0, {3, 1}},
        {{100, 100, 101, 101}, 0, 0, 0, {2, 2}},      {{50, 100, 100, 50, 50}, 0, 0, 0, {1, 3, 1}},
        {{100, 100, 100, 100}, 2, 0, 0, {2, 2}},      {{100, 100, 100, 100}, 0, 3, 0, {3, 1}},
        {{100, 100, 100, 100, 100}, 0, 0, 2, {2, 2}},
    };
    open_stage();
    quiet();
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        uint64_t before = seen(), sent = 0;
        for (; sent < 6 && rows[r].sizes[sent] != 0; sent++) {
            struct frame f = datagram(rows[r].sizes[sent], (uint8_t)sent, 0);
            put16(f.bytes + 54, rows[r].other != 0 && sent >= rows[r].other ? 5556 : 5555);
            f.bytes[15] = rows[r].marked != 0 && sent >= rows[r].marked ? 0x30 : 0;
            put16(f.bytes + 56, rows[r].foreign != 0 && sent == rows[r].foreign ? 1 : SCENE_PORT);
            inject(&f);
        }
        /* All are in the ring before any is taken: trains do not reach over two calls. */
        while (((struct afxdp *)io)->xsk.rx.here + sent !=
               __atomic_load_n(((struct afxdp *)io)->xsk.rx.producer, __ATOMIC_ACQUIRE)) {
            sched_yield();
        }
        struct io_rx v[MAX_RX];
        int n = collect(before, sent, v), expected = 0;
        uint32_t at = 0;
        check_note("row %zu", r);
        for (; expected < 6 && rows[r].trains[expected] != 0; expected++) {
            REQUIRE(expected < n);
            const struct io_rx *t = &v[expected];
            REQUIRE((t->len + t->segment - 1) / t->segment == rows[r].trains[expected]);
            REQUIRE((t->stride == 0) == (rows[r].trains[expected] == 1));
            for (uint32_t k = 0; k < rows[r].trains[expected]; k++, at++) {
                at += rows[r].foreign != 0 && at == rows[r].foreign;
                REQUIRE(t->data[k * t->stride] == at);
            }
        }
        REQUIRE(n == expected);
        io->ops->rx_release(io, v, n);
    }
    /* Asked for fewer than there are: the rest stays, and is not lost. */
    uint64_t before = seen();
    for (uint32_t i = 0; i < 10; i++) {
        struct frame f = datagram(100 + i, (uint8_t)i, 0);
        inject(&f);
    }
    struct io_rx v[3];
    for (uint32_t i = 0; i < 10;) {
        int n = io->ops->rx(io, v, 3);
        for (int k = 0; k < n; k++, i++) {
            REQUIRE(v[k].len == 100 + i && v[k].data[0] == i);
        }
        io->ops->rx_release(io, v, n);
    }
    REQUIRE(seen() == before + 10);
    close_stage();
}

/* Anything at all: no byte outside its frame is named, every frame comes back. */
static void random_frames(void) {
    open_stage();
    quiet();
    const struct umem *u = &((struct afxdp *)io)->umem;
    uint64_t taken = 0;
    for (int round = 0; round < 200; round++) {
        uint64_t before = seen();
        for (int i = 0; i < 20; i++) {
            struct frame f = datagram((uint32_t)check_rand() % 1400, 1, check_rand() % 4 == 0 ? 8 : 0);
            if (f.bytes[18] == 0 && f.bytes[19] == 0) {
                f.bytes[19] = 8;
            }
            for (uint64_t n = check_rand() % 4; n > 0; n--) { /* Mostly in the headers. */
                size_t at = 12 + check_rand() % (f.len > 90 ? 60 : f.len - 14);
                f.bytes[at] = check_rand() % 2
                                  ? (uint8_t)check_rand()
                                  : (uint8_t[]){0, 1, 17, 43, 44, 51, 58, 60, 0x81, 0xff}[check_rand() % 10];
            }
            if (check_rand() % 8 == 0) {
                f.len = 14 + check_rand() % (f.len - 13);
            }
            inject(&f);
        }
        struct io_rx v[MAX_RX];
        int n = collect(before, 20, v);
        for (int i = 0; i < n; i++) {
            uint32_t stride = v[i].stride;
            REQUIRE(v[i].segment > 0 && v[i].len >= v[i].segment);
            for (uint32_t at = 0, k = 0; at < v[i].len; at += v[i].segment, k++) {
                uint32_t len = v[i].len - at < v[i].segment ? v[i].len - at : v[i].segment;
                uint64_t first = (uint64_t)(v[i].data + k * stride - u->pages.base);
                REQUIRE(k == 0 || stride == u->frame_bytes);
                REQUIRE(first / u->frame_bytes < u->rx_frames);
                REQUIRE(first / u->frame_bytes == (first + len - 1) / u->frame_bytes);
                taken++;
            }
        }
        io->ops->rx_release(io, v, n);
    }
    REQUIRE(taken > 500); /* Many were left good, or the test would test nothing. */
    close_stage();
}

/* The queue's NAPI is driven by our own calls. */
static void busy_polling(void) {
    struct scene s = scene_open(1500, false);
    struct io *ends[2];
    const struct scene_side *sides[2] = {&s.a, &s.b};
    for (int i = 0; i < 2; i++) {
        struct afxdp_config c = {.ifindex = sides[i]->ifindex, .native = true, .xsks_fd = sides[i]->map};
        c.busy_budget = 64;
        struct io_config config = {.bind.port = SCENE_PORT, .backend = &c};
        struct io_text why = {{0}};
        memcpy(config.bind.ip, sides[i]->ip, 16);
        enter(sides[i]->ns);
        ends[i] = io_afxdp_ops.open(&config, &why);
        enter(home_ns);
        if (ends[i] == NULL) {
            printf("%s\n", why.text);
        }
        REQUIRE(ends[i] != NULL);
        scene_introduce(ends[i], sides[1 - i]);
    }
    struct io_text text;
    ends[0]->ops->describe(ends[0], &text);
    REQUIRE(strstr(text.text, "preferred busy polling") != NULL && strstr(text.text, "refused: ") != NULL);
    REQUIRE(strstr(text.text, "napi_defer_hard_irqs") != NULL); /* Nobody has set it here. */
    for (uint32_t i = 0; i < 200; i++) {
        struct io *from = ends[i % 2], *to = ends[1 - i % 2];
        struct io_tx *tx = from->ops->tx_acquire(from);
        REQUIRE(tx != NULL);
        memset(tx->data, (int)i, 200);
        tx->len = tx->segment = 200;
        tx->peer.port = SCENE_PORT;
        memcpy(tx->peer.ip, sides[1 - i % 2]->ip, 16);
        from->ops->tx_commit(from, tx);
        from->ops->flush(from);
        struct io_rx v;
        REQUIRE(from->ops->rx(from, &v, 1) == 0);
        int n = 0;
        for (int tries = 0; n == 0 && tries < 10000000; tries++) { /* No sleep: rx() alone must get it. */
            n = to->ops->rx(to, &v, 1);
        }
        REQUIRE(n == 1 && v.len == 200 && v.data[199] == (uint8_t)i);
        to->ops->rx_release(to, &v, 1);
    }
    for (int i = 0; i < 2; i++) {
        struct io_queue_stats q;
        ends[i]->ops->queue(ends[i], &q);
        /* veth names no NAPI context: granted, and said to do nothing. */
        ends[i]->ops->describe(ends[i], &text);
        REQUIRE(q.busy_poll == (strstr(text.text, "names no NAPI") == NULL) && q.wakeups_rx > 0);
        ends[i]->ops->close(ends[i]);
    }
    scene_close(&s);
}

static const struct check_case cases[] = {
    {"afxdp_good_ones", good_ones},         {"afxdp_bad_ones", bad_ones},         {"afxdp_merging", merging},
    {"afxdp_random_frames", random_frames}, {"afxdp_busy_polling", busy_polling},
};

int main(int argc, char **argv) {
    alarm(300); /* A hang is a failure. */
    if (!scene_possible()) {
        printf("SKIP: AF_XDP on veth needs root, CAP_BPF, iproute2 and a kernel with XDP sockets\n");
        return 0;
    }
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
