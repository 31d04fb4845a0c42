/* Generator, sink and ping-pong through an I/O backend: what `stoq bench packets` compares with xskloop.c,
 * the least that AF_XDP costs. No QUIC: datagrams carry what packet_run.h writes, and nothing else is done to
 * them.
 *
 *      packets --role sink --backend afxdp --interface stoq0 --local fd00::2 --peer fd00::1 --link … --core 1
 *      packets --role generate --backend afxdp --interface stoq0 --local fd00::1 --peer fd00::2 … --core 0
 *
 * With afxdp, the XDP program is that of the raw loop, and the way to the peer is told as the control plane
 * would; there is no socket path. With io_uring and socket the kernel's tables must know the way. */
#define _GNU_SOURCE
#include <errno.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../io/afxdp.h"
#include "packet_run.h"
#include "xdp_redirect.h"

#define TRAINS       64 /* Most taken at a time: as many as the raw loop's packets. */
#define WAIT_NS      (BENCH_NS / 10)
#define LOST_NS      BENCH_NS
#define PING_WARM_UP 1000
#define CHECK_EACH   1024 /* Looks for an answer between two at the clock. */

struct node {
    const struct packet_options *o;
    struct io *io;
};

static uint16_t mtu_of(uint32_t ifindex) {
    struct ifreq r = {0};
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || if_indextoname(ifindex, r.ifr_name) == NULL || ioctl(fd, SIOCGIFMTU, &r) != 0) {
        bench_fail("MTU of the interface: %s", strerror(errno));
    }
    close(fd);
    return (uint16_t)r.ifr_mtu;
}

/* The peer is on link, and its link address is known. */
static void teach(const struct node *n) {
    const struct packet_options *o = n->o;
    struct io_route route = {.bits = 128, .ours = true, .mtu = mtu_of(o->ifindex)};
    struct io_neighbour neighbour = {0};
    memcpy(route.prefix, o->peer.ip, sizeof route.prefix);
    memcpy(route.source, o->local.ip, sizeof route.source);
    memcpy(neighbour.ip, o->peer.ip, sizeof neighbour.ip);
    memcpy(neighbour.link, o->peer_link, sizeof neighbour.link);
    if (n->io->ops->learn_route != NULL && n->io->ops->learn_neighbour != NULL) {
        n->io->ops->learn_route(n->io, &route);
        n->io->ops->learn_neighbour(n->io, &neighbour);
    }
}

/* `map`: XSKMAP, -1 for a backend that is not AF_XDP. */
static struct io *open_backend(const struct packet_options *o, int map) {
    struct afxdp_config afxdp = {.ifindex = o->ifindex,
                                 .queue = o->queue,
                                 .mode = AFXDP_MODE_COPY,
                                 .native = true,
                                 .xsks_fd = map,
                                 .rx_frames = o->frames,
                                 .tx_slots = o->frames / IO_TRAIN_PACKETS,
                                 .busy_budget = o->busy_budget,
                                 .no_tx_checksum = o->no_tx_checksum,
                                 .no_socket = true};
    struct io_config config = {
        .bind = o->local, .socket_bytes = o->socket_bytes, .backend = map >= 0 ? &afxdp : NULL};
    struct io_text why = {{0}};
    memcpy(afxdp.link, o->link, sizeof afxdp.link);
    struct io *io = io_backend_by_name(o->backend)->open(&config, &why);
    if (io == NULL) {
        bench_fail("%s: %s", o->backend, why.text);
    }
    return io;
}

/* A train of `count` datagrams whose first has number `sequence`. Returns how many it is; 0: no buffer. */
static uint32_t send_train(const struct node *n, uint64_t sequence, uint32_t count) {
    const uint32_t bytes = n->o->bytes;
    struct io_tx *tx = n->io->ops->tx_acquire(n->io);
    if (tx == NULL) {
        return 0;
    }
    uint32_t stride = tx->stride != 0 ? tx->stride : bytes;
    uint32_t fit = tx->stride != 0 ? tx->max_segments : tx->cap / bytes;
    fit = fit < tx->max_segments ? fit : tx->max_segments;
    count = count < fit ? count : fit;
    for (uint32_t i = 0; i < count; i++) {
        packet_write(tx->data + (size_t)i * stride, sequence + i);
    }
    tx->len = count * bytes;
    tx->segment = (uint16_t)bytes;
    tx->ecn = 0;
    tx->ifindex = 0;
    tx->peer = n->o->peer;
    tx->local = (struct quic_addr){0};
    n->io->ops->tx_commit(n->io, tx);
    return count;
}

static void generate(const struct node *n) {
    uint64_t sequence = 0;
    int64_t end = bench_now_ns() + (int64_t)(n->o->seconds * (double)BENCH_NS);
    while (bench_now_ns() < end) {
        for (uint32_t sent = 0, count; sent < n->o->batch; sent += count) {
            count = send_train(n, sequence, n->o->batch - sent);
            sequence += count;
            if (count == 0) {
                break;
            }
        }
        n->io->ops->flush(n->io);
    }
}

/* `each` for the datagrams that have arrived; returns their number. */
static uint32_t receive(const struct node *n, void (*each)(void *ctx, const struct io_rx *v, uint32_t at),
                        void *ctx) {
    struct io_rx v[TRAINS];
    uint32_t packets = 0;
    int got = n->io->ops->rx(n->io, v, TRAINS);
    for (int i = 0; i < got; i++) {
        uint32_t count = (v[i].len + v[i].segment - 1) / v[i].segment;
        for (uint32_t k = 0; k < count; k++) {
            each(ctx, &v[i], k);
        }
        packets += count;
    }
    if (got > 0) {
        n->io->ops->rx_release(n->io, v, got);
    }
    return packets;
}

static const uint8_t *datagram_at(const struct io_rx *v, uint32_t at) {
    return v->data + (size_t)at * (v->stride != 0 ? v->stride : v->segment);
}

static uint32_t bytes_at(const struct io_rx *v, uint32_t at) {
    uint32_t left = v->len - at * v->segment;
    return left < v->segment ? left : v->segment;
}

struct sink {
    const struct node *n;
    struct packet_tally t;
};

static void sink_one(void *ctx, const struct io_rx *v, uint32_t at) {
    struct sink *s = ctx;
    packet_read(&s->t, datagram_at(v, at), bytes_at(v, at), s->n->o->bytes);
}

static void run_sink(struct sink *s) {
    uint32_t packets = 0;
    do {
        packets = receive(s->n, sink_one, s);
        if (packets == 0 && s->n->o->sleep) {
            s->n->io->ops->wait(s->n->io, WAIT_NS);
        }
    } while (packet_tally_round(&s->t, packets));
}

struct answer {
    const struct node *n;
    bool ended;
};

static void answer_one(void *ctx, const struct io_rx *v, uint32_t at) {
    struct answer *a = ctx;
    const uint8_t *data = datagram_at(v, at);
    uint32_t bytes = bytes_at(v, at);
    struct io_tx *tx = a->n->io->ops->tx_acquire(a->n->io);
    uint64_t sequence;
    if (bytes < PACKET_MIN_BYTES || tx == NULL || bytes > tx->cap) {
        bench_fail("an answer cannot be sent");
    }
    memcpy(&sequence, data, sizeof sequence);
    a->ended = a->ended || sequence == PACKET_END;
    memcpy(tx->data, data, bytes);
    tx->len = bytes;
    tx->segment = (uint16_t)bytes;
    tx->ecn = 0;
    tx->ifindex = 0;
    tx->peer = v->peer;
    tx->local = (struct quic_addr){0};
    a->n->io->ops->tx_commit(a->n->io, tx);
}

static void run_answer(struct answer *a) {
    while (!a->ended) {
        if (receive(a->n, answer_one, a) > 0) {
            a->n->io->ops->flush(a->n->io);
        }
    }
}

struct awaited {
    uint64_t sequence;
    bool here;
};

static void await_one(void *ctx, const struct io_rx *v, uint32_t at) {
    struct awaited *a = ctx;
    uint64_t sequence = 0;
    memcpy(&sequence, datagram_at(v, at), bytes_at(v, at) < sizeof sequence ? 0 : sizeof sequence);
    a->here = a->here || sequence == a->sequence;
}

/* There and back; false when it is lost. */
static bool round_trip(const struct node *n, uint64_t sequence, int64_t sent) {
    struct awaited a = {.sequence = sequence};
    send_train(n, sequence, 1);
    n->io->ops->flush(n->io);
    for (uint32_t spins = 1;; spins++) {
        receive(n, await_one, &a);
        if (a.here) {
            return true;
        }
        if (spins % CHECK_EACH == 0 && bench_now_ns() - sent > LOST_NS) {
            return false;
        }
    }
}

static uint32_t run_ping(const struct node *n, uint32_t *times_ns) {
    uint32_t got = 0, lost = 0;
    for (uint64_t sequence = 0; got < n->o->count; sequence++) {
        int64_t sent = bench_now_ns();
        if (!round_trip(n, sequence, sent)) {
            if (++lost > 10) {
                bench_fail("no answer");
            }
        } else if (sequence >= PING_WARM_UP) {
            times_ns[got++] = (uint32_t)(bench_now_ns() - sent); /* Below LOST_NS, so it fits. */
        }
    }
    round_trip(n, PACKET_END, bench_now_ns());
    return lost;
}

#define FIGURES 12

static void figures(const struct node *n, struct packet_figure out[FIGURES]) {
    struct io_stats s = {0};
    struct io_queue_stats q = {0};
    n->io->ops->stats(n->io, &s);
    if (n->io->ops->queue != NULL) {
        n->io->ops->queue(n->io, &q);
    }
    const struct packet_figure all[FIGURES] = {{"syscalls", s.syscalls},
                                               {"rx_trains", s.rx_trains},
                                               {"tx_trains", s.tx_trains},
                                               {"tx_full", s.tx_full},
                                               {"errors", s.rx_errors + s.tx_errors},
                                               {"dropped_at_socket", s.rx_dropped_queue},
                                               {"tx_checksum", q.tx_checksum},
                                               {"busy_poll", q.busy_poll},
                                               {"rx_dropped", q.kernel_rx_dropped},
                                               {"rx_ring_full", q.kernel_rx_ring_full},
                                               {"fill_empty", q.kernel_fill_empty},
                                               {NULL, 0}};
    memcpy(out, all, sizeof all);
}

static void run(const struct node *n) {
    const struct packet_options *o = n->o;
    struct packet_figure more[FIGURES];
    if (o->role == PACKET_SINK) {
        struct sink s = {.n = n, .t.sleep = o->sleep};
        run_sink(&s);
        figures(n, more);
        packet_report_sink(o, o->backend, &s.t, more);
    } else if (o->role == PACKET_GENERATE) {
        struct packet_start start = packet_start();
        struct io_stats s;
        generate(n);
        n->io->ops->stats(n->io, &s);
        figures(n, more);
        packet_report_generate(o, o->backend, s.tx_packets, start, more);
    } else if (o->role == PACKET_ANSWER) {
        struct answer a = {.n = n};
        run_answer(&a);
    } else {
        uint32_t *times_ns = calloc(o->count, sizeof *times_ns);
        if (times_ns == NULL) {
            bench_fail("no memory");
        }
        uint32_t lost = run_ping(n, times_ns);
        figures(n, more);
        packet_report_ping(o, o->backend, times_ns, lost, more);
        free(times_ns);
    }
}

int main(int argc, char **argv) {
    const struct packet_options o = packet_options(argc, argv, true);
    const struct io_ops *ops = io_backend_by_name(o.backend);
    if (ops == NULL || ops == &io_wire_ops) {
        bench_fail("backend %s: want afxdp, io_uring or socket", o.backend);
    }
    bool bypass = strcmp(o.backend, "afxdp") == 0;
    struct xdp_redirect redirect = {-1, -1, -1};
    if (bypass) {
        redirect = xdp_redirect_open(o.ifindex, o.local.port);
    }
    struct node n = {.o = &o, .io = open_backend(&o, redirect.map)};
    struct io_text text = {{0}};
    teach(&n);
    n.io->ops->describe(n.io, &text);
    fprintf(stderr, "%s\nready\n", text.text); /* For the script: now start the other side. */
    run(&n);
    n.io->ops->close(n.io);
    if (bypass) {
        xdp_redirect_close(&redirect);
    }
    return 0;
}
