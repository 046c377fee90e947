/* Parsing of the command line from a verb's option tables. */
#include "tools/args.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#define OPTS_MAX 64u
#define VAL_FIRST 256   /* getopt_long's values of our options: 256 + index; beyond any character */
#define VAL_HELP 255

struct table {
    struct option longs[OPTS_MAX + 2];
    const struct rp_opt *opts[OPTS_MAX];
    unsigned n;
};

static int table_build(const struct rp_verb *v, struct table *t, struct rp_error *err)
{
    memset(t, 0, sizeof(*t));
    for (unsigned g = 0; g < RP_OPT_GROUPS_MAX && v->groups[g].opts; g++)
        for (unsigned i = 0; i < v->groups[g].nopts; i++) {
            const struct rp_opt *o = &v->groups[g].opts[i];
            if (t->n == OPTS_MAX)
                return rp_error_set(err, EOVERFLOW, "%s: more than %u options in its table", v->name, OPTS_MAX);
            t->longs[t->n] = (struct option){.name = o->name, .has_arg = o->kind == RP_OPT_FLAG ? no_argument : required_argument,
                                             .val = VAL_FIRST + (int)t->n};
            t->opts[t->n++] = o;
        }
    t->longs[t->n] = (struct option){.name = "help", .has_arg = no_argument, .val = VAL_HELP};
    return 0;
}

static int store(const struct rp_opt *o, void *opts, char *value, struct rp_error *err)
{
    void *field = (char *)opts + o->offset;
    char what[64];
    snprintf(what, sizeof(what), "--%s", o->name);
    uint64_t n = 0;
    int rc = 0;
    switch ((enum rp_opt_kind)o->kind) {
    case RP_OPT_FLAG:
        *(bool *)field = true;
        return 0;
    case RP_OPT_STRING:
        if (!*value && !o->may_be_empty)
            return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s: empty; it needs %s", what, o->arg);
        *(const char **)field = value;
        return 0;
    case RP_OPT_UINT:
        rc = rp_parse_uint(what, value, o->min, o->max, &n, err);
        if (rc == 0)
            *(unsigned *)field = (unsigned)n;
        return rc;
    case RP_OPT_SIZE:
        rc = rp_parse_size(what, value, &n, err);
        if (rc == 0 && o->max && (n < o->min || n > o->max))
            rc = rp_error_exit(err, RP_EXIT_USAGE, ERANGE, "%s %s: out of range; between %llu and %llu MiB can be had", what, value,
                               (unsigned long long)(o->min >> 20), (unsigned long long)(o->max >> 20));
        break;
    case RP_OPT_DURATION:
        rc = rp_parse_duration(what, value, &n, err);
        if (rc == 0 && o->max && (n < o->min || n > o->max))
            rc = rp_error_exit(err, RP_EXIT_USAGE, ERANGE, "%s %s: out of range; between %g and %g ms can be had", what, value,
                               (double)o->min / 1e6, (double)o->max / 1e6);
        break;
    case RP_OPT_RATE:
        rc = rp_parse_rate(what, value, &n, err);
        break;
    case RP_OPT_PARSE:
        return o->parse(field, value, err);
    }
    if (rc == 0)
        *(uint64_t *)field = n;
    return rc;
}

int rp_args_parse(const struct rp_verb *v, int argc, char **argv, void *opts, char ***operands, unsigned *n,
                  struct rp_error *err)
{
    struct table t;
    int rc = table_build(v, &t, err);
    if (rc < 0)
        return rc;
    optind = 0;     /* 0, not 1: glibc then also forgets the previous argv */
    opterr = 0;
    int c;
    while ((c = getopt_long(argc, argv, ":h", t.longs, NULL)) != -1) {
        if (c == 'h' || c == VAL_HELP) {
            rp_args_help(v, stdout);
            return 1;
        }
        if (c == ':')
            return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s: a value is missing; it needs %s", argv[optind - 1],
                                 optopt >= VAL_FIRST ? t.opts[optopt - VAL_FIRST]->arg : "one");
        if (c == '?' && optopt >= VAL_FIRST)
            return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--%s takes no value", t.opts[optopt - VAL_FIRST]->name);
        if (c == '?' && optopt && optopt != VAL_HELP)
            return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "-%c: no such option; `reprise %s --help` lists them", optopt, v->name);
        if (c == '?')
            return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s: no such option; `reprise %s --help` lists them", argv[optind - 1],
                                 v->name);
        rc = store(t.opts[c - VAL_FIRST], opts, optarg, err);
        if (rc < 0)
            return rc;
    }
    *operands = argv + optind;
    *n = (unsigned)(argc - optind);
    if (*n < v->min_operands)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "something is missing: reprise %s %s%s", v->name, v->operands,
                             v->groups[0].opts ? " [options]" : "");
    if (*n > v->max_operands)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "\"%s\" is too much; `reprise %s --help` says how it is used",
                             (*operands)[v->max_operands], v->name);
    return 0;
}
