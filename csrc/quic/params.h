/* Transport parameters: RFC 9000 section 18, RFC 9221 section 3, draft-ietf-quic-ack-frequency. Encoding, and
 * decoding with every check the RFC asks for. */
#ifndef STOQ_QUIC_PARAMS_H
#define STOQ_QUIC_PARAMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "packet.h"

#define QUIC_NO_MIN_ACK_DELAY UINT64_MAX /* Takes no ACK_FREQUENCY and no IMMEDIATE_ACK. */

struct quic_params {
    uint64_t max_idle_timeout_ms;  /* 0: none */
    uint64_t max_udp_payload_size; /* 65527 when absent */
    uint64_t initial_max_data;
    uint64_t initial_max_stream_data_bidi_local, initial_max_stream_data_bidi_remote,
        initial_max_stream_data_uni;
    uint64_t initial_max_streams_bidi, initial_max_streams_uni;
    uint64_t ack_delay_exponent;         /* 3 when absent */
    uint64_t max_ack_delay_ms;           /* 25 when absent */
    uint64_t active_connection_id_limit; /* 2 when absent */
    uint64_t max_datagram_frame_size;    /* 0 when absent */
    uint64_t min_ack_delay_us;           /* QUIC_NO_MIN_ACK_DELAY when absent */
    bool disable_active_migration;
    bool has_original_dcid, has_initial_scid, has_retry_scid, has_reset_token, has_preferred_address;
    struct quic_cid original_dcid, initial_scid, retry_scid;
    uint8_t reset_token[QUIC_RESET_TOKEN_BYTES];
    struct {
        struct quic_addr addr; /* IPv6 only; its IPv4 part is ignored. */
        struct quic_cid cid;
        uint8_t reset_token[QUIC_RESET_TOKEN_BYTES];
    } preferred;
};

/* RFC defaults for what is absent. */
void quic_params_defaults(struct quic_params *p);
/* Returns the length, 0 if it does not fit. Server-only parameters are written when `server`. One GREASE
 * parameter (31 * n + 27) chosen by `grease`. */
size_t quic_params_encode(const struct quic_params *p, bool server, uint64_t grease, uint8_t *out,
                          size_t cap);
/* `from_server`: who sent them. 0, or TRANSPORT_PARAMETER_ERROR with `*why` a constant text (untouched on
 * success): truncated, duplicate, value out of range (max_udp_payload_size < 1200, ack_delay_exponent > 20,
 * max_ack_delay >= 2^14, active_connection_id_limit < 2, streams > 2^60, min_ack_delay >= 2^24 us or over
 * max_ack_delay), wrong length, server-only parameter
 * from a client, preferred_address with an empty cid, initial_scid absent, original_dcid absent from a
 * server. Unknown ones are ignored, but checked for duplicates up to 64 of them. */
int quic_params_decode(const uint8_t *data, size_t len, bool from_server, struct quic_params *out,
                       const char **why);

#endif
