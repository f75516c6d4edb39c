/*
 * repo/lease.c: the object that tells a collector that a writer is at work.
 *
 * A lease lives 15 minutes and is written again after 5, with the wall clock and the monotonic one
 * both watched: the monotonic clock stands still while a machine sleeps, the wall clock may be set
 * back.
 */
#include <fcntl.h>
#include <jansson.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/publish.h"
#include "base/str.h"
#include "repo/session_private.h"

#define LEASE_LIFE  (900 * BK_SEC)
#define LEASE_RENEW (300 * BK_SEC)
#define NOTE        ".lease" /* in the spool: the lease of the session that works there */

static bk_rc_t write_lease(bk_session_t *session, bk_err_t *err)
{
    char expires[BK_TIME_TEXT], renewed[BK_TIME_TEXT];
    bk_buf_t text, object;
    int64_t now = bk_now();
    bk_time_format(renewed, now);
    bk_time_format(expires, now + LEASE_LIFE);
    bk_buf_init(&text, 4096);
    bk_buf_init(&object, 8192);
    json_t *lease = json_pack("{ss* si ss ss}", "host", session->host, "pid", (int)getpid(),
                              "renewed", renewed, "expires", expires);
    bk_rc_t rc = bk_json_dump(lease, true, &text, err);
    json_decref(lease);
    if (rc == BK_OK)
        rc = bk_object_wrap(bk_repo_keyring(session->repo), bk_repo_uuid(session->repo),
                            BK_KIND_LEASE, text.data, text.len, &object, err);
    if (rc == BK_OK)
        rc = bk_storage_put(bk_repo_storage(session->repo), session->lease, object.data, object.len,
                            false, session->ctl, err);
    if (rc == BK_OK) {
        session->lease_mono = bk_mono();
        session->lease_wall = now;
    }
    bk_buf_free(&text);
    bk_buf_free(&object);
    return rc;
}

/* Object names are plain; a host name may hold anything. */
static void name_lease(bk_session_t *session)
{
    char ulid[BK_ULID_LEN + 1], host[100];
    bk_strcpy(host, sizeof host, session->host);
    for (char *p = host; *p != '\0'; p++)
        if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') ||
              (*p == '.' && p > host)))
            *p = '-';
    bk_ulid(ulid);
    bk_fmt(session->lease, sizeof session->lease, "leases/%s/%s", host[0] != '\0' ? host : "host",
           ulid);
}

static bool note_path(const bk_session_t *session, char *path, size_t size)
{
    return bk_fmt(path, size, "%s/" NOTE, bk_repo_spool_dir(session->repo));
}

/* The spool is ours alone, so the lease noted in it belongs to a session that died: end it. */
static void end_noted_lease(bk_session_t *session)
{
    char path[4096];
    bk_buf_t name;
    bk_buf_init(&name, BK_STORAGE_NAME - 1);
    if (note_path(session, path, sizeof path) &&
        bk_read_file(AT_FDCWD, path, &name, NULL) == BK_OK && bk_buf_str(&name) != NULL &&
        strncmp((const char *)name.data, "leases/", strlen("leases/")) == 0)
        bk_storage_remove(bk_repo_storage(session->repo), (const char *)name.data, session->ctl,
                          NULL);
    bk_buf_free(&name);
}

/* Not fsynced: after a power failure the lease simply runs out. */
static void note_lease(const bk_session_t *session)
{
    char path[4096];
    if (!note_path(session, path, sizeof path))
        return;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return;
    bk_write_all(fd, session->lease, strlen(session->lease), path, NULL);
    close(fd);
}

bk_rc_t bk_lease_begin(bk_session_t *session, bk_err_t *err)
{
    end_noted_lease(session);
    name_lease(session);
    note_lease(session);
    return write_lease(session, err);
}

bk_rc_t bk_lease_keep(bk_session_t *session, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    pthread_mutex_lock(&session->lease_lock);
    int64_t mono = bk_mono() - session->lease_mono, wall = bk_now() - session->lease_wall;
    int64_t age = mono > wall ? mono : wall;
    if (session->lease[0] != '\0' && age > LEASE_LIFE) {
        /*
         * A collector may have stopped waiting for it.  What it did meanwhile is looked at before
         * and after the snapshot is published; from here on a new lease protects.
         */
        char old[BK_STORAGE_NAME];
        bk_strcpy(old, sizeof old, session->lease);
        name_lease(session);
        note_lease(session);
        rc = write_lease(session, err);
        bk_storage_remove(bk_repo_storage(session->repo), old, NULL, NULL);
    } else if (session->lease[0] != '\0' && age > LEASE_RENEW) {
        rc = write_lease(session, err);
    }
    pthread_mutex_unlock(&session->lease_lock);
    return rc;
}

void bk_lease_end(bk_session_t *session)
{
    char path[4096];
    if (session->lease[0] == '\0')
        return;
    /* Whatever ctl says: a stopped job leaves no lease either. */
    if (bk_storage_remove(bk_repo_storage(session->repo), session->lease, NULL, NULL) == BK_OK &&
        note_path(session, path, sizeof path))
        unlink(path);
    session->lease[0] = '\0';
}
