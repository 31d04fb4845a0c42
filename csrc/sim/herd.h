/* Connections in great number that are opened and then left alone, beside the one of a pair: for measuring
 * what idle ones cost. TLS is the script of script.h; a batch at a time shakes hands, so the scripts take no
 * memory that grows with the number.
 */
#ifndef STOQ_SIM_HERD_H
#define STOQ_SIM_HERD_H

#include "pair.h"

/* `count` more connections from the pair's client to its server, each with a cipher of `aead` and no
 * application. False with p->why. */
bool herd_open(struct pair *p, int aead, uint32_t count);

#endif
