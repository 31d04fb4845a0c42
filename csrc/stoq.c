/* The API of stoq.h on a datapath: thin, checked wrappers around the control ends (worker/control.h) and the
 * statistics in the shared areas. stoq_open, stoq_stop and stoq_close are in worker/datapath.c, the simulator
 * in sim/.
 *
 * A worker number out of range is answered like an empty worker: nothing happens, nothing is there. */
#include "worker/datapath_private.h"

#include <unistd.h>

static const struct shared *shared_of(const struct stoq_datapath *dp, uint32_t worker) {
    return worker < dp->count ? dp->controls[worker].shared : NULL;
}

static struct control *control_of(struct stoq_datapath *dp, uint32_t worker) {
    return worker < dp->count ? &dp->controls[worker] : NULL;
}

uint32_t stoq_workers(const struct stoq_datapath *dp) {
    return dp->count;
}

int stoq_event_fd(const struct stoq_datapath *dp) {
    return dp->event_fd;
}

void stoq_event_clear(struct stoq_datapath *dp) {
    uint64_t n;
    (void)!read(dp->event_fd, &n, sizeof n); /* EAGAIN: was clear already. */
    for (uint32_t i = 0; i < dp->count; i++)
        atomic_store_explicit(&dp->controls[i].shared->events_armed, 1, memory_order_relaxed);
    /* Orders the arming before the caller's look at the rings; pairs with the fence in signal_events
     * (worker.c), which orders a worker's events before its look at "armed". One of us sees the other. */
    atomic_thread_fence(memory_order_seq_cst);
}

int stoq_events(struct stoq_datapath *dp, uint32_t worker, struct stoq_event *out, int max) {
    struct control *c = control_of(dp, worker);
    bool blocked;
    if (!c || max <= 0)
        return 0;
    int n = control_events(c, out, max, &blocked);
    if (blocked)
        worker_kick(dp->workers[worker]);
    return n;
}

bool stoq_events_waiting(const struct stoq_datapath *dp, uint32_t worker) {
    return worker < dp->count && ring_waiting(dp->controls[worker].events.ring);
}

bool stoq_command(struct stoq_datapath *dp, uint32_t worker, const struct stoq_command *command) {
    struct control *c = control_of(dp, worker);
    return c && control_command(c, command);
}

void stoq_kick(struct stoq_datapath *dp, uint32_t worker) {
    if (worker < dp->count && !dp->stopped)
        worker_kick(dp->workers[worker]);
}

uint32_t stoq_chunk_alloc(struct stoq_datapath *dp, uint32_t worker, uint32_t bytes) {
    struct control *c = control_of(dp, worker);
    return c ? control_chunk_alloc(c, bytes) : STOQ_NO_CHUNK;
}

void stoq_chunk_free(struct stoq_datapath *dp, uint32_t worker, uint32_t chunk) {
    struct control *c = control_of(dp, worker);
    if (c)
        control_chunk_free(c, chunk);
}

uint8_t *stoq_send_chunk(struct stoq_datapath *dp, uint32_t worker, uint32_t chunk, uint32_t *bytes) {
    struct control *c = control_of(dp, worker);
    if (!c || chunk >= chunk_count(&c->send.layout))
        return NULL;
    if (bytes)
        *bytes = chunk_bytes(&c->send.layout, chunk);
    return (uint8_t *)shared_at(c->shared, c->shared->send_at) + chunk_offset(&c->send.layout, chunk);
}

uint8_t *stoq_receive_chunk(struct stoq_datapath *dp, uint32_t worker, uint32_t chunk) {
    struct control *c = control_of(dp, worker);
    if (!c || chunk >= chunk_count(&c->shared->receive))
        return NULL;
    return (uint8_t *)shared_at(c->shared, c->shared->receive_at) + chunk_offset(&c->shared->receive, chunk);
}

uint64_t stoq_send_free_bytes(struct stoq_datapath *dp, uint32_t worker) {
    struct control *c = control_of(dp, worker);
    return c ? control_free_bytes(c) : 0;
}

/* Up to `n` words of `have` into `out`; what there is no source for reads as 0. */
static void read_words(const uint64_t *words, size_t have, uint64_t *out, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = words && i < have ? shared_read(&words[i]) : 0;
}

void stoq_local_address(const struct stoq_datapath *dp, uint32_t worker, struct stoq_address *out) {
    const struct shared *s = shared_of(dp, worker);
    uint64_t words[3];
    read_words(s ? s->local : NULL, 3, words, 3);
    memcpy(out, words, sizeof words);
}

void stoq_describe(const struct stoq_datapath *dp, uint32_t worker, char *out, size_t cap) {
    const struct shared *s = shared_of(dp, worker);
    if (cap > 0)
        snprintf(out, cap, "%s", s ? s->text : "");
}

const char *stoq_crypto_name(const struct stoq_datapath *dp) {
    return dp->crypto;
}

int stoq_worker_core(const struct stoq_datapath *dp, uint32_t worker) {
    return worker < dp->count && !dp->adopted ? dp->threads[worker].core : -1;
}

uint32_t stoq_counter_count(void) {
    return STOQ_COUNTER_COUNT;
}

uint32_t stoq_drop_count(void) {
    return STOQ_DROP_COUNT;
}

void stoq_counters(const struct stoq_datapath *dp, uint32_t worker, uint64_t *out, uint32_t n) {
    const struct shared *s = shared_of(dp, worker);
    read_words(s ? s->counters : NULL, STOQ_COUNTER_COUNT, out, n);
}

void stoq_drops(const struct stoq_datapath *dp, uint32_t worker, uint64_t *out, uint32_t n) {
    const struct shared *s = shared_of(dp, worker);
    read_words(s ? s->drops : NULL, STOQ_DROP_COUNT, out, n);
}

void stoq_io_statistics(const struct stoq_datapath *dp, uint32_t worker, struct stoq_io_stats *out) {
    const struct shared *s = shared_of(dp, worker);
    uint64_t words[SHARED_IO_WORDS];
    read_words(s ? s->io : NULL, SHARED_IO_WORDS, words, SHARED_IO_WORDS);
    memcpy(out, words, sizeof *out);
}

void stoq_pool_statistics(const struct stoq_datapath *dp, uint32_t worker, struct stoq_pool_stats *out) {
    const struct shared *s = shared_of(dp, worker);
    uint64_t words[SHARED_POOL_WORDS];
    read_words(s ? s->pools : NULL, SHARED_POOL_WORDS, words, SHARED_POOL_WORDS);
    memcpy(out, words, sizeof *out);
    if (!s)
        return;
    /* The send pool is the control plane's own. */
    const struct chunk_pool *p = &dp->controls[worker].send;
    out->send_chunks_small = p->layout.small;
    out->send_chunks_small_used = p->layout.small - chunk_free_count(&p->small);
    out->send_chunks_large = p->layout.large;
    out->send_chunks_large_used = p->layout.large - chunk_free_count(&p->large);
}

bool stoq_queue_statistics(const struct stoq_datapath *dp, uint32_t worker, struct stoq_queue_stats *out) {
    const struct shared *s = shared_of(dp, worker);
    uint64_t words[SHARED_QUEUE_WORDS];
    read_words(s ? s->queue : NULL, SHARED_QUEUE_WORDS, words, SHARED_QUEUE_WORDS);
    memcpy(out, words, sizeof *out);
    return out->frames != 0;
}

void stoq_train_histogram(const struct stoq_datapath *dp, uint32_t worker, uint64_t sent[7],
                          uint64_t received[7]) {
    const struct shared *s = shared_of(dp, worker);
    read_words(s ? s->trains_sent : NULL, SHARED_TRAIN_BUCKETS, sent, 7);
    read_words(s ? s->trains_received : NULL, SHARED_TRAIN_BUCKETS, received, 7);
}
