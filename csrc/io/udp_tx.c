/* See udp_tx.h. udp(7) UDP_SEGMENT; RFC 3542 sections 6.1, 6.2 and 6.5 for IPV6_PKTINFO and IPV6_TCLASS. */
#define _GNU_SOURCE
#include "udp_tx.h"

#include <assert.h>
#include <errno.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

bool udp_tx_open(struct udp_tx_pool *p, struct udp_socket *socket, struct io_stats *stats, uint32_t buffers) {
    uint32_t count = buffers != 0 ? buffers : UDP_TX_DEFAULT_BUFFERS;
    count = count < UDP_TX_MAX_BUFFERS ? count : UDP_TX_MAX_BUFFERS;
    *p = (struct udp_tx_pool){.socket = socket, .stats = stats, .count = count};
    p->max_segments = socket->gso ? IO_TRAIN_PACKETS : 1;
    p->slots = calloc(count, sizeof *p->slots);
    p->free = calloc(count, sizeof *p->free);
    if (p->slots == NULL || p->free == NULL || !pages_map(&p->pages, (size_t)count * UDP_TX_SLOT_BYTES)) {
        udp_tx_close(p);
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        p->slots[i].tx.data = p->pages.base + (size_t)i * UDP_TX_SLOT_BYTES;
        p->slots[i].tx.handle = i;
        p->free[p->free_count++] = count - 1 - i;
    }
    return true;
}

void udp_tx_close(struct udp_tx_pool *p) {
    pages_unmap(&p->pages);
    free(p->slots);
    free(p->free);
    p->slots = NULL;
    p->free = NULL;
}

struct udp_tx_slot *udp_tx_take(struct udp_tx_pool *p) {
    if (p->free_count == 0) {
        p->stats->tx_full++;
        p->starved = true;
        return NULL;
    }
    struct udp_tx_slot *slot = &p->slots[p->free[--p->free_count]];
    assert(slot->state == UDP_TX_FREE);
    uint8_t *data = slot->tx.data;
    slot->state = UDP_TX_WORKER;
    slot->zero_copy = false;
    slot->tx = (struct io_tx){
        .data = data, .cap = UDP_TX_TRAIN_BYTES, .max_segments = p->max_segments, .handle = slot->tx.handle};
    return slot;
}

void udp_tx_give(struct udp_tx_pool *p, struct udp_tx_slot *slot) {
    assert(slot->state != UDP_TX_FREE);
    slot->state = UDP_TX_FREE;
    p->free[p->free_count++] = slot->tx.handle;
    p->starved = false;
}

static uint32_t datagrams(const struct io_tx *tx) {
    return (tx->len + tx->segment - 1) / tx->segment;
}

static void add_control(struct msghdr *m, int level, int type, const void *value, size_t len) {
    struct cmsghdr *c = (struct cmsghdr *)((uint8_t *)m->msg_control + m->msg_controllen);
    c->cmsg_level = level;
    c->cmsg_type = type;
    c->cmsg_len = CMSG_LEN(len);
    memcpy(CMSG_DATA(c), value, len);
    m->msg_controllen += CMSG_SPACE(len);
}

/* Fill slot->message for the bytes [offset, offset + len); `segment` 0 for a single datagram. */
static void fill_message(struct udp_tx_slot *slot, uint32_t offset, uint32_t len, uint16_t segment) {
    static const uint8_t any[16];
    struct io_tx *tx = &slot->tx;
    struct msghdr *m = &slot->message;
    slot->iov = (struct iovec){.iov_base = tx->data + offset, .iov_len = len};
    slot->to = udp_sockaddr(&tx->peer);
    *m = (struct msghdr){
        .msg_name = &slot->to, .msg_namelen = sizeof slot->to, .msg_iov = &slot->iov, .msg_iovlen = 1};
    m->msg_control = slot->control;
    if (segment != 0) {
        add_control(m, SOL_UDP, UDP_SEGMENT, &segment, sizeof segment);
    }
    if (tx->ecn != 0) {
        int tclass = tx->ecn & 3;
        add_control(m, IPPROTO_IPV6, IPV6_TCLASS, &tclass, sizeof tclass);
    }
    if (tx->ifindex != 0 || memcmp(tx->local.ip, any, sizeof any) != 0) {
        struct in6_pktinfo info = {.ipi6_ifindex = tx->ifindex};
        memcpy(&info.ipi6_addr, tx->local.ip, sizeof info.ipi6_addr);
        add_control(m, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info);
    }
    if (m->msg_controllen == 0) {
        m->msg_control = NULL;
    }
}

static void count_result(struct udp_tx_pool *p, int result, uint32_t packets) {
    if (result < 0) {
        p->stats->tx_errors++;
        if (result != -EMSGSIZE) /* A probe of the path's MTU that the link itself refuses: no trouble. */
            p->last_error = -result;
        return;
    }
    p->stats->tx_trains++;
    p->stats->tx_packets += packets;
    p->stats->tx_bytes += (uint32_t)result;
}

/* No offload: each datagram by a call of its own, now. Rare: the one train that met the refusal, and those
 * that were built before the worker could learn of it. */
static void send_singly(struct udp_tx_pool *p, struct udp_tx_slot *slot) {
    for (uint32_t offset = 0; offset < slot->tx.len; offset += slot->tx.segment) {
        uint32_t left = slot->tx.len - offset;
        fill_message(slot, offset, left < slot->tx.segment ? left : slot->tx.segment, 0);
        ssize_t sent = sendmsg(p->socket->fd, &slot->message, MSG_DONTWAIT);
        p->stats->syscalls++;
        count_result(p, sent < 0 ? -errno : (int)sent, 1);
    }
    udp_tx_give(p, slot);
}

bool udp_tx_prepare(struct udp_tx_pool *p, struct udp_tx_slot *slot) {
    struct io_tx *tx = &slot->tx;
    assert(slot->state == UDP_TX_WORKER);
    if (tx->len == 0 || tx->len > UDP_TX_TRAIN_BYTES || tx->segment == 0 ||
        datagrams(tx) > IO_TRAIN_PACKETS || quic_addr_is_v4_mapped(&tx->peer)) {
        count_result(p, -EINVAL, 0);
        udp_tx_give(p, slot);
        return false;
    }
    bool train = tx->len > tx->segment;
    if (train && p->max_segments == 1) {
        send_singly(p, slot);
        return false;
    }
    fill_message(slot, 0, tx->len, train ? tx->segment : 0);
    slot->state = UDP_TX_KERNEL;
    return true;
}

void udp_tx_complete(struct udp_tx_pool *p, struct udp_tx_slot *slot, int result) {
    uint32_t packets = datagrams(&slot->tx);
    assert(slot->state == UDP_TX_KERNEL);
    if (result == -EIO && packets > 1) {
        /* The route's device cannot checksum the segments. The socket serves every route, so it is off for
         * all. */
        if (p->max_segments > 1) {
            p->max_segments = 1;
            io_text_add(&p->socket->notes,
                        "; UDP_SEGMENT off: a device without checksum offload refused it (EIO)");
        }
        send_singly(p, slot);
        return;
    }
    count_result(p, result, packets);
    udp_tx_give(p, slot);
}

void udp_tx_describe(const struct udp_tx_pool *p, struct io_text *out) {
    if (p->last_error != 0) {
        io_text_add(out, "; last send error: %s (%llu in all)", strerror(p->last_error),
                    (unsigned long long)p->stats->tx_errors);
    }
}
