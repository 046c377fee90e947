#include "replicator/held.h"

#include "core/bytes.h"
#include "core/clock.h"
#include "core/fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ASK_BYTES 16u
#define ASK_MS 3000                     /* for the ASK, like any message of a handshake */
#define RUN_HEADER 16u
#define RUN_BYTES (RUN_HEADER + RP_HELD_RUN * 16u)
#define BASE_NS 5000000000ull           /* all the hashes may take this … */
#define NS_PER_PAGE 4000u               /* … and as long as 4 MB/s take for each 16 bytes */
enum { ASK_WANTED = 1, ASK_STALE = 2, ASK_SUMS = 4 };

static uint64_t deadline(uint64_t pages)
{
    return rp_clock_ns() + BASE_NS + pages * NS_PER_PAGE;
}

/* A list that comes too slowly is one that cannot be had: all of RAM is sent then. */
static int list_failed(struct rp_error *err, int rc)
{
    return rp_error_set(err, rc == -ETIMEDOUT ? EPROTO : rc, "waiting for the pages that the standby holds: %s", strerror(-rc));
}

static int failed(struct rp_error *err, int rc, const char *what)
{
    return rc == 0 ? 0 : rp_error_set(err, rc, "%s: %s", what, strerror(-rc));
}

int rp_held_send_ask(struct rp_conn *c, const struct rp_held_ask *ask, struct rp_error *err)
{
    uint8_t msg[ASK_BYTES] = {0};
    if (rp_fault(RP_FAULT_LINK_ASK))
        return rp_error_set(err, EIO, "asking for what the standby holds: fault point");
    rp_st32(msg, (ask->wanted ? ASK_WANTED : 0) | (ask->stale ? ASK_STALE : 0) | (ask->sums ? ASK_SUMS : 0));
    return failed(err, rp_conn_send(c, msg, sizeof(msg)), "asking for what the standby holds");
}

int rp_held_receive_ask(struct rp_conn *c, struct rp_held_ask *out, struct rp_error *err)
{
    uint8_t msg[ASK_BYTES];
    int rc = rp_conn_recv_all(c, msg, sizeof(msg), rp_clock_ns() + ASK_MS * 1000000ull);
    if (rc < 0)
        return failed(err, rc, "waiting for what the primary asks");
    *out = (struct rp_held_ask){.wanted = rp_ld32(msg) & ASK_WANTED, .stale = rp_ld32(msg) & ASK_STALE, .sums = rp_ld32(msg) & ASK_SUMS};
    return 0;
}

static int send_run(struct rp_conn *c, const struct rp_digest *d, uint64_t gfn, uint32_t n, uint64_t until, struct rp_error *err)
{
    uint8_t msg[RUN_BYTES];
    if (rp_fault(RP_FAULT_LINK_HELD))
        return rp_error_set(err, EIO, "saying which pages are held: fault point");
    rp_st64(msg, gfn);
    rp_st32(msg + 8, n);
    rp_st32(msg + 12, 0);
    for (uint32_t i = 0; i < n; i++) {
        rp_st64(msg + RUN_HEADER + i * 16u, d->pages[gfn + i].lo);
        rp_st64(msg + RUN_HEADER + i * 16u + 8, d->pages[gfn + i].hi);
    }
    return failed(err, rp_conn_send_by(c, msg, RUN_HEADER + n * 16u, until), "saying which pages are held");
}

int rp_held_send(struct rp_conn *c, const struct rp_digest *d, struct rp_error *err)
{
    uint64_t until = deadline(d->gfn_end);
    for (uint64_t gfn = 0; gfn < d->gfn_end;) {
        uint32_t n = 0;
        while (gfn < d->gfn_end && rp_hash_is_zero(d->pages[gfn]))
            gfn++;
        while (gfn + n < d->gfn_end && n < RP_HELD_RUN && !rp_hash_is_zero(d->pages[gfn + n]))
            n++;
        int rc = n ? send_run(c, d, gfn, n, until, err) : 0;
        if (rc < 0)
            return rc;
        gfn += n;
    }
    return send_run(c, d, d->gfn_end, 0, until, err);
}

/* One run into pages, behind *next. 1: there are more; 0: that was the end. */
static int receive_run(struct rp_conn *c, uint64_t gfn_end, uint64_t *next, struct rp_hash128 *pages, struct rp_hash128 *sum, uint64_t until,
                       struct rp_error *err)
{
    uint8_t msg[RUN_BYTES];
    int rc = rp_conn_recv_all(c, msg, RUN_HEADER, until);
    if (rc < 0)
        return list_failed(err, rc);
    uint64_t gfn = rp_ld64(msg);
    uint32_t n = rp_ld32(msg + 8);
    if (gfn < *next || gfn > gfn_end || n > RP_HELD_RUN || n > gfn_end - gfn)
        return rp_error_set(err, EPROTO, "the standby says that it holds %u pages from gfn 0x%llx on, after 0x%llx of 0x%llx", n,
                            (unsigned long long)gfn, (unsigned long long)*next, (unsigned long long)gfn_end);
    if (n == 0)
        return 0;
    rc = rp_conn_recv_all(c, msg + RUN_HEADER, n * 16u, until);
    if (rc < 0)
        return list_failed(err, rc);
    for (uint32_t i = 0; i < n; i++) {
        struct rp_hash128 h = {rp_ld64(msg + RUN_HEADER + i * 16u), rp_ld64(msg + RUN_HEADER + i * 16u + 8)};
        pages[gfn + i] = h;
        sum->lo += h.lo;
        sum->hi += h.hi;
    }
    *next = gfn + n;
    return 1;
}

int rp_held_receive(struct rp_conn *c, const struct rp_held *held, struct rp_hash128 **out, struct rp_error *err)
{
    struct rp_hash128 *pages = calloc(held->gfn_end, sizeof(*pages)), sum = {0, 0};
    uint64_t next = 0, until = deadline(held->gfn_end);
    int rc;
    if (!pages)
        return rp_error_set(err, ENOMEM, "no memory for what the standby holds");
    while ((rc = receive_run(c, held->gfn_end, &next, pages, &sum, until, err)) > 0)
        ;
    if (rc == 0 && (sum.lo != held->sum.lo || sum.hi != held->sum.hi))
        rc = rp_error_set(err, EPROTO, "the pages that the standby says it holds are not those of its digest");
    if (rc < 0)
        free(pages);
    else
        *out = pages;
    return rc;
}
