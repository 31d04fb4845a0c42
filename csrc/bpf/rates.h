/* What may pass how often: rates over the whole machine, and a token bucket for each source prefix. BPF only.
 *
 * A flood from random prefixes must not push honest ones out of `sources` for free. A prefix is therefore
 * entered only when its Initial goes on to a core, and of those retry_above a second (in all) pass: past that
 * an Initial is answered with Retry, and looks its prefix up without entering it. At 1024 a second it takes a
 * minute to push one out, and what a forgotten prefix gets is a full bucket, never less. Without Retry
 * (retry_above 0) there is no such bound: the buckets then stop single prefixes only.
 */
#ifndef STOQ_BPF_RATES_H
#define STOQ_BPF_RATES_H

#include "maps.h"

/* Short enough that a flood is met within milliseconds and that a burst at a window's edge is small, long
 * enough that small rates still come to something a window. */
#define GUARD_WINDOWS_A_SECOND 16
#define GUARD_WINDOW_NS        (1000000000ull / GUARD_WINDOWS_A_SECOND)

/* Count one more of `limit`; is it still among the first `per_second`? The share of a window is rounded up:
 * a rate that is not zero lets at least one through in each. */
__noinline int guard_within(__u32 limit, __u32 per_second) {
    struct guard_window *w = bpf_map_lookup_elem(&limits, &limit);
    if (!w)
        return 0;
    __u64 window = bpf_ktime_get_ns() / GUARD_WINDOW_NS;
    if (w->window != window) {
        /* Unordered on purpose: layout.h says what two CPUs that both find it old come to. */
        w->window = window;
        w->count = 0;
    }
    __u64 before = __sync_fetch_and_add(&w->count, 1);
    return before < ((__u64)per_second + GUARD_WINDOWS_A_SECOND - 1) / GUARD_WINDOWS_A_SECOND;
}

GUARD_INLINE __u64 guard_bucket_size(const struct guard_policy *p) {
    __u32 burst = p->initial_burst ? p->initial_burst : 1; /* 0 would let nobody in, ever. */
    return p->initial_interval_ns * burst;
}

/* Take an Initial's cost from its prefix's bucket. 1: there is enough, or no bucket (then *fresh). CPUs that
 * serve one prefix at a time may each see the same tokens: a few more pass. */
GUARD_INLINE int guard_bucket_take(const struct guard_policy *p, __u64 prefix, int *fresh) {
    *fresh = 0;
    if (!p->initial_interval_ns)
        return 1;
    struct guard_bucket *b = bpf_map_lookup_elem(&sources, &prefix);
    if (!b) {
        *fresh = 1;
        return 1;
    }
    __u64 now = bpf_ktime_get_ns(), size = guard_bucket_size(p);
    __u64 tokens = b->tokens + (now - b->updated_ns);
    /* Signed: another CPU's clock may have been read a moment later. */
    if ((__s64)(now - b->updated_ns) < 0)
        tokens = b->tokens;
    if (tokens > size)
        tokens = size;
    int enough = tokens >= p->initial_interval_ns;
    b->tokens = enough ? tokens - p->initial_interval_ns : tokens;
    b->updated_ns = now;
    return enough;
}

/* A prefix's first Initial that goes on to a core. */
GUARD_INLINE void guard_bucket_enter(const struct guard_policy *p, __u64 prefix) {
    struct guard_bucket b = {bpf_ktime_get_ns(), guard_bucket_size(p) - p->initial_interval_ns};
    bpf_map_update_elem(&sources, &prefix, &b, BPF_ANY); /* No room: it starts again with a full bucket. */
}

#endif
