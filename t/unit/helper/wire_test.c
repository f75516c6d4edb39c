/*
 * t/unit/helper/wire_test.c: datagrams that are not in order, names and paths, the table of roots and the way to a root.
 */
#include "agent.h"

#include <dirent.h>
#include <sys/mman.h>

static unsigned open_fds(void)
{
    unsigned count = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

/* --- datagrams --- */

static bk_wire_message_t in;

static bk_wire_got_t pass(const void *bytes, size_t len, unsigned fd_count)
{
    int pair[2];
    char room[CMSG_SPACE(sizeof(int) * 253)] = {0};
    union {
        const void *from;
        void *to;
    } cast = {.from = bytes};
    struct iovec part = {cast.to, len};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    int size = 1 << 20;
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (fd_count > 0) {
        header.msg_control = room;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        for (unsigned i = 0; i < fd_count; i++)
            memcpy(CMSG_DATA(c) + i * sizeof(int), &pair[1], sizeof(int));
    }
    assert_int_equal(sendmsg(pair[0], &header, MSG_DONTWAIT), len);
    bk_wire_got_t got = bk_wire_receive(pair[1], &in);
    close(pair[0]);
    close(pair[1]);
    return got;
}

static void test_only_whole_messages_are_taken(void **state)
{
    static unsigned char bytes[BK_WIRE_MESSAGE + 100];
    bk_wire_head_t head = {
        .magic = BK_WIRE_MAGIC, .version = BK_WIRE_VERSION, .verb = BK_WIRE_AT, .id = 9, .len = 50};
    (void)state;
    memcpy(bytes, &head, sizeof head);
    assert_int_equal(pass(bytes, sizeof head + 50, 0), BK_WIRE_OK);
    assert_int_equal(in.head.id, 9);
    for (size_t len = 1; len < sizeof head + 50; len++)
        assert_int_equal(pass(bytes, len, 0), BK_WIRE_BROKEN);
    assert_int_equal(pass(bytes, sizeof head + 51, 0), BK_WIRE_BROKEN);
    head.len = BK_WIRE_BODY;
    memcpy(bytes, &head, sizeof head);
    assert_int_equal(pass(bytes, BK_WIRE_MESSAGE, 0), BK_WIRE_OK);
    head.len = BK_WIRE_BODY + 1;
    memcpy(bytes, &head, sizeof head);
    assert_int_equal(pass(bytes, BK_WIRE_MESSAGE + 1, 0), BK_WIRE_BROKEN);
    head.len = 0xffffffffu;
    memcpy(bytes, &head, sizeof head);
    assert_int_equal(pass(bytes, BK_WIRE_MESSAGE, 0), BK_WIRE_BROKEN);
    head = (bk_wire_head_t){.magic = BK_WIRE_MAGIC, .version = BK_WIRE_VERSION + 1};
    assert_int_equal(pass(&head, sizeof head, 0), BK_WIRE_BROKEN);
    head = (bk_wire_head_t){.magic = 1, .version = BK_WIRE_VERSION};
    assert_int_equal(pass(&head, sizeof head, 0), BK_WIRE_BROKEN);
}

static void test_stray_descriptors_are_closed(void **state)
{
    bk_wire_head_t head = {.magic = BK_WIRE_MAGIC, .version = BK_WIRE_VERSION};
    unsigned before = open_fds();
    (void)state;
    assert_int_equal(pass(&head, sizeof head, 64), BK_WIRE_OK);
    assert_int_equal(in.fd_count, 64);
    assert_true((fcntl(in.fds[63], F_GETFD) & FD_CLOEXEC) != 0);
    bk_wire_drop(&in);
    assert_int_equal(open_fds(), before);
    assert_int_equal(pass(&head, sizeof head, 65), BK_WIRE_BROKEN);
    assert_int_equal(pass(&head, sizeof head, 253), BK_WIRE_BROKEN);
    assert_int_equal(pass(&head, sizeof head - 1, 10), BK_WIRE_BROKEN);
    assert_int_equal(open_fds(), before);
}

static void test_sending_has_limits(void **state)
{
    int pair[2], fds[65] = {0};
    static char body[BK_WIRE_MESSAGE];
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(bk_wire_send(pair[0], BK_WIRE_AT, 1, body, sizeof body, NULL, 0), EMSGSIZE);
    assert_int_equal(bk_wire_send(pair[0], BK_WIRE_AT, 1, body, 1, fds, 65), EMSGSIZE);
    assert_int_equal(bk_wire_receive(pair[1], &in), BK_WIRE_EMPTY);
    unsigned sent = 0;
    while (sent < 100000 && bk_wire_send(pair[0], BK_WIRE_HELLO, 1, NULL, 0, NULL, 0) == 0)
        sent++;
    assert_true(sent < 100000);
    assert_int_equal(bk_wire_send(pair[0], BK_WIRE_HELLO, 1, NULL, 0, NULL, 0), EAGAIN);
    close(pair[1]);
    /* The first one may be told that what was under way is lost. */
    int gone = bk_wire_send(pair[0], BK_WIRE_HELLO, 1, NULL, 0, NULL, 0);
    assert_true(gone == EPIPE || gone == ECONNRESET);
    assert_int_equal(bk_wire_is_seqpacket(pair[0]), true);
    assert_int_equal(bk_wire_is_seqpacket(0), false);
    close(pair[0]);
}

static void test_names_and_paths(void **state)
{
    char name[300];
    (void)state;
    memset(name, 'a', sizeof name);
    assert_true(bk_wire_is_name(name, 255));
    assert_false(bk_wire_is_name(name, 256));
    assert_true(bk_wire_is_name("...", 3));
    assert_true(bk_wire_is_name(".a", 2));
    assert_false(bk_wire_is_name("", 0));
    assert_false(bk_wire_is_name(".", 1));
    assert_false(bk_wire_is_name("..", 2));
    assert_false(bk_wire_is_name("a/b", 3));
    assert_false(bk_wire_is_name("a\0b", 3));
    static const char *const bad[] = {"",     "/",    "/a",  "a/",    "a//b",   ".",      "..",
                                      "a/..", "../a", "./a", "a/./b", "a/../b", "a/b/..", "//"};
    static const char *const good[] = {"a", "a/b", "a/...", ".a/b.", "a/..b/c.."};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(bk_wire_is_relative(bad[i], strlen(bad[i])));
    for (unsigned i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(bk_wire_is_relative(good[i], strlen(good[i])));
}

/* --- the table of roots --- */

static int parse_one(const char *path, uint32_t len, uint32_t flags)
{
    bk_roots_t *roots = NULL;
    uint32_t which;
    const char *why;
    bk_wire_root_t *root = calloc(1, sizeof *root);
    root->flags = flags;
    root->len = len;
    memcpy(root->path, path, strlen(path));
    int errnum = bk_roots_parse(root, sizeof *root, 1, &roots, &which, &why);
    if (errnum == 0)
        assert_int_equal(roots->count, 1);
    else
        assert_null(roots);
    bk_roots_free(roots);
    free(root);
    return errnum;
}

static void test_roots_are_absolute_and_known(void **state)
{
    (void)state;
    assert_int_equal(parse_one("/srv/app", 8, BK_WIRE_MAY_READ), 0);
    assert_int_equal(parse_one("/", 1, BK_WIRE_ROOT_FLAGS & ~BK_WIRE_DATABASE), 0);
    assert_int_equal(parse_one("/", 1, BK_WIRE_DATABASE), EINVAL);
    assert_int_equal(parse_one("/srv/app", 8, 32), EINVAL);
    assert_int_equal(parse_one("/srv/app", 7, 0), EINVAL); /* more follows */
    assert_int_equal(parse_one("/srv/app", 9, 0), EINVAL);
    assert_int_equal(parse_one("/srv/app", 0, 0), EINVAL);
    assert_int_equal(parse_one("/srv/app", 5000, 0), EINVAL);
    assert_int_equal(parse_one("srv/app", 7, 0), EINVAL);
    assert_int_equal(parse_one("/srv/../app", 11, 0), EINVAL);
    assert_int_equal(parse_one("/srv//app", 9, 0), EINVAL);
    assert_int_equal(parse_one("/srv/app/", 9, 0), EINVAL);
}

static void test_the_table_must_be_sealed_and_of_its_size(void **state)
{
    bk_wire_root_t *root = calloc(1, sizeof *root);
    bk_roots_t *roots;
    uint32_t which;
    const char *why;
    (void)state;
    root->len = 4;
    memcpy(root->path, "/srv", 4);
    int fd = memfd_create("roots", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(write(fd, root, sizeof *root), sizeof *root);
    assert_int_equal(bk_roots_read(fd, 1, &roots, &which, &why), EINVAL);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK), 0);
    assert_int_equal(bk_roots_read(fd, 2, &roots, &which, &why), EINVAL);
    assert_int_equal(bk_roots_read(fd, 0, &roots, &which, &why), EINVAL);
    assert_int_equal(bk_roots_read(fd, 0x80000000u, &roots, &which, &why), EINVAL);
    assert_int_equal(bk_roots_read(fd, 1, &roots, &which, &why), 0);
    assert_string_equal(roots->list[0].path, "/srv");
    assert_int_equal(bk_roots_find(roots, "/srv", 4, 0), 0);
    assert_int_equal(bk_roots_find(roots, "/srv", 3, 0), -1);
    assert_int_equal(bk_roots_find(roots, "/srv", 4, BK_WIRE_MAY_READ), -1);
    bk_roots_free(roots);
    close(fd);
    free(root);
}

/* --- the way to a root --- */

static int way(const char *path, uint32_t flags)
{
    char copy[600];
    snprintf(copy, sizeof copy, "%s", path);
    bk_roots_entry_t root = {.flags = flags, .path = copy};
    int fd = bk_roots_open(&root);
    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

static void test_links_on_the_way_only_where_root_alone_writes(void **state)
{
    char path[600], target[600];
    (void)state;
    if (geteuid() != 0)
        SKIP_TEST();
    char *dir = test_dir();
    join(path, dir, "real");
    assert_int_equal(mkdir(path, 0700), 0);
    join(path, dir, "real/root");
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(way(path, 0), 0);
    join(path, dir, "link");
    assert_int_equal(symlink("real", path), 0);
    join(path, dir, "absolute");
    join(target, dir, "real/../link");
    assert_int_equal(symlink(target, path), 0);
    join(path, dir, "loop");
    assert_int_equal(symlink("loop", path), 0);
    join(path, dir, "link/root");
    assert_int_equal(way(path, 0), 0);
    join(path, dir, "absolute/root");
    assert_int_equal(way(path, 0), 0);
    join(path, dir, "link/root/app.db");
    assert_int_equal(way(path, BK_WIRE_DATABASE), 0);
    join(path, dir, "loop/root");
    assert_int_equal(way(path, 0), ELOOP);
    join(path, dir, "link/missing");
    assert_int_equal(way(path, 0), ENOENT);
    /* Others may write to the directory that holds the link. */
    join(path, dir, "link/root");
    assert_int_equal(chmod(dir, 0775), 0);
    assert_int_equal(way(path, 0), ELOOP);
    assert_int_equal(chmod(dir, 0755), 0);
    assert_int_equal(chown(dir, NOBODY, 0), 0);
    assert_int_equal(way(path, 0), ELOOP);
    join(path, dir, "real/root");
    assert_int_equal(way(path, 0), 0);
    test_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_whole_messages_are_taken),
        cmocka_unit_test(test_stray_descriptors_are_closed),
        cmocka_unit_test(test_sending_has_limits),
        cmocka_unit_test(test_names_and_paths),
        cmocka_unit_test(test_roots_are_absolute_and_known),
        cmocka_unit_test(test_the_table_must_be_sealed_and_of_its_size),
        cmocka_unit_test(test_links_on_the_way_only_where_root_alone_writes),
    };
    return cmocka_run_group_tests_name("helper wire", tests, NULL, NULL);
}
