/* Sends garbage at a node as fast as it can: a bounded, seeded number of datagrams from several source ports,
 * in UDP_SEGMENT trains and single, and says on standard output (JSON) how many of each kind left the
 * machine. udp(7), ipv6(7), sendmmsg(2).
 *
 * The count is exact: IPV6_RECVERR makes the kernel report (ENOBUFS) a datagram that the device refused,
 * which is then sent again and not counted twice. What the node answers is read and counted, so that its own
 * figures have a witness. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "garbage.h"

#define BATCH         16 /* Messages a sendmmsg: 1 MiB of garbage, what the second-level cache holds. */
#define MAX_SOURCES   64
#define MAX_TRAIN     64    /* UDP_MAX_SEGMENTS of kernels before 6.9. */
#define TRAIN_BYTES   65000 /* One skb, its headers included, holds 65,535. */
#define MESSAGE_BYTES 65536
#define KINDS         64
#define QUIET_MS      300 /* No answer for so long: there are no more. Answers take microseconds. */
/* The node is gone when every send fails: a refused datagram is not tried for ever. */
#define MAX_FAILURES 1000000u

struct options {
    struct sockaddr_in6 to;
    uint64_t count, seed;
    unsigned sources, train;
    const struct garbage_kind *only; /* NULL: the mix. */
    bool progress;
};

struct message {
    uint8_t *data;
    size_t len;
    uint16_t segment;
    uint32_t datagrams;
    const struct garbage_kind *kind;
};

struct flood {
    struct options options;
    struct prng random;
    int sockets[MAX_SOURCES];
    uint8_t *memory;
    struct message messages[BATCH];
    uint64_t sent[KINDS], datagrams, bytes, trains, refusals, failures;
    uint64_t negotiations, resets, others, answer_bytes;
};

static _Noreturn void fail(const char *what) {
    fprintf(stderr, "flood: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_seconds(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int open_source(const struct sockaddr_in6 *to) {
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int one = 1;
    if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_RECVERR, &one, sizeof one) != 0 ||
        connect(fd, (const struct sockaddr *)to, sizeof *to) != 0)
        fail("socket");
    return fd;
}

/* One message: a train of datagrams of one kind and size (the last may be shorter), or a single one. */
static void compose(struct flood *f, struct message *m, uint64_t most) {
    const struct garbage_kind *k = f->options.only ? f->options.only : garbage_draw(&f->random);
    size_t segment = (size_t)prng_range(&f->random, k->min_bytes, k->max_bytes);
    uint64_t limit = segment == 0 || segment > TRAIN_BYTES / 2 ? 1 : TRAIN_BYTES / segment;
    limit = limit < f->options.train ? limit : f->options.train;
    limit = limit < most ? limit : most;
    uint32_t n = (uint32_t)prng_range(&f->random, 1, limit);
    m->kind = k;
    m->segment = (uint16_t)segment;
    m->datagrams = n;
    m->len = 0;
    for (uint32_t i = 0; i < n; i++) {
        size_t len = i + 1 < n ? segment : (size_t)prng_range(&f->random, k->min_bytes, segment);
        k->build(&f->random, m->data + m->len, len);
        m->len += len;
    }
}

static void count_sent(struct flood *f, const struct message *m) {
    f->sent[m->kind - garbage_kinds] += m->datagrams;
    f->datagrams += m->datagrams;
    f->bytes += m->len;
    f->trains += m->datagrams > 1;
}

static void send_batch(struct flood *f, int fd, unsigned n) {
    struct mmsghdr headers[BATCH];
    struct iovec iov[BATCH];
    union {
        uint8_t bytes[CMSG_SPACE(sizeof(uint16_t))];
        struct cmsghdr align;
    } control[BATCH];
    for (unsigned i = 0; i < n; i++) {
        const struct message *m = &f->messages[i];
        iov[i] = (struct iovec){m->data, m->len};
        headers[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1};
        if (m->datagrams > 1) {
            headers[i].msg_hdr.msg_control = control[i].bytes;
            headers[i].msg_hdr.msg_controllen = sizeof control[i].bytes;
            struct cmsghdr *c = CMSG_FIRSTHDR(&headers[i].msg_hdr);
            c->cmsg_level = SOL_UDP;
            c->cmsg_type = UDP_SEGMENT;
            c->cmsg_len = CMSG_LEN(sizeof(uint16_t));
            memcpy(CMSG_DATA(c), &m->segment, sizeof m->segment);
        }
    }
    for (unsigned done = 0; done < n;) {
        int sent = sendmmsg(fd, headers + done, n - done, 0);
        for (int i = 0; i < sent; i++)
            count_sent(f, &f->messages[done++]);
        if (sent >= 0 || errno == EINTR)
            continue;
        if (errno != ENOBUFS && errno != ECONNREFUSED)
            fail("sendmmsg");
        f->refusals += errno == ENOBUFS;
        if (++f->failures > MAX_FAILURES)
            fail("the device or the node takes nothing any more");
        sched_yield(); /* Whoever empties the device's queue may need this core. */
    }
}

/* RFC 9000 sections 17.2.1 and 10.3: what a node says to strangers. */
static void read_answers(struct flood *f, int fd) {
    uint8_t answer[2048];
    ssize_t n;
    while ((n = recv(fd, answer, sizeof answer, MSG_DONTWAIT)) > 0) {
        static const uint8_t zero[4];
        bool is_long = (answer[0] & 0x80) != 0;
        if (is_long && n >= 7 && memcmp(answer + 1, zero, 4) == 0)
            f->negotiations++;
        else if (!is_long)
            f->resets++;
        else
            f->others++;
        f->answer_bytes += (uint64_t)n;
    }
}

static void read_last_answers(struct flood *f) {
    struct pollfd fds[MAX_SOURCES];
    for (unsigned i = 0; i < f->options.sources; i++)
        fds[i] = (struct pollfd){.fd = f->sockets[i], .events = POLLIN};
    while (poll(fds, f->options.sources, QUIET_MS) > 0) {
        for (unsigned i = 0; i < f->options.sources; i++) {
            if (fds[i].revents & POLLERR) { /* Take the error, or poll reports it for ever. */
                int error;
                socklen_t len = sizeof error;
                getsockopt(fds[i].fd, SOL_SOCKET, SO_ERROR, &error, &len);
                uint8_t drained[1];
                while (recv(fds[i].fd, drained, sizeof drained, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0) {
                }
            }
            read_answers(f, fds[i].fd);
        }
    }
}

static void run(struct flood *f) {
    double begin = now_seconds(), next = begin + 1;
    while (f->datagrams < f->options.count) {
        uint64_t left = f->options.count - f->datagrams;
        unsigned n = 0;
        for (; n < BATCH && left > 0; n++) {
            compose(f, &f->messages[n], left);
            left -= f->messages[n].datagrams;
        }
        int fd = f->sockets[prng_below(&f->random, f->options.sources)];
        send_batch(f, fd, n);
        read_answers(f, fd);
        double now = now_seconds();
        if (f->options.progress && now >= next) {
            fprintf(stderr, "flood: %llu of %llu datagrams, %.0f/s\n", (unsigned long long)f->datagrams,
                    (unsigned long long)f->options.count, (double)f->datagrams / (now - begin));
            next = now + 1;
        }
    }
    double seconds = now_seconds() - begin;
    read_last_answers(f);
    printf("{\"seed\": %llu, \"datagrams\": %llu, \"bytes\": %llu, \"trains\": %llu, \"refusals\": %llu, "
           "\"seconds\": %.3f, \"answers\": {\"version_negotiation\": %llu, \"stateless_reset\": %llu, "
           "\"other\": %llu, \"bytes\": %llu}, \"sent\": {",
           (unsigned long long)f->options.seed, (unsigned long long)f->datagrams,
           (unsigned long long)f->bytes, (unsigned long long)f->trains, (unsigned long long)f->refusals,
           seconds, (unsigned long long)f->negotiations, (unsigned long long)f->resets,
           (unsigned long long)f->others, (unsigned long long)f->answer_bytes);
    for (size_t i = 0; i < garbage_kind_count; i++)
        printf("%s\"%s\": %llu", i == 0 ? "" : ", ", garbage_kinds[i].name, (unsigned long long)f->sent[i]);
    printf("}}\n");
}

static _Noreturn void usage(void) {
    fprintf(stderr, "flood --to ADDRESS --port PORT [--count 200000] [--seed 1] [--sources 8] [--train 1]\n"
                    "      [--kind NAME] [--progress]\n"
                    "--train: most datagrams a UDP_SEGMENT train; 1: none. --kind: only this one; kinds:");
    for (size_t i = 0; i < garbage_kind_count; i++)
        fprintf(stderr, " %s", garbage_kinds[i].name);
    fputc('\n', stderr);
    exit(2);
}

static uint64_t number(const char *text, uint64_t least, uint64_t most) {
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || n < least || n > most)
        usage();
    return n;
}

static struct options parse(int argc, char **argv) {
    static const struct option names[] = {{"to", required_argument, NULL, 't'},
                                          {"port", required_argument, NULL, 'p'},
                                          {"count", required_argument, NULL, 'n'},
                                          {"seed", required_argument, NULL, 's'},
                                          {"sources", required_argument, NULL, 'o'},
                                          {"train", required_argument, NULL, 'r'},
                                          {"kind", required_argument, NULL, 'k'},
                                          {"progress", no_argument, NULL, 'v'},
                                          {NULL, 0, NULL, 0}};
    struct options o = {.to.sin6_family = AF_INET6, .count = 200000, .seed = 1, .sources = 8, .train = 1};
    bool have_address = false;
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (c) {
        case 't':
            have_address = inet_pton(AF_INET6, optarg, &o.to.sin6_addr) == 1;
            break;
        case 'p':
            o.to.sin6_port = htons((uint16_t)number(optarg, 1, 65535));
            break;
        case 'n':
            o.count = number(optarg, 1, UINT64_MAX);
            break;
        case 's':
            o.seed = number(optarg, 0, UINT64_MAX);
            break;
        case 'o':
            o.sources = (unsigned)number(optarg, 1, MAX_SOURCES);
            break;
        case 'r':
            o.train = (unsigned)number(optarg, 1, MAX_TRAIN);
            break;
        case 'k':
            if ((o.only = garbage_by_name(optarg)) == NULL)
                usage();
            break;
        case 'v':
            o.progress = true;
            break;
        default:
            usage();
        }
    }
    if (!have_address || o.to.sin6_port == 0 || optind != argc)
        usage();
    return o;
}

int main(int argc, char **argv) {
    static struct flood f; /* Static for its size; zero. */
    f.options = parse(argc, argv);
    prng_seed(&f.random, f.options.seed);
    f.memory = malloc((size_t)BATCH * MESSAGE_BYTES);
    if (f.memory == NULL || garbage_kind_count > KINDS)
        fail("memory");
    for (unsigned i = 0; i < BATCH; i++)
        f.messages[i].data = f.memory + (size_t)i * MESSAGE_BYTES;
    for (unsigned i = 0; i < f.options.sources; i++)
        f.sockets[i] = open_source(&f.options.to);
    run(&f);
    return 0;
}
