/*
 * cli/keys.c: keys of repositories and tokens of the API.  "key new" and "token new" need neither
 * nginx nor a storage. Secrets go to a file of mode 0600 or, where a person must keep them, once to
 * standard output.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/publish.h"
#include "base/str.h"
#include "cli/cli.h"
#include "cli/offline.h"
#include "crypto/keyring.h"

static int key_new(const cli_t *cli)
{
    const char *file = cli->argument[1];
    uint8_t key[BK_KEY_SIZE];
    char code[80], content[256];
    bk_err_t err = {0};

    if (file == NULL)
        return cli_usage("usage: ngx-backup key new FILE");
    bk_key_generate(key);
    bk_key_encode(code, key);
    bk_fmt(content, sizeof content,
           "# ngx-backup repository key: without it no backup can be read\n%s\n", code);
    bk_rc_t rc = bk_publish_bytes(AT_FDCWD, file, 0600, content, strlen(content), true, &err);
    if (rc == BK_OK)
        printf("%s\nWritten to %s. Keep a copy away from this machine and from the backups:\n"
               "without this key no backup can be read.\n",
               code, file);
    explicit_bzero(key, sizeof key);
    explicit_bzero(code, sizeof code);
    explicit_bzero(content, sizeof content);
    if (rc == BK_EXISTS)
        return cli_usage("%s exists; a key is never overwritten: choose another name", file);
    return rc == BK_OK ? EXIT_OK : cli_fail(&err);
}

static int print_slots(const cli_t *cli, bk_repo_t *repo, bk_err_t *err)
{
    json_t *list = NULL, *slot;
    size_t i;
    if (bk_repo_key_list(repo, &list, NULL, err) != BK_OK)
        return cli_fail(err);
    if (cli->value[OPT_JSON] != NULL) {
        cli_print_json(list);
    } else {
        printf("%-28s %-12s %-22s %s\n", "SLOT", "KIND", "CREATED", "LABEL");
        json_array_foreach(list, i, slot)
            printf("%-28s %-12s %-22s %s\n", json_string_value(json_object_get(slot, "id")),
                   json_string_value(json_object_get(slot, "kind")),
                   json_string_value(json_object_get(slot, "created")),
                   json_string_value(json_object_get(slot, "label")));
    }
    json_decref(list);
    return EXIT_OK;
}

static int key_add(const cli_t *cli, bk_repo_t *repo, bk_err_t *err)
{
    cli_secret_t secret;
    char slot[BK_STORAGE_NAME];
    const char *label = cli->value[OPT_LABEL];
    if (cli->value[OPT_NEW_KEY_FILE] == NULL && cli->value[OPT_NEW_PASSPHRASE_FILE] == NULL)
        return cli_usage("key add needs --new-key-file or --new-passphrase-file");
    bk_rc_t rc = cli_secret_read(cli->value[OPT_NEW_KEY_FILE], cli->value[OPT_NEW_PASSPHRASE_FILE],
                                 &secret, err);
    if (rc == BK_OK)
        rc =
            bk_repo_key_add(repo, &secret.secret, label ? label : "", slot, sizeof slot, NULL, err);
    cli_secret_wipe(&secret);
    if (rc != BK_OK)
        return cli_fail(err);
    printf("%s: added, and proved by opening the repository with it\n", slot);
    return EXIT_OK;
}

int cli_key(const cli_t *cli)
{
    const char *verb = cli->argument[0];
    cli_offline_t offline;
    bk_err_t err = {0};
    int code;

    if (strcmp(verb, "new") == 0)
        return key_new(cli);
    if (strcmp(verb, "list") != 0 && strcmp(verb, "add") != 0 && strcmp(verb, "remove") != 0)
        return cli_usage("key: new, list, add or remove, not '%s'", verb);
    if (cli->value[OPT_STORAGE] == NULL)
        return cli_usage("key %s works on a repository: give --storage and --key-file", verb);
    if (cli_offline_open(cli, &offline, &err) != BK_OK)
        return cli_fail(&err);
    if (strcmp(verb, "list") == 0) {
        code = print_slots(cli, offline.repo, &err);
    } else if (strcmp(verb, "add") == 0) {
        code = key_add(cli, offline.repo, &err);
    } else if (cli->argument[1] == NULL) {
        code = cli_usage("key remove SLOT: 'ngx-backup key list' shows the slots");
    } else if (bk_repo_key_remove(offline.repo, cli->argument[1], NULL, &err) != BK_OK) {
        code = cli_fail(&err);
    } else {
        printf("%s: removed\n", cli->argument[1]);
        code = EXIT_OK;
    }
    cli_offline_close(&offline);
    return code;
}

#define TOKEN_BYTES 32

int cli_token(const cli_t *cli)
{
    const char *role = cli->value[OPT_ROLE], *name = cli->value[OPT_NAME];
    uint8_t random[TOKEN_BYTES];
    char token[80], hex[BK_ID_HEX];
    bk_id_t digest;

    if (strcmp(cli->argument[0], "new") != 0)
        return cli_usage("usage: ngx-backup token new --role ROLE --name NAME");
    if (role == NULL || name == NULL)
        return cli_usage("token new needs --role viewer|operator|admin and --name NAME");
    if (strcmp(role, "viewer") != 0 && strcmp(role, "operator") != 0 && strcmp(role, "admin") != 0)
        return cli_usage("'%s' is no role: viewer, operator or admin", role);
    if (strlen(name) > 64 ||
        strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.@-") !=
            strlen(name))
        return cli_usage("--name: letters, digits and _ . @ - only, at most 64");
    bk_random(random, sizeof random);
    memcpy(token, "nxb_", 4);
    bk_base32(token + 4, random, sizeof random);
    bk_sha256(&digest, token, strlen(token));
    bk_id_hex(hex, &digest);
    if (cli->value[OPT_JSON] != NULL)
        printf("{\"token\":\"%s\",\"line\":\"%s:%s:%s\"}\n", token, name, role, hex);
    else
        printf("token: %s\nline:  %s:%s:%s\n"
               "Give the token to the client; append the line to the file of backup_token_file and "
               "reload nginx.\n",
               token, name, role, hex);
    explicit_bzero(random, sizeof random);
    explicit_bzero(token, sizeof token);
    return EXIT_OK;
}
