/* Zero-copy sends and the other things of uring_options.h that have code of their own.
 * Kernel interface: io_uring_enter(2), IORING_OP_SENDMSG_ZC; io_uring_register(2).
 *
 * A zero-copy send completes twice: first as sendmsg(2) would return, with IORING_CQE_F_MORE; then, when the
 * last skb that points into the buffer is gone, with IORING_CQE_F_NOTIF. Only then is the buffer the worker's
 * again. The second one also tells whether the kernel has copied after all, as it does where an skb enters
 * another stack (veth, loopback) or a device cannot gather: then zero copy costs more than the copy and is
 * switched off, and describe() says so. */
#define _GNU_SOURCE
#include "uring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "text.h"

/* linux/io_uring.h of Linux 6.2 and 6.9; Debian 12's headers are older. */
#define SEND_ZC_REPORT_USAGE  (1u << 3)
#define NOTIF_USAGE_ZC_COPIED (1u << 31)
#define REGISTER_NAPI         27
struct napi_registration {
    uint32_t busy_poll_to;
    uint8_t prefer_busy_poll;
    uint8_t pad[3];
    uint64_t reserved;
};

/* So many sends in a row that the kernel copied all the same are no accident. */
#define COPIED_ENOUGH 64u

bool io_uring_options_parse(const char *text, struct io_uring_options *out) {
    *out = (struct io_uring_options){0};
    while (*text != '\0') {
        size_t len = strcspn(text, ",");
        const struct {
            const char *name;
            bool *flag;
            uint32_t *number;
        } known[] = {{"no-files", &out->no_files, NULL},     {"no-direct", &out->no_direct, NULL},
                     {"no-buffers", &out->no_buffers, NULL}, {"keep-zero-copy", &out->keep_zero_copy, NULL},
                     {"sqpoll", &out->sqpoll, NULL},         {"zero-copy=", NULL, &out->zero_copy_bytes},
                     {"napi=", NULL, &out->napi_us}};
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof known[0] && !found; i++) {
            size_t name = strlen(known[i].name);
            if (known[i].flag != NULL && len == name && memcmp(text, known[i].name, name) == 0) {
                found = *known[i].flag = true;
            } else if (known[i].number != NULL && len > name && memcmp(text, known[i].name, name) == 0) {
                char *end = NULL;
                unsigned long value = strtoul(text + name, &end, 10);
                found = end == text + len && value <= UINT32_MAX;
                *known[i].number = (uint32_t)value;
            }
        }
        if (!found) {
            return false;
        }
        text += len + (text[len] == ',');
    }
    return true;
}

void uring_zc_open(struct uring *u) {
    if (u->options.zero_copy_bytes == 0) {
        return;
    }
    struct io_uring_probe *probe = io_uring_get_probe_ring(&u->ring);
    bool has = probe != NULL && io_uring_opcode_supported(probe, IORING_OP_SENDMSG_ZC);
    io_uring_free_probe(probe);
    if (!has) {
        uring_zc_stop(u, "Linux 6.1 has it");
        return;
    }
    if (!u->options.no_buffers) {
        struct iovec all = {u->tx.pages.base, (size_t)u->tx.count * UDP_TX_SLOT_BYTES};
        u->fixed_buffers = io_uring_register_buffers(&u->ring, &all, 1) == 0;
    }
}

void uring_zc_stop(struct uring *u, const char *why) {
    u->options.zero_copy_bytes = 0;
    io_text_add(&u->socket.notes, "; zero copy off: %s", why);
}

void uring_zc_prepare(struct uring *u, struct io_uring_sqe *sqe, struct udp_tx_slot *slot) {
    io_uring_prep_sendmsg_zc(sqe, u->socket.fd, &slot->message, 0);
    sqe->ioprio = SEND_ZC_REPORT_USAGE;
    if (u->fixed_buffers) {
        sqe->ioprio |= IORING_RECVSEND_FIXED_BUF;
        sqe->buf_index = 0; /* One registration has all of them. */
    }
    slot->zero_copy = true;
}

/* A send that the kernel does not know in this form: once more in a form it knows. */
static bool refused(struct uring *u, struct udp_tx_slot *slot, int result) {
    if (!slot->zero_copy || (result != -EINVAL && result != -EOPNOTSUPP && result != -EFAULT)) {
        return false;
    }
    if (u->fixed_buffers) {
        u->fixed_buffers = false; /* A vectored send from registered buffers: 6.15. */
        io_text_add(&u->socket.notes, "; zero copy from unregistered buffers: Linux 6.15 has it");
    } else if (u->options.zero_copy_bytes != 0) {
        uring_zc_stop(u, strerror(-result));
    }
    uring_tx_queue(u, slot);
    return true;
}

void uring_tx_done(struct uring *u, struct udp_tx_slot *slot, const struct io_uring_cqe *cqe) {
    if ((cqe->flags & IORING_CQE_F_NOTIF) != 0) {
        bool copied = ((uint32_t)cqe->res & NOTIF_USAGE_ZC_COPIED) != 0;
        u->copied = copied ? u->copied + 1 : 0;
        if (u->copied == COPIED_ENOUGH && u->options.zero_copy_bytes != 0 && !u->options.keep_zero_copy) {
            uring_zc_stop(u, "the kernel copies on this way all the same");
        }
    } else {
        slot->result = cqe->res;
        if ((cqe->flags & IORING_CQE_F_MORE) != 0) {
            return; /* The buffer is still in use. */
        }
        if (refused(u, slot, cqe->res)) {
            u->in_kernel--;
            return;
        }
    }
    u->in_kernel--;
    udp_tx_complete(&u->tx, slot, slot->result);
}

void uring_napi_open(struct uring *u) {
    if (u->options.napi_us == 0) {
        return;
    }
    struct napi_registration napi = {.busy_poll_to = u->options.napi_us};
    if (syscall(SYS_io_uring_register, u->ring.ring_fd, REGISTER_NAPI, &napi, 1) != 0) {
        io_text_add(&u->socket.notes, "; NAPI busy polling off: %s (Linux 6.9 has it)", strerror(errno));
        u->options.napi_us = 0;
    }
}

void uring_options_describe(const struct uring *u, struct io_text *out) {
    const struct io_uring_options *o = &u->options;
    if (o->sqpoll) {
        io_text_add(out, ", SQPOLL");
    }
    if (o->zero_copy_bytes != 0) {
        io_text_add(out, ", zero copy from %u bytes%s", o->zero_copy_bytes,
                    u->fixed_buffers ? " (registered buffers)" : "");
    }
    if (o->napi_us != 0) {
        io_text_add(out, ", NAPI busy polling %u us", o->napi_us);
    }
}
