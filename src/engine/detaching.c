/*
 * engine/detaching.c: databases that are not captured for now, because somebody said so: a value in
 * the catalog, which the owner looks at.
 */
#include <string.h>

#include "engine/capturing.h"
#include "engine/engine_private.h"

#define DETACHED "detached" /* {name: true} */

bk_rc_t bk_engine_detach(bk_engine_t *engine, const char *name, bool detached, json_t **answer,
                         bk_err_t *err)
{
    const bk_set_t *set = engine->set;
    bool found = false;
    json_t *names = NULL;
    *answer = NULL;
    for (size_t i = 0; i < set->db_count; i++)
        found = found || (strcmp(set->dbs[i].name, name) == 0 && set->dbs[i].pitr_window > 0);
    if (!found)
        return bk_err_set(err, BK_NOT_FOUND, "there is no database block %s with a pitr_window",
                          name);
    bk_rc_t rc = bk_catalog_value(engine->catalog, DETACHED, &names, err);
    if (rc != BK_OK)
        return rc;
    json_t *value = names != NULL ? names : json_object();
    if (detached)
        json_object_set_new(value, name, json_true());
    else
        json_object_del(value, name);
    rc = bk_catalog_set_value(engine->catalog, DETACHED, value, err);
    json_decref(value);
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
