/* Plays one scenario: see run.h. Owns the simulation it opens and the virtual clock's progress. */
#include "run.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "../quic/quic_check.h"

#define CHECK_TURNS   16 /* The engine's own checks walk its tables: not after every turn. */
#define EVENT_BATCH   64
#define COMMAND_TURNS 1000          /* Turns a full command ring may take to empty; it needs one. */
#define QUIET_NS      400000000000u /* Longest closing or draining period: three probe timeouts, backed off. */
#define LISTEN_NS     100000000000u /* And then silence for so long. */

static const char *const fate_names[WIRE_FATE_COUNT] = {"sent",       "too large", "queue drop", "lost",
                                                        "CE",         "corrupted", "reordered",  "duplicated",
                                                        "unroutable", "delivered"};

bool run_fail(struct run *run, const char *format, ...) {
    if (!run->failed) {
        va_list args;
        va_start(args, format);
        int n =
            snprintf(run->why, sizeof run->why, "at %.6f s: ", (double)(run_now(run) - run->start_ns) / 1e9);
        vsnprintf(run->why + n, sizeof run->why - (size_t)n, format, args);
        va_end(args);
        run->failed = true;
    }
    return false;
}

uint64_t run_now(const struct run *run) {
    return run->sim ? stoq_sim_now(run->sim) : 0;
}

/* ---- commands ---- */

void run_command(struct run *run, uint32_t worker, const struct stoq_command *command) {
    if (run->trace)
        printf("%.9f %s command %u flags %u level %u conn %" PRIx64 " stream %" PRIu64 " len %u code %" PRIu64
               " value %" PRIu64 "\n",
               (double)(run_now(run) - run->start_ns) / 1e9, worker ? "server" : "client", command->type,
               command->flags, command->level, command->conn, command->stream, command->len, command->code,
               command->value);
    run->acted = true;
    for (int i = 0; i < COMMAND_TURNS; i++) {
        if (stoq_command(run->dp, worker, command))
            return;
        sim_turn(run->sim, worker); /* The ring is full: let the worker take from it. */
    }
    run_fail(run, "the command ring stays full");
}

void run_command_data(struct run *run, uint32_t worker, struct stoq_command command, const void *data,
                      uint32_t len) {
    command.chunk = STOQ_NO_CHUNK;
    command.len = len;
    if (len) {
        uint32_t cap;
        command.chunk = stoq_chunk_alloc(run->dp, worker, len);
        if (command.chunk == STOQ_NO_CHUNK)
            command.chunk = stoq_chunk_alloc(run->dp, worker, STOQ_LARGE_CHUNK_BYTES);
        if (command.chunk == STOQ_NO_CHUNK) {
            run_fail(run, "no send chunk for command %u", command.type);
            return;
        }
        memcpy(stoq_send_chunk(run->dp, worker, command.chunk, &cap), data, len);
    }
    run_command(run, worker, &command);
}

void run_release(struct run *run, uint32_t worker, uint64_t handle, uint32_t chunk) {
    struct stoq_command command = {.type = STOQ_COMMAND_CHUNK_RELEASE, .chunk = chunk, .conn = handle};
    run_command(run, worker, &command);
}

/* ---- what is seen ---- */

static void mix(struct run *run, uint64_t v) {
    run->hash = (run->hash ^ v) * 0x9fb21c651e98df25u ^ run->hash >> 29;
}

static void tap(void *ctx, const struct wire_step *step) {
    struct run *run = ctx;
    uint64_t head = 0, tail = 0;
    uint32_t n = step->len < 8 ? step->len : 8;
    memcpy(&head, step->data, n);
    memcpy(&tail, step->data + step->len - n, n); /* The AEAD's tag: stands for all the bytes before it. */
    mix(run, step->now_ns);
    mix(run, (uint64_t)step->fate << 40 | (uint64_t)step->link << 32 | step->len);
    mix(run, head);
    mix(run, tail + step->ecn);
    if (run->trace)
        printf("%.9f %s %s len %u ecn %u first %02x from port %u to port %u due %.9f\n",
               (double)(step->now_ns - run->start_ns) / 1e9, step->link ? "down" : "up",
               fate_names[step->fate], step->len, step->ecn, step->data[0], step->from->port, step->to->port,
               step->due_ns ? (double)(step->due_ns - run->start_ns) / 1e9 : 0.0);
}

/* Take all events of both workers. */
static void take_events(struct run *run) {
    struct stoq_event events[EVENT_BATCH];
    for (uint32_t side = 0; side < 2; side++)
        for (int n; !run->failed && (n = stoq_events(run->dp, side, events, EVENT_BATCH)) > 0;)
            for (int i = 0; i < n && !run->failed; i++) {
                run->acted = true; /* The worker may have waited for room. */
                const struct stoq_event *e = &events[i];
                if (run->trace)
                    printf("%.9f %s event %u flags %u level %u conn %" PRIx64 " stream %" PRIu64
                           " len %u code %" PRIu64 " value %" PRIu64 "\n",
                           (double)(run_now(run) - run->start_ns) / 1e9, side ? "server" : "client", e->type,
                           e->flags, e->level, e->conn, e->stream, e->len, e->code, e->value);
                mix(run,
                    (uint64_t)e->type << 56 ^ (uint64_t)e->len << 8 ^ e->stream << 40 ^ e->code ^ e->value);
                party_event(run, side, e);
            }
}

static void check_engine(struct run *run) {
    char why[256] = "";
    for (uint32_t side = 0; side < 2; side++)
        for (uint32_t i = 0; i < run->end_count[side]; i++) {
            const struct end *end = &run->ends[side][i];
            if (end->closed)
                continue;
            struct quic_endpoint *ep = worker_endpoint(run->sim->workers[side]);
            const struct quic_conn *conn = quic_conn_by_handle(ep, end->handle);
            if (conn && !quic_conn_check(conn, why, sizeof why))
                run_fail(run, "%s: invariant: %s", side ? "server" : "client", why);
        }
}

/* ---- what is due ---- */

static void act_step(struct run *run, const struct plan_step *step) {
    run->acted = true;
    if (run->trace)
        printf("%.9f step %d\n", (double)(run_now(run) - run->start_ns) / 1e9, (int)step->kind);
    if (step->kind == STEP_IMPAIR) {
        stoq_sim_impair(run->sim, &step->links[0], &step->links[1]);
        return;
    }
    if (step->kind != STEP_REBIND) {
        stoq_sim_rebind(run->sim, step->kind == STEP_NAT_PORT ? 1 : 2);
        return;
    }
    for (uint32_t i = 0; i < run->end_count[SIM_CLIENT]; i++) {
        const struct end *end = &run->ends[SIM_CLIENT][i];
        /* RFC 9000 section 9: no migration before the handshake is confirmed. */
        if (!end->connected || end->closed || end->closing)
            continue;
        struct stoq_command command = {
            .type = STOQ_COMMAND_REBIND, .chunk = STOQ_NO_CHUNK, .conn = end->handle};
        run_command(run, SIM_CLIENT, &command);
        break; /* The worker's socket moves, and all its connections with it. */
    }
}

/* May the client's address change? Before handshakes are confirmed that ends a connection rather than moving
 * it. */
static bool may_move(const struct run *run) {
    for (uint32_t i = 0; i < run->scenario.connection_count; i++) {
        const struct connection *c = &run->connections[i];
        if (!c->started)
            continue;
        const struct end *client = c->ends[0], *server = c->ends[1];
        bool over = client && client->closed;
        if (!over && !(client && server && client->heard && server->connected))
            return false;
    }
    return true;
}

/* Do everything that is due; returns when the next thing is. */
static uint64_t act(struct run *run) {
    uint64_t next = QUIC_NEVER, now = run_now(run);
    const struct scenario *s = &run->scenario;
    for (; run->next_step < s->step_count; run->next_step++) {
        const struct plan_step *step = &s->steps[run->next_step];
        uint64_t at = run->start_ns + step->at_ns;
        if (at > now || (step->kind != STEP_IMPAIR && !may_move(run))) {
            next = at > now ? at : now + 50000000; /* Look again after 50 ms. */
            break;
        }
        act_step(run, step);
    }
    for (uint32_t i = 0; i < s->connection_count; i++) {
        struct connection *c = &run->connections[i];
        if (c->dirty || c->next_ns <= now)
            party_act(run, c);
        if (c->next_ns < next)
            next = c->next_ns;
    }
    return next;
}

static bool all_over(const struct run *run) {
    for (uint32_t i = 0; i < run->scenario.connection_count; i++)
        if (!run->connections[i].started || !run->connections[i].ends[SIM_CLIENT])
            return false;
    for (uint32_t side = 0; side < 2; side++)
        for (uint32_t i = 0; i < run->end_count[side]; i++)
            if (!run->ends[side][i].closed && !run->ends[side][i].detached)
                return false;
    return true;
}

void run_unfinished(const struct connection *c, char *out, size_t cap) {
    snprintf(out, cap, "its streams are done");
    for (uint32_t j = 0; j < c->plan->stream_count; j++)
        for (unsigned d = 0; d < 2 - (unsigned)c->plan->streams[j].uni; d++) {
            const struct flow *f = &c->streams[j].flows[d];
            bool sent = f->fin_acked || f->reset_sent || f->stop_seen;
            if (sent && (f->fin_received || f->reset_received || f->stop_sent))
                continue;
            snprintf(out, cap,
                     "stream %" PRIu64 " direction %u: %" PRIu64 " of %u sent%s%s%s, %" PRIu64
                     " acked%s, %" PRIu64 " received%s",
                     c->streams[j].plan->id, d, f->sent, f->plan->bytes, f->open ? "" : ", not open",
                     f->fin_sent ? " and FIN" : "", f->reset_sent ? " and reset" : "", f->acked,
                     f->stop_sent ? ", stopped" : "", f->received, f->fin_received ? " and FIN" : "");
            return;
        }
}

static void say_unfinished(struct run *run) {
    char what[200];
    for (uint32_t i = 0; i < run->scenario.connection_count; i++) {
        const struct connection *c = &run->connections[i];
        const struct end *client = c->ends[SIM_CLIENT], *server = c->ends[SIM_SERVER];
        if (client && client->closed && (!server || server->closed))
            continue;
        run_unfinished(c, what, sizeof what);
        run_fail(run, "connection %u not over in time: %s", i, what);
    }
    run_fail(run, "not over in time: a connection of the server without a client");
}

static void play(struct run *run) {
    uint64_t bound = run->start_ns + run->scenario.bound_ns;
    uint64_t check_at = 0;
    while (!run->failed) {
        sim_turns(run->sim, run->acted);
        run->acted = false;
        if (run->sim->turns >= check_at) {
            check_engine(run);
            check_at = run->sim->turns + CHECK_TURNS;
        }
        take_events(run);
        uint64_t next = act(run);
        if (run->acted)
            continue; /* Commands first, then time. */
        if (all_over(run))
            return;
        if (!sim_advance(run->sim, next < bound ? next : bound) && run_now(run) >= bound)
            say_unfinished(run);
    }
}

static uint64_t datagrams_sent(const struct run *run) {
    uint64_t up[WIRE_FATE_COUNT], down[WIRE_FATE_COUNT];
    wire_net_counts(run->sim->net, 0, up);
    wire_net_counts(run->sim->net, 1, down);
    return up[WIRE_SENT] + down[WIRE_SENT];
}

static void let_pass(struct run *run, uint64_t ns) {
    uint64_t until = run_now(run) + ns;
    do {
        sim_turns(run->sim, run->acted);
        run->acted = false;
        take_events(run);
    } while (!run->failed && sim_advance(run->sim, until));
}

/* After the end: closing periods pass, then silence, and nothing is left. */
static void check_end(struct run *run, const struct stoq_pool_stats before[2]) {
    check_engine(run);
    let_pass(run, QUIET_NS);
    uint64_t sent = datagrams_sent(run);
    let_pass(run, LISTEN_NS);
    if (datagrams_sent(run) != sent)
        run_fail(run, "%" PRIu64 " datagrams after all connections were over", datagrams_sent(run) - sent);
    for (uint32_t side = 0; side < 2; side++) {
        struct stoq_pool_stats p;
        (void)stoq_send_free_bytes(run->dp, side); /* Takes back what the worker returned. */
        stoq_pool_statistics(run->dp, side, &p);
        if (p.connections)
            run_fail(run, "%s: %" PRIu64 " connections left", side ? "server" : "client", p.connections);
        if (p.receive_chunks_small_used | p.receive_chunks_large_used)
            run_fail(run, "%s: receive chunks leaked: %" PRIu64 " small, %" PRIu64 " large",
                     side ? "server" : "client", p.receive_chunks_small_used, p.receive_chunks_large_used);
        if (p.send_chunks_small_used | p.send_chunks_large_used)
            run_fail(run, "%s: send chunks leaked: %" PRIu64 " small, %" PRIu64 " large",
                     side ? "server" : "client", p.send_chunks_small_used, p.send_chunks_large_used);
        if (p.metadata_used != before[side].metadata_used)
            run_fail(run, "%s: metadata leaked: %" PRIu64 " bytes, %" PRIu64 " at the start",
                     side ? "server" : "client", p.metadata_used, before[side].metadata_used);
    }
    if (wire_net_buffers_used(run->sim->net))
        run_fail(run, "%" PRIu64 " wire buffers left", wire_net_buffers_used(run->sim->net));
}

static void add_totals(struct run *run, struct totals *t) {
    uint64_t fates[WIRE_FATE_COUNT], counters[STOQ_COUNTER_COUNT], drops[STOQ_DROP_COUNT];
    for (uint32_t side = 0; side < 2; side++) {
        wire_net_counts(run->sim->net, side, fates);
        stoq_counters(run->dp, side, counters, STOQ_COUNTER_COUNT);
        stoq_drops(run->dp, side, drops, STOQ_DROP_COUNT);
        for (int i = 0; i < WIRE_FATE_COUNT; i++)
            t->fates[i] += fates[i];
        for (int i = 0; i < STOQ_COUNTER_COUNT; i++)
            t->counters[i] += counters[i];
        for (int i = 0; i < STOQ_DROP_COUNT; i++)
            t->drops[i] += drops[i];
    }
    t->runs++;
    t->turns += run->sim->turns;
    t->virtual_ns += run_now(run) - run->start_ns;
}

bool run_scenario(struct run *run, struct totals *totals, bool trace) {
    struct scenario *s = &run->scenario;
    struct stoq_error error;
    struct stoq_pool_stats before[2];
    run->trace = trace;
    run->failed = false;
    run->why[0] = '\0';
    run->hash = s->seed;
    run->next_step = 0;
    run->token_len = run->server_params_len = 0;
    run->start_ns = 0;
    run->end_count[0] = run->end_count[1] = 0;
    run->totals = totals;
    run->sim = stoq_sim_open(s->seed, &s->config[0], &s->config[1], &s->links[0], &s->links[1], &error);
    if (!run->sim)
        return run_fail(run, "stoq_sim_open: %s", error.text);
    run->dp = stoq_sim_datapath(run->sim);
    run->start_ns = run_now(run);
    run->sim->forget_ns = s->forget_ns;
    wire_net_moderate(run->sim->net, s->moderation_ns);
    for (uint32_t end = 0; end < 2; end++)
        wire_net_frames(run->sim->net, end, s->frame_bytes[end]);
    wire_net_set_tap(run->sim->net, tap, run);
    for (uint32_t i = 0; i < s->connection_count; i++) {
        struct connection *c = &run->connections[i];
        c->plan = &s->connections[i];
        c->ends[0] = c->ends[1] = NULL;
        c->early_used = false;
        c->started = c->done = false;
        c->dirty = true;
        c->next_ns = 0;
        flow_setup(c);
    }
    sim_turns(run->sim, true);
    run->acted = true;
    for (uint32_t side = 0; side < 2; side++)
        stoq_pool_statistics(run->dp, side, &before[side]);
    play(run);
    if (!run->failed)
        check_end(run, before);
    add_totals(run, totals);
    for (uint32_t i = 0; i < s->connection_count; i++)
        flow_teardown(&run->connections[i]);
    stoq_sim_close(run->sim);
    run->sim = NULL;
    return !run->failed;
}
