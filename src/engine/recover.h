/*
 * engine/recover.h: a backup's content into a directory, for the engine and for the command line
 * that has no engine.
 *
 * Below the directory lie one folder for each file tree, by its name, and each database as the last
 * part of its path.
 */
#ifndef BK_ENGINE_RECOVER_H
#define BK_ENGINE_RECOVER_H

#include "base/team.h"
#include "engine/point.h"
#include "engine/protect.h"
#include "files/fsaccess.h"
#include "files/restore.h"
#include "repo/snapshot.h"

typedef struct {
    const bk_snapshot_t *snapshot;
    const bk_point_t *point; /* that the snapshot is of */
    bool databases, files;
    const char *database;          /* only this one; NULL: all */
    const bk_patterns_t *patterns; /* NULL or empty: all files */
    json_t *paths;                 /* array of "TREE/rest", "TREE" or absolute paths; NULL: all */
    const bk_set_t *set;           /* whose live files are left alone; NULL: there are none here */
    const bk_protected_t *skip;    /* of set; NULL with it */
    bk_overwrite_t overwrite;
    bool delete_extra, owners, dry_run, check;
    const char *job;
    bool alone;          /* nobody else recovers there now: temporaries are leftovers */
    bk_helper_t *helper; /* who places files, so that owners come back; NULL: own rights */
} bk_recover_options_t;

/*
 * result gets files_restored, bytes_restored, files_failed, databases, and plan for a dry run.
 * subdir: below target, made when missing.
 */
bk_rc_t bk_recover_into(bk_repo_t *repo, const bk_recover_options_t *options, bk_root_t *target,
                        const char *subdir, bk_team_t *team, json_t *result, bk_ctl_t *ctl,
                        bk_err_t *err);
/* The trees alone, each to where(tree): recovery in place. */
typedef const char *(*bk_recover_where_fn)(void *arg, const char *tree);
bk_rc_t bk_recover_files(bk_repo_t *repo, const bk_recover_options_t *options,
                         bk_recover_where_fn where, void *arg, bk_team_t *team, json_t *result,
                         bk_ctl_t *ctl, bk_err_t *err);

/* The databases alone, each as a file below target: recover_db.c. */
bk_rc_t bk_recover_databases(const bk_recover_options_t *options, bk_root_t *target,
                             const char *subdir, bk_team_t *team, json_t *result, bk_ctl_t *ctl,
                             bk_err_t *err);

/*
 * A configured directory to recover into, made with mode where it is missing and own rights allow
 * that.  helper (may be NULL): places there, if its configuration says so.
 */
bk_rc_t bk_recover_root(const char *path, mode_t mode, bk_helper_t *helper, bk_ctl_t *ctl,
                        bk_root_t **root, bk_err_t *err);
/*
 * The nearest directory that exists on the way to path, and what is below it in *below (points into
 * path): so that a dry run can look at a target that is not made yet.  helper as above.
 */
bk_rc_t bk_root_open_nearest(const char *path, bk_helper_t *helper, bk_ctl_t *ctl, bk_root_t **root,
                             const char **below, bk_err_t *err);

/*
 * What validate-recovery finds out, without an engine: nothing is configured here, so no check of a
 * database's block is asked, and no path of the application is looked for.  Databases are rebuilt
 * in scratch_dir, one after another.  result: as validation_result, also of a failure.  checks.c.
 */
bk_rc_t bk_validate_alone(const bk_point_t *point, char *scratch_dir, bool deep, bk_team_t *team,
                          json_t *result, bk_err_t *err);

/* The array of that name in a result, made when there is none; borrowed. */
json_t *bk_recover_list(json_t *result, const char *name);

/* Does the policy keep a database that is there?  Last changed, and the backup's moment; ns. */
bool bk_recover_keeps(bk_overwrite_t overwrite, int64_t changed, int64_t instant);
/* "always", "if-newer", "never", "rename"; false for another word. */
bool bk_overwrite_parse(const char *text, bk_overwrite_t *overwrite);

#endif
