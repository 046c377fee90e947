/* --help and man pages from the same tables that drive the parsing. */
#include "tools/args.h"

#include <ctype.h>
#include <string.h>

/* Prints `text` wrapped at 100 columns, each line `indent` columns in; the first line starts at `column`. */
static void wrap(FILE *out, const char *text, int indent, int column)
{
    while (*text) {
        size_t word = strcspn(text, " \n");
        if (column > indent && column + (int)word + 1 > 100) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        }
        fprintf(out, "%.*s", (int)word, text);
        column += (int)word;
        text += word;
        if (*text == '\n') {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        } else if (*text == ' ') {
            fputc(' ', out);
            column++;
        }
        text += *text ? 1 : 0;
    }
    fputc('\n', out);
}

static void option_line(FILE *out, const struct rp_opt *o)
{
    int column = fprintf(out, "  --%s%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "", o->repeats ? " ..." : "");
    if (column > 27) {
        fputc('\n', out);
        column = 0;
    }
    fprintf(out, "%*s", 28 - column, "");
    wrap(out, o->help, 28, 28);
}

void rp_args_help(const struct rp_verb *v, FILE *out)
{
    fprintf(out, "reprise %s%s%s%s\n\n", v->name, *v->operands ? " " : "", v->operands, v->groups[0].opts ? " [options]" : "");
    wrap(out, v->summary, 0, 0);
    if (v->details) {
        fputc('\n', out);
        wrap(out, v->details, 0, 0);
    }
    for (unsigned g = 0; g < RP_OPT_GROUPS_MAX && v->groups[g].opts; g++) {
        fprintf(out, "\n%s:\n", v->groups[g].title);
        for (unsigned i = 0; i < v->groups[g].nopts; i++)
            option_line(out, &v->groups[g].opts[i]);
    }
}

/* Text for troff: a leading dot or quote would be a request, a backslash an escape, a minus a hyphen. */
static void troff(FILE *out, const char *text)
{
    bool line_start = true;
    for (; *text; text++) {
        if (line_start && (*text == '.' || *text == '\''))
            fputs("\\&", out);
        if (*text == '\\')
            fputs("\\e", out);
        else if (*text == '-')
            fputs("\\-", out);
        else
            fputc(*text, out);
        line_start = *text == '\n';
    }
}

void rp_args_man(const struct rp_verb *v, FILE *out)
{
    fprintf(out, ".TH REPRISE-");
    for (const char *p = v->name; *p; p++)
        fputc(toupper((unsigned char)*p), out);
    fputs(" 1 \"\" \"Reprise\" \"Reprise\"\n.SH NAME\nreprise\\-", out);
    troff(out, v->name);
    fputs(" \\- ", out);
    troff(out, v->summary);
    fputs("\n.SH SYNOPSIS\n.B reprise ", out);
    troff(out, v->name);
    fputs("\n.I ", out);
    troff(out, v->operands);
    fputs(v->groups[0].opts ? "\n.RI [ options ]\n" : "\n", out);
    fputs(".SH DESCRIPTION\n", out);
    troff(out, v->summary);
    fputs("\n", out);
    if (v->details) {
        fputs(".PP\n", out);
        troff(out, v->details);
        fputs("\n", out);
    }
    for (unsigned g = 0; g < RP_OPT_GROUPS_MAX && v->groups[g].opts; g++) {
        fputs(g ? ".SS " : ".SH OPTIONS\n.SS ", out);
        troff(out, v->groups[g].title);
        fputs("\n", out);
        for (unsigned i = 0; i < v->groups[g].nopts; i++) {
            const struct rp_opt *o = &v->groups[g].opts[i];
            fputs(".TP\n.BI \\-\\-", out);
            troff(out, o->name);
            if (o->arg) {
                fputs(" \" ", out);
                troff(out, o->arg);
                fputs("\"", out);
            }
            fputs("\n", out);
            troff(out, o->help);
            fputs(o->repeats ? " May be given more than once.\n" : "\n", out);
        }
    }
    fputs(".SH EXIT STATUS\n0 done, 1 failed, 2 wrong use, 3 no such VM, 4 the host lacks something\n"
          "(\\fBreprise doctor\\fP says what), 5 refused by policy or lease, 6 damaged or foreign data, 130 interrupted.\n"
          ".SH SEE ALSO\n.BR reprise (1)\n", out);
}
