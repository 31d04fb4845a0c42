/* A packet's payload, as quic_frame_parse takes it apart (frame.c).
 *
 * Input: packet type (one byte), then frames. Properties: nothing outside the payload is read or pointed to;
 * every frame is longer than nothing; the error is one of the two the RFC names; the ranges of an ACK descend
 * and are as many as it says; every frame written again, by the writers or field by field, parses to the
 * same.
 */
#include "fuzz.h"

#include "quic/frame.h"

#define OUT_BYTES 70000 /* libFuzzer's inputs stay far below. */

static void check_ack(const struct quic_frame *f) {
    struct quic_ack_iter it;
    uint64_t count = 0;
    quic_ack_begin(&it, f);
    EXPECT(it.hi == f->largest_acked && it.hi - it.lo == f->first_ack_range);
    for (;;) {
        EXPECT(it.lo <= it.hi && it.hi <= QUIC_VARINT_MAX);
        uint64_t above = it.lo;
        if (!quic_ack_next(&it))
            break;
        count++;
        EXPECT(it.hi + 2 <= above); /* At least one number between two ranges. */
    }
    EXPECT(count == f->ack_range_count);
}

static uint8_t *put_ack(uint8_t *p, const struct quic_frame *f) {
    struct quic_ack_iter it;
    p = quic_put_varint(quic_put_varint(quic_put_varint(p, f->type), f->largest_acked), f->ack_delay);
    p = quic_put_varint(quic_put_varint(p, f->ack_range_count), f->first_ack_range);
    quic_ack_begin(&it, f);
    uint64_t lo = it.lo;
    while (quic_ack_next(&it)) {
        p = quic_put_varint(quic_put_varint(p, lo - it.hi - 2), it.hi - it.lo);
        lo = it.lo;
    }
    if (f->type == QUIC_FRAME_ACK_ECN)
        p = quic_put_varint(quic_put_varint(quic_put_varint(p, f->ect0), f->ect1), f->ce);
    return p;
}

static uint8_t *put_data(uint8_t *p, const struct quic_frame *f) {
    p = quic_put_varint(p, f->len);
    if (f->len > 0)
        memcpy(p, f->data, f->len);
    return p + f->len;
}

static uint8_t *put(uint8_t *p, const uint8_t *end, const struct quic_frame *f) {
    switch (f->type) {
    case QUIC_FRAME_PADDING:
        memset(p, 0, f->len);
        return p + f->len;
    case QUIC_FRAME_PING:
    case QUIC_FRAME_HANDSHAKE_DONE:
    case QUIC_FRAME_IMMEDIATE_ACK:
        *p = (uint8_t)f->type;
        return p + 1;
    case QUIC_FRAME_ACK:
    case QUIC_FRAME_ACK_ECN:
        return put_ack(p, f);
    case QUIC_FRAME_RESET_STREAM:
        return quic_put_frame3(p, end, f->type, f->stream_id, f->code, f->value);
    case QUIC_FRAME_STOP_SENDING:
        return quic_put_frame2(p, end, f->type, f->stream_id, f->code);
    case QUIC_FRAME_CRYPTO:
        return put_data(quic_put_varint(quic_put_varint(p, f->type), f->offset), f);
    case QUIC_FRAME_NEW_TOKEN:
        return quic_put_new_token(p, end, f->data, f->len);
    case QUIC_FRAME_STREAM:
        *p =
            (uint8_t)(QUIC_FRAME_STREAM | QUIC_STREAM_OFF | QUIC_STREAM_LEN | (f->fin ? QUIC_STREAM_FIN : 0));
        return put_data(quic_put_varint(quic_put_varint(p + 1, f->stream_id), f->offset), f);
    case QUIC_FRAME_MAX_STREAM_DATA:
    case QUIC_FRAME_STREAM_DATA_BLOCKED:
        return quic_put_frame2(p, end, f->type, f->stream_id, f->value);
    case QUIC_FRAME_NEW_CONNECTION_ID:
        return quic_put_new_connection_id(p, end, f->sequence, f->retire_prior_to, &f->cid, f->reset_token);
    case QUIC_FRAME_PATH_CHALLENGE:
    case QUIC_FRAME_PATH_RESPONSE:
        return quic_put_path_frame(p, end, f->type, f->data);
    case QUIC_FRAME_CONNECTION_CLOSE:
    case QUIC_FRAME_CONNECTION_CLOSE_APP:
        return quic_put_close(p, end, f->type == QUIC_FRAME_CONNECTION_CLOSE_APP, f->code,
                              f->close_frame_type, (const char *)f->data, f->len);
    case QUIC_FRAME_DATAGRAM:
        *p = QUIC_FRAME_DATAGRAM + 1;
        return put_data(p + 1, f);
    case QUIC_FRAME_ACK_FREQUENCY:
        return quic_put_ack_frequency(p, end, f->sequence, f->ack_threshold, f->ack_max_delay_us,
                                      f->ack_reorder);
    default: /* MAX_*, *_BLOCKED, RETIRE_CONNECTION_ID */
        return quic_put_frame1(p, end, f->type, f->value);
    }
}

static void expect_same_data(const struct quic_frame *a, const struct quic_frame *b) {
    EXPECT(a->len == b->len && (a->len == 0 || memcmp(a->data, b->data, a->len) == 0));
}

/* Only the members that the type has. */
static void expect_same(const struct quic_frame *a, const struct quic_frame *b) {
    EXPECT(a->type == b->type);
    switch (a->type) {
    case QUIC_FRAME_PADDING:
        EXPECT(a->len == b->len);
        break;
    case QUIC_FRAME_PING:
    case QUIC_FRAME_HANDSHAKE_DONE:
    case QUIC_FRAME_IMMEDIATE_ACK:
        break;
    case QUIC_FRAME_ACK_FREQUENCY:
        EXPECT(a->sequence == b->sequence && a->ack_threshold == b->ack_threshold);
        EXPECT(a->ack_max_delay_us == b->ack_max_delay_us && a->ack_reorder == b->ack_reorder);
        break;
    case QUIC_FRAME_ACK_ECN:
        EXPECT(a->ect0 == b->ect0 && a->ect1 == b->ect1 && a->ce == b->ce);
        /* fall through */
    case QUIC_FRAME_ACK:
        EXPECT(a->largest_acked == b->largest_acked && a->ack_delay == b->ack_delay);
        EXPECT(a->ack_range_count == b->ack_range_count && a->first_ack_range == b->first_ack_range);
        break;
    case QUIC_FRAME_RESET_STREAM:
        EXPECT(a->value == b->value);
        /* fall through */
    case QUIC_FRAME_STOP_SENDING:
        EXPECT(a->stream_id == b->stream_id && a->code == b->code);
        break;
    case QUIC_FRAME_STREAM:
        EXPECT(a->stream_id == b->stream_id && a->fin == b->fin);
        /* fall through */
    case QUIC_FRAME_CRYPTO:
        EXPECT(a->offset == b->offset);
        /* fall through */
    case QUIC_FRAME_NEW_TOKEN:
    case QUIC_FRAME_DATAGRAM:
    case QUIC_FRAME_PATH_CHALLENGE:
    case QUIC_FRAME_PATH_RESPONSE:
        expect_same_data(a, b);
        break;
    case QUIC_FRAME_MAX_STREAM_DATA:
    case QUIC_FRAME_STREAM_DATA_BLOCKED:
        EXPECT(a->stream_id == b->stream_id && a->value == b->value);
        break;
    case QUIC_FRAME_NEW_CONNECTION_ID:
        EXPECT(a->sequence == b->sequence && a->retire_prior_to == b->retire_prior_to);
        EXPECT(quic_cid_equal(&a->cid, &b->cid));
        EXPECT(memcmp(a->reset_token, b->reset_token, QUIC_RESET_TOKEN_BYTES) == 0);
        break;
    case QUIC_FRAME_CONNECTION_CLOSE:
        EXPECT(a->close_frame_type == b->close_frame_type);
        /* fall through */
    case QUIC_FRAME_CONNECTION_CLOSE_APP:
        EXPECT(a->code == b->code);
        expect_same_data(a, b);
        break;
    default:
        EXPECT(a->value == b->value);
    }
}

static void check_frame(const struct quic_frame *f, const uint8_t *begin, size_t used,
                        enum quic_packet_type packet) {
    static uint8_t out[OUT_BYTES];
    if (f->type == QUIC_FRAME_ACK || f->type == QUIC_FRAME_ACK_ECN)
        check_ack(f);
    uint8_t *end = put(out, out + sizeof out, f);
    EXPECT(end != NULL);
    struct quic_reader r = {out, end};
    struct quic_frame again;
    EXPECT(quic_frame_parse(&r, packet, &again) == 0);
    EXPECT(r.p == end);
    expect_same(f, &again);
    /* The same packet's bytes alone are the same frame. */
    r = (struct quic_reader){begin, begin + used};
    EXPECT(quic_frame_parse(&r, packet, &again) == 0 && r.p == r.end);
    expect_same(f, &again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    static const enum quic_packet_type packets[] = {QUIC_PACKET_INITIAL, QUIC_PACKET_HANDSHAKE,
                                                    QUIC_PACKET_ZERO_RTT, QUIC_PACKET_ONE_RTT};
    if (len < 1 || len > OUT_BYTES / 2)
        return 0;
    enum quic_packet_type packet = packets[data[0] % 4];
    size_t left = len - 1;
    uint8_t *copy = fuzz_copy(data + 1, left);
    struct quic_reader r = {copy, copy + left};
    while (quic_left(&r) > 0) {
        struct quic_frame f;
        const uint8_t *begin = r.p;
        int error = quic_frame_parse(&r, packet, &f);
        EXPECT(r.p >= begin && r.p <= r.end);
        if (error != 0) {
            EXPECT(error == QUIC_FRAME_ENCODING_ERROR || error == QUIC_PROTOCOL_VIOLATION);
            break;
        }
        EXPECT(r.p > begin);
        check_frame(&f, begin, (size_t)(r.p - begin), packet);
    }
    fuzz_release(copy);
    return 0;
}
