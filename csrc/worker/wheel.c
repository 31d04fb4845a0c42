/* Hierarchical timer wheel; wheel.h explains levels and precision. */
#include "wheel.h"

#include <stddef.h>
#include <string.h>

/* Timers of one slot looked at for the exact next deadline. More would make the answer O(n); then the time at
 * which the slot is taken apart serves, an extra wake-up in exchange. */
#define EXACT_SCAN 16

void wheel_init(struct wheel *w, uint64_t now) {
    memset(w, 0, sizeof *w);
    w->tick = now >> WHEEL_TICK_SHIFT;
    w->floor = w->tick;
}

static uint64_t tick_of(uint64_t deadline_ns) {
    return (deadline_ns >> WHEEL_TICK_SHIFT) + ((deadline_ns & (WHEEL_TICK_NS - 1)) != 0);
}

/* Level of a tick: that of the highest bit in which it differs from the present one. */
static unsigned level_of(const struct wheel *w, uint64_t tick) {
    return (63u - (unsigned)__builtin_clzll((tick ^ w->tick) | 1)) / WHEEL_SLOT_BITS;
}

static void link_timer(struct quic_timer **head, struct quic_timer *timer) {
    timer->next = *head;
    if (timer->next)
        timer->next->prev = &timer->next;
    timer->prev = head;
    *head = timer;
}

static void insert(struct wheel *w, struct quic_timer *timer) {
    uint64_t tick = tick_of(timer->deadline_ns);
    if (tick < w->floor)
        tick = w->floor;
    unsigned level = level_of(w, tick);
    unsigned slot = (tick >> (level * WHEEL_SLOT_BITS)) & (WHEEL_SLOTS - 1);
    w->occupied[level] |= (uint64_t)1 << slot;
    w->levels |= 1u << level;
    w->known = false;
    link_timer(&w->slots[level][slot], timer);
}

static void unlink_timer(struct wheel *w, struct quic_timer *timer) {
    struct quic_timer **head = timer->prev;
    w->known = false;
    *head = timer->next;
    if (timer->next) {
        timer->next->prev = head;
    } else {
        /* Last of its list. When `head` is a slot it is empty now; a neighbour's link or `firing` is not in
         * the array. */
        uintptr_t first = (uintptr_t)&w->slots[0][0];
        uintptr_t at = (uintptr_t)head;
        if (at >= first && at < first + sizeof w->slots) {
            size_t index = (at - first) / sizeof w->slots[0][0];
            w->occupied[index / WHEEL_SLOTS] &= ~((uint64_t)1 << (index % WHEEL_SLOTS));
        }
    }
    timer->next = NULL;
    timer->prev = NULL;
}

void wheel_cancel(struct wheel *w, struct quic_timer *timer) {
    if (timer->prev) {
        unlink_timer(w, timer);
        w->armed--;
    }
    timer->deadline_ns = QUIC_NEVER;
}

void wheel_set(struct wheel *w, struct quic_timer *timer, uint64_t deadline_ns) {
    if (deadline_ns == QUIC_NEVER) {
        wheel_cancel(w, timer);
        return;
    }
    if (timer->prev) {
        /* Same tick, and not one that was raised to the floor: nothing moves. Acks re-arm timers so, often.
         */
        if (tick_of(timer->deadline_ns) == tick_of(deadline_ns) && tick_of(deadline_ns) > w->floor) {
            timer->deadline_ns = deadline_ns;
            return;
        }
        unlink_timer(w, timer);
    } else {
        w->armed++;
    }
    timer->deadline_ns = deadline_ns;
    insert(w, timer);
}

/* The first occupied slot in time: all of level 0 lies before all of level 1, and so on, because a slot of
 * level n differs from the present tick in a higher bit. Answers the slot's first tick. False: the wheel is
 * empty. */
static bool first_slot(struct wheel *w, unsigned *level, unsigned *slot, uint64_t *tick) {
    while (w->levels != 0) {
        unsigned l = (unsigned)__builtin_ctz(w->levels);
        if (w->occupied[l] == 0) {
            w->levels &= w->levels - 1;
            continue;
        }
        unsigned s = (unsigned)__builtin_ctzll(w->occupied[l]);
        unsigned shift = l * WHEEL_SLOT_BITS;
        unsigned above = shift + WHEEL_SLOT_BITS; /* At the top level there are no bits above. */
        uint64_t base = above < 64 ? w->tick >> above << above : 0;
        *level = l;
        *slot = s;
        *tick = base | (uint64_t)s << shift;
        return true;
    }
    return false;
}

static uint64_t look_for_next(struct wheel *w) {
    unsigned level, slot;
    uint64_t tick;
    if (!first_slot(w, &level, &slot, &tick))
        return QUIC_NEVER;
    if (level > 0) {
        uint64_t earliest = UINT64_MAX;
        unsigned seen = 0;
        const struct quic_timer *t = w->slots[level][slot];
        for (; t && seen < EXACT_SCAN; t = t->next, seen++) {
            uint64_t at = tick_of(t->deadline_ns);
            earliest = at < earliest ? at : earliest;
        }
        if (!t && earliest > tick)
            tick = earliest;
    }
    /* The last ticks before 2^64 ns round up beyond what a time can say; such a timer is 584 years away. */
    return tick > UINT64_MAX >> WHEEL_TICK_SHIFT ? UINT64_MAX - 1 : tick << WHEEL_TICK_SHIFT;
}

/* An idle loop asks again and again, and of a slot that many share several are looked at each time. */
uint64_t wheel_next_deadline(struct wheel *w) {
    if (!w->known) {
        w->next = look_for_next(w);
        w->known = true;
    }
    return w->next;
}

uint64_t wheel_expire(struct wheel *w, uint64_t now, void (*fire)(void *ctx, struct quic_timer *timer),
                      void *ctx) {
    uint64_t target = now >> WHEEL_TICK_SHIFT;
    uint64_t fired = 0;
    unsigned level, slot;
    uint64_t tick;
    if (target < w->tick)
        return 0;
    while (first_slot(w, &level, &slot, &tick) && tick <= target) {
        w->tick = tick;
        w->floor = tick;
        w->firing = w->slots[level][slot];
        w->firing->prev = &w->firing;
        w->slots[level][slot] = NULL;
        w->occupied[level] &= ~((uint64_t)1 << slot);
        if (level == 0)
            w->floor = target + 1; /* What callbacks arm for the past waits a tick. */
        while (w->firing) {
            struct quic_timer *timer = w->firing;
            unlink_timer(w, timer);
            if (level > 0) {
                insert(w, timer);
                continue;
            }
            w->armed--;
            timer->deadline_ns = QUIC_NEVER;
            fired++;
            fire(ctx, timer);
        }
    }
    w->tick = target;
    w->floor = target;
    return fired;
}
