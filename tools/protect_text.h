/* protect_text.h - query-protect's and query-standby's answers as lines for people: `reprise status` and `top`. */
#ifndef RP_TOOLS_PROTECT_TEXT_H
#define RP_TOOLS_PROTECT_TEXT_H

#include <jansson.h>

void rp_protect_print(const json_t *protect);
void rp_standby_print(const json_t *standby);

#endif
