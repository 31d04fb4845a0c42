/* The backends by name. A fallback (io_uring to socket) is the backend's own affair and shows in describe().
 */
#include "io.h"

#include <string.h>

const struct io_ops *io_backend_by_name(const char *name) {
    static const struct io_ops *const backends[] = {&io_uring_ops, &io_socket_ops, &io_afxdp_ops,
                                                    &io_wire_ops};
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++) {
        if (name != NULL && strcmp(backends[i]->name, name) == 0) {
            return backends[i];
        }
    }
    return NULL;
}
