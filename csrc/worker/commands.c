/* Commands of the control plane to engine calls. Every command crosses a memory boundary: it is copied out of
 * the ring once and every field is checked before use. A command that names a connection that is gone, or
 * that makes no sense, is counted (COMMANDS_STALE) and its chunk is given back all the same.
 *
 *   take ──▶ own its chunk ──▶ check ──▶ call the engine ──▶ give the chunk back
 *                                                            (STREAM_SEND: the engine, once acknowledged)
 */
#include "private.h"

#define MAX_VARINT ((UINT64_C(1) << 62) - 1) /* RFC 9000 section 16: stream ids, error codes, lengths. */

_Static_assert(sizeof(struct stoq_connection_stats) == sizeof(struct quic_conn_stats), "copied as they are");
_Static_assert(offsetof(struct stoq_connection_stats, aead) == offsetof(struct quic_conn_stats, aead),
               "same fields");
_Static_assert(STOQ_SEND == 1, "flag of SECRET");

/* A command with what was checked about it: `data` is `len` bytes in the send chunk it brought. */
struct taken {
    struct stoq_command c;
    uint8_t *data;
    bool owns_chunk;
};

static bool do_connect(struct worker *w, const struct taken *t) {
    struct stoq_connect connect; /* A copy: what is checked is what is used. */
    struct quic_addr peer, local;
    static const char ipv4[] = "the peer's address is IPv4-mapped: STOQ is IPv6-only";
    static const char full[] = "no memory or no room for another connection";
    if (t->c.len < sizeof connect)
        return false;
    memcpy(&connect, t->data, sizeof connect);
    if (connect.token_len > t->c.len - sizeof connect)
        return false;
    memcpy(&peer, &connect.peer, sizeof peer);
    peer.pad = 0;
    if (quic_addr_is_v4_mapped(&peer)) {
        shared_write(&w->shared->drops[STOQ_DROP_IPV4], w->shared->drops[STOQ_DROP_IPV4] + 1);
        worker_tell_closed(w, 0, t->c.value, 0, QUIC_CONNECTION_REFUSED, 0, ipv4, sizeof ipv4 - 1);
        return true;
    }
    worker_local(w, &local);
    struct quic_conn *conn =
        quic_conn_connect(w->ep, w->now, &peer, &local, connect.version,
                          connect.token_len > 0 ? t->data + sizeof connect : NULL, connect.token_len);
    if (conn && worker_announce(w, conn, t->c.value))
        return true;
    if (conn) {
        quic_conn_set_user(conn, w);
        quic_conn_detach(conn, w->now);
    }
    worker_tell_closed(w, 0, t->c.value, 0, QUIC_INTERNAL_ERROR, 0, full, sizeof full - 1);
    return true;
}

static bool do_secret(struct worker *w, struct quic_conn *conn, const struct taken *t) {
    bool ok = t->c.level > QUIC_INITIAL && t->c.level < QUIC_LEVEL_COUNT && t->c.code < CRYPTO_AEAD_COUNT &&
              t->c.len > 0 && t->c.len <= CRYPTO_MAX_SECRET_BYTES;
    if (ok)
        quic_conn_set_secret(conn, w->now, (enum quic_level)t->c.level, t->c.flags & STOQ_SEND,
                             (enum crypto_aead)t->c.code, t->data, t->c.len);
    if (t->data)
        crypto_wipe(t->data, t->c.len); /* The chunk will carry other things. */
    return ok;
}

static bool do_handshake_complete(struct worker *w, struct worker_conn *wc, const struct taken *t) {
    static const char perf[] = "perf";
    quic_conn_handshake_complete(wc->conn, w->now);
    if (w->test_profile && quic_conn_is_server(wc->conn) && t->c.len == sizeof perf - 1 &&
        memcmp(t->data, perf, sizeof perf - 1) == 0 && !perf_serve(w, wc)) {
        static const char reason[] = "no memory for perf";
        quic_conn_close(wc->conn, w->now, false, QUIC_INTERNAL_ERROR, reason, sizeof reason - 1);
    }
    return true;
}

static void do_stats(struct worker *w, struct quic_conn *conn) {
    struct quic_conn_stats stats;
    quic_conn_stats(conn, &stats);
    struct stoq_event event = {.type = STOQ_EVENT_STATS, .conn = quic_conn_handle(conn)};
    worker_tell(w, &event, &(struct worker_payload){&stats, sizeof stats, NULL, 0});
}

static bool do_perf_start(struct worker *w, struct worker_conn *wc, const struct taken *t) {
    struct stoq_perf args;
    if (t->c.len < sizeof args)
        return false;
    memcpy(&args, t->data, sizeof args);
    return perf_start(w, wc, &args);
}

/* The engine takes the chunk's reference in every case. */
static bool do_stream_send(struct worker *w, struct quic_conn *conn, const struct taken *t) {
    uint32_t chunk = QUIC_NO_CHUNK;
    if (t->owns_chunk) {
        chunk = t->c.chunk | CHUNK_OF_SEND_POOL;
        if (t->c.len == 0) {
            worker_return_chunk(w, t->c.chunk); /* Nothing in it to keep. */
            chunk = QUIC_NO_CHUNK;
        }
    }
    return quic_stream_send(conn, w->now, t->c.stream, chunk, t->data, t->c.len, t->c.flags & STOQ_FIN);
}

static bool do_consumed(struct worker *w, const struct taken *t, struct quic_conn *conn) {
    bool ok = t->c.chunk == STOQ_NO_CHUNK || receive_pool_return(&w->receive, t->c.chunk);
    if (!conn || t->c.stream > MAX_VARINT || t->c.value > MAX_VARINT)
        return false;
    if (t->c.value > 0)
        quic_stream_consumed(conn, w->now, t->c.stream, t->c.value);
    return ok;
}

void worker_begin_stop(struct worker *w) {
    w->stopping = true;
    for (struct worker_conn *wc = w->conns; wc; wc = wc->next)
        quic_conn_close(wc->conn, w->now, false, QUIC_NO_ERROR, "", 0);
}

/* Commands to one connection. False: refused. */
static bool conn_command(struct worker *w, struct worker_conn *wc, struct taken *t) {
    const struct stoq_command *c = &t->c;
    struct quic_conn *conn = wc->conn;
    if (c->stream > MAX_VARINT || (c->code > MAX_VARINT && c->type != STOQ_COMMAND_SECRET)) {
        if (c->type == STOQ_COMMAND_STREAM_SEND && t->owns_chunk)
            worker_return_chunk(w, c->chunk);
        return false;
    }
    switch (c->type) {
    case STOQ_COMMAND_CRYPTO:
        if (c->level >= QUIC_LEVEL_COUNT ||
            c->level == QUIC_ZERO_RTT) /* 0-RTT carries no CRYPTO, RFC 9000 12.5. */
            return false;
        quic_conn_crypto_send(conn, w->now, (enum quic_level)c->level, t->data, c->len);
        return true;
    case STOQ_COMMAND_SECRET:
        return do_secret(w, conn, t);
    case STOQ_COMMAND_PEER_PARAMS:
        quic_conn_set_peer_params(conn, w->now, t->data, c->len);
        return true;
    case STOQ_COMMAND_EARLY_PARAMS:
        quic_conn_set_early_params(conn, w->now, t->data, c->len);
        return true;
    case STOQ_COMMAND_EARLY_ANSWER:
        quic_conn_early_answered(conn, w->now, c->code != 0);
        return true;
    case STOQ_COMMAND_HANDSHAKE_COMPLETE:
        return do_handshake_complete(w, wc, t);
    case STOQ_COMMAND_CLOSE:
        quic_conn_close(conn, w->now, c->flags & STOQ_APP, c->code, (const char *)t->data, c->len);
        return true;
    case STOQ_COMMAND_STREAM_SEND:
        return do_stream_send(w, conn, t);
    case STOQ_COMMAND_STREAM_RESET:
        quic_stream_reset(conn, w->now, c->stream, c->code);
        return true;
    case STOQ_COMMAND_STREAM_STOP:
        quic_stream_stop(conn, w->now, c->stream, c->code);
        return true;
    case STOQ_COMMAND_DATAGRAM:
        /* A queue that is full is counted by the engine: RFC 9221 lets datagrams be dropped. */
        (void)quic_datagram_send(conn, w->now, t->data, c->len);
        return true;
    case STOQ_COMMAND_KEY_UPDATE:
        quic_conn_key_update(conn, w->now);
        return true;
    case STOQ_COMMAND_PING:
        quic_conn_ping(conn);
        return true;
    case STOQ_COMMAND_STATS:
        do_stats(w, conn);
        return true;
    case STOQ_COMMAND_PERF_START:
        return do_perf_start(w, wc, t);
    case STOQ_COMMAND_DETACH:
        worker_forget(w, wc);
        quic_conn_set_user(conn, w);
        quic_conn_detach(conn, w->now);
        return true;
    case STOQ_COMMAND_REBIND:
        return !quic_conn_is_server(conn) && worker_rebind(w);
    default:
        return false;
    }
}

/* The chunk a command brought: ours from now on. False: the command names one wrongly and is not to be
 * carried out. */
static bool take_chunk(struct worker *w, struct taken *t) {
    const struct stoq_command *c = &t->c;
    if (c->chunk == STOQ_NO_CHUNK)
        return c->len == 0;
    if (!send_chunks_adopt(&w->send, c->chunk))
        return false;
    t->owns_chunk = true;
    uint32_t bytes = chunk_bytes(&w->send.layout, c->chunk);
    if (c->chunk_offset > bytes || c->len > bytes - c->chunk_offset)
        return false;
    t->data = w->send.data + chunk_offset(&w->send.layout, c->chunk) + c->chunk_offset;
    return true;
}

/* What the control plane read in the kernel's tables, for a backend that goes past the kernel. */
static bool learn(struct worker *w, const struct stoq_command *c) {
    struct stoq_way way;
    _Static_assert(sizeof *c - offsetof(struct stoq_command, conn) == sizeof way, "a way fills a command");
    memcpy(&way, &c->conn, sizeof way);
    bool gone = c->flags & STOQ_WAY_GONE;
    if (c->type == STOQ_COMMAND_NEIGHBOUR) {
        struct io_neighbour n = {.gone = gone};
        memcpy(n.ip, way.ip, sizeof n.ip);
        memcpy(n.link, way.gateway, sizeof n.link);
        if (w->io->ops->learn_neighbour)
            w->io->ops->learn_neighbour(w->io, &n);
        return w->io->ops->learn_neighbour != NULL;
    }
    struct io_route r = {.bits = c->level,
                         .ours = c->flags & STOQ_WAY_OURS,
                         .gone = gone,
                         .mtu = (uint16_t)(c->chunk_offset <= UINT16_MAX ? c->chunk_offset : 0)};
    memcpy(r.prefix, way.ip, sizeof r.prefix);
    memcpy(r.gateway, way.gateway, sizeof r.gateway);
    memcpy(r.source, way.source, sizeof r.source);
    if (c->level > 128 || !w->io->ops->learn_route)
        return false;
    w->io->ops->learn_route(w->io, &r);
    return true;
}

/* Carry one command out. False: stale or refused. */
static bool carry_out(struct worker *w, struct taken *t) {
    uint8_t type = t->c.type;
    if (type == STOQ_COMMAND_ROUTE || type == STOQ_COMMAND_NEIGHBOUR)
        return t->c.chunk == STOQ_NO_CHUNK && learn(w, &t->c);
    struct quic_conn *conn = quic_conn_by_handle(w->ep, t->c.conn);
    struct worker_conn *wc = conn ? worker_conn_of(w, conn) : NULL;
    if (type == STOQ_COMMAND_CHUNK_RELEASE)
        return receive_pool_return(&w->receive, t->c.chunk);
    if (type == STOQ_COMMAND_STREAM_CONSUMED)
        return do_consumed(w, t, wc ? conn : NULL);

    bool passed_on = false; /* The chunk is the engine's now. */
    bool ok = take_chunk(w, t);
    if (!ok) {
        /* Refused: only the chunk is to be given back. */
    } else if (type == STOQ_COMMAND_STOP) {
        if (!w->stopping)
            worker_begin_stop(w);
    } else if (type == STOQ_COMMAND_CONNECT) {
        ok = !w->stopping && do_connect(w, t);
    } else if (wc) {
        passed_on = type == STOQ_COMMAND_STREAM_SEND;
        ok = conn_command(w, wc, t);
    } else {
        ok = type == STOQ_COMMAND_DETACH; /* Of one that is gone already: nothing to do, nothing wrong. */
    }
    if (t->owns_chunk && !passed_on)
        worker_return_chunk(w, t->c.chunk);
    return ok;
}

void worker_commands(struct worker *w) {
    uint32_t n = 0;
    for (; n < TURN_COMMANDS; n++) {
        /* A command may tell an event; control takes events before it can put more commands. */
        if (!worker_event_room(w)) {
            w->events_full = true;
            break;
        }
        const void *slot = ring_peek(&w->commands);
        if (!slot)
            break;
        struct taken t = {.data = NULL};
        memcpy(&t.c, slot, sizeof t.c);
        ring_pop(&w->commands);
        count(w, STOQ_COUNTER_COMMANDS, 1);
        if (!carry_out(w, &t))
            count(w, STOQ_COUNTER_COMMANDS_STALE, 1);
    }
    ring_release(&w->commands);
    w->worked += n;
    if (n == TURN_COMMANDS)
        w->more = true;
}
