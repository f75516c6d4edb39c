/*
 * repo/history.c: segments of transactions as objects of equal sealed parts, so that a page in the
 * middle of a long one costs one small read.
 *
 *   header 80 | part u32 | total u64 | ceil(total / part) times a sealed part
 *
 * Part n has domain FRAME, position n and AAD part | total.  Writes through a temporary file in the
 * spool; touches the storage only under wal/.
 */
#include "repo/history.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/publish.h"
#include "base/str.h"
#include "repo/repo_private.h"

#define PART     (64u << 10) /* content of a part as written here */
#define PART_MAX (8u << 20)  /* that a reader takes */
#define FIXED    (BK_OBJECT_HEADER + 12u)
#define DIGITS   20 /* of a transaction in a name: names sort as numbers do */

struct bk_history_reader_s {
    bk_repo_t *repo;
    bk_object_key_t key;
    char object[BK_STORAGE_NAME];
    uint32_t part;
    uint64_t total;
    uint64_t held; /* number of the part in bytes; UINT64_MAX: none */
    uint8_t *bytes;
};

/* --- names --- */

static bool database_valid(const char *text)
{
    size_t len = strlen(text);
    return len > 0 && len < BK_HISTORY_NAME && text[0] != '.' &&
           strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_.-") == len;
}

/* Everything before the SHA-256. */
static void name_prefix(char *out, const bk_history_name_t *name)
{
    char epoch[2 * BK_EPOCH_SIZE + 1];
    bk_hex(epoch, name->epoch, BK_EPOCH_SIZE);
    bk_fmt(out, BK_STORAGE_NAME, "wal/%s/%s/%0*llu-%0*llu-", name->database, epoch, DIGITS,
           (unsigned long long)name->first, DIGITS, (unsigned long long)name->last);
}

void bk_history_object(char *out, const bk_history_item_t *item)
{
    char hex[BK_ID_HEX];
    name_prefix(out, &item->name);
    size_t len = strlen(out);
    bk_id_hex(hex, &item->id);
    bk_strcpy(out + len, BK_STORAGE_NAME - len, hex);
}

static bool take_number(const char **text, char after, uint64_t *number)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < DIGITS; i++) {
        unsigned digit = (unsigned)((*text)[i] - '0');
        if (digit > 9 || value > (UINT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    if ((*text)[DIGITS] != after)
        return false;
    *text += DIGITS + 1;
    *number = value;
    return true;
}

/* False: not a segment, and of no interest. */
static bool parse_name(const char *object, bk_history_item_t *item)
{
    const char *at = object + strlen("wal/"), *slash = strchr(at, '/');
    bk_history_name_t *name = &item->name;
    if (slash == NULL || (size_t)(slash - at) >= BK_HISTORY_NAME)
        return false;
    memcpy(name->database, at, (size_t)(slash - at));
    name->database[slash - at] = '\0';
    at = slash + 1;
    if (strlen(at) != 2 * BK_EPOCH_SIZE + 1 + 2 * (DIGITS + 1) + 2 * BK_ID_SIZE ||
        !bk_unhex(name->epoch, BK_EPOCH_SIZE, at, 2 * BK_EPOCH_SIZE) ||
        at[2 * BK_EPOCH_SIZE] != '/')
        return false;
    at += 2 * BK_EPOCH_SIZE + 1;
    return take_number(&at, '-', &name->first) && take_number(&at, '-', &name->last) &&
           name->first <= name->last && bk_id_unhex(&item->id, at, 2 * BK_ID_SIZE);
}

/* --- listing --- */

typedef struct {
    bk_history_list_t *list;
    size_t cap;
} growing_t;

static bk_rc_t add_item(void *arg, const bk_storage_item_t *found, bk_err_t *err)
{
    growing_t *growing = arg;
    bk_history_list_t *list = growing->list;
    if (list->count == growing->cap) {
        size_t cap = growing->cap > 0 ? 2 * growing->cap : 256;
        bk_history_item_t *more = realloc(list->items, cap * sizeof *more);
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "list transactions: out of memory");
        list->items = more;
        growing->cap = cap;
    }
    bk_history_item_t *item = &list->items[list->count];
    *item = (bk_history_item_t){.size = found->size, .mtime = found->mtime};
    if (parse_name(found->name, item))
        list->count++;
    return BK_OK;
}

static int by_place(const void *a, const void *b)
{
    const bk_history_item_t *x = a, *y = b;
    int order = memcmp(x->name.epoch, y->name.epoch, BK_EPOCH_SIZE);
    if (order != 0)
        return order;
    if (x->name.first != y->name.first)
        return x->name.first < y->name.first ? -1 : 1;
    if (x->name.last != y->name.last)
        return x->name.last > y->name.last ? -1 : 1;
    return bk_id_compare(&x->id, &y->id);
}

static bk_rc_t list_prefix(bk_repo_t *repo, const char *prefix, bk_ctl_t *ctl,
                           bk_history_list_t *list, bk_err_t *err)
{
    growing_t growing = {.list = list};
    *list = (bk_history_list_t){0};
    bk_rc_t rc = bk_storage_list(bk_repo_storage(repo), prefix, add_item, &growing, ctl, err);
    if (rc != BK_OK)
        bk_history_list_free(list);
    else if (list->count > 1)
        qsort(list->items, list->count, sizeof *list->items, by_place);
    return rc;
}

/* In the order of by_place the widest so far is the one that may hold the next. */
static void find_within(bk_history_list_t *list)
{
    size_t widest = 0;
    for (size_t i = 0; i < list->count; i++) {
        bk_history_item_t *item = &list->items[i];
        const bk_history_name_t *wide = &list->items[widest].name;
        bool same = memcmp(wide->epoch, item->name.epoch, BK_EPOCH_SIZE) == 0;
        if (i == 0 || !same || item->name.last > wide->last)
            widest = i;
        item->within = widest;
    }
}

bk_rc_t bk_history_list(bk_repo_t *repo, const char *database, const uint8_t *epoch, bk_ctl_t *ctl,
                        bk_history_list_t *list, bk_err_t *err)
{
    char prefix[BK_STORAGE_NAME], hex[2 * BK_EPOCH_SIZE + 1] = "";
    size_t count = 0;
    *list = (bk_history_list_t){0};
    if (!database_valid(database))
        return bk_err_set(err, BK_INVALID, "\"%s\" is not a database's name", database);
    if (epoch != NULL)
        bk_hex(hex, epoch, BK_EPOCH_SIZE);
    bk_fmt(prefix, sizeof prefix, "wal/%s/%s%s", database, hex, epoch != NULL ? "/" : "");
    bk_rc_t rc = list_prefix(repo, prefix, ctl, list, err);
    find_within(list);
    for (size_t i = 0; i < list->count; i++)
        if (list->items[i].within == i)
            list->items[count++] = list->items[i];
    list->count = count;
    return rc;
}

bk_rc_t bk_history_list_all(bk_repo_t *repo, const char *database, bk_ctl_t *ctl,
                            bk_history_list_t *list, bk_err_t *err)
{
    char prefix[BK_STORAGE_NAME];
    *list = (bk_history_list_t){0};
    if (!database_valid(database))
        return bk_err_set(err, BK_INVALID, "\"%s\" is not a database's name", database);
    bk_fmt(prefix, sizeof prefix, "wal/%s/", database);
    bk_rc_t rc = list_prefix(repo, prefix, ctl, list, err);
    find_within(list);
    return rc;
}

/* --- holes --- */

bool bk_history_parse(const char *object, bk_history_name_t *name)
{
    bk_history_item_t item;
    if (strncmp(object, "wal/", 4) != 0 || !parse_name(object, &item))
        return false;
    *name = item.name;
    return true;
}

static int by_database(const void *a, const void *b)
{
    const bk_history_item_t *x = a, *y = b;
    int order = strcmp(x->name.database, y->name.database);
    return order != 0 ? order : by_place(a, b);
}

static bk_rc_t list_every(bk_repo_t *repo, const char *prefix, bk_ctl_t *ctl,
                          bk_history_list_t *list, bk_err_t *err)
{
    bk_rc_t rc = list_prefix(repo, prefix, ctl, list, err);
    if (rc == BK_OK && list->count > 1)
        qsort(list->items, list->count, sizeof *list->items, by_database);
    return rc;
}

bk_rc_t bk_history_list_every(bk_repo_t *repo, bk_ctl_t *ctl, bk_history_list_t *list,
                              bk_err_t *err)
{
    return list_every(repo, "wal/", ctl, list, err);
}

static bool same_epoch(const bk_history_name_t *a, const bk_history_name_t *b)
{
    return strcmp(a->database, b->database) == 0 && memcmp(a->epoch, b->epoch, BK_EPOCH_SIZE) == 0;
}

/* Makes the list one of what is missing between its items. */
static void keep_holes(bk_history_list_t *list)
{
    size_t count = 0;
    bk_history_name_t before = {.first = 0};
    for (size_t i = 0; i < list->count; i++) {
        const bk_history_name_t name = list->items[i].name;
        bool same = i > 0 && same_epoch(&before, &name);
        if (same && name.first > before.last + 1) {
            bk_history_name_t *hole = &list->items[count++].name;
            *hole = name;
            hole->first = before.last + 1;
            hole->last = name.first - 1;
        }
        if (!same || name.last > before.last)
            before = name;
    }
    list->count = count;
}

static bool has_hole(const bk_history_list_t *list, const bk_history_name_t *hole)
{
    for (size_t i = 0; i < list->count; i++) {
        const bk_history_name_t *other = &list->items[i].name;
        if (same_epoch(other, hole) && other->first == hole->first && other->last == hole->last)
            return true;
    }
    return false;
}

/* A list that is made while somebody removes the oldest ones may lack some in the middle: what is
 * missing is so twice. */
bk_rc_t bk_history_missing(bk_repo_t *repo, const char *set, bk_history_range_fn fn, void *arg,
                           bk_ctl_t *ctl, bk_err_t *err)
{
    char prefix[BK_STORAGE_NAME];
    bk_history_list_t list, again = {0};
    if (!bk_fmt(prefix, sizeof prefix, "wal/%s%s", set != NULL ? set : "", set != NULL ? "." : ""))
        return bk_err_set(err, BK_INVALID, "\"%s\" is not a set's name", set);
    bk_rc_t rc = list_every(repo, prefix, ctl, &list, err);
    keep_holes(&list);
    if (rc == BK_OK && list.count > 0) {
        rc = list_every(repo, prefix, ctl, &again, err);
        keep_holes(&again);
    }
    for (size_t i = 0; i < list.count && rc == BK_OK; i++)
        if (has_hole(&again, &list.items[i].name))
            rc = fn(arg, &list.items[i].name, err);
    bk_history_list_free(&again);
    bk_history_list_free(&list);
    return rc;
}

typedef struct {
    size_t skip; /* "wal/<set>." */
    size_t last; /* where the name that was added last begins */
    bk_buf_t *names;
} databases_t;

static bk_rc_t add_database(void *arg, const bk_storage_item_t *found, bk_err_t *err)
{
    databases_t *d = arg;
    const char *name = found->name + d->skip, *slash = strchr(name, '/');
    size_t len = slash != NULL ? (size_t)(slash - name) : 0;
    if (len == 0 || len >= BK_HISTORY_NAME)
        return BK_OK;
    if (d->names->len > 0 && strlen((const char *)d->names->data + d->last) == len &&
        memcmp(d->names->data + d->last, name, len) == 0)
        return BK_OK;
    d->last = d->names->len;
    bk_buf_add(d->names, name, len);
    bk_buf_add(d->names, "", 1);
    return bk_buf_ok(d->names) ? BK_OK
                               : bk_err_set(err, BK_NO_MEMORY, "list transactions: out of memory");
}

bk_rc_t bk_history_databases(bk_repo_t *repo, const char *set, bk_buf_t *names, bk_ctl_t *ctl,
                             bk_err_t *err)
{
    char prefix[BK_STORAGE_NAME];
    if (!bk_fmt(prefix, sizeof prefix, "wal/%s.", set))
        return bk_err_set(err, BK_INVALID, "\"%s\" is not a set's name", set);
    databases_t d = {.skip = strlen(prefix), .names = names};
    return bk_storage_list(bk_repo_storage(repo), prefix, add_database, &d, ctl, err);
}

void bk_history_list_free(bk_history_list_t *list)
{
    if (list == NULL)
        return;
    free(list->items);
    *list = (bk_history_list_t){0};
}

bk_rc_t bk_history_remove(bk_repo_t *repo, const bk_history_item_t *item, bk_ctl_t *ctl,
                          bk_err_t *err)
{
    char object[BK_STORAGE_NAME];
    bk_history_object(object, item);
    return bk_storage_remove(bk_repo_storage(repo), object, ctl, err);
}

/* --- writing --- */

static void encode_fixed(uint8_t out[12], uint32_t part, uint64_t total)
{
    bk_put_u32(out, part);
    bk_put_u64(out + 4, total);
}

/* Part number n of the content, in full. */
static bk_rc_t read_part(int fd, uint64_t n, uint64_t size, uint8_t *out, size_t *len,
                         bk_err_t *err)
{
    uint64_t offset = n * PART;
    size_t want = size - offset < PART ? (size_t)(size - offset) : PART;
    bk_rc_t rc = bk_pread_all(fd, out, want, offset, len, "a segment of transactions", err);
    if (rc == BK_OK && *len != want)
        rc = bk_err_set(err, BK_CHANGED, "a segment of transactions is shorter than it was");
    return rc;
}

static bk_rc_t digest_content(int fd, uint64_t size, uint8_t *part, bk_id_t *digest, bk_ctl_t *ctl,
                              bk_err_t *err)
{
    bk_sha256_t *sha = bk_sha256_new();
    bk_rc_t rc = sha != NULL ? BK_OK : bk_err_set(err, BK_NO_MEMORY, "ship transactions");
    for (uint64_t n = 0; rc == BK_OK && n * PART < size; n++) {
        size_t len = 0;
        rc = bk_ctl_check(ctl, err);
        if (rc == BK_OK)
            rc = read_part(fd, n, size, part, &len, err);
        bk_sha256_add(sha, part, len);
    }
    if (sha != NULL)
        bk_sha256_end(sha, digest);
    bk_sha256_free(sha);
    return rc;
}

static bk_rc_t write_hashed(bk_publish_t *pub, bk_sha256_t *sha, const void *data, size_t len,
                            bk_err_t *err)
{
    bk_sha256_add(sha, data, len);
    return bk_write_all(pub->fd, data, len, "a segment in the spool", err);
}

/* The object's bytes into pub; id is their SHA-256. */
static bk_rc_t seal(bk_repo_t *repo, int fd, uint64_t size, bk_publish_t *pub, bk_id_t *id,
                    bk_ctl_t *ctl, bk_err_t *err)
{
    uint8_t fixed[12];
    bk_object_key_t key = {0};
    bk_id_t content;
    bk_sha256_t *sha = bk_sha256_new();
    uint8_t *part = malloc(PART + BK_OBJECT_TAG);
    bk_rc_t rc = sha != NULL && part != NULL
                     ? BK_OK
                     : bk_err_set(err, BK_NO_MEMORY, "ship transactions: out of memory");
    encode_fixed(fixed, PART, size);
    if (rc == BK_OK)
        rc = digest_content(fd, size, part, &content, ctl, err);
    if (rc == BK_OK)
        rc = bk_object_key_new(bk_repo_keyring(repo), bk_repo_uuid(repo), BK_KIND_WAL, &content,
                               &key, err);
    if (rc == BK_OK)
        rc = write_hashed(pub, sha, key.header, sizeof key.header, err);
    if (rc == BK_OK)
        rc = write_hashed(pub, sha, fixed, sizeof fixed, err);
    for (uint64_t n = 0; rc == BK_OK && n * PART < size; n++) {
        size_t len = 0;
        rc = bk_ctl_check(ctl, err);
        if (rc == BK_OK)
            rc = read_part(fd, n, size, part, &len, err);
        if (rc == BK_OK)
            rc = bk_object_seal(&key, BK_PART_FRAME, n, fixed, sizeof fixed, part, len, part, err);
        if (rc == BK_OK)
            rc = write_hashed(pub, sha, part, len + bk_object_overhead(&key), err);
    }
    if (rc == BK_OK)
        bk_sha256_end(sha, id);
    bk_object_key_wipe(&key);
    bk_sha256_free(sha);
    free(part);
    return rc;
}

/* Is there one for just these transactions?  What lies under a name is whole. */
static bk_rc_t is_there(bk_repo_t *repo, const bk_history_name_t *name, bool *there, bk_ctl_t *ctl,
                        bk_err_t *err)
{
    char prefix[BK_STORAGE_NAME];
    bk_history_list_t list;
    name_prefix(prefix, name);
    bk_rc_t rc = list_prefix(repo, prefix, ctl, &list, err);
    *there = list.count > 0;
    bk_history_list_free(&list);
    return rc;
}

static bk_rc_t publish(bk_repo_t *repo, bk_history_item_t *item, int fd, uint64_t size,
                       bk_ctl_t *ctl, bk_err_t *err)
{
    char spooled[4096], object[BK_STORAGE_NAME];
    bk_publish_t pub;
    if (!bk_fmt(spooled, sizeof spooled, "%s/wal-%s", bk_repo_spool_dir(repo), item->name.database))
        return bk_err_set(err, BK_TOO_LARGE, "spool %s: path too long", bk_repo_spool_dir(repo));
    bk_rc_t rc = bk_publish_open(&pub, AT_FDCWD, spooled, 0600, err);
    if (rc != BK_OK)
        return rc;
    rc = seal(repo, fd, size, &pub, &item->id, ctl, err);
    if (rc != BK_OK) {
        bk_publish_abort(&pub);
        return rc;
    }
    rc = bk_publish_commit(&pub, false, err);
    if (rc != BK_OK)
        return rc;
    bk_history_object(object, item);
    rc = bk_storage_put_file(bk_repo_storage(repo), object, spooled, ctl, err);
    (void)unlink(spooled); /* what stays is replaced by the next one */
    return rc;
}

bk_rc_t bk_history_put(bk_repo_t *repo, const bk_history_name_t *name, int fd, uint64_t size,
                       bk_ctl_t *ctl, bk_err_t *err)
{
    bk_history_item_t item = {.name = *name};
    bool there = false;
    if (bk_repo_spool_dir(repo) == NULL)
        return bk_err_set(err, BK_UNSUPPORTED, "the repository is open for reading only");
    if (!database_valid(name->database) || name->first > name->last || size > BK_HISTORY_LIMIT)
        return bk_err_set(err, BK_INVALID, "transactions of \"%s\": not a valid segment",
                          name->database);
    bk_rc_t rc = is_there(repo, name, &there, ctl, err);
    if (rc == BK_OK && !there)
        rc = publish(repo, &item, fd, size, ctl, err);
    return rc;
}

/* --- reading --- */

static bk_rc_t read_exactly(const bk_history_reader_t *reader, uint64_t offset, void *out,
                            size_t len, bk_ctl_t *ctl, bk_err_t *err)
{
    size_t got = 0;
    bk_rc_t rc = bk_storage_get(bk_repo_storage(reader->repo), reader->object, offset, len, out,
                                &got, ctl, err);
    if (rc == BK_OK && got != len)
        rc = bk_err_set(err, BK_CORRUPT, "%s: it is cut off", reader->object);
    return rc;
}

static uint64_t object_size(const bk_history_reader_t *reader)
{
    uint64_t parts = (reader->total + reader->part - 1) / reader->part;
    return FIXED + reader->total + parts * bk_object_overhead(&reader->key);
}

/* reader->object is set.  size: of the object. */
static bk_rc_t open_object(bk_history_reader_t *reader, uint64_t size, bk_ctl_t *ctl, bk_err_t *err)
{
    uint8_t head[FIXED];
    bk_repo_t *repo = reader->repo;
    bk_rc_t rc = read_exactly(reader, 0, head, sizeof head, ctl, err);
    if (rc == BK_OK)
        rc = bk_object_key_open(bk_repo_keyring(repo), bk_repo_uuid(repo), BK_KIND_WAL, head,
                                &reader->key, err);
    if (rc != BK_OK)
        return rc;
    reader->part = bk_get_u32(head + BK_OBJECT_HEADER);
    reader->total = bk_get_u64(head + BK_OBJECT_HEADER + 4);
    reader->held = UINT64_MAX;
    if (reader->part == 0 || reader->part > PART_MAX || reader->total > BK_HISTORY_LIMIT ||
        object_size(reader) != size)
        return bk_err_set(err, BK_CORRUPT, "%s: its length is not what it says", reader->object);
    reader->bytes = malloc(reader->part + BK_OBJECT_TAG);
    if (reader->bytes == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read transactions: out of memory");
    return BK_OK;
}

static bk_rc_t reader_new(bk_repo_t *repo, const char *object, uint64_t size,
                          bk_history_reader_t **result, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_history_reader_t *reader = calloc(1, sizeof *reader);
    if (reader == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "read transactions: out of memory");
    reader->repo = repo;
    bk_strcpy(reader->object, sizeof reader->object, object);
    bk_rc_t rc = open_object(reader, size, ctl, err);
    if (rc == BK_OK)
        *result = reader;
    else
        bk_history_close(reader);
    return rc;
}

bk_rc_t bk_history_open(bk_repo_t *repo, const bk_history_item_t *item,
                        bk_history_reader_t **reader, bk_ctl_t *ctl, bk_err_t *err)
{
    char object[BK_STORAGE_NAME];
    bk_history_object(object, item);
    return reader_new(repo, object, item->size, reader, ctl, err);
}

void bk_history_close(bk_history_reader_t *reader)
{
    if (reader == NULL)
        return;
    bk_object_key_wipe(&reader->key);
    free(reader->bytes);
    free(reader);
}

uint64_t bk_history_length(const bk_history_reader_t *reader)
{
    return reader->total;
}

/* Part number n into reader->bytes. */
static bk_rc_t hold(bk_history_reader_t *reader, uint64_t n, bk_ctl_t *ctl, bk_err_t *err)
{
    uint8_t fixed[12];
    size_t overhead = bk_object_overhead(&reader->key);
    uint64_t offset = n * reader->part, left = reader->total - offset;
    size_t len = left < reader->part ? (size_t)left : reader->part;
    if (reader->held == n)
        return BK_OK;
    reader->held = UINT64_MAX;
    encode_fixed(fixed, reader->part, reader->total);
    bk_rc_t rc = read_exactly(reader, FIXED + offset + n * overhead, reader->bytes, len + overhead,
                              ctl, err);
    if (rc == BK_OK)
        rc = bk_object_unseal(&reader->key, BK_PART_FRAME, n, fixed, sizeof fixed, reader->bytes,
                              len + overhead, reader->bytes, err);
    if (rc == BK_OK)
        reader->held = n;
    return rc;
}

bk_rc_t bk_history_read(bk_history_reader_t *reader, uint64_t offset, void *out, size_t len,
                        bk_ctl_t *ctl, bk_err_t *err)
{
    uint8_t *to = out;
    if (offset > reader->total || len > reader->total - offset)
        return bk_err_set(err, BK_CORRUPT, "%s: it ends before %llu", reader->object,
                          (unsigned long long)(offset + len));
    while (len > 0) {
        uint64_t n = offset / reader->part;
        size_t skip = (size_t)(offset % reader->part);
        size_t take = reader->part - skip < len ? reader->part - skip : len;
        bk_rc_t rc = hold(reader, n, ctl, err);
        if (rc != BK_OK)
            return rc;
        memcpy(to, reader->bytes + skip, take);
        to += take;
        offset += take;
        len -= take;
    }
    return BK_OK;
}

bk_rc_t bk_history_check(bk_repo_t *repo, const char *object, uint64_t size, bk_ctl_t *ctl,
                         bk_err_t *err)
{
    bk_history_reader_t *reader = NULL;
    bk_rc_t rc = reader_new(repo, object, size, &reader, ctl, err);
    for (uint64_t n = 0; rc == BK_OK && n * reader->part < reader->total; n++) {
        rc = bk_ctl_check(ctl, err);
        if (rc == BK_OK)
            rc = hold(reader, n, ctl, err);
    }
    bk_history_close(reader);
    return rc;
}
