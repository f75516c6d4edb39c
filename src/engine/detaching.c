/*
 * engine/detaching.c: databases that are not captured for now, because somebody said so: a value in
 * the catalog, which the owner looks at.
 */
#include <string.h>

#include "engine/capturing.h"
#include "engine/engine_private.h"

#define DETACHED "detached" /* {name: true} */

typedef struct {
    const char *name;
    bool detached;
} wish_t;

static void put_wish(json_t *names, void *arg)
{
    const wish_t *wish = arg;
    if (wish->detached)
        json_object_set_new(names, wish->name, json_true());
    else
        json_object_del(names, wish->name);
}

bk_rc_t bk_engine_detach(bk_engine_t *engine, const char *name, bool detached, json_t **answer,
                         bk_err_t *err)
{
    const bk_set_t *set = engine->set;
    bool found = false;
    wish_t wish = {name, detached};
    *answer = NULL;
    for (size_t i = 0; i < set->db_count; i++)
        found = found || (strcmp(set->dbs[i].name, name) == 0 && set->dbs[i].pitr_window > 0);
    if (!found)
        return bk_err_set(err, BK_NOT_FOUND, "there is no database block %s with a pitr_window",
                          name);
    bk_rc_t rc = bk_catalog_edit_value(engine->catalog, DETACHED, put_wish, &wish, err);
    if (rc == BK_OK)
        *answer = json_pack("{ss sb}", "database", name, "detached", (int)detached);
    return rc;
}

void bk_engine_obey_detach(bk_engine_t *engine)
{
    json_t *names = NULL;
    if (bk_catalog_value(engine->catalog, DETACHED, &names, NULL) == BK_OK)
        bk_capturing_detach(engine->capturing, names);
    json_decref(names);
}
