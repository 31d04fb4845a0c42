/* csrc/quic/cc_bbr.c, bbr_model.c, bbr_probe.c: BBR against a path that is arithmetic: one bottleneck with a
 * drop-tail queue, a delay, an ACK for each packet. Many cases are those of draft-ietf-ccwg-bbr's appendix of
 * examples. */
#include "check.h"

#include <math.h>

#include "quic/bbr.h"

#define MS   UINT64_C(1000000)
#define S    UINT64_C(1000000000)
#define MSS  1200u
#define RING 65536u

struct packet {
    uint64_t sent_ns, acked_ns; /* acked_ns: when its ACK arrives; UINT64_MAX: never. */
    struct quic_rate_packet rate;
    bool out, told_lost;
};

struct flow {
    struct quic_cc cc;
    struct quic_bbr bbr;
    struct packet packets[RING];
    uint64_t now, first, next; /* Packet numbers not settled: [first, next) */
    uint64_t in_flight, send_at_ns, lost_packets, delivered, rtt_min_ns;
    /* The path. */
    uint64_t rate, rtt_ns, queue_bytes, busy_until_ns; /* Rate: bytes a second. */
    uint32_t lose_every;                               /* 0: only what the queue has no room for. */
    /* The application: bytes a second it has to send; 0: always more. */
    uint64_t app_rate, app_sent, app_from_ns;
    /* What was seen. */
    unsigned entered[QUIC_BBR_NONE];
    enum quic_bbr_state last;
    bool wrong_step;
};

static struct flow *make(uint64_t mbps, uint64_t rtt_ms) {
    static struct flow f;
    memset(&f, 0, sizeof f);
    f.now = f.app_from_ns = 1 * S;
    f.rate = mbps * 125000;
    f.rtt_ns = rtt_ms * MS;
    f.queue_bytes = f.rate * rtt_ms / 1000 * 2;
    f.rtt_min_ns = UINT64_MAX;
    quic_cc_init(&f.cc, STOQ_CC_BBR, MSS, 10, &f.bbr);
    return &f;
}

static uint64_t bdp(const struct flow *f) {
    return f->rate * (f->rtt_ns / 1000) / 1000000;
}

/* STARTUP → DRAIN → DOWN → CRUISE → REFILL → UP → DOWN …; PROBE_RTT from anywhere, back to CRUISE or STARTUP.
 */
static void watch(struct flow *f) {
    static const uint8_t before[QUIC_BBR_NONE] = {
        [QUIC_BBR_STARTUP] = 1u << QUIC_BBR_PROBE_RTT,
        [QUIC_BBR_DRAIN] = 1u << QUIC_BBR_STARTUP,
        [QUIC_BBR_DOWN] = 1u << QUIC_BBR_DRAIN | 1u << QUIC_BBR_UP,
        [QUIC_BBR_CRUISE] =
            1u << QUIC_BBR_DOWN | 1u << QUIC_BBR_DRAIN | 1u << QUIC_BBR_UP |
            1u << QUIC_BBR_PROBE_RTT, /* DOWN may last no longer than the ACK that began it. */
        [QUIC_BBR_REFILL] = 1u << QUIC_BBR_CRUISE | 1u << QUIC_BBR_DOWN,
        [QUIC_BBR_UP] = 1u << QUIC_BBR_REFILL,
        [QUIC_BBR_PROBE_RTT] = 0x3f,
    };
    enum quic_bbr_state state = f->bbr.state;
    if (state == f->last)
        return;
    f->wrong_step |= !(before[state] >> f->last & 1);
    f->entered[state]++;
    f->last = state;
}

static void transmit(struct flow *f) {
    struct packet *p = &f->packets[f->next % RING];
    *p = (struct packet){.sent_ns = f->now, .acked_ns = UINT64_MAX, .out = true};
    f->cc.ops->on_sent(&f->cc, f->now, f->in_flight, MSS);
    quic_rate_on_sent(f->cc.rate, &p->rate, f->now, f->in_flight, MSS);
    f->in_flight += MSS;
    f->app_sent += MSS;
    uint64_t start = quic_bbr_max(f->now, f->busy_until_ns);
    bool room = (start - f->now) * (f->rate / 1000) / 1000000 <= f->queue_bytes;
    if (room) {
        f->busy_until_ns = start + MSS * S / f->rate;
        if (!f->lose_every || f->next % f->lose_every != f->lose_every / 2)
            p->acked_ns = f->busy_until_ns + f->rtt_ns;
    }
    f->send_at_ns = quic_bbr_max(f->now, f->send_at_ns) + MSS * S / f->cc.pacing_rate;
    f->next++;
}

static void acknowledge(struct flow *f, uint64_t pn) {
    struct packet *p = &f->packets[pn % RING];
    uint64_t rtt = f->now - p->sent_ns, before = f->in_flight, newest_lost = 0;
    f->rtt_min_ns = quic_bbr_min(f->rtt_min_ns, rtt);
    p->out = false;
    if (p->told_lost)
        f->cc.ops->on_spurious_loss(&f->cc, f->now, p->sent_ns);
    else
        f->in_flight -= MSS;
    f->delivered += MSS;
    quic_rate_on_acked(f->cc.rate, &p->rate, f->now, p->sent_ns, pn, MSS);
    for (uint64_t old = f->first; old + 3 <= pn; old++) {
        struct packet *q = &f->packets[old % RING];
        if (!q->out || q->told_lost)
            continue;
        q->told_lost = true;
        f->in_flight -= MSS;
        f->lost_packets++;
        f->cc.rate->lost += MSS;
        newest_lost = q->sent_ns;
        f->cc.ops->on_lost(&f->cc, &(struct quic_cc_lost){f->now, old, q->sent_ns, &q->rate, MSS});
    }
    if (newest_lost)
        f->cc.ops->on_congestion(&f->cc, f->now, newest_lost, false);
    while (f->first < f->next) {
        const struct packet *q = &f->packets[f->first % RING];
        if (q->out && !(q->told_lost && q->acked_ns == UINT64_MAX))
            break;
        f->first++;
    }
    struct quic_cc_ack ack = {.now = f->now,
                              .bytes = MSS,
                              .bytes_in_flight = before,
                              .largest_acked_sent_ns = p->sent_ns,
                              .largest_acked_pn = pn,
                              .next_pn = f->next,
                              .rtt_latest_ns = rtt,
                              .rtt_smoothed_ns = rtt,
                              .rtt_min_ns = f->rtt_min_ns,
                              .in_flight = f->in_flight};
    f->cc.ops->on_ack(&f->cc, &ack);
    CHECK(f->cc.pacing_rate > 0);
    watch(f);
}

static bool has_data(const struct flow *f) {
    return !f->app_rate || (f->now - f->app_from_ns) / 1000 * f->app_rate / 1000000 >= f->app_sent + MSS;
}

/* The world in steps of 10 us: coarse, but every rate here is far slower. */
static void run(struct flow *f, uint64_t span_ns) {
    for (uint64_t until = f->now + span_ns; f->now < until; f->now += MS / 100) {
        for (uint64_t pn = f->first; pn < f->next; pn++) {
            const struct packet *p = &f->packets[pn % RING];
            if (p->acked_ns != UINT64_MAX && p->acked_ns > f->now)
                break;
            if (p->out && p->acked_ns <= f->now)
                acknowledge(f, pn);
        }
        while (f->in_flight + MSS <= f->cc.window && f->send_at_ns <= f->now && f->next - f->first < RING) {
            if (!has_data(f)) {
                quic_rate_mark_app_limited(f->cc.rate, f->in_flight);
                break;
            }
            transmit(f);
        }
    }
}

static bool near(uint64_t value, uint64_t expected, double part) {
    return fabs((double)value - (double)expected) <= part * (double)expected;
}

static void startup_finds_the_bandwidth(void) {
    struct flow *f = make(50, 40);
    CHECK_EQ(f->bbr.state, QUIC_BBR_STARTUP);
    CHECK_EQ(f->cc.window, 12000);
    run(f, 1 * S);
    CHECK_EQ(f->entered[QUIC_BBR_DRAIN], 1);
    CHECK(quic_bbr_in_probe_bw(&f->bbr));
    CHECK(near(f->bbr.max_bw, f->rate, 0.02));
    CHECK(near(f->bbr.min_rtt_ns, f->rtt_ns, 0.02));
    CHECK_EQ(f->lost_packets, 0);
    CHECK(!f->wrong_step);
    /* The queue is gone again. */
    CHECK(f->in_flight < bdp(f) * 13 / 10);
}

static void cycles(void) {
    struct flow *f = make(50, 40);
    run(f, 1 * S);
    uint64_t before = f->delivered;
    run(f, 20 * S);
    CHECK(!f->wrong_step);
    CHECK(f->entered[QUIC_BBR_UP] >= 5); /* Every 63 round trips, or 2 to 3 s, */
    CHECK(f->entered[QUIC_BBR_UP] <= 12);
    CHECK(f->entered[QUIC_BBR_PROBE_RTT] >= 2 && f->entered[QUIC_BBR_PROBE_RTT] <= 4); /* and 5 s. */
    CHECK(f->delivered - before > f->rate * 20 * 93 / 100);
    CHECK_EQ(f->lost_packets, 0);
    CHECK_EQ(f->bbr.inflight_longterm, QUIC_BBR_INFINITY);
}

static void states_have_their_gains(void) {
    static const struct {
        enum quic_bbr_state state;
        uint32_t pacing, cwnd;
    } rows[] = {{QUIC_BBR_STARTUP, 277, 200}, {QUIC_BBR_DRAIN, 50, 200},   {QUIC_BBR_DOWN, 90, 200},
                {QUIC_BBR_CRUISE, 100, 200},  {QUIC_BBR_REFILL, 100, 200}, {QUIC_BBR_UP, 125, 225},
                {QUIC_BBR_PROBE_RTT, 100, 50}};
    struct flow *f = make(50, 40);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        quic_bbr_set_state(&f->bbr, rows[i].state);
        CHECK_EQ(f->bbr.pacing_gain, rows[i].pacing);
        CHECK_EQ(f->bbr.cwnd_gain, rows[i].cwnd);
    }
}

static void probe_rtt_drains(void) {
    struct flow *f = make(50, 40);
    while (f->bbr.state != QUIC_BBR_PROBE_RTT && f->now < 10 * S)
        run(f, MS);
    REQUIRE(f->bbr.state == QUIC_BBR_PROBE_RTT);
    CHECK(f->now > 1 * S + QUIC_BBR_PROBE_RTT_INTERVAL_NS);
    uint64_t full = f->bbr.prior_cwnd, began = f->now;
    run(f, 100 * MS);
    CHECK(f->in_flight <= bdp(f) / 2 + MSS);
    while (f->bbr.state == QUIC_BBR_PROBE_RTT && f->now < 20 * S)
        run(f, MS);
    CHECK(f->now - began >= QUIC_BBR_PROBE_RTT_NS);
    CHECK(f->now - began <= QUIC_BBR_PROBE_RTT_NS + 3 * f->rtt_ns);
    CHECK_EQ(f->bbr.state, QUIC_BBR_CRUISE);
    run(f, 2 * f->rtt_ns);
    CHECK(f->cc.window >= full * 9 / 10);
    CHECK(near(f->bbr.max_bw, f->rate, 0.02)); /* The low rate was our own. */
}

static void a_longer_way_is_noticed(void) {
    struct flow *f = make(20, 20);
    run(f, 2 * S);
    f->rtt_ns = 60 * MS;
    run(f, 16 * S); /* The old minimum expires after ten. */
    CHECK(near(f->bbr.min_rtt_ns, 60 * MS, 0.05));
    uint64_t before = f->delivered;
    run(f, 4 * S);
    CHECK(f->delivered - before > f->rate * 4 * 85 / 100);
}

static void bandwidth_falls_and_rises(void) {
    struct flow *f = make(50, 20);
    run(f, 3 * S);
    f->rate /= 10;
    run(f, 12 * S);
    CHECK(near(f->bbr.bw, f->rate, 0.05));
    f->rate *= 10;
    run(f, 15 * S);
    CHECK(near(f->bbr.max_bw, f->rate, 0.05));
    CHECK(!f->wrong_step);
}

static void application_limits(void) {
    struct flow *f = make(50, 40);
    f->app_rate = f->rate / 10;
    run(f, 4 * S);
    CHECK_EQ(f->bbr.state, QUIC_BBR_STARTUP); /* Nothing says that the pipe is full. */
    CHECK(!f->bbr.full_bw_reached);
    f->app_rate = 0;
    run(f, 1 * S);
    CHECK(near(f->bbr.max_bw, f->rate, 0.02));
    /* And once it is known, a slow application does not make it less. */
    f->app_rate = f->rate / 10;
    f->app_sent = 0;
    f->app_from_ns = f->now;
    run(f, 12 * S);
    CHECK(near(f->bbr.max_bw, f->rate, 0.02));
    CHECK_EQ(f->lost_packets, 0);
}

static void startup_ends_with_loss(void) {
    struct flow *f = make(50, 40);
    f->queue_bytes = bdp(f) / 10;
    uint64_t max = 0;
    while (f->bbr.state == QUIC_BBR_STARTUP && f->now < 3 * S) {
        run(f, MS);
        max = quic_bbr_max(max, f->bbr.inflight_longterm);
    }
    CHECK(f->bbr.full_bw_reached);
    CHECK(f->bbr.inflight_longterm != QUIC_BBR_INFINITY);
    CHECK(f->bbr.inflight_longterm >= bdp(f) * 7 / 10 && f->bbr.inflight_longterm <= 2 * bdp(f));
    uint64_t lost = f->lost_packets, sent = f->next, before = f->delivered;
    run(f, 10 * S);
    CHECK(f->delivered - before > f->rate * 10 * 80 / 100);
    CHECK((f->lost_packets - lost) * 50 < f->next - sent); /* Under LossThresh. */
    CHECK(f->bbr.inflight_longterm < 2 * bdp(f));
}

static void one_in_a_hundred_lost(void) {
    struct flow *f = make(50, 20);
    f->lose_every = 100;
    run(f, 2 * S);
    uint64_t before = f->delivered;
    run(f, 20 * S);
    /* The draft's own estimate, section 5.3.3.9: (1 - loss)^n after n rounds, for 63 rounds. */
    double model = (1 - pow(0.99, 63)) / (63 * 0.01) * 0.99;
    CHECK((double)(f->delivered - before) > 0.9 * model * (double)f->rate * 20);
    CHECK(f->entered[QUIC_BBR_UP] > 8);
}

/* What ends a probe: one mark, or more than two per cent of loss; and the next one is careful. */
static void too_high(void) {
    for (int ce = 0; ce < 2; ce++) {
        check_note("ce %d", ce);
        struct flow *f = make(50, 40);
        while (f->bbr.state != QUIC_BBR_UP && f->now < 10 * S)
            run(f, MS / 10);
        run(f, f->rtt_ns);
        REQUIRE(f->bbr.state == QUIC_BBR_UP && f->bbr.bw_probe_sample);
        uint64_t in_flight = f->in_flight;
        uint64_t pn = f->next - 100, sent = f->packets[pn % RING].sent_ns;
        struct quic_rate_packet *at_send = &f->packets[pn % RING].rate;
        if (ce) {
            f->cc.rate->acked.newest = *at_send;
            CHECK(f->cc.ops->on_congestion(&f->cc, f->now, sent, true));
            CHECK(!f->cc.ops->on_congestion(&f->cc, f->now, sent, true)); /* Once a round trip. */
        } else {
            f->cc.rate->lost += at_send->in_flight / 50 - MSS;
            f->cc.ops->on_lost(&f->cc, &(struct quic_cc_lost){f->now, pn, sent, at_send, MSS});
            CHECK_EQ(f->bbr.state, QUIC_BBR_UP); /* Not yet more than two per cent. */
            f->cc.rate->lost += 2 * MSS;
            f->cc.ops->on_lost(&f->cc, &(struct quic_cc_lost){f->now, pn, sent, at_send, MSS});
        }
        CHECK_EQ(f->bbr.state, QUIC_BBR_DOWN);
        CHECK(f->bbr.prev_probe_too_high);
        CHECK(!f->bbr.bw_probe_sample);
        CHECK(f->bbr.inflight_longterm <= in_flight + MSS);
        CHECK(f->bbr.inflight_longterm >= bdp(f) * 7 / 10);
        watch(f);
        bool careful = false;
        for (unsigned up = f->entered[QUIC_BBR_UP]; f->entered[QUIC_BBR_UP] < up + 2 && f->now < 30 * S;) {
            run(f, MS);
            careful |= f->bbr.prev_probe_precautionary;
        }
        CHECK(careful);

        CHECK(!f->wrong_step);
    }
}

static void spurious_loss_is_undone(void) {
    struct flow *f = make(50, 40);
    while (f->bbr.state != QUIC_BBR_UP && f->now < 10 * S)
        run(f, MS / 10);
    run(f, f->rtt_ns);
    REQUIRE(f->bbr.state == QUIC_BBR_UP);
    uint64_t pn = f->next - 100, longterm = f->bbr.inflight_longterm, sent = f->packets[pn % RING].sent_ns;
    struct quic_cc_lost lost = {f->now, pn, sent, &f->packets[pn % RING].rate, MSS};
    f->cc.rate->lost += bdp(f) / 10;
    for (int i = 0; i < 3; i++, lost.pn++)
        f->cc.ops->on_lost(&f->cc, &lost);
    f->cc.ops->on_congestion(&f->cc, f->now, sent, false);
    CHECK_EQ(f->bbr.state, QUIC_BBR_DOWN);
    CHECK(f->bbr.inflight_longterm != longterm);
    for (int i = 0; i < 2; i++) {
        f->cc.ops->on_spurious_loss(&f->cc, f->now, sent);
        CHECK_EQ(f->bbr.state, QUIC_BBR_DOWN); /* One of three may still be. */
    }
    f->cc.ops->on_spurious_loss(&f->cc, f->now, sent);
    CHECK_EQ(f->bbr.state, QUIC_BBR_REFILL);
    CHECK_EQ(f->bbr.inflight_longterm, longterm);
}

static void persistent_congestion(void) {
    struct flow *f = make(50, 40);
    run(f, 2 * S);
    uint64_t window = f->cc.window;
    f->cc.ops->on_persistent_congestion(&f->cc, f->now);
    CHECK_EQ(f->cc.window, 2 * MSS);
    run(f, 2 * f->rtt_ns);
    CHECK(f->cc.window > window / 2); /* The model still stands. */
}

static void idle_then_again(void) {
    struct flow *f = make(50, 40);
    run(f, 2 * S);
    f->app_rate = 1; /* Nothing for a while. */
    f->app_sent = 0;
    f->app_from_ns = f->now;
    run(f, 6 * S); /* Longer than ProbeRTTInterval: that there was silence is as good as PROBE_RTT. */
    CHECK_EQ(f->in_flight, 0);
    f->app_rate = 0;
    uint64_t before = f->delivered;
    run(f, MS);
    CHECK(f->bbr.idle_restart);
    CHECK(near(f->cc.pacing_rate, f->bbr.bw * 99 / 100, 0.001)); /* At the rate of the path, not of UP. */
    run(f, 1 * S);
    CHECK(f->delivered - before > f->rate * 90 / 100);
    CHECK_EQ(f->entered[QUIC_BBR_PROBE_RTT], 0);
}

static void larger_datagrams(void) {
    struct flow *f = make(50, 40);
    quic_cc_set_mss(&f->cc, 9000);
    CHECK(f->cc.window >= 18000);
    run(f, 1 * S);
    CHECK(f->cc.window >= 4 * 9000);
    CHECK(f->cc.send_quantum >= 2 * 9000);
}

static void time_zero(void) {
    struct flow *f = make(50, 40);
    f->now = 0;
    run(f, 1 * S);
    CHECK(near(f->bbr.max_bw, f->rate, 0.02));
    CHECK(f->cc.ssthresh == UINT64_MAX);
}

static const struct check_case cases[] = {
    {"startup_finds_the_bandwidth", startup_finds_the_bandwidth},
    {"cycles", cycles},
    {"states_have_their_gains", states_have_their_gains},
    {"probe_rtt_drains", probe_rtt_drains},
    {"a_longer_way_is_noticed", a_longer_way_is_noticed},
    {"bandwidth_falls_and_rises", bandwidth_falls_and_rises},
    {"application_limits", application_limits},
    {"startup_ends_with_loss", startup_ends_with_loss},
    {"one_in_a_hundred_lost", one_in_a_hundred_lost},
    {"too_high", too_high},
    {"spurious_loss_is_undone", spurious_loss_is_undone},
    {"persistent_congestion", persistent_congestion},
    {"idle_then_again", idle_then_again},
    {"larger_datagrams", larger_datagrams},
    {"time_zero", time_zero},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
