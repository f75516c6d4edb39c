/*
 * engine/renew.c: compares when histories began with the newest backup.  Touches the catalog only.
 */
#include "engine/renew.h"

#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "engine/capturing.h"
#include "engine/engine_private.h"

#define NAME_SIZE  64
#define LOOK_EVERY (10 * BK_SEC)
#define TRY_EVERY  (3600 * BK_SEC) /* one that failed, or does not hold the database */

int64_t bk_renew_after = 60 * BK_SEC;

/* The first database that needs one; "" when none does. */
static void find_waiting(bk_engine_t *engine, int64_t newest, char name[NAME_SIZE])
{
    json_t *list = bk_capturing_describe(engine->capturing), *one;
    size_t i;
    name[0] = '\0';
    json_array_foreach(list, i, one)
    {
        const char *text = json_string_value(json_object_get(one, "epoch_began"));
        int64_t began = 0;
        if (name[0] == '\0' && json_is_true(json_object_get(one, "capturing")) && text != NULL &&
            bk_time_parse(text, &began) && newest < began && bk_now() - began >= bk_renew_after)
            bk_strcpy(name, NAME_SIZE, json_string_value(json_object_get(one, "name")));
    }
    json_decref(list);
}

static bk_rc_t submit(bk_engine_t *engine, const char *name, bk_err_t *err)
{
    char why[128], id[BK_JOB_ID];
    bool replayed;
    bk_fmt(why, sizeof why, "begins the history of database %s", name);
    json_t *body = json_pack("{ss ss}", "backup_type", "incremental", "description", why);
    bk_submit_t request = {
        .kind = BK_JOB_BACKUP, .body = body, .trigger = "capture", .requested_by = "ngx-backup"};
    bk_rc_t rc = bk_engine_submit(engine, &request, id, &replayed, err);
    json_decref(body);
    if (rc != BK_CONFLICT)
        return rc;
    bk_err_clear(err); /* one is on its way */
    return BK_OK;
}

bk_rc_t bk_renew_base(bk_engine_t *engine, bk_err_t *err)
{
    char name[NAME_SIZE];
    json_t *summary = NULL;
    int64_t now = bk_mono();
    if (now < engine->renew_next)
        return BK_OK;
    engine->renew_next = now + LOOK_EVERY;
    bk_rc_t rc = bk_catalog_value(engine->catalog, "summary", &summary, err);
    if (rc != BK_OK)
        return rc;
    int64_t newest = json_integer_value(json_object_get(summary, "database_ns"));
    json_decref(summary);
    if (newest == 0)
        return BK_OK;
    find_waiting(engine, newest, name);
    if (name[0] == '\0')
        return BK_OK;
    engine->renew_next = now + TRY_EVERY;
    return submit(engine, name, err);
}
