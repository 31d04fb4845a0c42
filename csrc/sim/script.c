/* A stand-in for TLS 1.3: see script.h. Owns nothing beyond struct script. */
#include "script.h"

#include <stdio.h>
#include <string.h>

#include "../crypto/crypto.h"
#include "../io/prng.h"
#include "../quic/quic.h"
#include "../stoq.h"

/* Handshake message types, RFC 8446 section 4. HelloRetryRequest is a ServerHello there; here it has a number
 * of its own (6, its number before RFC 8446). */
enum {
    CLIENT_HELLO = 1,
    SERVER_HELLO = 2,
    NEW_SESSION_TICKET = 4,
    HELLO_RETRY_REQUEST = 6,
    ENCRYPTED_EXTENSIONS = 8,
    CERTIFICATE = 11,
    CERTIFICATE_REQUEST = 13,
    CERTIFICATE_VERIFY = 15,
    FINISHED = 20,
};

#define HEADER_BYTES 4 /* Type and 24-bit length. */
#define SUM_BYTES    8
#define EARLY_BIT    0x80u /* In the parameters' length: 0-RTT is offered, or taken. */

static const uint8_t alpn[] = "stoq/1";

/* A number that both ends draw alike from the connection's seed, one for each `what`. */
static uint64_t draw(const struct script *s, uint64_t what) {
    return prng_mix(s->seed ^ prng_mix(what));
}

static bool wants_retry(const struct script *s) {
    return draw(s, 1) % 10 == 0;
}
static bool wants_ticket(const struct script *s) {
    return draw(s, 2) % 2 == 0;
}
static enum crypto_aead aead_of(const struct script *s) {
    return (enum crypto_aead)(draw(s, 3) % CRYPTO_AEAD_COUNT);
}

static bool wants_early(const struct script *s) {
    return draw(s, 8) % 2 == 0;
}
static bool takes_early(const struct script *s) {
    return draw(s, 9) % 3 != 0;
}

int script_aead(uint64_t seed) {
    return aead_of(&(struct script){.seed = seed});
}

/* FNV-1a, 64 bit: notices any changed, missing or repeated byte well enough. */
static uint64_t checksum(const uint8_t *data, size_t len) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < len; i++)
        h = (h ^ data[i]) * 0x100000001b3u;
    return h;
}

static void store64(uint8_t *out, uint64_t v) {
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t load64(const uint8_t *in) {
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | in[i];
    return v;
}

/* One message: header, `body`, padding drawn from the seed up to about `bytes` in all, checksum. In pieces.
 */
static void say(const struct script *s, uint8_t level, uint8_t type, const uint8_t *body, uint32_t body_len,
                uint32_t bytes, const struct script_sink *sink) {
    uint8_t m[SCRIPT_MAX_MESSAGE];
    uint32_t len = HEADER_BYTES + body_len + SUM_BYTES;
    if (len < bytes)
        len = bytes < sizeof m ? bytes : (uint32_t)sizeof m;
    struct prng fill;
    prng_seed(&fill, draw(s, 100 + type) ^ s->server);
    m[0] = type;
    m[1] = 0;
    m[2] = (uint8_t)((len - HEADER_BYTES) >> 8);
    m[3] = (uint8_t)(len - HEADER_BYTES);
    if (body_len)
        memcpy(m + HEADER_BYTES, body, body_len);
    prng_fill(&fill, m + HEADER_BYTES + body_len, len - HEADER_BYTES - body_len - SUM_BYTES);
    store64(m + len - SUM_BYTES, checksum(m, len - SUM_BYTES));
    /* TLS records or callbacks of any size: whole messages mostly, small pieces sometimes. */
    static const uint32_t pieces[] = {SCRIPT_MAX_PIECE, SCRIPT_MAX_PIECE, 1000, 97};
    uint32_t piece = pieces[draw(s, 4) % 4];
    for (uint32_t at = 0; at < len; at += piece)
        sink->put(sink->ctx, STOQ_COMMAND_CRYPTO, level, 0, 0, m + at, len - at < piece ? len - at : piece);
}

/* ClientHello and EncryptedExtensions: seed, then our transport parameters. */
static void say_params(const struct script *s, uint8_t level, uint8_t type, uint32_t bytes,
                       const struct script_sink *sink) {
    uint8_t body[10 + SCRIPT_MAX_PARAMS];
    store64(body, s->seed);
    body[8] = (uint8_t)(s->params_len >> 8 | (s->early ? EARLY_BIT : 0));
    body[9] = (uint8_t)s->params_len;
    memcpy(body + 10, s->params, s->params_len);
    say(s, level, type, body, 10 + s->params_len, bytes, sink);
}

static void client_hello(const struct script *s, const struct script_sink *sink) {
    /* Some are as large as a post-quantum key share makes them: two Initial packets. */
    uint32_t bytes = draw(s, 5) % 8 == 0 ? 1600 : 280 + (uint32_t)(draw(s, 5) % 60);
    say_params(s, QUIC_INITIAL, CLIENT_HELLO, bytes, sink);
}

static void secret(const struct script *s, uint8_t level, bool send, const struct script_sink *sink) {
    uint8_t bytes[CRYPTO_MAX_SECRET_BYTES];
    struct prng p;
    bool of_client = send != s->server;
    prng_seed(&p, draw(s, 200 + level * 2u + of_client));
    prng_fill(&p, bytes, sizeof bytes);
    uint32_t len = (uint32_t)crypto_hash_bytes(crypto_aead_hash(aead_of(s)));
    sink->put(sink->ctx, STOQ_COMMAND_SECRET, level, send ? STOQ_SEND : 0, aead_of(s), bytes, len);
}

static void say_certificate(const struct script *s, const struct script_sink *sink) {
    uint64_t n = draw(s, s->server ? 6 : 7);
    say(s, QUIC_HANDSHAKE, CERTIFICATE, NULL, 0, 1000 + (uint32_t)(n % 3100), sink);
    say(s, QUIC_HANDSHAKE, CERTIFICATE_VERIFY, NULL, 0, n >> 32 & 1 ? 264 : 80, sink); /* RSA or ECDSA. */
    say(s, QUIC_HANDSHAKE, FINISHED, NULL, 0, 36, sink);
}

static bool refuse(struct script *s, const struct script_sink *sink) {
    static const uint8_t reason[] = "refused by the script";
    s->stage = SCRIPT_FAILED;
    sink->put(sink->ctx, STOQ_COMMAND_CLOSE, 0, 0, QUIC_CRYPTO_ERROR + s->refuse_alert, reason,
              sizeof reason - 1);
    return true;
}

static bool fail(struct script *s, const char *why, unsigned number) {
    s->stage = SCRIPT_FAILED;
    snprintf(s->why, sizeof s->why, "%s (%u)", why, number);
    return false;
}

static void complete(struct script *s, const struct script_sink *sink) {
    s->stage = SCRIPT_COMPLETE;
    sink->put(sink->ctx, STOQ_COMMAND_HANDSHAKE_COMPLETE, 0, 0, 0, alpn, sizeof alpn - 1);
}

static uint32_t params_bytes(const uint8_t *body) {
    return (uint32_t)(body[8] & ~EARLY_BIT) << 8 | body[9];
}

/* The body of a message with parameters: takes the seed (server) and hands the parameters on. */
static bool peer_params(struct script *s, const uint8_t *body, uint32_t len, const struct script_sink *sink) {
    if (len < 10 || params_bytes(body) > len - 10)
        return fail(s, "parameters do not fit their message", len);
    if (!s->server && load64(body) != s->seed)
        return fail(s, "the server answers another ClientHello", 0);
    bool early = body[8] & EARLY_BIT;
    if (early && !s->early && !s->server)
        return fail(s, "0-RTT was taken but not offered", 0);
    if (s->early && !s->server)
        sink->put(sink->ctx, STOQ_COMMAND_EARLY_ANSWER, 0, 0, early, NULL, 0);
    sink->put(sink->ctx, STOQ_COMMAND_PEER_PARAMS, 0, 0, 0, body + 10, params_bytes(body));
    return true;
}

static bool on_client_hello(struct script *s, const uint8_t *body, uint32_t len,
                            const struct script_sink *sink) {
    if (len < 10)
        return fail(s, "short ClientHello", len);
    s->seed = load64(body);
    if (wants_retry(s) && !s->retried) {
        s->retried = true;
        say(s, QUIC_INITIAL, HELLO_RETRY_REQUEST, NULL, 0, 90, sink);
        return true;
    }
    say(s, QUIC_INITIAL, SERVER_HELLO, NULL, 0, 122, sink);
    if (!peer_params(s, body, len, sink))
        return false;
    s->early = (body[8] & EARLY_BIT) && !s->retried && takes_early(s) &&
               (!sink->first_use || sink->first_use(sink->ctx, s->seed));
    if (s->early)
        secret(s, QUIC_ZERO_RTT, false, sink);
    secret(s, QUIC_HANDSHAKE, true, sink);
    secret(s, QUIC_HANDSHAKE, false, sink);
    say_params(s, QUIC_HANDSHAKE, ENCRYPTED_EXTENSIONS, 100, sink);
    say(s, QUIC_HANDSHAKE, CERTIFICATE_REQUEST, NULL, 0, 60, sink);
    say_certificate(s, sink);
    secret(s, QUIC_ONE_RTT, true, sink);
    s->stage = SCRIPT_WAIT_CLIENT_FINISHED;
    return true;
}

static bool on_server_finished(struct script *s, const struct script_sink *sink) {
    if (s->refuse_alert)
        return refuse(s, sink);
    secret(s, QUIC_ONE_RTT, false, sink);
    say_certificate(s, sink);
    secret(s, QUIC_ONE_RTT, true, sink);
    complete(s, sink);
    return true;
}

static bool on_client_finished(struct script *s, const struct script_sink *sink) {
    if (s->refuse_alert)
        return refuse(s, sink);
    secret(s, QUIC_ONE_RTT, false, sink);
    complete(s, sink);
    if (wants_ticket(s))
        say(s, QUIC_ONE_RTT, NEW_SESSION_TICKET, NULL, 0, 230, sink);
    return true;
}

static bool message(struct script *s, uint8_t level, uint8_t type, const uint8_t *body, uint32_t len,
                    const struct script_sink *sink) {
    bool handshake = level == QUIC_HANDSHAKE;
    switch (s->stage) {
    case SCRIPT_WAIT_CLIENT_HELLO:
        if (type == CLIENT_HELLO && level == QUIC_INITIAL)
            return on_client_hello(s, body, len, sink);
        break;
    case SCRIPT_WAIT_SERVER_HELLO:
        if (type == HELLO_RETRY_REQUEST && level == QUIC_INITIAL && !s->retried) {
            s->retried = true;
            client_hello(s, sink);
            return true;
        }
        if (type == SERVER_HELLO && level == QUIC_INITIAL) {
            secret(s, QUIC_HANDSHAKE, true, sink);
            secret(s, QUIC_HANDSHAKE, false, sink);
            s->stage = SCRIPT_WAIT_EXTENSIONS;
            return true;
        }
        break;
    case SCRIPT_WAIT_EXTENSIONS:
        if (type == ENCRYPTED_EXTENSIONS && handshake) {
            s->stage = SCRIPT_WAIT_SERVER_FINISHED;
            return peer_params(s, body, len, sink);
        }
        break;
    case SCRIPT_WAIT_SERVER_FINISHED:
        if (handshake && (type == CERTIFICATE_REQUEST || type == CERTIFICATE || type == CERTIFICATE_VERIFY))
            return true;
        if (handshake && type == FINISHED)
            return on_server_finished(s, sink);
        break;
    case SCRIPT_WAIT_CLIENT_FINISHED:
        if (handshake && (type == CERTIFICATE || type == CERTIFICATE_VERIFY))
            return true;
        if (handshake && type == FINISHED)
            return on_client_finished(s, sink);
        break;
    case SCRIPT_COMPLETE:
        if (!s->server && type == NEW_SESSION_TICKET && level == QUIC_ONE_RTT)
            return true;
        break;
    case SCRIPT_FAILED:
        return true; /* We have refused; what follows does not matter. */
    case SCRIPT_IDLE:
        break;
    }
    return fail(s, "message out of order", type);
}

void script_start(struct script *s, bool server, uint64_t seed, const uint8_t *params, uint32_t params_len,
                  const struct script_sink *sink) {
    s->server = server;
    s->seed = seed;
    s->in_len = 0;
    s->retried = false;
    s->params_len = params_len < SCRIPT_MAX_PARAMS ? params_len : SCRIPT_MAX_PARAMS;
    if (params_len)
        memcpy(s->params, params, s->params_len);
    s->stage = server ? SCRIPT_WAIT_CLIENT_HELLO : SCRIPT_WAIT_SERVER_HELLO;
    if (server)
        return;
    client_hello(s, sink);
    if (s->early)
        secret(s, QUIC_ZERO_RTT, true, sink);
}

void script_remember(struct script *s, uint64_t seed, const uint8_t *params, uint32_t params_len,
                     const struct script_sink *sink) {
    s->seed = seed;
    s->early = params_len && wants_early(s);
    if (s->early)
        sink->put(sink->ctx, STOQ_COMMAND_EARLY_PARAMS, 0, 0, 0, params, params_len);
}

bool script_crypto(struct script *s, uint8_t level, const uint8_t *data, uint32_t len,
                   const struct script_sink *sink) {
    if (s->in_len && level != s->level && s->stage != SCRIPT_FAILED)
        return fail(s, "message spans encryption levels", level);
    s->level = level;
    while (len && s->stage != SCRIPT_FAILED) {
        uint32_t want = HEADER_BYTES;
        if (s->in_len >= HEADER_BYTES)
            want += (uint32_t)s->in[1] << 16 | (uint32_t)s->in[2] << 8 | s->in[3];
        if (want > sizeof s->in || (s->in_len >= HEADER_BYTES && want < HEADER_BYTES + SUM_BYTES))
            return fail(s, "impossible message length", want);
        uint32_t take = want - s->in_len < len ? want - s->in_len : len;
        memcpy(s->in + s->in_len, data, take);
        s->in_len += take;
        data += take;
        len -= take;
        if (s->in_len < want || want == HEADER_BYTES)
            continue;
        if (load64(s->in + want - SUM_BYTES) != checksum(s->in, want - SUM_BYTES))
            return fail(s, "message does not match its checksum", s->in[0]);
        s->in_len = 0;
        if (!message(s, level, s->in[0], s->in + HEADER_BYTES, want - HEADER_BYTES - SUM_BYTES, sink))
            return false;
    }
    return true;
}
