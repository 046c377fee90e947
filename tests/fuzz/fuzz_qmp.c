/*
 * QMP input, twice: the framing alone (bytes into JSON objects, however they are cut), and a live server with its client,
 * its command tables and its threads.
 */
#include "tests/fuzz/fuzz.h"
#include "tests/qmp_fixture.h"
#include "tools/qmp_input.h"

#include <errno.h>
#include <poll.h>

/* --- framing --- */

static void framing(struct fz *f)
{
    struct rp_qmp_input in = {0};
    size_t step = 1 + fz_u8(f), got;
    bool dead = false;
    while (f->left > 0 && !dead) {
        const uint8_t *p = fz_bytes(f, step, &got);
        FZ_HOLDS(rp_qmp_input_feed(&in, p, got) == 0);
        for (;;) {
            json_t *message = NULL;
            struct rp_error err = {0};
            size_t before = in.buf.len;
            int rc = rp_qmp_input_next(&in, &message, &err);
            FZ_HOLDS((rc == 1) == (message != NULL));
            FZ_HOLDS(rc >= 0 || err.text[0]);
            FZ_HOLDS(rc == 0 || rc == -EMSGSIZE || in.buf.len < before);    /* it goes on */
            FZ_HOLDS(message == NULL || json_is_object(message));
            json_decref(message);
            dead = rc == -EMSGSIZE;
            if (rc == 0 || dead)
                break;
        }
        FZ_HOLDS(in.buf.len <= RP_QMP_MESSAGE_MAX + step);
    }
    rp_qmp_input_fini(&in);
}

/* --- a live server --- */

static int cmd_fail(struct rp_qmp_call *call, struct rp_error *err)
{
    const char *s = json_string_value(json_object_get(call->args, "text"));
    return rp_error_set(err, s && *s == 'n' ? ENODEV : EINVAL, "failed: %s", s ? s : "");
}

static const struct rp_qmp_arg echo_args[] = {
    {"text", RP_QMP_STR, true}, {"flag", RP_QMP_BOOL, true}, {"number", RP_QMP_INT, true}, {"bytes", RP_QMP_SIZE, true}, {"any", RP_QMP_ANY, true}, {0}};
static const struct rp_qmp_arg fail_args[] = {{"text", RP_QMP_STR, false}, {0}};
static const struct rp_qmp_command commands[] = {{"echo", cmd_echo, echo_args}, {"fail", cmd_fail, fail_args}, {"none", cmd_echo, NULL}};

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    FZ_HOLDS(serve((struct rp_qmp_table){commands, 3}, NULL));
    return 0;
}

/* Serves until the server has closed the connection; what it says must be lines of JSON. */
static void converse(int fd)
{
    struct rp_qmp_input in = {0};
    struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = rp_qmp_request_fd(server), .events = POLLIN}};
    for (;;) {
        uint8_t buf[4096];
        if (poll(p, 2, 20000) == 0) {
            fprintf(stderr, "nothing for 20 s; once more, to tell a busy machine from a server that hangs\n");
            FZ_HOLDS(poll(p, 2, 60000) > 0);
        }
        if (p[1].revents)
            rp_qmp_dispatch(server);
        if (!p[0].revents)
            continue;
        ssize_t n = read(fd, buf, sizeof(buf));
        if (n <= 0)
            break;
        FZ_HOLDS(rp_qmp_input_feed(&in, buf, (size_t)n) == 0);
        json_t *message;
        int rc;
        while ((rc = rp_qmp_input_next(&in, &message, NULL)) == 1)
            json_decref(message);
        FZ_HOLDS(rc == 0);
    }
    rp_qmp_input_fini(&in);
}

static void live(struct fz *f)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    FZ_HOLDS(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    if (fz_u8(f) & 1) {
        static const char hello[] = "{\"execute\": \"qmp_capabilities\"}";
        FZ_HOLDS(send(fd, hello, sizeof(hello) - 1, MSG_NOSIGNAL) > 0);
        rp_events_emit(events, 1, "FUZZ", "{\"n\": %zu}", f->left);
    }
    if (f->left && send(fd, f->p, f->left, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        /* it was faster, and has hung up */
    }
    shutdown(fd, SHUT_WR);
    converse(fd);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fz f = {data, size};
    if (fz_u8(&f) & 1)
        live(&f);
    else
        framing(&f);
    return 0;
}
