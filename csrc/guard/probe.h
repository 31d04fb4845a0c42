/* What this kernel and an interface's driver can do for XDP and AF_XDP: for `stoq doctor`, and for reports
 * that say why something was not got. Leaves nothing behind.
 *
 * Asked first of the kernel's `netdev` netlink family, which needs neither a capability nor a try. On kernels
 * before 6.3 a program of two instructions (pass everything) is attached by a link for a moment, and only
 * where no program is attached. What neither can tell stays UNKNOWN. */
#ifndef STOQ_GUARD_PROBE_H
#define STOQ_GUARD_PROBE_H

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#include "guard.h"

enum guard_answer { GUARD_ANSWER_UNKNOWN, GUARD_ANSWER_NO, GUARD_ANSWER_YES };

struct guard_probe {
    char interface[IF_NAMESIZE];
    char driver[32]; /* As ethtool names it; "" unknown. */

    enum guard_answer bpf;     /* This process can load an XDP program. UNKNOWN: it lacks the capabilities. */
    enum guard_answer native;  /* XDP in the driver. */
    enum guard_answer generic; /* XDP in the network stack. */
    enum guard_answer redirect;     /* Native XDP may redirect: what AF_XDP receives by. */
    enum guard_answer ndo_xmit;     /* Native frames may be redirected to this interface. */
    enum guard_answer zero_copy;    /* AF_XDP sockets without copies. */
    enum guard_answer multi_buffer; /* Native XDP takes frames in several buffers (jumbo). */
    uint32_t zero_copy_segments;    /* Buffers a frame of a zero-copy socket may have; 0: unknown, or none. */
    enum guard_answer rx_timestamp, rx_hash; /* Hints the driver gives the program with a frame. */
    /* Transmit metadata (XDP_TX_METADATA). Copy mode: the kernel takes them for every driver (checksum: by
     * the device or in software). Zero copy: what the driver does. */
    enum guard_answer tx_metadata, tx_checksum, tx_timestamp, tx_launch_time;

    /* The program that is attached now; id 0: none. */
    uint32_t program_id;
    char program[16];
    enum guard_mode program_mode;

    struct guard_text notes; /* Where the answers come from, and what could not be asked. */
};

/* False: there is no such interface, `why`. */
bool guard_probe(uint32_t ifindex, struct guard_probe *out, struct guard_text *why);

/* The part for older kernels, which fills in `bpf`, `native` and `generic` only: by trying. */
void guard_probe_try(uint32_t ifindex, struct guard_probe *out);

#endif
