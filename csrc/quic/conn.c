/* A connection's life: creation, the TLS seam, closing, draining, release. RFC 9000 sections 5, 7, 10; RFC
 * 9001 section 4. */
#include "conn.h"

#include <string.h>

/* What is used of the peer's parameters once they are checked. */
static void keep_params(struct quic_conn *conn, const struct quic_params *p) {
    conn->peer_params = (struct quic_peer_params){
        .initial_max_stream_data_bidi_local = p->initial_max_stream_data_bidi_local,
        .initial_max_stream_data_bidi_remote = p->initial_max_stream_data_bidi_remote,
        .initial_max_stream_data_uni = p->initial_max_stream_data_uni,
        .initial_max_data = p->initial_max_data,
        .initial_max_streams_bidi = p->initial_max_streams_bidi,
        .initial_max_streams_uni = p->initial_max_streams_uni,
        .min_ack_delay_us = p->min_ack_delay_us,
        .max_datagram_frame_size = p->max_datagram_frame_size,
        .active_connection_id_limit = p->active_connection_id_limit,
        .max_udp_payload_size = (uint16_t)quic_min(p->max_udp_payload_size, UINT16_MAX),
        .max_ack_delay_ms = (uint16_t)p->max_ack_delay_ms, /* Below 2^14, section 18.2. */
        .ack_delay_exponent = (uint8_t)p->ack_delay_exponent,
    };
}

static void free_blocks(struct quic_conn *conn) {
    const struct quic_host *host = quic_host_of(conn);
    if (conn->handshake)
        host->free(host->ctx, conn->handshake, sizeof *conn->handshake);
    host->free(host->ctx, conn, sizeof *conn);
}

struct quic_conn *quic_conn_create(struct quic_endpoint *ep, uint64_t now, bool server,
                                   const struct quic_addr *peer, const struct quic_addr *local) {
    const struct quic_config *config = &ep->config;
    struct quic_conn *conn = ep->host.alloc(ep->host.ctx, sizeof *conn);
    if (!conn)
        return NULL;
    conn->handshake = ep->host.alloc(ep->host.ctx, sizeof *conn->handshake);
    if (!conn->handshake) {
        ep->host.free(ep->host.ctx, conn, sizeof *conn);
        return NULL;
    }
    conn->spaces[QUIC_SPACE_INITIAL] = &conn->handshake->spaces[QUIC_SPACE_INITIAL];
    conn->spaces[QUIC_SPACE_HANDSHAKE] = &conn->handshake->spaces[QUIC_SPACE_HANDSHAKE];
    conn->spaces[QUIC_SPACE_APP] = &conn->app;
    conn->ep = ep;
    conn->server = server;
    conn->created_ns = conn->last_received_ns = now;
    conn->version = QUIC_VERSION_1;
    conn->timer.deadline_ns = QUIC_NEVER;
    conn->paths[0] = (struct quic_path){.peer = *peer, .local = *local, .used = true, .validated = !server};
    for (int i = 0; i < QUIC_SPACE_COUNT; i++)
        quic_space_init(conn->spaces[i], config->crypto, &ep->host);
    struct quic_params absent;
    quic_params_defaults(&absent);
    keep_params(conn, &absent);
    conn->min_ack_delay_us = QUIC_NO_MIN_ACK_DELAY;
    quic_ack_frequency_init(conn);
    quic_mtu_reset(conn);
    size_t cc_bytes = quic_cc_state_bytes(config->cc);
    if (cc_bytes && !(conn->recovery.cc.bbr = ep->host.alloc(ep->host.ctx, cc_bytes))) {
        free_blocks(conn);
        return NULL;
    }
    for (int i = 0; i < QUIC_SPACE_COUNT; i++)
        conn->spaces[i]->sent.with_rates = cc_bytes != 0;
    quic_recovery_init(conn);
    conn->recovery.pace_updated_ns = now;
    conn->idle_timeout_ns = config->idle_timeout_ns;
    conn->idle_deadline_ns = now + conn->idle_timeout_ns;
    conn->phase_first_recv_pn = QUIC_NO_PN;
    conn->recv_window = conn->recv_max = config->max_data;
    unsigned theirs = server ? 0 : QUIC_STREAM_ID_SERVER;
    conn->kinds[theirs].limit = config->max_streams_bidi;
    conn->kinds[theirs | QUIC_STREAM_ID_UNI].limit = config->max_streams_uni;
    if (!quic_cids_init(conn)) {
        quic_cids_release(conn);
        quic_recovery_release(conn);
        free_blocks(conn);
        return NULL;
    }
    conn->initial_scid = conn->local_cids[0].cid;
    return conn;
}

static void free_queue(struct quic_conn *conn, struct quic_datagram_queue **queue) {
    const struct quic_host *host = quic_host_of(conn);
    struct quic_datagram_queue *q = *queue;
    if (!q)
        return;
    for (; q->head != q->tail; q->head++) {
        struct quic_datagram *d = &q->v[q->head % QUIC_DATAGRAM_QUEUE];
        host->free(host->ctx, d->data, d->len ? d->len : 1);
    }
    host->free(host->ctx, q, sizeof *q);
    *queue = NULL;
}

static void free_pending(struct quic_conn *conn) {
    const struct quic_host *host = quic_host_of(conn);
    struct quic_handshake *hs = conn->handshake;
    for (uint32_t i = 0; hs && i < hs->pending_count; i++)
        host->free(host->ctx, hs->pending[i].data, hs->pending[i].len);
    if (hs)
        hs->pending_count = 0;
}

static void free_token(struct quic_conn *conn) {
    const struct quic_host *host = quic_host_of(conn);
    struct quic_handshake *hs = conn->handshake;
    if (hs && hs->token)
        host->free(host->ctx, hs->token, hs->token_len);
}

void quic_handshake_release(struct quic_conn *conn) {
    const struct quic_host *host = quic_host_of(conn);
    for (int i = 0; i < QUIC_SPACE_APP; i++) {
        quic_conn_discard_space(conn, i);
        conn->spaces[i] = (struct quic_space *)&quic_space_gone; /* Its `discarded` keeps writers off. */
    }
    free_pending(conn);
    free_token(conn);
    crypto_wipe(conn->handshake, sizeof *conn->handshake);
    host->free(host->ctx, conn->handshake, sizeof *conn->handshake);
    conn->handshake = NULL;
}

void quic_conn_free(struct quic_conn *conn) {
    struct quic_endpoint *ep = conn->ep;
    const struct quic_host *host = &ep->host;
    if (conn->timer.deadline_ns != QUIC_NEVER)
        host->timer_set(host->ctx, &conn->timer, QUIC_NEVER);
    quic_unschedule(conn);
    quic_conn_rest_keys(conn);
    quic_endpoint_forget(conn);
    quic_streams_release(conn);
    for (int i = 0; i < QUIC_SPACE_COUNT; i++)
        if (!conn->spaces[i]->discarded)
            quic_space_discard(conn->spaces[i], host);
    quic_cids_release(conn);
    quic_recovery_release(conn);
    quic_early_release(conn);
    free_pending(conn);
    free_queue(conn, &conn->datagrams_in);
    free_queue(conn, &conn->datagrams_out);
    free_token(conn);
    if (conn->close_reason)
        host->free(host->ctx, conn->close_reason, conn->close_reason_len);
    if (conn->new_token)
        host->free(host->ctx, conn->new_token, conn->new_token_len);
    free_blocks(conn);
}

void quic_conn_maybe_free(struct quic_conn *conn) {
    if (conn->state == QUIC_CONN_DEAD && (conn->detached || conn->closed_told))
        quic_conn_free(conn);
}

/* Common to every way of ending: what can be let go is let go now. What the reader has not read stays until
 * it is told CLOSED. */
static void over(struct quic_conn *conn, uint64_t now, enum quic_conn_state state) {
    const struct quic_host *host = quic_host_of(conn);
    quic_count(conn, STOQ_COUNTER_CONNECTIONS_CLOSED, 1);
    if (!conn->handshake_done)
        quic_count(conn, STOQ_COUNTER_HANDSHAKES_FAILED, 1);
    if (conn->server && !conn->handshake_done)
        conn->ep->handshaking--;
    conn->close_deadline_ns = now + 3 * quic_recovery_pto(conn, QUIC_SPACE_APP);
    conn->state = state;
    free_pending(conn);
    quic_early_release(conn);
    free_queue(conn, &conn->datagrams_out);
    if (state != QUIC_CONN_CLOSING)
        quic_conn_rest_keys(conn);
    for (int i = 0; i < QUIC_SPACE_COUNT; i++) {
        struct quic_space *space = conn->spaces[i];
        if (space->discarded)
            continue;
        quic_recovery_remove_space(conn, i);
        quic_sent_free(&space->sent, host);
        if (state != QUIC_CONN_CLOSING)
            quic_space_discard(space, host);
    }
    quic_schedule_event(conn);
    quic_schedule_send(conn); /* To send the close, and to set the timer. */
}

static void keep_reason(struct quic_conn *conn, const char *reason, size_t len) {
    const struct quic_host *host = quic_host_of(conn);
    len = quic_min(len, QUIC_MAX_REASON_BYTES);
    if (!len || !(conn->close_reason = host->alloc(host->ctx, len)))
        return;
    conn->close_reason_len = (uint32_t)len;
    memcpy(conn->close_reason, reason, conn->close_reason_len);
}

void quic_conn_end(struct quic_conn *conn, uint64_t now, enum quic_conn_state state, uint8_t flags, bool app,
                   uint64_t code, uint64_t frame_type, const char *reason, size_t reason_len) {
    if (!quic_is_open(conn))
        return;
    conn->close_flags = flags;
    conn->close_app = app;
    conn->close_code = code;
    conn->close_frame_type = frame_type;
    keep_reason(conn, reason, reason_len);
    over(conn, now, state);
}

static void start_closing(struct quic_conn *conn, uint64_t now, bool app, uint64_t code, uint64_t frame_type,
                          const char *reason, size_t reason_len) {
    if (!quic_is_open(conn))
        return;
    conn->close_app = app;
    conn->close_code = code;
    conn->close_frame_type = frame_type;
    keep_reason(conn, reason, reason_len);
    conn->close_owed = true;
    over(conn, now, QUIC_CONN_CLOSING);
}

void quic_conn_close(struct quic_conn *conn, uint64_t now, bool app, uint64_t code, const char *reason,
                     size_t reason_len) {
    start_closing(conn, now, app, code, 0, reason, reason_len);
}

void quic_conn_fail(struct quic_conn *conn, uint64_t now, uint64_t error, uint64_t frame_type,
                    const char *why) {
    start_closing(conn, now, false, error, frame_type, why, strlen(why));
}

void quic_conn_detach(struct quic_conn *conn, uint64_t now) {
    quic_conn_close(conn, now, false, QUIC_NO_ERROR, NULL, 0);
    conn->detached = true;
    quic_streams_release(conn);
    quic_conn_maybe_free(conn);
}

void quic_conn_discard_space(struct quic_conn *conn, enum quic_space_id id) {
    if (conn->spaces[id]->discarded)
        return;
    quic_recovery_remove_space(conn, id);
    quic_space_discard(conn->spaces[id], quic_host_of(conn));
}

/* RFC 9001 section 4.1.2. */
void quic_conn_confirm(struct quic_conn *conn, uint64_t now) {
    if (conn->confirmed || !conn->handshake_done)
        return;
    (void)now;
    conn->confirmed = true;
    quic_conn_discard_space(conn, QUIC_SPACE_INITIAL);
    quic_conn_discard_space(conn, QUIC_SPACE_HANDSHAKE);
    quic_cids_issue(conn);
    quic_schedule_send(conn);
}

struct quic_conn *quic_conn_connect(struct quic_endpoint *ep, uint64_t now, const struct quic_addr *peer,
                                    const struct quic_addr *local, uint32_t version, const uint8_t *token,
                                    size_t token_len) {
    if (ep->connections >= ep->config.max_connections || quic_addr_is_v4_mapped(peer) ||
        token_len > QUIC_MIN_INITIAL_BYTES / 2)
        return NULL;
    struct quic_conn *conn = quic_conn_create(ep, now, false, peer, local);
    if (!conn)
        return NULL;
    if (version)
        conn->version = version;
    struct quic_cid *dcid = &conn->handshake->original_dcid;
    dcid->len = 8; /* Section 7.2: unpredictable, at least 8 bytes. */
    ep->host.random(ep->host.ctx, dcid->id, dcid->len);
    quic_cids_set_peer(conn, dcid);
    bool ok = quic_endpoint_adopt(ep, conn) &&
              quic_keys_install_initial(&conn->spaces[QUIC_SPACE_INITIAL]->keys, false, dcid);
    if (ok && token_len) {
        struct quic_handshake *hs = conn->handshake;
        hs->token = ep->host.alloc(ep->host.ctx, token_len);
        ok = hs->token != NULL;
        if (ok) {
            memcpy(hs->token, token, token_len);
            hs->token_len = (uint32_t)token_len;
        }
    }
    if (!ok) {
        quic_conn_free(conn);
        return NULL;
    }
    quic_count(conn, STOQ_COUNTER_CONNECTIONS_OPENED, 1);
    quic_schedule_event(conn);
    quic_conn_update_timer(conn);
    return conn;
}

/* ---- the TLS seam ---- */

size_t quic_conn_local_params(struct quic_conn *conn, uint8_t *out, size_t cap) {
    const struct quic_config *config = &conn->ep->config;
    const struct quic_handshake *hs = conn->handshake;
    struct quic_params params, *p = &params;
    if (!hs)
        return 0; /* Nobody is left to tell them to. */
    quic_params_defaults(p);
    p->max_idle_timeout_ms = config->idle_timeout_ns / QUIC_MS;
    p->max_udp_payload_size = QUIC_MAX_DATAGRAM_BYTES;
    p->initial_max_data = config->max_data;
    p->initial_max_stream_data_bidi_local = p->initial_max_stream_data_bidi_remote =
        p->initial_max_stream_data_uni = config->max_stream_data;
    p->initial_max_streams_bidi = config->max_streams_bidi;
    p->initial_max_streams_uni = config->max_streams_uni;
    p->ack_delay_exponent = QUIC_MAX_ACK_DELAY_EXPONENT;
    p->max_ack_delay_ms = config->max_ack_delay_ns / QUIC_MS;
    p->active_connection_id_limit = QUIC_PEER_CIDS;
    p->max_datagram_frame_size = config->max_datagram_frame;
    p->min_ack_delay_us = conn->min_ack_delay_us = quic_ack_frequency_offer(conn, p->max_ack_delay_ms);
    p->has_initial_scid = true;
    p->initial_scid = conn->initial_scid;
    if (conn->server) {
        p->has_original_dcid = true;
        p->original_dcid = hs->original_dcid;
        p->has_retry_scid = conn->retried;
        p->retry_scid = hs->retry_scid;
        p->has_reset_token = true;
        quic_reset_token(conn->ep, &conn->initial_scid, p->reset_token);
    }
    uint8_t grease[2];
    conn->ep->host.random(conn->ep->host.ctx, grease, sizeof grease);
    return quic_params_encode(p, conn->server, grease[0], out, cap);
}

void quic_conn_set_peer_params(struct quic_conn *conn, uint64_t now, const uint8_t *data, size_t len) {
    const char *why = "transport parameters do not match the packets";
    struct quic_params p;
    const struct quic_handshake *hs = conn->handshake;
    if (!quic_is_open(conn) || conn->peer_params_set)
        return;
    int error = quic_params_decode(data, len, !conn->server, &p, &why);
    if (error) {
        quic_conn_fail(conn, now, (uint64_t)error, QUIC_FRAME_CRYPTO, why);
        return;
    }
    /* Section 7.3: the ids in the packets are authenticated by the parameters. */
    bool match = p.has_initial_scid && quic_cid_equal(&p.initial_scid, &hs->peer_scid);
    if (!conn->server) {
        match = match && p.has_original_dcid && quic_cid_equal(&p.original_dcid, &hs->original_dcid) &&
                p.has_retry_scid == conn->retried &&
                (!conn->retried || quic_cid_equal(&p.retry_scid, &hs->retry_scid));
    }
    if (!match) {
        quic_conn_fail(conn, now, QUIC_TRANSPORT_PARAMETER_ERROR, QUIC_FRAME_CRYPTO, why);
        return;
    }
    if (!quic_early_check_params(conn, now, &p))
        return;
    keep_params(conn, &p);
    conn->peer_params_set = true;
    quic_early_raise_limits(conn);
    quic_ack_frequency_init(conn);
    if (p.max_idle_timeout_ms && p.max_idle_timeout_ms < conn->idle_timeout_ns / QUIC_MS) {
        conn->idle_timeout_ns = p.max_idle_timeout_ms * QUIC_MS;
        conn->idle_deadline_ns =
            now + quic_max(conn->idle_timeout_ns, 3 * quic_recovery_pto(conn, QUIC_SPACE_APP));
    }
    if (p.has_reset_token)
        quic_cids_set_reset_token(conn, p.reset_token);
    quic_streams_apply_peer_limits(conn);
    quic_schedule_send(conn);
}

void quic_conn_crypto_send(struct quic_conn *conn, uint64_t now, enum quic_level level, const uint8_t *data,
                           size_t len) {
    struct quic_space *space = conn->spaces[quic_space_of_level(level)];
    if (!quic_is_open(conn) || space->discarded)
        return;
    if (level == QUIC_ZERO_RTT || !quic_crypto_queue(&space->crypto, quic_host_of(conn), data, len)) {
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, "TLS wrote more than can be buffered");
        return;
    }
    quic_schedule_send(conn);
}

void quic_conn_set_secret(struct quic_conn *conn, uint64_t now, enum quic_level level, bool send,
                          enum crypto_aead aead, const uint8_t *secret, size_t len) {
    struct quic_space *space = conn->spaces[quic_space_of_level(level)];
    if (!quic_is_open(conn) || space->discarded)
        return;
    if (level == QUIC_INITIAL || (level == QUIC_ONE_RTT && !conn->peer_params_set)) {
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, "secret for a level that cannot have one yet");
        return;
    }
    bool ok = level == QUIC_ZERO_RTT ? quic_early_install(conn, send, aead, secret, len)
                                     : quic_keys_install(&space->keys, send, aead, secret, len);
    if (ok && level == QUIC_ONE_RTT && !send)
        ok = quic_keys_prepare_next(&space->keys);
    if (!ok) {
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, "cannot install keys");
        return;
    }
    if (level == QUIC_ONE_RTT && send) {
        conn->phase_first_sent_pn = space->sent.next; /* Behind what went out as 0-RTT. */
        if (!conn->server)
            quic_early_release(conn);
    }
    conn->stats.aead = aead;
    if (!send)
        quic_conn_retry_pending(conn, now);
    quic_schedule_send(conn);
}

void quic_conn_handshake_complete(struct quic_conn *conn, uint64_t now) {
    if (!quic_is_open(conn) || conn->handshake_done)
        return;
    const struct quic_keys *keys = &quic_app(conn)->keys;
    if (!conn->peer_params_set || !quic_can_send(keys) || !quic_can_receive(keys)) {
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, "handshake complete without keys");
        return;
    }
    conn->handshake_done = true;
    quic_early_release(conn); /* What is still on its way as 0-RTT comes again as 1-RTT. */
    conn->state = QUIC_CONN_CONNECTED;
    conn->connected_ns = now;
    conn->stats.handshake_ns = now - conn->created_ns;
    quic_count(conn, STOQ_COUNTER_HANDSHAKES_COMPLETED, 1);
    if (conn->server) {
        conn->ep->handshaking--;
        quic_active_path(conn)->validated = true;
        conn->owes |= QUIC_OWES_HANDSHAKE_DONE | QUIC_OWES_NEW_TOKEN;
        quic_conn_confirm(conn, now);
    }
    quic_schedule_event(conn);
    quic_schedule_send(conn);
    quic_conn_retry_pending(conn, now);
}

void quic_conn_key_update(struct quic_conn *conn, uint64_t now) {
    struct quic_space *space = quic_app(conn);
    if (!quic_is_open(conn))
        return;
    /* RFC 9001 section 6.1: confirmed, and a packet of the present phase acknowledged; 6.5: not while old
     * keys are kept. */
    bool acked = space->largest_acked != QUIC_NO_PN && space->largest_acked >= conn->phase_first_sent_pn;
    if (!conn->confirmed || !acked || conn->key_phase != conn->recv_phase || conn->previous_keys_until_ns) {
        /* Tried again at every turn of the connection. Who only receives has to provoke that acknowledgement.
         */
        if (!acked && !conn->key_update_wanted) {
            conn->owes |= QUIC_OWES_PING;
            quic_schedule_send(conn);
        }
        conn->key_update_wanted = true;
        return;
    }
    conn->key_update_wanted = false;
    if (!quic_keys_rotate_send(&space->keys)) {
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, "out of memory for keys");
        return;
    }
    conn->key_phase ^= 1;
    conn->phase_first_sent_pn = space->sent.next;
    conn->owes |= QUIC_OWES_PING; /* So that the peer sees the new phase even if we have nothing to say. */
    quic_schedule_send(conn);
}

void quic_conn_ping(struct quic_conn *conn) {
    if (!quic_is_open(conn) || !conn->confirmed)
        return;
    conn->owes |= QUIC_OWES_PING;
    quic_schedule_send(conn);
}

bool quic_datagram_send(struct quic_conn *conn, uint64_t now, const uint8_t *data, size_t len) {
    const struct quic_host *host = quic_host_of(conn);
    (void)now;
    /* RFC 9221 section 3, and what a packet of this path can hold beside its header, number and tag. */
    size_t fits = conn->mtu.current - (1 + QUIC_MAX_CID_BYTES + 4 + CRYPTO_TAG_BYTES + 1 + 2);
    if (!quic_conn_writable(conn) || len + 3 > conn->peer_params.max_datagram_frame_size || len > fits)
        return false;
    if (!conn->datagrams_out)
        conn->datagrams_out = host->alloc(host->ctx, sizeof *conn->datagrams_out);
    struct quic_datagram_queue *q = conn->datagrams_out;
    if (!q || q->tail - q->head == QUIC_DATAGRAM_QUEUE)
        return false;
    uint8_t *copy = host->alloc(host->ctx, len ? len : 1);
    if (!copy)
        return false;
    memcpy(copy, data, len);
    q->v[q->tail++ % QUIC_DATAGRAM_QUEUE] = (struct quic_datagram){copy, (uint32_t)len};
    quic_schedule_send(conn);
    return true;
}

/* ---- what the host asks ---- */

struct quic_endpoint *quic_conn_endpoint(const struct quic_conn *conn) {
    return conn->ep;
}
bool quic_conn_is_server(const struct quic_conn *conn) {
    return conn->server;
}
void quic_conn_set_user(struct quic_conn *conn, void *user) {
    conn->user = user;
}
void *quic_conn_user(const struct quic_conn *conn) {
    return conn->user;
}
uint64_t quic_conn_handle(const struct quic_conn *conn) {
    return conn->handle;
}
const struct quic_addr *quic_conn_peer(const struct quic_conn *conn) {
    return &conn->paths[conn->active_path].peer;
}
const struct quic_addr *quic_conn_local(const struct quic_conn *conn) {
    return &conn->paths[conn->active_path].local;
}

struct quic_conn *quic_conn_from_timer(struct quic_timer *timer) {
    return (struct quic_conn *)((char *)timer - offsetof(struct quic_conn, timer));
}

bool quic_conn_writable(const struct quic_conn *conn) {
    return quic_is_open(conn) &&
           (quic_can_send(&conn->spaces[QUIC_SPACE_APP]->keys) || quic_early_can_send(conn));
}

void quic_conn_stats(const struct quic_conn *conn, struct quic_conn_stats *out) {
    const struct quic_recovery *r = &conn->recovery;
    *out = conn->stats;
    out->rtt_min_ns = r->rtt_min_ns;
    out->rtt_smoothed_ns = r->rtt_smoothed_ns;
    out->rtt_var_ns = r->rtt_var_ns;
    out->rtt_latest_ns = r->rtt_latest_ns;
    out->congestion_window = r->cc.window;
    out->bytes_in_flight = r->bytes_in_flight;
    out->ssthresh = r->cc.ssthresh;
    out->pacing_rate_bps = r->cc.pacing_rate ? r->cc.pacing_rate * 8
                           : r->rtt_smoothed_ns
                               ? (uint64_t)((double)r->cc.window * 8e9 / (double)r->rtt_smoothed_ns)
                               : 0;
    out->datagram_bytes = conn->mtu.current;
    out->ecn_capable = r->ecn == QUIC_ECN_CAPABLE;
}
