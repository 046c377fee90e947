#include "core/pool.h"

#include "core/clock.h"
#include "core/thread.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

struct helper {
    struct rp_pool *pool;
    unsigned index;
    pthread_t thread;
};

struct rp_pool {
    unsigned threads;
    bool behind;
    struct helper *helpers;
    pthread_mutex_t lock;
    pthread_cond_t start, done;
    void (*fn)(void *ctx, unsigned worker);     /* lock: NULL between sections */
    void *ctx;                                  /* lock */
    unsigned generation;                        /* lock: counts sections, so that a helper joins each once */
    unsigned busy;                              /* lock: helpers inside fn */
    bool quit;                                  /* lock */
};

static void *helper_main(void *arg)
{
    struct helper *h = arg;
    struct rp_pool *p = h->pool;
    unsigned seen = 0;
    if (p->behind)
        rp_thread_behind();
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->quit && (!p->fn || p->generation == seen))
            pthread_cond_wait(&p->start, &p->lock);
        if (p->quit)
            break;
        void (*fn)(void *, unsigned) = p->fn;
        void *ctx = p->ctx;
        seen = p->generation;
        p->busy++;
        pthread_mutex_unlock(&p->lock);
        fn(ctx, h->index);
        pthread_mutex_lock(&p->lock);
        if (--p->busy == 0)
            pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* A helper that wakes up late finds fn == NULL and waits for the next section: the caller has done its share. */
void rp_pool_run(struct rp_pool *p, void (*fn)(void *ctx, unsigned worker), void *ctx)
{
    if (p->threads > 0) {
        pthread_mutex_lock(&p->lock);
        p->fn = fn;
        p->ctx = ctx;
        p->generation++;
        pthread_cond_broadcast(&p->start);
        pthread_mutex_unlock(&p->lock);
    }
    fn(ctx, p->threads);
    if (p->threads > 0) {
        pthread_mutex_lock(&p->lock);
        p->fn = NULL;
        while (p->busy > 0)
            pthread_cond_wait(&p->done, &p->lock);
        pthread_mutex_unlock(&p->lock);
    }
}

int rp_pool_create(const char *name, unsigned threads, bool behind, struct rp_pool **out, struct rp_error *err)
{
    struct rp_pool *p = calloc(1, sizeof(*p));
    if (!p || !(p->helpers = calloc(threads + 1, sizeof(*p->helpers)))) {
        free(p);
        return rp_error_set(err, ENOMEM, "no memory for %u %s threads", threads, name);
    }
    p->behind = behind;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->done, NULL);
    for (unsigned i = 0; i < threads; i++) {
        p->helpers[i] = (struct helper){.pool = p, .index = i};
        char full[16];
        snprintf(full, sizeof(full), "%.8s %u", name, i % 1000);
        int rc = rp_thread_start(&p->helpers[i].thread, full, helper_main, &p->helpers[i], err);
        if (rc < 0) {
            rp_pool_destroy(p);
            return rc;
        }
        p->threads++;
    }
    *out = p;
    return 0;
}

void rp_pool_destroy(struct rp_pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->threads; i++)
        pthread_join(p->helpers[i].thread, NULL);
    free(p->helpers);
    free(p);
}

unsigned rp_pool_threads(const struct rp_pool *p)
{
    return p->threads;
}

uint64_t rp_pool_cpu_ns(const struct rp_pool *p)
{
    uint64_t ns = 0;
    clockid_t clock;
    for (unsigned i = 0; i < p->threads; i++)
        if (pthread_getcpuclockid(p->helpers[i].thread, &clock) == 0)
            ns += rp_clock_read(clock);
    return ns;
}
