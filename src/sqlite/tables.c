/*
 * sqlite/tables.c: the transaction in which tables come back (tables.h).  Touches only a connection
 * of its own to the application's database, to which the past is attached.
 */
#include "sqlite/tables.h"

#include <stdlib.h>
#include <string.h>

#include "sqlite/require.h"
#include "sqlite/table.h"

#define CACHE_KIB                                                                                  \
    16384 /* of each side: an index is read, and made, in another order than its table */
#define LOOK_EVERY 10000 /* virtual machine instructions between two looks at the stop flag */

typedef struct {
    const bk_tables_t *how;
    bk_db_connection_t c;
    bk_table_t *tables;
    size_t count;
} work_t;

static int look(void *arg)
{
    const work_t *w = arg;
    return bk_ctl_check(w->c.ctl, NULL) != BK_OK;
}

/* Rows are copied as they were: triggers and references did their work then.  The tables in which
 * virtual ones keep their content are written, which a defensive connection must not. */
static bk_rc_t open_both(work_t *w, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = bk_db_connect(&w->c, w->how->target, w->how->busy_ms, ctl, err);
    if (rc == BK_NOT_FOUND || rc == BK_CORRUPT)
        bk_err_remedy(err, "recover the whole database");
    if (rc != BK_OK)
        return rc;
    sqlite3_db_config(w->c.db, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, NULL);
    sqlite3_db_config(w->c.db, SQLITE_DBCONFIG_DEFENSIVE, 0, NULL);
    sqlite3_progress_handler(w->c.db, LOOK_EVERY, look, w);
    rc = bk_table_sql(&w->c, NULL, err, "PRAGMA foreign_keys = OFF");
    if (rc == BK_OK)
        rc = bk_table_sql(&w->c, NULL, err, "PRAGMA temp_store = FILE");
    if (rc == BK_OK)
        rc = bk_table_sql(&w->c, NULL, err, "ATTACH %Q AS past", w->how->image);
    if (rc == BK_OK)
        rc = bk_table_sql(&w->c, NULL, err, "PRAGMA main.cache_size = -%d", CACHE_KIB);
    if (rc == BK_OK)
        rc = bk_table_sql(&w->c, NULL, err, "PRAGMA past.cache_size = -%d", CACHE_KIB);
    return rc;
}

static void close_tables(work_t *w)
{
    for (size_t i = 0; i < w->count; i++)
        bk_table_free(&w->tables[i]);
    free(w->tables);
    w->tables = NULL;
    w->count = 0;
}

static bk_rc_t open_tables(work_t *w, bk_err_t *err)
{
    size_t i;
    const json_t *name;
    bk_rc_t rc = BK_OK;
    if ((w->tables = calloc(json_array_size(w->how->tables) + 1, sizeof *w->tables)) == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "recover tables: out of memory");
    json_array_foreach(w->how->tables, i, name)
    {
        bool again = false;
        bk_table_t *table = &w->tables[w->count];
        for (size_t n = 0; n < w->count; n++)
            again = again || sqlite3_stricmp(w->tables[n].name, json_string_value(name)) == 0;
        if (rc != BK_OK || again)
            continue;
        w->count++;
        rc = bk_table_open(&w->c, json_string_value(name), table, err);
    }
    return rc;
}

/* --- foreign keys --- */

/*
 * Rows of the wanted tables, and of those that refer to them, that refer to nothing: how many by
 * table and its parent.  An application may live with some: only more than before are a failure.
 */
#define ORPHANS                                                                                    \
    "SELECT f.\"table\" AS child, f.parent AS parent, count(*) AS n FROM (SELECT DISTINCT m.name " \
    "FROM main.sqlite_schema m JOIN pragma_foreign_key_list(m.name, 'main') k WHERE m.type = "     \
    "'table' AND (m.name IN (SELECT name FROM temp.backup_wanted) OR k.\"table\" IN (SELECT name " \
    "FROM temp.backup_wanted))) t JOIN pragma_foreign_key_check(t.name, 'main') f GROUP BY 1, 2"

static bk_rc_t count_orphans(work_t *w, bool *known, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc =
        bk_table_sql(&w->c, NULL, err, "CREATE TEMP TABLE backup_wanted(name TEXT COLLATE NOCASE)");
    for (size_t i = 0; i < w->count && rc == BK_OK; i++)
        rc = bk_table_sql(&w->c, NULL, err, "INSERT INTO temp.backup_wanted VALUES(%Q)",
                          w->tables[i].name);
    if (rc == BK_OK)
        rc = bk_table_sql(&w->c, NULL, err,
                          "CREATE TEMP TABLE backup_orphans(child TEXT COLLATE NOCASE, parent TEXT "
                          "COLLATE NOCASE, n INTEGER)");
    if (rc != BK_OK)
        return rc;
    bk_rc_t counted = bk_table_sql(&w->c, NULL, &why, "INSERT INTO temp.backup_orphans " ORPHANS);
    *known = counted == BK_OK;
    /* The failure's own text says that nothing is changed, and this one lets it go on. */
    if ((rc = bk_ctl_check(w->c.ctl, err)) == BK_OK && !*known)
        bk_ctl_note(w->c.ctl, "foreign keys are not checked: %s",
                    counted == BK_CONFLICT ? sqlite3_errmsg(w->c.db) : why.text);
    return rc;
}

static bk_rc_t check_orphans(work_t *w, bk_err_t *err)
{
    char *worse = NULL;
    bk_rc_t rc = bk_table_sql(
        &w->c, &worse, err,
        "SELECT printf('%%d rows of %%s would refer to rows of %%s that are not there', a.n, "
        "a.child, a.parent) FROM (" ORPHANS ") a LEFT JOIN temp.backup_orphans b USING(child, "
        "parent) WHERE a.n > coalesce(b.n, 0) LIMIT 1");
    if (rc == BK_OK && worse != NULL)
        rc = bk_err_set(err, BK_CONFLICT,
                        "%s (nothing is changed): recover that table, too, or the whole database",
                        worse);
    sqlite3_free(worse);
    return rc;
}

/* --- the proof --- */

static bk_rc_t prove_tables(work_t *w, bk_err_t *err)
{
    bk_rc_t rc = bk_table_prove_schema(&w->c, err);
    for (size_t i = 0; i < w->count && rc == BK_OK; i++) {
        if (w->c.ctl != NULL)
            bk_ctl_current(w->c.ctl, w->tables[i].name);
        if ((rc = bk_table_prove(&w->c, &w->tables[i], err)) != BK_OK)
            bk_err_wrap(err, "table %s as it was then", w->tables[i].name);
    }
    return rc;
}

/* Without a transaction: nobody waits for it, and no log is held. */
static bk_rc_t prove(work_t *w, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = open_tables(w, err);
    if (rc != BK_OK)
        return rc;
    rc = prove_tables(w, &why);
    if (rc == BK_CORRUPT && !w->how->verify) {
        bk_ctl_note(w->c.ctl, "%s: what can be read of it comes back", why.text);
        rc = BK_OK;
    } else if (rc == BK_CORRUPT) {
        bk_err_remedy(&why, "nothing is changed: choose another backup or moment, or take what can "
                            "be read with \"verify\": false");
    }
    if (rc != BK_OK && err != NULL)
        *err = why;
    close_tables(w);
    return rc;
}

/* --- the transaction --- */

static bk_rc_t put_back(work_t *w, json_t *list, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < w->count && rc == BK_OK; i++) {
        const bk_table_t *table = &w->tables[i];
        int64_t rows = 0;
        if (w->c.ctl != NULL)
            bk_ctl_current(w->c.ctl, table->name);
        rc = bk_table_put_back(&w->c, table, &rows, err);
        if (rc != BK_OK)
            bk_err_wrap(err, "table %s", table->name);
        json_array_append_new(list, json_pack("{ss ss sI}", "name", table->name, "action",
                                              table->missing ? "created" : "replaced", "rows",
                                              (json_int_t)rows));
    }
    for (size_t i = 0; i < w->count && rc == BK_OK; i++)
        if ((rc = bk_table_finish(&w->c, &w->tables[i], err)) != BK_OK)
            bk_err_wrap(err, "table %s", w->tables[i].name);
    return rc;
}

/* Of the target as it would be. */
static bk_rc_t require(work_t *w, bk_err_t *err)
{
    bk_db_select_t of = {.db = w->c.db};
    bk_rc_t rc = bk_db_require(w->how->database, w->how->checks, &of, w->c.ctl, err);
    sqlite3_progress_handler(w->c.db, LOOK_EVERY, look, w);
    if (rc == BK_FAILED)
        bk_err_wrap(err, "nothing is changed");
    return rc;
}

static bk_rc_t recover(work_t *w, json_t *list, bk_err_t *err)
{
    bool known = false;
    bk_rc_t rc = prove(w, err);
    if (rc == BK_OK)
        rc = bk_table_sql(&w->c, NULL, err, "BEGIN IMMEDIATE");
    if (rc == BK_OK)
        rc = open_tables(w, err);
    if (rc == BK_OK)
        rc = count_orphans(w, &known, err);
    if (rc == BK_OK)
        rc = put_back(w, list, err);
    if (rc == BK_OK && known)
        rc = check_orphans(w, err);
    if (rc == BK_OK && w->how->checks != NULL)
        rc = require(w, err);
    if (rc == BK_OK)
        rc = bk_table_sql(&w->c, NULL, err, "COMMIT");
    return rc;
}

static bk_rc_t check(work_t *w, json_t *list, bk_err_t *err)
{
    (void)list;
    bk_rc_t rc = bk_table_sql(&w->c, NULL, err, "BEGIN");
    return rc == BK_OK ? open_tables(w, err) : rc;
}

static bk_rc_t compare(work_t *w, json_t *list, bk_err_t *err)
{
    bk_rc_t rc = check(w, list, err);
    for (size_t i = 0; i < w->count && rc == BK_OK; i++) {
        const bk_table_t *table = &w->tables[i];
        int64_t now = 0, then = 0, only_now = 0, only_then = 0;
        if (w->c.ctl != NULL)
            bk_ctl_current(w->c.ctl, table->name);
        if (!table->missing)
            rc = bk_table_number(&w->c, &now, err, "SELECT count(*) FROM main.\"%w\"", table->name);
        if (rc == BK_OK)
            rc =
                bk_table_number(&w->c, &then, err, "SELECT count(*) FROM past.\"%w\"", table->name);
        if (rc == BK_OK)
            rc = bk_table_only_in(&w->c, table, "main", &only_now, err);
        if (rc == BK_OK)
            rc = bk_table_only_in(&w->c, table, "past", &only_then, err);
        json_array_append_new(list,
                              json_pack("{ss ss sI sI sI sI}", "name", table->name, "action",
                                        table->missing ? "create" : "replace", "rows_now",
                                        (json_int_t)now, "rows_then", (json_int_t)then, "only_now",
                                        (json_int_t)only_now, "only_then", (json_int_t)only_then));
    }
    return rc;
}

static bk_rc_t work(const bk_tables_t *how, bk_rc_t (*act)(work_t *, json_t *, bk_err_t *),
                    json_t **result, bk_ctl_t *ctl, bk_err_t *err)
{
    work_t w = {.how = how};
    json_t *list = json_array();
    *result = NULL;
    bk_rc_t rc = open_both(&w, ctl, err);
    if (rc == BK_OK)
        rc = act(&w, list, err);
    if (w.c.db != NULL) {
        sqlite3_progress_handler(w.c.db, 0, NULL, NULL);
        if (!sqlite3_get_autocommit(w.c.db))
            sqlite3_exec(w.c.db, "ROLLBACK", NULL, NULL, NULL);
        bk_db_share_companions(&w.c);
    }
    close_tables(&w);
    bk_db_disconnect(&w.c);
    if (rc == BK_OK)
        *result = list;
    else
        json_decref(list);
    return rc;
}

bk_rc_t bk_tables_recover(const bk_tables_t *how, json_t **result, bk_ctl_t *ctl, bk_err_t *err)
{
    return work(how, recover, result, ctl, err);
}

bk_rc_t bk_tables_compare(const bk_tables_t *how, json_t **result, bk_ctl_t *ctl, bk_err_t *err)
{
    return work(how, compare, result, ctl, err);
}

bk_rc_t bk_tables_check(const bk_tables_t *how, bk_ctl_t *ctl, bk_err_t *err)
{
    json_t *nothing;
    bk_rc_t rc = work(how, check, &nothing, ctl, err);
    json_decref(nothing);
    return rc;
}
