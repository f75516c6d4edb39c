/*
 * nginx/spawn.c: the privileged helper as a process: what it may touch, how it
 * is started or reached, and what is said on the control socket.
 *
 * Configuration code of the master.  Between fork() and execve() nothing but
 * system calls.
 */

#include "nginx/helper.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <sys/wait.h>


#define NGX_HTTP_BACKUP_HELPER_WAIT   5000      /* ms for an answer */


/* --- what the helper may touch --- */

static ngx_int_t
ngx_http_backup_helper_root(bk_wire_root_t *roots, ngx_uint_t *n,
    const char *path, uint32_t flags)
{
    size_t      len;
    ngx_uint_t  i;

    len = ngx_strlen(path);

    for (i = 0; i < *n; i++) {
        if (roots[i].len == len && ngx_memcmp(roots[i].path, path, len) == 0
            && (roots[i].flags & BK_WIRE_DATABASE)
               == (flags & BK_WIRE_DATABASE))
        {
            roots[i].flags |= flags;
            return NGX_OK;
        }
    }

    if (i == BK_WIRE_ROOTS || len > BK_WIRE_PATH) {
        return NGX_ERROR;
    }

    roots[i].flags = flags;
    roots[i].len = (uint32_t) len;
    ngx_memcpy(roots[i].path, path, len);
    *n = i + 1;

    return NGX_OK;
}


static ngx_int_t
ngx_http_backup_helper_set(const bk_set_t *set, bk_wire_root_t *roots,
    ngx_uint_t *n)
{
    char      **root;
    size_t      i;
    uint32_t    flags, special;

    special = set->restore_setuid ? BK_WIRE_MAY_SETUID : 0;

    for (i = 0; i < set->db_count; i++) {

        /* a reader of a database in WAL mode writes to its -shm */

        flags = BK_WIRE_DATABASE|BK_WIRE_MAY_READ|BK_WIRE_MAY_PLACE
                |BK_WIRE_MAY_WATCH;

        if (ngx_http_backup_helper_root(roots, n, set->dbs[i].path, flags)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    for (i = 0; i < set->files_count; i++) {
        flags = BK_WIRE_MAY_READ|BK_WIRE_MAY_WATCH;

        if (set->restore_in_place) {
            flags |= BK_WIRE_MAY_PLACE|special;
        }

        if (ngx_http_backup_helper_root(roots, n, set->files[i].path, flags)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    for (root = set->restore_roots; root && *root; root++) {
        if (ngx_http_backup_helper_root(roots, n, *root,
                                        BK_WIRE_MAY_READ|BK_WIRE_MAY_PLACE
                                        |special)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/*
 * A memfd with the roots of all sets, which nobody can change any more.  -1:
 * logged, or more than a helper takes.
 */

static int
ngx_http_backup_helper_roots(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf, ngx_uint_t *n)
{
    int                      fd;
    u_char                  *p;
    size_t                   len;
    ssize_t                  done;
    ngx_uint_t               i;
    bk_wire_root_t          *roots;
    ngx_http_backup_set_t  **sets;

    *n = 0;

    roots = ngx_calloc(BK_WIRE_ROOTS * sizeof(bk_wire_root_t), cycle->log);
    if (roots == NULL) {
        return -1;
    }

    sets = bmcf->sets.elts;
    fd = -1;

    for (i = 0; i < bmcf->sets.nelts; i++) {
        if (ngx_http_backup_helper_set(&sets[i]->set, roots, n) != NGX_OK) {
            ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                          "backup \"%V\": the privileged helper takes at most "
                          "%ui databases, files and restore_root of all sets: "
                          "configure fewer, or \"backup_helper off\"",
                          &sets[i]->name, (ngx_uint_t) BK_WIRE_ROOTS);
            goto failed;
        }
    }

    fd = memfd_create("ngx-backup roots", MFD_CLOEXEC|MFD_ALLOW_SEALING);
    if (fd == -1) {
        ngx_log_error(NGX_LOG_ERR, cycle->log, ngx_errno,
                      "backup: memfd_create() failed");
        goto failed;
    }

    p = (u_char *) roots;
    len = *n * sizeof(bk_wire_root_t);

    while (len) {
        done = write(fd, p, len);

        if (done == -1 && ngx_errno == NGX_EINTR) {
            continue;
        }

        if (done <= 0) {
            ngx_log_error(NGX_LOG_ERR, cycle->log, ngx_errno,
                          "backup: writing the roots failed");
            goto failed;
        }

        p += done;
        len -= done;
    }

    if (fcntl(fd, F_ADD_SEALS,
              F_SEAL_WRITE|F_SEAL_SHRINK|F_SEAL_GROW|F_SEAL_SEAL)
        == -1)
    {
        ngx_log_error(NGX_LOG_ERR, cycle->log, ngx_errno,
                      "backup: sealing the roots failed");
        goto failed;
    }

    ngx_free(roots);

    return fd;

failed:

    if (fd != -1) {
        (void) close(fd);
    }

    ngx_free(roots);

    return -1;
}


ngx_int_t
ngx_http_backup_helper_fits(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf)
{
    int         fd;
    ngx_uint_t  n;

    fd = ngx_http_backup_helper_roots(cycle, bmcf, &n);

    if (fd == -1) {
        return NGX_ERROR;
    }

    (void) close(fd);

    return NGX_OK;
}


/* --- starting it --- */

void
ngx_http_backup_helper_trouble(const char *fmt, ...)
{
    va_list   args;
    u_char   *p;
    char     *text = ngx_http_backup_the_helper.trouble;

    va_start(args, fmt);
    p = ngx_vslprintf((u_char *) text,
                      (u_char *) text + NGX_HTTP_BACKUP_HELPER_TEXT - 1,
                      fmt, args);
    va_end(args);

    *p = '\0';
}


/* The process that becomes the helper; only what is safe after a fork. */

static void
ngx_http_backup_helper_exec(const char *path, int control, int broker)
{
    int          i, fd;
    char         text[64 + BK_WIRE_PATH];
    u_char      *p;
    sigset_t     none;
    char        *argv[2], *envp[2];
    static char  name[] = "ngx-backup-helper";
    static char  path_env[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

    argv[0] = name;
    argv[1] = NULL;
    envp[0] = path_env;
    envp[1] = NULL;

    /* out of the way of 3 and 4 */

    control = fcntl(control, F_DUPFD_CLOEXEC, 10);
    broker = fcntl(broker, F_DUPFD_CLOEXEC, 10);
    fd = open("/dev/null", O_RDWR);

    if (control == -1 || broker == -1 || fd == -1 || dup2(fd, 0) == -1
        || dup2(fd, 1) == -1 || dup2(fd, 2) == -1 || dup2(control, 3) == -1
        || dup2(broker, 4) == -1 || close_range(5, ~0U, 0) == -1)
    {
        _exit(127);
    }

    for (i = 1; i < NSIG; i++) {
        (void) signal(i, SIG_DFL);
    }

    (void) sigemptyset(&none);
    (void) sigprocmask(SIG_SETMASK, &none, NULL);

    (void) execve(path, argv, envp);

    p = ngx_slprintf((u_char *) text, (u_char *) text + sizeof(text),
                     "it cannot be executed (error %d)", ngx_errno);

    (void) bk_wire_send(3, BK_WIRE_FAILED, 0, text, p - (u_char *) text, NULL,
                        0);
    _exit(127);
}


/*
 * The helper must not be nginx's child: nginx would take its end for that of
 * an unknown process, and wait for it when it quits.  SIGCHLD of the process
 * in between is ours too.
 */

static ngx_int_t
ngx_http_backup_helper_fork(ngx_cycle_t *cycle, const char *path, int control,
    int broker)
{
    int        status;
    pid_t      pid;
    sigset_t   set, old;
    ngx_err_t  err;

    (void) sigemptyset(&set);
    (void) sigaddset(&set, SIGCHLD);
    (void) sigprocmask(SIG_BLOCK, &set, &old);

    pid = fork();
    err = ngx_errno;

    if (pid == 0) {
        (void) setsid();

        pid = fork();

        if (pid == 0) {
            ngx_http_backup_helper_exec(path, control, broker);
        }

        _exit(pid == -1 ? 1 : 0);
    }

    status = 0;

    if (pid > 0) {
        while (waitpid(pid, &status, 0) == -1 && ngx_errno == NGX_EINTR) {
            /* void */
        }
    }

    (void) sigprocmask(SIG_SETMASK, &old, NULL);

    if (pid == -1 || status != 0) {
        ngx_log_error(NGX_LOG_ERR, cycle->log, pid == -1 ? err : 0,
                      "backup: fork() of the privileged helper failed");
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_backup_helper_connect(ngx_cycle_t *cycle, ngx_str_t *path,
    ngx_socket_t *control)
{
    socklen_t           size;
    struct ucred        peer;
    struct sockaddr_un  address;

    ngx_memzero(&address, sizeof(address));
    address.sun_family = AF_UNIX;
    ngx_memcpy(address.sun_path, path->data, path->len);

    *control = socket(AF_UNIX, SOCK_SEQPACKET|SOCK_CLOEXEC|SOCK_NONBLOCK, 0);

    if (*control == (ngx_socket_t) -1
        || connect(*control, (struct sockaddr *) &address, sizeof(address))
           == -1)
    {
        ngx_http_backup_helper_trouble("connect() to %V failed (error %d): "
                                       "start its service, then reload nginx",
                                       path, ngx_errno);
        return NGX_ERROR;
    }

    size = sizeof(peer);

    if (getsockopt(*control, SOL_SOCKET, SO_PEERCRED, &peer, &size) == -1
        || peer.uid != 0)
    {
        ngx_http_backup_helper_trouble("%V does not belong to root: something "
                                       "else listens there", path);
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* --- what is said --- */

/* The answer to CONF: NGX_OK, NGX_DECLINED (refused), NGX_ERROR (is gone). */

static ngx_int_t
ngx_http_backup_helper_answer(ngx_cycle_t *cycle, bk_wire_message_t *message)
{
    int                        left;
    ngx_str_t                  text;
    uint64_t                   until;
    ngx_uint_t                 reset;
    struct timespec            now;
    bk_wire_got_t              got;
    bk_wire_ready_t            ready;
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    (void) clock_gettime(CLOCK_MONOTONIC, &now);
    until = now.tv_sec * 1000 + now.tv_nsec / 1000000
            + NGX_HTTP_BACKUP_HELPER_WAIT;
    reset = 0;

    for ( ;; ) {
        (void) clock_gettime(CLOCK_MONOTONIC, &now);
        left = (int) (until - (now.tv_sec * 1000 + now.tv_nsec / 1000000));

        if (left <= 0) {
            ngx_http_backup_helper_trouble("it does not answer within %d "
                                           "seconds; "
                                           NGX_HTTP_BACKUP_HELPER_RETRY,
                                           NGX_HTTP_BACKUP_HELPER_WAIT / 1000);
            return NGX_ERROR;
        }

        if (bk_wire_wait(h->control, POLLIN, left) <= 0) {
            continue;
        }

        got = bk_wire_receive(h->control, message);

        if (got == BK_WIRE_EMPTY) {
            continue;
        }

        if (got == BK_WIRE_END && ngx_errno == ECONNRESET && !reset) {

            /* it left without reading; what it said before comes next */

            reset = 1;
            continue;
        }

        if (got == BK_WIRE_END) {
            ngx_http_backup_helper_trouble("it ended; "
                                           NGX_HTTP_BACKUP_HELPER_RETRY);
            return NGX_ERROR;
        }

        bk_wire_drop(message);

        if (got == BK_WIRE_BROKEN) {
            if (message->head.magic == BK_WIRE_MAGIC
                && message->head.version != BK_WIRE_VERSION)
            {
                ngx_http_backup_helper_trouble("it speaks protocol %ud, this "
                        "module (version " BK_VERSION ") speaks protocol %ud: "
                        "install both of one version, and restart nginx "
                        "(a reload keeps the module that is loaded)",
                        (uint32_t) message->head.version, BK_WIRE_VERSION);
            } else {
                ngx_http_backup_helper_trouble("its answer is not understood: "
                        "is it an ngx-backup-helper?");
            }

            return NGX_ERROR;
        }

        if (message->head.id != h->id && message->head.id != 0) {

            /* late, to an earlier one */

            continue;
        }

        if (message->head.verb == BK_WIRE_READY
            && message->head.len == sizeof(ready))
        {
            ngx_memcpy(&ready, message->body, sizeof(ready));

            h->pid = ready.pid;
            h->standby = (ready.active == 0);
            h->trouble[0] = '\0';
            ngx_memcpy(h->release, ready.release, sizeof(h->release));
            h->release[sizeof(h->release) - 1] = '\0';

            return NGX_OK;
        }

        text.data = message->body;
        text.len = message->head.verb == BK_WIRE_FAILED ? message->head.len
                                                        : 0;
        ngx_http_backup_helper_trouble("%V", &text);

        return NGX_DECLINED;
    }
}


static ngx_int_t
ngx_http_backup_helper_send(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf, int theirs)
{
    int                        fds[2], errnum;
    size_t                     i;
    ngx_int_t                  rc;
    ngx_uint_t                 n;
    ngx_str_t                 *pid;
    bk_wire_conf_t             conf;
    ngx_core_conf_t           *ccf;
    bk_wire_message_t         *message;
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);
    pid = &ccf->pid;

    fds[0] = ngx_http_backup_helper_roots(cycle, bmcf, &n);
    fds[1] = theirs;

    if (fds[0] == -1) {
        ngx_http_backup_helper_trouble("the list of directories for it cannot "
                                       "be made; see the error log");
        return NGX_DECLINED;
    }

    message = ngx_alloc(sizeof(bk_wire_message_t), cycle->log);
    if (message == NULL) {
        (void) close(fds[0]);
        return NGX_ERROR;
    }

    ngx_memzero(&conf, sizeof(bk_wire_conf_t));
    conf.generation = h->generation;
    conf.count = (uint32_t) n;

    /* each worker asks who is there, each set is watched; on reload twice */

    conf.talks = (uint32_t) (BK_WIRE_TALKS
                             + 4 * (ccf->worker_processes + bmcf->sets.nelts));

    /* FNV-1a of what no two running nginx have in common */

    conf.nginx = 0xcbf29ce484222325ull;

    for (i = 0; i < pid->len; i++) {
        conf.nginx = (conf.nginx ^ pid->data[i]) * 0x100000001b3ull;
    }

    errnum = bk_wire_send(h->control, BK_WIRE_CONF, ++h->id, &conf,
                          sizeof(bk_wire_conf_t), fds, theirs == -1 ? 1 : 2);

    /* It may have said why it left before it did. */

    if (errnum == 0 || errnum == EPIPE || errnum == ECONNRESET) {
        rc = ngx_http_backup_helper_answer(cycle, message);

    } else {
        ngx_http_backup_helper_trouble("sending to it failed (error %d)",
                                       errnum);
        rc = NGX_ERROR;
    }

    (void) close(fds[0]);
    ngx_free(message);

    return rc;
}


ngx_int_t
ngx_http_backup_helper_renew(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf)
{
    return ngx_http_backup_helper_send(cycle, bmcf, -1);
}


ngx_int_t
ngx_http_backup_helper_begin(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf)
{
    int                        control[2], broker[2], theirs;
    ngx_int_t                  rc;
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET|SOCK_CLOEXEC, 0, broker) == -1) {
        ngx_http_backup_helper_trouble("socketpair() failed (error %d)",
                                       ngx_errno);
        return NGX_ERROR;
    }

    control[0] = control[1] = -1;
    theirs = -1;

    if (bmcf->helper == NGX_HTTP_BACKUP_HELPER_EXTERNAL) {
        theirs = broker[1];
        rc = ngx_http_backup_helper_connect(cycle, &bmcf->helper_path,
                                            &control[0]);

    } else if (socketpair(AF_UNIX, SOCK_SEQPACKET|SOCK_CLOEXEC, 0, control)
               == -1)
    {
        ngx_http_backup_helper_trouble("socketpair() failed (error %d)",
                                       ngx_errno);
        rc = NGX_ERROR;

    } else {
        rc = ngx_http_backup_helper_fork(cycle,
                                         (char *) bmcf->helper_path.data,
                                         control[1], broker[1]);
        if (rc != NGX_OK) {
            ngx_http_backup_helper_trouble("it cannot be started; see the "
                                           "error log");
        }
    }

    h->control = control[0];
    h->broker = broker[0];

    if (control[1] != -1) {
        (void) close(control[1]);
    }

    if (theirs == -1) {
        (void) close(broker[1]);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_backup_helper_send(cycle, bmcf, theirs);
    }

    if (theirs != -1) {
        (void) close(theirs);
    }

    if (rc != NGX_OK) {
        ngx_http_backup_helper_end();
    }

    return rc;
}


void
ngx_http_backup_helper_close(ngx_socket_t *s)
{
    if (*s != (ngx_socket_t) -1) {
        (void) close(*s);
        *s = (ngx_socket_t) -1;
    }
}


void
ngx_http_backup_helper_end(void)
{
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    if (h->control != (ngx_socket_t) -1) {
        (void) bk_wire_send(h->control, BK_WIRE_QUIT, 0, NULL, 0, NULL, 0);
    }

    ngx_http_backup_helper_close(&h->control);
    ngx_http_backup_helper_close(&h->broker);
    h->standby = 0;
    h->pid = 0;
}
