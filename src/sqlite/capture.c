/*
 * sqlite/capture.c: keeps a live database pinned, moves the pin on, and helps checkpoints along so
 * that the log does not grow; one without a log is left to capture_batches.c.  Never writes to the
 * database: checkpoints copy what the application committed.
 */
#include "sqlite/capture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/attached.h"
#include "base/clock.h"
#include "base/str.h"
#include "sqlite/capture_private.h"
#include "sqlite/opening.h"

#define SOFT        1000u /* frames, where SQLite itself begins to checkpoint */
#define HARD        8u    /* times soft: then writers are kept out for a moment */
#define BAR_MS      25u   /* how long to try to keep them out */
#define HELP_EVERY  (50 * BK_MS)
#define HELP_LEAST  (5 * BK_SEC) /* while it is of no use */
#define HELP_TRIES  3u
#define IDLE        (200 * BK_MS)
#define NAME_EVERY  BK_SEC
#define HEADER_MS   5u
#define WAIT_FIRST  1u /* ms: what is written shows in the index a little later */
#define WAIT_MOST   1000u
#define WAIT_PAUSE  2000u
#define LOCK_MS     2000u
#define SAVE_LEAST  (4u << 20)
#define BUSY_MOST   5u     /* looks in a row that a lock keeps from a batch */
#define BATCH_LEAST 1000u  /* ms */
#define BATCH_MOST  1000u  /* ms */
#define AUDIT_IDLE  200u   /* ms */
#define AUDIT_EVERY 86400u /* s */
#define AUDIT_FIRST (3600 * BK_SEC)
#define AUDIT_AGAIN (600 * BK_SEC) /* when pages could not be read */
#define AUDIT_PIECE (16u << 20)

/* --- the pin --- */

static bk_rc_t begin_read(bk_db_connection_t *c, bk_err_t *err)
{
    bk_rc_t rc = bk_db_query(c, "BEGIN", NULL, 0, err);
    /* Nothing is locked before the first read. */
    if (rc == BK_OK)
        rc = bk_db_query(c, "PRAGMA schema_version", NULL, 0, err);
    if (rc != BK_OK)
        (void)bk_db_query(c, "ROLLBACK", NULL, 0, NULL);
    return rc;
}

static void end_read(bk_db_connection_t *c)
{
    if (c->db != NULL && !sqlite3_get_autocommit(c->db))
        (void)bk_db_query(c, "ROLLBACK", NULL, 0, NULL);
}

/* Both are times of the wall clock: what comes after header was committed after looked. */
static bk_rc_t take_until_now(bk_capture_t *c, unsigned reader, bk_err_t *err)
{
    bk_wal_header_t header;
    int64_t now = bk_now();
    bk_rc_t rc = bk_db_wal_header(&c->readers[reader], HEADER_MS, &header, err);
    if (rc != BK_OK)
        return rc;
    int64_t seen = bk_now();
    c->seen = seen > c->at.seen ? seen : c->at.seen; /* never back, whatever the clock does */
    rc = bk_capture_frames(c, &header, err);
    if (rc == BK_OK)
        c->at.looked = now;
    return rc;
}

/*
 * The other reader begins, everything up to there is taken in, the first one ends.  Between them
 * the log cannot begin anew with something in it that was not read.
 */
static bk_rc_t advance(bk_capture_t *c, bk_err_t *err)
{
    unsigned other = 1 - c->reader;
    bk_rc_t rc = begin_read(&c->readers[other], err);
    if (rc != BK_OK)
        return rc;
    rc = take_until_now(c, other, err);
    if (rc == BK_OK) {
        end_read(&c->readers[c->reader]);
        c->reader = other;
        c->moved = bk_mono();
        memcpy(c->pinned, c->at.place.salt, sizeof c->pinned);
    } else {
        end_read(&c->readers[other]);
    }
    return rc;
}

/*
 * Whatever a pin sets free the application's next commit copies, and syncs the log for it, so the
 * pin follows now and then.  At once when the log began anew: until then nobody can copy anything.
 */
static bool is_behind(const bk_capture_t *c)
{
    return bk_mono() - c->moved >= HELP_EVERY ||
           memcmp(c->pinned, c->at.place.salt, sizeof c->pinned) != 0;
}

bk_rc_t bk_capture_take(bk_capture_t *c, bk_err_t *err)
{
    return take_until_now(c, c->reader, err);
}

/* --- checkpoints --- */

/*
 * As long as another reader needs the log it is of no use to copy, and even less to keep writers
 * out for it: both only now and then.  A small log is not worth telling.
 */
static void note_needed(bk_capture_t *c, bool needed, uint32_t frames)
{
    const struct stat *st = &c->readers[c->reader].st;
    unsigned own = 3 + (c->writer.db != NULL); /* two readers and the checkpointer */
    c->state.blocked = needed && frames > c->soft;
    c->state.blocked_here = c->state.blocked && bk_attached_count(st->st_dev, st->st_ino) > own;
    c->pause = !needed ? HELP_EVERY : 2 * c->pause < HELP_LEAST ? 2 * c->pause : HELP_LEAST;
}

/* *copied: frames of the log that are in the database file now; known: those before our pin. */
static bk_rc_t copy(bk_capture_t *c, uint32_t known, uint32_t *copied, bk_err_t *err)
{
    int frames = 0, done = 0;
    int code = sqlite3_wal_checkpoint_v2(c->checkpointer.db, NULL, SQLITE_CHECKPOINT_PASSIVE,
                                         &frames, &done);
    *copied = UINT32_MAX; /* or the application does it itself */
    if ((code & 0xff) == SQLITE_BUSY || (code & 0xff) == SQLITE_LOCKED)
        return BK_OK;
    if (code != SQLITE_OK)
        return bk_db_failure(&c->checkpointer, code, "checkpoint", err);
    *copied = (uint32_t)done;
    if (*copied >= c->at.place.frame)
        c->helped = c->at.place;
    note_needed(c, *copied < known, (uint32_t)frames);
    return BK_OK;
}

/*
 * Copy what is committed, then pin a state that needs nothing of the log: the next commit begins it
 * anew.  What another reader still needs stays.  What was committed meanwhile is little, and copied
 * sooner than more is committed, unless that never ends.
 */
static bk_rc_t help(bk_capture_t *c, bk_err_t *err)
{
    uint32_t known = c->at.place.frame, copied = 0;
    unsigned tries = HELP_TRIES;
    bk_rc_t rc = advance(c, err);
    do {
        if (rc == BK_OK)
            rc = copy(c, known, &copied, err);
        known = c->at.place.frame;
        if (rc == BK_OK)
            rc = advance(c, err);
    } while (rc == BK_OK && c->at.place.frame > copied && !c->state.blocked && --tries > 0);
    if (rc != BK_OK)
        c->helped = (bk_txlog_place_t){.frame = 0}; /* the pin is an older one */
    return rc;
}

/* The same while nobody writes; not to be had at once is no failure. */
static bk_rc_t help_alone(bk_capture_t *c, bk_err_t *err)
{
    bk_err_t why = {0};
    if (c->writer.db == NULL &&
        bk_db_connect(&c->writer, c->database, BAR_MS, c->ctl, &why) != BK_OK) {
        bk_db_disconnect(&c->writer);
        return BK_OK;
    }
    c->writer.found_wal = true;
    if (bk_db_query(&c->writer, "BEGIN IMMEDIATE", NULL, 0, &why) != BK_OK)
        return BK_OK;
    c->state.bars++;
    bk_rc_t rc = help(c, err);
    (void)bk_db_query(&c->writer, "ROLLBACK", NULL, 0, NULL);
    return rc;
}

/*
 * The pin keeps the application's own checkpoints behind, so the log would never end.  Just after a
 * commit, or while nobody writes: one that is under way would only make the log longer.
 */
static bk_rc_t help_when_needed(bk_capture_t *c, bool news, bk_err_t *err)
{
    uint32_t frames = c->state.wal_frames;
    int64_t now = bk_mono();
    bool done = memcmp(&c->helped, &c->at.place, sizeof c->helped) == 0;
    bool pressing = frames > HARD * c->soft;
    if (frames == 0 || done || (now - c->idle < IDLE && (frames <= c->soft || !news)) ||
        now - c->tried < c->pause)
        return BK_OK;
    c->tried = now;
    return pressing ? help_alone(c, err) : help(c, err);
}

bk_rc_t bk_capture_move_on(bk_capture_t *c, bk_err_t *err)
{
    bk_rc_t rc = advance(c, err);
    return rc == BK_OK ? help_when_needed(c, true, err) : rc;
}

/* --- a pin alone --- */

/*
 * The first look.  In another mode the application's commits wait for it, so that is asked before
 * anything of the log is touched: without one nothing is held any more.
 */
static bk_rc_t pin_wal(bk_db_connection_t *reader, bool *wal, bk_err_t *err)
{
    char mode[16] = "";
    bk_rc_t rc = begin_read(reader, err);
    bk_db_share_companions(reader);
    if (rc == BK_OK)
        rc = bk_db_query(reader, "PRAGMA journal_mode", mode, sizeof mode, err);
    *wal = rc == BK_OK && strcmp(mode, "wal") == 0;
    reader->found_wal = reader->found_wal || *wal;
    if (!*wal)
        end_read(reader);
    return rc;
}

void bk_capture_hold_end(bk_capture_hold_t *hold)
{
    if (hold == NULL)
        return;
    for (unsigned i = 0; i < 2; i++) {
        end_read(&hold->readers[i]);
        bk_db_disconnect(&hold->readers[i]);
    }
    free(hold);
}

bk_rc_t bk_capture_hold(const char *database, unsigned busy_ms, bk_ctl_t *ctl,
                        bk_capture_hold_t **result, bk_err_t *err)
{
    bk_capture_hold_t *hold = calloc(1, sizeof *hold);
    *result = NULL;
    if (hold == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", database);
    bool wal = false;
    bk_rc_t rc = bk_db_connect(&hold->readers[0], database, busy_ms, ctl, err);
    if (rc == BK_OK)
        rc = pin_wal(&hold->readers[0], &wal, err);
    if (rc == BK_OK && !wal)
        rc = bk_err_set(err, BK_UNSUPPORTED, "database %s is not in WAL mode", database);
    if (rc == BK_OK)
        rc = bk_db_wal_header(&hold->readers[0], LOCK_MS, &hold->header, err);
    if (rc == BK_OK)
        *result = hold;
    else
        bk_capture_hold_end(hold);
    return rc;
}

bk_rc_t bk_capture_hold_next(bk_capture_hold_t *hold, bk_err_t *err)
{
    const bk_db_connection_t *first = &hold->readers[hold->reader];
    bk_db_connection_t *other = &hold->readers[1 - hold->reader];
    bk_rc_t rc = BK_OK;
    if (other->db == NULL) {
        rc = bk_db_connect(other, first->path, first->busy_ms, first->ctl, err);
        other->found_wal = true;
        if (rc != BK_OK)
            bk_db_disconnect(other);
    }
    if (rc == BK_OK)
        rc = begin_read(other, err);
    if (rc == BK_OK)
        rc = bk_db_wal_header(other, HEADER_MS, &hold->header_now, err);
    if (rc != BK_OK)
        end_read(other);
    return rc;
}

void bk_capture_hold_turn(bk_capture_hold_t *hold)
{
    end_read(&hold->readers[hold->reader]);
    hold->reader = 1 - hold->reader;
    hold->header = hold->header_now;
}

void bk_capture_hold_let_go(bk_capture_hold_t *hold)
{
    for (unsigned i = 0; i < 2; i++)
        end_read(&hold->readers[i]);
    hold->header = (bk_wal_header_t){0}; /* it bridges nothing any more */
}

uint32_t bk_capture_hold_frames(const bk_capture_hold_t *hold)
{
    return hold->header.frames;
}

/* --- life --- */

/* Hold nothing any more; what is durable stays so. */
static void let_go(bk_capture_t *c)
{
    for (unsigned i = 0; i < 2; i++) {
        end_read(&c->readers[i]);
        bk_db_disconnect(&c->readers[i]);
    }
    bk_db_disconnect(&c->checkpointer);
    bk_db_disconnect(&c->writer);
    if (c->wal_fd >= 0)
        close(c->wal_fd);
    c->wal_fd = -1;
    bk_txlog_close(c->log);
    c->log = NULL;
    bk_hashes_free(&c->hashes);
    bk_capture_sweep_end(c);
    c->going = false;
}

static bk_rc_t pin_first(bk_capture_t *c, bk_err_t *err)
{
    bool wal = false;
    bk_db_connection_t *reader = &c->readers[0];
    c->reader = 0;
    bk_rc_t rc = pin_wal(reader, &wal, err);
    if (rc != BK_OK)
        return rc;
    c->batches = !wal;
    if (c->batches && c->want_wal)
        return bk_err_set(err, BK_UNSUPPORTED,
                          "database %s has a rollback journal, but the configuration says wal "
                          "require: run \"PRAGMA journal_mode=WAL\" once, or write \"wal on\"",
                          c->database);
    /* The log stays when we are the last to leave: it tells the next capture that nothing is
     * missing. */
    if (wal)
        c->readers[1].found_wal = c->checkpointer.found_wal = true;
    if (wal && (c->wal_fd = bk_db_open_file(reader->wal)) < 0)
        rc = bk_err_sys(err, errno, "database %s: open %s", c->database, reader->wal);
    return rc;
}

static bk_rc_t start_pinned(bk_capture_t *c, bk_err_t *err)
{
    bk_wal_header_t header;
    int64_t now = bk_now();
    bk_rc_t rc = bk_db_wal_header(&c->readers[0], LOCK_MS, &header, err);
    c->seen = bk_now();
    if (rc == BK_OK)
        rc = bk_capture_begin(c, &header, err);
    /* However long that took: what was committed meanwhile comes with the next look. */
    c->at.looked = now;
    if (rc == BK_OK)
        rc = advance(c, err);
    return rc;
}

static bk_rc_t start(bk_capture_t *c, bk_err_t *err)
{
    int64_t now = bk_now();
    bk_rc_t rc = bk_db_connect(&c->readers[0], c->database, c->busy_ms, c->ctl, err);
    if (rc == BK_OK)
        rc = bk_db_connect(&c->readers[1], c->database, c->busy_ms < LOCK_MS ? c->busy_ms : LOCK_MS,
                           c->ctl, err);
    if (rc == BK_OK)
        rc = bk_db_connect(&c->checkpointer, c->database, LOCK_MS, c->ctl, err);
    /* Before its first look a connection knows of no log, and would copy nothing.  A writer that
     * just died may have left the log to be looked through first, which others wait for. */
    if (rc == BK_OK)
        rc = bk_db_query(&c->checkpointer, "PRAGMA schema_version", NULL, 0, err);
    c->checkpointer.busy_ms = 0;
    if (rc == BK_OK)
        rc = pin_first(c, err);
    if (rc == BK_OK)
        rc = c->batches ? bk_capture_start_batches(c, err) : start_pinned(c, err);
    if (rc == BK_OK && c->log != NULL)
        rc = bk_txlog_sync(c->log, err);
    if (rc == BK_TOO_LARGE)
        bk_capture_forget(c);
    c->going = rc == BK_OK;
    c->idle = c->named = bk_mono();
    c->was_named = now;
    c->wait = WAIT_FIRST;
    c->pause = HELP_EVERY;
    if (rc != BK_OK)
        let_go(c);
    return rc;
}

static void tell(bk_capture_t *c)
{
    bk_capture_state_t *s = &c->state;
    s->paused = !c->going;
    s->batches = c->batches;
    if (!c->going)
        return;
    memcpy(s->epoch, c->at.epoch, sizeof s->epoch);
    s->txid = c->at.txid;
    s->page_count = c->hashes.count;
    s->page_size = c->hashes.page_size;
    s->digest = c->hashes.digest;
    s->as_of = c->at.looked;
    memcpy(c->known.epoch, c->at.epoch, sizeof c->known.epoch);
    c->known.txid = c->at.txid;
    c->known.until = c->at.looked;
    s->bytes = c->log != NULL ? bk_txlog_size(c->log) : 0;
}

bk_rc_t bk_capture_open(const bk_capture_options_t *options, bk_ctl_t *ctl, bk_capture_t **capture,
                        bk_err_t *err)
{
    bk_capture_t *c = calloc(1, sizeof *c);
    *capture = NULL;
    if (c == NULL || (c->database = bk_strdup(options->database)) == NULL ||
        (c->dir = bk_strdup(options->dir)) == NULL) {
        bk_capture_close(c);
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", options->database);
    }
    c->busy_ms = options->busy_ms;
    c->hold = options->hold;
    c->growth = options->growth;
    c->sweep_pin = (options->pin != 0 ? options->pin : BK_DB_PIN_MS) * BK_MS;
    c->sweep_from = options->sweep != 0 ? options->sweep : BK_DB_LARGE;
    c->known = options->known;
    c->audit_idle = (options->audit_idle != 0 ? options->audit_idle : AUDIT_IDLE) * BK_MS;
    c->audit_piece = options->audit_piece != 0 ? options->audit_piece : AUDIT_PIECE;
    c->audit_every = (options->audit_every != 0 ? options->audit_every : AUDIT_EVERY) * BK_SEC;
    c->audited = bk_mono() - c->audit_every + (options->audit_every != 0 ? 0 : AUDIT_FIRST);
    c->soft = options->soft != 0 ? options->soft : SOFT;
    c->want_wal = options->want_wal;
    c->batch_least = (options->batch_least != 0 ? options->batch_least : BATCH_LEAST) * BK_MS;
    c->batch_most = (options->batch_most != 0 ? options->batch_most : BATCH_MOST) * BK_MS;
    c->ctl = ctl;
    c->wal_fd = -1;
    bk_rc_t rc = start(c, err);
    c->hold = NULL;
    tell(c);
    if (rc == BK_OK)
        *capture = c;
    else
        bk_capture_close(c);
    return rc;
}

/* After other failures the hashes may be ahead of the segment: of a batch also when it is
 * stopped. */
static bool is_whole(const bk_capture_t *c, bk_rc_t rc)
{
    return rc == BK_OK || rc == BK_BUSY || (rc == BK_INTERRUPTED && !c->batches);
}

/* Whoever goes on may hold a pin that is younger than the one before. */
static bk_rc_t last_look(bk_capture_t *c, bk_err_t *err)
{
    return c->batches ? bk_capture_batch(c, true, err) : take_until_now(c, c->reader, err);
}

void bk_capture_close(bk_capture_t *c)
{
    bk_err_t why = {0};
    if (c == NULL)
        return;
    if (c->going && is_whole(c, last_look(c, &why)) &&
        (c->log == NULL || bk_txlog_sync(c->log, &why) == BK_OK))
        (void)bk_capture_save(c, &why); /* without it the segments are replayed */
    let_go(c);
    free(c->pages);
    free(c->page);
    free(c->database);
    free(c->dir);
    free(c);
}

void bk_capture_state(const bk_capture_t *c, bk_capture_state_t *state)
{
    *state = c->state;
}

bk_rc_t bk_capture_roll(bk_capture_t *c, bk_err_t *err)
{
    if (!c->going || c->log == NULL)
        return BK_OK;
    bk_tx_t last;
    if (!bk_txlog_last(c->log, &last))
        return BK_OK;
    bk_rc_t rc = bk_capture_seal(c, err);
    /* Not each time: of a large database they are much more than what changes. */
    if (rc == BK_OK && c->unsaved >= SAVE_LEAST && c->unsaved >= c->hashes.count * 8)
        rc = bk_capture_save(c, err);
    if (rc != BK_OK)
        let_go(c);
    tell(c);
    return rc;
}

/* --- step --- */

static bk_rc_t check_name(bk_capture_t *c, bk_err_t *err)
{
    struct stat st;
    const bk_db_connection_t *reader = &c->readers[c->reader];
    if (bk_mono() - c->named < NAME_EVERY)
        return BK_OK;
    c->named = bk_mono();
    int64_t now = bk_now();
    if (bk_db_stat(reader->path, &st) != 0 || st.st_dev != reader->st.st_dev ||
        st.st_ino != reader->st.st_ino) {
        /* Of what was committed to the new one since the last time nobody knew. */
        if (c->known.until > c->was_named)
            c->known.until = c->was_named;
        return bk_err_set(err, BK_CHANGED, "database %s was replaced or removed while it was open",
                          c->database);
    }
    c->was_named = now;
    return BK_OK;
}

static bk_rc_t look_for_batch(bk_capture_t *c, bool now, bk_err_t *err)
{
    bk_rc_t rc = bk_capture_batch(c, now, err);
    if (rc != BK_UNSUPPORTED)
        return rc;
    let_go(c);
    return start(c, err);
}

static bk_rc_t look(bk_capture_t *c, bool now, bk_err_t *err)
{
    bk_rc_t rc = check_name(c, err);
    if (rc == BK_OK && c->batches)
        return look_for_batch(c, now, err);
    if (rc == BK_OK)
        rc = take_until_now(c, c->reader, err);
    /* The next reader to begin repairs what a writer left that died. */
    if (rc == BK_BUSY || (rc == BK_OK && c->at.txid != c->state.txid && is_behind(c)))
        rc = advance(c, err);
    bool news = c->at.txid != c->state.txid;
    if (rc == BK_OK && news)
        c->idle = bk_mono();
    return rc == BK_OK ? help_when_needed(c, news, err) : rc;
}

/*
 * Somebody may write to the file past SQLite, or a disk may forget: then what is captured is not
 * what is there.  A piece in each moment of rest, so that it comes to its end while the application
 * writes, too.
 */
static bk_rc_t audit_when_due(bk_capture_t *c, bk_err_t *err)
{
    bool same = true, done = false;
    int64_t now = bk_mono();
    if (c->batches || now - c->idle < c->audit_idle || now - c->audited < c->audit_every)
        return BK_OK;
    bk_err_t why = {0};
    bk_rc_t rc = bk_capture_audit(c, &same, &done, &why);
    if (rc == BK_BUSY || (rc == BK_OK && !done))
        return BK_OK;
    if (rc == BK_INTERRUPTED || rc == BK_CANCELED) {
        *err = why;
        return rc;
    }
    c->audited = bk_mono();
    if (rc != BK_OK) { /* which is no reason to capture no more */
        bk_ctl_note(c->ctl, "not all pages could be compared with what was captured: %s", why.text);
        c->audited += AUDIT_AGAIN - c->audit_every;
        c->audit_next = 0;
        return BK_OK;
    }
    c->state.audits++;
    if (same)
        c->state.proved = c->audit_began;
    c->state.doubted = !same;
    return same ? BK_OK : bk_capture_mend(c, err);
}

static bk_rc_t step(bk_capture_t *c, bool woken, bool now, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = c->going ? look(c, now, &why) : start(c, &why);
    /* What could not be had now is tried again; the pin is held. */
    if (rc == BK_BUSY && c->going && (!c->batches || c->busy < BUSY_MOST))
        rc = BK_OK;
    if (rc == BK_OK && c->going && c->state.doubted && bk_mono() >= c->mend_rest) {
        rc = bk_capture_mend(c, &why);
        /* Transactions are captured meanwhile, from what is durable on. */
        c->mend_rest = rc == BK_OK ? 0 : bk_mono() + AUDIT_AGAIN;
    } else if (rc == BK_OK && c->at.txid == c->state.txid && !now && c->going && !c->state.doubted)
        rc = audit_when_due(c, &why);
    bool news = rc == BK_OK && c->at.txid != c->state.txid;
    if (news && c->log != NULL)
        rc = bk_txlog_sync(c->log, &why);
    if (rc == BK_OK && news)
        c->state.durable = bk_now();
    if (rc == BK_TOO_LARGE)
        bk_capture_forget(c);
    if (rc != BK_OK) {
        let_go(c);
        c->wait = WAIT_PAUSE;
        if (err != NULL)
            *err = why;
    } else if (woken || news) {
        c->wait = WAIT_FIRST;
    } else {
        c->wait = c->wait * 2 < WAIT_MOST ? c->wait * 2 : WAIT_MOST;
    }
    tell(c);
    return rc;
}

bk_rc_t bk_capture_step(bk_capture_t *c, bool woken, unsigned *again, bk_err_t *err)
{
    bk_rc_t rc = step(c, woken, false, err);
    *again = c->wait;
    return rc;
}

void bk_capture_doubt(bk_capture_t *c)
{
    c->state.doubted = true;
}

static bool is_at(const bk_capture_t *c, const bk_db_info_t *pinned)
{
    bk_txlog_place_t place;
    bk_capture_place(pinned, &place);
    return bk_txlog_same_place(&c->at.place, &place);
}

bk_rc_t bk_capture_pinned(bk_capture_t *c, const bk_db_info_t *pinned, bool *is, bk_err_t *err)
{
    *is = false;
    if (!c->going)
        return BK_OK;
    bk_rc_t rc = step(c, true, true, err);
    if (rc == BK_OK && c->going && pinned->inode == c->at.inode &&
        pinned->page_count == c->hashes.count)
        *is = c->batches ? bk_capture_marked(c) : is_at(c, pinned);
    return rc;
}
