/* The plain backend's second way in: for the io_uring backend where the kernel refuses io_uring. */
#ifndef STOQ_IO_SOCKET_H
#define STOQ_IO_SOCKET_H

#include "io.h"

/* As io_socket_ops.open; describe() will say that io_uring was asked for and why it was refused. */
struct io *io_socket_open_instead(const struct io_config *config, const struct io_text *refused,
                                  struct io_text *why);

#endif
