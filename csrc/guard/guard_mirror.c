/* Mirrored frames: the program's ring of copies, read in order, at most so many a call. */
#include <errno.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "private.h"

struct mirror_read {
    void (*take)(void *ctx, const struct guard_mirrored *head, const uint8_t *bytes);
    void *ctx;
    int left;
};

/* A negative result ends libbpf's round after this record, which then counts as read. */
static int one(void *ctx, void *data, size_t bytes) {
    struct mirror_read *r = ctx;
    const struct guard_mirrored *head = data;
    r->left--;
    /* Our own program wrote it, but its lengths are checked all the same: they decide what is read here. */
    if (bytes >= sizeof *head && head->snapped_bytes <= bytes - sizeof *head)
        r->take(r->ctx, head, (const uint8_t *)(head + 1));
    return r->left > 0 ? 0 : -ECANCELED;
}

/* libbpf binds a callback's context when the ring is made, but it belongs to one call of guard_mirror_read:
 * so what is bound is a pointer that the call sets. */
static int forward(void *ctx, void *data, size_t bytes) {
    return one(*(struct mirror_read **)ctx, data, bytes);
}

bool guard_mirror_open(struct guard *g, int fd) {
    g->mirror = ring_buffer__new(fd, forward, &g->mirror_read, NULL);
    return g->mirror != NULL;
}

void guard_mirror_close(struct guard *g) {
    ring_buffer__free(g->mirror);
    g->mirror = NULL;
}

int guard_mirror_fd(const struct guard *g) {
    return ring_buffer__epoll_fd(g->mirror);
}

int guard_mirror_read(struct guard *g, int max,
                      void (*take)(void *ctx, const struct guard_mirrored *head, const uint8_t *bytes),
                      void *ctx) {
    if (max <= 0)
        return 0;
    struct mirror_read r = {.take = take, .ctx = ctx, .left = max};
    g->mirror_read = &r;
    ring_buffer__consume(g->mirror);
    g->mirror_read = NULL;
    return max - r.left;
}
