/* What each received frame does: RFC 9000 section 19, in the order of its types. */
#include <string.h>

#include "conn.h"

static int on_crypto(struct quic_conn *conn, enum quic_space_id id, const struct quic_frame *f,
                     const char **why) {
    struct quic_space *space = conn->spaces[id];
    int error = quic_crypto_receive(&space->crypto, quic_host_of(conn), f->offset, f->data, f->len);
    if (error == QUIC_CRYPTO_BUFFER_EXCEEDED)
        *why = "CRYPTO data past the buffer";
    if (error == QUIC_INTERNAL_ERROR)
        return QUIC_NOT_NOW;
    if (!error && quic_crypto_readable(&space->crypto))
        quic_schedule_event(conn);
    return error;
}

static int on_max_streams(struct quic_conn *conn, const struct quic_frame *f, bool uni) {
    struct quic_stream_kind *kind =
        &conn->kinds[(conn->server ? QUIC_STREAM_ID_SERVER : 0) | (uni ? QUIC_STREAM_ID_UNI : 0)];
    if (f->value > kind->limit) {
        kind->limit = f->value;
        quic_schedule_event(conn);
    }
    return 0;
}

static int on_datagram(struct quic_conn *conn, const struct quic_frame *f, const char **why) {
    const struct quic_host *host = quic_host_of(conn);
    /* RFC 9221 section 3: the limit is on the whole frame. */
    if (!conn->ep->config.max_datagram_frame || f->len + 1 > conn->ep->config.max_datagram_frame) {
        *why = "DATAGRAM frame larger than max_datagram_frame_size";
        return QUIC_PROTOCOL_VIOLATION;
    }
    if (!conn->datagrams_in)
        conn->datagrams_in = host->alloc(host->ctx, sizeof *conn->datagrams_in);
    struct quic_datagram_queue *q = conn->datagrams_in;
    uint8_t *copy = NULL;
    if (q && q->tail - q->head < QUIC_DATAGRAM_QUEUE)
        copy = host->alloc(host->ctx, f->len ? f->len : 1);
    if (!copy) { /* RFC 9221 section 5.2: acknowledged, not delivered. */
        quic_count(conn, STOQ_COUNTER_DATAGRAM_FRAMES_DROPPED, 1);
        return 0;
    }
    memcpy(copy, f->data, f->len);
    q->v[q->tail++ % QUIC_DATAGRAM_QUEUE] = (struct quic_datagram){copy, (uint32_t)f->len};
    quic_count(conn, STOQ_COUNTER_DATAGRAM_FRAMES_RECEIVED, 1);
    quic_schedule_event(conn);
    return 0;
}

/* Section 8.1.3: kept for the reader, the latest only; remembering it across connections is the control
 * plane's. */
static int on_new_token(struct quic_conn *conn, const struct quic_frame *f) {
    const struct quic_host *host = quic_host_of(conn);
    if (f->len > QUIC_MIN_INITIAL_BYTES / 2)
        return 0; /* It would crowd out the ClientHello. */
    uint8_t *copy = host->alloc(host->ctx, f->len);
    if (!copy)
        return QUIC_NOT_NOW;
    if (conn->new_token)
        host->free(host->ctx, conn->new_token, conn->new_token_len);
    memcpy(copy, f->data, f->len);
    conn->new_token = copy;
    conn->new_token_len = (uint32_t)f->len;
    quic_schedule_event(conn);
    return 0;
}

static int one_frame(struct quic_conn *conn, const struct quic_packet_info *info, enum quic_space_id id,
                     const struct quic_frame *f, uint8_t path, const uint8_t *dcid, const char **why) {
    switch (f->type) {
    case QUIC_FRAME_PADDING:
    case QUIC_FRAME_PING:
    case QUIC_FRAME_DATA_BLOCKED:
    case QUIC_FRAME_STREAMS_BLOCKED_BIDI:
    case QUIC_FRAME_STREAMS_BLOCKED_UNI:
        return 0;
    case QUIC_FRAME_ACK:
    case QUIC_FRAME_ACK_ECN:
        return quic_conn_on_ack(conn, info->now, id, f, why);
    case QUIC_FRAME_RESET_STREAM:
        return quic_stream_on_reset(conn, f, why);
    case QUIC_FRAME_STOP_SENDING:
        return quic_stream_on_stop(conn, f, why);
    case QUIC_FRAME_CRYPTO:
        return on_crypto(conn, id, f, why);
    case QUIC_FRAME_NEW_TOKEN:
        if (conn->server) {
            *why = "NEW_TOKEN from a client";
            return QUIC_PROTOCOL_VIOLATION;
        }
        return on_new_token(conn, f);
    case QUIC_FRAME_STREAM:
        return quic_stream_on_data(conn, f, why);
    case QUIC_FRAME_MAX_DATA:
        if (f->value > conn->send_max) {
            conn->send_max = f->value;
            quic_schedule_send(conn);
        }
        return 0;
    case QUIC_FRAME_MAX_STREAM_DATA:
        return quic_stream_on_max_data(conn, f, why);
    case QUIC_FRAME_MAX_STREAMS_BIDI:
    case QUIC_FRAME_MAX_STREAMS_UNI:
        return on_max_streams(conn, f, f->type == QUIC_FRAME_MAX_STREAMS_UNI);
    case QUIC_FRAME_STREAM_DATA_BLOCKED: {
        int error;
        (void)quic_stream_for_frame(conn, f->stream_id, false, &error);
        return error;
    }
    case QUIC_FRAME_NEW_CONNECTION_ID:
        return quic_cids_on_new(conn, f, why);
    case QUIC_FRAME_RETIRE_CONNECTION_ID:
        return quic_cids_on_retire(conn, f, dcid, why);
    case QUIC_FRAME_PATH_CHALLENGE:
        quic_path_on_challenge(conn, path, f->data);
        return 0;
    case QUIC_FRAME_PATH_RESPONSE:
        quic_path_on_response(conn, info->now, f->data);
        return 0;
    case QUIC_FRAME_CONNECTION_CLOSE:
    case QUIC_FRAME_CONNECTION_CLOSE_APP:
        quic_conn_end(conn, info->now, QUIC_CONN_DRAINING, QUIC_EVENT_REMOTE,
                      f->type == QUIC_FRAME_CONNECTION_CLOSE_APP, f->code, f->close_frame_type,
                      (const char *)f->data, f->len);
        return 0;
    case QUIC_FRAME_HANDSHAKE_DONE:
        if (conn->server) {
            *why = "HANDSHAKE_DONE from a client";
            return QUIC_PROTOCOL_VIOLATION;
        }
        quic_conn_confirm(conn, info->now);
        return 0;
    case QUIC_FRAME_DATAGRAM:
        return on_datagram(conn, f, why);
    case QUIC_FRAME_IMMEDIATE_ACK:
        return quic_ack_frequency_on_immediate(conn, why);
    case QUIC_FRAME_ACK_FREQUENCY:
        return quic_ack_frequency_on_frame(conn, f, why);
    default:
        *why = "unknown frame type";
        return QUIC_FRAME_ENCODING_ERROR;
    }
}

int quic_conn_frames(struct quic_conn *conn, const struct quic_packet_info *info, enum quic_packet_type type,
                     const uint8_t *payload, size_t len, uint8_t path, struct quic_frames_result *result) {
    struct quic_reader r = {payload, payload + len};
    enum quic_space_id id = type == QUIC_PACKET_INITIAL     ? QUIC_SPACE_INITIAL
                            : type == QUIC_PACKET_HANDSHAKE ? QUIC_SPACE_HANDSHAKE
                                                            : QUIC_SPACE_APP;
    struct quic_frame f;
    while (r.p < r.end && quic_is_open(conn)) {
        int error = quic_frame_parse(&r, type, &f);
        result->frame_type = f.type;
        if (error)
            return error;
        error = one_frame(conn, info, id, &f, path, result->dcid, &result->why);
        if (error)
            return error;
        result->eliciting |= quic_frame_ack_eliciting(f.type);
        result->non_probing |= !quic_frame_probing(f.type);
    }
    return 0;
}
