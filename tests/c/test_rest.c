/* Connections at rest: what the handshake needed goes when it is confirmed, the rest when nothing has
 * happened for a while; what was given back is made anew when there is something to do, also with too many
 * awake and with memory short. Two simulated workers, TLS is the script of csrc/sim. */
#include "check.h"

#include "quic/conn.h"
#include "quic/quic_check.h"
#include "sim/herd.h"
#include "worker/private.h"

#define S  QUIC_S
#define MS QUIC_MS

static const struct stoq_impairment lan = {.delay_ns = 100000};
static const bool never = false;

static struct quic_conn *conn_of(struct pair *p, uint32_t side) {
    struct worker *w = p->sim->workers[side];
    return w->conns ? w->conns->conn : NULL;
}

static void start(struct pair *p, const char *crypto, int aead, const struct stoq_impairment *wire) {
    const struct stoq_config client = {
        .crypto = crypto, .idle_timeout_ns = 3600 * S, .metadata_bytes = 8 << 20};
    struct stoq_config server = client;
    server.test_profile = true;
    bool ok = pair_open(p, aead, &client, &server, wire);
    check_note("%s, cipher %d: %s", crypto, aead, p->why);
    REQUIRE(ok);
}

static void run(struct pair *p, const bool *flag, uint64_t span) {
    REQUIRE(pair_run(p, flag, span));
    for (uint32_t side = 0; side < 2; side++) {
        char why[200];
        struct quic_conn *conn = conn_of(p, side);
        if (conn && !quic_conn_check(conn, why, sizeof why))
            check_failed(__FILE__, __LINE__, "side %u: %s", side, why);
    }
}

static void transfer(struct pair *p, uint64_t bytes) {
    REQUIRE(pair_ask(
        p,
        (struct stoq_perf){.download_bytes = bytes, .upload_bytes = bytes / 2, .streams = 2, .requests = 4}));
    run(p, &p->ends[0].done, 600 * S);
    REQUIRE(p->ends[0].done);
    CHECK_EQ(p->ends[0].failed, 0);
    CHECK_EQ(p->result.bytes_received, 4 * bytes);
}

static bool expanded(const struct quic_keys *k) {
    return k->send.key.aead || k->recv.key.aead || k->next.aead || k->previous.aead || k->send.hp ||
           k->recv.hp;
}

static void check_rested(struct pair *p) {
    for (uint32_t side = 0; side < 2; side++) {
        const struct quic_conn *conn = conn_of(p, side);
        CHECK(!conn->handshake && conn->rested && !conn->awake);
        CHECK(conn->spaces[QUIC_SPACE_INITIAL] == &quic_space_gone);
        CHECK(conn->spaces[QUIC_SPACE_HANDSHAKE] == &quic_space_gone);
        CHECK(!expanded(&conn->app.keys) && quic_can_send(&conn->app.keys) &&
              quic_can_receive(&conn->app.keys));
        CHECK(!conn->app.sent.packets && !conn->app.sent.frames && !conn->buckets);
        CHECK(!conn->app.crypto.send && !conn->app.crypto.recv);
        CHECK_EQ(conn->app.received.cap, QUIC_RANGES_INLINE);
        CHECK_EQ(conn->ep->awake, 0);
    }
}

/* With every provider and cipher: rest, work, rest, and no more memory than after the first time. */
static void rests_and_wakes(void) {
    const struct crypto_provider *providers[4];
    size_t n = crypto_providers(providers, 4);
    for (size_t i = 0; i < n; i++) {
        for (int aead = 0; aead < CRYPTO_AEAD_COUNT; aead++) {
            struct pair p;
            start(&p, providers[i]->name, aead, &lan);
            run(&p, &never, 5 * S);
            check_rested(&p);
            size_t used[2];
            for (int round = 0; round < 3; round++) {
                transfer(&p, 200000);
                CHECK(conn_of(&p, SIM_CLIENT)->awake && !conn_of(&p, SIM_CLIENT)->rested);
                run(&p, &never, 5 * S);
                check_rested(&p);
                for (uint32_t side = 0; side < 2; side++) {
                    size_t now = p.sim->workers[side]->arena.used;
                    CHECK(round == 0 || now == used[side]);
                    used[side] = now;
                }
            }
            pair_close(&p);
        }
    }
}

/* Loss and reordering leave gaps, late packets and probes; a connection rests all the same. */
static void rests_after_a_bad_path(void) {
    struct pair p;
    start(&p, "auto", CRYPTO_AES_128_GCM,
          &(struct stoq_impairment){
              .delay_ns = 5 * MS, .loss_ppm = 50000, .reorder_ppm = 50000, .reorder_ns = 3 * MS});
    for (int round = 0; round < 10; round++) {
        transfer(&p, 100000);
        run(&p, &never, 60 * S);
        check_rested(&p);
    }
    pair_close(&p);
}

/* The key phase of a connection at rest changes, by either end: secrets go on where they were. */
static void key_update_at_rest(void) {
    struct pair p;
    start(&p, "auto", CRYPTO_AES_256_GCM, &lan);
    for (uint32_t round = 0; round < 4; round++) {
        transfer(&p, 20000);
        run(&p, &never, 5 * S);
        check_rested(&p);
        uint32_t side = round & 1;
        REQUIRE(pair_command(
            &p, side, (struct stoq_command){.type = STOQ_COMMAND_KEY_UPDATE, .conn = p.ends[side].handle},
            NULL, 0));
        run(&p, &never, 10 * S);
        check_rested(&p);
        for (uint32_t i = 0; i < 2; i++)
            CHECK_EQ(conn_of(&p, i)->key_phase, (round + 1) & 1);
        CHECK_EQ(conn_of(&p, !side)->key_updates, round + 1);
    }
    pair_close(&p);
}

/* Keys taken away in the middle of a transfer are expanded again, whatever the phase. */
static void keys_evicted_under_way(void) {
    struct pair p;
    start(&p, "auto", CRYPTO_AES_128_GCM, &lan);
    REQUIRE(pair_ask(
        &p,
        (struct stoq_perf){.download_bytes = 2000000, .upload_bytes = 300000, .streams = 1, .requests = 1}));
    for (int i = 0; i < 2000 && !p.ends[0].done; i++) {
        run(&p, &p.ends[0].done, 70000);
        for (uint32_t side = 0; side < 2; side++) {
            quic_conn_rest_keys(conn_of(&p, side));
            CHECK(!expanded(&conn_of(&p, side)->app.keys) && !conn_of(&p, side)->awake);
            if (i % 5 == 4)
                quic_conn_key_update(conn_of(&p, side), p.sim->now_ns);
        }
    }
    run(&p, &p.ends[0].done, 10 * S);
    CHECK(p.ends[0].done && p.result.bytes_received == 2000000);
    CHECK(conn_of(&p, 0)->key_updates > 0);
    pair_close(&p);
}

/* No more are awake than may be; who is put to sleep wakes when it has to. */
static void awake_are_bounded(void) {
    struct pair p;
    start(&p, "auto", CRYPTO_AES_128_GCM, &lan);
    struct quic_endpoint *ends[2] = {p.sim->workers[0]->ep, p.sim->workers[1]->ep};
    ends[0]->awake_limit = ends[1]->awake_limit = 3;
    CHECK(herd_open(&p, CRYPTO_AES_128_GCM, 150));
    check_note("%s", p.why);
    CHECK_EQ(ends[1]->connections, 151);
    CHECK(ends[0]->awake == 0 && ends[1]->awake == 0); /* Long since at rest. */
    uint32_t woken = 0;
    for (uint32_t i = 0; i < ends[1]->slot_count; i++) {
        struct quic_conn *conn = ends[1]->slots[i];
        if (!conn)
            continue;
        CHECK(quic_conn_wake(conn) && conn->awake);
        woken++;
        CHECK_EQ(ends[1]->awake, woken < 3 ? woken : 3);
        CHECK(ends[1]->awake_last == conn);
    }
    CHECK_EQ(woken, 151);
    struct quic_conn *first = ends[1]->awake_first;
    CHECK(first->awake_next && first->awake_next->awake_next == ends[1]->awake_last);
    quic_conn_rest_keys(first->awake_next); /* Out of the middle. */
    CHECK(ends[1]->awake == 2 && first->awake_next == ends[1]->awake_last);
    transfer(&p, 50000);
    pair_close(&p);
}

/* Without memory to wake a packet is dropped and counted; others' keys are given up for it where there are
 * some. */
static void no_memory_to_wake(void) {
    static struct {
        void *p;
        size_t bytes;
    } taken[60000];
    struct pair p;
    start(&p, "auto", CRYPTO_AES_128_GCM, &lan);
    CHECK(herd_open(&p, CRYPTO_AES_128_GCM, 2));
    struct worker *w = p.sim->workers[SIM_SERVER];
    struct quic_conn *a = w->conns->conn, *b = w->conns->next->conn;
    uint32_t n = 0;
    REQUIRE(quic_conn_wake(a));
    for (unsigned c = ARENA_CLASSES; c-- > 0;) {
        size_t bytes = arena_class_bytes(c);
        for (void *m; n < 60000 && (m = arena_alloc(&w->arena, bytes)) != NULL; n++)
            taken[n].p = m, taken[n].bytes = bytes;
    }
    REQUIRE(n < 60000);
    CHECK(quic_conn_wake(b) && b->awake && !a->awake);
    CHECK(expanded(&b->app.keys) && !expanded(&a->app.keys));
    /* Even those are gone: nothing can be woken, and half a set of keys is not kept. */
    quic_conn_rest_keys(b);
    void *last = arena_alloc(&w->arena, 1024);
    CHECK(last && !quic_conn_wake(b) && !b->awake && !expanded(&b->app.keys));
    uint64_t dropped = w->shared->drops[STOQ_DROP_NO_MEMORY];
    while (arena_alloc(&w->arena, 64))
        ; /* The pair's connection has a packet coming. */
    REQUIRE(pair_ask(&p, (struct stoq_perf){.download_bytes = 1000, .streams = 1, .requests = 1}));
    run(&p, &p.ends[0].done, 2 * S);
    CHECK(!p.ends[0].done && w->shared->drops[STOQ_DROP_NO_MEMORY] > dropped);
    for (uint32_t i = 0; i < n; i++)
        arena_free(&w->arena, taken[i].p, taken[i].bytes);
    run(&p, &p.ends[0].done, 60 * S);
    CHECK(p.ends[0].done && p.result.bytes_received == 1000);
    pair_close(&p);
}

/* An idle connection's timer waits for its idle timeout and nothing else. */
static void one_timer_is_left(void) {
    struct pair p;
    start(&p, "auto", CRYPTO_AES_128_GCM, &lan);
    run(&p, &never, 10 * S);
    uint64_t turns = p.sim->turns;
    const struct quic_conn *conn = conn_of(&p, SIM_SERVER);
    CHECK_EQ(p.sim->workers[SIM_SERVER]->wheel.armed, 1);
    CHECK_EQ(conn->timer.deadline_ns, conn->idle_deadline_ns);
    run(&p, &never, 3000 * S);
    CHECK(p.sim->turns - turns < 40); /* Where the wheel takes a slot apart. */
    CHECK_EQ(p.sim->workers[SIM_SERVER]->ep->connections, 1);
    pair_close(&p);
}

static const struct check_case cases[] = {
    {"rests and wakes", rests_and_wakes},       {"rests after a bad path", rests_after_a_bad_path},
    {"key update at rest", key_update_at_rest}, {"keys evicted under way", keys_evicted_under_way},
    {"awake are bounded", awake_are_bounded},   {"no memory to wake", no_memory_to_wake},
    {"one timer is left", one_timer_is_left},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
