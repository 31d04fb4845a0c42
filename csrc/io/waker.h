/* Waking a sleeping worker from another thread, cheaply when it does not sleep.
 *
 *                    waker_prepare                       waker_finish
 *      RUNNING ───────────────────────▶ SLEEPING ───────────────────────▶ RUNNING
 *         │ wake                            │ wake: writes the eventfd       ▲
 *         ▼                                 ▼                                │
 *       WOKEN ── waker_prepare: refuses   WOKEN ── waker_finish ─────────────┤
 *         └──────────────────────────────────────────────────────────────────┘
 *
 * Every transition is one atomic exchange or compare-exchange on one word, so there is a total order of them:
 * a wake comes either before the worker's step to SLEEPING (which then fails, and the worker does not sleep)
 * or after it (the waker sees SLEEPING and writes the eventfd). No wake is lost and no fence is needed.
 *
 * Cost: one atomic exchange for a running worker; one write(2) more for a sleeping one.
 * A write that lands after the sleeper left by itself ends its next sleep at once: harmless. */
#ifndef STOQ_IO_WAKER_H
#define STOQ_IO_WAKER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum waker_state { WAKER_RUNNING, WAKER_SLEEPING, WAKER_WOKEN };

struct waker {
    _Atomic int state; /* enum waker_state */
    int fd;            /* eventfd; readable after a wake that found the worker asleep. */
};

/* `flags` go to eventfd(2). False when the kernel gives no descriptor (errno set). */
static inline bool waker_open(struct waker *w, int flags) {
    atomic_init(&w->state, WAKER_RUNNING);
    w->fd = eventfd(0, EFD_CLOEXEC | flags);
    return w->fd >= 0;
}

static inline void waker_close(struct waker *w) {
    if (w->fd >= 0) {
        close(w->fd);
    }
    w->fd = -1;
}

/* Any thread. Release: what the caller wrote before (a ring entry) is seen by the worker once it has left
 * wait(). Pairs with the acquire in waker_prepare and waker_finish. */
static inline void waker_wake(struct waker *w) {
    if (atomic_exchange_explicit(&w->state, WAKER_WOKEN, memory_order_acq_rel) == WAKER_SLEEPING) {
        uint64_t one = 1;
        /* Fails only when the counter would overflow, and then it is readable anyway. */
        ssize_t ignored = write(w->fd, &one, sizeof one);
        (void)ignored;
    }
}

/* The worker, before it sleeps. False: a wake came since the last sleep; it is consumed, do not sleep.
 * Acquire: pairs with the release in waker_wake. */
static inline bool waker_prepare(struct waker *w) {
    int expected = WAKER_RUNNING;
    if (atomic_compare_exchange_strong_explicit(&w->state, &expected, WAKER_SLEEPING, memory_order_acq_rel,
                                                memory_order_acquire)) {
        return true;
    }
    atomic_exchange_explicit(&w->state, WAKER_RUNNING, memory_order_acq_rel);
    return false;
}

/* The worker, after it slept (or thought better of it). True when a wake came meanwhile.
 * Acquire: pairs with the release in waker_wake. */
static inline bool waker_finish(struct waker *w) {
    return atomic_exchange_explicit(&w->state, WAKER_RUNNING, memory_order_acq_rel) == WAKER_WOKEN;
}

#endif
