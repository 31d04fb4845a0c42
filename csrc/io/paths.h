/* From a destination to the headers of a frame: routes, neighbours, and finished headers kept by destination.
 *
 *      peer ──▶ headers kept? ──yes──▶ time to confirm? ──no──▶ headers
 *                 │ no                     └──yes──▶ socket path, this once
 *                 └▶ longest prefix ──▶ gateway or peer ──▶ neighbour ──▶ build and keep
 *                        └ none, another interface  └ unknown: socket path
 *
 * What it does not know goes by the socket path, where the kernel knows: being incomplete costs speed, never
 * reachability. So both tables are bounded and refuse more. A route that was refused might have been more
 * specific than one that is known, so from then on nothing is known of any route, until the table was empty
 * once.
 *
 * RFC 8200 (header), RFC 6437 (flow label), RFC 4861 section 7.3 (why confirm). Time comes as an argument. */
#ifndef STOQ_IO_PATHS_H
#define STOQ_IO_PATHS_H

#include "io.h"

#define PATHS_MAX_ROUTES     256  /* A host's; a full table is a router's business. */
#define PATHS_MAX_NEIGHBOURS 4096 /* Four times the kernel's own bound (gc_thresh3). */
#define PATHS_KEPT           256  /* Destinations with finished headers; a collision builds them anew. */
#define PATHS_HEADER_BYTES   62u  /* Ethernet 14, IPv6 40, UDP 8. */
#define PATHS_UDP_AT         54u  /* The UDP header in them. */

struct paths_head {
    uint8_t bytes[PATHS_HEADER_BYTES]; /* Lengths, traffic class and checksum are left zero. */
    uint64_t pseudo;      /* Checksum of the pseudo-header less its length, and of the UDP ports. csum.h */
    uint64_t pseudo_only; /* Without the ports: what is left to a device that sums the UDP header itself. */
};

struct paths_neighbour {
    uint8_t ip[16];
    uint8_t link[6];
    bool used;
    uint64_t confirm_ns; /* From when on the next train goes by the socket path. */
};

struct paths_kept {
    uint64_t generation; /* Of the tables it was built from; 0: empty. */
    struct quic_addr peer;
    uint8_t local_ip[16]; /* As asked for, :: included. */
    uint32_t neighbour;
    struct paths_head head;
};

struct paths {
    uint32_t ifindex;
    uint16_t port;       /* Ours, host order. */
    uint8_t link[6];     /* Ours. */
    bool confirm;        /* There is a socket path to confirm neighbours by. */
    uint8_t last_ip[16]; /* The address of ours that was last received on: the source where nothing better is
                            known. */
    uint64_t generation; /* Moves with every change of what `kept` is built from. */
    struct io_route routes[PATHS_MAX_ROUTES]; /* Longest prefix first. */
    uint32_t route_count;
    bool routes_refused;
    uint32_t neighbour_count;
    struct paths_neighbour *neighbours; /* Hash table with linear probing, half full at most. */
    struct paths_kept *kept;
};

/* False: no memory. */
bool paths_open(struct paths *p, uint32_t ifindex, const uint8_t link[6], uint16_t port, bool confirm);
void paths_close(struct paths *p);

void paths_learn_route(struct paths *p, const struct io_route *route);
void paths_learn_neighbour(struct paths *p, const struct io_neighbour *n, uint64_t now_ns);
/* A datagram came for `ip`. */
void paths_received_on(struct paths *p, const uint8_t ip[16]);

/* Headers for a train from `local` (ip :: to choose) to `peer`; NULL: the socket path. The pointer is good
 * until the next call. */
const struct paths_head *paths_find(struct paths *p, const struct quic_addr *peer,
                                    const struct quic_addr *local, uint64_t now_ns);

#endif
