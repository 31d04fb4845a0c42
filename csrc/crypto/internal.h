/* Shared between the files of csrc/crypto/ (and the unit test of HKDF); nobody else includes it.
 *
 * Owns nothing. Each provider file exports one function, which makes the provider ready on its first call
 * (any thread) and returns its constant table, or NULL when this machine cannot run it.
 */
#ifndef STOQ_CRYPTO_INTERNAL_H
#define STOQ_CRYPTO_INTERNAL_H

#include "crypto/crypto.h"

/* The caller's key memory is 64-byte aligned (crypto.h), so sizes are rounded to whole cache lines. */
#define CRYPTO_STATE_ALIGN_BYTES 64

const struct crypto_provider *crypto_openssl_provider(void);
const struct crypto_provider *crypto_ipsec_mb_provider(void);

/* HKDF-Expand (RFC 5869 section 2.3). False when out_len > 255 hashes or libcrypto fails. */
bool crypto_hkdf_expand(enum crypto_hash hash, const uint8_t *prk, size_t prk_len, const uint8_t *info,
                        size_t info_len, uint8_t *out, size_t out_len);

#endif
