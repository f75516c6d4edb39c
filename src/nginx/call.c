/*
 * nginx/call.c: what a request asks of the engine, done on a thread.
 *
 * Thread code: touches its call, the engine and nothing of nginx.  The answer
 * is a finished text; the links in it are all that needs the location.
 */

#include "nginx/module.h"

#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"


static bk_rc_t ngx_http_backup_call_submit(ngx_http_backup_call_t *call,
    bk_engine_t *engine);
static bk_rc_t ngx_http_backup_call_job(ngx_http_backup_call_t *call,
    bk_engine_t *engine, const char *id);
static bk_rc_t ngx_http_backup_call_cancel(ngx_http_backup_call_t *call,
    bk_engine_t *engine);


void
ngx_http_backup_call_free(ngx_http_backup_call_t *call)
{
    ngx_http_backup_ctl_done(&call->ctl);

    if (call->body_fd != -1) {
        (void) close(call->body_fd);
    }

    json_decref(call->problems);
    bk_buf_free(&call->text);

    free(call->prefix);
    free(call->user);
    free(call->request_id);
    free(call->idempotency_key);
    free(call->type);
    free(call->tag);
    free(call->storage);
    free(call->cursor);
    free(call->database);
    free(call->body);
    free(call->progress);
    free(call);
}


/* Takes json over. */

static bk_rc_t
ngx_http_backup_call_text(ngx_http_backup_call_t *call, json_t *json,
    ngx_uint_t status)
{
    bk_rc_t  rc;

    bk_buf_reset(&call->text);
    rc = bk_json_dump(json, false, &call->text, &call->err);
    json_decref(json);

    call->status = status;

    return rc;
}


static void
ngx_http_backup_link(ngx_http_backup_call_t *call, json_t *links,
    const char *name, const char *kind, const char *id, const char *more)
{
    char  link[2048];

    if (bk_fmt(link, sizeof(link), "%s/%s/%s%s", call->prefix, kind, id, more))
    {
        json_object_set_new(links, name, json_string(link));
    }
}


/* A job's body with what the zone knows of the running one, and links. */

static void
ngx_http_backup_dress(ngx_http_backup_call_t *call, json_t *job)
{
    json_t      *links, *progress;
    const char  *id, *kind;

    id = json_string_value(json_object_get(job, "id"));
    kind = json_string_value(json_object_get(job, "kind"));

    if (id == NULL) {
        return;
    }

    links = json_object();
    ngx_http_backup_link(call, links, "self", "jobs", id, "");

    if (json_is_true(json_object_get(job, "done"))) {
        if (kind && strcmp(kind, "backup") == 0
            && json_is_true(json_object_get(job, "success")))
        {
            ngx_http_backup_link(call, links, "result", "backups", id, "");
        }

    } else {
        ngx_http_backup_link(call, links, "cancel", "jobs", id, "/cancel");

        if (strcmp(call->running, id) == 0) {
            progress = call->progress
                       ? json_loads(call->progress, JSON_REJECT_DUPLICATES,
                                    NULL)
                       : NULL;

            if (progress) {
                json_object_update(job, progress);
                json_decref(progress);
            }
        }
    }

    json_object_set_new(job, "links", links);
}


static bk_rc_t
ngx_http_backup_call_list(ngx_http_backup_call_t *call, bk_engine_t *engine)
{
    size_t       i;
    json_t      *list, *item, *links;
    bk_rc_t      rc;
    const char  *id;

    call->filter.type = call->type;
    call->filter.tag = call->tag;
    call->filter.storage = call->storage;
    call->filter.cursor = call->cursor;

    list = NULL;

    rc = bk_engine_list(engine, &call->filter, &list, &call->err);
    if (rc != BK_OK) {
        return rc;
    }

    json_array_foreach(json_object_get(list, "backups"), i, item) {
        id = json_string_value(json_object_get(item, "backup_id"));

        if (id) {
            links = json_object();
            ngx_http_backup_link(call, links, "self", "backups", id, "");
            json_object_set_new(item, "links", links);
        }
    }

    return ngx_http_backup_call_text(call, list, NGX_HTTP_OK);
}


static bk_rc_t
ngx_http_backup_call_backup(ngx_http_backup_call_t *call, bk_engine_t *engine)
{
    json_t   *backup, *links;
    bk_rc_t   rc;

    backup = NULL;

    rc = bk_engine_backup(engine, call->id, &backup, &call->err);
    if (rc != BK_OK) {
        return rc;
    }

    links = json_object();
    ngx_http_backup_link(call, links, "self", "backups", call->id, "");
    json_object_set_new(backup, "links", links);

    return ngx_http_backup_call_text(call, backup, NGX_HTTP_OK);
}


static bk_rc_t
ngx_http_backup_call_jobs(ngx_http_backup_call_t *call, bk_engine_t *engine)
{
    size_t    i;
    json_t   *list, *job;
    bk_rc_t   rc;

    list = NULL;

    rc = bk_engine_jobs(engine, call->cursor, call->filter.limit, &list,
                        &call->err);
    if (rc != BK_OK) {
        return rc;
    }

    json_array_foreach(json_object_get(list, "jobs"), i, job) {
        ngx_http_backup_dress(call, job);
    }

    return ngx_http_backup_call_text(call, list, NGX_HTTP_OK);
}


static bk_rc_t
ngx_http_backup_call_job(ngx_http_backup_call_t *call, bk_engine_t *engine,
    const char *id)
{
    json_t   *job;
    bk_rc_t   rc;

    job = NULL;

    rc = bk_engine_job(engine, id, &job, &call->err);
    if (rc != BK_OK) {
        return rc;
    }

    ngx_http_backup_dress(call, job);

    call->ended = json_is_true(json_object_get(job, "done"));
    bk_strcpy(call->job, sizeof(call->job), id);

    return ngx_http_backup_call_text(call, job, NGX_HTTP_OK);
}


static bk_rc_t
ngx_http_backup_call_cancel(ngx_http_backup_call_t *call, bk_engine_t *engine)
{
    bk_rc_t          rc;
    bk_job_status_t  status;

    status = BK_STATUS_QUEUED;

    rc = bk_engine_cancel(engine, call->id, &status, &call->err);

    if (rc == BK_OK && status == BK_STATUS_CANCELING) {

        /* Only the runner can reach it; the loop passes the wish on. */

        call->stop = 1;

        rc = ngx_http_backup_call_job(call, engine, call->id);
        call->status = NGX_HTTP_ACCEPTED;

        return rc;
    }

    if (rc != BK_OK) {
        return rc;
    }

    call->wake = 1;

    return ngx_http_backup_call_job(call, engine, call->id);
}


/* The body as JSON; NULL when there is none. */

static bk_rc_t
ngx_http_backup_call_body(ngx_http_backup_call_t *call, json_t **body)
{
    size_t   got;
    bk_rc_t  rc;

    *body = NULL;

    if (call->kind == BK_JOB_DELETE) {
        *body = json_pack("{s:s}", "backup_id", call->id);
        return *body ? BK_OK
                     : bk_err_set(&call->err, BK_NO_MEMORY, "out of memory");
    }

    if (call->body_fd != -1) {
        rc = bk_pread_all(call->body_fd, call->body, call->body_len,
                          (uint64_t) call->body_offset, &got,
                          "the request body", &call->err);
        if (rc != BK_OK) {
            return rc;
        }

        call->body_len = got;
    }

    if (call->body_len == 0) {
        return BK_OK;
    }

    return bk_json_parse(call->body, call->body_len, body, &call->err);
}


static bk_rc_t
ngx_http_backup_call_submit(ngx_http_backup_call_t *call, bk_engine_t *engine)
{
    char          id[BK_JOB_ID];
    bool          replayed;
    json_t       *body, *plan;
    bk_rc_t       rc;
    bk_submit_t   submit;

    replayed = false;
    id[0] = '\0';

    rc = ngx_http_backup_call_body(call, &body);
    if (rc != BK_OK) {
        return rc;
    }

    rc = bk_request_check(bk_engine_set(engine), (bk_job_kind_t) call->kind,
                          body, &call->problems, &call->err);
    if (rc != BK_OK) {
        goto done;
    }

    rc = bk_engine_check(engine, (bk_job_kind_t) call->kind, body,
                         &call->ctl.ctl, &call->problems, &call->err);
    if (rc != BK_OK) {
        goto done;
    }

    if ((call->kind == BK_JOB_RECOVERY || call->kind == BK_JOB_CLEANUP)
        && json_is_true(json_object_get(body, "dry_run")))
    {
        plan = NULL;

        rc = bk_engine_plan(engine, (bk_job_kind_t) call->kind, body, NULL,
                            &call->ctl.ctl, &plan, &call->err);
        if (rc == BK_OK) {
            rc = ngx_http_backup_call_text(call, plan, NGX_HTTP_OK);
        }

        goto done;
    }

    memset(&submit, 0, sizeof(submit));
    submit.kind = (bk_job_kind_t) call->kind;
    submit.body = body;
    submit.trigger = "api";
    submit.requested_by = call->user;
    submit.request_id = call->request_id;
    submit.idempotency_key = call->idempotency_key;

    rc = bk_engine_submit(engine, &submit, id, &replayed, &call->err);

    bk_strcpy(call->job, sizeof(call->job), id);

    if (rc != BK_OK) {
        goto done;
    }

    call->wake = 1;
    call->replayed = replayed;

    rc = ngx_http_backup_call_job(call, engine, id);
    call->status = NGX_HTTP_ACCEPTED;

done:

    json_decref(body);

    return rc;
}


static bk_rc_t
ngx_http_backup_call_timeline(ngx_http_backup_call_t *call,
    bk_engine_t *engine)
{
    json_t                *answer;
    bk_rc_t                rc;
    bk_timeline_filter_t   filter;

    memset(&filter, 0, sizeof(filter));
    filter.database = call->database;
    filter.cursor = call->cursor;
    filter.since = call->filter.since;
    filter.until = call->filter.until;
    filter.limit = call->filter.limit;

    answer = NULL;

    rc = bk_engine_timeline(engine, &filter, &call->ctl.ctl, &answer,
                            &call->err);

    return rc == BK_OK ? ngx_http_backup_call_text(call, answer, NGX_HTTP_OK)
                       : rc;
}


static bk_rc_t
ngx_http_backup_call_detach(ngx_http_backup_call_t *call, bk_engine_t *engine)
{
    json_t   *answer;
    bk_rc_t   rc;

    answer = NULL;

    rc = bk_engine_detach(engine, call->id, call->kind == 1, &answer,
                          &call->err);
    if (rc != BK_OK) {
        return rc;
    }

    call->wake = 1;

    return ngx_http_backup_call_text(call, answer, NGX_HTTP_OK);
}


static bk_rc_t
ngx_http_backup_call_query(ngx_http_backup_call_t *call, bk_engine_t *engine)
{
    json_t   *body, *answer;
    bk_rc_t   rc;

    answer = NULL;

    rc = ngx_http_backup_call_body(call, &body);
    if (rc != BK_OK) {
        return rc;
    }

    rc = bk_query_check(bk_engine_set(engine), body, &call->problems,
                        &call->err);

    if (rc == BK_OK) {
        rc = bk_engine_query(engine, body, &call->ctl.ctl, &answer,
                             &call->problems, &call->err);
    }

    json_decref(body);

    return rc == BK_OK ? ngx_http_backup_call_text(call, answer, NGX_HTTP_OK)
                       : rc;
}


void
ngx_http_backup_call_work(void *data)
{
    bk_rc_t                  rc;
    bk_engine_t             *engine;
    ngx_http_backup_call_t  *call = data;

    rc = ngx_http_backup_engine(call->bset, &engine, &call->err);

    if (rc == BK_OK) {

        switch (call->op) {

        case NGX_HTTP_BACKUP_OP_LIST:
            rc = ngx_http_backup_call_list(call, engine);
            break;

        case NGX_HTTP_BACKUP_OP_BACKUP:
            rc = ngx_http_backup_call_backup(call, engine);
            break;

        case NGX_HTTP_BACKUP_OP_JOBS:
            rc = ngx_http_backup_call_jobs(call, engine);
            break;

        case NGX_HTTP_BACKUP_OP_JOB:
            rc = ngx_http_backup_call_job(call, engine, call->id);
            break;

        case NGX_HTTP_BACKUP_OP_SUBMIT:
            rc = ngx_http_backup_call_submit(call, engine);
            break;

        case NGX_HTTP_BACKUP_OP_DETACH:
            rc = ngx_http_backup_call_detach(call, engine);
            break;

        case NGX_HTTP_BACKUP_OP_TIMELINE:
            rc = ngx_http_backup_call_timeline(call, engine);
            break;

        case NGX_HTTP_BACKUP_OP_QUERY:
            rc = ngx_http_backup_call_query(call, engine);
            break;

        default: /* NGX_HTTP_BACKUP_OP_CANCEL */
            rc = ngx_http_backup_call_cancel(call, engine);
        }
    }

    if (rc == BK_INTERRUPTED) {

        /* nothing was begun that goes on later, as a job would */

        rc = bk_err_set(&call->err, BK_UNAVAILABLE,
                        "This process of nginx is leaving: ask again");
    }

    if (rc != BK_OK) {
        call->failed = 1;

        if (call->err.rc == BK_OK) {
            bk_err_set(&call->err, rc, "%s", bk_rc_title(rc));
        }
    }
}
