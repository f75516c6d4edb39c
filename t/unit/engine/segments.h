/*
 * t/unit/engine/segments.h: segments of transactions that a test writes itself or ships, and damage
 * to them.
 */
#ifndef BK_TEST_ENGINE_SEGMENTS_H
#define BK_TEST_ENGINE_SEGMENTS_H

#include "engine/covered.h"
#include "unit/engine/captures.h"

static const uint8_t E1[BK_EPOCH_SIZE] = {1}, E2[BK_EPOCH_SIZE] = {2};

/* Transactions first..last, one a second from the time on. */
static inline void write_segment(const fixture_t *f, const uint8_t epoch[BK_EPOCH_SIZE],
                                 uint32_t page_size, uint64_t first, uint64_t last, int64_t time,
                                 bool seal)
{
    bk_err_t err = {0};
    bk_txlog_writer_t *log;
    bk_txlog_info_t info = {.page_size = page_size, .first = first};
    memcpy(info.epoch, epoch, BK_EPOCH_SIZE);
    uint8_t page[4096] = {0};
    OK(bk_mkdirs(at(f, "base/wal/main"), 0700, &err), &err);
    OK(bk_txlog_create(segment(f, info.epoch, first, "tx"), &info, &log, &err), &err);
    for (uint64_t i = first; i <= last; i++, time += BK_SEC) {
        bk_tx_t tx = {.txid = i,
                      .page_count = 1,
                      .t_lo = time,
                      .t_hi = time,
                      .before = epoch[0] * 100u + i - 1,
                      .after = epoch[0] * 100u + i};
        OK(bk_txlog_begin(log, &err), &err);
        OK(bk_txlog_page(log, 1, page, &err), &err);
        OK(bk_txlog_end(log, &tx, &err), &err);
    }
    if (seal)
        OK(bk_txlog_seal(log, &err), &err);
    else
        bk_txlog_close(log);
}

/* What the capture says: that epoch goes on, and nothing came behind a transaction until then. */
static inline void covered(const fixture_t *f, const uint8_t epoch[BK_EPOCH_SIZE], uint64_t txid,
                           int64_t until)
{
    int fd = -1;
    bk_err_t err = {0};
    bk_capture_known_t known = {.txid = txid, .until = until};
    memcpy(known.epoch, epoch, BK_EPOCH_SIZE);
    OK(bk_mkdirs(at(f, "base/wal/main"), 0700, &err), &err);
    bk_covered_write(at(f, "base/wal/main"), &known, &fd);
    assert_true(fd >= 0);
    close(fd);
}

/* Everything that was captured is on the storage, and only there. */
static inline void ship_everything(fixture_t *f)
{
    reopen_sealed(f);
    capture(f);
    ship(f);
}

static inline int64_t rows_at(fixture_t *f, int64_t time)
{
    char text[BK_TIME_TEXT];
    bk_err_t err = {0};
    json_t *answer, *more;
    bk_time_format_exact(text, time);
    json_t *body = json_pack("{ssssss}", "sql", "SELECT count(*) FROM jobs", "database", "main",
                             "point_in_time", text);
    bk_ctl_init(&f->ctl);
    OK(bk_engine_query(f->engine, body, &f->ctl, &answer, &more, &err), &err);
    bk_ctl_free(&f->ctl);
    int64_t value =
        json_integer_value(json_array_get(json_array_get(json_object_get(answer, "rows"), 0), 0));
    json_decref(answer);
    json_decref(body);
    return value;
}

static inline int64_t a_moment_later(void)
{
    bk_sleep_ms(4);
    int64_t now = bk_now();
    bk_sleep_ms(4);
    return now;
}

/* What nothing can compress, of a number. */
static inline void fill_page(uint8_t page[4096], uint64_t number)
{
    uint64_t state = number * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < 4096; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        page[i] = (uint8_t)state;
    }
}

/* One transaction, on the storage; each page is filled with the sum of both numbers. */
static inline void ship_one(fixture_t *f, bk_repo_t *repo, const uint8_t epoch[BK_EPOCH_SIZE],
                            uint64_t i, uint32_t pages)
{
    uint8_t page[4096];
    bk_err_t err = {0};
    bk_txlog_writer_t *log;
    bk_txlog_info_t info = {.page_size = 4096, .first = i};
    bk_history_name_t name = {.database = "app.main", .first = i, .last = i};
    bk_tx_t tx = {.txid = i,
                  .page_count = pages,
                  .t_lo = (int64_t)i * BK_SEC,
                  .t_hi = (int64_t)i * BK_SEC,
                  .before = epoch[0] * 1000u + i - 1,
                  .after = epoch[0] * 1000u + i};
    memcpy(info.epoch, epoch, BK_EPOCH_SIZE);
    memcpy(name.epoch, epoch, BK_EPOCH_SIZE);
    unlink(at(f, "one.tx"));
    OK(bk_txlog_create(at(f, "one.tx"), &info, &log, &err), &err);
    OK(bk_txlog_begin(log, &err), &err);
    for (uint32_t p = 1; p <= pages; p++) {
        fill_page(page, i + p);
        OK(bk_txlog_page(log, p, page, &err), &err);
    }
    OK(bk_txlog_end(log, &tx, &err), &err);
    OK(bk_txlog_seal(log, &err), &err);
    int fd = open(at(f, "one.tx"), O_RDONLY | O_CLOEXEC);
    uint64_t size = (uint64_t)lseek(fd, 0, SEEK_END);
    OK(bk_history_put(repo, &name, fd, size, NULL, &err), &err);
    close(fd);
}

/* Count transactions of one segment each; their last pages come and go. */
static inline void ship_small_ones(fixture_t *f, bk_repo_t *repo,
                                   const uint8_t epoch[BK_EPOCH_SIZE], uint64_t first,
                                   uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++)
        ship_one(f, repo, epoch, i, (uint32_t)(1 + i % 3));
}

/* Name of segment number at of an epoch below the fixture, those with lower numbers first. */
static inline void object_of(bk_repo_t *repo, const uint8_t *epoch, size_t at,
                             char path[BK_STORAGE_NAME + 16])
{
    bk_err_t err = {0};
    bk_history_list_t list;
    bk_strcpy(path, BK_STORAGE_NAME + 16, "storage/");
    OK(bk_history_list(repo, "app.main", epoch, NULL, &list, &err), &err);
    assert_true(at < list.count);
    bk_history_object(path + strlen(path), &list.items[at]);
    bk_history_list_free(&list);
}

static inline off_t size_of(const fixture_t *f, const char *path)
{
    struct stat st;
    assert_int_equal(stat(at(f, path), &st), 0);
    return st.st_size;
}

/* Other bytes from offset on; twice, and it is as before. */
static inline void spoil(const fixture_t *f, const char *path, off_t offset)
{
    uint8_t bytes[6];
    assert_int_equal(chmod(at(f, path), 0600), 0);
    int fd = open(at(f, path), O_RDWR | O_CLOEXEC);
    assert_int_equal(pread(fd, bytes, sizeof bytes, offset), sizeof bytes);
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] ^= 0x5a;
    assert_int_equal(pwrite(fd, bytes, sizeof bytes, offset), sizeof bytes);
    close(fd);
}

#endif
