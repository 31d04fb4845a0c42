/* UMEM: the memory that an AF_XDP socket receives into and sends from, in frames of equal size, and the books
 * on who has each of them.
 *
 *      frames [0, rx_frames)        receive   KERNEL_RX ──▶ WORKER ──▶ KERNEL_RX
 *      frames [rx_frames, frames)   send      FREE ──▶ WORKER ──▶ KERNEL_TX ──▶ FREE
 *                                                        └──────▶ FREE
 *
 * KERNEL_RX is the FILL ring, the driver and the RX ring; KERNEL_TX the TX ring, the driver and the
 * COMPLETION ring: between these a frame moves without our doing. Every other move goes through umem_move,
 * which checks it. */
#ifndef STOQ_IO_UMEM_H
#define STOQ_IO_UMEM_H

#include <assert.h>

#include "io.h"
#include "pages.h"
#include "xsk_ring.h"

enum umem_owner { UMEM_FREE, UMEM_WORKER, UMEM_KERNEL_RX, UMEM_KERNEL_TX, UMEM_OWNERS };

struct umem {
    struct pages pages;
    uint32_t frames, rx_frames;
    uint32_t frame_bytes; /* 2048 or 4096: what aligned mode allows with ordinary pages. */
    uint32_t frame_shift;
    uint8_t *owner;              /* enum umem_owner of each frame. */
    uint32_t owned[UMEM_OWNERS]; /* How many each has. */
};

/* Receive frames begin as KERNEL_RX (the caller puts them into the FILL ring), send frames as FREE. False: no
 * memory. */
bool umem_open(struct umem *u, uint32_t rx_frames, uint32_t tx_frames, uint32_t frame_bytes);
/* Safe on a zeroed struct. */
void umem_close(struct umem *u);

static inline uint8_t *umem_at(const struct umem *u, uint64_t addr) {
    return u->pages.base + addr;
}

static inline uint64_t umem_addr(const struct umem *u, uint32_t frame) {
    return (uint64_t)frame << u->frame_shift;
}

/* Of an address the kernel gave. It checks ours, so a wrong one here would be its memory corrupted or ours:
 * nothing to go on with. */
static inline uint32_t umem_frame(const struct umem *u, uint64_t addr) {
    uint64_t frame = addr >> u->frame_shift;
    assert(frame < u->frames);
    return (uint32_t)frame;
}

static inline void umem_move(struct umem *u, uint32_t frame, enum umem_owner from, enum umem_owner to) {
    assert(u->owner[frame] == from);
    u->owner[frame] = (uint8_t)to;
    u->owned[from]--;
    u->owned[to]++;
}

struct umem_rings {
    const struct xsk_ring *fill, *completion, *rx, *tx;
};

/* Do the books agree with themselves and with what lies in the rings? For a moment at which the kernel has
 * nothing under way; `exact` then also asks that each of the kernel's frames lies in one of its rings, which
 * holds in copy mode as long as no packet was dropped for want of ring space. False: `why` says what is
 * wrong. */
bool umem_check(const struct umem *u, const struct umem_rings *rings, bool exact, struct io_text *why);

#endif
