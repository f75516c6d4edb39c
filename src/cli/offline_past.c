/*
 * cli/offline_past.c: the past on a storage alone: which moments there are (timeline), whether they
 * can be had (validate), and what they hold (query).  The answers have the members of REST's.
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "cli/offline.h"
#include "engine/engine.h"
#include "engine/recover.h"

typedef struct {
    const cli_t *cli;
    cli_offline_t offline;
    bk_point_wish_t wish;
    bk_point_t point;
    bk_ctl_t ctl;
    bk_db_select_t question;     /* query */
    bk_timeline_filter_t filter; /* timeline */
    json_t *validation;          /* validate */
} past_t;

typedef bk_rc_t (*past_fn)(past_t *past, json_t **answer, bk_err_t *err);

/* Print what fn makes of the point that the options name. */
static int with_point(past_t *past, past_fn fn, void (*print)(const json_t *))
{
    bk_err_t err = {0};
    json_t *answer = NULL;
    int code;
    if (cli_offline_open(past->cli, &past->offline, &err) != BK_OK)
        return cli_fail(&err);
    bk_ctl_init(&past->ctl);
    cli_interrupts(&past->ctl);
    bk_rc_t rc = bk_point_find(past->offline.repo, &past->wish, &past->ctl, &past->point, &err);
    if (rc == BK_OK)
        rc = fn(past, &answer, &err);
    if (answer != NULL && past->cli->value[OPT_JSON] != NULL)
        cli_print_json(answer);
    else if (answer != NULL)
        print(answer);
    fflush(stdout);
    code = cli_print_notes(&past->ctl);
    if (rc != BK_OK)
        code = cli_fail(&err);
    json_decref(answer);
    bk_point_close(&past->point);
    cli_interrupts(NULL);
    bk_ctl_free(&past->ctl);
    cli_offline_close(&past->offline);
    return code;
}

/* --- query --- */

#define QUERY_ROWS 1000000u
#define QUERY_S    3600u

/* The only database of the backup, when none is named. */
static bk_rc_t choose_database(const bk_snapshot_t *s, const char **name, bk_err_t *err)
{
    if (*name == NULL && s->db_count != 1)
        return bk_err_set(err, BK_INVALID,
                          "backup %s holds %zu databases: name one with --database", s->backup_id,
                          s->db_count);
    if (*name == NULL)
        *name = s->dbs[0].name;
    return BK_OK;
}

static bk_rc_t query(past_t *past, json_t **answer, bk_err_t *err)
{
    const char *name = past->wish.database;
    bk_rc_t rc = choose_database(past->point.snapshot, &name, err);
    return rc == BK_OK ? bk_point_ask(&past->point, name, &past->question, answer, err) : rc;
}

int cli_offline_query(const cli_t *cli)
{
    past_t past = {.cli = cli, .wish = {.databases = true}, .question = {.sql = cli->argument[0]}};
    uint64_t seconds = QUERY_S;
    int code = cli_offline_point(cli, &past.wish);
    if (code == EXIT_OK)
        code = cli_number(cli, OPT_LIMIT, QUERY_ROWS, &past.question.max_rows);
    if (code == EXIT_OK)
        code = cli_number(cli, OPT_TIMEOUT, QUERY_S, &seconds);
    past.question.max_ms = seconds * 1000;
    return code == EXIT_OK ? with_point(&past, query, cli_print_rows) : code;
}

/* --- timeline --- */

#define TIMELINE_MAX 500u

/* Nobody tells here what a configuration would; a database that has transactions was captured. */
static bk_rc_t add_database(past_t *past, bk_set_t *set, const char *name, bk_err_t *err)
{
    bk_moments_t *moments = NULL;
    for (size_t i = 0; i < set->db_count; i++)
        if (strcmp(set->dbs[i].name, name) == 0)
            return BK_OK;
    bk_rc_t rc =
        bk_moments_open(NULL, set->name, name, past->offline.repo, &past->ctl, &moments, err);
    if (rc == BK_INVALID) { /* capital letters, say: with such a name none can be */
        bk_err_clear(err);
        rc = BK_OK;
    }
    bk_set_db_t *db = rc == BK_OK ? bk_set_add_db(set, name) : NULL;
    if (db != NULL)
        db->pitr_window = moments != NULL && bk_moments_count(moments) > 0;
    else if (rc == BK_OK)
        rc = bk_err_set(err, BK_NO_MEMORY, "database %s: out of memory", name);
    bk_moments_free(moments);
    return rc;
}

static bk_rc_t timeline(past_t *past, json_t **answer, bk_err_t *err)
{
    const bk_snapshot_list_t *list = &past->point.list;
    const char *name = past->point.snapshot->set;
    bk_set_t set;
    bk_rc_t rc = bk_set_init(&set, name, err);
    for (size_t i = 0; i < list->count; i++)
        for (size_t n = 0; strcmp(list->items[i].set, name) == 0 && n < list->items[i].db_count;
             n++)
            if (rc == BK_OK)
                rc = add_database(past, &set, list->items[i].dbs[n].name, err);
    if (rc == BK_OK)
        rc = bk_timeline(&set, past->offline.repo, NULL, &past->filter, &past->ctl, answer, err);
    bk_set_free(&set);
    return rc;
}

static int read_time(const cli_t *cli, cli_option_t option, int64_t *time)
{
    const char *text = cli->value[option];
    return text == NULL || bk_time_parse(text, time)
               ? EXIT_OK
               : cli_usage("--%s is a time like 2025-10-15T14:30:00Z", cli_option_name(option));
}

int cli_offline_timeline(const cli_t *cli)
{
    past_t past = {.cli = cli,
                   .wish = {.set = cli->value[OPT_SET], .databases = true},
                   .filter = {.database = cli->value[OPT_DATABASE]}};
    uint64_t limit = CLI_TIMELINE_ROWS;
    int code = read_time(cli, OPT_SINCE, &past.filter.since);
    if (code == EXIT_OK)
        code = read_time(cli, OPT_UNTIL, &past.filter.until);
    if (code == EXIT_OK)
        code = cli_number(cli, OPT_LIMIT, TIMELINE_MAX, &limit);
    past.filter.limit = (unsigned)limit;
    return code == EXIT_OK ? with_point(&past, timeline, cli_print_timeline) : code;
}

/* --- validate --- */

static bk_rc_t validate_main(bk_team_t *team, void *arg, bk_err_t *err)
{
    past_t *past = arg;
    return bk_validate_alone(&past->point, past->offline.scratch,
                             past->cli->value[OPT_DEEP] != NULL, team, past->validation, err);
}

static bk_rc_t validate(past_t *past, json_t **answer, bk_err_t *err)
{
    past->validation = json_object();
    bk_rc_t rc = cli_offline_run(past->cli, &past->ctl, validate_main, past, err);
    *answer = json_pack("{so}", "validation_result", past->validation);
    return rc;
}

int cli_offline_validate(const cli_t *cli)
{
    past_t past = {.cli = cli, .wish = {.databases = true}};
    int code = cli_offline_point(cli, &past.wish);
    return code == EXIT_OK ? with_point(&past, validate, cli_print_plan) : code;
}
