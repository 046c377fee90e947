/*
 * The QMP command `checkpoint`: the running VM as one full epoch in a file, as a job.
 *
 * The stream is written to F.partial and renamed when it is whole and on the disk: F is either the old file or all of the
 * new one. The guest runs meanwhile; with "then": "pause" or "quit" it stands still from the cut on, so that nothing
 * that happened after the checkpoint is lost or done twice.
 */
#include "core/clock.h"
#include "core/thread.h"
#include "replicator/aside.h"
#include "replicator/engine.h"
#include "tools/json.h"
#include "tools/partial.h"
#include "tools/protection.h"
#include "tools/qmp_tables.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PROGRESS_NS 50000000ull

enum then { THEN_GO_ON, THEN_PAUSE, THEN_QUIT };

struct checkpoint {
    struct rp_vm *vm;
    char path[PATH_MAX], partial[PATH_MAX + 16];
    int fd;                     /* of partial, the sink's; job's thread */
    enum then then;
    uint64_t epoch;             /* the number it gets */
    pthread_mutex_t lock;       /* guards over */
    pthread_cond_t changed;
    bool over;
};

static void checkpoint_free(void *arg)
{
    struct checkpoint *c = arg;
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
    free(c);
}

/* From an engine thread: the run is over. */
static void on_ended(void *ctx, int rc, const struct rp_error *why)
{
    (void)rc, (void)why;    /* rp_engine_wait says them again */
    struct checkpoint *c = ctx;
    pthread_mutex_lock(&c->lock);
    c->over = true;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

/* True once the run is over; false after PROGRESS_NS. */
static bool wait_over(struct checkpoint *c)
{
    uint64_t until = rp_clock_ns() + PROGRESS_NS;
    pthread_mutex_lock(&c->lock);
    int rc = 0;
    while (!c->over && rc == 0)
        rc = rp_cond_wait_until(&c->changed, &c->lock, until);
    bool over = c->over;
    pthread_mutex_unlock(&c->lock);
    return over;
}

static void cancel_engine(void *ctx)
{
    rp_engine_stop(ctx);
}

static void report(struct rp_job *job, struct rp_engine *e, struct rp_engine_stats *st)
{
    rp_engine_stats(e, st);
    rp_job_progress(job, st->done_bytes, st->ram_bytes);
}

/* After the run: a machine that the engine left standing is paused or ended when all is safe, else it runs on (INV-6). */
static int settle(struct checkpoint *c, struct rp_engine *e, int rc, struct rp_error *err)
{
    if (!rp_engine_stands(e))
        return rc;
    struct rp_machine *m = c->vm->machine;
    if (rc == 0 && c->then != THEN_GO_ON)
        rc = rp_machine_pause(m, RP_PAUSE_USER, err);
    struct rp_source *src = rp_machine_source(m);
    int rc2 = src->ops->resume(src, rc == 0 ? err : NULL);      /* stays still when it is paused */
    return rc < 0 ? rc : rc2;
}

static int sync_directory(const char *path, struct rp_error *err)
{
    char copy[PATH_MAX];
    snprintf(copy, sizeof(copy), "%s", path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || fsync(fd) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return rc == 0 || rc == -EINVAL ? 0 : rp_error_set(err, rc, "%s: its directory cannot be synced: %s", path, strerror(-rc));
}

/* The engine's whole run into the sink. */
static int stream_out(struct rp_job *job, struct checkpoint *c, struct rp_sink *sink, struct rp_error *err)
{
    struct rp_engine_config cfg = {.first_epoch = c->epoch};
    rp_goal_defaults(&cfg.goal);
    struct rp_engine *e = NULL;
    enum rp_run_kind kind = c->then == THEN_GO_ON ? RP_RUN_ONCE : RP_RUN_FINAL;
    int rc = rp_engine_create(rp_machine_source(c->vm->machine), sink, kind, &cfg, c->vm->events, &e, err);
    if (rc < 0)
        return rc;
    struct rp_engine_stats *st = calloc(1, sizeof(*st));
    rc = st ? rp_engine_start(e, on_ended, c, err) : rp_error_set(err, ENOMEM, "out of memory");
    if (rc == 0) {
        rp_job_on_cancel(job, cancel_engine, e);
        while (!wait_over(c))
            report(job, e, st);
        rp_job_on_cancel(job, NULL, NULL);
        rc = rp_engine_wait(e, err);
        if (rc == 0 && rp_job_cancelled(job))
            rc = rp_error_exit(err, RP_EXIT_INTERRUPTED, ECANCELED, "cancelled");
        if (rc == 0)
            rc = rp_sink_fd_finish(sink, err);
        if (rc == 0)
            rc = rp_partial_rename(c->partial, c->fd, c->path, err);
        if (rc == 0)
            rc = sync_directory(c->path, err);
        rc = settle(c, e, rc, err);
        report(job, e, st);
    }
    free(st);
    rp_engine_destroy(e);
    return rc;
}

static int checkpoint_to_file(struct rp_job *job, struct checkpoint *c, uint64_t *bytes, struct rp_error *err)
{
    struct rp_sink *sink = NULL;
    int rc = rp_partial_open(c->partial, &c->fd, err);
    if (rc < 0)
        return rc;
    rc = rp_sink_fd_create(c->fd, true, &sink, err);
    if (rc == 0)
        rc = stream_out(job, c, sink, err);
    if (rc < 0)
        rp_partial_remove(c->partial, c->fd);   /* while it is held */
    if (!sink) {
        close(c->fd);
        return rc;
    }
    *bytes = rp_sink_fd_bytes(sink);
    sink->ops->destroy(sink);
    return rc;
}

static int checkpoint_run(struct rp_job *job, void *arg, struct rp_error *err)
{
    struct checkpoint *c = arg;
    uint64_t start = rp_clock_ns(), bytes = 0;
    rp_thread_patient(true);        /* to make an engine and to end it takes milliseconds of a CPU */
    rp_aside_once(rp_machine_source(c->vm->machine));
    int rc = checkpoint_to_file(job, c, &bytes, err);
    char text[100];
    if (rc < 0) {
        rp_error_wrap(err, "checkpoint");
        rp_events_emit(c->vm->events, c->epoch, "CHECKPOINT_FAILED", "{\"reason\": \"%s\"}", rp_json_escape(err->text, text, sizeof(text)));
        return rc;
    }
    rp_events_emit(c->vm->events, c->epoch, "CHECKPOINT_COMPLETED", "{\"target\": \"%s\", \"bytes\": %llu, \"ms\": %llu}",
                   rp_json_escape(c->path, text, sizeof(text)), (unsigned long long)bytes,
                   (unsigned long long)((rp_clock_ns() - start) / 1000000u));
    if (c->then == THEN_QUIT)
        rp_machine_quit(c->vm->machine);
    return 0;
}

static const struct rp_job_kind checkpoint_kind = {.type = "checkpoint", .run = checkpoint_run, .free = checkpoint_free};

static int parse_then(const char *then, enum then *out, struct rp_error *err)
{
    static const char *const words[] = {[THEN_GO_ON] = "go-on", [THEN_PAUSE] = "pause", [THEN_QUIT] = "quit"};
    *out = THEN_GO_ON;
    if (!then)
        return 0;
    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(words[i], then) == 0) {
            *out = (enum then)i;
            return 0;
        }
    return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "checkpoint: then \"%s\": not one of go-on, pause, quit", then);
}

static int is_no_disk(struct rp_vm *vm, const char *path, struct rp_error *err)
{
    const struct rp_machine_config *cfg = rp_machine_cfg(vm->machine);
    struct stat st, disk;
    for (unsigned i = 0; stat(path, &st) == 0 && i < cfg->ndisks; i++)
        if (cfg->disks[i].path && stat(cfg->disks[i].path, &disk) == 0 && disk.st_dev == st.st_dev && disk.st_ino == st.st_ino)
            return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "checkpoint: %s is the VM's disk %u; give another path", path, i);
    return 0;
}

/* What stands where the checkpoint is to be, and where it is written: nothing, or a file that is not one of the VM's disks. What else is not
 * written over at `partial` is known when it is opened. */
static int look_at_target(struct rp_vm *vm, const char *path, const char *partial, struct rp_error *err)
{
    struct stat st;
    if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return rp_error_exit(err, RP_EXIT_USAGE, EEXIST, "checkpoint: %s is there and is %s; give another path", path,
                             S_ISLNK(st.st_mode) ? "a symbolic link, which would be replaced" : "no file");
    int rc = is_no_disk(vm, path, err);
    return rc < 0 ? rc : is_no_disk(vm, partial, err);
}

static void partial_of(const char *path, char out[PATH_MAX + 16])
{
    snprintf(out, PATH_MAX + 16, "%s.partial", path);
}

static int may_checkpoint(struct rp_vm *vm, const char *target, struct rp_error *err)
{
    if (strncmp(target, "file:", 5) != 0 || target[5] != '/')
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "checkpoint: target \"%s\": not file:F with an absolute path", target);
    if (strlen(target + 5) >= PATH_MAX)
        return rp_error_exit(err, RP_EXIT_USAGE, ENAMETOOLONG, "checkpoint: the target's path is longer than %d bytes", PATH_MAX - 1);
    if (!rp_protection_over(vm))
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "checkpoint: the VM is protected, and its epochs go to the standby; unprotect it first");
    enum rp_run_state s = rp_machine_state(vm->machine);
    if (s != RP_VM_RUNNING && s != RP_VM_PAUSED)
        return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "checkpoint: the VM %s",
                             s == RP_VM_CREATED ? "has not been started; there is nothing to keep yet" : "has ended");
    char partial[PATH_MAX + 16];
    partial_of(target + 5, partial);
    return look_at_target(vm, target + 5, partial, err);
}

static int cmd_checkpoint(struct rp_qmp_call *call, struct rp_error *err)
{
    struct rp_vm *vm = call->ctx;
    const char *target = json_string_value(json_object_get(call->args, "target"));
    enum then then;
    int rc = may_checkpoint(vm, target, err);
    if (rc == 0)
        rc = parse_then(json_string_value(json_object_get(call->args, "then")), &then, err);
    if (rc < 0)
        return rc;
    if (json_is_true(json_object_get(call->args, "stop")) && then == THEN_GO_ON)
        then = THEN_PAUSE;
    struct checkpoint *c = calloc(1, sizeof(*c));
    if (!c)
        return rp_error_set(err, ENOMEM, "checkpoint: out of memory");
    c->vm = vm;
    c->then = then;
    c->epoch = vm->epoch + 1;
    snprintf(c->path, sizeof(c->path), "%s", target + 5);
    partial_of(c->path, c->partial);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    const char *id = NULL;
    rc = rp_job_start(vm->jobs, &checkpoint_kind, json_string_value(json_object_get(call->args, "job-id")), true, c, &id, err);
    if (rc < 0)
        return rc;
    vm->epoch++;
    call->result = json_pack("{s:s, s:I}", "job-id", id, "epoch", (json_int_t)vm->epoch);
    return 0;
}

static const struct rp_qmp_arg checkpoint_args[] = {
    {"target", RP_QMP_STR, false}, {"then", RP_QMP_STR, true}, {"stop", RP_QMP_BOOL, true}, {"job-id", RP_QMP_STR, true}, {.name = NULL},
};
static const struct rp_qmp_command commands[] = {
    {.name = "checkpoint", .run = cmd_checkpoint, .args = checkpoint_args},
};

struct rp_qmp_table rp_qmp_checkpoint_table(void)
{
    return (struct rp_qmp_table){commands, sizeof(commands) / sizeof(commands[0])};
}
