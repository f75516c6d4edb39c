/*
 * helper/refuse.c: counters of refusals in memory that the agent's conversations share, and one
 * line in the system's log for the first of each kind.  libc only.
 */
#include "helper/refuse.h"

#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <syslog.h>

typedef struct {
    atomic_uint_fast64_t count[BK_REFUSE_KINDS];
} counters_t;

static counters_t own;
static counters_t *counters = &own;

static const char *const texts[BK_REFUSE_KINDS] = {
    [BK_REFUSE_ROOT] = "a root that the configuration does not give",
    [BK_REFUSE_RIGHT] = "an operation that the root was not opened for",
    [BK_REFUSE_PATH] = "a path that leads out of its root",
    [BK_REFUSE_LINK] = "a path with a symbolic link in it",
    [BK_REFUSE_MOUNT] = "a mount point below a root; make it a root of its own",
    [BK_REFUSE_KIND] = "a device node or a socket",
    [BK_REFUSE_SETUID] = "set-user-id bits, set-group-id bits or capabilities of a file",
    [BK_REFUSE_NAMES] = "a change to a file that has further names",
    [BK_REFUSE_DATABASE] = "a file that does not belong to the database",
    [BK_REFUSE_GRAMMAR] = "a message that is not of the protocol"};

void bk_refuse_share(void)
{
    if (counters != &own)
        return;
    void *page =
        mmap(NULL, sizeof(counters_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page != MAP_FAILED)
        counters = page;
}

void bk_refuse(bk_refuse_t kind, const char *object, size_t len)
{
    char text[4 * 120 + 1];
    size_t used = 0;
    if (atomic_fetch_add(&counters->count[kind], 1) != 0)
        return;
    for (size_t i = 0; i < len && i < 120; i++) {
        unsigned char c = (unsigned char)object[i];
        if (c >= ' ' && c < 127 && c != '\\')
            text[used++] = (char)c;
        else
            used += (size_t)snprintf(text + used, sizeof text - used, "\\x%02x", c);
    }
    text[used] = '\0';
    syslog(LOG_WARNING, "refused a worker %s: \"%s\"; further ones are only counted", texts[kind],
           text);
}

uint64_t bk_refuse_total(void)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < BK_REFUSE_KINDS; i++)
        total += atomic_load(&counters->count[i]);
    return total;
}
