/* csrc/quic/frame.c: every frame type parsed and written, each violation with the error RFC 9000 names for
 * it, Table 3 (which packet may carry which frame), and ACK ranges against a plain list.
 */
#include "check.h"

#include "quic/frame.h"

static const enum quic_packet_type packets[4] = {QUIC_PACKET_INITIAL, QUIC_PACKET_HANDSHAKE,
                                                 QUIC_PACKET_ZERO_RTT, QUIC_PACKET_ONE_RTT};

/* Parse one frame out of exactly these bytes (on the heap: a sanitizer sees a read past the end). `used`, if
 * any, gets the bytes consumed. Data pointers of the frame are stale afterwards. */
static int parse_in(const uint8_t *bytes, size_t len, enum quic_packet_type packet, struct quic_frame *f,
                    size_t *used) {
    uint8_t *copy = malloc(len + 1);
    if (len > 0)
        memcpy(copy + 1, bytes, len); /* Ends where the allocation ends; begins unaligned. */
    struct quic_reader r = {copy + 1, copy + 1 + len};
    int error = quic_frame_parse(&r, packet, f);
    if (used != NULL)
        *used = (size_t)(r.p - copy - 1);
    free(copy);
    return error;
}

static int parse(const uint8_t *bytes, size_t len, struct quic_frame *f) {
    return parse_in(bytes, len, QUIC_PACKET_ONE_RTT, f, NULL);
}

#define BYTES(...) (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})

/* One valid frame of every type, none of which takes the rest of the packet but STREAM 8/9/c/d and DATAGRAM
 * 0x30. The shortest packet each can be cut to and still be valid tells how the parser must treat a cut. */
#define V16 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
static const struct sample {
    const char *carriers; /* Table 3's column: I, H, 0, 1. */
    uint64_t type;        /* As parsed. */
    uint8_t len;
    uint8_t bytes[40];
    uint8_t min; /* Takes the rest: valid from this length on. 0: only whole. */
} samples[] = {
    {"IH01", 0x00, 1, {0x00}, 0},
    {"IH01", 0x01, 1, {0x01}, 0},
    {"IH1", 0x02, 5, {0x02, 0x0a, 0x05, 0x00, 0x03}, 0},
    {"IH1", 0x02, 7, {0x02, 0x0a, 0x05, 0x01, 0x03, 0x01, 0x02}, 0},
    {"IH1", 0x03, 8, {0x03, 0x0a, 0x05, 0x00, 0x03, 0x01, 0x02, 0x03}, 0},
    {"01", 0x04, 6, {0x04, 0x41, 0x00, 0x07, 0x40, 0x99}, 0},
    {"01", 0x05, 3, {0x05, 0x04, 0x09}, 0},
    {"IH1", 0x06, 5, {0x06, 0x03, 0x02, 0xaa, 0xbb}, 0},
    {"1", 0x07, 4, {0x07, 0x02, 0xaa, 0xbb}, 0},
    {"01", 0x08, 4, {0x08, 0x04, 0xaa, 0xbb}, 2},
    {"01", 0x08, 4, {0x09, 0x04, 0xaa, 0xbb}, 2},
    {"01", 0x08, 5, {0x0a, 0x04, 0x02, 0xaa, 0xbb}, 0},
    {"01", 0x08, 5, {0x0b, 0x04, 0x02, 0xaa, 0xbb}, 0},
    {"01", 0x08, 5, {0x0c, 0x04, 0x11, 0xaa, 0xbb}, 3},
    {"01", 0x08, 5, {0x0d, 0x04, 0x11, 0xaa, 0xbb}, 3},
    {"01", 0x08, 6, {0x0e, 0x04, 0x11, 0x02, 0xaa, 0xbb}, 0},
    {"01", 0x08, 6, {0x0f, 0x04, 0x11, 0x02, 0xaa, 0xbb}, 0},
    {"01", 0x10, 3, {0x10, 0x50, 0x00}, 0},
    {"01", 0x11, 4, {0x11, 0x04, 0x50, 0x00}, 0},
    {"01", 0x12, 2, {0x12, 0x11}, 0},
    {"01", 0x13, 2, {0x13, 0x11}, 0},
    {"01", 0x14, 2, {0x14, 0x11}, 0},
    {"01", 0x15, 3, {0x15, 0x04, 0x11}, 0},
    {"01", 0x16, 2, {0x16, 0x11}, 0},
    {"01", 0x17, 2, {0x17, 0x11}, 0},
    {"01", 0x18, 24, {0x18, 0x05, 0x03, 0x04, 1, 2, 3, 4, V16}, 0},
    {"1", 0x19, 2, {0x19, 0x11}, 0}, /* 0-RTT too in Table 3; section 12.5 lets a server refuse it there. */
    {"01", 0x1a, 9, {0x1a, 1, 2, 3, 4, 5, 6, 7, 8}, 0},
    {"1", 0x1b, 9, {0x1b, 1, 2, 3, 4, 5, 6, 7, 8}, 0},
    {"IH01", 0x1c, 6, {0x1c, 0x0a, 0x08, 0x02, 'n', 'o'}, 0},
    {"01", 0x1d, 5, {0x1d, 0x0a, 0x02, 'n', 'o'}, 0},
    {"1", 0x1e, 1, {0x1e}, 0},
    {"01", 0x1f, 1, {0x1f}, 0},
    {"01", 0xaf, 7, {0x40, 0xaf, 0x05, 0x1f, 0x47, 0xd0, 0x03}, 0},
    {"01", 0x30, 3, {0x30, 0xaa, 0xbb}, 1},
    {"01", 0x30, 4, {0x31, 0x02, 0xaa, 0xbb}, 0},
};
#define SAMPLE_COUNT (sizeof samples / sizeof samples[0])

static void carriers(void) {
    static const char letters[] = "IH01";
    for (size_t i = 0; i < SAMPLE_COUNT; i++) {
        for (size_t p = 0; p < 4; p++) {
            check_note("type %02x in %c", samples[i].bytes[0], letters[p]);
            struct quic_frame f;
            size_t used;
            bool allowed = strchr(samples[i].carriers, letters[p]) != NULL;
            int error = parse_in(samples[i].bytes, samples[i].len, packets[p], &f, &used);
            CHECK_EQ(error, allowed ? 0 : QUIC_PROTOCOL_VIOLATION);
            CHECK_EQ(f.type, samples[i].type);
            if (allowed)
                CHECK_EQ(used, samples[i].len);
        }
        /* These carry no frames at all. */
        struct quic_frame f;
        CHECK_EQ(parse_in(samples[i].bytes, samples[i].len, QUIC_PACKET_RETRY, &f, NULL),
                 QUIC_PROTOCOL_VIOLATION);
    }
}

static void cut_short(void) {
    for (size_t i = 0; i < SAMPLE_COUNT; i++) {
        const struct sample *s = &samples[i];
        for (size_t len = 1; len < s->len; len++) {
            check_note("type %02x, %zu of %u bytes", s->bytes[0], len, s->len);
            struct quic_frame f;
            bool valid = s->min != 0 && len >= s->min;
            CHECK_EQ(parse(s->bytes, len, &f), valid ? 0 : QUIC_FRAME_ENCODING_ERROR);
            CHECK_EQ(f.type, len < quic_varint_size(s->type) ? 0 : s->type);
        }
    }
}

/* All samples that end by themselves, in a row, parse one by one, whatever follows: the fast and the careful
 * way of reading integers agree. */
static void in_a_row(void) {
    uint8_t bytes[SAMPLE_COUNT * 40];
    for (int round = 0; round < 2000; round++) {
        size_t order[SAMPLE_COUNT], count = 1 + check_rand() % SAMPLE_COUNT, len = 0;
        for (size_t i = 0; i < count; i++) {
            do
                order[i] = check_rand() % SAMPLE_COUNT;
            while (samples[order[i]].min != 0 || samples[order[i]].type == QUIC_FRAME_PADDING);
            memcpy(bytes + len, samples[order[i]].bytes, samples[order[i]].len);
            len += samples[order[i]].len;
        }
        struct quic_reader r = {bytes, bytes + len};
        for (size_t i = 0; i < count; i++) {
            struct quic_frame f;
            const uint8_t *begin = r.p;
            REQUIRE(quic_frame_parse(&r, QUIC_PACKET_ONE_RTT, &f) == 0);
            CHECK_EQ(f.type, samples[order[i]].type);
            CHECK_EQ(r.p - begin, samples[order[i]].len);
        }
        CHECK_EQ(quic_left(&r), 0);
    }
}

static void types(void) {
    struct quic_frame f;
    CHECK_EQ(parse(NULL, 0, &f), QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(f.type, 0);
    static const uint8_t unknown[] = {0x20, 0x2f, 0x32, 0x3f};
    for (size_t i = 0; i < sizeof unknown; i++) {
        CHECK_EQ(parse(BYTES(unknown[i], 0, 0, 0), &f), QUIC_FRAME_ENCODING_ERROR);
        CHECK_EQ(f.type, unknown[i]);
    }
    CHECK_EQ(parse(BYTES(0x40, 0xae, 0), &f), QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(f.type, 0xae);
    CHECK_EQ(parse(BYTES(0xc0), &f), QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(f.type, 0);
    /* Known types in more bytes than they need. */
    CHECK_EQ(parse(BYTES(0x40, 0x01), &f), QUIC_PROTOCOL_VIOLATION);
    CHECK_EQ(f.type, QUIC_FRAME_PING);
    CHECK_EQ(parse(BYTES(0x80, 0, 0, 0x06, 0, 1, 0xaa), &f), QUIC_PROTOCOL_VIOLATION);
    CHECK_EQ(f.type, QUIC_FRAME_CRYPTO);
    CHECK_EQ(parse(BYTES(0xc0, 0, 0, 0, 0, 0, 0, 0x30), &f), QUIC_PROTOCOL_VIOLATION);
    CHECK_EQ(parse(BYTES(0x40, 0x20), &f), QUIC_FRAME_ENCODING_ERROR); /* Unknown either way. */
    CHECK_EQ(parse(BYTES(0x80, 0, 0, 0xaf, 0, 0, 0, 0), &f), QUIC_PROTOCOL_VIOLATION);
    CHECK_EQ(f.type, QUIC_FRAME_ACK_FREQUENCY);
}

static void padding(void) {
    uint8_t bytes[100] = {0};
    for (size_t zeros = 1; zeros < 40; zeros++) {
        for (size_t tail = 0; tail < 20; tail++) {
            memset(bytes, 0, sizeof bytes);
            memset(bytes + zeros, 1, tail); /* PINGs. */
            struct quic_frame f;
            size_t used;
            CHECK_EQ(parse_in(bytes, zeros + tail, QUIC_PACKET_INITIAL, &f, &used), 0);
            CHECK_EQ(f.len, zeros);
            CHECK_EQ(used, zeros);
        }
    }
}

static void stream(void) {
    uint8_t bytes[] = {0x0f, 0x44, 0x01, 0x80, 0x01, 0x00, 0x00, 0x03, 'a', 'b', 'c', 0x01};
    struct quic_reader r = {bytes, bytes + sizeof bytes};
    struct quic_frame f;
    REQUIRE(quic_frame_parse(&r, QUIC_PACKET_ONE_RTT, &f) == 0);
    CHECK_EQ(f.type, QUIC_FRAME_STREAM);
    CHECK(f.fin);
    CHECK_EQ(f.stream_id, 0x401);
    CHECK_EQ(f.offset, 0x10000);
    CHECK_EQ(f.len, 3);
    CHECK(f.data == bytes + 8);
    CHECK(r.p == bytes + 11);

    uint8_t rest[] = {0x08, 0x02, 'a', 'b', 'c'};
    r = (struct quic_reader){rest, rest + sizeof rest};
    REQUIRE(quic_frame_parse(&r, QUIC_PACKET_ONE_RTT, &f) == 0);
    CHECK(!f.fin);
    CHECK_EQ(f.offset, 0);
    CHECK_EQ(f.len, 3);
    CHECK(f.data == rest + 2 && r.p == r.end);
    CHECK_EQ(parse(rest, 2, &f), 0); /* No data is a frame too. */
    CHECK_EQ(f.len, 0);

    /* The largest offset a byte may end at, and one more: section 19.8. */
    CHECK_EQ(parse(BYTES(0x0e, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 1, 'a'), &f), 0);
    CHECK_EQ(parse(BYTES(0x0e, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 'a'), &f),
             QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(parse(BYTES(0x0c, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 'a'), &f),
             QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(parse(BYTES(0x0c, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), &f), 0);
    CHECK_EQ(parse(BYTES(0x0a, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1), &f),
             QUIC_FRAME_ENCODING_ERROR); /* A length of 2^62 - 1. */
}

static void crypto(void) {
    uint8_t bytes[] = {0x06, 0x41, 0x00, 0x02, 'a', 'b'};
    struct quic_reader r = {bytes, bytes + sizeof bytes};
    struct quic_frame f;
    REQUIRE(quic_frame_parse(&r, QUIC_PACKET_HANDSHAKE, &f) == 0);
    CHECK_EQ(f.offset, 0x100);
    CHECK_EQ(f.len, 2);
    CHECK(f.data == bytes + 4);
    CHECK_EQ(parse(BYTES(0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 'a'), &f),
             QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(parse(BYTES(0x06, 0, 3, 'a', 'b'), &f), QUIC_FRAME_ENCODING_ERROR);
}

static void stream_control(void) {
    struct quic_frame f;
    CHECK_EQ(parse(BYTES(0x04, 0x41, 0x00, 0x07, 0x40, 0x99), &f), 0); /* RESET_STREAM */
    CHECK_EQ(f.stream_id, 0x100);
    CHECK_EQ(f.code, 7);
    CHECK_EQ(f.value, 0x99);
    CHECK_EQ(parse(BYTES(0x05, 0x04, 0x09), &f), 0); /* STOP_SENDING */
    CHECK_EQ(f.stream_id, 4);
    CHECK_EQ(f.code, 9);
    for (uint8_t type = 0x11; type <= 0x15; type += 4) { /* MAX_STREAM_DATA, STREAM_DATA_BLOCKED */
        CHECK_EQ(parse(BYTES(type, 0x04, 0x50, 0x00), &f), 0);
        CHECK_EQ(f.stream_id, 4);
        CHECK_EQ(f.value, 0x1000);
    }
    for (uint8_t type = 0x10; type <= 0x14; type += 4) { /* MAX_DATA, DATA_BLOCKED */
        CHECK_EQ(parse(BYTES(type, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), &f), 0);
        CHECK(f.value == QUIC_VARINT_MAX);
    }
    static const uint8_t counts[] = {0x12, 0x13, 0x16, 0x17}; /* MAX_STREAMS, STREAMS_BLOCKED */
    for (size_t i = 0; i < sizeof counts; i++) {
        CHECK_EQ(parse(BYTES(counts[i], 0xd0, 0, 0, 0, 0, 0, 0, 0), &f), 0); /* 2^60 */
        CHECK(f.value == UINT64_C(1) << 60);
        CHECK_EQ(parse(BYTES(counts[i], 0xd0, 0, 0, 0, 0, 0, 0, 1), &f), QUIC_FRAME_ENCODING_ERROR);
    }
}

static void new_token(void) {
    uint8_t bytes[] = {0x07, 0x03, 't', 'o', 'k'};
    struct quic_reader r = {bytes, bytes + sizeof bytes};
    struct quic_frame f;
    REQUIRE(quic_frame_parse(&r, QUIC_PACKET_ONE_RTT, &f) == 0);
    CHECK_EQ(f.len, 3);
    CHECK(f.data == bytes + 2);
    CHECK_EQ(parse(BYTES(0x07, 0x00), &f), QUIC_FRAME_ENCODING_ERROR);
}

static void connection_ids(void) {
    uint8_t bytes[] = {0x18, 0x05, 0x03, 0x04, 1, 2, 3, 4, V16};
    struct quic_reader r = {bytes, bytes + sizeof bytes};
    struct quic_frame f;
    REQUIRE(quic_frame_parse(&r, QUIC_PACKET_ONE_RTT, &f) == 0);
    CHECK_EQ(f.sequence, 5);
    CHECK_EQ(f.retire_prior_to, 3);
    CHECK_EQ(f.cid.len, 4);
    CHECK_MEM(f.cid.id, bytes + 4, 4);
    CHECK(f.reset_token == bytes + 8);
    bytes[2] = 5; /* Itself the first that stays. */
    CHECK_EQ(parse(bytes, sizeof bytes, &f), 0);
    bytes[2] = 6;
    CHECK_EQ(parse(bytes, sizeof bytes, &f), QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(parse(BYTES(0x18, 5, 3, 0, V16), &f), QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(parse(BYTES(0x18, 5, 3, 20, V16, 1, 2, 3, 4, V16), &f), 0);
    CHECK_EQ(f.cid.len, 20);
    CHECK_EQ(parse(BYTES(0x18, 5, 3, 21, V16, 1, 2, 3, 4, 5, V16), &f), QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(parse(BYTES(0x19, 0x42, 0x00), &f), 0); /* RETIRE_CONNECTION_ID */
    CHECK_EQ(f.value, 0x200);
}

static void path_close_datagram(void) {
    uint8_t bytes[] = {0x1b, 1, 2, 3, 4, 5, 6, 7, 8};
    struct quic_reader r = {bytes, bytes + sizeof bytes};
    struct quic_frame f;
    REQUIRE(quic_frame_parse(&r, QUIC_PACKET_ONE_RTT, &f) == 0);
    CHECK(f.data == bytes + 1);
    CHECK_EQ(f.len, 8);

    uint8_t close[] = {0x1c, 0x41, 0x00, 0x06, 0x02, 'n', 'o'};
    r = (struct quic_reader){close, close + sizeof close};
    REQUIRE(quic_frame_parse(&r, QUIC_PACKET_INITIAL, &f) == 0);
    CHECK_EQ(f.code, 0x100);
    CHECK_EQ(f.close_frame_type, 6);
    CHECK_EQ(f.len, 2);
    CHECK(f.data == close + 5);
    CHECK_EQ(parse(BYTES(0x1d, 0x41, 0x00, 0x00), &f), 0);
    CHECK_EQ(f.code, 0x100);
    CHECK_EQ(f.len, 0);

    uint8_t datagram[] = {0x31, 0x02, 'h', 'i', 0x30, 'r', 'e', 's', 't'};
    r = (struct quic_reader){datagram, datagram + sizeof datagram};
    REQUIRE(quic_frame_parse(&r, QUIC_PACKET_ONE_RTT, &f) == 0);
    CHECK_EQ(f.type, QUIC_FRAME_DATAGRAM);
    CHECK_EQ(f.len, 2);
    REQUIRE(quic_frame_parse(&r, QUIC_PACKET_ONE_RTT, &f) == 0);
    CHECK_EQ(f.type, QUIC_FRAME_DATAGRAM);
    CHECK_EQ(f.len, 4);
    CHECK(f.data == datagram + 5 && r.p == r.end);
}

static void ack_violations(void) {
    struct quic_frame f;
    CHECK_EQ(parse(BYTES(0x02, 3, 0, 0, 3), &f), 0); /* 0 to 3: down to zero itself. */
    CHECK_EQ(parse(BYTES(0x02, 3, 0, 0, 4), &f), QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(parse(BYTES(0x02, 10, 0, 1, 0, 8, 0), &f), 0); /* 10, then 0: gap 8 is 9 numbers. */
    CHECK_EQ(parse(BYTES(0x02, 10, 0, 1, 0, 9, 0), &f), QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(parse(BYTES(0x02, 10, 0, 1, 0, 7, 1), &f), 0);
    CHECK_EQ(parse(BYTES(0x02, 10, 0, 1, 0, 7, 2), &f), QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(parse(BYTES(0x02, 10, 0, 2, 0, 1, 1, 2, 1), &f), 0); /* 10, 6-7, 1-2. */
    CHECK_EQ(parse(BYTES(0x02, 10, 0, 2, 0, 1, 1, 3, 2), &f), QUIC_FRAME_ENCODING_ERROR);
    /* Gap and length of 2^62 - 1, and 2^62 - 1 ranges. */
    CHECK_EQ(parse(BYTES(0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 1, 0, 0xff, 0xff, 0xff,
                         0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
                   &f),
             QUIC_FRAME_ENCODING_ERROR);
    CHECK_EQ(parse(BYTES(0x02, 10, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0), &f),
             QUIC_FRAME_ENCODING_ERROR);
}

static void ack_fields(void) {
    uint8_t bytes[] = {0x03, 0x40, 0x64, 0x40, 0xc8, 0x01, 0x05, 0x02, 0x03, 0x07, 0x08, 0x09, 0x01};
    struct quic_reader r = {bytes, bytes + sizeof bytes};
    struct quic_frame f;
    struct quic_ack_iter it;
    REQUIRE(quic_frame_parse(&r, QUIC_PACKET_HANDSHAKE, &f) == 0);
    CHECK_EQ(f.type, QUIC_FRAME_ACK_ECN);
    CHECK_EQ(f.largest_acked, 100);
    CHECK_EQ(f.ack_delay, 200);
    CHECK_EQ(f.ack_range_count, 1);
    CHECK_EQ(f.first_ack_range, 5);
    CHECK_EQ(f.ect0, 7);
    CHECK_EQ(f.ect1, 8);
    CHECK_EQ(f.ce, 9);
    CHECK_EQ(quic_left(&r), 1);
    quic_ack_begin(&it, &f);
    CHECK_EQ(it.lo, 95);
    CHECK_EQ(it.hi, 100);
    CHECK(quic_ack_next(&it));
    CHECK_EQ(it.lo, 88);
    CHECK_EQ(it.hi, 91);
    CHECK(!quic_ack_next(&it));
}

/* Random descending ranges, encoded as section 19.3.1 says, come back as they were. */
static void ack_random(void) {
    for (int round = 0; round < 3000; round++) {
        struct {
            uint64_t lo, hi;
        } ranges[50];
        size_t count = 1 + check_rand() % 50;
        unsigned shift = (unsigned)(10 + check_rand() % 46); /* Numbers of every encoded length. */
        uint64_t next = 0;
        for (size_t i = count; i-- > 0;) { /* Ascending, into the list from its end. */
            ranges[i].lo = next + (check_rand() >> (64 - 56 + shift));
            ranges[i].hi = ranges[i].lo + (check_rand() >> (64 - 56 + shift));
            next = ranges[i].hi + 2;
        }
        uint8_t bytes[1000], *p = bytes;
        *p++ = QUIC_FRAME_ACK;
        p = quic_put_varint(p, ranges[0].hi);
        p = quic_put_varint(p, 0);
        p = quic_put_varint(p, count - 1);
        p = quic_put_varint(p, ranges[0].hi - ranges[0].lo);
        for (size_t i = 1; i < count; i++) {
            p = quic_put_varint(p, ranges[i - 1].lo - ranges[i].hi - 2);
            p = quic_put_varint(p, ranges[i].hi - ranges[i].lo);
        }
        struct quic_reader r = {bytes, p};
        struct quic_frame f;
        struct quic_ack_iter it;
        REQUIRE(quic_frame_parse(&r, QUIC_PACKET_ONE_RTT, &f) == 0);
        CHECK(r.p == p);
        quic_ack_begin(&it, &f);
        for (size_t i = 0; i < count; i++) {
            CHECK(it.lo == ranges[i].lo && it.hi == ranges[i].hi);
            CHECK_EQ(quic_ack_next(&it), i + 1 < count);
        }
        for (size_t len = 1; len < (size_t)(p - bytes); len++) { /* No cut of it is an ACK. */
            struct quic_reader cut = {bytes, bytes + len};
            CHECK_EQ(quic_frame_parse(&cut, QUIC_PACKET_ONE_RTT, &f), QUIC_FRAME_ENCODING_ERROR);
        }
    }
}

/* ---- writers ---- */

/* The writer needs exactly what it writes: one byte less and it refuses. `call` uses `end`. */
#define CHECK_EXACT(call)                                                                                    \
    do {                                                                                                     \
        const uint8_t *end = out + sizeof out;                                                               \
        uint8_t *done = call;                                                                                \
        REQUIRE(done != NULL);                                                                               \
        len = (size_t)(done - out);                                                                          \
        end = out + len;                                                                                     \
        CHECK(call == out + len);                                                                            \
        end = out + len - 1;                                                                                 \
        CHECK(call == NULL);                                                                                 \
        REQUIRE(parse(out, len, &f) == 0);                                                                   \
    } while (0)

static void writers(void) {
    uint8_t out[200];
    size_t len;
    struct quic_frame f;
    static const uint64_t values[] = {0, 63, 64, 16383, 16384, (1u << 30) - 1, 1u << 30, UINT64_C(1) << 60};
    for (size_t i = 0; i < 8; i++) {
        uint64_t v = values[i];
        CHECK_EXACT(quic_put_frame1(out, end, QUIC_FRAME_MAX_STREAMS_UNI, v));
        CHECK_EQ(f.type, QUIC_FRAME_MAX_STREAMS_UNI);
        CHECK(f.value == v);
        CHECK_EXACT(quic_put_frame2(out, end, QUIC_FRAME_STREAM_DATA_BLOCKED, v, 5));
        CHECK(f.stream_id == v && f.value == 5);
        CHECK_EXACT(quic_put_frame2(out, end, QUIC_FRAME_STOP_SENDING, 6, v));
        CHECK(f.stream_id == 6 && f.code == v);
        CHECK_EXACT(quic_put_frame3(out, end, QUIC_FRAME_RESET_STREAM, v, 7, v));
        CHECK(f.stream_id == v && f.code == 7 && f.value == v);
    }
    static const uint8_t bytes[16] = {V16};
    CHECK_EXACT(quic_put_path_frame(out, end, QUIC_FRAME_PATH_CHALLENGE, bytes));
    CHECK_EQ(f.type, QUIC_FRAME_PATH_CHALLENGE);
    CHECK_MEM(out + 1, bytes, 8);
    CHECK_EXACT(quic_put_ack_frequency(out, end, 300, 31, 25000, 3));
    CHECK_EQ(f.type, QUIC_FRAME_ACK_FREQUENCY);
    CHECK(f.sequence == 300 && f.ack_threshold == 31 && f.ack_max_delay_us == 25000 && f.ack_reorder == 3);

    struct quic_cid cid = {.len = 8, .id = {1, 2, 3, 4, 5, 6, 7, 8}};
    CHECK_EXACT(quic_put_new_connection_id(out, end, 300, 200, &cid, bytes));
    CHECK_EQ(f.sequence, 300);
    CHECK_EQ(f.retire_prior_to, 200);
    CHECK(quic_cid_equal(&f.cid, &cid));
    CHECK_MEM(out + len - 16, bytes, 16);

    uint8_t token[100];
    memset(token, 't', sizeof token);
    CHECK_EXACT(quic_put_new_token(out, end, token, sizeof token));
    CHECK_EQ(f.len, 100);
    CHECK_MEM(out + 3, token, 100);
}

static void write_close(void) {
    uint8_t out[400];
    struct quic_frame f;
    size_t len;
    char reason[300];
    memset(reason, 'r', sizeof reason);
    /* With every amount of room: none, or a frame that parses, fits, and has all of the reason it can. */
    for (size_t room = 0; room < sizeof out; room++) {
        for (int app = 0; app < 2; app++) {
            check_note("room %zu, app %d", room, app);
            size_t head = 1 + 2 + (app ? 0 : 1);
            memset(out, 0xee, sizeof out);
            uint8_t *end = quic_put_close(out, out + room, app, 0x100, 0x08, reason, sizeof reason);
            CHECK_EQ(end != NULL, room >= head + 1);
            if (end == NULL)
                continue;
            len = (size_t)(end - out);
            REQUIRE(len <= room);
            CHECK_EQ(out[len], 0xee);
            size_t used;
            REQUIRE(parse_in(out, len, QUIC_PACKET_ONE_RTT, &f, &used) == 0);
            CHECK_EQ(used, len);
            CHECK_EQ(f.type, app ? QUIC_FRAME_CONNECTION_CLOSE_APP : QUIC_FRAME_CONNECTION_CLOSE);
            CHECK_EQ(f.code, 0x100);
            if (!app)
                CHECK_EQ(f.close_frame_type, 0x08);
            size_t most = 0; /* Found the slow way. */
            while (most < sizeof reason && quic_varint_size(most + 1) + most + 1 <= room - head)
                most++;
            CHECK_EQ(f.len, most);
        }
    }
    CHECK(quic_put_close(out, out + 4, false, 0, 0, NULL, 0) == out + 4);
    /* A cut keeps whole characters: "aé" is 61 c3 a9. */
    uint8_t *end = quic_put_close(out, out + 5, true, 0, 0, "a\xc3\xa9", 3);
    REQUIRE(end != NULL);
    CHECK_EQ(out[2], 1);
    CHECK(end == out + 4);
    end = quic_put_close(out, out + 6, true, 0, 0, "a\xc3\xa9", 3);
    CHECK(end == out + 6);
}

static void kinds(void) {
    static const uint8_t not_eliciting[] = {0x00, 0x02, 0x03, 0x1c, 0x1d},
                         probing[] = {0x00, 0x18, 0x1a, 0x1b};
    for (uint8_t type = 0; type <= 0x31; type++) {
        CHECK_EQ(quic_frame_ack_eliciting(type), memchr(not_eliciting, type, sizeof not_eliciting) == NULL);
        CHECK_EQ(quic_frame_probing(type), memchr(probing, type, sizeof probing) != NULL);
    }
    CHECK(quic_frame_ack_eliciting(QUIC_FRAME_ACK_FREQUENCY) &&
          !quic_frame_probing(QUIC_FRAME_ACK_FREQUENCY));
}

static const struct check_case cases[] = {
    {"carriers", carriers},
    {"cut_short", cut_short},
    {"in_a_row", in_a_row},
    {"types", types},
    {"padding", padding},
    {"stream", stream},
    {"crypto", crypto},
    {"stream_control", stream_control},
    {"new_token", new_token},
    {"connection_ids", connection_ids},
    {"path_close_datagram", path_close_datagram},
    {"ack_violations", ack_violations},
    {"ack_fields", ack_fields},
    {"ack_random", ack_random},
    {"writers", writers},
    {"write_close", write_close},
    {"kinds", kinds},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
