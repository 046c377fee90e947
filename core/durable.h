/*
 * durable.h - writes that have to survive a crash: pwrite, zeroing and syncing behind one small table, so that a test can
 * lose, tear and reorder whatever was not synced, and prove what is there afterwards. Two-slot headers on top of it.
 *
 * Any thread; one file belongs to one thread at a time.
 */
#ifndef RP_CORE_DURABLE_H
#define RP_CORE_DURABLE_H

#include "core/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct rp_durable {
    void *ctx;
    /* All of it, or -errno. */
    int (*write)(void *ctx, int fd, const void *data, size_t len, uint64_t offset);
    /* The range reads as zeroes from now on; `unmap`: its space may be given back. */
    int (*zero)(void *ctx, int fd, uint64_t offset, uint64_t len, bool unmap);
    int (*sync)(void *ctx, int fd);     /* fdatasync */
};
extern const struct rp_durable rp_durable_host;     /* the host's own calls */

/* All `len` bytes, or -errno; -ENODATA: the file ends before. */
int rp_read_all(int fd, void *data, size_t len, uint64_t offset) RP_MUST_CHECK;

/*
 * A small header that is replaced as a whole: two slots of RP_SLOT_BYTES at the beginning of a file, written in turn.
 *   u32 magic | u32 payload length | u64 sequence | payload | u64 XXH3_64bits of all before it
 * The valid slot with the higher sequence is the header, so a torn write leaves the one before.
 */
#define RP_SLOT_BYTES 4096u
#define RP_SLOT_PAYLOAD_MAX (RP_SLOT_BYTES - 24u)
/* -ENODATA: no slot is valid (err is not set). *seq is for the next rp_slot_write. `payload`: RP_SLOT_PAYLOAD_MAX bytes. */
int rp_slot_read(int fd, uint32_t magic, uint8_t *payload, size_t *len, uint64_t *seq) RP_MUST_CHECK;
/* Writes and syncs; *seq goes up. -errno: the header may be the old one or the new one. */
int rp_slot_write(const struct rp_durable *io, int fd, uint32_t magic, const void *payload, size_t len, uint64_t *seq) RP_MUST_CHECK;

/* A new file under a temporary name ("PATH.new"), for rp_durable_place. 0600. */
int rp_durable_create(const char *path, int *fd, struct rp_error *err) RP_MUST_CHECK;
/* What was created (and written and synced) becomes PATH, durably: PATH is never seen half made. */
int rp_durable_place(const char *path, struct rp_error *err) RP_MUST_CHECK;

#endif
