/*
 * log.h - diagnostics for people, on stderr, one line each. What the engine *decides* is an event
 * (event.h), not a log line: those that a person has to know of become lines in one place (tools/event_lines.h). Any thread.
 */
#ifndef RP_CORE_LOG_H
#define RP_CORE_LOG_H

#include "core/error.h"

enum rp_log_level {
    RP_LOG_ERROR,
    RP_LOG_WARN,
    RP_LOG_NOTICE,      /* all is well, and whoever looks after the VM wants to know: it is protected, it was taken over */
    RP_LOG_INFO,
    RP_LOG_DEBUG,
};

/* Level comes from REPRISE_LOG=error|warn|notice|info|debug, read once; default notice. */
void rp_log(enum rp_log_level level, const char *fmt, ...) RP_PRINTF(2, 3);

#endif
