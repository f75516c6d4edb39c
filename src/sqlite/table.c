/*
 * sqlite/table.c: what a table is and how it is copied (table.h).  Touches only the connection.
 *
 * Names in SQL are quoted by SQLite ("%w"); rowids are never, since an unknown name in quotes would
 * be a text.  https://www.sqlite.org/rowidtable.html, https://www.sqlite.org/vtab.html#xshadowname
 */
#include "sqlite/table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sqlite/check.h"

/* --- SQL --- */

/*
 * A constraint is about the rows, a plain error about the schema (something of that name is there,
 * a collation is the application's own), everything else about the database.
 */
static bk_rc_t failed(bk_db_connection_t *c, int code, const char *sql, bk_err_t *err)
{
    char operation[200];
    if ((code & 0xff) == SQLITE_CONSTRAINT)
        return bk_err_set(
            err, BK_CONFLICT,
            "the rows do not fit into today's table: %s (nothing is changed); recover "
            "what they conflict with, too, or the whole database",
            sqlite3_errmsg(c->db));
    if (code == SQLITE_ERROR && bk_ctl_check(c->ctl, NULL) == BK_OK)
        return bk_err_set(err, BK_CONFLICT, "%s (nothing is changed)", sqlite3_errmsg(c->db));
    snprintf(operation, sizeof operation, "%.150s", sql);
    return bk_db_failure(c, code, operation, err);
}

static bk_rc_t answer(bk_db_connection_t *c, char *sql, char **text, bk_err_t *err)
{
    sqlite3_stmt *statement = NULL;
    if (sql == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", c->path);
    int code = sqlite3_prepare_v2(c->db, sql, -1, &statement, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_step(statement);
    if (code == SQLITE_ROW && text != NULL && sqlite3_column_type(statement, 0) != SQLITE_NULL)
        *text = sqlite3_mprintf("%s", sqlite3_column_text(statement, 0));
    while (code == SQLITE_ROW)
        code = sqlite3_step(statement);
    bk_rc_t rc = code == SQLITE_DONE ? BK_OK : failed(c, code, sql, err);
    sqlite3_finalize(statement);
    sqlite3_free(sql);
    return rc;
}

bk_rc_t bk_table_sql(bk_db_connection_t *c, char **text, bk_err_t *err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *sql = sqlite3_vmprintf(format, args);
    va_end(args);
    if (text != NULL)
        *text = NULL;
    return answer(c, sql, text, err);
}

bk_rc_t bk_table_number(bk_db_connection_t *c, int64_t *number, bk_err_t *err, const char *format,
                        ...)
{
    va_list args;
    char *text = NULL;
    va_start(args, format);
    char *sql = sqlite3_vmprintf(format, args);
    va_end(args);
    bk_rc_t rc = answer(c, sql, &text, err);
    *number = text != NULL ? strtoll(text, NULL, 10) : 0;
    sqlite3_free(text);
    return rc;
}

static bool is_sql(bk_db_connection_t *c, const char *format, const char *a, const char *b)
{
    sqlite3_stmt *statement = NULL;
    char *sql = sqlite3_mprintf(format, a, b);
    bool is = sql != NULL && sqlite3_prepare_v2(c->db, sql, -1, &statement, NULL) == SQLITE_OK;
    sqlite3_finalize(statement);
    sqlite3_free(sql);
    return is;
}

/* --- what it is --- */

/* The name under which a rowid can be read and written beside the columns; "" when there is none,
 * or each name is a column's. */
static bk_rc_t rowid_of(bk_db_connection_t *c, const char *schema, const char *table,
                        const char **name, bk_err_t *err)
{
    static const char *const names[] = {"rowid", "_rowid_", "oid"};
    bk_rc_t rc = BK_OK;
    *name = "";
    for (size_t i = 0; i < 3 && rc == BK_OK && **name == '\0'; i++) {
        int64_t columns;
        rc = bk_table_number(c, &columns, err,
                             "SELECT count(*) FROM pragma_table_xinfo(%Q, %Q) WHERE name = %Q "
                             "COLLATE NOCASE",
                             table, schema, names[i]);
        char *sql = sqlite3_mprintf("SELECT %s FROM %s.\"%%w\"", names[i], schema);
        if (rc == BK_OK && columns == 0 && sql != NULL && is_sql(c, sql, table, NULL))
            *name = names[i];
        sqlite3_free(sql);
    }
    return rc;
}

/* What has to be the same on both sides so that rows can go from one to the other. */
static bk_rc_t shape_of(bk_db_connection_t *c, const char *schema, const char *table, char **shape,
                        bk_err_t *err)
{
    const char *rowid;
    *shape = NULL;
    bk_rc_t rc = rowid_of(c, schema, table, &rowid, err);
    return rc != BK_OK
               ? rc
               : bk_table_sql(
                     c, shape, err,
                     "SELECT group_concat(name || rtrim(' ' || upper(type)) || CASE hidden WHEN "
                     "0 THEN '' ELSE ' generated' END || CASE pk WHEN 0 THEN '' ELSE ' key ' || pk "
                     "END, ', ') || %Q FROM (SELECT * FROM pragma_table_xinfo(%Q, %Q) ORDER BY "
                     "cid)",
                     *rowid != '\0' ? "" : ", no rowid", table, schema);
}

/* A virtual table's shadows have its name, an underscore and one more word. */
#define SHADOWS                                                                                    \
    "FROM pragma_table_list WHERE schema = %Q AND type = 'shadow' AND "                            \
    "lower(substr(name, 1, length(%Q) + 1)) = lower(%Q || '_') AND "                               \
    "instr(substr(name, length(%Q) + 2), '_') = 0"

static bk_rc_t refuse_kind(bk_db_connection_t *c, const bk_table_t *table, bk_err_t *err)
{
    int64_t shadow = 0;
    bk_rc_t rc = BK_OK;
    if (strcmp(table->type, "table") != 0)
        return bk_err_set(err, BK_INVALID, "%s is a view: name the tables that it reads",
                          table->name);
    if (sqlite3_strnicmp(table->name, "sqlite_", 7) == 0)
        return bk_err_set(err, BK_INVALID, "table %s belongs to SQLite itself", table->name);
    if (table->is_virtual) {
        rc = bk_table_number(c, &shadow, err, "SELECT count(*) " SHADOWS, "past", table->name,
                             table->name, table->name);
        return rc != BK_OK || shadow > 0
                   ? rc
                   : bk_err_set(err, BK_UNSUPPORTED,
                                "table %s is a virtual table whose module this SQLite does not "
                                "know, or that keeps nothing in the database",
                                table->name);
    }
    rc = bk_table_number(c, &shadow, err,
                         "SELECT count(*) FROM pragma_table_list WHERE schema = 'past' AND type = "
                         "'shadow' AND name = %Q COLLATE NOCASE",
                         table->name);
    return rc != BK_OK || shadow == 0
               ? rc
               : bk_err_set(err, BK_INVALID, "table %s is a part of a virtual table: name that one",
                            table->name);
}

static bk_rc_t no_such(bk_db_connection_t *c, const char *name, bk_err_t *err)
{
    char *names = NULL;
    bk_table_sql(c, &names, NULL,
                 "SELECT group_concat(name, ', ') FROM (SELECT name FROM pragma_table_list WHERE "
                 "schema = 'past' AND type IN ('table', 'virtual') AND name NOT LIKE 'sqlite\\_%%' "
                 "ESCAPE '\\' ORDER BY name LIMIT 40)");
    bk_rc_t rc = bk_err_set(err, BK_INVALID, "there was no table %s; there were %s", name,
                            names != NULL ? names : "none");
    sqlite3_free(names);
    return rc;
}

#define OF_THE_NAME "sqlite_schema WHERE type IN ('table', 'view') AND name = %Q COLLATE NOCASE"

static bk_rc_t look_at_past(bk_db_connection_t *c, const char *name, bk_table_t *table,
                            bk_err_t *err)
{
    int64_t root = 0;
    bk_rc_t rc = bk_table_sql(c, &table->name, err, "SELECT name FROM past." OF_THE_NAME, name);
    if (rc == BK_OK && table->name == NULL)
        return no_such(c, name, err);
    if (rc == BK_OK)
        rc = bk_table_sql(c, &table->type, err, "SELECT type FROM past." OF_THE_NAME, name);
    if (rc == BK_OK)
        rc = bk_table_sql(c, &table->sql, err, "SELECT sql FROM past." OF_THE_NAME, name);
    if (rc == BK_OK)
        rc = bk_table_number(c, &root, err, "SELECT rootpage FROM past." OF_THE_NAME, name);
    table->is_virtual = root == 0;
    return rc;
}

static bk_rc_t compare(bk_db_connection_t *c, bk_table_t *table, bk_err_t *err)
{
    char *today = NULL, *type = NULL;
    bk_rc_t rc = bk_table_sql(c, &type, err, "SELECT type FROM main." OF_THE_NAME, table->name);
    table->missing = type == NULL;
    if (rc == BK_OK && !table->missing && strcmp(type, "table") != 0)
        rc = bk_err_set(err, BK_CONFLICT, "table %s: today there is a %s of that name", table->name,
                        type);
    sqlite3_free(type);
    if (rc == BK_OK)
        rc = table->is_virtual ? bk_table_sql(c, &table->shape, err, "SELECT %Q", table->sql)
                               : shape_of(c, "past", table->name, &table->shape, err);
    if (rc != BK_OK || table->missing)
        return rc;
    rc = table->is_virtual
             ? bk_table_sql(c, &today, err, "SELECT sql FROM main." OF_THE_NAME, table->name)
             : shape_of(c, "main", table->name, &today, err);
    if (rc == BK_OK && (today == NULL || table->shape == NULL || strcmp(today, table->shape) != 0))
        rc =
            bk_err_set(err, BK_CONFLICT,
                       "table %s is another one today (%s) than it was (%s): ask for its rows with "
                       "a query, or recover the whole database into a directory",
                       table->name, today, table->shape);
    sqlite3_free(today);
    return rc;
}

/* The columns that can be written, the rowid first, each as suffix ends it. */
static bk_rc_t columns_of(bk_db_connection_t *c, const char *table, const char *suffix,
                          char **columns, bk_err_t *err)
{
    const char *rowid;
    *columns = NULL;
    bk_rc_t rc = rowid_of(c, "past", table, &rowid, err);
    return rc != BK_OK
               ? rc
               : bk_table_sql(c, columns, err,
                              "SELECT %Q || group_concat(printf('\"%%w\"', name) || %Q, ', ') FROM "
                              "(SELECT name FROM pragma_table_xinfo(%Q, 'past') WHERE hidden = 0 "
                              "ORDER BY cid)",
                              *rowid == '\0'                  ? ""
                              : strcmp(rowid, "rowid") == 0   ? "rowid, "
                              : strcmp(rowid, "_rowid_") == 0 ? "_rowid_, "
                                                              : "oid, ",
                              suffix, table);
}

bk_rc_t bk_table_open(bk_db_connection_t *c, const char *name, bk_table_t *table, bk_err_t *err)
{
    *table = (bk_table_t){.name = NULL};
    bk_rc_t rc = look_at_past(c, name, table, err);
    if (rc == BK_OK)
        rc = refuse_kind(c, table, err);
    return rc == BK_OK ? compare(c, table, err) : rc;
}

void bk_table_free(bk_table_t *table)
{
    sqlite3_free(table->name);
    sqlite3_free(table->type);
    sqlite3_free(table->shape);
    sqlite3_free(table->sql);
    *table = (bk_table_t){.name = NULL};
}

/* --- its rows --- */

/* A conflict is one, whatever the table says about conflicts.  An index of the past has no say in
 * what its rows were. */
static bk_rc_t copy_rows(bk_db_connection_t *c, const bk_table_t *table, int64_t *rows,
                         bk_err_t *err)
{
    char *columns = NULL;
    int64_t were = 0;
    bk_rc_t rc = columns_of(c, table->name, "", &columns, err);
    if (rc == BK_OK && table->missing)
        rc = bk_table_sql(c, NULL, err, "%s", table->sql);
    if (rc == BK_OK)
        rc = bk_table_sql(c, NULL, err, "DELETE FROM main.\"%w\"", table->name);
    if (rc == BK_OK)
        rc = bk_table_sql(c, NULL, err,
                          "INSERT OR ABORT INTO main.\"%w\"(%s) SELECT %s FROM past.\"%w\" NOT "
                          "INDEXED",
                          table->name, columns, columns, table->name);
    sqlite3_free(columns);
    if (rc == BK_OK) /* not counted in the past, which may be far away while writers wait */
        rc = bk_table_number(c, &were, err, "SELECT changes()");
    if (rc == BK_OK)
        rc = bk_table_number(c, rows, err, "SELECT count(*) FROM main.\"%w\"", table->name);
    if (rc == BK_OK && *rows != were)
        rc = bk_err_set(err, BK_CORRUPT, "table %s: %lld rows were put back of %lld", table->name,
                        (long long)*rows, (long long)were);
    return rc;
}

#define NUMBERED "name = 'sqlite_sequence'"

/* Numbers that were given out are not given out again. */
static bk_rc_t put_back_sequence(bk_db_connection_t *c, const bk_table_t *table, bk_err_t *err)
{
    int64_t both = 0, was = 0, is = 0;
    bk_rc_t rc =
        bk_table_number(c, &both, err,
                        "SELECT (SELECT count(*) FROM past.sqlite_schema WHERE " NUMBERED
                        ") + (SELECT count(*) FROM main.sqlite_schema WHERE " NUMBERED ")");
    if (rc != BK_OK || both < 2)
        return rc;
    rc = bk_table_number(c, &was, err, "SELECT max(seq) FROM past.sqlite_sequence WHERE name = %Q",
                         table->name);
    if (rc == BK_OK)
        rc = bk_table_number(c, &is, err,
                             "SELECT max(seq) FROM main.sqlite_sequence WHERE name = "
                             "%Q COLLATE NOCASE",
                             table->name);
    if (rc != BK_OK || was <= is)
        return rc;
    rc = bk_table_sql(c, NULL, err,
                      "DELETE FROM main.sqlite_sequence WHERE name = %Q COLLATE NOCASE",
                      table->name);
    return rc != BK_OK ? rc
                       : bk_table_sql(c, NULL, err,
                                      "INSERT INTO main.sqlite_sequence(name, seq) SELECT name, "
                                      "%lld FROM main." OF_THE_NAME,
                                      (long long)was, table->name);
}

/* --- virtual tables --- */

static bk_rc_t shadow_at(bk_db_connection_t *c, const char *schema, const char *table, int64_t n,
                         char **name, bk_err_t *err)
{
    return bk_table_sql(c, name, err, "SELECT name " SHADOWS " ORDER BY name LIMIT 1 OFFSET %lld",
                        schema, table, table, table, (long long)n);
}

static bk_rc_t copy_shadow(bk_db_connection_t *c, const char *name, bk_err_t *err)
{
    bk_table_t shadow = {.name = NULL};
    int64_t rows;
    bk_rc_t rc = look_at_past(c, name, &shadow, err);
    if (rc == BK_OK)
        rc = compare(c, &shadow, err);
    if (rc == BK_OK)
        rc = copy_rows(c, &shadow, &rows, err);
    bk_table_free(&shadow);
    return rc;
}

/* One that came later, such as FTS4's statistics, would not be about these rows. */
static bk_rc_t empty_shadow(bk_db_connection_t *c, const char *name, bk_err_t *err)
{
    int64_t was;
    bk_rc_t rc = bk_table_number(c, &was, err, "SELECT count(*) FROM past." OF_THE_NAME, name);
    return rc != BK_OK || was > 0 ? rc
                                  : bk_table_sql(c, NULL, err, "DELETE FROM main.\"%w\"", name);
}

static bk_rc_t each_shadow(bk_db_connection_t *c, const char *schema, const char *table,
                           bk_rc_t (*act)(bk_db_connection_t *, const char *, bk_err_t *),
                           bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (int64_t n = 0; rc == BK_OK; n++) {
        char *name = NULL;
        rc = shadow_at(c, schema, table, n, &name, err);
        if (rc == BK_OK && name == NULL)
            break;
        if (rc == BK_OK)
            rc = act(c, name, err);
        sqlite3_free(name);
    }
    return rc;
}

/* As CREATE VIRTUAL TABLE would make it, but with the shadows that are there already. */
static bk_rc_t declare_virtual(bk_db_connection_t *c, const bk_table_t *table, bk_err_t *err)
{
    bk_rc_t rc = bk_table_sql(c, NULL, err, "PRAGMA writable_schema = ON");
    if (rc == BK_OK)
        rc = bk_table_sql(c, NULL, err,
                          "INSERT INTO main.sqlite_schema(type, name, tbl_name, rootpage, sql) "
                          "VALUES('table', %Q, %Q, 0, %Q)",
                          table->name, table->name, table->sql);
    bk_rc_t reset =
        bk_table_sql(c, NULL, rc == BK_OK ? err : NULL, "PRAGMA writable_schema = RESET");
    return rc != BK_OK ? rc : reset;
}

/* Each module has its own way to say whether the shadows fit together, and to the rows they are
 * an index of. */
static bk_rc_t check_virtual(bk_db_connection_t *c, const bk_table_t *table, bk_err_t *err)
{
    static const struct {
        const char *shadow, *sql;
    } checks[] = {
        {"_idx", "INSERT INTO main.\"%w\"(\"%w\", rank) VALUES('integrity-check', 1)"},
        {"_segdir", "INSERT INTO main.\"%w\"(\"%w\") VALUES('integrity-check')"},
        {"_parent", "SELECT rtreecheck('main', %Q)"},
    };
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        int64_t is = 0;
        char *said = NULL;
        bk_rc_t rc = bk_table_number(c, &is, err,
                                     "SELECT count(*) FROM main.sqlite_schema WHERE type = 'table' "
                                     "AND name = (%Q || %Q) COLLATE NOCASE",
                                     table->name, checks[i].shadow);
        if (rc != BK_OK)
            return rc;
        if (is == 0)
            continue;
        rc = bk_table_sql(c, &said, NULL, checks[i].sql, table->name, table->name);
        bool fits = rc == BK_OK && (said == NULL || strcmp(said, "ok") == 0);
        sqlite3_free(said);
        if (!fits && (rc = bk_ctl_check(c->ctl, err)) != BK_OK)
            return rc;
        if (!fits)
            return bk_err_set(err, BK_CONFLICT,
                              "it does not fit to the rows that it is an index of (nothing is "
                              "changed): recover the table of its content, too");
    }
    return BK_OK;
}

static bk_rc_t copy_virtual(bk_db_connection_t *c, const bk_table_t *table, int64_t *rows,
                            bk_err_t *err)
{
    bk_rc_t rc = each_shadow(c, "past", table->name, copy_shadow, err);
    if (rc == BK_OK && !table->missing)
        rc = each_shadow(c, "main", table->name, empty_shadow, err);
    if (rc == BK_OK && table->missing)
        rc = declare_virtual(c, table, err);
    return rc != BK_OK
               ? rc
               : bk_table_number(c, rows, err, "SELECT count(*) FROM main.\"%w\"", table->name);
}

/* --- the proof --- */

static bk_rc_t prove(bk_db_connection_t *c, const char *name, bk_err_t *err)
{
    static const char title[] = "*** in database past ***\n";
    int64_t pages, page_size = 0;
    char *said = NULL;
    bk_rc_t rc = bk_table_number(c, &pages, err, "PRAGMA past.page_count");
    if (rc == BK_OK)
        rc = bk_table_number(c, &page_size, err, "PRAGMA past.page_size");
    if (rc == BK_OK)
        rc = bk_table_sql(c, &said, err, "PRAGMA past.%s(%Q)",
                          (uint64_t)(pages * page_size) < BK_DB_WHOLE_BYTES ? "integrity_check"
                                                                            : "quick_check",
                          name);
    const char *text = said != NULL ? said : sqlite3_errmsg(c->db);
    /* To SQLite a page that is not read because the job is to stop is one that is damaged. */
    bk_rc_t stop = bk_ctl_check(c->ctl, err);
    if (stop != BK_OK)
        rc = stop;
    else if (rc == BK_CORRUPT || (rc == BK_OK && strcmp(text, "ok") != 0))
        rc = bk_err_set(err, BK_CORRUPT, "SQLite's check of %s says: %s", name,
                        strncmp(text, title, sizeof title - 1) == 0 ? text + sizeof title - 1
                                                                    : text);
    sqlite3_free(said);
    return rc;
}

bk_rc_t bk_table_prove_schema(bk_db_connection_t *c, bk_err_t *err)
{
    int64_t numbered = 0;
    bk_rc_t rc = prove(c, "sqlite_schema", err);
    if (rc == BK_OK)
        rc = bk_table_number(c, &numbered, err,
                             "SELECT count(*) FROM past.sqlite_schema WHERE " NUMBERED);
    return rc == BK_OK && numbered > 0 ? prove(c, "sqlite_sequence", err) : rc;
}

bk_rc_t bk_table_prove(bk_db_connection_t *c, const bk_table_t *table, bk_err_t *err)
{
    return table->is_virtual ? each_shadow(c, "past", table->name, prove, err)
                             : prove(c, table->name, err);
}

/* --- all of it --- */

bk_rc_t bk_table_put_back(bk_db_connection_t *c, const bk_table_t *table, int64_t *rows,
                          bk_err_t *err)
{
    if (table->is_virtual)
        return copy_virtual(c, table, rows, err);
    bk_rc_t rc = copy_rows(c, table, rows, err);
    return rc == BK_OK ? put_back_sequence(c, table, err) : rc;
}

bk_rc_t bk_table_finish(bk_db_connection_t *c, const bk_table_t *table, bk_err_t *err)
{
    bk_rc_t rc = table->is_virtual ? check_virtual(c, table, err) : BK_OK;
    for (int64_t n = 0; rc == BK_OK && table->missing; n++) {
        char *sql = NULL;
        rc = bk_table_sql(
            c, &sql, err,
            "SELECT sql FROM past.sqlite_schema WHERE type IN ('index', 'trigger') AND "
            "tbl_name = %Q AND sql IS NOT NULL ORDER BY type, name LIMIT 1 OFFSET %lld",
            table->name, (long long)n);
        if (rc == BK_OK && sql == NULL)
            break;
        if (rc == BK_OK)
            rc = bk_table_sql(c, NULL, err, "%s", sql);
        sqlite3_free(sql);
    }
    return rc;
}

/* EXCEPT drops equal rows; a rowid or key keeps those of a table apart. */
bk_rc_t bk_table_only_in(bk_db_connection_t *c, const bk_table_t *table, const char *schema,
                         int64_t *rows, bk_err_t *err)
{
    const char *other = strcmp(schema, "main") == 0 ? "past" : "main";
    char *columns = NULL;
    if (table->missing)
        return strcmp(schema, "main") == 0
                   ? (*rows = 0, BK_OK)
                   : bk_table_number(c, rows, err, "SELECT count(*) FROM past.\"%w\"", table->name);
    bk_rc_t rc = columns_of(c, table->name, " COLLATE BINARY", &columns, err);
    if (rc == BK_OK)
        rc = bk_table_number(c, rows, err,
                             "SELECT count(*) FROM (SELECT %s FROM %s.\"%w\" EXCEPT SELECT %s FROM "
                             "%s.\"%w\")",
                             columns, schema, table->name, columns, other, table->name);
    sqlite3_free(columns);
    return rc;
}
