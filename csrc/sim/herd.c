/* See herd.h. */
#include "herd.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../io/prng.h"

#define BATCH      64u /* Well below what makes a server ask for Retry. */
#define BATCH_NS   UINT64_C(10000000000)
#define EACH_NS    UINT64_C(1000000) /* Of virtual time: a thousand handshakes a second. */
#define MAX_EVENTS 32

struct member {
    uint64_t handle; /* 0: not there yet. */
    struct script tls;
};

struct herd {
    struct pair *p;
    int aead;
    uint32_t opened; /* Of all batches: what seeds are drawn from. */
    uint32_t count, members[2], connected[2];
    struct member batch[2][BATCH];
};

static bool fail(struct pair *p, const char *why) {
    if (!p->why[0])
        snprintf(p->why, sizeof p->why, "%s", why);
    return false;
}

struct port {
    struct herd *h;
    uint32_t side;
    const struct member *member;
};

static void put(void *ctx, uint8_t type, uint8_t level, uint8_t flags, uint64_t code, const uint8_t *data,
                uint32_t len) {
    const struct port *port = ctx;
    const struct stoq_command c = {
        .type = type, .level = level, .flags = flags, .code = code, .conn = port->member->handle};
    pair_command(port->h->p, port->side, c, data, len);
}

static struct member *member_of(struct herd *h, uint32_t side, uint64_t handle) {
    for (uint32_t i = 0; i < h->members[side]; i++)
        if (h->batch[side][i].handle == handle)
            return &h->batch[side][i];
    return NULL;
}

static void on_connection(struct herd *h, uint32_t side, const struct stoq_event *e, const uint8_t *data) {
    struct stoq_new_connection head;
    if (!data || h->members[side] == h->count) {
        fail(h->p, data ? "more connections than were opened" : "no chunk to tell of a connection");
        return;
    }
    memcpy(&head, data, sizeof head);
    struct member *m = &h->batch[side][h->members[side]++];
    m->handle = e->conn;
    uint64_t seed = prng_mix(++h->opened);
    while (script_aead(seed) != h->aead)
        seed++;
    script_start(&m->tls, side == SIM_SERVER, seed, data + sizeof head, head.params_len,
                 &(struct script_sink){&(struct port){h, side, m}, put, NULL});
}

static void on_event(struct herd *h, uint32_t side, const struct stoq_event *e) {
    struct pair *p = h->p;
    const uint8_t *data =
        e->chunk == STOQ_NO_CHUNK ? NULL : stoq_receive_chunk(p->dp, side, e->chunk) + e->chunk_offset;
    struct member *m = member_of(h, side, e->conn);
    if (e->type == STOQ_EVENT_CONNECTION)
        on_connection(h, side, e, data);
    else if (m && e->type == STOQ_EVENT_CONNECTED)
        h->connected[side]++;
    else if (e->type == STOQ_EVENT_CLOSED)
        fail(p, "a connection ended");
    else if (m && e->type == STOQ_EVENT_CRYPTO &&
             !script_crypto(&m->tls, e->level, data, e->len,
                            &(struct script_sink){&(struct port){h, side, m}, put, NULL}))
        fail(p, m->tls.why);
    const struct stoq_command release = {.type = STOQ_COMMAND_CHUNK_RELEASE, .chunk = e->chunk};
    if (e->chunk != STOQ_NO_CHUNK && !stoq_command(p->dp, side, &release))
        fail(p, "the command ring is full");
}

static void events(struct herd *h) {
    for (uint32_t side = 0; side < 2; side++) {
        struct stoq_event e[MAX_EVENTS];
        int n = stoq_events(h->p->dp, side, e, MAX_EVENTS);
        for (int i = 0; i < n; i++)
            on_event(h, side, &e[i]);
    }
}

/* Until `until`, taking what is told meanwhile. */
static bool quiet(struct herd *h, uint64_t until) {
    while (!h->p->why[0] && stoq_sim_run(h->p->sim, until) < until)
        events(h);
    return !h->p->why[0];
}

static bool open_batch(struct herd *h, uint32_t count) {
    struct pair *p = h->p;
    struct stoq_connect connect;
    memset(&connect, 0, sizeof connect);
    stoq_local_address(p->dp, SIM_SERVER, &connect.peer);
    h->count = count;
    memset(h->members, 0, sizeof h->members);
    memset(h->connected, 0, sizeof h->connected);
    for (uint32_t i = 0; i < count; i++)
        if (!pair_command(p, SIM_CLIENT, (struct stoq_command){.type = STOQ_COMMAND_CONNECT}, &connect,
                          sizeof connect))
            return false;
    uint64_t start = stoq_sim_now(p->sim), until = start + BATCH_NS;
    while (h->connected[SIM_CLIENT] < count || h->connected[SIM_SERVER] < count) {
        if (stoq_sim_run(p->sim, until) >= until)
            return fail(p, "no connections within ten seconds");
        events(h);
        if (p->why[0])
            return false;
    }
    return quiet(h, start + count * EACH_NS);
}

bool herd_open(struct pair *p, int aead, uint32_t count) {
    /* From here on its events are not looked at. */
    if (!pair_run(p, &p->ends[SIM_SERVER].connected, BATCH_NS) || !p->ends[SIM_SERVER].connected)
        return fail(p, "the pair has not finished its handshake");
    struct herd *h = calloc(1, sizeof *h);
    if (!h)
        return fail(p, "no memory");
    h->p = p;
    h->aead = aead;
    bool ok = true;
    for (uint32_t n; ok && count > 0; count -= n) {
        n = count < BATCH ? count : BATCH;
        ok = open_batch(h, n);
    }
    ok = ok && quiet(h, stoq_sim_now(p->sim) + BATCH_NS);
    free(h);
    return ok;
}
