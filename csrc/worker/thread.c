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
#include "private.h"

#include <sys/prctl.h>
#include <time.h>

#define SPIN_MIN_NS    UINT64_C(2000)   /* An idle machine: a turn or two before giving the core away. */
#define SPIN_MAX_NS    UINT64_C(100000) /* Ping-pong over a LAN stays within this. */
#define SHORT_SLEEP_NS UINT64_C(50000)  /* Ten times a wake-up's cost: shorter sleeps were not worth it. */
#define NO_SLEEP_NS    UINT64_C(10000)  /* A deadline this near passes while falling asleep and waking. */

static uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

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
    if (w->count > 1)
        for (uint32_t i = 0; i < w->count; i++)
            if (w->in[i] && handoff_waiting(w->in[i]))
                return false;
    return true;
}

/* Sleep until `next` at the latest. */
static void doze(struct worker *w, uint64_t now, uint64_t next) {
    struct shared *s = w->shared;
    /* Relaxed: the fence orders it. Also a release of w->io for worker_kick, by the same fence. */
    atomic_store_explicit(&s->sleeping, 1, memory_order_relaxed);
    /* Orders "sleeping" before our last look at the rings; pairs with the fence in worker_kick, which orders
     * a producer's message before its look at "sleeping". Whoever comes second sees the other. */
    atomic_thread_fence(memory_order_seq_cst);
    if (rings_quiet(w)) {
        uint64_t span = next - now;
        count(w, STOQ_COUNTER_SLEEPS, 1);
        w->ops->wait(w->io, next == QUIC_NEVER || span > INT64_MAX ? -1 : (int64_t)span);
    }
    /* Relaxed: a kicker that still sees 1 wakes us once for nothing. */
    atomic_store_explicit(&s->sleeping, 0, memory_order_relaxed);
}

void worker_run(struct worker *w) {
    uint64_t spin_ns = SPIN_MIN_NS;
    uint64_t busy_at = clock_ns(); /* Last time there was something to do. */
    /* Timers of this thread are exact to the microsecond; the default slack of 50 us would blur pacing. */
    (void)prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    while (!w->stopped) {
        uint64_t now = clock_ns();
        uint64_t next = worker_turn(w, now);
        if (w->worked > 0)
            busy_at = now;
        if (next == 0 || w->busy_poll || now - busy_at < spin_ns || next - now < NO_SLEEP_NS || w->stopped)
            continue;
        worker_publish(w); /* What is read while we sleep is up to date. */
        doze(w, now, next);
        uint64_t woke = clock_ns();
        if (woke - now < SHORT_SLEEP_NS)
            spin_ns = spin_ns * 2 < SPIN_MAX_NS ? spin_ns * 2 : SPIN_MAX_NS;
        else
            spin_ns = spin_ns / 2 > SPIN_MIN_NS ? spin_ns / 2 : SPIN_MIN_NS;
        busy_at = woke;
    }
}
