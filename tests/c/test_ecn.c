/* ECN (RFC 9000 section 13.4): what the peer's counts prove (csrc/quic/recovery.c), and over the wire CE
 * marks and a path that answers to none. */
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
    struct quic_conn *conn;
    struct quic_space *space;
};

/* A connection that has sent so many packets, all marked. */
static void begin(struct scene *s, uint64_t sent) {
    const struct quic_config config = {.cc = STOQ_CC_CUBIC};
    memset(s, 0, sizeof *s);
    s->host = leaf_endpoint_host(&s->memory);
    s->ep = quic_endpoint_create(&config, &s->host, s->counters, s->drops);
    REQUIRE(s->ep != NULL);
    struct quic_addr peer = {.ip = {0xfd}, .port = 1}, local = {.ip = {0xfd, 1}, .port = 2};
    s->conn = quic_conn_connect(s->ep, 1, &peer, &local, 0, NULL, 0);
    REQUIRE(s->conn != NULL);
    s->space = quic_app(s->conn);
    s->space->ecn_sent = sent;
    CHECK_EQ(s->conn->recovery.ecn, QUIC_ECN_TESTING);
}

static void end(struct scene *s) {
    quic_endpoint_destroy(s->ep);
    CHECK_EQ(s->memory.bytes, 0);
}

struct counts {
    uint64_t newly, ect0, ect1, ce;
    bool none; /* An ACK without counts. */
};

static enum quic_ecn_state hear(struct scene *s, uint64_t now, struct counts c) {
    const struct quic_frame ack = {
        .type = c.none ? QUIC_FRAME_ACK : QUIC_FRAME_ACK_ECN, .ect0 = c.ect0, .ect1 = c.ect1, .ce = c.ce};
    quic_recovery_ecn(s->conn, now, s->space, &ack, c.newly, now - 1);
    return s->conn->recovery.ecn;
}

/* Each of these, after an honest ACK of ten packets of a hundred. */
static void what_fails(void) {
    static const struct {
        struct counts next;
        enum quic_ecn_state then;
        const char *what;
    } cases[] = {
        {{.newly = 10, .ect0 = 20}, QUIC_ECN_CAPABLE, "honest"},
        {{.newly = 10, .ect0 = 15, .ce = 5}, QUIC_ECN_CAPABLE, "marked CE"},
        {{.newly = 10, .ect0 = 10, .ce = 10}, QUIC_ECN_CAPABLE, "all marked CE"},
        {{.newly = 10, .ect0 = 30}, QUIC_ECN_CAPABLE, "an ACK in between was lost"},
        {{.newly = 0, .ect0 = 10}, QUIC_ECN_CAPABLE, "nothing new was marked"},
        {{.newly = 0, .none = true}, QUIC_ECN_CAPABLE, "nothing new was marked, no counts"},
        {{.newly = 10, .ect0 = 19}, QUIC_ECN_FAILED, "one mark erased"},
        {{.newly = 10, .ect0 = 10}, QUIC_ECN_FAILED, "all marks erased"},
        {{.newly = 10, .none = true}, QUIC_ECN_FAILED, "no counts"},
        {{.newly = 10, .ect0 = 9, .ce = 20}, QUIC_ECN_FAILED, "a count went back"},
        {{.newly = 10, .ect0 = 10, .ect1 = 10}, QUIC_ECN_FAILED, "re-marked ECT(1)"},
        {{.newly = 10, .ect0 = 20, .ect1 = 1}, QUIC_ECN_FAILED, "one ECT(1) never sent"},
        {{.newly = 10, .ect0 = 101}, QUIC_ECN_FAILED, "more ECT(0) than was sent"},
        {{.newly = 10, .ect0 = 20, .ce = 81}, QUIC_ECN_FAILED, "more CE than was sent"},
        {{.newly = 10, .ect0 = 20, .ce = UINT64_C(1) << 62}, QUIC_ECN_FAILED, "absurd"},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct scene s;
        begin(&s, 100);
        check_note("%s", cases[i].what);
        CHECK_EQ(hear(&s, 10 * MS, (struct counts){.newly = 10, .ect0 = 10}), QUIC_ECN_CAPABLE);
        CHECK_EQ(hear(&s, 20 * MS, cases[i].next), cases[i].then);
        CHECK_EQ(s.counters[STOQ_COUNTER_ECN_FAILED], cases[i].then == QUIC_ECN_FAILED);
        CHECK_EQ(hear(&s, 30 * MS, (struct counts){.newly = 1, .none = true}),
                 QUIC_ECN_FAILED); /* Stays so. */
        end(&s);
    }
}

/* CE is congestion once a round trip, and only when counts are believed. */
static void ce_is_congestion(void) {
    struct scene s;
    begin(&s, 1000);
    uint64_t window = s.conn->recovery.cc.window = 1 << 20;
    hear(&s, 10 * MS, (struct counts){.newly = 10, .ect0 = 9, .ce = 1});
    CHECK(s.conn->recovery.cc.window < window);
    CHECK_EQ(s.counters[STOQ_COUNTER_CONGESTION_EVENTS], 1);
    window = s.conn->recovery.cc.window;
    hear(&s, 20 * MS, (struct counts){.newly = 10, .ect0 = 19, .ce = 1}); /* No new one. */
    CHECK_EQ(s.conn->recovery.cc.window, window);
    hear(&s, 30 * MS, (struct counts){.newly = 10, .ect0 = 20, .ect1 = 1, .ce = 9}); /* Not believed. */
    CHECK_EQ(s.conn->recovery.cc.window, window);
    end(&s);
}

/* A new path is tested anew; what was counted on the old one proves nothing, and is no congestion here. */
static void a_new_path(void) {
    struct scene s;
    begin(&s, 100);
    CHECK_EQ(hear(&s, 10 * MS, (struct counts){.newly = 10, .none = true}), QUIC_ECN_FAILED);
    hear(&s, 20 * MS, (struct counts){.ect0 = 40}); /* It came back, too late for that path. */
    quic_recovery_new_path(s.conn, false);
    CHECK_EQ(s.conn->recovery.ecn, QUIC_ECN_TESTING);
    s.space->ecn_sent += 10;
    uint64_t window = s.conn->recovery.cc.window;
    CHECK_EQ(hear(&s, 30 * MS, (struct counts){.ect0 = 45, .ce = 5}),
             QUIC_ECN_TESTING); /* Of the old path. */
    CHECK_EQ(s.conn->recovery.cc.window, window);
    CHECK_EQ(hear(&s, 40 * MS, (struct counts){.newly = 10, .ect0 = 45, .ce = 5}), QUIC_ECN_FAILED);
    end(&s);
}

/* ---- over the wire ---- */

static struct quic_conn_stats stats_of(struct pair *p, uint32_t side) {
    struct quic_conn_stats s;
    struct quic_conn *conn =
        quic_conn_by_handle(worker_endpoint(p->sim->workers[side]), p->ends[side].handle);
    memset(&s, 0, sizeof s);
    if (conn != NULL)
        quic_conn_stats(conn, &s);
    return s;
}

/* A bottleneck that marks instead of dropping: full use, no loss. */
static void marks_instead_of_loss(void) {
    static const uint8_t controllers[] = {STOQ_CC_NEWRENO, STOQ_CC_CUBIC};
    for (unsigned i = 0; i < 2; i++) {
        struct pair p;
        const struct stoq_impairment wire = {
            .delay_ns = 5 * MS, .rate_bps = 50000000, .queue_bytes = 1 << 20, .ce_above_bytes = 60000};
        const struct stoq_config client = {0}, server = {.test_profile = true, .congestion = controllers[i]};
        REQUIRE(pair_open(&p, CRYPTO_AES_128_GCM, &client, &server, &wire));
        REQUIRE(pair_ask(
            &p, (struct stoq_perf){.download_bytes = 1ull << 40, .streams = 1, .duration_ns = 4 * S}));
        REQUIRE(pair_run(&p, &p.ends[SIM_CLIENT].done, 5 * S));
        struct quic_conn_stats s = stats_of(&p, SIM_SERVER);
        uint64_t counters[STOQ_COUNTER_COUNT];
        stoq_counters(p.dp, SIM_SERVER, counters, STOQ_COUNTER_COUNT);
        check_note("controller %u", i);
        CHECK(s.ecn_capable);
        CHECK_EQ(s.packets_lost, 0);
        CHECK(counters[STOQ_COUNTER_CONGESTION_EVENTS] >= 2);
        CHECK_EQ(counters[STOQ_COUNTER_ECN_FAILED], 0);
        CHECK(p.result.bytes_received * 8 > 4 * UINT64_C(50000000) * 8 / 10);
        pair_close(&p);
    }
}

struct tap {
    uint64_t marked, plain, from;
};

static void watch(void *ctx, const struct wire_step *step) {
    struct tap *tap = ctx;
    if (step->fate != WIRE_SENT || step->link != SIM_SERVER)
        return;
    tap->marked += step->ecn == 2;
    tap->plain += step->ecn == 0;
}

/* Nothing comes back: after three probe timeouts no more marks, lest it is they that are not let through. */
static void silence(void) {
    struct pair p;
    struct tap tap = {0};
    struct stoq_impairment wire = {.delay_ns = 5 * MS};
    const struct stoq_config client = {0}, server = {.test_profile = true};
    REQUIRE(pair_open(&p, CRYPTO_AES_128_GCM, &client, &server, &wire));
    bool never = false;
    REQUIRE(pair_run(&p, &never, 1 * S));
    struct quic_conn *conn =
        quic_conn_by_handle(worker_endpoint(p.sim->workers[SIM_SERVER]), p.ends[SIM_SERVER].handle);
    REQUIRE(conn != NULL);
    CHECK_EQ(conn->recovery.ecn, QUIC_ECN_CAPABLE);
    quic_recovery_new_path(conn, false); /* As after a move: untested. */
    wire_net_set_tap(p.sim->net, watch, &tap);
    wire.loss_ppm = 1000000;
    wire_net_impair(p.sim->net, SIM_SERVER, &wire);
    REQUIRE(pair_ask(&p, (struct stoq_perf){.download_bytes = 10000, .streams = 1, .requests = 1}));
    REQUIRE(pair_run(&p, &never, 10 * S));
    CHECK(tap.marked > 0 && tap.plain > 0);
    CHECK_EQ(conn->recovery.ecn, QUIC_ECN_FAILED);
    wire.loss_ppm = 0;
    wire_net_impair(p.sim->net, SIM_SERVER, &wire);
    REQUIRE(pair_run(&p, &p.ends[SIM_CLIENT].done, 10 * S));
    CHECK_EQ(p.result.bytes_received, 10000);
    pair_close(&p);
}

static const struct check_case cases[] = {
    {"ecn_what_fails", what_fails}, {"ecn_ce_is_congestion", ce_is_congestion},
    {"ecn_a_new_path", a_new_path}, {"ecn_marks_instead_of_loss", marks_instead_of_loss},
    {"ecn_silence", silence},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
