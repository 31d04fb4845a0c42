/* A bounded set of ascending, non-touching ranges of 64-bit numbers; see ranges.h. Owns the array it has
 * grown to, nothing else.
 */
#include "ranges.h"

#include <string.h>

#include "quic.h"

void quic_ranges_init(struct quic_ranges *set, uint32_t limit) {
    set->v = set->inline_v;
    set->count = 0;
    set->cap = QUIC_RANGES_INLINE;
    set->limit = limit;
}

void quic_ranges_clear(struct quic_ranges *set, const struct quic_host *host) {
    if (set->cap > QUIC_RANGES_INLINE) /* Only then has it grown: zeroed memory is a set to clear, too. */
        host->free(host->ctx, set->v, set->cap * sizeof *set->v);
    quic_ranges_init(set, set->limit);
}

static bool grow(struct quic_ranges *set, const struct quic_host *host) {
    uint32_t cap = set->cap > set->limit / 2 ? set->limit : 2 * set->cap;
    struct quic_range *v = host->alloc(host->ctx, cap * sizeof *v);
    if (v == NULL)
        return false;
    memcpy(v, set->v, set->count * sizeof *v);
    if (set->v != set->inline_v)
        host->free(host->ctx, set->v, set->cap * sizeof *set->v);
    set->v = v;
    set->cap = cap;
    return true;
}

/* Make room for one range before index i. */
static bool insert_at(struct quic_ranges *set, const struct quic_host *host, uint32_t i, uint64_t lo,
                      uint64_t hi) {
    if (set->count >= set->limit || (set->count == set->cap && !grow(set, host)))
        return false;
    memmove(set->v + i + 1, set->v + i, (set->count - i) * sizeof *set->v);
    set->count++;
    set->v[i] = (struct quic_range){lo, hi};
    return true;
}

/* Drop the ranges [i, j). */
static void erase(struct quic_ranges *set, uint32_t i, uint32_t j) {
    memmove(set->v + i, set->v + j, (set->count - j) * sizeof *set->v);
    set->count -= j - i;
}

uint32_t quic_ranges_find(const struct quic_ranges *set, uint64_t x) {
    uint32_t base = 0, n = set->count;
    while (n > 0) { /* Everything before base has hi <= x. */
        uint32_t half = n / 2;
        bool right = set->v[base + half].hi <= x;
        base = right ? base + half + 1 : base;
        n = right ? n - half - 1 : half;
    }
    return base;
}

bool quic_ranges_add(struct quic_ranges *set, const struct quic_host *host, uint64_t lo, uint64_t hi) {
    uint32_t n = set->count;
    if (n == 0)
        return insert_at(set, host, 0, lo, hi);
    struct quic_range *last = &set->v[n - 1];
    if (lo >= last->lo) { /* The common case: in order, or after a gap. */
        if (lo > last->hi)
            return insert_at(set, host, n, lo, hi);
        if (hi > last->hi)
            last->hi = hi;
        return true;
    }
    struct quic_range *first = &set->v[0];
    if (hi <= first->hi) {
        if (hi < first->lo)
            return insert_at(set, host, 0, lo, hi);
        if (lo < first->lo)
            first->lo = lo;
        return true;
    }
    /* [i, j): the ranges that [lo, hi) overlaps or touches. */
    uint32_t i = lo == 0 ? 0 : quic_ranges_find(set, lo - 1);
    uint32_t j = i;
    while (j < n && set->v[j].lo <= hi)
        j++;
    if (i == j)
        return insert_at(set, host, i, lo, hi);
    if (lo < set->v[i].lo)
        set->v[i].lo = lo;
    set->v[i].hi = hi > set->v[j - 1].hi ? hi : set->v[j - 1].hi;
    erase(set, i + 1, j);
    return true;
}

bool quic_ranges_remove(struct quic_ranges *set, const struct quic_host *host, uint64_t lo, uint64_t hi) {
    if (lo >= hi)
        return true;
    uint32_t i = quic_ranges_find(set, lo);
    if (i == set->count || set->v[i].lo >= hi)
        return true;
    if (set->v[i].lo < lo) {
        uint64_t end = set->v[i].hi;
        if (end > hi) { /* A hole in the middle. */
            if (!insert_at(set, host, i + 1, hi, end))
                return false;
            set->v[i].hi = lo;
            return true;
        }
        set->v[i].hi = lo;
        i++;
    }
    uint32_t j = i;
    while (j < set->count && set->v[j].hi <= hi)
        j++;
    if (j < set->count && set->v[j].lo < hi)
        set->v[j].lo = hi;
    erase(set, i, j);
    return true;
}

void quic_ranges_pop_first(struct quic_ranges *set) {
    if (set->count > 0)
        erase(set, 0, 1);
}

bool quic_ranges_contains(const struct quic_ranges *set, uint64_t x) {
    uint32_t i = quic_ranges_find(set, x);
    return i < set->count && set->v[i].lo <= x;
}

bool quic_ranges_covers(const struct quic_ranges *set, uint64_t lo, uint64_t hi) {
    if (lo >= hi)
        return true;
    uint32_t i = quic_ranges_find(set, lo);
    return i < set->count && set->v[i].lo <= lo && set->v[i].hi >= hi;
}
