/* Address validation tokens (RFC 9000 section 8.1). No state is kept for either kind, and nothing can be
 * forged.
 *
 *   Retry      lives seconds; bound to address and port, the ids and the time by a SipHash mac (retry_token.h
 * draws it), so that the XDP program can issue and verify the same tokens. NEW_TOKEN  lives a day and is
 * nobody's business: sealed with AES-256-GCM; bound to the address only, because a later connection comes
 * from another port.
 */
#ifndef STOQ_QUIC_TOKEN_H
#define STOQ_QUIC_TOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "packet.h"
#include "retry_token.h"

#define QUIC_NEW_TOKEN_LIFE_NS                                                                               \
    (UINT64_C(24) * 3600 * 1000000000) /* A day: the life of a leaf certificate.                             \
                                        */
#define QUIC_MAX_TOKEN_BYTES 64        /* Longest of ours: 1 + 12 + 30 + 16, rounded up. */

enum quic_token_kind { QUIC_TOKEN_RETRY = RETRY_TOKEN_KIND, QUIC_TOKEN_NEW = 2 };
enum quic_token_verdict {
    QUIC_TOKEN_VALID,
    QUIC_TOKEN_FOREIGN,       /* Not one of ours; it may be another node's NEW_TOKEN: treated as no token. */
    QUIC_TOKEN_EXPIRED,       /* Ours, and too old. */
    QUIC_TOKEN_WRONG_ADDRESS, /* Ours, a NEW_TOKEN of another address: treated as no token. */
    QUIC_TOKEN_FORGED /* A Retry token's form, and the mac of another client, id, server, or of nobody. */
};

struct quic_token {
    enum quic_token_kind kind;
    uint64_t issued_ns;                        /* Retry: to the second. */
    struct quic_cid original_dcid, retry_scid; /* QUIC_TOKEN_RETRY */
};

/* The key that macs Retry tokens, derived from the token key: what the XDP program gets. False: libcrypto
 * failed. */
bool quic_retry_key(const uint8_t token_key[32], retry_u64 out[2]);

struct quic_token_sealer; /* The expanded keys. */
/* Memory from the host; NULL when there is none. */
struct quic_token_sealer *quic_token_sealer_create(const struct crypto_provider *crypto,
                                                   const struct quic_host *host, const uint8_t key[32]);
void quic_token_sealer_destroy(struct quic_token_sealer *sealer, const struct quic_host *host);
/* `nonce`: 12 random bytes (NEW_TOKEN). Returns the length (at most QUIC_MAX_TOKEN_BYTES); 0: a Retry's own
 * id is not QUIC_LOCAL_CID_BYTES long. */
size_t quic_token_seal(const struct quic_token_sealer *sealer, const struct quic_token *token,
                       const struct quic_addr *peer, const uint8_t nonce[12],
                       uint8_t out[QUIC_MAX_TOKEN_BYTES]);
/* `dcid`: destination of the Initial that carries the token. A Retry token that is EXPIRED or FORGED must be
 * answered with INVALID_TOKEN (its client takes no second Retry); the other refusals as if there were no
 * token. `out->kind` is set unless FOREIGN, the rest when VALID. */
enum quic_token_verdict quic_token_open(const struct quic_token_sealer *sealer, const uint8_t *data,
                                        size_t len, const struct quic_addr *peer, const struct quic_cid *dcid,
                                        uint64_t now, struct quic_token *out);

#endif
