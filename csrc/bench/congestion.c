/* Congestion control on the virtual clock: flows that download through one bottleneck, with random loss or
 * without, for some virtual seconds. The same seed gives the same figures on any machine.
 *
 *      congestion [--congestion NAME] [--seed N] [--flows N] [--spacing-ms N] [--warm-up S] [--seconds S]
 *                 [--rate-mbps N] [--rtt-ms N] [--queue-bytes N] [--loss-ppm N] [--datagram BYTES]
 *                 [--tuned-windows]
 *
 *      server ══▶ queue (drop tail) ── bottleneck ── random loss, each datagram for itself ── delay ══▶
 * client ◀═══════════════════════════ delay, nothing else ════════════════════════════════════════
 *
 * Writes one JSON object: what each flow received in `seconds` after `warm-up`, and what its sender saw.
 */
#include <getopt.h>
#include <string.h>

#include "../sim/crowd.h"
#include "bench.h"

#define MS_NS 1000000ull

struct options {
    uint8_t congestion;
    uint64_t seed;
    uint32_t flows, spacing_ms, rate_mbps, queue_bytes, loss_ppm, datagram_bytes;
    double rtt_ms, warm_up, seconds;
    bool tuned_windows; /* Flow control as configured by default, not out of the way. */
};

static const char *const controllers[STOQ_CC_COUNT] = {
#define X(name, value, text) [STOQ_CC_##name] = text,
    STOQ_CONGESTION_CONTROLLERS(X)
#undef X
};

static uint8_t controller(const char *name) {
    for (uint8_t i = 0; i < STOQ_CC_COUNT; i++)
        if (strcmp(name, controllers[i]) == 0)
            return i;
    bench_fail("--congestion %s: not a congestion controller", name);
}

static struct options parse(int argc, char **argv) {
    enum { CC = 1, SEED, FLOWS, SPACING, WARM_UP, SECONDS, RATE, RTT, QUEUE, LOSS, DATAGRAM, TUNED, HELP };
    static const struct option known[] = {
        {"congestion", required_argument, NULL, CC},
        {"seed", required_argument, NULL, SEED},
        {"flows", required_argument, NULL, FLOWS},
        {"spacing-ms", required_argument, NULL, SPACING},
        {"warm-up", required_argument, NULL, WARM_UP},
        {"seconds", required_argument, NULL, SECONDS},
        {"rate-mbps", required_argument, NULL, RATE},
        {"rtt-ms", required_argument, NULL, RTT},
        {"queue-bytes", required_argument, NULL, QUEUE},
        {"loss-ppm", required_argument, NULL, LOSS},
        {"datagram", required_argument, NULL, DATAGRAM},
        {"tuned-windows", no_argument, NULL, TUNED},
        {"help", no_argument, NULL, HELP},
        {0},
    };
    struct options o = {.congestion = STOQ_CC_CUBIC,
                        .seed = 1,
                        .flows = 1,
                        .spacing_ms = 100,
                        .rate_mbps = 100,
                        .queue_bytes = 250000,
                        .datagram_bytes = 1452,
                        .rtt_ms = 20,
                        .warm_up = 5,
                        .seconds = 20};
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case CC:
            o.congestion = controller(optarg);
            break;
        case SEED:
            o.seed = (uint64_t)bench_number("seed", optarg, 0, 1l << 40);
            break;
        case FLOWS:
            o.flows = (uint32_t)bench_number("flows", optarg, 1, CROWD_MAX);
            break;
        case SPACING:
            o.spacing_ms = (uint32_t)bench_number("spacing-ms", optarg, 0, 60000);
            break;
        case WARM_UP:
            o.warm_up = bench_seconds("warm-up", optarg, 0.1, 3600);
            break;
        case SECONDS:
            o.seconds = bench_seconds("seconds", optarg, 0.1, 3600);
            break;
        case RATE:
            o.rate_mbps = (uint32_t)bench_number("rate-mbps", optarg, 1, 100000);
            break;
        case RTT:
            o.rtt_ms = bench_seconds("rtt-ms", optarg, 0.01, 10000);
            break;
        case QUEUE:
            o.queue_bytes = (uint32_t)bench_number("queue-bytes", optarg, 1500, 1l << 31);
            break;
        case LOSS:
            o.loss_ppm = (uint32_t)bench_number("loss-ppm", optarg, 0, 999999);
            break;
        case DATAGRAM:
            o.datagram_bytes = (uint32_t)bench_number("datagram", optarg, 1200, 65527);
            break;
        case TUNED:
            o.tuned_windows = true;
            break;
        default:
            fprintf(
                c == HELP ? stdout : stderr,
                "usage: congestion [--congestion NAME] [--seed N] [--flows N] [--spacing-ms N] [--warm-up S] "
                "[--seconds S] [--rate-mbps N] [--rtt-ms N] [--queue-bytes N] [--loss-ppm N] [--datagram "
                "BYTES] [--tuned-windows]\n");
            exit(c == HELP ? 0 : 2);
        }
    }
    return o;
}

int main(int argc, char **argv) {
    struct options o = parse(argc, argv);
    static struct crowd c;
    uint64_t before[CROWD_MAX];
    /* Windows of flow control that nothing here fills: what limits is congestion control. */
    struct stoq_config client = {.max_datagram = (uint16_t)o.datagram_bytes};
    if (!o.tuned_windows)
        client.max_data = client.max_stream_data = 1ull << 30;
    const struct stoq_config server = {
        .max_datagram = (uint16_t)o.datagram_bytes, .congestion = o.congestion, .test_profile = true};
    struct stoq_impairment way = {.delay_ns = (uint64_t)(o.rtt_ms / 2 * MS_NS)};
    struct stoq_impairment down = way;
    down.rate_bps = (uint64_t)o.rate_mbps * 1000000;
    down.queue_bytes = o.queue_bytes;
    down.loss_ppm = o.loss_ppm;
    if (!crowd_open(&c, o.seed, o.flows, o.spacing_ms * MS_NS, &client, &server, &way, &down))
        bench_fail("%s", c.why);
    uint64_t warm = (uint64_t)(o.warm_up * BENCH_NS), whole = warm + (uint64_t)(o.seconds * BENCH_NS);
    if (!crowd_run(&c, warm))
        bench_fail("%s", c.why);
    for (uint32_t i = 0; i < o.flows; i++)
        before[i] = crowd_received(&c, i);
    if (!crowd_run(&c, whole))
        bench_fail("%s", c.why);
    printf("{\"congestion\": \"%s\", \"seed\": %llu, \"seconds\": %g, \"flows\": [",
           controllers[o.congestion], (unsigned long long)o.seed, o.seconds);
    for (uint32_t i = 0; i < o.flows; i++)
        printf("%s%llu", i ? ", " : "", (unsigned long long)(crowd_received(&c, i) - before[i]));
    printf("], \"senders\": [");
    for (uint32_t i = 0; i < o.flows; i++) {
        struct quic_conn_stats s;
        memset(&s, 0, sizeof s);
        crowd_sender(&c, i, &s);
        printf("%s{\"packets_sent\": %llu, \"packets_lost\": %llu, \"spurious\": %llu, \"pto\": %llu, "
               "\"rtt_ms\": "
               "%.3f, \"rtt_min_ms\": %.3f, \"window\": %llu, \"pacing_mbps\": %.3f}",
               i ? ", " : "", (unsigned long long)s.packets_sent, (unsigned long long)s.packets_lost,
               (unsigned long long)s.packets_lost_spurious, (unsigned long long)s.pto_count,
               (double)s.rtt_smoothed_ns / 1e6, (double)s.rtt_min_ns / 1e6,
               (unsigned long long)s.congestion_window, (double)s.pacing_rate_bps / 1e6);
    }
    uint64_t wire[WIRE_FATE_COUNT];
    wire_net_counts(c.sim->net, SIM_SERVER, wire);
    printf("], \"wire\": {\"sent\": %llu, \"lost\": %llu, \"queue_drop\": %llu}}\n",
           (unsigned long long)wire[WIRE_SENT], (unsigned long long)wire[WIRE_LOST],
           (unsigned long long)wire[WIRE_QUEUE_DROP]);
    crowd_close(&c);
    return 0;
}
