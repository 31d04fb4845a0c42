/* The stoq_probe_* functions of ../stoq.h: what `stoq doctor` asks of C. The asking itself is done in
 * ../io/probe.c and ../guard/probe.c; here it becomes plain structs. */
#include "../crypto/crypto.h"
#include "../guard/probe.h"
#include "../io/probe.h"
#include "private.h"

_Static_assert(STOQ_ANSWER_NO == GUARD_ANSWER_NO && STOQ_ANSWER_YES == GUARD_ANSWER_YES, "same numbers");

void stoq_probe_io_uring(struct stoq_uring_probe *out) {
    struct io_uring_report r;
    io_probe_uring(&r);
    *out = (struct stoq_uring_probe){.setup_error = r.setup_error,
                                     .single_issuer = r.single_issuer,
                                     .defer_taskrun = r.defer_taskrun,
                                     .restrictions = r.restrictions,
                                     .buffer_rings = r.buffer_rings,
                                     .recvmsg_multishot = r.recvmsg_multishot,
                                     .sendmsg_zero_copy = r.sendmsg_zero_copy,
                                     .napi = r.napi};
}

bool stoq_probe_interface(uint32_t ifindex, struct stoq_interface_probe *out, struct stoq_error *error) {
    struct guard_probe p;
    struct guard_text why;
    *out = (struct stoq_interface_probe){0};
    if (!guard_probe(ifindex, &p, &why)) {
        stoq_fail(error, -ENODEV, "%s", why.text);
        return false;
    }
    *out = (struct stoq_interface_probe){
        .bpf = (uint8_t)p.bpf,
        .native = (uint8_t)p.native,
        .generic = (uint8_t)p.generic,
        .redirect = (uint8_t)p.redirect,
        .ndo_xmit = (uint8_t)p.ndo_xmit,
        .zero_copy = (uint8_t)p.zero_copy,
        .multi_buffer = (uint8_t)p.multi_buffer,
        .rx_timestamp = (uint8_t)p.rx_timestamp,
        .rx_hash = (uint8_t)p.rx_hash,
        .tx_metadata = (uint8_t)p.tx_metadata,
        .tx_checksum = (uint8_t)p.tx_checksum,
        .tx_timestamp = (uint8_t)p.tx_timestamp,
        .tx_launch_time = (uint8_t)p.tx_launch_time,
        .program_generic = p.program_mode == GUARD_MODE_GENERIC,
        .program_id = p.program_id,
        .zero_copy_segments = p.zero_copy_segments,
    };
    snprintf(out->driver, sizeof out->driver, "%.31s", p.driver);
    snprintf(out->program, sizeof out->program, "%.15s", p.program);
    snprintf(out->notes, sizeof out->notes, "%.511s", p.notes.text);
    return true;
}

bool stoq_crypto_available(const char *name) {
    return crypto_provider_by_name(name) != NULL;
}
