/* The bpf_link that holds the program on its interface. A link belongs to its descriptor: when the process
 * ends, however it does, the kernel closes the descriptor and detaches the program.
 *
 * Kernel: BPF_LINK_CREATE with BPF_XDP (Linux 5.9). One program an interface in each mode, and not both modes
 * at a time: EBUSY or EEXIST. */
#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "private.h"

/* A process that was killed holds its link until the kernel has taken it apart, which is deferred work. */
#define BUSY_PATIENCE_NS UINT64_C(1000000000)
#define BUSY_PAUSE_NS    2000000

/* More links than any machine of ours has: a bound for the search, not a limit of the kernel. */
#define MAX_LINKS_SEEN 4096

/* Is the program held by a link on this interface? Asking needs CAP_SYS_ADMIN. */
static int link_holds(uint32_t ifindex, uint32_t program_id) {
    uint32_t id = 0;
    for (int seen = 0; seen < MAX_LINKS_SEEN; seen++) {
        int error = bpf_link_get_next_id(id, &id);
        if (error == -ENOENT)
            return GUARD_OWNER_NO_LINK;
        if (error != 0)
            return GUARD_OWNER_UNKNOWN;
        int fd = bpf_link_get_fd_by_id(id);
        if (fd < 0)
            continue; /* Gone in between. */
        struct bpf_link_info info = {0};
        uint32_t len = sizeof info;
        bool ok = bpf_obj_get_info_by_fd(fd, &info, &len) == 0;
        close(fd);
        if (ok && info.type == BPF_LINK_TYPE_XDP && info.prog_id == program_id && info.xdp.ifindex == ifindex)
            return GUARD_OWNER_LINK;
    }
    return GUARD_OWNER_UNKNOWN;
}

bool guard_owner(uint32_t ifindex, struct guard_owner *out) {
    *out = (struct guard_owner){.held = GUARD_OWNER_UNKNOWN};
    struct guard_text said;
    LIBBPF_OPTS(bpf_xdp_query_opts, query);
    guard_capture_begin(&said);
    int error = bpf_xdp_query((int)ifindex, 0, &query);
    guard_capture_end();
    if (error != 0)
        return false;
    out->mode = query.skb_prog_id != 0 ? GUARD_MODE_GENERIC : GUARD_MODE_NATIVE;
    out->program_id = query.skb_prog_id != 0   ? query.skb_prog_id
                      : query.drv_prog_id != 0 ? query.drv_prog_id
                      : query.hw_prog_id != 0  ? query.hw_prog_id
                                               : query.prog_id;
    if (out->program_id == 0)
        return true;
    int fd = bpf_prog_get_fd_by_id(out->program_id); /* Needs CAP_SYS_ADMIN: without, there is no name. */
    if (fd >= 0) {
        struct bpf_prog_info info = {0};
        uint32_t len = sizeof info;
        if (bpf_obj_get_info_by_fd(fd, &info, &len) == 0)
            snprintf(out->name, sizeof out->name, "%.*s", (int)sizeof info.name, info.name);
        close(fd);
    }
    out->held = link_holds(ifindex, out->program_id);
    return true;
}

static void say_owner(struct guard_text *why, const char *interface, const struct guard_owner *owner) {
    guard_text_add(why, "interface %s already has an XDP program", interface);
    if (owner->program_id == 0) { /* It went away while we asked: nothing to name. */
        guard_text_add(why, " or is just losing one; try again");
        return;
    }
    guard_text_add(why, ": \"%s\", id %u, %s mode; ", owner->name[0] != '\0' ? owner->name : "?",
                   owner->program_id, owner->mode == GUARD_MODE_GENERIC ? "generic" : "native");
    switch (owner->held) {
    case GUARD_OWNER_LINK:
        guard_text_add(why,
                       "a running process holds it by a bpf_link: stop that one first (another appliance on "
                       "this interface? `bpftool prog show id %u` shows its pid)",
                       owner->program_id);
        break;
    case GUARD_OWNER_NO_LINK:
        guard_text_add(why,
                       "no bpf_link holds it; if nothing needs it, `ip link set dev %s xdp off` removes it",
                       interface);
        break;
    default:
        guard_text_add(why,
                       "stop the process that put it there (`bpftool net show` and `bpftool link show` tell "
                       "more)");
        break;
    }
}

/* What an error of the driver means. */
static const char *hint(int error) {
    switch (error) {
    case EOPNOTSUPP:
        return " (the driver has no XDP, or not with its present settings)";
    case ERANGE:
    case EINVAL:
        return " (the driver has XDP, but not with its present settings: MTU, LRO and the number of queues "
               "are "
               "the usual ones)";
    case ENOMEM:
    case ENOSPC:
        return " (the driver has no memory or queues left for it)";
    default:
        return "";
    }
}

static int create(uint32_t ifindex, int program_fd, enum guard_mode mode) {
    LIBBPF_OPTS(bpf_link_create_opts, options,
                .flags = mode == GUARD_MODE_NATIVE ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE);
    return bpf_link_create(program_fd, (int)ifindex, BPF_XDP, &options);
}

static bool busy(int fd) {
    return fd == -EBUSY || fd == -EEXIST;
}

/* As create, waiting for a program that is just going. One without a link goes by nobody's death: that is not
 * waited for. */
static int create_patiently(uint32_t ifindex, int program_fd, enum guard_mode mode) {
    uint64_t deadline_ns = guard_monotonic_ns() + BUSY_PATIENCE_NS;
    for (;;) {
        int fd = create(ifindex, program_fd, mode);
        struct guard_owner owner;
        if (!busy(fd) || guard_monotonic_ns() >= deadline_ns)
            return fd;
        if (guard_owner(ifindex, &owner) && owner.held == GUARD_OWNER_NO_LINK)
            return create(ifindex, program_fd, mode); /* Its link may have gone between the two questions. */
        nanosleep(&(struct timespec){.tv_nsec = BUSY_PAUSE_NS}, NULL);
    }
}

int guard_attach(uint32_t ifindex, const char *interface, int program_fd, enum guard_mode *mode,
                 struct guard_text *notes, struct guard_text *why) {
    enum guard_mode wanted = *mode;
    *mode = wanted == GUARD_MODE_GENERIC ? GUARD_MODE_GENERIC : GUARD_MODE_NATIVE;
    int fd = create_patiently(ifindex, program_fd, *mode);
    if (fd < 0 && wanted == GUARD_MODE_AUTO && !busy(fd) && fd != -EPERM && fd != -ENODEV) {
        guard_text_next(notes);
        guard_text_add(notes,
                       "native XDP on %s: %s%s; generic mode instead, which is slower: the kernel has made "
                       "its packet buffer before the program sees the frame",
                       interface, strerror(-fd), hint(-fd));
        *mode = GUARD_MODE_GENERIC;
        fd = create_patiently(ifindex, program_fd, *mode);
    }
    if (fd >= 0)
        return fd;
    if (busy(fd)) {
        struct guard_owner owner;
        if (!guard_owner(ifindex, &owner))
            owner = (struct guard_owner){0};
        say_owner(why, interface, &owner);
        return -1;
    }
    guard_text_add(why, "attaching the XDP program to %s in %s mode: ", interface,
                   *mode == GUARD_MODE_NATIVE ? "native" : "generic");
    if (fd == -ENODEV) {
        guard_text_add(why, "the interface is gone");
        return -1;
    }
    guard_text_error(why, -fd);
    if (*mode == GUARD_MODE_NATIVE)
        guard_text_add(why, "%s", hint(-fd));
    else if (fd == -EINVAL)
        guard_text_add(why, " (a bpf_link for XDP needs Linux 5.9)");
    return -1;
}
