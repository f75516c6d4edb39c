/*
 * t/unit/files/fidelity_test.c: everything that a file has comes back: one test for each property.
 */
#include "files_testing.h"

#include <pthread.h>

static world_t *world(void **state)
{
    return *state;
}

static void contents_of_every_size_come_back(void **state)
{
    world_t *w = world(state);
    static const size_t sizes[] = {
        0,      1,      1023,    1024,    1025,    4096,          524287,
        524288, 524289, 1048576, 3000000, 8388608, 8388608 + 777, 20 * 1000 * 1000};
    char name[64];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(name, sizeof name, "f%zu", sizes[i]);
        put_random(at(w, name), sizes[i], i + 1);
    }
    round_trip(w);
    assert_int_equal(w->stats.files, sizeof sizes / sizeof *sizes);
    assert_int_equal(w->restored.written, w->stats.files);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(name, sizeof name, "f%zu", sizes[i]);
        assert_same_content(at(w, name), out(w, name));
    }
    assert_int_equal(count_leftovers(w->target), 0);
}

static void large_files_are_spread_over_the_lanes_and_come_back(void **state)
{
    world_t *w = world(state);
    put_random(at(w, "large"), 70u << 20, 5);
    put_random(at(w, "middle"), 5u << 20, 6);
    put_text(at(w, "small"), "s");
    round_trip(w);
    assert_same_content(at(w, "large"), out(w, "large"));
    assert_same_content(at(w, "middle"), out(w, "middle"));
}

static void a_name_may_be_any_bytes(void **state)
{
    world_t *w = world(state);
    static const char *const names[] = {
        "with\nnewline", "\xff\xfe\x80 not utf-8", "-rf", "a b'c\"d", "\x01\x7f", "*",
        "back\\slash",   "\xc3\xa4\xe2\x82\xac"};
    char name[512], longest[256];
    memset(longest, 'x', 255);
    longest[255] = '\0';
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        put_text(at(w, names[i]), names[i]);
        snprintf(name, sizeof name, "dir %s", names[i]);
        assert_int_equal(mkdir(at(w, name), 0755), 0);
        snprintf(name, sizeof name, "dir %s/x", names[i]);
        put_text(at(w, name), "below");
    }
    put_text(at(w, longest), "long");
    round_trip(w);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_text(out(w, names[i]), names[i]);
        snprintf(name, sizeof name, "dir %s/x", names[i]);
        assert_text(out(w, name), "below");
    }
    assert_text(out(w, longest), "long");
}

static void an_empty_directory_and_an_empty_tree_come_back(void **state)
{
    world_t *w = world(state);
    struct stat st;
    run_backup(w);
    assert_int_equal(w->tree.entries, 0);
    run_restore(w);
    assert_int_equal(mkdir(at(w, "empty"), 0751), 0);
    assert_int_equal(mkdir(at(w, "empty/er"), 0700), 0);
    round_trip(w);
    assert_int_equal(w->stats.dirs, 2);
    assert_int_equal(stat(out(w, "empty/er"), &st), 0);
    assert_true(S_ISDIR(st.st_mode));
    assert_int_equal(stat(out(w, "empty"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0751);
}

static void modes_come_back_also_sticky_and_set_id(void **state)
{
    world_t *w = world(state);
    static const mode_t modes[] = {0, 0400, 0644, 0777, 04755, 02755, 01777, 07777};
    char name[32];
    struct stat st;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        snprintf(name, sizeof name, "f%zu", i);
        put_random(at(w, name), i * 1000, i);
        assert_int_equal(chmod(at(w, name), modes[i]), 0);
        snprintf(name, sizeof name, "d%zu", i);
        assert_int_equal(mkdir(at(w, name), 0755), 0);
        snprintf(name, sizeof name, "d%zu/x", i);
        put_text(at(w, name), "x");
        snprintf(name, sizeof name, "d%zu", i);
        assert_int_equal(chmod(at(w, name), modes[i]), 0);
    }
    round_trip(w);
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        snprintf(name, sizeof name, "f%zu", i);
        assert_int_equal(stat(out(w, name), &st), 0);
        assert_int_equal(st.st_mode & 07777, modes[i]);
        snprintf(name, sizeof name, "d%zu", i);
        assert_int_equal(stat(out(w, name), &st), 0);
        assert_int_equal(st.st_mode & 07777, modes[i]);
    }
}

static void times_come_back_to_the_nanosecond(void **state)
{
    world_t *w = world(state);
    struct stat st;
    put_text(at(w, "new"), "x");
    put_random(at(w, "big"), 2000000, 1);
    put_text(at(w, "old"), "x");
    assert_int_equal(mkdir(at(w, "dir"), 0755), 0);
    put_text(at(w, "dir/x"), "x");
    assert_int_equal(symlink("new", at(w, "link")), 0);
    set_mtime(at(w, "new"), 1760000000, 123456789);
    set_mtime(at(w, "big"), 1760000001, 1);
    set_mtime(at(w, "old"), -86400, 999999999); /* before 1970 */
    set_mtime(at(w, "dir"), 1500000000, 5);
    set_mtime(at(w, "link"), 1400000000, 7);
    round_trip(w);
    assert_int_equal(stat(out(w, "new"), &st), 0);
    assert_int_equal(st.st_mtim.tv_sec, 1760000000);
    assert_int_equal(st.st_mtim.tv_nsec, 123456789);
    assert_int_equal(stat(out(w, "big"), &st), 0);
    assert_int_equal(st.st_mtim.tv_nsec, 1);
    assert_int_equal(stat(out(w, "old"), &st), 0);
    assert_int_equal(st.st_mtim.tv_sec, -86400);
    assert_int_equal(st.st_mtim.tv_nsec, 999999999);
    assert_int_equal(stat(out(w, "dir"), &st), 0);
    assert_int_equal(st.st_mtim.tv_sec, 1500000000);
    assert_int_equal(st.st_mtim.tv_nsec, 5);
    assert_int_equal(lstat(out(w, "link"), &st), 0);
    assert_int_equal(st.st_mtim.tv_sec, 1400000000);
    assert_int_equal(st.st_mtim.tv_nsec, 7);
}

static void owners_come_back_by_number_and_by_name(void **state)
{
    world_t *w = world(state);
    struct stat st;
    if (geteuid() != 0)
        SKIP_TEST();
    put_text(at(w, "named"), "x");
    put_text(at(w, "nameless"), "x");
    assert_int_equal(symlink("x", at(w, "link")), 0);
    assert_int_equal(chown(at(w, "named"), 1, 2), 0);
    assert_int_equal(chown(at(w, "nameless"), 54321, 54322), 0);
    assert_int_equal(lchown(at(w, "link"), 54323, 54324), 0);
    assert_int_equal(mkdir(at(w, "dir"), 0755), 0);
    assert_int_equal(chown(at(w, "dir"), 54325, 1), 0);
    round_trip(w);
    assert_int_equal(stat(out(w, "named"), &st), 0);
    assert_true(st.st_uid == 1 && st.st_gid == 2);
    assert_int_equal(stat(out(w, "nameless"), &st), 0);
    assert_true(st.st_uid == 54321 && st.st_gid == 54322);
    assert_int_equal(lstat(out(w, "link"), &st), 0);
    assert_true(st.st_uid == 54323 && st.st_gid == 54324);
    assert_int_equal(stat(out(w, "dir"), &st), 0);
    assert_true(st.st_uid == 54325 && st.st_gid == 1);
}

static void links_keep_their_text_and_are_never_followed(void **state)
{
    world_t *w = world(state);
    char text[4096], target[4001];
    memset(target, 't', 4000);
    target[4000] = '\0';
    assert_int_equal(symlink("/etc/passwd", at(w, "absolute")), 0);
    assert_int_equal(symlink("../../..", at(w, "up")), 0);
    assert_int_equal(symlink("nowhere", at(w, "dangling")), 0);
    assert_int_equal(symlink("a\nb\xff", at(w, "odd")), 0);
    assert_int_equal(symlink(target, at(w, "long")), 0);
    round_trip(w);
    assert_int_equal(w->stats.files, 0);
    assert_int_equal(w->stats.links, 5);
    ssize_t len = readlink(out(w, "absolute"), text, sizeof text);
    assert_true(len == 11 && memcmp(text, "/etc/passwd", 11) == 0);
    len = readlink(out(w, "up"), text, sizeof text);
    assert_true(len == 8 && memcmp(text, "../../..", 8) == 0);
    len = readlink(out(w, "odd"), text, sizeof text);
    assert_true(len == 4 && memcmp(text, "a\nb\xff", 4) == 0);
    len = readlink(out(w, "long"), text, sizeof text);
    assert_true(len == 4000);
    assert_true(exists(out(w, "dangling")));
}

static void hard_links_are_links_again(void **state)
{
    world_t *w = world(state);
    struct stat a, b, c, d;
    assert_int_equal(mkdir(at(w, "z"), 0755), 0);
    put_random(at(w, "one"), 3000000, 1);
    assert_int_equal(link(at(w, "one"), at(w, "two")), 0);
    assert_int_equal(link(at(w, "one"), at(w, "z/three")), 0);
    put_text(at(w, "other"), "alone");
    put_text(at(w, "small"), "inline");
    assert_int_equal(link(at(w, "small"), at(w, "z/small")), 0);
    round_trip(w);
    assert_int_equal(stat(out(w, "one"), &a), 0);
    assert_int_equal(stat(out(w, "two"), &b), 0);
    assert_int_equal(stat(out(w, "z/three"), &c), 0);
    assert_int_equal(stat(out(w, "other"), &d), 0);
    assert_true(a.st_ino == b.st_ino && b.st_ino == c.st_ino && a.st_nlink == 3);
    assert_true(d.st_ino != a.st_ino);
    assert_same_content(at(w, "one"), out(w, "z/three"));
    assert_int_equal(stat(out(w, "small"), &a), 0);
    assert_int_equal(stat(out(w, "z/small"), &b), 0);
    assert_true(a.st_ino == b.st_ino);
    /* A second time nothing has to be done. */
    run_restore(w);
    assert_int_equal(w->restored.unchanged, 6);
    assert_int_equal(w->restored.written, 0);
}

static void a_sparse_file_stays_sparse(void **state)
{
    world_t *w = world(state);
    struct stat st;
    uint8_t data[5000], back[5000];
    const off_t size = (off_t)5 << 30;
    int fd = open(at(w, "sparse"), O_RDWR | O_CREAT, 0644);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, size), 0);
    test_fill(data, sizeof data, 3);
    assert_int_equal(pwrite(fd, data, sizeof data, 1000000000), sizeof data);
    assert_int_equal(pwrite(fd, data, sizeof data, size - (off_t)sizeof data), sizeof data);
    close(fd);
    fd = open(at(w, "hole"), O_RDWR | O_CREAT, 0644);
    assert_int_equal(ftruncate(fd, 10 << 20), 0);
    close(fd);
    round_trip(w);
    assert_true(w->stats.bytes_read < 1 << 20);
    assert_int_equal(stat(out(w, "hole"), &st), 0);
    assert_int_equal(st.st_size, 10 << 20);
    assert_true(st.st_blocks < 100);
    fd = open(out(w, "sparse"), O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, size);
    assert_true(st.st_blocks * 512 < 1 << 20);
    assert_int_equal(pread(fd, back, sizeof back, 1000000000), sizeof back);
    assert_memory_equal(back, data, sizeof data);
    assert_int_equal(pread(fd, back, sizeof back, size - (off_t)sizeof data), sizeof back);
    assert_memory_equal(back, data, sizeof data);
    assert_int_equal(pread(fd, back, sizeof back, 2000000000), sizeof back);
    assert_true(back[0] == 0 && back[sizeof back - 1] == 0);
    close(fd);
}

static void the_checksum_is_that_of_the_logical_content(void **state)
{
    world_t *w = world(state);
    const size_t size = 300000;
    uint8_t *content = calloc(1, size);
    bk_id_t expected;
    bk_tree_iter_t *iter = NULL;
    const bk_entry_t *entry = NULL;
    int fd = open(at(w, "sparse"), O_RDWR | O_CREAT, 0644);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    test_fill(content + 200000, 100, 9);
    assert_int_equal(pwrite(fd, content + 200000, 100, 200000), 100);
    close(fd);
    run_backup(w);
    OK(bk_tree_iter_open(w->repo, &w->tree.root, NULL, &iter, &w->err), &w->err);
    OK(bk_tree_iter_next(iter, &entry, &w->err), &w->err);
    bk_sha256(&expected, content, size);
    assert_true(bk_id_equal(&expected, &entry->sha256));
    assert_true(entry->flags & BK_ENTRY_EXTENTS);
    assert_int_equal(entry->size, size);
    bk_tree_iter_close(iter);
    free(content);
}

static void a_fifo_comes_back_and_is_never_opened(void **state)
{
    world_t *w = world(state);
    struct stat st;
    assert_int_equal(mkfifo(at(w, "pipe"), 0600), 0);
    assert_int_equal(chmod(at(w, "pipe"), 0622), 0);
    set_mtime(at(w, "pipe"), 1234567890, 42);
    round_trip(w);
    assert_int_equal(w->stats.others, 1);
    assert_int_equal(lstat(out(w, "pipe"), &st), 0);
    assert_true(S_ISFIFO(st.st_mode));
    assert_int_equal(st.st_mode & 07777, 0622);
    assert_int_equal(st.st_mtim.tv_sec, 1234567890);
}

static void extended_attributes_come_back(void **state)
{
    world_t *w = world(state);
    char value[256];
    uint8_t large[2000];
    put_text(at(w, "file"), "x");
    put_random(at(w, "readonly"), 100000, 1);
    assert_int_equal(mkdir(at(w, "dir"), 0755), 0);
    if (setxattr(at(w, "file"), "user.note", "hello", 5, 0) != 0)
        SKIP_TEST();
    test_fill(large, sizeof large, 4);
    assert_int_equal(setxattr(at(w, "file"), "user.large", large, sizeof large, 0), 0);
    assert_int_equal(setxattr(at(w, "file"), "user.empty", "", 0, 0), 0);
    assert_int_equal(setxattr(at(w, "readonly"), "user.x", "\0\1\2", 3, 0), 0);
    assert_int_equal(chmod(at(w, "readonly"), 0400), 0);
    assert_int_equal(setxattr(at(w, "dir"), "user.dir", "d", 1, 0), 0);
    round_trip(w);
    assert_int_equal(getxattr(out(w, "file"), "user.note", value, sizeof value), 5);
    assert_memory_equal(value, "hello", 5);
    uint8_t back[2000];
    assert_int_equal(getxattr(out(w, "file"), "user.large", back, sizeof back), sizeof back);
    assert_memory_equal(back, large, sizeof back);
    assert_int_equal(getxattr(out(w, "file"), "user.empty", value, sizeof value), 0);
    assert_int_equal(getxattr(out(w, "readonly"), "user.x", value, sizeof value), 3);
    assert_int_equal(getxattr(out(w, "dir"), "user.dir", value, sizeof value), 1);
    /* In place: a changed value is set, one that was added goes. */
    assert_int_equal(setxattr(out(w, "file"), "user.note", "other", 5, 0), 0);
    assert_int_equal(setxattr(out(w, "file"), "user.added", "x", 1, 0), 0);
    run_restore(w);
    assert_int_equal(w->restored.written, 0);
    assert_int_equal(getxattr(out(w, "file"), "user.note", value, sizeof value), 5);
    assert_memory_equal(value, "hello", 5);
    assert_int_equal(getxattr(out(w, "file"), "user.added", value, sizeof value), -1);
}

/* An access control list as Linux keeps it: version 2, then tag, permissions, id. */
static const uint8_t acl[] = {
    2,    0, 0, 0,                         /* version */
    0x01, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, /* owner rw */
    0x02, 0, 4, 0, 0x31, 0xd4, 0,    0,    /* user 54321 r */
    0x04, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, /* group r */
    0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, /* mask r */
    0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, /* others nothing */
};

static void access_control_lists_come_back(void **state)
{
    world_t *w = world(state);
    uint8_t back[200];
    struct stat st;
    put_text(at(w, "file"), "x");
    assert_int_equal(mkdir(at(w, "dir"), 0755), 0);
    if (setxattr(at(w, "file"), "system.posix_acl_access", acl, sizeof acl, 0) != 0)
        SKIP_TEST();
    assert_int_equal(setxattr(at(w, "dir"), "system.posix_acl_default", acl, sizeof acl, 0), 0);
    put_text(at(w, "dir/inherits"), "x");
    round_trip(w);
    assert_int_equal(getxattr(out(w, "file"), "system.posix_acl_access", back, sizeof back),
                     sizeof acl);
    assert_memory_equal(back, acl, sizeof acl);
    assert_int_equal(stat(out(w, "file"), &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    assert_int_equal(getxattr(out(w, "dir"), "system.posix_acl_default", back, sizeof back),
                     sizeof acl);
    /* The list is on the restored file because it had one, not because the directory gave it. */
    ssize_t a = getxattr(at(w, "dir/inherits"), "system.posix_acl_access", back, sizeof back);
    assert_int_equal(getxattr(out(w, "dir/inherits"), "system.posix_acl_access", back, sizeof back),
                     a);
}

static void without_xattrs_none_are_kept(void **state)
{
    world_t *w = world(state);
    char value[8];
    put_text(at(w, "file"), "x");
    if (setxattr(at(w, "file"), "user.note", "hello", 5, 0) != 0)
        SKIP_TEST();
    w->backup.xattrs = false;
    round_trip(w);
    assert_int_equal(getxattr(out(w, "file"), "user.note", value, sizeof value), -1);
}

/* Deeper than a worker may have descriptors. */
static void a_deep_tree_comes_back(void **state)
{
    world_t *w = world(state);
    char path[2048] = "d";
    size_t len = 1;
    for (unsigned i = 0; i < 300; i++) {
        assert_int_equal(mkdir(at(w, path), 0755), 0);
        len += (size_t)snprintf(path + len, sizeof path - len, i < 299 ? "/d" : "/leaf");
    }
    put_text(at(w, path), "deep");
    round_trip(w);
    assert_text(out(w, path), "deep");
}

static void a_directory_of_many_names_comes_back(void **state)
{
    world_t *w = world(state);
    char name[32];
    for (unsigned i = 0; i < 9000; i++) {
        snprintf(name, sizeof name, "f%u", i * 7919u);
        if (i % 1000 == 7) {
            assert_int_equal(mkdir(at(w, name), 0755), 0);
            snprintf(name, sizeof name, "f%u/in", i * 7919u);
        }
        put_bytes(at(w, name), name, strlen(name));
    }
    round_trip(w);
    assert_int_equal(w->stats.files, 9000);
    assert_int_equal(w->tree.entries, 9000);
    for (unsigned i = 0; i < 9000; i++) {
        snprintf(name, sizeof name, "f%u%s", i * 7919u, i % 1000 == 7 ? "/in" : "");
        assert_text(out(w, name), name);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, world_set_up, world_tear_down)
    const struct CMUnitTest tests[] = {
        T(contents_of_every_size_come_back),
        T(large_files_are_spread_over_the_lanes_and_come_back),
        T(a_name_may_be_any_bytes),
        T(an_empty_directory_and_an_empty_tree_come_back),
        T(modes_come_back_also_sticky_and_set_id),
        T(times_come_back_to_the_nanosecond),
        T(owners_come_back_by_number_and_by_name),
        T(links_keep_their_text_and_are_never_followed),
        T(hard_links_are_links_again),
        T(a_sparse_file_stays_sparse),
        T(the_checksum_is_that_of_the_logical_content),
        T(a_fifo_comes_back_and_is_never_opened),
        T(extended_attributes_come_back),
        T(access_control_lists_come_back),
        T(without_xattrs_none_are_kept),
        T(a_deep_tree_comes_back),
        T(a_directory_of_many_names_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
