/* The receiver's image: whole epochs or nothing (INV-2), bounded (INV-5), and which of two copies of a page counts. */
#include "core/fault.h"
#include "tests/unit/stream_builder.h"

#include <criterion/criterion.h>
#include <unistd.h>

/* Feeds what was built since `*from` into t, as one link would. */
static int feed_new(struct sb *s, struct sb_target *t, size_t *from, struct rp_error *err)
{
    int rc = 0;
    while (*from < s->b.len) {
        const uint8_t *hdr = s->b.data + *from;
        struct rp_record r = {.offset = *from};
        rc = rp_record_check(hdr, hdr + RP_RECORD_HEADER, rp_ld64(hdr + 8), &r, err);
        cr_assert_eq(rc, 0);
        *from += RP_RECORD_HEADER + (size_t)r.len;
        rc = rp_image_feed(t->image, &r, err);
        if (rc < 0)
            return rc;
        t->epochs += rc == 1;
    }
    return rc;
}

struct pair { struct sb s; struct sb_target t; size_t from; struct rp_error err; };

/* A pair that holds epoch 1: page 0 noise, page 1 text, sections a/0 and b/0. */
static void start(struct pair *p, enum rp_image_mode mode, uint64_t staging_max)
{
    *p = (struct pair){0};
    sb_init(&p->s);
    sb_target_init(&p->t, mode, staging_max);
    sb_begin(&p->s);
    sb_epoch(&p->s, 1, 0);
    sb_ram_open(&p->s, 0);
    sb_noise(rp_ram_page(&p->s.ram, 0), 0, 0);
    sb_text(rp_ram_page(&p->s.ram, 1), 1, 0);
    sb_raw(&p->s, 0, 2);
    sb_ram_close(&p->s);
    sb_section(&p->s, "a", 0, "a1");
    sb_section(&p->s, "b", 0, "b1");
    sb_epoch_end(&p->s);
    cr_assert_eq(feed_new(&p->s, &p->t, &p->from, &p->err), 1, "%s", p->err.text);
}

static void same(struct pair *p, uint64_t epoch)
{
    cr_assert_eq(rp_image_epoch(p->t.image), epoch);
    cr_assert_eq(memcmp(p->s.ram.base, p->t.ram.base, SB_BYTES), 0, "the image is not the source");
}

static void refused(struct pair *p, int code, const char *why)
{
    cr_assert_eq(feed_new(&p->s, &p->t, &p->from, &p->err), code, "expected \"%s\", got \"%s\"", why, p->err.text);
    cr_assert(strstr(p->err.text, why), "expected \"%s\", got \"%s\"", why, p->err.text);
    p->from = p->s.b.len;
}

static void finish(struct pair *p)
{
    sb_target_fini(&p->t);
    sb_fini(&p->s);
}

static const char *section(struct pair *p, const char *name)
{
    struct rp_section sec;
    static char text[16];
    if (!rp_sections_find(rp_image_sections(p->t.image), name, 0, &sec))
        return "-";
    snprintf(text, sizeof(text), "%.*s", (int)sec.len, (const char *)sec.bytes);
    return text;
}

Test(image, INV2_nothing_changes_before_the_end_of_an_epoch)
{
    struct pair p;
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    uint8_t *before = sb_pages();
    memcpy(before, p.s.ram.base, SB_BYTES);
    sb_epoch(&p.s, 2, 1);
    sb_ram_open(&p.s, 0);
    sb_noise(rp_ram_page(&p.s.ram, 0), 0, 9);
    sb_raw(&p.s, 0, 1);
    sb_ram_close(&p.s);
    sb_section(&p.s, "a", 0, "a2");
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 0);
    cr_assert_eq(memcmp(before, p.t.ram.base, SB_BYTES), 0);
    cr_assert_str_eq(section(&p, "a"), "a1");
    cr_assert_eq(rp_image_staged_bytes(p.t.image), RP_PAGE_SIZE);
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    same(&p, 2);
    cr_assert_str_eq(section(&p, "a"), "a2");
    cr_assert_str_eq(section(&p, "b"), "b1", "what the epoch did not bring is the parent's");
    munmap(before, SB_BYTES);
    finish(&p);
}

Test(image, INV2_a_dropped_epoch_leaves_the_parent_and_the_chain_goes_on)
{
    struct pair p;
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    uint8_t *before = sb_pages();
    memcpy(before, p.s.ram.base, SB_BYTES);
    sb_epoch(&p.s, 2, 1);
    sb_ram_open(&p.s, 0);
    sb_zero(&p.s, 0, 1);
    sb_ram_close(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 0);
    rp_image_drop(p.t.image);
    rp_image_drop(p.t.image);
    cr_assert_eq(rp_image_epoch(p.t.image), 1);
    cr_assert_eq(memcmp(before, p.t.ram.base, SB_BYTES), 0);
    sb_begin(&p.s);         /* a new link begins again */
    sb_epoch(&p.s, 3, 1);
    sb_ram_open(&p.s, 0);
    sb_zero(&p.s, 0, 1);
    sb_ram_close(&p.s);
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    same(&p, 3);
    munmap(before, SB_BYTES);
    finish(&p);
}

/* The highest pass wins, whatever the order of arrival; a delta is always against the parent epoch. */
static void pass_order(enum rp_image_mode mode, bool swapped)
{
    struct pair p;
    start(&p, mode, 1 << 20);
    uint8_t parent[RP_PAGE_SIZE], second[RP_PAGE_SIZE];
    memcpy(parent, rp_ram_page(&p.s.ram, 0), RP_PAGE_SIZE);
    memcpy(second, parent, RP_PAGE_SIZE);
    memset(second + 500, 0xee, 10);
    sb_epoch(&p.s, 2, 1);
    for (unsigned k = 0; k < 2; k++) {
        bool last = (k == 1) != swapped;
        sb_ram_open(&p.s, last ? 7 : 3);
        if (last) {
            memcpy(rp_ram_page(&p.s.ram, 0), second, RP_PAGE_SIZE);
            sb_delta(&p.s, 0, parent);
        } else {
            sb_noise(rp_ram_page(&p.s.ram, 0), 0, 77);
            sb_raw(&p.s, 0, 1);
        }
        sb_ram_close(&p.s);
    }
    memcpy(rp_ram_page(&p.s.ram, 0), second, RP_PAGE_SIZE);
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    same(&p, 2);
    finish(&p);
}

Test(image, pass_order_staged) { pass_order(RP_IMAGE_STAGED, false); }
Test(image, pass_order_staged_overtaken) { pass_order(RP_IMAGE_STAGED, true); }
Test(image, pass_order_direct) { pass_order(RP_IMAGE_DIRECT, false); }
Test(image, pass_order_direct_overtaken) { pass_order(RP_IMAGE_DIRECT, true); }

Test(image, pass_order_in_a_full_epoch)
{
    struct pair p;
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    sb_epoch(&p.s, 2, 0);
    sb_ram_open(&p.s, RP_RAM_PASS_MAX);
    memset(rp_ram_page(&p.s.ram, 0), 0, 2 * RP_PAGE_SIZE);
    sb_text(rp_ram_page(&p.s.ram, 5), 5, 1);
    sb_lz4(&p.s, 5);
    sb_ram_close(&p.s);
    sb_ram_open(&p.s, 0);
    sb_entry(&p.s, 5, RP_CODEC_ZERO, 1, NULL, 0);       /* overtaken: does not count */
    sb_ram_close(&p.s);
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    same(&p, 2);
    cr_assert_str_eq(section(&p, "a"), "-", "a full epoch inherits nothing");
    finish(&p);
}

Test(image, a_delta_in_a_full_epoch_is_refused)
{
    struct pair p;
    start(&p, RP_IMAGE_DIRECT, 0);
    sb_epoch(&p.s, 2, 0);
    sb_ram_open(&p.s, 0);
    sb_entry(&p.s, 0, RP_CODEC_DELTA, 2, "\0\0", 2);
    sb_ram_close(&p.s);
    refused(&p, -EBADMSG, "has no parent");
    memset(p.s.ram.base, 0, SB_BYTES);
    same(&p, 0);                                        /* of a restore, EMPTY means zeroes */
    sb_epoch(&p.s, 3, 0);
    sb_ram_open(&p.s, 0);
    sb_text(rp_ram_page(&p.s.ram, 30), 1, 1);
    sb_lz4(&p.s, 30);
    sb_ram_close(&p.s);
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    same(&p, 3);
    finish(&p);
}

Test(image, INV5_staging_is_bounded)
{
    struct pair p;
    start(&p, RP_IMAGE_STAGED, 4 * RP_PAGE_SIZE);
    sb_epoch(&p.s, 2, 1);
    sb_ram_open(&p.s, 0);
    sb_raw(&p.s, 2, 4);
    sb_raw(&p.s, 2, 4);         /* the same pages again cost nothing more */
    sb_ram_close(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 0, "%s", p.err.text);
    sb_ram_open(&p.s, 1);
    sb_raw(&p.s, 8, 1);
    sb_ram_close(&p.s);
    refused(&p, -ENOBUFS, "epoch 2 is larger than the staging memory");
    cr_assert_eq(rp_image_epoch(p.t.image), 1);
    cr_assert_eq(rp_image_staged_bytes(p.t.image), 0);
    finish(&p);
    start(&p, RP_IMAGE_DIRECT, 0);
    sb_epoch(&p.s, 2, 1);
    sb_ram_open(&p.s, 0);
    sb_raw(&p.s, 2, 4);
    sb_ram_close(&p.s);
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "a restore takes any size: %s", p.err.text);
    finish(&p);
}

Test(image, headers_that_do_not_belong)
{
    struct pair p;
    struct rp_epoch_header h = sb_header(2, 1);
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    sb_epoch(&p.s, 5, 4);
    refused(&p, -EBADMSG, "epoch 5 has parent 4, but the image holds 1");
    h.vm_id[3] ^= 1;
    sb_epoch_with(&p.s, &h);
    refused(&p, -EBADMSG, "another VM");
    h = sb_header(2, 1);
    h.regions[1] = (struct rp_ram_region){16, 24};
    sb_epoch_with(&p.s, &h);
    refused(&p, -EBADMSG, "another RAM layout");
    same(&p, 1);
    finish(&p);
}

Test(image, a_layout_that_the_owner_refuses)
{
    struct sb s;
    struct sb_target t;
    struct rp_error err = {0};
    sb_init(&s);
    sb_target_init(&t, RP_IMAGE_STAGED, 1 << 20);
    struct rp_epoch_header h = sb_header(1, 0);
    h.regions[0].pages = 15;
    sb_begin(&s);
    sb_epoch_with(&s, &h);
    cr_assert_eq(sb_feed(&t, s.b.data, s.b.len, &err), -EINVAL);
    cr_assert_null(t.ram.base);
    size_t from = s.b.len;
    sb_epoch(&s, 1, 0);
    sb_epoch_end(&s);
    cr_assert_eq(feed_new(&s, &t, &from, &err), 1, "the image is alive and empty: %s", err.text);
    sb_target_fini(&t);
    sb_fini(&s);
}

Test(image, counts_that_do_not_agree)
{
    for (int k = 0; k < 6; k++) {
        struct pair p;
        start(&p, RP_IMAGE_STAGED, 1 << 20);
        sb_epoch(&p.s, 2, 1);
        sb_ram_open(&p.s, 0);
        sb_zero(&p.s, 0, 1);
        sb_ram_close(&p.s);
        sb_section(&p.s, "a", 0, "a2");
        p.s.trailer.ram_records += k == 0;
        p.s.trailer.ram_pages += k == 1;
        p.s.trailer.sections += k == 2;
        p.s.trailer.disk_bytes += k == 3;
        p.s.trailer.number += k == 4;
        if (k == 5)
            rp_ram_page(&p.s.ram, 9)[5] = 1;            /* the source is not what it sent */
        sb_epoch_end(&p.s);
        refused(&p, -EBADMSG, k < 4 ? "records of the epoch are missing" : k == 4 ? "the end of another epoch" : "RAM digest differs");
        cr_assert_eq(rp_image_epoch(p.t.image), 1);
        cr_assert_eq(rp_page_is_zero(rp_ram_page(&p.t.ram, 0)), false, "nothing was applied");
        finish(&p);
    }
}

Test(image, the_same_section_twice)
{
    struct pair p;
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    sb_epoch(&p.s, 2, 1);
    sb_section(&p.s, "a", 0, "x");
    sb_section(&p.s, "a", 0, "y");
    refused(&p, -EBADMSG, "same section comes twice");
    same(&p, 1);
    finish(&p);
}

Test(image, INV4_sections_are_bounded)
{
    struct pair p;
    char name[24];
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    sb_epoch(&p.s, 2, 1);
    for (unsigned i = 0; i <= RP_SECTIONS_MAX; i++) {
        snprintf(name, sizeof(name), "s%u", i);
        sb_section(&p.s, name, 0, "x");
    }
    refused(&p, -EBADMSG, "more sections than an epoch may have");
    finish(&p);
}

/* What an epoch takes over from its parent is the epoch's, too: a chain that brings others each time does not pile them up. */
Test(image, INV4_sections_that_are_inherited_are_bounded)
{
    struct pair p;
    char name[24];
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    for (unsigned epoch = 2; epoch <= 3; epoch++) {
        sb_epoch(&p.s, epoch, epoch - 1);
        for (unsigned i = 0; i < RP_SECTIONS_MAX - 100; i++) {
            snprintf(name, sizeof(name), "s%u-%u", epoch, i);
            sb_section(&p.s, name, 0, "x");
        }
        sb_epoch_end(&p.s);
        if (epoch == 2)
            cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    }
    refused(&p, -EBADMSG, "more sections than an epoch may have");
    same(&p, 2);
    cr_assert_leq(rp_image_sections(p.t.image)->count, RP_SECTIONS_MAX);
    finish(&p);
}

Test(image, disk_writes_wait_for_the_verified_epoch)
{
    struct pair p;
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    sb_epoch(&p.s, 2, 1);
    sb_disk(&p.s, 0, 4096, "hello");
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 0, "%s", p.err.text);
    cr_assert_eq(p.t.disk_staged, 1);
    cr_assert_eq(p.t.disk_records, 0);
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    cr_assert_eq(p.t.disk_records, 1);
    sb_epoch(&p.s, 3, 2);
    sb_ram_open(&p.s, 0);
    sb_zero(&p.s, 0, 1);
    sb_ram_close(&p.s);
    sb_disk(&p.s, 0, 4096, "again");
    sb_epoch_end(&p.s);
    p.t.disk_rc = -ENOSPC;
    refused(&p, -ENOSPC, "disk is full");
    cr_assert_eq(rp_image_epoch(p.t.image), 2);
    cr_assert_eq(p.t.disk_records, 1);
    cr_assert_eq(p.t.disk_staged, 0, "a refused epoch's writes are thrown away");
    cr_assert_eq(rp_page_is_zero(rp_ram_page(&p.t.ram, 0)), false, "RAM stays with the epoch that the disks hold");
    sb_epoch(&p.s, 3, 2);
    sb_record(&p.s, RP_REC_DISK, 0, "\0\0\0\0\1\0\0\0", 8);
    refused(&p, -EBADMSG, "disk entries are cut short");
    finish(&p);
}

Test(image, INV2_fault_image_apply)
{
    struct pair p;
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    sb_epoch(&p.s, 2, 1);
    sb_disk(&p.s, 0, 4096, "hello");
    sb_epoch_end(&p.s);
    setenv("RP_FAULT", "image-apply:1", 1);
    rp_fault_reload();
    refused(&p, -EIO, "applying epoch 2: fault point");
    cr_assert_eq(p.t.disk_records, 0);
    cr_assert_eq(p.t.disk_staged, 0);
    same(&p, 1);
    finish(&p);
}

/* Many small epochs: what an epoch costs must not grow with what came before, and memory comes back. */
Test(image, thousands_of_epochs)
{
    struct pair p;
    unsigned seed = (unsigned)getpid();
    printf("seed %u\n", seed);
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    for (uint64_t n = 2; n < 3000; n++) {
        rp_buf_reset(&p.s.b);
        p.from = 0;
        sb_epoch(&p.s, n, n - 1);
        uint8_t old[RP_PAGE_SIZE];
        sb_ram_open(&p.s, 0);
        for (int k = 0; k < 3; k++) {
            uint64_t g = (uint64_t)(rand_r(&seed) % 5 + k * 5);
            memcpy(old, rp_ram_page(&p.s.ram, g), RP_PAGE_SIZE);
            memset(rp_ram_page(&p.s.ram, g) + rand_r(&seed) % 4000, rand_r(&seed), 64);
            sb_delta(&p.s, g, old);
        }
        sb_ram_close(&p.s);
        sb_epoch_end(&p.s);
        cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    }
    same(&p, 2999);
    finish(&p);
}

/* --- a resync: a full epoch that starts from the pages that are there --- */

static void resync_epoch(struct pair *p, uint64_t number)
{
    struct rp_epoch_header h = sb_header(number, 0);
    h.flags |= RP_EPOCH_RESYNC;
    sb_epoch_with(&p->s, &h);
}

/* Frames 2 to 2 + n change, frame 0 becomes zeroes; frame 1 stays and is not named. */
static void resync_pages(struct pair *p, unsigned n)
{
    sb_ram_open(&p->s, 0);
    sb_zero(&p->s, 0, 1);
    for (unsigned i = 2; i < 2 + n; i++) {
        sb_noise(rp_ram_page(&p->s.ram, i), i, 77);
        sb_raw(&p->s, i, 1);
    }
    sb_ram_close(&p->s);
}

static const struct rp_digest *pages_held(struct pair *p)
{
    return rp_image_pages(p->t.image, sb_header(1, 0).vm_id);
}

Test(image, INV2_a_resync_is_staged_while_it_fits)
{
    struct pair p;
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    uint8_t *before = sb_pages();
    memcpy(before, p.t.ram.base, SB_BYTES);
    for (unsigned round = 0; round < 2; round++) {
        resync_epoch(&p, 7);
        resync_pages(&p, 3);
        cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 0, "%s", p.err.text);
        cr_assert_eq(rp_image_epoch(p.t.image), 1u, "what was held is held until the resync is whole");
        cr_assert_eq(memcmp(before, p.t.ram.base, SB_BYTES), 0);
        cr_assert_str_eq(section(&p, "a"), "a1");
        if (round == 0)
            rp_image_drop(p.t.image);
    }
    sb_section(&p.s, "b", 0, "b7");
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    same(&p, 7);
    cr_assert_str_eq(section(&p, "a"), "-", "it inherits no section");
    cr_assert_eq(rp_page_is_zero(rp_ram_page(&p.t.ram, 1)), false);
    munmap(before, SB_BYTES);
    finish(&p);
}

/* From the page on that does not fit it goes on in RAM: the epoch is lost, its pages are not, and the next resync builds upon them. */
Test(image, a_resync_that_does_not_fit_goes_on_in_RAM)
{
    struct pair p;
    start(&p, RP_IMAGE_STAGED, 3 * RP_PAGE_SIZE);
    resync_epoch(&p, 7);
    resync_pages(&p, 6);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 0, "%s", p.err.text);
    cr_assert_eq(rp_image_epoch(p.t.image), 0u);
    sb_ram_open(&p.s, 1);                               /* a page that was staged, again */
    sb_text(rp_ram_page(&p.s.ram, 2), 2, 5);
    sb_lz4(&p.s, 2);
    sb_ram_close(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 0, "%s", p.err.text);
    rp_image_drop(p.t.image);                           /* the link breaks */
    cr_assert_eq(memcmp(p.s.ram.base, p.t.ram.base, SB_BYTES), 0, "what has come is kept");
    const struct rp_digest *d = pages_held(&p);
    struct rp_hash128 is = rp_digest_of(&p.t.ram);
    cr_assert(d && d->sum.lo == is.lo && d->sum.hi == is.hi, "and known");
    resync_epoch(&p, 8);
    sb_ram_open(&p.s, 0);
    sb_zero(&p.s, 3, 1);
    sb_ram_close(&p.s);
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    same(&p, 8);
    finish(&p);
}

/* A full epoch that breaks off is no epoch, but its pages are there for a resync; a full epoch forgets them. */
Test(image, what_is_left_of_a_full_epoch_is_a_base)
{
    struct pair p;
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    for (unsigned round = 0; round < 2; round++) {
        memset(p.s.ram.base, 0, SB_BYTES);
        sb_epoch(&p.s, 2 + round, 0);
        resync_pages(&p, 2);
        cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 0, "%s", p.err.text);
        if (round == 0)
            rp_image_drop(p.t.image);
    }
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    same(&p, 3);
    finish(&p);
}

static void resync_refused(unsigned number, uint8_t codec, const char *why)
{
    struct pair p;
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    resync_epoch(&p, number);
    sb_ram_open(&p.s, 0);
    if (codec == RP_CODEC_DELTA)
        sb_entry(&p.s, 0, RP_CODEC_DELTA, 2, "\0\0", 2);
    else
        sb_raw(&p.s, 0, 1);
    sb_ram_close(&p.s);
    rp_ram_page(&p.s.ram, 9)[0] ^= 1;                   /* the receiver does not hold what it said */
    sb_epoch_end(&p.s);
    refused(&p, -EBADMSG, why);
    cr_assert_eq(rp_image_epoch(p.t.image), 1u, "INV-2");
    cr_assert_eq(pages_held(&p) == NULL, codec != RP_CODEC_DELTA, "a base that was shown to be wrong is none");
    uint8_t *rotten = rp_ram_page(&p.t.ram, 12);
    rotten[5] = 1;                                      /* a page that nobody knows to be other than zeroes */
    memset(p.s.ram.base, 0, SB_BYTES);
    sb_epoch(&p.s, number + 1, 0);
    resync_pages(&p, 1);
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    if (codec != RP_CODEC_DELTA)
        same(&p, number + 1);
    finish(&p);
}

Test(image, INV2_a_resync_upon_what_is_not_there_is_refused) { resync_refused(7, RP_CODEC_RAW, "the RAM digest differs"); }
Test(image, a_delta_in_a_resync_is_refused) { resync_refused(7, RP_CODEC_DELTA, "has no parent"); }

Test(image, a_resync_needs_something_to_start_from)
{
    struct pair p = {0};
    sb_init(&p.s);
    sb_target_init(&p.t, RP_IMAGE_STAGED, 1 << 20);
    sb_begin(&p.s);
    resync_epoch(&p, 7);
    refused(&p, -EBADMSG, "nothing is held here");
    cr_assert_null(p.t.ram.base, "no memory was spent on it");
    finish(&p);
}

Test(image, of_another_VM_nothing_is_held)
{
    struct pair p;
    uint8_t other[16] = {9};
    start(&p, RP_IMAGE_STAGED, 1 << 20);
    cr_assert_null(rp_image_pages(p.t.image, other));
    cr_assert_not_null(pages_held(&p));
    finish(&p);
}

/* Memory that a machine left behind: known page by page, of no epoch. */
Test(image, RAM_that_is_there_already_is_a_base)
{
    struct pair p = {0};
    struct rp_error err = {0};
    sb_init(&p.s);
    sb_target_init(&p.t, RP_IMAGE_STAGED, 1 << 20);
    sb_view(&p.t.ram);
    sb_noise(rp_ram_page(&p.t.ram, 1), 1, 3);
    sb_noise(rp_ram_page(&p.t.ram, 30), 30, 3);
    struct rp_pageset held;
    sb_check(rp_pageset_init(&held, p.t.ram.gfn_end));
    rp_pageset_fill(&held, &p.t.ram);
    cr_assert_eq(rp_image_adopt(p.t.image, &p.t.ram, &held, sb_header(1, 0).vm_id, &err), 0, "%s", err.text);
    rp_pageset_fini(&held);
    cr_assert_eq(rp_image_epoch(p.t.image), 0u);
    const struct rp_digest *d = pages_held(&p);
    struct rp_hash128 is = rp_digest_of(&p.t.ram);
    cr_assert(d && d->sum.lo == is.lo && d->sum.hi == is.hi);
    memcpy(p.s.ram.base, p.t.ram.base, SB_BYTES);
    sb_begin(&p.s);
    resync_epoch(&p, 9);
    sb_ram_open(&p.s, 0);
    sb_zero(&p.s, 30, 1);
    sb_ram_close(&p.s);
    sb_epoch_end(&p.s);
    cr_assert_eq(feed_new(&p.s, &p.t, &p.from, &p.err), 1, "%s", p.err.text);
    same(&p, 9);
    finish(&p);
}
