/* What idle connections cost: memory of each, and the speed of an active one beside them. As `engine`, over
 * the `wire` backend, both ends on this one core, on a virtual clock.
 *
 *      idle [--connections N] [--trials N] [--mib N] [--datagram BYTES] [--crypto NAME]
 *           [--cipher NAME] [--core N]
 *
 *      alone    client ── 1 connection ──────────▶ server        taken in turns in one process: alone,
 *      beside   client ── 1 + N connections ─────▶ server        beside, beside, alone
 *
 * Memory is the server worker's arena (connections, keys, tables; blocks counted as large as the arena makes
 * them) once all N have rested: the difference to before, divided by N. The clients' ends are in another
 * worker's arena. Speed is by processor time, which neighbours on the machine blur less than the clock.
 * Writes one JSON object.
 */
#include <getopt.h>
#include <string.h>

#include "../quic/conn.h"
#include "../sim/herd.h"
#include "../worker/private.h"
#include "bench.h"

#define MAX_TRIALS 100
#define DELAY_NS   50000u
#define SETTLE_NS  (5 * QUIC_REST_NS)
#define IDLE_NS    (UINT64_C(24) * 3600 * QUIC_S) /* Idle timeout: nobody goes while we measure. */
#define FOR_EVER   (UINT64_C(3600) * QUIC_S)
#define TURNS      200000u
#define WAKES      1000u

struct options {
    uint32_t connections, trials, mib, datagram_bytes;
    const char *crypto;
    int core, aead;
};

/* Bytes of all connections' parts in a worker's arena. */
struct parts {
    uint64_t connection, keys, rings, streams, handshake, host, tables, controller;
    uint64_t used;    /* All there is. */
    uint64_t touched; /* What of the arena was ever used, and so is in memory. */
};

static uint64_t block(const void *p, size_t bytes) {
    return p ? arena_class_bytes(arena_class(bytes)) : 0;
}

static uint64_t map_bytes(const struct quic_map *map) {
    return block(map->v, ((size_t)map->mask + 1) * sizeof *map->v);
}

static uint64_t key_bytes(const struct quic_keys *k) {
    const struct crypto_provider *c = k->crypto;
    return block(k->send.key.aead, c->aead_bytes) + block(k->recv.key.aead, c->aead_bytes) +
           block(k->next.aead, c->aead_bytes) + block(k->previous.aead, c->aead_bytes) +
           block(k->send.hp, c->hp_bytes) + block(k->recv.hp, c->hp_bytes);
}

static void add_conn(struct parts *p, const struct quic_conn *conn) {
    const struct quic_sent *sent = &conn->app.sent;
    p->connection += block(conn, sizeof *conn);
    p->keys += key_bytes(&conn->app.keys);
    p->rings += block(sent->packets, ((size_t)sent->packet_mask + 1) * sizeof *sent->packets) +
                block(sent->frames, ((size_t)sent->frame_mask + 1) * sizeof *sent->frames) +
                block(sent->rates, ((size_t)sent->packet_mask + 1) * sizeof *sent->rates) +
                block(conn->app.crypto.send, conn->app.crypto.send_cap) +
                block(conn->app.crypto.recv, conn->app.crypto.recv_cap);
    p->streams += block(conn->buckets, ((size_t)conn->bucket_mask + 1) * sizeof *conn->buckets) +
                  conn->stream_count * block(conn, sizeof(struct quic_stream));
    p->handshake += block(conn->handshake, sizeof *conn->handshake);
    p->controller +=
        block(conn->recovery.cc.bbr, quic_cc_state_bytes(conn->ep->config.cc) + !conn->recovery.cc.bbr);
}

static struct parts parts_of(const struct worker *w) {
    const struct quic_endpoint *ep = w->ep;
    struct parts p = {.used = w->arena.used, .touched = w->arena.fresh};
    for (uint32_t i = 0; i < ep->slot_count; i++)
        if (ep->slots[i])
            add_conn(&p, ep->slots[i]);
    for (const struct worker_conn *wc = w->conns; wc; wc = wc->next)
        p.host += block(wc, sizeof *wc);
    p.tables = map_bytes(&ep->cids) + map_bytes(&ep->odcids) + map_bytes(&ep->resets) +
               block(ep->slots, ep->slot_count * sizeof(*ep->slots));
    return p;
}

static double download(struct pair *p, uint32_t mib) {
    uint64_t bytes = (uint64_t)mib << 20;
    if (!pair_ask(p, (struct stoq_perf){.download_bytes = bytes, .streams = 1, .requests = 1}))
        bench_fail("%s", p->why);
    int64_t start = bench_cpu_ns();
    if (!pair_run(p, &p->ends[SIM_CLIENT].done, FOR_EVER) || p->result.bytes_received != bytes)
        bench_fail("the transfer failed: %s", p->why);
    return (double)bytes * 8 / (double)(bench_cpu_ns() - start);
}

/* A server's turn that has nothing to do, a microsecond of virtual time after the last. */
static double idle_turn(struct pair *p) {
    int64_t start = bench_cpu_ns();
    for (uint32_t i = 0; i < TURNS; i++) {
        p->sim->now_ns += 1000;
        sim_turn(p->sim, SIM_SERVER);
    }
    return (double)(bench_cpu_ns() - start) / TURNS;
}

/* What it costs a rested connection that there is a packet: its keys are expanded. */
static double wake(struct worker *w, uint32_t connections) {
    uint32_t n = 0, wanted = connections < WAKES ? connections : WAKES;
    int64_t took = 0;
    for (const struct worker_conn *wc = w->conns; wc && n < wanted; wc = wc->next) {
        if (!wc->conn->rested)
            continue;
        int64_t start = bench_now_ns();
        if (!quic_conn_wake(wc->conn))
            bench_fail("no memory to wake a connection");
        took += bench_now_ns() - start;
        quic_conn_rest_keys(wc->conn);
        wc->conn->rested = true;
        n++;
    }
    return n ? (double)took / n : 0;
}

static void settle(struct pair *p) {
    static const bool never = false;
    if (!pair_run(p, &never, SETTLE_NS))
        bench_fail("%s", p->why);
}

static void open_pair(struct pair *p, const struct options *o, uint32_t connections) {
    struct stoq_config config = {
        .crypto = o->crypto,
        .max_datagram = (uint16_t)o->datagram_bytes,
        .max_connections = connections + 64,
        .idle_timeout_ns = IDLE_NS,
        /* Address space; handshakes want more than what is left of them. */
        .metadata_bytes = ((uint64_t)256 << 20) + connections * UINT64_C(6144),
    };
    struct stoq_config server = config;
    server.test_profile = true;
    if (!pair_open(p, o->aead, &config, &server, &(struct stoq_impairment){.delay_ns = DELAY_NS}))
        bench_fail("%s", p->why);
}

static void print_parts(const struct parts *was, const struct parts *is, uint32_t n) {
#define EACH(part) ((double)(is->part - was->part) / n)
    double known = EACH(connection) + EACH(keys) + EACH(rings) + EACH(streams) + EACH(handshake) +
                   EACH(host) + EACH(tables) + EACH(controller);
    printf("\"bytes_each\": %.1f, \"bytes_by_part\": {\"connection\": %.1f, \"expanded_keys\": %.1f, "
           "\"rings\": %.1f, \"streams\": %.1f, \"handshake\": %.1f, \"congestion\": %.1f, \"worker\": %.1f, "
           "\"tables\": %.1f, \"other\": %.1f}, \"touched_each\": %.1f",
           EACH(used), EACH(connection), EACH(keys), EACH(rings), EACH(streams), EACH(handshake),
           EACH(controller), EACH(host), EACH(tables), EACH(used) - known, EACH(touched));
#undef EACH
}

static const char *const ciphers[CRYPTO_AEAD_COUNT] = {[CRYPTO_AES_128_GCM] = "aes128",
                                                       [CRYPTO_AES_256_GCM] = "aes256",
                                                       [CRYPTO_CHACHA20_POLY1305] = "chacha20"};

static int cipher(const char *name) {
    for (int i = 0; i < CRYPTO_AEAD_COUNT; i++)
        if (strcmp(name, ciphers[i]) == 0)
            return i;
    bench_fail("--cipher is aes128, aes256 or chacha20, not %s", name);
}

static struct options parse(int argc, char **argv) {
    enum { CONNECTIONS = 1, TRIALS, MIB, DATAGRAM, CRYPTO, CIPHER, CORE, HELP };
    static const struct option known[] = {
        {"connections", required_argument, NULL, CONNECTIONS},
        {"trials", required_argument, NULL, TRIALS},
        {"mib", required_argument, NULL, MIB},
        {"datagram", required_argument, NULL, DATAGRAM},
        {"crypto", required_argument, NULL, CRYPTO},
        {"cipher", required_argument, NULL, CIPHER},
        {"core", required_argument, NULL, CORE},
        {"help", no_argument, NULL, HELP},
        {0},
    };
    struct options o = {
        .connections = 100000, .trials = 5, .mib = 512, .datagram_bytes = 1350, .crypto = "auto", .core = -1};
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case CONNECTIONS:
            o.connections = (uint32_t)bench_number("--connections", optarg, 1, 1000000);
            break;
        case TRIALS:
            o.trials = (uint32_t)bench_number("--trials", optarg, 1, MAX_TRIALS);
            break;
        case MIB:
            o.mib = (uint32_t)bench_number("--mib", optarg, 1, 1 << 20);
            break;
        case DATAGRAM:
            o.datagram_bytes = (uint32_t)bench_number("--datagram", optarg, 1200, 65527);
            break;
        case CRYPTO:
            o.crypto = optarg;
            break;
        case CIPHER:
            o.aead = cipher(optarg);
            break;
        case CORE:
            o.core = (int)bench_number("--core", optarg, 0, 1023);
            break;
        default:
            fprintf(c == HELP ? stdout : stderr,
                    "usage: idle [--connections N] [--trials N] [--mib N] [--datagram BYTES] "
                    "[--crypto NAME] [--cipher aes128|aes256|chacha20] [--core N]\n");
            exit(c == HELP ? 0 : 2);
        }
    }
    return o;
}

int main(int argc, char **argv) {
    struct options o = parse(argc, argv);
    static double alone[MAX_TRIALS], beside[MAX_TRIALS];
    static struct pair one, many;
    bench_pin(o.core);
    open_pair(&one, &o, 0);
    open_pair(&many, &o, o.connections);
    settle(&many);
    struct worker *server = many.sim->workers[SIM_SERVER];
    const struct parts before = parts_of(server);
    int64_t start = bench_now_ns();
    if (!herd_open(&many, o.aead, o.connections))
        bench_fail("%s", many.why);
    double open_s = (double)(bench_now_ns() - start) / 1e9;
    const struct parts after = parts_of(server);
    uint64_t timers = server->wheel.armed;
    uint32_t awake = server->ep->awake;
    double wake_ns = wake(server, o.connections);
    double turn_alone = idle_turn(&one), turn_beside = idle_turn(&many);
    download(&one, o.mib);
    download(&many, o.mib);
    for (uint32_t i = 0; i < o.trials; i++) {
        double first = download(&one, o.mib), second = download(&many, o.mib);
        beside[i] = (second + download(&many, o.mib)) / 2;
        alone[i] = (first + download(&one, o.mib)) / 2;
    }
    printf("{\"connections\": %u, \"cipher\": \"%s\", \"datagram_bytes\": %u, \"mib\": %u, ", o.connections,
           ciphers[o.aead], o.datagram_bytes, o.mib);
    print_parts(&before, &after, o.connections);
    printf(", \"connection_block_bytes\": %zu, \"timers\": %llu, \"awake\": %u, \"open_s\": %.2f, "
           "\"wake_ns\": %.1f, \"turn_ns_alone\": %.1f, \"turn_ns_beside\": %.1f, \"trials\": [",
           sizeof(struct quic_conn), (unsigned long long)timers, awake, open_s, wake_ns, turn_alone,
           turn_beside);
    for (uint32_t i = 0; i < o.trials; i++)
        printf("%s{\"alone_gbps\": %.3f, \"beside_gbps\": %.3f}", i ? ", " : "", alone[i], beside[i]);
    printf("]}\n");
    pair_close(&many);
    pair_close(&one);
    return 0;
}
