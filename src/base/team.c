/*
 * base/team.c: one bounded stack of works under one lock.  A stack, not a queue: the newest work is
 * the one whose data is still in the cache, and whoever waits most likely waits for it.
 */
#include "base/team.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct {
    bk_work_fn fn;
    void *arg;
    bk_group_t *group;
    size_t weight;
} work_t;

struct bk_team_s {
    pthread_mutex_t lock;
    pthread_cond_t work_there; /* lanes: the stack is not empty, or the team is closed */
    pthread_cond_t work_done;  /* waiters: some group has become smaller */
    atomic_uint references;
    unsigned lanes;
    unsigned idle; /* lanes asleep */
    bool closed;
    size_t count, max, bytes, max_bytes;
    work_t stack[];
};

bk_team_t *bk_team_new(unsigned lanes, size_t queue_max, size_t queue_bytes)
{
    if (lanes == 0 || queue_max == 0 || queue_max > 1u << 20)
        return NULL;
    bk_team_t *team = calloc(1, sizeof *team + queue_max * sizeof(work_t));
    if (team == NULL)
        return NULL;
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->work_there, NULL);
    pthread_cond_init(&team->work_done, NULL);
    atomic_init(&team->references, 1);
    team->lanes = lanes;
    team->max = queue_max;
    team->max_bytes = queue_bytes;
    return team;
}

bk_team_t *bk_team_ref(bk_team_t *team)
{
    atomic_fetch_add(&team->references, 1);
    return team;
}

void bk_team_unref(bk_team_t *team)
{
    if (team == NULL || atomic_fetch_sub(&team->references, 1) != 1)
        return;
    pthread_mutex_destroy(&team->lock);
    pthread_cond_destroy(&team->work_there);
    pthread_cond_destroy(&team->work_done);
    free(team);
}

unsigned bk_team_lanes(const bk_team_t *team)
{
    return team != NULL ? team->lanes : 1;
}

void bk_group_init(bk_group_t *group)
{
    atomic_init(&group->pending, 0);
    atomic_init(&group->failed, false);
    bk_err_clear(&group->err);
}

bool bk_group_failed(const bk_group_t *group)
{
    return atomic_load_explicit(&group->failed, memory_order_acquire);
}

static void record(bk_group_t *group, bk_rc_t rc, const bk_err_t *err)
{
    if (rc == BK_OK || atomic_load(&group->failed))
        return;
    group->err = *err;
    group->err.rc = rc;
    atomic_store_explicit(&group->failed, true, memory_order_release);
}

/* The group must not be touched once its count is zero: its owner may have returned. */
static void run_work(bk_team_t *team, const work_t *work)
{
    bk_err_t err = {0};
    bk_rc_t rc = work->fn(work->arg, &err);
    pthread_mutex_lock(&team->lock);
    record(work->group, rc, &err);
    if (atomic_fetch_sub(&work->group->pending, 1) == 1)
        pthread_cond_broadcast(&team->work_done);
    pthread_mutex_unlock(&team->lock);
}

/* Lock held. */
static work_t pop(bk_team_t *team)
{
    work_t work = team->stack[--team->count];
    team->bytes -= work.weight;
    return work;
}

void bk_team_lane(bk_team_t *team)
{
    pthread_mutex_lock(&team->lock);
    for (;;) {
        if (team->count > 0) {
            work_t work = pop(team);
            pthread_mutex_unlock(&team->lock);
            run_work(team, &work);
            pthread_mutex_lock(&team->lock);
        } else if (team->closed) {
            break;
        } else {
            team->idle++;
            pthread_cond_wait(&team->work_there, &team->lock);
            team->idle--;
        }
    }
    pthread_mutex_unlock(&team->lock);
    bk_team_unref(team);
}

void bk_team_close(bk_team_t *team)
{
    pthread_mutex_lock(&team->lock);
    team->closed = true;
    pthread_cond_broadcast(&team->work_there);
    pthread_mutex_unlock(&team->lock);
}

void bk_team_submit(bk_team_t *team, bk_group_t *group, bk_work_fn fn, void *arg, size_t weight)
{
    work_t work = {.fn = fn, .arg = arg, .group = group, .weight = weight};
    if (team == NULL) {
        bk_err_t err = {0};
        record(group, fn(arg, &err), &err);
        return;
    }
    atomic_fetch_add(&group->pending, 1);
    pthread_mutex_lock(&team->lock);
    bool fits = team->lanes > 1 && team->count < team->max &&
                (team->count == 0 ||
                 (team->bytes <= team->max_bytes && weight <= team->max_bytes - team->bytes));
    if (fits) {
        team->stack[team->count++] = work;
        team->bytes += weight;
        if (team->idle > 0)
            pthread_cond_signal(&team->work_there);
        /* A waiter may have gone to sleep because the stack was empty. */
        pthread_cond_signal(&team->work_done);
    }
    pthread_mutex_unlock(&team->lock);
    if (!fits)
        run_work(team, &work);
}

bool bk_team_help(bk_team_t *team)
{
    if (team == NULL)
        return false;
    pthread_mutex_lock(&team->lock);
    bool there = team->count > 0;
    work_t work = {0};
    if (there)
        work = pop(team);
    pthread_mutex_unlock(&team->lock);
    if (there)
        run_work(team, &work);
    return there;
}

bk_rc_t bk_team_wait(bk_team_t *team, bk_group_t *group, bk_err_t *err)
{
    if (team != NULL) {
        pthread_mutex_lock(&team->lock);
        while (atomic_load(&group->pending) > 0) {
            if (team->count > 0) {
                work_t work = pop(team);
                pthread_mutex_unlock(&team->lock);
                run_work(team, &work);
                pthread_mutex_lock(&team->lock);
            } else {
                pthread_cond_wait(&team->work_done, &team->lock);
            }
        }
        pthread_mutex_unlock(&team->lock);
    }
    if (!bk_group_failed(group))
        return BK_OK;
    if (err != NULL)
        *err = group->err;
    return group->err.rc;
}

static void *lane_thread(void *arg)
{
    bk_team_lane(arg);
    return NULL;
}

bk_rc_t bk_team_run(unsigned lanes, bk_rc_t (*main_fn)(bk_team_t *team, void *arg, bk_err_t *err),
                    void *arg, bk_err_t *err)
{
    pthread_t threads[16];
    unsigned started = 0;
    if (lanes < 1)
        lanes = 1;
    if (lanes > 1 + sizeof threads / sizeof *threads)
        lanes = 1 + sizeof threads / sizeof *threads;
    bk_team_t *team = bk_team_new(lanes, 64, 32u << 20);
    if (team == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "start a job: out of memory");
    /* A thread that cannot be started is a lane that never comes: allowed. */
    for (unsigned i = 1; i < lanes; i++) {
        bk_team_ref(team);
        if (pthread_create(&threads[started], NULL, lane_thread, team) == 0)
            started++;
        else
            bk_team_unref(team);
    }
    bk_rc_t rc = main_fn(team, arg, err);
    bk_team_close(team);
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    bk_team_unref(team);
    return rc;
}
