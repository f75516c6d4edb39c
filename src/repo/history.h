/*
 * repo/history.h: what happened to a database between backups: sealed segments of its transactions
 * on the storage, as wal/<set>.<database>/<epoch>/<first>-<last>-<sha256>.
 *
 * An epoch is one unbroken life of a database: its transactions have numbers that follow each
 * other.  What a segment holds is the business of whoever writes it; here it is bytes that can be
 * read from any place without reading all of them.  Any thread; a reader belongs to one at a time.
 */
#ifndef BK_REPO_HISTORY_H
#define BK_REPO_HISTORY_H

#include "repo/repo.h"

#define BK_EPOCH_SIZE    16
#define BK_HISTORY_NAME  72           /* of a database, with NUL */
#define BK_HISTORY_LIMIT (1ull << 40) /* bytes of one segment */

typedef struct {
    char database[BK_HISTORY_NAME]; /* [a-z0-9_.-]+, the set and the database */
    uint8_t epoch[BK_EPOCH_SIZE];
    uint64_t first, last; /* transactions, first <= last */
} bk_history_name_t;

typedef struct {
    bk_history_name_t name;
    bk_id_t id;    /* SHA-256 of the object */
    uint64_t size; /* of the object, bytes */
    int64_t mtime; /* ns, the storage's clock; 0: it does not say */
    size_t within; /* bk_history_list_all: a wider item that holds all of it; else itself */
} bk_history_item_t;

typedef struct {
    bk_history_item_t *items; /* by epoch and first, wide ones before others */
    size_t count;
} bk_history_list_t;

/*
 * Publish size bytes of fd from offset 0, which must not change meanwhile.  One that is there
 * already for just these transactions is success: the same transactions have the same content.
 * One thread at a time for each database.
 */
bk_rc_t bk_history_put(bk_repo_t *repo, const bk_history_name_t *name, int fd, uint64_t size,
                       bk_ctl_t *ctl, bk_err_t *err);
/*
 * All of one database, or of one of its epochs.  epoch: BK_EPOCH_SIZE bytes or NULL.  What another
 * one holds wholly is left out: segments are merged into wider ones, and removed a while later.
 */
bk_rc_t bk_history_list(bk_repo_t *repo, const char *database, const uint8_t *epoch, bk_ctl_t *ctl,
                        bk_history_list_t *list, bk_err_t *err);
/* With those. */
bk_rc_t bk_history_list_all(bk_repo_t *repo, const char *database, bk_ctl_t *ctl,
                            bk_history_list_t *list, bk_err_t *err);
/*
 * Transactions of an epoch between those that are there, which nobody removed on purpose: what is
 * old goes from the beginning on.  Names alone are looked at, of all databases, or of those of a
 * set (NULL: all).  fn is called for each range, by database, epoch and number.
 */
typedef bk_rc_t (*bk_history_range_fn)(void *arg, const bk_history_name_t *missing, bk_err_t *err);
bk_rc_t bk_history_missing(bk_repo_t *repo, const char *set, bk_history_range_fn fn, void *arg,
                           bk_ctl_t *ctl, bk_err_t *err);
/* What an object's name says; false: it is not a segment. */
bool bk_history_parse(const char *object, bk_history_name_t *name);
/* All of all databases, by database, epoch and first. */
bk_rc_t bk_history_list_every(bk_repo_t *repo, bk_ctl_t *ctl, bk_history_list_t *list,
                              bk_err_t *err);
/* Names of the databases of a set that there is something of, each with its NUL, sorted. */
bk_rc_t bk_history_databases(bk_repo_t *repo, const char *set, bk_buf_t *names, bk_ctl_t *ctl,
                             bk_err_t *err);
void bk_history_list_free(bk_history_list_t *list);
bk_rc_t bk_history_remove(bk_repo_t *repo, const bk_history_item_t *item, bk_ctl_t *ctl,
                          bk_err_t *err);
/* Name on the storage; out: BK_STORAGE_NAME bytes. */
void bk_history_object(char *out, const bk_history_item_t *item);

typedef struct bk_history_reader_s bk_history_reader_t;
/* BK_NOT_FOUND, BK_CORRUPT, BK_WRONG_KEY.  repo is borrowed until close. */
bk_rc_t bk_history_open(bk_repo_t *repo, const bk_history_item_t *item,
                        bk_history_reader_t **reader, bk_ctl_t *ctl, bk_err_t *err);
void bk_history_close(bk_history_reader_t *reader);            /* NULL is fine */
uint64_t bk_history_length(const bk_history_reader_t *reader); /* bytes of content */
/* Exactly len bytes from offset; beyond the end: BK_CORRUPT.  Each read fetches only the parts that
 * it touches; the last part stays at hand. */
bk_rc_t bk_history_read(bk_history_reader_t *reader, uint64_t offset, void *out, size_t len,
                        bk_ctl_t *ctl, bk_err_t *err);
/* Every part of an object authenticates and the length is right: for verification. */
bk_rc_t bk_history_check(bk_repo_t *repo, const char *object, uint64_t size, bk_ctl_t *ctl,
                         bk_err_t *err);

#endif
