/*
 * engine/capturing.c: steps of the captures, when segments are sealed, and shipping.  Writes below
 * base_dir/wal and to the storage.
 */
#include "engine/capturing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/compact.h"
#include "engine/covered.h"
#include "engine/engine_private.h"
#include "engine/moments.h"
#include "repo/history.h"
#include "sqlite/capture.h"

#define SHIP_EVERY   (10 * BK_SEC)
#define SEGMENT_SIZE (64ull << 20)
#define RETRY_MS     5000u
#define WAIT_MOST    1000u
#define HOLD_MOST    (15 * BK_SEC) /* the log grows meanwhile */
#define HOLD_BUSY_MS 1000u

typedef struct {
    const bk_set_db_t *db;
    char key[BK_HISTORY_NAME]; /* on the storage */
    char *dir;
    pthread_mutex_t lock; /* guards what follows; held during a step */
    bk_capture_t *capture;
    bk_ctl_t ctl;
    bk_capture_hold_t *hold; /* before this process owns the set */
    int64_t held;            /* bk_mono */
    bool suspended, failed;
    bool detached;  /* somebody wants it so; guarded by text as well */
    int64_t next;   /* bk_mono: not before */
    int64_t sealed; /* bk_mono: of the last segment */

    pthread_mutex_t text; /* guards what status shows */
    bk_capture_state_t state;
    char problem[BK_ERR_TEXT];
    int covered;      /* open for bk_covered_write, or -1 */
    bool sealed_some; /* since it was shipped, or maybe */
    uint8_t shipped_epoch[BK_EPOCH_SIZE];
    unsigned since_compacted; /* shipments; of the thread that ships */
    uint64_t shipped;      /* its transactions up to this are on the storage, as far as is known */
    int64_t shipped_until; /* ns: as of then they are */
} captured_t;

struct bk_capturing_s {
    const bk_set_t *set;
    captured_t *list; /* those with a window */
    size_t count;
    atomic_bool allowed;
    char problem[BK_ERR_TEXT]; /* of shipping, as last told; its thread's */
};

bk_rc_t bk_capturing_new(const bk_set_t *set, bk_capturing_t **result, bk_err_t *err)
{
    bk_capturing_t *c = calloc(1, sizeof *c);
    if (c == NULL || (c->list = calloc(set->db_count + 1, sizeof *c->list)) == NULL) {
        free(c);
        return bk_err_set(err, BK_NO_MEMORY, "backup %s: out of memory", set->name);
    }
    c->set = set;
    for (size_t i = 0; i < set->db_count; i++) {
        char dir[PATH_MAX];
        captured_t *one = &c->list[c->count];
        if (set->dbs[i].pitr_window == 0)
            continue;
        c->count++;
        one->db = &set->dbs[i];
        bk_moments_key(set->name, one->db->name, one->key);
        one->covered = -1;
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
static void end_hold(captured_t *one)
{
    bk_capture_hold_end(one->hold);
    one->hold = NULL;
}

/* Lock held. */
static void let_go(captured_t *one)
{
    end_hold(one);
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
        captured_t *one = &c->list[i];
        let_go(one);
        bk_ctl_free(&one->ctl);
        pthread_mutex_destroy(&one->lock);
        pthread_mutex_destroy(&one->text);
        free(one->dir);
    }
    free(c->list);
    free(c);
}

void bk_capturing_allow(bk_capturing_t *c, bool allow)
{
    atomic_store(&c->allowed, allow);
    for (size_t i = 0; i < c->count && !allow; i++) {
        /* One that reads a whole database ends soon. */
        bk_ctl_stop(&c->list[i].ctl, BK_INTERRUPTED);
        pthread_mutex_lock(&c->list[i].lock);
        let_go(&c->list[i]);
        pthread_mutex_unlock(&c->list[i].lock);
    }
}

static captured_t *find(bk_capturing_t *c, const char *path)
{
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->list[i].db->path, path) == 0)
            return &c->list[i];
    return NULL;
}

void bk_capturing_suspend(bk_capturing_t *c, const char *path)
{
    captured_t *one = find(c, path);
    if (one == NULL)
        return;
    pthread_mutex_lock(&one->lock);
    one->suspended = true;
    let_go(one);
    pthread_mutex_unlock(&one->lock);
}

void bk_capturing_resume(bk_capturing_t *c, const char *path)
{
    captured_t *one = find(c, path);
    if (one == NULL)
        return;
    pthread_mutex_lock(&one->lock);
    one->suspended = false;
    one->next = 0;
    pthread_mutex_unlock(&one->lock);
}

void bk_capturing_detach(bk_capturing_t *c, const json_t *names)
{
    for (size_t i = 0; i < c->count; i++) {
        captured_t *one = &c->list[i];
        bool detached = json_object_get(names, one->db->name) != NULL;
        if (detached == one->detached)
            continue;
        pthread_mutex_lock(&one->lock);
        pthread_mutex_lock(&one->text);
        one->detached = detached;
        one->state.paused = true;
        one->problem[0] = '\0';
        pthread_mutex_unlock(&one->text);
        one->next = 0;
        if (detached)
            let_go(one);
        pthread_mutex_unlock(&one->lock);
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
        captured_t *one = &c->list[i];
        pthread_mutex_lock(&one->lock);
        if (one->capture == NULL && one->hold == NULL && one->held == 0 && !one->detached) {
            one->held = bk_mono();
            (void)bk_capture_hold(one->db->path, HOLD_BUSY_MS, NULL, &one->hold, NULL);
        }
        pthread_mutex_unlock(&one->lock);
    }
}

void bk_capturing_tire(bk_capturing_t *c)
{
    for (size_t i = 0; i < c->count; i++) {
        captured_t *one = &c->list[i];
        pthread_mutex_lock(&one->lock);
        if (bk_mono() - one->held >= HOLD_MOST)
            end_hold(one);
        pthread_mutex_unlock(&one->lock);
    }
}

/* --- steps --- */

static bk_rc_t begin(bk_capturing_t *c, captured_t *one, bk_err_t *err)
{
    char above[PATH_MAX];
    bk_capture_options_t options = {.database = one->db->path,
                                    .hold = one->hold,
                                    .dir = one->dir,
                                    .busy_ms = (unsigned)one->db->busy_timeout};
    bk_fmt(above, sizeof above, "%s/" BK_MOMENTS_DIR, c->set->base_dir);
    bk_rc_t rc = bk_mkdir_last(above, 0700, err);
    if (rc == BK_OK)
        rc = bk_mkdir_last(one->dir, 0700, err);
    if (rc == BK_OK) {
        (void)bk_covered_read(one->dir, &options.known);
        atomic_store(&one->ctl.stop, 0); /* of the one before */
        /* Asked after that, so that no stop is missed. */
        if (!atomic_load(&c->allowed))
            bk_ctl_stop(&one->ctl, BK_INTERRUPTED);
        one->sealed = bk_mono();
        rc = bk_capture_open(&options, &one->ctl, &one->capture, err);
    }
    end_hold(one);
    return rc;
}

/* What it had to say meanwhile. */
static void tell_notes(bk_capturing_t *c, captured_t *one)
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

/* For the processes that answer what can be recovered. */
static void tell_covered(captured_t *one, int64_t before)
{
    const bk_capture_state_t *s = &one->state;
    bk_capture_known_t known = {.txid = s->txid, .until = s->as_of};
    if (s->paused || s->page_size == 0 || s->as_of == before)
        return;
    memcpy(known.epoch, s->epoch, sizeof known.epoch);
    bk_covered_write(one->dir, &known, &one->covered);
}

/* What the capture was told, to the log; each once. */
static void tell(bk_capturing_t *c, captured_t *one, bk_rc_t rc, const bk_err_t *err)
{
    tell_notes(c, one);
    bk_capture_state_t before = one->state;
    pthread_mutex_lock(&one->text);
    if (one->capture != NULL)
        bk_capture_state(one->capture, &one->state);
    else
        one->state.paused = true;
    bool news = rc != BK_OK && strcmp(one->problem, err->text) != 0;
    bk_strcpy(one->problem, sizeof one->problem, rc != BK_OK ? err->text : "");
    bool begun = rc == BK_OK && (one->failed || before.page_size == 0);
    one->failed = rc != BK_OK;
    pthread_mutex_unlock(&one->text);
    tell_covered(one, before.as_of);
    if (news)
        bk_log(BK_LOG_ERROR, "backup %s: transactions are not captured: %s", c->set->name,
               err->text);
    else if (begun)
        bk_log(BK_LOG_NOTICE, "backup %s: database %s: every transaction is captured from %llu on",
               c->set->name, one->db->name, (unsigned long long)one->state.txid + 1);
    if (one->state.gaps > before.gaps)
        bk_log(BK_LOG_WARN,
               "backup %s: database %s: transaction %llu stands for all that happened while "
               "nothing was captured",
               c->set->name, one->db->name, (unsigned long long)one->state.txid);
}

static bk_rc_t step(bk_capturing_t *c, captured_t *one, bool woken, unsigned *again, bk_err_t *err)
{
    *again = RETRY_MS;
    bk_rc_t rc = one->capture == NULL ? begin(c, one, err) : BK_OK;
    if (rc == BK_OK)
        rc = bk_capture_step(one->capture, woken, again, err);
    if (rc == BK_OK) {
        bk_capture_state_t state;
        bk_capture_state(one->capture, &state);
        if (state.bytes >= SEGMENT_SIZE || bk_mono() - one->sealed >= SHIP_EVERY) {
            one->sealed = bk_mono();
            rc = bk_capture_roll(one->capture, err);
            pthread_mutex_lock(&one->text);
            one->sealed_some = one->sealed_some || state.bytes > 0;
            pthread_mutex_unlock(&one->text);
        }
    }
    return rc;
}

bk_rc_t bk_engine_capture(bk_engine_t *engine, bool woken, unsigned *again, bk_err_t *err)
{
    bk_capturing_t *c = engine->capturing;
    bk_rc_t result = BK_OK;
    *again = WAIT_MOST;
    for (size_t i = 0; i < c->count; i++) {
        captured_t *one = &c->list[i];
        unsigned wait = WAIT_MOST;
        bk_err_t why = {0};
        pthread_mutex_lock(&one->lock);
        int64_t now = bk_mono();
        if (atomic_load(&c->allowed) && !one->suspended && !one->detached && now >= one->next) {
            bk_rc_t rc = step(c, one, woken, &wait, &why);
            if (rc == BK_INTERRUPTED)
                rc = BK_OK;
            tell(c, one, rc, &why);
            one->next = rc == BK_OK ? 0 : now + RETRY_MS * BK_MS;
            if (rc != BK_OK && result == BK_OK) {
                result = rc;
                if (err != NULL)
                    *err = why;
            }
        }
        pthread_mutex_unlock(&one->lock);
        if (wait < *again)
            *again = wait;
    }
    return result;
}

/* --- shipping --- */

static int only_segments(const struct dirent *entry)
{
    return entry->d_name[0] != '.' && strstr(entry->d_name, ".tx") != NULL;
}

/* What is known of a segment, and what may be done with it. */
typedef struct {
    bk_history_name_t name;
    int64_t until; /* ns: of its last transaction */
    bool sealed, empty;
    bool ended;  /* of an epoch that is over: nothing is added any more */
    bool known;  /* it is on the storage */
    bool needed; /* to go on after a crash */
} segment_t;

static bk_rc_t look_at(captured_t *one, const char *path, segment_t *segment, bk_err_t *err)
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
    pthread_mutex_lock(&one->text);
    /* Before the first capture nobody knows which epoch goes on, and what it needs for that. */
    const uint8_t *epoch = segment->name.epoch;
    bool begun = one->state.page_size != 0;
    bool same = begun && memcmp(epoch, one->state.epoch, BK_EPOCH_SIZE) == 0;
    segment->ended = begun && !same;
    segment->known =
        memcmp(epoch, one->shipped_epoch, BK_EPOCH_SIZE) == 0 && segment->name.last <= one->shipped;
    segment->needed = !begun || (same && segment->name.last > one->state.saved);
    pthread_mutex_unlock(&one->text);
    return BK_OK;
}

/* The last one of an epoch that is over may have been left open. */
static bk_rc_t seal(const char *path, bk_err_t *err)
{
    bk_txlog_writer_t *log = NULL;
    bk_rc_t rc = bk_txlog_reopen(path, &log, err);
    return rc == BK_OK ? bk_txlog_seal(log, err) : rc;
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

static bk_rc_t ship_one(captured_t *one, bk_repo_t *repo, const char *path, bk_ctl_t *ctl,
                        bk_err_t *err)
{
    segment_t segment;
    bk_rc_t rc = look_at(one, path, &segment, err);
    if (rc != BK_OK || (!segment.sealed && !segment.ended))
        return rc;
    if (!segment.sealed && !segment.empty)
        rc = seal(path, err);
    if (rc == BK_OK && !segment.empty && !segment.known)
        rc = put(repo, &segment, path, ctl, err);
    if (rc == BK_OK && !segment.ended && !segment.known) {
        pthread_mutex_lock(&one->text);
        memcpy(one->shipped_epoch, segment.name.epoch, BK_EPOCH_SIZE);
        one->shipped = segment.name.last;
        one->shipped_until = segment.until;
        pthread_mutex_unlock(&one->text);
    }
    if (rc == BK_OK && !segment.needed && unlink(path) != 0)
        rc = bk_err_sys(err, errno, "remove %s", path);
    return rc;
}

/* What an earlier worker shipped of the epoch that goes on. */
static bk_rc_t look_at_storage(captured_t *one, bk_repo_t *repo, bk_ctl_t *ctl, bk_err_t *err)
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

static bk_rc_t ship_all_of(captured_t *one, bk_repo_t *repo, bk_ctl_t *ctl, bk_err_t *err)
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
            rc = ship_one(one, repo, path, ctl, err);
        free(names[i]);
    }
    if (count >= 0)
        free(names);
    return rc;
}

static bool sealed_some(captured_t *one, bool set, bool value)
{
    pthread_mutex_lock(&one->text);
    bool some = one->sealed_some;
    if (set)
        one->sealed_some = value;
    pthread_mutex_unlock(&one->text);
    return some;
}

/* One run now and then, and the next one with the next shipment. */
static void compact(bk_engine_t *engine, captured_t *one, bk_repo_t *repo, bk_ctl_t *ctl)
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
        captured_t *one = &c->list[i];
        if (!sealed_some(one, true, false))
            continue;
        rc = ship_all_of(one, opened.repo, ctl, err);
        if (rc != BK_OK)
            (void)sealed_some(one, true, true);
        else
            compact(engine, one, opened.repo, ctl);
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

/* --- status --- */

/* Seconds since all that was committed was there; null: never, as far as is known. */
static json_t *age(int64_t as_of)
{
    int64_t passed = bk_now() - as_of;
    return as_of == 0 ? json_null() : json_real(passed > 0 ? (double)(passed / BK_MS) / 1000 : 0);
}

static json_t *describe(captured_t *one)
{
    pthread_mutex_lock(&one->text);
    bk_capture_state_t s = one->state;
    bool same = memcmp(one->shipped_epoch, s.epoch, BK_EPOCH_SIZE) == 0;
    uint64_t shipped = same ? one->shipped : 0;
    int64_t shipped_until = same ? one->shipped_until : 0;
    const char *problem = one->detached ? "it is detached: attach it, and it goes on with a gap"
                          : one->problem[0] != '\0' ? one->problem
                                                    : NULL;
    json_t *result = json_pack(
        "{ss sb ss* sb sI so so sI so so sI sI sb}", "name", one->db->name, "capturing",
        (int)(!s.paused && s.page_size != 0), "problem", problem, "detached", (int)one->detached,
        "transaction", (json_int_t)s.txid, "last_durable", bk_json_time(s.durable),
        "durable_age_seconds", age(s.as_of), "shipped_transaction", (json_int_t)shipped,
        "shipped_until", bk_json_time(shipped_until), "shipped_age_seconds",
        age(shipped == s.txid && s.txid > 0 ? s.as_of : shipped_until), "gaps", (json_int_t)s.gaps,
        "wal_frames", (json_int_t)s.wal_frames, "wal_blocked", (int)s.blocked);
    pthread_mutex_unlock(&one->text);
    return result;
}

json_t *bk_capturing_describe(bk_capturing_t *c)
{
    json_t *list = json_array();
    for (size_t i = 0; i < c->count; i++)
        json_array_append_new(list, describe(&c->list[i]));
    return list;
}
