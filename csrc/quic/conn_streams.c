/* Stream table, stream limits and flow control: RFC 9000 sections 2 to 4. */
#include <string.h>

#include "conn.h"

static bool is_local(const struct quic_conn *conn, uint64_t id) {
    return ((id & QUIC_STREAM_ID_SERVER) != 0) == conn->server;
}

static uint64_t stream_hash(uint64_t id) {
    return id >> 2 ^
           id << 1; /* Ids count up: neighbours fall into different buckets, kinds do not collide. */
}

struct quic_stream *quic_stream_find(struct quic_conn *conn, uint64_t id) {
    if (conn->last_stream && conn->last_stream->id == id)
        return conn->last_stream;
    if (!conn->buckets)
        return NULL;
    struct quic_stream *s = conn->buckets[stream_hash(id) & conn->bucket_mask];
    while (s && s->id != id)
        s = s->next_in_bucket;
    if (s)
        conn->last_stream = s;
    return s;
}

static bool grow_buckets(struct quic_conn *conn) {
    const struct quic_host *host = quic_host_of(conn);
    uint32_t old = conn->buckets ? conn->bucket_mask + 1 : 0;
    uint32_t count = old ? old * 2 : QUIC_STREAM_BUCKETS;
    struct quic_stream **v = host->alloc(host->ctx, count * sizeof(*v));
    if (!v)
        return false;
    for (uint32_t i = 0; i < old; i++) {
        for (struct quic_stream *s = conn->buckets[i], *next; s; s = next) {
            next = s->next_in_bucket;
            struct quic_stream **head = &v[stream_hash(s->id) & (count - 1)];
            s->next_in_bucket = *head;
            *head = s;
        }
    }
    if (conn->buckets)
        host->free(host->ctx, conn->buckets, old * sizeof(*v));
    conn->buckets = v;
    conn->bucket_mask = count - 1;
    return true;
}

static struct quic_stream *stream_create(struct quic_conn *conn, uint64_t id) {
    const struct quic_host *host = quic_host_of(conn);
    const struct quic_config *config = &conn->ep->config;
    if ((!conn->buckets || conn->stream_count > conn->bucket_mask) && !grow_buckets(conn))
        return NULL;
    struct quic_stream *s = host->alloc(host->ctx, sizeof *s);
    if (!s)
        return NULL;
    bool uni = id & QUIC_STREAM_ID_UNI, local = is_local(conn, id);
    const struct quic_peer_params *peer = &conn->peer_params;
    s->id = id;
    if (!uni || local) {
        uint64_t max = uni     ? peer->initial_max_stream_data_uni
                       : local ? peer->initial_max_stream_data_bidi_remote
                               : peer->initial_max_stream_data_bidi_local;
        quic_send_part_init(&s->send, max);
    }
    if (!uni || !local)
        quic_recv_part_init(&s->recv, config->max_stream_data);
    struct quic_stream **head = &conn->buckets[stream_hash(id) & conn->bucket_mask];
    s->next_in_bucket = *head;
    *head = s;
    conn->stream_count++;
    quic_count(conn, STOQ_COUNTER_STREAMS_OPENED, 1);
    return s;
}

static void stream_free(struct quic_conn *conn, struct quic_stream *s) {
    const struct quic_host *host = quic_host_of(conn);
    struct quic_stream **link = &conn->buckets[stream_hash(s->id) & conn->bucket_mask];
    while (*link != s)
        link = &(*link)->next_in_bucket;
    *link = s->next_in_bucket;
    conn->stream_count--;
    if (conn->last_stream == s)
        conn->last_stream = NULL;
    quic_stream_unschedule(conn, s);
    quic_send_part_release(&s->send, host);
    quic_recv_part_release(&s->recv, host);
    host->free(host->ctx, s, sizeof *s);
}

/* Streams in the owe or tell queue are freed when their turn there comes, so that no queue is searched. */
void quic_stream_maybe_close(struct quic_conn *conn, struct quic_stream *s) {
    bool send_over = s->send.state == QUIC_SEND_NONE || s->send.state == QUIC_SEND_DATA_RECVD ||
                     s->send.state == QUIC_SEND_RESET_RECVD;
    bool recv_over = s->recv.state == QUIC_RECV_NONE || s->recv.state == QUIC_RECV_DATA_READ ||
                     s->recv.state == QUIC_RECV_RESET_READ;
    if (!send_over || !recv_over || s->tell_queued || s->owe_queued)
        return;
    if (!is_local(conn, s->id)) {
        struct quic_stream_kind *kind = &conn->kinds[s->id & 3];
        bool uni = s->id & QUIC_STREAM_ID_UNI;
        uint64_t window = uni ? conn->ep->config.max_streams_uni : conn->ep->config.max_streams_bidi;
        kind->closed++;
        /* Section 4.6: give the place to a new stream; in steps, so that one frame serves many. */
        if (kind->closed + window >= kind->limit + (window + 1) / 2) {
            kind->limit = kind->closed + window;
            conn->owes |= uni ? QUIC_OWES_MAX_STREAMS_UNI : QUIC_OWES_MAX_STREAMS_BIDI;
            quic_schedule_send(conn);
        }
    }
    stream_free(conn, s);
}

void quic_streams_release(struct quic_conn *conn) {
    const struct quic_host *host = quic_host_of(conn);
    conn->owe_first = conn->owe_last = conn->tell_first = conn->tell_last = NULL;
    for (uint32_t i = 0; conn->buckets && i <= conn->bucket_mask; i++) {
        while (conn->buckets[i])
            stream_free(conn, conn->buckets[i]);
    }
    if (conn->buckets)
        host->free(host->ctx, conn->buckets, ((size_t)conn->bucket_mask + 1) * sizeof(*conn->buckets));
    conn->buckets = NULL;
}

void quic_stream_schedule(struct quic_conn *conn, struct quic_stream *s) {
    if (s->send_next || !quic_send_part_pending(&s->send))
        return;
    if (!conn->data_streams) {
        s->send_next = s->send_prev = s;
        conn->data_streams = s;
    } else { /* Behind all others: before the one whose turn it is. */
        s->send_next = conn->data_streams;
        s->send_prev = conn->data_streams->send_prev;
        s->send_prev->send_next = s;
        s->send_next->send_prev = s;
    }
    s->quantum = quic_stream_quantum(conn);
    quic_schedule_send(conn);
}

void quic_stream_unschedule(struct quic_conn *conn, struct quic_stream *s) {
    if (!s->send_next)
        return;
    if (conn->data_streams == s)
        conn->data_streams = s->send_next == s ? NULL : s->send_next;
    s->send_prev->send_next = s->send_next;
    s->send_next->send_prev = s->send_prev;
    s->send_next = s->send_prev = NULL;
}

void quic_stream_owe(struct quic_conn *conn, struct quic_stream *s, uint8_t what) {
    s->owes |= what;
    if (!s->owe_queued) {
        s->owe_queued = true;
        s->owe_next = NULL;
        if (conn->owe_last)
            conn->owe_last->owe_next = s;
        else
            conn->owe_first = s;
        conn->owe_last = s;
    }
    quic_schedule_send(conn);
}

void quic_stream_tell(struct quic_conn *conn, struct quic_stream *s, uint8_t what) {
    s->tells |= what;
    if (!s->tell_queued) {
        s->tell_queued = true;
        s->tell_next = NULL;
        if (conn->tell_last)
            conn->tell_last->tell_next = s;
        else
            conn->tell_first = s;
        conn->tell_last = s;
    }
    quic_schedule_event(conn);
}

struct quic_stream *quic_stream_for_frame(struct quic_conn *conn, uint64_t id, bool sending_part,
                                          int *error) {
    struct quic_stream_kind *kind = &conn->kinds[id & 3];
    bool local = is_local(conn, id), uni = id & QUIC_STREAM_ID_UNI;
    *error = 0;
    /* Sections 19.4 to 19.13: frames for the part of a unidirectional stream that does not exist. */
    if (uni && sending_part != local) {
        *error = QUIC_STREAM_STATE_ERROR;
        return NULL;
    }
    struct quic_stream *s = quic_stream_find(conn, id);
    if (s)
        return s;
    if (local) {
        if (id >> 2 >= kind->opened)
            *error = QUIC_STREAM_STATE_ERROR; /* Not yet opened by us. */
        return NULL;
    }
    if (id >> 2 >= kind->limit) {
        *error = QUIC_STREAM_LIMIT_ERROR;
        return NULL;
    }
    if (id >> 2 < kind->opened)
        return NULL; /* Closed before. */
    /* Section 3.2: all lower streams of the kind open with it. At most the limit we gave. */
    while (kind->opened <= id >> 2) {
        s = stream_create(conn, kind->opened << 2 | (id & 3));
        if (!s) {
            *error = QUIC_NOT_NOW;
            return NULL;
        }
        kind->opened++;
    }
    return s;
}

/* Section 4.1: new bytes on the stream count against the connection; returns a transport error. */
static int account_received(struct quic_conn *conn, struct quic_stream *s, uint64_t end, const char **why) {
    struct quic_recv_part *r = &s->recv;
    if (end > r->max) {
        *why = "stream data past MAX_STREAM_DATA";
        return QUIC_FLOW_CONTROL_ERROR;
    }
    if (end > r->highest) {
        if (conn->recv_total + (end - r->highest) > conn->recv_max) {
            *why = "stream data past MAX_DATA";
            return QUIC_FLOW_CONTROL_ERROR;
        }
        conn->recv_total += end - r->highest;
        r->highest = end;
    }
    return 0;
}

int quic_stream_on_data(struct quic_conn *conn, const struct quic_frame *f, const char **why) {
    int error;
    struct quic_stream *s = quic_stream_for_frame(conn, f->stream_id, false, &error);
    if (!s)
        return error;
    struct quic_recv_part *r = &s->recv;
    uint64_t end = f->offset + f->len;
    if ((r->final_size != UINT64_MAX && (end > r->final_size || (f->fin && end != r->final_size))) ||
        (f->fin && end < r->highest)) {
        *why = "final size changed";
        return QUIC_FINAL_SIZE_ERROR;
    }
    if (r->state != QUIC_RECV_OPEN && r->state != QUIC_RECV_SIZE_KNOWN)
        return 0; /* Reset: what still comes is of no interest. */
    uint64_t before = r->highest;
    error = account_received(conn, s, end, why);
    if (error)
        return error;
    if (r->stopped) {
        quic_conn_credit(conn, 0, r->highest - before);
    } else if (f->len && !quic_recv_part_write(r, quic_host_of(conn), f->offset, f->data, (uint32_t)f->len)) {
        conn->recv_total -= r->highest - before; /* As if it had not come: the peer sends it again. */
        r->highest = before;
        return QUIC_NOT_NOW;
    }
    if (f->fin && r->state == QUIC_RECV_OPEN) {
        r->final_size = end;
        r->state = QUIC_RECV_SIZE_KNOWN;
        if (r->stopped) {
            r->state = QUIC_RECV_DATA_READ;
            quic_stream_maybe_close(conn, s);
            return 0;
        }
    }
    if (quic_recv_part_readable(r) || (r->final_size == r->delivered && !r->fin_told))
        quic_stream_tell(conn, s, QUIC_TELL_DATA);
    return 0;
}

int quic_stream_on_reset(struct quic_conn *conn, const struct quic_frame *f, const char **why) {
    int error;
    struct quic_stream *s = quic_stream_for_frame(conn, f->stream_id, false, &error);
    if (!s)
        return error;
    struct quic_recv_part *r = &s->recv;
    if ((r->final_size != UINT64_MAX && f->value != r->final_size) || f->value < r->highest) {
        *why = "RESET_STREAM changes the final size";
        return QUIC_FINAL_SIZE_ERROR;
    }
    if (r->state != QUIC_RECV_OPEN && r->state != QUIC_RECV_SIZE_KNOWN)
        return 0;
    uint64_t before = r->highest;
    error = account_received(conn, s, f->value, why);
    if (error)
        return error;
    r->final_size = f->value;
    /* Section 3.2: a reset may be ignored once all data is there; what is not delivered is let go. */
    uint64_t dropped = r->stopped ? r->highest - before : r->highest - r->delivered;
    quic_conn_credit(conn, 0, dropped);
    r->reset_code = f->code;
    quic_recv_part_release(r, quic_host_of(conn));
    r->delivered = r->highest;
    if (r->stopped) {
        r->state = QUIC_RECV_RESET_READ;
        quic_stream_maybe_close(conn, s);
    } else {
        r->state = QUIC_RECV_RESET_RECVD;
        quic_stream_tell(conn, s, QUIC_TELL_RESET);
    }
    return 0;
}

int quic_stream_on_stop(struct quic_conn *conn, const struct quic_frame *f, const char **why) {
    int error;
    struct quic_stream *s = quic_stream_for_frame(conn, f->stream_id, true, &error);
    (void)why;
    if (!s || (s->send.state != QUIC_SEND_OPEN && s->send.state != QUIC_SEND_DATA_SENT))
        return error;
    s->send.stop_code = f->code;
    quic_stream_tell(conn, s, QUIC_TELL_STOP);
    quic_stream_reset(conn, 0, s->id,
                      f->code); /* Section 3.5: answered with RESET_STREAM, the code copied. */
    return 0;
}

int quic_stream_on_max_data(struct quic_conn *conn, const struct quic_frame *f, const char **why) {
    int error;
    struct quic_stream *s = quic_stream_for_frame(conn, f->stream_id, true, &error);
    (void)why;
    if (!s)
        return error;
    if (f->value > s->send.max) {
        s->send.max = f->value;
        quic_stream_schedule(conn, s);
    }
    return 0;
}

void quic_streams_apply_peer_limits(struct quic_conn *conn) {
    const struct quic_peer_params *peer = &conn->peer_params;
    unsigned ours = conn->server ? QUIC_STREAM_ID_SERVER : 0;
    conn->kinds[ours].limit = quic_max(conn->kinds[ours].limit, peer->initial_max_streams_bidi);
    conn->kinds[ours | QUIC_STREAM_ID_UNI].limit =
        quic_max(conn->kinds[ours | QUIC_STREAM_ID_UNI].limit, peer->initial_max_streams_uni);
    conn->send_max = quic_max(conn->send_max, peer->initial_max_data);
}

/* A window this large is advertised anew in smaller steps: a sender is not held up as long as what is left
 * when the news reaches it, a window less a step, covers a round trip. */
#define LARGE_WINDOW (UINT64_C(16) << 20)

/* The window after `consumed` bytes: advertise anew when half of it (of a large one, an eighth) is used up,
 * and double it when it is used up at a rate of more than a quarter a round trip (the window, not the reader,
 * may be the limit). Returns the new limit, or the old.
 */
static uint64_t move_window(const struct quic_conn *conn, uint64_t now, uint64_t consumed, uint64_t max,
                            uint64_t *window, uint64_t window_limit, uint64_t *moved_ns) {
    uint64_t steps = *window < LARGE_WINDOW ? 2 : 8;
    if (max - consumed > *window - *window / steps)
        return max;
    if (now && *moved_ns && now - *moved_ns < 4 * conn->recovery.rtt_smoothed_ns / steps)
        *window = quic_min(*window * 2, window_limit);
    if (now)
        *moved_ns = now;
    return quic_max(max, consumed + *window);
}

void quic_conn_credit(struct quic_conn *conn, uint64_t now, uint64_t bytes) {
    conn->recv_consumed = quic_min(conn->recv_consumed + bytes, conn->recv_total);
    uint64_t max = move_window(conn, now, conn->recv_consumed, conn->recv_max, &conn->recv_window,
                               conn->ep->config.max_data_limit, &conn->recv_window_moved_ns);
    if (max > conn->recv_max) {
        conn->recv_max = max;
        conn->owes |= QUIC_OWES_CONN_MAX_DATA;
        quic_schedule_send(conn);
    }
}

uint64_t quic_blocked_deadline(const struct quic_conn *conn) {
    const struct quic_space *space = conn->spaces[QUIC_SPACE_APP];
    if (!conn->unsent || !conn->handshake_done || space->eliciting_in_flight)
        return QUIC_NEVER;
    /* Often enough to outlive the idle timeout with several tries, and a NAT that forgot us learns our
     * address anew. */
    return space->last_eliciting_ns +
           quic_max(conn->idle_timeout_ns / 4, 3 * quic_recovery_pto(conn, QUIC_SPACE_APP));
}

void quic_blocked_on_timer(struct quic_conn *conn, uint64_t now) {
    if (quic_blocked_deadline(conn) > now)
        return;
    if (conn->send_total == conn->send_max)
        conn->owes |= QUIC_OWES_CONN_BLOCKED;
    for (uint32_t i = 0; i <= conn->bucket_mask; i++) {
        for (struct quic_stream *s = conn->buckets[i]; s; s = s->next_in_bucket) {
            if (s->send.state == QUIC_SEND_OPEN && s->send.next < s->send.end && s->send.next >= s->send.max)
                quic_stream_owe(conn, s, QUIC_OWES_BLOCKED);
        }
    }
    conn->owes |= QUIC_OWES_PING; /* Whatever holds us, the deadline moves on. */
}

/* ---- the application's side ---- */

static struct quic_stream *open_local(struct quic_conn *conn, uint64_t id) {
    struct quic_stream_kind *kind = &conn->kinds[id & 3];
    if (!is_local(conn, id) || id >> 2 != kind->opened || kind->opened >= kind->limit)
        return NULL;
    struct quic_stream *s = stream_create(conn, id);
    if (s)
        kind->opened++;
    return s;
}

bool quic_stream_send(struct quic_conn *conn, uint64_t now, uint64_t id, uint32_t chunk, const uint8_t *data,
                      uint32_t len, bool fin) {
    const struct quic_host *host = quic_host_of(conn);
    struct quic_stream *s = NULL;
    if (quic_is_open(conn)) {
        s = quic_stream_find(conn, id);
        if (!s)
            s = open_local(conn, id);
    }
    if (!s || s->send.state != QUIC_SEND_OPEN || s->send.fin || s->send.end + len > QUIC_VARINT_MAX) {
        if (chunk != QUIC_NO_CHUNK)
            host->chunk_unref(host->ctx, chunk);
        return false;
    }
    if (len) {
        if (!quic_send_part_append(&s->send, host, chunk, data, len)) {
            host->chunk_unref(host->ctx, chunk);
            quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, "out of memory for stream data");
            return false;
        }
        conn->unsent += len;
    } else if (chunk != QUIC_NO_CHUNK) {
        host->chunk_unref(host->ctx, chunk);
    }
    s->send.fin = fin;
    quic_stream_schedule(conn, s);
    return true;
}

void quic_stream_reset(struct quic_conn *conn, uint64_t now, uint64_t id, uint64_t code) {
    (void)now;
    struct quic_stream *s = quic_stream_find(conn, id);
    if (!s && quic_is_open(conn))
        s = open_local(conn, id);
    if (!s || (s->send.state != QUIC_SEND_OPEN && s->send.state != QUIC_SEND_DATA_SENT))
        return;
    s->send.state = QUIC_SEND_RESET_SENT;
    s->send.reset_code = code;
    conn->unsent -= s->send.end - s->send.next;
    quic_stream_unschedule(conn, s);
    quic_send_part_release(&s->send, quic_host_of(conn));
    s->owes &= (uint8_t)~QUIC_OWES_BLOCKED;
    quic_stream_owe(conn, s, QUIC_OWES_RESET);
}

void quic_stream_stop(struct quic_conn *conn, uint64_t now, uint64_t id, uint64_t code) {
    struct quic_stream *s = quic_stream_find(conn, id);
    if (!s || s->recv.stopped || (s->recv.state != QUIC_RECV_OPEN && s->recv.state != QUIC_RECV_SIZE_KNOWN))
        return;
    struct quic_recv_part *r = &s->recv;
    bool all_known = r->state == QUIC_RECV_SIZE_KNOWN;
    r->stopped = true;
    r->stop_code = code;
    s->tells &= (uint8_t)~QUIC_TELL_DATA;
    quic_conn_credit(conn, now, r->highest - r->delivered);
    quic_recv_part_release(r, quic_host_of(conn));
    r->delivered = r->highest;
    if (all_known) { /* Nothing more will be charged: section 3.5 makes STOP_SENDING pointless. */
        r->state = QUIC_RECV_DATA_READ;
        quic_stream_maybe_close(conn, s);
        return;
    }
    quic_stream_owe(conn, s, QUIC_OWES_STOP);
}

void quic_stream_consumed(struct quic_conn *conn, uint64_t now, uint64_t id, uint64_t bytes) {
    if (!quic_is_open(conn))
        return;
    struct quic_stream *s = quic_stream_find(conn, id);
    if (s && s->recv.state == QUIC_RECV_OPEN && !s->recv.stopped) {
        struct quic_recv_part *r = &s->recv;
        r->consumed = quic_min(r->consumed + bytes, r->delivered);
        uint64_t max = move_window(conn, now, r->consumed, r->max, &r->window,
                                   conn->ep->config.max_stream_data_limit, &r->window_moved_ns);
        if (max > r->max) {
            r->max = max;
            /* The connection's window must not be what stops a single stream. */
            if (conn->recv_window < r->window + r->window / 2)
                conn->recv_window = quic_min(r->window + r->window / 2, conn->ep->config.max_data_limit);
            quic_stream_owe(conn, s, QUIC_OWES_MAX_DATA);
        }
    }
    quic_conn_credit(conn, now, bytes);
}

uint64_t quic_streams_available(const struct quic_conn *conn, bool uni) {
    const struct quic_stream_kind *kind =
        &conn->kinds[(conn->server ? QUIC_STREAM_ID_SERVER : 0) | (uni ? QUIC_STREAM_ID_UNI : 0)];
    return kind->limit > kind->opened ? kind->limit - kind->opened : 0;
}

uint64_t quic_stream_unsent(const struct quic_conn *conn, uint64_t id) {
    struct quic_stream *s = quic_stream_find((struct quic_conn *)conn, id);
    return s ? s->send.end - s->send.next : 0;
}
