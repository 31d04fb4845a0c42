/* The loop of a worker's thread: turns, and between them no more waiting than is worth it.
 *
 *     turn ──did something──▶ turn
 *       └─idle──▶ spin (turns) for a while ──▶ io->wait until a deadline, a datagram or a kick ──▶ turn
 *
 * A sleep costs some 5 us of latency to wake from and frees the core. How long to spin first adapts: sleeps
 * that turn out short say the traffic is dense and spinning pays, long ones say it does not. busy_poll never
 * sleeps.
 */
#define _GNU_SOURCE
#include "guests.h"

#include <sys/prctl.h>

#include "privileges.h"
#include "sandbox.h"

#define SPIN_MIN_NS    UINT64_C(2000)   /* An idle machine: a turn or two before giving the core away. */
#define SPIN_MAX_NS    UINT64_C(100000) /* Ping-pong over a LAN stays within this. */
#define SHORT_SLEEP_NS UINT64_C(50000)  /* Ten times a wake-up's cost: shorter sleeps were not worth it. */
#define NO_SLEEP_NS    UINT64_C(10000)  /* A deadline this near passes while falling asleep and waking. */

/* The last look before a sleep, after `sleeping` was shown. */
static bool rings_quiet(struct worker *w) {
    if (!w->stopping && atomic_load_explicit(&w->shared->stop_requested, memory_order_relaxed))
        return false; /* Relaxed: the fence before us orders it. */
    /* While the event ring is full commands wait as well, and looking at them would keep us awake for
     * nothing. */
    if (w->events_full)
        return !worker_event_room(w);
    if (ring_waiting(w->commands.ring))
        return false;
    for (uint32_t i = 0, n = worker_count(w); i < n; i++)
        if (w->in[i] && handoff_waiting(w->in[i]))
            return false;
    /* Relaxed: the fence before us orders them. */
    return !atomic_load_explicit(&w->move_to, memory_order_relaxed) &&
           !atomic_load_explicit(&w->arriving, memory_order_relaxed);
}

static void show_sleeping(struct worker *w, uint32_t sleeping) {
    /* Relaxed: setting it is ordered by doze's fence, which also releases w->io to worker_kick; a kicker that
     * sees 1 though it was cleared wakes us once for nothing. */
    for (struct worker *v = w; v; v = v == w ? w->guests : v->guest_next)
        atomic_store_explicit(&v->shared->sleeping, sleeping, memory_order_relaxed);
}

/* Sleep until `next` at the latest, with all of this thread's workers. */
static void doze(struct worker *w, uint64_t now, uint64_t next) {
    bool quiet = true;
    show_sleeping(w, 1);
    /* Orders "sleeping" before our last look at the rings; pairs with the fence in worker_kick, which orders
     * a producer's message before its look at "sleeping". Whoever comes second sees the other. */
    atomic_thread_fence(memory_order_seq_cst);
    for (struct worker *v = w; v && quiet; v = v == w ? w->guests : v->guest_next)
        quiet = rings_quiet(v);
    if (quiet) {
        uint64_t span = next - now;
        count(w, STOQ_COUNTER_SLEEPS, 1);
        w->io->ops->wait(w->io, next == QUIC_NEVER || span > INT64_MAX ? -1 : (int64_t)span);
    }
    show_sleeping(w, 0);
}

/* Text is appended to what worker_open_io wrote; nobody reads it before the datapath is open. */
static void note(struct worker *w, const char *what) {
    char *text = w->shared->text;
    size_t used = strnlen(text, sizeof w->shared->text);
    if (used < sizeof w->shared->text)
        snprintf(text + used, sizeof w->shared->text - used, "; %s", what);
}

bool worker_confine(struct worker *w, struct stoq_error *error) {
    const struct privileges to = {.uid = w->config.uid, .gid = w->config.gid};
    const struct sandbox_options options = {.rebind = w->test_profile && !w->server};
    char text[256];
    const char *step = "";
    int result = privileges_drop_thread(&to, &step);
    if (result != 0) {
        stoq_fail(error, result, "worker %u cannot give up its privileges: %s: %s", w->index, step,
                  strerror(-result));
        return false;
    }
    if (w->config.no_sandbox) {
        note(w, "no sandbox: configured");
        return true;
    }
    if (!worker_sandbox_enter(&options, text, sizeof text)) {
        stoq_fail(error, -EPERM, "worker %u cannot be sandboxed: %s", w->index, text);
        return false;
    }
    worker_sandbox_describe(&options, text, sizeof text);
    note(w, text);
    return true;
}

/* A turn of each of the thread's workers. Answers when the next is due; `worked`, `ended`: of all. */
static uint64_t turn(struct worker *w, uint64_t now, uint32_t *worked, bool *ended) {
    uint64_t next = worker_turn(w, now);
    *worked = w->worked;
    *ended = w->stopped;
    for (struct worker *g = w->guests; g; g = g->guest_next) {
        uint64_t at = worker_turn(g, now);
        next = at < next ? at : next;
        *worked += g->worked;
        *ended &= g->stopped;
    }
    return next;
}

void worker_run(struct worker *w) {
    uint64_t spin_ns = SPIN_MIN_NS;
    uint64_t busy_at = worker_clock_ns(); /* Last time there was something to do. */
    uint32_t worked;
    bool ended = false;
    /* Timers of this thread are exact to the microsecond; the default slack of 50 us would blur pacing. */
    (void)prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    while (!ended) {
        guests_welcome(w);
        uint64_t now = worker_clock_ns();
        uint64_t next = turn(w, now, &worked, &ended);
        /* Relaxed: guests_leave looks again. */
        if (atomic_load_explicit(&w->move_to, memory_order_relaxed)) {
            (void)guests_leave(w);
            return;
        }
        if (worked > 0)
            busy_at = now;
        if (next == 0 || w->busy_poll || now - busy_at < spin_ns || next - now < NO_SLEEP_NS || ended)
            continue;
        for (struct worker *v = w; v; v = v == w ? w->guests : v->guest_next)
            worker_publish(v); /* What is read while we sleep is up to date. */
        doze(w, now, next);
        uint64_t woke = worker_clock_ns();
        if (woke - now < SHORT_SLEEP_NS)
            spin_ns = spin_ns * 2 < SPIN_MAX_NS ? spin_ns * 2 : SPIN_MAX_NS;
        else
            spin_ns = spin_ns / 2 > SPIN_MIN_NS ? spin_ns / 2 : SPIN_MIN_NS;
        busy_at = woke;
    }
}
