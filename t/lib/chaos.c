/*
 * t/lib/chaos.c: the writer and the oracle of chaos.h as a program.
 *
 *   chaos make DB wal|delete|… PAGE_SIZE AUTO_VACUUM
 *   chaos write DB LOG SEED AUTOCHECKPOINT [COMMITS]     until SIGTERM; exit 1 when SQLite failed.
 *       CHAOS_JOURNAL=truncate|… in the environment: its rollback mode; CHAOS_STEADY: it is never
 *       killed
 *   chaos judge DB FROM TO LOG…                         times in ns; exit 1 and why when it is no commit's content
 */
#include "chaos.h"

static int judge(int count, char **args)
{
    sqlite3 *db;
    int64_t number = 0;
    uint64_t digest = 0;
    if (sqlite3_open_v2(args[0], &db, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK ||
        !chaos_content(db, &number, &digest)) {
        fprintf(stderr, "chaos: %s: %s\n", args[0], sqlite3_errmsg(db));
        return 1;
    }
    sqlite3_close(db);
    const char *wrong = chaos_judge((const char *const *)args + 3, (size_t)count - 3, number,
                                    digest, strtoll(args[1], NULL, 10), strtoll(args[2], NULL, 10));
    printf("%s: commit %lld: %s\n", args[0], (long long)number, wrong != NULL ? wrong : "ok");
    return wrong != NULL;
}

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "make") == 0)
        return !chaos_make(argv[2], argv[3], (int)strtol(argv[4], NULL, 10), argv[5]);
    if ((argc == 6 || argc == 7) && strcmp(argv[1], "write") == 0) {
        chaos_t chaos = {.path = argv[2],
                         .log = argv[3],
                         .seed = strtoull(argv[4], NULL, 10),
                         .journal = getenv("CHAOS_JOURNAL"),
                         .steady = getenv("CHAOS_STEADY") != NULL,
                         .autocheckpoint = (int)strtol(argv[5], NULL, 10),
                         .commits = argc == 7 ? strtol(argv[6], NULL, 10) : 0};
        return !chaos_run(&chaos);
    }
    if (argc >= 6 && strcmp(argv[1], "judge") == 0)
        return judge(argc - 2, argv + 2);
    fprintf(stderr, "chaos make DB JOURNAL PAGE_SIZE AUTO_VACUUM\n"
                    "chaos write DB LOG SEED AUTOCHECKPOINT [COMMITS]\n"
                    "chaos judge DB FROM TO LOG...\n");
    return 2;
}
