#include "core/queue.h"

#include <errno.h>
#include <stdlib.h>

int rp_queue_init(struct rp_queue *q, unsigned cap)
{
    *q = (struct rp_queue){.cap = cap};
    q->items = calloc(cap, sizeof(*q->items));
    if (!q->items)
        return -ENOMEM;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->not_empty, NULL);
    pthread_cond_init(&q->not_full, NULL);
    return 0;
}

void rp_queue_fini(struct rp_queue *q)
{
    free(q->items);
    pthread_cond_destroy(&q->not_full);
    pthread_cond_destroy(&q->not_empty);
    pthread_mutex_destroy(&q->lock);
    q->items = NULL;
}

int rp_queue_push(struct rp_queue *q, void *item)
{
    pthread_mutex_lock(&q->lock);
    while (q->count == q->cap && !q->closed)
        pthread_cond_wait(&q->not_full, &q->lock);
    int rc = q->closed ? -EPIPE : 0;
    if (rc == 0) {
        q->items[(q->head + q->count++) % q->cap] = item;
        pthread_cond_signal(&q->not_empty);
    }
    pthread_mutex_unlock(&q->lock);
    return rc;
}

bool rp_queue_full(struct rp_queue *q)
{
    pthread_mutex_lock(&q->lock);
    bool full = q->count == q->cap && !q->closed;
    pthread_mutex_unlock(&q->lock);
    return full;
}

void *rp_queue_pop(struct rp_queue *q)
{
    void *item = NULL;
    pthread_mutex_lock(&q->lock);
    while (q->count == 0 && !q->closed)
        pthread_cond_wait(&q->not_empty, &q->lock);
    if (q->count > 0) {
        item = q->items[q->head];
        q->head = (q->head + 1) % q->cap;
        q->count--;
        pthread_cond_signal(&q->not_full);
    }
    pthread_mutex_unlock(&q->lock);
    return item;
}

void rp_queue_close(struct rp_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->not_empty);
    pthread_cond_broadcast(&q->not_full);
    pthread_mutex_unlock(&q->lock);
}
