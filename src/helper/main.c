/*
 * helper/main.c: the privileged helper's executable: finds out how it was started.  nginx starts it
 * with the control socket as descriptor 3 and the helper's end of the broker socket as descriptor
 * 4; a service manager starts it with --listen.  libc only.
 */
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "helper/listen.h"
#include "helper/supervisor.h"
#include "helper/wire.h"

#define CONTROL 3
#define BROKER  4

static void usage(FILE *out)
{
    fputs("ngx-backup-helper " BK_VERSION ": opens, places and watches files for nginx's workers,\n"
          "limited to what the backup blocks in nginx's configuration name.\n"
          "\n"
          "nginx starts it by itself: see \"backup_helper\" in docs/directives.md.\n"
          "\n"
          "  ngx-backup-helper --listen PATH   as a service: wait for nginx at this socket; its\n"
          "                                    directory must be root's.  In nginx.conf:\n"
          "                                    backup_helper external unix:PATH;\n"
          "  ngx-backup-helper --version       version of the program and of its protocol\n"
          "  ngx-backup-helper --help          this text\n",
          out);
}

/* Nothing of this process is for others to see, and it never gains rights that it does not have. */
static void settle(void)
{
    struct rlimit none = {0, 0};
    (void)prctl(PR_SET_DUMPABLE, 0);
    (void)prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    (void)setrlimit(RLIMIT_CORE, &none);
    umask(077);
    if (chdir("/") != 0)
        syslog(LOG_WARNING, "chdir to / failed: %m");
}

static int needs_root(void)
{
    fputs("ngx-backup-helper: must be started by root\n", stderr);
    return 1;
}

int main(int argc, char **argv)
{
    openlog("ngx-backup-helper", LOG_PID, LOG_DAEMON);
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("ngx-backup-helper %s (protocol %u)\n", BK_VERSION, BK_WIRE_VERSION);
        return fflush(stdout) == 0 ? 0 : 1;
    }
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        usage(stdout);
        return fflush(stdout) == 0 ? 0 : 1;
    }
    if (argc == 3 && strcmp(argv[1], "--listen") == 0) {
        if (geteuid() != 0)
            return needs_root();
        settle();
        return bk_listen(argv[2]);
    }
    if (argc > 1 || !bk_wire_is_seqpacket(CONTROL) || !bk_wire_is_seqpacket(BROKER)) {
        usage(stderr);
        return 2;
    }
    if (geteuid() != 0) {
        const char *text = "the helper was not started by root";
        (void)bk_wire_send(CONTROL, BK_WIRE_FAILED, 0, text, strlen(text), NULL, 0);
        return needs_root();
    }
    settle();
    return bk_supervise(CONTROL, BROKER);
}
