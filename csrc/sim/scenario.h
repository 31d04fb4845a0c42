/* A scenario: everything one simulated run does, drawn from one seed before it starts. Both ends'
 * configuration, the wire over time, connections, their streams, and how each connection ends. Plain data;
 * scenario.c draws it, run.c plays it. */
#ifndef STOQ_SIM_SCENARIO_H
#define STOQ_SIM_SCENARIO_H

#include <stdbool.h>
#include <stdio.h>
#include <stdint.h>

#include "../stoq.h"

#define SCENARIO_MAX_CONNECTIONS 12 /* Enough for handshakes and closings to overlap. */
#define SCENARIO_MAX_STREAMS     50 /* Of one connection. */
#define SCENARIO_MAX_STEPS       8  /* Changes of the wire during a run. */
#define SCENARIO_MAX_UPDATES     3
#define SCENARIO_NEVER           UINT32_MAX /* reset_at, stop_at: does not happen. */

/* Bytes one way on a stream: what the sender and the receiver do. */
struct plan_flow {
    uint32_t bytes;
    uint32_t chunk;         /* Bytes a STREAM_SEND carries at most. */
    uint32_t window;        /* The sender keeps so much unacknowledged at most: its own memory bound. */
    uint32_t reset_at;      /* The sender resets when it has handed over so many bytes. */
    uint32_t stop_at;       /* The receiver asks to stop when it has so many. */
    uint64_t read_delay_ns; /* A slow reader consumes each piece this much later. */
    uint64_t pace_ns;       /* The sender waits this long between pieces. */
    bool fin_alone;         /* FIN comes in a command of its own. */
};

struct plan_stream {
    uint64_t id;
    uint8_t initiator; /* SIM_CLIENT or SIM_SERVER. */
    bool uni;
    bool answer_late;          /* The peer's own direction starts when the first is over. */
    uint64_t start_ns;         /* After the initiator's CONNECTED. */
    struct plan_flow flows[2]; /* [0] from the initiator, [1] back. */
};

enum plan_ending {
    END_DONE,    /* One end closes when all is done. */
    END_BOTH,    /* Both ends close when all is done. */
    END_EARLY,   /* One end closes at a moment of its own. */
    END_IDLE,    /* Nobody closes. */
    END_DETACH,  /* One end is detached when all is done. */
    END_REFUSED, /* The handshake is refused with a TLS alert. */
    END_COUNT
};

struct plan_connection {
    uint64_t seed;
    uint64_t start_ns;
    enum plan_ending ending;
    bool reserved_version; /* The client asks for a version nobody has first: negotiation leads it to v1. */
    uint8_t ender;         /* SIM_CLIENT or SIM_SERVER. */
    uint8_t alert;         /* END_REFUSED */
    uint64_t close_ns;     /* END_EARLY: after CONNECT. */
    uint64_t code;         /* Application code of the close. */
    uint32_t reason_len;
    uint32_t datagrams[2], datagram_bytes; /* DATAGRAM frames each end sends. */
    uint64_t datagram_pace_ns;
    uint32_t updates[2];                         /* KEY_UPDATE commands of each end… */
    uint64_t update_ns[2][SCENARIO_MAX_UPDATES]; /* …this long after its CONNECTED. */
    uint32_t stream_count;
    struct plan_stream streams[SCENARIO_MAX_STREAMS];
};

enum plan_step_kind { STEP_IMPAIR, STEP_NAT_PORT, STEP_NAT_ADDRESS, STEP_REBIND };

struct plan_step {
    uint64_t at_ns; /* After the start. */
    enum plan_step_kind kind;
    struct stoq_impairment links[2]; /* STEP_IMPAIR */
};

struct scenario {
    uint64_t seed;
    struct stoq_config config[2];
    struct stoq_impairment links[2]; /* [0] from the client. */
    uint64_t moderation_ns, forget_ns;
    uint32_t frame_bytes[2]; /* Of client and server: wire_net_frames. */
    uint32_t step_count, connection_count;
    struct plan_step steps[SCENARIO_MAX_STEPS];
    uint64_t bytes;    /* Of all flows. */
    uint64_t bound_ns; /* All connections are over by then. */
    bool lossless;     /* No datagram can be lost: closes arrive, nothing times out. */
    bool may_time_out; /* The wire may be too bad for too long: a timeout is not a failure. */
    bool moves;        /* The client's address changes. */
    struct plan_connection connections[SCENARIO_MAX_CONNECTIONS]; /* Last: large, and drawn one by one. */
};

void scenario_draw(struct scenario *s, uint64_t seed);
/* For --verbose: what this scenario is, in a few lines. */
void scenario_print(const struct scenario *s, FILE *out);

#endif
