/*
 * t/unit/sqlite/capture_testing.h: a database that is captured, what the segments make of it, and
 * live writers that say what it has to be.
 */
#ifndef SQLITE_CAPTURE_TESTING_H
#define SQLITE_CAPTURE_TESTING_H

#include <dirent.h>
#include <sys/mount.h>

#include "base/publish.h"
#include "sqlite/capture.h"
#include "sqlite/connect.h"
#include "sqlite/source.h"
#include "unit/sqlite/sqlite_testing.h"

typedef struct {
    char *dir, db[300], log[300];
    bk_capture_t *capture;
    bk_ctl_t ctl;
    bk_err_t err;
    uint8_t *image; /* the database after transaction txid, as the segments tell */
    uint64_t pages, txid, digest;
    uint32_t page_size;
    unsigned gaps, batches;
    unsigned least, most; /* ms, of batches */
    uint64_t sweep;       /* bytes */
    unsigned pin;         /* ms */
} box_t;

static inline int set_up(void **state)
{
    box_t *box = calloc(1, sizeof *box);
    box->dir = test_dir();
    snprintf(box->db, sizeof box->db, "%s/app.db", box->dir);
    snprintf(box->log, sizeof box->log, "%s/log", box->dir);
    assert_int_equal(mkdir(box->log, 0700), 0);
    bk_ctl_init(&box->ctl);
    *state = box;
    return 0;
}

static inline int tear_down(void **state)
{
    box_t *box = *state;
    bk_capture_close(box->capture);
    bk_ctl_free(&box->ctl);
    umount2(box->log, MNT_DETACH); /* if a test mounted it */
    test_dir_remove(box->dir);
    free(box->image);
    free(box);
    return 0;
}

static inline bk_rc_t try_open(box_t *box)
{
    bk_capture_options_t options = {.database = box->db,
                                    .dir = box->log,
                                    .busy_ms = 20000,
                                    .batch_least = box->least,
                                    .batch_most = box->most,
                                    .sweep = box->sweep,
                                    .pin = box->pin};
    bk_err_clear(&box->err);
    return bk_capture_open(&options, &box->ctl, &box->capture, &box->err);
}

static inline void start(box_t *box)
{
    OK(try_open(box), &box->err);
}

static inline void stop(box_t *box)
{
    bk_capture_close(box->capture);
    box->capture = NULL;
}

static inline void step(box_t *box)
{
    unsigned again;
    OK(bk_capture_step(box->capture, true, &again, &box->err), &box->err);
}

/* Everything is copied and nobody needs the log: the next commit begins it anew. */
static inline void come_to_rest(box_t *box)
{
    for (unsigned i = 0; i < 3; i++) {
        bk_sleep_ms(210);
        step(box);
    }
}

static inline bk_capture_state_t state_of(const box_t *box)
{
    bk_capture_state_t state;
    bk_capture_state(box->capture, &state);
    return state;
}

/* --- what the segments tell --- */

static inline bk_db_source_t *open_source(box_t *box)
{
    bk_db_source_t *source;
    OK(bk_db_source_open(box->db, 20000, &box->ctl, &source, &box->err), &box->err);
    return source;
}

static inline uint64_t digest_of(const uint8_t *image, uint64_t pages, uint32_t size)
{
    uint64_t digest = 0;
    for (uint64_t p = 1; p <= pages; p++)
        if (p != bk_db_lock_page(size))
            digest ^= bk_db_page_hash(p, image + (p - 1) * size, size);
    return digest;
}

/* The database as it is now becomes what the transactions are put on. */
static inline void take_base(box_t *box)
{
    bk_db_source_t *source = open_source(box);
    const bk_db_info_t *info = bk_db_source_info(source);
    free(box->image);
    box->page_size = info->page_size;
    box->pages = info->page_count;
    box->image = malloc(box->pages * box->page_size);
    OK(bk_db_source_read(source, 1, (unsigned)box->pages, box->image, &box->err), &box->err);
    bk_db_source_close(source);
    box->digest = digest_of(box->image, box->pages, box->page_size);
}

static inline bk_rc_t put_page(void *arg, uint32_t pgno, const uint8_t *page, bk_err_t *err)
{
    box_t *box = arg;
    (void)err;
    assert_in_range(pgno, 1, box->pages);
    uint8_t *at = box->image + (uint64_t)(pgno - 1) * box->page_size;
    box->digest ^=
        bk_db_page_hash(pgno, at, box->page_size) ^ bk_db_page_hash(pgno, page, box->page_size);
    memcpy(at, page, box->page_size);
    return BK_OK;
}

typedef void (*after_fn)(box_t *box, const bk_tx_t *tx, void *arg);

static inline void replay_one(box_t *box, bk_txlog_t *log, size_t at)
{
    const bk_tx_t *tx = bk_txlog_tx(log, at);
    assert_int_equal(tx->txid, box->txid + 1);
    assert_true(tx->t_lo <= tx->t_hi);
    assert_int_equal(tx->before, box->digest);
    uint64_t before = box->pages;
    for (uint64_t p = tx->page_count + 1; p <= before; p++)
        box->digest ^= bk_db_page_hash(p, box->image + (p - 1) * box->page_size, box->page_size);
    if (tx->page_count > before) {
        box->image = realloc(box->image, tx->page_count * box->page_size);
        memset(box->image + before * box->page_size, 0, (tx->page_count - before) * box->page_size);
    }
    box->pages = tx->page_count;
    for (uint64_t p = before + 1; p <= box->pages; p++)
        box->digest ^= bk_db_page_hash(p, box->image + (p - 1) * box->page_size, box->page_size);
    OK(bk_txlog_pages(log, at, put_page, box, &box->err), &box->err);
    assert_int_equal(tx->after, box->digest);
    box->txid = tx->txid;
    box->gaps += (tx->flags & BK_TXLOG_GAP) != 0;
    box->batches += (tx->flags & BK_TXLOG_BATCH) != 0;
}

static inline int only_segments(const struct dirent *entry)
{
    return strstr(entry->d_name, ".tx") != NULL && entry->d_name[0] != '.';
}

/* All segments, which are of one epoch; after is asked after each transaction. */
static inline unsigned replay(box_t *box, after_fn after, void *arg)
{
    struct dirent **names;
    int count = scandir(box->log, &names, only_segments, alphasort);
    assert_true(count >= 0);
    for (int i = 0; i < count; i++) {
        char path[700];
        bk_txlog_t *log;
        snprintf(path, sizeof path, "%s/%s", box->log, names[i]->d_name);
        OK(bk_txlog_open_file(path, &log, &box->err), &box->err);
        for (size_t at = 0; at < bk_txlog_count(log); at++) {
            if (bk_txlog_tx(log, at)->txid <= box->txid)
                continue;
            replay_one(box, log, at);
            if (after != NULL)
                after(box, bk_txlog_tx(log, at), arg);
        }
        bk_txlog_free(log);
        free(names[i]);
    }
    free(names);
    return (unsigned)count;
}

/* What was replayed is what is there, page for page. */
static inline void assert_is_now(box_t *box)
{
    uint8_t *replayed = box->image;
    uint64_t pages = box->pages;
    box->image = NULL;
    take_base(box);
    assert_int_equal(pages, box->pages);
    for (uint64_t p = 0; p < pages; p++)
        if (memcmp(replayed + p * box->page_size, box->image + p * box->page_size,
                   box->page_size) != 0)
            fail_msg("page %llu differs", (unsigned long long)p + 1);
    free(replayed);
}

/* --- live writers --- */

typedef struct {
    char logs[3][300];
    int64_t number; /* of the last commit */
    int64_t before; /* the same, also behind a gap */
    uint64_t digest;
    long commits, others;
} oracle_t;

/* The content of the image, as SQLite sees it, is what a writer said it would be. */
static inline void judge(box_t *box, const bk_tx_t *tx, void *arg)
{
    oracle_t *oracle = arg;
    char file[320];
    int64_t number = 0;
    uint64_t digest = 0;
    sqlite3 *db;
    const char *logs[] = {oracle->logs[0], oracle->logs[1]};
    /* It was committed after t_lo: what was acknowledged by then is in the one before it. */
    bool first = oracle->commits + oracle->others == 0;
    const char *late =
        first ? NULL : chaos_judge(logs, 2, oracle->before, oracle->digest, tx->t_lo, tx->t_hi);
    if (late != NULL)
        fail_msg("before transaction %llu: %s", (unsigned long long)tx->txid, late);
    if (tx->flags & (BK_TXLOG_GAP | BK_TXLOG_BATCH))
        oracle->number = -1; /* any number of commits */
    snprintf(file, sizeof file, "%s/image", box->dir);
    int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    OK(bk_write_all(fd, box->image, box->pages * box->page_size, file, &box->err), &box->err);
    close(fd);
    OK(bk_db_open_image(file, &db, &box->err), &box->err);
    assert_true(chaos_content(db, &number, &digest));
    sqlite3_close(db);
    /* A commit, or what changes no content: VACUUM. */
    if (oracle->number >= 0 && number != oracle->number)
        assert_int_equal(number, oracle->number + 1);
    oracle->commits += number != oracle->number;
    oracle->others += number == oracle->number;
    oracle->number = oracle->before = number;
    oracle->digest = digest;
    const char *wrong = chaos_judge(logs, 2, number, digest, 0, tx->t_hi);
    if (wrong != NULL)
        fail_msg("transaction %llu, commit %lld: %s", (unsigned long long)tx->txid,
                 (long long)number, wrong);
}

static inline pid_t writer(const box_t *box, oracle_t *oracle, unsigned i, int autocheckpoint,
                           long commits)
{
    snprintf(oracle->logs[i], sizeof oracle->logs[i], "%s/writer%u", box->dir, i);
    chaos_t chaos = {.path = box->db,
                     .log = oracle->logs[i],
                     .seed = (uint64_t)bk_mono() + i,
                     .autocheckpoint = autocheckpoint,
                     .commits = commits};
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        _exit(chaos_run(&chaos) ? 0 : 1);
    assert_true(pid > 0);
    return pid;
}

static inline bool is_over(pid_t *pid)
{
    int status;
    if (*pid == 0)
        return true;
    if (waitpid(*pid, &status, WNOHANG) != *pid)
        return false;
    assert_int_equal(status, 0);
    *pid = 0;
    return true;
}

#endif
