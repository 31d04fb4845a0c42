/* csrc/quic/params.c: what is encoded comes back, and every rule of RFC 9000 sections 7.4 and 18.2. */
#include "check.h"

#include "quic/params.h"
#include "quic/varint.h"

struct blob {
    uint8_t bytes[4096];
    size_t len;
};

static void add(struct blob *b, uint64_t id, const void *value, size_t len) {
    uint8_t *p = quic_put_varint(quic_put_varint(b->bytes + b->len, id), len);
    if (len > 0)
        memcpy(p, value, len);
    b->len = (size_t)(p - b->bytes) + len;
}

static void add_int(struct blob *b, uint64_t id, uint64_t v) {
    uint8_t bytes[8];
    add(b, id, bytes, (size_t)(quic_put_varint(bytes, v) - bytes));
}

/* What either side must send. */
static struct blob minimal(bool server) {
    struct blob b = {.len = 0};
    add(&b, 0x0f, "scid", 4);
    if (server)
        add(&b, 0x00, "original", 8);
    return b;
}

/* Decodes from memory of exactly this length. */
static int decode_bytes(const uint8_t *bytes, size_t len, bool from_server, struct quic_params *out,
                        const char **why) {
    uint8_t *copy = malloc(len + 1);
    memcpy(copy + 1, bytes, len);
    *why = NULL; /* Untouched on success. */
    int error = quic_params_decode(copy + 1, len, from_server, out, why);
    free(copy);
    CHECK_EQ(error, *why == NULL ? 0 : QUIC_TRANSPORT_PARAMETER_ERROR);
    return error;
}

static void check_refused(const struct blob *b, bool from_server, const char *says) {
    struct quic_params p;
    const char *why;
    CHECK_EQ(decode_bytes(b->bytes, b->len, from_server, &p, &why), QUIC_TRANSPORT_PARAMETER_ERROR);
    if (why == NULL || strstr(why, says) == NULL)
        check_failed(__FILE__, __LINE__, "refused with \"%s\", not with \"%s\"", why ? why : "", says);
}

static void check_accepted(const struct blob *b, bool from_server, struct quic_params *p) {
    const char *why;
    CHECK_EQ(decode_bytes(b->bytes, b->len, from_server, p, &why), 0);
}

static void defaults(void) {
    struct quic_params p;
    struct blob b = minimal(false);
    memset(&p, 0xff, sizeof p);
    check_accepted(&b, false, &p);
    CHECK_EQ(p.max_idle_timeout_ms, 0);
    CHECK_EQ(p.max_udp_payload_size, 65527);
    CHECK_EQ(p.initial_max_data, 0);
    CHECK_EQ(p.initial_max_streams_bidi, 0);
    CHECK_EQ(p.ack_delay_exponent, 3);
    CHECK_EQ(p.max_ack_delay_ms, 25);
    CHECK_EQ(p.active_connection_id_limit, 2);
    CHECK_EQ(p.max_datagram_frame_size, 0);
    CHECK(p.min_ack_delay_us == QUIC_NO_MIN_ACK_DELAY);
    CHECK(!p.disable_active_migration && !p.has_original_dcid && !p.has_retry_scid && !p.has_reset_token &&
          !p.has_preferred_address);
    CHECK(p.has_initial_scid);
    CHECK_EQ(p.initial_scid.len, 4);
    CHECK_MEM(p.initial_scid.id, "scid", 4);
}

static struct quic_cid random_cid(size_t least) {
    struct quic_cid cid = {.len = (uint8_t)(least + check_rand() % (QUIC_MAX_CID_BYTES + 1 - least))};
    check_rand_bytes(cid.id, cid.len);
    return cid;
}

static uint64_t random_varint(void) {
    return (check_rand() >> 2) >> check_rand() % 62;
}

static struct quic_params random_params(void) {
    struct quic_params p;
    quic_params_defaults(&p);
    p.max_idle_timeout_ms = random_varint();
    p.max_udp_payload_size = 1200 + check_rand() % 64328;
    p.initial_max_data = random_varint();
    p.initial_max_stream_data_bidi_local = random_varint();
    p.initial_max_stream_data_bidi_remote = random_varint();
    p.initial_max_stream_data_uni = random_varint();
    p.initial_max_streams_bidi = random_varint() >> 2;
    p.initial_max_streams_uni = random_varint() >> 2;
    p.ack_delay_exponent = check_rand() % 21;
    p.max_ack_delay_ms = check_rand() % (1 << 14);
    p.active_connection_id_limit = 2 + (random_varint() >> 1);
    p.max_datagram_frame_size = random_varint();
    if (check_rand() & 1)
        p.min_ack_delay_us = check_rand() % (p.max_ack_delay_ms * 1000 + 1);
    p.disable_active_migration = check_rand() & 1;
    p.has_initial_scid = p.has_original_dcid = true;
    p.initial_scid = random_cid(0);
    p.original_dcid = random_cid(0);
    p.has_retry_scid = check_rand() & 1;
    p.retry_scid = random_cid(0);
    p.has_reset_token = check_rand() & 1;
    check_rand_bytes(p.reset_token, sizeof p.reset_token);
    p.has_preferred_address = check_rand() & 1;
    check_rand_bytes(p.preferred.addr.ip, sizeof p.preferred.addr.ip);
    p.preferred.addr.port = (uint16_t)check_rand();
    p.preferred.cid = random_cid(1);
    check_rand_bytes(p.preferred.reset_token, sizeof p.preferred.reset_token);
    return p;
}

static void check_same(const struct quic_params *a, const struct quic_params *b, bool server) {
    /* The integers are the leading members, all of one type. */
    CHECK_MEM(a, b, offsetof(struct quic_params, disable_active_migration));
    CHECK_EQ(a->disable_active_migration, b->disable_active_migration);
    CHECK(quic_cid_equal(&a->initial_scid, &b->initial_scid));
    CHECK_EQ(b->has_original_dcid, server && a->has_original_dcid);
    CHECK_EQ(b->has_retry_scid, server && a->has_retry_scid);
    CHECK_EQ(b->has_reset_token, server && a->has_reset_token);
    CHECK_EQ(b->has_preferred_address, server && a->has_preferred_address);
    if (b->has_original_dcid)
        CHECK(quic_cid_equal(&a->original_dcid, &b->original_dcid));
    if (b->has_retry_scid)
        CHECK(quic_cid_equal(&a->retry_scid, &b->retry_scid));
    if (b->has_reset_token)
        CHECK_MEM(a->reset_token, b->reset_token, 16);
    if (b->has_preferred_address) {
        CHECK(quic_addr_equal(&a->preferred.addr, &b->preferred.addr));
        CHECK(quic_cid_equal(&a->preferred.cid, &b->preferred.cid));
        CHECK_MEM(a->preferred.reset_token, b->preferred.reset_token, 16);
    }
}

static void round_trip(void) {
    for (int i = 0; i < 3000; i++) {
        struct quic_params in = random_params(), out;
        bool server = i & 1;
        uint8_t bytes[512];
        const char *why;
        uint64_t grease = check_rand();
        size_t len = quic_params_encode(&in, server, grease, bytes, sizeof bytes);
        REQUIRE(len > 0);
        REQUIRE(decode_bytes(bytes, len, server, &out, &why) == 0);
        check_same(&in, &out, server);
        CHECK(quic_params_encode(&in, server, grease, bytes, len) == len);
        CHECK_EQ(quic_params_encode(&in, server, grease, bytes, check_rand() % len), 0); /* Does not fit. */
    }
}

static void grease(void) {
    struct quic_params p;
    quic_params_defaults(&p);
    static const uint64_t greases[] = {0, 1, UINT64_MAX, UINT64_C(0x0123456789abcdef)};
    for (size_t i = 0; i < 4; i++) {
        uint8_t bytes[64];
        uint64_t id, len;
        struct quic_reader r = {bytes,
                                bytes + quic_params_encode(&p, false, greases[i], bytes, sizeof bytes)};
        REQUIRE(quic_read_varint(&r, &id) &&
                quic_read_varint(&r, &len)); /* All else is default and absent. */
        CHECK_EQ(id % 31, 27);
        CHECK_EQ(quic_left(&r), len);
    }
}

static void truncated(void) {
    struct quic_params p = random_params(), out;
    p.has_retry_scid = p.has_reset_token = p.has_preferred_address = true;
    uint8_t bytes[512];
    size_t len = quic_params_encode(&p, true, 99, bytes, sizeof bytes);
    for (size_t cut = 0; cut < len; cut++) {
        /* A cut between two parameters leaves a valid list, if what must be there comes before it. */
        const char *why;
        int error = decode_bytes(bytes, cut, true, &out, &why);
        CHECK_EQ(error == 0, why == NULL);
        if (error == 0)
            CHECK(quic_cid_equal(&out.initial_scid, &p.initial_scid) &&
                  quic_cid_equal(&out.original_dcid, &p.original_dcid));
    }
    struct blob b = minimal(false);
    add_int(&b, 0x04, 100);
    for (size_t cut = 1; cut <= 3; cut++) {
        struct blob c = b;
        c.len -= cut;
        check_refused(&c, false, "truncated");
    }
    b = minimal(false);
    b.bytes[b.len++] = 0xff; /* An id that does not end. */
    check_refused(&b, false, "truncated");
    b = minimal(false);
    b.bytes[b.len++] = 0x21;
    memset(b.bytes + b.len, 0xff, 8); /* A length of 2^62 - 1. */
    b.len += 8;
    check_refused(&b, false, "truncated");
}

static void duplicates(void) {
    static const uint8_t ints[] = {0x01, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0e, 0x20};
    for (size_t i = 0; i < sizeof ints; i++) {
        struct blob b = minimal(false);
        uint64_t v = ints[i] == 0x03 ? 1500 : 5;
        add_int(&b, ints[i], v);
        struct quic_params p;
        check_accepted(&b, false, &p);
        add_int(&b, ints[i], v);
        check_refused(&b, false, "twice");
    }
    struct blob b = minimal(false);
    add(&b, 0x0f, "scid", 4);
    check_refused(&b, false, "twice");
    b = minimal(true);
    add(&b, 0x00, "original", 8);
    check_refused(&b, true, "twice");
    b = minimal(false);
    add(&b, 0x0c, NULL, 0);
    add(&b, 0x0c, NULL, 0);
    check_refused(&b, false, "twice");
    /* Unknown ones, small and large, the 64th among them. */
    b = minimal(false);
    add(&b, 0x3f, NULL, 0);
    add(&b, 0x3f, NULL, 0);
    check_refused(&b, false, "twice");
    b = minimal(false);
    for (uint64_t i = 0; i < 64; i++)
        add(&b, 1000 + i, "x", 1);
    struct quic_params p;
    check_accepted(&b, false, &p);
    struct blob c = b;
    add(&c, 1063, NULL, 0);
    check_refused(&c, false, "twice");
    for (uint64_t i = 0; i < 300; i++) /* Beyond the table: ignored, and no harm done. */
        add(&b, 5000 + i, "y", 1);
    add(&b, 5200, NULL, 0);
    check_accepted(&b, false, &p);
    add_int(&b, 0x04, 77); /* Known ones are still read, and checked. */
    check_accepted(&b, false, &p);
    CHECK_EQ(p.initial_max_data, 77);
    add_int(&b, 0x04, 77);
    check_refused(&b, false, "twice");
}

static void bounds(void) {
    static const struct {
        uint64_t id, good, bad;
        const char *says;
    } rows[] = {
        {0x03, 1200, 1199, "max_udp_payload_size"},
        {0x03, QUIC_VARINT_MAX, 0, "max_udp_payload_size"},
        {0x08, UINT64_C(1) << 60, (UINT64_C(1) << 60) + 1, "initial_max_streams_bidi"},
        {0x09, UINT64_C(1) << 60, (UINT64_C(1) << 60) + 1, "initial_max_streams_uni"},
        {0x0a, 20, 21, "ack_delay_exponent"},
        {0x0b, 16383, 16384, "max_ack_delay"},
        {0xff04de1b, 25000, 25001, "min_ack_delay over max_ack_delay"}, /* Of 25 ms when absent. */
        {0xff04de1b, 0, 1 << 24, "min_ack_delay of 2^24"},
        {0x0e, 2, 1, "active_connection_id_limit"},
        {0x0e, QUIC_VARINT_MAX, 0, "active_connection_id_limit"},
    };
    struct quic_params p;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        check_note("row %zu", i);
        struct blob b = minimal(false), c = b;
        add_int(&b, rows[i].id, rows[i].good);
        check_accepted(&b, false, &p);
        add_int(&c, rows[i].id, rows[i].bad);
        check_refused(&c, false, rows[i].says);
    }
    static const uint8_t free_ones[] = {0x01, 0x04, 0x05, 0x06, 0x07, 0x20};
    for (size_t i = 0; i < sizeof free_ones; i++) {
        struct blob b = minimal(false);
        add_int(&b, free_ones[i], QUIC_VARINT_MAX);
        check_accepted(&b, false, &p);
    }
    struct blob b = minimal(false);
    add(&b, 0x04, "\x80\0\0\x07", 4); /* Integers need not be in their shortest form. */
    check_accepted(&b, false, &p);
    CHECK_EQ(p.initial_max_data, 7);
}

static void lengths(void) {
    struct quic_params p;
    struct blob b = minimal(false);
    add(&b, 0x04, "\x05\x05", 2);
    check_refused(&b, false, "wrong length");
    b = minimal(false);
    add(&b, 0x04, NULL, 0);
    check_refused(&b, false, "wrong length");
    b = minimal(false);
    add(&b, 0x04, "\x40", 1);
    check_refused(&b, false, "wrong length");
    b = minimal(false);
    add(&b, 0x0c, "x", 1);
    check_refused(&b, false, "disable_active_migration");
    b = (struct blob){.len = 0};
    add(&b, 0x0f, "123456789012345678901", 21);
    check_refused(&b, false, "connection id");
    b = (struct blob){.len = 0};
    add(&b, 0x0f, NULL, 0);
    check_accepted(&b, false, &p);
    CHECK(p.has_initial_scid && p.initial_scid.len == 0);
    static const uint8_t cids[] = {0x00, 0x10};
    for (size_t i = 0; i < 2; i++) {
        b = (struct blob){.len = 0};
        add(&b, 0x0f, "s", 1);
        add(&b, cids[i], "123456789012345678901", 21);
        check_refused(&b, true, "connection id");
    }
    for (size_t len = 15; len <= 17; len++) {
        b = minimal(true);
        add(&b, 0x02, "0123456789abcdefg", len);
        if (len == 16)
            check_accepted(&b, true, &p);
        else
            check_refused(&b, true, "stateless_reset_token");
    }
}

static void server_only(void) {
    static const uint8_t reset[16] = {1};
    uint8_t preferred[24 + 1 + 4 + 16] = {0};
    preferred[24] = 4;
    struct quic_params p;
    static const uint8_t ids[] = {0x00, 0x02, 0x0d, 0x10};
    for (size_t i = 0; i < sizeof ids; i++) {
        struct blob b = minimal(false);
        if (ids[i] == 0x0d)
            add(&b, ids[i], preferred, sizeof preferred);
        else
            add(&b, ids[i], reset, 16);
        check_refused(&b, false, "only a server");
        struct blob c = ids[i] == 0x00 ? (struct blob){.len = 0} : minimal(true);
        if (ids[i] == 0x00)
            add(&c, 0x0f, "s", 1);
        if (ids[i] == 0x0d)
            add(&c, ids[i], preferred, sizeof preferred);
        else
            add(&c, ids[i], reset, 16);
        check_accepted(&c, true, &p);
    }
}

static void preferred_address(void) {
    uint8_t bytes[24 + 1 + 21 + 16 + 1];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)i;
    struct quic_params p;
    for (size_t cid = 0; cid <= 21; cid++) {
        bytes[24] = (uint8_t)cid;
        struct blob b = minimal(true);
        add(&b, 0x0d, bytes, 24 + 1 + cid + 16);
        if (cid == 0 || cid == 21) {
            check_refused(&b, true, "preferred_address with a connection id");
            continue;
        }
        check_accepted(&b, true, &p);
        CHECK(p.has_preferred_address);
        CHECK_MEM(p.preferred.addr.ip, bytes + 6, 16);
        CHECK_EQ(p.preferred.addr.port, 0x1617);
        CHECK_EQ(p.preferred.cid.len, cid);
        CHECK_MEM(p.preferred.cid.id, bytes + 25, cid);
        CHECK_MEM(p.preferred.reset_token, bytes + 25 + cid, 16);
    }
    bytes[24] = 4;
    for (size_t len = 0; len <= 24 + 1 + 4 + 16 + 1; len++) {
        if (len == 24 + 1 + 4 + 16)
            continue;
        struct blob b = minimal(true);
        add(&b, 0x0d, bytes, len);
        check_refused(&b, true, "preferred_address of wrong length");
    }
}

static void required(void) {
    struct blob b = {.len = 0};
    check_refused(&b, false, "initial_source_connection_id is absent");
    check_refused(&b, true, "initial_source_connection_id is absent");
    b = minimal(false);
    check_refused(&b, true, "original_destination_connection_id is absent");
    add(&b, 0x00, NULL, 0); /* Empty is not absent. */
    struct quic_params p;
    check_accepted(&b, true, &p);
}

static const struct check_case cases[] = {
    {"defaults", defaults},     {"round_trip", round_trip},
    {"grease", grease},         {"truncated", truncated},
    {"duplicates", duplicates}, {"bounds", bounds},
    {"lengths", lengths},       {"server_only", server_only},
    {"required", required},     {"preferred_address", preferred_address},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
