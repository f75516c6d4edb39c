/*
 * engine/shipping.c: sealed segments to the storage, and away from base_dir once nobody needs them
 * there.  Reads below base_dir/wal, writes to the storage.
 *
 * The files belong to the capture, which alone knows which epoch it is in and which segment it
 * writes: an open segment is never touched here, and what is removed is decided under the capture's
 * lock, while this process still has the set.  What is put on the storage needs no lock: a sealed
 * segment does not change any more.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/capturing_private.h"
#include "engine/compact.h"
#include "engine/moments_private.h"

#define LOCK_WAIT 1 /* s: a step is over by then, unless it reads the whole database */

static int set_aside_ones(const struct dirent *entry)
{
    const char *end = strrchr(entry->d_name, '.');
    return end != NULL && (strcmp(end, ".forked") == 0 || strcmp(end, ".damaged") == 0);
}

int bk_capturing_segments(const struct dirent *entry)
{
    const char *end = strrchr(entry->d_name, '.');
    return entry->d_name[0] != '.' && end != NULL && strcmp(end, ".tx") == 0;
}

/* What is known of a segment. */
typedef struct {
    bk_history_name_t name;
    int64_t until; /* ns: of its last transaction */
    bool sealed, empty;
} segment_t;

static bk_rc_t look_at(const bk_captured_t *one, const char *path, segment_t *segment,
                       bk_err_t *err)
{
    bk_txlog_t *log = NULL;
    bk_rc_t rc = bk_txlog_open_file(path, &log, err);
    if (rc != BK_OK)
        return rc;
    size_t count = bk_txlog_count(log);
    const bk_txlog_info_t *info = bk_txlog_info(log);
    *segment = (segment_t){.sealed = bk_txlog_sealed(log), .empty = count == 0};
    bk_strcpy(segment->name.database, sizeof segment->name.database, one->key);
    memcpy(segment->name.epoch, info->epoch, BK_EPOCH_SIZE);
    segment->name.first = info->first;
    if (count > 0) {
        segment->name.last = bk_txlog_tx(log, count - 1)->txid;
        segment->until = bk_txlog_tx(log, count - 1)->t_hi;
    }
    bk_txlog_free(log);
    return BK_OK;
}

static bk_rc_t put(bk_repo_t *repo, const segment_t *segment, const char *path, bk_ctl_t *ctl,
                   bk_err_t *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bk_rc_t rc = fd < 0 || fstat(fd, &st) != 0
                     ? bk_err_sys(err, errno, "open %s", path)
                     : bk_history_put(repo, &segment->name, fd, (uint64_t)st.st_size, ctl, err);
    if (fd >= 0)
        close(fd);
    return rc;
}

static bool is_shipped(bk_captured_t *one, const segment_t *segment)
{
    pthread_mutex_lock(&one->text);
    bool shipped = memcmp(segment->name.epoch, one->shipped_epoch, BK_EPOCH_SIZE) == 0 &&
                   segment->name.last <= one->shipped;
    pthread_mutex_unlock(&one->text);
    return shipped;
}

/* Of the epoch that goes on, when look_at_storage has seen what was there before. */
static void note_shipped(bk_captured_t *one, const segment_t *segment)
{
    pthread_mutex_lock(&one->text);
    if (memcmp(segment->name.epoch, one->shipped_epoch, BK_EPOCH_SIZE) == 0 &&
        segment->name.last > one->shipped) {
        one->shipped = segment->name.last;
        one->shipped_until = segment->until;
    }
    pthread_mutex_unlock(&one->text);
}

/*
 * Lock held.  Whether a segment is needed to go on after a crash; before the first capture nobody
 * knows which epoch goes on.  One that was let go of needs what it needed then.
 */
static bool is_needed(bk_captured_t *one, const segment_t *segment)
{
    pthread_mutex_lock(&one->text);
    bk_capture_state_t state = one->state;
    pthread_mutex_unlock(&one->text);
    if (one->capture != NULL)
        bk_capture_state(one->capture, &state);
    return state.page_size == 0 || (memcmp(segment->name.epoch, state.epoch, BK_EPOCH_SIZE) == 0 &&
                                    segment->name.last > state.saved);
}

bool bk_capturing_lock_soon(bk_captured_t *one)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += LOCK_WAIT;
    return pthread_mutex_timedlock(&one->lock, &until) == 0;
}

/* One that is on the storage; *later: not now. */
static bk_rc_t remove_local(bk_capturing_t *c, bk_captured_t *one, const segment_t *segment,
                            const char *path, bool *later, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (!bk_capturing_lock_soon(one)) {
        *later = true;
        return BK_OK;
    }
    if (!atomic_load(&c->allowed))
        rc = bk_err_set(err, BK_INTERRUPTED, "the set has another owner");
    else if (!is_needed(one, segment) && unlink(path) != 0)
        rc = bk_err_sys(err, errno, "remove %s", path);
    pthread_mutex_unlock(&one->lock);
    return rc;
}

/*
 * One that cannot be read must not keep those behind it from the storage: what it held is missing,
 * and found to be when somebody asks for it.  What the capture may still need is left to it.
 */
static void put_away(const bk_capturing_t *c, bk_captured_t *one, const char *path,
                     const bk_err_t *why)
{
    segment_t segment = {.name.last = UINT64_MAX};
    const char *name = strrchr(path, '/') + 1;
    bk_err_t failure = {0};
    if (!bk_unhex(segment.name.epoch, BK_EPOCH_SIZE, name, 2 * BK_EPOCH_SIZE) ||
        !bk_capturing_lock_soon(one))
        return;
    if (atomic_load(&c->allowed) && !is_needed(one, &segment)) {
        bk_rc_t rc = bk_capture_set_aside(path, "damaged", &failure);
        bk_log(BK_LOG_ERROR, "backup %s: database %s: transactions are lost: %s; %s", c->set->name,
               one->db->name, why->text,
               rc == BK_OK ? "the segment is set aside as *.damaged" : failure.text);
    }
    pthread_mutex_unlock(&one->lock);
}

/* After the window nobody wants them. */
static void forget_old(const bk_captured_t *one)
{
    struct dirent **names;
    int count = scandir(one->dir, &names, set_aside_ones, NULL);
    for (int i = 0; i < count; i++) {
        char path[PATH_MAX];
        struct stat st;
        bk_fmt(path, sizeof path, "%s/%s", one->dir, names[i]->d_name);
        if (stat(path, &st) == 0 &&
            bk_now() / BK_SEC - st.st_mtime > (int64_t)(one->db->pitr_window / 1000))
            unlink(path);
        free(names[i]);
    }
    if (count >= 0)
        free(names);
}

static bk_rc_t ship_one(bk_capturing_t *c, bk_captured_t *one, bk_repo_t *repo, const char *path,
                        bool *later, bk_ctl_t *ctl, bk_err_t *err)
{
    segment_t segment;
    if (!atomic_load(&c->allowed))
        return bk_err_set(err, BK_INTERRUPTED, "the set has another owner");
    bk_err_t why = {0};
    bk_rc_t rc = look_at(one, path, &segment, &why);
    if (rc == BK_CORRUPT) {
        put_away(c, one, path, &why);
        return BK_OK;
    }
    if (rc != BK_OK && err != NULL)
        *err = why;
    if (rc != BK_OK || !segment.sealed)
        return rc;
    if (!segment.empty && !is_shipped(one, &segment)) {
        rc = put(repo, &segment, path, ctl, err);
        if (rc == BK_OK)
            note_shipped(one, &segment);
    }
    return rc == BK_OK ? remove_local(c, one, &segment, path, later, err) : rc;
}

/* --- what is there already --- */

/* What the database was after a transaction; not found: the segment does not tell. */
static void digest_in(const bk_txlog_t *log, uint64_t txid, uint64_t *digest, bool *found)
{
    uint64_t first = bk_txlog_info(log)->first;
    size_t count = bk_txlog_count(log);
    *found = txid + 1 >= first && txid < first + count;
    if (*found)
        *digest = txid >= first ? bk_txlog_tx(log, (size_t)(txid - first))->after
                                : bk_txlog_tx(log, 0)->before;
}

/* After the last one of a segment of the storage. */
static bk_rc_t digest_stored(bk_repo_t *repo, const bk_history_item_t *item, uint64_t *digest,
                             bool *found, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_txlog_t *log = NULL;
    bk_rc_t rc = bk_moments_open_stored(repo, item, ctl, &log, err);
    if (rc == BK_OK)
        digest_in(log, item->name.last, digest, found);
    bk_txlog_free(log);
    return rc;
}

/* The same of the segments that are here; not found: they begin later, or there are none. */
static void digest_here(const bk_captured_t *one, const uint8_t epoch[BK_EPOCH_SIZE], uint64_t txid,
                        uint64_t *digest, bool *found)
{
    struct dirent **names;
    char hex[2 * BK_EPOCH_SIZE + 1];
    bk_hex(hex, epoch, BK_EPOCH_SIZE);
    *found = false;
    int count = scandir(one->dir, &names, bk_capturing_segments, alphasort);
    for (int i = 0; i < count; i++) {
        char path[PATH_MAX];
        bk_txlog_t *log = NULL;
        bk_fmt(path, sizeof path, "%s/%s", one->dir, names[i]->d_name);
        if (!*found && strncmp(names[i]->d_name, hex, sizeof hex - 1) == 0 &&
            bk_txlog_open_file(path, &log, NULL) == BK_OK)
            digest_in(log, txid, digest, found);
        bk_txlog_free(log);
        free(names[i]);
    }
    if (count >= 0)
        free(names);
}

/*
 * Everything that is on the storage was durable here before.  When the storage is ahead of what a
 * capture went on from, or its last transaction ended with another content, base_dir is an older
 * state of itself (a machine's snapshot was put back), and the numbers that come next are taken.
 */
static bk_rc_t is_fork(const bk_captured_t *one, const bk_capture_state_t *state, bk_repo_t *repo,
                       const bk_history_item_t *last, bool *fork, bk_ctl_t *ctl, bk_err_t *err)
{
    uint64_t here = state->resumed_digest, there = 0;
    bool found = last->name.last == state->resumed, stored = false;
    *fork = last->name.last > state->resumed;
    if (*fork)
        return BK_OK;
    if (!found)
        digest_here(one, state->epoch, last->name.last, &here, &found);
    bk_rc_t rc = found ? digest_stored(repo, last, &there, &stored, ctl, err) : BK_OK;
    *fork = rc == BK_OK && found && stored && here != there;
    return rc;
}

/* What an earlier worker shipped of the epoch that goes on. */
static bk_rc_t look_at_storage(bk_captured_t *one, bk_repo_t *repo, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_history_list_t list;
    bool fork = false;
    pthread_mutex_lock(&one->text);
    bk_capture_state_t state = one->state;
    bool known =
        state.page_size == 0 || memcmp(state.epoch, one->shipped_epoch, sizeof state.epoch) == 0;
    pthread_mutex_unlock(&one->text);
    if (known)
        return BK_OK;
    bk_rc_t rc = bk_history_list(repo, one->key, state.epoch, ctl, &list, err);
    if (rc != BK_OK)
        return rc;
    const bk_history_item_t *last = list.count > 0 ? &list.items[list.count - 1] : NULL;
    if (last != NULL)
        rc = is_fork(one, &state, repo, last, &fork, ctl, err);
    if (rc == BK_OK) {
        pthread_mutex_lock(&one->text);
        one->forked = fork && memcmp(one->state.epoch, state.epoch, sizeof state.epoch) == 0;
        one->fork_last = fork ? last->name.last : 0;
        if (!fork) {
            memcpy(one->shipped_epoch, state.epoch, sizeof state.epoch);
            one->shipped = last != NULL ? last->name.last : 0;
            one->shipped_until = 0;
        }
        pthread_mutex_unlock(&one->text);
    }
    bk_history_list_free(&list);
    return rc;
}

static bool is_forked(bk_captured_t *one)
{
    pthread_mutex_lock(&one->text);
    bool forked = one->forked;
    pthread_mutex_unlock(&one->text);
    return forked;
}

/* *later: there is something left that may be removed another time. */
static bk_rc_t ship_all_of(bk_capturing_t *c, bk_captured_t *one, bk_repo_t *repo, bool *later,
                           bk_ctl_t *ctl, bk_err_t *err)
{
    struct dirent **names;
    bk_rc_t rc = look_at_storage(one, repo, ctl, err);
    if (rc != BK_OK)
        return rc;
    if (is_forked(one)) { /* the next step begins an epoch */
        *later = true;
        return BK_OK;
    }
    int count = scandir(one->dir, &names, bk_capturing_segments, alphasort);
    for (int i = 0; i < count; i++) {
        char path[PATH_MAX];
        bk_fmt(path, sizeof path, "%s/%s", one->dir, names[i]->d_name);
        if (rc == BK_OK)
            rc = ship_one(c, one, repo, path, later, ctl, err);
        free(names[i]);
    }
    if (count >= 0)
        free(names);
    bk_capture_report_waiting(one);
    forget_old(one);
    return rc;
}

static bool sealed_some(bk_captured_t *one, bool set, bool value)
{
    pthread_mutex_lock(&one->text);
    bool some = one->sealed_some;
    if (set)
        one->sealed_some = value;
    pthread_mutex_unlock(&one->text);
    return some;
}

/* One run now and then, and the next one with the next shipment. */
static void compact(bk_engine_t *engine, bk_captured_t *one, bk_repo_t *repo, bk_ctl_t *ctl)
{
    size_t merged = 0;
    bk_err_t why = {0};
    if (++one->since_compacted < BK_COMPACT_RUN)
        return;
    bk_rc_t rc = bk_compact(engine, repo, one->key, BK_COMPACT_GRACE, &merged, ctl, &why);
    one->since_compacted = merged > 0 ? BK_COMPACT_RUN : 0;
    if (rc != BK_OK && rc != BK_INTERRUPTED && rc != BK_CANCELED)
        bk_log(BK_LOG_WARN, "backup %s: small segments of transactions stay as they are: %s",
               engine->set->name, why.text);
}

static bool some_sealed(bk_capturing_t *c)
{
    bool any = false;
    for (size_t i = 0; i < c->count; i++)
        any = any || sealed_some(&c->list[i], false, false);
    return any;
}

/* The repository is opened only when there is something for it. */
static bk_rc_t ship_all(bk_engine_t *engine, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_capturing_t *c = engine->capturing;
    bk_opened_t opened;
    bk_rc_t rc = bk_engine_open_repo(engine, false, ctl, &opened, err);
    if (rc != BK_OK)
        return rc;
    for (size_t i = 0; i < c->count && rc == BK_OK; i++) {
        bk_captured_t *one = &c->list[i];
        bool later = false;
        if (!sealed_some(one, true, false))
            continue;
        rc = ship_all_of(c, one, opened.repo, &later, ctl, err);
        if (rc != BK_OK || later)
            (void)sealed_some(one, true, true);
        else
            compact(engine, one, opened.repo, ctl);
    }
    bk_engine_close_repo(&opened);
    return rc;
}

/* To the log, once; and to the status, until it is over. */
static void tell(bk_capturing_t *c, bk_rc_t rc, const bk_err_t *why)
{
    /* Before the first backup there is nothing to go with it. */
    bool new = rc != BK_REPO_MISSING &&strcmp(c->problem, why->text) != 0;
    if (rc != BK_OK && new)
        bk_log(BK_LOG_ERROR, "backup %s: transactions stay in %s/" BK_MOMENTS_DIR " for now: %s",
               c->set->name, c->set->base_dir, why->text);
    else if (rc == BK_OK && c->problem[0] != '\0')
        bk_log(BK_LOG_NOTICE, "backup %s: transactions are on the storage again", c->set->name);
    bk_strcpy(c->problem, sizeof c->problem, rc == BK_OK || rc == BK_REPO_MISSING ? "" : why->text);
    for (size_t i = 0; i < c->count; i++) {
        pthread_mutex_lock(&c->list[i].text);
        bk_strcpy(c->list[i].shipping, sizeof c->list[i].shipping, rc == BK_OK ? "" : why->text);
        pthread_mutex_unlock(&c->list[i].text);
    }
}

bk_rc_t bk_engine_ship(bk_engine_t *engine, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_capturing_t *c = engine->capturing;
    bk_err_t why = {0};
    if (!some_sealed(c) || !atomic_load(&c->allowed))
        return BK_OK;
    bk_rc_t rc = ship_all(engine, ctl, &why);
    if (rc == BK_INTERRUPTED)
        return BK_OK; /* the next owner goes on */
    tell(c, rc, &why);
    if (rc == BK_REPO_MISSING)
        return BK_OK;
    if (rc != BK_OK && err != NULL)
        *err = why;
    return rc;
}
