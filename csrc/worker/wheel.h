/* Hierarchical timer wheel over struct quic_timer: set and cancel in O(1), no allocation, no lock.
 *
 * Time is counted in ticks of 8192 ns: fine enough to pace 64 KiB trains at 40 Gbit/s (13 us apart), coarse
 * enough that a loop turn rarely crosses more than one. Nine levels of 64 slots cover every 64-bit time:
 *
 *      level 0   64 slots of 8.2 us   deadlines that share all but the lowest 6 bits with the present tick
 *      level 1   64 slots of 524 us   … all but the lowest 12 bits
 *      level 2   64 slots of 34 ms    …          and so on, the level being that of the highest differing bit
 *
 * When time enters a slot of a higher level, its timers move down to where they now belong; a timer moves at
 * most once a level. A bitmap a level finds the next slot in one instruction.
 *
 * Precision. A deadline is rounded up to a tick, so a timer never fires early and at most one tick (8192 ns)
 * after its deadline, given that wheel_expire is called then. Setting a timer from within wheel_expire's
 * callback to a time already past fires it at the next tick and not in the same call: a callback that always
 * re-arms cannot hold up the loop.
 *
 * Owner: the timers are the engine's (embedded in its connections); while armed, their links are the wheel's.
 */
#ifndef STOQ_WORKER_WHEEL_H
#define STOQ_WORKER_WHEEL_H

#include <stdbool.h>
#include <stdint.h>

#include "../quic/timer.h"

#define WHEEL_TICK_SHIFT 13u /* 8192 ns. */
#define WHEEL_TICK_NS    ((uint64_t)1 << WHEEL_TICK_SHIFT)
#define WHEEL_SLOT_BITS  6u /* 64 slots: one bitmap word. */
#define WHEEL_SLOTS      (1u << WHEEL_SLOT_BITS)
#define WHEEL_LEVELS     9u /* 13 + 9 * 6 = 67 bits: every uint64_t of ns. */

struct wheel {
    uint64_t tick;   /* Present tick; all armed timers lie at it or later. */
    uint64_t floor;  /* Earliest tick a timer may be put at: tick, or while expiring the tick after. */
    uint64_t armed;  /* Timers in the wheel. */
    uint32_t levels; /* Bit l: level l may have an occupied slot; cleared when one is looked for in vain. */
    bool known;      /* `next` is what wheel_next_deadline would find: no timer has come or gone since. */
    uint64_t next;
    uint64_t occupied[WHEEL_LEVELS];
    struct quic_timer *slots[WHEEL_LEVELS][WHEEL_SLOTS];
    struct quic_timer
        *firing; /* Taken out of their slot and not yet handed over; these can still be cancelled. */
};

/* `now`: the first time the wheel knows. */
void wheel_init(struct wheel *w, uint64_t now);

/* Arm, move, or (QUIC_NEVER) disarm. */
void wheel_set(struct wheel *w, struct quic_timer *timer, uint64_t deadline_ns);
void wheel_cancel(struct wheel *w, struct quic_timer *timer);

/* A time at which wheel_expire makes progress, and before which no timer fires; QUIC_NEVER when none is
 * armed. It is the next firing itself when that is within level 0 or its slot holds few timers, else the time
 * its slot is taken apart. */
uint64_t wheel_next_deadline(struct wheel *w);

/* Fire everything due at `now`: each timer is disarmed, then handed to `fire`. Returns the number fired. */
uint64_t wheel_expire(struct wheel *w, uint64_t now, void (*fire)(void *ctx, struct quic_timer *timer),
                      void *ctx);

#endif
