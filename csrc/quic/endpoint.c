/* The endpoint: which connection a datagram belongs to, and the answers that need none. RFC 9000
 * sections 5.2, 6, 8.1, 10.3.
 *
 *   datagram ──▶ our id known? ──▶ its connection
 *                 │ no
 *                 ├ Initial of v1 to a listening endpoint ──▶ (token, Retry) ──▶ new connection
 *                 ├ long header, other version ──▶ Version Negotiation (bounded rate)
 *                 └ short header ──▶ a peer's stateless reset? else our stateless reset (bounded rate)
 */
#include <string.h>

#include "conn.h"

#define STATELESS_SLOTS 64u /* Answers waiting to be sent; more are dropped and counted. */
#define STATELESS_BYTES                                                                                      \
    384u /* Version Negotiation for ids of the longest that are echoed; Retry needs under 130. */
#define STATELESS_PER_S                                                                                      \
    1000u /* Answers a second to packets of no connection: bounds what a flood can make us send. */
#define FIRST_SLOTS 64u
#define MIN_RESET_BYTES                                                                                      \
    41u /* Section 10.3: 21 at least, but as long as a real packet looks: 5 bytes of header and 20 more. */

struct quic_stateless {
    struct quic_addr peer, local;
    uint16_t len;
    uint8_t data[STATELESS_BYTES];
};

static void defaults(struct quic_config *c) {
    const struct quic_config d = {
        .crypto = c->crypto ? c->crypto : crypto_provider_by_name("auto"),
        .retry_above = 1024,
        .max_connections = 65536,
        .max_datagram = 1452,
        .initial_rtt_ns = 333 * QUIC_MS,
        .initial_window_packets = 10,
        .idle_timeout_ns = 30 * QUIC_S,
        .handshake_timeout_ns = 20 * QUIC_S,
        .max_data = UINT64_C(1) << 20,
        .max_stream_data = UINT64_C(256) << 10,
        .max_data_limit = UINT64_C(384) << 20,
        .max_stream_data_limit = UINT64_C(320) << 20,
        .max_streams_bidi = 128,
        .max_streams_uni = 128,
        .max_ack_delay_ns = 25 * QUIC_MS,
    };
    c->crypto = d.crypto;
#define DEFAULT(field) c->field = c->field ? c->field : d.field
    DEFAULT(retry_above);
    DEFAULT(max_connections);
    DEFAULT(max_datagram);
    DEFAULT(initial_rtt_ns);
    DEFAULT(initial_window_packets);
    DEFAULT(idle_timeout_ns);
    DEFAULT(handshake_timeout_ns);
    DEFAULT(max_data);
    DEFAULT(max_stream_data);
    DEFAULT(max_data_limit);
    DEFAULT(max_stream_data_limit);
    DEFAULT(max_streams_bidi);
    DEFAULT(max_streams_uni);
    DEFAULT(max_ack_delay_ns);
#undef DEFAULT
    if (c->max_datagram < QUIC_MIN_INITIAL_BYTES)
        c->max_datagram = QUIC_MIN_INITIAL_BYTES;
    if (c->max_datagram_frame > QUIC_SMALL_CHUNK_BYTES)
        c->max_datagram_frame = QUIC_SMALL_CHUNK_BYTES; /* One small chunk carries one to the reader. */
    c->max_data_limit = quic_max(c->max_data_limit, c->max_data);
    c->max_stream_data_limit = quic_max(c->max_stream_data_limit, c->max_stream_data);
    c->max_ack_delay_ns = quic_min(c->max_ack_delay_ns, (UINT64_C(1) << 14) * QUIC_MS - QUIC_MS);
}

struct quic_endpoint *quic_endpoint_create(const struct quic_config *config, const struct quic_host *host,
                                           uint64_t *counters, uint64_t *drops) {
    struct quic_endpoint *ep = host->alloc(host->ctx, sizeof *ep);
    if (!ep)
        return NULL;
    ep->config = *config;
    ep->host = *host;
    ep->counters = counters;
    ep->drops = drops;
    defaults(&ep->config);
    host->random(host->ctx, ep->sip_key, sizeof ep->sip_key);
    ep->stateless_tokens = STATELESS_PER_S;
    ep->awake_limit = QUIC_AWAKE;
    ep->slot_count = FIRST_SLOTS;
    ep->slots = host->alloc(host->ctx, FIRST_SLOTS * sizeof(*ep->slots));
    ep->stateless = host->alloc(host->ctx, STATELESS_SLOTS * sizeof *ep->stateless);
    ep->sealer =
        ep->config.crypto ? quic_token_sealer_create(ep->config.crypto, host, config->token_key) : NULL;
    bool ok = ep->slots && ep->stateless && ep->sealer && quic_map_init(&ep->cids, host, 256) &&
              quic_map_init(&ep->odcids, host, 64) && quic_map_init(&ep->resets, host, 64);
    if (!ok) {
        quic_endpoint_destroy(ep);
        return NULL;
    }
    return ep;
}

void quic_endpoint_destroy(struct quic_endpoint *ep) {
    const struct quic_host host = ep->host;
    for (uint32_t i = 0; ep->slots && i < ep->slot_count; i++) {
        if (ep->slots[i])
            quic_conn_free(ep->slots[i]);
    }
    if (ep->slots)
        host.free(host.ctx, ep->slots, ep->slot_count * sizeof(*ep->slots));
    if (ep->stateless)
        host.free(host.ctx, ep->stateless, STATELESS_SLOTS * sizeof *ep->stateless);
    if (ep->sealer)
        quic_token_sealer_destroy(ep->sealer, &host);
    quic_map_free(&ep->cids, &host);
    quic_map_free(&ep->odcids, &host);
    quic_map_free(&ep->resets, &host);
    crypto_wipe(&ep->config, sizeof ep->config);
    host.free(host.ctx, ep, sizeof *ep);
}

/* ---- connection slots and lists ---- */

bool quic_endpoint_adopt(struct quic_endpoint *ep, struct quic_conn *conn) {
    if (ep->connections == ep->slot_count) {
        struct quic_conn **v = ep->host.alloc(ep->host.ctx, ep->slot_count * 2 * sizeof(*v));
        if (!v)
            return false;
        memcpy(v, ep->slots, ep->slot_count * sizeof(*v));
        ep->host.free(ep->host.ctx, ep->slots, ep->slot_count * sizeof(*v));
        ep->slots = v;
        ep->free_slot_hint = ep->slot_count;
        ep->slot_count *= 2;
    }
    uint32_t i = ep->free_slot_hint;
    while (ep->slots[i])
        i = (i + 1) & (ep->slot_count - 1);
    ep->slots[i] = conn;
    ep->free_slot_hint = (i + 1) & (ep->slot_count - 1);
    ep->connections++;
    conn->handle = (uint64_t)++ep->generation << 32 | i;
    return true;
}

static uint64_t odcid_key(const struct quic_endpoint *ep, const uint8_t *cid, size_t len,
                          const struct quic_addr *peer) {
    uint8_t bytes[QUIC_MAX_CID_BYTES + sizeof *peer] = {0};
    memcpy(bytes, peer, sizeof *peer);
    memcpy(bytes + sizeof *peer, cid, len);
    return quic_siphash(ep->sip_key, bytes, sizeof *peer + len);
}

void quic_endpoint_forget(struct quic_conn *conn) {
    struct quic_endpoint *ep = conn->ep;
    uint32_t i = (uint32_t)conn->handle;
    if (ep->cached == conn)
        ep->cached = NULL;
    if (conn->odcid_mapped)
        quic_map_remove(&ep->odcids, conn->odcid_key, conn);
    if (conn->handle && ep->slots[i] == conn) {
        ep->slots[i] = NULL;
        ep->connections--;
        ep->free_slot_hint = i;
    }
    if (conn->server && !conn->handshake_done && quic_is_open(conn) && conn->handle)
        ep->handshaking--;
}

struct quic_conn *quic_conn_by_handle(struct quic_endpoint *ep, uint64_t handle) {
    uint32_t i = (uint32_t)handle;
    struct quic_conn *conn = i < ep->slot_count ? ep->slots[i] : NULL;
    return conn && conn->handle == handle ? conn : NULL;
}

uint32_t quic_endpoint_connections(const struct quic_endpoint *ep) {
    return ep->connections;
}

void quic_schedule_send(struct quic_conn *conn) {
    struct quic_endpoint *ep = conn->ep;
    if (conn->in_send_list || !conn->handle)
        return;
    conn->in_send_list = true;
    conn->send_next = NULL;
    conn->send_prev = ep->send_last;
    if (ep->send_last)
        ep->send_last->send_next = conn;
    else
        ep->send_first = conn;
    ep->send_last = conn;
}

static void leave_send_list(struct quic_conn *conn) {
    struct quic_endpoint *ep = conn->ep;
    if (!conn->in_send_list)
        return;
    *(conn->send_prev ? &conn->send_prev->send_next : &ep->send_first) = conn->send_next;
    *(conn->send_next ? &conn->send_next->send_prev : &ep->send_last) = conn->send_prev;
    conn->in_send_list = false;
}

void quic_schedule_event(struct quic_conn *conn) {
    struct quic_endpoint *ep = conn->ep;
    if (conn->in_event_list || conn->detached || conn->closed_told || !conn->handle)
        return;
    conn->in_event_list = true;
    conn->event_next = NULL;
    conn->event_prev = ep->event_last;
    if (ep->event_last)
        ep->event_last->event_next = conn;
    else
        ep->event_first = conn;
    ep->event_last = conn;
}

static void leave_event_list(struct quic_conn *conn) {
    struct quic_endpoint *ep = conn->ep;
    if (!conn->in_event_list)
        return;
    *(conn->event_prev ? &conn->event_prev->event_next : &ep->event_first) = conn->event_next;
    *(conn->event_next ? &conn->event_next->event_prev : &ep->event_last) = conn->event_prev;
    conn->in_event_list = false;
}

void quic_unschedule(struct quic_conn *conn) {
    leave_send_list(conn);
    leave_event_list(conn);
}

struct quic_conn *quic_endpoint_poll_conn(struct quic_endpoint *ep) {
    return ep->event_first;
}

void quic_endpoint_rotate_conn(struct quic_endpoint *ep, struct quic_conn *conn) {
    (void)ep;
    leave_event_list(conn);
    quic_schedule_event(conn);
}

void quic_endpoint_done_conn(struct quic_endpoint *ep, struct quic_conn *conn) {
    (void)ep;
    leave_event_list(conn);
    quic_conn_maybe_free(conn);
}

/* ---- answers without a connection ---- */

static bool stateless_allowed(struct quic_endpoint *ep, uint64_t now) {
    uint64_t earned = (now - ep->stateless_updated_ns) / (QUIC_S / STATELESS_PER_S);
    if (earned) {
        ep->stateless_tokens = quic_min(ep->stateless_tokens + earned, STATELESS_PER_S);
        ep->stateless_updated_ns = now;
    }
    if (!ep->stateless_tokens || ep->stateless_tail - ep->stateless_head == STATELESS_SLOTS)
        return false;
    ep->stateless_tokens--;
    return true;
}

static struct quic_stateless *stateless_slot(struct quic_endpoint *ep, const struct quic_packet_info *info) {
    struct quic_stateless *s = &ep->stateless[ep->stateless_tail % STATELESS_SLOTS];
    s->peer = *info->peer;
    s->local = *info->local;
    return s;
}

static void answer_version(struct quic_endpoint *ep, const struct quic_packet_info *info,
                           const struct quic_header *h) {
    if (!ep->config.server) {
        quic_drop(ep, STOQ_DROP_NOT_SERVER);
        return;
    }
    if (info->datagram_bytes < QUIC_MIN_INITIAL_BYTES) {
        quic_drop(ep, STOQ_DROP_VERSION_SMALL);
        return;
    }
    if (!stateless_allowed(ep, info->now)) {
        quic_drop(ep, STOQ_DROP_VERSION_LIMIT);
        return;
    }
    struct quic_stateless *s = stateless_slot(ep, info);
    uint8_t unused;
    ep->host.random(ep->host.ctx, &unused, 1);
    /* Section 17.2.1: the client's ids change places, which shows it that its own packet was answered. */
    s->len = (uint16_t)quic_put_version_negotiation(s->data, sizeof s->data, h->scid, h->scid_len, h->dcid,
                                                    h->dcid_len, unused);
    if (!s->len) {
        quic_drop(ep, STOQ_DROP_HEADER); /* Ids of an unknown version may be too long to echo. */
        return;
    }
    ep->stateless_tail++;
    ep->counters[STOQ_COUNTER_VERSION_NEGOTIATIONS_SENT]++;
}

/* Section 10.3.1: does the datagram end in a stateless reset token of a peer? Any length from 21 bytes up. */
static bool take_reset(struct quic_endpoint *ep, const struct quic_packet_info *info, const uint8_t *packet,
                       size_t len) {
    if (len < 21 || (packet[0] & 0x80))
        return false;
    const uint8_t *token = packet + len - QUIC_RESET_TOKEN_BYTES;
    struct quic_conn *conn =
        quic_map_get(&ep->resets, quic_siphash(ep->sip_key, token, QUIC_RESET_TOKEN_BYTES));
    if (!conn || !quic_is_open(conn))
        return false;
    quic_conn_stateless_reset(conn, info->now);
    return true;
}

static void answer_unknown(struct quic_endpoint *ep, const struct quic_packet_info *info,
                           const uint8_t *packet, size_t len) {
    if (take_reset(ep, info, packet, len))
        return;
    quic_drop(ep, STOQ_DROP_UNKNOWN_CID);
    /* Section 10.3.3: always shorter than what provoked it, so that two resets cannot feed on each other. */
    if (len <= MIN_RESET_BYTES)
        return;
    if (!stateless_allowed(ep, info->now)) {
        ep->drops[STOQ_DROP_UNKNOWN_CID]--;
        quic_drop(ep, STOQ_DROP_RESET_LIMIT);
        return;
    }
    struct quic_cid cid = {.len = QUIC_LOCAL_CID_BYTES};
    memcpy(cid.id, packet + 1, QUIC_LOCAL_CID_BYTES);
    uint8_t token[QUIC_RESET_TOKEN_BYTES], noise[MIN_RESET_BYTES];
    quic_reset_token(ep, &cid, token);
    ep->host.random(ep->host.ctx, noise, sizeof noise);
    struct quic_stateless *s = stateless_slot(ep, info);
    s->len = (uint16_t)quic_put_stateless_reset(s->data, MIN_RESET_BYTES, noise, token);
    ep->stateless_tail++;
    ep->counters[STOQ_COUNTER_STATELESS_RESETS_SENT]++;
}

static void answer_retry(struct quic_endpoint *ep, const struct quic_packet_info *info,
                         const struct quic_header *h) {
    if (!stateless_allowed(ep, info->now)) {
        quic_drop(ep, STOQ_DROP_RETRY_LIMIT);
        return;
    }
    struct quic_token token = {.kind = QUIC_TOKEN_RETRY, .issued_ns = info->now};
    struct quic_cid client = {.len = h->scid_len};
    uint8_t sealed[QUIC_MAX_TOKEN_BYTES];
    token.original_dcid.len = h->dcid_len;
    memcpy(token.original_dcid.id, h->dcid, h->dcid_len);
    token.retry_scid.len = QUIC_LOCAL_CID_BYTES;
    ep->host.random(ep->host.ctx, token.retry_scid.id, QUIC_LOCAL_CID_BYTES);
    token.retry_scid.id[0] &= 0x1f;
    token.retry_scid.id[1] = ep->config.worker;
    memcpy(client.id, h->scid, h->scid_len);
    size_t sealed_len = quic_token_seal(ep->sealer, &token, info->peer, NULL, sealed);
    struct quic_stateless *s = stateless_slot(ep, info);
    s->len = (uint16_t)quic_put_retry(s->data, sizeof s->data, h->version, &client, &token.retry_scid,
                                      &token.original_dcid, sealed, sealed_len);
    if (!s->len) {
        quic_drop(ep, STOQ_DROP_HEADER);
        return;
    }
    ep->stateless_tail++;
    ep->counters[STOQ_COUNTER_RETRIES_SENT]++;
}

static struct quic_conn *accept_connection(struct quic_endpoint *ep, const struct quic_packet_info *info,
                                           const struct quic_header *h, const struct quic_token *token) {
    struct quic_conn *conn = quic_conn_create(ep, info->now, true, info->peer, info->local);
    if (!conn)
        return NULL;
    struct quic_cid client = {.len = h->scid_len}, dcid = {.len = h->dcid_len};
    memcpy(client.id, h->scid, h->scid_len);
    memcpy(dcid.id, h->dcid, h->dcid_len);
    struct quic_handshake *hs = conn->handshake;
    hs->peer_scid = client;
    conn->peer_scid_set = true;
    quic_cids_set_peer(conn, &client);
    hs->original_dcid = dcid;
    if (token) {
        conn->paths[0].validated = true;
        if (token->kind == QUIC_TOKEN_RETRY) {
            conn->retried = true;
            hs->original_dcid = token->original_dcid;
            hs->retry_scid = token->retry_scid;
        }
    }
    conn->odcid_key = odcid_key(ep, dcid.id, dcid.len, info->peer);
    bool ok = quic_endpoint_adopt(ep, conn);
    if (ok)
        ep->handshaking++;
    ok = ok && quic_keys_install_initial(&conn->spaces[QUIC_SPACE_INITIAL]->keys, true, &dcid);
    if (ok)
        ok = conn->odcid_mapped = quic_map_put(&ep->odcids, &ep->host, conn->odcid_key, conn);
    if (!ok) {
        quic_conn_free(conn);
        return NULL;
    }
    return conn;
}

/* A connection that nothing has authenticated yet: its first Initial did not open. */
static void undo_accept(struct quic_conn *conn) {
    quic_conn_free(conn);
}

/* An Initial for which there is no connection. */
static struct quic_conn *new_connection(struct quic_endpoint *ep, const struct quic_packet_info *info,
                                        const struct quic_header *h) {
    if (!ep->config.server) {
        quic_drop(ep, STOQ_DROP_NOT_SERVER);
        return NULL;
    }
    if (info->datagram_bytes < QUIC_MIN_INITIAL_BYTES) {
        quic_drop(ep, STOQ_DROP_INITIAL_SMALL);
        return NULL;
    }
    if (h->dcid_len < 8) {
        quic_drop(ep, STOQ_DROP_DCID_SMALL);
        return NULL;
    }
    struct quic_token token;
    bool have_token = false, refuse = false;
    if (h->token_len) {
        struct quic_cid dcid = {.len = h->dcid_len};
        memcpy(dcid.id, h->dcid, h->dcid_len);
        enum quic_token_verdict v =
            quic_token_open(ep->sealer, h->token, h->token_len, info->peer, &dcid, info->now, &token);
        have_token = v == QUIC_TOKEN_VALID;
        refuse = v == QUIC_TOKEN_FORGED || (v == QUIC_TOKEN_EXPIRED && token.kind == QUIC_TOKEN_RETRY);
    }
    bool full = ep->connections >= ep->config.max_connections;
    if (!refuse && !have_token &&
        (ep->config.retry_always || (ep->handshaking >= ep->config.retry_above && !full))) {
        answer_retry(ep, info, h);
        return NULL;
    }
    if (full) {
        quic_drop(ep, STOQ_DROP_CONN_LIMIT);
        return NULL;
    }
    struct quic_conn *conn = accept_connection(ep, info, h, have_token ? &token : NULL);
    if (!conn) {
        quic_drop(ep, STOQ_DROP_NO_MEMORY);
        return NULL;
    }
    conn->refuse_token = refuse;
    return conn;
}

/* ---- receiving ---- */

static struct quic_conn *find_by_cid(struct quic_endpoint *ep, const uint8_t *cid) {
    uint64_t key;
    memcpy(&key, cid, 8);
    if (ep->cached && ep->cached_cid == key)
        return ep->cached;
    struct quic_conn *conn = quic_map_get(&ep->cids, key);
    if (conn) {
        ep->cached = conn;
        ep->cached_cid = key;
    }
    return conn;
}

static struct quic_conn *find_connection(struct quic_endpoint *ep, const struct quic_packet_info *info,
                                         const struct quic_header *h) {
    struct quic_conn *conn = h->dcid_len == QUIC_LOCAL_CID_BYTES ? find_by_cid(ep, h->dcid) : NULL;
    /* Only a client's first packets carry an id of its own making; and only version 1 bounds an id to 20
     * bytes: a Version Negotiation packet may have 255 (RFC 8999 section 6). */
    bool first_flight = h->type == QUIC_PACKET_INITIAL || h->type == QUIC_PACKET_ZERO_RTT;
    if (conn || !first_flight || h->dcid_len > QUIC_MAX_CID_BYTES || !ep->config.server)
        return conn;
    return quic_map_get(&ep->odcids, odcid_key(ep, h->dcid, h->dcid_len, info->peer));
}

/* A client's first Initial opened (or not). */
static void first_packet(struct quic_conn *conn, const struct quic_packet_info *info, struct quic_header *h) {
    quic_conn_receive(conn, info, h);
    if (!conn->saw_packet && quic_is_open(conn)) {
        undo_accept(conn);
        return;
    }
    quic_count(conn, STOQ_COUNTER_CONNECTIONS_OPENED, 1);
    quic_count(conn, STOQ_COUNTER_CONNECTIONS_ACCEPTED, 1);
    if (conn->refuse_token) {
        /* Section 8.1.3: a client cannot go on with it. */
        quic_drop(conn->ep, STOQ_DROP_TOKEN);
        quic_conn_fail(conn, info->now, QUIC_INVALID_TOKEN, 0,
                       "Retry token is expired or for another address");
    }
    if (quic_is_open(conn)) {
        quic_schedule_event(conn);
        return;
    }
    conn->detached = true; /* Over before anybody heard of it. */
    leave_event_list(conn);
}

/* One datagram: its coalesced packets in turn (section 12.2). */
static void receive_datagram(struct quic_endpoint *ep, struct quic_packet_info *info, uint8_t *data,
                             size_t len) {
    struct quic_conn *owner = NULL;
    size_t left = len;
    while (left) {
        struct quic_header h;
        quic_parse_result r = quic_packet_parse(data, left, QUIC_LOCAL_CID_BYTES, &h);
        if (r != QUIC_PARSE_OK) {
            if (!owner && take_reset(ep, info, data, left))
                return;
            quic_drop(ep, (enum stoq_drop_reason)(r - 1));
            return;
        }
        if (h.type == QUIC_PACKET_UNKNOWN_VERSION) {
            answer_version(ep, info, &h);
            return;
        }
        struct quic_conn *conn = find_connection(ep, info, &h);
        if (owner && conn != owner) {
            quic_drop(ep, STOQ_DROP_CID_MISMATCH);
            return;
        }
        if (conn) {
            if (!owner)
                quic_conn_bytes_received(conn, info);
            owner = conn;
            if (h.type == QUIC_PACKET_VERSION_NEGOTIATION)
                quic_conn_version_negotiation(conn, info->now, &h);
            else if (h.type == QUIC_PACKET_RETRY)
                quic_conn_retry_received(conn, info->now, &h);
            else if (h.type == QUIC_PACKET_INITIAL && info->datagram_bytes < QUIC_MIN_INITIAL_BYTES &&
                     conn->server)
                quic_drop(ep, STOQ_DROP_INITIAL_SMALL); /* Section 14.1. */
            else
                quic_conn_receive(conn, info, &h);
        } else if (h.type == QUIC_PACKET_INITIAL) {
            conn = new_connection(ep, info, &h);
            if (!conn)
                return;
            uint64_t handle = conn->handle;
            quic_conn_bytes_received(conn, info);
            first_packet(conn, info, &h);
            owner = quic_conn_by_handle(ep, handle);
            if (!owner)
                return;
        } else if (h.type == QUIC_PACKET_ONE_RTT) {
            answer_unknown(ep, info, data, left);
            return;
        } else {
            quic_drop(ep, h.type == QUIC_PACKET_RETRY                 ? STOQ_DROP_RETRY
                          : h.type == QUIC_PACKET_VERSION_NEGOTIATION ? STOQ_DROP_VERSION_NEGOTIATION
                          : h.type == QUIC_PACKET_ZERO_RTT            ? STOQ_DROP_ZERO_RTT
                                                                      : STOQ_DROP_NOT_INITIAL);
            return;
        }
        data += h.len;
        left -= h.len;
    }
}

/* Is this a short-header packet long enough to be opened? */
static bool is_short(const uint8_t *p, size_t len) {
    return (p[0] & 0xc0) == 0x40 && len >= 1 + QUIC_LOCAL_CID_BYTES + 4 + CRYPTO_SAMPLE_BYTES;
}

void quic_endpoint_receive(struct quic_endpoint *ep, uint64_t now, const struct quic_rx *rx) {
    struct quic_packet_info info = {now, &rx->peer, &rx->local, rx->ecn, 0};
    size_t segment = rx->segment ? rx->segment : rx->len;
    size_t count = rx->len ? (rx->len + segment - 1) / segment : 0;
    ep->counters[STOQ_COUNTER_DATAGRAMS_RECEIVED] += count;
    ep->counters[STOQ_COUNTER_BYTES_RECEIVED] += rx->len;
    if (quic_addr_is_v4_mapped(&rx->peer) || quic_addr_is_v4_mapped(&rx->local)) {
        ep->drops[STOQ_DROP_IPV4] += count;
        return;
    }
    size_t stride = rx->stride ? rx->stride : segment;
    size_t last = rx->len - (count ? count - 1 : 0) * segment;
    for (size_t i = 0; i < count;) {
        uint8_t *p = rx->data + i * stride;
        size_t len = i + 1 < count ? segment : last;
        struct quic_conn *conn = is_short(p, len) ? find_by_cid(ep, p + 1) : NULL;
        info.datagram_bytes = (uint32_t)len;
        if (!conn) {
            receive_datagram(ep, &info, p, len);
            i++;
            continue;
        }
        /* As many datagrams in a row as are for the same id: one batch of masks. */
        size_t n = 1, bytes = len;
        for (; i + n < count && n < CRYPTO_HP_BATCH; n++) {
            const uint8_t *next = p + n * stride;
            size_t next_len = i + n + 1 < count ? segment : last;
            if (!is_short(next, next_len) || memcmp(next + 1, p + 1, QUIC_LOCAL_CID_BYTES) != 0)
                break;
            bytes += next_len;
        }
        info.datagram_bytes = (uint32_t)bytes;
        quic_conn_bytes_received(conn, &info);
        info.datagram_bytes = (uint32_t)len;
        quic_conn_receive_train(conn, &info, p, bytes, n > 1 ? segment : len, stride);
        i += n;
    }
}

/* ---- sending ---- */

static bool send_stateless(struct quic_endpoint *ep, struct quic_tx *tx) {
    struct quic_stateless *s = &ep->stateless[ep->stateless_head % STATELESS_SLOTS];
    ep->stateless_head++;
    if (s->len > tx->cap)
        return false;
    memcpy(tx->data, s->data, s->len);
    tx->len = tx->segment = s->len;
    tx->ecn = 0;
    tx->peer = s->peer;
    tx->local = s->local;
    ep->counters[STOQ_COUNTER_DATAGRAMS_SENT]++;
    ep->counters[STOQ_COUNTER_BYTES_SENT] += s->len;
    ep->counters[STOQ_COUNTER_TRAINS_SENT]++;
    return true;
}

bool quic_endpoint_pending(const struct quic_endpoint *ep) {
    return ep->send_first || ep->stateless_head != ep->stateless_tail;
}

bool quic_endpoint_transmit(struct quic_endpoint *ep, uint64_t now, struct quic_tx *tx) {
    while (ep->stateless_head != ep->stateless_tail) {
        if (send_stateless(ep, tx))
            return true;
    }
    while (ep->send_first) {
        struct quic_conn *conn = ep->send_first;
        leave_send_list(conn);
        if (quic_conn_transmit(conn, now, tx)) {
            quic_schedule_send(conn); /* Behind the others: a train each in turn. */
            return true;
        }
        if (conn->in_send_list)
            continue; /* Building ended the connection or queued more: it has its turn again. */
        if (conn->handshake && conn->confirmed)
            quic_handshake_release(conn);
        quic_conn_update_timer(conn);
        quic_conn_maybe_free(conn);
    }
    return false;
}

int quic_datagram_worker(const uint8_t *p, size_t len) {
    if (len < 1 + QUIC_LOCAL_CID_BYTES)
        return -1;
    if (!(p[0] & 0x80))
        return p[2];
    /* Long header: a client's Initial and 0-RTT carry an id of its own making until it has seen ours. */
    if (len < 7 + QUIC_LOCAL_CID_BYTES || quic_load32(p + 1) != QUIC_VERSION_1 ||
        p[5] != QUIC_LOCAL_CID_BYTES || (p[0] & 0x30) == 0 || (p[0] & 0x30) == 0x10)
        return -1;
    return p[7];
}
