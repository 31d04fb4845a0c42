/* A bounded set of non-overlapping, non-adjacent, ascending ranges [lo, hi) of 64-bit numbers: received
 * packet numbers, acknowledged and lost stream offsets, received stream offsets.
 *
 * The first QUIC_RANGES_INLINE ranges lie in the set itself; beyond them it grows through the host's
 * allocator by doubling up to `limit`. In the common case (extend the last or first range) an insertion is
 * O(1); otherwise binary search plus memmove.
 */
#ifndef STOQ_QUIC_RANGES_H
#define STOQ_QUIC_RANGES_H

#include <stdbool.h>
#include <stdint.h>

struct quic_host;

#define QUIC_RANGES_INLINE 2 /* No gap, or one: nearly every set nearly always. */

struct quic_range {
    uint64_t lo, hi; /* [lo, hi), never empty. */
};

struct quic_ranges {
    struct quic_range *v; /* == inline_v until it grows. */
    uint32_t count, cap, limit;
    struct quic_range inline_v[QUIC_RANGES_INLINE];
};

/* A set must not be moved in memory after init (v may point into it). */
void quic_ranges_init(struct quic_ranges *set, uint32_t limit);
void quic_ranges_clear(struct quic_ranges *set,
                       const struct quic_host *host); /* Empty again, memory given back. */
/* Add [lo, hi), lo < hi, merging with what touches it. False: it would pass `limit` ranges or there is no
 * memory; the set is then unchanged. */
bool quic_ranges_add(struct quic_ranges *set, const struct quic_host *host, uint64_t lo, uint64_t hi);
/* Remove [lo, hi). May split a range; false when that would pass `limit` (unchanged). */
bool quic_ranges_remove(struct quic_ranges *set, const struct quic_host *host, uint64_t lo, uint64_t hi);
/* Drop the lowest range. */
void quic_ranges_pop_first(struct quic_ranges *set);
bool quic_ranges_contains(const struct quic_ranges *set, uint64_t x);
/* Is all of [lo, hi) in the set? */
bool quic_ranges_covers(const struct quic_ranges *set, uint64_t lo, uint64_t hi);
/* Index of the first range with hi > x; count when there is none. */
uint32_t quic_ranges_find(const struct quic_ranges *set, uint64_t x);

#endif
