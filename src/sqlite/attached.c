/*
 * sqlite/attached.c: a small table of open databases under one lock.
 */
#include "sqlite/attached.h"

#include <pthread.h>
#include <string.h>

#include "base/str.h"
#include "sqlite/source.h"

#define PLACES 256

typedef struct {
    uint64_t device, inode;
    char shm[4096]; /* path of the -shm: its inode may come and go */
    unsigned count;
} place_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static place_t places[PLACES];

bk_rc_t bk_db_attach(const char *path, const struct stat *st, bk_err_t *err)
{
    place_t *place = NULL;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < PLACES; i++) {
        place_t *p = &places[i];
        if (p->count > 0 && p->device == st->st_dev && p->inode == st->st_ino) {
            place = p;
            break;
        }
        if (p->count == 0 && place == NULL)
            place = p;
    }
    if (place != NULL && place->count == 0) {
        place->device = st->st_dev;
        place->inode = st->st_ino;
        bk_fmt(place->shm, sizeof place->shm, "%s-shm", path);
    }
    if (place != NULL)
        place->count++;
    pthread_mutex_unlock(&lock);
    return place != NULL
               ? BK_OK
               : bk_err_set(err, BK_FAILED, "more than %d databases are open at once", PLACES);
}

void bk_db_detach(uint64_t device, uint64_t inode)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < PLACES; i++)
        if (places[i].count > 0 && places[i].device == device && places[i].inode == inode)
            places[i].count--;
    pthread_mutex_unlock(&lock);
}

bool bk_db_is_attached(uint64_t device, uint64_t inode)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < PLACES && !found; i++) {
        struct stat st;
        if (places[i].count == 0)
            continue;
        found = (places[i].device == device && places[i].inode == inode) ||
                (stat(places[i].shm, &st) == 0 && st.st_dev == device && st.st_ino == inode);
    }
    pthread_mutex_unlock(&lock);
    return found;
}
