/* A datapath's life with real backends over ::1: what happens when the kernel refuses one. */
#define _GNU_SOURCE
#include "check.h"

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "refuse_io_uring.h"
#include "stoq.h"
#include "tables.h"

static struct stoq_config loopback_config(void) {
    struct stoq_config c = {.workers = 1, .backend = "io_uring", .server = true};
    for (int i = 0; i < STOQ_MAX_WORKERS; i++)
        c.cores[i] = -1;
    c.bind.ip[15] = 1;
    return c;
}

/* In a child whose seccomp filter answers io_uring_setup with EPERM, as container runtimes do: the workers
 * run on plain sockets, turn after turn, and say so. */
static void io_uring_refused(void) {
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        struct stoq_config c = loopback_config();
        struct stoq_error error;
        char text[1024];
        refuse_io_uring();
        struct stoq_datapath *dp = stoq_open(&c, &error);
        if (!dp)
            printf("%s\n", error.text);
        REQUIRE(dp != NULL);
        stoq_describe(dp, 0, text, sizeof text);
        REQUIRE(strstr(text, "instead of io_uring") != NULL);
        stoq_stop(dp);
        uint64_t counters[STOQ_COUNTER_COUNT];
        stoq_counters(dp, 0, counters, STOQ_COUNTER_COUNT);
        REQUIRE(counters[STOQ_COUNTER_LOOPS] > 0);
        stoq_close(dp);
        exit(0); /* Not _exit: the sanitizers look for leaks here too. */
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static const struct check_case cases[] = {
    {"io_uring refused: workers on sockets", io_uring_refused},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
