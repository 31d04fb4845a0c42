/* STOQ datapath: the one C header Python sees (cffi API mode; parsed without a preprocessor beyond #define
 * NAME number).
 *
 * A datapath is a number of workers. Each worker is one pinned thread that owns a backend queue, connections,
 * timers, pools and counters, and shares one memory area (a memfd) with the control plane:
 *
 *        control plane (one thread)                                     worker (one thread)
 *   stoq_chunk_alloc ─▶ fill ─▶ stoq_command ══ command ring ══▶ engine ─▶ datagrams
 *          ▲──────────────────────── return ring ◀══ sent and acknowledged ──┘
 *   stoq_events ◀══ event ring ══ engine ◀─ datagrams
 *          └─ read chunk ─▶ STREAM_CONSUMED / CHUNK_RELEASE command
 *
 * Rings are single producer, single consumer, fixed slots of 64 bytes; payload travels in chunks named by
 * number. There are no pointers in the shared area. Exactly one thread of the control plane may use one
 * worker's functions. Everything that can fail returns false or a negative errno and, where there is a
 * `struct stoq_error *`, says what to do.
 */
#ifndef STOQ_H
#define STOQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STOQ_NO_CHUNK          4294967295
#define STOQ_SMALL_CHUNK_BYTES 4096
#define STOQ_LARGE_CHUNK_BYTES 65536
#define STOQ_MAX_WORKERS       64
#define STOQ_PORT              9292 /* UDP port of STOQ. */

/* Flags of commands and events; the event flags equal QUIC_EVENT_*. */
#define STOQ_FIN     1
#define STOQ_APP     2
#define STOQ_REMOTE  4
#define STOQ_UNI     8
#define STOQ_IDLE    16
#define STOQ_RESET   32
#define STOQ_VERSION 64
#define STOQ_SEND    1 /* SECRET command: our sending direction. */

/* ROUTE and NEIGHBOUR commands. */
#define STOQ_WAY_OURS 1 /* ROUTE: leaves by the datapath's interface. */
#define STOQ_WAY_GONE 2 /* No longer in the kernel's table. */

/* How XDP and AF_XDP run: what is asked for, and (never AUTO) what was got. */
#define STOQ_XDP_AUTO      0 /* Native, else generic, saying why. */
#define STOQ_XDP_NATIVE    1
#define STOQ_XDP_GENERIC   2
#define STOQ_XSK_AUTO      0 /* Zero copy, else copy, saying why. */
#define STOQ_XSK_COPY      1
#define STOQ_XSK_ZERO_COPY 2

struct stoq_error {
    int code; /* Negative errno. */
    char text[512];
};

struct stoq_address {
    uint8_t ip[16];
    uint32_t scope_id;
    uint16_t port;
    uint16_t pad;
};

/* Zero means the default (csrc/quic/quic.h names the engine's). */
struct stoq_config {
    uint32_t workers;         /* 1 */
    uint32_t max_workers;     /* As many may run at a time, after stoq_worker_add; `workers`. */
    int32_t cores[64];        /* Core of each worker; -1: not pinned. */
    const char *backend;      /* "io_uring", "afxdp", "socket" */
    const char *crypto;       /* "auto", "ipsec-mb", "openssl" */
    struct stoq_address bind; /* :: and port 0 for a client. */
    uint32_t ifindex;
    bool server;
    bool retry_always;
    bool test_profile; /* Serve `perf` in C when the handshake chose that ALPN. */
    bool busy_poll;    /* Never sleep. */
    bool no_gso, no_gro, no_pacing, no_ecn, no_ack_frequency;
    bool sqpoll;        /* io_uring: a kernel thread submits. */
    bool no_sandbox;    /* No seccomp filter on the workers: for sanitizers and debuggers. */
    bool guard;         /* Attach the XDP guard to `ifindex`; afxdp always does. */
    uint8_t xdp_mode;   /* STOQ_XDP_ */
    uint8_t xsk_mode;   /* STOQ_XSK_ */
    uint8_t congestion; /* enum stoq_congestion_controller */
    uint16_t max_datagram;
    uint16_t max_datagram_frame;
    uint32_t max_connections;
    uint32_t initial_window_packets;
    uint32_t io_buffers; /* Send and receive buffers of 64 KiB, each direction; 0: backend's default. */
    uint32_t socket_bytes;
    uint32_t first_queue; /* afxdp: worker i takes queue first_queue + i of `ifindex`. */
    uint32_t busy_budget; /* afxdp: packets one busy-poll call may handle; 0: no preferred busy polling. */
    uint32_t zero_copy_bytes; /* io_uring: trains of so many bytes go by zero copy; 0: none. */
    uint32_t napi_us;         /* io_uring: a sleeper polls the device's queue so long first; 0: not. */
    uint32_t guard_cids; /* Connection ids a worker may have before the guard takes some strangers' for known;
                            65536. */
    uint64_t initial_rtt_ns;
    uint64_t idle_timeout_ns, handshake_timeout_ns;
    uint64_t max_data, max_stream_data, max_data_limit, max_stream_data_limit;
    uint64_t max_streams_bidi, max_streams_uni;
    uint64_t max_ack_delay_ns;
    uint64_t key_update_packets;
    uint64_t metadata_bytes; /* Worker's private arena: connections, streams; 256 MiB of address space. */
    uint64_t receive_bytes;  /* Chunks filled by the worker; 512 MiB of address space. */
    uint64_t send_bytes;     /* Chunks filled by the control plane; 64 MiB of address space. */
    uint8_t token_key[32], reset_key[32]; /* All zero: drawn at random. */
    uint32_t uid, gid; /* Workers become these once open; uid 0: stay. See stoq_drop_privileges. */
};

struct stoq_command {
    uint8_t type; /* enum stoq_command_type */
    uint8_t flags;
    uint8_t level;
    uint8_t pad;
    uint32_t chunk; /* Of the control plane's pool, except STREAM_CONSUMED and CHUNK_RELEASE: the worker's. */
    uint32_t chunk_offset;
    uint32_t len;
    uint64_t conn; /* Handle from the CONNECTION event. */
    uint64_t stream;
    uint64_t code;
    uint64_t value;
    uint64_t reserved[2];
};

struct stoq_event {
    uint8_t type; /* enum stoq_event_type */
    uint8_t flags;
    uint8_t level;
    uint8_t pad;
    uint32_t chunk; /* Of the worker's pool; give it back. */
    uint32_t chunk_offset;
    uint32_t len;
    uint64_t conn;
    uint64_t stream;
    uint64_t code;
    uint64_t value;
    uint64_t reserved[2];
};

/* ROUTE and NEIGHBOUR commands, in the 48 bytes from `conn` on. ROUTE: `level` is the prefix length,
 * `chunk_offset` the link's MTU (0: unknown), `flags` STOQ_WAY_. NEIGHBOUR: `ip`, and its link-layer address
 * in `gateway`'s first six bytes. */
struct stoq_way {
    uint8_t ip[16];      /* Prefix or neighbour. */
    uint8_t gateway[16]; /* ::: on link. */
    uint8_t source[16];  /* Preferred source; ::: none. */
};

/* CONNECT's chunk. */
struct stoq_connect {
    struct stoq_address peer;
    uint32_t version;   /* 0: QUIC v1 */
    uint32_t token_len; /* Token bytes that follow; 0: none. */
};

/* CONNECTION's chunk; our encoded transport parameters follow it. */
struct stoq_new_connection {
    struct stoq_address peer, local;
    uint32_t server; /* 1: accepted, 0: ours */
    uint32_t params_len;
};

/* CLOSED's chunk; `reason_len` bytes of UTF-8 (unchecked) follow. */
struct stoq_closed {
    uint64_t code;
    uint64_t frame_type;
    uint32_t reason_len;
    uint32_t pad;
};

struct stoq_path {
    struct stoq_address peer, local;
};

/* PERF_START's chunk: the client of draft-banks-quic-performance. */
struct stoq_perf {
    uint64_t download_bytes; /* The peer sends so many back on each stream. */
    uint64_t upload_bytes;   /* We send so many after the first 8. */
    uint32_t streams;        /* At a time. */
    uint32_t requests;       /* In all; 0: until duration_ns. */
    uint64_t duration_ns;    /* 0: until `requests` are done. */
};

struct stoq_perf_result {
    uint64_t bytes_sent, bytes_received; /* Stream payload, acknowledged or delivered. */
    uint64_t requests;
    uint64_t duration_ns;
    uint64_t latency_min_ns, latency_p50_ns, latency_p90_ns, latency_p99_ns,
        latency_max_ns; /* Per request. */
};

struct stoq_connection_stats {
    uint64_t rtt_min_ns, rtt_smoothed_ns, rtt_var_ns, rtt_latest_ns;
    uint64_t congestion_window, bytes_in_flight, ssthresh, pacing_rate_bps;
    uint64_t packets_sent, packets_received, packets_lost, packets_lost_spurious, pto_count;
    uint64_t bytes_sent, bytes_received, stream_bytes_sent, stream_bytes_received, stream_bytes_retransmitted;
    uint64_t key_updates, handshake_ns;
    uint32_t datagram_bytes;
    uint8_t ecn_capable;
    uint8_t aead;
};

struct stoq_io_stats {
    uint64_t rx_packets, rx_bytes, rx_trains, rx_errors;
    /* The kernel's queue was full (a coalesced train counts once), larger than a buffer, empty, IPv4. */
    uint64_t rx_dropped_queue, rx_dropped_truncated, rx_dropped_empty, rx_dropped_ipv4;
    uint64_t rx_no_buffer; /* Times none was free for the kernel; nothing is lost by that. */
    uint64_t tx_packets, tx_bytes, tx_trains, tx_errors, tx_full;
    uint64_t wakeups, waits, syscalls;
};

/* A queue with rings shared with the kernel (AF_XDP); csrc/io/io.h explains the fields. */
struct stoq_queue_stats {
    uint64_t queue, ifindex;
    uint64_t native, zero_copy;
    uint64_t need_wakeup, busy_poll, multi_buffer, tx_checksum;
    uint64_t frames, frame_bytes;
    uint64_t frames_fill, frames_rx, frames_worker, frames_free, frames_tx, frames_completion;
    uint64_t ring_fill, ring_rx, ring_tx, ring_completion;
    uint64_t wakeups_rx, wakeups_tx, rx_batches, tx_batches;
    uint64_t tx_socket, rx_socket;
    uint64_t routes, neighbours;
    uint64_t kernel_rx_dropped, kernel_rx_invalid, kernel_tx_invalid, kernel_rx_ring_full, kernel_fill_empty,
        kernel_tx_empty;
};

struct stoq_guard_report {
    uint32_t mode;         /* STOQ_XDP_NATIVE or _GENERIC */
    uint32_t instructions; /* Processed by the verifier. */
    uint32_t program_id;
    uint32_t ifindex;
    char notes[512];
};

/* What the guard allows; csrc/bpf/layout.h explains the fields. */
struct stoq_guard_policy {
    uint64_t initial_interval_ns;
    uint32_t initial_burst, retry_above, retry_limit, unknown_limit, version_limit;
    bool replay_filter, retry_always;
};

struct stoq_block {
    uint8_t ip[16];
    uint32_t bits;
    uint32_t pad;
    uint64_t expires_ns; /* CLOCK_MONOTONIC; 0: never. */
};

struct stoq_mirrored {
    uint64_t time_ns; /* CLOCK_MONOTONIC */
    uint32_t frame_bytes, snapped_bytes;
    uint32_t queue;
    uint32_t verdict;
};

struct stoq_pool_stats {
    uint64_t metadata_bytes, metadata_used;
    uint64_t receive_chunks_small, receive_chunks_small_used, receive_chunks_large, receive_chunks_large_used;
    uint64_t send_chunks_small, send_chunks_small_used, send_chunks_large, send_chunks_large_used;
    uint64_t connections;
};

struct stoq_datapath;

/* Maps memory and opens one backend a worker (inside the worker's own thread), then starts the threads. NULL
 * on failure. */
struct stoq_datapath *stoq_open(const struct stoq_config *config, struct stoq_error *error);
/* Asks the workers to close their connections (one CONNECTION_CLOSE each) and joins them. Idempotent. */
void stoq_stop(struct stoq_datapath *dp);
/* stoq_stop, then unmap and free. */
void stoq_close(struct stoq_datapath *dp);

/* When everything is open: every thread of the process becomes this user and group (uid 0: stays who it is),
 * without supplementary groups, keeps only the capabilities of `keep` (bit n: capability n), and can gain no
 * others by starting programs. Workers have done it for themselves, keeping none: open them with the same uid
 * and gid. False with `error`: threads may be half way, so end the process. */
bool stoq_drop_privileges(uint32_t uid, uint32_t gid, uint64_t keep, struct stoq_error *error);

/* Numbers of workers are 0 to this, exclusive; a worker that was removed keeps its number. */
uint32_t stoq_workers(const struct stoq_datapath *dp);
/* One worker more, on `core` (-1: not pinned): one that was removed gets a thread and a backend again, else a
 * new one is made. Returns its number, or a negative errno with `error`. A process that gave up its
 * privileges can add none to afxdp. */
int stoq_worker_add(struct stoq_datapath *dp, int32_t core, struct stoq_error *error);
/* Give up a worker's thread, core and queue. Its connections go on, run by another worker's thread, and so do
 * its rings; new connections reach the others. False with `error`: it is the last, or not there. Blocks for
 * milliseconds. */
bool stoq_worker_remove(struct stoq_datapath *dp, uint32_t worker, struct stoq_error *error);
/* Has it a thread of its own? */
bool stoq_worker_running(const struct stoq_datapath *dp, uint32_t worker);
/* Readable when any worker has events. One eventfd a datapath. */
int stoq_event_fd(const struct stoq_datapath *dp);
/* Clear the eventfd; call before draining the rings. */
void stoq_event_clear(struct stoq_datapath *dp);
/* Take up to `max` events; returns the number. */
int stoq_events(struct stoq_datapath *dp, uint32_t worker, struct stoq_event *out, int max);
/* Put one command; false: the ring is full (take events, try again). The worker is woken by stoq_kick. */
bool stoq_command(struct stoq_datapath *dp, uint32_t worker, const struct stoq_command *command);
void stoq_kick(struct stoq_datapath *dp, uint32_t worker);

/* A chunk to fill, of STOQ_SMALL_ or STOQ_LARGE_CHUNK_BYTES; STOQ_NO_CHUNK: none is free. */
uint32_t stoq_chunk_alloc(struct stoq_datapath *dp, uint32_t worker, uint32_t bytes);
/* Give back a chunk that no command carried away. */
void stoq_chunk_free(struct stoq_datapath *dp, uint32_t worker, uint32_t chunk);
uint8_t *stoq_send_chunk(struct stoq_datapath *dp, uint32_t worker, uint32_t chunk, uint32_t *bytes);
/* The data of a chunk of the worker's pool. */
uint8_t *stoq_receive_chunk(struct stoq_datapath *dp, uint32_t worker, uint32_t chunk);
/* Free send chunks of both kinds, after taking back what the worker returned. */
uint64_t stoq_send_free_bytes(struct stoq_datapath *dp, uint32_t worker);

void stoq_local_address(const struct stoq_datapath *dp, uint32_t worker, struct stoq_address *out);
/* Text about the backend: features in use and fallbacks. */
void stoq_describe(const struct stoq_datapath *dp, uint32_t worker, char *out, size_t cap);
const char *stoq_crypto_name(const struct stoq_datapath *dp);
int stoq_worker_core(const struct stoq_datapath *dp, uint32_t worker);

/* Counters: index by enum stoq_counter and enum stoq_drop_reason. Read without stopping the worker. */
uint32_t stoq_counter_count(void);
uint32_t stoq_drop_count(void);
void stoq_counters(const struct stoq_datapath *dp, uint32_t worker, uint64_t *out, uint32_t n);
void stoq_drops(const struct stoq_datapath *dp, uint32_t worker, uint64_t *out, uint32_t n);
void stoq_io_statistics(const struct stoq_datapath *dp, uint32_t worker, struct stoq_io_stats *out);
void stoq_pool_statistics(const struct stoq_datapath *dp, uint32_t worker, struct stoq_pool_stats *out);
/* Histogram of datagrams per train, log2 buckets 1, 2, 3-4, 5-8, … 33-64: 7 counts. */
void stoq_train_histogram(const struct stoq_datapath *dp, uint32_t worker, uint64_t sent[7],
                          uint64_t received[7]);

/* Of the worker's AF_XDP queue; false: its backend has none. */
bool stoq_queue_statistics(const struct stoq_datapath *dp, uint32_t worker, struct stoq_queue_stats *out);

/* ---- the XDP guard (csrc/guard/guard.h); false or 0 where there is none ---- */

bool stoq_guard(const struct stoq_datapath *dp, struct stoq_guard_report *out);
/* Frames and bytes by enum stoq_verdict. */
uint32_t stoq_verdict_count(void);
bool stoq_guard_counts(const struct stoq_datapath *dp, uint64_t *packets, uint64_t *bytes, uint32_t n);
bool stoq_guard_get_policy(const struct stoq_datapath *dp, struct stoq_guard_policy *out);
bool stoq_guard_set_policy(struct stoq_datapath *dp, const struct stoq_guard_policy *policy,
                           struct stoq_error *error);
/* One of the host's addresses, at which STOQ is served by the guarded interface, comes or goes. */
bool stoq_guard_address(struct stoq_datapath *dp, const uint8_t ip[16], bool present,
                        struct stoq_error *error);
bool stoq_guard_block(struct stoq_datapath *dp, const struct stoq_block *block, struct stoq_error *error);
bool stoq_guard_unblock(struct stoq_datapath *dp, const uint8_t ip[16], uint32_t bits);
uint32_t stoq_guard_blocks(struct stoq_datapath *dp, struct stoq_block *out, uint32_t max);
/* Copy frames: every `sample`-th (0: none) of the verdicts whose bits are set, up to `snap` bytes of each. */
bool stoq_guard_mirror(struct stoq_datapath *dp, uint64_t verdicts, uint32_t sample, uint32_t snap,
                       struct stoq_error *error);
int stoq_guard_mirror_fd(const struct stoq_datapath *dp);
/* Copies lost because nobody read, since the guard was opened. */
uint64_t stoq_guard_mirror_dropped(const struct stoq_datapath *dp);
/* The next copied frame, up to `cap` bytes; false: none waits. */
bool stoq_guard_mirror_read(struct stoq_datapath *dp, struct stoq_mirrored *head, uint8_t *bytes,
                            uint32_t cap);

/* ---- what this machine can do, for `stoq doctor`: asked without leaving anything behind ---- */

#define STOQ_ANSWER_UNKNOWN 0
#define STOQ_ANSWER_NO      1
#define STOQ_ANSWER_YES     2

struct stoq_uring_probe {
    int32_t setup_error; /* Negative errno; 0: there is io_uring. csrc/io/probe.h explains the others. */
    bool single_issuer, defer_taskrun, restrictions, buffer_rings, recvmsg_multishot, sendmsg_zero_copy, napi;
};
void stoq_probe_io_uring(struct stoq_uring_probe *out);

/* Answers as above; csrc/guard/probe.h explains them. */
struct stoq_interface_probe {
    char driver[32];
    uint8_t bpf, native, generic, redirect, ndo_xmit, zero_copy, multi_buffer;
    uint8_t rx_timestamp, rx_hash, tx_metadata, tx_checksum, tx_timestamp, tx_launch_time;
    uint8_t program_generic; /* The attached program runs in the network stack, not in the driver. */
    uint32_t program_id;     /* 0: none is attached. */
    uint32_t zero_copy_segments;
    char program[16];
    char notes[512];
};
/* False with `error`: there is no such interface. */
bool stoq_probe_interface(uint32_t ifindex, struct stoq_interface_probe *out, struct stoq_error *error);

/* Is this crypto provider built in, and can this processor run it? */
bool stoq_crypto_available(const char *name);

/* ---- simulation: two workers, no threads, joined by the wire backend on a virtual clock ---- */

struct stoq_sim;

/* One direction of the wire. Probabilities are in parts per million. */
struct stoq_impairment {
    uint32_t loss_ppm, duplicate_ppm, corrupt_ppm, reorder_ppm;
    uint64_t delay_ns, jitter_ns; /* One way. Reordered datagrams are held back by up to reorder_ns more. */
    uint64_t reorder_ns;
    uint64_t rate_bps;       /* 0: unlimited. */
    uint64_t queue_bytes;    /* Bottleneck queue, tail drop; 0: unlimited. */
    uint64_t ce_above_bytes; /* Mark CE when the queue is longer; 0: never. */
    uint32_t mtu;            /* Larger datagrams vanish; 0: 65535. */
};

/* Worker 0 is the client, worker 1 the server; each config as for stoq_open (backend, cores and bind are
 * ignored). */
struct stoq_sim *stoq_sim_open(uint64_t seed, const struct stoq_config *client,
                               const struct stoq_config *server, const struct stoq_impairment *up,
                               const struct stoq_impairment *down, struct stoq_error *error);
void stoq_sim_close(struct stoq_sim *sim);
/* The pair as a datapath of two workers: all functions above that take one work on it. */
struct stoq_datapath *stoq_sim_datapath(struct stoq_sim *sim);
uint64_t stoq_sim_now(const struct stoq_sim *sim);
/* Run both ends until an event is waiting or `until_ns`; returns the new time. Time jumps over quiet spans.
 */
uint64_t stoq_sim_run(struct stoq_sim *sim, uint64_t until_ns);
/* Change the wire from now on; `rebind` moves the client to another port (1) or address (2) as a NAT would.
 */
void stoq_sim_impair(struct stoq_sim *sim, const struct stoq_impairment *up,
                     const struct stoq_impairment *down);
void stoq_sim_rebind(struct stoq_sim *sim, int what);

#endif
