/* Address validation tokens, RFC 9000 section 8.1: what this server gave a client to prove its address with.
 * Owns the expanded keys. Retry tokens are drawn in retry_token.h; a NEW_TOKEN is
 *
 *   kind (1)  nonce (12)  { issued (8)  ip (16)  scope (4)  zero (2) }  tag (16)
 *   in clear, authenticated           encrypted
 *
 * The address is inside rather than in the associated data, so that a moved client can be told from a foreign
 * token. Nonces are random: with 2^32 tokens under one key the chance that two collide is below 2^-32
 * (NIST SP 800-38D section 8.3), so a key is to be replaced before that.
 */
#include "token.h"

#include <string.h>

#include "varint.h"

#define HEAD_BYTES (1 + CRYPTO_NONCE_BYTES)
/* Time, address, scope, and two bytes that make the sealed part longer than any Retry token's. */
#define PLAIN_BYTES (8 + 16 + 4 + 2)
#define NEW_BYTES   (HEAD_BYTES + PLAIN_BYTES + CRYPTO_TAG_BYTES)

_Static_assert(NEW_BYTES <= QUIC_MAX_TOKEN_BYTES && RETRY_TOKEN_MAX_BYTES <= QUIC_MAX_TOKEN_BYTES,
               "a token fits");
_Static_assert(RETRY_TOKEN_SCID_BYTES == QUIC_LOCAL_CID_BYTES && RETRY_TOKEN_MAX_CID == QUIC_MAX_CID_BYTES,
               "the shared header repeats them");

/* A worker may hold a time read before another worker, on another core, issued the token. Turns of a worker's
 * loop take far less than this. */
#define CLOCK_SLACK_NS UINT64_C(1000000000)

struct quic_token_sealer {
    const struct crypto_provider *crypto;
    size_t bytes; /* Of this allocation. */
    retry_u64 retry_key[2];
    _Alignas(64) uint8_t aead[];
};

bool quic_retry_key(const uint8_t token_key[32], retry_u64 out[2]) {
    return crypto_hkdf_expand_label(CRYPTO_SHA256, token_key, 32, "stoq retry", (uint8_t *)out, 16);
}

struct quic_token_sealer *quic_token_sealer_create(const struct crypto_provider *crypto,
                                                   const struct quic_host *host, const uint8_t key[32]) {
    size_t bytes = sizeof(struct quic_token_sealer) + crypto->aead_bytes;
    struct quic_token_sealer *sealer = host->alloc(host->ctx, bytes);
    if (sealer == NULL)
        return NULL;
    sealer->crypto = crypto;
    sealer->bytes = bytes;
    if (!quic_retry_key(key, sealer->retry_key) ||
        !crypto->aead_init(sealer->aead, CRYPTO_AES_256_GCM, key)) {
        host->free(host->ctx, sealer, bytes);
        return NULL;
    }
    return sealer;
}

void quic_token_sealer_destroy(struct quic_token_sealer *sealer, const struct quic_host *host) {
    if (sealer == NULL)
        return;
    sealer->crypto->aead_clear(sealer->aead);
    crypto_wipe(sealer->retry_key, sizeof sealer->retry_key);
    host->free(host->ctx, sealer, sealer->bytes);
}

/* What the mac of a Retry token covers. */
static struct retry_token_input retry_input(const struct quic_addr *peer, uint32_t slot,
                                            const struct quic_cid *original, const uint8_t scid[8]) {
    struct retry_token_input in = {.slot = slot, .odcid_len = original->len};
    memcpy(in.ip, peer->ip, sizeof in.ip);
    quic_store16(in.port, peer->port);
    memcpy(in.odcid, original->id, original->len);
    memcpy(in.scid, scid, sizeof in.scid);
    return in;
}

static size_t make_retry(const struct quic_token_sealer *sealer, const struct quic_token *token,
                         const struct quic_addr *peer, uint8_t *out) {
    const struct quic_cid *original = &token->original_dcid;
    if (token->retry_scid.len != RETRY_TOKEN_SCID_BYTES)
        return 0;
    uint32_t slot = (uint32_t)(token->issued_ns / RETRY_TOKEN_SLOT_NS);
    struct retry_token_input in = retry_input(peer, slot, original, token->retry_scid.id);
    uint64_t mac = retry_token_mac(sealer->retry_key, &in);
    out[0] = RETRY_TOKEN_KIND;
    quic_store32(out + 1, slot);
    out[5] = original->len;
    memcpy(out + RETRY_TOKEN_HEAD_BYTES, original->id, original->len);
    memcpy(out + RETRY_TOKEN_HEAD_BYTES + original->len, &mac, sizeof mac);
    return RETRY_TOKEN_HEAD_BYTES + original->len + sizeof mac;
}

static enum quic_token_verdict check_retry(const struct quic_token_sealer *sealer, const uint8_t *data,
                                           size_t len, const struct quic_addr *peer,
                                           const struct quic_cid *dcid, uint64_t now,
                                           struct quic_token *out) {
    if (len < RETRY_TOKEN_HEAD_BYTES || data[5] > RETRY_TOKEN_MAX_CID ||
        len != RETRY_TOKEN_HEAD_BYTES + (size_t)data[5] + RETRY_TOKEN_MAC_BYTES)
        return QUIC_TOKEN_FOREIGN;
    struct quic_cid original = {.len = data[5]};
    memcpy(original.id, data + RETRY_TOKEN_HEAD_BYTES, original.len);
    out->kind = QUIC_TOKEN_RETRY;
    if (dcid->len != RETRY_TOKEN_SCID_BYTES)
        return QUIC_TOKEN_FORGED;
    uint32_t slot = quic_load32(data + 1);
    struct retry_token_input in = retry_input(peer, slot, &original, dcid->id);
    uint64_t mac = retry_token_mac(sealer->retry_key, &in);
    if (!crypto_equal((const uint8_t *)&mac, data + len - sizeof mac, sizeof mac))
        return QUIC_TOKEN_FORGED;
    out->issued_ns = slot * RETRY_TOKEN_SLOT_NS;
    out->original_dcid = original;
    out->retry_scid = *dcid;
    return retry_token_fresh(slot, (uint32_t)(now / RETRY_TOKEN_SLOT_NS)) ? QUIC_TOKEN_VALID
                                                                          : QUIC_TOKEN_EXPIRED;
}

size_t quic_token_seal(const struct quic_token_sealer *sealer, const struct quic_token *token,
                       const struct quic_addr *peer, const uint8_t nonce[12],
                       uint8_t out[QUIC_MAX_TOKEN_BYTES]) {
    if (token->kind == QUIC_TOKEN_RETRY)
        return make_retry(sealer, token, peer, out);
    out[0] = QUIC_TOKEN_NEW;
    memcpy(out + 1, nonce, CRYPTO_NONCE_BYTES);
    uint8_t *plain = out + HEAD_BYTES;
    quic_store64(plain, token->issued_ns);
    memcpy(plain + 8, peer->ip, sizeof peer->ip);
    quic_store32(plain + 24, peer->scope_id);
    quic_store16(plain + 28, 0);
    sealer->crypto->seal(sealer->aead, nonce, out, 1, plain, PLAIN_BYTES, plain);
    return NEW_BYTES;
}

enum quic_token_verdict quic_token_open(const struct quic_token_sealer *sealer, const uint8_t *data,
                                        size_t len, const struct quic_addr *peer, const struct quic_cid *dcid,
                                        uint64_t now, struct quic_token *out) {
    if (len > 0 && data[0] == RETRY_TOKEN_KIND)
        return check_retry(sealer, data, len, peer, dcid, now, out);
    uint8_t plain[PLAIN_BYTES];
    if (len != NEW_BYTES || data[0] != QUIC_TOKEN_NEW ||
        !sealer->crypto->open(sealer->aead, data + 1, data, 1, data + HEAD_BYTES, len - HEAD_BYTES, plain))
        return QUIC_TOKEN_FOREIGN;
    out->kind = QUIC_TOKEN_NEW;
    out->issued_ns = quic_load64(plain);
    out->original_dcid.len = out->retry_scid.len = 0;
    if (memcmp(plain + 8, peer->ip, sizeof peer->ip) != 0 || quic_load32(plain + 24) != peer->scope_id)
        return QUIC_TOKEN_WRONG_ADDRESS;
    if (out->issued_ns > now) /* Ours, but of an earlier run of the clock unless by a hair. */
        return out->issued_ns - now <= CLOCK_SLACK_NS ? QUIC_TOKEN_VALID : QUIC_TOKEN_EXPIRED;
    return now - out->issued_ns <= QUIC_NEW_TOKEN_LIFE_NS ? QUIC_TOKEN_VALID : QUIC_TOKEN_EXPIRED;
}
