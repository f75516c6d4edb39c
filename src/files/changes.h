/*
 * files/changes.h: the journal of one file tree: which directories may have changed since which
 * backup, as the watcher told.
 *
 * It is kept in memory while a process watches, and is worth something only as long as somebody
 * does: whatever ends the watching (a crash of the worker, the helper or the machine, a restart)
 * leaves a time that nobody saw, and then all that was noted does not help: the journal is
 * incomplete, and the next backup walks.  So nothing is written while events come.  Only when a
 * process lets go in good order does it write the journal, and with it until when it watched; a
 * successor that was watching by then already goes on from it without a gap.  Who loads it removes
 * it first, so that none is ever used twice: after a crash there is none, which is incomplete, too.
 *
 * A backup takes the set: what comes from then on belongs to the next.  A backup that fails gives
 * it back.
 *
 * Any thread: the journal has a lock of its own.
 */
#ifndef BK_FILES_CHANGES_H
#define BK_FILES_CHANGES_H

#include "base/buf.h"
#include "base/err.h"
#include "files/dirset.h"

#define BK_CHANGES_ID 64 /* of a backup, with its NUL */

typedef struct bk_changes_s bk_changes_t;

/* The backup that the journal tells the changes since, and what of it has to be known. */
typedef struct {
    char backup[BK_CHANGES_ID];
    uint64_t fingerprint; /* of everything that decides what a walk would find, but the files */
    int64_t walked;       /* ns: when all of the tree was looked at last */
    uint64_t dirs, links, others;
} bk_changes_base_t;

bk_changes_t *bk_changes_new(void); /* NULL: no memory */
void bk_changes_free(bk_changes_t *changes);

/* --- what the watcher tells --- */

typedef enum {
    BK_CHANGES_DIRTY,
    BK_CHANGES_TREE,
    BK_CHANGES_LIMIT, /* below is not watched: always as if changed */
    BK_CHANGES_LOST,  /* until the next WATCHED nothing is sure */
    BK_CHANGES_WATCHED
} bk_changes_kind_t;
void bk_changes_tell(bk_changes_t *changes, bk_changes_kind_t kind, const char *path);

/* --- what a backup does --- */

/*
 * Take the set, to be borrowed until done or give_back.  base: as of the set.  False: the journal
 * is incomplete or has no base; a walk that is done makes it complete, when the tree was watched
 * during all of it.
 */
bool bk_changes_take(bk_changes_t *changes, const bk_dirset_t **dirty, bk_changes_base_t *base);
/* The backup exists.  again: what it wants to see again, taken over. */
void bk_changes_done(bk_changes_t *changes, const bk_changes_base_t *base, bk_dirset_t *again);
void bk_changes_give_back(bk_changes_t *changes); /* nothing taken is fine */
/* Of where, remove what was told since the set was taken, and what is listed in any case. */
void bk_changes_explain(bk_changes_t *changes, const bk_dirset_t *where, bk_dirset_t *rest);

/* --- from one process to its successor --- */

/* Append it; a set that is taken counts as not taken. */
void bk_changes_encode(bk_changes_t *changes, bk_buf_t *out);
/* Go on from an encoded one that was complete until then (bk_mono).  BK_CORRUPT: nothing changed.
 */
bk_rc_t bk_changes_resume(bk_changes_t *changes, bk_cur_t *cur, int64_t until, bk_err_t *err);

typedef struct {
    bool watched, complete; /* complete: the next backup can go by changes */
    bool limited;           /* a part is not watched */
    size_t dirty;           /* directories; meaningless when not complete */
    unsigned lost;          /* times that events were lost */
    int64_t last;           /* ns: of the last change told, 0: none */
} bk_changes_state_t;
void bk_changes_state(bk_changes_t *changes, bk_changes_state_t *state);

#endif
