/* One QMP client; the contract is in qmp_client.h. */
#include "tools/qmp_client.h"

#include "core/log.h"
#include "tools/qmp_message.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* --- output --- */

/* Nothing more is said. */
static void hang_up(struct rp_qmp_client *c)
{
    rp_buf_reset(&c->out);
    c->out_sent = 0;
    c->closing = true;
}

static void flush(struct rp_qmp_client *c)
{
    while (c->out.len > c->out_sent) {
        ssize_t n = send(c->fd, c->out.data + c->out_sent, c->out.len - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            hang_up(c);         /* nobody will take it */
        if (n < 0)
            return;
        c->out_sent += (size_t)n;
    }
    if (c->out_sent == c->out.len) {
        rp_buf_reset(&c->out);
        c->out_sent = 0;
    }
}

/* What was sent makes room: a client that reads, but is always a little behind, never has all of it. */
static void forget_sent(struct rp_qmp_client *c)
{
    memmove(c->out.data, c->out.data + c->out_sent, c->out.len - c->out_sent);
    c->out.len -= c->out_sent;
    c->out_sent = 0;
}

/* Queues one line and sends what the socket takes. A client that lets RP_QMP_OUTPUT_MAX pile up is dropped. */
void rp_qmp_client_say(struct rp_qmp_client *c, const char *text)
{
    if (c->closing)
        return;
    if (c->out_sent > RP_QMP_OUTPUT_MAX)
        forget_sent(c);
    rp_buf_put(&c->out, text, strlen(text));
    rp_buf_put(&c->out, "\r\n", 2);
    flush(c);
    if (c->out.failed || c->out.len - c->out_sent > RP_QMP_OUTPUT_MAX) {
        rp_log(RP_LOG_WARN, "qmp: a client does not read its answers; it is dropped");
        hang_up(c);
    }
}

/* Says `text` and frees it. */
static void say(struct rp_qmp_client *c, char *text)
{
    if (text)
        rp_qmp_client_say(c, text);
    else
        c->closing = true;
    free(text);
}

static void refuse(struct rp_qmp_client *c, const char *class, const struct rp_error *err, json_t *id)
{
    say(c, rp_qmp_error_text(class, err, id));
}

void rp_qmp_client_greet(struct rp_qmp_client *c)
{
    say(c, rp_qmp_greeting_text());
}

/* --- input --- */

/* The greeting offers no capability, so that none can be asked for. */
static int may_enable(const json_t *args, struct rp_error *err)
{
    const json_t *list = json_object_get(args, "enable");
    if ((args && !json_is_object(args)) || json_object_size(args) > (list ? 1 : 0) || (list && !json_is_array(list)))
        return rp_error_set(err, EINVAL, "qmp_capabilities takes the list \"enable\" and nothing else");
    if (json_array_size(list) == 0)
        return 0;
    const char *first = json_string_value(json_array_get(list, 0));
    return rp_error_set(err, EINVAL, "qmp_capabilities: \"%.64s\" is not available: the greeting offers no capability", first ? first : "");
}

/* What is answered here: negotiation, and what is no command. True: it was; else it is the control thread's. */
static bool answered_here(struct rp_qmp_client *c, json_t *message)
{
    struct rp_error err = {0};
    json_t *id = json_object_get(message, "id");
    const char *name = json_string_value(json_object_get(message, "execute"));
    if (!name) {
        rp_error_set(&err, EINVAL, "the message has no \"execute\" with a command's name");
        refuse(c, "GenericError", &err, id);
        return true;
    }
    const char *key;
    json_t *value;
    json_object_foreach(message, key, value)
        if (strcmp(key, "execute") != 0 && strcmp(key, "arguments") != 0 && strcmp(key, "id") != 0) {
            rp_error_set(&err, EINVAL, "\"%.64s\" is unexpected: a message has \"execute\", \"arguments\" and \"id\"", key);
            refuse(c, "GenericError", &err, id);
            return true;
        }
    bool negotiates = strcmp(name, "qmp_capabilities") == 0;
    if (c->negotiated && !negotiates)
        return false;
    if (c->negotiated) {
        rp_error_set(&err, EINVAL, "capabilities were negotiated already");
        refuse(c, "CommandNotFound", &err, id);
    } else if (!negotiates) {
        rp_error_set(&err, EINVAL, "%.64s: capabilities come first: send qmp_capabilities", name);
        refuse(c, "CommandNotFound", &err, id);
    } else if (may_enable(json_object_get(message, "arguments"), &err) < 0) {
        refuse(c, "GenericError", &err, id);
    } else {
        c->negotiated = true;
        say(c, rp_qmp_return_text(NULL, id));
    }
    return true;
}

json_t *rp_qmp_client_next(struct rp_qmp_client *c)
{
    while (!c->in_work && !c->closing) {
        struct rp_error err = {0};
        json_t *message = NULL;
        int rc = rp_qmp_input_next(&c->in, &message, &err);
        if (rc == 0)
            break;
        if (rc == 1 && !answered_here(c, message)) {
            c->in_work = true;
            return message;
        }
        json_decref(message);
        if (rc < 0)
            refuse(c, "GenericError", &err, NULL);
        if (rc < 0 && rc != -EBADMSG)
            c->closing = true;
    }
    return NULL;
}

void rp_qmp_client_answer(struct rp_qmp_client *c, const char *text)
{
    c->in_work = false;
    if (text)
        rp_qmp_client_say(c, text);
    else
        c->closing = true;
}

static void take_in(struct rp_qmp_client *c)
{
    uint8_t bytes[4096];
    ssize_t n = recv(c->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0 || rp_qmp_input_feed(&c->in, bytes, (size_t)n) < 0)
        c->closing = true;
}

/* --- the socket --- */

uint32_t rp_qmp_client_wants(const struct rp_qmp_client *c)
{
    return (c->in_work || c->closing ? 0 : EPOLLIN) | (c->out.len > c->out_sent ? EPOLLOUT : 0);
}

void rp_qmp_client_ready(struct rp_qmp_client *c, uint32_t events)
{
    if ((events & EPOLLERR) || ((events & EPOLLHUP) && c->in_work)) {
        hang_up(c);
        return;
    }
    if (events & EPOLLOUT)
        flush(c);
    if (!c->in_work && (events & (EPOLLIN | EPOLLHUP)))     /* gone, but what it sent before still counts */
        take_in(c);
}

bool rp_qmp_client_over(const struct rp_qmp_client *c)
{
    return c->closing && c->out.len == c->out_sent;
}

void rp_qmp_client_fini(struct rp_qmp_client *c)
{
    close(c->fd);
    rp_qmp_input_fini(&c->in);
    rp_buf_fini(&c->out);
}
