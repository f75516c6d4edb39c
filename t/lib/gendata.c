/*
 * t/lib/gendata.c: the reference sets of the benchmarks, the same bytes for the same seed.
 *
 *   gendata M DIR [percent]   uploads/ 1.3 GB of audio (60 % incompressible, 35 % speech-like WAV, the rest duplicates),
 *                             transcripts/ 20 000 texts, app.db 80 MB
 *   gendata N DIR [percent]   100 000 small texts in 1 000 directories
 *   gendata db FILE MEGABYTES a database of about that size
 * percent (default 100) makes everything smaller in count.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sqlite3.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static uint64_t state = 0x9e3779b97f4a7c15u;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void fail(const char *what)
{
    fprintf(stderr, "gendata: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void make_dir(const char *path)
{
    if (mkdir(path, 0755) != 0 && errno != EEXIST)
        fail(path);
}

static void write_file(const char *path, const void *data, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0)
        fail(path);
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, (const char *)data + done, len - done);
        if (n < 0)
            fail(path);
        done += (size_t)n;
    }
    close(fd);
}

static void random_bytes(uint8_t *out, size_t len)
{
    for (size_t i = 0; i + 8 <= len; i += 8) {
        uint64_t v = next();
        memcpy(out + i, &v, 8);
    }
}

/* 16-bit samples: bursts of harmonics with breath between them, as speech looks to a compressor. */
static void speech(uint8_t *out, size_t len)
{
    int16_t *sample = (int16_t *)out;
    double phase = 0, level = 0;
    for (size_t i = 0; i < len / 2; i++) {
        if (i % 1600 == 0)
            level = next() % 4 == 0 ? 0 : (double)(next() % 9000);
        phase += 0.02 + (double)(i / 1600 % 7) * 0.004;
        double v = level * (sin(phase) + 0.4 * sin(2.7 * phase)) + (double)(next() % 64);
        sample[i] = (int16_t)v;
    }
}

static size_t text(char *out, size_t words)
{
    static const char *const word[] = {
        "the",     "speaker", "said", "that", "a",    "meeting", "was",   "moved", "to",  "Friday",
        "because", "nobody",  "had",  "read", "long", "report",  "about", "audio", "and", "servers",
        "in",      "time",    "so",   "we",   "will", "record",  "it",    "again"};
    size_t len = 0;
    for (size_t i = 0; i < words; i++) {
        uint64_t r = next();
        len += (size_t)snprintf(out + len, 32, "%s%s", word[r % 28], i % 13 == 12 ? ".\n" : " ");
        if (r >> 60 == 0)
            len += (size_t)snprintf(out + len, 32, "%llx ", (unsigned long long)(r & 0xffffff));
    }
    return len;
}

static void run(sqlite3 *db, const char *sql)
{
    char *message = NULL;
    if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK) {
        fprintf(stderr, "gendata: %s: %s\n", sql, message);
        exit(1);
    }
}

static void database(const char *path, unsigned megabytes)
{
    sqlite3 *db;
    sqlite3_stmt *insert;
    char line[4096];
    if (sqlite3_open(path, &db) != SQLITE_OK)
        fail(path);
    run(db,
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
        "CREATE TABLE jobs(id INTEGER PRIMARY KEY, audio TEXT UNIQUE, status TEXT, created TEXT);"
        "CREATE TABLE segments(id INTEGER PRIMARY KEY, job INTEGER, at REAL, text TEXT);"
        "CREATE INDEX segments_job ON segments(job);");
    sqlite3_prepare_v2(db, "INSERT INTO segments(job, at, text) VALUES(?, ?, ?)", -1, &insert,
                       NULL);
    for (uint64_t bytes = 0, n = 0; bytes < (uint64_t)megabytes * 930000;) {
        run(db, "BEGIN");
        for (int i = 0; i < 2000; i++, n++) {
            size_t len = text(line, 20 + next() % 40);
            sqlite3_bind_int64(insert, 1, (sqlite3_int64)(n / 40));
            sqlite3_bind_double(insert, 2, (double)(n % 40) * 2.5);
            sqlite3_bind_text(insert, 3, line, (int)len, SQLITE_STATIC);
            if (sqlite3_step(insert) != SQLITE_DONE)
                fail("insert");
            sqlite3_reset(insert);
            bytes += len + 24;
        }
        run(db, "INSERT INTO jobs(audio, status, created) SELECT 'f' || (SELECT count(*) FROM "
                "jobs), 'completed', "
                "datetime('now'); COMMIT");
    }
    sqlite3_finalize(insert);
    run(db, "PRAGMA wal_checkpoint(TRUNCATE)");
    sqlite3_close(db);
}

static void audio(const char *dir, unsigned count)
{
    const size_t max = 12u << 20;
    uint8_t *bytes = malloc(max), *earlier = malloc(max);
    char path[4096];
    size_t len = 0, earlier_len = 0;
    if (bytes == NULL || earlier == NULL)
        fail("memory");
    for (unsigned i = 0; i < count; i++) {
        unsigned kind = i % 20;
        if (kind == 19) { /* a duplicate of a file seen some time ago */
            snprintf(path, sizeof path, "%s/%05u_copy.mp3", dir, i);
            write_file(path, earlier, earlier_len);
            continue;
        }
        len = ((2u << 20) + next() % (6u << 20)) & ~(size_t)7;
        if (kind < 12)
            random_bytes(bytes, len);
        else
            speech(bytes, len);
        snprintf(path, sizeof path, "%s/%05u_recording.%s", dir, i, kind < 12 ? "mp3" : "wav");
        write_file(path, bytes, len);
        if (kind == 3) {
            memcpy(earlier, bytes, len);
            earlier_len = len;
        }
    }
    free(bytes);
    free(earlier);
}

static void texts(const char *dir, unsigned count, size_t min_words, size_t more_words)
{
    char path[4096], *buf = malloc(64u << 10);
    if (buf == NULL)
        fail("memory");
    for (unsigned i = 0; i < count; i++) {
        size_t len = text(buf, min_words + next() % more_words);
        snprintf(path, sizeof path, "%s/%06u.txt", dir, i);
        write_file(path, buf, len);
    }
    free(buf);
}

int main(int argc, char **argv)
{
    char path[4096];
    if (argc < 3) {
        fputs("usage: gendata M|N DIR [PERCENT] | gendata db FILE MEGABYTES\n", stderr);
        return 2;
    }
    unsigned percent = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 100;
    if (strcmp(argv[1], "db") == 0) {
        database(argv[2], percent);
        return 0;
    }
    make_dir(argv[2]);
    if (strcmp(argv[1], "M") == 0) {
        snprintf(path, sizeof path, "%s/uploads", argv[2]);
        make_dir(path);
        audio(path, 260 * percent / 100);
        snprintf(path, sizeof path, "%s/transcripts", argv[2]);
        make_dir(path);
        texts(path, 20000 * percent / 100, 100, 900);
        snprintf(path, sizeof path, "%s/app.db", argv[2]);
        database(path, 80 * percent / 100);
    } else {
        for (unsigned i = 0; i < 1000 * percent / 100; i++) {
            snprintf(path, sizeof path, "%s/d%04u", argv[2], i);
            make_dir(path);
            texts(path, 100, 50, 300);
        }
    }
    return 0;
}
