#include "replicator/arena.h"

#include "core/thread.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#define POPULATE_STEP (4u << 20)

enum slot_state { SLOT_FREE, SLOT_STAGED, SLOT_CACHED };

struct slot {
    uint64_t gfn, epoch;    /* CACHED: what it holds */
    uint32_t state;
};

struct rp_arena {
    uint8_t *pages;
    uint64_t bytes;
    uint32_t nslots;
    uint64_t gfn_end;
    pthread_mutex_t lock;
    pthread_cond_t freed;       /* available grew, or closed */
    struct slot *slots;         /* lock */
    uint32_t *free;             /* lock: stack of FREE slots */
    uint32_t nfree, ncached;    /* lock */
    uint32_t hand;              /* lock: where eviction looks next */
    uint64_t evicted;           /* lock */
    uint32_t *cached;           /* lock: [gfn_end] slot that caches a frame, or RP_SLOT_NONE */
    uint32_t waiting;           /* lock: slots somebody waits for */
    bool closed;                /* lock */
};

int rp_arena_create(uint64_t bytes, uint64_t gfn_end, struct rp_arena **out, struct rp_error *err)
{
    struct rp_arena *a = calloc(1, sizeof(*a));
    if (!a)
        return rp_error_set(err, ENOMEM, "no memory for the page arena");
    a->nslots = (uint32_t)(bytes >> RP_PAGE_SHIFT);
    a->bytes = (uint64_t)a->nslots << RP_PAGE_SHIFT;
    a->gfn_end = gfn_end;
    a->slots = calloc(a->nslots, sizeof(*a->slots));
    a->free = malloc(a->nslots * sizeof(*a->free));
    a->cached = malloc(gfn_end * sizeof(*a->cached));
    a->pages = mmap(NULL, a->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!a->slots || !a->free || !a->cached || a->pages == MAP_FAILED) {
        if (a->pages == MAP_FAILED)
            a->pages = NULL;
        rp_arena_destroy(a);
        return rp_error_set(err, ENOMEM, "no memory for a page arena of %llu MiB", (unsigned long long)(bytes >> 20));
    }
    madvise(a->pages, a->bytes, MADV_HUGEPAGE);
    for (uint32_t i = 0; i < a->nslots; i++)
        a->free[i] = a->nslots - 1 - i;
    a->nfree = a->nslots;
    for (uint64_t g = 0; g < gfn_end; g++)
        a->cached[g] = RP_SLOT_NONE;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->freed, NULL);
    *out = a;
    return 0;
}

void rp_arena_destroy(struct rp_arena *a)
{
    if (!a)
        return;
    if (a->pages)
        munmap(a->pages, a->bytes);
    free(a->slots);
    free(a->free);
    free(a->cached);
    free(a);
}

bool rp_arena_populate(struct rp_arena *a, uint64_t *done)
{
    uint64_t left = a->bytes - *done, n = left < POPULATE_STEP ? left : POPULATE_STEP;
    if (n > 0 && madvise(a->pages + *done, n, MADV_POPULATE_WRITE) < 0)
        n = left;       /* each slot's first use brings its memory */
    *done += n;
    return *done < a->bytes;
}

uint8_t *rp_arena_page(struct rp_arena *a, uint32_t slot)
{
    return a->pages + ((uint64_t)slot << RP_PAGE_SHIFT);
}

uint32_t rp_arena_slots(const struct rp_arena *a)
{
    return a->nslots;
}

uint32_t rp_arena_available(struct rp_arena *a)
{
    pthread_mutex_lock(&a->lock);
    uint32_t n = a->nfree + a->ncached;
    pthread_mutex_unlock(&a->lock);
    return n;
}

uint64_t rp_arena_evicted(struct rp_arena *a)
{
    pthread_mutex_lock(&a->lock);
    uint64_t n = a->evicted;
    pthread_mutex_unlock(&a->lock);
    return n;
}

/* lock held; ncached > 0 */
static uint32_t evict_one(struct rp_arena *a)
{
    for (;;) {
        uint32_t s = a->hand;
        a->hand = a->hand + 1 == a->nslots ? 0 : a->hand + 1;
        if (a->slots[s].state == SLOT_CACHED) {
            a->cached[a->slots[s].gfn] = RP_SLOT_NONE;
            a->ncached--;
            a->evicted++;
            return s;
        }
    }
}

uint32_t rp_arena_alloc(struct rp_arena *a, uint32_t *slots, uint32_t n)
{
    uint32_t got = 0;
    pthread_mutex_lock(&a->lock);
    while (got < n && a->nfree + a->ncached > 0) {
        uint32_t s = a->nfree > 0 ? a->free[--a->nfree] : evict_one(a);
        a->slots[s].state = SLOT_STAGED;
        slots[got++] = s;
    }
    pthread_mutex_unlock(&a->lock);
    return got;
}

bool rp_arena_wait(struct rp_arena *a, uint32_t n, uint64_t deadline_ns)
{
    pthread_mutex_lock(&a->lock);
    a->waiting = n;
    while (a->nfree + a->ncached < n && !a->closed)
        if (rp_cond_wait_until(&a->freed, &a->lock, deadline_ns) < 0)
            break;
    bool ok = a->nfree + a->ncached >= n && !a->closed;
    a->waiting = 0;
    pthread_mutex_unlock(&a->lock);
    return ok;
}

void rp_arena_close(struct rp_arena *a)
{
    pthread_mutex_lock(&a->lock);
    a->closed = true;
    pthread_cond_broadcast(&a->freed);
    pthread_mutex_unlock(&a->lock);
}

/* lock held */
static void put_free(struct rp_arena *a, uint32_t s)
{
    a->slots[s].state = SLOT_FREE;
    a->free[a->nfree++] = s;
}

void rp_arena_free(struct rp_arena *a, const uint32_t *slots, uint32_t n)
{
    pthread_mutex_lock(&a->lock);
    for (uint32_t i = 0; i < n; i++)
        put_free(a, slots[i]);
    pthread_mutex_unlock(&a->lock);
}

void rp_arena_take(struct rp_arena *a, const uint64_t *gfns, uint32_t n, uint64_t epoch, uint32_t *parents)
{
    pthread_mutex_lock(&a->lock);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t s = a->cached[gfns[i]];
        parents[i] = RP_SLOT_NONE;
        if (s == RP_SLOT_NONE)
            continue;
        a->cached[gfns[i]] = RP_SLOT_NONE;
        a->ncached--;
        a->slots[s].state = SLOT_STAGED;
        if (a->slots[s].epoch < epoch)
            parents[i] = s;
        else
            put_free(a, s);
    }
    pthread_mutex_unlock(&a->lock);
}

void rp_arena_retire(struct rp_arena *a, const uint64_t *gfns, const uint32_t *slots, const uint32_t *parents,
                     uint32_t n, uint64_t epoch)
{
    pthread_mutex_lock(&a->lock);
    for (uint32_t i = 0; i < n; i++) {
        if (parents[i] != RP_SLOT_NONE)
            put_free(a, parents[i]);
        if (slots[i] == RP_SLOT_NONE)
            continue;
        uint32_t old = a->cached[gfns[i]];
        if (old != RP_SLOT_NONE) {
            a->ncached--;
            put_free(a, old);
        }
        a->cached[gfns[i]] = slots[i];
        a->slots[slots[i]] = (struct slot){.gfn = gfns[i], .epoch = epoch, .state = SLOT_CACHED};
        a->ncached++;
    }
    if (a->waiting && a->nfree + a->ncached >= a->waiting)
        pthread_cond_broadcast(&a->freed);
    pthread_mutex_unlock(&a->lock);
}
