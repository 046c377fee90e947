/*
 * lease_file.c - the lease as files in a directory that both hosts see. No lock is ever waited for, so a holder that
 * was stopped at the worst moment blocks nobody.
 *
 * DIRECTORY/VM.lease.TERM is one term: made once (link(2), so a term has one owner, INV-3), rewritten in place by that
 * owner only. Its text says state, sequence, ttl and owner. The newest term counts.
 *
 *   claim    make the next term's file, state "pending", when the newest term is released, or its holder is known to be
 *            dead, or its file has not changed for ttl + margin while we watched (our clock)
 *   then     look at the predecessor again: changed after all? Its holder renewed just before the claim; wait anew. It
 *            cannot renew again: see renew
 *   activate = renew: write state "held" and the next sequence, sync, and only then look whether a newer term exists
 *
 * Claim and renew each write first and look afterwards, so of two that run at once at least one sees the other:
 * a holder that sees the claim stops at its deadline; a claimant that sees the renewal waits that deadline out.
 *
 * "Known to be dead": the holder locks its file (OFD lock); on the same host (boot id and name) a lock on an active term
 * that we have seen, and that is free now, means that the process has ended. A lock that was never seen proves nothing: there
 * are mounts (9p without a cache) where each name has an inode of its own and nobody sees the locks of others. Locks of other
 * hosts are not believed: too many mounts keep them local.
 * A pending term ends by waiting only: its predecessor may still be within its time.
 *
 * What the storage must do: link(2) is atomic; a file that was written and synced on one host is read back, by a new
 * open, on the other; so does a name (NFS: noac,lookupcache=none).
 */
#include "core/bytes.h"
#include "replicator/lease.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define RECORD_BYTES 512u       /* one sector */
#define KEPT_TERMS 8u           /* older files go; so many that a directory scan never misses all of them */
#define DAMAGED_WAIT_MS 60000u  /* a record that cannot be read says no ttl */
#define TERM_DIGITS 20

enum state { STATE_DAMAGED, STATE_PENDING, STATE_HELD, STATE_RELEASED };
static const char *const state_names[] = {"damaged", "pending", "held", "released"};

struct record {
    enum state state;
    uint64_t term, seq;
    uint64_t ttl_ms;        /* of its owner, or of an earlier term that may still be within its time */
    char owner[64], host[64], boot[64];
    uint64_t hash;          /* of the bytes as they stand in the file */
};

struct file_lease {
    struct rp_lease base;
    int dir;
    char name[208];             /* VM.lease. */
    char host[64], boot[64];
    int fd;                     /* our term's file, locked; -1 */
    uint64_t mine;              /* our term: pending, held, or run out; 0: none */
    uint64_t pred;              /* the term before ours */
    struct record record;       /* ours as last written */
    uint64_t seen_term, seen_hash, seen_ns;     /* the newest foreign record, and since when it has stood so */
    uint64_t locked_term;       /* the term whose file we have seen locked by its holder; 0: none */
};

static struct file_lease *of(struct rp_lease *l)
{
    return (struct file_lease *)l;
}

static int failed(struct file_lease *f, const char *what, struct rp_error *err)
{
    int e = errno;
    return rp_error_set(err, e, "lease of \"%s\": %s: %s", f->base.vm_name, what, strerror(e));
}

static void term_path(const struct file_lease *f, uint64_t term, char out[256])
{
    snprintf(out, 256, "%s%0*llu", f->name, TERM_DIGITS, (unsigned long long)term);
}

/* --- records --- */

static void format_record(const struct record *r, char out[RECORD_BYTES])
{
    char text[RECORD_BYTES];
    memset(out, ' ', RECORD_BYTES);
    int n = snprintf(text, sizeof(text), "reprise-lease 1\nterm %llu\nstate %s\nseq %llu\nttl_ms %llu\nowner %s\nhost %s\nboot %s\n",
                     (unsigned long long)r->term, state_names[r->state], (unsigned long long)r->seq, (unsigned long long)r->ttl_ms,
                     r->owner, r->host, r->boot);
    memcpy(out, text, (size_t)n);
    char sum[32];
    snprintf(sum, sizeof(sum), "\nsum %016llx\n", (unsigned long long)XXH3_64bits(out, RECORD_BYTES - 22));
    memcpy(out + RECORD_BYTES - 22, sum, 22);
}

static enum state state_of(const char *name)
{
    for (unsigned i = STATE_PENDING; i <= STATE_RELEASED; i++)
        if (strcmp(name, state_names[i]) == 0)
            return (enum state)i;
    return STATE_DAMAGED;
}

static void parse_record(const char in[RECORD_BYTES], struct record *r)
{
    char text[RECORD_BYTES + 1], state[16] = "";
    unsigned long long term, seq, ttl, sum;
    memset(r, 0, sizeof(*r));
    r->hash = XXH3_64bits(in, RECORD_BYTES);
    memcpy(text, in, RECORD_BYTES);
    text[RECORD_BYTES] = '\0';
    if (sscanf(text + RECORD_BYTES - 22, "\nsum %16llx\n", &sum) != 1 || sum != XXH3_64bits(in, RECORD_BYTES - 22))
        return;
    if (sscanf(text, "reprise-lease 1\nterm %llu\nstate %15s\nseq %llu\nttl_ms %llu\nowner %63s\nhost %63s\nboot %63s", &term, state, &seq,
               &ttl, r->owner, r->host, r->boot) != 7)
        return;
    r->term = term;
    r->seq = seq;
    r->ttl_ms = ttl;
    r->state = ttl && ttl <= 3600000 ? state_of(state) : STATE_DAMAGED;
}

/* -ENOENT: no such term. A record that is being rewritten is read again. */
static int read_record(struct file_lease *f, uint64_t term, struct record *out, struct rp_error *err)
{
    char path[256], bytes[RECORD_BYTES];
    term_path(f, term, path);
    for (int i = 0; i < 4; i++) {
        int fd = openat(f->dir, path, O_RDONLY | O_CLOEXEC);    /* anew each time: a network filesystem asks its server */
        if (fd < 0)
            return errno == ENOENT ? -ENOENT : failed(f, path, err);
        memset(bytes, 0, sizeof(bytes));
        ssize_t n = pread(fd, bytes, sizeof(bytes), 0);
        close(fd);
        if (n < 0)
            return failed(f, path, err);
        parse_record(bytes, out);
        if (out->state != STATE_DAMAGED && out->term == term)
            return 0;
        out->state = STATE_DAMAGED;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return 0;
}

static int write_record(struct file_lease *f, int fd, const struct record *r, struct rp_error *err)
{
    char bytes[RECORD_BYTES];
    format_record(r, bytes);
    ssize_t n = pwrite(fd, bytes, sizeof(bytes), 0);
    if (n >= 0 && n != (ssize_t)sizeof(bytes)) {
        errno = ENOSPC;
        n = -1;
    }
    return n < 0 || fdatasync(fd) < 0 ? failed(f, "writing", err) : 0;
}

/* --- the directory --- */

/* Calls fn for each term there is. */
static int each_term(struct file_lease *f, void (*fn)(struct file_lease *f, uint64_t term, uint64_t *ctx), uint64_t *ctx,
                     struct rp_error *err)
{
    int fd = openat(f->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        int rc = failed(f, "reading the directory", err);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    size_t prefix = strlen(f->name);
    struct dirent *e;
    while (errno = 0, (e = readdir(d))) {
        char *end;
        if (strncmp(e->d_name, f->name, prefix) != 0 || strlen(e->d_name) != prefix + TERM_DIGITS)
            continue;
        uint64_t term = strtoull(e->d_name + prefix, &end, 10);
        if (!*end && term)
            fn(f, term, ctx);
    }
    int rc = errno ? failed(f, "reading the directory", err) : 0;      /* what was not read may be the newest term */
    closedir(d);
    return rc;
}

static void keep_newest(struct file_lease *f, uint64_t term, uint64_t *newest)
{
    (void)f;
    if (term > *newest)
        *newest = term;
}

static void remove_old(struct file_lease *f, uint64_t term, uint64_t *newest)
{
    char path[256];
    if (term + KEPT_TERMS > *newest)
        return;
    term_path(f, term, path);
    if (unlinkat(f->dir, path, 0) < 0) {
        /* the next holder tries again */
    }
}

static int newest_term(struct file_lease *f, uint64_t *out, struct rp_error *err)
{
    *out = 0;
    return each_term(f, keep_newest, out, err);
}

static bool newer_exists(struct file_lease *f, uint64_t term)
{
    struct record r;
    return read_record(f, term + 1, &r, NULL) != -ENOENT;   /* what cannot be read may be there */
}

/* --- claiming --- */

static int lock_file(int fd)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(fd, F_OFD_SETLK, &fl) < 0 ? -errno : 0;
}

/* The holder is a process of this host, and has ended: its lock has been seen, and is gone. It is looked at, not tried: another
 * claimant would take our try for the holder. */
static bool known_dead(struct file_lease *f, const struct record *r)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char path[256];
    if (r->state != STATE_HELD || strcmp(r->boot, f->boot) != 0 || strcmp(r->host, f->host) != 0)
        return false;
    term_path(f, r->term, path);
    int fd = openat(f->dir, path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool known = fcntl(fd, F_OFD_GETLK, &fl) == 0, locked = fl.l_type != F_UNLCK;
    close(fd);
    if (known && locked)
        f->locked_term = r->term;
    return known && !locked && f->locked_term == r->term;
}

/* Notes what stands there; returns how long it has stood so, on our clock. */
static uint64_t watched_ns(struct file_lease *f, uint64_t term, const struct record *r)
{
    uint64_t now = rp_lease_now();
    if (f->seen_term != term || f->seen_hash != r->hash) {
        f->seen_term = term;
        f->seen_hash = r->hash;
        f->seen_ns = now;
    }
    return now - f->seen_ns;
}

/* 0: whoever held `term` is past its time. -EBUSY: not yet; *again_ns. */
static int past(struct file_lease *f, uint64_t term, uint64_t *ttl_ms, uint64_t *again_ns, struct rp_error *err)
{
    struct record r;
    int rc = read_record(f, term, &r, err);
    if (rc < 0)
        return rc == -ENOENT ? -EBUSY : rc;     /* removed between scan and read: look again */
    *ttl_ms = r.state == STATE_DAMAGED ? DAMAGED_WAIT_MS : r.ttl_ms;
    uint64_t watched = watched_ns(f, term, &r), need = *ttl_ms * 1000000u + rp_lease_margin_ns(*ttl_ms);
    if (r.state == STATE_RELEASED || watched >= need || known_dead(f, &r))
        return 0;
    *again_ns = need - watched;
    return -EBUSY;
}

static void forget_ours(struct file_lease *f)
{
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
    f->mine = 0;
    f->base.pending = false;
}

/* Makes the file of `term`, whole from its first moment, locked by us. -EBUSY: somebody was faster. */
static int claim(struct file_lease *f, uint64_t term, uint64_t ttl_ms, struct rp_error *err)
{
    char path[256], temp[300];
    struct record r = {.state = STATE_PENDING, .term = term, .seq = 1, .ttl_ms = f->base.ttl_ms > ttl_ms ? f->base.ttl_ms : ttl_ms};
    memcpy(r.owner, f->base.owner, sizeof(r.owner));
    memcpy(r.host, f->host, sizeof(r.host));
    memcpy(r.boot, f->boot, sizeof(r.boot));
    term_path(f, term, path);
    snprintf(temp, sizeof(temp), ".%s.%s", path, f->base.owner);
    for (char *p = temp; *p; p++)
        if (*p == '/')
            *p = '_';
    int fd = openat(f->dir, temp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return failed(f, temp, err);
    lock_file(fd);      /* without it only the shortcut for a dead holder is missing */
    int rc = write_record(f, fd, &r, err);
    if (rc == 0 && linkat(f->dir, temp, f->dir, path, 0) < 0)
        rc = errno == EEXIST ? -EBUSY : failed(f, path, err);
    unlinkat(f->dir, temp, 0);
    if (rc == 0 && fsync(f->dir) < 0 && errno != EINVAL)
        rc = failed(f, "syncing the directory", err);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    forget_ours(f);
    f->fd = fd;
    f->mine = term;
    f->pred = term - 1;
    f->record = r;
    f->base.pending = true;
    return 0;
}

/* L1: the deadline counts from before the write. Write, sync, then look for a newer term. */
static int write_held(struct file_lease *f, uint64_t *deadline_ns, struct rp_error *err)
{
    struct record r = f->record;
    uint64_t start = rp_lease_now();
    r.state = STATE_HELD;
    r.seq = ++f->record.seq;        /* never used again: what failed may be there all the same, and the next has to look like another one */
    r.ttl_ms = f->base.ttl_ms;
    int rc = write_record(f, f->fd, &r, err);
    if (rc < 0)
        return rc;
    f->record = r;
    if (newer_exists(f, f->mine))
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the lease of \"%s\" (term %llu) was taken by somebody else",
                             f->base.vm_name, (unsigned long long)f->mine);
    *deadline_ns = start + f->base.ttl_ms * 1000000u;
    f->base.pending = false;
    return 0;
}

static int file_try(struct rp_lease *base, struct rp_lease_grant *out, uint64_t *again_ns, struct rp_error *err)
{
    struct file_lease *f = of(base);
    uint64_t newest, ttl_ms = 0;
    int rc = newest_term(f, &newest, err);
    if (rc < 0)
        return rc;
    bool pending = f->mine && f->mine == newest && f->record.state == STATE_PENDING;
    bool run_out = f->mine && f->mine == newest && !pending;     /* ours, and we know that we stopped */
    uint64_t before = pending ? f->pred : newest;
    if (before && !run_out && (rc = past(f, before, &ttl_ms, again_ns, err)) < 0)
        return rc;
    if (!pending) {
        if ((rc = claim(f, newest + 1, run_out ? 0 : ttl_ms, err)) < 0)
            return rc;
        /* The predecessor renewed while we claimed? Then it is within its time still, for the last time. */
        if (before && !run_out && (rc = past(f, before, &ttl_ms, again_ns, err)) < 0)
            return rc;
    }
    rc = write_held(f, &out->deadline_ns, err);
    if (rc < 0) {
        if (rc == -ESTALE)
            forget_ours(f);
        return rc == -ESTALE ? -EBUSY : rc;
    }
    out->term = f->mine;
    newest = f->mine;
    if (each_term(f, remove_old, &newest, NULL) < 0) {
        /* the next holder tidies up */
    }
    return 0;
}

static int file_renew(struct rp_lease *base, uint64_t *deadline_ns, struct rp_error *err)
{
    return write_held(of(base), deadline_ns, err);
}

static int file_release(struct rp_lease *base, struct rp_error *err)
{
    struct file_lease *f = of(base);
    struct record r = f->record;
    r.state = STATE_RELEASED;
    r.seq++;
    int rc = write_record(f, f->fd, &r, err);
    forget_ours(f);
    return rc;
}

/* A claim without a wait: the predecessor is ourselves. The old term's file stays as it is until the new one stands. */
static int file_advance(struct rp_lease *base, struct rp_lease_grant *out, struct rp_error *err)
{
    struct file_lease *f = of(base);
    int rc = claim(f, f->mine + 1, 0, err);
    if (rc < 0)
        return rc;
    out->term = f->mine;
    rc = write_held(f, &out->deadline_ns, err);
    return rc < 0 ? -ESTALE : 0;    /* the old term is behind us in any case */
}

static int file_query(struct rp_lease *base, struct rp_lease_holder *out, struct rp_error *err)
{
    struct file_lease *f = of(base);
    struct record r;
    uint64_t newest;
    int rc = newest_term(f, &newest, err);
    if (rc < 0 || newest == 0)
        return rc;
    if ((rc = read_record(f, newest, &r, err)) < 0)
        return rc;
    if (f->base.pending && newest > f->mine)
        forget_ours(f);         /* somebody has waited our claim out */
    if (newest != f->mine) {
        watched_ns(f, newest, &r);
        known_dead(f, &r);      /* whoever watches has seen the lock before it is free */
    }
    out->term = newest;
    out->held = r.state != STATE_RELEASED;
    out->ttl_ms = r.ttl_ms;
    snprintf(out->owner, sizeof(out->owner), "%s", r.state == STATE_DAMAGED ? "a damaged record" : r.owner);
    return 0;
}

static void file_destroy(struct rp_lease *base)
{
    struct file_lease *f = of(base);
    forget_ours(f);
    close(f->dir);
    free(f);
}

static const struct rp_lease_ops file_ops = {
    .name = "file", .poll_ms = 5, .try = file_try, .renew = file_renew, .release = file_release, .advance = file_advance,
    .query = file_query, .destroy = file_destroy,
};

static void one_word(const char *path, char *out, size_t size)
{
    FILE *fp = fopen(path, "re");
    char word[64] = "unknown";
    if (fp && fscanf(fp, "%63s", word) != 1)
        snprintf(word, sizeof(word), "unknown");
    if (fp)
        fclose(fp);
    snprintf(out, size, "%s", word);
}

int rp_lease_file_open(const char *dir, const char *vm_name, struct rp_lease **out, struct rp_error *err)
{
    struct file_lease *f = calloc(1, sizeof(*f));
    if (!f)
        return rp_error_set(err, ENOMEM, "no memory for a lease");
    f->base.ops = &file_ops;
    f->fd = -1;
    char name[193];
    rp_lease_name(vm_name, name);
    snprintf(f->name, sizeof(f->name), "%s.lease.", name);
    f->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (f->dir < 0) {
        int e = errno;
        free(f);
        return rp_error_exit(err, RP_EXIT_HOST, e, "lease directory %s: %s", dir, strerror(e));
    }
    one_word("/proc/sys/kernel/random/boot_id", f->boot, sizeof(f->boot));
    one_word("/proc/sys/kernel/hostname", f->host, sizeof(f->host));
    *out = &f->base;
    return 0;
}
