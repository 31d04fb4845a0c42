/* One question to the kernel over generic netlink: what XDP and AF_XDP can do on an interface, as its driver
 * declares it. The `netdev` family, Linux 6.3 and later (Documentation/netlink/specs/netdev.yaml).
 *
 * Only numbers come back, and every length in an answer is checked before it is used. */
#ifndef STOQ_GUARD_GENL_H
#define STOQ_GUARD_GENL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guard.h"

/* Linux UAPI linux/netdev.h, enum netdev_xdp_act (6.3, the multi-buffer ones too). */
#define GENL_XDP_BASIC        UINT64_C(1) /* Native XDP: ABORTED, DROP, PASS, TX. */
#define GENL_XDP_REDIRECT     UINT64_C(2)
#define GENL_XDP_NDO_XMIT     UINT64_C(4) /* A target of redirects. */
#define GENL_XDP_XSK_ZEROCOPY UINT64_C(8)
#define GENL_XDP_HW_OFFLOAD   UINT64_C(16)
#define GENL_XDP_RX_SG        UINT64_C(32) /* Frames in several buffers. */
#define GENL_XDP_NDO_XMIT_SG  UINT64_C(64)

/* The same, enum netdev_xdp_rx_metadata (6.7; VLAN tag 6.8). */
#define GENL_RX_TIMESTAMP UINT64_C(1)
#define GENL_RX_HASH      UINT64_C(2)
#define GENL_RX_VLAN_TAG  UINT64_C(4)

/* The same, enum netdev_xsk_flags (6.8; launch time 6.15). */
#define GENL_XSK_TX_TIMESTAMP   UINT64_C(1)
#define GENL_XSK_TX_CHECKSUM    UINT64_C(2)
#define GENL_XSK_TX_LAUNCH_TIME UINT64_C(4)

struct genl_device {
    uint32_t ifindex;
    uint64_t xdp_features;
    uint64_t rx_metadata;
    uint64_t xsk_features;
    uint32_t zc_max_segments; /* Told only with XSK_ZEROCOPY. */
    /* What this kernel says nothing about, being older. */
    bool has_xdp_features, has_rx_metadata, has_xsk_features, has_zc_max_segments;
};

/* False: `why`, and in errno ENOENT when the kernel has no such family. */
bool genl_device_get(uint32_t ifindex, struct genl_device *out, struct guard_text *why);

/* The answer's parser, for itself: one datagram from the netlink socket. 1: found; 0: not the answer;
 * negative: malformed or the kernel's error. */
int genl_parse_device(const uint8_t *bytes, size_t len, uint32_t sequence, uint16_t family,
                      struct genl_device *out);

#endif
