/* The XDP program, frame by frame: what passes, what is dropped and why, down to UDP and the blocklist; where
 * goes what is ours. QUIC's rules are the other files'.
 */
#include "guard_program.h"

/* ---- loading ---- */

/* The kernel's limit is a million; each is looked at once per load, and a hundred thousand take a tenth of a
 * second. */
#define VERIFIER_BOUND 100000

static void loads_within_the_bound(void) {
    struct bpf_prog_info info = {0};
    uint32_t len = sizeof info;
    REQUIRE(bpf_obj_get_info_by_fd(program_fd, &info, &len) == 0);
    printf("   verifier: %u instructions processed; %u translated, %u bytes of machine code\n",
           info.verified_insns, info.xlated_prog_len / 8, info.jited_prog_len);
    CHECK(info.verified_insns > 0 && info.verified_insns < VERIFIER_BOUND);
    CHECK_EQ(info.gpl_compatible, 1);
    CHECK_EQ(bpf_program__type(skeleton->progs.stoq_guard), BPF_PROG_TYPE_XDP);
}

/* ---- what is not ours ---- */

static uint8_t packet[FRAME_MAX];

static void known_frame(struct frame *f, const struct shape *s) {
    make_short(packet, 60, KNOWN_ID);
    make_frame(f, s, packet, 60);
}

static void ours_and_others(void) {
    struct frame f;
    struct shape s = plain();
    reset();
    known_frame(&f, &s);
    EXPECT(&f, SOCKET);
    s.dport = PORT + 1;
    known_frame(&f, &s);
    EXPECT(&f, PASS_OTHER);
    s.dport = 53;
    s.sport = PORT; /* An answer from a STOQ port elsewhere is none to one of ours. */
    known_frame(&f, &s);
    EXPECT(&f, PASS_OTHER);
    s = plain();
    s.dst[15] ^= 1;
    known_frame(&f, &s);
    EXPECT(&f, PASS_ADDRESS);
    s = plain();
    s.upper = 6; /* TCP to the same number. */
    known_frame(&f, &s);
    EXPECT(&f, PASS_OTHER);
    s.upper = 58;
    known_frame(&f, &s);
    EXPECT(&f, PASS_MANAGEMENT);
    s.upper = 59; /* No next header. */
    known_frame(&f, &s);
    EXPECT(&f, PASS_OTHER);
    s.upper = 50; /* ESP. */
    known_frame(&f, &s);
    EXPECT(&f, PASS_OTHER);
    s = plain();
    known_frame(&f, &s);
    quic_store16(f.b + 12, 0x0806); /* ARP */
    EXPECT(&f, PASS_OTHER);
    known_frame(&f, &s);
    f.b[f.l3] = 0x50; /* Says IPv6 and is something else. */
    EXPECT(&f, PASS_OTHER);
    if (near)
        return; /* The loader would have taken the port from `near` too. */
    empty_map(skeleton->maps.ports, 2);
    known_frame(&f, &s);
    EXPECT(&f, PASS_OTHER); /* A guard without a port guards nothing. */
}

static void tags_are_looked_through(void) {
    struct frame f;
    struct shape s = plain();
    reset();
    for (s.tags = 0; s.tags <= PARSE_MAX_TAGS; s.tags++) {
        known_frame(&f, &s);
        check_note("%u tags", s.tags);
        EXPECT(&f, SOCKET);
    }
    known_frame(&f, &s); /* One more. */
    EXPECT(&f, PASS_OTHER);
}

static void make_ipv4(struct frame *f, uint8_t protocol, unsigned words, uint16_t fragment, uint16_t dport) {
    struct shape s = plain();
    known_frame(f, &s);
    quic_store16(f->b + 12, 0x0800);
    memset(f->b + 14, 0, 60);
    f->b[14] = (uint8_t)(0x40 | words);
    quic_store16(f->b + 20, fragment);
    f->b[23] = protocol;
    quic_store16(f->b + 14 + 4 * words, 40000);
    quic_store16(f->b + 14 + 4 * words + 2, dport);
}

static void ipv4(void) {
    struct frame f;
    reset();
    make_ipv4(&f, 17, 5, 0, PORT);
    EXPECT(&f, DROP_IPV4);
    make_ipv4(&f, 17, 15, 0, PORT); /* With options. */
    EXPECT(&f, DROP_IPV4);
    make_ipv4(&f, 17, 5, 0x2000, PORT); /* A first fragment has ports. */
    EXPECT(&f, DROP_IPV4);
    make_ipv4(&f, 17, 5, 0x2001, PORT); /* A later one has none. */
    EXPECT(&f, PASS_OTHER);
    make_ipv4(&f, 17, 5, 0x0100, PORT);
    EXPECT(&f, PASS_OTHER);
    make_ipv4(&f, 17, 5, 0, PORT + 1);
    EXPECT(&f, PASS_OTHER);
    make_ipv4(&f, 6, 5, 0, PORT);
    EXPECT(&f, PASS_OTHER);
    make_ipv4(&f, 17, 4, 0, PORT); /* A header shorter than the shortest. */
    EXPECT(&f, PASS_OTHER);
    make_ipv4(&f, 17, 5, 0, PORT);
    f.len = 14 + 20 + 3; /* The port is cut off. */
    EXPECT(&f, PASS_OTHER);
}

/* ---- extension headers ---- */

struct chain {
    uint8_t b[600];
    size_t bytes, last;
    uint8_t first;
};

/* `kind` with `bytes` behind what is there. */
static void add_header(struct chain *c, uint8_t kind, size_t bytes) {
    if (c->bytes == 0)
        c->first = kind;
    else
        c->b[c->last] = kind;
    c->last = c->bytes;
    memset(c->b + c->bytes, 0, bytes);
    c->b[c->bytes + 1] = (uint8_t)(kind == 51 ? bytes / 4 - 2 : kind == 44 ? 0 : bytes / 8 - 1);
    c->bytes += bytes;
}

static void chained_frame(struct frame *f, struct shape *s, const struct chain *c) {
    s->chain = c->b;
    s->chain_bytes = c->bytes;
    s->chain_last = c->last;
    s->chain_first = c->first;
    known_frame(f, s);
}

static void chains_within_the_bound(void) {
    static const uint8_t kinds[] = {0, 60, 43, 44, 51, 60, 60, 60};
    struct frame f;
    reset();
    for (unsigned n = 0; n <= 8; n++) {
        struct chain c = {0};
        struct shape s = plain();
        for (unsigned i = 0; i < n; i++)
            add_header(&c, kinds[i], kinds[i] == 51 ? 12 : 8);
        check_note("%u headers", n);
        chained_frame(&f, &s, &c);
        check_verdict(&f, n <= PARSE_MAX_EXTENSIONS ? STOQ_VERDICT_SOCKET : STOQ_VERDICT_DROP_EXTENSIONS,
                      __FILE__, __LINE__);
        s.dport = PORT + 1; /* Nobody knows the port behind too long a chain; within the bound it decides. */
        chained_frame(&f, &s, &c);
        check_verdict(&f, n <= PARSE_MAX_EXTENSIONS ? STOQ_VERDICT_PASS_OTHER : STOQ_VERDICT_DROP_EXTENSIONS,
                      __FILE__, __LINE__);
        s = plain();
        s.dst[15] ^= 1;
        chained_frame(&f, &s, &c);
        check_verdict(&f, n <= PARSE_MAX_EXTENSIONS ? STOQ_VERDICT_PASS_ADDRESS : STOQ_VERDICT_PASS_OTHER,
                      __FILE__, __LINE__);
        s = plain();
        s.upper = 58; /* Multicast listener reports come behind a hop-by-hop header. */
        chained_frame(&f, &s, &c);
        check_verdict(&f,
                      n <= PARSE_MAX_EXTENSIONS ? STOQ_VERDICT_PASS_MANAGEMENT : STOQ_VERDICT_DROP_EXTENSIONS,
                      __FILE__, __LINE__);
    }
}

static void chains_of_many_bytes(void) {
    struct frame f;
    reset();
    for (size_t bytes = 8; bytes <= 512; bytes += 8) {
        struct chain one = {0}, two = {0};
        struct shape s = plain();
        int want = bytes <= PARSE_MAX_EXTENSION_BYTES ? STOQ_VERDICT_SOCKET : STOQ_VERDICT_DROP_EXTENSIONS;
        check_note("%zu bytes", bytes);
        add_header(&one, 60, bytes);
        chained_frame(&f, &s, &one);
        check_verdict(&f, want, __FILE__, __LINE__);
        if (bytes < 16)
            continue;
        add_header(&two, 0, 8);
        add_header(&two, 60, bytes - 8);
        chained_frame(&f, &s, &two);
        check_verdict(&f, want, __FILE__, __LINE__);
    }
    struct chain longest = {0}; /* With all tags: the program's own offsets reach their greatest. */
    struct shape s = plain();
    s.tags = 2;
    add_header(&longest, 60, PARSE_MAX_EXTENSION_BYTES);
    chained_frame(&f, &s, &longest);
    CHECK_EQ(f.l4 + 8, PARSE_MAX_HEADER_BYTES);
    EXPECT(&f, SOCKET);
}

static void fragments_and_routes(void) {
    struct frame f;
    struct shape s = plain();
    struct chain c = {0};
    reset();
    add_header(&c, 44, 8);
    chained_frame(&f, &s, &c); /* Offset 0, none follow: a whole packet. */
    EXPECT(&f, SOCKET);
    size_t field = f.l3 + 40 + 2;
    static const uint16_t fields[] = {0x0001, 0x0008, 0x0009, 0xfff8, 0x0500};
    for (unsigned i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        check_note("fragment field %04x", fields[i]);
        quic_store16(f.b + field, fields[i]);
        EXPECT(&f, PASS_FRAGMENT);
    }
    quic_store16(f.b + field, 0x0006); /* Reserved bits mean nothing. */
    EXPECT(&f, SOCKET);

    memset(&c, 0, sizeof c);
    add_header(&c, 43, 24);
    chained_frame(&f, &s, &c);
    EXPECT(&f, SOCKET);
    f.b[f.l3 + 40 + 3] = 1; /* We are a station, not its end. */
    EXPECT(&f, PASS_OTHER);
}

/* ---- malformed IPv6 and UDP ---- */

static void lengths(void) {
    struct frame f;
    struct shape s = plain(), other = plain();
    reset();
    other.dport = PORT + 1;
    const struct {
        int at; /* 0: IPv6 payload length, 1: UDP length. */
        int by; /* Added to what is right: 68. */
        int want;
    } cases[] = {
        {0, 1, STOQ_VERDICT_DROP_IPV6},  {0, 60000, STOQ_VERDICT_DROP_IPV6}, {0, -1, STOQ_VERDICT_DROP_UDP},
        {0, -68, STOQ_VERDICT_DROP_UDP}, /* A jumbogram, it says. */
        {1, 1, STOQ_VERDICT_DROP_UDP},   {1, 60000, STOQ_VERDICT_DROP_UDP},  {1, -61, STOQ_VERDICT_DROP_UDP},
        {1, -68, STOQ_VERDICT_DROP_UDP}, {1, -60, STOQ_VERDICT_DROP_SHORT}, /* No payload. */
        {1, -1, STOQ_VERDICT_SOCKET}, /* Shorter than the packet is legal. */
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_note("field %d by %d", cases[i].at, cases[i].by);
        known_frame(&f, &s);
        size_t field = cases[i].at ? f.l4 + 4 : f.l3 + 4;
        quic_store16(f.b + field, (uint16_t)(68 + cases[i].by));
        check_verdict(&f, cases[i].want, __FILE__, __LINE__);
        known_frame(&f, &other); /* Somebody else's malformed packet is the kernel's. */
        quic_store16(f.b + field, (uint16_t)(68 + cases[i].by));
        EXPECT(&f, PASS_OTHER);
    }
    known_frame(&f, &s);
    quic_store16(f.b + f.l4 + 6, 0); /* No checksum. */
    EXPECT(&f, DROP_UDP);
    known_frame(&f, &s);
    f.len += 17; /* What a link pads a packet with is not the packet's. */
    EXPECT(&f, SOCKET);
    s.src[0] = 0xff;
    known_frame(&f, &s);
    EXPECT(&f, DROP_IPV6); /* From a multicast address. */
    memset(s.src, 0, 16);
    known_frame(&f, &s);
    EXPECT(&f, DROP_IPV6);
}

/* Every length that a frame can be cut to, for each kind of frame: a defined verdict, of two or three. */
static void cut(const struct frame *whole, int as_whole) {
    struct frame f = *whole;
    for (f.len = 14; f.len < whole->len; f.len++) {
        check_note("cut to %zu of %zu", f.len, whole->len);
        struct outcome o = judged(&f);
        CHECK(o.verdict == (f.len < whole->l4 + 8 ? STOQ_VERDICT_PASS_OTHER : STOQ_VERDICT_DROP_IPV6));
    }
    check_note("whole");
    check_verdict(whole, as_whole, __FILE__, __LINE__);
}

static void truncated_frames(void) {
    struct frame f;
    struct shape s = plain();
    struct chain c = {0};
    reset();
    known_frame(&f, &s);
    cut(&f, STOQ_VERDICT_SOCKET);
    s.tags = 2;
    add_header(&c, 0, 8);
    add_header(&c, 51, 24);
    add_header(&c, 60, 40);
    chained_frame(&f, &s, &c);
    cut(&f, STOQ_VERDICT_SOCKET);
    make_ipv4(&f, 17, 7, 0, PORT);
    for (size_t len = f.len; len >= 14; len--) {
        f.len = len;
        check_note("IPv4 cut to %zu", len);
        check_verdict(&f, len >= 14 + 28 + 4 ? STOQ_VERDICT_DROP_IPV4 : STOQ_VERDICT_PASS_OTHER, __FILE__,
                      __LINE__);
    }
}

/* The same cuts with lengths that say so: QUIC packets of every length. */
static void truncated_packets(void) {
    struct frame f;
    struct shape s = plain();
    reset();
    make_short(packet, 64, KNOWN_ID);
    for (size_t len = 0; len <= 64; len++) {
        check_note("short header, %zu bytes", len);
        make_frame(&f, &s, packet, len);
        check_verdict(&f,
                      len < 21   ? STOQ_VERDICT_DROP_SHORT
                      : len < 29 ? STOQ_VERDICT_DROP_UNKNOWN_CID
                                 : STOQ_VERDICT_SOCKET,
                      __FILE__, __LINE__);
    }
    for (unsigned type = 0; type < 4; type++) {
        struct long_packet l = first_initial();
        memcpy(l.dcid, &(uint64_t){KNOWN_ID}, 8);
        l.type = type;
        l.token_len = 20;
        l.bytes = 100;
        size_t head = make_long(packet, &l);
        for (size_t len = 0; len <= 100; len++) {
            check_note("type %u, %zu bytes", type, len);
            make_frame(&f, &s, packet, len);
            /* A Retry has no length field: it needs a token and the tag behind its ids. */
            bool fits = type == 3 ? len > head + 16 : len == 100;
            check_verdict(&f,
                          len < 7 ? STOQ_VERDICT_DROP_SHORT
                          : fits  ? STOQ_VERDICT_SOCKET
                                  : STOQ_VERDICT_DROP_HEADER,
                          __FILE__, __LINE__);
        }
    }
}

/* ---- blocklist ---- */

static void block(uint32_t bits, uint64_t expires_ns) {
    struct guard_prefix key = {.prefix_bits = bits};
    struct guard_block value = {expires_ns};
    memcpy(key.ip, peer_ip, 16);
    for (uint32_t bit = bits; bit < 128; bit++)
        key.ip[bit / 8] &= (uint8_t) ~(0x80 >> bit % 8);
    REQUIRE(bpf_map_update_elem(map_fd(skeleton->maps.blocklist), &key, &value, BPF_ANY) == 0);
}

static void blocked_prefixes(void) {
    static const uint32_t lengths[] = {0, 1, 32, 48, 63, 64, 127, 128};
    struct frame f;
    for (unsigned i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        struct shape s = plain();
        uint32_t bits = lengths[i];
        check_note("/%u", bits);
        reset();
        block(bits, 0);
        known_frame(&f, &s);
        EXPECT(&f, DROP_BLOCKED);
        quic_store16(f.b + f.l4 + 6, 0); /* Before anything else that is wrong with it. */
        EXPECT(&f, DROP_BLOCKED);
        if (bits > 0) {
            s.src[(bits - 1) / 8] ^= (uint8_t)(0x80 >> (bits - 1) % 8); /* The last bit that counts. */
            known_frame(&f, &s);
            EXPECT(&f, SOCKET);
        }
        s = plain();
        s.dport = PORT + 1; /* It is ours that is guarded, not the machine. */
        known_frame(&f, &s);
        EXPECT(&f, PASS_OTHER);
    }
}

static void blocks_expire(void) {
    struct frame f;
    struct shape s = plain();
    reset();
    known_frame(&f, &s);
    block(64, clock_ns() + 3600 * SECOND_NS);
    EXPECT(&f, DROP_BLOCKED);
    block(64, clock_ns() - 1); /* Passed when the program looks. */
    EXPECT(&f, SOCKET);
    block(64, 1);
    EXPECT(&f, SOCKET);
    block(64, 0);
    EXPECT(&f, DROP_BLOCKED);
}

/* ---- where ours goes ---- */

static void to_the_queues_socket(void) {
    struct frame f;
    struct shape s = plain();
    reset();
    REQUIRE(system("ip link add guardq numrxqueues 4 type veth") == 0);
    int xsk = open_xsk();
    uint32_t two = 2;
    REQUIRE(bpf_map_update_elem(map_fd(skeleton->maps.xsks), &two, &xsk, BPF_ANY) == 0);
    known_frame(&f, &s);
    arrival.ifindex = if_nametoindex("guardq");
    for (arrival.queue = 0; arrival.queue < 4; arrival.queue++) {
        check_note("queue %u", arrival.queue);
        check_verdict(&f, arrival.queue == 2 ? STOQ_VERDICT_XSK : STOQ_VERDICT_SOCKET, __FILE__, __LINE__);
    }
    arrival.queue = 2;
    s.dport = PORT + 1;
    known_frame(&f, &s);
    EXPECT(&f, PASS_OTHER); /* A socket on the queue steals nothing. */
    close(xsk);
    s = plain();
    known_frame(&f, &s);
    EXPECT(&f, SOCKET); /* The kernel takes a closed one out of the map. */
    arrival.ifindex = arrival.queue = 0;
    REQUIRE(system("ip link del guardq") == 0);
}

/* Jumbo frames come in several buffers. */
static void frames_of_several_buffers(void) {
    struct frame f;
    struct shape s = plain();
    reset();
    static const size_t sizes[] = {3000, 3498, 4096, 8900};
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        check_note("%zu bytes", sizes[i]);
        make_short(packet, sizes[i], KNOWN_ID);
        make_frame(&f, &s, packet, sizes[i]);
        EXPECT(&f, SOCKET);
        f.len--; /* The lengths are checked against the whole frame, not the first buffer. */
        EXPECT(&f, DROP_IPV6);
    }
}

/* A driver that puts little of a frame into its first buffer: what cannot be read there passes, and that it
 * was ours and could not be judged counts as an error. */
static void headers_behind_the_first_buffer(void) {
    struct frame f;
    struct shape s = plain();
    struct long_packet l = first_initial();
    reset();
    if (!linear_can_be_set()) {
        printf("   not tested: this kernel puts as much into the first buffer as it takes\n");
        return;
    }
    make_short(packet, 1000, KNOWN_ID);
    make_frame(&f, &s, packet, 1000);
    for (arrival.linear = 14; arrival.linear < 120; arrival.linear++) {
        check_note("1-RTT, first buffer of %u", arrival.linear);
        check_verdict(&f,
                      arrival.linear < f.l4 + 8        ? STOQ_VERDICT_PASS_OTHER
                      : arrival.linear < f.l4 + 8 + 29 ? STOQ_VERDICT_ERROR
                                                       : STOQ_VERDICT_SOCKET,
                      __FILE__, __LINE__);
    }
    make_long_frame(&f, &s, &l);
    size_t needed = f.l4 + 8 + 7 + 8 + 8 + 2 + 8; /* The length field, and what is read with it. */
    for (arrival.linear = 14; arrival.linear < 120; arrival.linear++) {
        check_note("Initial, first buffer of %u", arrival.linear);
        check_verdict(&f,
                      arrival.linear < f.l4 + 8 ? STOQ_VERDICT_PASS_OTHER
                      : arrival.linear < needed ? STOQ_VERDICT_ERROR
                                                : STOQ_VERDICT_SOCKET,
                      __FILE__, __LINE__);
    }
    arrival.linear = 0;
}

/* ---- speed ---- */

static void report(const char *what, const struct frame *f, int want) {
    enum { REPEAT = 200000 };
    struct outcome o = judged(f);
    CHECK_EQ(o.verdict, want);
    LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = f->b, .data_size_in = (uint32_t)f->len, .repeat = REPEAT);
    REQUIRE(bpf_prog_test_run_opts(program_fd, &run) == 0);
    printf("   %-34s %4u ns\n", what, run.duration);
}

static void speed(void) {
    struct frame f;
    struct shape s = plain();
    struct guard_policy p = base_policy();
    reset();
    known_frame(&f, &s);
    quic_store16(f.b + 12, 0x0806);
    report("PASS_OTHER, no IP", &f, STOQ_VERDICT_PASS_OTHER);
    s.upper = 6;
    known_frame(&f, &s);
    report("PASS_OTHER, TCP", &f, STOQ_VERDICT_PASS_OTHER);
    s = plain();
    s.dport = 53;
    known_frame(&f, &s);
    report("PASS_OTHER, another port", &f, STOQ_VERDICT_PASS_OTHER);
    make_ipv4(&f, 17, 5, 0, PORT);
    report("DROP_IPV4", &f, STOQ_VERDICT_DROP_IPV4);
    s = plain();
    known_frame(&f, &s);
    report("SOCKET, 1-RTT", &f, STOQ_VERDICT_SOCKET);
    int xsk = open_xsk();
    REQUIRE(bpf_map_update_elem(map_fd(skeleton->maps.xsks), &(uint32_t){0}, &xsk, BPF_ANY) == 0);
    report("XSK, 1-RTT", &f, STOQ_VERDICT_XSK);
    close(xsk);
    struct chain c = {0};
    for (int i = 0; i < 7; i++)
        add_header(&c, 60, 8);
    chained_frame(&f, &s, &c);
    report("DROP_EXTENSIONS, seven", &f, STOQ_VERDICT_DROP_EXTENSIONS);
    s = plain();
    make_short(packet, 60, UNKNOWN_ID);
    make_frame(&f, &s, packet, 60);
    report("DROP_UNKNOWN_CID, none allowed", &f, STOQ_VERDICT_DROP_UNKNOWN_CID);
    p.flags = GUARD_REPLAY_FILTER;
    set_policy(&p);
    known_frame(&f, &s);
    judged(&f);
    report("DROP_REPLAY", &f, STOQ_VERDICT_DROP_REPLAY);
    block(64, 0);
    report("DROP_BLOCKED, one prefix", &f, STOQ_VERDICT_DROP_BLOCKED);
}

static const struct check_case cases[] = {
    {"loads_within_the_bound", loads_within_the_bound},
    {"ours_and_others", ours_and_others},
    {"tags_are_looked_through", tags_are_looked_through},
    {"ipv4", ipv4},
    {"chains_within_the_bound", chains_within_the_bound},
    {"chains_of_many_bytes", chains_of_many_bytes},
    {"fragments_and_routes", fragments_and_routes},
    {"lengths", lengths},
    {"truncated_frames", truncated_frames},
    {"truncated_packets", truncated_packets},
    {"blocked_prefixes", blocked_prefixes},
    {"blocks_expire", blocks_expire},
    {"to_the_queues_socket", to_the_queues_socket},
    {"frames_of_several_buffers", frames_of_several_buffers},
    {"headers_behind_the_first_buffer", headers_behind_the_first_buffer},
    {"speed", speed},
};

int main(int argc, char **argv) {
    return run_program_tests(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
