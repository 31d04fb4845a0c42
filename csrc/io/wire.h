/* The `wire` backend: UDP over IPv6 in memory, on a virtual clock, with seeded impairments. Packet I/O
 * without a kernel, for simulation, tests and for measuring the engine alone. One thread; no syscall; no
 * clock of its own.
 *
 * A net joins endpoints. Each endpoint is one `struct io`, opened through io_wire_ops with io_config.backend
 * = the net. Each endpoint has one link, its way out; a link's impairments apply to what the endpoint sends:
 *
 *   endpoint 0 ──▶ link 0: NAT ─ MTU ─ bottleneck (rate, queue, CE) ─ loss ─ corrupt ─ delay ──┐
 *                                                                                 duplicate ──┤
 *   endpoint 1 ◀── receive moderation ◀── ordered by arrival ◀── routing, NAT's way back ◀────┘
 *
 * Sizes on the wire (MTU, rate, queue) are those of the IPv6 packet: UDP payload plus WIRE_OVERHEAD_BYTES.
 * Delay and jitter keep the order; only reorder_ppm changes it.
 *
 * Ownership: one pool of buffers a net. A perfect link (nothing but delay) passes the sender's buffer, train
 * and all, to the receiver without a copy; rx_release gives it back. Any other link copies each datagram once
 * into a small buffer, and once more when consecutive ones are joined into a train on receive as GRO would.
 */
#ifndef STOQ_IO_WIRE_H
#define STOQ_IO_WIRE_H

#include "../stoq.h"
#include "io.h"

#define WIRE_MAX_ENDPOINTS  64 /* Workers of one net: as many as a datapath may have. */
#define WIRE_OVERHEAD_BYTES 48 /* IPv6 header 40 (RFC 8200), UDP header 8 (RFC 768). */

struct wire_net;

/* What became of a datagram. */
enum wire_fate {
    WIRE_SENT,       /* Left the endpoint; one of the following comes too unless it arrives untouched. */
    WIRE_TOO_LARGE,  /* Over the MTU. */
    WIRE_QUEUE_DROP, /* The bottleneck's queue was full. */
    WIRE_LOST,       /* Random loss. */
    WIRE_CE_MARKED,
    WIRE_CORRUPTED,
    WIRE_REORDERED,
    WIRE_DUPLICATED,
    WIRE_UNROUTABLE, /* Nobody has the destination address (any more). */
    WIRE_DELIVERED,  /* Reached the destination's receive queue. */
    WIRE_FATE_COUNT
};

/* One step of one datagram, for traces. `data` is valid during the call only. */
struct wire_step {
    uint64_t now_ns, due_ns; /* Virtual time now; of arrival where it is known, else 0. */
    enum wire_fate fate;
    uint32_t link; /* Sending endpoint. */
    uint32_t len;
    uint8_t ecn;
    const uint8_t *data;
    const struct quic_addr *from, *to;
};

typedef void wire_tap(void *ctx, const struct wire_step *step);

struct wire_net *wire_net_create(uint64_t seed);
/* After every endpoint was closed. */
void wire_net_destroy(struct wire_net *net);

/* Virtual time. Never goes back. */
void wire_net_advance(struct wire_net *net, uint64_t now_ns);
uint64_t wire_net_now(const struct wire_net *net);
/* When something can next be received: now or later; QUIC_NEVER when nothing is under way. */
uint64_t wire_net_next(const struct wire_net *net);

/* Has something arrived at this endpoint that it has not taken yet, or did a send buffer come back that it
 * waits for? */
bool wire_net_ready(struct wire_net *net, uint32_t endpoint);

/* Set the way out of endpoint `link` from now on (what is under way stays as it was). */
void wire_net_impair(struct wire_net *net, uint32_t link, const struct stoq_impairment *impairment);
/* Receivers are woken at multiples of `ns` only, as by a NIC's interrupt moderation: makes trains out of
 * paced datagrams. 0: as they come. */
void wire_net_moderate(struct wire_net *net, uint64_t ns);
/* The endpoint's trains lie in frames of `bytes`, one datagram in each, as AF_XDP's do (io.h, stride); 0: end
 * to end. */
void wire_net_frames(struct wire_net *net, uint32_t endpoint, uint32_t bytes);
/* The NAT before `endpoint` takes another port (1) or address (2). What is sent to the old mapping arrives
 * for another `forget_ns`, then vanishes. */
void wire_net_rebind(struct wire_net *net, uint32_t endpoint, int what, uint64_t forget_ns);
/* Steps of each kind on this link since creation. */
void wire_net_counts(const struct wire_net *net, uint32_t link, uint64_t counts[WIRE_FATE_COUNT]);
void wire_net_set_tap(struct wire_net *net, wire_tap *tap, void *ctx);
/* Number of an open endpoint: the order of opening. */
uint32_t wire_endpoint_index(const struct io *io);
/* Buffers not in a free list: 0 when nothing is under way or held by a worker. */
uint64_t wire_net_buffers_used(const struct wire_net *net);

#endif
