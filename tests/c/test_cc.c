/* csrc/quic/cc*.c and hystart.c: the behaviour RFC 9002 section 7, RFC 9438 and RFC 9406 ask for, on a path
 * that is only arithmetic: a window is sent, and acknowledged packet by packet over one round trip.
 */
#include "check.h"

#include <math.h>

#include "quic/cc.h"

#define MS  UINT64_C(1000000)
#define MSS 1200u

/* A flow that always has more to send. */
struct flow {
    struct quic_cc cc;
    uint64_t now, rtt_ns, next_pn;
    bool app_limited;
};

static struct flow make(enum stoq_congestion_controller which) {
    struct flow f = {.now = 1000 * MS, .rtt_ns = 50 * MS, .next_pn = 100};
    quic_cc_init(&f.cc, which, MSS, 10, NULL);
    return f;
}

/* One ACK of `bytes`, for packets sent a round trip ago. */
static void ack(struct flow *f, uint64_t pn, uint64_t bytes) {
    struct quic_cc_ack a = {
        .now = f->now,
        .bytes = bytes,
        .bytes_in_flight = f->cc.window,
        .largest_acked_sent_ns = f->now - f->rtt_ns,
        .largest_acked_pn = pn,
        .next_pn = f->next_pn,
        .rtt_latest_ns = f->rtt_ns,
        .rtt_smoothed_ns = f->rtt_ns,
        .rtt_min_ns = f->rtt_ns,
        .app_limited = f->app_limited,
    };
    f->cc.ops->on_ack(&f->cc, &a);
}

/* One round trip: the whole window as it is now, one ACK a packet, spread evenly. */
static void round_trip(struct flow *f) {
    uint64_t packets = f->cc.window / f->cc.mss, first = f->next_pn;
    f->next_pn += packets;
    for (uint64_t i = 0; i < packets; i++) {
        f->now += f->rtt_ns / packets;
        ack(f, first + i, f->cc.mss);
    }
}

static bool lose(struct flow *f, uint64_t sent_ago_ns) {
    return f->cc.ops->on_congestion(&f->cc, f->now, f->now - sent_ago_ns, false);
}

static double segments(const struct flow *f) {
    return (double)f->cc.window / f->cc.mss;
}

static void each(void (*run)(enum stoq_congestion_controller)) {
    for (int which = 0; which < STOQ_CC_COUNT; which++) {
        if (which == STOQ_CC_BBR)
            continue; /* Works otherwise: test_bbr.c. */
        check_note("controller %d", which);
        run((enum stoq_congestion_controller)which);
    }
}

/* ---- what both do ---- */

static void run_initial_window(enum stoq_congestion_controller which) {
    static const struct {
        uint32_t mss, packets;
        uint64_t window;
    } rows[] = {
        {1200, 10, 12000}, {1472, 10, 14720}, {1500, 10, 14720}, {9000, 10, 18000},
        {1200, 0, 12000},  {1200, 32, 38400}, {1452, 1, 2904},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct quic_cc cc;
        memset(&cc, 0xff, sizeof cc);
        quic_cc_init(&cc, which, rows[i].mss, rows[i].packets, NULL);
        CHECK_EQ(cc.window, rows[i].window);
        CHECK(cc.ssthresh == UINT64_MAX);
        CHECK_EQ(cc.recovery_start_ns, 0);
    }
}

static void run_slow_start_doubles(enum stoq_congestion_controller which) {
    struct flow f = make(which);
    for (int i = 0; i < 8; i++) {
        uint64_t before = f.cc.window;
        round_trip(&f);
        CHECK_EQ(f.cc.window, 2 * before);
    }
}

static void run_one_reduction_a_round(enum stoq_congestion_controller which) {
    struct flow f = make(which);
    for (int i = 0; i < 4; i++)
        round_trip(&f);
    uint64_t before = f.cc.window;
    CHECK(lose(&f, f.rtt_ns));
    uint64_t reduced = f.cc.window;
    CHECK_EQ(reduced, which == STOQ_CC_CUBIC ? before * 7 / 10 : before / 2);
    CHECK_EQ(f.cc.ssthresh, reduced);
    /* Later losses, and CE marks, of what was in flight then. */
    f.now += f.rtt_ns / 2;
    CHECK(!lose(&f, f.rtt_ns));
    CHECK(!f.cc.ops->on_congestion(&f.cc, f.now, f.cc.recovery_start_ns, true));
    CHECK_EQ(f.cc.window, reduced);
    /* Acknowledgements of what was sent before do not grow it. */
    ack(&f, f.next_pn++, 10 * MSS);
    CHECK_EQ(f.cc.window, reduced);
    /* What was sent after may reduce again. */
    f.now += f.rtt_ns;
    CHECK(lose(&f, f.rtt_ns - 1 * MS));
    CHECK(f.cc.window < reduced);
}

static void run_ecn_reduces(enum stoq_congestion_controller which) {
    struct flow a = make(which), b = make(which);
    for (int i = 0; i < 3; i++) {
        round_trip(&a);
        round_trip(&b);
    }
    CHECK(lose(&a, a.rtt_ns));
    CHECK(b.cc.ops->on_congestion(&b.cc, b.now, b.now - b.rtt_ns, true));
    CHECK_EQ(a.cc.window, b.cc.window);
}

/* A clock that starts at zero is no special case. */
static void run_time_zero(enum stoq_congestion_controller which) {
    struct quic_cc cc;
    quic_cc_init(&cc, which, MSS, 10, NULL);
    CHECK(cc.ops->on_congestion(&cc, 0, 0, false));
    uint64_t reduced = cc.window;
    CHECK(reduced < 12000);
    CHECK(!cc.ops->on_congestion(&cc, 0, 0, false));
    CHECK_EQ(cc.window, reduced);
}

static void run_minimum_window(enum stoq_congestion_controller which) {
    struct flow f = make(which);
    for (int i = 0; i < 30; i++) {
        f.now += 2 * f.rtt_ns;
        CHECK(lose(&f, f.rtt_ns / 2));
        CHECK(f.cc.window >= 2 * MSS);
        CHECK(f.cc.ssthresh >= 2 * MSS);
    }
    CHECK_EQ(f.cc.window, 2 * MSS);
}

static void run_persistent_congestion(enum stoq_congestion_controller which) {
    struct flow f = make(which);
    for (int i = 0; i < 5; i++)
        round_trip(&f);
    CHECK(lose(&f, f.rtt_ns));
    uint64_t threshold = f.cc.ssthresh;
    f.cc.ops->on_persistent_congestion(&f.cc, f.now);
    CHECK_EQ(f.cc.window, 2 * MSS);
    CHECK_EQ(f.cc.ssthresh, threshold);
    /* Slow start again, at once: also on what was sent before. It ends at ssthresh, not past it. */
    ack(&f, f.next_pn++, MSS);
    CHECK_EQ(f.cc.window, 3 * MSS);
    f.cc.window = threshold - 100;
    ack(&f, f.next_pn++, MSS);
    CHECK(f.cc.window >= threshold && f.cc.window < threshold + MSS / 2);
}

static void run_app_limited(enum stoq_congestion_controller which) {
    struct flow f = make(which);
    f.app_limited = true;
    for (int i = 0; i < 5; i++)
        round_trip(&f);
    CHECK_EQ(f.cc.window, 12000);
    f.app_limited = false;
    round_trip(&f);
    CHECK(lose(&f, f.rtt_ns));
    f.now += f.rtt_ns + 1 * MS;
    uint64_t reduced = f.cc.window;
    f.app_limited = true;
    for (int i = 0; i < 100; i++)
        round_trip(&f);
    CHECK_EQ(f.cc.window, reduced);
}

static void run_set_mss(enum stoq_congestion_controller which) {
    struct flow f = make(which);
    quic_cc_set_mss(&f.cc, 1452);
    CHECK_EQ(f.cc.mss, 1452);
    CHECK_EQ(f.cc.window, 12000); /* Bytes in flight are not more for that. */
    quic_cc_set_mss(&f.cc, 9000);
    CHECK_EQ(f.cc.window, 18000);
    round_trip(&f);
    CHECK_EQ(f.cc.window, 36000);
}

static void initial_window(void) {
    each(run_initial_window);
}
static void slow_start_doubles(void) {
    each(run_slow_start_doubles);
}
static void one_reduction_a_round(void) {
    each(run_one_reduction_a_round);
}
static void ecn_reduces(void) {
    each(run_ecn_reduces);
}
static void time_zero(void) {
    each(run_time_zero);
}
static void minimum_window(void) {
    each(run_minimum_window);
}
static void persistent_congestion(void) {
    each(run_persistent_congestion);
}
static void app_limited(void) {
    each(run_app_limited);
}
static void set_mss(void) {
    each(run_set_mss);
}

/* ---- NewReno ---- */

static void newreno_avoidance(void) {
    struct flow f = make(STOQ_CC_NEWRENO);
    for (int i = 0; i < 4; i++)
        round_trip(&f);
    CHECK(lose(&f, f.rtt_ns));
    f.now += f.rtt_ns + 1 * MS;
    double before = segments(&f);
    for (int i = 0; i < 20; i++)
        round_trip(&f);
    CHECK(fabs(segments(&f) - (before + 20)) <= 1); /* One datagram a round trip. */
    /* One ACK for many windows grows as many ACKs would. */
    struct flow g = f;
    uint64_t window = f.cc.window, grown = 0;
    for (int i = 0; i < 3; i++)
        grown += window + (uint64_t)i * MSS;
    ack(&g, g.next_pn, grown);
    CHECK_EQ(g.cc.window, window + 3 * MSS);
}

/* ---- CUBIC ---- */

/* A flow with 50 ms to go round that lost at `w_max` segments and is out of recovery. */
static struct flow after_loss(double w_max, uint64_t rtt_ns) {
    struct flow f = make(STOQ_CC_CUBIC);
    f.rtt_ns = rtt_ns;
    f.cc.window = (uint64_t)(w_max * MSS);
    REQUIRE(lose(&f, f.rtt_ns));
    f.now += f.rtt_ns + 1 * MS;
    return f;
}

static void cubic_curve(void) {
    /* W_max 1000, 50 ms: Reno would need 600 round trips, so this is CUBIC's own region. */
    const double w_max = 1000, c = 0.4;
    struct flow f = after_loss(w_max, 50 * MS);
    const double k = cbrt((w_max - segments(&f)) / c); /* 9.086 s */
    uint64_t epoch = f.now;
    double last = segments(&f);
    bool passed = false;
    for (int i = 0; i < 400; i++) {
        round_trip(&f);
        double t = (double)(f.now - epoch) / 1e9, rtt = (double)f.rtt_ns / 1e9;
        double w = segments(&f);
        CHECK(w >= last); /* Never shrinks without loss. */
        last = w;
        /* The window follows the curve: not past where it will be in a round trip, nor behind where it was
         * two before (it moves by the round, and the epoch began at the first ACK). */
        double ahead = c * pow(t + rtt - k, 3) + w_max, behind = c * pow(t - 2 * rtt - k, 3) + w_max;
        CHECK(w <= ahead + 1);
        CHECK(t < 2 * rtt || w >= behind - 1);
        if (fabs(t - k) < rtt / 2) {
            passed = true;
            CHECK(fabs(w - w_max) < 1); /* The plateau. */
        }
    }
    CHECK(passed);
    CHECK(fabs(f.cc.cubic.k_s - k) < 0.01);
    CHECK(last > 1200); /* Ten seconds on it is well convex. */
}

static void cubic_one_ack_a_round(void) {
    /* Trains are acknowledged with few ACKs: the curve must be the same. */
    struct flow many = after_loss(1000, 50 * MS), few = many;
    for (int i = 0; i < 150; i++) {
        round_trip(&many);
        few.now += few.rtt_ns;
        few.next_pn += 1000;
        ack(&few, few.next_pn - 1, few.cc.window);
    }
    CHECK(fabs(segments(&many) - segments(&few)) < 0.02 * segments(&many));
}

static void cubic_reno_friendly(void) {
    /* At 2 ms and 20 segments Reno is far faster than the curve (K = 2.47 s). */
    struct flow f = after_loss(20, 2 * MS);
    double begin = segments(&f); /* 14 */
    CHECK(fabs(begin - 14) < 0.01);
    for (int i = 0; i < 8; i++)
        round_trip(&f);
    CHECK(fabs(segments(&f) - (begin + 8 * 0.529)) < 0.5); /* alpha = 3 * 0.3 / 1.7 */
    while (segments(&f) < 20.01)                           /* Up to the window before the loss. */
        round_trip(&f);
    double there = segments(&f);
    for (int i = 0; i < 20; i++)
        round_trip(&f);
    CHECK(fabs(segments(&f) - (there + 20)) < 1.5); /* Then alpha is 1. */
}

static void cubic_fast_convergence(void) {
    struct flow f = after_loss(100, 50 * MS);
    CHECK(fabs(f.cc.cubic.w_max - 100) < 0.01);
    round_trip(&f);
    f.now += f.rtt_ns;
    double w = segments(&f);
    CHECK(w < 100);
    CHECK(lose(&f, 0)); /* Below W_max: room is given to others. */
    CHECK(fabs(f.cc.cubic.w_max - w * 0.85) < 0.01);
    CHECK(fabs(segments(&f) - w * 0.7) < 0.01);
    f.cc.window = 200 * MSS;
    f.now += 2 * f.rtt_ns;
    CHECK(lose(&f, 0)); /* Above it: remembered as it was. */
    CHECK(fabs(f.cc.cubic.w_max - 200) < 0.01);
}

static void cubic_growth_is_bounded(void) {
    /* However long ago the loss: not more than half a window in a round trip (section 4.2). */
    struct flow f = after_loss(1000, 50 * MS);
    round_trip(&f);
    for (int i = 0; i < 2000 && f.cc.window < UINT64_C(1) << 40; i++) {
        uint64_t before = f.cc.window;
        f.now += f.rtt_ns;
        f.next_pn += 10;
        ack(&f, f.next_pn - 1, f.cc.window);
        CHECK(f.cc.window <= before + before / 2);
    }
}

static void cubic_idle_stops_the_clock(void) {
    struct flow busy = after_loss(1000, 50 * MS);
    for (int i = 0; i < 40; i++)
        round_trip(&busy);
    struct flow idle = busy, limited = busy;
    /* One idles for an hour with nothing in flight; one sends a little all that time. */
    struct quic_cc_ack last = {.now = idle.now,
                               .bytes = MSS,
                               .bytes_in_flight = MSS,
                               .largest_acked_sent_ns = idle.now - idle.rtt_ns,
                               .rtt_smoothed_ns = idle.rtt_ns,
                               .app_limited = true};
    idle.cc.ops->on_ack(&idle.cc, &last);
    idle.now += 3600000 * MS;
    limited.app_limited = true;
    for (int i = 0; i < 3600; i++) {
        limited.now += 1000 * MS;
        ack(&limited, limited.next_pn++, MSS);
    }
    limited.app_limited = false;
    CHECK_EQ(idle.cc.window, busy.cc.window);
    CHECK_EQ(limited.cc.window, busy.cc.window);
    idle.now += idle.rtt_ns; /* Sending again begins here. */
    for (int i = 0; i < 20; i++) {
        round_trip(&busy);
        round_trip(&idle);
        round_trip(&limited);
    }
    CHECK(fabs(segments(&idle) - segments(&busy)) < 0.02 * segments(&busy));
    CHECK(fabs(segments(&limited) - segments(&busy)) < 0.02 * segments(&busy));
}

static void cubic_after_persistent_congestion(void) {
    struct flow f = after_loss(1000, 50 * MS);
    f.cc.ops->on_persistent_congestion(&f.cc, f.now);
    for (int i = 0; i < 20 && f.cc.window < f.cc.ssthresh; i++)
        round_trip(&f);
    double at = segments(&f); /* 700 and what the last round added. */
    round_trip(&f);
    /* Section 4.8: K = 0 and W_max is this window, not the old 1000. */
    CHECK(f.cc.cubic.k_s == 0);
    CHECK(fabs(f.cc.cubic.w_max - 700) < 5);
    CHECK(segments(&f) < at * 1.1);
}

static void cubic_mss_change(void) {
    struct flow a = after_loss(1000, 50 * MS);
    for (int i = 0; i < 20; i++)
        round_trip(&a);
    struct flow b = a;
    quic_cc_set_mss(&b.cc, 1400);
    CHECK_EQ(a.cc.window, b.cc.window);
    for (int i = 0; i < 200; i++)
        round_trip(&b);
    /* W_max is the same in bytes: at the plateau the window is too. */
    CHECK(b.cc.window > 0.95 * 1000 * MSS && b.cc.window < 1.1 * 1000 * MSS);
    CHECK(fabs(b.cc.cubic.w_max * 1400 - 1000 * MSS) < MSS);
}

/* ---- HyStart++ ---- */

static struct flow in_slow_start(int rounds) {
    struct flow f = make(STOQ_CC_NEWRENO);
    for (int i = 0; i < rounds; i++)
        round_trip(&f);
    return f;
}

static void hystart_exit(void) {
    struct flow f = in_slow_start(3);
    CHECK(!f.cc.hystart.css);
    f.rtt_ns += 7 * MS; /* RttThresh is 50 / 8 = 6.25 ms. */
    uint64_t before = f.cc.window;
    round_trip(&f);
    CHECK(f.cc.hystart.css);
    CHECK(f.cc.window < 2 * before); /* It grew slower from the eighth sample on. */
    CHECK(f.cc.ssthresh == UINT64_MAX);
    /* This round was one of five; the delay stays up. The fifth ends with the first ACK of the sixth. */
    for (int i = 0; i < 4; i++) {
        CHECK(f.cc.ssthresh == UINT64_MAX);
        before = f.cc.window;
        round_trip(&f);
        CHECK(f.cc.window <= before + before / 4 + MSS);
        CHECK(f.cc.window >= before + before / 4 - MSS);
    }
    before = f.cc.window;
    round_trip(&f); /* Congestion avoidance. */
    CHECK(f.cc.ssthresh >= before && f.cc.ssthresh < before + MSS);
    CHECK(f.cc.window <= before + 2 * MSS);
}

static void hystart_jitter(void) {
    struct flow f = in_slow_start(3);
    f.rtt_ns += 10 * MS;
    round_trip(&f);
    CHECK(f.cc.hystart.css);
    f.rtt_ns -= 5 * MS; /* Down again: below the baseline. */
    round_trip(&f);
    CHECK(!f.cc.hystart.css);
    CHECK(f.cc.ssthresh == UINT64_MAX);
    uint64_t before = f.cc.window;
    round_trip(&f);
    CHECK_EQ(f.cc.window, 2 * before); /* Standard slow start. */
}

static void hystart_thresholds(void) {
    static const struct {
        uint64_t rtt_ms, rise_us;
        bool css;
    } rows[] = {
        {8, 3900, false},    {8, 4000, true},    /* Not under 4 ms, */
        {80, 9900, false},   {80, 10000, true},  /* an eighth, */
        {400, 15900, false}, {400, 16000, true}, /* not over 16 ms. */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        check_note("row %zu", i);
        struct flow f = make(STOQ_CC_NEWRENO);
        f.now += 1000 * MS;
        f.rtt_ns = rows[i].rtt_ms * MS;
        round_trip(&f);
        round_trip(&f);
        f.rtt_ns += rows[i].rise_us * 1000;
        round_trip(&f);
        CHECK_EQ(f.cc.hystart.css, rows[i].css);
    }
}

static void hystart_needs_samples(void) {
    struct flow f = in_slow_start(2);
    f.rtt_ns *= 2;
    uint64_t first = f.next_pn;
    f.next_pn += f.cc.window / MSS;
    for (uint64_t i = 0; i < 7; i++) {
        f.now += 1 * MS;
        ack(&f, first + i, MSS);
    }
    CHECK(!f.cc.hystart.css); /* Seven samples are not enough. */
    struct quic_cc_ack silent = {
        .now = f.now, .bytes = MSS, .largest_acked_pn = first + 7, .next_pn = f.next_pn};
    silent.largest_acked_sent_ns = f.now - 1 * MS;
    for (int i = 0; i < 5; i++)
        f.cc.ops->on_ack(&f.cc, &silent); /* Nor are ACKs without one. */
    CHECK(!f.cc.hystart.css);
    ack(&f, first + 8, MSS);
    CHECK(f.cc.hystart.css);
}

static void hystart_once(void) {
    struct flow f = in_slow_start(3);
    CHECK(lose(&f, f.rtt_ns));
    f.cc.ops->on_persistent_congestion(&f.cc, f.now);
    uint64_t threshold = f.cc.ssthresh;
    f.rtt_ns = 50 * MS;
    for (int i = 0; i < 20 && f.cc.window < threshold; i++) {
        f.rtt_ns += 20 * MS; /* Not HyStart++'s business any more: ssthresh is known. */
        round_trip(&f);
        CHECK(!f.cc.hystart.css);
    }
    CHECK_EQ(f.cc.ssthresh, threshold);
}

static void hystart_cubic_without_loss(void) {
    struct flow f = make(STOQ_CC_CUBIC);
    for (int i = 0; i < 5; i++)
        round_trip(&f);
    f.rtt_ns += 10 * MS;
    for (int i = 0; i < 20 && f.cc.ssthresh == UINT64_MAX; i++)
        round_trip(&f);
    REQUIRE(f.cc.ssthresh != UINT64_MAX);
    uint64_t at = f.cc.ssthresh;
    round_trip(&f);
    /* RFC 9438 section 4.10: W_max is where slow start ended, K is 0. */
    CHECK(f.cc.cubic.k_s == 0);
    CHECK(fabs(f.cc.cubic.w_max * MSS - (double)at) < MSS);
    CHECK(f.cc.window > at && f.cc.window < at + at / 20);
}

static const struct check_case cases[] = {
    {"initial_window", initial_window},
    {"slow_start_doubles", slow_start_doubles},
    {"one_reduction_a_round", one_reduction_a_round},
    {"ecn_reduces", ecn_reduces},
    {"time_zero", time_zero},
    {"minimum_window", minimum_window},
    {"persistent_congestion", persistent_congestion},
    {"app_limited", app_limited},
    {"set_mss", set_mss},
    {"newreno_avoidance", newreno_avoidance},
    {"cubic_curve", cubic_curve},
    {"cubic_one_ack_a_round", cubic_one_ack_a_round},
    {"cubic_reno_friendly", cubic_reno_friendly},
    {"cubic_fast_convergence", cubic_fast_convergence},
    {"cubic_growth_is_bounded", cubic_growth_is_bounded},
    {"cubic_idle_stops_the_clock", cubic_idle_stops_the_clock},
    {"cubic_after_persistent_congestion", cubic_after_persistent_congestion},
    {"cubic_mss_change", cubic_mss_change},
    {"hystart_exit", hystart_exit},
    {"hystart_jitter", hystart_jitter},
    {"hystart_thresholds", hystart_thresholds},
    {"hystart_needs_samples", hystart_needs_samples},
    {"hystart_once", hystart_once},
    {"hystart_cubic_without_loss", hystart_cubic_without_loss},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
