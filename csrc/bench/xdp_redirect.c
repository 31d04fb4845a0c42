/* See xdp_redirect.h. */
#define _GNU_SOURCE
#include "xdp_redirect.h"

#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench.h"

#define MAX_QUEUES 64

/* Where things stand in a frame: Ethernet, then IPv6 without extension headers, then UDP. */
#define ETHERTYPE_AT   12
#define NEXT_HEADER_AT (14 + 6)
#define UDP_PORT_AT    (14 + 40 + 2)
#define HEADERS_BYTES  (14 + 40 + 8)

/* bpf(2) wants what the kernel does not know yet to be zero. */
static int bpf(int command, union bpf_attr *attr) {
    return (int)syscall(SYS_bpf, command, attr, sizeof *attr);
}

static struct bpf_insn insn(uint8_t code, uint8_t dst, uint8_t src, int16_t off, int32_t imm) {
    return (struct bpf_insn){
        .code = code, .dst_reg = dst & 0xf, .src_reg = src & 0xf, .off = off, .imm = imm};
}

static int load(int map, uint16_t port) {
    enum {
        LD_W = BPF_LDX | BPF_MEM | BPF_W,
        LD_H = BPF_LDX | BPF_MEM | BPF_H,
        LD_B = BPF_LDX | BPF_MEM | BPF_B
    };
    enum { SET = BPF_ALU64 | BPF_MOV | BPF_K, UNLIKE = BPF_JMP | BPF_JNE | BPF_K };
    /* Jumps go to the last two instructions: their distance is what lies between. */
    const struct bpf_insn program[] = {
        insn(LD_W, 2, 1, offsetof(struct xdp_md, data), 0),
        insn(LD_W, 3, 1, offsetof(struct xdp_md, data_end), 0),
        insn(BPF_ALU64 | BPF_MOV | BPF_X, 4, 2, 0, 0),
        insn(BPF_ALU64 | BPF_ADD | BPF_K, 4, 0, 0, HEADERS_BYTES),
        insn(BPF_JMP | BPF_JGT | BPF_X, 4, 3, 12, 0),
        insn(LD_H, 5, 2, ETHERTYPE_AT, 0),
        insn(UNLIKE, 5, 0, 10, htons(0x86dd)),
        insn(LD_B, 5, 2, NEXT_HEADER_AT, 0),
        insn(UNLIKE, 5, 0, 8, IPPROTO_UDP),
        insn(LD_H, 5, 2, UDP_PORT_AT, 0),
        insn(UNLIKE, 5, 0, 6, htons(port)),
        insn(LD_W, 2, 1, offsetof(struct xdp_md, rx_queue_index), 0),
        insn(BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map),
        insn(0, 0, 0, 0, 0),          /* The second half of a 64-bit constant. */
        insn(SET, 3, 0, 0, XDP_PASS), /* What to do where the map has no socket. */
        insn(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map),
        insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
        insn(SET, 0, 0, 0, XDP_PASS),
        insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
    static char log[4096];
    union bpf_attr attr = {0};
    attr.prog_type = BPF_PROG_TYPE_XDP;
    attr.expected_attach_type = BPF_XDP;
    attr.insns = (uintptr_t)program;
    attr.insn_cnt = sizeof program / sizeof program[0];
    attr.license = (uintptr_t) "Dual BSD/GPL";
    attr.log_buf = (uintptr_t)log;
    attr.log_size = sizeof log;
    attr.log_level = 1;
    memcpy(attr.prog_name, "bench_redirect", sizeof "bench_redirect");
    int fd = bpf(BPF_PROG_LOAD, &attr);
    if (fd < 0) {
        bench_fail("the XDP program was refused: %s\n%s", strerror(errno), log);
    }
    return fd;
}

struct xdp_redirect xdp_redirect_open(uint32_t ifindex, uint16_t port) {
    union bpf_attr map = {0}, link = {0};
    struct xdp_redirect r;
    map.map_type = BPF_MAP_TYPE_XSKMAP;
    map.key_size = sizeof(uint32_t);
    map.value_size = sizeof(uint32_t);
    map.max_entries = MAX_QUEUES;
    r.map = bpf(BPF_MAP_CREATE, &map);
    if (r.map < 0) {
        bench_fail("no XSKMAP: %s (needs root, or CAP_BPF and CAP_NET_ADMIN)", strerror(errno));
    }
    r.program = load(r.map, port);
    link.link_create.prog_fd = (uint32_t)r.program;
    link.link_create.target_ifindex = ifindex;
    link.link_create.attach_type = BPF_XDP;
    link.link_create.flags = XDP_FLAGS_DRV_MODE;
    r.link = bpf(BPF_LINK_CREATE, &link);
    if (r.link < 0) {
        bench_fail("the XDP program cannot be attached: %s", strerror(errno));
    }
    return r;
}

void xdp_redirect_set(const struct xdp_redirect *r, uint32_t queue, int xsk) {
    union bpf_attr attr = {0};
    attr.map_fd = (uint32_t)r->map;
    attr.key = (uintptr_t)&queue;
    attr.value = (uintptr_t)&xsk;
    attr.flags = BPF_ANY;
    if (bpf(BPF_MAP_UPDATE_ELEM, &attr) != 0) {
        bench_fail("the socket does not go into the XSKMAP: %s", strerror(errno));
    }
}

void xdp_redirect_close(struct xdp_redirect *r) {
    close(r->link);
    close(r->program);
    close(r->map);
    *r = (struct xdp_redirect){-1, -1, -1};
}
