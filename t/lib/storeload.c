/*
 * t/lib/storeload.c: publishes files and objects while each of its system calls fails once, and
 * prints TAP.  Runs below t/fault/failcall.c:
 *
 *   LD_PRELOAD=failcall.so storeload DIRECTORY
 *   storeload DIRECTORY OPERATION              once and without failures, "list" prints their names
 *
 * For each operation and each way to fail, the first call fails, then in a fresh state the second,
 * until the operation ends without having met the failure.  After each: it succeeded, or said what
 * failed; what it writes has its old or its new content, wholly; nothing else changed; no temporary
 * stayed (but when the process was killed); and doing it again succeeds.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/publish.h"
#include "base/str.h"
#include "storage/storage.h"

#define CALLS_MAX 400
#define OLD       "the content before"
#define KEPT      "not touched by anything here"

static void (*failcall_set)(const char *spec);
static long (*failcall_hits)(void);
static char root[4096];
static char new_content[300000]; /* enough to go past the page cache */
static char why[2048];           /* what a check found */

#define MUST(rc)                                                                                   \
    do {                                                                                           \
        if ((rc) != BK_OK) {                                                                       \
            printf("Bail out! line %d: %s\n", __LINE__, #rc);                                      \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static const char *below(const char *name)
{
    static char path[2][4200];
    static unsigned turn;
    turn ^= 1;
    snprintf(path[turn], sizeof path[turn], "%s/%s", root, name);
    return path[turn];
}

static bk_storage_t *open_storage(void)
{
    bk_storage_config_t config = {.driver = bk_strdup("local"), .name = bk_strdup("disk")};
    bk_storage_t *st = NULL;
    MUST(bk_storage_config_set(&config, "path", below("storage"), NULL));
    MUST(bk_storage_open(&config, &st, NULL));
    bk_storage_config_free(&config);
    return st;
}

/* --- the operations --- */

static bk_rc_t publish(bk_storage_t *st, bk_err_t *err)
{
    (void)st;
    return bk_publish_bytes(AT_FDCWD, below("storage/object"), 0600, new_content,
                            sizeof new_content, false, err);
}

static bk_rc_t publish_exclusive(bk_storage_t *st, bk_err_t *err)
{
    (void)st;
    return bk_publish_bytes(AT_FDCWD, below("storage/object"), 0600, new_content,
                            sizeof new_content, true, err);
}

static bk_rc_t put(bk_storage_t *st, bk_err_t *err)
{
    return bk_storage_put(st, "object", new_content, sizeof new_content, false, NULL, err);
}

static bk_rc_t put_exclusive(bk_storage_t *st, bk_err_t *err)
{
    return bk_storage_put(st, "deep/er/object", new_content, sizeof new_content, true, NULL, err);
}

static bk_rc_t put_file(bk_storage_t *st, bk_err_t *err)
{
    return bk_storage_put_file(st, "deep/er/object", below("spooled"), NULL, err);
}

static bk_rc_t mkdirs(bk_storage_t *st, bk_err_t *err)
{
    (void)st;
    return bk_mkdirs(below("storage/deep/er/still"), 0700, err);
}

static bk_rc_t remove_object(bk_storage_t *st, bk_err_t *err)
{
    return bk_storage_remove(st, "object", NULL, err);
}

typedef enum { REPLACES, CREATES, REMOVES, MAKES } effect_t;

typedef struct {
    const char *name;
    bk_rc_t (*run)(bk_storage_t *st, bk_err_t *err);
    const char *object;
    effect_t effect;
    bool no_storage;  /* the storage's own directory is to be made, too */
    const char *also; /* rules for what fails each time */
} operation_t;

/* Where links, the kernel's copy or an exclusive rename do not exist, another way is taken. */
static const operation_t operations[] = {
    {"publish over a file", publish, "storage/object", REPLACES, false, ""},
    {"publish a new file", publish_exclusive, "storage/object", CREATES, false, ""},
    {"publish by link", publish_exclusive, "storage/object", CREATES, false, "rename:0:EINVAL "},
    {"put over an object", put, "storage/object", REPLACES, false, ""},
    {"put a new object", put_exclusive, "storage/deep/er/object", CREATES, false, ""},
    {"put the first object", put_exclusive, "storage/deep/er/object", CREATES, true, ""},
    {"link a file", put_file, "storage/deep/er/object", CREATES, false, ""},
    {"link the first file", put_file, "storage/deep/er/object", CREATES, true, ""},
    {"copy a file", put_file, "storage/deep/er/object", CREATES, false, "link:0:EXDEV "},
    {"copy by read and write", put_file, "storage/deep/er/object", CREATES, false,
     "link:0:EPERM copy:0:ENOSYS "},
    {"make directories", mkdirs, "storage/deep/er/still", MAKES, false, ""},
    {"remove an object", remove_object, "storage/object", REMOVES, false, ""},
};

static const struct {
    const char *name, *text; /* text: in the message */
    bk_rc_t rc;
    bool survived; /* no reason to fail */
} failures[] = {{"EIO", "Input/output error", BK_STORAGE, false},
                {"ENOSPC", "No space left on device", BK_NO_SPACE, false},
                {"EINTR", "", BK_OK, true},
                {"short", "", BK_OK, true},
                {"kill", "", BK_OK, false}};

/* --- the state --- */

static void fresh(const operation_t *op)
{
    MUST(bk_remove_tree(root, false, NULL));
    MUST(bk_publish_bytes(AT_FDCWD, below("spooled"), 0600, new_content, sizeof new_content, false,
                          NULL));
    if (op->no_storage)
        return;
    MUST(bk_mkdirs(below("storage"), 0700, NULL));
    MUST(bk_publish_bytes(AT_FDCWD, below("storage/kept"), 0600, KEPT, sizeof KEPT, false, NULL));
    if (op->effect == REPLACES || op->effect == REMOVES)
        MUST(bk_publish_bytes(AT_FDCWD, below(op->object), 0600, OLD, sizeof OLD, false, NULL));
}

static bool holds(const char *name, const void *content, size_t len)
{
    bk_buf_t out;
    bk_buf_init(&out, 1 << 20);
    bool same = bk_read_file(AT_FDCWD, below(name), &out, NULL) == BK_OK && out.len == len &&
                memcmp(out.data, content, len) == 0;
    bk_buf_free(&out);
    return same;
}

static bool is_there(const char *name)
{
    struct stat st;
    return lstat(below(name), &st) == 0;
}

static unsigned temporaries(const char *dir)
{
    unsigned count = 0;
    DIR *d = opendir(dir);
    struct dirent *entry;
    while (d != NULL && (entry = readdir(d)) != NULL) {
        char path[4400];
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (strncmp(entry->d_name, ".tmp-", 5) == 0)
            count++;
        else if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
            count += temporaries(path);
    }
    if (d != NULL)
        closedir(d);
    return count;
}

static bool is_done(const operation_t *op)
{
    switch (op->effect) {
    case REPLACES:
    case CREATES:
        return holds(op->object, new_content, sizeof new_content);
    case REMOVES:
        return !is_there(op->object);
    case MAKES:
        return is_there(op->object);
    }
    return false;
}

static bool is_as_before(const operation_t *op)
{
    if (op->effect == REPLACES || op->effect == REMOVES)
        return holds(op->object, OLD, sizeof OLD);
    return !is_there(op->object);
}

/* Everything but how the call answered. */
static bool is_whole(const operation_t *op, bool must_be_done, unsigned temporaries_max)
{
    if (!is_done(op) && (must_be_done || !is_as_before(op))) {
        snprintf(why, sizeof why, "%s is neither old nor new", op->object);
        return false;
    }
    if (!op->no_storage && !holds("storage/kept", KEPT, sizeof KEPT)) {
        snprintf(why, sizeof why, "another file changed");
        return false;
    }
    if (!holds("spooled", new_content, sizeof new_content)) {
        snprintf(why, sizeof why, "the file to publish changed");
        return false;
    }
    if (temporaries(root) > temporaries_max) {
        snprintf(why, sizeof why, "a temporary stayed");
        return false;
    }
    return true;
}

static bool answered_well(size_t f, bk_rc_t rc, const bk_err_t *err)
{
    if (rc == BK_OK)
        return true;
    bk_rc_t wanted = failures[f].rc;
    if (!failures[f].survived && strstr(err->text, failures[f].text) != NULL && err->rc == rc &&
        (rc == wanted || (wanted == BK_STORAGE && rc == BK_IO)))
        return true;
    snprintf(why, sizeof why, "answered %s: %s", bk_rc_code(rc), err->text);
    return false;
}

/* 1: as it should be; 0: not; -1: the operation has fewer calls. */
static int one(const operation_t *op, size_t f, unsigned n)
{
    char spec[128];
    bool killed = strcmp(failures[f].name, "kill") == 0;
    bk_err_t err = {0};
    fresh(op);
    snprintf(spec, sizeof spec, "%sall:%u:%s", op->also, n, failures[f].name);
    pid_t pid = killed ? fork() : 0;
    if (pid < 0)
        return 0;
    if (killed && pid > 0) {
        int status;
        if (waitpid(pid, &status, 0) != pid)
            return 0;
        if (WIFEXITED(status))
            return is_whole(op, true, 0) ? -1 : 0;
        if (!is_whole(op, false, 1))
            return 0;
    } else {
        bk_storage_t *st = open_storage();
        failcall_set(spec);
        bk_rc_t rc = op->run(st, &err);
        failcall_set(NULL);
        if (killed)
            _exit(0);
        bk_storage_close(st);
        if (!answered_well(f, rc, &err) || !is_whole(op, rc == BK_OK, 0))
            return 0;
        if (failcall_hits() == 0)
            return -1;
    }
    bk_storage_t *st = open_storage();
    bk_rc_t rc = op->run(st, &err);
    bk_storage_close(st);
    if (rc != BK_OK && !(rc == BK_EXISTS && is_done(op))) {
        snprintf(why, sizeof why, "doing it again: %s", err.text);
        return 0;
    }
    return is_whole(op, true, 1) ? 1 : 0;
}

static bool sweep(const operation_t *op, size_t f, unsigned *points)
{
    for (unsigned n = 1; n <= CALLS_MAX; n++) {
        int ended = one(op, f, n);
        if (ended < 0)
            return true;
        if (ended == 0) {
            printf("# %s: %s, call %u: %s\n", op->name, failures[f].name, n, why);
            return false;
        }
        ++*points;
    }
    printf("# %s: no end after %u calls\n", op->name, CALLS_MAX);
    return false;
}

/* For whoever watches the calls themselves.  The marks are seen among them. */
static int only(const char *name)
{
    bk_err_t err = {0};
    bk_rc_t rc = BK_NOT_FOUND;
    for (size_t o = 0; o < sizeof operations / sizeof *operations; o++) {
        if (strcmp(name, "list") == 0)
            printf("%s\n", operations[o].name);
        if (strcmp(name, operations[o].name) != 0)
            continue;
        fresh(&operations[o]);
        bk_storage_t *st = open_storage();
        access("/begin", F_OK);
        rc = operations[o].run(st, &err);
        access("/end", F_OK);
        bk_storage_close(st);
        if (rc != BK_OK)
            fprintf(stderr, "%s: %s\n", name, err.text);
    }
    return rc == BK_OK || strcmp(name, "list") == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    unsigned tests = 0, failed = 0;
    void *set = dlsym(RTLD_DEFAULT, "failcall_set"), *count = dlsym(RTLD_DEFAULT, "failcall_hits");
    if (argc < 2 || argc > 3 || (argc == 2 && (set == NULL || count == NULL))) {
        fprintf(stderr, "usage: [LD_PRELOAD=failcall.so] storeload DIRECTORY [OPERATION]\n");
        return 2;
    }
    snprintf(root, sizeof root, "%s", argv[1]);
    for (size_t i = 0; i < sizeof new_content; i++)
        new_content[i] = (char)(i * 2654435761u >> 13);
    if (argc == 3)
        return only(argv[2]);
    memcpy(&failcall_set, &set, sizeof set);
    memcpy(&failcall_hits, &count, sizeof count);
    for (size_t o = 0; o < sizeof operations / sizeof *operations; o++) {
        for (size_t f = 0; f < sizeof failures / sizeof *failures; f++) {
            unsigned points = 0;
            bool well = sweep(&operations[o], f, &points);
            failed += !well;
            printf("%sok %u - %s: %s at each of %u calls\n", well ? "" : "not ", ++tests,
                   operations[o].name, failures[f].name, points);
            fflush(stdout);
        }
    }
    printf("1..%u\n", tests);
    return failed > 0;
}
