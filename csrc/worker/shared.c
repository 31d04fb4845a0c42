/* Lays out, makes and maps the shared area; shared.h draws it. */
#define _GNU_SOURCE
#include "shared.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Parts start on huge page boundaries, so that pools can be backed by huge pages where the kernel does that
 * for memfds. */
#define PART_ALIGN (2ull << 20)

static uint64_t align_up(uint64_t n, uint64_t to) {
    return (n + to - 1) & ~(to - 1);
}

static uint32_t power_of_two(uint32_t n) {
    uint32_t p = 1;
    while (p < n)
        p <<= 1;
    return p;
}

static struct shared *map(int fd, uint64_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

struct shared *shared_create(uint32_t worker, const struct stoq_config *config, int *fd) {
    struct chunk_layout receive = chunk_layout_for(config->receive_bytes);
    struct chunk_layout send = chunk_layout_for(config->send_bytes);
    /* A chunk is outstanding once at most and a slot carries at least one: with a slot for each the ring
     * never fills. */
    uint32_t return_slots = power_of_two(chunk_count(&send));
    uint64_t commands_at = align_up(sizeof(struct shared), 4096);
    uint64_t events_at = commands_at + align_up(ring_bytes(SHARED_COMMAND_SLOTS), 4096);
    uint64_t returns_at = events_at + align_up(ring_bytes(SHARED_EVENT_SLOTS), 4096);
    uint64_t receive_at = align_up(returns_at + ring_bytes(return_slots), PART_ALIGN);
    uint64_t send_at = align_up(receive_at + chunk_pool_bytes(&receive), PART_ALIGN);
    uint64_t bytes = align_up(send_at + chunk_pool_bytes(&send), PART_ALIGN);

    *fd = memfd_create("stoq-worker", MFD_CLOEXEC);
    if (*fd < 0)
        return NULL;
    struct shared *s = ftruncate(*fd, (off_t)bytes) == 0 ? map(*fd, bytes) : NULL;
    if (!s) {
        int saved = errno;
        close(*fd);
        *fd = -1;
        errno = saved;
        return NULL;
    }
    s->magic = SHARED_MAGIC;
    s->bytes = bytes;
    s->worker = worker;
    s->commands_at = commands_at;
    s->events_at = events_at;
    s->returns_at = returns_at;
    s->receive_at = receive_at;
    s->send_at = send_at;
    s->command_slots = SHARED_COMMAND_SLOTS;
    s->event_slots = SHARED_EVENT_SLOTS;
    s->return_slots = return_slots;
    s->receive = receive;
    s->send = send;
    atomic_init(&s->events_armed, 1); /* Nobody has looked yet: the first event is worth a wake-up. */
    ring_init(shared_at(s, commands_at), SHARED_COMMAND_SLOTS);
    ring_init(shared_at(s, events_at), SHARED_EVENT_SLOTS);
    ring_init(shared_at(s, returns_at), return_slots);
    return s;
}

struct shared *shared_map(int fd) {
    struct stat st;
    if (fstat(fd, &st) != 0)
        return NULL;
    if ((uint64_t)st.st_size < sizeof(struct shared)) {
        errno = EINVAL;
        return NULL;
    }
    struct shared *s = map(fd, (uint64_t)st.st_size);
    if (s && (s->magic != SHARED_MAGIC || s->bytes != (uint64_t)st.st_size)) {
        munmap(s, (size_t)st.st_size);
        errno = EINVAL;
        return NULL;
    }
    return s;
}

void shared_unmap(struct shared *s) {
    if (s)
        munmap(s, s->bytes);
}
