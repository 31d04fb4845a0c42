/* The short way of sending: a train of full packets, each with new bytes of one stream and nothing else. A
 * busy sender does nearly nothing but this, so all that is the same for each packet, or can be summed, is
 * done once a train. What a packet costs here is its header, one STREAM frame without a length (RFC 9000
 * section 19.8), a copy, a seal and two records. Everything else (acknowledgements, lost data, control
 * frames, ends of streams, limits) goes the general way of conn_send.c, which asks here first.
 *
 *      general ─▶ short ─▶ short ─▶ … ─▶ short ─▶ general        one train
 *      (an ACK)   └──── one call, n packets ────┘  (a FIN)
 */
#include <string.h>

#include "conn.h"

/* Nothing but stream data may be waiting: conn_write.c's order of urgency with all else empty. */
static bool only_stream_data(const struct quic_conn *conn, const struct quic_space *space) {
    return space->ack_deadline_ns == QUIC_NEVER && !space->ack_now && !space->probes && !conn->owes &&
           !conn->owe_first && conn->data_streams && !quic_crypto_pending(&space->crypto) &&
           (!conn->datagrams_out || conn->datagrams_out->head == conn->datagrams_out->tail);
}

/* New bytes of `s` that may go out now, but for the last, which may bring a FIN or a limit with it. */
static uint64_t plain_bytes(const struct quic_conn *conn, const struct quic_stream *s) {
    const struct quic_send_part *part = &s->send;
    if (part->state != QUIC_SEND_OPEN || part->lost.count || part->fin_lost || part->next >= part->max ||
        conn->send_total >= conn->send_max)
        return 0;
    uint64_t n = quic_min(part->end - part->next, part->max - part->next);
    n = quic_min(n, conn->send_max - conn->send_total);
    return n ? n - 1 : 0;
}

/* A position in a stream's segments. */
struct source {
    const struct quic_send_part *part;
    uint32_t index; /* Of the segment. */
    const uint8_t *p;
    uint64_t left; /* In it. */
};

static void next_segment(struct source *from) {
    const struct quic_segment *g = &from->part->segments[++from->index & from->part->mask];
    from->p = g->data;
    from->left = g->len;
}

static void copy_from(struct source *from, uint8_t *out, size_t len) {
    while (len > from->left) {
        memcpy(out, from->p, from->left);
        out += from->left;
        len -= from->left;
        next_segment(from);
    }
    memcpy(out, from->p, len);
    from->p += len;
    from->left -= len;
}

/* A packet that is built and not yet sealed. Sealing lags one packet behind, so that the stores of a copy are
 * on their way to the cache while the packet before is encrypted, instead of being waited for. */
struct to_seal {
    uint8_t *packet; /* NULL: none. */
    size_t header, len;
    uint8_t nonce[CRYPTO_NONCE_BYTES];
};

static void seal(const struct quic_keys *keys, const struct to_seal *b) {
    uint8_t *payload = b->packet + b->header;
    keys->crypto->seal(keys->send.key.aead, b->nonce, b->packet, b->header, payload, b->len, payload);
}

uint32_t quic_train_stream(struct quic_conn *conn, uint64_t now, struct quic_train *t) {
    struct quic_space *space = quic_app(conn);
    if (t->room < t->size || t->n == t->max || !only_stream_data(conn, space))
        return 0;
    struct quic_stream *s = conn->data_streams;
    uint64_t plain = plain_bytes(conn, s);
    const struct quic_cid *dcid = &conn->peer_cids[quic_active_path(conn)->peer_cid].cid;
    struct quic_send_part *part = &s->send;
    uint64_t pn = space->sent.next;
    /* Wide enough for the last of the train, and so for all (RFC 9000 section 17.1). */
    unsigned pn_len = quic_pn_bytes(pn + t->max, space->largest_acked);
    size_t pn_offset = 1 + (size_t)dcid->len, header = pn_offset + pn_len;
    size_t id_len = quic_varint_size(s->id);
    size_t overhead = header + 1 + id_len + 8 + CRYPTO_TAG_BYTES; /* With the longest offset. */
    if (t->size < overhead + 64 || plain < t->size)
        return 0;
    uint32_t max = (uint32_t)quic_min(t->max - t->n, t->room / t->size);
    if ((!conn->awake && !quic_conn_wake(conn)) ||
        !quic_sent_reserve_many(&space->sent, quic_host_of(conn), max))
        return 0;

    uint8_t head[1 + QUIC_MAX_CID_BYTES + 4];
    head[0] = (uint8_t)(0x40 | conn->key_phase << 2 | (pn_len - 1));
    memcpy(head + 1, dcid->id, QUIC_MAX_CID_BYTES);
    uint8_t id[8];
    quic_put_varint(id, s->id);
    struct source from = {.part = part, .index = quic_send_part_segment(part, part->next)};
    const struct quic_segment *g = &part->segments[from.index & part->mask];
    from.p = g->data + (part->next - g->offset);
    from.left = g->len - (part->next - g->offset);

    bool ect = conn->recovery.ecn != QUIC_ECN_FAILED;
    const struct quic_sent_packet record = {.time_ns = now,
                                            .bytes = (uint16_t)t->size,
                                            .frame_count = 1,
                                            .state = QUIC_SENT_OUT,
                                            .flags = QUIC_SENT_ELICITING | QUIC_SENT_IN_FLIGHT |
                                                     (ect ? QUIC_SENT_ECT : 0)};
    uint64_t start = part->next, offset = start;
    uint32_t n = 0;
    uint8_t *at = t->at;
    struct to_seal waiting = {.packet = NULL};
    while (n < max) {
        size_t frame = 1 + id_len + (offset ? quic_varint_size(offset) : 0);
        size_t len = t->size - header - frame - CRYPTO_TAG_BYTES;
        if (offset + len - start > plain)
            break;
        struct to_seal built = {at, header, frame + len, {0}};
        quic_nonce(built.nonce, space->keys.send.key.iv, pn);
        uint8_t *p = at;
        memcpy(p, head, sizeof head);
        p += pn_offset;
        for (unsigned i = pn_len; i-- > 0;)
            *p++ = (uint8_t)(pn >> 8 * i);
        *p++ = (uint8_t)(QUIC_FRAME_STREAM | (offset ? QUIC_STREAM_OFF : 0));
        memcpy(p, id, 8);
        p += id_len;
        if (offset)
            p = quic_put_varint(p, offset);
        copy_from(&from, p, len);
        if (waiting.packet)
            seal(&space->keys, &waiting);
        waiting = built;

        struct quic_sent_packet *r = quic_sent_at(&space->sent, pn);
        *r = record;
        r->frames = space->sent.frames_next;
        *quic_sent_frame_at(&space->sent, space->sent.frames_next++) = (struct quic_sent_frame){
            .a = s->id, .b = offset, .len = (uint32_t)len, .type = QUIC_FRAME_STREAM};
        t->starts[t->n++] = at;
        at += t->stride ? t->stride : t->size;
        offset += len;
        pn++;
        n++;
        if (s->quantum <= len) { /* The next stream's turn, also when this one is alone. */
            s->quantum = quic_stream_quantum(conn);
            conn->data_streams = s->send_next;
            if (s->send_next != s)
                break;
        } else {
            s->quantum -= (uint32_t)len;
        }
    }
    if (waiting.packet)
        seal(&space->keys, &waiting);
    if (!n)
        return 0;
    uint64_t bytes = (uint64_t)n * t->size, fresh = offset - start;
    t->at = at;
    t->len += bytes;
    t->room -= bytes;
    t->pn_offset = (uint32_t)pn_offset;
    space->sent.next = pn;
    space->keys.send.sealed += n;
    part->next = offset;
    part->cursor = from.index;
    conn->send_total += fresh;
    conn->unsent -= fresh;
    quic_recovery_sent_many(conn, now, n, bytes, ect);
    conn->stats.packets_sent += n;
    conn->stats.stream_bytes_sent += fresh;
    quic_count(conn, STOQ_COUNTER_PACKETS_SENT, n);
    quic_count(conn, STOQ_COUNTER_STREAM_BYTES_SENT, fresh);
    return n;
}
