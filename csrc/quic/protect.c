/* Packet protection keys. See protect.h. */
#include "protect.h"

#include <string.h>

/* RFC 9001 section 5.2, for QUIC version 1. */
static const uint8_t initial_salt_v1[20] = {0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17,
                                            0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a};

static void rest_key(struct quic_keys *keys, struct quic_key *key) {
    if (!key->aead)
        return;
    keys->crypto->aead_clear(key->aead);
    keys->host->free(keys->host->ctx, key->aead, keys->crypto->aead_bytes);
    key->aead = NULL;
}

static void clear_key(struct quic_keys *keys, struct quic_key *key) {
    rest_key(keys, key);
    crypto_wipe(key->raw, sizeof key->raw);
    key->there = false;
}

static bool wake_key(struct quic_keys *keys, struct quic_key *key) {
    if (key->aead || !key->there)
        return true;
    key->aead = keys->host->alloc(keys->host->ctx, keys->crypto->aead_bytes);
    if (key->aead && !keys->crypto->aead_init(key->aead, keys->aead, key->raw))
        rest_key(keys, key);
    return key->aead != NULL;
}

static bool derive_key(struct quic_keys *keys, struct quic_key *key, const uint8_t *secret) {
    enum crypto_hash hash = crypto_aead_hash(keys->aead);
    size_t secret_len = crypto_hash_bytes(hash);

    clear_key(keys, key);
    key->there = crypto_hkdf_expand_label(hash, secret, secret_len, "quic key", key->raw,
                                          crypto_key_bytes(keys->aead)) &&
                 crypto_hkdf_expand_label(hash, secret, secret_len, "quic iv", key->iv, sizeof key->iv);
    if (key->there && wake_key(keys, key))
        return true;
    clear_key(keys, key);
    return false;
}

static void rest_hp(struct quic_keys *keys, struct quic_direction *d) {
    if (!d->hp)
        return;
    keys->crypto->hp_clear(d->hp);
    keys->host->free(keys->host->ctx, d->hp, keys->crypto->hp_bytes);
    d->hp = NULL;
}

static bool wake_hp(struct quic_keys *keys, struct quic_direction *d) {
    if (d->hp || !d->key.there)
        return true;
    d->hp = keys->host->alloc(keys->host->ctx, keys->crypto->hp_bytes);
    if (d->hp && !keys->crypto->hp_init(d->hp, keys->aead, d->hp_raw))
        rest_hp(keys, d);
    return d->hp != NULL;
}

static void clear_direction(struct quic_keys *keys, struct quic_direction *d) {
    clear_key(keys, &d->key);
    if (d == &keys->recv) {
        clear_key(keys, &keys->next);
        clear_key(keys, &keys->previous);
    }
    rest_hp(keys, d);
    crypto_wipe(d->hp_raw, sizeof d->hp_raw);
    crypto_wipe(d->secret, sizeof d->secret);
    d->sealed = 0;
}

void quic_keys_rest(struct quic_keys *keys) {
    rest_key(keys, &keys->send.key);
    rest_key(keys, &keys->recv.key);
    rest_key(keys, &keys->next);
    rest_key(keys, &keys->previous);
    rest_hp(keys, &keys->send);
    rest_hp(keys, &keys->recv);
}

/* Header protection comes last: where that is awake, all is. */
bool quic_keys_wake(struct quic_keys *keys) {
    return wake_key(keys, &keys->send.key) && wake_key(keys, &keys->recv.key) &&
           wake_key(keys, &keys->next) && wake_key(keys, &keys->previous) && wake_hp(keys, &keys->send) &&
           wake_hp(keys, &keys->recv);
}

bool quic_keys_install(struct quic_keys *keys, bool send, enum crypto_aead aead, const uint8_t *secret,
                       size_t len) {
    struct quic_direction *d = send ? &keys->send : &keys->recv;
    if (!keys->crypto->supports(aead) || len != crypto_hash_bytes(crypto_aead_hash(aead)))
        return false;
    clear_direction(keys, d);
    keys->aead = aead;
    memcpy(d->secret, secret, len);
    enum crypto_hash hash = crypto_aead_hash(aead);
    if (crypto_hkdf_expand_label(hash, secret, len, "quic hp", d->hp_raw, crypto_key_bytes(aead)) &&
        derive_key(keys, &d->key, secret) && wake_hp(keys, d))
        return true;
    clear_direction(keys, d);
    return false;
}

bool quic_keys_install_initial(struct quic_keys *keys, bool server, const struct quic_cid *dcid) {
    uint8_t initial[32], secret[32];
    bool ok = crypto_hkdf_extract(CRYPTO_SHA256, initial_salt_v1, sizeof initial_salt_v1, dcid->id, dcid->len,
                                  initial) &&
              crypto_hkdf_expand_label(CRYPTO_SHA256, initial, 32, "client in", secret, 32) &&
              quic_keys_install(keys, !server, CRYPTO_AES_128_GCM, secret, 32) &&
              crypto_hkdf_expand_label(CRYPTO_SHA256, initial, 32, "server in", secret, 32) &&
              quic_keys_install(keys, server, CRYPTO_AES_128_GCM, secret, 32);
    crypto_wipe(initial, sizeof initial);
    crypto_wipe(secret, sizeof secret);
    if (!ok)
        quic_keys_discard(keys);
    return ok;
}

void quic_keys_discard(struct quic_keys *keys) {
    clear_direction(keys, &keys->send);
    clear_direction(keys, &keys->recv);
}

static bool advance_secret(const struct quic_keys *keys, struct quic_direction *d) {
    enum crypto_hash hash = crypto_aead_hash(keys->aead);
    uint8_t next[CRYPTO_MAX_SECRET_BYTES];
    size_t len = crypto_hash_bytes(hash);
    if (!crypto_hkdf_expand_label(hash, d->secret, len, "quic ku", next, len))
        return false;
    memcpy(d->secret, next, len);
    crypto_wipe(next, sizeof next);
    return true;
}

bool quic_keys_prepare_next(struct quic_keys *keys) {
    struct quic_direction *d = &keys->recv;
    return advance_secret(keys, d) && derive_key(keys, &keys->next, d->secret);
}

bool quic_keys_rotate_receive(struct quic_keys *keys) {
    struct quic_direction *d = &keys->recv;
    clear_key(keys, &keys->previous);
    keys->previous = d->key;
    d->key = keys->next;
    keys->next = (struct quic_key){0};
    return quic_keys_prepare_next(keys);
}

bool quic_keys_rotate_send(struct quic_keys *keys) {
    struct quic_direction *d = &keys->send;
    struct quic_key fresh = {0};
    if (!advance_secret(keys, d) || !derive_key(keys, &fresh, d->secret))
        return false;
    clear_key(keys, &d->key);
    d->key = fresh;
    d->sealed = 0;
    return true;
}

void quic_keys_drop_previous(struct quic_keys *keys) {
    clear_key(keys, &keys->previous);
}

unsigned quic_unmask_header(uint8_t *packet, size_t pn_offset, const uint8_t mask[CRYPTO_MASK_BYTES],
                            uint64_t *truncated) {
    packet[0] ^= mask[0] & ((packet[0] & 0x80) ? 0x0f : 0x1f);
    unsigned pn_len = (packet[0] & 3u) + 1;
    uint64_t pn = 0;
    for (unsigned i = 0; i < pn_len; i++) {
        packet[pn_offset + i] ^= mask[1 + i];
        pn = pn << 8 | packet[pn_offset + i];
    }
    *truncated = pn;
    return pn_len;
}
