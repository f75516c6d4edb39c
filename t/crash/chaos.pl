#!/usr/bin/perl
# t/crash/chaos.pl [MINUTES]: applications that do to their databases whatever applications do, for so long (default 30), while
# writers, the nginx worker and the helper are killed, nginx is reloaded, a database changes its journal mode and cleanup removes what is older than
# its window.  Every transaction and batch that was captured must be a commit that a writer logged, in their order and of its time; at worst there
# are gaps, and each where something was killed.  Then as many as there is time for are had by the code that recovers, and a sample by REST.
# Called by ./dev chaos.
#
# SEED=N plays the same choices; KILLS=0 leaves out kills of worker and helper, so that reloads alone must leave no gap; CHECK=N: seconds for the
# code that recovers (default: half of the campaign); KEEP=DIR: where a copy goes when something is wrong.
use strict;
use warnings;

use Cwd qw(abs_path);
use DBI;
use File::Path qw(make_path);
use List::Util qw(first sum0);
use POSIX qw(ceil strftime);
use Test::More;
use Time::HiRes qw(sleep time);
use NgxBackup;

plan skip_all => 'only root may start the helper' if $> != 0;
my $minutes = shift // 30;
my $tools = abs_path(($ENV{NGX_BACKUP_BUILD} // 'build') . '/tools');
my $seed = $ENV{SEED} // time;
my $kills = $ENV{KILLS} // 1;
my $check = $ENV{CHECK} // $minutes * 30;
srand $seed;
diag("SEED=$seed");

# name => page size, auto_vacuum, writers, journal mode at first, what else
my %bases = (
    tiny => { page => 512, vacuum => 'none' },
    small => { page => 1024, vacuum => 'incremental' },
    brief => { page => 2048, vacuum => 'full', window => 60 },    # s: cleanup has something to do
    usual => { page => 4096, vacuum => 'full', writers => 2 },
    rollback => { page => 8192, vacuum => 'incremental', writers => 2, journal => 'delete' },
    both => { page => 16384, vacuum => 'none', journal => 'delete' },    # and WAL in turn
    steady => { page => 32768, vacuum => 'incremental', steady => 1 },   # its writer is not killed
    large => { page => 65536, vacuum => 'none' },
);
my @names = sort keys %bases;
my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, daemon => 1);
my $dir = $t->{dir};
$t->allow_log(qr/exited on signal 9/, qr/privileged helper/, qr/database .*(?:busy|locked)/, qr/transactions are not captured/);
my ($uid, $gid) = (getpwnam 'www-data')[2, 3];
for my $name (@names) {
    my $b = $bases{$name};
    $b->{journal} //= 'wal';
    system("$tools/chaos", 'make', "$dir/app/$name.db", $b->{journal}, $b->{page}, $b->{vacuum}) == 0 or BAIL_OUT("chaos make $name");
    chown $uid, $gid, map { "$dir/app/$name.db$_" } '', '-wal', '-shm';
    chmod 0666, map { "$dir/app/$name.db$_" } '', '-wal', '-shm';
}
my $databases = join "\n", map {
    my $window = $bases{$_}{window} // 7 * 86400;
    "database $_ { path $dir/app/$_.db; pitr_window ${window}s; busy_timeout 20s; }"
} @names;
$t->{set} = $t->set_conf =~ s/(files uploads)/retention database=1m files=1m; $databases $1/r;
$t->start;

sub captures {
    my $r = $t->get('/status');
    return {} if $r->{status} != 200;
    return { map { $_->{name} => $_ } @{ $r->{json}{backup_system}{database}{captures} } };
}

ok($t->wait_until(60, 'capturing', sub { my $c = captures(); @names == grep { $_->{capturing} } values %$c }), 'all are captured');
is($t->backup({ backup_type => 'full' })->{status}, 'completed', 'a first backup');

# --- what the writers say they did ---

my (%writer, %logs, %read);    # by "name n"; by name; what was read of a log
my $chaos = $t->lend("$tools/chaos");

sub start_writer {
    my ($name, $n) = @_;
    my $log = "$dir/$name.$n.log";
    my ($random, $checkpoint, $journal) = (int(rand 2**31), (0, 100, 1000)[rand 3], (qw(delete truncate persist))[rand 3]);
    $logs{$name}{$log} = 1;
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        POSIX::setgid($gid);
        POSIX::setuid($uid);
        open STDERR, '>>', "$dir/writers.log";
        $ENV{CHAOS_PAUSE} //= 60_000;    # an application is not only writing
        $ENV{CHAOS_STEADY} = 1 if $bases{$name}{steady};
        $ENV{CHAOS_JOURNAL} = $journal if $name eq 'rollback';
        exec $chaos, 'write', "$dir/app/$name.db", $log, $random, $checkpoint;
    }
    $writer{"$name $n"} = $pid;
    return;
}

sub end_writer {
    my ($which, $signal) = @_;
    kill $signal, $writer{$which};
    waitpid $writer{$which}, 0;
    return;
}

my (%begun, %did);    # name => "number digest" => ns; name => event => count

sub read_logs {
    my ($name) = @_;
    for my $log (keys %{ $logs{$name} }) {
        open my $in, '<', $log or next;
        seek $in, $read{$log} // 0, 0;
        while (<$in>) {
            last unless /\n\z/;
            $read{$log} = tell $in;
            if (/^B (\d+ \S+) (\d+)/) { $begun{$name}{$1} //= $2 }
            elsif (/^A/) { $did{$name}{commit}++ }
            elsif (/^E (.*)/) { $did{$name}{$1}++ }
        }
    }
    return;
}

sub counted { my (%count) = @_; return join ', ', map { "$count{$_} x $_" } sort keys %count }

# --- moments ---

sub exact { my ($ns) = @_; return strftime('%Y-%m-%dT%H:%M:%S', gmtime substr $ns, 0, -9) . '.' . substr($ns, -9) . 'Z' }

sub ns_of {
    my ($text) = @_;
    my ($year, $month, $day, $hour, $minute, $second, $part) = $text =~ /^(\d+)-(\d+)-(\d+)T(\d+):(\d+):(\d+)(?:\.(\d+))?Z$/ or die "time $text";
    local $ENV{TZ} = 'UTC';
    return POSIX::mktime($second, $minute, $hour, $day, $month - 1, $year - 1900) . substr(($part // '') . '0' x 9, 0, 9);
}

# What GET /timeline promises: windows that can be had, and what nobody saw in them, in ns.
sub timeline {
    my ($name) = @_;
    my $r = $t->get("/timeline?database=$name&limit=1&since=2020-01-01T00:00:00Z");
    return if $r->{status} != 200;
    my $d = $r->{json}{databases}[0];
    my @windows = map { { %$_, begin => ns_of($_->{from}), end => ns_of($_->{to}) } } grep { $_->{recoverable} } @{ $d->{windows} };
    return { windows => \@windows, gaps => [map { [ns_of($_->{from}), ns_of($_->{to})] } @{ $d->{gaps} }] };
}

# A gap begins with the transaction before it, which can be had.
sub promised {
    my ($timeline, $time) = @_;
    return (grep { $_->{begin} <= $time && $time <= $_->{end} } @{ $timeline->{windows} })
        && !grep { $_->[0] < $time && $time < $_->[1] } @{ $timeline->{gaps} };
}

# The database as of a moment, in a directory of its own: "number digest" or what went wrong, and the transaction.
my ($targets, $patience) = (0, 0);

sub recovered {
    my ($name, %moment) = @_;
    my $target = "$dir/restored/" . ++$targets;
    my $r = $t->post('/recovery', { recovery_type => 'database', database => $name, %moment, restore_to_original => \0, target_directory => $target });
    return ("$r->{status}: " . ($r->{json}{detail} // $r->{content})) if $r->{status} != 202;
    my $job = $t->wait_job($r->{json}{id}, 120);
    return ("$job->{status}: $job->{error}") if !-e "$target/$name.db";
    my ($got) = `$tools/pitrjudge content $target/$name.db`;
    chomp $got;
    unlink "$target/$name.db";
    return ($got, ($job->{result} // $job)->{transaction});
}

# The helper that is killed again and again comes back later and later, as any service should; and what was killed interrupted jobs.
sub recovered_at_last {
    my ($name, %moment) = @_;
    my @got;
    for (1 .. 15) {
        @got = recovered($name, %moment);
        last if $got[0] !~ /privileged helper|interrupted/;
        $patience++;
        sleep 5;
    }
    return @got;
}

my ($kept, $early) = (0, 0);    # promises

# Of what cleanup touches: the first moment that is promised, and any other.
sub keep_promises {
    my ($name) = @_;
    my $timeline = timeline($name) // return;
    for my $window (@{ $timeline->{windows} }) {
        my $span = $window->{end} - $window->{begin};
        for my $time ($window->{begin}, map { $window->{begin} + int rand $span } 1 .. 2) {
            next unless promised($timeline, $time);
            my ($got) = recovered_at_last($name, point_in_time => exact($time));
            read_logs($name);
            my $begun = $got =~ /^0 / ? 0 : $begun{$name}{$got};
            ok(defined $begun && $begun <= $time, "$name: what is promised of " . exact($time)) or diag($got);
            $kept++;
            $early++ if $time == $window->{begin};
        }
    }
    return;
}

# --- the campaign ---

my (%counts, @events, @cleanups);    # events: from when to when they may be the reason of a gap, what

sub happened {
    my ($what, $from, $seconds) = @_;
    push @events, [$from, time + $seconds, $what];
    $counts{$what}++;
    return;
}

sub set_mode {
    my ($mode) = @_;
    return $t->wait_until(60, "journal_mode=$mode", sub {
        my $db = NgxBackup::connect_db("$dir/app/both.db");
        my $is = eval { ($db->selectrow_array("PRAGMA journal_mode=$mode"))[0] } // '';
        $db->disconnect;
        return $is eq $mode;
    });
}

# To WAL mode while it is captured, and back while it is detached: SQLite lets nobody else be there then.
sub change_mode {
    my $to = $bases{both}{journal} eq 'wal' ? 'delete' : 'wal';
    my $from = time;
    if ($to eq 'wal') {
        ok(set_mode($to), 'to WAL mode') or return;
    } else {
        end_writer('both 1', 'TERM');
        $t->wait_until(60, 'detach', sub { $t->post('/databases/both/detach')->{status} == 200 });
        $t->wait_until(60, 'detached', sub { my $c = captures()->{both}; $c->{detached} && !$c->{capturing} });
        ok(set_mode($to), 'back to a rollback journal');
        $t->wait_until(60, 'attach', sub { $t->post('/databases/both/attach')->{status} == 200 });
        start_writer('both', 1);
    }
    $bases{both}{journal} = $to;
    $bases{both}{changes}++;
    happened("to $to", $from, 20);
    return;
}

my %act = (
    writer => sub {
        my @may = grep { !$bases{ (split / /)[0] }{steady} } sort keys %writer;
        my $which = $may[rand @may];
        end_writer($which, 'KILL');
        start_writer(split / /, $which);
        $counts{writer}++;
    },
    reload => sub { my $from = time; $t->hup; happened('reload', $from, 20) },
    runner => sub {
        my ($from, $runner) = (time, $t->runner);
        happened('runner', $from, 2) if $runner && kill 'KILL', $runner;
    },
    helper => sub {
        my $from = time;
        my $helper = ($t->get('/status')->{json} // {})->{helper}{pid};
        happened('helper', $from, 2) if $helper && kill 'KILL', $helper;
    },
    mode => \&change_mode,
);

chmod 0777, $dir;
for my $name (@names) { start_writer($name, $_) for 1 .. $bases{$name}{writers} // 1 }
my ($began, $told, $backup, $cleanup) = (time, time, time, time);
while (time - $began < $minutes * 60) {
    my @choice = ($kills ? qw(runner helper) : (), qw(writer writer writer reload reload), rand(3) < 1 ? 'mode' : ());
    $act{ $choice[rand @choice] }->();
    sleep 0.2 + rand 3;
    if (time - $backup > 20) {
        $backup = time;
        $counts{ 'backup ' . $t->post('/create', { backup_type => rand(3) < 1 ? 'full' : 'incremental' })->{status} }++;
    }
    if (time - $cleanup > 40) {
        keep_promises('brief');
        $cleanup = time;
        my $r = $t->post('/cleanup', {});
        push @cleanups, $r->{json}{id} if $r->{status} == 202;
        $counts{"cleanup $r->{status}"}++;
    }
    if (time - $told > 60) {
        $told = time;
        my $c = captures();
        diag(sprintf '%.0f of %d s: %s; %s', time - $began, $minutes * 60, counted(%counts), join(', ', map { "$_ " . ($c->{$_}{transaction} // '?') } @names));
    }
}
end_writer($_, 'TERM') for keys %writer;
my $ended = time;
diag(counted(%counts));
is($t->read('writers.log') // '', '', 'no writer was disturbed');

# --- was it the mix that it is meant to be? ---

my %all;
for my $name (@names) {
    read_logs($name);
    diag("$name, pages of $bases{$name}{page}: " . counted(%{ $did{$name} }));
    $all{$_} += $did{$name}{$_} for keys %{ $did{$name} };
}
my @wanted = ('rollback', 'savepoint taken back', 'spill', 'spill with savepoints', 'vacuum', 'incremental vacuum', map { "$_ checkpoint" } qw(passive full restart truncate));
is(join(', ', grep { !$all{$_} } @wanted), '', 'they did all that applications do') if $minutes >= 1;

# --- all that was committed is captured, and on the storage ---

my %content = map { my $name = $_; my ($text) = `$tools/pitrjudge content $dir/app/$name.db`; chomp $text; ($name => $text) } @names;
ok($t->wait_until(180, 'all is shipped', sub {
    my $now = time;
    my $c = captures();
    return @names == grep { $_->{capturing} && $now - $_->{durable_age_seconds} > $ended && $_->{shipped_transaction} == $_->{transaction} } values %$c;
}), 'all is captured and shipped') or diag(explain(captures()));
ok($t->wait_until(300, 'the queue is empty', sub { !grep { !$_->{done} } @{ $t->get('/jobs?limit=500')->{json}{jobs} } }), 'every job ended');
is(captures()->{rollback}{precision}, 'batch', 'rollback is captured in batches');

# --- cleanup ---

my $swept = time;
my $last = $t->wait_job($t->post('/cleanup', {})->{json}{id}, 120);
my ($segments, $backups) = (0, 0);
for my $job ($last, map { $t->get("/jobs/$_")->{json} } @cleanups) {
    my $result = $job->{cleanup_result} // next;
    $segments += $result->{segments_deleted} // 0;
    $backups += @{ $result->{deleted} // [] };
}
diag("cleanup removed $segments segments and $backups backups; $kept promised moments were looked at, $early of them the first");
is($last->{status}, 'completed', 'a last cleanup') or diag(explain($last));
if ($minutes >= 5) {    # before that, segments that are merged reach into the window
    cmp_ok($segments, '>', 0, 'cleanup removed transactions');
    cmp_ok($backups, '>', 0, 'and backups');
    cmp_ok($early, '>', 0, 'while what was promised could be had');
    my $promise = first { $_->{begin} } reverse @{ timeline('brief')->{windows} };
    cmp_ok($promise->{begin}, '<=', ($swept - $bases{brief}{window}) * 1e9, 'nothing of the window is gone');
}
keep_promises('brief');

# --- each transaction ---

my (%said, %sum);
my $once = ceil($check / @names);
make_path("$dir/scratch");
for my $name (@names) {
    my @said = `$tools/pitrjudge run file://$dir/storage $dir/backups $name $dir/scratch 20 $once @{[ sort keys %{ $logs{$name} } ]} 2>&1`;
    my $exit = $?;
    my $summary = (grep { /transactions in/ } @said)[0] // 'no summary';
    is($exit, 0, "$name: every transaction is a commit of a writer, in their order") or diag(grep { !/^(?:sample|gap)/ } @said);
    diag($summary);
    my ($n, $epochs, $batches, $had, $end) =
        $summary =~ /: (\d+) transactions in (\d+) epochs: .* (\d+) batches, .* (\d+) had by the product, .* last commit (.*)$/;
    is($end, $content{$name}, "$name: and the last is what is there");
    cmp_ok($had // 0, '>', 0, "$name: the code that recovers has them");
    $said{$name} = { epochs => $epochs // 0, batches => $batches // 0 };
    for (@said) {
        push @{ $said{$name}{sample} }, [$1, $2, $3] if /^sample (\d+) (\d+ \S+) (\d+)$/;
        push @{ $said{$name}{gaps} }, [$1, $2, $3, $4] if /^gap (\d+) (\d+) (\d+) (-?\d+)$/;
        push @{ $said{$name}{unjudged} }, [$1, $2, $3] if /^unjudged (\d+) (\d+) (\d+)$/;
    }
    $sum{transactions} += $n // 0;
    $sum{'had by the code that recovers'} += $had // 0;
    $sum{epochs} += $epochs // 0;
    $sum{batches} += $batches // 0;
}
cmp_ok($sum{transactions}, '>=', 100_000 * $minutes / 30, 'there were transactions');
cmp_ok($said{$_}{batches}, '>', 0, "$_: in batches") for qw(rollback both);
cmp_ok($did{both}{commit}, '>', 0, 'both goes on in both modes') if $bases{both}{changes};

# --- what is missing, and why ---

# Without a log nobody holds anything from one worker to the next, or from one mode to another.
sub reasons {
    my ($name) = @_;
    my %may = (runner => 1, helper => 1, $name eq 'rollback' || $name eq 'both' ? (reload => 1) : (), $name eq 'both' ? ('to wal' => 1, 'to delete' => 1) : ());
    return grep { $may{ $_->[2] } } @events;
}

for my $name (@names) {
    my @reasons = reasons($name);
    my @gaps = @{ $said{$name}{gaps} // [] };
    my $timeline = timeline($name);
    my @sizes = map { ($_->[2] - $_->[1]) / 1e9 } @gaps;
    $sum{gaps} += @gaps;
    $sum{'commits in gaps'} += sum0(map { $_->[3] } @gaps);
    diag(sprintf '%s: %d gaps, %.3f s and %d commits in them, the longest %.3f s; %d times something that can make one', $name, scalar @gaps,
        sum0(@sizes), sum0(map { $_->[3] } @gaps), (sort { $b <=> $a } @sizes, 0)[0], scalar @reasons);
    cmp_ok(scalar @gaps, '<=', scalar @reasons, "$name: not more gaps than reasons");
    for my $gap (@gaps) {
        my ($from, $to) = map { $_ / 1e9 } @$gap[1, 2];
        ok((grep { $_->[0] <= $to && $from <= $_->[1] } @reasons), "$name: something happened in the gap that is transaction $gap->[0]")
            or diag(sprintf '%.3f to %.3f', $from, $to);
    }
    cmp_ok($said{$name}{epochs}, '<=', 1 + @reasons, "$name: an epoch ends when something was killed");
    for my $part (@{ $said{$name}{unjudged} // [] }) {
        diag("$name: transactions $part->[0] to $part->[1] are before the first backup of their epoch");
        $sum{'not judged'} += $part->[1] - $part->[0] + 1;
        ok(!(grep { $_->{first_transaction} <= $part->[1] && $part->[0] <= $_->{last_transaction} } @{ $timeline->{windows} }),
            "$name: and nobody promises them");
    }
}

# --- by REST, as an operator would ---

my ($asked, $compared, $refused) = (0, 0, 0);
for my $name (@names) {
    my @all = @{ $said{$name}{sample} // [] };
    my $timeline = timeline($name);
    for my $one (map { $all[rand @all] } 1 .. (@all < 8 ? @all : 8)) {
        my ($transaction, $content, $time) = @$one;
        my %moment = ++$asked % 2 ? (transaction => 0 + $transaction) : (point_in_time => exact($time));
        my ($got, $which) = recovered_at_last($name, %moment);
        if ($got =~ /^422/ && !promised($timeline, $time)) {
            $refused++;
            next;
        }
        my $good = is("$got, " . ($which // 'none'), "$content, $transaction", "$name: " . join ' ', %moment);
        my $r = $t->post('/query', { sql => 'SELECT n FROM head', database => $name, %moment });
        $good = is($r->{json}{rows}[0][0], (split / /, $content)[0], '  and asked in SQL') && $good or diag(explain($r->{json}));
        $compared++ if $good;
    }
}
diag("$compared of $asked recoveries compared, $refused refused as the timeline says; $patience times without the helper, or interrupted");
cmp_ok($compared, '>=', 0.9 * $asked, 'nine of ten at least');
cmp_ok($asked, '>', 0, 'some');
diag(counted(%sum));

# All that is needed to find out why.
if (!Test::More->builder->is_passing && $ENV{KEEP}) {
    $t->write('events', join "\n", map { sprintf '%.3f %.3f %s', @$_ } @events);
    system 'cp', '-a', $dir, $ENV{KEEP};
}
$t->stop('QUIT');
$t->finish;
done_testing;
