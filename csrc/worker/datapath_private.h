/* struct stoq_datapath, for datapath.c (life), config.c and ../stoq.c (the API). */
#ifndef STOQ_WORKER_DATAPATH_PRIVATE_H
#define STOQ_WORKER_DATAPATH_PRIVATE_H

#include <pthread.h>
#include <semaphore.h>

#include "control.h"
#include "datapath.h"
#include "private.h"

/* A worker's thread and what it is told and tells while it starts. */
struct worker_thread {
    pthread_t thread;
    bool started, opened;
    bool reopen; /* The worker was a guest: only its backend is to be opened. */
    struct worker *worker;
    int core; /* -1: not pinned. */
    struct quic_addr bind;
    struct stoq_error error;
    sem_t done; /* Thread: opened, or failed (`error`). */
    sem_t go;   /* Opener: run, if `run`. */
    bool run;
};

struct stoq_datapath {
    uint32_t count;
    int event_fd;
    bool adopted, stopped;
    struct stoq_config config; /* As it was completed, keys too: workers may be added. Wiped at the end. */
    const struct io_ops *ops;
    char crypto[16];
    struct guard *guard; /* NULL: none. */
    struct steer *steer; /* NULL: one worker, or no right to load it. */
    struct guard_report guard_report;
    bool driver_checksum; /* The driver takes checksums from transmit metadata, zero copy too. */
    uint32_t guard_ifindex;
    struct worker *workers[STOQ_MAX_WORKERS];
    struct control controls[STOQ_MAX_WORKERS];
    struct worker_thread threads[STOQ_MAX_WORKERS];
};

/* datapath.c */
bool datapath_make_worker(struct stoq_datapath *dp, uint32_t index, struct stoq_error *error);
bool datapath_start_thread(struct worker_thread *t, struct stoq_error *error);
/* A thread that was started may go on (or end, without `run`). */
void datapath_release_thread(struct worker_thread *t, bool run);

/* datapath_guard.c: the XDP guard of a datapath, when `c` asks for one (nothing to do: true). */
bool datapath_guard_open(struct stoq_datapath *dp, const struct stoq_config *c, bool wanted,
                         struct stoq_error *error);
/* The workers' port is known: guard it. */
bool datapath_guard_port(struct stoq_datapath *dp, uint16_t port, struct stoq_error *error);
void datapath_guard_close(struct stoq_datapath *dp);

#endif
