/* The XDP program, frame by frame: what an Initial has to be, and how many of them pass.
 */
#include "guard_retry.h"

static uint8_t packet[FRAME_MAX];

/* ---- what an Initial has to be ---- */

static void sizes_and_ids(void) {
    struct frame f;
    struct shape s = plain();
    struct long_packet l = first_initial();
    reset();
    make_long_frame(&f, &s, &l);
    EXPECT(&f, SOCKET); /* No limits are set. */
    l.bytes = 1199;
    make_long_frame(&f, &s, &l);
    EXPECT(&f, DROP_INITIAL_SMALL);
    struct long_packet server = l;
    memcpy(server.dcid, &(uint64_t){KNOWN_ID}, 8);
    server.bytes = 100; /* A server's, to our client: may be small. */
    make_long_frame(&f, &s, &server);
    EXPECT(&f, SOCKET);
    l.bytes = 1200;
    for (unsigned len = 0; len <= 20; len++) {
        check_note("destination of %u bytes", len);
        l.dcid_len = (uint8_t)len;
        make_long_frame(&f, &s, &l);
        check_verdict(&f, len < 8 ? STOQ_VERDICT_DROP_HEADER : STOQ_VERDICT_SOCKET, __FILE__, __LINE__);
    }
    check_note("ids too long");
    l.dcid_len = 21;
    make_long_frame(&f, &s, &l);
    EXPECT(&f, DROP_HEADER);
    l.dcid_len = 8;
    l.scid_len = 21;
    make_long_frame(&f, &s, &l);
    EXPECT(&f, DROP_HEADER);
    check_note("fixed bit");
    l = first_initial();
    make_long_frame(&f, &s, &l);
    f.b[f.l4 + 8] &= 0xbf;
    EXPECT(&f, DROP_FIXED_BIT);
}

/* Token and length fields that end where they may, and one byte later; in every size of integer. */
static void varints(void) {
    static const struct {
        size_t bytes;
        uint64_t mark;
    } sizes[] = {{1, 0}, {2, UINT64_C(0x4000)}, {4, UINT64_C(0x80000000)}, {8, UINT64_C(3) << 62}};
    struct frame f;
    struct shape s = plain();
    reset();
    const size_t ids = 7 + 8 + 8;
    for (unsigned i = 0; i < 4; i++) {
        for (int more = -1; more <= 1; more++) {
            struct long_packet l = first_initial();
            size_t n = sizes[i].bytes;
            uint8_t number[8];
            check_note("integer of %zu bytes, %+d", n, more);
            /* The length field; a one-byte one cannot name the whole packet. */
            make_long(packet, &l);
            uint64_t length = n == 1 ? 63 : 1200 - ids - 1 - n + (uint64_t)(int64_t)more;
            quic_store64(number, (sizes[i].mark | length) << (64 - 8 * n));
            packet[ids] = 0; /* No token. */
            memcpy(packet + ids + 1, number, n);
            make_frame(&f, &s, packet, 1200);
            check_verdict(&f, n > 1 && more > 0 ? STOQ_VERDICT_DROP_HEADER : STOQ_VERDICT_SOCKET, __FILE__,
                          __LINE__);
            /* The token's, which would reach the packet's end. */
            make_long(packet, &l);
            uint64_t token = n == 1 ? 63 : 1200 - ids - n + (uint64_t)(int64_t)more;
            quic_store64(number, (sizes[i].mark | token) << (64 - 8 * n));
            memcpy(packet + ids, number, n);
            quic_store16(packet + ids + n + 63, 0x4010); /* A length behind the short one. */
            make_frame(&f, &s, packet, 1200);
            /* One that leaves nothing behind it is malformed, but behind 1024 bytes the program does not
             * look: the engine does. */
            check_verdict(&f, n > 1 && more > 0 ? STOQ_VERDICT_DROP_HEADER : STOQ_VERDICT_SOCKET, __FILE__,
                          __LINE__);
        }
    }
    struct long_packet l = first_initial();
    make_long(packet, &l);
    quic_store64(packet + ids, UINT64_MAX); /* 2^62 - 1 */
    make_frame(&f, &s, packet, 1200);
    check_note("largest token");
    EXPECT(&f, DROP_HEADER);
    packet[ids] = 0;
    quic_store64(packet + ids + 1, UINT64_MAX);
    make_frame(&f, &s, packet, 1200);
    check_note("largest length");
    EXPECT(&f, DROP_HEADER);
}

/* Without a table nobody can tell a small Initial, or one with an odd token, from a handshake's under way. */
static void without_a_table(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = answering();
    reset();
    p.cid_buckets = 0;
    set_policy(&p);
    struct long_packet l = first_initial();
    make_long_frame(&f, &s, &l);
    EXPECT(&f, ANSWER_RETRY);
    l.bytes = 100;
    make_long_frame(&f, &s, &l);
    EXPECT(&f, DROP_UNKNOWN_CID);
    p.unknown_limit = 1000000;
    set_policy(&p);
    EXPECT(&f, SOCKET);
    l.bytes = 1200;
    struct quic_cid original = cid_of(l.scid, 8);
    l.token_len = make_token(&p, &s, slot_now(), &original, l.scid, l.token);
    make_long_frame(&f, &s, &l);
    EXPECT(&f, SOCKET);
    p.unknown_limit = 0;
    set_policy(&p);
    EXPECT(&f, DROP_UNKNOWN_CID);
}

/* ---- rates ---- */

static bool get_bucket(const struct shape *s, struct guard_bucket *b) {
    return bpf_map_lookup_elem(map_fd(skeleton->maps.sources), s->src, b) == 0;
}

static void set_bucket(const struct shape *s, uint64_t updated_ns, uint64_t tokens) {
    struct guard_bucket b = {updated_ns, tokens};
    REQUIRE(bpf_map_update_elem(map_fd(skeleton->maps.sources), s->src, &b, BPF_ANY) == 0);
}

static void buckets(void) {
    const uint64_t hour = 3600 * SECOND_NS;
    struct frame f;
    struct shape s = plain(), other = plain();
    struct guard_policy p = base_policy();
    struct long_packet l = first_initial();
    struct guard_bucket b;
    reset();
    p.initial_interval_ns = hour; /* So that nothing is earned while the test runs. */
    p.initial_burst = 5;
    set_policy(&p);
    for (unsigned i = 0; i < 7; i++) {
        s.src[8 + i] ^= 0x55; /* Anywhere in the /64 is the same. */
        s.sport++;
        make_long_frame(&f, &s, &l);
        check_note("Initial %u", i);
        check_verdict(&f, i < 5 ? STOQ_VERDICT_SOCKET : STOQ_VERDICT_DROP_INITIAL_RATE, __FILE__, __LINE__);
    }
    check_note("another prefix");
    other.src[7] ^= 1;
    make_long_frame(&f, &other, &l);
    EXPECT(&f, SOCKET);

    check_note("earned");
    make_long_frame(&f, &s, &l);
    set_bucket(&s, clock_ns() - hour / 2, hour / 2);
    EXPECT(&f, SOCKET);
    EXPECT(&f, DROP_INITIAL_RATE);
    set_bucket(&s, clock_ns() - hour / 2, hour / 4);
    EXPECT(&f, DROP_INITIAL_RATE);
    REQUIRE(get_bucket(&s, &b));
    CHECK(b.tokens >= 3 * (hour / 4) && b.tokens < hour); /* A refusal costs nothing. */
    for (unsigned spare = 6; spare < 1000; spare *= 5) {  /* Never more than the burst. */
        set_bucket(&s, clock_ns() - spare * hour, 0);
        for (unsigned i = 0; i < 6; i++)
            check_verdict(&f, i < 5 ? STOQ_VERDICT_SOCKET : STOQ_VERDICT_DROP_INITIAL_RATE, __FILE__,
                          __LINE__);
    }
    set_bucket(&s, clock_ns() + hour, 0); /* Another CPU's clock a little ahead earns nothing. */
    EXPECT(&f, DROP_INITIAL_RATE);

    check_note("what has no bucket");
    set_bucket(&s, clock_ns(), 0);
    memcpy(l.dcid, &(uint64_t){KNOWN_ID}, 8);
    make_long_frame(&f, &s, &l);
    EXPECT(&f, SOCKET); /* A connection that is there. */
    make_short(packet, 60, KNOWN_ID);
    make_frame(&f, &s, packet, 60);
    EXPECT(&f, SOCKET);

    check_note("no burst");
    p.initial_burst = 0;
    set_policy(&p);
    empty_map(skeleton->maps.sources, 8);
    l = first_initial();
    make_long_frame(&f, &s, &l);
    EXPECT(&f, SOCKET);
    EXPECT(&f, DROP_INITIAL_RATE);
}

/* Past the machine's rate an Initial is answered, and leaves no trace in `sources`: a spoofed flood cannot
 * push out those who are in it. */
static void floods_are_answered(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = answering();
    struct long_packet l = first_initial();
    struct guard_bucket b;
    reset();
    p.flags = 0;
    p.retry_above = 160;
    p.retry_limit = 160;
    p.initial_interval_ns = 3600 * SECOND_NS;
    p.initial_burst = 2;
    set_policy(&p);
    bool steady = false;
    for (int attempt = 0; attempt < 20 && !steady; attempt++) {
        static const int want[] = {STOQ_VERDICT_SOCKET, STOQ_VERDICT_ANSWER_RETRY, STOQ_VERDICT_ANSWER_RETRY,
                                   STOQ_VERDICT_DROP_RETRY_RATE};
        struct outcome o[4];
        bool entered[4];
        empty_map(skeleton->maps.sources, 8);
        uint64_t window = clock_ns() / WINDOW_NS;
        set_limit(GUARD_LIMIT_INITIAL, (struct guard_window){window, 9}); /* Ten a window. */
        set_limit(GUARD_LIMIT_RETRY, (struct guard_window){window, 8});
        for (unsigned i = 0; i < 4; i++) {
            s.src[7] = (uint8_t)(16 + i);
            make_long_frame(&f, &s, &l);
            o[i] = judged(&f);
            entered[i] = get_bucket(&s, &b);
        }
        steady = clock_ns() / WINDOW_NS == window;
        for (unsigned i = 0; steady && i < 4; i++) {
            check_note("source %u", i);
            CHECK_EQ(o[i].verdict, want[i]);
            CHECK_EQ(entered[i], i == 0);
        }
    }
    REQUIRE(steady);
    check_note("who is in it is limited in a flood too");
    s = plain();
    set_bucket(&s, clock_ns(), 0);
    set_limit(GUARD_LIMIT_INITIAL, (struct guard_window){clock_ns() / WINDOW_NS, 1000});
    make_long_frame(&f, &s, &l);
    EXPECT(&f, DROP_INITIAL_RATE);
    check_note("the flood is over");
    set_bucket(&s, clock_ns(), p.initial_interval_ns);
    set_limit(GUARD_LIMIT_INITIAL, (struct guard_window){1, 1000});
    EXPECT(&f, SOCKET);
}

static void retry_without_limit(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = answering();
    struct long_packet l = first_initial();
    reset();
    set_policy(&p);
    make_long_frame(&f, &s, &l);
    for (unsigned i = 0; i < 200; i++)
        EXPECT(&f, ANSWER_RETRY);
    CHECK_EQ(get_limit(GUARD_LIMIT_RETRY).count, 0); /* 0 is no limit, and nobody counts. */
}

static const struct check_case cases[] = {
    {"sizes_and_ids", sizes_and_ids},
    {"varints", varints},
    {"without_a_table", without_a_table},
    {"buckets", buckets},
    {"floods_are_answered", floods_are_answered},
    {"retry_without_limit", retry_without_limit},
};

int main(int argc, char **argv) {
    return run_program_tests(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
