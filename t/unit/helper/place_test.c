/*
 * t/unit/helper/place_test.c: what a worker as nobody can put below a root, with everything that belongs to a file; and what
 * is left out or refused on the way.
 */
#include "agent.h"

#include <sys/mman.h>
#include <sys/xattr.h>

#define APP   4321
#define GROUP 4322

typedef struct {
    char *dir;
    char root[600], setuid[600], data[600], database[600];
    agent_t agent;
    bk_helper_t *helper;
    bk_helper_root_t *handle, *with_setuid, *db;
} box_t;

static int setup(void **state)
{
    const uint32_t both = BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE;
    bk_err_t err = {0};
    if (geteuid() != 0)
        return 0;
    box_t *box = calloc(1, sizeof *box);
    box->dir = test_dir();
    join(box->root, box->dir, "uploads");
    join(box->setuid, box->dir, "setuid");
    join(box->data, box->dir, "data");
    join(box->database, box->data, "app.db");
    assert_int_equal(mkdir(box->root, 0700), 0);
    assert_int_equal(mkdir(box->setuid, 0700), 0);
    assert_int_equal(mkdir(box->data, 0700), 0);
    assert_int_equal(chown(box->root, APP, GROUP), 0);
    assert_int_equal(chown(box->data, APP, GROUP), 0);
    write_file(box->database, "database", APP, GROUP, 0640);
    agent_root_t list[] = {{box->root, both},
                           {box->setuid, both | BK_WIRE_MAY_SETUID},
                           {box->database, both | BK_WIRE_DATABASE}};
    box->agent = agent_start(list, 3);
    be_worker();
    OK(bk_helper_new(box->agent.broker, &box->helper, &err), &err);
    OK(bk_helper_root_open(box->helper, box->root, both, &box->handle, NULL, &err), &err);
    OK(bk_helper_root_open(box->helper, box->setuid, both, &box->with_setuid, NULL, &err), &err);
    OK(bk_helper_root_open(box->helper, box->database, both | BK_WIRE_DATABASE, &box->db, NULL,
                           &err),
       &err);
    *state = box;
    return 0;
}

static int teardown(void **state)
{
    box_t *box = *state;
    if (box == NULL)
        return 0;
    bk_helper_root_close(box->db);
    bk_helper_root_close(box->with_setuid);
    bk_helper_root_close(box->handle);
    bk_helper_free(box->helper);
    be_root();
    agent_stop(&box->agent);
    test_dir_remove(box->dir);
    free(box);
    *state = NULL;
    return 0;
}

#define BOX                                                                                        \
    box_t *box = *state;                                                                           \
    if (box == NULL)                                                                               \
    SKIP_TEST()

static bk_helper_result_t at(bk_helper_root_t *root, const char *dir, bk_helper_op_t op)
{
    bk_helper_result_t result;
    bk_err_t err = {0};
    OK(bk_helper_at(root, dir, 0, &op, 1, &result, NULL, &err), &err);
    return result;
}

static int error_of(bk_helper_root_t *root, bk_helper_op_t op)
{
    bk_helper_result_t result = at(root, "", op);
    free(result.data);
    if (result.fd >= 0)
        close(result.fd);
    return result.error;
}

static struct stat look(const char *dir, const char *name)
{
    char path[700];
    struct stat st = {0};
    uid_t me = geteuid();
    be_root();
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(lstat(path, &st), 0);
    assert_int_equal(seteuid(me), 0);
    return st;
}

static int blob_fd(const void *blob, size_t len)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, blob, len), len);
    return fd;
}

/* One attribute as a blob. */
static size_t blob_of(unsigned char *out, const char *name, const void *value, uint32_t len)
{
    uint16_t name_len = (uint16_t)strlen(name);
    uint32_t count = 1;
    size_t at_byte = 0;
    memcpy(out, &count, 4), at_byte += 4;
    memcpy(out + at_byte, &name_len, 2), at_byte += 2;
    memcpy(out + at_byte, name, name_len), at_byte += name_len;
    memcpy(out + at_byte, &len, 4), at_byte += 4;
    memcpy(out + at_byte, value, len);
    return at_byte + len;
}

/* --- fidelity --- */

static void test_a_file_comes_back_with_everything(void **state)
{
    BOX;
    unsigned char blob[200];
    size_t len = blob_of(blob, "user.note", "kept", 4);
    bk_helper_result_t made =
        at(box->handle, "", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = ".ngx-backup-1"});
    assert_int_equal(made.error, 0);
    assert_int_equal(made.st.st_mode, S_IFREG | 0600);
    /* Sparse: a byte behind 8 MiB of nothing, through the descriptor. */
    assert_int_equal(pwrite(made.fd, "x", 1, 8 << 20), 1);
    int attrs = blob_fd(blob, len);
    bk_helper_op_t ops[] = {
        {.call = BK_WIRE_META,
         .name = ".ngx-backup-1",
         .set = BK_WIRE_SET_OWNER | BK_WIRE_SET_MODE | BK_WIRE_SET_MTIME | BK_WIRE_SET_ATTRS |
                BK_WIRE_SET_FRESH,
         .uid = APP,
         .gid = GROUP,
         .mode = 0640,
         .mtime = {1000000001, 123456789},
         .attrs = attrs},
        {.call = BK_WIRE_RENAME, .name = ".ngx-backup-1", .name2 = "photo.jpg"},
        {.call = BK_WIRE_LINK, .name = "photo.jpg", .name2 = "second.jpg"},
    };
    bk_helper_result_t results[3];
    bk_err_t err = {0};
    OK(bk_helper_at(box->handle, "", 0, ops, 3, results, NULL, &err), &err);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(results[i].error, 0);
    close(made.fd);
    close(attrs);
    struct stat st = look(box->root, "photo.jpg"), second = look(box->root, "second.jpg");
    assert_int_equal(st.st_uid, APP);
    assert_int_equal(st.st_gid, GROUP);
    assert_int_equal(st.st_mode, S_IFREG | 0640);
    assert_int_equal(st.st_mtim.tv_sec, 1000000001);
    assert_int_equal(st.st_mtim.tv_nsec, 123456789);
    assert_int_equal(st.st_size, (8 << 20) + 1);
    assert_true(st.st_blocks < 1000);
    assert_int_equal(st.st_nlink, 2);
    assert_int_equal(st.st_ino, second.st_ino);
    bk_helper_result_t kept =
        at(box->handle, "", (bk_helper_op_t){.call = BK_WIRE_ATTRS, .name = "photo.jpg"});
    assert_int_equal(kept.error, 0);
    if (results[0].refused == 0) {
        unsigned char back[200];
        uint64_t said;
        assert_int_equal(kept.data_len, sizeof said);
        memcpy(&said, kept.data, sizeof said);
        assert_int_equal(said, len);
        assert_int_equal(pread(kept.fd, back, sizeof back, 0), len);
        assert_memory_equal(back, blob, len);
    }
    free(kept.data);
    if (kept.fd >= 0)
        close(kept.fd);
}

/* An access list for one more user, in the kernel's own form: version 2, entries of tag, permissions and id. */
static const unsigned char acl[] = {2,   0,   0,   0,   1,   0,    6,    0,   255, 255, 255,
                                    255, 2,   0,   4,   0,   0xe2, 0x10, 0,   0,   4,   0,
                                    4,   0,   255, 255, 255, 255,  16,   0,   4,   0,   255,
                                    255, 255, 255, 32,  0,   0,    0,    255, 255, 255, 255};

static void test_access_lists_come_back(void **state)
{
    BOX;
    unsigned char blob[200], back[200];
    char path[700];
    size_t len = blob_of(blob, "system.posix_acl_access", acl, sizeof acl);
    int attrs = blob_fd(blob, len);
    close(at(box->handle, "", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = "f"}).fd);
    bk_helper_result_t meta = at(box->handle, "",
                                 (bk_helper_op_t){.call = BK_WIRE_META,
                                                  .name = "f",
                                                  .set = BK_WIRE_SET_MODE | BK_WIRE_SET_ATTRS,
                                                  .mode = 0640,
                                                  .attrs = attrs});
    close(attrs);
    assert_int_equal(meta.error, 0);
    if (meta.refused != 0)
        SKIP_TEST();
    be_root();
    join(path, box->root, "f");
    ssize_t got = getxattr(path, "system.posix_acl_access", back, sizeof back);
    be_worker();
    assert_int_equal(got, sizeof acl);
    assert_memory_equal(back, acl, sizeof acl);
    /* Attributes that the blob does not name go away. */
    attrs = blob_fd("", 0);
    assert_int_equal(error_of(box->handle, (bk_helper_op_t){.call = BK_WIRE_META,
                                                            .name = "f",
                                                            .set = BK_WIRE_SET_ATTRS,
                                                            .attrs = attrs}),
                     0);
    close(attrs);
    be_root();
    assert_int_equal(getxattr(path, "system.posix_acl_access", back, sizeof back), -1);
    be_worker();
}

static void test_directories_links_and_fifos(void **state)
{
    BOX;
    const uint32_t all =
        BK_WIRE_SET_OWNER | BK_WIRE_SET_MODE | BK_WIRE_SET_MTIME | BK_WIRE_SET_FRESH;
    bk_helper_op_t ops[] = {
        {.call = BK_WIRE_MKDIR, .name = "d"},
        {.call = BK_WIRE_SYMLINK, .name = "l", .name2 = "/etc/passwd"},
        {.call = BK_WIRE_MKFIFO, .name = "p"},
        {.call = BK_WIRE_META,
         .name = "d",
         .set = all,
         .uid = APP,
         .gid = GROUP,
         .mode = 02770,
         .mtime = {5, 6}},
        {.call = BK_WIRE_META,
         .name = "l",
         .set = all,
         .uid = APP,
         .gid = GROUP,
         .mode = 0777,
         .mtime = {7, 8}},
        {.call = BK_WIRE_META,
         .name = "p",
         .set = all,
         .uid = APP,
         .gid = GROUP,
         .mode = 0620,
         .mtime = {9, 10}},
        {.call = BK_WIRE_SYNC},
    };
    bk_helper_result_t results[7];
    bk_err_t err = {0};
    struct stat passwd, after;
    assert_int_equal(stat("/etc/passwd", &passwd), 0);
    OK(bk_helper_at(box->handle, "", 0, ops, 7, results, NULL, &err), &err);
    for (unsigned i = 0; i < 7; i++)
        assert_int_equal(results[i].error, 0);
    struct stat d = look(box->root, "d"), l = look(box->root, "l"), p = look(box->root, "p");
    assert_int_equal(d.st_mode, S_IFDIR | 02770);
    assert_int_equal(d.st_uid, APP);
    assert_int_equal(d.st_mtim.tv_sec, 5);
    assert_true(S_ISLNK(l.st_mode));
    assert_int_equal(l.st_gid, GROUP);
    assert_int_equal(l.st_mtim.tv_nsec, 8);
    assert_int_equal(p.st_mode, S_IFIFO | 0620);
    assert_int_equal(p.st_mtim.tv_sec, 9);
    assert_int_equal(stat("/etc/passwd", &after), 0);
    assert_int_equal(after.st_ctim.tv_sec, passwd.st_ctim.tv_sec);
    assert_int_equal(after.st_uid, passwd.st_uid);
}

static void test_names_in_other_directories_are_linked_and_removed(void **state)
{
    BOX;
    assert_int_equal(error_of(box->handle, (bk_helper_op_t){.call = BK_WIRE_MKDIR, .name = "d"}),
                     0);
    close(at(box->handle, "d", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = "f"}).fd);
    assert_int_equal(
        error_of(box->handle,
                 (bk_helper_op_t){.call = BK_WIRE_LINK_FROM, .name = "d/f", .name2 = "g"}),
        0);
    assert_int_equal(look(box->root, "g").st_nlink, 2);
    assert_int_equal(
        error_of(box->handle, (bk_helper_op_t){.call = BK_WIRE_LINK, .name = "d", .name2 = "e"}),
        EISDIR);
    assert_int_equal(error_of(box->handle, (bk_helper_op_t){.call = BK_WIRE_UNLINK, .name = "g"}),
                     0);
    assert_int_equal(
        error_of(box->handle,
                 (bk_helper_op_t){.call = BK_WIRE_UNLINK, .name = "d", .flags = AT_REMOVEDIR}),
        ENOTEMPTY);
    assert_int_equal(
        at(box->handle, "d", (bk_helper_op_t){.call = BK_WIRE_UNLINK, .name = "f"}).error, 0);
    assert_int_equal(
        error_of(box->handle,
                 (bk_helper_op_t){.call = BK_WIRE_UNLINK, .name = "d", .flags = AT_REMOVEDIR}),
        0);
}

static void test_renames_keep_or_exchange(void **state)
{
    BOX;
    close(at(box->handle, "", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = "a"}).fd);
    close(at(box->handle, "", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = "b"}).fd);
    ino_t a = look(box->root, "a").st_ino, b = look(box->root, "b").st_ino;
    bk_helper_op_t op = {
        .call = BK_WIRE_RENAME, .name = "a", .name2 = "b", .flags = RENAME_NOREPLACE};
    assert_int_equal(error_of(box->handle, op), EEXIST);
    op.flags = RENAME_EXCHANGE;
    assert_int_equal(error_of(box->handle, op), 0);
    assert_int_equal(look(box->root, "b").st_ino, a);
    op.flags = RENAME_WHITEOUT;
    assert_int_equal(error_of(box->handle, op), EINVAL);
    op.flags = 0;
    assert_int_equal(error_of(box->handle, op), 0);
    assert_int_equal(look(box->root, "b").st_ino, b);
}

/* --- what is left out or refused --- */

static void test_special_bits_need_the_configuration(void **state)
{
    BOX;
    bk_helper_op_t meta = {.call = BK_WIRE_META,
                           .name = "s",
                           .set = BK_WIRE_SET_OWNER | BK_WIRE_SET_MODE,
                           .uid = APP,
                           .gid = GROUP,
                           .mode = 06755};
    close(at(box->handle, "", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = "s"}).fd);
    close(at(box->with_setuid, "", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = "s"}).fd);
    bk_helper_result_t without = at(box->handle, "", meta), with = at(box->with_setuid, "", meta);
    assert_int_equal(without.error, 0);
    assert_int_equal(without.refused, BK_WIRE_REFUSED_SETUID);
    assert_int_equal(look(box->root, "s").st_mode, S_IFREG | 0755);
    assert_int_equal(with.error, 0);
    assert_int_equal(with.refused, 0);
    assert_int_equal(look(box->setuid, "s").st_mode, S_IFREG | 06755);
}

static void test_capabilities_of_files_need_the_configuration(void **state)
{
    BOX;
    unsigned char blob[200];
    char path[700];
    static const unsigned char cap[20] = {1, 0, 0, 2, 0xff};
    size_t len = blob_of(blob, "security.capability", cap, sizeof cap);
    int attrs = blob_fd(blob, len);
    close(at(box->handle, "", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = "c"}).fd);
    bk_helper_result_t meta =
        at(box->handle, "",
           (bk_helper_op_t){
               .call = BK_WIRE_META, .name = "c", .set = BK_WIRE_SET_ATTRS, .attrs = attrs});
    close(at(box->with_setuid, "", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = "c"}).fd);
    bk_helper_result_t with =
        at(box->with_setuid, "",
           (bk_helper_op_t){
               .call = BK_WIRE_META, .name = "c", .set = BK_WIRE_SET_ATTRS, .attrs = attrs});
    close(attrs);
    assert_int_equal(meta.error, 0);
    assert_int_equal(meta.refused, BK_WIRE_REFUSED_SETUID);
    assert_int_equal(with.error, 0);
    assert_int_equal(with.refused, 0);
    be_root();
    join(path, box->root, "c");
    assert_int_equal(getxattr(path, "security.capability", blob, sizeof blob), -1);
    join(path, box->setuid, "c");
    assert_int_equal(getxattr(path, "security.capability", blob, sizeof blob), sizeof cap);
    be_worker();
}

static void test_a_damaged_blob_changes_nothing(void **state)
{
    BOX;
    unsigned char blob[200];
    size_t len = blob_of(blob, "user.note", "kept", 4);
    close(at(box->handle, "", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = "f"}).fd);
    bk_helper_op_t op = {.call = BK_WIRE_META, .name = "f", .set = BK_WIRE_SET_ATTRS};
    for (size_t cut = 1; cut < len; cut++) {
        op.attrs = blob_fd(blob, cut);
        assert_int_equal(error_of(box->handle, op), EINVAL);
        close(op.attrs);
    }
    /* Not memory: a pipe would make the helper wait. */
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    op.attrs = ends[0];
    assert_int_equal(error_of(box->handle, op), EINVAL);
    close(ends[0]);
    close(ends[1]);
    op.attrs = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
    assert_int_equal(error_of(box->handle, op), EINVAL);
    close(op.attrs);
    bk_helper_result_t none =
        at(box->handle, "", (bk_helper_op_t){.call = BK_WIRE_ATTRS, .name = "f"});
    assert_int_equal(none.error, 0);
    assert_int_equal(none.fd, -1);
    free(none.data);
}

/* Somebody may have given a name here to a file that lives elsewhere. */
static void test_a_file_with_further_names_is_not_changed(void **state)
{
    BOX;
    char inside[700], outside[700];
    join(inside, box->root, "trap");
    join(outside, box->dir, "precious");
    be_root();
    write_file(outside, "root's own", 0, 0, 0600);
    assert_int_equal(link(outside, inside), 0);
    be_worker();
    struct stat before = look(box->dir, "precious");
    bk_helper_op_t op = {
        .call = BK_WIRE_META, .name = "trap", .set = BK_WIRE_SET_MODE, .mode = 0666};
    assert_int_equal(error_of(box->handle, op), EMLINK);
    op.set = BK_WIRE_SET_OWNER;
    op.uid = op.gid = APP;
    assert_int_equal(error_of(box->handle, op), EMLINK);
    op.set = BK_WIRE_SET_MTIME;
    assert_int_equal(error_of(box->handle, op), EMLINK);
    struct stat after = look(box->dir, "precious");
    assert_int_equal(after.st_mode, before.st_mode);
    assert_int_equal(after.st_uid, 0);
    /* What is so already may be said again. */
    op.set = BK_WIRE_SET_MODE | BK_WIRE_SET_OWNER;
    op.uid = op.gid = 0;
    op.mode = 0600;
    assert_int_equal(error_of(box->handle, op), 0);
    /* With one name it is the root's own, whoever made it. */
    be_root();
    unlink(outside);
    be_worker();
    op.mode = 0640;
    assert_int_equal(error_of(box->handle, op), 0);
    assert_int_equal(look(box->root, "trap").st_mode, S_IFREG | 0640);
}

static void test_rights_that_were_not_asked_for_are_not_there(void **state)
{
    BOX;
    bk_helper_root_t *reader, *placer;
    bk_err_t err = {0};
    OK(bk_helper_root_open(box->helper, box->root, BK_WIRE_MAY_READ, &reader, NULL, &err), &err);
    OK(bk_helper_root_open(box->helper, box->root, BK_WIRE_MAY_PLACE, &placer, NULL, &err), &err);
    close(at(box->handle, "", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = "f"}).fd);
    for (int call = BK_WIRE_CREATE; call <= BK_WIRE_SYNC; call++) {
        bool two = call == BK_WIRE_RENAME || call == BK_WIRE_LINK || call == BK_WIRE_LINK_FROM ||
                   call == BK_WIRE_SYMLINK;
        bk_helper_op_t op = {.call = (bk_wire_call_t)call,
                             .name = call == BK_WIRE_SYNC ? "" : "f",
                             .name2 = two ? "g" : ""};
        assert_int_equal(error_of(reader, op), EPERM);
    }
    /* A restore sees what is there, and reads nothing. */
    assert_int_equal(error_of(placer, (bk_helper_op_t){.call = BK_WIRE_STAT, .name = "f"}), 0);
    assert_int_equal(error_of(placer, (bk_helper_op_t){.call = BK_WIRE_OPEN, .flags = O_DIRECTORY}),
                     0);
    assert_int_equal(error_of(placer, (bk_helper_op_t){.call = BK_WIRE_OPEN, .name = "f"}), EPERM);
    /* Content comes through CREATE alone. */
    static const int flags[] = {O_RDWR,   O_WRONLY,  O_TRUNC,        O_CREAT,
                                O_APPEND, O_TMPFILE, O_PATH | O_RDWR};
    for (unsigned i = 0; i < sizeof flags / sizeof flags[0]; i++)
        assert_int_equal(error_of(box->handle, (bk_helper_op_t){.call = BK_WIRE_OPEN,
                                                                .name = "f",
                                                                .flags = (uint32_t)flags[i]}),
                         EPERM);
    bk_helper_root_close(reader);
    bk_helper_root_close(placer);
}

/* --- databases --- */

static void test_a_database_is_opened_for_use(void **state)
{
    BOX;
    bk_helper_result_t db =
        at(box->db, "",
           (bk_helper_op_t){.call = BK_WIRE_OPEN, .name = "app.db", .flags = O_RDWR | O_CREAT});
    assert_int_equal(db.error, 0);
    assert_int_equal(fcntl(db.fd, F_GETFL) & O_ACCMODE, O_RDWR);
    assert_int_equal(pwrite(db.fd, "D", 1, 0), 1);
    close(db.fd);
    bk_helper_result_t wal =
        at(box->db, "",
           (bk_helper_op_t){.call = BK_WIRE_OPEN, .name = "app.db-wal", .flags = O_RDWR | O_CREAT});
    assert_int_equal(wal.error, 0);
    close(wal.fd);
    struct stat st = look(box->data, "app.db-wal");
    assert_int_equal(st.st_uid, APP);
    assert_int_equal(st.st_gid, GROUP);
    assert_int_equal(st.st_mode, S_IFREG | 0640);
    bk_helper_op_t once = {
        .call = BK_WIRE_OPEN, .name = "app.db-wal", .flags = O_RDWR | O_CREAT | O_EXCL};
    assert_int_equal(error_of(box->db, once), EEXIST);
    assert_int_equal(
        error_of(box->db,
                 (bk_helper_op_t){.call = BK_WIRE_OPEN, .name = "app.db-shm", .flags = O_RDWR}),
        ENOENT);
    assert_int_equal(
        error_of(box->db, (bk_helper_op_t){.call = BK_WIRE_OPEN, .flags = O_DIRECTORY}), 0);
    assert_int_equal(
        error_of(box->db, (bk_helper_op_t){.call = BK_WIRE_UNLINK, .name = "app.db-wal"}), 0);
}

static void test_only_the_database_is_reached(void **state)
{
    BOX;
    static const char *const others[] = {"other", "app.db-walx", "app.db2", "app.d", "app.db-"};
    char path[700];
    be_root();
    for (unsigned i = 0; i < 5; i++) {
        join(path, box->data, others[i]);
        write_file(path, "x", APP, APP, 0600);
    }
    be_worker();
    for (unsigned i = 0; i < 5; i++) {
        bk_helper_op_t op = {.call = BK_WIRE_OPEN, .name = others[i], .flags = O_RDWR};
        assert_int_equal(error_of(box->db, op), EPERM);
        op.flags = 0;
        assert_int_equal(error_of(box->db, op), EPERM);
        op.call = BK_WIRE_STAT;
        assert_int_equal(error_of(box->db, op), EPERM);
        op.call = BK_WIRE_UNLINK;
        assert_int_equal(error_of(box->db, op), EPERM);
        op = (bk_helper_op_t){.call = BK_WIRE_RENAME, .name = "app.db", .name2 = others[i]};
        assert_int_equal(error_of(box->db, op), EPERM);
    }
    assert_int_equal(error_of(box->db, (bk_helper_op_t){.call = BK_WIRE_UNLINK, .name = "app.db"}),
                     EPERM);
    assert_int_equal(
        error_of(box->db, (bk_helper_op_t){.call = BK_WIRE_MKDIR, .name = ".ngx-backup-d"}), EPERM);
    assert_int_equal(error_of(box->db, (bk_helper_op_t){.call = BK_WIRE_SYMLINK,
                                                        .name = ".ngx-backup-l",
                                                        .name2 = "/etc/shadow"}),
                     EPERM);
}

static void test_a_database_is_placed_by_a_rename(void **state)
{
    BOX;
    bk_helper_result_t made =
        at(box->db, "", (bk_helper_op_t){.call = BK_WIRE_CREATE, .name = ".ngx-backup-new"});
    assert_int_equal(made.error, 0);
    assert_int_equal(write(made.fd, "new", 3), 3);
    close(made.fd);
    bk_helper_op_t ops[] = {{.call = BK_WIRE_META,
                             .name = ".ngx-backup-new",
                             .set = BK_WIRE_SET_OWNER | BK_WIRE_SET_MODE,
                             .uid = APP,
                             .gid = GROUP,
                             .mode = 0640},
                            {.call = BK_WIRE_RENAME, .name = ".ngx-backup-new", .name2 = "app.db"}};
    bk_helper_result_t results[2];
    bk_err_t err = {0};
    OK(bk_helper_at(box->db, "", 0, ops, 2, results, NULL, &err), &err);
    assert_int_equal(results[0].error, 0);
    assert_int_equal(results[1].error, 0);
    assert_int_equal(look(box->data, "app.db").st_size, 3);
    assert_int_equal(look(box->data, "app.db").st_uid, APP);
}

/* Who places a database must know that nobody has it open; only the helper can ask for that. */
static void test_whoever_has_a_database_open_is_noticed(void **state)
{
    BOX;
    bk_helper_result_t mine =
        at(box->db, "", (bk_helper_op_t){.call = BK_WIRE_OPEN, .name = "app.db", .flags = O_RDWR});
    assert_int_equal(mine.error, 0);
    bk_helper_op_t alone = {.call = BK_WIRE_ALONE, .name = "app.db", .attrs = mine.fd};
    assert_int_equal(error_of(box->db, alone), 0);
    be_root();
    int other = open(box->database, O_RDONLY | O_CLOEXEC);
    be_worker();
    assert_true(other >= 0);
    assert_int_equal(error_of(box->db, alone), EBUSY);
    close(other);
    assert_int_equal(error_of(box->db, alone), 0);
    assert_int_equal(fcntl(mine.fd, F_GETLEASE), F_UNLCK);
    close(mine.fd);
    /* Another file, or another kind of root. */
    alone.attrs = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
    assert_int_equal(error_of(box->db, alone), ESTALE);
    assert_int_equal(error_of(box->handle, alone), EPERM);
    close(alone.attrs);
}

static void test_the_old_database_is_set_aside(void **state)
{
    BOX;
    bk_helper_op_t op = {.call = BK_WIRE_CREATE, .name = ".ngx-backup-new"};
    close(at(box->db, "", op).fd);
    ino_t old = look(box->data, "app.db").st_ino;
    op = (bk_helper_op_t){
        .call = BK_WIRE_RENAME, .name = ".ngx-backup-new", .name2 = "app.db.before-job"};
    assert_int_equal(error_of(box->db, op), 0);
    op = (bk_helper_op_t){.call = BK_WIRE_RENAME,
                          .name = "app.db.before-job",
                          .name2 = "app.db",
                          .flags = RENAME_EXCHANGE};
    assert_int_equal(error_of(box->db, op), 0);
    assert_int_equal(look(box->data, "app.db.before-job").st_ino, old);
    op = (bk_helper_op_t){.call = BK_WIRE_RENAME, .name = "app.db", .name2 = "other.db.before-job"};
    assert_int_equal(error_of(box->db, op), EPERM);
}

static void test_a_reader_of_a_database_makes_its_companions_alone(void **state)
{
    BOX;
    bk_helper_root_t *reader;
    bk_err_t err = {0};
    OK(bk_helper_root_open(box->helper, box->database, BK_WIRE_MAY_READ | BK_WIRE_DATABASE, &reader,
                           NULL, &err),
       &err);
    bk_helper_op_t op = {.call = BK_WIRE_OPEN, .name = "app.db-shm", .flags = O_RDWR | O_CREAT};
    assert_int_equal(error_of(reader, op), 0);
    op.name = ".ngx-backup-x";
    assert_int_equal(error_of(reader, op), EPERM);
    op.call = BK_WIRE_CREATE;
    op.flags = 0;
    assert_int_equal(error_of(reader, op), EPERM);
    op.call = BK_WIRE_UNLINK;
    op.name = "app.db-shm";
    assert_int_equal(error_of(reader, op), EPERM);
    bk_helper_root_close(reader);
}

/* A database that is a second name of somebody else's file is not given out for writing. */
static void test_a_database_with_further_names_is_not_written(void **state)
{
    BOX;
    char outside[700];
    join(outside, box->dir, "precious");
    be_root();
    write_file(outside, "root's own", 0, 0, 0600);
    assert_int_equal(unlink(box->database), 0);
    assert_int_equal(link(outside, box->database), 0);
    be_worker();
    bk_helper_op_t op = {.call = BK_WIRE_OPEN, .name = "app.db", .flags = O_RDWR};
    assert_int_equal(error_of(box->db, op), EMLINK);
    be_root();
    assert_int_equal(unlink(box->database), 0);
    assert_int_equal(symlink(outside, box->database), 0);
    be_worker();
    assert_int_equal(error_of(box->db, op), ELOOP);
    op.name = "app.db-wal";
    op.flags = O_RDWR | O_CREAT;
    assert_int_equal(error_of(box->db, op), EPERM);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_a_file_comes_back_with_everything),
        T(test_access_lists_come_back),
        T(test_directories_links_and_fifos),
        T(test_names_in_other_directories_are_linked_and_removed),
        T(test_renames_keep_or_exchange),
        T(test_special_bits_need_the_configuration),
        T(test_capabilities_of_files_need_the_configuration),
        T(test_a_damaged_blob_changes_nothing),
        T(test_a_file_with_further_names_is_not_changed),
        T(test_rights_that_were_not_asked_for_are_not_there),
        T(test_a_database_is_opened_for_use),
        T(test_only_the_database_is_reached),
        T(test_a_database_is_placed_by_a_rename),
        T(test_whoever_has_a_database_open_is_noticed),
        T(test_the_old_database_is_set_aside),
        T(test_a_reader_of_a_database_makes_its_companions_alone),
        T(test_a_database_with_further_names_is_not_written),
    };
    return cmocka_run_group_tests_name("helper place", tests, NULL, NULL);
}
