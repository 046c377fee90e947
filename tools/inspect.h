/*
 * inspect.h - what an epoch stream holds, counted epoch by epoch while it is verified the way a restore would.
 *
 * Each record goes to an image (core/image.h) whose RAM is memory of this process: digests, counts and order are checked
 * by the code that a standby and a restore use. It costs as much memory as the guest had pages that were not zero.
 * Thread: one.
 */
#ifndef RP_TOOLS_INSPECT_H
#define RP_TOOLS_INSPECT_H

#include "core/image.h"

#define RP_INSPECT_DISKS_MAX 32u
#define RP_INSPECT_PAGES_MAX (1ull << 28)   /* 1 TiB of guest memory */

struct rp_inspect_codec { uint64_t entries, pages, bytes; };    /* bytes: of payload */
struct rp_inspect_disk {
    uint32_t disk;
    struct { uint64_t entries, bytes; } kind[RP_DISK_KIND_SYNC + 1];     /* by enum rp_disk_kind */
};

struct rp_inspect_epoch {
    struct rp_epoch_header header;
    struct rp_epoch_trailer trailer;    /* zeroes until `verified` */
    uint64_t offset, bytes;             /* where in the stream, and how long */
    struct rp_inspect_codec codec[RP_CODEC_COUNT];
    uint64_t distinct_pages, ram_records, disk_records, journal_records, other_records;
    uint32_t passes;                    /* the highest + 1 */
    struct rp_inspect_disk disks[RP_INSPECT_DISKS_MAX];
    uint32_t ndisks;
    struct rp_sections sections;        /* those that this epoch brings */
    bool verified;                      /* whole, its digest is that of the image with it applied; false: the stream broke in it */
};

struct rp_inspect_ops {
    void *ctx;
    /* Each may be NULL. Non-zero from epoch stops the walk and is returned. */
    void (*begin)(void *ctx, uint32_t version, const char *producer);
    void (*record)(void *ctx, const struct rp_record *r);
    int (*epoch)(void *ctx, const struct rp_inspect_epoch *e);
};

struct rp_inspect;
int rp_inspect_create(const struct rp_inspect_ops *ops, struct rp_inspect **out, struct rp_error *err) RP_MUST_CHECK;
void rp_inspect_destroy(struct rp_inspect *in);
/* Walks the stream in `fd` (borrowed) to its end. 0: whole and verified; -EBADMSG, RP_EXIT_DAMAGED: place and reason; the
 * epoch that broke was told with verified = false. */
int rp_inspect_walk(struct rp_inspect *in, int fd, struct rp_error *err) RP_MUST_CHECK;
/* The image as of the last verified epoch, and its RAM. */
const struct rp_image *rp_inspect_image(const struct rp_inspect *in);
const struct rp_ram_view *rp_inspect_ram(const struct rp_inspect *in);
/* Of the stream so far. */
uint64_t rp_inspect_bytes(const struct rp_inspect *in);
uint64_t rp_inspect_records(const struct rp_inspect *in);
uint64_t rp_inspect_epochs(const struct rp_inspect *in);

/* --- the command's parts --- */

/* FILE, FILE@EPOCH, file:FILE, - for standard input. */
struct rp_inspect_where {
    const char *path;
    uint64_t epoch;             /* 0: the newest */
};
/* Cuts `operand` in place. */
int rp_inspect_where(char *operand, struct rp_inspect_where *out, struct rp_error *err) RP_MUST_CHECK;
int rp_inspect_open(const struct rp_inspect_where *w, int *fd, struct rp_error *err) RP_MUST_CHECK;

struct rp_inspect_show {
    bool json, brief, records;
    uint64_t only_epoch;        /* 0: all */
};
/* Prints the stream; damaged data: what could be read is printed, then the error is returned. */
int rp_inspect_print(int fd, const struct rp_inspect_show *show, FILE *out, struct rp_error *err) RP_MUST_CHECK;
/* Two epochs against each other; of `show`: json, and brief, which leaves the fields of the devices at their number. *differ: how many
 * fields, sections and pages. */
int rp_inspect_diff(const struct rp_inspect_where *a, const struct rp_inspect_where *b, const struct rp_inspect_show *show, FILE *out,
                    uint64_t *differ, struct rp_error *err) RP_MUST_CHECK;

#endif
