/* A worker: one thread's worth of datapath, run to completion.
 *
 * It owns a backend instance, a QUIC endpoint, a timer wheel, a private arena and the receive pool, and it
 * shares one memfd with the control plane (shared.h draws it). It takes no lock and blocks nowhere but in
 * io->wait.
 *
 *   worker_turn(now):
 *
 *     commands ─▶ other workers' datagrams ─▶ io->rx ─▶ timers ─▶ events ─▶ perf ─▶ transmit ─▶ io->flush
 *        │                                      │                     │                  │
 *        └ bounded batch                        └ bounded             │                  └ bounded trains
 *                                                                     └ stops at a full ring; the rest stays
 *                                                                       in the engine
 *
 * Lifetime, and the thread each step may run on:
 *
 *   worker_create     any thread. Maps memory, touches none of the pools: pages land on the NUMA node of the
 *                     thread that first writes them, which is the worker's own.
 *   worker_open_io    the worker's thread. Opens the backend and creates the endpoint.
 *   worker_turn …     the worker's thread, or whoever drives the clock (the simulator; fuzzers): nothing here
 *                     reads a clock or needs a thread. worker_run is the thread's loop around worker_turn.
 *   worker_destroy    any thread, after the last turn.
 */
#ifndef STOQ_WORKER_H
#define STOQ_WORKER_H

#include <stdbool.h>
#include <stdint.h>

#include "../io/io.h"
#include "../quic/quic.h"
#include "../stoq.h"

struct guard;
struct steer;
struct worker;

/* How to build one worker. `config` is copied where it is kept; keys in it must not be all zero any more. */
struct worker_config {
    const struct stoq_config *config;
    uint32_t index;           /* Number of this worker: byte 1 of its connection ids. */
    uint32_t count;           /* Workers of the datapath. */
    const struct io_ops *ops; /* Backend. */
    void *io_backend;         /* io_config.backend, e.g. struct wire_net *. */
    struct guard *guard;      /* Of the interface, shared by all workers; NULL: none. Not owned. */
    bool guard_native;        /* It runs in the driver. */
    bool driver_checksum;     /* afxdp.h */
    struct steer *steer;      /* Of the sockets on one port; NULL: none. Not owned. */
    int event_fd;             /* Written when the control plane may be asleep; -1: never. Not owned. */
    uint64_t
        random_seed; /* Non-zero: all randomness comes from this seed (simulation only). 0: the kernel's. */
    bool driven;     /* No thread: somebody calls worker_turn. Statistics are then published every turn. */
    /* How REBIND gets another local address: answers the new one. NULL: open the backend again with port 0.
     */
    bool (*rebind)(void *ctx, struct quic_addr *local);
    void *rebind_ctx;
};

/* Map a worker's memory. NULL on failure, with `error` filled. */
struct worker *worker_create(const struct worker_config *config, struct stoq_error *error);

/* Open the backend bound to `bind` (its port may be 0) and create the endpoint. False with `error` on
 * failure. */
bool worker_open_io(struct worker *w, const struct quic_addr *bind, struct stoq_error *error);

/* Open the backend again in another thread, for a worker that was a guest (guests.h): a server's on the port
 * it has. */
bool worker_reopen_io(struct worker *w, struct stoq_error *error);

/* One turn at time `now` (ns, monotonic, never going back). Returns the time at which the next turn is due if
 * nothing arrives before (QUIC_NEVER: nothing is due), or 0 when there is more to do at once. A time returned
 * is later than `now`, and a turn at that time makes progress: a virtual clock may jump to it. */
uint64_t worker_turn(struct worker *w, uint64_t now);

/* Ask for what the STOP command does, without needing room in any ring. Any thread. */
void worker_request_stop(struct worker *w);

/* True once the worker has stopped (STOP command or worker_request_stop); further turns do nothing. */
bool worker_stopped(const struct worker *w);

/* The thread's loop: turns on CLOCK_MONOTONIC, spinning a little and then sleeping in io->wait, until STOP.
 */
void worker_run(struct worker *w);

/* Make a worker that may be asleep look at its rings. Any thread. */
void worker_kick(struct worker *w);

/* Let a and b pass datagrams both ways (several workers on one port). b may not have turned yet; a may be
 * running. */
bool worker_link(struct worker *a, struct worker *b);
/* Undo it in `a`, which never saw number `b`; before b is destroyed, which frees the rings to it. */
void worker_unlink(struct worker *a, uint32_t b);
/* After the links: there are `n` workers now. */
void worker_set_count(struct worker *w, uint32_t n);

/* Bound local address. After worker_open_io. */
void worker_local(const struct worker *w, struct quic_addr *out);

/* The QUIC endpoint, for whoever drives the turns and checks its connections between them. After
 * worker_open_io. */
struct quic_endpoint *worker_endpoint(struct worker *w);

/* Close the backend, unmap everything. */
void worker_destroy(struct worker *w);

#endif
