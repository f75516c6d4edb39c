/*
 * cli/cli.h: what the files of the command line share: parsed options, the table of commands,
 * printing, the HTTP client.
 *
 * One process, one thread but for the lanes of an offline job.  Commands return the process's exit
 * code: 0 ok, 1 failed, 2 usage, 3 finished with warnings, 10 no repository, 11 locked, 12 wrong
 * key, 130 interrupted.
 */
#ifndef BK_CLI_CLI_H
#define BK_CLI_CLI_H

#include <jansson.h>
#include <stdbool.h>

#include "base/ctl.h"
#include "base/err.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_WARNING = 3, EXIT_INTERRUPTED = 130 };

/* One row an option; flag options take no value. Everything --help and the manual page say comes
 * from this table. */
#define BK_CLI_OPTIONS(X)                                                                          \
    X(URL, "url", "URL", "REST API of nginx (NGX_BACKUP_URL; http://127.0.0.1:8000/admin/backup)") \
    X(TOKEN_FILE, "token-file", "FILE", "file with the bearer token (NGX_BACKUP_TOKEN_FILE)")      \
    X(SOCKET, "unix-socket", "PATH", "connect through this unix socket")                           \
    X(STORAGE, "storage", "URL",                                                                   \
      "work on a storage without nginx, for example file:///srv/backup")                           \
    X(KEY_FILE, "key-file", "FILE", "repository key, as written by 'ngx-backup key new'")          \
    X(PASSPHRASE_FILE, "passphrase-file", "FILE", "file with the repository passphrase")           \
    X(TYPE, "type", "TYPE",                                                                        \
      "backup: full or incremental; recover: database, files or full (default: what else is "      \
      "asked for, or full)")                                                                       \
    X(DESCRIPTION, "description", "TEXT", "free text kept with the backup")                        \
    X(TAG, "tag", "TAG", "tag of the backup; list: only backups with it; may be repeated")         \
    X(NO_UPLOAD, "no-upload", NULL, "keep the backup in the spool for now")                        \
    X(SET, "set", "NAME", "only backups of this set (default: the only set there is)")             \
    X(BACKUP_ID, "backup-id", "ID", "backup to use (default: latest)")                             \
    X(AT, "at", "TIME", "as of this time, like 2025-10-15T14:30:00Z (pitr_window)")                \
    X(TRANSACTION, "transaction", "N", "as of this transaction of the database (pitr_window)")     \
    X(SINCE, "since", "TIME", "timeline: transactions from this time on (default: the last day)")  \
    X(UNTIL, "until", "TIME", "timeline: transactions up to this time (default: now)")             \
    X(DATABASE, "database", "NAME", "only this database")                                          \
    X(TABLE, "table", "NAME", "only this table, in place; may be repeated")                        \
    X(PATTERN, "pattern", "GLOB", "only files that match, no database; may be repeated")           \
    X(PATH, "path", "PATH", "only this file or directory, no database; may be repeated")           \
    X(TARGET, "target", "DIR", "recover into this directory instead of in place")                  \
    X(OVERWRITE, "overwrite", "POLICY", "always, if-newer, never or rename (default: always)")     \
    X(DELETE_EXTRA, "delete-extra", NULL, "also remove files that the backup does not have")       \
    X(DRY_RUN, "dry-run", NULL, "show what would be done, change nothing")                         \
    X(DEEP, "deep", NULL, "validate: also check every chunk of the files")                         \
    X(LEVEL, "level", "N", "verify: 0 names, 1 checksums, 2 decrypt, 3 restore (default: 1)")      \
    X(LIMIT, "limit", "N", "at most so many rows (default: 50)")                                   \
    X(TIMEOUT, "timeout", "SECONDS", "query: at most so long (default: 10; an hour on a storage)") \
    X(WAIT, "wait", NULL, "wait until the job has ended (the default)")                            \
    X(NO_WAIT, "no-wait", NULL, "return as soon as the job is queued")                             \
    X(ROLE, "role", "ROLE", "viewer, operator or admin")                                           \
    X(NAME, "name", "NAME", "name of the token's holder, for the audit log")                       \
    X(LABEL, "label", "TEXT", "label of a key slot")                                               \
    X(NEW_KEY_FILE, "new-key-file", "FILE", "key add: the key to add")                             \
    X(NEW_PASSPHRASE_FILE, "new-passphrase-file", "FILE", "key add: the passphrase to add")        \
    X(JSON, "json", NULL, "print the answer as one line of JSON")                                  \
    X(QUIET, "quiet", NULL, "no progress")                                                         \
    X(HELP, "help", NULL, "show help")

typedef enum {
#define X(id, name, value, help) OPT_##id,
    BK_CLI_OPTIONS(X)
#undef X
        OPT_COUNT
} cli_option_t;

#define CLI_TIMELINE_ROWS 20 /* of a timeline, when there is no --limit */
#define CLI_ARGUMENTS     8  /* positional arguments */

typedef struct cli_command_s cli_command_t;

typedef struct {
    const cli_command_t *command;
    const char *value[OPT_COUNT]; /* last value; "" for a flag that was given; NULL otherwise */
    json_t *values[OPT_COUNT];    /* every value of a repeated option, array of strings */
    const char *argument[CLI_ARGUMENTS];
    int arguments;
} cli_t;

struct cli_command_s {
    const char *name;
    const char *arguments; /* as shown in usage */
    int min_arguments, max_arguments;
    const char *help;
    int (*online)(const cli_t *cli);  /* through REST; NULL: not possible */
    int (*offline)(const cli_t *cli); /* with --storage; NULL: not possible */
    const cli_option_t *options; /* those it takes besides the common ones, ended by OPT_COUNT */
};

extern const cli_command_t cli_commands[]; /* ended by name NULL */

const char *cli_option_name(cli_option_t option);

/* Print "ngx-backup: text" to standard error and return the exit code of rc. */
int cli_fail(const bk_err_t *err);
int cli_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* BK_CANCELED once the user pressed Ctrl-C (also raises the job's flag when one is registered). */
bool cli_interrupted(void);
void cli_interrupts(bk_ctl_t *ctl);

/* --- print.c --- */
void cli_print_json(const json_t *value);
/* "1.4 GiB", "12.0 MiB", "17 B" into out (16 bytes). */
void cli_size(char out[16], double bytes);
void cli_print_backups(const json_t *list);
void cli_print_backup(const json_t *backup);
void cli_print_jobs(const json_t *list);
void cli_print_job(const json_t *job); /* result of a finished one */
void cli_print_status(const json_t *status);
void cli_print_plan(const json_t *plan);
/* Rows of a query, one a line, columns divided by "|". */
void cli_print_rows(const json_t *answer);
void cli_print_timeline(const json_t *timeline);
/* One redrawn line on a terminal, else a plain line at most every 5 s.  job: has progress_detail.
 * NULL: end the line. */
void cli_print_progress(const cli_t *cli, const json_t *job);

/* --- client.c --- */
typedef struct {
    long status;  /* HTTP status */
    json_t *body; /* owned; may be NULL */
} cli_answer_t;

/* method "GET", "POST", "DELETE"; path below the API's URL ("/list?limit=5"); body may be NULL. */
bk_rc_t cli_request(const cli_t *cli, const char *method, const char *path, json_t *body,
                    cli_answer_t *answer, bk_err_t *err);
/* The failure that a problem document's code names; BK_FAILED for none that is known. */
bk_rc_t cli_rc_of(const char *code);
void cli_answer_free(cli_answer_t *answer);
/* Percent-encode one path or query component; owned by the caller. */
char *cli_escape(const char *text);

/* --- online.c, offline_commands.c, offline_past.c, keys.c: the commands --- */
int cli_status(const cli_t *cli);
int cli_list(const cli_t *cli);
int cli_show(const cli_t *cli);
int cli_backup(const cli_t *cli);
int cli_recover(const cli_t *cli);
int cli_validate(const cli_t *cli);
int cli_query(const cli_t *cli);
int cli_timeline(const cli_t *cli);
int cli_detach(const cli_t *cli); /* and attach */
int cli_verify(const cli_t *cli);
int cli_test(const cli_t *cli);
int cli_cleanup(const cli_t *cli);
int cli_jobs(const cli_t *cli);
int cli_cancel(const cli_t *cli);
int cli_offline_list(const cli_t *cli);
int cli_offline_show(const cli_t *cli);
int cli_offline_recover(const cli_t *cli);
int cli_offline_query(const cli_t *cli);
int cli_offline_timeline(const cli_t *cli);
int cli_offline_validate(const cli_t *cli);
int cli_offline_verify(const cli_t *cli);
int cli_key(const cli_t *cli);
int cli_token(const cli_t *cli);
/*
 * What is to be recovered: --type, or what the other options name a part of.  Who asks for some
 * files does not want the database of yesterday with them.
 */
const char *cli_recovery_type(const cli_t *cli);
/* Body of a recovery request from the options. */
json_t *cli_recovery_body(const cli_t *cli);

#endif
