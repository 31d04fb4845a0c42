/* The XDP guard's maps, on the real kernel: what is written is what stands in them, each has its bound, and
 * what the program counts and copies comes back. */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <linux/if_xdp.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "guard_host.h"

/* ---- the table of ids ---- */

/* The bucket as the program finds it. */
static uint32_t home(uint64_t id, uint32_t buckets) {
    uint8_t b[8];
    memcpy(b, &id, sizeof b);
    return (b[2] + 256u * b[3] + 65536u * b[4] + 16777216u * b[5]) % buckets;
}

static void regions_are_the_programs_map(void) {
    struct guard_report report;
    struct guard_options o = options(here);
    o.workers = 3;
    struct guard *g = open_with(o, &report);
    uint32_t buckets = guard_cid_buckets(g);
    CHECK_EQ(buckets, 512);
    CHECK(guard_cid_region(g, 2) == guard_cid_region(g, 0) + 2 * buckets && guard_cid_region(g, 3) == NULL);
    int fd = map_of(report.program_id, "cids");
    for (uint32_t worker = 0; worker < 3; worker++) {
        uint64_t id = check_rand() | 1;
        uint32_t at = worker * buckets + home(id, buckets);
        struct guard_cids seen;
        guard_cid_add(guard_cid_region(g, worker), buckets, id);
        CHECK(bpf_map_lookup_elem(fd, &at, &seen) == 0 && seen.id[0] == id);
        guard_cid_remove(guard_cid_region(g, worker), buckets, id);
        CHECK(bpf_map_lookup_elem(fd, &at, &seen) == 0 && seen.id[0] == 0);
    }
    close(fd);

    uint64_t ids[512];
    check_rand_bytes(ids, sizeof ids);
    uint64_t begin_ns = guard_monotonic_ns();
    for (int round = 0; round < 1000; round++) {
        for (int i = 0; i < 512; i++)
            guard_cid_add(guard_cid_region(g, 1), buckets, ids[i]);
        for (int i = 0; i < 512; i++)
            guard_cid_remove(guard_cid_region(g, 1), buckets, ids[i]);
    }
    printf("   an id added and removed: %.1f ns\n", (double)(guard_monotonic_ns() - begin_ns) / 512e3);
    guard_close(g);

    o.cid_capacity = 0;
    g = open_with(o, &report);
    CHECK(guard_cid_region(g, 0) == NULL && guard_cid_buckets(g) == 0);
    guard_close(g);
}

/* ---- maps ---- */

static void policy_is_written_whole_or_refused(void) {
    struct guard_report report;
    struct guard *g = open_with(options(here), &report);
    struct guard_text why;
    struct guard_policy policy, seen;
    int fd = map_of(report.program_id, "policy");
    CHECK(bpf_map_lookup_elem(fd, &(uint32_t){0}, &seen) == 0); /* From the start. */
    CHECK(seen.workers == 2 && seen.cid_buckets == guard_cid_buckets(g) && seen.mirror_sample == 0);

    check_rand_bytes(&policy, sizeof policy);
    memset(policy.worker_of_queue, 1, sizeof policy.worker_of_queue);
    policy.mirror_snap = GUARD_SNAP_BYTES;
    policy.initial_burst |= 1;
    CHECK(guard_set_policy(g, &policy, &why));
    policy.workers = 2;
    policy.cid_buckets = guard_cid_buckets(g);
    policy.flags &= ~GUARD_BLOCKS; /* These are the loader's. */
    memset(policy.near_ip, 0, sizeof policy.near_ip);
    policy.near_port = 0;
    CHECK(bpf_map_lookup_elem(fd, &(uint32_t){0}, &seen) == 0);
    CHECK_MEM(&seen, &policy, sizeof policy);

    struct guard_policy bad = policy;
    bad.mirror_snap++;
    CHECK(!guard_set_policy(g, &bad, &why) && strstr(why.text, "2048"));
    bad = policy;
    bad.worker_of_queue[GUARD_MAX_QUEUES - 1] = 2;
    CHECK(!guard_set_policy(g, &bad, &why) && strstr(why.text, "queue 255 belongs to worker 2"));
    bad = policy;
    bad.initial_interval_ns = 5;
    bad.initial_burst = 0;
    CHECK(!guard_set_policy(g, &bad, &why) && strstr(why.text, "burst"));
    CHECK(bpf_map_lookup_elem(fd, &(uint32_t){0}, &seen) == 0);
    CHECK_MEM(&seen, &policy, sizeof policy);
    guard_get_policy(g, &seen);
    CHECK_MEM(&seen, &policy, sizeof policy);
    close(fd);
    guard_close(g);
}

static void ports_and_addresses_are_bounded(void) {
    struct guard_report report;
    struct guard *g = open_with(options(here), &report);
    struct guard_text why;
    int fd = map_of(report.program_id, "ports");
    uint8_t value;
    CHECK(!guard_add_port(g, 0, &why));
    for (uint16_t i = 0; i < GUARD_MAX_PORTS; i++)
        CHECK(guard_add_port(g, (uint16_t)(9292 + i), &why));
    CHECK(!guard_add_port(g, 1, &why) && strstr(why.text, "16 ports"));
    CHECK(guard_add_port(g, 9292, &why)); /* There already: nothing to refuse. */
    CHECK(bpf_map_lookup_elem(fd, &(uint16_t){htons(9293)}, &value) == 0);
    guard_remove_port(g, 9293);
    guard_remove_port(g, 9293);
    CHECK(bpf_map_lookup_elem(fd, &(uint16_t){htons(9293)}, &value) == -ENOENT);
    CHECK(guard_add_port(g, 1, &why) && !guard_add_port(g, 2, &why));
    close(fd);

    fd = map_of(report.program_id, "addresses");
    struct guard_ip ip = {{0xfd, [15] = 1}};
    for (uint32_t i = 0; i < GUARD_MAX_ADDRESSES; i++) {
        ip.ip[7] = (uint8_t)i;
        CHECK(guard_add_address(g, ip.ip, &why));
        CHECK(bpf_map_lookup_elem(fd, &ip, &value) == 0);
    }
    struct guard_ip more = {{0xfe, 0x80, [15] = 9}};
    CHECK(!guard_add_address(g, more.ip, &why) && strstr(why.text, "256 addresses"));
    guard_remove_address(g, ip.ip);
    CHECK(bpf_map_lookup_elem(fd, &ip, &value) == -ENOENT);
    CHECK(guard_add_address(g, more.ip, &why));
    struct guard_ip mapped = {{[10] = 0xff, 0xff, 127, 0, 0, 1}}, none = {{0}};
    guard_remove_address(g, more.ip);
    CHECK(!guard_add_address(g, mapped.ip, &why) && strstr(why.text, "IPv6-only"));
    CHECK(!guard_add_address(g, none.ip, &why));
    close(fd);
    guard_close(g);
}

/* What the loader keeps for the program's short way follows ports, addresses and blocks. */
static void what_is_near_follows(void) {
    struct guard *g = open_here();
    struct guard_text why;
    struct guard_policy p;
    struct guard_prefix prefix;
    struct guard_block block;
    const uint8_t a[16] = {0xfd, [15] = 1}, b[16] = {0xfd, [15] = 2}, none[16] = {0};
    CHECK(guard_add_port(g, 9292, &why) && guard_add_port(g, 9293, &why));
    guard_get_policy(g, &p);
    CHECK(p.near_port == 0); /* Without an address it means nothing. */
    CHECK(guard_add_address(g, a, &why) && guard_add_address(g, b, &why));
    guard_get_policy(g, &p);
    CHECK_EQ(p.near_port, htons(9292));
    CHECK_MEM(p.near_ip, a, 16);
    CHECK(!(p.flags & GUARD_BLOCKS));
    const struct guard_policy mine = {.flags = GUARD_REPLAY_FILTER | GUARD_BLOCKS};
    CHECK(guard_set_policy(g, &mine, &why));
    guard_get_policy(g, &p);
    CHECK(p.near_port == htons(9292) && p.flags == GUARD_REPLAY_FILTER);
    guard_remove_port(g, 9293); /* Another one. */
    guard_remove_address(g, b);
    guard_get_policy(g, &p);
    CHECK(p.near_port == htons(9292) && memcmp(p.near_ip, a, 16) == 0);
    guard_remove_port(g, 9292);
    guard_get_policy(g, &p);
    CHECK_EQ(p.near_port, 0);
    CHECK(guard_add_port(g, 9294, &why));
    guard_remove_address(g, a);
    guard_get_policy(g, &p);
    CHECK(p.near_port == 0 && memcmp(p.near_ip, none, 16) == 0);

    CHECK(guard_block(g, a, 128, 1000, &why) && guard_block(g, b, 128, 2000, &why));
    guard_get_policy(g, &p);
    CHECK(p.flags & GUARD_BLOCKS);
    CHECK(guard_unblock(g, b, 128));
    guard_get_policy(g, &p);
    CHECK(p.flags & GUARD_BLOCKS);
    CHECK_EQ(guard_blocks(g, 1500, &prefix, &block, 1), 0); /* The last one has expired. */
    guard_get_policy(g, &p);
    CHECK(!(p.flags & GUARD_BLOCKS));
    guard_close(g);
}

#define FEW 8

static void blocks_expire(void) {
    struct guard *g = open_here();
    struct guard_text why;
    struct guard_prefix prefixes[FEW];
    struct guard_block blocks[FEW];
    const uint8_t a[16] = {0xfd, 1}, b[16] = {0xfd, 1, 2}, c[16] = {0xfd, 1, 2, 3, [15] = 4}, all[16] = {0};
    CHECK_EQ(guard_blocks(g, 1, prefixes, blocks, FEW), 0);
    CHECK(guard_block(g, a, 16, 0, &why) && guard_block(g, b, 24, 1000, &why) &&
          guard_block(g, c, 128, 2000, &why) && guard_block(g, all, 0, 3000, &why));
    CHECK(!guard_block(g, b, 16, 0, &why) && strstr(why.text, "prefix")); /* Bits behind it. */
    CHECK(!guard_block(g, c, 129, 0, &why));
    CHECK_EQ(guard_blocks(g, 999, prefixes, blocks, 2), 2); /* At most what there is room for. */
    CHECK_EQ(guard_blocks(g, 999, prefixes, blocks, FEW), 4);
    CHECK_EQ(guard_blocks(g, 1000, prefixes, blocks, 0), 0); /* Goes through all of them all the same. */
    CHECK_EQ(guard_blocks(g, 1, prefixes, blocks, FEW), 3);
    CHECK_EQ(guard_blocks(g, 2500, prefixes, blocks, FEW), 2);
    for (int i = 0; i < 2; i++) {
        CHECK(prefixes[i].prefix_bits == (blocks[i].expires_ns == 0 ? 16 : 0));
        CHECK_MEM(prefixes[i].ip, blocks[i].expires_ns == 0 ? a : all, 16);
    }
    CHECK(guard_block(g, a, 16, 5000, &why)); /* Changes its end. */
    CHECK(!guard_unblock(g, b, 24) && guard_unblock(g, all, 0) && !guard_unblock(g, all, 0));
    CHECK(guard_blocks(g, 4000, prefixes, blocks, FEW) == 1 && blocks[0].expires_ns == 5000);
    CHECK_EQ(guard_blocks(g, UINT64_MAX, prefixes, blocks, FEW), 0);
    guard_close(g);
}

static void a_full_blocklist_refuses(void) {
    struct guard *g = open_here();
    struct guard_text why;
    struct guard_prefix *prefixes = calloc(GUARD_MAX_BLOCKS, sizeof *prefixes);
    struct guard_block *blocks = calloc(GUARD_MAX_BLOCKS, sizeof *blocks);
    REQUIRE(prefixes != NULL && blocks != NULL);
    uint8_t ip[16] = {0x20, 0x01};
    for (uint32_t i = 0; i < GUARD_MAX_BLOCKS; i++) {
        ip[4] = (uint8_t)(i >> 8);
        ip[5] = (uint8_t)i;
        REQUIRE(guard_block(g, ip, 48, 1 + i % 2, &why));
    }
    ip[0] = 0xfd;
    CHECK(!guard_block(g, ip, 64, 0, &why) && strstr(why.text, "65536 prefixes"));
    uint64_t begin_ns = guard_monotonic_ns();
    CHECK_EQ(guard_blocks(g, 0, prefixes, blocks, GUARD_MAX_BLOCKS), GUARD_MAX_BLOCKS);
    printf("   65536 blocks listed: %.0f ms\n", (double)(guard_monotonic_ns() - begin_ns) / 1e6);
    begin_ns = guard_monotonic_ns();
    CHECK_EQ(guard_blocks(g, 1, prefixes, blocks, GUARD_MAX_BLOCKS), GUARD_MAX_BLOCKS / 2);
    printf("   and half of them removed: %.0f ms\n", (double)(guard_monotonic_ns() - begin_ns) / 1e6);
    CHECK(guard_block(g, ip, 64, 0, &why));
    free(prefixes);
    free(blocks);
    guard_close(g);
}

/* A bound socket with a receive ring on queue 0, as small as the kernel takes it. */
static int open_xsk(void **umem) {
    struct xdp_umem_reg area = {.len = 4 * 4096, .chunk_size = 4096};
    struct sockaddr_xdp at = {
        .sxdp_family = AF_XDP, .sxdp_flags = XDP_COPY, .sxdp_ifindex = here, .sxdp_queue_id = 0};
    int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0), entries = 4;
    *umem = mmap(NULL, area.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    area.addr = (uintptr_t)*umem;
    REQUIRE(fd >= 0 && *umem != MAP_FAILED);
    REQUIRE(setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &area, sizeof area) == 0);
    for (int ring = XDP_RX_RING; ring <= XDP_UMEM_COMPLETION_RING; ring++)
        if (ring == XDP_RX_RING || ring == XDP_UMEM_FILL_RING || ring == XDP_UMEM_COMPLETION_RING)
            REQUIRE(setsockopt(fd, SOL_XDP, ring, &entries, sizeof entries) == 0);
    REQUIRE(bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
    return fd;
}

static void sockets_are_entered(void) {
    struct guard *g = open_here();
    struct guard_text why;
    void *umem;
    int xsk = open_xsk(&umem), udp = socket(AF_INET6, SOCK_DGRAM, 0), other[2];
    REQUIRE(pipe(other) == 0);
    CHECK(guard_set_xsk(g, 0, xsk, &why));
    CHECK(guard_set_xsk(g, GUARD_MAX_QUEUES - 1, xsk, &why)); /* The map takes it; the queue decides later. */
    CHECK(!guard_set_xsk(g, GUARD_MAX_QUEUES, xsk, &why) && strstr(why.text, "queue 256"));
    CHECK(!guard_set_xsk(g, 1, udp, &why) && strstr(why.text, "no AF_XDP socket"));
    CHECK(!guard_set_xsk(g, 1, other[0], &why) && strstr(why.text, "no AF_XDP socket"));
    /* The map gives nothing back, but entering only what is there (BPF_EXIST) tells whether it is. */
    CHECK_EQ(bpf_map_update_elem(guard_xsks_fd(g), &(uint32_t){0}, &xsk, BPF_EXIST), 0);
    CHECK_EQ(bpf_map_update_elem(guard_xsks_fd(g), &(uint32_t){1}, &xsk, BPF_EXIST), -ENOENT);
    CHECK(guard_set_xsk(g, 0, -1, &why) && guard_set_xsk(g, 0, -1, &why));
    CHECK_EQ(bpf_map_update_elem(guard_xsks_fd(g), &(uint32_t){0}, &xsk, BPF_EXIST), -ENOENT);
    close(xsk);
    close(udp);
    close(other[0]);
    close(other[1]);
    munmap(umem, 4 * 4096);
    guard_close(g);
}

/* ---- what it sees ---- */

#define ETHERTYPE 0x88b5 /* IEEE 802 Local Experimental: nobody's protocol. */

/* Frames that come in at `here`. */
static int open_wire(void) {
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_ifindex = (int)there};
    REQUIRE(fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
    return fd;
}

static void make_frame(uint8_t *frame, size_t len, uint8_t number) {
    memset(frame, number, len);
    memset(frame, 0xff, 6);
    memcpy(frame + 6, (const uint8_t[]){2, 0, 0, 0, 0, 1, ETHERTYPE >> 8, ETHERTYPE & 0xff}, 8);
}

#define FRAMES      100
#define FRAME_BYTES 200

/* True when `wanted` more frames have counted; the kernel may handle them a moment after they were sent. */
static bool counted(const struct guard *g, const struct guard_count *before, uint64_t wanted,
                    struct guard_count *now) {
    struct guard_count counts[STOQ_VERDICT_COUNT];
    uint64_t deadline_ns = guard_monotonic_ns() + 5 * SECOND_NS;
    do {
        guard_counts(g, counts);
        *now = counts[STOQ_VERDICT_PASS_OTHER];
        if (now->packets >= before->packets + wanted)
            return true;
        sched_yield();
    } while (guard_monotonic_ns() < deadline_ns);
    return false;
}

static void counts_are_sums(void) {
    struct guard *g = open_here();
    int wire = open_wire();
    uint8_t frame[FRAME_BYTES];
    struct guard_count before = {0}, now = {0};
    cpu_set_t all, one;
    sched_getaffinity(0, sizeof all, &all);
    uint64_t sent = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) { /* From every processor: each counts for itself. */
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        if (!CPU_ISSET(cpu, &all) || sched_setaffinity(0, sizeof one, &one) != 0)
            continue;
        for (int i = 0; i < FRAMES; i++) {
            make_frame(frame, sizeof frame, (uint8_t)i);
            CHECK_EQ(send(wire, frame, sizeof frame, 0), sizeof frame);
        }
        sent += FRAMES;
        CHECK(counted(g, &before, sent, &now));
    }
    sched_setaffinity(0, sizeof all, &all);
    CHECK(now.bytes >= sent * FRAME_BYTES);
    close(wire);
    guard_close(g);
}

struct taken {
    int n, expected;
};

static void take(void *ctx, const struct guard_mirrored *head, const uint8_t *bytes) {
    struct taken *t = ctx;
    uint8_t frame[FRAME_BYTES];
    if (head->frame_bytes != FRAME_BYTES || bytes[12] != ETHERTYPE >> 8 || bytes[13] != (ETHERTYPE & 0xff))
        return; /* The kernel's own: it looks for neighbours. */
    make_frame(frame, sizeof frame, (uint8_t)(t->expected + 1));
    CHECK_EQ(head->snapped_bytes, 64);
    CHECK_EQ(head->verdict, STOQ_VERDICT_PASS_OTHER);
    CHECK_EQ(head->queue, 0);
    CHECK(head->time_ns <= guard_monotonic_ns() && head->time_ns + 60 * SECOND_NS > guard_monotonic_ns());
    CHECK_MEM(bytes, frame, 64);
    t->n++;
    t->expected++;
}

static void mirror_gives_copies_in_order(void) {
    struct guard *g = open_here();
    struct guard_text why;
    struct taken t = {0};
    uint8_t frame[FRAME_BYTES];
    int wire = open_wire();
    CHECK_EQ(guard_mirror_read(g, 10, take, &t), 0);
    CHECK(guard_set_policy(g,
                           &(struct guard_policy){.mirror_sample = 1,
                                                  .mirror_snap = 64,
                                                  .mirror_verdicts = UINT64_C(1) << STOQ_VERDICT_PASS_OTHER},
                           &why));
    for (int i = 0; i < FRAMES; i++) {
        make_frame(frame, sizeof frame, (uint8_t)(i + 1));
        CHECK_EQ(send(wire, frame, sizeof frame, 0), sizeof frame);
    }
    while (t.n < FRAMES) {
        struct pollfd p = {.fd = guard_mirror_fd(g), .events = POLLIN};
        REQUIRE(poll(&p, 1, 5000) == 1);
        int before = t.n, n = guard_mirror_read(g, 7, take, &t);
        REQUIRE(n >= 1 && n <= 7 && t.n - before <= n);
    }
    CHECK_EQ(guard_mirror_read(g, 0, take, &t), 0);
    close(wire);
    guard_close(g);
}

#define BURST_MAX 60000 /* More copies than 4 MiB hold, however short they are cut. */

static void a_mirror_that_nobody_reads_counts_its_losses(void) {
    struct guard *g = open_here();
    struct guard_text why;
    struct taken t = {0};
    struct guard_mirroring m = {0};
    struct guard_count before = {0}, now = {0};
    uint8_t frame[1400];
    int wire = open_wire(), sent = 0, taken = 0, n;
    CHECK(guard_set_policy(g,
                           &(struct guard_policy){.mirror_sample = 1,
                                                  .mirror_snap = GUARD_SNAP_BYTES,
                                                  .mirror_verdicts = UINT64_C(1) << STOQ_VERDICT_PASS_OTHER},
                           &why));
    make_frame(frame, sizeof frame, 1);
    for (; sent < BURST_MAX && m.lost == 0; sent += FRAMES) {
        for (int i = 0; i < FRAMES; i++)
            CHECK_EQ(send(wire, frame, sizeof frame, 0), sizeof frame);
        REQUIRE(counted(g, &before, (uint64_t)sent + FRAMES, &now));
        guard_mirror_counts(g, &m);
    }
    CHECK(m.lost != 0 && m.chosen >= (uint64_t)sent);
    guard_set_policy(g, &(struct guard_policy){0}, &why); /* So that no more comes. */
    guard_mirror_counts(g, &m);
    while ((n = guard_mirror_read(g, 1000, take, &t)) > 0)
        taken += n;
    CHECK_EQ(m.chosen - m.lost, taken);
    close(wire);
    guard_close(g);
}

static const struct check_case cases[] = {
    {"regions_are_the_programs_map", regions_are_the_programs_map},
    {"policy_is_written_whole_or_refused", policy_is_written_whole_or_refused},
    {"ports_and_addresses_are_bounded", ports_and_addresses_are_bounded},
    {"what_is_near_follows", what_is_near_follows},
    {"blocks_expire", blocks_expire},
    {"a_full_blocklist_refuses", a_full_blocklist_refuses},
    {"sockets_are_entered", sockets_are_entered},
    {"counts_are_sums", counts_are_sums},
    {"mirror_gives_copies_in_order", mirror_gives_copies_in_order},
    {"a_mirror_that_nobody_reads_counts_its_losses", a_mirror_that_nobody_reads_counts_its_losses},
};

int main(int argc, char **argv) {
    return run_in_namespace(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
