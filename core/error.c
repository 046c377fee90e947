#include "core/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int set(struct rp_error *err, enum rp_exit exit, int code, const char *fmt, va_list ap)
{
    code = -abs(code ? code : EIO);
    if (err) {
        err->code = code;
        err->exit = exit;
        vsnprintf(err->text, sizeof(err->text), fmt, ap);
    }
    return code;
}

int rp_error_set(struct rp_error *err, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    code = set(err, RP_EXIT_FAILED, code, fmt, ap);
    va_end(ap);
    return code;
}

int rp_error_exit(struct rp_error *err, enum rp_exit exit, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    code = set(err, exit, code, fmt, ap);
    va_end(ap);
    return code;
}

int rp_error_wrap(struct rp_error *err, const char *fmt, ...)
{
    if (!err)
        return -EIO;
    char text[sizeof(err->text)];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    size_t used = n < 0 ? 0 : (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1;
    snprintf(text + used, sizeof(text) - used, ": %s", err->text);
    memcpy(err->text, text, sizeof(text));
    return err->code ? err->code : -EIO;
}

void rp_error_clear(struct rp_error *err)
{
    if (err)
        memset(err, 0, sizeof(*err));
}
