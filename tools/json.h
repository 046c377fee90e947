/* json.h - what jansson leaves out: members of an object without asking twice, text that may be no UTF-8, one line of output. Any thread. */
#ifndef RP_TOOLS_JSON_H
#define RP_TOOLS_JSON_H

#include <jansson.h>

/* A member of an object: "" and 0 where there is none of this kind. The text is the object's. */
const char *rp_json_str(const json_t *o, const char *key);
long long rp_json_num(const json_t *o, const char *key);

/* `text` as the inside of a JSON string, cut to fit: for the data of an event. Returns out. */
const char *rp_json_escape(const char *text, char *out, size_t size);
/* One line of JSON on standard output; takes `value` (NULL: no memory). */
void rp_json_print(json_t *value);
/* `text` as a JSON string; where it is no UTF-8 (a name that was cut, a peer's word), what is not ASCII is "?". NULL: no memory. */
json_t *rp_json_readable(const char *text);

#endif
