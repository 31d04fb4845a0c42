/* Tells AddressSanitizer which memory of our own pools is not in use, so that it finds use after free and
 * overruns there as it does on the heap. Nothing in builds without it. */
#ifndef STOQ_WORKER_POISON_H
#define STOQ_WORKER_POISON_H

#include <stddef.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POISON_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(POISON_ASAN)
#define POISON_ASAN 1
#endif

#ifdef POISON_ASAN
#include <sanitizer/asan_interface.h>
#endif

/* Any access from now on is an error. */
static inline void poison(const void *p, size_t bytes) {
#ifdef POISON_ASAN
    __asan_poison_memory_region(p, bytes);
#else
    (void)p, (void)bytes;
#endif
}

static inline void unpoison(const void *p, size_t bytes) {
#ifdef POISON_ASAN
    __asan_unpoison_memory_region(p, bytes);
#else
    (void)p, (void)bytes;
#endif
}

#endif
