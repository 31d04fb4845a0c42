/* Playing one scenario: both applications, who know everything about each other and check every event.
 *
 *   run.c    the loop over virtual time, the wire's steps, the end: quiet, no leak
 *   party.c  events of one end: handshake, close, DATAGRAM frames
 *   flow.c   streams: what to send, what must arrive
 *
 *        scenario ──▶ run_scenario ──▶ commands ──▶ worker 0 ◀─ wire ─▶ worker 1 ──▶ events ──▶ checks
 *
 * The first thing that is wrong is kept in run->why and ends the run.
 */
#ifndef STOQ_SIM_RUN_H
#define STOQ_SIM_RUN_H

#include "../tables.h"
#include "scenario.h"
#include "script.h"
#include "sim.h"

/* Connections of one worker: those planned and what late duplicates of Initials open. */
#define RUN_MAX_ENDS 128
/* Bytes of an address token kept: several times what the engine's take. */
#define RUN_MAX_TOKEN 512

/* A piece a slow reader has not consumed yet. */
struct held {
    uint64_t due_ns;
    uint32_t chunk, len;
};

/* One direction of a stream, both its ends. */
struct flow {
    const struct plan_flow *plan;
    /* Sender. */
    bool open, fin_sent, fin_acked, reset_sent, stop_seen;
    uint64_t sent, acked, next_send_ns;
    /* Receiver. */
    bool fin_received, reset_received, stop_sent;
    uint64_t received;
    struct held *held; /* A queue in an array: held[first..count). */
    uint32_t held_first, held_count, held_cap;
};

struct stream {
    const struct plan_stream *plan;
    bool known; /* The peer has seen it. */
    struct flow flows[2];
};

struct connection;

/* One end of a connection, from its CONNECTION event on. */
struct end {
    struct connection *connection; /* NULL for a server's until its ClientHello has come. */
    uint64_t handle;
    uint8_t side;
    bool ghost;     /* Opened by a late duplicate of an Initial: nobody is at the other end. */
    bool connected; /* CONNECTED */
    bool early;     /* A client that may send 0-RTT; a server that takes it. */
    bool closing;   /* We sent CLOSE or DETACH. */
    bool detached;
    bool heard;  /* Stream data or its acknowledgement came: the handshake is confirmed in effect. */
    bool closed; /* CLOSED */
    uint8_t closed_flags;
    uint64_t closed_code;
    uint64_t connected_ns;
    uint64_t available[2],
        opened[2]; /* Streams we may open, have opened: [0] bidirectional, [1] unidirectional. */
    uint32_t datagrams_sent, updates_done;
    uint64_t next_datagram_ns;
    uint8_t datagram_seen[16]; /* One bit a DATAGRAM frame received. */
    struct script tls;
};

struct connection {
    const struct plan_connection *plan;
    struct end *ends[2];
    bool started, done; /* done: every planned flow is over. */
    bool early_used;    /* The server has seen this ClientHello's 0-RTT. */
    bool dirty;         /* Something happened: look whether there is something to do. */
    uint64_t next_ns;   /* When there will be by itself. */
    uint64_t key;       /* Of the contents of its streams. */
    struct stream streams[SCENARIO_MAX_STREAMS];
};

/* Over all runs, for the summary. */
struct totals {
    uint64_t runs, connections, connected, timed_out, closed_by_peer, resets, stops, datagrams, rebinds,
        turns, tokens, early_taken, early_refused;
    uint64_t bytes, virtual_ns;
    uint64_t fates[WIRE_FATE_COUNT];
    uint64_t counters[STOQ_COUNTER_COUNT];
    uint64_t drops[STOQ_DROP_COUNT];
    uint64_t endings[END_COUNT];
};

struct run {
    struct scenario scenario; /* First: large. */
    struct connection connections[SCENARIO_MAX_CONNECTIONS];
    struct end ends[2][RUN_MAX_ENDS];
    uint32_t end_count[2];
    struct stoq_sim *sim;
    struct stoq_datapath *dp;
    struct totals *totals;
    uint64_t start_ns;
    uint32_t next_step;
    uint32_t token_len; /* Of the latest NEW_TOKEN: later connections present it. */
    uint8_t token[RUN_MAX_TOKEN];
    uint32_t server_params_len; /* The latest: later connections remember them for 0-RTT. */
    uint8_t server_params[SCRIPT_MAX_PARAMS];
    bool trace;
    bool acted; /* A command was given: take turns before time moves. */
    bool failed;
    uint64_t hash; /* Of every step of every datagram. */
    char why[400];
};

/* Play `run->scenario`. True: all was as it must be. `run->hash` is the run's fingerprint. */
bool run_scenario(struct run *run, struct totals *totals, bool trace);

/* ---- between the parts ---- */

/* Note what is wrong; the first counts. Always false. */
__attribute__((format(printf, 2, 3))) bool run_fail(struct run *run, const char *format, ...);
uint64_t run_now(const struct run *run);
/* The first stream that is not over, in words. */
void run_unfinished(const struct connection *c, char *out, size_t cap);
void run_command(struct run *run, uint32_t worker, const struct stoq_command *command);
/* A command whose `len` bytes go into a chunk. */
void run_command_data(struct run *run, uint32_t worker, struct stoq_command command, const void *data,
                      uint32_t len);
void run_release(struct run *run, uint32_t worker, uint64_t handle, uint32_t chunk);

/* party.c */
void party_connect(struct run *run, struct connection *c);
bool party_event(struct run *run, uint32_t side, const struct stoq_event *event);
/* Do what is due on this connection; sets next_ns. */
void party_act(struct run *run, struct connection *c);

/* flow.c */
void flow_setup(struct connection *c);
void flow_teardown(struct connection *c);
bool flow_event(struct run *run, struct end *end, const struct stoq_event *event);
/* Send, reset, stop, consume what is due now; false while something is still to come. */
bool flow_act(struct run *run, struct connection *c);
/* Give back what a closed end still holds. */
void flow_release(struct run *run, struct end *end);

static inline void run_wake_at(struct connection *c, uint64_t at_ns) {
    if (at_ns < c->next_ns)
        c->next_ns = at_ns;
}

#endif
