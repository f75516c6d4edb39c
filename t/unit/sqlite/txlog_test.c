/*
 * t/unit/sqlite/txlog_test.c: transactions come out of a segment as they went in, open or sealed,
 * whole or cut off anywhere; no damage passes.
 */
#include "unit/sqlite/failing_sync.h"
#include "unit/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/publish.h"
#include "base/str.h"
#include "sqlite/txlog.h"

#define PAGE 512u
#define TXS  60u

typedef struct {
    char *dir, path[300];
    bk_txlog_info_t info;
    bk_txlog_writer_t *w;
    bk_err_t err;
} log_t;

static int set_up(void **state)
{
    log_t *l = calloc(1, sizeof *l);
    l->dir = test_dir();
    snprintf(l->path, sizeof l->path, "%s/1.tx", l->dir);
    l->info = (bk_txlog_info_t){.epoch = {7, 8, 9}, .page_size = PAGE, .first = 5};
    OK(bk_txlog_create(l->path, &l->info, &l->w, &l->err), &l->err);
    *state = l;
    return 0;
}

static int tear_down(void **state)
{
    log_t *l = *state;
    bk_txlog_close(l->w);
    test_dir_remove(l->dir);
    free(l);
    return 0;
}

/* Page pgno as transaction txid left it; half of it compresses. */
static void fill_page(uint8_t page[PAGE], uint64_t txid, uint32_t pgno)
{
    memset(page, (int)(txid & 0xff), PAGE);
    test_fill(page, PAGE / 2, txid * 1000003 + pgno);
}

/* Some are empty, one is of several parts. */
static uint32_t pages_of(uint64_t txid)
{
    return txid == 20 ? 5000 : (uint32_t)(txid * 7 % 5);
}

static uint32_t page_at(uint64_t txid, uint32_t i)
{
    return (uint32_t)(1 + (txid * 31 + (uint64_t)i * 17) % 5001);
}

static bk_tx_t meta(uint64_t txid)
{
    return (bk_tx_t){.txid = txid,
                     .flags = txid % 9 == 0 ? BK_TXLOG_GAP : 0,
                     .page_count = 5001,
                     .t_lo = (int64_t)txid * 10,
                     .t_hi = (int64_t)txid * 10 + 5,
                     .before = txid,
                     .after = txid + 1,
                     .place = {{1, 2}, (uint32_t)txid, {3, 4}}};
}

static void append(log_t *l, uint64_t txid)
{
    uint8_t page[PAGE];
    bk_tx_t tx = meta(txid);
    OK(bk_txlog_begin(l->w, &l->err), &l->err);
    for (uint32_t i = 0; i < pages_of(txid); i++) {
        fill_page(page, txid, page_at(txid, i));
        OK(bk_txlog_page(l->w, page_at(txid, i), page, &l->err), &l->err);
    }
    OK(bk_txlog_end(l->w, &tx, &l->err), &l->err);
    assert_int_equal(tx.pages, pages_of(txid));
}

typedef struct {
    uint64_t txid;
    uint32_t i;
} expect_t;

static bk_rc_t check_page(void *arg, uint32_t pgno, const uint8_t *page, bk_err_t *err)
{
    expect_t *e = arg;
    uint8_t wanted[PAGE];
    (void)err;
    assert_int_equal(pgno, page_at(e->txid, e->i));
    fill_page(wanted, e->txid, pgno);
    assert_memory_equal(page, wanted, PAGE);
    e->i++;
    return BK_OK;
}

static void check(log_t *l, size_t count, bool sealed)
{
    bk_txlog_t *log;
    OK(bk_txlog_open_file(l->path, &log, &l->err), &l->err);
    assert_int_equal(bk_txlog_sealed(log), sealed);
    assert_int_equal(bk_txlog_count(log), count);
    assert_memory_equal(bk_txlog_info(log)->epoch, l->info.epoch, BK_TXLOG_EPOCH);
    for (size_t i = 0; i < count; i++) {
        expect_t e = {.txid = 5 + i};
        bk_tx_t wanted = meta(5 + i);
        wanted.pages = pages_of(5 + i);
        const bk_tx_t *got = bk_txlog_tx(log, i);
        assert_true(got->txid == wanted.txid && got->flags == wanted.flags &&
                    got->pages == wanted.pages && got->page_count == wanted.page_count &&
                    got->t_lo == wanted.t_lo && got->t_hi == wanted.t_hi &&
                    got->before == wanted.before && got->after == wanted.after &&
                    got->place.frame == wanted.place.frame &&
                    got->place.checksum[1] == wanted.place.checksum[1]);
        OK(bk_txlog_pages(log, i, check_page, &e, &l->err), &l->err);
        assert_int_equal(e.i, pages_of(5 + i));
    }
    bk_txlog_free(log);
}

static void every_transaction_comes_back(void **state)
{
    log_t *l = *state;
    for (uint64_t txid = 5; txid < 5 + TXS; txid++)
        append(l, txid);
    OK(bk_txlog_sync(l->w, &l->err), &l->err);
    check(l, TXS, false);
    OK(bk_txlog_seal(l->w, &l->err), &l->err);
    l->w = NULL;
    check(l, TXS, true);
    assert_int_equal(bk_txlog_reopen(l->path, &l->w, &l->err), BK_EXISTS);
}

typedef struct {
    bk_txlog_t *log;
    uint64_t txid;
    uint32_t seen;
} look_t;

static bool compare_page(void *arg, uint32_t pgno, bk_txlog_spot_t spot)
{
    look_t *look = arg;
    uint8_t page[PAGE], wanted[PAGE];
    bk_err_t err = {0};
    assert_int_equal(pgno, page_at(look->txid, look->seen));
    OK(bk_txlog_get(look->log, spot, page, &err), &err);
    fill_page(wanted, look->txid, pgno);
    assert_memory_equal(page, wanted, PAGE);
    return ++look->seen != 100;
}

static void single_pages_are_read_by_their_spots(void **state)
{
    log_t *l = *state;
    look_t look = {0};
    for (uint64_t txid = 5; txid < 5 + TXS; txid++)
        append(l, txid);
    OK(bk_txlog_seal(l->w, &l->err), &l->err);
    l->w = NULL;
    OK(bk_txlog_open_file(l->path, &look.log, &l->err), &l->err);
    for (size_t at = TXS; at-- > 0;) {
        look.txid = 5 + at;
        look.seen = 0;
        bool all = bk_txlog_numbers(look.log, at, compare_page, &look);
        assert_int_equal(all, pages_of(look.txid) < 100);
        assert_int_equal(look.seen, all ? pages_of(look.txid) : 100);
    }
    bk_txlog_free(look.log);
}

static void wherever_it_is_cut_off_whole_transactions_stay_and_more_can_follow(void **state)
{
    log_t *l = *state;
    uint64_t ends[16];
    ends[0] = bk_txlog_size(l->w);
    for (uint64_t txid = 5; txid < 20; txid++) {
        append(l, txid);
        ends[txid - 4] = bk_txlog_size(l->w);
    }
    bk_txlog_close(l->w);
    uint8_t *bytes = malloc(ends[15]);
    size_t got;
    int fd = open(l->path, O_RDWR | O_CLOEXEC);
    OK(bk_pread_all(fd, bytes, ends[15], 0, &got, "test", &l->err), &l->err);
    for (uint64_t size = ends[15]; size >= ends[0]; size -= size > ends[0] + 13 ? 13 : 1) {
        size_t whole = 0;
        while (whole < 15 && ends[whole + 1] <= size)
            whole++;
        assert_int_equal(ftruncate(fd, 0), 0);
        OK(bk_pwrite_all(fd, bytes, size, 0, "test", &l->err), &l->err);
        check(l, whole, false);
        OK(bk_txlog_reopen(l->path, &l->w, &l->err), &l->err);
        assert_int_equal(bk_txlog_next(l->w), 5 + whole);
        append(l, 5 + whole);
        if (size % 2 == 0) {
            OK(bk_txlog_seal(l->w, &l->err), &l->err);
        } else {
            bk_txlog_close(l->w);
        }
        l->w = NULL;
        check(l, whole + 1, size % 2 == 0);
        if (size == ends[0])
            break;
    }
    close(fd);
    free(bytes);
}

/* What a reader says of a damaged file: that it is damaged, or, of an open one, fewer transactions;
 * never others. */
static void no_flipped_bit_passes(void **state)
{
    log_t *l = *state;
    struct stat st;
    for (uint64_t txid = 5; txid < 15; txid++)
        append(l, txid);
    for (unsigned sealed = 0; sealed < 2; sealed++) {
        if (sealed) {
            OK(bk_txlog_seal(l->w, &l->err), &l->err);
            l->w = NULL;
        }
        int fd = open(l->path, O_RDWR | O_CLOEXEC);
        assert_int_equal(fstat(fd, &st), 0);
        for (off_t at = 0; at < st.st_size; at += 3) {
            uint8_t byte, changed;
            bk_txlog_t *log = NULL;
            assert_int_equal(pread(fd, &byte, 1, at), 1);
            changed = byte ^ (uint8_t)(1u << at % 8);
            assert_int_equal(pwrite(fd, &changed, 1, at), 1);
            bk_rc_t rc = bk_txlog_open_file(l->path, &log, &l->err);
            assert_true(rc == BK_OK || rc == BK_CORRUPT);
            for (size_t i = 0; rc == BK_OK && i < bk_txlog_count(log); i++) {
                expect_t e = {.txid = 5 + i};
                assert_int_equal(bk_txlog_tx(log, i)->after, 6 + i);
                bk_rc_t read = bk_txlog_pages(log, i, check_page, &e, &l->err);
                assert_true(read == BK_OK || read == BK_CORRUPT);
            }
            bk_txlog_free(log);
            assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        }
        close(fd);
    }
}

static void a_transaction_out_of_turn_is_refused(void **state)
{
    log_t *l = *state;
    append(l, 5);
    bk_tx_t tx = meta(7);
    OK(bk_txlog_begin(l->w, &l->err), &l->err);
    assert_int_equal(bk_txlog_end(l->w, &tx, &l->err), BK_INVALID);
    append(l, 6);
    check(l, 2, false);
    assert_int_equal(bk_txlog_create(l->path, &l->info, &l->w, &l->err), BK_EXISTS);
}

static void what_could_not_be_flushed_is_not_there(void **state)
{
    log_t *l = *state;
    for (uint64_t txid = 5; txid < 8; txid++)
        append(l, txid);
    OK(bk_txlog_sync(l->w, &l->err), &l->err);
    append(l, 8);
    append(l, 9);
    sync_fails = true;
    assert_int_equal(bk_txlog_sync(l->w, &l->err), BK_IO);
    bk_txlog_close(l->w);
    l->w = NULL;
    check(l, 3, false);
    OK(bk_txlog_reopen(l->path, &l->w, &l->err), &l->err);
    append(l, 8);
    bk_rc_t rc = bk_txlog_seal(l->w, &l->err);
    l->w = NULL;
    assert_int_equal(rc, BK_IO);
    check(l, 3, false);
    sync_fails = false;
    OK(bk_txlog_reopen(l->path, &l->w, &l->err), &l->err);
    append(l, 8);
    OK(bk_txlog_seal(l->w, &l->err), &l->err);
    l->w = NULL;
    check(l, 4, true);
}

/* The last bytes of an open segment are the application's. */
static void a_page_that_ends_like_a_trailer_seals_nothing(void **state)
{
    log_t *l = *state;
    uint8_t page[PAGE];
    struct stat st;
    bk_txlog_t *log;
    for (unsigned i = 0; i < 2; i++) {
        bk_tx_t tx = {.txid = 5 + i, .page_count = 1};
        assert_int_equal(stat(l->path, &st), 0);
        uint64_t end = (uint64_t)st.st_size + 100 + 4 + PAGE - 40; /* head, number, page */
        test_fill(page, PAGE, i); /* so that it is stored as it is */
        memcpy(page + PAGE - 8, "NGXBKTXE", 8);
        if (i == 1) { /* and says where an index might be */
            uint64_t trailer[3] = {end - 300, 300, 300};
            memcpy(page + PAGE - 40, trailer, sizeof trailer);
        }
        OK(bk_txlog_begin(l->w, &l->err), &l->err);
        OK(bk_txlog_page(l->w, 1, page, &l->err), &l->err);
        OK(bk_txlog_end(l->w, &tx, &l->err), &l->err);
        OK(bk_txlog_open_file(l->path, &log, &l->err), &l->err);
        assert_false(bk_txlog_sealed(log));
        assert_int_equal(bk_txlog_count(log), i + 1);
        bk_txlog_free(log);
    }
    bk_txlog_close(l->w);
    OK(bk_txlog_reopen(l->path, &l->w, &l->err), &l->err);
    OK(bk_txlog_seal(l->w, &l->err), &l->err);
    l->w = NULL;
    OK(bk_txlog_open_file(l->path, &log, &l->err), &l->err);
    assert_true(bk_txlog_sealed(log));
    assert_int_equal(bk_txlog_count(log), 2);
    bk_txlog_free(log);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_page_that_ends_like_a_trailer_seals_nothing, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(every_transaction_comes_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(single_pages_are_read_by_their_spots, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            wherever_it_is_cut_off_whole_transactions_stay_and_more_can_follow, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_flipped_bit_passes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_transaction_out_of_turn_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_could_not_be_flushed_is_not_there, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
