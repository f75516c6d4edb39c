/*
 * engine/ending.c: how a job ends, and writing that into the catalog until it is there.  It knows
 * nothing of what jobs do.
 */
#include "engine/ending.h"

#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/str.h"

bk_rc_t bk_ending_give_up(bk_engine_t *engine, const char *id, bk_err_t *err, const char *text)
{
    bk_err_t why = {0};
    bk_err_set(&why, BK_INTERRUPTED, "%s", text);
    json_t *result = json_pack("{ss so}", "error", why.text, "problem", bk_problem(&why, NULL));
    bk_log(BK_LOG_ERROR, "backup %s: job %s: %s", engine->set->name, id, text);
    bk_rc_t rc = bk_catalog_finish(engine->catalog, id, BK_STATUS_FAILED, result, err);
    json_decref(result);
    return rc;
}

void bk_ending_add_warnings(json_t *result, bk_ctl_t *ctl)
{
    json_t *warnings = json_object_get(result, "warnings");
    if (warnings == NULL) {
        warnings = json_array();
        json_object_set_new(result, "warnings", warnings);
    }
    pthread_mutex_lock(&ctl->lock);
    for (unsigned i = 0; i < ctl->notes_kept; i++)
        json_array_append_new(warnings, bk_json_name(ctl->notes[i], strlen(ctl->notes[i])));
    if (ctl->notes_total > 0)
        json_object_set_new(result, "warnings_total", json_integer((json_int_t)ctl->notes_total));
    pthread_mutex_unlock(&ctl->lock);
}

bk_job_status_t bk_ending_status(bk_rc_t rc, bool resumes, const bk_ctl_t *ctl,
                                 const json_t *result)
{
    bool warned = ctl->notes_total > 0 || json_is_true(json_object_get(result, "incomplete"));
    if (rc == BK_OK)
        return warned ? BK_STATUS_WARNING : BK_STATUS_COMPLETED;
    if (rc == BK_CANCELED)
        return BK_STATUS_CANCELED;
    if (rc == BK_INTERRUPTED)
        return resumes ? BK_STATUS_INTERRUPTED : BK_STATUS_FAILED;
    return BK_STATUS_FAILED;
}

void bk_ending_log(const bk_engine_t *engine, const char *id, bk_job_status_t status, bk_ctl_t *ctl,
                   const bk_err_t *err)
{
    double seconds = (double)(bk_mono() - ctl->started) / BK_SEC;
    if (status == BK_STATUS_COMPLETED)
        bk_log(BK_LOG_NOTICE, "backup %s: job %s completed after %.1f s", engine->set->name, id,
               seconds);
    else if (status == BK_STATUS_WARNING)
        bk_log(BK_LOG_WARN, "backup %s: job %s completed with %llu warnings after %.1f s: %s",
               engine->set->name, id, (unsigned long long)ctl->notes_total, seconds,
               ctl->notes_kept > 0 ? ctl->notes[0] : "unreadable files");
    else
        bk_log(status == BK_STATUS_FAILED ? BK_LOG_ERROR : BK_LOG_NOTICE,
               "backup %s: job %s %s after %.1f s: %s", engine->set->name, id,
               bk_job_status_name(status), seconds, err->text);
}

static void forget(bk_engine_t *engine)
{
    engine->taken[0] = '\0';
    json_decref(engine->result);
    engine->result = NULL;
}

/* Interrupted: the next owner takes it again, from the start. */
static bk_rc_t write_end(bk_engine_t *engine, bk_err_t *err)
{
    bool again = engine->status == BK_STATUS_INTERRUPTED;
    bk_rc_t rc =
        bk_catalog_finish(engine->catalog, engine->taken, again ? BK_STATUS_QUEUED : engine->status,
                          again ? NULL : engine->result, err);
    if (rc == BK_OK)
        forget(engine);
    return rc;
}

void bk_ending_record(bk_engine_t *engine, const char *id, bk_job_status_t status, json_t *result)
{
    bk_err_t err = {0};
    forget(engine);
    bk_strcpy(engine->taken, sizeof engine->taken, id);
    engine->status = status;
    engine->result = result;
    if (write_end(engine, &err) != BK_OK)
        bk_log(BK_LOG_ERROR,
               "backup %s: job %s is %s, but that could not be recorded and is shown as running "
               "until it can: %s",
               engine->set->name, id, bk_job_status_name(status), err.text);
}

bk_rc_t bk_ending_settle(bk_engine_t *engine, bk_err_t *err)
{
    if (engine->taken[0] == '\0')
        return BK_OK;
    if (engine->result != NULL)
        return write_end(engine, err);
    bk_rc_t rc = bk_ending_give_up(engine, engine->taken, err,
                                   "this job could not be started (nginx's error log tells why): "
                                   "run it again");
    if (rc == BK_OK)
        forget(engine);
    return rc;
}
