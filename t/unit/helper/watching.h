/*
 * t/unit/helper/watching.h: a watch on directories, and what it has told so far, root by root.
 */
#ifndef BK_TEST_WATCHING_H
#define BK_TEST_WATCHING_H

#include "agent.h"

#include <sys/file.h>

#include "base/clock.h"
#include "files/dirset.h"
#include "helper/watch.h"

#define WATCHING_ROOTS 4

typedef struct {
    bk_dirset_t dirty; /* everything before the first WATCHED and after LOST */
    bk_dirset_t limits;
    bool watched;
    unsigned lost, data, events;
    int why; /* of the last limit: an errno */
} watching_root_t;

typedef struct {
    agent_t agent;
    bk_helper_t *helper;
    bk_watch_t *watch;
    const char *paths[WATCHING_ROOTS];
    unsigned count;
    watching_root_t roots[WATCHING_ROOTS];
    bool over;
} watching_t;

/*
 * Queues of events are so small that they overflow, for whoever starts to watch until the end.  The
 * knobs are the whole machine's: who holds them keeps every other test away.
 */
typedef struct {
    char was[2][32];
    FILE *held;
} watching_queues_t;

static inline FILE *watching_knob(unsigned which)
{
    return fopen(which == 0 ? "/proc/sys/fs/inotify/max_queued_events"
                            : "/proc/sys/fs/fanotify/max_queued_events",
                 "r+");
}

/* False: not permitted. */
static inline bool watching_small_queues(watching_queues_t *queues)
{
    if ((queues->held = watching_knob(0)) == NULL)
        return false;
    assert_int_equal(flock(fileno(queues->held), LOCK_EX), 0);
    for (unsigned i = 0; i < 2; i++) {
        FILE *file = watching_knob(i);
        if (file == NULL)
            continue;
        assert_non_null(fgets(queues->was[i], sizeof queues->was[i], file));
        rewind(file);
        fputs(i == 0 ? "16\n" : "256\n", file); /* the second gathers all of a file system */
        fclose(file);
    }
    return true;
}

static inline void watching_usual_queues(const watching_queues_t *queues)
{
    for (unsigned i = 0; i < 2; i++) {
        FILE *file = watching_knob(i);
        if (file == NULL)
            continue;
        fputs(queues->was[i], file);
        fclose(file);
    }
    flock(fileno(queues->held), LOCK_UN); /* agents have inherited it */
    fclose(queues->held);
}

static inline bool watching_has_fanotify(void)
{
    bk_watch_use = BK_WIRE_WATCH_INOTIFY | BK_WIRE_WATCH_FANOTIFY;
    return (bk_watch_kinds() & BK_WIRE_WATCH_FANOTIFY) != 0;
}

static inline void watching_start(watching_t *w, const agent_root_t *list, uint32_t count)
{
    bk_err_t err = {0};
    memset(w, 0, sizeof *w);
    w->agent = agent_start(list, count);
    w->count = count;
    OK(bk_helper_new(w->agent.broker, &w->helper, &err), &err);
    OK(bk_watch_open(w->helper, &w->watch, &err), &err);
    for (unsigned i = 0; i < count; i++) {
        w->paths[i] = list[i].path;
        OK(bk_watch_add(w->watch, list[i].path, NULL, &err), &err);
        bk_dirset_add(&w->roots[i].dirty, "", true);
    }
}

static inline void watching_stop(watching_t *w)
{
    bk_watch_close(w->watch);
    bk_helper_free(w->helper);
    agent_stop(&w->agent);
    for (unsigned i = 0; i < w->count; i++) {
        bk_dirset_free(&w->roots[i].dirty);
        bk_dirset_free(&w->roots[i].limits);
    }
}

static inline void watching_event(watching_t *w, const bk_watch_event_t *event)
{
    watching_root_t *root = &w->roots[event->root];
    root->events++;
    switch (event->kind) {
    case BK_WIRE_DIRTY:
    case BK_WIRE_TREE:
        bk_dirset_add(&root->dirty, event->path, event->kind == BK_WIRE_TREE);
        break;
    case BK_WIRE_LOST:
        bk_dirset_add(&root->dirty, "", true);
        bk_dirset_free(&root->limits);
        root->watched = false;
        root->lost++;
        break;
    case BK_WIRE_WATCHED:
        root->watched = true;
        break;
    case BK_WIRE_LIMIT:
        root->why = event->error;
        bk_dirset_add(&root->limits, event->path, true);
        break;
    case BK_WIRE_MOUNT:
        bk_dirset_add(&root->limits, event->path, true);
        break;
    case BK_WIRE_DATA:
        root->data++;
        break;
    }
}

static inline void watching_drain(watching_t *w)
{
    bk_err_t err = {0};
    bk_watch_event_t event;
    bk_rc_t rc = BK_OK;
    while (!w->over && (rc = bk_watch_next(w->watch, &event, &err)) == BK_OK)
        watching_event(w, &event);
    w->over = w->over || rc != BK_NOT_FOUND;
}

/* Everything that happened until now is known afterwards. */
static inline void watching_sync(watching_t *w)
{
    bk_err_t err = {0};
    OK(bk_watch_sync(w->watch, w->paths[0], NULL, &err), &err);
    watching_drain(w);
}

/* Until every root is watched; what was told before is forgotten. */
static inline void watching_ready(watching_t *w)
{
    bool all = false;
    for (unsigned tries = 0; tries < 600 && !all && !w->over; tries++) {
        watching_sync(w); /* which may tell that events were lost once more */
        all = true;
        for (unsigned i = 0; i < w->count; i++)
            all = all && w->roots[i].watched;
        if (!all)
            bk_wire_wait(bk_watch_fd(w->watch), POLLIN, 100);
    }
    for (unsigned i = 0; i < w->count; i++) {
        assert_true(w->roots[i].watched);
        bk_dirset_free(&w->roots[i].dirty);
        w->roots[i].events = 0;
    }
}

#endif
