/*
 * helper/watch_inotify.c: a source of events: one inotify descriptor with a watch on each
 * directory of one root.  Works on every local file system and needs no right but to read, but each
 * directory costs a watch, of which a user has fs.inotify.max_user_watches.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "helper/watch_private.h"

/* CLOSE_WRITE: what was written through a mapping shows when it is given back. */
#define MASK                                                                                       \
    (IN_CREATE | IN_DELETE | IN_MODIFY | IN_ATTRIB | IN_MOVED_FROM | IN_MOVED_TO |                 \
     IN_CLOSE_WRITE | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR | IN_EXCL_UNLINK)
/* A reader of a database opens it for writing, too: that it closes it means nothing. */
#define MASK_DATABASE (MASK & ~(uint32_t)(IN_CLOSE_WRITE | IN_ATTRIB))
#define BUFFER        65536u

struct bk_inotify_s {
    int fd;
    uint32_t mask;
    char *buffer;
};

int bk_inotify_open(bool database, bk_inotify_t **out)
{
    *out = NULL;
    bk_inotify_t *in = calloc(1, sizeof *in);
    if (in == NULL)
        return ENOMEM;
    in->mask = database ? MASK_DATABASE : MASK;
    in->fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    in->buffer = malloc(BUFFER);
    int errnum = in->fd < 0 ? errno : in->buffer == NULL ? ENOMEM : 0;
    if (errnum != 0)
        bk_inotify_close(in);
    else
        *out = in;
    return errnum;
}

void bk_inotify_close(bk_inotify_t *in)
{
    if (in == NULL)
        return;
    if (in->fd >= 0)
        close(in->fd);
    free(in->buffer);
    free(in);
}

int bk_inotify_fd(const bk_inotify_t *in)
{
    return in->fd;
}

static int add(void *self, int fd)
{
    const bk_inotify_t *in = self;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return inotify_add_watch(in->fd, link, in->mask);
}

static void drop(void *self, int number)
{
    const bk_inotify_t *in = self;
    (void)inotify_rm_watch(in->fd, number);
}

bk_source_t bk_inotify_source(bk_inotify_t *in)
{
    return (bk_source_t){.self = in, .add = add, .drop = drop};
}

size_t bk_inotify_waiting(const bk_inotify_t *in)
{
    int bytes = 0;
    return ioctl(in->fd, FIONREAD, &bytes) == 0 && bytes > 0 ? (size_t)bytes : 0;
}

bool bk_inotify_read(bk_inotify_t *in, bk_rootwatch_t *root, size_t bytes)
{
    size_t done = 0;
    bk_rootwatch_reading(root);
    do {
        ssize_t len = read(in->fd, in->buffer, BUFFER);
        if (len <= 0)
            break;
        for (ssize_t pos = 0; pos < len;) {
            const struct inotify_event *event = (const void *)(in->buffer + pos);
            pos += (ssize_t)(sizeof *event + event->len);
            if ((event->mask & IN_Q_OVERFLOW) != 0)
                bk_rootwatch_lost(root);
            else if (!bk_rootwatch_event(root, event->wd, event->mask,
                                         event->len > 0 ? event->name : ""))
                return false;
        }
        done += (size_t)len;
    } while (done < bytes);
    return true;
}
