/*
 * helper/watch_fanotify.c: a source of events: one fanotify group with a mark on the file system of
 * each root, shared by all roots of a conversation.  No directory costs anything in the kernel, so
 * no limit is met.  Touches the roots' directories and memory.
 *
 * The kernel tells of the whole file system.  An event names its directory by a file handle; which
 * directory that is, is known from a table of the handles of the roots' directories, filled while
 * they are visited.  What is not in the table belongs to others: it is dropped here and nobody
 * hears of it.  (Opening handles instead would need no table, but paths outside the roots would be
 * looked up, and Landlock is in the way.)
 *
 * Marks need CAP_SYS_ADMIN, reading does not: all marks are set by bk_fanotify_open, before the
 * cage closes, and the capability is given up for good.
 *
 * The queue has the system's limit (fs.fanotify.max_queued_events): without one, a helper that is
 * stopped while others write would fill the kernel's memory.  Equal events are put into one while
 * they wait, so the queue is read only now and then (watch.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "helper/watch_private.h"

#define GROUP (FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DFID_NAME)
#define MASK                                                                                       \
    (FAN_CREATE | FAN_DELETE | FAN_MODIFY | FAN_ATTRIB | FAN_MOVED_FROM | FAN_MOVED_TO |           \
     FAN_CLOSE_WRITE | FAN_ONDIR)
#define BUFFER     65536u
#define HANDLE     24u /* bytes of the longest handle that is kept: inode and generation */
#define NO_ENTRY   UINT32_MAX
#define TABLE_MIN  1024u
#define PROBE_READ 4096u

/* The bits mean the same in both. */
_Static_assert(FAN_CREATE == IN_CREATE && FAN_DELETE == IN_DELETE && FAN_MODIFY == IN_MODIFY &&
                   FAN_ATTRIB == IN_ATTRIB && FAN_MOVED_FROM == IN_MOVED_FROM &&
                   FAN_MOVED_TO == IN_MOVED_TO && FAN_CLOSE_WRITE == IN_CLOSE_WRITE &&
                   FAN_ONDIR == IN_ISDIR,
               "masks are passed on as they are");

typedef struct {
    uint8_t len, bytes[HANDLE];
    int32_t type;
} handle_t;

typedef struct {
    handle_t handle;
    int number;                    /* 0: a free place */
    uint32_t by_handle, by_number; /* next in the same bucket; of a free place: the next free */
} entry_t;

/* The directories of one root. */
typedef struct table_s {
    struct table_s *next;
    bk_fanotify_t *fan;
    bk_rootwatch_t *root;
    fsid_t fsid;
    entry_t *list;
    uint32_t count, cap, live, free;
    uint32_t *handles, *numbers; /* buckets */
    uint32_t size;
    int last; /* number */
} table_t;

struct bk_fanotify_s {
    int fd;
    unsigned marked;
    fsid_t fsids[BK_WIRE_ROOTS];
    table_t *tables;
    char *buffer;
};

/* --- handles --- */

static bool handle_of(int fd, handle_t *handle)
{
    union {
        struct file_handle handle;
        char space[sizeof(struct file_handle) + HANDLE];
    } room;
    int mount;
    memset(&room, 0, sizeof room);
    room.handle.handle_bytes = HANDLE;
    if (name_to_handle_at(fd, "", &room.handle, &mount, AT_EMPTY_PATH) != 0)
        return false;
    *handle = (handle_t){.len = (uint8_t)room.handle.handle_bytes, .type = room.handle.handle_type};
    memcpy(handle->bytes, room.handle.f_handle, room.handle.handle_bytes);
    return true;
}

static bool same_handle(const handle_t *a, const handle_t *b)
{
    return a->len == b->len && a->type == b->type && memcmp(a->bytes, b->bytes, a->len) == 0;
}

static bool same_fs(const fsid_t *a, const fsid_t *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

/* --- events --- */

typedef struct {
    uint64_t mask;
    fsid_t fsid;
    handle_t handle;
    const char *name; /* "": of the directory itself */
    bool overflow;
} event_t;

/* The event at *at of len bytes, and *at behind it.  False: none that makes sense.  One whose
 * handle is not of a directory that we could know has no length there. */
static bool next_event(const char *buffer, size_t len, size_t *at, event_t *event)
{
    struct fanotify_event_metadata head;
    struct fanotify_event_info_fid info;
    struct file_handle fid;
    const size_t before = sizeof info + sizeof fid;
    memset(event, 0, sizeof *event);
    event->name = "";
    if (len - *at < sizeof head)
        return false;
    memcpy(&head, buffer + *at, sizeof head);
    if (head.vers != FANOTIFY_METADATA_VERSION || head.event_len < sizeof head ||
        head.event_len > len - *at || head.metadata_len > head.event_len)
        return false;
    const char *body = buffer + *at + head.metadata_len;
    size_t left = head.event_len - head.metadata_len;
    *at += head.event_len;
    event->mask = head.mask;
    event->overflow = (head.mask & FAN_Q_OVERFLOW) != 0;
    if (left < before)
        return true;
    memcpy(&info, body, sizeof info);
    memcpy(&fid, body + sizeof info, sizeof fid);
    if ((info.hdr.info_type != FAN_EVENT_INFO_TYPE_DFID_NAME &&
         info.hdr.info_type != FAN_EVENT_INFO_TYPE_DFID) ||
        info.hdr.len < before || info.hdr.len > left || fid.handle_bytes > HANDLE ||
        fid.handle_bytes > info.hdr.len - before)
        return true;
    memcpy(&event->fsid, &info.fsid, sizeof event->fsid);
    event->handle = (handle_t){.len = (uint8_t)fid.handle_bytes, .type = fid.handle_type};
    memcpy(event->handle.bytes, body + before, fid.handle_bytes);
    const char *name = body + before + fid.handle_bytes;
    size_t room = info.hdr.len - before - fid.handle_bytes;
    if (info.hdr.info_type == FAN_EVENT_INFO_TYPE_DFID_NAME && room > 0 &&
        memchr(name, '\0', room) != NULL && strcmp(name, ".") != 0)
        event->name = name;
    return true;
}

/* --- which file systems --- */

/*
 * Do events of this file system name directories as name_to_handle_at does?  Asked by opening the
 * root's directory under a mark on it alone, which needs no right.
 */
static bool events_fit(int dir, const fsid_t *fsid)
{
    char buffer[PROBE_READ] __attribute__((aligned(8)));
    handle_t handle;
    event_t event;
    size_t at = 0;
    bool fit = false;
    if (!handle_of(dir, &handle))
        return false;
    int group = fanotify_init(GROUP, O_RDONLY | O_CLOEXEC);
    if (group < 0)
        return false;
    if (fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN | FAN_ONDIR, dir, NULL) == 0) {
        int again = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (again >= 0)
            close(again);
        ssize_t len = read(group, buffer, sizeof buffer);
        while (!fit && len > 0 && next_event(buffer, (size_t)len, &at, &event))
            fit = same_fs(&event.fsid, fsid) && same_handle(&event.handle, &handle);
    }
    close(group);
    return fit;
}

/* Where one file system has several trees with handles of their own, or stands on another. */
static bool is_simple(const struct statfs *fs)
{
    static const fsid_t none;
    switch ((uint32_t)fs->f_type) {
    case 0x9123683e: /* btrfs */
    case 0xca451a4e: /* bcachefs */
    case 0x794c7630: /* overlayfs */
        return false;
    default:
        return !same_fs(&fs->f_fsid, &none);
    }
}

static bool is_marked(const bk_fanotify_t *fan, const fsid_t *fsid)
{
    for (unsigned i = 0; i < fan->marked; i++)
        if (same_fs(&fan->fsids[i], fsid))
            return true;
    return false;
}

static void mark(bk_fanotify_t *fan, const bk_roots_entry_t *conf)
{
    struct statfs fs;
    int path = bk_roots_open(conf);
    int dir = path >= 0 ? openat(path, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (dir >= 0 && fstatfs(dir, &fs) == 0 && is_simple(&fs) && !is_marked(fan, &fs.f_fsid) &&
        events_fit(dir, &fs.f_fsid) &&
        fanotify_mark(fan->fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, MASK, dir, NULL) == 0)
        fan->fsids[fan->marked++] = fs.f_fsid;
    if (dir >= 0)
        close(dir);
    if (path >= 0)
        close(path);
}

bk_fanotify_t *bk_fanotify_open(const bk_roots_t *roots)
{
    if ((bk_watch_use & BK_WIRE_WATCH_FANOTIFY) == 0)
        return NULL;
    bk_fanotify_t *fan = calloc(1, sizeof *fan);
    if (fan == NULL)
        return NULL;
    fan->fd = fanotify_init(GROUP, O_RDONLY | O_CLOEXEC);
    fan->buffer = malloc(BUFFER);
    for (uint32_t i = 0; fan->fd >= 0 && i < roots->count && fan->marked < BK_WIRE_ROOTS; i++)
        if ((roots->list[i].flags & BK_WIRE_MAY_WATCH) != 0 &&
            (roots->list[i].flags & BK_WIRE_DATABASE) == 0)
            mark(fan, &roots->list[i]);
    if (fan->marked > 0 && fan->buffer != NULL)
        return fan;
    bk_fanotify_close(fan);
    return NULL;
}

void bk_fanotify_close(bk_fanotify_t *fan)
{
    if (fan == NULL)
        return;
    if (fan->fd >= 0)
        close(fan->fd);
    free(fan->buffer);
    free(fan);
}

int bk_fanotify_fd(const bk_fanotify_t *fan)
{
    return fan->fd;
}

bool bk_fanotify_works(void)
{
    /* A flag that asks for the right which a mark needs, too. */
    int group = fanotify_init(GROUP | FAN_UNLIMITED_MARKS, O_RDONLY | O_CLOEXEC);
    if (group >= 0)
        close(group);
    return group >= 0;
}

/* --- the table --- */

static uint32_t *handle_bucket(const table_t *table, const handle_t *handle)
{
    uint32_t hash = 2166136261u;
    for (unsigned i = 0; i < handle->len; i++)
        hash = (hash ^ handle->bytes[i]) * 16777619u;
    return &table->handles[(hash ^ hash >> 15) & (table->size - 1)];
}

static uint32_t *number_bucket(const table_t *table, int number)
{
    return &table->numbers[(uint32_t)number & (table->size - 1)];
}

static uint32_t find(const table_t *table, const handle_t *handle)
{
    uint32_t at = *handle_bucket(table, handle);
    while (at != NO_ENTRY && !same_handle(&table->list[at].handle, handle))
        at = table->list[at].by_handle;
    return at;
}

static void enter(table_t *table, uint32_t at)
{
    entry_t *entry = &table->list[at];
    uint32_t *bucket = handle_bucket(table, &entry->handle);
    entry->by_handle = *bucket;
    *bucket = at;
    bucket = number_bucket(table, entry->number);
    entry->by_number = *bucket;
    *bucket = at;
}

static bool grow_buckets(table_t *table)
{
    uint32_t size = table->size > 0 ? 2 * table->size : TABLE_MIN;
    uint32_t *handles = malloc(size * sizeof *handles), *numbers = malloc(size * sizeof *numbers);
    if (size > UINT32_MAX / 2 || handles == NULL || numbers == NULL) {
        free(handles);
        free(numbers);
        return false;
    }
    free(table->handles);
    free(table->numbers);
    table->handles = handles;
    table->numbers = numbers;
    table->size = size;
    memset(handles, 0xff, size * sizeof *handles);
    memset(numbers, 0xff, size * sizeof *numbers);
    for (uint32_t i = 0; i < table->count; i++)
        if (table->list[i].number != 0)
            enter(table, i);
    return true;
}

static uint32_t new_place(table_t *table)
{
    uint32_t at = table->free;
    if (at != NO_ENTRY) {
        table->free = table->list[at].by_number;
        return at;
    }
    if (table->count == table->cap) {
        uint32_t cap = table->cap > 0 ? 2 * table->cap : 256;
        if (cap > UINT32_MAX / 2 / sizeof *table->list)
            return NO_ENTRY;
        entry_t *more = realloc(table->list, cap * sizeof *more);
        if (more == NULL)
            return NO_ENTRY;
        table->list = more;
        table->cap = cap;
    }
    return table->count++;
}

static int add(void *self, int fd)
{
    table_t *table = self;
    handle_t handle;
    if (!handle_of(fd, &handle))
        return -1;
    uint32_t at = find(table, &handle);
    if (at != NO_ENTRY)
        return table->list[at].number;
    errno = ENOMEM;
    if (table->last == INT_MAX || (table->live >= table->size && !grow_buckets(table)) ||
        (at = new_place(table)) == NO_ENTRY)
        return -1;
    table->list[at] = (entry_t){.handle = handle, .number = ++table->last};
    enter(table, at);
    table->live++;
    return table->last;
}

/* Take an entry out of a chain that begins at *link. */
static void unlink_entry(table_t *table, uint32_t *link, uint32_t at, size_t member)
{
    while (*link != at)
        link = (uint32_t *)((char *)&table->list[*link] + member);
    *link = *(uint32_t *)((char *)&table->list[at] + member);
}

static void drop(void *self, int number)
{
    table_t *table = self;
    uint32_t at = *number_bucket(table, number);
    while (at != NO_ENTRY && table->list[at].number != number)
        at = table->list[at].by_number;
    if (at == NO_ENTRY)
        return;
    unlink_entry(table, handle_bucket(table, &table->list[at].handle), at,
                 offsetof(entry_t, by_handle));
    unlink_entry(table, number_bucket(table, number), at, offsetof(entry_t, by_number));
    table->list[at] = (entry_t){.by_number = table->free};
    table->free = at;
    table->live--;
}

static void leave(void *self)
{
    table_t *table = self;
    table_t **link = &table->fan->tables;
    while (*link != NULL && *link != table)
        link = &(*link)->next;
    if (*link == table)
        *link = table->next;
    free(table->list);
    free(table->handles);
    free(table->numbers);
    free(table);
}

bool bk_fanotify_join(bk_fanotify_t *fan, int dir, bk_rootwatch_t *root, bk_source_t *source)
{
    struct statfs fs;
    table_t *table = NULL;
    if (fan == NULL || fstatfs(dir, &fs) != 0 || !is_marked(fan, &fs.f_fsid) ||
        (table = calloc(1, sizeof *table)) == NULL)
        return false;
    *table = (table_t){
        .next = fan->tables, .fan = fan, .root = root, .fsid = fs.f_fsid, .free = NO_ENTRY};
    if (!grow_buckets(table)) {
        free(table);
        return false;
    }
    fan->tables = table;
    *source = (bk_source_t){.self = table, .add = add, .drop = drop, .close = leave};
    return true;
}

/* --- reading --- */

static bool dispatch(bk_fanotify_t *fan, const event_t *event)
{
    bool all = true;
    for (table_t *table = fan->tables; table != NULL; table = table->next) {
        if (event->overflow) {
            bk_rootwatch_lost(table->root);
            continue;
        }
        if (event->handle.len == 0 || !same_fs(&table->fsid, &event->fsid))
            continue;
        uint32_t at = find(table, &event->handle);
        if (at != NO_ENTRY && !bk_rootwatch_event(table->root, table->list[at].number,
                                                  (uint32_t)event->mask, event->name))
            all = false;
    }
    return all;
}

/* FIONREAD counts the head of each event and none of what follows it. */
size_t bk_fanotify_waiting(const bk_fanotify_t *fan)
{
    int bytes = 0;
    return ioctl(fan->fd, FIONREAD, &bytes) == 0 && bytes > 0
               ? (size_t)bytes / FAN_EVENT_METADATA_LEN
               : 0;
}

bool bk_fanotify_read(bk_fanotify_t *fan, size_t events)
{
    size_t done = 0;
    for (table_t *table = fan->tables; table != NULL; table = table->next)
        bk_rootwatch_reading(table->root);
    do {
        event_t event;
        size_t at = 0;
        ssize_t len = read(fan->fd, fan->buffer, BUFFER);
        if (len <= 0)
            break;
        for (; at < (size_t)len; done++) {
            if (!next_event(fan->buffer, (size_t)len, &at, &event))
                return false; /* a kernel that speaks another language */
            if (!dispatch(fan, &event))
                return false;
        }
    } while (done < events);
    return true;
}
