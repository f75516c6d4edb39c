/*
 * t/unit/sqlite/tables_test.c: single tables of a past state in today's database: rows, rowids, numbers, indexes and content of
 * virtual tables as they were, all of them or nothing; a plan that counts what would change.
 */
#include "sqlite/tables.h"

#include "sqlite/connect.h"
#include "unit/sqlite/sqlite_testing.h"

typedef struct {
    char *dir, past[300], live[300], uri[BK_DB_URI];
    sqlite3 *app; /* the application, all the time */
    bk_tables_t how;
    json_t *result;
    bk_ctl_t ctl;
    bk_err_t err;
} world_t;

/* The state of before is the past; then comes what happens. */
static void start(world_t *w, const char *before, const char *then)
{
    char sql[700];
    *w = (world_t){.dir = test_dir()};
    bk_ctl_init(&w->ctl);
    snprintf(w->past, sizeof w->past, "%s/past.db", w->dir);
    snprintf(w->live, sizeof w->live, "%s/live.db", w->dir);
    w->app = open_db(w->live);
    run_sql(w->app, "PRAGMA journal_mode = wal");
    run_sql(w->app, before);
    snprintf(sql, sizeof sql, "VACUUM INTO '%s'", w->past);
    run_sql(w->app, sql);
    if (then != NULL)
        run_sql(w->app, then);
    OK(bk_db_image_uri(w->past, w->uri, sizeof w->uri, &w->err), &w->err);
    w->how = (bk_tables_t){
        .image = w->uri, .target = w->live, .busy_ms = 300, .verify = true, .database = "main"};
}

static void end(world_t *w)
{
    char check[100] = "";
    sqlite3_stmt *statement;
    assert_int_equal(sqlite3_prepare_v2(w->app, "PRAGMA integrity_check", -1, &statement, NULL), 0);
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    snprintf(check, sizeof check, "%s", sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
    assert_string_equal(check, "ok");
    sqlite3_close(w->app);
    json_decref(w->result);
    bk_ctl_free(&w->ctl);
    test_dir_remove(w->dir);
}

/* Names with commas between them. */
static bk_rc_t act(world_t *w, bool plan, const char *names)
{
    char copy[200], *save = NULL;
    json_t *tables = json_array();
    snprintf(copy, sizeof copy, "%s", names);
    for (char *name = strtok_r(copy, ",", &save); name != NULL; name = strtok_r(NULL, ",", &save))
        json_array_append_new(tables, json_string(name));
    json_decref(w->result);
    bk_err_clear(&w->err);
    w->how.tables = tables;
    bk_rc_t rc =
        (plan ? bk_tables_compare : bk_tables_recover)(&w->how, &w->result, &w->ctl, &w->err);
    json_decref(tables);
    assert_true((rc == BK_OK) == (w->result != NULL));
    return rc;
}

/* Every row of a query as one text. */
static char *rows_of(sqlite3 *db, const char *sql)
{
    size_t len = 0;
    char *text = NULL;
    FILE *out = open_memstream(&text, &len);
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) != SQLITE_OK)
        fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    while (sqlite3_step(statement) == SQLITE_ROW) {
        for (int i = 0; i < sqlite3_column_count(statement); i++)
            fprintf(out, "%d:%s|", sqlite3_column_type(statement, i),
                    (const char *)sqlite3_column_text(statement, i));
        fputc('\n', out);
    }
    sqlite3_finalize(statement);
    fclose(out);
    return text;
}

/* What a query answers today is what it answered then. */
static void as_then(world_t *w, const char *sql)
{
    sqlite3 *past = open_db(w->past);
    char *was = rows_of(past, sql), *is = rows_of(w->app, sql);
    sqlite3_close(past);
    assert_string_equal(is, was);
    assert_true(*was != '\0');
    free(was);
    free(is);
}

static int64_t said(world_t *w, size_t table, const char *member)
{
    return json_integer_value(json_object_get(json_array_get(w->result, table), member));
}

/* --- rows --- */

static const struct {
    const char *name, *before, *then, *tables;
    const char *same[5]; /* queries that answer as then */
} cases[] = {
    {"integer key",
     "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b TEXT UNIQUE); INSERT INTO t VALUES(1, 1.0, 'x'), "
     "(5, x'00ff', 'y'), (9, NULL, 'z'), (-3, 'text', '')",
     "DELETE FROM t WHERE id < 6; UPDATE t SET a = 4, b = 'x'; INSERT INTO t VALUES(2, 2, 'y')",
     "t",
     {"SELECT * FROM t ORDER BY id",
      "SELECT id FROM t INDEXED BY sqlite_autoindex_t_1 WHERE b > ''"}},
    {"an index of an expression",
     "CREATE TABLE t(a, b); CREATE INDEX i ON t(a + b, lower(b)) WHERE a > 1; INSERT INTO t "
     "VALUES(1, 'A'), (2, 3), (5, '7')",
     "UPDATE t SET b = 9; DELETE FROM t WHERE a = 2; INSERT INTO t VALUES(8, 'Z')",
     "t",
     {"SELECT a FROM t INDEXED BY i WHERE a + b > 4 AND a > 1 ORDER BY 1",
      "SELECT rowid, a, b FROM t ORDER BY 1"}},
    {"rowids without a key",
     "CREATE TABLE t(a COLLATE NOCASE); INSERT INTO t(rowid, a) VALUES(7, 'A'), (70, 'a'), (700, "
     "'B')",
     "UPDATE t SET a = 'b'; INSERT INTO t VALUES('c')",
     "T",
     {"SELECT rowid, a FROM t"}},
    {"a column named rowid, another oid",
     "CREATE TABLE t(rowid TEXT, oid TEXT); INSERT INTO t(_rowid_, rowid, oid) VALUES(44, 'r', "
     "'o')",
     "DELETE FROM t",
     "t",
     {"SELECT _rowid_, rowid, oid FROM t"}},
    {"every name of the rowid taken",
     "CREATE TABLE t(rowid, oid, _rowid_); INSERT INTO t VALUES(1, 2, 3), (4, 5, 6)",
     "DELETE FROM t WHERE rowid = 1",
     "t",
     {"SELECT * FROM t ORDER BY 1"}},
    {"text key, descending key",
     "CREATE TABLE t(k TEXT PRIMARY KEY, v); INSERT INTO t VALUES('b', 1), ('a', 2);"
     "CREATE TABLE d(id INTEGER PRIMARY KEY DESC, v); INSERT INTO d VALUES(3, 'c'), (1, 'a')",
     "DELETE FROM t; DELETE FROM d WHERE id = 3",
     "t,d",
     {"SELECT rowid, * FROM t", "SELECT rowid, * FROM d"}},
    {"without rowid",
     "CREATE TABLE t(a, b, c, PRIMARY KEY(b, a)) WITHOUT ROWID; INSERT INTO t VALUES(1, 2, 3), "
     "(3, 2, 1)",
     "UPDATE t SET c = 8",
     "t",
     {"SELECT * FROM t"}},
    {"strict, generated columns, names that need quotes",
     "CREATE TABLE \"a \"\"b\"(\"x y\" INTEGER, \"select\" ANY, g INTEGER AS (\"x y\" * 2) STORED, "
     "v INT "
     "AS (\"x y\" + 1)) STRICT; INSERT INTO \"a \"\"b\" VALUES(3, 3.0), (4, 'four')",
     "DELETE FROM \"a \"\"b\"",
     "a \"b",
     {"SELECT rowid, * FROM \"a \"\"b\""}},
    {"autoincrement",
     "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO t VALUES(5, 'a'), "
     "(90, 'b'); DELETE FROM t WHERE id = 90",
     "UPDATE sqlite_sequence SET seq = 50; DELETE FROM t",
     "t",
     {"SELECT * FROM t", "SELECT * FROM sqlite_sequence"}},
    {"triggers do not fire, those of today stay",
     "CREATE TABLE t(a); CREATE TABLE log(x); CREATE TRIGGER g AFTER DELETE ON t BEGIN INSERT INTO "
     "log VALUES(old.a); END; INSERT INTO t VALUES(1), (2); CREATE VIEW v AS SELECT a FROM t",
     "UPDATE t SET a = 3",
     "t",
     {"SELECT * FROM v", "SELECT count(*) FROM log",
      "SELECT * FROM sqlite_schema WHERE name = 'g'"}},
    {"dropped, with its indexes and triggers",
     "CREATE TABLE log(x); CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, a UNIQUE, b); "
     "CREATE "
     "INDEX i ON t(b) WHERE b > 1; CREATE TRIGGER g AFTER INSERT ON t BEGIN INSERT INTO log "
     "VALUES(new.a); END; INSERT INTO t(a, b) VALUES('x', 1), ('y', 2)",
     "DROP TABLE t",
     "t",
     {"SELECT * FROM t", "SELECT * FROM log",
      "SELECT type, name, tbl_name, sql FROM sqlite_schema "
      "ORDER BY name",
      "SELECT * FROM sqlite_sequence", "SELECT a FROM t INDEXED BY i WHERE b > 1"}},
    {"references among the tables that come back",
     "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p ON DELETE CASCADE); "
     "INSERT INTO p VALUES(1), (2); INSERT INTO c VALUES(1), (2), (2)",
     "PRAGMA foreign_keys = ON; DELETE FROM p; INSERT INTO p VALUES(3); INSERT INTO c VALUES(3)",
     "c,p",
     {"SELECT rowid, * FROM p", "SELECT rowid, * FROM c"}},
    {"full text, 5",
     "CREATE VIRTUAL TABLE t USING fts5(a, b, tokenize = 'porter'); INSERT INTO t VALUES('running "
     "dogs', 'x'), ('a dog', 'y'); INSERT INTO t(t) VALUES('optimize')",
     "DELETE FROM t WHERE rowid = 1; INSERT INTO t VALUES('cats', 'z'); UPDATE t SET b = 'q'",
     "t",
     {"SELECT rowid, * FROM t WHERE t MATCH 'dog' ORDER BY rowid", "SELECT rowid, * FROM t"}},
    {"full text, 5, dropped",
     "CREATE VIRTUAL TABLE t USING fts5(a); INSERT INTO t VALUES('one two'), ('two three')",
     "DROP TABLE t",
     "t",
     {"SELECT rowid, * FROM t WHERE t MATCH 'two' ORDER BY rowid", "SELECT rowid, * FROM t",
      "SELECT type, name, sql FROM sqlite_schema ORDER BY name"}},
    {"full text, 5, of another table",
     "CREATE TABLE c(id INTEGER PRIMARY KEY, x); CREATE VIRTUAL TABLE t USING fts5(x, content = "
     "'c', "
     "content_rowid = 'id'); INSERT INTO c VALUES(1, 'red'), (2, 'green'); INSERT INTO t(t) "
     "VALUES('rebuild')",
     "UPDATE c SET x = 'blue'; INSERT INTO t(t) VALUES('rebuild')",
     "t,c",
     {"SELECT rowid, * FROM t WHERE t MATCH 'green'", "SELECT * FROM c"}},
    {"full text, 4",
     "CREATE VIRTUAL TABLE t USING fts4(a, prefix=\"2\"); INSERT INTO t VALUES('one'), ('only')",
     "INSERT INTO t VALUES('on'); DELETE FROM t WHERE rowid = 1",
     "t",
     {"SELECT rowid, * FROM t WHERE t MATCH 'on*' ORDER BY rowid"}},
    {"R*Tree",
     "CREATE VIRTUAL TABLE t USING rtree(id, x0, x1, +name); INSERT INTO t VALUES(1, 0, 1, 'a'), "
     "(2, "
     "5, 6, 'b')",
     "DELETE FROM t WHERE id = 2; WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n "
     "LIMIT 500) INSERT INTO t SELECT i, i, i + 2, 'c' FROM n",
     "t",
     {"SELECT * FROM t WHERE x0 > 4", "SELECT * FROM t"}},
    {"no rows then",
     "CREATE TABLE t(a)",
     "INSERT INTO t VALUES(1)",
     "t",
     {"SELECT count(*) FROM t"}},
};

static void each_kind_of_table_comes_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        world_t w;
        start(&w, cases[i].before, cases[i].then);
        print_message("# %s\n", cases[i].name);
        OK(act(&w, true, cases[i].tables), &w.err);
        assert_true(said(&w, 0, "only_now") + said(&w, 0, "only_then") > 0 ||
                    strcmp(cases[i].name, "autoincrement") == 0);
        OK(act(&w, false, cases[i].tables), &w.err);
        for (size_t n = 0; n < 5 && cases[i].same[n] != NULL; n++)
            as_then(&w, cases[i].same[n]);
        OK(act(&w, true, cases[i].tables), &w.err);
        assert_int_equal(said(&w, 0, "only_now"), 0);
        assert_int_equal(said(&w, 0, "only_then"), 0);
        assert_int_equal(w.ctl.notes_total, 0);
        end(&w);
    }
}

/* FTS3 makes its statistics when somebody asks for them. */
static void what_a_virtual_table_keeps_only_today_is_emptied(void **state)
{
    world_t w;
    (void)state;
    start(&w, "CREATE VIRTUAL TABLE t USING fts3(a); INSERT INTO t VALUES('one')",
          "INSERT INTO t VALUES('two'); INSERT INTO t(t) VALUES('automerge=4')");
    assert_true(query(w.app, "SELECT count(*) FROM t_stat") > 0);
    OK(act(&w, false, "t"), &w.err);
    assert_int_equal(query(w.app, "SELECT count(*) FROM t_stat"), 0);
    as_then(&w, "SELECT rowid, * FROM t WHERE t MATCH 'one'");
    end(&w);
}

/* --- what it says --- */

static void references_that_cannot_be_checked_are_a_warning(void **state)
{
    world_t w;
    (void)state;
    start(&w,
          "CREATE TABLE p(id INTEGER PRIMARY KEY, name); CREATE TABLE c(p REFERENCES p(name)); "
          "INSERT INTO c VALUES('x')",
          "DELETE FROM c");
    OK(act(&w, false, "c"), &w.err);
    as_then(&w, "SELECT * FROM c");
    assert_int_equal(w.ctl.notes_total, 1);
    assert_non_null(strstr(w.ctl.notes[0], "foreign key mismatch"));
    assert_null(strstr(w.ctl.notes[0], "nothing is changed"));
    end(&w);
}

static void a_plan_counts_what_would_change(void **state)
{
    world_t w;
    (void)state;
    start(&w,
          "CREATE TABLE t(id INTEGER PRIMARY KEY, v COLLATE NOCASE); INSERT INTO t VALUES(1, 'a'), "
          "(2, 'b'), (3, 'c'); CREATE TABLE d(x); INSERT INTO d VALUES(1), (1)",
          "UPDATE t SET v = 'A' WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES(4, "
          "'d'), (5, 'e'); DROP TABLE d");
    OK(act(&w, true, "t,d,T"), &w.err);
    assert_int_equal(json_array_size(w.result), 2);
    assert_int_equal(said(&w, 0, "rows_now"), 4);
    assert_int_equal(said(&w, 0, "rows_then"), 3);
    assert_int_equal(said(&w, 0, "only_now"), 3);
    assert_int_equal(said(&w, 0, "only_then"), 2);
    assert_int_equal(said(&w, 1, "rows_now"), 0);
    assert_int_equal(said(&w, 1, "only_then"), 2);
    assert_int_equal(query(w.app, "SELECT count(*) FROM t"), 4);
    OK(act(&w, false, "t,d"), &w.err);
    assert_int_equal(said(&w, 0, "rows"), 3);
    assert_int_equal(said(&w, 1, "rows"), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(w.result, 1), "action")),
                        "created");
    end(&w);
}

/* --- what is refused --- */

static const struct {
    const char *before, *then, *tables;
    bk_rc_t rc;
    const char *says, *untouched;
} refused[] = {
    {"CREATE TABLE t(a); CREATE TABLE u(a); INSERT INTO t VALUES(1)", "DELETE FROM t", "t,x",
     BK_INVALID, "there was no table x; there were t, u", "SELECT 0 = count(*) FROM t"},
    {"CREATE TABLE t(a); CREATE VIEW v AS SELECT a FROM t", "SELECT 1", "v", BK_INVALID,
     "v is a view", "SELECT 1"},
    {"CREATE TABLE t(a INTEGER PRIMARY KEY AUTOINCREMENT)", "SELECT 1", "sqlite_sequence",
     BK_INVALID, "belongs to SQLite", "SELECT 1"},
    {"CREATE VIRTUAL TABLE f USING fts5(a)", "SELECT 1", "f_data", BK_INVALID,
     "part of a virtual table", "SELECT 1"},
    {"CREATE TABLE t(a, b INTEGER); INSERT INTO t VALUES(1, 2)", "ALTER TABLE t ADD COLUMN c TEXT",
     "t", BK_CONFLICT, "is another one today (a, b INTEGER, c TEXT)", "SELECT 1 = count(*) FROM t"},
    {"CREATE TABLE t(a)", "DROP TABLE t; CREATE VIEW t AS SELECT 1 AS a", "t", BK_CONFLICT,
     "today there is a view of that name", "SELECT 1 = a FROM t"},
    {"CREATE TABLE t(a PRIMARY KEY) WITHOUT ROWID", "DROP TABLE t; CREATE TABLE t(a PRIMARY KEY)",
     "t", BK_CONFLICT, "(a key 1, no rowid)", "SELECT 0 = count(*) FROM t"},
    {"CREATE VIRTUAL TABLE f USING fts5(a)",
     "DROP TABLE f; CREATE VIRTUAL TABLE f USING fts5(a, b)", "f", BK_CONFLICT,
     "is another one today", "SELECT 0 = count(*) FROM f"},
    {"CREATE TABLE t(a); INSERT INTO t VALUES(1), (1)",
     "DELETE FROM t; CREATE UNIQUE INDEX i ON t(a); INSERT INTO t VALUES(5)", "t", BK_CONFLICT,
     "UNIQUE constraint failed: t.a", "SELECT 5 = a FROM t"},
    /* a conflict clause of today replaces nothing */
    {"CREATE TABLE t(a); INSERT INTO t VALUES(1), (1)",
     "DROP TABLE t; CREATE TABLE t(a UNIQUE ON CONFLICT REPLACE)", "t", BK_CONFLICT,
     "UNIQUE constraint failed: t.a", "SELECT 0 = count(*) FROM t"},
    {"CREATE TABLE p(id INTEGER PRIMARY KEY); INSERT INTO p VALUES(1); CREATE TABLE c(p REFERENCES "
     "p)",
     "INSERT INTO p VALUES(2); INSERT INTO c VALUES(2), (2)", "p", BK_CONFLICT,
     "2 rows of c would refer to rows of p", "SELECT 2 = count(*) FROM p"},
    {"CREATE TABLE p(id INTEGER PRIMARY KEY); INSERT INTO p VALUES(1); CREATE TABLE c(p REFERENCES "
     "p); "
     "INSERT INTO c VALUES(1)",
     "DELETE FROM c; DELETE FROM p", "c", BK_CONFLICT, "1 rows of c would refer to rows of p",
     "SELECT 0 = count(*) FROM c"},
    {"CREATE TABLE c(id INTEGER PRIMARY KEY, x); CREATE VIRTUAL TABLE t USING fts5(x, content = "
     "'c', "
     "content_rowid = 'id'); INSERT INTO c VALUES(1, 'red'); INSERT INTO t(t) VALUES('rebuild')",
     "UPDATE c SET x = 'blue'; INSERT INTO t(t) VALUES('rebuild')", "t", BK_CONFLICT,
     "recover the table of its content, too", "SELECT 1 = count(*) FROM t WHERE t MATCH 'blue'"},
    {"CREATE TABLE t(a); CREATE INDEX i ON t(a)",
     "DROP TABLE t; CREATE TABLE u(a); CREATE INDEX i ON u(a)", "t", BK_CONFLICT,
     "index i already exists", "SELECT 0 = count(*) FROM sqlite_schema WHERE name = 't'"},
};

static void what_cannot_be_changes_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        world_t w;
        start(&w, refused[i].before, refused[i].then);
        bk_rc_t rc = act(&w, false, refused[i].tables);
        print_message("# %s\n", w.err.text);
        assert_int_equal(rc, refused[i].rc);
        assert_non_null(strstr(w.err.text, refused[i].says));
        assert_int_equal(query(w.app, refused[i].untouched), 1);
        end(&w);
    }
}

/* Rows that referred to nothing before are the application's own affair. */
static void old_orphans_are_no_failure(void **state)
{
    world_t w;
    (void)state;
    start(&w,
          "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(p REFERENCES p); INSERT INTO c "
          "VALUES(8); INSERT INTO p VALUES(1)",
          "DELETE FROM p");
    OK(act(&w, false, "p"), &w.err);
    as_then(&w, "SELECT * FROM p");
    end(&w);
}

static void a_writer_is_waited_for_and_then_left_alone(void **state)
{
    world_t w;
    (void)state;
    start(&w, "CREATE TABLE t(a); INSERT INTO t VALUES(1)", "DELETE FROM t; BEGIN IMMEDIATE");
    assert_int_equal(act(&w, false, "t"), BK_BUSY);
    OK(act(&w, true, "t"), &w.err);
    run_sql(w.app, "ROLLBACK");
    OK(act(&w, false, "t"), &w.err);
    as_then(&w, "SELECT * FROM t");
    end(&w);
}

static void readers_keep_what_they_see(void **state)
{
    world_t w;
    (void)state;
    start(&w, "CREATE TABLE t(a); INSERT INTO t VALUES(1)", "UPDATE t SET a = 2");
    sqlite3 *reader = open_db(w.live);
    run_sql(reader, "BEGIN");
    assert_int_equal(query(reader, "SELECT a FROM t"), 2);
    OK(act(&w, false, "t"), &w.err);
    assert_int_equal(query(reader, "SELECT a FROM t"), 2);
    run_sql(reader, "COMMIT");
    assert_int_equal(query(reader, "SELECT a FROM t"), 1);
    sqlite3_close(reader);
    end(&w);
}

static void a_stop_changes_nothing(void **state)
{
    world_t w;
    (void)state;
    start(&w,
          "CREATE TABLE t(a); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT "
          "20000) INSERT INTO t SELECT i FROM n",
          "DELETE FROM t");
    bk_ctl_stop(&w.ctl, BK_CANCELED);
    assert_int_equal(act(&w, false, "t"), BK_CANCELED);
    assert_int_equal(query(w.app, "SELECT count(*) FROM t"), 0);
    end(&w);
}

/* --- a past that was damaged already --- */

/* In the past's b-tree of that name, where text stands (NULL: at its very beginning). */
static void damage(world_t *w, const char *name, const char *text, const char *other)
{
    char sql[200], page[4096];
    sqlite3 *past = open_db(w->past);
    snprintf(sql, sizeof sql, "SELECT rootpage FROM sqlite_schema WHERE name = '%s'", name);
    off_t at = (query(past, sql) - 1) * (off_t)sizeof page;
    sqlite3_close(past);
    int fd = open(w->past, O_RDWR);
    assert_int_equal(pread(fd, page, sizeof page, at), sizeof page);
    const char *found = text == NULL ? page : memmem(page, sizeof page, text, strlen(text));
    assert_non_null(found);
    assert_int_equal(pwrite(fd, other, strlen(other), at + (found - page)), strlen(other));
    close(fd);
}

static void is_refused(world_t *w, const char *tables, const char *says)
{
    assert_int_equal(act(w, false, tables), BK_CORRUPT);
    print_message("# %s\n", w->err.text);
    assert_non_null(strstr(w->err.text, says));
    assert_non_null(strstr(w->err.text, "nothing is changed"));
}

static void a_damaged_table_is_not_put_back(void **state)
{
    world_t w;
    (void)state;
    start(&w,
          "CREATE TABLE t(a); INSERT INTO t VALUES(1), (2); CREATE TABLE u(a); INSERT INTO u "
          "VALUES(3)",
          "UPDATE t SET a = 8; UPDATE u SET a = 8");
    damage(&w, "t", NULL, "\xff");
    is_refused(&w, "u,t", "table t as it was then: SQLite's check of t says");
    assert_int_equal(query(w.app, "SELECT sum(a) FROM (SELECT a FROM t UNION ALL SELECT a FROM u)"),
                     24);
    w.how.verify = false; /* there is nothing to read */
    assert_int_equal(act(&w, false, "t"), BK_CORRUPT);
    w.how.verify = true;
    OK(act(&w, false, "u"), &w.err); /* which is sound */
    as_then(&w, "SELECT * FROM u");
    end(&w);
}

/* It has another text for row 2, and all that a copy takes: SQLite would read it instead of the
 * wider table. */
static void a_damaged_index_is_refused_and_says_nothing_of_the_rows(void **state)
{
    world_t w;
    (void)state;
    start(&w,
          "CREATE TABLE t(a TEXT, g TEXT AS (a || a) STORED, h TEXT AS (g) STORED); CREATE INDEX i "
          "ON t(a); INSERT INTO t VALUES('a'), ('bbbb'), "
          "('d')",
          "DELETE FROM t");
    damage(&w, "i", "bbbb", "cccc");
    is_refused(&w, "t", "row 2 missing from index i");
    assert_int_equal(query(w.app, "SELECT count(*) FROM t"), 0);
    w.how.verify = false;
    OK(act(&w, false, "t"), &w.err);
    assert_int_equal(w.ctl.notes_total, 1);
    assert_non_null(strstr(w.ctl.notes[0], "what can be read of it comes back"));
    as_then(&w, "SELECT rowid, a FROM t NOT INDEXED");
    assert_int_equal(query(w.app, "SELECT count(*) FROM t WHERE a = 'bbbb'"), 1);
    end(&w);
}

static void what_a_virtual_table_keeps_is_proved(void **state)
{
    world_t w;
    (void)state;
    start(&w, "CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES('one')", "DELETE FROM f");
    damage(&w, "f_docsize", NULL, "\xff");
    is_refused(&w, "f", "table f as it was then: SQLite's check of f_docsize says");
    end(&w);
}

static void what_names_the_tables_is_proved(void **state)
{
    world_t w;
    (void)state;
    start(&w, "CREATE TABLE t(a INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO t VALUES(4)",
          "DELETE FROM t");
    damage(&w, "sqlite_sequence", NULL, "\xff");
    is_refused(&w, "t", "SQLite's check of sqlite_sequence says");
    end(&w);
}

/* --- what the configuration requires --- */

static const struct {
    const char *checks[3];
    const char *says; /* NULL: it holds */
} required[] = {
    {{"SELECT count(*) = 3 FROM t"}, NULL}, /* of the table as it would be */
    {{"SELECT count(*) = 1 FROM u", "SELECT count(*) = 1 FROM f WHERE f MATCH 'one'"}, NULL},
    {{"SELECT 1", "SELECT count(*) = 2 FROM t"},
     "check \"SELECT count(*) = 2 FROM t\" is not true of it"},
    {{"SELECT a FROM t"}, "is not true of it"}, /* rows */
    {{"SELECT 1 FROM t WHERE a = 77"}, "is not true of it"},
    {{"SELECT count(*) FROM gone"}, "because of what is not in this database: gone"},
    {{"SELECT 1 FROM temp.backup_wanted"}, "because of what is not in this database"},
    {{"SELECT count(*) FROM pragma_table_info('t', 'past')"}, "what is not in this database"},
    {{"SELECT count(*) = 1 FROM pragma_quick_check"}, "looks at more than this database"},
    {{"DELETE FROM t RETURNING 1"}, "refused because of DELETE from t"},
    {{"COMMIT"}, "refused because of a transaction"},
    {{"PRAGMA query_only = OFF"}, "refused because of PRAGMA query_only"},
    {{"SELECT 1 FROM nowhere"}, "no such table: nowhere"},
};

static void what_is_required_is_asked_before_anybody_sees_it(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof required / sizeof *required; i++) {
        world_t w;
        start(&w,
              "CREATE TABLE t(a INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO t VALUES(1), (2), "
              "(3); CREATE TABLE gone(a); CREATE TABLE u(a); CREATE VIRTUAL TABLE f USING "
              "fts5(x); INSERT INTO f VALUES('one')",
              "DELETE FROM t; DROP TABLE gone; INSERT INTO u VALUES(1); DELETE FROM f");
        w.how.checks = (char *const *)(uintptr_t)required[i].checks;
        bk_rc_t rc = act(&w, false, "t,f");
        print_message("# %s: %s\n", required[i].checks[0], w.err.text);
        if (required[i].says == NULL) {
            OK(rc, &w.err);
            as_then(&w, "SELECT * FROM t");
        } else {
            assert_int_equal(rc, BK_FAILED);
            assert_non_null(strstr(w.err.text, "nothing is changed: database main: check"));
            assert_non_null(strstr(w.err.text, required[i].says));
            assert_int_equal(query(w.app, "SELECT count(*) FROM t"), 0);
        }
        OK(act(&w, true, "t"), &w.err); /* a plan asks nothing */
        end(&w);
    }
}

static void no_database_needs_a_whole_recovery(void **state)
{
    world_t w;
    (void)state;
    start(&w, "CREATE TABLE t(a)", NULL);
    w.how.target = "/nowhere/x.db";
    assert_int_equal(act(&w, false, "t"), BK_NOT_FOUND);
    assert_non_null(strstr(w.err.text, "recover the whole database"));
    w.how.target = w.live;
    end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_kind_of_table_comes_back),
        cmocka_unit_test(references_that_cannot_be_checked_are_a_warning),
        cmocka_unit_test(what_a_virtual_table_keeps_only_today_is_emptied),
        cmocka_unit_test(a_plan_counts_what_would_change),
        cmocka_unit_test(what_cannot_be_changes_nothing),
        cmocka_unit_test(old_orphans_are_no_failure),
        cmocka_unit_test(a_writer_is_waited_for_and_then_left_alone),
        cmocka_unit_test(readers_keep_what_they_see),
        cmocka_unit_test(a_stop_changes_nothing),
        cmocka_unit_test(a_damaged_table_is_not_put_back),
        cmocka_unit_test(a_damaged_index_is_refused_and_says_nothing_of_the_rows),
        cmocka_unit_test(what_a_virtual_table_keeps_is_proved),
        cmocka_unit_test(what_names_the_tables_is_proved),
        cmocka_unit_test(what_is_required_is_asked_before_anybody_sees_it),
        cmocka_unit_test(no_database_needs_a_whole_recovery),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
