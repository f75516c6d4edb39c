#!/usr/bin/perl
# t/crash/helper.pl [RELOADS [UPGRADES [KILLS]]]: a storm on the privileged helper's life: reloads (default 100), binary
# upgrades (20), kill -9 (50) of agent, supervisor, runner and conversations in turn, some of them in the middle of a
# reload.  After each the helper must come back; in the end no process, descriptor or lock file is left over, and a backup
# works.  At last the master is killed, again and again: all of the helper must be gone within 2 s.  Called by ./dev crash.
use strict;
use warnings;

use Cwd qw(abs_path);
use Test::More;
use Time::HiRes qw(sleep time);
use NgxBackup;

plan skip_all => 'only root may start the helper' if $> != 0;
my ($reloads, $upgrades, $kills) = (shift // 100, shift // 20, shift // 50);
my $t = NgxBackup->new(user => 'www-data', daemon => 1, helper => $NgxBackup::helper);
$t->allow_log(qr/worker process \d+ exited on signal 9/);
my @locks = glob '/run/ngx-backup/*.lock';
$t->start;
is(state_within(20), 'active', 'active at the start');
my ($master_fds, $supervisor_fds, $agent_fds) = map { fds($_) } $t->{pid}, supervisor(), agent();
my $worker_fds = worker_fds();
my %seen;

my $began = time;
for my $n (1 .. $reloads) {
    $t->hup;
    $seen{$_}++ for $t->supervisors;
    sleep 0.02 * ($n % 5);
}
note(sprintf '%d reloads in %.1f s', $reloads, time - $began);
is(scalar($t->supervisors), 1, 'one supervisor served all reloads');
settled('reloads');

$began = time;
my $done = 0;
for my $n (1 .. $upgrades) {
    my ($old, $first) = ($t->{pid}, supervisor());
    my $count = $t->supervisors;
    kill 'USR2', $old;
    $t->wait_until(20, 'the second helper', sub {
            my ($pid) = ($t->read('nginx.pid') // '') =~ /^(\d+)$/;
            return $t->supervisors > $count && $pid && $pid != $old && ($t->{pid} = $pid);
        }) or last;
    # Every third one is in the middle of a reload of the old master.
    kill 'HUP', $old if $n % 3 == 0;
    kill 'QUIT', $old;
    $t->wait_until(30, 'the old master leaves', sub { $t->gone($old) && $t->gone($first) }) or last;
    $t->wait_until(20, 'the new helper is active', sub { agent() }) or last;
    $seen{$_}++ for $t->supervisors;
    $done++;
}
is($done, $upgrades, 'after each upgrade the new helper served');
note(sprintf '%d binary upgrades in %.1f s', $upgrades, time - $began);
settled('upgrades');

$began = time;
my %victims;
for my $n (1 .. $kills) {
    my $kind = (qw(agent supervisor runner conversation))[$n % 4];
    my ($victim) = $kind eq 'agent' ? agent() : $kind eq 'supervisor' ? supervisor() : $kind eq 'runner' ? $t->runner
        : ($t->below(agent()), agent());
    kill 'HUP', $t->{pid} if $n % 5 == 0;
    kill 'KILL', $victim;
    $victims{$kind}++;
    $t->wait_until(10, "the $kind is gone", sub { $t->gone($victim) });
    if ($kind eq 'supervisor') {
        # A reload that was already on its way may have been too early.
        $t->wait_until(20, 'another supervisor', sub { $t->hup; sleep 0.2; !$t->gone(supervisor()) });
    }
    $t->wait_until(40, 'an agent', sub { my $agent = agent(); $agent && $agent != $victim })
        or fail("after kill $n of the $kind there is no agent");
    if ($kind eq 'runner') {
        $t->wait_until(20, 'another runner', sub { $t->runner != $victim }) or fail("after kill $n there is no runner");
    }
    $seen{$_}++ for $t->supervisors;
}
note(sprintf '%d kills (%s) in %.1f s', $kills, join(', ', map { "$_ $victims{$_}" } sort keys %victims), time - $began);
settled('kills');

is($t->backup->{status}, 'completed', 'a backup works');

# The lifeline: nobody told the helper to leave.
my ($slowest, $rounds) = (0, 5);
for my $n (1 .. $rounds) {
    my @all = (supervisor(), $t->below(supervisor()));
    my @workers = $t->workers;
    cmp_ok(scalar(@all), '>=', 3, "round $n: supervisor, agent and conversations");
    kill 'KILL', $t->{pid};
    my $killed = time;
    $t->wait_until(10, 'the helper ends', sub { !grep { !$t->gone($_) } @all });
    my $took = time - $killed;
    $slowest = $took if $took > $slowest;
    is_deeply([grep { !$t->gone($_) } @all], [], "round $n: all of it is gone");
    kill 'KILL', @workers;
    $t->wait_until(10, 'workers end', sub { !grep { !$t->gone($_) } @workers });
    $t->{pid} = 0;
    unlink "$t->{dir}/nginx.pid";
    $t->start;
    is(state_within(20), 'active', "round $n: active again");
    $seen{$_}++ for $t->supervisors;
}
note(sprintf 'after SIGKILL of the master the helper was gone within %.3f s', $slowest);
cmp_ok($slowest, '<=', 2, 'the helper is gone 2 s after its master');
$t->finish;
is_deeply([grep { !$t->gone($_) } sort keys %seen], [], 'no supervisor is left of ' . keys %seen);
my @orphans;
for (1 .. 50) {
    last unless @orphans = orphans();
    sleep 0.1;
}
is_deeply(\@orphans, [], 'nor an agent or a conversation');
is_deeply([glob '/run/ngx-backup/*.lock'], \@locks, 'no lock file is left');
done_testing();

sub supervisor { return ($t->supervisors)[-1] }
sub agent { return ($t->workers(supervisor()))[0] }
sub fds { my ($pid) = @_; return scalar(() = glob "/proc/$pid/fd/*") }

# Of the runner, once it has what it needs: what jobs opened is closed.
sub worker_fds { return fds($t->runner) }

# Processes of this helper's program that belong to nobody any more.
sub orphans {
    my @left;
    for my $dir (glob '/proc/[0-9]*') {
        next unless (readlink("$dir/exe") // '') eq abs_path($NgxBackup::helper);
        open my $file, '<', "$dir/status" or next;
        my $text = do { local $/; <$file> } // '';
        push @left, $dir =~ /(\d+)$/ if $text =~ /^Name:\tbk-helper-(?:agent|talk)$/m && $text =~ /^PPid:\t1$/m;
    }
    return @left;
}

sub state_within {
    my ($seconds) = @_;
    my $state = '';
    $t->wait_until($seconds, 'active', sub { $state = $t->get('/status')->{json}{helper}{state} // ''; $state eq 'active' });
    return $state;
}

# Nothing piles up, and workers talk to it.
sub settled {
    my ($what) = @_;
    ok($t->wait_until(30, 'old workers leave', sub { $t->workers == $t->{workers} }), "$what: old workers left");
    ok($t->wait_until(60, 'workers see this agent', sub {
            ($t->get('/status')->{json}{helper}{pid} // 0) == (agent() // -1) }), "$what: workers talk to the agent");
    ok($t->wait_until(20, 'conversations end', sub { (() = $t->below(agent())) <= 2 }), "$what: old conversations ended");
    ok($t->wait_until(30, 'the runner has no more descriptors', sub { worker_fds() <= $worker_fds + 2 }), "$what: no descriptor is left in the runner")
        or diag(worker_fds() . " instead of $worker_fds");
    my @now = map { fds($_) } $t->{pid}, supervisor(), agent();
    is_deeply(\@now, [$master_fds, $supervisor_fds, $agent_fds], "$what: no descriptor is left in master, supervisor, agent");
    return;
}
