/* The Internet checksum (RFC 1071) of what AF_XDP sends, where neither the kernel nor the device computes it.
 *
 * Sums are of 16-bit words as they lie in memory: one's complement addition does not mind the byte order, so
 * nothing is swapped and the result is stored as it is. */
#ifndef STOQ_IO_CSUM_H
#define STOQ_IO_CSUM_H

#include <stddef.h>
#include <stdint.h>

/* Sum of `len` bytes (an odd last one is padded with zero), not folded; len at most 65,536, so that adding a
 * few more sums cannot overflow. */
uint64_t csum_partial(const void *data, size_t len);

/* To 16 bits, with the carries added back in. 0 only for a sum of 0. */
static inline uint16_t csum_fold(uint64_t sum) {
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

/* What belongs in a UDP header: the complement, and all ones instead of zero, for zero means "none" (RFC 768)
 * and is forbidden over IPv6 (RFC 8200 section 8.1). */
static inline uint16_t csum_udp(uint64_t sum) {
    uint16_t value = (uint16_t)~csum_fold(sum);
    return value != 0 ? value : 0xffff;
}

#endif
