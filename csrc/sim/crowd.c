/* See crowd.h. */
#include "crowd.h"

#include <stdio.h>
#include <string.h>

#include "../crypto/crypto.h"
#include "../io/prng.h"

#define DOWNLOAD   (UINT64_C(1) << 50) /* More than any run carries. */
#define FOR_EVER   (UINT64_C(1) << 60)
#define MAX_EVENTS 32

static const char alpn[] = "perf";

static bool fail(struct crowd *c, const char *why) {
    if (!c->why[0])
        snprintf(c->why, sizeof c->why, "%s", why);
    return false;
}

static bool command(struct crowd *c, uint32_t side, struct stoq_command m, const void *data, uint32_t len) {
    m.chunk = STOQ_NO_CHUNK;
    if (len > 0) {
        m.chunk = stoq_chunk_alloc(c->dp, side, len);
        if (m.chunk == STOQ_NO_CHUNK)
            return fail(c, "the pool of commands' data is empty");
        memcpy(stoq_send_chunk(c->dp, side, m.chunk, NULL), data, len);
        m.len = len;
    }
    return stoq_command(c->dp, side, &m) || fail(c, "the command ring is full");
}

struct port {
    struct crowd *c;
    uint32_t side;
    const struct crowd_end *end;
};

static void put(void *ctx, uint8_t type, uint8_t level, uint8_t flags, uint64_t code, const uint8_t *data,
                uint32_t len) {
    const struct port *port = ctx;
    struct stoq_command m = {
        .type = type, .level = level, .flags = flags, .code = code, .conn = port->end->handle};
    if (type == STOQ_COMMAND_HANDSHAKE_COMPLETE) {
        data = (const uint8_t *)alpn;
        len = sizeof alpn - 1;
    }
    command(port->c, port->side, m, data, len);
}

static struct crowd_end *end_of(struct crowd *c, uint32_t side, uint64_t handle) {
    uint32_t count = side == SIM_CLIENT ? c->started : c->accepted;
    for (uint32_t i = 0; i < count; i++)
        if (c->ends[side][i].handle == handle)
            return &c->ends[side][i];
    return NULL;
}

static void on_connection(struct crowd *c, uint32_t side, const struct stoq_event *e, const uint8_t *data) {
    struct stoq_new_connection head;
    memcpy(&head, data, sizeof head);
    /* A client's is the one with our number; a server may see a connection begin twice (a Retry, a late
     * duplicate), but has no more of them than flows. */
    uint32_t i = side == SIM_CLIENT ? (uint32_t)e->value - 1 : c->accepted++;
    if (i >= c->flows) {
        fail(c, "more connections than flows");
        return;
    }
    struct crowd_end *end = &c->ends[side][i];
    end->handle = e->conn;
    struct port port = {c, side, end};
    uint64_t seed = prng_mix(c->seed * CROWD_MAX + i);
    while (script_aead(seed) != CRYPTO_AES_128_GCM)
        seed++; /* The quickest: nothing here depends on the cipher. */
    script_start(&end->tls, side == SIM_SERVER, seed, data + sizeof head, head.params_len,
                 &(struct script_sink){&port, put, NULL});
}

static void on_event(struct crowd *c, uint32_t side, const struct stoq_event *e) {
    const uint8_t *data =
        e->chunk == STOQ_NO_CHUNK ? NULL : stoq_receive_chunk(c->dp, side, e->chunk) + e->chunk_offset;
    struct crowd_end *end = end_of(c, side, e->conn);
    if (e->type == STOQ_EVENT_CONNECTION) {
        on_connection(c, side, e, data);
    } else if (end && e->type == STOQ_EVENT_CRYPTO) {
        struct port port = {c, side, end};
        if (!script_crypto(&end->tls, e->level, data, e->len, &(struct script_sink){&port, put, NULL}))
            fail(c, end->tls.why);
    } else if (end && e->type == STOQ_EVENT_CONNECTED && side == SIM_CLIENT) {
        struct stoq_perf perf = {.download_bytes = DOWNLOAD, .streams = 1, .duration_ns = FOR_EVER};
        end->asked =
            command(c, side, (struct stoq_command){.type = STOQ_COMMAND_PERF_START, .conn = end->handle},
                    &perf, sizeof perf);
    } else if (e->type == STOQ_EVENT_CLOSED) {
        fail(c, "a connection ended");
    }
    const struct stoq_command release = {.type = STOQ_COMMAND_CHUNK_RELEASE, .chunk = e->chunk};
    if (e->chunk != STOQ_NO_CHUNK && !stoq_command(c->dp, side, &release))
        fail(c, "the command ring is full");
}

static bool events(struct crowd *c) {
    for (uint32_t side = 0; side < 2; side++) {
        struct stoq_event e[MAX_EVENTS];
        for (int n; (n = stoq_events(c->dp, side, e, MAX_EVENTS)) > 0;)
            for (int i = 0; i < n; i++)
                on_event(c, side, &e[i]);
    }
    return !c->why[0];
}

static bool start_next(struct crowd *c) {
    struct stoq_connect connect;
    memset(&connect, 0, sizeof connect);
    stoq_local_address(c->dp, SIM_SERVER, &connect.peer);
    c->started++;
    return command(c, SIM_CLIENT, (struct stoq_command){.type = STOQ_COMMAND_CONNECT, .value = c->started},
                   &connect, sizeof connect);
}

bool crowd_run(struct crowd *c, uint64_t until_ns) {
    until_ns += c->start_ns;
    for (uint64_t now; (now = stoq_sim_now(c->sim)) < until_ns;) {
        uint64_t next = c->started < c->flows ? c->start_ns + c->started * c->spacing_ns : until_ns;
        if (next <= now) {
            if (!start_next(c))
                return false;
            continue;
        }
        stoq_sim_run(c->sim, next < until_ns ? next : until_ns);
        if (!events(c))
            return false;
    }
    return true;
}

bool crowd_open(struct crowd *c, uint64_t seed, uint32_t flows, uint64_t spacing_ns,
                const struct stoq_config *client, const struct stoq_config *server,
                const struct stoq_impairment *up, const struct stoq_impairment *down) {
    struct stoq_error error;
    memset(c, 0, sizeof *c);
    if (flows > CROWD_MAX)
        return fail(c, "too many flows");
    c->flows = flows;
    c->seed = seed;
    c->spacing_ns = spacing_ns;
    c->sim = stoq_sim_open(seed, client, server, up, down, &error);
    if (!c->sim)
        return fail(c, error.text);
    c->dp = stoq_sim_datapath(c->sim);
    c->start_ns = stoq_sim_now(c->sim);
    return true;
}

void crowd_close(struct crowd *c) {
    if (c->sim)
        stoq_sim_close(c->sim);
    c->sim = NULL;
}

static bool stats_of(const struct crowd *c, uint32_t side, uint64_t handle, struct quic_conn_stats *out) {
    struct quic_conn *conn = quic_conn_by_handle(worker_endpoint(c->sim->workers[side]), handle);
    if (conn)
        quic_conn_stats(conn, out);
    return conn != NULL;
}

uint64_t crowd_received(const struct crowd *c, uint32_t flow) {
    struct quic_conn_stats s;
    return stats_of(c, SIM_CLIENT, c->ends[SIM_CLIENT][flow].handle, &s) ? s.stream_bytes_received : 0;
}

bool crowd_sender(const struct crowd *c, uint32_t i, struct quic_conn_stats *out) {
    return i < c->accepted && stats_of(c, SIM_SERVER, c->ends[SIM_SERVER][i].handle, out);
}
