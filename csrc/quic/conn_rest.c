/* Rest: what an idle connection gives back, and how it wakes.
 *
 *      AWAKE ──── QUIC_REST_NS without a packet, nothing in flight ────▶ RESTED
 *        │ ▲                                                              │
 *        │ └───────── a packet to open or to seal: keys expanded ◀────────┤
 *        └─ keys only, when too many are awake or memory is short ──▶ (keys asleep)
 *
 * Rested, a connection is its own block and its places in the endpoint's tables. What was given back is made
 * anew when it is needed: expanded keys by quic_conn_wake, rings and tables by those who fill them. Nothing
 * the peer can see depends on it, and nothing here walks over connections: each has its own timer.
 */
#include "conn.h"

static void leave_awake(struct quic_conn *conn) {
    struct quic_endpoint *ep = conn->ep;
    *(conn->awake_prev ? &conn->awake_prev->awake_next : &ep->awake_first) = conn->awake_next;
    *(conn->awake_next ? &conn->awake_next->awake_prev : &ep->awake_last) = conn->awake_prev;
    conn->awake = false;
    ep->awake--;
}

void quic_conn_rest_keys(struct quic_conn *conn) {
    if (conn->awake)
        leave_awake(conn);
    quic_keys_rest(&quic_app(conn)->keys);
}

bool quic_conn_wake(struct quic_conn *conn) {
    struct quic_endpoint *ep = conn->ep;
    if (ep->awake >= ep->awake_limit)
        quic_conn_rest_keys(ep->awake_first);
    while (!quic_keys_wake(&quic_app(conn)->keys)) {
        if (!ep->awake_first) {
            quic_keys_rest(&quic_app(conn)->keys); /* Half of them are of no use. */
            return false;
        }
        quic_conn_rest_keys(ep->awake_first);
    }
    conn->awake = true;
    conn->rested = false;
    conn->awake_next = NULL;
    conn->awake_prev = ep->awake_last;
    *(ep->awake_last ? &ep->awake_last->awake_next : &ep->awake_first) = conn;
    ep->awake_last = conn;
    ep->awake++;
    return true;
}

/* With nothing in flight, nothing to acknowledge and one generation of keys. All of that changes only with a
 * packet, and after each the timer is set anew. */
uint64_t quic_rest_deadline(const struct quic_conn *conn) {
    const struct quic_space *app = &conn->app;
    if (conn->rested || conn->handshake || app->eliciting_in_flight || conn->recovery.bytes_in_flight ||
        app->ack_deadline_ns != QUIC_NEVER || conn->previous_keys_until_ns)
        return QUIC_NEVER;
    return quic_max(conn->last_received_ns, app->last_eliciting_ns) + QUIC_REST_NS;
}

/* Received numbers: with more gaps than the set holds in itself, the oldest are forgotten, which makes late
 * packets there duplicates. Their peer gave them up long ago. */
static void rest_received(struct quic_space *app, const struct quic_host *host) {
    struct quic_ranges *set = &app->received;
    if (set->cap <= QUIC_RANGES_INLINE)
        return;
    const struct quic_range newest = set->v[set->count - 1];
    if (set->count > 1)
        app->duplicate_below = newest.lo;
    quic_ranges_clear(set, host);
    (void)quic_ranges_add(set, host, newest.lo, newest.hi); /* The first of an empty set always fits. */
}

static void rest_datagrams(struct quic_conn *conn, struct quic_datagram_queue **queue) {
    const struct quic_host *host = quic_host_of(conn);
    if (!*queue || (*queue)->head != (*queue)->tail)
        return;
    host->free(host->ctx, *queue, sizeof **queue);
    *queue = NULL;
}

void quic_rest_on_timer(struct quic_conn *conn, uint64_t now) {
    const struct quic_host *host = quic_host_of(conn);
    struct quic_space *app = quic_app(conn);
    if (!quic_is_open(conn) || quic_rest_deadline(conn) > now)
        return;
    conn->rested = true;
    quic_conn_rest_keys(conn);
    quic_sent_free(&app->sent, host);
    quic_crypto_rest(&app->crypto, host);
    if (app->received.count)
        rest_received(app, host);
    rest_datagrams(conn, &conn->datagrams_in);
    rest_datagrams(conn, &conn->datagrams_out);
    if (!conn->stream_count)
        quic_streams_release(conn);
}
