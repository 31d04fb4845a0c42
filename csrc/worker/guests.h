/* Workers without a thread of their own. A core that is given up leaves its worker's connections behind; they
 * go on as they are, run by the thread of another worker, whose backend they send through. Nothing of a
 * connection moves but which thread runs it, so none is lost; what was in the closed queue is, and QUIC sends
 * it again.
 *
 *      control plane                 thread of w                      thread of host
 *      ─────────────                 ───────────                      ──────────────
 *      w->move_to = host; kick ───▶  guests_leave:                    (turns)
 *                                      w->io = host's; the others
 *                                      have turned once; close ours
 *      join ◀──────────────────────  thread ends
 *      onto host->arriving; kick ───────────────────────────────────▶ guests_welcome: turns of w too
 *
 *      and back:
 *      w->move_to = w; kick ────────────────────────────────────────▶ guests_welcome: lets go of w
 *      wait ◀───────────────────────────────────────────────────────  posts w->released
 *      new thread ───────────────▶   worker_reopen_io, worker_run
 *
 * Until it has a backend again, what arrives for a guest reaches some other worker and crosses by ring. While
 * nobody runs it, that waits in the ring. The control plane does one of this at a time. */
#ifndef STOQ_WORKER_GUESTS_H
#define STOQ_WORKER_GUESTS_H

#include "private.h"

/* w's thread, at a turn's end, when move_to names another worker: give up the backend, for it and its guests.
 * False: the others did not turn in time; the backend stays open until the end (nothing is lost but its
 * memory). */
bool guests_leave(struct worker *w);
/* Any thread, after the join of w's: hand w, and the guests it had, to the thread of `host`. */
void guests_hand_over(struct worker *w, struct worker *host);
/* host's thread, between turns: take in who arrives, let go who is called back. */
void guests_welcome(struct worker *host);

#endif
