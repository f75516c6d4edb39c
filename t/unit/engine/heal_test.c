/*
 * t/unit/engine/heal_test.c: damaged packs: they replace nothing that is there, and the next backup
 * stores again what they lost.
 */
#include "unit/engine/recoveries.h"

static void put_noise(fixture_t *f, const char *name, size_t len)
{
    uint8_t *bytes = malloc(len);
    assert_non_null(bytes);
    test_fill(bytes, len, 5);
    OK(bk_publish_bytes(AT_FDCWD, at(f, name), 0644, bytes, len, false, &f->err), &f->err);
    free(bytes);
    bk_sleep_ms(60);
}

static bool same_file(fixture_t *f, const char *one, const char *other)
{
    bk_buf_t a, b;
    bk_buf_init(&a, 1u << 20);
    bk_buf_init(&b, 1u << 20);
    OK(bk_read_file(AT_FDCWD, at(f, one), &a, &f->err), &f->err);
    OK(bk_read_file(AT_FDCWD, at(f, other), &b, &f->err), &f->err);
    bool same = a.len == b.len && memcmp(a.data, b.data, a.len) == 0;
    bk_buf_free(&a);
    bk_buf_free(&b);
    return same;
}

static void damage_file(void *arg, const char *path, const struct stat *st)
{
    (void)arg;
    if (S_ISREG(st->st_mode))
        test_spoil(path, st->st_size / 2, "XXXXXXXX");
}

/* Damage in the middle of each pack. */
static void damage_packs(fixture_t *f, const char *dir)
{
    test_visit(at(f, dir), damage_file, NULL);
}

static void damage_never_replaces_what_is_there(void **state)
{
    fixture_t *f = *state;
    char id[BK_BACKUP_ID];
    unsigned files = 0;
    back_up(f, "full", id);
    done(do_job(
        f, BK_JOB_RECOVERY,
        body(f, "{\"recovery_type\": \"database\", \"target_directory\": \"@\"}", "restored/db"),
        "completed"));
    damage_packs(f, "storage/packs");
    json_t *job = do_job(f, BK_JOB_RECOVERY, "{\"recovery_type\": \"database\"}", "failed");
    assert_string_equal(text_of(job, "problem.code"), "Corrupt");
    done(job);
    assert_app_is_back(f);
    /* What is to be kept aside leaves its name only for something that is complete. */
    job = do_job(f, BK_JOB_RECOVERY,
                 body(f,
                      "{\"recovery_type\": \"database\", \"overwrite\": \"rename\","
                      " \"target_directory\": \"@\"}",
                      "restored/db"),
                 "failed");
    assert_string_equal(text_of(job, "problem.code"), "Corrupt");
    done(job);
    assert_int_equal(number_in(f, "restored/db/app.db", "SELECT count(*) FROM jobs"), 500);
    test_visit(at(f, "restored/db"), count_file, &files);
    assert_int_equal(files, 1); /* nothing unfinished is left beside it */
    json_t *check = do_job(f, BK_JOB_VERIFY, "{\"level\": 2}", "failed");
    assert_true(int_of(check, "verify_result.findings_total") > 0);
    done(check);
    check = do_job(f, BK_JOB_VALIDATE, "{\"deep\": true}", "failed");
    assert_true(json_is_false(member(check, "validation_result.valid")));
    done(check);
    json_t *health = NULL;
    OK(bk_engine_health(f->engine, &health, &f->err), &f->err);
    assert_string_equal(text_of(health, "status"), "fail");
    json_decref(health);
}

static void cut_off(void *arg, const char *path, const struct stat *st)
{
    (void)arg;
    if (S_ISREG(st->st_mode))
        assert_int_equal(truncate(path, st->st_size - 50), 0);
}

/* Into a directory: every file and the database are right. */
static void assert_recovers(fixture_t *f, const char *id, const char *target)
{
    char text[256], name[128];
    bk_fmt(text, sizeof text,
           "{\"recovery_type\": \"full\", \"backup_id\": \"%s\", \"target_directory\": \"@\"}", id);
    bk_fmt(name, sizeof name, "restored/%s", target);
    done(do_job(f, BK_JOB_RECOVERY, body(f, text, name), "completed"));
    bk_fmt(name, sizeof name, "restored/%s/app.db", target);
    assert_int_equal(number_in(f, name, "SELECT count(*) FROM jobs"), 500);
}

/* The next backup stores again what is lost, and by that the old ones are whole, too. */
static void heals(void **state, test_visit_fn harm, const char *type, unsigned level)
{
    fixture_t *f = *state;
    char before[BK_BACKUP_ID], after[BK_BACKUP_ID], text[32];
    json_t *health = NULL;
    put_noise(f, "app/uploads/long.wav", 700000);
    back_up(f, "full", before);
    test_visit(at(f, "storage/packs"), harm, NULL);
    test_visit(at(f, "storage/meta"), harm, NULL);
    bk_fmt(text, sizeof text, "{\"level\": %u}", level);
    json_t *job = do_job(f, BK_JOB_VERIFY, text, "failed");
    assert_contains(text_of(job, "verify_result.findings.0"), "/");
    assert_null(strstr(text_of(job, "verify_result.findings.0"), "no backup loses"));
    assert_contains(text_of(job, "error"), "a full backup stores again");
    done(job);
    close_engine(f);
    open_engine(f);
    bk_fmt(text, sizeof text, "{\"backup_type\": \"%s\"}", type);
    /* An incremental one notes that it could not read the tree before it. */
    job = do_job(f, BK_JOB_BACKUP, text, strcmp(type, "full") == 0 ? "completed" : "warning");
    bk_strcpy(after, sizeof after, text_of(job, "backup_id"));
    done(job);
    assert_recovers(f, before, "before");
    assert_recovers(f, after, "after");
    assert_true(same_file(f, "app/uploads/long.wav", "restored/before/uploads/long.wav"));
    /* The bad packs are still told of, but nobody needs them. */
    job = do_job(f, BK_JOB_VERIFY, "{\"level\": 3}", "warning");
    assert_contains(text_of(job, "warnings.0"), "no backup loses anything");
    done(job);
    OK(bk_engine_health(f->engine, &health, &f->err), &f->err);
    assert_string_not_equal(text_of(health, "status"), "fail");
    json_decref(health);
}

static void a_full_backup_heals_what_rotted(void **state)
{
    heals(state, damage_file, "full", 1);
}

static void a_full_backup_heals_what_was_cut_off(void **state)
{
    heals(state, cut_off, "full", 2);
}

static void an_incremental_backup_heals_what_rotted(void **state)
{
    heals(state, damage_file, "incremental", 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        T(damage_never_replaces_what_is_there),
        T(a_full_backup_heals_what_rotted),
        T(a_full_backup_heals_what_was_cut_off),
        T(an_incremental_backup_heals_what_rotted),
        cmocka_unit_test_setup_teardown(a_full_backup_heals_what_rotted, set_up_encrypted,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
