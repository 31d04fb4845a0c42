/* See xsk.h. */
#define _GNU_SOURCE
#include "xsk.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "text.h"

#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69 /* asm-generic/socket.h, Linux 5.11. */
#define SO_BUSY_POLL_BUDGET 70
#endif

#define KERNEL_ENOTSUPP 524 /* Drivers let this kernel-internal code out where EOPNOTSUPP is meant. */

/* A queue that another socket has just left stays busy until the kernel has torn it down, after an RCU grace
 * period: some tens of milliseconds, a second at the most. */
#define BUSY_TRIES   100
#define BUSY_STEP_NS 10000000

/* Copy mode counts packets under way against the send buffer, with the kernel's overhead of about a kilobyte
 * each: this holds the largest TX ring we make, so that only the ring limits. */
#define SNDBUF_BYTES (32u << 20)

/* In-kernel busy polling of one call, in microseconds: enough to find the queue empty. */
#define BUSY_POLL_US 20

/* struct xdp_umem_reg of Linux 6.8; older kernels read the front part of it. */
struct umem_reg {
    uint64_t addr, len;
    uint32_t chunk_size, headroom, flags, tx_metadata_len;
};

static bool set_int(int fd, int level, int option, int value) {
    return setsockopt(fd, level, option, &value, sizeof value) == 0;
}

static int failed(struct io_text *why, const char *what) {
    int error = errno;
    io_text_add(why, "%s: %s", what, strerror(error));
    return error;
}

static int register_umem(struct xsk *x, const struct umem *umem, bool metadata, struct io_text *notes,
                         struct io_text *why) {
    struct umem_reg reg = {.addr = (uintptr_t)umem->pages.base,
                           .len = (uint64_t)umem->frames << umem->frame_shift,
                           .chunk_size = umem->frame_bytes};
    if (metadata) {
        reg.flags = XSK_UMEM_TX_METADATA_LEN;
        reg.tx_metadata_len = XSK_TX_METADATA_BYTES;
        if (setsockopt(x->fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof reg) == 0) {
            x->tx_metadata = true;
            return 0;
        }
        if (errno == EINVAL) { /* The flag is unknown. What is lost is the offload. */
            io_text_add(notes, "; checksum computed here: Linux 6.11 takes it as transmit metadata");
            reg.flags = reg.tx_metadata_len = 0;
        }
    }
    if (reg.flags == 0 && setsockopt(x->fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(struct xdp_umem_reg)) == 0) {
        return 0;
    }
    int error = errno;
    io_text_add(why, "UMEM of %llu KiB: %s%s", (unsigned long long)(reg.len >> 10), strerror(error),
                error == ENOBUFS || error == ENOMEM || error == EPERM
                    ? " (needs CAP_IPC_LOCK or a higher RLIMIT_MEMLOCK)"
                    : "");
    return error;
}

static bool map_ring(struct xsk *x, struct xsk_ring *r, const struct xdp_ring_offset *offset, uint32_t size,
                     size_t entry_bytes, uint64_t place) {
    r->map_bytes = offset->desc + size * entry_bytes;
    r->map = mmap(NULL, r->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, x->fd, (off_t)place);
    if (r->map == MAP_FAILED) {
        r->map = NULL;
        return false;
    }
    uint8_t *base = r->map;
    r->producer = (uint32_t *)(void *)(base + offset->producer);
    r->consumer = (uint32_t *)(void *)(base + offset->consumer);
    r->flags = (uint32_t *)(void *)(base + offset->flags);
    r->entries = base + offset->desc;
    r->size = size;
    return true;
}

static int make_rings(struct xsk *x, const struct xsk_options *o, struct io_text *why) {
    if (!set_int(x->fd, SOL_XDP, XDP_UMEM_FILL_RING, (int)o->rx_entries) ||
        !set_int(x->fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, (int)o->tx_entries) ||
        !set_int(x->fd, SOL_XDP, XDP_RX_RING, (int)o->rx_entries) ||
        !set_int(x->fd, SOL_XDP, XDP_TX_RING, (int)o->tx_entries)) {
        return failed(why, "making the rings");
    }
    struct xdp_mmap_offsets offsets;
    socklen_t len = sizeof offsets;
    if (getsockopt(x->fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &len) != 0) {
        return failed(why, "XDP_MMAP_OFFSETS");
    }
    if (len != sizeof offsets) { /* The layout before 5.4 has no flags words. */
        io_text_add(why, "this kernel's AF_XDP has no need-wakeup rings (Linux 5.4 has them)");
        return ENOTSUP;
    }
    if (!map_ring(x, &x->fill, &offsets.fr, o->rx_entries, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING) ||
        !map_ring(x, &x->completion, &offsets.cr, o->tx_entries, sizeof(uint64_t),
                  XDP_UMEM_PGOFF_COMPLETION_RING) ||
        !map_ring(x, &x->rx, &offsets.rx, o->rx_entries, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING) ||
        !map_ring(x, &x->tx, &offsets.tx, o->tx_entries, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING)) {
        return failed(why, "mapping the rings");
    }
    return 0;
}

/* What it can do without, at a price that the notes name. */
static void set_optional(struct xsk *x, const struct xsk_options *o, struct io_text *notes) {
    if (!set_int(x->fd, SOL_SOCKET, SO_SNDBUFFORCE, SNDBUF_BYTES)) {
        set_int(x->fd, SOL_SOCKET, SO_SNDBUF, SNDBUF_BYTES);
    }
    int granted = 0;
    socklen_t len = sizeof granted;
    if (getsockopt(x->fd, SOL_SOCKET, SO_SNDBUF, &granted, &len) == 0) {
        x->sndbuf_bytes = (uint32_t)granted;
    }
    x->tx_budget = set_int(x->fd, SOL_XDP, XSK_MAX_TX_SKB_BUDGET, (int)o->tx_entries);
    if (o->busy_budget != 0) {
        x->busy_poll = set_int(x->fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, 1) &&
                       set_int(x->fd, SOL_SOCKET, SO_BUSY_POLL, BUSY_POLL_US) &&
                       set_int(x->fd, SOL_SOCKET, SO_BUSY_POLL_BUDGET, (int)o->busy_budget);
        if (!x->busy_poll) {
            io_text_add(notes, "; preferred busy polling refused: %s%s", strerror(errno),
                        errno == EPERM         ? " (needs CAP_NET_ADMIN)"
                        : errno == ENOPROTOOPT ? " (Linux 5.11 has it)"
                                               : "");
        }
    }
}

bool xsk_knows_napi(const struct xsk *x) {
    unsigned id = 0;
    socklen_t len = sizeof id;
    return getsockopt(x->fd, SOL_SOCKET, SO_INCOMING_NAPI_ID, &id, &len) == 0 && id != 0;
}

static const char *bind_hint(int error, const struct xsk_options *o) {
    switch (error) {
    case EOPNOTSUPP:
    case KERNEL_ENOTSUPP:
        return o->zero_copy ? ", the driver has no zero copy" : "";
    case EBUSY:
        return ", another AF_XDP socket has this queue";
    case EINVAL:
        return o->multi_buffer ? ", no such queue, or no packets over several frames (Linux 6.6 has them)"
               : o->zero_copy  ? ", no such queue, or no zero copy with this MTU, frame size or XDP program"
                               : ", no such queue";
    case ENODEV:
        return ", no such interface";
    case ENETDOWN:
        return ", the interface is down";
    case EPERM:
    case EACCES:
        return ", needs CAP_NET_RAW";
    default:
        return "";
    }
}

static int bind_queue(struct xsk *x, const struct xsk_options *o, struct io_text *notes,
                      struct io_text *why) {
    struct sockaddr_xdp sa = {.sxdp_family = AF_XDP, .sxdp_ifindex = o->ifindex, .sxdp_queue_id = o->queue};
    sa.sxdp_flags = (uint16_t)(XDP_USE_NEED_WAKEUP | (o->zero_copy ? XDP_ZEROCOPY : XDP_COPY) |
                               (o->multi_buffer ? XSK_USE_SG : 0));
    int error = 0, tries = 0;
    do {
        error = bind(x->fd, (struct sockaddr *)&sa, sizeof sa) == 0 ? 0 : errno;
        if (error != EBUSY) {
            break;
        }
        nanosleep(&(struct timespec){.tv_nsec = BUSY_STEP_NS}, NULL);
    } while (++tries < BUSY_TRIES);
    if (error != 0) {
        io_text_add(why, "%s", error == KERNEL_ENOTSUPP ? "not supported" : strerror(error));
        io_text_add(why, " (%s)%s", error == KERNEL_ENOTSUPP ? "ENOTSUPP" : strerrorname_np(error),
                    bind_hint(error, o));
    } else if (tries > 0) {
        io_text_add(notes, "; queue was busy, bound at try %d", tries + 1);
    }
    return error;
}

int xsk_open(struct xsk *x, const struct xsk_options *o, const struct umem *umem, struct io_text *notes,
             struct io_text *why) {
    *x = (struct xsk){.fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0), .multi_buffer = o->multi_buffer};
    if (x->fd < 0) {
        int error = errno;
        io_text_add(why, "AF_XDP socket: %s%s", strerror(error),
                    error == EPERM          ? " (needs CAP_NET_RAW)"
                    : error == EAFNOSUPPORT ? " (kernel built without CONFIG_XDP_SOCKETS)"
                                            : "");
        return error;
    }
    int error = register_umem(x, umem, o->tx_metadata, notes, why);
    if (error == 0) {
        error = make_rings(x, o, why);
    }
    if (error == 0) {
        set_optional(x, o, notes);
        error = bind_queue(x, o, notes, why);
    }
    if (error != 0) {
        xsk_close(x);
        return error;
    }
    struct xdp_options options = {0};
    socklen_t len = sizeof options;
    x->zero_copy = getsockopt(x->fd, SOL_XDP, XDP_OPTIONS, &options, &len) == 0 &&
                   (options.flags & XDP_OPTIONS_ZEROCOPY) != 0;
    return 0;
}

void xsk_close(struct xsk *x) {
    struct xsk_ring *rings[] = {&x->fill, &x->completion, &x->rx, &x->tx};
    for (size_t i = 0; i < sizeof rings / sizeof rings[0]; i++) {
        if (rings[i]->map != NULL) {
            munmap(rings[i]->map, rings[i]->map_bytes);
            rings[i]->map = NULL;
        }
    }
    if (x->fd >= 0) {
        close(x->fd);
    }
    x->fd = -1;
}

bool xsk_enter_map(const struct xsk *x, int map_fd, uint32_t queue) {
    return bpf_map_update_elem(map_fd, &queue, &x->fd, BPF_ANY) == 0;
}
