/* Datagrams and trains: which packets go out, in what order and size. RFC 9000 sections 12.2, 14; RFC 9001
 * section 5.
 *
 *   closing        one datagram with CONNECTION_CLOSE
 *   path probes    PATH_CHALLENGE / PATH_RESPONSE, each in a datagram of its own, padded
 *   handshake      one datagram: Initial, Handshake and 1-RTT packets coalesced; an Initial pads it to 1200
 *                  bytes
 *   MTU probe      one datagram of the size under test
 *   0-RTT          one packet in one datagram (the first ones ride with the Initial)
 *   data           a train: 1-RTT packets of one size laid end to end, sealed in place, header protection in
 * one batch
 */
#include <string.h>

#include "conn.h"

#define PACKET_MIN_PAYLOAD                                                                                   \
    4u /* With the packet number at least 4 bytes: the sample lies behind it (RFC 9001 section 5.4.2). */

/* Lay out the header; false when there is no room for one or no memory to track the packet. `limit`: where
 * the datagram ends. */
static bool begin(struct quic_packet_builder *b, struct quic_conn *conn, uint64_t now, enum quic_space_id id,
                  uint8_t path, uint8_t *start, uint8_t *limit) {
    struct quic_space *space = conn->spaces[id];
    const struct quic_cid *dcid = &conn->peer_cids[conn->paths[path].peer_cid].cid;
    size_t token_room = id == QUIC_SPACE_INITIAL ? conn->handshake->token_len + 8 : 0;
    if ((size_t)(limit - start) <
        7 + 2 * QUIC_MAX_CID_BYTES + token_room + 8 + PACKET_MIN_PAYLOAD + CRYPTO_TAG_BYTES)
        return false;
    bool early = id == QUIC_SPACE_APP && !quic_can_send(&space->keys); /* 0-RTT; its keys never rest. */
    if ((id == QUIC_SPACE_APP && !conn->awake && !early && !quic_conn_wake(conn)) ||
        !quic_sent_reserve(&space->sent, quic_host_of(conn), QUIC_PACKET_FRAMES + 4))
        return false;
    *b = (struct quic_packet_builder){
        .conn = conn, .now = now, .id = id, .keys = &space->keys, .start = start, .pn = space->sent.next};
    if (early) {
        b->early = true;
        b->keys = &conn->early->keys;
    }
    b->frames_mark = space->sent.frames_next;
    unsigned pn_len = quic_pn_bytes(b->pn, space->largest_acked);
    uint8_t *p = start;
    if (id == QUIC_SPACE_APP && !b->early) {
        *p++ = (uint8_t)(0x40 | conn->key_phase << 2 | (pn_len - 1));
        memcpy(p, dcid->id, dcid->len);
        p += dcid->len;
    } else {
        enum quic_packet_type type = id == QUIC_SPACE_INITIAL     ? QUIC_PACKET_INITIAL
                                     : id == QUIC_SPACE_HANDSHAKE ? QUIC_PACKET_HANDSHAKE
                                                                  : QUIC_PACKET_ZERO_RTT;
        p = quic_put_long_header(p, type, conn->version, dcid, &conn->initial_scid);
        start[0] |= (uint8_t)(pn_len - 1);
        if (id == QUIC_SPACE_INITIAL) {
            const struct quic_handshake *hs = conn->handshake;
            p = quic_put_varint(p, hs->token_len);
            if (hs->token_len)
                memcpy(p, hs->token, hs->token_len);
            p += hs->token_len;
        }
        p += 2; /* Length: written by seal(). */
    }
    b->pn_offset = (uint32_t)(p - start);
    for (unsigned i = 0; i < pn_len; i++)
        p[i] = (uint8_t)(b->pn >> 8 * (pn_len - 1 - i));
    b->payload = b->p = p + pn_len;
    b->end = limit - CRYPTO_TAG_BYTES;
    return true;
}

/* Drop a packet that stayed empty: nothing was logged. */
static void cancel(struct quic_packet_builder *b) {
    b->conn->spaces[b->id]->sent.frames_next = b->frames_mark;
}

static void pad(struct quic_packet_builder *b, uint8_t *to) {
    if (to > b->end)
        to = b->end;
    if (to > b->p) {
        memset(b->p, 0, (size_t)(to - b->p));
        b->p = to;
        b->padded = true;
    }
}

/* Write the length, seal in place, account. Returns the packet's end; header protection is still to come. */
static uint8_t *seal(struct quic_packet_builder *b, uint8_t path) {
    struct quic_conn *conn = b->conn;
    struct quic_space *space = conn->spaces[b->id];
    struct quic_direction *d = &b->keys->send;
    size_t payload = (size_t)(b->p - b->payload), header = (size_t)(b->payload - b->start);
    size_t pn_len = header - b->pn_offset;
    if (pn_len + payload < PACKET_MIN_PAYLOAD) {
        pad(b, b->payload + PACKET_MIN_PAYLOAD - pn_len);
        payload = (size_t)(b->p - b->payload);
    }
    if (b->id != QUIC_SPACE_APP || b->early)
        quic_put_varint2(b->start + b->pn_offset - 2, (uint16_t)(pn_len + payload + CRYPTO_TAG_BYTES));
    uint8_t nonce[CRYPTO_NONCE_BYTES];
    quic_nonce(nonce, d->key.iv, b->pn);
    conn->ep->config.crypto->seal(d->key.aead, nonce, b->start, header, b->payload, payload, b->payload);
    d->sealed++;
    uint8_t *end = b->p + CRYPTO_TAG_BYTES;

    struct quic_sent_packet *p = quic_sent_at(&space->sent, b->pn);
    bool in_flight = b->eliciting || b->padded; /* RFC 9002 section 2. */
    *p = (struct quic_sent_packet){
        .time_ns = b->now,
        .frames = b->frames_mark,
        .bytes = (uint16_t)(end - b->start),
        .frame_count = (uint8_t)(space->sent.frames_next - b->frames_mark),
        .state = QUIC_SENT_OUT,
        .flags = (b->eliciting ? QUIC_SENT_ELICITING : 0) | (in_flight ? QUIC_SENT_IN_FLIGHT : 0) |
                 (b->mtu_probe ? QUIC_SENT_MTU_PROBE : 0) |
                 (path != conn->active_path ? QUIC_SENT_OLD_PATH : 0) |
                 (conn->recovery.ecn != QUIC_ECN_FAILED && path == conn->active_path ? QUIC_SENT_ECT : 0),
    };
    space->sent.next++;
    if (p->flags & QUIC_SENT_OLD_PATH) { /* Another path's packet: tracked, but no part of this path's
                                            congestion state. */
        p->flags &= ~QUIC_SENT_IN_FLIGHT;
        p->flags &= ~QUIC_SENT_ELICITING;
    }
    quic_recovery_sent(conn, b->now, b->id, p);
    conn->stats.packets_sent++;
    quic_count(conn, STOQ_COUNTER_PACKETS_SENT, 1);
    if (b->early)
        quic_count(conn, STOQ_COUNTER_ZERO_RTT_SENT, 1);
    return end;
}

static void protect_one(const struct quic_packet_builder *b) {
    const struct quic_keys *keys = b->keys;
    const uint8_t *sample = b->start + b->pn_offset + 4;
    uint8_t mask[1][CRYPTO_MASK_BYTES];
    keys->crypto->hp_mask(keys->send.hp, &sample, mask, 1);
    quic_mask_header(b->start, b->pn_offset, mask[0]);
}

/* The datagram(s) are built: address them and account. */
static bool finish(struct quic_conn *conn, struct quic_tx *tx, uint8_t path, size_t len, size_t segment,
                   size_t count) {
    struct quic_path *p = &conn->paths[path];
    tx->len = (uint32_t)len;
    tx->segment = (uint16_t)segment;
    tx->peer = p->peer;
    tx->local = p->local;
    tx->ecn = conn->recovery.ecn != QUIC_ECN_FAILED && path == conn->active_path ? 2 : 0;
    p->sent += len;
    conn->stats.bytes_sent += len;
    quic_count(conn, STOQ_COUNTER_DATAGRAMS_SENT, count);
    quic_count(conn, STOQ_COUNTER_BYTES_SENT, len);
    quic_count(conn, STOQ_COUNTER_TRAINS_SENT, 1);
    return true;
}

static bool send_close(struct quic_conn *conn, uint64_t now, struct quic_tx *tx) {
    uint8_t *at = tx->data;
    size_t room =
        quic_min(quic_min(tx->cap, QUIC_MIN_INITIAL_BYTES), quic_path_allowance(quic_active_path(conn)));
    uint8_t *limit = tx->data + room;
    struct quic_packet_builder built[QUIC_SPACE_COUNT];
    unsigned n = 0;
    bool initial = false;
    conn->close_owed = false;
    for (int id = 0; id < QUIC_SPACE_COUNT; id++) {
        struct quic_space *space = conn->spaces[id];
        if (space->discarded || !quic_can_send(&space->keys))
            continue;
        /* Once the handshake is confirmed the peer has 1-RTT keys for certain; before, RFC 9000
         * section 10.2.3 sends in all. */
        if (conn->confirmed && id != QUIC_SPACE_APP)
            continue;
        struct quic_packet_builder *b = &built[n];
        if (!begin(b, conn, now, id, conn->active_path, at, limit))
            continue;
        bool app = conn->close_app && id == QUIC_SPACE_APP;
        bool hide =
            conn->close_app && !app; /* Section 10.2.3: the application's words stay out of clear text. */
        uint8_t *p = quic_put_close(b->p, b->end, app, hide ? QUIC_APPLICATION_ERROR : conn->close_code,
                                    hide ? 0 : conn->close_frame_type, conn->close_reason,
                                    hide ? 0 : conn->close_reason_len);
        if (!p) {
            cancel(b);
            continue;
        }
        b->p = p;
        initial |= id == QUIC_SPACE_INITIAL;
        at = b->p + CRYPTO_TAG_BYTES;
        n++;
    }
    if (!n)
        return false;
    if (initial)
        pad(&built[n - 1], limit - CRYPTO_TAG_BYTES);
    uint8_t *end = NULL;
    for (unsigned i = 0; i < n; i++) {
        built[i].padded = false; /* No part in congestion control: the connection is over. */
        end = seal(&built[i], conn->active_path);
        protect_one(&built[i]);
    }
    size_t len = (size_t)(end - tx->data);
    return finish(conn, tx, conn->active_path, len, len, 1);
}

/* PATH_CHALLENGE and PATH_RESPONSE of one path, padded to 1200 bytes where anti-amplification lets it
 * (section 8.2.1). */
static bool send_path_probe(struct quic_conn *conn, uint64_t now, struct quic_tx *tx, uint8_t index) {
    struct quic_path *path = &conn->paths[index];
    size_t room = quic_min(quic_min(tx->cap, QUIC_MIN_INITIAL_BYTES), quic_path_allowance(path));
    struct quic_packet_builder b;
    if (!begin(&b, conn, now, QUIC_SPACE_APP, index, tx->data, tx->data + room))
        return false;
    uint8_t *p;
    if (path->response_owed &&
        (p = quic_put_path_frame(b.p, b.end, QUIC_FRAME_PATH_RESPONSE, path->response))) {
        b.p = p;
        path->response_owed = false;
    }
    if (path->challenge_owed &&
        (p = quic_put_path_frame(b.p, b.end, QUIC_FRAME_PATH_CHALLENGE, path->challenge))) {
        b.p = p;
        path->challenge_owed = false;
        path->challenge_tries++;
        /* Repeat with back-off until the deadline. */
        uint64_t wait = quic_max(quic_recovery_pto(conn, QUIC_SPACE_APP), QUIC_GRANULARITY_NS);
        path->challenge_sent_ns = now + (wait << quic_min(path->challenge_tries - 1, 8));
        quic_count(conn, STOQ_COUNTER_PATH_CHALLENGES_SENT, 1);
    }
    if (b.p == b.payload) {
        cancel(&b);
        return false;
    }
    b.eliciting = true;
    pad(&b, b.end);
    size_t len = (size_t)(seal(&b, index) - tx->data);
    protect_one(&b);
    return finish(conn, tx, index, len, len, 1);
}

static bool send_paths(struct quic_conn *conn, uint64_t now, struct quic_tx *tx) {
    if (!quic_can_send(&quic_app(conn)->keys))
        return false;
    for (uint8_t i = 0; i < QUIC_PATHS; i++) {
        const struct quic_path *p = &conn->paths[i];
        if (p->used && (p->challenge_owed || p->response_owed) && send_path_probe(conn, now, tx, i))
            return true;
    }
    return false;
}

static bool handshake_pending(struct quic_conn *conn, uint64_t now, bool only_ack) {
    return quic_write_pending(conn, now, QUIC_SPACE_INITIAL, only_ack) ||
           quic_write_pending(conn, now, QUIC_SPACE_HANDSHAKE, only_ack);
}

/* May more than an acknowledgement be sent? A probe that PTO asked for always may (RFC 9002 section 7.5). */
static bool congestion_allows(struct quic_conn *conn, uint64_t now, bool probing) {
    return probing || quic_recovery_allowance(conn, now) > 0;
}

static bool send_handshake(struct quic_conn *conn, uint64_t now, struct quic_tx *tx) {
    if (conn->spaces[QUIC_SPACE_INITIAL]->discarded && conn->spaces[QUIC_SPACE_HANDSHAKE]->discarded)
        return false;
    bool probing = conn->spaces[QUIC_SPACE_INITIAL]->probes || conn->spaces[QUIC_SPACE_HANDSHAKE]->probes;
    bool only_ack = !congestion_allows(conn, now, probing);
    if (!handshake_pending(conn, now, only_ack))
        return false;
    if (quic_path_blocked(conn)) {
        quic_count(conn, STOQ_COUNTER_AMPLIFICATION_BLOCKED, 1);
        return false;
    }
    size_t room =
        quic_min(quic_min(tx->cap, QUIC_MIN_INITIAL_BYTES), quic_path_allowance(quic_active_path(conn)));
    uint8_t *at = tx->data, *limit = tx->data + room;
    struct quic_packet_builder built[QUIC_SPACE_COUNT];
    unsigned n = 0;
    bool pad_it = false;
    for (int id = 0; id < QUIC_SPACE_COUNT; id++) {
        if (!quic_write_pending(conn, now, id, only_ack))
            continue;
        struct quic_packet_builder *b = &built[n];
        if (!begin(b, conn, now, id, conn->active_path, at, limit))
            continue;
        quic_write_frames(b, only_ack);
        if (b->p == b->payload) {
            cancel(b);
            continue;
        }
        /* Section 14.1: a client pads every Initial, a server those that elicit acknowledgement. */
        pad_it |= id == QUIC_SPACE_INITIAL && (!conn->server || b->eliciting);
        if ((size_t)(b->p - b->payload) < PACKET_MIN_PAYLOAD)
            pad(b, b->payload + PACKET_MIN_PAYLOAD); /* Now, so that the next packet's place is known. */
        at = b->p + CRYPTO_TAG_BYTES;
        n++;
    }
    if (!n)
        return false;
    uint8_t *end = NULL;
    bool sent_handshake = false;
    for (unsigned i = 0; i < n; i++) {
        struct quic_packet_builder *b = &built[i];
        if (i == n - 1 && pad_it)
            pad(b, limit - CRYPTO_TAG_BYTES);
        end = seal(b, conn->active_path);
        sent_handshake |= b->id == QUIC_SPACE_HANDSHAKE;
        protect_one(b);
    }
    size_t len = (size_t)(end - tx->data);
    finish(conn, tx, conn->active_path, len, len, 1);
    /* RFC 9001 section 4.9.1: a client needs its Initial keys no more once it sends Handshake packets. */
    if (sent_handshake && !conn->server)
        quic_conn_discard_space(conn, QUIC_SPACE_INITIAL);
    return true;
}

/* A client's 0-RTT packets beside those in the Initial's datagram. */
static bool send_early(struct quic_conn *conn, uint64_t now, struct quic_tx *tx) {
    struct quic_packet_builder b;
    if (!quic_early_can_send(conn) || quic_can_send(&quic_app(conn)->keys) ||
        !quic_write_pending(conn, now, QUIC_SPACE_APP, false))
        return false;
    size_t size = conn->mtu.current;
    if (size > tx->cap || quic_recovery_allowance(conn, now) < size ||
        !begin(&b, conn, now, QUIC_SPACE_APP, conn->active_path, tx->data, tx->data + size))
        return false;
    quic_write_frames(&b, false);
    if (b.p == b.payload) {
        cancel(&b);
        return false;
    }
    size_t len = (size_t)(seal(&b, conn->active_path) - tx->data);
    protect_one(&b);
    return finish(conn, tx, conn->active_path, len, len, 1);
}

static bool send_mtu_probe(struct quic_conn *conn, uint64_t now, struct quic_tx *tx) {
    uint16_t size;
    struct quic_packet_builder b;
    if (!quic_mtu_probe_due(conn, now, tx->cap, &size) || quic_recovery_allowance(conn, now) < size ||
        quic_path_allowance(quic_active_path(conn)) < size)
        return false;
    if (!begin(&b, conn, now, QUIC_SPACE_APP, conn->active_path, tx->data, tx->data + size))
        return false;
    *b.p++ = quic_ack_frequency_taken(conn) ? QUIC_FRAME_IMMEDIATE_ACK : QUIC_FRAME_PING;
    b.eliciting = b.mtu_probe = true;
    pad(&b, b.end);
    quic_mtu_probe_sent(conn, size);
    size_t len = (size_t)(seal(&b, conn->active_path) - tx->data);
    protect_one(&b);
    return finish(conn, tx, conn->active_path, len, len, 1);
}

/* RFC 9001 section 6.6: change keys long before the limit; stop at it. */
static bool key_limits(struct quic_conn *conn, uint64_t now) {
    const struct quic_space *space = quic_app(conn);
    uint64_t limit = crypto_confidentiality_limit(space->keys.aead);
    uint64_t update_at = conn->ep->config.key_update_packets;
    if (!update_at || update_at > limit / 2)
        update_at = limit / 2;
    if (space->keys.send.sealed >= limit - QUIC_PENDING_PACKETS - CRYPTO_HP_BATCH) {
        quic_conn_end(conn, now, QUIC_CONN_DEAD, 0, false, QUIC_AEAD_LIMIT_REACHED, 0, "AEAD limit reached",
                      18);
        return false;
    }
    if (space->keys.send.sealed >= update_at)
        conn->key_update_wanted = true;
    if (conn->key_update_wanted)
        quic_conn_key_update(conn, now);
    return true;
}

/* The general way to the train's next packet. False: there is none, or it is the last because it is not full.
 */
static bool one_packet(struct quic_conn *conn, uint64_t now, struct quic_train *t, const struct quic_tx *tx,
                       uint64_t allowance, uint64_t amplification) {
    struct quic_packet_builder b;
    if ((t->stride ? t->size : t->len + t->size) > tx->cap || t->len + t->size > amplification)
        return false;
    bool only_ack = !quic_app(conn)->probes && allowance < t->len + t->size;
    if (!quic_write_pending(conn, now, QUIC_SPACE_APP, only_ack) ||
        !begin(&b, conn, now, QUIC_SPACE_APP, conn->active_path, t->at, t->at + t->size))
        return false;
    quic_write_frames(&b, only_ack);
    if (b.p == b.payload) {
        cancel(&b);
        return false;
    }
    uint8_t *end = seal(&b, conn->active_path);
    size_t built = (size_t)(end - t->at);
    t->pn_offset = b.pn_offset;
    t->starts[t->n++] = t->at;
    t->len += built;
    t->room -= quic_min(t->room, built);
    t->at = t->stride ? t->at + t->stride : end;
    return built == t->size;
}

static bool send_data(struct quic_conn *conn, uint64_t now, struct quic_tx *tx) {
    struct quic_space *space = quic_app(conn);
    /* Keys first: an update that was put off may be all there is to say. */
    if (!quic_can_send(&space->keys) || !key_limits(conn, now) ||
        !quic_write_pending(conn, now, QUIC_SPACE_APP, false))
        return false;
    uint64_t amplification = quic_path_allowance(quic_active_path(conn));
    uint64_t allowance = quic_recovery_allowance(conn, now);
    size_t size = conn->mtu.current;
    /* A probe after several PTOs may be up against a black hole: use the size every path carries. */
    if (space->probes && conn->recovery.pto_count > 1)
        size = QUIC_MIN_INITIAL_BYTES;
    if (quic_path_blocked(conn)) {
        quic_count(conn, STOQ_COUNTER_AMPLIFICATION_BLOCKED, 1);
        return false;
    }
    if (size > amplification)
        size = amplification;
    if (size > tx->cap)
        return false;
    struct quic_train t; /* Member by member: clearing `starts` for one packet costs more than the rest. */
    t.at = tx->data;
    t.size = size;
    t.stride = tx->stride;
    t.len = 0;
    t.room = quic_min(allowance, amplification);
    t.n = t.pn_offset = 0;
    t.max = tx->max_segments < CRYPTO_HP_BATCH ? tx->max_segments : CRYPTO_HP_BATCH;
    if (!t.stride)
        t.room = quic_min(t.room, tx->cap);
    while (t.n < t.max) {
        if (!quic_train_stream(conn, now, &t) && !one_packet(conn, now, &t, tx, allowance, amplification))
            break;
    }
    if (!t.n)
        return false;
    const uint8_t *samples[CRYPTO_HP_BATCH];
    uint8_t masks[CRYPTO_HP_BATCH][CRYPTO_MASK_BYTES];
    for (uint32_t i = 0; i < t.n; i++)
        samples[i] = t.starts[i] + t.pn_offset + 4;
    space->keys.crypto->hp_mask(space->keys.send.hp, samples, masks, t.n);
    for (uint32_t i = 0; i < t.n; i++)
        quic_mask_header(t.starts[i], t.pn_offset, masks[i]);
    return finish(conn, tx, conn->active_path, t.len, t.n > 1 ? size : t.len, t.n);
}

bool quic_conn_transmit(struct quic_conn *conn, uint64_t now, struct quic_tx *tx) {
    if (conn->state == QUIC_CONN_CLOSING)
        return conn->close_owed && send_close(conn, now, tx);
    if (!quic_is_open(conn))
        return false;
    conn->recovery.pace_next_ns = QUIC_NEVER; /* Set again by what pacing holds back now. */
    if (send_paths(conn, now, tx) || send_handshake(conn, now, tx) || send_early(conn, now, tx) ||
        send_mtu_probe(conn, now, tx) || send_data(conn, now, tx))
        return true;
    if (conn->recovery.cc.rate)
        quic_recovery_drained(conn, now);
    return false;
}
