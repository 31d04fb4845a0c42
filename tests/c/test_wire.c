/* The wire backend's model (csrc/io/wire.h): delay, order, rate, queue, loss, ECN, MTU, trains, NAT.
 * Datagrams carry their number, so that what arrives can be told apart. */
#include "../../csrc/io/wire.h"
#include "../../csrc/quic/timer.h"
#include "check.h"

#define MS 1000000ull

struct pair {
    struct wire_net *net;
    struct io *a, *b;
    struct quic_addr a_addr, b_addr;
};

/* One received datagram, cut out of its train. */
struct got {
    uint64_t number;
    uint32_t len, train; /* train: datagrams of the train it came in. */
    uint8_t ecn;
    bool intact;
    struct quic_addr from, to;
};

static struct io *open_io(struct wire_net *net, bool no_gso, bool no_gro, uint32_t tx_buffers) {
    struct io_config config = {.backend = net, .no_gso = no_gso, .no_gro = no_gro, .tx_buffers = tx_buffers};
    struct io_text why;
    return io_wire_ops.open(&config, &why);
}

static struct pair join(uint64_t seed, struct stoq_impairment up) {
    struct pair p = {.net = wire_net_create(seed)};
    REQUIRE(p.net);
    p.a = open_io(p.net, false, false, 0);
    p.b = open_io(p.net, false, false, 0);
    REQUIRE(p.a && p.b);
    p.a->ops->local(p.a, &p.a_addr);
    p.b->ops->local(p.b, &p.b_addr);
    wire_net_impair(p.net, wire_endpoint_index(p.a), &up);
    return p;
}

static void part(struct pair *p) {
    CHECK_EQ(wire_net_next(p->net), QUIC_NEVER); /* Each test takes all that comes. */
    CHECK_EQ(wire_net_buffers_used(p->net), 0);
    p->a->ops->close(p->a);
    p->b->ops->close(p->b);
    wire_net_destroy(p->net);
}

/* Byte `i` of datagram `number`: its first eight bytes are the number. */
static uint8_t content(uint64_t number, uint32_t i) {
    return (uint8_t)(i < 8 ? number >> (8 * i) : number * 31 + i);
}

/* A train of `n` datagrams of `size` bytes, the last of `last`, numbered from `first`. */
static bool send_train(struct io *io, const struct quic_addr *to, uint64_t first, uint32_t n, uint32_t size,
                       uint32_t last, uint8_t ecn) {
    struct io_tx *tx = io->ops->tx_acquire(io);
    if (!tx)
        return false;
    for (uint32_t k = 0; k < n; k++) {
        uint32_t len = k + 1 == n ? last : size;
        for (uint32_t i = 0; i < len; i++)
            tx->data[tx->len + i] = content(first + k, i);
        tx->len += len;
    }
    tx->segment = (uint16_t)(n == 1 ? last : size);
    tx->ecn = ecn;
    tx->peer = *to;
    memset(&tx->local, 0, sizeof tx->local);
    io->ops->tx_commit(io, tx);
    io->ops->flush(io);
    return true;
}

static bool send_single(struct pair *p, uint64_t number, uint32_t len) {
    return send_train(p->a, &p->b_addr, number, 1, len, len, 2);
}

/* All that is there now, cut into datagrams; buffers are given back. */
static uint32_t receive(struct io *io, struct got *out, uint32_t max) {
    struct io_rx rx[8];
    uint32_t n = 0;
    for (int k; (k = io->ops->rx(io, rx, 8)) > 0; io->ops->rx_release(io, rx, k))
        for (int i = 0; i < k; i++) {
            CHECK(rx[i].segment > 0 && rx[i].segment <= rx[i].len);
            for (uint32_t at = 0; at < rx[i].len; at += rx[i].segment) {
                uint32_t len = rx[i].len - at < rx[i].segment ? rx[i].len - at : rx[i].segment;
                struct got g = {.len = len,
                                .train = (rx[i].len + rx[i].segment - 1) / rx[i].segment,
                                .ecn = rx[i].ecn,
                                .intact = true,
                                .from = rx[i].peer,
                                .to = rx[i].local};
                for (int j = 7; j >= 0; j--)
                    g.number = g.number << 8 | rx[i].data[at + (uint32_t)j];
                for (uint32_t j = 0; j < len; j++)
                    g.intact &= rx[i].data[at + j] == content(g.number, j);
                rx[i].data[at] ^= 0xff; /* Receivers decrypt in place: nobody else may see this. */
                if (n < max)
                    out[n] = g;
                n++;
            }
        }
    return n;
}

/* Let time run until nothing is under way; `when` gets each arrival's time. */
static uint32_t drain(struct pair *p, struct got *out, uint64_t *when, uint32_t max) {
    uint32_t n = 0;
    for (uint64_t next; (next = wire_net_next(p->net)) != QUIC_NEVER;) {
        CHECK(next >= wire_net_now(p->net));
        wire_net_advance(p->net, next);
        uint32_t k = receive(p->b, n < max ? out + n : NULL, n < max ? max - n : 0);
        for (uint32_t i = n; i < n + k && i < max && when; i++)
            when[i] = next;
        n += k;
        n += receive(p->a, NULL, 0);
    }
    return n;
}

static uint64_t count(const struct pair *p, enum wire_fate fate) {
    uint64_t counts[WIRE_FATE_COUNT];
    wire_net_counts(p->net, 0, counts);
    return counts[fate];
}

/* ---- a perfect wire ---- */

static void perfect_passes_trains_whole(void) {
    struct pair p = join(1, (struct stoq_impairment){0});
    struct got got[64];
    CHECK(send_train(p.a, &p.b_addr, 100, 46, 1400, 700, 2));
    CHECK_EQ(wire_net_next(p.net), wire_net_now(p.net));
    CHECK_EQ(receive(p.b, got, 64), 46);
    for (uint32_t i = 0; i < 46; i++) {
        CHECK(got[i].intact && got[i].number == 100 + i && got[i].train == 46 && got[i].ecn == 2);
        CHECK(quic_addr_equal(&got[i].from, &p.a_addr) && quic_addr_equal(&got[i].to, &p.b_addr));
    }
    CHECK_EQ(got[45].len, 700);
    CHECK_EQ(receive(p.b, got, 64), 0);
    part(&p);
}

static void delay_is_exact(void) {
    struct pair p = join(1, (struct stoq_impairment){.delay_ns = 25 * MS});
    struct got got[4];
    wire_net_advance(p.net, 7 * MS);
    send_single(&p, 1, 1200);
    wire_net_advance(p.net, 8 * MS);
    send_train(p.a, &p.b_addr, 2, 2, 30000, 20000, 2); /* Long enough not to be copied. */
    CHECK_EQ(wire_net_next(p.net), 32 * MS);
    wire_net_advance(p.net, 32 * MS - 1);
    CHECK_EQ(receive(p.b, got, 4), 0);
    CHECK(!wire_net_ready(p.net, 1));
    wire_net_advance(p.net, 32 * MS);
    CHECK(wire_net_ready(p.net, 1) && !wire_net_ready(p.net, 0));
    CHECK_EQ(receive(p.b, got, 4), 1);
    CHECK(!wire_net_ready(p.net, 1));
    CHECK_EQ(wire_net_next(p.net), 33 * MS);
    wire_net_advance(p.net, 33 * MS);
    CHECK_EQ(receive(p.b, got, 4), 2);
    CHECK(got[0].intact && got[1].intact && got[1].len == 20000);
    part(&p);
}

static void shorter_delay_keeps_order(void) {
    struct pair p = join(1, (struct stoq_impairment){.delay_ns = 50 * MS});
    struct got got[4];
    send_single(&p, 1, 100);
    wire_net_impair(p.net, 0, &(struct stoq_impairment){.delay_ns = 1 * MS});
    send_single(&p, 2, 100);
    CHECK_EQ(drain(&p, got, NULL, 4), 2);
    CHECK(got[0].number == 1 && got[1].number == 2);
    CHECK_EQ(wire_net_now(p.net), 50 * MS);
    part(&p);
}

static void send_buffers_are_bounded_and_come_back(void) {
    struct wire_net *net = wire_net_create(1);
    struct io *a = open_io(net, true, false, 2), *b = open_io(net, false, false, 0);
    struct quic_addr to;
    REQUIRE(a && b);
    b->ops->local(b, &to);
    struct io_tx *one = a->ops->tx_acquire(a), *two = a->ops->tx_acquire(a);
    REQUIRE(one && two);
    CHECK_EQ(one->max_segments, 1); /* no_gso */
    CHECK(!a->ops->tx_acquire(a));
    a->ops->tx_cancel(a, one);
    a->ops->tx_cancel(a, two);
    CHECK(send_train(a, &to, 1, 1, 9000, 9000, 0) && send_train(a, &to, 2, 1, 9000, 9000, 0));
    CHECK(!send_train(a, &to, 3, 1, 9000, 9000, 0)); /* Both are with the receiver. */
    struct got got[4];
    CHECK_EQ(receive(b, got, 4), 2);
    CHECK(send_train(a, &to, 3, 1, 9000, 9000, 0));
    CHECK_EQ(receive(b, got, 4), 1);
    struct io_stats stats;
    a->ops->stats(a, &stats);
    CHECK_EQ(stats.tx_full, 2);
    CHECK_EQ(stats.tx_packets, 3);
    CHECK_EQ(wire_net_buffers_used(net), 0);
    a->ops->close(a);
    b->ops->close(b);
    wire_net_destroy(net);
}

static void refuses_what_a_kernel_refuses(void) {
    struct pair p = join(1, (struct stoq_impairment){0});
    struct quic_addr mapped = p.b_addr;
    static const uint8_t v4[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1};
    memcpy(mapped.ip, v4, 16);
    CHECK(send_train(p.a, &mapped, 1, 1, 100, 100, 0));
    CHECK(send_train(p.a, &p.b_addr, 1, 65, 100, 100, 0)); /* One datagram more than a train holds. */
    struct io_stats stats;
    p.a->ops->stats(p.a, &stats);
    CHECK_EQ(stats.tx_errors, 2);
    CHECK_EQ(stats.tx_packets, 0);
    struct io_config same = {.backend = p.net, .bind = p.b_addr};
    struct io_text why = {{0}};
    CHECK(!p.a->ops->open(&same, &why));
    CHECK(strstr(why.text, "port"));
    part(&p);
}

/* ---- impairments ---- */

#define MANY 20000u

static struct got many[2 * MANY];
static uint64_t times[2 * MANY];

static void loss_rate(void) {
    struct pair p = join(check_rand(), (struct stoq_impairment){.loss_ppm = 100000});
    for (uint32_t i = 0; i < MANY; i++)
        send_single(&p, i, 64);
    uint32_t n = drain(&p, many, NULL, MANY);
    /* Binomial: 2000 lost, standard deviation 42; six of them either way. */
    CHECK(MANY - n > 2000 - 255 && MANY - n < 2000 + 255);
    CHECK_EQ(count(&p, WIRE_LOST), MANY - n);
    CHECK_EQ(count(&p, WIRE_DELIVERED), n);
    for (uint32_t i = 1; i < n; i++)
        CHECK(many[i].number > many[i - 1].number && many[i].intact);
    part(&p);
}

static void total_loss(void) {
    struct pair p = join(1, (struct stoq_impairment){.loss_ppm = 1000000});
    for (uint32_t i = 0; i < 1000; i++)
        send_single(&p, i, 64);
    CHECK_EQ(drain(&p, many, NULL, MANY), 0);
    part(&p);
}

static void duplicates_are_separate_copies(void) {
    struct pair p = join(check_rand(), (struct stoq_impairment){.duplicate_ppm = 500000, .delay_ns = MS});
    for (uint32_t i = 0; i < 1000; i++)
        send_single(&p, i, 64);
    uint32_t n = drain(&p, many, NULL, MANY), seen[1000] = {0};
    CHECK(n > 1400 && n < 1600);
    for (uint32_t i = 0; i < n; i++) {
        CHECK(many[i].intact); /* receive() spoils each buffer once it has looked. */
        REQUIRE(many[i].number < 1000);
        seen[many[i].number]++;
    }
    for (uint32_t i = 0; i < 1000; i++)
        CHECK(seen[i] == 1 || seen[i] == 2);
    CHECK_EQ(count(&p, WIRE_DUPLICATED), n - 1000);
    part(&p);
}

static void corruption_flips_bits(void) {
    struct pair p = join(check_rand(), (struct stoq_impairment){.corrupt_ppm = 200000});
    for (uint32_t i = 0; i < 5000; i++)
        send_single(&p, i, 1000);
    uint32_t n = drain(&p, many, NULL, MANY), bad = 0;
    CHECK_EQ(n, 5000);
    for (uint32_t i = 0; i < n; i++)
        bad += !many[i].intact;
    CHECK(bad > 800 && bad < 1200);
    CHECK(bad <= count(&p, WIRE_CORRUPTED)); /* Two flips may meet in one bit and undo each other. */
    part(&p);
}

static void jitter_keeps_order(void) {
    struct pair p = join(check_rand(), (struct stoq_impairment){.delay_ns = 10 * MS, .jitter_ns = 5 * MS});
    for (uint32_t i = 0; i < 1000; i++) {
        wire_net_advance(p.net, i * 1000ull);
        send_single(&p, i, 100);
    }
    uint32_t n = drain(&p, many, times, MANY);
    bool spread = false;
    CHECK_EQ(n, 1000);
    for (uint32_t i = 0; i < n; i++) {
        CHECK_EQ(many[i].number, i);
        CHECK(times[i] >= i * 1000ull + 10 * MS && times[i] <= 999 * 1000ull + 15 * MS);
        spread |= times[i] > i * 1000ull + 12 * MS;
    }
    CHECK(spread);
    part(&p);
}

static void reorder_holds_some_back(void) {
    struct pair p = join(
        check_rand(), (struct stoq_impairment){.delay_ns = MS, .reorder_ppm = 100000, .reorder_ns = MS / 2});
    for (uint32_t i = 0; i < 1000; i++) {
        wire_net_advance(p.net, i * 100ull);
        send_single(&p, i, 100);
    }
    uint32_t n = drain(&p, many, times, MANY), late = 0;
    CHECK_EQ(n, 1000);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t on_time = many[i].number * 100 + MS;
        CHECK(times[i] >= on_time && times[i] <= on_time + MS / 2);
        late += times[i] != on_time;
    }
    CHECK_EQ(late, count(&p, WIRE_REORDERED));
    CHECK(late > 50 && late < 150);
    part(&p);
}

static void rate_is_exact(void) {
    /* 7 Mbit/s divides nothing evenly: the rest must carry over. */
    struct pair p = join(1, (struct stoq_impairment){.rate_bps = 7000000, .delay_ns = 3 * MS});
    for (uint32_t i = 0; i < 1000; i++)
        send_single(&p, i, 1200 + i % 7);
    uint32_t n = drain(&p, many, times, MANY);
    uint64_t bits = 0;
    CHECK_EQ(n, 1000);
    for (uint32_t i = 0; i < n; i++) {
        bits += (many[i].len + WIRE_OVERHEAD_BYTES) * 8ull;
        CHECK_EQ(many[i].number, i);
        CHECK_EQ(times[i], bits * 1000000000u / 7000000u + 3 * MS);
    }
    /* An idle link saves up nothing. */
    wire_net_advance(p.net, times[n - 1] + 1000 * MS);
    uint64_t start = wire_net_now(p.net);
    send_single(&p, 1, 952);
    drain(&p, many, times, MANY);
    CHECK_EQ(times[0], start + 8000ull * 1000 / 7 + 3 * MS);
    part(&p);
}

static void queue_drops_its_tail(void) {
    /* 1 Mbit/s and 10 packets of 1000 bytes on the wire: of 50 at once ten go, and forty are dropped at the
     * tail. */
    struct pair p = join(1, (struct stoq_impairment){.rate_bps = 1000000, .queue_bytes = 10000});
    for (uint32_t i = 0; i < 50; i++)
        send_single(&p, i, 1000 - WIRE_OVERHEAD_BYTES);
    wire_net_advance(p.net, 8 * MS); /* One packet's time. */
    send_single(&p, 50, 1000 - WIRE_OVERHEAD_BYTES);
    send_single(&p, 51, 1000 - WIRE_OVERHEAD_BYTES);
    uint32_t n = drain(&p, many, NULL, MANY);
    CHECK_EQ(n, 11);
    CHECK_EQ(count(&p, WIRE_QUEUE_DROP), 41);
    for (uint32_t i = 0; i < 10; i++)
        CHECK_EQ(many[i].number, i);
    CHECK_EQ(many[10].number, 50);
    /* A packet larger than the whole queue still passes an empty one. */
    send_single(&p, 60, 20000);
    CHECK_EQ(drain(&p, many, NULL, MANY), 1);
    part(&p);
}

static void congestion_is_marked(void) {
    struct pair p = join(1, (struct stoq_impairment){.rate_bps = 1000000, .ce_above_bytes = 4500});
    for (uint32_t i = 0; i < 10; i++)
        send_train(p.a, &p.b_addr, i, 1, 952, 952, i == 9 ? 0 : 2);
    uint32_t n = drain(&p, many, NULL, MANY);
    CHECK_EQ(n, 10);
    /* Before packet i there are i kilobytes in the queue; the last is not ECN capable. */
    for (uint32_t i = 0; i < n; i++)
        CHECK_EQ(many[i].ecn, i == 9 ? 0 : i >= 5 ? 3 : 2);
    CHECK_EQ(count(&p, WIRE_CE_MARKED), 4);
    part(&p);
}

static void mtu_is_exact(void) {
    for (int impaired = 0; impaired < 2; impaired++) {
        struct pair p = join(1, (struct stoq_impairment){.mtu = 1500, .jitter_ns = impaired ? 1 : 0});
        send_single(&p, 1, 1452);
        send_single(&p, 2, 1453);
        send_train(p.a, &p.b_addr, 3, 3, 1453, 1000, 2); /* Only the short last one fits. */
        CHECK_EQ(drain(&p, many, NULL, MANY), 2);
        CHECK(many[0].number == 1 && many[1].number == 5);
        CHECK_EQ(count(&p, WIRE_TOO_LARGE), 3);
        part(&p);
    }
}

/* ---- trains ---- */

static void trains_are_split_and_joined(void) {
    struct pair p = join(1, (struct stoq_impairment){.jitter_ns = 1, .delay_ns = MS});
    wire_net_moderate(p.net, MS);
    send_train(p.a, &p.b_addr, 0, 3, 1200, 1200, 2);
    send_train(p.a, &p.b_addr, 3, 3, 1200, 800, 2);  /* Goes on in the same train; its short end ends it. */
    send_train(p.a, &p.b_addr, 6, 2, 1200, 1200, 1); /* Other ECN bits: another train. */
    send_train(p.a, &p.b_addr, 8, 40, 1000, 1000,
               1); /* Other size: the first ends the train before as its short end. */
    send_train(p.a, &p.b_addr, 48, 40, 1000, 1000, 1);
    uint32_t n = drain(&p, many, times, MANY);
    CHECK_EQ(n, 88);
    static const struct {
        uint32_t first, count;
    } trains[] = {{0, 6}, {6, 3}, {9, 64}, {73, 15}};
    for (uint32_t t = 0; t < 4; t++)
        for (uint32_t i = trains[t].first; i < trains[t].first + trains[t].count; i++) {
            CHECK(many[i].intact && many[i].number == i);
            CHECK_EQ(many[i].train, trains[t].count);
            CHECK_EQ(times[i] % MS, 0);
        }
    part(&p);
}

static void no_gro_gets_single_datagrams(void) {
    struct wire_net *net = wire_net_create(1);
    struct io *a = open_io(net, false, false, 0), *b = open_io(net, false, true, 0);
    struct quic_addr to;
    struct got got[8];
    REQUIRE(a && b);
    b->ops->local(b, &to);
    for (int impaired = 0; impaired < 2; impaired++) {
        wire_net_impair(net, 0, &(struct stoq_impairment){.duplicate_ppm = (uint32_t)impaired});
        send_train(a, &to, 0, 5, 1200, 100, 2);
        CHECK_EQ(receive(b, got, 8), 5);
        for (uint32_t i = 0; i < 5; i++)
            CHECK(got[i].intact && got[i].number == i && got[i].train == 1 &&
                  got[i].len == (i == 4 ? 100 : 1200));
    }
    a->ops->close(a);
    b->ops->close(b);
    wire_net_destroy(net);
}

/* ---- NAT ---- */

static void rebind_translates_both_ways(void) {
    for (int what = 1; what <= 2; what++) {
        struct pair p = join(1, (struct stoq_impairment){0});
        struct got got[4];
        send_single(&p, 1, 100);
        CHECK_EQ(receive(p.b, got, 4), 1);
        CHECK(quic_addr_equal(&got[0].from, &p.a_addr));
        wire_net_rebind(p.net, 0, what, 10 * MS);
        send_single(&p, 2, 100);
        CHECK_EQ(receive(p.b, got, 4), 1);
        struct quic_addr moved = got[0].from;
        CHECK(moved.port != p.a_addr.port);
        CHECK_EQ(quic_addr_same_ip(&moved, &p.a_addr), what == 1);
        /* The way back leads to the old inside address… */
        send_train(p.b, &moved, 3, 1, 100, 100, 2);
        CHECK_EQ(receive(p.a, got, 4), 1);
        CHECK(quic_addr_equal(&got[0].to, &p.a_addr) && quic_addr_equal(&got[0].from, &p.b_addr));
        /* …and so does the old mapping, until it is forgotten. */
        send_train(p.b, &p.a_addr, 4, 1, 100, 100, 2);
        CHECK_EQ(receive(p.a, got, 4), 1);
        wire_net_advance(p.net, 10 * MS);
        send_train(p.b, &p.a_addr, 5, 1, 100, 100, 2);
        CHECK_EQ(receive(p.a, got, 4), 0);
        send_train(p.b, &moved, 6, 1, 100, 100, 2);
        CHECK_EQ(receive(p.a, got, 4), 1);
        uint64_t counts[WIRE_FATE_COUNT];
        wire_net_counts(p.net, 1, counts);
        CHECK_EQ(counts[WIRE_UNROUTABLE], 1);
        part(&p);
    }
}

static void another_source_port_is_reachable(void) {
    struct pair p = join(1, (struct stoq_impairment){0});
    struct io_tx *tx = p.a->ops->tx_acquire(p.a);
    struct got got[4];
    struct quic_addr other = p.a_addr;
    other.port++;
    while (other.port == p.b_addr.port)
        other.port++;
    REQUIRE(tx);
    for (uint32_t i = 0; i < 50; i++)
        tx->data[i] = content(1, i);
    tx->len = tx->segment = 50;
    tx->peer = p.b_addr;
    tx->local = other;
    p.a->ops->tx_commit(p.a, tx);
    CHECK_EQ(receive(p.b, got, 4), 1);
    CHECK(quic_addr_equal(&got[0].from, &other));
    send_train(p.b, &other, 2, 1, 50, 50, 2);
    CHECK_EQ(receive(p.a, got, 4), 1);
    CHECK(quic_addr_equal(&got[0].to, &other));
    part(&p);
}

static void same_seed_same_fate(void) {
    static uint64_t sums[2], uneven;
    for (int round = 0; round < 3; round++) {
        struct pair p = join(round == 2 ? 43 : 42, (struct stoq_impairment){.loss_ppm = 200000,
                                                                            .duplicate_ppm = 100000,
                                                                            .corrupt_ppm = 100000,
                                                                            .reorder_ppm = 100000,
                                                                            .jitter_ns = 3 * MS,
                                                                            .delay_ns = MS});
        for (uint32_t i = 0; i < 1000; i++)
            send_single(&p, i, 100 + i % 50);
        uint32_t n = drain(&p, many, times, MANY);
        uint64_t sum = n;
        for (uint32_t i = 0; i < n; i++)
            sum = (sum ^ many[i].number ^ times[i]) * 0x100000001b3u;
        if (round < 2)
            sums[round] = sum;
        else
            uneven = sum;
        part(&p);
    }
    CHECK(sums[0] == sums[1]);
    CHECK(sums[0] != uneven);
}

static const struct check_case cases[] = {
    {"perfect_passes_trains_whole", perfect_passes_trains_whole},
    {"delay_is_exact", delay_is_exact},
    {"shorter_delay_keeps_order", shorter_delay_keeps_order},
    {"send_buffers_are_bounded_and_come_back", send_buffers_are_bounded_and_come_back},
    {"refuses_what_a_kernel_refuses", refuses_what_a_kernel_refuses},
    {"loss_rate", loss_rate},
    {"total_loss", total_loss},
    {"duplicates_are_separate_copies", duplicates_are_separate_copies},
    {"corruption_flips_bits", corruption_flips_bits},
    {"jitter_keeps_order", jitter_keeps_order},
    {"reorder_holds_some_back", reorder_holds_some_back},
    {"rate_is_exact", rate_is_exact},
    {"queue_drops_its_tail", queue_drops_its_tail},
    {"congestion_is_marked", congestion_is_marked},
    {"mtu_is_exact", mtu_is_exact},
    {"trains_are_split_and_joined", trains_are_split_and_joined},
    {"no_gro_gets_single_datagrams", no_gro_gets_single_datagrams},
    {"rebind_translates_both_ways", rebind_translates_both_ways},
    {"another_source_port_is_reachable", another_source_port_is_reachable},
    {"same_seed_same_fate", same_seed_same_fate},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
