/* Jobs: long work on threads of their own. */
#include "tools/job.h"

#include "core/thread.h"
#include "tools/json.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum status { CREATED, RUNNING, ABORTING, CONCLUDED };
static const char *const status_names[] = {"created", "running", "aborting", "concluded"};

struct rp_job {
    struct rp_jobs *jobs;
    const struct rp_job_kind *kind;
    char id[48];
    void *arg;
    pthread_t thread;
    pthread_mutex_t lock;       /* guards what follows; on_cancel is called under it */
    enum status status;
    uint64_t done, total;
    bool cancelled;
    void (*on_cancel)(void *ctx);
    void *on_cancel_ctx;
    int rc;
    struct rp_error err;
};

struct rp_jobs {
    struct rp_events *events;
    struct rp_job *all[RP_JOBS_MAX];    /* control thread; oldest first */
    unsigned n;
    unsigned made;
};

static void say_status(struct rp_job *job, enum status s)
{
    rp_events_emit(job->jobs->events, 0, "JOB_STATUS_CHANGE", "{\"id\": \"%s\", \"status\": \"%s\"}", job->id, status_names[s]);
}

static void status_set(struct rp_job *job, enum status s)
{
    pthread_mutex_lock(&job->lock);
    if (s == RUNNING && job->cancelled)
        s = ABORTING;   /* cancelled before it began: that was said already */
    else
        say_status(job, s);
    job->status = s;
    pthread_mutex_unlock(&job->lock);
}

static void *job_thread(void *arg)
{
    struct rp_job *job = arg;
    status_set(job, RUNNING);
    struct rp_error err = {0};
    int rc = job->kind->run(job, job->arg, &err);
    pthread_mutex_lock(&job->lock);
    job->rc = rc;
    job->err = err;
    job->on_cancel = NULL;
    pthread_mutex_unlock(&job->lock);
    status_set(job, CONCLUDED);
    return NULL;
}

static enum status job_status(struct rp_job *job)
{
    pthread_mutex_lock(&job->lock);
    enum status s = job->status;
    pthread_mutex_unlock(&job->lock);
    return s;
}

static void job_free(struct rp_job *job)
{
    job->kind->free(job->arg);
    pthread_mutex_destroy(&job->lock);
    free(job);
}

static void cancel(struct rp_job *job)
{
    pthread_mutex_lock(&job->lock);
    bool first = !job->cancelled && job->status != CONCLUDED;
    job->cancelled = true;
    if (first) {
        job->status = ABORTING;
        if (job->on_cancel)
            job->on_cancel(job->on_cancel_ctx);
    }
    pthread_mutex_unlock(&job->lock);
    if (first)
        say_status(job, ABORTING);
}

int rp_jobs_create(struct rp_events *events, struct rp_jobs **out, struct rp_error *err)
{
    struct rp_jobs *j = calloc(1, sizeof(*j));
    if (!j)
        return rp_error_set(err, ENOMEM, "jobs: out of memory");
    j->events = events;
    *out = j;
    return 0;
}

const char *rp_jobs_running(struct rp_jobs *j, const char *type)
{
    for (unsigned i = 0; i < j->n; i++)
        if (job_status(j->all[i]) != CONCLUDED && (!type || strcmp(j->all[i]->kind->type, type) == 0))
            return j->all[i]->id;
    return NULL;
}

void rp_jobs_destroy(struct rp_jobs *j)
{
    if (!j)
        return;
    for (unsigned i = 0; i < j->n; i++)
        cancel(j->all[i]);
    for (unsigned i = 0; i < j->n; i++) {
        pthread_join(j->all[i]->thread, NULL);
        job_free(j->all[i]);
    }
    free(j);
}

/* Makes room: the oldest concluded job is forgotten. False: all of them still run. */
static bool make_room(struct rp_jobs *j)
{
    if (j->n < RP_JOBS_MAX)
        return true;
    for (unsigned i = 0; i < j->n; i++) {
        if (job_status(j->all[i]) != CONCLUDED)
            continue;
        pthread_join(j->all[i]->thread, NULL);
        job_free(j->all[i]);
        memmove(&j->all[i], &j->all[i + 1], (--j->n - i) * sizeof(j->all[0]));
        return true;
    }
    return false;
}

static struct rp_job *job_find(struct rp_jobs *j, const char *id)
{
    for (unsigned i = 0; i < j->n; i++)
        if (strcmp(j->all[i]->id, id) == 0)
            return j->all[i];
    return NULL;
}

static int may_start(struct rp_jobs *j, const struct rp_job_kind *kind, const char *id, bool alone, struct rp_error *err)
{
    if (id && (job_find(j, id) || strlen(id) >= sizeof(((struct rp_job *)0)->id) || !rp_event_is_plain(id)))
        return rp_error_set(err, EEXIST, "job \"%.60s\": the id is taken, or cannot be one; give another", id);
    for (unsigned i = 0; alone && i < j->n; i++)
        if (j->all[i]->kind == kind && job_status(j->all[i]) != CONCLUDED)
            return rp_error_exit(err, RP_EXIT_REFUSED, EBUSY, "a %s is in work already (job %s); wait for it or cancel it", kind->type,
                                 j->all[i]->id);
    if (!make_room(j))
        return rp_error_set(err, EBUSY, "%u jobs are in work; wait for one", RP_JOBS_MAX);
    return 0;
}

int rp_job_start(struct rp_jobs *j, const struct rp_job_kind *kind, const char *id, bool alone, void *arg, const char **id_out,
                 struct rp_error *err)
{
    int rc = may_start(j, kind, id, alone, err);
    struct rp_job *job = rc == 0 ? calloc(1, sizeof(*job)) : NULL;
    if (!job) {
        kind->free(arg);
        return rc < 0 ? rc : rp_error_set(err, ENOMEM, "job: out of memory");
    }
    job->jobs = j;
    job->kind = kind;
    job->arg = arg;
    pthread_mutex_init(&job->lock, NULL);
    if (id)
        snprintf(job->id, sizeof(job->id), "%s", id);
    else
        do      /* a client may have given that one */
            snprintf(job->id, sizeof(job->id), "%s-%u", kind->type, ++j->made);
        while (job_find(j, job->id));
    say_status(job, CREATED);
    rc = rp_thread_start(&job->thread, "job", job_thread, job, err);
    if (rc < 0) {
        job_free(job);
        return rc;
    }
    j->all[j->n++] = job;
    if (id_out)
        *id_out = job->id;
    return 0;
}

int rp_job_cancel(struct rp_jobs *j, const char *id, struct rp_error *err)
{
    struct rp_job *job = job_find(j, id);
    if (!job)
        return rp_error_set(err, ENODEV, "job \"%.60s\": there is none; query-jobs lists them", id);
    cancel(job);
    return 0;
}

json_t *rp_jobs_query(struct rp_jobs *j)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < j->n; i++) {
        struct rp_job *job = j->all[i];
        pthread_mutex_lock(&job->lock);
        json_t *o = json_pack("{s:s, s:s, s:s, s:I, s:I}", "id", job->id, "type", job->kind->type, "status", status_names[job->status],
                              "current-progress", (json_int_t)job->done, "total-progress", (json_int_t)job->total);
        if (job->status == CONCLUDED && job->rc < 0) {
            json_object_set_new(o, "error", rp_json_readable(job->err.text));
            json_object_set_new(o, "exit", json_integer(job->err.exit));
        }
        pthread_mutex_unlock(&job->lock);
        json_array_append_new(list, o);
    }
    return list;
}

void rp_job_progress(struct rp_job *job, uint64_t done, uint64_t total)
{
    pthread_mutex_lock(&job->lock);
    job->done = done;
    job->total = total;
    pthread_mutex_unlock(&job->lock);
}

bool rp_job_cancelled(struct rp_job *job)
{
    pthread_mutex_lock(&job->lock);
    bool cancelled = job->cancelled;
    pthread_mutex_unlock(&job->lock);
    return cancelled;
}

void rp_job_on_cancel(struct rp_job *job, void (*fn)(void *ctx), void *ctx)
{
    pthread_mutex_lock(&job->lock);
    job->on_cancel = fn;
    job->on_cancel_ctx = ctx;
    if (fn && job->cancelled)
        fn(ctx);
    pthread_mutex_unlock(&job->lock);
}
