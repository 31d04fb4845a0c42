/* The memory one worker shares with the control plane: a memfd, laid out once, offsets only.
 *
 *      ┌──────────────┬──────────────┬────────────┬─────────────┬────────────────────┬──────────────────┐
 *      │ struct shared│ command ring │ event ring │ return ring │ receive pool (data)│ send pool (data) │
 *      └──────────────┴──────────────┴────────────┴─────────────┴────────────────────┴──────────────────┘
 *
 *   who writes what:  struct shared: the worker, except `sleeping`, `events_armed` (both) and
 *                     `stop_requested` (control plane)
 *                     command ring slots, send pool data: the control plane
 *                     event ring, return ring, receive pool data: the worker
 *
 * A control plane that starts again finds everything by mapping the memfd and reading struct shared.
 *
 * Sleeping and waking. Three words keep wake-ups to those that are needed; each is one half of a "store mine,
 * fence, read yours" pair, so at least one of two sides that act at the same time sees the other:
 *
 *   sleeping        worker: sleeping = 1; fence; look at the rings once more; io->wait
 *                   others: publish a command; fence; if (sleeping) io->wake
 *   events_armed    control: events_armed = 1; fence; drain the rings; poll the eventfd
 *                   worker: publish events; fence; if (events_armed) { events_armed = 0; write the eventfd }
 *   events_blocked  worker: events_blocked = 1; fence; look for room in the event ring once more
 *                   control: take events; fence; if (events_blocked) kick
 */
#ifndef STOQ_WORKER_SHARED_H
#define STOQ_WORKER_SHARED_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "../stoq.h"
#include "../tables.h"
#include "chunks.h"
#include "ring.h"

#define SHARED_MAGIC 0x31514f5453ull /* "STOQ1" */
/* 256 KiB, within L2; a burst of some 16 turns' batches before the producer waits. */
#define SHARED_COMMAND_SLOTS 4096u
#define SHARED_EVENT_SLOTS   4096u /* Likewise; what does not fit stays in the engine under flow control. */
#define SHARED_IO_WORDS      (sizeof(struct stoq_io_stats) / sizeof(uint64_t))
#define SHARED_POOL_WORDS    (sizeof(struct stoq_pool_stats) / sizeof(uint64_t))
#define SHARED_QUEUE_WORDS   (sizeof(struct stoq_queue_stats) / sizeof(uint64_t))
#define SHARED_TRAIN_BUCKETS 7u    /* 1, 2, 3-4, 5-8, 9-16, 17-32, 33-64 datagrams. */
#define SHARED_TEXT_BYTES    1024u /* The backend's description, and the memory's. */
#define RETURN_SLOT_CHUNKS   15u   /* What fits one slot beside the count. */

/* A slot of the return ring: send chunks the worker is done with. Filled over a turn, so one cache line
 * carries up to 15. */
struct chunk_return {
    uint32_t count;
    uint32_t chunk[RETURN_SLOT_CHUNKS];
};

struct shared {
    /* Written by shared_create, constant from then on. */
    uint64_t magic, bytes;
    uint64_t commands_at, events_at, returns_at, receive_at, send_at; /* Offsets from this struct. */
    uint32_t command_slots, event_slots, return_slots;
    uint32_t worker;
    struct chunk_layout receive, send;
    char text[SHARED_TEXT_BYTES]; /* Written before the control plane learns of the worker. */

    alignas(64) _Atomic uint32_t sleeping;
    alignas(64) _Atomic uint32_t events_armed;
    alignas(64) _Atomic uint32_t events_blocked;
    _Atomic uint32_t
        stop_requested; /* By the control plane; a STOP command could wait behind a full event ring. */

    /* Written by the worker alone, one aligned word at a time; read by anybody without stopping it. Words of
     * one group may be of different moments. */
    alignas(64) uint64_t counters[STOQ_COUNTER_COUNT];
    uint64_t drops[STOQ_DROP_COUNT];
    uint64_t io[SHARED_IO_WORDS];
    uint64_t pools[SHARED_POOL_WORDS]; /* The fields of struct stoq_pool_stats that are the worker's. */
    uint64_t trains_sent[SHARED_TRAIN_BUCKETS], trains_received[SHARED_TRAIN_BUCKETS];
    uint64_t local[3];                  /* struct stoq_address */
    uint64_t queue[SHARED_QUEUE_WORDS]; /* All zero: the backend has no queue of its own. */
};

_Static_assert(sizeof(struct chunk_return) == RING_SLOT_BYTES, "a return is one slot");
_Static_assert(sizeof(struct stoq_command) == RING_SLOT_BYTES, "a command is one slot");
_Static_assert(sizeof(struct stoq_event) == RING_SLOT_BYTES, "an event is one slot");
_Static_assert(sizeof(struct stoq_address) == 3 * sizeof(uint64_t), "an address is three words");

/* Make the memfd (its descriptor goes to `fd`) and map it. NULL: errno. */
struct shared *shared_create(uint32_t worker, const struct stoq_config *config, int *fd);
/* Map an existing one, as a second process would. NULL: errno (EINVAL: not such a memory). */
struct shared *shared_map(int fd);
void shared_unmap(struct shared *s);

static inline void *shared_at(struct shared *s, uint64_t offset) {
    return (uint8_t *)s + offset;
}

/* One word of statistics, for a reader on another thread. */
static inline uint64_t shared_read(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_RELAXED); /* Whole, in no order with others. */
}

static inline void shared_write(uint64_t *word, uint64_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELAXED); /* Whole, in no order with others. */
}

#endif
