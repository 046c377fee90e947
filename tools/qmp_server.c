/* The QMP server: sockets and clients on its own thread, commands handed to the control thread. */
#include "tools/qmp_server.h"

#include "core/accept.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/thread.h"
#include "tools/qmp_client.h"
#include "tools/qmp_message.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define LISTENERS_MAX 2u
#define EVENTS_MAX 256u         /* events between two turns of the thread; more than that and the oldest go, said so */
#define DRAIN_NS 200000000ull   /* at the end: how long clients have to take their last answers */

struct client {                 /* qmp thread */
    struct rp_qmp_client c;
    unsigned listener;
    uint64_t id;                /* never used again, so that an answer finds its client or nobody */
    uint32_t watched;           /* epoll events asked for */
    struct client *next;
};

struct request {
    uint64_t client;
    json_t *message;
    char *answer;               /* JSON text, set by the control thread */
    struct request *next;
};

struct rp_qmp {
    struct rp_qmp_commands commands;    /* control thread, once started */
    unsigned nlisteners;
    int listeners[LISTENERS_MAX];
    struct rp_events *events;
    int subscription;
    int epoll_fd, wake_fd, request_fd;
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

/* --- clients --- */

/* The client's next command, if a whole one is there and none is in work, to the control thread. */
static void request_queue(struct rp_qmp *q, struct client *c)
{
    json_t *message = rp_qmp_client_next(&c->c);
    struct request *r = message ? calloc(1, sizeof(*r)) : NULL;
    if (!r) {
        if (message)
            rp_qmp_client_answer(&c->c, NULL);
        json_decref(message);
        return;
    }
    r->client = c->id;
    r->message = message;
    pthread_mutex_lock(&q->lock);
    *q->requests_end = r;
    q->requests_end = &r->next;
    pthread_mutex_unlock(&q->lock);
    wake(q->request_fd);
}

static void client_free(struct client *c)
{
    rp_qmp_client_fini(&c->c);
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
        if (rp_qmp_client_over(&c->c)) {
            *p = c->next;
            q->nclients--;
            client_free(c);
            continue;
        }
        uint32_t want = rp_qmp_client_wants(&c->c);
        struct epoll_event ev = {.events = want, .data.u64 = c->id};
        if (want != c->watched && epoll_ctl(q->epoll_fd, EPOLL_CTL_MOD, c->c.fd, &ev) == 0)
            c->watched = want;
        p = &c->next;
    }
}

static void client_ready(struct rp_qmp *q, struct client *c, uint32_t events)
{
    rp_qmp_client_ready(&c->c, events);
    request_queue(q, c);
}

/* What epoll is still to say of them: who hung up before a newcomer came may be told of after it. */
static void clients_look(struct rp_qmp *q)
{
    for (struct client *c = q->clients; c; c = c->next) {
        struct pollfd p = {.fd = c->c.fd, .events = POLLIN};
        if (poll(&p, 1, 0) == 1)
            client_ready(q, c, (uint32_t)p.revents);    /* POLLIN, POLLHUP, POLLERR are EPOLLIN, EPOLLHUP, EPOLLERR */
    }
}

static bool room(const struct rp_qmp *q, unsigned listener)
{
    unsigned further = 0;
    for (const struct client *c = q->clients; c; c = c->next)
        further += c->listener != 0;
    return q->nclients < RP_QMP_CLIENTS_MAX && (listener == 0 || further < RP_QMP_CLIENTS_FURTHER_MAX);
}

/* Says why, and hangs up. */
static void turn_away(struct rp_qmp *q, int fd)
{
    struct rp_error why = {0};
    rp_error_exit(&why, RP_EXIT_REFUSED, EMFILE, "%u QMP clients are connected to this VM, and there is no place for one more: close one that is idle",
                  q->nclients);
    char *text = rp_qmp_error_text("GenericError", &why, NULL);
    rp_log(RP_LOG_WARN, "qmp: a client was turned away: %u are connected", q->nclients);
    if (text && (send(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT) < 0 || send(fd, "\r\n", 2, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)) {
        /* it has gone already */
    }
    free(text);
    close(fd);
}

static void client_accept(struct rp_qmp *q, unsigned listener)
{
    int fd = rp_accept(q->listeners[listener]);
    if (fd < 0)
        return;
    if (!room(q, listener))
        clients_look(q);
    clients_settle(q);      /* who has hung up leaves its place */
    struct client *c = room(q, listener) ? calloc(1, sizeof(*c)) : NULL;
    if (!c) {
        turn_away(q, fd);
        return;
    }
    c->c.fd = fd;
    c->listener = listener;
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
    rp_qmp_client_greet(&c->c);
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
        char *text = rp_qmp_event_text(&e, lost);
        for (struct client *c = q->clients; text && c; c = c->next)
            if (c->c.negotiated)
                rp_qmp_client_say(&c->c, text);
        free(text);
    }
}

static void request_free(struct request *r)
{
    json_decref(r->message);
    free(r->answer);
    free(r);
}

static struct request *answers_take(struct rp_qmp *q)
{
    pthread_mutex_lock(&q->lock);
    struct request *r = q->answers;
    q->answers = NULL;
    q->answers_end = &q->answers;
    pthread_mutex_unlock(&q->lock);
    return r;
}

static void answers_say(struct rp_qmp *q, struct request *r)
{
    while (r) {
        struct request *next = r->next;
        struct client *c = client_find(q, r->client);
        if (c) {
            rp_qmp_client_answer(&c->c, r->answer);
            request_queue(q, c);
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
        client_accept(q, (unsigned)(ev->data.u64 & ~DATA_LISTENER));
        return;
    }
    struct client *c = client_find(q, ev->data.u64);
    if (c)
        client_ready(q, c, ev->events);
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
        if (rp_qmp_client_wants(&c->c) & EPOLLOUT)
            return true;
    return false;
}

static void *server_thread(void *arg)
{
    struct rp_qmp *q = arg;
    uint64_t end_ns = 0;
    for (;;) {
        struct epoll_event ev[16];
        int n = epoll_wait(q->epoll_fd, ev, 16, end_ns ? 10 : -1);
        for (int i = 0; i < n; i++)
            on_epoll(q, &ev[i]);
        struct request *answers = answers_take(q);
        events_say(q);      /* what a command caused is there when its answer is, and is said before it */
        answers_say(q, answers);
        clients_settle(q);
        if (!end_ns && stopping(q))
            end_ns = rp_clock_ns() + DRAIN_NS;
        if (end_ns && (!clients_waiting(q) || rp_clock_ns() > end_ns))
            return NULL;
    }
}

/* --- the control thread --- */

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
        r->answer = rp_qmp_commands_run(&q->commands, r->message);
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
    q->commands.why_not = why_not;
}

void rp_qmp_ready(struct rp_qmp *q)
{
    q->commands.why_not = NULL;
}

json_t *rp_qmp_command_list(const struct rp_qmp *q)
{
    return rp_qmp_commands_list(&q->commands);
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

int rp_qmp_add(struct rp_qmp *q, struct rp_qmp_table table, void *ctx, struct rp_error *err)
{
    return rp_qmp_commands_add(&q->commands, table, ctx, err);
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
    int rc = rp_thread_start(&q->thread, "qmp", server_thread, q, err);
    q->started = rc == 0;
    return rc;
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
