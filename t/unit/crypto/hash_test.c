/*
 * t/unit/crypto/hash_test.c: digests against the values their standards print.
 */
#include "unit/testing.h"

#include <pthread.h>

#include "base/str.h"
#include "crypto/hash.h"

static void assert_hex(const uint8_t *bytes, size_t len, const char *hex)
{
    char text[512];
    assert_true(2 * len < sizeof text);
    bk_hex(text, bytes, len);
    assert_string_equal(text, hex);
}

static const struct {
    const char *message, *digest;
} fips[] = {
    {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
     "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
};

/* FIPS 180-4, the examples of NIST. */
static void sha256_gives_the_values_of_its_standard(void **state)
{
    (void)state;
    bk_id_t id;
    for (size_t i = 0; i < sizeof fips / sizeof *fips; i++) {
        bk_sha256(&id, fips[i].message, strlen(fips[i].message));
        assert_hex(id.b, sizeof id.b, fips[i].digest);
    }
    bk_sha256(&id, NULL, 0);
    assert_hex(id.b, sizeof id.b, fips[0].digest);
}

static void a_message_may_come_in_pieces(void **state)
{
    (void)state;
    bk_sha256_t *ctx = bk_sha256_new();
    bk_id_t id;
    char piece[1000];
    assert_non_null(ctx);
    memset(piece, 'a', sizeof piece);
    for (int round = 0; round < 2; round++) { /* the context is ready for the next message */
        for (int i = 0; i < 1000; i++)
            bk_sha256_add(ctx, piece, sizeof piece);
        bk_sha256_end(ctx, &id);
        assert_hex(id.b, sizeof id.b,
                   "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
    for (size_t i = 0; i < 56; i++)
        bk_sha256_add(ctx, fips[2].message + i, 1);
    bk_sha256_end(ctx, &id);
    assert_hex(id.b, sizeof id.b, fips[2].digest);
    bk_sha256_end(ctx, &id);
    assert_hex(id.b, sizeof id.b, fips[0].digest);
    bk_sha256_free(ctx);
    bk_sha256_free(NULL);
}

/* RFC 4231, cases 1 to 4, 6 and 7. */
static void hmac_gives_the_values_of_its_standard(void **state)
{
    (void)state;
    static const char longer[] =
        "This is a test using a larger than block-size key and a larger than block-size data. The "
        "key needs to be hashed before being used by the HMAC algorithm.";
    uint8_t key[131], data[50], out[32];
    memset(key, 0x0b, 20);
    bk_hmac_sha256(out, key, 20, "Hi There", 8);
    assert_hex(out, 32, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    bk_hmac_sha256(out, "Jefe", 4, "what do ya want for nothing?", 28);
    assert_hex(out, 32, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    memset(key, 0xaa, sizeof key);
    memset(data, 0xdd, sizeof data);
    bk_hmac_sha256(out, key, 20, data, sizeof data);
    assert_hex(out, 32, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
    bk_hmac_sha256(out, key, sizeof key, "Test Using Larger Than Block-Size Key - Hash Key First",
                   54);
    assert_hex(out, 32, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    bk_hmac_sha256(out, key, sizeof key, longer, sizeof longer - 1);
    assert_hex(out, 32, "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2");
    for (uint8_t i = 0; i < 25; i++)
        key[i] = i + 1;
    memset(data, 0xcd, sizeof data);
    bk_hmac_sha256(out, key, 25, data, sizeof data);
    assert_hex(out, 32, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b");
}

/* RFC 5869, appendix A.1 to A.3. */
static void hkdf_gives_the_values_of_its_standard(void **state)
{
    (void)state;
    uint8_t secret[80], salt[80], info[80], out[82];
    memset(secret, 0x0b, 22);
    for (uint8_t i = 0; i < 80; i++) {
        salt[i] = i;
        info[i] = (uint8_t)(0xf0 + i);
    }
    bk_hkdf_sha256(out, 42, secret, 22, salt, 13, info, 10);
    assert_hex(out, 42,
               "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf3400720"
               "8d5b887185865");
    bk_hkdf_sha256(out, 42, secret, 22, NULL, 0, NULL, 0);
    assert_hex(out, 42,
               "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d20139"
               "5faa4b61a96c8");
    for (uint8_t i = 0; i < 80; i++) {
        secret[i] = i;
        salt[i] = (uint8_t)(0x60 + i);
        info[i] = (uint8_t)(0xb0 + i);
    }
    bk_hkdf_sha256(out, 82, secret, 80, salt, 80, info, 80);
    assert_hex(out, 82,
               "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a9"
               "9cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e"
               "87c14c01d5c1f3434f1d87");
}

/* An info that was cut would give two purposes one key. */
static void hkdf_uses_all_of_a_long_info(void **state)
{
    (void)state;
    uint8_t info[300] = {0}, a[32], b[32];
    bk_hkdf_sha256(a, 32, "secret", 6, NULL, 0, info, sizeof info);
    info[sizeof info - 1] = 1;
    bk_hkdf_sha256(b, 32, "secret", 6, NULL, 0, info, sizeof info);
    assert_memory_not_equal(a, b, 32);
}

static void *digest_many(void *arg)
{
    bk_id_t id;
    bool same = true;
    for (int i = 0; i < 2000; i++) {
        bk_sha256(&id, "abc", 3);
        char hex[BK_ID_HEX];
        bk_id_hex(hex, &id);
        same = same && strcmp(hex, fips[1].digest) == 0;
    }
    *(bool *)arg = same;
    return NULL;
}

static void threads_do_not_share_a_context(void **state)
{
    (void)state;
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    bool same[THREADS] = {false};
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, digest_many, &same[i]), 0);
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_true(same[i]);
    }
}

static void ids_compare_and_read_as_text(void **state)
{
    (void)state;
    bk_id_t a = {{0x12, 0xab}}, b = a, zero = {{0}};
    char hex[BK_ID_HEX];
    bk_id_hex(hex, &a);
    assert_int_equal(strlen(hex), 64);
    assert_memory_equal(hex, "12ab00", 6);
    memset(&b, 0xff, sizeof b);
    assert_true(bk_id_unhex(&b, hex, 64));
    assert_true(bk_id_equal(&a, &b));
    assert_int_equal(bk_id_compare(&a, &b), 0);
    assert_false(bk_id_unhex(&b, hex, 63));
    hex[63] = 'g';
    assert_false(bk_id_unhex(&b, hex, 64));
    b = a;
    b.b[31] = 1;
    assert_true(bk_id_compare(&a, &b) < 0);
    assert_false(bk_id_equal(&a, &b));
    assert_true(bk_id_is_zero(&zero));
    assert_false(bk_id_is_zero(&b));
    zero.b[31] = 1;
    assert_false(bk_id_is_zero(&zero));
}

static void secrets_compare_by_every_byte(void **state)
{
    (void)state;
    uint8_t a[32] = {0}, b[32] = {0};
    assert_true(bk_equal_secret(a, b, 32));
    for (size_t i = 0; i < 32; i++) {
        b[i] ^= 0x80;
        assert_false(bk_equal_secret(a, b, 32));
        b[i] = 0;
    }
    assert_true(bk_equal_secret(NULL, NULL, 0));
}

static void random_bytes_fill_the_whole_buffer(void **state)
{
    (void)state;
    uint8_t a[1000] = {0}, b[1000] = {0};
    size_t zeros = 0;
    bk_random(a, sizeof a);
    bk_random(b, sizeof b);
    assert_memory_not_equal(a, b, sizeof a);
    for (size_t i = 0; i + 16 <= sizeof a; i += 8) {
        static const uint8_t none[16];
        zeros += memcmp(a + i, none, 16) == 0;
    }
    assert_int_equal(zeros, 0);
    bk_random(a, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha256_gives_the_values_of_its_standard),
        cmocka_unit_test(a_message_may_come_in_pieces),
        cmocka_unit_test(hmac_gives_the_values_of_its_standard),
        cmocka_unit_test(hkdf_gives_the_values_of_its_standard),
        cmocka_unit_test(hkdf_uses_all_of_a_long_info),
        cmocka_unit_test(threads_do_not_share_a_context),
        cmocka_unit_test(ids_compare_and_read_as_text),
        cmocka_unit_test(secrets_compare_by_every_byte),
        cmocka_unit_test(random_bytes_fill_the_whole_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
