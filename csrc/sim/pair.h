/* Two simulated workers, one connection between them, and `perf` on it: for tests and benchmarks that want
 * the engine at work and nothing else. TLS is the script of script.h.
 *
 *      pair_open ──▶ connected ──▶ pair_ask ──▶ pair_run until pair.ends[0].done ──▶ pair.result
 */
#ifndef STOQ_SIM_PAIR_H
#define STOQ_SIM_PAIR_H

#include "script.h"
#include "sim.h"

struct pair_end {
    uint64_t handle; /* Of the connection. */
    struct script tls;
    bool connected, closed, done;
    uint64_t failed; /* Requests, as PERF_DONE says. */
    unsigned stream_events;
};

struct pair {
    struct stoq_sim *sim;
    struct stoq_datapath *dp;
    struct pair_end ends[2]; /* SIM_CLIENT, SIM_SERVER */
    struct stoq_perf_result result;
    uint64_t tls_seed; /* Decides, among others, on the cipher: script_aead. */
    char why[512];     /* What went wrong; "" when nothing has. */
};

/* With this cipher (enum crypto_aead). False with `why`: no memory, a configuration that is refused, or no
 * connection within ten virtual seconds.
 */
bool pair_open(struct pair *p, int aead, const struct stoq_config *client, const struct stoq_config *server,
               const struct stoq_impairment *wire);
void pair_close(struct pair *p);
/* A command of `side`, with `len` bytes of data. False with `why`: the pool or the ring is full. */
bool pair_command(struct pair *p, uint32_t side, struct stoq_command c, const void *data, uint32_t len);
/* The client asks for a test; ends[0].done and `result` tell of its end. */
bool pair_ask(struct pair *p, struct stoq_perf perf);
/* What waits for the control planes of both. False with `why`. */
bool pair_events(struct pair *p);
/* Run until *flag, or until `span_ns` of virtual time is over. False with `why`. */
bool pair_run(struct pair *p, const bool *flag, uint64_t span_ns);

#endif
