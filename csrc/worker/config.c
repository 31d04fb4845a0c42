/* Checks a struct stoq_config and completes it: what is zero gets its default, and keys are drawn. Every
 * refusal says which field, why, and what would do. */
#define _GNU_SOURCE
#include "datapath_private.h"

#include <stdarg.h>
#include <sys/random.h>

#define MIB            UINT64_C(1048576)
#define METADATA_BYTES (256 * MIB) /* Address space; some 30,000 connections with a few streams each. */
#define METADATA_MIN   (8 * MIB)
#define RECEIVE_BYTES                                                                                        \
    (512 * MIB) /* Three quarters in large chunks: one 40 Gbit/s * 50 ms window behind a gap, and room. */
#define RECEIVE_MIN (4 * MIB) /* Well beyond what is set aside for events. */
#define SEND_BYTES  (64 * MIB)
#define SEND_MIN    (1 * MIB)
/* 1 TiB: keeps all sums in 64 bits, and no machine of today is larger. */
#define POOL_MAX           (UINT64_C(1) << 40)
#define MAX_STREAMS        (UINT64_C(1) << 60) /* RFC 9000 section 4.6. */
#define MAX_VARINT         ((UINT64_C(1) << 62) - 1)
#define MAX_ACK_DELAY_NS   (UINT64_C(16384) * 1000000) /* RFC 9000 section 18.2: below 2^14 ms. */
#define MAX_CONNECTIONS    (1u << 20)                  /* What the engine's tables are made for. */
#define MAX_PACKETS_WINDOW 1000u /* More at once, unasked, is a flood (RFC 9002 section 7.2 says 10). */

void stoq_fail(struct stoq_error *error, int code, const char *format, ...) {
    va_list args;
    if (!error)
        return;
    va_start(args, format);
    error->code = code;
    vsnprintf(error->text, sizeof error->text, format, args);
    va_end(args);
}

static bool bytes_in_range(const char *name, uint64_t *value, uint64_t standard, uint64_t min,
                           struct stoq_error *error) {
    if (*value == 0)
        *value = standard;
    if (*value >= min && *value <= POOL_MAX)
        return true;
    stoq_fail(error, -EINVAL, "%s is %llu: it must be between %llu and %llu bytes", name,
              (unsigned long long)*value, (unsigned long long)min, (unsigned long long)POOL_MAX);
    return false;
}

static bool at_most(const char *name, uint64_t value, uint64_t max, struct stoq_error *error) {
    if (value <= max)
        return true;
    stoq_fail(error, -EINVAL, "%s is %llu: at most %llu is possible", name, (unsigned long long)value,
              (unsigned long long)max);
    return false;
}

static bool all_zero(const uint8_t key[32]) {
    uint8_t sum = 0;
    for (int i = 0; i < 32; i++)
        sum |= key[i];
    return sum == 0;
}

/* Keys that were not given. With a seed (simulation) from it, else from the kernel. */
static bool draw_keys(struct stoq_config *c, uint64_t seed, struct stoq_error *error) {
    struct prng prng;
    uint8_t *keys[2] = {c->token_key, c->reset_key};
    prng_seed(&prng, seed);
    for (int i = 0; i < 2; i++) {
        if (!all_zero(keys[i]))
            continue;
        if (seed != 0) {
            prng_fill(&prng, keys[i], 32);
        } else if (getrandom(keys[i], 32, 0) != 32) { /* Up to 256 bytes are never cut short. */
            stoq_fail(error, -errno, "the kernel gives no random bytes: %s", strerror(errno));
            return false;
        }
    }
    return true;
}

static bool addresses_and_names(struct stoq_config *c, struct stoq_error *error) {
    struct quic_addr bind;
    memcpy(&bind, &c->bind, sizeof bind);
    if (quic_addr_is_v4_mapped(&bind)) {
        stoq_fail(error, -EAFNOSUPPORT,
                  "the bind address is IPv4-mapped (::ffff:%u.%u.%u.%u): STOQ is IPv6-only, bind to an IPv6 "
                  "address or ::",
                  bind.ip[12], bind.ip[13], bind.ip[14], bind.ip[15]);
        return false;
    }
    c->bind.pad = 0;
    const char *wanted = c->crypto ? c->crypto : "auto";
    const struct crypto_provider *crypto = crypto_provider_by_name(wanted);
    if (!crypto) {
        stoq_fail(error, -ENOENT,
                  "crypto provider \"%s\" is not built in or this CPU cannot run it; \"auto\" takes what can",
                  wanted);
        return false;
    }
    c->crypto = crypto->name; /* A constant of the provider's; the caller's string may go away. */
    return true;
}

bool stoq_config_complete(const struct stoq_config *config, uint64_t seed, struct stoq_config *out,
                          struct stoq_error *error) {
    *out = *config;
    struct stoq_config *c = out;
    if (c->workers == 0)
        c->workers = 1;
    if (c->max_workers < c->workers)
        c->max_workers = c->workers;
    if (c->max_datagram != 0 &&
        (c->max_datagram < QUIC_MIN_INITIAL_BYTES || c->max_datagram > QUIC_MAX_DATAGRAM_BYTES)) {
        stoq_fail(error, -EINVAL, "max_datagram is %u: it must be between %u (RFC 9000 section 14.1) and %u",
                  c->max_datagram, QUIC_MIN_INITIAL_BYTES, QUIC_MAX_DATAGRAM_BYTES);
        return false;
    }
    if (c->congestion >= STOQ_CC_COUNT) {
        stoq_fail(error, -EINVAL, "congestion is %u: there are %u controllers, from 0", c->congestion,
                  (unsigned)STOQ_CC_COUNT);
        return false;
    }
    if (c->max_ack_delay_ns >= MAX_ACK_DELAY_NS) {
        stoq_fail(error, -EINVAL, "max_ack_delay is %llu ns: RFC 9000 section 18.2 wants less than 2^14 ms",
                  (unsigned long long)c->max_ack_delay_ns);
        return false;
    }
    return at_most("workers", c->workers, STOQ_MAX_WORKERS, error) &&
           at_most("max_workers", c->max_workers, STOQ_MAX_WORKERS, error) &&
           at_most("max_connections", c->max_connections, MAX_CONNECTIONS, error) &&
           at_most("initial_window_packets", c->initial_window_packets, MAX_PACKETS_WINDOW, error) &&
           at_most("max_streams_bidi", c->max_streams_bidi, MAX_STREAMS, error) &&
           at_most("max_streams_uni", c->max_streams_uni, MAX_STREAMS, error) &&
           at_most("max_data", c->max_data, MAX_VARINT, error) &&
           at_most("max_stream_data", c->max_stream_data, MAX_VARINT, error) &&
           at_most("max_data_limit", c->max_data_limit, MAX_VARINT, error) &&
           at_most("max_stream_data_limit", c->max_stream_data_limit, MAX_VARINT, error) &&
           bytes_in_range("metadata_bytes", &c->metadata_bytes, METADATA_BYTES, METADATA_MIN, error) &&
           bytes_in_range("receive_bytes", &c->receive_bytes, RECEIVE_BYTES, RECEIVE_MIN, error) &&
           bytes_in_range("send_bytes", &c->send_bytes, SEND_BYTES, SEND_MIN, error) &&
           addresses_and_names(c, error) && draw_keys(c, seed, error);
}
