/* How often to acknowledge, both ways: draft-ietf-quic-ack-frequency.
 *
 * What the peer asks of us is a struct quic_ack_policy, which quic_space_received obeys. What we ask of the
 * peer follows the congestion window: an ACK in sixteen a round trip serves RTT samples (HyStart++ wants
 * eight a round), growth and loss detection, every further one costs a receive, an AEAD open and a walk
 * through the frame for nothing. Where trains are received whole it changes little; where datagrams come
 * singly (AF_XDP), it is one ACK in thirty-two instead of one in two.
 */
#include "conn.h"

#define MIN_ACK_DELAY_US   1000u /* What we offer: a worker's timers are as fine as that under load. */
#define ACKS_A_ROUND       16u
#define MAX_THRESHOLD      31u               /* Packets; half a train. */
#define MIN_ASKED_DELAY_NS (2 * QUIC_MS)     /* Shorter than a scheduler's hiccup makes probes, not speed. */
#define MAX_ACCEPTED_DELAY (16384 * QUIC_MS) /* As of the transport parameter, RFC 9000 section 18.2. */

void quic_ack_frequency_init(struct quic_conn *conn) {
    conn->ack_policy = (struct quic_ack_policy){
        .max_delay_ns = conn->ep->config.max_ack_delay_ns,
        .threshold = 1,
        .reorder = 1,
    };
    conn->ack_ask = (struct quic_ack_ask){.threshold = 1};
    conn->peer_ack_delay_ns = conn->peer_params.max_ack_delay_ms * QUIC_MS;
}

uint64_t quic_ack_frequency_offer(const struct quic_conn *conn, uint64_t max_ack_delay_ms) {
    if (conn->ep->config.no_ack_frequency)
        return QUIC_NO_MIN_ACK_DELAY;
    return quic_min(MIN_ACK_DELAY_US, max_ack_delay_ms * 1000);
}

/* Not offered: then the type is unknown to us. */
static bool refused(const struct quic_conn *conn, const char **why) {
    if (conn->min_ack_delay_us != QUIC_NO_MIN_ACK_DELAY)
        return false;
    *why = "frame of an extension that was not offered";
    return true;
}

int quic_ack_frequency_on_frame(struct quic_conn *conn, const struct quic_frame *f, const char **why) {
    struct quic_ack_policy *policy = &conn->ack_policy;
    if (refused(conn, why))
        return QUIC_FRAME_ENCODING_ERROR;
    if (f->ack_max_delay_us < conn->min_ack_delay_us) {
        *why = "ACK_FREQUENCY wants a shorter delay than min_ack_delay";
        return QUIC_PROTOCOL_VIOLATION;
    }
    if (f->sequence < policy->sequence)
        return 0; /* Section 4: an older one that was overtaken. */
    policy->sequence = f->sequence + 1;
    policy->threshold = (uint32_t)quic_min(f->ack_threshold, UINT32_MAX - 1);
    policy->reorder = (uint32_t)quic_min(f->ack_reorder, UINT32_MAX);
    policy->max_delay_ns = quic_min(f->ack_max_delay_us, MAX_ACCEPTED_DELAY / 1000) * 1000;
    return 0;
}

int quic_ack_frequency_on_immediate(struct quic_conn *conn, const char **why) {
    if (refused(conn, why))
        return QUIC_FRAME_ENCODING_ERROR;
    quic_app(conn)->ack_now = true;
    return 0;
}

bool quic_ack_frequency_taken(const struct quic_conn *conn) {
    return conn->peer_params.min_ack_delay_us != QUIC_NO_MIN_ACK_DELAY && !conn->ep->config.no_ack_frequency;
}

void quic_ack_frequency_update(struct quic_conn *conn) {
    struct quic_ack_ask *ask = &conn->ack_ask;
    const struct quic_recovery *r = &conn->recovery;
    if (!conn->confirmed || !quic_ack_frequency_taken(conn))
        return;
    uint64_t packets = r->cc.window / conn->mtu.current;
    uint32_t threshold = (uint32_t)quic_max(1, quic_min(packets / ACKS_A_ROUND, MAX_THRESHOLD));
    if (threshold < 2 * ask->threshold && threshold > ask->threshold / 2)
        return; /* Not at every step of the window. */
    uint64_t most = conn->peer_params.max_ack_delay_ms * QUIC_MS;
    uint64_t delay = quic_max(r->rtt_smoothed_ns / 2, MIN_ASKED_DELAY_NS);
    delay = quic_max(quic_min(delay, most), conn->peer_params.min_ack_delay_us * 1000);
    ask->threshold = threshold;
    ask->delay_us = delay / 1000;
    ask->sequence++;
    conn->peer_ack_delay_ns = quic_max(conn->peer_ack_delay_ns, delay);
    conn->owes |= QUIC_OWES_ACK_FREQUENCY;
}

void quic_ack_frequency_acked(struct quic_conn *conn, uint64_t sequence) {
    if (sequence == conn->ack_ask.sequence)
        conn->peer_ack_delay_ns = conn->ack_ask.delay_us * 1000;
}

void quic_ack_frequency_lost(struct quic_conn *conn, uint64_t sequence) {
    if (sequence == conn->ack_ask.sequence)
        conn->owes |= QUIC_OWES_ACK_FREQUENCY;
}
