/*
 * t/unit/engine/moments_test.c: which transaction a time means, and that no segment of any epoch is
 * lost on its way to the storage.
 */
#include "unit/engine/segments.h"

#include "engine/bases.h"

/* A backup that is what an epoch began with. */
static void list_of(bk_snapshot_list_t *list, bk_snapshot_t snapshots[2], bk_snapshot_db_t dbs[2])
{
    static char name[] = "main", set[] = "app";
    for (unsigned i = 0; i < 2; i++) {
        dbs[i] = (bk_snapshot_db_t){.name = name, .digest = (i + 1) * 100u, .page_count = 1};
        snapshots[i] = (bk_snapshot_t){.set = set, .dbs = &dbs[i], .db_count = 1};
    }
    *list = (bk_snapshot_list_t){.items = snapshots, .count = 2};
}

static void a_time_means_the_last_transaction_of_its_epoch(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    bk_err_t err = {0};
    bk_opened_t opened;
    bk_moments_t *moments;
    bk_moment_t moment;
    bk_snapshot_t snapshots[2];
    bk_snapshot_db_t dbs[2];
    bk_snapshot_list_t list;
    static char other[] = "other";
    const int64_t one = 1000 * BK_SEC, two = 2000 * BK_SEC;
    list_of(&list, snapshots, dbs);
    write_segment(f, E1, 4096, 1, 3, one, true);
    write_segment(f, E1, 4096, 4, 3, 0, false); /* left empty when the epoch ended */
    write_segment(f, E2, 4096, 1, 2, two, true);
    write_segment(f, E2, 4096, 3, 5, two + 2 * BK_SEC, false);
    OK(bk_engine_open_repo(f->engine, false, NULL, &opened, &err), &err);
    OK(bk_moments_open(f->set.base_dir, "app", "main", opened.repo, NULL, &moments, &err), &err);
    for (unsigned i = 0; i < 5; i++) {
        OK(bk_moments_at(moments, two + i * BK_SEC + (i < 4 ? 5 : 0), &list, &moment, &err), &err);
        assert_int_equal(moment.tx.after, 201 + i);
        assert_ptr_equal(moment.backup, &snapshots[1]);
    }
    OK(bk_moments_at(moments, one + BK_SEC, &list, &moment, &err), &err);
    assert_int_equal(moment.tx.after, 102);
    assert_ptr_equal(moment.backup, &snapshots[0]);
    /* Between the two nobody looked. */
    assert_int_equal(bk_moments_at(moments, two - BK_SEC, &list, &moment, &err), BK_INVALID);
    assert_contains(err.text, "nobody saw");
    dbs[0].instant = one - 10;
    OK(bk_moments_at(moments, one - 1, &list, &moment, &err), &err);
    assert_int_equal(moment.tx.txid, 0);
    assert_ptr_equal(moment.backup, &snapshots[0]);
    dbs[1].instant = one - 5; /* it was another in between */
    assert_int_equal(bk_moments_at(moments, one - 1, &list, &moment, &err), BK_INVALID);
    dbs[1].instant = 0;
    assert_int_equal(bk_moments_at(moments, one - 11, &list, &moment, &err), BK_INVALID);
    assert_contains(err.text, "before the first");
    /* Nobody says that nothing came behind the last one. */
    assert_int_equal(bk_moments_at(moments, two + 4 * BK_SEC + 5, &list, &moment, &err),
                     BK_INVALID);
    assert_contains(err.text, "captured up to 1970-01-01T00:33:24");
    /* Two epochs have it: nobody can tell which is meant. */
    assert_int_equal(bk_moments_number(moments, 3, &list, &moment, &err), BK_INVALID);
    assert_contains(err.text, "1970-01-01T00:16:42");
    assert_contains(err.text, "1970-01-01T00:33:22");
    OK(bk_moments_number(moments, 5, &list, &moment, &err), &err);
    assert_int_equal(moment.tx.after, 205);
    snapshots[1].set = other;
    assert_int_equal(bk_moments_number(moments, 5, &list, &moment, &err), BK_NOT_FOUND);
    snapshots[1].set = snapshots[0].set;
    dbs[1].digest = 7;
    assert_int_equal(bk_moments_number(moments, 5, &list, &moment, &err), BK_NOT_FOUND);
    assert_contains(err.text, "nothing to begin from");
    bk_moments_free(moments);
    bk_engine_close_repo(&opened);
    fixture_free(f);
}

/* The first backup of the second epoch is as of its transaction 6: what came before is in no window,
 * and no refusal sends anybody there. */
static void a_refusal_names_moments_that_can_be_had(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    bk_err_t err = {0};
    bk_opened_t opened;
    bk_moments_t *moments;
    bk_moment_t moment;
    bk_snapshot_t snapshots[2];
    bk_snapshot_db_t dbs[2];
    bk_snapshot_list_t list;
    const int64_t one = 1000 * BK_SEC, two = 2000 * BK_SEC, to = two + BK_SEC;
    const char *nearest = "the nearest moments are 1970-01-01T00:16:42.000Z (transaction 3) and "
                          "1970-01-01T00:33:21.000Z (transaction 6)";
    list_of(&list, snapshots, dbs);
    dbs[1].digest = 206;
    dbs[1].instant = to;
    write_segment(f, E1, 4096, 1, 3, one, true);
    write_segment(f, E2, 4096, 5, 8, two, true);
    OK(bk_engine_open_repo(f->engine, false, NULL, &opened, &err), &err);
    OK(bk_moments_open(f->set.base_dir, "app", "main", opened.repo, NULL, &moments, &err), &err);
    const int64_t times[] = {one + 2 * BK_SEC + 1, two - 1, two, to - 1};
    for (unsigned i = 0; i < 4; i++) {
        assert_true(bk_moments_at(moments, times[i], &list, &moment, &err) != BK_OK);
        assert_contains(err.text, i < 2 ? "nobody saw" : "nothing to begin from");
        json_t *window = bk_moments_describe(moments, &list, &err);
        assert_contains(err.text, nearest);
        assert_string_equal(text_of(window, "gaps.0.from"), "1970-01-01T00:16:42.000Z");
        assert_string_equal(text_of(window, "gaps.0.to"), "1970-01-01T00:33:21.000Z");
        json_decref(window);
    }
    OK(bk_moments_at(moments, one + 2 * BK_SEC, &list, &moment, &err), &err);
    OK(bk_moments_at(moments, to, &list, &moment, &err), &err);
    assert_int_equal(bk_moments_number(moments, 5, &list, &moment, &err), BK_NOT_FOUND);
    json_decref(bk_moments_describe(moments, &list, &err));
    assert_contains(err.text, nearest);
    assert_int_equal(bk_moments_number(moments, 4, &list, &moment, &err), BK_INVALID);
    json_decref(bk_moments_describe(moments, &list, &err));
    assert_contains(err.text, "the nearest are 3 and 6");
    dbs[1].digest = 7; /* no backup yet */
    assert_int_equal(bk_moments_at(moments, two - 1, &list, &moment, &err), BK_INVALID);
    json_decref(bk_moments_describe(moments, &list, &err));
    assert_contains(err.text, "the nearest moment is 1970-01-01T00:16:42.000Z (transaction 3)");
    bk_moments_free(moments);
    bk_engine_close_repo(&opened);
    fixture_free(f);
}

/* A backup of what a later epoch began with: it is all that there was until the first transaction.
 */
static void a_later_epoch_begins_with_its_backup(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    bk_err_t err = {0};
    bk_opened_t opened;
    bk_moments_t *moments;
    bk_moment_t moment;
    bk_snapshot_t snapshots[2];
    bk_snapshot_db_t dbs[2];
    bk_snapshot_list_t list;
    const int64_t one = 1000 * BK_SEC, two = 2000 * BK_SEC, made = two - 500 * BK_SEC;
    list_of(&list, snapshots, dbs);
    dbs[1].digest = 203;
    dbs[1].instant = made;
    write_segment(f, E1, 4096, 1, 3, one, true);
    write_segment(f, E2, 4096, 4, 8, two, true);
    OK(bk_engine_open_repo(f->engine, false, NULL, &opened, &err), &err);
    OK(bk_moments_open(f->set.base_dir, "app", "main", opened.repo, NULL, &moments, &err), &err);
    for (unsigned i = 0; i < 2; i++) {
        OK(bk_moments_at(moments, i == 0 ? made : two - 1, &list, &moment, &err), &err);
        assert_ptr_equal(moment.backup, &snapshots[1]);
        assert_int_equal(moment.tx.after, 203);
        assert_int_equal(moment.tx.t_hi, made);
    }
    assert_int_equal(bk_moments_at(moments, made - 1, &list, &moment, &err), BK_INVALID);
    json_decref(bk_moments_describe(moments, &list, &err));
    assert_contains(
        err.text,
        "1970-01-01T00:16:42.000Z (transaction 3) and 1970-01-01T00:25:00.000Z (a backup)");
    /* Not the one that was there before transaction 3. */
    dbs[1].instant = one + 2 * BK_SEC - 1;
    assert_int_equal(bk_moments_at(moments, two - 1, &list, &moment, &err), BK_INVALID);
    assert_contains(err.text, "nobody saw");
    dbs[1].instant = made;
    dbs[0].instant = made + 10; /* it was another in between */
    assert_int_equal(bk_moments_at(moments, made + 5, &list, &moment, &err), BK_INVALID);
    assert_int_equal(bk_moments_at(moments, two - 1, &list, &moment, &err), BK_INVALID);
    bk_moments_free(moments);
    bk_engine_close_repo(&opened);
    fixture_free(f);
}

static void a_hole_is_told(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    bk_err_t err = {0};
    bk_opened_t opened;
    bk_moments_t *moments;
    bk_moment_t moment;
    bk_snapshot_t snapshots[2];
    bk_snapshot_db_t dbs[2];
    bk_snapshot_list_t list;
    list_of(&list, snapshots, dbs);
    write_segment(f, E1, 4096, 1, 3, 1000 * BK_SEC, true);
    write_segment(f, E1, 4096, 6, 8, 1005 * BK_SEC, true);
    OK(bk_engine_open_repo(f->engine, false, NULL, &opened, &err), &err);
    OK(bk_moments_open(f->set.base_dir, "app", "main", opened.repo, NULL, &moments, &err), &err);
    assert_int_equal(bk_moments_number(moments, 7, &list, &moment, &err), BK_NOT_FOUND);
    assert_contains(err.text, "transactions 4 to 5 is missing");
    bk_moments_free(moments);
    bk_engine_close_repo(&opened);
    fixture_free(f);
}

/* Its numbers go on from those of the one before. */
static void an_epoch_after_another_is_shipped_as_well(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    uint8_t first[BK_EPOCH_SIZE], second[BK_EPOCH_SIZE];
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    epoch_of(f, first);
    sql(db, "INSERT INTO jobs(name) VALUES('one')");
    sql(db, "INSERT INTO jobs(name) VALUES('two')");
    capture(f);
    close_engine(f); /* its segment stays open */
    open_engine(f);
    capture(f);
    ship(f);
    assert_int_equal(stored(f, first), 0); /* more may come */
    close_engine(f);
    sql(db, "PRAGMA journal_mode=DELETE; PRAGMA page_size=1024; VACUUM; PRAGMA journal_mode=WAL");
    sql(db, "INSERT INTO jobs(name) VALUES('three')");
    open_engine(f);
    capture(f);
    epoch_of(f, second);
    assert_memory_not_equal(first, second, sizeof first);
    write_segment(f, second, 1024, 3, 3, 0, true);
    write_segment(f, second, 1024, 4, 6, 0, true);
    ship(f);
    assert_int_equal(stored(f, first), 1);
    assert_int_equal(stored(f, second), 2);
    assert_int_equal(access(segment(f, first, 1, "tx"), F_OK), -1);
    assert_int_equal(access(segment(f, second, 3, "tx"), F_OK), 0); /* newer than the hashes */
    sqlite3_close(db);
    fixture_free(f);
}

/* What a capture that has not begun will need to go on is not known yet. */
static void nothing_is_removed_before_a_capture_began(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    uint8_t epoch[BK_EPOCH_SIZE];
    bk_err_t err = {0};
    bk_txlog_writer_t *log;
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    epoch_of(f, epoch);
    sql(db, "INSERT INTO jobs(name) VALUES('one')");
    capture(f);
    sqlite3_close(db);
    close_engine(f);
    OK(bk_txlog_reopen(segment(f, epoch, 1, "tx"), &log, &err), &err);
    OK(bk_txlog_seal(log, &err), &err);
    assert_int_equal(rename(at(f, "app"), at(f, "away")), 0);
    open_engine(f);
    assert_int_equal(step_all(f, &err), BK_NOT_FOUND);
    ship(f);
    assert_int_equal(stored(f, epoch), 1);
    assert_int_equal(access(segment(f, epoch, 1, "tx"), F_OK), 0);
    fixture_free(f);
}

/* For as long as somebody says so, whoever owns the set. */
static void a_detached_database_is_let_go_of(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    bk_err_t err = {0};
    json_t *answer, *status;
    sqlite3 *db = open_db(f, "app/app.db");
    sqlite3_busy_timeout(db, 0);
    capture(f);
    sql(db, "INSERT INTO jobs(name) VALUES('one')");
    capture(f);
    assert_int_equal(sqlite3_exec(db, "PRAGMA journal_mode=DELETE", NULL, NULL, NULL), SQLITE_BUSY);
    assert_int_equal(bk_engine_detach(f->engine, "none", true, &answer, &err), BK_NOT_FOUND);
    OK(bk_engine_detach(f->engine, "main", true, &answer, &err), &err);
    assert_true(json_is_true(json_object_get(answer, "detached")));
    json_decref(answer);
    for (unsigned round = 0; round < 2; round++) {
        OK(bk_engine_status(f->engine, NULL, NULL, &status, &err), &err);
        capture(f);
        json_t *one = json_array_get(member(status, "backup_system.database.captures"), 0);
        assert_true(json_is_false(json_object_get(one, "capturing")));
        assert_true(json_is_true(json_object_get(one, "detached")));
        json_decref(status);
        sql(db, "PRAGMA journal_mode=DELETE; INSERT INTO jobs(name) VALUES('unseen');"
                "PRAGMA journal_mode=WAL");
        close_engine(f); /* the next owner obeys as well */
        open_engine(f);
        bk_engine_capture_hold(f->engine);
    }
    OK(bk_engine_detach(f->engine, "main", false, &answer, &err), &err);
    json_decref(answer);
    OK(bk_engine_status(f->engine, NULL, NULL, &status, &err), &err);
    json_decref(status);
    capture(f);
    OK(bk_engine_status(f->engine, NULL, NULL, &status, &err), &err);
    json_t *one = json_array_get(member(status, "backup_system.database.captures"), 0);
    assert_true(json_is_true(json_object_get(one, "capturing")));
    assert_int_equal(json_integer_value(json_object_get(one, "gaps")), 1);
    json_decref(status);
    sqlite3_close(db);
    fixture_free(f);
}

/* --- what stays --- */

/* What is behind the backup that it begins with; its edge is in a_quiet_window_stays_whole. */
static void a_cleanup_leaves_the_window_whole(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    char id[BK_BACKUP_ID];
    uint8_t epoch[BK_EPOCH_SIZE];
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    epoch_of(f, epoch);
    for (unsigned i = 0; i < 3; i++) {
        sql(db, "INSERT INTO jobs(name) VALUES('old')");
        capture(f);
        ship_everything(f);
    }
    back_up(f, "incremental", id);
    int64_t edge = a_moment_later();
    for (unsigned i = 0; i < 2; i++) {
        sql(db, "INSERT INTO jobs(name) VALUES('new')");
        capture(f);
    }
    ship_everything(f);
    int64_t seen = a_moment_later();
    capture(f);
    assert_int_equal(stored(f, epoch), 4);
    f->set.dbs[0].pitr_window = (uint64_t)((bk_now() - edge) / BK_MS);
    json_t *job = do_job(f, BK_JOB_CLEANUP, "{}", "completed");
    assert_true(int_of(job, "cleanup_result.segments_deleted") >= 2);
    assert_true(stored(f, epoch) >= 1);
    done(job);
    assert_int_equal(rows_at(f, seen), 505);
    bk_timeline_filter_t filter = {.database = "main"};
    bk_err_t err = {0};
    json_t *answer;
    OK(bk_engine_timeline(f->engine, &filter, NULL, &answer, &err), &err);
    assert_true(json_is_true(member(answer, "databases.0.windows.0.recoverable")));
    json_decref(answer);
    sqlite3_close(db);
    fixture_free(f);
}

/* The window has moved on, and nothing was committed in it. */
static void before_the_first_transaction_there_is_the_backup_that_it_changed(void **state)
{
    (void)state;
    fixture_t *f = captured(false);
    char id[BK_BACKUP_ID];
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    int64_t before = a_moment_later();
    capture(f);
    sql(db, "INSERT INTO jobs(name) VALUES('new')");
    back_up(f, "full", id); /* of what it left behind, maybe before the capture looked */
    capture(f);
    int64_t after = a_moment_later();
    capture(f);
    bk_ctl_init(&f->ctl);
    assert_int_equal(rows_at(f, before), 500);
    assert_int_equal(rows_at(f, after), 501);
    sqlite3_close(db);
    fixture_free(f);
}

static void a_quiet_window_stays_whole(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    char id[BK_BACKUP_ID], body[256], time[BK_TIME_TEXT];
    uint8_t epoch[BK_EPOCH_SIZE];
    bk_err_t err = {0};
    json_t *more;
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    /* Of a capture that has seen nothing yet. */
    bk_time_format_exact(time, a_moment_later());
    capture(f);
    bk_fmt(body, sizeof body, "{\"recovery_type\": \"database\", \"point_in_time\": \"%s\"}", time);
    json_t *request = json(body);
    bk_ctl_init(&f->ctl);
    assert_int_equal(bk_engine_check(f->engine, BK_JOB_RECOVERY, request, &f->ctl, &more, &err),
                     BK_INVALID);
    assert_contains(err.text, "it is captured, and nothing was committed up to");
    json_decref(request);
    json_decref(more);
    epoch_of(f, epoch);
    sql(db, "INSERT INTO jobs(name) VALUES('old')");
    capture(f);
    sql(db, "INSERT INTO jobs(name) VALUES('old')");
    capture(f);
    back_up(f, "incremental", id);
    ship_everything(f);
    int64_t edge = a_moment_later(), later = a_moment_later();
    capture(f);
    f->set.dbs[0].pitr_window = (uint64_t)((bk_now() - edge) / BK_MS);
    done(do_job(f, BK_JOB_CLEANUP, "{}", "completed"));
    assert_int_equal(stored(f, epoch), 1);
    assert_int_equal(rows_at(f, edge), 502);
    assert_int_equal(rows_at(f, later), 502);
    sqlite3_close(db);
    fixture_free(f);
}

/* The capture has begun another one: no time behind its last transaction can be had. */
static void a_history_that_ended_goes(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    char id[BK_BACKUP_ID];
    uint8_t epoch[BK_EPOCH_SIZE];
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    epoch_of(f, epoch);
    sql(db, "INSERT INTO jobs(name) VALUES('old')");
    capture(f);
    ship_everything(f);
    close_engine(f);
    assert_int_equal(unlink(at(f, "base/wal/main/hashes")), 0); /* a base_dir that was lost */
    assert_int_equal(unlink(at(f, "base/wal/main/covered")), 0);
    open_engine(f);
    capture(f);
    back_up(f, "incremental", id);
    (void)a_moment_later();
    capture(f);
    f->set.dbs[0].pitr_window = 1;
    done(do_job(f, BK_JOB_CLEANUP, "{}", "completed"));
    assert_int_equal(stored(f, epoch), 0);
    sqlite3_close(db);
    fixture_free(f);
}

/* From the storage alone nobody knows when the capture ended: it says what it gives. */
static void without_base_dir_the_last_transaction_is_told(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    bk_err_t err = {0};
    bk_opened_t opened;
    bk_point_t point;
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    sql(db, "INSERT INTO jobs(name) VALUES('one')");
    capture(f);
    ship_everything(f);
    bk_ctl_init(&f->ctl);
    OK(bk_engine_open_repo(f->engine, false, &f->ctl, &opened, &err), &err);
    bk_point_wish_t wish = {.time = bk_now(), .set = "app", .database = "main", .databases = true};
    OK(bk_point_find(opened.repo, &wish, &f->ctl, &point, &err), &err);
    assert_int_equal(f->ctl.notes_total, 1);
    assert_contains(f->ctl.notes[0], "the last one on the storage");
    bk_point_close(&point);
    bk_engine_close_repo(&opened);
    bk_ctl_free(&f->ctl);
    sqlite3_close(db);
    fixture_free(f);
}

/* What is marked: the first letter of each backup.  Those in provisional may not last. */
static void assert_kept(fixture_t *f, int64_t since, const char *provisional, const char *backups,
                        uint64_t segments)
{
    static char name[] = "main", set[] = "app";
    static const uint64_t digests[] = {100, 103, 201, 204};
    bk_err_t err = {0};
    bk_opened_t opened;
    bk_moments_t *moments;
    bk_snapshot_t snapshots[4];
    bk_snapshot_db_t dbs[4];
    bool begins[4] = {0};
    uint64_t removed = 0;
    char got[5] = "";
    for (unsigned i = 0; i < 4; i++) {
        dbs[i] = (bk_snapshot_db_t){.name = name, .digest = digests[i], .page_count = 1};
        snapshots[i] = (bk_snapshot_t){.set = set,
                                       .dbs = &dbs[i],
                                       .db_count = 1,
                                       .provisional = strchr(provisional, 'A' + (int)i) != NULL};
    }
    bk_snapshot_list_t list = {.items = snapshots, .count = 4};
    OK(bk_engine_open_repo(f->engine, false, NULL, &opened, &err), &err);
    OK(bk_moments_open(NULL, "app", "main", opened.repo, NULL, &moments, &err), &err);
    OK(bk_moments_keep(moments, since, &list, begins, &err), &err);
    OK(bk_moments_remove(moments, true, &removed, &err), &err);
    for (unsigned i = 0; i < 4; i++)
        if (begins[i])
            got[strlen(got)] = (char)('A' + i);
    assert_string_equal(got, backups);
    assert_int_equal(removed, segments);
    bk_moments_free(moments);
    bk_engine_close_repo(&opened);
}

/* Two epochs, of each a backup is needed as long as the window reaches into it. */
static void each_epoch_of_a_window_keeps_a_backup(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    uint8_t current[BK_EPOCH_SIZE];
    const int64_t one = 1000 * BK_SEC, two = 2000 * BK_SEC;
    capture(f); /* so that these epochs are over */
    epoch_of(f, current);
    for (uint64_t i = 1; i <= 5; i++) {
        write_segment(f, E1, 4096, i, i, one + (int64_t)i * BK_SEC, true);
        write_segment(f, E2, 4096, i, i, two + (int64_t)i * BK_SEC, true);
    }
    ship(f);
    assert_int_equal(stored(f, E1), 5);
    assert_kept(f, one, "", "AC", 0);               /* A at 0; of the second the oldest, C, at 1 */
    assert_kept(f, one + 4 * BK_SEC, "", "BC", 3);  /* B at 3 */
    assert_kept(f, one + 4 * BK_SEC, "B", "AC", 0); /* nothing goes for the sake of B */
    assert_kept(f, two, "", "BC", 3);               /* nothing was committed since */
    assert_kept(f, one + 3 * BK_SEC, "", "BC", 2);  /* that transaction is in the window */
    assert_kept(f, two + 2 * BK_SEC, "", "C", 6);   /* the first epoch is over */
    assert_kept(f, two + 50 * BK_SEC, "", "D", 5 + 4);
    fixture_free(f);
}

static void a_backup_that_a_window_begins_with_cannot_be_deleted(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    bk_err_t err = {0};
    char id[BK_BACKUP_ID], later[BK_BACKUP_ID], body[128];
    json_t *more;
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    back_up(f, "full", id);
    sql(db, "INSERT INTO jobs(name) VALUES('one')");
    capture(f);
    back_up(f, "full", later);
    bk_fmt(body, sizeof body, "{\"backup_id\": \"%s\"}", id);
    json_t *request = json(body);
    assert_int_equal(bk_engine_check(f->engine, BK_JOB_DELETE, request, NULL, &more, &err),
                     BK_CONFLICT);
    assert_contains(err.text, "begin with it");
    json_decref(request);
    json_t *job = do_job(f, BK_JOB_DELETE, body, "failed");
    done(job);
    bk_fmt(body, sizeof body, "{\"backup_id\": \"%s\"}", later);
    done(do_job(f, BK_JOB_DELETE, body, "completed"));
    sqlite3_close(db);
    fixture_free(f);
}

/* No pitr_window any more. */
static void what_was_captured_once_goes_with_retention(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    uint8_t epoch[BK_EPOCH_SIZE];
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    epoch_of(f, epoch);
    sql(db, "INSERT INTO jobs(name) VALUES('one')");
    capture(f);
    ship_everything(f);
    assert_int_equal(stored(f, epoch), 1);
    f->set.dbs[0].pitr_window = 0;
    f->set.retention_db = 3600 * 1000;
    done(do_job(f, BK_JOB_CLEANUP, "{}", "completed"));
    assert_int_equal(stored(f, epoch), 1);
    f->set.retention_db = 1;
    done(do_job(f, BK_JOB_CLEANUP, "{}", "completed"));
    assert_int_equal(stored(f, epoch), 0);
    sqlite3_close(db);
    fixture_free(f);
}

/* --- proofs --- */

static const char *status_of(json_t *job, const char *name)
{
    size_t i;
    json_t *check;
    json_array_foreach(member(job, "validation_result.checks"), i, check)
    {
        if (strcmp(text_of(check, "name"), name) == 0)
            return text_of(check, "status");
    }
    return "(none)";
}

static void a_moment_with_damage_is_not_valid(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    bk_err_t err = {0};
    bk_opened_t opened;
    bk_history_list_t list;
    char path[BK_STORAGE_NAME + 16] = "storage/";
    sqlite3 *db = open_db(f, "app/app.db");
    capture(f);
    sql(db, "CREATE TABLE of(job REFERENCES jobs(id)); INSERT INTO of VALUES(99999)");
    capture(f);
    ship_everything(f);
    const char *body = "{\"transaction\": 2, \"database\": \"main\"}";
    json_t *job = do_job(f, BK_JOB_VALIDATE, body, "completed");
    assert_string_equal(status_of(job, "recover database main"), "pass");
    assert_string_equal(status_of(job, "foreign keys of database main"), "warn");
    done(job);
    OK(bk_engine_open_repo(f->engine, false, NULL, &opened, &err), &err);
    OK(bk_history_list(opened.repo, "app.main", NULL, NULL, &list, &err), &err);
    assert_int_equal(list.count, 1);
    bk_history_object(path + strlen(path), &list.items[0]);
    bk_history_list_free(&list);
    bk_engine_close_repo(&opened);
    assert_int_equal(chmod(at(f, path), 0600), 0);
    int fd = open(at(f, path), O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "!", 1, 300), 1);
    close(fd);
    char id[BK_JOB_ID];
    OK(submit(f, BK_JOB_VALIDATE, body, id), &f->err);
    assert_int_equal(run_next(f, id), BK_STATUS_FAILED);
    job = job_of(f, id);
    assert_false(json_is_true(member(job, "validation_result.valid")));
    done(job);
    sqlite3_close(db);
    fixture_free(f);
}

/* What the configuration says must be true of a database. */
static void what_is_required_holds_before_a_recovery(void **state)
{
    (void)state;
    fixture_t *f = captured(true);
    bk_err_t err = {0};
    sqlite3 *db = open_db(f, "app/app.db");
    OK(bk_set_add_text(&f->set.dbs[0].checks, "SELECT count(*) = 500 FROM jobs", &err), &err);
    json_t *job = do_job(f, BK_JOB_VALIDATE, "{\"backup_id\": \"latest\"}", "completed");
    done(job);
    OK(bk_set_add_text(&f->set.dbs[0].checks, "SELECT count(*) > 500 FROM jobs", &err), &err);
    job = do_job(f, BK_JOB_VALIDATE, "{\"backup_id\": \"latest\"}", "failed");
    assert_string_equal(status_of(job, "recover database main"), "fail");
    done(job);
    sql(db, "DELETE FROM jobs");
    job = do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"database\"}", "failed");
    assert_contains(text_of(job, "error"), "count(*) > 500");
    done(job);
    assert_int_equal(number(db, "SELECT count(*) FROM jobs"), 0);
    bk_opened_t opened;
    bk_snapshot_list_t list;
    char body[256];
    OK(bk_engine_open_repo(f->engine, false, NULL, &opened, &err), &err);
    OK(bk_snapshot_list(opened.repo, NULL, NULL, &list, &err), &err);
    bk_fmt(body, sizeof body,
           "{\"recovery_type\": \"database\", \"verify\": false, \"backup_id\": \"%s\"}",
           list.items[0].backup_id);
    bk_snapshot_list_free(&list);
    bk_engine_close_repo(&opened);
    done(do_job(f, BK_JOB_RECOVERY, body, "completed"));
    assert_int_equal(number(db, "SELECT count(*) FROM jobs"), 500);
    sqlite3_close(db);
    fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_time_means_the_last_transaction_of_its_epoch),
        cmocka_unit_test(a_refusal_names_moments_that_can_be_had),
        cmocka_unit_test(a_later_epoch_begins_with_its_backup),
        cmocka_unit_test(a_hole_is_told),
        cmocka_unit_test(an_epoch_after_another_is_shipped_as_well),
        cmocka_unit_test(nothing_is_removed_before_a_capture_began),
        cmocka_unit_test(a_detached_database_is_let_go_of),
        cmocka_unit_test(a_cleanup_leaves_the_window_whole),
        cmocka_unit_test(before_the_first_transaction_there_is_the_backup_that_it_changed),
        cmocka_unit_test(a_quiet_window_stays_whole),
        cmocka_unit_test(a_history_that_ended_goes),
        cmocka_unit_test(without_base_dir_the_last_transaction_is_told),
        cmocka_unit_test(a_moment_with_damage_is_not_valid),
        cmocka_unit_test(what_is_required_holds_before_a_recovery),
        cmocka_unit_test(each_epoch_of_a_window_keeps_a_backup),
        cmocka_unit_test(a_backup_that_a_window_begins_with_cannot_be_deleted),
        cmocka_unit_test(what_was_captured_once_goes_with_retention),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
