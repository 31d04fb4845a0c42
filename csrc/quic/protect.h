/* Packet protection: keys of one encryption level, RFC 9001 section 5, and key update, section 6.
 *
 * 1-RTT keys rotate; header-protection keys do not. For receiving, three generations can be alive:
 *
 *      previous  ◀─(kept 3 PTO for reordered packets)─  current  ◀─(made ahead, so that a peer's update costs
 * no derivation that timing could show)─  next
 *
 * A key is 44 bytes; what a provider expands it to (round keys, powers of the hash key) is a kilobyte and
 * more. So keys can rest: what was expanded is given back, the keys themselves stay. A direction wakes as a
 * whole, `next` with it and whatever packet it was that woke it: the time that takes says nothing about the
 * packet's key phase (RFC 9001 sections 6.3, 9.5).
 */
#ifndef STOQ_QUIC_PROTECT_H
#define STOQ_QUIC_PROTECT_H

#include <stdbool.h>
#include <stdint.h>

#include "packet.h"

/* One AEAD key with its IV. */
struct quic_key {
    void *aead; /* Provider state from host->alloc; NULL: resting, or no key at all. */
    uint8_t iv[CRYPTO_NONCE_BYTES];
    uint8_t raw[CRYPTO_MAX_KEY_BYTES];
    bool there;
};

/* One direction of one level. */
struct quic_direction {
    struct quic_key key;
    void *hp; /* Not NULL: the whole direction is awake. */
    uint8_t hp_raw[CRYPTO_MAX_KEY_BYTES];
    uint8_t secret[CRYPTO_MAX_SECRET_BYTES]; /* Of `key` (sending) or of `next` once that is made. */
    uint64_t sealed;                         /* Packets sealed with `key`. */
};

struct quic_keys {
    const struct crypto_provider *crypto;
    const struct quic_host *host;
    enum crypto_aead aead;
    struct quic_direction send, recv;
    struct quic_key next, previous; /* 1-RTT receiving. */
};

static inline bool quic_can_send(const struct quic_keys *k) {
    return k->send.key.there;
}
static inline bool quic_can_receive(const struct quic_keys *k) {
    return k->recv.key.there;
}

/* Derive key, IV and header-protection key from a traffic secret. False: no memory or unsupported AEAD. */
bool quic_keys_install(struct quic_keys *keys, bool send, enum crypto_aead aead, const uint8_t *secret,
                       size_t len);
/* Initial keys from the client's destination connection id, RFC 9001 section 5.2. */
bool quic_keys_install_initial(struct quic_keys *keys, bool server, const struct quic_cid *dcid);
/* Wipe and give back everything. */
void quic_keys_discard(struct quic_keys *keys);
/* Make `next` (1-RTT) from the current secret. */
bool quic_keys_prepare_next(struct quic_keys *keys);
/* The peer updated: next becomes current, current becomes previous; a new next is made. */
bool quic_keys_rotate_receive(struct quic_keys *keys);
bool quic_keys_rotate_send(struct quic_keys *keys);
void quic_keys_drop_previous(struct quic_keys *keys);
/* Give back what keys were expanded to; they open and seal nothing before they are woken. */
void quic_keys_rest(struct quic_keys *keys);
/* Expand what is not. False: no memory, try again later. */
bool quic_keys_wake(struct quic_keys *keys);

/* RFC 9001 section 5.3. In registers, and written at once in two pieces: to change what was just written
 * would wait until all stores before it, a packet's copy perhaps, have reached the cache. */
static inline void quic_nonce(uint8_t nonce[CRYPTO_NONCE_BYTES], const uint8_t iv[CRYPTO_NONCE_BYTES],
                              uint64_t pn) {
    uint64_t first, high;
    uint32_t last, low;
    __builtin_memcpy(&first, iv, 8);
    __builtin_memcpy(&last, iv + 8, 4);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    high = (uint64_t)__builtin_bswap32((uint32_t)(pn >> 32)) << 32;
    low = __builtin_bswap32((uint32_t)pn);
#else
    high = pn >> 32;
    low = (uint32_t)pn;
#endif
    first ^= high;
    last ^= low;
    __builtin_memcpy(nonce, &first, 8);
    __builtin_memcpy(nonce + 8, &last, 4);
}

/* Remove header protection with a mask: returns the packet number's length and its truncated value. */
unsigned quic_unmask_header(uint8_t *packet, size_t pn_offset, const uint8_t mask[CRYPTO_MASK_BYTES],
                            uint64_t *truncated);
/* Put header protection on a sealed packet. */
static inline void quic_mask_header(uint8_t *packet, size_t pn_offset,
                                    const uint8_t mask[CRYPTO_MASK_BYTES]) {
    unsigned pn_len = (packet[0] & 3u) + 1;
    packet[0] ^= mask[0] & ((packet[0] & 0x80) ? 0x0f : 0x1f);
    for (unsigned i = 0; i < pn_len; i++)
        packet[pn_offset + i] ^= mask[1 + i];
}

#endif
