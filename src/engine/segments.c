/*
 * engine/segments.c: lists the segments of a database, here and on the storage, and opens them.
 * What is damaged is marked, so that everything else goes on without it.  Reads only.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "engine/covered.h"
#include "engine/moments_private.h"

#define NAME_LEN (2 * BK_EPOCH_SIZE + 1 + 20 + 3)

/* --- the list --- */

static void free_segment(bk_moments_segment_t *segment)
{
    free(segment->path);
    free(segment->damage);
}

static bk_rc_t add(bk_moments_t *m, const bk_moments_segment_t *segment, bk_err_t *err)
{
    if (m->count == m->room) {
        size_t room = m->room * 2 + 64;
        bk_moments_segment_t *more = realloc(m->segments, room * sizeof *more);
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", m->database);
        m->segments = more;
        m->room = room;
    }
    m->segments[m->count++] = *segment;
    return BK_OK;
}

/*
 * What is stored cannot be used; that it could not be asked for (I/O, timeouts, rights) is another
 * matter, which says nothing of it.
 */
static bool is_damage(bk_rc_t rc)
{
    return rc == BK_CORRUPT || rc == BK_WRONG_KEY || rc == BK_UNSUPPORTED || rc == BK_NOT_FOUND;
}

/* BK_OK for damage, which is noted. */
static bk_rc_t note_damage(bk_moments_segment_t *segment, const bk_err_t *why, bk_err_t *err)
{
    if (!is_damage(why->rc)) {
        if (err != NULL)
            *err = *why;
        return why->rc;
    }
    segment->damage = bk_strdup(why->text);
    return segment->damage != NULL ? BK_OK
                                   : bk_err_set(err, BK_NO_MEMORY, "transactions: out of memory");
}

/* Open ones may be empty, and then there is nothing to look up in them.  Where a damaged one ends
 * nobody can tell: end_damaged guesses. */
static bk_rc_t last_of(const char *path, bk_moments_segment_t *segment, bool *listed, bk_err_t *err)
{
    bk_txlog_t *log = NULL;
    bk_err_t why = {0};
    bk_rc_t rc = bk_txlog_open_file(path, &log, &why);
    size_t count = rc == BK_OK ? bk_txlog_count(log) : 0;
    *listed = count > 0;
    if (count > 0)
        segment->last = bk_txlog_tx(log, count - 1)->txid;
    bk_txlog_free(log);
    if (rc == BK_OK || rc == BK_NOT_FOUND) /* one that is gone was shipped just now */
        return BK_OK;
    *listed = true;
    segment->last = segment->first;
    return note_damage(segment, &why, err);
}

static bk_rc_t list_local(bk_moments_t *m, const char *base_dir, bk_err_t *err)
{
    char dir[PATH_MAX], path[PATH_MAX];
    bk_rc_t rc = BK_OK;
    bk_fmt(dir, sizeof dir, "%s/" BK_MOMENTS_DIR "/%s", base_dir, m->database);
    DIR *stream = opendir(dir);
    if (stream == NULL)
        return errno == ENOENT ? BK_OK : bk_err_sys(err, errno, "open %s", dir);
    for (const struct dirent *entry; rc == BK_OK && (entry = readdir(stream)) != NULL;) {
        bk_moments_segment_t segment = {0};
        const char *name = entry->d_name;
        if (strlen(name) != NAME_LEN || strcmp(name + NAME_LEN - 3, ".tx") != 0 ||
            !bk_unhex(segment.epoch, BK_EPOCH_SIZE, name, 2 * (size_t)BK_EPOCH_SIZE))
            continue;
        segment.first = strtoull(name + 2 * (size_t)BK_EPOCH_SIZE + 1, NULL, 10);
        bool listed = false;
        bk_fmt(path, sizeof path, "%s/%s", dir, name);
        rc = last_of(path, &segment, &listed, err);
        if (rc == BK_OK && !listed)
            continue;
        if (rc != BK_OK)
            break;
        segment.path = bk_strdup(path);
        rc = segment.path != NULL ? add(m, &segment, err)
                                  : bk_err_set(err, BK_NO_MEMORY, "%s: out of memory", path);
        if (rc != BK_OK) {
            free(segment.path);
            free(segment.damage);
        }
    }
    closedir(stream);
    return rc;
}

/* All of it: what it was merged into holds more. */
static bool is_local(const bk_moments_t *m, const bk_moments_segment_t *segment)
{
    for (size_t i = 0; i < m->count && m->segments[i].path != NULL; i++)
        if (m->segments[i].first == segment->first && m->segments[i].last >= segment->last &&
            m->segments[i].damage == NULL &&
            memcmp(m->segments[i].epoch, segment->epoch, BK_EPOCH_SIZE) == 0)
            return true;
    return false;
}

static bk_rc_t list_stored(bk_moments_t *m, bk_err_t *err)
{
    bk_history_list_t list;
    bk_rc_t rc = bk_history_list(m->repo, m->key, NULL, m->ctl, &list, err);
    if (rc != BK_OK)
        return rc;
    for (size_t i = 0; i < list.count && rc == BK_OK; i++) {
        const bk_history_name_t *name = &list.items[i].name;
        bk_moments_segment_t segment = {
            .first = name->first, .last = name->last, .item = list.items[i]};
        memcpy(segment.epoch, name->epoch, BK_EPOCH_SIZE);
        if (!is_local(m, &segment))
            rc = add(m, &segment, err);
    }
    bk_history_list_free(&list);
    return rc;
}

/* --- one segment --- */

typedef struct {
    bk_history_reader_t *reader;
    bk_ctl_t *ctl;
} stored_t;

static bk_rc_t read_stored(void *arg, uint64_t offset, void *out, size_t len, bk_err_t *err)
{
    const stored_t *stored = arg;
    return bk_history_read(stored->reader, offset, out, len, stored->ctl, err);
}

static void close_stored(void *arg)
{
    stored_t *stored = arg;
    bk_history_close(stored->reader);
    free(stored);
}

bk_rc_t bk_moments_open_stored(bk_repo_t *repo, const bk_history_item_t *item, bk_ctl_t *ctl,
                               bk_txlog_t **log, bk_err_t *err)
{
    stored_t *stored = calloc(1, sizeof *stored);
    if (stored == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read transactions: out of memory");
    stored->ctl = ctl;
    bk_rc_t rc = bk_history_open(repo, item, &stored->reader, ctl, err);
    if (rc != BK_OK) {
        free(stored);
        return rc;
    }
    bk_txlog_source_t source = {.read = read_stored,
                                .close = close_stored,
                                .arg = stored,
                                .size = bk_history_length(stored->reader)};
    return bk_txlog_open(&source, log, err);
}

/* What was in base_dir is shipped meanwhile, or it is part of a wider one now. */
static bk_rc_t look_on_storage(const bk_moments_t *m, bk_moments_segment_t *s, bk_err_t *err)
{
    bk_history_list_t list;
    bk_rc_t rc = bk_history_list(m->repo, m->key, s->epoch, m->ctl, &list, err);
    if (rc != BK_OK)
        return rc;
    rc = BK_NOT_FOUND;
    for (size_t i = 0; i < list.count && rc != BK_OK; i++)
        if (list.items[i].name.first <= s->first && list.items[i].name.last >= s->last) {
            s->item = list.items[i];
            rc = BK_OK;
        }
    bk_history_list_free(&list);
    if (rc == BK_OK) {
        free(s->path);
        s->path = NULL;
        bk_err_clear(err);
    }
    return rc;
}

/* As it was when it was listed, whatever lies around it on the storage. */
static bk_rc_t open_item(const bk_moments_t *m, const bk_moments_segment_t *s, bk_txlog_t **log,
                         bk_err_t *err)
{
    bk_rc_t rc = bk_moments_open_stored(m->repo, &s->item, m->ctl, log, err);
    if (rc != BK_OK)
        return rc;
    rc = bk_txlog_narrow(*log, s->first, s->last, err);
    if (rc != BK_OK) {
        bk_txlog_free(*log);
        *log = NULL;
    }
    return rc;
}

/* Somebody may append to it. */
static bk_rc_t open_local(const bk_moments_segment_t *s, bk_txlog_t **log, bk_err_t *err)
{
    bk_rc_t rc = bk_txlog_open_file(s->path, log, err);
    if (rc != BK_OK || (bk_txlog_count(*log) > 0 && bk_txlog_tx(*log, 0)->txid == s->first))
        return rc;
    bk_txlog_free(*log);
    *log = NULL;
    return bk_err_set(err, BK_CORRUPT, "%s: it does not have the transactions that its name tells",
                      s->path);
}

bk_rc_t bk_moments_log(bk_moments_t *m, size_t at, bk_txlog_t **log, bk_err_t *err)
{
    bk_moments_segment_t *s = &m->segments[at];
    bk_rc_t rc = bk_ctl_check(m->ctl, err);
    if (rc != BK_OK)
        return rc;
    rc = s->path != NULL ? open_local(s, log, err) : open_item(m, s, log, err);
    if (rc == BK_NOT_FOUND && look_on_storage(m, s, err) == BK_OK)
        rc = open_item(m, s, log, err);
    return rc == BK_OK ? rc
                       : bk_err_wrap(err, "database %s: transactions from %llu on", m->database,
                                     (unsigned long long)s->first);
}

bk_rc_t bk_moments_look(bk_moments_t *m, size_t at, bk_txlog_t **log, bk_err_t *err)
{
    bk_moments_segment_t *s = &m->segments[at];
    bk_err_t why = {0};
    *log = NULL;
    if (s->damage != NULL || bk_moments_segment(m, at, log, &why) == BK_OK)
        return BK_OK;
    return note_damage(s, &why, err);
}

bk_rc_t bk_moments_next_sound(bk_moments_t *m, size_t at, size_t end, size_t *found,
                              bk_txlog_t **log, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    *log = NULL;
    for (*found = at; *found < end; ++*found) {
        rc = bk_moments_look(m, *found, log, err);
        if (rc != BK_OK || *log != NULL)
            break;
    }
    return rc;
}

bk_rc_t bk_moments_sound(bk_moments_t *m, size_t at, bool *sound, bk_err_t *err)
{
    bk_txlog_t *log;
    bk_rc_t rc = m->segments[at].sound ? BK_OK : bk_moments_look(m, at, &log, err);
    *sound = rc == BK_OK && m->segments[at].damage == NULL;
    return rc;
}

static void let_go(bk_moments_t *m)
{
    bk_txlog_free(m->log);
    m->log = NULL;
    m->held = SIZE_MAX;
}

bk_rc_t bk_moments_segment(bk_moments_t *m, size_t at, bk_txlog_t **log, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (m->held != at) {
        let_go(m);
        rc = bk_moments_log(m, at, &m->log, err);
        if (rc == BK_OK)
            m->held = at;
        m->segments[at].sound = rc == BK_OK;
    }
    *log = m->log;
    return rc;
}

/* --- order --- */

static int by_epoch(const void *a, const void *b)
{
    const bk_moments_segment_t *x = a, *y = b;
    int order = memcmp(x->epoch, y->epoch, BK_EPOCH_SIZE);
    if (order != 0)
        return order;
    if (x->first != y->first)
        return x->first < y->first ? -1 : 1;
    if (x->last != y->last)
        return x->last > y->last ? -1 : 1;
    return (x->damage != NULL) - (y->damage != NULL);
}

static int by_time(const void *a, const void *b)
{
    const bk_moments_segment_t *x = a, *y = b;
    if (x->begins != y->begins)
        return x->begins < y->begins ? -1 : 1;
    return by_epoch(a, b);
}

bool bk_moments_same_epoch(const bk_moments_t *m, size_t a, size_t b)
{
    return memcmp(m->segments[a].epoch, m->segments[b].epoch, BK_EPOCH_SIZE) == 0;
}

/* By epoch: without those that another one holds wholly. */
static void drop_narrow(bk_moments_t *m)
{
    size_t count = 0;
    for (size_t i = 0; i < m->count; i++) {
        bk_moments_segment_t *s = &m->segments[i];
        const bk_moments_segment_t *wide = count > 0 ? &m->segments[count - 1] : NULL;
        if (wide != NULL && memcmp(wide->epoch, s->epoch, BK_EPOCH_SIZE) == 0 &&
            s->last <= wide->last)
            free_segment(s);
        else
            m->segments[count++] = *s;
    }
    m->count = count;
}

/* By epoch: those in base_dir that cannot be read end where the next one begins, or where the
 * capture is. */
static void end_damaged(bk_moments_t *m)
{
    for (size_t i = 0; i < m->count; i++) {
        bk_moments_segment_t *s = &m->segments[i];
        bool goes_on = memcmp(s->epoch, m->known.epoch, BK_EPOCH_SIZE) == 0;
        if (s->path == NULL || s->damage == NULL)
            continue;
        if (i + 1 < m->count && bk_moments_same_epoch(m, i, i + 1))
            s->last = m->segments[i + 1].first - 1;
        else if (goes_on && m->known.txid > s->last)
            s->last = m->known.txid;
    }
}

/*
 * Of segments first to end-1: when the first transaction was that can be read; when the oldest
 * object was stored, if none can.  Without that either it counts as the newest: it is not let go.
 */
static bk_rc_t epoch_begins(bk_moments_t *m, size_t first, size_t end, int64_t *begins,
                            bk_err_t *err)
{
    for (size_t i = first; i < end; i++) {
        bk_txlog_t *log;
        bk_rc_t rc = bk_moments_look(m, i, &log, err);
        if (rc != BK_OK)
            return rc;
        *begins = log != NULL ? bk_txlog_tx(log, 0)->t_lo : 0;
        if (log != NULL)
            return BK_OK;
    }
    *begins = m->segments[first].item.mtime != 0 ? m->segments[first].item.mtime : INT64_MAX;
    return BK_OK;
}

/* Epochs have no order of their own: that of their first transactions. */
static bk_rc_t sort(bk_moments_t *m, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (m->count > 1)
        qsort(m->segments, m->count, sizeof *m->segments, by_epoch);
    drop_narrow(m);
    end_damaged(m);
    for (size_t first = 0, end; first < m->count && rc == BK_OK; first = end) {
        int64_t begins = 0;
        end = bk_moments_epoch_end(m, first);
        rc = epoch_begins(m, first, end, &begins, err);
        for (size_t i = first; i < end; i++)
            m->segments[i].begins = begins;
    }
    let_go(m);
    if (m->count > 1)
        qsort(m->segments, m->count, sizeof *m->segments, by_time);
    return rc;
}

void bk_moments_key(const char *set, const char *database, char out[BK_HISTORY_NAME])
{
    bk_fmt(out, BK_HISTORY_NAME, "%s.%s", set, database);
}

bool bk_moments_known(const char *base_dir, const char *database, bk_capture_known_t *known)
{
    char dir[PATH_MAX];
    *known = (bk_capture_known_t){.until = 0};
    return base_dir != NULL &&
           bk_fmt(dir, sizeof dir, "%s/" BK_MOMENTS_DIR "/%s", base_dir, database) &&
           bk_covered_read(dir, known);
}

bk_rc_t bk_moments_open(const char *base_dir, const char *set, const char *database,
                        bk_repo_t *repo, bk_ctl_t *ctl, bk_moments_t **moments, bk_err_t *err)
{
    bk_moments_t *m = calloc(1, sizeof *m);
    *moments = NULL;
    if (m == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", database);
    m->base_dir = base_dir;
    m->set = set;
    m->database = database;
    bk_moments_key(set, database, m->key);
    m->repo = repo;
    m->ctl = ctl;
    m->held = SIZE_MAX;
    /* Before the list: what was durable then is in it. */
    m->served = base_dir != NULL;
    (void)bk_moments_known(base_dir, database, &m->known);
    bk_rc_t rc = base_dir != NULL ? list_local(m, base_dir, err) : BK_OK;
    if (rc == BK_OK)
        rc = list_stored(m, err);
    if (rc == BK_OK)
        rc = sort(m, err);
    if (rc == BK_OK)
        *moments = m;
    else
        bk_moments_free(m);
    return rc;
}

void bk_moments_free(bk_moments_t *m)
{
    if (m == NULL)
        return;
    let_go(m);
    for (size_t i = 0; i < m->count; i++)
        free_segment(&m->segments[i]);
    free(m->segments);
    free(m);
}

size_t bk_moments_count(const bk_moments_t *m)
{
    return m->count;
}

bool bk_moments_follows(const bk_moments_t *m, size_t at)
{
    return at > 0 && bk_moments_same_epoch(m, at - 1, at) &&
           m->segments[at].first <= m->segments[at - 1].last + 1;
}

size_t bk_moments_epoch_end(const bk_moments_t *m, size_t at)
{
    size_t end = at + 1;
    while (end < m->count && bk_moments_same_epoch(m, at, end))
        end++;
    return end;
}
