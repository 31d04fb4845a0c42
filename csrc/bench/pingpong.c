/* Raw UDP ping-pong: the round trip a transport can at best have here. Both sides spin on a non-blocking
 * receive.
 *
 *      pingpong --listen 2001:db8::2 --core 1
 *      pingpong --connect 2001:db8::2 --core 0 --count 100000 --json
 *
 * The listener answers each datagram with the same bytes and ends on an empty one, which the other side sends
 * last. A datagram that is not back within a second counts as lost and is sent anew. */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench.h"

#define MAX_BYTES 9000
#define MAX_COUNT 10000000
#define WARM_UP                                                                                              \
    1000 /* Rounds before the first that counts: caches, neighbour discovery, the processor's clock. */
#define LOST_NS    BENCH_NS
#define CHECK_EACH 1024 /* Looks at the socket between two at the clock, while nothing comes. */

struct options {
    const char *listen, *connect;
    uint16_t port;
    int core;
    uint32_t count, bytes;
    bool json;
};

static void run_listener(const struct options *o) {
    struct udp_socket s = bench_socket(bench_address(o->listen, o->port));
    uint8_t data[MAX_BYTES];
    fprintf(stderr, "ready\n"); /* For the script: now start the other side. */
    for (;;) {
        struct sockaddr_in6 from;
        socklen_t from_len = sizeof from;
        ssize_t n = recvfrom(s.fd, data, sizeof data, MSG_DONTWAIT, (struct sockaddr *)&from, &from_len);
        if (n == 0) {
            break;
        }
        if (n > 0) {
            sendto(s.fd, data, (size_t)n, MSG_DONTWAIT, (struct sockaddr *)&from, from_len);
        }
    }
    udp_socket_close(&s);
}

/* Spin until the answer to `sequence` is there; false after LOST_NS. */
static bool await_answer(int fd, uint64_t sequence, uint8_t *data, int64_t sent) {
    for (uint32_t spins = 1;; spins++) {
        uint64_t got;
        if (recv(fd, data, MAX_BYTES, MSG_DONTWAIT) >= (ssize_t)sizeof got) {
            memcpy(&got, data, sizeof got);
            if (got == sequence) {
                return true;
            }
        }
        if (spins % CHECK_EACH == 0 && bench_now_ns() - sent > LOST_NS) {
            return false;
        }
    }
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void run_pinger(const struct options *o) {
    struct udp_socket s = bench_socket((struct quic_addr){0});
    struct quic_addr peer = bench_address(o->connect, o->port);
    struct sockaddr_in6 to = udp_sockaddr(&peer);
    uint32_t *times_ns = calloc(o->count, sizeof *times_ns);
    uint8_t data[MAX_BYTES] = {0};
    uint32_t got = 0, lost = 0;
    if (times_ns == NULL || connect(s.fd, (struct sockaddr *)&to, sizeof to) != 0) {
        bench_fail("connect: %s", strerror(errno));
    }
    for (uint64_t sequence = 0; got < o->count; sequence++) {
        memcpy(data, &sequence, sizeof sequence);
        int64_t sent = bench_now_ns();
        send(s.fd, data, o->bytes, MSG_DONTWAIT);
        if (!await_answer(s.fd, sequence, data, sent)) {
            if (++lost > 10) {
                bench_fail("no answer from %s", o->connect);
            }
        } else if (sequence >= WARM_UP) {
            times_ns[got++] = (uint32_t)(bench_now_ns() - sent); /* Below LOST_NS, so it fits. */
        }
    }
    send(s.fd, data, 0, MSG_DONTWAIT);
    qsort(times_ns, o->count, sizeof *times_ns, by_value);
    printf(o->json ? "{\"count\": %u, \"bytes\": %u, \"min_us\": %.2f, \"p50_us\": %.2f, \"p99_us\": %.2f, "
                     "\"max_us\": %.2f, \"lost\": %u}\n"
                   : "%u round trips of %u bytes: min %.2f, p50 %.2f, p99 %.2f, max %.2f us, %u lost\n",
           o->count, o->bytes, times_ns[0] / 1e3, times_ns[o->count / 2] / 1e3,
           times_ns[(uint64_t)o->count * 99 / 100] / 1e3, times_ns[o->count - 1] / 1e3, lost);
    free(times_ns);
    udp_socket_close(&s);
}

static struct options parse(int argc, char **argv) {
    enum { LISTEN = 1, CONNECT, PORT, CORE, COUNT, BYTES, JSON };
    static const struct option known[] = {
        {"listen", required_argument, NULL, LISTEN}, {"connect", required_argument, NULL, CONNECT},
        {"port", required_argument, NULL, PORT},     {"core", required_argument, NULL, CORE},
        {"count", required_argument, NULL, COUNT},   {"bytes", required_argument, NULL, BYTES},
        {"json", no_argument, NULL, JSON},           {NULL, 0, NULL, 0}};
    struct options o = {.port = 9298, .core = -1, .count = 100000, .bytes = 512};
    int c;
    while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (c) {
        case LISTEN:
            o.listen = optarg;
            break;
        case CONNECT:
            o.connect = optarg;
            break;
        case PORT:
            o.port = (uint16_t)bench_number("port", optarg, 1, 65535);
            break;
        case CORE:
            o.core = (int)bench_number("core", optarg, 0, 1023);
            break;
        case COUNT:
            o.count = (uint32_t)bench_number("count", optarg, 1, MAX_COUNT);
            break;
        case BYTES:
            o.bytes = (uint32_t)bench_number("bytes", optarg, sizeof(uint64_t), MAX_BYTES);
            break;
        case JSON:
            o.json = true;
            break;
        default:
            exit(2);
        }
    }
    if ((o.listen == NULL) == (o.connect == NULL) || optind != argc) {
        bench_fail("usage: pingpong (--listen ADDRESS | --connect ADDRESS) [--port N] [--core N] [--count N] "
                   "[--bytes N] [--json]");
    }
    return o;
}

int main(int argc, char **argv) {
    struct options o = parse(argc, argv);
    bench_pin(o.core);
    if (o.listen != NULL) {
        run_listener(&o);
    } else {
        run_pinger(&o);
    }
    return 0;
}
