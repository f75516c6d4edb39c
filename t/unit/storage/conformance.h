/*
 * t/unit/storage/conformance.h: what every storage driver must do, as tests that each driver runs
 * unchanged.
 *
 * A driver's test program includes this once, defines conformance_config() before, which fills in
 * the configuration of an empty storage of its own below dir (called once a test; dir is new), and
 * runs CONFORMANCE_TESTS in its main.
 */
#ifndef BK_STORAGE_CONFORMANCE_H
#define BK_STORAGE_CONFORMANCE_H

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/str.h"
#include "storage/storage.h"
#include "unit/testing.h"

static void conformance_config(bk_storage_config_t *config, const char *dir);

typedef struct {
    char *dir;
    bk_storage_t *st;
    bk_err_t err;
} store_t;

static int store_setup(void **state)
{
    store_t *s = calloc(1, sizeof *s);
    bk_storage_config_t config = {0};
    assert_non_null(s);
    s->dir = test_dir();
    conformance_config(&config, s->dir);
    OK(bk_storage_open(&config, &s->st, &s->err), &s->err);
    bk_storage_config_free(&config);
    *state = s;
    return 0;
}

static int store_teardown(void **state)
{
    store_t *s = *state;
    bk_storage_close(s->st);
    test_dir_remove(s->dir);
    free(s);
    return 0;
}

static void put_text(store_t *s, const char *name, const char *text)
{
    OK(bk_storage_put(s->st, name, text, strlen(text), false, NULL, &s->err), &s->err);
}

static void holds_text(store_t *s, const char *name, const char *text)
{
    bk_buf_t out;
    bk_buf_init(&out, 1 << 20);
    OK(bk_storage_get_all(s->st, name, &out, NULL, &s->err), &s->err);
    assert_int_equal(out.len, strlen(text));
    assert_memory_equal(out.data, text, out.len);
    bk_buf_free(&out);
}

static void is_missing(store_t *s, const char *name)
{
    uint64_t size;
    assert_int_equal(bk_storage_size(s->st, name, &size, NULL, &s->err), BK_NOT_FOUND);
}

/* --- content --- */

static void what_was_put_comes_back(void **state)
{
    static const size_t sizes[] = {0,     1,      100,
                                   16383, 16384,  16385, /* around what one request fetches */
                                   16386, 300000, 5u << 20};
    store_t *s = *state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *data = malloc(sizes[i] + 1);
        char name[64];
        uint64_t size = 0;
        size_t got = 99;
        bk_buf_t out;
        test_fill(data, sizes[i], i);
        bk_fmt(name, sizeof name, "sizes/%zu", sizes[i]);
        OK(bk_storage_put(s->st, name, data, sizes[i], true, NULL, &s->err), &s->err);
        OK(bk_storage_size(s->st, name, &size, NULL, &s->err), &s->err);
        assert_int_equal(size, sizes[i]);
        bk_buf_init(&out, sizes[i] + 4); /* hardly more than it needs */
        bk_buf_add(&out, "old:", 4);
        OK(bk_storage_get_all(s->st, name, &out, NULL, &s->err), &s->err);
        assert_int_equal(out.len, sizes[i] + 4);
        assert_memory_equal(out.data, "old:", 4);
        assert_memory_equal(out.data + 4, data, sizes[i]);
        bk_buf_free(&out);
        memset(data, 0, sizes[i]);
        OK(bk_storage_get(s->st, name, 0, sizes[i] + 1, data, &got, NULL, &s->err), &s->err);
        assert_int_equal(got, sizes[i]);
        free(data);
    }
}

static void ranges_end_where_the_object_ends(void **state)
{
    static const struct {
        uint64_t offset;
        size_t len, got;
    } ranges[] = {{0, 1000, 1000}, {0, 1, 1},       {999, 1, 1},         {999, 2, 1},
                  {990, 100, 10},  {1000, 10, 0},   {1001, 10, 0},       {5000, 1, 0},
                  {10, 0, 0},      {0, 2000, 1000}, {UINT64_MAX, 10, 0}, {1ull << 63, 10, 0}};
    store_t *s = *state;
    uint8_t data[1000], back[2000];
    test_fill(data, sizeof data, 7);
    OK(bk_storage_put(s->st, "a/object", data, sizeof data, false, NULL, &s->err), &s->err);
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        size_t got = 4711;
        memset(back, 0xee, sizeof back);
        OK(bk_storage_get(s->st, "a/object", ranges[i].offset, ranges[i].len, back, &got, NULL,
                          &s->err),
           &s->err);
        assert_int_equal(got, ranges[i].got);
        if (got > 0)
            assert_memory_equal(back, data + ranges[i].offset, got);
        if (got < sizeof back)
            assert_int_equal(back[got], 0xee);
    }
}

static void a_large_object_comes_back_in_slices(void **state)
{
    enum { LEN = (20u << 20) + 12345, SLICE = 3000001 };
    store_t *s = *state;
    uint8_t *data = malloc(LEN), *back = malloc(SLICE);
    uint64_t at = 0;
    size_t got = 0;
    test_fill(data, LEN, 3);
    OK(bk_storage_put(s->st, "large", data, LEN, false, NULL, &s->err), &s->err);
    do {
        OK(bk_storage_get(s->st, "large", at, SLICE, back, &got, NULL, &s->err), &s->err);
        assert_true(at + got <= LEN);
        assert_memory_equal(back, data + at, got);
        at += got;
    } while (got == SLICE);
    assert_int_equal(at, LEN);
    free(data);
    free(back);
}

static void fetching_more_than_the_limit_is_refused(void **state)
{
    static const size_t limits[] = {1, 999, 16384, 49999};
    store_t *s = *state;
    uint8_t data[50000];
    test_fill(data, sizeof data, 1);
    OK(bk_storage_put(s->st, "object", data, sizeof data, false, NULL, &s->err), &s->err);
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        bk_buf_t out;
        bk_buf_init(&out, limits[i]);
        bk_buf_u8(&out, 'x');
        assert_int_equal(bk_storage_get_all(s->st, "object", &out, NULL, &s->err), BK_TOO_LARGE);
        assert_int_equal(out.len, 1);
        bk_buf_free(&out);
    }
}

static void what_is_missing_is_not_found(void **state)
{
    store_t *s = *state;
    uint8_t out[10];
    size_t got = 5;
    uint64_t size;
    bk_buf_t all;
    for (int round = 0; round < 2; round++) { /* before and after the storage's first object */
        bk_buf_init(&all, 100);
        assert_int_equal(bk_storage_size(s->st, "a/b", &size, NULL, &s->err), BK_NOT_FOUND);
        assert_int_equal(bk_storage_get(s->st, "a/b", 0, 10, out, &got, NULL, &s->err),
                         BK_NOT_FOUND);
        assert_int_equal(got, 0);
        assert_int_equal(bk_storage_get_all(s->st, "a/b", &all, NULL, &s->err), BK_NOT_FOUND);
        assert_int_equal(s->err.rc, BK_NOT_FOUND);
        assert_int_equal(all.len, 0);
        bk_buf_free(&all);
        put_text(s, "a/c", "c");
    }
    is_missing(s, "a");     /* a directory is no object */
    is_missing(s, "a/c/d"); /* nor is there anything below one */
}

static void failures_name_storage_operation_and_object(void **state)
{
    store_t *s = *state;
    uint8_t out[1];
    size_t got;
    put_text(s, "there", "x");
    assert_int_equal(bk_storage_get(s->st, "not/there", 0, 1, out, &got, NULL, &s->err),
                     BK_NOT_FOUND);
    assert_non_null(strstr(s->err.text, bk_storage_driver(s->st)));
    assert_non_null(strstr(s->err.text, bk_storage_name(s->st)));
    assert_non_null(strstr(s->err.text, "read not/there"));
    assert_int_equal(bk_storage_put(s->st, "there", "y", 1, true, NULL, &s->err), BK_EXISTS);
    assert_non_null(strstr(s->err.text, "write there"));
    /* Nobody has to ask for the text. */
    assert_int_equal(bk_storage_put(s->st, "there", "y", 1, true, NULL, NULL), BK_EXISTS);
    assert_int_equal(bk_storage_get(s->st, "not/there", 0, 1, out, &got, NULL, NULL), BK_NOT_FOUND);
}

/* --- names --- */

static void names_that_could_lead_elsewhere_are_refused(void **state)
{
    char component[202], path[BK_STORAGE_NAME + 1];
    memset(component, 'c', 201);
    component[201] = '\0';
    for (size_t i = 0; i < BK_STORAGE_NAME; i++)
        path[i] = i % 2 == 0 ? 'p' : '/';
    path[BK_STORAGE_NAME] = '\0'; /* one too long */
    path[BK_STORAGE_NAME - 1] = 'p';
    const char *const names[] = {
        "",         "/",    "/a",    "a/",      "a//b",     "..",  "../a", "a/..",      "a/../b",
        ".",        "./a",  "a/./b", ".hidden", "a/.tmp-x", "a b", "a\nb", "a\\b",      "a:b",
        "\xc3\xa4", "\xff", "a%2fb", "a\x7f",   component,  path,  "a*",   "lost+found"};
    store_t *s = *state;
    uint8_t out[1];
    size_t got;
    uint64_t size;
    bk_buf_t all;
    bk_buf_init(&all, 10);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *name = names[i];
        assert_int_equal(bk_storage_put(s->st, name, "x", 1, false, NULL, &s->err), BK_INVALID);
        assert_int_equal(bk_storage_put_file(s->st, name, "/etc/hostname", NULL, &s->err),
                         BK_INVALID);
        assert_int_equal(bk_storage_get(s->st, name, 0, 1, out, &got, NULL, &s->err), BK_INVALID);
        assert_int_equal(bk_storage_get_all(s->st, name, &all, NULL, &s->err), BK_INVALID);
        assert_int_equal(bk_storage_size(s->st, name, &size, NULL, &s->err), BK_INVALID);
        assert_int_equal(bk_storage_remove(s->st, name, NULL, &s->err), BK_INVALID);
        assert_int_equal(strcspn(s->err.text, "\n\x7f"), strlen(s->err.text));
    }
    bk_buf_free(&all);
}

static void any_allowed_name_can_be_used(void **state)
{
    char longest[BK_STORAGE_NAME];
    memset(longest, 'n', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    longest[200] = longest[401] = '/';
    const char *const names[] = {"a",   "Z",    "0",    "-",          "_",
                                 "a.b", "a..b", "a/b.", "01HF/x-_.9", longest};
    store_t *s = *state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        put_text(s, names[i], names[i]);
        if (i == 0) /* "a" was an object, "a/b." needs a directory of that name */
            OK(bk_storage_remove(s->st, names[i], NULL, &s->err), &s->err);
        else
            holds_text(s, names[i], names[i]);
    }
}

/* --- publishing --- */

static void an_exclusive_put_leaves_what_is_there(void **state)
{
    store_t *s = *state;
    OK(bk_storage_put(s->st, "x/lock", "first", 5, true, NULL, &s->err), &s->err);
    assert_int_equal(bk_storage_put(s->st, "x/lock", "other", 5, true, NULL, &s->err), BK_EXISTS);
    holds_text(s, "x/lock", "first");
    put_text(s, "x/lock", "third");
    holds_text(s, "x/lock", "third");
}

enum { RACERS = 6, RACES = 15 };

typedef struct {
    store_t *s;
    unsigned number;
    pthread_barrier_t *barrier;
    unsigned won[RACES]; /* 1: this one made the object */
} racer_t;

static void *race(void *arg)
{
    racer_t *racer = arg;
    for (unsigned i = 0; i < RACES; i++) {
        char name[64], text[64];
        bk_err_t err = {0};
        bk_fmt(name, sizeof name, "race/%u/object", i);
        bk_fmt(text, sizeof text, "written by %u", racer->number);
        pthread_barrier_wait(racer->barrier);
        bk_rc_t rc = bk_storage_put(racer->s->st, name, text, strlen(text), true, NULL, &err);
        racer->won[i] = rc == BK_OK ? 1 : rc == BK_EXISTS ? 0 : 1000;
    }
    return NULL;
}

static void of_many_exclusive_puts_one_wins(void **state)
{
    store_t *s = *state;
    pthread_t threads[RACERS];
    racer_t racers[RACERS];
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, RACERS);
    for (unsigned i = 0; i < RACERS; i++) {
        racers[i] = (racer_t){.s = s, .number = i, .barrier = &barrier};
        assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
    }
    for (unsigned i = 0; i < RACERS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&barrier);
    for (unsigned i = 0; i < RACES; i++) {
        unsigned winners = 0;
        char name[64], text[64] = "";
        for (unsigned r = 0; r < RACERS; r++) {
            winners += racers[r].won[i];
            if (racers[r].won[i] == 1)
                bk_fmt(text, sizeof text, "written by %u", r);
        }
        assert_int_equal(winners, 1);
        bk_fmt(name, sizeof name, "race/%u/object", i);
        holds_text(s, name, text);
    }
}

static void *put_many(void *arg)
{
    racer_t *racer = arg;
    for (unsigned i = 0; i < 30; i++) {
        char name[64];
        bk_err_t err = {0};
        bk_fmt(name, sizeof name, "many/%02u/%u-%u", i % 5, racer->number, i);
        if (bk_storage_put(racer->s->st, name, name, strlen(name), true, NULL, &err) != BK_OK)
            racer->won[0]++;
    }
    return NULL;
}

static void many_threads_put_at_once(void **state)
{
    store_t *s = *state;
    pthread_t threads[RACERS];
    racer_t racers[RACERS];
    for (unsigned i = 0; i < RACERS; i++) {
        racers[i] = (racer_t){.s = s, .number = i};
        assert_int_equal(pthread_create(&threads[i], NULL, put_many, &racers[i]), 0);
    }
    for (unsigned i = 0; i < RACERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(racers[i].won[0], 0);
    }
    for (unsigned i = 0; i < RACERS * 30; i++) {
        char name[64];
        bk_fmt(name, sizeof name, "many/%02u/%u-%u", i % 30 % 5, i / 30, i % 30);
        holds_text(s, name, name);
    }
}

typedef struct {
    store_t *s;
    atomic_bool done;
    size_t torn, seen;
} watcher_t;

/* Each state is one byte, repeated as often as its value says. */
static void *watch(void *arg)
{
    watcher_t *w = arg;
    while (!atomic_load(&w->done)) {
        bk_buf_t out;
        bk_err_t err = {0};
        bk_buf_init(&out, BK_STORAGE_SMALL);
        bool whole = bk_storage_get_all(w->s->st, "state", &out, NULL, &err) == BK_OK &&
                     out.len > 0 && out.len == out.data[0] * 50u;
        for (size_t i = 1; whole && i < out.len; i++)
            whole = out.data[i] == out.data[0];
        w->torn += !whole;
        w->seen++;
        bk_buf_free(&out);
    }
    return NULL;
}

static void readers_see_the_old_or_the_new_object(void **state)
{
    enum { READERS = 3 };
    store_t *s = *state;
    pthread_t threads[READERS];
    watcher_t watchers[READERS];
    uint8_t data[255 * 50];
    memset(data, 1, 50);
    OK(bk_storage_put(s->st, "state", data, 50, false, NULL, &s->err), &s->err);
    for (size_t i = 0; i < READERS; i++) {
        watchers[i] = (watcher_t){.s = s};
        assert_int_equal(pthread_create(&threads[i], NULL, watch, &watchers[i]), 0);
    }
    for (unsigned i = 0; i < 200; i++) {
        uint8_t byte = (uint8_t)(1 + i * 97 % 255);
        memset(data, byte, byte * 50u);
        OK(bk_storage_put(s->st, "state", data, byte * 50u, false, NULL, &s->err), &s->err);
    }
    for (size_t i = 0; i < READERS; i++)
        atomic_store(&watchers[i].done, true);
    for (size_t i = 0; i < READERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(watchers[i].torn, 0);
    }
}

/* A file beside the storage, as the spool has them. */
static void make_file(const store_t *s, const char *name, uint64_t seed, size_t len, char path[512])
{
    uint8_t *data = malloc(len + 1);
    bk_err_t err = {0};
    bk_fmt(path, 512, "%s/%s", s->dir, name);
    test_fill(data, len, seed);
    OK(bk_publish_bytes(AT_FDCWD, path, 0600, data, len, false, &err), &err);
    free(data);
}

static void holds_fill(store_t *s, const char *name, uint64_t seed, size_t len)
{
    uint8_t *data = malloc(len + 1);
    bk_buf_t out;
    test_fill(data, len, seed);
    bk_buf_init(&out, len + 1);
    OK(bk_storage_get_all(s->st, name, &out, NULL, &s->err), &s->err);
    assert_int_equal(out.len, len);
    if (len > 0)
        assert_memory_equal(out.data, data, len);
    bk_buf_free(&out);
    free(data);
}

static void files_are_published_whole(void **state)
{
    static const size_t sizes[] = {0, 1, 70000, (9u << 20) + 1};
    store_t *s = *state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char path[512], name[64];
        bk_fmt(name, sizeof name, "packs/%zu/object", i);
        make_file(s, "spooled", i, sizes[i], path);
        OK(bk_storage_put_file(s->st, name, path, NULL, &s->err), &s->err);
        assert_int_equal(access(path, F_OK), 0);
        assert_int_equal(unlink(path), 0);
        holds_fill(s, name, i, sizes[i]);
    }
}

static void publishing_a_file_twice_is_success(void **state)
{
    store_t *s = *state;
    char path[512];
    make_file(s, "spooled", 1, 5000, path);
    OK(bk_storage_put_file(s->st, "packs/aa/one", path, NULL, &s->err), &s->err);
    OK(bk_storage_put_file(s->st, "packs/aa/one", path, NULL, &s->err), &s->err);
    assert_int_equal(unlink(path), 0);
    holds_fill(s, "packs/aa/one", 1, 5000);
}

static void a_file_that_is_missing_is_a_failure(void **state)
{
    store_t *s = *state;
    char path[512];
    bk_fmt(path, sizeof path, "%s/never-written", s->dir);
    put_text(s, "packs/aa/two", "there already, but that says nothing of another name");
    bk_rc_t rc = bk_storage_put_file(s->st, "packs/aa/one", path, NULL, &s->err);
    assert_true(rc != BK_OK && rc != BK_NOT_FOUND && rc != BK_EXISTS);
    assert_non_null(strstr(s->err.text, path));
    is_missing(s, "packs/aa/one");
}

static void removing_twice_is_success(void **state)
{
    store_t *s = *state;
    OK(bk_storage_remove(s->st, "never/there", NULL, &s->err), &s->err);
    put_text(s, "a/b", "x");
    put_text(s, "a/c", "stays");
    OK(bk_storage_remove(s->st, "a/b", NULL, &s->err), &s->err);
    is_missing(s, "a/b");
    OK(bk_storage_remove(s->st, "a/b", NULL, &s->err), &s->err);
    OK(bk_storage_remove(s->st, "z/y/x", NULL, &s->err), &s->err);
    holds_text(s, "a/c", "stays");
    put_text(s, "a/b", "again");
    holds_text(s, "a/b", "again");
}

/* --- listing --- */

typedef struct {
    char text[4096]; /* "name=size " of each item */
    size_t count, stop_at;
    bk_storage_t *remove_from;
    bk_ctl_t *cancel;
} seen_t;

static bk_rc_t see(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    seen_t *seen = arg;
    size_t len = strlen(seen->text);
    bk_fmt(seen->text + len, sizeof seen->text - len, "%s=%u ", item->name, (unsigned)item->size);
    if (++seen->count == seen->stop_at && seen->cancel == NULL)
        return bk_err_set(err, BK_CONFLICT, "that is enough");
    if (seen->count == seen->stop_at)
        bk_ctl_stop(seen->cancel, BK_CANCELED);
    return seen->remove_from != NULL ? bk_storage_remove(seen->remove_from, item->name, NULL, err)
                                     : BK_OK;
}

static const char *list_text(store_t *s, const char *prefix, seen_t *seen)
{
    memset(seen, 0, sizeof *seen);
    OK(bk_storage_list(s->st, prefix, see, seen, NULL, &s->err), &s->err);
    return seen->text;
}

/* In an order that is neither theirs nor that of directories: '-' and '.' sort before '/'. */
static void put_some(store_t *s)
{
    static const char *const names[] = {"packs/ab/2", "packs.d/x",     "FORMAT",      "packs/a/9",
                                        "packs/ab/1", "keys/01",       "packs-old/x", "packs/b0/1",
                                        "packsx",     "deep/1/2/3/4/5"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        OK(bk_storage_put(s->st, names[i], "0123456789", i, false, NULL, &s->err), &s->err);
}

static void listings_come_in_the_order_of_names(void **state)
{
    store_t *s = *state;
    seen_t seen;
    put_some(s);
    assert_string_equal(list_text(s, "", &seen),
                        "FORMAT=2 deep/1/2/3/4/5=9 keys/01=5 packs-old/x=6 packs.d/x=1 packs/a/9=3 "
                        "packs/ab/1=4 packs/ab/2=0 packs/b0/1=7 packsx=8 ");
}

static void a_prefix_is_any_beginning_of_a_name(void **state)
{
    static const char *const expected[][2] = {
        {"packs/", "packs/a/9=3 packs/ab/1=4 packs/ab/2=0 packs/b0/1=7 "},
        {"packs/a", "packs/a/9=3 packs/ab/1=4 packs/ab/2=0 "},
        {"packs/a/", "packs/a/9=3 "},
        {"packs/ab/2", "packs/ab/2=0 "},
        {"packs/ab/22", ""},
        {"FORMAT", "FORMAT=2 "},
        {"FORMAT/", ""},
        {"pack", "packs-old/x=6 packs.d/x=1 packs/a/9=3 packs/ab/1=4 packs/ab/2=0 packs/b0/1=7 "
                 "packsx=8 "},
        {"deep/1/2/", "deep/1/2/3/4/5=9 "},
        {"deep/1/2/3/4/5/6", ""},
        {"none/", ""},
        {"none/of/these", ""},
        {"f", ""},
    };
    store_t *s = *state;
    seen_t seen;
    put_some(s);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        assert_string_equal(list_text(s, expected[i][0], &seen), expected[i][1]);
    static const char *const refused[] = {"/",    "../",     "packs/../", "packs//",
                                          ".tmp", "packs/.", "a b"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_int_equal(bk_storage_list(s->st, refused[i], see, &seen, NULL, &s->err), BK_INVALID);
}

static void a_listing_ends_with_the_callers_failure(void **state)
{
    store_t *s = *state;
    seen_t seen = {.stop_at = 3};
    put_some(s);
    assert_int_equal(bk_storage_list(s->st, "", see, &seen, NULL, &s->err), BK_CONFLICT);
    assert_int_equal(seen.count, 3);
    assert_string_equal(s->err.text, "that is enough");
}

static void what_is_listed_may_be_removed_meanwhile(void **state)
{
    store_t *s = *state;
    seen_t seen = {.remove_from = s->st}, rest;
    put_some(s);
    OK(bk_storage_list(s->st, "packs/", see, &seen, NULL, &s->err), &s->err);
    assert_int_equal(seen.count, 4);
    assert_string_equal(list_text(s, "packs/", &rest), "");
    assert_string_equal(list_text(s, "keys/", &rest), "keys/01=5 ");
}

static bk_rc_t count_in_order(void *arg, const bk_storage_item_t *item, bk_err_t *err)
{
    seen_t *seen = arg;
    if (strcmp(seen->text, item->name) >= 0)
        return bk_err_set(err, BK_FAILED, "%s after %s", item->name, seen->text);
    bk_strcpy(seen->text, sizeof seen->text, item->name);
    seen->count++;
    return BK_OK;
}

static void every_one_of_many_objects_is_listed_once(void **state)
{
    enum { COUNT = 600 };
    store_t *s = *state;
    seen_t seen = {0};
    for (unsigned i = 0; i < COUNT; i++) {
        char name[64];
        bk_fmt(name, sizeof name, "m/%u/%u", i * 7919u % 3, i * 7919u % COUNT);
        OK(bk_storage_put(s->st, name, "", 0, true, NULL, &s->err), &s->err);
    }
    OK(bk_storage_list(s->st, "m/", count_in_order, &seen, NULL, &s->err), &s->err);
    assert_int_equal(seen.count, COUNT);
}

/* --- stopping --- */

static void a_stopped_job_does_nothing_more(void **state)
{
    static const bk_rc_t reasons[] = {BK_CANCELED, BK_INTERRUPTED};
    store_t *s = *state;
    char path[512];
    uint8_t out[1];
    size_t got;
    uint64_t size;
    bk_buf_t all;
    seen_t seen = {0};
    make_file(s, "spooled", 1, 10, path);
    put_text(s, "there", "x");
    bk_buf_init(&all, 10);
    for (size_t i = 0; i < 2; i++) {
        bk_ctl_t ctl;
        bk_ctl_init(&ctl);
        bk_ctl_stop(&ctl, reasons[i]);
        assert_int_equal(bk_storage_put(s->st, "new", "y", 1, false, &ctl, &s->err), reasons[i]);
        assert_int_equal(bk_storage_put_file(s->st, "new", path, &ctl, &s->err), reasons[i]);
        assert_int_equal(bk_storage_get(s->st, "there", 0, 1, out, &got, &ctl, &s->err),
                         reasons[i]);
        assert_int_equal(bk_storage_get_all(s->st, "there", &all, &ctl, &s->err), reasons[i]);
        assert_int_equal(bk_storage_size(s->st, "there", &size, &ctl, &s->err), reasons[i]);
        assert_int_equal(bk_storage_list(s->st, "", see, &seen, &ctl, &s->err), reasons[i]);
        assert_int_equal(bk_storage_remove(s->st, "there", &ctl, &s->err), reasons[i]);
        bk_ctl_free(&ctl);
    }
    assert_int_equal(seen.count, 0);
    is_missing(s, "new");
    holds_text(s, "there", "x");
    bk_buf_free(&all);
}

static void a_listing_stops_when_the_job_does(void **state)
{
    store_t *s = *state;
    bk_ctl_t ctl;
    bk_ctl_init(&ctl);
    seen_t seen = {.stop_at = 2, .cancel = &ctl};
    put_some(s);
    assert_int_equal(bk_storage_list(s->st, "", see, &seen, &ctl, &s->err), BK_CANCELED);
    assert_int_equal(seen.count, 2);
    bk_ctl_free(&ctl);
}

static void free_space_is_known_or_said_not_to_be(void **state)
{
    store_t *s = *state;
    uint64_t before = 0, after = 0;
    OK(bk_storage_free_space(s->st, &before, &s->err), &s->err);
    put_text(s, "a", "x");
    OK(bk_storage_free_space(s->st, &after, &s->err), &s->err);
    if ((bk_storage_features(s->st) & BK_STORAGE_FREE) != 0)
        assert_true(before > 0 && before < UINT64_MAX && after < UINT64_MAX);
    else
        assert_true(before == UINT64_MAX && after == UINT64_MAX);
}

#define STORE_TEST(f) cmocka_unit_test_setup_teardown(f, store_setup, store_teardown)

#define CONFORMANCE_TESTS                                                                          \
    STORE_TEST(what_was_put_comes_back), STORE_TEST(ranges_end_where_the_object_ends),             \
        STORE_TEST(a_large_object_comes_back_in_slices),                                           \
        STORE_TEST(fetching_more_than_the_limit_is_refused),                                       \
        STORE_TEST(what_is_missing_is_not_found),                                                  \
        STORE_TEST(failures_name_storage_operation_and_object),                                    \
        STORE_TEST(names_that_could_lead_elsewhere_are_refused),                                   \
        STORE_TEST(any_allowed_name_can_be_used),                                                  \
        STORE_TEST(an_exclusive_put_leaves_what_is_there),                                         \
        STORE_TEST(of_many_exclusive_puts_one_wins), STORE_TEST(many_threads_put_at_once),         \
        STORE_TEST(readers_see_the_old_or_the_new_object), STORE_TEST(files_are_published_whole),  \
        STORE_TEST(publishing_a_file_twice_is_success),                                            \
        STORE_TEST(a_file_that_is_missing_is_a_failure), STORE_TEST(removing_twice_is_success),    \
        STORE_TEST(listings_come_in_the_order_of_names),                                           \
        STORE_TEST(a_prefix_is_any_beginning_of_a_name),                                           \
        STORE_TEST(a_listing_ends_with_the_callers_failure),                                       \
        STORE_TEST(what_is_listed_may_be_removed_meanwhile),                                       \
        STORE_TEST(every_one_of_many_objects_is_listed_once),                                      \
        STORE_TEST(a_stopped_job_does_nothing_more),                                               \
        STORE_TEST(a_listing_stops_when_the_job_does),                                             \
        STORE_TEST(free_space_is_known_or_said_not_to_be)

#endif
