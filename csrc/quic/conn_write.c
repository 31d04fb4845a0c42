/* What goes into a packet: frames in order of urgency, each logged with its packet (RFC 9000 sections 12.4,
 * 13). */
#include "conn.h"

#define VARINT2_MAX 16383u /* What a length of two bytes can say; datagrams may be longer. */

static struct quic_sent *sent_of(struct quic_packet_builder *b) {
    return &b->conn->spaces[b->id]->sent;
}

static bool full(struct quic_packet_builder *b) {
    return sent_of(b)->frames_next - b->frames_mark >= QUIC_PACKET_FRAMES;
}

/* Commit a frame that a writer put (NULL: it did not fit) and log it. */
static struct quic_sent_frame *commit(struct quic_packet_builder *b, uint8_t *p, uint64_t type) {
    if (!p)
        return NULL;
    b->p = p;
    b->eliciting |= quic_frame_ack_eliciting(type);
    return quic_sent_log(sent_of(b), type);
}

static void write_ack(struct quic_packet_builder *b) {
    struct quic_conn *conn = b->conn;
    struct quic_space *space = conn->spaces[b->id];
    uint8_t exponent = b->id == QUIC_SPACE_APP ? QUIC_MAX_ACK_DELAY_EXPONENT : 0;
    uint8_t *p = quic_space_put_ack(space, b->now, exponent, true, b->p, b->end);
    struct quic_sent_frame *f = commit(b, p, QUIC_FRAME_ACK);
    if (f) {
        f->a = space->largest_received;
        quic_count(conn, STOQ_COUNTER_ACKS_SENT, 1);
    }
}

static void write_crypto(struct quic_packet_builder *b) {
    struct quic_crypto *c = &b->conn->spaces[b->id]->crypto;
    while (quic_crypto_pending(c) && !full(b)) {
        size_t room = (size_t)(b->end - b->p);
        if (room < 32) /* A crumb costs as much as it carries. */
            return;
        uint32_t offset, len = quic_crypto_next(c, quic_host_of(b->conn),
                                                (uint32_t)quic_min(room - 10, VARINT2_MAX), &offset);
        uint8_t *p = b->p;
        *p++ = QUIC_FRAME_CRYPTO;
        p = quic_put_varint(p, offset);
        p = quic_put_varint2(p, (uint16_t)len);
        __builtin_memcpy(p, c->send + offset, len);
        struct quic_sent_frame *f = commit(b, p + len, QUIC_FRAME_CRYPTO);
        f->b = offset;
        f->len = len;
    }
}

static bool write1(struct quic_packet_builder *b, uint64_t type, uint64_t value) {
    struct quic_sent_frame *f = commit(b, quic_put_frame1(b->p, b->end, type, value), type);
    if (f)
        f->a = f->b = value;
    return f != NULL;
}

static void write_new_cids(struct quic_packet_builder *b) {
    struct quic_conn *conn = b->conn;
    for (uint32_t i = 0; i < QUIC_LOCAL_CIDS && !full(b); i++) {
        struct quic_local_cid *c = &conn->local_cids[i];
        if (!c->used || !c->owed)
            continue;
        uint8_t token[QUIC_RESET_TOKEN_BYTES];
        quic_reset_token(conn->ep, &c->cid, token);
        uint8_t *p = quic_put_new_connection_id(b->p, b->end, c->sequence, 0, &c->cid, token);
        struct quic_sent_frame *f = commit(b, p, QUIC_FRAME_NEW_CONNECTION_ID);
        if (!f)
            return;
        f->a = c->sequence;
        c->owed = false;
    }
    for (uint32_t i = 0; i < QUIC_LOCAL_CIDS; i++) {
        if (conn->local_cids[i].used && conn->local_cids[i].owed)
            return;
    }
    conn->owes &= ~QUIC_OWES_NEW_CID;
}

static void write_retire(struct quic_packet_builder *b) {
    struct quic_conn *conn = b->conn;
    while (conn->retire_head != conn->retire_tail && !full(b)) {
        if (!write1(b, QUIC_FRAME_RETIRE_CONNECTION_ID,
                    conn->retire_queue[conn->retire_head % QUIC_RETIRE_QUEUE]))
            return;
        conn->retire_head++;
    }
    if (conn->retire_head == conn->retire_tail)
        conn->owes &= ~QUIC_OWES_RETIRE;
}

static void write_new_token(struct quic_packet_builder *b) {
    struct quic_conn *conn = b->conn;
    struct quic_endpoint *ep = conn->ep;
    struct quic_token token = {.kind = QUIC_TOKEN_NEW, .issued_ns = b->now};
    uint8_t nonce[12], sealed[QUIC_MAX_TOKEN_BYTES];
    ep->host.random(ep->host.ctx, nonce, sizeof nonce);
    size_t len = quic_token_seal(ep->sealer, &token, &quic_active_path(conn)->peer, nonce, sealed);
    if (commit(b, quic_put_new_token(b->p, b->end, sealed, len), QUIC_FRAME_NEW_TOKEN))
        conn->owes &= ~QUIC_OWES_NEW_TOKEN;
}

static void write_ack_frequency(struct quic_packet_builder *b) {
    struct quic_conn *conn = b->conn;
    const struct quic_ack_ask *ask = &conn->ack_ask;
    uint8_t *p = quic_put_ack_frequency(b->p, b->end, ask->sequence - 1, ask->threshold, ask->delay_us,
                                        QUIC_PACKET_THRESHOLD);
    struct quic_sent_frame *f = commit(b, p, QUIC_FRAME_ACK_FREQUENCY);
    if (!f)
        return;
    f->a = ask->sequence;
    conn->owes &= ~QUIC_OWES_ACK_FREQUENCY;
    quic_count(conn, STOQ_COUNTER_ACK_FREQUENCY_SENT, 1);
}

/* A frame of one value that the connection owes. */
static void write_owed(struct quic_packet_builder *b, uint32_t owe, uint64_t type, uint64_t value) {
    if ((b->conn->owes & owe) && !full(b) && write1(b, type, value))
        b->conn->owes &= ~owe;
}

static void write_connection_frames(struct quic_packet_builder *b) {
    struct quic_conn *conn = b->conn;
    unsigned theirs = conn->server ? 0 : QUIC_STREAM_ID_SERVER;
    if (conn->owes & QUIC_OWES_HANDSHAKE_DONE) {
        if (b->p < b->end) {
            *b->p = QUIC_FRAME_HANDSHAKE_DONE;
            commit(b, b->p + 1, QUIC_FRAME_HANDSHAKE_DONE);
            conn->owes &= ~QUIC_OWES_HANDSHAKE_DONE;
        }
    }
    write_owed(b, QUIC_OWES_CONN_MAX_DATA, QUIC_FRAME_MAX_DATA, conn->recv_max);
    write_owed(b, QUIC_OWES_MAX_STREAMS_BIDI, QUIC_FRAME_MAX_STREAMS_BIDI, conn->kinds[theirs].limit);
    write_owed(b, QUIC_OWES_MAX_STREAMS_UNI, QUIC_FRAME_MAX_STREAMS_UNI,
               conn->kinds[theirs | QUIC_STREAM_ID_UNI].limit);
    write_owed(b, QUIC_OWES_CONN_BLOCKED, QUIC_FRAME_DATA_BLOCKED, conn->send_max);
    if ((conn->owes & QUIC_OWES_ACK_FREQUENCY) && !full(b))
        write_ack_frequency(b);
    if (conn->owes & QUIC_OWES_RETIRE)
        write_retire(b);
    if (conn->owes & QUIC_OWES_NEW_CID)
        write_new_cids(b);
    if ((conn->owes & QUIC_OWES_NEW_TOKEN) && !full(b))
        write_new_token(b);
}

/* One stream's control frames. False: something did not fit. */
static bool write_stream_owes(struct quic_packet_builder *b, struct quic_stream *s) {
    struct quic_sent_frame *f;
    if (s->owes & QUIC_OWES_RESET) {
        /* Section 4.5: the final size is what was sent at most. */
        f = commit(
            b,
            quic_put_frame3(b->p, b->end, QUIC_FRAME_RESET_STREAM, s->id, s->send.reset_code, s->send.next),
            QUIC_FRAME_RESET_STREAM);
        if (!f)
            return false;
        f->a = s->id;
        s->owes &= (uint8_t)~QUIC_OWES_RESET;
    }
    if (s->owes & QUIC_OWES_STOP) {
        f = commit(b, quic_put_frame2(b->p, b->end, QUIC_FRAME_STOP_SENDING, s->id, s->recv.stop_code),
                   QUIC_FRAME_STOP_SENDING);
        if (!f)
            return false;
        f->a = s->id;
        s->owes &= (uint8_t)~QUIC_OWES_STOP;
    }
    if (s->owes & QUIC_OWES_MAX_DATA) {
        if (s->recv.state == QUIC_RECV_OPEN) {
            f = commit(b, quic_put_frame2(b->p, b->end, QUIC_FRAME_MAX_STREAM_DATA, s->id, s->recv.max),
                       QUIC_FRAME_MAX_STREAM_DATA);
            if (!f)
                return false;
            f->a = s->id;
            f->b = s->recv.max;
        }
        s->owes &= (uint8_t)~QUIC_OWES_MAX_DATA;
    }
    if (s->owes & QUIC_OWES_BLOCKED) {
        if (s->send.state == QUIC_SEND_OPEN) {
            f = commit(b, quic_put_frame2(b->p, b->end, QUIC_FRAME_STREAM_DATA_BLOCKED, s->id, s->send.max),
                       QUIC_FRAME_STREAM_DATA_BLOCKED);
            if (!f)
                return false;
            f->a = s->id;
            f->b = s->send.max;
        }
        s->owes &= (uint8_t)~QUIC_OWES_BLOCKED;
    }
    return true;
}

static void write_streams_owes(struct quic_packet_builder *b) {
    struct quic_conn *conn = b->conn;
    while (conn->owe_first) {
        struct quic_stream *s = conn->owe_first;
        /* Four records at most a stream. */
        if (sent_of(b)->frames_next - b->frames_mark + 4 > QUIC_PACKET_FRAMES || !write_stream_owes(b, s))
            return;
        conn->owe_first = s->owe_next;
        if (!conn->owe_first)
            conn->owe_last = NULL;
        s->owe_queued = false;
        quic_stream_maybe_close(conn, s);
    }
}

static void write_datagrams(struct quic_packet_builder *b) {
    struct quic_conn *conn = b->conn;
    struct quic_datagram_queue *q = conn->datagrams_out;
    const struct quic_host *host = quic_host_of(conn);
    while (q && q->head != q->tail && !full(b)) {
        struct quic_datagram *d = &q->v[q->head % QUIC_DATAGRAM_QUEUE];
        size_t need = 1 + quic_varint_size(d->len) + d->len;
        if ((size_t)(b->end - b->p) < need) {
            /* It waits for an empty packet; one that no packet can hold was refused when it was queued,
             * unless the path shrank. */
            if (b->p != b->payload)
                return;
            quic_count(conn, STOQ_COUNTER_DATAGRAM_FRAMES_DROPPED, 1);
        } else {
            uint8_t *p = b->p;
            *p++ = QUIC_FRAME_DATAGRAM | 1;
            p = quic_put_varint(p, d->len);
            __builtin_memcpy(p, d->data, d->len);
            commit(b, p + d->len, QUIC_FRAME_DATAGRAM);
            quic_count(conn, STOQ_COUNTER_DATAGRAM_FRAMES_SENT, 1);
        }
        host->free(host->ctx, d->data, d->len ? d->len : 1);
        q->head++;
    }
}

/* Section 19.8. The last frame of a full packet needs no length. False: no room. */
static bool write_stream_data(struct quic_packet_builder *b, struct quic_stream *s) {
    struct quic_conn *conn = b->conn;
    struct quic_send_part *part = &s->send;
    uint64_t at = part->lost.count ? part->lost.v[0].lo : part->next;
    size_t header = 1 + quic_varint_size(s->id) + (at ? quic_varint_size(at) : 0);
    size_t room = (size_t)(b->end - b->p);
    if (room < header + 4)
        return false;
    uint64_t offset, credit = conn->send_max - conn->send_total;
    bool fin;
    uint32_t fresh;
    uint32_t len = quic_send_part_next(part, quic_host_of(conn), (uint32_t)(room - header), credit, &offset,
                                       &fin, &fresh);
    if (!len && !fin) {
        /* Blocked, by the stream's limit or the connection's: say so once a limit (section 4.1). */
        if (part->next < part->end && part->next >= part->max && part->blocked_at != part->max + 1) {
            part->blocked_at = part->max + 1;
            quic_stream_owe(conn, s, QUIC_OWES_BLOCKED);
        }
        return true;
    }
    /* Without a length field, up to the packet's end, when the field would not fit. */
    bool to_end = header + len + (len <= VARINT2_MAX ? 2 : 4) > room;
    uint8_t *p = b->p;
    if (to_end) {
        for (size_t pad = room - header - len; pad; pad--) /* Three at most. */
            *p++ = QUIC_FRAME_PADDING;
    }
    *p++ = (uint8_t)(QUIC_FRAME_STREAM | (offset ? QUIC_STREAM_OFF : 0) | (to_end ? 0 : QUIC_STREAM_LEN) |
                     (fin ? QUIC_STREAM_FIN : 0));
    p = quic_put_varint(p, s->id);
    if (offset)
        p = quic_put_varint(p, offset);
    if (!to_end)
        p = quic_put_varint(p, len);
    quic_send_part_copy(part, offset, len, p);
    struct quic_sent_frame *f = commit(b, p + len, QUIC_FRAME_STREAM);
    f->a = s->id;
    f->b = offset;
    f->len = len;
    f->fin = fin;
    conn->send_total += fresh;
    conn->unsent -= fresh;
    conn->stats.stream_bytes_sent += fresh;
    conn->stats.stream_bytes_retransmitted += len - fresh;
    quic_count(conn, STOQ_COUNTER_STREAM_BYTES_SENT, fresh);
    quic_count(conn, STOQ_COUNTER_STREAM_BYTES_RETRANSMITTED, len - fresh);
    s->quantum = s->quantum > len ? s->quantum - len : 0;
    return true;
}

static void write_streams(struct quic_packet_builder *b) {
    struct quic_conn *conn = b->conn;
    uint32_t stuck = 0; /* Streams in a row that could not send: when all are, stop. */
    while (conn->data_streams && !full(b)) {
        struct quic_stream *s = conn->data_streams;
        uint8_t *before = b->p;
        if (!write_stream_data(b, s))
            return;
        bool wrote = b->p != before;
        if (!quic_send_part_pending(&s->send)) {
            quic_stream_unschedule(conn, s);
            continue;
        }
        if (!wrote) {
            /* Only the connection's limit can hold back a stream that is pending. */
            if (conn->send_max == conn->send_total && conn->blocked_at != conn->send_max + 1) {
                conn->blocked_at = conn->send_max + 1;
                conn->owes |= QUIC_OWES_CONN_BLOCKED;
            }
            if (++stuck > conn->stream_count)
                return;
        } else {
            stuck = 0;
        }
        if (!wrote || !s->quantum) {
            s->quantum = quic_stream_quantum(conn);
            conn->data_streams = s->send_next;
        }
    }
}

void quic_write_frames(struct quic_packet_builder *b, bool only_ack) {
    struct quic_conn *conn = b->conn;
    struct quic_space *space = conn->spaces[b->id];
    if (space->ack_now || space->ack_deadline_ns <= b->now ||
        (!only_ack && space->ack_deadline_ns != QUIC_NEVER))
        write_ack(b);
    if (only_ack)
        return;
    write_crypto(b);
    if (b->id == QUIC_SPACE_APP) {
        if (space->probes && b->p < b->end && quic_ack_frequency_taken(conn)) {
            *b->p = QUIC_FRAME_IMMEDIATE_ACK;
            commit(b, b->p + 1, QUIC_FRAME_IMMEDIATE_ACK);
        }
        if (conn->owes)
            write_connection_frames(b);
        if (conn->owe_first)
            write_streams_owes(b);
        if (conn->datagrams_out)
            write_datagrams(b);
        if (conn->data_streams)
            write_streams(b);
    }
    if (!b->eliciting && b->p < b->end && !full(b) &&
        (space->probes || (b->id == QUIC_SPACE_APP && (conn->owes & QUIC_OWES_PING)))) {
        *b->p = QUIC_FRAME_PING;
        commit(b, b->p + 1, QUIC_FRAME_PING);
    }
    if (b->eliciting && b->id == QUIC_SPACE_APP)
        conn->owes &= ~QUIC_OWES_PING;
}

/* Is a stream able to send now? With the connection's credit used up only lost data and bare FINs are. */
static bool streams_pending(const struct quic_conn *conn) {
    const struct quic_stream *s = conn->data_streams;
    if (!s)
        return false;
    if (conn->send_max > conn->send_total)
        return true;
    do {
        const struct quic_send_part *p = &s->send;
        if (p->lost.count || p->fin_lost || (p->fin && !p->fin_sent && p->next == p->end))
            return true;
        s = s->send_next;
    } while (s != conn->data_streams);
    return conn->blocked_at != conn->send_max + 1;
}

bool quic_write_pending(struct quic_conn *conn, uint64_t now, enum quic_space_id id, bool only_ack) {
    const struct quic_space *space = conn->spaces[id];
    if (space->discarded ||
        (!quic_can_send(&space->keys) && (id != QUIC_SPACE_APP || !quic_early_can_send(conn))))
        return false;
    if (space->ack_now || space->ack_deadline_ns <= now)
        return true;
    if (only_ack)
        return false;
    if (space->probes || quic_crypto_pending(&space->crypto))
        return true;
    if (id != QUIC_SPACE_APP)
        return false;
    return conn->owes || conn->owe_first ||
           (conn->datagrams_out && conn->datagrams_out->head != conn->datagrams_out->tail) ||
           streams_pending(conn);
}
