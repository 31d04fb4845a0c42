/* The guard's own state, shared by its files:
 *
 *      guard.c         open, load, close; the policy
 *      guard_attach.c  the bpf_link on the interface, whose program is there already
 *      guard_kernel.c  what libbpf and the kernel say, in words
 *      guard_maps.c    ports, addresses, blocks, sockets, counters
 *      guard_cids.c    the table of connection ids
 *      guard_mirror.c  mirrored frames
 *
 * Descriptors belong to the skeleton but the link's, which is ours. */
#ifndef STOQ_GUARD_PRIVATE_H
#define STOQ_GUARD_PRIVATE_H

#include <net/if.h>

#include "guard.h"
#include "text.h"

struct guard_bpf; /* The skeleton: program and maps, as bpftool makes it. */
struct ring_buffer;
struct mirror_read;

/* Ids a bucket holds on average when the table is as full as was asked for. Ids fall into buckets at random
 * (their bytes are), so the number in one is Poisson distributed: with a mean of 2 a bucket has more than its
 * 7 ways with probability 0.0011 (a load of 29 %, 32 bytes an id). The number of buckets is rounded up to a
 * power of two, so the mean lies between 1 (0.00001) and 2. What an overflowing bucket costs is small:
 * garbage that hits it counts as known and reaches a core. */
#define GUARD_CID_MEAN 2u

/* 16 M ids a worker are half a GiB of table: beyond that it is a mistake in the configuration. */
#define GUARD_CID_MAX_CAPACITY (1u << 24)

struct guard {
    struct guard_bpf *skeleton;
    int link_fd;
    uint32_t ifindex;
    char interface[IF_NAMESIZE]; /* For messages. */

    int policy_fd, verdicts_fd, ports_fd, addresses_fd, blocklist_fd, xsks_fd, mirroring_fd;
    struct guard_policy policy; /* As it stands in the map. */
    bool blocks;                /* The blocklist may have entries. */
    uint16_t near_port;         /* Host order; 0: none. */
    uint8_t near_ip[16];        /* All zero: none. */

    int cpus; /* Possible ones: a per-CPU value has this many parts. */
    union {   /* Where one is read into. */
        struct guard_count count;
        struct guard_mirroring mirroring;
    } *per_cpu;

    struct guard_cids *cids; /* The mapped table of all workers; NULL: none. */
    size_t cids_bytes;

    struct ring_buffer *mirror;
    struct mirror_read *mirror_read; /* During guard_mirror_read. */
};

/* ---- guard.c ---- */

/* Write `p` into the map and remember it; the fields that are the loader's own are filled in. */
bool guard_write_policy(struct guard *g, struct guard_policy p, struct guard_text *why);

/* ---- guard_kernel.c ---- */

/* Everything that libbpf says between begin and end, in this thread, goes to `text` instead of stderr. Not to
 * be nested. */
void guard_capture_begin(struct guard_text *text);
void guard_capture_end(void);

/* "Operation not permitted: needs CAP_BPF and CAP_NET_ADMIN, and CAP_BPF is missing ..." */
void guard_text_error(struct guard_text *t, int error);
uint64_t guard_monotonic_ns(void);

/* ---- guard_attach.c ---- */

/* The link's descriptor, or -1 and `why`. `mode` in: what is wanted; out: what was got. A fall-back is told
 * in `notes`. */
int guard_attach(uint32_t ifindex, const char *interface, int program_fd, enum guard_mode *mode,
                 struct guard_text *notes, struct guard_text *why);

struct guard_owner {
    uint32_t program_id; /* 0: nobody's. */
    char name[16];       /* BPF_OBJ_NAME_LEN; "" when it may not be asked. */
    enum guard_mode mode;
    enum { GUARD_OWNER_UNKNOWN, GUARD_OWNER_LINK, GUARD_OWNER_NO_LINK } held;
};
/* Whose XDP program is on the interface. False: could not be asked. */
bool guard_owner(uint32_t ifindex, struct guard_owner *out);

/* ---- guard_mirror.c ---- */

/* False: errno says why. */
bool guard_mirror_open(struct guard *g, int fd);
void guard_mirror_close(struct guard *g);

/* ---- guard_cids.c ---- */

/* Buckets a worker for `capacity` ids; a power of two, 0 for 0. */
uint32_t guard_cid_buckets_for(uint32_t capacity);

#endif
