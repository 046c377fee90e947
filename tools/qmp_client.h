/*
 * qmp_client.h - one client of the QMP server: its socket, what it said and what is still to be said to it.
 *
 *     GREETED ─qmp_capabilities─► NEGOTIATED ─rp_qmp_client_next─► IN WORK ─rp_qmp_client_answer─► NEGOTIATED
 *        └───────── it went, said what cannot be followed, or does not read ─────────► CLOSING ─all said─► over
 *
 * One command is in work at a time; what the client sends meanwhile waits in its socket, so its memory here is bounded: by
 * qmp_input.h for input, and it is dropped when more than RP_QMP_OUTPUT_MAX bytes wait for it. Thread: qmp, everywhere.
 */
#ifndef RP_TOOLS_QMP_CLIENT_H
#define RP_TOOLS_QMP_CLIENT_H

#include "tools/qmp_input.h"

#define RP_QMP_OUTPUT_MAX (1u << 20)

struct rp_qmp_client {          /* embedded; zeroed but for fd */
    int fd;                     /* owned; not blocking */
    bool negotiated, in_work, closing;
    struct rp_qmp_input in;
    struct rp_buf out;
    size_t out_sent;            /* of `out` */
};

void rp_qmp_client_fini(struct rp_qmp_client *c);
void rp_qmp_client_greet(struct rp_qmp_client *c);
/* Queues one line (without its end) and sends what the socket takes. */
void rp_qmp_client_say(struct rp_qmp_client *c, const char *text);
/* The next command for somebody else to run (the caller's reference), in work from then on; NULL: none now. What needs nobody
 * else (negotiation, what is no command) is answered on the way. */
json_t *rp_qmp_client_next(struct rp_qmp_client *c);
/* Ends the command in work. NULL: there is no answer; the client is closed. */
void rp_qmp_client_answer(struct rp_qmp_client *c, const char *text);
/* EPOLL… bits that it waits for, and what to do when they came. */
uint32_t rp_qmp_client_wants(const struct rp_qmp_client *c);
void rp_qmp_client_ready(struct rp_qmp_client *c, uint32_t events);
/* It is closing and nothing is left to be said: the caller finishes it. */
bool rp_qmp_client_over(const struct rp_qmp_client *c);

#endif
