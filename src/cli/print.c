/*
 * cli/print.c: answers for people: tables, a job's result, the progress line.  Reads JSON, decides
 * nothing.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/cli.h"

void cli_print_json(const json_t *value)
{
    json_dumpf(value, stdout, JSON_COMPACT | JSON_ENCODE_ANY);
    putchar('\n');
}

void cli_size(char out[16], double bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    unsigned i = 0;
    while (bytes >= 1024 && i < 5) {
        bytes /= 1024;
        i++;
    }
    snprintf(out, 16, i == 0 ? "%.0f %s" : "%.1f %s", bytes, unit[i]);
}

static const char *text(const json_t *object, const char *name)
{
    const char *value = json_string_value(json_object_get(object, name));
    return value != NULL ? value : "-";
}

static double number(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

void cli_print_backups(const json_t *list)
{
    size_t i;
    json_t *item;
    printf("%-36s %-9s %-20s %9s %11s %11s\n", "BACKUP", "STATUS", "COMPLETED", "FILES", "SIZE",
           "STORED");
    json_array_foreach(json_object_get(list, "backups"), i, item)
    {
        char size[16], stored[16];
        cli_size(size, number(item, "size"));
        cli_size(stored, number(item, "stored_size"));
        printf("%-36s %-9s %-20s %9.0f %11s %11s\n", text(item, "backup_id"), text(item, "status"),
               text(item, "completed"), number(item, "files"), size, stored);
    }
    if (json_array_size(json_object_get(list, "backups")) == 0)
        puts("No backup yet: 'ngx-backup backup --type full' makes one.");
}

/* Members as "name: value" lines; nested ones are indented. */
static void print_members(const json_t *object, int indent)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, name, value)
    {
        if (json_is_null(value))
            continue;
        printf("%*s%s:", indent, "", name);
        if (json_is_object(value)) {
            putchar('\n');
            print_members(value, indent + 2);
        } else if (json_is_array(value)) {
            size_t i;
            json_t *item;
            putchar('\n');
            json_array_foreach(value, i, item)
            {
                if (json_is_object(item)) {
                    printf("%*s-\n", indent + 2, "");
                    print_members(item, indent + 4);
                } else {
                    printf("%*s- %s\n", indent + 2, "",
                           json_is_string(item) ? json_string_value(item) : "");
                }
            }
        } else if (json_is_string(value)) {
            printf(" %s\n", json_string_value(value));
        } else if (json_is_real(value)) {
            printf(" %g\n", json_real_value(value));
        } else if (json_is_integer(value)) {
            printf(" %" JSON_INTEGER_FORMAT "\n", json_integer_value(value));
        } else {
            printf(" %s\n", json_is_true(value) ? "yes" : "no");
        }
    }
}

void cli_print_backup(const json_t *backup)
{
    print_members(backup, 0);
}

void cli_print_status(const json_t *status)
{
    print_members(status, 0);
}

void cli_print_plan(const json_t *plan)
{
    print_members(plan, 0);
}

/* Bytes that no text can be are in hex already. */
static void print_value(const json_t *value)
{
    if (json_is_null(value)) {
        fputs("NULL", stdout);
    } else if (json_is_string(value)) {
        for (const char *p = json_string_value(value); *p != '\0'; p++)
            if ((unsigned char)*p >= ' ' && *p != 0x7f)
                putchar(*p);
            else /* nothing that would end the line, or move a terminal's cursor */
                printf("\\x%02x", (unsigned)*p);
    } else if (json_is_object(value)) { /* {"blob_hex": "…"} and its like */
        const json_t *only = json_object_iter_value(json_object_iter((json_t *)(uintptr_t)value));
        fputs(json_string_value(only) != NULL ? json_string_value(only) : "", stdout);
    } else {
        json_dumpf(value, stdout, JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
    }
}

void cli_print_rows(const json_t *answer)
{
    size_t i, n;
    json_t *column, *row, *value;
    const char *cut = json_string_value(json_object_get(answer, "truncated"));
    json_array_foreach(json_object_get(answer, "columns"), i, column)
    {
        printf("%s%s", i > 0 ? "|" : "", text(column, "name"));
    }
    putchar('\n');
    json_array_foreach(json_object_get(answer, "rows"), i, row)
    {
        json_array_foreach(row, n, value)
        {
            if (n > 0)
                putchar('|');
            print_value(value);
        }
        putchar('\n');
    }
    fflush(stdout);
    fprintf(stderr, "as of %s", text(answer, "recovery_point"));
    if (json_is_integer(json_object_get(answer, "transaction")))
        fprintf(stderr, ", transaction %.0f", number(answer, "transaction"));
    fprintf(stderr, "%s\n", cut == NULL ? "" : "; there are more rows: --limit N");
}

static void print_transactions(const json_t *database)
{
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(database, "transactions"), i, one)
    {
        if (i == 0)
            printf("  %11s  %-30s %8s\n", "TRANSACTION", "AS OF", "PAGES");
        printf("  %11.0f  %-30s %8.0f%s\n", number(one, "transaction"), text(one, "until"),
               number(one, "pages"),
               json_is_true(json_object_get(one, "gap"))     ? "  gap"
               : json_is_true(json_object_get(one, "batch")) ? "  batch"
                                                             : "");
    }
    if (json_is_string(json_object_get(database, "next_cursor")))
        puts("  … there are more: --limit N, --until TIME");
}

static void print_gap(const json_t *gap)
{
    const char *reason = text(gap, "reason");
    if (strcmp(reason, "unseen") == 0)
        printf("  but nobody saw %s to %s (transaction %.0f)\n", text(gap, "from"), text(gap, "to"),
               number(gap, "transaction"));
    else
        printf("  but %s to %s cannot be had: transactions %.0f to %.0f are %s\n",
               text(gap, "from"), text(gap, "to"), number(gap, "transaction"),
               number(gap, "last_transaction"),
               strcmp(reason, "no_backup") == 0 ? "from before the first backup" : reason);
}

void cli_print_timeline(const json_t *timeline)
{
    size_t i, n;
    json_t *database, *one;
    json_array_foreach(json_object_get(timeline, "databases"), i, database)
    {
        printf("database %s\n", text(database, "database"));
        json_array_foreach(json_object_get(database, "windows"), n, one) printf(
            "  any moment from %s to %s, transactions %.0f to %.0f%s\n", text(one, "from"),
            text(one, "to"), number(one, "first_transaction"), number(one, "last_transaction"),
            json_is_true(json_object_get(one, "recoverable"))
                ? ""
                : ": not to be had, no backup to begin from");
        json_array_foreach(json_object_get(database, "gaps"), n, one) print_gap(one);
        print_transactions(database);
    }
    if (json_array_size(json_object_get(timeline, "databases")) == 0)
        puts("No database is captured: set pitr_window in its block.");
}

void cli_print_jobs(const json_t *list)
{
    size_t i;
    json_t *item;
    printf("%-36s %-12s %-20s %s\n", "JOB", "STATUS", "CREATED", "MESSAGE");
    json_array_foreach(json_object_get(list, "jobs"), i, item)
        printf("%-36s %-12s %-20s %s\n", text(item, "id"), text(item, "status"),
               text(item, "created"), text(item, "message"));
}

void cli_print_job(const json_t *job)
{
    const json_t *warnings = json_object_get(job, "warnings");
    const char *error = json_string_value(json_object_get(job, "error"));
    size_t i;
    json_t *item;

    printf("%s: %s", text(job, "id"), text(job, "status"));
    if (json_is_number(json_object_get(job, "duration_seconds")))
        printf(" after %.1f s", number(job, "duration_seconds"));
    putchar('\n');
    if (error != NULL)
        fprintf(stderr, "ngx-backup: %s\n", error);
    json_array_foreach(warnings, i, item)
    {
        if (json_is_string(item))
            fprintf(stderr, "warning: %s\n", json_string_value(item));
        else
            fprintf(stderr, "warning: %s: %s\n", text(item, "path"), text(item, "error"));
    }
    static const char *const facts[] = {"stats",         "source_backup",        "recovery_point",
                                        "transaction",   "files_recovery_point", "files_read_until",
                                        "target",        "files_restored",       "files_failed",
                                        "safety_backup", "validation_result",    "validation",
                                        "test_result",   "cleanup_result",       "verify_result"};
    for (i = 0; i < sizeof facts / sizeof *facts; i++) {
        json_t *value = json_object_get(job, facts[i]);
        if (value == NULL || json_is_null(value) ||
            (json_is_array(value) && json_array_size(value) == 0))
            continue;
        json_t *one = json_pack("{sO}", facts[i], value);
        print_members(one, 2);
        json_decref(one);
    }
}

#define BAR 24

static void draw(const json_t *job, bool redraw)
{
    const json_t *detail = json_object_get(job, "progress_detail");
    double percent = number(job, "progress"), eta = number(detail, "eta_seconds");
    char done[16], total[16], rate[16], bar[BAR + 1];
    int full = (int)(percent * BAR / 100);

    cli_size(done, number(detail, "bytes_done"));
    cli_size(total, number(detail, "bytes_total"));
    cli_size(rate, number(detail, "bytes_per_second"));
    for (int i = 0; i < BAR; i++)
        bar[i] = i < full ? '#' : '.';
    bar[BAR] = '\0';
    fprintf(stderr, "%s[%s] %3.0f%% %s  %.0f/%.0f files  %s/%s  %s/s", redraw ? "\r\033[K" : "",
            bar, percent, text(job, "phase"), number(detail, "files_done"),
            number(detail, "files_total"), done, total, rate);
    if (json_is_number(json_object_get(detail, "eta_seconds")))
        fprintf(stderr, "  ETA %.0f:%02.0f", (eta - (double)((long)eta % 60)) / 60,
                (double)((long)eta % 60));
    if (!redraw)
        fputc('\n', stderr);
    fflush(stderr);
}

void cli_print_progress(const cli_t *cli, const json_t *job)
{
    static int64_t last;
    static bool drawn;
    bool terminal = isatty(STDERR_FILENO) != 0;

    if (cli->value[OPT_QUIET] != NULL || cli->value[OPT_JSON] != NULL)
        return;
    if (job == NULL) {
        if (drawn && terminal)
            fputs("\r\033[K", stderr);
        drawn = false;
        return;
    }
    /* Nothing to tell before the first byte. */
    const json_t *detail = json_object_get(job, "progress_detail");
    if (number(detail, "bytes_done") == 0 && number(detail, "files_done") == 0)
        return;
    int64_t now = bk_mono();
    if (now - last < (terminal ? BK_SEC / 8 : 5 * BK_SEC))
        return;
    last = now;
    drawn = true;
    draw(job, terminal);
}
