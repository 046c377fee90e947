/*
 * job.h - work that takes long (a checkpoint, a migration) beside the control thread, so that QMP stays responsive.
 * The names of states and of the event (JOB_STATUS_CHANGE) are QEMU's.
 *
 *     created ─thread starts─► running ─run() returns─► concluded      (kept for query-jobs; the oldest go first)
 *                                 └─rp_job_cancel─► aborting ─run() returns─► concluded, with an error
 */
#ifndef RP_TOOLS_JOB_H
#define RP_TOOLS_JOB_H

#include "core/event.h"

#include <jansson.h>
#include <stdbool.h>

#define RP_JOBS_MAX 32u

struct rp_job;
struct rp_jobs;

struct rp_job_kind {
    const char *type;                                   /* "checkpoint" */
    int (*run)(struct rp_job *job, void *arg, struct rp_error *err);    /* on the job's own thread */
    void (*free)(void *arg);                            /* when the job is forgotten, or could not be started */
};

int rp_jobs_create(struct rp_events *events, struct rp_jobs **out, struct rp_error *err) RP_MUST_CHECK;
/* Cancels every job that runs and waits for all. */
void rp_jobs_destroy(struct rp_jobs *j);

/* Control thread. `id`: NULL makes one up ("checkpoint-3"). Owns arg from here on, also on error. *id_out (may be NULL):
 * borrowed while the job is kept. -EEXIST: the id is taken. -EBUSY: another of this type runs and `alone` is set. */
int rp_job_start(struct rp_jobs *j, const struct rp_job_kind *kind, const char *id, bool alone, void *arg, const char **id_out,
                 struct rp_error *err) RP_MUST_CHECK;
int rp_job_cancel(struct rp_jobs *j, const char *id, struct rp_error *err) RP_MUST_CHECK;   /* -ENODEV: no such job */
/* The id of a job of this type (NULL: of any) that has not concluded; NULL: none. Control thread. */
const char *rp_jobs_running(struct rp_jobs *j, const char *type);
/* For query-jobs: [{id, type, status, current-progress, total-progress, error?}]. */
json_t *rp_jobs_query(struct rp_jobs *j);

/* From the job's thread: */
void rp_job_progress(struct rp_job *job, uint64_t done, uint64_t total);
bool rp_job_cancelled(struct rp_job *job);
/* What cancelling does to the work, from the control thread; NULL takes it back (after that it is not running). At once
 * when the job was cancelled already. */
void rp_job_on_cancel(struct rp_job *job, void (*fn)(void *ctx), void *ctx);

#endif
