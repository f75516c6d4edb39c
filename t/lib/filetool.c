/*
 * t/lib/filetool.c: backup and restore of one directory without an engine, for measuring and for tests that kill it.
 *
 *   filetool [-j LANES] [-p] backup REPO DIR          -p: compare with the newest backup (incremental)
 *   filetool [-j LANES] [-n] [-o POLICY] [-d] restore REPO DIR
 *
 * REPO is a directory; the repository in it is not encrypted unless KEY=1 is in the environment (key of 32 times 7).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "files/backup.h"
#include "files/restore.h"

typedef struct {
    const char *repo_dir, *dir, *command;
    bool incremental, dry_run, delete_extra;
    bk_overwrite_t overwrite;
    bk_ctl_t ctl;
} tool_t;

static bk_rc_t open_repo(const tool_t *tool, bk_storage_t **storage, bk_repo_t **repo,
                         bk_err_t *err)
{
    static char cache[512], spool[512];
    static const uint8_t key[32] = {7, 7, 7, 7};
    char url[512];
    bk_storage_config_t config = {0};
    bool encrypted = getenv("KEY") != NULL;
    bk_fmt(cache, sizeof cache, "%s.cache", tool->repo_dir);
    bk_fmt(spool, sizeof spool, "%s.spool", tool->repo_dir);
    bk_fmt(url, sizeof url, "file://%s", tool->repo_dir);
    mkdir(cache, 0700);
    mkdir(spool, 0700);
    bk_rc_t rc = bk_storage_config_url(&config, url, err);
    if (rc == BK_OK)
        rc = bk_storage_open(&config, storage, err);
    bk_storage_config_free(&config);
    if (rc != BK_OK)
        return rc;
    bk_repo_options_t options = {.storage = *storage,
                                 .cache_dir = cache,
                                 .spool_dir = spool,
                                 .create = true,
                                 .plain = !encrypted,
                                 .label = "tool"};
    if (encrypted)
        options.secret.key = key;
    return bk_repo_open(&options, NULL, repo, err);
}

static void show_notes(tool_t *tool)
{
    for (unsigned i = 0; i < tool->ctl.notes_kept; i++)
        printf("note: %s\n", tool->ctl.notes[i]);
}

static bk_rc_t backup(tool_t *tool, bk_repo_t *repo, bk_snapshot_list_t *list, bk_team_t *team,
                      bk_err_t *err)
{
    bk_session_t *session = NULL;
    bk_session_options_t how = {.host = "tool", .compression = {BK_CODEC_ZSTD, 3}, .upload = true};
    bk_patterns_t none = {0};
    const bk_snapshot_t *last = NULL;
    bk_snapshot_tree_t tree = {0};
    bk_files_stats_t stats;
    bk_snapshot_t snapshot;
    bk_buf_t body;
    bk_files_options_t options = {
        .name = "tool", .path = tool->dir, .match = &none, .exclude = &none, .xattrs = true};
    if (tool->incremental && bk_snapshot_find(list, "latest", &last, NULL) == BK_OK)
        options.previous = &last->trees[0];
    bk_rc_t rc = bk_session_begin(repo, &how, &tool->ctl, &session, err);
    if (rc != BK_OK)
        return rc;
    json_t *unreadable = json_array();
    rc = bk_files_backup(session, &options, team, &tree, &stats, unreadable, &tool->ctl, err);
    if (rc != BK_OK) {
        bk_session_abort(session);
        json_decref(unreadable);
        return rc;
    }
    bk_snapshot_init(&snapshot);
    char stamp[BK_TIME_TEXT];
    bk_time_stamp(stamp, bk_now());
    bk_fmt(snapshot.backup_id, sizeof snapshot.backup_id, "full_%s_%zu", stamp, list->count + 2);
    snapshot.set = bk_strdup("tool");
    snapshot.host = bk_strdup("tool");
    bk_strcpy(snapshot.kind, sizeof snapshot.kind, "full");
    snapshot.started = snapshot.completed = snapshot.instant = bk_now();
    snapshot.trees = calloc(1, sizeof *snapshot.trees);
    snapshot.tree_count = 1;
    snapshot.trees[0] = tree;
    snapshot.trees[0].name = bk_strdup("files");
    bk_buf_init(&body, 16u << 20);
    rc = bk_snapshot_encode(&snapshot, &body, err);
    if (rc == BK_OK)
        rc = bk_session_commit(session, snapshot.backup_id, body.data, body.len, err);
    char hex[BK_ID_HEX];
    bk_id_hex(hex, &tree.root);
    printf("tree %s files %llu bytes %llu new %llu changed %llu unmodified %llu removed %llu read "
           "%llu "
           "dirs %llu unreadable %llu\n",
           hex, (unsigned long long)stats.files, (unsigned long long)stats.bytes,
           (unsigned long long)stats.files_new, (unsigned long long)stats.files_changed,
           (unsigned long long)stats.files_unmodified, (unsigned long long)stats.files_removed,
           (unsigned long long)stats.bytes_read, (unsigned long long)stats.dirs,
           (unsigned long long)stats.unreadable);
    bk_buf_free(&body);
    bk_snapshot_free(&snapshot);
    json_decref(unreadable);
    return rc;
}

#ifndef NO_RESTORE
static bk_rc_t restore(tool_t *tool, bk_repo_t *repo, bk_snapshot_list_t *list, bk_team_t *team,
                       bk_err_t *err)
{
    const bk_snapshot_t *last = NULL;
    bk_root_t *target = NULL;
    bk_patterns_t none = {0};
    bk_restore_stats_t stats = {0};
    char job[64];
    bk_rc_t rc = bk_snapshot_find(list, "latest", &last, err);
    if (rc == BK_OK)
        rc = bk_root_open(tool->dir, true, &target, err);
    if (rc != BK_OK)
        return rc;
    bk_fmt(job, sizeof job, "tool%d", (int)getpid());
    bk_restore_options_t options = {.tree = &last->trees[0],
                                    .target = target,
                                    .subdir = "",
                                    .patterns = &none,
                                    .overwrite = tool->overwrite,
                                    .delete_extra = tool->delete_extra,
                                    .owners = true,
                                    .dry_run = tool->dry_run,
                                    .job = job};
    json_t *plan = json_array(), *failed = json_array();
    rc = bk_files_restore(repo, &options, team, &stats, plan, failed, &tool->ctl, err);
    printf("files %llu written %llu unchanged %llu skipped %llu renamed %llu deleted %llu failed "
           "%llu\n",
           (unsigned long long)stats.files, (unsigned long long)stats.written,
           (unsigned long long)stats.unchanged, (unsigned long long)stats.skipped,
           (unsigned long long)stats.renamed, (unsigned long long)stats.deleted,
           (unsigned long long)stats.failed);
    if (json_array_size(failed) > 0)
        json_dumpf(failed, stdout, JSON_INDENT(1));
    if (tool->dry_run)
        json_dumpf(plan, stdout, JSON_INDENT(1));
    json_decref(plan);
    json_decref(failed);
    bk_root_close(target);
    return rc;
}
#endif

static bk_rc_t work(bk_team_t *team, void *arg, bk_err_t *err)
{
    tool_t *tool = arg;
    bk_storage_t *storage = NULL;
    bk_repo_t *repo = NULL;
    bk_snapshot_list_t list = {0};
    bk_rc_t rc = open_repo(tool, &storage, &repo, err);
    if (rc == BK_OK)
        rc = bk_snapshot_list(repo, NULL, &tool->ctl, &list, err);
    if (rc == BK_OK && strcmp(tool->command, "backup") == 0)
        rc = backup(tool, repo, &list, team, err);
#ifndef NO_RESTORE
    else if (rc == BK_OK)
        rc = restore(tool, repo, &list, team, err);
#endif
    show_notes(tool);
    bk_snapshot_list_free(&list);
    bk_repo_close(repo);
    bk_storage_close(storage);
    return rc;
}

int main(int argc, char **argv)
{
    static const char *const policies[] = {"always", "if-newer", "never", "rename"};
    tool_t tool = {0};
    bk_err_t err = {0};
    unsigned lanes = 2;
    int option;
    while ((option = getopt(argc, argv, "j:pndo:")) != -1) {
        if (option == 'j')
            lanes = (unsigned)strtoul(optarg, NULL, 10);
        else if (option == 'p')
            tool.incremental = true;
        else if (option == 'n')
            tool.dry_run = true;
        else if (option == 'd')
            tool.delete_extra = true;
        else if (option == 'o')
            for (unsigned i = 0; i < 4; i++)
                if (strcmp(optarg, policies[i]) == 0)
                    tool.overwrite = (bk_overwrite_t)i;
    }
    if (argc - optind != 3) {
        fprintf(stderr,
                "usage: filetool [-j lanes] [-p] [-n] [-d] [-o policy] backup|restore REPO DIR\n");
        return 2;
    }
    tool.command = argv[optind];
    tool.repo_dir = argv[optind + 1];
    tool.dir = argv[optind + 2];
    bk_ctl_init(&tool.ctl);
    int64_t start = bk_mono();
    bk_rc_t rc = bk_team_run(lanes, work, &tool, &err);
    double seconds = (double)(bk_mono() - start) / 1e9;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("%s: %.2f s, user %.2f s, system %.2f s, %ld MiB\n", tool.command, seconds,
           (double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec / 1e6,
           (double)usage.ru_stime.tv_sec + (double)usage.ru_stime.tv_usec / 1e6,
           usage.ru_maxrss / 1024);
    bk_ctl_free(&tool.ctl);
    if (rc != BK_OK)
        fprintf(stderr, "%s\n", err.text);
    return bk_rc_exit(rc);
}
