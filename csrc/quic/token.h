/* Address validation tokens (RFC 9000 section 8.1): sealed with AES-256-GCM under the endpoint's token key,
 * so that no state is kept and nothing can be forged. A token is bound to the client's address (Retry:
 * address and port; NEW_TOKEN: address only), carries its time of issue and, for Retry, the ids needed to
 * check the transport parameters. */
#ifndef STOQ_QUIC_TOKEN_H
#define STOQ_QUIC_TOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "packet.h"

#define QUIC_RETRY_TOKEN_LIFE_NS                                                                             \
    (UINT64_C(10) * 1000000000) /* A client answers a Retry within a few RTTs.                               \
                                 */
#define QUIC_NEW_TOKEN_LIFE_NS                                                                               \
    (UINT64_C(24) * 3600 * 1000000000) /* A day: the life of a leaf certificate.                             \
                                        */
#define QUIC_MAX_TOKEN_BYTES 128       /* Longest of ours: 1 + 12 + 8 + 2 * 21 + 16, rounded up. */

enum quic_token_kind { QUIC_TOKEN_RETRY = 1, QUIC_TOKEN_NEW = 2 };
enum quic_token_verdict {
    QUIC_TOKEN_VALID,
    QUIC_TOKEN_FOREIGN,
    QUIC_TOKEN_EXPIRED,
    QUIC_TOKEN_WRONG_ADDRESS
};

struct quic_token {
    enum quic_token_kind kind;
    uint64_t issued_ns;
    struct quic_cid original_dcid, retry_scid; /* QUIC_TOKEN_RETRY */
};

struct quic_token_sealer; /* The expanded key. */
/* Memory from the host; NULL when there is none. */
struct quic_token_sealer *quic_token_sealer_create(const struct crypto_provider *crypto,
                                                   const struct quic_host *host, const uint8_t key[32]);
void quic_token_sealer_destroy(struct quic_token_sealer *sealer, const struct quic_host *host);
/* `nonce`: 12 random bytes. Returns the length (at most QUIC_MAX_TOKEN_BYTES). */
size_t quic_token_seal(const struct quic_token_sealer *sealer, const struct quic_token *token,
                       const struct quic_addr *peer, const uint8_t nonce[12],
                       uint8_t out[QUIC_MAX_TOKEN_BYTES]);
/* FOREIGN: not one of ours (it may be another node's NEW_TOKEN: treated as no token). A Retry token that is
 * expired or from another address must be answered with INVALID_TOKEN; the other kinds of refusal as if there
 * were no token. */
enum quic_token_verdict quic_token_open(const struct quic_token_sealer *sealer, const uint8_t *data,
                                        size_t len, const struct quic_addr *peer, uint64_t now,
                                        struct quic_token *out);

#endif
