/* What the reader is told, pulled one event at a time; nothing is lost when the reader is slow. */
#include <string.h>

#include "conn.h"

static bool stream_event(struct quic_conn *conn, struct quic_stream *s, struct quic_event *e) {
    struct quic_recv_part *r = &s->recv;
    e->stream_id = s->id;
    if (s->tells & QUIC_TELL_DATA) {
        const uint8_t *data = NULL;
        uint32_t len = quic_recv_part_deliver(r, quic_host_of(conn), &e->chunk, &e->chunk_offset, &data);
        bool fin = r->delivered == r->final_size && r->state == QUIC_RECV_SIZE_KNOWN && !r->fin_told;
        if (!len && !fin) {
            s->tells &= (uint8_t)~QUIC_TELL_DATA;
        } else {
            e->type = STOQ_EVENT_STREAM_DATA;
            e->data = data;
            e->len = len;
            e->flags = fin ? QUIC_EVENT_FIN : 0;
            conn->stats.stream_bytes_received += len;
            quic_count(conn, STOQ_COUNTER_STREAM_BYTES_RECEIVED, len);
            if (fin) {
                r->fin_told = true;
                r->state = QUIC_RECV_DATA_READ;
            }
            if (fin || !quic_recv_part_readable(r))
                s->tells &= (uint8_t)~QUIC_TELL_DATA;
            return true;
        }
    }
    if (s->tells & QUIC_TELL_RESET) {
        s->tells &= (uint8_t)~QUIC_TELL_RESET;
        r->state = QUIC_RECV_RESET_READ;
        e->type = STOQ_EVENT_STREAM_RESET;
        e->code = r->reset_code;
        return true;
    }
    if (s->tells & QUIC_TELL_STOP) {
        s->tells &= (uint8_t)~QUIC_TELL_STOP;
        e->type = STOQ_EVENT_STREAM_STOP;
        e->code = s->send.stop_code;
        return true;
    }
    if (s->tells & QUIC_TELL_ACKED) {
        s->tells &= (uint8_t)~QUIC_TELL_ACKED;
        if (s->send.state == QUIC_SEND_RESET_SENT || s->send.state == QUIC_SEND_RESET_RECVD)
            return false;
        e->type = STOQ_EVENT_STREAM_ACKED;
        e->value = s->send.base;
        e->flags = s->send.state == QUIC_SEND_DATA_RECVD ? QUIC_EVENT_FIN : 0;
        return true;
    }
    return false;
}

static bool next_stream_event(struct quic_conn *conn, struct quic_event *e) {
    while (conn->tell_first) {
        struct quic_stream *s = conn->tell_first;
        bool got = stream_event(conn, s, e);
        if (!s->tells) {
            conn->tell_first = s->tell_next;
            if (!conn->tell_first)
                conn->tell_last = NULL;
            s->tell_queued = false;
            quic_stream_maybe_close(conn, s);
        }
        if (got)
            return true;
    }
    return false;
}

static bool crypto_event(struct quic_conn *conn, struct quic_event *e) {
    static const enum quic_level levels[QUIC_SPACE_COUNT] = {QUIC_INITIAL, QUIC_HANDSHAKE, QUIC_ONE_RTT};
    for (int id = 0; id < QUIC_SPACE_COUNT; id++) {
        struct quic_crypto *c = &conn->spaces[id]->crypto;
        uint32_t n = quic_crypto_readable(c);
        if (!n)
            continue;
        if (n > QUIC_SMALL_CHUNK_BYTES)
            n = QUIC_SMALL_CHUNK_BYTES; /* So that a host can carry it in one small chunk. */
        /* Copied, because consuming moves the buffer under the reader's feet. */
        memcpy(conn->ep->crypto_scratch, c->recv, n);
        quic_crypto_consume(c, quic_host_of(conn), n);
        e->type = STOQ_EVENT_CRYPTO;
        e->level = levels[id];
        e->data = conn->ep->crypto_scratch;
        e->len = n;
        return true;
    }
    return false;
}

/* Streams the peer lets us open: told when the limit moved. */
static bool limits_event(struct quic_conn *conn, struct quic_event *e) {
    unsigned ours = conn->server ? QUIC_STREAM_ID_SERVER : 0;
    if (!conn->told_connected && !quic_early_can_send(conn))
        return false;
    for (unsigned uni = 0; uni <= QUIC_STREAM_ID_UNI; uni += QUIC_STREAM_ID_UNI) {
        struct quic_stream_kind *kind = &conn->kinds[ours | uni];
        if (kind->told == kind->limit)
            continue;
        kind->told = kind->limit;
        e->type = STOQ_EVENT_STREAMS_AVAILABLE;
        e->flags = uni ? QUIC_EVENT_UNI : 0;
        e->value = kind->limit;
        return true;
    }
    return false;
}

static bool datagram_event(struct quic_conn *conn, struct quic_event *e) {
    struct quic_datagram_queue *q = conn->datagrams_in;
    const struct quic_host *host = quic_host_of(conn);
    if (!q || q->head == q->tail)
        return false;
    struct quic_datagram *d = &q->v[q->head++ % QUIC_DATAGRAM_QUEUE];
    memcpy(conn->ep->crypto_scratch, d->data, quic_min(d->len, QUIC_SMALL_CHUNK_BYTES));
    e->type = STOQ_EVENT_DATAGRAM;
    e->data = conn->ep->crypto_scratch;
    e->len = d->len;
    host->free(host->ctx, d->data, d->len ? d->len : 1);
    return true;
}

static bool token_event(struct quic_conn *conn, struct quic_event *e) {
    const struct quic_host *host = quic_host_of(conn);
    if (!conn->new_token)
        return false;
    memcpy(conn->ep->crypto_scratch, conn->new_token, conn->new_token_len);
    e->type = STOQ_EVENT_NEW_TOKEN;
    e->data = conn->ep->crypto_scratch;
    e->len = conn->new_token_len;
    host->free(host->ctx, conn->new_token, conn->new_token_len);
    conn->new_token = NULL;
    return true;
}

static bool closed_event(struct quic_conn *conn, struct quic_event *e) {
    if (quic_is_open(conn) || conn->closed_told)
        return false;
    conn->closed_told = true;
    e->type = STOQ_EVENT_CLOSED;
    e->code = conn->close_code;
    e->value = conn->close_frame_type;
    e->flags = conn->close_flags | (conn->close_app ? QUIC_EVENT_APP : 0);
    e->data = (const uint8_t *)conn->close_reason;
    e->len = conn->close_reason_len;
    return true;
}

bool quic_conn_poll(struct quic_conn *conn, struct quic_event *e) {
    *e = (struct quic_event){.chunk = QUIC_NO_CHUNK};
    if (conn->detached || conn->closed_told)
        return false;
    if (!conn->told_connection) {
        conn->told_connection = true;
        e->type = STOQ_EVENT_CONNECTION;
        return true;
    }
    if (quic_is_open(conn) && crypto_event(conn, e))
        return true;
    if (conn->handshake_done && !conn->told_connected && conn->connected_ns) {
        conn->told_connected = true;
        e->type = STOQ_EVENT_CONNECTED;
        e->value = conn->connected_ns - conn->created_ns;
        return true;
    }
    if (limits_event(conn, e) || next_stream_event(conn, e) || datagram_event(conn, e))
        return true;
    if (conn->told_key_updates != conn->key_updates) {
        conn->told_key_updates = conn->key_updates;
        e->type = STOQ_EVENT_KEY_UPDATED;
        e->value = conn->key_updates;
        return true;
    }
    if (token_event(conn, e))
        return true;
    if (conn->path_changed) {
        conn->path_changed = false;
        e->type = STOQ_EVENT_PATH;
        return true;
    }
    return closed_event(conn, e);
}
