/* What `stoq doctor` asks of C: that it agrees with what the backends get, and that it leaves nothing behind.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../csrc/io/io.h"
#include "../../csrc/io/probe.h"
#include "../../csrc/stoq.h"
#include "check.h"

static int descriptors(void) {
    DIR *d = opendir("/proc/self/fd");
    int n = 0;
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static struct quic_addr loopback(void) {
    struct quic_addr a = {0};
    a.ip[15] = 1;
    return a;
}

static void agrees_with_the_backend(void) {
    struct io_uring_report r;
    struct io_config config = {.bind = loopback()};
    struct io_text text = {{0}};
    int before = descriptors();
    for (int i = 0; i < 20; i++)
        io_probe_uring(&r);
    CHECK_EQ(descriptors(), before);
    struct io *io = io_uring_ops.open(&config, &text);
    REQUIRE(io != NULL);
    io->ops->describe(io, &text);
    bool uring = io->ops == &io_uring_ops;
    CHECK_EQ(r.setup_error == 0 && r.buffer_rings && r.recvmsg_multishot, uring);
    CHECK_EQ(r.defer_taskrun, strstr(text.text, "deferred task work") != NULL);
    CHECK(!r.defer_taskrun || r.single_issuer);
    io->ops->close(io);
}

/* As a container runtime refuses it. */
static void a_refusal_is_reported(void) {
    fflush(stdout);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
        struct stoq_uring_probe p;
        memset(&p, 0xff, sizeof p);
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
            _exit(1);
        stoq_probe_io_uring(&p);
        _exit(p.setup_error == -EPERM && !p.defer_taskrun && !p.buffer_rings && !p.napi ? 0 : 2);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 0);
}

static void an_interface_that_is_not_there(void) {
    struct stoq_interface_probe p;
    struct stoq_error error;
    CHECK(!stoq_probe_interface(0x7ffffff0, &p, &error));
    CHECK_EQ(error.code, -ENODEV);
    int before = descriptors();
    CHECK(stoq_probe_interface(if_nametoindex("lo"), &p, &error));
    CHECK_EQ(descriptors(), before);
    CHECK(p.native != STOQ_ANSWER_YES && p.zero_copy != STOQ_ANSWER_YES);
}

static void providers(void) {
    CHECK(stoq_crypto_available("auto") && stoq_crypto_available("openssl"));
    CHECK(!stoq_crypto_available("rot13"));
}

static const struct check_case cases[] = {
    {"agrees with the backend", agrees_with_the_backend},
    {"a refusal is reported", a_refusal_is_reported},
    {"an interface that is not there", an_interface_that_is_not_there},
    {"providers", providers},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
