/* What libbpf and the kernel say, for people: libbpf's own messages are caught instead of printed, and errors
 * come with what can be done about them.
 *
 * libbpf prints through one function of the whole process (libbpf_set_print) that gets no context. So a lock
 * makes the windows in which it is ours follow each other, and the text's place is the thread's: messages of
 * other threads' libbpf calls in such a window are dropped, as there is nobody they could be given to. */
#include <errno.h>
#include <linux/capability.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <bpf/libbpf.h>

#include "private.h"

static pthread_mutex_t capture_lock = PTHREAD_MUTEX_INITIALIZER;
static libbpf_print_fn_t capture_previous; /* Under the lock. */
static __thread struct guard_text *capture_text;

static int capture_print(enum libbpf_print_level level, const char *format, va_list args) {
    struct guard_text *t = capture_text;
    if (t == NULL || level != LIBBPF_WARN)
        return 0;
    size_t used = strnlen(t->text, sizeof t->text - 1);
    return vsnprintf(t->text + used, sizeof t->text - used, format, args);
}

void guard_capture_begin(struct guard_text *text) {
    guard_text_clear(text);
    pthread_mutex_lock(&capture_lock);
    capture_text = text;
    capture_previous = libbpf_set_print(capture_print);
}

void guard_capture_end(void) {
    /* One line of people's text: what libbpf wrote in lines becomes sentences. */
    if (capture_text != NULL)
        for (char *c = capture_text->text; *c != '\0'; c++)
            if (*c == '\n')
                *c = c[1] == '\0' ? '\0' : ' ';
    libbpf_set_print(capture_previous);
    capture_text = NULL;
    pthread_mutex_unlock(&capture_lock);
}

/* Bit `cap` of the effective set; capget(2) directly, because libcap is one more library for one bit. */
static bool has_capability(unsigned cap) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
    if (syscall(SYS_capget, &head, data) != 0)
        return false;
    return (data[cap / 32].effective >> (cap % 32)) & 1;
}

void guard_text_error(struct guard_text *t, int error) {
    /* CAP_SYS_ADMIN includes CAP_BPF, but not CAP_NET_ADMIN (capabilities(7)). */
    bool bpf = has_capability(CAP_BPF) || has_capability(CAP_SYS_ADMIN), net = has_capability(CAP_NET_ADMIN);
    guard_text_add(t, "%s", strerror(error));
    switch (error) {
    case EPERM:
    case EACCES:
        if (!bpf || !net)
            guard_text_add(t,
                           ": the XDP guard needs CAP_BPF and CAP_NET_ADMIN, and this process lacks %s%s%s; "
                           "start as root or give it these",
                           bpf ? "" : "CAP_BPF", bpf || net ? "" : " and ", net ? "" : "CAP_NET_ADMIN");
        else
            guard_text_add(
                t, ", although this process has CAP_BPF and CAP_NET_ADMIN: a user namespace, a "
                   "seccomp filter, kernel lockdown or, before Linux 5.11, RLIMIT_MEMLOCK forbids it");
        break;
    case ENOSYS:
        guard_text_add(t, ": this kernel has no BPF (CONFIG_BPF_SYSCALL)");
        break;
    case ENOMEM:
        guard_text_add(t, ": not enough memory for the guard's maps; a smaller id table needs less");
        break;
    default:
        break;
    }
}

uint64_t guard_monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
