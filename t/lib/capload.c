/*
 * t/lib/capload.c: an application that commits, and how long its commits take to be captured.  For
 * figures only.
 *
 *   capload write DB SECONDS RATE          commit RATE times a second (0: as fast as it can)
 *   capload commits DB COUNT               so many, as fast as it can
 *   capload capture DB DIR SECONDS RATE    the same, captured by this process into DIR: commit to
 * durable capload watch DB DIR SECONDS RATE      the same, captured by somebody else into DIR:
 * commit to written
 *
 *   capload large DB DIR GIB               a new database of that size: first read, commits, memory
 *
 * A commit changes a row of about 500 bytes, every tenth adds one; synchronous=NORMAL, so that the
 * disk does not hide what the capture costs.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/str.h"
#include "sqlite/capture.h"
#include "sqlite/txlog_private.h"

#define COMMITS_MAX 4000000u
#define SIGHTS_MAX  4000000u
#define FILES_MAX   4096u

/* Shared by the writer and whoever looks at it. */
typedef struct {
    atomic_uint_fast64_t count;
    int64_t took[COMMITS_MAX]; /* ns */
    int64_t at[COMMITS_MAX];   /* ns, when it had returned */
} commits_t;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "capload: %s: %s\n", what, why);
    exit(1);
}

static void run(sqlite3 *db, const char *sql)
{
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        die(sql, sqlite3_errmsg(db));
}

static sqlite3 *open_db(const char *path)
{
    sqlite3 *db;
    if (sqlite3_open(path, &db) != SQLITE_OK)
        die(path, sqlite3_errmsg(db));
    sqlite3_busy_timeout(db, 60000);
    run(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"
            "CREATE TABLE IF NOT EXISTS capload(id INTEGER PRIMARY KEY, v INTEGER, filler BLOB);"
            "INSERT OR IGNORE INTO capload WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + "
            "1 FROM n WHERE i < 5000)"
            " SELECT i, 0, randomblob(500) FROM n");
    return db;
}

static void write_load(const char *path, double seconds, uint64_t rate, uint64_t most, commits_t *c)
{
    sqlite3 *db = open_db(path);
    int64_t began = bk_mono(), end = began + (int64_t)(seconds * 1e9);
    for (uint64_t n = 0; n < most && n < COMMITS_MAX; n++) {
        int64_t due = rate > 0 ? began + (int64_t)(n * 1000000000u / rate) : 0;
        while (due > bk_mono())
            usleep((useconds_t)((due - bk_mono()) / 1000 + 1));
        int64_t from = bk_mono();
        if (from >= end)
            break;
        char sql[200];
        snprintf(sql, sizeof sql,
                 n % 10 == 0
                     ? "INSERT INTO capload(v, filler) VALUES(%llu, randomblob(500))"
                     : "UPDATE capload SET v = v + 1, filler = randomblob(500) WHERE id = %llu",
                 (unsigned long long)(n * 2654435761u % 5000 + 1));
        run(db, sql);
        c->took[n] = bk_mono() - from;
        c->at[n] = bk_now();
        atomic_store(&c->count, n + 1);
    }
    sqlite3_close(db);
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Sorts times. */
static void print_times(const char *name, int64_t *times, size_t n)
{
    static const double bounds[] = {1, 2, 5, 10, 20, 50, 100, 1e9};
    size_t at = 0;
    if (n == 0)
        die(name, "nothing was measured");
    qsort(times, n, sizeof *times, by_value);
    printf("%s: n=%zu p50=%.2f p90=%.2f p99=%.2f max=%.2f ms;", name, n, (double)times[n / 2] / 1e6,
           (double)times[n * 9 / 10] / 1e6, (double)times[n * 99 / 100] / 1e6,
           (double)times[n - 1] / 1e6);
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        size_t from = at;
        while (at < n && (double)times[at] / 1e6 <= bounds[i])
            at++;
        if (bounds[i] < 1e9)
            printf(" <=%g:%.2f%%", bounds[i], 100.0 * (double)(at - from) / (double)n);
        else
            printf(" more:%.2f%%", 100.0 * (double)(at - from) / (double)n);
    }
    printf("\n");
}

static void print_writer(commits_t *c, double seconds)
{
    size_t n = atomic_load(&c->count);
    printf("commits: %zu in %.1f s = %.0f/s\n", n, seconds, (double)n / seconds);
    print_times("stall", c->took, n);
}

/* --- captured here --- */

static pid_t start_writer(const char *path, double seconds, uint64_t rate, commits_t *c)
{
    pid_t pid = fork();
    if (pid == 0) {
        write_load(path, seconds, rate, COMMITS_MAX, c);
        _exit(0);
    }
    return pid;
}

static size_t capture(const char *path, const char *dir, double seconds, uint64_t rate,
                      commits_t *c, int64_t *late)
{
    bk_ctl_t ctl;
    bk_err_t err = {0};
    bk_capture_t *capture;
    bk_capture_state_t state;
    bk_capture_options_t options = {.database = path, .dir = dir, .busy_ms = 10000};
    char wal[4200], drain[65536];
    size_t n = 0;
    bool woken = false, over = false;
    sqlite3_close(open_db(path));
    bk_ctl_init(&ctl);
    if (bk_capture_open(&options, &ctl, &capture, &err) != BK_OK)
        die("capture", err.text);
    bk_capture_state(capture, &state);
    uint64_t first = state.txid;
    snprintf(wal, sizeof wal, "%s-wal", path);
    int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    pid_t pid = start_writer(path, seconds, rate, c);
    for (unsigned again = 0; !over || again < 200;) {
        if (inotify_add_watch(watch, wal, IN_MODIFY) < 0 && errno != ENOENT)
            die(wal, strerror(errno));
        if (bk_capture_step(capture, woken, &again, &err) != BK_OK)
            die("step", err.text);
        int64_t now = bk_now();
        bk_capture_state(capture, &state);
        for (; n < state.txid - first && n < atomic_load(&c->count); n++)
            late[n] = now > c->at[n] ? now - c->at[n] : 0;
        over = over || waitpid(pid, NULL, WNOHANG) == pid;
        struct pollfd p = {.fd = watch, .events = POLLIN};
        woken = poll(&p, 1, (int)again) > 0;
        while (woken && read(watch, drain, sizeof drain) > 0)
            continue;
    }
    if (state.txid - first != atomic_load(&c->count))
        die("capture", "not every commit is a transaction");
    bk_capture_close(capture);
    bk_ctl_free(&ctl);
    close(watch);
    return n;
}

/* --- captured by somebody else --- */

typedef struct {
    char name[128];
    int fd;
} seen_file_t;

typedef struct {
    int64_t at;
    uint32_t file;
    uint64_t size;
} sight_t;

typedef struct {
    const char *dir;
    seen_file_t *files;
    sight_t *sights;
    size_t file_count, sight_count;
} watched_t;

static void see(watched_t *w, const char *name)
{
    char path[4300];
    struct stat st;
    size_t i = w->file_count;
    if (strstr(name, ".tx") == NULL)
        return;
    while (i > 0 && strcmp(w->files[i - 1].name, name) != 0)
        i--;
    if (i == 0) {
        snprintf(path, sizeof path, "%s/%s", w->dir, name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || w->file_count == FILES_MAX)
            return;
        bk_strcpy(w->files[w->file_count].name, sizeof w->files[0].name, name);
        w->files[w->file_count++].fd = fd;
        i = w->file_count;
    }
    if (fstat(w->files[i - 1].fd, &st) == 0 && w->sight_count < SIGHTS_MAX)
        w->sights[w->sight_count++] =
            (sight_t){.at = bk_now(), .file = (uint32_t)(i - 1), .size = (uint64_t)st.st_size};
}

/* When each transaction behind the first had been written whole. */
static size_t judge(const watched_t *w, uint64_t *first, commits_t *c, int64_t *late)
{
    size_t n = 0;
    for (uint32_t f = 0; f < w->file_count; f++) {
        uint8_t head[BK_TXLOG_HEADER > BK_TXLOG_HEAD ? BK_TXLOG_HEADER : BK_TXLOG_HEAD];
        uint64_t at = BK_TXLOG_HEADER;
        size_t sight = 0;
        if (pread(w->files[f].fd, head, BK_TXLOG_HEADER, 0) != (ssize_t)BK_TXLOG_HEADER)
            continue;
        uint32_t page_size = bk_get_u32(head + 24);
        bk_txlog_part_t part;
        while (pread(w->files[f].fd, head, BK_TXLOG_HEAD, (off_t)at) == (ssize_t)BK_TXLOG_HEAD &&
               bk_txlog_get_head(head, page_size, &part)) {
            at += BK_TXLOG_HEAD + 4ull * part.count + part.stored;
            if ((part.tx.flags & BK_TXLOG_MORE) != 0 || part.tx.txid <= *first)
                continue;
            while (sight < w->sight_count &&
                   (w->sights[sight].file != f || w->sights[sight].size < at))
                sight++;
            size_t commit = (size_t)(part.tx.txid - *first - 1);
            if (sight < w->sight_count && commit < atomic_load(&c->count)) {
                int64_t when = w->sights[sight].at;
                late[n++] = when > c->at[commit] ? when - c->at[commit] : 0;
            }
        }
    }
    return n;
}

static uint64_t last_transaction(const char *dir)
{
    uint64_t last = 0;
    DIR *stream = opendir(dir);
    if (stream == NULL)
        die(dir, strerror(errno));
    for (const struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        char path[4300];
        bk_txlog_t *log;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (strstr(entry->d_name, ".tx") == NULL || bk_txlog_open_file(path, &log, NULL) != BK_OK)
            continue;
        uint64_t end = bk_txlog_info(log)->first + bk_txlog_count(log) - 1;
        last = end > last ? end : last;
        bk_txlog_free(log);
    }
    closedir(stream);
    return last;
}

static size_t watch(const char *path, const char *dir, double seconds, uint64_t rate, commits_t *c,
                    int64_t *late)
{
    watched_t w = {.dir = dir,
                   .files = calloc(FILES_MAX, sizeof *w.files),
                   .sights = malloc(SIGHTS_MAX * sizeof *w.sights)};
    char events[65536] __attribute__((aligned(8)));
    sqlite3_close(open_db(path));
    sleep(3); /* until that is captured */
    uint64_t first = last_transaction(dir);
    int fd = inotify_init1(IN_CLOEXEC);
    if (inotify_add_watch(fd, dir, IN_MODIFY | IN_CREATE) < 0)
        die(dir, strerror(errno));
    pid_t pid = start_writer(path, seconds, rate, c);
    bool over = false;
    for (int64_t end = 0; end == 0 || bk_mono() < end;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ssize_t len = poll(&p, 1, 200) > 0 ? read(fd, events, sizeof events) : 0;
        for (char *e = events; e < events + len;) {
            const struct inotify_event *event = (const struct inotify_event *)(void *)e;
            see(&w, event->len > 0 ? event->name : "");
            e += sizeof *event + event->len;
        }
        over = over || waitpid(pid, NULL, WNOHANG) == pid;
        if (over && end == 0)
            end = bk_mono() + 3 * BK_SEC;
    }
    close(fd);
    return judge(&w, &first, c, late);
}

/* --- a large database --- */

static double memory_mib(void)
{
    char line[200];
    double kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "VmRSS: %lf", &kib) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return kib / 1024;
}

/* Pages that were never used, without a byte on the disk: reading them costs what others cost. */
static void make_large(const char *path, double gib)
{
    uint32_t pages = (uint32_t)(gib * 262144);
    uint8_t count[4] = {(uint8_t)(pages >> 24), (uint8_t)(pages >> 16), (uint8_t)(pages >> 8),
                        (uint8_t)pages};
    sqlite3 *db;
    unlink(path);
    if (sqlite3_open(path, &db) != SQLITE_OK)
        die(path, sqlite3_errmsg(db));
    run(db, "PRAGMA page_size=4096; CREATE TABLE first(v)");
    sqlite3_close(db);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || pwrite(fd, count, 4, 28) != 4 || ftruncate(fd, (off_t)pages * 4096) != 0)
        die(path, strerror(errno));
    close(fd);
}

/* What the size costs, at the beginning and afterwards. */
static void measure_large(const char *path, const char *dir, double gib)
{
    bk_err_t err = {0};
    bk_ctl_t ctl;
    bk_capture_t *capture;
    bk_capture_state_t state;
    bk_capture_options_t options = {.database = path, .dir = dir, .busy_ms = 5000};
    unsigned again;
    bk_ctl_init(&ctl);
    make_large(path, gib);
    sqlite3 *db = open_db(path);
    for (unsigned round = 0; round < 2; round++) {
        int64_t began = bk_mono();
        if (bk_capture_open(&options, &ctl, &capture, &err) != BK_OK)
            die("capture", err.text);
        printf("%s: %.2f s, memory %.1f MiB\n", round == 0 ? "first read" : "going on",
               (double)(bk_mono() - began) / 1e9, memory_mib());
        int64_t took = 0;
        bk_capture_state(capture, &state);
        uint64_t first = state.txid, before = state.bytes;
        for (unsigned i = 0; i < 1000; i++) {
            run(db, "UPDATE capload SET v = v + 1 WHERE id = abs(random()) % 5000 + 1");
            int64_t from = bk_mono();
            if (bk_capture_step(capture, true, &again, &err) != BK_OK)
                die("step", err.text);
            took += bk_mono() - from;
        }
        bk_capture_state(capture, &state);
        if (state.txid - first != 1000 || state.gaps != 0)
            die("capture", "not every commit is a transaction");
        printf("1000 commits: %.3f ms each, %.1f KiB each, memory %.1f MiB\n", (double)took / 1e9,
               (double)(state.bytes - before) / 1000 / 1024, memory_mib());
        bk_capture_close(capture);
    }
    sqlite3_close(db);
    bk_ctl_free(&ctl);
}

int main(int argc, char **argv)
{
    commits_t *c = mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int64_t *late = calloc(COMMITS_MAX, sizeof *late);
    if (c == MAP_FAILED || late == NULL)
        die("memory", strerror(errno));
    if (argc == 5 && strcmp(argv[1], "write") == 0) {
        write_load(argv[2], atof(argv[3]), strtoull(argv[4], NULL, 10), COMMITS_MAX, c);
        print_writer(c, atof(argv[3]));
    } else if (argc == 4 && strcmp(argv[1], "commits") == 0) {
        int64_t began = bk_mono();
        write_load(argv[2], 1e6, 0, strtoull(argv[3], NULL, 10), c);
        print_writer(c, (double)(bk_mono() - began) / 1e9);
    } else if (argc == 6 && strcmp(argv[1], "capture") == 0) {
        size_t n = capture(argv[2], argv[3], atof(argv[4]), strtoull(argv[5], NULL, 10), c, late);
        print_writer(c, atof(argv[4]));
        print_times("durable", late, n);
    } else if (argc == 6 && strcmp(argv[1], "watch") == 0) {
        size_t n = watch(argv[2], argv[3], atof(argv[4]), strtoull(argv[5], NULL, 10), c, late);
        print_writer(c, atof(argv[4]));
        print_times("written", late, n);
    } else if (argc == 5 && strcmp(argv[1], "large") == 0) {
        measure_large(argv[2], argv[3], atof(argv[4]));
    } else {
        fprintf(stderr,
                "capload write DB SECONDS RATE | commits DB COUNT | capture DB DIR SECONDS RATE | "
                "watch DB DIR SECONDS RATE | large DB DIR GIB\n");
        return 2;
    }
    return 0;
}
