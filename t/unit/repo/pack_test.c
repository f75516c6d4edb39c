/*
 * t/unit/repo/pack_test.c: packs, honest, damaged and hostile.
 */
#include "unit/testing.h"

#include "base/str.h"
#include "crypto/keyring_private.h"
#include "repo/pack.h"

static const uint8_t uuid[BK_UUID_SIZE] = {0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7,
                                           0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf};

/* Made by another program from the format's page: "hello", 20 times "a block of a database ", and nothing. */
static const char golden_pack[] =
    "4e4758424b5000010100000003000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf777777777777777777777777777777"
    "77777777777777777777777777777777778c199c8e32ecd90577fdce7bef8603db6fda77008e3a6838b19135b8da5f"
    "e3fd0ee564558bddf969ebe7f69568b9398d9d3d1462774103ddf7e4291c4c32d81d2fb270806dbcf89826d614b6e4"
    "37d94f1cd60b8583c9b35f095b2e0f1fe9183e198ea11c1dc88951084687249f338de2e7c61c452a47671398da1cc0"
    "c21f5b03131403e4a77aea8defaf789f18d3f6a54afff421d0e20c87b61de6fa0e8ad6f4f4f36c3e7740145c5762a9"
    "da406f933295965af636a83c4393c65cef6d0c9cb1da2167e134926030fbe367665d8233e01cade8b0c0a73a71e07b"
    "644a79a217f39f9c8bc4c740feae77e4ed1e6e1204bdbb64e484230a4acc6f7dfc65ea5ecbf5114c2ae335d3fa3dca"
    "dd6c8dff8cb40000009a000000030000008a00000000000000490f6b494e4758424b454e44";

#define TRAILER    32
#define CHUNKS_MAX 3000

typedef struct {
    bk_keyring_t *ring;
    bool encrypted;
    bk_pack_t pack;
    bk_err_t err;
} fixture_t;

/* Epochs 1 and 3 with the secrets 0x33… and 0x44…. */
static bk_keyring_t *golden_ring(void)
{
    uint8_t bytes[157] = {1};
    bk_keyring_t *ring = NULL;
    bk_err_t err = {0};
    memset(bytes + 1, 0x11, 32);
    memset(bytes + 33, 0x22, 32);
    bk_put_u32(bytes + 65, 2);
    bk_put_u32(bytes + 69, 1);
    memset(bytes + 81, 0x33, 32);
    bk_put_u32(bytes + 113, 3);
    memset(bytes + 125, 0x44, 32);
    OK(bk_keyring_decode(bytes, sizeof bytes, &ring, &err), &err);
    return ring;
}

static int start(void **state, bool encrypted)
{
    fixture_t *f = calloc(1, sizeof *f);
    f->encrypted = encrypted;
    f->ring = encrypted ? golden_ring() : bk_keyring_plain();
    OK(bk_pack_init(&f->pack, BK_KIND_PACK, BK_PACK_TARGET, encrypted, &f->err), &f->err);
    *state = f;
    return 0;
}

static int set_up(void **state)
{
    return start(state, true);
}

static int set_up_plain(void **state)
{
    return start(state, false);
}

static int tear_down(void **state)
{
    fixture_t *f = *state;
    bk_pack_free(&f->pack);
    bk_keyring_free(f->ring);
    free(f);
    return 0;
}

/* Chunk n of a test: its length and content follow from n. */
static size_t chunk(size_t n, uint8_t *out)
{
    size_t len = n == 0 ? 0 : 8 + n * 37 % 1400;
    if (n % 3 == 0)
        memset(out, (int)n, len);
    else
        test_fill(out, len, n);
    memcpy(out, &n, len < sizeof n ? len : sizeof n);
    return len;
}

static void add(fixture_t *f, size_t n)
{
    static const bk_codec_t codecs[] = {BK_CODEC_ZSTD, BK_CODEC_GZIP, BK_CODEC_RAW};
    uint8_t data[1500];
    size_t len = chunk(n, data);
    bk_type_t type = n % 2 == 0 ? BK_TYPE_FILE : BK_TYPE_BLOCK;
    bk_compression_t how = {.codec = codecs[n % 3], .level = 1};
    bk_id_t id;
    bk_chunk_id(f->ring, (uint8_t)type, data, len, &id);
    OK(bk_pack_append(&f->pack, &id, type, how, false, data, len, &f->err), &f->err);
}

static void finish(fixture_t *f, size_t chunks)
{
    for (size_t n = 0; n < chunks; n++)
        add(f, n);
    OK(bk_pack_finish(&f->pack, f->ring, uuid, &f->err), &f->err);
}

typedef struct {
    bk_rc_t rc;     /* up to and with the directory */
    size_t entries; /* in the directory */
    size_t good;    /* chunks that were given back */
    bk_err_t err;
    bk_pack_entry_t list[8]; /* the first ones */
} reading_t;

typedef void (*chunk_fn)(void *arg, const bk_pack_entry_t *entry, const uint8_t *data);

/* Read a pack as readers do, each part in memory of its own so that one byte too many is seen. */
static void read_pack(const bk_keyring_t *ring, const uint8_t *bytes, size_t len, chunk_fn fn,
                      void *arg, reading_t *r)
{
    bk_object_key_t key = {0};
    bk_pack_trailer_t where;
    bk_pack_entry_t *entries = NULL;
    memset(r, 0, sizeof *r);
    r->rc = BK_CORRUPT;
    if (len < BK_OBJECT_HEADER + TRAILER)
        return;
    r->rc = bk_object_key_open(ring, uuid, BK_KIND_PACK, bytes, &key, &r->err);
    if (r->rc == BK_OK)
        r->rc = bk_pack_trailer(bytes + len - TRAILER, len, &where, &r->err);
    if (r->rc != BK_OK)
        return;
    uint8_t *directory = malloc(where.length + 1u);
    memcpy(directory, bytes + where.offset, where.length);
    r->rc = bk_pack_directory(&key, directory, &where, &entries, &r->err);
    free(directory);
    r->entries = r->rc == BK_OK ? where.count : 0;
    for (size_t i = 0; i < r->entries; i++) {
        const bk_pack_entry_t *entry = &entries[i];
        bk_err_t err = {0};
        assert_true((uint64_t)entry->offset + entry->stored <= where.offset);
        uint8_t *frame = malloc(entry->stored + 1u), *out = malloc(entry->raw + 1u);
        memcpy(frame, bytes + entry->offset, entry->stored);
        if (i < sizeof r->list / sizeof *r->list)
            r->list[i] = *entry;
        if (bk_pack_frame(ring, &key, entry, frame, out, &err) == BK_OK) {
            r->good++;
            if (fn != NULL)
                fn(arg, entry, out);
        } else {
            assert_int_equal(err.rc, BK_CORRUPT);
        }
        free(frame);
        free(out);
    }
    free(entries);
    bk_object_key_wipe(&key);
}

typedef struct {
    const bk_keyring_t *ring;
    size_t chunks;
    bool seen[CHUNKS_MAX];
} expected_t;

/* Whatever is given back must be one of the chunks that were stored. */
static void check_chunk(void *arg, const bk_pack_entry_t *entry, const uint8_t *data)
{
    expected_t *e = arg;
    uint8_t wanted[1500];
    for (size_t n = 0; n < e->chunks; n++) {
        size_t len = chunk(n, wanted);
        if (entry->raw == len && entry->type == (n % 2 == 0 ? BK_TYPE_FILE : BK_TYPE_BLOCK) &&
            memcmp(wanted, data, len) == 0) {
            e->seen[n] = true;
            return;
        }
    }
    fail_msg("a chunk that was never stored");
}

/* The pack's own bytes give back every chunk. */
static void check_sound(fixture_t *f, size_t chunks)
{
    expected_t e = {.ring = f->ring, .chunks = chunks};
    reading_t r;
    bk_id_t name;
    read_pack(f->ring, f->pack.bytes.data, f->pack.bytes.len, check_chunk, &e, &r);
    assert_int_equal(r.rc, BK_OK);
    assert_int_equal(r.entries, chunks);
    assert_int_equal(r.good, chunks);
    for (size_t n = 0; n < chunks; n++)
        assert_true(e.seen[n]);
    assert_int_equal(f->pack.count, chunks);
    for (size_t i = 1; i < chunks; i++)
        assert_true(bk_id_compare(&f->pack.entries[i - 1].id, &f->pack.entries[i].id) < 0);
    bk_sha256(&name, f->pack.bytes.data, f->pack.bytes.len);
    assert_memory_equal(name.b, f->pack.name.b, BK_ID_SIZE);
}

static void a_pack_without_chunks_is_sound(void **state)
{
    finish(*state, 0);
    check_sound(*state, 0);
}

static void a_pack_of_one_chunk_gives_it_back(void **state)
{
    finish(*state, 1); /* an empty one */
    check_sound(*state, 1);
}

static void a_pack_gives_back_every_chunk(void **state)
{
    finish(*state, CHUNKS_MAX);
    check_sound(*state, CHUNKS_MAX);
}

static void a_pack_can_be_filled_again(void **state)
{
    fixture_t *f = *state;
    finish(f, 20);
    uint8_t *data = f->pack.bytes.data;
    free(f->pack.entries);
    bk_pack_reset(&f->pack);
    finish(f, 7);
    check_sound(f, 7);
    assert_ptr_equal(f->pack.bytes.data, data);
}

static void frames_may_come_compressed(void **state)
{
    fixture_t *f = *state;
    bk_buf_t packed;
    bk_codec_t codec;
    uint8_t data[1500];
    bk_buf_init(&packed, 4096);
    for (size_t n = 0; n < 10; n++) {
        bk_id_t id;
        bk_type_t type = n % 2 == 0 ? BK_TYPE_FILE : BK_TYPE_BLOCK;
        size_t len = chunk(n, data);
        bk_chunk_id(f->ring, (uint8_t)type, data, len, &id);
        bk_buf_reset(&packed);
        OK(bk_compress((bk_compression_t){BK_CODEC_ZSTD, 1}, false, data, len, &packed, &codec,
                       &f->err),
           &f->err);
        OK(bk_pack_add(&f->pack, &id, type, codec, packed.data, packed.len, (uint32_t)len, &f->err),
           &f->err);
    }
    bk_buf_free(&packed);
    finish(f, 0);
    check_sound(f, 10);
}

static void the_size_told_is_near_the_size_made(void **state)
{
    fixture_t *f = *state;
    for (size_t n = 0; n < 500; n++)
        add(f, n);
    size_t told = bk_pack_size(&f->pack);
    finish(f, 0);
    assert_in_range(f->pack.bytes.len, told - 500 * 14, told + 100);
}

/* Without this, equal backups would replace each other's objects. */
static void equal_packs_have_different_names(void **state)
{
    fixture_t *f = *state;
    bk_id_t name;
    finish(f, 5);
    name = f->pack.name;
    free(f->pack.entries);
    bk_pack_reset(&f->pack);
    finish(f, 5);
    assert_memory_not_equal(name.b, f->pack.name.b, BK_ID_SIZE);
}

static const uint8_t *find(const bk_buf_t *where, const char *what)
{
    return memmem(where->data, where->len, what, strlen(what));
}

static void a_chunk_added_twice_is_stored_once(void **state)
{
    fixture_t *f = *state;
    static const char text[] = "a secret sentence that must not be readable";
    reading_t r;
    bk_id_t id;
    bk_chunk_id(f->ring, BK_TYPE_FILE, text, sizeof text, &id);
    for (int i = 0; i < 3; i++)
        OK(bk_pack_add(&f->pack, &id, BK_TYPE_FILE, BK_CODEC_RAW, text, sizeof text, sizeof text,
                       &f->err),
           &f->err);
    finish(f, 0);
    assert_int_equal(f->pack.count, 1);
    read_pack(f->ring, f->pack.bytes.data, f->pack.bytes.len, NULL, NULL, &r);
    assert_int_equal(r.rc, BK_OK);
    assert_int_equal(r.entries, 1);
    assert_int_equal(r.good, 1);
    /* Nor do the copies that were dropped lie there unsealed. */
    assert_true((find(&f->pack.bytes, "secret") != NULL) == !f->encrypted);
}

static void an_encrypted_pack_shows_neither_content_nor_ids(void **state)
{
    fixture_t *f = *state;
    static const char text[] = "a secret sentence that must not be readable";
    bk_id_t id;
    bk_chunk_id(f->ring, BK_TYPE_FILE, text, sizeof text, &id);
    OK(bk_pack_add(&f->pack, &id, BK_TYPE_FILE, BK_CODEC_RAW, text, sizeof text, sizeof text,
                   &f->err),
       &f->err);
    finish(f, 0);
    assert_null(find(&f->pack.bytes, "secret"));
    assert_null(memmem(f->pack.bytes.data, f->pack.bytes.len, id.b, 8));
}

static void what_readers_would_refuse_is_not_added(void **state)
{
    fixture_t *f = *state;
    uint8_t *data = calloc(1, BK_CHUNK_MAX + 1);
    bk_id_t id = {{1}};
    add(f, 1);
    size_t len = f->pack.bytes.len;
    assert_int_equal(
        bk_pack_add(&f->pack, &id, BK_TYPE_FILE, BK_CODEC_RAW, data, 10, BK_CHUNK_MAX + 1, &f->err),
        BK_TOO_LARGE);
    assert_int_equal(bk_pack_append(&f->pack, &id, BK_TYPE_FILE,
                                    (bk_compression_t){BK_CODEC_ZSTD, 1}, false, data,
                                    BK_CHUNK_MAX + 1, &f->err),
                     BK_TOO_LARGE);
    assert_int_equal(f->pack.bytes.len, len);
    assert_int_equal(f->pack.count, 1);
    free(data);
}

static void a_full_pack_keeps_what_it_has(void **state)
{
    fixture_t *f = *state;
    uint8_t *data = malloc(BK_CHUNK_MAX);
    bk_rc_t rc = BK_OK;
    size_t count = 0;
    test_fill(data, BK_CHUNK_MAX, 8);
    for (; count < 10 && rc == BK_OK; count += rc == BK_OK) {
        bk_id_t id;
        memcpy(data, &count, sizeof count);
        bk_chunk_id(f->ring, BK_TYPE_FILE, data, BK_CHUNK_MAX, &id);
        rc = bk_pack_append(&f->pack, &id, BK_TYPE_FILE, (bk_compression_t){BK_CODEC_ZSTD, 1}, true,
                            data, BK_CHUNK_MAX, &f->err);
    }
    assert_int_not_equal(rc, BK_OK);
    assert_int_equal(count, 9); /* the tenth would pass BK_PACK_MAX */
    assert_int_equal(f->pack.count, 9);
    /* The bytes fit, their tag does not. */
    size_t len = f->pack.bytes.len;
    assert_int_not_equal(bk_pack_add(&f->pack, &(bk_id_t){{1}}, BK_TYPE_FILE, BK_CODEC_RAW, data,
                                     BK_PACK_MAX - len - 3, 1, &f->err),
                         BK_OK);
    assert_int_equal(f->pack.bytes.len, len);
    OK(bk_pack_finish(&f->pack, f->ring, uuid, &f->err), &f->err);
    reading_t r;
    read_pack(f->ring, f->pack.bytes.data, f->pack.bytes.len, NULL, NULL, &r);
    assert_int_equal(r.good, 9);
    free(data);
}

static void a_pack_is_finished_by_the_ring_it_was_begun_for(void **state)
{
    fixture_t *f = *state;
    bk_keyring_t *other = f->encrypted ? bk_keyring_plain() : bk_keyring_new();
    add(f, 1);
    assert_int_equal(bk_pack_finish(&f->pack, other, uuid, &f->err), BK_FAILED);
    bk_keyring_free(other);
}

/* --- formats --- */

typedef struct {
    size_t hello, block, empty;
} golden_t;

static void check_golden(void *arg, const bk_pack_entry_t *entry, const uint8_t *data)
{
    golden_t *g = arg;
    if (entry->raw == 5 && memcmp(data, "hello", 5) == 0 && entry->type == BK_TYPE_FILE)
        g->hello++;
    if (entry->raw == 440 && memcmp(data + 418, "a block of a database ", 22) == 0 &&
        entry->type == BK_TYPE_BLOCK && entry->codec == BK_CODEC_GZIP)
        g->block++;
    if (entry->raw == 0)
        g->empty++;
}

static void a_pack_of_the_first_version_is_read(void **state)
{
    fixture_t *f = *state;
    uint8_t bytes[(sizeof golden_pack - 1) / 2];
    golden_t g = {0};
    reading_t r;
    assert_true(bk_unhex(bytes, sizeof bytes, golden_pack, sizeof golden_pack - 1));
    read_pack(f->ring, bytes, sizeof bytes, check_golden, &g, &r);
    OK(r.rc, &r.err);
    assert_int_equal(r.entries, 3);
    assert_true(g.hello == 1 && g.block == 1 && g.empty == 1);
}

/* --- damage --- */

static void no_flipped_bit_gives_wrong_data(void **state)
{
    fixture_t *f = *state;
    enum { CHUNKS = 12 };
    expected_t e = {.ring = f->ring, .chunks = CHUNKS};
    finish(f, CHUNKS);
    uint8_t *bytes = f->pack.bytes.data;
    size_t len = f->pack.bytes.len;
    for (size_t i = 0; i < len; i++) {
        reading_t r;
        uint8_t bit = (uint8_t)(1 << i % 8);
        bytes[i] ^= bit;
        read_pack(f->ring, bytes, len, check_chunk, &e, &r);
        /* Plain packs have bits that nothing depends on, as the time in a gzip member: their names
         * tell.  What is given back was checked to be right. */
        if (f->encrypted)
            assert_true(r.rc != BK_OK || r.good < CHUNKS);
        assert_true(r.rc == BK_OK || r.rc == BK_CORRUPT || r.rc == BK_WRONG_KEY);
        bytes[i] ^= bit;
    }
    check_sound(f, CHUNKS);
}

static void a_cut_pack_is_never_read_as_another(void **state)
{
    fixture_t *f = *state;
    expected_t e = {.ring = f->ring, .chunks = 12};
    finish(f, 12);
    for (size_t len = 0; len < f->pack.bytes.len; len++) {
        reading_t r;
        uint8_t *cut = malloc(len + 1);
        memcpy(cut, f->pack.bytes.data, len);
        read_pack(f->ring, cut, len, check_chunk, &e, &r);
        assert_int_equal(r.rc, BK_CORRUPT);
        free(cut);
    }
}

/* Whole, sealed, but in another place. */
static void frames_that_changed_places_are_refused(void **state)
{
    fixture_t *f = *state;
    bk_id_t id;
    reading_t r;
    for (uint8_t n = 0; n < 2; n++) {
        uint8_t data[64];
        memset(data, n, sizeof data);
        bk_chunk_id(f->ring, BK_TYPE_FILE, data, sizeof data, &id);
        OK(bk_pack_add(&f->pack, &id, BK_TYPE_FILE, BK_CODEC_RAW, data, sizeof data, sizeof data,
                       &f->err),
           &f->err);
    }
    finish(f, 0);
    uint8_t *a = f->pack.bytes.data + BK_OBJECT_HEADER, *b = a + 64 + f->pack.overhead, swap[80];
    memcpy(swap, a, 64 + f->pack.overhead);
    memcpy(a, b, 64 + f->pack.overhead);
    memcpy(b, swap, 64 + f->pack.overhead);
    read_pack(f->ring, f->pack.bytes.data, f->pack.bytes.len, NULL, NULL, &r);
    assert_int_equal(r.rc, BK_OK);
    assert_int_equal(r.good, 0);
}

/* --- packs that somebody made up (plain: nothing authenticates the directory) --- */

static uint32_t crc32c(const uint8_t *data, size_t len)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < len; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc & 1) != 0 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
    }
    return ~crc;
}

static void the_checksum_is_crc_32c(void **state)
{
    (void)state;
    assert_int_equal(crc32c((const uint8_t *)"123456789", 9), 0xe3069283u);
}

static void put_trailer(uint8_t *trailer, uint32_t offset, uint32_t length, uint32_t count,
                        uint32_t raw, uint32_t codec)
{
    bk_put_u32(trailer, offset);
    bk_put_u32(trailer + 4, length);
    bk_put_u32(trailer + 8, count);
    bk_put_u32(trailer + 12, raw);
    bk_put_u32(trailer + 16, codec);
    bk_put_u32(trailer + 20, crc32c(trailer, 20));
    memcpy(trailer + 24, "NGXBKEND", 8);
}

static bk_rc_t try_trailer(uint64_t size, uint32_t offset, uint32_t length, uint32_t count,
                           uint32_t raw)
{
    uint8_t trailer[TRAILER];
    bk_pack_trailer_t where;
    bk_err_t err = {0};
    put_trailer(trailer, offset, length, count, raw, 0);
    bk_rc_t rc = bk_pack_trailer(trailer, size, &where, &err);
    assert_true(rc == BK_OK || (rc == BK_CORRUPT && err.text[0] != '\0'));
    return rc;
}

static void a_trailer_must_fit_its_pack(void **state)
{
    (void)state;
    assert_int_equal(try_trailer(1000, 922, 46, 1, 46), BK_OK);
    assert_int_equal(try_trailer(1001, 922, 46, 1, 46), BK_CORRUPT);
    assert_int_equal(try_trailer(999, 922, 46, 1, 46), BK_CORRUPT);
    assert_int_equal(try_trailer(1000, 922, 46, 2, 46), BK_CORRUPT);
    assert_int_equal(try_trailer(1000, 922, 46, 2, 92), BK_OK); /* compressed, says the codec */
    assert_int_equal(try_trailer(1000, 79, 889, 1, 46), BK_CORRUPT); /* in the header */
    assert_int_equal(try_trailer(1000, 80, 888, 1, 46), BK_OK);
    assert_int_equal(try_trailer(1000, UINT32_MAX - 31, 1000, 0, 0), BK_CORRUPT); /* wraps */
    assert_int_equal(try_trailer(1000, 922, 46, 0x05900000u, 0x05900000u * 46u), BK_CORRUPT);
    assert_int_equal(try_trailer(1000, 922, 46, UINT32_MAX, UINT32_MAX * 46u), BK_CORRUPT);
    assert_int_equal(try_trailer((uint64_t)BK_PACK_MAX + 1, 80, BK_PACK_MAX + 1 - 112, 1, 46),
                     BK_CORRUPT);
    assert_int_equal(try_trailer(1000 + (1ull << 32), 922, 46, 1, 46), BK_CORRUPT);
}

/* A directory of two entries, the second one as given; the pack has 1000 bytes of frames. */
static bk_rc_t try_entry(uint8_t first_byte, uint32_t offset, uint32_t stored, uint32_t raw,
                         uint8_t type, uint8_t codec)
{
    bk_object_key_t key = {0};
    bk_buf_t directory;
    bk_pack_entry_t *entries = NULL;
    bk_pack_trailer_t where = {.offset = 1080, .length = 92, .count = 2, .raw = 92};
    bk_err_t err = {0};
    bk_buf_init(&directory, 200);
    for (int i = 0; i < 2; i++) {
        uint8_t id[BK_ID_SIZE] = {i == 0 ? 5 : first_byte};
        bk_buf_add(&directory, id, sizeof id);
        bk_buf_u32(&directory, i == 0 ? 80 : offset);
        bk_buf_u32(&directory, i == 0 ? 10 : stored);
        bk_buf_u32(&directory, i == 0 ? 10 : raw);
        bk_buf_u8(&directory, i == 0 ? 1 : type);
        bk_buf_u8(&directory, i == 0 ? 0 : codec);
    }
    bk_rc_t rc = bk_pack_directory(&key, directory.data, &where, &entries, &err);
    assert_true((rc == BK_OK) == (entries != NULL));
    free(entries);
    bk_buf_free(&directory);
    return rc;
}

static void an_entry_must_lie_among_the_frames(void **state)
{
    (void)state;
    assert_int_equal(try_entry(6, 90, 10, 10, 1, 0), BK_OK);
    assert_int_equal(try_entry(6, 1080, 0, 0, 1, 0), BK_OK);
    assert_int_equal(try_entry(6, 80, 1000, BK_CHUNK_MAX, 5, 2), BK_OK);
    assert_int_equal(try_entry(6, 79, 10, 10, 1, 0), BK_CORRUPT);
    assert_int_equal(try_entry(6, 81, 1000, 10, 1, 0), BK_CORRUPT);
    assert_int_equal(try_entry(6, 1081, 0, 0, 1, 0), BK_CORRUPT);
    assert_int_equal(try_entry(6, UINT32_MAX, UINT32_MAX, 10, 1, 0), BK_CORRUPT);
    assert_int_equal(try_entry(6, 90, UINT32_MAX - 89, 10, 1, 0), BK_CORRUPT);
    assert_int_equal(try_entry(6, 90, 10, BK_CHUNK_MAX + 1, 1, 1), BK_CORRUPT);
    assert_int_equal(try_entry(6, 90, 10, 10, 0, 0), BK_CORRUPT);
    assert_int_equal(try_entry(6, 90, 10, 10, 6, 0), BK_CORRUPT);
    assert_int_equal(try_entry(6, 90, 10, 10, 1, 3), BK_CORRUPT);
    assert_int_equal(try_entry(5, 90, 10, 10, 1, 0), BK_CORRUPT); /* twice the same id */
    assert_int_equal(try_entry(4, 90, 10, 10, 1, 0), BK_CORRUPT); /* not sorted */
}

/* An index entry may name anything: only the bytes count. */
static void a_frame_must_be_the_chunk_that_was_asked_for(void **state)
{
    fixture_t *f = *state;
    bk_object_key_t key;
    uint8_t frame[2000], out[2000];
    finish(f, 5);
    OK(bk_object_key_open(f->ring, uuid, BK_KIND_PACK, f->pack.bytes.data, &key, &f->err), &f->err);
    for (size_t i = 0; i < 5; i++) {
        bk_pack_entry_t entry = f->pack.entries[i];
        if (entry.raw == 0) /* nothing, in any codec, is nothing */
            continue;
        for (int change = 0; change < 7; change++) {
            bk_pack_entry_t wrong = entry;
            if (change == 1)
                wrong.id.b[31] ^= 1;
            else if (change == 2)
                wrong.type ^= 3;
            else if (change == 3)
                wrong.codec = (uint8_t)((entry.codec + 1) % 3);
            else if (change == 4)
                wrong.raw++;
            else if (change == 5 && wrong.raw > 0)
                wrong.raw--;
            else if (change == 6)
                wrong.stored = (uint32_t)f->pack.overhead / 2;
            memcpy(frame, f->pack.bytes.data + entry.offset, entry.stored);
            bk_rc_t rc = bk_pack_frame(f->ring, &key, &wrong, frame, out, &f->err);
            bool same = memcmp(&wrong, &entry, sizeof entry) == 0;
            assert_int_equal(rc, same ? BK_OK : BK_CORRUPT);
        }
    }
    bk_object_key_wipe(&key);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TEST_PLAIN(name)                                                                           \
    {                                                                                              \
#name " (plain)", name, set_up_plain, tear_down, NULL                                      \
    }
#define TEST_BOTH(name) TEST(name), TEST_PLAIN(name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_BOTH(a_pack_without_chunks_is_sound),
        TEST_BOTH(a_pack_of_one_chunk_gives_it_back),
        TEST_BOTH(a_pack_gives_back_every_chunk),
        TEST_BOTH(a_pack_can_be_filled_again),
        TEST_BOTH(frames_may_come_compressed),
        TEST_BOTH(the_size_told_is_near_the_size_made),
        TEST_BOTH(equal_packs_have_different_names),
        TEST_BOTH(a_chunk_added_twice_is_stored_once),
        TEST(an_encrypted_pack_shows_neither_content_nor_ids),
        TEST_BOTH(what_readers_would_refuse_is_not_added),
        TEST(a_full_pack_keeps_what_it_has),
        TEST_BOTH(a_pack_is_finished_by_the_ring_it_was_begun_for),
        TEST(a_pack_of_the_first_version_is_read),
        TEST_BOTH(no_flipped_bit_gives_wrong_data),
        TEST_BOTH(a_cut_pack_is_never_read_as_another),
        TEST_BOTH(frames_that_changed_places_are_refused),
        TEST_PLAIN(the_checksum_is_crc_32c),
        TEST_PLAIN(a_trailer_must_fit_its_pack),
        TEST_PLAIN(an_entry_must_lie_among_the_frames),
        TEST_BOTH(a_frame_must_be_the_chunk_that_was_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
