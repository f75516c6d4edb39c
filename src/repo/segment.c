/*
 * repo/segment.c: the layout of an index segment; everything that knows where a byte of it lies.
 */
#include "repo/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"

const uint8_t *bk_segment_pack_bytes(const bk_segment_t *s, uint32_t number)
{
    return s->bytes + BK_SEGMENT_PACKS + (size_t)number * BK_SEGMENT_PACK_BYTES;
}

const uint8_t *bk_segment_entry_bytes(const bk_segment_t *s, uint32_t number)
{
    return bk_segment_pack_bytes(s, s->packs) + (size_t)number * BK_SEGMENT_ENTRY_BYTES;
}

static uint32_t get_u24(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16;
}

static bk_kind_t kind_of(const uint8_t *pack)
{
    return (bk_kind_t)(pack[36] | pack[37] << 8);
}

/* --- checking --- */

/* The frame of the structure: everything but the entries themselves. */
static bk_rc_t check_shape(const uint8_t *bytes, size_t len, bk_segment_t *s, bk_err_t *err)
{
    if (len < BK_SEGMENT_PACKS + 8 || len > BK_SEGMENT_MAX ||
        memcmp(bytes, BK_SEGMENT_MAGIC, 8) != 0)
        return bk_err_set(err, BK_CORRUPT, "not an index segment, or cut off");
    if (bk_get_u32(bytes + 8) != BK_SEGMENT_VERSION)
        return bk_err_set(err, BK_UNSUPPORTED, "the index segment is of a newer version");
    s->packs = bk_get_u32(bytes + 12);
    s->entries = bk_get_u32(bytes + 16);
    s->superseded = bk_get_u32(bytes + 20);
    uint64_t fixed = BK_SEGMENT_PACKS + (uint64_t)s->packs * BK_SEGMENT_PACK_BYTES +
                     (uint64_t)s->entries * BK_SEGMENT_ENTRY_BYTES + 8;
    /* Each superseded name has a byte at least: nobody counts to four billion for a wrong number.
     */
    if (fixed + s->superseded > len)
        return bk_err_set(err, BK_CORRUPT, "the index segment is cut off");
    s->bytes = bytes;
    s->len = len;
    return BK_OK;
}

static bk_rc_t check_sum(const bk_segment_t *s, bk_err_t *err)
{
    if (XXH64(s->bytes, s->len - 8, 0) != bk_get_u64(s->bytes + s->len - 8))
        return bk_err_set(err, BK_CORRUPT, "the index segment's checksum does not fit");
    return BK_OK;
}

static bk_rc_t check_entries(const bk_segment_t *s, bk_err_t *err)
{
    uint32_t counts[256] = {0}, sum = 0;
    const uint8_t *entry = bk_segment_entry_bytes(s, 0);
    for (uint32_t i = 0; i < s->entries; i++, entry += BK_SEGMENT_ENTRY_BYTES) {
        uint32_t pack = bk_get_u32(entry + 32), stored = bk_get_u32(entry + 40);
        uint8_t type = entry[47] >> 4, codec = entry[47] & 15;
        if (pack >= s->packs || type < BK_TYPE_FILE || type > BK_TYPE_BLOB ||
            codec > BK_CODEC_GZIP || get_u24(entry + 44) > BK_CHUNK_MAX ||
            (i > 0 && memcmp(entry - BK_SEGMENT_ENTRY_BYTES, entry, BK_ID_SIZE) >= 0))
            return bk_err_set(err, BK_CORRUPT, "entry %u of the index segment is not valid", i);
        uint32_t size = bk_get_u32(bk_segment_pack_bytes(s, pack) + 32);
        if ((uint64_t)bk_get_u32(entry + 36) + stored > size || size > BK_PACK_MAX)
            return bk_err_set(err, BK_CORRUPT,
                              "entry %u of the index segment lies outside its pack", i);
        counts[entry[0]]++;
    }
    for (size_t i = 0; i < 256; i++) {
        sum += counts[i];
        if (bk_get_u32(s->bytes + BK_SEGMENT_HEADER + 4 * i) != sum)
            return bk_err_set(err, BK_CORRUPT, "the fan-out of the index segment is not valid");
    }
    bk_cur_t cur = bk_segment_superseded(s);
    for (uint32_t i = 0; i < s->superseded; i++)
        bk_cur_bytes(&cur, bk_cur_u8(&cur));
    if (!bk_cur_ok(&cur) || bk_cur_left(&cur) != 0)
        return bk_err_set(err, BK_CORRUPT, "the index segment has a wrong length");
    return BK_OK;
}

static bk_rc_t check_packs(const bk_segment_t *s, bk_err_t *err)
{
    for (uint32_t i = 0; i < s->packs; i++) {
        bk_kind_t kind = kind_of(bk_segment_pack_bytes(s, i));
        if (kind != BK_KIND_PACK && kind != BK_KIND_META)
            return bk_err_set(err, BK_CORRUPT, "pack %u of the index segment is not valid", i);
    }
    return BK_OK;
}

static bk_rc_t check_all(const uint8_t *bytes, size_t len, bk_segment_t *s, bk_err_t *err)
{
    bk_rc_t rc = check_shape(bytes, len, s, err);
    if (rc == BK_OK)
        rc = check_sum(s, err);
    if (rc == BK_OK)
        rc = check_packs(s, err);
    return rc == BK_OK ? check_entries(s, err) : rc;
}

bk_rc_t bk_index_check(const void *segment, size_t len, bk_err_t *err)
{
    bk_segment_t s = {0};
    return check_all(segment, len, &s, err);
}

/* --- holding --- */

static bk_rc_t make(const char *name, bk_segment_t **segment, bk_err_t *err)
{
    bk_segment_t *s = calloc(1, sizeof *s);
    if (s == NULL || (s->name = bk_strdup(name)) == NULL) {
        free(s);
        return bk_err_set(err, BK_NO_MEMORY, "read the index: out of memory");
    }
    atomic_init(&s->refs, 1);
    *segment = s;
    return BK_OK;
}

bk_rc_t bk_segment_take(const char *name, uint8_t *bytes, size_t len, bk_segment_t **segment,
                        bk_err_t *err)
{
    bk_segment_t *s = NULL;
    bk_rc_t rc = make(name, &s, err);
    if (rc == BK_OK)
        rc = check_all(bytes, len, s, err);
    if (rc == BK_OK) {
        *segment = s;
        return BK_OK;
    }
    free(bytes);
    if (s != NULL)
        s->bytes = NULL;
    bk_segment_unref(s);
    return rc;
}

bk_rc_t bk_segment_map(const char *name, const char *path, bk_segment_t **segment, bk_err_t *err)
{
    struct stat st;
    bk_segment_t *s = NULL;
    int fd = bk_openat(AT_FDCWD, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd < 0)
        return bk_err_sys(err, errno, "open index cache %s", path);
    void *map = MAP_FAILED;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0 &&
        st.st_size <= (off_t)BK_SEGMENT_MAX)
        map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return bk_err_set(err, BK_CORRUPT, "index cache %s is not usable", path);
    bk_rc_t rc = make(name, &s, err);
    /* The file may have been cut by a crash, and disks rot: one fast pass. */
    if (rc == BK_OK)
        rc = check_shape(map, (size_t)st.st_size, s, err);
    if (rc == BK_OK)
        rc = check_sum(s, err);
    if (rc != BK_OK) {
        munmap(map, (size_t)st.st_size);
        if (s != NULL)
            s->bytes = NULL;
        bk_segment_unref(s);
        return rc;
    }
    /* Look-ups go anywhere: reading ahead would only push other pages out. */
    (void)madvise(map, (size_t)st.st_size, MADV_RANDOM);
    s->mapped = true;
    *segment = s;
    return BK_OK;
}

bk_segment_t *bk_segment_ref(bk_segment_t *segment)
{
    atomic_fetch_add(&segment->refs, 1);
    return segment;
}

void bk_segment_unref(bk_segment_t *s)
{
    if (s == NULL || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    if (s->bytes != NULL && s->mapped)
        munmap((void *)(uintptr_t)s->bytes, s->len);
    else if (s->bytes != NULL)
        free((void *)(uintptr_t)s->bytes);
    free(s->name);
    free(s);
}

/* --- searching --- */

/*
 * Ids are hashes, spread evenly: their bytes behind the fan-out's tell nearly where they lie. From
 * there in doubling steps, so that a look-up in a large mapped file touches few pages.
 */
uint32_t bk_segment_lower(const bk_segment_t *s, const bk_id_t *id)
{
    const uint8_t *fan = s->bytes + BK_SEGMENT_HEADER, *entries = bk_segment_entry_bytes(s, 0);
    uint32_t low = id->b[0] > 0 ? bk_get_u32(fan + 4 * (id->b[0] - 1u)) : 0;
    uint32_t high = bk_get_u32(fan + 4u * id->b[0]), step = 8;
    if (high > s->entries)
        high = s->entries;
    if (low >= high)
        return high;
    uint32_t place =
        (uint32_t)id->b[1] << 24 | (uint32_t)id->b[2] << 16 | (uint32_t)id->b[3] << 8 | id->b[4];
    uint32_t at = low + (uint32_t)((uint64_t)(high - low) * place >> 32);
#define LESS(n) (memcmp(entries + (size_t)(n)*BK_SEGMENT_ENTRY_BYTES, id->b, BK_ID_SIZE) < 0)
    if (LESS(at)) {
        low = at + 1;
        while (high - low > step && LESS(low + step)) {
            low += step + 1;
            step *= 2;
        }
        if (high - low > step)
            high = low + step;
    } else {
        high = at;
        while (high - low > step && !LESS(high - step)) {
            high -= step;
            step *= 2;
        }
        if (high - low > step)
            low = high - step + 1;
    }
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (LESS(middle))
            low = middle + 1;
        else
            high = middle;
    }
#undef LESS
    return low;
}

bool bk_segment_has(const bk_segment_t *s, uint32_t number, const bk_id_t *id)
{
    return number < s->entries && memcmp(bk_segment_entry_bytes(s, number), id->b, BK_ID_SIZE) == 0;
}

bool bk_segment_entry(const bk_segment_t *s, uint32_t number, bk_location_t *where)
{
    if (number >= s->entries)
        return false;
    const uint8_t *entry = bk_segment_entry_bytes(s, number);
    uint32_t pack = bk_get_u32(entry + 32);
    if (pack >= s->packs) /* checked once, but a disk may fail while it is mapped */
        return false;
    bk_segment_pack(s, pack, &where->pack, &where->pack_size, &where->kind);
    memcpy(where->entry.id.b, entry, BK_ID_SIZE);
    where->entry.offset = bk_get_u32(entry + 36);
    where->entry.stored = bk_get_u32(entry + 40);
    where->entry.raw = get_u24(entry + 44);
    where->entry.type = entry[47] >> 4;
    where->entry.codec = entry[47] & 15;
    return true;
}

void bk_segment_pack(const bk_segment_t *s, uint32_t number, bk_id_t *name, uint32_t *size,
                     bk_kind_t *kind)
{
    const uint8_t *pack = bk_segment_pack_bytes(s, number);
    memcpy(name->b, pack, BK_ID_SIZE);
    *size = bk_get_u32(pack + 32);
    *kind = kind_of(pack);
}

bk_cur_t bk_segment_superseded(const bk_segment_t *s)
{
    const uint8_t *p = bk_segment_entry_bytes(s, s->entries);
    return bk_cur(p, (size_t)(s->bytes + s->len - 8 - p));
}

/* --- encoding --- */

typedef struct {
    const bk_pack_entry_t *entry;
    uint32_t pack;
} sort_t;

static int by_id(const void *a, const void *b)
{
    return bk_id_compare(&((const sort_t *)a)->entry->id, &((const sort_t *)b)->entry->id);
}

/* Same chunk in two packs of one segment: either will do, one is kept. */
static size_t drop_equal(sort_t *list, size_t count)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (kept == 0 || bk_id_compare(&list[kept - 1].entry->id, &list[i].entry->id) != 0)
            list[kept++] = list[i];
    return kept;
}

static void encode_packs(const bk_pack_t *const *packs, size_t count, int64_t created,
                         bk_buf_t *out)
{
    for (size_t i = 0; i < count; i++) {
        bk_buf_add(out, packs[i]->name.b, BK_ID_SIZE);
        bk_buf_u32(out, (uint32_t)packs[i]->bytes.len);
        bk_buf_u16(out, (uint16_t)packs[i]->kind);
        bk_buf_u16(out, 0);
        bk_buf_i64(out, created / BK_SEC);
    }
}

static void encode_entries(const sort_t *list, size_t count, bk_buf_t *out)
{
    for (size_t i = 0; i < count; i++) {
        const bk_pack_entry_t *entry = list[i].entry;
        bk_buf_add(out, entry->id.b, BK_ID_SIZE);
        bk_buf_u32(out, list[i].pack);
        bk_buf_u32(out, entry->offset);
        bk_buf_u32(out, entry->stored);
        bk_buf_u16(out, (uint16_t)entry->raw);
        bk_buf_u8(out, (uint8_t)(entry->raw >> 16));
        bk_buf_u8(out, (uint8_t)(entry->type << 4 | entry->codec));
    }
}

bk_rc_t bk_segment_encode(const bk_pack_t *const *packs, size_t count, int64_t created,
                          const char *const *superseded, size_t superseded_count, bk_buf_t *out,
                          bk_err_t *err)
{
    size_t total = 0, n = 0, start = out->len;
    uint32_t counts[256] = {0}, sum = 0;
    for (size_t i = 0; i < count; i++)
        total += packs[i]->count;
    sort_t *list = calloc(total + 1, sizeof *list);
    if (list == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "write index segment: out of memory");
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < packs[i]->count; j++)
            list[n++] = (sort_t){.entry = &packs[i]->entries[j], .pack = (uint32_t)i};
    qsort(list, total, sizeof *list, by_id);
    total = drop_equal(list, total);
    bk_buf_add(out, BK_SEGMENT_MAGIC, 8);
    bk_buf_u32(out, BK_SEGMENT_VERSION);
    bk_buf_u32(out, (uint32_t)count);
    bk_buf_u32(out, (uint32_t)total);
    bk_buf_u32(out, (uint32_t)superseded_count);
    for (size_t i = 0; i < total; i++)
        counts[list[i].entry->id.b[0]]++;
    for (size_t i = 0; i < 256; i++)
        bk_buf_u32(out, sum += counts[i]);
    encode_packs(packs, count, created, out);
    encode_entries(list, total, out);
    free(list);
    for (size_t i = 0; i < superseded_count; i++) {
        size_t len = strlen(superseded[i]);
        if (len > UINT8_MAX)
            return bk_err_set(err, BK_INVALID, "write index segment: the name %s is too long",
                              superseded[i]);
        bk_buf_u8(out, (uint8_t)len);
        bk_buf_add(out, superseded[i], len);
    }
    if (bk_buf_ok(out))
        bk_buf_u64(out, XXH64(out->data + start, out->len - start, 0));
    return bk_buf_ok(out) ? BK_OK
                          : bk_err_set(err, BK_NO_MEMORY, "write index segment: out of memory");
}

bk_rc_t bk_index_encode(const bk_pack_t *const *packs, size_t count, int64_t created, bk_buf_t *out,
                        bk_err_t *err)
{
    return bk_segment_encode(packs, count, created, NULL, 0, out, err);
}
