/* See privileges.h. credentials(7), capabilities(7), Documentation/userspace-api/no_new_privs.rst. */
#define _GNU_SOURCE
#include "privileges.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "private.h"

/* The system calls, not glibc's functions of these names: see privileges.h. aarch64 and x86-64 have these
 * numbers for 32-bit ids. */
static int become(uint32_t uid, uint32_t gid, const char **step) {
    uid_t r, e, s;
    gid_t rg, eg, sg;
    (void)getresuid(&r, &e, &s);
    (void)getresgid(&rg, &eg, &sg);
    if (r == uid && e == uid && s == uid && rg == gid && eg == gid && sg == gid && getgroups(0, NULL) == 0)
        return 0;
    *step = "setgroups";
    if (syscall(SYS_setgroups, 0, NULL) != 0)
        return -errno;
    *step = "setresgid";
    if (syscall(SYS_setresgid, gid, gid, gid) != 0)
        return -errno;
    /* Becoming another user clears the permitted set unless told not to. */
    *step = "PR_SET_KEEPCAPS";
    if (prctl(PR_SET_KEEPCAPS, 1UL, 0UL, 0UL, 0UL) != 0)
        return -errno;
    *step = "setresuid";
    if (syscall(SYS_setresuid, uid, uid, uid) != 0)
        return -errno;
    (void)prctl(PR_SET_KEEPCAPS, 0UL, 0UL, 0UL, 0UL);
    return 0;
}

/* The set a program started from here could reach. Without CAP_SETPCAP it stays: then NO_NEW_PRIVS alone
 * keeps a program from gaining anything. */
static int bound(uint64_t keep, const char **step) {
    *step = "PR_CAPBSET_DROP";
    for (unsigned long cap = 0; cap < 64; cap++) {
        int has = prctl(PR_CAPBSET_READ, cap, 0UL, 0UL, 0UL);
        if (has < 0)
            break; /* This kernel has no more. */
        if (has == 0 || (keep >> cap & 1) != 0)
            continue;
        if (prctl(PR_CAPBSET_DROP, cap, 0UL, 0UL, 0UL) != 0 && errno != EPERM)
            return -errno;
    }
    return 0;
}

static int set_capabilities(uint64_t keep, const char **step) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    *step = "PR_CAP_AMBIENT_CLEAR_ALL";
    if (prctl(PR_CAP_AMBIENT, (unsigned long)PR_CAP_AMBIENT_CLEAR_ALL, 0UL, 0UL, 0UL) != 0)
        return -errno;
    for (unsigned i = 0; i < 2; i++) {
        uint32_t half = (uint32_t)(keep >> (32 * i));
        data[i] = (struct __user_cap_data_struct){.effective = half, .permitted = half};
    }
    *step = "capset";
    return syscall(SYS_capset, &head, data) != 0 ? -errno : 0;
}

int privileges_drop_thread(const struct privileges *to, const char **step) {
    *step = "PR_SET_NO_NEW_PRIVS";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL) != 0)
        return -errno;
    int result = bound(to->keep, step); /* First: needs CAP_SETPCAP. */
    if (result == 0 && to->uid != 0)
        result = become(to->uid, to->gid, step);
    return result != 0 ? result : set_capabilities(to->keep, step);
}

/* ---- all threads ---- */

/* What a thread is asked by signal. On the heap, and left there when a thread never answers: it may yet. */
struct request {
    struct privileges to;
    _Atomic int result;
    const char *_Atomic step;
    sem_t answered;
};

/* Runs in each thread that is asked. The request comes with the signal, so there is no global. */
static void asked(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)context;
    if (info->si_code != SI_QUEUE || info->si_pid != getpid())
        return; /* Somebody else's. */
    int saved = errno;
    struct request *r = info->si_value.sival_ptr;
    const char *step = "";
    int result = privileges_drop_thread(&r->to, &step);
    if (result != 0) {
        /* Relaxed: sem_post and sem_wait order them before the asker's look. */
        atomic_store_explicit(&r->step, step, memory_order_relaxed);
        atomic_store_explicit(&r->result, result, memory_order_relaxed);
    }
    sem_post(&r->answered);
    errno = saved;
}

struct thread_state {
    unsigned uid, gid, no_new_privs;
    uint64_t permitted, inheritable, ambient, blocked;
    char name[32];
};

/* Credentials of a thread as the kernel has them. False: the thread is gone. */
static bool read_thread(const char *tid, struct thread_state *s) {
    char path[300], line[256];
    snprintf(path, sizeof path, "/proc/self/task/%s/status", tid);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    memset(s, 0, sizeof *s);
    while (fgets(line, sizeof line, f)) {
        (void)sscanf(line, "Name: %31[^\n]", s->name);
        (void)sscanf(line, "Uid: %u", &s->uid);
        (void)sscanf(line, "Gid: %u", &s->gid);
        (void)sscanf(line, "NoNewPrivs: %u", &s->no_new_privs);
        (void)sscanf(line, "CapPrm: %" SCNx64, &s->permitted);
        (void)sscanf(line, "CapInh: %" SCNx64, &s->inheritable);
        (void)sscanf(line, "CapAmb: %" SCNx64, &s->ambient);
        (void)sscanf(line, "SigBlk: %" SCNx64, &s->blocked);
    }
    fclose(f);
    return true;
}

static bool dropped(const struct thread_state *s, const struct privileges *to) {
    return s->no_new_privs == 1 && (s->permitted & ~to->keep) == 0 && s->inheritable == 0 &&
           s->ambient == 0 && (to->uid == 0 || (s->uid == to->uid && s->gid == to->gid));
}

static bool ask(struct request *r, const char *tid, const struct thread_state *s, int number,
                struct stoq_error *error) {
    if ((s->blocked >> (number - 1) & 1) != 0) {
        stoq_fail(error, -EPERM,
                  "thread %s (%s) blocks signals and still has privileges: a worker must be opened with the "
                  "same uid and gid",
                  tid, s->name);
        return false;
    }
    siginfo_t info = {.si_signo = number, .si_code = SI_QUEUE};
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_ptr = r;
    pid_t thread = (pid_t)strtol(tid, NULL, 10);
    if (syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, number, &info) != 0)
        return errno == ESRCH ||
               (stoq_fail(error, -errno, "cannot signal thread %s (%s): %s", tid, s->name, strerror(errno)),
                false);
    /* A second: the thread only has to be scheduled once. It may also have ended in the meantime, which looks
     * the same from here, so this is not a failure yet: the next round sees what is there. */
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    while (sem_timedwait(&r->answered, &until) != 0 && errno == EINTR)
        ;
    int result = atomic_load_explicit(&r->result, memory_order_relaxed);
    if (result == 0)
        return true;
    stoq_fail(error, result, "thread %s (%s): %s: %s", tid, s->name,
              atomic_load_explicit(&r->step, memory_order_relaxed), strerror(-result));
    return false;
}

/* One look at all threads; those that are not there yet are asked. Answers how many were, or -1 with `error`.
 */
static int round_of_threads(struct request *r, int number, struct stoq_error *error) {
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) {
        stoq_fail(error, -errno, "/proc/self/task: %s (is /proc mounted?)", strerror(errno));
        return -1;
    }
    int asked_for = 0;
    bool ok = true;
    for (struct dirent *d; ok && (d = readdir(tasks));) {
        struct thread_state s;
        if (d->d_name[0] == '.' || !read_thread(d->d_name, &s) || dropped(&s, &r->to))
            continue;
        asked_for++;
        ok = ask(r, d->d_name, &s, number, error);
    }
    closedir(tasks);
    return ok ? asked_for : -1;
}

/* Rounds until one finds nothing to do: a thread that was not asked yet may start others meanwhile, and those
 * have its credentials. More than a few rounds means a thread does not answer. */
#define ROUNDS 5

bool stoq_drop_privileges(uint32_t uid, uint32_t gid, uint64_t keep, struct stoq_error *error) {
    struct stoq_error ignored;
    error = error ? error : &ignored;
    const char *step = "";
    struct request *r = calloc(1, sizeof *r);
    if (!r) {
        stoq_fail(error, -ENOMEM, "no memory");
        return false;
    }
    r->to = (struct privileges){.uid = uid, .gid = gid, .keep = keep};
    sem_init(&r->answered, 0, 0);

    /* Ours before the others': what we may not do they may not either, and nothing has happened yet. */
    int result = privileges_drop_thread(&r->to, &step);
    if (result != 0) {
        stoq_fail(error, result, "%s: %s%s", step, strerror(-result),
                  result == -EPERM ? " (only root can change users or keep capabilities it has)" : "");
        free(r);
        return false;
    }
    int number = SIGRTMAX - 3; /* Any that nobody uses; its action is ours for the moment only. */
    struct sigaction act = {.sa_flags = SA_SIGINFO | SA_RESTART}, before;
    act.sa_sigaction = asked;
    if (sigaction(number, &act, &before) != 0) {
        stoq_fail(error, -errno, "sigaction: %s", strerror(errno));
        free(r);
        return false;
    }
    int left = 1;
    for (int i = 0; i < ROUNDS && left > 0; i++)
        left = round_of_threads(r, number, error);
    if (left > 0)
        stoq_fail(error, -ETIMEDOUT, "a thread did not give up its privileges in %d rounds", ROUNDS);
    if (left != 0)
        return false; /* The handler and `r` stay: a late thread would find neither. */
    (void)sigaction(number, &before, NULL);
    sem_destroy(&r->answered);
    free(r);
    return true;
}
