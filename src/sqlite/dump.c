/*
 * sqlite/dump.c: a pinned database, block by block, into chunks and a map; and a map back into a
 * file that is proved before anybody uses it.
 */
#include "sqlite/dump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/map.h"
#include "sqlite/blocks.h"

#define IN_FLIGHT    (16u << 20) /* bytes of blocks that are read ahead, hashed, stored */
#define RING_MAX     (IN_FLIGHT / BK_BLOCK_SIZE)
#define FETCH_BLOCKS 4096u
#define CHANGED_PART 8u /* of the earlier backup's blocks */

struct bk_db_seen_block_s {
    bk_id_t id;
    uint64_t digest;
    uint32_t raw;
};

typedef struct dump_s dump_t;

/* One block in flight. */
typedef struct {
    dump_t *dump;
    bk_group_t group; /* of its one work */
    uint64_t first;   /* page */
    unsigned pages;
    uint8_t *bytes;
    bool kept; /* known: there was no work */
    bk_id_t id;
    uint64_t digest;
    bool was_there; /* in the earlier backup */
    bk_chunk_ref_t was;
    uint64_t was_digest;
} block_t;

/* The earlier backup's blocks first to first + count - 1. */
typedef struct {
    const bk_db_known_t *known;
    bk_chunk_ref_t *refs;
    uint64_t first;
    size_t count;
    uint64_t digest; /* of what was read, and of what was there before */
} earlier_t;

/*
 * Blocks go round in a ring: lane 0 reads into the next place while the lanes are at those before
 * it, and enters them into the map in order.  The ring is long enough that a lane which ships a
 * full pack meanwhile holds up nobody.
 */
struct dump_s {
    bk_session_t *session;
    bk_db_source_t *source;
    bk_ctl_t *ctl;
    uint32_t page_size, block_size;
    uint64_t lock_page;
    uint8_t *buffer;
    size_t places;
    uint64_t submitted, entered; /* blocks; the difference is in flight */
    bk_map_builder_t *map;
    earlier_t earlier; /* known NULL: nothing is known */
    block_t ring[RING_MAX];
};

static bool all_zero(const uint8_t *bytes, size_t len)
{
    return len == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0);
}

static uint64_t digest_of_block(const block_t *block, const uint8_t *bytes, size_t len)
{
    uint64_t digest = 0, page = block->first;
    uint32_t size = block->dump->page_size;
    for (size_t at = 0; at + size <= len; at += size, page++)
        if (page != block->dump->lock_page)
            digest ^= bk_db_page_hash(page, bytes + at, size);
    return digest;
}

/* What is read now differs from it by what the transactions tell, or they do not tell all. */
static bk_rc_t look_at_what_was(block_t *block, bk_err_t *err)
{
    dump_t *dump = block->dump;
    bk_buf_t bytes;
    bool same = block->was_there && block->was.raw == block->pages * dump->page_size &&
                bk_id_equal(&block->was.id, &block->id);
    block->was_digest = same ? block->digest : 0;
    if (same || !block->was_there)
        return BK_OK;
    bk_rc_t rc = BK_OK;
    bk_buf_init(&bytes, BK_CHUNK_MAX);
    uint8_t *zeros = bk_buf_room(&bytes, block->was.raw);
    if (!bk_id_is_zero(&block->was.id))
        rc = bk_repo_get(bk_session_repo(dump->session), &block->was.id, &bytes, dump->ctl, err);
    else if (zeros != NULL)
        memset(zeros, 0, bytes.len = block->was.raw);
    else
        rc = bk_err_set(err, BK_NO_MEMORY, "out of memory");
    if (rc == BK_OK)
        block->was_digest = digest_of_block(block, bytes.data, bytes.len);
    else
        bk_err_wrap(err, "block %llu of the earlier backup",
                    (unsigned long long)((block->first - 1) * dump->page_size / dump->block_size));
    bk_buf_free(&bytes);
    return rc;
}

/* A lane's work: digest of the pages, then into the repository. */
static bk_rc_t store_block(void *arg, bk_err_t *err)
{
    block_t *block = arg;
    dump_t *dump = block->dump;
    size_t len = (size_t)block->pages * dump->page_size;
    bk_rc_t rc = bk_ctl_check(dump->ctl, err);
    if (rc != BK_OK)
        return rc;
    block->digest = digest_of_block(block, block->bytes, len);
    memset(&block->id, 0, sizeof block->id);
    if (!all_zero(block->bytes, len))
        rc =
            bk_session_put(dump->session, BK_TYPE_BLOCK, false, block->bytes, len, &block->id, err);
    if (rc == BK_OK && dump->earlier.known != NULL && dump->earlier.known->like != NULL)
        rc = look_at_what_was(block, err);
    if (dump->ctl != NULL) {
        atomic_fetch_add(&dump->ctl->bytes_done, len);
        atomic_fetch_add(&dump->ctl->bytes_read, len);
    }
    return rc;
}

/* The earlier backup's block at the place of the next one, if it has one. */
static bk_rc_t look_up_what_was(dump_t *dump, block_t *block, bk_err_t *err)
{
    earlier_t *e = &dump->earlier;
    const bk_db_seen_t *seen = e->known->seen;
    uint64_t at = dump->submitted;
    if (seen != NULL) {
        block->was_there = at < seen->count;
        if (block->was_there) {
            block->was = (bk_chunk_ref_t){.id = seen->blocks[at].id, .raw = seen->blocks[at].raw};
            block->was_digest = seen->blocks[at].digest;
        }
        return BK_OK;
    }
    const bk_map_t *map = &e->known->like->map;
    if (at >= map->count)
        return BK_OK;
    if (at >= e->first + e->count) {
        uint64_t left = map->count - at;
        e->first = at;
        e->count = left < FETCH_BLOCKS ? (size_t)left : FETCH_BLOCKS;
        bk_rc_t rc =
            bk_map_read(bk_session_repo(dump->session), map, at, e->count, e->refs, dump->ctl, err);
        if (rc != BK_OK)
            return rc;
    }
    block->was_there = true;
    block->was = e->refs[at - e->first];
    return BK_OK;
}

static bool all_same(const bk_past_t *past, uint64_t first, uint64_t pages)
{
    for (uint64_t page = first; page < first + pages; page++)
        if (!bk_past_same(past, page))
            return false;
    return true;
}

/* Nothing in it changed, and it is stored: it is taken over.  That is asked last, since the backup
 * relies on what it was told of. */
static void keep_block(dump_t *dump, block_t *block)
{
    const bk_past_t *past = dump->earlier.known->past;
    bk_chunk_ref_t *was = &block->was;
    if (!block->was_there || was->raw != block->pages * dump->page_size ||
        !all_same(past, block->first, block->pages))
        return;
    if (!bk_id_is_zero(&was->id) && !bk_session_has(dump->session, &was->id))
        return;
    block->kept = true;
    block->id = was->id;
    block->digest = block->was_digest;
    if (dump->ctl != NULL && dump->earlier.known->seen == NULL)
        atomic_fetch_add(&dump->ctl->bytes_done, was->raw);
}

/* Read the block that starts at page first into the next place of the ring, and hand it out. */
static bk_rc_t submit_block(dump_t *dump, bk_team_t *team, uint64_t first, unsigned pages,
                            bk_err_t *err)
{
    size_t place = dump->submitted % dump->places;
    block_t *block = &dump->ring[place];
    bk_rc_t rc = bk_ctl_check(dump->ctl, err);
    block->dump = dump;
    block->first = first;
    block->pages = pages;
    block->kept = block->was_there = false;
    block->bytes = dump->buffer + place * dump->block_size;
    if (rc == BK_OK && dump->earlier.known != NULL)
        rc = look_up_what_was(dump, block, err);
    if (rc == BK_OK && dump->earlier.known != NULL)
        keep_block(dump, block);
    if (rc != BK_OK)
        return rc;
    if (block->kept) {
        dump->submitted++;
        return BK_OK;
    }
    rc = bk_db_source_read(dump->source, first, pages, block->bytes, err);
    if (rc != BK_OK)
        return rc;
    bk_group_init(&block->group);
    bk_team_submit(team, &block->group, store_block, block, dump->block_size);
    dump->submitted++;
    return BK_OK;
}

/* Wait for the oldest block in flight and enter it into the map and the digest. */
static bk_rc_t enter_block(dump_t *dump, bk_team_t *team, bk_snapshot_db_t *db, bk_err_t *err)
{
    block_t *block = &dump->ring[dump->entered % dump->places];
    bk_rc_t rc = block->kept ? BK_OK : bk_team_wait(team, &block->group, err);
    dump->entered++;
    if (rc != BK_OK)
        return rc;
    bk_chunk_ref_t ref = {.id = block->id, .raw = block->pages * dump->page_size};
    if (!block->kept || (dump->earlier.known != NULL && dump->earlier.known->seen != NULL))
        db->digest ^= block->digest;
    if (!block->kept)
        dump->earlier.digest ^= block->digest ^ block->was_digest;
    return bk_map_builder_add(dump->map, &ref, err);
}

static bk_rc_t store_pages(dump_t *dump, bk_team_t *team, bk_snapshot_db_t *db, bk_err_t *err)
{
    unsigned per_block = dump->block_size / dump->page_size;
    bk_rc_t rc = BK_OK;
    for (uint64_t first = 1; first <= db->page_count && rc == BK_OK; first += per_block) {
        uint64_t left = db->page_count - first + 1;
        if (dump->submitted - dump->entered == dump->places)
            rc = enter_block(dump, team, db, err);
        if (rc == BK_OK)
            rc =
                submit_block(dump, team, first, left < per_block ? (unsigned)left : per_block, err);
    }
    while (dump->entered < dump->submitted) {
        /* After a failure only wait: the lanes still work in this memory. */
        bk_rc_t done = enter_block(dump, team, db, rc == BK_OK ? err : NULL);
        if (rc == BK_OK)
            rc = done;
    }
    return rc == BK_OK ? bk_map_builder_finish(dump->map, &db->map, err) : rc;
}

/* Pages and blocks, and the room for those in flight. */
static bool size_up(dump_t *dump)
{
    const bk_db_info_t *info = bk_db_source_info(dump->source);
    bool large = info->page_count * info->page_size >= BK_BLOCK_LARGE;
    dump->page_size = info->page_size;
    dump->block_size = large ? 2 * BK_BLOCK_SIZE : BK_BLOCK_SIZE;
    dump->lock_page = bk_db_lock_page(info->page_size);
    dump->places = IN_FLIGHT / dump->block_size;
    dump->buffer = malloc(dump->places * dump->block_size);
    return dump->buffer != NULL;
}

/* What the source tells about itself. */
static bk_rc_t describe(dump_t *dump, const char *path, const bk_db_known_t *known,
                        bk_snapshot_db_t *db, bk_err_t *err)
{
    const bk_db_info_t *info = bk_db_source_info(dump->source);
    bool ready = size_up(dump);
    db->page_size = dump->page_size;
    db->block_size = dump->block_size;
    db->page_count = info->page_count;
    db->digest = 0;
    db->instant = info->instant;
    db->uid = info->uid;
    db->gid = info->gid;
    db->mode = info->mode;
    db->path = bk_strdup(path);
    db->journal = bk_strdup(info->journal);
    dump->map = bk_map_builder_new(dump->session);
    if (dump->ctl != NULL && (known == NULL || known->seen == NULL))
        atomic_fetch_add(&dump->ctl->bytes_total, info->page_count * info->page_size);
    return db->path != NULL && db->journal != NULL && ready && dump->map != NULL
               ? BK_OK
               : bk_err_set(err, BK_NO_MEMORY, "back up database %s: out of memory", path);
}

/* Looked at one by one these take longer than reading all. */
static bool too_many_changed(const bk_db_known_t *known)
{
    const bk_snapshot_db_t *like = known->like;
    uint64_t per_block = like->block_size / like->page_size, changed = 0;
    uint64_t most = like->map.count / CHANGED_PART + 1;
    for (uint64_t first = 1; first <= like->page_count && changed <= most; first += per_block) {
        uint64_t left = like->page_count - first + 1;
        changed += !all_same(known->past, first, left < per_block ? left : per_block);
    }
    return changed > most;
}

/*
 * It has to have the same blocks.  One that became smaller was rewritten anyway, and what is behind
 * its end would have to be looked at.
 */
static bool is_of_use(const bk_db_known_t *known, const bk_snapshot_db_t *db)
{
    const bk_snapshot_db_t *like = known->like;
    if (known->seen != NULL)
        return known->seen->page_size == db->page_size &&
               known->seen->block_size == db->block_size &&
               bk_past_page_count(known->past) == db->page_count;
    return like->page_size == db->page_size && like->block_size == db->block_size &&
           like->page_count <= db->page_count &&
           bk_past_page_count(known->past) == db->page_count &&
           bk_db_check_geometry(like, NULL) == BK_OK && !too_many_changed(known);
}

static bk_rc_t begin_earlier(dump_t *dump, const bk_db_known_t *known, const bk_snapshot_db_t *db,
                             bk_err_t *err)
{
    if (known == NULL || !is_of_use(known, db))
        return BK_OK;
    dump->earlier.refs = calloc(FETCH_BLOCKS, sizeof *dump->earlier.refs);
    if (dump->earlier.refs == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "back up database %s: out of memory", db->path);
    dump->earlier.known = known;
    return BK_OK;
}

static bk_rc_t end_earlier(const dump_t *dump, bk_snapshot_db_t *db, bk_err_t *err)
{
    const bk_db_known_t *known = dump->earlier.known;
    if (known == NULL)
        return BK_OK;
    uint64_t found = known->seen != NULL ? db->digest : known->like->digest ^ dump->earlier.digest;
    db->digest = bk_past_digest(known->past);
    return found == db->digest
               ? BK_OK
               : bk_err_set(err, BK_CHANGED,
                            "database %s: what changed in it is not what its transactions tell",
                            db->path);
}

bk_rc_t bk_db_dump(bk_session_t *session, bk_db_source_t *source, const char *path,
                   const bk_db_known_t *known, bk_team_t *team, bk_snapshot_db_t *db, bk_ctl_t *ctl,
                   bk_err_t *err)
{
    dump_t *dump = calloc(1, sizeof *dump);
    if (dump == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "back up database %s: out of memory", path);
    dump->session = session;
    dump->source = source;
    dump->ctl = ctl;
    bk_rc_t rc = describe(dump, path, known, db, err);
    if (rc == BK_OK)
        rc = begin_earlier(dump, known, db, err);
    if (rc == BK_OK)
        rc = store_pages(dump, team, db, err);
    if (rc == BK_OK)
        rc = end_earlier(dump, db, err);
    bk_map_builder_free(dump->map);
    free(dump->earlier.refs);
    free(dump->buffer);
    free(dump);
    return rc;
}

/* --- before the pin --- */

void bk_db_seen_free(bk_db_seen_t *seen)
{
    free(seen->blocks);
    *seen = (bk_db_seen_t){.count = 0};
}

/* Wait for the oldest block in flight and note it. */
static bk_rc_t see_block(dump_t *dump, bk_team_t *team, bk_db_seen_t *seen, bk_err_t *err)
{
    block_t *block = &dump->ring[dump->entered % dump->places];
    bk_rc_t rc = bk_team_wait(team, &block->group, err);
    dump->entered++;
    if (rc != BK_OK)
        return rc;
    if (seen->count == seen->room) {
        uint64_t room = 2 * seen->room + 1024;
        struct bk_db_seen_block_s *more = realloc(seen->blocks, room * sizeof *more);
        if (more == NULL)
            return bk_err_set(err, BK_NO_MEMORY, "out of memory");
        seen->blocks = more;
        seen->room = room;
    }
    seen->blocks[seen->count++] = (struct bk_db_seen_block_s){
        .id = block->id, .digest = block->digest, .raw = block->pages * dump->page_size};
    return BK_OK;
}

/* Under one pin; *over: that were all. */
static bk_rc_t see_some(dump_t *dump, bk_team_t *team, int64_t pin, bk_db_seen_t *seen, bool *over,
                        bk_err_t *err)
{
    const bk_db_info_t *info = bk_db_source_info(dump->source);
    unsigned per_block = dump->block_size / dump->page_size;
    int64_t began = bk_mono();
    bk_rc_t rc = info->page_size == dump->page_size && strcmp(info->journal, "wal") == 0
                     ? BK_OK
                     : bk_err_set(err, BK_CHANGED, "its page size or journal mode changed");
    do {
        uint64_t first = dump->submitted * per_block + 1;
        *over = first > info->page_count;
        if (rc != BK_OK || *over)
            break;
        uint64_t left = info->page_count - first + 1;
        if (dump->submitted - dump->entered == dump->places)
            rc = see_block(dump, team, seen, err);
        if (rc == BK_OK)
            rc =
                submit_block(dump, team, first, left < per_block ? (unsigned)left : per_block, err);
    } while (rc == BK_OK && bk_mono() - began < pin);
    while (dump->entered < dump->submitted) {
        bk_rc_t done = see_block(dump, team, seen, rc == BK_OK ? err : NULL);
        if (rc == BK_OK)
            rc = done;
    }
    return rc;
}

bk_rc_t bk_db_look_ahead(bk_session_t *session, const char *path, unsigned busy_ms, unsigned pin_ms,
                         bk_team_t *team, bk_db_seen_t *seen, bk_ctl_t *ctl, bk_err_t *err)
{
    bool over = false;
    dump_t *dump = calloc(1, sizeof *dump);
    bk_rc_t rc = BK_OK;
    *seen = (bk_db_seen_t){.count = 0};
    if (dump == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "back up database %s: out of memory", path);
    dump->session = session;
    dump->ctl = ctl;
    while (rc == BK_OK && !over) {
        rc = bk_db_source_open(path, busy_ms, ctl, &dump->source, err);
        if (rc == BK_OK && dump->buffer == NULL) {
            const bk_db_info_t *info = bk_db_source_info(dump->source);
            if (!size_up(dump))
                rc = bk_err_set(err, BK_NO_MEMORY, "back up database %s: out of memory", path);
            else if (ctl != NULL)
                atomic_fetch_add(&ctl->bytes_total, info->page_count * info->page_size);
            seen->page_size = dump->page_size;
            seen->block_size = dump->block_size;
        }
        if (rc == BK_OK)
            rc = see_some(dump, team, (pin_ms != 0 ? pin_ms : BK_DB_PIN_MS) * BK_MS, seen, &over,
                          err);
        bk_db_source_close(dump->source);
        dump->source = NULL;
    }
    free(dump->buffer);
    free(dump);
    return rc;
}

/* --- back --- */

typedef struct {
    int fd;
    const char *file;
    const bk_snapshot_db_t *db;
    uint64_t lock_page;
    atomic_uint_fast64_t digest;
    bk_ctl_t *ctl;
} image_t;

static uint64_t digest_of(const image_t *image, uint64_t block, const uint8_t *bytes, size_t len)
{
    uint64_t digest = 0, first = block * (image->db->block_size / image->db->page_size) + 1;
    for (size_t at = 0; at < len; at += image->db->page_size, first++)
        if (first != image->lock_page)
            digest ^= bk_db_page_hash(first, bytes + at, image->db->page_size);
    return digest;
}

/* XOR is commutative: blocks may arrive in any order. */
static bk_rc_t write_block(void *arg, const bk_want_chunk_t *want, const uint8_t *data,
                           const bk_err_t *failure, bk_err_t *err)
{
    image_t *image = arg;
    if (data == NULL) {
        if (err != NULL)
            *err = *failure;
        bk_err_wrap(err, "database %s: block %llu is lost", image->db->name,
                    (unsigned long long)want->tag);
        return failure->rc;
    }
    atomic_fetch_xor(&image->digest, digest_of(image, want->tag, data, want->raw));
    if (image->ctl != NULL)
        atomic_fetch_add(&image->ctl->bytes_done, want->raw);
    return bk_pwrite_all(image->fd, data, want->raw, want->tag * image->db->block_size, image->file,
                         err);
}

/* Blocks of the map from first on, holes counted into the digest; the others are fetched. */
static bk_rc_t write_window(image_t *image, bk_repo_t *repo, uint64_t first, size_t n,
                            bk_chunk_ref_t *refs, bk_want_chunk_t *wants, const uint8_t *zeros,
                            bk_team_t *team, bk_err_t *err)
{
    size_t count = 0;
    bk_rc_t rc = bk_map_read(repo, &image->db->map, first, n, refs, image->ctl, err);
    for (size_t i = 0; i < n && rc == BK_OK; i++) {
        rc = bk_db_check_block(image->db, first + i, refs[i].raw, err);
        if (rc != BK_OK)
            break;
        if (bk_id_is_zero(&refs[i].id))
            atomic_fetch_xor(&image->digest, digest_of(image, first + i, zeros, refs[i].raw));
        else
            wants[count++] =
                (bk_want_chunk_t){.id = refs[i].id, .raw = refs[i].raw, .tag = first + i};
    }
    if (rc == BK_OK)
        rc = bk_repo_fetch(repo, wants, count, team, write_block, image, image->ctl, err);
    return rc;
}

static bk_rc_t write_image(image_t *image, bk_repo_t *repo, bk_team_t *team, bk_err_t *err)
{
    const bk_snapshot_db_t *db = image->db;
    bk_rc_t rc = BK_OK;
    bk_chunk_ref_t *refs = calloc(FETCH_BLOCKS, sizeof *refs);
    bk_want_chunk_t *wants = calloc(FETCH_BLOCKS, sizeof *wants);
    uint8_t *zeros = calloc(1, db->block_size);
    if (refs == NULL || wants == NULL || zeros == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "recover database %s: out of memory", db->name);
    if (rc == BK_OK && ftruncate(image->fd, (off_t)(db->page_count * db->page_size)) != 0)
        rc = bk_err_sys(err, errno, "make %s as long as the database", image->file);
    for (uint64_t first = 0; rc == BK_OK && first < db->map.count; first += FETCH_BLOCKS) {
        size_t n =
            db->map.count - first < FETCH_BLOCKS ? (size_t)(db->map.count - first) : FETCH_BLOCKS;
        rc = write_window(image, repo, first, n, refs, wants, zeros, team, err);
    }
    if (rc == BK_OK && atomic_load(&image->digest) != db->digest)
        rc = bk_err_set(err, BK_CORRUPT,
                        "database %s: the digest of the restored pages differs from the backup's",
                        db->name);
    free(refs);
    free(wants);
    free(zeros);
    return rc;
}

static bk_rc_t check_room(const image_t *image, bk_err_t *err)
{
    struct statvfs st;
    uint64_t bytes = image->db->page_count * image->db->page_size;
    if (fstatvfs(image->fd, &st) != 0)
        return bk_err_sys(err, errno, "free space for %s", image->file);
    uint64_t room = (uint64_t)st.f_bavail * st.f_frsize;
    return room >= bytes
               ? BK_OK
               : bk_err_set(
                     err, BK_NO_SPACE,
                     "database %s needs %llu MiB for %s, there are %llu MiB: free some space",
                     image->db->name, (unsigned long long)(bytes >> 20), image->file,
                     (unsigned long long)(room >> 20));
}

bk_rc_t bk_db_materialise(bk_repo_t *repo, const bk_snapshot_db_t *db, int fd, const char *file,
                          bk_team_t *team, bk_ctl_t *ctl, bk_err_t *err)
{
    image_t image = {.fd = fd, .file = file, .db = db, .ctl = ctl};
    bk_rc_t rc = bk_db_check_geometry(db, err);
    if (rc == BK_OK)
        rc = check_room(&image, err);
    if (rc != BK_OK)
        return rc;
    image.lock_page = bk_db_lock_page(db->page_size);
    atomic_init(&image.digest, 0);
    if (ctl != NULL)
        atomic_fetch_add(&ctl->bytes_total, db->page_count * db->page_size);
    return write_image(&image, repo, team, err);
}
