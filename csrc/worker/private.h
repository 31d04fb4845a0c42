/* struct worker and what its parts (worker, thread, host, commands, events, perf) offer each other. Not for
 * others. */
#ifndef STOQ_WORKER_PRIVATE_H
#define STOQ_WORKER_PRIVATE_H

#include <errno.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "../guard/guard.h"
#include "../guard/steer.h"
#include "../io/prng.h"
#include "arena.h"
#include "chunks.h"
#include "handoff.h"
#include "ring.h"
#include "shared.h"
#include "wheel.h"
#include "worker.h"

/* Bounds of one turn. They keep every kind of work from starving the others, and a turn near 100 us at most.
 */
#define TURN_COMMANDS 256u /* Python makes some 1 M commands/s at best: a turn's worth and to spare. */
#define TURN_RX       32   /* Trains: up to 2 MiB, a few hundred microseconds of decryption at worst. */
#define TURN_HANDOFF  16   /* Trains from each other worker. */
#define TURN_EVENTS   256u /* Polled from the engine. */
/* Trains, and then a look at what came: a turn takes at most what a backend has buffers for, some 16
 * datagrams, and many connections' acknowledgements are a datagram each. With more here they queue up in the
 * socket, where they look like a long round trip to every connection. */
#define TURN_TX     8
#define CONN_EVENTS 32 /* Polled from one connection before the next has its turn. */

/* Chunks the engine may not take, so that events with a payload can always be told while streams fill the
 * pool. */
#define EVENT_SMALL_CHUNKS 64u
#define EVENT_LARGE_CHUNKS 4u

/* In engine terms a chunk number with this bit is the send pool's; chunk_layout_for keeps pools below it. */
#define CHUNK_OF_SEND_POOL 0x80000000u

#define RETIRED_IO 8 /* Backends replaced by REBIND and kept open: a kick under way may still use one. */

struct perf;
struct perf_stream;

/* The worker's word for a connection it has announced (quic_conn_user). In the arena. */
struct worker_conn {
    struct worker_conn *next, **prev;
    struct quic_conn *conn;
    struct perf *perf; /* Non-NULL: stream events are consumed in C. */
    uint64_t cookie;   /* Of CONNECT. */
};

struct worker {
    /* Every turn. */
    struct io *io;
    const struct io_ops *backend; /* What was asked for; io->ops is what was got. */
    struct quic_endpoint *ep;
    uint64_t now; /* Time of the present turn. */
    struct shared *shared;
    uint64_t *counters; /* shared->counters */
    struct ring_consumer commands;
    struct ring_producer events, returns;
    struct chunk_return *returning; /* Reserved, not yet full. */
    struct receive_pool receive;
    struct send_chunks send;
    uint32_t worked;                /* Things done this turn; 0: idle. */
    bool more;                      /* A bound was hit: turn again at once. */
    bool tx_full;                   /* The backend had no send buffer. */
    bool events_full, chunks_short; /* Why events had to wait. */
    bool driven, server, test_profile, busy_poll;
    bool stopping, stopped;
    uint32_t index, count;
    int event_fd;
    struct wheel wheel;

    struct handoff *in[STOQ_MAX_WORKERS], *out[STOQ_MAX_WORKERS];
    struct worker *peers[STOQ_MAX_WORKERS];

    /* guests.h */
    struct worker *host;   /* Whose thread runs us and whose backend we send through; NULL: our own. */
    struct worker *guests; /* Run by our thread. */
    struct worker *guest_next;
    struct worker *_Atomic move_to;  /* By the control plane: where to go; NULL: stay. */
    struct worker *_Atomic arriving; /* By the control plane: workers for our thread. */
    sem_t released;                  /* Posted when our host has let go of us. */

    struct worker_conn *conns;
    struct wheel perf_wheel;
    struct perf *perf_done;           /* Finished, PERF_DONE not told yet. */
    struct perf_stream *perf_sending; /* Ring of streams with more to send than the engine was given. */
    uint32_t perf_sending_count;
    uint32_t perf_pattern;  /* Chunk that perf servers send from; STOQ_NO_CHUNK until one is needed. */
    uint64_t stop_deadline; /* STOPPED by then, whatever is still to be sent. */
    uint64_t publish_at;    /* Time of the next statistics. */

    struct arena arena;
    struct prng prng;
    bool seeded;
    uint32_t random_left; /* Unused bytes at the end of random_bytes. */
    uint8_t random_bytes[4096];

    struct stoq_config config;
    struct quic_addr bind, local;
    struct guard *guard;
    bool guard_native, driver_checksum;
    struct steer *steer;
    struct guard_cids *cid_region; /* Ours alone; NULL: nobody wants to know ids. */
    void *io_backend;
    bool (*rebind)(void *ctx, struct quic_addr *local);
    void *rebind_ctx;
    struct io *retired[RETIRED_IO];
    uint32_t retired_count;
    int fd; /* The memfd. */
};

/* Workers there are; grows while they run. Acquire, with worker_link's release: of the rings to the newest.
 */
static inline uint32_t worker_count(const struct worker *w) {
    return __atomic_load_n(&w->count, __ATOMIC_ACQUIRE);
}

/* Does the same thread run both? For that thread, and for the control plane while it moves neither. */
static inline bool worker_runs_with(const struct worker *a, const struct worker *b) {
    return (a->host ? a->host : a) == (b->host ? b->host : b);
}

/* For the threads of real workers and what serves them; a turn gets its time as an argument. */
static inline uint64_t worker_clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void count(struct worker *w, enum stoq_counter counter, uint64_t n) {
    shared_write(&w->counters[counter], w->counters[counter] + n);
}

/* config.c: write an error; NULL is let pass. */
__attribute__((format(printf, 3, 4))) void stoq_fail(struct stoq_error *error, int code, const char *format,
                                                     ...);

/* host.c: what the engine gets from us. */
struct quic_host worker_host(struct worker *w);
void worker_random(void *ctx, uint8_t *out, size_t len);
/* Give a send chunk back: its number goes into the return ring. */
void worker_return_chunk(struct worker *w, uint32_t chunk);
void worker_flush_returns(struct worker *w);

/* commands.c */
void worker_commands(struct worker *w);
/* Close every connection; the worker stops when that is sent (worker.c). */
void worker_begin_stop(struct worker *w);

/* events.c */
void worker_events(struct worker *w);
/* Is there room in the event ring for what one command or engine event may tell (a PERF_DONE goes before a
 * CLOSED)? */
bool worker_event_room(struct worker *w);
/* Tell an event. `head` then `tail` are copied into a chunk; without memory for one the event goes without
 * payload. */
struct worker_payload {
    const void *head;
    uint32_t head_len;
    const void *tail;
    uint32_t tail_len;
};
void worker_tell(struct worker *w, const struct stoq_event *event, const struct worker_payload *payload);
/* Make the worker's word for a connection and tell CONNECTION. NULL: no memory. */
struct worker_conn *worker_announce(struct worker *w, struct quic_conn *conn, uint64_t cookie);
/* Forget it: after CLOSED or DETACH. */
void worker_forget(struct worker *w, struct worker_conn *wc);
/* The word for a connection that was announced and is not forgotten, else NULL. */
struct worker_conn *worker_conn_of(const struct worker *w, struct quic_conn *conn);
void worker_tell_closed(struct worker *w, uint64_t handle, uint64_t value, uint8_t flags, uint64_t code,
                        uint64_t frame_type, const void *reason, uint32_t reason_len);

/* thread.c: with everything open, give up what is not needed any more (privileges.h, sandbox.h); for this
 * thread. */
bool worker_confine(struct worker *w, struct stoq_error *error);

/* worker.c */
bool worker_rebind(struct worker *w);
void worker_publish(struct worker *w);
void worker_publish_local(struct worker *w);
struct io *worker_open_backend(struct worker *w, const struct quic_addr *bind, struct io_text *why);

/* perf.c, perf_client.c: the `perf` application protocol. */
bool perf_serve(struct worker *w, struct worker_conn *wc);
bool perf_start(struct worker *w, struct worker_conn *wc, const struct stoq_perf *args);
/* A stream event of a connection with perf; takes the reference to its chunk. */
void perf_event(struct worker *w, struct worker_conn *wc, const struct quic_event *event);
/* The handshake is done: requests may go out now. */
void perf_connected(struct worker *w, struct worker_conn *wc);
void perf_timer(void *ctx, struct quic_timer *timer);
/* Give the engine more to send. */
void perf_top_up(struct worker *w);
/* Tell PERF_DONE of those that finished, while there is room. */
void perf_tell_done(struct worker *w);
/* The connection ends: free, and with `tell` say first what was measured (room for one event is there). */
void perf_end(struct worker *w, struct worker_conn *wc, bool tell);

#endif
