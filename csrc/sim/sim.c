/* stoq_sim_*: see sim.h and stoq.h. Owns the wire and, through the adopted datapath, the two workers. */
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../io/prng.h"
#include "../worker/datapath.h"

/* Virtual time at the start: not 0, which a careless timestamp could mean by "never set". */
#define SIM_START_NS 1000000000u
/* How long a NAT lets packets to the old mapping through after it has rebound: those already in flight on
 * most paths. */
#define SIM_FORGET_NS   200000000u
#define SIM_CLIENT_PORT 50000 /* Any dynamic port, RFC 6335. */

/* fd57:4952:49::`host`, RFC 4193. */
static void sim_address(struct quic_addr *out, uint8_t host, uint16_t port) {
    static const uint8_t prefix[6] = {0xfd, 0x57, 0x49, 0x52, 0x00, 0x49};
    memset(out, 0, sizeof *out);
    memcpy(out->ip, prefix, sizeof prefix);
    out->ip[15] = host;
    out->port = port;
}

/* REBIND command: the client goes on from another port of its address. */
static bool sim_rebind(void *ctx, struct quic_addr *local) {
    struct stoq_sim *sim = ctx;
    *local = sim->client;
    local->port = sim->next_port++;
    return true;
}

static bool sim_fail(struct stoq_error *error, int code, const char *text) {
    if (!error->text[0]) {
        error->code = code;
        snprintf(error->text, sizeof error->text, "%s", text);
    }
    return false;
}

static bool sim_worker(struct stoq_sim *sim, uint32_t index, uint64_t seed, const struct stoq_config *asked,
                       const struct quic_addr *bind, struct stoq_error *error) {
    struct stoq_config config = *asked, complete;
    config.workers = 1;
    config.backend = NULL; /* Not looked up: the wire is given below. */
    config.server = index == SIM_SERVER;
    if (!stoq_config_complete(&config, seed, &complete, error))
        return sim_fail(error, -EINVAL, "the simulation's configuration is not valid");
    struct worker_config wc = {
        .config = &complete,
        .index = index,
        .count = 1,
        .ops = &io_wire_ops,
        .io_backend = sim->net,
        .event_fd = -1,
        .random_seed = seed,
        .driven = true,
        .rebind = sim_rebind,
        .rebind_ctx = sim,
    };
    sim->workers[index] = worker_create(&wc, error);
    if (!sim->workers[index])
        return sim_fail(error, -ENOMEM, "a simulated worker could not be made");
    return worker_open_io(sim->workers[index], bind, error) ||
           sim_fail(error, -EIO, "a simulated worker could not open the wire");
}

struct stoq_sim *stoq_sim_open(uint64_t seed, const struct stoq_config *client,
                               const struct stoq_config *server, const struct stoq_impairment *up,
                               const struct stoq_impairment *down, struct stoq_error *error) {
    struct stoq_sim *sim = calloc(1, sizeof *sim);
    struct stoq_error ignored;
    error = error ? error : &ignored;
    memset(error, 0, sizeof *error);
    if (!sim || !(sim->net = wire_net_create(prng_mix(seed)))) {
        sim_fail(error, -ENOMEM, "out of memory for the simulation");
        free(sim);
        return NULL;
    }
    sim->now_ns = SIM_START_NS;
    sim->forget_ns = SIM_FORGET_NS;
    sim->next_port = SIM_CLIENT_PORT + 1;
    wire_net_advance(sim->net, sim->now_ns);
    sim_address(&sim->client, 1, SIM_CLIENT_PORT);
    sim_address(&sim->server, 2, STOQ_PORT);
    /* `| 1`: a seed of 0 would mean the kernel's randomness. */
    if (sim_worker(sim, SIM_CLIENT, prng_mix(seed ^ 0xc11e47) | 1, client, &sim->client, error) &&
        sim_worker(sim, SIM_SERVER, prng_mix(seed ^ 0x5e44e4) | 1, server, &sim->server, error))
        sim->datapath = stoq_datapath_adopt(sim->workers, 2, error);
    if (!sim->datapath) {
        sim_fail(error, -ENOMEM, "the simulated workers could not be joined to a datapath");
        for (int i = 0; i < 2; i++)
            if (sim->workers[i])
                worker_destroy(sim->workers[i]);
        wire_net_destroy(sim->net);
        free(sim);
        return NULL;
    }
    stoq_sim_impair(sim, up, down);
    return sim;
}

void stoq_sim_close(struct stoq_sim *sim) {
    if (!sim)
        return;
    stoq_datapath_release(sim->datapath);
    wire_net_destroy(sim->net);
    free(sim);
}

struct stoq_datapath *stoq_sim_datapath(struct stoq_sim *sim) {
    return sim->datapath;
}

uint64_t stoq_sim_now(const struct stoq_sim *sim) {
    return sim->now_ns;
}

void sim_turn(struct stoq_sim *sim, uint32_t worker) {
    sim->next_ns[worker] = worker_turn(sim->workers[worker], sim->now_ns);
    sim->turns++;
}

void sim_turns(struct stoq_sim *sim, bool all) {
    for (uint32_t i = 0; i < 2; i++)
        if (all || sim->next_ns[i] <= sim->now_ns || wire_net_ready(sim->net, i))
            sim_turn(sim, i);
}

bool sim_events_waiting(const struct stoq_sim *sim) {
    return stoq_events_waiting(sim->datapath, SIM_CLIENT) || stoq_events_waiting(sim->datapath, SIM_SERVER);
}

bool sim_advance(struct stoq_sim *sim, uint64_t until_ns) {
    uint64_t next = wire_net_next(sim->net);
    for (int i = 0; i < 2; i++)
        if (wire_net_ready(sim->net, (uint32_t)i))
            next = sim->now_ns; /* The other end's turn made it so. */
        else if (sim->next_ns[i] < next)
            next = sim->next_ns[i];
    if (next <= sim->now_ns)
        next = sim->now_ns + SIM_TURN_NS;
    bool more = next <= until_ns;
    if (!more)
        next = until_ns > sim->now_ns ? until_ns : sim->now_ns;
    sim->now_ns = next;
    wire_net_advance(sim->net, next);
    return more;
}

uint64_t stoq_sim_run(struct stoq_sim *sim, uint64_t until_ns) {
    sim_turns(sim, true); /* The caller may have given commands. */
    while (!sim_events_waiting(sim) && sim_advance(sim, until_ns))
        sim_turns(sim, false);
    return sim->now_ns;
}

void stoq_sim_impair(struct stoq_sim *sim, const struct stoq_impairment *up,
                     const struct stoq_impairment *down) {
    static const struct stoq_impairment perfect;
    wire_net_impair(sim->net, SIM_CLIENT, up ? up : &perfect);
    wire_net_impair(sim->net, SIM_SERVER, down ? down : &perfect);
}

void stoq_sim_rebind(struct stoq_sim *sim, int what) {
    wire_net_rebind(sim->net, SIM_CLIENT, what, sim->forget_ns);
}
