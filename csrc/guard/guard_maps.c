/* The maps the control plane writes and reads by system call: ports, addresses, blocks, sockets, counters. */
#include <errno.h>

#include <bpf/bpf.h>

#include "private.h"

static const uint8_t present = 1; /* The value of a set's member: only the key says anything. */

/* False with a reason; `full` is the map's own. E2BIG is a hash's at its bound, ENOSPC a trie's. */
static bool entered(int error, const char *what, const char *full, struct guard_text *why) {
    if (error == 0)
        return true;
    guard_text_clear(why);
    guard_text_add(why, "%s: ", what);
    if (error == -E2BIG || error == -ENOSPC)
        guard_text_add(why, "%s", full);
    else
        guard_text_error(why, -error);
    return false;
}

static bool refuse(struct guard_text *why, const char *text) {
    guard_text_clear(why);
    guard_text_add(why, "%s", text);
    return false;
}

/* ::ffff:0:0/96, RFC 4291 section 2.5.5.2. */
static bool is_mapped(const uint8_t ip[16]) {
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};
    return memcmp(ip, prefix, sizeof prefix) == 0;
}

/* Bring the program what the loader keeps for it. When it cannot be written it stays as it was: then the
 * program looks up more than it needs to, or a port or address that was removed stays ours for as long. */
static void renew(struct guard *g) {
    struct guard_text why = {{0}};
    (void)guard_write_policy(g, g->policy, &why);
}

/* ---- ports and addresses ---- */

bool guard_add_port(struct guard *g, uint16_t port, struct guard_text *why) {
    if (port == 0)
        return refuse(why, "port 0 is no port");
    const uint8_t key[2] = {(uint8_t)(port >> 8), (uint8_t)port}; /* Network order. */
    char full[96];
    snprintf(full, sizeof full, "the guard holds %u ports and all are taken", GUARD_MAX_PORTS);
    if (!entered(bpf_map_update_elem(g->ports_fd, key, &present, BPF_ANY), "adding a port to the guard", full,
                 why))
        return false;
    if (!g->near_port) {
        g->near_port = port;
        renew(g);
    }
    return true;
}

void guard_remove_port(struct guard *g, uint16_t port) {
    const uint8_t key[2] = {(uint8_t)(port >> 8), (uint8_t)port};
    if (port == g->near_port) {
        g->near_port = 0;
        renew(g);
    }
    bpf_map_delete_elem(g->ports_fd, key); /* Not there: that is what was asked for. */
}

bool guard_add_address(struct guard *g, const uint8_t ip[16], struct guard_text *why) {
    static const uint8_t unspecified[16];
    if (is_mapped(ip))
        return refuse(why, "a v4-mapped address: STOQ is IPv6-only");
    if (memcmp(ip, unspecified, 16) == 0)
        return refuse(why, ":: is no address that packets come to");
    struct guard_ip key;
    memcpy(key.ip, ip, sizeof key.ip);
    char full[96];
    snprintf(full, sizeof full, "the guard holds %u addresses and all are taken", GUARD_MAX_ADDRESSES);
    if (!entered(bpf_map_update_elem(g->addresses_fd, &key, &present, BPF_ANY),
                 "adding an address to the guard", full, why))
        return false;
    if (memcmp(g->near_ip, unspecified, 16) == 0) {
        memcpy(g->near_ip, ip, 16);
        renew(g);
    }
    return true;
}

void guard_remove_address(struct guard *g, const uint8_t ip[16]) {
    struct guard_ip key;
    memcpy(key.ip, ip, sizeof key.ip);
    if (memcmp(g->near_ip, ip, 16) == 0) {
        memset(g->near_ip, 0, 16);
        renew(g);
    }
    bpf_map_delete_elem(g->addresses_fd, &key);
}

/* ---- blocks ---- */

static bool prefix_of(struct guard_prefix *out, const uint8_t ip[16], uint32_t bits) {
    if (bits > 128)
        return false;
    out->prefix_bits = bits;
    memcpy(out->ip, ip, sizeof out->ip);
    for (uint32_t bit = bits; bit < 128; bit++)
        if (ip[bit / 8] >> (7 - bit % 8) & 1)
            return false;
    return true;
}

bool guard_block(struct guard *g, const uint8_t ip[16], uint32_t bits, uint64_t expires_ns,
                 struct guard_text *why) {
    struct guard_prefix key;
    struct guard_block value = {.expires_ns = expires_ns};
    if (!prefix_of(&key, ip, bits))
        return refuse(why, "not a prefix: at most 128 bits, and those behind them zero");
    char full[128];
    snprintf(full, sizeof full, "the blocklist holds %u prefixes and is full: block shorter prefixes",
             GUARD_MAX_BLOCKS);
    if (!g->blocks) { /* The program must ask before there is an answer. */
        g->blocks = true;
        if (!guard_write_policy(g, g->policy, why)) {
            g->blocks = false;
            return false;
        }
    }
    return entered(bpf_map_update_elem(g->blocklist_fd, &key, &value, BPF_ANY), "blocking a prefix", full,
                   why);
}

/* Entries went: when none is left the program need not ask any more. */
static void blocks_went(struct guard *g) {
    struct guard_prefix first;
    if (g->blocks && bpf_map_get_next_key(g->blocklist_fd, NULL, &first) == -ENOENT) {
        g->blocks = false;
        renew(g);
    }
}

bool guard_unblock(struct guard *g, const uint8_t ip[16], uint32_t bits) {
    struct guard_prefix key;
    if (!prefix_of(&key, ip, bits) || bpf_map_delete_elem(g->blocklist_fd, &key) != 0)
        return false;
    blocks_went(g);
    return true;
}

uint32_t guard_blocks(struct guard *g, uint64_t now_ns, struct guard_prefix *prefixes,
                      struct guard_block *blocks, uint32_t max) {
    struct guard_prefix here, next;
    uint32_t n = 0;
    bool more = bpf_map_get_next_key(g->blocklist_fd, NULL, &here) == 0;
    /* The bound is the map's own: the walk cannot run in circles, whatever the kernel answers. */
    for (uint32_t seen = 0; more && seen < GUARD_MAX_BLOCKS; seen++) {
        struct guard_block value;
        /* Before a deletion: a trie starts again from its first key when it is asked for the one behind a key
         * that is gone. A lookup finds the longest match, which for a key of the trie is itself. */
        more = bpf_map_get_next_key(g->blocklist_fd, &here, &next) == 0;
        if (bpf_map_lookup_elem(g->blocklist_fd, &here, &value) == 0) {
            if (value.expires_ns != 0 && value.expires_ns <= now_ns) {
                bpf_map_delete_elem(g->blocklist_fd, &here);
            } else if (n < max) {
                prefixes[n] = here;
                blocks[n++] = value;
            }
        }
        here = next;
    }
    blocks_went(g);
    return n;
}

/* ---- sockets ---- */

bool guard_set_xsk(struct guard *g, uint32_t queue, int fd, struct guard_text *why) {
    if (queue >= GUARD_MAX_QUEUES) {
        guard_text_clear(why);
        guard_text_add(why, "queue %u: the guard serves queues 0 to %u", queue, GUARD_MAX_QUEUES - 1);
        return false;
    }
    if (fd < 0) {
        bpf_map_delete_elem(g->xsks_fd, &queue); /* Not there, or gone with its socket: all the same. */
        return true;
    }
    int error = bpf_map_update_elem(g->xsks_fd, &queue, &fd, BPF_ANY);
    if (error == -EOPNOTSUPP || error == -ENOTSOCK) {
        guard_text_clear(why);
        guard_text_add(why, "descriptor %d is no AF_XDP socket with a receive ring", fd);
        return false;
    }
    return entered(error, "entering an AF_XDP socket into the guard", "no room", why);
}

int guard_xsks_fd(const struct guard *g) {
    return g->xsks_fd;
}

/* ---- counters ---- */

void guard_counts(const struct guard *g, struct guard_count out[STOQ_VERDICT_COUNT]) {
    for (uint32_t verdict = 0; verdict < STOQ_VERDICT_COUNT; verdict++) {
        out[verdict] = (struct guard_count){0};
        if (bpf_map_lookup_elem(g->verdicts_fd, &verdict, g->per_cpu) != 0)
            continue;
        for (int cpu = 0; cpu < g->cpus; cpu++) {
            out[verdict].packets += g->per_cpu[cpu].count.packets;
            out[verdict].bytes += g->per_cpu[cpu].count.bytes;
        }
    }
}

void guard_mirror_counts(const struct guard *g, struct guard_mirroring *out) {
    *out = (struct guard_mirroring){0};
    if (bpf_map_lookup_elem(g->mirroring_fd, &(uint32_t){0}, g->per_cpu) != 0)
        return;
    for (int cpu = 0; cpu < g->cpus; cpu++) {
        out->chosen += g->per_cpu[cpu].mirroring.chosen;
        out->lost += g->per_cpu[cpu].mirroring.lost;
    }
}

/* The kernel gives each CPU's part in whole words: what is read into must have just that size. */
_Static_assert(sizeof(struct guard_count) == 16 && sizeof(struct guard_mirroring) == 16,
               "a part is 16 bytes");
