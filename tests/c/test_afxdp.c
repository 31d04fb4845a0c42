/* The AF_XDP backend against the real kernel, over a veth pair between two namespaces of the test's own. */
#define _GNU_SOURCE
#include "check.h"

#include <dirent.h>
#include <linux/if_packet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <time.h>

#include "afxdp_scene.h"

#define SECOND_NS 1000000000ll
#define MAX_RX    64

static int64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * SECOND_NS + ts.tv_nsec;
}

static struct afxdp_config config_for(const struct scene_side *s) {
    return (struct afxdp_config){.ifindex = s->ifindex, .native = true, .xsks_fd = s->map};
}

static struct io *try_open(const struct scene_side *s, struct afxdp_config c, struct io_text *why) {
    struct io_config config = {.bind.port = SCENE_PORT, .backend = &c};
    enter(s->ns);
    struct io *io = io_afxdp_ops.open(&config, why);
    enter(home_ns);
    return io;
}

static struct io *open_with(const struct scene_side *s, struct afxdp_config c) {
    struct io_text why = {{0}};
    struct io *io = try_open(s, c, &why);
    if (io == NULL) {
        printf("open: %s\n", why.text);
    }
    REQUIRE(io != NULL);
    return io;
}

static struct io *open_on(const struct scene_side *s) {
    return open_with(s, config_for(s));
}

static struct quic_addr address_of(const struct scene_side *s) {
    struct quic_addr a = {.port = SCENE_PORT};
    memcpy(a.ip, s->ip, sizeof a.ip);
    return a;
}

static struct io_stats stats_of(const struct io *io) {
    struct io_stats s;
    io->ops->stats(io, &s);
    return s;
}

static struct io_queue_stats queue_of(const struct io *io) {
    struct io_queue_stats q;
    io->ops->queue(io, &q);
    return q;
}

static struct io_text describe(const struct io *io) {
    struct io_text t;
    io->ops->describe(io, &t);
    return t;
}

static bool books_hold(const struct io *io, struct io_text *why) {
    struct io_queue_stats q = queue_of(io);
    return afxdp_check(io, true, why) &&
           q.frames == q.frames_fill + q.frames_rx + q.frames_worker + q.frames_free + q.frames_tx +
                           q.frames_completion &&
           q.frames_worker == 0 && q.ring_rx == 0 && q.ring_tx == 0;
}

/* Nothing is under way: the books are exact. */
static void check_books(const struct io *io) {
    struct io_text why = {{0}};
    bool ok = books_hold(io, &why);
    if (!ok) {
        check_note("%s", why.text);
    }
    REQUIRE(ok);
}

/* Everything sent has come back. */
static void settle(struct io *io) {
    for (int64_t end = now_ns() + 5 * SECOND_NS; now_ns() < end;) {
        io->ops->flush(io);
        struct io_queue_stats q = queue_of(io);
        if (q.frames_tx == 0 && q.frames_completion == 0) {
            return;
        }
        sched_yield();
    }
    REQUIRE(!"the kernel keeps send frames");
}

static uint8_t pattern(uint32_t seed, uint32_t i) {
    return (uint8_t)((i * 131u + seed * 29u) ^ (i >> 8));
}

static bool try_send(struct io *io, struct quic_addr to, uint32_t len, uint16_t segment, uint8_t ecn,
                     uint32_t seed) {
    struct io_tx *tx = io->ops->tx_acquire(io);
    if (tx == NULL) {
        return false;
    }
    uint32_t stride = tx->stride != 0 ? tx->stride : segment;
    REQUIRE(segment <= tx->cap && (len + segment - 1) / segment <= tx->max_segments);
    for (uint32_t i = 0; i < len; i++) {
        tx->data[i / segment * stride + i % segment] = pattern(seed, i);
    }
    tx->len = len;
    tx->segment = segment;
    tx->ecn = ecn;
    tx->peer = to;
    io->ops->tx_commit(io, tx);
    return true;
}

static void send_train(struct io *io, struct quic_addr to, uint32_t len, uint16_t segment, uint8_t ecn,
                       uint32_t seed) {
    REQUIRE(try_send(io, to, len, segment, ecn, seed));
    io->ops->flush(io);
}

static int receive(struct io *io, struct io_rx *v, int max) {
    int64_t end = now_ns() + 5 * SECOND_NS; /* Only a failure takes so long. */
    while (now_ns() < end) {
        int n = io->ops->rx(io, v, max);
        if (n > 0) {
            return n;
        }
        io->ops->wait(io, SECOND_NS);
    }
    REQUIRE(!"nothing arrived");
    return 0;
}

/* One received train is the bytes [offset, offset + v->len) of what `seed` makes. */
static void check_train(const struct io_rx *v, uint32_t offset, uint32_t len, uint16_t segment,
                        uint32_t seed) {
    uint32_t stride = v->stride != 0 ? v->stride : v->segment;
    REQUIRE(v->len <= len - offset && offset % segment == 0);
    REQUIRE(v->segment == (v->len < segment ? v->len : segment));
    for (uint32_t i = 0; i < v->len; i++) {
        REQUIRE(v->data[i / v->segment * stride + i % v->segment] == pattern(seed, offset + i));
    }
}

/* The train of `seed` arrives whole and in order, in however many pieces. Returns how many. */
static uint32_t expect_train(struct io *io, struct quic_addr from, uint32_t len, uint16_t segment,
                             uint8_t ecn, uint32_t seed) {
    uint32_t pieces = 0;
    for (uint32_t offset = 0; offset < len; pieces++) {
        struct io_rx v;
        REQUIRE(receive(io, &v, 1) == 1);
        check_train(&v, offset, len, segment, seed);
        REQUIRE(v.ecn == ecn && quic_addr_equal(&v.peer, &from) && v.local.port == SCENE_PORT);
        offset += v.len;
        io->ops->rx_release(io, &v, 1);
    }
    return pieces;
}

struct pair {
    struct scene scene;
    struct io *a, *b;
};

/* Both ends open, and knowing each other. */
static struct pair pair_open(uint32_t mtu) {
    struct pair p = {.scene = scene_open(mtu, false)};
    p.a = open_on(&p.scene.a);
    p.b = open_on(&p.scene.b);
    scene_introduce(p.a, &p.scene.b);
    scene_introduce(p.b, &p.scene.a);
    return p;
}

static void pair_close(struct pair *p) {
    settle(p->a);
    settle(p->b);
    check_books(p->a);
    check_books(p->b);
    p->a->ops->close(p->a);
    p->b->ops->close(p->b);
    scene_close(&p->scene);
}

static void described(void) {
    struct pair p = pair_open(1500);
    struct io_text text = describe(p.a);
    printf("%s\n", text.text);
    REQUIRE(strstr(text.text, "afxdp: va queue 0, native, copy") == text.text);
    REQUIRE(strstr(text.text, "zero copy refused: ") != NULL && strstr(text.text, "EOPNOTSUPP") != NULL);
    REQUIRE(strstr(text.text, "socket path: io_uring") != NULL);
    struct io_queue_stats q = queue_of(p.a);
    REQUIRE(q.native == 1 && q.zero_copy == 0 && q.frames == 4096 + 32 * 64 && q.frame_bytes == 2048);
    REQUIRE(q.frames_fill == 4096 && q.frames_free == 32 * 64 && q.ring_fill == 4096);
    REQUIRE(q.routes == 1 && q.neighbours == 1);
    REQUIRE(io_backend_by_name("afxdp") == &io_afxdp_ops);
    pair_close(&p);
}

static void trains_at(uint32_t mtu) {
    struct pair p = pair_open(mtu);
    const uint16_t sizes[] = {1, 2, 7, 64, 333, 1000, 1200, 1350, (uint16_t)(mtu - 49), (uint16_t)(mtu - 48)};
    const uint32_t counts[] = {1, 2, 3, 17, 63, 64};
    uint64_t packets = 0, bytes = 0;
    uint32_t seed = 0, largest = 0;
    struct io_tx *tx = p.a->ops->tx_acquire(p.a);
    REQUIRE(tx->cap == mtu - 48);
    uint32_t most = tx->max_segments;
    p.a->ops->tx_cancel(p.a, tx);
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            uint32_t datagrams = counts[c] < most ? counts[c] : most;
            for (uint32_t less = 0; less < 2; less++, seed++) { /* With a shorter last one, too. */
                uint32_t len = datagrams * sizes[s] - (sizes[s] > 1 ? less * (sizes[s] / 2) : 0);
                struct io *from = seed % 2 ? p.a : p.b, *to = seed % 2 ? p.b : p.a;
                struct quic_addr source = address_of(seed % 2 ? &p.scene.a : &p.scene.b);
                struct quic_addr target = address_of(seed % 2 ? &p.scene.b : &p.scene.a);
                if (seed < 2) { /* Nothing was received yet that would show our address. */
                    memcpy(((struct afxdp *)from)->bind.ip, source.ip, 16);
                }
                check_note("mtu %u, %u datagrams of %u, %u bytes", mtu, datagrams, sizes[s], len);
                send_train(from, target, len, sizes[s], seed & 3, seed);
                uint32_t pieces = expect_train(to, source, len, sizes[s], seed & 3, seed);
                largest = pieces == 1 && datagrams > largest ? datagrams : largest;
                packets += datagrams;
                bytes += len;
            }
        }
    }
    check_note("%s", "");
    struct io_stats sa = stats_of(p.a), sb = stats_of(p.b);
    REQUIRE(sa.tx_packets + sb.tx_packets == packets && sa.tx_bytes + sb.tx_bytes == bytes);
    REQUIRE(sa.rx_packets + sb.rx_packets == packets && sa.rx_bytes + sb.rx_bytes == bytes);
    REQUIRE(sa.tx_errors + sb.tx_errors + sa.rx_errors + sb.rx_errors == 0);
    REQUIRE(queue_of(p.a).tx_socket + queue_of(p.b).tx_socket == 0 && queue_of(p.a).rx_socket == 0);
    REQUIRE(largest == most); /* A train arrived in one piece as it left. */
    REQUIRE((((struct afxdp *)p.a)->linearised > 0) == (mtu > 3900));
    pair_close(&p);
}

static void trains(void) {
    trains_at(1500);
}

static void trains_3498(void) {
    trains_at(3498);
}

static void trains_9000(void) {
    trains_at(9000);
}

/* An ordinary UDP socket at b's address. */
static int ordinary_socket(const struct scene_side *s, uint16_t port) {
    enter(s->ns);
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 sa = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct timeval limit = {.tv_sec = 5};
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&sa, sizeof sa) == 0 &&
              setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0;
    enter(home_ns);
    REQUIRE(ok);
    return fd;
}

/* The kernel on the other side takes what we send: headers and checksums are right, made by us or, with the
 * device's own offload switched off, by the sending kernel out of what the metadata says. */
static void checksum(bool offload) {
    struct scene s = scene_open(1500, false);
    struct afxdp_config c = config_for(&s.a);
    c.no_tx_checksum = !offload;
    enter(s.a.ns);
    shell("ethtool -K va tx off >/dev/null");
    enter(home_ns);
    struct io *a = open_with(&s.a, c);
    REQUIRE(queue_of(a).tx_checksum == offload);
    scene_introduce(a, &s.b);
    memcpy(((struct afxdp *)a)->bind.ip, s.a.ip, 16);
    int fd = ordinary_socket(&s.b, 7777);
    struct quic_addr to = address_of(&s.b);
    to.port = 7777;
    uint32_t seed = 0;
    for (uint32_t len = 1; len <= 1452; len += len < 70 ? 1 : 97, seed++) {
        send_train(a, to, 3 * len, (uint16_t)len, 0, seed);
        for (uint32_t i = 0; i < 3; i++) {
            uint8_t got[2048];
            struct sockaddr_in6 from;
            socklen_t from_len = sizeof from;
            check_note("%u bytes", len);
            REQUIRE(recvfrom(fd, got, sizeof got, 0, (struct sockaddr *)&from, &from_len) == (ssize_t)len);
            REQUIRE(memcmp(&from.sin6_addr, s.a.ip, 16) == 0 && ntohs(from.sin6_port) == SCENE_PORT);
            for (uint32_t k = 0; k < len; k++) {
                REQUIRE(got[k] == pattern(seed, i * len + k));
            }
        }
    }
    REQUIRE(queue_of(a).tx_socket == 0);
    /* That a wrong one would have been noticed: the metadata of the next frame points one word on. */
    if (offload) {
        struct io_tx *tx = a->ops->tx_acquire(a);
        struct xsk_tx_checksum *request =
            (struct xsk_tx_checksum *)(void *)(tx->data - PATHS_HEADER_BYTES - sizeof *request);
        uint16_t wrong = PATHS_UDP_AT + 2;
        memcpy((uint8_t *)request + offsetof(struct xsk_tx_checksum, csum_start), &wrong, sizeof wrong);
        memset(tx->data, 0x5a, 100);
        tx->len = tx->segment = 100;
        tx->peer = to;
        a->ops->tx_commit(a, tx);
        a->ops->flush(a);
        settle(a);
        uint8_t got[2048];
        REQUIRE(recv(fd, got, sizeof got, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    }
    close(fd);
    settle(a);
    check_books(a);
    a->ops->close(a);
    scene_close(&s);
}

static void checksum_by_metadata(void) {
    checksum(true);
}

static void checksum_computed(void) {
    checksum(false);
}

/* Before the neighbour is known all goes by the socket, and the kernel resolves it; then by the XSK. What the
 * XDP program passes on comes by the socket too. */
static void learning(const struct io_ops *socket_ops) {
    struct scene s = scene_open(1500, false);
    struct afxdp_config ca = config_for(&s.a), cb = config_for(&s.b);
    ca.socket_ops = cb.socket_ops = socket_ops;
    struct io *a = open_with(&s.a, ca), *b = open_with(&s.b, cb);
    struct quic_addr at_a = address_of(&s.a), at_b = address_of(&s.b);
    for (uint32_t seed = 0; seed < 3; seed++) { /* More than one of the socket's trains holds. */
        send_train(a, at_b, 64 * 1452 - 5, 1452, 2, seed);
        expect_train(b, at_a, 64 * 1452 - 5, 1452, 2, seed);
    }
    REQUIRE(queue_of(a).tx_socket == 3 && queue_of(b).rx_socket == 0 && stats_of(a).tx_errors == 0);
    REQUIRE(stats_of(a).tx_packets == 3 * 64 && stats_of(b).rx_packets == 3 * 64);

    /* The route alone is not enough; then the neighbour is: and b answers from where it was asked. */
    struct io_route route = {.prefix = {0xfd}, .bits = 64, .ours = true, .source = {0xfd, [15] = 1}};
    a->ops->learn_route(a, &route);
    send_train(a, at_b, 100, 100, 0, 7);
    expect_train(b, at_a, 100, 100, 0, 7);
    REQUIRE(queue_of(a).tx_socket == 4);
    scene_introduce(b, &s.a);
    send_train(b, at_a, 900, 300, 0, 8);
    expect_train(a, at_b, 900, 300, 0, 8);
    struct io_neighbour n = {0};
    memcpy(n.ip, s.b.ip, 16);
    memcpy(n.link, s.b.mac, 6);
    a->ops->learn_neighbour(a, &n);
    send_train(a, at_b, 1000, 100, 1, 9);
    expect_train(b, at_a, 1000, 100, 1, 9);
    REQUIRE(queue_of(a).tx_socket == 4 && queue_of(b).tx_socket == 0);

    /* No XSK in the map: the program passes, and the socket has it; with it again, the XSK. */
    REQUIRE(scene_set_xsk(&s.b, -1));
    send_train(a, at_b, 5000, 1000, 3, 10);
    expect_train(b, at_a, 5000, 1000, 3, 10);
    REQUIRE(queue_of(b).rx_socket > 0);
    REQUIRE(scene_set_xsk(&s.b, ((struct afxdp *)b)->xsk.fd));
    uint64_t by_socket = queue_of(b).rx_socket;
    send_train(a, at_b, 5000, 1000, 3, 11);
    expect_train(b, at_a, 5000, 1000, 3, 11);
    REQUIRE(queue_of(b).rx_socket == by_socket);

    /* Gone, to another interface, to multicast: the socket path again. */
    n.gone = true;
    a->ops->learn_neighbour(a, &n);
    send_train(a, at_b, 100, 100, 0, 12);
    expect_train(b, at_a, 100, 100, 0, 12);
    REQUIRE(queue_of(a).tx_socket == 5);
    settle(a);
    settle(b);
    check_books(a);
    check_books(b);
    a->ops->close(a);
    b->ops->close(b);
    scene_close(&s);
}

static void learning_with_uring(void) {
    learning(&io_uring_ops);
}

static void learning_with_socket(void) {
    learning(&io_socket_ops);
}

/* Without a socket path what has no way is dropped, and counted. */
static void no_socket(void) {
    struct scene s = scene_open(1500, false);
    struct afxdp_config c = config_for(&s.a);
    c.no_socket = true;
    struct io *a = open_with(&s.a, c);
    struct quic_addr local;
    a->ops->local(a, &local);
    REQUIRE(local.port == SCENE_PORT);
    send_train(a, address_of(&s.b), 500, 100, 0, 0);
    REQUIRE(stats_of(a).tx_errors == 5 && stats_of(a).tx_packets == 0);
    REQUIRE(strstr(describe(a).text, "no socket path") != NULL);
    check_books(a);
    a->ops->close(a);
    scene_close(&s);
}

/* The device is down: what is committed waits, sending says so, and nothing is lost when it is up again. */
static void tx_full(void) {
    struct scene s = scene_open(1500, false);
    struct afxdp_config c = config_for(&s.a);
    c.tx_slots = 3;
    struct io *a = open_with(&s.a, c), *b = open_on(&s.b);
    scene_introduce(a, &s.b);
    memcpy(((struct afxdp *)a)->bind.ip, s.a.ip, 16);
    struct io_tx *held = a->ops->tx_acquire(a);
    enter(s.a.ns);
    shell("ip link set va down");
    enter(home_ns);
    REQUIRE(try_send(a, address_of(&s.b), 64 * 1000, 1000, 0, 1));
    REQUIRE(try_send(a, address_of(&s.b), 10 * 900, 900, 0, 2));
    REQUIRE(a->ops->tx_acquire(a) == NULL && stats_of(a).tx_full == 1);
    struct io_queue_stats q = queue_of(a);
    REQUIRE(q.ring_tx == 74 && q.frames_tx == 74 && q.frames_worker == 64 && q.frames_free == 64 + 64 - 74);
    struct io_text why;
    REQUIRE(afxdp_check(a, true, &why));
    int64_t start = now_ns();
    a->ops->wait(a, 20000); /* Comes back in time though nothing can complete. */
    REQUIRE(now_ns() - start < SECOND_NS);
    a->ops->tx_cancel(a, held);
    enter(s.a.ns);
    shell("ip link set va up");
    enter(home_ns);
    for (int64_t end = now_ns() + 5 * SECOND_NS; queue_of(a).ring_tx > 0 && now_ns() < end;) {
        a->ops->wait(a, 1000000);
    }
    expect_train(b, address_of(&s.a), 64 * 1000, 1000, 0, 1);
    expect_train(b, address_of(&s.a), 10 * 900, 900, 0, 2);
    settle(a);
    check_books(a);
    check_books(b);
    REQUIRE(queue_of(a).frames_free == 3 * 64);
    a->ops->close(a);
    b->ops->close(b);
    scene_close(&s);
}

/* More than the receiver has frames for: the kernel drops and counts, and afterwards all goes on. */
static void rx_full(void) {
    struct scene s = scene_open(1500, false);
    struct afxdp_config c = config_for(&s.b);
    c.rx_frames = 64;
    struct io *a = open_on(&s.a), *b = open_with(&s.b, c);
    scene_introduce(a, &s.b);
    struct quic_addr from = address_of(&s.a), to = address_of(&s.b);
    memcpy(((struct afxdp *)a)->bind.ip, s.a.ip, 16);
    for (uint32_t round = 0; round < 20; round++) {
        struct io_rx v[MAX_RX];
        for (uint32_t i = 0; i < 3; i++) {
            send_train(a, to, 50 * 100, 100, 0, i);
        }
        settle(a);
        uint64_t packets = 0;
        int held = 0;
        while (packets < 64) {
            held += receive(b, v + held, MAX_RX - held);
            packets = 0;
            for (int i = 0; i < held; i++) {
                packets += (v[i].len + v[i].segment - 1) / v[i].segment;
            }
        }
        REQUIRE(packets == 64);
        struct io_queue_stats q = queue_of(b);
        for (int64_t end = now_ns() + 5 * SECOND_NS; now_ns() < end; q = queue_of(b)) {
            if (q.kernel_rx_dropped + q.kernel_rx_ring_full + q.kernel_fill_empty >=
                (round + 1) * (150 - 64)) {
                break; /* The kernel has been through all of them. */
            }
            sched_yield();
        }
        REQUIRE(q.frames_worker == 64 && q.frames_fill == 0 && b->ops->rx(b, v + held, 1) == 0);
        REQUIRE(q.kernel_rx_dropped + q.kernel_rx_ring_full + q.kernel_fill_empty >=
                (round + 1) * (150 - 64));
        b->ops->rx_release(b, v, held);
        check_books(b);
        send_train(a, to, 5000, 1000, 0, 99);
        expect_train(b, from, 5000, 1000, 0, 99);
    }
    settle(a);
    check_books(b);
    a->ops->close(a);
    b->ops->close(b);
    scene_close(&s);
}

/* Random traffic both ways, trains held for random times, buffers given back unused: every frame is accounted
 * for at every quiet moment. */
static void accounting(void) {
    struct pair p = pair_open(1500);
    struct io *ends[2] = {p.a, p.b};
    memcpy(((struct afxdp *)p.a)->bind.ip, p.scene.a.ip, 16);
    memcpy(((struct afxdp *)p.b)->bind.ip, p.scene.b.ip, 16);
    struct quic_addr at[2] = {address_of(&p.scene.a), address_of(&p.scene.b)};
    struct io_rx held[2][MAX_RX];
    int holding[2] = {0, 0};
    uint64_t sent = 0;
    for (uint32_t round = 1; round <= 4000; round++) {
        uint32_t i = (uint32_t)check_rand() % 2;
        struct io *io = ends[i];
        switch (check_rand() % 6) {
        case 0:
        case 1: {
            uint16_t segment = (uint16_t)(1 + check_rand() % 1452);
            uint32_t len = 1 + (uint32_t)check_rand() % (20u * segment);
            if (try_send(io, at[1 - i], len, segment, (uint8_t)check_rand() & 3, round)) {
                sent += (len + segment - 1) / segment;
            }
            break;
        }
        case 2: {
            struct io_tx *tx = io->ops->tx_acquire(io);
            if (tx != NULL) {
                io->ops->tx_cancel(io, tx);
            }
            break;
        }
        case 3:
            io->ops->flush(io);
            break;
        case 4:
            holding[i] +=
                io->ops->rx(io, held[i] + holding[i], (int)(check_rand() % (MAX_RX - holding[i] + 1u)));
            break;
        default: { /* Some of them, and not the ones that came first. */
            int n = (int)(check_rand() % (holding[i] + 1u));
            holding[i] -= n;
            io->ops->rx_release(io, held[i] + holding[i], n);
        }
        }
        if (round % 100 == 0) {
            for (int e = 0; e < 2; e++) {
                settle(ends[e]);
            }
            for (int e = 0; e < 2; e++) {
                ends[e]->ops->rx_release(ends[e], held[e], holding[e]);
                /* A frame is given back to its sender when it has been copied: the kernel may not have handed
                 * the copy on yet. */
                struct io_text why = {{0}};
                int64_t end = now_ns() + 5 * SECOND_NS;
                do {
                    while ((holding[e] = ends[e]->ops->rx(ends[e], held[e], MAX_RX)) > 0) {
                        ends[e]->ops->rx_release(ends[e], held[e], holding[e]);
                    }
                } while (!books_hold(ends[e], &why) && now_ns() < end);
                check_note("round %u: %s", round, why.text);
                REQUIRE(now_ns() < end);
            }
            struct io_queue_stats qa = queue_of(p.a), qb = queue_of(p.b);
            uint64_t lost = qa.kernel_rx_dropped + qb.kernel_rx_dropped;
            REQUIRE(stats_of(p.a).rx_packets + stats_of(p.b).rx_packets + lost <= sent);
        }
    }
    REQUIRE(stats_of(p.a).rx_packets > 1000 && stats_of(p.b).rx_packets > 1000);
    REQUIRE(stats_of(p.a).tx_packets + stats_of(p.b).tx_packets == sent);
    pair_close(&p);
}

struct waker_arg {
    struct io *io;
    atomic_uint work; /* Posted by the waker, taken by the worker: a ring of one entry. */
    unsigned rounds;
};

static void *waking_thread(void *arg) {
    struct waker_arg *w = arg;
    for (unsigned i = 0; i < w->rounds; i++) {
        atomic_store_explicit(&w->work, 1, memory_order_relaxed); /* Ordered by wake() itself. */
        w->io->ops->wake(w->io);
        while (atomic_load_explicit(&w->work, memory_order_relaxed) != 0) {
            sched_yield();
        }
    }
    return NULL;
}

struct sender_arg {
    struct io *io;
    struct quic_addr to;
};

static void *sending_thread(void *arg) { /* The only user of its io meanwhile. */
    struct sender_arg *s = arg;
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); /* So that the other end sleeps by then. */
    struct io_tx *tx = s->io->ops->tx_acquire(s->io);
    memset(tx->data, 1, 100);
    tx->len = tx->segment = 100;
    tx->peer = s->to;
    s->io->ops->tx_commit(s->io, tx);
    s->io->ops->flush(s->io);
    return NULL;
}

/* A sleep ends when something comes, by either way; when woken; and when it is time. */
static void waking(const struct io_ops *socket_ops) {
    struct scene s = scene_open(1500, false);
    struct afxdp_config c = config_for(&s.b);
    c.socket_ops = socket_ops;
    struct afxdp_config plain = config_for(&s.a);
    plain.socket_ops = &io_socket_ops; /* Used from another thread: io_uring would mind. */
    struct io *a = open_with(&s.a, plain), *b = open_with(&s.b, c);
    int64_t start = now_ns();
    b->ops->wait(b, 20000000);
    REQUIRE(now_ns() - start >= 20000000);
    b->ops->wake(b); /* Before wait: it must not sleep. */
    b->ops->wait(b, -1);
    for (int round = 0; round < 6; round++) { /* By the XSK, by the socket, in turns. */
        check_note("round %d", round);
        REQUIRE(scene_set_xsk(&s.b, round % 2 == 0 ? ((struct afxdp *)b)->xsk.fd : -1));
        struct sender_arg arg = {.io = a, .to = address_of(&s.b)};
        pthread_t sender;
        struct io_rx v;
        REQUIRE(pthread_create(&sender, NULL, sending_thread, &arg) == 0);
        start = now_ns();
        int n = 0;
        while ((n = b->ops->rx(b, &v, 1)) == 0 && now_ns() - start < 4 * SECOND_NS) {
            b->ops->wait(b, 5 * SECOND_NS);
        }
        pthread_join(sender, NULL);
        REQUIRE(n == 1 && now_ns() - start < 2 * SECOND_NS && v.len == 100);
        b->ops->rx_release(b, &v, 1);
    }
    REQUIRE(queue_of(b).rx_socket == 3);
    struct waker_arg w = {.io = b, .rounds = 5000};
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, waking_thread, &w) == 0);
    for (unsigned taken = 0; taken < w.rounds;) { /* A lost wake would hang; main's alarm ends it. */
        if (atomic_exchange_explicit(&w.work, 0, memory_order_relaxed) != 0) {
            taken++;
        } else {
            b->ops->wait(b, -1);
        }
    }
    pthread_join(thread, NULL);
    REQUIRE(stats_of(b).wakeups > 0);
    a->ops->close(a);
    b->ops->close(b);
    scene_close(&s);
}

static void waking_with_uring(void) {
    waking(&io_uring_ops);
}

static void waking_with_socket(void) {
    waking(&io_socket_ops);
}

static unsigned count_entries(const char *path) {
    unsigned n = 0;
    DIR *d = opendir(path);
    REQUIRE(d != NULL);
    while (readdir(d) != NULL) {
        n++;
    }
    closedir(d);
    return n;
}

static unsigned count_mappings(void) {
    unsigned n = 0;
    FILE *f = fopen("/proc/self/maps", "re");
    REQUIRE(f != NULL);
    for (int c; (c = fgetc(f)) != EOF;) {
        n += c == '\n';
    }
    fclose(f);
    return n;
}

static void open_close(void) {
    struct scene s = scene_open(1500, false);
    struct io *a = open_on(&s.a);
    scene_introduce(a, &s.b);
    memcpy(((struct afxdp *)a)->bind.ip, s.a.ip, 16);
    unsigned descriptors = 0, mappings = 0;
    for (uint32_t i = 0; i < 50; i++) {
        struct io *b = open_on(&s.b); /* At once after the last close. */
        REQUIRE(scene_has_xsk(&s.b));
        send_train(a, address_of(&s.b), 3000, 1000, 0, i);
        if (i % 2 == 0) { /* The other times it is closed with packets in its rings. */
            expect_train(b, address_of(&s.a), 3000, 1000, 0, i);
        }
        b->ops->close(b);
        REQUIRE(!scene_has_xsk(&s.b)); /* Whoever comes for the port now is passed on. */
        if (i == 5) {                  /* After what libraries allocate once. */
            descriptors = count_entries("/proc/self/fd");
            mappings = count_mappings();
        }
    }
    REQUIRE(count_entries("/proc/self/fd") == descriptors);
    /* The heap may have grown, a sanitizer's by some; 44 UMEMs with four rings each would show. */
    REQUIRE(count_mappings() < mappings + 44);
    settle(a);
    check_books(a);
    a->ops->close(a);
    scene_close(&s);
}

static void refusals(void) {
    struct scene s = scene_open(1500, false);
    struct io_text why = {{0}};
    struct afxdp_config c = config_for(&s.a);
    c.mode = AFXDP_MODE_ZERO_COPY;
    REQUIRE(try_open(&s.a, c, &why) == NULL);
    printf("%s\n", why.text);
    REQUIRE(strstr(why.text, "zero copy as asked for") != NULL && strstr(why.text, "EOPNOTSUPP") != NULL);
    c = config_for(&s.a);
    c.queue = 3;
    REQUIRE(try_open(&s.a, c, &why) == NULL && strstr(why.text, "no such queue") != NULL);
    c = config_for(&s.a);
    c.ifindex = 9999;
    REQUIRE(try_open(&s.a, c, &why) == NULL && strstr(why.text, "9999") != NULL);
    c = config_for(&s.a);
    enter(s.a.ns);
    c.ifindex = if_nametoindex("lo");
    enter(home_ns);
    REQUIRE(try_open(&s.a, c, &why) == NULL && strstr(why.text, "not an Ethernet") != NULL);
    /* Two on one queue: the second is told, and the first keeps its place in the map. */
    struct io *a = open_on(&s.a), *b = open_on(&s.b);
    c = config_for(&s.a);
    c.no_socket = true;
    int64_t start = now_ns();
    REQUIRE(try_open(&s.a, c, &why) == NULL &&
            strstr(why.text, "another AF_XDP socket has this queue") != NULL);
    REQUIRE(now_ns() - start > SECOND_NS * 9 / 10); /* It was tried for a second. */
    scene_introduce(b, &s.a);
    memcpy(((struct afxdp *)b)->bind.ip, s.b.ip, 16);
    send_train(b, address_of(&s.a), 100, 100, 0, 1);
    expect_train(a, address_of(&s.b), 100, 100, 0, 1);
    REQUIRE(queue_of(a).rx_socket == 0);
    a->ops->close(a);
    b->ops->close(b);
    scene_close(&s);
}

static const struct check_case cases[] = {
    {"afxdp_described", described},
    {"afxdp_trains", trains},
    {"afxdp_trains_3498", trains_3498},
    {"afxdp_trains_9000", trains_9000},
    {"afxdp_checksum_by_metadata", checksum_by_metadata},
    {"afxdp_checksum_computed", checksum_computed},
    {"afxdp_learning_with_uring", learning_with_uring},
    {"afxdp_learning_with_socket", learning_with_socket},
    {"afxdp_no_socket", no_socket},
    {"afxdp_tx_full", tx_full},
    {"afxdp_rx_full", rx_full},
    {"afxdp_accounting", accounting},
    {"afxdp_waking_with_uring", waking_with_uring},
    {"afxdp_waking_with_socket", waking_with_socket},
    {"afxdp_open_close", open_close},
    {"afxdp_refusals", refusals},
};

int main(int argc, char **argv) {
    alarm(300); /* A hang, such as a lost wake, is a failure. */
    if (!scene_possible()) {
        printf("SKIP: AF_XDP on veth needs root, CAP_BPF, iproute2 and a kernel with XDP sockets\n");
        return 0;
    }
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
