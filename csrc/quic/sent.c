/* Sent-packet rings. See sent.h. */
#include "sent.h"

#include <string.h>

#include "quic.h"

void quic_sent_free(struct quic_sent *sent, const struct quic_host *host) {
    if (sent->packets)
        host->free(host->ctx, sent->packets, ((size_t)sent->packet_mask + 1) * sizeof *sent->packets);
    if (sent->frames)
        host->free(host->ctx, sent->frames, ((size_t)sent->frame_mask + 1) * sizeof *sent->frames);
    if (sent->rates)
        host->free(host->ctx, sent->rates, ((size_t)sent->packet_mask + 1) * sizeof *sent->rates);
    sent->packets = NULL;
    sent->frames = NULL;
    sent->rates = NULL;
    sent->packet_mask = sent->frame_mask = 0;
    sent->base = sent->next;
    sent->frames_base = sent->frames_next;
}

static bool grow_packets(struct quic_sent *sent, const struct quic_host *host) {
    uint32_t old = sent->packets ? sent->packet_mask + 1 : 0;
    uint32_t slots = old ? old * 2 : QUIC_SENT_MIN;
    if (slots > QUIC_SENT_LIMIT)
        return false;
    struct quic_sent_packet *v = host->alloc(host->ctx, slots * sizeof *v);
    if (!v)
        return false;
    struct quic_rate_packet *rates = NULL;
    if (sent->with_rates && !(rates = host->alloc(host->ctx, slots * sizeof *rates))) {
        host->free(host->ctx, v, slots * sizeof *v);
        return false;
    }
    for (uint64_t pn = sent->base; pn < sent->next; pn++) {
        v[pn & (slots - 1)] = *quic_sent_at(sent, pn);
        if (rates)
            rates[pn & (slots - 1)] = *quic_sent_rate_at(sent, pn);
    }
    if (sent->packets)
        host->free(host->ctx, sent->packets, old * sizeof *v);
    if (sent->rates)
        host->free(host->ctx, sent->rates, old * sizeof *rates);
    sent->packets = v;
    sent->rates = rates;
    sent->packet_mask = slots - 1;
    return true;
}

static bool grow_frames(struct quic_sent *sent, const struct quic_host *host, uint32_t need) {
    uint32_t old = sent->frames ? sent->frame_mask + 1 : 0;
    uint32_t used = sent->frames_next - sent->frames_base;
    uint32_t slots = old ? old * 2 : 2 * QUIC_SENT_MIN;
    while (slots < used + need)
        slots *= 2;
    if (slots > 4 * QUIC_SENT_LIMIT)
        return false;
    struct quic_sent_frame *v = host->alloc(host->ctx, slots * sizeof *v);
    if (!v)
        return false;
    for (uint32_t i = sent->frames_base; i != sent->frames_next; i++)
        v[i & (slots - 1)] = *quic_sent_frame_at(sent, i);
    if (sent->frames)
        host->free(host->ctx, sent->frames, old * sizeof *v);
    sent->frames = v;
    sent->frame_mask = slots - 1;
    return true;
}

bool quic_sent_reserve(struct quic_sent *sent, const struct quic_host *host, uint32_t frames) {
    if ((!sent->packets || sent->next - sent->base > sent->packet_mask) && !grow_packets(sent, host))
        return false;
    if (!sent->frames || sent->frames_next - sent->frames_base + frames > sent->frame_mask + 1)
        return grow_frames(sent, host, frames);
    return true;
}

bool quic_sent_reserve_many(struct quic_sent *sent, const struct quic_host *host, uint32_t packets) {
    while (!sent->packets || sent->next - sent->base + packets > (uint64_t)sent->packet_mask + 1) {
        if (!grow_packets(sent, host))
            return false;
    }
    return (sent->frames && sent->frames_next - sent->frames_base + packets <= sent->frame_mask + 1) ||
           grow_frames(sent, host, packets);
}

void quic_sent_trim(struct quic_sent *sent, uint64_t lost_before_ns) {
    while (sent->base < sent->next) {
        struct quic_sent_packet *p = quic_sent_at(sent, sent->base);
        if (p->state == QUIC_SENT_OUT && (p->flags & (QUIC_SENT_ELICITING | QUIC_SENT_IN_FLIGHT)))
            return;
        if (p->state == QUIC_SENT_LOST && p->time_ns >= lost_before_ns)
            return;
        sent->frames_base = p->frames + p->frame_count;
        p->state = QUIC_SENT_EMPTY;
        sent->base++;
    }
    sent->frames_base = sent->frames_next;
}
