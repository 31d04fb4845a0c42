/* The guard's maps, as layout.h draws them, and the program's view of policy. BPF only. */
#ifndef STOQ_BPF_MAPS_H
#define STOQ_BPF_MAPS_H

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "../tables.h"
#include "layout.h"
#include "parse.h"
#include "retry.h"

#define GUARD_INLINE static __always_inline

/* A frame as one part of the program hands it to the next. */
struct guard_packet {
    struct parse_frame at;
    __u32 frame_bytes;
    __u32 queue;
    __u8 dcid_len, scid_len; /* Of an Initial that is to be answered. */
    __u8 pad[6];
};

/* Too much for the stack (512 bytes). A CPU runs one frame at a time, so nobody else uses it meanwhile. */
struct guard_scratch {
    struct retry_request request;
    struct retry_answer answer;
    __u8 token[40]; /* RETRY_TOKEN_MAX_BYTES in whole words. */
    struct guard_mirrored head;
    __u8 snap[GUARD_SNAP_BYTES];
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct guard_policy);
} policy SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, STOQ_VERDICT_COUNT);
    __type(key, __u32);
    __type(value, struct guard_count);
} verdicts SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, GUARD_MAX_PORTS);
    __type(key, __u16);
    __type(value, __u8);
} ports SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, GUARD_MAX_ADDRESSES);
    __type(key, struct guard_ip);
    __type(value, __u8);
} addresses SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(map_flags, BPF_F_NO_PREALLOC); /* The kernel takes no other kind. */
    __uint(max_entries, GUARD_MAX_BLOCKS);
    __type(key, struct guard_prefix);
    __type(value, struct guard_block);
} blocklist SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, GUARD_MAX_SOURCES);
    __type(key, __u64);
    __type(value, struct guard_bucket);
} sources SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, GUARD_LIMIT_COUNT);
    __type(key, __u32);
    __type(value, struct guard_window);
} limits SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, 1); /* The loader sets it: workers times cid_buckets. */
    __type(key, __u32);
    __type(value, struct guard_cids);
} cids SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, GUARD_REPLAY_SLOTS);
    __type(key, __u32);
    __type(value, __u64);
} replays SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, GUARD_MAX_QUEUES);
    __type(key, __u32);
    __type(value, __u32);
} xsks SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, GUARD_MIRROR_BYTES);
} mirror SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct guard_mirroring);
} mirroring SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct guard_scratch);
} scratch SEC(".maps");

/* Element 0 of an array is always there; the verifier wants to see the question all the same. */
GUARD_INLINE struct guard_policy *guard_policy_now(void) {
    __u32 zero = 0;
    return bpf_map_lookup_elem(&policy, &zero);
}

GUARD_INLINE struct guard_scratch *guard_scratch_here(void) {
    __u32 zero = 0;
    return bpf_map_lookup_elem(&scratch, &zero);
}

#endif
