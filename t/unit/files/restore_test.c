/*
 * t/unit/files/restore_test.c: restoring over what is there: policies, selection, dry runs, hostile targets and repositories,
 * damage, kill -9.
 */
#include "files_testing.h"

#include <signal.h>

static world_t *world(void **state)
{
    return *state;
}

static void make_dirs(const char *a, const char *b)
{
    assert_true(mkdir(a, 0755) == 0 || errno == EEXIST);
    if (b != NULL)
        assert_true(mkdir(b, 0755) == 0 || errno == EEXIST);
}

typedef struct {
    const char *dir;
    FILE *text;
} picture_t;

static void picture_one(void *arg, const char *path, const struct stat *st)
{
    const picture_t *p = arg;
    char link[300] = "";
    if (S_ISLNK(st->st_mode))
        assert_true(readlink(path, link, sizeof link - 1) > 0);
    fprintf(p->text, "%s %o %ld.%09ld %ld.%09ld %lld %s %lu\n", path + strlen(p->dir), st->st_mode,
            st->st_mtim.tv_sec, st->st_mtim.tv_nsec, st->st_ctim.tv_sec, st->st_ctim.tv_nsec,
            (long long)st->st_size, link, (unsigned long)st->st_ino);
}

/*
 * The text of a whole tree: names, kinds and modes, times, sizes, link texts, inode numbers.  In
 * the order of its directories, which is another when something was changed.
 */
static char *picture(const char *dir)
{
    size_t size = 0;
    char *text = NULL;
    struct stat st;
    picture_t p = {dir, open_memstream(&text, &size)};
    assert_non_null(p.text);
    assert_int_equal(lstat(dir, &st), 0);
    picture_one(&p, dir, &st);
    test_visit(dir, picture_one, &p);
    fclose(p.text);
    return text;
}

/* --- policies --- */

typedef enum {
    FILE_OLDER,
    FILE_NEWER,
    FILE_SAME,
    LINK,
    PIPE,
    DIR_EMPTY,
    DIR_FULL,
    NOTHING
} there_t;

static void put_there(world_t *w, there_t what)
{
    make_dirs(w->target, NULL);
    switch (what) {
    case FILE_OLDER:
    case FILE_NEWER:
        put_text(out(w, "name"), "there");
        set_mtime(out(w, "name"), what == FILE_OLDER ? 1000 : 3000000000, 0);
        break;
    case FILE_SAME:
        put_text(out(w, "name"), "backup");
        set_mtime(out(w, "name"), 5, 0);
        break;
    case LINK:
        assert_int_equal(symlink("elsewhere", out(w, "name")), 0);
        set_mtime(out(w, "name"), 1000, 0);
        break;
    case PIPE:
        assert_int_equal(mkfifo(out(w, "name"), 0600), 0);
        set_mtime(out(w, "name"), 1000, 0);
        break;
    case DIR_FULL:
        make_dirs(out(w, "name"), NULL);
        put_text(out(w, "name/inside"), "there");
        set_mtime(out(w, "name"), 1000, 0);
        break;
    case DIR_EMPTY:
        make_dirs(out(w, "name"), NULL);
        set_mtime(out(w, "name"), 1000, 0);
        break;
    case NOTHING:
        break;
    }
}

typedef struct {
    there_t there;
    bk_overwrite_t policy;
    const char *action; /* of the plan */
    bool restored;      /* the backup's file has the name in the end */
    bool aside;         /* what was there is at name.before-job */
} policy_t;

static const policy_t policies[] = {
    {NOTHING, BK_OVERWRITE_ALWAYS, "create", true, false},
    {NOTHING, BK_OVERWRITE_IF_NEWER, "create", true, false},
    {NOTHING, BK_OVERWRITE_NEVER, "create", true, false},
    {NOTHING, BK_OVERWRITE_RENAME, "create", true, false},
    {FILE_OLDER, BK_OVERWRITE_ALWAYS, "replace", true, false},
    {FILE_OLDER, BK_OVERWRITE_IF_NEWER, "replace", true, false},
    {FILE_OLDER, BK_OVERWRITE_NEVER, "skip", false, false},
    {FILE_OLDER, BK_OVERWRITE_RENAME, "rename", true, true},
    {FILE_NEWER, BK_OVERWRITE_ALWAYS, "replace", true, false},
    {FILE_NEWER, BK_OVERWRITE_IF_NEWER, "skip", false, false},
    {FILE_NEWER, BK_OVERWRITE_NEVER, "skip", false, false},
    {FILE_NEWER, BK_OVERWRITE_RENAME, "rename", true, true},
    {FILE_SAME, BK_OVERWRITE_ALWAYS, "unchanged", true, false},
    {FILE_SAME, BK_OVERWRITE_IF_NEWER, "unchanged", true, false},
    {FILE_SAME, BK_OVERWRITE_NEVER, "skip", true, false},
    {FILE_SAME, BK_OVERWRITE_RENAME, "unchanged", true, false},
    {LINK, BK_OVERWRITE_ALWAYS, "replace", true, false},
    {LINK, BK_OVERWRITE_IF_NEWER, "replace", true, false},
    {LINK, BK_OVERWRITE_NEVER, "skip", false, false},
    {LINK, BK_OVERWRITE_RENAME, "rename", true, true},
    {PIPE, BK_OVERWRITE_ALWAYS, "replace", true, false},
    {PIPE, BK_OVERWRITE_NEVER, "skip", false, false},
    {PIPE, BK_OVERWRITE_RENAME, "rename", true, true},
    {DIR_EMPTY, BK_OVERWRITE_ALWAYS, "rename", true, true},
    {DIR_FULL, BK_OVERWRITE_ALWAYS, "rename", true, true},
    {DIR_FULL, BK_OVERWRITE_IF_NEWER, "rename", true, true},
    {DIR_FULL, BK_OVERWRITE_NEVER, "skip", false, false},
    {DIR_FULL, BK_OVERWRITE_RENAME, "rename", true, true},
};

static void try_policy(world_t *w, const policy_t *p, size_t row)
{
    char aside[64];
    struct stat st;
    OK(bk_remove_tree(w->target, true, &w->err), &w->err);
    put_there(w, p->there);
    make_dirs(w->target, NULL);
    w->restore.overwrite = p->policy;
    w->restore.dry_run = true;
    char *before = picture(w->target);
    run_restore(w);
    char *after = picture(w->target);
    if (strcmp(before, after) != 0)
        fail_msg("row %zu: the dry run changed something", row);
    free(before);
    free(after);
    bk_restore_stats_t dry = w->restored;
    if (strcmp(planned(w, "name"), p->action) != 0)
        fail_msg("row %zu: planned '%s' instead of '%s'", row, planned(w, "name"), p->action);
    w->restore.dry_run = false;
    run_restore(w);
    if (strcmp(planned(w, "name"), p->action) != 0)
        fail_msg("row %zu: did '%s' instead of '%s'", row, planned(w, "name"), p->action);
    assert_int_equal(dry.written, w->restored.written);
    assert_int_equal(dry.skipped, w->restored.skipped);
    assert_int_equal(dry.unchanged, w->restored.unchanged);
    assert_int_equal(dry.renamed, w->restored.renamed);
    bool regular = lstat(out(w, "name"), &st) == 0 && S_ISREG(st.st_mode);
    size_t len = 0;
    char *text = regular ? get_bytes(out(w, "name"), &len) : NULL;
    if ((text != NULL && strcmp(text, "backup") == 0) != p->restored)
        fail_msg("row %zu: the file is %s", row, p->restored ? "not restored" : "replaced");
    free(text);
    if (p->restored && p->policy != BK_OVERWRITE_NEVER)
        assert_int_equal(st.st_mtim.tv_sec, 2000);
    snprintf(aside, sizeof aside, "name.before-job%u", w->jobs);
    if (exists(out(w, aside)) != p->aside)
        fail_msg("row %zu: %s", row, p->aside ? "nothing was moved aside" : "moved aside");
    if (p->aside && p->there == DIR_FULL) {
        snprintf(aside, sizeof aside, "name.before-job%u/inside", w->jobs);
        assert_text(out(w, aside), "there");
    } else if (p->aside && (p->there == FILE_OLDER || p->there == FILE_NEWER)) {
        assert_text(out(w, aside), "there");
    }
    assert_int_equal(count_leftovers(w->target), 0);
}

static void a_file_meets_each_kind_of_thing_under_each_policy(void **state)
{
    world_t *w = world(state);
    put_text(at(w, "name"), "backup");
    set_mtime(at(w, "name"), 2000, 0);
    run_backup(w);
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
        try_policy(w, &policies[i], i);
}

static void a_directory_meets_something_else_under_each_policy(void **state)
{
    world_t *w = world(state);
    static const struct {
        there_t there;
        bk_overwrite_t policy;
        bool restored, aside;
    } rows[] = {
        {FILE_OLDER, BK_OVERWRITE_ALWAYS, true, false},
        {FILE_OLDER, BK_OVERWRITE_IF_NEWER, true, false},
        {FILE_NEWER, BK_OVERWRITE_IF_NEWER, false, false},
        {FILE_OLDER, BK_OVERWRITE_NEVER, false, false},
        {FILE_OLDER, BK_OVERWRITE_RENAME, true, true},
        {LINK, BK_OVERWRITE_ALWAYS, true, false},
        {LINK, BK_OVERWRITE_NEVER, false, false},
        {LINK, BK_OVERWRITE_RENAME, true, true},
        {DIR_FULL, BK_OVERWRITE_NEVER, true, false},
    };
    char aside[64];
    make_dirs(at(w, "name"), at(w, "name/sub"));
    put_text(at(w, "name/sub/file"), "backup");
    set_mtime(at(w, "name/sub"), 2000, 0);
    set_mtime(at(w, "name"), 2000, 0);
    run_backup(w);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        OK(bk_remove_tree(w->target, true, &w->err), &w->err);
        put_there(w, rows[i].there);
        w->restore.overwrite = rows[i].policy;
        run_restore(w);
        if (exists(out(w, "name/sub/file")) != rows[i].restored)
            fail_msg("row %zu", i);
        snprintf(aside, sizeof aside, "name.before-job%u", w->jobs);
        if (exists(out(w, aside)) != rows[i].aside)
            fail_msg("row %zu: aside", i);
    }
}

static void what_is_right_already_is_not_rewritten(void **state)
{
    world_t *w = world(state);
    struct stat before, after;
    make_dirs(at(w, "d"), NULL);
    put_random(at(w, "d/large"), 3 << 20, 1);
    put_text(at(w, "small"), "x");
    assert_int_equal(symlink("x", at(w, "link")), 0);
    round_trip(w);
    assert_int_equal(stat(out(w, "d/large"), &before), 0);
    /* Metadata that differ are set right without touching the content. */
    assert_int_equal(chmod(out(w, "d/large"), 0600), 0);
    set_mtime(out(w, "d/large"), 5, 5);
    run_restore(w);
    assert_int_equal(w->restored.unchanged, 2);
    assert_int_equal(w->restored.written, 0);
    assert_int_equal(stat(out(w, "d/large"), &after), 0);
    assert_true(before.st_ino == after.st_ino && after.st_mode == before.st_mode);
    assert_int_equal(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
    /* One changed byte is found, although size and time are right. */
    int fd = open(out(w, "d/large"), O_WRONLY);
    assert_int_equal(pwrite(fd, "!", 1, 2 << 20), 1);
    close(fd);
    set_mtime(out(w, "d/large"), before.st_mtim.tv_sec, before.st_mtim.tv_nsec);
    run_restore(w);
    assert_int_equal(w->restored.written, 1);
    assert_same_content(at(w, "d/large"), out(w, "d/large"));
}

/* --- selection --- */

static void make_selection(world_t *w)
{
    make_dirs(at(w, "2024"), at(w, "2025"));
    make_dirs(at(w, "2025/10"), at(w, "2025/11"));
    make_dirs(at(w, "2025/empty"), NULL);
    put_text(at(w, "2024/a.wav"), "a");
    put_text(at(w, "2025/10/b.wav"), "b");
    put_text(at(w, "2025/10/b.txt"), "b");
    put_text(at(w, "2025/11/c.wav"), "c");
    put_text(at(w, "root.wav"), "r");
    assert_int_equal(chmod(at(w, "2025"), 0711), 0);
    run_backup(w);
}

static void paths_select_files_and_whole_directories(void **state)
{
    world_t *w = world(state);
    const char *paths[] = {"2025/10/", "/root.wav"};
    struct stat st;
    make_selection(w);
    w->restore.paths = paths;
    w->restore.path_count = 2;
    run_restore(w);
    assert_int_equal(w->restored.files, 3);
    assert_true(exists(out(w, "2025/10/b.wav")) && exists(out(w, "2025/10/b.txt")));
    assert_true(exists(out(w, "root.wav")));
    assert_false(exists(out(w, "2025/11")) || exists(out(w, "2024")) ||
                 exists(out(w, "2025/empty")));
    /* The way there gets its own mode. */
    assert_int_equal(stat(out(w, "2025"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0711);
    paths[0] = "2025/1";
    w->restore.path_count = 1;
    OK(bk_remove_tree(w->target, true, &w->err), &w->err);
    run_restore(w);
    assert_int_equal(w->restored.files, 0);
    assert_false(exists(out(w, "2025")));
}

static void patterns_select_files_and_bring_their_directories(void **state)
{
    world_t *w = world(state);
    bk_patterns_t patterns = {0};
    make_selection(w);
    OK(bk_patterns_add(&patterns, "*.wav", &w->err), &w->err);
    w->restore.patterns = &patterns;
    run_restore(w);
    assert_int_equal(w->restored.files, 4);
    assert_true(exists(out(w, "2025/10/b.wav")));
    assert_false(exists(out(w, "2025/10/b.txt")) || exists(out(w, "2025/empty")));
    bk_patterns_free(&patterns);
    OK(bk_patterns_add(&patterns, "2025/", &w->err), &w->err);
    OK(bk_remove_tree(w->target, true, &w->err), &w->err);
    run_restore(w);
    assert_int_equal(w->restored.files, 3);
    assert_true(exists(out(w, "2025/10/b.txt")) && exists(out(w, "2025/empty")));
    assert_false(exists(out(w, "root.wav")));
    bk_patterns_free(&patterns);
}

static void a_subdirectory_of_the_target_is_made(void **state)
{
    world_t *w = world(state);
    struct stat st;
    put_text(at(w, "file"), "x");
    assert_int_equal(chmod(w->source, 0750), 0);
    run_backup(w);
    w->restore.subdir = "some/where/deep";
    run_restore(w);
    assert_text(out(w, "some/where/deep/file"), "x");
    assert_int_equal(stat(out(w, "some/where/deep"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0750); /* of the tree's own directory */
    /* What is there is the operator's. */
    assert_int_equal(chmod(out(w, "some/where/deep"), 0701), 0);
    run_restore(w);
    assert_int_equal(stat(out(w, "some/where/deep"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0701);
    w->restore.subdir = "../outside";
    assert_int_not_equal(try_restore(w), BK_OK);
    assert_false(exists(out(w, "../outside")));
}

/* --- removing what is too much --- */

static void extras_go_only_when_asked_and_only_what_may_go(void **state)
{
    world_t *w = world(state);
    bk_patterns_t keep = {0}, keep_match = {0};
    struct stat st;
    make_dirs(at(w, "d"), at(w, "m"));
    put_text(at(w, "d/file"), "x");
    put_text(at(w, "m/file.txt"), "x");
    make_dirs(at(w, "cache"), NULL);
    put_text(at(w, "cache/CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55");
    round_trip(w);
    put_text(out(w, "extra"), "x");
    put_text(out(w, "d/extra"), "x");
    put_text(out(w, "d/a.tmp"), "x");
    put_text(out(w, "d/app.db"), "x");
    put_text(out(w, "m/not matched.bin"), "x");
    put_text(out(w, "cache/entry"), "x");
    make_dirs(out(w, "d/tree"), out(w, "d/tree/sub"));
    put_text(out(w, "d/tree/sub/x"), "x");
    make_dirs(out(w, "d/holds"), NULL);
    put_text(out(w, "d/holds/keep.tmp"), "x");
    put_text(out(w, "d/holds/goes"), "x");
    assert_int_equal(symlink(w->source, out(w, "d/to source")), 0);
    run_restore(w);
    assert_true(exists(out(w, "extra")) && exists(out(w, "d/tree/sub/x")));
    assert_int_equal(w->restored.deleted, 0);

    OK(bk_patterns_add(&keep, "*.tmp", &w->err), &w->err);
    OK(bk_patterns_add(&keep_match, "d/", &w->err), &w->err);
    OK(bk_patterns_add(&keep_match, "*.txt", &w->err), &w->err);
    OK(bk_patterns_add(&keep_match, "extra", &w->err), &w->err);
    assert_int_equal(stat(out(w, "d/app.db"), &st), 0);
    bk_inode_t skip = {st.st_dev, st.st_ino};
    w->restore.keep = &keep;
    w->restore.keep_match = &keep_match;
    w->restore.skip = &skip;
    w->restore.skip_count = 1;
    w->restore.delete_extra = true;
    w->restore.dry_run = true;
    char *before = picture(w->target);
    run_restore(w);
    char *after = picture(w->target);
    assert_string_equal(before, after);
    free(before);
    free(after);
    bk_restore_stats_t dry = w->restored;
    assert_string_equal(planned(w, "extra"), "delete");
    assert_string_equal(planned(w, "d/tree"), "delete");
    assert_string_equal(planned(w, "d/a.tmp"), "");
    w->restore.dry_run = false;
    run_restore(w);
    assert_int_equal(w->restored.deleted, dry.deleted);
    assert_int_equal(w->restored.deleted, 7); /* two extras, tree 3, goes, the link */
    assert_false(exists(out(w, "extra")) || exists(out(w, "d/extra")) || exists(out(w, "d/tree")) ||
                 exists(out(w, "d/to source")) || exists(out(w, "d/holds/goes")));
    assert_true(exists(out(w, "d/a.tmp")) && exists(out(w, "d/app.db")) &&
                exists(out(w, "d/holds/keep.tmp")) && exists(out(w, "m/not matched.bin")) &&
                exists(out(w, "cache/entry")));
    assert_true(exists(at(w, "d/file")));
    bk_patterns_free(&keep);
    bk_patterns_free(&keep_match);
}

static void extras_outside_of_what_was_selected_stay(void **state)
{
    world_t *w = world(state);
    const char *paths[] = {"a"};
    make_dirs(at(w, "a"), at(w, "b"));
    put_text(at(w, "a/x"), "x");
    put_text(at(w, "b/x"), "x");
    round_trip(w);
    put_text(out(w, "extra"), "x");
    put_text(out(w, "a/extra"), "x");
    put_text(out(w, "b/extra"), "x");
    w->restore.paths = paths;
    w->restore.path_count = 1;
    w->restore.delete_extra = true;
    run_restore(w);
    assert_false(exists(out(w, "a/extra")));
    assert_true(exists(out(w, "extra")) && exists(out(w, "b/extra")));
}

/* --- hostile targets and repositories --- */

static void a_planted_link_leads_nowhere(void **state)
{
    world_t *w = world(state);
    char outside[320], path[400];
    snprintf(outside, sizeof outside, "%s/outside", w->dir);
    make_dirs(outside, at(w, "d"));
    make_dirs(at(w, "d/sub"), NULL);
    put_text(at(w, "d/file"), "new");
    put_text(at(w, "d/sub/file"), "new");
    run_backup(w);
    snprintf(path, sizeof path, "%s/file", outside);
    put_text(path, "precious");
    /* A directory that is a link: replaced, or left; in no case followed. */
    for (bk_overwrite_t policy = BK_OVERWRITE_ALWAYS; policy <= BK_OVERWRITE_RENAME; policy++) {
        OK(bk_remove_tree(w->target, true, &w->err), &w->err);
        make_dirs(w->target, NULL);
        assert_int_equal(symlink(outside, out(w, "d")), 0);
        w->restore.overwrite = policy;
        w->restore.delete_extra = policy == BK_OVERWRITE_ALWAYS;
        run_restore(w);
        assert_text(path, "precious");
        snprintf(path, sizeof path, "%s/sub", outside);
        assert_false(exists(path));
        snprintf(path, sizeof path, "%s/file", outside);
    }
    /* A file that is a link: its target stays as it was. */
    OK(bk_remove_tree(w->target, true, &w->err), &w->err);
    make_dirs(w->target, out(w, "d"));
    assert_int_equal(symlink(path, out(w, "d/file")), 0);
    w->restore.overwrite = BK_OVERWRITE_ALWAYS;
    run_restore(w);
    assert_text(path, "precious");
    assert_text(out(w, "d/file"), "new");
    /* The way to the subdirectory. */
    assert_int_equal(symlink(outside, out(w, "way")), 0);
    w->restore.subdir = "way/there";
    assert_int_not_equal(try_restore(w), BK_OK);
    snprintf(path, sizeof path, "%s/there", outside);
    assert_false(exists(path));
}

/* Commits a tree made by hand; the root has the entries that make adds. */
static void forge(world_t *w, void (*make)(world_t *w, bk_session_t *session, bk_id_t *root))
{
    bk_session_options_t how = {.host = "test", .compression = {BK_CODEC_ZSTD, 1}, .upload = true};
    bk_session_t *session = NULL;
    char id[BK_BACKUP_ID];
    OK(bk_session_begin(w->repo, &how, NULL, &session, &w->err), &w->err);
    make(w, session, &w->tree.root);
    snprintf(id, sizeof id, "full_20250101_000000_%u", ++w->backups + 1);
    OK(bk_session_commit(session, id, "{}", 2, &w->err), &w->err);
}

static bk_entry_t entry_of(const char *name, uint8_t type)
{
    return (bk_entry_t){.name = (const uint8_t *)name,
                        .name_len = (uint16_t)strlen(name),
                        .type = type,
                        .mode = 0644,
                        .user = "",
                        .group = "",
                        .links = 1};
}

static void make_escape(world_t *w, bk_session_t *session, bk_id_t *root)
{
    bk_buf_t node;
    bk_entry_t entry = entry_of("xx", BK_ENTRY_LINK);
    entry.target = (const uint8_t *)"/etc";
    entry.target_len = 4;
    bk_buf_init(&node, 4096);
    bk_buf_u8(&node, 1);
    bk_buf_u8(&node, 1);
    bk_buf_u32(&node, 1);
    bk_entry_encode(&entry, &node);
    memcpy(node.data + 8, "..", 2); /* behind the header and the length */
    OK(bk_session_put(session, BK_TYPE_TREE, false, node.data, node.len, root, &w->err), &w->err);
    bk_buf_free(&node);
}

static void a_forged_name_is_refused(void **state)
{
    world_t *w = world(state);
    forge(w, make_escape);
    bk_rc_t rc = try_restore(w);
    assert_true(rc == BK_CORRUPT || w->restored.failed > 0);
    assert_int_equal(w->restored.links, 0);
}

static void make_wrong_files(world_t *w, bk_session_t *session, bk_id_t *root)
{
    uint64_t entries;
    bk_chunk_ref_t ref[2] = {{.raw = 5}, {.raw = 5}};
    bk_buf_t blob;
    bk_tree_builder_t *builder = bk_tree_builder_new(session);
    OK(bk_session_put(session, BK_TYPE_FILE, false, "12345", 5, &ref[0].id, &w->err), &w->err);
    ref[1].id = ref[0].id;
    bk_map_t map;
    bk_map_builder_t *list = bk_map_builder_new(session);
    OK(bk_map_builder_add(list, &ref[0], &w->err), &w->err);
    OK(bk_map_builder_add(list, &ref[1], &w->err), &w->err);
    OK(bk_map_builder_finish(list, &map, &w->err), &w->err);
    bk_map_builder_free(list);
    bk_entry_t entry = entry_of("a longer than its size", BK_ENTRY_FILE);
    entry.flags = BK_ENTRY_MAP;
    entry.map = map.root;
    entry.map_count = map.count;
    entry.map_depth = map.depth;
    entry.size = 7;
    OK(bk_tree_builder_add(builder, &entry, &w->err), &w->err);
    entry.name = (const uint8_t *)"b shorter ............";
    entry.size = 12;
    OK(bk_tree_builder_add(builder, &entry, &w->err), &w->err);
    /* Extents that overlap. */
    bk_buf_init(&blob, 4096);
    bk_buf_u32(&blob, 2);
    for (unsigned i = 0; i < 2; i++) {
        bk_buf_u64(&blob, 3);
        bk_buf_u64(&blob, 5);
    }
    entry.name = (const uint8_t *)"c overlapping ........";
    entry.flags = BK_ENTRY_CHUNKS | BK_ENTRY_EXTENTS;
    entry.chunks = ref;
    entry.chunk_count = 2;
    entry.data_bytes = 10;
    OK(bk_session_put(session, BK_TYPE_BLOB, false, blob.data, blob.len, &entry.extents, &w->err),
       &w->err);
    bk_buf_free(&blob);
    OK(bk_tree_builder_add(builder, &entry, &w->err), &w->err);
    /* A chunk that is nowhere. */
    entry = entry_of("d lost", BK_ENTRY_FILE);
    ref[1].id.b[0] ^= 1;
    entry.flags = BK_ENTRY_CHUNKS;
    entry.chunks = ref;
    entry.chunk_count = 2;
    entry.size = 10;
    OK(bk_tree_builder_add(builder, &entry, &w->err), &w->err);
    entry = entry_of("e attributes that are nowhere", BK_ENTRY_FILE);
    entry.flags = BK_ENTRY_ATTRS;
    OK(bk_tree_builder_add(builder, &entry, &w->err), &w->err);
    entry = entry_of("f right", BK_ENTRY_FILE);
    entry.flags = BK_ENTRY_CHUNKS;
    entry.chunks = ref;
    entry.chunk_count = 1;
    entry.size = 5;
    OK(bk_tree_builder_add(builder, &entry, &w->err), &w->err);
    OK(bk_tree_builder_finish(builder, root, &entries, &w->err), &w->err);
    bk_tree_builder_free(builder);
}

static void files_that_do_not_add_up_fail_and_the_rest_comes_back(void **state)
{
    world_t *w = world(state);
    forge(w, make_wrong_files);
    OK(try_restore(w), &w->err);
    assert_int_equal(w->restored.failed, 5);
    assert_int_equal(json_array_size(w->failed), 5);
    assert_int_equal(w->restored.written, 1);
    assert_text(out(w, "f right"), "12345");
    assert_false(exists(out(w, "d lost")));
    assert_int_equal(count_leftovers(w->target), 0);
}

static void make_giant(world_t *w, bk_session_t *session, bk_id_t *root)
{
    uint64_t entries;
    bk_tree_builder_t *builder = bk_tree_builder_new(session);
    bk_entry_t entry = entry_of("giant", BK_ENTRY_FILE);
    entry.flags = BK_ENTRY_MAP;
    entry.map_count = 1 << 20;
    entry.map_depth = 1;
    entry.size = 1ull << 50;
    OK(bk_tree_builder_add(builder, &entry, &w->err), &w->err);
    entry = entry_of("small", BK_ENTRY_FILE);
    OK(bk_tree_builder_add(builder, &entry, &w->err), &w->err);
    OK(bk_tree_builder_finish(builder, root, &entries, &w->err), &w->err);
    bk_tree_builder_free(builder);
}

static void too_little_space_is_told_before_anything_is_written(void **state)
{
    world_t *w = world(state);
    forge(w, make_giant);
    assert_int_equal(try_restore(w), BK_NO_SPACE);
    assert_non_null(strstr(w->err.text, "free"));
    assert_false(exists(out(w, "small")));
}

static void damage_pack(void *arg, const char *path, const struct stat *st)
{
    (void)arg;
    static const char zeros[4096];
    int fd = S_ISREG(st->st_mode) ? open(path, O_WRONLY | O_CLOEXEC) : -1;
    if (fd < 0 && S_ISREG(st->st_mode)) {
        assert_int_equal(chmod(path, 0600), 0);
        fd = open(path, O_WRONLY | O_CLOEXEC);
    }
    for (off_t at = 100; fd >= 0 && at < 100 + st->st_size / 2; at += (off_t)sizeof zeros) {
        off_t left = 100 + st->st_size / 2 - at;
        size_t n = left < (off_t)sizeof zeros ? (size_t)left : sizeof zeros;
        assert_int_equal(pwrite(fd, zeros, n, at), n);
    }
    if (fd >= 0)
        close(fd);
}

/* The first half of what the packs of content hold, behind their headers. */
static void damage_packs(world_t *w)
{
    char dir[700];
    snprintf(dir, sizeof dir, "%s/storage/packs", w->dir);
    test_visit(dir, damage_pack, NULL);
}

static void damaged_chunks_fail_their_files_only(void **state)
{
    world_t *w = world(state);
    put_random(at(w, "large"), 3 << 20, 1);
    put_random(at(w, "middle"), 50000, 2);
    put_text(at(w, "inline"), "whole");
    run_backup(w);
    bk_repo_close(w->repo);
    bk_storage_close(w->storage);
    damage_packs(w);
    world_open_repo(w);
    make_dirs(w->target, NULL);
    put_text(out(w, "large"), "what was there");
    OK(try_restore(w), &w->err);
    assert_true(w->restored.failed >= 1);
    assert_text(out(w, "inline"), "whole");
    assert_text(out(w, "large"), "what was there");
    assert_int_equal(count_leftovers(w->target), 0);
}

static void set_id_bits_come_only_with_their_owner(void **state)
{
    world_t *w = world(state);
    struct stat st;
    if (geteuid() != 0)
        SKIP_TEST();
    put_text(at(w, "tool"), "x");
    assert_int_equal(chmod(at(w, "tool"), 06755), 0);
    run_backup(w);
    w->restore.owners = false;
    run_restore(w);
    assert_int_equal(stat(out(w, "tool"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0755);
}

static void what_is_protected_is_not_replaced(void **state)
{
    world_t *w = world(state);
    struct stat st;
    put_text(at(w, "app.db"), "old");
    put_text(at(w, "file"), "old");
    run_backup(w);
    make_dirs(w->target, NULL);
    put_text(out(w, "app.db"), "live");
    assert_int_equal(stat(out(w, "app.db"), &st), 0);
    bk_inode_t skip = {st.st_dev, st.st_ino};
    w->restore.skip = &skip;
    w->restore.skip_count = 1;
    run_restore(w);
    assert_text(out(w, "app.db"), "live");
    assert_text(out(w, "file"), "old");
    assert_int_equal(w->restored.skipped, 1);
}

/* --- ends --- */

static void a_stop_leaves_no_temporaries(void **state)
{
    world_t *w = world(state);
    put_random(at(w, "large"), 3 << 20, 1);
    run_backup(w);
    bk_ctl_stop(&w->ctl, BK_CANCELED);
    assert_int_equal(try_restore(w), BK_CANCELED);
    assert_int_equal(count_leftovers(w->target), 0);
    atomic_store(&w->ctl.stop, 0);
    run_restore(w);
    assert_same_content(at(w, "large"), out(w, "large"));
}

static void make_many(world_t *w)
{
    char name[64];
    for (unsigned d = 0; d < 10; d++) {
        snprintf(name, sizeof name, "d%u", d);
        make_dirs(at(w, name), NULL);
        for (unsigned f = 0; f < 100; f++) {
            snprintf(name, sizeof name, "d%u/f%u", d, f);
            put_random(at(w, name), f * 100 + (f == 7 ? 2000000 : 0), d * 100 + f);
        }
    }
}

/* Names that are there hold what the backup has; what was there before is whole, too. */
static unsigned check_many(world_t *w, const char *before)
{
    char name[64];
    unsigned restored = 0;
    for (unsigned d = 0; d < 10; d++) {
        for (unsigned f = 0; f < 100; f++) {
            size_t len = 0, want = 0;
            snprintf(name, sizeof name, "d%u/f%u", d, f);
            char *data = get_bytes(out(w, name), &len), *right = get_bytes(at(w, name), &want);
            bool same = data != NULL && len == want && memcmp(data, right, len) == 0;
            bool old = before == NULL ? data == NULL
                                      : data != NULL && len == strlen(before) &&
                                            memcmp(data, before, len) == 0;
            if (!same && !old)
                fail_msg("%s is neither what it was nor what it should be", name);
            restored += same;
            free(data);
            free(right);
        }
    }
    return restored;
}

static void kill_9_leaves_whole_files_or_none(void **state)
{
    world_t *w = world(state);
    uint64_t random = 7;
    char name[64];
    unsigned partly = 0;
    make_many(w);
    run_backup(w);
    for (unsigned round = 0; round < 12; round++) {
        bool in_place = round % 2 == 1;
        int status = 0;
        OK(bk_remove_tree(w->target, true, &w->err), &w->err);
        make_dirs(w->target, NULL);
        for (unsigned i = 0; in_place && i < 1000; i++) {
            snprintf(name, sizeof name, "d%u", i / 100);
            make_dirs(out(w, name), NULL);
            snprintf(name, sizeof name, "d%u/f%u", i / 100, i % 100);
            put_text(out(w, name), "before");
        }
        fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            try_restore(w);
            _exit(0);
        }
        usleep((useconds_t)(test_random(&random) % 120000));
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        unsigned restored = check_many(w, in_place ? "before" : NULL);
        partly += restored < 1000;
        run_restore(w);
        assert_int_equal(check_many(w, NULL), 1000);
    }
    assert_true(partly > 0);
}

static void young_temporaries_of_another_restore_stay(void **state)
{
    world_t *w = world(state);
    put_text(at(w, "file"), "x");
    run_backup(w);
    make_dirs(w->target, NULL);
    put_text(out(w, ".ngx-backup-job0-1"), "young: somebody may be writing it");
    run_restore(w);
    assert_true(exists(out(w, ".ngx-backup-job0-1")));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, world_set_up, world_tear_down)
    const struct CMUnitTest tests[] = {
        T(a_file_meets_each_kind_of_thing_under_each_policy),
        T(a_directory_meets_something_else_under_each_policy),
        T(what_is_right_already_is_not_rewritten),
        T(paths_select_files_and_whole_directories),
        T(patterns_select_files_and_bring_their_directories),
        T(a_subdirectory_of_the_target_is_made),
        T(extras_go_only_when_asked_and_only_what_may_go),
        T(extras_outside_of_what_was_selected_stay),
        T(a_planted_link_leads_nowhere),
        T(a_forged_name_is_refused),
        T(files_that_do_not_add_up_fail_and_the_rest_comes_back),
        T(too_little_space_is_told_before_anything_is_written),
        T(damaged_chunks_fail_their_files_only),
        T(set_id_bits_come_only_with_their_owner),
        T(what_is_protected_is_not_replaced),
        T(a_stop_leaves_no_temporaries),
        T(kill_9_leaves_whole_files_or_none),
        T(young_temporaries_of_another_restore_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
