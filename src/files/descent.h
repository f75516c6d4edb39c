/*
 * files/descent.h: a restore's way down through the backup's tree and the target (private to
 * src/files): which parts are selected, and the directories on the way.  Lane 0 only.
 */
#ifndef BK_FILES_DESCENT_H
#define BK_FILES_DESCENT_H

#include "files/filling.h"

/* One directory of the tree on the way down. */
typedef struct {
    bk_tree_iter_t *iter;
    bk_place_t *place; /* NULL until something in it is wanted, and in the first walk */
    bk_entry_t entry;  /* of the directory; its user and group in text */
    char *text;
    char *path;      /* below the tree's root */
    bool whole;      /* all below is selected by paths (or nothing limits them) */
    bool taken;      /* a pattern for directories took all below */
    bk_at_t at;      /* of the place; .road NULL: not open, then it is opened when needed */
    bk_peek_t *peek; /* names in the target: for what the backup has not, and to look at */
    size_t extra_at;
    bool remove_extra;
} bk_level_t;

typedef struct {
    bk_restore_t restore;
    bk_window_t *window;
    bk_level_t *levels;
    size_t count, cap;
    bool counting; /* the first walk: only add up */
    bool measure;  /* and subtract what is there */
    bool broken;   /* the window failed: nothing more can be done */
    uint64_t need; /* bytes that have to be free */
} bk_descent_t;

/* --- what is selected; paths below the tree's root --- */

bool bk_descent_path(const bk_restore_options_t *options, const char *path);
bool bk_descent_selects(const bk_descent_t *run, const bk_level_t *level, const char *path);
bool bk_descent_leads(const bk_descent_t *run, const bk_level_t *level, const char *path,
                      bool *whole, bool *taken);
/* Nothing limits what comes out of this directory: it is restored as a directory, too. */
bool bk_descent_wants(const bk_descent_t *run, const bk_level_t *level);

/* --- levels --- */

/* entry: of the directory, NULL for the tree's root. */
bk_rc_t bk_level_open(bk_descent_t *run, const bk_id_t *node, const bk_entry_t *entry,
                      const char *path, bk_err_t *err);
void bk_level_close(bk_level_t *level);
/* The level's directory in the target.  0 or an errno. */
int bk_level_enter(bk_descent_t *run, bk_level_t *level);
/* Does a name of an existing directory lead to something, and to what?  0, ENOENT, another errno.
 */
int bk_level_stat(bk_descent_t *run, bk_level_t *level, const char *name, struct stat *st);
/* An existing directory: what is in it, also that the backup does not have? */
bk_rc_t bk_level_look(bk_descent_t *run, bk_level_t *level, bk_err_t *err);

/* --- the target --- */

/* Path of a level below the root: the subdirectory and the tree's path; out has PATH_MAX bytes. */
bool bk_descent_target(const bk_descent_t *run, const char *path, char *out);
/* Make the root of the tree in the target, with the directories that lead there. */
bk_rc_t bk_descent_base(bk_descent_t *run, bool *made, bk_err_t *err);
/* All directories down to the top of the stack.  *there false: it can't be, which was reported. */
bk_rc_t bk_descent_dirs(bk_descent_t *run, bool *there, bk_err_t *err);
bool bk_descent_newer(const bk_entry_t *entry, const struct stat *st);
void bk_descent_skip(bk_descent_t *run, const char *path, uint64_t size);
void bk_descent_fail(bk_descent_t *run, const char *path, const bk_err_t *why);

#endif
