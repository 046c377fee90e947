/* Page codecs: hostile payloads are refused and leave a delta's page as it was; whatever we encode decodes to the same page. */
#include "core/codec.h"
#include "tests/fuzz/fuzz.h"

#define GUARD 64u

/* Pages of the input: repeated, so that a short one fills it, with a few bytes changed. */
static void fill(struct fz *f, uint8_t *page)
{
    size_t n, period = 1 + fz_u8(f);
    const uint8_t *p = fz_bytes(f, period, &n);
    for (size_t i = 0; i < RP_PAGE_SIZE; i++)
        page[i] = n ? p[i % n] : 0;
}

static void change(struct fz *f, uint8_t *page)
{
    for (unsigned i = fz_u8(f) % 16; i > 0; i--) {
        uint32_t at = fz_below(f, RP_PAGE_SIZE), len = fz_u8(f);
        for (uint32_t k = at; k < at + len && k < RP_PAGE_SIZE; k++)
            page[k] ^= fz_u8(f);
    }
}

static void round_trip(struct fz *f)
{
    uint8_t parent[RP_PAGE_SIZE], page[RP_PAGE_SIZE], out[RP_PAGE_SIZE + GUARD], back[RP_PAGE_SIZE];
    uint32_t limit = 1 + fz_below(f, RP_PAGE_SIZE);
    fill(f, parent);
    memcpy(page, parent, RP_PAGE_SIZE);
    change(f, page);
    memset(out, 0xA5, sizeof(out));
    uint32_t n = rp_delta_encode(parent, page, out, limit);
    FZ_HOLDS(n < limit);
    for (uint32_t i = 0; i < GUARD; i++)
        FZ_HOLDS(out[limit + i] == 0xA5);
    memcpy(back, parent, RP_PAGE_SIZE);
    if (n) {
        FZ_HOLDS(rp_delta_decode(out, n, back, NULL) == 0);
        FZ_HOLDS(memcmp(back, page, RP_PAGE_SIZE) == 0);
    }
    uint32_t changed = 0;
    for (uint32_t i = 0; i < RP_PAGE_SIZE; i++)
        changed |= (uint32_t)(page[i] != parent[i]) << (i / (RP_PAGE_SIZE / 32));
    changed |= fz_u32(f) & fz_u32(f);       /* may differ, it says, not does */
    memset(out, 0xA5, sizeof(out));
    n = rp_delta_encode_blocks(changed, page, out, limit);
    FZ_HOLDS(n < limit && out[limit] == 0xA5);
    memcpy(back, parent, RP_PAGE_SIZE);
    if (n) {
        FZ_HOLDS(rp_delta_decode(out, n, back, NULL) == 0);
        FZ_HOLDS(memcmp(back, page, RP_PAGE_SIZE) == 0);
    }
    n = rp_lz4_encode(page, out, limit);
    FZ_HOLDS(n <= limit);
    if (n) {
        FZ_HOLDS(rp_lz4_decode(out, n, back, NULL) == 0);
        FZ_HOLDS(memcmp(back, page, RP_PAGE_SIZE) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fz f = {data, size};
    struct rp_error err = {0};
    uint8_t page[RP_PAGE_SIZE], was[RP_PAGE_SIZE];
    uint8_t what = fz_u8(&f);
    if (what % 3 == 0) {
        round_trip(&f);
        return 0;
    }
    uint8_t *exact = malloc(f.left ? f.left : 1);   /* so that ASan sees a read beyond */
    memcpy(exact, f.p, f.left);
    memset(page, what, sizeof(page));
    memcpy(was, page, sizeof(page));
    if (what % 3 == 1) {
        if (rp_delta_decode(exact, (uint32_t)f.left, page, &err) < 0)
            FZ_HOLDS(err.exit == RP_EXIT_DAMAGED && err.text[0] && memcmp(page, was, sizeof(page)) == 0);
    } else if (rp_lz4_decode(exact, (uint32_t)f.left, page, &err) < 0) {
        FZ_HOLDS(err.exit == RP_EXIT_DAMAGED && err.text[0]);
    }
    free(exact);
    return 0;
}
