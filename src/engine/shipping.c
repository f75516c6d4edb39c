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
#include "engine/moments.h"

#define LOCK_WAIT 1 /* s: a step is over by then, unless it reads the whole database */

static int only_segments(const struct dirent *entry)
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

/* Those of an epoch that is over say nothing about the one that goes on. */
static void note_shipped(bk_captured_t *one, const segment_t *segment)
{
    pthread_mutex_lock(&one->text);
    if (one->state.page_size == 0 ||
        memcmp(segment->name.epoch, one->state.epoch, BK_EPOCH_SIZE) == 0) {
        memcpy(one->shipped_epoch, segment->name.epoch, BK_EPOCH_SIZE);
        one->shipped = segment->name.last;
        one->shipped_until = segment->until;
    }
    pthread_mutex_unlock(&one->text);
}

/*
 * Lock held.  Whether a segment is needed to go on after a crash; before the first capture nobody
 * knows which epoch goes on.
 */
static bool is_needed(const bk_captured_t *one, const segment_t *segment)
{
    bk_capture_state_t state;
    if (one->capture == NULL)
        return true;
    bk_capture_state(one->capture, &state);
    return memcmp(segment->name.epoch, state.epoch, BK_EPOCH_SIZE) == 0 &&
           segment->name.last > state.saved;
}

/* One that is on the storage; *later: whoever has the lock takes too long. */
static bk_rc_t remove_local(bk_capturing_t *c, bk_captured_t *one, const segment_t *segment,
                            const char *path, bool *later, bk_err_t *err)
{
    struct timespec until;
    bk_rc_t rc = BK_OK;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += LOCK_WAIT;
    if (pthread_mutex_timedlock(&one->lock, &until) != 0) {
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

static bk_rc_t ship_one(bk_capturing_t *c, bk_captured_t *one, bk_repo_t *repo, const char *path,
                        bool *later, bk_ctl_t *ctl, bk_err_t *err)
{
    segment_t segment;
    if (!atomic_load(&c->allowed))
        return bk_err_set(err, BK_INTERRUPTED, "the set has another owner");
    bk_rc_t rc = look_at(one, path, &segment, err);
    if (rc != BK_OK || !segment.sealed)
        return rc;
    if (!segment.empty && !is_shipped(one, &segment)) {
        rc = put(repo, &segment, path, ctl, err);
        if (rc == BK_OK)
            note_shipped(one, &segment);
    }
    return rc == BK_OK ? remove_local(c, one, &segment, path, later, err) : rc;
}

/* What an earlier worker shipped of the epoch that goes on. */
static bk_rc_t look_at_storage(bk_captured_t *one, bk_repo_t *repo, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_history_list_t list;
    uint8_t epoch[BK_EPOCH_SIZE];
    pthread_mutex_lock(&one->text);
    memcpy(epoch, one->state.epoch, sizeof epoch);
    bool known = one->state.page_size == 0 || memcmp(epoch, one->shipped_epoch, sizeof epoch) == 0;
    pthread_mutex_unlock(&one->text);
    if (known)
        return BK_OK;
    bk_rc_t rc = bk_history_list(repo, one->key, epoch, ctl, &list, err);
    if (rc != BK_OK)
        return rc;
    pthread_mutex_lock(&one->text);
    memcpy(one->shipped_epoch, epoch, sizeof epoch);
    one->shipped = list.count > 0 ? list.items[list.count - 1].name.last : 0;
    one->shipped_until = 0;
    pthread_mutex_unlock(&one->text);
    bk_history_list_free(&list);
    return BK_OK;
}

/* *later: there is something left that may be removed another time. */
static bk_rc_t ship_all_of(bk_capturing_t *c, bk_captured_t *one, bk_repo_t *repo, bool *later,
                           bk_ctl_t *ctl, bk_err_t *err)
{
    struct dirent **names;
    bk_rc_t rc = look_at_storage(one, repo, ctl, err);
    if (rc != BK_OK)
        return rc;
    int count = scandir(one->dir, &names, only_segments, alphasort);
    for (int i = 0; i < count; i++) {
        char path[PATH_MAX];
        bk_fmt(path, sizeof path, "%s/%s", one->dir, names[i]->d_name);
        if (rc == BK_OK)
            rc = ship_one(c, one, repo, path, later, ctl, err);
        free(names[i]);
    }
    if (count >= 0)
        free(names);
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

/* The repository is opened only when there is something for it. */
static bk_rc_t ship_all(bk_engine_t *engine, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_capturing_t *c = engine->capturing;
    bk_opened_t opened;
    bool any = false;
    for (size_t i = 0; i < c->count; i++)
        any = any || sealed_some(&c->list[i], false, false);
    if (!any || !atomic_load(&c->allowed))
        return BK_OK;
    bk_rc_t rc = bk_engine_open_repo(engine, false, ctl, &opened, err);
    if (rc == BK_REPO_MISSING) { /* before the first backup there is nothing to go with it */
        bk_err_clear(err);
        return BK_OK;
    }
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
    }
    bk_engine_close_repo(&opened);
    return rc;
}

bk_rc_t bk_engine_ship(bk_engine_t *engine, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_capturing_t *c = engine->capturing;
    bk_err_t why = {0};
    bk_rc_t rc = ship_all(engine, ctl, &why);
    if (rc == BK_INTERRUPTED)
        return BK_OK; /* the next owner goes on */
    if (rc != BK_OK && strcmp(c->problem, why.text) != 0)
        bk_log(BK_LOG_ERROR, "backup %s: transactions stay in %s/" BK_MOMENTS_DIR " for now: %s",
               c->set->name, c->set->base_dir, why.text);
    else if (rc == BK_OK && c->problem[0] != '\0')
        bk_log(BK_LOG_NOTICE, "backup %s: transactions are on the storage again", c->set->name);
    bk_strcpy(c->problem, sizeof c->problem, rc == BK_OK ? "" : why.text);
    if (rc != BK_OK && err != NULL)
        *err = why;
    return rc;
}
