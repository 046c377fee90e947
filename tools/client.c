/* A QMP client. */
#include "tools/client.h"

#include "core/clock.h"
#include "tools/runtime.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define TIMEOUT_NS 10000000000ull
#define POLL_JOB_MS 50

/* A VM's answer may be longer than what it takes from us: the history is. */
#define ANSWER_MAX (16u << 20)

struct rp_client {
    int fd;
    char name[128];
    uint64_t timeout_ns;
    struct rp_buf in;
};

/* Reads what comes within `wait_ms`. 1: something came; 0: the time is over; -EPIPE: the VM closed. */
static int fill(struct rp_client *c, int wait_ms, struct rp_error *err)
{
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    int rc = poll(&p, 1, wait_ms);
    if (rc == 0 || (rc < 0 && errno == EINTR))
        return 0;
    uint8_t bytes[16384];
    ssize_t n = recv(c->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0)
        return rp_error_set(err, EPIPE, "VM \"%s\" closed the connection", c->name);
    rp_buf_put(&c->in, bytes, (size_t)n);
    if (c->in.failed || c->in.len > ANSWER_MAX)
        return rp_error_set(err, EMSGSIZE, "VM \"%s\": its answer is longer than %u bytes", c->name, ANSWER_MAX);
    return 1;
}

/* The next line as JSON; the server ends each message with a newline. 0: none is whole yet. */
static int take_line(struct rp_client *c, json_t **out, struct rp_error *err)
{
    uint8_t *end = c->in.len ? memchr(c->in.data, '\n', c->in.len) : NULL;
    if (!end)
        return 0;
    size_t len = (size_t)(end - c->in.data) + 1;
    json_error_t why;
    json_t *m = json_loadb((const char *)c->in.data, len, 0, &why);
    memmove(c->in.data, c->in.data + len, c->in.len - len);
    c->in.len -= len;
    if (!m)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "VM \"%s\": its answer is no JSON: %s", c->name, why.text);
    *out = m;
    return 1;
}

static int next_message(struct rp_client *c, json_t **out, struct rp_error *err)
{
    uint64_t deadline = c->timeout_ns ? rp_clock_ns() + c->timeout_ns : UINT64_MAX;
    for (;;) {
        int rc = take_line(c, out, err);
        if (rc == 0)
            rc = fill(c, 200, err);
        else
            return rc;
        if (rc < 0)
            return rc;
        if (rp_clock_ns() > deadline)
            return rp_error_set(err, ETIMEDOUT, "VM \"%s\" did not answer within %llu s", c->name,
                                (unsigned long long)(c->timeout_ns / 1000000000u));
    }
}

static int send_all(struct rp_client *c, const char *text, struct rp_error *err)
{
    size_t left = strlen(text);
    while (left) {
        ssize_t n = send(c->fd, text, left, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return rp_error_set(err, errno, "VM \"%s\": %s", c->name, strerror(errno));
        text += n;
        left -= (size_t)n;
    }
    return 0;
}

/* The VM's own error, as ours. */
static int remote_error(struct rp_client *c, json_t *e, struct rp_error *err)
{
    json_int_t code = json_integer_value(json_object_get(e, "exit"));
    const char *desc = json_string_value(json_object_get(e, "desc"));
    const char *class = json_string_value(json_object_get(e, "class"));
    bool known = code >= RP_EXIT_FAILED && code <= RP_EXIT_DAMAGED;
    int no = class && strcmp(class, "CommandNotFound") == 0 ? ENOSYS : EREMOTEIO;
    return rp_error_exit(err, known ? (enum rp_exit)code : RP_EXIT_FAILED, no, "VM \"%s\": %s", c->name, desc ? desc : "failed without a reason");
}

int rp_client_call(struct rp_client *c, const char *command, json_t *args, json_t **result, struct rp_error *err)
{
    json_t *m = json_pack("{s:s}", "execute", command);
    if (args)
        json_object_set_new(m, "arguments", args);
    char *text = json_dumps(m, JSON_COMPACT);
    json_decref(m);
    if (!text)
        return rp_error_set(err, EINVAL, "%s: an argument is no UTF-8", command);
    int rc = send_all(c, text, err);
    free(text);
    json_t *reply = NULL;
    while (rc == 0) {
        rc = next_message(c, &reply, err);
        if (rc < 0)
            break;
        json_t *e = json_object_get(reply, "error"), *ok = json_object_get(reply, "return");
        rc = e ? remote_error(c, e, err) : 0;
        if (ok && result)
            *result = json_incref(ok);
        json_decref(reply);
        if (e || ok)
            return rc;
    }
    return rc;
}

int rp_client_open(const char *name, struct rp_client **out, struct rp_error *err)
{
    struct rp_client *c = calloc(1, sizeof(*c));
    if (!c)
        return rp_error_set(err, ENOMEM, "out of memory");
    snprintf(c->name, sizeof(c->name), "%s", name);
    c->timeout_ns = TIMEOUT_NS;
    int rc = rp_runtime_connect(name, &c->fd, err);
    if (rc < 0) {
        free(c);
        return rc;
    }
    json_t *greeting = NULL;
    rc = next_message(c, &greeting, err);
    if (rc > 0 && json_object_get(greeting, "error"))
        rc = remote_error(c, json_object_get(greeting, "error"), err);
    else if (rc > 0 && !json_object_get(greeting, "QMP"))
        rc = rp_error_exit(err, RP_EXIT_DAMAGED, EPROTO, "\"%s\": what answers there does not speak QMP", name);
    json_decref(greeting);
    if (rc >= 0)
        rc = rp_client_call(c, "qmp_capabilities", NULL, NULL, err);
    if (rc < 0) {
        rp_client_close(c);
        return rc;
    }
    *out = c;
    return 0;
}

void rp_client_close(struct rp_client *c)
{
    if (!c)
        return;
    close(c->fd);
    rp_buf_fini(&c->in);
    free(c);
}

void rp_client_timeout(struct rp_client *c, uint64_t ns)
{
    c->timeout_ns = ns;
}

/* One look at the job. 1: concluded well; 0: not yet. */
static int look_at_job(struct rp_client *c, const char *id, void (*progress)(void *, uint64_t, uint64_t), void *ctx, struct rp_error *err)
{
    json_t *jobs = NULL;
    int rc = rp_client_call(c, "query-jobs", NULL, &jobs, err);
    if (rc < 0)
        return rc;
    size_t i;
    json_t *j;
    rc = rp_error_set(err, ENOENT, "VM \"%s\": job %s is not known any more", c->name, id);
    json_array_foreach(jobs, i, j) {
        const char *jid = json_string_value(json_object_get(j, "id")), *status = json_string_value(json_object_get(j, "status"));
        if (!jid || !status || strcmp(jid, id) != 0)
            continue;
        if (progress)
            progress(ctx, (uint64_t)json_integer_value(json_object_get(j, "current-progress")),
                     (uint64_t)json_integer_value(json_object_get(j, "total-progress")));
        const char *why = json_string_value(json_object_get(j, "error"));
        json_int_t code = json_integer_value(json_object_get(j, "exit"));
        rc = strcmp(status, "concluded") == 0;
        if (rc && why)
            rc = rp_error_exit(err, code > 0 && code <= RP_EXIT_INTERRUPTED ? (enum rp_exit)code : RP_EXIT_FAILED, EREMOTEIO,
                               "VM \"%s\": %s", c->name, why);
    }
    json_decref(jobs);
    return rc;
}

/* Until the VM says something (that a job's state has changed, perhaps), or it is time to look at the progress. */
static int await_news(struct rp_client *c, struct rp_error *err)
{
    json_t *m = NULL;
    int rc = take_line(c, &m, err);
    if (rc == 0)
        rc = fill(c, POLL_JOB_MS, err);
    json_decref(m);
    return rc < 0 ? rc : 0;
}

int rp_client_wait_job(struct rp_client *c, const char *id, void (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,
                       const bool *interrupted, struct rp_error *err)
{
    bool cancelled = false;
    for (;;) {
        int rc = look_at_job(c, id, progress, ctx, err);
        if (rc == 0 && interrupted && *interrupted && !cancelled) {
            cancelled = true;
            rc = rp_client_call(c, "job-cancel", json_pack("{s:s}", "id", id), NULL, err);
        }
        if (rc == -EREMOTEIO && cancelled && err->exit == RP_EXIT_INTERRUPTED)
            rc = rp_error_exit(err, RP_EXIT_INTERRUPTED, ECANCELED, "VM \"%s\": cancelled", c->name);
        if (rc != 0 || (rc = await_news(c, err)) < 0)
            return rc < 0 ? rc : 0;
    }
}

static void interrupts(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
}

void rp_client_hold_interrupts(void)
{
    sigset_t set;
    interrupts(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

bool rp_client_interrupted(uint64_t wait_ns)
{
    struct timespec ts = rp_timespec(wait_ns);
    sigset_t set;
    interrupts(&set);
    return sigtimedwait(&set, NULL, &ts) > 0;
}

int rp_client_wait_end(struct rp_client *c, struct rp_error *err)
{
    for (;;) {
        json_t *m = NULL;
        int rc = next_message(c, &m, err);
        if (rc == -EPIPE) {
            rp_error_clear(err);
            return 0;
        }
        json_decref(m);
        if (rc < 0)
            return rc;
    }
}
