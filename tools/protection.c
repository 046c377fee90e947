#include "tools/protection.h"

#include "core/clock.h"
#include "core/log.h"
#include "replicator/protect.h"
#include "tools/job.h"
#include "tools/json.h"
#include "tools/moved.h"
#include "tools/vm_fence.h"
#include "vmm/gate.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#define RETAKE_MS 1000

struct rp_protection {
    struct rp_vm *vm;
    struct rp_protect_config cfg;
    pthread_mutex_t lock;           /* protect, where it is replaced, and while a job's switchover is waited for */
    struct rp_protect *protect;     /* control thread; NULL between a stop and a start */
    bool ending;                    /* control: rp_protection_end was called */
    int event_fd;                   /* the protect thread has something for the control thread */
    _Atomic bool pause_wanted;      /* it wants the machine to stand still */
    _Atomic uint64_t term;          /* the lease's, of the newest run */
    _Atomic uint64_t yielded;       /* the term that was given up for a switchover, 0: none was */
};

/* --- what the protect thread asks of us; it may wait for the lease's storage --- */

static int owner_acquire(void *ctx, struct rp_error *err)
{
    struct rp_protection *p = ctx;
    return rp_vm_fence_take(p->vm, err);
}

static uint64_t owner_term(void *ctx)
{
    struct rp_protection *p = ctx;
    uint64_t term = rp_fence_term(p->vm->fence);
    if (term)
        atomic_store(&p->term, term);
    return term;
}

static uint64_t owner_holder(void *ctx)
{
    struct rp_protection *p = ctx;
    return rp_fence_holder(p->vm->fence);
}

static int owner_disown(void *ctx, struct rp_error *err)
{
    struct rp_protection *p = ctx;
    int rc = rp_fence_disown(p->vm->fence, err);
    if (rc == 0)
        rp_events_emit(p->vm->events, 0, "LEASE_ADVANCED", "{\"term\": %llu, \"reason\": \"no standby may enter what it holds\"}",
                       (unsigned long long)rp_fence_term(p->vm->fence));
    return rc;
}

/* One that was lost a moment ago is the run's all the same. */
static int owner_yield(void *ctx, struct rp_error *err)
{
    struct rp_protection *p = ctx;
    uint64_t term = rp_fence_term(p->vm->fence);
    atomic_store(&p->yielded, term ? term : atomic_load(&p->term));
    return rp_fence_yield(p->vm->fence, err);
}

/* The standby may have taken the term after ours: as long as it has not moved on from that, it has put out nothing (F2). */
static int owner_retake(void *ctx, struct rp_error *err)
{
    struct rp_protection *p = ctx;
    rp_fence_retake(p->vm->fence, atomic_load(&p->yielded));
    int rc = rp_fence_wait(p->vm->fence, RETAKE_MS, err);
    if (rc == 0)
        atomic_store(&p->yielded, 0);
    return rc;
}

/* `switched`, and `ended`: the control thread looks. */
static void owner_look(void *ctx)
{
    struct rp_protection *p = ctx;
    (void)eventfd_write(p->event_fd, 1);
}

static void owner_pause(void *ctx, bool paused)
{
    struct rp_protection *p = ctx;
    atomic_store(&p->pause_wanted, paused);
    (void)eventfd_write(p->event_fd, 1);
}

/* --- control thread --- */

/* What is over is put away. */
static void reap(struct rp_protection *p)
{
    if (p->ending && rp_protect_over(p->protect))
        rp_protection_stop(p->vm, true);
}

static void on_event(void *ctx)
{
    struct rp_protection *p = ctx;
    struct rp_error err = {0};
    eventfd_t n;
    if (eventfd_read(p->event_fd, &n) < 0)
        return;
    bool want = atomic_load(&p->pause_wanted);
    if (want != rp_protection_pauses(p->vm) && (want ? rp_machine_pause : rp_machine_resume)(p->vm->machine, RP_PAUSE_STANDBY, &err) < 0)
        rp_log(RP_LOG_ERROR, "--on-loss pause: %s", err.text);
    if (rp_protection_switched(p->vm))
        rp_vm_moved(p->vm, NULL);       /* p may be gone */
    else
        reap(p);
}

static void goal_of(const struct rp_pair_options *o, struct rp_protect_config *cfg)
{
    struct rp_goal *g = &cfg->engine.goal;
    rp_goal_defaults(g);
    if (o->epoch_ns)
        g->epoch_ns = o->epoch_ns;
    g->latency_ns = o->latency_ns;
    g->bandwidth_bytes_s = o->bandwidth_bytes_s;
    g->cpu_percent = o->cpu_percent;
    cfg->pause_on_loss = o->pause_on_loss;
    cfg->engine.capture = RP_CHOOSE_BY_MEASURE;
    if (o->capture)
        (void)rp_capture_choice_parse(o->capture, &cfg->engine.capture);    /* where it came from looked at the word */
    cfg->link.lanes = o->lanes;
    cfg->link.heartbeat_ms = (unsigned)(o->heartbeat_ns / 1000000u);
    if (!cfg->link.heartbeat_ms)
        cfg->link.heartbeat_ms = 1;
    /* The standby misses us after four of our beats; we are as patient with it, and grant it half a second in any case. */
    cfg->link.timeout_ms = cfg->link.heartbeat_ms * 4 < 500 ? 500 : cfg->link.heartbeat_ms * 4;
}

static int start_run(struct rp_protection *p, bool patient, struct rp_error *err)
{
    p->cfg.engine.first_epoch = p->vm->epoch + 1;
    return rp_protect_start(rp_machine_source(p->vm->machine), p->vm->events, &p->cfg, patient, &p->protect, err);
}

static void stop_run(struct rp_protection *p, enum rp_protect_end how)
{
    uint64_t newest = rp_protect_stop(p->protect, how);
    if (newest > p->vm->epoch)
        p->vm->epoch = newest;
    p->protect = NULL;
}

static int configure(struct rp_protection *p, const struct rp_pair_options *o, struct rp_error *err)
{
    struct rp_protect_config *cfg = &p->cfg;
    int rc = rp_uri_parse(o->protect, &cfg->link.uri, err);
    if (rc == 0 && o->key_path)
        rc = rp_secret_load(o->key_path, &cfg->link.key, err);
    if (rc < 0)
        return rc;
    goal_of(o, cfg);
    cfg->owner = (struct rp_protect_owner){.ctx = p, .acquire = owner_acquire, .term = owner_term, .holder = owner_holder, .disown = owner_disown,
                                           .yield = owner_yield, .retake = owner_retake, .pause = owner_pause, .switched = owner_look,
                                           .ended = owner_look};
    p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return p->event_fd < 0 ? rp_error_set(err, errno, "eventfd: %s", strerror(errno)) : 0;
}

static void forget(struct rp_vm *vm)
{
    struct rp_protection *p = vm->protection;
    struct rp_error err = {0};
    enum rp_run_state state = rp_machine_state(vm->machine);
    bool ended = state == RP_VM_SHUTDOWN || state == RP_VM_FAILED;
    if (rp_protection_pauses(vm) && !ended && rp_machine_resume(vm->machine, RP_PAUSE_STANDBY, &err) < 0)
        rp_log(RP_LOG_ERROR, "--on-loss pause is over, and the VM cannot go on: %s", err.text);
    vm->protection = NULL;
    rp_vm_unwatch_close(vm, p->event_fd);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static int may_protect(struct rp_vm *vm, const struct rp_pair_options *o, struct rp_error *err)
{
    enum rp_run_state s = rp_machine_state(vm->machine);
    if (!rp_protection_over(vm))
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "it is %s",
                             vm->protection->ending ? "being unprotected; wait for the end of that" : "protected already; unprotect it first");
    if (s == RP_VM_SHUTDOWN || s == RP_VM_FAILED)
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "it has ended");
    if (rp_jobs_running(vm->jobs, NULL))
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "job %s runs; wait for it or cancel it", rp_jobs_running(vm->jobs, NULL));
    rp_protection_stop(vm, true);       /* of an attempt that failed its reason was left */
    if (!o->lease && !vm->fence)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--lease is missing: file:DIRECTORY on storage that both hosts see, etcd:HOST:PORT, "
                             "or none, and then nothing keeps two instances apart when the link is cut");
    return 0;
}

int rp_protection_start(struct rp_vm *vm, const struct rp_pair_options *o, bool patient, struct rp_error *err)
{
    int rc = may_protect(vm, o, err);
    if (rc < 0)
        return rc;
    struct rp_protection *p = calloc(1, sizeof(*p));
    if (!p)
        return rp_error_set(err, ENOMEM, "no memory to protect");
    vm->protection = p;
    p->vm = vm;
    atomic_store(&vm->fence_give_up, false);
    p->event_fd = -1;
    pthread_mutex_init(&p->lock, NULL);
    rc = configure(p, o, err);
    if (rc == 0)
        rc = rp_vm_fence_open(vm, o->lease, o->lease_ttl_ns, err);
    if (rc == 0)
        rc = rp_vm_watch(vm, p->event_fd, on_event, p, err);
    if (rc == 0)
        rc = start_run(p, patient, err);
    if (rc < 0)
        forget(vm);
    return rc;
}

void rp_protection_end(struct rp_vm *vm)
{
    struct rp_protection *p = vm->protection;
    p->ending = true;
    atomic_store(&vm->fence_give_up, true);
    rp_protect_end(p->protect, RP_PROTECT_FORGET);
    reap(p);
}

void rp_protection_part(struct rp_vm *vm, bool forget_image)
{
    if (!vm->protection)
        return;
    atomic_store(&vm->fence_give_up, true);
    rp_protect_end(vm->protection->protect, forget_image ? RP_PROTECT_FORGET : RP_PROTECT_LEAVE);
}

void rp_protection_stop(struct rp_vm *vm, bool forget_image)
{
    struct rp_protection *p = vm->protection;
    if (!p)
        return;
    rp_protection_part(vm, forget_image);
    pthread_mutex_lock(&p->lock);       /* a job that waited for a switchover is through with it then */
    stop_run(p, forget_image ? RP_PROTECT_FORGET : RP_PROTECT_LEAVE);
    pthread_mutex_unlock(&p->lock);
    forget(vm);
}

void rp_protection_restart(struct rp_vm *vm)
{
    struct rp_error err = {0};
    struct rp_protection *p = vm->protection;
    if (!p || p->ending || (p->protect && rp_protect_over(p->protect)))
        return;
    rp_protect_end(p->protect, RP_PROTECT_FORGET);      /* a switchover that is waited for ends with it */
    pthread_mutex_lock(&p->lock);
    stop_run(p, RP_PROTECT_FORGET);
    if (start_run(p, true, &err) < 0)
        rp_log(RP_LOG_ERROR, "protection cannot begin anew: %s", err.text);
    pthread_mutex_unlock(&p->lock);
}

bool rp_protection_pauses(const struct rp_vm *vm)
{
    return vm->machine && (rp_machine_paused(vm->machine) & RP_PAUSE_STANDBY);
}

bool rp_protection_active(const struct rp_vm *vm)
{
    return vm->protection != NULL;
}

bool rp_protection_over(const struct rp_vm *vm)
{
    return !vm->protection || rp_protect_over(vm->protection->protect);
}

bool rp_protection_ending(const struct rp_vm *vm)
{
    return vm->protection && vm->protection->ending;
}

bool rp_protection_switched(const struct rp_vm *vm)
{
    struct rp_protection *p = vm->protection;
    return p && atomic_load(&p->yielded) != 0;
}

int rp_protection_switch(struct rp_vm *vm, int timeout_ms, struct rp_error *err)
{
    struct rp_protection *p = vm->protection;
    pthread_mutex_lock(&p->lock);
    int rc = p->protect ? rp_protect_switch(p->protect, timeout_ms, err)
                        : rp_error_exit(err, RP_EXIT_REFUSED, EAGAIN, "the VM's protection could not begin anew: there is no standby to switch to");
    pthread_mutex_unlock(&p->lock);
    return rc;
}

/* --- query-protect --- */

/* [[upper bound in us, samples], …] by powers of two, those without samples left out. */
static json_t *octaves(const struct rp_hist *h)
{
    json_t *all = json_array();
    for (unsigned k = RP_HIST_OCTAVE_FIRST; k <= RP_HIST_OCTAVE_LAST; k++) {
        uint64_t n = rp_hist_octave(h, k);
        if (n)
            json_array_append_new(all, json_pack("[f, I]", (double)(2ull << k) / 1000, (json_int_t)n));
    }
    return all;
}

static json_t *times(const struct rp_hist *h)
{
    return json_pack("{s:o, s:I, s:I, s:I, s:I}", "histogram-us", octaves(h), "count", (json_int_t)atomic_load(&h->count), "p50-us", (json_int_t)(rp_hist_quantile(h, 0.5) / 1000),
                     "p99-us", (json_int_t)(rp_hist_quantile(h, 0.99) / 1000), "max-us", (json_int_t)(atomic_load(&h->max) / 1000));
}

static json_t *codecs(const struct rp_encode_stats *e)
{
    json_t *all = json_object();
    for (uint8_t i = 0; i < RP_CODEC_COUNT; i++)
        json_object_set_new(all, rp_codec_name(i), json_pack("{s:I, s:I}", "pages", (json_int_t)atomic_load(&e->pages[i]), "bytes",
                                                              (json_int_t)atomic_load(&e->bytes[i])));
    return all;
}

static json_t *outputs(struct rp_vm *vm, bool held)
{
    struct rp_gate_stats g;
    rp_machine_output_stats(vm->machine, &g);
    return json_pack("{s:b, s:I, s:I, s:I, s:I, s:I}", "held", (int)held, "waiting-frames", (json_int_t)g.waiting_frames, "waiting-bytes",
                     (json_int_t)g.waiting_bytes, "hold-p50-us", (json_int_t)(g.hold_p50_ns / 1000), "hold-p99-us",
                     (json_int_t)(g.hold_p99_ns / 1000), "hold-max-us", (json_int_t)(g.hold_max_ns / 1000));
}

static json_t *capture(const struct rp_engine_stats *e)
{
    const struct rp_cow_state *c = &e->cow;
    json_t *cow = json_pack("{s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "able", (int)c->able, "pays", (int)c->pays, "cuts", (json_int_t)c->cuts,
                            "pages", (json_int_t)c->pages, "faults", (json_int_t)c->faults, "page-ns", (json_int_t)c->page_ns, "run-ns",
                            (json_int_t)c->run_ns, "fault-ns", (json_int_t)c->fault_ns, "after-ns", (json_int_t)c->after_ns);
    if (*c->why)
        json_object_set_new(cow, "reason", json_string(c->why));
    return json_pack("{s:s, s:I, s:o}", "strategy", e->capture, "copy-ns", (json_int_t)e->copy_ns, "copy-on-write", cow);
}

/* The first epoch of a run: how far it is, of memory and private disks together. */
static json_t *progress(const struct rp_protect_status *s)
{
    const struct rp_engine_stats *e = &s->engine;
    json_t *o = json_pack("{s:s, s:I, s:I, s:I, s:i, s:I, s:I, s:I}", "kind", e->resync ? "resync" : "full", "ram-bytes", (json_int_t)e->ram_bytes,
                          "to-look-at-bytes", (json_int_t)e->sync_bytes, "looked-at-bytes", (json_int_t)e->done_bytes, "passes", (int)e->passes,
                          "sent-pages", (json_int_t)e->sync.sent_pages, "equal-pages", (json_int_t)e->sync.equal_pages,
                          "sent-bytes", (json_int_t)e->sync.wire_bytes);
    uint64_t all = e->sync_bytes + e->disk_sync_bytes, done = e->done_bytes + e->disk_done_bytes, now = rp_wall_ns();
    if (s->state != RP_PROTECT_SYNCING || !o || !all)
        return o;
    done = done < all ? done : all;
    double seconds = now > s->since_wall_ns ? (double)(now - s->since_wall_ns) / 1e9 : 0, rate = seconds > 0 ? (double)done / seconds : 0;
    json_object_set_new(o, "percent", json_real((double)done * 100 / (double)all));
    json_object_set_new(o, "bytes-per-second", json_integer((json_int_t)rate));
    if (rate > 0)
        json_object_set_new(o, "eta-ms", json_integer((json_int_t)((double)(all - done) * 1e3 / rate)));
    return o;
}

/* What was asked for; 0: no limit. */
static json_t *goal(const struct rp_protect_config *c)
{
    static const char *const captures[] = {[RP_CHOOSE_BY_MEASURE] = "auto", [RP_CHOOSE_STOP] = "stop-and-copy", [RP_CHOOSE_COW] = "copy-on-write"};
    const struct rp_goal *g = &c->engine.goal;
    return json_pack("{s:I, s:I, s:I, s:i, s:i, s:i, s:s, s:s}", "epoch-us", (json_int_t)(g->epoch_ns / 1000), "latency-us",
                     (json_int_t)(g->latency_ns / 1000), "bandwidth", (json_int_t)g->bandwidth_bytes_s, "cpu", (int)g->cpu_percent, "streams",
                     (int)c->link.lanes, "heartbeat-ms", (int)c->link.heartbeat_ms, "capture", captures[c->engine.capture], "on-loss",
                     c->pause_on_loss ? "pause" : "run");
}

static void add_engine(json_t *o, const struct rp_protect_status *s)
{
    const struct rp_engine_stats *e = &s->engine;
    uint64_t now = rp_wall_ns(), age = e->committed_wall_ns && now > e->committed_wall_ns ? now - e->committed_wall_ns : 0;
    json_object_set_new(o, "committed", json_integer((json_int_t)e->committed));
    json_object_set_new(o, "lag-epochs", json_integer((json_int_t)(e->cut - e->committed)));
    json_object_set_new(o, "committed-ms-ago", json_integer((json_int_t)(age / 1000000)));
    json_object_set_new(o, "pause", times(&e->pause));
    json_object_set_new(o, "commit", times(&e->commit));
    json_object_set_new(o, "capture", capture(e));
    json_object_set_new(o, "dirty-pages-per-second", json_real(e->dirty_pages_s));
    json_object_set_new(o, "cost", json_pack("{s:s, s:i, s:I, s:f, s:I}", "pressure", rp_pressure_name(e->pressure), "throttle-percent",
                                             (int)e->throttle, "epoch-us", (json_int_t)(e->epoch_ns / 1000), "cores", e->cpu,
                                             "cuts-put-off", (json_int_t)e->cuts_put_off));
    json_object_set_new(o, "sync", progress(s));
    if (e->disk_sync_bytes || e->disk_bytes)
        json_object_set_new(o, "disks", json_pack("{s:I, s:I, s:I, s:I}", "copy-bytes", (json_int_t)e->disk_sync_bytes, "copied-bytes",
                                                  (json_int_t)e->disk_done_bytes, "equal-bytes",
                                                  (json_int_t)e->disk_equal_bytes, "sent-bytes", (json_int_t)e->disk_bytes));
    json_object_set_new(o, "codecs", codecs(&e->encode));
    json_object_set_new(o, "unchanged-pages", json_integer((json_int_t)atomic_load(&e->encode.unchanged)));
    json_object_set_new(o, "memory-bytes", json_integer((json_int_t)e->arena_bytes));
    json_object_set_new(o, "link", json_pack("{s:s, s:i, s:I, s:I, s:I}", "transport", s->link.transport ? s->link.transport : "", "streams",
                                             (int)s->link.lanes, "bytes", (json_int_t)s->link.bytes, "rtt-us", (json_int_t)(s->link.rtt_ns / 1000),
                                             "lanes-lost", (json_int_t)s->link.lanes_lost));
}

json_t *rp_protection_lease(struct rp_vm *vm)
{
    struct rp_fence_info f;
    if (!vm->fence)
        return json_null();
    rp_fence_info(vm->fence, &f);
    json_int_t left = f.keeper.left_ns == RP_LEASE_FOREVER ? -1 : (json_int_t)(f.keeper.left_ns / 1000000);
    return json_pack("{s:s, s:s, s:I, s:s, s:I, s:I, s:I, s:I, s:o}", "where", f.where, "state", rp_fence_state_name(f.state), "term",
                     (json_int_t)f.term, "holder", f.holder, "ttl-ms", (json_int_t)f.ttl_ms, "left-ms", left, "renewals",
                     (json_int_t)f.keeper.renewals, "failures", (json_int_t)f.keeper.failures, "reason", rp_json_readable(f.why));
}

json_t *rp_protection_query(struct rp_vm *vm)
{
    struct rp_protection *p = vm->protection;
    struct rp_protect_status *s = calloc(1, sizeof(*s));
    if (!s)
        return NULL;
    if (p && p->protect)
        rp_protect_status(p->protect, s);
    json_t *o = json_pack("{s:s, s:I, s:o?}", "state", rp_protect_state_name(s->state), "epoch",
                          (json_int_t)(s->newest_epoch > vm->epoch ? s->newest_epoch : vm->epoch), "lease", rp_protection_lease(vm));
    if (p && o) {
        json_object_set_new(o, "standby", json_string(s->uri));
        json_object_set_new(o, "connected", json_boolean(s->state == RP_PROTECT_SYNCING || s->state == RP_PROTECT_PROTECTED));
        json_object_set_new(o, "goal", goal(&p->cfg));
        json_object_set_new(o, "since-ms", json_integer((json_int_t)((rp_wall_ns() - s->since_wall_ns) / 1000000)));
        json_object_set_new(o, "losses", json_integer((json_int_t)s->losses));
        json_object_set_new(o, "reason", rp_json_readable(s->why));
        json_object_set_new(o, "exit", json_integer(s->why_exit));
        json_object_set_new(o, "outputs", outputs(vm, s->held));
        if (s->have_engine)
            add_engine(o, s);
    }
    free(s);
    return o;
}
