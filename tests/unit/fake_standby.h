/*
 * fake_standby.h - a standby without KVM for component tests: a real listener, link and image whose thread serves one
 * primary, and then says to a switchover what the test wants. The source beside it is fake_source.h's.
 *
 *     standby_start ─► [a primary is served] ─► standby_join, or standby_cancel ─► standby_free
 */
#ifndef RP_TESTS_FAKE_STANDBY_H
#define RP_TESTS_FAKE_STANDBY_H

#include "core/image.h"
#include "replicator/link.h"
#include "tests/own_address.h"
#include "tests/unit/fake_source.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define STANDBY_MS 60000        /* how long it waits for the source to know that it runs */

struct standby {
    struct rp_ram_view ram;             /* base: NULL until a primary's first epoch needs it */
    struct rp_image *image;
    struct rp_link_recv *recv;
    struct rp_link_outcome outcome;     /* and `answered`: its thread's, until joined */
    int answered;                       /* rp_link_recv_running's result */
    /* what it says once it holds the last epoch of a switchover; the test may set it before it asks for one */
    enum { STANDBY_SILENT, STANDBY_RUNS, STANDBY_FAILS } says;
    _Atomic bool holds_back;            /* it takes epochs, and does not say that it has them until the test says so */
    struct rp_uri uri;
    pthread_t thread;
};

static int standby_ram(void *ctx, const struct rp_epoch_header *h, struct rp_ram_view *out, struct rp_error *err)
{
    (void)h, (void)err;
    struct standby *s = ctx;
    view_init(&s->ram);
    *out = s->ram;
    return 0;
}

static int standby_applied(void *ctx, struct rp_image *image, struct rp_error *err)
{
    (void)image, (void)err;
    struct standby *s = ctx;
    while (atomic_load(&s->holds_back))
        usleep(1000);
    return 0;
}

static inline void *standby_main(void *arg)
{
    struct standby *s = arg;
    struct rp_error err = {0};
    cr_assert_eq(rp_link_serve(s->recv, &s->outcome, &err), 0, "%s", err.text);
    if (s->outcome.end != RP_LINK_FINAL)
        return NULL;
    if (s->says == STANDBY_FAILS && rp_error_set(&err, EIO, "this standby fails whenever it is asked to"))
        rp_link_recv_failed(s->recv, &err);
    else if (s->says == STANDBY_RUNS)
        s->answered = rp_link_recv_running(s->recv, STANDBY_MS, &err);
    return NULL;
}

/* Listens at own_address(scheme). */
static inline void standby_start(struct standby *s, const char *scheme, const char *key, unsigned timeout_ms)
{
    struct rp_error err = {0};
    struct rp_image_ops ops = {.ctx = s, .ram = standby_ram};
    struct rp_link_recv_config cfg = {.vm_name = "fake", .timeout_ms = timeout_ms, .applied = standby_applied, .ctx = s};
    struct rp_listener *l;
    memset(s, 0, sizeof(*s));
    s->uri = own_address(scheme);
    cr_assert_eq(rp_image_create(RP_IMAGE_STAGED, &ops, 64u << 20, &s->image, &err), 0, "%s", err.text);
    cr_assert_eq(rp_listen(&s->uri, &l, &err), 0, "%s", err.text);
    cfg.image = s->image;
    cfg.key.len = (uint32_t)strlen(key);
    memcpy(cfg.key.bytes, key, cfg.key.len);
    cr_assert_eq(rp_link_recv_create(l, &cfg, &s->recv, &err), 0, "%s", err.text);
    pthread_create(&s->thread, NULL, standby_main, s);
}

/* Waits until it has served its primary: `outcome` is known. */
static inline void standby_join(struct standby *s)
{
    pthread_join(s->thread, NULL);
}

/* As when its process goes: whatever it serves is left. `outcome` is known. */
static inline void standby_cancel(struct standby *s)
{
    rp_link_cancel(s->recv);
    standby_join(s);
}

static inline void standby_free(struct standby *s)
{
    rp_link_recv_destroy(s->recv);
    rp_image_destroy(s->image);
    if (s->ram.base)
        munmap(s->ram.base, PAGES * RP_PAGE_SIZE);
}

/* INV-2: what it holds is the whole epoch whose trailer it keeps. */
static inline void standby_is_whole(const struct standby *s)
{
    struct rp_hash128 d = rp_digest_of(&s->ram);
    cr_assert_eq(d.lo, rp_image_trailer(s->image)->digest_lo, "INV-2: half an epoch");
    cr_assert_eq(d.hi, rp_image_trailer(s->image)->digest_hi, "INV-2: half an epoch");
}

/* It holds what the source, which stands, holds. */
static inline void standby_is(const struct standby *s, const struct fake *f)
{
    cr_assert_eq(memcmp(f->ram.base, s->ram.base, PAGES * RP_PAGE_SIZE), 0, "the standby's image is not the source");
}

#endif
