/*
 * helper/roots.h: the directories and databases that the configuration gives to the helper: the
 * table, and opening one of them.  Written once, then only read.  libc only.
 */
#ifndef BK_HELPER_ROOTS_H
#define BK_HELPER_ROOTS_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "helper/protocol.h"

typedef struct {
    uint32_t flags; /* BK_WIRE_MAY_…, BK_WIRE_DATABASE */
    char *path;     /* absolute, normalised; of a database: its file */
} bk_roots_entry_t;

typedef struct {
    uint32_t count;
    bk_roots_entry_t *list;
} bk_roots_t;

/*
 * The body of CONF's memfd: exactly count times bk_wire_root_t.  0; EINVAL with *why a static text
 * that says what is wrong with the root *which; ENOMEM.
 */
int bk_roots_parse(const void *data, size_t len, uint32_t count, bk_roots_t **roots,
                   uint32_t *which, const char **why);
/* The same from the descriptor itself, which must be a memfd that nobody can change any more. */
int bk_roots_read(int fd, uint32_t count, bk_roots_t **roots, uint32_t *which, const char **why);
void bk_roots_free(bk_roots_t *roots); /* NULL is fine */

/* The entry of that path that has all flags of may (BK_WIRE_DATABASE may be among them): its
 * number, or -1. */
int bk_roots_find(const bk_roots_t *roots, const char *path, size_t len, uint32_t may);

/*
 * An O_PATH descriptor of the root's directory, of a database that of the directory it is in; or -1
 * and errno.  A symbolic link on the way is followed only when nobody but root can have put it
 * there (the directory that holds it belongs to root and nobody else may write to it), else ELOOP:
 * who may write to a parent directory must not choose what the helper opens.
 */
int bk_roots_open(const bk_roots_entry_t *root);
/* Can this process's cage reach that directory?  It was built around those of its beginning. */
bool bk_roots_reachable(int dir);
/* The last component of a database's path. */
const char *bk_roots_base(const bk_roots_entry_t *root);

#endif
