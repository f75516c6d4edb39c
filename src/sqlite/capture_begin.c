/*
 * sqlite/capture_begin.c: where a capture goes on: from the hashes and segments that the one before
 * left, by the log when it still tells what came after, else by comparing all pages.  Files of the
 * capture's directory.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "crypto/hash.h"
#include "sqlite/capture_private.h"
#include "sqlite/source.h"

#define MUCH_BYTES    (16u << 20)   /* what may take too long to be written */
#define BATCH_LONGEST (60 * BK_SEC) /* from one look to the next while all goes well, and more */

/* --- files --- */

static void path_of(const bk_capture_t *c, const char *name, char out[PATH_MAX])
{
    bk_fmt(out, PATH_MAX, "%s/%s", c->dir, name);
}

/* What is needed to go on is known at once, however what comes next ends. */
static void saved(bk_capture_t *c)
{
    memcpy(c->state.epoch, c->at.epoch, sizeof c->state.epoch);
    c->state.began = c->at.began;
    c->state.saved = c->at.txid;
}

bk_rc_t bk_capture_save(bk_capture_t *c, bk_err_t *err)
{
    char path[PATH_MAX];
    path_of(c, "hashes", path);
    bk_rc_t rc = bk_hashes_save(&c->hashes, &c->at, path, err);
    if (rc == BK_OK) {
        c->unsaved = 0;
        saved(c);
    }
    return rc;
}

void bk_capture_forget(bk_capture_t *c)
{
    char path[PATH_MAX];
    path_of(c, "hashes", path);
    if (unlink(path) == 0)
        bk_ctl_note(c->ctl,
                    "database %s: what was captured before ends here: more pages changed at once "
                    "than a segment can hold",
                    c->database);
}

static void segment_path(const bk_capture_t *c, uint64_t first, char out[PATH_MAX])
{
    char epoch[2 * BK_TXLOG_EPOCH + 1], name[BK_CAPTURE_NAME];
    bk_hex(epoch, c->at.epoch, BK_TXLOG_EPOCH);
    bk_fmt(name, sizeof name, "%s-%020llu.tx", epoch, (unsigned long long)first);
    path_of(c, name, out);
}

bk_rc_t bk_capture_next_segment(bk_capture_t *c, bk_err_t *err)
{
    char path[PATH_MAX];
    bk_txlog_info_t info = {.page_size = c->hashes.page_size, .first = c->at.txid + 1};
    memcpy(info.epoch, c->at.epoch, BK_TXLOG_EPOCH);
    segment_path(c, info.first, path);
    return bk_txlog_create(path, &info, &c->log, err);
}

bk_rc_t bk_capture_seal(bk_capture_t *c, bk_err_t *err)
{
    bk_txlog_writer_t *log = c->log;
    c->log = NULL;
    return bk_txlog_seal(log, err);
}

typedef struct {
    uint64_t *first; /* sorted */
    size_t count, room;
} segments_t;

static int by_number(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* The segments of this epoch. */
static bk_rc_t list_segments(const bk_capture_t *c, segments_t *list, bk_err_t *err)
{
    char epoch[2 * BK_TXLOG_EPOCH + 1];
    *list = (segments_t){0};
    bk_hex(epoch, c->at.epoch, BK_TXLOG_EPOCH);
    DIR *dir = opendir(c->dir);
    if (dir == NULL)
        return bk_err_sys(err, errno, "open %s", c->dir);
    bk_rc_t rc = BK_OK;
    for (const struct dirent *entry; rc == BK_OK && (entry = readdir(dir)) != NULL;) {
        const char *name = entry->d_name;
        if (strlen(name) != BK_CAPTURE_NAME - 1 || strncmp(name, epoch, sizeof epoch - 1) != 0)
            continue;
        if (list->count == list->room) {
            size_t room = list->room * 2 + 16;
            uint64_t *more = realloc(list->first, room * sizeof *more);
            if (more == NULL) {
                rc = bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", c->dir);
                break;
            }
            list->first = more;
            list->room = room;
        }
        list->first[list->count++] = strtoull(name + sizeof epoch, NULL, 10);
    }
    closedir(dir);
    if (list->count > 1)
        qsort(list->first, list->count, sizeof *list->first, by_number);
    return rc;
}

/* --- what the one before left --- */

static bk_rc_t set_hash(void *arg, uint32_t pgno, const uint8_t *page, bk_err_t *err)
{
    bk_hashes_t *hashes = arg;
    if (pgno == 0 || pgno > hashes->count)
        return bk_err_set(err, BK_CORRUPT, "a transaction has a page behind its end");
    bk_hashes_set(hashes, pgno, bk_db_page_hash(pgno, page, hashes->page_size));
    return BK_OK;
}

/* The transactions of one segment that are newer than the hashes. */
static bk_rc_t replay(bk_capture_t *c, bk_txlog_t *log, bk_err_t *err)
{
    const bk_txlog_info_t *info = bk_txlog_info(log);
    bk_rc_t rc = BK_OK;
    if (memcmp(info->epoch, c->at.epoch, BK_TXLOG_EPOCH) != 0 ||
        info->page_size != c->hashes.page_size || info->first > c->at.txid + 1)
        return bk_err_set(err, BK_CORRUPT, "its segments do not follow its hashes");
    for (size_t i = 0; i < bk_txlog_count(log) && rc == BK_OK; i++) {
        const bk_tx_t *tx = bk_txlog_tx(log, i);
        if (tx->txid <= c->at.txid)
            continue;
        rc = tx->before == c->hashes.digest
                 ? bk_hashes_resize(&c->hashes, tx->page_count, err)
                 : bk_err_set(err, BK_CORRUPT, "transaction %llu begins with another content",
                              (unsigned long long)tx->txid);
        if (rc == BK_OK)
            rc = bk_txlog_pages(log, i, set_hash, &c->hashes, err);
        if (rc == BK_OK && tx->after != c->hashes.digest)
            rc = bk_err_set(err, BK_CORRUPT, "transaction %llu ends with another content",
                            (unsigned long long)tx->txid);
        c->at.txid = tx->txid;
        c->at.place = tx->place;
        c->at.seen = tx->t_hi;
        /* By t_hi something else may have been committed, unless all was kept out. */
        int64_t looked = tx->flags & BK_TXLOG_BATCH ? tx->t_hi : tx->t_lo;
        c->at.looked = looked > c->at.looked ? looked : c->at.looked;
    }
    return rc;
}

/*
 * All segments; the last one is gone on with when it is open.  Not one that the disk took the end
 * of, which the hashes know: it is sealed as it is, and what it lost is missing.
 */
static bk_rc_t replay_all(bk_capture_t *c, bk_err_t *err)
{
    segments_t list;
    char path[PATH_MAX];
    bk_rc_t rc = list_segments(c, &list, err);
    for (size_t i = 0; i < list.count && rc == BK_OK; i++) {
        bool last = i + 1 == list.count;
        if (!last && list.first[i + 1] <= c->at.txid + 1)
            continue; /* wholly in the hashes */
        bk_txlog_t *log = NULL;
        segment_path(c, list.first[i], path);
        rc = bk_txlog_open_file(path, &log, err);
        bool sealed = rc == BK_OK && bk_txlog_sealed(log);
        if (rc == BK_OK)
            rc = replay(c, log, err);
        uint64_t next = rc == BK_OK ? bk_txlog_info(log)->first + bk_txlog_count(log) : 0;
        bk_txlog_free(log);
        if (rc == BK_OK && last && !sealed && next > c->at.txid)
            rc = bk_txlog_reopen(path, &c->log, err);
        else if (rc == BK_OK && last && !sealed)
            bk_ctl_note(c->ctl, "database %s: %s is damaged: transactions %llu to %llu are lost",
                        c->database, path, (unsigned long long)next,
                        (unsigned long long)c->at.txid);
        if (rc != BK_OK)
            bk_err_wrap(err, "%s", path);
    }
    free(list.first);
    return rc;
}

/* False: a new epoch has to begin; err says why, when there was something. */
static bk_rc_t load(bk_capture_t *c, uint32_t page_size, bool *fits, bk_err_t *err)
{
    char path[PATH_MAX];
    bk_err_t why = {0};
    path_of(c, "hashes", path);
    bk_rc_t rc = bk_hashes_load(&c->hashes, &c->at, path, &why);
    if (rc == BK_OK && c->hashes.page_size != page_size)
        rc = bk_err_set(&why, BK_CORRUPT, "its page size changed from %u to %u",
                        c->hashes.page_size, page_size);
    if (rc == BK_OK || c->hashes.page_size != 0)
        c->number = c->at.txid > c->number ? c->at.txid : c->number;
    if (rc == BK_OK) {
        saved(c);
        rc = replay_all(c, &why);
    }
    *fits = rc == BK_OK;
    if (rc == BK_CORRUPT)
        bk_ctl_note(c->ctl, "database %s: what was captured before ends here: %s", c->database,
                    why.text);
    if (rc == BK_OK || rc == BK_NOT_FOUND || rc == BK_CORRUPT)
        return BK_OK;
    *err = why;
    return rc;
}

/* --- what others left --- */

static int only_segments(const struct dirent *entry)
{
    return strlen(entry->d_name) == BK_CAPTURE_NAME - 1 &&
           strcmp(entry->d_name + BK_CAPTURE_NAME - 4, ".tx") == 0;
}

bk_rc_t bk_capture_set_aside(const char *path, const char *ending, bk_err_t *err)
{
    char aside[PATH_MAX];
    const char *dot = strrchr(path, '.');
    return bk_fmt(aside, sizeof aside, "%.*s.%s", (int)(dot - path), path, ending) &&
                   rename(path, aside) == 0
               ? BK_OK
               : bk_err_sys(err, errno, "rename %s", path);
}

/* One that nobody writes any more. */
static bk_rc_t close_segment(const char *path, bk_err_t *err)
{
    bk_txlog_t *log = NULL;
    bk_txlog_writer_t *writer = NULL;
    bk_rc_t rc = bk_txlog_open_file(path, &log, err);
    bool sealed = rc == BK_OK && bk_txlog_sealed(log), empty = rc == BK_OK && !bk_txlog_count(log);
    bk_txlog_free(log);
    if (rc != BK_OK || sealed)
        return rc;
    if (empty)
        return unlink(path) == 0 ? BK_OK : bk_err_sys(err, errno, "remove %s", path);
    rc = bk_txlog_reopen(path, &writer, err);
    return rc == BK_OK ? bk_txlog_seal(writer, err) : rc;
}

/*
 * Segments that are open, but are not the one that is written, were left by a process that died, or
 * are of an epoch that is over.  Only a capture can tell, so it seals them, and what is sealed
 * may be shipped.
 */
static bk_rc_t tidy(const bk_capture_t *c, bk_err_t *err)
{
    char own[PATH_MAX] = "", path[PATH_MAX];
    struct dirent **names;
    bk_rc_t rc = BK_OK;
    if (c->log != NULL)
        segment_path(c, bk_txlog_writer_info(c->log)->first, own);
    int count = scandir(c->dir, &names, only_segments, alphasort);
    if (count < 0)
        return bk_err_sys(err, errno, "read %s", c->dir);
    for (int i = 0; i < count; i++) {
        path_of(c, names[i]->d_name, path);
        if (rc == BK_OK && strcmp(path, own) != 0)
            rc = close_segment(path, err);
        if (rc == BK_CORRUPT) {
            bk_ctl_note(c->ctl, "database %s: %s is set aside as *.damaged", c->database, path);
            rc = bk_capture_set_aside(path, "damaged", err);
        }
        free(names[i]);
    }
    free(names);
    return rc;
}

/* --- a gap, an epoch --- */

/* Without a log, what came after a look a moment ago is what any batch is. */
static uint32_t kind_of_difference(const bk_capture_t *c)
{
    bool lately = bk_now() - bk_capture_known_until(c) <= BATCH_LONGEST;
    return c->batches && lately && !c->state.doubted ? BK_TXLOG_BATCH : BK_TXLOG_GAP;
}

bk_rc_t bk_capture_bridge(bk_capture_t *c, bk_err_t *err)
{
    uint64_t txid = c->at.txid;
    uint32_t kind = kind_of_difference(c);
    bk_rc_t rc = bk_capture_difference(c, kind, err);
    if (rc == BK_OK)
        rc = bk_txlog_sync(c->log, err);
    if (rc != BK_OK)
        return rc;
    c->state.gaps += kind == BK_TXLOG_GAP && c->at.txid != txid;
    rc = bk_capture_save(c, err);
    if (rc == BK_OK)
        bk_capture_settle(c);
    return rc;
}

bk_rc_t bk_capture_mend(bk_capture_t *c, bk_err_t *err)
{
    uint64_t gaps = c->state.gaps;
    bk_rc_t rc = bk_capture_bridge(c, err);
    if (c->state.gaps > gaps)
        c->state.differing += c->logged > 0 ? c->logged : 1; /* or its length */
    /* Somebody has the lock: with the next step, unless what was captured does not lead here. */
    return rc == BK_BUSY && c->sweep.again == NULL ? BK_OK : rc;
}

static uint64_t last_of(const char *path)
{
    bk_txlog_t *log = NULL;
    uint64_t last = 0;
    if (bk_txlog_open_file(path, &log, NULL) == BK_OK && bk_txlog_count(log) > 0)
        last = bk_txlog_tx(log, bk_txlog_count(log) - 1)->txid;
    bk_txlog_free(log);
    return last;
}

/*
 * Numbers go on from one epoch to the next, so that one number means one transaction, as far as
 * anything is known of those before: from the hashes, from segments that are still here, from what
 * the caller knows.
 */
static uint64_t last_number(const bk_capture_t *c)
{
    uint64_t last = c->number > c->known.txid ? c->number : c->known.txid;
    DIR *dir = opendir(c->dir);
    if (dir == NULL)
        return last;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char path[PATH_MAX];
        const char *name = entry->d_name;
        if (strlen(name) != BK_CAPTURE_NAME - 1)
            continue;
        path_of(c, name, path);
        uint64_t one = last_of(path);
        last = one > last ? one : last;
    }
    closedir(dir);
    return last;
}

static bk_rc_t begin_epoch(bk_capture_t *c, uint32_t page_size, bk_err_t *err)
{
    bk_db_source_t *source = NULL;
    bk_txlog_close(c->log);
    c->log = NULL;
    bk_hashes_free(&c->hashes);
    bk_hashes_init(&c->hashes, page_size);
    bk_rc_t rc = bk_capture_sweep(c, true, err);
    int64_t looked = bk_now();
    if (rc == BK_OK)
        rc = bk_capture_open_source(c, &source, err);
    if (rc == BK_OK && bk_db_source_info(source)->page_size != page_size)
        rc = bk_err_set(err, BK_CHANGED, "database %s: its page size changed from %u to %u",
                        c->database, page_size, bk_db_source_info(source)->page_size);
    c->at.txid = last_number(c);
    c->at.seen = c->at.began = bk_now();
    bk_random(c->at.epoch, sizeof c->at.epoch);
    if (rc == BK_OK)
        rc = bk_capture_compare(c, source, false, err);
    if (rc == BK_OK)
        bk_capture_place(bk_db_source_info(source), &c->at.place);
    bk_db_source_close(source);
    c->at.looked = c->batches ? c->at.seen : looked; /* without a log nothing came in between */
    c->state.new_epoch = true;
    c->state.resumed = c->at.txid;
    c->state.resumed_digest = c->hashes.digest;
    if (rc == BK_OK)
        rc = bk_capture_save(c, err);
    if (rc == BK_OK)
        bk_capture_settle(c);
    return rc;
}

bk_rc_t bk_capture_begin_epoch(bk_capture_t *c, uint64_t last, bk_err_t *err)
{
    bk_txlog_close(c->log);
    c->log = NULL;
    bk_random(c->at.epoch, sizeof c->at.epoch);
    c->at.txid = last > last_number(c) ? last : last_number(c);
    c->at.began = bk_now();
    bk_rc_t rc = bk_capture_save(c, err);
    if (rc == BK_OK)
        rc = tidy(c, err);
    c->state.new_epoch = true;
    c->state.txid = c->at.txid;
    c->state.resumed = c->at.txid;
    c->state.resumed_digest = c->hashes.digest;
    return rc;
}

/* --- where to go on --- */

/* Before anything is written to a new log its salts are zeros, each time. */
static bool is_named(const bk_txlog_place_t *place)
{
    return place->salt[0] != 0 || place->salt[1] != 0;
}

/*
 * Somebody captured up to just where a hold of ours began, and the log is another one now: with a
 * hold on it, it can only have begun anew when nothing of it was needed, once, with what follows
 * (docs/sqlite.md).
 */
static bool is_bridged(const bk_capture_t *c, const bk_wal_header_t *header)
{
    const bk_txlog_place_t *place = &c->at.place;
    if (c->hold == NULL || !is_named(place))
        return false;
    const bk_wal_header_t *held = &c->hold->header;
    return memcmp(place->salt, held->salt, sizeof held->salt) == 0 &&
           place->frame == held->frames &&
           (place->frame == 0 ||
            memcmp(place->checksum, held->checksum, sizeof held->checksum) == 0) &&
           memcmp(header->salt, held->salt, sizeof held->salt) != 0;
}

/* Is what the log holds behind our last place all that happened since? */
static bk_rc_t continues(bk_capture_t *c, const bk_wal_header_t *header, bool *does, bk_err_t *err)
{
    bk_txlog_place_t *place = &c->at.place;
    if (is_bridged(c, header)) {
        *place = (bk_txlog_place_t){.frame = 0};
        memcpy(place->salt, header->salt, sizeof header->salt);
    }
    *does = is_named(place) && place->frame <= header->frames &&
            memcmp(place->salt, header->salt, sizeof header->salt) == 0;
    if (!*does || place->frame == 0)
        return BK_OK;
    return bk_wal_ends_with(c->wal_fd, c->database, header, place->frame, place->checksum, does,
                            err);
}

/* Before its first checkpoint all of a database is in the log. */
static bk_rc_t page_size_of(bk_capture_t *c, const bk_wal_header_t *wal, uint32_t *page_size,
                            bk_err_t *err)
{
    uint8_t header[20];
    sqlite3_file *file = c->readers[c->reader].file;
    int code = file->pMethods->xRead(file, header, sizeof header, 0);
    if (code != SQLITE_OK && code != SQLITE_IOERR_SHORT_READ)
        return bk_db_failure(&c->readers[c->reader], code, "read", err);
    *page_size = code == SQLITE_OK ? bk_db_header_page_size(header) : 0;
    if (*page_size == 0 && wal->frames > 0)
        *page_size = wal->page_size;
    if (*page_size == 0)
        return bk_err_set(err, BK_UNSUPPORTED,
                          "database %s is empty: its transactions are captured as soon as "
                          "something is in it",
                          c->database);
    return BK_OK;
}

/*
 * What the log holds behind our last place up to header.  A reader that found all of the log in the
 * database file (mark 0) does not keep it from beginning anew, and no older pin does: then this is
 * gone while it is read.  *does: it was all there; else what was known before is known again.
 */
static bk_rc_t take_rest(bk_capture_t *c, uint32_t page_size, const bk_wal_header_t *header,
                         bool *fits, bool *does, bk_err_t *err)
{
    bk_err_t why = {0};
    c->at.looked = bk_capture_known_until(c);
    c->seen = c->seen > c->at.seen ? c->seen : c->at.seen;
    bk_rc_t rc = bk_capture_frames(c, header, &why);
    *does = rc == BK_OK;
    if (rc != BK_CORRUPT) {
        if (rc != BK_OK && err != NULL)
            *err = why;
        return rc;
    }
    bk_txlog_close(c->log);
    c->log = NULL;
    bk_hashes_free(&c->hashes);
    return load(c, page_size, fits, err);
}

bk_rc_t bk_capture_begin(bk_capture_t *c, const bk_wal_header_t *header, bk_err_t *err)
{
    uint64_t inode = c->readers[c->reader].st.st_ino;
    uint32_t page_size = 0;
    bool fits = false, goes_on = false;
    bk_rc_t rc = page_size_of(c, header, &page_size, err);
    if (rc == BK_OK)
        rc = load(c, page_size, &fits, err);
    if (rc == BK_OK && (c->page = realloc(c->page, 2 * (size_t)page_size)) == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", c->database);
    c->state.resumed = c->at.txid;
    c->state.resumed_digest = c->hashes.digest;
    if (rc == BK_OK && fits && c->at.inode == inode)
        rc = continues(c, header, &goes_on, err);
    if (rc == BK_OK && goes_on)
        rc = take_rest(c, page_size, header, &fits, &goes_on, err);
    c->at.inode = inode;
    if (!goes_on && c->hold != NULL)
        bk_capture_hold_let_go(c->hold);
    if (rc == BK_OK && !fits)
        rc = begin_epoch(c, page_size, err);
    else if (rc == BK_OK && !goes_on)
        rc = bk_capture_bridge(c, err);
    /* It was the writing, which another try would not get done either. */
    if (rc == BK_TIMEOUT && c->batches && c->logged * page_size >= MUCH_BYTES) {
        rc = begin_epoch(c, page_size, err);
        if (rc == BK_OK)
            bk_ctl_note(c->ctl,
                        "database %s: what was captured before ends here: more changed than can be "
                        "written while the application's commits wait",
                        c->database);
    }
    if (rc == BK_TOO_LARGE) {
        bk_capture_forget(c);
        rc = begin_epoch(c, page_size, err);
    }
    return rc == BK_OK ? tidy(c, err) : rc;
}
