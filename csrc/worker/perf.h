/* The `perf` application protocol (draft-banks-quic-performance-00), both ends in C: what benchmarks measure
 * is the datapath, not Python.
 *
 *      client                                                     server
 *        stream ── 8 bytes: N, big endian ── upload … FIN ──▶       reads N, throws the upload away
 *               ◀── N bytes … FIN ──────────────────────────        starts after the 8 bytes
 *
 * The server's FIN waits for the client's: a finished response says that the upload arrived.
 *
 * Payload is never copied on the way in or out of a stream: what is sent is one chunk of the receive pool,
 * referenced as often as needed; what is received is counted and given back. Streams that still have bytes to
 * give to the engine stand in one ring a worker, and a turn that did something tops up the send buffers of
 * the next few of them.
 *
 * Owner: the worker's word for a connection (struct worker_conn) has one struct perf; streams hang in its
 * map. All of it is in the worker's arena.
 */
#ifndef STOQ_WORKER_PERF_H
#define STOQ_WORKER_PERF_H

#include "../quic/map.h"
#include "latency.h"
#include "private.h"

#define PERF_HEADER_BYTES 8u /* The draft's response length. */
/* Unsent bytes of all streams of a connection: two turns of transmission. */
#define PERF_AHEAD_BYTES (4u << 20)
#define PERF_AHEAD_MIN   (128u << 10) /* And of one stream at least: two chunks, a full train and the next. */

#define PERF_TOP_UPS 64u /* Streams topped up a turn: some microseconds of work. */

struct perf_stream {
    struct perf *perf;
    struct perf_stream *next, *prev; /* In worker.perf_sending while `remaining` > 0. */
    uint64_t id;
    uint64_t remaining;  /* Bytes still to be given to the engine. */
    uint64_t acked;      /* Client: bytes the peer has acknowledged. */
    uint64_t started_ns; /* Client. */
    uint8_t header[PERF_HEADER_BYTES];
    uint8_t header_len; /* Server: bytes of it received. */
    bool peer_fin, fin_sent;
};

struct perf {
    struct quic_conn *conn;
    uint64_t handle;
    struct quic_map streams;     /* Stream id / 4 + 1 -> perf_stream. */
    uint32_t chunk;              /* One reference: what is sent. */
    uint32_t senders;            /* Streams with `remaining`. */
    bool client, finished, told; /* told: PERF_DONE is in the ring. */

    /* Client. */
    struct stoq_perf args;
    struct quic_timer timer; /* The test's end. */
    struct perf *next_done;
    uint64_t next_id, issued, active, started_ns, ended_ns;
    uint64_t completed, failed, bytes_sent, bytes_received;
    struct latency *latency;
};

/* perf.c, used by perf_client.c */
struct perf *perf_new(struct worker *w, struct worker_conn *wc, bool client);
void perf_free(struct worker *w, struct perf *p);
struct perf_stream *perf_stream_get(struct perf *p, uint64_t id);
struct perf_stream *perf_stream_add(struct worker *w, struct perf *p, uint64_t id);
void perf_stream_drop(struct worker *w, struct perf_stream *s);
/* So many bytes are to be sent (0: none any more). */
void perf_stream_sends(struct worker *w, struct perf_stream *s, uint64_t bytes);
/* Give the engine more of what remains, and FIN after the last byte if `fin`. False: the stream cannot be
 * sent on. */
bool perf_pump(struct worker *w, struct perf_stream *s, bool fin);

/* perf_client.c */
void perf_client_event(struct worker *w, struct perf *p, const struct quic_event *event);
void perf_client_issue(struct worker *w, struct perf *p);
void perf_client_top_up(struct worker *w, struct perf_stream *s);

#endif
