#!/usr/bin/perl
# The command line on a storage alone, where it is less simple: several sets on one storage, names that are no text, and no room for temporary files.
use strict;
use warnings;

use File::Basename qw(dirname);
use FindBin;
use lib "$FindBin::Bin/lib";
use JSON::PP;
use NgxBackup qw(cli cli_is);
use POSIX qw(:sys_wait_h);
use Test::More;

my $t = NgxBackup->new;
my $dir = $t->{dir};
my $odd = "odd\xff";

sub make_database {
    my ($path, $rows) = @_;
    system('sqlite3', $path, 'create table t(x, filler); with recursive n(i) as (select 1 union all '
            . "select i + 1 from n where i < $rows) insert into t select i, hex(randomblob(500)) from n") == 0 or die;
    return;
}

sub rows { my ($path) = @_; return `sqlite3 '$path' 'select count(*) from t'` + 0 }

$t->write("app/$odd/one.txt", 'one');
$t->write('app/uploads/two.txt', 'two');
make_database("$dir/app/$odd.db", 3000);
make_database("$dir/app/second.db", 10);
$t->{set} = <<"CONF";
backup first {
    base_dir $dir/backups;
    database main { path $dir/app/$odd.db; wal off; }
    files odd { path $dir/app/$odd; }
    storage local disk { path $dir/storage; }
    min_free 0;
    thread_pool backup;
}
backup second {
    base_dir $dir/second;
    database Main { path $dir/app/second.db; wal off; pitr_window off; }
    files uploads { path $dir/app/uploads; }
    storage local disk { path $dir/storage; }
    min_free 0;
    thread_pool backup;
}
CONF
$t->{location} = join '', map { "location /$_ { backup_api $_; backup_auth bearer; backup_token_file $dir/tokens; }\n" } qw(first second);
$t->start;
$t->operator;
my $url = "http://127.0.0.1:$t->{port}";
my %id;
for my $set (qw(first second)) {
    my ($code, $output) = cli('backup', '--type', 'full', '--json', '--url', "$url/$set");
    is($code, 0, "a backup of the $set set") or diag($output);
    $id{$set} = decode_json($output)->{backup_id};
    sleep 1; # ids have seconds
}
cli_is('--set is for a storage', 2, qr/give --storage|--storage/, 'list', '--set', 'first');
$t->stop;

my @storage = ('--storage', "file://$dir/storage");
my $list = decode_json(cli_is('a list of all', 0, qr/"total":2/, 'list', @storage, '--json'));
is_deeply([map { $_->{backup_id} } @{ $list->{backups} }], [@id{qw(second first)}], 'the newest is first');
$list = decode_json(cli_is('no more than asked for', 0, qr/"total":2/, 'list', @storage, '--json', '--limit', '1'));
is_deeply([map { $_->{backup_id} } @{ $list->{backups} }], [$id{second}], 'the newest stays');
cli_is('a limit is a number', 2, qr/--limit is a number from 1 to/, 'list', @storage, '--limit', 'all');
$list = decode_json(cli_is('a list of one set', 0, qr/"total":1/, 'list', @storage, '--json', '--set', 'first'));
is($list->{backups}[0]{backup_id}, $id{first}, 'is its own');
cli_is('recover does not guess whose', 2, qr/several sets: (first, second|second, first): say which with --set/, 'recover', @storage, '--target', "$dir/bare");
ok(!-e "$dir/bare", 'and makes nothing');
cli_is('nor does a query', 2, qr/several sets/, 'query', @storage, 'select count(*) from t');
cli_is('nor does a timeline', 2, qr/several sets/, 'timeline', @storage);
cli_is('nor a validation', 2, qr/several sets/, 'validate', @storage);
cli_is('validation of one', 0, qr/backup_id: \Q$id{second}\E/, 'validate', @storage, '--set', 'second');
cli_is('timeline of one that nobody captured', 0, qr/No database is captured/, 'timeline', @storage, '--set', 'second');
cli_is('nor is another set taken', 1, qr/no backup of third/, 'recover', @storage, '--target', "$dir/bare", '--set', 'third');
cli_is('a query of one', 0, qr/^10$/m, 'query', @storage, '--set', 'second', 'select count(*) from t');
cli_is('recovery of one', 0, qr/source_backup: \Q$id{second}\E/, 'recover', @storage, '--set', 'second', '--target', "$dir/second-again");
is(rows("$dir/second-again/second.db"), 10, 'is its database');
is($t->read('second-again/uploads/two.txt'), 'two', 'and its files');

my $shown = decode_json(cli_is('what a backup holds, in names that are no text', 0, qr/backup_id/, 'show', $id{first}, @storage, '--json'));
is($shown->{trees}[0]{path}, "$dir/app/odd\\xff", 'the tree is told');
is($shown->{databases}[0]{path}, "$dir/app/odd\\xff.db", 'and the database');
is($shown->{backup}, 'first', 'and whose it is');

# A mount namespace of its own: the mount is gone with the command.
SKIP: {
    mkdir "$dir/small";
    my $small = "mount -t tmpfs -o size=512k none '$dir/small'";
    skip 'no mount here', 4 if $> != 0 || system("unshare -m sh -c \"$small\" 2>/dev/null") != 0;
    my $said = `unshare -m sh -c "$small && TMPDIR='$dir/small' exec $NgxBackup::program recover @storage --backup-id $id{first} --target '$dir/bare'" 2>&1`;
    is($?, 0, 'a database larger than the temporary directory') or diag($said);
    is(rows("$dir/bare/$odd.db"), 3000, 'is whole');
    is($t->read("bare/odd/one.txt"), 'one', 'the files are there');
    is(join(' ', grep { !/^\.\.?$/ } map { s{.*/}{}r } glob "$dir/bare/.*"), '', 'nothing else is');
}

# Stopped at each of its flushes; the first that finds a temporary swaps it.
my $tools = dirname($NgxBackup::program) . '/tools';
my $swapped;
my $pid = fork // die "fork: $!";
if (!$pid) {
    open STDERR, '>', "$dir/swapped.log";
    @ENV{qw(LD_PRELOAD FAILCALL)} = ("$tools/failcall.so", 'fsync:0:stop');
    exec $NgxBackup::program, 'recover', @storage, '--backup-id', $id{second}, '--target', "$dir/swapped" or die;
}
while (waitpid($pid, WUNTRACED) == $pid && WIFSTOPPED(${^CHILD_ERROR_NATIVE})) {
    my ($temporary) = glob "$dir/swapped/.ngx-backup-*";
    if (defined $temporary && !$swapped) {
        $swapped = $temporary;
        unlink $temporary;
        $t->write($temporary =~ s{^\Q$dir/}{}r, 'of another recovery');
    }
    kill 'CONT', $pid;
}
ok(defined $swapped, 'another recovery took the temporary');
is(${^CHILD_ERROR_NATIVE} >> 8, 1, 'this one fails');
like($t->read('swapped.log'), qr{swapped/second\.db: another recovery into this directory took its place: run it again}, 'and says why');
is($t->read($swapped =~ s{^\Q$dir/}{}r), 'of another recovery', 'and leaves alone what is not its own');
ok(!-e "$dir/swapped/second.db", 'and gives it no name');
$t->finish;
done_testing;
