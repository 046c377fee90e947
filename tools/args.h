/*
 * args.h - the command line: one const table per verb drives parsing, --help, the man page and the error sentences.
 *
 * An option stores into the verb's own options struct at `offset`; the struct starts as a copy of the verb's defaults.
 * Values are parsed in place: strings point into argv, and a parser of "a,b=c" may cut argv's text.
 * A wrong use is one sentence (place, reason, what to do) with RP_EXIT_USAGE.
 * Thread: main, before any other is started (getopt_long keeps its place in libc's globals).
 */
#ifndef RP_TOOLS_ARGS_H
#define RP_TOOLS_ARGS_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum rp_opt_kind {
    RP_OPT_FLAG,        /* bool */
    RP_OPT_STRING,      /* const char *, not empty unless may_be_empty */
    RP_OPT_UINT,        /* unsigned, within min … max */
    RP_OPT_SIZE,        /* uint64_t bytes, within min … max when max is set */
    RP_OPT_DURATION,    /* uint64_t ns */
    RP_OPT_RATE,        /* uint64_t bytes per second */
    RP_OPT_PARSE,       /* parse(opts + offset, value, err) */
};

struct rp_opt {
    const char *name;   /* without "--" */
    const char *arg;    /* what --help calls the value; NULL for a flag */
    const char *help;   /* one sentence, for --help and the man page */
    uint8_t kind;       /* enum rp_opt_kind */
    bool may_be_empty;  /* a string, for which "" means something */
    bool repeats;       /* may be given more than once (help says so) */
    size_t offset;
    uint64_t min, max;
    int (*parse)(void *field, char *value, struct rp_error *err);
};

struct rp_opt_group {
    const char *title;          /* "Devices": a heading in --help */
    const struct rp_opt *opts;
    unsigned nopts;
};
#define RP_OPT_GROUP(t, table) {.title = (t), .opts = (table), .nopts = sizeof(table) / sizeof((table)[0])}
#define RP_OPT_GROUPS_MAX 9

struct rp_verb {
    const char *name;
    const char *operands;       /* "NAME file:F", for --help */
    unsigned min_operands, max_operands;
    const char *summary;        /* one line */
    const char *details;        /* paragraphs for --help and the man page, may be NULL */
    struct rp_opt_group groups[RP_OPT_GROUPS_MAX];  /* up to the first without opts */
    size_t opts_size;           /* of the options struct, 0: none */
    const void *defaults;       /* opts_size bytes, or NULL: all zero */
    /* `opts`: filled in; `operands`: `n` strings. Returns an exit code >= 0 (nothing more is said), or -errno with the
     * sentence in err, which main prints, and err->exit as the exit code. */
    int (*run)(const struct rp_verb *v, void *opts, unsigned n, char **operands, struct rp_error *err);
};

/* Parses argv[1…] (argv[0] is the verb) into opts. 0: *operands and *n are what is left; 1: --help was asked for and
 * printed; -EINVAL: wrong use. */
int rp_args_parse(const struct rp_verb *v, int argc, char **argv, void *opts, char ***operands, unsigned *n,
                  struct rp_error *err) RP_MUST_CHECK;
void rp_args_help(const struct rp_verb *v, FILE *out);
/* The verb's man page, in man(7) macros. */
void rp_args_man(const struct rp_verb *v, FILE *out);

/* --- values; each also serves QMP and URIs. `what`: the place, put in front of the sentence. --- */

/* "512M", "1G", "4096": K M G T P, powers of 1024, an optional B or iB. */
int rp_parse_size(const char *what, const char *text, uint64_t *bytes, struct rp_error *err) RP_MUST_CHECK;
/* "20ms", "5us", "1.5s", "2m", "0": a unit is needed unless zero. */
int rp_parse_duration(const char *what, const char *text, uint64_t *ns, struct rp_error *err) RP_MUST_CHECK;
/* "100M" = 100 MiB per second; "1Gbit" and "800Mbit" are powers of 1000 bits. */
int rp_parse_rate(const char *what, const char *text, uint64_t *bytes_s, struct rp_error *err) RP_MUST_CHECK;
int rp_parse_uint(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *out,
                  struct rp_error *err) RP_MUST_CHECK;
/* "52:54:00:12:34:56"; a multicast address is refused. */
int rp_parse_mac(const char *what, const char *text, uint8_t mac[6], struct rp_error *err) RP_MUST_CHECK;

#endif
