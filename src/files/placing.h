/*
 * files/placing.h: what the parts of a restore share (private to src/files).
 *
 *   restore.c   lane 0: walks the backup's tree, compares with the target, decides
 *   descent.c   what is selected, and the directories on the way
 *   window.c    a bounded number of files at a time: content, flush, rename
 *   sources.c   hard links
 *   finishing.c names that are too many, and the metadata of directories
 *   filling.c   any lane: the content of one file
 *   helped.c    the same for many files at a time, through the privileged helper
 *   metadata.c  owner, attributes, mode and times
 *   placing.c   one name: publishing, moving aside, removing
 *   placeat.c   one operation, by own rights or through the helper
 *
 * With own rights a name is touched only through a descriptor of its directory, which was opened
 * beneath the root without following links, and with flags that do not follow the name itself; the
 * helper resolves its paths in the same way.
 */
#ifndef BK_FILES_PLACING_H
#define BK_FILES_PLACING_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

#include "files/attrs.h"
#include "files/content.h"
#include "files/placeat.h"
#include "files/restore.h"

#define BK_TEMPORARY_MAX 128

typedef struct {
    bk_repo_t *repo;
    const bk_restore_options_t *options;
    bk_team_t *team;
    bk_ctl_t *ctl;
    bk_road_t road;
    bk_names_t *names;
    char run[12];                /* random: a job that was killed may come again under its name */
    char job[48];                /* of options, fit for names */
    atomic_uint_fast64_t number; /* of temporaries */
    atomic_uint_fast64_t owner_refused, attrs_refused, setuid_refused;
    _Atomic int64_t current_due;

    pthread_mutex_t lock; /* guards what follows */
    bk_restore_stats_t stats;
    json_t *plan, *failed;
    bk_reader_t *readers[64];
    size_t reader_count;
    struct bk_lot_s *lots[64]; /* helped.c */
    size_t lot_count;
} bk_restore_t;

/* A directory of the target; lane 0 counts its users. */
typedef struct {
    unsigned users;
    char *path;    /* below the root, "" is the root */
    bool made;     /* by us (or would be): nothing was in it */
    bool fresh;    /* made, and it got no access list of the directory above */
    bool inherits; /* what is made in it gets an access list, which its entry may not have */
    bool other;    /* on another file system than the root */
} bk_place_t;

bk_place_t *bk_place_new(const char *path, bool made); /* one user; NULL: no memory */
void bk_place_release(bk_place_t *place);              /* NULL is fine */
/* path of a name in a directory, into out (PATH_MAX bytes).  False when it is too long. */
bool bk_place_path(const bk_place_t *place, const char *name, char *out);

void bk_restore_plan(bk_restore_t *restore, const char *path, const char *action, uint64_t size);
/* One more that failed, with why; path below the root. */
void bk_restore_fail(bk_restore_t *restore, const char *path, const bk_err_t *why);
/* True when the whole restore has to end for it: stop, no space, no memory, no helper. */
bool bk_restore_is_fatal(bk_rc_t rc);
void bk_restore_current(bk_restore_t *restore, const char *path);

bk_reader_t *bk_restore_reader(bk_restore_t *restore); /* NULL: no memory */
void bk_restore_reader_back(bk_restore_t *restore, bk_reader_t *reader);

/* Name for a temporary; with its number. */
void bk_temporary_name(bk_restore_t *restore, char out[BK_TEMPORARY_MAX]);

/*
 * Owner, attributes, mode, times of a file or directory from its entry.  fresh: made by us a moment
 * ago, so nothing has to be compared.  What the system refuses (foreign owner, attributes) is
 * counted, not failed.
 */
bk_rc_t bk_place_metadata(bk_restore_t *restore, int fd, const bk_entry_t *entry, bool fresh,
                          bk_err_t *err);
/* The same for a link or FIFO that has the name in the directory.  BK_EXISTS: through the helper,
 * when it has further names, so that it must be replaced instead. */
bk_rc_t bk_place_metadata_at(bk_restore_t *restore, const bk_at_t *at, const char *name,
                             const bk_entry_t *entry, bool fresh, bk_err_t *err);
/* A directory, 0700; through the helper it is the owner's at once.  0 or an errno, as bk_at_mkdir.
 */
int bk_place_mkdir(bk_restore_t *restore, const bk_at_t *at, const char *name,
                   const bk_entry_t *entry);

/* One of several names that get their metadata through the helper. */
typedef struct {
    const char *name; /* "": the directory itself */
    const bk_entry_t *entry;
    bool fresh;
    bk_rc_t rc;  /* what came of it, described in why */
    bool shared; /* not done: the file has further names, so it must be replaced instead */
    bk_err_t why;
} bk_subject_t;

/* At most BK_WIRE_OPS names of one directory.  Fails only when the whole restore has to end. */
bk_rc_t bk_place_describe(bk_restore_t *restore, const bk_at_t *at, bk_subject_t *subjects,
                          size_t count, bk_err_t *err);

/* Give the temporary its name.  aside: keep what has the name as <name>.before-<job>. */
bk_rc_t bk_place_publish(bk_restore_t *restore, const bk_at_t *at, const char *temporary,
                         const char *name, bool aside, bk_err_t *err);
/* Move what has the name out of the way, whatever it is. */
bk_rc_t bk_place_aside(bk_restore_t *restore, const bk_at_t *at, const char *name, bk_err_t *err);
/* Remove name with all below, but what is protected; dry: only count.  path: of name, for
 * patterns, below the tree's root. */
bk_rc_t bk_place_remove(bk_restore_t *restore, const bk_at_t *at, const char *name,
                        const char *path, bool dry, bk_err_t *err);
/* Left out of backups on purpose, so not to be touched; path below the tree's root.  removing: also
 * what a backup holds only in another state. */
bool bk_place_protected(const bk_restore_t *restore, const char *path, const struct stat *st,
                        bool removing);

/* --- window.c --- */

typedef struct bk_window_s bk_window_t;

typedef enum { BK_NOT_THERE, BK_REPLACE, BK_ASIDE } bk_existing_t;

bk_window_t *bk_window_new(bk_restore_t *restore); /* NULL: no memory */
void bk_window_free(bk_window_t *window);          /* removes temporaries that are left */
/*
 * A file to be restored.  compare: something of the same size is there and may be right already.
 * May work the window off.
 */
bk_rc_t bk_window_add(bk_window_t *window, bk_place_t *place, const bk_entry_t *entry,
                      bk_existing_t existing, bool compare, bk_err_t *err);
/* Directory whose files are all added: its metadata are set when they are in place. */
bk_rc_t bk_window_add_dir(bk_window_t *window, bk_place_t *place, const bk_entry_t *entry,
                          bk_err_t *err);
/* Something the backup does not have; path below the tree's root. */
bk_rc_t bk_window_add_extra(bk_window_t *window, bk_place_t *place, const char *name,
                            const char *path, bk_err_t *err);
/* Work off all that was added. */
bk_rc_t bk_window_flush(bk_window_t *window, bk_err_t *err);

#endif
