/*
 * nginx/helper.c: the privileged helper: the directive, its start, every new
 * configuration, its end; and what a worker knows of it.
 *
 * The master starts the helper itself, twice forked, so that it never is a
 * child that nginx would have to reap.  The control socket is the lifeline:
 * only the master has it, so its end tells the helper that the master is gone.
 * Workers inherit one end of the broker socket and nothing else.
 *
 * Configuration code, except what module.h lists as a worker's.  After the
 * first start nothing here fails: what goes wrong is logged and shown in the
 * status.
 */

#include "nginx/helper.h"

#include "base/clock.h"
#include "base/log.h"

#include <sys/stat.h>
#include <sys/un.h>


#define NGX_HTTP_BACKUP_HELPER_HELLO  2000      /* ms */

/* between two warnings of what was refused, ns */
#define NGX_HTTP_BACKUP_HELPER_REFUSED  (60 * BK_SEC)

#define NGX_HTTP_BACKUP_HELPER_PATH   "/usr/lib/ngx-backup/ngx-backup-helper"


/* Of the process; it outlives the cycles. */
ngx_http_backup_helper_t  ngx_http_backup_the_helper = {
    .control = (ngx_socket_t) -1,
    .broker = (ngx_socket_t) -1,
    .mode = NGX_HTTP_BACKUP_HELPER_OFF,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .look_lock = PTHREAD_MUTEX_INITIALIZER
};


/* Who can replace it would be root, too. */

static void
ngx_http_backup_helper_parents(ngx_conf_t *cf, const char *path)
{
    char         real[PATH_MAX], *p;
    struct stat  st;

    if (realpath(path, real) == NULL) {
        return;
    }

    for (p = strrchr(real, '/'); p; p = strrchr(real, '/')) {
        p[p == real] = '\0';

        if (stat(real, &st) == 0
            && (st.st_uid != 0 || ((st.st_mode & 022)
                                   && !(st.st_mode & S_ISVTX))))
        {
            ngx_conf_log_error(NGX_LOG_WARN, cf, 0,
                               "\"backup_helper %s\" will run as root, and "
                               "others than root can replace it: they may "
                               "write to \"%s\"", path, real);
            return;
        }

        if (p == real) {
            return;
        }
    }
}


/* backup_helper PATH | off | external unix:PATH */

char *
ngx_http_backup_helper(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_backup_main_conf_t *bmcf = conf;

    struct stat         st;
    ngx_str_t          *value, *path;
    struct sockaddr_un  address;

    if (bmcf->helper != NGX_HTTP_BACKUP_HELPER_UNSET) {
        return "is duplicate";
    }

    value = cf->args->elts;
    path = &bmcf->helper_path;

    if (ngx_strcmp(value[1].data, "external") == 0) {
        if (cf->args->nelts != 3
            || ngx_strncmp(value[2].data, "unix:/", 6) != 0
            || value[2].len - 5 >= sizeof(address.sun_path))
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"backup_helper external\" needs the socket "
                               "of the service: unix:PATH, absolute and of at "
                               "most %uz bytes, like "
                               "unix:/run/ngx-backup/helper.sock",
                               sizeof(address.sun_path) - 1);
            return NGX_CONF_ERROR;
        }

        path->data = value[2].data + 5;
        path->len = value[2].len - 5;
        bmcf->helper = NGX_HTTP_BACKUP_HELPER_EXTERNAL;

        return NGX_CONF_OK;
    }

    if (cf->args->nelts != 2) {
        return "has too many parameters";
    }

    if (ngx_strcmp(value[1].data, "off") == 0) {
        bmcf->helper = NGX_HTTP_BACKUP_HELPER_OFF;
        return NGX_CONF_OK;
    }

    if (value[1].len == 0 || value[1].data[0] != '/'
        || value[1].len > BK_WIRE_PATH)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid value \"%V\" in \"backup_helper\": it "
                           "must be the absolute path of ngx-backup-helper, "
                           "\"off\" or \"external unix:PATH\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    if (stat((char *) value[1].data, &st) == -1) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           "\"backup_helper %V\" cannot be used: install "
                           "ngx-backup-helper there, or write "
                           "\"backup_helper off\" to let workers do with "
                           "their own rights; stat() failed", &value[1]);
        return NGX_CONF_ERROR;
    }

    if (!S_ISREG(st.st_mode) || (st.st_mode & S_IXUSR) == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"backup_helper %V\" is not an executable file: "
                           "name the installed ngx-backup-helper, or write "
                           "\"backup_helper off\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    /* It will run as root: who can write to it would be root. */

    if (geteuid() == 0 && (st.st_uid != 0 || (st.st_mode & 022))) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"backup_helper %V\" can be changed by others "
                           "than root, and would run as root: "
                           "chown root and chmod 755 it", &value[1]);
        return NGX_CONF_ERROR;
    }

    if (geteuid() == 0) {
        ngx_http_backup_helper_parents(cf, (char *) value[1].data);
    }

    *path = value[1];
    bmcf->helper = NGX_HTTP_BACKUP_HELPER_PROGRAM;

    return NGX_CONF_OK;
}


/* Is the running helper the one that the configuration wants? */

static ngx_uint_t
ngx_http_backup_helper_same(ngx_http_backup_main_conf_t *bmcf)
{
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    return h->mode == bmcf->helper
           && ngx_strlen(h->path) == bmcf->helper_path.len
           && ngx_memcmp(h->path, bmcf->helper_path.data,
                         bmcf->helper_path.len) == 0;
}


/* What is not written: the installed helper, where it can be used. */

static void
ngx_http_backup_helper_default(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf)
{
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    static ngx_str_t  path = ngx_string(NGX_HTTP_BACKUP_HELPER_PATH);

    h->trouble[0] = '\0';

    if (bmcf->helper != NGX_HTTP_BACKUP_HELPER_OFF && geteuid() != 0) {
        if (bmcf->helper != NGX_HTTP_BACKUP_HELPER_UNSET) {
            ngx_log_error(NGX_LOG_WARN, cycle->log, 0,
                          "\"backup_helper\" is left out: nginx was not "
                          "started by root");
        }

        bmcf->helper = NGX_HTTP_BACKUP_HELPER_OFF;
        ngx_http_backup_helper_trouble("nginx was not started by root: "
                                       "workers use their own rights");
        return;
    }

    if (bmcf->helper != NGX_HTTP_BACKUP_HELPER_UNSET) {
        return;
    }

    bmcf->helper_path = path;
    bmcf->helper_default = 1;

    if (access(NGX_HTTP_BACKUP_HELPER_PATH, X_OK) == 0) {
        bmcf->helper = NGX_HTTP_BACKUP_HELPER_PROGRAM;
        return;
    }

    bmcf->helper = NGX_HTTP_BACKUP_HELPER_OFF;
    ngx_http_backup_helper_trouble("%V is not installed: workers use their "
                                   "own rights", &path);

    ngx_log_error(NGX_LOG_WARN, cycle->log, ngx_errno,
                  "there is no privileged helper, workers use their own "
                  "rights: install \"%V\", or write \"backup_helper off\"",
                  &path);
}


ngx_int_t
ngx_http_backup_helper_init(ngx_cycle_t *cycle,
    ngx_http_backup_main_conf_t *bmcf)
{
    size_t                     len;
    ngx_int_t                  rc;
    ngx_uint_t                 first;
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    ngx_http_backup_helper_default(cycle, bmcf);

    first = !h->started && ngx_process != NGX_PROCESS_MASTER;

    /* a reload goes on without what does not fit, as without a helper */

    if ((first || ngx_test_config)
        && bmcf->helper != NGX_HTTP_BACKUP_HELPER_OFF
        && ngx_http_backup_helper_fits(cycle, bmcf) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ngx_test_config) {
        return NGX_OK;
    }

    h->started = 1;
    h->owner = bmcf;
    h->generation++;

    if (h->control != (ngx_socket_t) -1 && !ngx_http_backup_helper_same(bmcf))
    {
        ngx_http_backup_helper_end();
    }

    h->mode = bmcf->helper;

    if (h->mode == NGX_HTTP_BACKUP_HELPER_OFF) {
        return NGX_OK;
    }

    len = ngx_min(bmcf->helper_path.len, sizeof(h->path) - 1);
    ngx_memcpy(h->path, bmcf->helper_path.data, len);
    h->path[len] = '\0';

    rc = NGX_ERROR;

    if (h->control != (ngx_socket_t) -1) {
        rc = ngx_http_backup_helper_renew(cycle, bmcf);

        if (rc == NGX_ERROR) {
            ngx_log_error(NGX_LOG_WARN, cycle->log, 0,
                          "backup: the privileged helper: %s; starting "
                          "another one", h->trouble);
            ngx_http_backup_helper_end();
        }
    }

    if (rc == NGX_ERROR) {
        rc = ngx_http_backup_helper_begin(cycle, bmcf);
    }

    if (rc == NGX_OK) {
        ngx_log_error(NGX_LOG_NOTICE, cycle->log, 0,
                      "backup: privileged helper %s, process %d: %s",
                      h->release, h->pid,
                      h->standby ? "waits for the end of another one"
                                 : "is active");
        return NGX_OK;
    }

    if (first && h->mode == NGX_HTTP_BACKUP_HELPER_PROGRAM
        && !bmcf->helper_default)
    {
        ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                      "\"backup_helper %V\" does not start: %s; or write "
                      "\"backup_helper off\"", &bmcf->helper_path,
                      h->trouble);
        return NGX_ERROR;
    }

    /* What runs goes on; the status says what is missing. */

    ngx_log_error(NGX_LOG_ERR, cycle->log, 0,
                  "backup: the privileged helper \"%V\": %s",
                  &bmcf->helper_path, h->trouble);

    return NGX_OK;
}


void
ngx_http_backup_helper_exit(ngx_http_backup_main_conf_t *bmcf)
{
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    /* Of a cycle that was replaced: another one has the helper now. */

    if (bmcf && h->owner != bmcf) {
        return;
    }

    h->owner = NULL;
    ngx_http_backup_helper_end();
    h->mode = NGX_HTTP_BACKUP_HELPER_OFF;
}


/* --- in a worker --- */

void
ngx_http_backup_helper_process(ngx_cycle_t *cycle)
{
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    if (ngx_process == NGX_PROCESS_SINGLE) {
        return;
    }

    ngx_http_backup_helper_close(&h->control);

    if (ngx_process != NGX_PROCESS_WORKER) {
        ngx_http_backup_helper_close(&h->broker);
    }
}


void
ngx_http_backup_helper_leave(void)
{
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    bk_talker_close(h->talker);
    h->talker = NULL;

    bk_helper_free(h->client);
    h->client = NULL;

    if (ngx_process != NGX_PROCESS_SINGLE) {
        ngx_http_backup_helper_close(&h->broker);
    }
}


bk_rc_t
ngx_http_backup_helper_client(bk_helper_t **client, bk_err_t *err)
{
    bk_rc_t                    rc;
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    *client = NULL;

    if (h->broker == (ngx_socket_t) -1) {
        return bk_err_set(err, BK_UNAVAILABLE, "privileged helper: %s",
                          h->trouble[0] ? h->trouble : "it is switched off");
    }

    rc = BK_OK;

    (void) pthread_mutex_lock(&h->lock);

    if (h->client == NULL) {
        rc = bk_helper_new(h->broker, &h->client, err);
    }

    *client = h->client;

    (void) pthread_mutex_unlock(&h->lock);

    return rc;
}


/*
 * One conversation is kept for this: those of the client belong to threads,
 * and each would get another one.  Under look_lock.
 */

static bk_rc_t
ngx_http_backup_helper_greet(bk_wire_hello_t *hello, bk_ctl_t *ctl)
{
    bk_err_t                   err = { .rc = BK_OK };
    bk_talked_t                talked;
    bk_talker_t               *talker;
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    if (h->talker) {
        talker = h->talker;
        talker->out_len = 0;

        talked = bk_talker_ask(talker, BK_WIRE_HELLO, NULL, 0,
                               NGX_HTTP_BACKUP_HELPER_HELLO, ctl, &err);

        if (talked == BK_TALKED && talker->in.head.verb == BK_WIRE_HELLO
            && talker->in.head.len == sizeof(bk_wire_hello_t))
        {
            ngx_memcpy(hello, talker->in.body, sizeof(bk_wire_hello_t));
            hello->release[sizeof(hello->release) - 1] = '\0';

            return BK_OK;
        }

        bk_talker_close(talker);
        h->talker = NULL;
    }

    if (h->broker == (ngx_socket_t) -1) {
        return BK_UNAVAILABLE;
    }

    if (bk_talker_open(h->broker, BK_WIRE_FOR_STATUS, &h->talker, ctl, &err)
        != BK_OK)
    {
        h->talker = NULL;
        return BK_UNAVAILABLE;
    }

    *hello = h->talker->hello;
    h->seen = 1;

    return BK_OK;
}


/*
 * What the helper says in the system's log may be read by nobody: in a
 * container there is none.  Under look_lock.
 */

static void
ngx_http_backup_helper_notice(bk_wire_hello_t *hello)
{
    int64_t                    now;
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    if (h->noticed != hello->pid) {
        h->noticed = hello->pid;
        h->refused = 0;
        h->refused_at = 0;

        if (hello->cage != BK_WIRE_CAGE_ALL) {
            bk_log(BK_LOG_WARN,
                   "privileged helper: its cage is weaker here, there is no "
                   "%s: a newer kernel has it",
                   !(hello->cage & BK_WIRE_CAGE_LANDLOCK)
                   ? (hello->cage & BK_WIRE_CAGE_SECCOMP
                      ? "Landlock" : "Landlock and no seccomp")
                   : "seccomp");
        }
    }

    now = bk_mono();

    if (hello->refused > h->refused
        && (h->refused_at == 0
            || now - h->refused_at >= NGX_HTTP_BACKUP_HELPER_REFUSED))
    {
        bk_log(BK_LOG_WARN,
               "privileged helper: it refused workers %llu times since its "
               "start, %llu of them new: the system's log names the first of "
               "each kind",
               (unsigned long long) hello->refused,
               (unsigned long long) (hello->refused - h->refused));

        h->refused = hello->refused;
        h->refused_at = now;
    }
}


/* Ask it, and tell the engine what to show. */

void
ngx_http_backup_helper_look(bk_engine_t *engine, bk_ctl_t *ctl)
{
    bk_rc_t                    rc;
    bk_err_t                   err = { .rc = BK_OK };
    ngx_uint_t                 seen;
    const char                *text;
    bk_helper_t               *client;
    bk_wire_hello_t            hello;
    bk_engine_helper_t         facts;
    ngx_http_backup_helper_t  *h = &ngx_http_backup_the_helper;

    ngx_memzero(&facts, sizeof(bk_engine_helper_t));

    text = h->trouble;
    facts.state = BK_ENGINE_HELPER_OFF;

    if (h->mode != NGX_HTTP_BACKUP_HELPER_OFF) {

        (void) pthread_mutex_lock(&h->look_lock);

        rc = ngx_http_backup_helper_greet(&hello, ctl);
        seen = h->seen;

        if (rc == BK_OK) {
            ngx_http_backup_helper_notice(&hello);
        }

        (void) pthread_mutex_unlock(&h->look_lock);

        if (rc != BK_OK && bk_ctl_check(ctl, NULL) != BK_OK) {

            /* this process leaves: it did not wait for the answer */

            return;
        }

        if (rc == BK_OK) {
            facts.state = BK_ENGINE_HELPER_ACTIVE;
            facts.pid = hello.pid;
            facts.generation = hello.generation;
            facts.refused = hello.refused;
            facts.inotify = (hello.watch & BK_WIRE_WATCH_INOTIFY) != 0;
            facts.fanotify = (hello.watch & BK_WIRE_WATCH_FANOTIFY) != 0;
            facts.caged = (hello.cage == BK_WIRE_CAGE_ALL);
            (void) ngx_cpystrn((u_char *) facts.release,
                               (u_char *) hello.release,
                               sizeof(facts.release));

        } else if (h->standby && !seen) {
            facts.state = BK_ENGINE_HELPER_STANDBY;
            text = "the helper of another nginx master is active still: "
                   "this one takes over when the workers of that master "
                   "have left";

        } else {
            facts.state = BK_ENGINE_HELPER_DOWN;

            if (h->broker != (ngx_socket_t) -1) {
                text = "it does not answer: if this stays, "
                       NGX_HTTP_BACKUP_HELPER_RETRY;
            }
        }
    }

    (void) ngx_cpystrn((u_char *) facts.text, (u_char *) text,
                       sizeof(facts.text));

    if (ngx_http_backup_helper_client(&client, &err) != BK_OK) {
        client = NULL;
    }

    bk_engine_set_client(engine, client);
    bk_engine_set_helper(engine, &facts);
}
