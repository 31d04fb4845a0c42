/* See guests.h. */
#define _GNU_SOURCE
#include "guests.h"

#include <sched.h>

#define GRACE_NS                                                                                             \
    UINT64_C(1000000000) /* A turn takes a tenth of a millisecond: this long only if a core is starved. */

/* Send through another backend from now on: clients from another port, which their peers have to validate. */
static void use_io(struct worker *w, struct io *io, const struct quic_addr *local) {
    /* Release, with worker_kick's acquire: a kicker that sees the new backend sees it complete. */
    __atomic_store_n(&w->io, io, __ATOMIC_RELEASE);
    w->local = *local;
    worker_publish_local(w);
}

static void tell_clients(struct worker *w) {
    for (struct worker_conn *wc = w->conns; wc; wc = wc->next)
        if (!quic_conn_is_server(wc->conn))
            quic_conn_rebind(wc->conn, w->now, &w->local);
}

/* A worker that kicks us reads w->io in its turn. Whoever has ended that turn, or sleeps, reads the new one
 * from then on. */
static bool others_have_turned(struct worker *w) {
    uint64_t deadline = worker_clock_ns() + GRACE_NS;
    uint32_t n = worker_count(w);
    for (uint32_t i = 0; i < n; i++) {
        struct worker *other = w->peers[i];
        if (!other || worker_runs_with(other, w))
            continue;
        uint64_t loops = shared_read(&other->counters[STOQ_COUNTER_LOOPS]);
        /* Acquire: its look at w->io lies before its `sleeping`, and before its count of the next turn. */
        while (!atomic_load_explicit(&other->shared->sleeping, memory_order_acquire) &&
               __atomic_load_n(&other->counters[STOQ_COUNTER_LOOPS], __ATOMIC_ACQUIRE) == loops) {
            if (worker_clock_ns() > deadline)
                return false;
            sched_yield();
        }
    }
    return true;
}

bool guests_leave(struct worker *w) {
    /* Acquire, with the control plane's release: of the host's backend. */
    struct worker *host = atomic_load_explicit(&w->move_to, memory_order_acquire);
    struct io *old = w->io, *io = __atomic_load_n(&host->io, __ATOMIC_ACQUIRE);
    old->ops->flush(old);
    for (struct worker *g = w->guests; g; g = g->guest_next)
        use_io(g, io, &host->local);
    use_io(w, io, &host->local);
    if (!others_have_turned(w)) {
        if (w->retired_count < RETIRED_IO)
            w->retired[w->retired_count++] = old;
        return false;
    }
    old->ops->close(old);
    return true;
}

void guests_hand_over(struct worker *w, struct worker *host) {
    struct worker *last = w;
    w->guest_next = w->guests;
    w->guests = NULL;
    while (last->guest_next)
        last = last->guest_next;
    struct worker *first = atomic_load_explicit(&host->arriving, memory_order_relaxed);
    do
        last->guest_next = first;
    while (!atomic_compare_exchange_weak_explicit(&host->arriving, &first, w, memory_order_release,
                                                  memory_order_relaxed)); /* Release, with guests_welcome. */
    worker_kick(host);
}

static void let_go(struct worker *host) {
    for (struct worker **at = &host->guests; *at;) {
        struct worker *g = *at;
        /* Acquire, with the control plane's release; nothing else is read. */
        if (atomic_load_explicit(&g->move_to, memory_order_acquire) != g) {
            at = &g->guest_next;
            continue;
        }
        *at = g->guest_next;
        g->guest_next = NULL;
        g->host = NULL;
        sem_post(&g->released);
    }
}

void guests_welcome(struct worker *host) {
    if (atomic_load_explicit(&host->arriving, memory_order_relaxed)) {
        /* Acquire: all that their thread and the control plane wrote is ours now. */
        struct worker *g = atomic_exchange_explicit(&host->arriving, NULL, memory_order_acquire);
        while (g) {
            struct worker *next = g->guest_next;
            g->host = host;
            g->guest_next = host->guests;
            host->guests = g;
            atomic_store_explicit(&g->move_to, NULL, memory_order_relaxed); /* Done. */
            use_io(g, host->io, &host->local);
            tell_clients(g);
            g = next;
        }
    }
    if (host->guests)
        let_go(host);
}
