/* The two applications of a simulated connection, apart from its streams: handshake, DATAGRAM frames, key
 * updates, and above all how it may end: which CLOSED events are right depends on what both ends did and on
 * what the wire may lose. */
#include <string.h>

#include "../io/prng.h"
#include "run.h"

#define RESERVED_VERSION 0x1a2a3a4au /* Of the pattern that no version will have, RFC 9000 section 15. */

static const char *side_name(uint32_t side) {
    return side == SIM_CLIENT ? "client" : "server";
}

/* ---- handshake ---- */

struct script_port {
    struct run *run;
    struct end *end;
};

static void script_put(void *ctx, uint8_t type, uint8_t level, uint8_t flags, uint64_t code,
                       const uint8_t *data, uint32_t len) {
    const struct script_port *port = ctx;
    struct stoq_command command = {
        .type = type, .flags = flags, .level = level, .code = code, .conn = port->end->handle};
    if (type == STOQ_COMMAND_CLOSE)
        port->end->closing = true;
    if (type == STOQ_COMMAND_SECRET && level == QUIC_ZERO_RTT)
        port->end->early = true;
    if (type == STOQ_COMMAND_EARLY_ANSWER)
        *(code ? &port->run->totals->early_taken : &port->run->totals->early_refused) += 1;
    if (type == STOQ_COMMAND_PEER_PARAMS && port->end->side == SIM_CLIENT && len <= SCRIPT_MAX_PARAMS) {
        memcpy(port->run->server_params, data, len);
        port->run->server_params_len = len;
    }
    run_command_data(port->run, port->end->side, command, data, len);
}

/* A server's register against replay: early data of each ClientHello once, whoever repeats it. */
static bool first_use(void *ctx, uint64_t seed) {
    const struct script_port *port = ctx;
    for (uint32_t i = 0; i < port->run->scenario.connection_count; i++) {
        struct connection *c = &port->run->connections[i];
        if (c->plan->seed != seed || c->early_used)
            continue;
        c->early_used = true;
        return true;
    }
    return false;
}

void party_connect(struct run *run, struct connection *c) {
    struct {
        struct stoq_connect head;
        uint8_t token[RUN_MAX_TOKEN];
    } connect = {
        .head = {.version = c->plan->reserved_version ? RESERVED_VERSION : 0, .token_len = run->token_len}};
    memcpy(&connect.head.peer, &run->sim->server, sizeof connect.head.peer);
    memcpy(connect.token, run->token, run->token_len);
    struct stoq_command command = {.type = STOQ_COMMAND_CONNECT,
                                   .value = (uint64_t)(c - run->connections) + 1};
    c->started = true;
    run->totals->connections++;
    run->totals->endings[c->plan->ending]++;
    run_command_data(run, SIM_CLIENT, command, &connect, (uint32_t)sizeof connect.head + run->token_len);
}

static bool on_connection(struct run *run, uint32_t side, const struct stoq_event *e) {
    struct stoq_new_connection head;
    if (run->end_count[side] == RUN_MAX_ENDS)
        return run_fail(run, "%s: more connections than were ever opened", side_name(side));
    if (e->chunk == STOQ_NO_CHUNK || e->len < sizeof head)
        return run_fail(run, "%s: CONNECTION without its chunk", side_name(side));
    const uint8_t *data = stoq_receive_chunk(run->dp, side, e->chunk) + e->chunk_offset;
    memcpy(&head, data, sizeof head);
    if (head.params_len != e->len - sizeof head || (head.server != 0) != (side == SIM_SERVER))
        return run_fail(run, "%s: CONNECTION says server %u, %u bytes of parameters in %u", side_name(side),
                        head.server, head.params_len, e->len);
    struct end *end = &run->ends[side][run->end_count[side]++];
    memset(end, 0, sizeof *end);
    end->handle = e->conn;
    end->side = (uint8_t)side;
    struct script_port port = {run, end};
    uint64_t seed = 0;
    if (side == SIM_CLIENT) {
        if (!e->value || e->value > run->scenario.connection_count ||
            run->connections[e->value - 1].ends[side])
            return run_fail(run, "client: CONNECTION with cookie %llu", (unsigned long long)e->value);
        end->connection = &run->connections[e->value - 1];
        end->connection->ends[side] = end;
        const struct plan_connection *plan = end->connection->plan;
        seed = plan->seed;
        if (plan->ending == END_REFUSED && plan->ender == side)
            end->tls.refuse_alert = plan->alert;
    }
    const struct script_sink sink = {&port, script_put, first_use};
    if (side == SIM_CLIENT)
        script_remember(&end->tls, seed, run->server_params, run->server_params_len, &sink);
    script_start(&end->tls, side == SIM_SERVER, seed, data + sizeof head, head.params_len, &sink);
    return true;
}

/* A server learns from the ClientHello whose connection this is. */
static void bind_server(struct run *run, struct end *end) {
    if (end->connection || end->tls.stage == SCRIPT_WAIT_CLIENT_HELLO)
        return;
    for (uint32_t i = 0; i < run->scenario.connection_count; i++) {
        struct connection *c = &run->connections[i];
        if (c->plan->seed != end->tls.seed)
            continue;
        end->connection = c;
        end->ghost = c->ends[SIM_SERVER] != NULL;
        if (!end->ghost)
            c->ends[SIM_SERVER] = end;
        if (c->plan->ending == END_REFUSED && c->plan->ender == SIM_SERVER)
            end->tls.refuse_alert = c->plan->alert;
        return;
    }
    run_fail(run, "server: a ClientHello nobody sent");
}

static bool on_crypto(struct run *run, struct end *end, const struct stoq_event *e) {
    struct script_port port = {run, end};
    if (e->len && e->chunk == STOQ_NO_CHUNK)
        return run_fail(run, "%s: CRYPTO without a chunk", side_name(end->side));
    if (end->closing)
        return true;
    const uint8_t *data = e->len ? stoq_receive_chunk(run->dp, end->side, e->chunk) + e->chunk_offset : NULL;
    if (!script_crypto(&end->tls, e->level, data, e->len,
                       &(struct script_sink){&port, script_put, first_use}))
        return run_fail(run, "%s: CRYPTO at level %u: %s", side_name(end->side), e->level, end->tls.why);
    bind_server(run, end);
    return true;
}

static bool on_connected(struct run *run, struct end *end, const struct stoq_event *e) {
    struct connection *c = end->connection;
    /* A server that closed early and unheard is met again by the client's repeated Initial, as another
     * connection: what looked like the work of a late duplicate has a client after all. */
    if (end->ghost && c->ends[end->side]->closed && !c->ends[end->side]->connected) {
        end->ghost = false;
        c->ends[end->side] = end;
    }
    if (end->connected || end->tls.stage != SCRIPT_COMPLETE || end->ghost)
        return run_fail(run, "%s: CONNECTED twice or before its handshake was complete",
                        side_name(end->side));
    if (e->value > run_now(run) - run->start_ns)
        return run_fail(run, "%s: a handshake of %llu ns", side_name(end->side),
                        (unsigned long long)e->value);
    end->connected = true;
    end->connected_ns = run_now(run);
    run->totals->connected++;
    return true;
}

static bool on_new_token(struct run *run, struct end *end, const struct stoq_event *e) {
    if (end->side != SIM_CLIENT || !e->len || e->len > RUN_MAX_TOKEN || e->chunk == STOQ_NO_CHUNK)
        return run_fail(run, "%s: NEW_TOKEN of %u bytes", side_name(end->side), e->len);
    memcpy(run->token, stoq_receive_chunk(run->dp, end->side, e->chunk) + e->chunk_offset, e->len);
    run->token_len = e->len;
    run->totals->tokens++;
    return true;
}

/* ---- DATAGRAM frames ---- */

static void datagram_content(const struct connection *c, uint32_t side, uint32_t number, uint8_t *out) {
    struct prng p;
    prng_seed(&p, prng_mix(c->key + number) ^ side);
    prng_fill(&p, out, c->plan->datagram_bytes);
    memcpy(out, &number, sizeof number);
}

static bool on_datagram(struct run *run, struct end *end, const struct stoq_event *e) {
    const struct connection *c = end->connection;
    uint8_t expected[2048];
    uint32_t number;
    if (e->len != c->plan->datagram_bytes || e->chunk == STOQ_NO_CHUNK)
        return run_fail(run, "%s: DATAGRAM of %u bytes, %u were sent", side_name(end->side), e->len,
                        c->plan->datagram_bytes);
    const uint8_t *data = stoq_receive_chunk(run->dp, end->side, e->chunk) + e->chunk_offset;
    memcpy(&number, data, sizeof number);
    if (!c->ends[!end->side] || number >= c->ends[!end->side]->datagrams_sent)
        return run_fail(run, "%s: DATAGRAM %u was never sent", side_name(end->side), number);
    datagram_content(c, !end->side, number, expected);
    if (memcmp(data, expected, e->len) != 0)
        return run_fail(run, "%s: DATAGRAM %u has wrong bytes", side_name(end->side), number);
    uint8_t *seen = &end->datagram_seen[number / 8], bit = (uint8_t)(1u << number % 8);
    if (*seen & bit)
        return run_fail(run, "%s: DATAGRAM %u came twice", side_name(end->side), number);
    *seen |= bit;
    if (!run->scenario.config[end->side].max_datagram_frame)
        return run_fail(run, "%s: DATAGRAM although none are accepted", side_name(end->side));
    run->totals->datagrams++;
    return true;
}

/* ---- the end ---- */

static uint64_t close_code(const struct connection *c, uint32_t side) {
    return c->plan->code ^ side;
}

static uint32_t close_reason(const struct connection *c, uint32_t side, char out[256]) {
    for (uint32_t i = 0; i < c->plan->reason_len; i++)
        out[i] = (char)('a' + (i + close_code(c, side)) % 26);
    return c->plan->reason_len;
}

static void close_end(struct run *run, struct end *end) {
    char reason[256];
    const struct connection *c = end->connection;
    struct stoq_command command = {
        .type = STOQ_COMMAND_CLOSE, .flags = STOQ_APP, .conn = end->handle, .code = close_code(c, end->side)};
    end->closing = true;
    run_command_data(run, end->side, command, reason, close_reason(c, end->side, reason));
    flow_release(run, end);
}

static void detach_end(struct run *run, struct end *end) {
    struct stoq_command command = {.type = STOQ_COMMAND_DETACH, .chunk = STOQ_NO_CHUNK, .conn = end->handle};
    end->closing = end->detached = true;
    run_command(run, end->side, &command);
    flow_release(run, end);
}

/* CLOSED by the peer: is that what the peer did? */
static bool check_remote(struct run *run, const struct end *end, const struct stoq_event *e,
                         const char *reason, uint32_t reason_len) {
    const struct connection *c = end->connection;
    const struct end *peer = c ? c->ends[!end->side] : NULL;
    const char *name = side_name(end->side);
    unsigned long long code = e->code;
    if (!c || end->ghost || (peer && peer->detached))
        return true; /* A client that went before its ClientHello was whole, or an end without an application.
                      */
    /* The wire can hold an Initial back for longer than its Retry token is good for (RFC 9000 section 8.1.2).
     */
    if (!end->connected && code == QUIC_INVALID_TOKEN && !(e->flags & STOQ_APP) && !run->scenario.lossless)
        return true;
    if (!peer || !peer->closing)
        return run_fail(run, "%s: closed by the peer, which did not close: %scode %llu \"%.*s\"", name,
                        e->flags & STOQ_APP ? "application " : "", code, (int)reason_len, reason);
    if (peer->tls.stage == SCRIPT_FAILED) {
        if (e->flags & STOQ_APP || code != (uint64_t)QUIC_CRYPTO_ERROR + c->plan->alert)
            return run_fail(run, "%s: refused with code %llu", name, code);
        return true;
    }
    if (!(e->flags & STOQ_APP)) { /* RFC 9000 section 10.2.3: not before the handshake is complete. */
        if (code != QUIC_APPLICATION_ERROR || (end->connected && peer->connected))
            return run_fail(run, "%s: application close arrived as transport code %llu", name, code);
        return true;
    }
    char sent[256];
    uint32_t sent_len = close_reason(c, peer->side, sent);
    if (code != close_code(c, peer->side) || reason_len > sent_len || memcmp(reason, sent, reason_len) != 0 ||
        (sent_len && !reason_len))
        return run_fail(run, "%s: close arrived as code %llu and %u bytes of reason, was %llu and %u", name,
                        code, reason_len, (unsigned long long)close_code(c, peer->side), sent_len);
    return true;
}

static bool check_timeout(struct run *run, struct end *end, const struct stoq_event *e) {
    const struct scenario *s = &run->scenario;
    const struct connection *c = end->connection;
    const struct end *peer = c ? c->ends[!end->side] : NULL;
    run->totals->timed_out++;
    uint64_t least = s->config[0].idle_timeout_ns;
    for (unsigned i = 0; i < 2; i++) {
        least = s->config[i].idle_timeout_ns < least ? s->config[i].idle_timeout_ns : least;
        least = s->config[i].handshake_timeout_ns < least ? s->config[i].handshake_timeout_ns : least;
    }
    /* The parameter travels in milliseconds. A path that does not validate is given up sooner (RFC 9000
     * section 8.2.4). */
    bool no_path = s->moves && e->code == QUIC_NO_VIABLE_PATH;
    if (!no_path && run_now(run) + 1000000 < run->start_ns + least)
        return run_fail(run, "%s: timed out before any timeout was over", side_name(end->side));
    if (!c || end->ghost || s->may_time_out || c->plan->ending == END_IDLE)
        return true;
    bool peer_gone = !peer || peer->closing || peer->closed;
    /* A close is sent once and again only in answer: it may be lost. In a handshake it may lack keys to be
     * read with. */
    if (peer_gone && (!s->lossless || !end->connected))
        return true;
    char what[200];
    run_unfinished(c, what, sizeof what);
    return run_fail(
        run, "%s: connection %d timed out%s; %s", side_name(end->side), (int)(c - run->connections),
        peer_gone ? " although the peer's close cannot have been lost" : ", nothing explains it", what);
}

static bool check_closed(struct run *run, struct end *end, const struct stoq_event *e, const char *reason,
                         uint32_t reason_len) {
    const struct connection *c = end->connection;
    const char *name = side_name(end->side);
    /* The server speaks v1, and so does the client; but nothing protects a Version Negotiation packet from a
     * flipped bit. */
    if (e->flags & STOQ_VERSION)
        return run->scenario.links[1].corrupt_ppm > 0 || run_fail(run, "%s: no version in common", name);
    if (e->flags & STOQ_IDLE)
        return check_timeout(run, end, e);
    if (e->flags & STOQ_RESET) {
        const struct end *peer = c ? c->ends[!end->side] : NULL;
        /* A peer that is over, or one that never was: a server answers what it does not know. */
        if (peer && !peer->closing && !peer->closed)
            return run_fail(run, "%s: stateless reset, but the peer lives", name);
        return true;
    }
    if (e->flags & STOQ_REMOTE) {
        run->totals->closed_by_peer++;
        return check_remote(run, end, e, reason, reason_len);
    }
    if (!end->closing)
        return run_fail(run, "%s: closed by itself with %scode %llu frame %llu: \"%.*s\"", name,
                        e->flags & STOQ_APP ? "application " : "", (unsigned long long)e->code,
                        (unsigned long long)e->value, (int)reason_len, reason);
    uint64_t mine = end->tls.stage == SCRIPT_FAILED ? (uint64_t)QUIC_CRYPTO_ERROR + c->plan->alert
                                                    : close_code(c, end->side);
    if (e->code != mine && (end->connected || e->code != QUIC_APPLICATION_ERROR))
        return run_fail(run, "%s: closed with code %llu instead of %llu", name, (unsigned long long)e->code,
                        (unsigned long long)mine);
    return true;
}

static bool on_closed(struct run *run, struct end *end, const struct stoq_event *e) {
    struct stoq_closed head;
    if (e->chunk == STOQ_NO_CHUNK || e->len < sizeof head)
        return run_fail(run, "%s: CLOSED without its chunk", side_name(end->side));
    const uint8_t *data = stoq_receive_chunk(run->dp, end->side, e->chunk) + e->chunk_offset;
    memcpy(&head, data, sizeof head);
    if (head.reason_len != e->len - sizeof head || head.code != e->code)
        return run_fail(run, "%s: CLOSED and its chunk disagree", side_name(end->side));
    end->closed = true;
    flow_release(run, end);
    return check_closed(run, end, e, (const char *)data + sizeof head, head.reason_len);
}

/* ---- events and actions ---- */

static bool dispatch(struct run *run, struct end *end, const struct stoq_event *e) {
    switch (e->type) {
    case STOQ_EVENT_CRYPTO:
        return on_crypto(run, end, e);
    case STOQ_EVENT_CONNECTED:
        return on_connected(run, end, e);
    case STOQ_EVENT_CLOSED:
        return on_closed(run, end, e);
    case STOQ_EVENT_DATAGRAM:
        return on_datagram(run, end, e);
    case STOQ_EVENT_STREAMS_AVAILABLE:
        if (e->value < end->available[!!(e->flags & STOQ_UNI)])
            return run_fail(run, "%s: stream limit went back", side_name(end->side));
        end->available[!!(e->flags & STOQ_UNI)] = e->value;
        return true;
    case STOQ_EVENT_PATH:
        run->totals->rebinds++;
        return run->scenario.moves || run_fail(run, "%s: PATH, but nobody moved", side_name(end->side));
    case STOQ_EVENT_KEY_UPDATED:
    case STOQ_EVENT_STATS:
        return true;
    case STOQ_EVENT_NEW_TOKEN:
        return on_new_token(run, end, e);
    default:
        return run_fail(run, "%s: unexpected event %u", side_name(end->side), e->type);
    }
}

bool party_event(struct run *run, uint32_t side, const struct stoq_event *e) {
    bool ok = true, stream_data = false;
    struct end *end = NULL;
    for (uint32_t i = run->end_count[side]; i-- > 0 && !end;)
        if (run->ends[side][i].handle == e->conn)
            end = &run->ends[side][i];
    if (e->type == STOQ_EVENT_CONNECTION && !end) {
        ok = on_connection(run, side, e);
        end = &run->ends[side][run->end_count[side] - 1];
    } else if (!end || e->type == STOQ_EVENT_CONNECTION) {
        ok = run_fail(run, "%s: event %u for connection %llx", side_name(side), e->type,
                      (unsigned long long)e->conn);
    } else if (end->detached) {
        ok = true; /* It was in the ring already. */
    } else if (end->closed) {
        ok = run_fail(run, "%s: event %u after CLOSED", side_name(side), e->type);
    } else if (e->type == STOQ_EVENT_STREAM_DATA || e->type == STOQ_EVENT_STREAM_RESET ||
               e->type == STOQ_EVENT_STREAM_STOP || e->type == STOQ_EVENT_STREAM_ACKED) {
        stream_data = e->type == STOQ_EVENT_STREAM_DATA;
        ok = end->connection && !end->ghost
                 ? flow_event(run, end, e)
                 : run_fail(run, "%s: stream event in a handshake", side_name(side));
    } else {
        ok = (end->connection || e->type != STOQ_EVENT_DATAGRAM) && dispatch(run, end, e);
    }
    if (end && end->connection)
        end->connection->dirty = true;
    if (e->chunk != STOQ_NO_CHUNK && !stream_data)
        run_release(run, side, e->conn, e->chunk);
    return ok;
}

static bool end_open(const struct end *end) {
    return end && end->connected && !end->closing && !end->closed;
}

/* DATAGRAM frames and key updates of one end; true when all were given. */
static bool act_end(struct run *run, struct connection *c, struct end *end) {
    const struct plan_connection *plan = c->plan;
    uint64_t now = run_now(run);
    if (!end_open(end))
        return true;
    while (end->updates_done < plan->updates[end->side]) {
        uint64_t at = end->connected_ns + plan->update_ns[end->side][end->updates_done];
        if (now < at) {
            run_wake_at(c, at);
            break;
        }
        struct stoq_command command = {
            .type = STOQ_COMMAND_KEY_UPDATE, .chunk = STOQ_NO_CHUNK, .conn = end->handle};
        end->updates_done++;
        run_command(run, end->side, &command);
        command.type = STOQ_COMMAND_STATS;
        run_command(run, end->side, &command);
    }
    while (end->datagrams_sent < plan->datagrams[end->side]) {
        uint8_t bytes[2048];
        if (now < end->next_datagram_ns) {
            run_wake_at(c, end->next_datagram_ns);
            break;
        }
        struct stoq_command command = {.type = STOQ_COMMAND_DATAGRAM, .conn = end->handle};
        datagram_content(c, end->side, end->datagrams_sent++, bytes);
        end->next_datagram_ns = now + plan->datagram_pace_ns;
        run_command_data(run, end->side, command, bytes, plan->datagram_bytes);
    }
    return end->datagrams_sent == plan->datagrams[end->side];
}

void party_act(struct run *run, struct connection *c) {
    const struct plan_connection *plan = c->plan;
    uint64_t now = run_now(run), start = run->start_ns + plan->start_ns;
    c->next_ns = QUIC_NEVER;
    c->dirty = false;
    if (now < start) {
        run_wake_at(c, start);
        return;
    }
    if (!c->started)
        party_connect(run, c);
    struct end *ender = c->ends[plan->ender];
    if (plan->ending == END_EARLY && ender && !ender->closing && !ender->closed) {
        if (now < start + plan->close_ns)
            run_wake_at(c, start + plan->close_ns);
        else
            close_end(run, ender);
    }
    bool done = flow_act(run, c);
    for (unsigned i = 0; i < 2; i++)
        done &= act_end(run, c, c->ends[i]);
    if (!done || !end_open(c->ends[0]) || !end_open(c->ends[1]))
        return;
    c->done = true;
    if (plan->ending == END_DETACH)
        detach_end(run, ender);
    else if (plan->ending == END_DONE || plan->ending == END_BOTH)
        close_end(run, ender);
    if (plan->ending == END_BOTH)
        close_end(run, c->ends[!plan->ender]);
}
