/*
 * engine/recover_tables.c: single tables of a past state, for the recovery, its plan and its check.
 * Reads the repository and base_dir; the application's database through sqlite/tables.h alone.
 */
#include <string.h>

#include "base/json.h"
#include "engine/engine_private.h"
#include "sqlite/tables.h"

static const bk_set_db_t *wanted(const bk_set_t *set, const json_t *body)
{
    const char *name = json_string_value(json_object_get(body, "database"));
    for (size_t i = 0; i < set->db_count; i++)
        if (name == NULL || strcmp(set->dbs[i].name, name) == 0)
            return &set->dbs[i];
    return NULL;
}

static json_t *describe(const bk_point_t *point, const bk_set_db_t *target,
                        const bk_snapshot_db_t *db, bool plan, json_t *tables)
{
    json_t *path = bk_json_name(target->path, strlen(target->path));
    if (plan)
        return json_pack("[{ss so ss so}]", "name", db->name, "path", path, "action",
                         "tables, live", "tables", tables);
    json_t *entry = json_pack("{ss so ss so}", "name", db->name, "path", path, "method", "tables",
                              "tables", tables);
    bk_point_tell(point, db, entry);
    return json_pack("[o]", entry);
}

bk_rc_t bk_tables_of_point(bk_engine_t *engine, const bk_point_t *point, const json_t *body,
                           bk_tables_act_t act, json_t **result, bk_err_t *err)
{
    const bk_set_db_t *target = wanted(engine->set, body);
    const bk_snapshot_db_t *db = NULL;
    bk_point_view_t view;
    json_t *tables = NULL;
    if (target == NULL)
        return bk_err_set(err, BK_INVALID, "tables: no database is configured");
    bk_engine_reach_databases(engine);
    bk_rc_t rc = bk_point_database(point, target->name, &db, err);
    if (rc == BK_OK)
        rc = bk_point_show(point, db, &view, err);
    if (rc != BK_OK)
        return rc;
    bool verify = !json_is_false(json_object_get(body, "verify"));
    bk_tables_t how = {.image = bk_vfs_uri(view.image),
                       .target = target->path,
                       .tables = json_object_get(body, "tables"),
                       .busy_ms = (unsigned)target->busy_timeout,
                       .verify = verify,
                       .database = target->name,
                       .checks = verify ? target->checks : NULL};
    rc = act == BK_TABLES_CHECK     ? bk_tables_check(&how, point->ctl, err)
         : act == BK_TABLES_COMPARE ? bk_tables_compare(&how, &tables, point->ctl, err)
                                    : bk_tables_recover(&how, &tables, point->ctl, err);
    rc = bk_vfs_failure(view.image, rc, err);
    bk_point_hide(&view);
    if (rc == BK_OK && act != BK_TABLES_CHECK)
        *result = describe(point, target, db, act == BK_TABLES_COMPARE, tables);
    return rc;
}
