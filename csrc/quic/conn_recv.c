/* Receiving packets: header protection, packet numbers, key phases, AEAD, and what follows from a packet that
 * opened. RFC 9000 sections 5.2, 12.3, 13.1; RFC 9001 sections 5, 6. */
#include <string.h>

#include "conn.h"

static const struct quic_path *path_of(const struct quic_conn *conn, const struct quic_packet_info *info) {
    for (uint32_t i = 0; i < QUIC_PATHS; i++) {
        const struct quic_path *p = &conn->paths[i];
        if (p->used && quic_addr_equal(&p->peer, info->peer))
            return p;
    }
    return NULL;
}

void quic_conn_bytes_received(struct quic_conn *conn, const struct quic_packet_info *info) {
    struct quic_path *p = (struct quic_path *)path_of(conn, info);
    if (p && !p->validated) {
        bool stuck = quic_path_allowance(p) < QUIC_MIN_INITIAL_BYTES;
        p->received += info->datagram_bytes;
        if (stuck)
            quic_schedule_send(conn); /* What waited at the limit may go now. */
    }
    conn->stats.bytes_received += info->datagram_bytes;
}

/* Keep a packet whose keys are not there yet (RFC 9001 section 5.7). */
static void keep_pending(struct quic_conn *conn, const struct quic_packet_info *info, enum quic_level level,
                         const uint8_t *packet, size_t len) {
    const struct quic_host *host = quic_host_of(conn);
    struct quic_handshake *hs = conn->handshake; /* Keys are what it has yet to bring. */
    if (hs->pending_count == QUIC_PENDING_PACKETS) {
        quic_drop(conn->ep, STOQ_DROP_PENDING_FULL);
        return;
    }
    uint8_t *copy = host->alloc(host->ctx, len);
    if (!copy) {
        quic_drop(conn->ep, STOQ_DROP_NO_MEMORY);
        return;
    }
    memcpy(copy, packet, len);
    hs->pending[hs->pending_count++] = (struct quic_pending){.data = copy,
                                                             .len = (uint32_t)len,
                                                             .ecn = info->ecn,
                                                             .level = level,
                                                             .peer = *info->peer,
                                                             .local = *info->local};
}

void quic_conn_after_packet(struct quic_conn *conn, const struct quic_packet_info *info,
                            enum quic_space_id id) {
    conn->last_received_ns = info->now;
    conn->eliciting_since_receive = false;
    if (conn->idle_timeout_ns)
        conn->idle_deadline_ns = info->now + quic_max(conn->idle_timeout_ns, 3 * quic_recovery_pto(conn, id));
    conn->saw_packet = true;
    if (conn->server && id == QUIC_SPACE_HANDSHAKE) {
        /* RFC 9000 section 8.1: a Handshake packet proves the address; RFC 9001 section 4.9.1: Initial keys
         * are done. */
        quic_active_path(conn)->validated = true;
        quic_conn_discard_space(conn, QUIC_SPACE_INITIAL);
    }
    quic_schedule_send(conn);
}

/* A packet that opened: its frames, then the bookkeeping that must not happen when they could not be taken.
 */
static void process(struct quic_conn *conn, const struct quic_packet_info *info, enum quic_packet_type type,
                    enum quic_space_id id, uint64_t pn, const uint8_t *packet, size_t header,
                    size_t packet_len) {
    const uint8_t *payload = packet + header;
    size_t len = packet_len - header - CRYPTO_TAG_BYTES;
    struct quic_space *space = conn->spaces[id];
    int path = quic_path_for(conn, info);
    if (path < 0)
        return;
    struct quic_path *p = &conn->paths[path];
    if (p->received == 0)
        p->received = info->datagram_bytes; /* The datagram that opened this path. */
    struct quic_frames_result result = {.dcid = type == QUIC_PACKET_ONE_RTT ? packet + 1 : NULL};
    if (!len) {
        quic_conn_fail(conn, info->now, QUIC_PROTOCOL_VIOLATION, 0, "packet without frames");
        return;
    }
    int error = quic_conn_frames(conn, info, type, payload, len, (uint8_t)path, &result);
    if (error == QUIC_NOT_NOW) {
        quic_drop(conn->ep, STOQ_DROP_NO_MEMORY);
        return;
    }
    conn->stats.packets_received++;
    quic_count(conn, STOQ_COUNTER_PACKETS_RECEIVED, 1);
    if (error) {
        quic_conn_fail(conn, info->now, (uint64_t)error, result.frame_type,
                       result.why ? result.why : "malformed frame");
        return;
    }
    if (!quic_is_open(conn))
        return; /* The peer closed. */
    if (info->ecn == 3)
        quic_count(conn, STOQ_COUNTER_ECN_CE, 1);
    bool newest = space->largest_received == QUIC_NO_PN || pn > space->largest_received;
    if (!space->discarded) {
        /* RFC 9000 section 13.2.1: Initial and Handshake packets are acknowledged at once. */
        quic_space_received(space, quic_host_of(conn), info->now, pn, result.eliciting, info->ecn,
                            &conn->ack_policy);
        if (id != QUIC_SPACE_APP && result.eliciting)
            space->ack_now = true;
    }
    if (type == QUIC_PACKET_ONE_RTT) /* Nobody moves during the handshake. */
        quic_path_on_packet(conn, info, (uint8_t)path, result.non_probing, newest);
    quic_conn_after_packet(conn, info, id);
}

static void aead_failed(struct quic_conn *conn, const struct quic_packet_info *info) {
    quic_drop(conn->ep, STOQ_DROP_AEAD);
    const struct quic_keys *keys = &quic_app(conn)->keys;
    if (++conn->aead_failures > crypto_integrity_limit(keys->aead))
        quic_conn_end(conn, info->now, QUIC_CONN_DEAD, 0, false, QUIC_AEAD_LIMIT_REACHED, 0,
                      "AEAD limit reached", 18);
}

/* RFC 9000 section 10.3.1: is this undecryptable packet the peer's stateless reset? */
static bool is_reset(struct quic_conn *conn, const uint8_t *packet, size_t len) {
    if (len < 21)
        return false;
    const uint8_t *token = packet + len - QUIC_RESET_TOKEN_BYTES;
    bool match = false;
    for (uint32_t i = 0; i < QUIC_PEER_CIDS; i++) {
        const struct quic_peer_cid *c = &conn->peer_cids[i];
        if (c->used && c->has_token)
            match |= crypto_equal(c->reset_token, token, QUIC_RESET_TOKEN_BYTES);
    }
    return match;
}

void quic_conn_stateless_reset(struct quic_conn *conn, uint64_t now) {
    quic_count(conn, STOQ_COUNTER_STATELESS_RESETS_RECEIVED, 1);
    quic_conn_end(conn, now, QUIC_CONN_DRAINING, QUIC_EVENT_RESET | QUIC_EVENT_REMOTE, false, QUIC_NO_ERROR,
                  0, "stateless reset", 15);
}

/* The key for a 1-RTT packet by its phase bit and number (RFC 9001 section 6.3, 6.5). */
static const struct quic_key *choose_key(const struct quic_conn *conn, const struct quic_keys *keys,
                                         uint8_t first, uint64_t pn, bool *is_next) {
    *is_next = false;
    if (((first >> 2) & 1) == conn->recv_phase)
        return &keys->recv.key;
    if (keys->previous.there && (conn->phase_first_recv_pn == QUIC_NO_PN || pn < conn->phase_first_recv_pn))
        return &keys->previous;
    *is_next = true;
    return &keys->next;
}

/* A packet opened with the next key: both directions move on (section 6.2). */
static void peer_updated_keys(struct quic_conn *conn, uint64_t now, uint64_t pn) {
    struct quic_keys *keys = &quic_app(conn)->keys;
    bool ok = quic_keys_rotate_receive(keys);
    conn->recv_phase ^= 1;
    conn->phase_first_recv_pn = pn;
    conn->key_update_wanted = false; /* This was one. */
    conn->previous_keys_until_ns = now + 3 * quic_recovery_pto(conn, QUIC_SPACE_APP);
    if (conn->key_phase != conn->recv_phase) {
        ok = ok && quic_keys_rotate_send(keys);
        conn->key_phase = conn->recv_phase;
        conn->phase_first_sent_pn = quic_app(conn)->sent.next;
    }
    if (!ok) {
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, "out of memory for keys");
        return;
    }
    conn->key_updates++;
    conn->stats.key_updates++;
    quic_count(conn, STOQ_COUNTER_KEY_UPDATES, 1);
    quic_schedule_event(conn);
}

/* A 1-RTT packet whose header is unmasked, with the bytes of its number. */
static void receive_short(struct quic_conn *conn, const struct quic_packet_info *info, uint8_t *packet,
                          size_t len, size_t header, uint64_t truncated, struct quic_taken *taken) {
    struct quic_space *space = quic_app(conn);
    struct quic_keys *keys = &space->keys;
    uint64_t pn = quic_pn_decode(space->largest_received, truncated, (packet[0] & 3u) + 1);
    bool is_next;
    const struct quic_key *key = choose_key(conn, keys, packet[0], pn, &is_next);
    uint8_t nonce[CRYPTO_NONCE_BYTES];
    quic_nonce(nonce, key->iv, pn);
    struct quic_landing landing;
    size_t plain = len - header - CRYPTO_TAG_BYTES;
    uint8_t *out = packet + header;
    bool guess = !is_next && key == &keys->recv.key && pn > conn->phase_first_recv_pn &&
                 !(packet[0] & 0x18) && quic_take_predict(conn, pn, plain, taken, &landing);
    if (guess)
        out = landing.at;
    bool opened =
        key->aead && keys->crypto->open(key->aead, nonce, packet, header, packet + header, len - header, out);
    if (guess) {
        bool right = opened && quic_take_landed(conn, pn, &landing, taken);
        if (opened && !right)
            memcpy(packet + header, out, plain);
        memcpy(out, landing.saved, landing.head_len);
        if (right)
            return;
    }
    if (!opened) {
        if (is_reset(conn, packet, len))
            quic_conn_stateless_reset(conn, info->now);
        else
            aead_failed(conn, info);
        return;
    }
    /* Only now, so that a forger learns nothing from the answer: duplicates and reserved bits. */
    if (quic_space_seen(space, pn)) {
        quic_drop(conn->ep, STOQ_DROP_DUPLICATE);
        return;
    }
    if (packet[0] & 0x18) {
        quic_conn_fail(conn, info->now, QUIC_PROTOCOL_VIOLATION, 0, "reserved bits are set");
        return;
    }
    if (is_next) {
        /* Section 6.1, 6.2: not twice without our packets in between having been seen. */
        if (conn->phase_first_recv_pn != QUIC_NO_PN && pn < conn->phase_first_recv_pn) {
            quic_conn_fail(conn, info->now, QUIC_KEY_UPDATE_ERROR, 0, "key update on an old packet");
            return;
        }
        peer_updated_keys(conn, info->now, pn);
        if (!quic_is_open(conn))
            return;
    } else if (key == &keys->recv.key &&
               (conn->phase_first_recv_pn == QUIC_NO_PN || pn < conn->phase_first_recv_pn)) {
        conn->phase_first_recv_pn = pn;
    }
    if (quic_take_stream(conn, info, pn, packet + header, plain, taken))
        return;
    quic_taken_end(conn, info, taken);
    process(conn, info, QUIC_PACKET_ONE_RTT, QUIC_SPACE_APP, pn, packet, header, len);
}

/* Closing and draining connections only count, and a closing one answers, ever more rarely (RFC 9000
 * section 10.2.1). */
static bool take_while_closed(struct quic_conn *conn) {
    if (quic_is_open(conn))
        return false;
    quic_drop(conn->ep, STOQ_DROP_CLOSED);
    conn->close_packets++;
    if (conn->state == QUIC_CONN_CLOSING && (conn->close_packets & (conn->close_packets - 1)) == 0) {
        conn->close_owed = true;
        quic_schedule_send(conn);
    }
    return true;
}

/* 1-RTT packets wait until the handshake is complete: before, the peer is not authenticated (RFC 9001
 * section 5.7). */
static bool one_rtt_ready(const struct quic_conn *conn) {
    return conn->handshake_done && quic_can_receive(&conn->spaces[QUIC_SPACE_APP]->keys);
}

void quic_conn_receive_train(struct quic_conn *conn, const struct quic_packet_info *info, uint8_t *data,
                             size_t len, size_t segment, size_t stride) {
    const size_t pn_offset = 1 + QUIC_LOCAL_CID_BYTES;
    const size_t smallest = pn_offset + 4 + CRYPTO_SAMPLE_BYTES;
    size_t count = (len + segment - 1) / segment, last = len - (count - 1) * segment;
    if (!one_rtt_ready(conn)) {
        for (size_t i = 0; i < count; i++) {
            if (!take_while_closed(conn))
                keep_pending(conn, info, QUIC_ONE_RTT, data + i * stride, i + 1 < count ? segment : last);
        }
        return;
    }
    if (last < smallest) {
        quic_drop(conn->ep, STOQ_DROP_SHORT);
        if (--count == 0)
            return;
        last = segment;
    }
    if (!conn->awake && !quic_conn_wake(conn)) {
        conn->ep->drops[STOQ_DROP_NO_MEMORY] += count;
        return;
    }
    const struct quic_keys *keys = &quic_app(conn)->keys;
    const uint8_t *samples[CRYPTO_HP_BATCH];
    uint8_t masks[CRYPTO_HP_BATCH][CRYPTO_MASK_BYTES];
    size_t n = 0;
    do
        samples[n] = data + n * stride + pn_offset + 4;
    while (++n < count);
    keys->crypto->hp_mask(keys->recv.hp, samples, masks, count);
    /* All headers before the first packet is opened: the AEAD reads what is written here, byte by byte, in
     * one piece, and would wait for it. */
    uint64_t numbers[CRYPTO_HP_BATCH];
    uint8_t pn_len[CRYPTO_HP_BATCH];
    for (size_t i = 0; i < count; i++)
        pn_len[i] = (uint8_t)quic_unmask_header(data + i * stride, pn_offset, masks[i], &numbers[i]);
    struct quic_taken taken = {0};
    for (size_t i = 0; i < count; i++) {
        if (!take_while_closed(conn))
            receive_short(conn, info, data + i * stride, i + 1 < count ? segment : last,
                          pn_offset + pn_len[i], numbers[i], &taken);
    }
    quic_taken_end(conn, info, &taken);
}

static void receive_long(struct quic_conn *conn, const struct quic_packet_info *info, struct quic_header *h,
                         enum quic_space_id id, const struct quic_keys *keys) {
    struct quic_space *space = conn->spaces[id];
    const uint8_t *sample = h->packet + h->pn_offset + 4;
    uint8_t mask[1][CRYPTO_MASK_BYTES];
    uint64_t truncated;
    keys->crypto->hp_mask(keys->recv.hp, &sample, mask, 1);
    unsigned pn_len = quic_unmask_header(h->packet, h->pn_offset, mask[0], &truncated);
    uint64_t pn = quic_pn_decode(space->largest_received, truncated, pn_len);
    size_t header = h->pn_offset + pn_len;
    uint8_t nonce[CRYPTO_NONCE_BYTES];
    quic_nonce(nonce, keys->recv.key.iv, pn);
    if (!keys->crypto->open(keys->recv.key.aead, nonce, h->packet, header, h->packet + header,
                            h->len - header, h->packet + header)) {
        aead_failed(conn, info);
        return;
    }
    if (quic_space_seen(space, pn)) {
        quic_drop(conn->ep, STOQ_DROP_DUPLICATE);
        return;
    }
    if (h->packet[0] & 0x0c) {
        quic_conn_fail(conn, info->now, QUIC_PROTOCOL_VIOLATION, 0, "reserved bits are set");
        return;
    }
    if (!conn->server && h->type == QUIC_PACKET_INITIAL && h->token_len) {
        quic_conn_fail(conn, info->now, QUIC_PROTOCOL_VIOLATION, 0, "server's Initial carries a token");
        return;
    }
    if (!conn->peer_scid_set) {
        /* Client: the server's own choice of id replaces the random one (section 7.2). */
        struct quic_cid *scid = &conn->handshake->peer_scid;
        scid->len = h->scid_len;
        memcpy(scid->id, h->scid, h->scid_len);
        conn->peer_scid_set = true;
        quic_cids_set_peer(conn, scid);
    }
    process(conn, info, h->type, id, pn, h->packet, header, h->len);
}

static bool early_ready(const struct quic_conn *conn) {
    return conn->server && conn->early && quic_can_receive(&conn->early->keys);
}

/* Has TLS not yet said whether it takes early data? It gives early keys before Handshake keys, or none. */
static bool early_undecided(const struct quic_conn *conn) {
    const struct quic_space *handshake = conn->spaces[QUIC_SPACE_HANDSHAKE];
    return conn->server && !conn->handshake_done && !handshake->discarded &&
           !quic_can_receive(&handshake->keys);
}

static void receive_early(struct quic_conn *conn, const struct quic_packet_info *info,
                          struct quic_header *h) {
    if (early_ready(conn)) {
        quic_count(conn, STOQ_COUNTER_ZERO_RTT_RECEIVED, 1);
        receive_long(conn, info, h, QUIC_SPACE_APP, &conn->early->keys);
    } else if (early_undecided(conn)) {
        keep_pending(conn, info, QUIC_ZERO_RTT, h->packet, h->len);
    } else {
        quic_drop(conn->ep, STOQ_DROP_ZERO_RTT);
    }
}

void quic_conn_receive(struct quic_conn *conn, const struct quic_packet_info *info, struct quic_header *h) {
    if (take_while_closed(conn))
        return;
    if (h->type == QUIC_PACKET_ONE_RTT) {
        quic_conn_receive_train(conn, info, h->packet, h->len, h->len, h->len);
        return;
    }
    const struct quic_handshake *hs = conn->handshake;
    if (!hs) {
        quic_drop(conn->ep, h->type == QUIC_PACKET_ZERO_RTT ? STOQ_DROP_ZERO_RTT : STOQ_DROP_KEYS_DISCARDED);
        return;
    }
    if (h->version != conn->version ||
        (conn->peer_scid_set &&
         (h->scid_len != hs->peer_scid.len || memcmp(h->scid, hs->peer_scid.id, h->scid_len) != 0))) {
        quic_drop(conn->ep, STOQ_DROP_CID_MISMATCH);
        return;
    }
    if (h->type == QUIC_PACKET_ZERO_RTT) {
        receive_early(conn, info, h);
        return;
    }
    bool initial = h->type == QUIC_PACKET_INITIAL;
    enum quic_space_id id = initial ? QUIC_SPACE_INITIAL : QUIC_SPACE_HANDSHAKE;
    if (conn->spaces[id]->discarded)
        quic_drop(conn->ep, STOQ_DROP_KEYS_DISCARDED);
    else if (!quic_can_receive(&conn->spaces[id]->keys))
        keep_pending(conn, info, initial ? QUIC_INITIAL : QUIC_HANDSHAKE, h->packet, h->len);
    else
        receive_long(conn, info, h, id, &conn->spaces[id]->keys);
}

void quic_conn_retry_pending(struct quic_conn *conn, uint64_t now) {
    const struct quic_host *host = quic_host_of(conn);
    struct quic_handshake *hs = conn->handshake;
    uint32_t n = hs ? hs->pending_count : 0;
    if (!n)
        return;
    struct quic_pending waiting[QUIC_PENDING_PACKETS];
    memcpy(waiting, hs->pending, n * sizeof waiting[0]);
    hs->pending_count = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct quic_pending *w = &waiting[i];
        bool ready = w->level == QUIC_ONE_RTT ? one_rtt_ready(conn)
                     : w->level == QUIC_ZERO_RTT
                         ? early_ready(conn) || !early_undecided(conn)
                         : quic_can_receive(&conn->spaces[quic_space_of_level(w->level)]->keys);
        if (!ready && quic_is_open(conn) && !conn->spaces[quic_space_of_level(w->level)]->discarded) {
            hs->pending[hs->pending_count++] = *w;
            continue;
        }
        struct quic_packet_info info = {now, &w->peer, &w->local, w->ecn, w->len};
        struct quic_header h;
        if (quic_packet_parse(w->data, w->len, QUIC_LOCAL_CID_BYTES, &h) == QUIC_PARSE_OK)
            quic_conn_receive(conn, &info, &h);
        host->free(host->ctx, w->data, w->len);
    }
}

/* Start the handshake's first flight again: under another id or version. 0-RTT goes with it (RFC 9000
 * section 17.2.3). */
static void restart_initial(struct quic_conn *conn, uint64_t now) {
    if (conn->early)
        quic_recovery_resend_space(conn, QUIC_SPACE_APP);
    struct quic_space *space = conn->spaces[QUIC_SPACE_INITIAL];
    const struct quic_host *host = quic_host_of(conn);
    quic_recovery_remove_space(conn, QUIC_SPACE_INITIAL);
    quic_sent_free(&space->sent, host); /* Numbers go on: never used twice with one key. */
    space->eliciting_in_flight = 0;
    space->probes = 0;
    quic_crypto_restart(&space->crypto, host);
    quic_keys_discard(&space->keys);
    if (!quic_keys_install_initial(&space->keys, false, &conn->peer_cids[0].cid))
        quic_conn_fail(conn, now, QUIC_INTERNAL_ERROR, 0, "out of memory for keys");
    quic_schedule_send(conn);
}

void quic_conn_retry_received(struct quic_conn *conn, uint64_t now, const struct quic_header *h) {
    const struct quic_host *host = quic_host_of(conn);
    /* Section 17.2.5.2: one Retry, before anything else from the server, with a token and a valid tag. */
    if (conn->server || conn->retried || conn->saw_packet || !quic_is_open(conn) || !h->token_len ||
        h->version != conn->version || !quic_retry_valid(h, &conn->peer_cids[0].cid) ||
        (h->scid_len == conn->peer_cids[0].cid.len &&
         memcmp(h->scid, conn->peer_cids[0].cid.id, h->scid_len) == 0) ||
        h->token_len > QUIC_MIN_INITIAL_BYTES / 2) {
        quic_drop(conn->ep, STOQ_DROP_RETRY);
        return;
    }
    uint8_t *token = host->alloc(host->ctx, h->token_len);
    if (!token) {
        quic_drop(conn->ep, STOQ_DROP_NO_MEMORY);
        return;
    }
    memcpy(token, h->token, h->token_len);
    struct quic_handshake *hs = conn->handshake; /* Before any packet: there. */
    if (hs->token)
        host->free(host->ctx, hs->token, hs->token_len);
    hs->token = token;
    hs->token_len = (uint32_t)h->token_len;
    conn->retried = true;
    hs->retry_scid.len = h->scid_len;
    memcpy(hs->retry_scid.id, h->scid, h->scid_len);
    quic_cids_set_peer(conn, &hs->retry_scid);
    quic_count(conn, STOQ_COUNTER_RETRIES_RECEIVED, 1);
    restart_initial(conn, now);
}

void quic_conn_version_negotiation(struct quic_conn *conn, uint64_t now, const struct quic_header *h) {
    bool ours = false, v1 = false;
    for (size_t i = 0; i + 4 <= h->token_len; i += 4) {
        uint32_t v = quic_load32(h->token + i);
        ours |= v == conn->version;
        v1 |= v == QUIC_VERSION_1;
    }
    /* Section 6.2: ignored after any other packet, when it lists what we sent, or when its ids are not ours.
     */
    if (conn->server || conn->saw_packet || conn->version_negotiated || !quic_is_open(conn) || ours ||
        h->scid_len != conn->peer_cids[0].cid.len ||
        memcmp(h->scid, conn->peer_cids[0].cid.id, h->scid_len) != 0) {
        quic_drop(conn->ep, STOQ_DROP_VERSION_NEGOTIATION);
        return;
    }
    quic_count(conn, STOQ_COUNTER_VERSION_NEGOTIATIONS_RECEIVED, 1);
    if (!v1) {
        static const char why[] = "the server speaks no QUIC version of ours";
        quic_conn_end(conn, now, QUIC_CONN_DEAD, QUIC_EVENT_VERSION | QUIC_EVENT_REMOTE, false, QUIC_NO_ERROR,
                      0, why, sizeof why - 1);
        return;
    }
    /* Only a reserved version gets here: going on with v1 downgrades nothing. */
    conn->version_negotiated = true;
    conn->version = QUIC_VERSION_1;
    restart_initial(conn, now);
}
