/* The engine alone: a download over the `wire` backend, both ends on this one core, without a kernel, without
 * a copy on the way (the wire passes the sender's buffer to the receiver), on a virtual clock.
 *
 *      engine [--json] [--only] [--trials N] [--mib N] [--warm-up MIB] [--datagram BYTES]
 *             [--crypto NAME] [--cipher NAME] [--core N] [--requests N]
 *
 * With --requests not a download but N requests of 512 bytes there and back, one after the other, a stream
 * each.
 *
 * Both ends' turns are timed apart, so that there is a figure for each direction of a core that does nothing
 * else. Under callgrind the same run gives instructions for each packet (tests/python/test_instructions.py).
 */
#include <getopt.h>
#include <string.h>

#include "../crypto/crypto.h"
#include "../sim/pair.h"
#include "bench.h"

#define MAX_TRIALS 100
#define DELAY_NS   50000u                      /* One way; a window of some hundred packets. */
#define FOR_EVER   (UINT64_C(3600) * BENCH_NS) /* Virtual. */

/* By enum crypto_aead; the names are those of `stoq bench`. */
static const char *const ciphers[CRYPTO_AEAD_COUNT] = {[CRYPTO_AES_128_GCM] = "aes128",
                                                       [CRYPTO_AES_256_GCM] = "aes256",
                                                       [CRYPTO_CHACHA20_POLY1305] = "chacha20"};

struct trial {
    double gbps, sender_ns, receiver_ns; /* Of payload; of each packet. */
    uint64_t packets, trains, acks;
    double alone_gbps, seal_ns, open_ns; /* The yardstick's. */
};

struct options {
    uint32_t mib, warm_up_mib, trials, datagram_bytes, requests;
    const char *crypto;
    int core, aead;
    bool json, only;
};

static uint64_t counter(struct pair *p, uint32_t side, enum stoq_counter which) {
    uint64_t all[STOQ_COUNTER_COUNT];
    stoq_counters(p->dp, side, all, STOQ_COUNTER_COUNT);
    return all[which];
}

/* The yardstick: trains of such packets sealed, masked and opened in place by the same provider, and nothing
 * else. What the engine adds to that is the protocol. */
static void alone(const struct options *o, struct trial *t) {
    enum { HEADER = 13, STATE = 4096 }; /* First byte, id, four bytes of packet number. */
    static _Alignas(64) uint8_t aead[STATE], hp[STATE];
    const struct crypto_provider *c = crypto_provider_by_name(o->crypto);
    const uint8_t key[32] = {1};
    if (!c || c->aead_bytes > STATE || c->hp_bytes > STATE || !c->aead_init(aead, o->aead, key) ||
        !c->hp_init(hp, o->aead, key))
        bench_fail("crypto provider %s has no %s here", o->crypto, ciphers[o->aead]);
    size_t len = o->datagram_bytes - HEADER - CRYPTO_TAG_BYTES;
    uint32_t train =
        65535 / o->datagram_bytes < CRYPTO_HP_BATCH ? 65535 / o->datagram_bytes : CRYPTO_HP_BATCH;
    uint8_t *buffer = calloc(train, o->datagram_bytes), nonce[CRYPTO_NONCE_BYTES] = {0};
    uint8_t masks[CRYPTO_HP_BATCH][CRYPTO_MASK_BYTES];
    const uint8_t *samples[CRYPTO_HP_BATCH];
    if (!buffer)
        bench_fail("no memory");
    int64_t sealing = 0, opening = 0, until = bench_now_ns() + BENCH_NS / 5;
    uint64_t packets = 0, bad = 0;
    for (uint32_t i = 0; i < train; i++)
        samples[i] = buffer + (size_t)i * o->datagram_bytes + HEADER;
    for (int64_t start = bench_now_ns(), middle; start < until; packets += train) {
        for (uint32_t i = 0; i < train; i++) {
            uint8_t *p = buffer + (size_t)i * o->datagram_bytes;
            nonce[0] = (uint8_t)i;
            c->seal(aead, nonce, p, HEADER, p + HEADER, len, p + HEADER);
        }
        c->hp_mask(hp, samples, masks, train);
        sealing += (middle = bench_now_ns()) - start;
        c->hp_mask(hp, samples, masks, train);
        for (uint32_t i = 0; i < train; i++) {
            uint8_t *p = buffer + (size_t)i * o->datagram_bytes;
            nonce[0] = (uint8_t)i;
            bad += !c->open(aead, nonce, p, HEADER, p + HEADER, len + CRYPTO_TAG_BYTES, p + HEADER);
        }
        opening += (start = bench_now_ns()) - middle;
    }
    if (bad)
        bench_fail("a packet of the yardstick did not open");
    t->seal_ns = (double)sealing / (double)packets;
    t->open_ns = (double)opening / (double)packets;
    t->alone_gbps = (double)len * 8 / (t->seal_ns + t->open_ns);
    c->aead_clear(aead);
    c->hp_clear(hp);
    free(buffer);
}

/* As stoq_sim_run, with a clock around each turn. */
static bool timed(struct pair *p, int64_t ns[2]) {
    struct stoq_sim *sim = p->sim;
    const bool *done = &p->ends[SIM_CLIENT].done;
    for (bool all = true; !*done; all = sim_events_waiting(sim)) {
        if (all && !pair_events(p))
            return false;
        for (uint32_t i = 0; i < 2; i++) {
            if (!all && sim->next_ns[i] > sim->now_ns && !wire_net_ready(sim->net, i))
                continue;
            int64_t start = bench_now_ns();
            sim_turn(sim, i);
            ns[i] += bench_now_ns() - start;
        }
        if (!sim_events_waiting(sim))
            sim_advance(sim, sim->now_ns + FOR_EVER);
    }
    return true;
}

static void download(struct pair *p, uint64_t bytes, struct trial *t) {
    int64_t ns[2] = {0, 0};
    uint64_t packets = counter(p, SIM_SERVER, STOQ_COUNTER_PACKETS_SENT);
    uint64_t trains = counter(p, SIM_SERVER, STOQ_COUNTER_TRAINS_SENT);
    uint64_t acks = counter(p, SIM_CLIENT, STOQ_COUNTER_ACKS_SENT);
    bool ok = pair_ask(p, (struct stoq_perf){.download_bytes = bytes, .streams = 1, .requests = 1});
    int64_t start = bench_now_ns();
    ok = ok && timed(p, ns);
    int64_t took = bench_now_ns() - start;
    if (!ok)
        bench_fail("the transfer failed: %s", p->why);
    if (p->result.bytes_received != bytes)
        bench_fail("%llu bytes arrived of %llu", (unsigned long long)p->result.bytes_received,
                   (unsigned long long)bytes);
    t->packets = counter(p, SIM_SERVER, STOQ_COUNTER_PACKETS_SENT) - packets;
    t->trains = counter(p, SIM_SERVER, STOQ_COUNTER_TRAINS_SENT) - trains;
    t->acks = counter(p, SIM_CLIENT, STOQ_COUNTER_ACKS_SENT) - acks;
    t->gbps = (double)bytes * 8 / (double)took;
    t->sender_ns = (double)ns[SIM_SERVER] / (double)t->packets;
    t->receiver_ns = (double)ns[SIM_CLIENT] / (double)t->packets;
}

/* One request after the other: what a message costs each end, without a kernel. */
static void requests(struct pair *p, const struct options *o) {
    enum { BYTES = 512, HEADER = 8 };
    for (uint32_t i = 0; i < o->trials; i++) {
        int64_t ns[2] = {0, 0};
        const struct stoq_perf ask = {
            .download_bytes = BYTES, .upload_bytes = BYTES - HEADER, .streams = 1, .requests = o->requests};
        if (!pair_ask(p, ask) || !timed(p, ns) || p->result.requests != o->requests)
            bench_fail("the requests failed: %s", p->why);
        printf(o->json ? "{\"requests\": %u, \"server_ns\": %.1f, \"client_ns\": %.1f}\n"
                       : "%u requests of 512 bytes and back: server %.1f ns each, client %.1f ns\n",
               o->requests, (double)ns[SIM_SERVER] / o->requests, (double)ns[SIM_CLIENT] / o->requests);
    }
}

static void report(const struct options *o, const struct trial *t, uint64_t in_all) {
    if (!o->json) {
        for (uint32_t i = 0; i < o->trials; i++)
            printf("%6.2f Gbit/s both ends on one core; sender %6.1f ns a packet, receiver %6.1f; %llu "
                   "packets in %llu "
                   "trains, %llu ACKs; AEAD alone %.2f Gbit/s, %.1f + %.1f ns\n",
                   t[i].gbps, t[i].sender_ns, t[i].receiver_ns, (unsigned long long)t[i].packets,
                   (unsigned long long)t[i].trains, (unsigned long long)t[i].acks, t[i].alone_gbps,
                   t[i].seal_ns, t[i].open_ns);
        return;
    }
    printf("{\"datagram_bytes\": %u, \"mib\": %u, \"cipher\": \"%s\", \"trials\": [", o->datagram_bytes,
           o->mib, ciphers[o->aead]);
    for (uint32_t i = 0; i < o->trials; i++)
        printf("%s{\"gbps\": %.3f, \"sender_ns\": %.1f, \"receiver_ns\": %.1f, \"packets\": %llu, "
               "\"trains\": %llu, "
               "\"acks\": %llu, \"alone_gbps\": %.3f, \"seal_ns\": %.1f, \"open_ns\": %.1f}",
               i ? ", " : "", t[i].gbps, t[i].sender_ns, t[i].receiver_ns, (unsigned long long)t[i].packets,
               (unsigned long long)t[i].trains, (unsigned long long)t[i].acks, t[i].alone_gbps, t[i].seal_ns,
               t[i].open_ns);
    printf("], \"packets_in_all\": %llu}\n", (unsigned long long)in_all);
}

static int cipher(const char *name) {
    for (int i = 0; i < CRYPTO_AEAD_COUNT; i++)
        if (strcmp(name, ciphers[i]) == 0)
            return i;
    bench_fail("--cipher is aes128, aes256 or chacha20, not %s", name);
}

static struct options parse(int argc, char **argv) {
    enum { JSON = 1, ONLY, MIB, WARM_UP, TRIALS, DATAGRAM, CRYPTO, CIPHER, CORE, REQUESTS, HELP };
    static const struct option known[] = {
        {"json", no_argument, NULL, JSON},
        {"only", no_argument, NULL, ONLY},
        {"warm-up", required_argument, NULL, WARM_UP},
        {"mib", required_argument, NULL, MIB},
        {"trials", required_argument, NULL, TRIALS},
        {"datagram", required_argument, NULL, DATAGRAM},
        {"crypto", required_argument, NULL, CRYPTO},
        {"core", required_argument, NULL, CORE},
        {"cipher", required_argument, NULL, CIPHER},
        {"requests", required_argument, NULL, REQUESTS},
        {"help", no_argument, NULL, HELP},
        {0},
    };
    struct options o = {
        .mib = 512, .warm_up_mib = 128, .trials = 5, .datagram_bytes = 1350, .crypto = "auto", .core = -1};
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case JSON:
            o.json = true;
            break;
        case ONLY:
            o.only = true;
            break;
        case MIB:
            o.mib = (uint32_t)bench_number("--mib", optarg, 1, 1 << 20);
            break;
        case WARM_UP:
            o.warm_up_mib = (uint32_t)bench_number("--warm-up", optarg, 1, 1 << 20);
            break;
        case TRIALS:
            o.trials = (uint32_t)bench_number("--trials", optarg, 1, MAX_TRIALS);
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
        case REQUESTS:
            o.requests = (uint32_t)bench_number("--requests", optarg, 1, 100000000);
            break;
        default:
            fprintf(c == HELP ? stdout : stderr,
                    "usage: engine [--json] [--only] [--warm-up MIB] [--mib N] [--trials N] [--datagram "
                    "BYTES] [--crypto NAME] "
                    "[--cipher aes128|aes256|chacha20] [--core N] [--requests N]\n");
            exit(c == HELP ? 0 : 2);
        }
    }
    return o;
}

int main(int argc, char **argv) {
    struct options o = parse(argc, argv);
    static struct trial trials[MAX_TRIALS];
    struct trial ignored;
    struct pair p;
    bench_pin(o.core);
    const struct stoq_config client = {.crypto = o.crypto, .max_datagram = (uint16_t)o.datagram_bytes};
    const struct stoq_config server = {
        .crypto = o.crypto, .max_datagram = (uint16_t)o.datagram_bytes, .test_profile = true};
    if (!pair_open(&p, o.aead, &client, &server, &(struct stoq_impairment){.delay_ns = DELAY_NS}))
        bench_fail("%s", p.why);
    if (o.requests) {
        requests(&p, &o);
        pair_close(&p);
        return 0;
    }
    download(&p, (uint64_t)o.warm_up_mib << 20, &ignored);
    for (uint32_t i = 0; i < o.trials; i++) {
        download(&p, (uint64_t)o.mib << 20, &trials[i]);
        if (!o.only)
            alone(&o, &trials[i]);
    }
    report(&o, trials, counter(&p, SIM_SERVER, STOQ_COUNTER_PACKETS_SENT));
    pair_close(&p);
    return 0;
}
