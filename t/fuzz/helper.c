/*
 * t/fuzz/helper.c: what a worker says to the privileged helper: a run of datagrams, each with a length of two bytes before it,
 * and as many descriptors as its operations ask for, goes through the same parser and dispatcher as in a conversation.  The roots are a small tree of the fuzzer's own, which the
 * conversation may change; what lies beside it must stay as it is.  The other inputs, a table of roots and a blob of attributes,
 * are parsed as well.
 */
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helper/attributes.h"
#include "helper/roots.h"
#include "helper/talk_private.h"

static char base[64], root[96], beside[96], watched[96], database[128];
static bk_roots_t *roots;
static unsigned rounds;

/* --- seeds --- */

static uint8_t made[4096];
static size_t made_len;

static void add(const void *bytes, size_t len)
{
    memcpy(made + made_len, bytes, len);
    made_len += len;
}

static void message(uint16_t verb, const void *body, size_t len)
{
    bk_wire_head_t head = {.magic = BK_WIRE_MAGIC,
                           .version = BK_WIRE_VERSION,
                           .verb = verb,
                           .id = 1,
                           .len = (uint32_t)len};
    uint16_t size = (uint16_t)(sizeof head + len);
    add(&size, sizeof size);
    add(&head, sizeof head);
    add(body, len);
}

/* Roots are named by a digit, which the target replaces: their paths are another in each process. */
static void ask(uint32_t may, char which)
{
    uint8_t body[sizeof(bk_wire_ask_root_t) + 1];
    bk_wire_ask_root_t head = {.may = may, .len = 1};
    memcpy(body, &head, sizeof head);
    body[sizeof head] = (uint8_t)which;
    message(BK_WIRE_ROOT, body, sizeof body);
}

static void at(uint16_t call, const char *dir, const char *name, const char *name2, uint32_t flags,
               uint32_t set)
{
    uint8_t body[512];
    bk_wire_at_t head = {.dir_len = (uint16_t)strlen(dir), .count = 2};
    bk_wire_op_t op = {.call = call,
                       .name_len = (uint16_t)strlen(name),
                       .name2_len = (uint16_t)strlen(name2),
                       .flags = flags,
                       .set = set,
                       .mode = 0600};
    size_t len = 0;
    memcpy(body, &head, sizeof head), len += sizeof head;
    memcpy(body + len, dir, head.dir_len), len += head.dir_len;
    for (unsigned i = 0; i < 2; i++) {
        memcpy(body + len, &op, sizeof op), len += sizeof op;
        memcpy(body + len, name, op.name_len), len += op.name_len;
        memcpy(body + len, name2, op.name2_len), len += op.name2_len;
    }
    message(BK_WIRE_AT, body, len);
}

static void seeds(void)
{
    /* With descriptors: attributes from memory, and the database itself. */
    made_len = 0;
    ask(BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE, '0');
    at(BK_WIRE_META, "d", "f", "", 0, 15);
    at(BK_WIRE_META, "d", "f", "", 0, 8 | BK_WIRE_SET_FRESH);
    fuzz_seed(made, made_len);
    made_len = 0;
    ask(BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE | BK_WIRE_DATABASE, '1');
    at(BK_WIRE_ALONE, "", "app.db", "", 0, 0);
    at(BK_WIRE_ALONE, "", "app.db-wal", "", 0, 0);
    fuzz_seed(made, made_len);
    made_len = 0;
    ask(BK_WIRE_MAY_WATCH, '2');
    ask(BK_WIRE_MAY_WATCH | BK_WIRE_MAY_READ, '2');
    at(BK_WIRE_STAT, "", "f", "", 0, 0);
    message(BK_WIRE_WATCH, "", 0);
    fuzz_seed(made, made_len);
    for (uint16_t call = BK_WIRE_STAT; call <= BK_WIRE_SYNC; call++) {
        bool two = call == BK_WIRE_RENAME || call == BK_WIRE_LINK || call == BK_WIRE_LINK_FROM ||
                   call == BK_WIRE_SYMLINK;
        made_len = 0;
        message(BK_WIRE_HELLO, "", 0);
        ask(BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE, '0');
        at(call, "d", call == BK_WIRE_SYNC ? "" : "f", two ? "g" : "", 0,
           call == BK_WIRE_META ? 7 : 0);
        at(call, "", call == BK_WIRE_SYNC ? "" : "l", two ? "m" : "", 0, 0);
        fuzz_seed(made, made_len);
    }
    made_len = 0;
    ask(BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE | BK_WIRE_DATABASE, '1');
    at(BK_WIRE_OPEN, "", "app.db-wal", "", O_RDWR | O_CREAT, 0);
    at(BK_WIRE_RENAME, "", ".ngx-backup-1", "app.db", 0, 0);
    fuzz_seed(made, made_len);
    bk_wire_root_t *one = calloc(1, sizeof *one);
    if (one == NULL)
        abort();
    one->len = 4;
    memcpy(one->path, "/srv", 4);
    fuzz_seed(one, sizeof *one);
    free(one);
}

/* --- the tree --- */

static void put(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd >= 0 && write(fd, "x", 1) == 1);
    close(fd);
}

static void remove_below(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        char below[512];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
        if (unlink(below) != 0) {
            chmod(below, 0700);
            remove_below(below);
            rmdir(below);
        }
    }
    if (dir != NULL)
        closedir(dir);
}

static void make_tree(void)
{
    char path[160];
    chmod(root, 0700);
    remove_below(root);
    mkdir(root, 0700);
    snprintf(path, sizeof path, "%s/d", root);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/d/f", root);
    put(path);
    snprintf(path, sizeof path, "%s/l", root);
    FUZZ_CHECK(symlink("../beside", path) == 0 || errno == EEXIST);
    snprintf(path, sizeof path, "%s/app.db", root);
    put(path);
}

static void remove_all(void)
{
    remove_below(base);
    rmdir(base);
}

static void begin(void)
{
    uint32_t which;
    const char *why;
    snprintf(base, sizeof base, "/tmp/ngx-backup-fuzz-XXXXXX");
    FUZZ_CHECK(mkdtemp(base) != NULL);
    atexit(remove_all);
    snprintf(root, sizeof root, "%s/root", base);
    snprintf(beside, sizeof beside, "%s/beside", base);
    snprintf(database, sizeof database, "%s/app.db", root);
    snprintf(watched, sizeof watched, "%s/watched", base);
    FUZZ_CHECK(mkdir(root, 0700) == 0 && mkdir(beside, 0700) == 0 && mkdir(watched, 0700) == 0);
    bk_wire_root_t *table = calloc(3, sizeof *table);
    FUZZ_CHECK(table != NULL);
    table[0].flags = BK_WIRE_MAY_READ | BK_WIRE_MAY_PLACE;
    table[0].len = (uint32_t)strlen(root);
    memcpy(table[0].path, root, table[0].len);
    table[1].flags = table[0].flags | BK_WIRE_DATABASE;
    table[1].len = (uint32_t)strlen(database);
    memcpy(table[1].path, database, table[1].len);
    table[2].flags = BK_WIRE_MAY_WATCH;
    table[2].len = (uint32_t)strlen(watched);
    memcpy(table[2].path, watched, table[2].len);
    FUZZ_CHECK(bk_roots_parse(table, 3 * sizeof *table, 3, &roots, &which, &why) == 0);
    free(table);
    make_tree();
}

static unsigned count_names(const char *path)
{
    unsigned count = 0;
    DIR *dir = opendir(path);
    while (dir != NULL && readdir(dir) != NULL)
        count++;
    if (dir != NULL)
        closedir(dir);
    return count;
}

/* --- the conversation --- */

/* A descriptor for each operation that takes one, as far as the message says; what is not sound has none. */
static unsigned wanted(const uint8_t *bytes, size_t len, int memory, int file, int fds[BK_WIRE_OPS])
{
    bk_wire_head_t head;
    bk_wire_at_t first;
    unsigned count = 0;
    size_t pos = sizeof head + sizeof first;
    if (len < pos)
        return 0;
    memcpy(&head, bytes, sizeof head);
    memcpy(&first, bytes + sizeof head, sizeof first);
    if (head.verb != BK_WIRE_AT || first.count > BK_WIRE_OPS)
        return 0;
    pos += first.dir_len;
    for (unsigned i = 0; i < first.count; i++) {
        bk_wire_op_t op;
        if (pos + sizeof op > len)
            return 0;
        memcpy(&op, bytes + pos, sizeof op);
        pos += sizeof op + op.name_len + op.name2_len;
        if (op.call == BK_WIRE_ALONE)
            fds[count++] = file;
        else if (op.call == BK_WIRE_META && (op.set & BK_WIRE_SET_ATTRS) != 0)
            fds[count++] = memory;
    }
    return count;
}

static void say(int talker, bk_talk_t *talk, const uint8_t *bytes, size_t len, int memory, int file)
{
    static uint8_t real[BK_WIRE_MESSAGE];
    bk_wire_head_t head = {0};
    bk_wire_ask_root_t asked;
    const uint8_t *text = bytes;
    /* The digit of a root stands for its path. */
    if (len == sizeof head + sizeof asked + 1) {
        memcpy(&head, bytes, sizeof head);
        memcpy(&asked, bytes + sizeof head, sizeof asked);
        const char *path = bytes[len - 1] == '2'   ? watched
                           : bytes[len - 1] == '1' ? database
                                                   : root;
        if (head.verb == BK_WIRE_ROOT && asked.len == 1 && bytes[len - 1] >= '0' &&
            bytes[len - 1] <= '2') {
            asked.len = (uint32_t)strlen(path);
            head.len = (uint32_t)(sizeof asked + asked.len);
            memcpy(real, &head, sizeof head);
            memcpy(real + sizeof head, &asked, sizeof asked);
            memcpy(real + sizeof head + sizeof asked, path, asked.len);
            text = real;
            len = sizeof head + head.len;
        }
    }
    int fds[BK_WIRE_OPS];
    unsigned count = memory >= 0 && file >= 0 ? wanted(text, len, memory, file, fds) : 0;
    memcpy(&head, text, len < sizeof head ? len : sizeof head);
    bool sound = len >= sizeof head && head.magic == BK_WIRE_MAGIC &&
                 head.version == BK_WIRE_VERSION && head.len == len - sizeof head;
    if (sound && count > 0) {
        if (bk_wire_send(talker, (bk_wire_verb_t)head.verb, head.id, text + sizeof head, head.len,
                         fds, count) != 0)
            return;
    } else if (len == 0 || send(talker, text, len, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)len) {
        return;
    }
    if (bk_wire_receive(talk->fd, &talk->in) == BK_WIRE_OK)
        (void)bk_talk_message(talk);
    bk_wire_drop(&talk->in);
}

static void check_reply(int talker)
{
    static bk_wire_message_t reply;
    while (bk_wire_receive(talker, &reply) == BK_WIRE_OK) {
        for (unsigned i = 0; i < reply.fd_count; i++) {
            struct stat st;
            FUZZ_CHECK(fstat(reply.fds[i], &st) == 0);
            FUZZ_CHECK(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) || S_ISFIFO(st.st_mode) ||
                       S_ISLNK(st.st_mode));
        }
        bk_wire_drop(&reply);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int pair[2];
    bk_roots_t *parsed;
    uint32_t which;
    const char *why;
    if (base[0] == '\0')
        begin();
    if (bk_roots_parse(data, size, (uint32_t)(size / sizeof(bk_wire_root_t)), &parsed, &which,
                       &why) == 0)
        bk_roots_free(parsed);
    unsigned refused = 0;
    bool withheld = false;
    int file = open(database, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (file >= 0) {
        (void)bk_attributes_write(file, rounds % 2 == 0, false, data, size, &refused, &withheld);
        close(file);
    }
    if (rounds++ % 256 == 0 || count_names(root) > 200)
        make_tree();
    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    bk_talk_t *talk = bk_talk_new(pair[1], BK_WIRE_FOR_FILES, roots, 1);
    FUZZ_CHECK(talk != NULL);
    /* What the input says itself is what a worker would pass as attributes. */
    int memory = memfd_create("attributes", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int whole = open(database, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (memory >= 0)
        FUZZ_CHECK(write(memory, data, size) == (ssize_t)size);
    for (size_t i = 0; i + 2 <= size;) {
        uint16_t len;
        memcpy(&len, data + i, sizeof len);
        i += 2;
        size_t have = size - i < len ? size - i : len;
        say(pair[0], talk, data + i, have, memory, whole);
        check_reply(pair[0]);
        i += have;
    }
    if (memory >= 0)
        close(memory);
    if (whole >= 0)
        close(whole);
    bk_talk_free(talk);
    close(pair[0]);
    close(pair[1]);
    FUZZ_CHECK(count_names(beside) == 2);
    FUZZ_CHECK(count_names(watched) == 2); /* looked at, never changed */
    FUZZ_CHECK(count_names(base) == 5);
    return 0;
}
