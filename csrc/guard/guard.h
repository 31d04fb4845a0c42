/* The XDP guard from user space: load, attach, feed its maps, read its counters. csrc/bpf/layout.h draws the
 * maps and csrc/bpf/guard.bpf.c is the program.
 *
 *      guard_open ──▶ loaded and attached: everything PASSes (no port is STOQ's yet)
 *        guard_set_policy, guard_add_address, guard_set_xsk, then guard_add_port ──▶ it guards
 *      guard_close, or the end of the process however it comes ──▶ detached (the bpf_link is ours alone)
 *
 * One guard an interface: a second one, of this or another program, is refused by the kernel and we say whose
 * program is there. Nothing is pinned, so nothing can be left behind.
 *
 * Functions are for one thread (the control plane's) unless said otherwise. Those that can fail return false
 * with `why`. Needs CAP_BPF + CAP_NET_ADMIN (guard_open only: afterwards the descriptors are enough on
 * kernels that let unprivileged processes use maps by descriptor; what does need a capability says so).
 */
#ifndef STOQ_GUARD_H
#define STOQ_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../bpf/layout.h"
#include "../tables.h"

struct guard;

enum guard_mode { GUARD_MODE_AUTO, GUARD_MODE_NATIVE, GUARD_MODE_GENERIC };

struct guard_options {
    uint32_t ifindex;
    enum guard_mode
        mode;         /* AUTO: native, else generic, and the report says why. The others: that or an error. */
    uint32_t workers; /* Regions of the id table; 1 to GUARD_MAX_WORKERS. */
    uint32_t
        cid_capacity; /* Ids a worker may have at a time with almost no bucket overflowing; 0: no table. */
};

struct guard_text {
    char text[512];
};

struct guard_report {
    enum guard_mode mode;  /* Got: NATIVE or GENERIC. */
    uint32_t instructions; /* Of the program, as the verifier processed it (its "insns processed" figure). */
    uint32_t program_id;
    struct guard_text notes; /* What was asked for, what was got, and why if less. */
};

/* NULL: `why` says what failed and what to do (no capability, no BTF, somebody's program is attached: its
 * name and id). */
struct guard *guard_open(const struct guard_options *options, struct guard_report *report,
                         struct guard_text *why);
void guard_close(struct guard *g);

/* The policy in force. `cid_buckets` and `workers` are the guard's own and filled in here. */
bool guard_set_policy(struct guard *g, const struct guard_policy *policy, struct guard_text *why);
void guard_get_policy(const struct guard *g, struct guard_policy *out);
/* UDP port, host order. */
bool guard_add_port(struct guard *g, uint16_t port, struct guard_text *why);
void guard_remove_port(struct guard *g, uint16_t port);
bool guard_add_address(struct guard *g, const uint8_t ip[16], struct guard_text *why);
void guard_remove_address(struct guard *g, const uint8_t ip[16]);
/* Block a source prefix of `bits` (bits behind it must be zero) until `expires_ns` (CLOCK_MONOTONIC; 0: for
 * ever). */
bool guard_block(struct guard *g, const uint8_t ip[16], uint32_t bits, uint64_t expires_ns,
                 struct guard_text *why);
bool guard_unblock(struct guard *g, const uint8_t ip[16], uint32_t bits);
/* Up to `max` blocks; removes those that expired before `now_ns`. Returns the number. */
uint32_t guard_blocks(struct guard *g, uint64_t now_ns, struct guard_prefix *prefixes,
                      struct guard_block *blocks, uint32_t max);

/* The AF_XDP socket of a queue; any thread, once a queue. -1 removes it. */
bool guard_set_xsk(struct guard *g, uint32_t queue, int fd, struct guard_text *why);
int guard_xsks_fd(const struct guard *g);

/* Sums over all CPUs. */
void guard_counts(const struct guard *g, struct guard_count out[STOQ_VERDICT_COUNT]);

/* The id table's region of `worker` (NULL: there is none) for guard_cid_add and guard_cid_remove, which only
 * that worker's thread may call. */
struct guard_cids *guard_cid_region(struct guard *g, uint32_t worker);
uint32_t guard_cid_buckets(const struct guard *g);

/* `id`: our eight bytes as they stand in the packet, loaded as a native word. Plain word stores the program
 * reads. */
void guard_cid_add(struct guard_cids *region, uint32_t buckets, uint64_t id);
void guard_cid_remove(struct guard_cids *region, uint32_t buckets, uint64_t id);

/* Mirrored frames: `take` is called for each that waits, at most `max`; returns the number. Poll
 * guard_mirror_fd. */
int guard_mirror_fd(const struct guard *g);
int guard_mirror_read(struct guard *g, int max,
                      void (*take)(void *ctx, const struct guard_mirrored *head, const uint8_t *bytes),
                      void *ctx);
/* Frames chosen for a copy, and copies lost because nobody read; sums over all CPUs. */
void guard_mirror_counts(const struct guard *g, struct guard_mirroring *out);

#endif
