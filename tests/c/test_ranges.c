/* csrc/quic/ranges.c against a bitmap: after every operation of a long random sequence both hold the same
 * numbers, and the set's ranges are ascending, apart, non-empty and within their limit.
 */
#include "check.h"
#include "leaf_host.h"

#include "quic/ranges.h"

#define UNIVERSE 200

static void check_shape(const struct quic_ranges *set) {
    CHECK(set->count <= set->limit && set->count <= set->cap);
    for (uint32_t i = 0; i < set->count; i++) {
        CHECK(set->v[i].lo < set->v[i].hi);
        if (i > 0)
            CHECK(set->v[i - 1].hi < set->v[i].lo); /* Apart: touching ones would have been merged. */
    }
}

static uint32_t runs(const bool *bitmap) {
    uint32_t count = 0;
    for (int i = 0; i < UNIVERSE; i++)
        count += bitmap[i] && (i == 0 || !bitmap[i - 1]);
    return count;
}

static void check_same(const struct quic_ranges *set, const bool *bitmap) {
    bool mine[UNIVERSE] = {false};
    for (uint32_t i = 0; i < set->count; i++) {
        REQUIRE(set->v[i].hi <= UNIVERSE);
        for (uint64_t x = set->v[i].lo; x < set->v[i].hi; x++)
            mine[x] = true;
    }
    CHECK_MEM(mine, bitmap, sizeof mine);
    CHECK_EQ(set->count, runs(bitmap));
    for (uint64_t x = 0; x < UNIVERSE; x++)
        CHECK_EQ(quic_ranges_contains(set, x), bitmap[x]);
}

static bool model_covers(const bool *bitmap, uint64_t lo, uint64_t hi) {
    for (uint64_t x = lo; x < hi; x++) {
        if (!bitmap[x])
            return false;
    }
    return true;
}

static void random_ops(uint32_t limit, unsigned longest) {
    struct leaf_memory memory = {0};
    struct quic_host host = leaf_host(&memory);
    struct quic_ranges set;
    quic_ranges_init(&set, limit);
    bool bitmap[UNIVERSE] = {false};
    for (int op = 0; op < 4000; op++) {
        bool before[UNIVERSE];
        memcpy(before, bitmap, sizeof bitmap);
        uint64_t lo = check_rand() % UNIVERSE;
        uint64_t hi = lo + 1 + check_rand() % longest;
        hi = hi > UNIVERSE ? UNIVERSE : hi;
        unsigned what = (unsigned)(check_rand() % 100);
        check_note("limit %u, longest %u, op %d: %u [%d, %d)", limit, longest, op, what, (int)lo, (int)hi);
        if (what < 97) {
            bool add = what < 60;
            memset(bitmap + lo, add, hi - lo);
            bool ok = add ? quic_ranges_add(&set, &host, lo, hi) : quic_ranges_remove(&set, &host, lo, hi);
            CHECK_EQ(ok, runs(bitmap) <= limit);
            if (!ok)
                memcpy(bitmap, before, sizeof bitmap); /* The set is unchanged. */
        } else if (what < 99) {
            quic_ranges_pop_first(&set);
            int x = 0;
            while (x < UNIVERSE && !bitmap[x])
                x++;
            while (x < UNIVERSE && bitmap[x])
                bitmap[x++] = false;
        } else if (op % 10 == 0) {
            quic_ranges_clear(&set, &host);
            memset(bitmap, 0, sizeof bitmap);
            CHECK_EQ(memory.bytes, 0);
        }
        check_shape(&set);
        check_same(&set, bitmap);
        CHECK_EQ(quic_ranges_covers(&set, lo, hi), model_covers(bitmap, lo, hi));
        uint32_t found = quic_ranges_find(&set, lo), linear = 0;
        while (linear < set.count && set.v[linear].hi <= lo)
            linear++;
        CHECK_EQ(found, linear);
        if (check_state.failures != 0)
            break;
    }
    quic_ranges_clear(&set, &host);
    CHECK_EQ(set.count, 0);
    CHECK_EQ(memory.bytes, 0);
    CHECK_EQ(memory.blocks, 0);
}

static void against_bitmap(void) {
    static const uint32_t limits[] = {1, 2, 3, 5, 16, 1000};
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        random_ops(limits[i], 2);
        random_ops(limits[i], 7);
        random_ops(limits[i], 60);
    }
}

static void in_order_stays_inline(void) {
    struct leaf_memory memory = {0};
    struct quic_host host = leaf_host(&memory);
    struct quic_ranges set;
    quic_ranges_init(&set, 32);
    for (uint64_t pn = 0; pn < 1000; pn++)
        CHECK(quic_ranges_add(&set, &host, pn, pn + 1));
    CHECK(quic_ranges_add(&set, &host, 1001, 1002)); /* One gap, and it closes. */
    CHECK_EQ(set.count, 2);
    CHECK(quic_ranges_add(&set, &host, 1000, 1001));
    CHECK_EQ(set.count, 1);
    CHECK_EQ(set.v[0].hi, 1002);
    CHECK_EQ(memory.allocations, 0);
}

static void growth_doubles_and_stops(void) {
    struct leaf_memory memory = {0};
    struct quic_host host = leaf_host(&memory);
    struct quic_ranges set;
    quic_ranges_init(&set, 100);
    for (uint64_t i = 0; i < 100; i++)
        CHECK(quic_ranges_add(&set, &host, 2 * i, 2 * i + 1));
    CHECK_EQ(memory.allocations, 6); /* 4, 8, 16, 32, 64, 100. */
    CHECK_EQ(memory.blocks, 1);
    CHECK_EQ(memory.bytes, 100 * sizeof(struct quic_range));
    CHECK(!quic_ranges_add(&set, &host, 200, 201));
    CHECK(!quic_ranges_add(&set, &host, 300, 301));
    CHECK(quic_ranges_remove(&set, &host, 300, 301)); /* Nothing to remove, so nothing to split. */
    CHECK_EQ(set.count, 100);
    CHECK(quic_ranges_add(&set, &host, 1, 2)); /* Merging always has room. */
    CHECK_EQ(set.count, 99);
    check_shape(&set);
    quic_ranges_clear(&set, &host);
    CHECK_EQ(memory.bytes, 0);
}

static void no_memory(void) {
    struct leaf_memory memory = {.empty = true};
    struct quic_host host = leaf_host(&memory);
    struct quic_ranges set;
    quic_ranges_init(&set, 100);
    CHECK(quic_ranges_add(&set, &host, 10, 20));
    CHECK(quic_ranges_add(&set, &host, 30, 40));
    CHECK(!quic_ranges_add(&set, &host, 50, 60));
    CHECK(!quic_ranges_add(&set, &host, 0, 5));
    CHECK(!quic_ranges_add(&set, &host, 22, 25));
    CHECK(!quic_ranges_remove(&set, &host, 32, 35)); /* Would split. */
    CHECK_EQ(set.count, 2);
    CHECK(quic_ranges_covers(&set, 10, 20) && quic_ranges_covers(&set, 30, 40));
    CHECK(!quic_ranges_covers(&set, 10, 40));
    CHECK(quic_ranges_add(&set, &host, 20, 30));
    CHECK_EQ(set.count, 1);
}

static void extremes(void) {
    struct leaf_memory memory = {0};
    struct quic_host host = leaf_host(&memory);
    struct quic_ranges set;
    quic_ranges_init(&set, 8);
    CHECK(!quic_ranges_contains(&set, 0));
    CHECK_EQ(quic_ranges_find(&set, 0), 0);
    CHECK(quic_ranges_remove(&set, &host, 0, UINT64_MAX)); /* Nothing of nothing. */
    quic_ranges_pop_first(&set);
    CHECK(quic_ranges_add(&set, &host, UINT64_MAX - 1, UINT64_MAX));
    CHECK(quic_ranges_add(&set, &host, 0, 1));
    CHECK(quic_ranges_contains(&set, UINT64_MAX - 1));
    CHECK(!quic_ranges_contains(&set, UINT64_MAX));
    CHECK(quic_ranges_add(&set, &host, 0, UINT64_MAX));
    CHECK_EQ(set.count, 1);
    CHECK(quic_ranges_covers(&set, 0, UINT64_MAX));
    CHECK(quic_ranges_remove(&set, &host, 5, 5)); /* An empty range is no hole. */
    CHECK_EQ(set.count, 1);
    CHECK(quic_ranges_remove(&set, &host, 1, UINT64_MAX - 1));
    CHECK_EQ(set.count, 2);
    CHECK(quic_ranges_remove(&set, &host, 0, UINT64_MAX));
    CHECK_EQ(set.count, 0);
}

static void clear_zeroed(void) {
    struct leaf_memory memory = {0};
    struct quic_host host = leaf_host(&memory);
    struct quic_ranges set = {0}; /* The part of a stream that it does not have. */
    quic_ranges_clear(&set, &host);
    CHECK_EQ(memory.blocks, 0); /* Nothing was given back that was never taken. */
    CHECK_EQ(set.count, 0);
}

static const struct check_case cases[] = {
    {"against_bitmap", against_bitmap},
    {"in_order_stays_inline", in_order_stays_inline},
    {"growth_doubles_and_stops", growth_doubles_and_stops},
    {"no_memory", no_memory},
    {"extremes", extremes},
    {"clear_zeroed", clear_zeroed},
};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
