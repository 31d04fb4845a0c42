/* Packet protection primitives for QUIC (RFC 9001 section 5): one AEAD, header-protection and HKDF interface,
 * providers behind it.
 *
 * A provider is a constant table of functions. It owns nothing global: every key lives in memory the caller
 * gives it, and no provider type is visible here. The engine picks a provider once, at start-up, and passes
 * it down as an argument.
 *
 *      engine ──▶ struct crypto_provider ──▶ ipsec_mb.c  (AES-GCM, ChaCha20 with the CPU's vector units)
 *                                       └──▶ openssl.c   (portable; every CPU)
 *
 * Key lifetime:   key_init ──▶ seal / open / hp_mask (any number) ──▶ key_clear
 * key_init may allocate (handshake time); seal, open and hp_mask never allocate, lock or fail except as said.
 */
#ifndef STOQ_CRYPTO_H
#define STOQ_CRYPTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CRYPTO_TAG_BYTES        16 /* AEAD tag, RFC 9001 section 5.3: all supported AEADs use 16. */
#define CRYPTO_NONCE_BYTES      12
#define CRYPTO_SAMPLE_BYTES     16 /* Header-protection sample, RFC 9001 section 5.4.2. */
#define CRYPTO_MASK_BYTES       5  /* First byte + up to four packet-number bytes. */
#define CRYPTO_MAX_KEY_BYTES    32
#define CRYPTO_MAX_SECRET_BYTES 48 /* SHA-384 output. */
#define CRYPTO_HP_BATCH         64 /* Most samples one hp_mask call takes: a full GSO train of packets. */

/* AEADs of RFC 9001 section 5.3, by their TLS 1.3 cipher suite. AES_128_CCM is not offered. */
enum crypto_aead {
    CRYPTO_AES_128_GCM = 0,       /* TLS_AES_128_GCM_SHA256 (0x1301) */
    CRYPTO_AES_256_GCM = 1,       /* TLS_AES_256_GCM_SHA384 (0x1302) */
    CRYPTO_CHACHA20_POLY1305 = 2, /* TLS_CHACHA20_POLY1305_SHA256 (0x1303) */
    CRYPTO_AEAD_COUNT
};

enum crypto_hash { CRYPTO_SHA256 = 0, CRYPTO_SHA384 = 1 };

/* Opaque, provider-owned state of one AEAD key or one header-protection key. `mem` points to
 * provider->aead_bytes (or ->hp_bytes) bytes, 64-byte aligned, owned by the caller. */
struct crypto_provider {
    const char *name; /* "ipsec-mb" or "openssl". */

    /* Sizes of the caller-owned state for one key, in bytes (64-byte aligned, same for all AEADs). */
    size_t aead_bytes;
    size_t hp_bytes;

    /* Is this AEAD available from this provider on this CPU? */
    bool (*supports)(enum crypto_aead aead);

    /* Expand `key` (crypto_key_bytes(aead) bytes) into `mem`. False on an unsupported AEAD or no memory. */
    bool (*aead_init)(void *mem, enum crypto_aead aead, const uint8_t *key);
    /* Wipe and release. `mem` itself stays the caller's. Safe on zeroed memory. */
    void (*aead_clear)(void *mem);

    /* out[0..len+16) = AEAD(nonce, aad, in[0..len)). `out` may equal `in`; otherwise they do not overlap. */
    void (*seal)(const void *mem, const uint8_t nonce[CRYPTO_NONCE_BYTES], const uint8_t *aad, size_t aad_len,
                 const uint8_t *in, size_t len, uint8_t *out);
    /* in is ciphertext plus tag, `len` >= 16 in all; out gets len - 16 bytes and may equal `in`.
     * False when the tag does not match; `out` is then unspecified. Constant time in the tag. */
    bool (*open)(const void *mem, const uint8_t nonce[CRYPTO_NONCE_BYTES], const uint8_t *aad, size_t aad_len,
                 const uint8_t *in, size_t len, uint8_t *out);

    /* Header protection, RFC 9001 section 5.4. Keys are crypto_key_bytes(aead) long. */
    bool (*hp_init)(void *mem, enum crypto_aead aead, const uint8_t *key);
    void (*hp_clear)(void *mem);
    /* masks[i] = mask(samples[i]) for i < n, n <= CRYPTO_HP_BATCH. */
    void (*hp_mask)(const void *mem, const uint8_t *const samples[], uint8_t masks[][CRYPTO_MASK_BYTES],
                    size_t n);
};

/* The provider called `name` ("ipsec-mb", "openssl", or NULL/"auto": the fastest usable here); NULL when it
 * was not built in or this CPU cannot run it. The result is constant and lives for ever. */
const struct crypto_provider *crypto_provider_by_name(const char *name);
/* All providers built in and usable here: returns the count, fills up to `max`. */
size_t crypto_providers(const struct crypto_provider *out[], size_t max);

size_t crypto_key_bytes(enum crypto_aead aead);      /* 16, 32, 32 */
enum crypto_hash crypto_aead_hash(enum crypto_aead); /* SHA-384 for AES-256-GCM, else SHA-256 */
size_t crypto_hash_bytes(enum crypto_hash hash);     /* 32 or 48 */

/* RFC 9001 section 6.6: packets one key may seal (confidentiality) and failed opens in all (integrity). */
uint64_t crypto_confidentiality_limit(enum crypto_aead aead);
uint64_t crypto_integrity_limit(enum crypto_aead aead);

/* HKDF (RFC 5869) and HKDF-Expand-Label (RFC 8446 section 7.1; `label` without the "tls13 " prefix, empty
 * context). Portable, from libcrypto, whichever provider is in use. False only when libcrypto fails. */
bool crypto_hkdf_extract(enum crypto_hash hash, const uint8_t *salt, size_t salt_len, const uint8_t *ikm,
                         size_t ikm_len, uint8_t *prk);
bool crypto_hkdf_expand_label(enum crypto_hash hash, const uint8_t *secret, size_t secret_len,
                              const char *label, uint8_t *out, size_t out_len);
/* HMAC-SHA-256 over `msg`: address tokens' keys, stateless-reset tokens. */
bool crypto_hmac_sha256(const uint8_t *key, size_t key_len, const uint8_t *msg, size_t msg_len,
                        uint8_t out[32]);

/* Retry integrity tag (RFC 9001 section 5.8) over the pseudo-packet: one AES-128-GCM with the fixed key. */
bool crypto_retry_tag(const uint8_t *pseudo, size_t len, uint8_t tag[CRYPTO_TAG_BYTES]);

/* Equality in constant time. */
bool crypto_equal(const uint8_t *a, const uint8_t *b, size_t len);
/* Overwrite secrets; never optimised away. */
void crypto_wipe(void *p, size_t len);

#endif
