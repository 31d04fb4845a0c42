/* The least XDP program that feeds an AF_XDP socket: UDP over IPv6 to one port goes to the XSKMAP's socket of
 * its queue, all else passes. Both loops of `stoq bench packets` run over it, so that what they are compared
 * by is the user-space side alone; the guard's program (csrc/bpf) costs the same in both and is left out.
 *
 * It is assembled here because eighteen instructions need no compiler. Attached by a bpf_link, which the
 * kernel takes away when the process ends, however it ends. Kernel documentation: bpf/map_xskmap.rst. */
#ifndef STOQ_BENCH_XDP_REDIRECT_H
#define STOQ_BENCH_XDP_REDIRECT_H

#include <stdbool.h>
#include <stdint.h>

struct xdp_redirect {
    int map, program, link; /* Descriptors; `map` is the XSKMAP. */
};

/* Attach to the interface, in the driver. Ends the program on failure. */
struct xdp_redirect xdp_redirect_open(uint32_t ifindex, uint16_t port);
/* Frames of `queue` go to the socket `xsk` from now on. Ends the program on failure. */
void xdp_redirect_set(const struct xdp_redirect *r, uint32_t queue, int xsk);
void xdp_redirect_close(struct xdp_redirect *r);

#endif
