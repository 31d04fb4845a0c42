/* The XDP program, frame by frame: packets whose connection id or version decides, their rates, and replays.
 */
#include "guard_program.h"

static uint8_t packet[FRAME_MAX];

/* ---- ids ---- */

static void known_and_unknown_ids(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = base_policy();
    reset();
    make_short(packet, 60, UNKNOWN_ID);
    make_frame(&f, &s, packet, 60);
    EXPECT(&f, DROP_UNKNOWN_CID);
    for (unsigned way = 0; way < GUARD_CID_WAYS; way++) {
        struct guard_cids c = {0};
        c.id[way] = UNKNOWN_ID;
        check_note("way %u", way);
        set_cids(UNKNOWN_ID, &c);
        EXPECT(&f, SOCKET);
    }
    set_cids(UNKNOWN_ID, &(struct guard_cids){0});
    EXPECT(&f, DROP_UNKNOWN_CID);
    set_cids(UNKNOWN_ID, &(struct guard_cids){.overflow = 1});
    EXPECT(&f, SOCKET);
    check_note("a worker that is not there");
    p.workers = 3;
    set_policy(&p);
    EXPECT(&f, DROP_UNKNOWN_CID);
    check_note("all zero: a free place is no id");
    make_short(packet, 60, 0);
    make_frame(&f, &s, packet, 60);
    EXPECT(&f, DROP_UNKNOWN_CID);
    check_note("no table");
    p.cid_buckets = 0;
    set_policy(&p);
    EXPECT(&f, SOCKET);
    packet[0] &= 0xbf;
    make_frame(&f, &s, packet, 60);
    EXPECT(&f, DROP_FIXED_BIT);
}

/* Every kind of packet that only an id of ours makes ours. */
static void long_headers_by_id(void) {
    struct frame f;
    struct shape s = plain();
    reset();
    for (unsigned type = 1; type < 5; type++) { /* 0-RTT, Handshake, Retry; then Version Negotiation. */
        struct long_packet l = first_initial();
        l.type = type & 3;
        l.version = type < 4;
        l.bytes = 100;
        check_note("type %u", type);
        make_long_frame(&f, &s, &l);
        EXPECT(&f, DROP_UNKNOWN_CID);
        memcpy(l.dcid, &(uint64_t){KNOWN_ID}, 8);
        make_long_frame(&f, &s, &l);
        EXPECT(&f, SOCKET);
        l.dcid_len = 9; /* Ours have eight bytes. */
        make_long_frame(&f, &s, &l);
        EXPECT(&f, DROP_UNKNOWN_CID);
        l.dcid_len = 0;
        make_long_frame(&f, &s, &l);
        EXPECT(&f, DROP_UNKNOWN_CID);
        l.dcid_len = 8;
        make_long_frame(&f, &s, &l);
        f.b[f.l4 + 8] &= 0xbf; /* RFC 8999: of a version that nobody knows the bit has no meaning. */
        check_verdict(&f, type < 4 ? STOQ_VERDICT_DROP_FIXED_BIT : STOQ_VERDICT_SOCKET, __FILE__, __LINE__);
        for (unsigned which = 0; which < 2 && type < 4; which++) {
            struct long_packet wide = l;
            *(which ? &wide.scid_len : &wide.dcid_len) = 21;
            make_long_frame(&f, &s, &wide);
            EXPECT(&f, DROP_HEADER);
        }
    }
}

static void other_versions(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = base_policy();
    struct long_packet l = first_initial();
    reset();
    l.version = 0x0a0a0a0a;
    l.dcid_len = l.scid_len = 255;
    make_long_frame(&f, &s, &l);
    EXPECT(&f, DROP_VERSION); /* None at all. */
    p.version_limit = 1000000;
    set_policy(&p);
    EXPECT(&f, SOCKET);
    f.b[f.l4 + 8] &= 0xbf;
    EXPECT(&f, SOCKET);
    l.bytes = 1199;
    make_long_frame(&f, &s, &l);
    EXPECT(&f, DROP_VERSION);
}

/* Preset to one below its end, a rate lets one through and stops the next; in a new window it starts again.
 */
static void rate(enum guard_limit limit, const struct frame *f, int within, int past) {
    bool steady = false;
    for (int attempt = 0; attempt < 20 && !steady; attempt++) {
        uint64_t window = clock_ns() / WINDOW_NS;
        set_limit(limit, (struct guard_window){window, 9}); /* 160 a second: ten a window. */
        struct outcome first = judged(f), second = judged(f), third = judged(f);
        steady = clock_ns() / WINDOW_NS == window; /* Else a window went by meanwhile: once more. */
        if (!steady)
            continue;
        CHECK_EQ(first.verdict, within);
        CHECK_EQ(second.verdict, past);
        CHECK_EQ(third.verdict, past);
        CHECK_EQ(get_limit(limit).count, 12);
    }
    REQUIRE(steady);
    set_limit(limit, (struct guard_window){1, 1000000});
    check_verdict(f, within, __FILE__, __LINE__);
    CHECK_EQ(get_limit(limit).count, 1);
    CHECK(get_limit(limit).window != 1);
}

static void rates(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = base_policy();
    reset();
    p.unknown_limit = p.version_limit = 160;
    set_policy(&p);
    make_short(packet, 60, UNKNOWN_ID);
    make_frame(&f, &s, packet, 60);
    rate(GUARD_LIMIT_UNKNOWN, &f, STOQ_VERDICT_SOCKET, STOQ_VERDICT_DROP_UNKNOWN_CID);
    make_frame(&f, &s, packet, 21); /* What may be a stateless reset counts as unknown. */
    rate(GUARD_LIMIT_UNKNOWN, &f, STOQ_VERDICT_SOCKET, STOQ_VERDICT_DROP_UNKNOWN_CID);
    struct long_packet l = first_initial();
    l.type = 2;
    make_long_frame(&f, &s, &l);
    rate(GUARD_LIMIT_UNKNOWN, &f, STOQ_VERDICT_SOCKET, STOQ_VERDICT_DROP_UNKNOWN_CID);
    l.type = 0;
    l.version = 7;
    make_long_frame(&f, &s, &l);
    rate(GUARD_LIMIT_VERSION, &f, STOQ_VERDICT_SOCKET, STOQ_VERDICT_DROP_VERSION);
}

/* ---- replays ---- */

static void replays(void) {
    struct frame f, g;
    struct shape s = plain();
    struct guard_policy p = base_policy();
    reset();
    make_short(packet, 60, KNOWN_ID);
    make_frame(&f, &s, packet, 60);
    EXPECT(&f, SOCKET);
    EXPECT(&f, SOCKET); /* The filter is off. */
    p.flags = GUARD_REPLAY_FILTER;
    set_policy(&p);
    EXPECT(&f, SOCKET);
    EXPECT(&f, DROP_REPLAY);
    EXPECT(&f, DROP_REPLAY);
    for (unsigned at = 9; at < 25; at++) { /* Packet number and the first bytes of ciphertext. */
        check_note("byte %u", at);
        g = f;
        g.b[g.l4 + 8 + at] ^= 1;
        EXPECT(&g, SOCKET);
    }
    check_note("length");
    make_frame(&g, &s, packet, 59);
    EXPECT(&g, SOCKET);
    check_note("another connection from the same bytes would be the same");
    make_short(packet, 60, UNKNOWN_ID);
    make_frame(&g, &s, packet, 60);
    EXPECT(&g, DROP_UNKNOWN_CID); /* What nobody has is not remembered. */
    EXPECT(&g, DROP_UNKNOWN_CID);

    /* Strangers push a packet out of its slot one time in 65536 each. */
    unsigned stayed = 0;
    for (unsigned i = 0; i < 100; i++) {
        make_short(packet, 60, KNOWN_ID);
        make_frame(&g, &s, packet, 60);
        EXPECT(&g, SOCKET);
        stayed += judged(&f).verdict == STOQ_VERDICT_DROP_REPLAY;
    }
    CHECK(stayed >= 99);
}

static const struct check_case cases[] = {
    {"known_and_unknown_ids", known_and_unknown_ids},
    {"long_headers_by_id", long_headers_by_id},
    {"other_versions", other_versions},
    {"rates", rates},
    {"replays", replays},
};

int main(int argc, char **argv) {
    return run_program_tests(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
