/*
 * sqlite/replace.c: puts a new file under the name of a database that nobody has open, and keeps
 * the old files beside it.  Touches only the directory of the database.
 *
 * What is under the names at each step, should the machine stop there:
 *
 *   1. a sound old database takes in its -wal or -journal    the old database, whole
 *   2. the image is written to a temporary and fsynced       the same
 *   3. the old file gets its second name, <path>.before-<job>  the same
 *   4. -wal, -shm, -journal are renamed, directory fsync     the old database; of a damaged one
 *                                                            only the file, the rest set aside
 *   5. the temporary is renamed, directory fsync             the new database
 *
 * The directory is fsynced before step 5, or a new database could meet an old -wal after a power
 * failure, and SQLite would play that into it.
 *
 * The helper gives no file a second name: with it there is no step 3, and in step 5 the temporary
 * becomes <path>.before-<job> and then changes places with the database.
 */
#include "sqlite/replace.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "base/attached.h"
#include "base/publish.h"
#include "base/str.h"
#include "sqlite/beside.h"
#include "sqlite/connect.h"
#include "sqlite/opening.h"

#define LOCK_FIRST     0x40000000 /* pending, reserved and shared bytes of the database */
#define LOCK_BYTES     512
#define SHM_LOCK_FIRST 120
#define SHM_LOCK_BYTES 9
#define COPY_BYTES     (8u << 20)
#define ASIDE_TRIES    100
#define NAME_ROOM      (NAME_MAX + 1)
#define TEMPORARY      ".ngx-backup-" /* and what is one database's own */

/* The main file is first, both ways: a -wal never stands beside another database than its own. */
static const char *const parts[] = {"", "-wal", "-shm", "-journal"};
#define PARTS (sizeof parts / sizeof *parts)

typedef struct {
    const bk_db_recover_t *how;
    const char *target;
    bk_ctl_t *ctl;
    bk_beside_t beside;
    int main_fd, shm_fd; /* hold the locks */
    int new_fd;
    char temporary[NAME_ROOM];    /* "": not made */
    bool named;                   /* it has the database's name */
    char aside[PARTS][NAME_ROOM]; /* "" when the part is where it was */
    bool linked;                  /* the main file has both names */
} replace_t;

static bk_rc_t failed(replace_t *r, int errnum, const char *what, const char *name, bk_err_t *err)
{
    return bk_beside_error(&r->beside, errnum, what, name, err);
}

/* The name of a part, "" being the database itself. */
static bool part_name(const replace_t *r, size_t part, char out[NAME_ROOM])
{
    return bk_fmt(out, NAME_ROOM, "%s%s", r->beside.name, parts[part]);
}

/* --- nobody has it open --- */

static bk_rc_t in_use(const replace_t *r, long pid, bk_err_t *err)
{
    char who[64] = "another process";
    /* A process of another pid namespace has no number here. */
    if (pid > 0)
        bk_fmt(who, sizeof who, "process %ld", pid);
    return bk_err_set(err, BK_BUSY,
                      "database %s is open in %s: stop the application, recover again, start it",
                      r->target, who);
}

/*
 * Take SQLite's lock bytes, and keep them until *fd is closed: who opens the database meanwhile has
 * to wait.  The caller made sure that this process has it not open: closing would drop its locks.
 */
static bk_rc_t lock_part(replace_t *r, const char *name, off_t first, off_t bytes, int *fd,
                         bk_err_t *err)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = first, .l_len = bytes};
    struct flock holder = lock;
    int errnum = bk_beside_use(&r->beside, name, fd);
    if (errnum != 0) {
        *fd = -1;
        return errnum == ENOENT ? BK_OK : failed(r, errnum, "open", name, err);
    }
    if (fcntl(*fd, F_SETLK, &lock) == 0)
        return BK_OK;
    if (errno != EACCES && errno != EAGAIN)
        return failed(r, errno, "lock", name, err);
    if (fcntl(*fd, F_GETLK, &holder) != 0 || holder.l_type == F_UNLCK)
        holder.l_pid = 0;
    return in_use(r, (long)holder.l_pid, err);
}

/*
 * A connection in a rollback-journal mode holds no lock while it is idle, but it has the file open:
 * a write lease is granted only on a file that nobody else has open.  Silently left out where
 * leases are not possible (another owner and no helper, network file systems).
 */
static bk_rc_t check_not_open(replace_t *r, bk_err_t *err)
{
    int errnum = r->main_fd < 0 ? 0 : bk_beside_alone(&r->beside, r->main_fd);
    if (errnum == EBUSY)
        return in_use(r, 0, err);
    return errnum == 0 || errnum == EOPNOTSUPP
               ? BK_OK
               : failed(r, errnum, "look who has it open:", "", err);
}

static bk_rc_t lock_all(replace_t *r, bk_err_t *err)
{
    char shm[NAME_ROOM];
    if (!part_name(r, 2, shm))
        return bk_err_set(err, BK_CONFIG, "database %s: the name is too long", r->target);
    bk_rc_t rc = lock_part(r, r->beside.name, LOCK_FIRST, LOCK_BYTES, &r->main_fd, err);
    if (rc == BK_OK)
        rc = lock_part(r, shm, SHM_LOCK_FIRST, SHM_LOCK_BYTES, &r->shm_fd, err);
    return rc == BK_OK ? check_not_open(r, err) : rc;
}

/* --- step 1: nothing of the old database is in its companions --- */

/*
 * Through SQLite: it plays back a -journal when it reads, and takes in the -wal when its last
 * connection closes.  A -wal that stays is one that somebody else has open.
 */
static bk_rc_t fold(replace_t *r, bk_err_t *err)
{
    bk_db_connection_t c;
    struct stat st;
    char wal[NAME_ROOM];
    bk_rc_t rc = bk_db_connect(&c, r->target, r->how->busy_ms, r->ctl, err);
    if (rc == BK_OK)
        rc = bk_db_query(&c, "PRAGMA schema_version", NULL, 0, err);
    c.found_wal = false;
    bk_db_disconnect(&c);
    if (rc == BK_CORRUPT) {
        bk_err_clear(err);
        return BK_OK; /* not sound after all: its parts are only set aside */
    }
    if (rc == BK_OK && part_name(r, 1, wal) && bk_beside_stat(&r->beside, wal, &st) == 0)
        return in_use(r, 0, err);
    return rc;
}

/* --- step 2: the new file --- */

static bk_rc_t copy_range(int from, int to, off_t at, off_t end, const replace_t *r, bk_err_t *err)
{
    while (at < end) {
        bk_rc_t rc = bk_ctl_check(r->ctl, err);
        if (rc != BK_OK)
            return rc;
        size_t len = end - at < (off_t)COPY_BYTES ? (size_t)(end - at) : COPY_BYTES;
        loff_t in = at, out = at;
        ssize_t n = copy_file_range(from, &in, to, &out, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n > 0) {
            at += n;
            continue;
        }
        if (n < 0 && errno != EXDEV && errno != ENOSYS && errno != EOPNOTSUPP && errno != EINVAL)
            return bk_err_sys(err, errno, "write %s", r->target);
        /* File systems that cannot: in pieces through memory. */
        uint8_t piece[65536];
        size_t got;
        if (len > sizeof piece)
            len = sizeof piece;
        rc = bk_pread_all(from, piece, len, (uint64_t)at, &got, r->how->image, err);
        if (rc == BK_OK && got != len)
            rc = bk_err_set(err, BK_IO, "%s became shorter while it was copied", r->how->image);
        if (rc == BK_OK)
            rc = bk_pwrite_all(to, piece, len, (uint64_t)at, r->target, err);
        if (rc != BK_OK)
            return rc;
        at += (off_t)len;
    }
    return BK_OK;
}

/* Holes stay holes. */
static bk_rc_t copy_image(int from, int to, const replace_t *r, bk_err_t *err)
{
    struct stat st;
    bk_rc_t rc = BK_OK;
    if (fstat(from, &st) != 0)
        return bk_err_sys(err, errno, "look at %s", r->how->image);
    if (ftruncate(to, st.st_size) != 0)
        return bk_err_sys(err, errno, "make %s as long as the database", r->target);
    for (off_t at = 0; at < st.st_size && rc == BK_OK;) {
        off_t data = lseek(from, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        if (data < 0)
            return bk_err_sys(err, errno, "look for data in %s", r->how->image);
        off_t hole = lseek(from, data, SEEK_HOLE);
        if (hole < 0)
            return bk_err_sys(err, errno, "look for holes in %s", r->how->image);
        rc = copy_range(from, to, data, hole, r, err);
        at = hole;
    }
    return rc;
}

static bk_rc_t check_room(replace_t *r, int image, bk_err_t *err)
{
    struct stat st;
    uint64_t room;
    if (fstat(image, &st) != 0)
        return bk_err_sys(err, errno, "look at %s", r->how->image);
    bk_rc_t rc = bk_beside_room(&r->beside, &room, err);
    if (rc == BK_OK && room < (uint64_t)st.st_blocks * 512)
        rc = bk_err_set(err, BK_NO_SPACE,
                        "database %s needs %llu MiB in its directory, there are %llu MiB: free "
                        "some space",
                        r->target, (unsigned long long)st.st_blocks >> 11,
                        (unsigned long long)(room >> 20));
    return rc;
}

static bk_rc_t own_helped(replace_t *r, uint32_t uid, uint32_t gid, uint32_t mode, bk_err_t *err)
{
    bool owned = true;
    int errnum = bk_beside_own(&r->beside, r->temporary, uid, gid, mode, &owned);
    if (errnum != 0)
        return failed(r, errnum, "set owner and mode of", r->temporary, err);
    if (!owned)
        bk_ctl_note(r->ctl,
                    "database %s: this file system did not take its owner %u:%u: run: chown %u:%u "
                    "%s",
                    r->target, uid, gid, uid, gid, r->target);
    return BK_OK;
}

/* Owner and mode of the old file, else those of the backup. */
static bk_rc_t set_owner(replace_t *r, bk_err_t *err)
{
    int fd = r->new_fd;
    uint32_t uid = r->how->uid, gid = r->how->gid, mode = r->how->mode;
    struct stat st, new;
    if (r->main_fd >= 0 && fstat(r->main_fd, &st) == 0) {
        uid = st.st_uid;
        gid = st.st_gid;
        mode = st.st_mode & 07777;
    }
    if (r->beside.helper != NULL)
        return own_helped(r, uid, gid, mode, err);
    if (fstat(fd, &new) != 0)
        return bk_err_sys(err, errno, "look at the new %s", r->target);
    if ((new.st_uid != uid || new.st_gid != gid) && fchown(fd, uid, gid) != 0) {
        int why = errno;
        char text[128];
        /* The group alone may be possible, and may be what lets the application in. */
        const char *group = new.st_gid == gid || fchown(fd, (uid_t)-1, gid) == 0 ? "" : ":group";
        bk_ctl_note(r->ctl,
                    "database %s: its owner%s %u:%u could not be set (%s): it belongs to user %u "
                    "now; run: chown %u:%u %s",
                    r->target, group, uid, gid, strerror_r(why, text, sizeof text),
                    (unsigned)geteuid(), uid, gid, r->target);
    }
    if (fchmod(fd, (mode_t)(mode & 07777)) != 0)
        return bk_err_sys(err, errno, "set the mode of %s", r->target);
    return BK_OK;
}

/* --- steps 3 and 4: the old files --- */

/* A free name, of the form <path>.before-<job>[.n]<part>. */
static bk_rc_t name_aside(replace_t *r, size_t part, bk_err_t *err)
{
    struct stat st;
    for (unsigned n = 1; n < ASIDE_TRIES; n++) {
        char number[16] = "";
        if (n > 1)
            bk_fmt(number, sizeof number, ".%u", n);
        if (!bk_fmt(r->aside[part], NAME_ROOM, "%s.before-%s%s%s", r->beside.name, r->how->job,
                    number, parts[part]))
            break;
        if (bk_beside_stat(&r->beside, r->aside[part], &st) == ENOENT)
            return BK_OK;
    }
    r->aside[part][0] = '\0';
    return bk_err_set(err, BK_EXISTS,
                      "database %s: there is no free name to set it aside: remove old %s.before-*",
                      r->target, r->target);
}

static bk_rc_t move_part(replace_t *r, size_t part, bk_err_t *err)
{
    char from[NAME_ROOM];
    struct stat st;
    if (!part_name(r, part, from))
        return bk_err_set(err, BK_CONFIG, "database %s: the name is too long", r->target);
    int errnum = bk_beside_stat(&r->beside, from, &st);
    if (errnum != 0)
        return errnum == ENOENT ? BK_OK : failed(r, errnum, "look at", from, err);
    bk_rc_t rc = name_aside(r, part, err);
    if (rc != BK_OK)
        return rc;
    /* The main file keeps its name until the new one takes it: a start in between must not find
     * none and make an empty database. */
    if (part == 0 && r->beside.helper != NULL)
        return BK_OK;
    if (part == 0 && bk_beside_link(&r->beside, from, r->aside[part]) == 0) {
        r->linked = true;
        return BK_OK;
    }
    errnum = bk_beside_rename(&r->beside, from, r->aside[part], 0);
    if (errnum != 0) {
        r->aside[part][0] = '\0';
        rc = failed(r, errnum, "set aside", from, err);
    }
    return rc;
}

/* --- step 5: the new file's name --- */

/* Through the helper, when there is an old one: both change places, so the name is never free. */
static int change_places(replace_t *r)
{
    const char *name = r->beside.name, *aside = r->aside[0];
    int errnum = bk_beside_rename(&r->beside, r->temporary, aside, RENAME_NOREPLACE);
    if (errnum == 0) {
        errnum = bk_beside_rename(&r->beside, aside, name, RENAME_EXCHANGE);
        if (errnum != 0 && bk_beside_rename(&r->beside, aside, r->temporary, 0) == 0)
            r->aside[0][0] = '\0'; /* the old one never left its name */
    }
    if (errnum != EINVAL && errnum != ENOSYS)
        return errnum;
    /* A file system that cannot. */
    if (name_aside(r, 0, NULL) != BK_OK ||
        (errnum = bk_beside_rename(&r->beside, name, r->aside[0], 0)) != 0) {
        r->aside[0][0] = '\0';
        return errnum;
    }
    return bk_beside_rename(&r->beside, r->temporary, name, 0);
}

static bk_rc_t give_name(replace_t *r, bk_err_t *err)
{
    const char *name = r->beside.name;
    bool exchange = r->beside.helper != NULL && r->aside[0][0] != '\0';
    int errnum = exchange ? change_places(r) : bk_beside_rename(&r->beside, r->temporary, name, 0);
    if (errnum != 0)
        return failed(r, errnum, "give the new file its name", name, err);
    r->named = true;
    return bk_beside_sync(&r->beside, err);
}

/* The name is the old file's again, or nobody's, if there was none. */
static bool main_back(replace_t *r, ino_t new_inode)
{
    struct stat st;
    const char *name = r->beside.name;
    bool new = bk_beside_stat(&r->beside, name, &st) == 0 && st.st_ino == new_inode;
    if (r->aside[0][0] == '\0')
        return !new || (bk_beside_rename(&r->beside, name, r->temporary, 0) == 0 &&
                        bk_beside_unlink(&r->beside, r->temporary) == 0);
    /* The old one has its name still when there was to be an exchange. */
    if (r->beside.helper != NULL && !new &&bk_beside_stat(&r->beside, name, &st) == 0)
        return true;
    /* Does nothing when both are names of one file still. */
    if (bk_beside_rename(&r->beside, r->aside[0], name, 0) != 0)
        return false;
    if (r->linked)
        bk_beside_unlink(&r->beside, r->aside[0]);
    return true;
}

/*
 * Everything back as it was.  The new file may have its name already, when only the fsync of the
 * directory failed: the old companions come back only when it is gone.  err is added to.
 */
static void move_back(replace_t *r, ino_t new_inode, bk_err_t *err)
{
    bool ok = main_back(r, new_inode);
    for (size_t part = 1; part < PARTS && ok; part++) {
        char to[NAME_ROOM];
        ok = r->aside[part][0] == '\0' ||
             (part_name(r, part, to) && bk_beside_rename(&r->beside, r->aside[part], to, 0) == 0);
    }
    if (!ok)
        bk_err_remedy(err, "not everything could be moved back: the old files are %s.before-%s*",
                      r->target, r->how->job);
}

static bk_rc_t swap(replace_t *r, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    struct stat st = {0};
    if (fstat(r->new_fd, &st) != 0)
        rc = bk_err_sys(err, errno, "look at the new %s", r->target);
    for (size_t part = 0; part < PARTS && rc == BK_OK; part++)
        rc = move_part(r, part, err);
    if (rc == BK_OK)
        rc = bk_beside_sync(&r->beside, err);
    if (rc == BK_OK)
        rc = give_name(r, err);
    if (rc != BK_OK)
        move_back(r, st.st_ino, err);
    return rc;
}

/* --- all steps --- */

/* The same name each time, so that what a killed process left is replaced. */
static bk_rc_t make_new(replace_t *r, bk_err_t *err)
{
    const char *name = r->beside.name;
    bk_fmt(r->temporary, sizeof r->temporary, TEMPORARY "%016llx",
           (unsigned long long)XXH3_64bits(name, strlen(name)));
    int errnum = bk_beside_unlink(&r->beside, r->temporary);
    if (errnum == 0 || errnum == ENOENT)
        errnum = bk_beside_create(&r->beside, r->temporary, &r->new_fd);
    if (errnum == 0)
        return BK_OK;
    r->temporary[0] = '\0';
    return failed(r, errnum, "make a temporary file beside", name, err);
}

static void drop_new(replace_t *r)
{
    if (r->new_fd >= 0)
        close(r->new_fd);
    if (r->temporary[0] != '\0' && !r->named)
        bk_beside_unlink(&r->beside, r->temporary);
    r->new_fd = -1;
}

static bk_rc_t write_and_swap(replace_t *r, bk_err_t *err)
{
    int image = bk_openat(AT_FDCWD, r->how->image, O_RDONLY, 0);
    if (image < 0)
        return bk_err_sys(err, errno, "open %s", r->how->image);
    bk_rc_t rc = check_room(r, image, err);
    if (rc == BK_OK)
        rc = make_new(r, err);
    if (rc == BK_OK)
        rc = copy_image(image, r->new_fd, r, err);
    if (rc == BK_OK)
        rc = set_owner(r, err);
    /* Whatever can fail for lack of something fails here, before a name changes. */
    if (rc == BK_OK && fsync(r->new_fd) != 0)
        rc = bk_err_sys(err, errno, "fsync the new %s", r->target);
    if (rc == BK_OK)
        rc = bk_ctl_check(r->ctl, err);
    if (rc == BK_OK)
        rc = swap(r, err);
    r->beside.ctl = NULL; /* the temporary goes also when the job was stopped */
    drop_new(r);
    close(image);
    return rc;
}

static bk_rc_t replace(replace_t *r, bool sound, bk_err_t *err)
{
    struct stat st;
    int errnum = bk_beside_stat(&r->beside, r->beside.name, &st);
    if (errnum != 0 && errnum != ENOENT)
        return failed(r, errnum, "look at", r->beside.name, err);
    bk_rc_t rc = errnum == 0 && sound ? fold(r, err) : BK_OK;
    if (rc != BK_OK)
        return rc;
    rc = bk_attached_reserve(r->target, errnum == 0 ? &st : NULL, bk_db_stat, err);
    if (rc != BK_OK)
        return rc;
    rc = lock_all(r, err);
    if (rc == BK_OK)
        rc = write_and_swap(r, err);
    if (r->shm_fd >= 0)
        close(r->shm_fd);
    if (r->main_fd >= 0)
        close(r->main_fd);
    bk_attached_release(r->target);
    return rc;
}

bk_rc_t bk_db_replace(const bk_db_recover_t *how, const char *target, bool sound, bk_ctl_t *ctl,
                      bk_err_t *err)
{
    replace_t r = {
        .how = how, .target = target, .ctl = ctl, .main_fd = -1, .shm_fd = -1, .new_fd = -1};
    bk_rc_t rc = bk_beside_open(&r.beside, target, how->target, how->helper, ctl, err);
    if (rc == BK_OK)
        rc = replace(&r, sound, err);
    bk_beside_close(&r.beside);
    return rc;
}
