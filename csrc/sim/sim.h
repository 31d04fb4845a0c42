/* The simulation: two workers joined by the wire backend on one virtual clock, without threads. This header
 * is the inside of stoq_sim_* (stoq.h) for C programs that look closer: the wire, the workers, single steps.
 *
 *        client worker 0 ── link 0 "up" ──▶ ┌──────────┐ ──▶ server worker 1 (port 9292)
 *             ▲                             │ wire_net │          │
 *             └──────────────◀── NAT ────── └──────────┘ ◀── link 1 "down"
 *
 * Time moves only in sim_advance: to the next timer or arrival, or by SIM_TURN_NS when an end has more to do
 * at once.
 */
#ifndef STOQ_SIM_H
#define STOQ_SIM_H

#include "../io/wire.h"
#include "../stoq.h"
#include "../worker/worker.h"

#define SIM_CLIENT 0
#define SIM_SERVER 1
/* Virtual cost of a turn that left work behind: endless work in no time at all would stop the clock. */
#define SIM_TURN_NS 1000

struct stoq_sim {
    struct wire_net *net;
    struct worker *workers[2]; /* Owned by `datapath`. */
    struct stoq_datapath *datapath;
    uint64_t now_ns;
    uint64_t next_ns[2]; /* When each worker wants its next turn. */
    uint64_t turns;
    uint64_t forget_ns; /* How long a NAT keeps an old mapping. */
    uint16_t next_port;
    struct quic_addr server, client;
};

/* One turn of a worker now. */
void sim_turn(struct stoq_sim *sim, uint32_t worker);
/* A turn, now, of each end that has something to do: a timer, an arrival, or with `all` perhaps a command. */
void sim_turns(struct stoq_sim *sim, bool all);
/* Move time to what is next, at most to `until_ns`. False: nothing is left to do before that. */
bool sim_advance(struct stoq_sim *sim, uint64_t until_ns);
bool sim_events_waiting(const struct stoq_sim *sim);

#endif
