/*
 * cli/main.c: the entrance of the command line: finds the command, reads its options, says how to
 * use it.
 */
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

typedef struct {
    const char *name, *value, *help;
} option_row_t;

static const option_row_t options[OPT_COUNT] = {
#define X(id, name, value, help) {name, value, help},
    BK_CLI_OPTIONS(X)
#undef X
};

const char *cli_option_name(cli_option_t option)
{
    return options[option].name;
}

static const cli_option_t online_options[] = {OPT_URL, OPT_TOKEN_FILE, OPT_SOCKET, OPT_COUNT};
static const cli_option_t offline_options[] = {OPT_STORAGE, OPT_KEY_FILE, OPT_PASSPHRASE_FILE,
                                               OPT_SET, OPT_COUNT};
static const cli_option_t common_options[] = {OPT_JSON, OPT_QUIET, OPT_HELP, OPT_COUNT};

#define OPTIONS(...) ((const cli_option_t[]){__VA_ARGS__, OPT_COUNT})
#define NO_OPTIONS   ((const cli_option_t[]){OPT_COUNT})

const cli_command_t cli_commands[] = {
    {"status", "", 0, 0, "is everything as it should be?", cli_status, NULL, NO_OPTIONS},
    {"list", "", 0, 0, "list backups", cli_list, cli_offline_list, OPTIONS(OPT_TAG, OPT_LIMIT)},
    {"show", "BACKUP-ID", 1, 1, "show one backup", cli_show, cli_offline_show, NO_OPTIONS},
    {"backup", "", 0, 0, "make a backup now", cli_backup, NULL,
     OPTIONS(OPT_TYPE, OPT_DESCRIPTION, OPT_TAG, OPT_NO_UPLOAD, OPT_WAIT, OPT_NO_WAIT)},
    {"recover", "", 0, 0, "get database and files back, in place or into a directory", cli_recover,
     cli_offline_recover,
     OPTIONS(OPT_TYPE, OPT_BACKUP_ID, OPT_AT, OPT_TRANSACTION, OPT_DATABASE, OPT_TABLE, OPT_PATTERN,
             OPT_PATH, OPT_TARGET, OPT_OVERWRITE, OPT_DELETE_EXTRA, OPT_DRY_RUN, OPT_WAIT,
             OPT_NO_WAIT)},
    {"validate", "", 0, 0, "prove that a backup or a moment can be recovered", cli_validate,
     cli_offline_validate,
     OPTIONS(OPT_BACKUP_ID, OPT_AT, OPT_TRANSACTION, OPT_DATABASE, OPT_DEEP, OPT_WAIT,
             OPT_NO_WAIT)},
    {"timeline", "", 0, 0, "from when to when databases can be had as of any moment", cli_timeline,
     cli_offline_timeline, OPTIONS(OPT_DATABASE, OPT_SINCE, OPT_UNTIL, OPT_LIMIT)},
    {"detach", "DATABASE", 1, 1, "let go of a database: its transactions are not captured for now",
     cli_detach, NULL, NO_OPTIONS},
    {"attach", "DATABASE", 1, 1, "capture its transactions again", cli_detach, NULL, NO_OPTIONS},
    {"query", "SQL", 1, 1, "ask a database as it was, without recovering it", cli_query,
     cli_offline_query,
     OPTIONS(OPT_BACKUP_ID, OPT_AT, OPT_TRANSACTION, OPT_DATABASE, OPT_LIMIT, OPT_TIMEOUT)},
    {"verify", "", 0, 0, "look for damage on the storage", cli_verify, cli_offline_verify,
     OPTIONS(OPT_LEVEL, OPT_WAIT, OPT_NO_WAIT)},
    {"test", "", 0, 0, "test storage, database, key and a small recovery", cli_test, NULL,
     OPTIONS(OPT_WAIT, OPT_NO_WAIT)},
    {"cleanup", "", 0, 0, "remove backups past their retention", cli_cleanup, NULL,
     OPTIONS(OPT_DRY_RUN, OPT_WAIT, OPT_NO_WAIT)},
    {"jobs", "[JOB-ID]", 0, 1, "list jobs, or show one", cli_jobs, NULL, OPTIONS(OPT_LIMIT)},
    {"cancel", "JOB-ID", 1, 1, "cancel a job", cli_cancel, NULL, NO_OPTIONS},
    {"key", "new FILE | list | add | remove SLOT", 1, 2,
     "make a key, or manage the keys of a repository (with --storage)", cli_key, cli_key,
     OPTIONS(OPT_LABEL, OPT_NEW_KEY_FILE, OPT_NEW_PASSPHRASE_FILE)},
    {"token", "new", 1, 1, "make a token for the REST API", cli_token, NULL,
     OPTIONS(OPT_ROLE, OPT_NAME)},
    {NULL, NULL, 0, 0, NULL, NULL, NULL, NULL}};

static _Atomic(bk_ctl_t *) interrupt_ctl;
static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
    bk_ctl_t *ctl = atomic_load(&interrupt_ctl);
    if (ctl != NULL)
        bk_ctl_stop(ctl, BK_CANCELED);
}

void cli_interrupts(bk_ctl_t *ctl)
{
    atomic_store(&interrupt_ctl, ctl);
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool cli_interrupted(void)
{
    return interrupted != 0;
}

int cli_fail(const bk_err_t *err)
{
    fprintf(stderr, "ngx-backup: %s\n", err->text);
    return bk_rc_exit(err->rc);
}

int cli_usage(const char *fmt, ...)
{
    va_list args;
    fputs("ngx-backup: ", stderr);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputs("\nTry 'ngx-backup --help'.\n", stderr);
    return EXIT_USAGE;
}

static void print_options(const char *title, const cli_option_t *list)
{
    if (list[0] == OPT_COUNT)
        return;
    printf("\n%s\n", title);
    for (; *list != OPT_COUNT; list++) {
        char left[64];
        const option_row_t *row = &options[*list];
        snprintf(left, sizeof left, "--%s%s%s", row->name, row->value ? " " : "",
                 row->value ? row->value : "");
        printf("  %-28s %s\n", left, row->help);
    }
}

static void print_help(const cli_command_t *command)
{
    if (command == NULL) {
        printf("ngx-backup %s: backups of an application behind nginx\n\n"
               "Usage: ngx-backup COMMAND [OPTION]…\n\nCommands:\n",
               BK_VERSION);
        for (const cli_command_t *row = cli_commands; row->name != NULL; row++)
            printf("  %-10s %s%s\n", row->name, row->help,
                   row->online && row->offline ? " (*)" : "");
        printf("\n(*) also without nginx, on a storage: --storage URL with --key-file FILE\n"
               "'ngx-backup COMMAND --help' lists a command's options.\n"
               "\nExit codes: 0 ok, 1 failed, 2 usage, 3 finished with warnings,\n"
               "10 no repository, 11 locked, 12 wrong key, 130 interrupted\n");
        return;
    }
    printf("Usage: ngx-backup %s %s[OPTION]…\n%s\n", command->name, command->arguments,
           command->help);
    print_options("Options:", command->options);
    if (command->online != NULL)
        print_options("Through nginx:", online_options);
    if (command->offline != NULL)
        print_options("Without nginx:", offline_options);
    print_options("Always:", common_options);
}

static bool listed(const cli_option_t *list, cli_option_t option)
{
    for (; *list != OPT_COUNT; list++)
        if (*list == option)
            return true;
    return false;
}

static bool allowed(const cli_command_t *command, cli_option_t option)
{
    return listed(command->options, option) || listed(common_options, option) ||
           (command->online != NULL && listed(online_options, option)) ||
           (command->offline != NULL && listed(offline_options, option));
}

/* One "--name", "--name value" or "--name=value"; *next is moved past the value. */
static int read_option(cli_t *cli, char **argv, int *next)
{
    const char *text = argv[*next] + 2;
    const char *equals = strchr(text, '=');
    size_t len = equals ? (size_t)(equals - text) : strlen(text);

    for (int i = 0; i < OPT_COUNT; i++) {
        if (strlen(options[i].name) != len || strncmp(options[i].name, text, len) != 0)
            continue;
        if (!allowed(cli->command, (cli_option_t)i))
            return cli_usage("'%s' does not take --%s", cli->command->name, options[i].name);
        const char *value = "";
        if (options[i].value != NULL) {
            value = equals ? equals + 1 : argv[++*next];
            if (value == NULL || *value == '\0')
                return cli_usage("--%s needs a value: --%s %s", options[i].name, options[i].name,
                                 options[i].value);
        } else if (equals != NULL) {
            return cli_usage("--%s takes no value", options[i].name);
        }
        cli->value[i] = value;
        if (cli->values[i] == NULL)
            cli->values[i] = json_array();
        if (json_array_append_new(cli->values[i], json_string(value)) != 0)
            return cli_usage("--%s is not valid UTF-8", options[i].name);
        return EXIT_OK;
    }
    return cli_usage("there is no option %s", argv[*next]);
}

static int read_arguments(cli_t *cli, char **argv)
{
    bool only_arguments = false;
    for (int i = 2; argv[i] != NULL; i++) {
        if (!only_arguments && strcmp(argv[i], "--") == 0) {
            only_arguments = true;
        } else if (!only_arguments && strncmp(argv[i], "--", 2) == 0) {
            int rc = read_option(cli, argv, &i);
            if (rc != EXIT_OK)
                return rc;
        } else if (cli->arguments == cli->command->max_arguments) {
            return cli_usage("'%s' is one argument too many", argv[i]);
        } else {
            cli->argument[cli->arguments++] = argv[i];
        }
    }
    if (cli->value[OPT_HELP] == NULL && cli->arguments < cli->command->min_arguments)
        return cli_usage("usage: ngx-backup %s %s", cli->command->name, cli->command->arguments);
    return EXIT_OK;
}

static int run(const cli_t *cli)
{
    if (cli->value[OPT_HELP] != NULL) {
        print_help(cli->command);
        return EXIT_OK;
    }
    if (cli->value[OPT_STORAGE] == NULL && cli->value[OPT_SET] != NULL)
        return cli_usage("--set chooses among the sets of a --storage; through nginx --url does");
    if (cli->value[OPT_STORAGE] == NULL)
        return cli->command->online(cli);
    if (cli->command->offline == NULL)
        return cli_usage("'%s' needs nginx: leave --storage out", cli->command->name);
    return cli->command->offline(cli);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2)
        return cli_usage("which command?");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(NULL);
        return EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("ngx-backup %s\n", BK_VERSION);
        return EXIT_OK;
    }
    cli_t cli = {.command = cli_commands};
    while (cli.command->name != NULL && strcmp(cli.command->name, argv[1]) != 0)
        cli.command++;
    if (cli.command->name == NULL)
        return cli_usage("there is no command '%s'", argv[1]);
    int code = read_arguments(&cli, argv);
    if (code == EXIT_OK)
        code = run(&cli);
    for (int i = 0; i < OPT_COUNT; i++)
        json_decref(cli.values[i]);
    return code;
}
