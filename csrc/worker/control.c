/* The control plane's end of a worker; control.h draws it. */
#include "control.h"

#include <stdlib.h>

bool control_attach(struct control *c, struct shared *s) {
    *c = (struct control){.shared = s};
    c->out = calloc(chunk_count(&s->send), 1);
    if (!c->out || !chunk_pool_init(&c->send, &s->send)) {
        free(c->out);
        return false;
    }
    c->commands = ring_attach_producer(shared_at(s, s->commands_at), s->command_slots);
    c->events = ring_attach_consumer(shared_at(s, s->events_at), s->event_slots);
    c->returns = ring_attach_consumer(shared_at(s, s->returns_at), s->return_slots);
    return true;
}

void control_detach(struct control *c) {
    chunk_pool_destroy(&c->send);
    free(c->out);
    *c = (struct control){0};
}

bool control_command(struct control *c, const struct stoq_command *command) {
    struct stoq_command *slot = ring_reserve(&c->commands);
    if (!slot)
        return false;
    *slot = *command;
    ring_publish(&c->commands);
    return true;
}

int control_events(struct control *c, struct stoq_event *out, int max, bool *blocked) {
    int n = 0;
    for (const void *slot; n < max && (slot = ring_peek(&c->events)) != NULL; n++) {
        memcpy(&out[n], slot, sizeof *out);
        ring_pop(&c->events);
    }
    *blocked = false;
    if (n > 0) {
        ring_release(&c->events);
        /* Orders the room we made before our look at "blocked"; pairs with the fence in worker_events, which
         * orders "blocked" before the worker's second look for room. One of us sees the other. */
        atomic_thread_fence(memory_order_seq_cst);
        *blocked = atomic_load_explicit(&c->shared->events_blocked, memory_order_relaxed) != 0;
    }
    return n;
}

void control_take_returns(struct control *c) {
    const struct chunk_return *slot;
    while ((slot = ring_peek(&c->returns)) != NULL) {
        uint32_t n = slot->count < RETURN_SLOT_CHUNKS ? slot->count : RETURN_SLOT_CHUNKS;
        for (uint32_t i = 0; i < n; i++)
            control_chunk_free(c, slot->chunk[i]);
        ring_pop(&c->returns);
    }
    ring_release(&c->returns);
}

uint32_t control_chunk_alloc(struct control *c, uint32_t bytes) {
    control_take_returns(c); /* First: what just came back is still in some cache. */
    uint32_t chunk = chunk_pool_take(&c->send, bytes, 0);
    if (chunk != STOQ_NO_CHUNK)
        c->out[chunk] = 1;
    return chunk;
}

void control_chunk_free(struct control *c, uint32_t chunk) {
    if (chunk < chunk_count(&c->send.layout) && c->out[chunk]) {
        c->out[chunk] = 0;
        chunk_pool_give(&c->send, chunk);
    }
}

uint64_t control_free_bytes(struct control *c) {
    control_take_returns(c);
    return (uint64_t)chunk_free_count(&c->send.small) * STOQ_SMALL_CHUNK_BYTES +
           (uint64_t)chunk_free_count(&c->send.large) * STOQ_LARGE_CHUNK_BYTES;
}
