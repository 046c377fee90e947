/* Golden streams: what was written once decodes to the same contents for ever, and is what the writer writes today. */
#include "tests/unit/stream_builder.h"
#include "tools/inspect.h"
#include "tools/state_tables.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <jansson.h>
#include <unistd.h>

/* The build's copy of tests/golden, beside the directory of the test programs: a lab host has the build only. */
static FILE *golden(const char *name)
{
    char path[1024] = "";
    cr_assert(readlink("/proc/self/exe", path, 512) > 0);
    char *at = strstr(path, "/unit/test_golden");
    cr_assert(at);
    snprintf(at, sizeof(path) - (size_t)(at - path), "/golden/%s", name);
    FILE *f = fopen(path, "rb");
    cr_assert(f, "%s: %s", path, strerror(errno));
    return f;
}

static struct rp_buf read_golden(const char *name)
{
    struct rp_buf b = {0};
    uint8_t chunk[4096];
    size_t n;
    FILE *f = golden(name);
    while ((n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        rp_buf_put(&b, chunk, n);
    fclose(f);
    cr_assert(!b.failed && b.len > 0);
    return b;
}

Test(golden, the_writer_writes_v1_sample_byte_for_byte)
{
    struct rp_buf want = read_golden("v1-sample.rps");
    struct sb s;
    sb_init(&s);
    sb_sample(&s, NULL);
    for (size_t i = 0; i < want.len && i < s.b.len; i++)
        cr_assert_eq(want.data[i], s.b.data[i], "byte %zu: 0x%02x in the golden file, 0x%02x written now", i, want.data[i], s.b.data[i]);
    cr_assert_eq(want.len, s.b.len);
    sb_fini(&s);
    rp_buf_fini(&want);
}

Test(golden, v1_sample_decodes_to_known_contents)
{
    struct rp_buf b = read_golden("v1-sample.rps");
    struct sb_target t;
    struct rp_error err = {0};
    struct rp_section sec;
    uint8_t page[RP_PAGE_SIZE];
    sb_target_init(&t, RP_IMAGE_STAGED, 1 << 20);
    cr_assert_eq(sb_feed(&t, b.data, b.len, &err), 0, "%s", err.text);
    cr_assert_eq(rp_image_epoch(t.image), 2);
    const struct rp_epoch_header *h = rp_image_header(t.image);
    cr_assert_str_eq((const char *)h->vm_name, "golden");
    cr_assert(h->vm_id[15] == 16 && h->term == 3 && h->parent == 1 && h->gfn_end == 40 && h->regions[1].gfn == 24);
    const struct rp_epoch_trailer *e = rp_image_trailer(t.image);
    cr_assert(e->guest_ns == 2000000 && e->wall_ns == 1700000000000000002ull && e->reason == RP_CUT_PERIOD && e->disk_bytes == 46);
    /* gfn 0 lz4, 3 lz4 of the second pass, 24 raw and a delta twice, 39 lz4 and then zero; all others zero */
    for (uint64_t g = 0; g < SB_GFN_END; g++) {
        memset(page, 0, sizeof(page));
        if (g == 0)
            sb_text(page, 0, 5);
        if (g == 3)
            sb_text(page, 3, 1);
        if (g == 24) {
            sb_noise(page, 24, 0);
            memset(page + 100, 0x11, 64);
            memset(page + 3000, 0x22, 8);
        }
        if (rp_ram_contains(&t.ram, g, 1))
            cr_assert_eq(memcmp(rp_ram_page(&t.ram, g), page, RP_PAGE_SIZE), 0, "gfn %lu", g);
    }
    cr_assert(rp_sections_find(rp_image_sections(t.image), "sample", 0, &sec) && sec.len == 4 && memcmp(sec.bytes, "zero", 4) == 0);
    cr_assert(rp_sections_find(rp_image_sections(t.image), "sample", 1, &sec) && sec.len == 3 && memcmp(sec.bytes, "uno", 3) == 0);
    struct rp_events *events;
    struct rp_event event;
    cr_assert(rp_sections_find(rp_image_sections(t.image), "history", 0, &sec));
    cr_assert_eq(rp_events_create(4, &events), 0);
    cr_assert_eq(rp_events_load(events, &sec, &err), 0, "%s", err.text);
    cr_assert_eq(rp_events_copy(events, &event, 1), 1);
    cr_assert_str_eq(event.name, "CHECKPOINT");
    cr_assert_str_eq(event.data, "{\"why\": \"golden\"}");
    rp_events_destroy(events);
    sb_target_fini(&t);
    rp_buf_fini(&b);
}

/* --- checkpoints of real VMs --- */

/* The sections that the second one was made for, beside those that any machine has. */
static const char *const devices[] = {"virtio-blk", "virtio-net", "virtio-rng", "virtio-console", "virtio-balloon", "virtio-vsock", "history"};
static const char *const machines[] = {"v1-machine", "v1-machine-devices"};
#define MACHINES (sizeof(machines) / sizeof(machines[0]))

static FILE *machine(unsigned i, const char *ending)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.%s", machines[i], ending);
    return golden(name);
}

static int keep_sections(void *ctx, const struct rp_inspect_epoch *e)
{
    struct rp_sections *out = ctx;
    struct rp_section s;
    for (size_t pos = 0; rp_sections_next(&e->sections, &pos, &s);)
        cr_assert_eq(rp_sections_put(out, &s), 0);
    return 0;
}

static void machine_sections(unsigned i, struct rp_sections *out)
{
    struct rp_inspect *in;
    struct rp_error err = {0};
    struct rp_inspect_ops ops = {.ctx = out, .epoch = keep_sections};
    FILE *f = machine(i, "rps");
    cr_assert_eq(rp_inspect_create(&ops, &in, &err), 0);
    cr_assert_eq(rp_inspect_walk(in, fileno(f), &err), 0, "%s", err.text);
    rp_inspect_destroy(in);
    fclose(f);
}

/* Each value that was there is there, and the same; a newer reprise may add fields. */
static void contains(json_t *have, json_t *want, const char *path)
{
    const char *key;
    json_t *v;
    size_t i;
    char sub[512];
    cr_assert(have != NULL, "%s is gone", path);
    if (json_is_object(want)) {
        json_object_foreach(want, key, v) {
            snprintf(sub, sizeof(sub), "%.400s.%.100s", path, key);
            contains(json_object_get(have, key), v, sub);
        }
    } else if (json_is_array(want)) {
        cr_assert_eq(json_array_size(have), json_array_size(want), "%s: elements", path);
        json_array_foreach(want, i, v) {
            snprintf(sub, sizeof(sub), "%.400s[%zu]", path, i);
            contains(json_array_get(have, i), v, sub);
        }
    } else {
        cr_assert(json_equal(have, want), "%s differs", path);
    }
}

static void known_contents(unsigned i)
{
    struct rp_error err = {0};
    json_error_t why;
    FILE *f = machine(i, "rps"), *w = machine(i, "json");
    char *text;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    struct rp_inspect_show show = {.json = true};
    cr_assert_eq(rp_inspect_print(fileno(f), &show, out, &err), 0, "%s", err.text);
    fclose(out);
    json_t *have = json_loads(text, JSON_DECODE_INT_AS_REAL, &why), *want = json_loadf(w, JSON_DECODE_INT_AS_REAL, &why);
    cr_assert(have && want, "%s", why.text);
    contains(have, want, machines[i]);
    json_decref(have);
    json_decref(want);
    free(text);
    fclose(f);
    fclose(w);
}

Test(golden, v1_machines_decode_to_known_contents)
{
    for (unsigned i = 0; i < MACHINES; i++)
        known_contents(i);
}

/* A device that is added needs a golden stream of its own: every table of a device is in one of these. */
Test(golden, v1_machine_devices_has_every_devices_section)
{
    struct rp_sections all = {0};
    struct rp_section s;
    const struct rp_state_table *t;
    machine_sections(1, &all);
    for (unsigned i = 0; i < sizeof(devices) / sizeof(devices[0]); i++) {
        bool found = false;
        for (size_t pos = 0; rp_sections_next(&all, &pos, &s);)
            found = found || strcmp(s.name, devices[i]) == 0;
        cr_assert(found, "no \"%s\"", devices[i]);
    }
    for (unsigned n = 0; (t = rp_state_table_at(n)); n++) {
        bool found = strncmp(t->name, "virtio-", 7) != 0;
        for (size_t pos = 0; rp_sections_next(&all, &pos, &s);)
            found = found || strcmp(s.name, t->name) == 0;
        cr_assert(found, "\"%s\" is in no golden stream", t->name);
    }
    rp_sections_fini(&all);
}

/* Decoded and encoded again it is the same bytes: nothing of a section is lost on the way. */
static void round_trip(unsigned i)
{
    struct rp_sections all = {0};
    struct rp_section s;
    machine_sections(i, &all);
    cr_assert_gt(all.count, 8);
    for (size_t pos = 0; rp_sections_next(&all, &pos, &s);) {
        const struct rp_state_table *t = rp_state_table_find(s.name);
        struct rp_error err = {0};
        struct rp_buf b = {0};
        cr_assert(t, "no table for \"%s\"", s.name);
        void *state = calloc(1, t->size);
        cr_assert_eq(rp_section_decode(t, &s, state, &err), 0, "%s", err.text);
        rp_state_encode(t, state, &b);
        cr_assert(b.len == s.len && memcmp(b.data, s.bytes, s.len) == 0, "\"%s\" %u", s.name, s.instance);
        rp_buf_fini(&b);
        free(state);
    }
    rp_sections_fini(&all);
}

Test(golden, v1_machine_sections_survive_a_round_trip)
{
    for (unsigned i = 0; i < MACHINES; i++)
        round_trip(i);
}

/* INV-4 for real sections: cut short anywhere, or changed anywhere, a section is refused or is valid: no crash, no claim
 * beyond a row's capacity (the tables' count checks; ASan watches). */
static void cut_and_changed(unsigned which)
{
    struct rp_sections all = {0};
    struct rp_section s;
    machine_sections(which, &all);
    for (size_t pos = 0; rp_sections_next(&all, &pos, &s);) {
        const struct rp_state_table *t = rp_state_table_find(s.name);
        void *state = calloc(1, t->size);
        uint8_t *copy = malloc(s.len);
        memcpy(copy, s.bytes, s.len);
        struct rp_section bad = s;
        bad.bytes = copy;
        for (uint32_t n = 0; n < s.len; n++) {
            struct rp_error err = {0};
            bad.len = n;
            memset(state, 0, t->size);
            int rc = rp_section_decode(t, &bad, state, &err);
            cr_assert(rc == 0 || err.text[0], "\"%s\" cut at %u: no reason", s.name, n);
        }
        bad.len = s.len;
        for (uint32_t i = 0; i < s.len; i++) {
            struct rp_error err = {0};
            copy[i] ^= (uint8_t)(1u << (i % 8));
            memset(state, 0, t->size);
            int rc = rp_section_decode(t, &bad, state, &err);
            cr_assert(rc == 0 || err.text[0], "\"%s\" changed at %u: no reason", s.name, i);
            copy[i] = s.bytes[i];
        }
        free(copy);
        free(state);
    }
    rp_sections_fini(&all);
}

Test(golden, INV4_v1_machine_sections_cut_and_changed)
{
    for (unsigned i = 0; i < MACHINES; i++)
        cut_and_changed(i);
}

/* --- one registry --- */

Test(tables, every_table_tiles_its_struct)
{
    const struct rp_state_table *t;
    unsigned n = 0;
    for (; (t = rp_state_table_at(n)); n++) {
        struct rp_error err = {0};
        cr_assert_eq(rp_state_check(t, &err), 0, "%s", err.text);
        cr_assert_geq(t->version, 1);
        for (unsigned k = 0; k < n; k++)
            cr_assert_str_neq(rp_state_table_at(k)->name, t->name, "two tables have one name");
    }
    cr_assert_geq(n, 19);
}
