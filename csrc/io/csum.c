/* See csum.h. One loop of 32-bit words added into 64-bit sums, written with vectors of the compiler's; built
 * twice on x86, and the processor chooses. */
#include "csum.h"

#include <string.h>

/* Four words of 64 bits: a register of AVX2, two of SSE2 or NEON. Unaligned, for the data may lie anywhere.
 */
typedef uint64_t vector __attribute__((vector_size(32), aligned(1), may_alias));

/* Each vector word is added as two halves of 32 bits, so that no carry is lost within 2^32 rounds. Two sums
 * of each half hide the latency of the additions. */
static inline __attribute__((always_inline)) uint64_t sum_words(const uint8_t *p, size_t len) {
    vector low[2] = {{0}}, high[2] = {{0}};
    for (; len >= 2 * sizeof(vector); p += 2 * sizeof(vector), len -= 2 * sizeof(vector)) {
        const vector *v = (const vector *)(const void *)p;
        low[0] += v[0] & 0xffffffff;
        high[0] += v[0] >> 32;
        low[1] += v[1] & 0xffffffff;
        high[1] += v[1] >> 32;
    }
    vector lanes = low[0] + high[0] + low[1] + high[1];
    uint64_t sum = lanes[0] + lanes[1] + lanes[2] + lanes[3];
    for (; len >= 4; p += 4, len -= 4) {
        uint32_t word;
        memcpy(&word, p, sizeof word);
        sum += word;
    }
    if (len > 0) {
        uint32_t word = 0;
        memcpy(&word, p, len);
        sum += word;
    }
    return sum;
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static uint64_t sum_avx2(const uint8_t *p, size_t len) {
    return sum_words(p, len);
}
#endif

uint64_t csum_partial(const void *data, size_t len) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) { /* A load and a test: the processor was asked at start-up. */
        return sum_avx2(data, len);
    }
#endif
    return sum_words(data, len);
}
