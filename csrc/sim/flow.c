/* Streams of a simulated connection: both ends' applications in one place, so that each can check the other.
 * Every byte is a function of the connection, the stream, the direction and the offset. RFC 9000 sections 2
 * and 3 name the states. */
#include <stdlib.h>
#include <string.h>

#include "../io/prng.h"
#include "run.h"

/* Send chunks left for what must not fail: handshakes, control commands. */
#define HEADROOM_BYTES (256u << 10)
/* When there is no free send chunk, look again after 1 ms. */
#define RETRY_NS 1000000u

/* Eight bytes of content, those at 8 * block. */
static uint64_t content_word(uint64_t key, uint64_t block) {
    return prng_mix(key + block * 0xd1342543de82ef95u);
}

static uint64_t content_key(const struct connection *c, const struct stream *t, unsigned direction) {
    return prng_mix(c->key ^ prng_mix(t->plan->id << 1 | direction));
}

static void content_fill(uint64_t key, uint64_t offset, uint8_t *out, uint32_t len) {
    while (len) {
        uint64_t word = content_word(key, offset / 8);
        uint32_t skip = (uint32_t)(offset % 8), take = 8 - skip < len ? 8 - skip : len;
        if (take == 8) /* A constant length is one store. */
            memcpy(out, &word, 8);
        else
            memcpy(out, (const uint8_t *)&word + skip, take);
        out += take;
        offset += take;
        len -= take;
    }
}

/* The offset of a first piece of at most eight bytes that is not what was sent; `offset + len` when all is
 * well. */
static uint64_t content_check(uint64_t key, uint64_t offset, const uint8_t *data, uint32_t len) {
    while (len) {
        uint64_t word = content_word(key, offset / 8);
        uint32_t skip = (uint32_t)(offset % 8), take = 8 - skip < len ? 8 - skip : len;
        if (take == 8 ? memcmp(data, &word, 8) != 0 : memcmp(data, (const uint8_t *)&word + skip, take) != 0)
            return offset;
        data += take;
        offset += take;
        len -= take;
    }
    return offset;
}

static uint32_t sender_of(const struct stream *t, unsigned direction) {
    return t->plan->initiator ^ direction;
}

void flow_setup(struct connection *c) {
    c->key = prng_mix(c->plan->seed);
    for (uint32_t i = 0; i < c->plan->stream_count; i++) {
        struct stream *t = &c->streams[i];
        memset(t, 0, sizeof *t);
        t->plan = &c->plan->streams[i];
        t->flows[0].plan = &t->plan->flows[0];
        t->flows[1].plan = &t->plan->flows[1];
    }
}

void flow_teardown(struct connection *c) {
    for (uint32_t i = 0; i < c->plan->stream_count; i++)
        for (unsigned d = 0; d < 2; d++)
            free(c->streams[i].flows[d].held);
}

/* ---- sending ---- */

static struct stoq_command stream_command(const struct end *end, const struct stream *t, uint8_t type) {
    return (struct stoq_command){
        .type = type, .chunk = STOQ_NO_CHUNK, .conn = end->handle, .stream = t->plan->id};
}

/* One piece, FIN with the last unless it comes alone. False: no chunk is free. */
static bool send_piece(struct run *run, const struct connection *c, struct stream *t, unsigned direction) {
    uint32_t side = sender_of(t, direction);
    struct flow *f = &t->flows[direction];
    const struct plan_flow *plan = f->plan;
    struct stoq_command command = stream_command(c->ends[side], t, STOQ_COMMAND_STREAM_SEND);
    uint32_t limit = plan->reset_at < plan->bytes ? plan->reset_at : plan->bytes;
    uint32_t len = limit - (uint32_t)f->sent < plan->chunk ? limit - (uint32_t)f->sent : plan->chunk;
    if (len) {
        uint32_t cap;
        if (stoq_send_free_bytes(run->dp, side) < HEADROOM_BYTES)
            return false;
        command.chunk = stoq_chunk_alloc(run->dp, side, len);
        if (command.chunk == STOQ_NO_CHUNK)
            return false;
        uint8_t *data = stoq_send_chunk(run->dp, side, command.chunk, &cap);
        if (len > cap)
            len = cap;
        /* Not always at the chunk's beginning: a writer may put a header before. */
        command.chunk_offset = cap - len < 100 ? cap - len : (uint32_t)(f->sent % 100);
        content_fill(content_key(c, t, direction), f->sent, data + command.chunk_offset, len);
        command.len = len;
    }
    f->sent += len;
    if (f->sent == plan->bytes && plan->reset_at == SCENARIO_NEVER && (!len || !plan->fin_alone)) {
        command.flags = STOQ_FIN;
        f->fin_sent = true;
    }
    f->next_send_ns = run_now(run) + plan->pace_ns;
    if (!f->open && direction == 0)
        c->ends[side]->opened[t->plan->uni]++;
    f->open = true;
    run_command(run, side, &command);
    return true;
}

/* May the sender begin? Streams are opened, by their first piece, in the order of their numbers, as many as
 * the peer allows. */
static bool may_open(struct run *run, struct connection *c, struct stream *t, unsigned direction) {
    struct end *end = c->ends[sender_of(t, direction)];
    if (!end || end->closing || end->closed)
        return false;
    bool early = end->side == SIM_CLIENT && end->early && direction == 0 && !t->plan->start_ns;
    if (!end->connected && !early)
        return false;
    if (direction == 1)
        return t->known && (!t->plan->answer_late || t->flows[0].fin_received || t->flows[0].reset_received ||
                            t->flows[0].stop_sent);
    uint64_t number = t->plan->id >> 2, start = end->connected_ns + t->plan->start_ns;
    if (number != end->opened[t->plan->uni] || number >= end->available[t->plan->uni])
        return false;
    if (end->connected && run_now(run) < start) {
        run_wake_at(c, start);
        return false;
    }
    return true;
}

static bool sender_done(const struct flow *f) {
    return f->fin_acked || f->reset_sent || f->stop_seen;
}

static void act_sender(struct run *run, struct connection *c, struct stream *t, unsigned direction) {
    struct flow *f = &t->flows[direction];
    struct end *end = c->ends[sender_of(t, direction)];
    if (!end || end->closing || end->closed || sender_done(f))
        return;
    if (!f->open && !may_open(run, c, t, direction))
        return;
    /* At least one command even for nothing at all: it opens the stream. */
    bool first = f->sent == 0 && !f->fin_sent && f->plan->reset_at == 0;
    while (!f->fin_sent && (f->sent < f->plan->reset_at || first) && f->sent - f->acked < f->plan->window) {
        if (run_now(run) < f->next_send_ns) {
            run_wake_at(c, f->next_send_ns);
            return;
        }
        if (!send_piece(run, c, t, direction)) {
            run_wake_at(c, run_now(run) + RETRY_NS);
            return;
        }
        first = false;
        if (f->plan->reset_at != SCENARIO_NEVER && f->sent >= f->plan->bytes)
            break;
    }
    uint32_t limit = f->plan->reset_at < f->plan->bytes ? f->plan->reset_at : f->plan->bytes;
    if (f->plan->reset_at != SCENARIO_NEVER && f->sent >= limit) {
        struct stoq_command command = stream_command(end, t, STOQ_COMMAND_STREAM_RESET);
        command.code = t->plan->id + 1000;
        f->reset_sent = true;
        run->totals->resets++;
        run_command(run, end->side, &command);
    }
}

/* ---- receiving ---- */

static bool receiver_done(const struct flow *f) {
    return (f->fin_received || f->reset_received || f->stop_sent) && f->held_first == f->held_count;
}

static void consume(struct run *run, const struct end *end, const struct stream *t, uint32_t chunk,
                    uint32_t len) {
    struct stoq_command command = stream_command(end, t, STOQ_COMMAND_STREAM_CONSUMED);
    command.chunk = chunk;
    command.value = len;
    run_command(run, end->side, &command);
}

static void act_receiver(struct run *run, struct connection *c, struct stream *t, unsigned direction) {
    struct flow *f = &t->flows[direction];
    struct end *end = c->ends[!sender_of(t, direction)];
    if (!end || end->closed || end->closing)
        return;
    for (; f->held_first < f->held_count; f->held_first++) {
        struct held *h = &f->held[f->held_first];
        if (h->due_ns > run_now(run)) {
            run_wake_at(c, h->due_ns);
            break;
        }
        consume(run, end, t, h->chunk, h->len);
    }
    bool exists = direction == 1 ? t->flows[0].open : t->known;
    if (exists && !f->stop_sent && !f->fin_received && !f->reset_received &&
        f->received >= f->plan->stop_at) {
        struct stoq_command command = stream_command(end, t, STOQ_COMMAND_STREAM_STOP);
        command.code = t->plan->id + 2000;
        f->stop_sent = true;
        run->totals->stops++;
        run_command(run, end->side, &command);
    }
}

static bool hold(struct flow *f, uint64_t due_ns, uint32_t chunk, uint32_t len) {
    if (f->held_count == f->held_cap) {
        uint32_t cap = f->held_cap ? f->held_cap * 2 : 64;
        struct held *held = realloc(f->held, cap * sizeof *held);
        if (!held)
            return false;
        f->held = held;
        f->held_cap = cap;
    }
    f->held[f->held_count++] = (struct held){due_ns, chunk, len};
    return true;
}

static bool on_data(struct run *run, struct end *end, struct stream *t, unsigned direction,
                    const struct stoq_event *e) {
    struct connection *c = end->connection;
    struct flow *f = &t->flows[direction];
    unsigned long long id = t->plan->id;
    uint64_t from = f->received;
    bool fin = e->flags & STOQ_FIN;
    if (f->fin_received)
        return run_fail(run, "stream %llu: data after FIN", id);
    if (f->reset_received)
        return run_fail(run, "stream %llu: data after RESET", id);
    if (f->received + e->len > f->sent)
        return run_fail(run, "stream %llu: %llu bytes arrived, only %llu were sent", id,
                        (unsigned long long)(f->received + e->len), (unsigned long long)f->sent);
    if (e->len && e->chunk == STOQ_NO_CHUNK)
        return run_fail(run, "stream %llu: data without a chunk", id);
    if (e->len) {
        const uint8_t *data = stoq_receive_chunk(run->dp, end->side, e->chunk) + e->chunk_offset;
        uint64_t good = content_check(content_key(c, t, direction), from, data, e->len);
        if (good != from + e->len)
            return run_fail(run, "stream %llu direction %u: wrong byte at %llu (piece %llu+%u)", id,
                            direction, (unsigned long long)good, (unsigned long long)from, e->len);
    }
    f->received += e->len;
    run->totals->bytes += e->len;
    if (fin) {
        f->fin_received = true;
        if (!f->fin_sent || f->received != f->plan->bytes)
            return run_fail(run, "stream %llu: FIN at %llu of %u", id, (unsigned long long)f->received,
                            f->plan->bytes);
    }
    if (!e->len && !fin && e->chunk == STOQ_NO_CHUNK)
        return true; /* A stream that was only opened. */
    if (f->plan->read_delay_ns && e->len && !f->stop_sent)
        return hold(f, run_now(run) + f->plan->read_delay_ns, e->chunk, e->len) ||
               run_fail(run, "out of memory");
    if (e->len || e->chunk != STOQ_NO_CHUNK)
        consume(run, end, t, e->chunk, e->len);
    return true;
}

static bool on_acked(struct run *run, struct stream *t, struct flow *f, const struct stoq_event *e) {
    unsigned long long id = t->plan->id, value = e->value;
    if (value < f->acked || value > f->sent)
        return run_fail(run, "stream %llu: %llu bytes acknowledged after %llu, %llu were sent", id, value,
                        (unsigned long long)f->acked, (unsigned long long)f->sent);
    f->acked = value;
    if (e->flags & STOQ_FIN) {
        if (!f->fin_sent || f->fin_acked || value != f->plan->bytes)
            return run_fail(run, "stream %llu: FIN acknowledged at %llu: not sent there, or twice", id,
                            value);
        f->fin_acked = true;
    }
    return true;
}

bool flow_event(struct run *run, struct end *end, const struct stoq_event *e) {
    struct connection *c = end->connection;
    struct stream *t = NULL;
    for (uint32_t i = 0; i < c->plan->stream_count && !t; i++)
        if (c->streams[i].plan->id == e->stream)
            t = &c->streams[i];
    if (!t)
        return run_fail(run, "event %u for stream %llu, which nobody opened", e->type,
                        (unsigned long long)e->stream);
    /* Data and resets are of what the peer sends; stops and acknowledgements of what we send. */
    bool incoming = e->type == STOQ_EVENT_STREAM_DATA || e->type == STOQ_EVENT_STREAM_RESET;
    unsigned direction = (t->plan->initiator == end->side) == incoming;
    struct flow *f = &t->flows[direction];
    if (direction == 1 && t->plan->uni)
        return run_fail(run, "event %u on unidirectional stream %llu at its wrong end", e->type,
                        (unsigned long long)e->stream);
    if (!t->flows[0].open)
        return run_fail(run, "event %u for stream %llu, not yet open", e->type,
                        (unsigned long long)e->stream);
    t->known |= end->side != t->plan->initiator;
    c->dirty = true;
    end->heard |= e->type != STOQ_EVENT_STREAM_ACKED || e->value > 0;
    switch (e->type) {
    case STOQ_EVENT_STREAM_DATA:
        return on_data(run, end, t, direction, e);
    case STOQ_EVENT_STREAM_ACKED:
        return on_acked(run, t, f, e);
    case STOQ_EVENT_STREAM_RESET:
        if (f->fin_received || f->reset_received)
            return run_fail(run, "stream %llu: RESET after its end", (unsigned long long)e->stream);
        f->reset_received = true;
        /* Our code, or, once the receiver has asked to stop, its own back (RFC 9000 section 3.5). */
        if (!(f->reset_sent && e->code == e->stream + 1000) && !(f->stop_sent && e->code == e->stream + 2000))
            return run_fail(run, "stream %llu: RESET with code %llu, which nobody sent",
                            (unsigned long long)e->stream, (unsigned long long)e->code);
        return true;
    default:
        if (!f->stop_sent || f->stop_seen || e->code != e->stream + 2000)
            return run_fail(run, "stream %llu: STOP with code %llu: not sent, or twice",
                            (unsigned long long)e->stream, (unsigned long long)e->code);
        f->stop_seen = true;
        return true;
    }
}

bool flow_act(struct run *run, struct connection *c) {
    bool done = true;
    for (uint32_t i = 0; i < c->plan->stream_count; i++) {
        struct stream *t = &c->streams[i];
        for (unsigned d = 0; d < 2 - (unsigned)t->plan->uni; d++) {
            act_sender(run, c, t, d);
            act_receiver(run, c, t, d);
            done &= sender_done(&t->flows[d]) && receiver_done(&t->flows[d]);
        }
    }
    return done;
}

void flow_release(struct run *run, struct end *end) {
    struct connection *c = end->connection;
    for (uint32_t i = 0; c && i < c->plan->stream_count; i++)
        for (unsigned d = 0; d < 2; d++) {
            struct stream *t = &c->streams[i];
            struct flow *f = &t->flows[d];
            if (sender_of(t, d) == end->side || end->ghost)
                continue;
            for (; f->held_first < f->held_count; f->held_first++) {
                const struct held *h = &f->held[f->held_first];
                /* Both ways of giving back must work on a connection that is gone. */
                if (h->chunk & 1)
                    consume(run, end, t, h->chunk, h->len);
                else
                    run_release(run, end->side, end->handle, h->chunk);
            }
        }
}
