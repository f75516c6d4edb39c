/*
 * t/lib/sessionload.c: how fast, and with how much memory, a session stores chunks and a fetch reads them.
 *
 *   sessionload DIR [MIB [LANES [CHUNK_BYTES [plain]]]]
 *
 * DIR gets a repository (and is left there).  Chunks are random, so nothing is saved by compression.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/repo.h"
#include "repo/session.h"

typedef struct {
    bk_session_t *session;
    uint64_t first, count;
    size_t len;
    bk_id_t *ids;
    bk_rc_t rc;
    bk_err_t err;
} lane_t;

static void stop(const char *what, const bk_err_t *err)
{
    fprintf(stderr, "%s: %s\n", what, err->text);
    exit(1);
}

static void fill(uint8_t *out, size_t len, uint64_t seed)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i + 8 <= len; i += 8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(out + i, &x, 8);
    }
}

static void *put_chunks(void *arg)
{
    lane_t *lane = arg;
    uint8_t *data = calloc(lane->len, 1);
    for (uint64_t i = 0; i < lane->count && lane->rc == BK_OK; i++) {
        fill(data, lane->len, lane->first + i);
        lane->rc = bk_session_put(lane->session, BK_TYPE_FILE, true, data, lane->len, &lane->ids[i],
                                  &lane->err);
    }
    free(data);
    return NULL;
}

static double seconds_since(int64_t start)
{
    return (double)(bk_mono() - start) / 1e9;
}

static long peak_kib(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

typedef struct {
    bk_repo_t *repo;
    bk_want_chunk_t *wants;
    size_t count;
} fetch_t;

static bk_rc_t count_bytes(void *arg, const bk_want_chunk_t *want, const uint8_t *data,
                           const bk_err_t *failure, bk_err_t *err)
{
    (void)arg;
    if (data == NULL)
        return bk_err_set(err, failure->rc, "%s", failure->text);
    return want->raw > 0 ? BK_OK : BK_CORRUPT;
}

static bk_rc_t fetch_all(bk_team_t *team, void *arg, bk_err_t *err)
{
    fetch_t *fetch = arg;
    return bk_repo_fetch(fetch->repo, fetch->wants, fetch->count, team, count_bytes, NULL, NULL,
                         err);
}

static bk_repo_t *open_repo(const char *dir, bool plain, bk_storage_t **storage)
{
    static const uint8_t key[BK_KEY_SIZE] = {1};
    char cache[4096], spool[4096], path[4096];
    bk_err_t err = {0};
    bk_repo_t *repo = NULL;
    bk_storage_config_t config = {.driver = bk_strdup("local"), .name = bk_strdup("disk")};
    bk_fmt(cache, sizeof cache, "%s/cache", dir);
    bk_fmt(spool, sizeof spool, "%s/spool", dir);
    bk_fmt(path, sizeof path, "%s/storage", dir);
    if (bk_mkdirs(cache, 0700, &err) != BK_OK || bk_mkdirs(spool, 0700, &err) != BK_OK ||
        bk_storage_config_set(&config, "path", path, &err) != BK_OK ||
        bk_storage_open(&config, storage, &err) != BK_OK)
        stop(dir, &err);
    bk_storage_config_free(&config);
    bk_repo_options_t options = {.storage = *storage,
                                 .cache_dir = cache,
                                 .spool_dir = spool,
                                 .secret.key = plain ? NULL : key,
                                 .create = true,
                                 .plain = plain};
    if (bk_repo_open(&options, NULL, &repo, &err) != BK_OK)
        stop("open", &err);
    return repo;
}

static double put_all(bk_repo_t *repo, const char *id, lane_t *lanes, size_t lane_count)
{
    pthread_t threads[64];
    bk_err_t err = {0};
    bk_session_t *session = NULL;
    bk_session_options_t options = {
        .host = "load", .compression = {BK_CODEC_ZSTD, 3}, .upload = true};
    int64_t start = bk_mono();
    if (bk_session_begin(repo, &options, NULL, &session, &err) != BK_OK)
        stop("begin", &err);
    for (size_t i = 0; i < lane_count; i++) {
        lanes[i].session = session;
        if (pthread_create(&threads[i], NULL, put_chunks, &lanes[i]) != 0)
            exit(1);
    }
    for (size_t i = 0; i < lane_count; i++) {
        pthread_join(threads[i], NULL);
        if (lanes[i].rc != BK_OK)
            stop("put", &lanes[i].err);
    }
    if (bk_session_commit(session, id, "{}", 2, &err) != BK_OK)
        stop("commit", &err);
    return seconds_since(start);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: sessionload DIR [MIB [LANES [CHUNK_BYTES [plain]]]]\n");
        return 2;
    }
    uint64_t mib = argc > 2 ? strtoull(argv[2], NULL, 10) : 512;
    size_t lane_count = argc > 3 ? strtoul(argv[3], NULL, 10) : 4;
    size_t len = argc > 4 ? strtoul(argv[4], NULL, 10) : 2u << 20;
    bool plain = argc > 5 && strcmp(argv[5], "plain") == 0;
    if (lane_count < 1 || lane_count > 64 || len < 8 || len > BK_CHUNK_MAX)
        return 2;
    bk_storage_t *storage = NULL;
    bk_repo_t *repo = open_repo(argv[1], plain, &storage);
    lane_t lanes[64] = {{0}};
    uint64_t each = (mib << 20) / len / lane_count, total = each * lane_count;
    bk_id_t *ids = calloc(total + 1, sizeof *ids);
    for (size_t i = 0; i < lane_count; i++)
        lanes[i] =
            (lane_t){.first = 1 + i * each, .count = each, .len = len, .ids = ids + i * each};
    uint64_t bytes = total * len;
    double first = put_all(repo, "full_20251015_143000", lanes, lane_count);
    printf("store    %7.0f MB/s  %8.0f chunks/s  peak %ld KiB\n", (double)bytes / 1e6 / first,
           (double)total / first, peak_kib());
    double again = put_all(repo, "full_20251015_143001", lanes, lane_count);
    printf("known    %7.0f MB/s  %8.0f chunks/s  peak %ld KiB\n", (double)bytes / 1e6 / again,
           (double)total / again, peak_kib());
    fetch_t fetch = {
        .repo = repo, .wants = calloc(total + 1, sizeof(bk_want_chunk_t)), .count = total};
    for (uint64_t i = 0; i < total; i++)
        fetch.wants[i] = (bk_want_chunk_t){.id = ids[i], .raw = (uint32_t)len};
    bk_err_t err = {0};
    int64_t start = bk_mono();
    if (bk_team_run((unsigned)lane_count, fetch_all, &fetch, &err) != BK_OK)
        stop("fetch", &err);
    printf("fetch    %7.0f MB/s  %8.0f chunks/s  peak %ld KiB\n",
           (double)bytes / 1e6 / seconds_since(start), (double)total / seconds_since(start),
           peak_kib());
    free(fetch.wants);
    free(ids);
    bk_repo_close(repo);
    bk_storage_close(storage);
    return 0;
}
