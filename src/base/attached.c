/*
 * base/attached.c: small tables under one lock: databases, descriptors of files, and descriptors
 * that may not be closed yet.  Looks at files, opens none.
 */
#include "base/attached.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/str.h"

#define PLACES  256
#define BUCKETS 64 /* as many descriptors are held as lanes read files: some hundred */

typedef struct {
    uint64_t device, inode; /* both 0: none */
} file_t;

/* A descriptor of a file that became, or turned out to be, a database in use. */
typedef struct parked_s {
    struct parked_s *next;
    int fd;
} parked_t;

typedef struct {
    file_t file, shm;
    char *path; /* NULL: the place is free */
    bk_attached_look_fn look;
    unsigned count; /* connections; 0: reserved */
    bool settled;   /* shm is known, also when there is none */
    parked_t *parked;
} place_t;

typedef struct held_s {
    struct held_s *next;
    file_t file;
    unsigned count;
} held_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static place_t places[PLACES];
static size_t places_used; /* none behind has ever been taken */
static held_t *held[BUCKETS];

static file_t file_of(const struct stat *st)
{
    return (file_t){.device = st->st_dev, .inode = st->st_ino};
}

static bool same(const file_t *a, const file_t *b)
{
    return a->inode == b->inode && a->device == b->device && a->inode != 0;
}

/* --- descriptors; the lock is held --- */

static held_t **find_held(const file_t *file)
{
    held_t **link = &held[file->inode % BUCKETS];
    while (*link != NULL && !same(&(*link)->file, file))
        link = &(*link)->next;
    return link;
}

static bool is_held(const struct stat *st)
{
    file_t file = file_of(st);
    return *find_held(&file) != NULL;
}

/* --- places; the lock is held --- */

/*
 * The place of this file, else of this name, else NULL.  reserved: a name counts only when it is
 * reserved; connections to another file of that name are no obstacle then.
 */
static place_t *find(const char *path, const struct stat *st, bool reserved)
{
    place_t *by_name = NULL;
    file_t file = st != NULL ? file_of(st) : (file_t){0};
    for (size_t i = 0; i < places_used; i++) {
        if (places[i].path == NULL)
            continue;
        if (same(&places[i].file, &file))
            return &places[i];
        if (strcmp(places[i].path, path) == 0 && (!reserved || places[i].count == 0))
            by_name = &places[i];
    }
    return by_name;
}

static bool look_at_shm(const place_t *place, struct stat *st)
{
    char shm[4096];
    return bk_fmt(shm, sizeof shm, "%s-shm", place->path) && place->look(shm, st) == 0;
}

static bool is_shm_of(const place_t *place, const file_t *file)
{
    struct stat st;
    if (place->settled)
        return same(&place->shm, file);
    /* Looked up each time: it comes and goes. */
    return look_at_shm(place, &st) && st.st_dev == file->device && st.st_ino == file->inode;
}

static place_t *find_user(const file_t *file)
{
    for (size_t i = 0; i < places_used; i++)
        if (places[i].path != NULL && (same(&places[i].file, file) || is_shm_of(&places[i], file)))
            return &places[i];
    return NULL;
}

static bk_rc_t take(const char *path, const struct stat *st, bk_attached_look_fn look,
                    unsigned count, bk_err_t *err)
{
    for (size_t i = 0; i < PLACES; i++) {
        struct stat shm;
        place_t *place = &places[i];
        if (place->path != NULL)
            continue;
        if ((place->path = bk_strdup(path)) == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", path);
        place->file = st != NULL ? file_of(st) : (file_t){0};
        place->look = look;
        place->count = count;
        if (places_used <= i)
            places_used = i + 1;
        if ((st == NULL || !is_held(st)) && (!look_at_shm(place, &shm) || !is_held(&shm)))
            return BK_OK;
        free(place->path);
        *place = (place_t){0};
        return bk_err_set(err, BK_BUSY,
                          "database %s is being read as a file by another job: try "
                          "again",
                          path);
    }
    return bk_err_set(err, BK_FAILED, "database %s: more than %d databases are open at once", path,
                      PLACES);
}

static void give_back(place_t *place)
{
    while (place->parked != NULL) {
        parked_t *next = place->parked->next;
        close(place->parked->fd);
        free(place->parked);
        place->parked = next;
    }
    free(place->path);
    *place = (place_t){0};
}

/* --- databases --- */

bk_rc_t bk_attached_add(const char *path, const struct stat *st, bk_attached_look_fn look,
                        bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    pthread_mutex_lock(&lock);
    place_t *place = find(path, st, true);
    if (place == NULL)
        rc = take(path, st, look, 1, err);
    else if (place->count == 0)
        rc = bk_err_set(err, BK_BUSY, "database %s is being replaced by a recovery: try again",
                        path);
    else
        place->count++;
    pthread_mutex_unlock(&lock);
    return rc;
}

unsigned bk_attached_count(uint64_t device, uint64_t inode)
{
    unsigned count = 0;
    file_t file = {device, inode};
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < places_used; i++)
        if (same(&places[i].file, &file))
            count = places[i].count;
    pthread_mutex_unlock(&lock);
    return count;
}

void bk_attached_settle(uint64_t device, uint64_t inode)
{
    file_t file = {device, inode};
    struct stat st;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < places_used; i++)
        if (same(&places[i].file, &file) && places[i].count > 0) {
            places[i].shm = look_at_shm(&places[i], &st) ? file_of(&st) : (file_t){0};
            places[i].settled = true;
        }
    pthread_mutex_unlock(&lock);
}

void bk_attached_remove(uint64_t device, uint64_t inode)
{
    file_t file = {device, inode};
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < places_used; i++)
        if (same(&places[i].file, &file) && places[i].count > 0 && --places[i].count == 0)
            give_back(&places[i]);
    pthread_mutex_unlock(&lock);
}

bk_rc_t bk_attached_reserve(const char *path, const struct stat *st, bk_attached_look_fn look,
                            bk_err_t *err)
{
    pthread_mutex_lock(&lock);
    bk_rc_t rc =
        find(path, st, false) == NULL
            ? take(path, st, look, 0, err)
            : bk_err_set(err, BK_BUSY, "database %s is in use by another job: try again", path);
    pthread_mutex_unlock(&lock);
    return rc;
}

void bk_attached_release(const char *path)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < places_used; i++)
        if (places[i].path != NULL && places[i].count == 0 && strcmp(places[i].path, path) == 0)
            give_back(&places[i]);
    pthread_mutex_unlock(&lock);
}

/* --- everybody else --- */

bool bk_attached_has(const struct stat *st)
{
    file_t file = file_of(st);
    pthread_mutex_lock(&lock);
    bool found = find_user(&file) != NULL;
    pthread_mutex_unlock(&lock);
    return found;
}

/* Lock held.  Without memory it is leaked: an open descriptor harms less than a lost lock. */
static void park(place_t *place, int fd)
{
    parked_t *parked = malloc(sizeof *parked);
    if (parked == NULL)
        return;
    *parked = (parked_t){.next = place->parked, .fd = fd};
    place->parked = parked;
}

/* Lock held. */
static bool count_held(const file_t *file)
{
    held_t **link = find_held(file);
    if (*link == NULL && (*link = calloc(1, sizeof **link)) != NULL)
        (*link)->file = *file;
    if (*link != NULL)
        (*link)->count++;
    return *link != NULL;
}

bool bk_attached_hold(int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return true; /* nothing that SQLite would lock */
    file_t file = file_of(&st);
    pthread_mutex_lock(&lock);
    place_t *place = find_user(&file);
    bool ok = place == NULL && count_held(&file);
    if (place != NULL)
        park(place, fd);
    else if (!ok)
        close(fd);
    pthread_mutex_unlock(&lock);
    return ok;
}

void bk_attached_close(int fd)
{
    struct stat st;
    if (fd < 0)
        return;
    bool known = fstat(fd, &st) == 0;
    file_t file = known ? file_of(&st) : (file_t){0};
    pthread_mutex_lock(&lock);
    close(fd);
    held_t **link = find_held(&file);
    if (known && *link != NULL && --(*link)->count == 0) {
        held_t *gone = *link;
        *link = gone->next;
        free(gone);
    }
    pthread_mutex_unlock(&lock);
}
