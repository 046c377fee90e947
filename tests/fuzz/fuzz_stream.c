/*
 * The stream and the image. The input is a stream whose seals are mended first (magic, sequences, checksums, and what an
 * epoch's end claims when the first byte says so), so that what is left are the checks of meaning. Whatever comes: the image holds a
 * whole epoch or nothing, its digest is that of its RAM, and a refusal has a reason (INV-2, INV-4).
 */
#include "core/image.c"     /* its insides, to mend what an epoch's end claims */
#include "tests/fuzz/fuzz.h"
#include "tools/state_tables.h"

#include <sys/mman.h>

#define FRAMES_MAX 64u
#define STAGING_MAX (32u * RP_PAGE_SIZE)

struct target {
    uint8_t *base;
    struct rp_ram_view ram;
    struct rp_image *image;
};

static struct target here;  /* RAM is made once: libFuzzer runs one input at a time */

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    here.base = mmap(NULL, FRAMES_MAX * RP_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return here.base == MAP_FAILED ? -1 : 0;
}

static int give_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    struct target *x = ctx;
    if (h->gfn_end > FRAMES_MAX)
        return rp_error_exit(err, RP_EXIT_REFUSED, ENOMEM, "more memory than there is");
    struct rp_ram_view v = {.base = x->base, .gfn_end = h->gfn_end, .nregions = h->nregions};
    for (uint32_t i = 0; i < h->nregions; i++) {
        v.regions[i] = h->regions[i];
        v.pages += h->regions[i].pages;
    }
    x->ram = v;
    *out = v;
    return 0;
}

static int on_disk(void *ctx, const struct rp_epoch_header *h, const struct rp_record *r, struct rp_error *err)
{
    (void)ctx, (void)h;
    return rp_disk_walk(r, NULL, NULL, err);
}

static int on_commit(void *ctx, const struct rp_epoch_header *h, struct rp_error *err)
{
    (void)ctx, (void)h, (void)err;
    return 0;
}

static void on_drop(void *ctx)
{
    (void)ctx;
}

/* Each section of an applied epoch through its table: decoded, printed, encoded, compared. */
static void sections(const struct rp_sections *all)
{
    struct rp_section s;
    for (size_t pos = 0; rp_sections_next(all, &pos, &s);) {
        const struct rp_state_table *table = rp_state_table_find(s.name);
        struct rp_error err = {0};
        struct rp_buf b = {0};
        void *state = table ? calloc(1, table->size) : NULL;
        if (!state)
            continue;
        if (rp_section_decode(table, &s, state, &err) < 0) {
            FZ_HOLDS(err.text[0]);
        } else {
            void *again = calloc(1, table->size);
            rp_state_encode(table, state, &b);
            FZ_HOLDS(again && !b.failed && rp_state_decode(table, again, b.data, b.len, &err) == 0);
            FZ_HOLDS(rp_state_diff(table, state, again, NULL, 0) == 0);
            FILE *null = fopen("/dev/null", "w");
            rp_state_print(table, state, null, 0);
            rp_state_json(table, state, null);
            fclose(null);
            free(again);
        }
        rp_buf_fini(&b);
        free(state);
    }
}

/* A restore that failed leaves zeroes; a standby keeps the pages that have come, and knows them. */
static void must_hold(const struct target *x, enum rp_image_mode mode)
{
    if (!x->ram.base)
        return;
    struct rp_hash128 is = rp_digest_of(&x->ram), says = rp_image_digest(x->image)->sum;
    FZ_HOLDS(is.lo == says.lo && is.hi == says.hi);
    FZ_HOLDS(rp_image_staged_bytes(x->image) == 0);
    if (rp_image_epoch(x->image) == 0)
        FZ_HOLDS(rp_image_sections(x->image)->count == 0 && (mode == RP_IMAGE_STAGED || (is.lo == 0 && is.hi == 0)));
}

/* Makes the EPOCH_END claim what came: number, counts, digest. */
static void mend_end(uint8_t *rec, size_t whole)
{
    struct rp_image *img = here.image;
    struct rp_record r = {.type = RP_REC_EPOCH_END, .len = (uint32_t)(whole - RP_RECORD_HEADER), .payload = rec + RP_RECORD_HEADER};
    struct rp_epoch_trailer e;
    struct rp_buf b = {0};
    if (rp_get_epoch_end(&r, &e, NULL) < 0 || (img->phase != PHASE_DIRECT && img->phase != PHASE_STAGING))
        return;
    struct rp_hash128 sum = img->phase == PHASE_DIRECT ? img->digest.sum : rp_staging_digest(&img->staging);
    e.number = img->next_header.number;
    e.ram_records = img->records;
    e.ram_pages = img->entries;
    e.sections = img->next_sections.count;
    e.disk_bytes = img->disk_bytes;
    e.digest_lo = sum.lo;
    e.digest_hi = sum.hi;
    rp_state_encode(&rp_epoch_trailer_table, &e, &b);
    if (b.len == r.len)
        memcpy(rec + RP_RECORD_HEADER, b.data, b.len);
    rp_buf_fini(&b);
}

/* Mends the record at p and returns its length; 0 when what is left is none. */
static size_t mend(uint8_t *p, size_t left, uint64_t seq, bool end)
{
    if (left < RP_RECORD_HEADER)
        return 0;
    rp_st16(p, RP_RECORD_MAGIC);
    uint64_t whole = RP_RECORD_HEADER + (uint64_t)rp_ld32(p + 4);
    if (whole > left)
        return 0;
    if (end && p[2] == RP_REC_EPOCH_END)
        mend_end(p, (size_t)whole);
    struct rp_buf b = {.data = p, .len = (size_t)whole, .cap = (size_t)whole};
    return rp_record_seal(&b, 0, seq) == 0 ? (size_t)whole : 0;
}

static void run(uint8_t *p, size_t size, enum rp_image_mode mode, bool end)
{
    struct rp_image_ops ops = {.ctx = &here, .ram = give_ram, .disk = on_disk, .disk_commit = on_commit, .disk_drop = on_drop};
    uint64_t offset = 0, seq = 0;
    size_t whole;
    FZ_HOLDS(rp_image_create(mode, &ops, STAGING_MAX, &here.image, NULL) == 0);
    while ((whole = mend(p + offset, size - offset, seq, end))) {
        struct rp_record r = {.offset = offset};
        struct rp_error err = {0};
        int rc = rp_record_check(p + offset, p + offset + RP_RECORD_HEADER, seq, &r, &err);
        if (rc == 0)
            rc = rp_image_feed(here.image, &r, &err);
        FZ_HOLDS(rc >= 0 || err.text[0]);
        if (rc == 1) {
            must_hold(&here, mode);
            sections(rp_image_sections(here.image));
        }
        if (rc < 0)
            break;
        offset += whole;
        seq++;
    }
    rp_image_drop(here.image);
    must_hold(&here, mode);
    rp_image_destroy(here.image);
    if (here.ram.base)
        memset(here.base, 0, here.ram.gfn_end * RP_PAGE_SIZE);
    here.ram = (struct rp_ram_view){0};
}

/* The bytes as they are, through the reader: what a socket or a file would give. */
struct memory { const uint8_t *p; size_t left, step; };

static ssize_t read_memory(void *ctx, void *buf, size_t len)
{
    struct memory *m = ctx;
    size_t n = len < m->left ? len : m->left;
    n = n > m->step ? m->step : n;
    memcpy(buf, m->p, n);
    m->p += n;
    m->left -= n;
    return (ssize_t)n;
}

static void read_raw(const uint8_t *p, size_t size, size_t step)
{
    struct memory m = {p, size, step};
    struct rp_stream_reader *reader;
    struct rp_record r;
    struct rp_error err = {0};
    int rc;
    FZ_HOLDS(rp_stream_reader_create_fn(read_memory, &m, &reader, NULL) == 0);
    while ((rc = rp_stream_next(reader, &r, &err)) > 0)
        continue;
    FZ_HOLDS(rc == 0 || err.text[0]);
    rp_stream_reader_destroy(reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    uint8_t how = data[0];
    uint8_t *copy = malloc(size);
    memcpy(copy, data + 1, size - 1);
    if ((how & 3) == 3)
        read_raw(copy, size - 1, 1 + (how >> 2) * 7u);
    else
        run(copy, size - 1, how & 1 ? RP_IMAGE_DIRECT : RP_IMAGE_STAGED, (how & 2) != 0);
    free(copy);
    return 0;
}
