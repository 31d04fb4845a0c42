/* Invariants of a connection, for the simulation and debugging. Walks everything: not for the hot path. */
#ifndef STOQ_QUIC_CHECK_H
#define STOQ_QUIC_CHECK_H

#include <stdbool.h>
#include <stddef.h>

struct quic_conn;

/* False: an invariant does not hold, and `why` says which. */
bool quic_conn_check(const struct quic_conn *conn, char *why, size_t cap);

#endif
