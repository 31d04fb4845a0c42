/* The C tests' frame: a table of test functions, a few checks, one line of result per test.
 *
 *      static void adds(void) { CHECK_EQ(1 + 1, 2); }
 *      static const struct check_case cases[] = {{"adds", adds}};
 *      int main(int argc, char **argv) { return check_main(argc, argv, cases, sizeof(cases) /
 * sizeof(cases[0])); }
 *
 * Prints "ok NAME", or "FAIL file:line: what" for each failed check and "FAIL NAME"; the exit code is 0 only
 * when all passed and at least one ran. An argument selects the tests whose name contains it.
 *
 * CHECK and its kin count the failure and go on; REQUIRE ends the test, for what the next line relies on.
 * Random tests draw from check_rand(), seeded anew for each test; CHECK_SEED=n in the environment chooses the
 * seed, and a failing test prints it.
 *
 * Include in one file per test program: the state is static. Single-threaded.
 */
#ifndef STOQ_TESTS_CHECK_H
#define STOQ_TESTS_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct check_case {
    const char *name;
    void (*run)(void);
};

/* A broken loop would print a line per round: after this many, a test's failures are only counted. */
#define CHECK_MAX_PRINTED 10

static struct {
    unsigned failures; /* In the test that is running. */
    uint64_t seed;
    uint64_t random_state;
    char note[160];
    jmp_buf leave;
} check_state;

/* Said behind the message of every failure until changed or the test ends: which case of a loop this is. */
__attribute__((format(printf, 1, 2), unused)) static void check_note(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(check_state.note, sizeof(check_state.note), format, args);
    va_end(args);
}

__attribute__((format(printf, 3, 4))) static void check_failed(const char *file, int line, const char *format,
                                                               ...) {
    check_state.failures++;
    if (check_state.failures > CHECK_MAX_PRINTED) {
        return;
    }
    va_list args;
    va_start(args, format);
    printf("FAIL %s:%d: ", file, line);
    vprintf(format, args);
    printf(check_state.note[0] != '\0' ? " [%s]\n" : "%s\n", check_state.note);
    va_end(args);
}

__attribute__((unused)) static inline bool check_that(bool ok, const char *file, int line, const char *text) {
    if (!ok) {
        check_failed(file, line, "%s", text);
    }
    return ok;
}

__attribute__((unused)) static inline bool check_equal(long long a, long long b, const char *file, int line,
                                                       const char *text) {
    if (a != b) {
        check_failed(file, line, "%s: %lld is not %lld", text, a, b);
    }
    return a == b;
}

/* memcmp that says where: offset and both bytes of the first difference. */
__attribute__((unused)) static bool check_bytes(const void *a, const void *b, size_t len, const char *file,
                                                int line, const char *text) {
    const uint8_t *x = (const uint8_t *)a, *y = (const uint8_t *)b;
    for (size_t i = 0; i < len; i++) {
        if (x[i] != y[i]) {
            check_failed(file, line, "%s: byte %zu of %zu is %02x, not %02x", text, i, len, x[i], y[i]);
            return false;
        }
    }
    return true;
}

/* Macros, because they take the condition's text and the caller's line. Each is true when it passed. */
#define CHECK(cond)          check_that((cond), __FILE__, __LINE__, #cond)
#define CHECK_EQ(a, b)       check_equal((long long)(a), (long long)(b), __FILE__, __LINE__, #a " == " #b)
#define CHECK_MEM(a, b, len) check_bytes((a), (b), (len), __FILE__, __LINE__, #a " == " #b)
#define REQUIRE(cond)        (CHECK(cond) ? (void)0 : longjmp(check_state.leave, 1))

/* splitmix64: 64 good bits from one addition and three multiply-xors; no more is needed of a test. */
__attribute__((unused)) static uint64_t check_rand(void) {
    uint64_t z = check_state.random_state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

__attribute__((unused)) static void check_rand_bytes(void *out, size_t len) {
    uint8_t *p = (uint8_t *)out;
    for (size_t i = 0; i < len; i++) {
        p[i] = (uint8_t)check_rand();
    }
}

/* True when the test passed. */
static bool check_run(const struct check_case *test) {
    check_state.failures = 0;
    check_state.random_state = check_state.seed;
    check_state.note[0] = '\0';
    if (setjmp(check_state.leave) == 0) {
        test->run();
    }
    if (check_state.failures == 0) {
        printf("ok %s\n", test->name);
    } else {
        printf("FAIL %s: %u failed, CHECK_SEED=%llu\n", test->name, check_state.failures,
               (unsigned long long)check_state.seed);
    }
    fflush(stdout); /* So that a crash in the next test does not swallow this line. */
    return check_state.failures == 0;
}

static int check_main(int argc, char **argv, const struct check_case *cases, size_t count) {
    const char *seed = getenv("CHECK_SEED");
    check_state.seed = seed != NULL ? strtoull(seed, NULL, 0) : 1; /* Fixed: a run can be repeated. */
    size_t ran = 0, failed = 0;
    for (size_t i = 0; i < count; i++) {
        if (argc > 1 && strstr(cases[i].name, argv[1]) == NULL) {
            continue;
        }
        ran++;
        failed += check_run(&cases[i]) ? 0 : 1;
    }
    printf("%zu tests, %zu failed\n", ran, failed);
    return ran != 0 && failed == 0 ? 0 : 1;
}

#endif
