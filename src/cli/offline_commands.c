/*
 * cli/offline_commands.c: list, show, verify and recover on a storage alone.  The answers have the
 * members of REST's.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/str.h"
#include "cli/offline.h"
#include "engine/engine.h"
#include "engine/recover.h"
#include "repo/snapshot.h"
#include "repo/verify.h"

/* As REST gives it. */
static json_t *describe(const cli_t *cli, const bk_snapshot_t *snapshot)
{
    json_t *backup = bk_describe_snapshot(snapshot, cli->value[OPT_STORAGE]);
    json_object_del(backup, "completed_ns");
    return backup;
}

typedef int (*snapshots_fn)(const cli_t *cli, const bk_snapshot_list_t *list, bk_err_t *err);

static int with_snapshots(const cli_t *cli, snapshots_fn fn)
{
    cli_offline_t offline;
    bk_snapshot_list_t list = {0};
    bk_err_t err = {0};
    bk_ctl_t ctl;
    int code;

    if (cli_offline_open(cli, &offline, &err) != BK_OK)
        return cli_fail(&err);
    bk_ctl_init(&ctl);
    cli_interrupts(&ctl);
    if (bk_snapshot_list(offline.repo, NULL, &ctl, &list, &err) != BK_OK) {
        code = cli_fail(&err);
    } else {
        code = fn(cli, &list, &err);
        int notes = cli_print_notes(&ctl);
        if (code == EXIT_OK)
            code = notes;
    }
    bk_snapshot_list_free(&list);
    cli_interrupts(NULL);
    bk_ctl_free(&ctl);
    cli_offline_close(&offline);
    return code;
}

static bool is_listed(const cli_t *cli, const bk_snapshot_t *snapshot)
{
    size_t n;
    json_t *tag;
    bool tagged = cli->value[OPT_TAG] == NULL;
    json_array_foreach(snapshot->tags, n, tag)
    {
        tagged = tagged || strcmp(json_string_value(tag), cli->value[OPT_TAG]) == 0;
    }
    return tagged &&
           (cli->value[OPT_SET] == NULL || strcmp(snapshot->set, cli->value[OPT_SET]) == 0);
}

/* The newest first, as through nginx. */
static int list_snapshots(const cli_t *cli, const bk_snapshot_list_t *list, bk_err_t *err)
{
    json_t *backups = json_array();
    uint64_t most = 50, total = 0;
    (void)err;
    if (cli_number(cli, OPT_LIMIT, UINT32_MAX, &most) != EXIT_OK) {
        json_decref(backups);
        return EXIT_USAGE;
    }
    for (size_t i = list->count; i-- > 0;)
        if (is_listed(cli, &list->items[i]) && ++total <= most)
            json_array_append_new(backups, describe(cli, &list->items[i]));
    json_t *answer = json_pack("{sI so}", "total", (json_int_t)total, "backups", backups);
    if (cli->value[OPT_JSON] != NULL)
        cli_print_json(answer);
    else
        cli_print_backups(answer);
    json_decref(answer);
    return EXIT_OK;
}

static int show_snapshot(const cli_t *cli, const bk_snapshot_list_t *list, bk_err_t *err)
{
    const bk_snapshot_t *snapshot;
    if (bk_snapshot_find(list, cli->argument[0], &snapshot, err) != BK_OK)
        return cli_fail(err);
    json_t *answer = describe(cli, snapshot);
    if (cli->value[OPT_JSON] != NULL)
        cli_print_json(answer);
    else
        cli_print_backup(answer);
    json_decref(answer);
    return EXIT_OK;
}

int cli_offline_list(const cli_t *cli)
{
    return with_snapshots(cli, list_snapshots);
}

int cli_offline_show(const cli_t *cli)
{
    return with_snapshots(cli, show_snapshot);
}

typedef struct {
    bk_repo_t *repo;
    unsigned level;
    bk_verify_result_t result;
    bk_ctl_t *ctl;
} verify_t;

static void print_finding(void *arg, const char *object, const char *line)
{
    (void)arg;
    (void)object;
    printf("damaged: %s\n", line);
}

static bk_rc_t verify_main(bk_team_t *team, void *arg, bk_err_t *err)
{
    verify_t *verify = arg;
    return bk_verify(verify->repo, verify->level, team, print_finding, NULL, &verify->result,
                     verify->ctl, err);
}

int cli_offline_verify(const cli_t *cli)
{
    const char *level = cli->value[OPT_LEVEL] != NULL ? cli->value[OPT_LEVEL] : "1";
    cli_offline_t offline;
    bk_err_t err = {0};
    bk_ctl_t ctl;
    int code;

    if (strlen(level) != 1 || *level < '0' || *level > '2')
        return cli_usage("--level is 0, 1 or 2 without nginx");
    if (cli_offline_open(cli, &offline, &err) != BK_OK)
        return cli_fail(&err);
    bk_ctl_init(&ctl);
    cli_interrupts(&ctl);
    verify_t verify = {.repo = offline.repo, .level = (unsigned)(*level - '0'), .ctl = &ctl};
    if (bk_team_run(CLI_LANES, verify_main, &verify, &err) != BK_OK) {
        code = cli_fail(&err);
    } else {
        char size[16];
        cli_size(size, (double)verify.result.bytes);
        printf("%" PRIu64 " objects, %s, %" PRIu64 " chunks looked at: %" PRIu64 " findings\n",
               verify.result.objects, size, verify.result.chunks, verify.result.findings);
        code = cli_print_notes(&ctl);
        if (verify.result.findings > 0)
            code = verify.result.findings > verify.result.harmless ? EXIT_FAILED : EXIT_WARNING;
    }
    cli_interrupts(NULL);
    bk_ctl_free(&ctl);
    cli_offline_close(&offline);
    return code;
}

/* --- recover --- */

typedef struct {
    const cli_t *cli;
    cli_offline_t *offline;
    bk_recover_options_t options;
    bk_root_t *target;
    const char *below; /* of target; "" but in a dry run into what is not there yet */
    json_t *result;
    bk_ctl_t *ctl;
} recover_t;

static bk_rc_t recover_main(bk_team_t *team, void *arg, bk_err_t *err)
{
    recover_t *recover = arg;
    return bk_recover_into(recover->offline->repo, &recover->options, recover->target,
                           recover->below, team, recover->result, recover->ctl, err);
}

static int print_recovery(recover_t *recover, const bk_point_t *point)
{
    bool incomplete = json_is_true(json_object_get(recover->result, "incomplete"));
    bk_point_describe(point, recover->result);
    if (recover->cli->value[OPT_JSON] != NULL)
        cli_print_json(recover->result);
    else
        cli_print_plan(recover->result);
    int notes = cli_print_notes(recover->ctl);
    return incomplete ? EXIT_WARNING : notes;
}

static int recover_point(recover_t *recover, bk_err_t *err)
{
    const cli_t *cli = recover->cli;
    bk_recover_options_t *o = &recover->options;
    bk_point_wish_t wish = {.databases = o->databases, .files = o->files};
    bk_point_t point = {0};
    int code = cli_offline_point(cli, &wish);
    if (code != EXIT_OK)
        return code;
    bk_rc_t rc = bk_point_find(recover->offline->repo, &wish, recover->ctl, &point, err);
    o->point = &point;
    o->snapshot = point.snapshot;
    if (rc == BK_OK)
        rc = cli->value[OPT_DRY_RUN] != NULL
                 ? bk_root_open_nearest(cli->value[OPT_TARGET], NULL, recover->ctl,
                                        &recover->target, &recover->below, err)
                 : bk_root_open(cli->value[OPT_TARGET], true, &recover->target, err);
    if (rc == BK_OK)
        rc = cli_offline_run(cli, recover->ctl, recover_main, recover, err);
    code = rc == BK_OK ? print_recovery(recover, &point) : cli_fail(err);
    bk_root_close(recover->target);
    bk_point_close(&point);
    return code;
}

/* The options of the command line as those of a recovery; a usage message otherwise. */
static int read_recovery(const cli_t *cli, bk_recover_options_t *o, bk_patterns_t *patterns)
{
    const char *type = cli_recovery_type(cli);
    bk_err_t err = {0};
    size_t i;
    json_t *item;
    if (cli->value[OPT_TARGET] == NULL)
        return cli_usage(
            "recover without nginx needs --target DIR: it never replaces an application's files");
    if (cli->values[OPT_TABLE] != NULL)
        return cli_usage("--table puts tables back into the application's database, through nginx: "
                         "without it recover the whole database, or ask it with query");
    if (cli->value[OPT_TARGET][0] != '/')
        return cli_usage("--target must be an absolute path");
    if (strcmp(type, "full") != 0 && strcmp(type, "database") != 0 && strcmp(type, "files") != 0)
        return cli_usage("--type is database, files or full");
    if (strcmp(type, "files") != 0 &&
        (cli->values[OPT_PATTERN] != NULL || cli->values[OPT_PATH] != NULL))
        return cli_usage("--pattern and --path choose files: leave out --type %s", type);
    if (cli->value[OPT_OVERWRITE] != NULL &&
        !bk_overwrite_parse(cli->value[OPT_OVERWRITE], &o->overwrite))
        return cli_usage("--overwrite is always, if-newer, never or rename");
    json_array_foreach(cli->values[OPT_PATTERN], i,
                       item) if (bk_patterns_add(patterns, json_string_value(item), &err) !=
                                 BK_OK) return cli_fail(&err);
    o->databases = strcmp(type, "files") != 0;
    o->files = strcmp(type, "database") != 0;
    o->database = cli->value[OPT_DATABASE];
    o->patterns = patterns;
    o->paths = cli->values[OPT_PATH];
    o->delete_extra = cli->value[OPT_DELETE_EXTRA] != NULL;
    o->dry_run = cli->value[OPT_DRY_RUN] != NULL;
    o->owners = geteuid() == 0;
    o->check = true;
    o->job = "recovery";
    return EXIT_OK;
}

int cli_offline_recover(const cli_t *cli)
{
    cli_offline_t offline;
    bk_patterns_t patterns = {0};
    bk_err_t err = {0};
    bk_ctl_t ctl;
    recover_t recover = {.cli = cli, .offline = &offline, .below = "", .ctl = &ctl};
    int code = read_recovery(cli, &recover.options, &patterns);
    if (code == EXIT_OK && cli_offline_open(cli, &offline, &err) != BK_OK) {
        code = cli_fail(&err);
    } else if (code == EXIT_OK) {
        recover.result = json_object();
        bk_ctl_init(&ctl);
        cli_interrupts(&ctl);
        code = recover_point(&recover, &err);
        cli_interrupts(NULL);
        bk_ctl_free(&ctl);
        json_decref(recover.result);
        cli_offline_close(&offline);
    }
    bk_patterns_free(&patterns);
    return code;
}
