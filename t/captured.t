#!/usr/bin/perl
# What is in the way of a capture: no room, reloads, a disk that does not answer.  The application goes on, its log is let go of, health
# fails and says why, and what nobody saw is one gap, of the database that it happened to.
use strict;
use warnings;
use DBI;
use Fcntl qw(F_SETFD FD_CLOEXEC O_RDWR);
use FindBin;
use lib "$FindBin::Bin/lib";
use JSON::PP ();
use NgxBackup qw(cli);
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep);

# In a mount namespace of its own.
my $CLONE_NEWNS = 0x20000;
plan skip_all => 'needs root and its own mounts'
    unless $> == 0 && syscall(272, $CLONE_NEWNS) == 0 && system('mount --make-rprivate /') == 0;

my $false = JSON::PP::false;
my $targets = 0;

# A set with these databases, each with a table, all captured.
sub new_app {
    my ($min_free, @names) = @_;
    my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, daemon => 1);
    my $blocks = join ' ', map { "database $_ { path $t->{dir}/app/$_.db; pitr_window 7d; }" } @names;
    $t->{set} = $t->set_conf =~ s/(files uploads)/$blocks $1/r =~ s/min_free 0/min_free $min_free/r;
    for my $name (@names) {
        my $db = $t->{app}{$name} = NgxBackup::connect_db("$t->{dir}/app/$name.db");
        $db->do('PRAGMA journal_mode=WAL');
        $db->do('CREATE TABLE t(id INTEGER PRIMARY KEY, filler TEXT)');
        chown +(getpwnam 'www-data')[2, 3], map { "$t->{dir}/app/$name.db$_" } '', '-wal', '-shm';
    }
    return $t;
}

sub captures {
    my ($t) = @_;
    my $r = $t->get('/status');
    return {} unless $r->{status} == 200;
    return { map { $_->{name} => $_ } @{ $r->{json}{backup_system}{database}{captures} } };
}

sub wait_captures {
    my ($t, $name, $check) = @_;
    ok($t->wait_until(60, $name, sub { my $c = captures($t); return %$c && $check->($c) }), $name) or diag(explain(captures($t)));
    return captures($t);
}

sub add_row { my ($t, $name) = @_; $t->{app}{$name}->do('INSERT INTO t(filler) VALUES(hex(randomblob(200)))'); return }

# Nobody holds the log: it can be copied and cut off.
sub is_free {
    my ($t, $name, $what) = @_;
    my $db = $t->{app}{$name};
    $db->sqlite_busy_timeout(0);
    ok($t->wait_until(60, $what, sub { ($db->selectrow_array('PRAGMA wal_checkpoint(TRUNCATE)'))[0] == 0 }), $what);
    $db->sqlite_busy_timeout(20_000);
    return;
}

sub rows_at {
    my ($t, $name, $transaction) = @_;
    my $target = "$t->{dir}/restored/" . ++$targets;
    my $r = $t->post('/recovery', {recovery_type => 'database', database => $name, transaction => $transaction, restore_to_original => $false,
        target_directory => $target});
    my $job = $t->wait_job($r->{json}{id} // return "refused: $r->{json}{detail}");
    return "$job->{status}: $job->{error}" if $job->{status} ne 'completed';
    my $db = NgxBackup::connect_db("$target/$name.db");
    return ($db->selectrow_array('SELECT count(*) FROM t'))[0];
}

sub check_of { my ($t, $check) = @_; my $r = $t->get('/health'); return ($r->{status}, $r->{json}{checks}{$check}[0] // {}) }

sub end {
    my ($t) = @_;
    $_->disconnect for values %{ $t->{app} };
    $t->stop('QUIT');
    return;
}

subtest 'two databases of one set, and a disk without room' => sub {
    my $t = new_app('24m', 'one', 'two');
    system('mount', '-t', 'tmpfs', '-o', 'size=64m', 'none', "$t->{dir}/backups") == 0 or die 'mount';
    $t->own('backups');
    $t->start;
    $t->operator;
    wait_captures($t, 'both are captured', sub { $_[0]{one}{capturing} && $_[0]{two}{capturing} });
    is($t->backup({backup_type => 'full'})->{status}, 'completed', 'a backup');
    for my $n (1 .. 12) {
        add_row($t, 'one');
        add_row($t, 'two') if $n % 3 == 0;
    }
    my $c = wait_captures($t, 'each has its own numbers', sub { $_[0]{one}{transaction} == 12 && $_[0]{two}{transaction} == 4 });
    is(rows_at($t, 'one', 5), 5, 'a moment of the one');
    is(rows_at($t, 'two', 3), 3, 'and of the other');
    ok($t->wait_until(30, 'healthy', sub { $t->get('/health')->{status} == 200 }), 'healthy');

    $t->write('backups/filler', 'x' x (48 << 20));
    $c = wait_captures($t, 'less than min_free is left: both pause', sub { !$_[0]{one}{capturing} && !$_[0]{two}{capturing} });
    like($c->{$_}{problem}, qr/min_free.*will be a gap|will be a gap.*min_free/, "$_: says why") for qw(one two);
    is_free($t, $_, "$_: its log is let go of") for qw(one two);
    my ($status, $check) = check_of($t, 'disk:free');
    is("$status $check->{status}", '503 fail', 'health fails');
    (undef, $check) = check_of($t, 'database_one:durable_age');
    is($check->{status}, 'warn', 'and warns that nothing is captured');
    like($t->get('/metrics')->{content}, qr/^nginx_backup_capture_up\{backup="app",database="$_"\} 0$/m, "$_: so do metrics") for qw(one two);
    add_row($t, 'one') for 1 .. 3;
    $t->{app}{one}->do('PRAGMA wal_checkpoint(TRUNCATE)');
    add_row($t, 'one');
    unlink "$t->{dir}/backups/filler" or die $!;
    $c = wait_captures($t, 'there is room again', sub { $_[0]{one}{capturing} && $_[0]{two}{capturing} });
    is("$c->{one}{gaps} $c->{two}{gaps}", '1 0', 'what nobody saw is one gap, of that database');
    is($c->{one}{transaction}, 13, 'which has one number');
    add_row($t, $_) for qw(one two);
    wait_captures($t, 'both go on', sub { $_[0]{one}{transaction} == 14 && $_[0]{two}{transaction} == 5 });
    is(rows_at($t, 'one', 12), 12, 'before the gap');
    is(rows_at($t, 'one', 14), 17, 'and behind it');
    my %timeline = map { $_->{database} => $_ } @{ $t->get('/timeline')->{json}{databases} };
    is(scalar(@{ $timeline{one}{gaps} }) . scalar @{ $timeline{two}{gaps} }, '10', 'the timeline shows it');
    ok($t->wait_until(30, 'healthy', sub { $t->get('/health')->{status} == 200 }), 'healthy again');

    is((cli('detach', 'two'))[0], 0, 'one of them is detached');
    $c = wait_captures($t, 'only that one is let go of', sub { $_[0]{one}{capturing} && !$_[0]{two}{capturing} });
    ok(!$c->{one}{detached} && $c->{two}{detached}, 'and says so');
    $t->hup;
    wait_captures($t, 'the gap is not forgotten with the worker', sub { ($_[0]{one}{gaps} // 0) == 1 && $_[0]{one}{capturing} });
    $t->allow_log(qr/\[error\]/);
    end($t);
    system('umount', '-l', "$t->{dir}/backups");
    $t->finish;
};

# The directory of the segments becomes a file system whose other end we hold and never read.
sub a_disk_that_does_not_answer {
    my ($kill) = @_;
    plan skip_all => 'needs FUSE' unless -e '/dev/fuse';
    my $t = new_app('0', 'main');
    $t->start;
    $t->operator;
    wait_captures($t, 'it is captured', sub { $_[0]{main}{capturing} });
    is($t->backup({backup_type => 'full'})->{status}, 'completed', 'a backup');
    my $dir = "$t->{dir}/backups/wal/main";
    sysopen my $fuse, '/dev/fuse', O_RDWR or die "/dev/fuse: $!";
    fcntl $fuse, F_SETFD, 0;
    my $options = 'allow_other,rootmode=40000,user_id=0,group_id=0,fd=' . fileno $fuse;
    my $mounted = system("mount -i -t fuse -o $options none $dir") == 0;
    fcntl $fuse, F_SETFD, FD_CLOEXEC;
    if (!$mounted) {
        end($t);
        $t->finish;
        return;
    }
    my $before = $t->capture->{transaction};
    add_row($t, 'main');
    my $check;
    ok($t->wait_until(90, 'health', sub { (my $status, $check) = check_of($t, 'database_main:durable_age'); $status == 503 }), 'health fails');
    like($check->{output}, qr/has hung for \d+ s: .*write-ahead log .* had \d+ MiB: bring that disk back/, 'says what hangs, how large the log is, and what to do');
    my $r = $t->post('/databases/main/detach');
    is($r->{status}, 200, 'detach answers');
    for (1 .. 2) {
        my $time = $t->get('/status')->{json}{timestamp};
        ok($t->wait_until(30, 'another status', sub { ($t->get('/status')->{json}{timestamp} // $time) ne $time }), 'status goes on');
    }
    ok($t->capture->{detached}, 'and says that it is detached');
    $t->{app}{main}->sqlite_busy_timeout(0);
    is(($t->{app}{main}->selectrow_array('PRAGMA wal_checkpoint(TRUNCATE)'))[0], 1, 'the log is held as long as the call hangs');
    if ($kill) {
        my $old = $t->runner;
        kill 'KILL', $old;
        is_free($t, 'main', 'when its worker is killed it is let go of');
        ok($t->wait_until(60, 'another worker', sub { ($t->runner // $old) != $old && $t->capture->{detached} }), 'the next one says how it is');
    }
    close $fuse;
    system('umount', '-l', $dir);
    is_free($t, 'main', 'when the call fails it is let go of');
    is($t->post('/databases/main/attach')->{status}, 200, 'attached again');
    wait_captures($t, 'it is captured again', sub { $_[0]{main}{capturing} && $_[0]{main}{transaction} > $before });
    $t->allow_log(qr/\[error\]/, qr/exited on signal 9/);
    end($t);
    $t->finish;
    return;
}

# An application that writes until it is told to end, and has its log begin anew as often as it can.
sub writer_of {
    my ($t) = @_;
    my $pid = fork // die "fork: $!";
    return $pid if $pid;
    my $go = 1;
    local $SIG{TERM} = sub { $go = 0 };
    my $db = NgxBackup::connect_db("$t->{dir}/app/app.db");
    for (my $n = 1; $go; $n++) {
        $db->do('INSERT INTO t(filler) VALUES(1)');
        $db->do('PRAGMA wal_checkpoint') if $n % 4 == 0;
        sleep 0.004;
    }
    $db->disconnect;
    POSIX::_exit(0);
}

# nginx tells the old worker to quit 100 ms after it started the new one, whether that one has begun to run or not.
sub slow_reload {
    my ($t) = @_;
    return if system('strace -o /dev/null true 2>/dev/null') != 0;    # it may not watch processes here
    my $pid = fork // die "fork: $!";
    exec qw(strace -qq -f -o /dev/null -e trace=setuid -e inject=setuid:delay_enter=400000 -p), $t->{pid} or POSIX::_exit(1) if !$pid;
    ok($t->wait_until(20, 'watched', sub { ($t->read("/proc/$t->{pid}/status") // q{}) =~ /^TracerPid:\s+[1-9]/m }), 'workers begin slowly');
    $t->hup;
    sleep 1.6;
    kill 'INT', $pid;
    waitpid $pid, 0;
    return;
}

# The next worker has a pin before the old one lets go, also when nobody tells either of them what changes.
for my $helper ('off', $NgxBackup::helper) {
    my $kind = $helper eq 'off' ? 'without a helper' : 'with a helper';
    subtest "reloads and a binary upgrade $kind" => sub {
        local $NgxBackup::helper = $helper;
        my $t = new_app(0, 'app');
        if ($helper ne 'off') {    # nor may they go there by themselves
            chmod 0700, "$t->{dir}/app";
            chown 0, 0, "$t->{dir}/app";
        }
        $t->start;
        wait_captures($t, 'captured', sub { $_[0]{app}{capturing} });
        unlike($t->read('error.log'), qr/not captured/, 'at once');
        my $first = captures($t)->{app}{transaction};
        my $writer = writer_of($t);
        for (1 .. 4) {
            $t->hup;
            sleep 1.2;
        }
        slow_reload($t);
        chmod 0755, "$t->{dir}/app";    # the new helper waits for the end of the old one
        chown +(getpwnam 'www-data')[2, 3], "$t->{dir}/app";
        my $old = $t->{pid};
        kill 'USR2', $old;
        ok($t->wait_until(20, 'the new master', sub { -e "$t->{dir}/nginx.pid.oldbin" && -s "$t->{dir}/nginx.pid" }), 'a new master');
        chomp($t->{pid} = $t->read('nginx.pid'));
        sleep 1;    # whoever upgrades looks first whether the new one is well
        kill 'QUIT', $old;
        ok($t->wait_until(30, 'the old master leaves', sub { $t->gone($old) }), 'in place of the old one');
        sleep 1.2;
        kill 'TERM', $writer;
        waitpid $writer, 0;
        my ($rows) = $t->{app}{app}->selectrow_array('SELECT count(*) FROM t');
        cmp_ok($rows, '>', 500, 'much was written meanwhile');
        my $c = wait_captures($t, 'all of it is captured', sub { $_[0]{app}{capturing} && $_[0]{app}{transaction} >= $first + $rows })->{app};
        is("$c->{transaction} $c->{gaps}", $first + $rows . ' 0', 'every transaction, without a gap');
        end($t);
        $t->finish;
    };
}

subtest 'a disk that does not answer, until it is taken away' => sub { a_disk_that_does_not_answer(0) };
subtest 'a disk that does not answer, and a worker that is killed' => sub { a_disk_that_does_not_answer(1) };

done_testing;
