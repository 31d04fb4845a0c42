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
    char crypto[16];
    struct worker *workers[STOQ_MAX_WORKERS];
    struct control controls[STOQ_MAX_WORKERS];
    struct worker_thread threads[STOQ_MAX_WORKERS];
};

#endif
