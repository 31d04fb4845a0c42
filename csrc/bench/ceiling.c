/* The no-protocol ceiling: what a datapath on this machine could carry if QUIC cost nothing.
 *
 * One process sends UDP trains (UDP_SEGMENT), one receives them (UDP_GRO), each meant for a core of its own
 * and, over a veth pair, a network namespace of its own. Every packet gets exactly one AEAD seal or open and
 * one header-protection mask (RFC 9001 sections 5.3 and 5.4), and carries its payload in full; there are no
 * frames, ACKs, timers or connections, and whatever the receiver is too slow for is lost and counted. The
 * receiver's figure of opened payload is what a transport over the same path is measured against.
 *
 *      ceiling --listen 2001:db8::2 --core 1 --json
 *      ceiling --connect 2001:db8::2 --core 0 --seconds 5
 *
 * --no-crypto   raw UDP: neither sealed nor masked
 * --uring       with --backend io_uring: options of ../io/uring_options.h, as no-files,zero-copy=16384
 * --backend     through an I/O backend (io_uring, socket) instead of the plain loop: what the backend itself
 * costs
 *
 * The loops are the simplest fast ones: one buffer sealed into and sent again and again, one set of receive
 * buffers opened in place, no call but sendmsg and recvmmsg, never asleep. */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>

#include "../crypto/crypto.h"
#include "../io/pages.h"
#include "bench.h"

/* A short header: flags, an 8-byte connection id, a 4-byte packet number. RFC 9000 section 17.3.1. */
#define CID_BYTES    8
#define PN_OFFSET    (1 + CID_BYTES)
#define PN_BYTES     4
#define HEADER_BYTES (PN_OFFSET + PN_BYTES)
#define MIN_PAYLOAD  (HEADER_BYTES + CRYPTO_SAMPLE_BYTES + CRYPTO_TAG_BYTES)
/* What is sealed comes from a buffer of this size, over and over: a train's worth, in the second-level cache.
 */
#define SOURCE_BYTES 65536
#define MAX_BATCH    32
/* Left out of the figure at the start: page faults, cold caches, the processor's clock coming up. */
#define WARM_UP_NS  (BENCH_NS / 5)
#define SAMPLE_EACH 16             /* Rounds between two whose processor time is taken. */
#define IDLE_NS     (BENCH_NS / 2) /* Silence that means the sender has stopped. */
#define START_NS    (30 * BENCH_NS)

struct options {
    const char *listen, *connect, *backend, *provider;
    uint16_t port;
    int core;
    uint32_t datagram_bytes; /* UDP payload of each packet. */
    uint32_t train;          /* Packets. */
    uint32_t batch;          /* Trains a recvmmsg. */
    uint32_t buffers;        /* The backend's receive buffers; 0 for its default. */
    double seconds;
    bool crypto, json;
    struct io_uring_options uring;
};

struct protection {
    const struct crypto_provider *provider;
    void *aead, *hp;
    uint8_t iv[CRYPTO_NONCE_BYTES];
};

/* What the receiver has seen since the warm-up ended. */
struct tally {
    uint64_t packets, bytes, trains, bad;
    uint32_t first_pn, last_pn;
    bool any;
};

static void *key_memory(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (p == NULL) {
        bench_fail("no memory");
    }
    return memset(p, 0, bytes);
}

/* Both sides use the same fixed keys: there is nothing to keep secret. */
static struct protection protection_open(const char *name) {
    static const uint8_t key[CRYPTO_MAX_KEY_BYTES] = {1, 2, 3}, hp_key[CRYPTO_MAX_KEY_BYTES] = {4, 5, 6};
    struct protection p = {.provider = crypto_provider_by_name(name), .iv = {7, 8, 9}};
    if (p.provider == NULL) {
        bench_fail("crypto provider %s: not built in, or this processor cannot run it", name);
    }
    p.aead = key_memory(p.provider->aead_bytes);
    p.hp = key_memory(p.provider->hp_bytes);
    if (!p.provider->aead_init(p.aead, CRYPTO_AES_128_GCM, key) ||
        !p.provider->hp_init(p.hp, CRYPTO_AES_128_GCM, hp_key)) {
        bench_fail("%s: no AES-128-GCM", p.provider->name);
    }
    return p;
}

static void nonce_of(const struct protection *p, uint32_t pn, uint8_t nonce[CRYPTO_NONCE_BYTES]) {
    uint32_t tail;
    memcpy(nonce, p->iv, CRYPTO_NONCE_BYTES);
    memcpy(&tail, nonce + 8, sizeof tail);
    tail ^= htonl(pn);
    memcpy(nonce + 8, &tail, sizeof tail);
}

static void mask_header(uint8_t *packet, const uint8_t mask[CRYPTO_MASK_BYTES]) {
    packet[0] ^= mask[0] & 0x1f;
    for (int i = 0; i < PN_BYTES; i++) {
        packet[PN_OFFSET + i] ^= mask[1 + i];
    }
}

/* Build `count` packets of `size` bytes at `out`. */
static void build_train(const struct protection *p, const uint8_t *source, uint8_t *out, uint32_t count,
                        uint32_t size, uint32_t pn) {
    const uint8_t *samples[CRYPTO_HP_BATCH] = {NULL};
    uint8_t masks[CRYPTO_HP_BATCH][CRYPTO_MASK_BYTES];
    const size_t payload = size - HEADER_BYTES - CRYPTO_TAG_BYTES;
    for (uint32_t i = 0; i < count; i++, pn++) {
        uint8_t *packet = out + (size_t)i * size;
        uint32_t wire_pn = htonl(pn);
        memset(packet, 0x43, PN_OFFSET); /* Short header, 4-byte packet number; the id does not matter. */
        memcpy(packet + PN_OFFSET, &wire_pn, sizeof wire_pn);
        samples[i] = packet + HEADER_BYTES;
        if (p != NULL) {
            uint8_t nonce[CRYPTO_NONCE_BYTES];
            nonce_of(p, pn, nonce);
            p->provider->seal(p->aead, nonce, packet, HEADER_BYTES, source + i * payload, payload,
                              packet + HEADER_BYTES);
        }
    }
    if (p != NULL) {
        p->provider->hp_mask(p->hp, samples, masks, count);
        for (uint32_t i = 0; i < count; i++) {
            mask_header(out + (size_t)i * size, masks[i]);
        }
    }
}

/* Open a train's packets in place and add them up. */
static void take_train(const struct protection *p, struct tally *t, uint8_t *data, uint32_t len,
                       uint32_t size) {
    const uint8_t *samples[CRYPTO_HP_BATCH] = {NULL};
    uint8_t masks[CRYPTO_HP_BATCH][CRYPTO_MASK_BYTES];
    t->trains++;
    while (len > 0) {
        uint32_t count = 0;
        for (uint32_t at = 0; at < len && count < CRYPTO_HP_BATCH; at += size, count++) {
            if (len - at < size || size < MIN_PAYLOAD) { /* Not ours: all of ours are of one size. */
                t->bad++;
                return;
            }
            samples[count] = data + at + HEADER_BYTES;
        }
        if (p != NULL) {
            p->provider->hp_mask(p->hp, samples, masks, count);
        }
        for (uint32_t i = 0; i < count; i++, data += size, len -= size) {
            uint32_t pn;
            size_t payload = size - HEADER_BYTES - CRYPTO_TAG_BYTES;
            if (p != NULL) {
                mask_header(data, masks[i]);
            }
            memcpy(&pn, data + PN_OFFSET, sizeof pn);
            pn = ntohl(pn);
            if (p != NULL) {
                uint8_t nonce[CRYPTO_NONCE_BYTES];
                nonce_of(p, pn, nonce);
                if (!p->provider->open(p->aead, nonce, data, HEADER_BYTES, data + HEADER_BYTES,
                                       payload + CRYPTO_TAG_BYTES, data + HEADER_BYTES)) {
                    t->bad++;
                    continue;
                }
            }
            t->first_pn = t->any ? t->first_pn : pn;
            t->last_pn = pn;
            t->any = true;
            t->packets++;
            t->bytes += payload;
        }
    }
}

static struct io *backend_open(const struct options *o, struct quic_addr bind) {
    const struct io_ops *ops = io_backend_by_name(o->backend);
    struct io_text why = {{0}};
    struct io_config config = {.bind = bind, .rx_buffers = o->buffers, .uring = o->uring};
    struct io *io = ops != NULL ? ops->open(&config, &why) : NULL;
    if (io == NULL) {
        bench_fail("backend %s: %s", o->backend, ops != NULL ? why.text : "unknown");
    }
    return io;
}

/* Trains through sendmsg until the time is up. Returns packets sent; failed calls are added to *errors. */
static uint64_t send_plain(const struct options *o, const struct protection *p, const uint8_t *source,
                           uint64_t *errors) {
    struct udp_socket s = bench_socket((struct quic_addr){0});
    struct quic_addr peer = bench_address(o->connect, o->port);
    struct sockaddr_in6 to = udp_sockaddr(&peer);
    struct pages pages;
    uint16_t segment = (uint16_t)o->datagram_bytes;
    _Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(sizeof segment)] = {0};
    if (connect(s.fd, (struct sockaddr *)&to, sizeof to) != 0 || !pages_map(&pages, IO_TRAIN_BYTES)) {
        bench_fail("connect: %s", strerror(errno));
    }
    struct iovec iov = {pages.base, (size_t)o->train * o->datagram_bytes};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    if (o->train > 1) {
        m.msg_control = control;
        m.msg_controllen = sizeof control;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(sizeof segment), .cmsg_level = SOL_UDP, .cmsg_type = UDP_SEGMENT};
        memcpy(CMSG_DATA(c), &segment, sizeof segment);
    }
    uint64_t packets = 0;
    int64_t end = bench_now_ns() + (int64_t)(o->seconds * (double)BENCH_NS);
    while (bench_now_ns() < end) {
        build_train(p, source, pages.base, o->train, o->datagram_bytes, (uint32_t)packets);
        if (sendmsg(s.fd, &m, MSG_DONTWAIT) < 0) {
            ++*errors;
        } else {
            packets += o->train;
        }
    }
    return packets;
}

static uint64_t send_backend(const struct options *o, const struct protection *p, const uint8_t *source,
                             uint64_t *errors) {
    struct io *io = backend_open(o, (struct quic_addr){0});
    struct quic_addr peer = bench_address(o->connect, o->port);
    struct io_stats st;
    uint32_t pn = 0;
    int64_t end = bench_now_ns() + (int64_t)(o->seconds * (double)BENCH_NS);
    while (bench_now_ns() < end) {
        /* What a worker sends between two looks at its receive queue. */
        for (uint32_t i = 0; i < o->batch; i++) {
            struct io_tx *tx = io->ops->tx_acquire(io);
            if (tx == NULL) {
                break;
            }
            uint32_t count = o->train < tx->max_segments ? o->train : tx->max_segments;
            build_train(p, source, tx->data, count, o->datagram_bytes, pn);
            pn += count;
            tx->len = count * o->datagram_bytes;
            tx->segment = (uint16_t)o->datagram_bytes;
            tx->peer = peer;
            io->ops->tx_commit(io, tx);
        }
        io->ops->flush(io);
    }
    io->ops->stats(io, &st);
    *errors = st.tx_errors;
    io->ops->close(io);
    return st.tx_packets;
}

/* Where the plain receiver's recvmmsg writes to. */
struct receiver {
    struct udp_socket socket;
    struct pages pages;
    struct mmsghdr messages[MAX_BATCH];
    struct iovec iov[MAX_BATCH];
    _Alignas(struct cmsghdr) uint8_t control[MAX_BATCH][128];
};

static uint32_t segment_of(struct msghdr *m, uint32_t len) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
            int value;
            memcpy(&value, CMSG_DATA(c), sizeof value);
            return value > 0 ? (uint32_t)value : len;
        }
    }
    return len;
}

static int receive_plain(struct receiver *r, uint32_t batch, const struct protection *p, struct tally *t) {
    for (uint32_t i = 0; i < batch; i++) {
        r->messages[i].msg_hdr = (struct msghdr){.msg_iov = &r->iov[i],
                                                 .msg_iovlen = 1,
                                                 .msg_control = r->control[i],
                                                 .msg_controllen = sizeof r->control[i]};
    }
    int n = recvmmsg(r->socket.fd, r->messages, batch, MSG_DONTWAIT, NULL);
    for (int i = 0; i < n; i++) {
        uint32_t len = r->messages[i].msg_len;
        take_train(p, t, r->iov[i].iov_base, len, segment_of(&r->messages[i].msg_hdr, len));
    }
    return n;
}

static int receive_backend(struct io *io, const struct protection *p, struct tally *t) {
    struct io_rx v[MAX_BATCH];
    int n = io->ops->rx(io, v, MAX_BATCH);
    for (int i = 0; i < n; i++) {
        take_train(p, t, v[i].data, v[i].len, v[i].segment);
        io->ops->rx_release(io, &v[i], 1);
    }
    return n;
}

static void report_receiver(const struct options *o, const struct protection *p, const struct tally *t,
                            double seconds, double cpu_ns_per_packet, uint64_t no_buffer) {
    uint64_t expected = t->any ? (uint64_t)(t->last_pn - t->first_pn) + 1 : 0;
    uint64_t lost = expected > t->packets ? expected - t->packets : 0;
    const char *format =
        "receiver, %s, crypto %s: %.3f Gbit/s of payload; %llu packets, %llu bytes, %llu lost, "
        "%llu bad, %llu times without a buffer, %.1f packets a train of %u bytes each, "
        "%.1f ns of processor a packet, %.3f s\n";
    if (o->json) {
        format = "{\"side\": \"receiver\", \"io\": \"%s\", \"crypto\": \"%s\", \"goodput_gbit_s\": %.3f, "
                 "\"packets\": %llu, \"bytes\": %llu, \"lost\": %llu, \"bad\": %llu, \"no_buffer\": %llu, "
                 "\"packets_per_train\": %.1f, \"datagram_bytes\": %u, \"cpu_ns_per_packet\": %.1f, "
                 "\"seconds\": %.3f}\n";
    }
    printf(format, o->backend != NULL ? o->backend : "plain", p != NULL ? p->provider->name : "none",
           seconds > 0 ? (double)t->bytes * 8 / seconds / 1e9 : 0, (unsigned long long)t->packets,
           (unsigned long long)t->bytes, (unsigned long long)lost, (unsigned long long)t->bad,
           (unsigned long long)no_buffer, t->trains != 0 ? (double)t->packets / (double)t->trains : 0,
           o->datagram_bytes, cpu_ns_per_packet, seconds);
}

static void run_receiver(const struct options *o, const struct protection *p) {
    struct quic_addr bind = bench_address(o->listen, o->port);
    static struct receiver r; /* Static for its size. */
    struct io *io = NULL;
    struct tally t = {0};
    if (o->backend != NULL) {
        io = backend_open(o, bind);
    } else {
        r.socket = bench_socket(bind);
        if (!pages_map(&r.pages, (size_t)MAX_BATCH * SOURCE_BYTES)) {
            bench_fail("no memory");
        }
        for (uint32_t i = 0; i < MAX_BATCH; i++) {
            r.iov[i] = (struct iovec){r.pages.base + (size_t)i * SOURCE_BYTES, SOURCE_BYTES};
        }
    }
    fprintf(stderr, "ready\n"); /* For the script: now start the sender. */

    int64_t now = bench_now_ns(), deadline = now + START_NS;
    int64_t first = 0, begin = 0, last = 0;
    int64_t sampled_ns =
        0; /* Processor time, so that neighbours do not blur it; sampled, for reading it costs. */
    uint64_t sampled_packets = 0, rounds = 0;
    while (now < deadline) {
        bool sample = begin != 0 && ++rounds % SAMPLE_EACH == 0;
        int64_t cpu_ns = sample ? bench_cpu_ns() : 0;
        uint64_t packets = t.packets;
        int n = io != NULL ? receive_backend(io, p, &t) : receive_plain(&r, o->batch, p, &t);
        now = bench_now_ns();
        if (n > 0) {
            if (sample) {
                sampled_ns += bench_cpu_ns() - cpu_ns;
                sampled_packets += t.packets - packets;
            }
            last = now;
            deadline = now + IDLE_NS;
            first = first == 0 ? now : first;
            if (begin == 0 && now - first >= WARM_UP_NS) {
                begin = now;
                t = (struct tally){0};
            }
        }
    }
    if (begin == 0) {
        bench_fail("nothing, or too little, arrived");
    }
    struct io_stats st = {0};
    if (io != NULL) {
        io->ops->stats(io, &st);
        io->ops->close(io);
    }
    double cpu_ns_per_packet = sampled_packets != 0 ? (double)sampled_ns / (double)sampled_packets : 0;
    report_receiver(o, p, &t, (double)(last - begin) / (double)BENCH_NS, cpu_ns_per_packet, st.rx_no_buffer);
}

static void run_sender(const struct options *o, const struct protection *p) {
    uint64_t errors = 0;
    uint8_t *source = calloc(1, SOURCE_BYTES);
    if (source == NULL) {
        bench_fail("no memory");
    }
    for (uint32_t i = 0; i < SOURCE_BYTES; i++) {
        source[i] = (uint8_t)i; /* Touched, and not all one zero page. */
    }
    int64_t start = bench_now_ns(), cpu_start = bench_cpu_ns();
    uint64_t packets =
        o->backend != NULL ? send_backend(o, p, source, &errors) : send_plain(o, p, source, &errors);
    double seconds = (double)(bench_now_ns() - start) / (double)BENCH_NS;
    int64_t cpu_ns = bench_cpu_ns() - cpu_start;
    double bytes = (double)packets * (o->datagram_bytes - HEADER_BYTES - CRYPTO_TAG_BYTES);
    const char *format =
        "sender, %s: %.3f Gbit/s of payload offered; %llu packets, %llu errors, trains of %u, "
        "%.1f ns of processor a packet, %.3f s\n";
    if (o->json) {
        format = "{\"side\": \"sender\", \"io\": \"%s\", \"offered_gbit_s\": %.3f, \"packets\": %llu, "
                 "\"errors\": %llu, \"train\": %u, \"cpu_ns_per_packet\": %.1f, \"seconds\": %.3f}\n";
    }
    printf(format, o->backend != NULL ? o->backend : "plain", bytes * 8 / seconds / 1e9,
           (unsigned long long)packets, (unsigned long long)errors, o->train,
           packets != 0 ? (double)cpu_ns / (double)packets : 0, seconds);
    free(source);
}

static struct options parse(int argc, char **argv) {
    enum {
        LISTEN = 1,
        CONNECT,
        PORT,
        CORE,
        DATAGRAM,
        TRAIN,
        BATCH,
        SECONDS,
        NO_CRYPTO,
        BACKEND,
        URING,
        BUFFERS,
        PROVIDER,
        JSON
    };
    static const struct option known[] = {{"listen", required_argument, NULL, LISTEN},
                                          {"connect", required_argument, NULL, CONNECT},
                                          {"port", required_argument, NULL, PORT},
                                          {"core", required_argument, NULL, CORE},
                                          {"datagram", required_argument, NULL, DATAGRAM},
                                          {"train", required_argument, NULL, TRAIN},
                                          {"batch", required_argument, NULL, BATCH},
                                          {"seconds", required_argument, NULL, SECONDS},
                                          {"no-crypto", no_argument, NULL, NO_CRYPTO},
                                          {"backend", required_argument, NULL, BACKEND},
                                          {"uring", required_argument, NULL, URING},
                                          {"buffers", required_argument, NULL, BUFFERS},
                                          {"provider", required_argument, NULL, PROVIDER},
                                          {"json", no_argument, NULL, JSON},
                                          {NULL, 0, NULL, 0}};
    /* 1452: MTU 1500 less the IPv6 and UDP headers. */
    struct options o = {
        .port = 9299, .core = -1, .datagram_bytes = 1452, .batch = 1, .seconds = 5, .crypto = true};
    o.provider = "auto";
    int c;
    while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (c) {
        case LISTEN:
            o.listen = optarg;
            break;
        case CONNECT:
            o.connect = optarg;
            break;
        case PORT:
            o.port = (uint16_t)bench_number("port", optarg, 1, 65535);
            break;
        case CORE:
            o.core = (int)bench_number("core", optarg, 0, 1023);
            break;
        case DATAGRAM:
            o.datagram_bytes = (uint32_t)bench_number("datagram", optarg, MIN_PAYLOAD, 65000);
            break;
        case TRAIN:
            o.train = (uint32_t)bench_number("train", optarg, 1, IO_TRAIN_PACKETS);
            break;
        case BATCH:
            o.batch = (uint32_t)bench_number("batch", optarg, 1, MAX_BATCH);
            break;
        case SECONDS:
            o.seconds = bench_seconds("seconds", optarg, 0.3, 600);
            break;
        case NO_CRYPTO:
            o.crypto = false;
            break;
        case BACKEND:
            o.backend = optarg;
            break;
        case URING:
            if (!io_uring_options_parse(optarg, &o.uring)) {
                bench_fail("--uring %s: see csrc/io/uring_options.h", optarg);
            }
            break;
        case BUFFERS:
            o.buffers = (uint32_t)bench_number("buffers", optarg, 1, 4096);
            break;
        case PROVIDER:
            o.provider = optarg;
            break;
        case JSON:
            o.json = true;
            break;
        default:
            exit(2);
        }
    }
    if ((o.listen == NULL) == (o.connect == NULL) || optind != argc) {
        bench_fail(
            "usage: ceiling (--listen ADDRESS | --connect ADDRESS) [--port N] [--core N] [--datagram BYTES] "
            "[--train PACKETS] [--batch TRAINS] [--seconds N] [--no-crypto] [--backend NAME] "
            "[--buffers N] [--provider NAME] [--json]");
    }
    /* As io_tx.cap of the UDP backends; longer trains are segmented in software. */
    uint32_t fit = (65535 - 40 - 8 - 14 - 8) / o.datagram_bytes;
    fit = fit < IO_TRAIN_PACKETS ? fit : IO_TRAIN_PACKETS;
    o.train = o.train == 0 || o.train > fit ? fit : o.train;
    return o;
}

int main(int argc, char **argv) {
    struct options o = parse(argc, argv);
    bench_pin(o.core);
    struct protection p;
    if (o.crypto) {
        p = protection_open(o.provider);
    }
    if (o.listen != NULL) {
        run_receiver(&o, o.crypto ? &p : NULL);
    } else {
        run_sender(&o, o.crypto ? &p : NULL);
    }
    if (o.crypto) {
        p.provider->aead_clear(p.aead);
        p.provider->hp_clear(p.hp);
        free(p.aead);
        free(p.hp);
    }
    return 0;
}
