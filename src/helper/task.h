/*
 * helper/task.h: one operation of an AT request while it is done: shared by talk.c, which takes
 * requests apart and puts replies together, look.c and place.c.
 */
#ifndef BK_HELPER_TASK_H
#define BK_HELPER_TASK_H

#include <stdbool.h>
#include <sys/stat.h>

#include "helper/roots.h"

#define BK_TASK_MADE 64u /* files that CREATE made and that are remembered */
/* Beside a database: what is being made, and, behind its name, what was there before. */
#define BK_TASK_TEMPORARY ".ngx-backup-"
#define BK_TASK_ASIDE     ".before-"

/* A root as one conversation uses it. */
typedef struct {
    const bk_roots_entry_t *conf;
    uint32_t may; /* BK_WIRE_MAY_… asked for, and the flags BK_WIRE_DATABASE, MAY_SETUID of conf */
    int fd;       /* O_PATH, the directory */
    uint64_t device, inode;
} bk_task_root_t;

/*
 * The files that this conversation made: each held by an O_PATH descriptor, so that its inode
 * number cannot become another file's.  They may be changed without asking where they come from.
 */
typedef struct {
    struct {
        int fd; /* -1: free */
        uint64_t device, inode;
    } list[BK_TASK_MADE];
    unsigned next;
} bk_task_made_t;

typedef struct {
    const bk_task_root_t *root;
    bk_task_made_t *made;
    int dir; /* O_PATH, the directory of the request */
    const bk_wire_op_t *op;
    const char *name, *name2; /* NUL-terminated and checked */
    int attrs;                /* the request's descriptor, borrowed; -1: none */
    bk_wire_result_t *result; /* zeros at first */
    int fd;                   /* out: what is passed on, closed by talk.c; -1: none */
    char *data;               /* out: result->data_len bytes of it */
    size_t room;              /* that data may have */
} bk_task_t;

/* Each does the operation and returns 0 or an errno. */
int bk_look_stat(bk_task_t *task);
int bk_look_open(bk_task_t *task);
int bk_look_attrs(bk_task_t *task);
int bk_place_do(bk_task_t *task); /* every call that changes something */

/*
 * An O_PATH descriptor beneath dir, or -1 and errno: no link is followed, the last one neither, no
 * mount is crossed.  "" is dir again.  Refusals are counted.
 */
int bk_task_find(int dir, const char *path, int flags);
/* openat2 with the same rules, for calls that create. */
int bk_task_open(int dir, const char *path, int flags, mode_t mode);
/* A path that leads to the object of an O_PATH descriptor itself. */
#define BK_TASK_PROC 32
void bk_task_proc(char out[BK_TASK_PROC], int fd);
/* May this name be used in this root?  Always, but for a database's. */
bool bk_task_allowed(const bk_task_t *task, const char *name, bool temporary);
/*
 * Of a regular file, link or FIFO: is its one name the one in dir?  0; EMLINK; EAGAIN when it is
 * changed all the time, so that nobody can tell.  fd: O_PATH of it.
 */
int bk_task_sole(const bk_task_t *task, int fd, const char *name, unsigned patience_ms);
/* The same for a file that is changed all the time: looked at so often that who wants to deceive
 * would have to win as many races in a row. */
int bk_task_sole_busy(const bk_task_t *task, int fd, const char *name);
void bk_task_remember(bk_task_t *task, int fd);
void bk_task_result(bk_wire_result_t *result, const struct stat *st);

#endif
