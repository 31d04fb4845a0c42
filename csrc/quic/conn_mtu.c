/* The path's datagram size: RFC 8899 (DPLPMTUD) as RFC 9000 section 14.3 has it for QUIC. Sizes are UDP
 * payload bytes; over IPv6 that is the path MTU less 48.
 *
 *                             confirmed              nothing left to learn, or too many probes
 *     migration ──▶ BASE ─────────────────▶ SEARCHING ────────────────────▶ COMPLETE
 *                    ▲                          │    ◀──── raise timer, 600 s ── │
 *                    └────── black hole ────────┴────────────────────────────────┘
 *
 * BASE is 1200 bytes. RFC 8899's ERROR, a path that does not carry those, is not a state here: the handshake
 * has shown that the path does (section 14.1), and one that stops to is no longer a path.
 *
 * A search has two parts. The first look goes down from the largest size possible through the common ones,
 * one probe each, and ends with the first that arrives: one round trip where the path carries all, and few
 * where it does not. Then upwards, where loss has been believed too soon: the next common size, or half way
 * to the smallest that failed, until what is left to gain is less than a 64th. Here it takes three lost
 * probes to believe. This second part needs other packets in flight: they show a loss within a round trip,
 * and an idle connection has nothing to gain.
 *
 * One probe at a time. Its loss is no sign of congestion (RFC 8899 section 3). ICMPv6 Packet Too Big is not
 * listened to: it can be forged, and its absence must be survived anyway. */
#include "conn.h"

#define MAX_PROBES    3u             /* RFC 8899 section 5.1.2: probes of one size until it is given up. */
#define RAISE_NS      (600 * QUIC_S) /* Section 5.1.1: PMTU_RAISE_TIMER. */
#define SEARCH_PROBES 64u            /* At most in one search; the longest on a path without loss has 41. */
#define GAIN_PARTS    64u            /* Stop when less than this part of the size is left to gain, */
#define GAIN_BYTES    16u            /* or so little. */
#define UNKNOWN       UINT16_MAX     /* `bad`, when no size is known to fail. */
/* Full packets lost with none as large acknowledged that left later: two flights of three. */
#define BLACK_HOLE_LOSSES 6u

/* Of links of 65536 (loopback), 9000 (jumbo frames), 4352 (FDDI), 1500 (Ethernet), 1492 (PPPoE), 1460, 1420
 * (WireGuard), 1400 (tunnels) and 1280 bytes (the least IPv6 allows). */
static const uint16_t common[] = {65488, 8952, 4304, 1452, 1444, 1412, 1372, 1352, 1232};
#define COMMON     (sizeof common / sizeof common[0])
#define FIRST_LOOK (COMMON + 1) /* Steps: the largest possible, then the common ones. */

void quic_mtu_reset(struct quic_conn *conn) {
    conn->mtu = (struct quic_mtu){.current = QUIC_MIN_INITIAL_BYTES, .bad = UNKNOWN};
}

/* What we, the peer and the buffer at hand allow. */
static uint16_t upper_bound(const struct quic_conn *conn, size_t cap) {
    uint64_t max = quic_min(conn->ep->config.max_datagram, QUIC_MAX_DATAGRAM_BYTES);
    if (conn->peer_params_set)
        max = quic_min(max, conn->peer_params.max_udp_payload_size);
    return (uint16_t)quic_min(max, cap);
}

static void search(struct quic_mtu *m) {
    m->state = QUIC_MTU_SEARCHING;
    m->step = m->tries = m->probes = 0;
}

static void complete(struct quic_mtu *m, uint64_t now) {
    m->state = QUIC_MTU_COMPLETE;
    m->again_ns = now + RAISE_NS;
}

/* The next size of the first look, at most `top`; 0: it is over. What the window does not hold is left for
 * later. */
static uint16_t look(struct quic_mtu *m, uint16_t top, uint64_t window) {
    for (; m->step < FIRST_LOOK; m->step++) {
        uint16_t size = m->step ? common[m->step - 1] : top;
        if (size <= m->current)
            break;
        if (size <= window && (!m->step || size < top))
            return size;
    }
    m->step = FIRST_LOOK;
    return 0;
}

/* The next size upwards, at most `top`; 0: there is nothing left to gain. */
static uint16_t refine(const struct quic_mtu *m, uint16_t top) {
    for (uint32_t i = COMMON; i-- > 0;) {
        if (common[i] > m->current && common[i] <= top)
            return common[i];
    }
    if (top < m->bad - 1)
        return top > m->current ? top : 0; /* Nothing is known against the largest possible. */
    uint16_t gap = (uint16_t)(m->bad - m->current);
    return gap > quic_max(GAIN_BYTES, m->current / GAIN_PARTS) ? (uint16_t)(m->current + gap / 2) : 0;
}

bool quic_mtu_probe_due(struct quic_conn *conn, uint64_t now, size_t cap, uint16_t *size) {
    struct quic_mtu *m = &conn->mtu;
    const struct quic_recovery *r = &conn->recovery;
    if (m->probe || !conn->confirmed || (m->state == QUIC_MTU_COMPLETE && now < m->again_ns))
        return false;
    uint16_t top = upper_bound(conn, cap);
    if (m->state != QUIC_MTU_SEARCHING) {
        if (m->state == QUIC_MTU_COMPLETE) {
            m->bad = UNKNOWN;
            m->suspect = 0;
        }
        search(m);
    }
    top = (uint16_t)quic_min(top, m->bad - 1);
    uint16_t next = look(m, top, r->cc.window);
    if (!next) {
        next = refine(m, top);
        if (next && (!r->bytes_in_flight || next > r->cc.window))
            return false;
    }
    if (!next || m->probes >= SEARCH_PROBES) {
        complete(m, now);
        return false;
    }
    *size = next;
    return true;
}

void quic_mtu_probe_sent(struct quic_conn *conn, uint16_t size) {
    conn->mtu.probe = size;
    conn->mtu.probes++;
    quic_count(conn, STOQ_COUNTER_MTU_PROBES, 1);
}

void quic_mtu_on_probe(struct quic_conn *conn, uint64_t now, bool acked, uint16_t size) {
    struct quic_mtu *m = &conn->mtu;
    if (m->probe != size)
        return; /* One that was taken for lost, or that was sent before the path was a black hole. */
    m->probe = 0;
    if (acked) {
        m->current = size;
        m->step = FIRST_LOOK;
        m->tries = 0;
        m->black_hole = 0;
        if (size >= upper_bound(conn, SIZE_MAX))
            complete(m, now);
        quic_cc_set_mss(&conn->recovery.cc, size);
    } else if (m->step < FIRST_LOOK) {
        m->step++;
    } else if (++m->tries >= MAX_PROBES) {
        m->tries = 0;
        m->bad = size;
    }
    quic_schedule_send(conn);
}

void quic_mtu_on_ack(struct quic_conn *conn, uint64_t pn, uint16_t size) {
    struct quic_mtu *m = &conn->mtu;
    if (size <= QUIC_MIN_INITIAL_BYTES || pn < m->acked_pn)
        return;
    m->acked_pn = pn;
    m->acked_size = size;
    if (size >= m->lost_size)
        m->black_hole = 0;
}

void quic_mtu_on_loss(struct quic_conn *conn, uint64_t pn, uint16_t size) {
    struct quic_mtu *m = &conn->mtu;
    if (size <= QUIC_MIN_INITIAL_BYTES || (pn < m->acked_pn && size <= m->acked_size))
        return;
    if (!m->black_hole || size < m->lost_size)
        m->lost_size = size;
    if (++m->black_hole < BLACK_HOLE_LOSSES)
        return;
    /* RFC 8899 section 4.3: the path no longer carries this size. It may also have carried nothing for a
     * while, so the first time the same size is tried again; the next time it counts as bad. */
    uint16_t lost = m->lost_size;
    bool again = m->suspect && lost <= m->suspect;
    quic_mtu_reset(conn);
    m->suspect = lost;
    m->bad = again ? lost : (uint16_t)(lost + 1);
    quic_cc_set_mss(&conn->recovery.cc, m->current);
    quic_count(conn, STOQ_COUNTER_MTU_BLACK_HOLES, 1);
}
