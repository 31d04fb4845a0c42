/* The simulation's stand-in for TLS (csrc/sim/script.h): two scripts, wired to each other without a
 * transport. */
#include "../../csrc/crypto/crypto.h"
#include "../../csrc/quic/quic.h"
#include "../../csrc/sim/script.h"
#include "../../csrc/stoq.h"
#include "check.h"

#define STREAM_CAP                                                                                           \
    16384 /* Of CRYPTO bytes one way at one level: a flight is at most two 4 KB certificates' worth. */

/* What one side has said, and the secrets it has installed. */
struct port {
    uint8_t out[QUIC_LEVEL_COUNT][STREAM_CAP];
    uint32_t out_len[QUIC_LEVEL_COUNT], taken[QUIC_LEVEL_COUNT];
    uint8_t secret[QUIC_LEVEL_COUNT][2][CRYPTO_MAX_SECRET_BYTES];
    uint32_t secret_len[QUIC_LEVEL_COUNT][2];
    uint64_t aead[QUIC_LEVEL_COUNT][2];
    uint8_t params[SCRIPT_MAX_PARAMS];
    uint32_t params_len;
    bool complete, early_send;
    uint64_t refused;
};

static void put(void *ctx, uint8_t type, uint8_t level, uint8_t flags, uint64_t code, const uint8_t *data,
                uint32_t len) {
    struct port *p = ctx;
    bool send = flags & STOQ_SEND;
    CHECK(len <= SCRIPT_MAX_PIECE);
    switch (type) {
    case STOQ_COMMAND_CRYPTO:
        REQUIRE(p->out_len[level] + len <= STREAM_CAP);
        memcpy(p->out[level] + p->out_len[level], data, len);
        p->out_len[level] += len;
        p->early_send |= level != QUIC_INITIAL && !p->secret_len[level][1];
        break;
    case STOQ_COMMAND_SECRET:
        CHECK_EQ(p->secret_len[level][send], 0);
        memcpy(p->secret[level][send], data, len);
        p->secret_len[level][send] = len;
        p->aead[level][send] = code;
        break;
    case STOQ_COMMAND_PEER_PARAMS:
        memcpy(p->params, data, len);
        p->params_len = len;
        break;
    case STOQ_COMMAND_HANDSHAKE_COMPLETE:
        CHECK(!p->complete);
        p->complete = true;
        break;
    case STOQ_COMMAND_CLOSE:
        p->refused = code;
        break;
    default:
        CHECK(false);
    }
}

static struct port ports[2];
static struct script scripts[2];
static struct script_sink sinks[2];

/* Carry what is said to the other side, in pieces of up to `piece`, until both are silent. False when one
 * objects. */
static bool converse(uint32_t piece) {
    for (bool moved = true; moved;) {
        moved = false;
        for (int from = 0; from < 2; from++)
            for (uint8_t level = 0; level < QUIC_LEVEL_COUNT; level++) {
                struct port *p = &ports[from];
                uint32_t n = p->out_len[level] - p->taken[level];
                n = n > piece ? piece : n;
                if (!n)
                    continue;
                moved = true;
                p->taken[level] += n;
                if (!script_crypto(&scripts[!from], level, p->out[level] + p->taken[level] - n, n,
                                   &sinks[!from]))
                    return false;
                break; /* Levels in order, as packets would carry them. */
            }
    }
    return true;
}

static const uint8_t client_params[] = "what the client offers", server_params[] = "what the server offers";

static void begin(uint64_t seed) {
    memset(ports, 0, sizeof ports);
    memset(scripts, 0, sizeof scripts);
    for (int i = 0; i < 2; i++)
        sinks[i] = (struct script_sink){&ports[i], put, NULL};
    script_start(&scripts[1], true, 0, server_params, sizeof server_params, &sinks[1]);
    script_start(&scripts[0], false, seed, client_params, sizeof client_params, &sinks[0]);
}

static void both_complete_and_agree(void) {
    unsigned retried = 0, tickets = 0, aeads = 0;
    for (uint64_t seed = 0; seed < 400; seed++) {
        check_note("seed %llu", (unsigned long long)seed);
        begin(seed * 0x9e3779b97f4a7c15u);
        REQUIRE(converse((uint32_t)(1 + check_rand() % 1500)));
        CHECK(scripts[0].stage == SCRIPT_COMPLETE && scripts[1].stage == SCRIPT_COMPLETE);
        CHECK(ports[0].complete && ports[1].complete);
        CHECK_EQ(ports[0].params_len, sizeof server_params);
        CHECK_MEM(ports[0].params, server_params, sizeof server_params);
        CHECK_MEM(ports[1].params, client_params, sizeof client_params);
        for (int level = QUIC_HANDSHAKE; level <= QUIC_ONE_RTT; level++)
            for (int send = 0; send < 2; send++) {
                uint32_t len = ports[0].secret_len[level][send];
                CHECK_EQ(len,
                         crypto_hash_bytes(crypto_aead_hash((enum crypto_aead)ports[0].aead[level][send])));
                CHECK_EQ(len, ports[1].secret_len[level][!send]);
                CHECK_EQ(ports[0].aead[level][send], ports[1].aead[level][!send]);
                CHECK_MEM(ports[0].secret[level][send], ports[1].secret[level][!send], len);
            }
        CHECK(memcmp(ports[0].secret[QUIC_ONE_RTT][0], ports[0].secret[QUIC_ONE_RTT][1], 32) != 0);
        CHECK(memcmp(ports[0].secret[QUIC_ONE_RTT][0], ports[0].secret[QUIC_HANDSHAKE][0], 32) != 0);
        CHECK(!ports[0].early_send && !ports[1].early_send);
        retried += scripts[0].retried;
        tickets += ports[1].out_len[QUIC_ONE_RTT] != 0;
        aeads |= 1u << ports[0].aead[QUIC_ONE_RTT][0];
    }
    check_note("all seeds");
    CHECK(retried > 10 && tickets > 100 && aeads == 7);
}

static void one_changed_byte_is_noticed(void) {
    for (int round = 0; round < 300; round++) {
        begin(check_rand());
        struct port *p = &ports[0];
        uint32_t at =
            4 + (uint32_t)(check_rand() % (p->out_len[QUIC_INITIAL] - 4)); /* Past type and length. */
        p->out[QUIC_INITIAL][at] ^= (uint8_t)(1 + check_rand() % 255);
        CHECK(!converse(5000));
        CHECK(strstr(scripts[1].why, "checksum"));
    }
}

static void wrong_level_and_order_are_noticed(void) {
    begin(7);
    CHECK(!script_crypto(&scripts[1], QUIC_HANDSHAKE, ports[0].out[QUIC_INITIAL],
                         ports[0].out_len[QUIC_INITIAL], &sinks[1]));
    begin(7);
    CHECK(!script_crypto(&scripts[0], QUIC_INITIAL, ports[0].out[QUIC_INITIAL],
                         ports[0].out_len[QUIC_INITIAL], &sinks[0]));
}

static void either_side_can_refuse(void) {
    for (int side = 0; side < 2; side++) {
        begin(11);
        scripts[side].refuse_alert = 42;
        CHECK(converse(3000));
        CHECK_EQ(ports[side].refused, 0x100 + 42);
        CHECK(!ports[side].complete && !ports[1].complete);
    }
}

static const struct check_case cases[] = {
    {"both_complete_and_agree", both_complete_and_agree},
    {"one_changed_byte_is_noticed", one_changed_byte_is_noticed},
    {"wrong_level_and_order_are_noticed", wrong_level_and_order_are_noticed},
    {"either_side_can_refuse", either_side_can_refuse},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
