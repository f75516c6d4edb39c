/*
 * t/fuzz/fuzz.h: what fuzz targets share.  A target defines
 *
 *   static void seeds(void)                       calls fuzz_seed for a few sound inputs
 *   int LLVMFuzzerTestOneInput(data, size)        must return for any input
 *
 * With FUZZ_SEEDS=<directory> in the environment the program writes its seeds there and ends; t/fuzz/run does so, and no
 * binary file has to be kept with the sources.
 */
#ifndef BK_FUZZ_H
#define BK_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void seeds(void);

static const char *fuzz_dir;
static unsigned fuzz_count;

static inline void fuzz_seed(const void *data, size_t size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/seed-%u", fuzz_dir, fuzz_count++);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

/* A promise of the code under test does not hold: a finding like a crash. */
#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);         \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    fuzz_dir = getenv("FUZZ_SEEDS");
    if (fuzz_dir != NULL) {
        seeds();
        exit(0);
    }
    return 0;
}

#endif
