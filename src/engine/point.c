/*
 * engine/point.c: chooses the backup, and the moments of captured databases on top of it.  Reads
 * the repository and base_dir; writes only the image that it is asked for.
 */
#include "engine/point.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/bases.h"
#include "sqlite/dump.h"

#define FRESH (3 * BK_SEC)

/* --- a backup --- */

static bool is_of(const bk_snapshot_t *s, const char *set)
{
    return set == NULL || strcmp(s->set, set) == 0;
}

bk_rc_t bk_point_backup(const bk_snapshot_list_t *list, const char *set, const char *id,
                        const bk_snapshot_t **found, bk_err_t *err)
{
    if (id != NULL && strcmp(id, "latest") != 0)
        return bk_snapshot_find(list, id, found, err);
    for (size_t i = list->count; i-- > 0;) {
        const bk_snapshot_t *s = &list->items[i];
        if (is_of(s, set) && strcmp(s->kind, "safety") != 0) {
            *found = s;
            return BK_OK;
        }
    }
    return bk_err_set(err, BK_NOT_FOUND, "there is no backup%s%s yet%s", set != NULL ? " of " : "",
                      set != NULL ? set : "",
                      list->count > 0 ? "; recover one of the others by its backup_id" : "");
}

/*
 * The newest one with files that had ended by then; NULL: there is none.  Of one that was under way
 * some files may be younger.
 */
static const bk_snapshot_t *files_until(const bk_snapshot_list_t *list, const char *set,
                                        int64_t time)
{
    for (size_t i = list->count; i-- > 0;) {
        const bk_snapshot_t *s = &list->items[i];
        if (is_of(s, set) && s->completed <= time && s->tree_count > 0)
            return s;
    }
    return NULL;
}

/* "app, other": each once. */
static void list_sets(const bk_snapshot_list_t *list, char *out, size_t size)
{
    out[0] = '\0';
    for (size_t i = 0; i < list->count; i++) {
        size_t first = 0, used = strlen(out);
        while (strcmp(list->items[first].set, list->items[i].set) != 0)
            first++;
        if (first == i)
            bk_fmt(out + used, size - used, "%s%s", used > 0 ? ", " : "", list->items[i].set);
    }
}

/* Whose newest backup is meant, when nobody says it: several sets may share a storage, and one's
 * database is not another's. */
static bk_rc_t only_set(const bk_snapshot_list_t *list, const char **set, bk_err_t *err)
{
    char sets[512];
    for (size_t i = 1; i < list->count; i++)
        if (strcmp(list->items[i].set, list->items[0].set) != 0) {
            list_sets(list, sets, sizeof sets);
            return bk_err_set(
                err, BK_INVALID,
                "the storage holds backups of several sets: %s: say which with --set, "
                "or name a backup by its id",
                sets);
        }
    *set = list->count > 0 ? list->items[0].set : NULL;
    return BK_OK;
}

/* --- moments on top of it --- */

typedef struct {
    bk_point_t *point;
    const bk_point_wish_t *wish;
    const char *set;  /* whose databases they are */
    const char *name; /* of the database that the transaction is of, or that alone is wanted */
    int64_t time;
    const bk_snapshot_t *backup; /* of the files; NULL: none are wanted */
} find_t;

static bk_rc_t make_room(find_t *f, size_t count, bk_err_t *err)
{
    bk_point_t *point = f->point;
    point->dbs = calloc(count + 1, sizeof *point->dbs);
    point->past = calloc(count + 1, sizeof *point->past);
    point->made.dbs = point->dbs;
    return point->dbs != NULL && point->past != NULL
               ? BK_OK
               : bk_err_set(err, BK_NO_MEMORY, "find a moment: out of memory");
}

/* It cannot be had, whatever the reason: what can be is told with it. */
static bk_rc_t refuse(find_t *f, bk_moments_t *moments, bk_rc_t rc, bk_err_t *err)
{
    if (rc != BK_INVALID && rc != BK_NOT_FOUND && rc != BK_CORRUPT)
        return rc;
    json_decref(f->point->window);
    f->point->window = bk_moments_describe(moments, &f->point->list, err);
    if (err != NULL)
        err->rc = BK_INVALID;
    return BK_INVALID;
}

static void note_unsure(bk_ctl_t *ctl, const char *name, const bk_tx_t *tx)
{
    char last[BK_TIME_TEXT];
    bk_time_format_exact(last, tx->t_hi);
    bk_ctl_note(ctl,
                "database %s is as of %s, transaction %llu, the last one on the storage: what was "
                "committed between then and the time that was asked for is not there",
                name, last, (unsigned long long)tx->txid);
}

static void note_batch(bk_ctl_t *ctl, const char *name, const bk_moment_t *moment)
{
    char at[BK_TIME_TEXT], until[BK_TIME_TEXT];
    bk_time_format_exact(at, moment->tx.t_hi);
    bk_time_format_exact(until, moment->batch);
    bk_ctl_note(ctl,
                "database %s is as of %s, transaction %llu: it had a rollback journal, so what was "
                "committed until %s is one batch, which is not in it",
                name, at, (unsigned long long)moment->tx.txid, until);
}

/*
 * A time that has only just passed: the capture looks at the database within a second or so, if it
 * runs.
 */
static bk_rc_t wait_for_capture(const find_t *f, const char *name, bk_err_t *err)
{
    bk_capture_known_t known;
    bk_ctl_t *ctl = f->point->ctl;
    bk_rc_t rc = BK_OK;
    int64_t give_up = bk_mono() + FRESH;
    if (f->time == 0 || f->time < bk_now() - FRESH ||
        !bk_moments_known(f->wish->base_dir, name, &known) || known.until < f->time - FRESH)
        return BK_OK;
    while (rc == BK_OK && known.until < f->time && bk_mono() < give_up) {
        bk_sleep_ms(20);
        rc = bk_ctl_check(ctl, err);
        (void)bk_moments_known(f->wish->base_dir, name, &known);
    }
    return rc;
}

/* A captured one as of the time, or of the transaction. */
static bk_rc_t add_moment(find_t *f, const char *name, bk_moments_t *moments, bk_err_t *err)
{
    bk_point_t *point = f->point;
    bk_point_past_t *past = &point->past[point->made.db_count];
    bk_moment_t *moment = &past->moment;
    bool by_number = f->wish->transaction > 0 && strcmp(name, f->name) == 0;
    bk_rc_t rc = by_number
                     ? bk_moments_number(moments, f->wish->transaction, &point->list, moment, err)
                     : bk_moments_at(moments, f->time, &point->list, moment, err);
    if (rc != BK_OK)
        return refuse(f, moments, rc, err);
    if (moment->unsure)
        note_unsure(point->ctl, name, &moment->tx);
    if (moment->batch != 0)
        note_batch(point->ctl, name, moment);
    bk_snapshot_db_t *db = &point->dbs[point->made.db_count++];
    *db = *moment->from;
    db->page_count = moment->tx.page_count;
    db->digest = moment->tx.after;
    db->instant = moment->tx.t_hi;
    past->moments = moments;
    return BK_OK;
}

/* The moments of a database; NULL: it is not captured. */
static bk_rc_t open_moments(const find_t *f, const char *name, bk_moments_t **moments,
                            bk_err_t *err)
{
    bk_rc_t rc = wait_for_capture(f, name, err);
    if (rc == BK_OK)
        rc = bk_moments_open(f->wish->base_dir, f->set, name, f->point->repo, f->point->ctl,
                             moments, err);
    if (rc != BK_OK || bk_moments_count(*moments) > 0)
        return rc;
    bk_moments_free(*moments);
    *moments = NULL;
    return BK_OK;
}

/* Of this database there are no transactions. */
static bk_rc_t not_captured(const find_t *f, const char *name, bk_err_t *err)
{
    bk_capture_known_t known;
    (void)bk_moments_known(f->wish->base_dir, name, &known);
    return bk_moments_none(name, &known, err);
}

/* Of none of them; one that is captured tells more. */
static bk_rc_t none_captured(const find_t *f, const bk_snapshot_t *backup, bk_err_t *err)
{
    bk_capture_known_t known;
    for (size_t i = 0; i < backup->db_count; i++)
        if (bk_moments_known(f->wish->base_dir, backup->dbs[i].name, &known))
            return bk_moments_none(backup->dbs[i].name, &known, err);
    return bk_err_set(err, BK_INVALID,
                      "no transactions were captured: set \"pitr_window\" in the database's block, "
                      "or recover a backup by its backup_id");
}

/* The one database that is asked for. */
static bk_rc_t find_one(find_t *f, bk_err_t *err)
{
    bk_moments_t *moments = NULL;
    bk_rc_t rc = make_room(f, 1, err);
    if (rc == BK_OK)
        rc = open_moments(f, f->name, &moments, err);
    if (rc == BK_OK && moments == NULL)
        rc = not_captured(f, f->name, err);
    if (rc == BK_OK)
        rc = add_moment(f, f->name, moments, err);
    if (rc != BK_OK)
        bk_moments_free(moments);
    return rc;
}

/* All databases that the backup has: captured ones as of the time; others, when files come with
 * them, as they are in it. */
static bk_rc_t find_all(find_t *f, const bk_snapshot_t *backup, bk_err_t *err)
{
    bk_point_t *point = f->point;
    bk_rc_t rc = make_room(f, backup->db_count, err);
    for (size_t i = 0; i < backup->db_count && rc == BK_OK; i++) {
        bk_moments_t *moments = NULL;
        rc = open_moments(f, backup->dbs[i].name, &moments, err);
        if (rc == BK_OK && moments != NULL) {
            rc = add_moment(f, backup->dbs[i].name, moments, err);
            if (rc != BK_OK)
                bk_moments_free(moments);
        } else if (rc == BK_OK && f->backup != NULL) {
            point->dbs[point->made.db_count++] = backup->dbs[i];
            bk_ctl_note(
                point->ctl,
                "database %s has no transactions that were captured: it is as in backup %s, "
                "not as of that time",
                backup->dbs[i].name, backup->backup_id);
        }
    }
    if (rc == BK_OK && point->made.db_count == 0 && f->backup == NULL)
        return none_captured(f, backup, err);
    return rc;
}

/* The only captured one of the newest backup is whose number a transaction is. */
static bk_rc_t only_captured(find_t *f, bk_err_t *err)
{
    const bk_snapshot_t *newest;
    bk_rc_t rc = bk_point_backup(&f->point->list, f->set, NULL, &newest, err);
    for (size_t i = 0; rc == BK_OK && i < newest->db_count; i++) {
        bk_moments_t *moments = NULL;
        rc = open_moments(f, newest->dbs[i].name, &moments, err);
        if (rc == BK_OK && moments != NULL && f->name != NULL)
            rc = bk_err_set(err, BK_INVALID,
                            "\"database\" is needed: more than one is captured, each with "
                            "transactions of its own");
        if (rc == BK_OK && moments != NULL)
            f->name = newest->dbs[i].name;
        bk_moments_free(moments);
    }
    return rc == BK_OK && f->name == NULL ? none_captured(f, newest, err) : rc;
}

/* A transaction stands for the time when it was there. */
static bk_rc_t time_of_transaction(find_t *f, bk_err_t *err)
{
    bk_moments_t *moments = NULL;
    bk_moment_t moment;
    bk_rc_t rc = open_moments(f, f->name, &moments, err);
    if (rc == BK_OK && moments == NULL)
        rc = not_captured(f, f->name, err);
    if (rc == BK_OK)
        rc = bk_moments_number(moments, f->wish->transaction, &f->point->list, &moment, err);
    if (rc == BK_OK)
        f->time = moment.tx.t_hi;
    else if (moments != NULL)
        rc = refuse(f, moments, rc, err);
    bk_moments_free(moments);
    return rc;
}

/* --- what can be had instead --- */

/* The oldest backup with files; 0: there is none. */
static int64_t files_begin(const find_t *f)
{
    const bk_snapshot_list_t *list = &f->point->list;
    int64_t oldest = 0;
    for (size_t i = 0; i < list->count; i++)
        if (is_of(&list->items[i], f->set) && list->items[i].tree_count > 0 &&
            (oldest == 0 || list->items[i].instant < oldest))
            oldest = list->items[i].instant;
    return oldest;
}

/* Of the database that is asked for, else of the first one that has moments. */
static json_t *databases_window(find_t *f)
{
    const bk_snapshot_t *newest = NULL;
    json_t *window = NULL;
    (void)bk_point_backup(&f->point->list, f->set, NULL, &newest, NULL);
    size_t count = f->name != NULL ? 1 : newest != NULL ? newest->db_count : 0;
    for (size_t i = 0; i < count && window == NULL; i++) {
        bk_moments_t *moments = NULL;
        const char *name = f->name != NULL ? f->name : newest->dbs[i].name;
        if (bk_moments_open(f->wish->base_dir, f->set, name, f->point->repo, f->point->ctl,
                            &moments, NULL) == BK_OK)
            window = bk_moments_describe(moments, &f->point->list, NULL);
        bk_moments_free(moments);
    }
    return window;
}

/* Files come as of a backup: from the first one on there is one for every time. */
static void raise_to_files(json_t **window, int64_t begin)
{
    int64_t earliest = 0;
    const char *text = json_string_value(json_object_get(*window, "earliest"));
    if (*window == NULL)
        *window = json_pack("{so so s[]}", "earliest", bk_json_moment(begin), "latest",
                            bk_json_moment(bk_now()), "gaps");
    else if (text == NULL || !bk_time_parse(text, &earliest) || earliest < begin)
        json_object_set_new(*window, "earliest", bk_json_moment(begin));
}

/* Nothing has been looked up yet: *err is BK_INVALID, and gets company. */
static bk_rc_t refuse_time(find_t *f)
{
    int64_t begin = f->wish->files ? files_begin(f) : 0;
    json_t *window = f->wish->databases ? databases_window(f) : NULL;
    bool known = window != NULL || !f->wish->databases;
    if (begin != 0 && known)
        raise_to_files(&window, begin);
    json_decref(f->point->window);
    f->point->window = window;
    return BK_INVALID;
}

static bk_rc_t in_future(find_t *f, bk_err_t *err)
{
    char at[BK_TIME_TEXT], now[BK_TIME_TEXT];
    bk_time_format_exact(at, f->time);
    bk_time_format_exact(now, bk_now());
    (void)bk_err_set(err, BK_INVALID, "%s%s%s%s lies in the future: it is %s",
                     f->name != NULL ? "database " : "", f->name != NULL ? f->name : "",
                     f->name != NULL ? ": " : "", f->time < INT64_MAX ? at : "point_in_time", now);
    return refuse_time(f);
}

static bk_rc_t find_files(find_t *f, bk_err_t *err)
{
    char at[BK_TIME_TEXT];
    f->backup = files_until(&f->point->list, f->set, f->time);
    if (f->backup != NULL)
        return BK_OK;
    bk_time_format_exact(at, f->time);
    (void)bk_err_set(err, BK_INVALID,
                     "no backup of the files had ended by %s: GET …/list shows which there are",
                     at);
    return refuse_time(f);
}

static bk_rc_t find_databases(find_t *f, bk_err_t *err)
{
    const bk_snapshot_t *all = f->backup;
    bk_rc_t rc = BK_OK;
    if (f->name != NULL && (f->wish->database != NULL || f->backup == NULL))
        return find_one(f, err);
    if (all == NULL)
        rc = bk_point_backup(&f->point->list, f->set, NULL, &all, err);
    return rc == BK_OK ? find_all(f, all, err) : rc;
}

/* The backup that could have been made then. */
static void put_together(find_t *f)
{
    bk_point_t *point = f->point;
    bk_snapshot_t *made = &point->made;
    size_t db_count = made->db_count;
    *made = f->backup != NULL ? *f->backup : *point->past[0].moment.backup;
    made->dbs = point->dbs;
    made->db_count = db_count;
    if (f->backup == NULL)
        made->tree_count = 0;
    else
        point->files = f->backup;
    /* The oldest: all of it was there at that time, or earlier. */
    for (size_t i = 0; i < db_count; i++)
        if (i == 0 || point->dbs[i].instant < made->instant)
            made->instant = point->dbs[i].instant;
    point->snapshot = made;
}

static bk_rc_t find_past(find_t *f, bk_err_t *err)
{
    const bk_point_wish_t *wish = f->wish;
    bk_rc_t rc = BK_OK;
    f->time = wish->time;
    f->name = wish->database;
    if (f->time > bk_now())
        return in_future(f, err);
    if (wish->transaction > 0 && f->name == NULL)
        rc = only_captured(f, err);
    if (rc == BK_OK && wish->transaction > 0 && wish->files)
        rc = time_of_transaction(f, err);
    if (rc == BK_OK && wish->files)
        rc = find_files(f, err);
    if (rc == BK_OK && wish->databases)
        rc = find_databases(f, err);
    if (rc == BK_OK)
        put_together(f);
    return rc;
}

bk_rc_t bk_point_find(bk_repo_t *repo, const bk_point_wish_t *wish, bk_ctl_t *ctl,
                      bk_point_t *point, bk_err_t *err)
{
    find_t find = {.point = point, .wish = wish, .set = wish->set};
    bool past = wish->time > 0 || wish->transaction > 0;
    bool named = !past && wish->backup_id != NULL && strcmp(wish->backup_id, "latest") != 0;
    *point = (bk_point_t){.repo = repo, .ctl = ctl};
    bk_rc_t rc = bk_snapshot_list(repo, wish->cache_dir, ctl, &point->list, err);
    if (rc == BK_OK && find.set == NULL && !named)
        rc = only_set(&point->list, &find.set, err);
    if (rc != BK_OK)
        return rc;
    if (past && find.set != NULL)
        return find_past(&find, err);
    return bk_point_backup(&point->list, find.set, past ? NULL : wish->backup_id, &point->snapshot,
                           err);
}

void bk_point_close(bk_point_t *point)
{
    for (size_t i = 0; point->past != NULL && i < point->made.db_count; i++)
        bk_moments_free(point->past[i].moments);
    json_decref(point->window);
    free(point->past);
    free(point->dbs);
    bk_snapshot_list_free(&point->list);
    *point = (bk_point_t){0};
}

/* --- a database --- */

/* What it is made of; NULL: it is as in the backup. */
static const bk_point_past_t *past_of(const bk_point_t *point, const bk_snapshot_db_t *db)
{
    if (point->snapshot != &point->made)
        return NULL;
    const bk_point_past_t *past = &point->past[db - point->dbs];
    return past->moments != NULL ? past : NULL;
}

void bk_point_tell(const bk_point_t *point, const bk_snapshot_db_t *db, json_t *entry)
{
    const bk_point_past_t *past = past_of(point, db);
    json_object_set_new(entry, "recovery_point",
                        past != NULL ? bk_json_moment(db->instant) : bk_json_time(db->instant));
    if (past != NULL)
        json_object_set_new(entry, "transaction", json_integer((json_int_t)past->moment.tx.txid));
}

void bk_point_describe(const bk_point_t *point, json_t *result)
{
    const bk_snapshot_t *s = point->snapshot;
    const bk_snapshot_db_t *oldest = NULL;
    bool past = s == &point->made;
    for (size_t i = 0; past && i < s->db_count; i++)
        if (oldest == NULL || s->dbs[i].instant < oldest->instant)
            oldest = &s->dbs[i];
    json_object_set_new(result, "source_backup", json_string(s->backup_id));
    if (oldest != NULL)
        bk_point_tell(point, oldest, result);
    else
        json_object_set_new(result, "recovery_point", bk_json_time(s->instant));
    /* Of several each entry tells its own; here nobody could say whose it is. */
    if (s->db_count > 1)
        json_object_del(result, "transaction");
    if (past && point->files != NULL) {
        json_object_set_new(result, "files_recovery_point", bk_json_moment(point->files->instant));
        json_object_set_new(result, "files_read_until", bk_json_moment(point->files->completed));
    }
}

bk_rc_t bk_point_write(const bk_point_t *point, const bk_snapshot_db_t *db, int fd,
                       const char *file, bk_team_t *team, bk_err_t *err)
{
    const bk_point_past_t *past = past_of(point, db);
    return past != NULL ? bk_moments_image(&past->moment, fd, file, team, err)
                        : bk_db_materialise(point->repo, db, fd, file, team, point->ctl, err);
}

bk_rc_t bk_point_image(const bk_point_t *point, const bk_snapshot_db_t *db, const char *file,
                       bk_team_t *team, bk_err_t *err)
{
    int fd = bk_openat(AT_FDCWD, file, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    if (fd < 0)
        return bk_err_sys(err, errno, "make %s", file);
    bk_rc_t rc = bk_point_write(point, db, fd, file, team, err);
    close(fd);
    if (rc != BK_OK)
        unlink(file);
    return rc;
}

static bk_rc_t base_page(void *arg, uint64_t pgno, uint8_t *out, bk_err_t *err)
{
    return bk_db_blocks_page(((bk_point_view_t *)arg)->blocks, pgno, out, err);
}

bk_rc_t bk_point_database(const bk_point_t *point, const char *name, const bk_snapshot_db_t **db,
                          bk_err_t *err)
{
    const bk_snapshot_t *s = point->snapshot;
    for (size_t i = 0; i < s->db_count; i++)
        if (strcmp(s->dbs[i].name, name) == 0) {
            *db = &s->dbs[i];
            return BK_OK;
        }
    return bk_err_set(err, BK_NOT_FOUND, "backup %s holds no database %s", s->backup_id, name);
}

bk_rc_t bk_point_show(const bk_point_t *point, const bk_snapshot_db_t *db, bk_point_view_t *view,
                      bk_err_t *err)
{
    const bk_point_past_t *past = past_of(point, db);
    const bk_snapshot_db_t *begin = past != NULL ? past->moment.from : db;
    bk_past_segments_t none = {0};
    bk_past_base_t base = {.page = base_page,
                           .arg = view,
                           .page_count = db->page_count,
                           .digest = db->digest,
                           .page_size = db->page_size};
    *view = (bk_point_view_t){0};
    bk_rc_t rc = bk_db_blocks_open(point->repo, begin, point->ctl, &view->blocks, err);
    if (rc == BK_OK && past != NULL)
        rc = bk_moments_past(&past->moment, base_page, view, &view->past, err);
    else if (rc == BK_OK)
        rc = bk_past_open(&base, &none, 0, point->ctl, &view->past, err);
    if (rc == BK_OK)
        rc = bk_vfs_show(view->past, &view->image, err);
    if (rc != BK_OK)
        bk_point_hide(view);
    return rc;
}

void bk_point_hide(bk_point_view_t *view)
{
    bk_vfs_hide(view->image);
    bk_past_free(view->past);
    bk_db_blocks_free(view->blocks);
    *view = (bk_point_view_t){0};
}
