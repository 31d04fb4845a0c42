/* Datagrams that no honest peer sends: every shape of RFC 9000 section 17 and RFC 8999 with garbage in it,
 * and what has no shape at all. All follows from the generator's seed. Owns nothing. */
#ifndef STOQ_HOSTILE_GARBAGE_H
#define STOQ_HOSTILE_GARBAGE_H

#include <stddef.h>
#include <stdint.h>

#include "../../csrc/io/prng.h"

#define GARBAGE_MAX_BYTES 65527 /* Largest UDP payload over IPv6 without jumbograms. */

struct garbage_kind {
    const char *name;
    uint32_t weight; /* Share in the mix, of garbage_weights(). */
    uint32_t min_bytes, max_bytes;
    /* Fills exactly `len` bytes, min_bytes to max_bytes. */
    void (*build)(struct prng *r, uint8_t *out, size_t len);
};

extern const struct garbage_kind garbage_kinds[];
extern const size_t garbage_kind_count;

/* The kind called `name`, or NULL. */
const struct garbage_kind *garbage_by_name(const char *name);
/* One kind at random, by weight. */
const struct garbage_kind *garbage_draw(struct prng *r);

#endif
