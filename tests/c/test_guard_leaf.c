/* The parts of the guard that need no kernel: the table of connection ids, and the parser of the netlink
 * answer that tells what a driver can do. */
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>

#include "../../csrc/guard/genl.h"
#include "../../csrc/guard/private.h"
#include "check.h"

/* ---- the table of ids ---- */

static uint32_t home(uint64_t id, uint32_t buckets) {
    uint8_t b[8];
    memcpy(b, &id, sizeof b);
    return (b[2] + 256u * b[3] + 65536u * b[4] + 16777216u * b[5]) % buckets;
}

/* As the program asks. */
static bool known(const struct guard_cids *region, uint32_t buckets, uint64_t id) {
    const struct guard_cids *b = &region[home(id, buckets)];
    bool hit = b->overflow != 0;
    for (unsigned way = 0; way < GUARD_CID_WAYS; way++)
        hit |= b->id[way] == id;
    return hit;
}

static void bucket_counts(void) {
    CHECK_EQ(guard_cid_buckets_for(0), 0);
    CHECK_EQ(guard_cid_buckets_for(1), 1);
    CHECK_EQ(guard_cid_buckets_for(3), 2);
    for (uint32_t capacity = 1; capacity <= GUARD_CID_MAX_CAPACITY; capacity += 1 + capacity / 3) {
        uint32_t buckets = guard_cid_buckets_for(capacity);
        check_note("capacity %u", capacity);
        CHECK(buckets != 0 && (buckets & (buckets - 1)) == 0);
        CHECK((uint64_t)buckets * GUARD_CID_MEAN >= capacity && (buckets == 1 || buckets < capacity));
    }
}

/* The Poisson figure that the sizing rests on: 0.0011 of the buckets, here 36 of 32,768; six standard
 * deviations are 36. */
static void a_full_table_hardly_overflows(void) {
    const uint32_t capacity = 65536, buckets = guard_cid_buckets_for(capacity);
    struct guard_cids *region = calloc(buckets, sizeof *region);
    REQUIRE(region != NULL && buckets == 32768);
    for (uint32_t i = 0; i < capacity; i++)
        guard_cid_add(region, buckets, check_rand());
    uint32_t overflowing = 0;
    for (uint32_t b = 0; b < buckets; b++)
        overflowing += region[b].overflow != 0;
    CHECK(overflowing > 0 && overflowing < 72);
    free(region);
}

#define SET_MAX 256

static void cids_match_a_naive_set(void) {
    for (uint32_t buckets = 1; buckets <= 16; buckets *= 4) { /* 16: mean 8 when half full, so both happen. */
        struct guard_cids region[16] = {{{0}, 0}};
        uint64_t set[SET_MAX];
        uint32_t n = 0, overflows = 0;
        for (int step = 0; step < 20000; step++) {
            /* Phases of growing and of shrinking, so that buckets fill, overflow and empty again. */
            bool grow = check_rand() % 100 < (step / 500 % 2 ? 35 : 65);
            if (grow && n < SET_MAX) {
                set[n] = check_rand() | 1; /* Never 0. */
                guard_cid_add(region, buckets, set[n++]);
            } else if (n != 0) {
                uint32_t at = (uint32_t)(check_rand() % n);
                guard_cid_remove(region, buckets, set[at]);
                set[at] = set[--n];
            }
            uint32_t naive[16] = {0};
            for (uint32_t i = 0; i < n; i++) {
                naive[home(set[i], buckets)]++;
                CHECK(known(region, buckets, set[i]));
            }
            for (uint32_t b = 0; b < buckets; b++) {
                uint64_t held = region[b].overflow;
                for (unsigned way = 0; way < GUARD_CID_WAYS; way++)
                    held += region[b].id[way] != 0;
                CHECK_EQ(held, naive[b]); /* Each id of the bucket counts once, in a place or as overflow. */
                overflows += region[b].overflow != 0;
            }
            uint64_t stranger = check_rand() | 1;
            CHECK(known(region, buckets, stranger) == (region[home(stranger, buckets)].overflow != 0));
            REQUIRE(check_state.failures == 0);
        }
        CHECK(overflows > 100);
        while (n != 0)
            guard_cid_remove(region, buckets, set[--n]);
        guard_cid_remove(region, buckets, 77); /* One too much: stays empty. */
        static const struct guard_cids empty;
        for (uint32_t b = 0; b < buckets; b++)
            CHECK_MEM(&region[b], &empty, sizeof empty);
    }
}

/* ---- the netlink answer ---- */

#define FAMILY   30
#define SEQUENCE 2

static size_t put(uint8_t *at, uint16_t type, const void *value, uint16_t len) {
    struct nlattr head = {.nla_len = (uint16_t)(NLA_HDRLEN + len), .nla_type = type};
    memset(at, 0, NLA_ALIGN(head.nla_len));
    memcpy(at, &head, sizeof head);
    memcpy(at + NLA_HDRLEN, value, len);
    return NLA_ALIGN(head.nla_len);
}

/* An answer as a kernel with a fine driver gives it; attribute 99 is from the future. */
static size_t make_answer(uint8_t *at) {
    size_t len = NLMSG_HDRLEN + GENL_HDRLEN;
    memset(at, 0, len);
    len += put(at + len, 1, &(uint32_t){5}, 4);
    len += put(at + len, 3, &(uint64_t){GENL_XDP_BASIC | GENL_XDP_XSK_ZEROCOPY}, 8);
    len += put(at + len, 99, "anything", 7);
    len += put(at + len, 4, &(uint32_t){17}, 4);
    len += put(at + len, 5, &(uint64_t){GENL_RX_HASH}, 8);
    len += put(at + len, 6, &(uint64_t){GENL_XSK_TX_CHECKSUM}, 8);
    struct nlmsghdr head = {.nlmsg_len = (uint32_t)len, .nlmsg_type = FAMILY, .nlmsg_seq = SEQUENCE};
    memcpy(at, &head, sizeof head);
    return len;
}

/* Parsed from a block of exactly its length, so that a read behind it is seen by ASan. */
static int parse_copy(const uint8_t *bytes, size_t len, struct genl_device *out) {
    uint8_t *copy = malloc(len + !len);
    REQUIRE(copy != NULL);
    memcpy(copy, bytes, len);
    int result = genl_parse_device(copy, len, SEQUENCE, FAMILY, out);
    free(copy);
    return result;
}

static void answers_are_parsed_in_bounds(void) {
    uint8_t bytes[512], bad[512];
    struct genl_device d;
    size_t len = make_answer(bytes);
    REQUIRE(parse_copy(bytes, len, &d) == 1);
    CHECK(d.ifindex == 5 && d.zc_max_segments == 17 && d.rx_metadata == GENL_RX_HASH);
    CHECK(d.xdp_features == (GENL_XDP_BASIC | GENL_XDP_XSK_ZEROCOPY) &&
          d.xsk_features == GENL_XSK_TX_CHECKSUM);
    CHECK(d.has_xdp_features && d.has_rx_metadata && d.has_xsk_features && d.has_zc_max_segments);
    CHECK_EQ(genl_parse_device(bytes, len, SEQUENCE + 1, FAMILY, &d), 0); /* Somebody else's. */
    for (size_t cut = 0; cut < len; cut++)
        CHECK(parse_copy(bytes, cut, &d) == (cut == 0 ? 0 : -EBADMSG));
    memcpy(bad, bytes, len);
    bad[NLMSG_HDRLEN + GENL_HDRLEN] = 7; /* ifindex of three bytes. */
    CHECK_EQ(parse_copy(bad, len, &d), -EBADMSG);

    struct nlmsghdr head = {.nlmsg_len = NLMSG_HDRLEN + 4, .nlmsg_type = NLMSG_ERROR, .nlmsg_seq = SEQUENCE};
    memcpy(bad, &head, sizeof head);
    memcpy(bad + NLMSG_HDRLEN, &(int32_t){-ENODEV}, 4);
    CHECK_EQ(parse_copy(bad, head.nlmsg_len, &d), -ENODEV);
    memcpy(bad + NLMSG_HDRLEN, &(int32_t){INT32_MIN}, 4);
    CHECK_EQ(parse_copy(bad, head.nlmsg_len, &d), -EBADMSG);

    for (int round = 0; round < 20000; round++) {
        memcpy(bad, bytes, len);
        for (int i = 0; i < 3; i++)
            bad[check_rand() % len] = (uint8_t)check_rand();
        CHECK(parse_copy(bad, check_rand() % (len + 1), &d) <= 1);
    }
}

static const struct check_case cases[] = {
    {"bucket_counts", bucket_counts},
    {"a_full_table_hardly_overflows", a_full_table_hardly_overflows},
    {"cids_match_a_naive_set", cids_match_a_naive_set},
    {"answers_are_parsed_in_bounds", answers_are_parsed_in_bounds},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
