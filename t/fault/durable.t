#!/usr/bin/perl
# t/fault/durable.t: what a publishing call has said to be there survives power loss: seen in the order of its system calls.
use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(basename dirname);
use File::Temp qw(tempdir);
use Test::More;

my $root = abs_path(dirname(__FILE__) . '/../..');
my $tools = ($ENV{NGX_BACKUP_BUILD} // "$root/build") . '/tools';
-e "$tools/storeload" or BAIL_OUT("$tools/storeload is missing: make tools");
plan skip_all => 'strace may not watch processes here' if system('strace -o /dev/null true 2>/dev/null') != 0;

my $top = tempdir('ngx-backup-test.XXXXXX', TMPDIR => 1, CLEANUP => 1);
my $calls = 'write,pwrite64,copy_file_range,ftruncate,fsync,fdatasync,rename,renameat,renameat2,link,linkat,'
    . 'mkdir,mkdirat,unlink,unlinkat,access';

# An absolute path from strace's "fd</dir>, "name"", "AT_FDCWD</cwd>, "name"" or ""name"".
sub path {
    my ($dir, $name) = @_;
    return $name =~ m{^/} || !defined $dir ? $name : "$dir/$name";
}

# What is in memory only: content of files, entries of directories.  Returns what is wrong.
sub watch {
    my ($log) = @_;
    my (%content, %entries, @wrong, $running);
    my $at = qr/(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"/;
    for (split /\n/, $log) {
        if (/^access\("\/(begin|end)"/) { $running = $1 eq 'begin'; next }
        next if !$running || / = -1 /;
        if (/^(?:write|pwrite64|ftruncate)\(\d+<([^>]*)>/) { $content{$1} = 1 }
        elsif (/^copy_file_range\(\d+<[^>]*>, NULL, \d+<([^>]*)>/) { $content{$1} = 1 }
        elsif (/^f(?:data)?sync\(\d+<([^>]*)>/) { delete $content{$1}; delete $entries{$1} }
        elsif (/^mkdir(?:at)?\($at/) {
            my $new = path($1, $2);
            $entries{dirname($new)}{basename($new)} = 1;
        }
        elsif (/^(?:rename|renameat|renameat2|link|linkat)\($at, $at/) {
            my ($from, $to) = (path($1, $2), path($3, $4));
            push @wrong, "$to got its name before its content was written" if $content{$from};
            $entries{dirname($to)}{basename($to)} = 1;
        }
        elsif (/^unlink(?:at)?\($at/) {
            my $gone = path($1, $2);
            $entries{dirname($gone)}{basename($gone)} = 1 if basename($gone) !~ /^\.tmp-/;
        }
        else { push @wrong, "not understood: $_" }
    }
    push @wrong, 'the operation did not end' if !defined $running || $running;
    push @wrong, map { "the content of $_ was never synced" } sort keys %content;
    for my $dir (sort keys %entries) {
        push @wrong, map { "$_ in $dir was never synced" } sort keys %{ $entries{$dir} };
    }
    return @wrong;
}

# The judge itself.
my ($begin, $end) = ("access(\"/begin\", F_OK) = -1\n", "access(\"/end\", F_OK) = -1\n");
my $good = "write(3</d/.tmp-1>, \"x\", 1) = 1\nfsync(3</d/.tmp-1>) = 0\nrenameat(4</d>, \".tmp-1\", 4</d>, \"f\") = 0\n"
    . "fsync(4</d>) = 0\n";
is_deeply([watch("$begin$good$end")], [], 'the right order is accepted');
for my $gone (0 .. 3) {
    my @lines = split /(?<=\n)/, $good;
    splice @lines, $gone, 1;
    my @wrong = watch($begin . join('', @lines) . $end);
    is(scalar @wrong > 0, $gone == 1 || $gone == 3, "a call that is missing is noticed when it matters ($gone)");
}

chomp(my @operations = `$tools/storeload $top list`);
cmp_ok(scalar @operations, '>', 5, 'there are operations');
for my $operation (@operations) {
    my @command = ('strace', '-y', '-s', '16', '-o', "$top.log", '-e', "trace=$calls", "$tools/storeload", $top, $operation);
    is(system(@command), 0, "$operation succeeds");
    open my $in, '<', "$top.log" or die "$top.log: $!\n";
    my @wrong = watch(do { local $/; <$in> });
    close $in;
    is_deeply(\@wrong, [], "$operation: nothing is left to be lost") or diag(join "\n", @wrong);
}
unlink "$top.log";
done_testing();
