/* Packet number space: acknowledgements owed (RFC 9000 section 13.2) and the CRYPTO stream. See space.h. */
#include "space.h"

#include <string.h>

#include "quic.h"

const struct quic_space quic_space_gone = {
    .largest_received = QUIC_NO_PN,
    .largest_told = QUIC_NO_PN,
    .ack_deadline_ns = QUIC_NEVER,
    .largest_acked = QUIC_NO_PN,
    .loss_time_ns = QUIC_NEVER,
    .discarded = true,
};

void quic_space_init(struct quic_space *space, const struct crypto_provider *crypto,
                     const struct quic_host *host) {
    quic_ranges_init(&space->received, QUIC_RECEIVED_RANGES);
    quic_ranges_init(&space->crypto.acked, QUIC_CRYPTO_RANGES);
    quic_ranges_init(&space->crypto.lost, QUIC_CRYPTO_RANGES);
    quic_ranges_init(&space->crypto.received, QUIC_CRYPTO_RANGES);
    space->ack_deadline_ns = QUIC_NEVER;
    space->largest_received = QUIC_NO_PN;
    space->largest_told = QUIC_NO_PN;
    space->largest_acked = QUIC_NO_PN;
    space->loss_time_ns = QUIC_NEVER;
    space->keys.crypto = crypto;
    space->keys.host = host;
}

static void free_bytes(const struct quic_host *host, uint8_t **p, uint32_t *cap) {
    if (*p)
        host->free(host->ctx, *p, *cap);
    *p = NULL;
    *cap = 0;
}

void quic_space_discard(struct quic_space *space, const struct quic_host *host) {
    quic_keys_discard(&space->keys);
    quic_sent_free(&space->sent, host);
    quic_ranges_clear(&space->received, host);
    quic_ranges_clear(&space->crypto.acked, host);
    quic_ranges_clear(&space->crypto.lost, host);
    quic_ranges_clear(&space->crypto.received, host);
    free_bytes(host, &space->crypto.send, &space->crypto.send_cap);
    free_bytes(host, &space->crypto.recv, &space->crypto.recv_cap);
    space->crypto.send_len = space->crypto.send_next = 0;
    space->ack_deadline_ns = QUIC_NEVER;
    space->ack_now = false;
    space->loss_time_ns = QUIC_NEVER;
    space->eliciting_in_flight = 0;
    space->probes = 0;
    space->discarded = true;
}

/* draft-ietf-quic-ack-frequency section 6.2: is a missing packet, which our ACKs have not shown to be
 * `reorder` behind, now that far behind the largest received? */
static bool gap_to_tell(const struct quic_space *space, uint32_t reorder) {
    const struct quic_ranges *set = &space->received;
    uint64_t told = space->largest_told == QUIC_NO_PN ? 0 : space->largest_told + 2;
    uint64_t first = told > reorder ? told - reorder : 0, missing = QUIC_NO_PN;
    for (uint32_t i = set->count; i > 0 && set->v[i - 1].lo > first; i--) {
        uint64_t below = i > 1 ? set->v[i - 2].hi : space->duplicate_below;
        if (below < set->v[i - 1].lo)
            missing = below > first ? below : first;
    }
    return missing != QUIC_NO_PN && space->largest_received >= missing + reorder;
}

static void count_ecn(struct quic_space *space, uint8_t ecn, uint32_t packets) {
    if (ecn == 2)
        space->ect0 += packets;
    else if (ecn == 1)
        space->ect1 += packets;
    else if (ecn == 3)
        space->ce += packets;
}

/* Section 13.2.1: at once for every second packet, for a reordered one or a gap, and for CE; else within
 * max_ack_delay. The peer may have asked for less. */
static void owe_ack(struct quic_space *space, uint64_t now, uint32_t packets, bool in_order, uint8_t ecn,
                    const struct quic_ack_policy *policy) {
    space->ack_eliciting += packets;
    if (space->ack_eliciting > policy->threshold || ecn == 3)
        space->ack_now = true;
    else if (policy->reorder == 1)
        space->ack_now |= !in_order;
    else if (policy->reorder &&
             (space->received.count > 1 || space->received.v[0].lo > space->duplicate_below))
        space->ack_now |= gap_to_tell(space, policy->reorder);
    if (space->ack_deadline_ns == QUIC_NEVER)
        space->ack_deadline_ns = now + policy->max_delay_ns;
}

void quic_space_received(struct quic_space *space, const struct quic_host *host, uint64_t now, uint64_t pn,
                         bool eliciting, uint8_t ecn, const struct quic_ack_policy *policy) {
    /* When the set is full (or memory is out) the oldest range goes, and with it the right to tell duplicates
     * there. */
    while (!quic_ranges_add(&space->received, host, pn, pn + 1)) {
        if (space->received.count == 0 || pn < space->received.v[0].lo) {
            space->duplicate_below = pn + 1; /* Cannot be remembered singly. */
            return;
        }
        space->duplicate_below = space->received.v[0].hi;
        quic_ranges_pop_first(&space->received);
    }
    bool in_order = space->largest_received == QUIC_NO_PN || pn == space->largest_received + 1;
    if (space->largest_received == QUIC_NO_PN || pn > space->largest_received) {
        space->largest_received = pn;
        space->largest_received_ns = now;
    }
    count_ecn(space, ecn, 1);
    if (eliciting)
        owe_ack(space, now, 1, in_order, ecn, policy);
}

void quic_space_received_run(struct quic_space *space, uint64_t now, uint32_t packets, uint8_t ecn,
                             const struct quic_ack_policy *policy) {
    space->largest_received_ns = now;
    count_ecn(space, ecn, packets);
    owe_ack(space, now, packets, true, ecn, policy);
}

uint8_t *quic_space_put_ack(struct quic_space *space, uint64_t now, uint8_t delay_exponent, bool ecn,
                            uint8_t *p, const uint8_t *end) {
    const struct quic_ranges *set = &space->received;
    if (set->count == 0 || end - p < 32)
        return NULL;
    uint32_t i = set->count - 1;
    uint64_t delay = now > space->largest_received_ns ? now - space->largest_received_ns : 0;
    ecn = ecn && (space->ect0 || space->ect1 || space->ce);
    *p++ = ecn ? QUIC_FRAME_ACK_ECN : QUIC_FRAME_ACK;
    p = quic_put_varint(p, set->v[i].hi - 1);
    p = quic_put_varint(p, delay / 1000 >> delay_exponent);
    uint8_t *count_at = p++; /* At most QUIC_ACK_RANGES - 1 < 64: one byte. */
    p = quic_put_varint(p, set->v[i].hi - 1 - set->v[i].lo);
    unsigned more = 0;
    const uint8_t *stop = end - (ecn ? 24 : 0);
    while (i > 0 && more + 1 < QUIC_ACK_RANGES && stop - p >= 16 && set->v[i - 1].hi > space->ack_floor) {
        i--;
        p = quic_put_varint(p, set->v[i + 1].lo - set->v[i].hi - 1);
        p = quic_put_varint(p, set->v[i].hi - 1 - set->v[i].lo);
        more++;
    }
    *count_at = (uint8_t)more;
    if (ecn) {
        p = quic_put_varint(p, space->ect0);
        p = quic_put_varint(p, space->ect1);
        p = quic_put_varint(p, space->ce);
    }
    space->largest_told = set->v[set->count - 1].hi - 1;
    space->ack_now = false;
    space->ack_eliciting = 0;
    space->ack_deadline_ns = QUIC_NEVER;
    return p;
}

/* Make room for `need` bytes by doubling, keeping `used`. */
static bool grow_bytes(const struct quic_host *host, uint8_t **p, uint32_t *cap, uint32_t used,
                       uint32_t need) {
    if (need <= *cap)
        return true;
    uint32_t bigger = *cap ? *cap : 2048; /* A hello or a small flight. */
    while (bigger < need)
        bigger *= 2;
    uint8_t *v = host->alloc(host->ctx, bigger);
    if (!v)
        return false;
    if (*p) {
        memcpy(v, *p, used);
        host->free(host->ctx, *p, *cap);
    }
    *p = v;
    *cap = bigger;
    return true;
}

bool quic_crypto_queue(struct quic_crypto *c, const struct quic_host *host, const uint8_t *data, size_t len) {
    if (len > QUIC_MAX_CRYPTO_BUFFER || c->send_len + len > QUIC_MAX_CRYPTO_BUFFER ||
        !grow_bytes(host, &c->send, &c->send_cap, c->send_len, c->send_len + (uint32_t)len))
        return false;
    memcpy(c->send + c->send_len, data, len);
    c->send_len += (uint32_t)len;
    return true;
}

bool quic_crypto_pending(const struct quic_crypto *c) {
    return c->lost.count || c->send_next < c->send_len;
}

uint32_t quic_crypto_next(struct quic_crypto *c, const struct quic_host *host, uint32_t max,
                          uint32_t *offset) {
    if (c->lost.count) {
        struct quic_range r = c->lost.v[0];
        uint32_t n = r.hi - r.lo < max ? (uint32_t)(r.hi - r.lo) : max;
        *offset = (uint32_t)r.lo;
        if (n)
            quic_ranges_remove(&c->lost, host, r.lo, r.lo + n);
        return n;
    }
    uint32_t n = c->send_len - c->send_next < max ? c->send_len - c->send_next : max;
    *offset = c->send_next;
    c->send_next += n;
    return n;
}

void quic_crypto_acked(struct quic_crypto *c, const struct quic_host *host, uint64_t offset, uint32_t len) {
    if (!len)
        return;
    /* Only an optimisation when memory is out: bytes may then be sent once more than needed. */
    (void)quic_ranges_add(&c->acked, host, offset, offset + len);
    (void)quic_ranges_remove(&c->lost, host, offset, offset + len);
}

void quic_crypto_lost(struct quic_crypto *c, const struct quic_host *host, uint64_t offset, uint32_t len) {
    for (uint64_t at = offset, end = offset + len; at < end;) {
        uint32_t i = quic_ranges_find(&c->acked, at);
        uint64_t hi = end;
        if (i < c->acked.count && c->acked.v[i].lo <= at) {
            at = c->acked.v[i].hi;
            continue;
        }
        if (i < c->acked.count && c->acked.v[i].lo < end)
            hi = c->acked.v[i].lo;
        if (!quic_ranges_add(&c->lost, host, at, hi)) {
            /* No room to remember the gap: send the whole span again instead. */
            uint64_t lo = c->lost.v[0].lo < at ? c->lost.v[0].lo : at;
            quic_ranges_clear(&c->lost, host);
            (void)quic_ranges_add(&c->lost, host, lo, c->send_next);
            return;
        }
        at = hi;
    }
}

void quic_crypto_restart(struct quic_crypto *c, const struct quic_host *host) {
    quic_ranges_clear(&c->acked, host);
    quic_ranges_clear(&c->lost, host);
    c->send_next = 0;
}

/* Offsets go on where they were; the bytes before them are never asked for again. */
void quic_crypto_rest(struct quic_crypto *c, const struct quic_host *host) {
    if (!quic_crypto_pending(c))
        free_bytes(host, &c->send, &c->send_cap);
    if (!c->received.count)
        free_bytes(host, &c->recv, &c->recv_cap);
}

int quic_crypto_receive(struct quic_crypto *c, const struct quic_host *host, uint64_t offset,
                        const uint8_t *data, size_t len) {
    uint64_t end = offset + len;
    if (end <= c->read)
        return 0;
    if (end - c->read > QUIC_MAX_CRYPTO_BUFFER)
        return QUIC_CRYPTO_BUFFER_EXCEEDED;
    if (offset < c->read) {
        data += c->read - offset;
        len -= c->read - offset;
        offset = c->read;
    }
    uint32_t used = c->received.count ? (uint32_t)(c->received.v[c->received.count - 1].hi - c->read) : 0;
    if (!grow_bytes(host, &c->recv, &c->recv_cap, used, (uint32_t)(end - c->read)))
        return QUIC_INTERNAL_ERROR;
    if (!quic_ranges_add(&c->received, host, offset, end))
        return QUIC_CRYPTO_BUFFER_EXCEEDED; /* More gaps than an honest peer leaves. */
    memcpy(c->recv + (offset - c->read), data, len);
    return 0;
}

uint32_t quic_crypto_readable(const struct quic_crypto *c) {
    if (!c->received.count || c->received.v[0].lo > c->read)
        return 0;
    return (uint32_t)(c->received.v[0].hi - c->read);
}

void quic_crypto_consume(struct quic_crypto *c, const struct quic_host *host, uint32_t n) {
    uint64_t end = c->received.v[c->received.count - 1].hi;
    memmove(c->recv, c->recv + n, (size_t)(end - c->read) - n);
    quic_ranges_remove(&c->received, host, c->read, c->read + n);
    c->read += n;
}
