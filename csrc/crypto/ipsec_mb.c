/* The fast provider: AEADs (RFC 9001 section 5.3) from Intel IPsec-MB's direct calls, header protection
 * (section 5.4) with AES-NI over IPsec-MB's key schedule and with a small vector ChaCha20 (RFC 8439
 * section 2.3). Compiled only where the library is (STOQ_HAVE_IPSEC_MB; x86-64).
 *
 * Owns one IMB_MGR for the process. It is made on first use and from then on only read: the direct calls take
 * nothing from it but function pointers chosen for this CPU, so threads share it without locks.
 *
 * AEAD key state:      | AES round keys | GHASH powers (how many: this CPU's code decides) | tail |
 *                      | ChaCha20 key   | unused                                           | tail |
 * Header protection:   | AES round keys or ChaCha20 key | aead |
 */
#ifdef STOQ_HAVE_IPSEC_MB

#include "crypto/internal.h"

#include <immintrin.h>
#include <intel-ipsec-mb.h>
#include <pthread.h>
#include <string.h>

#define AES_MAX_ROUND_KEYS 15 /* AES-256: 14 rounds and the whitening key, FIPS 197 section 5.2. */
#define AES_BLOCK_BYTES    16
#define CHACHA_KEY_WORDS   8
#define CHACHA_LANES       4 /* One 128-bit register per state word; every x86-64 CPU has those. */

/* Stands behind the part of gcm_key_data that this CPU's code uses. */
struct aead_tail {
    uint32_t aead; /* enum crypto_aead */
};

struct hp_key {
    union {
        uint8_t round_keys[AES_MAX_ROUND_KEYS][AES_BLOCK_BYTES];
        uint32_t chacha_key[CHACHA_KEY_WORDS];
    };
    uint32_t aead; /* enum crypto_aead */
};

#define HP_STATE_BYTES 256
_Static_assert(sizeof(struct hp_key) <= HP_STATE_BYTES, "header-protection key fits its state");

/* All of it written under make_once only, read-only afterwards. */
static pthread_once_t make_once = PTHREAD_ONCE_INIT;
static IMB_MGR *manager;
static size_t tail_offset_bytes;
static struct crypto_provider ipsec_mb_provider; /* name == NULL: not usable on this CPU. */

static const struct aead_tail *tail_of(const void *mem) {
    return (const struct aead_tail *)((const uint8_t *)mem + tail_offset_bytes);
}

static bool ipsec_mb_supports(enum crypto_aead aead) {
    return (unsigned)aead < CRYPTO_AEAD_COUNT;
}

static bool ipsec_mb_aead_init(void *mem, enum crypto_aead aead, const uint8_t *key) {
    struct gcm_key_data *gcm = mem;
    switch (aead) {
    case CRYPTO_AES_128_GCM:
        IMB_AES128_GCM_PRE(manager, key, gcm);
        break;
    case CRYPTO_AES_256_GCM:
        IMB_AES256_GCM_PRE(manager, key, gcm);
        break;
    case CRYPTO_CHACHA20_POLY1305:
        memcpy(mem, key, CHACHA_KEY_WORDS * sizeof(uint32_t));
        break;
    default:
        return false;
    }
    struct aead_tail *tail = (struct aead_tail *)((uint8_t *)mem + tail_offset_bytes);
    tail->aead = (uint32_t)aead;
    return true;
}

static void ipsec_mb_aead_clear(void *mem) {
    crypto_wipe(mem, ipsec_mb_provider.aead_bytes);
}

/* The contexts below stay on the stack unwiped: the next packet overwrites them, and whoever can read this
 * stack can read the keys themselves. */

static void ipsec_mb_seal(const void *mem, const uint8_t nonce[CRYPTO_NONCE_BYTES], const uint8_t *aad,
                          size_t aad_len, const uint8_t *in, size_t len, uint8_t *out) {
    struct gcm_context_data gcm;
    struct chacha20_poly1305_context_data chacha;
    switch (tail_of(mem)->aead) {
    case CRYPTO_AES_128_GCM:
        IMB_AES128_GCM_ENC(manager, mem, &gcm, out, in, len, nonce, aad, aad_len, out + len,
                           CRYPTO_TAG_BYTES);
        break;
    case CRYPTO_AES_256_GCM:
        IMB_AES256_GCM_ENC(manager, mem, &gcm, out, in, len, nonce, aad, aad_len, out + len,
                           CRYPTO_TAG_BYTES);
        break;
    default:
        IMB_CHACHA20_POLY1305_INIT(manager, mem, &chacha, nonce, aad, aad_len);
        IMB_CHACHA20_POLY1305_ENC_UPDATE(manager, mem, &chacha, out, in, len);
        IMB_CHACHA20_POLY1305_ENC_FINALIZE(manager, &chacha, out + len, CRYPTO_TAG_BYTES);
        break;
    }
}

/* Two words XORed and ORed: no branch depends on where tags differ. */
static bool tags_equal(const uint8_t *a, const uint8_t *b) {
    uint64_t x[2], y[2];
    memcpy(x, a, CRYPTO_TAG_BYTES);
    memcpy(y, b, CRYPTO_TAG_BYTES);
    return ((x[0] ^ y[0]) | (x[1] ^ y[1])) == 0;
}

static bool ipsec_mb_open(const void *mem, const uint8_t nonce[CRYPTO_NONCE_BYTES], const uint8_t *aad,
                          size_t aad_len, const uint8_t *in, size_t len, uint8_t *out) {
    if (len < CRYPTO_TAG_BYTES) {
        return false;
    }
    len -= CRYPTO_TAG_BYTES;
    struct gcm_context_data gcm;
    struct chacha20_poly1305_context_data chacha;
    uint8_t tag[CRYPTO_TAG_BYTES];
    switch (tail_of(mem)->aead) {
    case CRYPTO_AES_128_GCM:
        IMB_AES128_GCM_DEC(manager, mem, &gcm, out, in, len, nonce, aad, aad_len, tag, sizeof(tag));
        break;
    case CRYPTO_AES_256_GCM:
        IMB_AES256_GCM_DEC(manager, mem, &gcm, out, in, len, nonce, aad, aad_len, tag, sizeof(tag));
        break;
    default:
        IMB_CHACHA20_POLY1305_INIT(manager, mem, &chacha, nonce, aad, aad_len);
        IMB_CHACHA20_POLY1305_DEC_UPDATE(manager, mem, &chacha, out, in, len);
        IMB_CHACHA20_POLY1305_DEC_FINALIZE(manager, &chacha, tag, sizeof(tag));
        break;
    }
    return tags_equal(tag, in + len);
}

static bool ipsec_mb_hp_init(void *mem, enum crypto_aead aead, const uint8_t *key) {
    struct hp_key *k = mem;
    /* The key expansion also writes decryption keys, which header protection never needs. */
    _Alignas(16) uint8_t decrypt_keys[AES_MAX_ROUND_KEYS * AES_BLOCK_BYTES];
    switch (aead) {
    case CRYPTO_AES_128_GCM:
        IMB_AES_KEYEXP_128(manager, key, k->round_keys, decrypt_keys);
        break;
    case CRYPTO_AES_256_GCM:
        IMB_AES_KEYEXP_256(manager, key, k->round_keys, decrypt_keys);
        break;
    case CRYPTO_CHACHA20_POLY1305:
        memcpy(k->chacha_key, key, sizeof(k->chacha_key)); /* Little-endian words on a little-endian CPU. */
        break;
    default:
        return false;
    }
    k->aead = (uint32_t)aead;
    crypto_wipe(decrypt_keys, sizeof(decrypt_keys));
    return true;
}

static void ipsec_mb_hp_clear(void *mem) {
    crypto_wipe(mem, HP_STATE_BYTES);
}

static inline __m128i load_block(const uint8_t *p) {
    return _mm_loadu_si128((const __m128i *)p);
}

static inline void store_mask(uint8_t mask[CRYPTO_MASK_BYTES], __m128i block) {
    uint64_t low = (uint64_t)_mm_cvtsi128_si64(block);
    memcpy(mask, &low, CRYPTO_MASK_BYTES);
}

/* Eight blocks in flight hide the latency of AESENC (3-4 cycles, one or two started a cycle) on every CPU
 * since Skylake and Zen. Written out, because gcc -O2 does not unroll loops over arrays of registers. */
__attribute__((target("aes"))) static void aes_masks_8(const struct hp_key *k, int rounds,
                                                       const uint8_t *const s[8],
                                                       uint8_t masks[][CRYPTO_MASK_BYTES]) {
    __m128i key = load_block(k->round_keys[0]);
    __m128i b0 = _mm_xor_si128(load_block(s[0]), key), b1 = _mm_xor_si128(load_block(s[1]), key);
    __m128i b2 = _mm_xor_si128(load_block(s[2]), key), b3 = _mm_xor_si128(load_block(s[3]), key);
    __m128i b4 = _mm_xor_si128(load_block(s[4]), key), b5 = _mm_xor_si128(load_block(s[5]), key);
    __m128i b6 = _mm_xor_si128(load_block(s[6]), key), b7 = _mm_xor_si128(load_block(s[7]), key);
    for (int r = 1; r < rounds; r++) {
        key = load_block(k->round_keys[r]);
        b0 = _mm_aesenc_si128(b0, key), b1 = _mm_aesenc_si128(b1, key);
        b2 = _mm_aesenc_si128(b2, key), b3 = _mm_aesenc_si128(b3, key);
        b4 = _mm_aesenc_si128(b4, key), b5 = _mm_aesenc_si128(b5, key);
        b6 = _mm_aesenc_si128(b6, key), b7 = _mm_aesenc_si128(b7, key);
    }
    key = load_block(k->round_keys[rounds]);
    store_mask(masks[0], _mm_aesenclast_si128(b0, key));
    store_mask(masks[1], _mm_aesenclast_si128(b1, key));
    store_mask(masks[2], _mm_aesenclast_si128(b2, key));
    store_mask(masks[3], _mm_aesenclast_si128(b3, key));
    store_mask(masks[4], _mm_aesenclast_si128(b4, key));
    store_mask(masks[5], _mm_aesenclast_si128(b5, key));
    store_mask(masks[6], _mm_aesenclast_si128(b6, key));
    store_mask(masks[7], _mm_aesenclast_si128(b7, key));
}

__attribute__((target("aes"))) static void
aes_mask_1(const struct hp_key *k, int rounds, const uint8_t *sample, uint8_t mask[CRYPTO_MASK_BYTES]) {
    __m128i b = _mm_xor_si128(load_block(sample), load_block(k->round_keys[0]));
    for (int r = 1; r < rounds; r++) {
        b = _mm_aesenc_si128(b, load_block(k->round_keys[r]));
    }
    store_mask(mask, _mm_aesenclast_si128(b, load_block(k->round_keys[rounds])));
}

static void aes_masks(const struct hp_key *k, const uint8_t *const samples[],
                      uint8_t masks[][CRYPTO_MASK_BYTES], size_t n) {
    int rounds = k->aead == CRYPTO_AES_128_GCM ? 10 : 14;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        aes_masks_8(k, rounds, samples + i, masks + i);
    }
    if (n - i == 1) {
        aes_mask_1(k, rounds, samples[i], masks[i]);
    } else if (n - i > 1) {
        /* Eight blocks together cost as much as two apart: fill up with the first sample and drop the
         * surplus. */
        const uint8_t *rest[8];
        uint8_t rest_masks[8][CRYPTO_MASK_BYTES];
        for (size_t j = 0; j < 8; j++) {
            rest[j] = samples[i + j < n ? i + j : i];
        }
        aes_masks_8(k, rounds, rest, rest_masks);
        memcpy(masks[i], rest_masks, (n - i) * CRYPTO_MASK_BYTES);
    }
}

typedef uint32_t lanes __attribute__((vector_size(CHACHA_LANES * sizeof(uint32_t))));

static inline lanes rotate_left(lanes x, int bits) {
    return (x << bits) | (x >> (32 - bits));
}

static inline void quarter_round(lanes *a, lanes *b, lanes *c, lanes *d) {
    *a += *b, *d = rotate_left(*d ^ *a, 16);
    *c += *d, *b = rotate_left(*b ^ *c, 12);
    *a += *b, *d = rotate_left(*d ^ *a, 8);
    *c += *d, *b = rotate_left(*b ^ *c, 7);
}

/* ChaCha20 block function, one sample per lane. RFC 9001 section 5.4.4: the sample is block counter and
 * nonce, that is state words 12 to 15; the mask is the start of the key stream, that is words 0 and 1. */
static void chacha_masks_4(const struct hp_key *k, const uint8_t *const samples[CHACHA_LANES],
                           uint8_t masks[][CRYPTO_MASK_BYTES], size_t n) {
    static const uint32_t constants[4] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574}; /* RFC 8439 2.3 */
    lanes s[16], first[2];
    for (size_t w = 0; w < 4; w++) {
        s[w] = (lanes){constants[w], constants[w], constants[w], constants[w]};
    }
    for (size_t w = 0; w < CHACHA_KEY_WORDS; w++) {
        uint32_t word = k->chacha_key[w];
        s[4 + w] = (lanes){word, word, word, word};
    }
    for (size_t lane = 0; lane < CHACHA_LANES; lane++) {
        uint32_t words[4];
        memcpy(words, samples[lane], CRYPTO_SAMPLE_BYTES);
        for (size_t w = 0; w < 4; w++) {
            s[12 + w][lane] = words[w];
        }
    }
    first[0] = s[0];
    first[1] = s[1];
    for (int double_round = 0; double_round < 10; double_round++) {
        quarter_round(&s[0], &s[4], &s[8], &s[12]);
        quarter_round(&s[1], &s[5], &s[9], &s[13]);
        quarter_round(&s[2], &s[6], &s[10], &s[14]);
        quarter_round(&s[3], &s[7], &s[11], &s[15]);
        quarter_round(&s[0], &s[5], &s[10], &s[15]);
        quarter_round(&s[1], &s[6], &s[11], &s[12]);
        quarter_round(&s[2], &s[7], &s[8], &s[13]);
        quarter_round(&s[3], &s[4], &s[9], &s[14]);
    }
    s[0] += first[0];
    s[1] += first[1];
    for (size_t lane = 0; lane < n; lane++) {
        uint32_t words[2] = {s[0][lane], s[1][lane]};
        memcpy(masks[lane], words, CRYPTO_MASK_BYTES);
    }
}

static void chacha_masks(const struct hp_key *k, const uint8_t *const samples[],
                         uint8_t masks[][CRYPTO_MASK_BYTES], size_t n) {
    for (size_t i = 0; i < n; i += CHACHA_LANES) {
        const uint8_t *group[CHACHA_LANES];
        for (size_t lane = 0; lane < CHACHA_LANES; lane++) {
            group[lane] = samples[i + lane < n ? i + lane : i]; /* Surplus lanes repeat a sample. */
        }
        chacha_masks_4(k, group, masks + i, n - i < CHACHA_LANES ? n - i : CHACHA_LANES);
    }
}

static void ipsec_mb_hp_mask(const void *mem, const uint8_t *const samples[],
                             uint8_t masks[][CRYPTO_MASK_BYTES], size_t n) {
    const struct hp_key *k = mem;
    if (k->aead == CRYPTO_CHACHA20_POLY1305) {
        chacha_masks(k, samples, masks, n);
    } else {
        aes_masks(k, samples, masks, n);
    }
}

/* How much of gcm_key_data this CPU's code uses: 368 bytes with AVX2 or AVX-512, 496 with SSE or AVX, all
 * 1008 only with VAES. Connections keep several keys each, so it is worth knowing; the library does not tell,
 * so expand one key over two fills: a byte that kept both is not used. */
static size_t gcm_used_bytes(IMB_MGR *mb) {
    static const uint8_t key[CRYPTO_MAX_KEY_BYTES];
    struct gcm_key_data expanded[2];
    size_t used = 0;
    for (int bits = 128; bits <= 256; bits += 128) {
        for (int i = 0; i < 2; i++) {
            memset(&expanded[i], i == 0 ? 0x00 : 0xff, sizeof(expanded[i]));
            if (bits == 128) {
                IMB_AES128_GCM_PRE(mb, key, &expanded[i]);
            } else {
                IMB_AES256_GCM_PRE(mb, key, &expanded[i]);
            }
        }
        const uint8_t *zeros = (const uint8_t *)&expanded[0], *ones = (const uint8_t *)&expanded[1];
        for (size_t i = used; i < sizeof(expanded[0]); i++) {
            if (zeros[i] != 0x00 || ones[i] != 0xff) {
                used = i + 1;
            }
        }
    }
    return used;
}

static size_t round_up(size_t bytes, size_t unit) {
    return (bytes + unit - 1) / unit * unit;
}

static void make_provider(void) {
    IMB_MGR *mb = alloc_mb_mgr(0);
    if (mb == NULL) {
        return;
    }
    IMB_ARCH arch;
    init_mb_mgr_auto(mb, &arch);
    /* AES-NI: our header protection uses it, and emulation in the library is slower than libcrypto. The
     * library tests itself against known answers when it is made; a machine that fails must not encrypt with
     * it. */
    const uint64_t needed = IMB_FEATURE_AESNI | IMB_FEATURE_PCLMULQDQ | IMB_FEATURE_SELF_TEST_PASS;
    if (imb_get_errno(mb) != 0 || (mb->features & needed) != needed) {
        free_mb_mgr(mb);
        return;
    }
    manager = mb;
    tail_offset_bytes = round_up(gcm_used_bytes(mb), _Alignof(struct aead_tail));
    ipsec_mb_provider = (struct crypto_provider){
        .name = "ipsec-mb",
        .aead_bytes = round_up(tail_offset_bytes + sizeof(struct aead_tail), CRYPTO_STATE_ALIGN_BYTES),
        .hp_bytes = HP_STATE_BYTES,
        .supports = ipsec_mb_supports,
        .aead_init = ipsec_mb_aead_init,
        .aead_clear = ipsec_mb_aead_clear,
        .seal = ipsec_mb_seal,
        .open = ipsec_mb_open,
        .hp_init = ipsec_mb_hp_init,
        .hp_clear = ipsec_mb_hp_clear,
        .hp_mask = ipsec_mb_hp_mask,
    };
}

const struct crypto_provider *crypto_ipsec_mb_provider(void) {
    /* pthread_once orders make_provider's writes before every later read, on any thread. */
    pthread_once(&make_once, make_provider);
    return ipsec_mb_provider.name != NULL ? &ipsec_mb_provider : NULL;
}

#else

typedef int stoq_ipsec_mb_not_built; /* ISO C forbids an empty translation unit. */

#endif
