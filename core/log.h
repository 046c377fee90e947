/*
 * log.h - diagnostics for people, on stderr, one line each. What the engine *decides* is an event
 * (event.h), not a log line. Any thread.
 */
#ifndef RP_CORE_LOG_H
#define RP_CORE_LOG_H

#include "core/error.h"

enum rp_log_level { RP_LOG_ERROR, RP_LOG_WARN, RP_LOG_INFO, RP_LOG_DEBUG };

/* Level comes from REPRISE_LOG=error|warn|info|debug, read once; default warn. */
void rp_log(enum rp_log_level level, const char *fmt, ...) RP_PRINTF(2, 3);

#endif
