/*
 * cold.h - the cold ones among a cut's dirty pages, and their way around the pause (cow.h).
 *
 *   capture's pending ──rp_cold_protect──► runs ──rp_cold_collect──► arrays for the emitter
 *                    (machine stands)        └──rp_cold_withdraw──► pending again: the cut is off
 *
 * Cold is a page that was not dirty in either of the two epochs before: whoever writes a page in every epoch writes it soon, and
 * would fault. Only runs are worth a system call: pages in a row, with gaps of clean ones as far as the plan says.
 * Thread: the engine's; copying is spread over capture's pool.
 */
#ifndef RP_REPLICATOR_COLD_H
#define RP_REPLICATOR_COLD_H

#include "replicator/capture.h"
#include "replicator/cow.h"
#include "replicator/policy.h"

struct rp_cold {
    struct rp_capture *capture;
    struct rp_cow *cow;
    struct rp_pageset recent[2];    /* dirty in the epoch before, and in the one before that */
    struct rp_captured *list;       /* protected, and not finished from collected_pages on */
    uint64_t n, cap;
    struct rp_cow_run *runs;
    uint64_t nruns, runs_cap, collected;    /* collected: runs that are finished */
    uint64_t span, protect_ns;      /* of the last protect: pages protected, gaps too; time */
};

/* Borrows both. -ENOMEM. */
int rp_cold_init(struct rp_cold *c, struct rp_capture *capture, struct rp_cow *cow, struct rp_error *err) RP_MUST_CHECK;
void rp_cold_fini(struct rp_cold *c);

/* The machine stands, and all that was protected before is collected. Protects what the plan finds worth it, with a slot for each
 * page; it leaves pending. Returns how many pages; unless 0, rp_cow_end has to follow when all is collected or withdrawn. */
uint64_t rp_cold_protect(struct rp_cold *c, const struct rp_cow_plan *plan);
/* Lets everything go uncopied and puts it back into pending. */
void rp_cold_withdraw(struct rp_cold *c);
/* The next finished pages, in a malloc'ed array, the caller's: about 2,048; 0 in *n: that was all. Without memory for the array
 * the pages are let go and their slots given back: -ENOMEM; go on until 0 all the same. */
int rp_cold_collect(struct rp_cold *c, struct rp_captured **pages, uint64_t *n, struct rp_error *err) RP_MUST_CHECK;
/* An epoch's pages, before they are handed over: what capture and this hold. They are recent then. */
void rp_cold_note(struct rp_cold *c);

#endif
