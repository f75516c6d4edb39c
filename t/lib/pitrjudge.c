/*
 * t/lib/pitrjudge.c: is each captured transaction a commit that a writer of chaos.h made, in their
 * order, and none left out?
 *
 *   pitrjudge run STORAGE-URL BASE-DIR DATABASE SCRATCH EVERY SECONDS LOG...
 *   pitrjudge content DB                      the number of the last commit and the digest of the
 * content
 *
 * From the first transaction that a backup is, each transaction of each epoch is put on an image in
 * memory, which SQLite then reads.  A transaction that is neither gap nor batch is the next commit,
 * or a VACUUM, which changes no content; and what is new in any was committed in the time that it
 * says.  Then the product's own code is asked for the same transactions, in an order that leaves
 * out none and favours none, for at most so many SECONDS: by number and by time, every page checked
 * and read by SQLite as a query does.
 *
 * Prints, times in ns: about every EVERYth transaction as "sample TRANSACTION NUMBER DIGEST TIME",
 * the last of those with the same time; "gap TRANSACTION FROM TO COMMITS"; "unjudged FIRST LAST
 * TIME": those before the first backup of an epoch; "missed": what the product could not have; and
 * a summary.  Exit 1 when something is wrong.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/str.h"
#include "chaos.h"
#include "engine/bases.h"
#include "sqlite/blocks.h"
#include "sqlite/dump.h"
#include "sqlite/source.h"
#include "sqlite/vfs.h"

typedef struct {
    int64_t number;
    uint64_t digest;
    int64_t begun; /* ns */
} commit_t;

typedef struct {
    int64_t number, time; /* ns */
} ack_t;

/* What a transaction left behind. */
typedef struct {
    uint64_t txid, hash, digest;
    int64_t number, time; /* ns: from when on it is there */
} judged_t;

typedef struct {
    commit_t *commits; /* of all logs, sorted */
    size_t count, room;
    ack_t *acks; /* the same */
    size_t ack_count, ack_room;
    judged_t *judged;
    size_t judged_count, judged_room;
    bk_repo_t *repo;
    bk_snapshot_list_t list;
    bk_bases_t bases;
    const char *scratch;
    const bk_snapshot_db_t *from; /* to be brought back */
    uint8_t *image;
    uint64_t pages, room_pages, hash;
    uint32_t page_size;
    bool have, wanted;
    int64_t number, seconds;
    uint64_t digest, every;
    uint64_t transactions, commits_seen, others, batches, gaps, epochs, unjudged, had, wrong;
    bk_tx_t unbased[2]; /* the first and the last of an epoch; txid 0: there are none */
    bk_ctl_t ctl;
} judge_t;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "pitrjudge: %s: %s\n", what, why);
    exit(2);
}

/* --- what the writers did --- */

static void *grown(void *list, size_t count, size_t *room, size_t size)
{
    if (count < *room)
        return list;
    *room = *room * 2 + 1024;
    list = realloc(list, *room * size);
    if (list == NULL)
        die("lists", "out of memory");
    return list;
}

static int by_commit(const void *a, const void *b)
{
    const commit_t *x = a, *y = b;
    if (x->number != y->number)
        return x->number < y->number ? -1 : 1;
    return x->digest < y->digest ? -1 : x->digest > y->digest;
}

static int by_number(const void *a, const void *b)
{
    const ack_t *x = a, *y = b;
    return x->number < y->number ? -1 : x->number > y->number;
}

static void read_log(judge_t *j, const char *path)
{
    FILE *file = fopen(path, "r");
    char line[120];
    if (file == NULL)
        die(path, "cannot be opened");
    while (fgets(line, sizeof line, file) != NULL) {
        long long n, time;
        unsigned long long d;
        if (sscanf(line, "B %lld %llx %lld", &n, &d, &time) == 3) {
            j->commits = grown(j->commits, j->count, &j->room, sizeof *j->commits);
            j->commits[j->count++] = (commit_t){n, d, time};
        } else if (sscanf(line, "A %lld %lld", &n, &time) == 2) {
            j->acks = grown(j->acks, j->ack_count, &j->ack_room, sizeof *j->acks);
            j->acks[j->ack_count++] = (ack_t){n, time};
        }
    }
    fclose(file);
}

/* NULL: nobody made it. */
static const commit_t *commit_of(const judge_t *j, int64_t number, uint64_t digest)
{
    static const commit_t beginning = {0};
    commit_t wanted = {.number = number, .digest = digest};
    return number == 0 ? &beginning
                       : bsearch(&wanted, j->commits, j->count, sizeof wanted, by_commit);
}

/* When a commit of that number had returned to its writer; INT64_MAX: it never did. */
static int64_t returned(const judge_t *j, int64_t number)
{
    ack_t wanted = {.number = number};
    const ack_t *ack = bsearch(&wanted, j->acks, j->ack_count, sizeof wanted, by_number);
    return ack != NULL ? ack->time : INT64_MAX;
}

/* --- the image --- */

static uint64_t hash_of(const judge_t *j, uint64_t pgno)
{
    return pgno == bk_db_lock_page(j->page_size)
               ? 0
               : bk_db_page_hash(pgno, j->image + (pgno - 1) * j->page_size, j->page_size);
}

static void resize(judge_t *j, uint64_t pages)
{
    for (uint64_t p = pages + 1; p <= j->pages; p++)
        j->hash ^= hash_of(j, p);
    if (pages > j->room_pages) {
        j->room_pages = pages * 2;
        j->image = realloc(j->image, j->room_pages * j->page_size);
        if (j->image == NULL)
            die("image", "out of memory");
    }
    for (uint64_t p = j->pages + 1; p <= pages; p++) {
        memset(j->image + (p - 1) * j->page_size, 0, j->page_size);
        j->hash ^= hash_of(j, p);
    }
    j->pages = pages;
}

static bk_rc_t put_page(void *arg, uint32_t pgno, const uint8_t *page, bk_err_t *err)
{
    judge_t *j = arg;
    if (pgno == 0 || pgno > j->pages)
        return bk_err_set(err, BK_CORRUPT, "page %u is outside", pgno);
    j->hash ^= hash_of(j, pgno);
    memcpy(j->image + (uint64_t)(pgno - 1) * j->page_size, page, j->page_size);
    j->hash ^= hash_of(j, pgno);
    return BK_OK;
}

static bk_rc_t materialise(bk_team_t *team, void *arg, bk_err_t *err)
{
    judge_t *j = arg;
    char file[4200];
    snprintf(file, sizeof file, "%s/base.db", j->scratch);
    FILE *in = fopen(file, "w+");
    bk_rc_t rc = in != NULL
                     ? bk_db_materialise(j->repo, j->from, fileno(in), file, team, &j->ctl, err)
                     : bk_err_sys(err, errno, "make %s", file);
    j->page_size = j->from->page_size;
    j->pages = j->room_pages = j->hash = 0;
    if (rc == BK_OK) {
        resize(j, j->from->page_count);
        if (fread(j->image, j->page_size, j->pages, in) != j->pages)
            rc = bk_err_set(err, BK_IO, "%s is short", file);
    }
    if (in != NULL)
        fclose(in);
    j->hash = j->from->digest;
    unlink(file);
    return rc;
}

/* What SQLite sees; a memory database knows no log, so the header must not say so. */
static void read_content(judge_t *j, int64_t *number, uint64_t *digest)
{
    sqlite3 *db;
    uint8_t mode[2] = {j->image[18], j->image[19]};
    j->image[18] = j->image[19] = 1;
    if (sqlite3_open(":memory:", &db) != SQLITE_OK ||
        sqlite3_deserialize(db, "main", j->image, (sqlite3_int64)(j->pages * j->page_size),
                            (sqlite3_int64)(j->pages * j->page_size),
                            SQLITE_DESERIALIZE_READONLY) != SQLITE_OK ||
        !chaos_content(db, number, digest))
        die("image", sqlite3_errmsg(db));
    sqlite3_close(db);
    j->image[18] = mode[0];
    j->image[19] = mode[1];
}

/* --- judging --- */

static void wrong(judge_t *j, const bk_tx_t *tx, const char *what, int64_t number)
{
    char at[BK_TIME_TEXT];
    bk_time_format_exact(at, tx->t_hi);
    printf("wrong: transaction %llu of %s: %s (commit %lld after %lld)\n",
           (unsigned long long)tx->txid, at, what, (long long)number, (long long)j->number);
    j->wrong++;
}

/* Anything may have been committed in it, any number of times. */
static bool is_wide(const bk_tx_t *tx)
{
    return (tx->flags & (BK_TXLOG_GAP | BK_TXLOG_BATCH)) != 0;
}

static void judge_content(judge_t *j, const bk_tx_t *tx, int64_t number, uint64_t digest)
{
    const commit_t *commit = commit_of(j, number, digest);
    if (commit == NULL)
        wrong(j, tx, "nobody made this commit", number);
    else if (number < j->number)
        wrong(j, tx, "it goes back", number);
    else if (!is_wide(tx) && number > j->number + 1)
        wrong(j, tx, "it is not the next", number);
    else if (number == j->number && digest != j->digest)
        wrong(j, tx, "the content is another, but not its number", number);
    else if (number > j->number && commit->begun > tx->t_hi)
        wrong(j, tx, "it was not committed by then", number);
    else if (number > j->number && returned(j, j->number + 1) < tx->t_lo)
        wrong(j, tx, "what it begins with was committed before", number);
}

static void count(judge_t *j, const bk_tx_t *tx, int64_t number)
{
    if ((tx->flags & BK_TXLOG_GAP) != 0) {
        j->gaps++;
        printf("gap %llu %lld %lld %lld\n", (unsigned long long)tx->txid, (long long)tx->t_lo,
               (long long)tx->t_hi, (long long)(number - j->number));
    } else if ((tx->flags & BK_TXLOG_BATCH) != 0) {
        j->batches++;
    } else if (number == j->number) {
        j->others++;
    } else {
        j->commits_seen++;
    }
}

static void end_sample(judge_t *j)
{
    const judged_t *last = &j->judged[j->judged_count - 1];
    if (j->wanted)
        printf("sample %llu %lld %llx %lld\n", (unsigned long long)last->txid,
               (long long)last->number, (unsigned long long)last->digest, (long long)last->time);
    j->wanted = false;
}

static void remember(judge_t *j, const bk_tx_t *tx)
{
    if (j->judged_count > 0 && j->judged[j->judged_count - 1].time != tx->t_hi)
        end_sample(j);
    j->judged = grown(j->judged, j->judged_count, &j->judged_room, sizeof *j->judged);
    j->judged[j->judged_count++] = (judged_t){tx->txid, j->hash, j->digest, j->number, tx->t_hi};
    j->wanted = ++j->transactions % j->every == 0 || j->wanted;
}

static void judge(judge_t *j, const bk_tx_t *tx)
{
    int64_t number = 0;
    uint64_t digest = 0;
    if (j->hash != tx->after)
        wrong(j, tx, "its pages are not what it left behind", 0);
    read_content(j, &number, &digest);
    judge_content(j, tx, number, digest);
    count(j, tx, number);
    j->number = number;
    j->digest = digest;
    remember(j, tx);
}

/* The first content that a backup has begins the judgement of an epoch. */
static bk_rc_t begin(judge_t *j, const bk_tx_t *tx, uint64_t content, uint64_t page_count,
                     bk_err_t *err)
{
    bk_moment_t moment = {0};
    if (!bk_bases_find(&j->bases, content, page_count, &moment))
        return BK_OK;
    j->from = moment.from;
    bk_rc_t rc = bk_team_run(2, materialise, j, err);
    if (rc != BK_OK)
        return rc;
    j->have = true;
    j->epochs++;
    read_content(j, &j->number, &j->digest);
    if (commit_of(j, j->number, j->digest) == NULL)
        wrong(j, tx, "nobody made what the backup holds", j->number);
    return BK_OK;
}

/* What was before the first backup of an epoch can be recovered by nobody: it is said. */
static void end_epoch(judge_t *j)
{
    const bk_tx_t *first = &j->unbased[0], *last = &j->unbased[1];
    if (j->judged_count > 0)
        end_sample(j);
    if (first->txid != 0) {
        printf("unjudged %llu %llu %lld\n", (unsigned long long)first->txid,
               (unsigned long long)last->txid, (long long)last->t_hi);
        j->unjudged += last->txid - first->txid + 1;
    }
    j->unbased[0] = j->unbased[1] = (bk_tx_t){0};
}

/* False: tx is before the first backup, or is what that holds. */
static bool begins(judge_t *j, const bk_tx_t *tx, bool is_first, bk_rc_t *rc, bk_err_t *err)
{
    if (!j->have && is_first)
        *rc = begin(j, tx, tx->before, 0, err);
    if (j->have || *rc != BK_OK)
        return *rc == BK_OK;
    *rc = begin(j, tx, tx->after, tx->page_count, err);
    if (*rc == BK_OK && j->have) {
        remember(j, tx);
    } else if (*rc == BK_OK) {
        if (j->unbased[0].txid == 0)
            j->unbased[0] = *tx;
        j->unbased[1] = *tx;
    }
    return false;
}

static bk_rc_t run(judge_t *j, bk_moments_t *moments, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    uint8_t epoch[BK_TXLOG_EPOCH] = {0};
    uint64_t first = 0, next = 0;
    for (size_t s = 0; s < bk_moments_count(moments) && rc == BK_OK; s++) {
        bk_txlog_t *log;
        rc = bk_moments_segment(moments, s, &log, err);
        if (rc == BK_OK && memcmp(epoch, bk_txlog_info(log)->epoch, sizeof epoch) != 0) {
            end_epoch(j);
            memcpy(epoch, bk_txlog_info(log)->epoch, sizeof epoch);
            j->have = false;
            first = next = bk_txlog_info(log)->first;
        }
        for (size_t i = 0; rc == BK_OK && i < bk_txlog_count(log); i++) {
            const bk_tx_t *tx = bk_txlog_tx(log, i);
            if (tx->txid != next)
                return bk_err_set(err, BK_CORRUPT, "transaction %llu is missing",
                                  (unsigned long long)next);
            next++;
            if (!begins(j, tx, tx->txid == first, &rc, err))
                continue;
            if (tx->before != j->hash)
                wrong(j, tx, "it does not follow", 0);
            resize(j, tx->page_count);
            rc = bk_txlog_pages(log, i, put_page, j, err);
            if (rc == BK_OK)
                judge(j, tx);
        }
    }
    end_epoch(j);
    return rc;
}

/* --- the same by the product --- */

static bk_rc_t base_page(void *arg, uint64_t pgno, uint8_t *page, bk_err_t *err)
{
    return bk_db_blocks_page(arg, pgno, page, err);
}

/* Every page, and then what SQLite makes of them. */
static bk_rc_t have_image(bk_past_t *past, const judged_t *tx, bk_err_t *err)
{
    bk_vfs_image_t *image = NULL;
    sqlite3 *db = NULL;
    int64_t number = 0;
    uint64_t digest = 0;
    bk_rc_t rc = bk_past_check(past, err);
    if (rc == BK_OK && bk_past_digest(past) != tx->hash)
        rc = bk_err_set(err, BK_CORRUPT, "it is another image");
    if (rc == BK_OK)
        rc = bk_vfs_show(past, &image, err);
    if (rc != BK_OK)
        return rc;
    if (sqlite3_open_v2(bk_vfs_uri(image), &db, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, NULL) !=
            SQLITE_OK ||
        !chaos_content(db, &number, &digest))
        rc = bk_err_set(err, BK_CORRUPT, "SQLite: %s", sqlite3_errmsg(db));
    else if (number != tx->number || digest != tx->digest)
        rc = bk_err_set(err, BK_CORRUPT, "it is commit %lld, not %lld", (long long)number,
                        (long long)tx->number);
    sqlite3_close(db);
    rc = bk_vfs_failure(image, rc, err);
    bk_vfs_hide(image);
    return rc;
}

/* As of a time: that one, or one behind it that was there at the same time. */
static bk_rc_t have_time(judge_t *j, bk_moments_t *moments, const judged_t *tx, bk_err_t *err)
{
    bk_moment_t moment;
    bk_rc_t rc = bk_moments_at(moments, tx->time, &j->list, &moment, err);
    if (rc == BK_OK && (moment.tx.t_hi != tx->time || moment.tx.txid < tx->txid))
        rc = bk_err_set(err, BK_CORRUPT, "its time means transaction %llu",
                        (unsigned long long)moment.tx.txid);
    return rc;
}

static bk_rc_t have(judge_t *j, bk_moments_t *moments, const judged_t *tx, bk_err_t *err)
{
    bk_moment_t moment;
    bk_db_blocks_t *blocks = NULL;
    bk_past_t *past = NULL;
    bk_rc_t rc = bk_moments_number(moments, tx->txid, &j->list, &moment, err);
    if (rc == BK_OK)
        rc = bk_db_blocks_open(j->repo, moment.from, &j->ctl, &blocks, err);
    if (rc == BK_OK)
        rc = bk_moments_past(&moment, base_page, blocks, &past, err);
    if (rc == BK_OK)
        rc = have_image(past, tx, err);
    bk_past_free(past);
    bk_db_blocks_free(blocks);
    return rc == BK_OK ? have_time(j, moments, tx, err) : rc;
}

static size_t common_divisor(size_t a, size_t b)
{
    return b == 0 ? a : common_divisor(b, a % b);
}

/* Steps of the golden ratio: wherever time ends it, what was looked at lies everywhere. */
static void have_all(judge_t *j, bk_moments_t *moments)
{
    int64_t end = bk_mono() + j->seconds * BK_SEC;
    size_t count = j->judged_count, step = (size_t)((double)count * 0.618) + 1, at = count - 1;
    while (count > 0 && common_divisor(step, count) != 1)
        step++;
    for (size_t i = 0; i < count && bk_mono() < end; i++, at = (at + step) % count) {
        bk_err_t why = {0};
        if (have(j, moments, &j->judged[at], &why) == BK_OK) {
            j->had++;
            continue;
        }
        printf("missed: transaction %llu: %s\n", (unsigned long long)j->judged[at].txid, why.text);
        j->wrong++;
    }
}

static int judge_all(char **args, int logs)
{
    bk_err_t err = {0};
    bk_storage_config_t config = {0};
    bk_storage_t *storage = NULL;
    bk_moments_t *moments = NULL;
    judge_t j = {.scratch = args[3],
                 .every = strtoull(args[4], NULL, 10),
                 .seconds = strtoll(args[5], NULL, 10)};
    bk_ctl_init(&j.ctl);
    for (int i = 0; i < logs; i++)
        read_log(&j, args[6 + i]);
    qsort(j.commits, j.count, sizeof *j.commits, by_commit);
    qsort(j.acks, j.ack_count, sizeof *j.acks, by_number);
    bk_rc_t rc = bk_storage_config_url(&config, args[0], &err);
    if (rc == BK_OK)
        rc = bk_storage_open(&config, &storage, &err);
    bk_repo_options_t options = {.storage = storage, .cache_dir = args[3]};
    if (rc == BK_OK)
        rc = bk_repo_open(&options, &j.ctl, &j.repo, &err);
    if (rc == BK_OK)
        rc = bk_snapshot_list(j.repo, NULL, &j.ctl, &j.list, &err);
    if (rc == BK_OK)
        rc = bk_moments_open(args[1], "app", args[2], j.repo, &j.ctl, &moments, &err);
    if (rc == BK_OK)
        rc = bk_bases_init(&j.bases, &j.list, "app", args[2], &err);
    if (rc == BK_OK)
        rc = run(&j, moments, &err);
    if (rc == BK_OK)
        have_all(&j, moments);
    if (rc != BK_OK)
        printf("wrong: %s\n", err.text);
    printf("%s: %llu transactions in %llu epochs: %llu commits, %llu others, %llu batches, %llu "
           "gaps; %llu not judged, %llu had by the product, %llu wrong; last commit %lld %llx\n",
           args[2], (unsigned long long)j.transactions, (unsigned long long)j.epochs,
           (unsigned long long)j.commits_seen, (unsigned long long)j.others,
           (unsigned long long)j.batches, (unsigned long long)j.gaps,
           (unsigned long long)j.unjudged, (unsigned long long)j.had, (unsigned long long)j.wrong,
           (long long)j.number, (unsigned long long)j.digest);
    bk_moments_free(moments);
    bk_bases_free(&j.bases);
    bk_snapshot_list_free(&j.list);
    bk_repo_close(j.repo);
    bk_storage_close(storage);
    bk_storage_config_free(&config);
    bk_ctl_free(&j.ctl);
    free(j.commits);
    free(j.acks);
    free(j.judged);
    free(j.image);
    return rc != BK_OK || j.wrong > 0;
}

int main(int argc, char **argv)
{
    if (argc >= 9 && strcmp(argv[1], "run") == 0)
        return judge_all(argv + 2, argc - 8);
    if (argc == 3 && strcmp(argv[1], "content") == 0) {
        sqlite3 *db;
        int64_t number;
        uint64_t digest;
        if (sqlite3_open_v2(argv[2], &db, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK ||
            !chaos_content(db, &number, &digest))
            die(argv[2], sqlite3_errmsg(db));
        sqlite3_close(db);
        printf("%lld %llx\n", (long long)number, (unsigned long long)digest);
        return 0;
    }
    fprintf(stderr,
            "pitrjudge run STORAGE-URL BASE-DIR DATABASE SCRATCH EVERY SECONDS LOG... | content "
            "DB\n");
    return 2;
}
