/*
 * repo/verify_private.h: what verify.c (objects), verify_history.c (transactions) and need.c
 * (backups) share of one verification.
 */
#ifndef BK_REPO_VERIFY_PRIVATE_H
#define BK_REPO_VERIFY_PRIVATE_H

#include <pthread.h>

#include "repo/doubt.h"
#include "repo/snapshot.h"
#include "repo/verify.h"

#define BK_PROBLEMS_MAX 65536u /* related to files; more are told without them */
#define BK_NO_PROBLEM   SIZE_MAX

typedef struct {
    char *object, *text; /* owned */
    uint64_t chunks;     /* that backups need and lost by it */
    bool spare;          /* a segment whose transactions are in others, too */
} bk_problem_t;

/* A pack, or a chunk in one pack, that cannot be used. */
typedef struct {
    bk_id_t pack, chunk; /* chunk is zero for whole packs */
    size_t problem;      /* BK_NO_PROBLEM: told already */
} bk_bad_t;

typedef struct {
    bk_bad_t *items;
    size_t count, cap;
} bk_bad_list_t;

typedef struct {
    bk_repo_t *repo;
    bk_index_t *index;
    unsigned level;
    bk_verify_finding_fn fn;
    void *arg;
    bk_verify_result_t *result;
    bk_ctl_t *ctl;
    pthread_mutex_t lock; /* guards result, fn and what follows while lanes work */
    bk_problem_t *problems;
    size_t problem_count, problem_cap;
    bk_bad_list_t bad_packs, bad_chunks;
    bk_packset_t unsound; /* packs that are there and not proved right */
    bool out_of_memory;   /* to remember what is bad: the result would be too good */
} bk_verify_t;

/* Something is wrong with object; returns the problem's number.  Any lane. */
size_t bk_verify_problem(bk_verify_t *v, const char *object, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Transactions between others that are missing become problems. */
bk_rc_t bk_verify_history(bk_verify_t *v, bk_err_t *err);
/* After the objects: which damaged segments cost nothing. */
bk_rc_t bk_verify_spare(bk_verify_t *v, bk_err_t *err);

/*
 * Tell all problems, each with what backups lost by it.  Every backup is walked at level 2, or when
 * something is bad.  One lane.
 */
bk_rc_t bk_verify_needs(bk_verify_t *v, const bk_snapshot_list_t *list, bk_err_t *err);

#endif
