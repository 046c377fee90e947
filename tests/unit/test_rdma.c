/*
 * The rdma transport over a real verbs device, from this host to itself: RP_RDMA_ADDRESS names an address that a device
 * has (tests/lab/run unit tests=test_rdma sets it); without one these tests are skipped. The ring's arithmetic needs none.
 */
#include "core/clock.h"
#include "replicator/doors.h"
#include "replicator/rdma_conn.h"
#include "replicator/rdma_qp.h"
#include "replicator/rdma_ring.h"
#include "replicator/transport.h"

#include <criterion/criterion.h>
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(rdma, .timeout = 120);
TestSuite(ring, .timeout = 60);

/* --- the ring's arithmetic: a sender and a receiver that disagree about nothing, in any order --- */

static uint32_t rnd(uint32_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 17;
    return *s ^= *s << 5;
}

Test(ring, sender_and_receiver_agree)
{
    uint32_t seed = (uint32_t)getpid() | 1, in_flight = 0;
    printf("seed %u\n", seed);
    struct rp_rdma_out o = {.slot_bytes = 64};
    struct rp_rdma_in i = {.slot_bytes = 64};
    uint64_t sent = 0, got = 0;
    for (unsigned k = 0; k < 200000; k++) {
        uint32_t offset, room = rp_rdma_out_room(&o);
        if (room && rnd(&seed) % 2) {
            uint32_t len = 1 + rnd(&seed) % room, at = rp_rdma_out_offset(&o);
            rp_rdma_out_take(&o, len);
            cr_assert_eq(rp_rdma_in_arrived(&i, len, false, &offset), 0);
            cr_assert_eq(offset, at);
            cr_assert_leq(at + len, 64 * RP_RDMA_SLOTS);
            sent += len;
            in_flight++;
        } else if (rnd(&seed) % 3 == 0) {
            o.completed = o.posted;
        } else {
            uint32_t n = rp_rdma_in_ready(&i, &offset);
            if (n) {
                n = 1 + rnd(&seed) % n;
                rp_rdma_in_consume(&i, n);
                got += n;
            }
            uint32_t credit = rp_rdma_in_credit(&i);
            cr_assert_eq(rp_rdma_out_credit(&o, credit), 0);
        }
        /* Whatever happened, one side can go on: no deadlock. */
        cr_assert(rp_rdma_out_room(&o) || o.completed < o.posted || rp_rdma_in_ready(&i, &offset));
    }
    cr_assert_gt(in_flight, 1000);
    cr_assert_leq(got, sent);
}

Test(ring, a_peer_that_breaks_the_rules_is_refused)
{
    uint32_t offset;
    struct rp_rdma_out o = {.slot_bytes = 64};
    cr_assert_eq(rp_rdma_out_credit(&o, 1), -EPROTO);       /* more than was taken */
    rp_rdma_out_take(&o, 100);
    cr_assert_eq(rp_rdma_out_credit(&o, 3), -EPROTO);
    cr_assert_eq(rp_rdma_out_credit(&o, 2), 0);
    struct rp_rdma_in i = {.slot_bytes = 64};
    cr_assert_eq(rp_rdma_in_arrived(&i, 0, false, &offset), -EPROTO);
    cr_assert_eq(rp_rdma_in_arrived(&i, 64 * RP_RDMA_MESSAGE_SLOTS + 1, false, &offset), -EPROTO);
    for (unsigned k = 0; k < RP_RDMA_SLOTS; k++)
        cr_assert_eq(rp_rdma_in_arrived(&i, 64, false, &offset), 0);
    cr_assert_eq(rp_rdma_in_arrived(&i, 1, false, &offset), -EPROTO);   /* the ring is full */
    cr_assert_eq(rp_rdma_in_ready(&i, &offset), 64);
    struct rp_rdma_in j = {.slot_bytes = 64, .arrived = RP_RDMA_SLOTS - 1, .read = RP_RDMA_SLOTS - 1, .freed = RP_RDMA_SLOTS - 1};
    cr_assert_eq(rp_rdma_in_arrived(&j, 65, false, &offset), -EPROTO);  /* over the ring's end */
    cr_assert_eq(rp_rdma_in_arrived(&j, 64, true, &offset), 0);
    cr_assert_eq(rp_rdma_in_ready(&j, &offset), 0);                     /* hidden */
}

/* --- connections --- */

static const char *address(void)
{
    const char *a = getenv("RP_RDMA_ADDRESS");
    if (!a || !*a)
        cr_skip_test("RP_RDMA_ADDRESS names no address of a verbs device (tests/lab/run unit tests=test_rdma has one)");
    return a;
}

struct ends {
    struct rp_listener *listener;
    struct rp_conn *near, *far;     /* far: the accepted one */
};

static void listen_on(struct ends *e, const char *host)
{
    struct rp_error err = {0};
    struct rp_uri uri = {.scheme = RP_URI_RDMA, .port = "0"};
    strncpy(uri.host, host, sizeof(uri.host) - 1);
    cr_assert_eq(rp_listen(&uri, &e->listener, &err), 0, "%s", err.text);
    cr_assert(strcmp(e->listener->uri.port, "0") != 0);
}

static void *accept_main(void *arg)
{
    struct ends *e = arg;
    struct rp_error err = {0};
    int rc;
    while ((rc = rp_listener_accept(e->listener, 100, &e->far, &err)) == -EAGAIN)
        ;
    cr_assert_eq(rc, 0, "%s", err.text);
    return NULL;
}

static void open_ends(struct ends *e)
{
    struct rp_error err = {0};
    pthread_t t;
    listen_on(e, address());
    pthread_create(&t, NULL, accept_main, e);
    struct rp_uri to = e->listener->uri;
    cr_assert_eq(rp_connect(&to, 10000, &e->near, &err), 0, "%s", err.text);
    pthread_join(t, NULL);
    char hello[5];
    cr_assert_eq(rp_conn_send(e->near, "hello", 5), 0);
    cr_assert_eq(rp_conn_recv_all(e->far, hello, 5, 0), 0);
    cr_assert_eq(memcmp(hello, "hello", 5), 0);
}

static void close_ends(struct ends *e)
{
    rp_conn_close(e->near);
    rp_conn_close(e->far);
    rp_listener_close(e->listener);
}

struct flow {
    struct rp_conn *conn;
    uint64_t bytes;
    uint32_t seed;
};

static void *send_main(void *arg)
{
    struct flow *f = arg;
    uint32_t seed = f->seed, sizes = f->seed * 7 + 1;
    uint8_t *buf = malloc(1 << 20);
    for (uint64_t left = f->bytes; left > 0;) {
        uint64_t n = 1 + rnd(&sizes) % (rnd(&sizes) % 4 ? 700 : 1 << 20);
        n = n < left ? n : left;
        for (uint64_t i = 0; i < n; i++)
            buf[i] = (uint8_t)(rnd(&seed) >> 8);
        int rc = rp_conn_send(f->conn, buf, n);
        cr_assert_eq(rc, 0, "send: %d", rc);
        left -= n;
    }
    free(buf);
    return NULL;
}

static void *recv_main(void *arg)
{
    struct flow *f = arg;
    uint32_t seed = f->seed, sizes = f->seed * 5 + 1;
    uint8_t *buf = malloc(1 << 20);
    for (uint64_t left = f->bytes; left > 0;) {
        ssize_t n = f->conn->ops->recv(f->conn, buf, 1 + rnd(&sizes) % (1 << 20), RP_CONN_FOREVER);
        cr_assert_gt(n, 0, "recv: %zd", n);
        cr_assert_leq((uint64_t)n, left);
        for (ssize_t i = 0; i < n; i++)
            cr_assert_eq(buf[i], (uint8_t)(rnd(&seed) >> 8), "%lu bytes before the end", left - (uint64_t)i);
        left -= (uint64_t)n;
    }
    free(buf);
    return NULL;
}

static void run_flows(struct ends *e, uint64_t there, uint64_t back)
{
    uint32_t seed = (uint32_t)getpid() | 1;
    struct flow f[] = {{e->near, there, seed}, {e->far, there, seed}, {e->far, back, seed + 2}, {e->near, back, seed + 2}};
    pthread_t t[4];
    uint64_t t0 = rp_clock_ns();
    for (unsigned i = 0; i < 4; i++)
        pthread_create(&t[i], NULL, i % 2 ? recv_main : send_main, &f[i]);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    printf("seed %u: %lu bytes there, %lu back in %.0f ms\n", seed, there, back, (double)(rp_clock_ns() - t0) / 1e6);
}

Test(rdma, a_stream_both_ways)
{
    struct ends e;
    struct rp_error err = {0};
    open_ends(&e);
    run_flows(&e, 100000, 100000);      /* narrow rings */
    cr_assert_eq(e.far->ops->widen(e.far, &err), 0, "%s", err.text);
    cr_assert_eq(rp_conn_send(e.far, "w", 1), 0);
    char w;
    cr_assert_eq(rp_conn_recv_all(e.near, &w, 1, 0), 0);
    run_flows(&e, 24u << 20, 100000);
    run_flows(&e, 1000, 1000);
    close_ends(&e);
}

static bool readable(struct rp_conn *c)
{
    struct pollfd p = {.fd = c->ops->poll_fd(c), .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void wait_readable(struct rp_conn *c)
{
    struct pollfd p = {.fd = c->ops->poll_fd(c), .events = POLLIN};
    cr_assert_eq(poll(&p, 1, 20000), 1, "nothing became readable");
}

/* recv(NOW) until there is nothing: afterwards the descriptor is quiet, and the next byte makes it readable. */
static size_t drain(struct rp_conn *c)
{
    char buf[7];
    size_t got = 0;
    ssize_t n;
    while ((n = c->ops->recv(c, buf, sizeof(buf), RP_CONN_NOW)) > 0)
        got += (size_t)n;
    cr_assert_eq(n, -EAGAIN);
    return got;
}

Test(rdma, the_descriptor_tells_of_every_byte)
{
    struct ends e;
    char buf[100] = {0};
    open_ends(&e);
    drain(e.far);
    for (unsigned i = 0; i < 50; i++) {
        size_t got = 0;
        cr_assert_eq(rp_conn_send(e.near, buf, sizeof(buf)), 0);
        while (got < sizeof(buf)) {
            wait_readable(e.far);
            if (i % 2) {        /* what is left behind is still announced */
                cr_assert_gt(e.far->ops->recv(e.far, buf, 1, RP_CONN_FOREVER), 0);
                got += 1;
                cr_assert(got == sizeof(buf) || readable(e.far), "%zu bytes left, and nothing says so", sizeof(buf) - got);
            }
            got += drain(e.far);
        }
        cr_assert_eq(got, sizeof(buf));
    }
    /* Data that a *sender* of the far side took off the queue is announced too: fill the other direction until it blocks. */
    size_t there = 0;
    ssize_t n;
    struct iovec iov = {buf, sizeof(buf)};
    cr_assert_eq(rp_conn_send(e.near, buf, 10), 0);
    while ((n = e.far->ops->send(e.far, &iov, 1, false)) > 0)
        there += (size_t)n;
    cr_assert_eq(n, -EAGAIN);
    cr_assert_leq(there, RP_RDMA_NARROW * RP_RDMA_SLOTS);
    wait_readable(e.far);
    cr_assert_eq(rp_conn_recv_all(e.far, buf, 10, 0), 0);
    cr_assert_eq(there, drain(e.near));
    close_ends(&e);
}

static void *blocked_send(void *arg)
{
    static char buf[4096];
    int rc;
    while ((rc = rp_conn_send(arg, buf, sizeof(buf))) == 0)
        ;
    return (void *)(intptr_t)rc;
}

/* Data that a sender takes off the queue who goes on waiting for room are announced all the same: it may wait for long. */
Test(rdma, the_descriptor_tells_of_what_came_while_somebody_waits_for_room)
{
    struct ends e;
    pthread_t s;
    void *rc;
    char buf[10];
    open_ends(&e);
    drain(e.near);
    pthread_create(&s, NULL, blocked_send, e.near);
    usleep(300000);
    cr_assert_eq(rp_conn_send(e.far, "0123456789", 10), 0);
    usleep(300000);
    cr_assert(readable(e.near), "10 bytes are there, and nothing says so");
    cr_assert_eq(rp_conn_recv_all(e.near, buf, 10, 0), 0);
    rp_conn_shutdown(e.near);
    pthread_join(s, &rc);
    cr_assert_eq((intptr_t)rc, -ECANCELED);
    close_ends(&e);
}

static void *blocked_recv(void *arg)
{
    char c;
    struct rp_conn *conn = arg;
    return (void *)(intptr_t)conn->ops->recv(conn, &c, 1, RP_CONN_FOREVER);
}

Test(rdma, shutdown_wakes_both_directions)
{
    struct ends e;
    pthread_t r, s, far;
    void *rc;
    open_ends(&e);
    pthread_create(&r, NULL, blocked_recv, e.near);
    pthread_create(&s, NULL, blocked_send, e.near);
    usleep(200000);
    rp_conn_shutdown(e.near);
    pthread_join(r, &rc);
    cr_assert_eq((intptr_t)rc, -ECANCELED);
    pthread_join(s, &rc);
    cr_assert_eq((intptr_t)rc, -ECANCELED);
    cr_assert(readable(e.near));
    pthread_create(&far, NULL, blocked_send, e.far);    /* nobody takes it any more */
    pthread_join(far, &rc);
    cr_assert_eq((intptr_t)rc, -EPIPE);
    close_ends(&e);
}

Test(rdma, what_was_sent_last_arrives_and_then_the_end)
{
    struct ends e;
    char buf[16] = {0};
    open_ends(&e);
    cr_assert_eq(rp_conn_send(e.near, "goodbye", 8), 0);
    rp_conn_close(e.near);
    cr_assert_eq(rp_conn_recv_all(e.far, buf, 8, 0), 0);
    cr_assert_str_eq(buf, "goodbye");
    cr_assert_eq(e.far->ops->recv(e.far, buf, 1, RP_CONN_FOREVER), 0);
    wait_readable(e.far);
    cr_assert_eq(e.far->ops->recv(e.far, buf, 1, RP_CONN_NOW), 0);
    cr_assert_eq(rp_conn_send(e.far, "x", 1), -EPIPE);
    rp_conn_close(e.far);
    rp_listener_close(e.listener);
}

struct looker {
    struct rp_conn *conn;
    _Atomic bool over;
};

static void *look_main(void *arg)
{
    struct looker *l = arg;
    char x;
    while (!atomic_load(&l->over))
        cr_assert_eq(l->conn->ops->recv(l->conn, &x, 1, RP_CONN_NOW), -EAGAIN);
    return NULL;
}

/* A lane's other direction is looked at while somebody waits for room to send: what the look finds is for the one who waits, too. */
Test(rdma, who_waits_misses_nothing_that_another_has_seen, .timeout = 60)
{
    struct ends e;
    open_ends(&e);
    uint32_t seed = (uint32_t)getpid() | 1;
    struct flow there = {e.near, 400000, seed}, taken = {e.far, 400000, seed};
    struct looker l = {.conn = e.near};
    pthread_t s, r, look;
    pthread_create(&look, NULL, look_main, &l);
    pthread_create(&s, NULL, send_main, &there);
    pthread_create(&r, NULL, recv_main, &taken);
    pthread_join(s, NULL);
    pthread_join(r, NULL);
    atomic_store(&l.over, true);
    pthread_join(look, NULL);
    close_ends(&e);
}

/* A process of its own, made before this one has touched a device: connects to the address it reads, and waits to be killed. */
static pid_t other_process(int *to)
{
    int p[2];
    cr_assert_eq(pipe(p), 0);
    pid_t child = fork();
    if (child == 0) {
        struct rp_uri uri;
        struct rp_conn *c;
        if (read(p[0], &uri, sizeof(uri)) == sizeof(uri) && rp_connect(&uri, 10000, &c, NULL) == 0 && rp_conn_send(c, "x", 1) == 0)
            pause();
        _exit(1);
    }
    close(p[0]);
    *to = p[1];
    return child;
}

Test(rdma, a_peer_that_is_killed_is_noticed)
{
    struct ends e;
    const char *host = address();
    int to;
    pid_t child = other_process(&to);
    listen_on(&e, host);
    cr_assert_eq(write(to, &e.listener->uri, sizeof(e.listener->uri)), sizeof(e.listener->uri));
    accept_main(&e);
    char x;
    cr_assert_eq(rp_conn_recv_all(e.far, &x, 1, 0), 0);
    uint64_t t0 = rp_clock_ns();
    kill(child, SIGKILL);
    ssize_t n = e.far->ops->recv(e.far, &x, 1, RP_CONN_FOREVER);
    cr_assert(n == -ECONNRESET || n == -ETIMEDOUT, "%zd", n);
    printf("noticed after %.1f ms (%s)\n", (double)(rp_clock_ns() - t0) / 1e6, strerror((int)-n));
    wait_readable(e.far);
    waitpid(child, NULL, 0);
    close(to);
    rp_conn_close(e.far);
    rp_listener_close(e.listener);
}

/* A queue pair in the error state (what a device does on its own when something breaks) ends the connection on both sides. */
Test(rdma, a_queue_pair_that_breaks_ends_the_connection)
{
    struct ends e;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
    open_ends(&e);
    char x;
    cr_assert_eq(ibv_modify_qp(rp_rdma_conn_cm((struct rp_rdma_conn *)e.near)->id->qp, &attr, IBV_QP_STATE), 0);
    cr_assert_eq(e.near->ops->recv(e.near, &x, 1, RP_CONN_FOREVER), -ECONNRESET);
    cr_assert_eq(rp_conn_send(e.near, "x", 1), -ECONNRESET);
    int rc;
    while ((rc = rp_conn_send(e.far, "x", 1)) == 0)
        ;
    cr_assert(rc == -ETIMEDOUT || rc == -ECONNRESET || rc == -EIO, "%d", rc);
    close_ends(&e);
}

/* A queue pair that is gone without a word (its goodbye was lost with the network): nothing is under way that would fail, and yet
 * neither who waits for room nor who waits for data waits for ever. */
Test(rdma, a_peer_that_has_gone_without_a_word_is_noticed, .timeout = 60)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
    void *(*const waits[])(void *) = {blocked_send, blocked_recv};
    for (unsigned i = 0; i < 2; i++) {
        struct ends e;
        pthread_t t;
        void *rc;
        open_ends(&e);
        pthread_create(&t, NULL, waits[i], e.near);
        usleep(500000);
        uint64_t t0 = rp_clock_ns();
        cr_assert_eq(ibv_modify_qp(rp_rdma_conn_cm((struct rp_rdma_conn *)e.far)->id->qp, &attr, IBV_QP_STATE), 0);
        pthread_join(t, &rc);
        cr_assert((intptr_t)rc == -ETIMEDOUT || (intptr_t)rc == -EIO, "%ld", (intptr_t)rc);
        printf("noticed after %.0f ms (%s)\n", (double)(rp_clock_ns() - t0) / 1e6, strerror(-(int)(intptr_t)rc));
        close_ends(&e);
    }
}

struct dial { struct rp_uri to; struct rp_conn *conn; _Atomic bool done; };

static void *dial_main(void *arg)
{
    struct dial *d = arg;
    struct rp_error err = {0};
    cr_assert_eq(rp_connect(&d->to, 10000, &d->conn, &err), 0, "%s", err.text);
    atomic_store(&d->done, true);
    return NULL;
}

static int welcome_all(void *ctx, const struct rp_hello *h, struct rp_welcome *w, struct rp_error *err)
{
    (void)ctx, (void)h, (void)w, (void)err;
    return 0;
}

static void *greet_main(void *conn)
{
    const struct rp_secret key = {0};
    const struct rp_hello hello = {.role = RP_LINK_CONTROL, .lanes = 7};
    struct rp_welcome w;
    struct rp_error err = {0};
    cr_assert_eq(rp_handshake_connect(conn, &key, &hello, &w, &err), 0, "%s", err.text);
    return NULL;
}

/* Who has connected and says nothing stays in the hall: that he is connected is nothing said. */
Test(rdma, who_says_nothing_is_in_nobodys_way)
{
    struct ends e;
    struct rp_doors doors;
    struct rp_greeting greeting;
    struct rp_error err = {0};
    struct rp_conn *c;
    const struct rp_secret key = {0};
    struct rp_hello hello = {.role = RP_LINK_CONTROL};
    int rc = -EAGAIN;
    listen_on(&e, address());
    cr_assert_eq(rp_doors_init(&doors, e.listener, &key, &err), 0, "%s", err.text);
    struct dial d[2] = {{.to = e.listener->uri}, {.to = e.listener->uri}};
    for (unsigned i = 0; i < 2; i++) {
        pthread_t t;
        pthread_create(&t, NULL, dial_main, &d[i]);
        for (uint64_t until = rp_clock_ns() + 500000000u; !atomic_load(&d[i].done) || rp_clock_ns() < until;)
            cr_assert_eq(rp_doors_accept(&doors, 20, &c, &greeting), -EAGAIN, "nothing was said, and yet somebody is let in");
        pthread_join(t, NULL);
    }
    pthread_t t;
    pthread_create(&t, NULL, greet_main, d[1].conn);
    for (unsigned i = 0; i < 200 && rc == -EAGAIN; i++)
        rc = rp_doors_accept(&doors, 20, &c, &greeting);
    cr_assert_eq(rc, 0);
    cr_assert_eq(rp_handshake_welcome(&greeting, c, &key, welcome_all, NULL, &hello, &err), 0, "%s", err.text);
    pthread_join(t, NULL);
    cr_assert_eq(hello.lanes, 7u);
    rp_conn_close(c);
    rp_conn_close(d[0].conn);
    rp_conn_close(d[1].conn);
    rp_doors_fini(&doors);
}

/* Who connects says nothing of larger rings: memory for them is spent on somebody who is known, by who connected to him. */
Test(rdma, INV4_a_stranger_cannot_have_memory_spent_on_it)
{
    struct ends e;
    struct rp_error err = {0};
    char x;
    open_ends(&e);
    cr_assert_eq(e.near->ops->widen(e.near, &err), 0, "%s", err.text);
    cr_assert_eq(e.far->ops->recv(e.far, &x, 1, 5000), -EPROTO);
    cr_assert_lt(rp_conn_send(e.far, "x", 1), 0);
    close_ends(&e);
}

/* A stranger that speaks our connection manager but not our rules: each is refused, and the next is served. */
static void stranger(struct ends *e, const uint32_t *imm, unsigned n)
{
    struct rp_rdma_cm cm;
    struct rp_rdma_cm_event ev;
    struct rp_error err = {0};
    struct rp_rdma_qp qp;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(e->listener->uri.port))};
    inet_pton(AF_INET, address(), &to.sin_addr);
    cr_assert_eq(rp_rdma_cm_open(&cm, &err), 0);
    uint64_t until = rp_clock_ns() + 20000000000u;
    cr_assert_eq(rp_rdma_cm_resolve(&cm, (struct sockaddr *)&to, until), 0);
    cr_assert_eq(rp_rdma_qp_open(&qp, cm.id, &err), 0, "%s", err.text);
    uint8_t mine[RP_RDMA_PRIVATE_BYTES] = "ADMRxxxx";      /* the right magic needs a right version too */
    if (n)
        memcpy(mine, "RDMA\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\100\0\0\0", 24);
    pthread_t t;
    if (n)
        pthread_create(&t, NULL, accept_main, e);
    cr_assert_eq(rp_rdma_cm_connect(&cm, mine), 0);
    if (!n)
        cr_assert_eq(rp_listener_accept(e->listener, 5000, &e->far, &err), -EAGAIN);
    else
        pthread_join(t, NULL);
    int rc = rp_rdma_cm_await(&cm, RDMA_CM_EVENT_ESTABLISHED, until, &ev);
    cr_assert_eq(rc, n ? 0 : -ECONNRESET);
    for (unsigned i = 0; i < n; i++) {
        struct rp_rdma_write w = {.imm = imm[i], .signal = true};
        cr_assert_eq(rp_rdma_qp_write(&qp, &w), 0);
    }
    if (n) {
        char x;
        cr_assert_eq(e->far->ops->recv(e->far, &x, 1, RP_CONN_FOREVER), -EPROTO);
        rp_conn_close(e->far);
    }
    rp_rdma_qp_stop(&qp, cm.id);
    rp_rdma_qp_close(&qp);
    rp_rdma_cm_close(&cm);
}

Test(rdma, INV4_a_stranger_who_breaks_the_rules_is_refused)
{
    struct ends e;
    listen_on(&e, address());
    stranger(&e, NULL, 0);
    static const uint32_t credit[] = {2u << 28 | 5}, unknown[] = {9u << 28}, empty[] = {1u << 28}, huge[] = {1u << 28 | 100000},
                          ring[] = {3u << 28 | 16}, torn[] = {3u << 28 | 5};
    stranger(&e, credit, 1);
    stranger(&e, unknown, 1);
    stranger(&e, empty, 1);
    stranger(&e, huge, 1);
    stranger(&e, ring, 1);      /* 16 bytes of nothing are no ring */
    stranger(&e, torn, 1);
    pthread_t t;
    struct rp_error err = {0};
    struct rp_uri to = e.listener->uri;
    pthread_create(&t, NULL, accept_main, &e);
    cr_assert_eq(rp_connect(&to, 10000, &e.near, &err), 0, "%s", err.text);
    pthread_join(t, NULL);
    close_ends(&e);
}

Test(rdma, what_cannot_be_reached_is_said)
{
    struct rp_error err = {0};
    struct rp_conn *c;
    struct rp_uri uri = {.scheme = RP_URI_RDMA, .port = "9"};
    strncpy(uri.host, address(), sizeof(uri.host) - 1);
    cr_assert_eq(rp_connect(&uri, 10000, &c, &err), -ECONNREFUSED, "%s", err.text);
    cr_assert(strstr(err.text, "nobody listens"), "%s", err.text);
    strcpy(uri.host, "10.10.0.1");      /* an address of the host itself, without a verbs device */
    cr_assert_lt(rp_connect(&uri, 10000, &c, &err), 0);
    printf("%s\n", err.text);
    struct rp_listener *l;
    cr_assert_lt(rp_listen(&uri, &l, &err), 0);
    printf("%s\n", err.text);
}

static unsigned open_fds(void)
{
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static long locked_kib(void)
{
    char line[200];
    long kib = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof(line), f))
        if (sscanf(line, "VmPin: %ld", &kib) == 1)
            break;
    fclose(f);
    return kib;
}

/* Connections come and go: no descriptor and no registered memory stays. */
Test(rdma, nothing_is_left_behind)
{
    struct ends e;
    struct rp_error err = {0};
    open_ends(&e);
    unsigned fds = open_fds();
    long pinned = locked_kib();
    for (unsigned i = 0; i < 20; i++) {
        struct ends more = {.listener = e.listener};
        struct rp_uri to = e.listener->uri;
        pthread_t t;
        pthread_create(&t, NULL, accept_main, &more);
        cr_assert_eq(rp_connect(&to, 10000, &more.near, &err), 0, "%s", err.text);
        pthread_join(t, NULL);
        cr_assert_eq(rp_conn_send(more.near, "x", 1), 0);
        char x;
        cr_assert_eq(rp_conn_recv_all(more.far, &x, 1, 0), 0);
        cr_assert_eq(more.far->ops->widen(more.far, &err), 0, "%s", err.text);
        rp_conn_close(i % 2 ? more.near : more.far);
        rp_conn_close(i % 2 ? more.far : more.near);
    }
    cr_assert_eq(open_fds(), fds);
    cr_assert_eq(locked_kib(), pinned);
    printf("%u descriptors, %ld KiB pinned\n", fds, pinned);
    close_ends(&e);
}
