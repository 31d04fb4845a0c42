/* Size-class allocator over one mapping; arena.h draws it. */
#define _GNU_SOURCE
#include "arena.h"
#include "poison.h"

#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE_BYTES (2u << 20) /* x86-64 and arm64 with 4 KiB base pages. */

struct arena_block {
    struct arena_block *next;
};

/* 64, 128, 192, 256, 320, 384, 448, 512, 640, …: every 64 bytes at first, then four steps a doubling, so that
 * rounding costs a fifth at most. */
size_t arena_class_bytes(unsigned class) {
    if (class < 4)
        return (class + 1) * (size_t)64;
    unsigned step = class - 4;
    size_t power = (size_t)256 << (step / 4);
    return power + power / 4 * (step % 4 + 1);
}

unsigned arena_class(size_t bytes) {
    if (bytes <= 256)
        return bytes <= 64 ? 0 : (unsigned)(bytes - 1) / 64;
    unsigned log2 = 63u - (unsigned)__builtin_clzll(bytes - 1); /* 2^log2 < bytes <= 2^(log2+1), log2 >= 8. */
    return 4 + (log2 - 8) * 4 + ((unsigned)((bytes - 1) >> (log2 - 2)) & 3);
}

bool arena_init(struct arena *a, size_t bytes) {
    memset(a, 0, sizeof *a);
    bytes = (bytes + HUGE_PAGE_BYTES - 1) & ~(size_t)(HUGE_PAGE_BYTES - 1);
    /* Without MAP_NORESERVE the kernel sets the huge pages aside now or refuses: later faults cannot fail. */
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    a->huge = p != MAP_FAILED;
    if (!a->huge) {
        p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            return false;
        (void)madvise(p, bytes, MADV_HUGEPAGE); /* A kernel without THP refuses; small pages work as well. */
    }
    a->base = p;
    a->bytes = bytes;
    return true;
}

void arena_destroy(struct arena *a) {
    if (a->base) {
        unpoison(a->base, a->fresh); /* Whoever maps this place next starts clean. */
        munmap(a->base, a->bytes);
    }
    memset(a, 0, sizeof *a);
}

static void push(struct arena *a, unsigned class, void *p) {
    struct arena_block *block = p;
    unpoison(block, sizeof *block);
    block->next = a->free[class];
    a->free[class] = block;
    poison(block + 1, arena_class_bytes(class) - sizeof *block);
}

static void *pop(struct arena *a, unsigned class) {
    struct arena_block *block = a->free[class];
    a->free[class] = block->next;
    return block;
}

/* The mapping is used up: cut the smallest larger free block. Its rest goes to the lists, largest piece
 * first, so the number of pieces is bounded by the number of classes. */
static void *cut(struct arena *a, unsigned class) {
    unsigned from = class + 1;
    while (from < ARENA_CLASSES && !a->free[from])
        from++;
    if (from == ARENA_CLASSES)
        return NULL;
    uint8_t *block = pop(a, from);
    size_t at = arena_class_bytes(class);
    size_t rest = arena_class_bytes(from) - at;
    for (unsigned c = from; rest > 0; c--) {
        size_t piece = arena_class_bytes(c);
        while (piece <= rest) {
            push(a, c, block + at);
            at += piece;
            rest -= piece;
        }
    }
    return block;
}

void *arena_alloc(struct arena *a, size_t bytes) {
    if (bytes == 0 || bytes > ARENA_MAX_BYTES)
        return NULL;
    unsigned class = arena_class(bytes);
    size_t size = arena_class_bytes(class);
    void *p;
    if (a->free[class]) {
        p = pop(a, class);
        unpoison(p, bytes);
        memset(p, 0, bytes);
    } else if (a->bytes - a->fresh >= size) {
        p = a->base + a->fresh; /* The kernel's zeroes. */
        a->fresh += size;
    } else {
        p = cut(a, class);
        if (!p)
            return NULL;
        unpoison(p, bytes);
        memset(p, 0, bytes);
    }
    poison((uint8_t *)p + bytes, size - bytes);
    a->used += size;
    return p;
}

void arena_free(struct arena *a, void *p, size_t bytes) {
    if (!p)
        return;
    unsigned class = arena_class(bytes);
    a->used -= arena_class_bytes(class);
    push(a, class, p);
}
