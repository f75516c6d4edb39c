/*
 * t/lib/helperask.c: asks the privileged helper of a running nginx for roots, through the broker socket of one of its workers:
 *
 *   helperask WORKER [letters]PATH...      letters: r(ead) p(lace) w(atch) d(atabase) s(etuid), then '/'
 *
 * prints for each "yes PATH" or "no PATH: why".  Needs root, to take the socket from the worker.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "helper/client.h"
#include "helper/wire.h"

/* The first SEQPACKET socket of the process: a worker without conversations has no other. */
static int take_broker(int pid)
{
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    for (int n = 0; pidfd >= 0 && n < 256; n++) {
        int fd = (int)syscall(SYS_pidfd_getfd, pidfd, n, 0);
        if (fd >= 0 && bk_wire_is_seqpacket(fd)) {
            close(pidfd);
            return fd;
        }
        if (fd >= 0)
            close(fd);
    }
    return -1;
}

static uint32_t flags_of(const char *letters, size_t count)
{
    static const char known[] = "rpwsd";
    uint32_t flags = 0;
    for (size_t i = 0; i < count; i++) {
        const char *at = strchr(known, letters[i]);
        if (at != NULL)
            flags |= 1u << (at - known);
    }
    return flags;
}

int main(int argc, char **argv)
{
    bk_helper_t *helper = NULL;
    bk_err_t err = {0};
    int broker = argc > 2 ? take_broker((int)strtol(argv[1], NULL, 10)) : -1;
    if (broker < 0 || bk_helper_new(broker, &helper, &err) != BK_OK) {
        fprintf(stderr, "usage: helperask WORKER [rpwds]PATH...; or it has no broker socket\n");
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        bk_helper_root_t *root = NULL;
        size_t letters = strcspn(argv[i], "/");
        const char *path = argv[i] + letters;
        memset(&err, 0, sizeof err);
        if (bk_helper_root_open(helper, path, flags_of(argv[i], letters), &root, NULL, &err) ==
            BK_OK)
            printf("yes %s\n", argv[i]);
        else
            printf("no %s: %s\n", argv[i], err.text);
        bk_helper_root_close(root);
    }
    bk_helper_free(helper);
    close(broker);
    return 0;
}
