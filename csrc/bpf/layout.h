/* The maps of the XDP guard, as both sides see them: guard.bpf.c in the kernel, csrc/guard in user space.
 * Freestanding: includes nothing but the kernel's fixed-width types. Verdicts are csrc/tables.h's.
 *
 *   map        type             key -> value                           written by        read by
 *   policy     ARRAY[1]         0 -> struct guard_policy               control plane     program
 *   verdicts   PERCPU_ARRAY     verdict -> struct guard_count          program           control plane
 *   ports      HASH             port (network order u16) -> u8         control plane     program
 *   addresses  HASH             struct guard_ip -> u8                  control plane     program
 *   blocklist  LPM_TRIE         struct guard_prefix -> guard_block     control plane     program
 *   sources    LRU_HASH         u64: first 64 bits of the source       program           program
 *                               -> struct guard_bucket
 *   limits     ARRAY[LIMITS]    enum guard_limit -> struct guard_window  program         program
 *   cids       ARRAY, mmapable  bucket -> struct guard_cids            the workers       program
 *   replays    ARRAY            slot -> u64 fingerprint                program           program
 *   xsks       XSKMAP           queue -> socket                        the workers' side program
 *   mirror     RINGBUF          struct guard_mirrored + bytes          program           control plane
 *   mirroring  PERCPU_ARRAY[1]  0 -> struct guard_mirroring            program           control plane
 *   scratch    PERCPU_ARRAY[1]  working memory                         program           program
 *
 * Every map is bounded; what happens at the bound: `sources` forgets the least recently seen prefix (which
 * starts again with a full bucket), `cids` marks the bucket as full and the program then takes every id of it
 * for known, `blocklist`, `ports` and `addresses` refuse the addition (the control plane says so), `mirror`
 * drops the copy and counts.
 */
#ifndef STOQ_BPF_LAYOUT_H
#define STOQ_BPF_LAYOUT_H

#include <linux/types.h>

#define GUARD_MAX_PORTS     16u
#define GUARD_MAX_ADDRESSES 256u
#define GUARD_MAX_BLOCKS    65536u
#define GUARD_MAX_SOURCES   65536u /* /64 prefixes with a bucket; LRU. 4 MiB. */
#define GUARD_MAX_QUEUES    256u
#define GUARD_MAX_WORKERS   64u    /* STOQ_MAX_WORKERS */
#define GUARD_REPLAY_SLOTS  65536u /* A tenth of a second at 0.6 M packets a second; 512 KiB. */
#define GUARD_MIRROR_BYTES  (4u << 20)
#define GUARD_SNAP_BYTES    2048u /* Longest copy of a frame. */
#define GUARD_CID_WAYS      7u

struct guard_ip {
    __u8 ip[16];
};

/* Policy flags. */
#define GUARD_REPLAY_FILTER 1u /* Drop exact copies of recent 1-RTT packets. */
#define GUARD_RETRY_ALWAYS  2u /* Every Initial without a valid token is answered with Retry. */
#define GUARD_BLOCKS        4u /* The blocklist may have entries: it has to be asked. The loader's own. */

struct guard_policy {
    __u64 retry_key[2];        /* retry_token.h */
    __u64 initial_interval_ns; /* A source /64 earns one Initial each; 0: no limit. */
    __u32 initial_burst;       /* Bucket size, Initials. */
    __u32 retry_above; /* Initials without valid token a second, in all, from which on they are answered with
                          Retry; 0: never. */
    __u32 retry_limit; /* Retry answers a second; 0: no limit. */
    __u32 unknown_limit; /* Packets a second of unknown ids let through (the engine answers with resets); 0:
                            none. */
    __u32 version_limit; /* Likewise of unknown versions; 0: none. */
    __u32 flags;
    __u32 cid_buckets; /* A power of two, for each worker; 0: no table, every id is known. */
    __u32 workers;
    /* One of `addresses` with one of `ports`, as they stand in a packet, that need no look-up; port 0: none.
     * The loader's own. */
    __u64 near_ip[2];
    __u32 near_port, pad;
    __u32 mirror_sample;                    /* Copy every n-th frame of a chosen verdict; 0: off, 1: all. */
    __u32 mirror_snap;                      /* Bytes of each copy; at most GUARD_SNAP_BYTES. */
    __u64 mirror_verdicts;                  /* Bit v: frames of verdict v are chosen. */
    __u8 worker_of_queue[GUARD_MAX_QUEUES]; /* Goes into the id that a Retry gives. */
};

struct guard_count {
    __u64 packets, bytes; /* Whole frames. */
};

struct guard_prefix {
    __u32 prefix_bits; /* 0 to 128 */
    __u8 ip[16];
};

struct guard_block {
    __u64 expires_ns; /* CLOCK_MONOTONIC; 0: never. */
};

struct guard_bucket {
    __u64 updated_ns;
    __u64 tokens; /* In nanoseconds: an Initial costs initial_interval_ns. */
};

/* A rate over whole CPUs, in windows of a 16th of a second. Two CPUs may both find the window old and start
 * it: a few packets more pass, none less. */
struct guard_window {
    __u64 window;
    __u64 count;
};

enum guard_limit {
    GUARD_LIMIT_INITIAL,
    GUARD_LIMIT_RETRY,
    GUARD_LIMIT_UNKNOWN,
    GUARD_LIMIT_VERSION,
    GUARD_LIMIT_COUNT
};

/* Ids of one hash, one cache line. Worker w owns buckets [w * cid_buckets, (w + 1) * cid_buckets), writes
 * them with plain stores of whole words through its mapping, and nobody else does. Bucket within: bytes 2 to
 * 5 of the id (random, ours), little endian, modulo cid_buckets. An id is our eight bytes as they stand in
 * the packet; 0 is a free place (an id of all zero is never issued). `overflow`: ids of this bucket that
 * found no place; while it is not 0, every id of it is known. */
struct guard_cids {
    __u64 id[GUARD_CID_WAYS];
    __u64 overflow;
};

/* Frames that policy chose for a copy, and copies that found no room in `mirror`. */
struct guard_mirroring {
    __u64 chosen, lost;
};

/* Before the bytes of a mirrored frame. */
struct guard_mirrored {
    __u64 time_ns; /* CLOCK_MONOTONIC */
    __u32 frame_bytes, snapped_bytes;
    __u32 queue;
    __u32 verdict;
};

#endif
