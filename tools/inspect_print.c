/* An epoch stream as text or as one JSON object, written while it is read. */
#include "tools/inspect.h"
#include "tools/state_tables.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

struct printer {
    const struct rp_inspect_show *show;
    FILE *out;
    const char *sep;        /* JSON: before the next epoch */
    uint64_t printed;       /* epochs */
    uint32_t version;
    char producer[64];
    struct rp_error section;/* the first section that could not be decoded */
};

static const char *const record_names[] = {"?", "BEGIN", "EPOCH", "RAM", "SECTION", "DISK", "JOURNAL", "EPOCH_END", "END"};
static const char *const kind_names[] = {"?", "write", "zero", "discard", "sync"};

static const char *reason_name(uint32_t reason)
{
    static const char *const names[] = {"no reason given", "asked for", "its time was over", "an output waited", "memory bound",
                                        "outputs differed", "the last one: the source stops"};
    return reason < sizeof(names) / sizeof(names[0]) ? names[reason] : "a reason that this version does not know";
}

static void hex(const uint8_t *p, size_t n, FILE *out)
{
    for (size_t i = 0; i < n; i++)
        fprintf(out, "%02x", p[i]);
}

/* The section's state, decoded; NULL when there is no table (*why empty) or it cannot be decoded. */
static void *decode(const struct rp_section *s, const struct rp_state_table **t, struct rp_error *why)
{
    *t = rp_state_table_find(s->name);
    void *state = *t ? calloc(1, (*t)->size) : NULL;
    if (*t && !state)
        rp_error_set(why, ENOMEM, "no memory for section \"%s\"", s->name);
    else if (*t && rp_section_decode(*t, s, state, why) < 0) {
        free(state);
        state = NULL;
    }
    return state;
}

static void note(struct printer *p, const struct rp_section *s, const struct rp_inspect_epoch *e, const struct rp_error *why)
{
    if (p->section.code)
        return;
    p->section = *why;
    rp_error_wrap(&p->section, "epoch %" PRIu64 ": section %u", e->header.number, s->instance);
}

/* --- text --- */

static void text_begin(void *ctx, uint32_t version, const char *producer)
{
    const struct printer *p = ctx;
    fprintf(p->out, "epoch stream, version %u, written by ", version);
    rp_json_text(producer, strlen(producer), p->out);
    fputc('\n', p->out);
}

static void text_record(void *ctx, const struct rp_record *r)
{
    const struct printer *p = ctx;
    fprintf(p->out, "record %" PRIu64 " at %" PRIu64 ": %s (type %u), %u bytes\n", r->seq, r->offset,
            record_names[r->type < sizeof(record_names) / sizeof(record_names[0]) ? r->type : 0], r->type, r->len);
}

static void text_time(uint64_t wall_ns, FILE *out)
{
    time_t s = (time_t)(wall_ns / 1000000000u);
    struct tm tm;
    char text[40] = "?";
    if (gmtime_r(&s, &tm))
        strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    fprintf(out, "%s.%09uZ", text, (unsigned)(wall_ns % 1000000000u));
}

static void text_head(const struct rp_inspect_epoch *e, FILE *out)
{
    const struct rp_epoch_header *h = &e->header;
    fprintf(out, "\nepoch %" PRIu64 " (", h->number);
    if (h->flags & RP_EPOCH_FULL)
        fputs(h->flags & RP_EPOCH_RESYNC ? "resync" : "full", out);
    else
        fprintf(out, "delta to %" PRIu64, h->parent);
    fputs(") of ", out);
    rp_json_text(h->vm_name, sizeof(h->vm_name), out);
    fputc(' ', out);
    hex(h->vm_id, sizeof(h->vm_id), out);
    fprintf(out, ", lease term %" PRIu64 "\n  at offset %" PRIu64 ", %" PRIu64 " bytes\n", h->term, e->offset, e->bytes);
    if (e->verified) {
        fprintf(out, "  cut at guest time %" PRIu64 ".%09u s, ", e->trailer.guest_ns / 1000000000u, (unsigned)(e->trailer.guest_ns % 1000000000u));
        text_time(e->trailer.wall_ns, out);
        fprintf(out, ": %s\n", reason_name(e->trailer.reason));
    }
    uint64_t pages = 0;
    fputs("  memory", out);
    for (uint32_t i = 0; i < h->nregions; i++) {
        fprintf(out, " 0x%" PRIx64 "-0x%" PRIx64, h->regions[i].gfn, h->regions[i].gfn + h->regions[i].pages);
        pages += h->regions[i].pages;
    }
    fprintf(out, " (frames), %" PRIu64 " pages\n", pages);
}

static void text_pages(const struct rp_inspect_epoch *e, FILE *out)
{
    fprintf(out, "  %-8s %10s %10s %14s\n", "pages", "entries", "pages", "payload bytes");
    for (unsigned c = 0; c < RP_CODEC_COUNT; c++)
        if (e->codec[c].entries)
            fprintf(out, "    %-6s %10" PRIu64 " %10" PRIu64 " %14" PRIu64 "\n", rp_codec_name((uint8_t)c), e->codec[c].entries,
                    e->codec[c].pages, e->codec[c].bytes);
    fprintf(out, "    %" PRIu64 " different pages, %u pass%s, %" PRIu64 " records\n", e->distinct_pages, e->passes,
            e->passes == 1 ? "" : "es", e->ram_records);
}

static void text_disks(const struct rp_inspect_epoch *e, FILE *out)
{
    for (uint32_t i = 0; i < e->ndisks; i++) {
        fprintf(out, "  disk %u:", e->disks[i].disk);
        for (unsigned k = RP_DISK_KIND_WRITE; k <= RP_DISK_KIND_SYNC; k++)
            fprintf(out, "%s %" PRIu64 " %s (%" PRIu64 " bytes)", k > 1 ? "," : "", e->disks[i].kind[k].entries, kind_names[k],
                    e->disks[i].kind[k].bytes);
        fputc('\n', out);
    }
    if (e->journal_records || e->other_records)
        fprintf(out, "  %" PRIu64 " journal records, %" PRIu64 " of unknown optional types\n", e->journal_records, e->other_records);
}

static void text_sections(struct printer *p, const struct rp_inspect_epoch *e)
{
    struct rp_section s;
    size_t pos = 0;
    fprintf(p->out, "  sections: %u\n", e->sections.count);
    while (rp_sections_next(&e->sections, &pos, &s)) {
        const struct rp_state_table *t;
        struct rp_error why = {0};
        void *state = decode(&s, &t, &why);
        fputs("    ", p->out);
        rp_json_text(s.name, sizeof(s.name), p->out);
        fprintf(p->out, " %u: version %u, %u bytes\n", s.instance, s.version, s.len);
        if (why.code) {
            fprintf(p->out, "      cannot be decoded: %s\n", why.text);
            note(p, &s, e, &why);
        } else if (!state) {
            fputs("      no table of this reprise describes it\n", p->out);
        } else if (!p->show->brief) {
            rp_state_print(t, state, p->out, 6);
        }
        free(state);
    }
}

static bool chosen(struct printer *p, const struct rp_inspect_epoch *e)
{
    bool yes = !p->show->only_epoch || p->show->only_epoch == e->header.number;
    p->printed += yes;
    return yes;
}

static int text_epoch(void *ctx, const struct rp_inspect_epoch *e)
{
    struct printer *p = ctx;
    if (!chosen(p, e))
        return 0;
    text_head(e, p->out);
    text_pages(e, p->out);
    text_disks(e, p->out);
    text_sections(p, e);
    if (e->verified)
        fprintf(p->out, "  verified: memory digest %016" PRIx64 "%016" PRIx64 "\n", e->trailer.digest_hi, e->trailer.digest_lo);
    else
        fputs("  NOT WHOLE: the stream breaks here; nothing of this epoch counts\n", p->out);
    return 0;
}

/* --- JSON --- */

/* Told at the end: what is no stream has none. */
static void json_begin(void *ctx, uint32_t version, const char *producer)
{
    struct printer *p = ctx;
    p->version = version;
    snprintf(p->producer, sizeof(p->producer), "%s", producer);
}

static void json_pages(const struct rp_inspect_epoch *e, FILE *out)
{
    fprintf(out, ", \"pages\": {\"distinct\": %" PRIu64 ", \"passes\": %u, \"records\": %" PRIu64, e->distinct_pages, e->passes, e->ram_records);
    for (unsigned c = 0; c < RP_CODEC_COUNT; c++)
        fprintf(out, ", \"%s\": {\"entries\": %" PRIu64 ", \"pages\": %" PRIu64 ", \"bytes\": %" PRIu64 "}", rp_codec_name((uint8_t)c),
                e->codec[c].entries, e->codec[c].pages, e->codec[c].bytes);
    fputs("}, \"disks\": [", out);
    for (uint32_t i = 0; i < e->ndisks; i++) {
        fprintf(out, "%s{\"disk\": %u", i ? ", " : "", e->disks[i].disk);
        for (unsigned k = RP_DISK_KIND_WRITE; k <= RP_DISK_KIND_SYNC; k++)
            fprintf(out, ", \"%s\": {\"entries\": %" PRIu64 ", \"bytes\": %" PRIu64 "}", kind_names[k], e->disks[i].kind[k].entries,
                    e->disks[i].kind[k].bytes);
        fputc('}', out);
    }
    fprintf(out, "], \"journal-records\": %" PRIu64 ", \"other-records\": %" PRIu64, e->journal_records, e->other_records);
}

static void json_sections(struct printer *p, const struct rp_inspect_epoch *e)
{
    struct rp_section s;
    size_t pos = 0;
    fputs(", \"sections\": [", p->out);
    while (rp_sections_next(&e->sections, &pos, &s)) {
        const struct rp_state_table *t;
        struct rp_error why = {0};
        void *state = decode(&s, &t, &why);
        fprintf(p->out, "%s{\"name\": ", p->sep);
        p->sep = ", ";
        rp_json_text(s.name, sizeof(s.name), p->out);
        fprintf(p->out, ", \"instance\": %u, \"version\": %u, \"bytes\": %u", s.instance, s.version, s.len);
        if (why.code) {
            fputs(", \"error\": ", p->out);
            rp_json_text(why.text, sizeof(why.text), p->out);
            note(p, &s, e, &why);
        } else if (state && !p->show->brief) {
            fputs(", \"fields\": ", p->out);
            rp_state_json(t, state, p->out);
        }
        fputc('}', p->out);
        free(state);
    }
    fputc(']', p->out);
}

static int json_epoch(void *ctx, const struct rp_inspect_epoch *e)
{
    struct printer *p = ctx;
    if (!chosen(p, e))
        return 0;
    fprintf(p->out, "%s\n{\"offset\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"verified\": %s, \"header\": ", p->printed > 1 ? "," : "",
            e->offset, e->bytes, e->verified ? "true" : "false");
    rp_state_json(&rp_epoch_header_table, &e->header, p->out);
    if (e->verified) {
        fputs(", \"trailer\": ", p->out);
        rp_state_json(&rp_epoch_trailer_table, &e->trailer, p->out);
    }
    json_pages(e, p->out);
    p->sep = "";
    json_sections(p, e);
    fputc('}', p->out);
    return 0;
}

/* --- both --- */

static void ending(const struct printer *p, const struct rp_inspect *in, int rc, const struct rp_error *err)
{
    if (p->show->json) {
        fprintf(p->out, "], \"whole\": %s, \"bytes\": %" PRIu64 ", \"records\": %" PRIu64, rc == 0 ? "true" : "false", rp_inspect_bytes(in),
                rp_inspect_records(in));
        if (p->version) {
            fprintf(p->out, ", \"version\": %u, \"producer\": ", p->version);
            rp_json_text(p->producer, sizeof(p->producer), p->out);
        }
        if (rc < 0) {
            fputs(", \"error\": ", p->out);
            rp_json_text(err->text, sizeof(err->text), p->out);
        }
        fputs("}\n", p->out);
    } else if (rc == 0) {
        fprintf(p->out, "\nwhole: %" PRIu64 " epochs, %" PRIu64 " records, %" PRIu64 " bytes\n", rp_inspect_epochs(in), rp_inspect_records(in),
                rp_inspect_bytes(in));
    }
}

int rp_inspect_print(int fd, const struct rp_inspect_show *show, FILE *out, struct rp_error *err)
{
    struct printer p = {.show = show, .out = out};
    struct rp_inspect_ops ops = {.ctx = &p, .begin = show->json ? json_begin : text_begin, .epoch = show->json ? json_epoch : text_epoch,
                                 .record = show->records && !show->json ? text_record : NULL};
    struct rp_error why = {0};
    struct rp_inspect *in = NULL;
    int rc = rp_inspect_create(&ops, &in, err);
    if (rc < 0)
        return rc;
    fputs(show->json ? "{\"epochs\": [" : "", out);
    rc = rp_inspect_walk(in, fd, &why);
    if (rc == 0 && p.section.code) {
        why = p.section;
        rc = why.code;
    }
    if (rc == 0 && show->only_epoch && !p.printed)
        rc = rp_error_exit(&why, RP_EXIT_USAGE, ENOENT, "the stream has no epoch %" PRIu64, show->only_epoch);
    ending(&p, in, rc, &why);
    rp_inspect_destroy(in);
    if (rc < 0 && err)
        *err = why;
    return rc;
}
