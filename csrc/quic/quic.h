/* The QUIC engine's public face: RFC 9000, 9001, 9002 and 9221, sans-I/O.
 *
 * An endpoint takes datagrams in and gives datagrams out. It makes no syscall, reads no clock, and allocates
 * only through its host, from pools laid out at start. `now` is an argument everywhere: nanoseconds of any
 * monotonic clock.
 *
 *          datagrams in                                        datagrams out
 *   quic_endpoint_receive(now) ──▶ ┌──────────────────┐ ──▶ quic_endpoint_transmit(now)   (until it returns
 * false) quic_conn_on_timer(now)    ──▶ │  quic_endpoint   │ ──▶ host->timer_set(deadline) quic_conn_…,
 * quic_stream_… ──▶ │   quic_conn …    │ ──▶ quic_endpoint_poll_conn() + quic_conn_poll()  (events)
 *                                  └──────────────────┘
 *
 * Events are pulled, so nothing is lost when the reader is slow: what is not yet read stays, bounded, in the
 * connection, and flow control holds the peer back.
 *
 * Memory. Metadata (connections, streams, maps) comes from host->alloc. Stream bytes live in chunks, named by
 * number, which the control plane can map too. A chunk has one owner at a time:
 *
 *   receive: host->chunk_alloc ──▶ stream's receive buffer ──(STREAM_DATA event, one reference)──▶ reader
 *                                                          ◀──(host's own release)───────────────
 *   send:    quic_stream_send(chunk) ──▶ stream's send buffer ──(all acknowledged or reset)──▶
 * host->chunk_unref
 */
#ifndef STOQ_QUIC_H
#define STOQ_QUIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../crypto/crypto.h"
#include "../tables.h"
#include "addr.h"
#include "timer.h"

#define QUIC_VERSION_1     0x00000001u
#define QUIC_MAX_CID_BYTES 20 /* RFC 9000 section 17.2. */
#define QUIC_LOCAL_CID_BYTES                                                                                 \
    8 /* Ours: 1 byte config rotation, 1 byte worker, 6 random (quic-load-balancers layout). */
#define QUIC_RESET_TOKEN_BYTES  16
#define QUIC_MIN_INITIAL_BYTES  1200  /* RFC 9000 section 14.1. */
#define QUIC_MAX_DATAGRAM_BYTES 65527 /* Largest UDP payload over IPv6 without jumbograms. */
#define QUIC_NO_CHUNK           UINT32_MAX
#define QUIC_SMALL_CHUNK_BYTES  4096u  /* First 64 KiB of a stream: most streams are short. */
#define QUIC_LARGE_CHUNK_BYTES  65536u /* Beyond: one chunk a train. */
#define QUIC_MAX_ALPN_BYTES     32
#define QUIC_MAX_REASON_BYTES                                                                                \
    256 /* Longest CONNECTION_CLOSE reason kept or sent; it must fit a packet beside its frame. */

/* Encryption levels in the order TLS uses them; the same numbers as in stoq.h. */
enum quic_level {
    QUIC_INITIAL = 0,
    QUIC_ZERO_RTT = 1,
    QUIC_HANDSHAKE = 2,
    QUIC_ONE_RTT = 3,
    QUIC_LEVEL_COUNT
};

struct quic_endpoint;
struct quic_conn;

/* What the engine needs from whoever embeds it. All calls come from the thread that called into the engine.
 */
struct quic_host {
    void *ctx;
    /* Zeroed memory, 64-byte aligned; NULL when the pool is empty (the engine then drops or refuses, and
     * counts). */
    void *(*alloc)(void *ctx, size_t bytes);
    void (*free)(void *ctx, void *p, size_t bytes);
    /* A chunk of QUIC_SMALL_ or QUIC_LARGE_CHUNK_BYTES with one reference; QUIC_NO_CHUNK when there is none.
     */
    uint32_t (*chunk_alloc)(void *ctx, uint32_t bytes, uint8_t **data);
    void (*chunk_ref)(void *ctx, uint32_t chunk);
    void (*chunk_unref)(void *ctx, uint32_t chunk);
    /* Arm (or move, or with QUIC_NEVER disarm) a connection's timer. */
    void (*timer_set)(void *ctx, struct quic_timer *timer, uint64_t deadline_ns);
    void (*random)(void *ctx, uint8_t *out, size_t len);
    /* Optional: one of our connection ids (as it stands in packets, loaded as a native word) comes into use
     * or goes out of it. */
    void (*cid_in_use)(void *ctx, uint64_t id, bool in_use);
};

/* Everything that is configured. Zero means the default named beside it. */
struct quic_config {
    const struct crypto_provider *crypto; /* crypto_provider_by_name("auto") */
    uint8_t worker;                       /* Byte 1 of every connection id. */
    bool server;                          /* Accepts connections. */
    bool retry_always;                    /* Validate every address with Retry before state is kept. */
    uint32_t retry_above;                 /* Connections in handshake above which Retry is required; 1024. */
    uint32_t max_connections;             /* 65536 */
    uint8_t token_key[32];                /* Seals Retry and NEW_TOKEN tokens. */
    uint8_t reset_key[32];                /* Derives stateless reset tokens. */
    uint8_t cc;                           /* enum stoq_congestion_controller; the zero value is NewReno. */
    bool no_pacing;
    bool no_ecn;
    bool no_ack_frequency;   /* Neither offer nor use draft-ietf-quic-ack-frequency. */
    uint16_t max_datagram;   /* Largest UDP payload tried by path MTU discovery; 1452. At least 1200. */
    uint64_t initial_rtt_ns; /* 333 ms, RFC 9002 section 6.2.2. */
    uint32_t initial_window_packets; /* 10, RFC 9002 section 7.2. */
    uint64_t key_update_packets; /* Update keys after so many packets sealed; 0: at half the AEAD's limit. */
    /* Offered transport parameters (RFC 9000 section 18.2). */
    uint64_t idle_timeout_ns; /* 30 s */
    /* 20 s: a handshake not complete by then is given up. A server whose flight is acknowledged waits for the
     * client's, which on a path that loses a third may be away for ten seconds of backed-off probes. */
    uint64_t handshake_timeout_ns;
    uint64_t max_data;              /* Connection window to begin with; 1 MiB. */
    uint64_t max_stream_data;       /* Stream window to begin with; 256 KiB. */
    uint64_t max_data_limit;        /* Auto-tuning stops here; 384 MiB. */
    uint64_t max_stream_data_limit; /* Likewise, a stream; 320 MiB. */
    uint64_t max_streams_bidi;      /* Concurrent; 128 */
    uint64_t max_streams_uni;       /* Concurrent; 128 */
    uint64_t max_ack_delay_ns;      /* 25 ms */
    uint16_t max_datagram_frame;    /* RFC 9221; 0: none are accepted. */
};

/* A train received; datagrams of `segment` bytes, the last may be shorter. Bytes are opened in place. */
struct quic_rx {
    uint8_t *data;
    uint32_t len;    /* Of the datagrams in all. */
    uint32_t stride; /* From one datagram's start to the next one's; 0: end to end. */
    uint16_t segment;
    uint8_t ecn;
    struct quic_addr peer, local;
};

/* A train to send. `data`, `cap`, `stride` and `max_segments` are given; the rest is the engine's answer. */
struct quic_tx {
    uint8_t *data;
    uint32_t cap;    /* Bytes that fit; with a stride, that fit each datagram. */
    uint32_t stride; /* From one datagram's start to the next one's; 0: end to end. */
    uint32_t max_segments;
    uint32_t len;
    uint16_t segment;
    uint8_t ecn;
    struct quic_addr peer, local;
};

#define QUIC_EVENT_FIN     1u  /* Stream ends here. */
#define QUIC_EVENT_APP     2u  /* Code is an application's. */
#define QUIC_EVENT_REMOTE  4u  /* The peer closed. */
#define QUIC_EVENT_UNI     8u  /* STREAMS_AVAILABLE: unidirectional. */
#define QUIC_EVENT_IDLE    16u /* Closed by idle or handshake timeout. */
#define QUIC_EVENT_RESET   32u /* Closed by stateless reset. */
#define QUIC_EVENT_VERSION 64u /* Closed: no version in common. */

/* One event. `data` is valid until the next call into the engine; with chunk != QUIC_NO_CHUNK it lies in that
 * chunk at `chunk_offset`, and the reader owns one reference to it. */
struct quic_event {
    uint8_t type;  /* enum stoq_event_type: those of a connection. */
    uint8_t level; /* CRYPTO */
    uint8_t flags;
    uint32_t chunk;
    uint32_t chunk_offset;
    uint32_t len;
    const uint8_t *data;
    uint64_t stream_id;
    uint64_t code;  /* Error code. */
    uint64_t value; /* See STOQ_EVENTS. */
};

struct quic_conn_stats {
    uint64_t rtt_min_ns, rtt_smoothed_ns, rtt_var_ns, rtt_latest_ns;
    uint64_t congestion_window, bytes_in_flight, ssthresh, pacing_rate_bps;
    uint64_t packets_sent, packets_received, packets_lost, packets_lost_spurious, pto_count;
    uint64_t bytes_sent, bytes_received, stream_bytes_sent, stream_bytes_received, stream_bytes_retransmitted;
    uint64_t key_updates, handshake_ns;
    uint32_t datagram_bytes; /* Present path MTU, UDP payload bytes. */
    uint8_t ecn_capable;
    uint8_t aead;
};

/* ---- endpoint ---- */

struct quic_endpoint *quic_endpoint_create(const struct quic_config *config, const struct quic_host *host,
                                           uint64_t *counters /* STOQ_COUNTER_COUNT */,
                                           uint64_t *drops /* STOQ_DROP_COUNT */);
/* Releases every connection without sending. */
void quic_endpoint_destroy(struct quic_endpoint *ep);

void quic_endpoint_receive(struct quic_endpoint *ep, uint64_t now, const struct quic_rx *rx);
/* Builds the next train into `tx`. False: nothing to send now. */
bool quic_endpoint_transmit(struct quic_endpoint *ep, uint64_t now, struct quic_tx *tx);
/* May quic_endpoint_transmit have something? False: it has not. */
bool quic_endpoint_pending(const struct quic_endpoint *ep);
/* The next connection with unread events, or NULL. Read them with quic_conn_poll until it returns false, then
 * call quic_endpoint_done_conn (which may free the connection, after its CLOSED). A reader that must stop
 * before that calls quic_endpoint_rotate_conn: the connection goes behind the others and keeps its events. */
struct quic_conn *quic_endpoint_poll_conn(struct quic_endpoint *ep);
void quic_endpoint_done_conn(struct quic_endpoint *ep, struct quic_conn *conn);
void quic_endpoint_rotate_conn(struct quic_endpoint *ep, struct quic_conn *conn);
uint32_t quic_endpoint_connections(const struct quic_endpoint *ep);

/* Worker that a short- or long-header datagram belongs to by its connection id; -1: any (it opens a
 * connection). */
int quic_datagram_worker(const uint8_t *datagram, size_t len);

/* ---- connection ---- */

/* A client connection to `peer`. `version` 0 means QUIC v1 (another value provokes version negotiation, for
 * tests); `token` from an earlier NEW_TOKEN, or NULL. NULL when the table or memory is exhausted. */
struct quic_conn *quic_conn_connect(struct quic_endpoint *ep, uint64_t now, const struct quic_addr *peer,
                                    const struct quic_addr *local, uint32_t version, const uint8_t *token,
                                    size_t token_len);

struct quic_endpoint *quic_conn_endpoint(const struct quic_conn *conn);
bool quic_conn_is_server(const struct quic_conn *conn);
/* A host's own word and handle for the connection. The handle is never reused: generation << 32 | index. */
void quic_conn_set_user(struct quic_conn *conn, void *user);
void *quic_conn_user(const struct quic_conn *conn);
uint64_t quic_conn_handle(const struct quic_conn *conn);
struct quic_conn *quic_conn_by_handle(struct quic_endpoint *ep, uint64_t handle);
const struct quic_addr *quic_conn_peer(const struct quic_conn *conn);
const struct quic_addr *quic_conn_local(const struct quic_conn *conn);
struct quic_conn *quic_conn_from_timer(struct quic_timer *timer);

/* Our transport parameters, encoded for the TLS extension: returns the length, at most `cap`. */
size_t quic_conn_local_params(struct quic_conn *conn, uint8_t *out, size_t cap);

/* The TLS seam (RFC 9001 section 4.1). A failing call closes the connection by itself; nothing to do for the
 * caller. */
void quic_conn_crypto_send(struct quic_conn *conn, uint64_t now, enum quic_level level, const uint8_t *data,
                           size_t len);
void quic_conn_set_secret(struct quic_conn *conn, uint64_t now, enum quic_level level, bool send,
                          enum crypto_aead aead, const uint8_t *secret, size_t len);
void quic_conn_set_peer_params(struct quic_conn *conn, uint64_t now, const uint8_t *data, size_t len);
/* 0-RTT (RFC 9001 section 4.6). A client gives the server's transport parameters as it had them when the
 * session was new, then its early secret, and after that may open streams and send; the server's answer comes
 * before its present parameters. A server's early secret comes after the client's parameters and before
 * Handshake secrets. */
void quic_conn_set_early_params(struct quic_conn *conn, uint64_t now, const uint8_t *data, size_t len);
void quic_conn_early_answered(struct quic_conn *conn, uint64_t now, bool accepted);
void quic_conn_handshake_complete(struct quic_conn *conn, uint64_t now);

/* Close with a transport code (app false; TLS alerts are 0x100 + alert) or the application's. `reason` is cut
 * to fit. */
void quic_conn_close(struct quic_conn *conn, uint64_t now, bool app, uint64_t code, const char *reason,
                     size_t reason_len);
/* The reader takes no more events: the connection is closed if open and freed when its closing period ends.
 */
void quic_conn_detach(struct quic_conn *conn, uint64_t now);

void quic_conn_on_timer(struct quic_conn *conn, uint64_t now);
/* The next event; false: none. After CLOSED there is no other. */
bool quic_conn_poll(struct quic_conn *conn, struct quic_event *event);
void quic_conn_key_update(struct quic_conn *conn, uint64_t now);
/* Send a PING frame (RFC 9000 section 19.2); again when it is lost. Nothing before the handshake is
 * confirmed. */
void quic_conn_ping(struct quic_conn *conn);
/* Client: our local address or port changed; validate the path and go on (RFC 9000 section 9). */
void quic_conn_rebind(struct quic_conn *conn, uint64_t now, const struct quic_addr *local);
void quic_conn_stats(const struct quic_conn *conn, struct quic_conn_stats *out);
/* Can application data be sent (1-RTT send keys are there and the connection is not closing)? */
bool quic_conn_writable(const struct quic_conn *conn);

/* ---- streams and datagrams ---- */

/* Append to a stream's send buffer; takes the chunk's reference (also on failure). A local stream opens at
 * its first use; ids must be used in order. `data` lies in the chunk. chunk QUIC_NO_CHUNK with len 0 carries
 * only FIN or opens. False: the stream cannot be sent on (unknown, finished, reset, stopped) or memory is
 * short (the connection closes). */
bool quic_stream_send(struct quic_conn *conn, uint64_t now, uint64_t id, uint32_t chunk, const uint8_t *data,
                      uint32_t len, bool fin);
void quic_stream_reset(struct quic_conn *conn, uint64_t now, uint64_t id, uint64_t code);
void quic_stream_stop(struct quic_conn *conn, uint64_t now, uint64_t id, uint64_t code);
/* The reader is done with `bytes` of what STREAM_DATA delivered: gives flow control credit. */
void quic_stream_consumed(struct quic_conn *conn, uint64_t now, uint64_t id, uint64_t bytes);
/* Streams of this kind we may still open now. */
uint64_t quic_streams_available(const struct quic_conn *conn, bool uni);
/* Bytes in the send buffer not yet sent for the first time. */
uint64_t quic_stream_unsent(const struct quic_conn *conn, uint64_t id);
/* Queue one DATAGRAM frame. False: the peer takes none that large, or the queue is full. */
bool quic_datagram_send(struct quic_conn *conn, uint64_t now, const uint8_t *data, size_t len);

#endif
