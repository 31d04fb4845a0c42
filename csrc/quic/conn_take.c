/* The short way of receiving: the next packet, with one STREAM frame that brings the next bytes of a stream
 * and nothing else, from where the peer is. A busy receiver gets nearly nothing but these, a train at a time.
 * Each costs a look at its frame and a copy; what is the same for all of them (acknowledgement policy,
 * timers, telling the reader) is done once, when the run of them ends. Everything else goes the general way
 * of conn_frames.c, which also decides what is an error: a packet is refused here only by leaving it alone.
 *
 * Behind the first of a run the next one's frame can be told before it is opened: the same stream, the offset
 * that follows, up to the packet's end. So the AEAD writes the plaintext where the stream wants it, and
 * nothing is copied. The frame's own few bytes then lie on the last bytes of the packet before, which are put
 * back:
 *
 *      chunk      delivered | bytes of this run so far | free
 *      plaintext                                  head | data
 *
 * Only bytes the reader has not been told of are touched so. A guess that was wrong costs a copy.
 */
#include <string.h>

#include "conn.h"

static bool from_the_active_path(struct quic_conn *conn, const struct quic_packet_info *info) {
    const struct quic_path *active = quic_active_path(conn);
    return active->received && quic_addr_equal(&active->peer, info->peer) &&
           quic_addr_equal(&active->local, info->local);
}

/* One STREAM frame up to the packet's end (RFC 9000 section 19.8), without FIN. */
static bool parse(const uint8_t *payload, size_t len, uint64_t *id, uint64_t *offset,
                  struct quic_reader *data) {
    struct quic_reader r = {payload, payload + len};
    if (!len || (*r.p & ~(QUIC_STREAM_OFF | QUIC_STREAM_LEN)) != QUIC_FRAME_STREAM)
        return false;
    uint8_t type = *r.p++;
    uint64_t n;
    *offset = 0;
    if (!quic_read_varint(&r, id) || ((type & QUIC_STREAM_OFF) && !quic_read_varint(&r, offset)))
        return false;
    if ((type & QUIC_STREAM_LEN) && (!quic_read_varint(&r, &n) || n != quic_left(&r)))
        return false;
    *data = r;
    return quic_left(&r) > 0;
}

bool quic_take_stream(struct quic_conn *conn, const struct quic_packet_info *info, uint64_t pn,
                      const uint8_t *payload, size_t len, struct quic_taken *t) {
    struct quic_space *space = quic_app(conn);
    struct quic_ranges *numbers = &space->received;
    if (!numbers->count || numbers->v[numbers->count - 1].hi != pn || info->ecn == 3)
        return false;
    if (!t->looked) {
        t->looked = true;
        t->here = from_the_active_path(conn, info);
    }
    uint64_t id, offset;
    struct quic_reader data;
    if (!t->here || !parse(payload, len, &id, &offset, &data))
        return false;
    struct quic_stream *s = t->stream && t->stream->id == id ? t->stream : quic_stream_find(conn, id);
    if (!s || (t->packets && s != t->stream))
        return false;
    struct quic_recv_part *r = &s->recv;
    uint32_t n = (uint32_t)quic_left(&data);
    if (r->state != QUIC_RECV_OPEN || r->stopped || r->highest != offset || offset + n > r->max ||
        conn->recv_total + n > conn->recv_max || !quic_recv_part_append(r, data.p, n))
        return false;
    r->highest += n;
    conn->recv_total += n;
    numbers->v[numbers->count - 1].hi = pn + 1;
    space->largest_received = pn;
    t->stream = s;
    t->plain = payload[0] == (QUIC_FRAME_STREAM | QUIC_STREAM_OFF);
    t->packets++;
    return true;
}

bool quic_take_predict(struct quic_conn *conn, uint64_t pn, size_t len, const struct quic_taken *t,
                       struct quic_landing *l) {
    const struct quic_ranges *numbers = &quic_app(conn)->received;
    if (!t->packets || !t->plain || numbers->v[numbers->count - 1].hi != pn)
        return false;
    struct quic_recv_part *r = &t->stream->recv;
    uint8_t *p = l->head;
    *p++ = QUIC_FRAME_STREAM | QUIC_STREAM_OFF;
    p = quic_put_varint(p, t->stream->id);
    p = quic_put_varint(p, r->highest);
    l->head_len = (uint32_t)(p - l->head);
    if (len <= l->head_len)
        return false;
    l->len = (uint32_t)len - l->head_len;
    if (r->highest + l->len > r->max || conn->recv_total + l->len > conn->recv_max)
        return false;
    uint8_t *place = quic_recv_part_place(r, l->head_len, l->len);
    if (!place)
        return false;
    l->at = place - l->head_len;
    memcpy(l->saved, l->at, l->head_len);
    return true;
}

bool quic_take_landed(struct quic_conn *conn, uint64_t pn, const struct quic_landing *l,
                      struct quic_taken *t) {
    if (memcmp(l->at, l->head, l->head_len) != 0)
        return false;
    struct quic_space *space = quic_app(conn);
    struct quic_recv_part *r = &t->stream->recv;
    r->received.v[0].hi += l->len;
    r->highest += l->len;
    conn->recv_total += l->len;
    space->received.v[space->received.count - 1].hi = pn + 1;
    space->largest_received = pn;
    t->packets++;
    return true;
}

void quic_taken_end(struct quic_conn *conn, const struct quic_packet_info *info, struct quic_taken *t) {
    uint32_t n = t->packets;
    t->looked = false; /* What comes between may move the peer. */
    t->packets = 0;
    if (!n)
        return;
    conn->stats.packets_received += n;
    quic_count(conn, STOQ_COUNTER_PACKETS_RECEIVED, n);
    quic_space_received_run(quic_app(conn), info->now, n, info->ecn, &conn->ack_policy);
    quic_stream_tell(conn, t->stream, QUIC_TELL_DATA);
    quic_conn_after_packet(conn, info, QUIC_SPACE_APP);
    t->stream = NULL; /* The general way may free it. */
}
