/* The client of the `perf` protocol: keeps a number of requests going, times each, and reports.
 *
 *      PERF_START ──▶ RUNNING ──requests done, time up or connection over──▶ finished ──▶ PERF_DONE event
 *
 *   a request: open stream, send 8 bytes, upload, FIN ──▶ receive until FIN ──▶ latency; next request
 */
#include "perf.h"

#define PERF_MAX_STREAMS 65536u /* At a time; the peer's limit is usually far below. */

static void finish(struct worker *w, struct perf *p) {
    if (p->finished)
        return;
    p->finished = true;
    p->ended_ns = w->now;
    wheel_cancel(&w->perf_wheel, &p->timer);
    p->next_done = w->perf_done;
    w->perf_done = p;
}

bool perf_start(struct worker *w, struct worker_conn *wc, const struct stoq_perf *args) {
    if (quic_conn_is_server(wc->conn) || args->streams == 0 || args->streams > PERF_MAX_STREAMS ||
        (args->requests == 0 && args->duration_ns == 0) ||
        args->upload_bytes > UINT64_MAX - PERF_HEADER_BYTES)
        return false;
    struct perf *old = wc->perf;
    if (old && !old->told)
        return false; /* One at a time; and its result is to be told first. */
    struct perf *p = perf_new(w, wc, true);
    if (!p)
        return false;
    p->latency = arena_alloc(&w->arena, sizeof *p->latency);
    p->chunk = receive_pool_alloc(&w->receive, STOQ_LARGE_CHUNK_BYTES, EVENT_LARGE_CHUNKS);
    if (!p->latency || p->chunk == STOQ_NO_CHUNK) {
        perf_free(w, p);
        return false;
    }
    uint8_t *data = receive_pool_data(&w->receive, p->chunk);
    for (uint32_t i = 0; i < STOQ_LARGE_CHUNK_BYTES; i++)
        data[i] = i < PERF_HEADER_BYTES ? (uint8_t)(args->download_bytes >> (56 - 8 * i)) : (uint8_t)i;
    p->args = *args;
    p->started_ns = w->now;
    p->next_id = 0;
    if (old) {
        p->next_id = old->next_id; /* Streams are used in order, over all runs on a connection. */
        perf_free(w, old);
    }
    wc->perf = p;
    if (args->duration_ns > 0)
        wheel_set(&w->perf_wheel, &p->timer, w->now + args->duration_ns);
    perf_client_issue(w, p);
    return true;
}

/* Open streams until as many requests are going as asked for, or the peer allows no more now. */
void perf_client_issue(struct worker *w, struct perf *p) {
    while (!p->finished && p->active < p->args.streams &&
           (p->args.requests == 0 || p->issued < p->args.requests) && quic_conn_writable(p->conn) &&
           quic_streams_available(p->conn, false) > 0) {
        struct perf_stream *s = perf_stream_add(w, p, p->next_id);
        if (!s)
            return; /* Memory is short; goes on when a request ends. */
        uint64_t bytes = PERF_HEADER_BYTES + p->args.upload_bytes;
        p->next_id += 4;
        p->issued++;
        p->active++;
        s->started_ns = w->now;
        perf_stream_sends(w, s, bytes);
        if (!perf_pump(w, s, true)) { /* The chunk begins with the 8 bytes. */
            perf_stream_drop(w, s);
            p->active--;
            p->failed++;
            break; /* The connection is in trouble: trying on at once could go on for ever. */
        }
    }
    if (p->args.requests > 0 && p->completed + p->failed == p->args.requests)
        finish(w, p);
}

/* A request is over, well or not. */
static void end_request(struct worker *w, struct perf *p, struct perf_stream *s, bool well) {
    if (well) {
        latency_record(p->latency, w->now - s->started_ns);
        p->bytes_sent += PERF_HEADER_BYTES + p->args.upload_bytes;
        p->completed++;
    } else {
        p->bytes_sent += s->acked;
        p->failed++;
    }
    p->active--;
    perf_stream_drop(w, s);
    perf_client_issue(w, p);
}

void perf_client_event(struct worker *w, struct perf *p, const struct quic_event *e) {
    struct perf_stream *s = e->stream_id % 4 == 0 ? perf_stream_get(p, e->stream_id) : NULL;
    if (p->finished)
        return;
    switch (e->type) {
    case STOQ_EVENT_STREAM_DATA:
        if (s) {
            p->bytes_received += e->len;
            if (e->flags & QUIC_EVENT_FIN)
                end_request(w, p, s, true);
        }
        break;
    case STOQ_EVENT_STREAM_ACKED:
        if (s)
            s->acked = e->value;
        break;
    case STOQ_EVENT_STREAM_RESET:
        if (s)
            end_request(w, p, s, false);
        break;
    case STOQ_EVENT_STREAM_STOP:
        if (s)
            perf_stream_sends(w, s, 0); /* The response may still come. */
        break;
    case STOQ_EVENT_STREAMS_AVAILABLE:
        perf_client_issue(w, p);
        break;
    default:
        break;
    }
}

void perf_client_top_up(struct worker *w, struct perf_stream *s) {
    if (!perf_pump(w, s, true))
        end_request(w, s->perf, s, false);
}

void perf_connected(struct worker *w, struct worker_conn *wc) {
    if (wc->perf->client)
        perf_client_issue(w, wc->perf);
}

/* Time is up: what is still going is given up. */
void perf_timer(void *ctx, struct quic_timer *timer) {
    struct worker *w = ctx;
    struct perf *p = (struct perf *)(void *)((uint8_t *)timer - offsetof(struct perf, timer));
    finish(w, p);
    for (uint32_t i = 0; i <= p->streams.mask; i++) {
        struct perf_stream *s = p->streams.v[i].value;
        if (!s)
            continue;
        p->bytes_sent += s->acked;
        s->acked = 0;
        quic_stream_stop(p->conn, w->now, s->id, 0);
        perf_stream_sends(w, s, 0);
        if (!s->fin_sent)
            quic_stream_reset(p->conn, w->now, s->id, 0);
    }
}

static void tell_done(struct worker *w, const struct perf *p) {
    const struct latency *l = p->latency;
    struct stoq_perf_result result = {
        .bytes_sent = p->bytes_sent,
        .bytes_received = p->bytes_received,
        .requests = p->completed,
        .duration_ns = p->ended_ns - p->started_ns,
        .latency_min_ns = l->min,
        .latency_p50_ns = latency_quantile(l, 500),
        .latency_p90_ns = latency_quantile(l, 900),
        .latency_p99_ns = latency_quantile(l, 990),
        .latency_max_ns = l->max,
    };
    struct stoq_event event = {.type = STOQ_EVENT_PERF_DONE, .conn = p->handle, .value = p->failed};
    worker_tell(w, &event, &(struct worker_payload){&result, sizeof result, NULL, 0});
}

void perf_tell_done(struct worker *w) {
    while (w->perf_done && worker_event_room(w)) {
        struct perf *p = w->perf_done;
        w->perf_done = p->next_done;
        p->next_done = NULL;
        p->told = true;
        tell_done(w, p);
    }
}

void perf_end(struct worker *w, struct worker_conn *wc, bool tell) {
    struct perf *p = wc->perf;
    wc->perf = NULL;
    if (p->client && !p->told) {
        finish(w, p);
        struct perf **at = &w->perf_done;
        while (*at != p)
            at = &(*at)->next_done;
        *at = p->next_done;
        if (tell)
            tell_done(w, p);
    }
    perf_free(w, p);
}
