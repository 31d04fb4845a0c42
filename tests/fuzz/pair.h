/* A client and a server endpoint on counted memory and a clock that only the harness moves, with a scripted
 * handshake in place of TLS: the secrets are constants, so that a harness can seal packets as either side.
 *
 * The host's memory comes from malloc in exactly the sizes asked for, so that a sanitizer sees every byte
 * past an end; chunks and timers are plain lists. Included by one harness: everything here is static.
 */
#ifndef STOQ_TESTS_FUZZ_PAIR_H
#define STOQ_TESTS_FUZZ_PAIR_H

#include "fuzz.h"
#include "quic/conn.h"
#include "quic/quic.h"
#include "quic/quic_check.h"

#define PAIR_CLIENT 0u
#define PAIR_SERVER 1u
#define PAIR_CHUNKS 4096u /* More than the windows below can fill. */

struct pair_party {
    struct pair *pair;
    struct quic_endpoint *ep;
    uint64_t handle; /* Of its connection; 0: none yet. */
    uint64_t counters[STOQ_COUNTER_COUNT], drops[STOQ_DROP_COUNT];
    /* Seals as this side does, whatever became of its connection. */
    struct quic_keys keys[QUIC_SPACE_COUNT];
    uint8_t key_phase;
    uint64_t next_pn[QUIC_SPACE_COUNT];
};

struct pair {
    uint64_t now, prng;
    struct quic_host host;
    struct quic_timer *timers;
    size_t bytes, blocks, allocations_left; /* allocations_left: then there is no memory. */
    struct {
        uint8_t *data;
        uint32_t bytes, refs;
    } chunks[PAIR_CHUNKS];
    uint32_t chunk_hint, chunks_live;
    struct quic_addr addr[2];
    struct quic_cid original_dcid;
    unsigned stage;
    struct pair_party party[2];
};

/* Handshake stages: 0 the client exists; 1 the server has its first flight; 2 the client has the server's,
 * and no keys yet; 3 the server has the client's last, and is not complete; 4 both are complete and
 * confirmed. */
#define PAIR_STAGES 4u

#define WINDOW_BYTES 65536u /* Small, so that flow control and the bounds on memory are met soon. */
/* What both endpoints may hold at once: their tables, and for each of few connections both windows as chunks,
 * rings of sent packets and ranges. Honest runs stay below a third of it. */
#define MEMORY_BOUND_BYTES (UINT64_C(24) << 20)

#define FIRST_FORGED_PN 100000u /* Above what the honest ends send; numbers of four bytes reach it. */

/* ---- host ---- */

static void *host_alloc(void *ctx, size_t bytes) {
    struct pair *pair = ctx;
    void *p = NULL;
    if (pair->allocations_left == 0)
        return NULL;
    pair->allocations_left--;
    EXPECT(bytes > 0 && posix_memalign(&p, 64, bytes) == 0);
    memset(p, 0, bytes);
    pair->bytes += bytes;
    pair->blocks++;
    return p;
}

static void host_free(void *ctx, void *p, size_t bytes) {
    struct pair *pair = ctx;
    EXPECT(p != NULL && pair->blocks > 0 && pair->bytes >= bytes);
    pair->bytes -= bytes;
    pair->blocks--;
    free(p);
}

static uint32_t host_chunk_alloc(void *ctx, uint32_t bytes, uint8_t **data) {
    struct pair *pair = ctx;
    EXPECT(bytes == QUIC_SMALL_CHUNK_BYTES || bytes == QUIC_LARGE_CHUNK_BYTES);
    if (pair->chunks_live == PAIR_CHUNKS || pair->allocations_left == 0)
        return QUIC_NO_CHUNK;
    uint32_t i = pair->chunk_hint;
    while (pair->chunks[i].refs != 0)
        i = (i + 1) % PAIR_CHUNKS;
    pair->chunk_hint = (i + 1) % PAIR_CHUNKS;
    pair->chunks[i].data = malloc(bytes);
    EXPECT(pair->chunks[i].data != NULL);
    pair->chunks[i].bytes = bytes;
    pair->chunks[i].refs = 1;
    pair->chunks_live++;
    pair->bytes += bytes;
    *data = pair->chunks[i].data;
    return i;
}

static void host_chunk_ref(void *ctx, uint32_t chunk) {
    struct pair *pair = ctx;
    EXPECT(chunk < PAIR_CHUNKS && pair->chunks[chunk].refs > 0);
    pair->chunks[chunk].refs++;
}

static void host_chunk_unref(void *ctx, uint32_t chunk) {
    struct pair *pair = ctx;
    EXPECT(chunk < PAIR_CHUNKS && pair->chunks[chunk].refs > 0);
    if (--pair->chunks[chunk].refs > 0)
        return;
    free(pair->chunks[chunk].data);
    pair->chunks_live--;
    pair->bytes -= pair->chunks[chunk].bytes;
}

static void unlink_timer(struct quic_timer *timer) {
    if (timer->prev == NULL)
        return;
    *timer->prev = timer->next;
    if (timer->next != NULL)
        timer->next->prev = timer->prev;
    timer->next = NULL;
    timer->prev = NULL;
    timer->deadline_ns = QUIC_NEVER;
}

static void host_timer_set(void *ctx, struct quic_timer *timer, uint64_t deadline_ns) {
    struct pair *pair = ctx;
    unlink_timer(timer);
    timer->deadline_ns = deadline_ns;
    if (deadline_ns == QUIC_NEVER)
        return;
    timer->next = pair->timers;
    timer->prev = &pair->timers;
    if (timer->next != NULL)
        timer->next->prev = &timer->next;
    pair->timers = timer;
}

static void host_random(void *ctx, uint8_t *out, size_t len) {
    struct pair *pair = ctx;
    for (size_t i = 0; i < len; i++) { /* xorshift64: the same in every run. */
        pair->prng ^= pair->prng << 13;
        pair->prng ^= pair->prng >> 7;
        pair->prng ^= pair->prng << 17;
        out[i] = (uint8_t)(pair->prng >> 32);
    }
}

/* ---- the two ends ---- */

/* `retry`: the server wants every address validated. `version`: what the client tries first; 0 for version 1.
 */
static struct pair *pair_create(bool retry, uint32_t version) {
    struct pair *pair = calloc(1, sizeof *pair);
    EXPECT(pair != NULL);
    pair->now = UINT64_C(1000000000);
    pair->prng = 88172645463325252u;
    pair->allocations_left = SIZE_MAX;
    pair->host = (struct quic_host){.ctx = pair,
                                    .alloc = host_alloc,
                                    .free = host_free,
                                    .chunk_alloc = host_chunk_alloc,
                                    .chunk_ref = host_chunk_ref,
                                    .chunk_unref = host_chunk_unref,
                                    .timer_set = host_timer_set,
                                    .random = host_random};
    for (unsigned side = 0; side < 2; side++) {
        struct quic_config config = {
            .crypto = crypto_provider_by_name("auto"),
            .worker = (uint8_t)side,
            .server = side == PAIR_SERVER,
            .retry_always = retry,
            .max_connections = 4,
            .cc = side == PAIR_SERVER ? STOQ_CC_CUBIC : STOQ_CC_NEWRENO,
            .max_data = WINDOW_BYTES,
            .max_stream_data = WINDOW_BYTES / 2,
            .max_data_limit = 2 * WINDOW_BYTES,
            .max_stream_data_limit = WINDOW_BYTES,
            .max_streams_bidi = 8,
            .max_streams_uni = 8,
            .max_datagram_frame = 1000,
        };
        struct pair_party *party = &pair->party[side];
        party->pair = pair;
        party->ep = quic_endpoint_create(&config, &pair->host, party->counters, party->drops);
        EXPECT(party->ep != NULL);
        pair->addr[side] = (struct quic_addr){.ip = {0xfd, [15] = (uint8_t)(1 + side)}, .port = 9292};
        for (unsigned id = 0; id < QUIC_SPACE_COUNT; id++) {
            party->keys[id].crypto = config.crypto;
            party->keys[id].host = &pair->host;
            party->next_pn[id] = FIRST_FORGED_PN;
        }
    }
    struct quic_conn *client =
        quic_conn_connect(pair->party[PAIR_CLIENT].ep, pair->now, &pair->addr[PAIR_SERVER],
                          &pair->addr[PAIR_CLIENT], version, NULL, 0);
    EXPECT(client != NULL);
    pair->party[PAIR_CLIENT].handle = quic_conn_handle(client);
    pair->original_dcid = client->handshake->original_dcid;
    for (unsigned side = 0; side < 2; side++)
        EXPECT(quic_keys_install_initial(&pair->party[side].keys[QUIC_SPACE_INITIAL], side == PAIR_SERVER,
                                         &pair->original_dcid));
    return pair;
}

static struct quic_conn *pair_conn(struct pair *pair, unsigned side) {
    struct pair_party *party = &pair->party[side];
    return party->handle != 0 ? quic_conn_by_handle(party->ep, party->handle) : NULL;
}

/* Read all events; what they lend is given back. */
static void pair_drain(struct pair *pair, unsigned side) {
    struct quic_endpoint *ep = pair->party[side].ep;
    struct quic_conn *conn;
    while ((conn = quic_endpoint_poll_conn(ep)) != NULL) {
        struct quic_event e;
        if (pair->party[side].handle == 0)
            pair->party[side].handle = quic_conn_handle(conn);
        while (quic_conn_poll(conn, &e)) {
            if (e.chunk != QUIC_NO_CHUNK) {
                EXPECT(e.type == STOQ_EVENT_STREAM_DATA);
                EXPECT(e.data == pair->chunks[e.chunk].data + e.chunk_offset);
                EXPECT(e.chunk_offset + e.len <= pair->chunks[e.chunk].bytes);
                host_chunk_unref(pair, e.chunk);
                quic_stream_consumed(conn, pair->now, e.stream_id, e.len);
            }
        }
        quic_endpoint_done_conn(ep, conn);
    }
}

/* A train to `side`: datagrams of `segment` bytes, the last may be shorter. */
static void pair_receive(struct pair *pair, unsigned side, const uint8_t *data, size_t len, size_t segment,
                         const struct quic_addr *from, uint8_t ecn) {
    if (len == 0)
        return;
    uint8_t *copy = fuzz_copy(data, len);
    struct quic_rx rx = {
        .data = copy, .len = (uint32_t)len, .segment = (uint16_t)(segment < len ? segment : len), .ecn = ecn};
    rx.peer = *from;
    rx.local = pair->addr[side];
    quic_endpoint_receive(pair->party[side].ep, pair->now, &rx);
    fuzz_release(copy);
}

/* All that `side` has to send now; given to the other side if `deliver`, as whole trains or singly. */
static void pair_transmit(struct pair *pair, unsigned side, bool deliver) {
    static uint8_t data[65536];
    for (int trains = 0; trains < 64; trains++) { /* An end that never stops would hang here. */
        struct quic_tx tx = {.data = data, .cap = sizeof data, .max_segments = 64};
        if (!quic_endpoint_transmit(pair->party[side].ep, pair->now, &tx))
            return;
        EXPECT(tx.len > 0 && tx.len <= tx.cap && tx.segment > 0);
        EXPECT((tx.len + tx.segment - 1) / tx.segment <= tx.max_segments);
        uint32_t step = trains % 2 == 0 ? tx.len : tx.segment;
        for (uint32_t at = 0; deliver && at < tx.len; at += step) {
            size_t n = tx.len - at < step ? tx.len - at : step;
            pair_receive(pair, !side, data + at, n, tx.segment, &tx.local, tx.ecn);
        }
        if (deliver)
            pair_drain(pair, !side);
    }
}

/* Every connection's invariants, and the bound on memory. */
static void pair_check(struct pair *pair) {
    EXPECT(pair->bytes <= MEMORY_BOUND_BYTES);
    for (unsigned side = 0; side < 2; side++) {
        const struct quic_endpoint *ep = pair->party[side].ep;
        for (uint32_t i = 0; i < ep->slot_count; i++) {
            char why[200] = "";
            if (ep->slots[i] != NULL && !quic_conn_check(ep->slots[i], why, sizeof why)) {
                fprintf(stderr, "%s: %s\n", side == PAIR_SERVER ? "server" : "client", why);
                abort();
            }
        }
    }
}

/* Move time and fire what is due. */
static void pair_sleep(struct pair *pair, uint64_t ns) {
    pair->now += ns;
    for (int fired = 0; fired < 64; fired++) {
        struct quic_timer *timer = pair->timers;
        while (timer != NULL && timer->deadline_ns > pair->now)
            timer = timer->next;
        if (timer == NULL)
            return;
        unlink_timer(timer);
        quic_conn_on_timer(quic_conn_from_timer(timer), pair->now);
        pair_check(pair);
    }
}

/* Everything given back: aborts if the endpoints kept something. */
static void pair_destroy(struct pair *pair) {
    for (unsigned side = 0; side < 2; side++) {
        for (unsigned id = 0; id < QUIC_SPACE_COUNT; id++)
            quic_keys_discard(&pair->party[side].keys[id]);
        quic_endpoint_destroy(pair->party[side].ep);
    }
    EXPECT(pair->timers == NULL);
    EXPECT(pair->chunks_live == 0);
    if (pair->blocks != 0 || pair->bytes != 0)
        fprintf(stderr, "kept: %zu bytes in %zu blocks\n", pair->bytes, pair->blocks);
    EXPECT(pair->blocks == 0 && pair->bytes == 0);
    free(pair);
}

/* ---- the handshake ---- */

/* Both directions of a level, as TLS would give them. */
static void give_secrets(struct pair *pair, unsigned side, enum quic_level level) {
    uint8_t secret[32];
    struct quic_conn *conn = pair_conn(pair, side);
    for (unsigned sender = 0; conn != NULL && sender < 2; sender++) {
        memset(secret, (int)(16 * sender + level), sizeof secret);
        quic_conn_set_secret(conn, pair->now, level, sender == side, CRYPTO_AES_128_GCM, secret,
                             sizeof secret);
        struct quic_keys *mine = &pair->party[sender].keys[quic_space_of_level(level)];
        if (!quic_can_send(mine))
            (void)quic_keys_install(mine, true, CRYPTO_AES_128_GCM, secret, sizeof secret);
    }
}

static void give_params(struct pair *pair, unsigned side) {
    uint8_t params[512];
    struct quic_conn *conn = pair_conn(pair, side), *peer = pair_conn(pair, !side);
    size_t len = peer != NULL ? quic_conn_local_params(peer, params, sizeof params) : 0;
    if (conn != NULL && len > 0)
        quic_conn_set_peer_params(conn, pair->now, params, len);
}

static void say(struct pair *pair, unsigned side, enum quic_level level, size_t len) {
    static const uint8_t bytes[3000];
    if (pair_conn(pair, side) != NULL)
        quic_conn_crypto_send(pair_conn(pair, side), pair->now, level, bytes, len);
}

/* The next stage, if there is one. */
static void pair_advance(struct pair *pair) {
    switch (pair->stage) {
    case 0:
        say(pair, PAIR_CLIENT, QUIC_INITIAL, 300);
        for (unsigned i = 0; i < 5; i++) /* Both may have to be asked again: version, then Retry. */
            pair_transmit(pair, i % 2 == 0 ? PAIR_CLIENT : PAIR_SERVER, true);
        break;
    case 1:
        give_params(pair, PAIR_SERVER);
        say(pair, PAIR_SERVER, QUIC_INITIAL, 100);
        give_secrets(pair, PAIR_SERVER, QUIC_HANDSHAKE);
        give_secrets(pair, PAIR_SERVER, QUIC_ONE_RTT);
        say(pair, PAIR_SERVER, QUIC_HANDSHAKE, 2000);
        pair_transmit(pair, PAIR_SERVER, true);
        break;
    case 2:
        give_params(pair, PAIR_CLIENT);
        give_secrets(pair, PAIR_CLIENT, QUIC_HANDSHAKE);
        give_secrets(pair, PAIR_CLIENT, QUIC_ONE_RTT);
        say(pair, PAIR_CLIENT, QUIC_HANDSHAKE, 100);
        if (pair_conn(pair, PAIR_CLIENT) != NULL)
            quic_conn_handshake_complete(pair_conn(pair, PAIR_CLIENT), pair->now);
        pair_transmit(pair, PAIR_CLIENT, true);
        break;
    case 3:
        if (pair_conn(pair, PAIR_SERVER) != NULL)
            quic_conn_handshake_complete(pair_conn(pair, PAIR_SERVER), pair->now);
        for (unsigned i = 0; i < 4; i++)
            pair_transmit(pair, i % 2 == 0 ? PAIR_SERVER : PAIR_CLIENT, true);
        break;
    default:
        return;
    }
    pair->stage++;
    pair_drain(pair, PAIR_CLIENT);
    pair_drain(pair, PAIR_SERVER);
    pair_check(pair);
}

/* ---- forged packets ---- */

/* After a Retry the Initial keys are those of the id it chose. */
static void follow_retry(struct pair *pair) {
    const struct quic_conn *client = pair_conn(pair, PAIR_CLIENT);
    if (client == NULL || !client->handshake || !client->retried ||
        quic_cid_equal(&client->handshake->retry_scid, &pair->original_dcid))
        return;
    size_t left = pair->allocations_left;
    pair->allocations_left = SIZE_MAX; /* Our keys are not of the memory that is short. */
    pair->original_dcid = client->handshake->retry_scid;
    for (unsigned side = 0; side < 2; side++) {
        struct quic_keys *keys = &pair->party[side].keys[QUIC_SPACE_INITIAL];
        quic_keys_discard(keys);
        EXPECT(quic_keys_install_initial(keys, side == PAIR_SERVER, &pair->original_dcid));
    }
    pair->allocations_left = left;
}

/* A packet as `from` would send it, into `out`; its length, 0 if that side has no keys for it. */
static size_t pair_seal(struct pair *pair, unsigned from, enum quic_space_id id, bool reserved_bits,
                        const uint8_t *payload, size_t len, uint8_t *out, size_t cap) {
    follow_retry(pair);
    struct pair_party *party = &pair->party[from];
    struct quic_keys *keys = &party->keys[id];
    struct quic_conn *victim = pair_conn(pair, !from), *self = pair_conn(pair, from);
    if (!quic_can_send(keys) || cap < 64 + len + CRYPTO_TAG_BYTES)
        return 0;
    struct quic_cid dcid = pair->original_dcid, scid = {.len = 8};
    const struct quic_local_cid *local = victim != NULL ? quic_local_cid_first(victim) : NULL;
    if (local != NULL)
        dcid = local->cid;
    if (victim != NULL && victim->handshake != NULL && victim->peer_scid_set)
        scid = victim->handshake->peer_scid; /* What the victim knows the sender by. */
    else if (self != NULL)
        scid = self->initial_scid;
    uint64_t pn = party->next_pn[id]++;
    uint8_t *p = out;
    if (id == QUIC_SPACE_APP) {
        *p++ = (uint8_t)(0x43 | party->key_phase << 2 | (reserved_bits ? 0x18 : 0));
        memcpy(p, dcid.id, dcid.len);
        p += dcid.len;
    } else {
        enum quic_packet_type type = id == QUIC_SPACE_INITIAL ? QUIC_PACKET_INITIAL : QUIC_PACKET_HANDSHAKE;
        p = quic_put_long_header(p, type, QUIC_VERSION_1, &dcid, &scid);
        out[0] |= (uint8_t)(3 | (reserved_bits ? 0x0c : 0));
        if (id == QUIC_SPACE_INITIAL)
            *p++ = 0; /* No token. */
        p = quic_put_varint2(p, (uint16_t)(4 + len + CRYPTO_TAG_BYTES));
    }
    size_t pn_offset = (size_t)(p - out);
    quic_store32(p, (uint32_t)pn);
    p += 4;
    uint8_t nonce[CRYPTO_NONCE_BYTES];
    quic_nonce(nonce, keys->send.key.iv, pn);
    keys->crypto->seal(keys->send.key.aead, nonce, out, (size_t)(p - out), payload, len, p);
    const uint8_t *sample = out + pn_offset + 4;
    uint8_t mask[1][CRYPTO_MASK_BYTES];
    keys->crypto->hp_mask(keys->send.hp, &sample, mask, 1);
    quic_mask_header(out, pn_offset, mask[0]);
    return (size_t)(p - out) + len + CRYPTO_TAG_BYTES;
}

#endif
