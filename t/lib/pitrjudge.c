/*
 * t/lib/pitrjudge.c: is each captured transaction a commit that a writer of chaos.h made, in their
 * order, and none left out?
 *
 *   pitrjudge run STORAGE-URL BASE-DIR DATABASE SCRATCH EVERY LOG...
 *   pitrjudge content DB                      the number of the last commit and the digest of the
 * content
 *
 * From the first transaction that a backup is, each transaction of each epoch is put on an image in
 * memory, which SQLite then reads.  A transaction that is no gap is the next commit, or a VACUUM,
 * which changes no content.  Prints every EVERYth transaction as "sample TRANSACTION NUMBER
 * DIGEST", the gaps, and a summary; exit 1 when something is wrong.
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
#include "sqlite/dump.h"
#include "sqlite/source.h"

typedef struct {
    int64_t number;
    uint64_t digest;
} commit_t;

typedef struct {
    commit_t *commits; /* of all logs, sorted */
    size_t count, room;
    bk_repo_t *repo;
    bk_snapshot_list_t list;
    bk_bases_t bases;
    const char *scratch;
    const bk_snapshot_db_t *from; /* to be brought back */
    uint8_t *image;
    uint64_t pages, room_pages, hash;
    uint32_t page_size;
    bool have;
    int64_t number;
    uint64_t digest, every;
    uint64_t transactions, commits_seen, others, gaps, epochs, baseless, unbased, unjudged, wrong;
    bk_ctl_t ctl;
} judge_t;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "pitrjudge: %s: %s\n", what, why);
    exit(2);
}

/* --- what the writers did --- */

static int by_commit(const void *a, const void *b)
{
    const commit_t *x = a, *y = b;
    if (x->number != y->number)
        return x->number < y->number ? -1 : 1;
    return x->digest < y->digest ? -1 : x->digest > y->digest;
}

static void read_log(judge_t *j, const char *path)
{
    FILE *file = fopen(path, "r");
    char line[120];
    if (file == NULL)
        die(path, "cannot be opened");
    while (fgets(line, sizeof line, file) != NULL) {
        long long n;
        unsigned long long d;
        if (sscanf(line, "B %lld %llx", &n, &d) != 2)
            continue;
        if (j->count == j->room) {
            j->room = j->room * 2 + 1024;
            j->commits = realloc(j->commits, j->room * sizeof *j->commits);
            if (j->commits == NULL)
                die(path, "out of memory");
        }
        j->commits[j->count++] = (commit_t){n, d};
    }
    fclose(file);
}

static bool was_made(const judge_t *j, int64_t number, uint64_t digest)
{
    commit_t wanted = {number, digest};
    return number == 0 || bsearch(&wanted, j->commits, j->count, sizeof wanted, by_commit) != NULL;
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

static void judge(judge_t *j, const bk_tx_t *tx)
{
    int64_t number = 0;
    uint64_t digest = 0;
    bool gap = (tx->flags & BK_TXLOG_GAP) != 0;
    if (j->hash != tx->after)
        wrong(j, tx, "its pages are not what it left behind", 0);
    read_content(j, &number, &digest);
    if (!was_made(j, number, digest))
        wrong(j, tx, "nobody made this commit", number);
    else if (gap ? number < j->number : number != j->number && number != j->number + 1)
        wrong(j, tx, gap ? "it goes back" : "it is not the next", number);
    else if (!gap && number == j->number && digest != j->digest)
        wrong(j, tx, "the content is another, but not its number", number);
    if (gap) {
        j->gaps++;
        printf("gap: transaction %llu: %.3f s, %lld commits\n", (unsigned long long)tx->txid,
               (double)(tx->t_hi - tx->t_lo) / 1e9, (long long)(number - j->number));
    } else if (number == j->number) {
        j->others++;
    } else {
        j->commits_seen++;
    }
    j->number = number;
    j->digest = digest;
    if (++j->transactions % j->every == 0)
        printf("sample %llu %lld %llx\n", (unsigned long long)tx->txid, (long long)number,
               (unsigned long long)digest);
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
    if (!was_made(j, j->number, j->digest))
        wrong(j, tx, "nobody made what the backup holds", j->number);
    return BK_OK;
}

/* One that no backup belongs to can be recovered by nobody: it is counted, and said. */
static void end_epoch(judge_t *j)
{
    if (!j->have && j->unbased > 0) {
        j->baseless++;
        printf("epoch without a backup: %llu transactions\n", (unsigned long long)j->unbased);
    }
    j->unjudged += j->unbased;
    j->unbased = 0;
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
            if (!j->have && next == first)
                rc = begin(j, tx, tx->before, 0, err);
            next++;
            j->unbased += !j->have;
            if (rc == BK_OK && !j->have) {
                rc = begin(j, tx, tx->after, tx->page_count, err);
                continue;
            }
            if (rc != BK_OK)
                break;
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

static int judge_all(char **args, int logs)
{
    bk_err_t err = {0};
    bk_storage_config_t config = {0};
    bk_storage_t *storage = NULL;
    bk_moments_t *moments = NULL;
    judge_t j = {.scratch = args[3], .every = strtoull(args[4], NULL, 10)};
    bk_ctl_init(&j.ctl);
    for (int i = 0; i < logs; i++)
        read_log(&j, args[5 + i]);
    qsort(j.commits, j.count, sizeof *j.commits, by_commit);
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
        rc = bk_bases_init(&j.bases, &j.list, args[2], &err);
    if (rc == BK_OK)
        rc = run(&j, moments, &err);
    if (rc != BK_OK)
        printf("wrong: %s\n", err.text);
    printf("%s: %llu transactions in %llu epochs: %llu commits, %llu others, %llu gaps, %llu "
           "epochs without a backup, %llu not judged, %llu wrong; last commit %lld %llx\n",
           args[2], (unsigned long long)j.transactions, (unsigned long long)j.epochs,
           (unsigned long long)j.commits_seen, (unsigned long long)j.others,
           (unsigned long long)j.gaps, (unsigned long long)j.baseless,
           (unsigned long long)j.unjudged, (unsigned long long)j.wrong, (long long)j.number,
           (unsigned long long)j.digest);
    bk_moments_free(moments);
    bk_bases_free(&j.bases);
    bk_snapshot_list_free(&j.list);
    bk_repo_close(j.repo);
    bk_storage_close(storage);
    bk_storage_config_free(&config);
    bk_ctl_free(&j.ctl);
    free(j.commits);
    free(j.image);
    return rc != BK_OK || j.wrong > 0;
}

int main(int argc, char **argv)
{
    if (argc >= 8 && strcmp(argv[1], "run") == 0)
        return judge_all(argv + 2, argc - 7);
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
            "pitrjudge run STORAGE-URL BASE-DIR DATABASE SCRATCH EVERY LOG... | content DB\n");
    return 2;
}
