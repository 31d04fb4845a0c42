/* Transport parameters (params.c).
 *
 * Input: who sent them (bit 0 of the first byte), then the parameters. Properties: refused with a reason, or
 * within every bound the RFC sets; what was accepted is the same after encoding and decoding again; a reason
 * comes with TRANSPORT_PARAMETER_ERROR and only then.
 */
#include "fuzz.h"

#include <stddef.h>

#include "quic/params.h"
#include "quic/varint.h"

static void expect_bounds(const struct quic_params *p, bool from_server) {
    EXPECT(p->max_udp_payload_size >= 1200);
    EXPECT(p->ack_delay_exponent <= 20 && p->max_ack_delay_ms < 1 << 14);
    EXPECT(p->active_connection_id_limit >= 2);
    EXPECT(p->initial_max_streams_bidi <= UINT64_C(1) << 60);
    EXPECT(p->initial_max_streams_uni <= UINT64_C(1) << 60);
    EXPECT(p->has_initial_scid && p->initial_scid.len <= QUIC_MAX_CID_BYTES);
    if (from_server) {
        EXPECT(p->has_original_dcid && p->original_dcid.len <= QUIC_MAX_CID_BYTES);
        EXPECT(!p->has_retry_scid || p->retry_scid.len <= QUIC_MAX_CID_BYTES);
        EXPECT(!p->has_preferred_address ||
               (p->preferred.cid.len > 0 && p->preferred.cid.len <= QUIC_MAX_CID_BYTES));
    } else {
        EXPECT(!p->has_original_dcid && !p->has_retry_scid && !p->has_reset_token &&
               !p->has_preferred_address);
    }
}

static void expect_same(const struct quic_params *a, const struct quic_params *b) {
    EXPECT(memcmp(a, b, offsetof(struct quic_params, disable_active_migration)) == 0); /* All the integers. */
    EXPECT(a->disable_active_migration == b->disable_active_migration);
    EXPECT(a->has_original_dcid == b->has_original_dcid && a->has_retry_scid == b->has_retry_scid);
    EXPECT(a->has_reset_token == b->has_reset_token && a->has_preferred_address == b->has_preferred_address);
    EXPECT(quic_cid_equal(&a->initial_scid, &b->initial_scid));
    EXPECT(quic_cid_equal(&a->original_dcid, &b->original_dcid));
    EXPECT(quic_cid_equal(&a->retry_scid, &b->retry_scid));
    EXPECT(memcmp(a->reset_token, b->reset_token, sizeof a->reset_token) == 0);
    EXPECT(quic_addr_equal(&a->preferred.addr, &b->preferred.addr));
    EXPECT(quic_cid_equal(&a->preferred.cid, &b->preferred.cid));
    EXPECT(memcmp(a->preferred.reset_token, b->preferred.reset_token, QUIC_RESET_TOKEN_BYTES) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    if (len < 1)
        return 0;
    bool from_server = data[0] & 1;
    uint64_t grease = data[0] * UINT64_C(0x0101010101010101);
    struct quic_params first, second;
    const char *why = NULL;
    uint8_t *copy = fuzz_copy(data + 1, len - 1);
    int error = quic_params_decode(copy, len - 1, from_server, &first, &why);
    fuzz_release(copy);
    EXPECT(error == (why == NULL ? 0 : QUIC_TRANSPORT_PARAMETER_ERROR));
    if (error != 0)
        return 0;
    expect_bounds(&first, from_server);

    uint8_t out[512];
    size_t n = quic_params_encode(&first, from_server, grease, out, sizeof out);
    EXPECT(n > 0);
    EXPECT(quic_params_encode(&first, from_server, grease, out, n - 1) == 0);
    EXPECT(quic_params_encode(&first, from_server, grease, out, n) == n);
    EXPECT(quic_params_decode(out, n, from_server, &second, &why) == 0);
    expect_same(&first, &second);
    return 0;
}
