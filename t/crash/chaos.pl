#!/usr/bin/perl
# t/crash/chaos.pl [MINUTES]: applications that do to their databases whatever applications do, for so long (default 30), while
# writers, the nginx worker and the helper are killed and nginx is reloaded.  Every transaction that was captured must be a
# commit that a writer logged, in their order; at worst there are gaps.  A sample is recovered by REST.  Called by ./dev chaos.
#
# SEED=N plays the same choices; KILLS=0 leaves out kills of worker and helper, so that reloads alone must leave no gap.
use strict;
use warnings;

use Cwd qw(abs_path);
use File::Path qw(make_path);
use List::Util qw(sum0);
use POSIX qw(strftime);
use Test::More;
use Time::HiRes qw(sleep time);
use NgxBackup;

plan skip_all => 'only root may start the helper' if $> != 0;
my $minutes = shift // 30;
my $tools = abs_path(($ENV{NGX_BACKUP_BUILD} // 'build') . '/tools');
my $seed = $ENV{SEED} // time;
my $kills = $ENV{KILLS} // 1;
srand $seed;
diag("SEED=$seed");

# name => page size, auto_vacuum, writers
my %bases = (tiny => [512, 'none', 1], small => [1024, 'incremental', 1], usual => [4096, 'full', 2], large => [65536, 'none', 1]);
my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, daemon => 1);
my $dir = $t->{dir};
$t->allow_log(qr/exited on signal 9/, qr/privileged helper/, qr/database .*(?:busy|locked)/, qr/transactions are not captured/);
my ($uid, $gid) = (getpwnam 'www-data')[2, 3];
for my $name (sort keys %bases) {
    my ($page_size, $vacuum) = @{ $bases{$name} };
    system("$tools/chaos", 'make', "$dir/app/$name.db", 'wal', $page_size, $vacuum) == 0 or BAIL_OUT("chaos make $name");
    chown $uid, $gid, map { "$dir/app/$name.db$_" } '', '-wal', '-shm';
    chmod 0666, map { "$dir/app/$name.db$_" } '', '-wal', '-shm';
}
my $databases = join "\n", map { "database $_ { path $dir/app/$_.db; pitr_window 7d; busy_timeout 20s; }" } sort keys %bases;
$t->{set} = $t->set_conf =~ s/(files uploads)/$databases $1/r;
$t->start;

sub captures {
    my $r = $t->get('/status');
    return {} if $r->{status} != 200;
    return { map { $_->{name} => $_ } @{ $r->{json}{backup_system}{database}{captures} } };
}

my (%counts, @events);
ok($t->wait_until(60, 'capturing', sub { my $c = captures(); 4 == grep { $_->{capturing} } values %$c }), 'all are captured');
is($t->backup({ backup_type => 'full' })->{status}, 'completed', 'a first backup');

my (%writer, %logs);
my $chaos = $t->lend("$tools/chaos");

sub start_writer {
    my ($name, $n) = @_;
    my $log = "$dir/$name.$n.log";
    $logs{$name}{$log} = 1;
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        POSIX::setgid($gid);
        POSIX::setuid($uid);
        open STDERR, '>>', "$dir/writers.log";
        $ENV{CHAOS_PAUSE} //= 40_000;    # an application is not only writing
        exec $chaos, 'write', "$dir/app/$name.db", $log, int(rand 2**31), (0, 100, 1000)[rand 3];
    }
    $writer{"$name $n"} = $pid;
    return;
}

chmod 0777, $dir;
for my $name (keys %bases) { start_writer($name, $_) for 1 .. $bases{$name}[2] }
my ($began, $told, $backup, $cleanup) = (time, time, time, time);
while (time - $began < $minutes * 60) {
    my $what = $kills ? (qw(writer writer writer reload reload runner helper))[rand 7] : (qw(writer reload))[rand 2];
    if ($what eq 'writer') {
        my ($name, $n) = split / /, (sort keys %writer)[rand keys %writer];
        kill 'KILL', $writer{"$name $n"};
        waitpid $writer{"$name $n"}, 0;
        start_writer($name, $n);
    } elsif ($what eq 'reload') {
        $t->hup;
    } elsif ($what eq 'runner') {
        my $runner = $t->runner;
        kill 'KILL', $runner if $runner;
    } else {
        my $helper = ($t->get('/status')->{json} // {})->{helper}{pid};
        kill 'KILL', $helper if $helper;
    }
    $counts{$what}++;
    push @events, sprintf '%.3f %s', time, $what;
    sleep 0.2 + rand 3;
    if (time - $backup > 60) {
        $backup = time;
        $counts{ 'backup ' . $t->post('/create', { backup_type => 'incremental' })->{status} }++;
    }
    if (time - $cleanup > 170) {
        $cleanup = time;
        $counts{ 'cleanup ' . $t->post('/cleanup', {})->{status} }++;
    }
    if (time - $told > 60) {
        $told = time;
        my $c = captures();
        diag(sprintf '%.0f of %d s: %s; %s', time - $began, $minutes * 60, join(', ', map { "$counts{$_} x $_" } sort keys %counts),
            join(', ', map { "$_ " . ($c->{$_}{transaction} // '?') } sort keys %bases));
    }
}
kill 'TERM', values %writer;
waitpid $_, 0 for values %writer;
diag(join ', ', map { "$counts{$_} x $_" } sort keys %counts);
is($t->read('writers.log') // '', '', 'no writer was disturbed');

# All that was committed is captured, and on the storage.
my %content = map { my $name = $_; my ($text) = `$tools/pitrjudge content $dir/app/$name.db`; chomp $text; ($name => $text) } keys %bases;
ok($t->wait_until(180, 'all is shipped', sub {
    my $c = captures();
    return 4 == grep { $_->{capturing} && $_->{durable_age_seconds} < 5 && $_->{shipped_transaction} == $_->{transaction} } values %$c;
}), 'all is captured and shipped') or diag(explain(captures()));
ok($t->wait_until(300, 'the queue is empty', sub { !grep { !$_->{done} } @{ $t->get('/jobs?limit=500')->{json}{jobs} } }), 'every job ended');

my ($transactions, $gaps, $baseless, %sample) = (0, 0, 0);
for my $name (sort keys %bases) {
    make_path("$dir/scratch");
    my @said = `$tools/pitrjudge run file://$dir/storage $dir/backups $name $dir/scratch 500 @{[ sort keys %{ $logs{$name} } ]} 2>&1`;
    my $exit = $?;
    my ($summary) = grep { /transactions in/ } @said;
    is($exit, 0, "$name: every transaction is a commit of a writer, in their order") or diag(grep { !/^sample/ } @said);
    diag($summary // 'no summary');
    my ($n, $last) = ($summary // '') =~ /: (\d+) transactions .* last commit (.*)$/;
    is($last, $content{$name}, "$name: and the last is what is there");
    $transactions += $n // 0;
    diag($_) for grep { /^gap/ } @said;
    $gaps += grep { /^gap/ } @said;
    $baseless += grep { /^epoch without a backup/ } @said;
    $sample{$name} = [map { /^sample (\d+) (.*)$/ ? [$1, $2] : () } @said];
}
diag("$transactions transactions judged, $gaps gaps, $baseless epochs without a backup");
cmp_ok($transactions, '>=', 100_000 * $minutes / 30, 'there were transactions');
is($gaps, 0, 'no gap') if !$kills;

# By REST, as an operator would.
my ($recovered, $n) = (0, 0);
for my $name (sort keys %bases) {
    my @all = @{ $sample{$name} };
    for my $one (map { $all[rand @all] } 1 .. (@all < 8 ? @all : 8)) {
        my $target = "$dir/restored/" . ++$n;
        my $r = $t->post('/recovery', { recovery_type => 'database', database => $name, transaction => 0 + $one->[0], restore_to_original => \0, target_directory => $target });
        # Numbers of an epoch that is over mean those of the newest one that has them.
        next if $r->{status} == 422 && $r->{json}{detail} =~ /there is no transaction|no backup was made/;
        my $job = $t->wait_job($r->{json}{id}, 120);
        my ($got) = -e "$target/$name.db" ? `$tools/pitrjudge content $target/$name.db` : $job->{error} // 'nothing';
        chomp $got;
        $recovered++ if $got eq $one->[1];
        is($got, $one->[1], "$name: transaction $one->[0]");
        $r = $t->post('/query', { sql => 'SELECT n FROM head', database => $name, transaction => 0 + $one->[0] });
        is($r->{json}{rows}[0][0], (split / /, $one->[1])[0], '  and asked in SQL') or diag(explain($r->{json}));
    }
}
# All that is needed to find out why.
if (!Test::More->builder->is_passing && $ENV{KEEP}) {
    $t->write('events', join "\n", @events);
    system 'cp', '-a', $dir, $ENV{KEEP};
}
diag("$recovered of $n recoveries compared");
cmp_ok($recovered, '>', 0, 'some were recovered') if $n;
$t->stop('QUIT');
$t->finish;
done_testing;
