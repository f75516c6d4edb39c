/*
 * t/unit/repo/history_test.c: segments of transactions come back from any place, in order, and no
 * damage passes.
 */
#include "unit/repo/repo_testing.h"

#include <fcntl.h>
#include <unistd.h>

#include "repo/history.h"
#include "repo/verify.h"

#define LEN (200u * 1024 + 17) /* three parts and a bit */

typedef struct {
    fixture_t f;
    uint8_t *content;
    int fd;
} history_t;

static int set_up(void **state)
{
    history_t *h = calloc(1, sizeof *h);
    fixture_start(&h->f, true);
    h->content = malloc(LEN);
    for (size_t i = 0; i < LEN; i++)
        h->content[i] = (uint8_t)(i * 2654435761u >> 13);
    h->fd = open(h->f.dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    OK(bk_write_all(h->fd, h->content, LEN, "test", &h->f.err), &h->f.err);
    *state = h;
    return 0;
}

static int tear_down(void **state)
{
    history_t *h = *state;
    close(h->fd);
    fixture_end(&h->f);
    free(h->content);
    free(h);
    return 0;
}

static bk_history_name_t named(uint8_t epoch, uint64_t first, uint64_t last)
{
    bk_history_name_t name = {.database = "main", .first = first, .last = last};
    memset(name.epoch, epoch, sizeof name.epoch);
    return name;
}

static void put(history_t *h, uint8_t epoch, uint64_t first, uint64_t last, uint64_t size)
{
    bk_history_name_t name = named(epoch, first, last);
    OK(bk_history_put(h->f.repo, &name, h->fd, size, &h->f.ctl, &h->f.err), &h->f.err);
}

static void every_range_reads_as_it_was_written(void **state)
{
    history_t *h = *state;
    bk_history_list_t list;
    bk_history_reader_t *reader;
    uint8_t *got = malloc(LEN);
    put(h, 1, 1, 9, LEN);
    OK(bk_history_list(h->f.repo, "main", NULL, &h->f.ctl, &list, &h->f.err), &h->f.err);
    assert_int_equal(list.count, 1);
    OK(bk_history_open(h->f.repo, &list.items[0], &reader, &h->f.ctl, &h->f.err), &h->f.err);
    assert_int_equal(bk_history_length(reader), LEN);
    static const size_t places[][2] = {{0, LEN},     {0, 1},          {LEN - 1, 1},  {LEN, 0},
                                       {65535, 2},   {65536, 65536},  {131000, 900}, {12, 0},
                                       {196607, 18}, {100, LEN - 101}};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        OK(bk_history_read(reader, places[i][0], got, places[i][1], &h->f.ctl, &h->f.err),
           &h->f.err);
        assert_memory_equal(got, h->content + places[i][0], places[i][1]);
    }
    assert_int_equal(bk_history_read(reader, LEN, got, 1, &h->f.ctl, &h->f.err), BK_CORRUPT);
    assert_int_equal(bk_history_read(reader, UINT64_MAX, got, 2, &h->f.ctl, &h->f.err), BK_CORRUPT);
    bk_history_close(reader);
    bk_history_list_free(&list);
    free(got);
}

static void an_empty_segment_is_one_too(void **state)
{
    history_t *h = *state;
    bk_history_list_t list;
    bk_history_reader_t *reader;
    put(h, 1, 5, 5, 0);
    OK(bk_history_list(h->f.repo, "main", NULL, &h->f.ctl, &list, &h->f.err), &h->f.err);
    OK(bk_history_open(h->f.repo, &list.items[0], &reader, &h->f.ctl, &h->f.err), &h->f.err);
    assert_int_equal(bk_history_length(reader), 0);
    bk_history_close(reader);
    bk_history_list_free(&list);
}

static void segments_are_listed_in_order_and_by_epoch(void **state)
{
    history_t *h = *state;
    bk_history_list_t list;
    uint8_t epoch[BK_EPOCH_SIZE];
    put(h, 2, 1, 4, 100);
    put(h, 1, 100, 2000000000000000000, 100);
    put(h, 1, 9, 99, 100);
    put(h, 1, 9, 99, 100); /* again: it is there */
    OK(bk_history_list(h->f.repo, "main", NULL, &h->f.ctl, &list, &h->f.err), &h->f.err);
    assert_int_equal(list.count, 3);
    assert_int_equal(list.items[0].name.first, 9);
    assert_int_equal(list.items[1].name.last, 2000000000000000000);
    assert_int_equal(list.items[2].name.epoch[15], 2);
    OK(bk_history_remove(h->f.repo, &list.items[0], &h->f.ctl, &h->f.err), &h->f.err);
    bk_history_list_free(&list);
    memset(epoch, 1, sizeof epoch);
    OK(bk_history_list(h->f.repo, "main", epoch, &h->f.ctl, &list, &h->f.err), &h->f.err);
    assert_int_equal(list.count, 1);
    assert_int_equal(list.items[0].name.first, 100);
    bk_history_list_free(&list);
    OK(bk_history_list(h->f.repo, "mai", NULL, &h->f.ctl, &list, &h->f.err), &h->f.err);
    assert_int_equal(list.count, 0);
    assert_int_equal(bk_history_list(h->f.repo, "../x", NULL, &h->f.ctl, &list, &h->f.err),
                     BK_INVALID);
}

static void impossible_segments_are_refused(void **state)
{
    history_t *h = *state;
    bk_history_name_t name = named(1, 5, 4);
    assert_int_equal(bk_history_put(h->f.repo, &name, h->fd, 10, &h->f.ctl, &h->f.err), BK_INVALID);
    name = named(1, 4, 5);
    bk_strcpy(name.database, sizeof name.database, "a/b");
    assert_int_equal(bk_history_put(h->f.repo, &name, h->fd, 10, &h->f.ctl, &h->f.err), BK_INVALID);
    name = named(1, 4, 5);
    assert_int_equal(bk_history_put(h->f.repo, &name, h->fd, LEN + 1, &h->f.ctl, &h->f.err),
                     BK_CHANGED);
    bk_history_list_t list;
    OK(bk_history_list(h->f.repo, "main", NULL, &h->f.ctl, &list, &h->f.err), &h->f.err);
    assert_int_equal(list.count, 0);
}

/* Where the object lies. */
static void object_path(history_t *h, const bk_history_item_t *item, char path[1024])
{
    char object[BK_STORAGE_NAME];
    bk_history_object(object, item);
    bk_fmt(path, 1024, "%s/storage/%s", h->f.dir, object);
}

static void count_finding(void *arg, const char *object, const char *line)
{
    (void)line;
    assert_int_equal(strncmp(object, "wal/main/", 9), 0);
    ++*(size_t *)arg;
}

static uint64_t verify(history_t *h, unsigned level)
{
    size_t told = 0;
    bk_verify_result_t result;
    OK(bk_verify(h->f.repo, level, NULL, count_finding, &told, &result, &h->f.ctl, &h->f.err),
       &h->f.err);
    assert_int_equal(told, result.findings);
    return result.findings;
}

static void every_flipped_bit_is_noticed(void **state)
{
    history_t *h = *state;
    bk_history_list_t list;
    char path[1024];
    put(h, 1, 1, 9, LEN);
    OK(bk_history_list(h->f.repo, "main", NULL, &h->f.ctl, &list, &h->f.err), &h->f.err);
    object_path(h, &list.items[0], path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(verify(h, 2), 0);
    static const uint64_t places[] = {0, 9, 20, 70, 81, 85, 95, 100000, 200000};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        uint8_t byte;
        bk_history_reader_t *reader = NULL;
        uint8_t *got = malloc(LEN);
        assert_int_equal(pread(fd, &byte, 1, (off_t)places[i]), 1);
        byte ^= 4;
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)places[i]), 1);
        bk_rc_t rc = bk_history_open(h->f.repo, &list.items[0], &reader, &h->f.ctl, &h->f.err);
        if (rc == BK_OK)
            rc = bk_history_read(reader, 0, got, LEN, &h->f.ctl, &h->f.err);
        assert_true(rc == BK_CORRUPT || rc == BK_WRONG_KEY);
        bk_history_close(reader);
        assert_int_equal(verify(h, 1), 1);
        assert_int_equal(verify(h, 2), 1);
        byte ^= 4;
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)places[i]), 1);
        free(got);
    }
    assert_int_equal(ftruncate(fd, 150000), 0);
    assert_int_equal(verify(h, 2), 1);
    close(fd);
    bk_history_list_free(&list);
}

static char *first_line;

static void keep_first(void *arg, const char *object, const char *line)
{
    (void)arg;
    assert_int_equal(strncmp(object, "wal/", 4), 0);
    if (first_line == NULL)
        first_line = bk_strdup(line);
}

/* The first finding has this text; NULL: there is none. */
static void assert_finding(history_t *h, unsigned level, const char *text, uint64_t harmless,
                           uint64_t moments)
{
    bk_verify_result_t result;
    first_line = NULL;
    OK(bk_verify(h->f.repo, level, NULL, keep_first, NULL, &result, &h->f.ctl, &h->f.err),
       &h->f.err);
    assert_int_equal(result.findings, harmless + moments);
    assert_int_equal(result.harmless, harmless);
    assert_int_equal(result.moments, moments);
    if (text == NULL)
        assert_null(first_line);
    else
        assert_non_null(strstr(first_line, text));
    free(first_line);
}

static void remove_from(history_t *h, uint8_t epoch, uint64_t first)
{
    bk_history_list_t list;
    OK(bk_history_list_all(h->f.repo, "main", &h->f.ctl, &list, &h->f.err), &h->f.err);
    for (size_t i = 0; i < list.count; i++)
        if (list.items[i].name.epoch[0] == epoch && list.items[i].name.first == first)
            OK(bk_history_remove(h->f.repo, &list.items[i], &h->f.ctl, &h->f.err), &h->f.err);
    bk_history_list_free(&list);
}

/* The names of segments tell, without reading them. */
static void missing_transactions_are_named(void **state)
{
    history_t *h = *state;
    put(h, 1, 5, 9, 100); /* those before are removed: that is how cleanup leaves it */
    put(h, 1, 10, 19, 100);
    put(h, 1, 20, 20, 100);
    put(h, 1, 5, 20, 100); /* merged */
    put(h, 1, 21, 30, 100);
    put(h, 2, 31, 40, 100);
    put(h, 3, 50, 60, 100); /* another epoch, which goes on from what was never shipped */
    assert_finding(h, 0, NULL, 0, 0);
    remove_from(h, 1, 10); /* the merged one has them */
    assert_finding(h, 0, NULL, 0, 0);
    put(h, 1, 34, 40, 100);
    assert_finding(h, 0, "transactions 31 to 33 are missing", 0, 1);
    assert_finding(h, 1, "transactions 31 to 33 are missing", 0, 1);
    put(h, 1, 31, 33, 100);
    assert_finding(h, 0, NULL, 0, 0);
    remove_from(h, 1, 5);
    assert_finding(h, 0, NULL, 0, 0);
    put(h, 1, 2, 4, 100);
    assert_finding(h, 0, "transactions 5 to 19 are missing", 0, 1);
}

/* As long as the segments are there that it was made from. */
static void a_damaged_merged_segment_costs_nothing(void **state)
{
    history_t *h = *state;
    bk_history_list_t list;
    char path[1024];
    put(h, 1, 1, 9, 100);
    put(h, 1, 10, 19, 100);
    put(h, 1, 1, 19, 100);
    OK(bk_history_list(h->f.repo, "main", NULL, &h->f.ctl, &list, &h->f.err), &h->f.err);
    object_path(h, &list.items[0], path);
    bk_history_list_free(&list);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "damage", 6, 95), 6);
    close(fd);
    assert_finding(h, 1, "transactions 1 to 19 of main: its SHA-256 differs", 1, 0);
    remove_from(h, 1, 10);
    assert_finding(h, 1, "transactions 1 to 19 of main: its SHA-256 differs", 0, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_range_reads_as_it_was_written, set_up, tear_down),
        cmocka_unit_test_setup_teardown(an_empty_segment_is_one_too, set_up, tear_down),
        cmocka_unit_test_setup_teardown(segments_are_listed_in_order_and_by_epoch, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(impossible_segments_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(every_flipped_bit_is_noticed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(missing_transactions_are_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_damaged_merged_segment_costs_nothing, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
