/* The provider list and what does not depend on a provider: sizes and usage limits of the AEADs (RFC 9001
 * sections 5.3 and 6.6), comparison and wiping of secrets.
 *
 * Owns nothing; providers own their constant tables (ipsec_mb.c, openssl.c).
 */
#include "crypto/internal.h"

#include <openssl/crypto.h>
#include <string.h>

typedef const struct crypto_provider *(*provider_fn)(void);

/* Fastest first: "auto" takes the first that this CPU can run. */
static const provider_fn provider_table[] = {
#ifdef STOQ_HAVE_IPSEC_MB
    crypto_ipsec_mb_provider,
#endif
    crypto_openssl_provider,
};

#define PROVIDER_COUNT (sizeof(provider_table) / sizeof(provider_table[0]))

/* What RFC 9001 says of each AEAD, in one place. */
static const struct aead_facts {
    size_t key_bytes;
    enum crypto_hash hash;
    uint64_t confidentiality_limit;
    uint64_t integrity_limit;
} aead_facts[CRYPTO_AEAD_COUNT] = {
    /* Section 6.6: 2^23 holds for packets of any size (2^28 only under a strict 2^11 byte limit, appendix
       B.1). */
    [CRYPTO_AES_128_GCM] = {16, CRYPTO_SHA256, 1ULL << 23, 1ULL << 52},
    [CRYPTO_AES_256_GCM] = {32, CRYPTO_SHA384, 1ULL << 23, 1ULL << 52},
    /* Section 6.6: more than the 2^62 packet numbers there are, so those are the limit. */
    [CRYPTO_CHACHA20_POLY1305] = {32, CRYPTO_SHA256, 1ULL << 62, 1ULL << 36},
};

const struct crypto_provider *crypto_provider_by_name(const char *name) {
    bool any = name == NULL || strcmp(name, "auto") == 0;
    for (size_t i = 0; i < PROVIDER_COUNT; i++) {
        const struct crypto_provider *provider = provider_table[i]();
        if (provider != NULL && (any || strcmp(name, provider->name) == 0)) {
            return provider;
        }
    }
    return NULL;
}

size_t crypto_providers(const struct crypto_provider *out[], size_t max) {
    size_t count = 0;
    for (size_t i = 0; i < PROVIDER_COUNT; i++) {
        const struct crypto_provider *provider = provider_table[i]();
        if (provider == NULL) {
            continue;
        }
        if (count < max) {
            out[count] = provider;
        }
        count++;
    }
    return count;
}

size_t crypto_key_bytes(enum crypto_aead aead) {
    return aead_facts[aead].key_bytes;
}

enum crypto_hash crypto_aead_hash(enum crypto_aead aead) {
    return aead_facts[aead].hash;
}

size_t crypto_hash_bytes(enum crypto_hash hash) {
    return hash == CRYPTO_SHA384 ? 48 : 32;
}

uint64_t crypto_confidentiality_limit(enum crypto_aead aead) {
    return aead_facts[aead].confidentiality_limit;
}

uint64_t crypto_integrity_limit(enum crypto_aead aead) {
    return aead_facts[aead].integrity_limit;
}

bool crypto_equal(const uint8_t *a, const uint8_t *b, size_t len) {
    return CRYPTO_memcmp(a, b, len) == 0;
}

void crypto_wipe(void *p, size_t len) {
    OPENSSL_cleanse(p, len);
}
