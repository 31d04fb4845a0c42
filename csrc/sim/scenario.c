/* Draws scenarios: see scenario.h. Most are small, so that many run in a second; each kind of trouble has its
 * share. */
#include "scenario.h"

#include <string.h>

#include "../io/prng.h"
#include "../tables.h"
#include "sim.h"

#define US 1000ull
#define MS (1000 * US)
#define S  (1000 * MS)

/* Loss in ppm above which a run of losses may outlast any timeout: not the engine's fault. */
#define NO_LOSS_TO_SPEAK_OF 100000
#define STREAM_KINDS        4
/* A client that moves says something this often, as a keep-alive would. */
#define HEARTBEAT_NS (300 * MS)

static uint64_t pick(struct prng *p, const uint64_t *values, size_t n) {
    return values[prng_below(p, n)];
}

/* Between lo and hi, each order of magnitude as likely as the next. */
static uint64_t spread(struct prng *p, uint64_t lo, uint64_t hi) {
    uint64_t top = hi;
    while (top / 4 > lo && prng_below(p, 2))
        top /= 4;
    return prng_range(p, lo, top);
}

static bool one_in(struct prng *p, uint64_t n) {
    return prng_below(p, n) == 0;
}

/* ---- the wire ---- */

enum weather { PERFECT, LAN, WAN, SHAKEN, BAD, AWFUL, WEATHER_COUNT };

static void draw_rate(struct prng *p, struct stoq_impairment *w, uint64_t lo_bps, uint64_t hi_bps) {
    w->rate_bps = spread(p, lo_bps, hi_bps);
    /* A bottleneck's queue: a few packets, or up to 100 ms. */
    uint64_t full = w->rate_bps / 8 / 10;
    w->queue_bytes = prng_range(p, 6000, full > 20000 ? full : 20000);
    if (one_in(p, 3))
        w->ce_above_bytes = w->queue_bytes / 3;
    if (one_in(p, 8))
        w->queue_bytes = 0;
}

static void draw_link(struct prng *p, enum weather weather, struct stoq_impairment *w) {
    memset(w, 0, sizeof *w);
    switch (weather) {
    case PERFECT:
        w->delay_ns = one_in(p, 2) ? 0 : spread(p, 1 * US, 50 * MS);
        break;
    case LAN:
        w->delay_ns = prng_range(p, 20 * US, 1 * MS);
        w->jitter_ns = prng_below(p, 100 * US);
        draw_rate(p, w, 1000000000, 10000000000);
        break;
    case WAN:
        w->delay_ns = prng_range(p, 2 * MS, 100 * MS);
        w->jitter_ns = prng_below(p, w->delay_ns / 4);
        w->loss_ppm = one_in(p, 2) ? 0 : (uint32_t)prng_below(p, 20000);
        w->reorder_ppm = one_in(p, 2) ? 0 : (uint32_t)prng_below(p, 10000);
        w->reorder_ns = prng_below(p, 10 * MS);
        draw_rate(p, w, 5000000, 1000000000);
        break;
    case SHAKEN: /* Nothing is lost, all else happens. */
        w->delay_ns = prng_range(p, 100 * US, 50 * MS);
        w->jitter_ns = prng_below(p, 20 * MS);
        w->duplicate_ppm = (uint32_t)prng_below(p, 300000);
        w->reorder_ppm = (uint32_t)prng_below(p, 400000);
        w->reorder_ns = prng_below(p, 40 * MS);
        break;
    case AWFUL:
        w->rate_bps = one_in(p, 2) ? spread(p, 1000000, 50000000) : 0;
        w->queue_bytes = w->rate_bps ? prng_range(p, 6000, 60000) : 0;
        w->loss_ppm = (uint32_t)prng_range(p, 50000, 250000);
        w->corrupt_ppm = (uint32_t)prng_below(p, 50000);
        w->duplicate_ppm = (uint32_t)prng_below(p, 100000);
        w->reorder_ppm = (uint32_t)prng_below(p, 200000);
        w->reorder_ns = prng_below(p, 300 * MS);
        w->delay_ns = prng_range(p, 1 * MS, 400 * MS);
        w->jitter_ns = prng_below(p, 100 * MS);
        break;
    default:
        w->loss_ppm = (uint32_t)prng_below(p, 80000);
        w->corrupt_ppm = one_in(p, 2) ? 0 : (uint32_t)prng_below(p, 30000);
        w->duplicate_ppm = one_in(p, 2) ? 0 : (uint32_t)prng_below(p, 50000);
        w->reorder_ppm = one_in(p, 2) ? 0 : (uint32_t)prng_below(p, 100000);
        w->reorder_ns = prng_below(p, 50 * MS);
        w->delay_ns = prng_range(p, 500 * US, 150 * MS);
        w->jitter_ns = prng_below(p, 30 * MS);
        if (one_in(p, 2))
            draw_rate(p, w, 1000000, 100000000);
        break;
    }
    static const uint64_t mtus[] = {0, 0, 1500, 1500, 1280, 1400, 4000, 9000};
    w->mtu = (uint32_t)pick(p, mtus, 8);
}

static bool link_lossless(const struct stoq_impairment *w) {
    return !w->loss_ppm && !w->corrupt_ppm && !w->queue_bytes;
}

static struct plan_step *add_step(struct scenario *s, uint64_t at_ns, enum plan_step_kind kind) {
    if (s->step_count == SCENARIO_MAX_STEPS)
        return &s->steps[SCENARIO_MAX_STEPS - 1];
    struct plan_step *step = &s->steps[s->step_count++];
    *step = (struct plan_step){.at_ns = at_ns, .kind = kind, .links = {s->links[0], s->links[1]}};
    return step;
}

static void draw_blackout(struct scenario *s, struct prng *p, uint64_t idle_ns) {
    uint64_t at = spread(p, 1 * MS, 5 * S);
    bool longer = one_in(p, 3);
    /* After a blackout of t the next probe may be another 2t away (RFC 9002 section 6.2.1 doubles the
     * timeout). */
    uint64_t length = longer ? idle_ns + prng_below(p, idle_ns) : spread(p, 10 * MS, idle_ns / 8);
    struct plan_step *dark = add_step(s, at, STEP_IMPAIR);
    unsigned ways = (unsigned)prng_range(p, 1, 3); /* One way, the other, both. */
    for (unsigned i = 0; i < 2; i++)
        if (ways >> i & 1)
            dark->links[i].loss_ppm = 1000000;
    add_step(s, at + length, STEP_IMPAIR);
    s->lossless = false;
    s->may_time_out |= longer;
}

static void draw_moves(struct scenario *s, struct prng *p) {
    static const uint64_t forget[] = {0, 50 * MS, 10 * S};
    s->forget_ns = pick(p, forget, 3);
    s->moves = true;
    s->lossless = false;
    uint64_t at = 0;
    for (uint64_t n = prng_range(p, 1, 3); n; n--) {
        at += spread(p, 50 * MS, 4 * S);
        add_step(s, at, (enum plan_step_kind)prng_range(p, STEP_NAT_PORT, STEP_REBIND));
    }
}

/* ---- configuration ---- */

static void draw_config(struct prng *p, struct stoq_config *c, bool server, bool slow_wire) {
    static const uint64_t datagrams[] = {0, 0, 1200, 1300, 1452, 4000, 8952, 65527};
    static const uint64_t frames[] = {0, 1200, 1200, 65535};
    static const uint64_t windows[] = {0, 0, 0, 2, 3, 40};
    static const uint64_t data[] = {0, 0, 0, 20000, 100000, 1000000, 10000000};
    static const uint64_t ack_delays[] = {0, 0, 1 * MS, 5 * MS, 100 * MS};
    static const uint64_t updates[] = {0, 0, 0, 20, 50, 500};
    memset(c, 0, sizeof *c);
    c->server = server;
    c->congestion = (uint8_t)prng_below(p, STOQ_CC_COUNT);
    c->no_pacing = one_in(p, 5);
    c->no_ecn = one_in(p, 5);
    c->no_gso = one_in(p, 6);
    c->no_gro = one_in(p, 6);
    c->retry_always = one_in(p, 5);
    c->max_datagram = (uint16_t)pick(p, datagrams, 8);
    c->max_datagram_frame = (uint16_t)pick(p, frames, 4);
    c->initial_window_packets = (uint32_t)pick(p, windows, 6);
    c->idle_timeout_ns = slow_wire ? 60 * S : prng_range(p, 8 * S, 40 * S);
    c->handshake_timeout_ns = slow_wire ? 60 * S : prng_range(p, 10 * S, 20 * S);
    c->max_data = pick(p, data, 7);
    c->max_stream_data = pick(p, data, 7);
    if (one_in(p, 3)) { /* Windows that never grow. */
        c->max_data_limit = c->max_data ? c->max_data : 1 << 20;
        c->max_stream_data_limit = c->max_stream_data ? c->max_stream_data : 1 << 18;
    }
    c->max_streams_bidi = one_in(p, 3) ? prng_range(p, 1, 5) : 0;
    c->max_streams_uni = one_in(p, 3) ? prng_range(p, 1, 5) : 0;
    c->max_ack_delay_ns = pick(p, ack_delays, 5);
    c->key_update_packets = pick(p, updates, 6);
    c->no_ack_frequency = one_in(p, 4);
    c->max_connections = 64;
    /* Address space, not memory: pages are made when first used. Enough for every window above. */
    c->metadata_bytes = 16 << 20;
    c->receive_bytes = 64 << 20;
    c->send_bytes = 16 << 20;
}

/* ---- workload ---- */

static void draw_flow(struct prng *p, struct plan_flow *f, uint32_t limit, bool rough) {
    uint64_t kind = prng_below(p, 100);
    uint64_t most = kind < 8 ? 0 : kind < 70 ? 2000 : kind < 92 ? 10000 : kind < 99 ? 100000 : 2000000;
    f->bytes = (uint32_t)prng_below(p, (most < limit ? most : limit) + 1);
    f->chunk = (uint32_t)spread(p, 1 + f->bytes / 200, 65536);
    f->window = (uint32_t)spread(p, 8192, 4 << 20);
    f->fin_alone = one_in(p, 4);
    f->reset_at = rough && one_in(p, 6) ? (uint32_t)prng_below(p, f->bytes + 1) : SCENARIO_NEVER;
    f->stop_at = rough && one_in(p, 6) ? (uint32_t)prng_below(p, f->bytes + 1) : SCENARIO_NEVER;
    f->read_delay_ns = one_in(p, 6) ? spread(p, 1 * MS, 1 * S) : 0;
    f->pace_ns = one_in(p, 12) ? spread(p, 100 * US, 100 * MS) / (1 + f->bytes / f->chunk / 20) : 0;
}

/* What keeps a moving client audible: the first client stream of its kind, small pieces until after the last
 * move. */
static void draw_heartbeat(const struct scenario *s, struct plan_stream *t) {
    uint64_t until = s->steps[s->step_count - 1].at_ns + 8 * S;
    t->initiator = SIM_CLIENT;
    t->uni = true;
    t->flows[0] = (struct plan_flow){.bytes = (uint32_t)(until / HEARTBEAT_NS),
                                     .chunk = 1,
                                     .window = 4096,
                                     .reset_at = SCENARIO_NEVER,
                                     .stop_at = SCENARIO_NEVER,
                                     .pace_ns = HEARTBEAT_NS};
}

static void draw_streams(struct scenario *s, struct prng *p, struct plan_connection *c, uint32_t limit) {
    uint64_t opened[2][2] = {{0}};
    bool rough = one_in(p, 2);
    c->stream_count = (uint32_t)spread(p, one_in(p, 12) ? 0 : 1, SCENARIO_MAX_STREAMS);
    if (s->moves && !c->stream_count)
        c->stream_count = 1;
    for (uint32_t i = 0; i < c->stream_count; i++) {
        struct plan_stream *t = &c->streams[i];
        memset(t, 0, sizeof *t);
        if (i == 0 && s->moves) {
            draw_heartbeat(s, t);
        } else {
            uint64_t kind = prng_below(p, STREAM_KINDS);
            t->initiator = kind & 1;
            t->uni = kind >> 1;
            t->answer_late = one_in(p, 2);
            t->start_ns = one_in(p, 3) ? spread(p, 1, 3 * S) : 0;
            draw_flow(p, &t->flows[0], limit, rough);
            if (!t->uni)
                draw_flow(p, &t->flows[1], limit, rough);
        }
        t->id = opened[t->initiator][t->uni]++ << 2 | (uint64_t)t->uni << 1 | t->initiator;
        s->bytes += t->flows[0].bytes + (t->uni ? 0 : t->flows[1].bytes);
        limit -=
            t->flows[0].bytes / 2 < limit ? t->flows[0].bytes / 2 : limit; /* Large ones crowd others out. */
    }
}

static void draw_connection(struct scenario *s, struct prng *p, struct plan_connection *c, uint32_t limit) {
    static const uint8_t endings[] = {END_DONE, END_DONE, END_DONE,  END_DONE,  END_DONE, END_DONE,
                                      END_DONE, END_BOTH, END_EARLY, END_EARLY, END_IDLE, END_DETACH};
    memset(c, 0, offsetof(struct plan_connection, streams));
    c->seed = prng_next(p);
    c->ending = (enum plan_ending)endings[prng_below(p, sizeof endings)];
    if (one_in(p, 40))
        c->ending = END_REFUSED;
    c->reserved_version = one_in(p, 30);
    c->ender = (uint8_t)prng_below(p, 2);
    c->alert = 42; /* bad_certificate, RFC 8446 section 6. */
    c->close_ns = spread(p, 0, 6 * S);
    c->code = one_in(p, 3) ? prng_below(p, 1ull << 62) : prng_below(p, 300);
    c->reason_len = one_in(p, 2) ? 0 : (uint32_t)spread(p, 1, 250);
    draw_streams(s, p, c, limit);
    for (unsigned end = 0; end < 2; end++) {
        c->datagrams[end] = one_in(p, 3) ? (uint32_t)spread(p, 1, 100) : 0;
        c->updates[end] = one_in(p, 3) ? (uint32_t)prng_range(p, 1, SCENARIO_MAX_UPDATES) : 0;
        for (uint32_t i = 0; i < c->updates[end]; i++)
            c->update_ns[end][i] = spread(p, 0, 4 * S);
    }
    c->datagram_bytes = (uint32_t)spread(p, 8, 1150);
    c->datagram_pace_ns = one_in(p, 2) ? 0 : spread(p, 10 * US, 20 * MS);
}

/* ---- bound ---- */

/* Windows that all bytes of a flow fit through, one round trip each, at the worst. */
static uint64_t rounds(const struct scenario *s, const struct plan_flow *f, uint32_t receiver) {
    const struct stoq_config *c = &s->config[receiver];
    uint64_t window = c->max_stream_data ? c->max_stream_data : 1 << 18;
    uint64_t shared = c->max_data ? c->max_data : 1 << 20;
    if (shared < window)
        window = shared;
    if (f->window < window)
        window = f->window;
    return f->bytes / window + 2;
}

/* Virtual time after which a run that goes on has hung. Generous: a hang goes on for ever, so a few times too
 * long costs nothing, and a run that is merely slow is no failure. */
static void draw_bound(struct scenario *s) {
    const struct stoq_impairment *w = s->links;
    uint64_t rtt = w[0].delay_ns + w[0].jitter_ns + w[0].reorder_ns + w[1].delay_ns + w[1].jitter_ns +
                   w[1].reorder_ns + s->config[0].max_ack_delay_ns + s->config[1].max_ack_delay_ns + 50 * MS;
    uint64_t loss = (w[0].loss_ppm + w[1].loss_ppm + w[0].corrupt_ppm + w[1].corrupt_ppm) / 10000;
    uint64_t bound = 60 * S, worst_idle = 0, work = 0;
    for (unsigned i = 0; i < 2; i++) {
        uint64_t idle = s->config[i].idle_timeout_ns + s->config[i].handshake_timeout_ns;
        worst_idle = idle > worst_idle ? idle : worst_idle;
        if (w[i].rate_bps)
            work += s->bytes * 8 * 20 / (w[i].rate_bps / 1000) * MS;
        if (loss || w[i].queue_bytes) /* Two packets a round trip, probes between. */
            work += (s->bytes / 2400 + 100) * rtt;
    }
    for (uint32_t i = 0; i < s->connection_count; i++) {
        const struct plan_connection *c = &s->connections[i];
        bound += c->start_ns + c->close_ns;
        for (unsigned end = 0; end < 2; end++)
            bound += c->datagrams[end] * c->datagram_pace_ns;
        for (uint32_t j = 0; j < c->stream_count; j++) {
            const struct plan_stream *t = &c->streams[j];
            for (unsigned k = 0; k < 2 - (unsigned)t->uni; k++) {
                const struct plan_flow *f = &t->flows[k];
                work += rounds(s, f, k ? t->initiator : !t->initiator) * (rtt + 2 * f->read_delay_ns);
                bound += f->pace_ns * (f->bytes / f->chunk + 1) + t->start_ns;
            }
        }
    }
    for (uint32_t i = 0; i < s->step_count; i++)
        bound += s->steps[i].at_ns;
    s->bound_ns = bound + 4 * worst_idle + work * (2 + loss);
}

void scenario_draw(struct scenario *s, uint64_t seed) {
    struct prng prng, *p = &prng;
    prng_seed(p, prng_mix(seed));
    memset(s, 0, offsetof(struct scenario, connections));
    s->seed = seed;
    enum weather weather = (enum weather)prng_below(p, WEATHER_COUNT);
    draw_link(p, weather, &s->links[0]);
    draw_link(p, one_in(p, 4) ? (enum weather)prng_below(p, WEATHER_COUNT) : weather, &s->links[1]);
    bool slow_wire = false;
    s->lossless = true;
    for (unsigned i = 0; i < 2; i++) {
        const struct stoq_impairment *w = &s->links[i];
        s->lossless &= link_lossless(w);
        s->may_time_out |= w->loss_ppm + w->corrupt_ppm > NO_LOSS_TO_SPEAK_OF;
        slow_wire |= w->loss_ppm > 20000 || w->delay_ns > 100 * MS || (w->rate_bps && w->rate_bps < 5000000);
    }
    draw_config(p, &s->config[SIM_CLIENT], false, slow_wire);
    draw_config(p, &s->config[SIM_SERVER], true, slow_wire);
    if (one_in(p, 4))
        s->moderation_ns = spread(p, 10 * US, 500 * US);
    /* The usual two sizes of a frame, and the least that holds what every path carries. */
    static const uint64_t frame_bytes[] = {0, 0, 0, 2048, 4096, 1216};
    for (unsigned i = 0; i < 2; i++)
        s->frame_bytes[i] = (uint32_t)pick(p, frame_bytes, 6);
    uint64_t idle = s->config[0].idle_timeout_ns < s->config[1].idle_timeout_ns
                        ? s->config[0].idle_timeout_ns
                        : s->config[1].idle_timeout_ns;
    uint64_t event = prng_below(p, 20);
    if (event < 2)
        draw_blackout(s, p, idle);
    else if (event < 5)
        draw_moves(s, p);
    else if (event == 5) { /* The path's MTU shrinks for good. */
        struct plan_step *step = add_step(s, spread(p, 1 * MS, 3 * S), STEP_IMPAIR);
        step->links[0].mtu = step->links[1].mtu = 1280;
    }
    s->connection_count = one_in(p, 4) ? (uint32_t)prng_range(p, 2, SCENARIO_MAX_CONNECTIONS) : 1;
    uint32_t limit = (weather == AWFUL ? 60000 : weather == BAD ? 300000 : 2000000) / s->connection_count;
    for (uint32_t i = 0; i < s->connection_count; i++) {
        draw_connection(s, p, &s->connections[i], limit);
        s->connections[i].start_ns = i ? spread(p, 0, 2 * S) : 0;
    }
    if (event == 5)
        s->lossless = false;
    draw_bound(s);
}

static void print_link(const char *name, const struct stoq_impairment *w, FILE *out) {
    fprintf(out,
            "  %s: loss %u dup %u corrupt %u reorder %u ppm, delay %.3f jitter %.3f reorder %.3f ms, "
            "rate %.1f Mbit/s queue %llu ce %llu mtu %u\n",
            name, w->loss_ppm, w->duplicate_ppm, w->corrupt_ppm, w->reorder_ppm, (double)w->delay_ns / 1e6,
            (double)w->jitter_ns / 1e6, (double)w->reorder_ns / 1e6, (double)w->rate_bps / 1e6,
            (unsigned long long)w->queue_bytes, (unsigned long long)w->ce_above_bytes, w->mtu);
}

void scenario_print(const struct scenario *s, FILE *out) {
    static const char *const endings[END_COUNT] = {"done", "both", "early", "idle", "detach", "refused"};
    static const char *const kinds[] = {"impair", "nat port", "nat address", "rebind"};
    fprintf(out, "seed %llu: %u connections, %llu bytes, bound %.1f s%s%s\n", (unsigned long long)s->seed,
            s->connection_count, (unsigned long long)s->bytes, (double)s->bound_ns / 1e9,
            s->lossless ? ", lossless" : "", s->may_time_out ? ", may time out" : "");
    print_link("up  ", &s->links[0], out);
    print_link("down", &s->links[1], out);
    for (unsigned i = 0; i < 2; i++) {
        const struct stoq_config *c = &s->config[i];
        fprintf(out,
                "  %s: frames %u cc %u%s%s%s%s%s%s iw %u max_datagram %u frame %u idle %.1f s data %llu/%llu "
                "stream "
                "%llu/%llu "
                "streams %llu/%llu ack_delay %.1f ms update %llu\n",
                i ? "server" : "client", s->frame_bytes[i], c->congestion, c->no_pacing ? " no_pacing" : "",
                c->no_ecn ? " no_ecn" : "", c->no_ack_frequency ? " no_ack_frequency" : "",
                c->no_gso ? " no_gso" : "", c->no_gro ? " no_gro" : "", i && c->retry_always ? " retry" : "",
                c->initial_window_packets, c->max_datagram, c->max_datagram_frame,
                (double)c->idle_timeout_ns / 1e9, (unsigned long long)c->max_data,
                (unsigned long long)c->max_data_limit, (unsigned long long)c->max_stream_data,
                (unsigned long long)c->max_stream_data_limit, (unsigned long long)c->max_streams_bidi,
                (unsigned long long)c->max_streams_uni, (double)c->max_ack_delay_ns / 1e6,
                (unsigned long long)c->key_update_packets);
    }
    for (uint32_t i = 0; i < s->step_count; i++) {
        fprintf(out, "  step at %.3f s: %s\n", (double)s->steps[i].at_ns / 1e9, kinds[s->steps[i].kind]);
        if (s->steps[i].kind == STEP_IMPAIR)
            for (unsigned k = 0; k < 2; k++)
                print_link(k ? "  down" : "  up  ", &s->steps[i].links[k], out);
    }
    for (uint32_t i = 0; i < s->connection_count; i++) {
        const struct plan_connection *c = &s->connections[i];
        fprintf(out,
                "  connection %u: start %.3f s, %u streams, ends %s by %s at %.3f s, datagrams %u/%u%s\n", i,
                (double)c->start_ns / 1e9, c->stream_count, endings[c->ending],
                c->ender ? "server" : "client", (double)c->close_ns / 1e9, c->datagrams[0], c->datagrams[1],
                c->reserved_version ? ", reserved version" : "");
    }
}
