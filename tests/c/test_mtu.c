/* The search for the path's datagram size (csrc/quic/conn_mtu.c): alone against a path that is a number and
 * the loss of a probe, and in whole connections over the wire's MTU limit. */
#include "check.h"
#include "leaf_host.h"

#include "crypto/crypto.h"
#include "quic/conn.h"
#include "sim/pair.h"
#include "worker/worker.h"

#define MS QUIC_MS
#define S  QUIC_S

struct scene {
    struct leaf_memory memory;
    struct quic_host host;
    uint64_t counters[STOQ_COUNTER_COUNT], drops[STOQ_DROP_COUNT];
    struct quic_endpoint *ep;
    struct quic_conn *conn; /* Confirmed and busy, as far as the search sees. */
    uint64_t now;
};

static void begin(struct scene *s, uint16_t max, uint64_t peer_max) {
    const struct quic_config config = {.max_datagram = max};
    memset(s, 0, sizeof *s);
    s->host = leaf_endpoint_host(&s->memory);
    s->ep = quic_endpoint_create(&config, &s->host, s->counters, s->drops);
    REQUIRE(s->ep != NULL);
    struct quic_addr peer = {.ip = {0xfd}, .port = 1}, local = {.ip = {0xfd, 1}, .port = 2};
    s->now = 1;
    s->conn = quic_conn_connect(s->ep, s->now, &peer, &local, 0, NULL, 0);
    REQUIRE(s->conn != NULL);
    s->conn->confirmed = s->conn->peer_params_set = true;
    s->conn->peer_params.max_udp_payload_size = peer_max;
    s->conn->recovery.bytes_in_flight = 1;
    s->conn->recovery.cc.window = 1 << 20;
}

static void end(struct scene *s) {
    quic_endpoint_destroy(s->ep);
    CHECK_EQ(s->memory.bytes, 0);
}

/* Probe until nothing is due; the path carries `path` bytes and loses `loss` of 1000 probes. How many. */
static unsigned search(struct scene *s, uint16_t path, unsigned loss, size_t cap) {
    unsigned probes = 0;
    uint16_t size;
    while (quic_mtu_probe_due(s->conn, s->now, cap, &size)) {
        CHECK(size > s->conn->mtu.current && size <= cap);
        quic_mtu_probe_sent(s->conn, size);
        uint16_t again;
        CHECK(!quic_mtu_probe_due(s->conn, s->now, cap, &again)); /* One at a time. */
        s->now += MS;
        quic_mtu_on_probe(s->conn, s->now, size <= path && check_rand() % 1000 >= loss, size);
        REQUIRE(++probes <= 64);
    }
    return probes;
}

static bool near(uint16_t found, uint16_t real) {
    return found <= real && real - found <= (found / 64 > 16 ? found / 64 : 16);
}

/* Whatever the path carries, the search finds it to a 64th, with a bounded number of probes. */
static void any_path(void) {
    unsigned most = 0;
    for (unsigned i = 0; i < 3000; i++) {
        struct scene s;
        uint16_t max = (uint16_t)(1200 + check_rand() % (i % 2 ? 64328 : 8000));
        uint16_t path = (uint16_t)(1200 + check_rand() % (i % 3 ? 64328 : 2000));
        begin(&s, max, 65527);
        unsigned probes = search(&s, path, 0, 65536);
        uint16_t real = path < max ? path : max;
        check_note("max %u, path %u, found %u", max, path, s.conn->mtu.current);
        CHECK(near(s.conn->mtu.current, real));
        CHECK_EQ(s.conn->mtu.state, QUIC_MTU_COMPLETE);
        CHECK_EQ(s.conn->recovery.cc.mss, s.conn->mtu.current);
        CHECK_EQ(s.counters[STOQ_COUNTER_MTU_PROBES], probes);
        most = probes > most ? probes : most;
        end(&s);
    }
    CHECK(most <= 41);
}

/* The sizes that matter are found with few probes: none is lost where the path carries all. */
static void common_paths(void) {
    static const struct {
        uint16_t max, path, found;
        unsigned within; /* Probes until it was reached. */
    } cases[] = {{1452, 1452, 1452, 1},    {8952, 8952, 8952, 1}, {8952, 1452, 1452, 3},
                 {65527, 65527, 65527, 1}, {1452, 1232, 1232, 6}, {65527, 8952, 8952, 3},
                 {1200, 9000, 1200, 0},    {1452, 1412, 1412, 3}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct scene s;
        uint16_t size;
        unsigned n = 0;
        begin(&s, cases[i].max, 65527);
        check_note("case %u", i);
        while (s.conn->mtu.current < cases[i].found && n < 20) {
            REQUIRE(quic_mtu_probe_due(s.conn, s.now, 65536, &size));
            quic_mtu_probe_sent(s.conn, size);
            quic_mtu_on_probe(s.conn, s.now, size <= cases[i].path, size);
            n++;
        }
        CHECK_EQ(n, cases[i].within);
        CHECK_EQ(s.conn->mtu.current, cases[i].found);
        end(&s);
    }
}

/* A fifth of the probes lost: one lost probe proves nothing, three do. */
static void lossy_path(void) {
    unsigned good = 0;
    for (unsigned i = 0; i < 300; i++) {
        struct scene s;
        begin(&s, 8952, 65527);
        search(&s, i % 2 ? 8952 : 1452, 200, 65536);
        CHECK_EQ(s.conn->mtu.state, QUIC_MTU_COMPLETE);
        good += near(s.conn->mtu.current, i % 2 ? 8952 : 1452);
        end(&s);
    }
    CHECK(good >= 270); /* Of 300; three losses in a row are one in 125. */
}

static void bounds(void) {
    struct scene s;
    begin(&s, 65527, 4000); /* The peer's buffers. */
    search(&s, 65527, 0, 65536);
    CHECK_EQ(s.conn->mtu.current, 4000);
    end(&s);
    begin(&s, 8952, 65527); /* Ours. */
    search(&s, 65527, 0, 2048);
    CHECK_EQ(s.conn->mtu.current, 2048);
    end(&s);
    begin(&s, 8952, 65527);
    s.conn->recovery.cc.window = 5000; /* A datagram larger than the window waits for the window. */
    search(&s, 65527, 0, 65536);
    CHECK_EQ(s.conn->mtu.current, 4304);
    CHECK_EQ(s.conn->mtu.state, QUIC_MTU_SEARCHING);
    s.conn->recovery.cc.window = 50000;
    search(&s, 65527, 0, 65536);
    CHECK_EQ(s.conn->mtu.current, 8952);
    end(&s);
    begin(&s, 8952, 65527); /* An idle connection takes a first look and no more. */
    s.conn->recovery.bytes_in_flight = 0;
    CHECK_EQ(search(&s, 2000, 0, 65536), 3);
    CHECK_EQ(s.conn->mtu.current, 1452);
    s.conn->recovery.bytes_in_flight = 1;
    search(&s, 2000, 0, 65536);
    CHECK(near(s.conn->mtu.current, 2000));
    end(&s);
}

/* After ten minutes a path may have become better. */
static void raised_later(void) {
    struct scene s;
    uint16_t size;
    begin(&s, 8952, 65527);
    search(&s, 1452, 0, 65536);
    CHECK(near(s.conn->mtu.current, 1452));
    s.now += 599 * S;
    CHECK(!quic_mtu_probe_due(s.conn, s.now, 65536, &size));
    s.now += S;
    CHECK_EQ(search(&s, 8952, 0, 65536), 1);
    CHECK_EQ(s.conn->mtu.current, 8952);
    s.now += 600 * S; /* Nothing larger is possible: no probes. */
    CHECK_EQ(search(&s, 8952, 0, 65536), 0);
    end(&s);
}

static void lose(struct scene *s, uint64_t pn, unsigned n, uint16_t size) {
    for (unsigned i = 0; i < n; i++)
        quic_mtu_on_loss(s->conn, pn + i, size);
}

static void black_hole(void) {
    struct scene s;
    begin(&s, 8952, 65527);
    search(&s, 8952, 0, 65536);
    quic_mtu_on_ack(s.conn, 10, 8952);
    lose(&s, 11, 5, 8952);
    quic_mtu_on_ack(s.conn, 20, 8952); /* Loss, no black hole: one as large came through. */
    lose(&s, 21, 5, 8952);
    CHECK_EQ(s.conn->mtu.current, 8952);
    lose(&s, 26, 1, 8952);
    CHECK_EQ(s.conn->mtu.current, QUIC_MIN_INITIAL_BYTES);
    CHECK_EQ(s.conn->recovery.cc.mss, QUIC_MIN_INITIAL_BYTES);
    CHECK_EQ(s.conn->mtu.state, QUIC_MTU_BASE);
    CHECK_EQ(s.counters[STOQ_COUNTER_MTU_BLACK_HOLES], 1);
    /* It may have been an outage: the same size is tried first, and comes back in one round trip. */
    CHECK_EQ(search(&s, 8952, 0, 65536), 1);
    CHECK_EQ(s.conn->mtu.current, 8952);
    /* Twice is no outage. What is found then is smaller, until the raise timer says otherwise. */
    lose(&s, 40, 6, 8952);
    search(&s, 8952, 0, 65536);
    CHECK(s.conn->mtu.current < 8952 && s.conn->mtu.current >= 4304);
    s.now += 600 * S;
    search(&s, 8952, 0, 65536);
    CHECK_EQ(s.conn->mtu.current, 8952);
    /* The path has truly shrunk. */
    lose(&s, 60, 6, 8952);
    search(&s, 1452, 0, 65536);
    CHECK(near(s.conn->mtu.current, 1452));
    end(&s);
}

/* Another path: BASE, and what was probed on the old one says nothing of it. */
static void migration(void) {
    struct scene s;
    uint16_t size;
    begin(&s, 8952, 65527);
    search(&s, 1452, 0, 65536);
    s.conn->recovery.bytes_in_flight = 0;
    quic_recovery_new_path(s.conn, true); /* A port only: the same path. */
    CHECK(near(s.conn->mtu.current, 1452));
    quic_recovery_new_path(s.conn, false);
    CHECK_EQ(s.conn->mtu.current, QUIC_MIN_INITIAL_BYTES);
    REQUIRE(quic_mtu_probe_due(s.conn, s.now, 65536, &size));
    CHECK_EQ(size, 8952);
    quic_mtu_on_probe(s.conn, s.now, true, size); /* Not sent here. */
    CHECK_EQ(s.conn->mtu.current, QUIC_MIN_INITIAL_BYTES);
    end(&s);
}

/* ---- whole connections ---- */

static struct quic_conn_stats stats_of(struct pair *p, uint32_t side) {
    struct quic_conn_stats s;
    struct quic_conn *conn =
        quic_conn_by_handle(worker_endpoint(p->sim->workers[side]), p->ends[side].handle);
    memset(&s, 0, sizeof s);
    if (conn != NULL)
        quic_conn_stats(conn, &s);
    return s;
}

static void run_for(struct pair *p, uint64_t span) {
    bool never = false, ok = pair_run(p, &never, span);
    check_note("%s", p->why);
    REQUIRE(ok);
}

static void over_the_wire(void) {
    static const struct {
        uint32_t mtu;
        uint16_t max, least;
        uint64_t round_trips; /* From the connection on, until `least` was reached. */
    } cases[] = {{9000, 8952, 8952, 3},
                 {1500, 8952, 1452, 5},
                 {1500, 1452, 1452, 3},
                 {1280, 1452, 1220, 24},
                 {3000, 8952, 2900, 64}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pair p;
        const struct stoq_impairment wire = {
            .delay_ns = 5 * MS, .rate_bps = 500000000, .queue_bytes = 1 << 20, .mtu = cases[i].mtu};
        const struct stoq_config client = {.max_datagram = cases[i].max},
                                 server = {.max_datagram = cases[i].max, .test_profile = true};
        REQUIRE(pair_open(&p, CRYPTO_AES_128_GCM, &client, &server, &wire));
        REQUIRE(pair_ask(
            &p, (struct stoq_perf){.download_bytes = 1ull << 40, .streams = 1, .duration_ns = 60 * S}));
        uint64_t trips = 0;
        while (stats_of(&p, SIM_SERVER).datagram_bytes < cases[i].least && trips < 200) {
            run_for(&p, 10 * MS);
            trips++;
        }
        check_note("case %u: %llu round trips, %u bytes", i, (unsigned long long)trips,
                   stats_of(&p, SIM_SERVER).datagram_bytes);
        CHECK(trips <= cases[i].round_trips);
        uint32_t most = cases[i].mtu - 48 < cases[i].max ? cases[i].mtu - 48 : cases[i].max;
        CHECK(stats_of(&p, SIM_SERVER).datagram_bytes <= most);
        pair_close(&p);
    }
}

/* The loss of probes is no congestion: on a path whose queue never fills the window is never reduced. And a
 * path that shrinks under a transfer stops it for a moment only. */
static void shrinks_under_a_transfer(void) {
    struct pair p;
    struct stoq_impairment wire = {
        .delay_ns = 5 * MS, .rate_bps = 100000000, .queue_bytes = 64 << 20, .mtu = 1500};
    const struct stoq_config client = {.max_datagram = 8952,
                                       .max_data = 1 << 20,
                                       .max_data_limit = 1 << 20,
                                       .max_stream_data = 1 << 20,
                                       .max_stream_data_limit = 1 << 20};
    const struct stoq_config server = {.max_datagram = 8952, .test_profile = true};
    REQUIRE(pair_open(&p, CRYPTO_AES_128_GCM, &client, &server, &wire));
    REQUIRE(
        pair_ask(&p, (struct stoq_perf){.download_bytes = 1ull << 40, .streams = 1, .duration_ns = 60 * S}));
    run_for(&p, 3 * S);
    struct quic_conn_stats s = stats_of(&p, SIM_SERVER);
    CHECK(s.packets_lost > 10);
    uint64_t counters[STOQ_COUNTER_COUNT];
    stoq_counters(p.dp, SIM_SERVER, counters, STOQ_COUNTER_COUNT);
    CHECK_EQ(counters[STOQ_COUNTER_CONGESTION_EVENTS], 0);
    CHECK(s.datagram_bytes >= 1430 && s.datagram_bytes <= 1452);
    wire.mtu = 1280;
    for (uint32_t link = 0; link < 2; link++)
        wire_net_impair(p.sim->net, link, &wire);
    run_for(&p, 3 * S);
    s = stats_of(&p, SIM_SERVER);
    CHECK(s.datagram_bytes >= 1200 && s.datagram_bytes <= 1232);
    uint64_t before = stats_of(&p, SIM_CLIENT).stream_bytes_received;
    run_for(&p, 1 * S);
    CHECK((stats_of(&p, SIM_CLIENT).stream_bytes_received - before) * 8 > 80000000);
    pair_close(&p);
}

static const struct check_case cases[] = {
    {"mtu_any_path", any_path},
    {"mtu_common_paths", common_paths},
    {"mtu_lossy_path", lossy_path},
    {"mtu_bounds", bounds},
    {"mtu_raised_later", raised_later},
    {"mtu_black_hole", black_hole},
    {"mtu_migration", migration},
    {"mtu_over_the_wire", over_the_wire},
    {"mtu_shrinks_under_a_transfer", shrinks_under_a_transfer},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
