/*
 * cli/online.c: the commands through nginx's REST API: one request each, and waiting for the job it
 * made.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cli/cli.h"

static bool given(const cli_t *cli, cli_option_t option)
{
    return cli->value[option] != NULL;
}

/* GET path and print it as JSON or for people. */
static int show(const cli_t *cli, const char *path, void (*print)(const json_t *))
{
    cli_answer_t answer;
    bk_err_t err = {0};
    if (cli_request(cli, "GET", path, NULL, &answer, &err) != BK_OK)
        return cli_fail(&err);
    if (given(cli, OPT_JSON))
        cli_print_json(answer.body);
    else
        print(answer.body);
    cli_answer_free(&answer);
    return EXIT_OK;
}

/* "prefix" + escaped part into path. */
static bool join(char *path, size_t size, const char *prefix, const char *part)
{
    char *escaped = cli_escape(part);
    bool fits = escaped != NULL && snprintf(path, size, "%s%s", prefix, escaped) < (int)size;
    free(escaped);
    return fits;
}

int cli_status(const cli_t *cli)
{
    return show(cli, "/status", cli_print_status);
}

int cli_list(const cli_t *cli)
{
    char path[1024], *tag = cli_escape(given(cli, OPT_TAG) ? cli->value[OPT_TAG] : "");
    snprintf(path, sizeof path, "/list?limit=%s%s%s",
             given(cli, OPT_LIMIT) ? cli->value[OPT_LIMIT] : "50",
             given(cli, OPT_TAG) ? "&tag=" : "", tag);
    free(tag);
    return show(cli, path, cli_print_backups);
}

int cli_show(const cli_t *cli)
{
    char path[1024];
    if (!join(path, sizeof path, "/backups/", cli->argument[0]))
        return cli_usage("'%s' is not a backup id", cli->argument[0]);
    return show(cli, path, cli_print_backup);
}

static int exit_of(const json_t *job)
{
    const char *status = json_string_value(json_object_get(job, "status"));
    const char *code = json_string_value(json_object_get(json_object_get(job, "problem"), "code"));
    if (status == NULL)
        return EXIT_FAILED;
    if (strcmp(status, "completed") == 0)
        return EXIT_OK;
    if (strcmp(status, "warning") == 0)
        return EXIT_WARNING;
    return bk_rc_exit(cli_rc_of(code));
}

/* Follow a job until it has ended.  A lost connection (a reload, a restart) is tried again for a
 * minute. */
static int follow(const cli_t *cli, const char *id)
{
    char path[1024];
    unsigned lost = 0;
    if (!join(path, sizeof path, "/jobs/", id))
        return EXIT_FAILED;
    cli_interrupts(NULL);
    for (;;) {
        cli_answer_t answer;
        bk_err_t err = {0};
        if (cli_interrupted()) {
            cli_print_progress(cli, NULL);
            fprintf(stderr,
                    "ngx-backup: stopped waiting; %s goes on: 'ngx-backup cancel %s' stops it\n",
                    id, id);
            return EXIT_INTERRUPTED;
        }
        if (cli_request(cli, "GET", path, NULL, &answer, &err) != BK_OK) {
            if (++lost > 120 || err.rc == BK_NOT_FOUND) {
                cli_print_progress(cli, NULL);
                return cli_fail(&err);
            }
            bk_sleep_ms(500);
            continue;
        }
        lost = 0;
        if (json_is_true(json_object_get(answer.body, "done"))) {
            int code = exit_of(answer.body);
            cli_print_progress(cli, NULL);
            if (given(cli, OPT_JSON))
                cli_print_json(answer.body);
            else
                cli_print_job(answer.body);
            cli_answer_free(&answer);
            return code;
        }
        cli_print_progress(cli, answer.body);
        cli_answer_free(&answer);
        bk_sleep_ms(250);
    }
}

/* POST body (taken over), then wait unless told not to.  A plan (dry run) is printed. */
static int start(const cli_t *cli, const char *path, json_t *body)
{
    cli_answer_t answer;
    bk_err_t err = {0};
    int code;

    if (given(cli, OPT_WAIT) && given(cli, OPT_NO_WAIT)) {
        json_decref(body);
        return cli_usage("--wait and --no-wait exclude each other");
    }
    bk_rc_t rc = cli_request(cli, "POST", path, body, &answer, &err);
    json_decref(body);
    if (rc != BK_OK)
        return cli_fail(&err);
    const char *id = json_string_value(json_object_get(answer.body, "id"));
    if (id == NULL || given(cli, OPT_NO_WAIT)) {
        if (given(cli, OPT_JSON))
            cli_print_json(answer.body);
        else if (id != NULL)
            printf("%s: queued; 'ngx-backup jobs %s' shows it\n", id, id);
        else
            cli_print_plan(answer.body);
        code = EXIT_OK;
    } else {
        code = follow(cli, id);
    }
    cli_answer_free(&answer);
    return code;
}

static void put_text(json_t *body, const char *name, const char *value)
{
    if (value != NULL)
        json_object_set_new(body, name, json_string(value));
}

int cli_backup(const cli_t *cli)
{
    json_t *body = json_object();
    put_text(body, "backup_type", given(cli, OPT_TYPE) ? cli->value[OPT_TYPE] : "incremental");
    put_text(body, "description", cli->value[OPT_DESCRIPTION]);
    json_object_set_new(body, "upload_to_storage", json_boolean(!given(cli, OPT_NO_UPLOAD)));
    if (given(cli, OPT_TAG))
        json_object_set(body, "tags", cli->values[OPT_TAG]);
    return start(cli, "/create", body);
}

/* A number as one, so that what is none is refused by who knows the members. */
static void put_number(json_t *body, const char *name, const char *value)
{
    char *end;
    if (value == NULL)
        return;
    errno = 0;
    long long number = strtoll(value, &end, 10);
    bool is = end != value && *end == '\0' && errno == 0;
    json_object_set_new(body, name, is ? json_integer(number) : json_string(value));
}

/* The backup or the moment that is meant. */
static json_t *point_body(const cli_t *cli)
{
    json_t *body = json_object();
    put_text(body, "backup_id", cli->value[OPT_BACKUP_ID]);
    put_text(body, "point_in_time", cli->value[OPT_AT]);
    put_number(body, "transaction", cli->value[OPT_TRANSACTION]);
    put_text(body, "database", cli->value[OPT_DATABASE]);
    return body;
}

const char *cli_recovery_type(const cli_t *cli)
{
    if (given(cli, OPT_TYPE))
        return cli->value[OPT_TYPE];
    if (given(cli, OPT_TABLE))
        return "database";
    if (given(cli, OPT_PATTERN) || given(cli, OPT_PATH))
        return "files";
    return given(cli, OPT_DATABASE) ? "database" : "full";
}

json_t *cli_recovery_body(const cli_t *cli)
{
    json_t *body = point_body(cli);
    put_text(body, "recovery_type", cli_recovery_type(cli));
    put_text(body, "overwrite", cli->value[OPT_OVERWRITE]);
    put_text(body, "target_directory", cli->value[OPT_TARGET]);
    json_object_set_new(body, "restore_to_original", json_boolean(!given(cli, OPT_TARGET)));
    if (given(cli, OPT_PATTERN))
        json_object_set(body, "file_patterns", cli->values[OPT_PATTERN]);
    if (given(cli, OPT_PATH))
        json_object_set(body, "paths", cli->values[OPT_PATH]);
    if (given(cli, OPT_TABLE))
        json_object_set(body, "tables", cli->values[OPT_TABLE]);
    if (given(cli, OPT_DELETE_EXTRA))
        json_object_set_new(body, "delete_extra", json_true());
    if (given(cli, OPT_DRY_RUN))
        json_object_set_new(body, "dry_run", json_true());
    return body;
}

int cli_recover(const cli_t *cli)
{
    return start(cli, "/recovery", cli_recovery_body(cli));
}

int cli_query(const cli_t *cli)
{
    cli_answer_t answer;
    bk_err_t err = {0};
    json_t *body = point_body(cli);
    put_text(body, "sql", cli->argument[0]);
    put_number(body, "limit", cli->value[OPT_LIMIT]);
    put_number(body, "timeout", cli->value[OPT_TIMEOUT]);
    bk_rc_t rc = cli_request(cli, "POST", "/query", body, &answer, &err);
    json_decref(body);
    if (rc != BK_OK)
        return cli_fail(&err);
    if (given(cli, OPT_JSON))
        cli_print_json(answer.body);
    else
        cli_print_rows(answer.body);
    cli_answer_free(&answer);
    return EXIT_OK;
}

/* "&name=value" behind path. */
static bool add_parameter(char *path, size_t size, const char *name, const char *value)
{
    size_t len = strlen(path);
    char *escaped = value != NULL ? cli_escape(value) : NULL;
    bool fits = value == NULL || (escaped != NULL && snprintf(path + len, size - len, "&%s=%s",
                                                              name, escaped) < (int)(size - len));
    free(escaped);
    return fits;
}

int cli_timeline(const cli_t *cli)
{
    char path[1024];
    if (given(cli, OPT_LIMIT))
        snprintf(path, sizeof path, "/timeline?limit=%s", cli->value[OPT_LIMIT]);
    else
        snprintf(path, sizeof path, "/timeline?limit=%d", CLI_TIMELINE_ROWS);
    if (!add_parameter(path, sizeof path, "database", cli->value[OPT_DATABASE]) ||
        !add_parameter(path, sizeof path, "since", cli->value[OPT_SINCE]) ||
        !add_parameter(path, sizeof path, "until", cli->value[OPT_UNTIL]))
        return cli_usage("an option of timeline is too long");
    return show(cli, path, cli_print_timeline);
}

int cli_detach(const cli_t *cli)
{
    char path[1024];
    cli_answer_t answer;
    bk_err_t err = {0};
    if (!join(path, sizeof path - 8, "/databases/", cli->argument[0]))
        return cli_usage("'%s' is not a database", cli->argument[0]);
    snprintf(path + strlen(path), sizeof path - strlen(path), "/%s", cli->command->name);
    if (cli_request(cli, "POST", path, NULL, &answer, &err) != BK_OK)
        return cli_fail(&err);
    if (given(cli, OPT_JSON))
        cli_print_json(answer.body);
    else
        printf("%s: %s\n", cli->argument[0],
               json_is_true(json_object_get(answer.body, "detached")) ? "detached" : "attached");
    cli_answer_free(&answer);
    return EXIT_OK;
}

int cli_validate(const cli_t *cli)
{
    json_t *body = point_body(cli);
    if (given(cli, OPT_DEEP))
        json_object_set_new(body, "deep", json_true());
    return start(cli, "/validate-recovery", body);
}

int cli_verify(const cli_t *cli)
{
    json_t *body = json_object();
    if (given(cli, OPT_LEVEL)) {
        char *end;
        long level = strtol(cli->value[OPT_LEVEL], &end, 10);
        if (*end != '\0') {
            json_decref(body);
            return cli_usage("--level is a number from 0 to 3");
        }
        json_object_set_new(body, "level", json_integer(level));
    }
    return start(cli, "/verify", body);
}

int cli_test(const cli_t *cli)
{
    return start(cli, "/test", json_object());
}

int cli_cleanup(const cli_t *cli)
{
    json_t *body = json_object();
    if (given(cli, OPT_DRY_RUN))
        json_object_set_new(body, "dry_run", json_true());
    return start(cli, "/cleanup", body);
}

int cli_jobs(const cli_t *cli)
{
    char path[1024];
    if (cli->arguments == 1) {
        if (!join(path, sizeof path, "/jobs/", cli->argument[0]))
            return cli_usage("'%s' is not a job id", cli->argument[0]);
        return show(cli, path, cli_print_job);
    }
    snprintf(path, sizeof path, "/jobs?limit=%s",
             given(cli, OPT_LIMIT) ? cli->value[OPT_LIMIT] : "50");
    return show(cli, path, cli_print_jobs);
}

int cli_cancel(const cli_t *cli)
{
    char path[1024];
    cli_answer_t answer;
    bk_err_t err = {0};
    if (!join(path, sizeof path - 8, "/jobs/", cli->argument[0]))
        return cli_usage("'%s' is not a job id", cli->argument[0]);
    strncat(path, "/cancel", sizeof path - strlen(path) - 1);
    if (cli_request(cli, "POST", path, NULL, &answer, &err) != BK_OK)
        return cli_fail(&err);
    if (given(cli, OPT_JSON))
        cli_print_json(answer.body);
    else
        printf("%s: %s\n", cli->argument[0],
               json_string_value(json_object_get(answer.body, "status")));
    cli_answer_free(&answer);
    return EXIT_OK;
}
