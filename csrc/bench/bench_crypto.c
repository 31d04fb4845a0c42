/* Nanoseconds per seal, open, header-protection mask and key operation, for each provider and AEAD of
 * csrc/crypto/.
 *
 *      bench_crypto [--json] [--ms N]
 *
 * One thread, in place, hot caches, a new nonce each time: the lower bound of what a packet costs. Each
 * figure is the median of several trials; the fastest and slowest stand beside it, because a shared machine
 * is noisy.
 */
#include "crypto/crypto.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Odd, so that there is a median; eleven short trials tell a noisy neighbour from the code. */
#define TRIALS 11

/* Whole time for one figure: long against the clock and a scheduler tick, short enough for 40 figures in 3 s.
 */
#define DEFAULT_MS 60

#define MAX_PROVIDERS 4
#define STATE_BYTES   4096
#define AAD_BYTES     17 /* Short header: flags, 12-byte connection ID, 4-byte packet number. */

static const size_t sizes_bytes[] = {1350, 8900}; /* Payloads on paths of 1400 and 9000 bytes. */
static const char *const aead_names[CRYPTO_AEAD_COUNT] = {"aes-128-gcm", "aes-256-gcm", "chacha20-poly1305"};

/* All that one measured call needs; `step` numbers the calls. */
struct work {
    const struct crypto_provider *provider;
    enum crypto_aead aead;
    void *aead_key, *hp_key;
    size_t len, batch;
    uint64_t step;
    uint8_t aad[AAD_BYTES];
    uint8_t secret[CRYPTO_MAX_SECRET_BYTES];
    uint8_t packet[9216], sealed[9216];
    uint8_t masks[CRYPTO_HP_BATCH][CRYPTO_MASK_BYTES];
    const uint8_t *samples[CRYPTO_HP_BATCH];
};

struct figure {
    double median_ns, fastest_ns, slowest_ns;
};

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

static void run_seal(struct work *w) {
    uint8_t nonce[CRYPTO_NONCE_BYTES] = {0};
    memcpy(nonce + 4, &w->step, sizeof(w->step));
    w->provider->seal(w->aead_key, nonce, w->aad, AAD_BYTES, w->packet, w->len, w->packet);
}

/* Out of place, so that each round opens the same good packet: what is timed includes the tag's success path.
 */
static void run_open(struct work *w) {
    static const uint8_t nonce[CRYPTO_NONCE_BYTES];
    if (!w->provider->open(w->aead_key, nonce, w->aad, AAD_BYTES, w->sealed, w->len + CRYPTO_TAG_BYTES,
                           w->packet)) {
        fprintf(stderr, "%s refuses its own packet\n", w->provider->name);
        exit(1);
    }
}

static void run_hp(struct work *w) {
    w->provider->hp_mask(w->hp_key, w->samples, w->masks, w->batch);
}

static void run_key(struct work *w) {
    if (!w->provider->aead_init(w->aead_key, w->aead, w->secret)) {
        exit(1);
    }
    w->provider->aead_clear(w->aead_key);
}

static void run_expand_label(struct work *w) {
    uint8_t out[CRYPTO_MAX_KEY_BYTES];
    if (!crypto_hkdf_expand_label(CRYPTO_SHA256, w->secret, 32, "quic key", out, 16)) {
        exit(1);
    }
}

static void run_hmac(struct work *w) {
    uint8_t out[32];
    if (!crypto_hmac_sha256(w->secret, 32, w->aad, AAD_BYTES, out)) {
        exit(1);
    }
}

static void run_retry_tag(struct work *w) {
    uint8_t tag[CRYPTO_TAG_BYTES];
    if (!crypto_retry_tag(w->packet, 100, tag)) {
        exit(1);
    }
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ns per unit, where one run does `units` of them. */
static struct figure measure(struct work *w, void (*run)(struct work *), size_t units, double ms) {
    const uint64_t trial_ns = (uint64_t)(ms * 1e6 / TRIALS);
    uint64_t rounds = 16, took = 0;
    for (;;) { /* Doubles until a trial is long enough; this also warms caches and branch predictors. */
        uint64_t start = now_ns();
        for (uint64_t i = 0; i < rounds; i++, w->step++) {
            run(w);
        }
        took = now_ns() - start;
        if (took >= trial_ns) {
            break;
        }
        rounds *= 2;
    }
    double ns[TRIALS];
    for (int t = 0; t < TRIALS; t++) {
        uint64_t start = now_ns();
        for (uint64_t i = 0; i < rounds; i++, w->step++) {
            run(w);
        }
        ns[t] = (double)(now_ns() - start) / (double)(rounds * units);
    }
    qsort(ns, TRIALS, sizeof(ns[0]), compare_doubles);
    return (struct figure){ns[TRIALS / 2], ns[0], ns[TRIALS - 1]};
}

static void report(bool json, const char *provider, const char *aead, const char *operation, size_t bytes,
                   size_t batch, struct figure f) {
    static bool first = true;
    if (json) {
        printf("%s\n  {\"provider\": \"%s\", \"aead\": \"%s\", \"operation\": \"%s\", \"bytes\": %zu, "
               "\"batch\": %zu, "
               "\"median_ns\": %.2f, \"fastest_ns\": %.2f, \"slowest_ns\": %.2f}",
               first ? "" : ",", provider, aead, operation, bytes, batch, f.median_ns, f.fastest_ns,
               f.slowest_ns);
        first = false;
        return;
    }
    char detail[32] = "";
    if (bytes != 0) {
        snprintf(detail, sizeof(detail), "%zu B", bytes);
    } else if (batch != 0) {
        snprintf(detail, sizeof(detail), "batch %zu", batch);
    }
    printf("%-9s %-18s %-13s %-9s %9.1f ns  (%.1f .. %.1f)", provider, aead, operation, detail, f.median_ns,
           f.fastest_ns, f.slowest_ns);
    if (bytes != 0) {
        printf("  %6.1f Gbit/s", (double)bytes * 8 / f.median_ns);
    }
    printf("\n");
}

static void bench_aead(struct work *w, bool json, double ms) {
    const char *provider = w->provider->name, *aead = aead_names[w->aead];
    if (!w->provider->aead_init(w->aead_key, w->aead, w->secret) ||
        !w->provider->hp_init(w->hp_key, w->aead, w->secret)) {
        fprintf(stderr, "%s: no key for %s\n", provider, aead);
        exit(1);
    }
    static const uint8_t nonce[CRYPTO_NONCE_BYTES];
    for (size_t i = 0; i < sizeof(sizes_bytes) / sizeof(sizes_bytes[0]); i++) {
        w->len = sizes_bytes[i];
        report(json, provider, aead, "seal", w->len, 0, measure(w, run_seal, 1, ms));
        w->provider->seal(w->aead_key, nonce, w->aad, AAD_BYTES, w->packet, w->len, w->sealed);
        report(json, provider, aead, "open", w->len, 0, measure(w, run_open, 1, ms));
    }
    static const size_t batches[] = {1, 46, CRYPTO_HP_BATCH}; /* 46: a 64 KiB train of 1400-byte packets. */
    for (size_t i = 0; i < sizeof(batches) / sizeof(batches[0]); i++) {
        w->batch = batches[i];
        report(json, provider, aead, "hp_mask", 0, w->batch, measure(w, run_hp, w->batch, ms));
    }
    w->provider->aead_clear(w->aead_key);
    w->provider->hp_clear(w->hp_key);
    report(json, provider, aead, "key", 0, 0, measure(w, run_key, 1, ms));
}

int main(int argc, char **argv) {
    bool json = false;
    double ms = DEFAULT_MS;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            json = true;
        } else if (strcmp(argv[i], "--ms") == 0 && i + 1 < argc && atof(argv[i + 1]) > 0) {
            ms = atof(argv[++i]);
        } else {
            fprintf(stderr,
                    "usage: bench_crypto [--json] [--ms N]\n  --ms N  milliseconds for each figure (%d)\n",
                    DEFAULT_MS);
            return 2;
        }
    }
    static _Alignas(64) uint8_t aead_key[STATE_BYTES], hp_key[STATE_BYTES];
    static struct work w;
    w.aead_key = aead_key;
    w.hp_key = hp_key;
    memset(w.secret, 0x42, sizeof(w.secret));
    for (size_t i = 0; i < CRYPTO_HP_BATCH; i++) {
        w.samples[i] = w.packet + i * 64;
    }
    const struct crypto_provider *providers[MAX_PROVIDERS];
    size_t count = crypto_providers(providers, MAX_PROVIDERS);
    if (json) {
        printf("[");
    }
    for (size_t p = 0; p < count && p < MAX_PROVIDERS; p++) {
        w.provider = providers[p];
        if (w.provider->aead_bytes > STATE_BYTES || w.provider->hp_bytes > STATE_BYTES) {
            fprintf(stderr, "%s: keys of %zu bytes do not fit\n", w.provider->name, w.provider->aead_bytes);
            return 1;
        }
        for (int aead = 0; aead < CRYPTO_AEAD_COUNT; aead++) {
            w.aead = (enum crypto_aead)aead;
            if (w.provider->supports(w.aead)) {
                bench_aead(&w, json, ms);
            }
        }
    }
    report(json, "libcrypto", "sha256", "expand_label", 0, 0, measure(&w, run_expand_label, 1, ms));
    report(json, "libcrypto", "sha256", "hmac", 0, 0, measure(&w, run_hmac, 1, ms));
    report(json, "libcrypto", "aes-128-gcm", "retry_tag", 0, 0, measure(&w, run_retry_tag, 1, ms));
    if (json) {
        printf("\n]\n");
    }
    return 0;
}
