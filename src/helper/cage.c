/*
 * helper/cage.c: giving up rights, by system calls alone.  Touches the calling process for good;
 * libc only.
 */
#include "helper/cage.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "helper/filter.h"

/* --- capabilities --- */

/* To see everything; CAP_FOWNER is for O_NOATIME. */
#define SEE    (1ull << CAP_DAC_READ_SEARCH | 1ull << CAP_FOWNER)
#define CHANGE (SEE | 1ull << CAP_CHOWN | 1ull << CAP_DAC_OVERRIDE | 1ull << CAP_FSETID)
#define ADMIN  (1ull << CAP_SYS_ADMIN)
#define LEASE  (1ull << CAP_LEASE)
#define FCAPS  (1ull << CAP_SETFCAP)

/* Of the roots together: which of these flags does any have? */
static uint32_t flags_of(const bk_roots_t *roots)
{
    uint32_t flags = 0;
    for (uint32_t i = 0; i < roots->count; i++)
        flags |= roots->list[i].flags;
    return flags;
}

/*
 * A database that is only read needs most of it, too: its -wal and -shm are written, made, and
 * given to whom the database belongs.  To see whether anybody has a database open, and for
 * capabilities of files, there is more where the configuration gives it.
 */
static uint64_t rights_for(const bk_roots_t *roots, bk_wire_for_t what)
{
    uint32_t flags = flags_of(roots);
    if (what == BK_WIRE_FOR_STATUS)
        return 0;
    if (what == BK_WIRE_FOR_WATCHING || (flags & (BK_WIRE_MAY_PLACE | BK_WIRE_DATABASE)) == 0)
        return SEE;
    uint64_t rights = CHANGE;
    if ((flags & BK_WIRE_DATABASE) != 0 && (flags & BK_WIRE_MAY_PLACE) != 0)
        rights |= LEASE;
    if ((flags & BK_WIRE_MAY_SETUID) != 0)
        rights |= FCAPS;
    return rights;
}

static unsigned calls_for(const bk_roots_t *roots, bk_wire_for_t what)
{
    uint32_t flags = flags_of(roots);
    if (what == BK_WIRE_FOR_STATUS)
        return 0;
    if (what == BK_WIRE_FOR_WATCHING)
        return BK_FILTER_FIND | BK_FILTER_WATCH;
    unsigned calls = BK_FILTER_FIND | BK_FILTER_LOOK;
    if ((flags & BK_WIRE_DATABASE) != 0)
        calls |= BK_FILTER_COMPANION;
    if ((flags & BK_WIRE_MAY_PLACE) != 0)
        calls |= BK_FILTER_COMPANION | BK_FILTER_PLACE;
    return calls;
}

/* Keep of the capabilities that are there those in keep. */
static int limit_capabilities(uint64_t keep)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) != 0)
        return -1;
    for (unsigned i = 0; i < 2; i++) {
        data[i].permitted &= (uint32_t)(keep >> (32 * i));
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
    }
    return syscall(SYS_capset, &header, data) == 0 ? 0 : -1;
}

/* So that no program that is started could have them back; without CAP_SETPCAP the process never
 * had what it could lose here. */
static void limit_bounding_set(uint64_t keep)
{
    for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (cap > 63 || (keep >> cap & 1) == 0)
            (void)prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
}

/* --- Landlock: numbers of linux/landlock.h, which older headers do not have all --- */

enum {
    LL_WRITE_FILE = 1 << 1,
    LL_READ_FILE = 1 << 2,
    LL_READ_DIR = 1 << 3,
    LL_REMOVE_DIR = 1 << 4,
    LL_REMOVE_FILE = 1 << 5,
    LL_MAKE_DIR = 1 << 7,
    LL_MAKE_REG = 1 << 8,
    LL_MAKE_SOCK = 1 << 9,
    LL_MAKE_FIFO = 1 << 10,
    LL_MAKE_SYM = 1 << 12,
    LL_REFER = 1 << 13,
    LL_TRUNCATE = 1 << 14
};
#define LL_VERSION     1u /* flag of create_ruleset */
#define LL_BENEATH     1  /* rule type */
#define LL_NET         3u /* bind, connect */
#define LL_SCOPES      3u /* abstract sockets, signals */
#define LL_UNKNOWN_NET 4
#define LL_UNKNOWN_SCP 6

/* What version (ABI) of Landlock handles. */
static uint64_t handled(long version)
{
    uint64_t all = (1u << 13) - 1;
    if (version >= 2)
        all |= LL_REFER;
    if (version >= 3)
        all |= LL_TRUNCATE;
    if (version >= 5)
        all |= 1u << 15; /* ioctl of devices */
    return all;
}

/* A watcher opens directories and nothing else. */
static uint64_t rights_of(const bk_roots_entry_t *root, bk_wire_for_t what)
{
    uint64_t rights = 0;
    if (what == BK_WIRE_FOR_WATCHING)
        return (root->flags & BK_WIRE_MAY_WATCH) != 0 ? LL_READ_DIR : 0;
    if ((root->flags & (BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE)) != 0)
        rights |= LL_READ_DIR;
    if ((root->flags & BK_WIRE_MAY_READ) != 0)
        rights |= LL_READ_FILE;
    if ((root->flags & BK_WIRE_DATABASE) != 0)
        /* SQLite truncates -wal, -shm and -journal through the descriptors that it gets; whether
         * it may is decided where they were opened. */
        rights |= LL_READ_FILE | LL_WRITE_FILE | LL_MAKE_REG | LL_REMOVE_FILE | LL_TRUNCATE;
    else if ((root->flags & BK_WIRE_MAY_PLACE) != 0)
        rights |= LL_READ_FILE | LL_WRITE_FILE | LL_MAKE_REG | LL_MAKE_DIR | LL_MAKE_SYM |
                  LL_MAKE_FIFO | LL_MAKE_SOCK | LL_REMOVE_FILE | LL_REMOVE_DIR | LL_REFER |
                  LL_TRUNCATE;
    return rights;
}

static void add_root(int rules, const bk_roots_entry_t *root, bk_wire_for_t what, uint64_t all)
{
    struct {
        uint64_t access;
        int32_t parent;
    } __attribute__((packed)) beneath = {.access = rights_of(root, what) & all};
    /* One that is not there is out of reach until a new conversation begins. */
    int fd = bk_roots_open(root);
    if (fd < 0)
        return;
    beneath.parent = fd;
    if (beneath.access != 0)
        (void)syscall(SYS_landlock_add_rule, rules, LL_BENEATH, &beneath, 0u);
    close(fd);
}

static bool enter_landlock(const bk_roots_t *roots, bk_wire_for_t what)
{
    struct {
        uint64_t fs, net, scoped;
    } walls = {0};
    size_t size = sizeof walls.fs;
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LL_VERSION);
    if (version < 1)
        return false;
    walls.fs = handled(version);
    if (version >= LL_UNKNOWN_NET) {
        walls.net = LL_NET;
        size += sizeof walls.net;
    }
    if (version >= LL_UNKNOWN_SCP) {
        walls.scoped = LL_SCOPES;
        size += sizeof walls.scoped;
    }
    /* Version 1 forbids every rename from one directory to another: a restore needs none. */
    int rules = (int)syscall(SYS_landlock_create_ruleset, &walls, size, 0u);
    if (rules < 0)
        return false;
    for (uint32_t i = 0; i < roots->count && what != BK_WIRE_FOR_STATUS; i++)
        add_root(rules, &roots->list[i], what, walls.fs);
    bool in = syscall(SYS_landlock_restrict_self, rules, 0u) == 0;
    close(rules);
    return in;
}

/* --- limits --- */

static void lower(__rlimit_resource_t what, rlim_t most)
{
    struct rlimit now;
    if (getrlimit(what, &now) != 0)
        return;
    if (now.rlim_max == RLIM_INFINITY || now.rlim_max > most)
        now.rlim_max = most;
    now.rlim_cur = now.rlim_max;
    (void)setrlimit(what, &now);
}

int bk_cage_outer(void)
{
    const uint64_t rights = CHANGE | ADMIN | LEASE | FCAPS;
    lower(RLIMIT_CORE, 0);
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -1;
    limit_bounding_set(rights);
    return limit_capabilities(rights);
}

int bk_cage_enter(const bk_roots_t *roots, bk_wire_for_t what)
{
    int walls = 0;
    uint64_t rights = rights_for(roots, what);
    if (what == BK_WIRE_FOR_WATCHING)
        rights |= ADMIN;
    /* The log's socket and the time zone's file are out of reach later. */
    tzset();
    openlog("ngx-backup-helper", LOG_PID | LOG_NDELAY, LOG_DAEMON);
    umask(077);
    lower(RLIMIT_CORE, 0);
    /* Its own descriptors are few; the kernel also measures by this what is under way to all
     * workers, which may be BK_WIRE_TALKS replies with BK_WIRE_OPS descriptors each. */
    lower(RLIMIT_NOFILE, 2 * BK_WIRE_TALKS * BK_WIRE_OPS);
    lower(RLIMIT_FSIZE, 2 * (rlim_t)BK_WIRE_ATTRS_MAX); /* content is written by the workers */
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -1;
    if (enter_landlock(roots, what))
        walls |= BK_WIRE_CAGE_LANDLOCK;
    limit_bounding_set(rights);
    if (limit_capabilities(rights) != 0)
        return -1;
    walls |= BK_WIRE_CAGE_CAPS;
    if (bk_filter_works())
        walls |= BK_WIRE_CAGE_SECCOMP;
    return walls;
}

int bk_cage_close(const bk_roots_t *roots, bk_wire_for_t what)
{
    if (limit_capabilities(rights_for(roots, what)) != 0)
        return -1;
    return bk_filter_works() ? bk_filter_enter(calls_for(roots, what)) : 0;
}
