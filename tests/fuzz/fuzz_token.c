/* Address validation tokens (token.c).
 *
 * Input: what to do (first byte), then either the bytes of a token from the wire, or the fields of one to
 * seal, of the client that comes back with it, and what happened to it on the way. Properties: no bytes from
 * the wire are a token; a sealed one opens to what was sealed; the verdict is what a plain model says; no
 * changed bit leaves a token valid.
 */
#include "fuzz.h"

#include "quic/token.h"

static void *host_alloc(void *ctx, size_t bytes) {
    (void)ctx;
    return calloc(1, bytes); /* The OpenSSL provider, used here, asks for no alignment beyond malloc's. */
}

static void host_free(void *ctx, void *p, size_t bytes) {
    (void)ctx;
    (void)bytes;
    free(p);
}

static const struct quic_token_sealer *sealer(void) {
    static struct quic_token_sealer *made;
    static const uint8_t key[32] = {1, 2, 3};
    static const struct quic_host host = {.alloc = host_alloc, .free = host_free};
    if (made == NULL)
        made = quic_token_sealer_create(crypto_provider_by_name("openssl"), &host, key);
    EXPECT(made != NULL);
    return made;
}

static void open_wire(const uint8_t *data, size_t len) {
    struct quic_token token;
    struct quic_addr peer = {.port = 1};
    struct quic_cid dcid = {.len = 8};
    uint8_t *copy = fuzz_copy(data, len);
    enum quic_token_verdict v = quic_token_open(sealer(), copy, len, &peer, &dcid, 0, &token);
    EXPECT(v == QUIC_TOKEN_FOREIGN || (v == QUIC_TOKEN_FORGED && data[0] == QUIC_TOKEN_RETRY));
    fuzz_release(copy);
}

static struct quic_addr take_addr(const uint8_t **data, size_t *len) {
    struct quic_addr addr = {.port = (uint16_t)fuzz_take(data, len, 2)};
    addr.scope_id = (uint32_t)fuzz_take(data, len, 1);
    for (size_t i = 0; i < sizeof addr.ip; i++)
        addr.ip[i] = (uint8_t)fuzz_take(data, len, 1);
    return addr;
}

static struct quic_cid take_cid(const uint8_t **data, size_t *len) {
    struct quic_cid cid = {.len = (uint8_t)(fuzz_take(data, len, 1) % (QUIC_MAX_CID_BYTES + 1))};
    for (size_t i = 0; i < cid.len; i++)
        cid.id[i] = (uint8_t)fuzz_take(data, len, 1);
    return cid;
}

static enum quic_token_verdict model(const struct quic_token *token, const struct quic_addr *a,
                                     const struct quic_addr *b, uint64_t now) {
    const uint64_t second = UINT64_C(1000000000);
    if (token->kind == QUIC_TOKEN_RETRY) {
        if (!quic_addr_same_ip(a, b) || a->port != b->port)
            return QUIC_TOKEN_FORGED;
        int64_t age = (int32_t)((uint32_t)(now / second) - (uint32_t)(token->issued_ns / second));
        return age >= -1 && age <= RETRY_TOKEN_LIFE_SLOTS ? QUIC_TOKEN_VALID : QUIC_TOKEN_EXPIRED;
    }
    if (!quic_addr_same_ip(a, b) || a->scope_id != b->scope_id)
        return QUIC_TOKEN_WRONG_ADDRESS;
    if (token->issued_ns > now)
        return token->issued_ns - now <= second ? QUIC_TOKEN_VALID : QUIC_TOKEN_EXPIRED;
    return now - token->issued_ns <= QUIC_NEW_TOKEN_LIFE_NS ? QUIC_TOKEN_VALID : QUIC_TOKEN_EXPIRED;
}

static void seal_and_open(const uint8_t *data, size_t len) {
    uint8_t bytes[QUIC_MAX_TOKEN_BYTES], nonce[12];
    unsigned what = (unsigned)fuzz_take(&data, &len, 1);
    struct quic_token in = {.kind = what & 1 ? QUIC_TOKEN_RETRY : QUIC_TOKEN_NEW};
    in.issued_ns = fuzz_take(&data, &len, 8);
    uint64_t now = what & 2 ? in.issued_ns + fuzz_take(&data, &len, 6) : fuzz_take(&data, &len, 8);
    struct quic_addr peer = take_addr(&data, &len);
    struct quic_addr later = what & 4 ? take_addr(&data, &len) : peer;
    if (what & 8)
        later.port ^= 1;
    if (in.kind == QUIC_TOKEN_RETRY) {
        in.original_dcid = take_cid(&data, &len);
        in.retry_scid = take_cid(&data, &len);
        in.retry_scid.len = QUIC_LOCAL_CID_BYTES;
    }
    for (size_t i = 0; i < sizeof nonce; i++)
        nonce[i] = (uint8_t)fuzz_take(&data, &len, 1);
    size_t n = quic_token_seal(sealer(), &in, &peer, nonce, bytes);
    EXPECT(n > 0 && n <= sizeof bytes);

    struct quic_token out;
    uint8_t *copy = fuzz_copy(bytes, n);
    enum quic_token_verdict verdict = quic_token_open(sealer(), copy, n, &later, &in.retry_scid, now, &out);
    EXPECT(verdict == model(&in, &peer, &later, now));
    if (verdict == QUIC_TOKEN_VALID) {
        const uint64_t second = UINT64_C(1000000000);
        bool retry = in.kind == QUIC_TOKEN_RETRY;
        EXPECT(out.kind == in.kind);
        EXPECT(out.issued_ns == (retry ? (uint32_t)(in.issued_ns / second) * second : in.issued_ns));
        EXPECT(quic_cid_equal(&out.original_dcid, &in.original_dcid));
        EXPECT(quic_cid_equal(&out.retry_scid, &in.retry_scid));
    }
    size_t bit = fuzz_take(&data, &len, 2) % (8 * n);
    copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
    verdict = quic_token_open(sealer(), copy, n, &peer, &in.retry_scid, in.issued_ns, &out);
    EXPECT(verdict == QUIC_TOKEN_FOREIGN || (verdict == QUIC_TOKEN_FORGED && in.kind == QUIC_TOKEN_RETRY));
    fuzz_release(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    if (len < 1)
        return 0;
    if (data[0] & 1)
        open_wire(data + 1, len - 1);
    else
        seal_and_open(data + 1, len - 1);
    return 0;
}
