/* A stream: its sending part and its receiving part, RFC 9000 sections 2 to 4, with their state machines
 * (section 3).
 *
 *   sending    SEND ──fin queued, all sent──▶ DATA_SENT ──all acked──▶ DATA_RECVD
 *                └──reset──▶ RESET_SENT ──acked──▶ RESET_RECVD
 *   receiving  RECV ──fin seen──▶ SIZE_KNOWN ──all bytes in──▶ (delivered) ──▶ DATA_READ
 *                └──RESET_STREAM──▶ RESET_RECVD ──reader told──▶ RESET_READ
 *
 * Sending buffer: a ring of segments, each one chunk the writer filled and gave away. A segment's chunk is
 * released when all of it is acknowledged. `lost` are ranges to send again; `acked` ranges above `base`.
 *
 * Receiving buffer: chunk slots by stream offset. The first 64 KiB use small chunks, the rest large ones, so
 * that a short stream is cheap and a long one needs one chunk a train. A slot's chunk passes to the reader
 * when it is delivered to its end.
 */
#ifndef STOQ_QUIC_STREAM_H
#define STOQ_QUIC_STREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "quic.h"
#include "ranges.h"

#define QUIC_STREAM_SMALL_SPAN  65536u /* Bytes at a stream's start kept in small chunks. */
#define QUIC_STREAM_SMALL_SLOTS (QUIC_STREAM_SMALL_SPAN / QUIC_SMALL_CHUNK_BYTES)
/* Gaps tracked in one stream, received and acknowledged. A 40 Gbit/s * 50 ms window holds 185,000 packets; a
 * loss rate of 1 % leaves about 1,900 gaps in it. */
#define QUIC_STREAM_RANGES 4096u
#define QUIC_MAX_SEGMENTS                                                                                    \
    65536u /* Segments queued on one stream: bounds what a writer of tiny pieces can hold. */

#define QUIC_STREAM_ID_UNI    2u
#define QUIC_STREAM_ID_SERVER 1u

enum quic_send_state {
    QUIC_SEND_NONE, /* Receive only. */
    QUIC_SEND_OPEN,
    QUIC_SEND_DATA_SENT,
    QUIC_SEND_DATA_RECVD,
    QUIC_SEND_RESET_SENT,
    QUIC_SEND_RESET_RECVD
};

enum quic_recv_state {
    QUIC_RECV_NONE, /* Send only. */
    QUIC_RECV_OPEN,
    QUIC_RECV_SIZE_KNOWN,
    QUIC_RECV_DATA_READ,
    QUIC_RECV_RESET_RECVD,
    QUIC_RECV_RESET_READ
};

/* Frames a stream owes, sent before new data. */
#define QUIC_OWES_RESET    0x01u
#define QUIC_OWES_STOP     0x02u
#define QUIC_OWES_MAX_DATA 0x04u
#define QUIC_OWES_BLOCKED  0x08u

/* Events the reader has not seen. */
#define QUIC_TELL_STOP  0x01u
#define QUIC_TELL_ACKED 0x02u
#define QUIC_TELL_RESET 0x04u
#define QUIC_TELL_DATA  0x08u

struct quic_segment {
    const uint8_t *data;
    uint64_t offset;
    uint32_t chunk, len;
};

struct quic_send_part {
    enum quic_send_state state;
    bool fin; /* `end` is the final size. */
    bool fin_sent, fin_lost, fin_acked;
    uint32_t head, tail, mask; /* Segment ring: head oldest; tail - head in use. */
    uint32_t cursor;           /* Segment that holds `next`. */
    struct quic_segment *segments;
    uint64_t base;       /* Everything below is acknowledged. */
    uint64_t next;       /* Next offset to send the first time. */
    uint64_t end;        /* Bytes queued in all. */
    uint64_t max;        /* Peer's MAX_STREAM_DATA. */
    uint64_t blocked_at; /* Limit that STREAM_DATA_BLOCKED was last sent for, plus 1. */
    uint64_t reset_code;
    uint64_t stop_code;  /* From the peer's STOP_SENDING. */
    uint64_t told_acked; /* Value of the last ACKED event. */
    struct quic_ranges acked, lost;
};

struct quic_recv_slot {
    uint8_t *data; /* NULL: empty */
    uint32_t chunk;
};

struct quic_recv_part {
    enum quic_recv_state state;
    bool stopped; /* We sent STOP_SENDING: what comes is counted and thrown away. */
    bool fin_told;
    uint32_t slot_mask,
        slot_first; /* Ring of slots; slot_first is the chunk index of the slot holding `delivered`. */
    struct quic_recv_slot *slots;
    uint64_t delivered;  /* Given to the reader. */
    uint64_t consumed;   /* Given back by the reader. */
    uint64_t highest;    /* One past the highest byte received. */
    uint64_t final_size; /* UINT64_MAX: unknown */
    uint64_t max;        /* MAX_STREAM_DATA we advertised. */
    uint64_t window;
    uint64_t window_moved_ns; /* When `max` was last raised: auto-tuning. */
    uint64_t reset_code, stop_code;
    struct quic_ranges received;
};

struct quic_stream {
    uint64_t id;
    struct quic_stream *next_in_bucket;
    struct quic_stream *send_prev, *send_next; /* conn->data_streams ring; NULL: not in it. */
    struct quic_stream *owe_next, *tell_next;  /* Singly linked queues. */
    bool owe_queued, tell_queued;
    uint8_t owes, tells;
    uint32_t quantum; /* Bytes left of its turn. */
    struct quic_send_part send;
    struct quic_recv_part recv;
};

static inline uint32_t quic_chunk_index(uint64_t offset) {
    return offset < QUIC_STREAM_SMALL_SPAN
               ? (uint32_t)(offset / QUIC_SMALL_CHUNK_BYTES)
               : QUIC_STREAM_SMALL_SLOTS +
                     (uint32_t)((offset - QUIC_STREAM_SMALL_SPAN) / QUIC_LARGE_CHUNK_BYTES);
}

static inline uint64_t quic_chunk_start(uint32_t index) {
    return index < QUIC_STREAM_SMALL_SLOTS
               ? (uint64_t)index * QUIC_SMALL_CHUNK_BYTES
               : QUIC_STREAM_SMALL_SPAN +
                     (uint64_t)(index - QUIC_STREAM_SMALL_SLOTS) * QUIC_LARGE_CHUNK_BYTES;
}

static inline uint32_t quic_chunk_bytes(uint32_t index) {
    return index < QUIC_STREAM_SMALL_SLOTS ? QUIC_SMALL_CHUNK_BYTES : QUIC_LARGE_CHUNK_BYTES;
}

void quic_send_part_init(struct quic_send_part *s, uint64_t max);
void quic_recv_part_init(struct quic_recv_part *r, uint64_t window);
/* Give back chunks and memory. */
void quic_send_part_release(struct quic_send_part *s, const struct quic_host *host);
void quic_recv_part_release(struct quic_recv_part *r, const struct quic_host *host);

/* Append a segment (len > 0). False: no memory or too many segments. */
bool quic_send_part_append(struct quic_send_part *s, const struct quic_host *host, uint32_t chunk,
                           const uint8_t *data, uint32_t len);
/* Is there anything to send: lost bytes, a lost FIN, new bytes the peer's stream limit allows, or a FIN not
 * sent? */
bool quic_send_part_pending(const struct quic_send_part *s);
/* Pick the next piece: at most `room` bytes, and of those new to the peer at most `credit` (connection flow
 * control). Returns the length; *offset, *fin, *fresh (bytes sent the first time) tell the rest. With length
 * 0 and !*fin nothing is to be sent. */
uint32_t quic_send_part_next(struct quic_send_part *s, const struct quic_host *host, uint32_t room,
                             uint64_t credit, uint64_t *offset, bool *fin, uint32_t *fresh);
/* Position in the ring of the segment that holds `offset`, which is below `end`. */
uint32_t quic_send_part_segment(const struct quic_send_part *s, uint64_t offset);
/* Copy [offset, offset + len) of the buffer to `out`. */
void quic_send_part_copy(struct quic_send_part *s, uint64_t offset, uint32_t len, uint8_t *out);
/* Acknowledged: true when `base` moved or the part came to its end. Releases chunks. */
bool quic_send_part_acked(struct quic_send_part *s, const struct quic_host *host, uint64_t offset,
                          uint32_t len, bool fin);
/* Lost: what is not acknowledged of it goes out again. */
void quic_send_part_lost(struct quic_send_part *s, const struct quic_host *host, uint64_t offset,
                         uint32_t len, bool fin);

/* Store received bytes. Flow control and final size were checked by the caller. False: no memory, treat the
 * packet as not received. */
bool quic_recv_part_write(struct quic_recv_part *r, const struct quic_host *host, uint64_t offset,
                          const uint8_t *data, uint32_t len);
/* The usual case of it, where there is no gap: the next bytes, all for a chunk that is there. False: not that
 * case, and nothing has happened. */
bool quic_recv_part_append(struct quic_recv_part *r, const uint8_t *data, uint32_t len);
/* Where the next `len` bytes go when there is no gap and one chunk takes them all, if the `before` bytes in
 * front of that lie in the chunk too and nobody has been told of them; NULL: not so. */
uint8_t *quic_recv_part_place(const struct quic_recv_part *r, uint32_t before, uint32_t len);
/* Bytes in order, not yet delivered. */
uint64_t quic_recv_part_readable(const struct quic_recv_part *r);
/* The next piece for the reader, within one chunk; the caller of this owns one reference of *chunk. 0: none.
 */
uint32_t quic_recv_part_deliver(struct quic_recv_part *r, const struct quic_host *host, uint32_t *chunk,
                                uint32_t *chunk_offset, const uint8_t **data);

#endif
