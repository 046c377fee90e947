/* protect_text.h - query-protect's and query-standby's answers as lines for people: `reprise status` and `top`. */
#ifndef RP_TOOLS_PROTECT_TEXT_H
#define RP_TOOLS_PROTECT_TEXT_H

#include <jansson.h>

void rp_protect_print(const json_t *protect);
void rp_standby_print(const json_t *standby);
/* The same in a few words, for a table: by whom it is protected, or why not yet ("-": nobody has asked for it; `protect` may be NULL); what a
 * standby waits for. */
void rp_protect_summary(const json_t *protect, char *out, size_t size);
void rp_standby_summary(const json_t *standby, char *out, size_t size);

#endif
