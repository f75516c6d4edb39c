/*
 * cli/offline.h: opening a repository by URL and key, for the commands that need no nginx.
 */
#ifndef BK_CLI_OFFLINE_H
#define BK_CLI_OFFLINE_H

#include "cli/cli.h"
#include "repo/repo.h"

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

#endif
