#!/usr/bin/perl
# A captured database in hard times: its application holds a lock, or keeps it to itself, gives it another page size, or puts another file in its
# place.  Nothing changes that should not, what is wrong is said, and what was captured before can be had afterwards.
use strict;
use warnings;
use DBI;
use FindBin;
use lib "$FindBin::Bin/lib";
use JSON::PP ();
use NgxBackup;
use Test::More;

plan skip_all => 'only root may start the helper' if $> != 0;

my $false = JSON::PP::false;
my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, daemon => 1);
my $path = "$t->{dir}/app/app.db";
$t->{set} = $t->set_conf =~ s/(files uploads)/database main { path $path; busy_timeout 1s; pitr_window 7d; } $1/r;

# A database with rows 1 to so many; whose it is does not matter here.
sub make_db {
    my ($file, $rows) = @_;
    my $db = NgxBackup::connect_db($file);
    $db->do('PRAGMA journal_mode=WAL');
    $db->do('CREATE TABLE t(id INTEGER PRIMARY KEY, filler TEXT)');
    $db->do('INSERT INTO t(filler) VALUES(hex(randomblob(200)))') for 1 .. $rows;
    $t->own(grep { -e } map { "$file$_" } '', '-wal', '-shm');
    return $db;
}

sub content { my ($db) = @_; return join ' ', @{ $db->selectcol_arrayref('SELECT id || filler FROM t ORDER BY id') } }

sub add_rows {
    my ($db, $count) = @_;
    $db->do('INSERT INTO t(filler) VALUES(hex(randomblob(200)))') for 1 .. $count;
    return;
}

sub capture_is {
    my ($name, $is) = @_;
    ok($t->wait_until(30, $name, sub { local $_ = $t->capture; $is->() }), $name) or diag(explain($t->capture));
    return $t->capture;
}

sub in_place {
    my (%moment) = @_;
    my $r = $t->post('/recovery', { recovery_type => 'database', %moment });
    is($r->{status}, 202, 'recovery is taken') or diag(explain($r->{json}));
    return $t->wait_job($r->{json}{id});
}

my $targets = 0;

# The database as of a transaction, in a directory of its own.
sub beside {
    my ($transaction) = @_;
    my $target = "$t->{dir}/restored/" . ++$targets;
    my $r = $t->post('/recovery', { recovery_type => 'database', transaction => $transaction, restore_to_original => $false, target_directory => $target });
    my $job = $t->wait_job($r->{json}{id} // return "refused: $r->{json}{detail}");
    return "$job->{status}: $job->{error}" if $job->{status} ne 'completed';
    return NgxBackup::connect_db("$target/app.db");
}

sub page_size { my ($db) = @_; return ($db->selectrow_array('PRAGMA page_size'))[0] }

my $app = make_db($path, 3);
my ($backup, $last, %then);

subtest 'locking_mode=EXCLUSIVE' => sub {
    $app->disconnect;
    $app = NgxBackup::connect_db($path);
    $app->do('PRAGMA locking_mode=EXCLUSIVE');
    add_rows($app, 1);
    $t->start;
    my $capture = capture_is('status says why nothing is captured', sub { !$_->{capturing} && ($_->{problem} // '') =~ /locking_mode=EXCLUSIVE/ });
    is($capture->{transaction}, 0, 'and nothing is');
    is($t->get('/health')->{json}{checks}{'database_main:durable_age'}[0]{status}, 'warn', 'so does health');
    my $job = $t->backup;
    is($job->{status}, 'failed', 'a backup fails') or diag(explain($job));
    like($job->{error}, qr/locking_mode=EXCLUSIVE/, 'and says why');
    add_rows($app, 1);
    $app->disconnect;
    $app = NgxBackup::connect_db($path);
    capture_is('when the application lets others in, it is captured', sub { $_->{capturing} && !defined $_->{problem} });
    is(($app->selectrow_array('SELECT count(*) FROM t'))[0], 5, 'nothing was lost');
    add_rows($app, 2);
    capture_is('each transaction', sub { $_->{transaction} == 2 });
};

subtest 'a busy target' => sub {
    is($t->backup->{status}, 'completed', 'a backup');
    $then{2} = content($app);
    add_rows($app, 2);
    capture_is('captured', sub { $_->{transaction} == 4 });
    my $before = content($app);
    my $reader = NgxBackup::connect_db($path);
    for my $lock ('IMMEDIATE', 'EXCLUSIVE') {
        $app->do("BEGIN $lock");
        $app->do('DELETE FROM t WHERE id = 1');
        my $job = in_place(transaction => 2);
        is($job->{status}, 'failed', "BEGIN $lock: it gives up");
        like($job->{error}, qr/database \Q$path\E: rewrite \(nothing is changed\): database is locked: .*raise busy_timeout/, 'and says which, why and what to do') or diag(explain($job));
        ok(content($reader) eq $before, 'nothing changed');
        $app->do('ROLLBACK');
        ok(content($app) eq $before, 'for the application neither');
    }
    $reader->disconnect;
    my $capture = $t->capture;
    is("$capture->{capturing} $capture->{transaction} $capture->{gaps}", '1 4 0', 'nor was anything captured that did not happen');
    my $job = in_place(transaction => 2);
    is($job->{status}, 'completed', 'when the lock is gone it works') or diag(explain($job));
    ok(content($app) eq $then{2}, 'as it was');
    add_rows($app, 3);
    $last = capture_is('captured', sub { $_->{transaction} == 8 })->{transaction};
    $then{$last} = content($app);
};

subtest 'another page size' => sub {
    my $old = page_size($app);
    is($t->post('/databases/main/detach')->{status}, 200, 'detached');
    capture_is('let go of', sub { $_->{detached} && !$_->{capturing} });
    $app->do($_) for 'PRAGMA journal_mode=DELETE', 'PRAGMA page_size=16384', 'VACUUM', 'PRAGMA journal_mode=WAL';
    is(page_size($app), 16384, 'the application may change it');
    is($t->post('/databases/main/attach')->{status}, 200, 'attached');
    capture_is('captured again', sub { $_->{capturing} });
    ok($t->logs(qr/what was captured before ends here: its page size changed from $old to 16384/), 'the log says what ended');
    add_rows($app, 1);
    my $first = capture_is('each transaction', sub { $_->{transaction} > $last })->{transaction};
    is($first, $last + 1, 'with numbers that go on');
    my $windows = sub { return [map { $_->{recoverable} ? "$_->{first_transaction} to $_->{last_transaction}" : 'none' }
            @{ $t->get('/timeline')->{json}{databases}[0]{windows} }] };
    is_deeply($windows->(), ['none', "2 to $last"], 'the timeline has two windows, and one waits for a backup');
    like(beside($first), qr/no backup was made between/, 'so says a recovery');
    is($t->backup->{status}, 'completed', 'a backup');
    add_rows($app, 1);
    $then{ ++$first } = content($app);
    capture_is('captured', sub { $_->{transaction} == $first });
    for my $n (sort { $a <=> $b } keys %then) {
        my $db = beside($n);
        if (!ref $db) { fail("transaction $n: $db"); next }
        ok(content($db) eq $then{$n}, "transaction $n");
        is(page_size($db), $n == $first ? 16384 : $old, '  with the page size that it had');
        $db->disconnect;
    }
    my $before = content($app);
    my $job = in_place(transaction => $last);
    is($job->{status}, 'failed', 'in place it takes another file, which nobody may have open');
    like($job->{error}, qr/is open in (?:process $$|another process): stop the application/, 'and says so');
    ok(content($app) eq $before && page_size($app) == 16384, 'nothing changed');
    capture_is('it is captured still', sub { $_->{capturing} && $_->{transaction} == $first });
    $app->disconnect;
    $job = in_place(transaction => $last);
    is($job->{status}, 'completed', 'when nobody has, it works') or diag(explain($job));
    $app = NgxBackup::connect_db($path);
    is(page_size($app), $old, 'with the page size that it had');
    ok(content($app) eq $then{$last}, 'as it was');
    capture_is('and is captured', sub { $_->{capturing} });
    is($t->backup->{status}, 'completed', 'a backup');
    add_rows($app, 1);
    $last = capture_is('each transaction', sub { $_->{transaction} > $first })->{transaction};
    is($last, $first + 1, 'with numbers that go on');
    $then{$last} = content($app);
};

subtest 'another file in its place' => sub {
    my $other = make_db("$t->{dir}/app/other.db", 40);
    my $now = content($other);
    $other->disconnect;    # nothing of it is in a log any more
    my $gaps = $t->capture->{gaps};
    $app->disconnect;
    unlink "$path-wal", "$path-shm";
    rename "$t->{dir}/app/other.db", $path or die "rename: $!";
    ok($t->logs(qr/database \Q$path\E was replaced or removed while it was open/), 'the log says so');
    capture_is('the new one is captured', sub { $_->{capturing} && $_->{transaction} > $last });
    $app = NgxBackup::connect_db($path);
    ok(content($app) eq $now, 'as it is');
    is($t->capture->{transaction}, $last + 1, 'what is different is one transaction');
    is($t->capture->{gaps}, $gaps + 1, 'a gap');
    my @gaps = grep { $_->{transaction} == $last + 1 } @{ $t->get('/timeline')->{json}{databases}[0]{gaps} };
    is(scalar @gaps, 1, 'in the timeline as well');
    $then{ $last + 1 } = $now;
    add_rows($app, 1);
    $then{ $last + 2 } = content($app);
    capture_is('each transaction', sub { $_->{transaction} == $last + 2 });
    for my $n ($last .. $last + 2) {
        my $db = beside($n);
        if (!ref $db) { fail("transaction $n: $db"); next }
        ok(content($db) eq $then{$n}, "transaction $n");
        $db->disconnect;
    }
};

$app->disconnect;
$t->stop('QUIT');
$t->finish;
done_testing;
