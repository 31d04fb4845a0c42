/* Asks, and where asking is not possible tries. probe.h says in which order. */
#include <errno.h>
#include <linux/bpf.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <bpf/bpf.h>

#include "genl.h"
#include "private.h"
#include "probe.h"

static enum guard_answer answer(bool yes) {
    return yes ? GUARD_ANSWER_YES : GUARD_ANSWER_NO;
}

/* The name of the driver, which tells people more than the interface's. */
static void ask_driver(struct guard_probe *out) {
    struct ethtool_drvinfo info = {.cmd = ETHTOOL_GDRVINFO};
    struct ifreq request = {.ifr_data = (void *)&info};
    memcpy(request.ifr_name, out->interface, sizeof request.ifr_name);
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (ioctl(fd, SIOCETHTOOL, &request) == 0)
        snprintf(out->driver, sizeof out->driver, "%.*s", (int)sizeof info.driver - 1, info.driver);
    close(fd);
}

static void ask_attached(uint32_t ifindex, struct guard_probe *out) {
    struct guard_owner owner;
    if (!guard_owner(ifindex, &owner)) {
        guard_text_next(&out->notes);
        guard_text_add(&out->notes, "whether a program is attached could not be asked");
        return;
    }
    out->program_id = owner.program_id;
    out->program_mode = owner.mode;
    memcpy(out->program, owner.name, sizeof out->program);
}

/* XDP_PASS for every frame. A descriptor, or a negative error. */
static int load_pass(void) {
    const struct bpf_insn pass[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = XDP_PASS},
        {.code = BPF_JMP | BPF_EXIT},
    };
    struct guard_text said;
    guard_capture_begin(&said);
    int fd = bpf_prog_load(BPF_PROG_TYPE_XDP, "stoq_probe", "GPL", pass, sizeof pass / sizeof pass[0], NULL);
    guard_capture_end();
    return fd;
}

static enum guard_answer try_attach(uint32_t ifindex, int program_fd, uint32_t flags) {
    LIBBPF_OPTS(bpf_link_create_opts, options, .flags = flags);
    int link = bpf_link_create(program_fd, (int)ifindex, BPF_XDP, &options);
    if (link >= 0) {
        bpf_link_detach(link);
        close(link);
        return GUARD_ANSWER_YES;
    }
    return link == -EOPNOTSUPP ? GUARD_ANSWER_NO : GUARD_ANSWER_UNKNOWN;
}

static int try_load(struct guard_probe *out) {
    int fd = load_pass();
    out->bpf = fd >= 0                         ? GUARD_ANSWER_YES
               : fd == -EPERM || fd == -EACCES ? GUARD_ANSWER_UNKNOWN
                                               : GUARD_ANSWER_NO;
    if (fd < 0) {
        guard_text_next(&out->notes);
        guard_text_add(&out->notes, "loading an XDP program: ");
        guard_text_error(&out->notes, -fd);
    }
    return fd;
}

void guard_probe_try(uint32_t ifindex, struct guard_probe *out) {
    int fd = try_load(out);
    if (fd < 0)
        return;
    struct guard_owner owner;
    if (!guard_owner(ifindex, &owner) || owner.program_id != 0) {
        /* What is attached works; the other mode is not tried beside it. */
        if (owner.program_id != 0)
            *(owner.mode == GUARD_MODE_GENERIC ? &out->generic : &out->native) = GUARD_ANSWER_YES;
        guard_text_next(&out->notes);
        guard_text_add(&out->notes, "XDP modes not tried: a program is attached");
    } else {
        out->native = try_attach(ifindex, fd, XDP_FLAGS_DRV_MODE);
        out->generic = try_attach(ifindex, fd, XDP_FLAGS_SKB_MODE);
        guard_text_next(&out->notes);
        guard_text_add(&out->notes, "XDP modes tried with a program that passes everything");
    }
    close(fd);
}

static void from_device(const struct genl_device *d, struct guard_probe *out) {
    if (d->has_xdp_features) {
        out->native = answer(d->xdp_features & GENL_XDP_BASIC);
        out->redirect = answer(d->xdp_features & GENL_XDP_REDIRECT);
        out->ndo_xmit = answer(d->xdp_features & GENL_XDP_NDO_XMIT);
        out->zero_copy = answer(d->xdp_features & GENL_XDP_XSK_ZEROCOPY);
        out->multi_buffer = answer(d->xdp_features & GENL_XDP_RX_SG);
    }
    if (d->has_zc_max_segments)
        out->zero_copy_segments = d->zc_max_segments;
    if (d->has_rx_metadata) {
        out->rx_timestamp = answer(d->rx_metadata & GENL_RX_TIMESTAMP);
        out->rx_hash = answer(d->rx_metadata & GENL_RX_HASH);
    }
    /* The family tells of transmit metadata since the kernel has them. */
    out->tx_metadata = answer(d->has_xsk_features);
    if (d->has_xsk_features) {
        out->tx_checksum = answer(d->xsk_features & GENL_XSK_TX_CHECKSUM);
        out->tx_timestamp = answer(d->xsk_features & GENL_XSK_TX_TIMESTAMP);
        out->tx_launch_time = answer(d->xsk_features & GENL_XSK_TX_LAUNCH_TIME);
    }
}

bool guard_probe(uint32_t ifindex, struct guard_probe *out, struct guard_text *why) {
    *out = (struct guard_probe){0};
    if (if_indextoname(ifindex, out->interface) == NULL) {
        guard_text_clear(why);
        guard_text_add(why, "no interface has index %u: it is gone, or in another network namespace",
                       ifindex);
        return false;
    }
    ask_driver(out);
    ask_attached(ifindex, out);
    struct genl_device device;
    struct guard_text unasked;
    if (!genl_device_get(ifindex, &device, &unasked)) {
        bool too_old = errno == ENOENT;
        guard_text_next(&out->notes);
        guard_text_add(&out->notes, "%s%s", unasked.text, too_old ? " (Linux 6.3 and later have it)" : "");
        guard_probe_try(ifindex, out);
        return true;
    }
    from_device(&device, out);
    guard_text_next(&out->notes);
    guard_text_add(&out->notes, "XDP features as the driver declares them");
    int fd = try_load(out);
    if (fd >= 0) {
        close(fd);
        out->generic =
            GUARD_ANSWER_YES; /* Part of the network stack itself since 4.12: every interface has it. */
    }
    return true;
}
