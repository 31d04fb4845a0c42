/* See paths.h. */
#include "paths.h"

#include <stdlib.h>
#include <string.h>

#include "afxdp.h"
#include "csum.h"
#include "prng.h"

#define HOP_LIMIT       64 /* The kernel's default. */
#define NEIGHBOUR_SLOTS (2 * PATHS_MAX_NEIGHBOURS)
#define NONE            UINT32_MAX

static const uint8_t any[16];

static bool is_any(const uint8_t ip[16]) {
    return memcmp(ip, any, sizeof any) == 0;
}

static bool is_link_local(const uint8_t ip[16]) { /* fe80::/10, RFC 4291 section 2.5.6. */
    return ip[0] == 0xfe && (ip[1] & 0xc0) == 0x80;
}

/* Multicast, unspecified, loopback (::1) and v4-mapped: none of them is a neighbour's, whatever routes say.
 */
static bool is_never_ours(const struct quic_addr *a) {
    static const uint8_t loopback[16] = {[15] = 1};
    return a->ip[0] == 0xff || is_any(a->ip) || memcmp(a->ip, loopback, sizeof loopback) == 0 ||
           quic_addr_is_v4_mapped(a);
}

static uint64_t load64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint64_t hash_ip(const uint8_t ip[16]) {
    return prng_mix(load64(ip) ^ prng_mix(load64(ip + 8)));
}

static bool has_prefix(const uint8_t ip[16], const struct io_route *r) {
    uint32_t whole = r->bits / 8, rest = r->bits % 8;
    return memcmp(ip, r->prefix, whole) == 0 &&
           (rest == 0 || ((ip[whole] ^ r->prefix[whole]) & (0xff00 >> rest) & 0xff) == 0);
}

bool paths_open(struct paths *p, uint32_t ifindex, const uint8_t link[6], uint16_t port, bool confirm) {
    *p = (struct paths){.ifindex = ifindex, .port = port, .confirm = confirm, .generation = 1};
    memcpy(p->link, link, sizeof p->link);
    p->neighbours = calloc(NEIGHBOUR_SLOTS, sizeof *p->neighbours);
    p->kept = calloc(PATHS_KEPT, sizeof *p->kept);
    if (p->neighbours == NULL || p->kept == NULL) {
        paths_close(p);
        return false;
    }
    return true;
}

void paths_close(struct paths *p) {
    free(p->neighbours);
    free(p->kept);
    p->neighbours = NULL;
    p->kept = NULL;
}

void paths_learn_route(struct paths *p, const struct io_route *route) {
    uint32_t at = 0;
    if (route->bits > 128) {
        return;
    }
    p->generation++;
    while (at < p->route_count && p->routes[at].bits > route->bits) {
        at++;
    }
    while (at < p->route_count && p->routes[at].bits == route->bits) {
        if (memcmp(p->routes[at].prefix, route->prefix, sizeof route->prefix) == 0) {
            if (!route->gone) {
                p->routes[at] = *route;
                return;
            }
            memmove(&p->routes[at], &p->routes[at + 1], (p->route_count - at - 1) * sizeof p->routes[0]);
            p->route_count--;
            p->routes_refused = p->routes_refused && p->route_count > 0;
            return;
        }
        at++;
    }
    if (route->gone) {
        return;
    }
    if (p->route_count == PATHS_MAX_ROUTES) {
        p->routes_refused = true;
        return;
    }
    memmove(&p->routes[at + 1], &p->routes[at], (p->route_count - at) * sizeof p->routes[0]);
    p->routes[at] = *route;
    p->route_count++;
}

/* The place of `ip`, or the free one where it would go. Ends, for the table is at most half full. */
static uint32_t neighbour_place(const struct paths *p, const uint8_t ip[16]) {
    uint32_t at = (uint32_t)hash_ip(ip) % NEIGHBOUR_SLOTS;
    while (p->neighbours[at].used && memcmp(p->neighbours[at].ip, ip, 16) != 0) {
        at = (at + 1) % NEIGHBOUR_SLOTS;
    }
    return at;
}

/* Close the gap, so that no probe ends before its entry: each follower moves up that may. */
static void neighbour_remove(struct paths *p, uint32_t gap) {
    uint32_t at = gap;
    for (;;) {
        at = (at + 1) % NEIGHBOUR_SLOTS;
        if (!p->neighbours[at].used) {
            break;
        }
        uint32_t home = (uint32_t)hash_ip(p->neighbours[at].ip) % NEIGHBOUR_SLOTS;
        if ((at - home) % NEIGHBOUR_SLOTS >= (at - gap) % NEIGHBOUR_SLOTS) {
            p->neighbours[gap] = p->neighbours[at];
            gap = at;
        }
    }
    p->neighbours[gap].used = false;
    p->neighbour_count--;
}

void paths_learn_neighbour(struct paths *p, const struct io_neighbour *n, uint64_t now_ns) {
    uint32_t at = neighbour_place(p, n->ip);
    struct paths_neighbour *e = &p->neighbours[at];
    if (n->gone) {
        if (e->used) {
            neighbour_remove(p, at);
            p->generation++;
        }
        return;
    }
    if (!e->used) {
        if (p->neighbour_count == PATHS_MAX_NEIGHBOURS) {
            return; /* The socket path reaches it. */
        }
        *e = (struct paths_neighbour){.used = true};
        memcpy(e->ip, n->ip, sizeof e->ip);
        p->neighbour_count++;
        p->generation++;
    } else if (memcmp(e->link, n->link, sizeof e->link) != 0) {
        p->generation++; /* Else only news that it is still there: what is kept stays good. */
    }
    memcpy(e->link, n->link, sizeof e->link);
    e->confirm_ns = now_ns + AFXDP_CONFIRM_NS;
}

void paths_received_on(struct paths *p, const uint8_t ip[16]) {
    if (!is_link_local(ip) && ip[0] != 0xff) {
        memcpy(p->last_ip, ip, sizeof p->last_ip); /* Kept headers stay: a flow's source should not change. */
    }
}

/* The route's next hop is a neighbour we know: its place, else NONE. `*route` is NULL for link-local. */
static uint32_t next_hop(const struct paths *p, const struct quic_addr *peer, const struct io_route **route) {
    const uint8_t *hop = peer->ip;
    *route = NULL;
    if (is_never_ours(peer)) {
        return NONE;
    }
    if (is_link_local(peer->ip)) { /* Every interface has its own; the scope says whose this is. */
        if (peer->scope_id != p->ifindex) {
            return NONE;
        }
    } else {
        if (p->routes_refused) {
            return NONE;
        }
        uint32_t i = 0;
        while (i < p->route_count && !has_prefix(peer->ip, &p->routes[i])) {
            i++;
        }
        if (i == p->route_count || !p->routes[i].ours) {
            return NONE;
        }
        *route = &p->routes[i];
        if (!is_any(p->routes[i].gateway)) {
            hop = p->routes[i].gateway;
        }
    }
    uint32_t at = neighbour_place(p, hop);
    return p->neighbours[at].used ? at : NONE;
}

/* The source: as asked for, as the route prefers, or as was last received on. */
static const uint8_t *source(const struct paths *p, const struct quic_addr *peer,
                             const struct quic_addr *local, const struct io_route *route) {
    if (!is_any(local->ip)) {
        bool scoped = is_link_local(local->ip);
        return scoped && local->scope_id != 0 && local->scope_id != p->ifindex ? NULL : local->ip;
    }
    if (is_link_local(peer->ip)) {
        return NULL; /* Its source would have to be link-local too: the kernel knows ours. */
    }
    if (!is_any(route->source)) {
        return route->source;
    }
    return is_any(p->last_ip) ? NULL : p->last_ip;
}

static void build(const struct paths *p, const struct quic_addr *peer, const uint8_t ip[16],
                  const uint8_t link[6], struct paths_head *out) {
    uint8_t *b = out->bytes;
    memset(b, 0, PATHS_HEADER_BYTES);
    memcpy(b, link, 6);
    memcpy(b + 6, p->link, 6);
    b[12] = 0x86;
    b[13] = 0xdd;
    memcpy(b + 22, ip, 16);
    memcpy(b + 38, peer->ip, 16);
    b[54] = (uint8_t)(p->port >> 8);
    b[55] = (uint8_t)p->port;
    b[56] = (uint8_t)(peer->port >> 8);
    b[57] = (uint8_t)peer->port;
    /* RFC 6437 section 3: the same for all of a flow, spread evenly, hard to guess from the addresses alone
     * (which a hash without a secret is not; nothing of ours relies on that), and not 0. */
    uint64_t label = prng_mix(hash_ip(ip) ^ prng_mix(hash_ip(peer->ip) + load64(b + 50))) % 0xfffff + 1;
    b[14] = 0x60;
    b[15] = (uint8_t)(label >> 16);
    b[16] = (uint8_t)(label >> 8);
    b[17] = (uint8_t)label;
    b[20] = 17;
    b[21] = HOP_LIMIT;
    /* Next header, as the last byte of a word of the pseudo-header (RFC 8200 section 8.1). */
    uint16_t next_header;
    memcpy(&next_header, (const uint8_t[2]){0, 17}, sizeof next_header);
    out->pseudo_only = csum_partial(b + 22, 32) + next_header;
    out->pseudo = out->pseudo_only + csum_partial(b + PATHS_UDP_AT, 4);
}

const struct paths_head *paths_find(struct paths *p, const struct quic_addr *peer,
                                    const struct quic_addr *local, uint64_t now_ns) {
    uint64_t hash = hash_ip(peer->ip) ^ prng_mix((uint64_t)peer->port << 32 | peer->scope_id) ^
                    load64(local->ip + 8); /* One host's addresses differ there. */
    struct paths_kept *k = &p->kept[prng_mix(hash) % PATHS_KEPT];
    if (k->generation != p->generation || !quic_addr_equal(&k->peer, peer) ||
        memcmp(k->local_ip, local->ip, sizeof k->local_ip) != 0) {
        const struct io_route *route;
        uint32_t at = next_hop(p, peer, &route);
        const uint8_t *ip = at == NONE ? NULL : source(p, peer, local, route);
        if (ip == NULL) {
            return NULL;
        }
        k->generation = p->generation;
        k->peer = *peer;
        memcpy(k->local_ip, local->ip, sizeof k->local_ip);
        k->neighbour = at;
        build(p, peer, ip, p->neighbours[at].link, &k->head);
    }
    struct paths_neighbour *n = &p->neighbours[k->neighbour];
    if (p->confirm && now_ns >= n->confirm_ns) {
        n->confirm_ns = now_ns + AFXDP_CONFIRM_NS;
        return NULL;
    }
    return &k->head;
}
