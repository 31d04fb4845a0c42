/* A stream's two parts, the sent-packet rings and the id map, each against a naive model under seeded random
 * use. */
#include <string.h>

#include "check.h"
#include "leaf_host.h"
#include "quic/map.h"
#include "quic/sent.h"
#include "quic/stream.h"

#define STREAM_BYTES 300000u
#define MAX_CHUNKS   4096u

/* Chunks from malloc, counted by reference. */
struct chunks {
    struct leaf_memory memory;
    uint8_t *data[MAX_CHUNKS];
    uint32_t refs[MAX_CHUNKS], used;
    uint32_t out;
    bool empty;
};

static uint32_t chunk_alloc(void *ctx, uint32_t bytes, uint8_t **data) {
    struct chunks *c = ctx;
    if (c->empty)
        return QUIC_NO_CHUNK;
    for (uint32_t i = 0; i < MAX_CHUNKS; i++) {
        if (c->data[i])
            continue;
        *data = c->data[i] = malloc(bytes);
        c->refs[i] = 1;
        c->out++;
        return i;
    }
    return QUIC_NO_CHUNK;
}

static void chunk_ref(void *ctx, uint32_t chunk) {
    struct chunks *c = ctx;
    CHECK(c->refs[chunk] > 0);
    c->refs[chunk]++;
}

static void chunk_unref(void *ctx, uint32_t chunk) {
    struct chunks *c = ctx;
    CHECK(c->refs[chunk] > 0);
    if (--c->refs[chunk])
        return;
    free(c->data[chunk]);
    c->data[chunk] = NULL;
    c->out--;
}

static struct quic_host chunk_host(struct chunks *c) {
    struct quic_host host = leaf_host(&c->memory);
    host.chunk_alloc = chunk_alloc;
    host.chunk_ref = chunk_ref;
    host.chunk_unref = chunk_unref;
    return host;
}

static uint8_t content(uint64_t offset) {
    return (uint8_t)(offset * 31 ^ offset >> 8 ^ offset >> 16);
}

struct packet {
    uint64_t offset;
    uint32_t len;
    bool fin;
};

/* Send everything through a wire that loses, repeats and reorders acknowledgements; every byte must be
 * offered until acknowledged and be the right one, and every chunk must come back. */
static void send_part(void) {
    for (int round = 0; round < 40; round++) {
        static struct chunks c;
        static uint8_t seen[STREAM_BYTES];
        static struct packet flight[1024];
        memset(&c, 0, sizeof c);
        memset(seen, 0, sizeof seen);
        struct quic_host host = chunk_host(&c);
        struct quic_send_part s = {0};
        uint32_t total = (uint32_t)(check_rand() % STREAM_BYTES), queued = 0, flying = 0;
        quic_send_part_init(&s, check_rand() % 2 ? UINT64_MAX / 4 : 1000);
        for (int step = 0; step < 200000 && s.state != QUIC_SEND_DATA_RECVD; step++) {
            if (queued < total || (queued == total && !s.fin)) {
                uint32_t want = 1 + (uint32_t)(check_rand() % 5000);
                uint32_t n = total - queued < want ? total - queued : want;
                uint8_t *data = NULL;
                uint32_t chunk = n ? chunk_alloc(&c, n, &data) : QUIC_NO_CHUNK;
                for (uint32_t i = 0; i < n; i++)
                    data[i] = content(queued + i);
                if (n)
                    CHECK(quic_send_part_append(&s, &host, chunk, data, n));
                queued += n;
                s.fin = queued == total;
            }
            if (s.next >= s.max)
                s.max += 1 + check_rand() % 3000;
            while (flying < 1024 && quic_send_part_pending(&s)) {
                uint8_t out[1500];
                bool fin;
                uint32_t fresh;
                uint64_t offset;
                uint32_t len = quic_send_part_next(&s, &host, 1 + (uint32_t)(check_rand() % 1400),
                                                   check_rand() % 4000, &offset, &fin, &fresh);
                if (!len && !fin)
                    break;
                CHECK(offset + len <= s.max);
                quic_send_part_copy(&s, offset, len, out);
                for (uint32_t i = 0; i < len; i++) {
                    if (out[i] != content(offset + i))
                        CHECK(false);
                    seen[offset + i] = 1;
                }
                flight[flying++] = (struct packet){offset, len, fin};
                if (check_rand() % 8 == 0)
                    break;
            }
            for (int k = 0; k < 3 && flying; k++) {
                uint32_t i = (uint32_t)(check_rand() % flying);
                struct packet p = flight[i];
                flight[i] = flight[--flying];
                if (check_rand() % 3 == 0) {
                    quic_send_part_lost(&s, &host, p.offset, p.len, p.fin);
                    if (check_rand() % 4 == 0) /* Lost, and acknowledged after all. */
                        quic_send_part_acked(&s, &host, p.offset, p.len, p.fin);
                } else {
                    quic_send_part_acked(&s, &host, p.offset, p.len, p.fin);
                }
            }
        }
        CHECK_EQ(s.state, QUIC_SEND_DATA_RECVD);
        CHECK_EQ(s.base, total);
        for (uint32_t i = 0; i < total; i++) {
            if (!seen[i])
                CHECK(false);
        }
        CHECK_EQ(c.out, 0);
        quic_send_part_release(&s, &host);
        CHECK_EQ(c.memory.bytes, 0);
    }
}

/* Without memory for more ranges nothing is lost and nothing released is sent. */
static void send_part_without_memory(void) {
    static struct chunks c;
    memset(&c, 0, sizeof c);
    struct quic_host host = chunk_host(&c);
    struct quic_send_part s = {0};
    uint8_t *data = NULL, out[64];
    quic_send_part_init(&s, UINT64_MAX / 4);
    for (int i = 0; i < 64; i++) {
        uint32_t chunk = chunk_alloc(&c, 16, &data);
        for (uint32_t k = 0; k < 16; k++)
            data[k] = content(s.end + k);
        CHECK(quic_send_part_append(&s, &host, chunk, data, 16));
    }
    s.fin = true;
    uint64_t offset;
    bool fin;
    uint32_t fresh;
    while (quic_send_part_pending(&s))
        (void)quic_send_part_next(&s, &host, 16, UINT64_MAX / 4, &offset, &fin, &fresh);
    c.memory.empty = true;
    quic_send_part_lost(&s, &host, 0, 1024, true);
    for (uint64_t at = 992; at >= 32; at -= 32) /* Every second segment, from the end: each a gap. */
        quic_send_part_acked(&s, &host, at, 16, false);
    quic_send_part_acked(&s, &host, 0, 512, false);
    int guard = 0;
    while (quic_send_part_pending(&s) && guard++ < 1000) {
        uint32_t len = quic_send_part_next(&s, &host, 16, UINT64_MAX / 4, &offset, &fin, &fresh);
        CHECK(offset >= s.base || !len);
        quic_send_part_copy(&s, offset, len, out);
        for (uint32_t i = 0; i < len; i++)
            CHECK(out[i] == content(offset + i));
        quic_send_part_acked(&s, &host, offset, len, fin);
    }
    CHECK_EQ(s.state, QUIC_SEND_DATA_RECVD);
    CHECK_EQ(c.out, 0);
    c.memory.empty = false;
    quic_send_part_release(&s, &host);
}

/* Pieces in any order, overlapping and repeated, arrive as the bytes in order; the reader keeps chunks as
 * long as it likes. */
static void recv_part(void) {
    for (int round = 0; round < 40; round++) {
        static struct chunks c;
        static uint32_t held[MAX_CHUNKS];
        memset(&c, 0, sizeof c);
        struct quic_host host = chunk_host(&c);
        struct quic_recv_part r = {0};
        uint32_t total = 1 + (uint32_t)(check_rand() % STREAM_BYTES), holding = 0;
        uint64_t read = 0;
        quic_recv_part_init(&r, STREAM_BYTES);
        for (int step = 0; step < 400000 && read < total; step++) {
            uint8_t piece[3000];
            uint64_t window = read + 90000 < total ? read + 90000 : total;
            uint64_t offset = check_rand() % 4 == 0 ? read : check_rand() % window;
            uint32_t len = (uint32_t)(check_rand() % sizeof piece);
            if (offset + len > window)
                len = (uint32_t)(window - offset);
            for (uint32_t i = 0; i < len; i++)
                piece[i] = content(offset + i);
            c.empty = check_rand() % 16 == 0;
            if (len && quic_recv_part_write(&r, &host, offset, piece, len) && offset + len == total)
                r.final_size = total;
            c.empty = false;
            for (;;) {
                uint32_t chunk, at;
                const uint8_t *data;
                uint32_t n = quic_recv_part_deliver(&r, &host, &chunk, &at, &data);
                if (!n)
                    break;
                CHECK(data == c.data[chunk] + at);
                for (uint32_t i = 0; i < n; i++) {
                    if (data[i] != content(read + i))
                        CHECK(false);
                }
                read += n;
                if (holding < MAX_CHUNKS / 4 && check_rand() % 2)
                    held[holding++] = chunk;
                else
                    chunk_unref(&c, chunk);
            }
        }
        CHECK_EQ(read, total);
        quic_recv_part_release(&r, &host);
        while (holding)
            chunk_unref(&c, held[--holding]);
        CHECK_EQ(c.out, 0);
        CHECK_EQ(c.memory.bytes, 0);
    }
}

static void chunk_geometry(void) {
    for (uint64_t offset = 0; offset < 400000; offset += 1 + check_rand() % 700) {
        uint32_t i = quic_chunk_index(offset);
        CHECK(quic_chunk_start(i) <= offset && offset < quic_chunk_start(i) + quic_chunk_bytes(i));
    }
    CHECK_EQ(quic_chunk_start(QUIC_STREAM_SMALL_SLOTS), QUIC_STREAM_SMALL_SPAN);
}

/* The rings against plain arrays: what was logged for a packet is found under its number until it is trimmed.
 */
static void sent_rings(void) {
    struct leaf_memory memory = {0};
    struct quic_host host = leaf_host(&memory);
    struct quic_sent sent = {0};
    static uint64_t first_value[20000];
    for (int step = 0; step < 20000; step++) {
        uint32_t n = (uint32_t)(check_rand() % 6);
        CHECK(quic_sent_reserve(&sent, &host, 6));
        struct quic_sent_packet p = {.time_ns = (uint64_t)step,
                                     .frames = sent.frames_next,
                                     .frame_count = (uint8_t)n,
                                     .state = QUIC_SENT_OUT,
                                     .flags = QUIC_SENT_ELICITING | QUIC_SENT_IN_FLIGHT};
        first_value[sent.next] = check_rand();
        for (uint32_t i = 0; i < n; i++)
            quic_sent_log(&sent, QUIC_FRAME_STREAM)->a = first_value[sent.next] + i;
        *quic_sent_at(&sent, sent.next++) = p;
        for (int k = 0; k < 2; k++) {
            uint64_t pn = sent.base + check_rand() % (sent.next - sent.base);
            struct quic_sent_packet *q = quic_sent_at(&sent, pn);
            for (uint32_t i = 0; i < q->frame_count; i++)
                CHECK(quic_sent_frame_at(&sent, q->frames + i)->a == first_value[pn] + i);
            if (check_rand() % 2)
                q->state = check_rand() % 4 ? QUIC_SENT_ACKED : QUIC_SENT_LOST;
        }
        quic_sent_trim(&sent, (uint64_t)(step > 50 ? step - 50 : 0));
        if (sent.base == sent.next)
            CHECK_EQ(sent.frames_base, sent.frames_next);
    }
    quic_sent_free(&sent, &host);
    CHECK_EQ(memory.bytes, 0);
    memory.empty = true;
    CHECK(!quic_sent_reserve(&sent, &host, 6));
}

static void map_model(void) {
    struct leaf_memory memory = {0};
    struct quic_host host = leaf_host(&memory);
    struct quic_map map;
    static uint64_t keys[500];
    static bool in[500];
    static int value[500];
    memset(in, 0, sizeof in);
    CHECK(quic_map_init(&map, &host, 4));
    for (int i = 0; i < 500; i++)
        keys[i] = check_rand() << 3; /* Poor low bits: neighbours collide. */
    for (int step = 0; step < 100000; step++) {
        int i = (int)(check_rand() % 500);
        if (check_rand() % 2) {
            CHECK_EQ(quic_map_put(&map, &host, keys[i], &value[i]), !in[i]);
            in[i] = true;
        } else {
            int other = (i + 1) % 500;
            quic_map_remove(&map, keys[i], &value[other]); /* Not its value: nothing happens. */
            CHECK(quic_map_get(&map, keys[i]) == (in[i] ? &value[i] : NULL));
            quic_map_remove(&map, keys[i], &value[i]);
            in[i] = false;
        }
        int j = (int)(check_rand() % 500);
        CHECK(quic_map_get(&map, keys[j]) == (in[j] ? &value[j] : NULL));
    }
    quic_map_free(&map, &host);
    CHECK_EQ(memory.bytes, 0);
}

/* The reference vectors' first and ninth entry: key 00..0f, message 00..(n-1). */
static void siphash_vectors(void) {
    uint8_t key[16], message[8];
    for (uint8_t i = 0; i < 16; i++)
        key[i] = i;
    for (uint8_t i = 0; i < 8; i++)
        message[i] = i;
    CHECK(quic_siphash(key, message, 0) == UINT64_C(0x726fdb47dd0e0e31));
    CHECK(quic_siphash(key, message, 8) == UINT64_C(0x93f5f5799a932462));
}

static const struct check_case cases[] = {
    {"send_part", send_part},
    {"send_part_without_memory", send_part_without_memory},
    {"recv_part", recv_part},
    {"chunk_geometry", chunk_geometry},
    {"sent_rings", sent_rings},
    {"map_model", map_model},
    {"siphash_vectors", siphash_vectors},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
