/* Packet protection as the engine does it: the keys from the engine's own schedule, the packets through its
 * own parser, number coding and masks. RFC 9001 Appendix A byte for byte, with every provider; key update
 * (section 6) against a second endpoint. */
#include <string.h>

#include "check.h"
#include "leaf_host.h"
#include "quic/protect.h"
#include "rfc9001_vectors.h"

struct provider_run {
    const struct crypto_provider *crypto;
    struct leaf_memory memory;
    struct quic_host host;
};

static void each_provider(void (*test)(struct provider_run *)) {
    const struct crypto_provider *providers[8];
    size_t n = crypto_providers(providers, 8);
    CHECK(n >= 1);
    for (size_t i = 0; i < n; i++) {
        struct provider_run run = {.crypto = providers[i]};
        run.host = leaf_host(&run.memory);
        test(&run);
        CHECK_EQ(run.memory.bytes, 0);
        CHECK_EQ(run.memory.blocks, 0);
    }
}

static struct quic_keys keys_of(struct provider_run *run) {
    return (struct quic_keys){.crypto = run->crypto, .host = &run->host};
}

static struct quic_cid client_dcid(void) {
    struct quic_cid cid = {.len = sizeof rfc9001_dcid};
    memcpy(cid.id, rfc9001_dcid, sizeof rfc9001_dcid);
    return cid;
}

/* Undo a packet as the receiver does. Returns the payload's length, or -1. */
static long unprotect(struct quic_keys *keys, uint8_t *packet, size_t len, size_t short_dcid,
                      uint64_t largest, uint64_t *pn, size_t *header) {
    struct quic_header h;
    if (quic_packet_parse(packet, len, short_dcid, &h) != QUIC_PARSE_OK)
        return -1;
    const uint8_t *sample = packet + h.pn_offset + 4;
    uint8_t mask[1][CRYPTO_MASK_BYTES], nonce[CRYPTO_NONCE_BYTES];
    uint64_t truncated;
    keys->crypto->hp_mask(keys->recv.hp, &sample, mask, 1);
    unsigned pn_len = quic_unmask_header(packet, h.pn_offset, mask[0], &truncated);
    *pn = quic_pn_decode(largest, truncated, pn_len);
    *header = h.pn_offset + pn_len;
    quic_nonce(nonce, keys->recv.key.iv, *pn);
    if (!keys->crypto->open(keys->recv.key.aead, nonce, packet, *header, packet + *header, h.len - *header,
                            packet + *header))
        return -1;
    return (long)(h.len - *header - CRYPTO_TAG_BYTES);
}

/* Do a packet as the sender does, from its clear header. */
static void protect(struct quic_keys *keys, uint64_t pn, const uint8_t *header, size_t header_len,
                    unsigned pn_len, const uint8_t *payload, size_t len, uint8_t *out) {
    uint8_t nonce[CRYPTO_NONCE_BYTES], mask[1][CRYPTO_MASK_BYTES];
    memcpy(out, header, header_len);
    memcpy(out + header_len, payload, len);
    quic_nonce(nonce, keys->send.key.iv, pn);
    keys->crypto->seal(keys->send.key.aead, nonce, out, header_len, out + header_len, len, out + header_len);
    const uint8_t *sample = out + header_len - pn_len + 4;
    keys->crypto->hp_mask(keys->send.hp, &sample, mask, 1);
    quic_mask_header(out, header_len - pn_len, mask[0]);
}

static void client_initial_run(struct provider_run *run) {
    struct quic_keys client = keys_of(run), server = keys_of(run);
    struct quic_cid dcid = client_dcid();
    uint8_t payload[1162] = {0}, packet[1200];
    CHECK(quic_keys_install_initial(&client, false, &dcid));
    CHECK(quic_keys_install_initial(&server, true, &dcid));
    CHECK_MEM(client.send.key.iv, rfc9001_client_iv, 12);
    CHECK_MEM(server.send.key.iv, rfc9001_server_iv, 12);
    memcpy(payload, rfc9001_client_crypto_frame, sizeof rfc9001_client_crypto_frame);
    protect(&client, 2, rfc9001_client_header, sizeof rfc9001_client_header, 4, payload, sizeof payload,
            packet);
    CHECK_MEM(packet, rfc9001_client_packet, sizeof packet);
    uint64_t pn;
    size_t header;
    CHECK_EQ(unprotect(&server, packet, sizeof packet, 8, QUIC_NO_PN, &pn, &header), (long)sizeof payload);
    CHECK_EQ(pn, 2);
    CHECK_MEM(packet, rfc9001_client_header, sizeof rfc9001_client_header);
    CHECK_MEM(packet + header, payload, sizeof payload);
    quic_keys_discard(&client);
    quic_keys_discard(&server);
}

static void server_initial_run(struct provider_run *run) {
    struct quic_keys client = keys_of(run), server = keys_of(run);
    struct quic_cid dcid = client_dcid();
    uint8_t packet[sizeof rfc9001_server_packet];
    CHECK(quic_keys_install_initial(&client, false, &dcid));
    CHECK(quic_keys_install_initial(&server, true, &dcid));
    protect(&server, 1, rfc9001_server_header, sizeof rfc9001_server_header, 2, rfc9001_server_payload,
            sizeof rfc9001_server_payload, packet);
    CHECK_MEM(packet, rfc9001_server_packet, sizeof packet);
    uint64_t pn;
    size_t header;
    CHECK_EQ(unprotect(&client, packet, sizeof packet, 0, QUIC_NO_PN, &pn, &header),
             (long)sizeof rfc9001_server_payload);
    CHECK_EQ(pn, 1);
    CHECK_MEM(packet + header, rfc9001_server_payload, sizeof rfc9001_server_payload);
    quic_keys_discard(&client);
    quic_keys_discard(&server);
}

static void chacha_short_run(struct provider_run *run) {
    struct quic_keys keys = keys_of(run);
    uint8_t packet[sizeof rfc9001_chacha_packet];
    const uint64_t number = 654360564;
    CHECK(quic_keys_install(&keys, true, CRYPTO_CHACHA20_POLY1305, rfc9001_chacha_secret, 32));
    CHECK(quic_keys_install(&keys, false, CRYPTO_CHACHA20_POLY1305, rfc9001_chacha_secret, 32));
    CHECK_MEM(keys.send.key.iv, rfc9001_chacha_iv, 12);
    protect(&keys, number, rfc9001_chacha_header, sizeof rfc9001_chacha_header, 3, rfc9001_chacha_payload, 1,
            packet);
    CHECK_MEM(packet, rfc9001_chacha_packet, sizeof packet);
    uint64_t pn;
    size_t header;
    CHECK_EQ(unprotect(&keys, packet, sizeof packet, 0, number - 1, &pn, &header), 1);
    CHECK_EQ(pn, number);
    /* Appendix A.5's "quic ku" secret is what an update moves to. */
    CHECK(quic_keys_rotate_send(&keys));
    CHECK_MEM(keys.send.secret, rfc9001_chacha_ku, 32);
    quic_keys_discard(&keys);
}

static void key_update_run(struct provider_run *run) {
    static const enum crypto_aead aeads[] = {CRYPTO_AES_128_GCM, CRYPTO_AES_256_GCM,
                                             CRYPTO_CHACHA20_POLY1305};
    for (size_t a = 0; a < 3; a++) {
        struct quic_keys sender = keys_of(run), receiver = keys_of(run);
        uint8_t secret[CRYPTO_MAX_SECRET_BYTES];
        size_t len = crypto_hash_bytes(crypto_aead_hash(aeads[a]));
        check_rand_bytes(secret, sizeof secret);
        CHECK(!quic_keys_install(&sender, true, aeads[a], secret, len - 1));
        CHECK(quic_keys_install(&sender, true, aeads[a], secret, len));
        CHECK(quic_keys_install(&receiver, false, aeads[a], secret, len));
        CHECK(quic_keys_prepare_next(&receiver));
        for (int phase = 0; phase < 4; phase++) {
            uint8_t header[4] = {0x42, 0, 0, (uint8_t)phase}, body[32] = {7}, packet[64], copy[64];
            uint64_t pn;
            size_t at;
            protect(&sender, (uint64_t)phase, header, 4, 3, body, sizeof body, packet);
            memcpy(copy, packet, sizeof copy);
            CHECK_EQ(unprotect(&receiver, copy, 4 + 32 + 16, 0, QUIC_NO_PN, &pn, &at), 32);
            CHECK(quic_keys_rotate_send(&sender));
            protect(&sender, (uint64_t)phase, header, 4, 3, body, sizeof body, packet);
            memcpy(copy, packet, sizeof copy);
            CHECK_EQ(unprotect(&receiver, copy, 4 + 32 + 16, 0, QUIC_NO_PN, &pn, &at),
                     -1); /* Not yet rotated. */
            CHECK(quic_keys_rotate_receive(&receiver));
            memcpy(copy, packet, sizeof copy);
            CHECK_EQ(unprotect(&receiver, copy, 4 + 32 + 16, 0, QUIC_NO_PN, &pn, &at), 32);
            CHECK(receiver.previous.aead != NULL);
        }
        quic_keys_drop_previous(&receiver);
        CHECK(receiver.previous.aead == NULL);
        quic_keys_discard(&sender);
        quic_keys_discard(&receiver);
    }
}

static void no_memory_run(struct provider_run *run) {
    struct quic_keys keys = keys_of(run);
    struct quic_cid dcid = client_dcid();
    run->memory.empty = true;
    CHECK(!quic_keys_install_initial(&keys, true, &dcid));
    CHECK(!quic_can_send(&keys) && !quic_can_receive(&keys));
    run->memory.empty = false;
}

static void client_initial(void) {
    each_provider(client_initial_run);
}
static void server_initial(void) {
    each_provider(server_initial_run);
}
static void chacha_short(void) {
    each_provider(chacha_short_run);
}
static void key_update(void) {
    each_provider(key_update_run);
}
static void no_memory(void) {
    each_provider(no_memory_run);
}

static const struct check_case cases[] = {
    {"client_initial", client_initial}, {"server_initial", server_initial}, {"chacha_short", chacha_short},
    {"key_update", key_update},         {"no_memory", no_memory},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
