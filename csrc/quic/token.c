/* Address validation tokens, RFC 9000 section 8.1: what this server gave a client to prove its address with.
 * Owns the expanded token key.
 *
 *   kind (1)  nonce (12)  { issued (8)  ip (16)  scope (4)  port (2)  [ Retry: two ids, length first ] }  tag
 * (16) in clear, authenticated   encrypted
 *
 * The address is inside rather than in the associated data, so that a moved client can be told from a foreign
 * token. Nonces are random: with 2^32 tokens under one key the chance that two collide is below 2^-32
 * (NIST SP 800-38D section 8.3), so a key is to be replaced before that.
 */
#include "token.h"

#include <string.h>

#include "varint.h"

#define HEAD_BYTES (1 + CRYPTO_NONCE_BYTES)
/* Time, address, scope, port. */
#define FIXED_BYTES     (8 + 16 + 4 + 2)
#define PLAIN_MAX_BYTES (FIXED_BYTES + 2 * (1 + QUIC_MAX_CID_BYTES))

_Static_assert(HEAD_BYTES + PLAIN_MAX_BYTES + CRYPTO_TAG_BYTES <= QUIC_MAX_TOKEN_BYTES, "a token fits");

/* A worker may hold a time read before another worker, on another core, issued the token. Turns of a worker's
 * loop take far less than this. */
#define CLOCK_SLACK_NS UINT64_C(1000000000)

struct quic_token_sealer {
    const struct crypto_provider *crypto;
    size_t bytes; /* Of this allocation. */
    _Alignas(64) uint8_t aead[];
};

struct quic_token_sealer *quic_token_sealer_create(const struct crypto_provider *crypto,
                                                   const struct quic_host *host, const uint8_t key[32]) {
    size_t bytes = sizeof(struct quic_token_sealer) + crypto->aead_bytes;
    struct quic_token_sealer *sealer = host->alloc(host->ctx, bytes);
    if (sealer == NULL)
        return NULL;
    sealer->crypto = crypto;
    sealer->bytes = bytes;
    if (!crypto->aead_init(sealer->aead, CRYPTO_AES_256_GCM, key)) {
        host->free(host->ctx, sealer, bytes);
        return NULL;
    }
    return sealer;
}

void quic_token_sealer_destroy(struct quic_token_sealer *sealer, const struct quic_host *host) {
    if (sealer == NULL)
        return;
    sealer->crypto->aead_clear(sealer->aead);
    host->free(host->ctx, sealer, sealer->bytes);
}

static uint8_t *put_cid(uint8_t *p, const struct quic_cid *cid) {
    *p++ = cid->len;
    memcpy(p, cid->id, cid->len);
    return p + cid->len;
}

static bool read_cid(struct quic_reader *r, struct quic_cid *cid) {
    const uint8_t *len, *id;
    if (!quic_read_bytes(r, &len, 1) || *len > QUIC_MAX_CID_BYTES || !quic_read_bytes(r, &id, *len))
        return false;
    cid->len = *len;
    memcpy(cid->id, id, *len);
    return true;
}

size_t quic_token_seal(const struct quic_token_sealer *sealer, const struct quic_token *token,
                       const struct quic_addr *peer, const uint8_t nonce[12],
                       uint8_t out[QUIC_MAX_TOKEN_BYTES]) {
    out[0] = (uint8_t)token->kind;
    memcpy(out + 1, nonce, CRYPTO_NONCE_BYTES);
    uint8_t *plain = out + HEAD_BYTES, *p = plain;
    quic_store64(p, token->issued_ns);
    memcpy(p + 8, peer->ip, sizeof peer->ip);
    quic_store32(p + 24, peer->scope_id);
    /* Section 8.1.4: a later connection of the same client comes from another port. */
    quic_store16(p + 28, token->kind == QUIC_TOKEN_RETRY ? peer->port : 0);
    p += FIXED_BYTES;
    if (token->kind == QUIC_TOKEN_RETRY)
        p = put_cid(put_cid(p, &token->original_dcid), &token->retry_scid);
    size_t len = (size_t)(p - plain);
    sealer->crypto->seal(sealer->aead, nonce, out, 1, plain, len, plain);
    return HEAD_BYTES + len + CRYPTO_TAG_BYTES;
}

enum quic_token_verdict quic_token_open(const struct quic_token_sealer *sealer, const uint8_t *data,
                                        size_t len, const struct quic_addr *peer, uint64_t now,
                                        struct quic_token *out) {
    if (len < HEAD_BYTES + FIXED_BYTES + CRYPTO_TAG_BYTES || len > QUIC_MAX_TOKEN_BYTES ||
        (data[0] != QUIC_TOKEN_RETRY && data[0] != QUIC_TOKEN_NEW))
        return QUIC_TOKEN_FOREIGN;
    uint8_t plain[QUIC_MAX_TOKEN_BYTES];
    if (!sealer->crypto->open(sealer->aead, data + 1, data, 1, data + HEAD_BYTES, len - HEAD_BYTES, plain))
        return QUIC_TOKEN_FOREIGN;
    bool retry = data[0] == QUIC_TOKEN_RETRY;
    struct quic_reader r = {plain + FIXED_BYTES, plain + len - HEAD_BYTES - CRYPTO_TAG_BYTES};
    out->kind = (enum quic_token_kind)data[0];
    out->issued_ns = quic_load64(plain);
    out->original_dcid.len = out->retry_scid.len = 0;
    if (retry && (!read_cid(&r, &out->original_dcid) || !read_cid(&r, &out->retry_scid)))
        return QUIC_TOKEN_FOREIGN;
    if (quic_left(&r) != 0)
        return QUIC_TOKEN_FOREIGN;

    if (memcmp(plain + 8, peer->ip, sizeof peer->ip) != 0 || quic_load32(plain + 24) != peer->scope_id ||
        (retry && quic_load16(plain + 28) != peer->port))
        return QUIC_TOKEN_WRONG_ADDRESS;
    uint64_t life = retry ? QUIC_RETRY_TOKEN_LIFE_NS : QUIC_NEW_TOKEN_LIFE_NS;
    if (out->issued_ns > now) /* Ours, but of an earlier run of the clock unless by a hair. */
        return out->issued_ns - now <= CLOCK_SLACK_NS ? QUIC_TOKEN_VALID : QUIC_TOKEN_EXPIRED;
    return now - out->issued_ns <= life ? QUIC_TOKEN_VALID : QUIC_TOKEN_EXPIRED;
}
