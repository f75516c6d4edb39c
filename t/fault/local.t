#!/usr/bin/perl
# t/fault/local.t: every system call that publishes a file or writes to a local storage fails once, and nothing is lost.
use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use Test::More;

my $root = abs_path(dirname(__FILE__) . '/../..');
my $tools = ($ENV{NGX_BACKUP_BUILD} // "$root/build") . '/tools';
-e "$tools/$_" or BAIL_OUT("$tools/$_ is missing: make tools") for qw(storeload failcall.so);

my $dir = tempdir('ngx-backup-test.XXXXXX', TMPDIR => 1, CLEANUP => 1);
plan skip_all => 'a sanitizer must come before what is preloaded' if `nm -D $tools/storeload` =~ /__asan_init/;

# The program prints TAP of its own: each of its tests becomes one of these.
open my $out, '-|', 'env', "LD_PRELOAD=$tools/failcall.so", "$tools/storeload", $dir or die "$tools/storeload: $!\n";
my $plan;
while (my $line = <$out>) {
    if ($line =~ /^(not )?ok \d+ - (.*)/) { ok(!$1, $2) }
    elsif ($line =~ /^1\.\.(\d+)/) { $plan = $1 }
    else { diag($line) }
}
close $out;
is($plan, Test::More->builder->current_test, 'all of it ran');
done_testing();
