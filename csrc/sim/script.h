/* A stand-in for TLS 1.3 at the seam of RFC 9001 section 4.1: takes CRYPTO bytes, gives CRYPTO bytes,
 * secrets, transport parameters and the end of the handshake, in the shape and sizes of a mutual handshake
 * (RFC 8446 section 2), and without any cryptography: secrets are drawn from a seed that the ClientHello
 * carries. For simulation only. (The real TLS runs in the Python simulation.)
 *
 * A client that has been given a server's earlier parameters may offer 0-RTT. Whether the server takes it is
 * drawn too; it must be this seed's first use, and without HelloRetryRequest.
 *
 *   client                                     level       server
 *     ClientHello (params, seed)        ──▶    Initial
 *                                       ◀──    Initial     HelloRetryRequest, sometimes; then ClientHello
 * again ◀──    Initial     ServerHello ◀──    Handshake   EncryptedExtensions (params), CertificateRequest,
 *                                                          Certificate (1-4 KB), CertificateVerify, Finished
 *     Certificate, CertificateVerify, Finished ──▶ Handshake
 *                                       ◀──    1-RTT       NewSessionTicket, sometimes
 *
 * Every message ends in a checksum, so bytes that were lost, swapped or repeated are noticed. Who is who:
 * the caller turns put() calls into commands of stoq.h, in order.
 */
#ifndef STOQ_SIM_SCRIPT_H
#define STOQ_SIM_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SCRIPT_MAX_PARAMS  1024 /* Encoded transport parameters; the engine's take about 150 bytes. */
#define SCRIPT_MAX_MESSAGE 6144 /* Largest message: a Certificate of 4 KB and its framing. */
#define SCRIPT_MAX_PIECE   4096 /* Most CRYPTO bytes in one put(): a small chunk. */

/* Where commands go: `type` is of enum stoq_command_type; `data` is valid during the call. */
struct script_sink {
    void *ctx;
    void (*put)(void *ctx, uint8_t type, uint8_t level, uint8_t flags, uint64_t code, const uint8_t *data,
                uint32_t len);
    /* A server's, may be NULL: is this the first ClientHello of this seed? Early data is taken once. */
    bool (*first_use)(void *ctx, uint64_t seed);
};

enum script_stage {
    SCRIPT_IDLE,
    SCRIPT_WAIT_CLIENT_HELLO,
    SCRIPT_WAIT_SERVER_HELLO,
    SCRIPT_WAIT_EXTENSIONS,
    SCRIPT_WAIT_SERVER_FINISHED,
    SCRIPT_WAIT_CLIENT_FINISHED,
    SCRIPT_COMPLETE,
    SCRIPT_FAILED, /* `why` says it; or we refused on purpose. */
};

struct script {
    uint64_t seed; /* The connection's; a server learns it from the ClientHello. */
    bool server;
    bool retried;         /* HelloRetryRequest was sent or answered. */
    bool early;           /* 0-RTT was offered; a server's: and is taken. */
    uint8_t level;        /* Of the bytes in `in`. */
    uint8_t refuse_alert; /* Refuse the peer with this alert when it has finished; 0: do not. */
    enum script_stage stage;
    uint32_t in_len, params_len;
    uint8_t params[SCRIPT_MAX_PARAMS]; /* Ours. */
    uint8_t in[SCRIPT_MAX_MESSAGE];    /* An incomplete message. */
    char why[96];
};

/* The AEAD that a connection of this seed agrees on (enum crypto_aead). */
int script_aead(uint64_t seed);
/* Begin; a client sends its ClientHello. `seed` of a server is ignored. */
void script_start(struct script *s, bool server, uint64_t seed, const uint8_t *params, uint32_t params_len,
                  const struct script_sink *sink);
/* A client, before script_start: a server's parameters of an earlier connection. */
void script_remember(struct script *s, uint64_t seed, const uint8_t *params, uint32_t params_len,
                     const struct script_sink *sink);
/* CRYPTO bytes in order at `level`. False: they are not what the peer's script sends; `why` is set. */
bool script_crypto(struct script *s, uint8_t level, const uint8_t *data, uint32_t len,
                   const struct script_sink *sink);

#endif
