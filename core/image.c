#include "core/image.h"

#include "core/fault.h"
#include "core/staging.h"

#include <errno.h>
#include <stdlib.h>

enum image_phase { PHASE_BETWEEN, PHASE_DIRECT, PHASE_STAGING, PHASE_ENDED };

struct rp_image {
    enum rp_image_mode mode;
    struct rp_image_ops ops;
    uint64_t staging_max;
    enum image_phase phase;
    bool begun;
    struct rp_ram_view ram;
    bool have_ram;
    struct rp_digest digest;
    uint64_t epoch;                     /* newest whole epoch, 0: EMPTY */
    uint64_t applied;                   /* epochs since BEGIN: END says how many there were */
    struct rp_epoch_header header, next_header;
    struct rp_epoch_trailer trailer;
    struct rp_sections sections, next_sections;
    uint64_t records, entries, disk_bytes;  /* of the epoch being taken */
    bool doubtful;                      /* RAM is not what the hashes say */

    uint32_t *mark;                     /* [gfn_end] staging's; in a full epoch 1 + pass last written; 0: none */
    struct rp_staging staging;
};

int rp_image_create(enum rp_image_mode mode, const struct rp_image_ops *ops, uint64_t staging_max_bytes,
                    struct rp_image **out, struct rp_error *err)
{
    struct rp_image *img = calloc(1, sizeof(*img));
    if (!img)
        return rp_error_set(err, ENOMEM, "no memory for an image");
    img->mode = mode;
    img->ops = *ops;
    img->staging_max = staging_max_bytes;
    *out = img;
    return 0;
}

void rp_image_destroy(struct rp_image *img)
{
    if (!img)
        return;
    rp_staging_fini(&img->staging);
    free(img->mark);
    rp_sections_fini(&img->sections);
    rp_sections_fini(&img->next_sections);
    rp_digest_fini(&img->digest);
    free(img);
}

static int refuse(struct rp_error *err, const struct rp_record *r, const char *why)
{
    return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "stream offset %llu: record type %u: %s",
                         (unsigned long long)r->offset, r->type, why);
}

static bool resyncs(const struct rp_image *img)
{
    return img->next_header.flags & RP_EPOCH_RESYNC;
}

static void clear_marks(struct rp_image *img)
{
    if (img->phase == PHASE_DIRECT)
        memset(img->mark, 0, img->ram.gfn_end * sizeof(*img->mark));
    rp_staging_clear(&img->staging);
}

/* Back to zeroes: a full epoch starts from there. */
static void wipe(struct rp_image *img)
{
    for (uint32_t i = 0; i < img->ram.nregions; i++)
        for (uint64_t g = img->ram.regions[i].gfn; g < img->ram.regions[i].gfn + img->ram.regions[i].pages; g++)
            if (!rp_hash_is_zero(img->digest.pages[g]) ||
                (img->doubtful && !rp_page_is_zero(rp_ram_page(&img->ram, g)))) {
                memset(rp_ram_page(&img->ram, g), 0, RP_PAGE_SIZE);
                rp_digest_update(&img->digest, g, (struct rp_hash128){0, 0});
            }
    img->doubtful = false;
}

/* What was held is held no more: the epoch being taken has begun to change RAM. */
static void lose_epoch(struct rp_image *img)
{
    img->epoch = 0;
    img->header = img->next_header;     /* whose VM's pages are there */
    rp_sections_reset(&img->sections);
}

void rp_image_drop(struct rp_image *img)
{
    if (img->phase != PHASE_DIRECT && img->phase != PHASE_STAGING)
        return;
    if (img->phase == PHASE_DIRECT && img->mode == RP_IMAGE_DIRECT)
        wipe(img);
    clear_marks(img);
    rp_sections_reset(&img->next_sections);
    img->phase = PHASE_BETWEEN;
    if (img->ops.disk)
        img->ops.disk_drop(img->ops.ctx);
}

/* --- pages --- */

/* A resync is larger than the staging memory: what was staged goes into RAM, and the rest after it. */
static int spill(struct rp_image *img, struct rp_error *err)
{
    if (rp_fault(RP_FAULT_IMAGE_SPILL))
        return rp_error_set(err, EIO, "going on in RAM with epoch %llu: fault point", (unsigned long long)img->next_header.number);
    rp_staging_spill(&img->staging);
    lose_epoch(img);
    img->phase = PHASE_DIRECT;
    return 0;
}

struct walk {
    struct rp_image *img;
    uint32_t *pass;
};

static int refuse_orphan(const struct rp_ram_entry *e, struct rp_error *err)
{
    return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "gfn 0x%llx: a delta in a full epoch has no parent", (unsigned long long)e->gfn);
}

static int direct_page(struct walk *w, const struct rp_ram_entry *e, uint32_t i, struct rp_error *err)
{
    struct rp_image *img = w->img;
    uint64_t gfn = e->gfn + i;
    if (img->mark[gfn] > *w->pass + 1)
        return 0;
    img->mark[gfn] = *w->pass + 1;
    uint8_t *page = rp_ram_page(&img->ram, gfn);
    struct rp_hash128 h = {0, 0};
    if (e->codec == RP_CODEC_ZERO) {
        if (!rp_page_is_zero(page))
            memset(page, 0, RP_PAGE_SIZE);
    } else {
        int rc = rp_ram_decode(e, i, page, err);
        if (rc < 0) {
            memset(page, 0, RP_PAGE_SIZE);  /* lz4 may have written some of it; the epoch is lost anyway */
            rp_digest_update(&img->digest, gfn, h);
            rp_error_wrap(err, "gfn 0x%llx", (unsigned long long)gfn);
            return rc;
        }
        h = rp_page_hash(gfn, page);
    }
    rp_digest_update(&img->digest, gfn, h);
    return 0;
}

static int direct_entry(void *ctx, const struct rp_ram_entry *e, struct rp_error *err)
{
    int rc = e->codec == RP_CODEC_DELTA ? refuse_orphan(e, err) : 0;
    for (uint32_t i = 0; i < e->pages && rc == 0; i++)
        rc = direct_page(ctx, e, i, err);
    return rc;
}

static int stage_page(struct walk *w, const struct rp_ram_entry *e, uint32_t i, struct rp_error *err)
{
    struct rp_image *img = w->img;
    /* A restore (RP_IMAGE_DIRECT) takes an epoch of any size; a standby has a bound. */
    uint64_t max = img->mode == RP_IMAGE_DIRECT ? UINT64_MAX : img->staging_max;
    if (img->phase == PHASE_DIRECT)         /* spilled at an earlier page of this entry or record */
        return direct_page(w, e, i, err);
    int rc = rp_staging_put(&img->staging, e, i, *w->pass, max, err);
    if (rc != -ENOBUFS)
        return rc;
    if (!resyncs(img))
        return rp_error_set(err, ENOBUFS, "epoch %llu is larger than the staging memory (%llu MiB)",
                            (unsigned long long)img->next_header.number, (unsigned long long)(max >> 20));
    rc = spill(img, err);
    return rc == 0 ? direct_page(w, e, i, err) : rc;
}

static int stage_entry(void *ctx, const struct rp_ram_entry *e, struct rp_error *err)
{
    struct walk *w = ctx;
    int rc = resyncs(w->img) && e->codec == RP_CODEC_DELTA ? refuse_orphan(e, err) : 0;
    for (uint32_t i = 0; i < e->pages && rc == 0; i++)
        rc = stage_page(w, e, i, err);
    return rc;
}

static int take_ram(struct rp_image *img, const struct rp_record *r, struct rp_error *err)
{
    uint32_t pass;
    struct walk w = {img, &pass};
    int rc = rp_ram_walk(r, &img->ram, &pass, img->phase == PHASE_DIRECT ? direct_entry : stage_entry, &w, err);
    if (rc < 0)
        return rc;
    img->records++;
    img->entries += rp_ld32(r->payload + 4);    /* the walk has checked it */
    return 0;
}

/* --- the epoch's beginning and end --- */

static bool same_layout(const struct rp_epoch_header *a, const struct rp_epoch_header *b)
{
    return a->gfn_end == b->gfn_end && a->nregions == b->nregions &&
           memcmp(a->regions, b->regions, sizeof(a->regions)) == 0;
}

/* From here on the image knows the RAM, and takes it for zeroes. */
static int keep_ram(struct rp_image *img, const struct rp_ram_view *view, struct rp_error *err)
{
    if (rp_digest_init(&img->digest, view->gfn_end) < 0 || !(img->mark = calloc(view->gfn_end, sizeof(*img->mark)))) {
        rp_digest_fini(&img->digest);
        return rp_error_set(err, ENOMEM, "no memory to keep track of %llu pages", (unsigned long long)view->gfn_end);
    }
    img->ram = *view;
    img->have_ram = true;
    rp_staging_init(&img->staging, view, &img->digest, img->mark);
    return 0;
}

int rp_image_adopt(struct rp_image *img, const struct rp_ram_view *ram, const struct rp_pageset *held, const uint8_t vm_id[16],
                   struct rp_error *err)
{
    struct rp_epoch_header *h = &img->header;
    int rc = keep_ram(img, ram, err);
    if (rc < 0)
        return rc;
    memcpy(h->vm_id, vm_id, sizeof(h->vm_id));
    h->gfn_end = ram->gfn_end;
    h->nregions = ram->nregions;
    for (uint32_t i = 0; i < ram->nregions; i++)
        h->regions[i] = ram->regions[i];
    for (uint64_t g = rp_pageset_next(held, 0); g < held->bits; g = rp_pageset_next(held, g + 1))
        rp_digest_update(&img->digest, g, rp_page_hash(g, rp_ram_page(ram, g)));
    return 0;
}

static int make_ram(struct rp_image *img, const struct rp_record *r, struct rp_error *err)
{
    const struct rp_epoch_header *h = &img->next_header;
    struct rp_ram_view view;
    int rc = img->ops.ram(img->ops.ctx, h, &view, err);
    if (rc < 0)
        return rc;
    if (view.gfn_end != h->gfn_end)
        return refuse(err, r, "the RAM that was made has another layout");
    return keep_ram(img, &view, err);
}

static int take_epoch(struct rp_image *img, const struct rp_record *r, struct rp_error *err)
{
    struct rp_epoch_header h;
    int rc = rp_get_epoch(r, &h, err);
    if (rc < 0)
        return rc;
    if (img->have_ram && !same_layout(&h, &img->header))
        return refuse(err, r, "an epoch of another RAM layout");
    if (img->epoch && memcmp(h.vm_id, img->header.vm_id, sizeof(h.vm_id)) != 0)
        return refuse(err, r, "an epoch of another VM");
    bool full = h.flags & RP_EPOCH_FULL;
    if ((h.flags & RP_EPOCH_RESYNC) && !rp_image_pages(img, h.vm_id))
        return refuse(err, r, "a resync, but nothing is held here that it could start from");
    if (!full && (img->epoch == 0 || h.parent != img->epoch))
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "stream offset %llu: epoch %llu has parent %llu, but the image holds %llu",
                             (unsigned long long)r->offset, (unsigned long long)h.number, (unsigned long long)h.parent,
                             (unsigned long long)img->epoch);
    img->next_header = h;
    if (!img->have_ram) {
        rc = make_ram(img, r, err);
        if (rc < 0)
            return rc;
        img->header = h;
    }
    img->records = img->entries = img->disk_bytes = 0;
    img->phase = !full || (resyncs(img) && img->epoch) ? PHASE_STAGING : PHASE_DIRECT;
    if (img->phase == PHASE_DIRECT) {
        lose_epoch(img);
        if (!resyncs(img))
            wipe(img);      /* it starts from RAM of zeroes */
    }
    return 0;
}

static int take_section(struct rp_image *img, const struct rp_record *r, struct rp_error *err)
{
    struct rp_section s, other;
    int rc = rp_get_section(r, &s, err);
    if (rc < 0)
        return rc;
    if (rp_sections_find(&img->next_sections, s.name, s.instance, &other))
        return refuse(err, r, "the same section comes twice");
    if (img->next_sections.count >= RP_SECTIONS_MAX || img->next_sections.buf.len + r->len > RP_SECTIONS_BYTES_MAX)
        return refuse(err, r, "more sections than an epoch may have");
    return rp_sections_put(&img->next_sections, &s) < 0 ? rp_error_set(err, ENOMEM, "no memory for a section") : 0;
}

static int take_disk(struct rp_image *img, const struct rp_record *r, struct rp_error *err)
{
    if (!img->ops.disk)
        return refuse(err, r, "disk writes, but no disks are kept here");
    int rc = rp_disk_walk(r, NULL, NULL, err);
    if (rc < 0)
        return rc;
    img->disk_bytes += r->len;
    return img->ops.disk(img->ops.ctx, &img->next_header, r, err);
}

/* Sections that a delta epoch did not bring are its parent's, within the same bounds. Only next_sections changes. */
static int inherit_sections(struct rp_image *img, const struct rp_record *r, struct rp_error *err)
{
    size_t pos = 0;
    struct rp_section s, other;
    if (img->next_header.flags & RP_EPOCH_FULL)
        return 0;
    while (rp_sections_next(&img->sections, &pos, &s)) {
        if (rp_sections_find(&img->next_sections, s.name, s.instance, &other))
            continue;
        if (rp_sections_put(&img->next_sections, &s) < 0)
            return rp_error_set(err, ENOMEM, "no memory for sections");
        if (img->next_sections.count > RP_SECTIONS_MAX || img->next_sections.buf.len > RP_SECTIONS_BYTES_MAX)
            return refuse(err, r, "more sections than an epoch may have, with its parent's");
    }
    return 0;
}

static void swap_sections(struct rp_image *img)
{
    struct rp_sections old = img->sections;
    img->sections = img->next_sections;
    img->next_sections = old;
    rp_sections_reset(&img->next_sections);
}

static int take_end(struct rp_image *img, const struct rp_record *r, struct rp_error *err)
{
    struct rp_epoch_trailer t;
    int rc = rp_get_epoch_end(r, &t, err);
    if (rc < 0)
        return rc;
    if (t.number != img->next_header.number)
        return refuse(err, r, "the end of another epoch");
    if (t.ram_records != img->records || t.ram_pages != img->entries || t.sections != img->next_sections.count ||
        t.disk_bytes != img->disk_bytes)
        return refuse(err, r, "records of the epoch are missing");
    struct rp_hash128 sum = img->phase == PHASE_DIRECT ? img->digest.sum : rp_staging_digest(&img->staging);
    bool equal = sum.lo == t.digest_lo && sum.hi == t.digest_hi;
    img->doubtful |= !equal && resyncs(img);
    if (!equal)
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG,
                             "stream offset %llu: epoch %llu: the RAM digest differs from the source's: the image is not what was cut",
                             (unsigned long long)r->offset, (unsigned long long)t.number);
    if (rp_fault(RP_FAULT_IMAGE_APPLY))
        return rp_error_set(err, EIO, "applying epoch %llu: fault point", (unsigned long long)t.number);
    if ((rc = inherit_sections(img, r, err)) < 0)
        return rc;
    if (img->ops.disk && (rc = img->ops.disk_commit(img->ops.ctx, &img->next_header, err)) < 0)
        return rc;
    /* From here on nothing can fail. */
    swap_sections(img);
    if (img->phase == PHASE_STAGING)
        rp_staging_apply(&img->staging);
    clear_marks(img);
    img->header = img->next_header;
    img->trailer = t;
    img->epoch = t.number;
    img->applied++;
    img->phase = PHASE_BETWEEN;
    return 1;
}

static int take(struct rp_image *img, const struct rp_record *r, struct rp_error *err)
{
    uint32_t version;
    if (img->phase == PHASE_ENDED)
        return refuse(err, r, "after the end of the stream");
    if (!img->begun && r->type != RP_REC_BEGIN)
        return refuse(err, r, "before the beginning of the stream");
    bool inside = img->phase == PHASE_DIRECT || img->phase == PHASE_STAGING;
    switch (r->type) {
    case RP_REC_BEGIN:
        img->begun = true;
        img->applied = 0;
        return inside ? refuse(err, r, "inside an epoch") : rp_get_begin(r, &version, err);
    case RP_REC_EPOCH:
        return inside ? refuse(err, r, "inside an epoch") : take_epoch(img, r, err);
    case RP_REC_END:
        if (inside || r->len != 8)
            return refuse(err, r, inside ? "inside an epoch" : "malformed");
        if (rp_ld64(r->payload) != img->applied)
            return refuse(err, r, "the end of a stream with another number of epochs");
        img->phase = PHASE_ENDED;
        return 0;
    default:
        break;
    }
    if (!inside)
        return refuse(err, r, "outside of an epoch");
    switch (r->type) {
    case RP_REC_RAM:
        return take_ram(img, r, err);
    case RP_REC_SECTION:
        return take_section(img, r, err);
    case RP_REC_DISK:
        return take_disk(img, r, err);
    case RP_REC_EPOCH_END:
        return take_end(img, r, err);
    case RP_REC_JOURNAL:
        return 0;
    default:
        return r->flags & 1 ? 0 : refuse(err, r, "unknown to this version");
    }
}

int rp_image_feed(struct rp_image *img, const struct rp_record *r, struct rp_error *err)
{
    int rc = take(img, r, err);
    if (rc < 0)
        rp_image_drop(img);
    return rc;
}

void rp_image_bound(struct rp_image *img, uint64_t staging_max_bytes)
{
    img->staging_max = staging_max_bytes;
}

uint64_t rp_image_epoch(const struct rp_image *img)
{
    return img->epoch;
}

const struct rp_epoch_header *rp_image_header(const struct rp_image *img)
{
    return &img->header;
}

const struct rp_epoch_trailer *rp_image_trailer(const struct rp_image *img)
{
    return &img->trailer;
}

const struct rp_sections *rp_image_sections(const struct rp_image *img)
{
    return &img->sections;
}

const struct rp_digest *rp_image_digest(const struct rp_image *img)
{
    return &img->digest;
}

const struct rp_digest *rp_image_pages(const struct rp_image *img, const uint8_t vm_id[16])
{
    bool any = img->have_ram && !rp_hash_is_zero(img->digest.sum) && !img->doubtful;
    return any && memcmp(img->header.vm_id, vm_id, sizeof(img->header.vm_id)) == 0 ? &img->digest : NULL;
}

uint64_t rp_image_staged_bytes(const struct rp_image *img)
{
    return img->staging.bytes;
}
