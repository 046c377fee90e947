/* Framing of JSON objects in a byte stream. */
#include "tools/qmp_input.h"

#include <errno.h>

#define RESYNC 0xff     /* never in UTF-8: clients send it to begin anew, whatever they sent before (QEMU's qmp-spec) */

void rp_qmp_input_fini(struct rp_qmp_input *in)
{
    rp_buf_fini(&in->buf);
    memset(in, 0, sizeof(*in));
}

int rp_qmp_input_feed(struct rp_qmp_input *in, const void *bytes, size_t n)
{
    rp_buf_put(&in->buf, bytes, n);
    return in->buf.failed ? -ENOMEM : 0;
}

/* Takes the first n bytes away and begins the next message. */
static void consume(struct rp_qmp_input *in, size_t n)
{
    memmove(in->buf.data, in->buf.data + n, in->buf.len - n);
    in->buf.len -= n;
    in->scanned = 0;
    in->depth = in->deepest = 0;
    in->in_string = in->escaped = false;
}

static bool is_space(uint8_t c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == RESYNC;
}

/* Takes away what stands between two messages; after one that was broken off, the rest of its line, too. */
static void skip_between(struct rp_qmp_input *in)
{
    size_t n = 0;
    for (; n < in->buf.len && (is_space(in->buf.data[n]) || (in->broken && in->buf.data[n] != '{')); n++)
        if (in->buf.data[n] == '\n' || in->buf.data[n] == RESYNC)
            in->broken = false;
    if (n < in->buf.len)
        in->broken = false;
    if (n)
        consume(in, n);
}

/* Can no message go on with this byte, whatever comes behind it? */
static bool breaks_off(const struct rp_qmp_input *in, uint8_t c)
{
    return c == RESYNC || (in->in_string && c < ' ');
}

/* Takes the broken message away, with the byte that broke it off: the last one scanned. */
static int break_off(struct rp_qmp_input *in, uint8_t c, struct rp_error *err)
{
    size_t at = in->scanned;
    consume(in, at);
    in->broken = c != '\n' && c != RESYNC;
    return rp_error_set(err, EBADMSG, "JSON: %s before the message has ended (byte %zu)", c == RESYNC ? "0xff" :
                        "a control character in a string", at);
}

/* Looks at one more byte of the message in work; true when it ends there. */
static bool scan(struct rp_qmp_input *in, uint8_t c)
{
    if (in->in_string) {
        if (in->escaped)
            in->escaped = false;
        else if (c == '\\')
            in->escaped = true;
        else if (c == '"')
            in->in_string = false;
        return false;
    }
    if (c == '"') {
        in->in_string = true;
    } else if (c == '{' || c == '[') {
        if (++in->depth > in->deepest)
            in->deepest = in->depth;
    } else if (c == '}' || c == ']') {
        return --in->depth == 0;
    }
    return false;
}

static int parse(struct rp_qmp_input *in, size_t len, json_t **message, struct rp_error *err)
{
    if (in->deepest > RP_QMP_DEPTH_MAX)
        return rp_error_set(err, EBADMSG, "JSON is nested deeper than %u levels", RP_QMP_DEPTH_MAX);
    json_error_t why;
    json_t *j = json_loadb((const char *)in->buf.data, len, JSON_REJECT_DUPLICATES, &why);
    if (!j)
        return rp_error_set(err, EBADMSG, "JSON: %s (byte %d)", why.text, why.position);
    *message = j;
    return 1;
}

int rp_qmp_input_next(struct rp_qmp_input *in, json_t **message, struct rp_error *err)
{
    if (in->scanned == 0)
        skip_between(in);
    if (in->buf.len == 0)
        return 0;
    if (in->buf.data[0] != '{') {
        size_t n = 0;   /* garbage: up to the end of the line, or to what may be an object */
        while (n < in->buf.len && in->buf.data[n] != '\n' && in->buf.data[n] != '{')
            n++;
        consume(in, n);
        return rp_error_set(err, EBADMSG, "JSON: an object is expected, beginning with {");
    }
    while (in->scanned < in->buf.len) {
        uint8_t c = in->buf.data[in->scanned++];
        if (breaks_off(in, c))
            return break_off(in, c, err);
        if (!scan(in, c))
            continue;
        size_t len = in->scanned;
        int rc = parse(in, len, message, err);
        consume(in, len);
        return rc;
    }
    if (in->buf.len >= RP_QMP_MESSAGE_MAX)
        return rp_error_set(err, EMSGSIZE, "JSON object longer than %u bytes", RP_QMP_MESSAGE_MAX);
    return 0;
}
