/*
 * t/unit/crypto/object_test.c: sealed parts and whole objects, honest, damaged and hostile.
 */
#include "unit/testing.h"

#include "base/str.h"
#include "crypto/keyring_private.h"
#include "crypto/object.h"

static const uint8_t uuid[BK_UUID_SIZE] = {0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7,
                                           0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf};

/* Computed by another program from the format's page: epoch 3 of the ring below, kind snapshot. */
static const char golden_object[] =
    "4e4758424b5000010400000003000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf777777777777777777777777777777"
    "7777777777777777777777777777777777fb96c77665f3c14c3710169b644124220013000000a2e91c0be0bef99d2f"
    "449c160ac939e0686bec86918be4f61584ccc73121eb2ce4a4e7";

typedef struct {
    bk_keyring_t *ring;
    bk_object_key_t key;
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

static fixture_t *start(bk_keyring_t *ring)
{
    fixture_t *f = calloc(1, sizeof *f);
    bk_id_t content = {{1}};
    f->ring = ring;
    OK(bk_object_key_new(f->ring, uuid, BK_KIND_PACK, &content, &f->key, &f->err), &f->err);
    return f;
}

static int set_up(void **state)
{
    *state = start(golden_ring());
    return 0;
}

static int set_up_plain(void **state)
{
    *state = start(bk_keyring_plain());
    return 0;
}

static int tear_down(void **state)
{
    fixture_t *f = *state;
    bk_object_key_wipe(&f->key);
    bk_keyring_free(f->ring);
    free(f);
    return 0;
}

static void an_object_of_the_first_version_opens(void **state)
{
    fixture_t *f = *state;
    uint8_t object[(sizeof golden_object - 1) / 2];
    bk_buf_t out;
    assert_true(bk_unhex(object, sizeof object, golden_object, sizeof golden_object - 1));
    bk_buf_init(&out, 1000);
    OK(bk_object_unwrap(f->ring, uuid, BK_KIND_SNAPSHOT, object, sizeof object, &out, &f->err),
       &f->err);
    assert_int_equal(out.len, 19);
    assert_memory_equal(out.data, "{\"backup\":\"golden\"}", 19);
    bk_buf_free(&out);
}

static void parts_of_every_length_come_back(void **state)
{
    fixture_t *f = *state;
    static const size_t lengths[] = {0, 1, 15, 16, 17, 4096, 100001};
    uint8_t *in = malloc(200000), *sealed = malloc(200000), *out = malloc(200000);
    size_t overhead = bk_object_overhead(&f->key);
    bk_object_key_t again;
    test_fill(in, 200000, 3);
    assert_int_equal(overhead, f->key.encrypted ? BK_OBJECT_TAG : 0);
    OK(bk_object_key_open(f->ring, uuid, BK_KIND_PACK, f->key.header, &again, &f->err), &f->err);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t len = lengths[i];
        memset(out, 0, 200000);
        OK(bk_object_seal(&f->key, BK_PART_FRAME, i, "aad", 3, in, len, sealed, &f->err), &f->err);
        if (f->key.encrypted && len > 16)
            assert_memory_not_equal(sealed, in, len);
        OK(bk_object_unseal(&again, BK_PART_FRAME, i, "aad", 3, sealed, len + overhead, out,
                            &f->err),
           &f->err);
        assert_memory_equal(out, in, len);
        /* In place, both ways, gives the same. */
        memcpy(out, in, len);
        OK(bk_object_seal(&f->key, BK_PART_FRAME, i, "aad", 3, out, len, out, &f->err), &f->err);
        assert_memory_equal(out, sealed, len + overhead);
        OK(bk_object_unseal(&f->key, BK_PART_FRAME, i, "aad", 3, out, len + overhead, out, &f->err),
           &f->err);
        assert_memory_equal(out, in, len);
    }
    bk_object_key_wipe(&again);
    free(in);
    free(sealed);
    free(out);
}

static bk_rc_t unseal(fixture_t *f, const bk_object_key_t *key, uint32_t domain, uint64_t position,
                      const char *aad, const uint8_t *in, size_t len)
{
    uint8_t out[200];
    bk_err_clear(&f->err);
    return bk_object_unseal(key, domain, position, aad, strlen(aad), in, len, out, &f->err);
}

/* A part that was moved, or belongs to another object, is as wrong as one that was changed. */
static void a_part_opens_only_where_it_was_sealed(void **state)
{
    fixture_t *f = *state;
    uint8_t sealed[116];
    bk_object_key_t other;
    bk_id_t content = {{1}};
    test_fill(sealed, 100, 1);
    OK(bk_object_seal(&f->key, BK_PART_FRAME, 80, "aad", 3, sealed, 100, sealed, &f->err), &f->err);
    assert_int_equal(unseal(f, &f->key, BK_PART_FRAME, 80, "aad", sealed, 116), BK_OK);
    assert_int_equal(unseal(f, &f->key, BK_PART_FRAME, 81, "aad", sealed, 116), BK_CORRUPT);
    assert_int_equal(unseal(f, &f->key, BK_PART_FRAME, 80 + (1ull << 32), "aad", sealed, 116),
                     BK_CORRUPT);
    assert_int_equal(unseal(f, &f->key, BK_PART_DIRECTORY, 80, "aad", sealed, 116), BK_CORRUPT);
    assert_int_equal(unseal(f, &f->key, BK_PART_FRAME, 80, "aaD", sealed, 116), BK_CORRUPT);
    assert_int_equal(unseal(f, &f->key, BK_PART_FRAME, 80, "", sealed, 116), BK_CORRUPT);
    OK(bk_object_key_new(f->ring, uuid, BK_KIND_PACK, &content, &other, &f->err), &f->err);
    assert_int_equal(unseal(f, &other, BK_PART_FRAME, 80, "aad", sealed, 116), BK_CORRUPT);
    other = f->key;
    other.header[8] ^= 1; /* the right key under another header */
    assert_int_equal(unseal(f, &other, BK_PART_FRAME, 80, "aad", sealed, 116), BK_CORRUPT);
    for (size_t len = 0; len < 116; len++)
        assert_int_equal(unseal(f, &f->key, BK_PART_FRAME, 80, "aad", sealed, len), BK_CORRUPT);
    for (size_t bit = 0; bit < 116 * 8; bit++) {
        sealed[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(unseal(f, &f->key, BK_PART_FRAME, 80, "aad", sealed, 116), BK_CORRUPT);
        sealed[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    bk_object_key_wipe(&other);
}

static void the_key_leaves_no_trace_and_a_new_one_works_after_it(void **state)
{
    fixture_t *f = *state;
    static const uint8_t zeros[BK_KEY_SIZE];
    uint8_t sealed[20] = "text";
    bk_object_key_t key;
    OK(bk_object_seal(&f->key, BK_PART_FRAME, 0, NULL, 0, sealed, 4, sealed, &f->err), &f->err);
    OK(bk_object_key_open(f->ring, uuid, BK_KIND_PACK, f->key.header, &key, &f->err), &f->err);
    bk_object_key_wipe(&key);
    assert_memory_equal(key.key, zeros, sizeof zeros);
    OK(bk_object_unseal(&f->key, BK_PART_FRAME, 0, NULL, 0, sealed, 20, sealed, &f->err), &f->err);
    assert_memory_equal(sealed, "text", 4);
}

/* Equal contents sealed twice share neither salt nor key. */
static void each_object_has_a_key_of_its_own(void **state)
{
    fixture_t *f = *state;
    bk_object_key_t other;
    bk_id_t content = {{1}};
    OK(bk_object_key_new(f->ring, uuid, BK_KIND_PACK, &content, &other, &f->err), &f->err);
    assert_memory_not_equal(other.header + 32, f->key.header + 32, 32);
    assert_memory_not_equal(other.key, f->key.key, BK_KEY_SIZE);
    bk_object_key_wipe(&other);
}

static void a_header_tells_what_is_wrong(void **state)
{
    fixture_t *f = *state;
    uint8_t other_uuid[BK_UUID_SIZE] = {0}, header[BK_OBJECT_HEADER];
    bk_keyring_t *stranger = bk_keyring_new(), *plain = bk_keyring_plain();
    bk_object_key_t key;
    assert_int_equal(bk_object_key_open(f->ring, uuid, BK_KIND_META, f->key.header, &key, &f->err),
                     BK_CORRUPT);
    assert_int_equal(
        bk_object_key_open(f->ring, other_uuid, BK_KIND_PACK, f->key.header, &key, &f->err),
        BK_CORRUPT);
    assert_non_null(strstr(f->err.text, "another repository"));
    assert_int_equal(bk_object_key_open(stranger, uuid, BK_KIND_PACK, f->key.header, &key, &f->err),
                     BK_WRONG_KEY);
    assert_int_equal(bk_object_key_open(plain, uuid, BK_KIND_PACK, f->key.header, &key, &f->err),
                     BK_CORRUPT);
    for (size_t bit = 0; bit < BK_OBJECT_HEADER * 8; bit++) {
        memcpy(header, f->key.header, sizeof header);
        header[bit / 8] ^= (uint8_t)(1 << bit % 8);
        bk_rc_t rc = bk_object_key_open(f->ring, uuid, BK_KIND_PACK, header, &key, &f->err);
        assert_true(rc == BK_CORRUPT || rc == BK_WRONG_KEY);
        assert_false(key.encrypted);
    }
    bk_keyring_free(stranger);
    bk_keyring_free(plain);
}

/* Without this an attacker could put plain objects into an encrypted repository. */
static void an_encrypted_repository_takes_no_plain_object(void **state)
{
    fixture_t *f = *state;
    bk_keyring_t *plain = bk_keyring_plain();
    bk_buf_t object, out;
    bk_buf_init(&object, 1000);
    bk_buf_init(&out, 1000);
    OK(bk_object_wrap(plain, uuid, BK_KIND_SNAPSHOT, "text", 4, &object, &f->err), &f->err);
    assert_int_equal(
        bk_object_unwrap(f->ring, uuid, BK_KIND_SNAPSHOT, object.data, object.len, &out, &f->err),
        BK_CORRUPT);
    assert_int_equal(out.len, 0);
    bk_buf_free(&object);
    bk_buf_free(&out);
    bk_keyring_free(plain);
}

static void objects_of_an_older_epoch_still_open(void **state)
{
    fixture_t *f = *state;
    uint8_t bytes[113] = {1};
    bk_keyring_t *old = NULL;
    bk_buf_t object, out;
    memset(bytes + 1, 0x11, 32);
    memset(bytes + 33, 0x22, 32);
    bk_put_u32(bytes + 65, 1);
    bk_put_u32(bytes + 69, 1);
    memset(bytes + 81, 0x33, 32);
    OK(bk_keyring_decode(bytes, sizeof bytes, &old, &f->err), &f->err);
    bk_buf_init(&object, 1000);
    bk_buf_init(&out, 1000);
    OK(bk_object_wrap(old, uuid, BK_KIND_LEASE, "text", 4, &object, &f->err), &f->err);
    assert_int_equal(bk_get_u32(object.data + 12), 1);
    OK(bk_object_unwrap(f->ring, uuid, BK_KIND_LEASE, object.data, object.len, &out, &f->err),
       &f->err);
    assert_memory_equal(out.data, "text", 4);
    bk_buf_reset(&object);
    bk_buf_reset(&out);
    OK(bk_object_wrap(f->ring, uuid, BK_KIND_LEASE, "text", 4, &object, &f->err), &f->err);
    assert_int_equal(bk_get_u32(object.data + 12), 3);
    /* The old ring has no secret for it, and says so. */
    assert_int_equal(
        bk_object_unwrap(old, uuid, BK_KIND_LEASE, object.data, object.len, &out, &f->err),
        BK_WRONG_KEY);
    bk_buf_free(&object);
    bk_buf_free(&out);
    bk_keyring_free(old);
}

static void whole_objects_come_back_behind_what_is_there(void **state)
{
    fixture_t *f = *state;
    static const size_t lengths[] = {0, 1, 5000, 300000};
    uint8_t *data = calloc(300000, 1);
    bk_buf_t object, out;
    bk_buf_init(&object, 1u << 20);
    bk_buf_init(&out, 1u << 20);
    test_fill(data, 1000, 9);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        bk_buf_reset(&object);
        bk_buf_reset(&out);
        bk_buf_add(&object, "before", 6);
        bk_buf_add(&out, "there", 5);
        OK(bk_object_wrap(f->ring, uuid, BK_KIND_INDEX, data, lengths[i], &object, &f->err),
           &f->err);
        OK(bk_object_unwrap(f->ring, uuid, BK_KIND_INDEX, object.data + 6, object.len - 6, &out,
                            &f->err),
           &f->err);
        assert_int_equal(out.len, 5 + lengths[i]);
        assert_memory_equal(out.data + 5, data, lengths[i]);
        assert_memory_equal(out.data, "there", 5);
    }
    assert_true(object.len < 4000); /* zeros are compressed */
    bk_buf_free(&object);
    bk_buf_free(&out);
    free(data);
}

static void unwrap_respects_the_limit_of_its_buffer(void **state)
{
    fixture_t *f = *state;
    uint8_t data[1000] = {0};
    bk_buf_t object, out;
    bk_buf_init(&object, 1u << 16);
    OK(bk_object_wrap(f->ring, uuid, BK_KIND_INDEX, data, sizeof data, &object, &f->err), &f->err);
    bk_buf_init(&out, sizeof data - 1);
    assert_int_equal(
        bk_object_unwrap(f->ring, uuid, BK_KIND_INDEX, object.data, object.len, &out, &f->err),
        BK_CORRUPT);
    bk_buf_free(&out);
    bk_buf_init(&out, sizeof data);
    OK(bk_object_unwrap(f->ring, uuid, BK_KIND_INDEX, object.data, object.len, &out, &f->err),
       &f->err);
    bk_buf_free(&out);
    bk_buf_free(&object);
}

/* Encrypted: every change and every cut is found.  Plain: never a crash, never a wrong length. */
static void a_damaged_whole_object_is_refused(void **state)
{
    fixture_t *f = *state;
    uint8_t data[600];
    bk_buf_t object, out;
    memset(data, 'x', sizeof data);
    test_fill(data, 200, 4);
    bk_buf_init(&object, 1u << 16);
    bk_buf_init(&out, 1u << 16);
    OK(bk_object_wrap(f->ring, uuid, BK_KIND_INDEX, data, sizeof data, &object, &f->err), &f->err);
    for (size_t bit = 0; bit < object.len * 8; bit++) {
        object.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        bk_buf_reset(&out);
        bk_rc_t rc =
            bk_object_unwrap(f->ring, uuid, BK_KIND_INDEX, object.data, object.len, &out, &f->err);
        if (f->key.encrypted)
            assert_true(rc == BK_CORRUPT || rc == BK_WRONG_KEY);
        assert_true(rc == BK_OK || out.len == 0);
        object.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t len = 0; len < object.len; len++) {
        uint8_t *cut = malloc(len + 1); /* its own memory: one byte too many is seen */
        memcpy(cut, object.data, len);
        bk_buf_reset(&out);
        assert_int_not_equal(
            bk_object_unwrap(f->ring, uuid, BK_KIND_INDEX, cut, len, &out, &f->err), BK_OK);
        assert_int_equal(out.len, 0);
        free(cut);
    }
    bk_buf_free(&object);
    bk_buf_free(&out);
}

static void a_plain_object_has_no_tags_and_no_commitment(void **state)
{
    fixture_t *f = *state;
    static const uint8_t zeros[16];
    assert_false(f->key.encrypted);
    assert_int_equal(bk_get_u32(f->key.header + 12), 0);
    assert_memory_equal(f->key.header + 64, zeros, 16);
    assert_memory_not_equal(f->key.header + 32, zeros, 16); /* names never repeat */
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TEST_PLAIN(name)                                                                           \
    {                                                                                              \
#name " (plain)", name, set_up_plain, tear_down, NULL                                      \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_object_of_the_first_version_opens),
        TEST(parts_of_every_length_come_back),
        TEST_PLAIN(parts_of_every_length_come_back),
        TEST(a_part_opens_only_where_it_was_sealed),
        TEST(the_key_leaves_no_trace_and_a_new_one_works_after_it),
        TEST(each_object_has_a_key_of_its_own),
        TEST(a_header_tells_what_is_wrong),
        TEST(an_encrypted_repository_takes_no_plain_object),
        TEST(objects_of_an_older_epoch_still_open),
        TEST(whole_objects_come_back_behind_what_is_there),
        TEST_PLAIN(whole_objects_come_back_behind_what_is_there),
        TEST(unwrap_respects_the_limit_of_its_buffer),
        TEST(a_damaged_whole_object_is_refused),
        TEST_PLAIN(a_damaged_whole_object_is_refused),
        TEST_PLAIN(a_plain_object_has_no_tags_and_no_commitment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
