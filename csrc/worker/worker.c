/* A worker's life and its turn; worker.h explains both. */
#define _GNU_SOURCE
#include "private.h"

#include <stdlib.h>
#include <unistd.h>

#include "../io/afxdp.h"

#define PUBLISH_NS UINT64_C(1000000) /* Statistics once a millisecond: fresher than anybody reads them. */
/* A stopping worker sends its CONNECTION_CLOSEs within this time or not at all. */
#define STOP_NS UINT64_C(100000000)

_Static_assert(sizeof(struct stoq_io_stats) == sizeof(struct io_stats), "copied as they are");
_Static_assert(offsetof(struct stoq_io_stats, syscalls) == offsetof(struct io_stats, syscalls),
               "same fields");
_Static_assert(sizeof(struct stoq_queue_stats) == sizeof(struct io_queue_stats), "copied as they are");
_Static_assert(offsetof(struct stoq_queue_stats, neighbours) == offsetof(struct io_queue_stats, neighbours),
               "same fields");
_Static_assert(STOQ_XSK_COPY == AFXDP_MODE_COPY && STOQ_XSK_ZERO_COPY == AFXDP_MODE_ZERO_COPY,
               "same numbers");

struct worker *worker_create(const struct worker_config *config, struct stoq_error *error) {
    const struct stoq_config *c = config->config;
    struct worker *w = aligned_alloc(64, (sizeof *w + 63) & ~(size_t)63);
    if (!w) {
        stoq_fail(error, -ENOMEM, "worker %u: no memory", config->index);
        return NULL;
    }
    memset(w, 0, sizeof *w);
    w->fd = -1;
    w->config = *c;
    w->backend = config->ops;
    w->io_backend = config->io_backend;
    w->guard = config->guard;
    w->guard_native = config->guard_native;
    w->driver_checksum = config->driver_checksum;
    w->steer = config->steer;
    w->index = config->index;
    w->cid_region = w->guard ? guard_cid_region(w->guard, w->index) : NULL;
    w->count = config->count;
    sem_init(&w->released, 0, 0);
    w->event_fd = config->event_fd;
    w->driven = config->driven;
    w->rebind = config->rebind;
    w->rebind_ctx = config->rebind_ctx;
    w->server = c->server;
    w->test_profile = c->test_profile;
    w->busy_poll = c->busy_poll;
    w->perf_pattern = STOQ_NO_CHUNK;
    w->seeded = config->random_seed != 0;
    prng_seed(&w->prng, config->random_seed);

    w->shared = shared_create(config->index, c, &w->fd);
    if (!w->shared) {
        stoq_fail(error, -errno,
                  "worker %u: cannot map %llu + %llu bytes of chunks: %s (lower receive_bytes or send_bytes)",
                  config->index, (unsigned long long)c->receive_bytes, (unsigned long long)c->send_bytes,
                  strerror(errno));
    } else if (!receive_pool_init(&w->receive, &w->shared->receive,
                                  shared_at(w->shared, w->shared->receive_at)) ||
               !send_chunks_init(&w->send, &w->shared->send, shared_at(w->shared, w->shared->send_at)) ||
               !arena_init(&w->arena, c->metadata_bytes)) {
        stoq_fail(error, -errno,
                  "worker %u: cannot map %llu bytes of private memory: %s (lower metadata_bytes)",
                  config->index, (unsigned long long)c->metadata_bytes, strerror(errno));
    } else {
        struct shared *s = w->shared;
        w->counters = s->counters;
        w->commands = ring_attach_consumer(shared_at(s, s->commands_at), s->command_slots);
        w->events = ring_attach_producer(shared_at(s, s->events_at), s->event_slots);
        w->returns = ring_attach_producer(shared_at(s, s->returns_at), s->return_slots);
        wheel_init(&w->wheel, 0);
        wheel_init(&w->perf_wheel, 0);
        return w;
    }
    worker_destroy(w);
    return NULL;
}

struct io *worker_open_backend(struct worker *w, const struct quic_addr *bind, struct io_text *why) {
    const struct stoq_config *c = &w->config;
    struct afxdp_config xsk = {.ifindex = c->ifindex,
                               .queue = c->first_queue + w->index,
                               .mode = (enum afxdp_mode)c->xsk_mode,
                               .xsks_fd = -1,
                               .busy_budget = c->busy_budget};
    if (w->guard) {
        xsk.native = w->guard_native;
        xsk.driver_checksum = w->driver_checksum;
        xsk.xsks_fd = guard_xsks_fd(w->guard);
    }
    struct io_config io = {
        .bind = *bind,
        .ifindex = c->ifindex,
        .rx_buffers = c->io_buffers,
        .tx_buffers = c->io_buffers,
        .socket_bytes = c->socket_bytes,
        .reuse_port = c->max_workers > 1 && (c->server || bind->port != 0),
        .worker = w->index,
        .steer_program = w->steer ? steer_program_fd(w->steer) : 0,
        .steer_sockets = w->steer ? steer_sockets_fd(w->steer) : 0,
        .uring = {.zero_copy_bytes = c->zero_copy_bytes, .napi_us = c->napi_us, .sqpoll = c->sqpoll},
        .no_gso = c->no_gso,
        .no_gro = c->no_gro,
        .backend = w->backend == &io_afxdp_ops ? &xsk : w->io_backend};
    return w->backend->open(&io, why);
}

void worker_publish_local(struct worker *w) {
    uint64_t words[3];
    memcpy(words, &w->local, sizeof words);
    for (int i = 0; i < 3; i++)
        shared_write(&w->shared->local[i], words[i]);
}

bool worker_open_io(struct worker *w, const struct quic_addr *bind, struct stoq_error *error) {
    const struct stoq_config *c = &w->config;
    struct io_text text = {{0}};
    w->io = worker_open_backend(w, bind, &text);
    if (!w->io) {
        stoq_fail(error, -EIO, "worker %u: backend %s did not open: %s", w->index, w->backend->name,
                  text.text);
        return false;
    }
    w->bind = *bind;
    w->io->ops->local(w->io, &w->local);
    worker_publish_local(w);

    struct quic_config q = {
        .crypto = crypto_provider_by_name(c->crypto),
        .worker = (uint8_t)w->index,
        .server = c->server,
        .retry_always = c->retry_always,
        .max_connections = c->max_connections,
        .cc = c->congestion,
        .no_pacing = c->no_pacing,
        .no_ecn = c->no_ecn,
        .no_ack_frequency = c->no_ack_frequency,
        .max_datagram = c->max_datagram,
        .initial_rtt_ns = c->initial_rtt_ns,
        .initial_window_packets = c->initial_window_packets,
        .key_update_packets = c->key_update_packets,
        .idle_timeout_ns = c->idle_timeout_ns,
        .handshake_timeout_ns = c->handshake_timeout_ns,
        .max_data = c->max_data,
        .max_stream_data = c->max_stream_data,
        .max_data_limit = c->max_data_limit,
        .max_stream_data_limit = c->max_stream_data_limit,
        .max_streams_bidi = c->max_streams_bidi,
        .max_streams_uni = c->max_streams_uni,
        .max_ack_delay_ns = c->max_ack_delay_ns,
        .max_datagram_frame = c->max_datagram_frame,
    };
    memcpy(q.token_key, c->token_key, sizeof q.token_key);
    memcpy(q.reset_key, c->reset_key, sizeof q.reset_key);
    struct quic_host host = worker_host(w);
    if (!q.crypto)
        stoq_fail(error, -ENOENT, "crypto provider %s is not built in or cannot run on this CPU", c->crypto);
    else if (!(w->ep = quic_endpoint_create(&q, &host, w->shared->counters, w->shared->drops)))
        stoq_fail(error, -ENOMEM,
                  "worker %u: no endpoint fits in %llu bytes (raise metadata_bytes or lower max_connections)",
                  w->index, (unsigned long long)c->metadata_bytes);
    crypto_wipe(q.token_key, sizeof q.token_key); /* The endpoint has its own copy. */
    crypto_wipe(q.reset_key, sizeof q.reset_key);
    crypto_wipe(w->config.token_key, sizeof w->config.token_key);
    crypto_wipe(w->config.reset_key, sizeof w->config.reset_key);
    if (!w->ep)
        return false;

    w->io->ops->describe(w->io, &text);
    snprintf(w->shared->text, sizeof w->shared->text, "%s; metadata: %llu MiB in %s", text.text,
             (unsigned long long)(w->arena.bytes >> 20),
             w->arena.huge ? "huge pages" : "pages with THP advice");
    worker_publish(w);
    return true;
}

void worker_destroy(struct worker *w) {
    if (!w)
        return;
    if (w->ep)
        quic_endpoint_destroy(w->ep);
    for (uint32_t i = 0; i < w->retired_count; i++)
        w->retired[i]->ops->close(w->retired[i]);
    if (w->io && !w->host)
        w->io->ops->close(w->io);
    for (uint32_t i = 0; i < STOQ_MAX_WORKERS; i++)
        handoff_destroy(w->in[i]); /* Each is some other worker's `out`. */
    arena_destroy(&w->arena);
    send_chunks_destroy(&w->send);
    receive_pool_destroy(&w->receive);
    shared_unmap(w->shared);
    if (w->fd >= 0)
        close(w->fd);
    crypto_wipe(w, sizeof *w);
    free(w);
}

bool worker_link(struct worker *a, struct worker *b) {
    struct handoff *ab = handoff_create(), *ba = handoff_create();
    if (!ab || !ba) {
        handoff_destroy(ab);
        handoff_destroy(ba);
        return false;
    }
    a->out[b->index] = b->in[a->index] = ab;
    b->out[a->index] = a->in[b->index] = ba;
    a->peers[b->index] = b;
    b->peers[a->index] = a;
    return true;
}

void worker_local(const struct worker *w, struct quic_addr *out) {
    *out = w->local;
}

void worker_unlink(struct worker *a, uint32_t b) {
    handoff_destroy(a->in[b]);
    a->in[b] = a->out[b] = NULL;
    a->peers[b] = NULL;
}

void worker_set_count(struct worker *w, uint32_t n) {
    /* Release, with worker_count's acquire: whoever sees the number sees the rings. */
    __atomic_store_n(&w->count, n, __ATOMIC_RELEASE);
}

struct quic_endpoint *worker_endpoint(struct worker *w) {
    return w->ep;
}

bool worker_stopped(const struct worker *w) {
    return w->stopped;
}

bool worker_reopen_io(struct worker *w, struct stoq_error *error) {
    struct io_text why = {{0}};
    struct quic_addr bind = w->bind;
    bind.port = w->server ? w->local.port : 0;
    struct io *io = worker_open_backend(w, &bind, &why);
    if (!io) {
        stoq_fail(error, -EIO, "worker %u: backend %s did not open: %s", w->index, w->backend->name,
                  why.text);
        return false;
    }
    /* Release, with worker_kick's acquire: a kicker that sees the new backend sees it complete. */
    __atomic_store_n(&w->io, io, __ATOMIC_RELEASE);
    io->ops->local(io, &w->local);
    worker_publish_local(w);
    for (struct worker_conn *wc = w->conns; wc; wc = wc->next)
        if (!quic_conn_is_server(wc->conn))
            quic_conn_rebind(wc->conn, w->now, &w->local);
    return true;
}

/* The worker's socket moves to another port, and with it all of its connections as clients. */
bool worker_rebind(struct worker *w) {
    struct quic_addr local;
    if (w->rebind) {
        if (!w->rebind(w->rebind_ctx, &local))
            return false;
    } else {
        struct io_text why = {{0}};
        struct quic_addr bind = w->bind;
        bind.port = 0;
        /* A queue has one AF_XDP socket, and the guard knows one port. */
        if (w->retired_count == RETIRED_IO || w->backend == &io_afxdp_ops || w->host || w->guests)
            return false;
        struct io *io = worker_open_backend(w, &bind, &why);
        if (!io)
            return false;
        w->io->ops->flush(w->io);
        w->retired[w->retired_count++] = w->io;
        /* Release, with worker_kick's acquire: a kicker that sees the new backend sees it complete. */
        __atomic_store_n(&w->io, io, __ATOMIC_RELEASE);
        io->ops->local(io, &local);
    }
    w->local = local;
    worker_publish_local(w);
    for (struct worker_conn *wc = w->conns; wc; wc = wc->next)
        if (!quic_conn_is_server(wc->conn))
            quic_conn_rebind(wc->conn, w->now, &local);
    return true;
}

void worker_request_stop(struct worker *w) {
    /* Relaxed: carries no data; worker_kick's fence orders it before the look at `sleeping`. */
    atomic_store_explicit(&w->shared->stop_requested, 1, memory_order_relaxed);
    worker_kick(w);
}

void worker_kick(struct worker *w) {
    struct shared *s = w->shared;
    /* Orders what the caller published before our look at `sleeping`; pairs with the fence of a worker about
     * to sleep (thread.c), which orders its "sleeping" before its last look at the rings. One of us sees the
     * other. */
    atomic_thread_fence(memory_order_seq_cst);
    /* Relaxed first look: the fence has ordered it. Acquire on the exchange: of the worker's latest `io`. */
    if (atomic_load_explicit(&s->sleeping, memory_order_relaxed) &&
        atomic_exchange_explicit(&s->sleeping, 0, memory_order_acquire)) {
        struct io *io = __atomic_load_n(&w->io, __ATOMIC_ACQUIRE);
        io->ops->wake(io);
    }
}

void worker_publish(struct worker *w) {
    struct shared *s = w->shared;
    struct io_stats stats;
    uint64_t words[SHARED_IO_WORDS];
    if (!w->host) { /* A guest's is its host's, and counted there. */
        w->io->ops->stats(w->io, &stats);
        memcpy(words, &stats, sizeof words);
        for (size_t i = 0; i < SHARED_IO_WORDS; i++)
            shared_write(&s->io[i], words[i]);
    }

    if (!w->host && w->io->ops->queue) {
        struct io_queue_stats queue;
        uint64_t queue_words[SHARED_QUEUE_WORDS];
        w->io->ops->queue(w->io, &queue);
        memcpy(queue_words, &queue, sizeof queue_words);
        for (size_t i = 0; i < SHARED_QUEUE_WORDS; i++)
            shared_write(&s->queue[i], queue_words[i]);
    }

    const struct chunk_pool *r = &w->receive.pool;
    struct stoq_pool_stats pools = {
        .metadata_bytes = w->arena.bytes,
        .metadata_used = w->arena.used,
        .receive_chunks_small = r->layout.small,
        .receive_chunks_small_used = r->layout.small - chunk_free_count(&r->small),
        .receive_chunks_large = r->layout.large,
        .receive_chunks_large_used = r->layout.large - chunk_free_count(&r->large),
        .connections = quic_endpoint_connections(w->ep),
    };
    uint64_t pool_words[SHARED_POOL_WORDS];
    memcpy(pool_words, &pools, sizeof pool_words);
    for (size_t i = 0; i < SHARED_POOL_WORDS; i++)
        shared_write(&s->pools[i], pool_words[i]);
    w->publish_at = w->now + PUBLISH_NS;
}

static void count_train(uint64_t *buckets, uint32_t len, uint32_t segment) {
    uint32_t n = segment > 0 ? (len + segment - 1) / segment : 1;
    unsigned bucket = n <= 1 ? 0 : 32u - (unsigned)__builtin_clz(n - 1);
    bucket = bucket < SHARED_TRAIN_BUCKETS ? bucket : SHARED_TRAIN_BUCKETS - 1;
    shared_write(&buckets[bucket], buckets[bucket] + 1);
}

/* Datagrams of one train for one other worker. */
static void pass(struct worker *w, uint32_t to, const struct quic_rx *rx) {
    uint64_t n = (rx->len + rx->segment - 1) / rx->segment;
    if (handoff_push(w->out[to], rx))
        count(w, STOQ_COUNTER_DATAGRAMS_PASSED, n);
    else
        shared_write(&w->shared->drops[STOQ_DROP_OTHER_WORKER], w->shared->drops[STOQ_DROP_OTHER_WORKER] + n);
}

static void deliver(struct worker *w, uint32_t to, const struct quic_rx *rx) {
    if (to == w->index)
        quic_endpoint_receive(w->ep, w->now, rx);
    else
        pass(w, to, rx);
}

/* Several workers: a train may hold datagrams of connections of different workers (they share addresses, not
 * ids). Cut it into runs by worker. */
static void sort_out(struct worker *w, const struct quic_rx *rx) {
    uint32_t stride = rx->stride ? rx->stride : rx->segment;
    uint32_t count = (rx->len + rx->segment - 1) / rx->segment;
    struct quic_rx run = *rx;
    uint32_t owner = w->index;
    run.len = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *p = rx->data + (size_t)i * stride;
        uint32_t len = i + 1 < count ? rx->segment : rx->len - i * rx->segment;
        int of = quic_datagram_worker(p, len);
        uint32_t to = of >= 0 && (uint32_t)of < worker_count(w) && w->out[of] ? (uint32_t)of : w->index;
        if (run.len > 0 && to != owner) {
            deliver(w, owner, &run);
            run.data = p;
            run.len = 0;
        }
        owner = to;
        run.len += len;
    }
    deliver(w, owner, &run);
}

static void receive(struct worker *w) {
    struct io_rx rx[TURN_RX];
    int n = w->io->ops->rx(w->io, rx, TURN_RX);
    for (int i = 0; i < n; i++) {
        struct quic_rx train = {.data = rx[i].data,
                                .len = rx[i].len,
                                .stride = rx[i].stride,
                                .segment = rx[i].segment,
                                .ecn = rx[i].ecn,
                                .peer = rx[i].peer,
                                .local = rx[i].local};
        count_train(w->shared->trains_received, train.len, train.segment);
        if (train.len == 0 || train.segment == 0)
            continue;
        if (worker_count(w) > 1)
            sort_out(w, &train);
        else
            quic_endpoint_receive(w->ep, w->now, &train);
    }
    if (n > 0) {
        w->io->ops->rx_release(w->io, rx, n);
        w->worked += (uint32_t)n;
        if (n == TURN_RX)
            w->more = true;
    }
}

static void receive_handed_over(struct worker *w) {
    for (uint32_t i = 0, n = worker_count(w); i < n; i++) {
        struct quic_rx rx;
        for (uint32_t n = 0; w->in[i] && handoff_peek(w->in[i], &rx); n++) {
            if (n == TURN_HANDOFF) {
                w->more = true;
                break;
            }
            quic_endpoint_receive(w->ep, w->now, &rx);
            handoff_pop(w->in[i]);
            w->worked++;
        }
    }
}

static void hand_over(struct worker *w) {
    for (uint32_t i = 0, n = worker_count(w); i < n; i++)
        if (w->out[i] && handoff_publish(w->out[i]))
            worker_kick(w->peers[i]);
}

static void fire(void *ctx, struct quic_timer *timer) {
    struct worker *w = ctx;
    quic_conn_on_timer(quic_conn_from_timer(timer), w->now);
}

/* Answers the number of trains committed. */
static uint32_t transmit(struct worker *w) {
    uint32_t n = 0;
    w->tx_full = false;
    for (; n < TURN_TX && quic_endpoint_pending(w->ep); n++) {
        struct io_tx *out = w->io->ops->tx_acquire(w->io);
        if (!out) {
            w->tx_full = true; /* The turn after a completion goes on; io->wait returns for one. */
            break;
        }
        struct quic_tx tx = {
            .data = out->data, .cap = out->cap, .stride = out->stride, .max_segments = out->max_segments};
        if (!quic_endpoint_transmit(w->ep, w->now, &tx)) {
            w->io->ops->tx_cancel(w->io, out);
            break;
        }
        out->len = tx.len;
        out->segment = tx.segment;
        out->ecn = tx.ecn;
        out->ifindex = 0; /* The route decides; link-local addresses carry their scope. */
        out->peer = tx.peer;
        out->local = tx.local;
        count_train(w->shared->trains_sent, tx.len, tx.segment);
        w->io->ops->tx_commit(w->io, out);
    }
    w->worked += n;
    if (n == TURN_TX)
        w->more = true;
    w->io->ops->flush(w->io);
    return n;
}

/* Show the turn's events, and wake the control plane if it may be asleep. */
static void signal_events(struct worker *w) {
    struct shared *s = w->shared;
    if (!ring_publish(&w->events))
        return;
    /* Orders the events before our look at `events_armed`; pairs with the fence in stoq_event_clear between
     * its arming and its reading of the rings. Either it finds these events or we find it armed. */
    atomic_thread_fence(memory_order_seq_cst);
    if (w->event_fd < 0 || !atomic_load_explicit(&s->events_armed, memory_order_relaxed))
        return;
    /* Relaxed: only this thread clears it, and the eventfd itself carries the wake-up. */
    atomic_store_explicit(&s->events_armed, 0, memory_order_relaxed);
    uint64_t one = 1;
    (void)!write(w->event_fd, &one,
                 sizeof one); /* Fails only when the count is at its top: readable already. */
}

/* STOP was asked for: nothing is received any more; when everything is told and sent, or time is up, the
 * worker stops. */
static void stop_when_quiet(struct worker *w, uint32_t sent) {
    if (w->stop_deadline == 0)
        w->stop_deadline = w->now + STOP_NS;
    if ((sent > 0 || w->tx_full || w->more) && w->now < w->stop_deadline)
        return;
    if (worker_event_room(w))
        worker_tell(
            w, &(struct stoq_event){.type = STOQ_EVENT_STOPPED, .chunk = STOQ_NO_CHUNK, .value = w->index},
            NULL);
    w->stopped = true;
}

uint64_t worker_turn(struct worker *w, uint64_t now) {
    if (w->stopped)
        return QUIC_NEVER;
    w->now = now;
    w->worked = 0;
    w->more = false;
    count(w, STOQ_COUNTER_LOOPS, 1);

    worker_commands(w);
    /* Relaxed: a flag alone. Seen this turn or the next. */
    if (!w->stopping && atomic_load_explicit(&w->shared->stop_requested, memory_order_relaxed))
        worker_begin_stop(w);
    if (!w->stopping) {
        if (worker_count(w) > 1)
            receive_handed_over(w);
        if (!w->host)
            receive(w);
    }
    w->worked += (uint32_t)wheel_expire(&w->wheel, now, fire, w);
    w->worked += (uint32_t)wheel_expire(&w->perf_wheel, now, perf_timer, w);
    if (quic_endpoint_poll_conn(w->ep) || w->perf_done || w->events_full || w->chunks_short)
        worker_events(w);
    if (w->worked > 0 && w->perf_sending)
        perf_top_up(w); /* In an idle turn nothing was sent or acknowledged since the last. */
    uint32_t sent = transmit(w);
    if (worker_count(w) > 1)
        hand_over(w);
    worker_flush_returns(w);
    if (w->stopping)
        stop_when_quiet(w, sent);
    signal_events(w);
    if (w->driven || now >= w->publish_at || w->stopped)
        worker_publish(w);

    if (w->stopped)
        return QUIC_NEVER;
    uint64_t next = wheel_next_deadline(&w->wheel);
    uint64_t perf = wheel_next_deadline(&w->perf_wheel);
    next = perf < next ? perf : next;
    if (w->stopping && w->stop_deadline < next)
        next = w->stop_deadline;
    return w->more || next <= now ? 0 : next;
}
