/* See pages.h. Kernel documentation: mmap(2), madvise(2), admin-guide/mm/hugetlbpage. */
#define _GNU_SOURCE
#include "pages.h"

#include <sys/mman.h>

#define HUGE_BYTES ((size_t)2 << 20) /* The default huge page of x86-64 and of arm64 with 4 KiB pages. */

bool pages_map(struct pages *p, size_t bytes) {
    size_t rounded = (bytes + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1);
    int prot = PROT_READ | PROT_WRITE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    *p = (struct pages){0};

    /* MAP_POPULATE: a reservation that cannot be filled on this NUMA node should fail here, not by SIGBUS
     * later. */
    void *base = mmap(NULL, rounded, prot, flags | MAP_HUGETLB | MAP_POPULATE, -1, 0);
    if (base != MAP_FAILED) {
        *p = (struct pages){base, rounded, PAGES_HUGETLB};
        return true;
    }

    /* Transparent huge pages only form on 2 MiB boundaries, which mmap does not promise: map one more, cut
     * the ends. */
    base = mmap(NULL, rounded + HUGE_BYTES, prot, flags, -1, 0);
    if (base == MAP_FAILED) {
        return false;
    }
    uint8_t *start = base;
    uint8_t *aligned = (uint8_t *)(((uintptr_t)start + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1));
    size_t head = (size_t)(aligned - start);
    if (head != 0) {
        munmap(start, head);
    }
    munmap(aligned + rounded, HUGE_BYTES - head); /* head < HUGE_BYTES, so never empty. */
    enum pages_kind kind = madvise(aligned, rounded, MADV_HUGEPAGE) == 0 ? PAGES_THP : PAGES_SMALL;
    *p = (struct pages){aligned, rounded, kind};
    return true;
}

void pages_unmap(struct pages *p) {
    if (p->base != NULL) {
        munmap(p->base, p->bytes);
    }
    *p = (struct pages){0};
}

const char *pages_kind_name(enum pages_kind kind) {
    switch (kind) {
    case PAGES_HUGETLB:
        return "hugetlb";
    case PAGES_THP:
        return "transparent huge";
    case PAGES_SMALL:
        break;
    }
    return "4 KiB";
}
