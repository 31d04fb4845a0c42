/* What of io_uring can be switched, and what is on unless it is: docs/decisions/0015 has the measurements.
 * The zero value is the default; `stoq bench wire` compares them. All that is registered is registered at
 * open(), before the worker's seccomp filter.
 *
 *      file and ring fd     on    no look-up of either in each call
 *      lone trains direct   on    a flush of one train is a sendmsg(2)
 *      zero copy            off   IORING_OP_SENDMSG_ZC (6.1); send buffers registered where that goes
 *      SQPOLL               off   a kernel thread submits; task work is not deferred then
 *      NAPI busy polling    off   IORING_REGISTER_NAPI (6.9): a sleeper polls the device's queue first
 */
#ifndef STOQ_IO_URING_OPTIONS_H
#define STOQ_IO_URING_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

struct io_uring_options {
    bool no_files;            /* Neither the socket nor the ring is registered. */
    bool no_direct;           /* A lone train goes through the ring as well. */
    bool no_buffers;          /* With zero copy: the send buffers are not registered. */
    bool keep_zero_copy;      /* Go on with it though the kernel copies. */
    bool sqpoll;              /* IORING_SETUP_SQPOLL. */
    uint32_t zero_copy_bytes; /* Trains of so many bytes or more go by zero copy; 0: none. */
    uint32_t napi_us;         /* Busy polling for so long when there is nothing to do; 0: none. */
};

/* From a comma-separated list as `no-files,zero-copy=16384`, for the command line of benchmarks. False: an
 * item is unknown. */
bool io_uring_options_parse(const char *text, struct io_uring_options *out);

#endif
