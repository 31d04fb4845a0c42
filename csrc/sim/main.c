/* sim: thousands of whole connections between two real workers, over a wire that misbehaves, on a virtual
 * clock.
 *
 *   sim [--count N] [--seed S | --first-seed A] [--verbose] [--json] [--trace] [--twice]
 *
 * Each seed is a scenario of its own (scenario.h). --seed plays one; --trace shows every datagram, command
 * and event of it.
 * --twice plays each seed a second time and compares: a scenario must run alike each time. A failure prints
 * its seed and how to play it again; the exit code is then 1. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "run.h"

#define DEFAULT_COUNT  1000
#define TWICE_EVERY    16 /* Without --twice, one seed in so many is played twice all the same. */
#define SHOWN_FAILURES 20 /* After that they are only counted. */

struct options {
    uint64_t count, first;
    bool verbose, json, trace, twice;
};

static const char *const fate_keys[WIRE_FATE_COUNT] = {
    "sent",      "too_large", "queue_dropped", "lost",       "ce_marked",
    "corrupted", "reordered", "duplicated",    "unroutable", "delivered"};
static const char *const ending_keys[END_COUNT] = {"done", "both", "early", "idle", "detach", "refused"};

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool parse(int argc, char **argv, struct options *o) {
    *o = (struct options){.count = DEFAULT_COUNT, .first = 1};
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        bool number = !strcmp(a, "--count") || !strcmp(a, "--seed") || !strcmp(a, "--first-seed");
        if (number && value) {
            char *end;
            uint64_t n = strtoull(value, &end, 0);
            if (*end || end == value)
                return false;
            if (!strcmp(a, "--count"))
                o->count = n;
            else
                o->first = n;
            if (!strcmp(a, "--seed"))
                o->count = 1;
            i++;
        } else if (!strcmp(a, "--verbose")) {
            o->verbose = true;
        } else if (!strcmp(a, "--json")) {
            o->json = true;
        } else if (!strcmp(a, "--trace")) {
            o->trace = true;
        } else if (!strcmp(a, "--twice")) {
            o->twice = true;
        } else {
            return false;
        }
    }
    return true;
}

/* One row of a group: "name": value, or an aligned line; zeros are left out of the text. */
static void row(const struct options *o, const char *name, uint64_t value, bool *first) {
    if (o->json)
        printf("%s\"%s\": %" PRIu64, *first ? "" : ", ", name, value);
    else if (value)
        printf("  %-28s %" PRIu64 "\n", name, value);
    *first = false;
}

static void group(const struct options *o, const char *name, bool open) {
    if (o->json)
        printf(open ? ", \"%s\": {" : "}", name);
    else if (open)
        printf("%s:\n", name);
}

static void summary(const struct options *o, const struct totals *t, uint64_t failures, double took) {
    static const char *const counter_keys[] = {
#define X(name, key, text) #key,
        STOQ_COUNTERS(X)
#undef X
    };
    static const char *const drop_keys[] = {
#define X(name, value, text) #name,
        STOQ_DROP_REASONS(X)
#undef X
    };
    double virtual_s = (double)t->virtual_ns / 1e9;
    if (o->json)
        printf("{\"runs\": %" PRIu64 ", \"failures\": %" PRIu64 ", \"connections\": %" PRIu64
               ", \"seconds\": %.3f, \"virtual_seconds\": %.3f, \"stream_bytes\": %" PRIu64,
               t->runs, failures, t->connections, took, virtual_s, t->bytes);
    else
        printf("%" PRIu64 " runs, %" PRIu64 " failed; %" PRIu64
               " connections, %.0f a second; %.0f s of virtual time in "
               "%.1f s; %.1f MB checked\n",
               t->runs, failures, t->connections, (double)t->connections / took, virtual_s, took,
               (double)t->bytes / 1e6);
    bool first = true;
    group(o, "connections", true);
    for (int i = 0; i < END_COUNT; i++)
        row(o, ending_keys[i], t->endings[i], &first);
    row(o, "ends_connected", t->connected, &first);
    row(o, "ends_closed_by_peer", t->closed_by_peer, &first);
    row(o, "ends_timed_out", t->timed_out, &first);
    row(o, "stream_resets", t->resets, &first);
    row(o, "stream_stops", t->stops, &first);
    row(o, "datagram_frames", t->datagrams, &first);
    row(o, "path_events", t->rebinds, &first);
    row(o, "address_tokens", t->tokens, &first);
    row(o, "zero_rtt_taken", t->early_taken, &first);
    row(o, "zero_rtt_refused", t->early_refused, &first);
    row(o, "turns", t->turns, &first);
    group(o, "connections", false);
    first = true;
    group(o, "wire", true);
    for (int i = 0; i < WIRE_FATE_COUNT; i++)
        row(o, fate_keys[i], t->fates[i], &first);
    group(o, "wire", false);
    first = true;
    group(o, "counters", true);
    for (int i = 0; i < STOQ_COUNTER_COUNT; i++)
        row(o, counter_keys[i], t->counters[i], &first);
    group(o, "counters", false);
    first = true;
    group(o, "drops", true);
    for (int i = 0; i < STOQ_DROP_COUNT; i++)
        row(o, drop_keys[i], t->drops[i], &first);
    group(o, "drops", false);
    if (o->json)
        printf("}\n");
}

/* Play one seed, sometimes twice. False on failure, which is printed. */
static bool play_seed(const struct options *o, struct run *run, struct totals *totals, uint64_t seed,
                      bool show) {
    FILE *out = o->json ? stderr : stdout;
    uint64_t turns = totals->turns;
    scenario_draw(&run->scenario, seed);
    if (o->verbose)
        scenario_print(&run->scenario, out);
    bool ok = run_scenario(run, totals, o->trace);
    uint64_t hash = run->hash;
    if (ok && (o->twice || seed % TWICE_EVERY == 0)) {
        static struct totals again; /* Not counted. */
        ok = run_scenario(run, &again, false);
        if (ok && run->hash != hash)
            ok = run_fail(run, "runs differ: %016" PRIx64 " and %016" PRIx64, hash, run->hash);
    }
    if (o->verbose || o->trace)
        fprintf(out, "seed %" PRIu64 ": hash %016" PRIx64 ", %" PRIu64 " turns %s\n", seed, hash,
                totals->turns - turns, ok ? "ok" : "FAILED");
    if (!ok && show)
        fprintf(out, "seed %" PRIu64 ": %s\nreplay: build/sim --seed %" PRIu64 " --trace\n", seed, run->why,
                seed);
    fflush(out);
    return ok;
}

int main(int argc, char **argv) {
    struct options o;
    static struct totals totals;
    if (!parse(argc, argv, &o)) {
        fprintf(
            stderr,
            "usage: sim [--count N] [--seed S | --first-seed A] [--verbose] [--json] [--trace] [--twice]\n");
        return 2;
    }
    /* Workers ask for huge pages; clearing 2 MiB for each of thousands of short lives is a tenth of the time.
     * Failure is no harm. */
    (void)prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    struct run *run = calloc(1, sizeof *run);
    if (!run) {
        fprintf(stderr, "sim: out of memory\n");
        return 2;
    }
    uint64_t failures = 0;
    double start = seconds();
    for (uint64_t i = 0; i < o.count; i++)
        failures += !play_seed(&o, run, &totals, o.first + i, failures < SHOWN_FAILURES);
    summary(&o, &totals, failures, seconds() - start);
    free(run);
    return failures ? 1 : 0;
}
