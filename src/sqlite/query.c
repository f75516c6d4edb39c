/*
 * sqlite/query.c: SQL of a stranger on an image (query.h).  Touches only a connection of its own,
 * or for a while the one that it is given.
 *
 * What keeps it harmless, from the outside in: the connection is read only and of an immutable
 * file, or is kept from writing meanwhile, and from what is attached to it; the authorizer lets
 * statements only read; the limits bound SQL, values and expressions; the progress handler bounds
 * time, and with it recursion; rows and bytes are counted as they come.  Sorting and materialising
 * spill from a small cache into unlinked temporary files, so memory does not grow with them; values
 * on the way are bounded by how much more SQLite takes than when it began.  There is no heap limit,
 * which would be one for all of nginx.
 */
#include "sqlite/query.h"

#include <inttypes.h>
#include <math.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "sqlite/connect.h"

#define EXACT_INTEGER 9007199254740991 /* 2^53 - 1: up to here every reader of JSON is exact */
#define CELL_BYTES    32               /* what a value costs besides its bytes */
#define LOOK_EVERY    100              /* virtual machine instructions */
#define MEMORY        (128 << 20)      /* for values on the way */
#define COLUMNS       500              /* of the answer */
#define WHY_ROOM      256

static const struct {
    int id, on;
} options[] = {
    {SQLITE_DBCONFIG_DEFENSIVE, 1},       {SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0},
    {SQLITE_DBCONFIG_ENABLE_TRIGGER, 0},  {SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0},
    {SQLITE_DBCONFIG_WRITABLE_SCHEMA, 0}, {SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, 0},
};
static const struct {
    int id, value;
} limits[] = {
    {SQLITE_LIMIT_SQL_LENGTH, BK_QUERY_SQL},
    {SQLITE_LIMIT_EXPR_DEPTH, 200},
    {SQLITE_LIMIT_COMPOUND_SELECT, 100},
    {SQLITE_LIMIT_VDBE_OP, 1000000},
    {SQLITE_LIMIT_ATTACHED, 0},
    {SQLITE_LIMIT_COLUMN, COLUMNS},
    {SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000},
    {SQLITE_LIMIT_WORKER_THREADS, 0},
};
#define OPTIONS (sizeof options / sizeof *options)
#define LIMITS  (sizeof limits / sizeof *limits)

typedef struct {
    bk_db_select_t how;
    /* Of a connection that was given: as it was, and names of tables that are in no main. */
    int options[OPTIONS], limits[LIMITS], length;
    json_t *elsewhere;
    sqlite3 *db;
    bk_ctl_t *ctl;
    int64_t began, deadline;
    char forbidden[WHY_ROOM]; /* what the authorizer refused, "" when nothing */
    uint64_t rows, bytes;
    int64_t memory; /* that SQLite had when it began, in all of the process */
    bool swollen;
    uint64_t value; /* bytes of one at most */
} select_t;

/* --- what is allowed --- */

static bool listed(const char *name, const char *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (sqlite3_stricmp(name, list[i]) == 0)
            return true;
    return false;
}

#define LISTED(name, list) listed(name, list, sizeof(list) / sizeof *(list))

/* Pragmas that read; the second ones would set something when they are given a value. */
static const char *const pragmas[] = {
    "collation_list", "compile_options", "foreign_key_check", "foreign_key_list", "function_list",
    "index_info",     "index_list",      "index_xinfo",       "integrity_check",  "module_list",
    "quick_check",    "table_info",      "table_list",        "table_xinfo",
};
static const char *const plain_pragmas[] = {
    "application_id", "auto_vacuum", "data_version",   "encoding",     "freelist_count",
    "page_count",     "page_size",   "schema_version", "user_version",
};

static bool harmless_pragma(const char *name, const char *value)
{
    return LISTED(name, pragmas) || (value == NULL && LISTED(name, plain_pragmas));
}

/* Which look at every database of the connection when none is named. */
static bool is_check(const char *pragma)
{
    static const char *const names[] = {"integrity_check", "quick_check"};
    return LISTED(pragma, names);
}

/* The library's functions that do more than compute; those of the sqlite3 shell are named in case
 * somebody's library has them. */
static bool harmful_function(const char *name)
{
    static const char *const names[] = {
        "load_extension", "fts3_tokenizer", "sqlite_log", "readfile", "writefile",
        "edit",           "eval",           "fsdir",      "lsmode",
    };
    return LISTED(name, names);
}

static int refuse(select_t *s, const char *what, const char *name)
{
    if (s->forbidden[0] == '\0')
        bk_fmt(s->forbidden, sizeof s->forbidden, "%s%s%s", what, name != NULL ? " " : "",
               name != NULL ? name : "");
    return SQLITE_DENY;
}

/*
 * Of a table whose rows are only counted SQLite does not say where it is, unless the SQL does; a
 * name that main has not would be looked for in what is attached.
 */
static bool is_elsewhere(const select_t *s, const char *table, const char *database)
{
    size_t i;
    const json_t *name;
    if (database != NULL)
        return sqlite3_stricmp(database, "main") != 0;
    json_array_foreach(s->elsewhere, i, name)
    {
        if (sqlite3_stricmp(table, json_string_value(name)) == 0)
            return true;
    }
    return false;
}

static int authorize(void *arg, int action, const char *one, const char *two, const char *database,
                     const char *trigger)
{
    select_t *s = arg;
    (void)trigger;
    if (s->how.db != NULL && (database != NULL || action == SQLITE_READ) &&
        is_elsewhere(s, one, database))
        return refuse(s, "what is not in this database:", one);
    switch (action) {
    case SQLITE_SELECT:
    case SQLITE_READ:
    case SQLITE_RECURSIVE:
        return SQLITE_OK;
    case SQLITE_FUNCTION:
        return harmful_function(two) ? refuse(s, "function", two) : SQLITE_OK;
    case SQLITE_PRAGMA:
        if (s->how.db != NULL && database == NULL && is_check(one))
            return refuse(s, "what looks at more than this database:", one);
        return harmless_pragma(one, two) ? SQLITE_OK : refuse(s, "PRAGMA", one);
    case SQLITE_ATTACH:
        return refuse(s, "ATTACH", NULL);
    case SQLITE_DETACH:
        return refuse(s, "DETACH", NULL);
    case SQLITE_TRANSACTION:
    case SQLITE_SAVEPOINT:
        return refuse(s, "a transaction", NULL);
    case SQLITE_INSERT:
        return refuse(s, "INSERT into", one);
    case SQLITE_UPDATE:
        return refuse(s, "UPDATE of", one);
    case SQLITE_DELETE:
        return refuse(s, "DELETE from", one);
    default:
        return refuse(s, "a change of the schema", NULL);
    }
}

static int look(void *arg)
{
    select_t *s = arg;
    s->swollen = s->swollen || sqlite3_memory_used() - s->memory > MEMORY;
    return s->swollen || bk_mono() >= s->deadline || bk_ctl_check(s->ctl, NULL) != BK_OK;
}

/* --- failures --- */

static bk_rc_t bad_sql(select_t *s, bk_err_t *err)
{
    const char *text = sqlite3_errmsg(s->db);
#if SQLITE_VERSION_NUMBER >= 3038000
    int at = sqlite3_error_offset(s->db);
    if (at >= 0)
        return bk_err_set(err, BK_INVALID, "the query fails at byte %d: %s", at, text);
#endif
    return bk_err_set(err, BK_INVALID, "the query fails: %s", text);
}

static bk_rc_t failed(select_t *s, int code, bk_err_t *err)
{
    if (s->forbidden[0] != '\0')
        return bk_err_set(err, BK_FORBIDDEN,
                          "the query is refused because of %s: a query only reads the state it is "
                          "asked about",
                          s->forbidden);
    switch (code & 0xff) {
    case SQLITE_INTERRUPT: {
        if (s->swollen)
            return bk_err_set(err, BK_TOO_LARGE,
                              "the query takes more than %d MiB of memory: ask for fewer or "
                              "shorter values at a time",
                              MEMORY >> 20);
        bk_rc_t rc = bk_ctl_check(s->ctl, err);
        return rc != BK_OK ? rc
                           : bk_err_set(err, BK_TIMEOUT,
                                        "the query was stopped after %" PRIu64
                                        " ms: ask for less, or for what an index answers",
                                        s->how.max_ms);
    }
    case SQLITE_TOOBIG:
        return bk_err_set(err, BK_TOO_LARGE,
                          "the query has a value of more than %" PRIu64
                          " bytes, or is longer than %d bytes itself",
                          s->value, BK_QUERY_SQL);
    case SQLITE_ERROR:
    case SQLITE_AUTH:
    case SQLITE_MISMATCH:
    case SQLITE_RANGE:
        return bad_sql(s, err);
    default:
        return bk_db_error(s->db, code, "of the backup", "query", err);
    }
}

/* --- the connection --- */

static void set_limits(select_t *s)
{
    for (size_t i = 0; i < LIMITS; i++)
        s->limits[i] = sqlite3_limit(s->db, limits[i].id, limits[i].value);
    s->length = sqlite3_limit(s->db, SQLITE_LIMIT_LENGTH, (int)s->how.max_bytes);
}

static void set_options(select_t *s)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        sqlite3_db_config(s->db, options[i].id, -1, &s->options[i]);
        sqlite3_db_config(s->db, options[i].id, options[i].on, NULL);
    }
}

static void connect_table(select_t *s, const char *format, const char *name)
{
    sqlite3_stmt *table = NULL;
    char *sql = sqlite3_mprintf(format, name);
    if (sql != NULL && sqlite3_prepare_v2(s->db, sql, -1, &table, NULL) == SQLITE_OK)
        sqlite3_finalize(table);
    sqlite3_free(sql);
}

/*
 * To connect a virtual table asks for more than to read: its columns are declared, R*Tree prepares
 * its INSERTs.  So all are connected before the authorizer is there.  A table of an unknown module
 * stays away; the query that names it fails.
 */
static void connect_virtual_tables(select_t *s)
{
    static const char *const lists[] = {
        "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND rootpage = 0",
        "PRAGMA module_list", /* those that are tables of their own: json_each */
    };
    for (size_t i = 0; i < 2; i++) {
        sqlite3_stmt *tables = NULL;
        int code = sqlite3_prepare_v2(s->db, lists[i], -1, &tables, NULL);
        while (code == SQLITE_OK && sqlite3_step(tables) == SQLITE_ROW)
            connect_table(s, "SELECT 1 FROM \"%w\"", (const char *)sqlite3_column_text(tables, 0));
        sqlite3_finalize(tables);
    }
    for (size_t i = 0; i < sizeof pragmas / sizeof *pragmas; i++)
        connect_table(s, "SELECT 1 FROM \"pragma_%w\"", pragmas[i]);
}

static bk_rc_t open_image(select_t *s, bk_err_t *err)
{
    bk_rc_t rc = bk_db_open_uri(s->how.image, &s->db, err);
    if (rc != BK_OK)
        return rc;
    sqlite3_extended_result_codes(s->db, 1);
    int code = sqlite3_exec(s->db,
                            "PRAGMA query_only=ON; PRAGMA mmap_size=0; PRAGMA cache_size=-8192;"
                            "PRAGMA temp_store=FILE; PRAGMA cell_size_check=ON",
                            NULL, NULL, NULL);
    if (code == SQLITE_OK && sqlite3_db_readonly(s->db, "main") != 1)
        return bk_err_set(err, BK_FORBIDDEN, "the image %s can be written to: it is not queried",
                          s->how.image);
    return code == SQLITE_OK ? BK_OK : failed(s, code, err);
}

/* A row of one column: append it. */
static int add_text(void *arg, int columns, char **values, char **names)
{
    (void)columns, (void)names;
    return json_array_append_new(arg, bk_json_name(values[0], strlen(values[0]))) != 0;
}

static int list_elsewhere(select_t *s)
{
    size_t i;
    const json_t *schema;
    json_t *schemas = json_array();
    int code = sqlite3_exec(s->how.db, "SELECT name FROM pragma_database_list WHERE name <> 'main'",
                            add_text, schemas, NULL);
    s->elsewhere = json_array();
    json_array_foreach(schemas, i, schema)
    {
        char *sql =
            sqlite3_mprintf("SELECT name FROM \"%w\".sqlite_schema WHERE lower(name) NOT IN "
                            "(SELECT lower(name) FROM main.sqlite_schema)",
                            json_string_value(schema));
        if (code == SQLITE_OK)
            code = sql != NULL ? sqlite3_exec(s->how.db, sql, add_text, s->elsewhere, NULL)
                               : SQLITE_NOMEM;
        sqlite3_free(sql);
    }
    json_decref(schemas);
    return code;
}

static bk_rc_t take_connection(select_t *s, bk_err_t *err)
{
    int code = list_elsewhere(s);
    if (code == SQLITE_OK)
        code = sqlite3_exec(s->how.db, "PRAGMA query_only=ON", NULL, NULL, NULL);
    if (code != SQLITE_OK)
        return bk_db_error(s->how.db, code, "as it would be", "query", err);
    s->db = s->how.db;
    return BK_OK;
}

static bk_rc_t begin(select_t *s, bk_err_t *err)
{
    bk_rc_t rc = s->how.db != NULL ? take_connection(s, err) : open_image(s, err);
    if (rc != BK_OK)
        return rc;
    set_options(s);
    int code = sqlite3_exec(s->db, "SELECT 1 FROM main.sqlite_schema", NULL, NULL, NULL);
    if (code != SQLITE_OK)
        rc = failed(s, code, err);
    sqlite3_progress_handler(s->db, LOOK_EVERY, look, s);
    connect_virtual_tables(s);
    set_limits(s);
    sqlite3_set_authorizer(s->db, authorize, s);
    return rc;
}

static void give_back(select_t *s)
{
    sqlite3_set_authorizer(s->db, NULL, NULL);
    sqlite3_progress_handler(s->db, 0, NULL, NULL);
    for (size_t i = 0; i < LIMITS; i++)
        sqlite3_limit(s->db, limits[i].id, s->limits[i]);
    sqlite3_limit(s->db, SQLITE_LIMIT_LENGTH, s->length);
    for (size_t i = 0; i < OPTIONS; i++)
        sqlite3_db_config(s->db, options[i].id, s->options[i], NULL);
    sqlite3_exec(s->db, "PRAGMA query_only=OFF", NULL, NULL, NULL);
}

static void end(select_t *s)
{
    if (s->how.db == NULL)
        sqlite3_close_v2(s->db);
    else if (s->db != NULL)
        give_back(s);
    json_decref(s->elsewhere);
}

/* --- the answer --- */

static json_t *hex_value(const char *member, const void *bytes, size_t len)
{
    char *text = malloc(2 * len + 1);
    if (text == NULL)
        return NULL;
    bk_hex(text, bytes, len);
    json_t *value = json_pack("{s:s}", member, text);
    free(text);
    return value;
}

static json_t *cell(sqlite3_stmt *statement, int column)
{
    char text[32];
    switch (sqlite3_column_type(statement, column)) {
    case SQLITE_INTEGER: {
        sqlite3_int64 value = sqlite3_column_int64(statement, column);
        if (value >= -EXACT_INTEGER && value <= EXACT_INTEGER)
            return json_integer(value);
        bk_fmt(text, sizeof text, "%lld", value);
        return json_pack("{s:s}", "integer", text);
    }
    case SQLITE_FLOAT: {
        double value = sqlite3_column_double(statement, column);
        if (isfinite(value))
            return json_real(value);
        return json_pack("{s:s}", "real", value > 0 ? "Infinity" : "-Infinity");
    }
    case SQLITE_TEXT: {
        const char *bytes = (const char *)sqlite3_column_text(statement, column);
        size_t len = (size_t)sqlite3_column_bytes(statement, column);
        json_t *value = bytes != NULL ? json_stringn(bytes, len) : NULL;
        return value != NULL || bytes == NULL ? value : hex_value("text_hex", bytes, len);
    }
    case SQLITE_BLOB: {
        const void *bytes = sqlite3_column_blob(statement, column);
        size_t len = (size_t)sqlite3_column_bytes(statement, column);
        return hex_value("blob_hex", bytes != NULL ? bytes : "", len);
    }
    default:
        return json_null();
    }
}

static json_t *text_or_null(const char *text)
{
    return text != NULL ? bk_json_name(text, strlen(text)) : json_null();
}

static json_t *columns(sqlite3_stmt *statement)
{
    json_t *list = json_array();
    for (int i = 0; i < sqlite3_column_count(statement); i++) {
        json_t *column =
            json_pack("{s:o, s:o}", "name", text_or_null(sqlite3_column_name(statement, i)), "type",
                      text_or_null(sqlite3_column_decltype(statement, i)));
        json_array_append_new(list, column);
    }
    return list;
}

/* What a value adds to the answer, told before it is made. */
static uint64_t weight(sqlite3_stmt *statement, int column)
{
    switch (sqlite3_column_type(statement, column)) {
    case SQLITE_TEXT:
        (void)sqlite3_column_text(statement, column); /* as UTF-8 */
        return CELL_BYTES + (uint64_t)sqlite3_column_bytes(statement, column);
    case SQLITE_BLOB:
        return CELL_BYTES + 2 * (uint64_t)sqlite3_column_bytes(statement, column);
    default:
        return CELL_BYTES;
    }
}

/* NULL: no memory, or the answer is full. */
static json_t *row(select_t *s, sqlite3_stmt *statement)
{
    json_t *list = json_array();
    for (int i = 0; i < sqlite3_column_count(statement); i++) {
        s->bytes += weight(statement, i);
        if (s->bytes > s->how.max_bytes || json_array_append_new(list, cell(statement, i)) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

/* *cut: which limit ended the rows, NULL when they ended themselves. */
static bk_rc_t read_rows(select_t *s, sqlite3_stmt *statement, json_t *rows, const char **cut,
                         bk_err_t *err)
{
    int code;
    *cut = NULL;
    while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
        if (s->rows == s->how.max_rows) {
            *cut = "rows";
            return BK_OK;
        }
        json_t *list = row(s, statement);
        if (s->bytes > s->how.max_bytes) {
            *cut = "bytes";
            return BK_OK;
        }
        if (json_array_append_new(rows, list) != 0)
            return bk_err_set(err, BK_NO_MEMORY, "answer a query: out of memory");
        s->rows++;
    }
    return code == SQLITE_DONE ? BK_OK : failed(s, code, err);
}

static bk_rc_t run(select_t *s, sqlite3_stmt *statement, json_t **result, bk_err_t *err)
{
    const char *cut;
    json_t *rows = json_array();
    bk_rc_t rc = read_rows(s, statement, rows, &cut, err);
    if (rc != BK_OK) {
        json_decref(rows);
        return rc;
    }
    *result = json_pack("{s:o, s:o, s:I, s:o, s:f}", "columns", columns(statement), "rows", rows,
                        "row_count", (json_int_t)s->rows, "truncated",
                        cut != NULL ? json_string(cut) : json_false(), "elapsed",
                        (double)(bk_mono() - s->began) / 1e9);
    return *result != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "answer a query: out of memory");
}

/* Exactly one statement, which only reads and gives rows. */
static bk_rc_t prepare(select_t *s, sqlite3_stmt **statement, bk_err_t *err)
{
    const char *tail = NULL;
    sqlite3_stmt *second = NULL;
    int code = sqlite3_prepare_v2(s->db, s->how.sql, -1, statement, &tail);
    if (code != SQLITE_OK)
        return failed(s, code, err);
    if (*statement == NULL)
        return bk_err_set(err, BK_INVALID, "the query is empty");
    code = sqlite3_prepare_v2(s->db, tail, -1, &second, NULL);
    sqlite3_finalize(second);
    if (code != SQLITE_OK || second != NULL)
        return bk_err_set(err, BK_INVALID,
                          "the query goes on after its first statement, at byte %zu: ask one thing "
                          "at a time",
                          (size_t)(tail - s->how.sql));
    if (!sqlite3_stmt_readonly(*statement) || sqlite3_column_count(*statement) == 0)
        return bk_err_set(err, BK_FORBIDDEN, "the query is refused: it does not only read rows");
    if (sqlite3_bind_parameter_count(*statement) > 0)
        return bk_err_set(err, BK_INVALID, "the query has parameters: write the values into it");
    return BK_OK;
}

/*
 * Between two looks there may be as many values as the SQL has columns, arguments and operators:
 * the more of them, the shorter each may be.
 */
static void limit_values(select_t *s, sqlite3_stmt *statement)
{
    uint64_t count = (uint64_t)sqlite3_column_count(statement);
    for (const char *c = s->how.sql; *c != '\0'; c++)
        count += *c == ',' || *c == '(' || *c == '|';
    s->value = MEMORY / (count + 1);
    if (s->value > s->how.max_bytes)
        s->value = s->how.max_bytes;
    sqlite3_limit(s->db, SQLITE_LIMIT_LENGTH, (int)s->value);
}

static uint64_t bounded(uint64_t wanted, uint64_t usual, uint64_t most)
{
    uint64_t value = wanted == 0 ? usual : wanted;
    return value < most ? value : most;
}

bk_rc_t bk_db_select(const bk_db_select_t *how, json_t **result, bk_ctl_t *ctl, bk_err_t *err)
{
    select_t s = {.how = *how, .ctl = ctl, .began = bk_mono()};
    sqlite3_stmt *statement = NULL;
    *result = NULL;
    s.how.max_rows = bounded(how->max_rows, BK_QUERY_ROWS, 1000000);
    s.how.max_bytes = bounded(how->max_bytes, BK_QUERY_BYTES, 64u << 20);
    s.how.max_ms = bounded(how->max_ms, BK_QUERY_MS, 3600000);
    s.deadline = s.began + (int64_t)s.how.max_ms * BK_MS;
    s.value = s.how.max_bytes;
    s.memory = sqlite3_memory_used();
    bk_rc_t rc = begin(&s, err);
    if (rc == BK_OK)
        rc = prepare(&s, &statement, err);
    if (rc == BK_OK)
        limit_values(&s, statement);
    if (rc == BK_OK)
        rc = run(&s, statement, result, err);
    sqlite3_finalize(statement);
    end(&s);
    return rc;
}
