/*
 * engine/recover_db.c: databases of a backup into a directory, each proved first and then given its
 * name: with own rights, or through the privileged helper when it places there.  Touches the target
 * directory.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/recover.h"
#include "files/placeat.h"
#include "files/walk.h"
#include "sqlite/check.h"

#define ASIDE_TRIES 100u
#define STALE       3600u /* s */

/* The name of a database below a target: the last part of its path unless something else has it. */
static bool database_file(const bk_snapshot_t *s, const bk_snapshot_db_t *db, char *out,
                          size_t size)
{
    const char *slash = strrchr(db->path, '/'), *name = slash != NULL ? slash + 1 : db->path;
    bool shared = false;
    for (size_t i = 0; i < s->db_count; i++) {
        const char *other = strrchr(s->dbs[i].path, '/');
        other = other != NULL ? other + 1 : s->dbs[i].path;
        shared = shared || (&s->dbs[i] != db && strcmp(other, name) == 0);
    }
    for (size_t i = 0; i < s->tree_count; i++)
        shared = shared || strcmp(s->trees[i].name, name) == 0;
    return *name != '\0' &&
           bk_fmt(out, size, "%s%s%s", shared ? db->name : "", shared ? "-" : "", name);
}

typedef struct {
    const bk_recover_options_t *options;
    const bk_snapshot_db_t *db;
    bk_at_t at;
    const char *name;
    const char *where; /* for messages */
} place_t;

static bk_rc_t failed(const place_t *place, int errnum, const char *what, bk_err_t *err)
{
    char text[NAME_MAX * 2];
    bk_fmt(text, sizeof text, "%s %s", what, place->name);
    bk_rc_t rc = bk_at_error(place->at.road, errnum, text, err);
    bk_err_wrap(err, "%s", place->where);
    return rc;
}

/*
 * What has the name is in use, or may be.  A log or journal beside it belongs to another content
 * and would be played into this one.
 */
static bk_rc_t check_place(const place_t *place, bk_err_t *err)
{
    static const char *const companions[] = {"-wal", "-shm", "-journal"};
    const bk_protected_t *skip = place->options->skip;
    char name[NAME_MAX * 2];
    struct stat st;
    bool there = bk_at_stat(&place->at, place->name, &st) == 0;
    for (size_t i = 0; there && skip != NULL && i < skip->count; i++)
        if (skip->items[i].device == st.st_dev && skip->items[i].inode == st.st_ino)
            return bk_err_set(err, BK_FORBIDDEN,
                              "%s/%s is the application's own database: recover it in place "
                              "(without target_directory), or choose another directory",
                              place->where, place->name);
    if (there && !S_ISREG(st.st_mode))
        return bk_err_set(err, BK_EXISTS,
                          "%s/%s is there and is no file: remove it, or choose another directory",
                          place->where, place->name);
    for (size_t i = 0; i < 3; i++) {
        bk_fmt(name, sizeof name, "%s%s", place->name, companions[i]);
        if (bk_at_stat(&place->at, name, &st) == 0)
            return bk_err_set(err, BK_EXISTS,
                              "%s/%s is there: a database of that name is or was in use; remove "
                              "both, or choose another directory",
                              place->where, name);
    }
    return BK_OK;
}

bool bk_recover_keeps(bk_overwrite_t overwrite, int64_t changed, int64_t instant)
{
    return overwrite == BK_OVERWRITE_NEVER ||
           (overwrite == BK_OVERWRITE_IF_NEWER && changed >= instant);
}

/* Does what has the database's name already stay? */
static bool is_kept(const place_t *place)
{
    struct stat st;
    if (bk_at_stat(&place->at, place->name, &st) != 0)
        return false;
    int64_t mtime = (int64_t)st.st_mtim.tv_sec * BK_SEC + st.st_mtim.tv_nsec;
    return bk_recover_keeps(place->options->overwrite, mtime, place->db->instant);
}

/* A second name where that is possible, so that there is no moment without the first. */
static int name_aside(const place_t *place, const char *aside)
{
    int errnum = bk_at_helped(&place->at) ? EPERM : bk_at_link(&place->at, place->name, aside);
    return errnum == 0 || errnum == EEXIST || errnum == ENOENT
               ? errnum
               : bk_at_rename(&place->at, place->name, aside, RENAME_NOREPLACE);
}

/* The last step before the new file gets the name: whatever else can fail has not. */
static bk_rc_t make_way(const place_t *place, bk_err_t *err)
{
    char aside[NAME_MAX * 2];
    int errnum = EEXIST;
    if (place->options->overwrite != BK_OVERWRITE_RENAME)
        return BK_OK;
    for (unsigned tries = 1; tries <= ASIDE_TRIES && errnum == EEXIST; tries++) {
        char number[16] = "";
        if (tries > 1)
            bk_fmt(number, sizeof number, "-%u", tries);
        bk_fmt(aside, sizeof aside, "%s.before-%s%s", place->name, place->options->job, number);
        errnum = name_aside(place, aside);
    }
    return errnum == 0 || errnum == ENOENT ? BK_OK : failed(place, errnum, "set aside", err);
}

/* Owner and mode as they were, as far as this process may. */
static bk_rc_t own(int fd, const place_t *place, bk_ctl_t *ctl, bk_err_t *err)
{
    const bk_snapshot_db_t *db = place->db;
    if (place->options->owners && fchown(fd, db->uid, db->gid) != 0)
        bk_ctl_note(ctl, "the owner of %s/%s could not be set", place->where, place->name);
    return fchmod(fd, db->mode & 0777) == 0
               ? BK_OK
               : bk_err_sys(err, errno, "set the mode of %s/%s", place->where, place->name);
}

/* The same of the temporary, through the helper. */
static bk_rc_t own_helped(const place_t *place, const char *temporary, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_helper_result_t result;
    bk_helper_op_t op = {.call = BK_WIRE_META,
                         .name = temporary,
                         .set = BK_WIRE_SET_OWNER | BK_WIRE_SET_MODE | BK_WIRE_SET_FRESH,
                         .uid = place->db->uid,
                         .gid = place->db->gid,
                         .mode = place->db->mode & 0777};
    int errnum = bk_at_batch(&place->at, &op, 1, &result);
    if (errnum == 0 && (result.refused & BK_WIRE_REFUSED_OWNER) != 0)
        bk_ctl_note(ctl, "the owner of %s/%s could not be set", place->where, place->name);
    if (errnum == 0)
        errnum = result.error;
    return errnum == 0 ? BK_OK : failed(place, errnum, "set owner and mode of", err);
}

/* fsync of the directory; through the helper, by a descriptor that it gives. */
static bk_rc_t sync_dir(const place_t *place, bk_err_t *err)
{
    int fd;
    int errnum = bk_at_read(&place->at, "", O_DIRECTORY, &fd);
    if (errnum != 0)
        return failed(place, errnum, "open the directory of", err);
    bk_rc_t rc = bk_fsync_dir(fd, ".", err);
    close(fd);
    return rc;
}

/* --- the image --- */

typedef struct {
    const place_t *place;
    int fd;
    char path[PATH_MAX + NAME_MAX]; /* what it is going to be, for messages */
    char temporary[NAME_MAX + 1];   /* its name until then */
} image_t;

/* Left by a recovery that was killed: nobody else recovers this set's databases now, or nobody has
 * written to it for long. */
static bool is_leftover(const place_t *place, const char *temporary)
{
    struct stat st;
    return place->options->alone || (bk_at_stat(&place->at, temporary, &st) == 0 &&
                                     st.st_mtim.tv_sec + (int64_t)STALE < bk_now() / BK_SEC);
}

/*
 * It is made where it is going to be: the room is measured there, and it need not be copied.  The
 * names are always the same, so that what is left is found again.
 */
static bk_rc_t make_image(image_t *image, bk_err_t *err)
{
    const place_t *place = image->place;
    const char *set = place->options->snapshot->set;
    XXH64_hash_t seed = XXH3_64bits(set, strlen(set));
    int errnum = EEXIST;
    bk_fmt(image->path, sizeof image->path, "%s/%s", place->where, place->name);
    for (unsigned tries = 0; tries < ASIDE_TRIES && errnum == EEXIST; tries++) {
        bk_fmt(image->temporary, sizeof image->temporary, BK_FILES_TEMPORARY "%016llx",
               (unsigned long long)XXH3_64bits_withSeed(place->name, strlen(place->name),
                                                        seed + tries));
        if (is_leftover(place, image->temporary))
            bk_at_unlink(&place->at, image->temporary, 0);
        errnum = bk_at_create(&place->at, image->temporary, &image->fd);
    }
    return errnum == 0 ? BK_OK : failed(place, errnum, "make a temporary file for", err);
}

static bk_rc_t fill_image(image_t *image, bk_team_t *team, bk_ctl_t *ctl, bk_err_t *err)
{
    const place_t *place = image->place;
    bk_rc_t rc =
        bk_point_write(place->options->point, place->db, image->fd, image->path, team, err);
    if (rc == BK_OK)
        rc = bk_at_helped(&place->at) ? own_helped(place, image->temporary, ctl, err)
                                      : own(image->fd, place, ctl, err);
    return rc == BK_OK ? bk_db_check_and_flush(image->fd, image->path, place->options->check, team,
                                               ctl, err)
                       : rc;
}

/* Another recovery may have taken it for a leftover, and have one of that name half written. */
static bool is_ours(const image_t *image)
{
    struct stat st, ours;
    return fstat(image->fd, &ours) == 0 &&
           bk_at_stat(&image->place->at, image->temporary, &st) == 0 && st.st_dev == ours.st_dev &&
           st.st_ino == ours.st_ino;
}

/* Somebody may have opened, or made, what is there in the meantime. */
static bk_rc_t name_image(const image_t *image, bk_err_t *err)
{
    const place_t *place = image->place;
    unsigned flags = place->options->overwrite == BK_OVERWRITE_NEVER ? RENAME_NOREPLACE : 0;
    bk_rc_t rc = check_place(place, err);
    if (rc == BK_OK && !is_ours(image))
        rc = bk_err_set(err, BK_CHANGED,
                        "%s: another recovery into this directory took its place: run it again "
                        "when that one has ended",
                        image->path);
    if (rc == BK_OK)
        rc = make_way(place, err);
    if (rc != BK_OK)
        return rc;
    int errnum = bk_at_rename(&place->at, image->temporary, place->name, flags);
    return errnum == 0 ? sync_dir(place, err) : failed(place, errnum, "give its name to", err);
}

static bk_rc_t write_database(const place_t *place, bk_team_t *team, bk_ctl_t *ctl, bk_err_t *err)
{
    image_t image = {.place = place, .fd = -1};
    bk_rc_t rc = make_image(&image, err);
    if (rc != BK_OK)
        return rc;
    rc = fill_image(&image, team, ctl, err);
    if (rc == BK_OK)
        rc = name_image(&image, err);
    if (rc != BK_OK) {
        place->at.road->ctl = NULL; /* also when the job was stopped */
        if (is_ours(&image))
            bk_at_unlink(&place->at, image.temporary, 0);
    }
    close(image.fd);
    return rc;
}

static bk_rc_t recover_database(const place_t *place, bk_team_t *team, json_t *result,
                                bk_ctl_t *ctl, bk_err_t *err)
{
    bk_ctl_current(ctl, place->db->name);
    bk_rc_t rc = check_place(place, err);
    bool skip = rc == BK_OK && is_kept(place);
    if (rc == BK_OK && !skip)
        rc = write_database(place, team, ctl, err);
    if (rc == BK_OK) {
        json_t *entry = json_pack("{ss so ss}", "name", place->db->name, "file",
                                  bk_json_name(place->name, strlen(place->name)), "action",
                                  skip ? "skipped" : "written");
        bk_point_tell(place->options->point, place->db, entry);
        json_array_append_new(bk_recover_list(result, "databases"), entry);
    }
    return rc;
}

/* What stands in the way of a recovery stands in the way of its plan.  there: the directory is. */
static bk_rc_t plan_database(const place_t *place, bool there, json_t *result, bk_err_t *err)
{
    char path[PATH_MAX];
    const bk_snapshot_db_t *db = place->db;
    bk_rc_t rc = there ? check_place(place, err) : BK_OK;
    if (rc != BK_OK)
        return rc;
    bk_fmt(path, sizeof path, "%s/%s", place->where, place->name);
    json_t *entry = json_pack("{so ss sI}", "path", bk_json_name(path, strlen(path)), "action",
                              there && is_kept(place) ? "skip" : "database", "size",
                              (json_int_t)(db->page_count * db->page_size));
    bk_point_tell(place->options->point, db, entry);
    json_array_append_new(bk_recover_list(result, "plan"), entry);
    return BK_OK;
}

static bk_rc_t recover_one(const bk_recover_options_t *options, bk_road_t *road, const char *subdir,
                           const bk_snapshot_db_t *db, bk_team_t *team, json_t *result,
                           bk_ctl_t *ctl, bk_err_t *err)
{
    char name[NAME_MAX + 1], where[PATH_MAX];
    place_t place = {.options = options, .db = db, .name = name, .where = where};
    bk_fmt(where, sizeof where, "%s%s%s", bk_root_path(road->root), *subdir != '\0' ? "/" : "",
           subdir);
    if (!database_file(options->snapshot, db, name, sizeof name))
        return bk_err_set(err, BK_UNSUPPORTED, "database %s: its path %s gives no file name",
                          db->name, db->path);
    bool made;
    bk_rc_t rc = bk_road_make(road, subdir, options->dry_run, &made, err);
    if (rc != BK_OK)
        return rc;
    int errnum = bk_at_open(road, subdir, false, &place.at);
    if (options->dry_run)
        rc = plan_database(&place, errnum == 0, result, err);
    else
        rc = errnum == 0 ? recover_database(&place, team, result, ctl, err)
                         : failed(&place, errnum, "open the directory of", err);
    bk_at_close(&place.at);
    return rc;
}

bk_rc_t bk_recover_databases(const bk_recover_options_t *options, bk_root_t *target,
                             const char *subdir, bk_team_t *team, json_t *result, bk_ctl_t *ctl,
                             bk_err_t *err)
{
    const bk_snapshot_t *s = options->snapshot;
    bk_road_t road = {0};
    bk_rc_t rc = bk_road_init(&road, target, ctl, err);
    for (size_t i = 0; i < s->db_count && rc == BK_OK; i++)
        if (options->database == NULL || strcmp(options->database, s->dbs[i].name) == 0)
            rc = recover_one(options, &road, subdir, &s->dbs[i], team, result, ctl, err);
    bk_road_free(&road);
    return rc;
}
