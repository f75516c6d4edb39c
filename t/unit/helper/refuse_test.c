/*
 * t/unit/helper/refuse_test.c: each kind of refusal is counted, by all conversations of an agent together, and said once.
 */
#include "agent.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <syslog.h>

/* In the place of the C library's. */
static char (*said)[300]; /* shared with the processes that are forked */
static atomic_uint *said_count;

void syslog(int priority, const char *fmt, ...)
{
    va_list args;
    (void)priority;
    va_start(args, fmt);
    vsnprintf(said[atomic_fetch_add(said_count, 1) % 64], sizeof said[0], fmt, args);
    va_end(args);
}

static void each_kind_is_counted_and_said_once(void **state)
{
    (void)state;
    said = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(said != MAP_FAILED);
    said_count = (atomic_uint *)((char *)said + 65000 / 8 * 8);
    bk_refuse_share();
    for (unsigned process = 0; process < 3; process++) {
        fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            for (int kind = 0; kind < BK_REFUSE_KINDS; kind++)
                for (unsigned i = 0; i < 5; i++)
                    bk_refuse((bk_refuse_t)kind, "a\n\\b", 4);
            _exit(0);
        }
        assert_int_equal(waitpid(pid, NULL, 0), pid);
    }
    assert_int_equal(bk_refuse_total(), 3 * 5 * BK_REFUSE_KINDS);
    assert_int_equal(atomic_load(said_count), BK_REFUSE_KINDS);
    for (unsigned i = 0; i < BK_REFUSE_KINDS; i++) {
        assert_non_null(strstr(said[i], ": \"a\\x0a\\x5cb\"; further ones are only counted"));
        for (unsigned k = 0; k < i; k++)
            assert_string_not_equal(said[i], said[k]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_kind_is_counted_and_said_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
