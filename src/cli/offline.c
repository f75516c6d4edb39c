/*
 * cli/offline.c: the commands on a storage alone: no nginx, no configuration, nothing of the lost
 * machine but the key. Writes only below --target and into a private scratch directory that is
 * removed at the end.
 */
#include "cli/offline.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "engine/engine.h"

#define SECRET_MAX 4096u

bk_rc_t cli_secret_read(const char *key_file, const char *passphrase_file, cli_secret_t *secret,
                        bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    memset(secret, 0, sizeof *secret);
    bk_buf_init(&secret->passphrase, SECRET_MAX);
    if (key_file != NULL && passphrase_file != NULL)
        return bk_err_set(err, BK_INVALID, "give a key file or a passphrase file, not both");
    if (key_file != NULL) {
        rc = bk_key_read_file(key_file, secret->key, err);
        secret->secret.key = secret->key;
    } else if (passphrase_file != NULL) {
        rc = bk_secret_read_file(passphrase_file, &secret->passphrase, err);
        secret->secret.passphrase = rc == BK_OK ? bk_buf_str(&secret->passphrase) : NULL;
    }
    return rc;
}

void cli_secret_wipe(cli_secret_t *secret)
{
    explicit_bzero(secret->key, sizeof secret->key);
    bk_buf_wipe(&secret->passphrase);
}

static bk_rc_t open_storage(const char *url, bk_storage_t **storage, bk_err_t *err)
{
    bk_storage_config_t config = {0};
    bk_rc_t rc = bk_storage_config_url(&config, url, err);
    if (rc == BK_OK)
        rc = bk_storage_config_check(&config, err);
    if (rc == BK_OK)
        rc = bk_storage_open(&config, storage, err);
    bk_storage_config_free(&config);
    return rc;
}

bk_rc_t cli_offline_open(const cli_t *cli, cli_offline_t *offline, bk_err_t *err)
{
    const char *tmp = getenv("TMPDIR");
    cli_secret_t secret;

    memset(offline, 0, sizeof *offline);
    bk_rc_t rc =
        cli_secret_read(cli->value[OPT_KEY_FILE], cli->value[OPT_PASSPHRASE_FILE], &secret, err);
    if (rc == BK_OK)
        rc = open_storage(cli->value[OPT_STORAGE], &offline->storage, err);
    if (rc == BK_OK) {
        bk_fmt(offline->scratch, sizeof offline->scratch, "%s/ngx-backup-XXXXXX",
               tmp ? tmp : "/tmp");
        if (mkdtemp(offline->scratch) == NULL) {
            rc = bk_err_sys(err, errno, "%s: make a scratch directory", offline->scratch);
            offline->scratch[0] = '\0';
        }
    }
    if (rc == BK_OK) {
        bk_repo_options_t options = {
            .storage = offline->storage, .cache_dir = offline->scratch, .secret = secret.secret};
        rc = bk_repo_open(&options, NULL, &offline->repo, err);
    }
    cli_secret_wipe(&secret);
    if (rc != BK_OK)
        cli_offline_close(offline);
    return rc;
}

void cli_offline_close(cli_offline_t *offline)
{
    bk_repo_close(offline->repo);
    bk_storage_close(offline->storage);
    if (offline->scratch[0] != '\0')
        bk_remove_tree(offline->scratch, true, NULL);
    memset(offline, 0, sizeof *offline);
}

/* --- running --- */

typedef struct {
    const cli_t *cli;
    bk_ctl_t *ctl;
    atomic_bool done;
} watch_t;

/* Draws the progress while the lanes work. */
static void *watch(void *arg)
{
    watch_t *w = arg;
    while (!atomic_load(&w->done)) {
        json_t *progress = bk_job_progress(w->ctl);
        cli_print_progress(w->cli, progress);
        json_decref(progress);
        bk_sleep_ms(100);
    }
    cli_print_progress(w->cli, NULL);
    return NULL;
}

bk_rc_t cli_offline_run(const cli_t *cli, bk_ctl_t *ctl,
                        bk_rc_t (*main_fn)(bk_team_t *team, void *arg, bk_err_t *err), void *arg,
                        bk_err_t *err)
{
    pthread_t watcher;
    watch_t w = {.cli = cli, .ctl = ctl};
    bool watched = pthread_create(&watcher, NULL, watch, &w) == 0;
    bk_rc_t rc = bk_team_run(CLI_LANES, main_fn, arg, err);
    atomic_store(&w.done, true);
    if (watched)
        pthread_join(watcher, NULL);
    return rc;
}

int cli_print_notes(bk_ctl_t *ctl)
{
    for (unsigned i = 0; i < ctl->notes_kept; i++)
        fprintf(stderr, "warning: %s\n", ctl->notes[i]);
    return ctl->notes_total > 0 ? EXIT_WARNING : EXIT_OK;
}

/* --- options --- */

int cli_number(const cli_t *cli, cli_option_t option, uint64_t most, uint64_t *value)
{
    const char *text = cli->value[option];
    char *end;
    if (text == NULL)
        return EXIT_OK;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (*text < '1' || *text > '9' || *end != '\0' || errno != 0 || number > most)
        return cli_usage("--%s is a number from 1 to %llu", cli_option_name(option),
                         (unsigned long long)most);
    *value = number;
    return EXIT_OK;
}

int cli_offline_point(const cli_t *cli, bk_point_wish_t *wish)
{
    const char *at = cli->value[OPT_AT];
    wish->set = cli->value[OPT_SET];
    wish->backup_id = cli->value[OPT_BACKUP_ID];
    wish->database = cli->value[OPT_DATABASE];
    if ((at != NULL) + (cli->value[OPT_TRANSACTION] != NULL) + (wish->backup_id != NULL) > 1)
        return cli_usage("--backup-id, --at and --transaction exclude each other");
    if (at != NULL && !bk_time_parse(at, &wish->time))
        return cli_usage("--at is a time like 2025-10-15T14:30:00Z");
    return cli_number(cli, OPT_TRANSACTION, INT64_MAX, &wish->transaction);
}
