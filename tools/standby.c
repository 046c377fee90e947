/* The waiting side: making it, serving the link, and what the ends of sessions mean. takeover.c goes on from there. */
#include "tools/standby_internal.h"

#include "core/clock.h"
#include "core/thread.h"
#include "tools/json.h"
#include "tools/protection.h"
#include "tools/vm_fence.h"
#include "vmm/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

static const char *const state_names[] = {"waiting", "syncing", "ready", "alone", "handed-over", "behind", "taking-over"};

void rp_standby_set_state(struct rp_standby *s, enum rp_standby_state state)
{
    pthread_mutex_lock(&s->lock);
    if (s->state != state) {
        s->state = state;
        s->since_wall_ns = rp_wall_ns();
    }
    pthread_mutex_unlock(&s->lock);
}

enum rp_standby_state rp_standby_state(struct rp_standby *s)
{
    pthread_mutex_lock(&s->lock);
    enum rp_standby_state state = s->state;
    pthread_mutex_unlock(&s->lock);
    return state;
}

/* --- the serving thread --- */

/* The machine around the image's RAM, outputs shut (S3). Disks are opened at the takeover: as long as epochs are applied to them they are
 * not a machine's. */
static int make_ahead(struct rp_standby *s, struct rp_error *err)
{
    struct rp_machine_config *cfg = malloc(sizeof(*cfg));
    if (!cfg)
        return rp_error_set(err, ENOMEM, "no memory for a machine");
    *cfg = s->o->machine;
    cfg->disks_later = true;
    int rc = rp_entry_make(s->entry, cfg, s->vm->events, &s->machine, err);
    free(cfg);
    return rc;
}

/* A primary is protected only once it is known that this host can run the VM: the first whole epoch of a session is entered to see it, also
 * by a machine that there was: who starts a VM anew under its id may have changed it. */
static int rehearse(struct rp_standby *s, struct rp_error *err)
{
    int rc = s->machine ? 0 : make_ahead(s, err);
    if (rc == 0)
        rc = rp_machine_rehearse(s->machine, rp_image_sections(rp_entry_image(s->entry)), err);
    s->unusable = rc < 0;
    if (rc < 0)
        return rp_error_wrap(err, "this host cannot run it");
    rp_machine_output_deadline(s->machine, RP_OUTPUTS_SHUT);
    return 0;
}

static int on_applied(void *ctx, struct rp_image *image, struct rp_error *err)
{
    struct rp_standby *s = ctx;
    bool first = rp_standby_state(s) != RP_STANDBY_READY;
    int rc = first ? rehearse(s, err) : 0;
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&s->lock);
    s->stale = false;
    s->epoch = rp_image_epoch(image);
    s->term = rp_image_header(image)->term;
    s->epoch_wall_ns = rp_image_trailer(image)->wall_ns;
    s->applied++;
    pthread_mutex_unlock(&s->lock);
    if (first) {
        rp_standby_set_state(s, RP_STANDBY_READY);
        rp_events_emit(s->vm->events, s->epoch, "STANDBY_READY", "{\"epoch\": %llu, \"term\": %llu}", (unsigned long long)s->epoch,
                       (unsigned long long)s->term);
    }
    return 0;
}

/* S4: outputs have left since. The lease would say so, too, where there is one. */
static void on_stale(void *ctx)
{
    struct rp_standby *s = ctx;
    pthread_mutex_lock(&s->lock);
    s->stale = s->epoch != 0;
    pthread_mutex_unlock(&s->lock);
}

/* Nobody is connected, and nothing is known to be coming. `seek`: what is held may be needed. */
static void stay_alone(struct rp_standby *s, bool seek)
{
    pthread_mutex_lock(&s->lock);
    bool stale = s->stale;
    uint64_t epoch = s->epoch;
    pthread_mutex_unlock(&s->lock);
    rp_standby_set_state(s, epoch == 0 ? RP_STANDBY_WAITING : stale ? RP_STANDBY_BEHIND : RP_STANDBY_ALONE);
    if (epoch && stale)
        rp_events_emit(s->vm->events, epoch, "STANDBY_BEHIND", "{\"epoch\": %llu, \"reason\": \"the VM has run unprotected since\"}",
                       (unsigned long long)epoch);
    else if (epoch && seek)
        rp_fence_follow(s->vm->fence, s->term);
}

static void part_from_primary(struct rp_standby *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->peer[0])
        memcpy(s->last_peer, s->peer, sizeof(s->last_peer));
    s->peer[0] = '\0';
    pthread_mutex_unlock(&s->lock);
}

/* Nobody is being served; and should a primary have been admitted, nothing came of it. */
static void on_alone(void *ctx)
{
    struct rp_standby *s = ctx;
    part_from_primary(s);
    rp_replica_session(s->replica, false);
    if (rp_standby_state(s) == RP_STANDBY_SYNCING)
        stay_alone(s, !rp_fence_is_none(s->vm->fence));
}

static void free_image(struct rp_standby *s)
{
    rp_entry_destroy(s->entry);
    s->entry = NULL;
    rp_machine_destroy(s->machine);
    s->machine = NULL;
}

/* What a primary may build upon. */
static void on_disks(void *ctx, const struct rp_hello *hello, struct rp_disk_base *out)
{
    struct rp_standby *s = ctx;
    struct rp_replica_status st;
    rp_replica_session(s->replica, true);
    rp_replica_status(s->replica, &st);
    if (memcmp(st.vm_id, hello->vm_id, sizeof(st.vm_id)) == 0)
        *out = st.base;
}

static void on_sums(void *ctx, struct rp_disk_sums *out)
{
    struct rp_standby *s = ctx;
    rp_replica_lend(s->replica, out);
}

static int open_replica(struct rp_standby *s, struct rp_error *err)
{
    const struct rp_machine_config *m = &s->o->machine;
    struct rp_replica_config cfg = {.ndisks = m->ndisks};
    for (unsigned i = 0; i < m->ndisks; i++)
        if (rp_disk_is_private(&m->disks[i]) && m->disks[i].path)
            cfg.disks[i] = (struct rp_replica_disk){.path = m->disks[i].path, .state = m->disks[i].state,
                                                   .overwrite = m->disks[i].overwrite};
    return rp_replica_open(&cfg, &s->replica, err);
}

static int new_entry(struct rp_standby *s, struct rp_error *err)
{
    struct rp_ram_config how = s->o->machine.ram;
    struct rp_entry_disks disks = {.ctx = s->replica, .disk = rp_replica_record, .disk_commit = rp_replica_commit, .disk_drop = rp_replica_drop};
    struct rp_entry *fresh;
    how.populate = how.behind = true;       /* ready to run at any moment; the first epoch need not wait for it */
    int rc = rp_entry_create(RP_IMAGE_STAGED, &how, &disks, &fresh, err);
    if (rc < 0)
        return rc;                          /* what was there stays: somebody receives into it */
    free_image(s);
    s->entry = fresh;
    if (s->recv)
        rp_link_recv_image(s->recv, rp_entry_image(s->entry));
    return 0;
}

/* S2 */
static int admit(struct rp_standby *s, const char *peer, const struct rp_hello *hello, struct rp_error *err)
{
    /* First: a primary that is refused must not have the fence stand back. */
    if (hello->term && rp_fence_sees(s->vm->fence, hello->term, hello->holder, err) < 0)
        return err->code;
    if (s->vm->fence && !rp_fence_stand_back(s->vm->fence))
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "this standby takes the VM over: the primary's lease has run out");
    /* No epoch is held, or it would have been refused already: a machine that was made for another VM goes. */
    if (s->machine && memcmp(rp_machine_cfg(s->machine)->vm_id, hello->vm_id, sizeof(hello->vm_id)) != 0 && new_entry(s, err) < 0)
        return err->code;
    pthread_mutex_lock(&s->lock);
    snprintf(s->peer, sizeof(s->peer), "%s", peer);
    memcpy(s->vm_id, hello->vm_id, sizeof(s->vm_id));
    pthread_mutex_unlock(&s->lock);
    rp_events_emit(s->vm->events, s->epoch, "PRIMARY_CONNECTED", "{\"peer\": \"%.70s\"}", peer);
    rp_standby_set_state(s, RP_STANDBY_SYNCING);
    return 0;
}

static int on_admit(void *ctx, const char *peer, const struct rp_hello *hello, struct rp_error *err)
{
    struct rp_standby *s = ctx;
    pthread_mutex_lock(&s->admission);
    int rc = admit(s, peer, hello, err);
    pthread_mutex_unlock(&s->admission);
    return rc;
}

static int forget(struct rp_standby *s, const char *why, struct rp_error *err)
{
    pthread_mutex_lock(&s->lock);
    s->epoch = s->term = 0;
    s->stale = false;
    s->last_peer[0] = '\0';
    memset(s->vm_id, 0, sizeof(s->vm_id));
    pthread_mutex_unlock(&s->lock);
    rp_fence_watch(s->vm->fence);
    rp_standby_set_state(s, RP_STANDBY_WAITING);
    rp_events_emit(s->vm->events, 0, "STANDBY_FORGOT", "{\"reason\": \"%s\"}", why);
    s->unusable = false;
    return new_entry(s, err);
}

static const char *end_name(enum rp_link_end end)
{
    switch (end) {
    case RP_LINK_LOST: return "lost";
    case RP_LINK_STOPPED: return "stopped";
    case RP_LINK_FINAL: return "handed over";
    case RP_LINK_BROKEN: return "a lane broke";
    case RP_LINK_DAMAGED: return "damaged";
    case RP_LINK_CANCELLED: return "cancelled";
    }
    return "?";
}

static void note_end(struct rp_standby *s, const struct rp_link_outcome *o)
{
    char text[100];
    part_from_primary(s);
    pthread_mutex_lock(&s->lock);
    s->epoch = o->epoch;            /* an epoch that was begun may have cost what was held (a full one does) */
    s->stale &= o->epoch != 0;
    snprintf(s->why, sizeof(s->why), "%s%s%.200s", end_name(o->end), o->why.code ? ": " : "", o->why.text);
    pthread_mutex_unlock(&s->lock);
    bool left = o->end == RP_LINK_STOPPED || o->end == RP_LINK_FINAL;       /* it said so, and meant it */
    rp_events_emit(s->vm->events, o->epoch, left ? "PRIMARY_LEFT" : "PRIMARY_LOST", "{\"how\": \"%s\", \"epoch\": %llu, \"reason\": \"%s\"}", end_name(o->end),
                   (unsigned long long)o->epoch, rp_json_escape(o->why.text, text, sizeof(text)));
}

/* A session has ended. False: serving is over, the control thread goes on. */
static bool after_session(struct rp_standby *s, const struct rp_link_outcome *o)
{
    if (o->end == RP_LINK_CANCELLED)
        return false;
    s->outcome = *o;        /* what a takeover goes by; that its wait for the next session is cancelled is no news */
    note_end(s, o);
    if (o->end == RP_LINK_STOPPED || s->unusable)
        return forget(s, s->unusable ? "it cannot be run here" : "the primary ended the protection", &s->failure) == 0;
    /* What is held of an epoch that was refused is nothing to build upon: it may be of another VM, with other memory. */
    if (o->end == RP_LINK_DAMAGED && o->epoch == 0)
        return forget(s, "what came was refused, and no whole epoch is held", &s->failure) == 0;
    if (o->epoch && o->end == RP_LINK_FINAL) {
        rp_standby_set_state(s, RP_STANDBY_HANDED_OVER);
        rp_fence_follow(s->vm->fence, s->term);
        return false;
    }
    /* Without a lease only a death counts: a primary that has said it will come back does. */
    stay_alone(s, o->end == RP_LINK_LOST || !rp_fence_is_none(s->vm->fence));
    return true;
}

static void *serve_main(void *arg)
{
    struct rp_standby *s = arg;
    bool more = true;
    while (more) {
        struct rp_link_outcome o;
        int rc = rp_link_serve(s->recv, &o, &s->failure);
        more = rc == 0 && after_session(s, &o);
    }
    (void)eventfd_write(s->event_fd, 1);
    return NULL;
}

int rp_standby_serve(struct rp_standby *s, struct rp_error *err)
{
    int rc = rp_thread_start(&s->thread, "standby", serve_main, s, err);
    s->serving = rc == 0;
    return rc;
}

/* `hard`: whatever goes on; otherwise the thread is about to end by itself, and its connection stays. */
void rp_standby_end_serving(struct rp_standby *s, bool hard)
{
    if (!s->serving)
        return;
    if (hard)
        rp_link_cancel(s->recv);
    pthread_join(s->thread, NULL);
    s->serving = false;
}

/* The serving thread has ended: handed over (the lease decides next), or it cannot go on. */
static void on_event(void *ctx)
{
    struct rp_standby *s = ctx;
    eventfd_t n;
    if (eventfd_read(s->event_fd, &n) < 0)
        return;
    if (s->failure.code)
        rp_vm_leave_because(s->vm, &s->failure);
}

/* --- making and ending --- */

static int listen_at(struct rp_standby *s, const struct rp_pair_options *p, struct rp_error *err)
{
    struct rp_link_recv_config cfg = {.admit = on_admit, .alone = on_alone, .applied = on_applied, .disks = on_disks, .sums = on_sums, .stale = on_stale, .ctx = s};
    struct rp_uri uri;
    struct rp_listener *l;
    if (rp_uri_parse(p->listen, &uri, err) < 0)
        return rp_error_wrap(err, "--listen");
    int rc = p->key_path ? rp_secret_load(p->key_path, &cfg.key, err) : 0;
    if (rc == 0)
        rc = open_replica(s, err);
    if (rc == 0)
        rc = new_entry(s, err);
    if (rc == 0)
        rc = rp_listen(&uri, &l, err);
    if (rc < 0)
        return rc;
    snprintf(cfg.vm_name, sizeof(cfg.vm_name), "%s", s->vm->name);
    cfg.image = rp_entry_image(s->entry);
    rc = rp_link_recv_create(l, &cfg, &s->recv, err);
    if (rc < 0)
        rp_listener_close(l);
    else
        rp_uri_format(&l->uri, s->uri, sizeof(s->uri));
    return rc;
}

static int make_standby(struct rp_vm *vm, struct rp_vm_options *o, struct rp_error *err)
{
    struct rp_standby *s = calloc(1, sizeof(*s));
    if (!s)
        return rp_error_set(err, ENOMEM, "no memory for a standby");
    vm->standby = s;
    s->vm = vm;
    s->o = o;
    s->since_wall_ns = rp_wall_ns();
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->admission, NULL);
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->again_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    int rc = s->event_fd < 0 || s->again_fd < 0 ? rp_error_set(err, errno, "no descriptor: %s", strerror(errno)) : 0;
    if (rc == 0)
        rc = rp_vm_watch(vm, s->event_fd, on_event, s, err);
    if (rc == 0)
        rc = rp_vm_watch(vm, s->again_fd, rp_standby_on_again, s, err);
    return rc == 0 ? listen_at(s, &o->pair, err) : rc;
}

static int begin_waiting(struct rp_vm *vm, struct rp_error *err)
{
    rp_qmp_not_ready(vm->qmp, "the VM does not run here: this is its standby, which waits");
    rp_fence_watch(vm->fence);
    return rp_standby_serve(vm->standby, err);
}

int rp_standby_start(struct rp_vm *vm, struct rp_vm_options *o, struct rp_error *err)
{
    int rc = make_standby(vm, o, err);
    return rc == 0 ? begin_waiting(vm, err) : rc;
}

int rp_standby_return(struct rp_vm *vm, struct rp_vm_options *o, struct rp_guest_ram *ram, const uint8_t vm_id[16], struct rp_error *err)
{
    int rc = make_standby(vm, o, err);
    if (rc == 0)
        memcpy(vm->standby->vm_id, vm_id, sizeof(vm->standby->vm_id));
    if (rc == 0)
        rc = rp_entry_adopt(vm->standby->entry, ram, vm_id, err);
    else
        rp_guest_ram_fini(ram);
    return rc == 0 ? begin_waiting(vm, err) : rc;
}

void rp_standby_stop(struct rp_vm *vm)
{
    struct rp_standby *s = vm->standby;
    if (!s)
        return;
    vm->standby = NULL;
    rp_standby_end_serving(s, true);
    rp_link_recv_destroy(s->recv);
    free_image(s);
    rp_replica_close(s->replica);
    rp_vm_unwatch_close(vm, s->event_fd);
    rp_vm_unwatch_close(vm, s->again_fd);
    pthread_mutex_destroy(&s->admission);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static void add_disks(struct rp_standby *s, json_t *o)
{
    struct rp_replica_status st;
    rp_replica_status(s->replica, &st);
    if (st.kept)
        json_object_set_new(o, "disks", json_pack("{s:i, s:b, s:b, s:I, s:I, s:I, s:I}", "kept", (int)st.kept, "whole", (int)st.whole, "failed",
                                                  (int)st.failed, "epoch", (json_int_t)st.epoch, "backlog-bytes", (json_int_t)st.backlog_bytes,
                                                  "synced-bytes", (json_int_t)st.sync_bytes, "summed-bytes",
                                                  (json_int_t)st.summed_bytes));
}

bool rp_standby_vm_id(struct rp_vm *vm, uint8_t vm_id[16])
{
    static const uint8_t nobody[16];
    struct rp_standby *s = vm->standby;
    if (!s)
        return false;
    pthread_mutex_lock(&s->lock);
    memcpy(vm_id, s->vm_id, sizeof(s->vm_id));
    pthread_mutex_unlock(&s->lock);
    return memcmp(vm_id, nobody, sizeof(nobody)) != 0;
}

json_t *rp_standby_query(struct rp_vm *vm)
{
    struct rp_standby *s = vm->standby;
    if (!s)
        return json_pack("{s:s}", "state", "off");
    uint64_t now = rp_wall_ns();
    pthread_mutex_lock(&s->lock);
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:o}", "state", state_names[s->state], "listens-at", s->uri, "primary",
                          s->peer, "last-primary", s->last_peer, "epoch", (json_int_t)s->epoch, "term", (json_int_t)s->term, "epochs-applied", (json_int_t)s->applied,
                          "epoch-ms-ago", (json_int_t)(s->epoch && now > s->epoch_wall_ns ? (now - s->epoch_wall_ns) / 1000000 : 0),
                          "since-ms", (json_int_t)((now - s->since_wall_ns) / 1000000), "last-session", rp_json_readable(s->why));
    pthread_mutex_unlock(&s->lock);
    if (o)
        json_object_set_new(o, "lease", rp_protection_lease(vm));
    if (o && s->replica)
        add_disks(s, o);
    return o;
}
