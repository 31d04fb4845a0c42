/* 0-RTT: what a client sends with keys of an earlier session, before the server has answered. RFC 9001
 * sections 4.6 and 5.7, RFC 9000 section 7.4.1.
 *
 *   client   remembered limits, early keys ──▶ offered ──▶ accepted: packets stand; limits may only have
 * grown └──────▶ refused: everything goes out again as 1-RTT server   packets wait (conn_recv.c) until TLS
 * has given early keys, or Handshake keys without them
 *
 * 0-RTT packets share the application's packet number space. The state lives apart, because most connections
 * have none: it goes as soon as 1-RTT keys make it useless.
 *
 * What this file does not decide: whether early data may be taken. It can be replayed, so that is for TLS,
 * which knows the ticket (docs/decisions/0014).
 */
#include "conn.h"

static struct quic_early *early_create(struct quic_conn *conn) {
    const struct quic_host *host = quic_host_of(conn);
    if (!conn->early) {
        conn->early = host->alloc(host->ctx, sizeof *conn->early);
        if (conn->early) {
            conn->early->keys.crypto = conn->ep->config.crypto;
            conn->early->keys.host = host;
        }
    }
    return conn->early;
}

void quic_early_release(struct quic_conn *conn) {
    const struct quic_host *host = quic_host_of(conn);
    if (!conn->early)
        return;
    quic_keys_discard(&conn->early->keys);
    host->free(host->ctx, conn->early, sizeof *conn->early);
    conn->early = NULL;
}

/* Section 7.4.1 lists what is remembered; ids, tokens and ACK delays are not. */
static void remember(struct quic_peer_params *to, const struct quic_params *from) {
    to->initial_max_data = from->initial_max_data;
    to->initial_max_stream_data_bidi_local = from->initial_max_stream_data_bidi_local;
    to->initial_max_stream_data_bidi_remote = from->initial_max_stream_data_bidi_remote;
    to->initial_max_stream_data_uni = from->initial_max_stream_data_uni;
    to->initial_max_streams_bidi = from->initial_max_streams_bidi;
    to->initial_max_streams_uni = from->initial_max_streams_uni;
    to->active_connection_id_limit = from->active_connection_id_limit;
    to->max_datagram_frame_size = from->max_datagram_frame_size;
}

void quic_conn_set_early_params(struct quic_conn *conn, uint64_t now, const uint8_t *data, size_t len) {
    const char *why = "remembered transport parameters cannot be used";
    struct quic_params p;
    if (!quic_is_open(conn))
        return;
    if (conn->server || conn->peer_params_set || conn->early ||
        quic_params_decode(data, len, true, &p, &why)) {
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, why);
        return;
    }
    if (!early_create(conn)) {
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, "out of memory for 0-RTT");
        return;
    }
    remember(&conn->peer_params, &p);
}

bool quic_early_install(struct quic_conn *conn, bool send, enum crypto_aead aead, const uint8_t *secret,
                        size_t len) {
    /* A server's frames need the client's limits, a client's the remembered ones. */
    bool in_order = conn->server ? !send && conn->peer_params_set && !conn->handshake_done
                                 : send && conn->early && !conn->peer_params_set;
    if (!in_order || !early_create(conn) || quic_can_send(&conn->early->keys) ||
        quic_can_receive(&conn->early->keys) ||
        !quic_keys_install(&conn->early->keys, send, aead, secret, len))
        return false;
    if (!conn->server) {
        quic_streams_apply_peer_limits(conn);
        quic_schedule_event(conn); /* Streams can be opened. */
    }
    return true;
}

void quic_conn_early_answered(struct quic_conn *conn, uint64_t now, bool accepted) {
    if (!quic_is_open(conn) || conn->server)
        return;
    if (!conn->early || conn->early->answer != QUIC_EARLY_OFFERED || conn->peer_params_set) {
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, "answer to 0-RTT that was not offered");
        return;
    }
    conn->early->answer = accepted ? QUIC_EARLY_ACCEPTED : QUIC_EARLY_REFUSED;
    if (accepted)
        return;
    quic_count(conn, STOQ_COUNTER_ZERO_RTT_REFUSED, 1);
    quic_keys_discard(&conn->early->keys);
    quic_recovery_resend_space(conn, QUIC_SPACE_APP);
}

static bool lowered(const struct quic_peer_params *before, const struct quic_params *p) {
    return p->initial_max_data < before->initial_max_data ||
           p->initial_max_stream_data_bidi_local < before->initial_max_stream_data_bidi_local ||
           p->initial_max_stream_data_bidi_remote < before->initial_max_stream_data_bidi_remote ||
           p->initial_max_stream_data_uni < before->initial_max_stream_data_uni ||
           p->initial_max_streams_bidi < before->initial_max_streams_bidi ||
           p->initial_max_streams_uni < before->initial_max_streams_uni ||
           p->active_connection_id_limit < before->active_connection_id_limit ||
           p->max_datagram_frame_size < before->max_datagram_frame_size;
}

bool quic_early_check_params(struct quic_conn *conn, uint64_t now, const struct quic_params *p) {
    if (!conn->early || conn->server)
        return true;
    enum quic_early_answer answer = conn->early->answer;
    if (answer == QUIC_EARLY_OFFERED) {
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, "transport parameters before the answer to 0-RTT");
        return false;
    }
    if (!lowered(&conn->peer_params, p))
        return true;
    if (answer == QUIC_EARLY_ACCEPTED)
        quic_conn_fail(conn, now, QUIC_PROTOCOL_VIOLATION, QUIC_FRAME_CRYPTO,
                       "the server accepted 0-RTT and lowered its limits");
    else /* It may. What was opened and sent on the old ones may not fit: let the caller begin anew. */
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0,
                       "the server refused 0-RTT and permits less than before: connect again without");
    return false;
}

void quic_early_raise_limits(struct quic_conn *conn) {
    if (!conn->early || conn->server)
        return;
    const struct quic_peer_params *p = &conn->peer_params;
    for (uint32_t i = 0; conn->buckets && i <= conn->bucket_mask; i++) {
        for (struct quic_stream *s = conn->buckets[i]; s; s = s->next_in_bucket) {
            s->send.max =
                quic_max(s->send.max, s->id & QUIC_STREAM_ID_UNI ? p->initial_max_stream_data_uni
                                                                 : p->initial_max_stream_data_bidi_remote);
            quic_stream_schedule(conn, s);
        }
    }
}
