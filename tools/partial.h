/*
 * partial.h - the file F.partial that a checkpoint is written to until it is whole and becomes F.
 *
 * Its writer holds it by a lock on the open file (F_OFD_SETLK) until it is renamed or removed, so two VMs never write to one; what a
 * writer that died has left is taken over. It holds a guest's memory, so nobody but its owner may read it.
 */
#ifndef RP_TOOLS_PARTIAL_H
#define RP_TOOLS_PARTIAL_H

#include "core/error.h"

/* Makes the file or takes over what an interrupted checkpoint left there: a regular file of this user's with no other name. *fd_out is
 * empty, for reading and writing, held, and the caller's to close. Any thread; never waits for another process.
 * -EEXIST: something else is there, and is left as it is (RP_EXIT_USAGE). -EBUSY: another holds it (RP_EXIT_REFUSED). */
int rp_partial_open(const char *path, int *fd_out, struct rp_error *err) RP_MUST_CHECK;

/* Renames it, which replaces what is at `to`. -ESTALE: `path` names another file by now, and nothing was done. */
int rp_partial_rename(const char *path, int fd, const char *to, struct rp_error *err) RP_MUST_CHECK;

/* Removes it, unless `path` names another file by now. Before fd is closed. */
void rp_partial_remove(const char *path, int fd);

#endif
