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
    t->opened = pin(t) &&
                (t->reopen ? worker_reopen_io(t->worker, &t->error)
                           : worker_open_io(t->worker, &t->bind, &t->error)) &&
                worker_confine(t->worker, &t->error);
    sem_post(&t->done);
    while (sem_wait(&t->go) != 0)
        ; /* EINTR cannot happen, all signals are blocked; a debugger may still interrupt. */
    if (t->run)
        worker_run(t->worker);
    return NULL;
}

/* Start a worker's thread and wait until its backend is open. Signals stay with the other threads. */
bool datapath_start_thread(struct worker_thread *t, struct stoq_error *error) {
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

void datapath_release_thread(struct worker_thread *t, bool run) {
    if (!t->started)
        return;
    t->run = run;
    sem_post(&t->go);
    if (run)
        return;
    pthread_join(t->thread, NULL);
    t->started = false;
}

static void free_all(struct stoq_datapath *dp) {
    for (uint32_t i = 0; i < dp->count; i++)
        if (dp->controls[i].shared)
            control_detach(&dp->controls[i]);
    for (uint32_t i = 0; i < dp->count; i++)
        worker_destroy(dp->workers[i]);
    datapath_guard_close(dp);
    crypto_wipe(&dp->config, sizeof dp->config);
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

/* Make a worker, its end of the rings, and the rings between it and those before it. */
bool datapath_make_worker(struct stoq_datapath *dp, uint32_t index, struct stoq_error *error) {
    struct worker_config wc = {.config = &dp->config,
                               .index = index,
                               .count = index + 1,
                               .ops = dp->ops,
                               .guard = dp->guard,
                               .steer = dp->steer,
                               .driver_checksum = dp->driver_checksum,
                               .guard_native = dp->guard_report.mode == GUARD_MODE_NATIVE,
                               .event_fd = dp->event_fd};
    struct worker *w = worker_create(&wc, error);
    dp->workers[index] = w;
    if (!w)
        return false;
    if (!control_attach(&dp->controls[index], w->shared)) {
        stoq_fail(error, -errno, "no memory for the send pool's lists: %s", strerror(errno));
        return false;
    }
    for (uint32_t k = 0; k < index; k++) {
        if (!worker_link(dp->workers[k], w)) {
            stoq_fail(error, -errno, "no memory for the rings between workers: %s", strerror(errno));
            return false;
        }
    }
    return true;
}

static bool create(struct stoq_datapath *dp, struct stoq_error *error) {
    for (uint32_t i = 0; i < dp->count; i++)
        if (!datapath_make_worker(dp, i, error))
            return false;
    for (uint32_t i = 0; i < dp->count; i++)
        worker_set_count(dp->workers[i], dp->count);
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
                  "there is no backend \"%s\" for real packets; \"io_uring\", \"afxdp\" and \"socket\" exist",
                  backend);
        return NULL;
    }
    c.backend = ops->name;
    struct stoq_datapath *dp = allocate(c.workers, c.crypto, error);
    if (!dp)
        return NULL;
    dp->config = c;
    crypto_wipe(c.token_key, sizeof c.token_key);
    crypto_wipe(c.reset_key, sizeof c.reset_key);
    dp->ops = ops;
    bool ok =
        datapath_guard_open(dp, &dp->config, c.guard || ops == &io_afxdp_ops, error) && create(dp, error);
    for (uint32_t i = 0; ok && i < dp->count; i++) {
        struct worker_thread *t = &dp->threads[i];
        t->worker = dp->workers[i];
        t->core = c.cores[i];
        memcpy(&t->bind, &c.bind, sizeof t->bind);
        if (i > 0 &&
            c.server) /* One port for all: the one worker 0 got. A client's workers have a port each. */
            t->bind.port = dp->workers[0]->local.port;
        ok = datapath_start_thread(t, error) &&
             (i > 0 || datapath_guard_port(dp, dp->workers[0]->local.port, error));
    }
    for (uint32_t i = 0; i < dp->count; i++)
        datapath_release_thread(&dp->threads[i], ok);
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
        if (dp->threads[i].started)
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
