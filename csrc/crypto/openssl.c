/* The portable provider: AEADs and header protection (RFC 9001 sections 5.3 and 5.4) from OpenSSL 3
 * libcrypto.
 *
 * Owns the six cipher descriptions, fetched on first use and only read afterwards. A key's state is one
 * EVP_CIPHER_CTX made by init and kept until clear; seal and open only give it a new nonce and direction,
 * which neither allocates nor expands the key again. A context changes while it works, so one key must not be
 * used by two threads at once (workers share nothing, so none is).
 */
#include "crypto/internal.h"

#include <limits.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <string.h>

struct openssl_key {
    EVP_CIPHER_CTX *ctx;
    enum crypto_aead aead;
};

#define STATE_BYTES CRYPTO_STATE_ALIGN_BYTES
_Static_assert(sizeof(struct openssl_key) <= STATE_BYTES, "one cache line holds a key");

static pthread_once_t fetch_once = PTHREAD_ONCE_INIT;
static EVP_CIPHER *aead_cipher[CRYPTO_AEAD_COUNT]; /* Written under fetch_once only. */
static EVP_CIPHER *hp_cipher[CRYPTO_AEAD_COUNT];

static void fetch_ciphers(void) {
    static const char *const names[CRYPTO_AEAD_COUNT][2] = {
        [CRYPTO_AES_128_GCM] = {"AES-128-GCM", "AES-128-ECB"},
        [CRYPTO_AES_256_GCM] = {"AES-256-GCM", "AES-256-ECB"},
        [CRYPTO_CHACHA20_POLY1305] = {"ChaCha20-Poly1305", "ChaCha20"},
    };
    for (size_t i = 0; i < CRYPTO_AEAD_COUNT; i++) {
        aead_cipher[i] = EVP_CIPHER_fetch(NULL, names[i][0], NULL);
        hp_cipher[i] = EVP_CIPHER_fetch(NULL, names[i][1], NULL);
    }
}

static bool openssl_supports(enum crypto_aead aead) {
    pthread_once(&fetch_once, fetch_ciphers);
    return (unsigned)aead < CRYPTO_AEAD_COUNT && aead_cipher[aead] != NULL && hp_cipher[aead] != NULL;
}

static bool key_init(struct openssl_key *k, EVP_CIPHER *cipher, enum crypto_aead aead, const uint8_t *key) {
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    if (ctx == NULL) {
        return false;
    }
    if (EVP_EncryptInit_ex2(ctx, cipher, key, NULL, NULL) != 1) {
        EVP_CIPHER_CTX_free(ctx);
        return false;
    }
    k->ctx = ctx;
    k->aead = aead;
    return true;
}

static bool openssl_aead_init(void *mem, enum crypto_aead aead, const uint8_t *key) {
    memset(mem, 0, STATE_BYTES);
    return openssl_supports(aead) && key_init(mem, aead_cipher[aead], aead, key);
}

static bool openssl_hp_init(void *mem, enum crypto_aead aead, const uint8_t *key) {
    memset(mem, 0, STATE_BYTES);
    return openssl_supports(aead) && key_init(mem, hp_cipher[aead], aead, key);
}

static void openssl_clear(void *mem) {
    struct openssl_key *k = mem;
    EVP_CIPHER_CTX_free(k->ctx); /* Wipes the expanded key; takes NULL. */
    memset(mem, 0, STATE_BYTES);
}

static void openssl_seal(const void *mem, const uint8_t nonce[CRYPTO_NONCE_BYTES], const uint8_t *aad,
                         size_t aad_len, const uint8_t *in, size_t len, uint8_t *out) {
    EVP_CIPHER_CTX *ctx = ((const struct openssl_key *)mem)->ctx;
    int n = 0;
    bool ok = len <= INT_MAX && aad_len <= INT_MAX && EVP_EncryptInit_ex2(ctx, NULL, NULL, nonce, NULL) == 1;
    ok = ok && (aad_len == 0 || EVP_EncryptUpdate(ctx, NULL, &n, aad, (int)aad_len) == 1);
    ok = ok && (len == 0 || EVP_EncryptUpdate(ctx, out, &n, in, (int)len) == 1);
    ok = ok && EVP_EncryptFinal_ex(ctx, out + len, &n) == 1;
    ok = ok && EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, CRYPTO_TAG_BYTES, out + len) == 1;
    if (!ok) {
        /* Cannot happen with a key that init accepted. If it does, plaintext must not leave: the peer drops
         * zeros as a packet it cannot open, and loss recovery sends the data again. */
        memset(out, 0, len + CRYPTO_TAG_BYTES);
    }
}

static bool openssl_open(const void *mem, const uint8_t nonce[CRYPTO_NONCE_BYTES], const uint8_t *aad,
                         size_t aad_len, const uint8_t *in, size_t len, uint8_t *out) {
    if (len < CRYPTO_TAG_BYTES || len > INT_MAX || aad_len > INT_MAX) {
        return false;
    }
    EVP_CIPHER_CTX *ctx = ((const struct openssl_key *)mem)->ctx;
    size_t text_len = len - CRYPTO_TAG_BYTES;
    uint8_t tag[CRYPTO_TAG_BYTES];
    memcpy(tag, in + text_len, sizeof(tag)); /* The ctrl call below takes it non-const. */
    int n = 0;
    bool ok = EVP_DecryptInit_ex2(ctx, NULL, NULL, nonce, NULL) == 1 &&
              EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, CRYPTO_TAG_BYTES, tag) == 1;
    ok = ok && (aad_len == 0 || EVP_DecryptUpdate(ctx, NULL, &n, aad, (int)aad_len) == 1);
    ok = ok && (text_len == 0 || EVP_DecryptUpdate(ctx, out, &n, in, (int)text_len) == 1);
    uint8_t rest[CRYPTO_TAG_BYTES]; /* Stream modes leave nothing for Final to write; it wants a place. */
    return ok && EVP_DecryptFinal_ex(ctx, rest, &n) == 1; /* Compares the tag, in constant time. */
}

/* AES-ECB over all samples at once, so that libcrypto keeps several blocks in flight. */
static bool aes_masks(EVP_CIPHER_CTX *ctx, const uint8_t *const samples[], uint8_t masks[][CRYPTO_MASK_BYTES],
                      size_t n) {
    uint8_t blocks[CRYPTO_HP_BATCH][CRYPTO_SAMPLE_BYTES];
    size_t gathered = 0;
    do { /* The caller saw to n >= 1; said this way, the compiler knows that blocks[0] is set. */
        memcpy(blocks[gathered], samples[gathered], CRYPTO_SAMPLE_BYTES);
    } while (++gathered < n);
    int written = 0;
    if (EVP_EncryptUpdate(ctx, blocks[0], &written, blocks[0], (int)(n * CRYPTO_SAMPLE_BYTES)) != 1) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        memcpy(masks[i], blocks[i], CRYPTO_MASK_BYTES);
    }
    return true;
}

/* RFC 9001 section 5.4.4: the sample is block counter and nonce, which is also libcrypto's 16-byte IV. */
static bool chacha_masks(EVP_CIPHER_CTX *ctx, const uint8_t *const samples[],
                         uint8_t masks[][CRYPTO_MASK_BYTES], size_t n) {
    static const uint8_t zeros[CRYPTO_MASK_BYTES];
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++) {
        int written = 0;
        ok = EVP_EncryptInit_ex2(ctx, NULL, NULL, samples[i], NULL) == 1 &&
             EVP_EncryptUpdate(ctx, masks[i], &written, zeros, sizeof(zeros)) == 1;
    }
    return ok;
}

static void openssl_hp_mask(const void *mem, const uint8_t *const samples[],
                            uint8_t masks[][CRYPTO_MASK_BYTES], size_t n) {
    const struct openssl_key *k = mem;
    if (n == 0 || n > CRYPTO_HP_BATCH) {
        return;
    }
    bool ok = k->aead == CRYPTO_CHACHA20_POLY1305 ? chacha_masks(k->ctx, samples, masks, n)
                                                  : aes_masks(k->ctx, samples, masks, n);
    if (!ok) {
        /* Cannot happen with a key that init accepted. A missing mask shows a packet number, never the
         * payload, and the peer drops the packet. */
        memset(masks, 0, n * CRYPTO_MASK_BYTES);
    }
}

static const struct crypto_provider openssl_provider = {
    .name = "openssl",
    .aead_bytes = STATE_BYTES,
    .hp_bytes = STATE_BYTES,
    .supports = openssl_supports,
    .aead_init = openssl_aead_init,
    .aead_clear = openssl_clear,
    .seal = openssl_seal,
    .open = openssl_open,
    .hp_init = openssl_hp_init,
    .hp_clear = openssl_clear,
    .hp_mask = openssl_hp_mask,
};

const struct crypto_provider *crypto_openssl_provider(void) {
    /* RFC 9001 section 5.3 makes AES-128-GCM the AEAD every endpoint has: without it nothing works. */
    return openssl_supports(CRYPTO_AES_128_GCM) ? &openssl_provider : NULL;
}
