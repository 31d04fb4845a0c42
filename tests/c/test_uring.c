/* The UDP backends against the real kernel: io_uring and the plain socket one must behave the same, so every
 * test runs on both. Everything happens on loopback, in a network namespace of the test's own where it may
 * make one. */
#define _GNU_SOURCE
#include <errno.h>
#include <net/if.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/io/io.h"

#include "../../csrc/io/udp_rx.h"
#include "../../csrc/io/udp_tx.h"
#include "../../csrc/io/uring.h"
#include "check.h"
#include "refuse_io_uring.h"

#define SECOND_NS 1000000000ll
#define MAX_RX    64

static bool own_namespace; /* Set once by main: with fd00::2, and no route to anywhere. */

static struct quic_addr loopback(uint16_t port) {
    struct quic_addr a = {.port = port};
    a.ip[15] = 1;
    return a;
}

static struct io *open_io(const char *backend, struct io_config config) {
    struct io_text why = {{0}};
    struct io *io = io_backend_by_name(backend)->open(&config, &why);
    if (io == NULL) {
        printf("open %s: %s\n", backend, why.text);
    }
    REQUIRE(io != NULL);
    return io;
}

static struct io *open_loopback(const char *backend) {
    return open_io(backend, (struct io_config){.bind = loopback(0)});
}

static struct quic_addr local_of(const struct io *io) {
    struct quic_addr a;
    io->ops->local(io, &a);
    return a;
}

static struct io_stats stats_of(const struct io *io) {
    struct io_stats s;
    io->ops->stats(io, &s);
    return s;
}

static struct io_text describe(const struct io *io) {
    struct io_text t;
    io->ops->describe(io, &t);
    return t;
}

static uint8_t pattern(uint32_t seed, uint32_t i) {
    return (uint8_t)((i * 131u + seed * 29u) ^ (i >> 8));
}

/* One train whose bytes follow from `seed`. */
static void send_train(struct io *io, struct quic_addr to, uint32_t len, uint16_t segment, uint8_t ecn,
                       uint32_t seed) {
    struct io_tx *tx = io->ops->tx_acquire(io);
    REQUIRE(tx != NULL);
    REQUIRE(len <= tx->cap);
    for (uint32_t i = 0; i < len; i++) {
        tx->data[i] = pattern(seed, i);
    }
    tx->len = len;
    tx->segment = segment;
    tx->ecn = ecn;
    tx->peer = to;
    io->ops->tx_commit(io, tx);
}

static int64_t now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * SECOND_NS + ts.tv_nsec;
}

/* Wait until at least one train is there. */
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

/* The train of `seed` arrives whole, in however many pieces the kernel makes of it, none splitting a
 * datagram. */
static void expect_train(struct io *io, uint32_t len, uint16_t segment, uint32_t seed, uint32_t max_piece) {
    struct io_rx v;
    for (uint32_t offset = 0; offset < len; offset += v.len) {
        REQUIRE(receive(io, &v, 1) == 1);
        REQUIRE(v.len <= len - offset);
        REQUIRE(v.len <= max_piece);
        REQUIRE(offset % segment == 0);
        REQUIRE(v.segment == (v.len < segment ? v.len : segment));
        for (uint32_t i = 0; i < v.len; i++) {
            REQUIRE(v.data[i] == pattern(seed, offset + i));
        }
        io->ops->rx_release(io, &v, 1);
    }
}

/* With these options of io_uring's at the sender. */
static void trains_by(const char *backend, struct io_uring_options options) {
    static const struct {
        uint32_t len;
        uint16_t segment;
    } trains[] = {{1, 1},
                  {1, 1200},
                  {1200, 1200},
                  {2400, 1200},
                  {2401, 1200},
                  {64 * 1000, 1000},
                  {64 * 8, 8},
                  {65340, 1452},
                  {65339, 1452},
                  {63 * 999 + 1, 999},
                  {9000, 9000},
                  {7 * 8952, 8952},
                  {UDP_TX_TRAIN_BYTES, UDP_TX_TRAIN_BYTES}};
    struct io *a = open_io(backend, (struct io_config){.bind = loopback(0), .uring = options});
    struct io *b = open_loopback(backend);
    uint64_t packets = 0, bytes = 0;
    const uint32_t count = sizeof trains / sizeof trains[0];
    for (uint32_t i = 0; i < count; i++) {
        send_train(a, local_of(b), trains[i].len, trains[i].segment, 0, i);
        a->ops->flush(a);
        expect_train(b, trains[i].len, trains[i].segment, i, trains[i].len);
        packets += (trains[i].len + trains[i].segment - 1) / trains[i].segment;
        bytes += trains[i].len;
    }
    /* Several in one flush keep their order; enough of them to use every send buffer more than once. */
    for (uint32_t i = 0; i < 200; i++) {
        send_train(a, local_of(b), 5000, 1000, 0, i);
        packets += 5;
        bytes += 5000;
        if (i % 10 == 9) {
            a->ops->flush(a);
            for (uint32_t j = i - 9; j <= i; j++) {
                expect_train(b, 5000, 1000, j, 5000);
            }
        }
    }
    for (int64_t end = now_ns() + 5 * SECOND_NS; stats_of(a).tx_packets < packets && now_ns() < end;) {
        a->ops->wait(a, SECOND_NS / 1000); /* Zero copy and SQPOLL complete in their own time. */
    }
    struct io_stats sa = stats_of(a), sb = stats_of(b);
    REQUIRE(sa.tx_packets == packets && sa.tx_bytes == bytes && sa.tx_trains == count + 200 &&
            sa.tx_errors == 0);
    REQUIRE(sb.rx_packets == packets && sb.rx_bytes == bytes && sb.rx_errors == 0);
    REQUIRE(sb.rx_trains == count + 200); /* On loopback a train comes through in one piece. */
    a->ops->close(a);
    b->ops->close(b);
}

static void trains(const char *backend) {
    trains_by(backend, (struct io_uring_options){0});
}

/* Every option carries the same bytes, in order, and gives every buffer back. */
static void uring_options(void) {
    static const char *const lists[] = {"no-files",
                                        "no-direct",
                                        "zero-copy=1,keep-zero-copy",
                                        "zero-copy=1,keep-zero-copy,no-buffers",
                                        "zero-copy=4096",
                                        "sqpoll",
                                        "napi=20",
                                        "sqpoll,zero-copy=2000,keep-zero-copy,no-files,no-direct,napi=1"};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        struct io_uring_options options;
        check_note("%s", lists[i]);
        REQUIRE(io_uring_options_parse(lists[i], &options));
        trains_by("io_uring", options);
    }
    static const char *const wrong[] = {
        "fast", "no-file", "zero-copy=", "zero-copy=x", "napi=5000000000", "no-filesx"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct io_uring_options options;
        check_note("%s", wrong[i]);
        CHECK(!io_uring_options_parse(wrong[i], &options));
    }
}

/* On loopback the kernel copies all the same; that is noticed and said, and nothing is lost by the change. */
static void uring_zero_copy_in_vain(void) {
    struct io *a =
        open_io("io_uring", (struct io_config){.bind = loopback(0), .uring.zero_copy_bytes = 3000});
    struct io *b = open_loopback("io_uring");
    bool supported = strstr(describe(a).text, "zero copy from 3000 bytes") != NULL;
    REQUIRE(supported || strstr(describe(a).text, "zero copy off: Linux 6.1") != NULL);
    for (uint32_t i = 0; i < 200; i++) {
        send_train(a, local_of(b), i % 2 ? 5000 : 1000, 1000, 0, i);
        a->ops->flush(a);
        expect_train(b, i % 2 ? 5000 : 1000, 1000, i, 5000);
    }
    for (int64_t end = now_ns() + 5 * SECOND_NS; supported && now_ns() < end;) {
        if (strstr(describe(a).text, "zero copy off: the kernel copies") != NULL)
            break;
        a->ops->wait(a, SECOND_NS / 100); /* For completions. */
    }
    CHECK(strstr(describe(a).text, "zero copy off") != NULL);
    CHECK(stats_of(a).tx_errors == 0);
    a->ops->close(a);
    b->ops->close(b);
}

static void ecn_and_addresses(const char *backend) {
    struct io *a = open_io(backend, (struct io_config){0}), *b = open_io(backend, (struct io_config){0});
    uint32_t lo = if_nametoindex("lo");
    struct io_rx v;
    for (uint8_t ecn = 0; ecn < 4; ecn++) {
        send_train(a, loopback(local_of(b).port), 100, 50, ecn, ecn);
        a->ops->flush(a);
        REQUIRE(receive(b, &v, 1) == 1);
        struct quic_addr from = loopback(local_of(a).port), to = loopback(local_of(b).port);
        REQUIRE(v.ecn == ecn);
        REQUIRE(quic_addr_equal(&v.peer, &from));
        REQUIRE(quic_addr_equal(&v.local, &to));
        REQUIRE(v.ifindex == lo);
        /* The answer goes out from where the question came to. */
        struct io_tx *tx = b->ops->tx_acquire(b);
        tx->data[0] = 7;
        tx->len = tx->segment = 1;
        tx->peer = v.peer;
        tx->local = v.local;
        tx->ifindex = v.ifindex;
        tx->ecn = v.ecn;
        b->ops->rx_release(b, &v, 1);
        b->ops->tx_commit(b, tx);
        b->ops->flush(b);
        REQUIRE(receive(a, &v, 1) == 1);
        REQUIRE(quic_addr_equal(&v.peer, &to) && v.ecn == ecn && v.data[0] == 7);
        a->ops->rx_release(a, &v, 1);
    }
    if (own_namespace) { /* Choose the source: fd00::2, where the kernel would choose another. */
        struct quic_addr source = {.ip = {0xfd, [15] = 2}, .port = local_of(a).port};
        struct io_tx *tx = a->ops->tx_acquire(a);
        tx->len = tx->segment = 9;
        tx->peer = loopback(local_of(b).port);
        tx->local = source;
        a->ops->tx_commit(a, tx);
        a->ops->flush(a);
        REQUIRE(receive(b, &v, 1) == 1);
        REQUIRE(quic_addr_equal(&v.peer, &source));
        b->ops->rx_release(b, &v, 1);
    }
    REQUIRE(stats_of(a).tx_errors == 0 && stats_of(b).tx_errors == 0);
    a->ops->close(a);
    b->ops->close(b);
}

static void reuse_port(const char *backend) {
    struct io_config config = {.bind = loopback(0), .reuse_port = true};
    struct io *b[2], *a[48];
    b[0] = open_io(backend, config);
    config.bind.port = local_of(b[0]).port;
    b[1] = open_io(backend, config);
    for (uint32_t i = 0; i < 48; i++) {
        a[i] = open_io(backend, (struct io_config){.bind = loopback(0), .tx_buffers = 1, .rx_buffers = 1});
        send_train(a[i], config.bind, 4, 4, 0, i);
        a[i]->ops->flush(a[i]);
    }
    int got[2] = {0, 0};
    for (int i = 0; got[0] + got[1] < 48; i ^= 1) {
        struct io_rx v[MAX_RX];
        int n = b[i]->ops->rx(b[i], v, MAX_RX);
        got[i] += n;
        b[i]->ops->rx_release(b[i], v, n);
    }
    REQUIRE(got[0] > 0 && got[1] > 0); /* 48 source ports all hashing to one side: 1 in 2^47. */
    for (int i = 0; i < 48; i++) {
        a[i]->ops->close(a[i]);
    }
    b[0]->ops->close(b[0]);
    b[1]->ops->close(b[1]);
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

static void waking(const char *backend) {
    struct io *io = open_loopback(backend);
    int64_t start = now_ns();
    io->ops->wait(io, 20000000);
    REQUIRE(now_ns() - start >= 20000000);

    io->ops->wake(io); /* Before wait: it must not sleep. */
    io->ops->wake(io); /* Two wakes before one wait count as one. */
    io->ops->wait(io, -1);
    start = now_ns();
    io->ops->wait(io, 20000000);
    REQUIRE(now_ns() - start >= 20000000);

    /* Were any wake lost, this would hang; main's alarm ends it. */
    struct waker_arg w = {.io = io, .rounds = 20000};
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, waking_thread, &w) == 0);
    for (unsigned taken = 0; taken < w.rounds;) {
        if (atomic_exchange_explicit(&w.work, 0, memory_order_relaxed) != 0) {
            taken++;
        } else {
            io->ops->wait(io, -1);
        }
    }
    pthread_join(thread, NULL);
    REQUIRE(stats_of(io).wakeups > 0);
    io->ops->close(io);
}

static void no_gso(const char *backend) {
    struct io *a = open_io(backend, (struct io_config){.bind = loopback(0), .no_gso = true});
    struct io *b = open_loopback(backend);
    struct io_tx *tx = a->ops->tx_acquire(a);
    REQUIRE(tx->max_segments == 1);
    a->ops->tx_cancel(a, tx);
    send_train(a, local_of(b), 1200, 1200, 0, 1);
    send_train(a, local_of(b), 5001, 1000, 0, 2); /* More than it was told: taken apart, not lost. */
    a->ops->flush(a);
    struct io_rx v[MAX_RX];
    uint32_t bytes = 0;
    while (bytes < 6201) {
        int n = receive(b, v, MAX_RX);
        for (int i = 0; i < n; i++) {
            REQUIRE(v[i].len == v[i].segment);
            bytes += v[i].len;
        }
        b->ops->rx_release(b, v, n);
    }
    REQUIRE(stats_of(a).tx_packets == 7 && stats_of(b).rx_trains == 7);
    REQUIRE(strstr(describe(a).text, "UDP_SEGMENT off: configured") != NULL);
    REQUIRE(strstr(describe(b).text, "UDP_SEGMENT up to 64 datagrams") != NULL);
    a->ops->close(a);
    b->ops->close(b);
}

static void no_gro(const char *backend) {
    struct io *a = open_loopback(backend);
    struct io *b = open_io(backend, (struct io_config){.bind = loopback(0), .no_gro = true});
    send_train(a, local_of(b), 5001, 1000, 0, 2);
    a->ops->flush(a);
    expect_train(b, 5001, 1000, 2, 1000);
    REQUIRE(stats_of(b).rx_trains == 6);
    REQUIRE(strstr(describe(b).text, "UDP_GRO off: configured") != NULL);
    a->ops->close(a);
    b->ops->close(b);
}

static void rx_exhaustion(const char *backend) {
    struct io *a = open_loopback(backend);
    struct io *b = open_io(backend, (struct io_config){.bind = loopback(0), .rx_buffers = 4});
    for (uint32_t i = 0; i < 20; i++) {
        send_train(a, local_of(b), 20000, 1000, 0, i);
    }
    a->ops->flush(a);
    uint32_t next = 0;
    while (next < 20) {
        struct io_rx v[MAX_RX];
        int held = 0;
        while (held < 4) { /* Hold them all … */
            held += receive(b, v + held, MAX_RX - held);
        }
        REQUIRE(held == 4);
        b->ops->wait(b, 0); /* … so that the kernel runs into the empty ring … */
        REQUIRE(b->ops->rx(b, v + held, 1) == 0);
        for (int i = 0; i < held; i++, next++) {
            REQUIRE(v[i].len == 20000 && v[i].segment == 1000);
            REQUIRE(v[i].data[19999] == pattern(next, 19999));
        }
        b->ops->rx_release(b, v, held); /* … and goes on where it stopped: nothing lost. */
    }
    REQUIRE(stats_of(b).rx_no_buffer > 0);
    a->ops->close(a);
    b->ops->close(b);
}

/* What the kernel drops at a full socket is known once the next datagram got through. */
static void queue_overflow(const char *backend) {
    struct io *a = open_io(backend, (struct io_config){.bind = loopback(0), .no_gso = true});
    struct io *b = open_io(backend, (struct io_config){.bind = loopback(0), .socket_bytes = 65536});
    uint64_t sent = 0;
    for (int round = 1; round <= 2; round++) { /* Twice: the kernel's count is a total, ours must be too. */
        for (uint32_t i = 0; i < 500; i++, sent++) {
            send_train(a, local_of(b), 1000, 1000, 0, i);
            a->ops->flush(a);
        }
        struct io_rx v[MAX_RX];
        uint64_t dropped = stats_of(b).rx_dropped_queue;
        /* A full queue takes nothing more, so empty it until one datagram stamped after the drops is there.
         */
        while (stats_of(b).rx_dropped_queue == dropped) {
            for (int n; (n = b->ops->rx(b, v, MAX_RX)) > 0;) {
                b->ops->rx_release(b, v, n);
            }
            send_train(a, local_of(b), 1000, 1000, 0, 0);
            a->ops->flush(a);
            sent++;
            b->ops->rx_release(b, v, receive(b, v, MAX_RX));
        }
        for (int64_t end = now_ns() + 5 * SECOND_NS; now_ns() < end;) {
            int n = b->ops->rx(b, v, MAX_RX);
            b->ops->rx_release(b, v, n);
            if (stats_of(b).rx_packets + stats_of(b).rx_dropped_queue == sent) {
                break;
            }
        }
        struct io_stats s = stats_of(b);
        REQUIRE(s.rx_dropped_queue > dropped && s.rx_packets + s.rx_dropped_queue == sent);
    }
    a->ops->close(a);
    b->ops->close(b);
}

static void tx_exhaustion(const char *backend) {
    struct io *a = open_io(backend, (struct io_config){.bind = loopback(0), .tx_buffers = 2});
    struct io *b = open_loopback(backend);
    struct io_tx *one = a->ops->tx_acquire(a), *two = a->ops->tx_acquire(a);
    REQUIRE(one != NULL && two != NULL && one->data != two->data);
    REQUIRE(a->ops->tx_acquire(a) == NULL);
    REQUIRE(stats_of(a).tx_full == 1);
    a->ops->tx_cancel(a, two);
    a->ops->tx_cancel(a, one);
    for (uint32_t i = 0; i < 10; i++) { /* No flush: acquire must see to it itself. */
        send_train(a, local_of(b), 3000, 1000, 0, i);
    }
    a->ops->flush(a);
    for (uint32_t i = 0; i < 10; i++) {
        expect_train(b, 3000, 1000, i, 3000);
    }
    a->ops->close(a);
    b->ops->close(b);
}

/* A device that cannot checksum segments answers a train with EIO. No device here does, so the answer is
 * given by hand to the pool that both backends pass their results to; what it then does, it does on a real
 * socket. */
static void eio_fallback(void) {
    struct io *b = open_loopback("socket");
    struct io_config config = {.bind = loopback(0)};
    struct udp_socket socket;
    struct io_stats st = {0};
    struct udp_tx_pool pool;
    REQUIRE(udp_socket_open(&socket, &config, NULL));
    REQUIRE(udp_tx_open(&pool, &socket, &st, 4));
    struct udp_tx_slot *slot[2];
    for (uint32_t i = 0; i < 2; i++) { /* Two under way before the refusal of the first is known. */
        slot[i] = udp_tx_take(&pool);
        REQUIRE(slot[i]->tx.max_segments > 1);
        for (uint32_t j = 0; j < 5001; j++) {
            slot[i]->tx.data[j] = pattern(i, j);
        }
        slot[i]->tx.len = 5001;
        slot[i]->tx.segment = 1000;
        slot[i]->tx.peer = local_of(b);
        REQUIRE(udp_tx_prepare(&pool, slot[i]));
    }
    udp_tx_complete(&pool, slot[0], -EIO);
    udp_tx_complete(&pool, slot[1], -EIO);
    expect_train(b, 5001, 1000, 0, 1000);
    expect_train(b, 5001, 1000, 1, 1000);
    CHECK(st.tx_errors == 0 && st.tx_packets == 12 && st.tx_bytes == 10002);

    slot[0] = udp_tx_take(&pool);
    CHECK(slot[0]->tx.max_segments == 1);
    slot[0]->tx.len = slot[0]->tx.segment = 8;
    slot[0]->tx.peer = local_of(b);
    REQUIRE(udp_tx_prepare(&pool, slot[0]));
    udp_tx_complete(&pool, slot[0], -EIO); /* For a single datagram it is an error like any other. */
    CHECK(st.tx_errors == 1 && pool.free_count == pool.count);
    struct io_text text = {{0}};
    udp_socket_describe(&socket, pool.max_segments, &text);
    CHECK(strstr(text.text, "UDP_SEGMENT off: a device") != NULL && strstr(text.text, "up to") == NULL);
    udp_tx_close(&pool);
    udp_socket_close(&socket);
    b->ops->close(b);
}

static void errors_are_survived(const char *backend) {
    struct io *a = open_loopback(backend), *b = open_loopback(backend);
    struct quic_addr mapped = {.ip = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1},
                               .port = local_of(b).port};
    send_train(a, mapped, 10, 10, 0, 0);
    REQUIRE(stats_of(a).tx_errors == 1);
    uint64_t errors = 1;
    if (own_namespace) { /* No route there. */
        send_train(a, (struct quic_addr){.ip = {0x20, 1, 0xd, 0xb8, [15] = 9}, .port = 9}, 10, 10, 0, 0);
        a->ops->flush(a);
        errors++;
        REQUIRE(strstr(describe(a).text, "last send error") != NULL);
    }
    struct quic_addr closed = loopback(1);
    for (uint32_t i = 0; i < 50; i++) { /* ICMP port unreachable comes back each time. */
        send_train(a, closed, 10, 10, 0, 0);
        a->ops->flush(a);
        send_train(b, local_of(a), 2000, 500, 0, i);
        b->ops->flush(b);
        expect_train(a, 2000, 500, i, 2000);
    }
    REQUIRE(stats_of(a).tx_errors == errors);
    a->ops->close(a);
    b->ops->close(b);
}

static void open_close(const char *backend) {
    struct io_text why = {{0}};
    struct quic_addr mapped = {.ip = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}};
    const struct io_ops *ops = io_backend_by_name(backend);
    REQUIRE(ops->open(&(struct io_config){.bind = mapped}, &why) == NULL);
    REQUIRE(strstr(why.text, "IPv6 only") != NULL);

    struct io *io = open_loopback(backend);
    struct quic_addr address = local_of(io);
    REQUIRE(ops->open(&(struct io_config){.bind = address}, &why) == NULL);
    REQUIRE(strstr(why.text, "in use") != NULL);
    for (int i = 0; i < 20; i++) { /* The port is free the moment close returns, even with work under way. */
        send_train(io, address, 30000, 1000, 0, 0);
        io->ops->flush(io);
        io->ops->close(io);
        io = open_io(backend, (struct io_config){.bind = address});
    }
    io->ops->close(io);
}

static void parse(void) {
    struct udp_socket s = {.fd = -1, .local = loopback(9292)};
    struct sockaddr_in6 from = {.sin6_family = AF_INET6, .sin6_port = htons(5), .sin6_scope_id = 3};
    uint8_t data[100];
    _Alignas(8) uint8_t control[UDP_RX_CONTROL_BYTES] = {0};
    struct udp_rx_message m = {
        .name = &from, .name_len = sizeof from, .control = control, .data = data, .len = 100};
    struct io_stats st = {0};
    struct io_rx out;
    from.sin6_addr.s6_addr[0] = 0xfe;
    from.sin6_addr.s6_addr[1] = 0x80;
    REQUIRE(udp_rx_parse(&s, &m, &out, &st) == UDP_RX_OK);
    REQUIRE(out.segment == 100 && out.peer.scope_id == 3 && out.peer.port == 5 && out.local.port == 9292);
    m.flags = MSG_TRUNC;
    REQUIRE(udp_rx_parse(&s, &m, &out, &st) == UDP_RX_TRUNCATED && st.rx_dropped_truncated == 1);
    m.flags = MSG_CTRUNC;
    REQUIRE(udp_rx_parse(&s, &m, &out, &st) == UDP_RX_BAD && st.rx_errors == 1);
    m.flags = 0;
    m.len = 0;
    REQUIRE(udp_rx_parse(&s, &m, &out, &st) == UDP_RX_EMPTY && st.rx_dropped_empty == 1);
    m.len = 100;
    m.name_len = 16;
    REQUIRE(udp_rx_parse(&s, &m, &out, &st) == UDP_RX_BAD && st.rx_errors == 2);
    m.name_len = sizeof from;
    static const int sizes[][2] = {{40, 40}, {99, 99},  {100, 100},    {101, 100},
                                   {0, 100}, {-5, 100}, {1 << 20, 100}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0];
         i++) { /* The size GRO claims against the one believed. */
        struct cmsghdr c = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_UDP, .cmsg_type = UDP_GRO};
        memcpy(control, &c, sizeof c);
        memcpy(control + CMSG_LEN(0), &sizes[i][0], sizeof(int));
        m.control_len = CMSG_SPACE(sizeof(int));
        REQUIRE(udp_rx_parse(&s, &m, &out, &st) == UDP_RX_OK && out.segment == sizes[i][1]);
    }
    from.sin6_addr = (struct in6_addr){.s6_addr = {[10] = 0xff, [11] = 0xff, [12] = 10}};
    REQUIRE(udp_rx_parse(&s, &m, &out, &st) == UDP_RX_IPV4 && st.rx_dropped_ipv4 == 1);
    from.sin6_addr = in6addr_loopback;
    /* The kernel's running total, which wraps; a stamp out of order counts nothing. */
    static const uint32_t totals[] = {7, 7, 10, 9, 0x7fffffff, 0xfffffff0, 2};
    static const uint64_t expected[] = {7, 7, 10, 10, 0x7fffffff, 0xfffffff0, 0x100000002};
    for (size_t i = 0; i < sizeof totals / sizeof totals[0]; i++) {
        struct cmsghdr c = {
            .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SO_RXQ_OVFL};
        memcpy(control, &c, sizeof c);
        memcpy(control + CMSG_LEN(0), &totals[i], sizeof(int));
        REQUIRE(udp_rx_parse(&s, &m, &out, &st) == UDP_RX_OK && st.rx_dropped_queue == expected[i]);
    }
}

/* In a child whose seccomp filter answers io_uring_setup with EPERM, as container runtimes do. */
static void refused_io_uring(void) {
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        refuse_io_uring();
        struct io *a = open_loopback("io_uring"), *b = open_loopback("io_uring");
        REQUIRE(a->ops == &io_socket_ops && b->ops == &io_socket_ops);
        struct io_text text = describe(a);
        REQUIRE(strstr(text.text, "instead of io_uring") != NULL &&
                strstr(text.text, "not permitted") != NULL);
        send_train(a, local_of(b), 50000, 1000, 1, 3);
        a->ops->flush(a);
        expect_train(b, 50000, 1000, 3, 50000);
        a->ops->close(a);
        b->ops->close(b);
        exit(0); /* Not _exit: the sanitizers look for leaks here too. */
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The kernel's struct in6_ifreq, which clashes with libc's headers when taken from linux/ipv6.h. */
struct address_request {
    struct in6_addr address;
    uint32_t prefix_length;
    int ifindex;
};

/* A namespace of our own with ::1, fd00::2 and no route. False where we may not make one. */
static bool enter_namespace(void) {
    if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) {
        return false;
    }
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq up = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    struct address_request add = {.address = {.s6_addr = {0xfd, [15] = 2}}, .prefix_length = 128};
    add.ifindex = (int)if_nametoindex("lo");
    bool ok = ioctl(fd, SIOCSIFFLAGS, &up) == 0 && ioctl(fd, SIOCSIFADDR, &add) == 0;
    /* The address stays tentative, of no use as a source, until the kernel's work queue has looked at it. */
    struct sockaddr_in6 own = {.sin6_family = AF_INET6, .sin6_addr = add.address};
    int64_t end = now_ns() + 5 * SECOND_NS;
    while (ok && bind(fd, (const struct sockaddr *)&own, sizeof own) != 0) {
        ok = now_ns() < end;
        sched_yield();
    }
    close(fd);
    if (!ok) {
        perror("setting up lo");
        exit(1);
    }
    return true;
}

static void described(const char *backend) {
    struct io *io = open_loopback(backend);
    REQUIRE(io->ops ==
            io_backend_by_name(backend)); /* Else the kernel refused io_uring and this tests nothing. */
    struct io_text text = describe(io);
    printf("%s\n", text.text);
    REQUIRE(strncmp(text.text, backend, strlen(backend)) == 0);
    REQUIRE(strstr(text.text, "ECN, pktinfo") != NULL);
    REQUIRE(io_backend_by_name("no such") == NULL && io_backend_by_name(NULL) == NULL);
    io->ops->close(io);
}

/* check.h's cases take no argument: one function a backend. */
#define ON_BOTH(test)                                                                                        \
    static void uring_##test(void) {                                                                         \
        test("io_uring");                                                                                    \
    }                                                                                                        \
    static void socket_##test(void) {                                                                        \
        test("socket");                                                                                      \
    }
ON_BOTH(described)
ON_BOTH(trains)
ON_BOTH(ecn_and_addresses)
ON_BOTH(reuse_port)
ON_BOTH(waking)
ON_BOTH(no_gso)
ON_BOTH(no_gro)
ON_BOTH(rx_exhaustion)
ON_BOTH(queue_overflow)
ON_BOTH(tx_exhaustion)
ON_BOTH(errors_are_survived)
ON_BOTH(open_close)

static const struct check_case cases[] = {
    {"udp_parse", parse},
    {"udp_eio_fallback", eio_fallback},
    {"uring_described", uring_described},
    {"uring_trains", uring_trains},
    {"uring_options", uring_options},
    {"uring_zero_copy_in_vain", uring_zero_copy_in_vain},
    {"uring_ecn_and_addresses", uring_ecn_and_addresses},
    {"uring_reuse_port", uring_reuse_port},
    {"uring_waking", uring_waking},
    {"uring_no_gso", uring_no_gso},
    {"uring_no_gro", uring_no_gro},
    {"uring_rx_exhaustion", uring_rx_exhaustion},
    {"uring_queue_overflow", uring_queue_overflow},
    {"uring_tx_exhaustion", uring_tx_exhaustion},
    {"uring_errors_are_survived", uring_errors_are_survived},
    {"uring_open_close", uring_open_close},
    {"socket_described", socket_described},
    {"socket_trains", socket_trains},
    {"socket_ecn_and_addresses", socket_ecn_and_addresses},
    {"socket_reuse_port", socket_reuse_port},
    {"socket_waking", socket_waking},
    {"socket_no_gso", socket_no_gso},
    {"socket_no_gro", socket_no_gro},
    {"socket_rx_exhaustion", socket_rx_exhaustion},
    {"socket_queue_overflow", socket_queue_overflow},
    {"socket_tx_exhaustion", socket_tx_exhaustion},
    {"socket_errors_are_survived", socket_errors_are_survived},
    {"socket_open_close", socket_open_close},
    {"uring_refused",
     refused_io_uring}, /* Last: a failed REQUIRE in its child runs what follows, in the child. */
};

int main(int argc, char **argv) {
    alarm(300); /* A hang, such as a lost wake, is a failure. */
    own_namespace = enter_namespace();
    if (!own_namespace) {
        printf("skipped, no namespace: choosing a source address, no route\n");
    }
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
