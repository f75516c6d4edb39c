/*
 * t/unit/helper/helped.h: tests of files/ over again with a helper: each restore has an agent of its own for the target.
 */
#ifndef BK_TEST_HELPED_H
#define BK_TEST_HELPED_H

#include "unit/helper/agent.h"

#include "files/fsaccess.h"

/* One restore at a time. */
static agent_t helped_agent;
static bk_helper_t *helped_client;

static inline bk_rc_t helped_open(const char *path, bool make, bk_root_t **root, bk_err_t *err)
{
    const uint32_t may = BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE;
    agent_root_t list[] = {{path, may | BK_WIRE_MAY_SETUID}};
    if (make && mkdir(path, 0700) != 0)
        assert_int_equal(errno, EEXIST);
    helped_agent = agent_start(list, 1);
    OK(bk_helper_new(helped_agent.broker, &helped_client, err), err);
    return bk_root_open_helped(path, make, helped_client, may, NULL, root, err);
}

static inline void helped_close(bk_root_t *root)
{
    bk_root_close(root);
    bk_helper_free(helped_client);
    agent_stop(&helped_agent);
}

#define WORLD_OPEN_TARGET(w, root)  helped_open((w)->target, !(w)->restore.dry_run, root, &(w)->err)
#define WORLD_CLOSE_TARGET(w, root) helped_close(root)

#endif
