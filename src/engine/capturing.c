/*
 * engine/capturing.c: steps of the captures, and when segments are sealed.  Writes below
 * base_dir/wal; engine/shipping.c takes what is sealed to the storage, engine/capture_report.c says
 * how it goes.
 */
#include "engine/capturing.h"

#include <dirent.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/capturing_private.h"
#include "engine/compact.h"
#include "engine/covered.h"
#include "engine/moments.h"

#define SEGMENT_SIZE (64ull << 20)
#define RETRY_MS     5000u
#define WAIT_MOST    1000u
#define QUIET_MOST   (600 * BK_SEC)
#define ROOM_EVERY   BK_SEC
#define BUSY_MS      2000u         /* for a lock: it is tried again, and a thread waits meanwhile */
#define HOLD_EVERY   BK_SEC        /* a hold moves on, or the log could not begin anew */
#define HOLD_MOST    (15 * BK_SEC) /* but it does, or ends, whatever nobody looked at by then */
#define HOLD_FRAMES  65536u        /* nor of one under which the log never comes to rest */
#define HOLD_BUSY_MS 1000u

bk_rc_t bk_capturing_new(const bk_set_t *set, bk_catalog_t *catalog, bk_capturing_t **result,
                         bk_err_t *err)
{
    bk_capturing_t *c = calloc(1, sizeof *c);
    if (c == NULL || (c->list = calloc(set->db_count + 1, sizeof *c->list)) == NULL) {
        free(c);
        return bk_err_set(err, BK_NO_MEMORY, "backup %s: out of memory", set->name);
    }
    c->set = set;
    c->catalog = catalog;
    for (size_t i = 0; i < set->db_count; i++) {
        char dir[PATH_MAX];
        bk_captured_t *one = &c->list[c->count];
        if (set->dbs[i].pitr_window == 0)
            continue;
        c->count++;
        one->db = &set->dbs[i];
        bk_moments_key(set->name, one->db->name, one->key);
        one->covered = -1;
        one->waiting = BK_WAITING_UNKNOWN;
        one->since_compacted = BK_COMPACT_RUN;
        one->sealed_some = true; /* by whoever had the set before */
        pthread_mutex_init(&one->lock, NULL);
        pthread_mutex_init(&one->text, NULL);
        bk_ctl_init(&one->ctl);
        bk_fmt(dir, sizeof dir, "%s/" BK_MOMENTS_DIR "/%s", set->base_dir, one->db->name);
        if ((one->dir = bk_strdup(dir)) == NULL) {
            bk_capturing_free(c);
            return bk_err_set(err, BK_NO_MEMORY, "backup %s: out of memory", set->name);
        }
    }
    *result = c;
    return BK_OK;
}

/* Lock held. */
static void end_hold(bk_captured_t *one)
{
    bk_capture_hold_end(one->hold);
    one->hold = NULL;
    one->next_held = 0;
}

/* Lock held. */
static void let_go(bk_captured_t *one)
{
    end_hold(one);
    atomic_store(&one->ctl.stop, 0); /* what ended a step is not to end its last look as well */
    bk_capture_close(one->capture);
    one->capture = NULL;
    if (one->covered >= 0)
        close(one->covered);
    one->covered = -1;
}

void bk_capturing_free(bk_capturing_t *c)
{
    if (c == NULL)
        return;
    for (size_t i = 0; i < c->count; i++) {
        bk_captured_t *one = &c->list[i];
        let_go(one);
        bk_ctl_free(&one->ctl);
        pthread_mutex_destroy(&one->lock);
        pthread_mutex_destroy(&one->text);
        free(one->dir);
    }
    free(c->list);
    free(c);
}

static bk_captured_t *find(bk_capturing_t *c, const char *path)
{
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->list[i].db->path, path) == 0)
            return &c->list[i];
    return NULL;
}

/* Waits for a step, which ends as soon as it looks: it may be reading the whole database. */
static void interrupt(bk_captured_t *one)
{
    bk_ctl_stop(&one->ctl, BK_INTERRUPTED);
    pthread_mutex_lock(&one->lock);
    let_go(one);
    pthread_mutex_unlock(&one->lock);
}

/*
 * The same without waiting: a step may hang in a system call for as long as a disk does.  Then the
 * thread of that step lets go when it comes back.
 */
static void interrupt_soon(bk_captured_t *one)
{
    bk_ctl_stop(&one->ctl, BK_INTERRUPTED);
    if (pthread_mutex_trylock(&one->lock) != 0)
        return;
    let_go(one);
    pthread_mutex_unlock(&one->lock);
}

/* With the next step. */
static void go_on(bk_captured_t *one)
{
    atomic_store(&one->soon, true);
}

void bk_capturing_allow(bk_capturing_t *c, bool allow)
{
    if (allow)
        bk_capture_report_begin(c);
    atomic_store(&c->allowed, allow);
    for (size_t i = 0; i < c->count && !allow; i++)
        interrupt(&c->list[i]);
}

void bk_capturing_suspend(bk_capturing_t *c, const char *path)
{
    bk_captured_t *one = find(c, path);
    if (one == NULL)
        return;
    atomic_store(&one->suspended, true);
    interrupt(one);
}

void bk_capturing_resume(bk_capturing_t *c, const char *path)
{
    bk_captured_t *one = find(c, path);
    if (one == NULL)
        return;
    atomic_store(&one->suspended, false);
    go_on(one);
}

void bk_capturing_detach(bk_capturing_t *c, const json_t *names)
{
    for (size_t i = 0; i < c->count; i++) {
        bk_captured_t *one = &c->list[i];
        bool detached = json_object_get(names, one->db->name) != NULL;
        if (atomic_exchange(&one->detached, detached) == detached)
            continue;
        if (detached)
            interrupt_soon(one);
        pthread_mutex_lock(&one->text);
        one->state.paused = true;
        one->problem[0] = '\0';
        pthread_mutex_unlock(&one->text);
        go_on(one);
        bk_log(BK_LOG_NOTICE, "backup %s: database %s is %s", c->set->name, one->db->name,
               detached ? "detached: its transactions are not captured" : "attached again");
    }
}

/* --- before the set is owned --- */

void bk_engine_capture_hold(bk_engine_t *engine)
{
    bk_capturing_t *c = engine->capturing;
    bk_engine_obey_detach(engine);
    for (size_t i = 0; i < c->count; i++) {
        bk_captured_t *one = &c->list[i];
        pthread_mutex_lock(&one->lock);
        if (one->capture == NULL && one->hold == NULL && one->held == 0 &&
            !atomic_load(&one->detached) && !atomic_load(&c->leaving)) {
            const char *path = one->db->path;
            one->held = bk_mono();
            if (bk_capture_hold(path, HOLD_BUSY_MS, NULL, &one->hold, NULL) == BK_DENIED) {
                bk_engine_reach_databases(engine); /* which may take long: only when it has to */
                (void)bk_capture_hold(path, HOLD_BUSY_MS, NULL, &one->hold, NULL);
            }
        }
        pthread_mutex_unlock(&one->lock);
    }
}

void bk_engine_capture_release(bk_engine_t *engine)
{
    bk_capturing_release(engine->capturing, true);
}

/*
 * Lock held.  That the other process still has the set tells nothing: its last look may be over.
 * What it says that it has looked at is captured, up to the second pin and so behind the first.
 */
static void hold_on(bk_captured_t *one)
{
    bk_capture_known_t known;
    int64_t age = bk_mono() - one->held;
    if (one->hold == NULL || age < HOLD_EVERY)
        return;
    if (one->next_held == 0 && bk_capture_hold_next(one->hold, NULL) == BK_OK)
        one->next_held = bk_now();
    bool looked = bk_covered_read(one->dir, &known) && known.until >= one->next_held;
    if (one->next_held == 0 && age >= HOLD_MOST)
        end_hold(one);
    if (one->next_held == 0 || (!looked && age < HOLD_MOST))
        return;
    bk_capture_hold_turn(one->hold);
    one->held = bk_mono();
    one->next_held = 0;
    if (bk_capture_hold_frames(one->hold) > HOLD_FRAMES)
        end_hold(one);
}

void bk_capturing_hold_on(bk_capturing_t *c)
{
    for (size_t i = 0; i < c->count; i++) {
        pthread_mutex_lock(&c->list[i].lock);
        hold_on(&c->list[i]);
        pthread_mutex_unlock(&c->list[i].lock);
    }
}

void bk_capturing_release(bk_capturing_t *c, bool leaving)
{
    if (leaving)
        atomic_store(&c->leaving, true);
    for (size_t i = 0; i < c->count; i++) {
        pthread_mutex_lock(&c->list[i].lock);
        end_hold(&c->list[i]);
        pthread_mutex_unlock(&c->list[i].lock);
    }
}

/* --- steps --- */

static void there_is_more(bk_captured_t *one)
{
    pthread_mutex_lock(&one->text);
    one->sealed_some = true;
    pthread_mutex_unlock(&one->text);
}

static bool may_run(bk_capturing_t *c, const bk_captured_t *one)
{
    return atomic_load(&c->allowed) && !atomic_load(&one->suspended) &&
           !atomic_load(&one->detached);
}

static bk_rc_t begin(bk_capturing_t *c, bk_captured_t *one, bk_err_t *err)
{
    char above[PATH_MAX];
    bk_capture_options_t options = {
        .database = one->db->path,
        .hold = one->hold,
        .dir = one->dir,
        .want_wal = one->db->wal == BK_WAL_REQUIRE,
        .busy_ms = one->db->busy_timeout < BUSY_MS ? (unsigned)one->db->busy_timeout : BUSY_MS};
    bk_fmt(above, sizeof above, "%s/" BK_MOMENTS_DIR, c->set->base_dir);
    bk_rc_t rc = bk_mkdir_last(above, 0700, err);
    if (rc == BK_OK)
        rc = bk_mkdir_last(one->dir, 0700, err);
    if (rc == BK_OK) {
        (void)bk_covered_read(one->dir, &options.known);
        atomic_store(&one->ctl.stop, 0); /* of the one before */
        /* Asked after that, so that no stop is missed. */
        if (!may_run(c, one))
            bk_ctl_stop(&one->ctl, BK_INTERRUPTED);
        one->sealed = bk_mono();
        rc = bk_capture_open(&options, &one->ctl, &one->capture, err);
    }
    if (rc == BK_OK) {
        there_is_more(one); /* it has sealed what the one before left */
        bk_capture_report_opened(one);
    }
    end_hold(one);
    return rc;
}

/* What it had to say meanwhile. */
static void tell_notes(bk_capturing_t *c, bk_captured_t *one)
{
    pthread_mutex_lock(&one->ctl.lock);
    for (unsigned i = 0; i < one->ctl.notes_kept; i++) {
        bk_log(BK_LOG_WARN, "backup %s: %s", c->set->name, one->ctl.notes[i]);
        free(one->ctl.notes[i]);
    }
    one->ctl.notes_kept = 0;
    one->ctl.notes_total = 0;
    pthread_mutex_unlock(&one->ctl.lock);
}

static void tell_epoch(const bk_capturing_t *c, const bk_captured_t *one)
{
    char time[BK_TIME_TEXT];
    bk_time_format(time, one->state.began);
    bk_log(BK_LOG_WARN,
           "backup %s: database %s: what is captured from %s on is not connected with what was "
           "captured before: it can be recovered after the next backup",
           c->set->name, one->db->name, time);
}

/* For the processes that answer what can be recovered. */
static void tell_covered(bk_captured_t *one, int64_t before)
{
    const bk_capture_state_t *s = &one->state;
    bk_capture_known_t known = {.txid = s->txid, .until = s->as_of};
    if (s->paused || s->page_size == 0 || s->as_of == before)
        return;
    memcpy(known.epoch, s->epoch, sizeof known.epoch);
    bk_covered_write(one->dir, &known, &one->covered);
}

/* What the capture was told, to the log; each once. */
static void tell(bk_capturing_t *c, bk_captured_t *one, bk_rc_t rc, const bk_err_t *err)
{
    tell_notes(c, one);
    bk_capture_state_t before = one->state;
    pthread_mutex_lock(&one->text);
    if (one->capture != NULL)
        bk_capture_state(one->capture, &one->state);
    else
        one->state.paused = true;
    bk_capture_report_step(one, &before);
    bool news = rc != BK_OK && strcmp(one->problem, err->text) != 0;
    bk_strcpy(one->problem, sizeof one->problem, rc != BK_OK ? err->text : "");
    bool begun = rc == BK_OK && (one->failed || before.page_size == 0);
    one->failed = rc != BK_OK;
    pthread_mutex_unlock(&one->text);
    tell_covered(one, before.as_of);
    bk_capture_report_remember(c, one, &before);
    if (news)
        bk_log(BK_LOG_ERROR, "backup %s: transactions are not captured: %s", c->set->name,
               err->text);
    else if (begun)
        bk_log(
            BK_LOG_NOTICE, "backup %s: database %s: %s from %llu on", c->set->name, one->db->name,
            one->state.batches
                ? "it has a rollback journal, in which transactions cannot be told apart (PRAGMA "
                  "journal_mode=WAL, once): what changes is captured in batches"
                : "every transaction is captured",
            (unsigned long long)one->state.txid + 1);
    if (memcmp(one->state.epoch, before.epoch, sizeof before.epoch) != 0 && one->state.new_epoch)
        tell_epoch(c, one);
    if (one->state.differing > before.differing)
        bk_log(BK_LOG_ERROR,
               "backup %s: database %s: %llu pages are not what its transactions made of them: "
               "somebody writes to the file past SQLite, or the disk damages it",
               c->set->name, one->db->name,
               (unsigned long long)(one->state.differing - before.differing));
    if (one->state.gaps > before.gaps)
        bk_log(BK_LOG_WARN,
               "backup %s: database %s: transaction %llu stands for all that happened while "
               "nothing was captured",
               c->set->name, one->db->name, (unsigned long long)one->state.txid);
}

/* What is set aside is not read any more, and removed when its window is over. */
static void set_aside(const bk_captured_t *one, const uint8_t epoch[BK_EPOCH_SIZE])
{
    struct dirent **names;
    char hex[2 * BK_EPOCH_SIZE + 1];
    bk_hex(hex, epoch, BK_EPOCH_SIZE);
    int count = scandir(one->dir, &names, bk_capturing_segments, NULL);
    for (int i = 0; i < count; i++) {
        char path[PATH_MAX];
        bk_err_t why = {0};
        bk_fmt(path, sizeof path, "%s/%s", one->dir, names[i]->d_name);
        if (strncmp(names[i]->d_name, hex, sizeof hex - 1) == 0 &&
            bk_capture_set_aside(path, "forked", &why) != BK_OK)
            bk_log(BK_LOG_WARN, "%s", why.text);
        free(names[i]);
    }
    if (count >= 0)
        free(names);
}

/* Shipping found that the storage knows other transactions of the same numbers. */
static bk_rc_t leave_fork(bk_capturing_t *c, bk_captured_t *one, bk_err_t *err)
{
    bk_capture_state_t state;
    pthread_mutex_lock(&one->text);
    bool forked = one->forked;
    uint64_t last = one->fork_last;
    pthread_mutex_unlock(&one->text);
    bk_capture_state(one->capture, &state);
    if (!forked || state.paused)
        return BK_OK;
    bk_rc_t rc = bk_capture_begin_epoch(one->capture, last, err);
    if (rc != BK_OK)
        return rc;
    set_aside(one, state.epoch);
    bk_log(BK_LOG_ERROR,
           "backup %s: database %s: %s is older than the transactions on the storage, as if it was "
           "put back to an earlier state; what was captured since is set aside as *.forked there",
           c->set->name, one->db->name, one->dir);
    pthread_mutex_lock(&one->text);
    one->forked = false;
    pthread_mutex_unlock(&one->text);
    return BK_OK;
}

/*
 * base_dir may lie on the application's disk: what is captured while the storage is away must not
 * fill it.  Then nothing is held any more, and a gap comes later.
 */
static bk_rc_t check_room(const bk_capturing_t *c, bk_captured_t *one, bk_err_t *err)
{
    uint64_t bytes = 0;
    if (one->capture != NULL && bk_mono() - one->room < ROOM_EVERY)
        return BK_OK;
    one->room = bk_mono();
    bk_rc_t rc = bk_free_space(c->set->base_dir, &bytes, err);
    if (rc == BK_OK)
        rc = bk_judge_space(c->set->base_dir, bytes, c->set->min_free, err);
    if (rc == BK_NO_SPACE)
        bk_err_wrap(err, "database %s: what happens from now on will be a gap", one->db->name);
    if (rc != BK_OK)
        let_go(one);
    return rc;
}

static bk_rc_t step(bk_capturing_t *c, bk_captured_t *one, bool woken, unsigned *again,
                    bk_err_t *err)
{
    *again = RETRY_MS;
    bk_rc_t rc = check_room(c, one, err);
    if (rc == BK_OK && one->capture == NULL)
        rc = begin(c, one, err);
    if (rc == BK_OK)
        rc = leave_fork(c, one, err);
    if (rc == BK_OK && bk_capture_report_doubted(one))
        bk_capture_doubt(one->capture);
    if (rc == BK_OK)
        rc = bk_capture_step(one->capture, woken, again, err);
    if (rc == BK_OK) {
        bk_capture_state_t state;
        bk_capture_state(one->capture, &state);
        if (state.bytes >= SEGMENT_SIZE ||
            bk_mono() - one->sealed >= (int64_t)c->set->ship_interval * BK_MS) {
            one->sealed = bk_mono();
            rc = bk_capture_roll(one->capture, err);
            if (state.bytes > 0)
                there_is_more(one);
        }
    }
    if (rc == BK_OK && one->failed)
        there_is_more(one); /* it began anew, and has sealed what was left */
    return rc;
}

static void note_stepping(bk_captured_t *one, int64_t since)
{
    pthread_mutex_lock(&one->text);
    one->stepping = since;
    pthread_mutex_unlock(&one->text);
}

/* To read all of a large database over and over while the application writes a lot helps nobody. */
static int64_t pause_after(bk_captured_t *one, bk_rc_t rc)
{
    one->timeouts = rc == BK_TIMEOUT ? one->timeouts + 1 : 0;
    int64_t pause = RETRY_MS * BK_MS;
    for (unsigned i = 0; i < one->timeouts && pause < QUIET_MOST; i++)
        pause *= 4;
    return pause < QUIET_MOST ? pause : QUIET_MOST;
}

static bk_rc_t after_step(bk_capturing_t *c, bk_captured_t *one, bk_rc_t rc, const bk_err_t *why)
{
    if (rc == BK_INTERRUPTED)
        rc = BK_OK;
    tell(c, one, rc, why);
    one->next = rc == BK_OK ? 0 : bk_mono() + pause_after(one, rc);
    return rc;
}

/* Lock held.  Whoever detached it did not wait for this, and may have attached it again. */
static void leave_when_told(bk_captured_t *one)
{
    if (one->capture == NULL || atomic_load(&one->ctl.stop) == 0)
        return;
    let_go(one);
    pthread_mutex_lock(&one->text);
    one->state.paused = true;
    pthread_mutex_unlock(&one->text);
}

size_t bk_engine_captures(bk_engine_t *engine)
{
    return engine->capturing->count;
}

bk_rc_t bk_engine_capture(bk_engine_t *engine, size_t which, bool woken, unsigned *again,
                          bk_err_t *err)
{
    bk_capturing_t *c = engine->capturing;
    bk_captured_t *one = &c->list[which];
    bk_err_t why = {0};
    bk_rc_t rc = BK_OK;
    *again = WAIT_MOST;
    pthread_mutex_lock(&one->lock);
    int64_t now = bk_mono();
    if (atomic_exchange(&one->soon, false))
        one->next = 0;
    bk_capture_report_first(one);
    leave_when_told(one);
    if (may_run(c, one) && now >= one->next) {
        note_stepping(one, now);
        rc = step(c, one, woken, again, &why);
        if (rc == BK_DENIED && one->capture == NULL && atomic_load(&engine->client) != NULL) {
            bk_engine_reach_databases(engine);
            bk_err_clear(&why);
            rc = step(c, one, woken, again, &why);
        }
        rc = after_step(c, one, rc, &why);
        note_stepping(one, 0);
        if (rc != BK_OK && err != NULL)
            *err = why;
    }
    leave_when_told(one);
    pthread_mutex_unlock(&one->lock);
    return rc;
}

static bool look_now(bk_capturing_t *c, bk_captured_t *one, const bk_db_info_t *pinned,
                     bk_capture_state_t *state, bk_err_t *why)
{
    bool is = false;
    if (!bk_capturing_lock_soon(one)) {
        bk_err_set(why, BK_TIMEOUT, "it is busy");
        return false;
    }
    if (one->capture != NULL)
        bk_capture_state(one->capture, state);
    if (one->capture != NULL && !state->paused && may_run(c, one)) {
        (void)after_step(c, one, bk_capture_pinned(one->capture, pinned, &is, why), why);
        bk_capture_state(one->capture, state);
    }
    pthread_mutex_unlock(&one->lock);
    return is;
}

bool bk_capturing_since(bk_capturing_t *c, const char *path, bk_capture_state_t *state)
{
    bk_captured_t *one = find(c, path);
    if (one == NULL)
        return false;
    pthread_mutex_lock(&one->text);
    *state = one->state;
    pthread_mutex_unlock(&one->text);
    return !state->paused && !state->batches && !state->doubted && state->page_size != 0;
}

bool bk_capturing_pinned(bk_capturing_t *c, const char *path, const bk_db_info_t *pinned,
                         bk_capture_state_t *state, bk_ctl_t *ctl)
{
    bk_err_t why = {0};
    bk_captured_t *one = find(c, path);
    if (one == NULL)
        return false;
    pthread_mutex_lock(&one->text);
    bool batches = one->state.batches && !atomic_load(&one->detached);
    bool going = !one->state.paused && one->state.page_size != 0; /* nor at its first read */
    bk_strcpy(why.text, sizeof why.text, one->problem);
    pthread_mutex_unlock(&one->text);
    bool is = going && look_now(c, one, pinned, state, &why);
    if (batches && !is && strcmp(pinned->journal, "wal") != 0)
        bk_ctl_note(ctl,
                    "database %s: what was read is no batch of its own, so no moment can be "
                    "recovered from this backup on: %s",
                    one->db->name, why.text[0] != '\0' ? why.text : "it is not captured now");
    return is;
}

/* --- what a backup read is not what was captured --- */

void bk_capturing_proved(bk_capturing_t *c, const char *path, int64_t when)
{
    bk_captured_t *one = find(c, path);
    if (one != NULL)
        bk_capture_report_proved(c, one, when);
}

void bk_capturing_doubt(bk_capturing_t *c, const char *path)
{
    bk_captured_t *one = find(c, path);
    if (one == NULL)
        return;
    bk_capture_report_doubt(c, one);
    go_on(one);
}
