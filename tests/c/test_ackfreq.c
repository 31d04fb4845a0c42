/* When an ACK is due (csrc/quic/space.c), by RFC 9000 section 13.2 and as a peer asked with ACK_FREQUENCY,
 * beside a slow account in the draft's words; and what is asked, and believed (csrc/quic/conn_ackfreq.c). */
#include "check.h"
#include "leaf_host.h"

#include "quic/conn.h"

#define NUMBERS 400

/* draft-ietf-quic-ack-frequency section 6.2, packet by packet. */
static bool gap_of(const bool *seen, int64_t largest, int64_t told, uint32_t reorder) {
    int64_t reported = told - (int64_t)reorder + 1;
    for (int64_t pn = reported + 1 > 0 ? reported + 1 : 0; pn < largest; pn++) {
        if (!seen[pn])
            return largest - pn >= (int64_t)reorder;
    }
    return false;
}

static void one_order(struct quic_ack_policy policy) {
    struct leaf_memory memory = {0};
    struct quic_host host = leaf_host(&memory);
    struct quic_space space = {0};
    bool seen[NUMBERS] = {false}, owed = false;
    int64_t largest = -1, told = -1, next = 0;
    unsigned since = 0;
    quic_space_init(&space, NULL, &host);
    for (int i = 0; i < 300 && next < NUMBERS - 8; i++) {
        /* Mostly in order, some lost, some late. */
        int64_t pn = next;
        unsigned draw = check_rand() % 10;
        if (draw == 0)
            pn = next + (int64_t)(check_rand() % 6);
        else if (draw == 1 && next > 8)
            pn = next - 1 - (int64_t)(check_rand() % 8);
        if (seen[pn])
            continue;
        next = pn >= next ? pn + 1 : next;
        seen[pn] = true;
        bool in_order = largest < 0 || pn == largest + 1, eliciting = check_rand() % 5,
             ce = check_rand() % 50 == 0;
        largest = pn > largest ? pn : largest;
        quic_space_received(&space, &host, 1000, (uint64_t)pn, eliciting, ce ? 3 : 0, &policy);
        if (eliciting) {
            since++;
            bool gap = policy.reorder == 1 ? !in_order
                                           : policy.reorder && gap_of(seen, largest, told, policy.reorder);
            owed |= since > policy.threshold || ce || gap;
            CHECK_EQ(space.ack_deadline_ns, 1000 + policy.max_delay_ns);
        }
        check_note("threshold %u, reorder %u, packet %lld", policy.threshold, policy.reorder, (long long)pn);
        CHECK_EQ(space.ack_now, owed);
        if (owed || check_rand() % 40 == 0) { /* When due, or by the way. */
            uint8_t frame[600];
            REQUIRE(quic_space_put_ack(&space, 1000, 3, true, frame, frame + sizeof frame));
            CHECK(!space.ack_now && space.ack_deadline_ns == QUIC_NEVER);
            told = largest;
            owed = false;
            since = 0;
        }
    }
    quic_ranges_clear(&space.received, &host);
    CHECK_EQ(memory.bytes, 0);
}

static void as_the_draft_says(void) {
    static const uint32_t thresholds[] = {0, 1, 2, 7, 31}, reorders[] = {0, 1, 2, 3, 5};
    for (unsigned round = 0; round < 40; round++) {
        for (unsigned t = 0; t < 5; t++) {
            for (unsigned r = 0; r < 5; r++)
                one_order((struct quic_ack_policy){1 + check_rand() % 1000, thresholds[t], reorders[r], 0});
        }
    }
}

/* ---- what is asked and believed ---- */

struct scene {
    struct leaf_memory memory;
    struct quic_host host;
    uint64_t counters[STOQ_COUNTER_COUNT], drops[STOQ_DROP_COUNT];
    struct quic_endpoint *ep;
    struct quic_conn *conn; /* Confirmed, as far as these tests need it. */
};

static void begin(struct scene *s, bool off) {
    const struct quic_config config = {.no_ack_frequency = off};
    memset(s, 0, sizeof *s);
    s->host = leaf_endpoint_host(&s->memory);
    s->ep = quic_endpoint_create(&config, &s->host, s->counters, s->drops);
    REQUIRE(s->ep != NULL);
    struct quic_addr peer = {.ip = {0xfd}, .port = 1}, local = {.ip = {0xfd, 1}, .port = 2};
    s->conn = quic_conn_connect(s->ep, 1, &peer, &local, 0, NULL, 0);
    REQUIRE(s->conn != NULL);
    uint8_t params[512];
    REQUIRE(quic_conn_local_params(s->conn, params, sizeof params) > 0);
    s->conn->confirmed = true;
}

static void end(struct scene *s) {
    quic_endpoint_destroy(s->ep);
    CHECK_EQ(s->memory.bytes, 0);
}

static int believe(struct scene *s, uint64_t sequence, uint64_t threshold, uint64_t delay_us,
                   const char **why) {
    const struct quic_frame f = {.type = QUIC_FRAME_ACK_FREQUENCY,
                                 .sequence = sequence,
                                 .ack_threshold = threshold,
                                 .ack_max_delay_us = delay_us,
                                 .ack_reorder = 3};
    return quic_ack_frequency_on_frame(s->conn, &f, why);
}

static void requests_are_checked(void) {
    struct scene s;
    const char *why = NULL;
    begin(&s, false);
    const struct quic_ack_policy *policy = &s.conn->ack_policy;
    CHECK_EQ(s.conn->min_ack_delay_us, 1000);
    CHECK(policy->threshold == 1 && policy->reorder == 1 && policy->max_delay_ns == 25 * QUIC_MS);
    CHECK_EQ(believe(&s, 4, 10, 1000, &why), 0);
    CHECK(policy->threshold == 10 && policy->reorder == 3 && policy->max_delay_ns == QUIC_MS);
    CHECK_EQ(believe(&s, 3, 20, 5000, &why), 0); /* Overtaken by the one before. */
    CHECK_EQ(believe(&s, 4, 20, 5000, &why), 0);
    CHECK_EQ(policy->threshold, 10);
    CHECK_EQ(believe(&s, 5, QUIC_VARINT_MAX, QUIC_VARINT_MAX, &why), 0);
    CHECK(policy->threshold == UINT32_MAX - 1 && policy->max_delay_ns == 16384 * QUIC_MS);
    CHECK_EQ(believe(&s, 6, 1, 999, &why), QUIC_PROTOCOL_VIOLATION);
    CHECK(why && strstr(why, "min_ack_delay"));
    CHECK(!quic_app(s.conn)->ack_now);
    CHECK_EQ(quic_ack_frequency_on_immediate(s.conn, &why), 0);
    CHECK(quic_app(s.conn)->ack_now);
    end(&s);
}

static void not_offered_is_unknown(void) {
    struct scene s;
    const char *why = NULL;
    begin(&s, true);
    CHECK(s.conn->min_ack_delay_us == QUIC_NO_MIN_ACK_DELAY);
    CHECK_EQ(believe(&s, 0, 1, 25000, &why), QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(quic_ack_frequency_on_immediate(s.conn, &why), QUIC_FRAME_ENCODING_ERROR);
    CHECK(why && !quic_app(s.conn)->ack_now);
    s.conn->peer_params.min_ack_delay_us = 1000;
    CHECK(!quic_ack_frequency_taken(s.conn));
    end(&s);
}

/* The window grows and falls; each change of the request is owed once, in steps of two at least. */
static void requests_follow_the_window(void) {
    struct scene s;
    begin(&s, false);
    struct quic_conn *conn = s.conn;
    const struct quic_ack_ask *ask = &conn->ack_ask;
    uint64_t mtu = conn->mtu.current;
    conn->recovery.cc.window = 1000 * mtu;
    quic_ack_frequency_update(conn);
    CHECK(ask->sequence == 0 && !conn->owes); /* The peer takes none. */
    conn->peer_params.min_ack_delay_us = 3000;
    conn->recovery.rtt_smoothed_ns = 100 * QUIC_MS;
    quic_ack_frequency_init(conn);
    static const struct {
        uint64_t packets, sequence;
        uint32_t threshold;
    } steps[] = {{10, 0, 1},   {31, 0, 1},   {32, 1, 2},   {63, 1, 2},   {70, 2, 4},
                 {200, 3, 12}, {300, 3, 12}, {383, 3, 12}, {384, 4, 24}, {9999, 4, 24},
                 {208, 4, 24}, {207, 5, 12}, {2, 6, 1},    {2, 6, 1}};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        check_note("step %zu", i);
        uint64_t before = ask->sequence;
        conn->owes = 0;
        conn->recovery.cc.window = steps[i].packets * mtu;
        quic_ack_frequency_update(conn);
        CHECK_EQ(ask->sequence, steps[i].sequence);
        CHECK_EQ(ask->threshold, steps[i].threshold);
        CHECK_EQ(conn->owes == QUIC_OWES_ACK_FREQUENCY, ask->sequence != before);
        if (ask->sequence)
            CHECK_EQ(ask->delay_us, 25000); /* Half a round trip is more than the peer's most. */
    }
    /* The shorter delay counts only once the peer is known to have it. */
    conn->recovery.rtt_smoothed_ns = QUIC_MS;
    conn->recovery.cc.window = 500 * mtu;
    quic_ack_frequency_update(conn);
    CHECK_EQ(ask->delay_us, 3000);
    CHECK_EQ(conn->peer_ack_delay_ns, 25 * QUIC_MS);
    conn->owes = 0;
    quic_ack_frequency_lost(conn, ask->sequence - 1);
    quic_ack_frequency_acked(conn, ask->sequence - 1);
    CHECK(!conn->owes && conn->peer_ack_delay_ns == 25 * QUIC_MS);
    quic_ack_frequency_lost(conn, ask->sequence);
    CHECK_EQ(conn->owes, QUIC_OWES_ACK_FREQUENCY);
    quic_ack_frequency_acked(conn, ask->sequence);
    CHECK_EQ(conn->peer_ack_delay_ns, 3 * QUIC_MS);
    end(&s);
}

static const struct check_case cases[] = {
    {"as_the_draft_says", as_the_draft_says},
    {"requests_are_checked", requests_are_checked},
    {"not_offered_is_unknown", not_offered_is_unknown},
    {"requests_follow_the_window", requests_follow_the_window},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
