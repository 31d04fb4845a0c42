/* Addresses of the wire backend: which endpoint has which, as seen from inside and from outside of its NAT
 * (RFC 4787 calls an entry a mapping). Private to csrc/io/wire*.c. */
#ifndef STOQ_IO_WIRE_NAT_H
#define STOQ_IO_WIRE_NAT_H

#include "../quic/addr.h"

#define WIRE_MAX_MAPPINGS 256 /* Of a net; expired ones are reused. */

struct wire_mapping {
    struct quic_addr inside, outside;
    uint64_t expires_ns; /* QUIC_NEVER while in use for sending; in the past: the entry is free. */
    uint32_t endpoint;
};

struct wire_nat {
    uint32_t count, last; /* last: found last time, looked at first. */
    uint16_t next_port;   /* For new outside addresses and endpoints without a port. */
    struct wire_mapping mappings[WIRE_MAX_MAPPINGS];
};

/* fd57:4952:45:`net`::`host`, of a unique local prefix (RFC 4193). */
void wire_nat_make_ip(uint8_t ip[16], uint8_t net, uint16_t host);
uint16_t wire_nat_port(struct wire_nat *nat);
/* The mapping `endpoint` sends through from `inside`; made, as itself, when there is none. NULL: the table is
 * full. */
const struct wire_mapping *wire_nat_out(struct wire_nat *nat, uint64_t now_ns, uint32_t endpoint,
                                        const struct quic_addr *inside);
/* The mapping that what is sent to `outside` goes through; NULL: none. */
const struct wire_mapping *wire_nat_in(struct wire_nat *nat, uint64_t now_ns,
                                       const struct quic_addr *outside);
/* Give every mapping of the endpoint another outside port (1) or address (2); the old ones live until
 * `expires_ns`. */
void wire_nat_rebind(struct wire_nat *nat, uint64_t now_ns, uint32_t endpoint, int what, uint64_t expires_ns);
void wire_nat_forget(struct wire_nat *nat, uint32_t endpoint);

#endif
