/* Paths: validation (RFC 9000 section 8.2), a peer that moves (section 9), anti-amplification (section 8.1).
 */
#include <string.h>

#include "conn.h"

#define VALIDATION_PTOS 3u /* Section 8.2.4: give up after three PTOs. */

uint64_t quic_path_allowance(const struct quic_path *path) {
    if (path->validated)
        return UINT64_MAX;
    uint64_t limit = path->received * 3;
    return limit > path->sent ? limit - path->sent : 0;
}

#define SMALLEST_USEFUL 64u /* Header, number, tag and an ACK frame. */

bool quic_path_blocked(const struct quic_conn *conn) {
    uint64_t least = conn->spaces[QUIC_SPACE_INITIAL]->discarded ? SMALLEST_USEFUL : QUIC_MIN_INITIAL_BYTES;
    return quic_path_allowance(&conn->paths[conn->active_path]) < least;
}

static int find_path(const struct quic_conn *conn, const struct quic_addr *peer,
                     const struct quic_addr *local) {
    for (int i = 0; i < (int)QUIC_PATHS; i++) {
        const struct quic_path *p = &conn->paths[i];
        if (p->used && quic_addr_equal(&p->peer, peer) && quic_addr_equal(&p->local, local))
            return i;
    }
    return -1;
}

static void forget_path(struct quic_conn *conn, uint32_t index) {
    struct quic_path *p = &conn->paths[index];
    bool shared = false;
    for (uint32_t i = 0; i < QUIC_PATHS; i++)
        shared |= i != index && conn->paths[i].used && conn->paths[i].peer_cid == p->peer_cid;
    if (!shared)
        quic_cids_retire_peer(conn, p->peer_cid);
    *p = (struct quic_path){0};
}

/* How much a path is worth when another needs its place. Where the peer was heard last counts (section 9.3),
 * so that of those under validation the oldest goes first; but one that is known good is what is left when
 * none of the new ones holds. */
static uint64_t worth(const struct quic_conn *conn, const struct quic_path *p) {
    if (!p->used)
        return 0;
    if (p->validated)
        return conn->paths[conn->active_path].validated && !p->validating ? 1 : UINT64_MAX;
    return p->challenge_first_ns + 2;
}

static int new_path(struct quic_conn *conn, const struct quic_addr *peer, const struct quic_addr *local) {
    int index = -1;
    for (int i = 0; i < (int)QUIC_PATHS; i++) {
        if (i != conn->active_path &&
            (index < 0 || worth(conn, &conn->paths[i]) < worth(conn, &conn->paths[index])))
            index = i;
    }
    if (conn->paths[index].used)
        forget_path(conn, (uint32_t)index);
    struct quic_path *p = &conn->paths[index];
    const struct quic_path *active = quic_active_path(conn);
    *p = (struct quic_path){.peer = *peer, .local = *local, .used = true, .peer_cid = active->peer_cid};
    /* Section 9.5: a new id for a new address. Without a spare one, and for a mere change of port (a NAT),
     * the old one serves. */
    if (!quic_addr_same_ip(&active->peer, peer) || !quic_addr_equal(&active->local, local)) {
        int cid = quic_cids_take_unused(conn);
        if (cid >= 0)
            p->peer_cid = (uint8_t)cid;
    }
    return index;
}

int quic_path_for(struct quic_conn *conn, const struct quic_packet_info *info) {
    struct quic_path *active = quic_active_path(conn);
    if (quic_addr_equal(&active->peer, info->peer) && quic_addr_equal(&active->local, info->local))
        return conn->active_path;
    int index = find_path(conn, info->peer, info->local);
    if (index >= 0)
        return index;
    /* A socket bound to :: learns its address with the first packet that tells it. */
    static const uint8_t any[16] = {0};
    if (quic_addr_equal(&active->peer, info->peer) && memcmp(active->local.ip, any, 16) == 0) {
        active->local = *info->local;
        return conn->active_path;
    }
    if (!conn->server) {
        /* Section 9: only clients migrate; a server's packet from elsewhere is not for us. */
        if (!quic_addr_equal(&active->peer, info->peer)) {
            quic_drop(conn->ep, STOQ_DROP_MIGRATION);
            return -1;
        }
        return conn->active_path;
    }
    if (!conn->confirmed) {
        quic_drop(conn->ep, STOQ_DROP_MIGRATION);
        return -1;
    }
    return new_path(conn, info->peer, info->local);
}

void quic_path_validate(struct quic_conn *conn, uint64_t now, uint8_t index) {
    struct quic_path *p = &conn->paths[index];
    if (p->validating)
        return;
    p->validating = true;
    p->challenge_owed = true;
    p->challenge_tries = 0;
    p->challenge_first_ns = now;
    p->challenge_deadline_ns = now + VALIDATION_PTOS * quic_max(quic_recovery_pto(conn, QUIC_SPACE_APP),
                                                                conn->ep->config.initial_rtt_ns);
    p->challenge_sent_ns = 0;
    conn->ep->host.random(conn->ep->host.ctx, p->challenge, sizeof p->challenge);
    quic_schedule_send(conn);
}

/* Section 9.3: the peer's newest non-probing packet decides where we send. */
void quic_path_on_packet(struct quic_conn *conn, const struct quic_packet_info *info, uint8_t index,
                         bool non_probing, bool newest) {
    if (index == conn->active_path || !conn->server)
        return;
    struct quic_path *p = &conn->paths[index];
    if (!p->validated)
        quic_path_validate(conn, info->now, index);
    if (!non_probing || !newest)
        return;
    struct quic_path *old = quic_active_path(conn);
    uint8_t old_index = conn->active_path;
    bool same_ip = quic_addr_same_ip(&old->peer, &p->peer);
    p->migrate = !p->validated;
    conn->active_path = index;
    quic_recovery_new_path(conn, same_ip);
    if (p->validated) {
        quic_count(conn, STOQ_COUNTER_MIGRATIONS, 1);
        conn->path_changed = true;
        quic_schedule_event(conn);
    }
    /* Section 9.3.3: an attacker may have raced the peer's packets; ask the old path too. */
    if (old->validated && !old->validating)
        quic_path_validate(conn, info->now, old_index);
}

void quic_path_on_challenge(struct quic_conn *conn, uint8_t index, const uint8_t data[8]) {
    struct quic_path *p = &conn->paths[index];
    memcpy(p->response, data, 8);
    p->response_owed = true; /* The latest only: an honest peer has one outstanding. */
    quic_schedule_send(conn);
}

void quic_path_on_response(struct quic_conn *conn, uint64_t now, const uint8_t data[8]) {
    for (uint32_t i = 0; i < QUIC_PATHS; i++) {
        struct quic_path *p = &conn->paths[i];
        if (!p->used || !p->validating || !p->challenge_tries || memcmp(p->challenge, data, 8) != 0)
            continue;
        p->validating = p->challenge_owed = false;
        p->validated = true;
        if (i == conn->active_path && p->migrate) {
            p->migrate = false;
            quic_count(conn, STOQ_COUNTER_MIGRATIONS, 1);
            conn->path_changed = true;
            quic_schedule_event(conn);
        }
        (void)now;
        quic_schedule_send(conn);
        return;
    }
}

/* The move did not hold: back to a path that is known good (section 9.3.2), or give up. */
static void validation_failed(struct quic_conn *conn, uint64_t now, uint32_t index) {
    struct quic_path *p = &conn->paths[index];
    quic_count(conn, STOQ_COUNTER_PATH_VALIDATION_FAILED, 1);
    p->validating = p->challenge_owed = false;
    if (index != conn->active_path) {
        forget_path(conn, index);
        return;
    }
    if (p->validated)
        return; /* The probe of section 9.3.3 went unanswered because the peer came back here since. */
    if (conn->last_received_ns >= p->challenge_first_ns) {
        /* The peer is heard here (only the active path's packets matter by now): heavy loss rather than a
         * forgery. Ask again; until it answers the 3 * limit holds, and the idle timeout ends it. */
        quic_path_validate(conn, now, (uint8_t)index);
        return;
    }
    for (uint32_t i = 0; i < QUIC_PATHS; i++) {
        if (i != index && conn->paths[i].used && conn->paths[i].validated) {
            bool same_ip = quic_addr_same_ip(&p->peer, &conn->paths[i].peer);
            conn->active_path = (uint8_t)i;
            quic_recovery_new_path(conn, same_ip);
            forget_path(conn, index);
            quic_schedule_send(conn);
            return;
        }
    }
    quic_conn_end(conn, now, QUIC_CONN_DEAD, QUIC_EVENT_IDLE, false, QUIC_NO_VIABLE_PATH, 0, "no viable path",
                  14);
}

void quic_path_on_timer(struct quic_conn *conn, uint64_t now) {
    for (uint32_t i = 0; i < QUIC_PATHS; i++) {
        struct quic_path *p = &conn->paths[i];
        if (!p->used || !p->validating)
            continue;
        if (p->challenge_deadline_ns <= now) {
            validation_failed(conn, now, i);
            if (!quic_is_open(conn))
                return;
        } else if (!p->challenge_owed && p->challenge_sent_ns && p->challenge_sent_ns <= now) {
            p->challenge_owed = true; /* challenge_sent_ns holds when to repeat. */
            quic_schedule_send(conn);
        }
    }
}

uint64_t quic_path_deadline(const struct quic_conn *conn) {
    uint64_t t = QUIC_NEVER;
    for (uint32_t i = 0; i < QUIC_PATHS; i++) {
        const struct quic_path *p = &conn->paths[i];
        if (!p->used || !p->validating)
            continue;
        t = quic_min(t, p->challenge_deadline_ns);
        if (!p->challenge_owed && p->challenge_sent_ns)
            t = quic_min(t, p->challenge_sent_ns);
    }
    return t;
}

void quic_conn_rebind(struct quic_conn *conn, uint64_t now, const struct quic_addr *local) {
    if (conn->server || !quic_is_open(conn))
        return;
    struct quic_path *p = quic_active_path(conn);
    if (quic_addr_equal(&p->local, local))
        return;
    bool same_ip = quic_addr_same_ip(&p->local, local);
    p->local = *local;
    if (!conn->confirmed)
        return;
    int cid = quic_cids_take_unused(conn);
    if (cid >= 0) {
        uint8_t old = p->peer_cid;
        p->peer_cid = (uint8_t)cid;
        quic_cids_retire_peer(conn, old);
    }
    quic_recovery_new_path(conn, same_ip);
    p->validating = false;
    quic_path_validate(conn, now, conn->active_path);
}
