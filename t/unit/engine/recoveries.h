/*
 * t/unit/engine/recoveries.h: what tests of recoveries share: bodies of requests, and what is there
 * afterwards.
 */
#ifndef BK_TEST_ENGINE_RECOVERIES_H
#define BK_TEST_ENGINE_RECOVERIES_H

#include "unit/engine/fixture.h"

/* A recovery body with the target below the fixture's directory. */
static inline const char *body(const fixture_t *f, const char *format, const char *target)
{
    static char text[4096];
    char path[1024];
    bk_strcpy(path, sizeof path, at(f, target));
    const char *mark = strstr(format, "@");
    assert_non_null(mark);
    assert_true(
        bk_fmt(text, sizeof text, "%.*s%s%s", (int)(mark - format), format, path, mark + 1));
    return text;
}

static inline void assert_app_is_back(fixture_t *f)
{
    assert_int_equal(number_in(f, "app/app.db", "SELECT count(*) FROM jobs"), 500);
    assert_string_equal(get(f, "app/uploads/a.wav"), "sound a");
    assert_string_equal(get(f, "app/uploads/2025/b.wav"), "sound b, which is longer");
    assert_string_equal(get(f, "app/uploads/2025/c.mp3"), "music");
    assert_string_equal(get(f, "app/transcripts/t.txt"), "text");
}

static inline void count_file(void *arg, const char *path, const struct stat *st)
{
    (void)path;
    *(unsigned *)arg += S_ISREG(st->st_mode);
}

#endif
