/* Memory for packet buffers: one anonymous mapping, in huge pages where the kernel has some to give.
 *
 * A train is up to 64 KiB, so 4 KiB pages would cost 16 TLB entries for each; a 2 MiB page holds 31 trains.
 */
#ifndef STOQ_IO_PAGES_H
#define STOQ_IO_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pages_kind {
    PAGES_HUGETLB, /* Reserved huge pages: mmap(2) MAP_HUGETLB. */
    PAGES_THP,     /* Transparent huge pages asked for: madvise(2) MADV_HUGEPAGE. */
    PAGES_SMALL    /* Ordinary pages: the kernel offers neither of the above. */
};

struct pages {
    uint8_t *base; /* Zeroed, aligned to at least a page; NULL when nothing is mapped. */
    size_t bytes;  /* As mapped: the wish rounded up. */
    enum pages_kind kind;
};

/* Map at least `bytes`. False (errno set) only when the kernel has no memory to give at all. */
bool pages_map(struct pages *p, size_t bytes);
/* Unmap; safe on a zeroed or already unmapped struct. */
void pages_unmap(struct pages *p);
const char *pages_kind_name(enum pages_kind kind);

#endif
