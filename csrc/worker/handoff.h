/* Datagrams that reached the wrong worker, on their way to the right one.
 *
 * The kernel spreads datagrams over the sockets of a port by their addresses; after a client's address
 * changed, its datagrams may come in at a worker that does not have the connection. The connection id names
 * the worker (byte 1), and one handoff for each ordered pair of workers carries them over: a descriptor ring,
 * and a byte ring for what they hold.
 *
 *      producer ── copies bytes ──▶ [ a ring of 1 MiB ] ──────────────────────▶ consumer
 *               ── descriptor {position, len, addresses} ──▶ [ ring of slots ] ──▶
 *
 * The consumer releases the bytes up to the end of a train together with its descriptor.
 *
 * A train stays a train. Bounded: what does not fit is dropped and counted by the producer
 * (STOQ_DROP_OTHER_WORKER). Private memory of the process: workers are threads of one process.
 */
#ifndef STOQ_WORKER_HANDOFF_H
#define STOQ_WORKER_HANDOFF_H

#include <stdbool.h>
#include <stdint.h>

#include "../quic/quic.h"
#include "ring.h"

/* Single datagrams of 1 KiB fill the bytes at about the same time as the descriptors. */
#define HANDOFF_SLOTS 1024u
#define HANDOFF_BYTES (1u << 20) /* 16 trains of 64 KiB: what a worker takes in one or two turns. */

struct handoff;

struct handoff *handoff_create(void);
void handoff_destroy(struct handoff *h);

/* Producer. False: no room. Not seen by the consumer before handoff_publish. */
bool handoff_push(struct handoff *h, const struct quic_rx *rx);
/* True: there was something new, so the consumer may need a kick. */
bool handoff_publish(struct handoff *h);

/* Consumer: the next train (its bytes may be changed, as those of io_rx), until handoff_pop. False: none. */
bool handoff_peek(struct handoff *h, struct quic_rx *rx);
void handoff_pop(struct handoff *h);
/* Either side: is anything under way? */
bool handoff_waiting(const struct handoff *h);

#endif
