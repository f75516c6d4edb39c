/*
 * sqlite/attached.c: a small table of open databases under one lock.
 */
#include "sqlite/attached.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "sqlite/opening.h"
#include "sqlite/source.h"

#define PLACES 256

typedef struct {
    uint64_t device, inode; /* both 0: reserved without a file */
    char *path;             /* NULL: the place is free */
    unsigned count;         /* connections; 0: reserved */
} place_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static place_t places[PLACES];

static bool same_file(const place_t *place, uint64_t device, uint64_t inode)
{
    return place->path != NULL && inode != 0 && place->device == device && place->inode == inode;
}

/*
 * Lock held.  The place of this file, else of this name, else NULL.  reserved: a name counts only
 * when it is reserved; connections to another file of that name are no obstacle then.
 */
static place_t *find(const char *path, const struct stat *st, bool reserved)
{
    place_t *by_name = NULL;
    for (size_t i = 0; i < PLACES; i++) {
        if (st != NULL && same_file(&places[i], st->st_dev, st->st_ino))
            return &places[i];
        if (places[i].path != NULL && strcmp(places[i].path, path) == 0 &&
            (!reserved || places[i].count == 0))
            by_name = &places[i];
    }
    return by_name;
}

/* Lock held. */
static bk_rc_t take(const char *path, const struct stat *st, unsigned count, bk_err_t *err)
{
    for (size_t i = 0; i < PLACES; i++) {
        if (places[i].path != NULL)
            continue;
        if ((places[i].path = bk_strdup(path)) == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", path);
        places[i].device = st != NULL ? st->st_dev : 0;
        places[i].inode = st != NULL ? st->st_ino : 0;
        places[i].count = count;
        return BK_OK;
    }
    return bk_err_set(err, BK_FAILED, "database %s: more than %d databases are open at once", path,
                      PLACES);
}

static void give_back(place_t *place)
{
    free(place->path);
    *place = (place_t){0};
}

bk_rc_t bk_db_attach(const char *path, const struct stat *st, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    pthread_mutex_lock(&lock);
    place_t *place = find(path, st, true);
    if (place == NULL)
        rc = take(path, st, 1, err);
    else if (place->count == 0)
        rc = bk_err_set(err, BK_BUSY, "database %s is being replaced by a recovery: try again",
                        path);
    else
        place->count++;
    pthread_mutex_unlock(&lock);
    return rc;
}

unsigned bk_db_attached(uint64_t device, uint64_t inode)
{
    unsigned count = 0;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < PLACES; i++)
        if (same_file(&places[i], device, inode))
            count = places[i].count;
    pthread_mutex_unlock(&lock);
    return count;
}

void bk_db_detach(uint64_t device, uint64_t inode)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < PLACES; i++)
        if (same_file(&places[i], device, inode) && places[i].count > 0 && --places[i].count == 0)
            give_back(&places[i]);
    pthread_mutex_unlock(&lock);
}

bk_rc_t bk_db_reserve(const char *path, const struct stat *st, bk_err_t *err)
{
    pthread_mutex_lock(&lock);
    bk_rc_t rc =
        find(path, st, false) == NULL
            ? take(path, st, 0, err)
            : bk_err_set(err, BK_BUSY, "database %s is in use by another job: try again", path);
    pthread_mutex_unlock(&lock);
    return rc;
}

void bk_db_release(const char *path)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < PLACES; i++)
        if (places[i].path != NULL && places[i].count == 0 && strcmp(places[i].path, path) == 0)
            give_back(&places[i]);
    pthread_mutex_unlock(&lock);
}

bool bk_db_is_attached(uint64_t device, uint64_t inode)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < PLACES && !found; i++) {
        char shm[4096];
        struct stat st;
        if (places[i].count == 0)
            continue;
        /* Looked up each time: the -shm comes and goes. */
        found = same_file(&places[i], device, inode) ||
                (bk_fmt(shm, sizeof shm, "%s-shm", places[i].path) && bk_db_stat(shm, &st) == 0 &&
                 st.st_dev == device && st.st_ino == inode);
    }
    pthread_mutex_unlock(&lock);
    return found;
}
