/*
 * nginx/publish.c: status, health and metrics as texts in the shared zone.
 *
 * Loop code, except the ..._work functions.
 */

#include "nginx/runner.h"

#include "base/json.h"
#include "crypto/hash.h"


#define NGX_HTTP_BACKUP_BUSY_PUB   1000     /* ms between status during a job */


/* Status and health as texts, computed on a thread. */

static void
ngx_http_backup_publish_work(void *data)
{
    bk_id_t                  digest;
    json_t                  *status, *health, *brief;
    bk_buf_t                 plain;
    bk_engine_t             *engine;
    const char              *text, *timestamp;
    ngx_http_backup_step_t  *step = data;

    status = NULL;
    health = NULL;

    step->rc = ngx_http_backup_engine(step->bset, &engine, &step->err);
    if (step->rc != BK_OK) {
        return;
    }

    ngx_http_backup_helper_look(engine, &step->ctl.ctl);

    step->rc = bk_engine_status(engine, step->job ? step->job->id : NULL,
                                step->job ? &step->job->ctl.ctl : NULL,
                                &status, &step->err);
    if (step->rc == BK_OK) {
        step->rc = bk_engine_health(engine, &health, &step->err);
    }

    if (step->rc == BK_OK) {
        step->rc = bk_engine_metrics(engine, status, health, &step->metrics,
                                     &step->err);
    }

    if (step->rc != BK_OK) {
        goto done;
    }

    step->rc = bk_json_dump(status, false, &step->status, &step->err);
    if (step->rc != BK_OK) {
        goto done;
    }

    /* The tag is of what can change, not of when it was looked at. */

    bk_buf_init(&plain, 262144);
    bk_engine_timeless(status);

    if (bk_json_dump(status, true, &plain, NULL) == BK_OK) {
        bk_sha256(&digest, plain.data, plain.len);
        memcpy(&step->tag, &digest, sizeof(step->tag));
    }

    bk_buf_free(&plain);

    text = json_string_value(json_object_get(health, "status"));
    timestamp = json_string_value(json_object_get(health, "timestamp"));
    step->healthy = json_is_true(json_object_get(health, "healthy"));

    brief = json_pack("{s:s, s:b}", "status", text ? text : "fail",
                      "healthy", (int) step->healthy);

    if (timestamp && brief) {
        json_object_set_new(brief, "timestamp", json_string(timestamp));
    }

    step->rc = bk_json_dump(health, false, &step->health, &step->err);

    if (step->rc == BK_OK && brief) {
        step->rc = bk_json_dump(brief, false, &step->brief, &step->err);
    }

    json_decref(brief);

done:

    json_decref(status);
    json_decref(health);
}


static void
ngx_http_backup_publish_done(void *data)
{
    ngx_http_backup_set_t     *bset;
    ngx_http_backup_step_t    *step = data;
    ngx_http_backup_runner_t  *rn;

    bset = step->bset;
    rn = bset->runner;

    rn->publishing = 0;

    if (step->rc == BK_OK && step->status.len) {
        ngx_http_backup_put(bset, NGX_HTTP_BACKUP_STATUS,
                            (char *) step->status.data, step->status.len,
                            step->tag);
        ngx_http_backup_put(bset, NGX_HTTP_BACKUP_HEALTH,
                            (char *) step->health.data, step->health.len, 0);
        ngx_http_backup_put(bset, NGX_HTTP_BACKUP_METRICS,
                            (char *) step->metrics.data, step->metrics.len, 0);
        ngx_http_backup_put(bset, NGX_HTTP_BACKUP_HEALTH_BRIEF,
                            (char *) step->brief.data, step->brief.len, 0);

        bset->slot->healthy = step->healthy;

    } else if (step->rc != BK_OK) {
        ngx_http_backup_trouble(bset, step->err.text);
    }

    ngx_http_backup_step_free(step);
}


void
ngx_http_backup_publish(ngx_http_backup_set_t *bset)
{
    ngx_http_backup_runner_t *rn = bset->runner;

    rn->publish_next = ngx_current_msec + (rn->job ? NGX_HTTP_BACKUP_BUSY_PUB
                                                   : NGX_HTTP_BACKUP_IDLE_PUB);

    /*
     * Only the owner knows of the running job.  Whoever waits for the lock
     * speaks up when nobody else does.
     */

    if (!rn->owned
        && ngx_time() - bset->slot->texts[NGX_HTTP_BACKUP_STATUS].time
           < NGX_HTTP_BACKUP_STALE / 2)
    {
        return;
    }

    rn->publishing = 1;

    ngx_http_backup_step(bset, bset->short_pool, ngx_http_backup_publish_work,
                         ngx_http_backup_publish_done);
}


void
ngx_http_backup_trouble(ngx_http_backup_set_t *bset, const char *text)
{
    ngx_http_backup_runner_t *rn = bset->runner;

    if (text[0] == '\0' && !rn->trouble) {
        return;
    }

    rn->trouble = (text[0] != '\0');

    ngx_http_backup_put(bset, NGX_HTTP_BACKUP_TROUBLE, text,
                        ngx_strlen(text), 0);
}
