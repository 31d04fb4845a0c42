/* See pair.h. */
#include "pair.h"

#include <stdio.h>
#include <string.h>

#define CONNECT_NS UINT64_C(10000000000)
#define SEED       5
#define MAX_EVENTS 32

static const char alpn[] = "perf";

static bool fail(struct pair *p, const char *why) {
    if (!p->why[0])
        snprintf(p->why, sizeof p->why, "%s", why);
    return false;
}

bool pair_command(struct pair *p, uint32_t side, struct stoq_command c, const void *data, uint32_t len) {
    c.chunk = STOQ_NO_CHUNK;
    if (len > 0) {
        c.chunk = stoq_chunk_alloc(p->dp, side, len);
        if (c.chunk == STOQ_NO_CHUNK)
            return fail(p, "the pool of commands' data is empty");
        memcpy(stoq_send_chunk(p->dp, side, c.chunk, NULL), data, len);
        c.len = len;
    }
    return stoq_command(p->dp, side, &c) || fail(p, "the command ring is full");
}

struct port {
    struct pair *p;
    uint32_t side;
};

static void put(void *ctx, uint8_t type, uint8_t level, uint8_t flags, uint64_t code, const uint8_t *data,
                uint32_t len) {
    const struct port *port = ctx;
    struct stoq_command c = {
        .type = type, .level = level, .flags = flags, .code = code, .conn = port->p->ends[port->side].handle};
    if (type == STOQ_COMMAND_HANDSHAKE_COMPLETE) {
        data = (const uint8_t *)alpn;
        len = sizeof alpn - 1;
    }
    pair_command(port->p, port->side, c, data, len);
}

static void on_event(struct pair *p, uint32_t side, const struct stoq_event *e) {
    struct pair_end *end = &p->ends[side];
    struct port port = {p, side};
    struct script_sink sink = {&port, put, NULL};
    const uint8_t *data =
        e->chunk == STOQ_NO_CHUNK ? NULL : stoq_receive_chunk(p->dp, side, e->chunk) + e->chunk_offset;
    switch (e->type) {
    case STOQ_EVENT_CONNECTION: {
        struct stoq_new_connection head;
        memcpy(&head, data, sizeof head);
        end->handle = e->conn;
        script_start(&end->tls, side == SIM_SERVER, p->tls_seed, data + sizeof head, head.params_len, &sink);
        break;
    }
    case STOQ_EVENT_CRYPTO:
        if (!script_crypto(&end->tls, e->level, data, e->len, &sink))
            fail(p, end->tls.why);
        break;
    case STOQ_EVENT_CONNECTED:
        end->connected = true;
        break;
    case STOQ_EVENT_CLOSED:
        end->closed = true;
        break;
    case STOQ_EVENT_PERF_DONE:
        if (!data || e->len != sizeof p->result || end->done || end->closed) {
            fail(p, "a perf test ended twice, after its connection, or without a result");
            break;
        }
        memcpy(&p->result, data, sizeof p->result);
        end->done = true;
        end->failed = e->value;
        break;
    case STOQ_EVENT_STREAM_DATA:
    case STOQ_EVENT_STREAM_ACKED:
        end->stream_events++;
        break;
    default:
        break;
    }
    const struct stoq_command release = {.type = STOQ_COMMAND_CHUNK_RELEASE, .chunk = e->chunk};
    if (e->chunk != STOQ_NO_CHUNK && !stoq_command(p->dp, side, &release))
        fail(p, "the command ring is full");
}

bool pair_events(struct pair *p) {
    for (uint32_t side = 0; side < 2; side++) {
        struct stoq_event e[MAX_EVENTS];
        int n = stoq_events(p->dp, side, e, MAX_EVENTS);
        for (int i = 0; i < n; i++)
            on_event(p, side, &e[i]);
    }
    return !p->why[0];
}

bool pair_run(struct pair *p, const bool *flag, uint64_t span_ns) {
    uint64_t until = stoq_sim_now(p->sim) + span_ns;
    while (!*flag && stoq_sim_now(p->sim) < until) {
        stoq_sim_run(p->sim, until);
        if (!pair_events(p))
            return false;
    }
    return true;
}

bool pair_open(struct pair *p, int aead, const struct stoq_config *client, const struct stoq_config *server,
               const struct stoq_impairment *wire) {
    struct stoq_error error;
    memset(p, 0, sizeof *p);
    for (p->tls_seed = 77; script_aead(p->tls_seed) != aead;)
        p->tls_seed++;
    p->sim = stoq_sim_open(SEED, client, server, wire, wire, &error);
    if (!p->sim)
        return fail(p, error.text);
    p->dp = stoq_sim_datapath(p->sim);
    struct stoq_connect connect;
    memset(&connect, 0, sizeof connect);
    stoq_local_address(p->dp, SIM_SERVER, &connect.peer);
    if (pair_command(p, SIM_CLIENT, (struct stoq_command){.type = STOQ_COMMAND_CONNECT}, &connect,
                     sizeof connect) &&
        pair_run(p, &p->ends[SIM_CLIENT].connected, CONNECT_NS) &&
        (p->ends[SIM_CLIENT].connected || fail(p, "no connection within ten seconds")))
        return true;
    pair_close(p);
    return false;
}

void pair_close(struct pair *p) {
    stoq_sim_close(p->sim);
    p->sim = NULL;
    p->dp = NULL;
}

bool pair_ask(struct pair *p, struct stoq_perf perf) {
    p->ends[SIM_CLIENT].done = false;
    return pair_command(
        p, SIM_CLIENT,
        (struct stoq_command){.type = STOQ_COMMAND_PERF_START, .conn = p->ends[SIM_CLIENT].handle}, &perf,
        sizeof perf);
}
