/* The receive path behind packet protection: the input's bytes become frames in packets sealed with the right
 * keys, so that frame handling, loss recovery, flow control, streams, ids, paths and closing are reached.
 *
 * Input: who is attacked, how far the handshake is, and by way of what (first byte), then operations: packets
 * of any level with any payload, number, key phase and source address; raw datagrams; time; what the attacked
 * side's application does; no more memory. Properties, after every operation: the invariants of quic_check.h
 * hold on every connection, memory is bounded; in the end all memory, chunks and timers are given back.
 */
#include "pair.h"

#define MAX_OPERATIONS 300 /* An input of pure op codes must not take seconds. */

struct input {
    const uint8_t *data;
    size_t len;
};

static uint64_t take(struct input *in, size_t n) {
    return fuzz_take(&in->data, &in->len, n);
}

static const uint8_t *take_bytes(struct input *in, size_t *n) {
    const uint8_t *p = in->data;
    *n = *n < in->len ? *n : in->len;
    in->data += *n;
    in->len -= *n;
    return p;
}

/* One sealed packet, Initials in a datagram of 1200 bytes; with bit 7 of the flags two coalesced. */
static void inject(struct pair *pair, unsigned victim, struct input *in) {
    static const enum quic_space_id spaces[] = {QUIC_SPACE_APP, QUIC_SPACE_APP, QUIC_SPACE_HANDSHAKE,
                                                QUIC_SPACE_INITIAL};
    uint8_t out[3000], payload[1200] = {0};
    unsigned flags = (unsigned)take(in, 1);
    enum quic_space_id id = spaces[flags & 3];
    struct pair_party *from = &pair->party[!victim];
    if (flags & 4 && id == QUIC_SPACE_APP && quic_can_send(&from->keys[id])) {
        size_t left = pair->allocations_left;
        pair->allocations_left = SIZE_MAX; /* The attacker's keys are not of the victim's memory. */
        EXPECT(quic_keys_rotate_send(&from->keys[id]));
        pair->allocations_left = left;
        from->key_phase ^= 1;
    }
    if (flags & 8)
        from->next_pn[id] -= take(in, 1) % 4; /* A duplicate, or an older one. */
    if (flags & 16)
        from->next_pn[id] += take(in, 1);
    size_t len = (size_t)take(in, 1) * (flags & 32 ? 4 : 1);
    const uint8_t *bytes = take_bytes(in, &len);
    memcpy(payload, bytes, len);
    if (id == QUIC_SPACE_INITIAL)
        len = sizeof payload; /* PADDING behind. */
    size_t n = pair_seal(pair, !victim, id, flags == 0xff, payload, len, out, sizeof out);
    if (n > 0 && flags & 128 && id != QUIC_SPACE_APP) {
        len = (size_t)take(in, 1);
        bytes = take_bytes(in, &len);
        n += pair_seal(pair, !victim, QUIC_SPACE_APP, false, bytes, len, out + n, sizeof out - n);
    }
    if (n == 0)
        return;
    struct quic_addr source = pair->addr[!victim];
    if (flags & 64)
        source.port = (uint16_t)(source.port + take(in, 1) % 4); /* The peer moved, perhaps. */
    pair_receive(pair, victim, out, n, n, &source, (uint8_t)(take(in, 1) & 3));
}

/* A train of 1-RTT packets of one size: a stream's bytes one after the other, now and then something else. */
static void inject_train(struct pair *pair, unsigned victim, struct input *in) {
    uint8_t out[8 * 320], payload[256];
    uint32_t n = 2 + (uint32_t)take(in, 1) % 7, at = 0, segment = 0;
    size_t len = 32 + (size_t)take(in, 1) % 224;
    uint64_t id = take(in, 1), offset = take(in, 2);
    for (uint32_t i = 0; i < n; i++) {
        unsigned what = (unsigned)take(in, 1);
        memset(payload, 0, sizeof payload);
        if (what % 4 == 0) {
            size_t given = what / 4;
            const uint8_t *bytes = take_bytes(in, &given);
            memcpy(payload, bytes, given);
        } else {
            uint8_t *p = payload;
            *p++ = QUIC_FRAME_STREAM | QUIC_STREAM_OFF;
            p = quic_put_varint(p, id);
            p = quic_put_varint(p, offset);
            offset += len - (size_t)(p - payload);
        }
        uint32_t got = (uint32_t)pair_seal(pair, !victim, QUIC_SPACE_APP, what == 254, payload, len, out + at,
                                           sizeof out - at);
        if (got == 0)
            return;
        segment = got;
        at += got;
        if (what == 255)
            out[at - 1] ^= 1;
    }
    pair_receive(pair, victim, out, at, segment, &pair->addr[!victim], (uint8_t)(take(in, 1) & 3));
}

static void raw(struct pair *pair, unsigned victim, struct input *in) {
    size_t len = (size_t)take(in, 1) * 5;
    uint8_t out[1300] = {0};
    const uint8_t *bytes = take_bytes(in, &len);
    memcpy(out, bytes, len);
    /* As it is, or aimed at the connection. */
    struct quic_conn *conn = pair_conn(pair, victim);
    const struct quic_local_cid *cid = conn ? quic_local_cid_first(conn) : NULL;
    if (len > 1 + QUIC_LOCAL_CID_BYTES && cid && !(out[0] & 0x80))
        memcpy(out + 1, cid->cid.id, QUIC_LOCAL_CID_BYTES);
    if (take(in, 1) & 1)
        len = 1200;
    pair_receive(pair, victim, out, len, len, &pair->addr[!victim], 0);
}

/* What a server may answer a first flight with, aimed right: Retry with a valid tag, Version Negotiation. */
static void answer(struct pair *pair, struct input *in) {
    struct quic_conn *conn = pair_conn(pair, PAIR_CLIENT);
    uint8_t out[600];
    if (conn == NULL)
        return;
    const struct quic_cid *theirs = &conn->peer_cids[0].cid, *ours = &conn->initial_scid;
    bool retry = take(in, 1) & 1;
    size_t len = (size_t)take(in, 1);
    const uint8_t *bytes = take_bytes(in, &len);
    size_t n;
    if (retry) {
        struct quic_cid scid = {.len = 8, .id = {(uint8_t)take(in, 1)}};
        n = quic_put_retry(out, sizeof out, QUIC_VERSION_1, ours, &scid, theirs, bytes, len);
    } else {
        n = quic_put_version_negotiation(out, sizeof out, ours->id, ours->len, theirs->id, theirs->len, 0);
        n -= take(in, 1) & 1 ? 4 : 0; /* With version 1 among them or not. */
        memcpy(out + n, bytes, len);
        n += len;
    }
    pair_receive(pair, PAIR_CLIENT, out, n, n, &pair->addr[PAIR_SERVER], 0);
}

static void send_stream(struct pair *pair, struct quic_conn *conn, struct input *in) {
    uint64_t id = take(in, 1);
    uint32_t len = (uint32_t)take(in, 2) % QUIC_SMALL_CHUNK_BYTES;
    bool fin = take(in, 1) & 1;
    uint8_t *data = NULL;
    uint32_t chunk = len > 0 ? pair->host.chunk_alloc(pair, QUIC_SMALL_CHUNK_BYTES, &data) : QUIC_NO_CHUNK;
    if (len > 0 && chunk == QUIC_NO_CHUNK)
        return;
    (void)quic_stream_send(conn, pair->now, id, chunk, data, len, fin);
}

static void application(struct pair *pair, unsigned victim, struct input *in) {
    struct quic_conn *conn = pair_conn(pair, victim);
    uint8_t bytes[300] = {0};
    struct quic_addr moved = pair->addr[victim];
    unsigned what = (unsigned)take(in, 1) % 10;
    uint64_t a = take(in, 1);
    if (conn == NULL)
        return;
    switch (what) {
    case 0:
    case 1:
    case 2:
        send_stream(pair, conn, in);
        break;
    case 3:
        quic_stream_reset(conn, pair->now, a, 7);
        break;
    case 4:
        quic_stream_stop(conn, pair->now, a, 7);
        break;
    case 5:
        (void)quic_datagram_send(conn, pair->now, bytes, (size_t)a);
        break;
    case 6:
        quic_conn_key_update(conn, pair->now);
        break;
    case 7:
        quic_conn_close(conn, pair->now, a & 1, a, "bye", 3);
        break;
    case 8:
        quic_conn_detach(conn, pair->now);
        break;
    default:
        moved.port ^= (uint16_t)a;
        if (victim == PAIR_CLIENT)
            quic_conn_rebind(conn, pair->now, &moved);
    }
}

/* Once a forged packet was received, the two honest ends no longer agree: then they only talk past each
 * other. */
static bool operation(struct pair *pair, unsigned victim, struct input *in, bool forged) {
    switch (take(in, 1) % 16) {
    case 0:
        pair_sleep(pair, UINT64_C(1) << take(in, 1) % 36); /* Up to 34 s: past every timeout. */
        break;
    case 1:
        application(pair, victim, in);
        break;
    case 2:
        pair_transmit(pair, victim, false); /* Lost; but the attacker may acknowledge it. */
        break;
    case 3:
        if (forged)
            break;
        pair_transmit(pair, PAIR_CLIENT, true);
        pair_transmit(pair, PAIR_SERVER, true);
        break;
    case 4:
        raw(pair, victim, in);
        return true;
    case 8:
        answer(pair, in);
        return true;
    case 5:
        if (!forged)
            pair_advance(pair);
        break;
    case 6:
        pair->allocations_left = (size_t)take(in, 1);
        break;
    case 7:
        pair_drain(pair, victim);
        break;
    case 9:
        inject_train(pair, victim, in);
        return true;
    default:
        inject(pair, victim, in);
        return true;
    }
    return forged;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    if (len < 2)
        return 0;
    struct input in = {data, len};
    unsigned first = (unsigned)take(&in, 1);
    unsigned victim = first & 1;
    bool slow_reader = first & 2, forged = false;
    struct pair *pair = pair_create(first & 32, first & 64 ? 0x1a2a3a4a : 0);
    for (unsigned stage = (first >> 2) % 8; stage > 0; stage--)
        pair_advance(pair); /* More than there are: complete, the most interesting, is drawn most often. */
    for (int i = 0; i < MAX_OPERATIONS && in.len > 0; i++) {
        forged = operation(pair, victim, &in, forged);
        if (!slow_reader)
            pair_drain(pair, victim);
        pair_check(pair);
    }
    pair_transmit(pair, victim, false);
    pair_drain(pair, victim);
    pair_check(pair);
    pair_destroy(pair);
    return 0;
}
