/*
 * engine/capture_report.c: what the running captures tell of themselves: how far base_dir and the
 * storage are behind the application, whether a step comes back, and what was found of them over
 * the lives of several owners, which is a value in the catalog.  Reads base_dir/wal.
 */
#include <dirent.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/str.h"
#include "engine/capturing_private.h"
#include "engine/covered.h"
#include "sqlite/opening.h"

#define REMEMBERED "captures" /* {name: {"gaps", "proved", "doubted"}} */
#define STEP_LONG  (30 * BK_SEC)
#define ASKED      (60 * BK_SEC) /* a new owner knows by then what the storage has */

/* --- remembered --- */

static void load_one(const json_t *all, bk_captured_t *one)
{
    const json_t *value = json_object_get(all, one->db->name);
    pthread_mutex_lock(&one->text);
    one->since = bk_now();
    one->looked = false;
    one->gaps = (uint64_t)json_integer_value(json_object_get(value, "gaps"));
    one->proved = json_integer_value(json_object_get(value, "proved"));
    one->doubted = json_integer_value(json_object_get(value, "doubted"));
    pthread_mutex_unlock(&one->text);
}

void bk_capture_report_begin(bk_capturing_t *c)
{
    json_t *all = NULL;
    (void)bk_catalog_value(c->catalog, REMEMBERED, &all, NULL);
    for (size_t i = 0; i < c->count; i++)
        load_one(all, &c->list[i]);
    json_decref(all);
}

void bk_capture_report_first(bk_captured_t *one)
{
    bk_capture_known_t known;
    pthread_mutex_lock(&one->text);
    bool looked = one->looked;
    one->looked = true;
    pthread_mutex_unlock(&one->text);
    if (looked || !bk_covered_read(one->dir, &known))
        return;
    pthread_mutex_lock(&one->text);
    one->before = known.until;
    pthread_mutex_unlock(&one->text);
}

static void put(json_t *all, void *arg)
{
    bk_captured_t *one = arg;
    pthread_mutex_lock(&one->text);
    json_t *value = json_pack("{sI sI sI}", "gaps", (json_int_t)one->gaps, "proved",
                              (json_int_t)one->proved, "doubted", (json_int_t)one->doubted);
    pthread_mutex_unlock(&one->text);
    json_object_set_new(all, one->db->name, value);
}

/* Best effort: what is known here is shown all the same. */
static void save(bk_capturing_t *c, bk_captured_t *one)
{
    (void)bk_catalog_edit_value(c->catalog, REMEMBERED, put, one, NULL);
}

void bk_capture_report_proved(bk_capturing_t *c, bk_captured_t *one, int64_t when)
{
    pthread_mutex_lock(&one->text);
    bool newer = when > one->proved;
    if (newer)
        one->proved = when;
    pthread_mutex_unlock(&one->text);
    if (newer)
        save(c, one);
}

void bk_capture_report_doubt(bk_capturing_t *c, bk_captured_t *one)
{
    pthread_mutex_lock(&one->text);
    one->doubted = bk_now();
    pthread_mutex_unlock(&one->text);
    save(c, one);
}

bool bk_capture_report_doubted(bk_captured_t *one)
{
    pthread_mutex_lock(&one->text);
    one->asked = one->doubted;
    bool doubted = one->doubted != 0;
    pthread_mutex_unlock(&one->text);
    return doubted;
}

/* --- what waits for the storage --- */

/* The number in a segment's name, of an epoch in hex; 0: it is none of that. */
static uint64_t first_of(const char *name, const char *hex)
{
    size_t len = strlen(hex);
    return strncmp(name, hex, len) == 0 && name[len] == '-' ? strtoull(name + len + 1, NULL, 10)
                                                            : 0;
}

/* Since when a transaction behind that number may have been committed, in one segment; 0: none. */
static int64_t since_in(const char *path, uint64_t shipped)
{
    bk_txlog_t *log = NULL;
    int64_t since = 0;
    if (bk_txlog_open_file(path, &log, NULL) != BK_OK)
        return 0;
    for (size_t i = 0; i < bk_txlog_count(log) && since == 0; i++)
        if (bk_txlog_tx(log, i)->txid > shipped)
            since = bk_txlog_tx(log, i)->t_lo;
    bk_txlog_free(log);
    return since;
}

/* Of an earlier epoch only what is not on the storage is still here, the oldest segment first. */
static int64_t since_here(const bk_captured_t *one, const uint8_t epoch[BK_EPOCH_SIZE],
                          uint64_t shipped)
{
    struct dirent **names;
    char hex[2 * BK_EPOCH_SIZE + 1], found[2 * BK_EPOCH_SIZE + 1] = "";
    int64_t oldest = 0;
    bk_hex(hex, epoch, BK_EPOCH_SIZE);
    int count = scandir(one->dir, &names, bk_capturing_segments, alphasort);
    for (int i = 0; i < count; i++) {
        char path[PATH_MAX];
        const char *name = names[i]->d_name;
        bool own = first_of(name, hex) != 0;
        uint64_t next = own && i + 1 < count ? first_of(names[i + 1]->d_name, hex) : 0;
        bool over = next != 0 && next <= shipped + 1; /* all of it is on the storage */
        if (over || (found[0] != '\0' && first_of(name, found) != 0))
            continue;
        bk_fmt(path, sizeof path, "%s/%s", one->dir, name);
        int64_t since = since_in(path, own ? shipped : 0);
        if (since != 0)
            bk_strcpy(found, sizeof found, name);
        if (since != 0 && (oldest == 0 || since < oldest))
            oldest = since;
    }
    for (int i = 0; i < count; i++)
        free(names[i]);
    if (count >= 0)
        free(names);
    return oldest;
}

static uint64_t shipped_of(const bk_captured_t *one)
{
    bool same = memcmp(one->shipped_epoch, one->state.epoch, BK_EPOCH_SIZE) == 0;
    return same ? one->shipped : 0;
}

/*
 * A transaction is in a segment before the state tells of it: what is not found there is on the
 * storage, unless one came meanwhile.
 */
void bk_capture_report_waiting(bk_captured_t *one)
{
    for (bool again = true; again;) {
        pthread_mutex_lock(&one->text);
        bk_capture_state_t state = one->state;
        uint64_t shipped = shipped_of(one);
        pthread_mutex_unlock(&one->text);
        int64_t since = state.page_size != 0 ? since_here(one, state.epoch, shipped) : 0;
        pthread_mutex_lock(&one->text);
        again = one->state.txid != state.txid && since == 0;
        if (!again && state.page_size != 0)
            one->waiting = since;
        pthread_mutex_unlock(&one->text);
    }
}

/* --- steps --- */

void bk_capture_report_opened(bk_captured_t *one)
{
    pthread_mutex_lock(&one->text);
    one->state.gaps = 0;
    one->state.differing = 0;
    pthread_mutex_unlock(&one->text);
}

void bk_capture_report_step(bk_captured_t *one, const bk_capture_state_t *before)
{
    const bk_capture_state_t *s = &one->state;
    bool same = memcmp(s->epoch, before->epoch, sizeof s->epoch) == 0;
    if (s->gaps > before->gaps)
        one->gaps += s->gaps - before->gaps;
    if (s->proved > one->proved)
        one->proved = s->proved;
    if (s->doubted && one->doubted == 0) /* by its own comparison */
        one->doubted = bk_now();
    else if (one->doubted == one->asked && !s->paused && !s->doubted)
        one->doubted = 0;
    if (s->paused)
        return;
    if (before->page_size == 0 || !same)
        one->waiting = BK_WAITING_UNKNOWN; /* the caller looks */
    else if (one->waiting == 0 && s->txid > before->txid)
        one->waiting = before->as_of;
}

void bk_capture_report_remember(bk_capturing_t *c, bk_captured_t *one,
                                const bk_capture_state_t *before)
{
    pthread_mutex_lock(&one->text);
    const bk_capture_state_t *s = &one->state;
    bool look = one->waiting == BK_WAITING_UNKNOWN && s->page_size != 0;
    /* Each batch is a comparison: that is not written down each time. */
    bool news = s->gaps > before->gaps || (s->proved != before->proved && !s->batches) ||
                s->doubted != before->doubted || (one->asked != 0 && one->doubted == 0);
    if (one->doubted == 0)
        one->asked = 0;
    pthread_mutex_unlock(&one->text);
    if (look)
        bk_capture_report_waiting(one);
    if (news)
        save(c, one);
}

/* --- the report --- */

/* Under text.  A step that reads a large database moves on; one that waits for a disk does not. */
static bool is_long(bk_captured_t *one, bool *stuck)
{
    int64_t now = bk_mono();
    uint64_t read = atomic_load(&one->ctl.bytes_read);
    if (read != one->progress) {
        one->progress = read;
        one->progressed = now;
    }
    int64_t moved = one->progressed > one->stepping ? one->progressed : one->stepping;
    *stuck = one->stepping != 0 && now - moved > STEP_LONG;
    return one->stepping != 0 && now - one->stepping > STEP_LONG;
}

static void say_stuck(const bk_capturing_t *c, const bk_captured_t *one, char text[BK_ERR_TEXT])
{
    const bk_capture_state_t *s = &one->state; /* nobody asks the disk that hangs */
    bk_fmt(
        text, BK_ERR_TEXT,
        "a step has hung for %lld s: the disk of base_dir %s or of the database does not answer. "
        "The application's write-ahead log cannot begin anew meanwhile, it had %llu MiB: bring "
        "that disk back, or take it away, so that the call fails; then the log is let go of",
        (long long)((bk_mono() - one->stepping) / BK_SEC), c->set->base_dir,
        ((unsigned long long)s->wal_frames * s->page_size) >> 20);
}

/* Under text. */
static void say_problem(const bk_capturing_t *c, bk_captured_t *one, bk_capture_report_t *r)
{
    bool is_slow = is_long(one, &r->stuck);
    if (r->stuck)
        say_stuck(c, one, r->problem);
    else if (r->detached)
        bk_strcpy(r->problem, sizeof r->problem,
                  "it is detached: attach it, and it goes on with a gap");
    else if (one->problem[0] != '\0')
        bk_strcpy(r->problem, sizeof r->problem, one->problem);
    else if (is_slow)
        bk_strcpy(r->problem, sizeof r->problem,
                  "all of a large database has been read for more than 30 s: the application's log "
                  "cannot begin anew meanwhile");
}

/* Under text.  Before the storage was asked, what is here may be there as well. */
static int64_t shipped_until(const bk_captured_t *one, int64_t durable)
{
    bool asked = memcmp(one->shipped_epoch, one->state.epoch, BK_EPOCH_SIZE) == 0;
    bool soon = bk_now() - one->since < ASKED && one->shipping[0] == '\0';
    if (one->waiting == BK_WAITING_UNKNOWN || (!asked && soon))
        return 0;
    return one->waiting != 0 && one->waiting < durable ? one->waiting : durable;
}

/* Under text. */
static void report(bk_capturing_t *c, bk_captured_t *one, bk_capture_report_t *r)
{
    const bk_capture_state_t *s = &one->state;
    *r = (bk_capture_report_t){.name = one->db->name,
                               .detached = atomic_load(&one->detached),
                               .batches = s->batches,
                               .doubted = one->doubted != 0 || s->doubted,
                               .since = one->since,
                               .durable = s->as_of != 0 ? s->as_of : one->before,
                               .proved = one->proved};
    say_problem(c, one, r);
    r->capturing = !s->paused && s->page_size != 0 && !r->stuck;
    r->shipped = shipped_until(one, r->durable);
    bk_strcpy(r->shipping, sizeof r->shipping, one->shipping);
}

size_t bk_capturing_count(const bk_capturing_t *c)
{
    return c->count;
}

void bk_capturing_report(bk_capturing_t *c, size_t which, bk_capture_report_t *r)
{
    bk_captured_t *one = &c->list[which];
    pthread_mutex_lock(&one->text);
    report(c, one, r);
    pthread_mutex_unlock(&one->text);
}

/* Seconds since all that was committed was there; null: never, as far as is known. */
static json_t *age(int64_t as_of)
{
    int64_t passed = bk_now() - as_of;
    return as_of == 0 ? json_null() : json_real(passed > 0 ? (double)(passed / BK_MS) / 1000 : 0);
}

/* Compared with the instants of backups. */
static json_t *exact_time(int64_t ns)
{
    char text[BK_TIME_TEXT];
    bk_time_format_exact(text, ns);
    return ns != 0 ? json_string(text) : json_null();
}

static json_t *describe(bk_capturing_t *c, bk_captured_t *one)
{
    bk_capture_report_t r;
    pthread_mutex_lock(&one->text);
    report(c, one, &r);
    bk_capture_state_t s = one->state;
    bool same = memcmp(one->shipped_epoch, s.epoch, BK_EPOCH_SIZE) == 0;
    json_t *result = json_pack(
        "{ss sb ss ss* sb sI so so ss* sI so so sI so sb so sI sb so}", "name", r.name, "capturing",
        (int)r.capturing, "precision", s.batches ? "batch" : "transaction", "problem",
        r.problem[0] != '\0' ? r.problem : NULL, "detached", (int)r.detached, "transaction",
        (json_int_t)s.txid, "last_durable", bk_json_time(s.durable), "durable_age_seconds",
        age(r.durable), "shipping_problem", r.shipping[0] != '\0' ? r.shipping : NULL,
        "shipped_transaction", (json_int_t)shipped_of(one), "shipped_until",
        bk_json_time(same ? one->shipped_until : 0), "shipped_age_seconds", age(r.shipped), "gaps",
        (json_int_t)one->gaps, "proved", bk_json_time(r.proved), "doubted", (int)r.doubted,
        "epoch_began", exact_time(s.began), "wal_frames", (json_int_t)s.wal_frames, "wal_blocked",
        (int)s.blocked, "wal_blocked_by",
        s.blocked ? json_string(s.blocked_here ? "backup" : "application") : json_null());
    pthread_mutex_unlock(&one->text);
    return result;
}

json_t *bk_capturing_describe(bk_capturing_t *c)
{
    json_t *list = json_array();
    for (size_t i = 0; i < c->count; i++)
        json_array_append_new(list, describe(c, &c->list[i]));
    return list;
}
