/*
 * helper/refuse.h: what workers asked for and did not get: counted by kind for all conversations of
 * an agent, and said in the system's log once per kind, so that an attack is seen and cannot fill
 * the log.
 */
#ifndef BK_HELPER_REFUSE_H
#define BK_HELPER_REFUSE_H

#include <stddef.h>
#include <stdint.h>

typedef enum {
    BK_REFUSE_ROOT = 0, /* not configured, or not for this use */
    BK_REFUSE_RIGHT,    /* a verb that the root was not asked for */
    BK_REFUSE_PATH,     /* "..", absolute, empty components */
    BK_REFUSE_LINK,     /* a symbolic link in the way */
    BK_REFUSE_MOUNT,    /* another file system mounted below a root */
    BK_REFUSE_KIND,     /* a device node or a socket */
    BK_REFUSE_SETUID,   /* set-user-id or set-group-id bits, or capabilities of a file */
    BK_REFUSE_NAMES,    /* a file that has names elsewhere would be changed */
    BK_REFUSE_DATABASE, /* a file that is not of the database */
    BK_REFUSE_GRAMMAR,  /* the conversation was ended */
    BK_REFUSE_KINDS
} bk_refuse_t;

/* Before the agent forks: counters that all its conversations share.  Without it each process
 * counts for itself. */
void bk_refuse_share(void);
/* Count; the first of its kind is logged with the object (escaped, cut). */
void bk_refuse(bk_refuse_t kind, const char *object, size_t len);
uint64_t bk_refuse_total(void);

#endif
