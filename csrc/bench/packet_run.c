/* See packet_run.h. */
#define _GNU_SOURCE
#include "packet_run.h"

#include <errno.h>
#include <getopt.h>
#include <net/if.h>

/* Left out of a sink's figure at the start: page faults, cold caches, the processor's clock coming up. */
#define WARM_UP_NS (BENCH_NS / 5)
#define IDLE_NS    (BENCH_NS * 3 / 10) /* Silence that means the generator has stopped. */
#define START_NS   (30 * BENCH_NS)
#define CHECK_EACH 256 /* Empty rounds between two looks at the clock. */

static void link_address(const char *option, const char *text, uint8_t out[6]) {
    unsigned int b[6];
    int end = 0;
    if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &end) != 6 ||
        text[end] != '\0') {
        bench_fail("--%s %s: want a link address, as in 02:00:00:00:00:01", option, text);
    }
    for (int i = 0; i < 6; i++) {
        out[i] = (uint8_t)b[i];
    }
}

static enum packet_role role_of(const char *text) {
    static const char *const names[] = {"sink", "generate", "answer", "ping"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, names[i]) == 0) {
            return (enum packet_role)i;
        }
    }
    bench_fail("--role %s: want sink, generate, answer or ping", text);
}

struct packet_options packet_options(int argc, char **argv, bool backend) {
    enum {
        ROLE = 1,
        BACKEND,
        INTERFACE,
        QUEUE,
        LOCAL,
        PEER,
        LINK,
        PEER_LINK,
        PORT,
        BYTES,
        BATCH,
        FRAMES,
        BUSY,
        TX_BUDGET,
        SOCKET_BYTES,
        COUNT,
        CORE,
        NO_CHECKSUM,
        SLEEP,
        SECONDS
    };
    static const struct option known[] = {{"role", required_argument, NULL, ROLE},
                                          {"backend", required_argument, NULL, BACKEND},
                                          {"interface", required_argument, NULL, INTERFACE},
                                          {"queue", required_argument, NULL, QUEUE},
                                          {"local", required_argument, NULL, LOCAL},
                                          {"peer", required_argument, NULL, PEER},
                                          {"link", required_argument, NULL, LINK},
                                          {"peer-link", required_argument, NULL, PEER_LINK},
                                          {"port", required_argument, NULL, PORT},
                                          {"bytes", required_argument, NULL, BYTES},
                                          {"batch", required_argument, NULL, BATCH},
                                          {"frames", required_argument, NULL, FRAMES},
                                          {"busy-budget", required_argument, NULL, BUSY},
                                          {"tx-budget", required_argument, NULL, TX_BUDGET},
                                          {"socket-bytes", required_argument, NULL, SOCKET_BYTES},
                                          {"count", required_argument, NULL, COUNT},
                                          {"core", required_argument, NULL, CORE},
                                          {"no-tx-checksum", no_argument, NULL, NO_CHECKSUM},
                                          {"sleep", no_argument, NULL, SLEEP},
                                          {"seconds", required_argument, NULL, SECONDS},
                                          {NULL, 0, NULL, 0}};
    struct packet_options o = {.backend = "afxdp",
                               .bytes = 1400,
                               .batch = 64,

                               .frames = 4096,
                               .count = 100000,
                               .core = -1,
                               .seconds = 3};
    const char *role = NULL, *local = NULL, *peer = NULL, *interface = NULL;
    uint16_t port = 9297;
    int c;
    while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (c) {
        case ROLE:
            role = optarg;
            break;
        case BACKEND:
            o.backend = optarg;
            break;
        case INTERFACE:
            interface = optarg;
            break;
        case QUEUE:
            o.queue = (uint32_t)bench_number("queue", optarg, 0, 63);
            break;
        case LOCAL:
            local = optarg;
            break;
        case PEER:
            peer = optarg;
            break;
        case LINK:
            link_address("link", optarg, o.link);
            break;
        case PEER_LINK:
            link_address("peer-link", optarg, o.peer_link);
            break;
        case PORT:
            port = (uint16_t)bench_number("port", optarg, 1, 65535);
            break;
        case BYTES:
            o.bytes = (uint32_t)bench_number("bytes", optarg, PACKET_MIN_BYTES, PACKET_MAX_BYTES);
            break;
        case BATCH:
            o.batch = (uint32_t)bench_number("batch", optarg, 1, PACKET_MAX_BATCH);
            break;
        case FRAMES:
            o.frames = (uint32_t)bench_number("frames", optarg, PACKET_MAX_BATCH, 65536);
            break;
        case BUSY:
            o.busy_budget = (uint32_t)bench_number("busy-budget", optarg, 0, 65535);
            break;
        case TX_BUDGET:
            o.tx_budget = (uint32_t)bench_number("tx-budget", optarg, 0, 65536);
            break;
        case SOCKET_BYTES:
            o.socket_bytes = (uint32_t)bench_number("socket-bytes", optarg, 0, 1 << 30);
            break;
        case COUNT:
            o.count = (uint32_t)bench_number("count", optarg, 1, 10000000);
            break;
        case CORE:
            o.core = (int)bench_number("core", optarg, 0, 1023);
            break;
        case NO_CHECKSUM:
            o.no_tx_checksum = true;
            break;
        case SLEEP:
            o.sleep = true;
            break;
        case SECONDS:
            o.seconds = bench_seconds("seconds", optarg, 0.3, 600);
            break;
        default:
            exit(2);
        }
    }
    if (role == NULL || interface == NULL || local == NULL || peer == NULL || optind != argc) {
        bench_fail(
            "usage: %s --role sink|generate|answer|ping %s--interface NAME --local ADDRESS --peer ADDRESS "
            "--link MAC --peer-link MAC [--queue N] [--port N] [--bytes N] [--batch N] [--frames N] "
            "[--busy-budget N] [--tx-budget N] [--socket-bytes N] [--seconds N] [--count N] [--core N] "
            "[--sleep]",
            argv[0], backend ? "[--backend NAME] [--no-tx-checksum] " : "");
    }
    o.role = role_of(role);
    o.local = bench_address(local, port);
    o.peer = bench_address(peer, port);
    o.ifindex = if_nametoindex(interface);
    if (o.ifindex == 0) {
        bench_fail("interface %s: %s", interface, strerror(errno));
    }
    if ((o.frames & (o.frames - 1)) != 0) {
        bench_fail("--frames %u: want a power of two", o.frames);
    }
    bench_pin(o.core);
    return o;
}

/* For who spins: the other thread of the same core may be the generator's. */
static inline void relax(void) {
#if defined __x86_64__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

bool packet_tally_round(struct packet_tally *t, uint32_t n) {
    if (n == 0 && t->deadline_ns != 0 && !t->sleep && ++t->idle % CHECK_EACH != 0) {
        relax();
        return true;
    }
    int64_t now = bench_now_ns();
    if (t->deadline_ns == 0) {
        t->deadline_ns = now + START_NS;
    }
    if (n > 0) {
        t->last_ns = now;
        t->deadline_ns = now + IDLE_NS;
        t->first_ns = t->first_ns == 0 ? now : t->first_ns;
        if (t->begin_ns == 0 && now - t->first_ns >= WARM_UP_NS) {
            t->begin_ns = now;
            t->packets = t->bad = 0;
        }
    }
    return now < t->deadline_ns;
}

static void report_end(const struct packet_figure *more) {
    for (; more != NULL && more->name != NULL; more++) {
        printf(", \"%s\": %llu", more->name, (unsigned long long)more->value);
    }
    puts("}");
}

void packet_report_sink(const struct packet_options *o, const char *io, const struct packet_tally *t,
                        const struct packet_figure *more) {
    if (t->begin_ns == 0 || t->packets == 0) {
        bench_fail("nothing, or too little, arrived");
    }
    double seconds = (double)(t->last_ns - t->begin_ns) / (double)BENCH_NS;
    uint64_t expected = t->next - t->first;
    printf("{\"side\": \"sink\", \"io\": \"%s\", \"bytes\": %u, \"packets\": %llu, \"pps\": %.0f, \"lost\": "
           "%llu, "
           "\"bad\": %llu, \"seconds\": %.3f",
           io, o->bytes, (unsigned long long)t->packets, seconds > 0 ? (double)t->packets / seconds : 0,
           (unsigned long long)(expected > t->packets ? expected - t->packets : 0),
           (unsigned long long)t->bad, seconds);
    report_end(more);
}

struct packet_start packet_start(void) {
    return (struct packet_start){.ns = bench_now_ns(), .cpu_ns = bench_cpu_ns()};
}

void packet_report_generate(const struct packet_options *o, const char *io, uint64_t packets,
                            struct packet_start start, const struct packet_figure *more) {
    double seconds = (double)(bench_now_ns() - start.ns) / (double)BENCH_NS;
    double cpu_ns = (double)(bench_cpu_ns() - start.cpu_ns);
    printf("{\"side\": \"generator\", \"io\": \"%s\", \"bytes\": %u, \"packets\": %llu, \"pps\": %.0f, "
           "\"cpu_ns_per_packet\": %.1f, \"seconds\": %.3f",
           io, o->bytes, (unsigned long long)packets, (double)packets / seconds,
           packets != 0 ? cpu_ns / (double)packets : 0, seconds);
    report_end(more);
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

void packet_report_ping(const struct packet_options *o, const char *io, uint32_t *times_ns, uint32_t lost,
                        const struct packet_figure *more) {
    qsort(times_ns, o->count, sizeof *times_ns, by_value);
    printf("{\"side\": \"ping\", \"io\": \"%s\", \"bytes\": %u, \"count\": %u, \"min_us\": %.2f, \"p50_us\": "
           "%.2f, "
           "\"p99_us\": %.2f, \"max_us\": %.2f, \"lost\": %u",
           io, o->bytes, o->count, times_ns[0] / 1e3, times_ns[o->count / 2] / 1e3,
           times_ns[(uint64_t)o->count * 99 / 100] / 1e3, times_ns[o->count - 1] / 1e3, lost);
    report_end(more);
}
