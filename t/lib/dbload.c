/*
 * t/lib/dbload.c: the databases' code as a program, for tests that kill it or let its system calls fail, and for figures.
 *
 *   dbload recover IMAGE TARGET JOB       put a file in the place of a database
 *   dbload read DB                        pin, and the digest of its pages
 *
 * Prints one line; exit 1 when it failed.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "sqlite/recover.h"
#include "sqlite/source.h"

#define BUSY_MS 200
#define RUN     16u

static bk_rc_t recover(char **args, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_db_method_t method;
    bk_db_recover_t how = {.image = args[0],
                           .target = args[1],
                           .job = args[2],
                           .uid = geteuid(),
                           .gid = getegid(),
                           .mode = 0640,
                           .busy_ms = BUSY_MS};
    bk_rc_t rc = bk_db_recover(&how, &method, ctl, err);
    if (rc == BK_OK)
        printf("%s\n", method == BK_DB_LIVE ? "live" : "offline");
    return rc;
}

static bk_rc_t read_pages(const char *path, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_db_source_t *source;
    uint64_t digest = 0;
    int64_t began = bk_mono();
    bk_rc_t rc = bk_db_source_open(path, BUSY_MS, ctl, &source, err);
    if (rc != BK_OK)
        return rc;
    const bk_db_info_t *info = bk_db_source_info(source);
    uint8_t *pages = malloc((size_t)RUN * info->page_size);
    if (pages == NULL)
        rc = bk_err_set(err, BK_NO_MEMORY, "out of memory");
    for (uint64_t first = 1; first <= info->page_count && rc == BK_OK; first += RUN) {
        uint64_t left = info->page_count - first + 1;
        unsigned n = left < RUN ? (unsigned)left : RUN;
        rc = bk_db_source_read(source, first, n, pages, err);
        for (unsigned i = 0; i < n && rc == BK_OK; i++)
            digest ^=
                bk_db_page_hash(first + i, pages + (size_t)i * info->page_size, info->page_size);
    }
    if (rc == BK_OK)
        printf("%s %llu pages %llu frames digest %016llx %.3f s\n", info->journal,
               (unsigned long long)info->page_count, (unsigned long long)info->wal_frames,
               (unsigned long long)digest, (double)(bk_mono() - began) / 1e9);
    free(pages);
    bk_db_source_close(source);
    return rc;
}

int main(int argc, char **argv)
{
    bk_ctl_t ctl;
    bk_err_t err = {0};
    bk_rc_t rc;
    bk_ctl_init(&ctl);
    if (argc == 5 && strcmp(argv[1], "recover") == 0) {
        rc = recover(argv + 2, &ctl, &err);
    } else if (argc == 3 && strcmp(argv[1], "read") == 0) {
        rc = read_pages(argv[2], &ctl, &err);
    } else {
        fprintf(stderr, "dbload recover IMAGE TARGET JOB\ndbload read DB\n");
        return 2;
    }
    for (unsigned i = 0; i < ctl.notes_kept; i++)
        printf("note: %s\n", ctl.notes[i]);
    bk_ctl_free(&ctl);
    /* With t/fault/failcall.c preloaded. */
    long (*hits)(void) = (long (*)(void))(uintptr_t)dlsym(RTLD_DEFAULT, "failcall_hits");
    if (hits != NULL && hits() == 0)
        printf("rule not reached\n");
    if (rc == BK_OK)
        return 0;
    printf("%s: %s\n", bk_rc_code(rc), err.text);
    return 1;
}
