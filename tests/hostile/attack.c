/* Link-layer floods: whole frames, with sources of its own making, at a rate, a known number of them. What
 * left is said on standard output (JSON, one line when sending begins and one at the end). packet(7).
 *
 *   kind        frames                                                       what is different in each
 *   initials    QUIC v1 Initials, right in all that is not protected         source, port, id
 *   hellos      a real client's first Initial, captured: it opens, and its   source, port
 *               ClientHello is good
 *   garbage     random bytes                                                 source, port
 *   replay      1-RTT packets of a transfer, captured: exact copies          nothing
 *   ipv4        UDP over IPv4                                                (256 of them)
 *   extensions  IPv6 with 8 to 12 extension headers, or with 4 that come     source, port
 *               to more than 256 bytes, before garbage to the port
 *
 * Sources are random /64 prefixes of 2001:db8::/32 (RFC 3849). The rate is kept in steps of a millisecond;
 * what could not be sent in time because we did not run is left out, not caught up with: a burst would
 * overflow the device's ring, which tests something else.
 *
 * veth: the receiving side's XDP program runs in our system call, on our core. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "garbage.h"

#define FRAMES       256  /* Made beforehand: 400 KiB, which the second-level cache holds. */
#define REPLAYED     64   /* Captured packets: few, so that each comes again while it is remembered. */
#define FRAME_BYTES  1536 /* Of MTU 1500, and a multiple of a cache line. */
#define BATCH        32u
#define BURST        128u /* Half of veth's ring (VETH_RING_SIZE 256). */
#define STEP_NS      1000000u
#define CAPTURE_S    10 /* Who has nothing to capture by then never will. */
#define ETHERNET     14u
#define IPV6         40u
#define IPV4         20u
#define UDP          8u
#define PAYLOAD_MAX  1452u
#define INITIAL_MIN  1200u
#define SHORT_MIN    29u  /* Id of eight bytes, longest packet number, sample (RFC 9001 section 5.4.2). */
#define OPTION_TYPE  0x1e /* RFC 4727: experiments; to be skipped by who does not know it. */
#define DESTINATION  60
#define PROTOCOL_UDP 17
#define GSO_UDP_L4   5 /* VIRTIO_NET_HDR_GSO_UDP_L4, Linux 6.2 */

enum kind { INITIALS, HELLOS, GARBAGE, REPLAY, IPV4_FLOOD, EXTENSIONS, KINDS };
static const char *const kind_names[KINDS] = {"initials", "hellos", "garbage",
                                              "replay",   "ipv4",   "extensions"};

struct options {
    enum kind kind;
    unsigned ifindex, capture_ifindex;
    struct in6_addr to;
    uint16_t port;
    uint8_t to_link[ETH_ALEN];
    uint64_t count, seed, pps;
    int core;
};

struct frame {
    uint8_t bytes[FRAME_BYTES];
    uint16_t len;
    uint16_t udp;  /* Offset of the UDP header; 0: nothing changes from copy to copy. */
    uint16_t dcid; /* Offset of eight bytes of connection id; 0: they stay. */
};

struct attack {
    struct options options;
    struct prng random;
    int fd;
    uint8_t link[ETH_ALEN];
    struct frame *frames;
    uint32_t frame_count;
    uint64_t sent, bytes, refused, left_out;
};

static volatile sig_atomic_t stopped;

static void stop(int number) {
    (void)number;
    stopped = 1;
}

static _Noreturn void fail(const char *what) {
    fprintf(stderr, "attack: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- frames ---- */

static void put16(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

/* Ones' complement sum of 16-bit words (RFC 1071), not yet folded. */
static uint32_t sum16(const uint8_t *p, size_t len, uint32_t sum) {
    for (; len > 1; p += 2, len -= 2)
        sum += (uint32_t)p[0] << 8 | p[1];
    return len ? sum + ((uint32_t)p[0] << 8) : sum;
}

static uint16_t fold(uint32_t sum) {
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* The UDP checksum of an IPv6 frame, over all of it. */
static void put_checksum(struct frame *f, size_t udp) {
    uint8_t *u = f->bytes + udp;
    size_t len = f->len - udp;
    put16(u + 6, 0);
    uint32_t sum = sum16(f->bytes + ETHERNET + 8, 32, (uint32_t)len + PROTOCOL_UDP);
    uint16_t folded = (uint16_t)~fold(sum16(u, len, sum));
    put16(u + 6, folded ? folded : 0xffff);
}

static void put_source(struct prng *r, uint8_t ip[16]) {
    static const uint8_t documentation[4] = {0x20, 0x01, 0x0d, 0xb8};
    memcpy(ip, documentation, 4);
    prng_fill(r, ip + 4, 12);
}

static size_t put_ethernet(const struct attack *a, uint8_t *p, uint16_t type) {
    memcpy(p, a->options.to_link, ETH_ALEN);
    memcpy(p + ETH_ALEN, a->link, ETH_ALEN);
    put16(p + 2 * ETH_ALEN, type);
    return ETHERNET;
}

/* From Ethernet up to the IPv6 header; `next` follows it, `extension_bytes` before UDP. */
static void put_ipv6(struct attack *a, struct frame *f, uint8_t next, size_t extension_bytes,
                     size_t payload) {
    uint8_t *ip = f->bytes + put_ethernet(a, f->bytes, ETH_P_IPV6);
    ip[0] = 0x60;
    put16(ip + 4, (uint32_t)(extension_bytes + UDP + payload));
    ip[6] = next;
    ip[7] = 64;
    put_source(&a->random, ip + 8);
    memcpy(ip + 24, &a->options.to, 16);
    f->udp = (uint16_t)(ETHERNET + IPV6 + extension_bytes);
    f->len = (uint16_t)(f->udp + UDP + payload);
    uint8_t *udp = f->bytes + f->udp;
    put16(udp, (uint32_t)prng_range(&a->random, 1024, 65535));
    put16(udp + 2, a->options.port);
    put16(udp + 4, (uint32_t)(UDP + payload));
}

static void make_garbage(struct attack *a, struct frame *f, const char *what) {
    const struct garbage_kind *k = garbage_by_name(what);
    size_t most = k->max_bytes < PAYLOAD_MAX ? k->max_bytes : PAYLOAD_MAX;
    size_t payload = (size_t)prng_range(&a->random, k->min_bytes, most);
    put_ipv6(a, f, PROTOCOL_UDP, 0, payload);
    k->build(&a->random, f->bytes + f->udp + UDP, payload);
    put_checksum(f, f->udp);
}

static void make_initial(struct attack *a, struct frame *f) {
    make_garbage(a, f, "initial");
    f->dcid = (uint16_t)(f->udp + UDP + 6); /* Behind first byte, version and length: 8 bytes or more. */
}

/* Destination options headers, each with one option that is skipped. */
static void make_extensions(struct attack *a, struct frame *f) {
    bool many = prng_below(&a->random, 2);
    size_t headers = many ? (size_t)prng_range(&a->random, 8, 12) : 4;
    size_t each = many ? 8 : (size_t)prng_range(&a->random, 9, 16) * 8, payload = 64;
    put_ipv6(a, f, DESTINATION, headers * each, payload);
    for (size_t i = 0; i < headers; i++) {
        uint8_t *h = f->bytes + ETHERNET + IPV6 + i * each;
        memset(h, 0, each);
        h[0] = i + 1 < headers ? DESTINATION : PROTOCOL_UDP;
        h[1] = (uint8_t)(each / 8 - 1);
        h[2] = OPTION_TYPE;
        h[3] = (uint8_t)(each - 4);
    }
    prng_fill(&a->random, f->bytes + f->udp + UDP, payload);
    put_checksum(f, f->udp);
}

static void make_ipv4(struct attack *a, struct frame *f) {
    static const uint8_t to[4] = {192, 0, 2, 1}; /* RFC 5737: documentation. */
    uint8_t *ip = f->bytes + put_ethernet(a, f->bytes, ETH_P_IP);
    size_t payload = (size_t)prng_range(&a->random, 1, PAYLOAD_MAX);
    f->len = (uint16_t)(ETHERNET + IPV4 + UDP + payload);
    ip[0] = 0x45;
    put16(ip + 2, (uint32_t)(f->len - ETHERNET));
    ip[8] = 64;
    ip[9] = PROTOCOL_UDP;
    put16(ip + 12, 198 << 8 | 18); /* RFC 2544: benchmarks. */
    prng_fill(&a->random, ip + 14, 2);
    memcpy(ip + 16, to, 4);
    put16(ip + 10, (uint16_t)~fold(sum16(ip, IPV4, 0)));
    uint8_t *udp = ip + IPV4;
    put16(udp, (uint32_t)prng_range(&a->random, 1024, 65535));
    put16(udp + 2, a->options.port);
    put16(udp + 4, (uint32_t)(UDP + payload)); /* No checksum: IPv4 permits that. */
    prng_fill(&a->random, udp + UDP, payload);
}

/* New words in place of old ones, and the checksum with them (RFC 1624). `at` is at an even distance from the
 * UDP header; `sum` is the checksum's complement so far. */
static uint32_t renew(struct prng *r, uint8_t *at, size_t len, uint32_t sum) {
    sum += 0xffff * (uint32_t)(len / 2) - sum16(at, len, 0);
    prng_fill(r, at, len);
    return sum16(at, len, sum);
}

static void vary(struct attack *a, struct frame *f) {
    if (f->udp == 0)
        return;
    uint8_t *udp = f->bytes + f->udp;
    uint32_t sum = (uint16_t) ~((uint32_t)udp[6] << 8 | udp[7]);
    sum = renew(&a->random, f->bytes + ETHERNET + 8 + 4, 12, sum); /* Behind 2001:db8. */
    sum = renew(&a->random, udp, 2, sum);
    if (f->dcid)
        sum = renew(&a->random, f->bytes + f->dcid, 8, sum);
    uint16_t folded = (uint16_t)~fold(sum);
    put16(udp + 6, folded ? folded : 0xffff);
}

/* ---- capturing ---- */

static bool is_wanted(const struct options *o, const uint8_t *q, size_t len) {
    if (len < SHORT_MIN)
        return false;
    return o->kind == HELLOS ? (q[0] & 0xf0) == 0xc0 && len >= INITIAL_MIN : (q[0] & 0x80) == 0;
}

/* One packet of what was captured, with our own link header and its checksum finished. */
static void keep(struct attack *a, const uint8_t *ip, const uint8_t *payload, size_t len) {
    struct frame *f = &a->frames[a->frame_count++];
    put_ethernet(a, f->bytes, ETH_P_IPV6);
    memcpy(f->bytes + ETHERNET, ip, IPV6 + UDP);
    put16(f->bytes + ETHERNET + 4, (uint32_t)(UDP + len));
    put16(f->bytes + ETHERNET + IPV6 + 4, (uint32_t)(UDP + len));
    memcpy(f->bytes + ETHERNET + IPV6 + UDP, payload, len);
    f->len = (uint16_t)(ETHERNET + IPV6 + UDP + len);
    if (a->options.kind == HELLOS) {
        f->udp = ETHERNET + IPV6;
        put_source(&a->random, f->bytes + ETHERNET + 8);
    }
    put_checksum(f, ETHERNET + IPV6);
}

/* Only UDP over IPv6 with an Initial of version 1, or with a short header, in front: a transfer's packets by
 * the thousand would push the one Initial out of the socket's buffer. */
static void filter(int fd, enum kind kind) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, ETHERNET + 6),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PROTOCOL_UDP, 0, 4),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, ETHERNET + IPV6 + UDP),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, kind == HELLOS ? 0xf0 : 0x80),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kind == HELLOS ? 0xc0 : 0, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0)
        fail("filter");
}

/* `wanted` packets that go from here to the node. What leaves as one segmented whole is taken apart. */
static void capture(struct attack *a, uint32_t wanted) {
    static uint8_t buffer[sizeof(struct virtio_net_hdr) + 65536 + ETHERNET];
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_ll at = {.sll_family = AF_PACKET,
                             .sll_protocol = htons(ETH_P_ALL), /* The only tap that sees what leaves. */
                             .sll_ifindex = (int)a->options.capture_ifindex};
    struct timeval patience = {.tv_sec = CAPTURE_S};
    if (fd < 0)
        fail("capture");
    filter(fd, a->options.kind);
    if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0 ||
        bind(fd, (struct sockaddr *)&at, sizeof at) != 0)
        fail("capture");
    printf("{\"event\": \"capturing\"}\n");
    fflush(stdout);
    while (a->frame_count < wanted && !stopped) {
        struct sockaddr_ll from;
        socklen_t from_len = sizeof from;
        ssize_t n = recvfrom(fd, buffer, sizeof buffer, 0, (struct sockaddr *)&from, &from_len);
        if (n < 0)
            fail("nothing of that kind to capture");
        struct virtio_net_hdr head;
        const uint8_t *ip = buffer + sizeof head + ETHERNET, *udp = ip + IPV6, *payload = udp + UDP;
        size_t len = (size_t)n;
        if (from.sll_pkttype != PACKET_OUTGOING || len < sizeof head + ETHERNET + IPV6 + UDP)
            continue;
        memcpy(&head, buffer, sizeof head);
        len -= sizeof head + ETHERNET + IPV6 + UDP;
        if (ip[0] >> 4 != 6 || ip[6] != PROTOCOL_UDP || memcmp(ip + 24, &a->options.to, 16) != 0 ||
            ((unsigned)udp[2] << 8 | udp[3]) != a->options.port)
            continue;
        size_t segment = head.gso_type == GSO_UDP_L4 ? head.gso_size : len;
        for (size_t take; len > 0 && a->frame_count < wanted; payload += take, len -= take) {
            take = segment < len ? segment : len;
            if (take <= PAYLOAD_MAX && is_wanted(&a->options, payload, take))
                keep(a, ip, payload, take);
        }
    }
    close(fd);
}

/* ---- sending ---- */

static void send_some(struct attack *a, unsigned n) {
    struct mmsghdr headers[BATCH] = {0};
    struct iovec iov[BATCH];
    for (unsigned i = 0; i < n; i++) {
        struct frame *f = &a->frames[(a->sent + a->refused + i) % a->frame_count];
        vary(a, f);
        iov[i] = (struct iovec){f->bytes, f->len};
        headers[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1};
    }
    for (unsigned done = 0; done < n;) {
        int sent = sendmmsg(a->fd, headers + done, n - done, 0);
        for (int i = 0; i < sent; i++)
            a->bytes += iov[done + (unsigned)i].iov_len;
        if (sent > 0) {
            a->sent += (unsigned)sent;
            done += (unsigned)sent;
        } else if (errno == ENOBUFS) {
            a->refused++; /* Did not leave, and does not come again. */
            done++;
        } else if (errno != EINTR) {
            fail("sendmmsg");
        }
    }
}

static void run(struct attack *a) {
    printf("{\"event\": \"sending\"}\n");
    fflush(stdout);
    const uint64_t begin = now_ns();
    uint64_t start = begin, gone = 0; /* Since `start`: shifted by what is left out. */
    while (!stopped && a->sent + a->refused < a->options.count) {
        uint64_t due = (now_ns() - start) * a->options.pps / 1000000000u;
        if (due > gone + BURST) {
            a->left_out += due - gone - BURST;
            gone = due - BURST;
        }
        uint64_t left = a->options.count - a->sent - a->refused;
        while (gone < due && left > 0) {
            uint64_t n = due - gone < left ? due - gone : left;
            n = n < BATCH ? n : BATCH;
            send_some(a, (unsigned)n);
            gone += n;
            left -= n;
        }
        nanosleep(&(struct timespec){.tv_nsec = STEP_NS}, NULL);
    }
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("{\"event\": \"sent\", \"kind\": \"%s\", \"sent\": %llu, \"bytes\": %llu, \"refused\": %llu, "
           "\"left_out\": %llu, \"seconds\": %.3f, \"cpu_seconds\": %.3f}\n",
           kind_names[a->options.kind], (unsigned long long)a->sent, (unsigned long long)a->bytes,
           (unsigned long long)a->refused, (unsigned long long)a->left_out, (double)(now_ns() - begin) / 1e9,
           (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
               (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
}

static void open_socket(struct attack *a) {
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_ifindex = (int)a->options.ifindex};
    struct ifreq r = {0};
    int one = 1;
    /* Protocol 0: receives nothing. No queueing discipline: what the device refuses is told at once. */
    a->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (a->fd < 0 || if_indextoname(a->options.ifindex, r.ifr_name) == NULL ||
        ioctl(a->fd, SIOCGIFHWADDR, &r) != 0 ||
        setsockopt(a->fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one) != 0 ||
        bind(a->fd, (struct sockaddr *)&at, sizeof at) != 0)
        fail("interface");
    memcpy(a->link, r.ifr_hwaddr.sa_data, ETH_ALEN);
}

static void make_frames(struct attack *a) {
    if (a->options.kind == REPLAY || a->options.kind == HELLOS) {
        capture(a, a->options.kind == REPLAY ? REPLAYED : 1);
        /* What varies needs a frame of its own for each message of a batch. */
        for (uint32_t i = a->frame_count; a->options.kind == HELLOS && i > 0 && i < FRAMES; i++)
            a->frames[a->frame_count++] = a->frames[0];
        return;
    }
    for (; a->frame_count < FRAMES; a->frame_count++) {
        struct frame *f = &a->frames[a->frame_count];
        switch (a->options.kind) {
        case INITIALS:
            make_initial(a, f);
            break;
        case IPV4_FLOOD:
            make_ipv4(a, f);
            break;
        case EXTENSIONS:
            make_extensions(a, f);
            break;
        default:
            make_garbage(a, f, "random");
        }
    }
}

/* ---- options ---- */

static _Noreturn void usage(void) {
    fprintf(stderr, "attack --interface NAME --to ADDRESS --port PORT --to-link MAC --kind KIND\n"
                    "       [--pps 10000] [--count 10000] [--seed 1] [--core N] [--capture INTERFACE]\n"
                    "SIGTERM ends it early. Kinds:");
    for (int i = 0; i < KINDS; i++)
        fprintf(stderr, " %s", kind_names[i]);
    fputc('\n', stderr);
    exit(2);
}

static uint64_t number(const char *text, uint64_t most) {
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || n > most)
        usage();
    return n;
}

static void parse_link(const char *text, uint8_t link[ETH_ALEN]) {
    unsigned v[ETH_ALEN];
    if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5]) != ETH_ALEN)
        usage();
    for (int i = 0; i < ETH_ALEN; i++)
        link[i] = (uint8_t)v[i];
}

static struct options parse(int argc, char **argv) {
    static const struct option names[] = {{"interface", required_argument, NULL, 'i'},
                                          {"capture", required_argument, NULL, 'c'},
                                          {"to", required_argument, NULL, 't'},
                                          {"port", required_argument, NULL, 'p'},
                                          {"to-link", required_argument, NULL, 'l'},
                                          {"kind", required_argument, NULL, 'k'},
                                          {"pps", required_argument, NULL, 'r'},
                                          {"count", required_argument, NULL, 'n'},
                                          {"seed", required_argument, NULL, 's'},
                                          {"core", required_argument, NULL, 'o'},
                                          {NULL, 0, NULL, 0}};
    struct options o = {.kind = KINDS, .count = 10000, .pps = 10000, .seed = 1, .core = -1};
    bool have_address = false, have_link = false;
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (c) {
        case 'i':
            o.ifindex = if_nametoindex(optarg);
            break;
        case 'c':
            o.capture_ifindex = if_nametoindex(optarg);
            break;
        case 't':
            have_address = inet_pton(AF_INET6, optarg, &o.to) == 1;
            break;
        case 'p':
            o.port = (uint16_t)number(optarg, 65535);
            break;
        case 'l':
            parse_link(optarg, o.to_link);
            have_link = true;
            break;
        case 'k':
            for (o.kind = 0; o.kind < KINDS && strcmp(optarg, kind_names[o.kind]) != 0; o.kind++) {
            }
            break;
        case 'r':
            o.pps = number(optarg, 10000000);
            break;
        case 'n':
            o.count = number(optarg, UINT64_MAX);
            break;
        case 's':
            o.seed = number(optarg, UINT64_MAX);
            break;
        case 'o':
            o.core = (int)number(optarg, CPU_SETSIZE - 1);
            break;
        default:
            usage();
        }
    }
    if (!o.ifindex || !have_address || !have_link || !o.port || !o.pps || o.kind == KINDS || optind != argc)
        usage();
    if (!o.capture_ifindex)
        o.capture_ifindex = o.ifindex;
    return o;
}

int main(int argc, char **argv) {
    static struct attack a; /* Static for its size; zero. */
    a.options = parse(argc, argv);
    prng_seed(&a.random, a.options.seed);
    struct sigaction on_stop = {.sa_handler = stop}; /* No SA_RESTART: a capture that waits ends too. */
    sigaction(SIGTERM, &on_stop, NULL);
    sigaction(SIGINT, &on_stop, NULL);
    if (a.options.core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)a.options.core, &set);
        if (sched_setaffinity(0, sizeof set, &set) != 0)
            fail("core");
    }
    a.frames = aligned_alloc(64, (sizeof(struct frame) + 63) / 64 * 64 * FRAMES);
    if (a.frames == NULL)
        fail("memory");
    memset(a.frames, 0, sizeof(struct frame) * FRAMES);
    open_socket(&a);
    make_frames(&a);
    run(&a);
    return 0;
}
