/* One deadline out of many: the connection's single timer. */
#include "conn.h"

static uint64_t deadline(struct quic_conn *conn) {
    enum quic_space_id which;
    bool is_loss;
    if (conn->state == QUIC_CONN_DEAD)
        return QUIC_NEVER;
    if (!quic_is_open(conn))
        return conn->close_deadline_ns;
    uint64_t t = quic_recovery_deadline(conn, &which, &is_loss);
    if (conn->idle_deadline_ns)
        t = quic_min(t, conn->idle_deadline_ns);
    if (!conn->handshake_done)
        t = quic_min(t, conn->created_ns + conn->ep->config.handshake_timeout_ns);
    bool blocked = quic_path_blocked(conn); /* Then only the peer's next bytes let an ACK go. */
    for (int i = 0; i < QUIC_SPACE_COUNT && !blocked; i++)
        t = quic_min(t, conn->spaces[i]->ack_deadline_ns);
    /* Pacing counts only while something waits for it. */
    if (conn->recovery.pace_next_ns != QUIC_NEVER)
        t = quic_min(t, conn->recovery.pace_next_ns);
    if (conn->previous_keys_until_ns)
        t = quic_min(t, conn->previous_keys_until_ns);
    t = quic_min(t, quic_rest_deadline(conn));
    t = quic_min(t, quic_blocked_deadline(conn));
    return quic_min(t, quic_path_deadline(conn));
}

void quic_conn_update_timer(struct quic_conn *conn) {
    uint64_t t = deadline(conn);
    if (t != conn->timer.deadline_ns)
        conn->ep->host.timer_set(conn->ep->host.ctx, &conn->timer, t);
}

void quic_conn_on_timer(struct quic_conn *conn, uint64_t now) {
    static const char idle[] = "idle timeout", slow[] = "handshake timeout";
    conn->timer.deadline_ns = QUIC_NEVER; /* The host has taken it off. */
    if (!quic_is_open(conn)) {
        if (conn->state != QUIC_CONN_DEAD && conn->close_deadline_ns <= now) {
            conn->state = QUIC_CONN_DEAD;
            quic_conn_maybe_free(conn);
            return;
        }
        quic_conn_update_timer(conn);
        return;
    }
    if (conn->idle_deadline_ns && conn->idle_deadline_ns <= now) {
        quic_count(conn, STOQ_COUNTER_IDLE_TIMEOUTS, 1);
        quic_conn_end(conn, now, QUIC_CONN_DEAD, QUIC_EVENT_IDLE, false, QUIC_NO_ERROR, 0, idle,
                      sizeof idle - 1);
        return;
    }
    if (!conn->handshake_done && now - conn->created_ns >= conn->ep->config.handshake_timeout_ns) {
        quic_conn_end(conn, now, QUIC_CONN_DEAD, QUIC_EVENT_IDLE, false, QUIC_NO_ERROR, 0, slow,
                      sizeof slow - 1);
        return;
    }
    if (conn->previous_keys_until_ns && conn->previous_keys_until_ns <= now) {
        conn->previous_keys_until_ns = 0;
        quic_keys_drop_previous(&quic_app(conn)->keys);
    }
    quic_recovery_on_timer(conn, now);
    quic_path_on_timer(conn, now);
    quic_blocked_on_timer(conn, now);
    quic_rest_on_timer(conn, now);
    quic_schedule_send(
        conn); /* ACKs, probes and paced data are due; the timer is set anew when there is no more to send. */
}
