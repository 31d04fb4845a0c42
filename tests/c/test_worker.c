/* The worker's parts without an engine: rings (wrap-around, two threads, two mappings), timer wheel against a
 * sorted model, arena and chunk pools to exhaustion and back, the control end against a worker's end of one
 * shared area, handoff, latency histogram, configuration. */
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker/arena.h"
#include "worker/chunks.h"
#include "worker/control.h"
#include "worker/datapath.h"
#include "worker/handoff.h"
#include "worker/latency.h"
#include "worker/ring.h"
#include "worker/shared.h"
#include "worker/wheel.h"

/* ---- ring ---- */

static void ring_wraps(void) {
    enum { SLOTS = 8 };
    alignas(64) static uint8_t memory[sizeof(struct ring) + SLOTS * RING_SLOT_BYTES];
    memset(memory, 0, sizeof memory);
    ring_init(memory, SLOTS);
    struct ring_producer p = ring_attach_producer(memory, SLOTS);
    struct ring_consumer c = ring_attach_consumer(memory, SLOTS);
    uint64_t put = 0, got = 0;
    for (int round = 0; round < 10000; round++) {
        uint64_t want = check_rand() % (SLOTS + 3);
        for (uint64_t i = 0; i < want; i++) {
            uint64_t *slot = ring_reserve(&p);
            CHECK((slot == NULL) == (put - got == SLOTS));
            if (!slot)
                break;
            *slot = put++;
        }
        /* What is reserved and not published stays unseen. */
        if (put > p.ring->head && p.ring->head == got)
            CHECK(ring_peek(&c) == NULL);
        ring_publish(&p);
        CHECK(!ring_publish(&p));
        uint64_t take = check_rand() % (SLOTS + 3);
        for (uint64_t i = 0; i < take; i++) {
            const uint64_t *slot = ring_peek(&c);
            CHECK((slot == NULL) == (put == got));
            if (!slot)
                break;
            CHECK_EQ(*slot, got);
            got++;
            ring_pop(&c);
        }
        ring_release(&c);
        CHECK_EQ(ring_free(&p, SLOTS), SLOTS - (put - got));
        CHECK(ring_waiting(p.ring) == (put != got));
        if (round % 100 == 0) { /* Either end may attach again. */
            p = ring_attach_producer(memory, SLOTS);
            c = ring_attach_consumer(memory, SLOTS);
        }
    }
    CHECK(got > 10 * SLOTS);
}

static void ring_survives_a_mad_peer(void) {
    enum { SLOTS = 8 };
    alignas(64) static uint8_t memory[sizeof(struct ring) + SLOTS * RING_SLOT_BYTES];
    memset(memory, 0, sizeof memory);
    ring_init(memory, SLOTS);
    struct ring_producer p = ring_attach_producer(memory, SLOTS);
    struct ring_consumer c = ring_attach_consumer(memory, SLOTS);
    atomic_store(&p.ring->head, 1000000);
    CHECK(ring_peek(&c) == NULL);
    atomic_store(&p.ring->head, 0);
    atomic_store(&p.ring->tail, 77);
    CHECK_EQ(ring_free(&p, SLOTS + 1), 0);
    CHECK(ring_reserve(&p) == NULL || p.head == 1);
}

enum { STRESS = 300000, STRESS_SLOTS = 64 };

static void *produce(void *arg) {
    struct ring_producer p = ring_attach_producer(arg, STRESS_SLOTS);
    for (uint64_t i = 0; i < STRESS;) {
        uint64_t *slot = ring_reserve(&p);
        if (!slot) {
            ring_publish(&p);
            sched_yield();
            continue;
        }
        for (int k = 0; k < 8; k++)
            slot[k] = i * 8 + (uint64_t)k;
        if (++i % 7 == 0)
            ring_publish(&p);
    }
    ring_publish(&p);
    return NULL;
}

/* Producer and consumer on two threads, through two mappings of one memfd. */
static void ring_across_threads_and_mappings(void) {
    size_t bytes = (ring_bytes(STRESS_SLOTS) + 4095) & ~(size_t)4095;
    int fd = memfd_create("test", MFD_CLOEXEC);
    REQUIRE(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    void *a = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    void *b = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(a != MAP_FAILED && b != MAP_FAILED && a != b);
    ring_init(a, STRESS_SLOTS);
    struct ring_consumer c = ring_attach_consumer(b, STRESS_SLOTS);
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, produce, a) == 0);
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < STRESS;) {
        const uint64_t *slot = ring_peek(&c);
        if (!slot) {
            ring_release(&c);
            sched_yield();
            continue;
        }
        for (int k = 0; k < 8; k++)
            wrong += slot[k] != i * 8 + (uint64_t)k;
        ring_pop(&c);
        if (++i % 5 == 0)
            ring_release(&c);
    }
    ring_release(&c);
    pthread_join(thread, NULL);
    CHECK_EQ(wrong, 0);
    CHECK(!ring_waiting(a));
    munmap(a, bytes);
    munmap(b, bytes);
    close(fd);
}

/* ---- wheel ---- */

enum { TIMERS = 200 };

struct model {
    struct wheel wheel;
    struct quic_timer timers[TIMERS];
    uint64_t deadline[TIMERS]; /* What the model expects; QUIC_NEVER: not armed. */
    uint64_t armed_at[TIMERS];
    uint64_t now;
    bool rearm; /* Callbacks arm their own and another timer again, cancel a third. */
    bool inside;
    uint64_t fired;
};

static void model_set(struct model *m, int i, uint64_t deadline) {
    wheel_set(&m->wheel, &m->timers[i], deadline);
    m->deadline[i] = deadline;
    /* Set to the past from within expire it is due at the tick after now. */
    m->armed_at[i] = m->inside ? (m->now & ~(WHEEL_TICK_NS - 1)) + WHEEL_TICK_NS : m->now;
}

static uint64_t spread(void) {
    unsigned bits = (unsigned)(check_rand() % 46); /* Up to 20 hours: five levels. */
    return check_rand() & ((UINT64_C(1) << bits) - 1);
}

static void model_fire(void *ctx, struct quic_timer *timer) {
    struct model *m = ctx;
    int i = (int)(timer - m->timers);
    m->fired++;
    CHECK(m->deadline[i] != QUIC_NEVER);
    CHECK(timer->prev == NULL && timer->deadline_ns == QUIC_NEVER);
    CHECK(m->deadline[i] <= m->now); /* Never early. */
    m->deadline[i] = QUIC_NEVER;
    if (!m->rearm)
        return;
    m->inside = true;
    if (check_rand() % 2)
        model_set(m, i, m->now + (check_rand() % 2 ? 0 : spread()));
    if (check_rand() % 2)
        model_set(m, (int)(check_rand() % TIMERS),
                  m->now + spread() - (check_rand() % 3 == 0 ? m->now / 2 : 0));
    if (check_rand() % 4 == 0)
        model_set(m, (int)(check_rand() % TIMERS), QUIC_NEVER);
    m->inside = false;
}

/* After expire(now) nothing may be left that was due a tick ago. */
static void model_check(struct model *m) {
    uint64_t armed = 0, earliest = QUIC_NEVER;
    for (int i = 0; i < TIMERS; i++) {
        uint64_t due = m->deadline[i];
        CHECK((m->timers[i].prev != NULL) == (due != QUIC_NEVER));
        if (due == QUIC_NEVER)
            continue;
        armed++;
        due = due > m->armed_at[i] ? due : m->armed_at[i];
        CHECK(due + WHEEL_TICK_NS > m->now);
        earliest = due < earliest ? due : earliest;
    }
    CHECK_EQ(m->wheel.armed, armed);
    uint64_t next = wheel_next_deadline(&m->wheel);
    CHECK((next == QUIC_NEVER) == (armed == 0));
    if (armed > 0) { /* Not after the true next deadline by a tick or more, and in the future. */
        CHECK(next < earliest + WHEEL_TICK_NS);
        CHECK(next > m->now || earliest <= m->now + WHEEL_TICK_NS);
    }
}

static void wheel_against_model(void) {
    static struct model m;
    for (int run = 0; run < 20; run++) {
        memset(&m, 0, sizeof m);
        m.rearm = run % 2;
        m.now = run < 2 ? 0 : check_rand() >> (run % 20 + 1);
        wheel_init(&m.wheel, m.now);
        for (int i = 0; i < TIMERS; i++) {
            m.timers[i].deadline_ns = QUIC_NEVER;
            m.deadline[i] = QUIC_NEVER;
        }
        for (int step = 0; step < 2000; step++) {
            for (uint64_t n = check_rand() % 4; n > 0; n--) {
                uint64_t d = m.now + spread();
                if (check_rand() % 16 == 0)
                    d = m.now > 100000 ? m.now - check_rand() % 100000 : 0;
                model_set(&m, (int)(check_rand() % TIMERS), check_rand() % 5 == 0 ? QUIC_NEVER : d);
            }
            uint64_t next = wheel_next_deadline(&m.wheel);
            if (check_rand() % 2 && next != QUIC_NEVER && next > m.now)
                m.now = next;
            else
                m.now += spread() >> (check_rand() % 20);
            wheel_expire(&m.wheel, m.now, model_fire, &m);
            model_check(&m);
        }
        CHECK(m.fired > 100);
    }
}

/* A virtual clock that jumps from deadline to deadline fires a lone timer exactly once, in few jumps, at its
 * tick. */
static void wheel_jumps(void) {
    static struct model m;
    for (int i = 0; i < 500; i++) {
        memset(&m, 0, sizeof m);
        m.now = check_rand() >> 20;
        for (int k = 0; k < TIMERS; k++)
            m.deadline[k] = QUIC_NEVER;
        wheel_init(&m.wheel, m.now);
        uint64_t deadline = m.now + 1 + spread();
        model_set(&m, 0, deadline);
        int jumps = 0;
        for (; m.fired == 0 && jumps < 20; jumps++) {
            uint64_t next = wheel_next_deadline(&m.wheel);
            CHECK(next > m.now);
            m.now = next;
            wheel_expire(&m.wheel, m.now, model_fire, &m);
        }
        CHECK_EQ(m.fired, 1);
        CHECK_EQ(jumps, 1); /* One timer: the answer is exact. */
        CHECK(m.now >= deadline && m.now < deadline + WHEEL_TICK_NS);
        CHECK_EQ(wheel_next_deadline(&m.wheel), QUIC_NEVER);
    }
}

static void arm_the_past(void *ctx, struct quic_timer *timer) {
    struct model *m = ctx;
    if (++m->fired < 10) /* A wheel that fires it at once again is to fail, not to hang. */
        wheel_set(&m->wheel, timer, 1);
}

static void wheel_callback_cannot_hold_it_up(void) {
    static struct model m;
    memset(&m, 0, sizeof m);
    m.now = 1000000;
    wheel_init(&m.wheel, m.now);
    wheel_set(&m.wheel, &m.timers[0], 5);
    CHECK_EQ(wheel_expire(&m.wheel, m.now, arm_the_past, &m), 1);
    uint64_t next = wheel_next_deadline(&m.wheel);
    CHECK(next > m.now && next <= m.now + WHEEL_TICK_NS);
    CHECK_EQ(wheel_expire(&m.wheel, next, arm_the_past, &m), 1);
    wheel_cancel(&m.wheel, &m.timers[0]);
    CHECK_EQ(wheel_next_deadline(&m.wheel), QUIC_NEVER);
    wheel_set(&m.wheel, &m.timers[1], UINT64_MAX - 1); /* The far end of time. */
    CHECK_EQ(wheel_next_deadline(&m.wheel), UINT64_MAX - 1);
    CHECK_EQ(wheel_expire(&m.wheel, next + 5000000, arm_the_past, &m), 0);
}

/* ---- arena ---- */

static void arena_classes(void) {
    CHECK_EQ(arena_class_bytes(ARENA_CLASSES - 1), ARENA_MAX_BYTES);
    for (unsigned c = 0; c < ARENA_CLASSES; c++) {
        size_t bytes = arena_class_bytes(c);
        CHECK_EQ(bytes % ARENA_ALIGN, 0);
        CHECK_EQ(arena_class(bytes), c);
        if (c + 1 < ARENA_CLASSES)
            CHECK_EQ(arena_class(bytes + 1), c + 1);
    }
    CHECK_EQ(arena_class(1), 0);
}

static bool is_zero(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (p[i] != 0)
            return false;
    return true;
}

static void arena_random(void) {
    enum { BLOCKS = 300 };
    static struct {
        uint8_t *p;
        size_t bytes;
        uint8_t fill;
    } v[BLOCKS];
    struct arena a;
    memset(v, 0, sizeof v);
    REQUIRE(arena_init(&a, 4 << 20));
    unsigned failures = 0, successes = 0;
    for (int step = 0; step < 20000; step++) {
        unsigned i = check_rand() % BLOCKS;
        if (v[i].p) {
            for (size_t k = 0; k < v[i].bytes; k += 61)
                CHECK_EQ(v[i].p[k], v[i].fill); /* Nobody else wrote here. */
            arena_free(&a, v[i].p, v[i].bytes);
            v[i].p = NULL;
            continue;
        }
        v[i].bytes = 1 + check_rand() % (step % 50 == 0 ? 300000 : 6000);
        v[i].p = arena_alloc(&a, v[i].bytes);
        if (!v[i].p) {
            failures++;
            continue;
        }
        successes++;
        CHECK_EQ((uintptr_t)v[i].p % ARENA_ALIGN, 0);
        CHECK(v[i].p >= a.base && v[i].p + v[i].bytes <= a.base + a.bytes);
        CHECK(is_zero(v[i].p, v[i].bytes));
        v[i].fill = (uint8_t)(1 + check_rand() % 255);
        memset(v[i].p, v[i].fill, v[i].bytes);
    }
    CHECK(successes > 1000);
    CHECK(failures < successes / 10);
    for (int i = 0; i < BLOCKS; i++)
        arena_free(&a, v[i].p, v[i].bytes);
    CHECK_EQ(a.used, 0);
    arena_destroy(&a);
}

static void arena_runs_dry_and_recovers(void) {
    struct arena a;
    REQUIRE(arena_init(&a, 2 << 20));
    CHECK(arena_alloc(&a, 0) == NULL);
    CHECK(arena_alloc(&a, (size_t)ARENA_MAX_BYTES + 1) == NULL);
    uint8_t *big = arena_alloc(&a, 2 << 20);
    REQUIRE(big != NULL);
    CHECK(arena_alloc(&a, 1) == NULL);
    memset(big, 0xaa, 2 << 20);
    arena_free(&a, big, 2 << 20);
    /* Nothing fresh is left: small blocks are cut from the large one, all of it, each zeroed. */
    unsigned n = 0;
    for (uint8_t *p; (p = arena_alloc(&a, 1000)) != NULL; n++)
        CHECK(is_zero(p, 1000));
    CHECK_EQ(n, (2 << 20) / 1024);
    CHECK_EQ(a.used, 2 << 20);
    arena_destroy(&a);
}

/* ---- chunks ---- */

static void chunk_numbers(void) {
    struct chunk_layout l = chunk_layout_for(1 << 20);
    CHECK_EQ(l.small, 64);
    CHECK_EQ(l.large, 12);
    CHECK_EQ(chunk_pool_bytes(&l), 1 << 20);
    uint64_t end = 0;
    for (uint32_t c = 0; c < chunk_count(&l); c++) {
        CHECK_EQ(chunk_offset(&l, c), end); /* Dense, in order, without overlap. */
        end += chunk_bytes(&l, c);
    }
    CHECK_EQ(end, chunk_pool_bytes(&l));
    CHECK(chunk_count(&(struct chunk_layout){.small = 1u << 30, .large = 1u << 30}) <= 0x80000000u);
}

static void receive_pool_life(void) {
    struct chunk_layout l = {.small = 4, .large = 3};
    static uint8_t data[4 * STOQ_SMALL_CHUNK_BYTES + 3 * STOQ_LARGE_CHUNK_BYTES];
    struct receive_pool r;
    REQUIRE(receive_pool_init(&r, &l, data));
    bool seen[7] = {false};
    for (int i = 0; i < 4; i++) {
        uint32_t c = receive_pool_alloc(&r, 100, 0);
        REQUIRE(c < 4 && !seen[c]);
        seen[c] = true;
    }
    CHECK_EQ(receive_pool_alloc(&r, STOQ_SMALL_CHUNK_BYTES, 0), STOQ_NO_CHUNK); /* Classes do not borrow. */
    uint32_t a = receive_pool_alloc(&r, STOQ_SMALL_CHUNK_BYTES + 1, 0);
    REQUIRE(a >= 4 && a < 7);
    CHECK_EQ(receive_pool_alloc(&r, STOQ_LARGE_CHUNK_BYTES, 2), STOQ_NO_CHUNK); /* Two are kept back. */
    CHECK_EQ(receive_pool_alloc(&r, STOQ_LARGE_CHUNK_BYTES + 1, 0), STOQ_NO_CHUNK);

    /* Lent twice beside the engine's own reference: free only after the third goes. */
    CHECK(!receive_pool_return(&r, a)); /* Nothing was lent yet. */
    receive_pool_ref(&r, a);
    receive_pool_lend(&r, a);
    receive_pool_ref(&r, a);
    receive_pool_lend(&r, a);
    receive_pool_unref(&r, a);
    CHECK(receive_pool_return(&r, a));
    CHECK_EQ(chunk_free_count(&r.pool.large), 2);
    CHECK(receive_pool_return(&r, a));
    CHECK_EQ(chunk_free_count(&r.pool.large), 3);
    CHECK(!receive_pool_return(&r, a)); /* A release too many changes nothing. */
    CHECK(!receive_pool_return(&r, 7));
    CHECK(!receive_pool_return(&r, STOQ_NO_CHUNK));
    CHECK_EQ(chunk_free_count(&r.pool.large), 3);
    CHECK_EQ(receive_pool_alloc(&r, STOQ_LARGE_CHUNK_BYTES, 0), a); /* The one freed last comes first. */
    receive_pool_destroy(&r);
}

static void send_chunks_adopted_once(void) {
    struct chunk_layout l = {.small = 2, .large = 1};
    struct send_chunks s;
    REQUIRE(send_chunks_init(&s, &l, NULL));
    CHECK(send_chunks_adopt(&s, 2));
    CHECK(!send_chunks_adopt(&s, 2)); /* The control plane gave it away already. */
    CHECK(!send_chunks_adopt(&s, 3));
    CHECK(!send_chunks_adopt(&s, STOQ_NO_CHUNK));
    s.refs[2] = 0;
    CHECK(send_chunks_adopt(&s, 2));
    send_chunks_destroy(&s);
}

/* ---- shared area, control end ---- */

/* The control plane maps the memfd a second time: everything must work with two addresses. */
static void control_through_second_mapping(void) {
    struct stoq_config config = {.receive_bytes = 4 << 20, .send_bytes = 1 << 20};
    int fd;
    struct shared *s = shared_create(3, &config, &fd);
    REQUIRE(s != NULL);
    struct shared *view = shared_map(fd);
    REQUIRE(view != NULL && view != s);
    CHECK_EQ(view->worker, 3);
    struct control c;
    REQUIRE(control_attach(&c, view));
    struct ring_consumer commands = ring_attach_consumer(shared_at(s, s->commands_at), s->command_slots);
    struct ring_producer events = ring_attach_producer(shared_at(s, s->events_at), s->event_slots);
    struct ring_producer returns = ring_attach_producer(shared_at(s, s->returns_at), s->return_slots);

    /* All send chunks out, each filled, each found by the worker at the same number. */
    uint64_t total = control_free_bytes(&c);
    CHECK_EQ(total, chunk_pool_bytes(&s->send));
    uint32_t n = 0, sizes[2] = {STOQ_SMALL_CHUNK_BYTES, STOQ_LARGE_CHUNK_BYTES};
    for (int k = 0; k < 2; k++) {
        for (uint32_t chunk; (chunk = control_chunk_alloc(&c, sizes[k])) != STOQ_NO_CHUNK; n++) {
            uint8_t *data = (uint8_t *)shared_at(view, view->send_at) + chunk_offset(&view->send, chunk);
            memcpy(data, &chunk, sizeof chunk);
            struct stoq_command command = {.type = STOQ_COMMAND_STREAM_SEND, .chunk = chunk};
            CHECK(control_command(&c, &command));
        }
    }
    CHECK_EQ(n, chunk_count(&s->send));
    CHECK_EQ(control_free_bytes(&c), 0);
    for (uint32_t i = 0; i < n; i++) {
        const struct stoq_command *command = ring_peek(&commands);
        REQUIRE(command != NULL);
        uint32_t got;
        memcpy(&got, (uint8_t *)shared_at(s, s->send_at) + chunk_offset(&s->send, command->chunk),
               sizeof got);
        CHECK_EQ(got, command->chunk);
        struct chunk_return *back =
            ring_reserve(&returns); /* One number a slot: the worst case still fits. */
        REQUIRE(back != NULL);
        *back = (struct chunk_return){.count = 1, .chunk = {command->chunk}};
        ring_pop(&commands);
    }
    ring_publish(&returns);
    CHECK_EQ(control_free_bytes(&c), total);

    control_chunk_free(&c, 5); /* Given back twice: counts once. */
    control_chunk_free(&c, STOQ_NO_CHUNK);
    CHECK_EQ(control_free_bytes(&c), total);

    /* A full event ring, and the request to be kicked. */
    struct stoq_event *slot;
    for (n = 0; (slot = ring_reserve(&events)) != NULL; n++)
        *slot = (struct stoq_event){.value = n};
    CHECK_EQ(n, SHARED_EVENT_SLOTS);
    ring_publish(&events);
    atomic_store(&s->events_blocked, 1);
    struct stoq_event out[100];
    bool blocked = false;
    CHECK_EQ(control_events(&c, out, 100, &blocked), 100);
    CHECK(blocked);
    CHECK_EQ(out[99].value, 99);
    CHECK_EQ(ring_free(&events, 100), 100);
    control_detach(&c);
    shared_unmap(view);
    shared_unmap(s);
    REQUIRE(ftruncate(fd, 4096) == 0);
    CHECK(shared_map(fd) == NULL);
    close(fd);
}

/* ---- handoff ---- */

enum { HANDED = 20000 };

static void fill_train(struct quic_rx *rx, uint8_t *buffer, uint64_t i) {
    *rx = (struct quic_rx){.data = buffer,
                           .len = 1 + (uint32_t)(i * 7919 % 65000),
                           .segment = (uint16_t)(1 + i % 1400),
                           .ecn = i & 3,
                           .peer = {.port = (uint16_t)i}};
    memset(buffer, (int)(i & 0xff), rx->len);
}

static void *hand_over_all(void *arg) {
    static uint8_t buffer[65536];
    for (uint64_t i = 0; i < HANDED;) {
        struct quic_rx rx;
        fill_train(&rx, buffer, i);
        if (handoff_push(arg, &rx))
            i++;
        else
            sched_yield();
        handoff_publish(arg);
    }
    return NULL;
}

static void handoff_keeps_bytes(void) {
    struct handoff *h = handoff_create();
    REQUIRE(h != NULL);
    pthread_t thread;
    struct quic_rx rx;
    CHECK(!handoff_peek(h, &rx));
    REQUIRE(pthread_create(&thread, NULL, hand_over_all, h) == 0);
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < HANDED;) {
        if (!handoff_peek(h, &rx)) {
            sched_yield();
            continue;
        }
        struct quic_rx want;
        static uint8_t buffer[65536];
        fill_train(&want, buffer, i);
        wrong += rx.len != want.len || rx.segment != want.segment || rx.ecn != want.ecn ||
                 rx.peer.port != want.peer.port || memcmp(rx.data, buffer, want.len) != 0;
        handoff_pop(h);
        i++;
    }
    pthread_join(thread, NULL);
    CHECK_EQ(wrong, 0);
    CHECK(!handoff_waiting(h));
    handoff_destroy(h);
}

static void handoff_is_bounded(void) {
    struct handoff *h = handoff_create();
    REQUIRE(h != NULL);
    static uint8_t buffer[65536];
    struct quic_rx rx = {.data = buffer, .len = 65000, .segment = 1000};
    unsigned n = 0;
    while (n < 100 && handoff_push(h, &rx))
        n++;
    CHECK_EQ(n, HANDOFF_BYTES / 65000);
    rx.len = 1;
    n = 0;
    while (n < 2 * HANDOFF_SLOTS && handoff_push(h, &rx))
        n++;
    CHECK(n < HANDOFF_SLOTS); /* Descriptors are bounded as well. */
    CHECK(handoff_publish(h));
    CHECK(handoff_peek(h, &rx) && rx.len == 65000);
    handoff_pop(h);
    rx = (struct quic_rx){.data = buffer, .len = 60000, .segment = 1000};
    CHECK(handoff_push(h, &rx)); /* Room again. */
    handoff_destroy(h);
}

/* ---- latency ---- */

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void latency_quantiles(void) {
    enum { N = 5000 };
    static struct latency l;
    static uint64_t v[N];
    CHECK_EQ(latency_bucket(UINT64_MAX), LATENCY_BUCKETS - 1);
    CHECK_EQ(latency_quantile(&l, 500), 0);
    for (int i = 0; i < N; i++) {
        v[i] = check_rand() >> (check_rand() % 60);
        latency_record(&l, v[i]);
    }
    qsort(v, N, sizeof v[0], compare);
    CHECK_EQ(l.min, v[0]);
    CHECK_EQ(l.max, v[N - 1]);
    for (unsigned q = 1; q <= 1000; q += 37) {
        uint64_t exact = v[(N * q + 999) / 1000 - 1], got = latency_quantile(&l, q);
        uint64_t off = got > exact ? got - exact : exact - got;
        CHECK(off <= exact / 32 + 1);
    }
    memset(&l, 0, sizeof l);
}

/* ---- configuration ---- */

static bool complete(const struct stoq_config *c, const char *says) {
    struct stoq_config out;
    struct stoq_error error = {0};
    bool ok = stoq_config_complete(c, 7, &out, &error);
    return says ? !ok && error.code < 0 && strstr(error.text, says) != NULL : ok;
}

static void config_is_checked(void) {
    struct stoq_config c = {.workers = 0};
    struct stoq_config out, again;
    REQUIRE(stoq_config_complete(&c, 7, &out, NULL) && stoq_config_complete(&c, 7, &again, NULL));
    CHECK_EQ(out.workers, 1);
    CHECK(out.receive_bytes > 0 && out.send_bytes > 0 && out.metadata_bytes > 0 && out.crypto != NULL);
    CHECK_MEM(out.token_key, again.token_key,
              32); /* A seed gives the same keys, and not the same key twice. */
    CHECK(memcmp(out.token_key, out.reset_key, 32) != 0);
    REQUIRE(stoq_config_complete(&c, 0, &out, NULL) && stoq_config_complete(&c, 0, &again, NULL));
    CHECK(memcmp(out.token_key, again.token_key, 32) != 0);

    memcpy(c.bind.ip, "\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\2\1", 16);
    CHECK(complete(&c, "IPv6-only"));
    CHECK(complete(&c, "192.0.2.1"));
    CHECK(complete(&(struct stoq_config){.workers = STOQ_MAX_WORKERS + 1}, "workers"));
    CHECK(complete(&(struct stoq_config){.max_datagram = 1199}, "max_datagram"));
    CHECK(complete(&(struct stoq_config){.max_datagram = 1200}, NULL));
    CHECK(complete(&(struct stoq_config){.congestion = STOQ_CC_COUNT}, "congestion"));
    CHECK(complete(&(struct stoq_config){.crypto = "rot13"}, "rot13"));
    CHECK(complete(&(struct stoq_config){.receive_bytes = 4096}, "receive_bytes"));
    CHECK(complete(&(struct stoq_config){.max_streams_bidi = (UINT64_C(1) << 60) + 1}, "max_streams_bidi"));
}

static const struct check_case cases[] = {
    {"ring wraps around", ring_wraps},
    {"ring survives a mad peer", ring_survives_a_mad_peer},
    {"ring across threads and mappings", ring_across_threads_and_mappings},
    {"wheel against a model", wheel_against_model},
    {"wheel jumps with a virtual clock", wheel_jumps},
    {"wheel: a callback cannot hold it up", wheel_callback_cannot_hold_it_up},
    {"arena classes", arena_classes},
    {"arena random", arena_random},
    {"arena runs dry and recovers", arena_runs_dry_and_recovers},
    {"chunk numbers", chunk_numbers},
    {"receive pool life", receive_pool_life},
    {"send chunks are adopted once", send_chunks_adopted_once},
    {"control through a second mapping", control_through_second_mapping},
    {"handoff keeps bytes", handoff_keeps_bytes},
    {"handoff is bounded", handoff_is_bounded},
    {"latency quantiles", latency_quantiles},
    {"config is checked", config_is_checked},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
