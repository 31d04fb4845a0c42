/* The XDP program, frame by frame: the Retry that it answers with, which the engine's own code checks, the
 * tokens that come back, and the mirror, which shows what came rather than what was made of it.
 */
#include "guard_retry.h"

#include "crypto/crypto.h"
#include "leaf_host.h"

/* ---- the Retry ---- */

static struct leaf_memory memory;
static struct quic_host host;

static struct quic_token_sealer *make_sealer(void) {
    const struct crypto_provider *all[4];
    REQUIRE(crypto_providers(all, 4) > 0);
    host = leaf_host(&memory);
    struct quic_token_sealer *sealer = quic_token_sealer_create(all[0], &host, token_key);
    REQUIRE(sealer != NULL);
    return sealer;
}

/* What the answer to `f` says, after everything about it was checked. */
struct retry {
    uint8_t scid[8];
    uint8_t token[QUIC_MAX_TOKEN_BYTES];
    size_t token_len;
};

static struct retry check_answer(const struct frame *f, const struct shape *s, const struct long_packet *l,
                                 struct outcome *o) {
    struct retry result = {0};
    REQUIRE(o->verdict == STOQ_VERDICT_ANSWER_RETRY);
    const uint8_t *out = o->out, *ip = out + f->l3, *udp = ip + 40;
    size_t udp_bytes = o->out_len - f->l3 - 40;

    CHECK_MEM(out, f->b + 6, 6);
    CHECK_MEM(out + 6, f->b, 6);
    CHECK_MEM(out + 12, f->b + 12, f->l3 - 12); /* Tags and type stay. */
    CHECK_EQ(quic_load32(ip), 0x60000000);      /* No class, no label. */
    CHECK_EQ(quic_load16(ip + 4), udp_bytes);
    CHECK_EQ(ip[6], 17);
    CHECK_EQ(ip[7], 64);
    CHECK_MEM(ip + 8, s->dst, 16);
    CHECK_MEM(ip + 24, s->src, 16);
    CHECK_EQ(quic_load16(udp), s->dport);
    CHECK_EQ(quic_load16(udp + 2), s->sport);
    CHECK_EQ(quic_load16(udp + 4), udp_bytes);
    CHECK(quic_load16(udp + 6) != 0);
    CHECK_EQ(udp_sum(ip, udp, udp_bytes), 0xffff);
    CHECK(o->out_len * 8 <= f->len); /* Nothing is amplified. */

    struct parse_frame parsed;
    CHECK_EQ(parse_frame(out, out + o->out_len, o->out_len, &parsed), PARSE_UDP);
    CHECK_EQ(parsed.payload_bytes, udp_bytes - 8);

    struct quic_header h;
    struct quic_cid original = cid_of(l->dcid, l->dcid_len), client = cid_of(l->scid, l->scid_len);
    REQUIRE(quic_packet_parse(o->out + f->l3 + 48, udp_bytes - 8, 8, &h) == QUIC_PARSE_OK);
    REQUIRE(h.type == QUIC_PACKET_RETRY && h.version == 1 && h.scid_len == 8);
    CHECK(quic_retry_valid(&h, &original));
    REQUIRE(h.dcid_len == l->scid_len);
    CHECK_MEM(h.dcid, l->scid, l->scid_len);
    CHECK_EQ(h.scid[0] & 0xe0, 0);
    REQUIRE(h.token_len <= sizeof result.token);
    memcpy(result.scid, h.scid, 8);
    memcpy(result.token, h.token, h.token_len);
    result.token_len = h.token_len;

    /* The engine makes the very same packet of these parts. */
    uint8_t again[256];
    struct quic_cid scid = cid_of(h.scid, 8);
    size_t len = quic_put_retry(again, sizeof again, 1, &client, &scid, &original, h.token, h.token_len);
    REQUIRE(len == udp_bytes - 8);
    CHECK_MEM(again, udp + 8, len);

    /* And takes the token. */
    struct quic_token_sealer *sealer = make_sealer();
    struct quic_addr peer = {.port = s->sport};
    struct quic_token t;
    memcpy(peer.ip, s->src, 16);
    CHECK_EQ(quic_token_open(sealer, h.token, h.token_len, &peer, &scid, clock_ns(), &t), QUIC_TOKEN_VALID);
    CHECK_EQ(t.kind, QUIC_TOKEN_RETRY);
    CHECK(quic_cid_equal(&t.original_dcid, &original) && quic_cid_equal(&t.retry_scid, &scid));
    quic_token_sealer_destroy(sealer, &host);
    return result;
}

static void answers_are_valid(void) {
    struct frame f;
    struct guard_policy p = answering();
    reset();
    set_policy(&p);
    uint8_t seen_bits[8] = {0};
    for (unsigned dcid_len = 8; dcid_len <= 20; dcid_len++) {
        for (unsigned scid_len = 0; scid_len <= 20; scid_len++) {
            struct shape s = plain();
            struct long_packet l = first_initial();
            uint8_t chain[16] = {[9] = 0};
            check_note("ids of %u and %u bytes", dcid_len, scid_len);
            l.dcid_len = (uint8_t)dcid_len;
            l.scid_len = (uint8_t)scid_len;
            s.tags = scid_len % 3;
            if (dcid_len % 4 == 0) { /* Extension headers are not sent back. */
                chain[0] = 60;
                s.chain = chain;
                s.chain_bytes = sizeof chain;
                s.chain_last = 8;
            }
            check_rand_bytes(s.src + 8, 8);
            s.sport = (uint16_t)(check_rand() | 1);
            l.bytes = 1200 + check_rand() % 200;
            make_long_frame(&f, &s, &l);
            f.b[f.l3] |= 5; /* Traffic class and flow label, which the answer has not. */
            f.b[f.l3 + 3] = 9;
            struct outcome o = judged(&f);
            struct retry r = check_answer(&f, &s, &l, &o);
            CHECK_EQ(r.scid[1], p.worker_of_queue[0]);
            for (int i = 0; i < 8; i++)
                seen_bits[i] |= r.scid[i];
        }
    }
    for (int i = 2; i < 8; i++) /* 273 answers: each random bit was 1 once, or there is no chance in it. */
        CHECK_EQ(seen_bits[i], 0xff);
    CHECK_EQ(seen_bits[0], 0x1f);
}

/* Padding of a jumbo frame goes with the other buffers; where the first one is small, the answer's end lies
 * in the second. */
static void answers_to_several_buffers(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = answering();
    reset();
    set_policy(&p);
    struct long_packet l = first_initial();
    l.bytes = 8000;
    make_long_frame(&f, &s, &l);
    struct outcome o = judged(&f);
    check_answer(&f, &s, &l, &o);
    if (!linear_can_be_set()) {
        printf("   not tested: this kernel puts as much into the first buffer as it takes\n");
        return;
    }
    for (arrival.linear = 96; arrival.linear < 160; arrival.linear++) {
        check_note("first buffer of %u", arrival.linear);
        o = judged(&f);
        check_answer(&f, &s, &l, &o);
    }
}

static void answers_name_the_queue_s_worker(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = answering();
    reset();
    set_policy(&p);
    struct long_packet l = first_initial();
    make_long_frame(&f, &s, &l);
    REQUIRE(system("ip link add guardq numrxqueues 4 type veth") == 0);
    arrival.ifindex = if_nametoindex("guardq");
    for (arrival.queue = 0; arrival.queue < 4; arrival.queue++) {
        struct outcome o = judged(&f);
        struct retry r = check_answer(&f, &s, &l, &o);
        CHECK_EQ(r.scid[1], p.worker_of_queue[arrival.queue]);
    }
    arrival.ifindex = arrival.queue = 0;
    REQUIRE(system("ip link del guardq") == 0);
}

/* ---- tokens ---- */

/* The client comes back with what the Retry gave it. */
static void the_way_through_a_retry(void) {
    struct frame f;
    struct guard_policy p = answering();
    reset();
    p.initial_interval_ns = SECOND_NS;
    p.initial_burst = 1;
    set_policy(&p);
    for (unsigned dcid_len = 8; dcid_len <= 20; dcid_len++) {
        struct shape s = plain();
        struct long_packet l = first_initial(), next;
        check_note("first id of %u bytes", dcid_len);
        l.dcid_len = (uint8_t)dcid_len;
        make_long_frame(&f, &s, &l);
        struct outcome o = judged(&f);
        struct retry r = check_answer(&f, &s, &l, &o);
        next = l;
        next.dcid_len = 8;
        memcpy(next.dcid, r.scid, 8);
        next.token_len = r.token_len;
        memcpy(next.token, r.token, r.token_len);
        make_long_frame(&f, &s, &next);
        for (int copy = 0; copy < 3; copy++) /* Whatever its prefix sends: who can be reached has no rate. */
            EXPECT(&f, SOCKET);

        struct shape elsewhere = s;
        elsewhere.sport ^= 1;
        make_long_frame(&f, &elsewhere, &next);
        EXPECT(&f, DROP_TOKEN);
        elsewhere = s;
        elsewhere.src[15] ^= 1;
        make_long_frame(&f, &elsewhere, &next);
        EXPECT(&f, DROP_TOKEN);
        struct long_packet changed = next;
        changed.dcid[7] ^= 1;
        make_long_frame(&f, &s, &changed);
        EXPECT(&f, DROP_TOKEN);
        changed = next;
        changed.dcid_len = 9;
        make_long_frame(&f, &s, &changed);
        EXPECT(&f, DROP_TOKEN);
        for (size_t at = 1; at < r.token_len;
             at++) { /* Each byte but the kind; the length's makes it foreign. */
            changed = next;
            changed.token[at] ^= 1;
            make_long_frame(&f, &s, &changed);
            check_note("first id of %u bytes, byte %zu", dcid_len, at);
            check_verdict(&f, at == 5 ? STOQ_VERDICT_ANSWER_RETRY : STOQ_VERDICT_DROP_TOKEN, __FILE__,
                          __LINE__);
        }
        changed = next;
        changed.token[0] = QUIC_TOKEN_NEW;
        make_long_frame(&f, &s, &changed);
        EXPECT(&f, ANSWER_RETRY);
        make_long_frame(&f, &s, &next);
        EXPECT(&f, SOCKET);
        p.retry_key[1] ^= 1; /* Another server's. */
        set_policy(&p);
        EXPECT(&f, DROP_TOKEN);
        p.retry_key[1] ^= 1;
        set_policy(&p);
    }
}

static void tokens_live_ten_seconds(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = answering();
    struct long_packet l = first_initial();
    struct quic_cid original = cid_of(l.scid, 8); /* Any eight bytes. */
    reset();
    set_policy(&p);
    /* The slot may end between here and there: those right at the edge are in user space below. */
    static const struct {
        int age;
        int want;
    } cases[] = {{0, STOQ_VERDICT_SOCKET},        {9, STOQ_VERDICT_SOCKET},  {11, STOQ_VERDICT_DROP_TOKEN},
                 {3600, STOQ_VERDICT_DROP_TOKEN}, {-1, STOQ_VERDICT_SOCKET}, {-3, STOQ_VERDICT_DROP_TOKEN},
                 {-3600, STOQ_VERDICT_DROP_TOKEN}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_note("%d seconds old", cases[i].age);
        l.token_len = make_token(&p, &s, slot_now() - (uint32_t)cases[i].age, &original, l.dcid, l.token);
        make_long_frame(&f, &s, &l);
        check_verdict(&f, cases[i].want, __FILE__, __LINE__);
    }
    uint8_t token[40] = {0};
    for (int age = -4; age <= 14; age++) {
        size_t len = make_token(&p, &s, 1000, &original, l.dcid, token);
        uint8_t port[2];
        quic_store16(port, s.sport);
        const __u64 key[2] = {p.retry_key[0], p.retry_key[1]};
        check_note("%d slots old", age);
        CHECK_EQ(retry_token_check(key, s.src, port, (uint32_t)(1000 + age), token, (uint32_t)len, l.dcid, 8),
                 age >= -1 && age <= 10 ? RETRY_TOKEN_GOOD : RETRY_TOKEN_BAD);
    }
}

/* Tokens that are not of the Retry form are no tokens to the program: the engine knows others. */
static void foreign_tokens(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = answering();
    reset();
    set_policy(&p);
    for (size_t len = 0; len <= 300; len += len < 70 ? 1 : 23) {
        struct long_packet l = first_initial();
        check_rand_bytes(l.token, sizeof l.token);
        l.token[0] = RETRY_TOKEN_KIND;
        l.token[5] = 21; /* An id of no length that there is. */
        l.token_len = len;
        make_long_frame(&f, &s, &l);
        check_note("%zu bytes", len);
        EXPECT(&f, ANSWER_RETRY);
        l.token[5] = 8; /* Good for 22 bytes and no others. */
        make_long_frame(&f, &s, &l);
        check_verdict(&f, len == 22 ? STOQ_VERDICT_DROP_TOKEN : STOQ_VERDICT_ANSWER_RETRY, __FILE__,
                      __LINE__);
    }
}

/* ---- the mirror ---- */

static struct {
    unsigned copies;
    struct guard_mirrored head;
    uint8_t bytes[GUARD_SNAP_BYTES];
} mirrored;

static int take(void *ctx, void *data, size_t len) {
    (void)ctx;
    mirrored.copies++;
    memcpy(&mirrored.head, data, sizeof mirrored.head);
    size_t bytes = len - sizeof mirrored.head;
    CHECK(bytes <= sizeof mirrored.bytes && bytes == mirrored.head.snapped_bytes);
    memcpy(mirrored.bytes, (uint8_t *)data + sizeof mirrored.head, bytes);
    return 0;
}

static void the_mirror_shows_what_came(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = answering();
    struct long_packet l = first_initial();
    reset();
    struct ring_buffer *ring = ring_buffer__new(map_fd(skeleton->maps.mirror), take, NULL, NULL);
    REQUIRE(ring != NULL);
    p.mirror_sample = 1;
    p.mirror_verdicts = UINT64_C(1) << STOQ_VERDICT_ANSWER_RETRY;
    static const size_t sizes[] = {1200, 1400, 5000};
    static const uint32_t snaps[] = {1, 64, 2047, 2048, 4096, UINT32_MAX};
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned j = 0; j < 6; j++) {
            p.mirror_snap = snaps[j];
            set_policy(&p);
            l.bytes = sizes[i];
            make_long_frame(&f, &s, &l);
            check_note("%zu bytes of which %u", f.len, snaps[j]);
            mirrored.copies = 0;
            EXPECT(&f, ANSWER_RETRY);
            ring_buffer__consume(ring);
            size_t want = f.len < snaps[j] ? f.len : snaps[j];
            want = want < GUARD_SNAP_BYTES ? want : GUARD_SNAP_BYTES;
            REQUIRE(mirrored.copies == 1);
            CHECK_EQ(mirrored.head.frame_bytes, f.len);
            CHECK_EQ(mirrored.head.snapped_bytes, want);
            CHECK_EQ(mirrored.head.verdict, STOQ_VERDICT_ANSWER_RETRY);
            CHECK_EQ(mirrored.head.queue, 0);
            CHECK(clock_ns() - mirrored.head.time_ns < 60 * SECOND_NS);
            CHECK_MEM(mirrored.bytes, f.b, want); /* The Initial, not what was made of it. */
        }
    }
    check_note("every third");
    cpu_set_t cpu; /* Each CPU counts its own. */
    CPU_ZERO(&cpu);
    CPU_SET((unsigned)sched_getcpu(), &cpu);
    REQUIRE(sched_setaffinity(0, sizeof cpu, &cpu) == 0);
    mirrored.copies = 0;
    p.mirror_snap = 64;
    p.mirror_sample = 3;
    set_policy(&p);
    for (unsigned i = 0; i < 30; i++)
        EXPECT(&f, ANSWER_RETRY);
    ring_buffer__consume(ring);
    CHECK_EQ(mirrored.copies, 10);
    p.mirror_sample = 1;
    check_note("nothing to copy");
    mirrored.copies = 0;
    p.mirror_snap = 0;
    set_policy(&p);
    EXPECT(&f, ANSWER_RETRY);
    p.mirror_snap = 64;
    p.mirror_verdicts = ~p.mirror_verdicts; /* All but this one. */
    set_policy(&p);
    EXPECT(&f, ANSWER_RETRY);
    p.mirror_verdicts = ~UINT64_C(0);
    p.mirror_sample = 0;
    set_policy(&p);
    EXPECT(&f, ANSWER_RETRY);
    ring_buffer__consume(ring);
    CHECK_EQ(mirrored.copies, 0);
    ring_buffer__free(ring);
}

/* ---- speed ---- */

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* The middle of single runs: an answer changes its frame, so the kernel cannot repeat it. */
static uint32_t middle(const struct frame *f) {
    enum { RUNS = 1001 };
    static uint32_t ns[RUNS];
    static uint8_t out[FRAME_MAX];
    for (unsigned i = 0; i < RUNS; i++) {
        LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = f->b, .data_size_in = (uint32_t)f->len,
                    .data_out = out, .data_size_out = sizeof out, .repeat = 1);
        REQUIRE(bpf_prog_test_run_opts(program_fd, &run) == 0);
        ns[i] = run.duration;
    }
    qsort(ns, RUNS, sizeof ns[0], by_value);
    return ns[RUNS / 2];
}

static void speed(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = answering();
    struct long_packet l = first_initial();
    reset();
    make_long_frame(&f, &s, &l);
    printf("   single runs, with the kernel's own time to begin and end one:\n");
    f.b[12] = 0;
    printf("   %-34s %4u ns\n", "PASS_OTHER, no IP", middle(&f));
    f.b[12] = 0x86;
    printf("   %-34s %4u ns\n", "SOCKET, Initial without limits", middle(&f));
    p.initial_interval_ns = 1;
    p.initial_burst = 100;
    p.retry_above = UINT32_MAX;
    p.flags = 0;
    set_policy(&p);
    printf("   %-34s %4u ns\n", "SOCKET, Initial by its bucket", middle(&f));
    p = answering();
    p.retry_limit = UINT32_MAX;
    set_policy(&p);
    printf("   %-34s %4u ns\n", "ANSWER_RETRY", middle(&f));
    struct quic_cid original = cid_of(l.scid, 8);
    l.token_len = make_token(&p, &s, slot_now() + 1, &original, l.dcid, l.token);
    make_long_frame(&f, &s, &l);
    printf("   %-34s %4u ns\n", "SOCKET, Initial with a token", middle(&f));
}

static const struct check_case cases[] = {
    {"answers_are_valid", answers_are_valid},
    {"answers_to_several_buffers", answers_to_several_buffers},
    {"answers_name_the_queue_s_worker", answers_name_the_queue_s_worker},
    {"the_way_through_a_retry", the_way_through_a_retry},
    {"tokens_live_ten_seconds", tokens_live_ten_seconds},
    {"foreign_tokens", foreign_tokens},
    {"the_mirror_shows_what_came", the_mirror_shows_what_came},
    {"speed", speed},
};

int main(int argc, char **argv) {
    return run_program_tests(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
