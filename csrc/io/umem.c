/* See umem.h. */
#include "umem.h"

#include <stdlib.h>
#include <string.h>

#include "text.h"

bool umem_open(struct umem *u, uint32_t rx_frames, uint32_t tx_frames, uint32_t frame_bytes) {
    *u = (struct umem){.frames = rx_frames + tx_frames, .rx_frames = rx_frames, .frame_bytes = frame_bytes};
    u->frame_shift = (uint32_t)__builtin_ctz(frame_bytes);
    u->owner = malloc(u->frames);
    if (u->owner == NULL || !pages_map(&u->pages, (size_t)u->frames << u->frame_shift)) {
        umem_close(u);
        return false;
    }
    memset(u->owner, UMEM_KERNEL_RX, rx_frames);
    memset(u->owner + rx_frames, UMEM_FREE, tx_frames);
    u->owned[UMEM_KERNEL_RX] = rx_frames;
    u->owned[UMEM_FREE] = tx_frames;
    return true;
}

void umem_close(struct umem *u) {
    pages_unmap(&u->pages);
    free(u->owner);
    u->owner = NULL;
}

static bool check_books(const struct umem *u, struct io_text *why) {
    uint32_t counted[UMEM_OWNERS] = {0};
    for (uint32_t f = 0; f < u->frames; f++) {
        uint8_t owner = u->owner[f];
        bool rx = f < u->rx_frames;
        if (owner >= UMEM_OWNERS || (rx && (owner == UMEM_FREE || owner == UMEM_KERNEL_TX)) ||
            (!rx && owner == UMEM_KERNEL_RX)) {
            io_text_add(why, "frame %u has the impossible owner %u", f, owner);
            return false;
        }
        counted[owner]++;
    }
    for (int o = 0; o < UMEM_OWNERS; o++) {
        if (counted[o] != u->owned[o]) {
            io_text_add(why, "owner %d has %u frames, the books say %u", o, counted[o], u->owned[o]);
            return false;
        }
    }
    return true;
}

/* Each entry names a frame of `owner` that was in no ring before. */
static bool check_ring(const struct umem *u, const struct xsk_ring *r, const char *name, bool descriptors,
                       enum umem_owner owner, uint8_t *seen, uint32_t *total, struct io_text *why) {
    uint32_t count = xsk_ring_count(r);
    uint32_t first = *r->consumer;
    if (count > r->size) {
        io_text_add(why, "%s ring holds %u of %u", name, count, r->size);
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint64_t addr = descriptors ? xsk_ring_desc(r, first + i)->addr : *xsk_ring_addr(r, first + i);
        uint64_t frame = addr >> u->frame_shift;
        if (frame >= u->frames || u->owner[frame] != owner || seen[frame]) {
            io_text_add(why, "%s ring entry %u: address %llx is %s", name, i, (unsigned long long)addr,
                        frame >= u->frames         ? "outside"
                        : u->owner[frame] != owner ? "somebody else's"
                                                   : "in a ring twice");
            return false;
        }
        seen[frame] = 1;
    }
    *total += count;
    return true;
}

bool umem_check(const struct umem *u, const struct umem_rings *rings, bool exact, struct io_text *why) {
    uint32_t rx = 0, tx = 0;
    io_text_clear(why);
    uint8_t *seen = calloc(u->frames, 1);
    if (seen == NULL) {
        io_text_add(why, "no memory");
        return false;
    }
    bool ok = check_books(u, why) &&
              check_ring(u, rings->fill, "FILL", false, UMEM_KERNEL_RX, seen, &rx, why) &&
              check_ring(u, rings->rx, "RX", true, UMEM_KERNEL_RX, seen, &rx, why) &&
              check_ring(u, rings->tx, "TX", true, UMEM_KERNEL_TX, seen, &tx, why) &&
              check_ring(u, rings->completion, "COMPLETION", false, UMEM_KERNEL_TX, seen, &tx, why);
    if (ok && exact && (rx != u->owned[UMEM_KERNEL_RX] || tx != u->owned[UMEM_KERNEL_TX])) {
        io_text_add(why, "rings hold %u receive and %u send frames, the kernel was given %u and %u", rx, tx,
                    u->owned[UMEM_KERNEL_RX], u->owned[UMEM_KERNEL_TX]);
        ok = false;
    }
    free(seen);
    return ok;
}
