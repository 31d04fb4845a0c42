/* The `wire` backend: see wire.h for the model. Owns the links, the NAT table, the queue of what is under way
 * and the endpoints' receive queues; buffers are wire_pool.c's. RFC 3168 for the CE marks. */
#include "wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../quic/timer.h"
#include "prng.h"
#include "wire_nat.h"
#include "wire_pool.h"

/* Send buffers of an endpoint: 256 MiB under way, a 40 Gbit/s x 50 ms path. */
#define WIRE_DEFAULT_TX 4096u
/* A reordered datagram is late by up to 1 ms when reorder_ns is not given. */
#define WIRE_DEFAULT_REORDER 1000000u
/* A delayed train smaller than this does not keep a 64 KiB buffer waiting. */
#define WIRE_COPY_BELOW_BYTES 16384u

struct wire_link {
    struct stoq_impairment set;
    uint32_t mtu;           /* 65535 when unlimited. */
    bool perfect;           /* Nothing but delay and MTU: trains pass whole. */
    uint64_t busy_until_ns; /* The bottleneck has sent everything by then… */
    uint64_t busy_rest;     /* …and this many 1/rate_bps of a nanosecond: a rate is exact over any time. */
    uint64_t last_due_ns;   /* Order is kept: nothing arrives before this but what is reordered. */
    uint64_t counts[WIRE_FATE_COUNT];
};

struct wire_io {
    struct io io;
    struct wire_net *net;
    uint32_t index;
    uint32_t tx_limit, tx_used;
    bool refused; /* tx_acquire found no buffer: the worker waits for one. */
    bool no_gso, no_gro;
    uint32_t frame_bytes; /* Datagrams lie so far apart in their buffers; 0: end to end. */
    struct quic_addr local;
    struct wire_packet *ready, **ready_end;
    struct io_stats stats;
};

struct wire_due {
    uint64_t due_ns, seq; /* seq: what is due at one time keeps its order. */
    struct wire_packet *packet;
};

struct wire_net {
    uint64_t now_ns, seq, moderation_ns, ready_packets;
    struct prng prng;
    wire_tap *tap;
    void *tap_ctx;
    struct wire_pool pool;
    struct wire_due *heap;
    uint32_t heap_len, heap_cap;
    uint32_t endpoint_count;
    struct wire_io *endpoints[WIRE_MAX_ENDPOINTS];
    struct wire_link links[WIRE_MAX_ENDPOINTS];
    struct wire_nat nat;
};

/* ---- what is under way: a binary heap by time ---- */

static bool earlier(const struct wire_due *a, const struct wire_due *b) {
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->seq < b->seq;
}

static bool heap_push(struct wire_net *net, struct wire_packet *packet) {
    if (net->heap_len == net->heap_cap) {
        uint32_t cap = net->heap_cap ? net->heap_cap * 2 : 256;
        struct wire_due *heap = realloc(net->heap, cap * sizeof *heap);
        if (!heap)
            return false;
        net->heap = heap;
        net->heap_cap = cap;
    }
    struct wire_due due = {packet->due_ns, net->seq++, packet};
    uint32_t i = net->heap_len++;
    for (; i && earlier(&due, &net->heap[(i - 1) / 2]); i = (i - 1) / 2)
        net->heap[i] = net->heap[(i - 1) / 2];
    net->heap[i] = due;
    return true;
}

static struct wire_packet *heap_pop(struct wire_net *net) {
    struct wire_packet *first = net->heap[0].packet;
    struct wire_due last = net->heap[--net->heap_len];
    uint32_t i = 0;
    for (uint32_t child; (child = 2 * i + 1) < net->heap_len; i = child) {
        if (child + 1 < net->heap_len && earlier(&net->heap[child + 1], &net->heap[child]))
            child++;
        if (!earlier(&net->heap[child], &last))
            break;
        net->heap[i] = net->heap[child];
    }
    net->heap[i] = last;
    return first;
}

/* ---- steps ---- */

static void step(struct wire_net *net, enum wire_fate fate, const struct wire_packet *packet,
                 const uint8_t *data, uint32_t len, uint64_t due_ns) {
    net->links[packet->link].counts[fate]++;
    if (net->tap) {
        struct wire_step s = {
            net->now_ns,       due_ns,          fate, packet->link, len, packet->tx.ecn, data,
            &packet->tx.local, &packet->tx.peer};
        net->tap(net->tap_ctx, &s);
    }
}

/* The same step for every datagram of a train. */
static void step_train(struct wire_net *net, enum wire_fate fate, const struct wire_packet *packet,
                       uint64_t due_ns) {
    const struct io_tx *tx = &packet->tx;
    if (!net->tap) {
        net->links[packet->link].counts[fate] += (tx->len + tx->segment - 1) / tx->segment;
        return;
    }
    for (uint32_t at = 0; at < tx->len; at += tx->segment) {
        uint32_t len = tx->len - at < tx->segment ? tx->len - at : tx->segment;
        step(net, fate, packet, tx->data + at, len, due_ns);
    }
}

static void give(struct wire_net *net, struct wire_packet *packet) {
    if (packet->counted && net->endpoints[packet->link])
        net->endpoints[packet->link]->tx_used--;
    wire_pool_give(&net->pool, packet);
}

/* ---- routing ---- */

static void make_ready(struct wire_io *to, struct wire_packet *packet) {
    packet->next = NULL;
    *to->ready_end = packet;
    to->ready_end = &packet->next;
    to->net->ready_packets++;
}

/* A copy of `len` bytes of the packet as a packet of its own; NULL when memory is short. */
static struct wire_packet *copy_part(struct wire_net *net, const struct wire_packet *from, uint32_t at,
                                     uint32_t len) {
    struct wire_packet *copy = wire_pool_take(&net->pool, len);
    if (!copy)
        return NULL;
    uint8_t *data = copy->tx.data;
    copy->tx = from->tx;
    copy->tx.data = data;
    copy->tx.len = len;
    if (len < copy->tx.segment)
        copy->tx.segment = (uint16_t)len;
    copy->link = from->link;
    memcpy(data, from->tx.data + at, len);
    return copy;
}

/* A packet has arrived where its destination address leads. */
static void deliver(struct wire_net *net, struct wire_packet *packet) {
    const struct wire_mapping *m = wire_nat_in(&net->nat, net->now_ns, &packet->tx.peer);
    struct wire_io *to = m ? net->endpoints[m->endpoint] : NULL;
    if (!to) {
        step_train(net, WIRE_UNROUTABLE, packet, 0);
        give(net, packet);
        return;
    }
    step_train(net, WIRE_DELIVERED, packet, net->now_ns);
    packet->tx.peer = m->inside;
    if (!to->no_gro || packet->tx.len == packet->tx.segment) {
        make_ready(to, packet);
        return;
    }
    for (uint32_t at = 0; at < packet->tx.len; at += packet->tx.segment) {
        uint32_t left = packet->tx.len - at;
        struct wire_packet *one =
            copy_part(net, packet, at, left < packet->tx.segment ? left : packet->tx.segment);
        if (one)
            make_ready(to, one);
        else
            to->stats.rx_dropped_queue++;
    }
    give(net, packet);
}

static void pump(struct wire_net *net) {
    while (net->heap_len && net->heap[0].due_ns <= net->now_ns)
        deliver(net, heap_pop(net));
}

static void send_off(struct wire_net *net, struct wire_packet *packet, uint64_t due_ns) {
    if (net->moderation_ns && due_ns % net->moderation_ns)
        due_ns += net->moderation_ns - due_ns % net->moderation_ns;
    packet->due_ns = due_ns;
    if (!heap_push(net, packet)) {
        step_train(net, WIRE_LOST, packet, 0);
        give(net, packet);
    }
}

/* ---- a link ---- */

/* Bytes that still wait in the bottleneck's queue or are being sent. */
static uint64_t backlog_bytes(const struct wire_net *net, const struct wire_link *link) {
    if (!link->set.rate_bps || link->busy_until_ns <= net->now_ns)
        return 0;
    __extension__ typedef unsigned __int128 wide; /* ns x bit/s passes 2^64 after 1.8 s at 10 Gbit/s. */
    return (uint64_t)((wide)(link->busy_until_ns - net->now_ns) * link->set.rate_bps / 8000000000u);
}

/* Take `bytes` through the bottleneck; returns when the last of them has left it. */
static uint64_t serialise(const struct wire_net *net, struct wire_link *link, uint32_t bytes) {
    uint64_t rate = link->set.rate_bps;
    if (!rate)
        return net->now_ns;
    if (link->busy_until_ns < net->now_ns) {
        link->busy_until_ns = net->now_ns;
        link->busy_rest = 0;
    }
    uint64_t work = (uint64_t)bytes * 8000000000u + link->busy_rest;
    link->busy_until_ns += work / rate;
    link->busy_rest = work % rate;
    return link->busy_until_ns;
}

static uint64_t path_delay(struct wire_net *net, const struct wire_link *link) {
    return link->set.delay_ns + (link->set.jitter_ns ? prng_below(&net->prng, link->set.jitter_ns + 1) : 0);
}

static void corrupt(struct wire_net *net, struct wire_packet *packet) {
    for (uint64_t flips = prng_range(&net->prng, 1, 3); flips; flips--) {
        uint64_t bit = prng_below(&net->prng, (uint64_t)packet->tx.len * 8);
        packet->tx.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

/* One datagram of a train through an impaired link. */
static void send_one(struct wire_net *net, const struct wire_packet *train, uint32_t at, uint32_t len) {
    struct wire_link *link = &net->links[train->link];
    const uint8_t *data = train->tx.data + at;
    uint32_t size = len + WIRE_OVERHEAD_BYTES;
    step(net, WIRE_SENT, train, data, len, 0);
    if (size > link->mtu) {
        step(net, WIRE_TOO_LARGE, train, data, len, 0);
        return;
    }
    uint64_t backlog = backlog_bytes(net, link);
    if (link->set.queue_bytes && backlog && backlog + size > link->set.queue_bytes) {
        step(net, WIRE_QUEUE_DROP, train, data, len, 0);
        return;
    }
    uint64_t left_ns = serialise(net, link, size);
    if (prng_chance(&net->prng, link->set.loss_ppm)) {
        step(net, WIRE_LOST, train, data, len, 0);
        return;
    }
    struct wire_packet *packet = copy_part(net, train, at, len);
    if (!packet) {
        step(net, WIRE_LOST, train, data, len, 0);
        return;
    }
    /* Only ECN-capable packets are marked: ECT(1) is 1, ECT(0) is 2, CE is 3. */
    if (link->set.ce_above_bytes && backlog > link->set.ce_above_bytes && packet->tx.ecn) {
        packet->tx.ecn = 3;
        step(net, WIRE_CE_MARKED, packet, data, len, 0);
    }
    uint64_t due = left_ns + path_delay(net, link);
    if (due < link->last_due_ns)
        due = link->last_due_ns;
    if (prng_chance(&net->prng, link->set.duplicate_ppm)) {
        struct wire_packet *twin = copy_part(net, train, at, len);
        if (twin) {
            uint64_t twin_due = due + prng_below(&net->prng, link->set.reorder_ns + link->set.jitter_ns + 1);
            twin->tx.ecn = packet->tx.ecn;
            step(net, WIRE_DUPLICATED, twin, data, len, twin_due);
            send_off(net, twin, twin_due);
        }
    }
    if (prng_chance(&net->prng, link->set.corrupt_ppm)) {
        corrupt(net, packet);
        step(net, WIRE_CORRUPTED, packet, packet->tx.data, len, 0);
    }
    if (prng_chance(&net->prng, link->set.reorder_ppm)) {
        due += prng_range(&net->prng, 1, link->set.reorder_ns ? link->set.reorder_ns : WIRE_DEFAULT_REORDER);
        step(net, WIRE_REORDERED, packet, data, len, due);
    } else {
        link->last_due_ns = due;
    }
    send_off(net, packet, due);
}

static void send_perfect(struct wire_net *net, struct wire_packet *packet) {
    struct wire_link *link = &net->links[packet->link];
    uint64_t due = net->now_ns + link->set.delay_ns;
    if (due < link->last_due_ns)
        due = link->last_due_ns;
    link->last_due_ns = due;
    step_train(net, WIRE_SENT, packet, due);
    if (due > net->now_ns && packet->tx.len < WIRE_COPY_BELOW_BYTES) {
        struct wire_packet *copy = copy_part(net, packet, 0, packet->tx.len);
        if (copy) {
            give(net, packet);
            packet = copy;
        }
    }
    send_off(net, packet, due);
}

/* ---- io_ops ---- */

static struct wire_io *of(struct io *io) {
    return (struct wire_io *)io;
}

static const uint8_t unspecified_ip[16]; /* :: */

static struct io *wire_open(const struct io_config *config, struct io_text *why) {
    struct wire_net *net = config->backend;
    if (!net || net->endpoint_count == WIRE_MAX_ENDPOINTS) {
        snprintf(why->text, sizeof why->text, "wire: %s",
                 net ? "a net joins at most 64 endpoints" : "io_config.backend must be a struct wire_net *");
        return NULL;
    }
    struct wire_io *w = calloc(1, sizeof *w);
    if (!w) {
        snprintf(why->text, sizeof why->text, "wire: out of memory");
        return NULL;
    }
    w->io.ops = &io_wire_ops;
    w->net = net;
    w->index = net->endpoint_count;
    w->tx_limit = config->tx_buffers ? config->tx_buffers : WIRE_DEFAULT_TX;
    w->no_gso = config->no_gso;
    w->no_gro = config->no_gro;
    w->local = config->bind;
    w->local.pad = 0;
    if (memcmp(w->local.ip, unspecified_ip, 16) == 0)
        wire_nat_make_ip(w->local.ip, 0, (uint16_t)(w->index + 1));
    if (!w->local.port)
        w->local.port = wire_nat_port(&net->nat);
    w->ready_end = &w->ready;
    if (wire_nat_in(&net->nat, net->now_ns, &w->local) ||
        !wire_nat_out(&net->nat, net->now_ns, w->index, &w->local)) {
        snprintf(why->text, sizeof why->text, "wire: another endpoint has port %u of this address",
                 (unsigned)w->local.port);
        free(w);
        return NULL;
    }
    net->endpoints[net->endpoint_count++] = w;
    return &w->io;
}

static void wire_close(struct io *io) {
    struct wire_io *w = of(io);
    struct wire_net *net = w->net;
    while (w->ready) {
        struct wire_packet *packet = w->ready;
        w->ready = packet->next;
        net->ready_packets--;
        give(net, packet);
    }
    wire_nat_forget(&net->nat, w->index);
    net->endpoints[w->index] = NULL;
    free(w);
}

/* How many of the packets at the head of the queue make one train, and their bytes: as GRO joins, one flow,
 * one size, only the last shorter. */
static uint32_t train_at(const struct wire_packet *head, uint32_t *bytes) {
    uint32_t n = 1;
    *bytes = head->tx.len;
    if (head->tx.len != head->tx.segment)
        return 1; /* Already a train. */
    for (const struct wire_packet *p = head->next; p && n < IO_TRAIN_PACKETS; p = p->next, n++) {
        if (p->tx.len > head->tx.len || p->tx.len != p->tx.segment || p->tx.ecn != head->tx.ecn ||
            *bytes + p->tx.len > IO_TRAIN_BYTES || !quic_addr_equal(&p->tx.peer, &head->tx.peer) ||
            !quic_addr_equal(&p->tx.local, &head->tx.local))
            return n;
        *bytes += p->tx.len;
        if (p->tx.len < head->tx.len)
            return n + 1;
    }
    return n;
}

/* Take the `count` packets at the head of the queue into one buffer, `stride` apart. */
static void gather(struct wire_io *w, struct wire_packet *train, uint32_t count, uint32_t stride) {
    uint8_t *data = train->tx.data;
    const struct wire_packet *head = w->ready;
    uint16_t segment = head->tx.segment;
    uint32_t bytes = 0;
    train->tx = head->tx;
    train->tx.data = data;
    train->link = head->link;
    for (uint32_t i = 0; i < count; i++) {
        struct wire_packet *p = w->ready;
        w->ready = p->next;
        for (uint32_t at = 0; at < p->tx.len; at += segment, data += stride)
            memcpy(data, p->tx.data + at, p->tx.len - at < segment ? p->tx.len - at : segment);
        bytes += p->tx.len;
        give(w->net, p);
    }
    train->tx.len = bytes;
}

static int wire_rx(struct io *io, struct io_rx *out, int max) {
    struct wire_io *w = of(io);
    struct wire_net *net = w->net;
    pump(net);
    int n = 0;
    for (; n < max && w->ready; n++) {
        struct wire_packet *packet = w->ready;
        uint32_t bytes = packet->tx.len, stride = 0;
        uint32_t count = w->no_gro ? 1 : train_at(packet, &bytes);
        uint32_t datagrams = (bytes + packet->tx.segment - 1) / packet->tx.segment;
        bool frames = datagrams > 1 && packet->tx.segment <= w->frame_bytes &&
                      datagrams * w->frame_bytes <= IO_TRAIN_BYTES;
        struct wire_packet *train =
            count > 1 || frames ? wire_pool_take(&net->pool, frames ? IO_TRAIN_BYTES : bytes) : NULL;
        net->ready_packets -= train ? count : 1;
        if (train) {
            stride = frames ? w->frame_bytes : 0;
            gather(w, train, count, frames ? stride : packet->tx.segment);
            packet = train;
        } else {
            w->ready = packet->next;
        }
        if (!w->ready)
            w->ready_end = &w->ready;
        const struct io_tx *tx = &packet->tx;
        out[n] = (struct io_rx){.data = tx->data,
                                .len = tx->len,
                                .stride = stride,
                                .handle = packet->index,
                                .segment = tx->segment,
                                .ecn = tx->ecn,
                                .peer = tx->local,
                                .local = tx->peer};
        if (!stride)
            wire_pool_guard(packet);
        w->stats.rx_trains++;
        w->stats.rx_packets += (tx->len + tx->segment - 1) / tx->segment;
        w->stats.rx_bytes += tx->len;
    }
    return n;
}

static void wire_rx_release(struct io *io, const struct io_rx *v, int n) {
    struct wire_net *net = of(io)->net;
    for (int i = 0; i < n; i++)
        give(net, wire_pool_at(&net->pool, v[i].handle));
}

static struct io_tx *wire_tx_acquire(struct io *io) {
    struct wire_io *w = of(io);
    struct wire_packet *packet =
        w->tx_used < w->tx_limit ? wire_pool_take(&w->net->pool, IO_TRAIN_BYTES) : NULL;
    if (!packet) {
        w->stats.tx_full++;
        w->refused = true;
        return NULL;
    }
    w->refused = false;
    w->tx_used++;
    packet->counted = true;
    packet->link = w->index;
    packet->tx.cap = w->frame_bytes ? w->frame_bytes : IO_TRAIN_BYTES;
    packet->tx.stride = w->frame_bytes;
    packet->tx.max_segments = w->no_gso        ? 1
                              : w->frame_bytes ? IO_TRAIN_BYTES / w->frame_bytes
                                               : IO_TRAIN_PACKETS;
    packet->tx.handle = packet->index;
    packet->tx.len = 0;
    packet->tx.segment = 0;
    packet->tx.ecn = 0;
    packet->tx.ifindex = 0;
    return &packet->tx;
}

static void wire_tx_cancel(struct io *io, struct io_tx *tx) {
    give(of(io)->net, (struct wire_packet *)tx);
}

static void wire_tx_commit(struct io *io, struct io_tx *tx) {
    struct wire_io *w = of(io);
    struct wire_net *net = w->net;
    struct wire_packet *packet = (struct wire_packet *)tx;
    uint32_t datagrams = tx->segment ? (tx->len + tx->segment - 1) / tx->segment : 0;
    struct quic_addr inside = tx->local;
    if (memcmp(inside.ip, unspecified_ip, 16) == 0)
        memcpy(inside.ip, w->local.ip, 16);
    if (!inside.port)
        inside.port = w->local.port;
    inside.scope_id = w->local.scope_id;
    const struct wire_mapping *m = wire_nat_out(&net->nat, net->now_ns, w->index, &inside);
    /* What a kernel would refuse: an empty or oversized train, one built for another buffer, v4-mapped
     * addresses. */
    if (!datagrams || datagrams > tx->max_segments || (tx->stride ? tx->segment : tx->len) > tx->cap || !m ||
        quic_addr_is_v4_mapped(&tx->peer) || quic_addr_is_v4_mapped(&inside)) {
        w->stats.tx_errors++;
        give(net, packet);
        return;
    }
    w->stats.tx_trains++;
    w->stats.tx_packets += datagrams;
    w->stats.tx_bytes += tx->len;
    for (uint32_t i = 1; tx->stride && i < datagrams; i++) /* On the way there are no gaps. */
        memmove(tx->data + i * tx->segment, tx->data + (size_t)i * tx->stride,
                i + 1 < datagrams ? tx->segment : tx->len - i * tx->segment);
    tx->stride = 0;
    tx->local = m->outside;
    const struct wire_link *link = &net->links[w->index];
    if (link->perfect && (uint32_t)tx->segment + WIRE_OVERHEAD_BYTES <= link->mtu) {
        send_perfect(net, packet);
        return;
    }
    for (uint32_t at = 0; at < tx->len; at += tx->segment)
        send_one(net, packet, at, tx->len - at < tx->segment ? tx->len - at : tx->segment);
    give(net, packet);
}

/* Committed trains are under way already. */
static void wire_flush(struct io *io) {
    (void)io;
}

/* Virtual time is the driver's: nothing here to sleep on. */
static void wire_wait(struct io *io, int64_t timeout_ns) {
    (void)timeout_ns;
    of(io)->stats.waits++;
}

static void wire_wake(struct io *io) {
    of(io)->stats.wakeups++;
}

static void wire_local(const struct io *io, struct quic_addr *out) {
    *out = ((const struct wire_io *)io)->local;
}

static void wire_stats(const struct io *io, struct io_stats *out) {
    *out = ((const struct wire_io *)io)->stats;
}

static void wire_describe(const struct io *io, struct io_text *out) {
    const struct wire_io *w = (const struct wire_io *)io;
    snprintf(out->text, sizeof out->text, "wire: in memory, virtual clock; endpoint %u; trains out %s, in %s",
             (unsigned)w->index, w->no_gso ? "off" : "on", w->no_gro ? "off" : "on");
}

const struct io_ops io_wire_ops = {
    .name = "wire",
    .open = wire_open,
    .close = wire_close,
    .rx = wire_rx,
    .rx_release = wire_rx_release,
    .tx_acquire = wire_tx_acquire,
    .tx_commit = wire_tx_commit,
    .tx_cancel = wire_tx_cancel,
    .flush = wire_flush,
    .wait = wire_wait,
    .wake = wire_wake,
    .local = wire_local,
    .stats = wire_stats,
    .describe = wire_describe,
};

void wire_net_frames(struct wire_net *net, uint32_t endpoint, uint32_t bytes) {
    struct wire_io *w = endpoint < WIRE_MAX_ENDPOINTS ? net->endpoints[endpoint] : NULL;
    if (w)
        w->frame_bytes = bytes <= IO_TRAIN_BYTES ? bytes : 0;
}

/* ---- the net ---- */

struct wire_net *wire_net_create(uint64_t seed) {
    struct wire_net *net = calloc(1, sizeof *net);
    if (!net)
        return NULL;
    prng_seed(&net->prng, seed);
    for (uint32_t i = 0; i < WIRE_MAX_ENDPOINTS; i++)
        wire_net_impair(net, i, &(struct stoq_impairment){0});
    return net;
}

void wire_net_destroy(struct wire_net *net) {
    if (!net)
        return;
    wire_pool_destroy(&net->pool);
    free(net->heap);
    free(net);
}

void wire_net_advance(struct wire_net *net, uint64_t now_ns) {
    if (now_ns > net->now_ns)
        net->now_ns = now_ns;
}

uint64_t wire_net_now(const struct wire_net *net) {
    return net->now_ns;
}

uint64_t wire_net_next(const struct wire_net *net) {
    if (net->ready_packets)
        return net->now_ns;
    if (!net->heap_len)
        return QUIC_NEVER;
    return net->heap[0].due_ns > net->now_ns ? net->heap[0].due_ns : net->now_ns;
}

bool wire_net_ready(struct wire_net *net, uint32_t endpoint) {
    pump(net);
    const struct wire_io *w = endpoint < net->endpoint_count ? net->endpoints[endpoint] : NULL;
    return w && (w->ready || (w->refused && w->tx_used < w->tx_limit));
}

void wire_net_impair(struct wire_net *net, uint32_t link, const struct stoq_impairment *impairment) {
    if (link >= WIRE_MAX_ENDPOINTS)
        return;
    struct wire_link *l = &net->links[link];
    const struct stoq_impairment *s = impairment;
    l->set = *s;
    l->mtu = s->mtu ? s->mtu : 65535u;
    l->perfect =
        !(s->loss_ppm || s->duplicate_ppm || s->corrupt_ppm || s->reorder_ppm || s->jitter_ns || s->rate_bps);
    l->busy_rest = 0; /* In units of the old rate. */
}

void wire_net_moderate(struct wire_net *net, uint64_t ns) {
    net->moderation_ns = ns;
}

void wire_net_rebind(struct wire_net *net, uint32_t endpoint, int what, uint64_t forget_ns) {
    wire_nat_rebind(&net->nat, net->now_ns, endpoint, what, net->now_ns + forget_ns);
}

void wire_net_counts(const struct wire_net *net, uint32_t link, uint64_t counts[WIRE_FATE_COUNT]) {
    memcpy(counts, net->links[link].counts, sizeof net->links[link].counts);
}

void wire_net_set_tap(struct wire_net *net, wire_tap *tap, void *ctx) {
    net->tap = tap;
    net->tap_ctx = ctx;
}

uint32_t wire_endpoint_index(const struct io *io) {
    return ((const struct wire_io *)io)->index;
}

uint64_t wire_net_buffers_used(const struct wire_net *net) {
    return net->pool.used;
}
