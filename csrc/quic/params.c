/* Transport parameters: RFC 9000 sections 7.3, 7.4 and 18, RFC 9221 section 3, ack-frequency. Runs once a
 * handshake; owns nothing.
 */
#include "params.h"

#include <string.h>

#include "varint.h"

/* Parameter ids, RFC 9000 section 18.2; RFC 9221 section 3 and draft-ietf-quic-ack-frequency section 3 (the
 * last two). */
enum param {
    ORIGINAL_DESTINATION_CONNECTION_ID = 0x00,
    MAX_IDLE_TIMEOUT = 0x01,
    STATELESS_RESET_TOKEN = 0x02,
    MAX_UDP_PAYLOAD_SIZE = 0x03,
    INITIAL_MAX_DATA = 0x04,
    INITIAL_MAX_STREAM_DATA_BIDI_LOCAL = 0x05,
    INITIAL_MAX_STREAM_DATA_BIDI_REMOTE = 0x06,
    INITIAL_MAX_STREAM_DATA_UNI = 0x07,
    INITIAL_MAX_STREAMS_BIDI = 0x08,
    INITIAL_MAX_STREAMS_UNI = 0x09,
    ACK_DELAY_EXPONENT = 0x0a,
    MAX_ACK_DELAY = 0x0b,
    DISABLE_ACTIVE_MIGRATION = 0x0c,
    PREFERRED_ADDRESS = 0x0d,
    ACTIVE_CONNECTION_ID_LIMIT = 0x0e,
    INITIAL_SOURCE_CONNECTION_ID = 0x0f,
    RETRY_SOURCE_CONNECTION_ID = 0x10,
    MAX_DATAGRAM_FRAME_SIZE = 0x20,
    MIN_ACK_DELAY = 0xff04de1b,
};

/* Bounds of section 18.2. */
#define MIN_UDP_PAYLOAD        1200
#define MAX_ACK_DELAY_EXPONENT 20
#define MAX_ACK_DELAY_MS       ((UINT64_C(1) << 14) - 1)
#define MIN_CONNECTION_IDS     2
#define MAX_STREAMS            (UINT64_C(1) << 60)
#define MAX_MIN_ACK_DELAY_US   ((UINT64_C(1) << 24) - 1)

/* preferred_address before its connection id: IPv4 address and port, IPv6 address and port. */
#define PREFERRED_V4_BYTES 6
#define PREFERRED_V6_BYTES 18

/* The integers are a table: where they go, what they may be, what they are when absent. */
static const struct integer {
    uint64_t id, min, max, absent;
    size_t member;
    const char *out_of_range; /* NULL: every value is valid. */
} integers[] = {
#define M(name) offsetof(struct quic_params, name)
    {MAX_IDLE_TIMEOUT, 0, QUIC_VARINT_MAX, 0, M(max_idle_timeout_ms), NULL},
    {MAX_UDP_PAYLOAD_SIZE, MIN_UDP_PAYLOAD, QUIC_VARINT_MAX, QUIC_MAX_DATAGRAM_BYTES, M(max_udp_payload_size),
     "max_udp_payload_size under 1200"},
    {INITIAL_MAX_DATA, 0, QUIC_VARINT_MAX, 0, M(initial_max_data), NULL},
    {INITIAL_MAX_STREAM_DATA_BIDI_LOCAL, 0, QUIC_VARINT_MAX, 0, M(initial_max_stream_data_bidi_local), NULL},
    {INITIAL_MAX_STREAM_DATA_BIDI_REMOTE, 0, QUIC_VARINT_MAX, 0, M(initial_max_stream_data_bidi_remote),
     NULL},
    {INITIAL_MAX_STREAM_DATA_UNI, 0, QUIC_VARINT_MAX, 0, M(initial_max_stream_data_uni), NULL},
    {INITIAL_MAX_STREAMS_BIDI, 0, MAX_STREAMS, 0, M(initial_max_streams_bidi),
     "initial_max_streams_bidi over 2^60"},
    {INITIAL_MAX_STREAMS_UNI, 0, MAX_STREAMS, 0, M(initial_max_streams_uni),
     "initial_max_streams_uni over 2^60"},
    {ACK_DELAY_EXPONENT, 0, MAX_ACK_DELAY_EXPONENT, 3, M(ack_delay_exponent), "ack_delay_exponent over 20"},
    {MAX_ACK_DELAY, 0, MAX_ACK_DELAY_MS, 25, M(max_ack_delay_ms), "max_ack_delay of 2^14 ms or more"},
    {ACTIVE_CONNECTION_ID_LIMIT, MIN_CONNECTION_IDS, QUIC_VARINT_MAX, 2, M(active_connection_id_limit),
     "active_connection_id_limit under 2"},
    {MAX_DATAGRAM_FRAME_SIZE, 0, QUIC_VARINT_MAX, 0, M(max_datagram_frame_size), NULL},
    {MIN_ACK_DELAY, 0, MAX_MIN_ACK_DELAY_US, QUIC_NO_MIN_ACK_DELAY, M(min_ack_delay_us),
     "min_ack_delay of 2^24 us or more"},
#undef M
};
#define INTEGER_COUNT (sizeof integers / sizeof integers[0])

static uint64_t *member(struct quic_params *p, const struct integer *row) {
    return (uint64_t *)(void *)((char *)p + row->member);
}

void quic_params_defaults(struct quic_params *p) {
    memset(p, 0, sizeof *p);
    for (size_t i = 0; i < INTEGER_COUNT; i++)
        *member(p, &integers[i]) = integers[i].absent;
}

/* ---- encoding ---- */

struct writer {
    uint8_t *p;
    const uint8_t *end;
    bool ok;
};

static void put(struct writer *w, const void *bytes, size_t len) {
    if (!w->ok || (size_t)(w->end - w->p) < len) {
        w->ok = false;
        return;
    }
    if (len > 0)
        memcpy(w->p, bytes, len);
    w->p += len;
}

static void put_varint(struct writer *w, uint64_t v) {
    uint8_t bytes[8];
    put(w, bytes, (size_t)(quic_put_varint(bytes, v) - bytes));
}

static void put_param(struct writer *w, uint64_t id, const void *value, size_t len) {
    put_varint(w, id);
    put_varint(w, len);
    put(w, value, len);
}

static void put_preferred(struct writer *w, const struct quic_params *p) {
    static const uint8_t no_v4[PREFERRED_V4_BYTES]; /* 0.0.0.0:0 says that there is none. */
    uint8_t port[2];
    quic_store16(port, p->preferred.addr.port);
    put_varint(w, PREFERRED_ADDRESS);
    put_varint(w,
               PREFERRED_V4_BYTES + PREFERRED_V6_BYTES + 1 + p->preferred.cid.len + QUIC_RESET_TOKEN_BYTES);
    put(w, no_v4, sizeof no_v4);
    put(w, p->preferred.addr.ip, sizeof p->preferred.addr.ip);
    put(w, port, sizeof port);
    put(w, &p->preferred.cid.len, 1);
    put(w, p->preferred.cid.id, p->preferred.cid.len);
    put(w, p->preferred.reset_token, QUIC_RESET_TOKEN_BYTES);
}

/* Section 18.1: ids 31 * n + 27 are reserved to be ignored. No id in use is one of them. */
static void put_grease(struct writer *w, uint64_t grease) {
    uint8_t value[8];
    quic_store64(value, grease);
    uint64_t n = grease % ((QUIC_VARINT_MAX - 27) / 31 + 1);
    put_param(w, 31 * n + 27, value, grease >> 61); /* Up to seven bytes, like the id out of the random. */
}

size_t quic_params_encode(const struct quic_params *p, bool server, uint64_t grease, uint8_t *out,
                          size_t cap) {
    struct writer w = {out, out + cap, true};
    put_grease(&w, grease);
    for (size_t i = 0; i < INTEGER_COUNT; i++) {
        uint64_t v;
        memcpy(&v, (const char *)p + integers[i].member, sizeof v);
        if (v == integers[i].absent)
            continue;
        put_varint(&w, integers[i].id);
        put_varint(&w, quic_varint_size(v));
        put_varint(&w, v);
    }
    if (p->disable_active_migration)
        put_param(&w, DISABLE_ACTIVE_MIGRATION, NULL, 0);
    if (p->has_initial_scid)
        put_param(&w, INITIAL_SOURCE_CONNECTION_ID, p->initial_scid.id, p->initial_scid.len);
    if (server) {
        if (p->has_original_dcid)
            put_param(&w, ORIGINAL_DESTINATION_CONNECTION_ID, p->original_dcid.id, p->original_dcid.len);
        if (p->has_retry_scid)
            put_param(&w, RETRY_SOURCE_CONNECTION_ID, p->retry_scid.id, p->retry_scid.len);
        if (p->has_reset_token)
            put_param(&w, STATELESS_RESET_TOKEN, p->reset_token, sizeof p->reset_token);
        if (p->has_preferred_address)
            put_preferred(&w, p);
    }
    return w.ok ? (size_t)(w.p - out) : 0;
}

/* ---- decoding: each returns NULL or what is wrong ---- */

static const char *decode_integer(const struct integer *row, struct quic_reader r, struct quic_params *out) {
    uint64_t v;
    if (!quic_read_varint(&r, &v) || quic_left(&r) != 0)
        return "integer transport parameter of wrong length";
    if (v < row->min || v > row->max)
        return row->out_of_range;
    *member(out, row) = v;
    return NULL;
}

static const char *decode_cid(struct quic_reader r, struct quic_cid *cid, bool *present) {
    if (quic_left(&r) > QUIC_MAX_CID_BYTES)
        return "connection id in transport parameters longer than 20 bytes";
    cid->len = (uint8_t)quic_left(&r);
    memcpy(cid->id, r.p, cid->len);
    *present = true;
    return NULL;
}

static const char *decode_preferred(struct quic_reader r, struct quic_params *out) {
    static const char wrong[] = "preferred_address of wrong length";
    const uint8_t *v4, *v6, *cid_len, *cid, *token;
    if (!quic_read_bytes(&r, &v4, PREFERRED_V4_BYTES) || !quic_read_bytes(&r, &v6, PREFERRED_V6_BYTES) ||
        !quic_read_bytes(&r, &cid_len, 1))
        return wrong;
    if (*cid_len == 0 || *cid_len > QUIC_MAX_CID_BYTES)
        return "preferred_address with a connection id of 0 or over 20 bytes";
    if (!quic_read_bytes(&r, &cid, *cid_len) || !quic_read_bytes(&r, &token, QUIC_RESET_TOKEN_BYTES) ||
        quic_left(&r) != 0)
        return wrong;
    memcpy(out->preferred.addr.ip, v6, sizeof out->preferred.addr.ip);
    out->preferred.addr.port = quic_load16(v6 + 16);
    out->preferred.cid.len = *cid_len;
    memcpy(out->preferred.cid.id, cid, *cid_len);
    memcpy(out->preferred.reset_token, token, QUIC_RESET_TOKEN_BYTES);
    out->has_preferred_address = true;
    return NULL;
}

static const char *decode_server_only(uint64_t id, struct quic_reader r, struct quic_params *out) {
    switch (id) {
    case ORIGINAL_DESTINATION_CONNECTION_ID:
        return decode_cid(r, &out->original_dcid, &out->has_original_dcid);
    case RETRY_SOURCE_CONNECTION_ID:
        return decode_cid(r, &out->retry_scid, &out->has_retry_scid);
    case PREFERRED_ADDRESS:
        return decode_preferred(r, out);
    default: /* STATELESS_RESET_TOKEN */
        if (quic_left(&r) != QUIC_RESET_TOKEN_BYTES)
            return "stateless_reset_token of wrong length";
        memcpy(out->reset_token, r.p, QUIC_RESET_TOKEN_BYTES);
        out->has_reset_token = true;
        return NULL;
    }
}

/* Ids seen, to find duplicates. The known ones are below 64; of others so many are remembered that an honest
 * peer's GREASE and extensions are covered while the table stays small. */
struct seen {
    uint64_t low;
    unsigned count;
    uint64_t others[64];
};

static bool seen_before(struct seen *seen, uint64_t id) {
    if (id < 64) {
        bool before = seen->low >> id & 1;
        seen->low |= UINT64_C(1) << id;
        return before;
    }
    for (unsigned i = 0; i < seen->count; i++) {
        if (seen->others[i] == id)
            return true;
    }
    if (seen->count < sizeof seen->others / sizeof seen->others[0])
        seen->others[seen->count++] = id;
    return false;
}

static const char *decode_one(uint64_t id, struct quic_reader value, bool from_server,
                              struct quic_params *out) {
    switch (id) {
    case ORIGINAL_DESTINATION_CONNECTION_ID:
    case RETRY_SOURCE_CONNECTION_ID:
    case PREFERRED_ADDRESS:
    case STATELESS_RESET_TOKEN:
        return from_server ? decode_server_only(id, value, out)
                           : "transport parameter that only a server may send";
    case INITIAL_SOURCE_CONNECTION_ID:
        return decode_cid(value, &out->initial_scid, &out->has_initial_scid);
    case DISABLE_ACTIVE_MIGRATION:
        out->disable_active_migration = true;
        return quic_left(&value) == 0 ? NULL : "disable_active_migration with a value";
    }
    for (size_t i = 0; i < INTEGER_COUNT; i++) {
        if (integers[i].id == id)
            return decode_integer(&integers[i], value, out);
    }
    return NULL; /* Section 7.4.2: unknown ones are ignored. */
}

int quic_params_decode(const uint8_t *data, size_t len, bool from_server, struct quic_params *out,
                       const char **why) {
    struct quic_reader r = {data, data + len};
    struct seen seen;
    seen.low = 0;
    seen.count = 0;
    quic_params_defaults(out);
    const char *wrong = NULL;
    while (wrong == NULL && quic_left(&r) > 0) {
        uint64_t id, value_len;
        if (!quic_read_varint(&r, &id) || !quic_read_varint(&r, &value_len) || value_len > quic_left(&r)) {
            wrong = "transport parameters are truncated";
            break;
        }
        struct quic_reader value = {r.p, r.p + value_len};
        r.p = value.end;
        wrong = seen_before(&seen, id) ? "transport parameter sent twice"
                                       : decode_one(id, value, from_server, out);
    }
    if (wrong == NULL && !out->has_initial_scid)
        wrong = "initial_source_connection_id is absent";
    if (wrong == NULL && from_server && !out->has_original_dcid)
        wrong = "original_destination_connection_id is absent";
    if (wrong == NULL && out->min_ack_delay_us != QUIC_NO_MIN_ACK_DELAY &&
        out->min_ack_delay_us > out->max_ack_delay_ms * 1000)
        wrong = "min_ack_delay over max_ack_delay";
    if (wrong == NULL)
        return 0; /* `why` stays what the caller had in mind for its own checks. */
    *why = wrong;
    return QUIC_TRANSPORT_PARAMETER_ERROR;
}
