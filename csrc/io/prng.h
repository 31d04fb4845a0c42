/* A small seeded generator for simulation and tests: xoshiro256** (Blackman, Vigna) with its state drawn by
 * splitmix64. Never for secrets: those come from the kernel (getrandom). Owns nothing; header only. */
#ifndef STOQ_IO_PRNG_H
#define STOQ_IO_PRNG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct prng {
    uint64_t s[4];
};

/* One step of splitmix64: also a good mixing function for a counter or a seed. */
static inline uint64_t prng_mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio: the constants of this function are its definition. */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline void prng_seed(struct prng *p, uint64_t seed) {
    for (int i = 0; i < 4; i++)
        p->s[i] = prng_mix(seed + (uint64_t)i * 0x9e3779b97f4a7c15u);
}

static inline uint64_t prng_rotl(uint64_t x, int k) {
    return x << k | x >> (64 - k);
}

static inline uint64_t prng_next(struct prng *p) {
    uint64_t result = prng_rotl(p->s[1] * 5, 7) * 9, t = p->s[1] << 17;
    p->s[2] ^= p->s[0];
    p->s[3] ^= p->s[1];
    p->s[1] ^= p->s[2];
    p->s[0] ^= p->s[3];
    p->s[2] ^= t;
    p->s[3] = prng_rotl(p->s[3], 45);
    return result;
}

/* 0 <= result < n; 0 when n is 0. The bias of the modulus is below 2^-32 for the ranges used here. */
static inline uint64_t prng_below(struct prng *p, uint64_t n) {
    return n ? prng_next(p) % n : 0;
}

/* lo <= result <= hi. */
static inline uint64_t prng_range(struct prng *p, uint64_t lo, uint64_t hi) {
    return lo + prng_below(p, hi - lo + 1);
}

/* True with probability ppm / 1e6. Draws nothing for 0, so that a perfect link costs no randomness. */
static inline bool prng_chance(struct prng *p, uint32_t ppm) {
    return ppm && prng_below(p, 1000000) < ppm;
}

static inline void prng_fill(struct prng *p, uint8_t *out, size_t len) {
    for (; len >= 8; out += 8, len -= 8) {
        uint64_t v = prng_next(p);
        memcpy(out, &v, 8);
    }
    if (len) {
        uint64_t v = prng_next(p);
        memcpy(out, &v, len);
    }
}

#endif
