/* The encoder alone: cost and wire bytes of a page by what happened to it, steady state, one thread. */
#include "tests/bench/bench.h"

#include "core/clock.h"
#include "replicator/encoder.h"
#include "tests/bench/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGES 4096u
#define EPOCHS 24u

struct tally { uint64_t bytes; };

static int emit(void *ctx, struct rp_buf *record, struct rp_error *err)
{
    (void)err;
    ((struct tally *)ctx)->bytes += record->len;
    return 0;
}

static uint64_t rnd(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

static const char *names[] = {"64 bytes rewritten", "512 bytes rewritten", "all rewritten, noise", "all rewritten, text",
                              "dirty but unchanged", "zeroed and rewritten"};
enum change { CHANGE_64, CHANGE_512, CHANGE_NOISE, CHANGE_TEXT, CHANGE_NONE, CHANGE_ZERO, CHANGES };

static void change(uint8_t *p, enum change c, unsigned epoch, uint64_t *seed)
{
    uint64_t *q = (uint64_t *)(void *)p;
    unsigned n = c == CHANGE_64 ? 8 : c == CHANGE_512 ? 64 : RP_PAGE_SIZE / 8, at = (unsigned)(rnd(seed) % (RP_PAGE_SIZE / 8 - n + 1));
    switch (c) {
    case CHANGE_64:
    case CHANGE_512:
    case CHANGE_NOISE:
        for (unsigned i = 0; i < n; i++)
            q[at + i] = rnd(seed);
        return;
    case CHANGE_TEXT:
        for (unsigned i = 0; i < RP_PAGE_SIZE; i += 64)
            snprintf((char *)p + i, 64, "line %08x: the epoch is committed before the packet leaves", (unsigned)rnd(seed));
        return;
    case CHANGE_ZERO:
        memset(p, epoch % 2 ? 0 : (int)(rnd(seed) % 255 + 1), RP_PAGE_SIZE);
        return;
    default:
        return;
    }
}

static void one(enum change c, uint32_t codecs, unsigned cached_percent)
{
    struct rp_arena *arena;
    struct rp_digest digest;
    struct rp_encoder *enc;
    struct rp_ram_view ram = {.gfn_end = PAGES, .pages = PAGES, .nregions = 1, .regions = {{0, PAGES}}};
    uint32_t slots = PAGES * cached_percent / 100 + PAGES / 8;
    if (rp_arena_create((uint64_t)slots * RP_PAGE_SIZE, PAGES, &arena, NULL) < 0 || rp_digest_init(&digest, PAGES) < 0 ||
        rp_encoder_create(arena, &ram, &digest, 0, &enc, NULL) < 0)
        abort();
    rp_encoder_codecs(enc, codecs);
    uint8_t *page = calloc(PAGES, RP_PAGE_SIZE);
    uint64_t seed = 5, ns = 0, records = 0, entries = 0, measured = 0;
    struct tally t = {0};
    struct rp_captured list[256];
    for (unsigned i = 0; i < PAGES; i++)
        change(page + i * RP_PAGE_SIZE, CHANGE_NOISE, 0, &seed);
    for (unsigned epoch = 1; epoch <= EPOCHS; epoch++)
        for (unsigned first = 0; first < PAGES; first += 256) {
            for (unsigned i = 0; i < 256; i++) {
                list[i] = (struct rp_captured){.gfn = first + i};
                if (epoch > 1)
                    change(page + (first + i) * RP_PAGE_SIZE, c, epoch, &seed);
                if (rp_arena_alloc(arena, &list[i].slot, 1) != 1)
                    abort();
                memcpy(rp_arena_page(arena, list[i].slot), page + (first + i) * RP_PAGE_SIZE, RP_PAGE_SIZE);
            }
            if (epoch == EPOCHS / 2)        /* from here on the codecs know what pays */
                t.bytes = ns = measured = 0;
            uint64_t t0 = rp_clock_read(CLOCK_THREAD_CPUTIME_ID);
            if (rp_encoder_run(enc, epoch, 0, list, 256, emit, &t, &records, &entries, NULL) < 0)
                abort();
            ns += rp_clock_read(CLOCK_THREAD_CPUTIME_ID) - t0;
            measured += 256;
        }
    const struct rp_encode_stats *st = rp_encoder_stats(enc);
    printf("  %-24s %-12s %4u %%  %8.0f ns %8.1f bytes   zero %5.1f raw %5.1f lz4 %5.1f delta %5.1f same %5.1f %%\n", names[c],
           codecs == 0 ? "none" : codecs == 1u << RP_CODEC_LZ4 ? "lz4" : "all", cached_percent, (double)ns / (double)measured,
           (double)t.bytes / (double)measured, (double)st->pages[0] * 100.0 / (PAGES * EPOCHS),
           (double)st->pages[1] * 100.0 / (PAGES * EPOCHS), (double)st->pages[2] * 100.0 / (PAGES * EPOCHS),
           (double)st->pages[3] * 100.0 / (PAGES * EPOCHS), (double)st->unchanged * 100.0 / (PAGES * EPOCHS));
    free(page);
    rp_encoder_destroy(enc);
    rp_digest_fini(&digest);
    rp_arena_destroy(arena);
}

int bench_encode(const struct bench_words *w)
{
    (void)w;
    bench_title("encoder, per page, one thread; codecs allowed; pages whose parent the arena can hold");
    for (enum change c = 0; c < CHANGES; c++) {
        one(c, UINT32_MAX, 120);
        one(c, UINT32_MAX, 25);
        one(c, 1u << RP_CODEC_LZ4, 120);
        one(c, 0, 120);
    }
    return 0;
}
