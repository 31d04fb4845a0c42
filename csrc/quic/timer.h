/* The intrusive timer node the engine arms and its host keeps (the worker's timer wheel does). */
#ifndef STOQ_QUIC_TIMER_H
#define STOQ_QUIC_TIMER_H

#include <stdint.h>

#define QUIC_NEVER UINT64_MAX

struct quic_timer {
    struct quic_timer *next, **prev; /* The host's links; NULL while not armed. */
    uint64_t deadline_ns;            /* QUIC_NEVER while not armed. */
};

#endif
