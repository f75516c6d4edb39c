/*
 * sqlite/opening.c: a short table of databases, and in front of SQLite's system calls those that
 * ask the helper when they are denied.  Knows nothing of what the files hold.
 *
 * The replacements stay for as long as the process lives: taking them out while another thread is
 * about to call one could not be done safely.  So they are put in only where jobs run.
 */
#include "sqlite/opening.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/publish.h"
#include "base/str.h"

#define PLACES 64

typedef struct {
    char *path; /* as configured; NULL: the place is free */
    char *real; /* without links, when this process could find out */
    bk_helper_t *client;
    bk_helper_root_t *root;
    unsigned users; /* that ask about it at the moment */
} place_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t idle = PTHREAD_COND_INITIALIZER;
static place_t places[PLACES];

/* What the names stood for before. */
static struct {
    int (*open)(const char *path, int flags, int mode);
    int (*access)(const char *path, int how);
    int (*stat)(const char *path, struct stat *st);
    int (*lstat)(const char *path, struct stat *st);
    int (*unlink)(const char *path);
} before;

/* --- which database a path belongs to --- */

typedef enum { OTHER, ABOVE, DIRECTORY, FILE_OF_IT } kind_t;

typedef struct {
    place_t *place;
    kind_t kind;
    char name[BK_WIRE_NAME + 1]; /* in the database's directory; "" is that itself */
} match_t;

static kind_t match_one(const char *database, const char *path, char name[BK_WIRE_NAME + 1])
{
    static const char *const ends[] = {"", "-wal", "-shm", "-journal"};
    size_t len = strlen(database), path_len = strlen(path);
    const char *base = strrchr(database, '/');
    size_t dir_len = base == database ? 1 : (size_t)(base - database);
    name[0] = '\0';
    if (strncmp(path, database, len) == 0)
        for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
            if (strcmp(path + len, ends[i]) == 0)
                return bk_strcpy(name, BK_WIRE_NAME + 1, path + (base - database) + 1) ? FILE_OF_IT
                                                                                       : OTHER;
    if (strncmp(database, path, path_len) != 0 || path_len > dir_len)
        return OTHER;
    if (path_len == dir_len)
        return DIRECTORY;
    return database[path_len] == '/' ? ABOVE : OTHER;
}

/* How near path is to the database of place, by either of its names. */
static kind_t match_place(const place_t *place, const char *path, char name[BK_WIRE_NAME + 1])
{
    char other[BK_WIRE_NAME + 1];
    kind_t kind = match_one(place->path, path, name);
    kind_t real = place->real != NULL ? match_one(place->real, path, other) : OTHER;
    if (real <= kind)
        return kind;
    bk_strcpy(name, sizeof other, other);
    return real;
}

/*
 * The nearest one: a directory above one database may be that of another.  The place is in use
 * until leave().
 */
static bool enter(const char *path, match_t *match)
{
    char name[BK_WIRE_NAME + 1];
    match->kind = OTHER;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < PLACES; i++) {
        kind_t kind = places[i].path != NULL ? match_place(&places[i], path, name) : OTHER;
        if (kind <= match->kind)
            continue;
        match->kind = kind;
        match->place = &places[i];
        bk_strcpy(match->name, sizeof match->name, name);
    }
    if (match->kind != OTHER)
        match->place->users++;
    pthread_mutex_unlock(&lock);
    return match->kind != OTHER;
}

static void leave(match_t *match)
{
    pthread_mutex_lock(&lock);
    match->place->users--;
    pthread_cond_broadcast(&idle);
    pthread_mutex_unlock(&lock);
}

/* --- asking --- */

/* One operation; 0 or -1 and errno.  fd and st may be NULL. */
static int ask(const match_t *match, bk_helper_op_t op, int *fd, struct stat *st)
{
    bk_helper_result_t result;
    bk_err_t why = {0};
    op.name = match->name;
    if (bk_helper_at(match->place->root, "", 0, &op, 1, &result, NULL, &why) != BK_OK) {
        errno = EACCES; /* whatever is wrong with it, the right is still missing */
        return -1;
    }
    free(result.data);
    if (fd != NULL && result.error == 0 && result.fd < 0)
        result.error = EIO;
    if (fd != NULL)
        *fd = result.fd;
    else if (result.fd >= 0)
        close(result.fd);
    if (st != NULL && result.error == 0)
        *st = result.st;
    errno = result.error;
    return result.error == 0 ? 0 : -1;
}

static int ask_stat(const char *path, struct stat *st)
{
    match_t match;
    int rc = 0;
    if (!enter(path, &match)) {
        errno = EACCES;
        return -1;
    }
    if (match.kind == ABOVE) /* a link there was resolved when the helper was configured */
        *st = (struct stat){.st_mode = S_IFDIR | 0755, .st_nlink = 1};
    else
        rc = ask(&match, (bk_helper_op_t){.call = BK_WIRE_STAT}, NULL, st);
    leave(&match);
    return rc;
}

static int ask_open(const char *path, int flags)
{
    match_t match;
    int fd = -1;
    if (!enter(path, &match)) {
        errno = EACCES;
        return -1;
    }
    errno = EACCES;
    bk_helper_op_t op = {.call = BK_WIRE_OPEN};
    if (match.kind == FILE_OF_IT)
        op.flags = (uint32_t)(flags & (O_RDWR | O_CREAT | O_EXCL));
    else
        op.flags = O_DIRECTORY;
    if (match.kind != ABOVE && ask(&match, op, &fd, NULL) != 0)
        fd = -1;
    leave(&match);
    return fd;
}

/* --- in front of SQLite's system calls --- */

static int helped_open(const char *path, int flags, int mode)
{
    int fd = before.open(path, flags, mode);
    return fd < 0 && errno == EACCES ? ask_open(path, flags) : fd;
}

static int helped_stat(const char *path, struct stat *st)
{
    int rc = before.stat(path, st);
    return rc != 0 && errno == EACCES ? ask_stat(path, st) : rc;
}

static int helped_lstat(const char *path, struct stat *st)
{
    int rc = before.lstat(path, st);
    return rc != 0 && errno == EACCES ? ask_stat(path, st) : rc;
}

/* What the helper finds it also opens, for reading and for writing. */
static int helped_access(const char *path, int how)
{
    struct stat st;
    int rc = before.access(path, how);
    return rc != 0 && errno == EACCES ? ask_stat(path, &st) : rc;
}

static int helped_unlink(const char *path)
{
    match_t match;
    int rc = before.unlink(path);
    if (rc == 0 || errno != EACCES || !enter(path, &match))
        return rc;
    errno = EACCES;
    if (match.kind == FILE_OF_IT)
        rc = ask(&match, (bk_helper_op_t){.call = BK_WIRE_UNLINK}, NULL, NULL);
    leave(&match);
    return rc;
}

static bool put_in;

static void put_in_front(void)
{
    sqlite3_vfs *vfs;
    if (sqlite3_initialize() != SQLITE_OK || (vfs = sqlite3_vfs_find("unix")) == NULL ||
        vfs->iVersion < 3 || vfs->xGetSystemCall == NULL)
        return;
    before.open = (int (*)(const char *, int, int))vfs->xGetSystemCall(vfs, "open");
    before.access = (int (*)(const char *, int))vfs->xGetSystemCall(vfs, "access");
    before.stat = (int (*)(const char *, struct stat *))vfs->xGetSystemCall(vfs, "stat");
    before.lstat = (int (*)(const char *, struct stat *))vfs->xGetSystemCall(vfs, "lstat");
    before.unlink = (int (*)(const char *))vfs->xGetSystemCall(vfs, "unlink");
    if (before.open == NULL || before.access == NULL || before.stat == NULL ||
        before.lstat == NULL || before.unlink == NULL)
        return;
    put_in = vfs->xSetSystemCall(vfs, "open", (sqlite3_syscall_ptr)helped_open) == SQLITE_OK &&
             vfs->xSetSystemCall(vfs, "access", (sqlite3_syscall_ptr)helped_access) == SQLITE_OK &&
             vfs->xSetSystemCall(vfs, "stat", (sqlite3_syscall_ptr)helped_stat) == SQLITE_OK &&
             vfs->xSetSystemCall(vfs, "lstat", (sqlite3_syscall_ptr)helped_lstat) == SQLITE_OK &&
             vfs->xSetSystemCall(vfs, "unlink", (sqlite3_syscall_ptr)helped_unlink) == SQLITE_OK;
}

/* --- the table --- */

/* One that nobody else can see, or with the lock held. */
static void clear(place_t *place)
{
    bk_helper_root_close(place->root);
    free(place->path);
    free(place->real);
    *place = (place_t){0};
}

/* Lock held, and given up while it waits until nobody asks about it.  NULL: no such path. */
static place_t *find(const char *path)
{
    for (size_t i = 0; i < PLACES; i++) {
        if (places[i].path == NULL || strcmp(places[i].path, path) != 0)
            continue;
        if (places[i].users == 0)
            return &places[i];
        pthread_cond_wait(&idle, &lock);
        i = (size_t)-1; /* it may be gone by now */
    }
    return NULL;
}

/* Lock held. */
static place_t *find_free(void)
{
    for (size_t i = 0; i < PLACES; i++)
        if (places[i].path == NULL)
            return &places[i];
    return NULL;
}

void bk_db_unhelp(const char *path)
{
    pthread_mutex_lock(&lock);
    place_t *place = find(path);
    if (place != NULL)
        clear(place);
    pthread_mutex_unlock(&lock);
}

bool bk_db_is_helped(const char *path)
{
    match_t match;
    if (!enter(path, &match))
        return false;
    leave(&match);
    return match.kind == FILE_OF_IT;
}

/* To remove a hot journal takes the right to place; without it, what is left is to read. */
static bk_rc_t open_root(const char *path, bk_helper_t *client, bk_helper_root_t **root,
                         bk_err_t *err)
{
    bk_rc_t rc =
        bk_helper_root_open(client, path, BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE, root, NULL, err);
    if (rc == BK_FORBIDDEN)
        rc = bk_helper_root_open(client, path, BK_WIRE_MAY_READ, root, NULL, err);
    return rc;
}

static bool is_known(const char *path, const bk_helper_t *client)
{
    bool known = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < PLACES; i++)
        known = known || (places[i].path != NULL && places[i].client == client &&
                          strcmp(places[i].path, path) == 0);
    pthread_mutex_unlock(&lock);
    return known;
}

bk_rc_t bk_db_help(const char *path, bk_helper_t *client, bk_err_t *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    place_t new = {.client = client};
    char real[PATH_MAX];
    pthread_once(&once, put_in_front);
    if (!put_in)
        return bk_err_set(err, BK_UNSUPPORTED,
                          "database %s: this SQLite does not let its system calls be replaced",
                          path);
    if (is_known(path, client))
        return BK_OK;
    bk_rc_t rc = open_root(path, client, &new.root, err);
    if (rc != BK_OK)
        return rc;
    new.path = bk_strdup(path);
    if (realpath(path, real) != NULL)
        new.real = bk_strdup(real);
    pthread_mutex_lock(&lock);
    place_t *place = find(path), gone = new;
    if (place == NULL)
        place = find_free();
    if (new.path == NULL || place == NULL) {
        rc = bk_err_set(err, BK_FAILED, "database %s: more than %d databases, or no memory", path,
                        PLACES);
    } else {
        gone = *place; /* at once, so that nobody finds none in between */
        *place = new;
    }
    pthread_mutex_unlock(&lock);
    clear(&gone);
    return rc;
}

/* --- for everybody else --- */

int bk_db_stat(const char *path, struct stat *st)
{
    int rc = stat(path, st);
    return rc != 0 && errno == EACCES ? ask_stat(path, st) : rc;
}

int bk_db_access(const char *path, int how)
{
    struct stat st;
    int rc = faccessat(AT_FDCWD, path, how, AT_EACCESS);
    return rc != 0 && errno == EACCES ? ask_stat(path, &st) : rc;
}

int bk_db_open_file(const char *path)
{
    int fd = bk_openat(AT_FDCWD, path, O_RDONLY, 0);
    return fd < 0 && errno == EACCES ? ask_open(path, O_RDONLY) : fd;
}
