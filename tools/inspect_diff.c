/* Two epochs against each other: fields of header, trailer and sections, and the pages that differ. */
#include "tools/inspect.h"
#include "tools/state_tables.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#define RANGES_SHOWN 64u        /* in text; JSON has them all */

/* One side: the stream read up to the epoch that was asked for. */
struct side {
    const struct rp_inspect_where *where;
    struct rp_inspect *in;
};

#define FOUND 1         /* the walk's end, not an error */

static int stop_at(void *ctx, const struct rp_inspect_epoch *e)
{
    const struct side *s = ctx;
    return e->verified && e->header.number == s->where->epoch ? FOUND : 0;
}

static int side_load(struct side *s, struct rp_error *err)
{
    struct rp_inspect_ops ops = {.ctx = s, .epoch = stop_at};
    int fd = -1;
    int rc = rp_inspect_create(&ops, &s->in, err);
    if (rc == 0)
        rc = rp_inspect_open(s->where, &fd, err);
    if (rc == 0) {
        rc = rp_inspect_walk(s->in, fd, err);
        if (rc == 0 && s->where->epoch)
            rc = rp_error_exit(err, RP_EXIT_USAGE, ENOENT, "the stream has no epoch %" PRIu64, s->where->epoch);
        else if (rc == 0 && rp_image_epoch(rp_inspect_image(s->in)) == 0)
            rc = rp_error_exit(err, RP_EXIT_DAMAGED, ENODATA, "the stream holds no epoch");
        if (rc < 0)
            rp_error_wrap(err, "%s", s->where->path);
    }
    if (fd > 0)
        close(fd);
    return rc < 0 ? rc : 0;
}

struct diff {
    const struct side *a, *b;
    bool json, brief;
    FILE *out;
    uint64_t found;
};

static void heading(const struct diff *d, const char *what, const struct rp_section *s)
{
    fprintf(d->out, "%s%s", what, s ? " " : "");
    if (s) {
        rp_json_text(s->name, sizeof(s->name), d->out);
        fprintf(d->out, " %u", s->instance);
    }
}

static void diff_struct(struct diff *d, const char *what, const struct rp_state_table *t, const void *a, const void *b)
{
    int n = rp_state_diff(t, a, b, NULL, 0);
    d->found += (uint64_t)n;
    if (d->json) {
        fprintf(d->out, "\"%s\": %d, ", what, n);
    } else if (n) {
        fprintf(d->out, "%s:\n", what);
        rp_state_diff(t, a, b, d->out, 2);
    }
}

/* --- sections --- */

/* `note`: how the two differ, or NULL; fields: of a table that reads both. */
static void section_differs(struct diff *d, const struct rp_section *s, const char *note, const struct rp_state_table *t, const void *a,
                            const void *b, const char **sep)
{
    int n = t ? rp_state_diff(t, a, b, NULL, 0) : 1;
    d->found += (uint64_t)n;
    if (n == 0)
        return;
    if (d->json) {
        fprintf(d->out, "%s{\"name\": ", *sep);
        rp_json_text(s->name, sizeof(s->name), d->out);
        fprintf(d->out, ", \"instance\": %u, ", s->instance);
        if (t) {
            fprintf(d->out, "\"fields\": %d", n);
        } else {
            fprintf(d->out, "\"differs\": \"%s\"", note);
        }
        if (t && !d->brief) {
            fputs(", \"a\": ", d->out);
            rp_state_json(t, a, d->out);
            fputs(", \"b\": ", d->out);
            rp_state_json(t, b, d->out);
        }
        fputc('}', d->out);
        *sep = ", ";
        return;
    }
    heading(d, "section", s);
    if (t && d->brief)
        fprintf(d->out, ": %d fields differ\n", n);
    else
        fprintf(d->out, ": %s\n", t ? "" : note);
    if (t && !d->brief)
        rp_state_diff(t, a, b, d->out, 2);
}

static void section_pair(struct diff *d, const struct rp_section *sa, const struct rp_section *sb, const char **sep)
{
    if (sa->version == sb->version && sa->len == sb->len && memcmp(sa->bytes, sb->bytes, sa->len) == 0)
        return;
    const struct rp_state_table *t = rp_state_table_find(sa->name);
    void *a = t ? calloc(1, t->size) : NULL, *b = t ? calloc(1, t->size) : NULL;
    if (a && b && rp_section_decode(t, sa, a, NULL) == 0 && rp_section_decode(t, sb, b, NULL) == 0)
        section_differs(d, sa, NULL, t, a, b, sep);
    else
        section_differs(d, sa, "other bytes, which no table of this reprise can read", NULL, NULL, NULL, sep);
    free(a);
    free(b);
}

static void diff_sections(struct diff *d)
{
    const struct rp_sections *a = rp_image_sections(rp_inspect_image(d->a->in)), *b = rp_image_sections(rp_inspect_image(d->b->in));
    struct rp_section s, other;
    const char *sep = "";
    fputs(d->json ? "\"sections\": [" : "", d->out);
    for (size_t pos = 0; rp_sections_next(a, &pos, &s);) {
        if (rp_sections_find(b, s.name, s.instance, &other))
            section_pair(d, &s, &other, &sep);
        else
            section_differs(d, &s, "only in the first", NULL, NULL, NULL, &sep);
    }
    for (size_t pos = 0; rp_sections_next(b, &pos, &s);)
        if (!rp_sections_find(a, s.name, s.instance, &other))
            section_differs(d, &s, "only in the second", NULL, NULL, NULL, &sep);
    fputs(d->json ? "], " : "", d->out);
}

/* --- pages --- */

struct pages {
    struct diff *d;
    uint64_t first, n, bytes;   /* the run being gathered */
    uint64_t pages, ranges;
};

static void run_ends(struct pages *p)
{
    if (!p->n)
        return;
    if (p->d->json)
        fprintf(p->d->out, "%s[%" PRIu64 ", %" PRIu64 "]", p->ranges ? ", " : "", p->first, p->n);
    else if (p->ranges < RANGES_SHOWN)
        fprintf(p->d->out, "  gfn 0x%" PRIx64 "-0x%" PRIx64 ": %" PRIu64 " pages, %" PRIu64 " bytes differ\n", p->first, p->first + p->n - 1,
                p->n, p->bytes);
    p->ranges++;
    p->pages += p->n;
    p->n = p->bytes = 0;
}

static uint64_t bytes_that_differ(const uint8_t *a, const uint8_t *b)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < RP_PAGE_SIZE; i++)
        n += a[i] != b[i];
    return n;
}

static void diff_pages(struct diff *d)
{
    static const uint8_t zero[RP_PAGE_SIZE];
    const struct rp_ram_view *a = rp_inspect_ram(d->a->in), *b = rp_inspect_ram(d->b->in);
    const struct rp_digest *da = rp_image_digest(rp_inspect_image(d->a->in)), *db = rp_image_digest(rp_inspect_image(d->b->in));
    struct pages p = {.d = d};
    uint64_t end = a->gfn_end > b->gfn_end ? a->gfn_end : b->gfn_end;
    fputs(d->json ? "\"page-ranges\": [" : "", d->out);
    for (uint64_t g = 0; g < end; g++) {
        bool in_a = rp_ram_contains(a, g, 1), in_b = rp_ram_contains(b, g, 1);
        struct rp_hash128 ha = {0, 0}, hb = {0, 0};
        if (in_a)
            ha = da->pages[g];
        if (in_b)
            hb = db->pages[g];
        if (ha.lo == hb.lo && ha.hi == hb.hi) {     /* the digests are verified: no need to touch the pages */
            run_ends(&p);
            continue;
        }
        p.first = p.n ? p.first : g;
        p.n++;
        p.bytes += bytes_that_differ(in_a ? rp_ram_page(a, g) : zero, in_b ? rp_ram_page(b, g) : zero);
    }
    run_ends(&p);
    d->found += p.pages;
    if (d->json)
        fprintf(d->out, "], \"pages\": %" PRIu64 ", ", p.pages);
    else if (p.pages)
        fprintf(d->out, "%s%" PRIu64 " pages differ, in %" PRIu64 " ranges\n", p.ranges > RANGES_SHOWN ? "  ...\n" : "", p.pages, p.ranges);
}

static void diff_all(struct diff *d)
{
    const struct rp_image *a = rp_inspect_image(d->a->in), *b = rp_inspect_image(d->b->in);
    fputs(d->json ? "{" : "", d->out);
    diff_struct(d, "header", &rp_epoch_header_table, rp_image_header(a), rp_image_header(b));
    diff_struct(d, "trailer", &rp_epoch_trailer_table, rp_image_trailer(a), rp_image_trailer(b));
    diff_sections(d);
    diff_pages(d);
    if (d->json)
        fprintf(d->out, "\"differences\": %" PRIu64 "}\n", d->found);
    else if (!d->found)
        fputs("no difference\n", d->out);
}

int rp_inspect_diff(const struct rp_inspect_where *a, const struct rp_inspect_where *b, const struct rp_inspect_show *show, FILE *out,
                    uint64_t *differ, struct rp_error *err)
{
    struct side sa = {.where = a}, sb = {.where = b};
    struct diff d = {.a = &sa, .b = &sb, .json = show->json, .brief = show->brief, .out = out};
    int rc = side_load(&sa, err);
    if (rc == 0)
        rc = side_load(&sb, err);
    if (rc == 0) {
        diff_all(&d);
        *differ = d.found;
    }
    rp_inspect_destroy(sa.in);
    rp_inspect_destroy(sb.in);
    return rc;
}
