#include "tools/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *rp_json_str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

long long rp_json_num(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

const char *rp_json_escape(const char *text, char *out, size_t size)
{
    size_t n = 0;
    for (; *text && n + 7 < size; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            n += (size_t)snprintf(out + n, size - n, "\\%c", c);
        else if (c < 0x20 || c > 0x7e)
            n += (size_t)snprintf(out + n, size - n, "\\u%04x", c > 0x7e ? 0xfffd : c);
        else
            out[n++] = (char)c;
    }
    out[n] = 0;
    return out;
}

void rp_json_print(json_t *value)
{
    json_dumpf(value, stdout, JSON_REAL_PRECISION(6));
    putchar('\n');
    json_decref(value);
}

json_t *rp_json_readable(const char *text)
{
    json_t *s = json_string(text);
    char *plain = s ? NULL : strdup(text);
    for (char *p = plain; p && *p; p++)
        if ((unsigned char)*p > 0x7e)
            *p = '?';
    if (plain)
        s = json_string(plain);
    free(plain);
    return s;
}
