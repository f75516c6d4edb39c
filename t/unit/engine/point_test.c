/*
 * t/unit/engine/point_test.c: what there is at a point in time: databases as of that very moment,
 * files as of the backup before it; asked in SQL, proved, recovered; and what is not there is told
 * before a job is made of it.
 */
#include "unit/engine/segments.h"

typedef struct {
    fixture_t *f;
    int64_t times[20];    /* after each row */
    int64_t begun, ended; /* the second of the later backups */
    bk_err_t err;
} world_t;

static void add_row(world_t *w, sqlite3 *main, sqlite3 *other, unsigned n)
{
    sql(main, "INSERT INTO jobs(name) VALUES('new')");
    sql(other, "INSERT INTO jobs(name) VALUES('new')");
    capture(w->f);
    bk_sleep_ms(3);
    w->times[n] = bk_now();
    bk_sleep_ms(3);
}

/* Two captured databases and one that is not; rows 1 to 5, a backup, 6 to 10, a backup, 11 to 15.
 */
static int set_up_world(void **state)
{
    world_t *w = calloc(1, sizeof *w);
    char id[BK_BACKUP_ID];
    fixture_t *f = w->f = fixture_new(false);
    sqlite3 *made = open_db(f, "app/other.db"), *plain = open_db(f, "app/plain.db");
    sql(made, "PRAGMA journal_mode=WAL; CREATE TABLE jobs(id INTEGER PRIMARY KEY, name TEXT)");
    sql(plain, "CREATE TABLE t(x); INSERT INTO t VALUES(1)");
    bk_set_add_db(&f->set, "other")->path = text_at(f, "app/other.db");
    bk_set_add_db(&f->set, "plain")->path = text_at(f, "app/plain.db");
    f->set.dbs[0].pitr_window = f->set.dbs[1].pitr_window = 86400000;
    f->set.dbs[2].pitr_window = 0;
    open_engine(f);
    capture(w->f);
    sqlite3 *main = open_db(f, "app/app.db");
    back_up(f, "full", id);
    for (unsigned n = 1; n <= 15; n++) {
        char text[16];
        bk_fmt(text, sizeof text, "version %u", n);
        put(f, "app/uploads/a.wav", text);
        sql(plain, "UPDATE t SET x = x + 1");
        add_row(w, main, made, n);
        w->begun = n == 10 ? bk_now() : w->begun;
        if (n == 5 || n == 10)
            back_up(f, "incremental", id);
        w->ended = n == 10 ? bk_now() : w->ended;
    }
    capture(w->f);
    sqlite3_close(main);
    sqlite3_close(made);
    sqlite3_close(plain);
    bk_ctl_init(&f->ctl);
    *state = w;
    return 0;
}

static int tear_down_world(void **state)
{
    world_t *w = *state;
    bk_ctl_free(&w->f->ctl);
    fixture_free(w->f);
    free(w);
    return 0;
}

static int64_t ask(world_t *w, json_t *body, const char *database, const char *text)
{
    json_t *answer, *problems, *more;
    json_object_set_new(body, "database", json_string(database));
    json_object_set_new(body, "sql", json_string(text));
    bk_err_clear(&w->err);
    OK(bk_query_check(&w->f->set, body, &problems, &w->err), &w->err);
    OK(bk_engine_query(w->f->engine, body, &w->f->ctl, &answer, &more, &w->err), &w->err);
    int64_t value =
        json_integer_value(json_array_get(json_array_get(json_object_get(answer, "rows"), 0), 0));
    assert_string_equal(json_string_value(json_object_get(answer, "database")), database);
    assert_true(json_is_string(json_object_get(answer, "source_backup")));
    json_decref(answer);
    json_decref(body);
    return value;
}

static json_t *at_time(const world_t *w, unsigned n)
{
    char text[BK_TIME_TEXT];
    bk_time_format_exact(text, w->times[n]);
    return json_pack("{ss}", "point_in_time", text);
}

static void sql_of_any_moment(void **state)
{
    world_t *w = *state;
    const char *count = "SELECT count(*) FROM jobs";
    for (unsigned n = 1; n <= 15; n++) {
        assert_int_equal(ask(w, at_time(w, n), "main", count), 500 + n);
        assert_int_equal(ask(w, at_time(w, n), "other", count), n);
        assert_int_equal(ask(w, json_pack("{si}", "transaction", n), "main", count), 500 + n);
    }
    assert_int_equal(ask(w, json_object(), "main", count), 510);
    assert_int_equal(ask(w, json_pack("{ss}", "backup_id", "latest"), "plain", "SELECT x FROM t"),
                     11);
}

/* A text of a file below restored/, or NULL. */
static void full_at(world_t *w, unsigned n, json_t *body, unsigned version)
{
    fixture_t *f = w->f;
    char target[64], name[128], wanted[32];
    bk_fmt(target, sizeof target, "restored/%u", n);
    json_object_set_new(body, "recovery_type", json_string("full"));
    json_object_set_new(body, "target_directory", json_string(at(f, target)));
    char *text = json_dumps(body, 0);
    json_t *job = do_job(f, BK_JOB_RECOVERY, text, "warning"); /* plain is not captured */
    bk_ctl_init(&f->ctl);
    free(text);
    json_decref(body);
    bk_fmt(name, sizeof name, "%s/uploads/a.wav", target);
    bk_fmt(wanted, sizeof wanted, "version %u", version);
    assert_string_equal(get(f, name), wanted);
    bk_fmt(name, sizeof name, "%s/app.db", target);
    assert_int_equal(number_in(f, name, "SELECT count(*) FROM jobs"), 500 + n);
    bk_fmt(name, sizeof name, "%s/other.db", target);
    assert_int_equal(number_in(f, name, "SELECT count(*) FROM jobs"), n);
    bk_fmt(name, sizeof name, "%s/plain.db", target);
    assert_int_equal(number_in(f, name, "SELECT x FROM t"), version + 1);
    assert_true(json_is_string(json_object_get(job, "files_recovery_point")));
    done(job);
}

static void files_come_from_the_backup_before_it(void **state)
{
    world_t *w = *state;
    full_at(w, 7, at_time(w, 7), 5);
    full_at(w, 12, at_time(w, 12), 10);
}

/* Of a backup that is still under way at the moment, some files are younger. */
static void no_file_is_younger_than_the_moment(void **state)
{
    world_t *w = *state;
    fixture_t *f = w->f;
    bool old = false, new = false;
    for (int64_t i = 0; i <= 16; i++) {
        char text[BK_TIME_TEXT], request[512];
        bk_time_format_exact(text, w->begun + (w->ended - w->begun) * i / 16);
        bk_fmt(request, sizeof request,
               "{\"recovery_type\": \"files\", \"target_directory\": \"%s\", "
               "\"point_in_time\": \"%s\"}",
               at(f, "restored/younger"), text);
        json_t *job = do_job(f, BK_JOB_RECOVERY, request, "completed");
        bk_ctl_init(&f->ctl);
        const char *until = json_string_value(json_object_get(job, "files_read_until"));
        assert_true(until != NULL && strcmp(until, text) <= 0);
        bool is_new = strcmp(get(f, "restored/younger/uploads/a.wav"), "version 10") == 0;
        old = old || !is_new;
        new = new || is_new;
        done(job);
    }
    assert_true(old && new);
}

/* *more: what can be had instead. */
static void refused_for(world_t *w, json_t *body, const char *why, json_t **more)
{
    bk_err_clear(&w->err);
    if (json_object_get(body, "recovery_type") == NULL)
        json_object_set_new(body, "recovery_type", json_string("database"));
    if (bk_engine_check(w->f->engine, BK_JOB_RECOVERY, body, &w->f->ctl, more, &w->err) !=
        BK_INVALID)
        fail_msg("not refused: %s", why);
    assert_contains(w->err.text, why);
    json_decref(body);
}

static void refused(world_t *w, json_t *body, const char *why)
{
    json_t *more;
    refused_for(w, body, why, &more);
    json_decref(more);
}

static void what_is_not_there_is_told_before_the_job(void **state)
{
    world_t *w = *state;
    bk_err_t err = {0};
    json_t *more, *body = at_time(w, 3);
    json_object_set_new(body, "recovery_type", json_string("database"));
    OK(bk_engine_check(w->f->engine, BK_JOB_RECOVERY, body, &w->f->ctl, &more, &err), &err);
    json_decref(body);
    refused(w, json_pack("{si}", "transaction", 7), "more than one is captured");
    refused(w, json_pack("{siss}", "transaction", 99, "database", "main"),
            "no transaction 99: the last one is ");
    refused(w, json_pack("{siss}", "transaction", 3, "database", "plain"), "pitr_window");
    refused(w, json_pack("{ss}", "point_in_time", "2020-01-01T00:00:00Z"), "before the first");
    refused(w, json_pack("{ss}", "point_in_time", "2999-01-01T00:00:00Z"), "future");
}

static int64_t time_in(json_t *value, const char *path)
{
    int64_t time = 0;
    assert_true(bk_time_parse(text_of(value, path), &time));
    return time;
}

/* Whatever the reason: what can be had instead comes with the refusal. */
static void a_refusal_tells_the_window(void **state)
{
    world_t *w = *state;
    static const char *const times[] = {"2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"};
    static const char *const types[] = {"database", "full", "files"};
    for (unsigned i = 0; i < 2; i++)
        for (unsigned n = 0; n < 3; n++) {
            json_t *more;
            refused_for(w,
                        json_pack("{ssss}", "recovery_type", types[n], "point_in_time", times[i]),
                        i == 0 && n == 0 ? "before the first"
                        : i == 0         ? "no backup of the files"
                                         : "point_in_time lies in the future: it is 20",
                        &more);
            assert_true(time_in(more, "recovery_window.earliest") <= w->times[1]);
            assert_true(time_in(more, "recovery_window.latest") > w->times[15]);
            assert_int_equal(json_array_size(member(more, "recovery_window.gaps")), 0);
            if (n < 2)
                assert_string_equal(text_of(more, "recovery_window.database"), "main");
            json_decref(more);
        }
}

/* The first database is not captured: what is told of all is not what is told of it alone. */
static void each_database_tells_its_own_moment(void **state)
{
    (void)state;
    world_t w = {.f = fixture_new(false)};
    fixture_t *f = w.f;
    char id[BK_BACKUP_ID], text[512], time[BK_TIME_TEXT];
    sqlite3 *made = open_db(f, "app/other.db");
    sql(made, "PRAGMA journal_mode=WAL; CREATE TABLE jobs(id INTEGER PRIMARY KEY, name TEXT)");
    bk_set_add_db(&f->set, "other")->path = text_at(f, "app/other.db");
    f->set.dbs[1].pitr_window = 86400000;
    open_engine(f);
    capture(f);
    back_up(f, "full", id);
    sqlite3 *main = open_db(f, "app/app.db");
    for (unsigned n = 1; n <= 3; n++)
        add_row(&w, main, made, n);
    bk_time_format_exact(time, w.times[2]);
    bk_fmt(text, sizeof text,
           "{\"recovery_type\": \"full\", \"point_in_time\": \"%s\", \"target_directory\": \"%s\"}",
           time, at(f, "restored/x"));
    json_t *job = do_job(f, BK_JOB_RECOVERY, text, "warning");
    assert_string_equal(text_of(job, "databases.0.name"), "main");
    assert_null(member(job, "databases.0.transaction"));
    assert_int_equal(int_of(job, "databases.1.transaction"), 2);
    assert_true(time_in(job, "databases.1.recovery_point") > w.times[1]);
    assert_true(time_in(job, "databases.1.recovery_point") < w.times[2]);
    assert_true(time_in(job, "databases.0.recovery_point") < w.times[1]);
    /* All of it was there then, or earlier. */
    assert_string_equal(text_of(job, "recovery_point"), text_of(job, "databases.0.recovery_point"));
    assert_null(member(job, "transaction"));
    done(job);
    bk_fmt(text, sizeof text, "{\"point_in_time\": \"%s\", \"database\": \"other\"}", time);
    job = do_job(f, BK_JOB_VALIDATE, text, "completed");
    assert_int_equal(int_of(job, "validation_result.transaction"), 2);
    assert_int_equal(int_of(job, "validation_result.databases.0.transaction"), 2);
    done(job);
    sqlite3_close(main);
    sqlite3_close(made);
    fixture_free(f);
}

/* Nobody looks any more: what came later may have changed everything. */
static void a_time_that_nobody_looked_at_is_refused(void **state)
{
    world_t *w = *state;
    fixture_t *f = w->f;
    json_t *answer, *more, *job;
    bk_err_t err = {0};
    bk_sleep_ms(5);
    w->times[16] = bk_now();
    bk_sleep_ms(5);
    capture(w->f); /* looks, and finds nothing */
    assert_int_equal(ask(w, at_time(w, 16), "main", "SELECT count(*) FROM jobs"), 515);
    close_engine(f);
    bk_sleep_ms(5);
    w->times[17] = bk_now();
    open_engine(f);
    json_t *body = at_time(w, 17);
    json_object_set_new(body, "database", json_string("main"));
    refused_for(w, json_incref(body), "is not known: its transactions are captured up to", &more);
    assert_true(time_in(more, "recovery_window.earliest") <= w->times[1]);
    assert_true(time_in(more, "recovery_window.latest") > w->times[16]);
    assert_true(time_in(more, "recovery_window.latest") < w->times[17]);
    json_decref(more);
    json_object_set_new(body, "sql", json_string("SELECT 1"));
    assert_int_equal(bk_engine_query(f->engine, body, &f->ctl, &answer, &more, &err), BK_INVALID);
    assert_non_null(member(more, "recovery_window.latest"));
    json_decref(more);
    json_decref(body);
    bk_timeline_filter_t filter = {.database = "main"};
    OK(bk_engine_timeline(f->engine, &filter, &f->ctl, &answer, &err), &err);
    assert_true(time_in(answer, "databases.0.windows.0.to") > w->times[16]);
    json_decref(answer);
    job = do_job(f, BK_JOB_RECOVERY,
                 "{\"recovery_type\": \"database\", \"database\": \"main\", \"transaction\": 15}",
                 "completed");
    bk_ctl_init(&f->ctl);
    assert_non_null(strchr(text_of(job, "databases.0.recovery_point"), '.'));
    done(job);
}

/* Another set on the same storage, whose database has the same name and newer transactions. */
static void sets_share_a_storage_but_no_moments(void **state)
{
    world_t *w = *state;
    fixture_t *g = calloc(1, sizeof *g);
    char id[BK_BACKUP_ID], storage[1024];
    bk_strcpy(storage, sizeof storage, at(w->f, "storage"));
    OK(bk_engine_ship(w->f->engine, &w->f->ctl, &w->err), &w->err);
    g->dir = test_dir();
    make_app(g);
    make_set(g, false, storage);
    free(g->set.name);
    assert_non_null(g->set.name = bk_strdup("second"));
    g->set.dbs[0].pitr_window = 86400000;
    open_engine(g);
    OK(step_all(g, &w->err), &w->err);
    back_up(g, "full", id);
    sqlite3 *db = open_db(g, "app/app.db");
    sql(db, "DELETE FROM jobs WHERE id > 7");
    sqlite3_close(db);
    OK(step_all(g, &w->err), &w->err);
    bk_ctl_init(&g->ctl);
    OK(bk_engine_ship(g->engine, &g->ctl, &w->err), &w->err);
    close_engine(g);
    open_engine(g); /* so that it is sealed, and on the storage */
    OK(step_all(g, &w->err), &w->err);
    OK(bk_engine_ship(g->engine, &g->ctl, &w->err), &w->err);
    const char *count = "SELECT count(*) FROM jobs";
    assert_int_equal(ask(w, json_pack("{si}", "transaction", 1), "main", count), 501);
    assert_int_equal(ask(w, at_time(w, 15), "main", count), 515);
    w->times[16] = bk_now();
    capture(w->f);
    assert_int_equal(ask(w, at_time(w, 16), "main", count), 515);
    world_t other = {.f = g};
    assert_int_equal(ask(&other, json_pack("{si}", "transaction", 1), "main", count), 7);
    bk_ctl_free(&g->ctl);
    fixture_free(g);
}

static void a_moment_is_proved(void **state)
{
    world_t *w = *state;
    json_t *body = at_time(w, 8);
    char *text = json_dumps(body, 0);
    json_t *job = do_job(w->f, BK_JOB_VALIDATE, text, "completed");
    bk_ctl_init(&w->f->ctl);
    assert_true(json_is_true(member(job, "validation_result.valid")));
    assert_non_null(member(job, "validation_result.databases.0.transaction"));
    free(text);
    json_decref(body);
    done(job);
}

/* One that was in base_dir when it was listed. */
static void what_is_shipped_meanwhile_is_read_from_there(void **state)
{
    world_t *w = *state;
    fixture_t *f = w->f;
    bk_opened_t opened;
    bk_point_t point;
    bk_point_view_t view;
    json_t *answer;
    OK(bk_engine_open_repo(f->engine, false, &f->ctl, &opened, &w->err), &w->err);
    bk_point_wish_t wish = {
        .base_dir = f->set.base_dir, .time = w->times[13], .database = "main", .databases = true};
    OK(bk_point_find(opened.repo, &wish, &f->ctl, &point, &w->err), &w->err);
    close_engine(f);
    open_engine(f); /* which seals what was open */
    capture(w->f);
    OK(bk_engine_ship(f->engine, &f->ctl, &w->err), &w->err);
    sqlite3 *db = open_db(f, "app/app.db");
    for (unsigned i = 0; i < 2; i++) {
        sql(db, "INSERT INTO jobs(name) VALUES('later')");
        capture(w->f);
        close_engine(f);
        open_engine(f);
        capture(w->f);
        OK(bk_engine_ship(f->engine, &f->ctl, &w->err), &w->err);
    }
    sqlite3_close(db);
    bk_db_select_t how = {.sql = "SELECT count(*) FROM jobs"};
    OK(bk_point_ask(&point, "main", &how, &answer, &w->err), &w->err);
    assert_int_equal(
        json_integer_value(json_array_get(json_array_get(json_object_get(answer, "rows"), 0), 0)),
        513);
    json_decref(answer);
    OK(bk_point_show(&point, &point.snapshot->dbs[0], &view, &w->err), &w->err);
    OK(bk_past_check(view.past, &w->err), &w->err);
    bk_point_hide(&view);
    bk_point_close(&point);
    bk_engine_close_repo(&opened);
}

static json_t *timeline(world_t *w, const char *database, const char *cursor, unsigned limit)
{
    json_t *answer;
    bk_timeline_filter_t filter = {.database = database, .cursor = cursor, .limit = limit};
    OK(bk_engine_timeline(w->f->engine, &filter, &w->f->ctl, &answer, &w->err), &w->err);
    return answer;
}

static void a_timeline_has_every_transaction_once(void **state)
{
    world_t *w = *state;
    char cursor[128] = "";
    json_int_t next = 15;
    unsigned pages = 0;
    do {
        json_t *answer = timeline(w, "main", cursor[0] != '\0' ? cursor : NULL, 4);
        json_t *db = json_array_get(json_object_get(answer, "databases"), 0), *one;
        size_t i;
        json_t *window = json_array_get(json_object_get(db, "windows"), 0);
        assert_true(json_is_true(json_object_get(window, "recoverable")));
        assert_int_equal(json_integer_value(json_object_get(window, "last_transaction")), 15);
        assert_int_equal(json_array_size(json_object_get(db, "gaps")), 0);
        json_array_foreach(json_object_get(db, "transactions"), i, one)
        {
            int64_t until;
            assert_int_equal(json_integer_value(json_object_get(one, "transaction")), next);
            assert_true(bk_time_parse(json_string_value(json_object_get(one, "until")), &until));
            assert_true(until <= w->times[next]);
            assert_true(next == 1 || until > w->times[next - 1]);
            next--;
        }
        cursor[0] = '\0';
        const char *more = json_string_value(json_object_get(db, "next_cursor"));
        if (more != NULL)
            bk_strcpy(cursor, sizeof cursor, more);
        json_decref(answer);
        assert_true(++pages < 10);
    } while (cursor[0] != '\0');
    assert_int_equal(next, 0);
    assert_int_equal(pages, 4);
    json_t *answer = timeline(w, NULL, NULL, 1);
    assert_int_equal(json_array_size(json_object_get(answer, "databases")), 2);
    for (unsigned i = 0; i < 2; i++) { /* an order of their transactions there is not */
        json_t *one = json_array_get(json_object_get(answer, "databases"), i);
        assert_int_equal(json_array_size(json_object_get(one, "windows")), 1);
        assert_null(json_object_get(one, "transactions"));
    }
    json_decref(answer);
    answer = timeline(w, "main", NULL, 1);
    bk_strcpy(cursor, sizeof cursor, text_of(answer, "databases.0.next_cursor"));
    json_decref(answer);
    bk_timeline_filter_t filter = {.cursor = cursor};
    assert_int_equal(bk_engine_timeline(w->f->engine, &filter, &w->f->ctl, &answer, &w->err),
                     BK_INVALID);
    assert_contains(w->err.text, "name it with \"database\"");
    filter.database = "other";
    assert_int_equal(bk_engine_timeline(w->f->engine, &filter, &w->f->ctl, &answer, &w->err),
                     BK_INVALID);
    assert_contains(w->err.text, "is not there");
    filter = (bk_timeline_filter_t){.database = "none"};
    assert_int_equal(bk_engine_timeline(w->f->engine, &filter, &w->f->ctl, &answer, &w->err),
                     BK_NOT_FOUND);
    filter = (bk_timeline_filter_t){.cursor = "nonsense"};
    assert_int_equal(bk_engine_timeline(w->f->engine, &filter, &w->f->ctl, &answer, &w->err),
                     BK_INVALID);
}

/* What happened while nobody looked is one transaction, and its time is told. */
static void a_timeline_tells_gaps_and_epochs(void **state)
{
    world_t *w = *state;
    fixture_t *f = w->f;
    close_engine(f);
    sqlite3 *db = open_db(f, "app/app.db");
    sql(db, "INSERT INTO jobs(name) VALUES('unseen'); INSERT INTO jobs(name) VALUES('unseen');"
            "PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO jobs(name) VALUES('unseen')");
    open_engine(f);
    capture(w->f);
    json_t *answer = timeline(w, "main", NULL, 1);
    json_t *one = json_array_get(json_object_get(answer, "databases"), 0);
    json_t *gap = json_array_get(json_object_get(one, "gaps"), 0);
    int64_t from, to;
    assert_int_equal(json_integer_value(json_object_get(gap, "transaction")), 16);
    assert_true(bk_time_parse(json_string_value(json_object_get(gap, "from")), &from));
    assert_true(bk_time_parse(json_string_value(json_object_get(gap, "to")), &to));
    assert_true(from < to && to > w->times[15]);
    assert_true(from > w->times[15]); /* it was still looked at after the last transaction */
    w->times[16] = from;
    assert_int_equal(ask(w, at_time(w, 16), "main", "SELECT count(*) FROM jobs"), 515);
    w->times[16] = from + 1;
    json_t *body = at_time(w, 16), *more;
    json_object_set_new(body, "database", json_string("main"));
    refused_for(w, body, "nobody saw", &more);
    assert_int_equal(time_in(more, "recovery_window.gaps.0.from"), from);
    assert_int_equal(time_in(more, "recovery_window.gaps.0.to"), to);
    json_decref(more);
    json_t *tx = json_array_get(json_object_get(one, "transactions"), 0);
    assert_true(json_is_true(json_object_get(tx, "gap")));
    json_decref(answer);
    close_engine(f);
    sql(db, "PRAGMA journal_mode=DELETE; PRAGMA page_size=1024; VACUUM; PRAGMA journal_mode=WAL");
    open_engine(f);
    capture(w->f);
    sql(db, "INSERT INTO jobs(name) VALUES('seen')");
    capture(w->f);
    sqlite3_close(db);
    answer = timeline(w, "main", NULL, 500);
    one = json_array_get(json_object_get(answer, "databases"), 0);
    assert_int_equal(json_array_size(json_object_get(one, "windows")), 2);
    assert_true(json_is_false(member(json_array_get(json_object_get(one, "windows"), 0),
                                     "recoverable"))); /* no backup since */
    assert_int_equal(json_array_size(json_object_get(one, "gaps")), 2);
    assert_int_equal(json_array_size(json_object_get(one, "transactions")), 17);
    /* Numbers go on. */
    assert_int_equal(int_of(one, "transactions.0.transaction"), 17);
    json_decref(answer);
    /* What is asked of transactions hides no gap, newest first. */
    answer = timeline(w, "main", NULL, 1);
    char cursor[128];
    bk_strcpy(cursor, sizeof cursor, text_of(answer, "databases.0.next_cursor"));
    json_decref(answer);
    bk_timeline_filter_t filter = {.database = "main", .cursor = cursor, .since = bk_now() - 1};
    OK(bk_engine_timeline(w->f->engine, &filter, &w->f->ctl, &answer, &w->err), &w->err);
    one = json_array_get(json_object_get(answer, "databases"), 0);
    assert_int_equal(json_array_size(json_object_get(one, "gaps")), 2);
    assert_int_equal(int_of(one, "gaps.0.transaction"), 17);
    assert_int_equal(int_of(one, "gaps.1.transaction"), 16);
    assert_string_equal(text_of(one, "gaps.1.reason"), "unseen");
    assert_true(time_in(one, "gaps.1.to") <= time_in(one, "gaps.0.from"));
    json_decref(answer);
}

/* Whatever a new history holds, all times between two windows are in one gap. */
static json_t *windows_meet(world_t *w, const char *reason, unsigned first, unsigned last)
{
    json_t *answer = timeline(w, "main", NULL, 1);
    json_t *one = json_incref(json_array_get(json_object_get(answer, "databases"), 0));
    json_decref(answer);
    assert_int_equal(json_array_size(json_object_get(one, "windows")), 2);
    assert_int_equal(json_array_size(json_object_get(one, "gaps")), 1);
    assert_string_equal(text_of(one, "gaps.0.reason"), reason);
    assert_string_equal(text_of(one, "gaps.0.from"), text_of(one, "windows.1.to"));
    assert_string_equal(text_of(one, "gaps.0.to"), text_of(one, "windows.0.from"));
    assert_int_equal(int_of(one, "gaps.0.transaction"), first);
    assert_int_equal(int_of(one, "gaps.0.last_transaction"), last);
    return one;
}

static sqlite3 *begin_anew(world_t *w)
{
    close_engine(w->f);
    sqlite3 *db = open_db(w->f, "app/app.db");
    sql(db, "PRAGMA journal_mode=DELETE; PRAGMA page_size=1024; VACUUM; PRAGMA journal_mode=WAL");
    open_engine(w->f);
    capture(w->f);
    return db;
}

static void what_came_before_the_first_backup_is_in_the_gap(void **state)
{
    world_t *w = *state;
    char id[BK_BACKUP_ID];
    sqlite3 *db = begin_anew(w);
    for (unsigned n = 16; n <= 19; n++) {
        if (n == 19)
            back_up(w->f, "full", id);
        add_rows(db, w->f, 1);
        w->times[n] = a_moment_later();
    }
    capture(w->f);
    sqlite3_close(db);
    bk_ctl_init(&w->f->ctl);
    json_t *one = windows_meet(w, "no_backup", 16, 17);
    assert_int_equal(int_of(one, "windows.0.first_transaction"), 18);
    json_decref(one);
    json_t *body = at_time(w, 17);
    json_object_set_new(body, "database", json_string("main"));
    refused(w, body, "(transaction 18)");
    assert_int_equal(ask(w, at_time(w, 18), "main", "SELECT count(*) FROM jobs"), 518);
}

static void a_quiet_beginning_is_the_backup(void **state)
{
    world_t *w = *state;
    char id[BK_BACKUP_ID];
    sqlite3 *db = begin_anew(w);
    back_up(w->f, "full", id);
    w->times[16] = a_moment_later();
    capture(w->f);
    add_rows(db, w->f, 1);
    w->times[17] = a_moment_later();
    capture(w->f);
    sqlite3_close(db);
    bk_ctl_init(&w->f->ctl);
    assert_int_equal(ask(w, at_time(w, 16), "main", "SELECT count(*) FROM jobs"), 515);
    assert_int_equal(ask(w, at_time(w, 17), "main", "SELECT count(*) FROM jobs"), 516);
    json_t *one = windows_meet(w, "unseen", 16, 16);
    assert_true(time_in(one, "windows.0.from") < w->times[16]);
    json_decref(one);
}

/* Nothing was committed since the history began, and somebody looked. */
static void a_history_without_a_transaction_is_its_backup(void **state)
{
    world_t *w = *state;
    char id[BK_BACKUP_ID];
    sqlite3_close(begin_anew(w));
    w->times[18] = a_moment_later();
    back_up(w->f, "full", id);
    w->times[16] = a_moment_later();
    capture(w->f);
    w->times[17] = a_moment_later();
    bk_ctl_init(&w->f->ctl);
    assert_int_equal(ask(w, at_time(w, 16), "main", "SELECT count(*) FROM jobs"), 515);
    for (unsigned n = 17; n <= 18; n++) { /* behind the last look; before the backup */
        json_t *body = at_time(w, n);
        json_object_set_new(body, "database", json_string("main"));
        refused(w, body, "is not known");
    }
}

#define T(name) cmocka_unit_test_setup_teardown(name, set_up_world, tear_down_world)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(sql_of_any_moment),
        T(files_come_from_the_backup_before_it),
        T(no_file_is_younger_than_the_moment),
        T(what_is_not_there_is_told_before_the_job),
        T(a_refusal_tells_the_window),
        cmocka_unit_test(each_database_tells_its_own_moment),
        T(sets_share_a_storage_but_no_moments),
        T(a_time_that_nobody_looked_at_is_refused),
        T(a_moment_is_proved),
        T(what_is_shipped_meanwhile_is_read_from_there),
        T(a_timeline_has_every_transaction_once),
        T(a_timeline_tells_gaps_and_epochs),
        T(what_came_before_the_first_backup_is_in_the_gap),
        T(a_quiet_beginning_is_the_backup),
        T(a_history_without_a_transaction_is_its_backup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
