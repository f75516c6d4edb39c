/*
 * t/unit/sqlite/past_test.c: a base and transactions, shown page by page and through SQLite, are
 * the database as it was after each of them; what is missing or damaged is told, and never shown as
 * something else.
 */
#include <fcntl.h>
#include <unistd.h>

#include "base/publish.h"
#include "repo/map.h"
#include "sqlite/blocks.h"
#include "sqlite/connect.h"
#include "sqlite/past.h"
#include "sqlite/query.h"
#include "sqlite/replay.h"
#include "sqlite/source.h"
#include "sqlite/vfs.h"
#include "unit/sqlite/sqlite_testing.h"

#define SEGMENTS 64u
#define STATES   400u

typedef struct {
    uint8_t *pages;
    uint64_t count, digest;
} state_t;

/* A database's life: state n is what transaction n left behind. */
typedef struct {
    char *dir;
    uint32_t page_size;
    state_t states[STATES];
    uint64_t txid; /* last */
    bk_txlog_writer_t *writer;
    size_t segments, opened;
    bool absent[SEGMENTS];
    unsigned reads; /* of segments that stand for a storage far away, and of the base */
    uint64_t bytes;
    bool gone; /* what is open of them is not there any more; opened anew it is */
    bk_ctl_t ctl;
    bk_err_t err;
} life_t;

static int set_up(void **state)
{
    life_t *life = calloc(1, sizeof *life);
    life->dir = test_dir();
    life->page_size = 512;
    bk_ctl_init(&life->ctl);
    *state = life;
    return 0;
}

static int tear_down(void **state)
{
    life_t *life = *state;
    assert_int_equal(life->opened, 0);
    bk_txlog_close(life->writer);
    for (size_t i = 0; i < STATES; i++)
        free(life->states[i].pages);
    bk_ctl_free(&life->ctl);
    test_dir_remove(life->dir);
    free(life);
    return 0;
}

static const char *segment_path(const life_t *life, size_t at, char out[300])
{
    snprintf(out, 300, "%s/%zu.tx", life->dir, at);
    return out;
}

static const uint8_t *page_of(const life_t *life, const state_t *s, uint64_t pgno)
{
    return s->pages + (pgno - 1) * life->page_size;
}

static void sum_up(const life_t *life, state_t *s)
{
    s->digest = 0;
    for (uint64_t pgno = 1; pgno <= s->count; pgno++)
        s->digest ^= bk_db_page_hash(pgno, page_of(life, s, pgno), life->page_size);
}

/* The next state, as a transaction of the pages that differ.  What grows as zeros is not among
 * them. */
static void commit(life_t *life, uint8_t *pages, uint64_t count)
{
    const state_t *old = &life->states[life->txid];
    state_t *new = &life->states[++life->txid];
    char path[300];
    *new = (state_t){.pages = pages, .count = count};
    sum_up(life, new);
    if (life->writer == NULL) {
        bk_txlog_info_t info = {.epoch = {1}, .page_size = life->page_size, .first = life->txid};
        OK(bk_txlog_create(segment_path(life, life->segments++, path), &info, &life->writer,
                           &life->err),
           &life->err);
    }
    bk_tx_t tx = {.txid = life->txid,
                  .page_count = count,
                  .t_hi = (int64_t)life->txid,
                  .before = old->digest,
                  .after = new->digest};
    uint8_t *zeros = calloc(1, life->page_size);
    OK(bk_txlog_begin(life->writer, &life->err), &life->err);
    for (uint64_t pgno = 1; pgno <= count; pgno++) {
        const uint8_t *was = pgno <= old->count ? page_of(life, old, pgno) : zeros;
        if (memcmp(was, page_of(life, new, pgno), life->page_size) != 0)
            OK(bk_txlog_page(life->writer, (uint32_t)pgno, page_of(life, new, pgno), &life->err),
               &life->err);
    }
    OK(bk_txlog_end(life->writer, &tx, &life->err), &life->err);
    free(zeros);
}

static void seal(life_t *life)
{
    OK(bk_txlog_seal(life->writer, &life->err), &life->err);
    life->writer = NULL;
}

/* --- what a past state is read from --- */

/* A segment far away: each read is counted. */
typedef struct {
    life_t *life;
    int fd;
    bool gone;
} remote_t;

static bk_rc_t remote_read(void *arg, uint64_t offset, void *out, size_t len, bk_err_t *err)
{
    remote_t *remote = arg;
    remote->gone = remote->gone || remote->life->gone;
    if (remote->gone)
        return bk_err_set(err, BK_NOT_FOUND, "it is gone");
    remote->life->reads++;
    remote->life->bytes += len;
    assert_int_equal(pread(remote->fd, out, len, (off_t)offset), len);
    return BK_OK;
}

static void remote_close(void *arg)
{
    remote_t *remote = arg;
    close(remote->fd);
    free(remote);
}

static bk_rc_t open_remote(life_t *life, const char *path, bk_txlog_t **log, bk_err_t *err)
{
    remote_t *remote = calloc(1, sizeof *remote);
    remote->life = life;
    life->gone = false;
    remote->fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(remote->fd >= 0);
    bk_txlog_source_t source = {.read = remote_read,
                                .close = remote_close,
                                .arg = remote,
                                .size = (uint64_t)lseek(remote->fd, 0, SEEK_END)};
    return bk_txlog_open(&source, log, err);
}

static bk_rc_t open_segment(void *arg, size_t at, bk_txlog_t **log, bk_err_t *err)
{
    life_t *life = arg;
    char path[300];
    for (size_t i = 0; i <= at; i++)
        at += life->absent[i];
    bk_rc_t rc = bk_txlog_open_file(segment_path(life, at, path), log, err);
    life->opened += rc == BK_OK;
    return rc;
}

static void close_segment(void *arg, size_t at, bk_txlog_t *log)
{
    life_t *life = arg;
    (void)at;
    life->opened--;
    bk_txlog_free(log);
}

typedef struct {
    const life_t *life;
    const state_t *state;
} base_t;

static bk_rc_t base_page(void *arg, uint64_t pgno, uint8_t *out, bk_err_t *err)
{
    const base_t *base = arg;
    (void)err;
    assert_in_range(pgno, 1, base->state->count);
    memcpy(out, page_of(base->life, base->state, pgno), base->life->page_size);
    return BK_OK;
}

static bk_rc_t open_far(void *arg, size_t at, bk_txlog_t **log, bk_err_t *err)
{
    life_t *life = arg;
    char path[300];
    bk_rc_t rc = open_remote(life, segment_path(life, at, path), log, err);
    life->opened += rc == BK_OK;
    return rc;
}

static bk_rc_t try_past(life_t *life, base_t *base, uint64_t from, uint64_t to, bk_past_t **past)
{
    size_t absent = 0;
    for (size_t i = 0; i < SEGMENTS; i++)
        absent += life->absent[i];
    *base = (base_t){life, &life->states[from]};
    bk_past_base_t b = {.page = base_page,
                        .arg = base,
                        .txid = from,
                        .page_count = base->state->count,
                        .digest = base->state->digest,
                        .page_size = life->page_size};
    bk_past_segments_t segments = {.open = open_segment,
                                   .close = close_segment,
                                   .arg = life,
                                   .count = life->segments - absent};
    bk_err_clear(&life->err);
    return bk_past_open(&b, &segments, to, &life->ctl, past, &life->err);
}

/* A database that no SQLite wrote: any page may change, the end goes up and down. */
static void live(life_t *life, unsigned transactions, uint64_t seed)
{
    uint8_t *pages = calloc(40, life->page_size);
    test_fill(pages, 40 * (size_t)life->page_size, seed);
    life->states[0] = (state_t){.pages = pages, .count = 40};
    sum_up(life, &life->states[0]);
    for (unsigned i = 0; i < transactions; i++) {
        const state_t *old = &life->states[life->txid];
        uint64_t r = chaos_random(&seed), count = old->count;
        if (r % 3 == 0)
            count = 20 + (r >> 8) % 50;
        pages = calloc(count, life->page_size);
        memcpy(pages, old->pages, (count < old->count ? count : old->count) * life->page_size);
        for (unsigned n = (unsigned)(r >> 32) % 6; n > 0; n--)
            test_fill(pages + chaos_random(&seed) % count * life->page_size, life->page_size,
                      chaos_random(&seed));
        commit(life, pages, count);
        if (r % 11 == 0)
            seal(life);
    }
}

static void compare(life_t *life, bk_past_t *past, uint64_t txid)
{
    const state_t *s = &life->states[txid];
    uint8_t page[512];
    assert_int_equal(bk_past_page_count(past), s->count);
    for (uint64_t pgno = s->count; pgno > 0; pgno--) {
        OK(bk_past_page(past, pgno, page, &life->err), &life->err);
        assert_memory_equal(page, page_of(life, s, pgno), life->page_size);
    }
    assert_int_equal(bk_past_page(past, s->count + 1, page, &life->err), BK_INVALID);
}

static void every_transaction_is_as_it_was_from_any_base(void **state)
{
    life_t *life = *state;
    base_t base;
    bk_past_t *past;
    live(life, STATES - 1, 1);
    for (uint64_t from = 0; from < STATES; from += 57)
        for (uint64_t to = from; to < STATES; to++) {
            OK(try_past(life, &base, from, to, &past), &life->err);
            compare(life, past, to);
            OK(bk_past_check(past, &life->err), &life->err);
            bk_past_free(past);
        }
}

/* The last state, from a storage far away. */
static bk_past_t *far_past(life_t *life, base_t *base)
{
    bk_past_t *past;
    *base = (base_t){life, &life->states[0]};
    bk_past_base_t b = {.page = base_page,
                        .arg = base,
                        .page_count = base->state->count,
                        .digest = base->state->digest,
                        .page_size = life->page_size};
    bk_past_segments_t segments = {
        .open = open_far, .close = close_segment, .arg = life, .count = life->segments};
    OK(bk_past_open(&b, &segments, life->txid, &life->ctl, &past, &life->err), &life->err);
    return past;
}

/* Opening costs each segment's header, trailer and index, a page what it lies in, whatever came
 * before. */
static void a_page_of_a_long_history_costs_few_reads(void **state)
{
    life_t *life = *state;
    base_t base;
    uint8_t page[512];
    live(life, STATES - 1, 5);
    if (life->writer != NULL)
        seal(life);
    bk_past_t *past = far_past(life, &base);
    assert_true(life->segments > 20);
    assert_true(life->reads <= 3 * life->segments);
    for (uint64_t pgno = 1; pgno <= bk_past_page_count(past); pgno++) {
        unsigned before = life->reads;
        uint64_t bytes = life->bytes;
        OK(bk_past_page(past, pgno, page, &life->err), &life->err);
        assert_true(life->reads - before <= 4); /* opened anew, and the record with the page */
        assert_true(life->bytes - bytes < 64 << 10);
    }
    bk_past_free(past);
}

/* Segments are merged into others while they are read. */
static void what_is_gone_is_opened_once_more(void **state)
{
    life_t *life = *state;
    base_t base;
    live(life, STATES - 1, 6);
    if (life->writer != NULL)
        seal(life);
    bk_past_t *past = far_past(life, &base);
    const state_t *s = &life->states[life->txid];
    uint8_t page[512];
    for (uint64_t pgno = s->count; pgno > 0; pgno--) {
        life->gone = true;
        OK(bk_past_page(past, pgno, page, &life->err), &life->err);
        assert_memory_equal(page, page_of(life, s, pgno), life->page_size);
    }
    bk_past_free(past);
}

/* The same as a file, brought forward at once. */
static void an_image_is_brought_forward(void **state)
{
    life_t *life = *state;
    base_t base;
    bk_past_t *past;
    char path[300];
    snprintf(path, sizeof path, "%s/image.db", life->dir);
    live(life, STATES - 1, 6);
    for (uint64_t from = 0; from < STATES; from += 61)
        for (uint64_t to = from; to < STATES; to += 7) {
            const state_t *old = &life->states[from], *new = &life->states[to];
            size_t got, bytes = new->count * life->page_size;
            struct stat st;
            bk_replay_t image = {.fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600),
                                 .path = path,
                                 .page_size = life->page_size,
                                 .page_count = old->count,
                                 .digest = old->digest};
            OK(bk_pwrite_all(image.fd, old->pages, old->count * life->page_size, 0, path,
                             &life->err),
               &life->err);
            OK(try_past(life, &base, from, to, &past), &life->err);
            OK(bk_replay(&image, past, &life->err), &life->err);
            assert_int_equal(fstat(image.fd, &st), 0);
            assert_int_equal(st.st_size, bytes);
            uint8_t *now = malloc(bytes);
            OK(bk_pread_all(image.fd, now, bytes, 0, &got, path, &life->err), &life->err);
            assert_memory_equal(now, new->pages, bytes);
            free(now);
            bk_past_free(past);
            close(image.fd);
        }
    OK(try_past(life, &base, 0, 9, &past), &life->err);
    bk_replay_t other = {.fd = open(path, O_RDWR | O_CLOEXEC),
                         .path = path,
                         .page_size = life->page_size,
                         .page_count = life->states[0].count,
                         .digest = life->states[0].digest ^ 1};
    assert_int_equal(bk_replay(&other, past, &life->err), BK_CORRUPT);
    close(other.fd);
    bk_past_free(past);
}

static void what_is_missing_is_named(void **state)
{
    life_t *life = *state;
    base_t base;
    bk_past_t *past;
    char path[300];
    bk_txlog_t *log;
    live(life, 200, 2);
    OK(bk_txlog_open_file(segment_path(life, 3, path), &log, &life->err), &life->err);
    uint64_t first = bk_txlog_info(log)->first, last = first + bk_txlog_count(log) - 1;
    bk_txlog_free(log);
    life->absent[3] = true;
    char wanted[100];
    snprintf(wanted, sizeof wanted, "transaction %llu is missing", (unsigned long long)last);
    assert_int_equal(try_past(life, &base, 0, 200, &past), BK_NOT_FOUND);
    assert_non_null(strstr(life->err.text, wanted));
    assert_int_equal(try_past(life, &base, 0, last, &past), BK_NOT_FOUND);
    OK(try_past(life, &base, 0, first - 1, &past), &life->err);
    bk_past_free(past);
    OK(try_past(life, &base, last, 200, &past), &life->err);
    bk_past_free(past);
    assert_int_equal(try_past(life, &base, 0, 201, &past), BK_NOT_FOUND);
}

static void another_base_is_refused(void **state)
{
    life_t *life = *state;
    base_t base;
    bk_past_t *past;
    live(life, 50, 3);
    life->states[10].digest ^= 1;
    assert_int_equal(try_past(life, &base, 10, 50, &past), BK_CORRUPT);
    assert_non_null(strstr(life->err.text, "transaction 11 does not follow"));
}

/* Only one who reads the page sees it; then by its checksum. */
static void a_damaged_page_is_not_shown(void **state)
{
    life_t *life = *state;
    base_t base;
    bk_past_t *past;
    bk_vfs_image_t *image;
    char path[300];
    sqlite3 *db;
    live(life, 29, 4);
    if (life->writer != NULL)
        seal(life);
    uint8_t *pages = malloc(30 * 512);
    test_fill(pages, 30 * 512, 1);
    commit(life, pages, 30);
    seal(life);
    spoil(segment_path(life, life->segments - 1, path), 48 + 100 + 30 * 4 + 1000, "spoiled");
    OK(try_past(life, &base, 0, 30, &past), &life->err);
    assert_int_equal(bk_past_check(past, &life->err), BK_CORRUPT);
    OK(bk_vfs_show(past, &image, &life->err), &life->err);
    assert_int_equal(bk_vfs_failure(image, BK_FAILED, &life->err), BK_FAILED);
    assert_int_equal(bk_db_open_uri(bk_vfs_uri(image), &db, &life->err), BK_IO);
    assert_int_equal(bk_vfs_failure(image, BK_IO, &life->err), BK_CORRUPT);
    assert_non_null(strstr(life->err.text, "damaged"));
    bk_vfs_hide(image);
    bk_past_free(past);
}

/* --- through SQLite --- */

static void take(life_t *life, const char *path)
{
    size_t got;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(fstat(fd, &st), 0);
    uint8_t *pages = malloc((size_t)st.st_size + 1);
    OK(bk_pread_all(fd, pages, (size_t)st.st_size, 0, &got, path, &life->err), &life->err);
    close(fd);
    if (life->states[0].pages == NULL) {
        life->states[0] =
            (state_t){.pages = pages, .count = (uint64_t)st.st_size / life->page_size};
        sum_up(life, &life->states[0]);
    } else {
        commit(life, pages, (uint64_t)st.st_size / life->page_size);
    }
}

static long ask(life_t *life, const char *uri, const char *sql)
{
    json_t *result;
    bk_db_select_t how = {.image = uri, .sql = sql};
    OK(bk_db_select(&how, &result, &life->ctl, &life->err), &life->err);
    long value = (long)json_integer_value(
        json_array_get(json_array_get(json_object_get(result, "rows"), 0), 0));
    json_decref(result);
    return value;
}

static void sql_sees_the_past(life_t *life, int page_size)
{
    char path[300], copy[300], uri[BK_DB_URI];
    base_t base;
    bk_past_t *past;
    uint64_t seed = (uint64_t)page_size;
    bool committed;
    life->page_size = (uint32_t)page_size;
    snprintf(path, sizeof path, "%s/app.db", life->dir);
    snprintf(copy, sizeof copy, "%s/copy.db", life->dir);
    assert_true(chaos_make(path, "wal", page_size, "none"));
    sqlite3 *db = open_db(path);
    run_sql(db, "PRAGMA journal_mode=WAL; PRAGMA wal_checkpoint(TRUNCATE)");
    take(life, path);
    int log = open("/dev/null", O_WRONLY | O_CLOEXEC);
    while (life->txid < 60) {
        assert_true(chaos_transaction(db, log, &seed, false, &committed));
        if (life->txid % 20 == 19)
            run_sql(db, "DELETE FROM t WHERE id % 3 > 0; VACUUM");
        run_sql(db, "PRAGMA wal_checkpoint(TRUNCATE)");
        take(life, path);
        if (life->txid % 17 == 0)
            seal(life);
    }
    close(log);
    sqlite3_close(db);
    for (uint64_t txid = 0; txid <= life->txid; txid += 3) {
        static const char *const questions[] = {
            "SELECT n FROM head", "SELECT count(*) FROM t", "SELECT sum(length(filler)) FROM t",
            "SELECT count(*) FROM t ORDER BY v", "SELECT count(*) FROM pragma_quick_check"};
        bk_vfs_image_t *image;
        const state_t *s = &life->states[txid];
        int fd = open(copy, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        OK(bk_pwrite_all(fd, s->pages, s->count * life->page_size, 0, copy, &life->err),
           &life->err);
        close(fd);
        OK(bk_db_image_uri(copy, uri, sizeof uri, &life->err), &life->err);
        OK(try_past(life, &base, txid > 30 ? 25 : 0, txid, &past), &life->err);
        OK(bk_vfs_show(past, &image, &life->err), &life->err);
        for (size_t i = 0; i < sizeof questions / sizeof *questions; i++)
            assert_int_equal(ask(life, bk_vfs_uri(image), questions[i]),
                             ask(life, uri, questions[i]));
        bk_vfs_hide(image);
        bk_past_free(past);
    }
}

static void sql_sees_the_past_512(void **state)
{
    sql_sees_the_past(*state, 512);
}

static void sql_sees_the_past_4096(void **state)
{
    sql_sees_the_past(*state, 4096);
}

static void sql_sees_the_past_65536(void **state)
{
    sql_sees_the_past(*state, 65536);
}

static void an_image_cannot_be_written_or_guessed(void **state)
{
    life_t *life = *state;
    base_t base;
    bk_past_t *past;
    bk_vfs_image_t *image;
    char path[300], uri[200];
    sqlite3 *db;
    snprintf(path, sizeof path, "%s/app.db", life->dir);
    life->page_size = 1024;
    assert_true(chaos_make(path, "delete", 1024, "none"));
    take(life, path);
    OK(try_past(life, &base, 0, 0, &past), &life->err);
    OK(bk_vfs_show(past, &image, &life->err), &life->err);
    snprintf(uri, sizeof uri, "%s", bk_vfs_uri(image));
    char *read_only = strstr(uri, "&mode=ro");
    *read_only = '\0'; /* also for one who does not ask for it */
    assert_int_equal(sqlite3_open_v2(uri, &db,
                                     SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI,
                                     NULL),
                     SQLITE_OK);
    assert_int_equal(query(db, "SELECT n FROM head"), 0);
    assert_int_equal(sqlite3_exec(db, "UPDATE head SET n=5", NULL, NULL, NULL), SQLITE_READONLY);
    assert_int_equal(sqlite3_exec(db, "VACUUM", NULL, NULL, NULL), SQLITE_READONLY);
    /* What needs room does not need it in the image. */
    run_sql(db, "PRAGMA temp_store=FILE; PRAGMA cache_size=5; CREATE TEMP TABLE big AS "
                "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<2000) "
                "SELECT i, randomblob(500) b FROM n; SELECT count(*) FROM big ORDER BY b");
    sqlite3_close(db);
    assert_true(bk_db_open_uri("file:0123?vfs=ngxbackup", &db, &life->err) != BK_OK);
    snprintf(uri, sizeof uri, "%s", bk_vfs_uri(image));
    bk_vfs_hide(image);
    assert_true(bk_db_open_uri(uri, &db, &life->err) != BK_OK);
    bk_past_free(past);
}

static void a_stop_is_obeyed(void **state)
{
    life_t *life = *state;
    base_t base;
    bk_past_t *past;
    live(life, 50, 5);
    OK(try_past(life, &base, 0, 50, &past), &life->err);
    bk_ctl_stop(&life->ctl, BK_CANCELED);
    assert_int_equal(bk_past_check(past, &life->err), BK_OK); /* too few pages to look */
    bk_past_free(past);
    assert_int_equal(try_past(life, &base, 0, 50, &past), BK_CANCELED);
}

/* --- the base, from a repository --- */

static void pages_come_from_the_repository(void **state)
{
    fixture_t f;
    char path[300], file[300];
    bk_snapshot_db_t db;
    bk_db_blocks_t *blocks;
    uint8_t page[4096], wanted[4096];
    (void)state;
    fixture_start(&f, true);
    assert_true(chaos_make(file_in(&f, "app.db", path), "delete", 4096, "none"));
    sqlite3 *app = open_db(path);
    run_sql(app,
            "PRAGMA secure_delete=ON; INSERT INTO t(v, filler) VALUES(1, randomblob(20000000)),"
            "(2, randomblob(3000000)); DELETE FROM t WHERE v = 1 AND id > 1");
    sqlite3_close(app);
    dump(&f, path, "full_1", &db);
    OK(materialise(&f, &db, file_in(&f, "image.db", file)), &f.err);
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    OK(bk_db_blocks_open(f.repo, &db, &f.ctl, &blocks, &f.err), &f.err);
    for (uint64_t i = 0, pgno = 1; i < 2 * db.page_count; i++) {
        OK(bk_db_blocks_page(blocks, pgno, page, &f.err), &f.err);
        assert_int_equal(pread(fd, wanted, sizeof wanted, (off_t)(pgno - 1) * 4096), 4096);
        assert_memory_equal(page, wanted, sizeof page);
        pgno = (pgno * 7 + 13) % db.page_count + 1;
    }
    bk_db_blocks_free(blocks);
    db.map.count++;
    assert_int_equal(bk_db_blocks_open(f.repo, &db, &f.ctl, &blocks, &f.err), BK_CORRUPT);
    close(fd);
    free_db(&db);
    fixture_end(&f);
}

#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(every_transaction_is_as_it_was_from_any_base),
        T(a_page_of_a_long_history_costs_few_reads),
        T(what_is_gone_is_opened_once_more),
        T(an_image_is_brought_forward),
        T(what_is_missing_is_named),
        T(another_base_is_refused),
        T(a_damaged_page_is_not_shown),
        T(sql_sees_the_past_512),
        T(sql_sees_the_past_4096),
        T(sql_sees_the_past_65536),
        T(an_image_cannot_be_written_or_guessed),
        T(a_stop_is_obeyed),
        cmocka_unit_test(pages_come_from_the_repository),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
