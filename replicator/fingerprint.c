#include "replicator/fingerprint.h"

#include "core/xxh3.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>

struct print {
    uint32_t tag;       /* low half of the epoch, never 0; 0: nothing is known */
    uint32_t lo[RP_XXH3_BLOCKS];
    uint16_t hi[RP_XXH3_BLOCKS];
};
_Static_assert(sizeof(struct print) == 196, "what a frame costs, in docs/engine.md");

struct rp_fingerprints {
    struct print *prints;   /* [gfn_end] */
    size_t bytes;
    uint64_t seed;
};

int rp_fingerprints_create(uint64_t gfn_end, struct rp_fingerprints **out, struct rp_error *err)
{
    struct rp_fingerprints *f = calloc(1, sizeof(*f));
    if (!f)
        return rp_error_set(err, ENOMEM, "no memory for page fingerprints");
    f->bytes = (size_t)gfn_end * sizeof(struct print);
    f->prints = mmap(NULL, f->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f->prints == MAP_FAILED || getrandom(&f->seed, sizeof(f->seed), 0) != sizeof(f->seed)) {
        if (f->prints != MAP_FAILED)
            munmap(f->prints, f->bytes);
        free(f);
        return rp_error_set(err, ENOMEM, "no memory for the fingerprints of %llu pages", (unsigned long long)gfn_end);
    }
    madvise(f->prints, f->bytes, MADV_NOHUGEPAGE);  /* scattered frames must not cost 2 MiB each */
    *out = f;
    return 0;
}

void rp_fingerprints_destroy(struct rp_fingerprints *f)
{
    if (!f)
        return;
    munmap(f->prints, f->bytes);
    free(f);
}

static uint32_t tag_of(uint64_t epoch)
{
    return (uint32_t)epoch ? (uint32_t)epoch : 1;
}

bool rp_fingerprints_update(struct rp_fingerprints *f, uint64_t gfn, const uint8_t *page, uint64_t epoch, uint32_t *changed)
{
    struct print *p = &f->prints[gfn];
    uint64_t hash[RP_XXH3_BLOCKS];
    uint32_t differ = 0;
    rp_xxh3_blocks(page, f->seed, hash);
    for (unsigned i = 0; i < RP_XXH3_BLOCKS; i++) {
        uint32_t lo = (uint32_t)hash[i];
        uint16_t hi = (uint16_t)(hash[i] >> 32);
        differ |= (uint32_t)(lo != p->lo[i] || hi != p->hi[i]) << i;
        p->lo[i] = lo;
        p->hi[i] = hi;
    }
    bool known = p->tag != 0 && p->tag != tag_of(epoch);
    p->tag = tag_of(epoch);
    *changed = differ;
    return known;
}

void rp_fingerprints_forget(struct rp_fingerprints *f, uint64_t gfn)
{
    if (f->prints[gfn].tag)     /* a write would give a frame that is not known its memory */
        f->prints[gfn].tag = 0;
}

bool rp_fingerprints_known(const struct rp_fingerprints *f, uint64_t gfn)
{
    return f->prints[gfn].tag != 0;
}
