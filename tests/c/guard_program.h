/* Running the XDP program frame by frame (BPF_PROG_RUN, kernel: bpf/bpf_prog_run.rst): the program is loaded
 * once, attached nowhere, and between two tests all its maps are put back to what `reset` says.
 *
 * `judged` runs one frame and checks what holds for any: one verdict counts the frame and its bytes, no other
 * moves, the return code is the verdict's, and what is not answered comes out as it went in.
 *
 * Include in one file per test program: the state is static. */
#ifndef STOQ_TESTS_GUARD_PROGRAM_H
#define STOQ_TESTS_GUARD_PROGRAM_H

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "bpf/guard.skel.h"
#include "bpf/layout.h"
#include "bpf/parse.h"
#include "guard_frames.h"
#include "tables.h"

#define BUCKETS    64u
#define WORKERS    4u
#define SECOND_NS  UINT64_C(1000000000)
#define WINDOW_NS  (SECOND_NS / 16)
#define KNOWN_ID   UINT64_C(0x8877665544330205) /* As a word; in a packet 05 02 33 44 ...: worker 2. */
#define UNKNOWN_ID UINT64_C(0x8877665544330305)

static struct guard_bpf *skeleton;
static int program_fd;

static const uint64_t retry_key[2] = {0x0706050403020100, 0x0f0e0d0c0b0a0908};

static const char *const verdict_names[] = {
#define X(name, value, text) [value] = #name,
    STOQ_VERDICTS(X)
#undef X
};

__attribute__((unused)) static uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND_NS + (uint64_t)t.tv_nsec;
}

/* ---- maps ---- */

static int map_fd(const struct bpf_map *map) {
    return bpf_map__fd(map);
}

/* Every test runs twice: all frames the long way, and as the loader would have it. */
static bool near;

__attribute__((unused)) static void set_policy(const struct guard_policy *p) {
    struct guard_policy q = *p;
    q.flags |= GUARD_BLOCKS;
    if (near) {
        memcpy(q.near_ip, our_ip, sizeof q.near_ip);
        q.near_port = htons(PORT);
    }
    REQUIRE(bpf_map_update_elem(map_fd(skeleton->maps.policy), &(uint32_t){0}, &q, BPF_ANY) == 0);
}

/* The policy of most tests: no limit but that nothing unknown passes; a table of ids. */
__attribute__((unused)) static struct guard_policy base_policy(void) {
    return (struct guard_policy){
        .retry_key = {retry_key[0], retry_key[1]}, .cid_buckets = BUCKETS, .workers = WORKERS};
}

static uint32_t bucket_of(uint64_t id) {
    uint8_t b[8];
    memcpy(b, &id, sizeof b);
    return b[1] * BUCKETS + (b[2] + 256u * b[3] + 65536u * b[4] + 16777216u * b[5]) % BUCKETS;
}

__attribute__((unused)) static void set_cids(uint64_t id, const struct guard_cids *c) {
    uint32_t at = bucket_of(id);
    REQUIRE(bpf_map_update_elem(map_fd(skeleton->maps.cids), &at, c, BPF_ANY) == 0);
}

__attribute__((unused)) static void set_limit(enum guard_limit limit, struct guard_window w) {
    uint32_t at = limit;
    REQUIRE(bpf_map_update_elem(map_fd(skeleton->maps.limits), &at, &w, BPF_ANY) == 0);
}

__attribute__((unused)) static struct guard_window get_limit(enum guard_limit limit) {
    uint32_t at = limit;
    struct guard_window w = {0};
    REQUIRE(bpf_map_lookup_elem(map_fd(skeleton->maps.limits), &at, &w) == 0);
    return w;
}

static void empty_map(const struct bpf_map *map, size_t key_bytes) {
    uint8_t key[32];
    REQUIRE(key_bytes <= sizeof key);
    while (bpf_map_get_next_key(map_fd(map), NULL, key) == 0)
        REQUIRE(bpf_map_delete_elem(map_fd(map), key) == 0);
}

static struct {
    uint32_t queue, ifindex; /* Where frames come in; 0, 0: the kernel's choice. */
    uint32_t linear;         /* Bytes of the first buffer; 0: as many as it takes. Linux 6.18. */
} arrival;

__attribute__((unused)) static void reset(void) {
    memset(&arrival, 0, sizeof arrival);
    const uint8_t one = 1;
    const uint16_t port = htons(PORT);
    empty_map(skeleton->maps.ports, 2);
    empty_map(skeleton->maps.addresses, 16);
    empty_map(skeleton->maps.blocklist, sizeof(struct guard_prefix));
    empty_map(skeleton->maps.sources, 8);
    REQUIRE(bpf_map_update_elem(map_fd(skeleton->maps.ports), &port, &one, BPF_ANY) == 0);
    REQUIRE(bpf_map_update_elem(map_fd(skeleton->maps.addresses), our_ip, &one, BPF_ANY) == 0);
    struct guard_cids none = {0}, known = {.id = {[3] = KNOWN_ID}};
    for (uint32_t i = 0; i < WORKERS * BUCKETS; i++)
        REQUIRE(bpf_map_update_elem(map_fd(skeleton->maps.cids), &i, &none, BPF_ANY) == 0);
    set_cids(KNOWN_ID, &known);
    for (uint32_t i = 0; i < GUARD_LIMIT_COUNT; i++)
        set_limit((enum guard_limit)i, (struct guard_window){0});
    for (uint32_t i = 0; i < GUARD_MAX_QUEUES; i++)
        bpf_map_delete_elem(map_fd(skeleton->maps.xsks), &i);
    struct guard_policy p = base_policy();
    set_policy(&p);
}

/* An AF_XDP socket that the map takes: bound to nothing, with a receive ring. */
__attribute__((unused)) static int open_xsk(void) {
    int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    REQUIRE(fd >= 0 && setsockopt(fd, SOL_XDP, XDP_RX_RING, &(int){64}, sizeof(int)) == 0);
    return fd;
}

/* ---- running ---- */

struct outcome {
    uint32_t action;
    int verdict; /* -1: not one counter moved by one. */
    uint32_t ns;
    uint8_t out[FRAME_MAX];
    uint32_t out_len;
};

static void read_counts(struct guard_count out[STOQ_VERDICT_COUNT]) {
    int cpus = libbpf_num_possible_cpus();
    struct guard_count each[256];
    REQUIRE(cpus > 0 && cpus <= 256);
    for (uint32_t v = 0; v < STOQ_VERDICT_COUNT; v++) {
        out[v] = (struct guard_count){0};
        REQUIRE(bpf_map_lookup_elem(map_fd(skeleton->maps.verdicts), &v, each) == 0);
        for (int cpu = 0; cpu < cpus; cpu++) {
            out[v].packets += each[cpu].packets;
            out[v].bytes += each[cpu].bytes;
        }
    }
}

static uint32_t action_of(int verdict) {
    const char *name = verdict_names[verdict];
    return strncmp(name, "DROP", 4) == 0     ? XDP_DROP
           : verdict == STOQ_VERDICT_XSK     ? XDP_REDIRECT
           : strncmp(name, "ANSWER", 6) == 0 ? XDP_TX
                                             : XDP_PASS;
}

/* One frame through the program. */
static struct outcome judged(const struct frame *f) {
    struct guard_count before[STOQ_VERDICT_COUNT], after[STOQ_VERDICT_COUNT];
    struct outcome o = {.verdict = -1};
    struct xdp_md context = {.data_end = arrival.linear ? arrival.linear : (uint32_t)f->len,
                             .ingress_ifindex = arrival.ifindex,
                             .rx_queue_index = arrival.queue};
    LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = f->b, .data_size_in = (uint32_t)f->len, .data_out = o.out,
                .data_size_out = sizeof o.out, .repeat = 1);
    if (arrival.ifindex || arrival.linear) {
        run.ctx_in = &context;
        run.ctx_size_in = sizeof context;
    }
    read_counts(before);
    int error = bpf_prog_test_run_opts(program_fd, &run);
    read_counts(after);
    if (error != 0)
        printf("FAIL: BPF_PROG_RUN of %zu bytes: %s\n", f->len, strerror(-error));
    REQUIRE(error == 0);
    o.action = run.retval;
    o.out_len = run.data_size_out;
    o.ns = run.duration;
    unsigned moved = 0;
    for (int v = 0; v < STOQ_VERDICT_COUNT; v++) {
        if (after[v].packets == before[v].packets && after[v].bytes == before[v].bytes)
            continue;
        moved++;
        CHECK_EQ(after[v].packets - before[v].packets, 1);
        CHECK_EQ(after[v].bytes - before[v].bytes, f->len);
        o.verdict = v;
    }
    if (!CHECK_EQ(moved, 1))
        o.verdict = -1;
    REQUIRE(o.verdict >= 0);
    CHECK_EQ(o.action, action_of(o.verdict));
    if (o.action != XDP_TX) {
        CHECK_EQ(o.out_len, f->len);
        CHECK_MEM(o.out, f->b, f->len);
    }
    return o;
}

static bool check_verdict(const struct frame *f, int want, const char *file, int line) {
    struct outcome o = judged(f);
    if (o.verdict != want)
        check_failed(file, line, "verdict %s, not %s", verdict_names[o.verdict], verdict_names[want]);
    return o.verdict == want;
}
#define EXPECT(frame, name) check_verdict((frame), STOQ_VERDICT_##name, __FILE__, __LINE__)

/* Can the kernel be told where the first buffer ends? */
__attribute__((unused)) static bool linear_can_be_set(void) {
    struct frame f;
    struct shape s = plain();
    uint8_t payload[200] = {0};
    make_frame(&f, &s, payload, sizeof payload);
    struct xdp_md context = {.data_end = 100};
    LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = f.b, .data_size_in = (uint32_t)f.len, .repeat = 1,
                .ctx_in = &context, .ctx_size_in = sizeof context);
    return bpf_prog_test_run_opts(program_fd, &run) == 0;
}

/* ---- the frame of each test program ---- */

static char verifier_log[1 << 16];

static int quiet(enum libbpf_print_level level, const char *format, va_list args) {
    (void)level, (void)format, (void)args;
    return 0;
}

/* Loads the program, in a network namespace that goes with this process. */
static int run_program_tests(int argc, char **argv, const struct check_case *cases, size_t count) {
    if (unshare(CLONE_NEWNET) != 0) {
        printf("SKIP: a network namespace cannot be made (%s): run as root\n", strerror(errno));
        return 0;
    }
    libbpf_set_print(quiet);
    skeleton = guard_bpf__open();
    if (skeleton == NULL) {
        printf("FAIL: the program's object does not open: %s\n", strerror(errno));
        return 1;
    }
    bpf_map__set_max_entries(skeleton->maps.cids, WORKERS * BUCKETS);
    bpf_program__set_log_level(skeleton->progs.stoq_guard, 4); /* Its figures only. */
    bpf_program__set_log_buf(skeleton->progs.stoq_guard, verifier_log, sizeof verifier_log);
    int error = guard_bpf__load(skeleton);
    if (error == -EPERM || error == -ENOSYS) {
        printf("SKIP: this kernel refuses BPF to us (%s): run as root\n", strerror(-error));
        return 0;
    }
    if (error != 0) {
        size_t len = strlen(verifier_log);
        printf("FAIL: the program does not load: %s\n%s\n", strerror(-error),
               verifier_log + (len > 3000 ? len - 3000 : 0));
        return 1;
    }
    program_fd = bpf_program__fd(skeleton->progs.stoq_guard);
    int failed = check_main(argc, argv, cases, count);
    near = true;
    static uint32_t slots[GUARD_REPLAY_SLOTS];
    static uint64_t nothing[GUARD_REPLAY_SLOTS];
    for (uint32_t i = 0; i < GUARD_REPLAY_SLOTS; i++)
        slots[i] = i;
    failed |= bpf_map_update_batch(map_fd(skeleton->maps.replays), slots, nothing,
                                   &(uint32_t){GUARD_REPLAY_SLOTS}, NULL) != 0;
    printf("again, with a port and an address that are near\n");
    failed |= check_main(argc, argv, cases, count);
    guard_bpf__destroy(skeleton);
    return failed;
}

#endif
