/* The copy of a machine's private disks that a standby gets: what it lacks, and the pieces that bring it. See disks.h. */
#include "vmm/disks_internal.h"
#include "vmm/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* --- what the copies lack --- */

void rp_disks_lack(struct rp_guard *g, uint64_t first, uint64_t last, bool lacking)
{
    for (uint64_t b = first; b <= last && b < g->blocks; b++) {
        uint64_t bit = 1ull << b % 64, *word = &g->lacks[b / 64];

        if (lacking == !!(*word & bit))
            continue;
        *word ^= bit;
        g->lacking += lacking ? 1 : UINT64_MAX;
    }
}

static void lack_all(struct rp_guard *g)
{
    memset(g->lacks, 0xff, g->blocks / 64 * sizeof(*g->lacks));
    g->lacks[g->blocks / 64] = (1ull << g->blocks % 64) - 1;
    g->lacking = g->blocks;
}

static bool lacks(const struct rp_guard *g, uint64_t block)
{
    return block < g->blocks && g->lacks[block / 64] >> block % 64 & 1;
}

/* The first lacking block at or after `from`, going round; there is one. */
static uint64_t next_lacking(const struct rp_guard *g, uint64_t from)
{
    uint64_t b = from < g->blocks ? from : 0;

    while (!lacks(g, b)) {
        if (b % 64 == 0 && g->lacks[b / 64] == 0)
            b += 64;
        else
            b++;
        if (b >= g->blocks)
            b = 0;
    }
    return b;
}

/* --- the copy --- */

#define PIECE_BLOCKS (RP_DISKS_PIECE_BYTES / RP_DISKS_BLOCK_BYTES)
_Static_assert(PIECE_BLOCKS <= 31, "a bit for each");
_Static_assert(RP_DISKS_BLOCK_BYTES == RP_DISK_SUMS_BLOCK_MIN && RP_DISKS_PIECE_BYTES >= RP_DISK_SUMS_BLOCK_MAX, "sums are of whole blocks, within a piece");
_Static_assert(RP_DISKS_MAX <= RP_DISK_SUMS_DISKS, "each disk can have a list");

/* Bit per block of a piece that was read: the copies hold the same. A sum counts where its block lies in the piece as a whole. */
static uint32_t equal_blocks(const struct rp_disk_sum_list *l, uint64_t offset, const uint8_t *data, uint64_t len)
{
    uint64_t step = l->block_bytes;
    uint32_t equal = 0;

    for (uint64_t i = l->sums ? (offset + step - 1) / step : 0; l->sums && i < l->blocks && (i + 1) * step <= offset + len; i++) {
        uint64_t at = i * step - offset;
        struct rp_hash128 h = rp_disk_block_sum(l, data + at);

        if (h.lo == l->sums[i].lo && h.hi == l->sums[i].hi)
            equal |= ((1u << step / RP_DISKS_BLOCK_BYTES) - 1) << at / RP_DISKS_BLOCK_BYTES;
    }
    return equal;
}

enum what { DATA, ZEROES, EQUAL };

static enum what what_is(const uint8_t *data, uint64_t len, uint64_t at, uint32_t equal)
{
    uint64_t block = len - at < RP_DISKS_BLOCK_BYTES ? len - at : RP_DISKS_BLOCK_BYTES;
    const uint8_t *p = data + at;

    if (equal >> at / RP_DISKS_BLOCK_BYTES & 1)
        return EQUAL;
    return p[0] == 0 && memcmp(p, p + 1, block - 1) == 0 ? ZEROES : DATA;
}

static void put_piece(struct rp_guard *g, struct rp_buf *out, uint64_t offset, const uint8_t *data, uint64_t len, uint32_t equal)
{
    for (uint64_t at = 0, n; at < len; at += n) {
        enum what run = what_is(data, len, at, equal);
        bool zero = run == ZEROES;

        for (n = RP_DISKS_BLOCK_BYTES; at + n < len && what_is(data, len, at + n, equal) == run; n += RP_DISKS_BLOCK_BYTES)
            ;
        if (n > len - at)
            n = len - at;
        if (run == EQUAL)
            continue;
        rp_disk_put(out, &(struct rp_disk_entry){.disk = g->number, .kind = zero ? RP_DISK_KIND_DISCARD : RP_DISK_KIND_WRITE,
                                                 .offset = offset + at, .len = (uint32_t)n, .data = zero ? NULL : data + at});
    }
}

static uint64_t bytes_of(const struct rp_guard *g, uint64_t first, uint64_t end)
{
    uint64_t to = end * RP_DISKS_BLOCK_BYTES;

    return (to < g->lower->size_bytes ? to : g->lower->size_bytes) - first * RP_DISKS_BLOCK_BYTES;
}

/* Lacking blocks that lie in a hole of the file need not be read. How many, from `first` on; lock held all the time. */
static uint64_t hole_blocks(struct rp_guard *g, uint64_t first)
{
    uint64_t from = first * RP_DISKS_BLOCK_BYTES, len = 0, end = first;
    bool hole = false;

    if (!g->lower->ops->extent || g->lower->ops->extent(g->lower, from, &hole, &len) < 0 || !hole)
        return 0;
    while (lacks(g, end) && bytes_of(g, first, end + 1) <= len && (end - first) < RP_DISKS_HOLE_BYTES / RP_DISKS_BLOCK_BYTES)
        end++;
    return rp_guard_busy(g, from, end * RP_DISKS_BLOCK_BYTES) ? 0 : end - first;
}

/* Reads [first, end) with its range locked. The machine lock is given up while it reads. */
static int read_piece(struct rp_disks *d, struct rp_guard *g, uint64_t first, uint64_t end, struct rp_buf *out, struct rp_error *err)
{
    uint64_t from = first * RP_DISKS_BLOCK_BYTES, len = bytes_of(g, first, end);
    uint32_t equal;
    int rc;

    d->piece = g;
    d->piece_from = from;
    d->piece_to = from + len;
    while (rp_guard_busy(g, d->piece_from, d->piece_to)) {
        d->awaited = true;
        rp_loop_unlock(d->loop);
        while (sem_wait(&d->quiet) < 0) {
            /* a signal */
        }
        rp_loop_lock(d->loop);
    }
    rp_loop_unlock(d->loop);
    rc = g->lower->ops->read_now(g->lower, d->buf, len, from);
    rp_loop_lock(d->loop);
    d->piece = NULL;
    if (rc < 0)
        rp_error_set(err, rc, "disk %s: cannot be read at %llu to be copied: %s", g->path, (unsigned long long)from, strerror(-rc));
    else
        rc = rp_disks_take_log(d, out, err);     /* what was written before comes before */
    if (rc == 0)
        rp_disks_lack(g, first, end - 1, false);
    if (g->waiting) {
        rp_guard_retry(g);
        rp_disk_kick(g->lower);
    }
    if (rc < 0)
        return rc;
    rp_loop_unlock(d->loop);
    equal = equal_blocks(&g->sums, from, d->buf, len);
    put_piece(g, out, from, d->buf, len, equal);
    rp_loop_lock(d->loop);
    d->equal_bytes += (unsigned)__builtin_popcount(equal) * (uint64_t)RP_DISKS_BLOCK_BYTES;
    return out->failed ? rp_error_set(err, ENOMEM, "no memory for a disk's copy") : 0;
}

static int copy_piece(struct rp_disks *d, struct rp_guard *g, struct rp_buf *out, struct rp_error *err)
{
    uint64_t first = next_lacking(g, g->scan), end = first, holes = hole_blocks(g, first);
    int rc = 0;

    if (holes) {
        rc = rp_disks_take_log(d, out, err);
        rp_disk_put(out, &(struct rp_disk_entry){.disk = g->number, .kind = RP_DISK_KIND_DISCARD, .offset = first * RP_DISKS_BLOCK_BYTES,
                                                 .len = (uint32_t)bytes_of(g, first, first + holes)});
        rp_disks_lack(g, first, first + holes - 1, false);
        g->scan = first + holes;
        return rc;
    }
    do      /* up to where a piece would begin: so blocks of sums lie in one piece as a whole */
        end++;
    while (lacks(g, end) && end % PIECE_BLOCKS);
    g->scan = end;
    return read_piece(d, g, first, end, out, err);
}

static struct rp_guard *lacking_guard(struct rp_disks *d)
{
    for (struct rp_guard *g = d->guards; g; g = g->next)
        if (g->lacks && g->lacking)
            return g;
    return NULL;
}

int rp_disks_pull(struct rp_disks *d, struct rp_buf *out, size_t max_bytes, struct rp_error *err)
{
    struct rp_guard *g;
    uint64_t equal;
    int rc, more;

    rp_loop_lock(d->loop);
    rp_disks_take_released(d);
    equal = d->equal_bytes;
    rc = rp_disks_take_log(d, out, err);
    /* What need not travel was looked at, too: the engine has other things to do. */
    while (rc == 0 && out->len + (d->equal_bytes - equal) < max_bytes && (g = lacking_guard(d)))
        rc = copy_piece(d, g, out, err);
    more = lacking_guard(d) != NULL;
    rp_loop_unlock(d->loop);
    if (!more)
        rp_disks_copy_end(d);
    return rc < 0 ? rc : more;
}

/* --- the beginning of a run --- */

int rp_disks_copy_ready(struct rp_disks *d, struct rp_error *err)
{
    if (!d->buf && !(d->buf = malloc(RP_DISKS_PIECE_BYTES)))
        return rp_error_set(err, ENOMEM, "no memory to copy disks");
    for (struct rp_guard *g = rp_disks_private(d->guards); g; g = rp_disks_private(g->next))
        if (!g->lacks && !(g->lacks = calloc(g->blocks / 64 + 1, sizeof(*g->lacks))))
            return rp_error_set(err, ENOMEM, "no memory to keep track of a disk's blocks");
    return 0;
}

/* Lock held: does who has `have` lack no more than the bitmaps say? */
static bool builds_upon(const struct rp_disks *d, const struct rp_disk_base *have)
{
    return d->base.epoch && memcmp(have->sync_id, d->base.sync_id, sizeof(d->base.sync_id)) == 0 && have->epoch >= d->base.epoch &&
           have->epoch <= d->newest_cut;
}

bool rp_disks_whole(struct rp_disks *d, const struct rp_disk_base *have, uint64_t size_bytes[RP_DISK_SUMS_DISKS])
{
    bool any = false;

    rp_loop_lock(d->loop);
    for (struct rp_guard *g = rp_disks_private(d->guards); g; g = rp_disks_private(g->next)) {
        size_bytes[g->number] = g->lower->size_bytes;
        any = true;
    }
    any = any && !builds_upon(d, have);
    rp_loop_unlock(d->loop);
    return any;
}

/* What the copies hold of this disk is the guard's from now on, if it can be true. */
static void take_sums(struct rp_guard *g, struct rp_disk_sums *sums)
{
    struct rp_disk_sum_list *l = sums ? &sums->disks[g->number] : NULL;

    if (!l || !l->sums || !rp_disk_sums_possible(l->block_bytes, l->blocks))
        return;
    g->sums = *l;
    *l = (struct rp_disk_sum_list){0};
}

void rp_disks_copy_end(struct rp_disks *d)
{
    for (struct rp_guard *g = d->guards; g; g = g->next) {
        free(g->sums.sums);
        g->sums = (struct rp_disk_sum_list){0};
    }
}

/* Lock held: what is to be copied in this run, and the SYNC entries that say so. */
void rp_disks_copy_begin(struct rp_disks *d, const struct rp_disk_run *run)
{
    struct rp_disk_base from = d->base;
    bool rest = builds_upon(d, &run->have);

    if (!rest) {
        from.epoch = 0;
        (void)!getrandom(from.sync_id, sizeof(from.sync_id), 0);
    }
    memcpy(d->base.sync_id, from.sync_id, sizeof(from.sync_id));
    d->base.epoch = 0;          /* until this run's first epoch is committed the copies are nothing */
    d->sync_bytes = d->equal_bytes = 0;
    rp_disks_copy_end(d);
    for (struct rp_guard *g = rp_disks_private(d->guards); g; g = rp_disks_private(g->next)) {
        rp_disk_put_sync(&d->log, g->number, g->lower->size_bytes, &from);
        if (!rest) {
            lack_all(g);
            take_sums(g, run->sums);
        }
        g->scan = 0;
        d->sync_bytes += g->lacking * RP_DISKS_BLOCK_BYTES;
    }
}
