/* What the fuzz harnesses share: the entry point, a failing check, and inputs copied so that a sanitizer sees
 * a read past their end.
 *
 *      clang-16 -fsanitize=fuzzer,address,undefined -Icsrc -Itests/fuzz tests/fuzz/fuzz_X.c SOURCES
 *      make_seeds CORPUS && ./fuzz_X CORPUS/X
 */
#ifndef STOQ_TESTS_FUZZ_H
#define STOQ_TESTS_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* A macro for the condition's text; abort is what libFuzzer takes for a finding. */
#define EXPECT(cond) fuzz_expect((cond), #cond, __FILE__, __LINE__)

static inline void fuzz_expect(int ok, const char *text, const char *file, int line) {
    if (!ok) {
        fprintf(stderr, "%s:%d: %s\n", file, line, text);
        abort();
    }
}

/* A copy with an unaligned first byte, whose end is the allocation's. Give the result to fuzz_release. */
static inline uint8_t *fuzz_copy(const uint8_t *data, size_t len) {
    uint8_t *p = malloc(len + 1);
    EXPECT(p != NULL);
    if (len > 0)
        memcpy(p + 1, data, len);
    return p + 1;
}

static inline void fuzz_release(uint8_t *copy) {
    free(copy - 1);
}

/* Takes `n` bytes off the front of the input as a number; zero bits where it is short. */
static inline uint64_t fuzz_take(const uint8_t **data, size_t *len, size_t n) {
    uint64_t v = 0;
    for (; n > 0 && *len > 0; n--, (*len)--)
        v = v << 8 | *(*data)++;
    return v;
}

#endif
