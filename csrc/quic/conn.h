/* A connection's state, private to csrc/quic. Each file below owns one concern and its functions:
 *
 *   conn.c         life cycle: create, TLS seam, close, drain, release            RFC 9000 sections 5, 7, 10
 *   conn_recv.c    packets: header protection, AEAD, packet numbers, key phases   RFC 9001 sections 5, 6
 *   conn_frames.c  what each received frame does                                  RFC 9000 section 19
 *   conn_send.c    datagrams and trains: which packets, in what order             RFC 9000 sections 12, 14
 *   conn_write.c   what goes into a packet                                        RFC 9000 section 13
 *   conn_ack.c     what an acknowledged or a lost frame means                     RFC 9000 section 13.3
 *   conn_ackfreq.c how often to acknowledge, both ways                            ack-frequency draft
 *   recovery.c     RTT, loss detection, PTO, congestion, pacing                   RFC 9002
 *   conn_streams.c stream table, limits and flow control                          RFC 9000 sections 2 to 4
 *   conn_cids.c    connection ids, both directions                                RFC 9000 section 5.1
 *   conn_paths.c   path validation, migration, anti-amplification                 RFC 9000 sections 8, 9
 *   conn_mtu.c     the path's datagram size                                       RFC 8899
 *   conn_events.c  what the reader is told
 *   conn_rest.c    what an idle connection gives back, and how it wakes
 *   conn_timer.c   one deadline out of many
 *   conn_early.c   0-RTT                                                          RFC 9001 section 4.6
 *
 *                  accepted / connect                 handshake_complete        HANDSHAKE_DONE
 *        ──────────▶ HANDSHAKE ──────────────────────▶ CONNECTED ─────────────▶ (confirmed)
 *                        │ close(), error                  │
 *                        ├──────────────────────▶ CLOSING ◀┤      3 PTO
 *                        │ peer's close, reset             ├────────────────────▶ DEAD ──(CLOSED read)──▶
 * freed └──────────────────────▶ DRAINING ┘ idle timeout ─────────────────────────────▶ DEAD
 */
#ifndef STOQ_QUIC_CONN_H
#define STOQ_QUIC_CONN_H

#include "cc.h"
#include "frame.h"
#include "map.h"
#include "params.h"
#include "quic.h"
#include "space.h"
#include "stream.h"
#include "token.h"

#define QUIC_MS UINT64_C(1000000)
#define QUIC_S  UINT64_C(1000000000)

#define QUIC_GRANULARITY_NS         QUIC_MS /* RFC 9002 section 6.1.2: kGranularity. */
#define QUIC_PACKET_THRESHOLD       3u      /* RFC 9002 section 6.1.1: kPacketThreshold. */
#define QUIC_MAX_ACK_DELAY_EXPONENT 3u      /* The RFC's default; what we send, and 20 at most from a peer. */
#define QUIC_LOCAL_CIDS                                                                                      \
    4u                    /* Ids we keep issued: one in use, one for each path under validation, one spare. */
#define QUIC_PEER_CIDS 4u /* active_connection_id_limit we advertise. */
#define QUIC_RETIRE_QUEUE                                                                                    \
    16u /* RETIRE_CONNECTION_ID owed at most; RFC 9000 section 5.1.2 wants at least 2 * limit. */
#define QUIC_PATHS 3u /* The active one, the one before it, one under validation. */
#define QUIC_PENDING_PACKETS                                                                                 \
    32u                         /* Packets kept until their keys arrive: three initial windows of a peer.    \
                                 */
#define QUIC_STREAM_BUCKETS 16u /* To begin with; doubles. */
#define QUIC_DATAGRAM_QUEUE                                                                                  \
    64u /* DATAGRAM frames waiting, each direction; more are dropped and counted (RFC 9221 section 5). */
/* Bytes a stream sends before the next has its turn: a dozen packets at least, so that trains are dense; a
 * train of its own where a round trip holds many of them. */
#define QUIC_STREAM_QUANTUM_MIN 16384u
#define QUIC_STREAM_QUANTUM_MAX 65536u
/* Silence after which a connection rests. Longer than nearly every round trip and pause between a request and
 * the next; a wake-up costs about a microsecond. */
#define QUIC_REST_NS QUIC_S
/* Connections with expanded keys at most: one that wakes beyond puts the one that woke first to sleep. */
#define QUIC_AWAKE 16384u

enum quic_conn_state {
    QUIC_CONN_HANDSHAKE,
    QUIC_CONN_CONNECTED,
    QUIC_CONN_CLOSING,
    QUIC_CONN_DRAINING,
    QUIC_CONN_DEAD
};

/* Frames the connection owes. */
#define QUIC_OWES_HANDSHAKE_DONE   0x0001u
#define QUIC_OWES_CONN_MAX_DATA    0x0002u
#define QUIC_OWES_MAX_STREAMS_BIDI 0x0004u
#define QUIC_OWES_MAX_STREAMS_UNI  0x0008u
#define QUIC_OWES_CONN_BLOCKED     0x0010u
#define QUIC_OWES_NEW_TOKEN        0x0020u
#define QUIC_OWES_NEW_CID          0x0040u
#define QUIC_OWES_RETIRE           0x0080u
#define QUIC_OWES_PING             0x0100u
#define QUIC_OWES_ACK_FREQUENCY    0x0200u

struct quic_local_cid {
    uint64_t sequence;
    struct quic_cid cid;
    bool used; /* Slot in use. */
    bool owed; /* NEW_CONNECTION_ID to be sent. */
};

struct quic_peer_cid {
    uint64_t sequence;
    struct quic_cid cid;
    uint8_t reset_token[QUIC_RESET_TOKEN_BYTES];
    bool used, has_token, in_use; /* in_use: some path sends with it. */
};

enum quic_ecn_state { QUIC_ECN_TESTING, QUIC_ECN_CAPABLE, QUIC_ECN_FAILED };

struct quic_path {
    struct quic_addr peer, local;
    bool used, validated;
    bool migrate; /* Became active by the peer's move; falls back if validation fails. */
    bool challenge_owed, response_owed, validating;
    uint8_t peer_cid;        /* Index into peer_cids. */
    uint64_t received, sent; /* Bytes, for the 3 * limit while not validated. */
    /* Validation (RFC 9000 section 8.2). */
    uint8_t challenge[8], response[8];
    uint64_t challenge_sent_ns, challenge_deadline_ns, challenge_first_ns;
    uint32_t challenge_tries;
};

/* RTT, congestion and pacing of the active path. */
struct quic_recovery {
    uint64_t rtt_latest_ns, rtt_min_ns, rtt_smoothed_ns, rtt_var_ns;
    uint64_t first_sample_ns; /* When the first RTT sample was taken; 0: none. */
    uint32_t pto_count;
    uint64_t bytes_in_flight;
    struct quic_cc cc;
    /* Pacing: a bucket of bytes. */
    uint64_t pace_tokens, pace_updated_ns, pace_next_ns;
    bool app_limited;
    /* ECN (RFC 9000 section 13.4.2). */
    enum quic_ecn_state ecn;
    uint32_t ecn_lost, ecn_acked;
};

enum quic_mtu_state { QUIC_MTU_BASE, QUIC_MTU_SEARCHING, QUIC_MTU_COMPLETE };

struct quic_mtu {
    uint16_t current;   /* UDP payload bytes of a full packet: the largest known to arrive. */
    uint16_t probe;     /* Size being probed; 0: none in flight. */
    uint16_t bad;       /* The smallest size taken not to arrive. */
    uint8_t state;      /* enum quic_mtu_state */
    uint8_t step;       /* Of the first look: which size is next. */
    uint8_t tries;      /* Probes of the present size that were lost. */
    uint8_t probes;     /* Sent in this search. */
    uint8_t black_hole; /* Large packets lost since one as large was acknowledged that was sent after them. */
    uint16_t lost_size; /* The smallest of those. */
    uint16_t acked_size; /* The newest large packet acknowledged: its size and number. */
    uint16_t suspect;    /* Size at which the path was a black hole last. */
    uint64_t acked_pn;
    uint64_t again_ns; /* Complete: when to look for a larger size again. */
};

/* What we asked of the peer with ACK_FREQUENCY; sequence 0: nothing yet. */
struct quic_ack_ask {
    uint64_t sequence, delay_us;
    uint32_t threshold;
};

/* A packet that waits for keys. */
struct quic_pending {
    uint8_t *data; /* From host->alloc, len bytes */
    uint32_t len;
    uint8_t ecn;
    uint8_t level;
    struct quic_addr peer, local;
};

/* 0-RTT state (conn_early.c): a client's from the remembered parameters on, a server's from its early keys
 * on, until 1-RTT keys replace it. */
enum quic_early_answer { QUIC_EARLY_OFFERED, QUIC_EARLY_ACCEPTED, QUIC_EARLY_REFUSED };

struct quic_early {
    struct quic_keys keys;
    enum quic_early_answer answer; /* Client. */
};

struct quic_datagram {
    uint8_t *data;
    uint32_t len;
};

struct quic_datagram_queue {
    struct quic_datagram v[QUIC_DATAGRAM_QUEUE];
    uint32_t head, tail;
};

/* What only the handshake needs, apart so that an idle connection does not carry it: from creation until the
 * transmit after the handshake is confirmed (quic_handshake_release). */
struct quic_handshake {
    struct quic_space spaces[QUIC_SPACE_APP];  /* Initial and Handshake. */
    struct quic_cid original_dcid, retry_scid; /* Ours to check or to announce (section 7.3). */
    struct quic_cid peer_scid;                 /* Client: the source id of the server's first packet. */
    uint8_t *token;                            /* Client: sent in Initials. */
    uint32_t token_len;
    uint32_t pending_count;
    struct quic_pending pending[QUIC_PENDING_PACKETS];
};

/* What of the peer's transport parameters outlives the handshake; the names are those of struct quic_params.
 */
struct quic_peer_params {
    uint64_t initial_max_stream_data_bidi_local, initial_max_stream_data_bidi_remote,
        initial_max_stream_data_uni;
    uint64_t initial_max_data, initial_max_streams_bidi, initial_max_streams_uni;
    uint64_t min_ack_delay_us; /* QUIC_NO_MIN_ACK_DELAY when absent */
    uint64_t max_datagram_frame_size, active_connection_id_limit;
    uint16_t max_udp_payload_size, max_ack_delay_ms;
    uint8_t ack_delay_exponent;
};

/* Streams of one kind (initiator and direction). */
struct quic_stream_kind {
    uint64_t opened; /* Streams opened so far: the next id's index. */
    uint64_t limit;  /* Ours: what the peer allows us. The peer's: what we advertised. */
    uint64_t closed; /* The peer's kinds: fully closed, to be replaced in the limit. */
    uint64_t told;   /* Our kinds: limit in the last STREAMS_AVAILABLE event. */
};

/* In order of use; small members together. Every idle connection pays for what is put here (3,072 bytes are a
 * size of the arena's, the next is 3,584), so what is not always needed is a pointer. */
struct quic_conn {
    /* Hot. */
    struct quic_endpoint *ep;
    enum quic_conn_state state;
    bool server, confirmed, handshake_done, peer_params_set, peer_moved_checked, detached;
    bool in_send_list, in_event_list;
    bool awake;  /* Keys of 1-RTT packets are expanded: in ep's list of those. */
    bool rested; /* Nothing has happened for long, and what can be made anew was given back. */
    uint8_t active_path;
    struct quic_conn *send_prev, *send_next, *event_prev, *event_next;
    struct quic_conn *awake_prev, *awake_next;
    uint32_t owes;
    uint64_t handle;
    void *user;
    struct quic_timer timer;
    struct quic_recovery recovery;
    struct quic_mtu mtu;
    struct quic_ack_policy ack_policy;
    struct quic_ack_ask ack_ask;
    uint64_t peer_ack_delay_ns; /* At most so long the peer puts off an ACK. */

    /* 1-RTT keys (RFC 9001 section 6). */
    bool key_update_wanted;
    uint8_t key_phase, recv_phase;   /* 0 or 1: of what we send, of what the peer sends. */
    uint64_t phase_first_sent_pn;    /* First number sealed with the present key. */
    uint64_t phase_first_recv_pn;    /* Lowest number opened with the present key; QUIC_NO_PN: none yet. */
    uint64_t previous_keys_until_ns; /* 0: none kept. */
    uint64_t key_updates, aead_failures;

    /* Flow control of the connection (RFC 9000 section 4). */
    uint64_t send_max, send_total; /* Peer's MAX_DATA; new stream bytes sent. */
    uint64_t recv_max, recv_total, recv_consumed, recv_window, recv_window_moved_ns;
    uint64_t blocked_at;
    uint64_t
        unsent; /* Stream bytes queued and never sent: with nothing in flight, flow control holds them. */

    /* Streams. */
    struct quic_stream **buckets;
    uint32_t bucket_mask, stream_count;
    struct quic_stream *last_stream;  /* The one looked up last: nearly always the next. */
    struct quic_stream *data_streams; /* Ring of streams with data to send. */
    struct quic_stream *owe_first, *owe_last, *tell_first, *tell_last;

    struct quic_space *spaces[QUIC_SPACE_COUNT]; /* The first two: the handshake's, or &quic_space_gone. */
    struct quic_space app;                       /* 1-RTT packets. */
    struct quic_path paths[QUIC_PATHS];
    struct quic_peer_cid peer_cids[QUIC_PEER_CIDS];

    /* Colder. */
    struct quic_handshake *handshake; /* NULL: confirmed, and released. */
    struct quic_stream_kind kinds[4]; /* By the two low bits of the stream id. */
    struct quic_local_cid local_cids[QUIC_LOCAL_CIDS];
    uint64_t next_local_sequence, retire_prior_to;
    uint64_t peer_sequence_top,
        peer_sequences; /* Of the peer's ids: highest number seen, and bit i: top - i was seen. */
    uint64_t retire_queue[QUIC_RETIRE_QUEUE];
    uint32_t retire_head, retire_tail;
    uint32_t version, new_token_len;
    struct quic_cid initial_scid; /* Our first. */
    bool peer_scid_set, retried, version_negotiated, odcid_mapped, saw_packet, saw_cid_of_ours;
    bool eliciting_since_receive, path_changed;
    struct quic_peer_params peer_params; /* Client with 0-RTT: at first the remembered limits. */
    struct quic_early *early;            /* NULL: no 0-RTT, or not any more. */
    uint64_t min_ack_delay_us;           /* Ours, offered; QUIC_NO_MIN_ACK_DELAY: none. */
    uint64_t created_ns, connected_ns, last_received_ns, idle_timeout_ns, idle_deadline_ns, close_deadline_ns;
    struct quic_datagram_queue *datagrams_out, *datagrams_in; /* Allocated at first use. */

    /* Closing. */
    bool close_app, close_remote, close_owed, closed_told, told_connection, told_connected, refuse_token;
    uint8_t close_flags; /* QUIC_EVENT_IDLE and the like. */
    uint64_t close_code, close_frame_type;
    uint32_t close_packets; /* Received while closing: answers get rarer. */
    uint32_t close_reason_len;
    char *close_reason; /* NULL when there is none or no memory for it. */
    uint64_t odcid_key; /* Server: where it stands in ep->odcids. */
    uint64_t told_key_updates;
    uint8_t *new_token; /* Client: from the last NEW_TOKEN, until the reader has it; new_token_len bytes. */

    struct quic_conn_stats stats;
};

/* The endpoint's lists and tables, for the connection's files. */
struct quic_endpoint {
    struct quic_config config;
    struct quic_host host;
    uint64_t *counters, *drops;
    struct quic_map cids;   /* Our ids as 64-bit numbers -> connection. */
    struct quic_map odcids; /* SipHash of a client's first destination id and address -> connection. */
    struct quic_map resets; /* SipHash of a peer's stateless reset token -> connection. */
    uint8_t sip_key[16];
    struct quic_conn **slots; /* By the low half of the handle. */
    uint32_t slot_count, free_slot_hint, connections, handshaking;
    uint32_t generation;
    struct quic_conn *send_first, *send_last, *event_first, *event_last;
    struct quic_conn *awake_first, *awake_last; /* First the one that woke first. */
    uint32_t awake, awake_limit;
    struct quic_conn *cached; /* The connection of the last datagram. */
    uint64_t cached_cid;
    struct quic_token_sealer *sealer;
    uint8_t crypto_scratch[QUIC_SMALL_CHUNK_BYTES]; /* Data of the event last read. */
    struct quic_stateless *stateless;               /* Ring of small packets that belong to no connection. */
    uint32_t stateless_head, stateless_tail;
    uint64_t stateless_tokens, stateless_updated_ns;
};

static inline void quic_count(struct quic_conn *conn, enum stoq_counter counter, uint64_t n) {
    conn->ep->counters[counter] += n;
}

static inline void quic_drop(struct quic_endpoint *ep, enum stoq_drop_reason reason) {
    ep->drops[reason]++;
}

static inline const struct quic_host *quic_host_of(const struct quic_conn *conn) {
    return &conn->ep->host;
}
static inline struct quic_path *quic_active_path(struct quic_conn *conn) {
    return &conn->paths[conn->active_path];
}
static inline bool quic_is_open(const struct quic_conn *conn) {
    return conn->state <= QUIC_CONN_CONNECTED;
}
static inline struct quic_space *quic_app(struct quic_conn *conn) {
    return &conn->app;
}

static inline bool quic_early_can_send(const struct quic_conn *conn) {
    return conn->early && quic_can_send(&conn->early->keys);
}

static inline uint64_t quic_min(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}
static inline uint64_t quic_max(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

static inline uint32_t quic_stream_quantum(const struct quic_conn *conn) {
    return (uint32_t)quic_min(QUIC_STREAM_QUANTUM_MAX,
                              quic_max(QUIC_STREAM_QUANTUM_MIN, conn->recovery.cc.window / 16));
}

static inline enum quic_space_id quic_space_of_level(enum quic_level level) {
    return level == QUIC_INITIAL     ? QUIC_SPACE_INITIAL
           : level == QUIC_HANDSHAKE ? QUIC_SPACE_HANDSHAKE
                                     : QUIC_SPACE_APP;
}

/* endpoint.c: put the connection where its packets or events are looked for. */
void quic_schedule_send(struct quic_conn *conn);
void quic_schedule_event(struct quic_conn *conn);
void quic_unschedule(struct quic_conn *conn);
bool quic_endpoint_adopt(struct quic_endpoint *ep,
                         struct quic_conn *conn);  /* Gives it a slot and a handle. */
void quic_endpoint_forget(struct quic_conn *conn); /* Out of all tables; frees the slot. */

/* conn.c */
struct quic_conn *quic_conn_create(struct quic_endpoint *ep, uint64_t now, bool server,
                                   const struct quic_addr *peer, const struct quic_addr *local);
void quic_conn_free(struct quic_conn *conn);
/* A violation by the peer or trouble of ours: close with a transport error. `why` is a constant text. */
void quic_conn_fail(struct quic_conn *conn, uint64_t now, uint64_t error, uint64_t frame_type,
                    const char *why);
/* The peer is gone (its CONNECTION_CLOSE, stateless reset, idle timeout): no more sending. */
void quic_conn_end(struct quic_conn *conn, uint64_t now, enum quic_conn_state state, uint8_t flags, bool app,
                   uint64_t code, uint64_t frame_type, const char *reason, size_t reason_len);
void quic_conn_discard_space(struct quic_conn *conn, enum quic_space_id id);
void quic_conn_confirm(struct quic_conn *conn, uint64_t now);
/* Gives back what only the handshake needed, once that is confirmed. Not while a packet is being taken or
 * built. */
void quic_handshake_release(struct quic_conn *conn);
void quic_conn_maybe_free(struct quic_conn *conn);

/* conn_recv.c */
struct quic_packet_info {
    uint64_t now;
    const struct quic_addr *peer, *local;
    uint8_t ecn;
    uint32_t datagram_bytes;
};
/* One long- or short-header packet; `header` points into writable memory. */
void quic_conn_receive(struct quic_conn *conn, const struct quic_packet_info *info,
                       struct quic_header *header);
/* Short-header packets of one train: at most CRYPTO_HP_BATCH datagrams of `segment` bytes (the last may be
 * shorter), `len` bytes in all, each `stride` bytes behind the one before. */
void quic_conn_receive_train(struct quic_conn *conn, const struct quic_packet_info *info, uint8_t *data,
                             size_t len, size_t segment, size_t stride);
void quic_conn_retry_pending(struct quic_conn *conn, uint64_t now);
/* Bytes came from this address, whatever they are: they count for anti-amplification (section 8.1). */
void quic_conn_bytes_received(struct quic_conn *conn, const struct quic_packet_info *info);
void quic_conn_retry_received(struct quic_conn *conn, uint64_t now, const struct quic_header *header);
void quic_conn_stateless_reset(struct quic_conn *conn, uint64_t now);
void quic_conn_version_negotiation(struct quic_conn *conn, uint64_t now, const struct quic_header *header);

/* A packet of this space was taken: timers, address validation, and an answer may be due. */
void quic_conn_after_packet(struct quic_conn *conn, const struct quic_packet_info *info,
                            enum quic_space_id id);

/* conn_take.c: a run of packets that bring a stream's next bytes, one after the other. */
struct quic_taken {
    struct quic_stream *stream;
    uint32_t packets;  /* Taken and not yet accounted for: quic_taken_end is due before anything else. */
    bool looked, here; /* Where the train comes from was compared; it is the active path. */
    bool plain;        /* The last one's frame had an offset and no length, as those of a train do. */
};
/* Where a packet's plaintext goes if it is what quic_take_predict expects. */
struct quic_landing {
    uint8_t *at;
    uint32_t head_len, len; /* Of frame type, id and offset; of the data. */
    uint8_t head[17], saved[17];
};
/* Is it such a packet? Then it has been taken: its bytes are the stream's, its number is received. */
bool quic_take_stream(struct quic_conn *conn, const struct quic_packet_info *info, uint64_t pn,
                      const uint8_t *payload, size_t len, struct quic_taken *taken);
/* Before a packet of `len` bytes of plaintext is opened: true if it likely is such a packet too. Then it is
 * to be opened into landing->at, and quic_take_landed says if it was one, and takes it. Afterwards, also when
 * it did not open, the caller copies landing->saved back (and first the plaintext away, if it was not one).
 */
bool quic_take_predict(struct quic_conn *conn, uint64_t pn, size_t len, const struct quic_taken *taken,
                       struct quic_landing *landing);
bool quic_take_landed(struct quic_conn *conn, uint64_t pn, const struct quic_landing *landing,
                      struct quic_taken *taken);
void quic_taken_end(struct quic_conn *conn, const struct quic_packet_info *info, struct quic_taken *taken);

/* conn_frames.c: 0, a transport error, or QUIC_NOT_NOW when memory was short: the packet counts as not
 * received. */
#define QUIC_NOT_NOW (-1)
struct quic_frames_result {
    const uint8_t *dcid; /* In: our id that a 1-RTT packet was sent to. */
    bool eliciting, non_probing;
    uint64_t frame_type; /* Of the frame in error. */
    const char *why;
};
int quic_conn_frames(struct quic_conn *conn, const struct quic_packet_info *info, enum quic_packet_type type,
                     const uint8_t *payload, size_t len, uint8_t path, struct quic_frames_result *result);

/* conn_ack.c */
int quic_conn_on_ack(struct quic_conn *conn, uint64_t now, enum quic_space_id id,
                     const struct quic_frame *ack, const char **why);
void quic_conn_frames_lost(struct quic_conn *conn, enum quic_space_id id, const struct quic_sent_packet *p);

/* conn_ackfreq.c */
void quic_ack_frequency_init(struct quic_conn *conn); /* When the peer's parameters are known, and before. */
/* The min_ack_delay to offer, in microseconds; QUIC_NO_MIN_ACK_DELAY: none. */
uint64_t quic_ack_frequency_offer(const struct quic_conn *conn, uint64_t max_ack_delay_ms);
int quic_ack_frequency_on_frame(struct quic_conn *conn, const struct quic_frame *f, const char **why);
int quic_ack_frequency_on_immediate(struct quic_conn *conn, const char **why);
bool quic_ack_frequency_taken(const struct quic_conn *conn); /* By the peer. */
void quic_ack_frequency_update(struct quic_conn *conn);      /* The window may have moved. */
void quic_ack_frequency_acked(struct quic_conn *conn, uint64_t sequence);
void quic_ack_frequency_lost(struct quic_conn *conn, uint64_t sequence);

/* recovery.c */
void quic_recovery_init(struct quic_conn *conn);
void quic_recovery_release(struct quic_conn *conn); /* The congestion controller's own memory. */
void quic_recovery_rtt(struct quic_conn *conn, uint64_t now, uint64_t sample_ns, uint64_t ack_delay_ns);
uint64_t quic_recovery_pto(const struct quic_conn *conn, enum quic_space_id id); /* Without back-off. */
void quic_recovery_detect_loss(struct quic_conn *conn, uint64_t now, enum quic_space_id id);
/* The deadline of loss detection or PTO; QUIC_NEVER. */
uint64_t quic_recovery_deadline(const struct quic_conn *conn, enum quic_space_id *which, bool *is_loss);
void quic_recovery_on_timer(struct quic_conn *conn, uint64_t now);
void quic_recovery_sent(struct quic_conn *conn, uint64_t now, enum quic_space_id id,
                        struct quic_sent_packet *p);
/* The same for `packets` full 1-RTT packets of the active path, `bytes` in all, when no probe is due. */
void quic_recovery_sent_many(struct quic_conn *conn, uint64_t now, uint32_t packets, uint64_t bytes,
                             bool ect);
/* A packet leaves the flight without being acknowledged or lost (its space is discarded). */
void quic_recovery_remove_space(struct quic_conn *conn, enum quic_space_id id);
/* Packets of this space were not and will not be taken: what they carried goes out again. No sign of
 * congestion. */
void quic_recovery_resend_space(struct quic_conn *conn, enum quic_space_id id);
void quic_recovery_new_path(struct quic_conn *conn, bool same_ip);
/* Nothing is left to send: if the window has room, the application limits. */
void quic_recovery_drained(struct quic_conn *conn, uint64_t now);
/* Bytes congestion control and pacing allow now; sets pace_next_ns when pacing is what stops. */
uint64_t quic_recovery_allowance(struct quic_conn *conn, uint64_t now);
void quic_recovery_ecn(struct quic_conn *conn, uint64_t now, struct quic_space *space,
                       const struct quic_frame *ack, uint64_t newly_acked_ect, uint64_t largest_sent_ns);

/* conn_write.c */
struct quic_packet_builder {
    struct quic_conn *conn;
    uint64_t now;
    enum quic_space_id id;
    struct quic_keys *keys;
    uint64_t pn;
    uint8_t *start;   /* First byte of the packet. */
    uint8_t *payload; /* First byte after the packet number. */
    uint8_t *p;       /* Where the next frame goes. */
    uint8_t *end;     /* Frames end here: the tag still fits after. */
    uint32_t pn_offset;
    bool eliciting, padded, mtu_probe, early;
    uint32_t frames_mark; /* Log position of the packet's first record. */
};
#define QUIC_PACKET_FRAMES                                                                                   \
    64u /* Records a packet may have: enough for any full packet that is not made of crumbs. */
/* Frames of every kind, in order of urgency; with `only_ack` no other frame (congestion control does not
 * allow it). */
void quic_write_frames(struct quic_packet_builder *b, bool only_ack);
/* Would quic_write_frames write anything? */
bool quic_write_pending(struct quic_conn *conn, uint64_t now, enum quic_space_id id, bool only_ack);

/* conn_train.c */
struct quic_train {
    uint8_t *at;                      /* Where the next datagram goes. */
    size_t size, stride;              /* Of a full datagram; between two, 0: end to end. */
    uint64_t len, room;               /* Bytes of the datagrams so far; that may still be added. */
    uint32_t n, max;                  /* Datagrams. */
    uint32_t pn_offset;               /* In each. */
    uint8_t *starts[CRYPTO_HP_BATCH]; /* Header protection comes when all are built. */
};
/* As many full packets as have new bytes of the stream whose turn it is; answers how many: 0 when something
 * else is due as well. */
uint32_t quic_train_stream(struct quic_conn *conn, uint64_t now, struct quic_train *train);

/* conn_send.c */
bool quic_conn_transmit(struct quic_conn *conn, uint64_t now, struct quic_tx *tx);

/* conn_streams.c */
struct quic_stream *quic_stream_find(struct quic_conn *conn, uint64_t id);
/* For a frame from the peer: opens its streams implicitly. NULL with *error 0: closed already, ignore the
 * frame. */
struct quic_stream *quic_stream_for_frame(struct quic_conn *conn, uint64_t id, bool sending_part, int *error);
void quic_stream_schedule(struct quic_conn *conn, struct quic_stream *s); /* It may have data to send. */
void quic_stream_unschedule(struct quic_conn *conn, struct quic_stream *s);
void quic_stream_owe(struct quic_conn *conn, struct quic_stream *s, uint8_t what);
void quic_stream_tell(struct quic_conn *conn, struct quic_stream *s, uint8_t what);
void quic_stream_maybe_close(struct quic_conn *conn, struct quic_stream *s);
void quic_streams_release(struct quic_conn *conn);
/* When to tell the peer once more that its flow control holds us (section 4.1); QUIC_NEVER. */
uint64_t quic_blocked_deadline(const struct quic_conn *conn);
void quic_blocked_on_timer(struct quic_conn *conn, uint64_t now);
void quic_streams_apply_peer_limits(struct quic_conn *conn);
int quic_stream_on_data(struct quic_conn *conn, const struct quic_frame *f, const char **why);
int quic_stream_on_reset(struct quic_conn *conn, const struct quic_frame *f, const char **why);
int quic_stream_on_stop(struct quic_conn *conn, const struct quic_frame *f, const char **why);
int quic_stream_on_max_data(struct quic_conn *conn, const struct quic_frame *f, const char **why);
void quic_conn_credit(struct quic_conn *conn, uint64_t now, uint64_t bytes);

/* conn_cids.c */
bool quic_cids_init(struct quic_conn *conn);
struct quic_local_cid *quic_local_cid_first(struct quic_conn *conn);
void quic_cids_issue(struct quic_conn *conn);
int quic_cids_on_new(struct quic_conn *conn, const struct quic_frame *f, const char **why);
int quic_cids_on_retire(struct quic_conn *conn, const struct quic_frame *f, const uint8_t *dcid,
                        const char **why);
void quic_cids_set_peer(struct quic_conn *conn,
                        const struct quic_cid *cid); /* Sequence 0, during the handshake. */
void quic_cids_set_reset_token(struct quic_conn *conn, const uint8_t token[QUIC_RESET_TOKEN_BYTES]);
/* A peer id no path uses, for a new path; -1: none. */
int quic_cids_take_unused(struct quic_conn *conn);
void quic_cids_retire_peer(struct quic_conn *conn, uint8_t index);
void quic_cids_release(struct quic_conn *conn);
void quic_reset_token(const struct quic_endpoint *ep, const struct quic_cid *cid,
                      uint8_t out[QUIC_RESET_TOKEN_BYTES]);

/* conn_paths.c */
/* The path these addresses belong to; makes one when the peer has moved. -1: refuse the packet (reason
 * counted). */
int quic_path_for(struct quic_conn *conn, const struct quic_packet_info *info);
void quic_path_on_packet(struct quic_conn *conn, const struct quic_packet_info *info, uint8_t path,
                         bool non_probing, bool newest);
void quic_path_on_challenge(struct quic_conn *conn, uint8_t path, const uint8_t data[8]);
void quic_path_on_response(struct quic_conn *conn, uint64_t now, const uint8_t data[8]);
void quic_path_validate(struct quic_conn *conn, uint64_t now, uint8_t path);
void quic_path_on_timer(struct quic_conn *conn, uint64_t now);
uint64_t quic_path_deadline(const struct quic_conn *conn);
/* Bytes that anti-amplification still allows on this path. */
uint64_t quic_path_allowance(const struct quic_path *path);
/* Is too little left for any packet now? While Initial packets are in play that is a full datagram
 * (section 14.1). */
bool quic_path_blocked(const struct quic_conn *conn);

/* conn_mtu.c */
void quic_mtu_reset(struct quic_conn *conn); /* Another path: nothing is known of it. */
/* Is a probe to be sent now? Of `size` bytes, at most `cap`. */
bool quic_mtu_probe_due(struct quic_conn *conn, uint64_t now, size_t cap, uint16_t *size);
void quic_mtu_probe_sent(struct quic_conn *conn, uint16_t size);
void quic_mtu_on_probe(struct quic_conn *conn, uint64_t now, bool acked, uint16_t size);
/* Any other 1-RTT packet was acknowledged or lost: black holes are found so. */
void quic_mtu_on_ack(struct quic_conn *conn, uint64_t pn, uint16_t size);
void quic_mtu_on_loss(struct quic_conn *conn, uint64_t pn, uint16_t size);

/* conn_early.c */
void quic_early_release(struct quic_conn *conn);
/* Early keys; false: out of order, out of memory, or unsupported. */
bool quic_early_install(struct quic_conn *conn, bool send, enum crypto_aead aead, const uint8_t *secret,
                        size_t len);
/* Client: are the server's parameters possible after the remembered ones? False: the connection is closing.
 */
bool quic_early_check_params(struct quic_conn *conn, uint64_t now, const struct quic_params *p);
/* Client: streams opened on remembered limits get what the server permits now. */
void quic_early_raise_limits(struct quic_conn *conn);

/* conn_rest.c */
/* Make the keys of 1-RTT packets usable. False: no memory. */
bool quic_conn_wake(struct quic_conn *conn);
/* Only the keys go; everything else stays as it is. */
void quic_conn_rest_keys(struct quic_conn *conn);
uint64_t quic_rest_deadline(const struct quic_conn *conn); /* QUIC_NEVER: not while things are as they are. */
void quic_rest_on_timer(struct quic_conn *conn, uint64_t now);

/* conn_timer.c */
void quic_conn_update_timer(struct quic_conn *conn);

#endif
