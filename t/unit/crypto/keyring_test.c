/*
 * t/unit/crypto/keyring_test.c: keyrings, the slots that wrap them, chunk ids.  The golden values were computed by
 * another program from the format's page: what is stored today must open in ten years.
 */
#include "unit/testing.h"

#include <jansson.h>

#include "base/json.h"
#include "base/str.h"
#include "crypto/keyring.h"
#include "crypto/keyring_private.h"

/* Epochs 1 and 3; id key 0x11…, chunker key 0x22…, secrets 0x33… and 0x44…. */
#define GOLDEN_ID "\"id\":\"01K7M0Q8R5ZJ3X9V2T4B6N8CDE\""
static const char golden_key_slot[] =
    "{\"created\":\"2025-10-15T14:30:00Z\",\"format\":1," GOLDEN_ID ",\"kind\":\"key\","
    "\"label\":\"golden\",\"nonce\":\"000102030405060708090a0b\","
    "\"verifier\":\"8db1df9e0eee309f0b39dc906c775fd9\",\"wrapped\":\""
    "3377d9322d7653b5637a19999bd4e8e94adf0288049e7c01da78e1357c828d7ada3519f302f6475e7c0ca4ba4f42d9"
    "db87f56f93613822b93bc9ae6689583903ede8e6e416a6f1af62cb01d44d30c45aa87074e8e16de60713afa016a237"
    "b8912502fa9219ac4781c8704141f2886c8fbee19dde9b6240c09f790a5e8c068169704250176f70113908a6d90324"
    "7bd549cbb78ed5304e75a74bb7e13fb6c40c976d5c7c25e3c3864c00fc18b7e3\"}";
/* scrypt with n = 2^14 of "pa\xc3\x9fword". */
static const char golden_passphrase_slot[] =
    "{\"created\":\"2025-10-15T14:30:00Z\",\"format\":1," GOLDEN_ID ",\"kind\":\"passphrase\","
    "\"label\":\"golden\",\"nonce\":\"000102030405060708090a0b\",\"scrypt\":{\"n\":16384,\"p\":1,"
    "\"r\":8,\"salt\":\"505152535455565758595a5b5c5d5e5f\"},"
    "\"verifier\":\"7b710004e8ae0c6ee09cc8c4d1d7c882\",\"wrapped\":\""
    "a36be55c6147ac081b84628ba111b9d2effee31612c1db963d45308f77eb5c8500b527c4111adff73d6b823e6dc52a"
    "a3697f02a02c0b3c9e57270ee94d6d45b65964e2450e717b93c8f43c8230b4413ebee32f3e56e81a3f481f765bc632"
    "750130f7b97058b709e7686905870905a3519498034694f309b61c5e929d1a43dbfbabf31069bb130c0ee70be85285"
    "06ee9ac35d8067eea7314b2da3a5d0023fb91cb8a979984083043a0064949b57\"}";

static uint8_t golden_key[BK_KEY_SIZE];

static int set_up(void **state)
{
    (void)state;
    for (uint8_t i = 0; i < BK_KEY_SIZE; i++)
        golden_key[i] = i;
    return 0;
}

static void assert_golden(const bk_keyring_t *ring)
{
    uint8_t twos[32], threes[32], fours[32];
    char hex[BK_ID_HEX];
    bk_id_t id;
    memset(twos, 0x22, 32);
    memset(threes, 0x33, 32);
    memset(fours, 0x44, 32);
    assert_true(bk_keyring_encrypted(ring));
    assert_int_equal(bk_keyring_epoch(ring), 3);
    assert_memory_equal(bk_keyring_chunker_key(ring), twos, 32);
    assert_memory_equal(bk_keyring_secret(ring, 1), threes, 32);
    assert_memory_equal(bk_keyring_secret(ring, 3), fours, 32);
    assert_null(bk_keyring_secret(ring, 0));
    assert_null(bk_keyring_secret(ring, 2));
    assert_null(bk_keyring_secret(ring, 4));
    bk_chunk_id(ring, 1, "hello", 5, &id);
    bk_id_hex(hex, &id);
    assert_string_equal(hex, "488e193d583cc6598f99c58991ad51d4dd8dd05f2a502a3258ffc95aecc095f2");
}

static void a_slot_of_the_first_version_opens_by_its_key(void **state)
{
    (void)state;
    bk_secret_t secret = {.key = golden_key};
    bk_keyring_t *ring = NULL;
    bk_err_t err = {0};
    OK(bk_slot_open(golden_key_slot, sizeof golden_key_slot - 1, &secret, &ring, &err), &err);
    assert_golden(ring);
    bk_keyring_free(ring);
}

static void a_slot_of_the_first_version_opens_by_its_passphrase(void **state)
{
    (void)state;
    bk_secret_t secret = {.passphrase = "pa\xc3\x9fword"};
    bk_keyring_t *ring = NULL;
    bk_err_t err = {0};
    OK(bk_slot_open(golden_passphrase_slot, sizeof golden_passphrase_slot - 1, &secret, &ring,
                    &err),
       &err);
    assert_golden(ring);
    bk_keyring_free(ring);
}

static void a_plain_ring_has_no_secrets(void **state)
{
    (void)state;
    bk_keyring_t *ring = bk_keyring_plain();
    bk_secret_t secret = {.key = golden_key};
    bk_buf_t slot;
    bk_id_t id;
    char hex[BK_ID_HEX];
    bk_err_t err = {0};
    assert_non_null(ring);
    assert_false(bk_keyring_encrypted(ring));
    assert_int_equal(bk_keyring_epoch(ring), 0);
    assert_null(bk_keyring_secret(ring, 0));
    bk_chunk_id(ring, 1, "hello", 5, &id);
    bk_id_hex(hex, &id);
    assert_string_equal(hex, "cceeb7a985ecc3dabcb4c8f666cd637f16f008e3c963db6aa6f83a7b288c54ef");
    bk_hex(hex, bk_keyring_chunker_key(ring), 32);
    assert_string_equal(hex, "4b3420dee1b4b504219d8f7faca36ba4b2698a1f64bd42968ad3c1c09a578b78");
    bk_buf_init(&slot, 1u << 16);
    assert_int_equal(bk_slot_seal(ring, &secret, "x", &slot, &err), BK_INVALID);
    assert_int_equal(slot.len, 0);
    bk_buf_free(&slot);
    bk_keyring_free(ring);
    bk_keyring_free(NULL);
}

static void ids_depend_on_ring_type_and_content(void **state)
{
    (void)state;
    bk_keyring_t *a = bk_keyring_new(), *b = bk_keyring_new();
    bk_id_t one, other;
    bk_chunk_id(a, 1, "data", 4, &one);
    bk_chunk_id(a, 1, "data", 4, &other);
    assert_true(bk_id_equal(&one, &other));
    bk_chunk_id(b, 1, "data", 4, &other);
    assert_false(bk_id_equal(&one, &other));
    bk_chunk_id(a, 2, "data", 4, &other);
    assert_false(bk_id_equal(&one, &other));
    bk_chunk_id(a, 1, "datb", 4, &other);
    assert_false(bk_id_equal(&one, &other));
    bk_chunk_id(a, 1, NULL, 0, &other);
    assert_false(bk_id_equal(&one, &other));
    assert_memory_not_equal(bk_keyring_chunker_key(a), bk_keyring_chunker_key(b), 32);
    bk_keyring_free(a);
    bk_keyring_free(b);
}

static void assert_same_ring(const bk_keyring_t *a, const bk_keyring_t *b)
{
    bk_buf_t x, y;
    bk_err_t err = {0};
    bk_buf_init(&x, 1u << 16);
    bk_buf_init(&y, 1u << 16);
    OK(bk_keyring_encode(a, &x, &err), &err);
    OK(bk_keyring_encode(b, &y, &err), &err);
    assert_int_equal(x.len, y.len);
    assert_memory_equal(x.data, y.data, x.len);
    bk_buf_wipe(&x);
    bk_buf_wipe(&y);
}

/* Seal with one secret, open with the same and with others. */
static void check_slot(const bk_secret_t *secret, const bk_secret_t *wrong,
                       const bk_secret_t *other_kind)
{
    bk_keyring_t *ring = bk_keyring_new(), *back = NULL;
    bk_buf_t slot;
    bk_err_t err = {0};
    json_t *facts;
    bk_buf_init(&slot, 1u << 16);
    OK(bk_slot_seal(ring, secret, "B\xc3\xbcro", &slot, &err), &err);
    OK(bk_slot_open(slot.data, slot.len, secret, &back, &err), &err);
    assert_same_ring(ring, back);
    bk_keyring_free(back);
    back = NULL;
    assert_int_equal(bk_slot_open(slot.data, slot.len, wrong, &back, &err), BK_WRONG_KEY);
    assert_int_equal(bk_slot_open(slot.data, slot.len, other_kind, &back, &err), BK_WRONG_KEY);
    assert_null(back);
    OK(bk_slot_describe(slot.data, slot.len, &facts, &err), &err);
    assert_int_equal(json_object_size(facts), 4);
    assert_string_equal(json_string_value(json_object_get(facts, "label")), "B\xc3\xbcro");
    assert_string_equal(json_string_value(json_object_get(facts, "kind")),
                        secret->key != NULL ? "key" : "passphrase");
    json_decref(facts);
    bk_buf_free(&slot);
    bk_keyring_free(ring);
}

static void a_slot_opens_by_its_key_alone(void **state)
{
    (void)state;
    uint8_t wrong[BK_KEY_SIZE];
    memcpy(wrong, golden_key, sizeof wrong);
    wrong[31] ^= 1;
    check_slot(&(bk_secret_t){.key = golden_key}, &(bk_secret_t){.key = wrong},
               &(bk_secret_t){.passphrase = "x"});
}

static void a_slot_opens_by_its_passphrase_alone(void **state)
{
    (void)state;
    check_slot(&(bk_secret_t){.passphrase = "correct horse"},
               &(bk_secret_t){.passphrase = "correct horsE"}, &(bk_secret_t){.key = golden_key});
}

static void two_slots_of_one_ring_share_no_byte_of_key(void **state)
{
    (void)state;
    bk_keyring_t *ring = bk_keyring_new();
    bk_secret_t secret = {.key = golden_key};
    bk_buf_t slot[2];
    json_t *object[2];
    bk_err_t err = {0};
    static const char *const members[] = {"id", "nonce", "verifier", "wrapped"};
    for (size_t i = 0; i < 2; i++) {
        bk_buf_init(&slot[i], 1u << 16);
        OK(bk_slot_seal(ring, &secret, NULL, &slot[i], &err), &err);
        OK(bk_json_parse(slot[i].data, slot[i].len, &object[i], &err), &err);
    }
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        assert_string_not_equal(json_string_value(json_object_get(object[0], members[i])),
                                json_string_value(json_object_get(object[1], members[i])));
    for (size_t i = 0; i < 2; i++) {
        json_decref(object[i]);
        bk_buf_free(&slot[i]);
    }
    bk_keyring_free(ring);
}

static void a_slot_needs_one_secret_and_a_sane_label(void **state)
{
    (void)state;
    bk_keyring_t *ring = bk_keyring_new();
    bk_secret_t key = {.key = golden_key};
    static const char *const labels[] = {
        "two\nlines", "\x1b[2J", "\xff", "\xc2\x9b",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    bk_buf_t slot;
    bk_err_t err = {0};
    bk_buf_init(&slot, 1u << 16);
    assert_int_equal(bk_slot_seal(ring, &(bk_secret_t){0}, "x", &slot, &err), BK_INVALID);
    assert_int_equal(bk_slot_seal(ring, &(bk_secret_t){.passphrase = ""}, "x", &slot, &err),
                     BK_INVALID);
    assert_int_equal(
        bk_slot_seal(ring, &(bk_secret_t){.key = golden_key, .passphrase = "x"}, "x", &slot, &err),
        BK_INVALID);
    for (size_t i = 0; i < sizeof labels / sizeof *labels; i++)
        assert_int_equal(bk_slot_seal(ring, &key, labels[i], &slot, &err), BK_INVALID);
    assert_int_equal(slot.len, 0);
    OK(bk_slot_seal(ring, &key, labels[4] + 1, &slot, &err), &err); /* 64 bytes */
    bk_buf_free(&slot);
    bk_keyring_free(ring);
}

/* Each byte of a slot is changed: it opens as the same ring, or not at all. */
static void a_damaged_slot_is_never_another_ring(void **state)
{
    (void)state;
    char slot[sizeof golden_key_slot];
    bk_secret_t secret = {.key = golden_key};
    size_t opened = 0, len = sizeof golden_key_slot - 1;
    for (size_t i = 0; i < len; i++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            bk_keyring_t *ring = NULL;
            bk_err_t err = {0};
            memcpy(slot, golden_key_slot, sizeof slot);
            slot[i] = (char)(slot[i] ^ (1 << bit));
            bk_rc_t rc = bk_slot_open(slot, len, &secret, &ring, &err);
            if (rc == BK_OK) { /* label, created, the case of a digit */
                assert_golden(ring);
                bk_keyring_free(ring);
                opened++;
            } else {
                assert_true(rc == BK_CORRUPT || rc == BK_WRONG_KEY || rc == BK_UNSUPPORTED);
                assert_true(err.text[0] != '\0');
                assert_null(ring);
            }
        }
    }
    assert_true(opened < len * 4);
    for (size_t cut = 0; cut < len; cut++) {
        bk_keyring_t *ring = NULL;
        bk_err_t err = {0};
        assert_int_equal(bk_slot_open(golden_key_slot, cut, &secret, &ring, &err), BK_CORRUPT);
    }
}

/* golden slot with one member replaced (or removed). */
static bk_rc_t open_changed(const char *slot, const char *member, json_t *value, bool nested)
{
    bk_secret_t secret = {.key = golden_key};
    bk_keyring_t *ring = NULL;
    bk_err_t err = {0};
    bk_buf_t text;
    json_t *object, *holder;
    if (slot == golden_passphrase_slot)
        secret = (bk_secret_t){.passphrase = "pa\xc3\x9fword"};
    OK(bk_json_parse(slot, strlen(slot), &object, &err), &err);
    holder = nested ? json_object_get(object, "scrypt") : object;
    if (value != NULL)
        json_object_set_new(holder, member, value);
    else
        json_object_del(holder, member);
    bk_buf_init(&text, 1u << 16);
    OK(bk_json_dump(object, true, &text, &err), &err);
    bk_rc_t rc = bk_slot_open(text.data, text.len, &secret, &ring, &err);
    bk_keyring_free(ring);
    bk_buf_free(&text);
    json_decref(object);
    return rc;
}

static void a_slot_without_a_member_it_needs_is_damaged(void **state)
{
    (void)state;
    static const char *const members[] = {"format", "id", "kind", "nonce", "verifier", "wrapped"};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        assert_int_equal(open_changed(golden_key_slot, members[i], NULL, false), BK_CORRUPT);
        assert_int_equal(open_changed(golden_key_slot, members[i], json_true(), false), BK_CORRUPT);
        assert_int_equal(open_changed(golden_key_slot, members[i], json_string("00"), false),
                         BK_CORRUPT);
    }
    assert_int_equal(open_changed(golden_key_slot, "label", NULL, false), BK_OK);
    assert_int_equal(open_changed(golden_key_slot, "more", json_true(), false), BK_OK);
    assert_int_equal(open_changed(golden_passphrase_slot, "scrypt", NULL, false), BK_CORRUPT);
}

static void a_newer_slot_asks_for_a_newer_program(void **state)
{
    (void)state;
    assert_int_equal(open_changed(golden_key_slot, "format", json_integer(2), false),
                     BK_UNSUPPORTED);
}

/* Anybody who can write to the storage could otherwise stop the program with one number. */
static void a_slot_cannot_ask_for_endless_work(void **state)
{
    (void)state;
    assert_int_equal(open_changed(golden_passphrase_slot, "n", json_integer(1 << 20), true),
                     BK_UNSUPPORTED);
    assert_int_equal(open_changed(golden_passphrase_slot, "p", json_integer(1000), true),
                     BK_UNSUPPORTED);
    assert_int_equal(open_changed(golden_passphrase_slot, "r", json_integer(1000), true),
                     BK_UNSUPPORTED);
    assert_int_equal(open_changed(golden_passphrase_slot, "n", json_integer(16385), true),
                     BK_CORRUPT);
    assert_int_equal(open_changed(golden_passphrase_slot, "n", json_integer(-16384), true),
                     BK_CORRUPT);
    assert_int_equal(open_changed(golden_passphrase_slot, "n", json_integer(INT64_MAX), true),
                     BK_CORRUPT);
    assert_int_equal(open_changed(golden_passphrase_slot, "salt", json_string("00"), true),
                     BK_CORRUPT);
    /* Less work than was written: another KEK, so another verifier. */
    assert_int_equal(open_changed(golden_passphrase_slot, "n", json_integer(8192), true),
                     BK_WRONG_KEY);
}

static void texts_of_a_foreign_slot_cannot_command_a_terminal(void **state)
{
    (void)state;
    static const char slot[] = "{\"format\":1," GOLDEN_ID ",\"kind\":\"key\","
                               "\"label\":\"\\u001b[2J\\u009b\"}";
    json_t *facts;
    bk_err_t err = {0};
    OK(bk_slot_describe(slot, sizeof slot - 1, &facts, &err), &err);
    for (const char *p = json_string_value(json_object_get(facts, "label")); *p != '\0'; p++)
        assert_true(*p >= 0x20 && *p < 0x7f);
    assert_string_equal(json_string_value(json_object_get(facts, "created")), "");
    json_decref(facts);
    assert_int_equal(bk_slot_describe("{}", 2, &facts, &err), BK_CORRUPT);
}

/* --- the bytes inside a slot --- */

static size_t golden_bytes(uint8_t out[1000])
{
    bk_buf_t bytes;
    bk_secret_t secret = {.key = golden_key};
    bk_keyring_t *ring = NULL;
    bk_err_t err = {0};
    OK(bk_slot_open(golden_key_slot, sizeof golden_key_slot - 1, &secret, &ring, &err), &err);
    bk_buf_init(&bytes, 1000);
    OK(bk_keyring_encode(ring, &bytes, &err), &err);
    size_t len = bytes.len;
    memcpy(out, bytes.data, len);
    bk_buf_wipe(&bytes);
    bk_keyring_free(ring);
    return len;
}

static bk_rc_t decode(const uint8_t *bytes, size_t len)
{
    bk_keyring_t *ring = NULL;
    bk_err_t err = {0};
    bk_rc_t rc = bk_keyring_decode(bytes, len, &ring, &err);
    assert_true((rc == BK_OK) == (ring != NULL));
    bk_keyring_free(ring);
    return rc;
}

static void bytes_that_are_no_keyring_are_refused(void **state)
{
    (void)state;
    uint8_t bytes[1000] = {0}, copy[1000];
    size_t len = golden_bytes(bytes);
    assert_int_equal(len, 1 + 32 + 32 + 4 + 2 * 44);
    assert_int_equal(decode(bytes, len), BK_OK);
    for (size_t cut = 0; cut < len; cut++)
        assert_int_not_equal(decode(bytes, cut), BK_OK);
    assert_int_equal(decode(bytes, len + 1), BK_CORRUPT);
    memcpy(copy, bytes, len);
    copy[0] = 2;
    assert_int_equal(decode(copy, len), BK_UNSUPPORTED);
    memcpy(copy, bytes, len);
    bk_put_u32(copy + 69 + 44, 1); /* the second epoch has the number of the first */
    assert_int_equal(decode(copy, len), BK_CORRUPT);
    bk_put_u32(copy + 69 + 44, 3);
    bk_put_u32(copy + 69, 0); /* epoch 0 means: not encrypted */
    assert_int_equal(decode(copy, len), BK_CORRUPT);
    bk_put_u32(copy + 69, 1);
    for (uint32_t count = 0; count < 5; count++) {
        bk_put_u32(copy + 65, count);
        assert_int_equal(decode(copy, len), count == 2 ? BK_OK : BK_CORRUPT);
    }
    bk_put_u32(copy + 65, UINT32_MAX);
    assert_int_equal(decode(copy, len), BK_CORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slot_of_the_first_version_opens_by_its_key),
        cmocka_unit_test(a_slot_of_the_first_version_opens_by_its_passphrase),
        cmocka_unit_test(a_plain_ring_has_no_secrets),
        cmocka_unit_test(ids_depend_on_ring_type_and_content),
        cmocka_unit_test(a_slot_opens_by_its_key_alone),
        cmocka_unit_test(a_slot_opens_by_its_passphrase_alone),
        cmocka_unit_test(two_slots_of_one_ring_share_no_byte_of_key),
        cmocka_unit_test(a_slot_needs_one_secret_and_a_sane_label),
        cmocka_unit_test(a_damaged_slot_is_never_another_ring),
        cmocka_unit_test(a_slot_without_a_member_it_needs_is_damaged),
        cmocka_unit_test(a_newer_slot_asks_for_a_newer_program),
        cmocka_unit_test(a_slot_cannot_ask_for_endless_work),
        cmocka_unit_test(texts_of_a_foreign_slot_cannot_command_a_terminal),
        cmocka_unit_test(bytes_that_are_no_keyring_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
