/*
 * t/lib/micro.c: how fast one core does each step of storing a chunk, and the index its look-ups.
 *
 *   micro [NAME]      rows whose name contains NAME; prints MB/s, or nanoseconds a call
 *
 * Figures to compare within one run on one machine, nothing to assert.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/chunker.h"
#include "repo/index.h"
#include "repo/pack.h"

#define DATA  (64u << 20)
#define SMALL 4096u
#define LEAST (400 * BK_MS)

static const uint8_t uuid[BK_UUID_SIZE] = {1};
static const char *filter = "";
static uint8_t *noise, *text;
static bk_err_t err;

static void must(bool good, const char *what)
{
    if (!good) {
        fprintf(stderr, "micro: %s: %s\n", what, err.text);
        exit(1);
    }
}

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Repeat for LEAST; each call handles so many bytes, or is only counted. */
static void measure(const char *name, void (*call)(void *arg), void *arg, size_t bytes)
{
    if (strstr(name, filter) == NULL)
        return;
    call(arg);
    uint64_t calls = 0;
    int64_t start = bk_mono(), spent;
    do {
        call(arg);
        calls++;
        spent = bk_mono() - start;
    } while (spent < LEAST);
    if (bytes > 0)
        printf("%-34s %9.0f MB/s\n", name, (double)calls * (double)bytes * 1e3 / (double)spent);
    else
        printf("%-34s %9.0f ns\n", name, (double)spent / (double)calls);
    fflush(stdout);
}

typedef struct {
    bk_keyring_t *ring;
    bk_object_key_t key;
    bk_chunker_t chunker;
    size_t len;
    uint8_t *out;
} crypt_t;

static void hash_once(void *arg)
{
    crypt_t *c = arg;
    bk_id_t id;
    for (size_t at = 0; at < DATA; at += c->len)
        bk_sha256(&id, noise + at, c->len);
}

static void id_once(void *arg)
{
    crypt_t *c = arg;
    bk_id_t id;
    for (size_t at = 0; at < DATA; at += c->len)
        bk_chunk_id(c->ring, BK_TYPE_FILE, noise + at, c->len, &id);
}

static void seal_once(void *arg)
{
    crypt_t *c = arg;
    for (size_t at = 0; at < DATA; at += c->len)
        must(bk_object_seal(&c->key, BK_PART_FRAME, at, "123456", 6, noise + at, c->len, c->out,
                            &err) == BK_OK,
             "seal");
}

static void key_once(void *arg)
{
    crypt_t *c = arg;
    bk_object_key_t key;
    must(bk_object_key_open(c->ring, uuid, BK_KIND_PACK, c->key.header, &key, &err) == BK_OK,
         "open");
    bk_object_key_wipe(&key);
}

static void cut_once(void *arg)
{
    crypt_t *c = arg;
    for (size_t at = 0; at < DATA;)
        at += bk_chunker_cut(&c->chunker, noise + at, DATA - at);
}

/* What storing does with new data: cut, SHA-256 of the file, id, compress, seal, name of the pack. */
static void pipeline(const crypt_t *c, const uint8_t *data, bool probe)
{
    static const bk_compression_t how = {.codec = BK_CODEC_ZSTD, .level = 3};
    bk_sha256_t *file = bk_sha256_new();
    bk_pack_t pack;
    bk_id_t id, digest;
    must(file != NULL && bk_pack_init(&pack, BK_KIND_PACK, BK_PACK_TARGET,
                                      bk_keyring_encrypted(c->ring), &err) == BK_OK,
         "pack");
    for (size_t at = 0, n; at < DATA; at += n) {
        n = bk_chunker_cut(&c->chunker, data + at, DATA - at);
        bk_sha256_add(file, data + at, n);
        bk_chunk_id(c->ring, BK_TYPE_FILE, data + at, n, &id);
        must(bk_pack_append(&pack, &id, BK_TYPE_FILE, how, probe, data + at, n, &err) == BK_OK,
             "append");
        if (bk_pack_size(&pack) >= BK_PACK_TARGET || at + n == DATA) {
            must(bk_pack_finish(&pack, c->ring, uuid, &err) == BK_OK, "finish");
            free(pack.entries);
            bk_pack_reset(&pack);
        }
    }
    bk_sha256_end(file, &digest);
    bk_sha256_free(file);
    bk_pack_free(&pack);
}

static void pipeline_noise(void *arg)
{
    pipeline(arg, noise, true);
}

static void pipeline_text(void *arg)
{
    pipeline(arg, text, true);
}

static void crypto(void)
{
    bk_keyring_t *plain = bk_keyring_plain(), *ring = bk_keyring_new();
    crypt_t c = {.ring = ring, .len = BK_CHUNK_AVG, .out = malloc(BK_CHUNK_MAX + 16)};
    bk_id_t content = {{1}};
    must(plain != NULL && ring != NULL && c.out != NULL, "memory");
    must(bk_object_key_new(ring, uuid, BK_KIND_PACK, &content, &c.key, &err) == BK_OK, "key");
    bk_chunker_init(&c.chunker, bk_keyring_chunker_key(ring));
    measure("sha256, 2 MiB", hash_once, &c, DATA);
    measure("chunk id, 2 MiB", id_once, &c, DATA);
    measure("seal, 2 MiB", seal_once, &c, DATA);
    c.len = SMALL;
    measure("sha256, 4 KiB", hash_once, &c, DATA);
    measure("chunk id, 4 KiB", id_once, &c, DATA);
    measure("seal, 4 KiB", seal_once, &c, DATA);
    c.ring = plain;
    measure("chunk id plain, 4 KiB", id_once, &c, DATA);
    c.ring = ring;
    measure("object key of a header", key_once, &c, 0);
    measure("chunker", cut_once, &c, DATA);
    measure("pipeline, noise", pipeline_noise, &c, DATA);
    measure("pipeline, text", pipeline_text, &c, DATA);
    bk_keyring_free(plain);
    bk_keyring_free(ring);
    free(c.out);
}

/* An index on a storage of its own: so many segments with so many chunks each. */
typedef struct {
    char dir[64], cache[96];
    bk_keyring_t *ring;
    bk_objects_t objects;
    bk_index_t *index;
    uint64_t state;
    size_t segments, chunks;
} lookup_t;

static void chunk_name(bk_id_t *id, size_t segment, size_t chunk)
{
    size_t both[2] = {segment, chunk};
    bk_sha256(id, both, sizeof both);
}

static void make_segments(lookup_t *l)
{
    char name[BK_STORAGE_NAME];
    uint64_t bytes;
    bk_pack_entry_t *entries = calloc(l->chunks, sizeof *entries);
    must(entries != NULL, "memory");
    for (size_t s = 0; s < l->segments; s++) {
        bk_pack_t pack = {.kind = BK_KIND_PACK, .entries = entries, .count = l->chunks};
        const bk_pack_t *packs = &pack;
        pack.bytes.len = 16u << 20;
        chunk_name(&pack.name, s, SIZE_MAX);
        for (size_t i = 0; i < l->chunks; i++) {
            chunk_name(&entries[i].id, s, i);
            entries[i].offset = BK_OBJECT_HEADER;
            entries[i].stored = entries[i].raw = 100;
            entries[i].type = BK_TYPE_FILE;
        }
        must(bk_index_store(l->ring, uuid, &packs, 1, l->objects.storage, name, &bytes, NULL,
                            &err) == BK_OK,
             "store segment");
    }
    free(entries);
}

static void find_once(void *arg)
{
    lookup_t *l = arg;
    bk_location_t where;
    bk_id_t id;
    uint64_t r = next(&l->state);
    chunk_name(&id, r % l->segments, (r >> 32) % l->chunks);
    must(bk_index_find(l->index, &id, &where), "find");
}

static void miss_once(void *arg)
{
    lookup_t *l = arg;
    bk_location_t where;
    bk_id_t id;
    chunk_name(&id, SIZE_MAX, (size_t)next(&l->state));
    must(!bk_index_find(l->index, &id, &where), "miss");
}

static void refresh_once(void *arg)
{
    lookup_t *l = arg;
    must(bk_index_refresh(l->index, NULL, &err) == BK_OK, "refresh");
}

static void open_once(void *arg)
{
    lookup_t *l = arg;
    bk_index_close(l->index);
    must(bk_index_open(&l->objects, l->ring, uuid, l->cache, NULL, &l->index, &err) == BK_OK,
         "open");
}

static void lookups(size_t segments, size_t chunks)
{
    char name[64];
    lookup_t l = {.segments = segments, .chunks = chunks, .state = 88172645463325252u};
    bk_storage_config_t config = {.driver = bk_strdup("local"), .name = bk_strdup("bench")};
    bk_fmt(name, sizeof name, "index");
    if (strstr(name, filter) == NULL) {
        bk_storage_config_free(&config);
        return;
    }
    snprintf(l.dir, sizeof l.dir, "/tmp/ngx-backup-micro-XXXXXX");
    must(mkdtemp(l.dir) != NULL, "temporary directory");
    snprintf(l.cache, sizeof l.cache, "%s/cache", l.dir);
    must(bk_storage_config_set(&config, "path", l.dir, &err) == BK_OK &&
             bk_storage_open(&config, &l.objects.storage, &err) == BK_OK,
         "storage");
    bk_storage_config_free(&config);
    l.ring = bk_keyring_plain();
    must(l.ring != NULL, "memory");
    make_segments(&l);
    int64_t start = bk_mono();
    must(bk_index_open(&l.objects, l.ring, uuid, l.cache, NULL, &l.index, &err) == BK_OK, "open");
    printf("index of %zu x %zu: first open    %6.1f ms\n", segments, chunks,
           (double)(bk_mono() - start) / (double)BK_MS);
    const char *saved = filter;
    filter = "";
    measure("  open with its cache", open_once, &l, 0);
    measure("  refresh, nothing new", refresh_once, &l, 0);
    measure("  find (with 1 SHA-256)", find_once, &l, 0);
    measure("  miss (with 1 SHA-256)", miss_once, &l, 0);
    filter = saved;
    bk_index_close(l.index);
    bk_storage_close(l.objects.storage);
    bk_keyring_free(l.ring);
    must(bk_remove_tree(l.dir, true, &err) == BK_OK, "remove");
}

int main(int argc, char **argv)
{
    static const char words[16][12] = {
        "the",  "of",    "a ", "speaker", "and", "00:01:", "yes",   "we",
        "that", "said ", "to", "now,",    "\n",  "it is",  "audio", "text"};
    uint64_t state = 88172645463325252u;
    if (argc > 1)
        filter = argv[1];
    noise = malloc(DATA);
    text = malloc(DATA + 16);
    must(noise != NULL && text != NULL, "memory");
    for (size_t i = 0; i < DATA; i += 8) {
        uint64_t v = next(&state);
        memcpy(noise + i, &v, 8);
    }
    for (size_t i = 0; i < DATA;) {
        const char *word = words[next(&state) >> 60];
        size_t n = strlen(word);
        memcpy(text + i, word, n);
        text[i + n] = ' ';
        i += n + 1;
    }
    crypto();
    lookups(1, 32768);
    lookups(30, 32768);
    lookups(3000, 64);
    free(noise);
    free(text);
    return 0;
}
