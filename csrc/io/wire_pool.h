/* Buffers of the wire backend, in three sizes, from slabs that grow and are kept: nothing is allocated per
 * datagram in steady state. Private to csrc/io/wire*.c. */
#ifndef STOQ_IO_WIRE_POOL_H
#define STOQ_IO_WIRE_POOL_H

#include "io.h"

enum wire_class { WIRE_SMALL, WIRE_MEDIUM, WIRE_TRAIN, WIRE_CLASS_COUNT };

/* A buffer and what it carries: `tx` while the worker builds it, then a packet under way, then lent to a
 * receiver. */
struct wire_packet {
    struct io_tx tx; /* First: tx_commit gets this pointer. */
    struct wire_packet *next;
    uint64_t due_ns;
    uint32_t link;  /* Endpoint that sent it. */
    uint32_t index; /* Its number: slab * WIRE_SLAB_PACKETS + place. */
    uint8_t klass;
    bool counted; /* Counts against the sender's tx_buffers until freed. */
};

#define WIRE_SLAB_PACKETS 16u /* A slab of trains is then 1 MiB: little to map for a short run. */

struct wire_slab {
    struct wire_packet packets[WIRE_SLAB_PACKETS];
    uint8_t *memory;
    size_t bytes;
};

struct wire_pool {
    struct wire_packet *free[WIRE_CLASS_COUNT];
    struct wire_slab **slabs;
    uint32_t slab_count, slab_cap;
    uint64_t used;
};

void wire_pool_destroy(struct wire_pool *pool);
/* A buffer of at least `bytes` (at most IO_TRAIN_BYTES); NULL when memory is short. */
struct wire_packet *wire_pool_take(struct wire_pool *pool, uint32_t bytes);
void wire_pool_give(struct wire_pool *pool, struct wire_packet *packet);
struct wire_packet *wire_pool_at(const struct wire_pool *pool, uint32_t index);
/* Under AddressSanitizer: make what follows the packet's bytes in its buffer unreadable until it is given
 * back. */
void wire_pool_guard(struct wire_packet *packet);

#endif
