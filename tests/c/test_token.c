/* csrc/quic/token.c: what is sealed opens; nothing that was changed, is too old, or comes from elsewhere
 * does. With every crypto provider.
 */
#include "check.h"
#include "leaf_host.h"

#include "quic/token.h"

static struct leaf_memory memory;
static struct quic_host host;

static const struct quic_addr peer = {.ip = {0x20, 0x01, 0x0d, 0xb8, [15] = 7}, .port = 4433};

#define NOW UINT64_C(1000000000000000) /* Eleven days: a day's life ends before and after it. */

static struct quic_token_sealer *make(const struct crypto_provider *crypto, uint8_t key_byte) {
    uint8_t key[32];
    memset(key, key_byte, sizeof key);
    struct quic_token_sealer *sealer = quic_token_sealer_create(crypto, &host, key);
    REQUIRE(sealer != NULL);
    return sealer;
}

/* The Retry's own id: where the client's next Initial goes, and with it its token. */
static const struct quic_cid scid = {.len = 8, .id = {5, 0, 3, 1, 4, 1, 5, 9}};

static struct quic_token retry_token(void) {
    struct quic_token t = {.kind = QUIC_TOKEN_RETRY, .issued_ns = NOW};
    t.original_dcid.len = (uint8_t)(8 + check_rand() % 13);
    check_rand_bytes(t.original_dcid.id, t.original_dcid.len);
    t.retry_scid = scid;
    return t;
}

static size_t seal(const struct quic_token_sealer *s, const struct quic_token *t, uint8_t *out) {
    uint8_t nonce[12];
    check_rand_bytes(nonce, sizeof nonce);
    size_t len = quic_token_seal(s, t, &peer, nonce, out);
    REQUIRE(len > 0 && len <= QUIC_MAX_TOKEN_BYTES);
    return len;
}

static void each_provider(void (*run)(const struct crypto_provider *)) {
    const struct crypto_provider *all[4];
    size_t count = crypto_providers(all, 4);
    REQUIRE(count > 0 && count <= 4);
    for (size_t i = 0; i < count; i++) {
        check_note("%s", all[i]->name);
        memory = (struct leaf_memory){0};
        host = leaf_host(&memory);
        run(all[i]);
        CHECK_EQ(memory.bytes, 0);
        CHECK_EQ(memory.blocks, 0);
    }
}

static void run_round_trip(const struct crypto_provider *crypto) {
    struct quic_token_sealer *s = make(crypto, 1);
    uint8_t bytes[QUIC_MAX_TOKEN_BYTES];
    for (int i = 0; i < 50; i++) {
        struct quic_token in = retry_token(), out;
        size_t len = seal(s, &in, bytes);
        CHECK_EQ(quic_token_open(s, bytes, len, &peer, &scid, NOW + 1, &out), QUIC_TOKEN_VALID);
        CHECK_EQ(out.kind, QUIC_TOKEN_RETRY);
        CHECK_EQ(out.issued_ns, NOW);
        CHECK(quic_cid_equal(&in.original_dcid, &out.original_dcid));
        CHECK(quic_cid_equal(&in.retry_scid, &out.retry_scid));

        struct quic_token fresh = {.kind = QUIC_TOKEN_NEW, .issued_ns = NOW + (uint64_t)i};
        len = seal(s, &fresh, bytes);
        CHECK_EQ(quic_token_open(s, bytes, len, &peer, &scid, NOW + 100, &out), QUIC_TOKEN_VALID);
        CHECK_EQ(out.kind, QUIC_TOKEN_NEW);
        CHECK_EQ(out.issued_ns, NOW + (uint64_t)i);
        CHECK_EQ(out.original_dcid.len, 0);
    }
    struct quic_token longest = {.kind = QUIC_TOKEN_RETRY, .issued_ns = NOW};
    longest.original_dcid.len = QUIC_MAX_CID_BYTES;
    longest.retry_scid = scid;
    struct quic_token out;
    size_t len = seal(s, &longest, bytes);
    CHECK_EQ(quic_token_open(s, bytes, len, &peer, &scid, NOW, &out), QUIC_TOKEN_VALID);
    CHECK_EQ(len, RETRY_TOKEN_MAX_BYTES);
    CHECK(quic_cid_equal(&longest.retry_scid, &out.retry_scid));
    longest.retry_scid.len = 20;
    CHECK_EQ(quic_token_seal(s, &longest, &peer, NULL, bytes), 0);
    quic_token_sealer_destroy(s, &host);
}

/* A Retry token keeps its form when a bit of what the mac covers changes, and is forged then; any other
 * change takes the form away. */
static void refused(enum quic_token_verdict v, enum quic_token_kind kind) {
    CHECK(v == QUIC_TOKEN_FOREIGN || (kind == QUIC_TOKEN_RETRY && v == QUIC_TOKEN_FORGED));
}

static void run_tampered(const struct crypto_provider *crypto) {
    struct quic_token_sealer *s = make(crypto, 1), *other = make(crypto, 2);
    struct quic_token in[2] = {retry_token(), {.kind = QUIC_TOKEN_NEW, .issued_ns = NOW}}, out;
    for (size_t t = 0; t < 2; t++) {
        uint8_t bytes[QUIC_MAX_TOKEN_BYTES + 1] = {0};
        size_t len = seal(s, &in[t], bytes);
        CHECK_EQ(quic_token_open(other, bytes, len, &peer, &scid, NOW, &out),
                 t == 0 ? QUIC_TOKEN_FORGED : QUIC_TOKEN_FOREIGN);
        for (size_t bit = 0; bit < 8 * len; bit++) {
            bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
            refused(quic_token_open(s, bytes, len, &peer, &scid, NOW, &out), in[t].kind);
            bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        for (size_t cut = 0; cut <= sizeof bytes; cut++) {
            if (cut != len)
                CHECK_EQ(quic_token_open(s, bytes, cut, &peer, &scid, NOW, &out), QUIC_TOKEN_FOREIGN);
        }
        bytes[0] = (uint8_t)(QUIC_TOKEN_RETRY + QUIC_TOKEN_NEW - bytes[0]); /* One kind given as the other. */
        CHECK_EQ(quic_token_open(s, bytes, len, &peer, &scid, NOW, &out), QUIC_TOKEN_FOREIGN);
    }
    struct quic_cid elsewhere = scid;
    uint8_t bytes[QUIC_MAX_TOKEN_BYTES];
    size_t len = seal(s, &in[0], bytes);
    elsewhere.id[7] ^= 1;
    CHECK_EQ(quic_token_open(s, bytes, len, &peer, &elsewhere, NOW, &out), QUIC_TOKEN_FORGED);
    elsewhere.len = 20;
    CHECK_EQ(quic_token_open(s, bytes, len, &peer, &elsewhere, NOW, &out), QUIC_TOKEN_FORGED);
    quic_token_sealer_destroy(s, &host);
    quic_token_sealer_destroy(other, &host);
}

static void run_expiry(const struct crypto_provider *crypto) {
    struct quic_token_sealer *s = make(crypto, 1);
    const uint64_t second = UINT64_C(1000000000);
    /* A Retry token's time is a second's number: it lives from the start of that second. */
    const uint64_t lives[] = {(RETRY_TOKEN_LIFE_SLOTS + 1) * second - 1, QUIC_NEW_TOKEN_LIFE_NS};
    struct quic_token in[2] = {retry_token(), {.kind = QUIC_TOKEN_NEW, .issued_ns = NOW}}, out;
    for (size_t t = 0; t < 2; t++) {
        uint8_t bytes[QUIC_MAX_TOKEN_BYTES];
        size_t len = seal(s, &in[t], bytes);
        CHECK_EQ(quic_token_open(s, bytes, len, &peer, &scid, NOW + lives[t], &out), QUIC_TOKEN_VALID);
        CHECK_EQ(quic_token_open(s, bytes, len, &peer, &scid, NOW + lives[t] + 1, &out), QUIC_TOKEN_EXPIRED);
        CHECK_EQ(quic_token_open(s, bytes, len, &peer, &scid, NOW + 3600 * 24 * 30 * second, &out),
                 QUIC_TOKEN_EXPIRED);
        /* Another worker's clock was read a little earlier; one from before a restart is much earlier. */
        CHECK_EQ(quic_token_open(s, bytes, len, &peer, &scid, NOW - 1000000, &out), QUIC_TOKEN_VALID);
        CHECK_EQ(quic_token_open(s, bytes, len, &peer, &scid, NOW - 60 * second, &out), QUIC_TOKEN_EXPIRED);
        CHECK_EQ(quic_token_open(s, bytes, len, &peer, &scid, 0, &out), QUIC_TOKEN_EXPIRED);
    }
    quic_token_sealer_destroy(s, &host);
}

static void run_address(const struct crypto_provider *crypto) {
    struct quic_token_sealer *s = make(crypto, 1);
    struct quic_token in[2] = {retry_token(), {.kind = QUIC_TOKEN_NEW, .issued_ns = NOW}}, out;
    const enum quic_token_verdict moved_verdict[2] = {QUIC_TOKEN_FORGED, QUIC_TOKEN_WRONG_ADDRESS};
    for (size_t t = 0; t < 2; t++) {
        uint8_t bytes[QUIC_MAX_TOKEN_BYTES];
        size_t len = seal(s, &in[t], bytes);
        struct quic_addr moved = peer;
        moved.ip[15] ^= 1;
        CHECK_EQ(quic_token_open(s, bytes, len, &moved, &scid, NOW, &out), moved_verdict[t]);
        /* A token from elsewhere is that first, however old. */
        CHECK_EQ(quic_token_open(s, bytes, len, &moved, &scid, NOW * 2, &out), moved_verdict[t]);
        moved = peer;
        moved.scope_id = 3; /* The XDP program knows no scopes: a Retry token does not hold it. */
        CHECK_EQ(quic_token_open(s, bytes, len, &moved, &scid, NOW, &out),
                 t == 0 ? QUIC_TOKEN_VALID : QUIC_TOKEN_WRONG_ADDRESS);
        moved = peer;
        moved.port++;
        CHECK_EQ(quic_token_open(s, bytes, len, &moved, &scid, NOW, &out),
                 t == 0 ? QUIC_TOKEN_FORGED : QUIC_TOKEN_VALID);
    }
    quic_token_sealer_destroy(s, &host);
}

static void run_opaque(const struct crypto_provider *crypto) {
    struct quic_token_sealer *s = make(crypto, 1);
    struct quic_token t = {.kind = QUIC_TOKEN_NEW, .issued_ns = NOW};
    uint8_t a[QUIC_MAX_TOKEN_BYTES], b[QUIC_MAX_TOKEN_BYTES];
    size_t len = seal(s, &t, a);
    CHECK_EQ(seal(s, &t, b), len);
    size_t same = 0;
    for (size_t i = 1; i < len; i++)
        same += a[i] == b[i];
    CHECK(same < len / 4); /* Two tokens of one client have no more in common than chance gives. */
    CHECK(memmem(a, len, peer.ip, 16) == NULL);
    quic_token_sealer_destroy(s, &host);
}

static void run_no_memory(const struct crypto_provider *crypto) {
    uint8_t key[32] = {0};
    memory.empty = true;
    CHECK(quic_token_sealer_create(crypto, &host, key) == NULL);
    quic_token_sealer_destroy(NULL, &host);
}

static void round_trip(void) {
    each_provider(run_round_trip);
}
static void tampered(void) {
    each_provider(run_tampered);
}
static void expiry(void) {
    each_provider(run_expiry);
}
static void address(void) {
    each_provider(run_address);
}
static void opaque(void) {
    each_provider(run_opaque);
}
static void no_memory(void) {
    each_provider(run_no_memory);
}

static const struct check_case cases[] = {
    {"round_trip", round_trip}, {"tampered", tampered}, {"expiry", expiry},
    {"address", address},       {"opaque", opaque},     {"no_memory", no_memory},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
