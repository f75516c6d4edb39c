/*
 * t/unit/files/files_testing.h: a tree to back up, a repository, a target, all in one private directory.
 */
#ifndef BK_FILES_TESTING_H
#define BK_FILES_TESTING_H

#include "unit/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "base/clock.h"
#include "base/str.h"
#include "files/backup.h"
#include "files/restore.h"

typedef struct {
    char *dir;
    char source[300], target[300]; /* target does not exist at first */
    bk_storage_t *storage;
    bk_repo_t *repo;
    bk_ctl_t ctl;
    bk_err_t err;
    unsigned backups, jobs, lanes;
    bk_patterns_t match, exclude, none;
    bk_files_options_t backup;
    bk_restore_options_t restore;
    bk_snapshot_tree_t tree; /* of the last backup */
    bk_files_stats_t stats;
    bk_dirset_t dirty, again; /* what changed since the last backup; what it wants to see again */
    bk_files_since_t since;
    bk_restore_stats_t restored;
    json_t *unreadable, *plan, *failed;
} world_t;

static inline void world_open_repo(world_t *w)
{
    char cache[300], spool[300], url[300];
    bk_storage_config_t config = {0};
    snprintf(cache, sizeof cache, "%s/cache", w->dir);
    snprintf(spool, sizeof spool, "%s/spool", w->dir);
    snprintf(url, sizeof url, "file://%s/storage", w->dir);
    mkdir(cache, 0700);
    mkdir(spool, 0700);
    OK(bk_storage_config_url(&config, url, &w->err), &w->err);
    OK(bk_storage_open(&config, &w->storage, &w->err), &w->err);
    bk_storage_config_free(&config);
    bk_repo_options_t options = {.storage = w->storage,
                                 .cache_dir = cache,
                                 .spool_dir = spool,
                                 .create = true,
                                 .plain = true,
                                 .label = "test"};
    OK(bk_repo_open(&options, NULL, &w->repo, &w->err), &w->err);
}

static inline int world_set_up(void **state)
{
    world_t *w = calloc(1, sizeof *w);
    w->dir = test_dir();
    w->lanes = 3;
    snprintf(w->source, sizeof w->source, "%s/source", w->dir);
    snprintf(w->target, sizeof w->target, "%s/target", w->dir);
    assert_int_equal(mkdir(w->source, 0755), 0);
    world_open_repo(w);
    bk_ctl_init(&w->ctl);
    w->backup = (bk_files_options_t){.name = "test",
                                     .path = w->source,
                                     .match = &w->match,
                                     .exclude = &w->exclude,
                                     .cachedir = true,
                                     .xattrs = true};
    w->restore = (bk_restore_options_t){.patterns = &w->none, .subdir = "", .owners = true};
    *state = w;
    return 0;
}

static inline int world_tear_down(void **state)
{
    world_t *w = *state;
    json_decref(w->unreadable);
    json_decref(w->plan);
    json_decref(w->failed);
    bk_repo_close(w->repo);
    bk_storage_close(w->storage);
    bk_ctl_free(&w->ctl);
    bk_patterns_free(&w->match);
    bk_patterns_free(&w->exclude);
    free(w->tree.path);
    bk_dirset_free(&w->dirty);
    bk_dirset_free(&w->again);
    test_dir_remove(w->dir);
    free(w);
    return 0;
}

/* --- making things; paths are below the source unless they are absolute --- */

static inline const char *at(const world_t *w, const char *path)
{
    static char text[8][4096];
    static unsigned turn;
    char *out = text[turn++ % 8];
    snprintf(out, 4096, "%s%s%s", path[0] == '/' ? "" : w->source, path[0] == '/' ? "" : "/", path);
    return out;
}

/* A path below the target. */
static inline const char *out(const world_t *w, const char *path)
{
    static char text[8][4096];
    static unsigned turn;
    char *result = text[turn++ % 8];
    snprintf(result, 4096, "%s/%s", w->target, path);
    return result;
}

static inline void put_bytes(const char *path, const void *data, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), len);
    close(fd);
}

static inline void put_text(const char *path, const char *text)
{
    put_bytes(path, text, strlen(text));
}

/* len bytes that follow from seed and do not compress. */
static inline void put_random(const char *path, size_t len, uint64_t seed)
{
    uint8_t *data = malloc(len + 1);
    test_fill(data, len, seed);
    put_bytes(path, data, len);
    free(data);
}

static inline void set_mtime(const char *path, int64_t seconds, long ns)
{
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = seconds, .tv_nsec = ns}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW), 0);
}

static inline char *get_bytes(const char *path, size_t *len)
{
    struct stat st;
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return NULL;
    assert_int_equal(fstat(fd, &st), 0);
    char *data = malloc((size_t)st.st_size + 1);
    size_t got = 0;
    OK(bk_read_all(fd, data, (size_t)st.st_size, &got, path, NULL), &(bk_err_t){0});
    close(fd);
    data[got] = '\0';
    *len = got;
    return data;
}

static inline void assert_text(const char *path, const char *text)
{
    size_t len = 0;
    char *data = get_bytes(path, &len);
    if (data == NULL || strcmp(data, text) != 0)
        fail_msg("%s: \"%s\" instead of \"%s\"", path, data != NULL ? data : "(missing)", text);
    free(data);
}

static inline void assert_same_content(const char *a, const char *b)
{
    size_t a_len = 0, b_len = 0;
    char *x = get_bytes(a, &a_len), *y = get_bytes(b, &b_len);
    assert_non_null(x);
    if (y == NULL || a_len != b_len || memcmp(x, y, a_len) != 0)
        fail_msg("%s and %s differ", a, b);
    free(x);
    free(y);
}

static inline bool exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

/* --- running --- */

typedef struct {
    world_t *w;
    bk_session_t *session;
} doing_t;

static inline bk_rc_t do_backup(bk_team_t *team, void *arg, bk_err_t *err)
{
    doing_t *doing = arg;
    world_t *w = doing->w;
    return bk_files_backup(doing->session, &w->backup, team, &w->tree, &w->stats, w->unreadable,
                           &w->ctl, err);
}

/* Does not fail the test; the session is ended either way. */
static inline bk_rc_t try_backup(world_t *w)
{
    bk_session_options_t how = {.host = "test", .compression = {BK_CODEC_ZSTD, 1}, .upload = true};
    doing_t doing = {.w = w};
    char id[BK_BACKUP_ID];
    json_decref(w->unreadable);
    w->unreadable = json_array();
    bk_err_clear(&w->err);
    OK(bk_session_begin(w->repo, &how, &w->ctl, &doing.session, &w->err), &w->err);
    bk_rc_t rc = bk_team_run(w->lanes, do_backup, &doing, &w->err);
    if (rc != BK_OK) {
        bk_session_abort(doing.session);
        return rc;
    }
    snprintf(id, sizeof id, "full_20250101_000000_%u", ++w->backups + 1);
    return bk_session_commit(doing.session, id, "{}", 2, &w->err);
}

static inline void run_backup(world_t *w)
{
    OK(try_backup(w), &w->err);
}

/* Compared with the backup before. */
static inline void run_incremental(world_t *w)
{
    bk_snapshot_tree_t previous = w->tree;
    w->backup.previous = &previous;
    run_backup(w);
    w->backup.previous = NULL;
}

/* Compared with the backup before, looking only where w->dirty and w->again say; both then are new. */
static inline void run_changes(world_t *w)
{
    bk_snapshot_tree_t previous = w->tree;
    bk_dirset_t again;
    bk_dirset_init(&again);
    bk_dirset_merge(&w->dirty, &w->again);
    w->since = (bk_files_since_t){&w->dirty, w->stats.dirs, w->stats.links, w->stats.others};
    w->backup.previous = &previous;
    w->backup.since = &w->since;
    w->backup.again = &again;
    run_backup(w);
    w->backup.previous = NULL;
    w->backup.since = NULL;
    w->backup.again = NULL;
    bk_dirset_free(&w->dirty);
    bk_dirset_free(&w->again);
    w->again = again;
}

static inline bk_rc_t do_restore(bk_team_t *team, void *arg, bk_err_t *err)
{
    world_t *w = arg;
    return bk_files_restore(w->repo, &w->restore, team, &w->restored, w->plan, w->failed, &w->ctl,
                            err);
}

/* A test of the same through the helper says otherwise. */
#ifndef WORLD_OPEN_TARGET
#define WORLD_OPEN_TARGET(w, root)  bk_root_open((w)->target, !(w)->restore.dry_run, root, &(w)->err)
#define WORLD_CLOSE_TARGET(w, root) bk_root_close(root)
#endif

static inline bk_rc_t try_restore(world_t *w)
{
    char job[32];
    bk_root_t *root = NULL;
    json_decref(w->plan);
    json_decref(w->failed);
    w->plan = json_array();
    w->failed = json_array();
    bk_err_clear(&w->err);
    OK(WORLD_OPEN_TARGET(w, &root), &w->err);
    snprintf(job, sizeof job, "job%u", ++w->jobs);
    w->restore.tree = &w->tree;
    w->restore.target = root;
    w->restore.job = job;
    bk_rc_t rc = bk_team_run(w->lanes, do_restore, w, &w->err);
    w->restore.job = NULL;
    WORLD_CLOSE_TARGET(w, root);
    return rc;
}

static inline void run_restore(world_t *w)
{
    OK(try_restore(w), &w->err);
    if (w->restored.failed > 0) {
        char *text = json_dumps(w->failed, 0);
        fail_msg("%u failed: %s", (unsigned)w->restored.failed, text);
    }
}

static inline void round_trip(world_t *w)
{
    run_backup(w);
    assert_int_equal(w->stats.unreadable, 0);
    run_restore(w);
}

/* What the plan says about a path below the target; "" when it says nothing. */
static inline const char *planned(const world_t *w, const char *path)
{
    size_t i;
    json_t *item;
    json_array_foreach(w->plan, i, item)
    {
        const char *text = json_string_value(json_object_get(item, "path"));
        if (strncmp(text, w->target, strlen(w->target)) == 0 &&
            strcmp(text + strlen(w->target) + 1, path) == 0)
            return json_string_value(json_object_get(item, "action"));
    }
    return "";
}

static inline void count_leftover(void *arg, const char *path, const struct stat *st)
{
    unsigned *count = arg;
    (void)st;
    if (strncmp(strrchr(path, '/'), "/.ngx-backup-", 13) == 0)
        ++*count;
}

/* Temporaries anywhere below a directory. */
static inline unsigned count_leftovers(const char *dir)
{
    unsigned count = 0;
    test_visit(dir, count_leftover, &count);
    return count;
}

#endif
