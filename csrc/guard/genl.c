/* Generic netlink by hand: two messages, written and read as linux/netlink.h and linux/genetlink.h lay them
 * out. A library for it would be one more dependency for these hundred lines. */
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "genl.h"
#include "text.h"

/* Linux UAPI linux/netdev.h, which is younger than the headers we may be built with. */
#define NETDEV_FAMILY           "netdev"
#define NETDEV_VERSION          1
#define NETDEV_CMD_DEV_GET      1
#define NETDEV_DEV_IFINDEX      1
#define NETDEV_DEV_XDP_FEATURES 3
#define NETDEV_DEV_ZC_MAX_SEGS  4
#define NETDEV_DEV_RX_METADATA  5
#define NETDEV_DEV_XSK_FEATURES 6
#define ANSWER_BYTES            8192 /* The family's description with its operations is the longest: under 1 KiB. */
#define ANSWER_PATIENCE_S       2 /* The kernel answers before the call returns; this is for a hanging one. */
#define ANSWERS_SEEN_MAX        16 /* Messages that may come before ours: a bound, none is expected. */

struct attribute {
    uint16_t type;
    uint16_t len; /* Of the value. */
    const uint8_t *value;
};

/* The attribute at *at, which moves behind it; false at the end or when what is left holds none. */
static bool next_attribute(const uint8_t **at, size_t *left, struct attribute *out) {
    struct nlattr head;
    if (*left < sizeof head)
        return false;
    memcpy(&head, *at, sizeof head);
    if (head.nla_len < sizeof head || head.nla_len > *left)
        return false;
    out->type = head.nla_type & NLA_TYPE_MASK;
    out->len = (uint16_t)(head.nla_len - sizeof head);
    out->value = *at + sizeof head;
    size_t step = NLA_ALIGN(head.nla_len);
    step = step > *left ? *left : step; /* The last one may come without its padding. */
    *at += step;
    *left -= step;
    return true;
}

static bool take_u16(const struct attribute *a, uint16_t *out) {
    if (a->len != sizeof *out)
        return false;
    memcpy(out, a->value, sizeof *out);
    return true;
}

static bool take_u32(const struct attribute *a, uint32_t *out) {
    if (a->len != sizeof *out)
        return false;
    memcpy(out, a->value, sizeof *out);
    return true;
}

static bool take_u64(const struct attribute *a, uint64_t *out) {
    if (a->len != sizeof *out)
        return false;
    memcpy(out, a->value, sizeof *out);
    return true;
}

/* The attributes of the answer to `sequence` of type `family`, within one datagram. 1, 0 or negative as
 * genl_parse_device. */
static int find_answer(const uint8_t *bytes, size_t len, uint32_t sequence, uint16_t family,
                       const uint8_t **attributes, size_t *attributes_len) {
    while (len >= sizeof(struct nlmsghdr)) {
        struct nlmsghdr head;
        memcpy(&head, bytes, sizeof head);
        if (head.nlmsg_len < sizeof head || head.nlmsg_len > len)
            return -EBADMSG;
        const uint8_t *body = bytes + NLMSG_HDRLEN;
        size_t body_len = head.nlmsg_len - sizeof head;
        if (head.nlmsg_seq == sequence) {
            if (head.nlmsg_type == NLMSG_ERROR) {
                int32_t error;
                if (body_len < sizeof error)
                    return -EBADMSG;
                memcpy(&error, body, sizeof error);
                return error < 0 && error >= -4095 ? error : -EBADMSG; /* No acknowledgement was asked for. */
            }
            if (head.nlmsg_type == family) {
                if (body_len < GENL_HDRLEN)
                    return -EBADMSG;
                *attributes = body + GENL_HDRLEN;
                *attributes_len = body_len - GENL_HDRLEN;
                return 1;
            }
        }
        size_t step = NLMSG_ALIGN(head.nlmsg_len);
        step = step > len ? len : step;
        bytes += step;
        len -= step;
    }
    return len == 0 ? 0 : -EBADMSG;
}

int genl_parse_device(const uint8_t *bytes, size_t len, uint32_t sequence, uint16_t family,
                      struct genl_device *out) {
    const uint8_t *at = NULL;
    size_t left = 0;
    int found = find_answer(bytes, len, sequence, family, &at, &left);
    if (found != 1)
        return found;
    *out = (struct genl_device){0};
    struct attribute a;
    while (next_attribute(&at, &left, &a)) {
        bool ok = true;
        switch (a.type) {
        case NETDEV_DEV_IFINDEX:
            ok = take_u32(&a, &out->ifindex);
            break;
        case NETDEV_DEV_XDP_FEATURES:
            ok = out->has_xdp_features = take_u64(&a, &out->xdp_features);
            break;
        case NETDEV_DEV_ZC_MAX_SEGS:
            ok = out->has_zc_max_segments = take_u32(&a, &out->zc_max_segments);
            break;
        case NETDEV_DEV_RX_METADATA:
            ok = out->has_rx_metadata = take_u64(&a, &out->rx_metadata);
            break;
        case NETDEV_DEV_XSK_FEATURES:
            ok = out->has_xsk_features = take_u64(&a, &out->xsk_features);
            break;
        default:
            break; /* Newer than we are. */
        }
        if (!ok)
            return -EBADMSG;
    }
    return left == 0 && out->ifindex != 0 ? 1 : -EBADMSG;
}

/* The number that the family goes by. */
static int parse_family(const uint8_t *bytes, size_t len, uint32_t sequence, uint16_t *out) {
    const uint8_t *at = NULL;
    size_t left = 0;
    int found = find_answer(bytes, len, sequence, GENL_ID_CTRL, &at, &left);
    if (found != 1)
        return found;
    struct attribute a;
    while (next_attribute(&at, &left, &a))
        if (a.type == CTRL_ATTR_FAMILY_ID)
            return take_u16(&a, out) ? 1 : -EBADMSG;
    return -EBADMSG;
}

/* A request with one attribute. */
static bool ask(int fd, uint16_t family, uint8_t command, uint8_t version, uint32_t sequence, uint16_t type,
                const void *value, uint16_t value_len) {
    uint8_t bytes[128] = {0};
    struct nlattr attribute = {.nla_len = (uint16_t)(NLA_HDRLEN + value_len), .nla_type = type};
    size_t len = NLMSG_HDRLEN + GENL_HDRLEN + NLA_ALIGN(attribute.nla_len);
    if (len > sizeof bytes)
        return false;
    struct nlmsghdr head = {.nlmsg_len = (uint32_t)len,
                            .nlmsg_type = family,
                            .nlmsg_flags = NLM_F_REQUEST,
                            .nlmsg_seq = sequence};
    struct genlmsghdr generic = {.cmd = command, .version = version};
    uint8_t *at = bytes;
    memcpy(at, &head, sizeof head);
    at += NLMSG_HDRLEN;
    memcpy(at, &generic, sizeof generic);
    at += GENL_HDRLEN;
    memcpy(at, &attribute, sizeof attribute);
    at += NLA_HDRLEN;
    memcpy(at, value, value_len);
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    return sendto(fd, bytes, len, 0, (struct sockaddr *)&kernel, sizeof kernel) == (ssize_t)len;
}

/* The next datagram from the kernel itself (port 0); others could send to our socket too. */
static ssize_t hear(int fd, uint8_t *bytes, size_t cap) {
    for (int seen = 0; seen < ANSWERS_SEEN_MAX; seen++) {
        struct sockaddr_nl from = {0};
        socklen_t from_len = sizeof from;
        ssize_t n = recvfrom(fd, bytes, cap, MSG_TRUNC, (struct sockaddr *)&from, &from_len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (from_len != sizeof from || from.nl_pid != 0)
            continue;
        return (size_t)n > cap ? -EMSGSIZE : n;
    }
    return -EBADMSG;
}

static int ask_family(int fd, uint8_t *answer, uint16_t *family) {
    if (!ask(fd, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, 1, CTRL_ATTR_FAMILY_NAME, NETDEV_FAMILY,
             sizeof NETDEV_FAMILY))
        return -errno;
    for (int seen = 0; seen < ANSWERS_SEEN_MAX; seen++) {
        ssize_t n = hear(fd, answer, ANSWER_BYTES);
        int found = n < 0 ? (int)n : parse_family(answer, (size_t)n, 1, family);
        if (found != 0)
            return found;
    }
    return -EBADMSG;
}

static int ask_device(int fd, uint8_t *answer, uint16_t family, uint32_t ifindex, struct genl_device *out) {
    if (!ask(fd, family, NETDEV_CMD_DEV_GET, NETDEV_VERSION, 2, NETDEV_DEV_IFINDEX, &ifindex, sizeof ifindex))
        return -errno;
    for (int seen = 0; seen < ANSWERS_SEEN_MAX; seen++) {
        ssize_t n = hear(fd, answer, ANSWER_BYTES);
        int found = n < 0 ? (int)n : genl_parse_device(answer, (size_t)n, 2, family, out);
        if (found == 1 && out->ifindex != ifindex)
            return -EBADMSG;
        if (found != 0)
            return found;
    }
    return -EBADMSG;
}

bool genl_device_get(uint32_t ifindex, struct genl_device *out, struct guard_text *why) {
    uint8_t answer[ANSWER_BYTES];
    uint16_t family = 0;
    const char *what = "opening a netlink socket";
    int result = 0;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    if (fd < 0) {
        result = -errno;
    } else {
        struct timeval patience = {.tv_sec = ANSWER_PATIENCE_S};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        what = "asking for the kernel's netdev family";
        result = ask_family(fd, answer, &family);
        if (result == 1) {
            what = "asking for the interface's XDP features";
            result = ask_device(fd, answer, family, ifindex, out);
            if (result == -ENOENT)
                result = -EBADMSG; /* ENOENT is kept for the family that is not there. */
        }
        close(fd);
    }
    if (result == 1)
        return true;
    guard_text_clear(why);
    guard_text_add(why, "%s: %s", what, strerror(-result));
    errno = -result;
    return false;
}
