/*
 * engine/watching.c: between the watcher's events and the backups: whose tree an event belongs to,
 * what a change of the configuration or of mounts means, and the file that hands journals over.
 *
 * Two locks: "lock" is held while somebody talks to the helper, up to seconds; the journals have
 * their own, so that status never waits for it.
 */
#include "engine/watching.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/engine_private.h"
#include "helper/client.h"

#define WALK_EVERY (24 * 3600 * BK_SEC) /* what no watcher sees is found then */
#define TRY_EVERY  (30 * BK_SEC)        /* to watch a tree that could not be */
#define JOURNAL    "changes"
#define MAGIC      "ngx-backup changes 1\n"
#define BOOT_ID    36

int64_t bk_watching_try_every = TRY_EVERY, bk_watching_later;

typedef struct {
    bk_changes_t *journal;
    unsigned number;  /* of the watch's root */
    bool rooted;      /* the watch has it */
    bool refused;     /* the configuration of the helper does not give it: nothing to wait for */
    char reason[256]; /* why not; under the lock "text" */
    struct {
        unsigned count;
        int error;       /* of the first */
        char path[1024]; /* of the first, printable and cut */
        bool said;
    } limits; /* since everything was looked at last */
} tree_t;

struct bk_watching_s {
    const bk_set_t *set;
    pthread_mutex_t lock; /* guards watch and what it told */
    bk_watch_t *watch;
    const char *sync_path; /* a root of it; NULL: none */
    unsigned roots;
    int64_t try_at;       /* bk_mono: trees without a root are tried again */
    pthread_mutex_t text; /* guards reasons */
    char reason[256];     /* why there is no watch */
    atomic_uint data;     /* changes of databases */
    tree_t *trees;
};

bk_rc_t bk_watching_new(const bk_set_t *set, bk_watching_t **out, bk_err_t *err)
{
    bool whole = true;
    bk_watching_t *w = calloc(1, sizeof *w);
    if (w == NULL || (w->trees = calloc(set->files_count + 1, sizeof *w->trees)) == NULL) {
        free(w);
        return bk_err_set(err, BK_NO_MEMORY, "backup %s: out of memory", set->name);
    }
    w->set = set;
    pthread_mutex_init(&w->lock, NULL);
    pthread_mutex_init(&w->text, NULL);
    bk_strcpy(w->reason, sizeof w->reason, "watching needs the privileged helper");
    for (size_t i = 0; i < set->files_count; i++)
        whole = (w->trees[i].journal = bk_changes_new()) != NULL && whole;
    if (!whole) {
        bk_watching_free(w);
        return bk_err_set(err, BK_NO_MEMORY, "backup %s: out of memory", set->name);
    }
    *out = w;
    return BK_OK;
}

void bk_watching_free(bk_watching_t *w)
{
    if (w == NULL)
        return;
    bk_watch_close(w->watch);
    for (size_t i = 0; i < w->set->files_count; i++)
        bk_changes_free(w->trees[i].journal);
    free(w->trees);
    pthread_mutex_destroy(&w->lock);
    pthread_mutex_destroy(&w->text);
    free(w);
}

static void say_reason(bk_watching_t *w, char out[256], const char *text)
{
    pthread_mutex_lock(&w->text);
    bk_strcpy(out, 256, text);
    pthread_mutex_unlock(&w->text);
}

/* --- events --- */

/* 0: who knows */
static unsigned watches_of_a_user(void)
{
    unsigned most = 0;
    FILE *file = fopen("/proc/sys/fs/inotify/max_user_watches", "re");
    if (file != NULL && fscanf(file, "%u", &most) != 1)
        most = 0;
    if (file != NULL)
        fclose(file);
    return most;
}

/* For people. */
static void note(const bk_set_files_t *files, tree_t *tree, const bk_watch_event_t *event,
                 const char *set)
{
    switch (event->kind) {
    case BK_WIRE_LIMIT:
        if (tree->limits.count++ > 0)
            return;
        tree->limits.error = event->error;
        bk_name_escape(tree->limits.path, sizeof tree->limits.path, event->path,
                       strlen(event->path));
        return;
    case BK_WIRE_MOUNT:
        if (!files->one_file_system)
            bk_log(BK_LOG_NOTICE,
                   "backup %s: files %s: what is mounted at \"%s\" is not watched, so every "
                   "backup walks it; as a files block of its own it would be",
                   set, files->name, event->path);
        return;
    case BK_WIRE_LOST:
        memset(&tree->limits, 0, sizeof tree->limits);
        bk_log(BK_LOG_NOTICE,
               "backup %s: files %s: so much changed at once that not all of it was noticed; "
               "the next backup walks",
               set, files->name);
        return;
    default:
        return;
    }
}

static void tell(bk_watching_t *w, const bk_watch_event_t *event)
{
    static const bk_changes_kind_t kinds[] = {
        [BK_WIRE_DIRTY] = BK_CHANGES_DIRTY, [BK_WIRE_TREE] = BK_CHANGES_TREE,
        [BK_WIRE_LOST] = BK_CHANGES_LOST,   [BK_WIRE_WATCHED] = BK_CHANGES_WATCHED,
        [BK_WIRE_LIMIT] = BK_CHANGES_LIMIT, [BK_WIRE_MOUNT] = BK_CHANGES_LIMIT};
    if (event->kind == BK_WIRE_DATA) {
        atomic_fetch_add(&w->data, 1);
        return;
    }
    for (size_t i = 0; i < w->set->files_count; i++) {
        tree_t *tree = &w->trees[i];
        if (!tree->rooted || tree->number != event->root)
            continue;
        bk_changes_tell(tree->journal, kinds[event->kind], event->path);
        note(&w->set->files[i], tree, event, w->set->name);
    }
}

/* Where nothing is watched: said once for each look at everything, however many there are. */
static void tell_limits(const bk_watching_t *w, size_t at)
{
    tree_t *tree = &w->trees[at];
    bk_changes_state_t state;
    bk_err_t why = {0};
    bk_changes_state(tree->journal, &state);
    if (tree->limits.count == 0 || tree->limits.said || !state.watched)
        return;
    tree->limits.said = true;
    bk_err_sys(&why, tree->limits.error, "the first is \"%s\"", tree->limits.path);
    if (tree->limits.error == ENOSPC)
        bk_err_set(&why, BK_FAILED,
                   "the first is \"%s\": there is no inotify watch left; raise "
                   "fs.inotify.max_user_watches (now %u)",
                   tree->limits.path, watches_of_a_user());
    bk_log(BK_LOG_WARN,
           "backup %s: files %s: below %u of its directories changes are not noticed, so every "
           "backup walks them; %s",
           w->set->name, w->set->files[at].name, tree->limits.count, why.text);
}

/* Under the lock. */
static bk_rc_t drain(bk_watching_t *w, bk_err_t *err)
{
    bk_watch_event_t event;
    bk_err_t why = {0};
    bk_rc_t rc;
    while ((rc = bk_watch_next(w->watch, &event, &why)) == BK_OK)
        tell(w, &event);
    for (size_t i = 0; i < w->set->files_count; i++)
        tell_limits(w, i);
    if (rc == BK_NOT_FOUND)
        return BK_OK;
    if (err != NULL)
        *err = why;
    return rc;
}

/* Under the lock: nobody sees what happens from here on. */
static void forget(bk_watching_t *w)
{
    for (size_t i = 0; i < w->set->files_count; i++) {
        if (w->trees[i].rooted)
            bk_changes_tell(w->trees[i].journal, BK_CHANGES_LOST, "");
        w->trees[i].rooted = false;
        memset(&w->trees[i].limits, 0, sizeof w->trees[i].limits);
    }
    w->sync_path = NULL;
}

/* The lock, for a job: a thread that begins anew may hold it for seconds.  False: ctl says stop. */
static bool hold(bk_watching_t *w, bk_ctl_t *ctl)
{
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += 100 * 1000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (pthread_mutex_clocklock(&w->lock, CLOCK_MONOTONIC, &until) == 0)
            return true;
        if (bk_ctl_check(ctl, NULL) != BK_OK)
            return false;
    }
}

/* Under the lock: all that happened until now is in the journals; or it is not, and they know.
 * False: ctl said stop before that was sure. */
static bool catch_up(bk_watching_t *w, bk_ctl_t *ctl)
{
    bk_err_t why = {0};
    if (w->watch == NULL || w->sync_path == NULL)
        return true;
    bk_rc_t rc = bk_watch_sync(w->watch, w->sync_path, ctl, &why);
    if (rc == BK_CANCELED || rc == BK_INTERRUPTED)
        return false;
    if (rc == BK_OK)
        rc = drain(w, &why);
    if (rc != BK_OK)
        forget(w);
    return true;
}

/* --- the host's side --- */

/* Under the lock.  BK_UNAVAILABLE: the watch is over; what else fails concerns this tree. */
static bk_rc_t add_tree(bk_watching_t *w, size_t at, bk_err_t *err)
{
    bk_err_t why = {0};
    tree_t *tree = &w->trees[at];
    bk_rc_t rc = bk_watch_add(w->watch, w->set->files[at].path, NULL, &why);
    if (rc == BK_UNAVAILABLE) {
        *err = why;
        return rc;
    }
    if (rc == BK_OK) {
        tree->rooted = true;
        tree->number = w->roots++;
        w->sync_path = w->set->files[at].path;
    } else if (strcmp(tree->reason, why.text) != 0) {
        bk_log(BK_LOG_WARN, "backup %s: files %s: changes are not noticed, so its backups walk: %s",
               w->set->name, w->set->files[at].name, why.text);
    }
    tree->refused = rc == BK_FORBIDDEN;
    say_reason(w, tree->reason, rc == BK_OK ? "" : why.text);
    return BK_OK;
}

/*
 * Under the lock: trees that are not watched are tried now and then: what is in the way (a disk
 * that is not mounted, a directory that is made anew) may be gone.  The cage of a conversation does
 * not reach a directory that came later: that ends the watch, and a new one has it.
 */
static bk_rc_t try_again(bk_watching_t *w, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    if (w->watch == NULL || bk_mono() < w->try_at)
        return BK_OK;
    w->try_at = bk_mono() + bk_watching_try_every;
    for (size_t i = 0; i < w->set->files_count && rc == BK_OK; i++)
        if (!w->trees[i].rooted && !w->trees[i].refused)
            rc = add_tree(w, i, err);
    return rc;
}

bk_rc_t bk_engine_watch(bk_engine_t *engine, bk_helper_t *helper, int *fd, bk_err_t *err)
{
    bk_watching_t *w = engine->watching;
    bk_err_t why = {0};
    bk_rc_t rc = BK_OK;
    pthread_mutex_lock(&w->lock);
    if (w->watch != NULL)
        forget(w);
    bk_watch_close(w->watch);
    w->watch = NULL;
    w->roots = 0;
    rc = bk_watch_open(helper, &w->watch, &why);
    for (size_t i = 0; i < w->set->files_count && rc == BK_OK; i++)
        rc = add_tree(w, i, &why);
    for (size_t i = 0; i < w->set->db_count && rc == BK_OK; i++) {
        rc = bk_watch_add(w->watch, w->set->dbs[i].path, NULL, &why);
        w->roots += rc == BK_OK;
        if (rc != BK_UNAVAILABLE)
            rc = BK_OK; /* without it a change is seen a little later */
    }
    if (rc != BK_OK) {
        forget(w);
        bk_watch_close(w->watch);
        w->watch = NULL;
    } else {
        w->try_at = bk_mono() + bk_watching_try_every;
        *fd = bk_watch_fd(w->watch);
        (void)drain(w, NULL); /* what came meanwhile does not show in poll; the end does */
    }
    pthread_mutex_unlock(&w->lock);
    say_reason(w, w->reason, rc == BK_OK ? "" : why.text);
    if (rc != BK_OK && err != NULL)
        *err = why;
    return rc;
}

bk_rc_t bk_engine_watch_drain(bk_engine_t *engine, bk_err_t *err)
{
    bk_watching_t *w = engine->watching;
    bk_err_t why = {0};
    bk_rc_t rc = BK_UNAVAILABLE;
    pthread_mutex_lock(&w->lock);
    if (w->watch != NULL) {
        rc = try_again(w, &why); /* which may find events while it waits for the answer */
        if (rc == BK_OK)
            rc = drain(w, &why);
        if (rc != BK_OK)
            forget(w);
    }
    pthread_mutex_unlock(&w->lock);
    if (rc != BK_OK) {
        say_reason(w, w->reason, why.text);
        if (err != NULL)
            *err = why;
    }
    return rc;
}

void bk_engine_watch_end(bk_engine_t *engine)
{
    bk_watching_t *w = engine->watching;
    pthread_mutex_lock(&w->lock);
    forget(w);
    bk_watch_close(w->watch);
    w->watch = NULL;
    pthread_mutex_unlock(&w->lock);
    say_reason(w, w->reason, "the privileged helper does not answer");
}

unsigned bk_engine_written(bk_engine_t *engine)
{
    return atomic_load(&engine->watching->data);
}

bool bk_engine_watched(bk_engine_t *engine)
{
    return bk_watching_settled(engine->watching);
}

/* --- what a backup goes by --- */

static bool is_below(const char *path, const char *root, size_t len)
{
    return strncmp(path, root, len) == 0 && (path[len] == '/' || path[len] == '\0');
}

/* In place: \040 and the like, as the kernel writes blanks, tabs, line ends and backslashes. */
static void unescape(char *text)
{
    char *out = text;
    for (const char *in = text; *in != '\0'; out++) {
        bool octal = in[0] == '\\' && in[1] >= '0' && in[1] <= '3' && in[2] >= '0' &&
                     in[2] <= '7' && in[3] >= '0' && in[3] <= '7';
        *out = octal ? (char)((in[1] - '0') << 6 | (in[2] - '0') << 3 | (in[3] - '0')) : *in;
        in += octal ? 4 : 1;
    }
    *out = '\0';
}

/*
 * The mounts in and below a tree: what happens in one below makes no event, so it is listed by
 * every backup.  The watcher tells this only of those that it meets in its first look.
 */
static uint64_t look_at_mounts(const char *path, bk_changes_t *journal, uint64_t hash)
{
    char line[8192], root[PATH_MAX];
    /* The kernel tells of mounts by paths without links. */
    if (!bk_path_resolve(path, root))
        bk_strcpy(root, sizeof root, path);
    size_t len = strcmp(root, "/") == 0 ? 0 : strlen(root);
    FILE *file = fopen("/proc/self/mountinfo", "re");
    if (file == NULL)
        return hash;
    while (fgets(line, sizeof line, file) != NULL) {
        /* id, parent, device, root, mount point */
        char *field = line, *rest = line;
        for (unsigned i = 0; i < 5 && rest != NULL; i++)
            field = strsep(&rest, " ");
        if (rest == NULL)
            continue;
        unescape(field);
        if (!is_below(field, root, len))
            continue;
        hash = XXH3_64bits_withSeed(field, strlen(field), hash + 1);
        if (field[len] == '/' && field[len + 1] != '\0')
            bk_changes_tell(journal, BK_CHANGES_LIMIT, field + len + 1);
    }
    fclose(file);
    return hash;
}

/* Of everything but the files and mounts that decides what a walk would find. */
static uint64_t fingerprint(const bk_set_t *set)
{
    json_t *config = bk_set_describe(set);
    char *text = config != NULL ? json_dumps(config, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    uint64_t hash = text != NULL ? XXH3_64bits(text, strlen(text)) : (uint64_t)bk_now();
    free(text);
    json_decref(config);
    return hash + geteuid();
}

void bk_watching_take(bk_watching_t *w, size_t at, const char *previous, bool full, bk_ctl_t *ctl,
                      bk_watching_plan_t *plan)
{
    *plan = (bk_watching_plan_t){.journal = w->trees[at].journal};
    bk_dirset_init(&plan->again);
    plan->fingerprint = look_at_mounts(w->set->files[at].path, plan->journal, fingerprint(w->set));
    plan->walk = true;
    if (!hold(w, ctl))
        return;
    bool sure = catch_up(w, ctl);
    plan->usable = bk_changes_take(plan->journal, &plan->dirty, &plan->base) && sure;
    pthread_mutex_unlock(&w->lock);
    plan->usable = plan->usable && previous != NULL && strcmp(previous, plan->base.backup) == 0 &&
                   plan->base.fingerprint == plan->fingerprint;
    int64_t age = bk_now() + bk_watching_later - plan->base.walked;
    plan->walk = full || !plan->usable || age < 0 || age >= WALK_EVERY;
}

void bk_watching_explain(bk_watching_t *w, const bk_watching_plan_t *plan, const bk_dirset_t *where,
                         bk_dirset_t *rest, bk_ctl_t *ctl)
{
    if (!hold(w, ctl))
        return;
    if (catch_up(w, ctl))
        bk_changes_explain(plan->journal, where, rest);
    pthread_mutex_unlock(&w->lock);
}

void bk_watching_settle(bk_watching_plan_t *plan, const char *id, const bk_files_stats_t *stats)
{
    if (plan->journal != NULL && id != NULL) {
        bk_changes_base_t base = {.fingerprint = plan->fingerprint,
                                  .walked = stats->walked ? bk_now() + bk_watching_later
                                                          : plan->base.walked,
                                  .dirs = stats->dirs,
                                  .links = stats->links,
                                  .others = stats->others};
        bk_strcpy(base.backup, sizeof base.backup, id);
        bk_changes_done(plan->journal, &base, &plan->again);
    } else if (plan->journal != NULL) {
        bk_changes_give_back(plan->journal);
    }
    bk_dirset_free(&plan->again);
    plan->journal = NULL;
}

/* --- from one process to its successor ---
 *
 *   file = MAGIC | boot id 36 | until i64 (ns, monotonic) | trees u32
 *          | trees x { name u16-len text | path u16-len text | len u32 | journal }
 *          | XXH3-64 of all before
 */

static bool boot_id(char out[BOOT_ID + 1])
{
    size_t got = 0;
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bk_rc_t rc = bk_read_all(fd, out, BOOT_ID, &got, "boot_id", NULL);
    close(fd);
    out[BOOT_ID] = '\0';
    return rc == BK_OK && got == BOOT_ID;
}

static void put_text(bk_buf_t *out, const char *text)
{
    bk_buf_u16(out, (uint16_t)strlen(text));
    bk_buf_add(out, text, strlen(text));
}

static void put_journal(bk_buf_t *out, bk_changes_t *journal)
{
    bk_buf_t body;
    bk_buf_init(&body, 64u << 20);
    bk_changes_encode(journal, &body);
    bk_buf_u32(out, (uint32_t)body.len);
    bk_buf_add(out, body.data, bk_buf_ok(&body) ? body.len : 0);
    bk_buf_free(&body);
}

static void path_of(const bk_watching_t *w, char out[4096])
{
    bk_fmt(out, 4096, "%s/" JOURNAL, w->set->base_dir);
}

void bk_watching_save(bk_watching_t *w)
{
    char boot[BOOT_ID + 1], path[4096];
    bk_buf_t out;
    bk_err_t why = {0};
    if (!boot_id(boot))
        return;
    bk_buf_init(&out, 256u << 20);
    pthread_mutex_lock(&w->lock);
    int64_t until = bk_mono(); /* before the question, not after it */
    (void)catch_up(w, NULL);
    bk_buf_add(&out, MAGIC, strlen(MAGIC));
    bk_buf_add(&out, boot, BOOT_ID);
    bk_buf_i64(&out, until);
    bk_buf_u32(&out, (uint32_t)w->set->files_count);
    for (size_t i = 0; i < w->set->files_count; i++) {
        put_text(&out, w->set->files[i].name);
        put_text(&out, w->set->files[i].path);
        put_journal(&out, w->trees[i].journal);
    }
    forget(w); /* what comes now is the successor's */
    pthread_mutex_unlock(&w->lock);
    if (bk_buf_ok(&out))
        bk_buf_u64(&out, XXH3_64bits(out.data, out.len));
    path_of(w, path);
    if (!bk_buf_ok(&out) ||
        bk_publish_bytes(AT_FDCWD, path, 0600, out.data, out.len, false, &why) != BK_OK)
        bk_log(BK_LOG_WARN,
               "backup %s: the journal of changes is not kept, the next backup walks: %s",
               w->set->name, why.text);
    bk_buf_free(&out);
}

static bool get_text(bk_cur_t *cur, const char *expected)
{
    uint16_t len = bk_cur_u16(cur);
    const uint8_t *text = bk_cur_bytes(cur, len);
    return text != NULL && len == strlen(expected) && memcmp(text, expected, len) == 0;
}

static void resume(bk_watching_t *w, bk_cur_t *cur)
{
    int64_t until = bk_cur_i64(cur);
    uint32_t count = bk_cur_u32(cur);
    for (uint32_t i = 0; i < count && i < w->set->files_count && bk_cur_ok(cur); i++) {
        bool name = get_text(cur, w->set->files[i].name);
        bool path = get_text(cur, w->set->files[i].path);
        uint32_t len = bk_cur_u32(cur);
        const uint8_t *body = bk_cur_bytes(cur, len);
        if (!name || !path || body == NULL)
            return; /* the set is another one; its fingerprint would tell, too */
        bk_cur_t inner = bk_cur(body, len);
        (void)bk_changes_resume(w->trees[i].journal, &inner, until, NULL);
    }
}

void bk_watching_load(bk_watching_t *w)
{
    char boot[BOOT_ID + 1], path[4096];
    bk_buf_t in;
    bk_err_t why = {0};
    size_t head = strlen(MAGIC) + BOOT_ID;
    bk_buf_init(&in, 256u << 20);
    path_of(w, path);
    bk_rc_t rc = bk_read_file(AT_FDCWD, path, &in, &why);
    if (rc != BK_NOT_FOUND && unlink(path) != 0 && errno != ENOENT) {
        bk_err_sys(&why, errno, "remove %s", path);
        bk_log(BK_LOG_WARN, "backup %s: %s", w->set->name, why.text);
    } else if (rc == BK_OK && in.len > head + 8 && boot_id(boot) &&
               XXH3_64bits(in.data, in.len - 8) == bk_get_u64(in.data + in.len - 8) &&
               memcmp(in.data, MAGIC, strlen(MAGIC)) == 0 &&
               memcmp(in.data + strlen(MAGIC), boot, BOOT_ID) == 0) {
        bk_cur_t cur = bk_cur(in.data + head, in.len - head - 8);
        pthread_mutex_lock(&w->lock);
        resume(w, &cur);
        pthread_mutex_unlock(&w->lock);
    }
    bk_buf_free(&in);
}

/* --- status --- */

bool bk_watching_any(bk_watching_t *w)
{
    bool any = false;
    for (size_t i = 0; i < w->set->files_count; i++) {
        bk_changes_state_t state;
        bk_changes_state(w->trees[i].journal, &state);
        any = any || state.watched;
    }
    return any;
}

bool bk_watching_settled(bk_watching_t *w)
{
    bool settled = true;
    pthread_mutex_lock(&w->text);
    for (size_t i = 0; i < w->set->files_count; i++) {
        bk_changes_state_t state;
        bk_changes_state(w->trees[i].journal, &state);
        settled = settled && (state.watched || w->trees[i].reason[0] != '\0');
    }
    pthread_mutex_unlock(&w->text);
    return settled;
}

static const char *why_not(const bk_watching_t *w, const tree_t *tree,
                           const bk_changes_state_t *state)
{
    if (state->watched)
        return state->limited ? "a part cannot be watched; the error log says which" : "";
    if (w->reason[0] != '\0')
        return w->reason;
    return tree->reason[0] != '\0' ? tree->reason : "the first look at all directories is not over";
}

json_t *bk_watching_describe(bk_watching_t *w)
{
    json_t *list = json_array();
    pthread_mutex_lock(&w->text);
    for (size_t i = 0; i < w->set->files_count; i++) {
        bk_changes_state_t state;
        char last[BK_TIME_TEXT] = "";
        bk_changes_state(w->trees[i].journal, &state);
        if (state.last != 0)
            bk_time_format(last, state.last);
        const char *why = why_not(w, &w->trees[i], &state);
        json_array_append_new(
            list,
            json_pack("{ss sb ss* ss sI si ss*}", "name", w->set->files[i].name, "watching",
                      (int)state.watched, "reason", why[0] != '\0' ? why : NULL, "next_incremental",
                      state.complete ? "changes" : "walk", "dirty_directories",
                      (json_int_t)(state.complete ? state.dirty : 0), "events_lost",
                      (int)state.lost, "last_change", last[0] != '\0' ? last : NULL));
    }
    pthread_mutex_unlock(&w->text);
    return list;
}
