/* `perf` streams of both roles and the server; perf.h explains the protocol. */
#include "perf.h"

#define PERF_SLOTS 64u /* Of the stream map to begin with; it doubles. */

/* Bidirectional streams of the client only, so id / 4 is unique; plus 1, for the map must not see every key
 * as 0. */
static uint64_t key_of(uint64_t id) {
    return id / 4 + 1;
}

struct perf *perf_new(struct worker *w, struct worker_conn *wc, bool client) {
    struct quic_host host = worker_host(w);
    struct perf *p = arena_alloc(&w->arena, sizeof *p);
    if (!p)
        return NULL;
    p->conn = wc->conn;
    p->handle = quic_conn_handle(wc->conn);
    p->client = client;
    p->chunk = STOQ_NO_CHUNK;
    p->timer.deadline_ns = QUIC_NEVER;
    if (!quic_map_init(&p->streams, &host, PERF_SLOTS)) {
        arena_free(&w->arena, p, sizeof *p);
        return NULL;
    }
    return p;
}

void perf_free(struct worker *w, struct perf *p) {
    struct quic_host host = worker_host(w);
    for (uint32_t i = 0; i <= p->streams.mask; i++)
        if (p->streams.v[i].value) {
            perf_stream_sends(w, p->streams.v[i].value, 0);
            arena_free(&w->arena, p->streams.v[i].value, sizeof(struct perf_stream));
        }
    quic_map_free(&p->streams, &host);
    if (p->chunk != STOQ_NO_CHUNK)
        receive_pool_unref(&w->receive, p->chunk);
    arena_free(&w->arena, p->latency, sizeof *p->latency);
    wheel_cancel(&w->perf_wheel, &p->timer);
    arena_free(&w->arena, p, sizeof *p);
}

struct perf_stream *perf_stream_get(struct perf *p, uint64_t id) {
    return quic_map_get(&p->streams, key_of(id));
}

struct perf_stream *perf_stream_add(struct worker *w, struct perf *p, uint64_t id) {
    struct quic_host host = worker_host(w);
    struct perf_stream *s = arena_alloc(&w->arena, sizeof *s);
    if (!s)
        return NULL;
    s->id = id;
    s->perf = p;
    if (!quic_map_put(&p->streams, &host, key_of(id), s)) {
        arena_free(&w->arena, s, sizeof *s);
        return NULL;
    }
    return s;
}

void perf_stream_drop(struct worker *w, struct perf_stream *s) {
    perf_stream_sends(w, s, 0);
    quic_map_remove(&s->perf->streams, key_of(s->id), s);
    arena_free(&w->arena, s, sizeof *s);
}

void perf_stream_sends(struct worker *w, struct perf_stream *s, uint64_t bytes) {
    bool was = s->remaining > 0;
    s->remaining = bytes;
    if (!was && bytes > 0) { /* Last in the ring: before its first. */
        struct perf_stream *first = w->perf_sending;
        s->next = first ? first : s;
        s->prev = first ? first->prev : s;
        s->next->prev = s->prev->next = s;
        w->perf_sending = first ? first : s;
        w->perf_sending_count++;
        s->perf->senders++;
    } else if (was && bytes == 0) {
        if (w->perf_sending == s)
            w->perf_sending = s->next != s ? s->next : NULL;
        s->prev->next = s->next;
        s->next->prev = s->prev;
        w->perf_sending_count--;
        s->perf->senders--;
    }
}

bool perf_pump(struct worker *w, struct perf_stream *s, bool fin) {
    struct perf *p = s->perf;
    const uint8_t *data = receive_pool_data(&w->receive, p->chunk);
    uint64_t ahead = PERF_AHEAD_BYTES / (p->senders > 0 ? p->senders : 1);
    uint64_t unsent = s->remaining > 0 ? quic_stream_unsent(p->conn, s->id) : 0;
    ahead = ahead > PERF_AHEAD_MIN ? ahead : PERF_AHEAD_MIN;
    while (s->remaining > 0 && unsent < ahead) {
        uint32_t n = s->remaining < STOQ_LARGE_CHUNK_BYTES ? (uint32_t)s->remaining : STOQ_LARGE_CHUNK_BYTES;
        perf_stream_sends(w, s, s->remaining - n);
        unsent += n;
        s->fin_sent = fin && s->remaining == 0;
        receive_pool_ref(&w->receive, p->chunk);
        if (!quic_stream_send(p->conn, w->now, s->id, p->chunk, data, n, s->fin_sent))
            return false;
    }
    if (s->remaining == 0 && fin && !s->fin_sent) {
        s->fin_sent = true;
        return quic_stream_send(p->conn, w->now, s->id, QUIC_NO_CHUNK, NULL, 0, true);
    }
    return true;
}

/* ---- server ---- */

bool perf_serve(struct worker *w, struct worker_conn *wc) {
    if (w->perf_pattern == STOQ_NO_CHUNK) {
        w->perf_pattern = receive_pool_alloc(&w->receive, STOQ_LARGE_CHUNK_BYTES, 0);
        if (w->perf_pattern == STOQ_NO_CHUNK)
            return false;
        uint8_t *data = receive_pool_data(&w->receive, w->perf_pattern);
        for (uint32_t i = 0; i < STOQ_LARGE_CHUNK_BYTES; i++)
            data[i] = (uint8_t)i; /* The draft leaves the contents open. */
    }
    struct perf *p = wc->perf ? NULL : perf_new(w, wc, false);
    if (!p)
        return false;
    receive_pool_ref(&w->receive, w->perf_pattern);
    p->chunk = w->perf_pattern;
    wc->perf = p;
    return true;
}

/* More of a response; the stream is forgotten once all of it is with the engine. */
static void respond(struct worker *w, struct perf_stream *s) {
    if (!perf_pump(w, s, s->peer_fin) || s->fin_sent)
        perf_stream_drop(w, s);
}

static void read_header(struct worker *w, struct perf_stream *s, const uint8_t *data, uint32_t len) {
    for (uint32_t i = 0; i < len && s->header_len < PERF_HEADER_BYTES; i++) {
        s->header[s->header_len++] = data[i];
        if (s->header_len < PERF_HEADER_BYTES)
            continue;
        uint64_t wanted = 0;
        for (uint32_t k = 0; k < PERF_HEADER_BYTES; k++)
            wanted = wanted << 8 | s->header[k];
        perf_stream_sends(w, s, wanted);
    }
}

static void server_data(struct worker *w, struct perf *p, const struct quic_event *e) {
    if (e->stream_id % 4 != 0)
        return; /* Not a bidirectional stream of the client: consumed, nothing to answer. */
    struct perf_stream *s = perf_stream_get(p, e->stream_id);
    if (!s)
        s = perf_stream_add(w, p, e->stream_id);
    if (!s) {
        quic_stream_reset(p->conn, w->now, e->stream_id, 0);
        return;
    }
    uint8_t had = s->header_len;
    if (had < PERF_HEADER_BYTES)
        read_header(w, s, e->data, e->len);
    s->peer_fin = s->peer_fin || (e->flags & QUIC_EVENT_FIN);
    if (s->header_len == PERF_HEADER_BYTES && (had < PERF_HEADER_BYTES || s->peer_fin)) {
        respond(w, s);
    } else if (s->peer_fin) { /* Ended within the header. */
        quic_stream_reset(p->conn, w->now, s->id, 0);
        perf_stream_drop(w, s);
    }
}

static void server_event(struct worker *w, struct perf *p, const struct quic_event *e) {
    struct perf_stream *s = e->stream_id % 4 == 0 ? perf_stream_get(p, e->stream_id) : NULL;
    switch (e->type) {
    case STOQ_EVENT_STREAM_DATA:
        server_data(w, p, e);
        break;
    case STOQ_EVENT_STREAM_RESET:
    case STOQ_EVENT_STREAM_STOP:
        if (s) {
            quic_stream_reset(p->conn, w->now, s->id, e->code);
            perf_stream_drop(w, s);
        }
        break;
    default:
        break;
    }
}

/* ---- both ---- */

void perf_event(struct worker *w, struct worker_conn *wc, const struct quic_event *e) {
    struct perf *p = wc->perf;
    struct quic_event event = *e;
    if (p->client)
        perf_client_event(w, p, &event);
    else
        server_event(w, p, &event);
    if (event.type == STOQ_EVENT_STREAM_DATA && event.len > 0)
        quic_stream_consumed(p->conn, w->now, event.stream_id, event.len);
    if (event.chunk != QUIC_NO_CHUNK)
        receive_pool_unref(&w->receive, event.chunk);
}

void perf_top_up(struct worker *w) {
    uint32_t n = w->perf_sending_count < PERF_TOP_UPS ? w->perf_sending_count : PERF_TOP_UPS;
    for (; n > 0 && w->perf_sending; n--) {
        struct perf_stream *s = w->perf_sending;
        w->perf_sending = s->next;
        if (s->perf->client)
            perf_client_top_up(w, s);
        else
            respond(w, s);
    }
}
