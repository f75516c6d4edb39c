/*
 * repo/verify.h: is what was written still there, and still right?
 *
 *   level 0  every pack the index names exists with its size; every snapshot object is readable;
 *            transactions follow each other, as the names of their segments tell
 *   level 1  SHA-256 of every object equals its name (no key needed)
 *   level 2  every frame of every pack decrypts, decompresses and has its id; every part of every
 *            segment of transactions decrypts; every chunk that a snapshot needs is there
 *
 * (Level 3, restoring into scratch, is the engine's.)  Findings come as chunk → path → backups.
 * Verification changes nothing on the storage.  Packs that are gone or damaged are noted (doubt.h),
 * so that the next backup stores their content again.
 */
#ifndef BK_REPO_VERIFY_H
#define BK_REPO_VERIFY_H

#include "repo/repo.h"
#include "repo/snapshot.h"

/* One finding as a line for people: "packs/ab/…: SHA-256 differs: 3 chunks: uploads/a.wav in
 * full_2025…". */
typedef void (*bk_verify_finding_fn)(void *arg, const char *object, const char *line);

typedef struct {
    uint64_t objects, bytes; /* looked at */
    uint64_t chunks;
    uint64_t findings;
    uint64_t harmless; /* of these: about packs by which no backup loses anything, and segments
                          whose transactions are in others as well */
    uint64_t moments;  /* of these: transactions are damaged or missing */
} bk_verify_result_t;

/* level 0..2.  BK_OK also with findings (result->findings > 0); failures are of the verification
 * itself. */
bk_rc_t bk_verify(bk_repo_t *repo, unsigned level, bk_team_t *team, bk_verify_finding_fn fn,
                  void *arg, bk_verify_result_t *result, bk_ctl_t *ctl, bk_err_t *err);

#endif
