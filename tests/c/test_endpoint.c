/* The endpoint against datagrams of no connection: nothing of them is trusted. */
#include <string.h>

#include "check.h"
#include "leaf_host.h"

/* Long headers of every type and version with ids of every length, as RFC 8999 permits: each is dropped or
 * answered, and counted once. */
static void ids_of_any_length(void) {
    struct leaf_memory memory = {0};
    struct quic_host host = leaf_endpoint_host(&memory);
    uint64_t counters[STOQ_COUNTER_COUNT] = {0}, drops[STOQ_DROP_COUNT] = {0}, sent = 0;
    const struct quic_config config = {.server = true};
    static uint8_t datagram[1400], out[65535];
    struct quic_endpoint *ep = quic_endpoint_create(&config, &host, counters, drops);
    REQUIRE(ep != NULL);
    static const uint32_t versions[] = {0, QUIC_VERSION_1, 0x1a2a3a4a};
    for (unsigned v = 0; v < 3; v++) {
        for (unsigned type = 0; type < 4; type++) {
            for (unsigned len = 0; len < 256; len++) {
                check_rand_bytes(datagram, sizeof datagram);
                datagram[0] = (uint8_t)(0xc0 | type << 4 | (datagram[0] & 0x0f));
                for (int i = 0; i < 4; i++)
                    datagram[1 + i] = (uint8_t)(versions[v] >> (24 - 8 * i));
                datagram[5] = (uint8_t)len;
                datagram[6 + len] = (uint8_t)(check_rand() % 256);
                struct quic_rx rx = {.data = datagram, .len = sizeof datagram, .segment = sizeof datagram};
                rx.peer.ip[0] = 0xfd;
                rx.peer.port = 1;
                quic_endpoint_receive(ep, 1 + sent * 1000000, &rx);
                struct quic_tx tx = {.data = out, .cap = sizeof out, .max_segments = 64};
                while (quic_endpoint_transmit(ep, 1, &tx))
                    sent++;
            }
        }
    }
    uint64_t dropped = 0;
    for (int i = 0; i < STOQ_DROP_COUNT; i++)
        dropped += drops[i];
    CHECK_EQ(dropped + counters[STOQ_COUNTER_VERSION_NEGOTIATIONS_SENT], 3 * 4 * 256);
    CHECK_EQ(quic_endpoint_connections(ep), 0);
    quic_endpoint_destroy(ep);
    CHECK_EQ(memory.bytes, 0);
}

static const struct check_case cases[] = {{"ids_of_any_length", ids_of_any_length}};

int main(int argc, char **argv) {
    return check_main(argc, argv, cases, sizeof cases / sizeof cases[0]);
}
