/* The table of connection ids that the program knows a worker's packets by. Each worker has a region of its
 * own, a run of cache lines it alone writes; the program on any CPU reads. csrc/bpf/layout.h has the bucket.
 *
 * What the program may see while a word is written: the old id or the new one, never a mix, because an
 * aligned word is stored whole. Nothing orders the stores against each other, and nothing needs to: an id is
 * entered before the packet that tells it to the peer is handed to the kernel, and the system call or the
 * descriptor ring's release in between orders that; an id that goes may be known for a packet longer. */
#include "private.h"

uint32_t guard_cid_buckets_for(uint32_t capacity) {
    uint32_t buckets = capacity != 0;
    while ((uint64_t)buckets * GUARD_CID_MEAN < capacity)
        buckets <<= 1;
    return buckets;
}

/* Bytes 2 to 5 of the id, little endian, whatever this machine's byte order is. */
static struct guard_cids *bucket_of(struct guard_cids *region, uint32_t buckets, uint64_t id) {
    uint8_t b[8];
    memcpy(b, &id, sizeof b);
    uint32_t hash = (uint32_t)b[2] | (uint32_t)b[3] << 8 | (uint32_t)b[4] << 16 | (uint32_t)b[5] << 24;
    return &region[hash & (buckets - 1)];
}

void guard_cid_add(struct guard_cids *region, uint32_t buckets, uint64_t id) {
    struct guard_cids *b = bucket_of(region, buckets, id);
    /* Relaxed throughout: single words of one writer. Atomic so that a store is one store for the program. */
    for (unsigned way = 0; way < GUARD_CID_WAYS; way++)
        if (__atomic_load_n(&b->id[way], __ATOMIC_RELAXED) == 0) {
            __atomic_store_n(&b->id[way], id, __ATOMIC_RELAXED);
            return;
        }
    __atomic_store_n(&b->overflow, __atomic_load_n(&b->overflow, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
}

void guard_cid_remove(struct guard_cids *region, uint32_t buckets, uint64_t id) {
    struct guard_cids *b = bucket_of(region, buckets, id);
    for (unsigned way = 0; way < GUARD_CID_WAYS; way++)
        if (__atomic_load_n(&b->id[way], __ATOMIC_RELAXED) == id) {
            __atomic_store_n(&b->id[way], 0, __ATOMIC_RELAXED);
            return;
        }
    /* It was one of those that found no place. Never below 0: an id too much removed must not make the bucket
     * overflow for ever. */
    uint64_t overflow = __atomic_load_n(&b->overflow, __ATOMIC_RELAXED);
    if (overflow != 0)
        __atomic_store_n(&b->overflow, overflow - 1, __ATOMIC_RELAXED);
}

struct guard_cids *guard_cid_region(struct guard *g, uint32_t worker) {
    if (g->cids == NULL || worker >= g->policy.workers)
        return NULL;
    return g->cids + (size_t)worker * g->policy.cid_buckets;
}

uint32_t guard_cid_buckets(const struct guard *g) {
    return g->policy.cid_buckets;
}
