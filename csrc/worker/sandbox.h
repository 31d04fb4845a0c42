/* A worker's seccomp filter: what a thread that reads strangers' packets may still ask of the kernel once its
 * backend is open. docs/decisions/0004-privileges.md says what this buys and what it does not.
 *
 *      open backend ──▶ give up capabilities ──▶ worker_sandbox_enter ──▶ worker_run ──▶ thread ends
 *                       (privileges.h)            (this thread alone, for good)
 *
 * Three answers, by one table in sandbox.c:
 *
 *      listed, arguments as listed       allowed
 *      what only an intruder asks for    the process is killed (SIGSYS): execve, clone, bpf, executable
 * memory everything else                   EPERM, and a line in the kernel's audit log
 *
 * Kernel documentation: Documentation/userspace-api/seccomp_filter.rst.
 */
#ifndef STOQ_WORKER_SANDBOX_H
#define STOQ_WORKER_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sandbox_options {
    /* The REBIND command may open a second backend: UDP sockets over IPv6 and another io_uring. A ring made
     * then is not restricted in its operations, so this is for the test profile. */
    bool rebind;
};

/* Put the calling thread, and no other, behind the filter. False: `why` says what the kernel refused, and the
 * thread is as free as before (but for PR_SET_NO_NEW_PRIVS). */
bool worker_sandbox_enter(const struct sandbox_options *options, char *why, size_t cap);

/* One line for describe(): how many calls are allowed, how many end the process. */
void worker_sandbox_describe(const struct sandbox_options *options, char *out, size_t cap);

struct sock_filter;

/* The filter as classic BPF, for worker_sandbox_enter and tests. Returns the instructions it has; writes
 * nothing beyond `max`. */
size_t worker_sandbox_program(const struct sandbox_options *options, struct sock_filter *out, size_t max);

#endif
