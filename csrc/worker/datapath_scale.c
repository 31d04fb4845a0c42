/* Workers come and go while a datapath runs; guests.h draws what happens to their connections. */
#define _GNU_SOURCE
#include <sched.h>

#include "datapath_private.h"
#include "guests.h"

bool stoq_worker_running(const struct stoq_datapath *dp, uint32_t worker) {
    return worker < dp->count && dp->threads[worker].started;
}

static struct worker *host_for(const struct stoq_datapath *dp, uint32_t worker) {
    for (uint32_t i = 1; i < dp->count; i++) {
        uint32_t other = (worker + i) % dp->count;
        if (dp->threads[other].started)
            return dp->workers[other];
    }
    return NULL;
}

bool stoq_worker_remove(struct stoq_datapath *dp, uint32_t worker, struct stoq_error *error) {
    struct stoq_error ignored;
    error = error ? error : &ignored;
    if (dp->stopped || dp->adopted || !stoq_worker_running(dp, worker)) {
        stoq_fail(error, -ENOENT, "worker %u is not running", worker);
        return false;
    }
    struct worker *w = dp->workers[worker], *host = host_for(dp, worker);
    if (!host) {
        stoq_fail(error, -EBUSY, "worker %u is the last that runs: close the datapath instead", worker);
        return false;
    }
    atomic_store_explicit(&w->move_to, host, memory_order_release); /* With guests_leave. */
    worker_kick(w);
    pthread_join(dp->threads[worker].thread, NULL);
    dp->threads[worker].started = false;
    guests_hand_over(w, host);
    return true;
}

/* Give a guest's worker its thread back. */
static int revive(struct stoq_datapath *dp, uint32_t index, int32_t core, struct stoq_error *error) {
    struct worker *w = dp->workers[index];
    struct worker_thread *t = &dp->threads[index];
    /* Its host may not have taken it in yet: it lets go of what it has taken in only, in a later turn. */
    while (atomic_load_explicit(&w->move_to, memory_order_acquire))
        sched_yield(); /* With guests_welcome, which clears it in the host's next turn. */
    atomic_store_explicit(&w->move_to, w, memory_order_release); /* With let_go. */
    worker_kick(w);
    while (sem_wait(&w->released) != 0)
        ; /* A signal handler ran in our thread. */
    atomic_store_explicit(&w->move_to, NULL, memory_order_relaxed);
    *t = (struct worker_thread){.worker = w, .core = core, .reopen = true};
    if (datapath_start_thread(t, error)) {
        datapath_release_thread(t, true);
        return (int)index;
    }
    datapath_release_thread(t, false);
    guests_hand_over(w, host_for(dp, index)); /* As it was. */
    return error->code < 0 ? error->code : -EIO;
}

static int add_new(struct stoq_datapath *dp, int32_t core, struct stoq_error *error) {
    uint32_t index = dp->count;
    if (index >= dp->config.max_workers) {
        stoq_fail(error, -ENOSPC, "max_workers is %u: no more can be added", dp->config.max_workers);
        return -ENOSPC;
    }
    struct worker_thread *t = &dp->threads[index];
    *t = (struct worker_thread){.core = core};
    memcpy(&t->bind, &dp->config.bind, sizeof t->bind);
    if (dp->config.server)
        t->bind.port = dp->workers[0]->local.port;
    bool ok = datapath_make_worker(dp, index, error);
    t->worker = dp->workers[index];
    ok = ok && datapath_start_thread(t, error);
    if (!ok) {
        /* The others were linked to it, and do not know: their count ends before it. */
        datapath_release_thread(t, false);
        for (uint32_t i = 0; i < index; i++)
            worker_unlink(dp->workers[i], index);
        if (dp->controls[index].shared)
            control_detach(&dp->controls[index]);
        worker_destroy(dp->workers[index]);
        dp->workers[index] = NULL;
        return error->code < 0 ? error->code : -EIO;
    }
    dp->count++;
    for (uint32_t i = 0; i <= index; i++)
        worker_set_count(dp->workers[i], dp->count);
    datapath_release_thread(t, true);
    return (int)index;
}

int stoq_worker_add(struct stoq_datapath *dp, int32_t core, struct stoq_error *error) {
    struct stoq_error ignored;
    error = error ? error : &ignored;
    memset(error, 0, sizeof *error);
    if (dp->stopped || dp->adopted) {
        stoq_fail(error, -EINVAL, "the datapath is stopped, or not one with threads");
        return -EINVAL;
    }
    for (uint32_t i = 0; i < dp->count; i++)
        if (!dp->threads[i].started)
            return revive(dp, i, core, error);
    return add_new(dp, core, error);
}
