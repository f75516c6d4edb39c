/*
 * helper/client.c: a worker's side of the privileged helper: a pool of conversations, roots, and
 * operations in batches.  Touches sockets and the descriptors that come through them; the names in
 * requests are checked by the helper, not here.
 */
#include "helper/client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/str.h"
#include "helper/client_private.h"

#define POOL_MAX  8             /* conversations of one process: all workers together may have 64 */
#define STEP      (100 * BK_MS) /* how often a thread that waits for a conversation looks at ctl */
#define HELLO_MS  2000
#define DATA_MOST BK_WIRE_PATH

unsigned bk_helper_alone_ms = 30000;

struct bk_helper_s {
    int broker; /* borrowed */
    pthread_mutex_t lock;
    pthread_cond_t idle;
    unsigned roots;              /* open */
    unsigned count;              /* made or being made */
    bk_talker_t *pool[POOL_MAX]; /* NULL: free place, or being made */
};

struct bk_helper_root_s {
    bk_helper_t *helper;
    char *path;
    uint32_t may;
    uint64_t device, inode;
};

/* --- the pool --- */

bk_rc_t bk_helper_new(int broker, bk_helper_t **out, bk_err_t *err)
{
    *out = NULL;
    bk_helper_t *helper = calloc(1, sizeof *helper);
    if (helper == NULL)
        return bk_err_set(err, BK_NO_MEMORY, "privileged helper: memory is exhausted");
    helper->broker = broker;
    pthread_mutex_init(&helper->lock, NULL);
    bk_cond_init(&helper->idle);
    *out = helper;
    return BK_OK;
}

void bk_helper_free(bk_helper_t *helper)
{
    if (helper == NULL)
        return;
    for (unsigned i = 0; i < POOL_MAX; i++)
        bk_talker_close(helper->pool[i]);
    pthread_cond_destroy(&helper->idle);
    pthread_mutex_destroy(&helper->lock);
    free(helper);
}

int bk_helper_broker(const bk_helper_t *helper)
{
    return helper->broker;
}

/* Under the lock.  The one that this thread had last knows the files that this thread made. */
static bk_talker_t *find_idle(bk_helper_t *helper)
{
    bk_talker_t *found = NULL;
    for (unsigned i = 0; i < POOL_MAX; i++) {
        bk_talker_t *talker = helper->pool[i];
        if (talker == NULL || talker->busy)
            continue;
        if (pthread_equal(talker->last, pthread_self()))
            return talker;
        found = talker;
    }
    return found;
}

/* Under the lock: out of the pool; the caller closes it. */
static void forget(bk_helper_t *helper, const bk_talker_t *talker)
{
    for (unsigned i = 0; i < POOL_MAX; i++)
        if (helper->pool[i] == talker)
            helper->pool[i] = NULL;
    helper->count--;
    pthread_cond_signal(&helper->idle);
}

static bk_rc_t add_talker(bk_helper_t *helper, bk_talker_t **out, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = bk_talker_open(helper->broker, BK_WIRE_FOR_FILES, out, ctl, err);
    pthread_mutex_lock(&helper->lock);
    if (rc != BK_OK) {
        helper->count--;
        pthread_cond_signal(&helper->idle);
    }
    for (unsigned i = 0; rc == BK_OK && i < POOL_MAX; i++) {
        if (helper->pool[i] == NULL) {
            (*out)->busy = true;
            helper->pool[i] = *out;
            break;
        }
    }
    pthread_mutex_unlock(&helper->lock);
    return rc;
}

/* How long to wait for an answer: whoever can be stopped waits as long as it takes. */
static unsigned limit_of(const bk_ctl_t *ctl)
{
    return ctl == NULL ? bk_helper_alone_ms : 0;
}

/* A conversation for this thread.  fresh: one that begins now. */
static bk_rc_t acquire(bk_helper_t *helper, bool fresh, bk_talker_t **out, bk_ctl_t *ctl,
                       bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    int64_t until = bk_mono() + limit_of(ctl) * BK_MS;
    *out = NULL;
    pthread_mutex_lock(&helper->lock);
    for (;;) {
        bk_talker_t *talker = find_idle(helper);
        /* Another thread's is not taken while there may be one more. */
        bool own = talker != NULL && pthread_equal(talker->last, pthread_self());
        if (talker != NULL && !fresh && (own || helper->count == POOL_MAX)) {
            talker->busy = true;
            *out = talker;
            break;
        }
        if (talker != NULL && fresh && helper->count == POOL_MAX) {
            forget(helper, talker);
            bk_talker_close(talker);
        }
        if (helper->count < POOL_MAX) {
            helper->count++;
            pthread_mutex_unlock(&helper->lock);
            return add_talker(helper, out, ctl, err);
        }
        pthread_mutex_unlock(&helper->lock);
        rc = bk_ctl_check(ctl, err);
        if (ctl == NULL && bk_mono() >= until)
            rc = bk_err_set(err, BK_UNAVAILABLE,
                            "privileged helper: none of its conversations became free in time");
        pthread_mutex_lock(&helper->lock);
        if (rc != BK_OK)
            break;
        if (find_idle(helper) == NULL)
            (void)bk_cond_wait_until(&helper->idle, &helper->lock, bk_mono() + STEP);
    }
    pthread_mutex_unlock(&helper->lock);
    return rc;
}

static void release(bk_helper_t *helper, bk_talker_t *talker, bool broken)
{
    bk_wire_drop(&talker->in);
    pthread_mutex_lock(&helper->lock);
    if (broken) {
        forget(helper, talker);
    } else {
        talker->busy = false;
        talker->last = pthread_self();
        pthread_cond_signal(&helper->idle);
    }
    pthread_mutex_unlock(&helper->lock);
    if (broken)
        bk_talker_close(talker);
}

bk_rc_t bk_helper_hello(bk_helper_t *helper, bk_wire_hello_t *hello, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = BK_UNAVAILABLE;
    memset(hello, 0, sizeof *hello);
    for (unsigned tries = 0; tries < 2; tries++) {
        bk_talker_t *talker;
        rc = acquire(helper, tries > 0, &talker, ctl, &why);
        if (rc != BK_OK)
            break;
        talker->out_len = 0;
        bk_talked_t talked = bk_talker_ask(talker, BK_WIRE_HELLO, NULL, 0, HELLO_MS, ctl, &why);
        bool ok = talked == BK_TALKED && talker->in.head.verb == BK_WIRE_HELLO &&
                  talker->in.head.len == sizeof *hello;
        if (ok)
            memcpy(hello, talker->in.body, sizeof *hello);
        hello->release[sizeof hello->release - 1] = '\0';
        release(helper, talker, !ok);
        if (ok)
            return BK_OK;
        rc = why.rc != BK_OK ? why.rc : BK_UNAVAILABLE;
        if (talked == BK_TALK_STOPPED)
            break;
    }
    if (why.rc == BK_OK)
        return bk_err_set(err, rc, "privileged helper: its greeting is not understood");
    if (err != NULL)
        *err = why;
    return rc;
}

/* --- roots --- */

/* What asking for a root came to. */
typedef struct {
    bk_talked_t talked;
    int error; /* of the reply */
    uint32_t number;
    uint64_t device, inode;
    bk_rc_t rc; /* of what err says; BK_OK: number is valid */
} asked_t;

static void remember_root(bk_talker_t *talker, const bk_helper_root_t *root, const asked_t *asked)
{
    for (unsigned i = 0; i < talker->root_count; i++)
        if (talker->roots[i].number == asked->number)
            return;
    bk_talker_root_t *kept = &talker->roots[talker->root_count];
    if (talker->root_count == BK_WIRE_ROOTS || (kept->path = bk_strdup(root->path)) == NULL)
        return;
    kept->may = root->may;
    kept->device = asked->device;
    kept->inode = asked->inode;
    kept->number = asked->number;
    talker->root_count++;
}

static asked_t ask_root(bk_talker_t *talker, const bk_helper_root_t *root, bk_ctl_t *ctl,
                        bk_err_t *err)
{
    char text[BK_TALKER_TEXT];
    bk_wire_root_reply_t reply;
    asked_t asked = {.rc = BK_OK};
    bk_wire_ask_root_t ask = {.may = root->may, .len = (uint32_t)strlen(root->path)};
    talker->out_len = 0;
    bk_talker_put(talker, &ask, sizeof ask);
    bk_talker_put(talker, root->path, ask.len);
    asked.talked = bk_talker_ask(talker, BK_WIRE_ROOT, NULL, 0, limit_of(ctl), ctl, err);
    if (asked.talked != BK_TALKED) {
        asked.rc = err->rc;
    } else if (talker->in.head.verb == BK_WIRE_FAILED) {
        bk_talker_text(talker, text);
        asked.rc = bk_err_set(err, BK_FORBIDDEN, "%s: privileged helper: %s", root->path, text);
    } else if (talker->in.head.len != sizeof reply) {
        asked.talked = BK_TALK_UNKNOWN;
        asked.rc = bk_err_set(err, BK_UNAVAILABLE, "privileged helper: its answer is damaged");
    } else {
        memcpy(&reply, talker->in.body, sizeof reply);
        asked.error = reply.error;
        asked.number = reply.root;
        asked.device = reply.device;
        asked.inode = reply.inode;
        if (reply.error == ELOOP)
            asked.rc = bk_err_set(err, BK_FORBIDDEN,
                                  "%s: privileged helper: a symbolic link is in this path, in a "
                                  "directory that others than root may write to; configure the "
                                  "path that it leads to",
                                  root->path);
        else if (reply.error != 0)
            asked.rc = bk_err_sys(err, reply.error, "%s: privileged helper: open it", root->path);
        else
            remember_root(talker, root, &asked);
    }
    return asked;
}

static bool try_again(const asked_t *asked)
{
    return asked->talked == BK_TALK_UNSENT || asked->talked == BK_TALK_UNKNOWN ||
           (asked->talked == BK_TALKED && asked->error == ESTALE);
}

bk_rc_t bk_helper_root_open(bk_helper_t *helper, const char *path, uint32_t may,
                            bk_helper_root_t **out, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = BK_OK;
    *out = NULL;
    if (strlen(path) > BK_WIRE_PATH)
        return bk_err_set(err, BK_INVALID, "privileged helper: the path of a root is too long");
    bk_helper_root_t *root = calloc(1, sizeof *root);
    if (root == NULL || (root->path = bk_strdup(path)) == NULL) {
        free(root);
        return bk_err_set(err, BK_NO_MEMORY, "privileged helper: memory is exhausted");
    }
    root->helper = helper;
    root->may = may;
    for (unsigned tries = 0; tries < 2; tries++) {
        bk_talker_t *talker;
        rc = acquire(helper, tries > 0, &talker, ctl, &why);
        if (rc != BK_OK)
            break;
        asked_t asked = ask_root(talker, root, ctl, &why);
        bool full = talker->root_count == BK_WIRE_ROOTS;
        release(helper, talker, asked.talked != BK_TALKED || asked.error == ESTALE || full);
        rc = asked.rc;
        root->device = asked.device;
        root->inode = asked.inode;
        if (!try_again(&asked))
            break;
    }
    pthread_mutex_lock(&helper->lock);
    helper->roots++;
    pthread_mutex_unlock(&helper->lock);
    if (rc == BK_OK) {
        *out = root;
        return BK_OK;
    }
    bk_helper_root_close(root);
    if (err != NULL)
        *err = why;
    return rc;
}

/* Each conversation is a process of the helper: while nothing is open, one is enough. */
static void shrink(bk_helper_t *helper)
{
    for (unsigned i = 0; i < POOL_MAX && helper->count > 1; i++) {
        bk_talker_t *talker = helper->pool[i];
        if (talker == NULL || talker->busy)
            continue;
        forget(helper, talker);
        bk_talker_close(talker);
    }
}

void bk_helper_root_close(bk_helper_root_t *root)
{
    if (root == NULL)
        return;
    pthread_mutex_lock(&root->helper->lock);
    if (--root->helper->roots == 0)
        shrink(root->helper);
    pthread_mutex_unlock(&root->helper->lock);
    free(root->path);
    free(root);
}

/* The root's number in this conversation, which is asked for when it was not yet. */
static asked_t number_of(bk_talker_t *talker, const bk_helper_root_t *root, bk_ctl_t *ctl,
                         bk_err_t *err)
{
    for (unsigned i = 0; i < talker->root_count; i++) {
        const bk_talker_root_t *kept = &talker->roots[i];
        if (kept->inode == root->inode && kept->device == root->device && kept->may == root->may &&
            strcmp(kept->path, root->path) == 0)
            return (asked_t){.number = kept->number};
    }
    asked_t asked = ask_root(talker, root, ctl, err);
    if (asked.rc == BK_OK && (asked.inode != root->inode || asked.device != root->device))
        asked.rc = bk_err_set(err, BK_CHANGED,
                              "%s: the directory was replaced by another one meanwhile; try again",
                              root->path);
    return asked;
}

/* --- operations --- */

/* The bytes that an operation takes in a request. */
static size_t size_of(const bk_helper_op_t *op)
{
    return sizeof(bk_wire_op_t) + (op->name != NULL ? strlen(op->name) : 0) +
           (op->name2 != NULL ? strlen(op->name2) : 0);
}

/* What the protocol cannot even carry.  0 or an errno. */
static int unsayable(const bk_helper_op_t *op)
{
    size_t most = op->call == BK_WIRE_LINK_FROM ? BK_WIRE_PATH : BK_WIRE_NAME;
    size_t most2 = op->call == BK_WIRE_SYMLINK ? BK_WIRE_PATH : BK_WIRE_NAME;
    bool two = op->call == BK_WIRE_LINK_FROM || op->call == BK_WIRE_SYMLINK ||
               op->call == BK_WIRE_RENAME || op->call == BK_WIRE_LINK;
    if (op->name != NULL && strlen(op->name) > most)
        return ENAMETOOLONG;
    if (op->name2 != NULL && strlen(op->name2) > most2)
        return ENAMETOOLONG;
    if (op->call < BK_WIRE_STAT || op->call > BK_WIRE_ALONE ||
        (!two && op->name2 != NULL && op->name2[0] != '\0'))
        return EINVAL;
    return 0;
}

static bool has_attrs(const bk_helper_op_t *op)
{
    return op->call == BK_WIRE_ALONE ||
           (op->call == BK_WIRE_META && (op->set & BK_WIRE_SET_ATTRS) != 0);
}

static bool only_looks(const bk_helper_op_t *op)
{
    return op->call == BK_WIRE_STAT || op->call == BK_WIRE_ATTRS ||
           (op->call == BK_WIRE_OPEN && (op->flags & O_EXCL) == 0);
}

/* One message: operations from first on, as many as fit. */
typedef struct {
    const bk_helper_op_t *ops;
    bk_helper_result_t *results;
    size_t count;
    bool looks; /* nothing of it changes anything */
} batch_t;

static batch_t take_batch(const char *dir, const bk_helper_op_t *ops, bk_helper_result_t *results,
                          size_t count)
{
    size_t used = sizeof(bk_wire_at_t) + strlen(dir);
    batch_t batch = {.ops = ops, .results = results, .looks = true};
    while (batch.count < count && batch.count < BK_WIRE_OPS && unsayable(&ops[batch.count]) == 0) {
        size_t size = size_of(&ops[batch.count]);
        if (used + size > BK_WIRE_BODY)
            break;
        used += size;
        batch.looks = batch.looks && only_looks(&ops[batch.count]);
        batch.count++;
    }
    return batch;
}

static unsigned write_request(bk_talker_t *talker, uint32_t root, const char *dir, uint64_t inode,
                              const batch_t *batch, int fds[BK_WIRE_OPS])
{
    unsigned fd_count = 0;
    bk_wire_at_t at = {.root = root,
                       .dir_len = (uint16_t)strlen(dir),
                       .count = (uint16_t)batch->count,
                       .inode = inode};
    talker->out_len = 0;
    bk_talker_put(talker, &at, sizeof at);
    bk_talker_put(talker, dir, at.dir_len);
    for (size_t i = 0; i < batch->count; i++) {
        const bk_helper_op_t *op = &batch->ops[i];
        const char *name = op->name != NULL ? op->name : "";
        const char *name2 = op->name2 != NULL ? op->name2 : "";
        bk_wire_op_t out = {.call = (uint16_t)op->call,
                            .name_len = (uint16_t)strlen(name),
                            .name2_len = (uint16_t)strlen(name2),
                            .flags = op->flags,
                            .mode = op->mode,
                            .uid = op->uid,
                            .gid = op->gid,
                            .mtime_sec = op->mtime.tv_sec,
                            .mtime_nsec = (uint32_t)op->mtime.tv_nsec,
                            .set = op->set};
        if (has_attrs(op))
            fds[fd_count++] = op->attrs;
        bk_talker_put(talker, &out, sizeof out);
        bk_talker_put(talker, name, out.name_len);
        bk_talker_put(talker, name2, out.name2_len);
    }
    return fd_count;
}

static void fill_stat(struct stat *st, const bk_wire_result_t *from)
{
    st->st_dev = from->device;
    st->st_ino = from->inode;
    st->st_size = (off_t)from->size;
    st->st_nlink = from->links;
    st->st_mtim = (struct timespec){.tv_sec = from->mtime_sec, .tv_nsec = from->mtime_nsec};
    st->st_ctim = (struct timespec){.tv_sec = from->ctime_sec, .tv_nsec = from->ctime_nsec};
    st->st_mode = from->mode;
    st->st_uid = from->uid;
    st->st_gid = from->gid;
    st->st_blocks = (blkcnt_t)from->blocks;
}

static void free_results(bk_helper_result_t *results, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (results[i].fd >= 0)
            close(results[i].fd);
        free(results[i].data);
        results[i] = (bk_helper_result_t){.fd = -1};
    }
}

/* False when the reply is not what the protocol says; err then stays as it is. */
static bool read_reply(bk_talker_t *talker, const batch_t *batch)
{
    unsigned taken = 0;
    bk_wire_cur_t cur = bk_wire_cur(&talker->in);
    for (size_t i = 0; i < batch->count; i++) {
        bk_wire_result_t from;
        bk_helper_result_t *result = &batch->results[i];
        bk_wire_get(&cur, &from, sizeof from);
        const char *data = bk_wire_bytes(&cur, from.data_len);
        if (cur.failed || from.data_len > DATA_MOST || (from.has_fd != 0 && from.error != 0) ||
            (from.has_fd != 0 && taken == talker->in.fd_count))
            return false;
        result->error = from.error;
        result->refused = from.refused;
        fill_stat(&result->st, &from);
        if (from.has_fd != 0) {
            result->fd = talker->in.fds[taken];
            talker->in.fds[taken++] = -1;
        }
        if (from.data_len == 0)
            continue;
        result->data = malloc(from.data_len + 1);
        if (result->data == NULL)
            return false;
        memcpy(result->data, data, from.data_len);
        result->data[from.data_len] = '\0';
        result->data_len = from.data_len;
    }
    return cur.left == 0 && taken == talker->in.fd_count;
}

/* One message in one conversation.  *again: it may be said in another one. */
static bk_rc_t do_batch(bk_talker_t *talker, bk_helper_root_t *root, const char *dir,
                        uint64_t inode, const batch_t *batch, bool *again, bool *broken,
                        bk_ctl_t *ctl, bk_err_t *err)
{
    int fds[BK_WIRE_OPS];
    char text[BK_TALKER_TEXT];
    asked_t asked = number_of(talker, root, ctl, err);
    *again = try_again(&asked);
    *broken = asked.talked != BK_TALKED || asked.error == ESTALE;
    if (asked.rc != BK_OK)
        return asked.rc;
    unsigned fd_count = write_request(talker, asked.number, dir, inode, batch, fds);
    bk_talked_t talked = bk_talker_ask(talker, BK_WIRE_AT, fds, fd_count, limit_of(ctl), ctl, err);
    *broken = talked != BK_TALKED;
    *again = talked == BK_TALK_UNSENT || (talked == BK_TALK_UNKNOWN && batch->looks);
    if (talked == BK_TALK_UNKNOWN && !batch->looks)
        bk_err_remedy(err, "whether the last change was made is not known");
    if (talked != BK_TALKED)
        return err->rc;
    if (talker->in.head.verb == BK_WIRE_FAILED) {
        bk_talker_text(talker, text);
        return bk_err_set(err, BK_UNAVAILABLE, "%s: privileged helper: %s", root->path, text);
    }
    if (read_reply(talker, batch))
        return BK_OK;
    free_results(batch->results, batch->count);
    *broken = true;
    return bk_err_set(err, BK_UNAVAILABLE, "privileged helper: its answer is damaged");
}

static bk_rc_t send_batch(bk_helper_root_t *root, const char *dir, uint64_t inode,
                          const batch_t *batch, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    bool again = true;
    for (unsigned tries = 0; tries < 2 && again; tries++) {
        bk_talker_t *talker;
        bool broken;
        rc = acquire(root->helper, tries > 0, &talker, ctl, err);
        if (rc != BK_OK)
            return rc;
        rc = do_batch(talker, root, dir, inode, batch, &again, &broken, ctl, err);
        release(root->helper, talker, broken || talker->root_count == BK_WIRE_ROOTS);
    }
    return rc;
}

/* Links that had no room in a reply, one by one: each has room in its own. */
static bk_rc_t ask_links(bk_helper_root_t *root, const char *dir, uint64_t inode,
                         const batch_t *batch, bk_ctl_t *ctl, bk_err_t *err)
{
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < batch->count && rc == BK_OK; i++) {
        batch_t one = {.ops = &batch->ops[i], .results = &batch->results[i], .count = 1};
        one.looks = only_looks(one.ops);
        if (one.looks && one.results->error == ENOBUFS && batch->count > 1) {
            *one.results = (bk_helper_result_t){.fd = -1};
            rc = send_batch(root, dir, inode, &one, ctl, err);
        }
    }
    return rc;
}

bk_rc_t bk_helper_at(bk_helper_root_t *root, const char *dir, uint64_t inode,
                     const bk_helper_op_t *ops, size_t count, bk_helper_result_t *results,
                     bk_ctl_t *ctl, bk_err_t *err)
{
    bk_err_t why = {0};
    bk_rc_t rc = BK_OK;
    for (size_t i = 0; i < count; i++)
        results[i] = (bk_helper_result_t){.fd = -1};
    if (strlen(dir) > BK_WIRE_PATH) {
        for (size_t i = 0; i < count; i++)
            results[i].error = ENAMETOOLONG;
        return BK_OK;
    }
    for (size_t done = 0; done < count && rc == BK_OK;) {
        batch_t batch = take_batch(dir, ops + done, results + done, count - done);
        if (batch.count == 0) {
            results[done].error = unsayable(&ops[done]);
            done++;
            continue;
        }
        rc = send_batch(root, dir, inode, &batch, ctl, &why);
        if (rc == BK_OK)
            rc = ask_links(root, dir, inode, &batch, ctl, &why);
        done += batch.count;
    }
    if (rc == BK_OK)
        return BK_OK;
    free_results(results, count);
    if (err != NULL)
        *err = why;
    return rc;
}
