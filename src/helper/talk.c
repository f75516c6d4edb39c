/*
 * helper/talk.c: one conversation with a worker: takes requests apart, checks their grammar as a
 * whole before anything is done, and puts replies together.  What an operation does is in look.c
 * and place.c.  Touches the conversation's socket and the roots' descriptors; libc only.
 */
#include "helper/talk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "helper/cage.h"
#include "helper/refuse.h"
#include "helper/talk_private.h"
#include "helper/watch.h"
#include "helper/wire.h"

/* --- requests --- */

/* The errno of a failed ROOT travels in its reply; what is refused as a whole is said in words. */
static int say_no(bk_talk_t *talk, const char *text)
{
    return bk_wire_send(talk->fd, BK_WIRE_FAILED, talk->in.head.id, text, strlen(text), NULL, 0);
}

static int answer_hello(bk_talk_t *talk)
{
    bk_wire_hello_t hello = {.generation = talk->generation,
                             .watch = talk->watch_kinds,
                             .pid = (int32_t)getppid(),
                             .cage = talk->cage,
                             .refused = bk_refuse_total()};
    snprintf(hello.release, sizeof hello.release, "%s", BK_VERSION);
    return bk_wire_send(talk->fd, BK_WIRE_HELLO, talk->in.head.id, &hello, sizeof hello, NULL, 0);
}

/* The number of that root as it is now; the same directory asked for again has the same number. */
static int keep_root(bk_talk_t *talk, const bk_task_root_t *root)
{
    for (unsigned i = 0; i < talk->root_count; i++) {
        const bk_task_root_t *have = &talk->roots[i];
        if (have->conf == root->conf && have->may == root->may && have->inode == root->inode &&
            have->device == root->device) {
            close(root->fd);
            return (int)i;
        }
    }
    talk->roots[talk->root_count] = *root;
    return (int)talk->root_count++;
}

static int answer_root(bk_talk_t *talk)
{
    const uint32_t rights =
        BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE | BK_WIRE_MAY_WATCH | BK_WIRE_MAY_SETUID;
    bk_wire_ask_root_t ask;
    bk_wire_root_reply_t reply = {0};
    bk_wire_cur_t cur = bk_wire_cur(&talk->in);
    struct stat st;
    bk_wire_get(&cur, &ask, sizeof ask);
    const char *path = bk_wire_bytes(&cur, ask.len);
    if (cur.failed || cur.left != 0 || ask.len == 0 || ask.len > BK_WIRE_PATH)
        return EPROTO;
    uint32_t may = ask.may & (rights | BK_WIRE_DATABASE);
    int number = may == ask.may ? bk_roots_find(talk->conf, path, ask.len, may) : -1;
    if (number < 0) {
        bk_refuse(BK_REFUSE_ROOT, path, ask.len);
        return say_no(talk, "the configuration does not give this root for this use");
    }
    if (talk->root_count == BK_WIRE_ROOTS)
        return say_no(talk, "this conversation has too many roots");
    bk_task_root_t root = {.conf = &talk->conf->list[number]};
    root.may =
        may | (root.conf->flags & BK_WIRE_DATABASE) | (root.conf->flags & BK_WIRE_MAY_SETUID);
    root.fd = bk_roots_open(root.conf);
    if (root.fd < 0) {
        reply.error = errno;
        if (errno == ELOOP)
            bk_refuse(BK_REFUSE_LINK, path, ask.len);
    } else if (fstat(root.fd, &st) != 0) {
        reply.error = errno;
        close(root.fd);
    } else if (!bk_roots_reachable(root.fd)) {
        reply.error = ESTALE;
        close(root.fd);
    } else {
        root.device = reply.device = st.st_dev;
        root.inode = reply.inode = st.st_ino;
        reply.root = (uint32_t)keep_root(talk, &root);
    }
    return bk_wire_send(talk->fd, BK_WIRE_ROOT, talk->in.head.id, &reply, sizeof reply, NULL, 0);
}

/* --- AT: the grammar --- */

/* How long the two names of an operation may be: false when they are not as its call wants. */
static bool lengths_fit(const bk_wire_op_t *op)
{
    bool two = false;
    size_t most = BK_WIRE_NAME, most2 = BK_WIRE_NAME;
    switch ((bk_wire_call_t)op->call) {
    case BK_WIRE_STAT:
    case BK_WIRE_OPEN:
    case BK_WIRE_ATTRS:
    case BK_WIRE_META:
    case BK_WIRE_CREATE:
    case BK_WIRE_MKDIR:
    case BK_WIRE_MKFIFO:
    case BK_WIRE_UNLINK:
    case BK_WIRE_SYNC:
    case BK_WIRE_ALONE:
        break;
    case BK_WIRE_LINK_FROM:
        most = BK_WIRE_PATH;
        two = true;
        break;
    case BK_WIRE_SYMLINK:
        most2 = BK_WIRE_PATH;
        two = true;
        break;
    case BK_WIRE_RENAME:
    case BK_WIRE_LINK:
        two = true;
        break;
    default:
        return false;
    }
    return op->zero == 0 && op->name_len <= most && op->name2_len <= most2 &&
           (two || op->name2_len == 0);
}

static bool has_fd(const bk_wire_op_t *op)
{
    return op->call == BK_WIRE_ALONE ||
           (op->call == BK_WIRE_META && (op->set & BK_WIRE_SET_ATTRS) != 0);
}

/* The whole body, before anything of it is done. */
static bool at_is_sound(const bk_wire_message_t *message)
{
    bk_wire_at_t at;
    bk_wire_op_t op;
    unsigned attrs = 0;
    bk_wire_cur_t cur = bk_wire_cur(message);
    bk_wire_get(&cur, &at, sizeof at);
    bk_wire_bytes(&cur, at.dir_len);
    if (cur.failed || at.count == 0 || at.count > BK_WIRE_OPS || at.dir_len > BK_WIRE_PATH)
        return false;
    for (unsigned i = 0; i < at.count; i++) {
        bk_wire_get(&cur, &op, sizeof op);
        bk_wire_bytes(&cur, op.name_len);
        bk_wire_bytes(&cur, op.name2_len);
        if (cur.failed || !lengths_fit(&op))
            return false;
        attrs += has_fd(&op);
    }
    return cur.left == 0 && attrs == message->fd_count;
}

/* --- AT: doing --- */

/* "" is the directory itself, for those that can mean it. */
static bool names_are_sound(const bk_wire_op_t *op, const char *name, const char *name2)
{
    switch ((bk_wire_call_t)op->call) {
    case BK_WIRE_STAT:
    case BK_WIRE_OPEN:
    case BK_WIRE_ATTRS:
    case BK_WIRE_META:
        return op->name_len == 0 || bk_wire_is_name(name, op->name_len);
    case BK_WIRE_SYNC:
        return op->name_len == 0;
    case BK_WIRE_LINK_FROM:
        return bk_wire_is_relative(name, op->name_len) && bk_wire_is_name(name2, op->name2_len);
    case BK_WIRE_SYMLINK:
        return bk_wire_is_name(name, op->name_len) && op->name2_len > 0 &&
               memchr(name2, '\0', op->name2_len) == NULL;
    case BK_WIRE_RENAME:
    case BK_WIRE_LINK:
        return bk_wire_is_name(name, op->name_len) && bk_wire_is_name(name2, op->name2_len);
    default:
        return bk_wire_is_name(name, op->name_len);
    }
}

static int dispatch(bk_task_t *task)
{
    switch ((bk_wire_call_t)task->op->call) {
    case BK_WIRE_STAT:
        return bk_look_stat(task);
    case BK_WIRE_OPEN:
        return bk_look_open(task);
    case BK_WIRE_ATTRS:
        return bk_look_attrs(task);
    default:
        return bk_place_do(task);
    }
}

/* Something that is no directory: when it is a link, that is what is said, and counted. */
static int not_directory(int root, const char *path)
{
    struct stat st;
    int fd = bk_task_find(root, path, 0);
    if (fd < 0)
        return errno;
    bool link = fstat(fd, &st) == 0 && S_ISLNK(st.st_mode);
    close(fd);
    if (link)
        bk_refuse(BK_REFUSE_LINK, path, strlen(path));
    return link ? ELOOP : ENOTDIR;
}

/* The directory of a request, O_PATH, or -1 and errno. */
static int find_directory(const bk_task_root_t *root, const char *dir, size_t len, uint64_t inode)
{
    char path[BK_WIRE_PATH + 1];
    struct stat st;
    if (len > 0 && (!bk_wire_is_relative(dir, len) || (root->may & BK_WIRE_DATABASE) != 0)) {
        bk_refuse(BK_REFUSE_PATH, dir, len);
        errno = EPERM;
        return -1;
    }
    memcpy(path, dir, len);
    path[len] = '\0';
    int fd =
        len > 0 ? bk_task_find(root->fd, path, O_DIRECTORY) : fcntl(root->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0 && errno == ENOTDIR)
        errno = not_directory(root->fd, path);
    if (fd < 0 || inode == 0)
        return fd;
    int errnum = fstat(fd, &st) != 0 ? errno : st.st_ino != inode ? ESTALE : 0;
    if (errnum == 0)
        return fd;
    close(fd);
    errno = errnum;
    return -1;
}

/*
 * Nobody waits for the answer any more: what comes after this worker may already be putting the
 * directory in order, so nothing more is made there.
 */
static bool is_alone(const bk_talk_t *talk)
{
    return bk_wire_wait(talk->fd, 0, 0) != 0;
}

/* One operation into the reply; dir: of the request, or the negative errno of finding it.  EPIPE:
 * the conversation is over. */
static int do_one(bk_talk_t *talk, const bk_task_root_t *root, int dir, bk_wire_cur_t *cur,
                  unsigned left)
{
    bk_wire_op_t op;
    bk_wire_result_t result = {0};
    char name[BK_WIRE_PATH + 1], name2[BK_WIRE_PATH + 1];
    bk_wire_get(cur, &op, sizeof op);
    bk_wire_get(cur, name, op.name_len);
    bk_wire_get(cur, name2, op.name2_len);
    name[op.name_len] = name2[op.name2_len] = '\0';
    bk_task_t task = {.root = root,
                      .made = &talk->made,
                      .dir = dir,
                      .op = &op,
                      .name = name,
                      .name2 = name2,
                      .attrs = -1,
                      .result = &result,
                      .fd = -1,
                      .data = (char *)talk->out + talk->out_len + sizeof result,
                      .room = sizeof talk->out - talk->out_len - (size_t)left * sizeof result};
    if (has_fd(&op))
        task.attrs = talk->in.fds[talk->attrs_used++];
    if (op.call >= BK_WIRE_CREATE && is_alone(talk))
        return EPIPE;
    if (!names_are_sound(&op, name, name2)) {
        bk_refuse(BK_REFUSE_PATH, name, op.name_len);
        result.error = EPERM;
    } else {
        result.error = dir < 0 ? -dir : dispatch(&task);
    }
    if (result.error != 0)
        result.data_len = 0;
    if (task.fd >= 0) {
        talk->out_fds[talk->out_fd_count++] = task.fd;
        result.has_fd = 1;
    }
    memcpy(talk->out + talk->out_len, &result, sizeof result);
    talk->out_len += sizeof result + result.data_len;
    return 0;
}

static int answer_at(bk_talk_t *talk)
{
    bk_wire_at_t at;
    if (!at_is_sound(&talk->in))
        return EPROTO;
    bk_wire_cur_t cur = bk_wire_cur(&talk->in);
    bk_wire_get(&cur, &at, sizeof at);
    const char *dir = bk_wire_bytes(&cur, at.dir_len);
    if (at.root >= talk->root_count)
        return EPROTO;
    const bk_task_root_t *root = &talk->roots[at.root];
    int fd = find_directory(root, dir, at.dir_len, at.inode);
    if (fd < 0)
        fd = -errno;
    talk->out_len = 0;
    talk->out_fd_count = 0;
    talk->attrs_used = 0;
    int errnum = 0;
    for (unsigned i = 0; i < at.count && errnum == 0; i++)
        errnum = do_one(talk, root, fd, &cur, at.count - i);
    if (fd >= 0)
        close(fd);
    if (errnum == 0)
        errnum = bk_wire_send(talk->fd, BK_WIRE_AT, talk->in.head.id, talk->out, talk->out_len,
                              talk->out_fds, talk->out_fd_count);
    for (unsigned i = 0; i < talk->out_fd_count; i++)
        close(talk->out_fds[i]);
    return errnum;
}

/* --- the conversation --- */

int bk_talk_message(bk_talk_t *talk)
{
    const bk_wire_head_t *head = &talk->in.head;
    if (talk->in.fd_count > 0 && head->verb != BK_WIRE_AT)
        return EPROTO;
    switch ((bk_wire_verb_t)head->verb) {
    case BK_WIRE_HELLO:
        return head->len == 0 ? answer_hello(talk) : EPROTO;
    case BK_WIRE_ROOT:
        return talk->what == BK_WIRE_FOR_FILES ? answer_root(talk) : EPROTO;
    case BK_WIRE_AT:
        return talk->what == BK_WIRE_FOR_FILES ? answer_at(talk) : EPROTO;
    case BK_WIRE_WATCH: /* from here on it is another conversation */
        return talk->what == BK_WIRE_FOR_WATCHING ? EINPROGRESS : EPROTO;
    default:
        return EPROTO;
    }
}

/* Has the peer read the last reply?  Else it piles them up. */
static bool all_read(int fd)
{
    int unread = 0;
    return ioctl(fd, SIOCOUTQ, &unread) != 0 || unread == 0;
}

/* EPROTO: the peer broke the rules.  0: it closed. */
static int serve(bk_talk_t *talk)
{
    for (;;) {
        if (bk_wire_wait(talk->fd, POLLIN, -1) < 0)
            return errno;
        bk_wire_got_t got = bk_wire_receive(talk->fd, &talk->in);
        if (got == BK_WIRE_EMPTY)
            continue;
        if (got == BK_WIRE_END)
            return 0;
        int errnum = got == BK_WIRE_OK && all_read(talk->fd) ? bk_talk_message(talk) : EPROTO;
        if (errnum == EINPROGRESS)
            return bk_watch_run(talk->fd, talk->conf, &talk->in, talk->fan);
        bk_wire_drop(&talk->in);
        if (errnum == EPIPE || errnum == ECONNRESET)
            return 0;
        if (errnum == ETOOMANYREFS)
            errnum = say_no(talk, "too many descriptors are under way on this machine");
        if (errnum != 0)
            return errnum;
    }
}

bk_talk_t *bk_talk_new(int fd, bk_wire_for_t what, const bk_roots_t *roots, uint64_t generation)
{
    bk_talk_t *talk = calloc(1, sizeof *talk);
    if (talk == NULL)
        return NULL;
    talk->fd = fd;
    talk->what = what;
    talk->conf = roots;
    talk->generation = generation;
    for (unsigned i = 0; i < BK_TASK_MADE; i++)
        talk->made.list[i].fd = -1;
    return talk;
}

void bk_talk_free(bk_talk_t *talk)
{
    if (talk == NULL)
        return;
    for (unsigned i = 0; i < BK_TASK_MADE; i++)
        if (talk->made.list[i].fd >= 0)
            close(talk->made.list[i].fd);
    for (unsigned i = 0; i < talk->root_count; i++)
        close(talk->roots[i].fd);
    bk_fanotify_close(talk->fan);
    free(talk);
}

/* All of it before the peer is listened to.  0 or an errno. */
static int give_up_rights(bk_talk_t *talk)
{
    talk->watch_kinds = bk_watch_kinds();
    int walls = bk_cage_enter(talk->conf, talk->what);
    if (walls < 0)
        return errno;
    talk->cage = (uint32_t)walls;
    if (talk->what == BK_WIRE_FOR_WATCHING)
        talk->fan = bk_fanotify_open(talk->conf);
    return bk_cage_close(talk->conf, talk->what) == 0 ? 0 : errno;
}

int bk_talk_run(int fd, bk_wire_for_t what, const bk_roots_t *roots, uint64_t generation)
{
    int size = 4 * (int)BK_WIRE_MESSAGE;
    bk_talk_t *talk = bk_talk_new(fd, what, roots, generation);
    if (talk == NULL || !bk_wire_is_seqpacket(fd)) {
        bk_talk_free(talk);
        close(fd);
        return talk == NULL ? 2 : 1;
    }
    /* The usual size does; a smaller one of this system would refuse large replies. */
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    int errnum = give_up_rights(talk);
    if (errnum == 0)
        errnum = serve(talk);
    if (errnum == EPROTO)
        bk_refuse(BK_REFUSE_GRAMMAR, "", 0);
    bk_talk_free(talk);
    close(fd);
    return errnum == 0 ? 0 : errnum == EPROTO ? 1 : 2;
}
