/* csrc/quic/rate.c: delivery-rate samples of draft-ietf-ccwg-bbr section 4.1, on packets sent and
 * acknowledged by hand. */
#include "check.h"

#include "quic/rate.h"

#define MS    UINT64_C(1000000)
#define BYTES 1000u

struct flow {
    struct quic_rate rate;
    struct quic_rate_packet packets[4096];
    uint64_t sent_ns[4096], next, in_flight;
};

static uint64_t send(struct flow *f, uint64_t now) {
    uint64_t pn = f->next++;
    f->sent_ns[pn] = now;
    quic_rate_on_sent(&f->rate, &f->packets[pn], now, f->in_flight, BYTES);
    f->in_flight += BYTES;
    return pn;
}

static void ack(struct flow *f, uint64_t now, uint64_t pn) {
    quic_rate_on_acked(&f->rate, &f->packets[pn], now, f->sent_ns[pn], pn, BYTES);
    f->in_flight -= BYTES;
}

/* One packet every `every_ns`, each acknowledged a round trip after it was sent; the samples of the last. */
static struct quic_rate_sample steady(struct flow *f, uint64_t from, uint64_t every_ns, uint64_t rtt_ns,
                                      uint64_t count) {
    struct quic_rate_sample s = {0};
    uint64_t behind = rtt_ns / every_ns, first = f->next;
    for (uint64_t i = 0; i < count + behind; i++) {
        if (i >= behind) {
            ack(f, from + i * every_ns, first + i - behind);
            s = quic_rate_take(&f->rate, rtt_ns);
        }
        if (i < count)
            send(f, from + i * every_ns);
    }
    return s;
}

static void steady_stream(void) {
    static struct flow f;
    memset(&f, 0, sizeof f);
    struct quic_rate_sample s = steady(&f, 5 * MS, 1 * MS, 20 * MS, 200);
    CHECK_EQ(s.delivery_rate, 1000 * BYTES); /* A packet a millisecond. */
    CHECK_EQ(s.newly_acked, BYTES);
    CHECK_EQ(s.delivered, 20 * BYTES); /* What a round trip holds. */
    CHECK_EQ(s.prior_delivered, 180 * BYTES);
    CHECK(!s.app_limited);
    CHECK_EQ(f.rate.delivered, 200 * BYTES);
}

/* Bunched ACKs do not make a path faster than it was sent into; bunched sending not faster than it answers.
 */
static void the_slower_of_both(void) {
    static struct flow f;
    memset(&f, 0, sizeof f);
    steady(&f, 0, 1 * MS, 20 * MS, 100);
    uint64_t at = 200 * MS, first = f.next;
    for (uint64_t i = 0; i < 10; i++)
        send(&f, at + i * MS);
    for (uint64_t i = 0; i < 10; i++)
        ack(&f, at + 30 * MS, first + i); /* All at once. */
    struct quic_rate_sample s = quic_rate_take(&f.rate, 20 * MS);
    CHECK_EQ(s.newly_acked, 10 * BYTES);
    CHECK_EQ(s.delivery_rate, 10 * BYTES * 1000 / 30); /* From the first's sending to the ACK. */

    first = f.next;
    for (uint64_t i = 0; i < 10; i++)
        send(&f, 300 * MS); /* All at once, acknowledged one by one. */
    for (uint64_t i = 0; i < 10; i++) {
        ack(&f, 320 * MS + i * MS, first + i);
        s = quic_rate_take(&f.rate, 20 * MS);
    }
    CHECK_EQ(s.delivery_rate, 10 * BYTES * 1000 / 29);
}

static void newest_packet_counts(void) {
    static struct flow f;
    memset(&f, 0, sizeof f);
    uint64_t a = send(&f, 10 * MS), b = send(&f, 11 * MS), c = send(&f, 12 * MS);
    ack(&f, 40 * MS, b);
    ack(&f, 40 * MS, c);
    ack(&f, 40 * MS, a); /* An ACK's ranges descend. */
    struct quic_rate_sample s = quic_rate_take(&f.rate, 1 * MS);
    CHECK_EQ(s.in_flight, 3 * BYTES); /* c's. */
    CHECK_EQ(s.newly_acked, 3 * BYTES);
    s = quic_rate_take(&f.rate, 1 * MS);
    CHECK_EQ(s.newly_acked, 0); /* The next ACK begins with nothing. */
    CHECK_EQ(s.delivery_rate, 0);
}

static void faster_than_a_round_trip(void) {
    static struct flow f;
    memset(&f, 0, sizeof f);
    uint64_t pn = send(&f, 10 * MS);
    ack(&f, 15 * MS, pn);
    struct quic_rate_sample s = quic_rate_take(&f.rate, 20 * MS);
    CHECK_EQ(s.delivery_rate, 0); /* Nothing to rely on, */
    CHECK_EQ(s.delivered, BYTES); /* but it was delivered. */
}

static void application_limited(void) {
    static struct flow f;
    memset(&f, 0, sizeof f);
    uint64_t a = send(&f, 10 * MS);
    quic_rate_mark_app_limited(&f.rate, f.in_flight);
    uint64_t b = send(&f, 20 * MS); /* After a bubble. */
    ack(&f, 30 * MS, a);
    CHECK(!quic_rate_take(&f.rate, 1).app_limited);
    uint64_t c = send(&f, 31 * MS);
    ack(&f, 40 * MS, b); /* Now the bubble is out of the pipe. */
    CHECK(quic_rate_take(&f.rate, 1).app_limited);
    uint64_t d = send(&f, 41 * MS);
    ack(&f, 51 * MS, c);
    CHECK(quic_rate_take(&f.rate, 1).app_limited); /* Sent while it was in there. */
    ack(&f, 61 * MS, d);
    CHECK(!quic_rate_take(&f.rate, 1).app_limited);
    quic_rate_mark_app_limited(&f.rate, 0);
    uint64_t e = send(&f, 500 * MS);
    ack(&f, 510 * MS, e);
    struct quic_rate_sample s = quic_rate_take(&f.rate, 1);
    CHECK(s.app_limited);
    CHECK_EQ(s.delivery_rate, BYTES * 100); /* The idle time before is no part of the interval. */
}

static void losses(void) {
    static struct flow f;
    memset(&f, 0, sizeof f);
    f.rate.lost = (UINT64_C(1) << 32) - 500; /* Only the low half is kept. */
    uint64_t a = send(&f, 10 * MS);
    f.rate.lost += 3 * BYTES;
    CHECK_EQ(quic_rate_lost_since(&f.rate, &f.packets[a]), 3 * BYTES);
    ack(&f, 40 * MS, a);
    CHECK_EQ(quic_rate_take(&f.rate, 1).lost, 3 * BYTES);
    struct quic_rate_packet p;
    quic_rate_on_sent(&f.rate, &p, 50 * MS, UINT64_C(1) << 40, BYTES);
    CHECK_EQ(p.in_flight, (UINT64_C(1) << 31) - 1); /* As much as fits. */
}

static const struct check_case cases[] = {
    {"steady_stream", steady_stream},
    {"the_slower_of_both", the_slower_of_both},
    {"newest_packet_counts", newest_packet_counts},
    {"faster_than_a_round_trip", faster_than_a_round_trip},
    {"application_limited", application_limited},
    {"losses", losses},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
