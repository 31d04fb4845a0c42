/* The control plane's end of one worker's shared area: the other halves of the rings, and the send pool's
 * free lists.
 *
 *      control_command ──▶ command ring        control_events ◀── event ring
 *      control_chunk_alloc ◀── free lists ◀── return ring
 *
 * Private to one control thread; it needs nothing of the worker but the shared area and somebody to kick it.
 */
#ifndef STOQ_WORKER_CONTROL_H
#define STOQ_WORKER_CONTROL_H

#include "chunks.h"
#include "ring.h"
#include "shared.h"

struct control {
    struct shared *shared;
    struct ring_producer commands;
    struct ring_consumer events, returns;
    struct chunk_pool send;
    /* A byte a chunk: 1 while it is not free. A number given back twice is ignored, not listed twice. */
    uint8_t *out;
};

/* Attach to a shared area with all send chunks free. False: errno. */
bool control_attach(struct control *c, struct shared *shared);
void control_detach(struct control *c);

bool control_command(struct control *c, const struct stoq_command *command);
/* Up to `max` events. *blocked: the worker waits for room in the ring and is to be kicked. */
int control_events(struct control *c, struct stoq_event *out, int max, bool *blocked);
uint32_t control_chunk_alloc(struct control *c, uint32_t bytes);
void control_chunk_free(struct control *c, uint32_t chunk);
/* Take back what the worker returned. */
void control_take_returns(struct control *c);
/* Free bytes of both classes. */
uint64_t control_free_bytes(struct control *c);

#endif
