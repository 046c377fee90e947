/* qmp_fixture.h - a QMP server at two sockets of this process's own, for the test and the fuzzer of it. Its commands are theirs. */
#ifndef RP_TESTS_QMP_FIXTURE_H
#define RP_TESTS_QMP_FIXTURE_H

#include "tools/qmp_server.h"

#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct rp_qmp *server;
static struct rp_events *events;
static struct sockaddr_un address = {.sun_family = AF_UNIX}, further = {.sun_family = AF_UNIX};   /* the command's socket, and --qmp's */

static int cmd_echo(struct rp_qmp_call *call, struct rp_error *err)
{
    (void)err;
    call->result = json_deep_copy(call->args);
    return 0;
}

static bool listen_at(struct sockaddr_un *at, const char *name, struct rp_error *err)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    snprintf(at->sun_path + 1, sizeof(at->sun_path) - 1, "reprise-test-qmp-%s-%d", name, getpid());
    return bind(fd, (struct sockaddr *)at, sizeof(*at)) == 0 && listen(fd, 8) == 0 && rp_qmp_listen(server, fd, err) == 0;
}

/* False: with the reason, or the host has no socket for it. */
static bool serve(struct rp_qmp_table table, struct rp_error *err)
{
    return rp_events_create(8, &events) == 0 && rp_qmp_create(events, &server, err) == 0 && rp_qmp_add(server, table, NULL, err) == 0 &&
           listen_at(&address, "first", err) && listen_at(&further, "further", err) && rp_qmp_start(server, err) == 0;
}

#endif
