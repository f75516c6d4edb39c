/*
 * cli/offline.h: opening a repository by URL and key, for the commands that need no nginx.
 */
#ifndef BK_CLI_OFFLINE_H
#define BK_CLI_OFFLINE_H

#include "base/team.h"
#include "cli/cli.h"
#include "engine/point.h"
#include "repo/repo.h"

#define CLI_LANES 4 /* threads of what is done here */

typedef struct {
    bk_secret_t secret; /* points into the members below, or both NULL */
    uint8_t key[BK_KEY_SIZE];
    bk_buf_t passphrase;
} cli_secret_t;

/* At most one of the two files; neither: an empty secret. */
bk_rc_t cli_secret_read(const char *key_file, const char *passphrase_file, cli_secret_t *secret,
                        bk_err_t *err);
void cli_secret_wipe(cli_secret_t *secret);

typedef struct {
    bk_storage_t *storage;
    bk_repo_t *repo;
    char scratch[256]; /* private directory, removed by close */
} cli_offline_t;

bk_rc_t cli_offline_open(const cli_t *cli, cli_offline_t *offline, bk_err_t *err);
void cli_offline_close(cli_offline_t *offline);

/* main_fn on the lanes of a team, and its progress shown meanwhile. */
bk_rc_t cli_offline_run(const cli_t *cli, bk_ctl_t *ctl,
                        bk_rc_t (*main_fn)(bk_team_t *team, void *arg, bk_err_t *err), void *arg,
                        bk_err_t *err);
/* The point that the options name; EXIT_OK, or EXIT_USAGE after a message. */
int cli_offline_point(const cli_t *cli, bk_point_wish_t *wish);
/* A number from 1 to most; *value stays when the option is not given.  As above. */
int cli_number(const cli_t *cli, cli_option_t option, uint64_t most, uint64_t *value);
/* The warnings of a command that is through, and its exit code by them. */
int cli_print_notes(bk_ctl_t *ctl);

#endif
