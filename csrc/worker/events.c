/* Engine events to stoq_events: small payloads are copied into chunks of the receive pool, STREAM_DATA passes
 * the engine's reference on, and everything that finds no room stays in the engine, which holds the peer back
 * by flow control.
 */
#include "private.h"

_Static_assert(sizeof(struct stoq_address) == sizeof(struct quic_addr), "addresses are copied as they are");
_Static_assert(offsetof(struct stoq_address, port) == offsetof(struct quic_addr, port), "same fields");
_Static_assert(STOQ_FIN == QUIC_EVENT_FIN && STOQ_APP == QUIC_EVENT_APP && STOQ_REMOTE == QUIC_EVENT_REMOTE &&
                   STOQ_UNI == QUIC_EVENT_UNI && STOQ_IDLE == QUIC_EVENT_IDLE &&
                   STOQ_RESET == QUIC_EVENT_RESET && STOQ_VERSION == QUIC_EVENT_VERSION,
               "flags are passed on as they are");

#define PARAMS_BYTES 1024 /* Our transport parameters: some 20 of at most 30 bytes each. */

static struct stoq_address address(const struct quic_addr *a) {
    struct stoq_address out;
    memcpy(&out, a, sizeof out);
    return out;
}

bool worker_event_room(struct worker *w) {
    return ring_free(&w->events, 2) >= 2;
}

void worker_tell(struct worker *w, const struct stoq_event *event, const struct worker_payload *payload) {
    struct stoq_event *slot = ring_reserve(&w->events);
    if (!slot)
        return; /* Callers make sure of room; a lost event is better than a lost worker. */
    *slot = *event;
    if (payload) {
        uint32_t len = payload->head_len + payload->tail_len;
        uint32_t chunk = len > 0 ? receive_pool_alloc(&w->receive, len, 0) : STOQ_NO_CHUNK;
        slot->chunk = chunk;
        slot->chunk_offset = 0;
        slot->len = 0;
        if (chunk != STOQ_NO_CHUNK) {
            uint8_t *data = receive_pool_data(&w->receive, chunk);
            memcpy(data, payload->head, payload->head_len);
            if (payload->tail_len > 0)
                memcpy(data + payload->head_len, payload->tail, payload->tail_len);
            slot->len = len;
            receive_pool_lend(&w->receive, chunk);
        }
    }
    count(w, STOQ_COUNTER_EVENTS, 1);
}

/* The engine may keep a connection for its closing period; the worker itself as its user marks one nobody
 * listens to. */
struct worker_conn *worker_conn_of(const struct worker *w, struct quic_conn *conn) {
    struct worker_conn *wc = quic_conn_user(conn);
    return wc == (const void *)w ? NULL : wc;
}

struct worker_conn *worker_announce(struct worker *w, struct quic_conn *conn, uint64_t cookie) {
    struct worker_conn *wc = arena_alloc(&w->arena, sizeof *wc);
    if (!wc)
        return NULL;
    wc->conn = conn;
    wc->cookie = cookie;
    wc->next = w->conns;
    wc->prev = &w->conns;
    if (wc->next)
        wc->next->prev = &wc->next;
    w->conns = wc;
    quic_conn_set_user(conn, wc);

    uint8_t params[PARAMS_BYTES];
    size_t params_len = quic_conn_local_params(conn, params, sizeof params);
    struct stoq_new_connection head = {.peer = address(quic_conn_peer(conn)),
                                       .local = address(quic_conn_local(conn)),
                                       .server = quic_conn_is_server(conn),
                                       .params_len = (uint32_t)params_len};
    struct stoq_event event = {
        .type = STOQ_EVENT_CONNECTION, .conn = quic_conn_handle(conn), .value = cookie};
    worker_tell(w, &event, &(struct worker_payload){&head, sizeof head, params, (uint32_t)params_len});
    return wc;
}

void worker_forget(struct worker *w, struct worker_conn *wc) {
    if (wc->perf)
        perf_end(w, wc, false);
    *wc->prev = wc->next;
    if (wc->next)
        wc->next->prev = wc->prev;
    arena_free(&w->arena, wc, sizeof *wc);
}

void worker_tell_closed(struct worker *w, uint64_t handle, uint64_t value, uint8_t flags, uint64_t code,
                        uint64_t frame_type, const void *reason, uint32_t reason_len) {
    if (reason_len > QUIC_MAX_REASON_BYTES)
        reason_len = QUIC_MAX_REASON_BYTES;
    struct stoq_closed closed = {.code = code, .frame_type = frame_type, .reason_len = reason_len};
    struct stoq_event event = {
        .type = STOQ_EVENT_CLOSED, .flags = flags, .conn = handle, .code = code, .value = value};
    worker_tell(w, &event, &(struct worker_payload){&closed, sizeof closed, reason, reason_len});
}

static void tell_path(struct worker *w, struct quic_conn *conn, const struct stoq_event *event) {
    struct stoq_path path = {.peer = address(quic_conn_peer(conn)), .local = address(quic_conn_local(conn))};
    worker_tell(w, event, &(struct worker_payload){&path, sizeof path, NULL, 0});
}

/* With perf on a connection, what concerns its streams stays in C. */
static bool is_perfs(uint8_t type) {
    return (type >= STOQ_EVENT_STREAM_DATA && type <= STOQ_EVENT_STREAMS_AVAILABLE) ||
           type == STOQ_EVENT_DATAGRAM;
}

/* Pass one engine event on. False: the connection is over and must not be touched any more. */
static bool pass_on(struct worker *w, struct worker_conn *wc, struct quic_conn *conn, uint64_t handle,
                    const struct quic_event *e) {
    struct stoq_event event = {.type = e->type,
                               .flags = e->flags,
                               .level = e->level,
                               .chunk = e->chunk,
                               .chunk_offset = e->chunk_offset,
                               .len = e->len,
                               .conn = handle,
                               .stream = e->stream_id,
                               .code = e->code,
                               .value = e->value};
    switch (e->type) {
    case STOQ_EVENT_CONNECTION:
        return true; /* Told already, when the connection was first met. */
    case STOQ_EVENT_CLOSED:
        worker_tell_closed(w, handle, e->value, e->flags, e->code, e->value, e->data, e->len);
        return false;
    case STOQ_EVENT_PATH:
        tell_path(w, conn, &event);
        return true;
    default:
        break;
    }
    if (wc->perf && is_perfs(e->type)) {
        perf_event(w, wc, e);
        return true;
    }
    if (e->chunk != QUIC_NO_CHUNK) {
        receive_pool_lend(&w->receive, e->chunk);
        worker_tell(w, &event, NULL);
    } else if (e->len <= STOQ_LARGE_CHUNK_BYTES) {
        worker_tell(w, &event, &(struct worker_payload){e->data, e->len, NULL, 0});
    } else {
        static const char reason[] = "event larger than a chunk";
        quic_conn_close(conn, w->now, false, QUIC_INTERNAL_ERROR, reason, sizeof reason - 1);
    }
    if (e->type == STOQ_EVENT_CONNECTED && wc->perf)
        perf_connected(w, wc);
    return true;
}

/* May another event be polled? Notes what is short, so that the worker is kicked when there is more of it. */
static bool can_tell(struct worker *w) {
    w->events_full = !worker_event_room(w);
    w->chunks_short =
        chunk_free_count(&w->receive.pool.small) == 0 || chunk_free_count(&w->receive.pool.large) == 0;
    return !w->events_full && !w->chunks_short;
}

/* Nobody listens to this connection: out of the list of those with events. It may be gone after this. */
static void ignore(struct worker *w, struct quic_conn *conn) {
    uint64_t handle = quic_conn_handle(conn);
    quic_conn_set_user(conn, w);
    quic_conn_detach(conn, w->now); /* May free it, when its closing period is over as well. */
    if (quic_conn_by_handle(w->ep, handle) == conn)
        quic_endpoint_done_conn(w->ep, conn);
}

/* Events of one connection. False: no room for more. */
static bool drain_conn(struct worker *w, struct quic_conn *conn, uint32_t *budget) {
    uint64_t handle = quic_conn_handle(conn);
    struct worker_conn *wc = worker_conn_of(w, conn);
    if (!wc && !quic_conn_user(conn)) {
        wc = worker_announce(w, conn, 0);
        if (wc && w->stopping)
            quic_conn_close(conn, w->now, false, QUIC_NO_ERROR, "", 0);
    }
    if (!wc) { /* Detached, or there is no memory to tell of it. */
        ignore(w, conn);
        *budget -= 1;
        return true;
    }
    for (int n = 0; n<CONN_EVENTS && * budget> 0; n++, *budget -= 1) {
        struct quic_event event;
        if (!can_tell(w))
            return false;
        if (!quic_conn_poll(conn, &event)) {
            quic_endpoint_done_conn(w->ep, conn);
            return true;
        }
        w->worked++;
        /* PERF_DONE goes before CLOSED. Calls nothing in the engine, so event.data stays valid. */
        if (event.type == STOQ_EVENT_CLOSED && wc->perf)
            perf_end(w, wc, true);
        if (!pass_on(w, wc, conn, handle, &event)) {
            worker_forget(w, wc);
            quic_conn_set_user(conn, w);
            quic_endpoint_done_conn(w->ep, conn); /* May free it. */
            return true;
        }
    }
    quic_endpoint_rotate_conn(w->ep, conn);
    return true;
}

void worker_events(struct worker *w) {
    uint32_t budget = TURN_EVENTS;
    bool room = can_tell(w);
    /* Relaxed: a hint until it is set, below. */
    atomic_store_explicit(&w->shared->events_blocked, 0, memory_order_relaxed);
    while (room && budget > 0) {
        struct quic_conn *conn = quic_endpoint_poll_conn(w->ep);
        if (!conn)
            break;
        room = drain_conn(w, conn, &budget);
    }
    /* After the events, which may just have ended a test: there need not be another turn soon. */
    if (can_tell(w))
        perf_tell_done(w);
    if (budget == 0)
        w->more = true;
    if (w->events_full) {
        count(w, STOQ_COUNTER_EVENT_RING_FULL, 1);
        atomic_store_explicit(&w->shared->events_blocked, 1, memory_order_relaxed);
        /* Orders our "blocked" before the second look at the ring; pairs with the fence in stoq_events
         * between its taking of events and its look at "blocked". One of us sees the other. */
        atomic_thread_fence(memory_order_seq_cst);
        if (worker_event_room(w))
            w->more = true;
    }
}
