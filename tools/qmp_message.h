/*
 * qmp_message.h - the lines that a QMP server says (QEMU's "QEMU Machine Protocol Specification": greeting, return, error,
 * event). Each call gives JSON text without its line's end, the caller's to free; NULL: no memory. Any thread.
 */
#ifndef RP_TOOLS_QMP_MESSAGE_H
#define RP_TOOLS_QMP_MESSAGE_H

#include "core/event.h"

#include <jansson.h>

char *rp_qmp_greeting_text(void);
/* `result`: stolen; NULL stands for {}. `id`: of the command, borrowed; NULL: it had none. */
char *rp_qmp_return_text(json_t *result, json_t *id);
char *rp_qmp_error_text(const char *class, const struct rp_error *err, json_t *id);
/* `lost`: how many events before it could not be kept. */
char *rp_qmp_event_text(const struct rp_event *e, unsigned lost);

#endif
