/* Said once, used everywhere: drop reasons, counters, transport errors, events, commands and configuration
 * keys.
 *
 * Each table is an X-macro: X(NAME, value or name, "text for people"). C makes its enums and name arrays from
 * it; dataplane/tables.py is generated from this file at build time (dataplane/_generate.py reads the X(...)
 * lines, so an entry stays on one line); metrics, `stoq status` and the documentation use the same names.
 */
#ifndef STOQ_TABLES_H
#define STOQ_TABLES_H

/* Transport error codes, RFC 9000 section 20.1; 0x0100-0x01ff carry a TLS alert (RFC 9001 section 4.8). */
#define STOQ_TRANSPORT_ERRORS(X)                                                                             \
    X(NO_ERROR, 0x00, "connection closed without error")                                                     \
    X(INTERNAL_ERROR, 0x01, "the endpoint met an internal error")                                            \
    X(CONNECTION_REFUSED, 0x02, "the server refused a new connection")                                       \
    X(FLOW_CONTROL_ERROR, 0x03, "more data than flow control allowed")                                       \
    X(STREAM_LIMIT_ERROR, 0x04, "more streams than allowed")                                                 \
    X(STREAM_STATE_ERROR, 0x05, "frame for a stream in a state that does not permit it")                     \
    X(FINAL_SIZE_ERROR, 0x06, "the stream's final size changed or was exceeded")                             \
    X(FRAME_ENCODING_ERROR, 0x07, "malformed frame")                                                         \
    X(TRANSPORT_PARAMETER_ERROR, 0x08, "malformed or forbidden transport parameters")                        \
    X(CONNECTION_ID_LIMIT_ERROR, 0x09, "more connection ids than active_connection_id_limit")                \
    X(PROTOCOL_VIOLATION, 0x0a, "protocol violation")                                                        \
    X(INVALID_TOKEN, 0x0b, "the token in the Initial is not valid")                                          \
    X(APPLICATION_ERROR, 0x0c, "the application closed the connection during the handshake")                 \
    X(CRYPTO_BUFFER_EXCEEDED, 0x0d, "more CRYPTO data than can be buffered")                                 \
    X(KEY_UPDATE_ERROR, 0x0e, "key update not permitted")                                                    \
    X(AEAD_LIMIT_REACHED, 0x0f, "the AEAD's usage limit was reached")                                        \
    X(NO_VIABLE_PATH, 0x10, "no network path supports QUIC")                                                 \
    X(CRYPTO_ERROR, 0x100, "the TLS handshake failed (alert in the low byte)")

/* Why a datagram or packet was dropped. Every drop counts exactly one of these. */
#define STOQ_DROP_REASONS(X)                                                                                 \
    X(SHORT, 0, "too short to be a QUIC packet")                                                             \
    X(FIXED_BIT, 1, "fixed bit is zero")                                                                     \
    X(HEADER, 2, "header does not parse")                                                                    \
    X(CID_LENGTH, 3, "connection id longer than the version allows")                                         \
    X(INITIAL_SMALL, 4, "datagram with an Initial is under 1200 bytes")                                      \
    X(VERSION_SMALL, 5, "unknown version in a datagram too small to answer")                                 \
    X(VERSION_LIMIT, 6, "unknown version; answers are rate limited")                                         \
    X(UNKNOWN_CID, 7, "no connection has this connection id")                                                \
    X(RESET_LIMIT, 8, "no connection; stateless resets are rate limited")                                    \
    X(NOT_INITIAL, 9, "long header packet that opens no connection")                                         \
    X(TOKEN, 10, "the Initial's token is not valid")                                                         \
    X(CONN_LIMIT, 11, "connection table is full")                                                            \
    X(NO_MEMORY, 12, "memory pool is empty")                                                                 \
    X(NO_KEYS, 13, "no keys for this packet's level, and it cannot wait")                                    \
    X(KEYS_DISCARDED, 14, "keys of this level are already discarded")                                        \
    X(PENDING_FULL, 15, "too many packets wait for keys")                                                    \
    X(AEAD, 16, "authentication failed")                                                                     \
    X(DUPLICATE, 17, "packet number seen before")                                                            \
    X(RETRY, 18, "unexpected or invalid Retry")                                                              \
    X(VERSION_NEGOTIATION, 19, "unexpected or invalid Version Negotiation")                                  \
    X(CLOSED, 20, "connection is closing or draining")                                                       \
    X(CID_MISMATCH, 21, "coalesced packet for another connection, or source id changed")                     \
    X(IPV4, 22, "IPv4 or v4-mapped address: STOQ is IPv6-only")                                              \
    X(NOT_SERVER, 23, "new connection, but this endpoint does not listen")                                   \
    X(DCID_SMALL, 24, "client's first destination connection id is under 8 bytes")                           \
    X(MIGRATION, 25, "peer moved before the handshake was confirmed")                                        \
    X(ZERO_RTT, 26, "0-RTT packet without early data keys")                                                  \
    X(OTHER_WORKER, 27, "belongs to another worker whose ring is full")                                      \
    X(RETRY_LIMIT, 28, "Initial without a token that is needed; Retry answers are rate limited")

/* Counters of one worker. Monotonic, 64 bit. */
#define STOQ_COUNTERS(X)                                                                                     \
    X(DATAGRAMS_RECEIVED, datagrams_received, "UDP datagrams given to the engine")                           \
    X(BYTES_RECEIVED, bytes_received, "UDP payload bytes given to the engine")                               \
    X(PACKETS_RECEIVED, packets_received, "QUIC packets opened")                                             \
    X(DATAGRAMS_SENT, datagrams_sent, "UDP datagrams built")                                                 \
    X(BYTES_SENT, bytes_sent, "UDP payload bytes built")                                                     \
    X(PACKETS_SENT, packets_sent, "QUIC packets sealed")                                                     \
    X(TRAINS_SENT, trains_sent, "trains handed to the backend")                                              \
    X(PACKETS_LOST, packets_lost, "packets declared lost")                                                   \
    X(PACKETS_LOST_SPURIOUS, packets_lost_spurious, "packets declared lost and acknowledged later")          \
    X(PTO, pto, "probe timeouts")                                                                            \
    X(PERSISTENT_CONGESTION, persistent_congestion, "persistent congestion periods")                         \
    X(CONGESTION_EVENTS, congestion_events, "congestion window reductions")                                  \
    X(ECN_CE, ecn_ce, "packets received with ECN CE")                                                        \
    X(ECN_FAILED, ecn_failed, "paths whose ECN counts were not possible")                                    \
    X(ACKS_SENT, acks_sent, "ACK frames sent")                                                               \
    X(ACKS_RECEIVED, acks_received, "ACK frames received")                                                   \
    X(CONNECTIONS_OPENED, connections_opened, "connections created, both roles")                             \
    X(CONNECTIONS_ACCEPTED, connections_accepted, "connections created as server")                           \
    X(HANDSHAKES_COMPLETED, handshakes_completed, "TLS handshakes completed")                                \
    X(HANDSHAKES_FAILED, handshakes_failed, "connections that ended before their handshake completed")       \
    X(CONNECTIONS_CLOSED, connections_closed, "connections ended, for whatever reason")                      \
    X(IDLE_TIMEOUTS, idle_timeouts, "connections ended by idle timeout")                                     \
    X(STATELESS_RESETS_SENT, stateless_resets_sent, "stateless resets sent")                                 \
    X(STATELESS_RESETS_RECEIVED, stateless_resets_received, "connections ended by a stateless reset")        \
    X(RETRIES_SENT, retries_sent, "Retry packets sent")                                                      \
    X(RETRIES_RECEIVED, retries_received, "Retry packets accepted")                                          \
    X(VERSION_NEGOTIATIONS_SENT, version_negotiations_sent, "Version Negotiation packets sent")              \
    X(VERSION_NEGOTIATIONS_RECEIVED, version_negotiations_received, "Version Negotiation packets accepted")  \
    X(KEY_UPDATES, key_updates, "key updates completed, by either side")                                     \
    X(PATH_CHALLENGES_SENT, path_challenges_sent, "PATH_CHALLENGE frames sent")                              \
    X(MIGRATIONS, migrations, "path changes by the peer that were validated")                                \
    X(MTU_PROBES, mtu_probes, "path MTU probes sent")                                                        \
    X(MTU_BLACK_HOLES, mtu_black_holes, "times a path stopped carrying its datagram size")                   \
    X(PATH_VALIDATION_FAILED, path_validation_failed, "paths that did not validate in time")                 \
    X(AMPLIFICATION_BLOCKED, amplification_blocked, "times sending stopped at the anti-amplification limit") \
    X(STREAMS_OPENED, streams_opened, "streams opened, by either side")                                      \
    X(STREAM_BYTES_SENT, stream_bytes_sent, "stream bytes sent first time")                                  \
    X(STREAM_BYTES_RETRANSMITTED, stream_bytes_retransmitted, "stream bytes sent again")                     \
    X(STREAM_BYTES_RECEIVED, stream_bytes_received, "stream bytes received in order")                        \
    X(DATAGRAM_FRAMES_SENT, datagram_frames_sent, "DATAGRAM frames sent")                                    \
    X(DATAGRAM_FRAMES_RECEIVED, datagram_frames_received, "DATAGRAM frames received")                        \
    X(DATAGRAM_FRAMES_DROPPED, datagram_frames_dropped, "DATAGRAM frames dropped at a full queue")           \
    X(COMMANDS, commands, "commands taken from the control plane")                                           \
    X(COMMANDS_STALE, commands_stale, "commands for a connection or stream that is gone")                    \
    X(EVENTS, events, "events given to the control plane")                                                   \
    X(EVENT_RING_FULL, event_ring_full, "times the event ring was full")                                     \
    X(DATAGRAMS_PASSED, datagrams_passed, "datagrams passed to the worker whose connection id they carry")   \
    X(LOOPS, loops, "turns of the worker's loop")                                                            \
    X(SLEEPS, sleeps, "times the worker slept")                                                              \
    X(ACK_FREQUENCY_SENT, ack_frequency_sent, "ACK_FREQUENCY frames sent")                                   \
    X(ZERO_RTT_SENT, zero_rtt_sent, "0-RTT packets sealed")                                                  \
    X(ZERO_RTT_RECEIVED, zero_rtt_received, "0-RTT packets received with early keys there")                  \
    X(ZERO_RTT_REFUSED, zero_rtt_refused, "connections of ours whose 0-RTT the server refused")

/* What the XDP guard did with a frame, and why. Every frame that reaches the program counts exactly one of
 * these. The second field is the number; names begin with what happens: PASS to the kernel untouched, DROP,
 * ANSWER from the program itself, XSK to the AF_XDP socket of its queue, SOCKET to the kernel's socket path
 * (a STOQ packet without an XSK on its queue). */
#define STOQ_VERDICTS(X)                                                                                     \
    X(PASS_OTHER, 0, "not STOQ: another protocol or port")                                                   \
    X(PASS_ADDRESS, 1, "a STOQ port, but an address that is not ours")                                       \
    X(PASS_MANAGEMENT, 2, "ICMPv6: neighbour discovery and errors are the kernel's")                         \
    X(PASS_FRAGMENT, 3, "a fragment without a UDP header: the kernel reassembles")                           \
    X(DROP_IPV4, 4, "IPv4 on a STOQ port: STOQ is IPv6-only")                                                \
    X(DROP_IPV6, 5, "malformed IPv6: lengths that do not add up")                                            \
    X(DROP_EXTENSIONS, 6, "more or longer IPv6 extension headers than are looked through")                   \
    X(DROP_UDP, 7, "malformed UDP: length outside the packet, or no checksum")                               \
    X(DROP_SHORT, 8, "too short to be a QUIC packet")                                                        \
    X(DROP_FIXED_BIT, 9, "fixed bit is zero")                                                                \
    X(DROP_HEADER, 10, "QUIC long header with lengths outside the packet or ids too long")                   \
    X(DROP_INITIAL_SMALL, 11, "datagram with an Initial is under 1200 bytes")                                \
    X(DROP_VERSION, 12, "unknown version where no negotiation is due, or past its rate")                     \
    X(DROP_BLOCKED, 13, "source prefix is on the blocklist")                                                 \
    X(DROP_INITIAL_RATE, 14, "source prefix sends more Initials than its token bucket allows")               \
    X(DROP_TOKEN, 15, "Initial with a Retry token that is expired, forged or another address's")             \
    X(DROP_UNKNOWN_CID, 16, "connection id that nobody has, past its rate")                                  \
    X(DROP_REPLAY, 17, "exact copy of a recent packet")                                                      \
    X(DROP_RETRY_RATE, 18, "Initial in a flood, and Retry answers are rate limited")                         \
    X(ANSWER_RETRY, 19, "Initial in a flood: answered with a stateless Retry")                               \
    X(XSK, 20, "ours: to the AF_XDP socket of its queue")                                                    \
    X(SOCKET, 21, "ours, but its queue has no AF_XDP socket: to the socket path")                            \
    X(ERROR, 22, "the program could not do what it decided: passed to the kernel")

/* Control plane to worker. */
#define STOQ_COMMANDS(X)                                                                                     \
    X(CONNECT, 1, "open a client connection; chunk: struct stoq_connect")                                    \
    X(CRYPTO, 2, "CRYPTO bytes to send at level; chunk: bytes")                                              \
    X(SECRET, 3, "traffic secret for level and direction (code: AEAD); chunk: secret")                       \
    X(PEER_PARAMS, 4, "peer's transport parameters; chunk: bytes")                                           \
    X(HANDSHAKE_COMPLETE, 5, "TLS handshake finished and the peer was accepted; chunk: ALPN")                \
    X(CLOSE, 6, "close the connection with code (flag APP: application code); chunk: reason")                \
    X(STREAM_SEND, 7, "stream data in chunk (flag FIN); opens a local stream at its first use")              \
    X(STREAM_RESET, 8, "reset the sending part with code")                                                   \
    X(STREAM_STOP, 9, "ask the peer to stop sending, with code")                                             \
    X(STREAM_CONSUMED, 10, "value bytes of the stream were consumed; chunk (if any) is given back")          \
    X(CHUNK_RELEASE, 11, "give back a chunk of the worker's pool")                                           \
    X(DATAGRAM, 12, "DATAGRAM frame; chunk: bytes")                                                          \
    X(KEY_UPDATE, 13, "start a key update")                                                                  \
    X(STATS, 14, "ask for a STATS event")                                                                    \
    X(PERF_START, 15, "turn the connection into a perf client in C; chunk: struct stoq_perf")                \
    X(STOP, 16, "close everything and stop the worker")                                                      \
    X(DETACH, 17, "the control plane forgets this connection: close it if open, send no more events")        \
    X(REBIND, 18, "client only: continue from another local port (tests of migration)")                      \
    X(ROUTE, 19, "AF_XDP: a route of the kernel's table; struct stoq_way from `conn` on")                    \
    X(NEIGHBOUR, 20, "AF_XDP: a neighbour of the kernel's table; struct stoq_way from `conn` on")            \
    X(PING, 21, "send a PING frame: the peer has to acknowledge it (RFC 9000 section 19.2)")                 \
    X(EARLY_PARAMS, 22, "client: the server's transport parameters of an earlier session, for 0-RTT")        \
    X(EARLY_ANSWER, 23, "client: code 1, the server accepted 0-RTT; 0: it refused")

/* Worker to control plane. */
#define STOQ_EVENTS(X)                                                                                       \
    X(CONNECTION, 1,                                                                                         \
      "a connection exists; value: cookie of CONNECT or 0; chunk: struct stoq_new_connection")               \
    X(CRYPTO, 2, "CRYPTO bytes received in order at level; chunk: bytes")                                    \
    X(CONNECTED, 3, "handshake complete and, for a client, confirmed or about to be; value: handshake ns")   \
    X(CLOSED, 4, "the connection is over; code, flags; chunk: struct stoq_closed")                           \
    X(STREAM_DATA, 5, "stream data in order in chunk (flag FIN)")                                            \
    X(STREAM_RESET, 6, "the peer reset its sending part with code")                                          \
    X(STREAM_STOP, 7, "the peer asks us to stop sending, with code")                                         \
    X(STREAM_ACKED, 8, "value: stream bytes the peer has acknowledged in all (flag FIN: everything)")        \
    X(STREAMS_AVAILABLE, 9, "value: streams we may open in all, of the kind in flags (UNI)")                 \
    X(DATAGRAM, 10, "DATAGRAM frame received; chunk: bytes")                                                 \
    X(KEY_UPDATED, 11, "keys were updated; value: key phase counter")                                        \
    X(PATH, 12, "the peer's address changed and was validated; chunk: struct stoq_path")                     \
    X(STATS, 13, "answer to STATS; chunk: struct stoq_connection_stats")                                     \
    X(PERF_DONE, 14, "perf client finished; chunk: struct stoq_perf_result")                                 \
    X(STOPPED, 15, "the worker has stopped")                                                                 \
    X(NEW_TOKEN, 16, "the server gave an address token for a later connection; chunk: bytes")

/* Congestion controllers. */
#define STOQ_CONGESTION_CONTROLLERS(X)                                                                       \
    X(NEWRENO, 0, "newreno")                                                                                 \
    X(CUBIC, 1, "cubic")                                                                                     \
    X(BBR, 2, "bbr")

enum quic_transport_error {
#define X(name, value, text) QUIC_##name = value,
    STOQ_TRANSPORT_ERRORS(X)
#undef X
};

enum stoq_drop_reason {
#define X(name, value, text) STOQ_DROP_##name = value,
    STOQ_DROP_REASONS(X)
#undef X
        STOQ_DROP_COUNT
};

enum stoq_counter {
#define X(name, key, text) STOQ_COUNTER_##name,
    STOQ_COUNTERS(X)
#undef X
        STOQ_COUNTER_COUNT
};

enum stoq_verdict {
#define X(name, value, text) STOQ_VERDICT_##name = value,
    STOQ_VERDICTS(X)
#undef X
        STOQ_VERDICT_COUNT
};

enum stoq_command_type {
#define X(name, value, text) STOQ_COMMAND_##name = value,
    STOQ_COMMANDS(X)
#undef X
};

enum stoq_event_type {
#define X(name, value, text) STOQ_EVENT_##name = value,
    STOQ_EVENTS(X)
#undef X
};

enum stoq_congestion_controller {
#define X(name, value, text) STOQ_CC_##name = value,
    STOQ_CONGESTION_CONTROLLERS(X)
#undef X
        STOQ_CC_COUNT
};

#endif
