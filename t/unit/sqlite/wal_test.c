/*
 * Behaviours: a real log is read to exactly the frames its index vouches for; every single byte that matters, changed, is an
 * error; an index that is torn or of another version is no index.
 */
#include "sqlite/wal.h"
#include "unit/sqlite/sqlite_testing.h"

typedef struct {
    fixture_t f;
    char path[300], wal[310];
    uint8_t index[BK_WAL_INDEX_HEADER];
    bk_wal_header_t header;
    uint32_t frame_of[64];
} world_t;

static void ten_pages(const char *path)
{
    sqlite3 *db = open_db(path);
    run_sql(db, "PRAGMA page_size=1024; PRAGMA auto_vacuum=FULL; PRAGMA journal_mode=WAL; PRAGMA "
                "wal_autocheckpoint=0;"
                "CREATE TABLE t(v); INSERT INTO t VALUES(randomblob(5000)); DELETE FROM t;"
                "INSERT INTO t VALUES(randomblob(2000))");
}

static void start(world_t *w)
{
    char shm[310];
    size_t got;
    memset(w, 0, sizeof *w);
    fixture_start(&w->f, false);
    file_in(&w->f, "app.db", w->path);
    snprintf(w->wal, sizeof w->wal, "%s-wal", w->path);
    snprintf(shm, sizeof shm, "%s-shm", w->path);
    kill_hard(hold(ten_pages, w->path));
    int fd = open(shm, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    OK(bk_read_all(fd, w->index, sizeof w->index, &got, shm, &w->f.err), &w->f.err);
    assert_int_equal(got, sizeof w->index);
    close(fd);
    assert_true(bk_wal_index_parse(w->index, &w->header));
}

static bk_rc_t scan(world_t *w)
{
    int fd = open(w->wal, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    memset(w->frame_of, 0, sizeof w->frame_of);
    bk_rc_t rc = bk_wal_scan(fd, w->wal, &w->header, w->frame_of, &w->f.ctl, &w->f.err);
    close(fd);
    return rc;
}

static void a_real_log_is_read(void **state)
{
    world_t w;
    (void)state;
    start(&w);
    assert_int_equal(w.header.page_size, 1024);
    assert_in_range(w.header.frames, 5, 60);
    assert_in_range(w.header.pages, 3, 20);
    assert_int_equal(w.header.backfilled, 0);
    OK(scan(&w), &w.f.err);
    /* Page 1 is in the log; the last frame is the newest of some page; no page is beyond the end. */
    assert_true(w.frame_of[0] != 0);
    uint32_t newest = 0;
    for (uint32_t i = 0; i < 64; i++) {
        assert_true(i < w.header.pages || w.frame_of[i] == 0);
        newest = w.frame_of[i] > newest ? w.frame_of[i] : newest;
    }
    assert_int_equal(newest, w.header.frames);
    fixture_end(&w.f);
}

static void every_byte_of_the_index_header_counts(void **state)
{
    world_t w;
    bk_wal_header_t header;
    (void)state;
    start(&w);
    for (size_t i = 0; i < 2 * BK_WAL_INDEX_COPY; i++) {
        w.index[i] ^= 0x10;
        assert_false(bk_wal_index_parse(w.index, &header));
        w.index[i] ^= 0x10;
    }
    /* The same change in both copies, as a torn write never makes it: the checksum tells. */
    for (size_t i = 0; i < BK_WAL_INDEX_COPY; i++) {
        w.index[i] ^= 0x10;
        w.index[i + BK_WAL_INDEX_COPY] ^= 0x10;
        assert_false(bk_wal_index_parse(w.index, &header));
        w.index[i] ^= 0x10;
        w.index[i + BK_WAL_INDEX_COPY] ^= 0x10;
    }
    memset(w.index, 0, sizeof w.index);
    assert_false(bk_wal_index_parse(w.index, &header));
    fixture_end(&w.f);
}

static void every_frame_counts(void **state)
{
    world_t w;
    (void)state;
    start(&w);
    off_t end = (off_t)bk_wal_frame_offset(w.header.frames, 1024) + 1024;
    int fd = open(w.wal, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    for (off_t at = 0; at < end; at += at < 120 ? 1 : 97) {
        uint8_t byte;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        assert_int_equal(scan(&w), BK_CORRUPT);
        assert_true(w.f.err.text[0] != '\0');
        byte ^= 1;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    OK(scan(&w), &w.f.err);
    /* Cut off in the last frame; then what lies behind the last one is of no interest. */
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(ftruncate(fd, end - 1), 0);
    assert_int_equal(scan(&w), BK_CORRUPT);
    close(fd);
    fixture_end(&w.f);
}

static void frames_behind_the_index_are_not_looked_at(void **state)
{
    world_t w;
    char junk[3000];
    (void)state;
    start(&w);
    memset(junk, 'x', sizeof junk);
    junk[sizeof junk - 1] = '\0';
    spoil(w.wal, (off_t)bk_wal_frame_offset(w.header.frames, 1024) + 1024, junk);
    OK(scan(&w), &w.f.err);
    /* Fewer frames, with the checksum of the last one kept: the chain does not end there. */
    w.header.frames--;
    assert_int_equal(scan(&w), BK_CORRUPT);
    fixture_end(&w.f);
}

static void a_scan_can_be_stopped(void **state)
{
    world_t w;
    (void)state;
    start(&w);
    bk_ctl_stop(&w.f.ctl, BK_CANCELED);
    assert_int_equal(scan(&w), BK_CANCELED);
    fixture_end(&w.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_real_log_is_read),
        cmocka_unit_test(every_byte_of_the_index_header_counts),
        cmocka_unit_test(every_frame_counts),
        cmocka_unit_test(frames_behind_the_index_are_not_looked_at),
        cmocka_unit_test(a_scan_can_be_stopped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
