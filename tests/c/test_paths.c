/* Routes, neighbours and the headers made of them: against a plain model of the tables, and byte by byte. */
#include "../../csrc/io/afxdp.h"
#include "../../csrc/io/csum.h"
#include "../../csrc/io/paths.h"
#include "check.h"

#define IFINDEX 7

static const uint8_t our_link[6] = {2, 0, 0, 0, 0, 1};
static const uint8_t ours[16] = {0xfd, [15] = 1};

static struct paths *open_paths(bool confirm) {
    static struct paths p;
    REQUIRE(paths_open(&p, IFINDEX, our_link, 9292, confirm));
    return &p;
}

static struct quic_addr address(const char *hex, uint16_t port) { /* 32 digits, or fewer and zeros. */
    struct quic_addr a = {.port = port};
    for (size_t i = 0; i < 32 && hex[i] != '\0'; i++) {
        uint8_t digit = (uint8_t)(hex[i] <= '9' ? hex[i] - '0' : hex[i] - 'a' + 10);
        a.ip[i / 2] |= (uint8_t)(i % 2 == 0 ? digit << 4 : digit);
    }
    return a;
}

static void route(struct paths *p, const char *prefix, uint8_t bits, const char *gateway, bool is_ours,
                  bool gone) {
    struct io_route r = {.bits = bits, .ours = is_ours, .gone = gone};
    memcpy(r.prefix, address(prefix, 0).ip, 16);
    memcpy(r.gateway, address(gateway, 0).ip, 16);
    paths_learn_route(p, &r);
}

static void neighbour_at(struct paths *p, const uint8_t ip[16], uint8_t last, bool gone, uint64_t now_ns) {
    struct io_neighbour n = {.link = {2, 0, 0, 0, 9, last}, .gone = gone};
    memcpy(n.ip, ip, 16);
    paths_learn_neighbour(p, &n, now_ns);
}

static void neighbour(struct paths *p, const char *ip, uint8_t last, bool gone) {
    neighbour_at(p, address(ip, 0).ip, last, gone, 0);
}

/* The last byte of the link address it goes to; 0: the socket path. */
static uint8_t way(struct paths *p, const char *peer) {
    struct quic_addr to = address(peer, 443), from = {.port = 9292};
    memcpy(from.ip, ours, sizeof ours);
    const struct paths_head *h = paths_find(p, &to, &from, 1);
    return h == NULL ? 0 : h->bytes[5];
}

static void longest_prefix(void) {
    struct paths *p = open_paths(true);
    REQUIRE(way(p, "fd000000000000000000000000000002") == 0);
    route(p, "fd00", 64, "", true, false);
    REQUIRE(way(p, "fd000000000000000000000000000002") == 0); /* A route, no neighbour. */
    neighbour(p, "fd000000000000000000000000000002", 2, false);
    REQUIRE(way(p, "fd000000000000000000000000000002") == 2);
    REQUIRE(way(p, "fd000000000000010000000000000002") == 0); /* Another /64. */
    neighbour(p, "fe800000000000000000000000000009", 9, false);
    route(p, "", 0, "fe800000000000000000000000000009", true, false); /* Default, by a gateway. */
    REQUIRE(way(p, "fd000000000000010000000000000002") == 9);
    REQUIRE(way(p, "20010db8") == 9);
    REQUIRE(way(p, "fd000000000000000000000000000002") == 2);
    route(p, "20010db8", 32, "", false, false); /* By another interface. */
    REQUIRE(way(p, "20010db8000000000000000000000001") == 0 && way(p, "20010db9") == 9);
    route(p, "20010db8000000ff", 63, "fd000000000000000000000000000002", true, false); /* Not on a byte. */
    REQUIRE(way(p, "20010db8000000fe0000000000000001") == 2 &&
            way(p, "20010db8000000ff0000000000000001") == 2);
    REQUIRE(way(p, "20010db8000000fd0000000000000001") == 0);
    route(p, "20010db8", 32, "fd000000000000000000000000000002", true, false); /* It changed. */
    REQUIRE(way(p, "20010db8000000fd0000000000000001") == 2 && p->route_count == 4);
    route(p, "20010db8", 32, "", false, true); /* Gone. */
    REQUIRE(way(p, "20010db8000000fd0000000000000001") == 9 && p->route_count == 3);
    route(p, "fd000000000000000000000000000002", 128, "", false, false); /* A host route. */
    REQUIRE(way(p, "fd000000000000000000000000000002") == 0);
    route(p, "fd000000000000000000000000000002", 128, "", false, true);
    route(p, "fd000000000000000000000000000002", 129, "", false, false); /* Nonsense. */
    REQUIRE(way(p, "fd000000000000000000000000000002") == 2);
    neighbour(p, "fd000000000000000000000000000002", 3, false); /* It moved. */
    REQUIRE(way(p, "fd000000000000000000000000000002") == 3);
    neighbour(p, "fd000000000000000000000000000002", 0, true);
    REQUIRE(way(p, "fd000000000000000000000000000002") == 0);
    paths_close(p);
}

/* Never by us, whatever the tables say. */
static void never(void) {
    struct paths *p = open_paths(true);
    static const char *const peers[] = {"ff020000000000000000000000000001", "",
                                        "00000000000000000000000000000001",
                                        "00000000000000000000ffff0a000001"};
    route(p, "", 0, "", true, false);
    for (size_t i = 0; i < sizeof peers / sizeof peers[0]; i++) {
        neighbour(p, peers[i], 5, false);
        REQUIRE(way(p, peers[i]) == 0);
    }
    /* Link-local: the scope has to be ours; routes do not matter. */
    neighbour(p, "fe800000000000000000000000000002", 6, false);
    struct quic_addr to = address("fe800000000000000000000000000002", 1);
    struct quic_addr from = address("fe800000000000000000000000000001", 9292);
    REQUIRE(paths_find(p, &to, &from, 1) == NULL);
    to.scope_id = IFINDEX + 1;
    REQUIRE(paths_find(p, &to, &from, 1) == NULL);
    to.scope_id = IFINDEX;
    REQUIRE(paths_find(p, &to, &from, 1) != NULL);
    from.scope_id = IFINDEX + 1;
    to.port = 2; /* Not the one that is kept. */
    REQUIRE(paths_find(p, &to, &from, 1) == NULL);
    to.port = 3;
    memset(from.ip, 0, 16); /* The kernel knows our link-local address, we do not. */
    REQUIRE(paths_find(p, &to, &from, 1) == NULL);
    paths_close(p);
}

static void sources(void) {
    struct paths *p = open_paths(true);
    struct quic_addr to = address("fd000000000000000000000000000002", 443), any = {.port = 9292};
    neighbour(p, "fd000000000000000000000000000002", 2, false);
    route(p, "fd00", 64, "", true, false);
    REQUIRE(paths_find(p, &to, &any, 1) == NULL); /* Nothing to choose from. */
    paths_received_on(p, address("fe800000000000000000000000000001", 0).ip);
    REQUIRE(paths_find(p, &to, &any, 1) == NULL);
    paths_received_on(p, ours);
    const struct paths_head *h = paths_find(p, &to, &any, 1);
    REQUIRE(h != NULL && memcmp(h->bytes + 22, ours, 16) == 0);
    struct quic_addr other = address("fd000000000000000000000000000077", 9292);
    h = paths_find(p, &to, &other, 1);
    REQUIRE(h != NULL && memcmp(h->bytes + 22, other.ip, 16) == 0);
    struct io_route preferred = {.prefix = {0xfd}, .bits = 64, .ours = true, .source = {0xfd, [15] = 0x55}};
    paths_learn_route(p, &preferred);
    h = paths_find(p, &to, &any, 1);
    REQUIRE(h != NULL && h->bytes[37] == 0x55);
    paths_close(p);
}

static void headers(void) {
    struct paths *p = open_paths(true);
    struct quic_addr to = address("fd000000000000000000000000000002", 443), from = {.port = 9292};
    memcpy(from.ip, ours, 16);
    neighbour(p, "fd000000000000000000000000000002", 2, false);
    route(p, "fd00", 64, "", true, false);
    const struct paths_head *h = paths_find(p, &to, &from, 1);
    REQUIRE(h != NULL);
    const uint8_t *b = h->bytes;
    static const uint8_t ethernet[14] = {2, 0, 0, 0, 9, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd};
    REQUIRE(memcmp(b, ethernet, 14) == 0);
    REQUIRE(b[14] == 0x60 && b[15] < 0x10 && (b[15] | b[16] | b[17]) != 0); /* Flow label; class 0. */
    REQUIRE(b[18] == 0 && b[19] == 0 && b[20] == 17 && b[21] == 64);
    REQUIRE(memcmp(b + 22, from.ip, 16) == 0 && memcmp(b + 38, to.ip, 16) == 0);
    REQUIRE(b[54] << 8 == (9292 & 0xff00) && b[55] == (9292 & 0xff) && b[56] == 1 && b[57] == 443 - 256);
    /* The sums are what RFC 8200 section 8.1 adds up, with the length left for later. */
    uint8_t pseudo[44] = {0};
    memcpy(pseudo, from.ip, 16);
    memcpy(pseudo + 16, to.ip, 16);
    pseudo[39] = 17;
    REQUIRE(csum_fold(h->pseudo_only) == csum_fold(csum_partial(pseudo, 40)));
    memcpy(pseudo + 40, b + 54, 4);
    REQUIRE(csum_fold(h->pseudo) == csum_fold(csum_partial(pseudo, 44)));
    /* Flows differ in their label, one flow does not. */
    uint8_t label[3], other[3];
    memcpy(label, b + 15, 3);
    to.port = 444;
    memcpy(other, paths_find(p, &to, &from, 1)->bytes + 15, 3);
    REQUIRE(memcmp(label, other, 3) != 0);
    to.port = 443;
    REQUIRE(memcmp(paths_find(p, &to, &from, 1)->bytes + 15, label, 3) == 0);
    paths_close(p);
}

/* A train every AFXDP_CONFIRM_NS to each neighbour goes by the socket; news of it put that off. */
static void confirming(void) {
    const uint64_t c = AFXDP_CONFIRM_NS;
    struct quic_addr to = address("fd000000000000000000000000000002", 443), from = {.port = 9292};
    memcpy(from.ip, ours, 16);
    for (int with = 0; with < 2; with++) {
        struct paths *p = open_paths(with);
        route(p, "fd00", 64, "", true, false);
        neighbour_at(p, to.ip, 2, false, 5);
        REQUIRE(paths_find(p, &to, &from, 5) != NULL && paths_find(p, &to, &from, c + 4) != NULL);
        REQUIRE((paths_find(p, &to, &from, c + 5) == NULL) == with);
        REQUIRE(paths_find(p, &to, &from, c + 5) != NULL); /* Once. */
        REQUIRE(paths_find(p, &to, &from, 2 * c + 4) != NULL);
        neighbour_at(p, to.ip, 2, false, 2 * c);
        REQUIRE(paths_find(p, &to, &from, 3 * c - 1) != NULL);
        REQUIRE((paths_find(p, &to, &from, 3 * c) == NULL) == with);
        paths_close(p);
    }
}

/* Thousands of neighbours that come, move and go, against an array. */
static void many_neighbours(void) {
    enum { COUNT = PATHS_MAX_NEIGHBOURS + 500 };
    static uint8_t link_of[COUNT]; /* 0: unknown. */
    struct paths *p = open_paths(false);
    uint32_t known = 0;
    struct quic_addr from = {.port = 9292};
    memcpy(from.ip, ours, 16);
    memset(link_of, 0, sizeof link_of);
    route(p, "fd00", 16, "", true, false);
    for (uint32_t round = 0; round < 60000; round++) {
        uint32_t i = (uint32_t)check_rand() % COUNT;
        struct quic_addr a = {
            .ip = {0xfd, [8] = (uint8_t)(i * 7), [14] = (uint8_t)(i >> 8), [15] = (uint8_t)i}};
        /* Fills at first, then empties. */
        bool gone = check_rand() % 10 < (round < 30000 ? 2 : 7);
        if (gone) {
            neighbour_at(p, a.ip, 0, true, 0);
            known -= link_of[i] != 0;
            link_of[i] = 0;
        } else {
            uint8_t link = (uint8_t)(1 + check_rand() % 255);
            neighbour_at(p, a.ip, link, false, 0);
            if (link_of[i] != 0 || known < PATHS_MAX_NEIGHBOURS) {
                known += link_of[i] == 0;
                link_of[i] = link;
            }
        }
        REQUIRE(p->neighbour_count == known);
        uint32_t k = (uint32_t)check_rand() % COUNT;
        struct quic_addr b = {
            .ip = {0xfd, [8] = (uint8_t)(k * 7), [14] = (uint8_t)(k >> 8), [15] = (uint8_t)k}};
        b.port = 443;
        const struct paths_head *h = paths_find(p, &b, &from, 1);
        REQUIRE((h != NULL) == (link_of[k] != 0) && (h == NULL || h->bytes[5] == link_of[k]));
    }
    paths_close(p);
}

/* Refused routes might have been better ones: all goes by the socket until the table was empty. */
static void many_routes(void) {
    struct paths *p = open_paths(true);
    neighbour(p, "fd000000000000000000000000000002", 2, false);
    for (uint32_t i = 0; i <= PATHS_MAX_ROUTES; i++) {
        struct io_route r = {
            .prefix = {0xfd, [1] = (uint8_t)(i >> 8), [2] = (uint8_t)i}, .bits = 24, .ours = true};
        paths_learn_route(p, &r);
        REQUIRE(way(p, "fd000000000000000000000000000002") == (i < PATHS_MAX_ROUTES ? 2 : 0));
    }
    for (uint32_t i = PATHS_MAX_ROUTES; i-- > 0;) {
        REQUIRE(p->route_count == i + 1 && p->routes_refused);
        struct io_route r = {
            .prefix = {0xfd, [1] = (uint8_t)(i >> 8), [2] = (uint8_t)i}, .bits = 24, .gone = true};
        paths_learn_route(p, &r);
    }
    route(p, "fd00", 24, "", true, false);
    REQUIRE(way(p, "fd000000000000000000000000000002") == 2);
    paths_close(p);
}

/* Random routes, in any order, against a search through all of them. */
static void random_routes(void) {
    struct io_route known[64];
    for (int round = 0; round < 200; round++) {
        struct paths *p = open_paths(false);
        uint32_t count = 0;
        neighbour(p, "fd000000000000000000000000000002", 2, false);
        for (uint32_t i = 0; i < 40; i++) {
            struct io_route r = {.bits = (uint8_t)(check_rand() % 13), .gone = check_rand() % 5 == 0};
            r.ours = check_rand() % 2;
            uint32_t bits = (uint32_t)check_rand() & (0xfff0000u << (12 - r.bits)) & 0xfff0000u;
            r.prefix[0] = (uint8_t)(bits >> 20);
            r.prefix[1] = (uint8_t)(bits >> 12 & 0xf0);
            r.gateway[0] = 0xfd;
            r.gateway[15] = 2;
            paths_learn_route(p, &r);
            uint32_t at = 0;
            while (at < count && (known[at].bits != r.bits || memcmp(known[at].prefix, r.prefix, 16) != 0)) {
                at++;
            }
            if (!r.gone) {
                known[at] = r;
                count += at == count;
            } else if (at < count) {
                known[at] = known[--count];
            }
        }
        REQUIRE(p->route_count == count);
        for (int i = 0; i < 100; i++) {
            struct quic_addr to = {.ip = {(uint8_t)(check_rand() % 255), (uint8_t)check_rand(), [15] = 9}};
            const struct io_route *best = NULL;
            for (uint32_t k = 0; k < count; k++) {
                uint32_t a = (uint32_t)to.ip[0] << 8 | to.ip[1];
                uint32_t b = (uint32_t)known[k].prefix[0] << 8 | known[k].prefix[1];
                if ((a ^ b) >> (16 - known[k].bits) == 0 && (best == NULL || known[k].bits > best->bits)) {
                    best = &known[k];
                }
            }
            struct quic_addr from = {.port = 9292};
            memcpy(from.ip, ours, 16);
            if (to.ip[0] != 0 && to.ip[0] != 0xfe) { /* Never ours, and link-local. */
                REQUIRE((paths_find(p, &to, &from, 1) != NULL) == (best != NULL && best->ours));
            }
        }
        paths_close(p);
    }
}

static const struct check_case cases[] = {
    {"paths_longest_prefix", longest_prefix},
    {"paths_never", never},
    {"paths_sources", sources},
    {"paths_headers", headers},
    {"paths_confirming", confirming},
    {"paths_many_neighbours", many_neighbours},
    {"paths_many_routes", many_routes},
    {"paths_random_routes", random_routes},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
