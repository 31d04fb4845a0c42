/* Flow control's windows grow to what the path holds, from the defaults, and no further than they may: 40
 * Gbit/s and 50 ms are 250 MB under way. Datagrams of 64 KiB, because bytes are what is measured and packets
 * what costs. */
#include "check.h"

#include "quic/conn.h"
#include "sim/crowd.h"
#include "worker/worker.h"

#define MS QUIC_MS
#define S  QUIC_S

static const struct stoq_config client = {.max_datagram = 65487};
static const struct stoq_config server = {.max_datagram = 65487, .test_profile = true};
static const struct stoq_impairment up = {.delay_ns = 25 * MS};
static const struct stoq_impairment down = {.delay_ns = 25 * MS, .rate_bps = UINT64_C(40000000000)};

static void run(struct crowd *c, uint64_t until_ns) {
    bool ok = crowd_run(c, until_ns);
    check_note("%s", c->why);
    REQUIRE(ok);
}

static void one_stream_fills_40_gbit_50_ms(void) {
    static struct crowd c;
    REQUIRE(crowd_open(&c, 1, 1, 0, &client, &server, &up, &down));
    run(&c, 1100 * MS);
    uint64_t before = crowd_received(&c, 0);
    run(&c, 1200 * MS);
    uint64_t bits = (crowd_received(&c, 0) - before) * 8;
    check_note("%llu bits in 0.1 s", (unsigned long long)bits);
    CHECK(bits >= UINT64_C(4000000000) * 9 / 10);
    const struct quic_conn *conn =
        quic_conn_by_handle(worker_endpoint(c.sim->workers[SIM_CLIENT]), c.ends[SIM_CLIENT][0].handle);
    REQUIRE(conn != NULL);
    CHECK(conn->recv_window > 250000000 && conn->recv_window <= UINT64_C(384) << 20);
    /* A window is a promise, not memory: what is read at once takes a few chunks. */
    struct stoq_pool_stats stats;
    stoq_pool_statistics(c.dp, SIM_CLIENT, &stats);
    CHECK(stats.receive_chunks_large_used < 64);
    /* The sender's records of a window under way, in whole powers of two. */
    stoq_pool_statistics(c.dp, SIM_SERVER, &stats);
    CHECK(stats.metadata_used < 8 << 20);
    crowd_close(&c);
}

/* With a limit the window stops there, and the rate with it: a limit a round trip. */
static void a_limit_holds(void) {
    static struct crowd c;
    struct stoq_config small = client;
    small.max_stream_data_limit = small.max_data_limit = 20 << 20;
    REQUIRE(crowd_open(&c, 1, 1, 0, &small, &server, &up, &down));
    run(&c, 1 * S);
    uint64_t before = crowd_received(&c, 0);
    run(&c, 2 * S);
    uint64_t bytes = crowd_received(&c, 0) - before;
    check_note("%llu bytes in 1 s", (unsigned long long)bytes);
    CHECK(bytes <= UINT64_C(20) * (20 << 20));
    CHECK(bytes >= UINT64_C(20) * (20 << 20) * 8 / 10); /* Seven eighths, but for steps. */
    crowd_close(&c);
}

static const struct check_case cases[] = {
    {"window_one_stream_fills_40_gbit_50_ms", one_stream_fills_40_gbit_50_ms},
    {"window_a_limit_holds", a_limit_holds},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
