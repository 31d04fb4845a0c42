/* What the guard's tests run in: a network namespace of their own with a pair of veth interfaces, as root.
 * Include in one file per test program: the state is static. */
#ifndef STOQ_TESTS_GUARD_HOST_H
#define STOQ_TESTS_GUARD_HOST_H

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../csrc/guard/private.h"
#include "check.h"

#define SECOND_NS UINT64_C(1000000000)

static uint32_t here, there; /* The two ends of the pair. */

static bool ip_command(const char *arguments) {
    char line[160];
    snprintf(line, sizeof line, "ip %s", arguments);
    return system(line) == 0;
}

static bool make_pair(void) {
    if (!ip_command("link add guard0 type veth peer name guard1") || !ip_command("link set guard0 up") ||
        !ip_command("link set guard1 up"))
        return false;
    here = if_nametoindex("guard0");
    there = if_nametoindex("guard1");
    return here != 0 && there != 0;
}

__attribute__((unused)) static uint32_t program_on(uint32_t ifindex) {
    uint32_t id = 0;
    return bpf_xdp_query_id((int)ifindex, 0, &id) == 0 ? id : UINT32_MAX;
}

static struct guard_options options(uint32_t ifindex) {
    return (struct guard_options){
        .ifindex = ifindex, .mode = GUARD_MODE_NATIVE, .workers = 2, .cid_capacity = 1000};
}

static struct guard *open_with(struct guard_options o, struct guard_report *report) {
    struct guard_text why;
    struct guard *g = guard_open(&o, report, &why);
    if (g == NULL)
        printf("guard_open: %s\n", why.text);
    REQUIRE(g != NULL);
    return g;
}

__attribute__((unused)) static struct guard *open_here(void) {
    struct guard_report report;
    return open_with(options(here), &report);
}

/* A map of the program by name, through the kernel: not by what the guard keeps. */
__attribute__((unused)) static int map_of(uint32_t program_id, const char *name) {
    uint32_t ids[32], found = sizeof ids / sizeof ids[0];
    int program = bpf_prog_get_fd_by_id(program_id), fd = -1;
    REQUIRE(program >= 0);
    struct bpf_prog_info info = {.nr_map_ids = found, .map_ids = (uintptr_t)ids};
    uint32_t len = sizeof info;
    CHECK(bpf_obj_get_info_by_fd(program, &info, &len) == 0);
    close(program);
    for (uint32_t i = 0; i < info.nr_map_ids && i < found && fd < 0; i++) {
        struct bpf_map_info map = {0};
        len = sizeof map;
        fd = bpf_map_get_fd_by_id(ids[i]);
        if (fd >= 0 && (bpf_obj_get_info_by_fd(fd, &map, &len) != 0 || strcmp(map.name, name) != 0)) {
            close(fd);
            fd = -1;
        }
    }
    REQUIRE(fd >= 0);
    return fd;
}

/* A namespace with the pair in it, which goes with this process; then the tests. */
static int run_in_namespace(int argc, char **argv, const struct check_case *cases, size_t count) {
    if (unshare(CLONE_NEWNET) != 0) {
        printf("SKIP: a network namespace cannot be made (%s): run as root\n", strerror(errno));
        return 0;
    }
    if (!ip_command("link set lo up") || !make_pair()) {
        printf("FAIL: no veth pair could be made\n");
        return 1;
    }
    return check_main(argc, argv, cases, count);
}

#endif
