/* The worker's seccomp filter and the dropping of privileges, against the real kernel. Every attempt is made
 * in a forked child, which reports by its exit code or by the signal that ended it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/io/io.h"
#include "../../csrc/io/uring.h"
#include "../../csrc/stoq.h"
#include "../../csrc/worker/privileges.h"
#include "../../csrc/worker/sandbox.h"
#include "check.h"

#define NOBODY 65534u

static const struct sandbox_options strict = {.rebind = false}, rebinding = {.rebind = true};

/* What a child answers: 0 to 255 its exit code, negative the signal that killed it. No core is written: some
 * of these end that way on purpose. */
static int in_child(int (*attempt)(void), const struct sandbox_options *options) {
    fflush(stdout);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        char why[256];
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
        if (options && !worker_sandbox_enter(options, why, sizeof why))
            _exit(254);
        _exit(attempt());
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

/* 0, or the errno of a call that failed. */
static int outcome(long result) {
    return result >= 0 ? 0 : errno;
}

/* ---- calls the table allows ---- */

static int memory(void) {
    uint8_t *small[64], *large = malloc(64 << 20);
    for (int i = 0; i < 64; i++)
        small[i] = malloc(1000u << (i % 10));
    for (int i = 0; i < 64; i++) {
        if (!small[i])
            return 1;
        small[i][0] = 1;
        free(small[i]);
    }
    if (!large)
        return 2;
    large[0] = 1;
    free(large);
    void *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p, 4096, PROT_READ) != 0 || madvise(p, 8192, MADV_DONTNEED) != 0)
        return 3;
    return munmap(p, 8192) != 0 ? 4 : 0;
}

static int small_things(void) {
    struct timespec t;
    uint8_t random[16];
    if (syscall(SYS_getrandom, random, sizeof random, 0) != sizeof random)
        return 1;
    if (syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t) != 0) /* Not through the vDSO. */
        return 2;
    if (prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL) != 0)
        return 3;
    if (sched_yield() != 0 || getpid() <= 0)
        return 4;
    return 0;
}

static int aborts(void) {
    abort();
}

/* ---- calls that answer EPERM ---- */

static int opens(void) {
    return outcome(open("/etc/passwd", O_RDONLY | O_CLOEXEC));
}
static int opens_to_write(void) {
    return outcome(openat(AT_FDCWD, "/tmp/never-made", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
}
static int ipv4_socket(void) {
    return outcome(socket(AF_INET, SOCK_DGRAM, 0));
}
static int udp_socket(void) {
    return outcome(socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDP));
}
static int tcp_socket(void) {
    return outcome(socket(AF_INET6, SOCK_STREAM, 0));
}
static int raw_socket(void) {
    return outcome(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
}
static int xdp_socket(void) {
    return outcome(socket(AF_XDP, SOCK_RAW, 0));
}
static int kills_its_parent(void) {
    return outcome(kill(getppid(), 0));
}
static int signals_another_process(void) {
    return outcome(syscall(SYS_tgkill, 1, 1, 0));
}
static int renames_itself(void) {
    return outcome(prctl(PR_SET_NAME, "harmless", 0UL, 0UL, 0UL));
}
static int makes_a_ring(void) {
    uint8_t params[120] = {0};
    return outcome(syscall(SYS_io_uring_setup, 4, params));
}
static int registers_files(void) {
    int fd = 0;
    return outcome(syscall(SYS_io_uring_register, 0, 2 /* IORING_REGISTER_FILES */, &fd, 1));
}
static int looks_at_a_device(void) {
    struct ifreq request = {.ifr_name = "lo"};
    return outcome(ioctl(0, SIOCGIFINDEX, &request));
}

/* ---- calls that end the process ---- */

static int executes(void) {
    char *argv[] = {(char *)(uintptr_t) "true", NULL};
    return outcome(execve("/bin/true", argv, argv + 1));
}
static int clones(void) {
    return outcome(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
}
static void *idle(void *arg) {
    return arg;
}
static int starts_a_thread(void) {
    pthread_t t;
    return pthread_create(&t, NULL, idle, NULL);
}
static int traces(void) {
    return outcome(ptrace(PTRACE_ATTACH, getppid(), NULL, NULL));
}
static int reads_its_parent(void) {
    return outcome(syscall(SYS_process_vm_readv, getppid(), NULL, 0, NULL, 0, 0));
}
static int asks_bpf(void) {
    uint8_t attr[64] = {0};
    return outcome(syscall(SYS_bpf, 0, attr, sizeof attr));
}
static int maps_code(void) {
    void *p = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? errno : 0;
}
static int makes_code(void) {
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return outcome(mprotect(p, 4096, PROT_READ | PROT_WRITE | PROT_EXEC));
}
static int becomes_root(void) {
    return outcome(syscall(SYS_setresuid, 0, 0, 0));
}
static int unshares(void) {
    return outcome(unshare(CLONE_NEWUSER));
}
#ifdef __x86_64__
static int x32_call(void) {
    return outcome(syscall(0x40000000 | SYS_getpid));
}
static int i386_call(void) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
    return result > 0 ? 0 : 1;
}
#endif

struct call {
    const char *name;
    int (*attempt)(void);
};

static void expect(const struct call *calls, const struct sandbox_options *options, int result) {
    for (; calls->name; calls++) {
        check_note("%s", calls->name);
        CHECK_EQ(in_child(calls->attempt, options), result);
    }
}

static const struct call refused_always[] = {{"open", opens},
                                             {"open to write", opens_to_write},
                                             {"IPv4 socket", ipv4_socket},
                                             {"TCP socket", tcp_socket},
                                             {"raw socket", raw_socket},
                                             {"XDP socket", xdp_socket},
                                             {"kill", kills_its_parent},
                                             {"tgkill", signals_another_process},
                                             {"prctl", renames_itself},
                                             {"ioctl", looks_at_a_device},
                                             {0}};

static void what_is_allowed_works(void) {
    static const struct call calls[] = {{"memory", memory}, {"small things", small_things}, {0}};
    expect(calls, &strict, 0);
    expect(calls, &rebinding, 0);
    CHECK_EQ(in_child(aborts, &strict), -SIGABRT);
}

static void what_is_not_listed_is_refused(void) {
    static const struct call more[] = {
        {"UDP socket", udp_socket}, {"io_uring", makes_a_ring}, {"io_uring_register", registers_files}, {0}};
    /* Without the filter none of them answers EPERM here, or this test could not fail. */
    CHECK_EQ(in_child(opens, NULL), 0);
    CHECK_EQ(in_child(ipv4_socket, NULL), 0);
    CHECK_EQ(in_child(udp_socket, NULL), 0);
    CHECK_EQ(in_child(kills_its_parent, NULL), 0);
    expect(refused_always, &strict, EPERM);
    expect(more, &strict, EPERM);
}

static void rebinding_gets_udp_over_ipv6_and_no_more(void) {
    CHECK_EQ(in_child(udp_socket, &rebinding), 0);
    CHECK(in_child(makes_a_ring, &rebinding) != EPERM || in_child(makes_a_ring, NULL) == EPERM);
    expect(refused_always, &rebinding, EPERM);
}

static void an_intruder_ends_the_process(void) {
    static const struct call calls[] = {{"execve", executes},
                                        {"clone", clones},
                                        {"pthread_create", starts_a_thread},
                                        {"ptrace", traces},
                                        {"process_vm_readv", reads_its_parent},
                                        {"bpf", asks_bpf},
                                        {"mmap PROT_EXEC", maps_code},
                                        {"mprotect PROT_EXEC", makes_code},
                                        {"setresuid", becomes_root},
                                        {"unshare", unshares},
#ifdef __x86_64__
                                        {"x32", x32_call},
#endif
                                        {0}};
    expect(calls, &strict, -SIGSYS);
    expect(calls, &rebinding, -SIGSYS);
#ifdef __x86_64__
    /* A kernel without 32-bit emulation ends it by itself. */
    int result = in_child(i386_call, &strict);
    CHECK(result == -SIGSYS || result == -SIGSEGV);
#endif
}

/* ---- one thread only ---- */

static void *enters(void *arg) {
    char why[256];
    if (!worker_sandbox_enter(&strict, why, sizeof why))
        *(int *)arg = 1;
    else
        *(int *)arg = open("/etc/passwd", O_RDONLY | O_CLOEXEC) >= 0 ? 2 : errno;
    return NULL;
}

static int a_thread_enters(void) {
    pthread_t t;
    int seen = 0;
    if (pthread_create(&t, NULL, enters, &seen) != 0 || pthread_join(t, NULL) != 0)
        return 1;
    if (seen != EPERM)
        return 2;
    return opens() != 0 ? 3 : 0; /* We are not behind it. */
}

static void the_filter_is_the_threads_own(void) {
    CHECK_EQ(in_child(a_thread_enters, NULL), 0);
}

static void the_program_fits_its_buffer(void) {
    struct sock_filter one;
    size_t small = worker_sandbox_program(&strict, &one, 1);
    size_t large = worker_sandbox_program(&rebinding, NULL, 0);
    CHECK(small > 100 && small < large && large < 400); /* 512 is the buffer's size. */
    char text[8];
    worker_sandbox_describe(&strict, text, sizeof text); /* Cut, never spilled. */
    CHECK(strlen(text) == sizeof text - 1);
}

/* ---- the backends behind the filter ---- */

static const char *backend_name;

static struct quic_addr loopback(uint16_t port) {
    struct quic_addr a = {.port = port};
    a.ip[15] = 1;
    return a;
}

static int send_and_take(struct io *from, struct io *to, uint32_t round) {
    struct quic_addr there;
    to->ops->local(to, &there);
    struct io_tx *tx = from->ops->tx_acquire(from);
    if (!tx)
        return 10;
    tx->len = 9000;
    tx->segment = 1000;
    tx->peer = there;
    memset(tx->data, (int)(round & 0xff), tx->len);
    from->ops->tx_commit(from, tx);
    from->ops->flush(from);
    for (uint32_t taken = 0, idle_waits = 0; taken < 9000;) {
        struct io_rx v;
        if (to->ops->rx(to, &v, 1) == 0) {
            if (idle_waits++ > 100)
                return 11;
            to->ops->wait(to, 100000000);
            from->ops->flush(from);
            continue;
        }
        if (v.data[0] != (round & 0xff))
            return 12;
        taken += v.len;
        to->ops->rx_release(to, &v, 1);
    }
    return 0;
}

/* Both ends in this thread, opened before the filter, used and closed behind it. */
static int transfers(void) {
    struct io_config config = {.bind = loopback(0)};
    struct io_text why = {{0}};
    const struct io_ops *ops = io_backend_by_name(backend_name);
    struct io *a = ops->open(&config, &why), *b = ops->open(&config, &why);
    char text[256];
    if (!a || !b || a->ops != ops)
        return 1;
    if (!worker_sandbox_enter(&strict, text, sizeof text))
        return 2;
    if (opens() != EPERM)
        return 3;
    for (uint32_t i = 0; i < 300; i++) {
        int result = send_and_take(a, b, i);
        result = result ? result : send_and_take(b, a, i);
        if (result)
            return result;
        a->ops->wake(a);
        a->ops->wait(a, -1);
    }
    a->ops->close(a);
    b->ops->close(b);
    return 0;
}

/* What seccomp cannot see: operations submitted to the ring the thread has. */
static int opens_by_the_ring(void) {
    struct io_config config = {.bind = loopback(0)};
    struct io_text why = {{0}};
    struct io *io = io_uring_ops.open(&config, &why);
    if (!io || io->ops != &io_uring_ops)
        return 1;
    struct io_uring *ring = &((struct uring *)io)->ring;
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    struct io_uring_cqe *cqe;
    io_uring_prep_openat(sqe, AT_FDCWD, "/etc/passwd", O_RDONLY | O_CLOEXEC, 0);
    if (io_uring_submit_and_wait(ring, 1) < 0 || io_uring_peek_cqe(ring, &cqe) != 0)
        return 2;
    int result = cqe->res >= 0 ? 0 : -cqe->res;
    io_uring_cqe_seen(ring, cqe);
    if (result == EACCES) { /* And no way to what was not registered before. */
        int fd = 0;
        if (syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_PERSONALITY, NULL, 0) >= 0 ||
            syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_FILES, &fd, 1) >= 0)
            return 3;
    }
    io->ops->close(io);
    return result;
}

static void a_ring_does_what_its_backend_does(void) {
    CHECK_EQ(in_child(opens_by_the_ring, NULL), EACCES);
}

static void backends_work_behind_it(void) {
    static const char *const names[] = {"io_uring", "socket"};
    for (int i = 0; i < 2; i++) {
        backend_name = names[i];
        check_note("%s", names[i]);
        CHECK_EQ(in_child(transfers, NULL), 0);
    }
}

/* ---- privileges ---- */

static bool root(void) {
    return geteuid() == 0;
}

/* A field of a thread's /proc status as a number. */
static uint64_t field(const char *tid, const char *format) {
    char path[64], line[256];
    unsigned long long value = ~0ull;
    snprintf(path, sizeof path, "/proc/self/task/%s/status", tid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        (void)sscanf(line, format, &value);
    if (f)
        fclose(f);
    return value;
}

struct bystander {
    _Atomic int tid;
    _Atomic bool leave;
    bool deaf;
};

/* A thread that has nothing to do with us: an executor of the control plane's, asleep. */
static void *stands_by(void *arg) {
    struct bystander *b = arg;
    if (b->deaf) {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, NULL);
    }
    atomic_store(&b->tid, (int)syscall(SYS_gettid));
    while (!atomic_load(&b->leave))
        sched_yield();
    return NULL;
}

static bool start_bystander(struct bystander *b, pthread_t *t) {
    if (pthread_create(t, NULL, stands_by, b) != 0)
        return false;
    while (atomic_load(&b->tid) == 0)
        sched_yield();
    return true;
}

static int whole(const char *tid, uint64_t uid, uint64_t keep) {
    if (field(tid, "Uid: %llu") != uid || field(tid, "Gid: %llu") != uid)
        return 20;
    if (field(tid, "CapPrm: %llx") != keep || field(tid, "CapEff: %llx") != keep)
        return 21;
    if (field(tid, "CapBnd: %llx") != keep || field(tid, "CapInh: %llx") != 0 ||
        field(tid, "CapAmb: %llx") != 0)
        return 22;
    return field(tid, "NoNewPrivs: %llu") == 1 ? 0 : 23;
}

/* A program started afterwards has gained nothing, by uid 0 or by a set-user-ID file. */
static int program_gains_nothing(void) {
    FILE *f = popen("grep -E '^Cap(Prm|Eff):' /proc/self/status", "r");
    char line[256];
    int lines = 0;
    while (f && fgets(line, sizeof line, f)) {
        unsigned long long value = ~0ull;
        (void)sscanf(line, "%*s %llx", &value);
        if (value != 0)
            return 30;
        lines++;
    }
    if (f)
        pclose(f);
    return lines == 2 ? 0 : 31;
}

static int drop_to(uint32_t uid, uint64_t keep) {
    struct bystander b[3] = {{0}};
    pthread_t t[3];
    struct stoq_error error;
    char tid[16];
    for (int i = 0; i < 3; i++)
        if (!start_bystander(&b[i], &t[i]))
            return 1;
    if (!stoq_drop_privileges(uid, uid, keep, &error))
        return 2;
    for (int again = 0; again < 2; again++) {
        snprintf(tid, sizeof tid, "%d", getpid());
        int result = whole(tid, uid, keep);
        for (int i = 0; i < 3 && result == 0; i++) {
            snprintf(tid, sizeof tid, "%d", atomic_load(&b[i].tid));
            result = whole(tid, uid, keep);
        }
        if (result)
            return result;
        if (!stoq_drop_privileges(uid, uid, keep, &error)) /* A second time changes nothing. */
            return 3;
    }
    if (uid != 0 && (setuid(0) == 0 || open("/etc/shadow", O_RDONLY | O_CLOEXEC) >= 0))
        return 4;
    for (int i = 0; i < 3; i++) {
        atomic_store(&b[i].leave, true);
        pthread_join(t[i], NULL);
    }
    return keep == 0 ? program_gains_nothing() : 0;
}

static int drop_to_nobody(void) {
    return drop_to(NOBODY, 0);
}
static int drop_keeping(void) {
    return drop_to(NOBODY, 1u << 13); /* CAP_NET_RAW */
}
static int drop_staying_root(void) {
    return drop_to(0, 0);
}

static void every_thread_gives_up_its_privileges(void) {
    if (!root())
        return;
    CHECK_EQ(in_child(drop_to_nobody, NULL), 0);
    CHECK_EQ(in_child(drop_keeping, NULL), 0);
    CHECK_EQ(in_child(drop_staying_root, NULL), 0);
}

static int drop_beside_a_deaf_thread(void) {
    struct bystander b = {.deaf = true};
    pthread_t t;
    struct stoq_error error;
    if (!start_bystander(&b, &t))
        return 1;
    if (stoq_drop_privileges(NOBODY, NOBODY, 0, &error))
        return 2;
    char tid[16];
    snprintf(tid, sizeof tid, "%d", atomic_load(&b.tid));
    return error.code == -EPERM && strstr(error.text, tid) && strstr(error.text, "blocks signals") ? 0 : 3;
}

static int become_without_right(void) {
    struct stoq_error error;
    const struct privileges nobody = {.uid = NOBODY, .gid = NOBODY};
    const char *step = "";
    if (root() && privileges_drop_thread(&nobody, &step) != 0)
        return 1;
    if (stoq_drop_privileges(1, 1, 0, &error) || error.code != -EPERM)
        return 2;
    return stoq_drop_privileges(0, 0, 1u << 13, &error) ? 3 : 0; /* A capability nobody has. */
}

static void what_cannot_be_done_is_said(void) {
    if (root())
        CHECK_EQ(in_child(drop_beside_a_deaf_thread, NULL), 0);
    CHECK_EQ(in_child(become_without_right, NULL), 0);
}

static const struct check_case cases[] = {
    {"what is allowed works", what_is_allowed_works},
    {"what is not listed is refused", what_is_not_listed_is_refused},
    {"rebinding gets UDP over IPv6 and no more", rebinding_gets_udp_over_ipv6_and_no_more},
    {"an intruder ends the process", an_intruder_ends_the_process},
    {"the filter is the thread's own", the_filter_is_the_threads_own},
    {"the program fits its buffer", the_program_fits_its_buffer},
    {"backends work behind it", backends_work_behind_it},
    {"a ring does what its backend does", a_ring_does_what_its_backend_does},
    {"every thread gives up its privileges", every_thread_gives_up_its_privileges},
    {"what cannot be done is said", what_cannot_be_done_is_said},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
