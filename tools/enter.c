#include "tools/enter.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>


struct rp_entry {
    struct rp_ram_config how;
    struct rp_guest_ram ram;    /* view.base NULL: not made yet, or a machine's */
    struct rp_image *image;
    struct rp_entry_disks disks;
};

static bool same_layout(const struct rp_ram_view *ram, const struct rp_epoch_header *h)
{
    bool same = h->nregions == ram->nregions && h->gfn_end == ram->gfn_end;
    for (uint32_t i = 0; same && i < ram->nregions; i++)
        same = h->regions[i].gfn == ram->regions[i].gfn && h->regions[i].pages == ram->regions[i].pages;
    return same;
}

/* rp_image_ops.ram: the layout is known (and bounded by the header's validation): make memory of it. */
static int make_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    struct rp_entry *e = ctx;
    uint64_t pages = 0;
    if (e->ram.view.base)
        rp_guest_ram_fini(&e->ram);
    for (uint32_t i = 0; i < h->nregions; i++)
        pages += h->regions[i].pages;
    e->how.size_bytes = pages << RP_PAGE_SHIFT;
    rp_image_bound(e->image, rp_image_staging_bytes(e->how.size_bytes));
    int rc = rp_guest_ram_init(&e->ram, &e->how, err);
    if (rc < 0)
        return rc;
    if (!same_layout(&e->ram.view, h)) {
        rp_guest_ram_fini(&e->ram);
        return rp_error_exit(err, RP_EXIT_DAMAGED, EBADMSG, "guest memory of %llu MiB lies where no machine of ours has it",
                             (unsigned long long)(pages >> 8));
    }
    *out = e->ram.view;
    return 0;
}

static int on_disk(void *ctx, const struct rp_epoch_header *h, const struct rp_record *r, struct rp_error *err)
{
    struct rp_entry *e = ctx;
    return e->disks.disk(e->disks.ctx, h, r, err);
}

static int on_disk_commit(void *ctx, const struct rp_epoch_header *h, struct rp_error *err)
{
    struct rp_entry *e = ctx;
    return e->disks.disk_commit(e->disks.ctx, h, err);
}

static void on_disk_drop(void *ctx)
{
    struct rp_entry *e = ctx;
    e->disks.disk_drop(e->disks.ctx);
}

int rp_entry_create(enum rp_image_mode mode, const struct rp_ram_config *how, const struct rp_entry_disks *disks, struct rp_entry **out,
                    struct rp_error *err)
{
    struct rp_entry *e = calloc(1, sizeof(*e));
    if (!e)
        return rp_error_set(err, ENOMEM, "no memory to enter an epoch");
    e->how = *how;
    e->ram.memfd = -1;
    struct rp_image_ops ops = {.ctx = e, .ram = make_ram};
    if (disks) {
        e->disks = *disks;
        ops.disk = on_disk;
        ops.disk_commit = on_disk_commit;
        ops.disk_drop = on_disk_drop;
    }
    int rc = rp_image_create(mode, &ops, rp_image_staging_bytes(0), &e->image, err);
    if (rc < 0) {
        free(e);
        return rc;
    }
    *out = e;
    return 0;
}

void rp_entry_destroy(struct rp_entry *e)
{
    if (!e)
        return;
    rp_image_destroy(e->image);
    if (e->ram.view.base)
        rp_guest_ram_fini(&e->ram);
    free(e);
}

struct rp_image *rp_entry_image(struct rp_entry *e)
{
    return e->image;
}

int rp_entry_adopt(struct rp_entry *e, struct rp_guest_ram *ram, const uint8_t vm_id[16], struct rp_error *err)
{
    memcpy(&e->ram, ram, sizeof(e->ram));
    *ram = (struct rp_guest_ram){.memfd = -1};
    e->how.size_bytes = e->ram.size_bytes;
    rp_image_bound(e->image, rp_image_staging_bytes(e->how.size_bytes));
    struct rp_pageset held;
    if (rp_pageset_init(&held, e->ram.view.gfn_end) < 0)
        return rp_error_set(err, ENOMEM, "no memory to know what guest memory holds");
    rp_ram_held(&e->ram, &held);
    int rc = rp_image_adopt(e->image, &e->ram.view, &held, vm_id, err);
    rp_pageset_fini(&held);
    return rc;
}

int rp_entry_open(const char *path, int *fd, struct rp_error *err)
{
    struct stat st;
    int opened = open(path, O_RDONLY | O_CLOEXEC);
    if (opened < 0)
        return rp_error_exit(err, errno == EMFILE || errno == EIO ? RP_EXIT_FAILED : RP_EXIT_USAGE, errno, "%s: %s", path, strerror(errno));
    if (fstat(opened, &st) == 0 && S_ISDIR(st.st_mode)) {
        close(opened);
        return rp_error_exit(err, RP_EXIT_USAGE, EISDIR, "%s: is a directory; give the file of a checkpoint", path);
    }
    *fd = opened;
    return 0;
}

int rp_entry_load(struct rp_entry *e, int fd, struct rp_error *err)
{
    struct rp_stream_reader *reader = NULL;
    int rc = rp_stream_reader_create(fd, &reader, err);
    if (rc < 0)
        return rc;
    struct rp_record r;
    while ((rc = rp_stream_next(reader, &r, err)) > 0) {
        rc = rp_image_feed(e->image, &r, err);
        if (rc < 0)
            break;
    }
    rp_stream_reader_destroy(reader);
    if (rc == 0 && rp_image_epoch(e->image) == 0)
        rc = rp_error_exit(err, RP_EXIT_DAMAGED, ENODATA, "the stream holds no epoch");
    return rc;
}

int rp_entry_make(struct rp_entry *e, struct rp_machine_config *cfg, struct rp_events *events, struct rp_machine **out, struct rp_error *err)
{
    const struct rp_epoch_header *h = rp_image_header(e->image);
    if (rp_image_epoch(e->image) == 0)
        return rp_error_exit(err, RP_EXIT_REFUSED, ENODATA, "there is no whole epoch to enter yet");
    int rc = rp_machine_config_from(rp_image_sections(e->image), cfg, err);
    if (rc < 0)
        return rc;
    memcpy(cfg->vm_id, h->vm_id, sizeof(cfg->vm_id));
    if (!cfg->name[0])
        snprintf(cfg->name, sizeof(cfg->name), "%.*s", (int)sizeof(cfg->name) - 1, (const char *)h->vm_name);
    cfg->adopt = &e->ram;
    rc = rp_machine_create(cfg, events, out, err);
    cfg->adopt = NULL;
    return rc;
}

int rp_entry_enter(struct rp_entry *e, struct rp_machine *m, struct rp_events *events, bool moved, struct rp_error *err)
{
    const struct rp_epoch_header *h = rp_image_header(e->image);
    const struct rp_epoch_trailer *t = rp_image_trailer(e->image);
    int rc = rp_machine_enter(m, rp_image_sections(e->image), t, moved, err);
    if (rc < 0)
        return rc;
    rp_events_emit(events, h->number, "ENTERED", "{\"epoch\": %llu, \"term\": %llu, \"cut-seconds\": %llu}", (unsigned long long)h->number,
                   (unsigned long long)h->term, (unsigned long long)(t->wall_ns / 1000000000));
    return 0;
}

int rp_entry_machine(struct rp_entry *e, struct rp_machine_config *cfg, struct rp_events *events, bool moved,
                     struct rp_machine **out, struct rp_error *err)
{
    struct rp_machine *m = NULL;
    int rc = rp_entry_make(e, cfg, events, &m, err);
    if (rc == 0)
        rc = rp_entry_enter(e, m, events, moved, err);
    if (rc < 0 && m)
        rp_machine_destroy(m);
    if (rc == 0)
        *out = m;
    return rc;
}
