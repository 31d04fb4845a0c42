/* Steering by connection id on the socket path: loads csrc/bpf/steer.bpf.c, for sockets that share a port.
 *
 *      steer_open ──▶ program and an empty array of sockets
 *        each worker's socket, once bound: enters itself at its worker's number and attaches the program
 * (udp_socket.c); the kernel takes a closed socket out by itself steer_close ──▶ the sockets keep the program
 * until the last is closed
 *
 * Needs CAP_BPF and CAP_NET_ADMIN; without it the kernel spreads datagrams by a hash of addresses, and those
 * that reach the wrong worker cross by ring. */
#ifndef STOQ_STEER_H
#define STOQ_STEER_H

#include "guard.h"

struct steer;

struct steer *steer_open(struct guard_text *why);
void steer_close(struct steer *s);
int steer_program_fd(const struct steer *s);
int steer_sockets_fd(const struct steer *s);

#endif
