/* Retry from the guard, for its tests: a policy that answers, and tokens. Include in one file per test
 * program.
 */
#ifndef STOQ_TESTS_GUARD_RETRY_H
#define STOQ_TESTS_GUARD_RETRY_H

#include "bpf/retry.h"
#include "guard_program.h"
#include "quic/packet.h"
#include "quic/token.h"

static const uint8_t token_key[32] = {1, 2, 3, 4, 5};

/* A policy under which every Initial is answered; the key is the engine's. */
static struct guard_policy answering(void) {
    struct guard_policy p = base_policy();
    retry_u64 key[2];
    REQUIRE(quic_retry_key(token_key, key));
    p.retry_key[0] = key[0];
    p.retry_key[1] = key[1];
    p.flags = GUARD_RETRY_ALWAYS;
    for (unsigned q = 0; q < GUARD_MAX_QUEUES; q++)
        p.worker_of_queue[q] = (uint8_t)(q * 7 % 64 + 1);
    return p;
}

static struct quic_cid cid_of(const uint8_t *id, size_t len) {
    struct quic_cid c = {.len = (uint8_t)len};
    memcpy(c.id, id, len);
    return c;
}

/* A token of `slot` for the client `s`, whose Initial goes to `scid`. */
static size_t make_token(const struct guard_policy *p, const struct shape *s, uint32_t slot,
                         const struct quic_cid *original, const uint8_t scid[8], uint8_t *out) {
    struct retry_token_input in = {.slot = slot, .odcid_len = original->len};
    memcpy(in.ip, s->src, 16);
    quic_store16(in.port, s->sport);
    memcpy(in.odcid, original->id, original->len);
    memcpy(in.scid, scid, 8);
    const retry_u64 key[2] = {p->retry_key[0], p->retry_key[1]};
    retry_u64 mac = retry_token_mac(key, &in);
    out[0] = RETRY_TOKEN_KIND;
    quic_store32(out + 1, slot);
    out[5] = original->len;
    memcpy(out + 6, original->id, original->len);
    memcpy(out + 6 + original->len, &mac, 8);
    return 6 + original->len + 8u;
}

static uint32_t slot_now(void) {
    return (uint32_t)(clock_ns() / RETRY_TOKEN_SLOT_NS);
}

#endif
