/* The guard's life: load, attach, close; and its policy. guard.h draws it, private.h lists the other files.
 *
 * The order of guard_open matters: the program is loaded, its maps are mapped and the policy is written
 * before it is attached, so that the first frame it sees meets a whole policy. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "bpf/guard.skel.h" /* Made from csrc/bpf/guard.bpf.c by the build. */
#include "private.h"

/* BPF_LOG_STATS of the kernel's bpf_verifier.h, as its users know it: the verifier's error if there is one,
 * and "processed N insns", without the trace of every state, which is megabytes. */
#define VERIFIER_LOG_STATS 4
#define VERIFIER_LOG_BYTES 16384

/* How much of the verifier's last words fits in a guard_text beside ours. */
#define VERIFIER_TAIL_BYTES 240

static bool options_make_sense(const struct guard_options *o, struct guard_text *why) {
    if (o->workers == 0 || o->workers > GUARD_MAX_WORKERS)
        guard_text_add(why, "%u workers: the guard serves 1 to %u", o->workers, GUARD_MAX_WORKERS);
    else if (o->cid_capacity > GUARD_CID_MAX_CAPACITY)
        guard_text_add(why, "an id table for %u ids a worker: the most is %u", o->cid_capacity,
                       GUARD_CID_MAX_CAPACITY);
    else if (o->mode != GUARD_MODE_AUTO && o->mode != GUARD_MODE_NATIVE && o->mode != GUARD_MODE_GENERIC)
        guard_text_add(why, "no such XDP mode: %d", (int)o->mode);
    else
        return true;
    return false;
}

static struct bpf_program *program_of(const struct guard *g) {
    return bpf_object__next_program(g->skeleton->obj, NULL); /* There is one. */
}

/* The number before " insns" of the verifier's last line, for kernels before 5.16, whose program info has not
 * got it. */
static uint32_t processed(const char *log) {
    const char *line = strstr(log, "processed ");
    unsigned n = 0;
    return line != NULL && sscanf(line, "processed %u insns", &n) == 1 ? n : 0;
}

static void say_load_failed(struct guard_text *why, int error, const char *log,
                            const struct guard_text *said) {
    /* The verifier's objection stands before its statistics. */
    size_t len = strlen(log);
    const char *statistics = strstr(log, "verification time");
    if (statistics == NULL)
        statistics = strstr(log, "processed ");
    if (statistics != NULL)
        len = (size_t)(statistics - log);
    while (len != 0 && log[len - 1] == '\n')
        len--;
    guard_text_add(why, "loading the XDP program: ");
    if (len != 0) {
        size_t from = len > VERIFIER_TAIL_BYTES ? len - VERIFIER_TAIL_BYTES : 0;
        guard_text_add(why, "this kernel's verifier refuses it (%s): %.*s", strerror(error),
                       (int)(len - from), log + from);
        return;
    }
    guard_text_error(why, error);
    if (said->text[0] != '\0')
        guard_text_add(why, " (%s)", said->text);
}

static bool load(struct guard *g, const struct guard_options *o, uint32_t buckets,
                 struct guard_report *report, struct guard_text *why) {
    struct guard_text said;
    char *log = calloc(1, VERIFIER_LOG_BYTES);
    if (log == NULL) {
        guard_text_error(why, ENOMEM);
        return false;
    }
    guard_capture_begin(&said);
    int error = 0;
    g->skeleton = guard_bpf__open();
    if (g->skeleton == NULL) {
        error = errno;
    } else {
        /* A map has at least one entry; without a table the policy says so and nobody looks. */
        uint64_t entries = (uint64_t)o->workers * buckets;
        bpf_map__set_max_entries(g->skeleton->maps.cids, entries != 0 ? (uint32_t)entries : 1);
        bpf_program__set_log_level(program_of(g), VERIFIER_LOG_STATS);
        bpf_program__set_log_buf(program_of(g), log, VERIFIER_LOG_BYTES);
        /* RLIMIT_MEMLOCK is libbpf's business: it raises it where the kernel still counts maps against it
         * (before 5.11), and goes on when it may not. */
        error = -guard_bpf__load(g->skeleton);
    }
    guard_capture_end();

    struct bpf_prog_info info = {0};
    uint32_t len = sizeof info;
    if (error != 0) {
        say_load_failed(why, error, log, &said);
    } else if (bpf_obj_get_info_by_fd(bpf_program__fd(program_of(g)), &info, &len) == 0) {
        report->program_id = info.id;
        report->instructions = info.verified_insns != 0 ? info.verified_insns : processed(log);
    }
    if (error == 0)
        bpf_program__set_log_buf(program_of(g), NULL, 0); /* It goes now and the skeleton stays. */
    free(log);
    return error == 0;
}

static bool set_up_maps(struct guard *g, const struct guard_options *o, uint32_t buckets,
                        struct guard_text *why) {
    g->policy_fd = bpf_map__fd(g->skeleton->maps.policy);
    g->verdicts_fd = bpf_map__fd(g->skeleton->maps.verdicts);
    g->ports_fd = bpf_map__fd(g->skeleton->maps.ports);
    g->addresses_fd = bpf_map__fd(g->skeleton->maps.addresses);
    g->blocklist_fd = bpf_map__fd(g->skeleton->maps.blocklist);
    g->xsks_fd = bpf_map__fd(g->skeleton->maps.xsks);
    g->mirroring_fd = bpf_map__fd(g->skeleton->maps.mirroring);

    g->cpus = libbpf_num_possible_cpus();
    if (g->cpus < 1) {
        guard_text_add(why, "the number of processors cannot be read (/sys/devices/system/cpu/possible): %s",
                       strerror(-g->cpus));
        return false;
    }
    g->per_cpu = calloc((size_t)g->cpus, sizeof *g->per_cpu);
    if (g->per_cpu == NULL) {
        guard_text_error(why, ENOMEM);
        return false;
    }
    if (buckets != 0) {
        g->cids_bytes = (size_t)o->workers * buckets * sizeof *g->cids;
        void *map = mmap(NULL, g->cids_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                         bpf_map__fd(g->skeleton->maps.cids), 0);
        if (map == MAP_FAILED) {
            guard_text_add(why, "mapping the id table: %s", strerror(errno));
            return false;
        }
        g->cids = map;
    }
    if (!guard_mirror_open(g, bpf_map__fd(g->skeleton->maps.mirror))) {
        guard_text_add(why, "mapping the mirror's ring: %s", strerror(errno));
        return false;
    }
    /* Mirror off, no limits: everything that is STOQ's goes to its worker until a policy is set. */
    g->policy.workers = o->workers;
    g->policy.cid_buckets = buckets;
    return guard_set_policy(g, &(struct guard_policy){0}, why);
}

struct guard *guard_open(const struct guard_options *options, struct guard_report *report,
                         struct guard_text *why) {
    struct guard_report unread;
    struct guard_text unsaid;
    report = report != NULL ? report : &unread;
    why = why != NULL ? why : &unsaid;
    *report = (struct guard_report){0};
    guard_text_clear(why);
    if (!options_make_sense(options, why))
        return NULL;
    struct guard *g = calloc(1, sizeof *g);
    if (g == NULL) {
        guard_text_error(why, ENOMEM);
        return NULL;
    }
    g->link_fd = -1;
    g->ifindex = options->ifindex;
    if (if_indextoname(options->ifindex, g->interface) == NULL) {
        guard_text_add(why, "no interface has index %u: it is gone, or in another network namespace",
                       options->ifindex);
        free(g);
        return NULL;
    }
    uint32_t buckets = guard_cid_buckets_for(options->cid_capacity);
    enum guard_mode mode = options->mode;
    if (!load(g, options, buckets, report, why) || !set_up_maps(g, options, buckets, why) ||
        (g->link_fd = guard_attach(options->ifindex, g->interface, bpf_program__fd(program_of(g)), &mode,
                                   &report->notes, why)) < 0) {
        guard_close(g);
        return NULL;
    }
    report->mode = mode;
    guard_text_next(&report->notes);
    guard_text_add(&report->notes, "%s XDP on %s%s: program id %u, %u instructions verified",
                   mode == GUARD_MODE_NATIVE ? "native" : "generic", g->interface,
                   options->mode == GUARD_MODE_AUTO ? "" : " as asked", report->program_id,
                   report->instructions);
    return g;
}

void guard_close(struct guard *g) {
    if (g == NULL)
        return;
    if (g->link_fd >= 0) {
        /* Now, even if a child process has inherited the descriptor by a fork. */
        bpf_link_detach(g->link_fd);
        close(g->link_fd);
    }
    if (g->mirror != NULL)
        guard_mirror_close(g);
    if (g->cids != NULL)
        munmap(g->cids, g->cids_bytes);
    free(g->per_cpu);
    guard_bpf__destroy(g->skeleton);
    free(g);
}

static bool policy_makes_sense(const struct guard_policy *p, uint32_t workers, struct guard_text *why) {
    if (p->mirror_snap > GUARD_SNAP_BYTES) {
        guard_text_add(why, "mirrored frames are cut at %u bytes at most, not %u", GUARD_SNAP_BYTES,
                       p->mirror_snap);
        return false;
    }
    if (p->initial_interval_ns != 0 && p->initial_burst == 0) {
        guard_text_add(why,
                       "a rate of Initials with a burst of 0 lets none through: the burst is at least 1");
        return false;
    }
    for (uint32_t queue = 0; queue < GUARD_MAX_QUEUES; queue++)
        if (p->worker_of_queue[queue] >= workers) {
            guard_text_add(why, "queue %u belongs to worker %u, but there are %u", queue,
                           p->worker_of_queue[queue], workers);
            return false;
        }
    return true;
}

/* The kernel copies the policy word by word beside the running program. For that moment a packet may be
 * judged by a mix of old and new: rates and flags of either are as good, and a Retry made with half a key
 * fails like a lost packet does. */
bool guard_set_policy(struct guard *g, const struct guard_policy *policy, struct guard_text *why) {
    guard_text_clear(why);
    struct guard_policy p = *policy;
    p.cid_buckets = g->policy.cid_buckets;
    p.workers = g->policy.workers;
    if (!policy_makes_sense(&p, p.workers, why))
        return false;
    return guard_write_policy(g, p, why);
}

bool guard_write_policy(struct guard *g, struct guard_policy p, struct guard_text *why) {
    static const uint8_t none[16];
    p.flags = (p.flags & ~GUARD_BLOCKS) | (g->blocks ? GUARD_BLOCKS : 0);
    memcpy(p.near_ip, g->near_ip, sizeof p.near_ip);
    p.near_port = memcmp(g->near_ip, none, sizeof none) != 0 ? htons(g->near_port) : 0;
    int error = bpf_map_update_elem(g->policy_fd, &(uint32_t){0}, &p, BPF_ANY);
    if (error != 0) {
        guard_text_add(why, "writing the guard's policy: ");
        guard_text_error(why, -error);
        return false;
    }
    g->policy = p;
    return true;
}

void guard_get_policy(const struct guard *g, struct guard_policy *out) {
    *out = g->policy;
}
