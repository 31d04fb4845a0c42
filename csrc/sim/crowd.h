/* Two simulated workers and many connections between them, each downloading for as long as the run lasts:
 * flows that share one bottleneck, the server's way out. For measuring congestion control; TLS is the script
 * of script.h.
 *
 *      crowd_open ──▶ crowd_run (connections start one by one, then download) ──▶ crowd_received, crowd_stats
 */
#ifndef STOQ_SIM_CROWD_H
#define STOQ_SIM_CROWD_H

#include "../quic/quic.h"
#include "script.h"
#include "sim.h"

#define CROWD_MAX 64 /* Flows. */

struct crowd_end {
    uint64_t handle;
    struct script tls;
    bool asked; /* Client: connected, and the download has been asked for. */
};

struct crowd {
    struct stoq_sim *sim;
    struct stoq_datapath *dp;
    uint32_t flows, started, accepted;
    uint64_t seed, spacing_ns, start_ns;
    struct crowd_end ends[2][CROWD_MAX]; /* Clients in order of start, servers in order of acceptance. */
    char why[512];
};

/* `flows` connections, one every `spacing_ns`. False with `why`: no memory, or a configuration that is
 * refused.
 */
bool crowd_open(struct crowd *c, uint64_t seed, uint32_t flows, uint64_t spacing_ns,
                const struct stoq_config *client, const struct stoq_config *server,
                const struct stoq_impairment *up, const struct stoq_impairment *down);
void crowd_close(struct crowd *c);
/* Until so much virtual time has passed since crowd_open. False with `why`. */
bool crowd_run(struct crowd *c, uint64_t until_ns);
/* Stream bytes that have arrived at client `flow`. */
uint64_t crowd_received(const struct crowd *c, uint32_t flow);
/* Of the sending end that was accepted as number `i`: not the flow's number if handshakes overtook each
 * other. */
bool crowd_sender(const struct crowd *c, uint32_t i, struct quic_conn_stats *out);

#endif
