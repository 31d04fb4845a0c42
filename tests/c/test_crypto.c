/* csrc/crypto/: every provider against published vectors, against the other providers, and against tampering.
 *
 * Vectors: RFC 9001 appendix A (rfc9001_vectors.h), the GCM specification's test cases 4 and 16, RFC 8439
 * section 2.8.2, RFC 4231, RFC 5869 appendix A, FIPS 197 appendix C. HKDF with SHA-384 has no published
 * vectors and is held against libcrypto's own HKDF.
 */
#include "check.h"
#include "rfc9001_vectors.h"

#include "crypto/crypto.h"
#include "crypto/internal.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_PROVIDERS 4
#define MAX_TEXT      1500
#define STATE_BYTES   4096 /* More than any provider asks for (checked in sizes). */

static const struct crypto_provider *providers[MAX_PROVIDERS];
static size_t provider_count;
static size_t libcrypto_allocations; /* Counted by the hooks that main installs. */

static const char *const aead_names[CRYPTO_AEAD_COUNT] = {"aes-128-gcm", "aes-256-gcm", "chacha20-poly1305"};

struct key {
    _Alignas(64) uint8_t mem[STATE_BYTES];
};

static void hex(const char *text, uint8_t *out, size_t len) {
    REQUIRE(strlen(text) == 2 * len);
    for (size_t i = 0; i < len; i++) {
        unsigned byte;
        REQUIRE(sscanf(text + 2 * i, "%2x", &byte) == 1);
        out[i] = (uint8_t)byte;
    }
}

/* Calls `run` for every provider and AEAD that the provider supports. */
static void each(void (*run)(const struct crypto_provider *, enum crypto_aead)) {
    for (size_t p = 0; p < provider_count; p++) {
        for (int aead = 0; aead < CRYPTO_AEAD_COUNT; aead++) {
            check_note("%s %s", providers[p]->name, aead_names[aead]);
            if (CHECK(providers[p]->supports((enum crypto_aead)aead))) {
                run(providers[p], (enum crypto_aead)aead);
            }
        }
    }
}

static void lookup(void) {
    const struct crypto_provider *first = NULL;
    CHECK_EQ(crypto_providers(&first, 1), provider_count);
    CHECK(crypto_provider_by_name(NULL) == first);
    CHECK(crypto_provider_by_name("auto") == first);
    CHECK(crypto_provider_by_name("no such provider") == NULL);
    CHECK(crypto_provider_by_name("openssl") != NULL);
#ifdef STOQ_HAVE_IPSEC_MB
    CHECK(strcmp(first->name, "ipsec-mb") == 0);
#endif
    for (size_t i = 0; i < provider_count; i++) {
        CHECK(crypto_provider_by_name(providers[i]->name) == providers[i]);
        CHECK(!providers[i]->supports(CRYPTO_AEAD_COUNT));
    }
}

static void sizes(void) {
    for (size_t i = 0; i < provider_count; i++) {
        CHECK_EQ(providers[i]->aead_bytes % 64, 0);
        CHECK_EQ(providers[i]->hp_bytes % 64, 0);
        REQUIRE(providers[i]->aead_bytes <= STATE_BYTES && providers[i]->hp_bytes <= STATE_BYTES);
        printf("# %s: aead_bytes %zu, hp_bytes %zu\n", providers[i]->name, providers[i]->aead_bytes,
               providers[i]->hp_bytes);
    }
    CHECK_EQ(crypto_key_bytes(CRYPTO_AES_128_GCM), 16);
    CHECK_EQ(crypto_key_bytes(CRYPTO_AES_256_GCM), 32);
    CHECK_EQ(crypto_key_bytes(CRYPTO_CHACHA20_POLY1305), 32);
    CHECK_EQ(crypto_hash_bytes(crypto_aead_hash(CRYPTO_AES_128_GCM)), 32);
    CHECK_EQ(crypto_hash_bytes(crypto_aead_hash(CRYPTO_AES_256_GCM)), 48);
    CHECK_EQ(crypto_hash_bytes(crypto_aead_hash(CRYPTO_CHACHA20_POLY1305)), 32);
    /* RFC 9001 section 6.6. */
    CHECK_EQ(crypto_confidentiality_limit(CRYPTO_AES_128_GCM), 8388608);
    CHECK_EQ(crypto_confidentiality_limit(CRYPTO_AES_256_GCM), 8388608);
    CHECK(crypto_confidentiality_limit(CRYPTO_CHACHA20_POLY1305) >= 1ULL << 62);
    CHECK_EQ(crypto_integrity_limit(CRYPTO_AES_128_GCM), 4503599627370496);
    CHECK_EQ(crypto_integrity_limit(CRYPTO_AES_256_GCM), 4503599627370496);
    CHECK_EQ(crypto_integrity_limit(CRYPTO_CHACHA20_POLY1305), 68719476736);
}

static void equal_and_wipe(void) {
    uint8_t a[33], b[33];
    memset(a, 0x5a, sizeof(a));
    memset(b, 0x5a, sizeof(b));
    CHECK(crypto_equal(a, b, sizeof(a)));
    CHECK(crypto_equal(a, b, 0));
    for (size_t i = 0; i < sizeof(a); i++) {
        b[i] ^= 0x80;
        CHECK(!crypto_equal(a, b, sizeof(a)));
        CHECK(crypto_equal(a, b, i));
        b[i] ^= 0x80;
    }
    uint8_t zeros[33] = {0};
    crypto_wipe(a, 32);
    CHECK_MEM(a, zeros, 32);
    CHECK_EQ(a[32], 0x5a);
}

/* ---- HMAC and HKDF ---- */

struct hmac_case {
    size_t key_len;
    uint8_t key_fill; /* 0: the key is 1, 2, 3, ... or, when key_text is set, that text. */
    const char *key_text;
    size_t msg_len; /* 0: the message is msg_text. */
    uint8_t msg_fill;
    const char *msg_text;
    const char *sha256, *sha384; /* sha384 through HKDF-Extract, which is HMAC(salt, ikm). */
};

/* RFC 4231 section 4, cases 1-4, 6, 7 (case 5 is a truncated output). */
static const struct hmac_case hmac_cases[] = {
    {20, 0x0b, NULL, 0, 0, "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
     "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6"},
    {4, 0, "Jefe", 0, 0, "what do ya want for nothing?",
     "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
     "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649"},
    {20, 0xaa, NULL, 50, 0xdd, NULL, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
     "88062608d3e6ad8a0aa2ace014c8a86f0aa635d947ac9febe83ef4e55966144b2a5ab39dc13814b94e3ab6e101a34f27"},
    {25, 0, NULL, 50, 0xcd, NULL, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
     "3e8a69b7783c25851933ab6290af6ca77a9981480850009cc5577c6e1f573b4e6801dd23c4a7d679ccf8a386c674cffb"},
    {131, 0xaa, NULL, 0, 0, "Test Using Larger Than Block-Size Key - Hash Key First",
     "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
     "4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f3cd11f05033ac4c60c2ef6ab4030fe8296248df163f44952"},
    {131, 0xaa, NULL, 0, 0,
     "This is a test using a larger than block-size key and a larger than block-size data. The key needs to "
     "be "
     "hashed before being used by the HMAC algorithm.",
     "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
     "6617178e941f020d351e2f254e8fd32c602420feb0b8fb9adccebb82461e99c5a678cc31e799176d3860e6110c46523e"},
};

static void hmac_rfc4231(void) {
    for (size_t i = 0; i < sizeof(hmac_cases) / sizeof(hmac_cases[0]); i++) {
        const struct hmac_case *c = &hmac_cases[i];
        check_note("case %zu", i);
        uint8_t key[131], msg[200], want[48], got[48];
        for (size_t k = 0; k < c->key_len; k++) {
            key[k] = c->key_text != NULL ? (uint8_t)c->key_text[k]
                     : c->key_fill != 0  ? c->key_fill
                                         : (uint8_t)(k + 1);
        }
        size_t msg_len = c->msg_text != NULL ? strlen(c->msg_text) : c->msg_len;
        REQUIRE(msg_len <= sizeof(msg));
        if (c->msg_text != NULL) {
            memcpy(msg, c->msg_text, msg_len);
        } else {
            memset(msg, c->msg_fill, msg_len);
        }
        hex(c->sha256, want, 32);
        CHECK(crypto_hmac_sha256(key, c->key_len, msg, msg_len, got));
        CHECK_MEM(got, want, 32);
        CHECK(crypto_hkdf_extract(CRYPTO_SHA256, key, c->key_len, msg, msg_len, got));
        CHECK_MEM(got, want, 32);
        hex(c->sha384, want, 48);
        CHECK(crypto_hkdf_extract(CRYPTO_SHA384, key, c->key_len, msg, msg_len, got));
        CHECK_MEM(got, want, 48);
    }
}

static void hkdf_rfc5869(void) {
    uint8_t ikm[80], salt[80], info[80], prk[32], okm[82], want[82];
    memset(ikm, 0x0b, 22);
    for (size_t i = 0; i < 80; i++) {
        salt[i] = (uint8_t)i;
        info[i] = (uint8_t)(0xf0 + i);
    }
    check_note("A.1");
    CHECK(crypto_hkdf_extract(CRYPTO_SHA256, salt, 13, ikm, 22, prk));
    hex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5", want, 32);
    CHECK_MEM(prk, want, 32);
    CHECK(crypto_hkdf_expand(CRYPTO_SHA256, prk, 32, info, 10, okm, 42));
    hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865", want, 42);
    CHECK_MEM(okm, want, 42);

    check_note("A.3: no salt, no info");
    CHECK(crypto_hkdf_extract(CRYPTO_SHA256, NULL, 0, ikm, 22, prk));
    hex("19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04", want, 32);
    CHECK_MEM(prk, want, 32);
    CHECK(crypto_hkdf_expand(CRYPTO_SHA256, prk, 32, NULL, 0, okm, 42));
    hex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8", want, 42);
    CHECK_MEM(okm, want, 42);

    check_note("A.2: long inputs");
    for (size_t i = 0; i < 80; i++) {
        ikm[i] = (uint8_t)i;
        salt[i] = (uint8_t)(0x60 + i);
        info[i] = (uint8_t)(0xb0 + i);
    }
    CHECK(crypto_hkdf_extract(CRYPTO_SHA256, salt, 80, ikm, 80, prk));
    hex("06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244", want, 32);
    CHECK_MEM(prk, want, 32);
    CHECK(crypto_hkdf_expand(CRYPTO_SHA256, prk, 32, info, 80, okm, 82));
    hex("b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        want, 82);
    CHECK_MEM(okm, want, 82);
}

/* What libcrypto's own HKDF says, for the sizes no RFC prints. */
static void libcrypto_expand(const char *digest, uint8_t *prk, size_t prk_len, uint8_t *info, size_t info_len,
                             uint8_t *out, size_t out_len) {
    int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
    char name[16];
    snprintf(name, sizeof(name), "%s", digest);
    OSSL_PARAM params[] = {OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
                           OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, name, 0),
                           OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, prk, prk_len),
                           OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info, info_len),
                           OSSL_PARAM_construct_end()};
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(kdf);
    CHECK_EQ(EVP_KDF_derive(ctx, out, out_len, params), 1);
    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
}

static void hkdf_label_against_libcrypto(void) {
    uint8_t secret[48], want[600], got[600];
    for (int round = 0; round < 100; round++) {
        enum crypto_hash hash = round % 2 == 0 ? CRYPTO_SHA256 : CRYPTO_SHA384;
        size_t secret_len = crypto_hash_bytes(hash);
        size_t out_len = 1 + check_rand() % sizeof(got), label_len = check_rand() % 30;
        check_note("round %d: %zu bytes, label of %zu", round, out_len, label_len);
        char label[32];
        memset(label, 'a' + round % 26, label_len);
        label[label_len] = '\0';
        check_rand_bytes(secret, sizeof(secret));
        uint8_t info[64];
        int n = snprintf((char *)info, sizeof(info), "%c%c%ctls13 %s", 'x', 'x', 'x', label);
        info[0] = (uint8_t)(out_len >> 8);
        info[1] = (uint8_t)out_len;
        info[2] = (uint8_t)(6 + label_len);
        info[n] = 0;
        libcrypto_expand(hash == CRYPTO_SHA256 ? "SHA256" : "SHA384", secret, secret_len, info, (size_t)n + 1,
                         want, out_len);
        CHECK(crypto_hkdf_expand_label(hash, secret, secret_len, label, got, out_len));
        CHECK_MEM(got, want, out_len);
    }
}

static void hkdf_bounds(void) {
    static uint8_t out[255 * 48 + 1];
    uint8_t secret[48] = {1};
    char label[300];
    memset(label, 'x', sizeof(label));
    label[249] = '\0'; /* "tls13 " and 249 make the 255 that the length byte can say. */
    CHECK(crypto_hkdf_expand_label(CRYPTO_SHA256, secret, 32, label, out, 32));
    label[249] = 'x';
    label[250] = '\0';
    CHECK(!crypto_hkdf_expand_label(CRYPTO_SHA256, secret, 32, label, out, 32));
    CHECK(crypto_hkdf_expand(CRYPTO_SHA384, secret, 48, NULL, 0, out, 255 * 48));
    CHECK(!crypto_hkdf_expand(CRYPTO_SHA384, secret, 48, NULL, 0, out, 255 * 48 + 1));
}

/* ---- RFC 9001 appendix A ---- */

static void check_label(const uint8_t *secret, const char *label, const uint8_t *want, size_t len) {
    uint8_t got[48];
    check_note("%s", label);
    CHECK(crypto_hkdf_expand_label(CRYPTO_SHA256, secret, 32, label, got, len));
    CHECK_MEM(got, want, len);
}

static void rfc9001_keys(void) {
    uint8_t initial[32];
    CHECK(crypto_hkdf_extract(CRYPTO_SHA256, rfc9001_initial_salt, sizeof(rfc9001_initial_salt), rfc9001_dcid,
                              sizeof(rfc9001_dcid), initial));
    CHECK_MEM(initial, rfc9001_initial_secret, 32);
    check_label(initial, "client in", rfc9001_client_initial_secret, 32);
    check_label(rfc9001_client_initial_secret, "quic key", rfc9001_client_key, 16);
    check_label(rfc9001_client_initial_secret, "quic iv", rfc9001_client_iv, 12);
    check_label(rfc9001_client_initial_secret, "quic hp", rfc9001_client_hp, 16);
    check_label(initial, "server in", rfc9001_server_initial_secret, 32);
    check_label(rfc9001_server_initial_secret, "quic key", rfc9001_server_key, 16);
    check_label(rfc9001_server_initial_secret, "quic iv", rfc9001_server_iv, 12);
    check_label(rfc9001_server_initial_secret, "quic hp", rfc9001_server_hp, 16);
    check_label(rfc9001_chacha_secret, "quic key", rfc9001_chacha_key, 32);
    check_label(rfc9001_chacha_secret, "quic iv", rfc9001_chacha_iv, 12);
    check_label(rfc9001_chacha_secret, "quic hp", rfc9001_chacha_hp, 32);
    check_label(rfc9001_chacha_secret, "quic ku", rfc9001_chacha_ku, 32);
}

struct packet_case {
    enum crypto_aead aead;
    const uint8_t *key, *iv, *hp;
    const uint8_t *header;
    size_t header_len;
    const uint8_t *payload;
    size_t payload_len; /* Zeros (PADDING) follow the payload up to the packet's length. */
    uint64_t packet_number;
    size_t pn_bytes;
    const uint8_t *sample, *mask;
    const uint8_t *packet;
    size_t packet_len;
};

/* Protects and unprotects one packet the way RFC 9001 sections 5.3 and 5.4 say, in place. */
static void check_packet(const struct crypto_provider *provider, const struct packet_case *c) {
    struct key aead, hp;
    uint8_t packet[1200] = {0}, nonce[CRYPTO_NONCE_BYTES], mask[1][CRYPTO_MASK_BYTES];
    REQUIRE(c->packet_len <= sizeof(packet));
    REQUIRE(provider->aead_init(aead.mem, c->aead, c->key));
    REQUIRE(provider->hp_init(hp.mem, c->aead, c->hp));
    size_t pn_offset = c->header_len - c->pn_bytes;
    size_t text_len = c->packet_len - c->header_len - CRYPTO_TAG_BYTES;
    memcpy(nonce, c->iv, sizeof(nonce));
    for (size_t i = 0; i < 8; i++) {
        nonce[CRYPTO_NONCE_BYTES - 1 - i] ^= (uint8_t)(c->packet_number >> (8 * i));
    }
    uint8_t first_byte_bits = c->header[0] & 0x80 ? 0x0f : 0x1f; /* Section 5.4.1: long or short header. */

    memcpy(packet, c->header, c->header_len);
    memcpy(packet + c->header_len, c->payload, c->payload_len);
    provider->seal(aead.mem, nonce, packet, c->header_len, packet + c->header_len, text_len,
                   packet + c->header_len);
    const uint8_t *sample = packet + pn_offset + 4;
    CHECK_MEM(sample, c->sample, CRYPTO_SAMPLE_BYTES);
    provider->hp_mask(hp.mem, &sample, mask, 1);
    CHECK_MEM(mask[0], c->mask, CRYPTO_MASK_BYTES);
    packet[0] ^= mask[0][0] & first_byte_bits;
    for (size_t i = 0; i < c->pn_bytes; i++) {
        packet[pn_offset + i] ^= mask[0][1 + i];
    }
    CHECK_MEM(packet, c->packet, c->packet_len);

    memcpy(packet, c->packet, c->packet_len);
    provider->hp_mask(hp.mem, &sample, mask, 1);
    packet[0] ^= mask[0][0] & first_byte_bits;
    for (size_t i = 0; i < c->pn_bytes; i++) {
        packet[pn_offset + i] ^= mask[0][1 + i];
    }
    CHECK_MEM(packet, c->header, c->header_len);
    CHECK(provider->open(aead.mem, nonce, packet, c->header_len, packet + c->header_len,
                         c->packet_len - c->header_len, packet + c->header_len));
    CHECK_MEM(packet + c->header_len, c->payload, c->payload_len);
    for (size_t i = c->payload_len; i < text_len; i++) {
        CHECK_EQ(packet[c->header_len + i], 0);
    }
    provider->aead_clear(aead.mem);
    provider->hp_clear(hp.mem);
}

static void rfc9001_packets(void) {
    const struct packet_case client = {CRYPTO_AES_128_GCM,
                                       rfc9001_client_key,
                                       rfc9001_client_iv,
                                       rfc9001_client_hp,
                                       rfc9001_client_header,
                                       sizeof(rfc9001_client_header),
                                       rfc9001_client_crypto_frame,
                                       sizeof(rfc9001_client_crypto_frame),
                                       RFC9001_CLIENT_PACKET_NUMBER,
                                       RFC9001_CLIENT_PN_BYTES,
                                       rfc9001_client_sample,
                                       rfc9001_client_mask,
                                       rfc9001_client_packet,
                                       sizeof(rfc9001_client_packet)};
    const struct packet_case server = {CRYPTO_AES_128_GCM,
                                       rfc9001_server_key,
                                       rfc9001_server_iv,
                                       rfc9001_server_hp,
                                       rfc9001_server_header,
                                       sizeof(rfc9001_server_header),
                                       rfc9001_server_payload,
                                       sizeof(rfc9001_server_payload),
                                       RFC9001_SERVER_PACKET_NUMBER,
                                       RFC9001_SERVER_PN_BYTES,
                                       rfc9001_server_sample,
                                       rfc9001_server_mask,
                                       rfc9001_server_packet,
                                       sizeof(rfc9001_server_packet)};
    const struct packet_case chacha = {CRYPTO_CHACHA20_POLY1305,
                                       rfc9001_chacha_key,
                                       rfc9001_chacha_iv,
                                       rfc9001_chacha_hp,
                                       rfc9001_chacha_header,
                                       sizeof(rfc9001_chacha_header),
                                       rfc9001_chacha_payload,
                                       sizeof(rfc9001_chacha_payload),
                                       RFC9001_CHACHA_PACKET_NUMBER,
                                       RFC9001_CHACHA_PN_BYTES,
                                       rfc9001_chacha_sample,
                                       rfc9001_chacha_mask,
                                       rfc9001_chacha_packet,
                                       sizeof(rfc9001_chacha_packet)};
    CHECK_EQ(sizeof(rfc9001_client_header) + RFC9001_CLIENT_PAYLOAD_BYTES + CRYPTO_TAG_BYTES,
             sizeof(rfc9001_client_packet));
    for (size_t p = 0; p < provider_count; p++) {
        check_note("%s, A.2", providers[p]->name);
        check_packet(providers[p], &client);
        check_note("%s, A.3", providers[p]->name);
        check_packet(providers[p], &server);
        check_note("%s, A.5", providers[p]->name);
        check_packet(providers[p], &chacha);
    }
}

static void rfc9001_retry(void) {
    /* Retry pseudo-packet, section 5.8: length and bytes of the original connection ID, then Retry without
     * tag. */
    size_t body_len = sizeof(rfc9001_retry_packet) - CRYPTO_TAG_BYTES, n = 0;
    uint8_t pseudo[64], tag[CRYPTO_TAG_BYTES];
    pseudo[n++] = sizeof(rfc9001_dcid);
    memcpy(pseudo + n, rfc9001_dcid, sizeof(rfc9001_dcid));
    n += sizeof(rfc9001_dcid);
    memcpy(pseudo + n, rfc9001_retry_packet, body_len);
    n += body_len;
    CHECK(crypto_retry_tag(pseudo, n, tag));
    CHECK_MEM(tag, rfc9001_retry_packet + body_len, CRYPTO_TAG_BYTES);
    pseudo[3] ^= 1;
    CHECK(crypto_retry_tag(pseudo, n, tag));
    CHECK(!crypto_equal(tag, rfc9001_retry_packet + body_len, CRYPTO_TAG_BYTES));
}

/* ---- Known answers of the AEADs themselves ---- */

struct aead_case {
    enum crypto_aead aead;
    const char *key, *nonce, *aad, *text, *sealed;
};

static const char gcm_text[] =
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525"
    "b16aedf5aa0de657ba637b39";
static const char gcm_aad[] = "feedfacedeadbeeffeedfacedeadbeefabaddad2";

static const struct aead_case aead_cases[] = {
    {CRYPTO_AES_128_GCM, "feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888", gcm_aad, gcm_text,
     "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e21d514b25466931c7d8f6a5aac84aa05"
     "1ba30b396a0aac973d58e0915bc94fbc3221a5db94fae95ae7121a47"},
    {CRYPTO_AES_256_GCM, "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
     "cafebabefacedbaddecaf888", gcm_aad, gcm_text,
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838"
     "c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b"},
    {CRYPTO_CHACHA20_POLY1305, "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
     "070000004041424344454647", "50515253c0c1c2c3c4c5c6c7",
     "4c616469657320616e642047656e746c656d656e206f662074686520636c617373206f66202739393a20496620492063"
     "6f756c64206f6666657220796f75206f6e6c79206f6e652074697020666f7220746865206675747572652c2073756e73"
     "637265656e20776f756c642062652069742e",
     "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b"
     "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
     "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691"},
};

static void aead_known_answers(void) {
    for (size_t p = 0; p < provider_count; p++) {
        for (size_t i = 0; i < sizeof(aead_cases) / sizeof(aead_cases[0]); i++) {
            const struct aead_case *c = &aead_cases[i];
            check_note("%s %s", providers[p]->name, aead_names[c->aead]);
            uint8_t secret[32], nonce[12], aad[32], text[128], want[144], got[144];
            size_t aad_len = strlen(c->aad) / 2, len = strlen(c->text) / 2;
            hex(c->key, secret, crypto_key_bytes(c->aead));
            hex(c->nonce, nonce, 12);
            hex(c->aad, aad, aad_len);
            hex(c->text, text, len);
            hex(c->sealed, want, len + CRYPTO_TAG_BYTES);
            struct key key;
            REQUIRE(providers[p]->aead_init(key.mem, c->aead, secret));
            providers[p]->seal(key.mem, nonce, aad, aad_len, text, len, got);
            CHECK_MEM(got, want, len + CRYPTO_TAG_BYTES);
            CHECK(providers[p]->open(key.mem, nonce, aad, aad_len, want, len + CRYPTO_TAG_BYTES, got));
            CHECK_MEM(got, text, len);
            providers[p]->aead_clear(key.mem);
        }
    }
}

/* ---- Providers against each other ---- */

/* One random message, sealed by every provider, out of place and in place; each opens what the first sealed.
 */
static void cross_check_one(enum crypto_aead aead, size_t len) {
    uint8_t secret[32], nonce[12], aad[64], text[MAX_TEXT], want[MAX_TEXT + 16], got[MAX_TEXT + 16];
    size_t aad_len = check_rand() % (sizeof(aad) + 1);
    check_rand_bytes(secret, sizeof(secret));
    check_rand_bytes(nonce, sizeof(nonce));
    check_rand_bytes(aad, sizeof(aad));
    check_rand_bytes(text, len);
    for (size_t p = 0; p < provider_count; p++) {
        const struct crypto_provider *provider = providers[p];
        check_note("%s %s, %zu bytes, aad %zu", provider->name, aead_names[aead], len, aad_len);
        struct key key;
        REQUIRE(provider->aead_init(key.mem, aead, secret));
        memset(got, 0xee, sizeof(got));
        provider->seal(key.mem, nonce, aad, aad_len, text, len, got);
        if (p == 0) {
            memcpy(want, got, len + 16);
        }
        CHECK_MEM(got, want, len + 16);
        memcpy(got, text, len);
        provider->seal(key.mem, nonce, aad, aad_len, got, len, got);
        CHECK_MEM(got, want, len + 16);
        CHECK(provider->open(key.mem, nonce, aad, aad_len, got, len + 16, got));
        CHECK_MEM(got, text, len);
        memset(got, 0xee, sizeof(got));
        CHECK(provider->open(key.mem, nonce, aad, aad_len, want, len + 16, got));
        CHECK_MEM(got, text, len);
        for (size_t i = len; i < sizeof(got); i++) {
            CHECK_EQ(got[i], 0xee); /* open writes the text and nothing behind it. */
        }
        provider->aead_clear(key.mem);
    }
}

static void cross_check(void) {
    for (int aead = 0; aead < CRYPTO_AEAD_COUNT; aead++) {
        for (size_t len = 0; len <= 300; len++) { /* Every tail length of every vector width. */
            cross_check_one((enum crypto_aead)aead, len);
        }
        for (int round = 0; round < 300; round++) {
            cross_check_one((enum crypto_aead)aead, check_rand() % (MAX_TEXT + 1));
        }
    }
}

static void tampered_one(const struct crypto_provider *provider, enum crypto_aead aead) {
    uint8_t secret[32], nonce[12], aad[20], text[100], sealed[116], out[116];
    check_rand_bytes(secret, sizeof(secret));
    check_rand_bytes(nonce, sizeof(nonce));
    check_rand_bytes(aad, sizeof(aad));
    check_rand_bytes(text, sizeof(text));
    struct key key;
    REQUIRE(provider->aead_init(key.mem, aead, secret));
    provider->seal(key.mem, nonce, aad, sizeof(aad), text, sizeof(text), sealed);
    for (size_t bit = 0; bit < 8 * sizeof(sealed); bit++) { /* Ciphertext and tag, every bit. */
        sealed[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK(!provider->open(key.mem, nonce, aad, sizeof(aad), sealed, sizeof(sealed), out));
        sealed[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t bit = 0; bit < 8 * sizeof(aad); bit++) {
        aad[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK(!provider->open(key.mem, nonce, aad, sizeof(aad), sealed, sizeof(sealed), out));
        aad[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t bit = 0; bit < 8 * sizeof(nonce); bit++) {
        nonce[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK(!provider->open(key.mem, nonce, aad, sizeof(aad), sealed, sizeof(sealed), out));
        nonce[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t len = 0; len < sizeof(sealed); len++) { /* Cut short, down to less than a tag. */
        CHECK(!provider->open(key.mem, nonce, aad, sizeof(aad), sealed, len, out));
    }
    CHECK(!provider->open(key.mem, nonce, aad, sizeof(aad) - 1, sealed, sizeof(sealed), out));
    /* All that did not spoil the key's state. */
    CHECK(provider->open(key.mem, nonce, aad, sizeof(aad), sealed, sizeof(sealed), out));
    CHECK_MEM(out, text, sizeof(text));
    provider->aead_clear(key.mem);
}

static void tampered(void) {
    each(tampered_one);
}

/* ---- Header protection ---- */

static void hp_fips197(void) {
    /* FIPS 197 appendix C.1 and C.3: the first five bytes of the block are the mask. */
    static const uint8_t want[2][CRYPTO_MASK_BYTES] = {{0x69, 0xc4, 0xe0, 0xd8, 0x6a},
                                                       {0x8e, 0xa2, 0xb7, 0xca, 0x51}};
    uint8_t secret[32], block[16], masks[1][CRYPTO_MASK_BYTES];
    for (size_t i = 0; i < 32; i++) {
        secret[i] = (uint8_t)i;
        block[i % 16] = (uint8_t)(i % 16 * 0x11);
    }
    const uint8_t *sample = block;
    for (size_t p = 0; p < provider_count; p++) {
        for (int aead = CRYPTO_AES_128_GCM; aead <= CRYPTO_AES_256_GCM; aead++) {
            check_note("%s %s", providers[p]->name, aead_names[aead]);
            struct key key;
            REQUIRE(providers[p]->hp_init(key.mem, (enum crypto_aead)aead, secret));
            providers[p]->hp_mask(key.mem, &sample, masks, 1);
            CHECK_MEM(masks[0], want[aead], CRYPTO_MASK_BYTES);
            providers[p]->hp_clear(key.mem);
        }
    }
}

/* Every batch size, on every provider, equals the last provider's masks made one by one. */
static void hp_batches(void) {
    const struct crypto_provider *reference = providers[provider_count - 1];
    for (int aead = 0; aead < CRYPTO_AEAD_COUNT; aead++) {
        uint8_t secret[32], bytes[CRYPTO_HP_BATCH + 15];
        const uint8_t *samples[CRYPTO_HP_BATCH];
        uint8_t want[CRYPTO_HP_BATCH][CRYPTO_MASK_BYTES], got[CRYPTO_HP_BATCH + 1][CRYPTO_MASK_BYTES];
        struct key reference_key;
        check_rand_bytes(secret, sizeof(secret));
        check_rand_bytes(bytes, sizeof(bytes));
        REQUIRE(reference->hp_init(reference_key.mem, (enum crypto_aead)aead, secret));
        for (size_t i = 0; i < CRYPTO_HP_BATCH; i++) {
            samples[i] = bytes + CRYPTO_HP_BATCH - 1 - i; /* Unaligned, overlapping, backwards. */
            reference->hp_mask(reference_key.mem, &samples[i], &want[i], 1);
        }
        reference->hp_clear(reference_key.mem);
        for (size_t p = 0; p < provider_count; p++) {
            struct key key;
            REQUIRE(providers[p]->hp_init(key.mem, (enum crypto_aead)aead, secret));
            for (size_t n = 1; n <= CRYPTO_HP_BATCH; n++) {
                check_note("%s %s, batch of %zu", providers[p]->name, aead_names[aead], n);
                memset(got, 0xee, sizeof(got));
                providers[p]->hp_mask(key.mem, samples, got, n);
                CHECK_MEM(got, want, n * CRYPTO_MASK_BYTES);
                for (size_t i = 0; i < CRYPTO_MASK_BYTES; i++) {
                    CHECK_EQ(got[n][i], 0xee); /* Nothing behind the batch. */
                }
            }
            providers[p]->hp_clear(key.mem);
        }
    }
}

/* ---- The memory contract ---- */

/* `len` bytes that end where an unmapped page begins: one byte read or written too far ends the process. */
static uint8_t *before_guard(size_t len, void **map, size_t *map_len) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (len + page - 1) / page * page;
    *map_len = body + page;
    *map = mmap(NULL, *map_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(*map != MAP_FAILED);
    REQUIRE(mprotect((uint8_t *)*map + body, page, PROT_NONE) == 0);
    return (uint8_t *)*map + body - len;
}

static void stays_in_bounds_one(const struct crypto_provider *provider, enum crypto_aead aead) {
    void *maps[4];
    size_t lens[4];
    uint8_t secret[32], nonce[12];
    check_rand_bytes(secret, sizeof(secret));
    check_rand_bytes(nonce, sizeof(nonce));
    uint8_t *key = before_guard(provider->aead_bytes, &maps[0], &lens[0]);
    uint8_t *hp = before_guard(provider->hp_bytes, &maps[1], &lens[1]);
    uint8_t *packet_end = before_guard(4096, &maps[2], &lens[2]) + 4096;
    uint8_t *aad_end = before_guard(4096, &maps[3], &lens[3]) + 4096;
    memset(key, 0xff, provider->aead_bytes); /* init must not rely on what was there. */
    memset(hp, 0xff, provider->hp_bytes);
    REQUIRE(provider->aead_init(key, aead, secret));
    REQUIRE(provider->hp_init(hp, aead, secret));
    for (size_t len = 0; len <= MAX_TEXT; len += len < 300 ? 1 : 37) {
        uint8_t *packet = packet_end - len - CRYPTO_TAG_BYTES;
        size_t aad_len = len % 40;
        provider->seal(key, nonce, aad_end - aad_len, aad_len, packet, len, packet);
        CHECK(provider->open(key, nonce, aad_end - aad_len, aad_len, packet, len + CRYPTO_TAG_BYTES, packet));
    }
    const uint8_t *samples[3];
    for (size_t i = 0; i < 3; i++) {
        samples[i] = packet_end - CRYPTO_SAMPLE_BYTES;
    }
    for (size_t n = 1; n <= 3; n++) {
        uint8_t(*masks)[CRYPTO_MASK_BYTES] = (uint8_t(*)[CRYPTO_MASK_BYTES])(aad_end - n * CRYPTO_MASK_BYTES);
        provider->hp_mask(hp, samples, masks, n);
    }
    provider->aead_clear(key);
    provider->hp_clear(hp);
    for (size_t i = 0; i < provider->aead_bytes; i++) {
        CHECK_EQ(key[i], 0);
    }
    for (size_t i = 0; i < provider->hp_bytes; i++) {
        CHECK_EQ(hp[i], 0);
    }
    provider->aead_clear(key); /* Zeroed memory is fine. */
    provider->hp_clear(hp);
    for (size_t i = 0; i < 4; i++) {
        munmap(maps[i], lens[i]);
    }
}

static void stays_in_bounds(void) {
    each(stays_in_bounds_one);
}

static void no_allocation_one(const struct crypto_provider *provider, enum crypto_aead aead) {
    struct key key, hp;
    uint8_t secret[32] = {7}, nonce[12] = {0}, aad[16] = {0}, packet[1366] = {0}, masks[4][CRYPTO_MASK_BYTES];
    const uint8_t *samples[4] = {packet, packet + 1, packet + 2, packet + 3};
    REQUIRE(provider->aead_init(key.mem, aead, secret));
    REQUIRE(provider->hp_init(hp.mem, aead, secret));
    size_t before = libcrypto_allocations;
    for (uint8_t i = 0; i < 10; i++) {
        nonce[0] = i;
        provider->seal(key.mem, nonce, aad, sizeof(aad), packet, 1350, packet);
        provider->hp_mask(hp.mem, samples, masks, 4);
        CHECK(provider->open(key.mem, nonce, aad, sizeof(aad), packet, 1366, packet));
        CHECK(
            !provider->open(key.mem, nonce, aad, sizeof(aad), packet, 1366, packet)); /* No longer sealed. */
    }
    CHECK_EQ(libcrypto_allocations, before);
    provider->aead_clear(key.mem);
    provider->hp_clear(hp.mem);
}

static void no_allocation(void) {
    CHECK(libcrypto_allocations != 0); /* The hooks work: main's first call has fetched ciphers. */
    each(no_allocation_one);
}

static void bad_aead_one(const struct crypto_provider *provider, enum crypto_aead aead) {
    (void)aead;
    struct key key;
    uint8_t secret[32] = {0};
    CHECK(!provider->aead_init(key.mem, CRYPTO_AEAD_COUNT, secret));
    CHECK(!provider->hp_init(key.mem, CRYPTO_AEAD_COUNT, secret));
}

static void bad_aead(void) {
    each(bad_aead_one);
}

static void *counting_malloc(size_t len, const char *file, int line) {
    (void)file, (void)line;
    libcrypto_allocations++;
    return malloc(len);
}

static void *counting_realloc(void *p, size_t len, const char *file, int line) {
    (void)file, (void)line;
    libcrypto_allocations++;
    return realloc(p, len);
}

static void plain_free(void *p, const char *file, int line) {
    (void)file, (void)line;
    free(p);
}

static const struct check_case cases[] = {
    {"crypto_lookup", lookup},
    {"crypto_sizes", sizes},
    {"crypto_equal_and_wipe", equal_and_wipe},
    {"crypto_hmac_rfc4231", hmac_rfc4231},
    {"crypto_hkdf_rfc5869", hkdf_rfc5869},
    {"crypto_hkdf_label_against_libcrypto", hkdf_label_against_libcrypto},
    {"crypto_hkdf_bounds", hkdf_bounds},
    {"crypto_rfc9001_keys", rfc9001_keys},
    {"crypto_rfc9001_packets", rfc9001_packets},
    {"crypto_rfc9001_retry", rfc9001_retry},
    {"crypto_aead_known_answers", aead_known_answers},
    {"crypto_cross_check", cross_check},
    {"crypto_tampered", tampered},
    {"crypto_hp_fips197", hp_fips197},
    {"crypto_hp_batches", hp_batches},
    {"crypto_stays_in_bounds", stays_in_bounds},
    {"crypto_no_allocation", no_allocation},
    {"crypto_bad_aead", bad_aead},
};

int main(int argc, char **argv) {
    /* Before libcrypto's first allocation, or it refuses. */
    if (CRYPTO_set_mem_functions(counting_malloc, counting_realloc, plain_free) != 1) {
        fprintf(stderr, "libcrypto took no memory hooks\n");
        return 1;
    }
    provider_count = crypto_providers(providers, MAX_PROVIDERS);
    if (provider_count == 0 || provider_count > MAX_PROVIDERS) {
        fprintf(stderr, "%zu providers\n", provider_count);
        return 1;
    }
    return check_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
