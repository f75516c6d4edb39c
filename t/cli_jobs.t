#!/usr/bin/perl
# The command line while a job runs: what it shows on a terminal and elsewhere, how it is left, stopped and asked, and what it exits with.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use NgxBackup qw(cli cli_is);
use Test::More;
use Time::HiRes qw(sleep);

# Text that compresses slowly, in steps short enough to be stopped between.
my @words = map { join '', map { chr(97 + rand 26) } 1 .. 3 + rand 8 } 1 .. 3000;
my $t = NgxBackup->new(user => 'www-data', server => undef);
my $dir = $t->{dir};
$t->{server} = "listen unix:$dir/socket;";
$t->{set_more} = 'compression zstd level=19;';

# What no backup has yet: seconds of work for the next one.
sub fresh {
    for my $n (1 .. 8) {
        my $text = '';
        $text .= $words[rand @words] . ' ' while length $text < 1 << 20;
        $t->write("app/uploads/$n.txt", $text);
    }
    return;
}

fresh();
$t->start;

$t->operator;

# A backup that is running and has far to go.
sub begin {
    fresh();
    my ($code, $said) = cli('backup', '--type', 'full', '--no-wait');
    my ($id) = $said =~ /^(\S+): queued; 'ngx-backup jobs \1' shows it$/m;
    ok($code == 0 && $id, 'it returns once the job is queued') or diag($said);
    $t->wait_until(20, 'the job runs', sub { ($t->get("/jobs/$id")->{json}{progress_detail}{bytes_done} // 0) > 0 });
    return $id;
}

# In the background; its process and what it says so far.
sub background {
    my ($file, @command) = @_;
    $t->write('token', "$NgxBackup::token{admin}\n");
    chmod 0600, "$dir/token";
    my $pid = fork // die;
    if (!$pid) {
        $ENV{NGX_BACKUP_URL} = "http://127.0.0.1:$t->{port}/admin/backup";
        $ENV{NGX_BACKUP_TOKEN_FILE} = "$dir/token";
        open STDIN, '<', '/dev/null';
        open STDOUT, '>', "$dir/$file" or die;
        open STDERR, '>&', \*STDOUT;
        exec @command or POSIX::_exit(127);
    }
    return $pid;
}

# --- progress ---
my $pid = background('terminal', 'script', '-q', '-e', '-c', "$NgxBackup::program backup --type full", '/dev/null');
waitpid $pid, 0;
is($? >> 8, 0, 'a backup on a terminal') or diag($t->read('terminal'));
my $said = $t->read('terminal');
like($said, qr/\r\e\[K\[#*\.*\] +\d+% \S+  \d+\/\d+ files  \S+ \S+\/\S+ \S+  \S+ \S+\/s/, 'draws one line again and again');
like($said, qr/\r\e\[K[^\[]*full_\d+_\d+\S*: completed/, 'and takes it away for the result');
my ($code, $quiet) = cli('backup', '--type', 'full', '--quiet');
is($code, 0, 'a quiet one');
unlike($quiet, qr/%/, 'shows no progress');
like($quiet, qr/: completed/, 'but its result');
my $id = begin();
$pid = background('plain', $NgxBackup::program, 'recover', '--type', 'files', '--target', "$dir/restored/x");
cli_is('a running job', 0, qr/^\Q$id\E: running/m, 'jobs', $id);
cli_is('cancel it', 0, qr/^\Q$id\E: cancel/m, 'cancel', $id);
is($t->wait_job($id)->{status}, 'canceled', 'it is canceled');
waitpid $pid, 0;
is($? >> 8, 0, 'what waited behind it has its turn');
unlike($t->read('plain'), qr/[\r\e]/, 'and draws nothing where there is no terminal');
cli_is('one that has ended', 0, qr/^\Q$id\E: canceled/m, 'jobs', $id);
cli_is('among the others', 0, qr/^\Q$id\E +canceled/m, 'jobs');
cli_is('one that there is not', 1, qr/no job/i, 'jobs', 'full_19990101_000000');

# --- plain lines: one at most every five seconds, the first at once ---
fresh();
my (undef, $lines) = cli('backup', '--type', 'full');
like($lines, qr/^\[[#.]{24}\] +\d+% \w+ .*\/s.*\n/m, 'progress in lines of their own');
unlike($lines, qr/[\r\e]/, 'without anything for terminals');

# --- leaving ---
for my $signal (qw(INT TERM)) {
    fresh();
    $pid = background("left-$signal", $NgxBackup::program, 'backup', '--type', 'full');
    $t->wait_until(20, 'it shows progress', sub { ($t->read("left-$signal") // '') =~ /%/ });
    kill $signal, $pid;
    waitpid $pid, 0;
    is($? >> 8, 130, "SIG$signal stops waiting");
    my ($left) = $t->read("left-$signal") =~ /stopped waiting; (\S+) goes on: 'ngx-backup cancel \1' stops it/;
    ok($left, 'and says how the job is stopped') or next;
    is($t->wait_job($left)->{status}, 'completed', 'which goes on to its end');
}

# --- other roads ---
cli_is('through a unix socket', 0, qr/service_running: yes/, 'status', '--unix-socket', "$dir/socket", '--url', 'http://backup/admin/backup');
cli_is('one that there is not', 1, qr/cannot connect/, 'status', '--unix-socket', "$dir/nowhere", '--url', 'http://backup/admin/backup');
cli_is('--wait and --no-wait', 2, qr/exclude each other/, 'backup', '--wait', '--no-wait');

# --- exit codes ---
cli_is('0: done', 0, qr/completed/, 'test');
cli_is('1: failed', 1, qr/failed|no backup/, 'validate', '--backup-id', 'full_19990101_000000');
cli_is('2: no such type', 2, qr{#/backup_type}, 'backup', '--type', 'half');
chmod 0, "$dir/app/uploads/1.txt";
chown 0, 0, "$dir/app/uploads/1.txt";
cli_is('3: something was left out', 3, qr/warning: .*1\.txt/, 'backup', '--type', 'full');
$t->stop;
my @storage = ('--storage', "file://$dir/storage");
cli_is('10: no repository', 10, qr/no repository/, 'list', '--storage', "file://$dir/html");
cli_is('help of a level', 0, qr/3 restore/, 'verify', '--help');
$t->finish;
done_testing;
