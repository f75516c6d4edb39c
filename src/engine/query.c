/*
 * engine/query.c: what is asked of the past without a job: whether a moment and its tables can be
 * had, and SQL.
 * Reads the repository and base_dir.
 */
#include <string.h>

#include "engine/cleanup.h"
#include "engine/engine_private.h"

static bool names_moment(const json_t *body)
{
    return json_is_string(json_object_get(body, "point_in_time")) ||
           json_is_integer(json_object_get(body, "transaction"));
}

/* What can be had instead. */
static json_t *window_of(const bk_point_t *point, bk_rc_t rc)
{
    return rc == BK_INVALID && point->window != NULL
               ? json_pack("{sO}", "recovery_window", point->window)
               : NULL;
}

bk_rc_t bk_engine_check(bk_engine_t *engine, bk_job_kind_t kind, json_t *body, bk_ctl_t *ctl,
                        json_t **more, bk_err_t *err)
{
    bk_point_wish_t wish;
    bk_point_t point = {0};
    bk_opened_t opened;
    *more = NULL;
    bool tables = json_is_array(json_object_get(body, "tables"));
    if (kind == BK_JOB_DELETE)
        return bk_delete_check(engine, body, ctl, err);
    if ((kind != BK_JOB_RECOVERY && kind != BK_JOB_VALIDATE) || (!names_moment(body) && !tables))
        return BK_OK;
    bk_request_point(engine, body, &wish);
    bk_rc_t rc = bk_engine_open_repo(engine, false, ctl, &opened, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_point_find(opened.repo, &wish, ctl, &point, err);
    if (rc == BK_OK && tables)
        rc = bk_tables_of_point(engine, &point, body, BK_TABLES_CHECK, NULL, err);
    *more = window_of(&point, rc);
    bk_point_close(&point);
    bk_engine_close_repo(&opened);
    if (rc == BK_NOT_FOUND && err != NULL)
        rc = err->rc = BK_INVALID;
    return rc;
}

bk_rc_t bk_point_ask(const bk_point_t *point, const char *database, const bk_db_select_t *how,
                     json_t **answer, bk_err_t *err)
{
    const bk_snapshot_db_t *db = NULL;
    bk_point_view_t view;
    bk_db_select_t question = *how;
    bk_rc_t rc = bk_point_database(point, database, &db, err);
    if (rc == BK_OK)
        rc = bk_point_show(point, db, &view, err);
    if (rc != BK_OK)
        return rc;
    question.image = bk_vfs_uri(view.image);
    rc = bk_db_select(&question, answer, point->ctl, err);
    rc = bk_vfs_failure(view.image, rc, err);
    bk_point_hide(&view);
    if (rc == BK_OK) {
        json_object_set_new(*answer, "database", json_string(database));
        bk_point_describe(point, *answer);
    }
    return rc;
}

bk_rc_t bk_engine_query(bk_engine_t *engine, json_t *body, bk_ctl_t *ctl, json_t **answer,
                        json_t **more, bk_err_t *err)
{
    bk_point_wish_t wish;
    bk_point_t point = {0};
    bk_opened_t opened;
    bk_db_select_t how = {.sql = json_string_value(json_object_get(body, "sql")),
                          .max_rows = (uint64_t)json_integer_value(json_object_get(body, "limit")),
                          .max_ms = (uint64_t)json_integer_value(json_object_get(body, "timeout")) *
                                    1000};
    *answer = *more = NULL;
    bk_request_point(engine, body, &wish);
    if (wish.database == NULL)
        wish.database = engine->set->dbs[0].name;
    bk_rc_t rc = bk_engine_open_repo(engine, false, ctl, &opened, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_point_find(opened.repo, &wish, ctl, &point, err);
    if (rc == BK_OK)
        rc = bk_point_ask(&point, wish.database, &how, answer, err);
    *more = window_of(&point, rc);
    bk_point_close(&point);
    bk_engine_close_repo(&opened);
    return rc;
}
