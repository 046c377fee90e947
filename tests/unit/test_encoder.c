/*
 * The encoder: what travels as what, what it costs on the wire, codecs that stop paying and come back. Every record is decoded by
 * the real image and compared with what was encoded, so nothing here can pass with a wrong delta.
 */
#include "core/image.h"
#include "core/xxh3.h"
#include "replicator/encoder.h"
#include "replicator/fingerprint.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FRAMES 512u

struct bed {
    struct rp_ram_view now;         /* what the "guest" holds */
    struct rp_ram_view there;       /* what the image made of it */
    struct rp_arena *arena;
    struct rp_digest digest;
    struct rp_encoder *encoder;
    struct rp_image *image;
    uint64_t seed, epoch, wire_bytes, seq, records, entries;
};

static uint64_t rnd(struct bed *b)
{
    b->seed ^= b->seed << 13;
    b->seed ^= b->seed >> 7;
    return b->seed ^= b->seed << 17;
}

static struct rp_ram_view view(void)
{
    struct rp_ram_view v = {.gfn_end = FRAMES, .pages = FRAMES, .nregions = 1, .regions = {{0, FRAMES}}};
    v.base = aligned_alloc(RP_PAGE_SIZE, (size_t)FRAMES * RP_PAGE_SIZE);
    memset(v.base, 0, (size_t)FRAMES * RP_PAGE_SIZE);
    return v;
}

static int image_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    (void)err;
    cr_assert_eq(h->gfn_end, FRAMES);
    *out = ((struct bed *)ctx)->there;
    return 0;
}

static void feed(struct bed *b, struct rp_buf *record)
{
    struct rp_error err = {0};
    struct rp_record r = {0};
    cr_assert_eq(rp_record_seal(record, 0, b->seq), 0);
    cr_assert_eq(rp_record_check(record->data, record->data + RP_RECORD_HEADER, b->seq++, &r, &err), 0, "%s", err.text);
    cr_assert_geq(rp_image_feed(b->image, &r, &err), 0, "%s", err.text);
}

static int emit(void *ctx, struct rp_buf *record, struct rp_error *err)
{
    (void)err;
    struct bed *b = ctx;
    b->wire_bytes += record->len;
    feed(b, record);
    return 0;
}

static void bed_make(struct bed *b, uint32_t slots)
{
    struct rp_buf begin = {0};
    *b = (struct bed){.now = view(), .there = view(), .seed = 88172645463325252ull + (unsigned)getpid()};
    printf("seed %llu\n", (unsigned long long)b->seed);
    struct rp_image_ops ops = {.ctx = b, .ram = image_ram};
    cr_assert_eq(rp_arena_create((uint64_t)slots * RP_PAGE_SIZE, FRAMES, &b->arena, NULL), 0);
    cr_assert_eq(rp_digest_init(&b->digest, FRAMES), 0);
    cr_assert_eq(rp_encoder_create(b->arena, &b->now, &b->digest, 0, &b->encoder, NULL), 0);
    cr_assert_eq(rp_image_create(RP_IMAGE_STAGED, &ops, 64u << 20, &b->image, NULL), 0);
    cr_assert_eq(rp_put_begin(&begin, 0), 0);
    feed(b, &begin);
    rp_buf_fini(&begin);
}

static void bed_free(struct bed *b)
{
    rp_image_destroy(b->image);
    rp_encoder_destroy(b->encoder);
    rp_digest_fini(&b->digest);
    rp_arena_destroy(b->arena);
    free(b->now.base);
    free(b->there.base);
}

/* One epoch with every frame in it, eight at a time, so that a small arena is enough. */
static void epoch(struct bed *b)
{
    struct rp_epoch_header h = {.number = ++b->epoch, .parent = b->epoch - 1, .page_size = RP_PAGE_SIZE, .gfn_end = FRAMES, .nregions = 1,
                                .regions = {{0, FRAMES}}, .flags = b->epoch == 1 ? RP_EPOCH_FULL : 0, .vm_id = {1}};
    struct rp_buf record = {0};
    struct rp_captured list[8];
    struct rp_error err = {0};
    b->wire_bytes = b->records = b->entries = 0;
    cr_assert_eq(rp_put_epoch(&record, b->seq, &h), 0);
    feed(b, &record);
    for (uint64_t first = 0; first < FRAMES; first += 8) {
        for (unsigned i = 0; i < 8; i++) {
            list[i] = (struct rp_captured){.gfn = first + i};
            cr_assert_eq(rp_arena_alloc(b->arena, &list[i].slot, 1), 1);
            memcpy(rp_arena_page(b->arena, list[i].slot), rp_ram_page(&b->now, first + i), RP_PAGE_SIZE);
        }
        cr_assert_eq(rp_encoder_run(b->encoder, b->epoch, 0, list, 8, emit, b, &b->records, &b->entries, &err), 0, "%s", err.text);
    }
    struct rp_epoch_trailer t = {.number = b->epoch, .ram_records = b->records, .ram_pages = b->entries,
                                 .digest_lo = b->digest.sum.lo, .digest_hi = b->digest.sum.hi};
    rp_buf_reset(&record);
    cr_assert_eq(rp_put_epoch_end(&record, b->seq, &t), 0);
    feed(b, &record);
    rp_buf_fini(&record);
    cr_assert_eq(rp_image_epoch(b->image), b->epoch);
    cr_assert_eq(memcmp(b->now.base, b->there.base, FRAMES * RP_PAGE_SIZE), 0, "the image is not what was encoded");
}

static void rewrite(struct bed *b, unsigned bytes)
{
    for (unsigned g = 0; g < FRAMES; g++) {
        uint8_t *p = rp_ram_page(&b->now, g) + rnd(b) % ((RP_PAGE_SIZE - bytes) / 8 + 1) * 8;
        for (unsigned i = 0; i < bytes; i++)
            p[i] = (uint8_t)(rnd(b) >> 32);
    }
}

static uint64_t pages_of(const struct bed *b, unsigned codec)
{
    return rp_encoder_stats(b->encoder)->pages[codec];
}

TestSuite(encoder, .timeout = 60);

/* Issue "the main job": pages rewritten by 64 bytes cost at most 200 bytes on the wire. With their old contents at hand … */
Test(encoder, sixty_four_bytes_with_the_parent_cached)
{
    struct bed b;
    bed_make(&b, FRAMES + 64);
    rp_encoder_price(b.encoder, 1000);
    rewrite(&b, RP_PAGE_SIZE);
    for (unsigned i = 0; i < 8; i++, rewrite(&b, 64))
        epoch(&b);
    printf("%.1f bytes a page\n", (double)b.wire_bytes / FRAMES);
    cr_assert_leq(b.wire_bytes / FRAMES, 100);
    bed_free(&b);
}

/* … and without: the cache holds a sixteenth of them, fingerprints the rest. */
Test(encoder, sixty_four_bytes_by_fingerprints)
{
    struct bed b;
    bed_make(&b, FRAMES / 16);
    rp_encoder_price(b.encoder, 1000);
    rewrite(&b, RP_PAGE_SIZE);
    uint64_t sum = 0;
    for (unsigned i = 0; i < 16; i++, rewrite(&b, 64)) {
        epoch(&b);
        sum += i >= 8 ? b.wire_bytes : 0;
    }
    printf("%.1f bytes a page\n", (double)sum / FRAMES / 8);
    cr_assert_leq(sum / FRAMES / 8, 205);   /* 44 % of the writes straddle two blocks; eight pages a record is the worst case */
    bed_free(&b);
}

/* A page sent twice in one epoch has no parent in it the second time: the standby decodes against the epoch before. */
Test(encoder, a_second_pass_is_no_parent)
{
    struct bed b;
    uint32_t changed;
    struct rp_fingerprints *f;
    bed_make(&b, 64);
    cr_assert_eq(rp_fingerprints_create(FRAMES, &f, NULL), 0);
    uint8_t *p = rp_ram_page(&b.now, 3);
    cr_assert(!rp_fingerprints_update(f, 3, p, 5, &changed));
    p[130] = 1;
    cr_assert(!rp_fingerprints_update(f, 3, p, 5, &changed), "contents of this same epoch");
    p[4095] = 1;
    cr_assert(rp_fingerprints_update(f, 3, p, 6, &changed));
    cr_assert_eq(changed, 1u << 31);
    p[0] = p[128] = 1;
    cr_assert(rp_fingerprints_update(f, 3, p, 7, &changed));
    cr_assert_eq(changed, 3u);
    rp_fingerprints_forget(f, 3);
    cr_assert(!rp_fingerprints_known(f, 3));
    cr_assert(!rp_fingerprints_update(f, 3, p, 8, &changed));
    cr_assert(!rp_fingerprints_known(f, 4));
    rp_fingerprints_destroy(f);
    bed_free(&b);
}

Test(encoder, codecs_that_do_not_pay_are_left_alone_and_come_back)
{
    struct bed b;
    struct rp_codec_judgement delta = {.on = true}, lz4 = {.on = true};
    bed_make(&b, FRAMES + 64);
    rp_encoder_price(b.encoder, 1);
    for (unsigned i = 0; i < 100 && (delta.on || lz4.on); i++) {    /* how many it takes depends on what an attempt costs here */
        rewrite(&b, RP_PAGE_SIZE);
        epoch(&b);
        rp_encoder_judged(b.encoder, RP_CODEC_DELTA, &delta);
        rp_encoder_judged(b.encoder, RP_CODEC_LZ4, &lz4);
    }
    cr_assert(!delta.on && !lz4.on, "noise: delta saves %.0f bytes for %.0f ns, lz4 %.0f for %.0f", delta.saved_bytes, delta.cost_ns,
              lz4.saved_bytes, lz4.cost_ns);
    cr_assert_eq(pages_of(&b, RP_CODEC_DELTA) + pages_of(&b, RP_CODEC_LZ4), 0);
    rp_encoder_price(b.encoder, 1000);      /* whatever an attempt takes here, bytes are dearer */
    for (unsigned i = 0; i < 60; i++) {
        rewrite(&b, 64);
        epoch(&b);
    }
    rp_encoder_judged(b.encoder, RP_CODEC_DELTA, &delta);
    cr_assert(delta.on, "small changes: delta saves %.0f bytes for %.0f ns", delta.saved_bytes, delta.cost_ns);
    cr_assert_leq(b.wire_bytes / FRAMES, 200);
    bed_free(&b);
}

/* Pages go through every state and back, in every order: the image is compared after each epoch. */
Test(encoder, mixed_changes_with_every_size_of_arena)
{
    static const uint32_t slots[] = {16, FRAMES / 4, FRAMES + 16};
    for (unsigned k = 0; k < 3; k++) {
        struct bed b;
        bed_make(&b, slots[k]);
        for (unsigned i = 0; i < 40; i++) {
            for (unsigned g = 0; g < FRAMES; g++) {
                uint8_t *p = rp_ram_page(&b.now, g);
                switch (rnd(&b) % 6) {
                case 0: memset(p, 0, RP_PAGE_SIZE); break;
                case 1: p[rnd(&b) % RP_PAGE_SIZE] ^= 1; break;
                case 2: memset(p, (int)(rnd(&b) % 256), RP_PAGE_SIZE); break;
                case 3:
                    for (unsigned j = 0; j < RP_PAGE_SIZE; j++)
                        p[j] = (uint8_t)(rnd(&b) >> 40);
                    break;
                case 4: memset(p + rnd(&b) % 2048, (int)(rnd(&b) % 256), 2048); break;
                default: break;
                }
            }
            epoch(&b);
        }
        printf("%u slots: zero %lu raw %lu lz4 %lu delta %lu\n", slots[k], pages_of(&b, 0), pages_of(&b, 1), pages_of(&b, 2), pages_of(&b, 3));
        cr_assert_gt(pages_of(&b, RP_CODEC_DELTA), 0);
        bed_free(&b);
    }
}
