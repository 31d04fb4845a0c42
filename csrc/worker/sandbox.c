/* See sandbox.h. The table below is the policy; the rest turns it into classic BPF and installs it.
 *
 * The program, in order: architecture, x32, then one block a table entry; the first that matches in number
 * and arguments decides. The kernel runs every filter once per system call at installation and remembers
 * which calls it allows whatever their arguments (bitmap of seccomp's action cache, Linux 5.11): those cost
 * nothing later, so the order of entries does not matter.
 *
 * Written by hand instead of with libseccomp: the table is what one has to read either way, the generator
 * is forty lines, and libseccomp would be one more library in the image, whose version would decide which
 * system calls we can name.
 */
#define _GNU_SOURCE
#include "sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH    AUDIT_ARCH_X86_64
#define X32_BIT 0x40000000u /* Calls of the x32 ABI: same architecture value, other numbers. */
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "sandbox.c: name this architecture's AUDIT_ARCH_ value"
#endif

/* More than the largest program has: the test knows how many that are. */
#define MAX_INSTRUCTIONS 512

enum when { ALWAYS, REBIND };
enum action { ALLOW, KILL };

/* (args[index] & mask) == value on the low 32 bits: the arguments checked here are `int` to the kernel, or
 * (mmap's and mprotect's protection) have all their meaning there. mask 0: no check. */
#define MAX_ARGUMENTS 2
struct argument {
    uint8_t index;
    uint32_t mask, value;
};

struct rule {
    int nr;
    enum action action;
    enum when when;
    struct argument args[MAX_ARGUMENTS];
    bool own_process; /* And the first argument is this process's id. */
    const char *reason;
};

#define NR(name) .nr = __NR_##name

static const struct rule rules[] = {
    /* Packets and waiting. */
    {NR(io_uring_enter), .reason = "io_uring: submit, wait, run deferred task work"},
    {NR(recvmmsg), .reason = "socket backend: trains in"},
    {NR(sendmmsg), .reason = "socket backend: trains out"},
    {NR(sendmsg), .reason = "datagrams one by one where a device refused UDP_SEGMENT"},
    {NR(recvfrom), .reason = "AF_XDP: need-wakeup and busy polling of the receive side"},
    {NR(sendto), .reason = "AF_XDP: need-wakeup of the transmit side"},
    {NR(ppoll), .reason = "wait for sockets and the eventfd"},
    {NR(read), .reason = "reset the eventfd"},
    {NR(write), .reason = "wake the control plane and other workers; the last words of abort()"},
    {NR(getsockopt), .reason = "XDP_STATISTICS"},

    /* Time, locks, scheduling. */
    {NR(clock_gettime), .reason = "where the vDSO cannot answer (no TSC clock source)"},
    {NR(futex), .reason = "semaphores at start, the allocator's locks, pthread_join of us"},
    {NR(sched_yield), .reason = "waiting for another worker's turn, for a moment"},
    {NR(sched_getaffinity), .reason = "glibc sizes its arenas at a thread's first allocation"},
    {NR(prctl), .args = {{0, ~0u, PR_SET_TIMERSLACK}}, .reason = "exact timers, at the loop's start"},
    {NR(restart_syscall), .reason = "a wait that a stop signal or debugger interrupted"},
    {NR(getpid), .reason = "libcrypto looks for forks; abort()"},
    {NR(gettid), .reason = "abort()"},
    {NR(getrandom), .reason = "connection ids, path challenges, keys"},

    /* Memory: never executable. */
    {NR(mmap), .args = {{2, ~(uint32_t)(PROT_READ | PROT_WRITE), 0}}, .reason = "the allocator"},
    {NR(mprotect), .args = {{2, ~(uint32_t)(PROT_READ | PROT_WRITE), 0}},
     .reason = "the allocator grows an arena"},
    {NR(munmap), .reason = "the allocator"},
    {NR(madvise), .reason = "the allocator; the stack at the thread's end"},
    {NR(brk), .reason = "the allocator's first arena"},

    /* The end. */
    {NR(exit), .reason = "the thread's end"},
    {NR(exit_group), .reason = "abort()"},
    {NR(rt_sigprocmask), .reason = "the thread's end blocks signals; abort()"},
    {NR(sigaltstack), .reason = "the sanitizers, at a thread's end"},
    {NR(rt_sigreturn), .reason = "a debugger's or profiler's signal"},
    {NR(tgkill), .own_process = true, .reason = "abort(): a failed assertion must end the process"},
    {NR(close), .reason = "descriptors of a backend whose worker moves to another thread"},
    {NR(io_uring_register), .args = {{1, ~0u, IORING_UNREGISTER_FILES}}, .reason = "the same"},
    {NR(io_uring_register), .args = {{1, ~0u, IORING_UNREGISTER_RING_FDS}}, .reason = "the same"},

    /* REBIND: another local port, in tests of migration. */
    {NR(socket), .when = REBIND, .args = {{0, ~0u, AF_INET6}, {1, 0xff, SOCK_DGRAM}},
     .reason = "a UDP socket over IPv6; the upper bits of the type are flags"},
    {NR(bind), .when = REBIND, .reason = "its port"},
    {NR(setsockopt), .when = REBIND, .reason = "its options"},
    {NR(getsockname), .when = REBIND, .reason = "the port it got"},
    {NR(eventfd2), .when = REBIND, .reason = "its waker"},
    {NR(io_uring_setup), .when = REBIND, .reason = "its ring"},
    {NR(io_uring_register), .when = REBIND, .reason = "its buffers and files"},

    /* What no code of ours, glibc's or libcrypto's asks for in a worker: somebody else is running. */
    {NR(mmap), KILL, .reason = "executable memory"},
    {NR(mprotect), KILL, .reason = "executable memory"},
    {NR(execve), KILL, .reason = "run a program"},
    {NR(execveat), KILL, .reason = "run a program"},
    {NR(clone), KILL, .reason = "another thread or process"},
    {NR(clone3), KILL, .reason = "another thread or process"},
#ifdef __NR_fork
    {NR(fork), KILL, .reason = "another thread or process"},
    {NR(vfork), KILL, .reason = "another thread or process"},
#endif
    {NR(ptrace), KILL, .reason = "other processes' memory"},
    {NR(process_vm_readv), KILL, .reason = "other processes' memory"},
    {NR(process_vm_writev), KILL, .reason = "other processes' memory"},
    {NR(pidfd_getfd), KILL, .reason = "other processes' descriptors"},
    {NR(bpf), KILL, .reason = "the guard's maps belong to the control plane"},
    {NR(perf_event_open), KILL, .reason = "kernel attack surface"},
    {NR(userfaultfd), KILL, .reason = "kernel attack surface"},
    {NR(add_key), KILL, .reason = "kernel attack surface"},
    {NR(keyctl), KILL, .reason = "kernel attack surface"},
    {NR(pkey_mprotect), KILL, .reason = "executable memory by another name"},
    {NR(personality), KILL, .reason = "READ_IMPLIES_EXEC makes all memory executable"},
    {NR(mount), KILL, .reason = "the file system"},
    {NR(setns), KILL, .reason = "other namespaces"},
    {NR(unshare), KILL, .reason = "user namespaces give back capabilities"},
    {NR(init_module), KILL, .reason = "kernel code"},
    {NR(finit_module), KILL, .reason = "kernel code"},
    {NR(kexec_load), KILL, .reason = "kernel code"},
    {NR(capset), KILL, .reason = "capabilities"},
    {NR(setresuid), KILL, .reason = "another user"},
    {NR(setuid), KILL, .reason = "another user"},
};

struct program {
    struct sock_filter *out;
    size_t count, max;
};

static void emit(struct program *p, uint16_t code, uint32_t k, uint8_t jt, uint8_t jf) {
    if (p->count < p->max)
        p->out[p->count] = (struct sock_filter){.code = code, .jt = jt, .jf = jf, .k = k};
    p->count++;
}

static void emit_load(struct program *p, size_t offset) {
    emit(p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0);
}

static void emit_return(struct program *p, uint32_t value) {
    emit(p, BPF_RET | BPF_K, value, 0, 0);
}

/* Low half of a 64-bit argument; both architectures are little endian. */
static size_t argument_offset(unsigned index) {
    return offsetof(struct seccomp_data, args) + index * sizeof(uint64_t);
}

/* One entry: the number is in the accumulator when it begins, and again when it does not match. */
static void emit_rule(struct program *p, const struct rule *r) {
    struct argument args[MAX_ARGUMENTS + 1];
    unsigned n = 0, left = 1; /* Instructions from here to the block's end; 1: the return. */
    if (r->own_process)
        args[n++] = (struct argument){0, ~0u, (uint32_t)getpid()};
    for (unsigned i = 0; i < MAX_ARGUMENTS && r->args[i].mask != 0; i++)
        args[n++] = r->args[i];
    for (unsigned i = 0; i < n; i++)
        left += args[i].mask == ~0u ? 2 : 3; /* A mask of all ones needs no "and". */
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)r->nr, 0, (uint8_t)(left + (n > 0)));
    for (unsigned i = 0; i < n; i++) {
        emit_load(p, argument_offset(args[i].index));
        if (args[i].mask != ~0u)
            emit(p, BPF_ALU | BPF_AND | BPF_K, args[i].mask, 0, 0);
        left -= args[i].mask == ~0u ? 2 : 3;
        emit(p, BPF_JMP | BPF_JEQ | BPF_K, args[i].value, 0, (uint8_t)left);
    }
    emit_return(p, r->action == KILL ? SECCOMP_RET_KILL_PROCESS : SECCOMP_RET_ALLOW);
    if (n > 0)
        emit_load(p, offsetof(struct seccomp_data, nr));
}

static bool applies(const struct sandbox_options *options, const struct rule *r) {
    return r->when == ALWAYS || options->rebind;
}

size_t worker_sandbox_program(const struct sandbox_options *options, struct sock_filter *out, size_t max) {
    struct program p = {.out = out, .max = max};
    emit_load(&p, offsetof(struct seccomp_data, arch));
    emit(&p, BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0);
    emit_return(&p, SECCOMP_RET_KILL_PROCESS);
    emit_load(&p, offsetof(struct seccomp_data, nr));
#ifdef X32_BIT
    emit(&p, BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1);
    emit_return(&p, SECCOMP_RET_KILL_PROCESS);
#endif
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++)
        if (applies(options, &rules[i]))
            emit_rule(&p, &rules[i]);
    emit_return(&p, SECCOMP_RET_ERRNO | EPERM);
    return p.count;
}

bool worker_sandbox_enter(const struct sandbox_options *options, char *why, size_t cap) {
    struct sock_filter code[MAX_INSTRUCTIONS];
    size_t count = worker_sandbox_program(options, code, MAX_INSTRUCTIONS);
    if (count > MAX_INSTRUCTIONS) {
        snprintf(why, cap, "the filter has %zu instructions, %d fit", count, MAX_INSTRUCTIONS);
        return false;
    }
    struct sock_fprog program = {.len = (unsigned short)count, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        snprintf(why, cap, "PR_SET_NO_NEW_PRIVS: %s", strerror(errno));
        return false;
    }
    /* LOG: refusals leave a line in the audit log. SPEC_ALLOW: before Linux 5.16 a filter also switched on
     * the speculative store bypass mitigation, which is for threads that run other people's code and costs
     * ours several per cent. Without TSYNC the filter is this thread's alone. */
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program) != 0) {
        snprintf(why, cap, "seccomp: %s (CONFIG_SECCOMP_FILTER; no_sandbox does without)", strerror(errno));
        return false;
    }
    return true;
}

void worker_sandbox_describe(const struct sandbox_options *options, char *out, size_t cap) {
    unsigned allowed = 0, fatal = 0;
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        if (!applies(options, &rules[i]))
            continue;
        allowed += rules[i].action == ALLOW;
        fatal += rules[i].action == KILL;
    }
    snprintf(out, cap, "seccomp: %u rules allow%s, %u end the process", allowed,
             options->rebind ? " (REBIND's too)" : "", fatal);
}
