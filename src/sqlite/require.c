/*
 * sqlite/require.c: asks the configuration's checks (require.h), as strangers' SQL.
 */
#include "sqlite/require.h"

#include <stdlib.h>

#define CHECK_MS 60000

static bool is_true(const json_t *value)
{
    const char *text = json_string_value(value);
    return json_is_number(value) ? json_number_value(value) != 0
                                 : text != NULL && strtod(text, NULL) != 0;
}

static bk_rc_t require(const char *name, const char *sql, const bk_db_select_t *of, bk_ctl_t *ctl,
                       bk_err_t *err)
{
    json_t *answer = NULL;
    bk_db_select_t how = *of;
    how.sql = sql;
    how.max_rows = 2;
    how.max_ms = CHECK_MS;
    bk_rc_t rc = bk_db_select(&how, &answer, ctl, err);
    const json_t *rows = json_object_get(answer, "rows");
    if (rc != BK_OK && rc != BK_CANCELED && rc != BK_INTERRUPTED) {
        bk_err_wrap(err, "database %s: check \"%s\"", name, sql);
        rc = BK_FAILED;
        if (err != NULL)
            err->rc = rc;
    } else if (rc == BK_OK && (json_array_size(rows) != 1 ||
                               !is_true(json_array_get(json_array_get(rows, 0), 0)))) {
        rc = bk_err_set(err, BK_FAILED,
                        "database %s: check \"%s\" is not true of it: choose another backup "
                        "or moment, or leave the check out with \"verify\": false",
                        name, sql);
    }
    json_decref(answer);
    return rc;
}

bk_rc_t bk_db_require(const char *name, char *const *checks, const bk_db_select_t *of,
                      bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; rc == BK_OK && checks != NULL && checks[i] != NULL; i++)
        rc = require(name, checks[i], of, ctl, err);
    return rc;
}
