/*
 * queue.h - a bounded queue of pointers between threads. Lock and condition; a closed queue wakes everybody.
 */
#ifndef RP_CORE_QUEUE_H
#define RP_CORE_QUEUE_H

#include "core/error.h"

#include <pthread.h>
#include <stdbool.h>

struct rp_queue {
    pthread_mutex_t lock;
    pthread_cond_t not_empty, not_full;
    void **items;               /* lock: ring of `cap` */
    unsigned cap, head, count;  /* lock */
    bool closed;                /* lock */
};

int rp_queue_init(struct rp_queue *q, unsigned cap) RP_MUST_CHECK;  /* -ENOMEM */
void rp_queue_fini(struct rp_queue *q);                             /* no thread may be inside */
/* Blocks while full. -EPIPE once closed (the item stays the caller's). */
int rp_queue_push(struct rp_queue *q, void *item) RP_MUST_CHECK;
bool rp_queue_full(struct rp_queue *q);         /* and not closed: a push would block */
/* Blocks while empty. NULL once closed and drained. */
void *rp_queue_pop(struct rp_queue *q);
void rp_queue_close(struct rp_queue *q);

#endif
