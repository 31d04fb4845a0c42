/* AF_XDP backend: opening and closing, waiting and waking, what is reported. afxdp.h has the picture,
 * afxdp_private.h the state. */
#define _GNU_SOURCE
#include "afxdp_private.h"

#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

#include "text.h"

#define DEFAULT_RX_FRAMES 4096 /* 6 ms at 0.7 million packets a second: longer than a worker is away. */
#define MIN_RX_FRAMES     64
#define MAX_RX_FRAMES     65536 /* 256 MiB of frames of 4 KiB. */
#define DEFAULT_TX_SLOTS  32    /* 2,048 packets of 64-packet trains: a millisecond at 25 Gbit/s. */
#define MAX_TX_SLOTS      512

/* How long to sleep at most while the kernel holds what we wait for without a descriptor to tell of it: a
 * completion, or room for what a full device refused. Short beside what the ring holds. */
#define RETRY_NS 50000

static int interface_request(unsigned long what, struct ifreq *r) {
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return errno;
    }
    int error = ioctl(fd, what, r) == 0 ? 0 : errno;
    close(fd);
    return error;
}

/* Name, MTU and link address. */
static bool ask_interface(struct afxdp *a, struct io_text *why) {
    static const uint8_t none[6];
    struct ifreq r = {{{0}}, {{0}}};
    if (if_indextoname(a->config.ifindex, a->interface) == NULL) {
        io_text_add(why, "no interface has index %u: %s", a->config.ifindex, strerror(errno));
        return false;
    }
    memcpy(r.ifr_name, a->interface, sizeof r.ifr_name);
    int error = interface_request(SIOCGIFMTU, &r);
    a->mtu = (uint32_t)r.ifr_mtu;
    if (error == 0) {
        error = interface_request(SIOCGIFHWADDR, &r);
    }
    if (error != 0) {
        io_text_add(why, "%s: %s", a->interface, strerror(error));
        return false;
    }
    if (r.ifr_hwaddr.sa_family != ARPHRD_ETHER) {
        io_text_add(why, "%s is not an Ethernet interface: use the io_uring backend there", a->interface);
        return false;
    }
    if (memcmp(a->config.link, none, sizeof none) == 0) {
        memcpy(a->config.link, r.ifr_hwaddr.sa_data, sizeof a->config.link);
    }
    return true;
}

static bool open_socket_path(struct afxdp *a, const struct io_config *config, struct io_text *why) {
    if (a->config.no_socket) {
        return true;
    }
    const struct io_ops *ops = a->config.socket_ops != NULL ? a->config.socket_ops : &io_uring_ops;
    struct io_config inner = *config;
    struct io_text refused = {{0}};
    inner.backend = NULL;
    a->inner = ops->open(&inner, &refused);
    if (a->inner == NULL || a->inner->ops->poll_fd == NULL) {
        io_text_add(why, "socket path: %s", a->inner != NULL ? "backend cannot be waited for" : refused.text);
        return false;
    }
    a->inner->ops->local(a->inner, &a->bind);
    return true;
}

static uint32_t power_of_two(uint32_t n, uint32_t least, uint32_t most) {
    uint32_t p = least;
    while (p < n && p < most) {
        p *= 2;
    }
    return p;
}

/* The smallest frame that takes a whole packet both ways; above 4 KiB a packet takes several. */
static uint32_t frame_bytes_for(uint32_t packet_bytes) {
    return packet_bytes + XSK_RX_HEADROOM_BYTES <= 2048 ? 2048 : 4096;
}

static void lay_out(struct afxdp *a, bool multi_buffer) {
    uint32_t frame = a->umem.frame_bytes, payload = a->mtu - IP_UDP_BYTES;
    a->datagram_frames = multi_buffer ? (FRAME_PAYLOAD_AT + payload + frame - 1) / frame : 1;
    uint32_t room = a->datagram_frames * frame - FRAME_PAYLOAD_AT;
    a->datagram_bytes = payload < room ? payload : room;
    uint32_t packet = a->mtu + ETHERNET_BYTES + 2 * VLAN_BYTES;
    a->linear.bytes = multi_buffer ? (packet + 63) / 64 * 64 : 0;
}

/* Zero copy if it is wanted and to be had, else copy. */
static bool bind_as_asked(struct afxdp *a, bool multi_buffer, struct io_text *why) {
    struct xsk_options o = {.ifindex = a->config.ifindex,
                            .queue = a->config.queue,
                            .rx_entries = a->umem.rx_frames,
                            .tx_entries = power_of_two(a->umem.frames - a->umem.rx_frames, 64, 1u << 31),
                            .multi_buffer = multi_buffer,
                            .busy_budget = a->config.busy_budget};
    bool metadata = !a->config.no_tx_checksum && !multi_buffer;
    if (multi_buffer) {
        io_text_add(&a->notes, "; checksum computed here: no room for metadata between a datagram's frames");
    }
    if (a->config.mode != AFXDP_MODE_COPY) {
        struct io_text refused = {{0}}, notes = {{0}};
        o.zero_copy = true;
        o.tx_metadata = metadata && a->config.driver_checksum;
        int error = xsk_open(&a->xsk, &o, &a->umem, &notes, &refused);
        if (error == 0) {
            io_text_add(&a->notes, "%s", notes.text);
            if (metadata && !a->config.driver_checksum) {
                io_text_add(&a->notes, "; checksum computed here: the driver takes no transmit metadata");
            }
            return true;
        }
        if (a->config.mode == AFXDP_MODE_ZERO_COPY || error == EBUSY || error == EPERM) {
            io_text_add(why, "%s queue %u, %s: %s", a->interface, o.queue,
                        a->config.mode == AFXDP_MODE_ZERO_COPY ? "zero copy as asked for" : "binding",
                        refused.text);
            return false;
        }
        io_text_add(&a->notes, "; zero copy refused: %s", refused.text);
    }
    o.zero_copy = false;
    o.tx_metadata = metadata; /* In copy mode the kernel computes what the device does not. */
    struct io_text refused = {{0}};
    if (xsk_open(&a->xsk, &o, &a->umem, &a->notes, &refused) != 0) {
        io_text_add(why, "%s queue %u, copy: %s", a->interface, o.queue, refused.text);
        return false;
    }
    return true;
}

/* Busy polling without this leaves the interrupts on, and they take the packets first. */
static void note_deferral(struct afxdp *a) {
    char path[64];
    unsigned value = 0;
    snprintf(path, sizeof path, "/sys/class/net/%s/napi_defer_hard_irqs", a->interface);
    FILE *f = fopen(path, "re");
    bool known = f != NULL && fscanf(f, "%u", &value) == 1;
    if (f != NULL) {
        fclose(f);
    }
    if (!known || value == 0) {
        io_text_add(&a->notes, "; napi_defer_hard_irqs of %s is %s: interrupts compete with busy polling",
                    a->interface, known ? "0" : "unknown");
    }
}

static bool start(struct afxdp *a, const struct io_config *config, struct io_text *why) {
    if (!ask_interface(a, why) || !open_socket_path(a, config, why)) {
        return false;
    }
    if (a->mtu < 1280) {
        io_text_add(why, "%s has an MTU of %u: IPv6 needs 1280", a->interface, a->mtu);
        return false;
    }
    uint32_t rx_frames = a->config.rx_frames != 0 ? a->config.rx_frames : DEFAULT_RX_FRAMES;
    rx_frames = power_of_two(rx_frames, MIN_RX_FRAMES, MAX_RX_FRAMES);
    a->slot_count = a->config.tx_slots != 0 ? a->config.tx_slots : DEFAULT_TX_SLOTS;
    a->slot_count = a->slot_count < MAX_TX_SLOTS ? a->slot_count : MAX_TX_SLOTS;
    uint32_t packet = a->mtu + ETHERNET_BYTES + VLAN_BYTES;
    uint32_t frame = frame_bytes_for(packet);
    bool multi_buffer = packet + XSK_RX_HEADROOM_BYTES > frame;
    if (!umem_open(&a->umem, rx_frames, a->slot_count * IO_TRAIN_PACKETS, frame)) {
        io_text_add(why, "no memory for %u + %u frames of %u bytes", rx_frames,
                    a->slot_count * IO_TRAIN_PACKETS, frame);
        return false;
    }
    lay_out(a, multi_buffer);
    if (a->linear.bytes > LINEAR_MAX_BYTES) {
        io_text_add(why, "%s has an MTU of %u: at most %u", a->interface, a->mtu,
                    LINEAR_MAX_BYTES - ETHERNET_BYTES - 2 * VLAN_BYTES);
        return false;
    }
    if (!bind_as_asked(a, multi_buffer, why)) {
        return false;
    }
    a->offload = a->xsk.tx_metadata;
    if (a->config.busy_budget != 0 && a->xsk.busy_poll) {
        note_deferral(a);
        if (!xsk_knows_napi(&a->xsk)) {
            io_text_add(&a->notes,
                        "; the queue names no NAPI context yet: until it does busy polling does nothing");
        }
    }
    if (!waker_open(&a->waker, EFD_NONBLOCK)) {
        io_text_add(why, "eventfd: %s", strerror(errno));
        return false;
    }
    if (!paths_open(&a->paths, a->config.ifindex, a->config.link, a->bind.port, a->inner != NULL) ||
        !afxdp_tx_open(a) || !afxdp_rx_open(a)) {
        io_text_add(why, "no memory for the backend's tables");
        return false;
    }
    /* Last: from here on packets come. */
    if (a->config.xsks_fd >= 0 && !xsk_enter_map(&a->xsk, a->config.xsks_fd, a->config.queue)) {
        io_text_add(why, "entering the socket into the XSKMAP as queue %u: %s%s", a->config.queue,
                    strerror(errno), errno == E2BIG ? ", the map has fewer queues" : "");
        return false;
    }
    return true;
}

static void afxdp_close(struct io *io) {
    struct afxdp *a = (struct afxdp *)io;
    /* What was committed goes out, if the device takes it now; the kernel frees the rest with the socket. The
     * XSKMAP's entry goes with the socket too, without a call of bpf(2), which no worker may make. */
    if (a->xsk.fd >= 0 && a->slots != NULL) {
        afxdp_flush(io);
    }
    xsk_close(&a->xsk);
    if (a->inner != NULL) {
        a->inner->ops->close(a->inner);
    }
    waker_close(&a->waker);
    paths_close(&a->paths);
    afxdp_tx_close(a);
    afxdp_rx_close(a);
    umem_close(&a->umem);
    free(a);
}

static struct io *afxdp_open(const struct io_config *config, struct io_text *why) {
    io_text_clear(why);
    if (config->backend == NULL) {
        io_text_add(why, "afxdp needs an interface and a queue");
        return NULL;
    }
    if (quic_addr_is_v4_mapped(&config->bind)) {
        io_text_add(why, "bind address is IPv4-mapped: STOQ is IPv6 only, give an IPv6 address");
        return NULL;
    }
    struct afxdp *a = calloc(1, sizeof *a);
    if (a == NULL) {
        io_text_add(why, "no memory");
        return NULL;
    }
    a->io.ops = &io_afxdp_ops;
    a->config = *(const struct afxdp_config *)config->backend;
    a->bind = config->bind;
    a->xsk.fd = a->waker.fd = -1;
    if (!start(a, config, why)) {
        afxdp_close(&a->io);
        return NULL;
    }
    return &a->io;
}

static void afxdp_wait(struct io *io, int64_t timeout_ns) {
    struct afxdp *a = (struct afxdp *)io;
    bool starved = a->starved, ready = false;
    a->stats.waits++;
    if (!waker_prepare(&a->waker)) {
        a->stats.wakeups++;
        return;
    }
    afxdp_flush(io); /* What the kernel refused before it may take now. */
    int inner_fd = a->inner != NULL ? a->inner->ops->poll_fd(a->inner, &ready) : -1;
    if (!ready && xsk_ring_waiting(&a->xsk.rx) == 0 && !(starved && !a->starved)) {
        if ((a->starved || xsk_ring_count(&a->xsk.tx) > 0) && (timeout_ns < 0 || timeout_ns > RETRY_NS)) {
            timeout_ns = RETRY_NS;
        }
        /* Polling the XSK also wakes a driver that waits for frames, and sends what is in the TX ring. */
        struct pollfd fds[3] = {{.fd = a->xsk.fd, .events = POLLIN},
                                {.fd = a->waker.fd, .events = POLLIN},
                                {.fd = inner_fd, .events = POLLIN}};
        struct timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
        ppoll(fds, 3, timeout_ns < 0 ? NULL : &ts, NULL);
        a->stats.syscalls++;
        if (fds[1].revents != 0) {
            uint64_t count;
            ssize_t ignored = read(a->waker.fd, &count, sizeof count); /* Non-blocking; only resets it. */
            (void)ignored;
        }
        afxdp_tx_reap(a);
    }
    if (waker_finish(&a->waker)) {
        a->stats.wakeups++;
    }
}

static void afxdp_wake(struct io *io) {
    waker_wake(&((struct afxdp *)io)->waker);
}

static void afxdp_local(const struct io *io, struct quic_addr *out) {
    *out = ((const struct afxdp *)io)->bind;
}

static void afxdp_stats(const struct io *io, struct io_stats *out) {
    const struct afxdp *a = (const struct afxdp *)io;
    *out = a->stats;
    if (a->inner != NULL) {
        struct io_stats inner;
        uint64_t words[sizeof inner / sizeof(uint64_t)], sum[sizeof inner / sizeof(uint64_t)];
        a->inner->ops->stats(a->inner, &inner);
        memcpy(words, &inner, sizeof words);
        memcpy(sum, out, sizeof sum);
        for (size_t i = 0; i < sizeof sum / sizeof sum[0]; i++) { /* Counters all. */
            sum[i] += words[i];
        }
        memcpy(out, sum, sizeof sum);
    }
}

static void afxdp_queue(const struct io *io, struct io_queue_stats *out) {
    const struct afxdp *a = (const struct afxdp *)io;
    const struct umem *u = &a->umem;
    const struct xsk *x = &a->xsk;
    *out = a->queue;
    out->queue = a->config.queue;
    out->ifindex = a->config.ifindex;
    out->native = a->config.native;
    out->zero_copy = x->zero_copy;
    out->need_wakeup = 1;
    out->busy_poll = x->busy_poll && xsk_knows_napi(x);
    out->multi_buffer = x->multi_buffer;
    out->tx_checksum = a->offload;
    out->frames = u->frames;
    out->frame_bytes = u->frame_bytes;
    out->ring_fill = xsk_ring_count(&x->fill);
    out->ring_rx = xsk_ring_waiting(&x->rx);
    out->ring_tx = xsk_ring_count(&x->tx);
    out->ring_completion = xsk_ring_waiting(&x->completion);
    out->frames_rx = out->ring_rx;
    out->frames_fill = u->owned[UMEM_KERNEL_RX] - out->ring_rx;
    out->frames_completion = out->ring_completion;
    out->frames_tx = u->owned[UMEM_KERNEL_TX] - out->ring_completion;
    out->frames_worker = u->owned[UMEM_WORKER];
    out->frames_free = u->owned[UMEM_FREE];
    out->routes = a->paths.route_count;
    out->neighbours = a->paths.neighbour_count;
    uint64_t kernel[6] = {0}; /* struct xdp_statistics: before Linux 5.9 only the first three. */
    socklen_t len = sizeof kernel;
    if (getsockopt(x->fd, SOL_XDP, XDP_STATISTICS, kernel, &len) == 0) {
        out->kernel_rx_dropped = kernel[0];
        out->kernel_rx_invalid = kernel[1];
        out->kernel_tx_invalid = kernel[2];
        out->kernel_rx_ring_full = kernel[3];
        out->kernel_fill_empty = kernel[4];
        out->kernel_tx_empty = kernel[5];
    }
}

static void afxdp_describe(const struct io *io, struct io_text *out) {
    const struct afxdp *a = (const struct afxdp *)io;
    const struct umem *u = &a->umem;
    io_text_clear(out);
    io_text_add(out, "afxdp: %s queue %u, %s, %s", a->interface, a->config.queue,
                a->config.native ? "native" : "generic", a->xsk.zero_copy ? "zero copy" : "copy");
    io_text_add(out, ", need wakeup%s", a->xsk.busy_poll ? ", preferred busy polling" : "");
    io_text_add(out, ", %u + %u frames of %u bytes, %s pages", u->rx_frames, u->frames - u->rx_frames,
                u->frame_bytes, pages_kind_name(u->pages.kind));
    io_text_add(out, ", datagrams up to %u bytes%s", a->datagram_bytes,
                a->xsk.multi_buffer ? " in several frames" : "");
    io_text_add(out, ", checksum %s", a->offload ? "by kernel metadata" : "computed");
    io_text_add(out, "%s", a->notes.text);
    if (a->paths.routes_refused) {
        io_text_add(out, "; more than %u routes: all goes by the socket path", PATHS_MAX_ROUTES);
    }
    if (a->tx_error != 0) {
        io_text_add(out, "; last send error: %s", strerror(a->tx_error));
    }
    if (a->inner != NULL) {
        struct io_text inner;
        a->inner->ops->describe(a->inner, &inner);
        io_text_add(out, "; socket path: %s", inner.text);
    } else {
        io_text_add(out, "; no socket path");
    }
}

static void afxdp_learn_route(struct io *io, const struct io_route *route) {
    paths_learn_route(&((struct afxdp *)io)->paths, route);
}

static void afxdp_learn_neighbour(struct io *io, const struct io_neighbour *neighbour) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
    paths_learn_neighbour(&((struct afxdp *)io)->paths, neighbour,
                          (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec);
}

bool afxdp_check(const struct io *io, bool exact, struct io_text *why) {
    const struct afxdp *a = (const struct afxdp *)io;
    struct umem_rings rings = {&a->xsk.fill, &a->xsk.completion, &a->xsk.rx, &a->xsk.tx};
    return umem_check(&a->umem, &rings, exact, why);
}

const struct io_ops io_afxdp_ops = {
    .name = "afxdp",
    .open = afxdp_open,
    .close = afxdp_close,
    .rx = afxdp_rx,
    .rx_release = afxdp_rx_release,
    .tx_acquire = afxdp_tx_acquire,
    .tx_commit = afxdp_tx_commit,
    .tx_cancel = afxdp_tx_cancel,
    .flush = afxdp_flush,
    .wait = afxdp_wait,
    .wake = afxdp_wake,
    .local = afxdp_local,
    .stats = afxdp_stats,
    .describe = afxdp_describe,
    .learn_route = afxdp_learn_route,
    .learn_neighbour = afxdp_learn_neighbour,
    .queue = afxdp_queue,
};
