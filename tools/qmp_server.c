/* The QMP server: sockets and clients on its own thread, commands handed to the control thread. */
#include "tools/qmp_server.h"

#include "core/clock.h"
#include "core/log.h"
#include "tools/qmp_input.h"
#include "tools/version.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define LISTENERS_MAX 2u
#define EVENTS_MAX 256u         /* events between two turns of the thread; more than that and the oldest go, said so */
#define DRAIN_NS 200000000ull   /* at the end: how long clients have to take their last answers */

struct client {                 /* qmp thread */
    uint64_t id;                /* never used again, so that an answer finds its client or nobody */
    int fd;
    bool negotiated, in_work, closing;
    uint32_t watched;           /* epoll events asked for */
    struct rp_qmp_input in;
    struct rp_buf out;
    size_t out_sent;
    struct client *next;
};

struct request {
    uint64_t client;
    json_t *message;
    char *answer;               /* JSON text, set by the control thread */
    struct request *next;
};

struct table { const struct rp_qmp_command *commands; unsigned n; void *ctx; };

struct rp_qmp {
    struct table tables[RP_QMP_TABLES_MAX];     /* constant after start */
    unsigned ntables, nlisteners;
    int listeners[LISTENERS_MAX];
    struct rp_events *events;
    int subscription;
    int epoll_fd, wake_fd, request_fd;
    const char *why_not;        /* control thread, once started: only early commands run; NULL: all */
    pthread_t thread;
    bool started;

    struct client *clients;     /* qmp thread */
    unsigned nclients;
    uint64_t next_id;

    pthread_mutex_t lock;       /* guards what follows; leaf: nothing is called under it */
    struct request *requests, **requests_end;   /* for the control thread */
    struct request *answers, **answers_end;     /* for the qmp thread */
    struct rp_event ring[EVENTS_MAX];
    unsigned ring_head, ring_count, ring_lost;
    bool stop;
};

static void wake(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof(one));
    (void)n;    /* EAGAIN: it is awake already */
}

static void drain(int fd)
{
    uint64_t count;
    ssize_t n = read(fd, &count, sizeof(count));
    (void)n;
}

/* --- clients: output --- */

static void client_watch(struct rp_qmp *q, struct client *c)
{
    uint32_t want = (c->in_work || c->closing ? 0 : EPOLLIN) | (c->out.len > c->out_sent ? EPOLLOUT : 0);
    if (want == c->watched)
        return;
    struct epoll_event ev = {.events = want, .data.u64 = c->id};
    if (epoll_ctl(q->epoll_fd, EPOLL_CTL_MOD, c->fd, &ev) == 0)
        c->watched = want;
}

static void client_flush(struct client *c)
{
    while (c->out.len > c->out_sent) {
        ssize_t n = send(c->fd, c->out.data + c->out_sent, c->out.len - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            if (errno != EAGAIN)
                c->closing = true;
            break;
        }
        c->out_sent += (size_t)n;
    }
    if (c->out_sent == c->out.len) {
        rp_buf_reset(&c->out);
        c->out_sent = 0;
    }
}

/* Queues one line and sends what the socket takes. A client that lets RP_QMP_OUTPUT_MAX pile up is dropped. */
static void client_say(struct client *c, const char *text)
{
    if (c->closing)
        return;
    rp_buf_put(&c->out, text, strlen(text));
    rp_buf_put(&c->out, "\r\n", 2);
    client_flush(c);
    if (c->out.failed || c->out.len - c->out_sent > RP_QMP_OUTPUT_MAX) {
        rp_log(RP_LOG_WARN, "qmp: a client does not read its answers; it is dropped");
        rp_buf_reset(&c->out);
        c->out_sent = 0;
        c->closing = true;
    }
}

/* Steals msg. */
static char *dump(json_t *msg)
{
    char *text = msg ? json_dumps(msg, JSON_COMPACT) : NULL;
    json_decref(msg);
    return text;
}

static json_t *error_message(const char *class, const struct rp_error *err, json_t *id)
{
    json_t *e = json_pack("{s:s, s:s}", "class", class, "desc", err->text);
    if (e && err->exit != RP_EXIT_FAILED && err->exit != RP_EXIT_DONE)
        json_object_set_new(e, "exit", json_integer(err->exit));    /* ours: the exit code a command should give */
    json_t *m = json_object();
    json_object_set_new(m, "error", e ? e : json_pack("{s:s, s:s}", "class", class, "desc", "the reason is not valid UTF-8"));
    if (id)
        json_object_set(m, "id", id);
    return m;
}

static void client_refuse(struct client *c, const char *class, const struct rp_error *err, json_t *id)
{
    char *text = dump(error_message(class, err, id));
    if (text)
        client_say(c, text);
    else
        c->closing = true;
    free(text);
}

static void client_greet(struct client *c)
{
    char *text = dump(json_pack("{s:{s:{s:{s:i,s:i,s:i},s:s},s:[]}}", "QMP", "version", "qemu", "major", RP_VERSION_MAJOR, "minor",
                                RP_VERSION_MINOR, "micro", RP_VERSION_MICRO, "package", "reprise", "capabilities"));
    if (text)
        client_say(c, text);
    free(text);
}

/* --- clients: input --- */

static void request_queue(struct rp_qmp *q, struct client *c, json_t *message)
{
    struct request *r = calloc(1, sizeof(*r));
    if (!r) {
        json_decref(message);
        c->closing = true;
        return;
    }
    r->client = c->id;
    r->message = message;
    c->in_work = true;
    pthread_mutex_lock(&q->lock);
    *q->requests_end = r;
    q->requests_end = &r->next;
    pthread_mutex_unlock(&q->lock);
    wake(q->request_fd);
}

/* A whole message: negotiation is answered here, commands go to the control thread. Steals message. */
static void client_message(struct rp_qmp *q, struct client *c, json_t *message)
{
    struct rp_error err = {0};
    json_t *id = json_object_get(message, "id");
    const char *name = json_string_value(json_object_get(message, "execute"));
    if (!name) {
        rp_error_set(&err, EINVAL, "the message has no \"execute\" with a command's name");
        client_refuse(c, "GenericError", &err, id);
    } else if (!c->negotiated && strcmp(name, "qmp_capabilities") != 0) {
        rp_error_set(&err, EINVAL, "%.64s: capabilities come first: send qmp_capabilities", name);
        client_refuse(c, "CommandNotFound", &err, id);
    } else if (strcmp(name, "qmp_capabilities") == 0) {
        if (c->negotiated) {
            rp_error_set(&err, EINVAL, "capabilities were negotiated already");
            client_refuse(c, "CommandNotFound", &err, id);
        } else {
            json_t *ok = json_pack("{s:{}}", "return");
            if (id)
                json_object_set(ok, "id", id);
            char *text = dump(ok);
            c->negotiated = true;
            if (text)
                client_say(c, text);
            free(text);
        }
    } else {
        request_queue(q, c, message);
        return;
    }
    json_decref(message);
}

/* Works off what was read, until a command is in work or more bytes are needed. */
static void client_parse(struct rp_qmp *q, struct client *c)
{
    while (!c->in_work && !c->closing) {
        struct rp_error err = {0};
        json_t *message = NULL;
        int rc = rp_qmp_input_next(&c->in, &message, &err);
        if (rc == 0)
            return;
        if (rc == 1) {
            client_message(q, c, message);
            continue;
        }
        client_refuse(c, "GenericError", &err, NULL);
        if (rc != -EBADMSG)
            c->closing = true;
    }
}

static void client_read(struct rp_qmp *q, struct client *c)
{
    uint8_t bytes[4096];
    ssize_t n = recv(c->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0 || rp_qmp_input_feed(&c->in, bytes, (size_t)n) < 0) {
        c->closing = true;
        return;
    }
    client_parse(q, c);
}

/* --- clients: coming and going --- */

static void client_accept(struct rp_qmp *q, int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    struct client *c = q->nclients < RP_QMP_CLIENTS_MAX ? calloc(1, sizeof(*c)) : NULL;
    if (!c) {
        rp_log(RP_LOG_WARN, "qmp: a client was turned away: %u are connected", q->nclients);
        close(fd);
        return;
    }
    c->fd = fd;
    c->id = ++q->next_id;
    c->watched = EPOLLIN;
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = c->id};
    if (epoll_ctl(q->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0) {
        close(fd);
        free(c);
        return;
    }
    c->next = q->clients;
    q->clients = c;
    q->nclients++;
    client_greet(c);
}

static void client_free(struct client *c)
{
    close(c->fd);
    rp_qmp_input_fini(&c->in);
    rp_buf_fini(&c->out);
    free(c);
}

static struct client *client_find(struct rp_qmp *q, uint64_t id)
{
    struct client *c = q->clients;
    while (c && c->id != id)
        c = c->next;
    return c;
}

/* Ends what is to be ended (with nothing left to say) and asks epoll for what the others wait for. */
static void clients_settle(struct rp_qmp *q)
{
    for (struct client **p = &q->clients; *p;) {
        struct client *c = *p;
        if (c->closing && c->out.len == c->out_sent) {
            *p = c->next;
            q->nclients--;
            client_free(c);
            continue;
        }
        client_watch(q, c);
        p = &c->next;
    }
}

/* --- events and answers --- */

/* Any thread, under the event log's lock: only hands it on. */
static void on_event(void *ctx, const struct rp_event *e)
{
    struct rp_qmp *q = ctx;
    pthread_mutex_lock(&q->lock);
    if (q->ring_count == EVENTS_MAX) {
        q->ring_head = (q->ring_head + 1) % EVENTS_MAX;
        q->ring_count--;
        q->ring_lost++;
    }
    q->ring[(q->ring_head + q->ring_count++) % EVENTS_MAX] = *e;
    pthread_mutex_unlock(&q->lock);
    wake(q->wake_fd);
}

static char *event_text(const struct rp_event *e, unsigned lost)
{
    json_t *data = json_loads(e->data, 0, NULL);
    if (!data)
        data = json_pack("{s:s}", "text", e->data);
    if (lost)
        json_object_set_new(data, "events-lost", json_integer(lost));
    return dump(json_pack("{s:{s:I,s:I}, s:s, s:o}", "timestamp", "seconds", (json_int_t)(e->wall_ns / 1000000000u), "microseconds",
                          (json_int_t)(e->wall_ns % 1000000000u / 1000u), "event", e->name, "data", data ? data : json_object()));
}

static bool event_next(struct rp_qmp *q, struct rp_event *e, unsigned *lost)
{
    pthread_mutex_lock(&q->lock);
    bool any = q->ring_count > 0;
    if (any) {
        *e = q->ring[q->ring_head];
        q->ring_head = (q->ring_head + 1) % EVENTS_MAX;
        q->ring_count--;
        *lost = q->ring_lost;
        q->ring_lost = 0;
    }
    pthread_mutex_unlock(&q->lock);
    return any;
}

static void events_say(struct rp_qmp *q)
{
    struct rp_event e;
    unsigned lost;
    while (event_next(q, &e, &lost)) {
        char *text = event_text(&e, lost);
        for (struct client *c = q->clients; text && c; c = c->next)
            if (c->negotiated)
                client_say(c, text);
        free(text);
    }
}

static void request_free(struct request *r)
{
    json_decref(r->message);
    free(r->answer);
    free(r);
}

static void answers_say(struct rp_qmp *q)
{
    pthread_mutex_lock(&q->lock);
    struct request *r = q->answers;
    q->answers = NULL;
    q->answers_end = &q->answers;
    pthread_mutex_unlock(&q->lock);
    while (r) {
        struct request *next = r->next;
        struct client *c = client_find(q, r->client);
        if (c) {
            c->in_work = false;
            if (r->answer)
                client_say(c, r->answer);
            else
                c->closing = true;
            client_parse(q, c);
        }
        request_free(r);
        r = next;
    }
}

/* --- the thread --- */

#define DATA_WAKE (1ull << 63)
#define DATA_LISTENER (1ull << 62)

static void on_epoll(struct rp_qmp *q, const struct epoll_event *ev)
{
    if (ev->data.u64 == DATA_WAKE) {
        drain(q->wake_fd);
        return;
    }
    if (ev->data.u64 & DATA_LISTENER) {
        client_accept(q, q->listeners[ev->data.u64 & ~DATA_LISTENER]);
        return;
    }
    struct client *c = client_find(q, ev->data.u64);
    if (!c)
        return;
    if ((ev->events & EPOLLERR) || ((ev->events & EPOLLHUP) && c->in_work)) {
        rp_buf_reset(&c->out);
        c->out_sent = 0;
        c->closing = true;
        return;
    }
    if (ev->events & EPOLLOUT)
        client_flush(c);
    if (ev->events & (EPOLLIN | EPOLLHUP))      /* gone, but what it sent before still counts */
        client_read(q, c);
}

static bool stopping(struct rp_qmp *q)
{
    pthread_mutex_lock(&q->lock);
    bool stop = q->stop;
    pthread_mutex_unlock(&q->lock);
    return stop;
}

static bool clients_waiting(const struct rp_qmp *q)
{
    for (const struct client *c = q->clients; c; c = c->next)
        if (c->out.len > c->out_sent)
            return true;
    return false;
}

static void *server_thread(void *arg)
{
    struct rp_qmp *q = arg;
    pthread_setname_np(pthread_self(), "qmp");
    uint64_t end_ns = 0;
    for (;;) {
        struct epoll_event ev[16];
        int n = epoll_wait(q->epoll_fd, ev, 16, end_ns ? 10 : -1);
        for (int i = 0; i < n; i++)
            on_epoll(q, &ev[i]);
        events_say(q);      /* before the answers: an event that a command caused comes before its answer */
        answers_say(q);
        clients_settle(q);
        if (!end_ns && stopping(q))
            end_ns = rp_clock_ns() + DRAIN_NS;
        if (end_ns && (!clients_waiting(q) || rp_clock_ns() > end_ns))
            return NULL;
    }
}

/* --- commands: the control thread --- */

static const struct rp_qmp_command *command_find(const struct rp_qmp *q, const char *name, void **ctx)
{
    for (unsigned t = 0; t < q->ntables; t++)
        for (unsigned i = 0; i < q->tables[t].n; i++)
            if (strcmp(q->tables[t].commands[i].name, name) == 0) {
                *ctx = q->tables[t].ctx;
                return &q->tables[t].commands[i];
            }
    return NULL;
}

static const struct rp_qmp_arg *arg_find(const struct rp_qmp_arg *args, const char *name)
{
    for (; args && args->name; args++)
        if (strcmp(args->name, name) == 0)
            return args;
    return NULL;
}

static int arg_check(const struct rp_qmp_arg *a, const json_t *value, struct rp_error *err)
{
    static const char *const kind[] = {[RP_QMP_STR] = "a string", [RP_QMP_BOOL] = "true or false", [RP_QMP_INT] = "a whole number",
                                       [RP_QMP_SIZE] = "a whole number, not negative", [RP_QMP_ANY] = "anything"};
    bool good = true;
    switch ((enum rp_qmp_type)a->type) {
    case RP_QMP_STR: good = json_is_string(value); break;
    case RP_QMP_BOOL: good = json_is_boolean(value); break;
    case RP_QMP_INT: good = json_is_integer(value); break;
    case RP_QMP_SIZE: good = json_is_integer(value) && json_integer_value(value) >= 0; break;
    case RP_QMP_ANY: break;
    }
    return good ? 0 : rp_error_set(err, EINVAL, "argument '%s' must be %s", a->name, kind[a->type]);
}

static int args_check(const struct rp_qmp_command *cmd, json_t *args, struct rp_error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach(args, key, value) {
        const struct rp_qmp_arg *a = arg_find(cmd->args, key);
        if (!a)
            return rp_error_set(err, EINVAL, "%s takes no argument '%.64s'", cmd->name, key);
        int rc = arg_check(a, value, err);
        if (rc < 0)
            return rc;
    }
    for (const struct rp_qmp_arg *a = cmd->args; a && a->name; a++)
        if (!a->optional && !json_object_get(args, a->name))
            return rp_error_set(err, EINVAL, "%s needs the argument '%s'", cmd->name, a->name);
    return 0;
}

/* Runs one command; the message it answers with. */
static json_t *command_run(const struct rp_qmp *q, json_t *message)
{
    struct rp_error err = {0};
    json_t *id = json_object_get(message, "id");
    const char *name = json_string_value(json_object_get(message, "execute"));
    void *ctx = NULL;
    const struct rp_qmp_command *cmd = command_find(q, name, &ctx);
    if (!cmd) {
        rp_error_set(&err, ENOENT, "The command %.64s has not been found", name);
        return error_message("CommandNotFound", &err, id);
    }
    json_t *args = json_object_get(message, "arguments");
    json_t *none = args ? NULL : json_object();
    struct rp_qmp_call call = {.ctx = ctx, .args = args ? args : none};
    int rc = json_is_object(call.args) ? args_check(cmd, call.args, &err)
                                       : rp_error_set(&err, EINVAL, "\"arguments\" must be an object");
    if (rc == 0 && q->why_not && !cmd->early)
        rc = rp_error_exit(&err, RP_EXIT_REFUSED, EAGAIN, "%s: %s", cmd->name, q->why_not);
    if (rc == 0)
        rc = cmd->run(&call, &err);
    json_decref(none);
    if (rc < 0) {
        json_decref(call.result);
        return error_message(rc == -ENODEV ? "DeviceNotFound" : "GenericError", &err, id);
    }
    json_t *m = json_object();
    json_object_set_new(m, "return", call.result ? call.result : json_object());
    if (id)
        json_object_set(m, "id", id);
    return m;
}

void rp_qmp_dispatch(struct rp_qmp *q)
{
    drain(q->request_fd);
    for (;;) {
        pthread_mutex_lock(&q->lock);
        struct request *r = q->requests;
        if (r && !(q->requests = r->next))
            q->requests_end = &q->requests;
        pthread_mutex_unlock(&q->lock);
        if (!r)
            return;
        r->answer = dump(command_run(q, r->message));
        r->next = NULL;
        pthread_mutex_lock(&q->lock);
        *q->answers_end = r;
        q->answers_end = &r->next;
        pthread_mutex_unlock(&q->lock);
        wake(q->wake_fd);
    }
}

void rp_qmp_not_ready(struct rp_qmp *q, const char *why_not)
{
    q->why_not = why_not;
}

void rp_qmp_ready(struct rp_qmp *q)
{
    q->why_not = NULL;
}

json_t *rp_qmp_command_list(const struct rp_qmp *q)
{
    json_t *list = json_array();
    json_array_append_new(list, json_pack("{s:s}", "name", "qmp_capabilities"));
    for (unsigned t = 0; t < q->ntables; t++)
        for (unsigned i = 0; i < q->tables[t].n; i++)
            json_array_append_new(list, json_pack("{s:s}", "name", q->tables[t].commands[i].name));
    return list;
}

int rp_qmp_request_fd(const struct rp_qmp *q)
{
    return q->request_fd;
}

/* --- making and ending --- */

static int watch(struct rp_qmp *q, int fd, uint64_t data, struct rp_error *err)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = data};
    if (epoll_ctl(q->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0)
        return rp_error_set(err, errno, "qmp: epoll: %s", strerror(errno));
    return 0;
}

int rp_qmp_create(struct rp_events *events, struct rp_qmp **out, struct rp_error *err)
{
    struct rp_qmp *q = calloc(1, sizeof(*q));
    if (!q)
        return rp_error_set(err, ENOMEM, "qmp: out of memory");
    q->events = events;
    q->subscription = -1;
    pthread_mutex_init(&q->lock, NULL);
    q->requests_end = &q->requests;
    q->answers_end = &q->answers;
    q->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    q->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    q->request_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = 0;
    if (q->epoll_fd < 0 || q->wake_fd < 0 || q->request_fd < 0)
        rc = rp_error_set(err, errno, "qmp: no descriptors left: %s", strerror(errno));
    else
        rc = watch(q, q->wake_fd, DATA_WAKE, err);
    if (rc == 0 && events && (q->subscription = rp_events_subscribe(events, on_event, q)) < 0)
        rc = rp_error_set(err, ENOMEM, "qmp: out of memory");
    if (rc < 0) {
        rp_qmp_destroy(q);
        return rc;
    }
    *out = q;
    return 0;
}

int rp_qmp_add(struct rp_qmp *q, const struct rp_qmp_command *commands, unsigned n, void *ctx, struct rp_error *err)
{
    if (q->ntables == RP_QMP_TABLES_MAX)
        return rp_error_set(err, EOVERFLOW, "qmp: more than %u command tables", RP_QMP_TABLES_MAX);
    q->tables[q->ntables++] = (struct table){.commands = commands, .n = n, .ctx = ctx};
    return 0;
}

int rp_qmp_listen(struct rp_qmp *q, int fd, struct rp_error *err)
{
    if (q->nlisteners == LISTENERS_MAX)
        return rp_error_set(err, EOVERFLOW, "qmp: more than %u sockets", LISTENERS_MAX);
    int rc = watch(q, fd, DATA_LISTENER | q->nlisteners, err);
    if (rc == 0)
        q->listeners[q->nlisteners++] = fd;
    return rc;
}

int rp_qmp_start(struct rp_qmp *q, struct rp_error *err)
{
    int rc = pthread_create(&q->thread, NULL, server_thread, q);
    if (rc != 0)
        return rp_error_set(err, rc, "qmp: no thread: %s", strerror(rc));
    q->started = true;
    return 0;
}

static void requests_free(struct request *r)
{
    while (r) {
        struct request *next = r->next;
        request_free(r);
        r = next;
    }
}

void rp_qmp_destroy(struct rp_qmp *q)
{
    if (!q)
        return;
    if (q->subscription >= 0)
        rp_events_unsubscribe(q->events, q->subscription);
    if (q->started) {
        pthread_mutex_lock(&q->lock);
        q->stop = true;
        pthread_mutex_unlock(&q->lock);
        wake(q->wake_fd);
        pthread_join(q->thread, NULL);
    }
    while (q->clients) {
        struct client *next = q->clients->next;
        client_free(q->clients);
        q->clients = next;
    }
    requests_free(q->requests);
    requests_free(q->answers);
    for (unsigned i = 0; i < q->nlisteners; i++)
        close(q->listeners[i]);
    int fds[] = {q->epoll_fd, q->wake_fd, q->request_fd};
    for (unsigned i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    pthread_mutex_destroy(&q->lock);
    free(q);
}
