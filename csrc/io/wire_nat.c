/* Addresses of the wire backend: see wire_nat.h. */
#include "wire_nat.h"

#include <string.h>

#include "../quic/timer.h"

#define FIRST_PORT 49152u /* First dynamic port, RFC 6335 section 6. */

void wire_nat_make_ip(uint8_t ip[16], uint8_t net, uint16_t host) {
    static const uint8_t prefix[7] = {0xfd, 0x57, 0x49, 0x52, 0, 0x45, 0};
    memset(ip, 0, 16);
    memcpy(ip, prefix, sizeof prefix);
    ip[7] = net;
    ip[14] = (uint8_t)(host >> 8);
    ip[15] = (uint8_t)host;
}

uint16_t wire_nat_port(struct wire_nat *nat) {
    if (nat->next_port < FIRST_PORT)
        nat->next_port = FIRST_PORT;
    return nat->next_port++;
}

static struct wire_mapping *add(struct wire_nat *nat, uint64_t now_ns, uint32_t endpoint,
                                const struct quic_addr *inside, const struct quic_addr *outside) {
    struct wire_mapping *m = NULL;
    for (uint32_t i = 0; i < nat->count && !m; i++)
        if (nat->mappings[i].expires_ns <= now_ns)
            m = &nat->mappings[i];
    if (!m && nat->count < WIRE_MAX_MAPPINGS)
        m = &nat->mappings[nat->count++];
    if (m)
        *m = (struct wire_mapping){*inside, *outside, QUIC_NEVER, endpoint};
    return m;
}

const struct wire_mapping *wire_nat_out(struct wire_nat *nat, uint64_t now_ns, uint32_t endpoint,
                                        const struct quic_addr *inside) {
    for (uint32_t i = 0; i < nat->count; i++) {
        const struct wire_mapping *m = &nat->mappings[i];
        if (m->endpoint == endpoint && m->expires_ns == QUIC_NEVER && quic_addr_equal(&m->inside, inside))
            return m;
    }
    return add(nat, now_ns, endpoint, inside, inside);
}

const struct wire_mapping *wire_nat_in(struct wire_nat *nat, uint64_t now_ns,
                                       const struct quic_addr *outside) {
    for (uint32_t i = 0; i < nat->count; i++) {
        uint32_t at = (nat->last + i) % nat->count;
        const struct wire_mapping *m = &nat->mappings[at];
        if (m->expires_ns > now_ns && quic_addr_equal(&m->outside, outside)) {
            nat->last = at;
            return m;
        }
    }
    return NULL;
}

void wire_nat_rebind(struct wire_nat *nat, uint64_t now_ns, uint32_t endpoint, int what,
                     uint64_t expires_ns) {
    bool mine[WIRE_MAX_MAPPINGS]; /* Those before: what is added below does not move again. */
    uint32_t count = nat->count;
    for (uint32_t i = 0; i < count; i++)
        mine[i] = nat->mappings[i].endpoint == endpoint && nat->mappings[i].expires_ns == QUIC_NEVER;
    for (uint32_t i = 0; i < count; i++) {
        if (!mine[i])
            continue;
        struct quic_addr inside = nat->mappings[i].inside, outside = nat->mappings[i].outside;
        nat->mappings[i].expires_ns = expires_ns;
        outside.port = wire_nat_port(nat);
        if (what == 2)
            wire_nat_make_ip(outside.ip, 1, outside.port);
        add(nat, now_ns, endpoint, &inside, &outside);
    }
}

void wire_nat_forget(struct wire_nat *nat, uint32_t endpoint) {
    for (uint32_t i = 0; i < nat->count; i++)
        if (nat->mappings[i].endpoint == endpoint)
            nat->mappings[i].expires_ns = 0;
}
