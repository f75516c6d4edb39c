/*
 * cli/client.c: one request to the REST API, over libcurl.  Knows where nginx is and who we are;
 * nothing of commands.
 */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/str.h"
#include "cli/cli.h"
#include "crypto/keyring.h"

#define DEFAULT_URL "http://127.0.0.1:8000/admin/backup"
#define ANSWER_MAX  (64u << 20)
#define TOKEN_MAX   4096u

static size_t receive(char *data, size_t size, size_t count, void *user)
{
    bk_buf_t *buf = user;
    bk_buf_add(buf, data, size * count);
    return bk_buf_ok(buf) ? size * count : 0;
}

static const char *setting(const cli_t *cli, cli_option_t option, const char *variable)
{
    return cli->value[option] != NULL ? cli->value[option] : getenv(variable);
}

/* "Authorization: Bearer …" appended to headers; the token never appears among the arguments of a
 * process. */
static bk_rc_t add_token(const cli_t *cli, struct curl_slist **headers, bk_err_t *err)
{
    const char *file = setting(cli, OPT_TOKEN_FILE, "NGX_BACKUP_TOKEN_FILE");
    if (file == NULL)
        return BK_OK;
    bk_buf_t token;
    char line[TOKEN_MAX + 32];
    bk_buf_init(&token, TOKEN_MAX);
    bk_rc_t rc = bk_secret_read_file(file, &token, err);
    if (rc == BK_OK) {
        bk_fmt(line, sizeof line, "Authorization: Bearer %s", bk_buf_str(&token));
        struct curl_slist *more = curl_slist_append(*headers, line);
        if (more == NULL)
            rc = bk_err_set(err, BK_NO_MEMORY, "request: out of memory");
        else
            *headers = more;
        explicit_bzero(line, sizeof line);
    }
    bk_buf_wipe(&token);
    return rc;
}

static bk_rc_t perform(CURL *curl, const char *url, bk_buf_t *received, cli_answer_t *answer,
                       bk_err_t *err)
{
    CURLcode code = curl_easy_perform(curl);
    if (code == CURLE_COULDNT_CONNECT || code == CURLE_COULDNT_RESOLVE_HOST)
        return bk_err_set(
            err, BK_FAILED,
            "%s: cannot connect: is nginx running there? Set --url, or use --storage to "
            "work without nginx",
            url);
    if (code != CURLE_OK)
        return bk_err_set(err, BK_FAILED, "%s: %s", url, curl_easy_strerror(code));
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer->status);
    if (received->len > 0 &&
        bk_json_parse(received->data, received->len, &answer->body, err) != BK_OK)
        return bk_err_set(
            err, BK_FAILED,
            "%s: status %ld without a JSON body: is this the location with backup_api?", url,
            answer->status);
    return BK_OK;
}

bk_rc_t cli_rc_of(const char *code)
{
    for (int number = 1; code != NULL && number < 64; number++)
        if (strcmp(bk_rc_code((bk_rc_t)number), code) == 0)
            return (bk_rc_t)number;
    return BK_FAILED;
}

/* A problem document becomes our own failure with the same code, text and exit code.  Its detail
 * has the first of the errors. */
static bk_rc_t problem(const cli_answer_t *answer, const char *url, bk_err_t *err)
{
    const char *code = json_string_value(json_object_get(answer->body, "code"));
    const char *detail = json_string_value(json_object_get(answer->body, "detail"));
    bk_rc_t rc = cli_rc_of(code);
    if (answer->status == 401)
        return bk_err_set(err, rc, "%s: the server asks for a token: give --token-file", url);
    char text[BK_ERR_TEXT] = "";
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(answer->body, "errors"), index, item)
    {
        size_t used = strlen(text);
        if (index > 0)
            bk_fmt(text + used, sizeof text - used, "; %s %s",
                   json_string_value(json_object_get(item, "pointer")),
                   json_string_value(json_object_get(item, "detail")));
    }
    return bk_err_set(err, rc, "%s%s", detail ? detail : "the server refused the request", text);
}

bk_rc_t cli_request(const cli_t *cli, const char *method, const char *path, json_t *body,
                    cli_answer_t *answer, bk_err_t *err)
{
    const char *base = setting(cli, OPT_URL, "NGX_BACKUP_URL");
    struct curl_slist *headers = NULL;
    bk_buf_t received, sent;
    char url[2048];
    bk_rc_t rc;

    *answer = (cli_answer_t){0};
    bk_buf_init(&received, ANSWER_MAX);
    bk_buf_init(&sent, 1u << 20);
    if (base == NULL)
        base = DEFAULT_URL;
    CURL *curl = curl_easy_init();
    if (curl == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "request: out of memory");
    if (!bk_fmt(url, sizeof url, "%s%s", base, path)) {
        rc = bk_err_set(err, BK_INVALID, "%s: the URL is too long", base);
        goto done;
    }
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "127.0.0.1,localhost,::1");
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, 10000L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, 120000L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &received);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "ngx-backup/" BK_VERSION);
    if (cli->value[OPT_SOCKET] != NULL)
        curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, cli->value[OPT_SOCKET]);
    if ((rc = add_token(cli, &headers, err)) != BK_OK)
        goto done;
    /* Without a body, too: where no token shows that it is not a browser, this does. */
    if (strcmp(method, "GET") != 0)
        headers = curl_slist_append(headers, "Content-Type: application/json");
    if (body != NULL) {
        if ((rc = bk_json_dump(body, false, &sent, err)) != BK_OK)
            goto done;
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, (const char *)sent.data);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)sent.len);
    }
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    rc = perform(curl, url, &received, answer, err);
    if (rc == BK_OK && answer->status >= 400 && answer->status != 503)
        rc = problem(answer, url, err);
    else if (rc == BK_OK && answer->status == 503 && json_object_get(answer->body, "code") != NULL)
        rc = problem(answer, url, err);
done:
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    bk_buf_free(&received);
    bk_buf_free(&sent);
    if (rc != BK_OK)
        cli_answer_free(answer);
    return rc;
}

void cli_answer_free(cli_answer_t *answer)
{
    json_decref(answer->body);
    answer->body = NULL;
}

char *cli_escape(const char *text)
{
    char *escaped = curl_easy_escape(NULL, text, 0);
    char *copy = bk_strdup(escaped);
    curl_free(escaped);
    return copy;
}
