#!/usr/bin/perl
# ./dev run, as somebody types it who looks at the project for the first time: it shows a recovery, and leaves nothing behind.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use IO::Socket::INET;
use NgxBackup;
use POSIX qw(WNOHANG);
use Test::More;
use Time::HiRes qw(sleep time);

plan skip_all => 'the demonstration gives its files to another user: only root may' if $> != 0;

my $t = NgxBackup->new; # for its directory and its waiting
my ($port, $app_port) = map { NgxBackup::free_port() } 1 .. 2;

sub start {
    my ($file, %env) = @_;
    my $pid = fork // die;
    if (!$pid) {
        POSIX::setpgid(0, 0);
        @ENV{qw(PORT APP_PORT), keys %env} = ($port, $app_port, values %env);
        $SIG{INT} = 'DEFAULT';
        open STDIN, '<', '/dev/null';
        open STDOUT, '>', "$t->{dir}/$file" or die;
        open STDERR, '>&', \*STDOUT;
        chdir "$FindBin::Bin/.." or die;
        exec './dev', 'run' or POSIX::_exit(127);
    }
    POSIX::setpgid($pid, $pid);
    return $pid;
}

sub ended {
    my ($pid) = @_;
    my $status;
    $t->wait_until(60, 'it ends', sub { waitpid($pid, WNOHANG) == $pid && defined($status = $?) });
    return $status;
}

sub nothing_is_left {
    my ($said, $pid, $name) = @_;
    my ($where) = $said =~ m{nginx in (\S+/ngx-backup-demo\.\S+)};
    ok($where && !-e $where, "$name: its directory is gone");
    my @left = map { m{/(\d+)/} } grep { ($t->read($_) // '') =~ /\) [^Z] \d+ $pid / } glob '/proc/[0-9]*/stat';
    is("@left", '', "$name: no process is left");
    for my $one ($port, $app_port) {
        ok(!IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $one), "$name: nobody listens on port $one");
    }
    return;
}

my $pid = start('once', ONCE => 1);
is(ended($pid), 0, 'the show') or diag($t->read('once'));
my $said = $t->read('once');
like($said, qr/full_\d+_\d+\S*: completed/, 'makes a backup');
my @checks = $said =~ /^SQLite says: (.*)$/mg;
isnt($checks[0], 'ok', 'damages the database');
is($checks[1], 'ok', 'and recovers it');
nothing_is_left($said, $pid, 'afterwards');

$pid = start('mine');
ok($t->wait_until(60, 'it is yours', sub { ($t->read('mine') // '') =~ /--help +with NGX_BACKUP_URL/ }), 'it stays until Ctrl-C') or diag($t->read('mine'));
my ($token) = $t->read('mine') =~ /TOKEN=(\S+)/;
like(`curl -s -H 'Authorization: Bearer $token' http://127.0.0.1:$port/admin/backup/status`, qr/service_running/, 'and answers what it says to type');
kill 'INT', -$pid; # as a terminal does: to all of them
is(ended($pid) >> 8, 130, 'Ctrl-C ends it');
nothing_is_left($t->read('mine'), $pid, 'after Ctrl-C');
$t->finish;
done_testing;
