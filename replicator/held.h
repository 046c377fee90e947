/*
 * held.h - what a standby holds of a VM's RAM, page by page, so that a session may begin with what differs. docs/link.md.
 *
 *   primary                                   standby        on the control connection, right after its WELCOME
 *     ASK  wanted?  stale?  sums?  ──────────►
 *        ◄──────  if wanted: runs of page hashes (digest.h), pages of zeroes left out, ascending; a run of none ends them
 *
 * The hashes are the standby's word. A wrong one costs the standby its epoch: the RAM digest at the epoch's end differs, and it
 * refuses what it was sent because of it (INV-2); a list whose sum is not the digest that its WELCOME named is no list.
 * The primary spends 16 bytes a page, and a time that is bounded by the size of RAM; so does the standby.
 */
#ifndef RP_REPLICATOR_HELD_H
#define RP_REPLICATOR_HELD_H

#include "core/digest.h"
#include "replicator/transport.h"

#define RP_HELD_RUN 1024u       /* hashes in a run at most: 16 KiB */

/* Of a WELCOME: RAM whose pages are known. gfn_end 0: nothing is held. */
struct rp_held {
    uint64_t gfn_end;
    struct rp_hash128 sum;      /* the digest of all of it */
};

struct rp_held_ask {
    bool wanted;                /* the hashes are to come */
    bool stale;                 /* outputs have left since: no epoch that was made before may be entered */
    bool sums;                  /* what its disks hold is to come, behind the hashes (sums.h) */
};
/* The primary's side. */
int rp_held_send_ask(struct rp_conn *c, const struct rp_held_ask *ask, struct rp_error *err) RP_MUST_CHECK;
/* After an ASK that wanted them: hashes of `held->gfn_end` pages, malloc'ed, the caller's. -EPROTO: what came is no list, not the
 * one that `held` named, or too slow to be worth it. */
int rp_held_receive(struct rp_conn *c, const struct rp_held *held, struct rp_hash128 **out, struct rp_error *err) RP_MUST_CHECK;

/* The standby's side. */
int rp_held_receive_ask(struct rp_conn *c, struct rp_held_ask *out, struct rp_error *err) RP_MUST_CHECK;
/* Nothing changes the digest meanwhile. -ETIMEDOUT: the primary does not take them. */
int rp_held_send(struct rp_conn *c, const struct rp_digest *d, struct rp_error *err) RP_MUST_CHECK;

#endif
