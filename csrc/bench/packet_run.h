/* What the two loops of `stoq bench packets` (xskloop.c: raw AF_XDP; packets.c: a backend) share, so that
 * they differ in nothing but the path measured: command line, payload, when counting begins and ends, report.
 *
 *      role       does                                                     ends
 *      sink       counts what arrives                                      when nothing has come for half a
 * second generate   sends as fast as it can                                  after --seconds answer     sends
 * back what comes                                    on a payload of PACKET_END ping       sends, spins until
 * it is back, takes the time            after --count round trips
 *
 * A payload begins with a sequence number and its complement, both 8 bytes. Their Internet checksum (RFC
 * 1071) is always the same, so that the raw loop can number its frames and yet prepare the UDP checksum once.
 */
#ifndef STOQ_BENCH_PACKET_RUN_H
#define STOQ_BENCH_PACKET_RUN_H

#include <string.h>

#include "bench.h"

#define PACKET_MIN_BYTES 16   /* Number and complement. */
#define PACKET_MAX_BYTES 3720 /* A frame of 4096 less the kernel's XDP headroom of 256 and the headers. */
#define PACKET_END       UINT64_MAX
#define PACKET_MAX_BATCH 1024

struct packet_options {
    enum packet_role { PACKET_SINK, PACKET_GENERATE, PACKET_ANSWER, PACKET_PING } role;
    const char *backend; /* packets.c only. */
    uint32_t ifindex, queue;
    struct quic_addr local, peer; /* Same port on both sides. */
    uint8_t link[6], peer_link[6];
    uint32_t bytes;        /* UDP payload. */
    uint32_t batch;        /* Packets between two system calls at most. */
    uint32_t frames;       /* RX frames and TX frames, each; a power of two. */
    uint32_t busy_budget;  /* Preferred busy polling with this budget; 0: none. */
    uint32_t tx_budget;    /* Raw loop: XDP_MAX_TX_SKB_BUDGET; 0: the whole ring, as the backend. */
    uint32_t socket_bytes; /* Send buffer; 0: enough for all frames. */
    uint32_t count;        /* Round trips. */
    int core;
    bool sleep;          /* A sink sleeps while nothing comes, instead of spinning. */
    bool no_tx_checksum; /* packets.c: no checksum offload. */
    double seconds;
};

/* Ends the program on a mistake and pins to the core. */
struct packet_options packet_options(int argc, char **argv, bool backend);

/* What a sink has seen since the warm-up ended. */
struct packet_tally {
    uint64_t packets, bad;
    uint64_t first, next; /* Sequence numbers. */
    uint64_t idle;        /* Rounds without a packet. */
    bool sleep;           /* The rounds themselves sleep. */
    int64_t first_ns, begin_ns, last_ns, deadline_ns;
};

static inline void packet_write(uint8_t *payload, uint64_t sequence) {
    uint64_t both[2] = {sequence, ~sequence};
    memcpy(payload, both, sizeof both);
}

/* Into the tally. */
static inline void packet_read(struct packet_tally *t, const uint8_t *payload, uint32_t bytes,
                               uint32_t want) {
    uint64_t sequence, complement;
    if (bytes != want) {
        t->bad++;
        return;
    }
    memcpy(&sequence, payload, sizeof sequence);
    memcpy(&complement, payload + sizeof sequence, sizeof complement);
    if (sequence != ~complement) {
        t->bad++;
        return;
    }
    if (t->packets++ == 0) {
        t->first = sequence;
    }
    t->next = sequence + 1;
}

/* A sink's round is over: `n` packets came. False: it is time to end. */
bool packet_tally_round(struct packet_tally *t, uint32_t n);

/* Further figures for the report: names and values; ends with a NULL name. */
struct packet_figure {
    const char *name;
    uint64_t value;
};

void packet_report_sink(const struct packet_options *o, const char *io, const struct packet_tally *t,
                        const struct packet_figure *more);
/* When a generator began. */
struct packet_start {
    int64_t ns, cpu_ns;
};

struct packet_start packet_start(void);
/* Reports packets a second, and processor time a packet: where a hypervisor gives the core to others, the
 * second still tells what a packet costs. The receiving side's share that the kernel does on this core is in
 * it. */
void packet_report_generate(const struct packet_options *o, const char *io, uint64_t packets,
                            struct packet_start start, const struct packet_figure *more);
void packet_report_ping(const struct packet_options *o, const char *io, uint32_t *times_ns, uint32_t lost,
                        const struct packet_figure *more);

#endif
