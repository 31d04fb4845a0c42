/* An AF_XDP socket: UMEM registered, rings mapped, bound to one queue. By the kernel's own calls rather than
 * a library's, for the transmit metadata and the options of newer kernels, which libxdp of today does not
 * wrap. Kernel documentation: af_xdp.rst, xsk-tx-metadata.rst. */
#ifndef STOQ_IO_XSK_H
#define STOQ_IO_XSK_H

#include "io.h"
#include "umem.h"
#include "xsk_ring.h"

/* Of newer kernels than the headers this is built with. include/uapi/linux/if_xdp.h. */
#define XSK_USE_SG               (1u << 4) /* bind: packets over several frames. Linux 6.6. */
#define XSK_PKT_CONTD            (1u << 0) /* descriptor: the packet goes on in the next one. */
#define XSK_TX_METADATA          (1u << 1) /* descriptor: metadata lies before the frame. Linux 6.8. */
#define XSK_UMEM_TX_METADATA_LEN (1u << 2) /* UMEM: tx_metadata_len is meant. Linux 6.11. */
#define XSK_TXMD_FLAGS_CHECKSUM  (1u << 1)
#define XSK_MAX_TX_SKB_BUDGET    9    /* option: packets a sendto may take in copy mode. Linux 6.17. */
#define XSK_TX_METADATA_BYTES    24u  /* sizeof(struct xsk_tx_metadata) with launch_time, of Linux 6.14. */
#define XSK_RX_HEADROOM_BYTES    256u /* XDP_PACKET_HEADROOM: left before a received packet. */

/* What the kernel reads before a packet with XSK_TX_METADATA. */
struct xsk_tx_checksum {
    uint64_t flags;
    uint16_t csum_start;  /* Of the UDP header, from the packet's start. */
    uint16_t csum_offset; /* Of the checksum field, from csum_start. */
    uint32_t pad;
    uint64_t launch_time;
};
_Static_assert(sizeof(struct xsk_tx_checksum) == XSK_TX_METADATA_BYTES, "the kernel's layout");

struct xsk_options {
    uint32_t ifindex, queue;
    uint32_t rx_entries, tx_entries; /* Ring sizes, powers of two; FILL as RX, COMPLETION as TX. */
    bool zero_copy;                  /* Else copy. */
    bool multi_buffer;
    bool tx_metadata; /* Wanted; without it the socket opens as well. */
    uint32_t busy_budget;
};

struct xsk {
    int fd;
    struct xsk_ring fill, completion, rx, tx;
    bool zero_copy;   /* As the kernel says. */
    bool tx_metadata; /* The kernel takes checksum requests. */
    bool multi_buffer;
    bool busy_poll;
    bool tx_budget; /* One sendto may take the whole TX ring. */
    uint32_t sndbuf_bytes;
};

/* 0, or the errno of the step that failed, with `why`: what failed and what to do about it. `notes` collects
 * what was wished for and not granted, each led by "; ". FILL is left empty. */
int xsk_open(struct xsk *x, const struct xsk_options *options, const struct umem *umem, struct io_text *notes,
             struct io_text *why);
/* Safe on a struct that xsk_open failed on. */
void xsk_close(struct xsk *x);

/* Does the socket know which NAPI context its queue is served by? A busy-poll call without one does nothing:
 * the driver names none (veth), or on kernels before 6.13 nothing has arrived yet. */
bool xsk_knows_napi(const struct xsk *x);

/* Enter the socket into an XSKMAP under its queue. It leaves by xsk_close: the kernel takes it out of its
 * maps before anything else. False: errno. */
bool xsk_enter_map(const struct xsk *x, int map_fd, uint32_t queue);

#endif
