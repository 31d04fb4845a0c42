/* HMAC (RFC 2104), HKDF (RFC 5869), HKDF-Expand-Label (RFC 8446 section 7.1) and the Retry integrity tag
 * (RFC 9001 section 5.8), on libcrypto's hashes and AES-GCM whichever provider protects the packets.
 *
 * Owns the two hash descriptions, fetched on first use and only read afterwards. HMAC is built here from the
 * bare hash: the Initial packets of a flood cost nine of them each, and with libcrypto's EVP_MAC the setting
 * up takes longer than the hashing.
 */
#include "crypto/internal.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <string.h>

#define HASH_COUNT           2
#define HASH_MAX_BLOCK_BYTES 128 /* SHA-384, FIPS 180-4 section 1. */

/* RFC 5869 section 2.3: the block counter is one byte. */
#define HKDF_MAX_BLOCKS 255

/* RFC 8446 section 7.1: uint16 length; opaque label<7..255>; opaque context<0..255>, always empty in QUIC. */
#define LABEL_PREFIX       "tls13 "
#define LABEL_PREFIX_BYTES (sizeof(LABEL_PREFIX) - 1)
#define LABEL_MAX_BYTES    (255 - LABEL_PREFIX_BYTES)
#define LABEL_INFO_BYTES   (2 + 1 + 255 + 1)

struct part {
    const uint8_t *data;
    size_t len;
};

static pthread_once_t fetch_once = PTHREAD_ONCE_INIT;
static EVP_MD *digest[HASH_COUNT]; /* Written under fetch_once only; NULL when libcrypto failed. */

static void fetch_digests(void) {
    digest[CRYPTO_SHA256] = EVP_MD_fetch(NULL, "SHA256", NULL);
    digest[CRYPTO_SHA384] = EVP_MD_fetch(NULL, "SHA384", NULL);
}

/* out = H(pad || parts...), the shape of both of HMAC's hashes. */
static bool hash_parts(EVP_MD_CTX *ctx, const EVP_MD *md, const uint8_t *pad, size_t pad_len,
                       const struct part *parts, size_t count, uint8_t *out) {
    bool ok = EVP_DigestInit_ex2(ctx, md, NULL) == 1 && EVP_DigestUpdate(ctx, pad, pad_len) == 1;
    for (size_t i = 0; ok && i < count; i++) {
        ok = parts[i].len == 0 || EVP_DigestUpdate(ctx, parts[i].data, parts[i].len) == 1;
    }
    return ok && EVP_DigestFinal_ex(ctx, out, NULL) == 1;
}

/* out[0..crypto_hash_bytes(hash)) = HMAC(key, all parts in order), RFC 2104 section 2. `out` may be one of
 * the parts. */
static bool hmac_parts(enum crypto_hash hash, const uint8_t *key, size_t key_len, const struct part *parts,
                       size_t count, uint8_t *out) {
    pthread_once(&fetch_once, fetch_digests);
    const EVP_MD *md = digest[hash];
    EVP_MD_CTX *ctx = md != NULL ? EVP_MD_CTX_new() : NULL;
    if (ctx == NULL) {
        return false;
    }
    size_t hash_bytes = crypto_hash_bytes(hash),
           block_bytes = hash == CRYPTO_SHA384 ? 128 : 64; /* FIPS 180-4 */
    uint8_t pad[HASH_MAX_BLOCK_BYTES] = {0}, inner[CRYPTO_MAX_SECRET_BYTES];
    bool ok = true;
    if (key_len > block_bytes) {
        ok = hash_parts(ctx, md, key, key_len, NULL, 0, pad);
    } else if (key_len != 0) {
        memcpy(pad, key, key_len);
    }
    for (size_t i = 0; i < block_bytes; i++) {
        pad[i] ^= 0x36; /* ipad */
    }
    ok = ok && hash_parts(ctx, md, pad, block_bytes, parts, count, inner);
    for (size_t i = 0; i < block_bytes; i++) {
        pad[i] ^= 0x36 ^ 0x5c; /* From ipad to opad. */
    }
    struct part inner_part = {inner, hash_bytes};
    ok = ok && hash_parts(ctx, md, pad, block_bytes, &inner_part, 1, out);
    crypto_wipe(pad, sizeof(pad));
    crypto_wipe(inner, sizeof(inner));
    EVP_MD_CTX_free(ctx); /* Wipes the hash's state. */
    return ok;
}

bool crypto_hkdf_extract(enum crypto_hash hash, const uint8_t *salt, size_t salt_len, const uint8_t *ikm,
                         size_t ikm_len, uint8_t *prk) {
    /* No salt means a string of zeros, which HMAC's own key padding makes equal to an empty key. */
    struct part part = {ikm, ikm_len};
    return hmac_parts(hash, salt, salt_len, &part, 1, prk);
}

bool crypto_hkdf_expand(enum crypto_hash hash, const uint8_t *prk, size_t prk_len, const uint8_t *info,
                        size_t info_len, uint8_t *out, size_t out_len) {
    size_t hash_bytes = crypto_hash_bytes(hash);
    if (out_len > HKDF_MAX_BLOCKS * hash_bytes) {
        return false;
    }
    uint8_t block[CRYPTO_MAX_SECRET_BYTES];
    size_t block_len = 0; /* T(0) is empty. */
    bool ok = true;
    uint8_t counter = 0;
    while (ok && out_len != 0) {
        counter++;
        struct part parts[] = {{block, block_len}, {info, info_len}, {&counter, 1}};
        ok = hmac_parts(hash, prk, prk_len, parts, 3, block);
        block_len = hash_bytes;
        if (ok) {
            size_t take = out_len < hash_bytes ? out_len : hash_bytes;
            memcpy(out, block, take);
            out += take;
            out_len -= take;
        }
    }
    crypto_wipe(block, sizeof(block));
    return ok;
}

bool crypto_hkdf_expand_label(enum crypto_hash hash, const uint8_t *secret, size_t secret_len,
                              const char *label, uint8_t *out, size_t out_len) {
    size_t label_len = strlen(label);
    if (label_len > LABEL_MAX_BYTES || out_len > UINT16_MAX) {
        return false;
    }
    uint8_t info[LABEL_INFO_BYTES];
    size_t n = 0;
    info[n++] = (uint8_t)(out_len >> 8);
    info[n++] = (uint8_t)out_len;
    info[n++] = (uint8_t)(LABEL_PREFIX_BYTES + label_len);
    memcpy(info + n, LABEL_PREFIX, LABEL_PREFIX_BYTES);
    n += LABEL_PREFIX_BYTES;
    memcpy(info + n, label, label_len);
    n += label_len;
    info[n++] = 0; /* Length of the empty context. */
    return crypto_hkdf_expand(hash, secret, secret_len, info, n, out, out_len);
}

bool crypto_hmac_sha256(const uint8_t *key, size_t key_len, const uint8_t *msg, size_t msg_len,
                        uint8_t out[32]) {
    struct part part = {msg, msg_len};
    return hmac_parts(CRYPTO_SHA256, key, key_len, &part, 1, out);
}

bool crypto_retry_tag(const uint8_t *pseudo, size_t len, uint8_t tag[CRYPTO_TAG_BYTES]) {
    /* Key and nonce of QUIC version 1, RFC 9001 section 5.8. */
    static const uint8_t key[16] = {0xbe, 0x0c, 0x69, 0x0b, 0x9f, 0x66, 0x57, 0x5a,
                                    0x1d, 0x76, 0x6b, 0x54, 0xe3, 0x68, 0xc8, 0x4e};
    static const uint8_t nonce[CRYPTO_NONCE_BYTES] = {0x46, 0x15, 0x99, 0xd3, 0x5d, 0x63,
                                                      0x2b, 0xf2, 0x23, 0x98, 0x25, 0xbb};
    const struct crypto_provider *provider = crypto_openssl_provider();
    _Alignas(CRYPTO_STATE_ALIGN_BYTES) uint8_t state[CRYPTO_STATE_ALIGN_BYTES] = {0};
    if (provider == NULL || provider->aead_bytes > sizeof(state) ||
        !provider->aead_init(state, CRYPTO_AES_128_GCM, key)) {
        return false;
    }
    provider->seal(state, nonce, pseudo, len, pseudo, 0, tag);
    provider->aead_clear(state);
    return true;
}
