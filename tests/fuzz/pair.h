/* A client and a server endpoint on counted memory and a clock that only the harness moves, with a scripted
 * handshake in place of TLS: the secrets are constants, so that a harness can seal packets as either side.
 */
#ifndef STOQ_TESTS_FUZZ_PAIR_H
#define STOQ_TESTS_FUZZ_PAIR_H

#include "quic/conn.h"
#include "quic/quic.h"

#define PAIR_CLIENT 0u
#define PAIR_SERVER 1u
#define PAIR_CHUNKS 4096u /* More than the windows below can fill. */

struct pair_party {
    struct pair *pair;
    struct quic_endpoint *ep;
    uint64_t handle; /* Of its connection; 0: none yet. */
    uint64_t counters[STOQ_COUNTER_COUNT], drops[STOQ_DROP_COUNT];
    /* Seals as this side does, whatever became of its connection. */
    struct quic_keys keys[QUIC_SPACE_COUNT];
    uint8_t key_phase;
    uint64_t next_pn[QUIC_SPACE_COUNT];
};

struct pair {
    uint64_t now, prng;
    struct quic_host host;
    struct quic_timer *timers;
    size_t bytes, blocks, allocations_left; /* allocations_left: then there is no memory. */
    struct {
        uint8_t *data;
        uint32_t bytes, refs;
    } chunks[PAIR_CHUNKS];
    uint32_t chunk_hint, chunks_live;
    struct quic_addr addr[2];
    struct quic_cid original_dcid;
    unsigned stage;
    struct pair_party party[2];
};

/* Handshake stages: 0 the client exists; 1 the server has its first flight; 2 the client has the server's,
 * and no keys yet; 3 the server has the client's last, and is not complete; 4 both are complete and
 * confirmed. */
#define PAIR_STAGES 4u

struct pair *pair_create(void);
void pair_advance(struct pair *pair);
/* Everything given back: aborts if the endpoints kept something. */
void pair_destroy(struct pair *pair);

struct quic_conn *pair_conn(struct pair *pair, unsigned side);
/* All that `side` has to send now; given to the other side if `deliver`. */
void pair_transmit(struct pair *pair, unsigned side, bool deliver);
/* One datagram to `side`, from the other side's address. */
void pair_receive(struct pair *pair, unsigned side, const uint8_t *data, size_t len,
                  const struct quic_addr *from, uint8_t ecn);
/* Read all events; what they lend is given back. */
void pair_drain(struct pair *pair, unsigned side);
/* Move time and fire what is due. */
void pair_sleep(struct pair *pair, uint64_t ns);
/* Every connection's invariants, and the bounds on memory. */
void pair_check(struct pair *pair);
/* A packet as `from` would send it, into `out`; its length, 0 if that side has no keys for it. */
size_t pair_seal(struct pair *pair, unsigned from, enum quic_space_id id, bool reserved_bits,
                 const uint8_t *payload, size_t len, uint8_t *out, size_t cap);

#endif
