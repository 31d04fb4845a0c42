/* See steer.h. */
#define _GNU_SOURCE
#include "steer.h"

#include <bpf/libbpf.h>
#include <errno.h>
#include <stdlib.h>

#include "bpf/steer.skel.h"
#include "private.h"

struct steer {
    struct steer_bpf *skeleton;
};

struct steer *steer_open(struct guard_text *why) {
    struct steer *s = calloc(1, sizeof *s);
    struct guard_text said = {{0}};
    if (!s) {
        snprintf(why->text, sizeof why->text, "no memory");
        return NULL;
    }
    guard_capture_begin(&said);
    s->skeleton = steer_bpf__open_and_load();
    int e = errno;
    guard_capture_end();
    if (s->skeleton)
        return s;
    snprintf(why->text, sizeof why->text, "%s", strerror(e));
    free(s);
    return NULL;
}

void steer_close(struct steer *s) {
    if (!s)
        return;
    steer_bpf__destroy(s->skeleton);
    free(s);
}

int steer_program_fd(const struct steer *s) {
    return bpf_program__fd(s->skeleton->progs.steer);
}

int steer_sockets_fd(const struct steer *s) {
    return bpf_map__fd(s->skeleton->maps.sockets);
}
