/*
 * helper/listen.h: the helper as a service of its own: nginx's masters connect to a path.
 */
#ifndef BK_HELPER_LISTEN_H
#define BK_HELPER_LISTEN_H

/*
 * Serve masters at path until SIGTERM or SIGINT; each gets a supervisor of its own.  What is wrong
 * is said on standard error.  The result is the exit status.
 */
int bk_listen(const char *path);

#endif
