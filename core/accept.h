/*
 * accept.h - taking a connection where the process may be out of descriptors. A listener that stays readable because nothing can be
 * accepted keeps its loop busy for nothing; so one descriptor is held in reserve, to take such a connection and turn it away.
 */
#ifndef RP_CORE_ACCEPT_H
#define RP_CORE_ACCEPT_H

/* A connection, non-blocking and close-on-exec, the caller's from here on. -EAGAIN: there is none (any more). -EMFILE, -ENFILE: there was
 * one, and it was turned away. Any thread. */
int rp_accept(int listener);

#endif
