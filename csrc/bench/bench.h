/* What the yardsticks share: addresses from the command line, pinning, the clock, a UDP socket like the
 * backends'. */
#ifndef STOQ_BENCH_H
#define STOQ_BENCH_H

#include <arpa/inet.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../io/io.h"
#include "../io/udp_socket.h"

#define BENCH_NS 1000000000ll /* Nanoseconds in a second. */

__attribute__((noreturn, format(printf, 1, 2))) void bench_fail(const char *format, ...);
int64_t bench_now_ns(void);
int64_t
bench_cpu_ns(void); /* Processor time this process has used; unlike the clock, not blurred by neighbours. */
/* `text` is an IPv6 address in numbers, with %interface for a link-local one. Ends the program when it is
 * not. */
struct quic_addr bench_address(const char *text, uint16_t port);
/* A whole number within [low, high], or the end of the program. */
long bench_number(const char *option, const char *text, long low, long high);
/* Seconds, with a fraction or without, within [low, high], or the end of the program. */
double bench_seconds(const char *option, const char *text, double low, double high);
/* Keep this thread on `core`; -1 leaves it where it is. */
void bench_pin(int core);
/* Bound to `bind`; the options are those of the io_uring backend. Ends the program on failure. */
struct udp_socket bench_socket(struct quic_addr bind);

#endif
