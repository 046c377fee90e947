/* Walks a stream: every record to the image that verifies it, and to the counts that are printed. */
#include "tools/inspect.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

struct rp_inspect {
    struct rp_inspect_ops ops;
    struct rp_image *image;
    struct rp_ram_view ram;         /* base NULL: not made yet */
    struct rp_inspect_epoch e;      /* the epoch being read */
    struct rp_pageset touched;      /* pages that it brings */
    bool inside;
    uint64_t bytes, records, epochs;
};

/* rp_image_ops.ram: address space; what the epochs leave zero is never made. */
static int make_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    struct rp_inspect *in = ctx;
    if (h->gfn_end > RP_INSPECT_PAGES_MAX)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "guest memory up to %llu GiB: no machine of ours has that",
                             (unsigned long long)(h->gfn_end >> 18));
    struct rp_ram_view v = {.gfn_end = h->gfn_end, .nregions = h->nregions};
    for (uint32_t i = 0; i < h->nregions; i++) {
        v.regions[i] = h->regions[i];
        v.pages += h->regions[i].pages;
    }
    void *p = mmap(NULL, h->gfn_end << RP_PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || rp_pageset_init(&in->touched, v.gfn_end) < 0) {
        if (p != MAP_FAILED)
            munmap(p, h->gfn_end << RP_PAGE_SHIFT);
        return rp_error_set(err, ENOMEM, "no room for the guest's memory (%llu MiB)", (unsigned long long)(h->gfn_end >> 8));
    }
    v.base = p;
    in->ram = v;
    *out = v;
    return 0;
}

/* Disk writes are counted, and end here. */
static int no_disk(void *ctx, const struct rp_epoch_header *h, const struct rp_record *r, struct rp_error *err)
{
    (void)h;
    (void)ctx, (void)r, (void)err;
    return 0;
}

static int no_commit(void *ctx, const struct rp_epoch_header *h, struct rp_error *err)
{
    (void)ctx, (void)h, (void)err;
    return 0;
}

static void no_drop(void *ctx)
{
    (void)ctx;
}

int rp_inspect_create(const struct rp_inspect_ops *ops, struct rp_inspect **out, struct rp_error *err)
{
    struct rp_inspect *in = calloc(1, sizeof(*in));
    if (!in)
        return rp_error_set(err, ENOMEM, "no memory to inspect a stream");
    in->ops = *ops;
    struct rp_image_ops image_ops = {.ctx = in, .ram = make_ram, .disk = no_disk, .disk_commit = no_commit, .disk_drop = no_drop};
    int rc = rp_image_create(RP_IMAGE_DIRECT, &image_ops, 0, &in->image, err);
    if (rc < 0) {
        free(in);
        return rc;
    }
    *out = in;
    return 0;
}

void rp_inspect_destroy(struct rp_inspect *in)
{
    if (!in)
        return;
    rp_image_destroy(in->image);
    rp_sections_fini(&in->e.sections);
    rp_pageset_fini(&in->touched);
    if (in->ram.base)
        munmap(in->ram.base, in->ram.gfn_end << RP_PAGE_SHIFT);
    free(in);
}

/* --- counting; the image has accepted the record --- */

static int count_page(void *ctx, const struct rp_ram_entry *p, struct rp_error *err)
{
    (void)err;
    struct rp_inspect *in = ctx;
    struct rp_inspect_codec *c = &in->e.codec[p->codec];
    c->entries++;
    c->pages += p->pages;
    c->bytes += p->len;
    for (uint32_t i = 0; i < p->pages; i++)
        rp_pageset_set(&in->touched, p->gfn + i);
    return 0;
}

static struct rp_inspect_disk *disk_of(struct rp_inspect_epoch *e, uint32_t disk)
{
    for (uint32_t i = 0; i < e->ndisks; i++)
        if (e->disks[i].disk == disk)
            return &e->disks[i];
    if (e->ndisks == RP_INSPECT_DISKS_MAX)
        return NULL;
    e->disks[e->ndisks].disk = disk;
    return &e->disks[e->ndisks++];
}

static int count_disk(void *ctx, const struct rp_disk_entry *w, struct rp_error *err)
{
    struct rp_inspect *in = ctx;
    struct rp_inspect_disk *d = disk_of(&in->e, w->disk);
    if (!d)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "writes to more than %u disks", RP_INSPECT_DISKS_MAX);
    d->kind[w->kind].entries++;
    d->kind[w->kind].bytes += w->len;
    return 0;
}

static void begin_epoch(struct rp_inspect *in, const struct rp_record *r)
{
    struct rp_sections sections = in->e.sections;
    rp_sections_reset(&sections);
    in->e = (struct rp_inspect_epoch){.sections = sections, .offset = r->offset};
    in->inside = true;
    if (in->touched.words)
        rp_pageset_clear(&in->touched);
}

static int count(struct rp_inspect *in, const struct rp_record *r, struct rp_error *err)
{
    struct rp_inspect_epoch *e = &in->e;
    struct rp_section s;
    uint32_t pass = 0;
    int rc = 0;
    switch (r->type) {
    case RP_REC_EPOCH:
        begin_epoch(in, r);
        return rp_get_epoch(r, &e->header, err);
    case RP_REC_RAM:
        rc = rp_ram_walk(r, &in->ram, &pass, count_page, in, err);
        e->ram_records++;
        e->passes = pass >= e->passes ? pass + 1 : e->passes;
        return rc;
    case RP_REC_SECTION:
        rc = rp_get_section(r, &s, err);
        return rc == 0 && rp_sections_put(&e->sections, &s) < 0 ? rp_error_set(err, ENOMEM, "no memory for a section") : rc;
    case RP_REC_DISK:
        e->disk_records++;
        return rp_disk_walk(r, count_disk, in, err);
    case RP_REC_EPOCH_END:
        e->verified = true;
        in->epochs++;
        return rp_get_epoch_end(r, &e->trailer, err);
    case RP_REC_JOURNAL:
        e->journal_records++;
        return 0;
    default:
        e->other_records++;
        return 0;
    }
}

static int end_epoch(struct rp_inspect *in)
{
    struct rp_inspect_epoch *e = &in->e;
    in->inside = false;
    e->bytes = in->bytes - e->offset;
    e->distinct_pages = in->touched.words ? rp_pageset_count(&in->touched) : 0;
    return in->ops.epoch ? in->ops.epoch(in->ops.ctx, e) : 0;
}

static void tell_begin(struct rp_inspect *in, const struct rp_record *r)
{
    struct rp_reader p = rp_reader_of(r->payload, r->len);
    char producer[64] = "";
    uint32_t version = rp_get_u32(&p);
    rp_get_u32(&p);
    if (rp_get_str(&p, producer, sizeof(producer)) == 0 && in->ops.begin)
        in->ops.begin(in->ops.ctx, version, producer);
}

static int take(struct rp_inspect *in, const struct rp_record *r, struct rp_error *err)
{
    if (in->ops.record)
        in->ops.record(in->ops.ctx, r);
    int fed = rp_image_feed(in->image, r, err);
    if (fed < 0)
        return fed;
    in->bytes = r->offset + RP_RECORD_HEADER + r->len;
    in->records++;
    if (r->type == RP_REC_BEGIN)
        tell_begin(in, r);
    if (r->type == RP_REC_BEGIN || r->type == RP_REC_END)
        return 0;
    int rc = count(in, r, err);
    return rc == 0 && fed == 1 ? end_epoch(in) : rc;
}

int rp_inspect_walk(struct rp_inspect *in, int fd, struct rp_error *err)
{
    struct rp_stream_reader *reader = NULL;
    struct rp_record r;
    int rc = rp_stream_reader_create(fd, &reader, err);
    if (rc < 0)
        return rc;
    while ((rc = rp_stream_next(reader, &r, err)) > 0) {
        rc = take(in, &r, err);
        if (rc)
            break;
    }
    rp_stream_reader_destroy(reader);
    if (rc < 0 && in->inside && end_epoch(in) < 0) {
        /* what could be read was told; the first failure is the answer */
    }
    return rc;
}

const struct rp_image *rp_inspect_image(const struct rp_inspect *in) { return in->image; }
const struct rp_ram_view *rp_inspect_ram(const struct rp_inspect *in) { return &in->ram; }
uint64_t rp_inspect_bytes(const struct rp_inspect *in) { return in->bytes; }
uint64_t rp_inspect_records(const struct rp_inspect *in) { return in->records; }
uint64_t rp_inspect_epochs(const struct rp_inspect *in) { return in->epochs; }
