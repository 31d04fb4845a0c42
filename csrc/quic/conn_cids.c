/* Connection ids, both directions: RFC 9000 section 5.1. Ours carry the worker
 * (draft-ietf-quic-load-balancers layout):
 *
 *      byte 0: configuration rotation (3 bits, 0) and random    byte 1: worker    bytes 2-7: random
 */
#include <string.h>

#include "conn.h"

static uint64_t cid_key(const struct quic_cid *cid) {
    uint64_t key;
    memcpy(&key, cid->id, 8);
    return key;
}

void quic_reset_token(const struct quic_endpoint *ep, const struct quic_cid *cid,
                      uint8_t out[QUIC_RESET_TOKEN_BYTES]) {
    uint8_t mac[32] = {0};
    (void)crypto_hmac_sha256(ep->config.reset_key, sizeof ep->config.reset_key, cid->id, cid->len, mac);
    memcpy(out, mac, QUIC_RESET_TOKEN_BYTES);
}

static struct quic_local_cid *new_local(struct quic_conn *conn) {
    struct quic_endpoint *ep = conn->ep;
    struct quic_local_cid *c = NULL;
    for (uint32_t i = 0; i < QUIC_LOCAL_CIDS && !c; i++) {
        if (!conn->local_cids[i].used)
            c = &conn->local_cids[i];
    }
    if (!c)
        return NULL;
    c->cid.len = QUIC_LOCAL_CID_BYTES;
    for (int tries = 0; tries < 4; tries++) { /* 54 random bits: a second try is already a rarity. */
        ep->host.random(ep->host.ctx, c->cid.id, QUIC_LOCAL_CID_BYTES);
        c->cid.id[0] &= 0x1f;
        c->cid.id[1] = ep->config.worker;
        uint64_t key = cid_key(&c->cid);
        /* All zero is what an empty place looks like to those who are told of ids. */
        if (key != 0 && quic_map_put(&ep->cids, &ep->host, key, conn)) {
            if (ep->host.cid_in_use)
                ep->host.cid_in_use(ep->host.ctx, key, true);
            c->used = true;
            c->owed = false;
            c->sequence = conn->next_local_sequence++;
            return c;
        }
    }
    return NULL;
}

static void forget_local(struct quic_conn *conn, struct quic_local_cid *c) {
    const struct quic_host *host = &conn->ep->host;
    quic_map_remove(&conn->ep->cids, cid_key(&c->cid), conn);
    if (host->cid_in_use)
        host->cid_in_use(host->ctx, cid_key(&c->cid), false);
    c->used = false;
}

bool quic_cids_init(struct quic_conn *conn) {
    return new_local(conn) != NULL;
}

struct quic_local_cid *quic_local_cid_first(struct quic_conn *conn) {
    struct quic_local_cid *best = NULL;
    for (uint32_t i = 0; i < QUIC_LOCAL_CIDS; i++) {
        struct quic_local_cid *c = &conn->local_cids[i];
        if (c->used && (!best || c->sequence < best->sequence))
            best = c;
    }
    return best;
}

void quic_cids_issue(struct quic_conn *conn) {
    uint64_t want = quic_min(QUIC_LOCAL_CIDS, conn->peer_params.active_connection_id_limit);
    uint64_t have = 0;
    for (uint32_t i = 0; i < QUIC_LOCAL_CIDS; i++)
        have += conn->local_cids[i].used;
    for (; have < want; have++) {
        struct quic_local_cid *c = new_local(conn);
        if (!c)
            return;
        c->owed = true;
        conn->owes |= QUIC_OWES_NEW_CID;
    }
}

static uint64_t reset_key(struct quic_endpoint *ep, const uint8_t token[QUIC_RESET_TOKEN_BYTES]) {
    return quic_siphash(ep->sip_key, token, QUIC_RESET_TOKEN_BYTES);
}

void quic_cids_set_peer(struct quic_conn *conn, const struct quic_cid *cid) {
    conn->peer_cids[0].cid = *cid;
    conn->peer_cids[0].sequence = 0;
    conn->peer_cids[0].used = conn->peer_cids[0].in_use = true;
    conn->peer_sequences = 1; /* Number 0, which comes without a frame. */
}

void quic_cids_set_reset_token(struct quic_conn *conn, const uint8_t token[QUIC_RESET_TOKEN_BYTES]) {
    struct quic_peer_cid *c = &conn->peer_cids[0];
    if (!c->used || c->sequence != 0)
        return;
    memcpy(c->reset_token, token, QUIC_RESET_TOKEN_BYTES);
    c->has_token = true;
    (void)quic_map_put(&conn->ep->resets, &conn->ep->host, reset_key(conn->ep, token), conn);
}

static bool queue_retire(struct quic_conn *conn, uint64_t sequence) {
    if (conn->retire_tail - conn->retire_head == QUIC_RETIRE_QUEUE)
        return false;
    conn->retire_queue[conn->retire_tail++ % QUIC_RETIRE_QUEUE] = sequence;
    conn->owes |= QUIC_OWES_RETIRE;
    quic_schedule_send(conn);
    return true;
}

static void drop_peer_cid(struct quic_conn *conn, struct quic_peer_cid *c) {
    if (c->has_token)
        quic_map_remove(&conn->ep->resets, reset_key(conn->ep, c->reset_token), conn);
    *c = (struct quic_peer_cid){0};
}

void quic_cids_retire_peer(struct quic_conn *conn, uint8_t index) {
    struct quic_peer_cid *c = &conn->peer_cids[index];
    if (!c->used)
        return;
    if (!queue_retire(conn, c->sequence))
        return; /* Kept until there is room to say so. */
    drop_peer_cid(conn, c);
}

int quic_cids_take_unused(struct quic_conn *conn) {
    int best = -1;
    for (int i = 0; i < (int)QUIC_PEER_CIDS; i++) {
        const struct quic_peer_cid *c = &conn->peer_cids[i];
        if (c->used && !c->in_use && (best < 0 || c->sequence < conn->peer_cids[best].sequence))
            best = i;
    }
    if (best >= 0)
        conn->peer_cids[best].in_use = true;
    return best;
}

/* Section 5.1.2: everything below retire_prior_to goes; paths that used it take another id. */
static int retire_prior(struct quic_conn *conn, const char **why) {
    for (uint8_t i = 0; i < QUIC_PEER_CIDS; i++) {
        struct quic_peer_cid *c = &conn->peer_cids[i];
        if (!c->used || c->sequence >= conn->retire_prior_to)
            continue;
        bool in_use = c->in_use;
        if (!queue_retire(conn, c->sequence)) {
            *why = "peer retires connection ids faster than they can be acknowledged";
            return QUIC_CONNECTION_ID_LIMIT_ERROR;
        }
        drop_peer_cid(conn, c);
        if (!in_use)
            continue;
        int next = quic_cids_take_unused(conn);
        for (uint32_t p = 0; p < QUIC_PATHS; p++) {
            if (conn->paths[p].used && conn->paths[p].peer_cid == i && next >= 0)
                conn->paths[p].peer_cid = (uint8_t)next;
        }
    }
    if (!conn->peer_cids[quic_active_path(conn)->peer_cid].used) {
        *why = "peer retired every connection id";
        return QUIC_PROTOCOL_VIOLATION;
    }
    return 0;
}

/* Was this number seen before? Notes it. A repeated frame for an id that we have retired since must not
 * revive it. */
static bool sequence_seen(struct quic_conn *conn, uint64_t sequence) {
    if (sequence > conn->peer_sequence_top) {
        uint64_t step = sequence - conn->peer_sequence_top;
        conn->peer_sequences = step < 64 ? conn->peer_sequences << step : 0;
        conn->peer_sequence_top = sequence;
    }
    uint64_t back = conn->peer_sequence_top - sequence;
    if (back >= 64)
        return true; /* So old that it was answered long since. */
    bool seen = conn->peer_sequences >> back & 1;
    conn->peer_sequences |= UINT64_C(1) << back;
    return seen;
}

int quic_cids_on_new(struct quic_conn *conn, const struct quic_frame *f, const char **why) {
    if (conn->peer_cids[quic_active_path(conn)->peer_cid].cid.len == 0) {
        *why = "NEW_CONNECTION_ID from a peer that uses empty ids";
        return QUIC_PROTOCOL_VIOLATION;
    }
    struct quic_peer_cid *slot = NULL;
    for (uint32_t i = 0; i < QUIC_PEER_CIDS; i++) {
        struct quic_peer_cid *c = &conn->peer_cids[i];
        if (!c->used)
            continue;
        bool same_id = quic_cid_equal(&c->cid, &f->cid);
        if (c->sequence == f->sequence) {
            if (!same_id || !c->has_token ||
                !crypto_equal(c->reset_token, f->reset_token, QUIC_RESET_TOKEN_BYTES)) {
                *why = "NEW_CONNECTION_ID repeats a sequence number with other contents";
                return QUIC_PROTOCOL_VIOLATION;
            }
            return 0;
        }
        if (same_id) {
            *why = "NEW_CONNECTION_ID repeats an id under another sequence number";
            return QUIC_PROTOCOL_VIOLATION;
        }
    }
    if (sequence_seen(conn, f->sequence))
        return 0;
    if (f->sequence < conn->retire_prior_to) {
        if (!queue_retire(conn, f->sequence)) {
            *why = "peer retires connection ids faster than they can be acknowledged";
            return QUIC_CONNECTION_ID_LIMIT_ERROR;
        }
        return 0;
    }
    /* The new id takes a free slot, or the place of one that it retires: room first, then the retirement. */
    uint32_t active = 0;
    struct quic_peer_cid retired = {0};
    for (uint32_t i = 0; i < QUIC_PEER_CIDS; i++) {
        struct quic_peer_cid *c = &conn->peer_cids[i];
        if (!c->used) {
            slot = c;
        } else if (c->sequence >= f->retire_prior_to) {
            active++;
        }
    }
    if (active >= QUIC_PEER_CIDS) {
        *why = "more connection ids than active_connection_id_limit";
        return QUIC_CONNECTION_ID_LIMIT_ERROR;
    }
    if (!slot) {
        for (uint32_t i = 0; i < QUIC_PEER_CIDS && !slot; i++) {
            if (conn->peer_cids[i].sequence < f->retire_prior_to) {
                slot = &conn->peer_cids[i];
                retired = *slot;
            }
        }
        if (!slot || !queue_retire(conn, retired.sequence)) {
            *why = "peer retires connection ids faster than they can be acknowledged";
            return QUIC_CONNECTION_ID_LIMIT_ERROR;
        }
        drop_peer_cid(conn, slot);
    }
    slot->used = true;
    slot->in_use = retired.in_use; /* Its path goes on with the new id in the same place. */
    slot->sequence = f->sequence;
    slot->cid = f->cid;
    slot->has_token = true;
    memcpy(slot->reset_token, f->reset_token, QUIC_RESET_TOKEN_BYTES);
    (void)quic_map_put(&conn->ep->resets, &conn->ep->host, reset_key(conn->ep, f->reset_token), conn);
    if (f->retire_prior_to > conn->retire_prior_to) {
        conn->retire_prior_to = f->retire_prior_to;
        return retire_prior(conn, why);
    }
    return 0;
}

int quic_cids_on_retire(struct quic_conn *conn, const struct quic_frame *f, const uint8_t *dcid,
                        const char **why) {
    if (f->value >= conn->next_local_sequence) {
        *why = "RETIRE_CONNECTION_ID for an id that was never issued";
        return QUIC_PROTOCOL_VIOLATION;
    }
    for (uint32_t i = 0; i < QUIC_LOCAL_CIDS; i++) {
        struct quic_local_cid *c = &conn->local_cids[i];
        if (!c->used || c->sequence != f->value)
            continue;
        if (dcid && memcmp(dcid, c->cid.id, QUIC_LOCAL_CID_BYTES) == 0) {
            *why = "RETIRE_CONNECTION_ID for the id of its own packet";
            return QUIC_PROTOCOL_VIOLATION;
        }
        forget_local(conn, c);
        if (conn->ep->cached == conn)
            conn->ep->cached = NULL;
        quic_cids_issue(conn);
        quic_schedule_send(conn);
        return 0;
    }
    return 0; /* Retired before. */
}

void quic_cids_release(struct quic_conn *conn) {
    for (uint32_t i = 0; i < QUIC_LOCAL_CIDS; i++) {
        if (conn->local_cids[i].used)
            forget_local(conn, &conn->local_cids[i]);
    }
    for (uint32_t i = 0; i < QUIC_PEER_CIDS; i++)
        drop_peer_cid(conn, &conn->peer_cids[i]);
}
