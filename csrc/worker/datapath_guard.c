/* The XDP guard of a datapath: opened before the workers (they enter their sockets and connection ids into
 * its maps), told of the port once the first worker has it, closed after the last worker. And the API of
 * stoq.h on it. */
#define _GNU_SOURCE
#include <stdlib.h>

#include "../guard/probe.h"
#include "../quic/token.h"
#include "datapath_private.h"

_Static_assert(STOQ_XDP_NATIVE == GUARD_MODE_NATIVE && STOQ_XDP_GENERIC == GUARD_MODE_GENERIC,
               "same numbers");
_Static_assert(sizeof(struct stoq_mirrored) == sizeof(struct guard_mirrored), "same fields");
_Static_assert(STOQ_MAX_WORKERS <= GUARD_MAX_WORKERS, "a region of the id table each");

#define DEFAULT_CIDS 65536u /* Eight thousand connections with the eight ids each may have; 2 to 4 MiB. */

/* A control plane in Python completes some hundreds of handshakes a second a core. What is let through leaves
 * it room for honest clients, and what a flood costs beyond that is paid in the driver. */
static const struct stoq_guard_policy default_policy = {
    .initial_interval_ns = 500000, /* 2,000 a second from one /64: a campus behind one prefix. */
    .initial_burst = 4000,         /* Two seconds of that. */
    .retry_above = 500,            /* What a core of Python can take on, with room to spare. */
    .retry_limit = 200000,         /* 26 MB/s of answers, each smaller than a tenth of its question. */
    .unknown_limit = 1000,         /* The engine answers as many with stateless resets. */
    .version_limit = 1000,         /* Likewise with Version Negotiation. */
    .replay_filter = true,
};

static bool failed(struct stoq_error *error, const struct guard_text *why) {
    stoq_fail(error, -EIO, "%s", why->text);
    return false;
}

static bool no_guard(struct stoq_error *error) {
    stoq_fail(error, -ENOENT, "this datapath has no XDP guard: open it with one (guard, or backend afxdp)");
    return false;
}

/* What of the policy in the map is the caller's. The rest (keys, queues, mirror) stays. */
static void apply(struct guard_policy *to, const struct stoq_guard_policy *from) {
    to->initial_interval_ns = from->initial_interval_ns;
    to->initial_burst = from->initial_burst;
    to->retry_above = from->retry_above;
    to->retry_limit = from->retry_limit;
    to->unknown_limit = from->unknown_limit;
    to->version_limit = from->version_limit;
    to->flags =
        (from->replay_filter ? GUARD_REPLAY_FILTER : 0) | (from->retry_always ? GUARD_RETRY_ALWAYS : 0);
}

bool datapath_guard_open(struct stoq_datapath *dp, const struct stoq_config *c, bool wanted,
                         struct stoq_error *error) {
    struct guard_text why = {{0}};
    if (c->server && c->max_workers > 1)
        dp->steer = steer_open(&why); /* Without the right to, strays cross by ring: describe() says so. */
    if (!wanted)
        return true;
    if (c->ifindex == 0) {
        stoq_fail(error, -EINVAL, "afxdp and the XDP guard work on one interface: name it (ifindex)");
        return false;
    }
    if (c->first_queue + c->max_workers > GUARD_MAX_QUEUES) {
        stoq_fail(error, -EINVAL, "queues %u to %u: the guard knows %u", c->first_queue,
                  c->first_queue + c->max_workers - 1, GUARD_MAX_QUEUES);
        return false;
    }
    struct guard_options options = {.ifindex = c->ifindex,
                                    .mode = (enum guard_mode)c->xdp_mode,
                                    .workers = c->max_workers,
                                    .cid_capacity = c->guard_cids ? c->guard_cids : DEFAULT_CIDS};
    dp->guard = guard_open(&options, &dp->guard_report, &why);
    if (!dp->guard)
        return failed(error, &why);
    dp->guard_ifindex = c->ifindex;
    struct guard_probe probe;
    if (guard_probe(c->ifindex, &probe, &why)) {
        char *notes = dp->guard_report.notes.text;
        size_t used = strlen(notes);
        dp->driver_checksum = probe.tx_checksum == GUARD_ANSWER_YES;
        /* The kernel drops what XDP sends to a veth peer that does not poll, and tells nobody. */
        if (strcmp(probe.driver, "veth") == 0)
            snprintf(notes + used, sizeof dp->guard_report.notes.text - used,
                     "; veth: Retry answers arrive only if the peer has an XDP program too");
    }
    struct guard_policy policy = {.mirror_snap = GUARD_SNAP_BYTES};
    /* retry_always is the engine's: it answers what little passes below retry_above, the program what comes
     * beyond. */
    apply(&policy, &default_policy);
    for (uint32_t i = 0; i < c->max_workers; i++)
        policy.worker_of_queue[c->first_queue + i] = (uint8_t)i;
    retry_u64 key[2];
    bool ok = quic_retry_key(c->token_key, key);
    for (int i = 0; i < 2; i++)
        policy.retry_key[i] = key[i];
    if (!ok)
        stoq_fail(error, -EIO, "libcrypto cannot derive the Retry key");
    else if (!guard_set_policy(dp->guard, &policy, &why))
        ok = failed(error, &why);
    crypto_wipe(key, sizeof key);
    crypto_wipe(&policy, sizeof policy);
    return ok;
}

bool datapath_guard_port(struct stoq_datapath *dp, uint16_t port, struct stoq_error *error) {
    struct guard_text why = {{0}};
    return !dp->guard || guard_add_port(dp->guard, port, &why) || failed(error, &why);
}

void datapath_guard_close(struct stoq_datapath *dp) {
    if (dp->guard)
        guard_close(dp->guard);
    dp->guard = NULL;
    steer_close(dp->steer);
    dp->steer = NULL;
}

/* ---- the API ---- */

bool stoq_guard(const struct stoq_datapath *dp, struct stoq_guard_report *out) {
    if (!dp->guard)
        return false;
    *out = (struct stoq_guard_report){.mode = (uint32_t)dp->guard_report.mode,
                                      .instructions = dp->guard_report.instructions,
                                      .program_id = dp->guard_report.program_id,
                                      .ifindex = dp->guard_ifindex};
    snprintf(out->notes, sizeof out->notes, "%s", dp->guard_report.notes.text);
    return true;
}

uint32_t stoq_verdict_count(void) {
    return STOQ_VERDICT_COUNT;
}

bool stoq_guard_counts(const struct stoq_datapath *dp, uint64_t *packets, uint64_t *bytes, uint32_t n) {
    struct guard_count counts[STOQ_VERDICT_COUNT];
    if (!dp->guard)
        return false;
    guard_counts(dp->guard, counts);
    for (uint32_t i = 0; i < n; i++) {
        packets[i] = i < STOQ_VERDICT_COUNT ? counts[i].packets : 0;
        bytes[i] = i < STOQ_VERDICT_COUNT ? counts[i].bytes : 0;
    }
    return true;
}

bool stoq_guard_get_policy(const struct stoq_datapath *dp, struct stoq_guard_policy *out) {
    struct guard_policy p;
    if (!dp->guard)
        return false;
    guard_get_policy(dp->guard, &p);
    *out = (struct stoq_guard_policy){.initial_interval_ns = p.initial_interval_ns,
                                      .initial_burst = p.initial_burst,
                                      .retry_above = p.retry_above,
                                      .retry_limit = p.retry_limit,
                                      .unknown_limit = p.unknown_limit,
                                      .version_limit = p.version_limit,
                                      .replay_filter = p.flags & GUARD_REPLAY_FILTER,
                                      .retry_always = p.flags & GUARD_RETRY_ALWAYS};
    crypto_wipe(&p, sizeof p);
    return true;
}

bool stoq_guard_set_policy(struct stoq_datapath *dp, const struct stoq_guard_policy *policy,
                           struct stoq_error *error) {
    struct guard_policy p;
    struct guard_text why = {{0}};
    if (!dp->guard)
        return no_guard(error);
    guard_get_policy(dp->guard, &p);
    apply(&p, policy);
    bool ok = guard_set_policy(dp->guard, &p, &why) || failed(error, &why);
    crypto_wipe(&p, sizeof p);
    return ok;
}

bool stoq_guard_address(struct stoq_datapath *dp, const uint8_t ip[16], bool present,
                        struct stoq_error *error) {
    struct guard_text why = {{0}};
    if (!dp->guard)
        return no_guard(error);
    if (present)
        return guard_add_address(dp->guard, ip, &why) || failed(error, &why);
    guard_remove_address(dp->guard, ip);
    return true;
}

bool stoq_guard_block(struct stoq_datapath *dp, const struct stoq_block *block, struct stoq_error *error) {
    struct guard_text why = {{0}};
    if (!dp->guard)
        return no_guard(error);
    return guard_block(dp->guard, block->ip, block->bits, block->expires_ns, &why) || failed(error, &why);
}

bool stoq_guard_unblock(struct stoq_datapath *dp, const uint8_t ip[16], uint32_t bits) {
    return dp->guard && guard_unblock(dp->guard, ip, bits);
}

uint32_t stoq_guard_blocks(struct stoq_datapath *dp, struct stoq_block *out, uint32_t max) {
    struct guard_prefix *prefixes = dp->guard && max > 0 ? calloc(max, sizeof *prefixes) : NULL;
    struct guard_block *blocks = prefixes ? calloc(max, sizeof *blocks) : NULL;
    uint32_t n = 0;
    if (blocks)
        n = guard_blocks(dp->guard, worker_clock_ns(), prefixes, blocks, max);
    for (uint32_t i = 0; i < n; i++) {
        out[i] = (struct stoq_block){.bits = prefixes[i].prefix_bits, .expires_ns = blocks[i].expires_ns};
        memcpy(out[i].ip, prefixes[i].ip, sizeof out[i].ip);
    }
    free(prefixes);
    free(blocks);
    return n;
}

bool stoq_guard_mirror(struct stoq_datapath *dp, uint64_t verdicts, uint32_t sample, uint32_t snap,
                       struct stoq_error *error) {
    struct guard_policy p;
    struct guard_text why = {{0}};
    if (!dp->guard)
        return no_guard(error);
    guard_get_policy(dp->guard, &p);
    p.mirror_verdicts = verdicts;
    p.mirror_sample = sample;
    p.mirror_snap = snap > 0 && snap < GUARD_SNAP_BYTES ? snap : GUARD_SNAP_BYTES;
    bool ok = guard_set_policy(dp->guard, &p, &why) || failed(error, &why);
    crypto_wipe(&p, sizeof p);
    return ok;
}

int stoq_guard_mirror_fd(const struct stoq_datapath *dp) {
    return dp->guard ? guard_mirror_fd(dp->guard) : -1;
}

uint64_t stoq_guard_mirror_dropped(const struct stoq_datapath *dp) {
    struct guard_mirroring counts = {0};
    if (dp->guard)
        guard_mirror_counts(dp->guard, &counts);
    return counts.lost;
}

struct taken_frame {
    struct stoq_mirrored *head;
    uint8_t *bytes;
    uint32_t cap;
};

static void take_frame(void *ctx, const struct guard_mirrored *head, const uint8_t *bytes) {
    struct taken_frame *t = ctx;
    memcpy(t->head, head, sizeof *t->head);
    if (t->head->snapped_bytes > t->cap)
        t->head->snapped_bytes = t->cap;
    memcpy(t->bytes, bytes, t->head->snapped_bytes);
}

bool stoq_guard_mirror_read(struct stoq_datapath *dp, struct stoq_mirrored *head, uint8_t *bytes,
                            uint32_t cap) {
    struct taken_frame t = {head, bytes, cap};
    return dp->guard && guard_mirror_read(dp->guard, 1, take_frame, &t) == 1;
}
