/*
 * files/walk.h: what the parts of a file backup share (private to src/files).
 *
 *   backup.c     lane 0: walks directories, hands names to the lanes in batches
 *   batch.c      any lane: looks at names, fills slots
 *   reading.c    the same lane: reads those files that are not as they were
 *   assemble.c   whichever lane finishes a segment: slots into tree nodes, upwards
 *   reuse.c      what is taken over from the previous tree without a look at the file system
 *
 * A frame is a directory at work.  Its names are cut into segments; a segment has one slot a name,
 * and counts what is unfinished in it: the listing itself, batches, files of their own, and child
 * directories.  Whoever brings that count to zero builds the segment, in order, and when it was the
 * last one the directory, and then counts down in the parent.  So nobody waits for anybody.
 */
#ifndef BK_FILES_WALK_H
#define BK_FILES_WALK_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

#include "files/attrs.h"
#include "files/backup.h"
#include "files/content.h"
#include "files/listing.h"
#include "files/looking.h"

#define BK_SEGMENT_MAX 4096u
/* Temporaries of a restore; never part of a backup. */
#define BK_FILES_TEMPORARY ".ngx-backup-"

typedef struct bk_frame_s bk_frame_t;
typedef struct bk_segment_s bk_segment_t;

/* A directory's descriptor, closed by its last user. */
typedef struct {
    atomic_uint users;
    int fd;
} bk_handle_t;

typedef struct {
    bk_entry_t entry; /* its name points into the frame's */
    void *owned;      /* memory that entry points into */
    bool present;     /* goes into the tree */
    bool directory;   /* lane 0 takes care of it */
    bool known;       /* directory: entry.child is the node in the previous tree */
    bool taken;       /* as it was before: nobody looks at it */
} bk_slot_t;

struct bk_segment_s {
    bk_frame_t *frame;
    bk_segment_t *next;
    size_t first, count; /* names of the frame */
    atomic_size_t pending;
    bool done; /* under the walk's lock */
    bk_slot_t slots[];
};

/* How a directory is gone through. */
typedef enum {
    BK_FRAME_WALK, /* list it and everything below */
    BK_FRAME_LIST, /* list it; below, only what is said to have changed */
    BK_FRAME_TAKE  /* take it over; below, only what is said to have changed */
} bk_how_t;

struct bk_frame_s {
    bk_how_t how;
    const bk_dirnode_t *dirty; /* its place in the set of changes; LIST and TAKE */
    bk_tree_iter_t *before;    /* TAKE: where in the previous tree its next entry is */
    bk_segment_t *parent;      /* NULL: the root of the tree */
    bk_slot_t *slot;           /* in parent */
    char *path;                /* below the root; "" is the root */
    size_t path_len;
    bk_listing_t names;
    uint64_t device, inode;
    bk_id_t previous; /* node of the previous tree */
    bool has_previous;
    bool selected; /* a pattern for directories took all of it */

    bk_segment_t *segments; /* to be built, in order; under the walk's lock, like what follows */
    bk_segment_t **tail;
    bool building, closed;
    bk_tree_builder_t *builder; /* of whoever is building */
    bk_frame_t *live_next, **live_link;
};

/* A file so large that its chunks are stored by all lanes: lane 0 reads it. */
typedef struct bk_large_s {
    struct bk_large_s *next;
    bk_segment_t *segment;
    bk_slot_t *slot;
    bk_handle_t *handle;
} bk_large_t;

typedef struct {
    bk_session_t *session;
    const bk_files_options_t *options;
    bk_team_t *team;
    bk_ctl_t *ctl;
    bk_looker_t looker;
    bk_names_t *names;
    bk_inode_t *skip;    /* sorted */
    struct stat root;    /* of the tree's directory, as it was at the beginning */
    uint64_t device;     /* of the root */
    int64_t started;     /* ns */
    bk_group_t group;    /* every work of this backup */
    atomic_size_t slots; /* alive */
    _Atomic int64_t current_due;
    bool since;                  /* only what changed is listed */
    atomic_bool redo;            /* that does not do: walk */
    atomic_uint_fast64_t listed; /* directories */
    struct bk_linked_s *linked;  /* inodes with several names, by hash; under the lock */
    size_t linked_size, linked_count;

    pthread_mutex_t lock; /* guards what follows, and frames as said there */
    bk_files_stats_t stats;
    json_t *unreadable;
    bool lost_noted;
    bool denied_noted;
    bool special_noted[3]; /* sockets, character devices, block devices */
    struct {
        bk_reader_t *items[64];
        size_t count;
    } readers;
    bk_large_t *large;
    bk_frame_t *live;
    bk_id_t root_id;
    uint64_t root_entries;
    bool finished;
} bk_walk_t;

/* A file that is going to be read, as it was when its status was asked for. */
typedef struct {
    bk_slot_t *slot;
    struct stat st;
    bk_entry_t before;   /* the previous backup's file of that name; what it points to is gone */
    bool known;          /* there is one */
    bool ready;          /* file is filled in */
    bk_view_file_t file; /* open since the helper was asked for others, or why not */
} bk_read_t;

/* What one work needs on the way; counters go to the walk at its end. */
typedef struct {
    bk_walk_t *walk;
    bk_segment_t *segment;
    bk_handle_t *handle;
    bk_view_t view;
    bk_reader_t *reader;
    bk_buf_t attrs;
    bk_files_stats_t stats;
    bool alone; /* read what is large here and now */
    bk_team_t *spread;
    char path[PATH_MAX];
    size_t path_len;
    bk_read_t reads[BK_VIEW_OPEN];
    size_t read_count;
} bk_names_work_t;

void bk_handle_release(bk_handle_t *handle); /* NULL is fine */

/* assemble.c */
void bk_frame_free(bk_walk_t *walk, bk_frame_t *frame);
/* A new segment at the frame's end with pending 1; last: there will be none after it. */
bk_segment_t *bk_segment_new(bk_walk_t *walk, bk_frame_t *frame, size_t first, size_t count,
                             bool last);
/* One thing less to wait for. */
bk_rc_t bk_segment_finish_one(bk_walk_t *walk, bk_segment_t *segment, bk_err_t *err);

/* batch.c */
/* Works that look at the names [first, first + count) of the segment that are not directories. */
bk_rc_t bk_batch_submit(bk_walk_t *walk, bk_segment_t *segment, bk_handle_t *handle, size_t first,
                        size_t count, bk_err_t *err);
/* Lane 0: read the large files found so far. */
bk_rc_t bk_batch_large(bk_walk_t *walk, bk_err_t *err);
/* Owner, mode, times of st into entry. */
void bk_entry_from_stat(bk_walk_t *walk, bk_entry_t *entry, uint8_t type, const struct stat *st);
/* Store the attributes that out holds and name them in the entry. */
bk_rc_t bk_entry_put_attrs(bk_walk_t *walk, bk_entry_t *entry, const bk_buf_t *blob, bk_err_t *err);
bool bk_walk_skips(const bk_walk_t *walk, const struct stat *st);
/*
 * List what could not be read; rel below the tree's root.  Fails when the helper is gone: then
 * nobody knows whether it can be read.
 */
bk_rc_t bk_walk_unreadable(bk_walk_t *walk, const char *rel, int errnum, const char *operation,
                           bk_err_t *err);
/* rel of a name in a frame, into out (PATH_MAX bytes).  False when it is too long. */
bool bk_walk_path(const bk_frame_t *frame, const char *name, char *out, size_t *len);
/* The directory with this entry has to be looked at by the next backup in any case. */
void bk_walk_again(bk_walk_t *walk, const bk_frame_t *frame);
/* A directory of the previous backup is damaged: said once, and the files are read. */
void bk_walk_lost_previous(bk_walk_t *walk, const bk_frame_t *frame, const bk_err_t *why);

/* reading.c */
/* Read the file of a slot, now or with others of the same work. */
bk_rc_t bk_reading_add(bk_names_work_t *work, bk_slot_t *slot, const struct stat *st,
                       const bk_entry_t *before, bk_err_t *err);
bk_rc_t bk_reading_flush(bk_names_work_t *work, bk_err_t *err);
/* Close what was opened and not read. */
void bk_reading_drop(bk_names_work_t *work);
void bk_reading_give_reader(bk_walk_t *walk, bk_reader_t *reader); /* NULL is fine */
void bk_reading_count(bk_names_work_t *work, const bk_slot_t *slot, bool before, bool unchanged);

/* reuse.c */
bk_rc_t bk_reuse_entry(bk_slot_t *slot, const bk_entry_t *before, bk_err_t *err);
/* The next segment of a frame that is taken over: slots from the previous tree. */
bk_rc_t bk_reuse_segment(bk_walk_t *walk, bk_segment_t *segment, bk_err_t *err);
/* What cannot be judged without a walk: BK_CHANGED, and redo is set. */
bk_rc_t bk_reuse_give_up(bk_walk_t *walk, bk_err_t *err);
/* A name of an inode that has others.  before: the entry of that name in the previous tree. */
bk_rc_t bk_reuse_linked(bk_walk_t *walk, const bk_frame_t *frame, const struct stat *st,
                        const bk_entry_t *before, bk_err_t *err);
/* Was every name seen of those that may be in the tree? */
bool bk_reuse_links_complete(const bk_walk_t *walk);

#endif
