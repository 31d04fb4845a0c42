/* Life of a datapath: workers, their threads and the eventfd; datapath.h shows the two ways to get one.
 *
 *      stoq_open:   for each worker:  create ──▶ start thread ──▶ [pin, open backend] ──▶ opened or error
 *                   all opened:       let the threads run
 *                   any failed:       let them end, join, free
 *
 * Workers open one after the other: worker 0 learns the port when port 0 was asked for, and the others share
 * it.
 */
#define _GNU_SOURCE
#include "datapath_private.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

static bool pin(struct worker_thread *t) {
    if (t->core < 0)
        return true;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (t->core < CPU_SETSIZE)
        CPU_SET(t->core, &set);
    int e = pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    if (e == 0)
        return true;
    stoq_fail(&t->error, -e,
              "worker %u cannot be pinned to core %d: %s (this process may use the cores in its cpuset)",
              t->worker->index, t->core, strerror(e));
    return false;
}

static void *thread_main(void *arg) {
    struct worker_thread *t = arg;
    char name[16];
    snprintf(name, sizeof name, "stoq-w%u", t->worker->index);
    (void)pthread_setname_np(pthread_self(), name);
    /* Pinned before the backend and the endpoint are made: their memory lands on this core's NUMA node. */
    t->opened = pin(t) && worker_open_io(t->worker, &t->bind, &t->error);
    sem_post(&t->done);
    while (sem_wait(&t->go) != 0)
        ; /* EINTR cannot happen, all signals are blocked; a debugger may still interrupt. */
    if (t->run)
        worker_run(t->worker);
    return NULL;
}

/* Start a worker's thread and wait until its backend is open. Signals stay with the other threads. */
static bool start(struct worker_thread *t, struct stoq_error *error) {
    sigset_t all, before;
    sem_init(&t->done, 0, 0);
    sem_init(&t->go, 0, 0);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = pthread_create(&t->thread, NULL, thread_main, t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e != 0) {
        stoq_fail(error, -e, "cannot start a thread for worker %u: %s", t->worker->index, strerror(e));
        return false;
    }
    t->started = true;
    while (sem_wait(&t->done) != 0)
        ; /* A signal handler ran in our thread. */
    if (!t->opened)
        *error = t->error;
    return t->opened;
}

static void end_threads(struct stoq_datapath *dp, bool run) {
    for (uint32_t i = 0; i < dp->count; i++) {
        struct worker_thread *t = &dp->threads[i];
        if (!t->started)
            continue;
        t->run = run;
        sem_post(&t->go);
    }
    if (run)
        return;
    for (uint32_t i = 0; i < dp->count; i++) {
        if (dp->threads[i].started)
            pthread_join(dp->threads[i].thread, NULL);
        dp->threads[i].started = false;
    }
}

static void free_all(struct stoq_datapath *dp) {
    for (uint32_t i = 0; i < dp->count; i++)
        if (dp->controls[i].shared)
            control_detach(&dp->controls[i]);
    for (uint32_t i = 0; i < dp->count; i++)
        worker_destroy(dp->workers[i]);
    if (dp->event_fd >= 0)
        close(dp->event_fd);
    free(dp);
}

static struct stoq_datapath *allocate(uint32_t count, const char *crypto, struct stoq_error *error) {
    struct stoq_datapath *dp = aligned_alloc(64, (sizeof *dp + 63) & ~(size_t)63);
    if (!dp) {
        stoq_fail(error, -ENOMEM, "no memory for a datapath");
        return NULL;
    }
    memset(dp, 0, sizeof *dp);
    dp->count = count;
    snprintf(dp->crypto, sizeof dp->crypto, "%s", crypto);
    dp->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (dp->event_fd < 0) {
        stoq_fail(error, -errno, "cannot make an eventfd: %s", strerror(errno));
        free(dp);
        return NULL;
    }
    return dp;
}

/* Make the workers and their ends of the rings. */
static bool create(struct stoq_datapath *dp, const struct stoq_config *c, const struct io_ops *ops,
                   struct stoq_error *error) {
    for (uint32_t i = 0; i < dp->count; i++) {
        struct worker_config wc = {
            .config = c, .index = i, .count = dp->count, .ops = ops, .event_fd = dp->event_fd};
        dp->workers[i] = worker_create(&wc, error);
        if (!dp->workers[i])
            return false;
        if (!control_attach(&dp->controls[i], dp->workers[i]->shared)) {
            stoq_fail(error, -errno, "no memory for the send pool's lists: %s", strerror(errno));
            return false;
        }
        for (uint32_t k = 0; k < i; k++) {
            if (!worker_link(dp->workers[k], dp->workers[i])) {
                stoq_fail(error, -errno, "no memory for the rings between workers: %s", strerror(errno));
                return false;
            }
        }
    }
    return true;
}

struct stoq_datapath *stoq_open(const struct stoq_config *config, struct stoq_error *error) {
    struct stoq_config c;
    struct stoq_error ignored;
    error = error ? error : &ignored;
    memset(error, 0, sizeof *error);
    if (!stoq_config_complete(config, 0, &c, error))
        return NULL;
    const char *backend = c.backend ? c.backend : "io_uring";
    const struct io_ops *ops = io_backend_by_name(backend);
    if (!ops || ops == &io_wire_ops) {
        stoq_fail(error, -ENOENT,
                  "there is no backend \"%s\" for real packets; \"io_uring\" and \"socket\" exist", backend);
        return NULL;
    }
    c.backend = ops->name;
    struct stoq_datapath *dp = allocate(c.workers, c.crypto, error);
    if (!dp)
        return NULL;
    bool ok = create(dp, &c, ops, error);
    for (uint32_t i = 0; ok && i < dp->count; i++) {
        struct worker_thread *t = &dp->threads[i];
        t->worker = dp->workers[i];
        t->core = c.cores[i];
        memcpy(&t->bind, &c.bind, sizeof t->bind);
        if (i > 0 &&
            c.server) /* One port for all: the one worker 0 got. A client's workers have a port each. */
            t->bind.port = dp->workers[0]->local.port;
        ok = start(t, error);
    }
    end_threads(dp, ok);
    crypto_wipe(c.token_key, sizeof c.token_key);
    crypto_wipe(c.reset_key, sizeof c.reset_key);
    if (ok)
        return dp;
    free_all(dp);
    return NULL;
}

void stoq_stop(struct stoq_datapath *dp) {
    if (dp->adopted || dp->stopped)
        return;
    dp->stopped = true;
    for (uint32_t i = 0; i < dp->count; i++)
        worker_request_stop(dp->workers[i]);
    for (uint32_t i = 0; i < dp->count; i++) {
        pthread_join(dp->threads[i].thread, NULL);
        dp->threads[i].started = false;
    }
}

void stoq_close(struct stoq_datapath *dp) {
    if (!dp || dp->adopted)
        return;
    stoq_stop(dp);
    free_all(dp);
}

struct stoq_datapath *stoq_datapath_adopt(struct worker *const *workers, uint32_t count,
                                          struct stoq_error *error) {
    if (count == 0 || count > STOQ_MAX_WORKERS) {
        stoq_fail(error, -EINVAL, "a datapath has 1 to %d workers", STOQ_MAX_WORKERS);
        return NULL;
    }
    const struct crypto_provider *crypto = crypto_provider_by_name(workers[0]->config.crypto);
    struct stoq_datapath *dp = allocate(count, crypto ? crypto->name : "", error);
    if (!dp)
        return NULL;
    dp->adopted = true;
    for (uint32_t i = 0; i < count; i++) {
        if (!control_attach(&dp->controls[i], workers[i]->shared)) {
            stoq_fail(error, -errno, "no memory for the send pool's lists: %s", strerror(errno));
            free_all(dp);
            return NULL;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        dp->workers[i] = workers[i];
        if (workers[i]->event_fd < 0)
            workers[i]->event_fd = dp->event_fd;
    }
    return dp;
}

void stoq_datapath_release(struct stoq_datapath *dp) {
    if (dp && dp->adopted)
        free_all(dp);
}
