/* An IPv6 transport address as the engine knows it. IPv6 only: there is no family field to get wrong. */
#ifndef STOQ_QUIC_ADDR_H
#define STOQ_QUIC_ADDR_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct quic_addr {
    uint8_t ip[16];    /* Network order. Never v4-mapped (::ffff:0:0/96): the edges refuse those. */
    uint32_t scope_id; /* Interface index for link-local addresses, else 0. */
    uint16_t port;     /* Host order. */
    uint16_t pad;      /* Always 0, so that two addresses compare as 24 bytes. */
};

static inline bool quic_addr_equal(const struct quic_addr *a, const struct quic_addr *b) {
    return memcmp(a, b, sizeof *a) == 0;
}

static inline bool quic_addr_same_ip(const struct quic_addr *a, const struct quic_addr *b) {
    return memcmp(a->ip, b->ip, sizeof a->ip) == 0;
}

static inline bool quic_addr_is_v4_mapped(const struct quic_addr *a) {
    static const uint8_t prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    return memcmp(a->ip, prefix, sizeof prefix) == 0;
}

#endif
