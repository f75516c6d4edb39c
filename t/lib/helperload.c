/*
 * t/lib/helperload.c: how many operations a second one worker's thread gets from the privileged helper.
 *
 *   helperload [FILES [SECONDS]]    as root: FILES empty files in a temporary directory, then for SECONDS each: one STAT a
 *                                   request, STATs in batches, OPENs in batches, CREATE with META and RENAME; and fstatat
 *                                   by this process itself, to compare
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "helper/client.h"
#include "helper/talk.h"
#include "helper/wire.h"

#define MOST  100000u
#define BATCH 64u

static char (*names)[16];
static unsigned files = 10000;
static double seconds = 2;

static void die(const char *what, const bk_err_t *err)
{
    fprintf(stderr, "helperload: %s: %s\n", what, err != NULL ? err->text : "failed");
    exit(1);
}

/* One conversation at a time is enough here. */
static void agent(int broker, const char *root)
{
    bk_wire_message_t *message = calloc(1, sizeof *message);
    bk_wire_root_t *table = calloc(1, sizeof *table);
    bk_roots_t *roots;
    uint32_t which;
    const char *why;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (message == NULL || table == NULL)
        _exit(1);
    table->flags = BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE;
    table->len = (uint32_t)strlen(root);
    memcpy(table->path, root, table->len);
    if (bk_roots_parse(table, sizeof *table, 1, &roots, &which, &why) != 0 ||
        bk_wire_wait(broker, POLLIN, 10000) <= 0 ||
        bk_wire_receive(broker, message) != BK_WIRE_OK || message->fd_count != 1)
        _exit(1);
    _exit(bk_talk_run(message->fds[0], BK_WIRE_FOR_FILES, roots, 1));
}

static void run(bk_helper_root_t *root, const char *what, bk_wire_call_t call, unsigned batch)
{
    bk_helper_op_t ops[BATCH];
    bk_helper_result_t results[BATCH];
    bk_err_t err = {0};
    unsigned at = 0;
    uint64_t done = 0;
    int64_t start = bk_mono(), until = start + (int64_t)(seconds * BK_SEC);
    while (bk_mono() < until) {
        for (unsigned i = 0; i < batch; i++, at = (at + 1) % files)
            ops[i] = (bk_helper_op_t){.call = call, .name = names[at]};
        if (bk_helper_at(root, "", 0, ops, batch, results, NULL, &err) != BK_OK)
            die(what, &err);
        for (unsigned i = 0; i < batch; i++) {
            if (results[i].error != 0)
                die(what, NULL);
            if (results[i].fd >= 0)
                close(results[i].fd);
        }
        done += batch;
    }
    printf("%-28s %10.0f /s\n", what, (double)done * 1e9 / (double)(bk_mono() - start));
}

static void place(bk_helper_root_t *root)
{
    bk_helper_result_t results[2];
    bk_err_t err = {0};
    uint64_t done = 0;
    int64_t start = bk_mono(), until = start + (int64_t)(seconds * BK_SEC);
    while (bk_mono() < until) {
        bk_helper_op_t make = {.call = BK_WIRE_CREATE, .name = ".ngx-backup-t"};
        bk_helper_op_t finish[2] = {
            {.call = BK_WIRE_META,
             .name = ".ngx-backup-t",
             .set = BK_WIRE_SET_OWNER | BK_WIRE_SET_MODE | BK_WIRE_SET_MTIME | BK_WIRE_SET_FRESH,
             .uid = 1,
             .gid = 1,
             .mode = 0640,
             .mtime = {1000000000, 0}},
            {.call = BK_WIRE_RENAME, .name = ".ngx-backup-t", .name2 = names[done % files]}};
        if (bk_helper_at(root, "", 0, &make, 1, results, NULL, &err) != BK_OK ||
            results[0].error != 0)
            die("create", &err);
        close(results[0].fd);
        if (bk_helper_at(root, "", 0, finish, 2, results, NULL, &err) != BK_OK ||
            results[0].error != 0 || results[1].error != 0)
            die("finish", &err);
        done++;
    }
    printf("%-28s %10.0f files/s\n", "CREATE, META + RENAME",
           (double)done * 1e9 / (double)(bk_mono() - start));
}

static void own(const char *path)
{
    struct stat st;
    unsigned at = 0;
    uint64_t done = 0;
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int64_t start = bk_mono(), until = start + (int64_t)(seconds * BK_SEC);
    while (bk_mono() < until) {
        for (unsigned i = 0; i < BATCH; i++, at = (at + 1) % files, done++)
            if (fstatat(dir, names[at], &st, AT_SYMLINK_NOFOLLOW) != 0)
                die("fstatat", NULL);
    }
    printf("%-28s %10.0f /s\n", "fstatat, without the helper",
           (double)done * 1e9 / (double)(bk_mono() - start));
    close(dir);
}

int main(int argc, char **argv)
{
    char dir[] = "/tmp/ngx-backup-load-XXXXXX";
    int pair[2];
    bk_err_t err = {0};
    bk_helper_t *helper;
    bk_helper_root_t *root;
    if (argc > 1)
        files = (unsigned)strtoul(argv[1], NULL, 10);
    if (argc > 2)
        seconds = strtod(argv[2], NULL);
    if (files == 0 || files > MOST || geteuid() != 0 || mkdtemp(dir) == NULL ||
        (names = calloc(files, sizeof *names)) == NULL)
        die("usage: helperload [FILES [SECONDS]], as root", NULL);
    for (unsigned i = 0; i < files; i++) {
        char path[64];
        snprintf(names[i], sizeof names[i], "file-%u", i);
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        die("socketpair", NULL);
    pid_t pid = fork();
    if (pid == 0)
        agent(pair[1], dir);
    close(pair[1]);
    if (bk_helper_new(pair[0], &helper, &err) != BK_OK ||
        bk_helper_root_open(helper, dir, BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE, &root, NULL, &err) !=
            BK_OK)
        die("begin", &err);
    run(root, "STAT, one a request", BK_WIRE_STAT, 1);
    run(root, "STAT, 64 a request", BK_WIRE_STAT, BATCH);
    run(root, "OPEN, one a request", BK_WIRE_OPEN, 1);
    run(root, "OPEN, 64 a request", BK_WIRE_OPEN, BATCH);
    place(root);
    own(dir);
    bk_helper_root_close(root);
    bk_helper_free(helper);
    waitpid(pid, NULL, 0);
    free(names);
    return bk_remove_tree(dir, true, &err) == BK_OK ? 0 : 1;
}
