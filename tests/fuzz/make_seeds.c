/* Writes the fuzz harnesses' seed corpora, made with the engine's own encoders and the packets of RFC 9001:
 *
 *      make_seeds DIR      writes DIR/header, DIR/frame, DIR/params, DIR/token, DIR/receive (made if absent)
 *
 * Built rather than stored, so that the seeds are what the encoders write today.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../c/rfc9001_vectors.h"
#include "quic/frame.h"
#include "quic/packet.h"
#include "quic/params.h"
#include "quic/token.h"

#define V16 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15

static const char *root;

static void make_dir(const char *path) {
    if (mkdir(path, 0777) != 0) {
        struct stat st;
        if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)) {
            perror(path);
            exit(1);
        }
    }
}

/* Each seed is the harness's first byte and its data. */
static void write_seed(const char *harness, const char *name, uint8_t first, const void *data, size_t len) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s/%s", root, harness, name);
    FILE *f = fopen(path, "wb");
    if (f == NULL || fputc(first, f) == EOF || fwrite(data, 1, len, f) != len || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
}

static void headers(void) {
    uint8_t out[1400];
    static const struct quic_cid a = {.len = 8, .id = {1, 2, 3, 4, 5, 6, 7, 8}},
                                 b = {.len = 4, .id = {9, 9, 9, 9}};
    write_seed("header", "client_initial", 8, rfc9001_client_packet, sizeof rfc9001_client_packet);
    write_seed("header", "server_initial", 8, rfc9001_server_packet, sizeof rfc9001_server_packet);
    write_seed("header", "retry", 8, rfc9001_retry_packet, sizeof rfc9001_retry_packet);
    write_seed("header", "short", 0, rfc9001_chacha_packet, sizeof rfc9001_chacha_packet);
    size_t n = quic_put_version_negotiation(out, sizeof out, a.id, a.len, b.id, b.len, 0x2a);
    write_seed("header", "version_negotiation", 8, out, n);
    out[1] = 0x1a; /* An unknown version. */
    write_seed("header", "unknown_version", 8, out, n);
    /* Coalesced: Initial with a token, 0-RTT, Handshake, 1-RTT. */
    memset(out, 0, sizeof out);
    uint8_t *p = quic_put_long_header(out, QUIC_PACKET_INITIAL, QUIC_VERSION_1, &a, &b);
    *p++ = 3;
    p += 3;
    p = quic_put_varint(p, 40) + 40;
    p = quic_put_varint(quic_put_long_header(p, QUIC_PACKET_ZERO_RTT, QUIC_VERSION_1, &a, &b), 30) + 30;
    p = quic_put_varint(quic_put_long_header(p, QUIC_PACKET_HANDSHAKE, QUIC_VERSION_1, &a, &b), 20) + 20;
    *p = 0x40;
    write_seed("header", "coalesced", 8, out, (size_t)(p - out) + 40);
}

/* Packet payloads, for the harnesses frame and receive. */
static const struct {
    const char *name;
    uint8_t packet; /* 0 Initial, 1 Handshake, 2 0-RTT, 3 1-RTT */
    uint8_t len;
    uint8_t bytes[40];
} payloads[] = {
    {"padding_ping", 0, 12, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}},
    {"ack", 3, 9, {0x02, 0x40, 0x64, 0x05, 0x02, 0x03, 0x01, 0x02, 0x03}},
    {"ack_ecn", 1, 10, {0x03, 0x0a, 0x05, 0x01, 0x01, 0x02, 0x01, 0x01, 0x02, 0x03}},
    {"crypto", 1, 7, {0x06, 0x41, 0x00, 0x03, 'a', 'b', 'c'}},
    {"stream_all", 3, 10, {0x0f, 0x44, 0x01, 0x50, 0x00, 0x03, 'a', 'b', 'c', 0x01}},
    {"stream_rest", 2, 5, {0x09, 0x04, 'a', 'b', 'c'}},
    {"stream_offset", 3, 6, {0x0c, 0x04, 0x20, 'a', 'b', 'c'}},
    {"reset_stop", 3, 8, {0x04, 0x04, 0x07, 0x40, 0x99, 0x05, 0x04, 0x09}},
    {"limits",
     3,
     15,
     {0x10, 0x50, 0x00, 0x11, 0x04, 0x20, 0x12, 0x08, 0x13, 0x08, 0x14, 0x20, 0x16, 0x08, 0x01}},
    {"blocked", 2, 5, {0x15, 0x04, 0x20, 0x17, 0x08}},
    {"new_connection_id", 3, 26, {0x18, 0x05, 0x03, 0x04, 1, 2, 3, 4, V16, 0x19, 0x01}},
    {"path", 3, 18, {0x1a, 1, 2, 3, 4, 5, 6, 7, 8, 0x1b, 1, 2, 3, 4, 5, 6, 7, 8}},
    {"close", 0, 7, {0x1c, 0x41, 0x00, 0x06, 0x02, 'n', 'o'}},
    {"close_app", 3, 6, {0x1d, 0x41, 0x00, 0x02, 'n', 'o'}},
    {"ack_frequency", 3, 8, {0x40, 0xaf, 0x05, 0x1f, 0x47, 0xd0, 0x03, 0x1f}},
    {"token_done", 3, 6, {0x07, 0x03, 't', 'o', 'k', 0x1e}},
    {"datagrams", 3, 8, {0x31, 0x02, 'h', 'i', 0x30, 'r', 's', 't'}},
};
#define PAYLOAD_COUNT (sizeof payloads / sizeof payloads[0])

static void frames(void) {
    for (size_t i = 0; i < PAYLOAD_COUNT; i++)
        write_seed("frame", payloads[i].name, payloads[i].packet, payloads[i].bytes, payloads[i].len);
    write_seed("frame", "rfc9001_client", 0, rfc9001_client_crypto_frame, sizeof rfc9001_client_crypto_frame);
    write_seed("frame", "rfc9001_server", 0, rfc9001_server_payload, sizeof rfc9001_server_payload);
}

static void params(void) {
    struct quic_params p;
    uint8_t out[512];
    quic_params_defaults(&p);
    p.has_initial_scid = true;
    p.initial_scid.len = 8;
    write_seed("params", "client_least", 0, out, quic_params_encode(&p, false, 0, out, sizeof out));
    p.max_idle_timeout_ms = 30000;
    p.max_udp_payload_size = 1452;
    p.initial_max_data = 1 << 20;
    p.initial_max_stream_data_bidi_local = p.initial_max_stream_data_bidi_remote = 1 << 18;
    p.initial_max_stream_data_uni = 100;
    p.initial_max_streams_bidi = 128;
    p.initial_max_streams_uni = UINT64_C(1) << 60;
    p.ack_delay_exponent = 20;
    p.max_ack_delay_ms = 16383;
    p.active_connection_id_limit = 8;
    p.max_datagram_frame_size = 65535;
    p.disable_active_migration = true;
    write_seed("params", "client_all", 0, out, quic_params_encode(&p, false, UINT64_MAX, out, sizeof out));
    p.has_original_dcid = p.has_retry_scid = p.has_reset_token = p.has_preferred_address = true;
    p.original_dcid.len = 20;
    p.preferred.cid.len = 4;
    p.preferred.addr.port = 9292;
    write_seed("params", "server_all", 1, out, quic_params_encode(&p, true, 77, out, sizeof out));
}

static void tokens(void) {
    static const uint8_t wire[100] = {QUIC_TOKEN_RETRY}, wire_new[59] = {QUIC_TOKEN_NEW};
    uint8_t fields[100];
    write_seed("token", "wire_retry", 1, wire, sizeof wire);
    write_seed("token", "wire_new", 1, wire_new, sizeof wire_new);
    /* One for each setting of the harness's switches: kind, clock, moved, other port. */
    for (uint8_t what = 0; what < 16; what++) {
        char name[16];
        for (size_t i = 0; i < sizeof fields; i++)
            fields[i] = (uint8_t)(7 * i);
        fields[0] = what;
        memset(fields + 1, 0, 8);
        snprintf(name, sizeof name, "fields_%u", what);
        write_seed("token", name, 0, fields, sizeof fields);
    }
}

/* Operations of fuzz_receive.c. */
enum {
    SLEEP = 0,
    APPLICATION = 1,
    LOSE = 2,
    TALK = 3,
    RAW = 4,
    ADVANCE = 5,
    NO_MEMORY = 6,
    DRAIN = 7,
    ANSWER = 8,
    INJECT = 9
};

static void receive(void) {
    static const uint8_t spaces[] = {3, 2, 0, 0}; /* inject's low flag bits, by the payloads' packet type. */
    uint8_t ops[100];
    for (size_t i = 0; i < 2 * PAYLOAD_COUNT; i++) {
        char name[64];
        size_t k = i / 2, n = 0;
        uint8_t victim = i & 1, packet = payloads[k].packet, stage = packet == 0 ? 1 : packet == 1 ? 3 : 4;
        snprintf(name, sizeof name, "%s_%u", payloads[k].name, victim);
        /* The attacked side has sent a stream that was lost, a datagram too. */
        static const uint8_t before[] = {APPLICATION, 0, 0, 0, 4, 5, 1, APPLICATION, 5, 9, LOSE};
        memcpy(ops, before, sizeof before);
        n = sizeof before;
        ops[3] = victim; /* Its first stream: 0 or 1. */
        ops[n++] = INJECT;
        ops[n++] = spaces[packet];
        ops[n++] = payloads[k].len;
        memcpy(ops + n, payloads[k].bytes, payloads[k].len);
        n += payloads[k].len;
        ops[n++] = 2; /* ECT(0) */
        ops[n++] = SLEEP;
        ops[n++] = 28; /* 0.27 s: loss detection, PTO. */
        ops[n++] = LOSE;
        write_seed("receive", name, (uint8_t)(victim | stage << 2), ops, n);
    }
    static const uint8_t handshake[] = {ADVANCE, ADVANCE, LOSE, SLEEP, 30, TALK,
                                        ADVANCE, ADVANCE, TALK, SLEEP, 25, TALK};
    static const uint8_t update[] = {TALK, APPLICATION, 6, 0,      TALK, INJECT, 4, 1, 1, 0,     INJECT, 4,
                                     1,    1,           0, INJECT, 8,    2,      1, 1, 0, SLEEP, 34};
    static const uint8_t migrate[] = {INJECT, 64, 1, 1, 1, 0, LOSE, INJECT, 64, 9,     0x1b, 1,
                                      2,      3,  4, 5, 6, 7, 8,    1,      0,  SLEEP, 31,   LOSE};
    static const uint8_t starved[] = {NO_MEMORY, 5, APPLICATION, 0,    0, 0, 16, 0, 0, LOSE,
                                      INJECT,    0, 5,           0x0a, 0, 2, 1,  2, 0};
    static const uint8_t retry[] = {LOSE, ANSWER, 1, 3, 't', 'o', 'k', 9, LOSE, INJECT, 3, 2, 1, 1, 0};
    static const uint8_t version[] = {LOSE, ANSWER, 0, 4, 0xa, 0xa, 0xa, 0xa, 0,
                                      LOSE, ANSWER, 0, 4, 0xa, 0xa, 0xa, 0xa, 1};
    write_seed("receive", "answer_retry", 0, retry, sizeof retry);
    write_seed("receive", "answer_version", 64, version, sizeof version);
    for (uint8_t victim = 0; victim < 2; victim++) {
        char name[64];
        snprintf(name, sizeof name, "handshake_%u", victim);
        write_seed("receive", name, victim, handshake, sizeof handshake);
        snprintf(name, sizeof name, "update_%u", victim);
        write_seed("receive", name, victim | 16, update, sizeof update);
        snprintf(name, sizeof name, "migrate_%u", victim);
        write_seed("receive", name, victim | 16, migrate, sizeof migrate);
        for (uint8_t way = 1; way < 4; way++) { /* Retry, another version, both. */
            snprintf(name, sizeof name, "way_%u_%u", way, victim);
            write_seed("receive", name, (uint8_t)(victim | way << 5), handshake, sizeof handshake);
        }
        snprintf(name, sizeof name, "starved_%u", victim);
        write_seed("receive", name, victim | 16, starved, sizeof starved);
    }
}

int main(int argc, char **argv) {
    static const char *const harnesses[] = {"header", "frame", "params", "token", "receive"};
    if (argc != 2) {
        fprintf(stderr, "usage: make_seeds DIR\n");
        return 2;
    }
    root = argv[1];
    make_dir(root);
    for (size_t i = 0; i < sizeof harnesses / sizeof harnesses[0]; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", root, harnesses[i]);
        make_dir(path);
    }
    headers();
    frames();
    params();
    tokens();
    receive();
    return 0;
}
