#include "replicator/lease.h"

#include "core/fault.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define TTL_MS_DEFAULT 2000u
#define TTL_MS_MIN 50u
#define TTL_MS_MAX 3600000u

void rp_lease_name(const char *vm_name, char out[193])
{
    static const char ok[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.";
    char *at = out;
    for (const char *p = vm_name; *p && at < out + 189; p++) {
        if (strchr(ok, *p) && !(*p == '.' && p == vm_name))
            *at++ = *p;
        else
            at += snprintf(at, 4, "%%%02X", (unsigned char)*p);
    }
    *at = '\0';
}

static void name_owner(char *out, size_t size)
{
    char host[33] = "host";
    uint32_t random = 0;
    if (gethostname(host, sizeof(host)) < 0)
        snprintf(host, sizeof(host), "host");
    host[sizeof(host) - 1] = '\0';
    if (getrandom(&random, sizeof(random), 0) < 0)
        random = (uint32_t)rp_clock_ns();
    snprintf(out, size, "%s:%d:%08x", host, getpid(), random);
}

static int open_backend(const char *where, const char *vm_name, struct rp_lease **out, struct rp_error *err)
{
    if (strncmp(where, "file:", 5) == 0 && where[5])
        return rp_lease_file_open(where + 5, vm_name, out, err);
    if (strncmp(where, "etcd:", 5) == 0 && where[5])
        return rp_lease_etcd_open(where + (strncmp(where + 5, "//", 2) == 0 ? 7 : 5), vm_name, out, err);
    if (strcmp(where, "none") == 0)
        return rp_lease_none_open(out, err);
    return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "no lease's place; write file:DIRECTORY, etcd:HOST:PORT or none");
}

int rp_lease_open(const struct rp_lease_config *cfg, struct rp_lease **out, struct rp_error *err)
{
    unsigned ttl = cfg->ttl_ms ? cfg->ttl_ms : TTL_MS_DEFAULT;
    struct rp_lease *l;
    if (ttl < TTL_MS_MIN || ttl > TTL_MS_MAX)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "a lease of %u ms: between %u and %u is possible", ttl, TTL_MS_MIN, TTL_MS_MAX);
    if (!cfg->vm_name[0])
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "a lease needs the VM's name");
    int rc = open_backend(cfg->where, cfg->vm_name, &l, err);
    if (rc < 0)
        return rc;
    snprintf(l->vm_name, sizeof(l->vm_name), "%s", cfg->vm_name);
    snprintf(l->owner, sizeof(l->owner), "%s", cfg->owner);
    if (!l->owner[0])
        name_owner(l->owner, sizeof(l->owner));
    for (char *p = l->owner; *p; p++)
        if ((unsigned char)*p <= ' ' || *p == '"' || *p == '\\')
            *p = '_';
    l->ttl_ms = ttl;
    *out = l;
    return 0;
}

void rp_lease_destroy(struct rp_lease *l)
{
    if (l)
        l->ops->destroy(l);
}

int rp_lease_try(struct rp_lease *l, struct rp_lease_grant *out, uint64_t *again_ns, struct rp_error *err)
{
    if (rp_fault(RP_FAULT_LEASE_ACQUIRE))
        return rp_error_set(err, EIO, "acquiring the lease: fault point");
    struct rp_lease_grant g = {l->term, l->deadline_ns};
    if (l->term && rp_lease_valid(l->deadline_ns)) {
        *out = g;
        return 0;
    }
    *again_ns = l->ttl_ms * 1000000u / 4;
    int rc = l->ops->try(l, &g, again_ns, err);
    if (rc < 0)
        return rc;
    l->term = g.term;
    l->deadline_ns = g.deadline_ns;
    *out = g;
    return 0;
}

static int not_in_time(struct rp_lease *l, int timeout_ms, struct rp_error *err)
{
    struct rp_lease_holder h;
    if (rp_lease_query(l, &h, NULL) < 0)
        return rp_error_set(err, ETIMEDOUT, "the lease of \"%s\" could not be acquired in %d ms", l->vm_name, timeout_ms);
    return rp_error_exit(err, RP_EXIT_REFUSED, ETIMEDOUT, "the lease of \"%s\" is held by %s (term %llu), still after %d ms", l->vm_name,
                         h.owner, (unsigned long long)h.term, timeout_ms);
}

int rp_lease_acquire(struct rp_lease *l, int timeout_ms, bool (*give_up)(void *ctx), void *ctx, struct rp_lease_grant *out, struct rp_error *err)
{
    uint64_t until = rp_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    for (;;) {
        uint64_t again, now;
        struct rp_error why = {0};
        int rc = rp_lease_try(l, out, &again, &why);
        if (rc == 0)
            return 0;
        if (give_up && give_up(ctx))
            return rp_error_exit(err, RP_EXIT_INTERRUPTED, ECANCELED, "the lease is not waited for any more");
        if ((now = rp_clock_ns()) >= until) {
            if (rc == -EBUSY)
                return not_in_time(l, timeout_ms, err);
            if (err)
                *err = why;
            return rc;
        }
        if (again > l->ops->poll_ms * 1000000u)
            again = l->ops->poll_ms * 1000000u;     /* a release is noticed soon */
        if (again > until - now)
            again = until - now;
        nanosleep(&(struct timespec){.tv_nsec = (long)again}, NULL);
    }
}

int rp_lease_renew(struct rp_lease *l, uint64_t *deadline_ns, struct rp_error *err)
{
    uint64_t deadline;
    if (!l->term || !rp_lease_valid(l->deadline_ns)) {
        l->term = 0;
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the lease of \"%s\" has run out", l->vm_name);
    }
    if (rp_fault(RP_FAULT_LEASE_RENEW))
        return rp_error_set(err, EIO, "renewing the lease: fault point");
    int rc = l->ops->renew(l, &deadline, err);
    if (rc == -ESTALE)
        l->term = 0;
    if (rc < 0)
        return rc;
    *deadline_ns = l->deadline_ns = deadline;
    return 0;
}

int rp_lease_advance(struct rp_lease *l, struct rp_lease_grant *out, struct rp_error *err)
{
    struct rp_lease_grant g = {0};
    if (!l->term || !rp_lease_valid(l->deadline_ns)) {
        l->term = 0;
        return rp_error_exit(err, RP_EXIT_REFUSED, ESTALE, "the lease of \"%s\" has run out", l->vm_name);
    }
    if (rp_fault(RP_FAULT_LEASE_ADVANCE))
        return rp_error_set(err, EIO, "advancing the lease: fault point");
    int rc = l->ops->advance(l, &g, err);
    if (rc == -ESTALE || rc == -EBUSY)
        l->term = 0;
    if (rc == -EBUSY)
        rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "the lease of \"%s\" was taken by somebody else", l->vm_name);
    if (rc < 0)
        return rc;
    l->term = g.term;
    l->deadline_ns = g.deadline_ns;
    *out = g;
    return 0;
}

int rp_lease_release(struct rp_lease *l, struct rp_error *err)
{
    if (!l->term)
        return 0;
    int rc = rp_fault(RP_FAULT_LEASE_RELEASE) ? rp_error_set(err, EIO, "releasing the lease: fault point") : l->ops->release(l, err);
    l->term = 0;
    l->deadline_ns = 0;
    return rc;
}

int rp_lease_query(struct rp_lease *l, struct rp_lease_holder *out, struct rp_error *err)
{
    *out = (struct rp_lease_holder){0};
    return l->ops->query(l, out, err);
}

/* --- none: whoever asks, holds. Terms are the wall clock, so that they grow from one holder to the next. --- */

static int none_try(struct rp_lease *l, struct rp_lease_grant *out, uint64_t *again_ns, struct rp_error *err)
{
    (void)l, (void)again_ns, (void)err;
    *out = (struct rp_lease_grant){.term = rp_wall_ns(), .deadline_ns = RP_LEASE_FOREVER};
    return 0;
}

static int none_renew(struct rp_lease *l, uint64_t *deadline_ns, struct rp_error *err)
{
    (void)l, (void)err;
    *deadline_ns = RP_LEASE_FOREVER;
    return 0;
}

static int none_release(struct rp_lease *l, struct rp_error *err)
{
    (void)l, (void)err;
    return 0;
}

static int none_advance(struct rp_lease *l, struct rp_lease_grant *out, struct rp_error *err)
{
    uint64_t again;
    return none_try(l, out, &again, err);
}

static int none_query(struct rp_lease *l, struct rp_lease_holder *out, struct rp_error *err)
{
    (void)err;
    *out = (struct rp_lease_holder){.term = l->term, .held = l->term != 0};
    snprintf(out->owner, sizeof(out->owner), "%s", l->term ? l->owner : "nobody knows");
    return 0;
}

static void none_destroy(struct rp_lease *l)
{
    free(l);
}

static const struct rp_lease_ops none_ops = {
    .name = "none", .poll_ms = 10, .try = none_try, .renew = none_renew, .release = none_release,
    .advance = none_advance, .query = none_query, .destroy = none_destroy,
};

int rp_lease_none_open(struct rp_lease **out, struct rp_error *err)
{
    struct rp_lease *l = calloc(1, sizeof(*l));
    if (!l)
        return rp_error_set(err, ENOMEM, "no memory for a lease");
    l->ops = &none_ops;
    *out = l;
    return 0;
}
