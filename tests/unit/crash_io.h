/*
 * crash_io.h - a host that loses power, for one directory: every write and sync of a struct rp_durable is logged, and
 * afterwards the files can be put back as they could have been after a crash at any moment: what was synced is there;
 * of the rest each write is there, is missing, or is there in part (512-byte sectors).
 */
#ifndef RP_TESTS_CRASH_IO_H
#define RP_TESTS_CRASH_IO_H

#include "core/durable.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CRASH_FILES 8

enum crash_kind { CRASH_WRITE, CRASH_ZERO, CRASH_SYNC };
struct crash_op {
    enum crash_kind kind;
    unsigned file;
    uint64_t offset, len;
    uint8_t *data;
};
struct crash_io {
    struct rp_durable io;
    pthread_mutex_t lock;
    unsigned nfiles;
    struct { char path[256]; uint8_t *base; size_t size; } files[CRASH_FILES];
    struct crash_op *ops;
    size_t n, cap;
    bool on;
};

static inline unsigned crash_file(struct crash_io *c, int fd)
{
    char link[64], path[256] = "";
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    cr_assert_gt(readlink(link, path, sizeof(path) - 1), 0);
    for (unsigned i = 0; i < c->nfiles; i++)
        if (strcmp(c->files[i].path, path) == 0)
            return i;
    cr_assert(false, "%s is not watched", path);
    return 0;
}

static inline void crash_log(struct crash_io *c, enum crash_kind kind, int fd, const void *data, uint64_t offset, uint64_t len)
{
    if (!c->on)
        return;
    if (c->n == c->cap) {
        c->cap = c->cap ? c->cap * 2 : 1024;
        c->ops = realloc(c->ops, c->cap * sizeof(*c->ops));
    }
    struct crash_op *op = &c->ops[c->n++];
    *op = (struct crash_op){.kind = kind, .file = crash_file(c, fd), .offset = offset, .len = len};
    if (kind == CRASH_WRITE) {
        op->data = malloc(len);
        memcpy(op->data, data, len);
    }
}

static inline int crash_write(void *ctx, int fd, const void *data, size_t len, uint64_t offset)
{
    struct crash_io *c = ctx;
    pthread_mutex_lock(&c->lock);
    crash_log(c, CRASH_WRITE, fd, data, offset, len);
    int rc = rp_durable_host.write(NULL, fd, data, len, offset);
    pthread_mutex_unlock(&c->lock);
    return rc;
}
static inline int crash_zero(void *ctx, int fd, uint64_t offset, uint64_t len, bool unmap)
{
    struct crash_io *c = ctx;
    pthread_mutex_lock(&c->lock);
    crash_log(c, CRASH_ZERO, fd, NULL, offset, len);
    int rc = rp_durable_host.zero(NULL, fd, offset, len, unmap);
    pthread_mutex_unlock(&c->lock);
    return rc;
}
static inline int crash_sync(void *ctx, int fd)
{
    struct crash_io *c = ctx;
    pthread_mutex_lock(&c->lock);
    crash_log(c, CRASH_SYNC, fd, NULL, 0, 0);
    pthread_mutex_unlock(&c->lock);
    return 0;       /* the test's host does not lose power: nothing has to be waited for */
}

static inline void crash_init(struct crash_io *c)
{
    *c = (struct crash_io){.io = {.ctx = c, .write = crash_write, .zero = crash_zero, .sync = crash_sync}};
    pthread_mutex_init(&c->lock, NULL);
}

/* From here on: what `paths` hold now is safe, everything further is logged. */
static inline void crash_watch(struct crash_io *c, const char *const *paths, unsigned n)
{
    c->nfiles = n;
    for (unsigned i = 0; i < n; i++) {
        int fd = open(paths[i], O_RDONLY);
        struct stat st;
        cr_assert(fd >= 0 && fstat(fd, &st) == 0, "%s", paths[i]);
        snprintf(c->files[i].path, sizeof(c->files[i].path), "%s", paths[i]);
        c->files[i].size = (size_t)st.st_size;
        c->files[i].base = malloc(c->files[i].size + 1);
        cr_assert_eq(rp_read_all(fd, c->files[i].base, c->files[i].size, 0), 0);
        close(fd);
    }
    c->on = true;
}

static inline size_t crash_ops(struct crash_io *c)
{
    pthread_mutex_lock(&c->lock);
    size_t n = c->n;
    pthread_mutex_unlock(&c->lock);
    return n;
}

static inline void crash_put(uint8_t *image, const struct crash_op *op, uint64_t from, uint64_t to)
{
    if (op->kind == CRASH_WRITE)
        memcpy(image + op->offset + from, op->data + from, to - from);
    else
        memset(image + op->offset + from, 0, to - from);
}

/* A write that was not synced: there, missing, or each of its sectors by chance. */
static inline void crash_maybe(uint8_t *image, const struct crash_op *op, unsigned *seed)
{
    int fate = rand_r(seed) % 3;
    if (fate == 0)
        crash_put(image, op, 0, op->len);
    for (uint64_t at = 0; fate == 1 && at < op->len;) {
        uint64_t end = ((op->offset + at) / 512 + 1) * 512 - op->offset;
        end = end < op->len ? end : op->len;
        if (rand_r(seed) % 2)
            crash_put(image, op, at, end);
        at = end;
    }
}

/* The files as after a crash right after the first k operations. */
static inline void crash_at(struct crash_io *c, size_t k, unsigned *seed)
{
    for (unsigned f = 0; f < c->nfiles; f++) {
        uint8_t *image = malloc(c->files[f].size + 1);
        size_t synced = 0;
        memcpy(image, c->files[f].base, c->files[f].size);
        for (size_t i = 0; i < k; i++)
            if (c->ops[i].file == f && c->ops[i].kind == CRASH_SYNC)
                synced = i;
        for (size_t i = 0; i < k; i++)
            if (c->ops[i].file == f && c->ops[i].kind != CRASH_SYNC) {
                cr_assert_leq(c->ops[i].offset + c->ops[i].len, c->files[f].size);
                if (i < synced)
                    crash_put(image, &c->ops[i], 0, c->ops[i].len);
                else
                    crash_maybe(image, &c->ops[i], seed);
            }
        int fd = open(c->files[f].path, O_WRONLY | O_TRUNC);
        cr_assert_eq(rp_durable_host.write(NULL, fd, image, c->files[f].size, 0), 0);
        close(fd);
        free(image);
    }
}

static inline void crash_fini(struct crash_io *c)
{
    for (size_t i = 0; i < c->n; i++)
        free(c->ops[i].data);
    for (unsigned f = 0; f < c->nfiles; f++)
        free(c->files[f].base);
    free(c->ops);
}

#endif
