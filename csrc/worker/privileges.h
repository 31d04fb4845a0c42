/* Giving up what root could do, thread by thread. docs/decisions/0004-privileges.md has the order of things.
 *
 *      as root:   open sockets, rings, the guard, files
 *      then:      each worker:  privileges_drop_thread (nothing kept)   before its seccomp filter
 *                 the opener:   stoq_drop_privileges (../stoq.h)        every other thread of the process
 *
 * Credentials in Linux belong to a thread (credentials(7), capabilities(7)). glibc's setresuid hides that by
 * a signal to all threads, which a thread behind a seccomp filter cannot follow and which does not exist for
 * capset. So both functions use the system calls themselves, and stoq_drop_privileges brings the other
 * threads along by a signal of its own and then checks every one of them in /proc.
 */
#ifndef STOQ_WORKER_PRIVILEGES_H
#define STOQ_WORKER_PRIVILEGES_H

#include <stdbool.h>
#include <stdint.h>

#include "../stoq.h"

struct privileges {
    uint32_t uid, gid; /* User and group to become; uid 0: stay who we are. */
    uint64_t keep;     /* Bit n: keep capability n. */
};

/* The calling thread only: user, group, no supplementary groups, capabilities but `keep` gone from all five
 * sets, PR_SET_NO_NEW_PRIVS. Async-signal-safe. Returns 0, or a negative errno with `step` (a constant)
 * naming what failed; the thread may then be half way. Doing it again is fine. */
int privileges_drop_thread(const struct privileges *to, const char **step);

#endif
