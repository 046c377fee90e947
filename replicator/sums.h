/*
 * sums.h - what a standby's copies of a VM's private disks hold, block by block (core/disk_sums.h), so that a copy that has to be made
 * anew begins with what is the same already. docs/link.md.
 *
 *   primary                                   standby        on the control connection, behind what held.h says
 *     ASK  sums?  ───────────────────────────►
 *        ◄──────  if wanted: a list per disk, ascending; a list of none ends them
 *
 * The lists are the standby's word. A wrong sum costs the standby its copy, and nobody else anything: so it must not say what it does
 * not know (replica.h). The primary spends 16 bytes for each block that its own disks have, and a time bounded by them; so does the
 * standby.
 */
#ifndef RP_REPLICATOR_SUMS_H
#define RP_REPLICATOR_SUMS_H

#include "core/disk_sums.h"
#include "replicator/transport.h"

/* The standby's side. Nothing changes the lists meanwhile. -ETIMEDOUT: the primary does not take them. */
int rp_sums_send(struct rp_conn *c, const struct rp_disk_sums *s, struct rp_error *err) RP_MUST_CHECK;
/* The primary's side. `size_bytes`: of its disks, 0: not private; sums of what lies beyond are dropped as they come. *out: the caller's
 * to rp_disk_sums_fini. -EPROTO: what came is no list, or too slow to be worth it; *out is not set. */
int rp_sums_receive(struct rp_conn *c, const uint64_t size_bytes[RP_DISK_SUMS_DISKS], struct rp_disk_sums *out, struct rp_error *err) RP_MUST_CHECK;

#endif
