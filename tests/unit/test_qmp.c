/* The QMP server with real clients on a real socket; the commands are the test's, run on its own thread. */
#include "tests/qmp_fixture.h"
#include "tools/qmp_client.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#define WAIT_MS 60000

static int cmd_event(struct rp_qmp_call *call, struct rp_error *err)
{
    (void)call, (void)err;
    rp_events_emit(events, 1, "CAUSED", "{\"n\": 1}");
    return 0;
}

static int cmd_fail(struct rp_qmp_call *call, struct rp_error *err)
{
    (void)call;
    return rp_error_exit(err, RP_EXIT_REFUSED, ENODEV, "there is none");
}

static int cmd_big(struct rp_qmp_call *call, struct rp_error *err)
{
    static char text[60001];
    (void)err;
    memset(text, 'x', sizeof(text) - 1);
    call->result = json_pack("{s:s}", "text", text);
    return 0;
}

static const struct rp_qmp_arg echo_args[] = {{"text", RP_QMP_STR, true}, {"size", RP_QMP_SIZE, true}, {0}};
static const struct rp_qmp_arg need_args[] = {{"text", RP_QMP_STR, false}, {0}};
static const struct rp_qmp_command commands[] = {{"echo", cmd_echo, echo_args, true}, {"event", cmd_event, NULL, false},
                                                 {"fail", cmd_fail, NULL, false}, {"need", cmd_echo, need_args, false},
                                                 {"big", cmd_big, NULL, false}};

static void setup(void)
{
    struct rp_error err = {0};
    cr_assert(serve((struct rp_qmp_table){commands, 5}, &err), "%s", err.text);
}

static void teardown(void)
{
    rp_qmp_destroy(server);
    rp_events_destroy(events);
}

TestSuite(qmp, .init = setup, .fini = teardown, .timeout = 180);

struct guest { int fd; struct rp_qmp_input in; };    /* a client's end */

static struct guest come_to(const struct sockaddr_un *at)
{
    struct guest g = {.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    cr_assert_eq(connect(g.fd, (const struct sockaddr *)at, sizeof(*at)), 0);
    return g;
}

static struct guest come(void)
{
    return come_to(&address);
}

static void go(struct guest *g)
{
    close(g->fd);
    rp_qmp_input_fini(&g->in);
}

static void tell(struct guest *g, const char *text)
{
    cr_assert_eq(send(g->fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* The next message, commands being run meanwhile; NULL: the server has hung up. */
static json_t *hear(struct guest *g)
{
    json_t *message = NULL;
    while (rp_qmp_input_next(&g->in, &message, NULL) != 1) {
        struct pollfd p[2] = {{.fd = g->fd, .events = POLLIN}, {.fd = rp_qmp_request_fd(server), .events = POLLIN}};
        uint8_t bytes[4096];
        cr_assert_gt(poll(p, 2, WAIT_MS), 0, "the server says nothing");
        if (p[1].revents)
            rp_qmp_dispatch(server);
        if (!p[0].revents)
            continue;
        ssize_t n = read(g->fd, bytes, sizeof(bytes));
        if (n <= 0)
            return NULL;
        cr_assert_eq(rp_qmp_input_feed(&g->in, bytes, (size_t)n), 0);
    }
    return message;
}

/* Says `text` (NULL: nothing) and expects the message `want`, given with ' for ". */
static void expect(struct guest *g, const char *text, const char *want)
{
    char quoted[512];
    snprintf(quoted, sizeof(quoted), "%s", want);
    for (char *c = quoted; *c; c++)
        if (*c == '\'')
            *c = '"';
    json_t *w = json_loads(quoted, 0, NULL);
    cr_assert(w != NULL, "%s", quoted);
    if (text)
        tell(g, text);
    json_t *got = hear(g);
    cr_assert(got != NULL, "hung up instead of %s", want);
    json_object_del(got, "timestamp");
    char *said = json_dumps(got, 0);
    cr_assert(json_equal(got, w), "%s instead of %s", said, want);
    free(said);
    json_decref(got);
    json_decref(w);
}

static struct guest negotiate(void)
{
    struct guest g = come();
    json_t *greeting = hear(&g);
    cr_assert(json_object_get(json_object_get(greeting, "QMP"), "version") != NULL);
    json_decref(greeting);
    expect(&g, "{\"execute\": \"qmp_capabilities\", \"id\": [1]}", "{'return': {}, 'id': [1]}");
    return g;
}

Test(qmp, negotiation_comes_first_and_once)
{
    struct guest g = come();
    json_decref(hear(&g));
    expect(&g, "{\"execute\": \"echo\", \"id\": 7}",
           "{'error': {'class': 'CommandNotFound', 'desc': 'echo: capabilities come first: send qmp_capabilities'}, 'id': 7}");
    expect(&g, "{\"execute\": \"qmp_capabilities\"}", "{'return': {}}");
    expect(&g, "{\"execute\": \"qmp_capabilities\"}",
           "{'error': {'class': 'CommandNotFound', 'desc': 'capabilities were negotiated already'}}");
    expect(&g, "{\"id\": 1}",
           "{'error': {'class': 'GenericError', 'desc': 'the message has no \\u0022execute\\u0022 with a command\\u0027s name'}, 'id': 1}");
    go(&g);
}

/* A client that was told that it has a capability would use it. */
Test(qmp, no_capability_can_be_enabled)
{
    struct guest g = come();
    json_decref(hear(&g));
    expect(&g, "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"enable\": [\"oob\"]}, \"id\": 1}",
           "{'error': {'class': 'GenericError', 'desc': 'qmp_capabilities: \\u0022oob\\u0022 is not available: the greeting offers no capability'}, "
           "'id': 1}");
    static const char *const none[] = {"{\"enable\": 1}", "{\"disable\": []}", "[]"};
    for (unsigned i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
        char text[100];
        snprintf(text, sizeof(text), "{\"execute\": \"qmp_capabilities\", \"arguments\": %s}", none[i]);
        expect(&g, text, "{'error': {'class': 'GenericError', 'desc': 'qmp_capabilities takes the list \\u0022enable\\u0022 and nothing else'}}");
    }
    expect(&g, "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"enable\": []}}", "{'return': {}}");
    go(&g);
}

Test(qmp, arguments_agree_with_the_table)
{
    struct guest g = negotiate();
    expect(&g, "{\"execute\": \"echo\", \"arguments\": {\"text\": \"a\", \"size\": 3}, \"id\": \"x\"}",
           "{'return': {'text': 'a', 'size': 3}, 'id': 'x'}");
    expect(&g, "{\"execute\": \"echo\", \"arguments\": {\"size\": -1}}",
           "{'error': {'class': 'GenericError', 'desc': 'argument \\u0027size\\u0027 must be a whole number, not negative'}}");
    expect(&g, "{\"execute\": \"echo\", \"arguments\": {\"other\": 1}}",
           "{'error': {'class': 'GenericError', 'desc': 'echo takes no argument \\u0027other\\u0027'}}");
    expect(&g, "{\"execute\": \"need\"}", "{'error': {'class': 'GenericError', 'desc': 'need needs the argument \\u0027text\\u0027'}}");
    expect(&g, "{\"execute\": \"echo\", \"arguments\": []}",
           "{'error': {'class': 'GenericError', 'desc': '\\u0022arguments\\u0022 must be an object'}}");
    expect(&g, "{\"execute\": \"echo\", \"argument\": {\"size\": 3}, \"id\": 5}",
           "{'error': {'class': 'GenericError', 'desc': '\\u0022argument\\u0022 is unexpected: a message has \\u0022execute\\u0022, "
           "\\u0022arguments\\u0022 and \\u0022id\\u0022'}, 'id': 5}");
    expect(&g, "{\"execute\": \"nothing\"}", "{'error': {'class': 'CommandNotFound', 'desc': 'The command nothing has not been found'}}");
    expect(&g, "{\"execute\": \"fail\"}", "{'error': {'class': 'DeviceNotFound', 'desc': 'there is none', 'exit': 5}}");
    go(&g);
}

/* Many commands in one write: answered one after the other, and what a command caused is said before its answer. */
Test(qmp, order)
{
    struct guest g = negotiate(), other = negotiate();
    tell(&g, "{\"execute\": \"echo\", \"id\": 1} {\"execute\": \"event\", \"id\": 2} {\"execute\": \"echo\", \"id\": 3}");
    expect(&g, NULL, "{'return': {}, 'id': 1}");
    expect(&g, NULL, "{'event': 'CAUSED', 'data': {'n': 1}}");
    expect(&g, NULL, "{'return': {}, 'id': 2}");
    expect(&g, NULL, "{'return': {}, 'id': 3}");
    expect(&other, NULL, "{'event': 'CAUSED', 'data': {'n': 1}}");     /* everybody hears of it */
    go(&g);
    go(&other);
}

Test(qmp, only_early_commands_while_there_is_no_vm)
{
    struct guest g = negotiate();
    rp_qmp_not_ready(server, "it does not run here");
    expect(&g, "{\"execute\": \"echo\"}", "{'return': {}}");
    expect(&g, "{\"execute\": \"event\"}", "{'error': {'class': 'GenericError', 'desc': 'event: it does not run here', 'exit': 5}}");
    rp_qmp_ready(server);
    expect(&g, "{\"execute\": \"fail\"}", "{'error': {'class': 'DeviceNotFound', 'desc': 'there is none', 'exit': 5}}");
    go(&g);
}

/* INV-4: junk is refused and the client goes on; what never ends is hung up on; the others do not notice. */
Test(qmp, junk)
{
    struct guest g = negotiate(), endless = negotiate();
    expect(&g, "[1, 2]\n", "{'error': {'class': 'GenericError', 'desc': 'JSON: an object is expected, beginning with {'}}");
    static char text[RP_QMP_MESSAGE_MAX + 4096];
    memset(text, '{', 1);
    memset(text + 1, ' ', sizeof(text) - 2);
    tell(&endless, text);
    json_t *m = hear(&endless);
    cr_assert(json_object_get(m, "error") != NULL);
    json_decref(m);
    cr_assert_null(hear(&endless));
    expect(&g, "{\"execute\": \"echo\"}", "{'return': {}}");
    go(&g);
    go(&endless);
}

/* A message that was not finished is refused once, and the next one is heard: after 0xff, and after a control character in a string. */
Test(qmp, a_message_that_is_broken_off)
{
    struct guest g = negotiate();
    expect(&g, "{\"execute\": \"echo\n",
           "{'error': {'class': 'GenericError', 'desc': 'JSON: a control character in a string before the message has ended (byte 18)'}}");
    expect(&g, "\xff{\"execute\": \"echo\", \"id\": 1}", "{'return': {}, 'id': 1}");
    expect(&g, "{\"execute\": [\"ec\xff{\"execute\": \"echo\", \"id\": 2}",
           "{'error': {'class': 'GenericError', 'desc': 'JSON: 0xff before the message has ended (byte 17)'}}");
    expect(&g, NULL, "{'return': {}, 'id': 2}");
    expect(&g, "{\"execute\": \"ec\tho\", \"id\": 3}\n",
           "{'error': {'class': 'GenericError', 'desc': 'JSON: a control character in a string before the message has ended (byte 16)'}}");
    expect(&g, "\xff\xff{\"execute\": \"echo\", \"id\": 4}", "{'return': {}, 'id': 4}");
    expect(&g, "{\"execute\": \"ec\\\x01ho\"} {\"execute\": \"echo\", \"id\": 5}",
           "{'error': {'class': 'GenericError', 'desc': 'JSON: a control character in a string before the message has ended (byte 17)'}}");
    expect(&g, NULL, "{'return': {}, 'id': 5}");
    go(&g);
}

/* A client that asks and never reads: its memory here is bounded, it is dropped, and the others are served. */
Test(qmp, a_client_that_does_not_read)
{
    struct guest deaf = negotiate(), g = negotiate();
    char junk[4096];
    for (unsigned i = 0; i < 64; i++)
        tell(&deaf, "{\"execute\": \"big\"}");
    for (struct pollfd p = {.fd = deaf.fd, .events = 0}; !(p.revents & POLLHUP); poll(&p, 1, 0)) {
        struct pollfd r = {.fd = rp_qmp_request_fd(server), .events = POLLIN};
        if (poll(&r, 1, 1) > 0)
            rp_qmp_dispatch(server);
    }
    size_t got = 0;
    for (ssize_t n; (n = read(deaf.fd, junk, sizeof(junk))) > 0; got += (size_t)n)
        ;
    cr_assert_lt(got, 64 * 60000u, "it heard everything");
    expect(&g, "{\"execute\": \"echo\"}", "{'return': {}}");
    go(&deaf);
    go(&g);
}

/* One that reads what it is told, and is always some lines behind: the memory that it takes here is bounded, too. */
Test(qmp, a_client_that_is_always_behind)
{
    static char line[60001], junk[sizeof(line) + 1];
    int ends[2];
    memset(line, 'x', sizeof(line) - 1);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    struct rp_qmp_client c = {.fd = ends[0]};
    while (c.out.len < 2 * sizeof(junk))
        rp_qmp_client_say(&c, line);
    for (unsigned i = 0; i < 200; i++) {
        cr_assert_eq(recv(ends[1], junk, sizeof(junk), MSG_WAITALL), (ssize_t)sizeof(junk));
        rp_qmp_client_say(&c, line);
        cr_assert(!c.closing && c.out.len > c.out_sent, "it is not behind");
        cr_assert_leq(c.out.len, 3 * RP_QMP_OUTPUT_MAX, "%zu bytes after %u lines", c.out.len, i);
    }
    rp_qmp_client_fini(&c);
    close(ends[1]);
}

/* One that asks, does not read and hangs up without closing: it is let go, and its place is free for the next. */
Test(qmp, clients_that_hang_up_leave_their_places)
{
    for (unsigned i = 0; i < RP_QMP_CLIENTS_MAX + 8; i++) {
        struct guest g = negotiate();
        for (unsigned k = 0; k < 8; k++) {
            struct pollfd p = {.fd = rp_qmp_request_fd(server), .events = POLLIN};
            tell(&g, "{\"execute\": \"big\"}");
            cr_assert_gt(poll(&p, 1, WAIT_MS), 0);
            rp_qmp_dispatch(server);
        }
        shutdown(g.fd, SHUT_RDWR);
        rp_qmp_input_fini(&g.in);   /* its descriptor stays open */
    }
    struct guest last = negotiate();
    expect(&last, "{\"execute\": \"echo\"}", "{'return': {}}");
    go(&last);
}

/* Greeted, or told why not. */
static bool welcome(struct guest *g)
{
    json_t *m = hear(g);
    bool greeted = json_object_get(m, "QMP") != NULL;
    const char *why = json_string_value(json_object_get(json_object_get(m, "error"), "desc"));
    cr_assert(greeted || (why && strstr(why, "QMP clients are connected")), "%s", why ? why : "neither greeted nor refused");
    json_decref(m);
    if (!greeted)
        cr_assert_null(hear(g), "it was told that there is no place, and is served");
    return greeted;
}

/* One that has nothing more to say hears the answer that it waits for, also when somebody comes for whom there is no place meanwhile. */
Test(qmp, a_client_that_has_said_all_is_answered)
{
    struct guest g = negotiate(), idle[RP_QMP_CLIENTS_MAX], late;
    struct pollfd asked = {.fd = rp_qmp_request_fd(server), .events = POLLIN};
    unsigned n = 0;
    for (; n < RP_QMP_CLIENTS_MAX - 1; n++) {
        idle[n] = come();
        cr_assert(welcome(&idle[n]), "client %u", n);
    }
    tell(&g, "{\"execute\": \"echo\", \"id\": 1}");
    cr_assert_gt(poll(&asked, 1, WAIT_MS), 0);
    shutdown(g.fd, SHUT_WR);
    late = come();
    struct pollfd refused = {.fd = late.fd, .events = POLLIN};
    cr_assert_gt(poll(&refused, 1, WAIT_MS), 0);
    cr_assert_not(welcome(&late));
    expect(&g, NULL, "{'return': {}, 'id': 1}");
    go(&g);
    go(&late);
    while (n)
        go(&idle[--n]);
}

/* Idle clients of the further socket do not lock the command out, and who is one too many is told so. */
Test(qmp, idle_clients_leave_the_command_its_place)
{
    struct guest idle[RP_QMP_CLIENTS_MAX], late;
    unsigned n = 0;
    for (; n < RP_QMP_CLIENTS_FURTHER_MAX; n++) {
        idle[n] = come_to(&further);
        cr_assert(welcome(&idle[n]), "client %u", n);
    }
    late = come_to(&further);
    cr_assert_not(welcome(&late), "no place is kept for the first socket");
    go(&late);
    for (; n < RP_QMP_CLIENTS_MAX; n++) {
        idle[n] = come();
        cr_assert(welcome(&idle[n]), "client %u", n);
    }
    late = come();
    cr_assert_not(welcome(&late));
    go(&late);
    while (n)
        go(&idle[--n]);
    struct guest g = negotiate();
    expect(&g, "{\"execute\": \"echo\"}", "{'return': {}}");
    go(&g);
}
