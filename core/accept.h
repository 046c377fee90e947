/*
 * accept.h - taking a connection where the process may be out of descriptors. A listener that stays readable because nothing can be
 * accepted keeps its loop busy for nothing; so one descriptor is held in reserve, to take such a connection and turn it away. And what
 * stands where a unix socket is to be.
 */
#ifndef RP_CORE_ACCEPT_H
#define RP_CORE_ACCEPT_H

#include "core/error.h"

struct sockaddr_un;

/* A connection, non-blocking and close-on-exec, the caller's from here on. -EAGAIN: there is none (any more). -EMFILE, -ENFILE: there was
 * one, and it was turned away. Any thread. */
int rp_accept(int listener);

/* Before a unix socket is bound at `at`: makes sure that nothing stands there, and removes what a dead process left. -EADDRINUSE,
 * RP_EXIT_REFUSED: a living process has it, which notices nothing of this. -EEXIST, RP_EXIT_USAGE: no socket; it is left alone. `what`: for
 * the sentence ("--vsock"). Two processes that ask at once may both get it. */
int rp_clear_socket(const struct sockaddr_un *at, const char *what, struct rp_error *err) RP_MUST_CHECK;

#endif
