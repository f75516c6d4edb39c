/*
 * t/unit/sqlite/query_test.c: SQL on an image reads, and does nothing else, however it is put.
 */
#include "base/buf.h"
#include "sqlite/query.h"

#include "sqlite/connect.h"
#include "unit/sqlite/sqlite_testing.h"

typedef struct {
    char *dir, file[300], uri[BK_DB_URI];
    bk_db_select_t how;
    bk_ctl_t ctl;
    bk_err_t err;
    json_t *result;
} world_t;

static void start(world_t *w)
{
    *w = (world_t){.dir = test_dir()};
    bk_ctl_init(&w->ctl);
    snprintf(w->file, sizeof w->file, "%s/a ?#%%b.db", w->dir);
    sqlite3 *db = open_db(w->file);
    run_sql(db, "PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, v VARCHAR(9));"
                "INSERT INTO t(v) VALUES('one'), ('two'), ('three');"
                "CREATE VIEW w AS SELECT v FROM t;"
                "CREATE TRIGGER g INSTEAD OF INSERT ON w BEGIN DELETE FROM t; END;"
                "CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES('hello world');"
                "CREATE VIRTUAL TABLE f4 USING fts4(x); INSERT INTO f4 VALUES('hello sea');"
                "CREATE VIRTUAL TABLE r USING rtree(id, a, b); INSERT INTO r VALUES(1, 2, 3)");
    sqlite3_close(db);
    OK(bk_db_image_uri(w->file, w->uri, sizeof w->uri, &w->err), &w->err);
    w->how = (bk_db_select_t){.image = w->uri};
}

static void end(world_t *w)
{
    json_decref(w->result);
    bk_ctl_free(&w->ctl);
    test_dir_remove(w->dir);
}

static bk_rc_t ask(world_t *w, const char *sql)
{
    json_decref(w->result);
    w->result = NULL;
    bk_err_clear(&w->err);
    w->how.sql = sql;
    bk_rc_t rc = bk_db_select(&w->how, &w->result, &w->ctl, &w->err);
    assert_true((rc == BK_OK) == (w->result != NULL));
    return rc;
}

static void rows_are(world_t *w, const char *sql, const char *expected)
{
    OK(ask(w, sql), &w->err);
    char *text = json_dumps(json_object_get(w->result, "rows"), JSON_COMPACT);
    assert_string_equal(text, expected);
    free(text);
}

static void answers_are_rows_of_json(void **state)
{
    world_t w;
    (void)state;
    start(&w);
    rows_are(&w, "SELECT id, v FROM t ORDER BY id -- and no more;",
             "[[1,\"one\"],[2,\"two\"],[3,\"three\"]]");
    json_t *first = json_array_get(json_object_get(w.result, "columns"), 1);
    assert_string_equal(json_string_value(json_object_get(first, "name")), "v");
    assert_string_equal(json_string_value(json_object_get(first, "type")), "VARCHAR(9)");
    assert_true(json_is_false(json_object_get(w.result, "truncated")));
    assert_int_equal(json_integer_value(json_object_get(w.result, "row_count")), 3);
    rows_are(&w, "WITH q(n) AS (VALUES(1) UNION ALL SELECT n+1 FROM q WHERE n<3) SELECT * FROM q; ",
             "[[1],[2],[3]]");
    rows_are(&w, "VALUES(9007199254740991, 9007199254740992, 1e999, -1e999, NULL)",
             "[[9007199254740991,{\"integer\":\"9007199254740992\"},{\"real\":\"Infinity\"},{"
             "\"real\":\"-Infinity\"},null]]");
    rows_are(
        &w, "SELECT x'00ff', x'', CAST(x'ff41' AS TEXT), 'a'||char(0)||'b'",
        "[[{\"blob_hex\":\"00ff\"},{\"blob_hex\":\"\"},{\"text_hex\":\"ff41\"},\"a\\u0000b\"]]");
    rows_are(&w, "SELECT x FROM f WHERE f MATCH 'world'", "[[\"hello world\"]]");
    rows_are(&w, "SELECT x FROM f4 WHERE f4 MATCH 'sea'", "[[\"hello sea\"]]");
    rows_are(&w, "SELECT id FROM r WHERE a>=2 AND b<=3", "[[1]]");
    rows_are(&w, "SELECT name FROM pragma_table_info('t')", "[[\"id\"],[\"v\"]]");
    rows_are(&w, "SELECT name FROM sqlite_schema WHERE name='t'", "[[\"t\"]]");
    rows_are(&w, "SELECT * FROM w WHERE v='two'", "[[\"two\"]]");
    OK(ask(&w, "EXPLAIN QUERY PLAN SELECT * FROM t"), &w.err);
    assert_false(exists(w.file, "-wal"));
    assert_false(exists(w.file, "-shm"));
    end(&w);
}

static void what_does_more_than_read_is_refused(void **state)
{
    static const char *const attacks[] = {
        "INSERT INTO t(v) VALUES(1)",
        "INSERT INTO w VALUES(1)",
        "UPDATE t SET v=1",
        "DELETE FROM t",
        "REPLACE INTO t VALUES(1, 2) RETURNING id",
        "WITH q AS (SELECT 1) DELETE FROM t",
        "EXPLAIN DELETE FROM t",
        "CREATE TABLE x(y)",
        "CREATE TEMP TABLE x AS SELECT 1",
        "CREATE VIRTUAL TABLE temp.x USING fts5(y)",
        "DROP TABLE t",
        "ALTER TABLE t RENAME TO u",
        "REINDEX",
        "ANALYZE",
        "VACUUM",
        "VACUUM INTO '/tmp/ngx-backup-query-attack'",
        "ATTACH '/etc/passwd' AS p",
        "ATTACH ':memory:' AS p",
        "DETACH main",
        "BEGIN",
        "COMMIT",
        "SAVEPOINT s",
        "PRAGMA writable_schema=1",
        "PRAGMA query_only=0",
        "PRAGMA journal_mode=delete",
        "PRAGMA database_list",
        "PRAGMA user_version=7",
        "PRAGMA temp_store_directory='/'",
        "PRAGMA hard_heap_limit=1",
        "PRAGMA wal_checkpoint",
        "PRAGMA cache_size=100000000",
        "PRAGMA mmap_size=1000000000",
        "PRAGMA trusted_schema=1",
        "SELECT * FROM pragma_database_list",
        "SELECT load_extension('x')",
        "SELECT fts3_tokenizer('simple')",
        "SELECT fts3_tokenizer('simple', x'00')",
        "SELECT sqlite_log(1, 'x')",
        "SELECT v FROM t WHERE load_extension(v)",
        "INSERT INTO f(f) VALUES('optimize')",
        "UPDATE sqlite_schema SET sql=''",
        "DELETE FROM f_data",
    };
    world_t w;
    (void)state;
    start(&w);
    for (size_t i = 0; i < sizeof attacks / sizeof *attacks; i++) {
        bk_rc_t rc = ask(&w, attacks[i]);
        if (rc == BK_OK || (rc != BK_FORBIDDEN && rc != BK_INVALID))
            fail_msg("%s: %d %s", attacks[i], rc, w.err.text);
    }
    assert_int_equal(ask(&w, "SELECT load_extension('x')"), BK_FORBIDDEN);
    assert_non_null(strstr(w.err.text, "load_extension"));
    assert_int_equal(ask(&w, "DELETE FROM t"), BK_FORBIDDEN);
    rows_are(&w, "SELECT count(*) FROM t", "[[3]]");
    w.how.image = w.file; /* no longer read only by its URI, but still by the connection */
    assert_int_equal(ask(&w, "DELETE FROM t"), BK_FORBIDDEN);
    end(&w);
}

static void mistakes_are_told_with_their_place(void **state)
{
    world_t w;
    (void)state;
    start(&w);
    assert_int_equal(ask(&w, "SELECT nothing FROM t"), BK_INVALID);
    assert_non_null(strstr(w.err.text, "byte 7"));
    assert_int_equal(ask(&w, "SELEC"), BK_INVALID);
    assert_int_equal(ask(&w, ""), BK_INVALID);
    assert_int_equal(ask(&w, "-- only a comment"), BK_INVALID);
    assert_int_equal(ask(&w, "SELECT 1; SELECT 2"), BK_INVALID);
    assert_int_equal(ask(&w, "SELECT 1; nonsense"), BK_INVALID);
    assert_int_equal(ask(&w, "SELECT ?1"), BK_INVALID);
    spoil(w.file, 0, "no database any more");
    assert_int_equal(ask(&w, "SELECT 1"), BK_CORRUPT);
    end(&w);
}

static void everything_is_bounded(void **state)
{
    world_t w;
    (void)state;
    start(&w);
    w.how.max_rows = 2;
    rows_are(&w, "SELECT id FROM t ORDER BY 1", "[[1],[2]]");
    assert_string_equal(json_string_value(json_object_get(w.result, "truncated")), "rows");
    w.how.max_rows = 3;
    rows_are(&w, "SELECT id FROM t ORDER BY 1", "[[1],[2],[3]]");
    assert_true(json_is_false(json_object_get(w.result, "truncated")));
    w.how.max_bytes = 5000;
    rows_are(&w, "VALUES(1), (hex(zeroblob(2490))), (3)", "[[1]]");
    assert_string_equal(json_string_value(json_object_get(w.result, "truncated")), "bytes");
    assert_int_equal(ask(&w, "SELECT length(randomblob(5001))"), BK_TOO_LARGE);
    w.how.max_ms = 30;
    assert_int_equal(
        ask(&w,
            "WITH RECURSIVE q(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM q) SELECT max(n) FROM q"),
        BK_TIMEOUT);
    w.how.max_ms = 0;
    bk_ctl_stop(&w.ctl, BK_CANCELED);
    assert_int_equal(
        ask(&w,
            "WITH RECURSIVE q(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM q) SELECT max(n) FROM q"),
        BK_CANCELED);
    end(&w);
}

/* SELECT 1 and what, so many times. */
static bk_rc_t ask_wide(world_t *w, unsigned times, const char *what)
{
    bk_buf_t sql;
    bk_buf_init(&sql, 1u << 20);
    bk_buf_printf(&sql, "SELECT 1");
    for (unsigned i = 0; i < times; i++)
        bk_buf_printf(&sql, ", %s", what);
    assert_true(bk_buf_ok(&sql));
    bk_rc_t rc = ask(w, bk_buf_str(&sql));
    bk_buf_free(&sql);
    return rc;
}

/* Values are made one after the other before a row is there: they are counted on the way. */
static void a_row_of_large_values_takes_no_gigabytes(void **state)
{
    (void)state;
    world_t w;
    start(&w);
    (void)sqlite3_memory_highwater(1);
    int64_t before = sqlite3_memory_used();
    assert_int_equal(ask_wide(&w, 400, "randomblob(4000000)"), BK_TOO_LARGE);
    assert_non_null(strstr(w.err.text, "a value of more than"));
    assert_true(sqlite3_memory_highwater(0) - before < 256 << 20);
    assert_int_equal(ask_wide(&w, 600, "1"), BK_INVALID);
    /* A cell that does not fit is not made, so the row ends there. */
    w.how.max_bytes = 100000;
    rows_are(&w, "VALUES(1, 1), (2, zeroblob(60000))", "[[1,1]]");
    end(&w);
}

/* Words of SQL in any order: whatever is accepted has changed no byte of the file. */
static void no_order_of_words_writes(void **state)
{
    static const char *const words[] = {
        "SELECT",
        "*",
        "FROM",
        "t",
        "w",
        "f",
        "r",
        "WHERE",
        "v",
        "=",
        "1",
        "(",
        ")",
        ",",
        ";",
        "DELETE",
        "INSERT",
        "INTO",
        "VALUES",
        "UPDATE",
        "SET",
        "PRAGMA",
        "user_version",
        "ATTACH",
        "':memory:'",
        "AS",
        "WITH",
        "q",
        "DROP",
        "TABLE",
        "EXPLAIN",
        "RETURNING",
        "count(*)",
        "CREATE",
        "TEMP",
        "sqlite_schema",
        "main",
        ".",
        "BEGIN",
        "REINDEX",
    };
    world_t w;
    uint64_t seed = 20240607, accepted = 0;
    uint8_t before[65536 * 4], after[sizeof before];
    size_t got[2];
    bk_buf_t text;
    (void)state;
    start(&w);
    bk_buf_init(&text, 4096);
    int fd = open(w.file, O_RDONLY | O_CLOEXEC);
    OK(bk_pread_all(fd, before, sizeof before, 0, &got[0], w.file, &w.err), &w.err);
    for (int i = 0; i < 1500; i++) {
        bk_buf_reset(&text);
        size_t count = 1 + test_random(&seed) % 8;
        if (test_random(&seed) % 2)
            bk_buf_printf(&text, "SELECT ");
        for (size_t n = 0; n < count; n++)
            bk_buf_printf(&text, "%s ", words[test_random(&seed) % (sizeof words / sizeof *words)]);
        const char *sql = bk_buf_str(&text);
        bk_rc_t rc = ask(&w, sql);
        accepted += rc == BK_OK;
        if (rc != BK_OK && rc != BK_FORBIDDEN && rc != BK_INVALID)
            fail_msg("%s: %d %s", sql, rc, w.err.text);
    }
    assert_true(accepted > 0);
    OK(bk_pread_all(fd, after, sizeof after, 0, &got[1], w.file, &w.err), &w.err);
    assert_int_equal(got[0], got[1]);
    assert_memory_equal(before, after, got[0]);
    bk_buf_free(&text);
    close(fd);
    end(&w);
}

/* Within a transaction of its owner: of main alone, and nothing of it is another one afterwards. */
static void a_connection_is_asked_and_left_as_it_was(void **state)
{
    world_t w;
    int triggers = 0;
    (void)state;
    start(&w);
    sqlite3 *db = open_db(w.file);
    run_sql(db, "ATTACH ':memory:' AS past; CREATE TABLE past.gone(x); CREATE TABLE past.t(id)");
    int length = sqlite3_limit(db, SQLITE_LIMIT_LENGTH, -1);
    run_sql(db, "BEGIN IMMEDIATE; INSERT INTO t(v) VALUES('four')");
    w.how = (bk_db_select_t){.db = db};
    rows_are(&w, "SELECT count(*) FROM t", "[[4]]");
    rows_are(&w, "WITH o AS (SELECT 1) SELECT count(*), (SELECT count(*) FROM o) FROM main.t",
             "[[4,1]]");
    rows_are(&w, "SELECT x FROM f WHERE f MATCH 'hello'", "[[\"hello world\"]]");
    rows_are(&w, "SELECT value FROM json_each('[7]')", "[[7]]");
    assert_int_equal(ask(&w, "SELECT count(*) FROM gone"), BK_FORBIDDEN);
    assert_int_equal(ask(&w, "SELECT id FROM past.t"), BK_FORBIDDEN);
    assert_int_equal(ask(&w, "DELETE FROM t RETURNING id"), BK_FORBIDDEN);
    assert_int_equal(ask(&w, "ROLLBACK"), BK_FORBIDDEN);
    assert_int_equal(sqlite3_limit(db, SQLITE_LIMIT_LENGTH, -1), length);
    assert_int_equal(sqlite3_limit(db, SQLITE_LIMIT_ATTACHED, -1), 10);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_TRIGGER, -1, &triggers);
    assert_int_equal(triggers, 1);
    run_sql(db,
            "INSERT INTO past.gone VALUES(1); INSERT INTO w VALUES(1)"); /* its trigger deletes */
    assert_int_equal(query(db, "SELECT count(*) FROM t"), 0);
    run_sql(db, "ROLLBACK");
    assert_int_equal(query(db, "SELECT count(*) FROM t"), 3);
    sqlite3_close(db);
    end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_rows_of_json),
        cmocka_unit_test(what_does_more_than_read_is_refused),
        cmocka_unit_test(mistakes_are_told_with_their_place),
        cmocka_unit_test(everything_is_bounded),
        cmocka_unit_test(a_row_of_large_values_takes_no_gigabytes),
        cmocka_unit_test(no_order_of_words_writes),
        cmocka_unit_test(a_connection_is_asked_and_left_as_it_was),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
