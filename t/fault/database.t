#!/usr/bin/perl
# t/fault/database.t: the recovery of a database is killed before each of its system calls, and has each of them fail once.
# Afterwards the old database or the new one is there, whole, never a mixture; what failed can be done again.
use strict;
use warnings;

use Cwd qw(abs_path);
use DBI;
use File::Basename qw(dirname);
use File::Copy qw(copy);
use File::Temp qw(tempdir);
use Test::More;

my $root = abs_path(dirname(__FILE__) . '/../..');
my $tools = ($ENV{NGX_BACKUP_BUILD} // "$root/build") . '/tools';
-e "$tools/$_" or BAIL_OUT("$tools/$_ is missing: make tools") for qw(dbload failcall.so);
plan skip_all => 'a sanitizer must come before what is preloaded' if `nm -D $tools/dbload` =~ /__asan_init/;

my $dir = tempdir('ngx-backup-test.XXXXXX', TMPDIR => 1, CLEANUP => 1);
my $db = "$dir/app/app.db";
my @ends = ('', '-wal', '-shm', '-journal');

sub sql {
    my ($path, @statements) = @_;
    my $handle = DBI->connect("dbi:SQLite:dbname=$path", '', '', { RaiseError => 1, PrintError => 0 });
    $handle->do($_) for @statements;
    return $handle;
}

# A database that says what it is in many pages, so that a mixture would show.
sub make {
    my ($path, $what, $page_size, $journal) = @_;
    sql($path, "PRAGMA page_size=$page_size", "PRAGMA journal_mode=$journal", 'CREATE TABLE t(id INTEGER PRIMARY KEY, what, filler)',
        "INSERT INTO t(what, filler) WITH RECURSIVE c(n) AS (VALUES(1) UNION ALL SELECT n+1 FROM c WHERE n < 40)
         SELECT '$what', randomblob(900) FROM c")->disconnect;
}

# What is under the name now: "old", "new", "none", "damaged" or a complaint.
sub content {
    my ($path) = @_;
    return 'none' unless -e $path;
    my $answer = eval {
        my $handle = sql($path);
        my ($check) = $handle->selectrow_array('PRAGMA integrity_check');
        my ($kinds, $what, $rows) = $handle->selectrow_array('SELECT count(DISTINCT what), min(what), count(*) FROM t');
        $handle->disconnect;
        $check ne 'ok' ? "integrity_check: $check" : $kinds != 1 ? 'a mixture' : $rows < 40 ? 'rows are missing' : $what;
    };
    return $answer if defined $answer;
    return $@ =~ /not a database|malformed/ ? 'damaged' : "error: $@";
}

# The files of one scenario, made once and copied for each run.
sub prepare {
    my ($name, $code) = @_;
    mkdir "$dir/$name" or die "$dir/$name: $!";
    $code->("$dir/$name/app.db");
}

sub reset_to {
    my ($name) = @_;
    unlink glob "$dir/app/* $dir/app/.tmp-*";
    mkdir "$dir/app";
    for my $end (@ends) {
        copy("$dir/$name/app.db$end", "$db$end") or die "copy: $!" if -e "$dir/$name/app.db$end";
    }
}

# In a process that is killed, so that its commit stays in the -wal.
sub commit_and_die {
    my ($path) = @_;
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        my $handle = eval { sql($path, 'PRAGMA wal_autocheckpoint=0', q(UPDATE t SET what = 'old')) } or print STDERR $@;
        kill 'KILL', $$;
    }
    waitpid $pid, 0;
}

sub recover {
    my ($image, $rule) = @_;
    local %ENV = (%ENV, $rule ? (LD_PRELOAD => "$tools/failcall.so", FAILCALL => $rule) : ());
    my $out = `$tools/dbload recover $dir/$image $db job_1 2>&1`;
    return ($?, $out);
}

make("$dir/same.db", 'new', 4096, 'wal');
make("$dir/other.db", 'new', 1024, 'wal');
prepare(live => sub { make($_[0], 'old', 4096, 'wal') });
prepare(rollback => sub { make($_[0], 'old', 4096, 'delete') });
prepare(logged => sub {
    my ($path) = @_;
    make($path, 'older', 4096, 'wal');
    commit_and_die($path);
    -s "$path-wal" or die 'nothing is in the -wal';
});
prepare(missing => sub {
    my ($path) = @_;
    make($path, 'older', 1024, 'wal');
    commit_and_die($path);
    unlink $path;
});
prepare(damaged => sub {
    my ($path) = @_;
    make($path, 'old', 1024, 'wal');
    open my $file, '+<', $path or die $!;
    print $file 'garbage' x 20;
    close $file;
});

# scenario, image, what may be under the name after a failure
my @scenarios = (
    ['live', 'same.db', qr/^(old|new)$/],
    ['rollback', 'same.db', qr/^(old|new)$/],
    ['logged', 'other.db', qr/^(old|new)$/],
    ['missing', 'other.db', qr/^(none|new)$/],
    ['damaged', 'other.db', qr/^(damaged|new)$/],
);

# One run with a rule, and one without if it failed.  Returns what was there in between, undef when the rule was not reached.
sub fail_once {
    my ($scenario, $rule, $wrong) = @_;
    my ($name, $image, $allowed) = @$scenario;
    reset_to($name);
    my ($status, $out) = recover($image, $rule);
    return if $out =~ /^rule not reached/m;
    # What the application would find now.
    my $now = content($db);
    push @$wrong, "$rule: $now after $out" if $now !~ $allowed || $status == 0 && $now ne 'new';
    my @left = glob "$dir/app/.tmp-*";
    # Of the calls that fail one may be the removal itself.
    push @$wrong, "$rule: @left is left" if @left > ($rule =~ /kill|unlink|all/ ? 1 : 0);
    if ($status != 0) {
        my ($again, $text) = recover($image);
        push @$wrong, "$rule: again: $text" if $again || content($db) ne 'new';
    }
    return $now;
}

for my $scenario (@scenarios) {
    my ($name, $image) = @$scenario;
    reset_to($name);
    my ($status, $out) = recover($image);
    is("$status " . content($db), '0 new', "$name: recovered") or diag($out);
    for my $action (qw(kill EIO ENOSPC)) {
        my ($n, @wrong, %seen) = (0);
        while (++$n < 2000) {
            my $now = fail_once($scenario, "all:$n:$action", \@wrong) // last;
            $seen{$now}++;
        }
        is(join("\n", @wrong), '', "$name, $action: whole, and the next one succeeds");
        note("$n calls: ", join ', ', map { "$_ $seen{$_}" } sort keys %seen);
        cmp_ok($n, '>', 5, "$name, $action: calls were seen");
    }
}

# File systems that can do less.
for my $rule ('copy:0:EXDEV', 'copy:0:ENOSYS', 'copy:0:short', 'write:0:short', 'link:0:EPERM', 'copy:0:EXDEV write:0:short') {
    reset_to('damaged');
    my ($status, $out) = recover('other.db', $rule);
    is("$status " . content($db), '0 new', "damaged, always $rule: recovered") or diag($out);
    is(content("$db.before-job_1"), 'damaged', "damaged, always $rule: the old one is kept");
}
done_testing();
