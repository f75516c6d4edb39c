/*
 * engine/probe.c: looks at a directory on threads of their own.  Only here do status and health
 * touch a storage.
 */
#include "engine/probe.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/str.h"

#define WAIT_MS      500
#define SILENT_AFTER (10 * BK_SEC) /* a disk that sleeps needs some of that */

struct bk_probe_s {
    char *path; /* never changed */
    pthread_mutex_t lock;
    pthread_cond_t answered;
    unsigned refs; /* the owner and a look that is under way */
    int64_t asked; /* bk_now of the look that is under way, or 0 */
    bk_probe_answer_t last;
};

bk_rc_t bk_probe_new(const char *path, bk_probe_t **result, bk_err_t *err)
{
    bk_probe_t *probe = calloc(1, sizeof *probe);
    if (probe == NULL || (probe->path = bk_strdup(path)) == NULL) {
        free(probe);
        return bk_err_set(err, BK_NO_MEMORY, "look at %s: out of memory", path);
    }
    pthread_mutex_init(&probe->lock, NULL);
    bk_cond_init(&probe->answered);
    probe->refs = 1;
    *result = probe;
    return BK_OK;
}

static void unref(bk_probe_t *probe)
{
    pthread_mutex_lock(&probe->lock);
    bool last = --probe->refs == 0;
    pthread_mutex_unlock(&probe->lock);
    if (!last)
        return;
    pthread_cond_destroy(&probe->answered);
    pthread_mutex_destroy(&probe->lock);
    free(probe->path);
    free(probe);
}

void bk_probe_free(bk_probe_t *probe)
{
    if (probe != NULL)
        unref(probe);
}

/* The directory itself, or the nearest one above it that exists: its disk will be the one. */
static void nearest(const char *path, char out[PATH_MAX])
{
    bk_strcpy(out, PATH_MAX, path);
    while (access(out, F_OK) != 0 && out[0] == '/' && out[1] != '\0') {
        char *slash = strrchr(out, '/');
        slash[slash == out] = '\0';
    }
}

/* May take for ever. */
static void look(const char *path, bk_probe_answer_t *answer)
{
    char dir[PATH_MAX];
    struct statvfs fs;
    answer->usable = access(path, R_OK | W_OK | X_OK) == 0;
    answer->there = answer->usable || access(path, F_OK) == 0;
    nearest(path, dir);
    answer->makeable = !answer->there && access(dir, W_OK | X_OK) == 0;
    if (statvfs(dir, &fs) == 0) {
        answer->total = (uint64_t)fs.f_blocks * fs.f_frsize;
        answer->left = (uint64_t)fs.f_bavail * fs.f_frsize;
    }
}

static void *run(void *arg)
{
    bk_probe_t *probe = arg;
    bk_probe_answer_t answer = {0};
    look(probe->path, &answer);
    answer.time = bk_now();
    pthread_mutex_lock(&probe->lock);
    probe->last = answer;
    probe->asked = 0;
    pthread_cond_broadcast(&probe->answered);
    pthread_mutex_unlock(&probe->lock);
    unref(probe);
    return NULL;
}

/* Under the lock.  Signals are for the threads of the host. */
static void start(bk_probe_t *probe)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    probe->asked = bk_now();
    probe->refs++;
    if (pthread_create(&thread, &attributes, run, probe) != 0) {
        probe->refs--;
        probe->asked = 0; /* the last answer grows old, which shows */
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

void bk_probe_look(bk_probe_t *probe, bk_probe_answer_t *answer)
{
    pthread_mutex_lock(&probe->lock);
    if (probe->asked == 0) {
        int64_t until = bk_mono() + WAIT_MS * BK_MS;
        start(probe);
        while (probe->asked != 0 && bk_cond_wait_until(&probe->answered, &probe->lock, until))
            ;
    }
    *answer = probe->last;
    if (probe->asked != 0 && bk_now() - probe->asked >= SILENT_AFTER)
        answer->silent = probe->asked;
    pthread_mutex_unlock(&probe->lock);
}
