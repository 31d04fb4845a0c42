/* struct stoq_datapath: the control plane's end of the workers' memory; stoq.c implements stoq.h on it.
 *
 * There are two ways to get one:
 *
 *   stoq_open              makes workers, threads and an eventfd, and owns them all; stoq_close ends them.
 *   stoq_datapath_adopt    takes workers that somebody drives by hand (simulator, fuzzers), no thread.
 *                          stoq_stop, stoq_close leave such a datapath alone: stoq_datapath_release ends it.
 *
 * How the simulator uses it:
 *
 *   worker_create(&(struct worker_config){.config = …, .ops = &io_wire_ops, .io_backend = net, .count = 1,
 *                                         .event_fd = -1, .random_seed = …, .driven = true}, error)   twice
 *   worker_open_io(worker, &address, error)      each
 *   stoq_datapath_adopt(workers, 2, error)       owns both workers from here on
 *   worker_turn(worker, now) …                   until no event is wanted any more
 *   stoq_datapath_release(dp)                    destroys the workers (io->close); then free the net
 */
#ifndef STOQ_DATAPATH_H
#define STOQ_DATAPATH_H

#include <stdint.h>

#include "../stoq.h"

struct worker;

/* A datapath around `count` workers on which worker_open_io has succeeded. On success it owns them; NULL with
 * `error` on failure, and they stay the caller's. */
struct stoq_datapath *stoq_datapath_adopt(struct worker *const *workers, uint32_t count,
                                          struct stoq_error *error);

/* Destroy an adopted datapath and its workers. */
void stoq_datapath_release(struct stoq_datapath *dp);

/* Is anything waiting in the event ring of this worker? Lets a simulator stop as soon as there is. */
bool stoq_events_waiting(const struct stoq_datapath *dp, uint32_t worker);

/* Check a config and fill what zero leaves to chance or default (backend, crypto, workers, keys): `out` is a
 * copy. With `seed` non-zero keys are drawn from it instead of the kernel. False with `error`. */
bool stoq_config_complete(const struct stoq_config *config, uint64_t seed, struct stoq_config *out,
                          struct stoq_error *error);

#endif
