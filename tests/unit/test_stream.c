/* The stream's records, and what becomes of a stream that was cut, changed or made up (INV-2, INV-4). */
#include "tests/unit/stream_builder.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <unistd.h>

static struct sb sample;
static uint8_t *ram_at[3];      /* RAM as of epoch 0, 1, 2 */

static void setup(void)
{
    for (int i = 0; i < 3; i++)
        ram_at[i] = sb_pages();
    sb_init(&sample);
    sb_sample(&sample, ram_at[1]);
    memcpy(ram_at[2], sample.ram.base, SB_BYTES);
}

static void teardown(void)
{
    sb_fini(&sample);
    for (int i = 0; i < 3; i++)
        munmap(ram_at[i], SB_BYTES);
}

TestSuite(stream, .init = setup, .fini = teardown);

/* The image holds one of the whole epochs, in RAM, number and digest. (A standby's that holds none keeps the pages that have come.) */
static void holds_a_whole_epoch(const struct sb_target *t, const char *what, size_t at)
{
    uint64_t e = rp_image_epoch(t->image);
    cr_assert_leq(e, 2);
    if (t->ram.base) {
        if (e || t->mode == RP_IMAGE_DIRECT)
            cr_assert_eq(memcmp(t->ram.base, ram_at[e], SB_BYTES), 0, "%s at %zu: RAM is not epoch %lu", what, at, e);
        struct rp_hash128 d = rp_digest_of(&t->ram);
        cr_assert_eq(d.lo, rp_image_digest(t->image)->sum.lo, "%s at %zu: digest", what, at);
    }
    cr_assert_eq(rp_image_staged_bytes(t->image), 0, "%s at %zu", what, at);
    cr_assert_eq(e == 0, rp_image_sections(t->image)->count == 0);
}

Test(stream, the_sample_is_taken_whole)
{
    for (int mode = 0; mode < 2; mode++) {
        struct sb_target t;
        struct rp_error err = {0};
        sb_target_init(&t, (enum rp_image_mode)mode, 1 << 20);
        cr_assert_eq(sb_feed(&t, sample.b.data, sample.b.len, &err), 0, "%s", err.text);
        cr_assert_eq(t.epochs, 2);
        cr_assert_eq(t.disk_records, 1);
        cr_assert_eq(rp_image_epoch(t.image), 2);
        holds_a_whole_epoch(&t, "end", 0);
        cr_assert_eq(rp_image_trailer(t.image)->guest_ns, 2000000);
        sb_target_fini(&t);
    }
}

Test(stream, through_a_pipe_in_small_pieces)
{
    int fds[2];
    struct rp_stream_reader *r;
    struct rp_record rec;
    unsigned records = 0;
    cr_assert_eq(pipe2(fds, O_NONBLOCK), 0);
    cr_assert_eq(write(fds[1], sample.b.data, 100), 100);
    cr_assert_eq(rp_stream_reader_create(fds[0], &r, NULL), 0);
    cr_assert_eq(rp_stream_next(r, &rec, NULL), 1);
    cr_assert_eq(rec.type, RP_REC_BEGIN);
    struct rp_error err = {0};
    cr_assert_eq(rp_stream_next(r, &rec, &err), -EAGAIN, "a failed read is told with its place");
    cr_assert(strstr(err.text, "offset 100"), "%s", err.text);
    for (size_t at = 100; at < sample.b.len;) {
        size_t n = sample.b.len - at < 777 ? sample.b.len - at : 777;
        cr_assert_eq(write(fds[1], sample.b.data + at, n), (ssize_t)n);
        at += n;
        int rc;
        while ((rc = rp_stream_next(r, &rec, &err)) > 0)
            records++;
        cr_assert(rc == -EAGAIN, "%s", err.text);
    }
    close(fds[1]);
    cr_assert_eq(rp_stream_next(r, &rec, &err), 0, "%s", err.text);
    cr_assert_eq(records, 14);
    rp_stream_reader_destroy(r);
    close(fds[0]);
}

Test(stream, INV2_INV4_cut_at_every_byte)
{
    for (size_t n = 0; n < sample.b.len; n++) {
        struct sb_target t;
        struct rp_error err = {0};
        char place[64];
        sb_target_init(&t, n & 1 ? RP_IMAGE_STAGED : RP_IMAGE_DIRECT, 1 << 20);
        int rc = sb_feed(&t, sample.b.data, n, &err);
        cr_assert_eq(rc, -EBADMSG, "cut at %zu", n);
        cr_assert_eq(err.exit, RP_EXIT_DAMAGED);
        snprintf(place, sizeof(place), "stream offset %zu: the stream is cut short here", n);
        cr_assert_str_eq(err.text, place);
        rp_image_drop(t.image);         /* what a receiver does when its stream ends */
        holds_a_whole_epoch(&t, "cut", n);
        sb_target_fini(&t);
    }
}

Test(stream, INV2_INV4_every_byte_flipped)
{
    for (size_t i = 0; i < sample.b.len; i++) {
        struct sb_target t;
        struct rp_error err = {0};
        sb_target_init(&t, i & 1 ? RP_IMAGE_STAGED : RP_IMAGE_DIRECT, 1 << 20);
        sample.b.data[i] ^= (uint8_t)(1u << (i % 8));
        int rc = sb_feed(&t, sample.b.data, sample.b.len, &err);
        sample.b.data[i] ^= (uint8_t)(1u << (i % 8));
        cr_assert_eq(rc, -EBADMSG, "flip at %zu: %s", i, err.text);
        cr_assert_eq(err.exit, RP_EXIT_DAMAGED);
        cr_assert(strncmp(err.text, "stream offset ", 14) == 0, "flip at %zu: %s", i, err.text);
        cr_assert_leq(strtoul(err.text + 14, NULL, 10), sample.b.len);
        rp_image_drop(t.image);
        holds_a_whole_epoch(&t, "flip", i);
        sb_target_fini(&t);
    }
}

/* Recomputes every record's checksum, as somebody would who made the stream up. */
static void reseal(uint8_t *p, size_t len)
{
    struct rp_buf b = {.data = p, .cap = len};
    uint64_t seq = 0;
    for (size_t at = 0; at + RP_RECORD_HEADER <= len;) {
        size_t whole = RP_RECORD_HEADER + rp_ld32(p + at + 4);
        if (whole > len - at)
            break;
        b.len = at + whole;
        cr_assert_eq(rp_record_seal(&b, at, seq++), 0);
        at += whole;
    }
}

/* With a right checksum only the checks of meaning are left: what is accepted must still be a whole epoch. */
Test(stream, INV4_every_byte_flipped_and_sealed_again)
{
    unsigned accepted = 0;
    uint8_t *copy = malloc(sample.b.len);
    for (size_t i = 0; i < sample.b.len; i++) {
        struct sb_target t;
        struct rp_error err = {0};
        memcpy(copy, sample.b.data, sample.b.len);
        copy[i] ^= (uint8_t)(1u << (i % 7));
        reseal(copy, sample.b.len);
        sb_target_init(&t, i & 1 ? RP_IMAGE_STAGED : RP_IMAGE_DIRECT, 1 << 20);
        int rc = sb_feed(&t, copy, sample.b.len, &err);
        cr_assert(rc == 0 || err.text[0], "flip at %zu: no reason given", i);
        accepted += rc == 0;
        rp_image_drop(t.image);
        holds_a_whole_epoch(&t, "sealed flip", i);
        sb_target_fini(&t);
    }
    free(copy);
    cr_assert_lt(accepted, 2200, "%u changes were taken (a page that a later pass replaces, names, times, section bytes, seals repaired)",
                 accepted);
}

static void refuse_stream(struct sb *s, int code, const char *why)
{
    struct sb_target t;
    struct rp_error err = {0};
    sb_target_init(&t, RP_IMAGE_STAGED, 1 << 20);
    cr_assert_eq(sb_feed(&t, s->b.data, s->b.len, &err), code, "expected \"%s\", got \"%s\"", why, err.text);
    cr_assert(strstr(err.text, why), "expected \"%s\", got \"%s\"", why, err.text);
    sb_target_fini(&t);
    sb_fini(s);
}

Test(stream, a_newer_version_names_both)
{
    struct sb s;
    sb_init(&s);
    sb_record(&s, RP_REC_BEGIN, 0, "\x02\0\0\0\0\0\0\0\x06\0future", 16);
    refuse_stream(&s, -EPROTONOSUPPORT, "version 2 (from \"future\"), this reprise reads version 1: use a newer reprise");
}

Test(stream, order_of_records)
{
    struct sb s;
    sb_init(&s);
    sb_epoch(&s, 1, 0);
    refuse_stream(&s, -EBADMSG, "does not begin with BEGIN");
    sb_init(&s);
    sb_begin(&s);
    sb_begin(&s);
    refuse_stream(&s, -EBADMSG, "a second beginning");
    sb_init(&s);
    sb_begin(&s);
    sb_section(&s, "x", 0, "");
    refuse_stream(&s, -EBADMSG, "outside of an epoch");
    sb_init(&s);
    sb_begin(&s);
    sb_epoch(&s, 1, 0);
    sb_epoch(&s, 2, 1);
    refuse_stream(&s, -EBADMSG, "inside an epoch");
    sb_init(&s);
    sb_begin(&s);
    sb_end(&s, 0);
    sb_begin(&s);
    refuse_stream(&s, -EBADMSG, "bytes after the end");
    sb_init(&s);
    sb_begin(&s);
    sb_end(&s, 1);
    refuse_stream(&s, -EBADMSG, "the end of a stream with another number of epochs");
    sb_init(&s);
    sb_begin(&s);
    s.seq++;
    sb_end(&s, 0);
    refuse_stream(&s, -EBADMSG, "out of sequence");
    sb_init(&s);
    rp_buf_put(&s.b, "#!/bin/sh\necho this is a script\n", 32);
    refuse_stream(&s, -EBADMSG, "not an epoch stream");
}

Test(stream, unknown_records)
{
    struct sb s;
    sb_init(&s);
    sb_begin(&s);
    sb_epoch(&s, 1, 0);
    sb_record(&s, 77, 0, "?", 1);
    refuse_stream(&s, -EBADMSG, "record type 77: unknown to this version");
    struct sb_target t;
    struct rp_error err = {0};
    sb_init(&s);
    sb_begin(&s);
    sb_epoch(&s, 1, 0);
    sb_record(&s, 77, 1, "?", 1);
    sb_record(&s, RP_REC_JOURNAL, 0, "?", 1);
    sb_epoch_end(&s);
    sb_target_init(&t, RP_IMAGE_STAGED, 1 << 20);
    cr_assert_eq(sb_feed(&t, s.b.data, s.b.len, &err), -EBADMSG);
    cr_assert_eq(t.epochs, 1, "an optional one is skipped; only END is missing: %s", err.text);
    sb_target_fini(&t);
    sb_fini(&s);
}

Test(stream, absurd_lengths_cost_nothing)
{
    uint8_t hdr[RP_RECORD_HEADER] = {0x52, 0x50, 3};
    struct rp_record rec;
    struct rp_error err = {0};
    rp_st32(hdr + 4, RP_RECORD_MAX);
    cr_assert_eq(rp_record_peek(hdr, 7, &rec, &err), 0);
    rp_st32(hdr + 4, RP_RECORD_MAX + 1);
    cr_assert_eq(rp_record_peek(hdr, 7, &rec, &err), -EBADMSG);
    cr_assert(strstr(err.text, "offset 7"), "%s", err.text);
}

/* --- RAM and DISK records made up by hand --- */

static void refuse_ram(const void *payload, size_t len, const char *why)
{
    uint8_t *exact = malloc(len ? len : 1);
    memcpy(exact, payload, len);
    struct rp_record r = {.type = RP_REC_RAM, .len = (uint32_t)len, .offset = 24, .payload = exact};
    uint32_t pass;
    struct rp_error err = {0};
    cr_assert_eq(rp_ram_walk(&r, &sample.ram, &pass, NULL, NULL, &err), -EBADMSG, "%s", why);
    cr_assert(strstr(err.text, why) && strstr(err.text, "stream offset 24"), "expected \"%s\", got \"%s\"", why, err.text);
    free(exact);
}

Test(stream, INV4_hostile_ram_records)
{
    refuse_ram("", 0, "impossible number");
    refuse_ram("\0\0\0\0\0\0\0\0", 8, "impossible number");
    refuse_ram("\0\0\0\0\xff\xff\xff\xff", 8, "impossible number");
    refuse_ram("\0\0\0\0\x01\x04\0\0", 8, "impossible number");
    refuse_ram("\0\0\0\0\0\x04\0\0", 8, "cut short");
    refuse_ram("\0\0\0\x80\1\0\0\0", 8, "impossible pass");
#define ONE "\0\0\0\0\1\0\0\0"
    refuse_ram(ONE "\0\0\0\0\0" "\x09" "\1\0", 16, "unknown codec");
    refuse_ram(ONE "\0\0\0\0\0" "\0" "\0\0", 16, "impossible length");
    refuse_ram(ONE "\0\0\0\0\0" "\1" "\xff\xff", 16, "impossible length");
    refuse_ram(ONE "\0\0\0\0\0" "\2" "\x01\x10", 16, "impossible length");
    refuse_ram(ONE "\x10\0\0\0\0" "\0" "\1\0", 16, "gfn 0x10: not guest RAM");
    refuse_ram(ONE "\x0f\0\0\0\0" "\0" "\2\0", 16, "not guest RAM");
    refuse_ram(ONE "\xff\xff\xff\xff\xff" "\0" "\xff\xff", 16, "not guest RAM");
    refuse_ram(ONE "\0\0\0\0\0" "\1" "\1\0" "short", 21, "cut short");
    refuse_ram(ONE "\0\0\0\0\0" "\0" "\1\0" "x", 17, "longer than its pages");
}

static void refuse_disk(const void *payload, size_t len, const char *why)
{
    uint8_t *exact = malloc(len ? len : 1);
    memcpy(exact, payload, len);
    struct rp_record r = {.type = RP_REC_DISK, .len = (uint32_t)len, .offset = 24, .payload = exact};
    struct rp_error err = {0};
    cr_assert_eq(rp_disk_walk(&r, NULL, NULL, &err), -EBADMSG, "%s", why);
    cr_assert(strstr(err.text, why), "expected \"%s\", got \"%s\"", why, err.text);
    free(exact);
}

Test(stream, INV4_hostile_disk_records)
{
#define DISK "\0\0\0\0\1\0\0\0"
#define AT0 "\0\0\0\0\0\0\0\0"
    refuse_disk("", 0, "impossible number");
    refuse_disk("\0\0\0\0\xff\xff\xff\xff", 8, "impossible number");
    refuse_disk(DISK, 8, "cut short");
    refuse_disk(DISK AT0 "\1\0\0\0" "\5\0\0\0", 24, "unknown kind");
    refuse_disk(DISK AT0 "\27\0\0\0" "\4\0\0\0", 24, "a SYNC of another length");
    refuse_disk(DISK AT0 "\30\0\0\0" "\4\0\0\0" "sync", 28, "cut short");
    refuse_disk(DISK AT0 "\0\0\0\0" "\2\0\0\0", 24, "impossible range");
    refuse_disk(DISK "\xff\xff\xff\xff\xff\xff\xff\x7f" "\1\0\0\0" "\2\0\0\0", 24, "impossible range");
    refuse_disk(DISK "\xff\xff\xff\xff\xff\xff\xff\xff" "\1\0\0\0" "\2\0\0\0", 24, "impossible range");
    refuse_disk(DISK AT0 "\2\0\0\0" "\1\0\0\0" "a", 25, "data are cut short");
    refuse_disk(DISK AT0 "\1\0\0\0" "\1\0\0\0" "ab", 26, "longer than its writes");
}

static int same_disk(void *ctx, const struct rp_disk_entry *e, struct rp_error *err)
{
    (void)err;
    unsigned *n = ctx;
    cr_assert_eq(e->disk, 9);
    cr_assert_eq(e->offset, 512 * (1 + *n));
    cr_assert_eq(e->kind, *n == 1 ? RP_DISK_KIND_DISCARD : RP_DISK_KIND_WRITE);
    if (e->kind == RP_DISK_KIND_WRITE)
        cr_assert_eq(e->data[0], "a b"[*n]);
    else
        cr_assert_null(e->data);
    ++*n;
    return 0;
}

Test(stream, disk_entries_come_in_order_with_their_data)
{
    static const char p[] = "\x09\0\0\0\3\0\0\0" "\0\2\0\0\0\0\0\0" "\1\0\0\0" "\1\0\0\0" "\0\4\0\0\0\0\0\0" "\0\2\0\0" "\3\0\0\0"
                            "\0\6\0\0\0\0\0\0" "\1\0\0\0" "\1\0\0\0" "ab";
    struct rp_record r = {.type = RP_REC_DISK, .len = sizeof(p) - 1, .payload = (const uint8_t *)p};
    unsigned n = 0;
    cr_assert_eq(rp_disk_walk(&r, same_disk, &n, NULL), 0);
    cr_assert_eq(n, 3);
}

static int keep_entry(void *ctx, const struct rp_disk_entry *e, struct rp_error *err)
{
    (void)err;
    struct rp_disk_entry *out = ctx;
    *out = *e;
    return 0;
}

/* What rp_disk_put and rp_disk_put_sync make, rp_disk_walk takes. */
Test(stream, disk_entries_there_and_back)
{
    struct rp_buf b = {0};
    struct rp_disk_base base = {.sync_id = "0123456789abcde", .epoch = 812};
    struct rp_disk_entry e;
    rp_disk_put(&b, &(struct rp_disk_entry){.disk = 3, .kind = RP_DISK_KIND_WRITE, .offset = 1u << 20, .len = 5, .data = (const uint8_t *)"hello"});
    rp_disk_put(&b, &(struct rp_disk_entry){.disk = 2, .kind = RP_DISK_KIND_DISCARD, .offset = 512, .len = 0x80000000u});
    rp_disk_put_sync(&b, 7, 10ull << 30, &base);
    cr_assert_not(b.failed);
    struct rp_reader in = rp_reader_of(b.data, b.len);
    for (unsigned i = 0; i < 3; i++) {
        struct rp_record r = {.type = RP_REC_DISK, .len = rp_get_u32(&in)};
        struct rp_error err = {0};
        r.payload = rp_get(&in, r.len);
        cr_assert(r.payload);
        cr_assert_eq(rp_disk_walk(&r, keep_entry, &e, &err), 0, "%s", err.text);
        cr_assert_eq(e.disk, i == 0 ? 3 : i == 1 ? 2 : 7);
        cr_assert_eq(e.kind, i == 0 ? RP_DISK_KIND_WRITE : i == 1 ? RP_DISK_KIND_DISCARD : RP_DISK_KIND_SYNC);
        if (i == 0)
            cr_assert_eq(memcmp(e.data, "hello", 5), 0);
    }
    struct rp_disk_base got = rp_disk_sync_of(&e);
    cr_assert_eq(e.offset, 10ull << 30);
    cr_assert_eq(got.epoch, 812);
    cr_assert_eq(memcmp(got.sync_id, base.sync_id, sizeof(got.sync_id)), 0);
    cr_assert_eq(in.left, 0);
    rp_buf_fini(&b);
}
