/* See bench.h. */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>

void bench_fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

int64_t bench_now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * BENCH_NS + ts.tv_nsec;
}

int64_t bench_cpu_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return ts.tv_sec * BENCH_NS + ts.tv_nsec;
}

struct quic_addr bench_address(const char *text, uint16_t port) {
    struct quic_addr a = {.port = port};
    char ip[INET6_ADDRSTRLEN];
    size_t len = strcspn(text, "%");
    if (len < sizeof ip) {
        memcpy(ip, text, len);
        ip[len] = '\0';
        if (text[len] == '%') {
            a.scope_id = if_nametoindex(text + len + 1);
        }
        if (inet_pton(AF_INET6, ip, a.ip) == 1 && !quic_addr_is_v4_mapped(&a) &&
            (text[len] == '\0' || a.scope_id != 0)) {
            return a;
        }
    }
    bench_fail("%s: not an IPv6 address", text);
}

long bench_number(const char *option, const char *text, long low, long high) {
    char *end = NULL;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < low || value > high) {
        bench_fail("--%s %s: want a number from %ld to %ld", option, text, low, high);
    }
    return value;
}

double bench_seconds(const char *option, const char *text, double low, double high) {
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= low && value <= high)) {
        bench_fail("--%s %s: want seconds from %g to %g", option, text, low, high);
    }
    return value;
}

void bench_pin(int core) {
    if (core < 0) {
        return;
    }
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)core, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) {
        bench_fail("core %d: %s", core, strerror(errno));
    }
}

struct udp_socket bench_socket(struct quic_addr bind) {
    struct io_config config = {.bind = bind};
    struct io_text why = {{0}};
    struct udp_socket s;
    if (!udp_socket_open(&s, &config, &why)) {
        bench_fail("%s", why.text);
    }
    return s;
}
