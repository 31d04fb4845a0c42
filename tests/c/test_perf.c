/* The `perf` protocol over two simulated workers: downloads, uploads, many small requests, a test bounded by
 * time, a connection that ends under it, and a server that was not asked to serve it. TLS is the script of
 * csrc/sim. */
#include "check.h"

#include "crypto/crypto.h"
#include "sim/pair.h"
#include "stoq.h"
#include "tables.h"

#define MS UINT64_C(1000000)
#define S  (1000 * MS)

static void run(struct pair *p, const bool *flag, uint64_t span) {
    bool ok = pair_run(p, flag, span);
    check_note("%s", p->why);
    REQUIRE(ok);
}

static void command(struct pair *p, uint32_t side, struct stoq_command c, const void *data, uint32_t len) {
    REQUIRE(pair_command(p, side, c, data, len));
}

static void start(struct pair *p, const struct stoq_config *client, const struct stoq_config *server,
                  const struct stoq_impairment *wire) {
    bool ok = pair_open(p, CRYPTO_AES_256_GCM, client, server, wire);
    check_note("%s", p->why);
    REQUIRE(ok);
}

static void ask(struct pair *p, struct stoq_perf perf) {
    REQUIRE(pair_ask(p, perf));
}

/* After the last connection is gone nothing may be left of it. */
static void finish(struct pair *p) {
    bool never = false;
    command(p, 0, (struct stoq_command){.type = STOQ_COMMAND_CLOSE, .conn = p->ends[0].handle}, NULL, 0);
    run(p, &never, 120 * S);
    CHECK(p->ends[0].closed);
    for (uint32_t side = 0; side < 2; side++) {
        struct stoq_pool_stats stats;
        stoq_pool_statistics(p->dp, side, &stats);
        CHECK_EQ(stats.connections, 0);
        CHECK_EQ(stats.receive_chunks_small_used, 0);
        CHECK_EQ(stats.receive_chunks_large_used, side); /* The server's pattern stays. */
        CHECK_EQ(stoq_send_free_bytes(p->dp, side), UINT64_C(64) << 20);
        CHECK_EQ(p->ends[side].stream_events, 0); /* All of it happened in C. */
    }
    pair_close(p);
}

static const struct stoq_config client_config = {0};
static const struct stoq_config server_config = {.test_profile = true};
static const struct stoq_impairment lan = {.delay_ns = 100000};

static void download_and_upload(void) {
    struct pair p;
    start(&p, &client_config, &server_config, &lan);
    ask(&p,
        (struct stoq_perf){.download_bytes = 30000000, .upload_bytes = 5000000, .streams = 2, .requests = 3});
    run(&p, &p.ends[0].done, 60 * S);
    REQUIRE(p.ends[0].done);
    CHECK_EQ(p.result.requests, 3);
    CHECK_EQ(p.ends[0].failed, 0);
    CHECK_EQ(p.result.bytes_received, 90000000);
    CHECK_EQ(p.result.bytes_sent, 3 * 5000008);
    CHECK(p.result.duration_ns > 0 && p.result.latency_max_ns <= p.result.duration_ns);
    finish(&p);
}

static void many_small_requests(void) {
    struct pair p;
    start(&p, &client_config, &server_config, &lan);
    for (int round = 1; round <= 2;
         round++) { /* A second test on the connection goes on with the next stream. */
        ask(&p, (struct stoq_perf){.download_bytes = 512, .streams = 10, .requests = 2000});
        run(&p, &p.ends[0].done, 60 * S);
        REQUIRE(p.ends[0].done);
        CHECK_EQ(p.result.requests, 2000);
        CHECK_EQ(p.result.bytes_received, 2000 * 512);
        CHECK(p.result.latency_min_ns >= 200000); /* A round trip. */
        CHECK(p.result.latency_min_ns <= p.result.latency_p50_ns &&
              p.result.latency_p50_ns <= p.result.latency_p90_ns &&
              p.result.latency_p90_ns <= p.result.latency_p99_ns &&
              p.result.latency_p99_ns <= p.result.latency_max_ns);
    }
    ask(&p, (struct stoq_perf){
                .download_bytes = 0, .streams = 1, .requests = 1}); /* Nothing but FIN comes back. */
    run(&p, &p.ends[0].done, 60 * S);
    CHECK(p.ends[0].done && p.result.requests == 1 && p.result.bytes_received == 0);
    finish(&p);
}

static void bounded_by_time(void) {
    struct pair p;
    start(&p, &client_config, &server_config,
          &(struct stoq_impairment){.delay_ns = 2 * MS, .rate_bps = 100000000});
    ask(&p, (struct stoq_perf){.download_bytes = UINT64_C(1) << 40, .streams = 1, .duration_ns = S});
    run(&p, &p.ends[0].done, 5 * S);
    REQUIRE(p.ends[0].done);
    CHECK_EQ(p.result.requests, 0);
    CHECK(p.result.duration_ns >= S && p.result.duration_ns < S + MS);
    CHECK(p.result.bytes_received > 5000000 && p.result.bytes_received < 12500000);
    ask(&p, (struct stoq_perf){.upload_bytes = UINT64_C(1) << 40, .streams = 3, .duration_ns = S});
    run(&p, &p.ends[0].done, 5 * S);
    REQUIRE(p.ends[0].done);
    CHECK(p.result.bytes_sent > 5000000 && p.result.bytes_sent < 12500000);
    finish(&p);
}

static void connection_ends_under_it(void) {
    struct pair p;
    /* A rate: virtual time would hardly pass without one. */
    start(&p, &client_config, &server_config,
          &(struct stoq_impairment){.delay_ns = 2 * MS, .rate_bps = 1000000000});
    ask(&p, (struct stoq_perf){.download_bytes = UINT64_C(1) << 40, .streams = 5, .requests = 5});
    bool never = false;
    run(&p, &never, 20 * MS);
    command(&p, 1,
            (struct stoq_command){.type = STOQ_COMMAND_CLOSE, .flags = STOQ_APP, .conn = p.ends[1].handle},
            NULL, 0);
    run(&p, &p.ends[0].closed, 5 * S);
    CHECK(p.ends[0].done && p.ends[0].closed);
    CHECK(p.result.bytes_received > 0);
    CHECK_EQ(p.result.requests, 0);
    finish(&p);
}

static void refused(void) {
    struct pair p;
    uint64_t counters[STOQ_COUNTER_COUNT];
    start(&p, &client_config, &server_config, &lan);
    ask(&p, (struct stoq_perf){.streams = 0, .requests = 1});
    ask(&p, (struct stoq_perf){.streams = 1});
    command(&p, 0, (struct stoq_command){.type = STOQ_COMMAND_PERF_START, .conn = p.ends[0].handle}, "short",
            5);
    bool never = false;
    run(&p, &never, 10 * MS);
    stoq_counters(p.dp, 0, counters, STOQ_COUNTER_COUNT);
    CHECK_EQ(counters[STOQ_COUNTER_COMMANDS_STALE], 3);
    CHECK(!p.ends[0].done);
    finish(&p);
}

/* Without the test profile the server's application sees the streams: nothing is served behind its back. */
static void not_without_the_test_profile(void) {
    struct pair p;
    start(&p, &client_config, &client_config, &lan);
    ask(&p, (struct stoq_perf){.download_bytes = 1000, .streams = 1, .requests = 1});
    run(&p, &p.ends[0].done, 1 * S);
    CHECK(!p.ends[0].done);
    CHECK(p.ends[1].stream_events > 0);
    pair_close(&p);
}

static const struct check_case cases[] = {
    {"download and upload", download_and_upload},
    {"many small requests", many_small_requests},
    {"bounded by time", bounded_by_time},
    {"connection ends under it", connection_ends_under_it},
    {"refused", refused},
    {"not without the test profile", not_without_the_test_profile},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
