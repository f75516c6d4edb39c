/*
 * engine/watching.h: the set's watch through the privileged helper, and the journals of changes
 * that it feeds, one a file tree.
 *
 * The host opens it in a process that may become the owner, polls its descriptor and drains it; a
 * backup takes what the journals hold.  Without a helper there is no watch: backups walk, and
 * status says why.
 */
#ifndef BK_ENGINE_WATCHING_H
#define BK_ENGINE_WATCHING_H

#include "engine/engine.h"
#include "engine/protect.h"
#include "files/changes.h"

typedef struct bk_watching_s bk_watching_t;

bk_rc_t bk_watching_new(const bk_set_t *set, bk_watching_t **watching, bk_err_t *err);
void bk_watching_free(bk_watching_t *watching); /* NULL is fine */

/* What one backup of one tree goes by. */
typedef struct {
    bk_changes_t *journal; /* NULL: none; its set is taken */
    const bk_dirset_t *dirty;
    bk_changes_base_t base; /* of the set */
    bool usable;            /* the set and base tell all that changed since previous */
    bool walk;              /* go through everything all the same */
    uint64_t fingerprint;   /* as it is now */
    bk_dirset_t again;      /* for bk_files_options_t */
} bk_watching_plan_t;

/*
 * Ask the watcher for everything that happened until now, and take the journal of tree number at.
 * previous: the id of the backup to compare with, NULL: none.  Never fails: what is not known is
 * not usable.
 */
void bk_watching_take(bk_watching_t *watching, size_t at, const char *previous, bool full,
                      bk_ctl_t *ctl, bk_watching_plan_t *plan);
/* Directories of where that changed although nothing was told of them, into rest. */
void bk_watching_explain(bk_watching_t *watching, const bk_watching_plan_t *plan,
                         const bk_dirset_t *where, bk_dirset_t *rest, bk_ctl_t *ctl);
/* The backup exists (stats: of the tree), or does not (id NULL).  Frees what the plan holds. */
void bk_watching_settle(bk_watching_plan_t *plan, const char *id, const bk_files_stats_t *stats);

/* The journals of a process that let go in good order, and for the next one. */
void bk_watching_load(bk_watching_t *watching);
void bk_watching_save(bk_watching_t *watching);

/* [{"name", "watching", "reason", "incremental", "dirty_directories", "last_event"}] */
json_t *bk_watching_describe(bk_watching_t *watching);
/* Is a tree watched now? */
bool bk_watching_any(bk_watching_t *watching);
/* Is each tree watched, or is it known why not? */
bool bk_watching_settled(bk_watching_t *watching);

/* For tests, ns: how often a tree that is not watched is tried, and how much later it is. */
extern int64_t bk_watching_try_every, bk_watching_later;

#endif
