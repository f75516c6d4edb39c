/*
 * helper/protocol.h: what nginx, its workers and the privileged helper say to each other.
 *
 * Three processes speak it, over SEQPACKET socket pairs that are inherited or passed on, so that
 * possession of a descriptor is the permission:
 *
 *   control        master      <-> supervisor   the lifeline; roots, generations, quit
 *   broker         any worker   -> agent        one end of a socket pair, nothing else
 *   conversation   one thread  <-> one process  asking for descriptors, placing, watching
 *
 * Every message is one datagram: a head of fixed size, then len bytes of body.  All numbers are in
 * the machine's order, since both ends run on it; all reserved bytes are zero.  Every request gets
 * exactly one reply with its id, in order; descriptors travel beside it (SCM_RIGHTS).  In a
 * conversation the next request is sent when the reply to the last one was read, so that no peer
 * piles up replies and descriptors by not reading.  A message that breaks this grammar ends that
 * conversation and nothing else.
 *
 *   control:
 *     master -> supervisor   CONF   body: bk_wire_conf_t, one descriptor: a sealed memfd that holds
 *                                   count times bk_wire_root_t.  The first one over a path socket
 *                                   has a second descriptor: the helper's end of the broker socket.
 *                            QUIT   no body, no reply: a clean end.  End of file means that the
 *                                   master died.
 *     supervisor -> master   READY  body: bk_wire_ready_t; the reply to CONF
 *                            FAILED body: text without NUL; the reply to CONF when it is refused
 *
 *   broker:
 *     worker -> agent        TALK   body: bk_wire_talk_t, one descriptor: the helper's end of the
 *                                   conversation.  The agent forks a process for it, which knows
 *                                   the roots of the generation that is current at that moment, and
 *                                   no others, and keeps no right that its kind has no use for.
 *
 *   conversation:
 *     FAILED  id 0, unasked: it is not taken up; body: text
 *     HELLO   no body; reply body: bk_wire_hello_t
 *     ROOT    body: bk_wire_ask_root_t, path; reply: bk_wire_root_reply_t: the number that names
 *             this root from now on in this conversation
 *     AT      body: bk_wire_at_t, dir, then count times (bk_wire_op_t, name, name2).
 *             Each operation is one system call on a name in one directory, which is resolved
 *             beneath the root for this request, without following any link.  Operations are done
 *             in order, each fails by itself.  Reply body: count times (bk_wire_result_t, data);
 *             descriptors in the order of the operations that produced one.  A STAT whose link
 *             has no room in the reply fails with ENOBUFS: it is asked again in the next.
 *     WATCH   body: as ROOT, for a root that may be watched.  Reply: bk_wire_root_reply_t.  After
 *             the first WATCH the conversation carries only WATCH and, unasked, EVENT messages.
 *             For a root that is watched already the reply comes when everything that happened
 *             before the request, in any of the roots, has been told.
 *     EVENT   helper -> worker, id 0: count times (bk_wire_event_t, path)
 *     FAILED  the reply to any request that is understood but refused as a whole; body: text.
 *
 * Errors that stand for a refusal: EPERM (a path with "..", a right that was not asked for, a
 * device node, a socket), ELOOP (a symbolic link in the way), EXDEV (a mount point), EMLINK (a file
 * that has further names would be changed), ESTALE (ROOT: the root was made or replaced after this
 * conversation began, a new one can open it; AT: another directory is there now).
 *
 * Who may say what: the master CONF, QUIT; a worker TALK on the broker socket; each conversation
 * HELLO, one for files ROOT and AT, too, one for watching WATCH.  Anything else ends it.
 */
#ifndef BK_HELPER_PROTOCOL_H
#define BK_HELPER_PROTOCOL_H

#include <stdint.h>

#define BK_WIRE_MAGIC   0x626b6870u /* "bkhp" */
#define BK_WIRE_VERSION 2u

/* Limits, checked by both sides. */
#define BK_WIRE_MESSAGE   65536u /* bytes of a datagram */
#define BK_WIRE_OPS       64u    /* operations of one AT, so also descriptors of one reply */
#define BK_WIRE_PATH      4095u  /* bytes of a path */
#define BK_WIRE_NAME      255u   /* bytes of a name */
#define BK_WIRE_ROOTS     256u   /* of a configuration, and of one conversation */
#define BK_WIRE_TALKS     64u    /* conversations at a time, at least */
#define BK_WIRE_TALKS_MAX 1024u
#define BK_WIRE_ATTRS_MAX (4u << 20) /* bytes of a file's extended attributes */

typedef enum {
    BK_WIRE_CONF = 1,
    BK_WIRE_QUIT,
    BK_WIRE_READY,
    BK_WIRE_FAILED,
    BK_WIRE_TALK,
    BK_WIRE_HELLO,
    BK_WIRE_ROOT,
    BK_WIRE_AT,
    BK_WIRE_WATCH,
    BK_WIRE_EVENT
} bk_wire_verb_t;

typedef struct {
    uint32_t magic;
    uint16_t version;
    uint16_t verb;
    uint32_t id;  /* of the request; the reply has the same */
    uint32_t len; /* of the body: the datagram has exactly this many bytes more */
} bk_wire_head_t;

/* --- control --- */

typedef struct {
    uint64_t generation; /* grows by one with each configuration that nginx loads */
    uint64_t nginx;      /* tells one nginx of this machine from another: of its two helpers during
                            a binary upgrade only one is active */
    uint32_t count;      /* of roots */
    uint32_t talks;      /* conversations at a time; BK_WIRE_TALKS to BK_WIRE_TALKS_MAX are taken */
} bk_wire_conf_t;

/* What a root may be used for. */
#define BK_WIRE_MAY_READ   1u /* list, look, open for reading */
#define BK_WIRE_MAY_PLACE  2u /* create, rename, remove, set metadata */
#define BK_WIRE_MAY_WATCH  4u
#define BK_WIRE_MAY_SETUID 8u  /* set-user-id bits and capabilities of files, too */
#define BK_WIRE_DATABASE   16u /* path is one database file: it and its companions are all */
#define BK_WIRE_ROOT_FLAGS 31u /* all that there are */

typedef struct {
    uint32_t flags;
    uint32_t len; /* of path */
    char path[BK_WIRE_PATH + 1];
} bk_wire_root_t;

typedef struct {
    uint64_t generation;
    uint32_t active;  /* 0: another helper still serves this nginx, this one waits */
    int32_t pid;      /* of the supervisor */
    char release[32]; /* of the helper, NUL-terminated */
} bk_wire_ready_t;

/* --- broker --- */

/* What a conversation is for. */
typedef enum {
    BK_WIRE_FOR_STATUS = 1, /* who is there: needs no right at all */
    BK_WIRE_FOR_FILES,
    BK_WIRE_FOR_WATCHING
} bk_wire_for_t;

typedef struct {
    uint32_t what; /* bk_wire_for_t */
    uint32_t zero;
} bk_wire_talk_t;

/* --- conversations --- */

/* How changes are noticed. */
#define BK_WIRE_WATCH_INOTIFY  1u
#define BK_WIRE_WATCH_FANOTIFY 2u

/* The walls around a conversation's process. */
#define BK_WIRE_CAGE_CAPS     1u /* capabilities are given up */
#define BK_WIRE_CAGE_LANDLOCK 2u /* paths outside the roots are out of reach */
#define BK_WIRE_CAGE_SECCOMP  4u /* system calls are limited */
#define BK_WIRE_CAGE_ALL      7u

typedef struct {
    uint64_t generation;
    uint32_t watch;   /* BK_WIRE_WATCH_… that work here */
    int32_t pid;      /* of the agent */
    char release[32]; /* of the helper, NUL-terminated */
    uint32_t cage;    /* BK_WIRE_CAGE_… that this kernel gives */
    uint32_t zero;
    uint64_t refused; /* requests and operations, by all conversations of this agent */
} bk_wire_hello_t;

typedef struct {
    uint32_t may; /* BK_WIRE_MAY_… that are asked for, all of which the root must have */
    uint32_t len; /* of path, which follows: exactly as configured */
} bk_wire_ask_root_t;

typedef struct {
    uint32_t root;
    int32_t error; /* errno when the root cannot be opened now (ENOENT …); root is valid still */
    uint64_t device, inode; /* of the directory, of a database the one it is in; 0 then */
} bk_wire_root_reply_t;

typedef struct {
    uint32_t root;
    uint16_t dir_len; /* of the directory, relative to the root, which follows; 0: the root */
    uint16_t count;
    /* That the directory must have, else every operation fails with ESTALE; 0: any. */
    uint64_t inode;
} bk_wire_at_t;

typedef enum {
    BK_WIRE_STAT = 1, /* result: st; data of a link with BK_WIRE_LINKS: where it leads */
    BK_WIRE_OPEN,     /* flags: O_RDONLY with O_DIRECTORY, O_NOATIME, O_PATH; descriptor and st.  A
                         database root also O_RDWR and O_CREAT.  "" is the directory itself. */
    BK_WIRE_ATTRS,  /* descriptor: a memfd with the attributes (files/attrs.h); data: its length as
                         uint64_t.  No descriptor when there are none. */
    BK_WIRE_CREATE, /* a new file, O_RDWR | O_EXCL, 0600; descriptor */
    BK_WIRE_META,   /* owner, mode, mtime and, with the request's descriptor, attributes */
    BK_WIRE_RENAME, /* name to name2; flags: as of renameat2 */
    BK_WIRE_LINK,   /* name2 becomes a second name of name */
    BK_WIRE_LINK_FROM, /* the same, name is a path relative to the root */
    BK_WIRE_SYMLINK,   /* name becomes a link that leads to name2 (up to BK_WIRE_PATH bytes) */
    BK_WIRE_MKDIR,     /* 0700 */
    BK_WIRE_MKFIFO,    /* 0600 */
    BK_WIRE_UNLINK,    /* flags: 0 or AT_REMOVEDIR */
    BK_WIRE_SYNC,      /* syncfs of the directory's file system */
    BK_WIRE_ALONE      /* of a database: is the request's descriptor all there is of it?  EBUSY:
                          somebody else has it open; EOPNOTSUPP: nobody can tell */
} bk_wire_call_t;

/* Of META: what is to be set. */
#define BK_WIRE_SET_OWNER 1u
#define BK_WIRE_SET_MODE  2u
#define BK_WIRE_SET_MTIME 4u
/* The request carries one descriptor for each such operation, in order; so it does for ALONE. */
#define BK_WIRE_SET_ATTRS 8u
#define BK_WIRE_SET_FRESH 16u /* nothing has to be removed or compared */

/* META: what was left out.  The rest is done. */
#define BK_WIRE_REFUSED_OWNER  (1u << 31) /* the file system did not take it */
#define BK_WIRE_REFUSED_SETUID (1u << 30) /* bits or capabilities: no BK_WIRE_MAY_SETUID */
#define BK_WIRE_REFUSED_ATTRS  0xffffu

/* Of STAT. */
#define BK_WIRE_LINKS 1u

typedef struct {
    uint16_t call;
    uint16_t name_len;
    uint16_t name2_len;
    uint16_t zero;
    uint32_t flags;
    uint32_t mode;
    uint32_t uid, gid;
    int64_t mtime_sec;
    uint32_t mtime_nsec;
    uint32_t set;
} bk_wire_op_t;

typedef struct {
    int32_t error; /* errno, 0: done */
    uint32_t has_fd;
    uint32_t data_len;
    uint32_t refused; /* META: attributes that were not taken, and BK_WIRE_REFUSED_… */
    uint64_t device, inode, size, links;
    int64_t mtime_sec, ctime_sec;
    uint32_t mtime_nsec, ctime_nsec;
    uint32_t mode, uid, gid, zero;
    uint64_t blocks; /* of 512 bytes */
} bk_wire_result_t;

typedef enum {
    BK_WIRE_DIRTY = 1, /* the directory path changed: a name in it came, went or has new content or
                          metadata */
    BK_WIRE_TREE,      /* the same for it and everything below */
    BK_WIRE_LOST,      /* events of this root were lost: everything may have changed */
    BK_WIRE_WATCHED,   /* from here on nothing is missed (the first scan is done); path is empty */
    BK_WIRE_LIMIT,     /* no more watches are to be had: below path nothing is watched */
    BK_WIRE_DATA,      /* a database root: its -wal or the database was written */
    BK_WIRE_MOUNT      /* path is a mount point: it and what is below are not watched */
} bk_wire_kind_t;

typedef struct {
    uint32_t root;
    uint16_t kind;
    uint16_t len;  /* of path, relative to the root */
    int32_t error; /* LIMIT: the errno of why; else 0 */
} bk_wire_event_t;

#endif
