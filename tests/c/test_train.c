/* The short ways of sending and receiving (csrc/quic/conn_train.c, conn_take.c): whatever comes between,
 * before or instead of a stream's next packets in a train, every byte is where it belongs, and what is wrong
 * has the consequence it has singly. */
#include "../fuzz/pair.h"
#include "check.h"

#define STREAM    3u /* The server's first unidirectional one. */
#define OTHER     7u
#define SPAN      60000u
#define DATAGRAM  300u /* Small, so that a run lies within one small chunk. */
#define TRAIN_MAX 20u

/* What the client has read of each stream. */
static uint64_t read_bytes[2];
static bool read_fin[2];

static uint8_t pattern(uint64_t id, uint64_t offset) {
    return (uint8_t)(offset * 31 + (offset >> 8) * 7 + id);
}

static void read_all(struct pair *pair) {
    struct quic_conn *conn = pair_conn(pair, PAIR_CLIENT);
    struct quic_event e;
    while (conn != NULL && quic_conn_poll(conn, &e)) {
        if (e.type == STOQ_EVENT_STREAM_DATA) {
            unsigned which = e.stream_id == OTHER;
            for (uint32_t i = 0; i < e.len; i++)
                REQUIRE(e.data[i] == pattern(e.stream_id, read_bytes[which] + i));
            read_bytes[which] += e.len;
            read_fin[which] |= (e.flags & QUIC_EVENT_FIN) != 0;
            quic_stream_consumed(conn, pair->now, e.stream_id, e.len);
        }
        if (e.chunk != QUIC_NO_CHUNK)
            host_chunk_unref(pair, e.chunk);
    }
}

static struct pair *begin(void) {
    struct pair *pair = pair_create(false, 0);
    while (pair->stage < PAIR_STAGES)
        pair_advance(pair);
    memset(read_bytes, 0, sizeof read_bytes);
    memset(read_fin, 0, sizeof read_fin);
    return pair;
}

/* A train being made of sealed packets of the server. */
struct train {
    uint8_t data[TRAIN_MAX * DATAGRAM];
    unsigned n;
};

struct frame {
    uint64_t id, offset;
    uint32_t len; /* 0: up to the packet's end. */
    bool fin, long_offset, before, behind, wrong_tag, reserved;
};

/* Answers how many bytes of data the packet holds. */
static uint32_t add(struct pair *pair, struct train *t, struct frame f) {
    uint8_t payload[DATAGRAM], *p = payload, *at = t->data + t->n * DATAGRAM;
    size_t room = DATAGRAM - 9 - 4 - CRYPTO_TAG_BYTES;
    bool to_end = f.len == 0 && !f.behind;
    if (f.before)
        *p++ = QUIC_FRAME_PING;
    *p++ = (uint8_t)(QUIC_FRAME_STREAM | (f.offset || f.long_offset ? QUIC_STREAM_OFF : 0) |
                     (to_end ? 0 : QUIC_STREAM_LEN) | (f.fin ? QUIC_STREAM_FIN : 0));
    p = quic_put_varint(p, f.id);
    if (f.long_offset) {
        quic_store64(p, f.offset | UINT64_C(3) << 62);
        p += 8;
    } else if (f.offset) {
        p = quic_put_varint(p, f.offset);
    }
    uint32_t most = (uint32_t)(room - (size_t)(p - payload));
    uint32_t len = to_end ? most : f.len && f.len < most - 3 ? f.len : most - 3;
    if (!to_end)
        p = quic_put_varint2(p, (uint16_t)len);
    for (uint32_t i = 0; i < len; i++)
        *p++ = pattern(f.id, f.offset + i);
    memset(p, 0, room - (size_t)(p - payload)); /* PADDING. */
    REQUIRE(pair_seal(pair, PAIR_SERVER, QUIC_SPACE_APP, f.reserved, payload, room, at, DATAGRAM + 200) ==
            DATAGRAM);
    if (f.wrong_tag)
        at[DATAGRAM - 1] ^= 1;
    t->n++;
    return len;
}

static void deliver(struct pair *pair, struct train *t) {
    struct quic_rx rx = {.data = t->data, .len = t->n * DATAGRAM, .segment = DATAGRAM};
    rx.peer = pair->addr[PAIR_SERVER];
    rx.local = pair->addr[PAIR_CLIENT];
    quic_endpoint_receive(pair->party[PAIR_CLIENT].ep, pair->now, &rx);
    pair_check(pair);
    t->n = 0;
}

/* A run with one odd packet at each place in turn; then what it kept back comes in order. */
static void odd_packet(const char *name, struct frame odd, bool replaces, uint64_t aead_drops) {
    for (unsigned place = 0; place < 8; place++) {
        struct pair *pair = begin();
        static struct train t;
        uint64_t next = 0, drops = pair->party[PAIR_CLIENT].drops[STOQ_DROP_AEAD];
        check_note("%s at %u", name, place);
        t.n = 0;
        for (unsigned i = 0; i < 8; i++) {
            if (i == place) {
                struct frame f = odd;
                f.offset += f.id == STREAM ? next : 0;
                uint32_t len = add(pair, &t, f);
                if (replaces)
                    next += len;
            } else {
                next += add(pair, &t, (struct frame){.id = STREAM, .offset = next});
            }
        }
        deliver(pair, &t);
        read_all(pair);
        CHECK_EQ(pair->party[PAIR_CLIENT].drops[STOQ_DROP_AEAD] - drops, aead_drops);
        CHECK_EQ(read_bytes[0], next);
        CHECK(quic_is_open(pair_conn(pair, PAIR_CLIENT)));
        pair_destroy(pair);
    }
}

static void odd_packets(void) {
    odd_packet("plain", (struct frame){.id = STREAM}, true, 0);
    odd_packet("wrong tag", (struct frame){.id = STREAM, .wrong_tag = true}, false, 1);
    odd_packet("other stream", (struct frame){.id = OTHER}, false, 0);
    odd_packet("length given", (struct frame){.id = STREAM, .len = 700}, true, 0);
    odd_packet("another frame before", (struct frame){.id = STREAM, .before = true}, true, 0);
    odd_packet("padding behind", (struct frame){.id = STREAM, .behind = true}, true, 0);
    odd_packet("offset in eight bytes", (struct frame){.id = STREAM, .long_offset = true}, true, 0);
}

/* A gap, its later filling, and bytes that come twice. */
static void gap(void) {
    struct pair *pair = begin();
    static struct train t;
    uint64_t next = 0, hole, after;
    for (unsigned i = 0; i < 4; i++)
        next += add(pair, &t, (struct frame){.id = STREAM, .offset = next});
    hole = next;
    next += 250;
    after = next;
    for (unsigned i = 0; i < 4; i++)
        next += add(pair, &t, (struct frame){.id = STREAM, .offset = next});
    deliver(pair, &t);
    read_all(pair);
    CHECK_EQ(read_bytes[0], hole);
    add(pair, &t, (struct frame){.id = STREAM, .offset = hole - 100}); /* Overlaps both sides. */
    add(pair, &t, (struct frame){.id = STREAM, .offset = after - 200});
    deliver(pair, &t);
    read_all(pair);
    CHECK_EQ(read_bytes[0], next);
    pair_destroy(pair);
}

static void fin_ends_a_run(void) {
    struct pair *pair = begin();
    static struct train t;
    uint64_t next = 0;
    for (unsigned i = 0; i < 6; i++)
        next += add(pair, &t, (struct frame){.id = STREAM, .offset = next, .fin = i == 5});
    deliver(pair, &t);
    read_all(pair);
    CHECK_EQ(read_bytes[0], next);
    CHECK(read_fin[0]);
    pair_destroy(pair);
}

/* The bits that header protection covers and nothing may set (RFC 9000 section 17.3.1). */
static void reserved_bits_close(void) {
    struct pair *pair = begin();
    static struct train t;
    uint64_t next = 0;
    for (unsigned i = 0; i < 6; i++)
        next += add(pair, &t, (struct frame){.id = STREAM, .offset = next, .reserved = i == 4});
    deliver(pair, &t);
    CHECK(!quic_is_open(pair_conn(pair, PAIR_CLIENT)));
    CHECK_EQ(pair_conn(pair, PAIR_CLIENT)->close_code, QUIC_PROTOCOL_VIOLATION);
    pair_destroy(pair);
}

/* A byte past the stream's limit, or the connection's, in the middle of a run. */
static void flow_control_holds(void) {
    for (unsigned which = 0; which < 2; which++) {
        struct pair *pair = begin();
        struct quic_conn *client = pair_conn(pair, PAIR_CLIENT);
        static struct train t;
        uint64_t next = add(pair, &t, (struct frame){.id = STREAM});
        deliver(pair, &t);
        uint64_t limit = next + 1000; /* Within a chunk, which ends a run of itself. */
        if (which == 0)
            quic_stream_find(client, STREAM)->recv.max = limit;
        else
            client->recv_max = client->recv_total + 1000;
        while (next <= limit)
            next += add(pair, &t, (struct frame){.id = STREAM, .offset = next});
        REQUIRE(t.n > 3);
        deliver(pair, &t);
        CHECK_EQ(client->close_code, QUIC_FLOW_CONTROL_ERROR);
        CHECK(!quic_is_open(client));
        pair_destroy(pair);
    }
}

/* What the reader has been told of may be read at any time: a place that begins with it is none. */
static void told_bytes_are_left_alone(void) {
    struct pair *pair = begin();
    static struct train t;
    uint64_t next = 0;
    for (unsigned i = 0; i < 3; i++)
        next += add(pair, &t, (struct frame){.id = STREAM, .offset = next});
    deliver(pair, &t);
    const struct quic_recv_part *r = &quic_stream_find(pair_conn(pair, PAIR_CLIENT), STREAM)->recv;
    CHECK(quic_recv_part_place(r, 10, 100) != NULL);
    CHECK(quic_recv_part_place(r, 10, QUIC_SMALL_CHUNK_BYTES) == NULL);
    CHECK(quic_recv_part_place(r, (uint32_t)next + 1, 100) == NULL);
    read_all(pair);
    CHECK(quic_recv_part_place(r, 10, 100) == NULL && quic_recv_part_place(r, 1, 100) == NULL);
    CHECK(quic_recv_part_place(r, 0, 100) != NULL);
    pair_destroy(pair);
}

/* Frames of both streams in any form and order, some wrong, some again, read at random times, to the end. */
static void anything(void) {
    for (unsigned round = 0; round < 60; round++) {
        struct pair *pair = begin();
        static struct train t;
        uint64_t next[2] = {0, 0};
        while (read_bytes[0] < SPAN || read_bytes[1] < SPAN) {
            unsigned n = 1 + check_rand() % TRAIN_MAX, which = check_rand() % 2;
            t.n = 0;
            for (unsigned i = 0; i < n; i++) {
                if (check_rand() % 6 == 0)
                    which ^= 1;
                /* Never past what was read: the window of half as much is not met. */
                if (next[which] > read_bytes[which] + 12000)
                    next[which] = read_bytes[which];
                struct frame f = {.id = which ? OTHER : STREAM, .offset = next[which]};
                unsigned draw = check_rand() % 24;
                f.wrong_tag = draw == 0;
                f.before = draw == 1;
                f.behind = draw == 2;
                f.long_offset = draw == 3;
                f.len = draw == 4 ? 1 + check_rand() % 900 : 0;
                if (draw == 5) /* Something gets lost. */
                    f.offset = next[which] += 1 + check_rand() % 3000;
                if (draw == 6 && f.offset > 400)
                    f.offset -= check_rand() % 400;
                uint32_t len = add(pair, &t, f);
                if (!f.wrong_tag)
                    next[which] = f.offset + len;
            }
            deliver(pair, &t);
            if (check_rand() % 3) {
                read_all(pair);
                next[which] = check_rand() % 2 ? read_bytes[which] : next[which];
            }
            pair_transmit(pair, PAIR_CLIENT, false); /* ACKs and windows. */
            REQUIRE(quic_is_open(pair_conn(pair, PAIR_CLIENT)));
        }
        pair_destroy(pair);
    }
}

/* The engine's own trains, delivered whole: some streams of different sizes, byte for byte. */
static void own_trains(void) {
    for (unsigned round = 0; round < 20; round++) {
        struct pair *pair = begin();
        struct quic_conn *server = pair_conn(pair, PAIR_SERVER);
        uint64_t sent[2] = {0, 0}, want[2] = {20000 + check_rand() % 90000, check_rand() % 90000};
        for (unsigned turn = 0; read_bytes[0] < want[0] || read_bytes[1] < want[1]; turn++) {
            REQUIRE(turn < 2000);
            for (unsigned which = 0; which < 2; which++) {
                uint64_t id = which ? OTHER : STREAM;
                while (sent[which] < want[which] && quic_stream_unsent(server, id) < 20000) {
                    uint8_t *data;
                    uint32_t chunk = host_chunk_alloc(pair, QUIC_SMALL_CHUNK_BYTES, &data);
                    uint64_t left = want[which] - sent[which];
                    uint32_t len = 1 + check_rand() % (check_rand() % 3 ? QUIC_SMALL_CHUNK_BYTES : 300);
                    len = len < left ? len : (uint32_t)left;
                    for (uint32_t i = 0; i < len; i++)
                        data[i] = pattern(id, sent[which] + i);
                    sent[which] += len;
                    REQUIRE(quic_stream_send(server, pair->now, id, chunk, data, len,
                                             sent[which] == want[which]));
                }
            }
            static uint8_t data[65536];
            struct quic_tx tx = {.data = data, .cap = sizeof data, .max_segments = 1 + check_rand() % 64};
            while (quic_endpoint_transmit(pair->party[PAIR_SERVER].ep, pair->now, &tx)) {
                struct quic_rx rx = {.data = data, .len = tx.len, .segment = tx.segment};
                rx.peer = pair->addr[PAIR_SERVER];
                rx.local = pair->addr[PAIR_CLIENT];
                if (check_rand() % 12) /* Else lost. */
                    quic_endpoint_receive(pair->party[PAIR_CLIENT].ep, pair->now, &rx);
                tx =
                    (struct quic_tx){.data = data, .cap = sizeof data, .max_segments = 1 + check_rand() % 64};
            }
            read_all(pair);
            pair_transmit(pair, PAIR_CLIENT, true);
            pair_sleep(pair, 3000000);
        }
        CHECK(read_fin[0]);
        pair_destroy(pair);
    }
}

static const struct check_case cases[] = {
    {"train_odd_packets", odd_packets},
    {"train_gap", gap},
    {"train_fin_ends_a_run", fin_ends_a_run},
    {"train_reserved_bits_close", reserved_bits_close},
    {"train_flow_control_holds", flow_control_holds},
    {"train_told_bytes_are_left_alone", told_bytes_are_left_alone},
    {"train_anything", anything},
    {"train_own_trains", own_trains},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
