/*
 * engine/protect.c: the list of what is left alone inside protected trees.  Looks at the disk,
 * changes nothing.
 */
#include "engine/protect.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/str.h"
#include "sqlite/opening.h"

static const char *const companions[] = {"", "-wal", "-shm", "-journal"};
#define COMPANIONS (sizeof companions / sizeof *companions)

/* --- paths --- */

bool bk_path_resolve(const char *path, char out[PATH_MAX])
{
    char head[PATH_MAX];
    if (path[0] != '/' || !bk_strcpy(head, sizeof head, path))
        return false;
    for (;;) {
        if (realpath(head, out) != NULL) {
            const char *rest = path + strlen(head);
            size_t len = strlen(out);
            while (*rest == '/')
                rest++;
            return *rest == '\0' ||
                   bk_fmt(out + len, PATH_MAX - len, "%s%s", len > 1 ? "/" : "", rest);
        }
        char *slash = strrchr(head, '/');
        if (slash == NULL || (slash == head && head[1] == '\0'))
            return false;
        slash[slash == head] = '\0';
    }
}

const char *bk_path_below(const char *inner, const char *outer)
{
    size_t len = strlen(outer);
    while (len > 0 && outer[len - 1] == '/')
        len--;
    if (strncmp(inner, outer, len) != 0 || (inner[len] != '/' && inner[len] != '\0'))
        return NULL;
    inner += len;
    while (*inner == '/')
        inner++;
    return inner;
}

/* --- all sets of this process --- */

typedef struct entered_s {
    struct entered_s *next;
    const bk_set_t *set;
} entered_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static entered_t *entered;

bk_rc_t bk_protected_enter(const bk_set_t *set, bk_err_t *err)
{
    entered_t *one = malloc(sizeof *one);
    if (one == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "backup %s: out of memory", set->name);
    one->set = set;
    pthread_mutex_lock(&lock);
    one->next = entered;
    entered = one;
    pthread_mutex_unlock(&lock);
    return BK_OK;
}

void bk_protected_leave(const bk_set_t *set)
{
    pthread_mutex_lock(&lock);
    entered_t **link = &entered;
    while (*link != NULL && (*link)->set != set)
        link = &(*link)->next;
    entered_t *one = *link;
    if (one != NULL)
        *link = one->next;
    pthread_mutex_unlock(&lock);
    free(one);
}

typedef bk_rc_t (*each_fn)(void *arg, const bk_set_t *set, bk_err_t *err);

/* The set itself, which may not have been entered, and the others. */
static bk_rc_t for_each_set(const bk_set_t *set, each_fn fn, void *arg, bk_err_t *err)
{
    bk_rc_t rc = fn(arg, set, err);
    pthread_mutex_lock(&lock);
    for (const entered_t *one = entered; one != NULL && rc == BK_OK; one = one->next)
        if (one->set != set)
            rc = fn(arg, one->set, err);
    pthread_mutex_unlock(&lock);
    return rc;
}

/* --- by inode --- */

static void add_path(bk_protected_t *list, const char *path)
{
    struct stat st;
    if (path != NULL && bk_db_stat(path, &st) == 0)
        list->items[list->count++] = (bk_inode_t){.device = st.st_dev, .inode = st.st_ino};
}

static bk_rc_t add_set(void *arg, const bk_set_t *set, bk_err_t *err)
{
    bk_protected_t *list = arg;
    size_t room = list->room + 1 + set->storage_count + COMPANIONS * set->db_count;
    bk_inode_t *more = realloc(list->items, room * sizeof *more);
    if (more == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "backup %s: out of memory", set->name);
    list->items = more;
    list->room = room;
    add_path(list, set->base_dir);
    for (size_t i = 0; i < set->storage_count; i++)
        if (strcmp(set->storages[i].driver, "local") == 0)
            add_path(list, bk_storage_config_get(&set->storages[i], "path"));
    for (size_t i = 0; i < set->db_count; i++)
        for (size_t n = 0; n < COMPANIONS; n++) {
            char path[PATH_MAX];
            if (bk_fmt(path, sizeof path, "%s%s", set->dbs[i].path, companions[n]))
                add_path(list, path);
        }
    return BK_OK;
}

bk_rc_t bk_protected_init(bk_protected_t *list, const bk_set_t *set, bk_err_t *err)
{
    *list = (bk_protected_t){0};
    return for_each_set(set, add_set, list, err);
}

void bk_protected_free(bk_protected_t *list)
{
    free(list->items);
    *list = (bk_protected_t){0};
}

/* --- by name --- */

/* "/" and the path, each byte that means something in patterns written as itself. */
static bool literal_pattern(char *out, size_t size, const char *path, const char *suffix)
{
    size_t len = 0;
    const char *parts[] = {"/", path, suffix};
    for (size_t i = 0; i < 3; i++)
        for (const char *p = parts[i]; *p != '\0'; p++) {
            bool special = strchr("?*[]\\", *p) != NULL;
            if (len + special + 2 > size)
                return false;
            if (special)
                out[len++] = '\\';
            out[len++] = *p;
        }
    out[len] = '\0';
    return true;
}

static bk_rc_t add_database(bk_patterns_t *patterns, const bk_set_db_t *db, const char *root,
                            bk_err_t *err)
{
    char path[PATH_MAX], text[1024];
    const char *below;
    if (!bk_path_resolve(db->path, path) || (below = bk_path_below(path, root)) == NULL)
        return BK_OK;
    for (size_t n = 0; n < COMPANIONS; n++) {
        if (!literal_pattern(text, sizeof text, below, companions[n]))
            return bk_err_set(err, BK_CONFIG,
                              "database %s: its path is too long to be left out of the files "
                              "beside it: move it out of the files blocks",
                              db->name);
        bk_rc_t rc = bk_patterns_add(patterns, text, err);
        if (rc != BK_OK)
            return rc;
    }
    return BK_OK;
}

typedef struct {
    bk_patterns_t *patterns;
    const char *root; /* of the tree, without links */
} leave_out_t;

static bk_rc_t leave_out(void *arg, const bk_set_t *set, bk_err_t *err)
{
    const leave_out_t *out = arg;
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < set->db_count && rc == BK_OK; i++)
        rc = add_database(out->patterns, &set->dbs[i], out->root, err);
    return rc;
}

bk_rc_t bk_protected_patterns(const bk_set_t *set, const bk_set_files_t *files,
                              bk_patterns_t *patterns, bk_err_t *err)
{
    char root[PATH_MAX];
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; files->exclude != NULL && files->exclude[i] != NULL && rc == BK_OK; i++)
        rc = bk_patterns_add(patterns, files->exclude[i], err);
    if (rc == BK_OK && bk_path_resolve(files->path, root))
        rc = for_each_set(set, leave_out, &(leave_out_t){patterns, root}, err);
    if (rc != BK_OK)
        bk_patterns_free(patterns);
    return rc;
}
