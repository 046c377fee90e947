/* `reprise inspect`: what it prints of a stream, what it finds between two, and how it ends on damaged data. */
#include "tests/unit/stream_builder.h"
#include "tools/inspect.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <jansson.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sb sample;
static char path[] = "/tmp/reprise-inspect-XXXXXX";

static void write_stream(const void *p, size_t n)
{
    int fd = open(path, O_WRONLY | O_TRUNC);
    cr_assert(fd >= 0 && write(fd, p, n) == (ssize_t)n && close(fd) == 0);
}

static void setup(void)
{
    sb_init(&sample);
    sb_sample(&sample, NULL);
    int fd = mkstemp(path);
    cr_assert(fd >= 0);
    close(fd);
    write_stream(sample.b.data, sample.b.len);
}

static void teardown(void)
{
    unlink(path);
    sb_fini(&sample);
}

TestSuite(inspect, .init = setup, .fini = teardown);

/* Runs the command of this build; its output, both streams together. The caller frees. */
static char *command(const char *args, int *rc)
{
    char self[512] = "", line[1200];
    cr_assert(readlink("/proc/self/exe", self, sizeof(self) - 1) > 0);
    *strstr(self, "/tests/unit/") = 0;
    snprintf(line, sizeof(line), "%s/reprise inspect %s 2>&1", self, args);
    FILE *p = popen(line, "r");
    char *text = calloc(1, 1 << 20);
    cr_assert(p && text);
    size_t n = fread(text, 1, (1 << 20) - 1, p);
    text[n] = 0;
    *rc = WEXITSTATUS(pclose(p));
    return text;
}

static void says(const char *text, const char *what)
{
    cr_assert(strstr(text, what), "expected \"%s\" in:\n%s", what, text);
}

/* Runs `inspect OPTIONS PATH`. */
static char *inspect(const char *options, int expect)
{
    char args[600];
    int rc;
    snprintf(args, sizeof(args), "%s %s", options, path);
    char *text = command(args, &rc);
    cr_assert_eq(rc, expect, "exit %d:\n%s", rc, text);
    return text;
}

Test(inspect, prints_everything)
{
    char *t = inspect("", 0);
    says(t, "epoch stream, version 1, written by \"reprise\"");
    says(t, "epoch 1 (full) of \"golden\" 0102030405060708090a0b0c0d0e0f10, lease term 3");
    says(t, "cut at guest time 0.001000000 s, 2023-11-14T22:13:20.000000001Z: its time was over");
    says(t, "memory 0x0-0x10 0x18-0x28 (frames), 32 pages");
    says(t, "    zero            1          4              0\n");
    says(t, "    raw             1          1           4096\n");
    says(t, "    7 different pages, 2 passes, 2 records");
    says(t, "\"history\" 0: version 1");
    says(t, "        name = \"CHECKPOINT\"\n");
    says(t, "\"sample\" 1: version 1, 3 bytes\n      no table of this reprise describes it");
    says(t, "epoch 2 (delta to 1)");
    says(t, "    delta           2          2 ");
    says(t, "disk 0: 1 write (6 bytes), 1 zero (4096 bytes), 0 discard (0 bytes), 0 sync (0 bytes)");
    says(t, "verified: memory digest ");
    says(t, "whole: 2 epochs, 15 records");
    cr_assert_null(strstr(t, "NOT WHOLE"));
    free(t);
}

Test(inspect, brief_records_and_one_epoch)
{
    char args[600];
    int rc;
    char *t = inspect("--brief --records", 0);
    says(t, "record 1 at 41: EPOCH (type 2)");
    cr_assert_null(strstr(t, "CHECKPOINT"));
    free(t);
    snprintf(args, sizeof(args), "%s@2", path);
    t = command(args, &rc);
    cr_assert_eq(rc, 0);
    says(t, "epoch 2 (delta to 1)");
    cr_assert_null(strstr(t, "epoch 1 (full)"));
    free(t);
    snprintf(args, sizeof(args), "file:%s@3", path);
    t = command(args, &rc);
    cr_assert_eq(rc, 2);
    says(t, "the stream has no epoch 3");
    free(t);
    snprintf(args, sizeof(args), "- < %s", path);
    t = command(args, &rc);
    cr_assert_eq(rc, 0);
    says(t, "whole: 2 epochs");
    free(t);
}

Test(inspect, json_is_json)
{
    char *t = inspect("--json", 0);
    json_error_t why;
    json_t *j = json_loads(t, JSON_DECODE_INT_AS_REAL, &why);
    cr_assert(j, "%s\n%s", why.text, t);
    cr_assert(json_is_true(json_object_get(j, "whole")));
    json_t *epochs = json_object_get(j, "epochs"), *second = json_array_get(epochs, 1);
    cr_assert_eq(json_array_size(epochs), 2);
    cr_assert_str_eq(json_string_value(json_object_get(json_object_get(second, "header"), "vm_name")), "golden");
    cr_assert_eq(json_array_size(json_object_get(json_array_get(epochs, 0), "sections")), 3);
    json_t *delta = json_object_get(json_object_get(second, "pages"), "delta");
    cr_assert_eq(json_real_value(json_object_get(delta, "entries")), 2);
    json_decref(j);
    free(t);
}

/* Damage: what stands before it is printed, then place and reason, exit status 6. */
Test(inspect, INV4_damage_is_told_with_its_place)
{
    size_t mid = sample.b.len - 600;
    uint8_t *copy = malloc(sample.b.len);
    memcpy(copy, sample.b.data, sample.b.len);
    copy[mid] ^= 4;
    write_stream(copy, sample.b.len);
    char *t = inspect("", 6);
    says(t, "epoch 1 (full)");
    says(t, "NOT WHOLE");
    says(t, "checksum mismatch");
    says(t, "stream offset ");
    free(t);
    t = inspect("--json", 6);
    says(t, "\"whole\": false");
    says(t, "\"verified\": false");
    free(t);
    write_stream(sample.b.data, mid);
    t = inspect("", 6);
    char place[64];
    snprintf(place, sizeof(place), "stream offset %zu: the stream is cut short here", mid);
    says(t, place);
    free(t);
    write_stream("#!/bin/sh\necho hello, this is no stream\n", 40);
    t = inspect("", 6);
    says(t, "not an epoch stream");
    free(t);
    write_stream("", 0);
    t = inspect("", 6);
    says(t, "stream offset 0: the stream is cut short here");
    free(t);
    free(copy);
}

/* Every byte flipped, every length: never a crash, always a reason, never "whole". In this process, so that ASan watches. */
Test(inspect, INV4_every_byte_flipped_and_cut, .timeout = 300)
{
    struct rp_inspect_show show = {.brief = false};
    FILE *null = fopen("/dev/null", "w");
    int fd = open(path, O_RDWR);
    cr_assert(null && fd >= 0);
    for (size_t i = 0; i < sample.b.len; i++) {
        struct rp_error err = {0};
        uint8_t was = sample.b.data[i], bad = was ^ (uint8_t)(1u << (i % 8));
        cr_assert_eq(pwrite(fd, &bad, 1, (off_t)i), 1);
        lseek(fd, 0, SEEK_SET);
        cr_assert_lt(rp_inspect_print(fd, &show, null, &err), 0, "flip at %zu", i);
        cr_assert(err.exit == RP_EXIT_DAMAGED && strstr(err.text, "stream offset "), "flip at %zu: %s", i, err.text);
        cr_assert_eq(pwrite(fd, &was, 1, (off_t)i), 1);
    }
    for (size_t n = sample.b.len; n-- > 0;) {
        struct rp_error err = {0};
        cr_assert_eq(ftruncate(fd, (off_t)n), 0);
        lseek(fd, 0, SEEK_SET);
        cr_assert_lt(rp_inspect_print(fd, &show, null, &err), 0, "cut at %zu", n);
        cr_assert(err.exit == RP_EXIT_DAMAGED && strstr(err.text, "cut short"), "cut at %zu: %s", n, err.text);
    }
    close(fd);
    fclose(null);
}

/* A section whose bytes its own table refuses is damage; one from a newer reprise is told as that. */
Test(inspect, sections_that_cannot_be_decoded)
{
    struct sb s;
    struct rp_section sec = {.name = "history", .version = 9, .bytes = (const uint8_t *)"", .len = 0};
    sb_init(&s);
    sb_begin(&s);
    sb_epoch(&s, 1, 0);
    sb_section(&s, "epoch-end", 0, "junk");
    sb_check(rp_put_section(&s.b, s.seq++, &sec));
    s.trailer.sections++;
    sb_epoch_end(&s);
    sb_end(&s, 1);
    write_stream(s.b.data, s.b.len);
    char *t = inspect("", 6);
    says(t, "cannot be decoded: epoch-end version 1: cut short");
    says(t, "section \"history\" 0 is version 9, this reprise reads up to 1: use a newer reprise");
    free(t);
    sb_fini(&s);
}

/* A name may hold anything: it is printed without reaching the terminal as such. */
Test(inspect, INV4_names_are_escaped)
{
    struct sb s;
    struct rp_epoch_header h = sb_header(1, 0);
    json_error_t why;
    snprintf((char *)h.vm_name, sizeof(h.vm_name), "\033[31m\"x\\\n\xff");
    sb_init(&s);
    sb_begin(&s);
    sb_epoch_with(&s, &h);
    sb_section(&s, "\033]0;pwned\a\"", 0, "");
    sb_epoch_end(&s);
    sb_end(&s, 1);
    write_stream(s.b.data, s.b.len);
    char *t = inspect("", 0);
    says(t, "\"\\u001b[31m\\\"x\\\\\\u000a\\u00ff\"");
    cr_assert_null(strchr(t, '\033'));
    free(t);
    t = inspect("--json", 0);
    json_t *j = json_loads(t, 0, &why);
    cr_assert(j, "%s\n%s", why.text, t);
    json_decref(j);
    free(t);
    sb_fini(&s);
}

/* A layout that nobody has costs nothing. */
Test(inspect, absurd_memory_is_refused)
{
    struct sb s;
    struct rp_epoch_header h = sb_header(1, 0);
    h.gfn_end = 1ull << 40;
    h.nregions = 1;
    h.regions[0] = (struct rp_ram_region){0, h.gfn_end};
    sb_init(&s);
    sb_begin(&s);
    sb_epoch_with(&s, &h);
    write_stream(s.b.data, s.b.len);
    char *t = inspect("", 6);
    says(t, "no machine of ours has that");
    free(t);
    sb_fini(&s);
}

Test(inspect, diff_of_two_epochs_and_two_streams)
{
    char args[1300], other[] = "/tmp/reprise-inspect-XXXXXX";
    int rc, fd = mkstemp(other);
    cr_assert(fd >= 0 && write(fd, sample.b.data, sample.b.len) == (ssize_t)sample.b.len);
    close(fd);
    snprintf(args, sizeof(args), "%s --diff 1 2", path);
    char *t = command(args, &rc);
    cr_assert_eq(rc, 0, "%s", t);
    says(t, "header:\n  number: 0x1 -> 0x2\n");
    says(t, "section \"sample\" 1: other bytes");
    says(t, "  gfn 0x0-0x0: 1 pages, 4096 bytes differ\n");
    says(t, "  gfn 0x18-0x18: 1 pages, 72 bytes differ\n");
    says(t, "  gfn 0x27-0x27: 1 pages, 4096 bytes differ\n");
    says(t, "3 pages differ, in 3 ranges\n");
    cr_assert_null(strstr(t, "\"sample\" 0"));
    free(t);
    snprintf(args, sizeof(args), "--diff %s %s", path, other);
    t = command(args, &rc);
    cr_assert_eq(rc, 0);
    cr_assert_str_eq(t, "no difference\n");
    free(t);
    snprintf(args, sizeof(args), "--diff --json %s@1 %s", path, other);
    t = command(args, &rc);
    cr_assert_eq(rc, 0);
    json_t *j = json_loads(t, JSON_DECODE_INT_AS_REAL, NULL);
    cr_assert(j, "%s", t);
    cr_assert_eq(json_real_value(json_object_get(j, "pages")), 3);
    json_decref(j);
    free(t);
    snprintf(args, sizeof(args), "--diff %s@7 %s", path, other);
    t = command(args, &rc);
    cr_assert_eq(rc, 2);
    says(t, "the stream has no epoch 7");
    free(t);
    unlink(other);
}

/* With --brief a section's fields are counted, not printed. */
Test(inspect, brief_diff)
{
    struct sb s;
    char args[1300];
    int rc;
    sb_init(&s);
    sb_begin(&s);
    for (uint32_t n = 1; n <= 2; n++) {
        sb_epoch(&s, n, n - 1);
        sb_history(&s, n == 1 ? "ONE" : "OTHER");
        sb_epoch_end(&s);
    }
    sb_end(&s, 2);
    write_stream(s.b.data, s.b.len);
    sb_fini(&s);
    snprintf(args, sizeof(args), "%s --diff 1 2", path);
    char *t = command(args, &rc);
    cr_assert_eq(rc, 0, "%s", t);
    says(t, "section \"history\" 0: \n  ");
    free(t);
    snprintf(args, sizeof(args), "%s --diff --brief 1 2", path);
    t = command(args, &rc);
    says(t, "section \"history\" 0: 1 fields differ\n");
    says(t, "header:\n  number: 0x1 -> 0x2\n");
    cr_assert_null(strstr(t, "OTHER"), "%s", t);
    free(t);
    snprintf(args, sizeof(args), "%s --diff --brief --json 1 2", path);
    t = command(args, &rc);
    says(t, "{\"name\": \"history\", \"instance\": 0, \"fields\": 1}]");
    free(t);
}

Test(inspect, wrong_use)
{
    int rc;
    char *t = command("", &rc);
    cr_assert_eq(rc, 2);
    free(t);
    t = command("/no/such/file", &rc);
    cr_assert_eq(rc, 2);
    says(t, "/no/such/file: No such file or directory");
    free(t);
    t = command("--diff a", &rc);
    cr_assert_eq(rc, 2);
    says(t, "--diff needs two epochs");
    free(t);
    t = command("a b", &rc);
    cr_assert_eq(rc, 2);
    free(t);
    t = command("file:", &rc);
    cr_assert_eq(rc, 2);
    free(t);
    t = command("/", &rc);
    cr_assert_eq(rc, 2);
    says(t, "/: is a directory");
    free(t);
}
