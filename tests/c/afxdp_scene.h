/* A stage for AF_XDP tests: two network namespaces joined by a veth pair, each end with a small XDP program
 * that redirects to the XSKMAP of that end what is for one UDP port (or everything), and passes the rest.
 *
 *      namespace a: va fd00::1 ──────────── vb fd00::2 :namespace b
 *
 * The program is written by hand so that nothing but the kernel is needed to load it; the real guard has
 * tests of its own. Needs root and iproute2. Include after check.h, in one file. */
#ifndef STOQ_TESTS_AFXDP_SCENE_H
#define STOQ_TESTS_AFXDP_SCENE_H

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../../csrc/io/afxdp_private.h"

#define SCENE_PORT   9292
#define SCENE_QUEUES 4
#define XDP_FRAGS    (1u << 5) /* BPF_F_XDP_HAS_FRAGS: the program takes frames in several buffers. */

struct scene_side {
    const char *interface;
    int ns; /* Descriptor of the namespace. */
    uint32_t ifindex;
    int map, link;
    uint8_t ip[16], mac[6];
};

struct scene {
    struct scene_side a, b;
};

static int home_ns = -1;

static inline int scene_this_ns(void) {
    return open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
}

static void enter(int ns) {
    REQUIRE(setns(ns, CLONE_NEWNET) == 0);
}

__attribute__((format(printf, 1, 2))) static void shell(const char *format, ...) {
    char command[512];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    check_note("%s", command);
    REQUIRE(system(command) == 0);
    check_note("%s", "");
}

static int bpf(int what, union bpf_attr *attr) {
    return (int)syscall(SYS_bpf, what, attr, sizeof *attr);
}

static struct bpf_insn insn(uint8_t code, uint8_t dst, uint8_t src, int16_t off, int32_t imm) {
    return (struct bpf_insn){
        .code = code, .dst_reg = dst & 15u, .src_reg = src & 15u, .off = off, .imm = imm};
}

/* IPv6 and UDP for SCENE_PORT, or with `everything` whatever comes, goes to the queue's socket; without one,
 * and all else, to the stack. */
static int scene_program(int map, bool everything, bool frags) {
    enum { R0, R1, R2, R3, R4, R5, R6 };
    const uint8_t load[] = {
        [1] = BPF_LDX | BPF_MEM | BPF_B, [2] = BPF_LDX | BPF_MEM | BPF_H, [4] = BPF_LDX | BPF_MEM | BPF_W};
    const uint8_t differs = BPF_JMP | BPF_JNE | BPF_K;
    struct bpf_insn p[24];
    int n = 0;
    p[n++] = insn(BPF_ALU64 | BPF_MOV | BPF_X, R6, R1, 0, 0);
    if (!everything) {
        const int pass = 18;                  /* Index of the instruction that passes. */
        p[n++] = insn(load[4], R2, R1, 0, 0); /* data */
        p[n++] = insn(load[4], R3, R1, 4, 0); /* data_end */
        p[n++] = insn(BPF_ALU64 | BPF_MOV | BPF_X, R4, R2, 0, 0);
        p[n++] = insn(BPF_ALU64 | BPF_ADD | BPF_K, R4, 0, 0, 62);
        p[n] = insn(BPF_JMP | BPF_JGT | BPF_X, R4, R3, (int16_t)(pass - n - 1), 0), n++;
        p[n++] = insn(load[2], R5, R2, 12, 0);
        p[n] = insn(differs, R5, 0, (int16_t)(pass - n - 1), __builtin_bswap16(0x86dd)), n++;
        p[n++] = insn(load[1], R5, R2, 20, 0);
        p[n] = insn(differs, R5, 0, (int16_t)(pass - n - 1), 17), n++;
        p[n++] = insn(load[2], R5, R2, 56, 0);
        p[n] = insn(differs, R5, 0, (int16_t)(pass - n - 1), __builtin_bswap16(SCENE_PORT)), n++;
    }
    p[n++] = insn(load[4], R2, R6, 16, 0); /* rx_queue_index */
    p[n++] = insn(BPF_LD | BPF_IMM | BPF_DW, R1, BPF_PSEUDO_MAP_FD, 0, map);
    p[n++] = insn(0, 0, 0, 0, 0);
    p[n++] = insn(BPF_ALU64 | BPF_MOV | BPF_K, R3, 0, 0, XDP_PASS);
    p[n++] = insn(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map);
    p[n++] = insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    if (!everything) {                                                  /* Unreachable code is refused. */
        p[n++] = insn(BPF_ALU64 | BPF_MOV | BPF_K, R0, 0, 0, XDP_PASS); /* 18 */
        p[n++] = insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    }

    static char log[4096];
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.prog_type = BPF_PROG_TYPE_XDP;
    attr.expected_attach_type = BPF_XDP;
    attr.insns = (uintptr_t)p;
    attr.insn_cnt = (uint32_t)n;
    attr.license = (uintptr_t) "GPL";
    attr.prog_flags = frags ? XDP_FRAGS : 0;
    attr.log_buf = (uintptr_t)log;
    attr.log_size = sizeof log;
    attr.log_level = 1;
    int fd = bpf(BPF_PROG_LOAD, &attr);
    if (fd < 0) {
        printf("%s: %s\n", strerror(errno), log);
    }
    return fd;
}

static int scene_map(void) {
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_type = BPF_MAP_TYPE_XSKMAP;
    attr.key_size = attr.value_size = 4;
    attr.max_entries = SCENE_QUEUES;
    return bpf(BPF_MAP_CREATE, &attr);
}

/* In the side's namespace. */
static void scene_attach(struct scene_side *s, bool everything) {
    union bpf_attr attr;
    s->map = scene_map();
    REQUIRE(s->map >= 0);
    int program = scene_program(s->map, everything, true);
    REQUIRE(program >= 0);
    memset(&attr, 0, sizeof attr);
    attr.link_create.prog_fd = (uint32_t)program;
    attr.link_create.target_ifindex = s->ifindex;
    attr.link_create.attach_type = BPF_XDP;
    s->link = bpf(BPF_LINK_CREATE, &attr);
    close(program); /* The link holds it. */
    REQUIRE(s->link >= 0);
}

static void scene_side_up(struct scene_side *s, int last, uint32_t mtu, bool everything) {
    enter(s->ns);
    s->mac[0] = 2;
    s->mac[5] = (uint8_t)last;
    s->ip[0] = 0xfd;
    s->ip[15] = (uint8_t)last;
    shell("ip link set lo up && ip link set %s address 02:00:00:00:00:%02x mtu %u up", s->interface, last,
          mtu);
    shell("ip address add fd00::%d/64 dev %s nodad", last, s->interface);
    s->ifindex = if_nametoindex(s->interface);
    scene_attach(s, everything);
    enter(home_ns);
}

static struct scene scene_open(uint32_t mtu, bool everything) {
    struct scene s = {.a = {.interface = "va"}, .b = {.interface = "vb"}};
    REQUIRE(unshare(CLONE_NEWNET) == 0);
    s.b.ns = scene_this_ns();
    REQUIRE(unshare(CLONE_NEWNET) == 0);
    s.a.ns = scene_this_ns();
    REQUIRE(s.a.ns >= 0 && s.b.ns >= 0);
    /* Down on purpose until both ends have their MTU: nothing of the kernel's own is on the wire before. */
    shell(
        "ip link add va numtxqueues 1 numrxqueues 1 type veth peer name vb numtxqueues 1 numrxqueues 1 netns "
        "/proc/%d/fd/%d",
        (int)getpid(), s.b.ns);
    scene_side_up(&s.a, 1, mtu, everything);
    scene_side_up(&s.b, 2, mtu, everything);
    return s;
}

static void scene_close(struct scene *s) {
    close(s->a.link);
    close(s->b.link);
    close(s->a.map);
    close(s->b.map);
    enter(home_ns);
    close(s->a.ns);
    close(s->b.ns);
}

/* Enter a socket, or with -1 take it out. */
__attribute__((unused)) static bool scene_set_xsk(const struct scene_side *s, int fd) {
    uint32_t queue = 0;
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_fd = (uint32_t)s->map;
    attr.key = (uintptr_t)&queue;
    attr.value = fd >= 0 ? (uintptr_t)&fd : 0;
    return bpf(fd >= 0 ? BPF_MAP_UPDATE_ELEM : BPF_MAP_DELETE_ELEM, &attr) == 0;
}

/* Is a socket in the map? It cannot be read; but it says whether a place is free. */
__attribute__((unused)) static bool scene_has_xsk(const struct scene_side *s) {
    uint32_t queue = 0;
    int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_fd = (uint32_t)s->map;
    attr.key = (uintptr_t)&queue;
    attr.value = (uintptr_t)&fd;
    attr.flags = BPF_NOEXIST;
    bool refused = bpf(BPF_MAP_UPDATE_ELEM, &attr) != 0 && errno == EEXIST;
    close(fd); /* And out of the map again, if it got in. */
    return refused;
}

/* What the control plane would tell `io` of the other side. */
static void scene_introduce(struct io *io, const struct scene_side *other) {
    struct io_route route = {.prefix = {0xfd}, .bits = 64, .ours = true};
    struct io_neighbour neighbour = {0};
    memcpy(neighbour.ip, other->ip, sizeof neighbour.ip);
    memcpy(neighbour.link, other->mac, sizeof neighbour.link);
    io->ops->learn_route(io, &route);
    io->ops->learn_neighbour(io, &neighbour);
}

/* False where this may not be done at all: not root, no XDP sockets. */
static bool scene_possible(void) {
    home_ns = scene_this_ns();
    int xsk = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    int map = scene_map();
    bool ok = home_ns >= 0 && xsk >= 0 && map >= 0 && unshare(CLONE_NEWNET) == 0 &&
              system("ip link show lo >/dev/null 2>&1") == 0;
    if (ok) {
        close(home_ns); /* Nothing of ours ever runs in the namespace that the tests were started in. */
        home_ns = scene_this_ns();
    }
    if (xsk >= 0) {
        close(xsk);
    }
    if (map >= 0) {
        close(map);
    }
    return ok;
}

#endif
