/*
 * error.h - how a failure travels.
 *
 * A fallible call returns 0 or -errno and, where it takes a `struct rp_error *`, leaves there one
 * sentence for a person: place, reason, what to do. Context grows on the way up
 * ("standby 10.0.0.2: epoch 812: record 17: gfn 0x1f3ff beyond RAM (0x20000 pages)").
 * A caller either returns the error or logs it, never both. Every function accepts err == NULL.
 */
#ifndef RP_CORE_ERROR_H
#define RP_CORE_ERROR_H

#include <stdarg.h>
#include <stddef.h>

#define RP_MUST_CHECK __attribute__((warn_unused_result))
#define RP_PRINTF(f, a) __attribute__((format(printf, f, a)))

/* What the failure means to the user; the values are the command's exit codes (docs/architecture.md). */
enum rp_exit {
    RP_EXIT_DONE = 0,
    RP_EXIT_FAILED = 1,
    RP_EXIT_USAGE = 2,
    RP_EXIT_NO_VM = 3,
    RP_EXIT_HOST = 4,        /* the host lacks something; `reprise doctor` says what */
    RP_EXIT_REFUSED = 5,     /* by policy or lease */
    RP_EXIT_DAMAGED = 6,     /* damaged or foreign data */
    RP_EXIT_INTERRUPTED = 130,
};

struct rp_error {
    int code;           /* -errno, 0 when nothing failed */
    enum rp_exit exit;  /* the exit code a command that stops here gives */
    char text[512];
};

/* Sets the sentence. `code`: errno value, either sign. Returns -|code|. Exit class: RP_EXIT_FAILED. */
int rp_error_set(struct rp_error *err, int code, const char *fmt, ...) RP_PRINTF(3, 4);

/* Same, with the exit class. */
int rp_error_exit(struct rp_error *err, enum rp_exit exit, int code, const char *fmt, ...) RP_PRINTF(4, 5);

/* Puts "context: " in front of the sentence that is there. Returns err->code (or -EIO when there is none). */
int rp_error_wrap(struct rp_error *err, const char *fmt, ...) RP_PRINTF(2, 3);

void rp_error_clear(struct rp_error *err);

#endif
