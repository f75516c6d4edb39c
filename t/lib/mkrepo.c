/*
 * t/lib/mkrepo.c: a small repository with every form the format has, and beside it what a restore must give back.
 *
 *   mkrepo DIRECTORY [raw | zstd | gzip [encrypted]]
 *
 * Makes DIRECTORY/expected/<backup id>/{files/tree,databases/main} with ordinary system calls, and stores them through the
 * repository's API in DIRECTORY/storage; when encrypted, its key is in DIRECTORY/key.  How a file is stored follows from the first letter of its name:
 * i inline, c chunks, m map, s sparse.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/map.h"
#include "repo/session.h"
#include "repo/snapshot.h"
#include "repo/tree.h"

enum { PAGE = 512, BLOCK = 1024, PAGES = 2301, CHUNK = 1000, PIECE = 7, HOLE = 4096 };

static bk_err_t err;

#define MUST(expression)                                                                           \
    do {                                                                                           \
        if ((expression) != BK_OK) {                                                               \
            fprintf(stderr, "mkrepo: %s: %s\n", #expression, err.text);                            \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static void die(const char *what)
{
    fprintf(stderr, "mkrepo: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* Formats a path or ends the program. */
#define PATH(out, ...)                                                                             \
    do {                                                                                           \
        if (!bk_fmt(out, sizeof(out), __VA_ARGS__))                                                \
            die("a path is too long");                                                             \
    } while (0)

/* --- what will be backed up --- */

static uint8_t content[2 << 20];

static void write_file(const char *dir, const char *name, const void *bytes, size_t len)
{
    char path[4096];
    PATH(path, "%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    if (fd < 0 || write(fd, bytes, len) != (ssize_t)len || close(fd) != 0)
        die(path);
}

static void make_dir(char *out, size_t size, const char *dir, const char *name)
{
    if (!bk_fmt(out, size, "%s/%s", dir, name) || mkdir(out, 0750) != 0)
        die(out);
}

static void make_files(const char *dir, unsigned generation)
{
    char sub[4096], name[64];
    for (size_t i = 0; i < sizeof content; i++)
        content[i] = (uint8_t)((i * 2654435761u) >> 13);
    write_file(dir, "i-empty", "", 0);
    write_file(dir, "i-small", "hello\n", 6);
    write_file(dir, "i-largest", content, BK_INLINE_MAX);
    write_file(dir, "c-one", content, 999);
    write_file(dir, "c-many", content, 123456);
    write_file(dir, "c-\xff\n \\ name", "bytes", 5);
    write_file(dir, generation == 1 ? "m-first" : "m-second", content + generation, 7500);
    memset(content, 0, 100 * HOLE);
    write_file(dir, "s-nothing-but-a-hole", content, 10 * HOLE);
    content[3 * HOLE] = content[9 * HOLE + 5] = 'x';
    write_file(dir, "s-data-between-holes", content, 20 * HOLE + 17);
    make_dir(sub, sizeof sub, dir, "empty directory");
    make_dir(sub, sizeof sub, dir, "many");
    for (unsigned i = 0; i < 3000; i++) {
        PATH(name, "i%05u", i);
        write_file(sub, name, name, generation == 2 && i == 1234 ? 2 : 6);
    }
    for (int depth = 0; depth < 20; depth++) {
        char below[4096];
        make_dir(below, sizeof below, depth == 0 ? dir : sub, "d");
        bk_strcpy(sub, sizeof sub, below);
    }
    write_file(sub, "i-deep", "deep", 4);
    PATH(sub, "%s/link", dir);
    if (symlink("../\xfe nowhere", sub) != 0)
        die(sub);
    PATH(sub, "%s/fifo", dir);
    if (mkfifo(sub, 0600) != 0)
        die(sub);
}

static void make_database(const char *dir)
{
    for (size_t i = 0; i < sizeof content; i++)
        content[i] = (uint8_t)((i * 40503u) >> 7);
    memset(content + 100 * BLOCK, 0, 50 * BLOCK);
    write_file(dir, "main", content, (size_t)PAGES * PAGE);
}

/* --- storing it --- */

static uint8_t *read_whole(const char *path, size_t *len)
{
    bk_buf_t buf;
    bk_buf_init(&buf, 64u << 20);
    MUST(bk_read_file(AT_FDCWD, path, &buf, &err));
    *len = buf.len;
    return buf.data; /* NULL when empty */
}

static void store_map(bk_session_t *session, const uint8_t *bytes, size_t len, size_t piece,
                      bk_type_t type, bk_map_t *map)
{
    bk_map_builder_t *builder = bk_map_builder_new(session);
    for (size_t at = 0; at < len; at += piece) {
        bk_chunk_ref_t ref = {.raw = (uint32_t)(len - at < piece ? len - at : piece)};
        size_t n = 0;
        while (n < ref.raw && bytes[at + n] == 0)
            n++;
        if (n < ref.raw) /* zeros are stored nowhere */
            MUST(bk_session_put(session, type, false, bytes + at, ref.raw, &ref.id, &err));
        MUST(bk_map_builder_add(builder, &ref, &err));
    }
    MUST(bk_map_builder_finish(builder, map, &err));
    bk_map_builder_free(builder);
}

static void store_chunks(bk_session_t *session, const uint8_t *bytes, size_t len, bk_entry_t *entry)
{
    static bk_chunk_ref_t refs[BK_MAP_FANOUT];
    entry->flags |= BK_ENTRY_CHUNKS;
    entry->chunks = refs;
    for (size_t at = 0; at < len; at += CHUNK) {
        bk_chunk_ref_t *ref = &refs[entry->chunk_count++];
        ref->raw = (uint32_t)(len - at < CHUNK ? len - at : CHUNK);
        MUST(bk_session_put(session, BK_TYPE_FILE, true, bytes + at, ref->raw, &ref->id, &err));
    }
}

static void store_sparse(bk_session_t *session, const uint8_t *bytes, size_t len, bk_entry_t *entry)
{
    bk_buf_t extents, data;
    uint32_t count = 0;
    bk_buf_init(&extents, 1u << 20);
    bk_buf_init(&data, 1u << 20);
    bk_buf_u32(&extents, 0);
    for (size_t at = 0; at < len; at += HOLE) {
        size_t n = len - at < HOLE ? len - at : HOLE, zeros = 0;
        while (zeros < n && bytes[at + zeros] == 0)
            zeros++;
        if (zeros == n)
            continue;
        bk_buf_u64(&extents, at);
        bk_buf_u64(&extents, n);
        bk_buf_add(&data, bytes + at, n);
        count++;
    }
    bk_put_u32(extents.data, count);
    entry->flags |= BK_ENTRY_EXTENTS;
    entry->data_bytes = data.len;
    MUST(bk_session_put(session, BK_TYPE_BLOB, false, extents.data, extents.len, &entry->extents,
                        &err));
    if (data.len > 0)
        store_chunks(session, data.data, data.len, entry);
    bk_buf_free(&extents);
    bk_buf_free(&data);
}

static void store_attributes(bk_session_t *session, bk_entry_t *entry)
{
    bk_buf_t blob;
    bk_buf_init(&blob, 4096);
    bk_buf_u32(&blob, 1);
    bk_buf_u16(&blob, 9);
    bk_buf_add(&blob, "user.test", 9);
    bk_buf_u32(&blob, 2);
    bk_buf_add(&blob, "\0\1", 2);
    entry->flags |= BK_ENTRY_ATTRS;
    MUST(bk_session_put(session, BK_TYPE_BLOB, false, blob.data, blob.len, &entry->attrs, &err));
    bk_buf_free(&blob);
}

/* The file's bytes, which the caller frees once the entry is stored. */
static uint8_t *store_file(bk_session_t *session, const char *path, const char *name,
                           bk_entry_t *entry)
{
    size_t len;
    bk_map_t map;
    uint8_t *bytes = read_whole(path, &len);
    entry->type = BK_ENTRY_FILE;
    entry->size = len;
    bk_sha256(&entry->sha256, bytes, len);
    switch (name[0]) {
    case 'i':
        if (len == 0)
            break;
        entry->flags |= BK_ENTRY_INLINE;
        entry->content = bytes;
        entry->content_len = (uint16_t)len;
        break;
    case 'm':
        store_map(session, bytes, len, PIECE, BK_TYPE_FILE, &map);
        entry->flags |= BK_ENTRY_MAP;
        entry->map = map.root;
        entry->map_count = map.count;
        entry->map_depth = map.depth;
        break;
    case 's':
        store_sparse(session, bytes, len, entry);
        break;
    default:
        store_chunks(session, bytes, len, entry);
        store_attributes(session, entry);
    }
    return bytes;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int no_dots(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

static void store_dir(bk_session_t *session, const char *dir, bk_id_t *root, uint64_t *entries)
{
    struct dirent **list;
    int count = scandir(dir, &list, no_dots, by_name);
    bk_tree_builder_t *builder = bk_tree_builder_new(session);
    if (count < 0)
        die(dir);
    for (int i = 0; i < count; i++) {
        char path[4096], target[BK_LINK_MAX + 1];
        struct stat st;
        uint8_t *bytes = NULL;
        const char *name = list[i]->d_name;
        PATH(path, "%s/%s", dir, name);
        if (lstat(path, &st) != 0)
            die(path);
        bk_entry_t entry = {.name = (const uint8_t *)name,
                            .name_len = (uint16_t)strlen(name),
                            .mode = st.st_mode & 07777,
                            .uid = st.st_uid,
                            .gid = st.st_gid,
                            .user = "root",
                            .user_len = 4,
                            .group = "",
                            .mtime = st.st_mtim.tv_sec * BK_SEC + st.st_mtim.tv_nsec,
                            .ctime = st.st_ctim.tv_sec * BK_SEC + st.st_ctim.tv_nsec,
                            .device = st.st_dev,
                            .inode = st.st_ino,
                            .links = (uint32_t)st.st_nlink};
        if (S_ISDIR(st.st_mode)) {
            entry.type = BK_ENTRY_DIR;
            store_dir(session, path, &entry.child, &entry.children);
        } else if (S_ISLNK(st.st_mode)) {
            ssize_t n = readlink(path, target, sizeof target);
            if (n < 0)
                die(path);
            entry.type = BK_ENTRY_LINK;
            entry.target = (const uint8_t *)target;
            entry.target_len = (uint16_t)n;
        } else if (S_ISFIFO(st.st_mode)) {
            entry.type = BK_ENTRY_FIFO;
        } else {
            bytes = store_file(session, path, name, &entry);
        }
        MUST(bk_tree_builder_add(builder, &entry, &err));
        free(bytes);
        free(list[i]);
    }
    free(list);
    MUST(bk_tree_builder_finish(builder, root, entries, &err));
    bk_tree_builder_free(builder);
}

static void store_database(bk_session_t *session, const char *path, bk_snapshot_db_t *db)
{
    size_t len;
    uint8_t *bytes = read_whole(path, &len);
    *db = (bk_snapshot_db_t){.name = "main",
                             .path = "/srv/app.db",
                             .page_size = PAGE,
                             .block_size = BLOCK,
                             .page_count = len / PAGE,
                             .journal = "wal",
                             .instant = bk_now(),
                             .mode = 0640};
    store_map(session, bytes, len, BLOCK, BK_TYPE_BLOCK, &db->map);
    for (uint64_t page = 1; page <= db->page_count; page++)
        db->digest ^= XXH3_64bits_withSeed(bytes + (page - 1) * PAGE, PAGE, page);
    free(bytes);
}

static void back_up(bk_repo_t *repo, const char *dir, unsigned generation, bk_compression_t how)
{
    char id[BK_BACKUP_ID], top[1024], path[2048];
    bk_session_t *session;
    bk_buf_t body;
    bk_session_options_t options = {.host = "mkrepo", .compression = how, .upload = true};
    bk_snapshot_tree_t tree = {.name = "tree", .path = "/srv/\xff"};
    bk_snapshot_db_t db;

    PATH(id, "full_20251015_14300%u", generation);
    PATH(top, "%s/expected/%s", dir, id);
    PATH(path, "%s/files/tree", top);
    MUST(bk_mkdirs(path, 0755, &err));
    make_files(path, generation);
    MUST(bk_session_begin(repo, &options, NULL, &session, &err));
    store_dir(session, path, &tree.root, &tree.entries);
    PATH(path, "%s/databases", top);
    MUST(bk_mkdirs(path, 0755, &err));
    make_database(path);
    PATH(path, "%s/databases/main", top);
    store_database(session, path, &db);

    bk_snapshot_t s = {.set = "sample \xe9", .host = "mkrepo", .trees = &tree, .tree_count = 1};
    bk_strcpy(s.backup_id, sizeof s.backup_id, id);
    bk_strcpy(s.kind, sizeof s.kind, "full");
    s.started = s.completed = s.instant = bk_now();
    s.dbs = &db;
    s.db_count = 1;
    bk_buf_init(&body, 1u << 20);
    MUST(bk_snapshot_encode(&s, &body, &err));
    MUST(bk_session_commit(session, id, body.data, body.len, &err));
    bk_buf_free(&body);
}

int main(int argc, char **argv)
{
    char cache[512], spool[512], url[512];
    bk_storage_config_t config = {0};
    bk_storage_t *storage;
    bk_repo_t *repo;
    uint8_t key[BK_KEY_SIZE];
    char text[80];
    if (argc < 2 || argc > 4 || (argc == 4 && strcmp(argv[3], "encrypted") != 0)) {
        fprintf(stderr, "usage: mkrepo DIRECTORY [raw | zstd | gzip [encrypted]]\n");
        return 2;
    }
    bool encrypted = argc == 4;
    const char *codec = argc >= 3 ? argv[2] : "zstd";
    bk_compression_t how = {.codec = strcmp(codec, "raw") == 0    ? BK_CODEC_RAW
                                     : strcmp(codec, "gzip") == 0 ? BK_CODEC_GZIP
                                                                  : BK_CODEC_ZSTD,
                            .level = 3};
    PATH(cache, "%s/cache", argv[1]);
    PATH(spool, "%s/spool", argv[1]);
    PATH(url, "file://%s/storage", argv[1]);
    MUST(bk_mkdirs(cache, 0700, &err));
    MUST(bk_mkdirs(spool, 0700, &err));
    MUST(bk_storage_config_url(&config, url, &err));
    MUST(bk_storage_open(&config, &storage, &err));
    bk_storage_config_free(&config);
    bk_repo_options_t options = {.storage = storage,
                                 .cache_dir = cache,
                                 .spool_dir = spool,
                                 .create = true,
                                 .plain = !encrypted,
                                 .label = "sample"};
    if (encrypted) {
        bk_key_generate(key);
        bk_key_encode(text, key);
        write_file(argv[1], "key", text, strlen(text));
        options.secret.key = key;
    }
    MUST(bk_repo_open(&options, NULL, &repo, &err));
    back_up(repo, argv[1], 1, how);
    back_up(repo, argv[1], 2, how);
    bk_repo_close(repo);
    bk_storage_close(storage);
    return 0;
}
