#!/usr/bin/perl
# A database with a rollback journal, which only its owner may read, is captured in batches while it is written to: each comes back, the application
# is never refused, and when it goes over to WAL mode every transaction is captured.
use strict;
use warnings;
use DBI;
use FindBin;
use lib "$FindBin::Bin/lib";
use JSON::PP ();
use NgxBackup qw(cli_is);
use POSIX qw(_exit);
use Test::More;
use Time::HiRes qw(sleep);

plan skip_all => 'only root may start the helper' if $> != 0;

my $owner = 4711;
my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, daemon => 1);
my $path = "$t->{dir}/app/app.db";
$t->{set} = $t->set_conf =~ s/(files uploads)/database main { path $path; wal off; pitr_window 7d; } $1/r;
my $app = NgxBackup::connect_db($path);
$app->do('CREATE TABLE t(id INTEGER PRIMARY KEY, filler TEXT)');
chown $owner, $owner, $path, "$t->{dir}/app";
chmod 0640, $path;
chmod 0750, "$t->{dir}/app";
$t->start;
$t->operator;

sub capture_is {
    my ($name, %is) = @_;
    my $there = sub {
        my $capture = $t->capture;
        return !grep { ($capture->{$_} // '') ne $is{$_} } keys %is;
    };
    ok($t->wait_until(30, $name, $there), $name) or diag(explain($t->capture));
    return $t->capture;
}

# The application: a row a transaction, as fast as it can, until it is told to stop.  Its exit code says whether it was refused.
sub writer {
    my $pid = fork // die "fork: $!";
    return $pid if $pid;
    $) = $( = $owner;
    $> = $< = $owner;
    my $stop;
    local $SIG{TERM} = sub { $stop = 1 };
    my $db = NgxBackup::connect_db($path);
    until ($stop) {
        eval { $db->do('INSERT INTO t(filler) VALUES(hex(randomblob(200)))'); 1 } or _exit(1);
        sleep 0.005;
    }
    $db->disconnect;
    _exit(0);
}

my $false = JSON::PP::false;
my $targets = 0;

# Rows as of a moment, once SQLite finds nothing wrong with them.
sub rows_at {
    my (%moment) = @_;
    my $target = "$t->{dir}/restored/" . ++$targets;
    my $r = $t->post('/recovery', {recovery_type => 'database', %moment, restore_to_original => $false, target_directory => $target});
    my $job = $t->wait_job($r->{json}{id} // return "refused: $r->{json}{detail}");
    return "$job->{status}: $job->{error}" if $job->{status} !~ /^(?:completed|warning)$/;
    my $db = NgxBackup::connect_db("$target/app.db");
    return ($db->selectrow_array('SELECT CASE WHEN count(*) = coalesce(max(id), 0) THEN count(*) ELSE -1 END FROM t'))[0];
}

sub rows { return ($app->selectrow_array('SELECT count(*) FROM t'))[0] }

capture_is('it is captured', capturing => 1, precision => 'batch');
ok($t->logs(qr/rollback journal, in which transactions cannot be told apart/), 'the log says how');

my $pid = writer();
ok($t->wait_until(30, 'batches', sub { $t->capture->{transaction} >= 2 }), 'what is written comes in batches');
my $job = $t->backup;
is($job->{status}, 'completed', 'a full backup meanwhile') or diag(explain $job);
my $base = $t->capture->{transaction};
ok($t->wait_until(30, 'more batches', sub { $t->capture->{transaction} >= $base + 3 }), 'more come after it');
kill 'KILL', $t->runner;
my $killed = $t->capture->{transaction};
ok($t->wait_until(30, 'the next runner', sub { ($t->capture->{transaction} // 0) > $killed + 1 }), 'and with another runner');
$t->allow_log(qr/exited on signal 9/);
kill 'TERM', $pid;
waitpid $pid, 0;
is($? >> 8, 0, 'the application was never refused');
my $rows = rows();
my $last;
ok($t->wait_until(60, 'the last batch', sub {
    $last = $t->capture->{transaction};
    return ($t->post('/query', {sql => 'SELECT count(*) FROM t', transaction => $last})->{json}{rows}[0][0] // -1) == $rows;
}), 'all is captured');
is(rows_at(transaction => $last), $rows, 'the last batch is all there was');
my $before = 0;
for my $n ($base .. $last - 1) {
    my $then = rows_at(transaction => $n);
    like($then, qr/^\d+$/, "batch $n is a state of the database");
    cmp_ok($then, '>', $before, 'with more than the one before');
    $before = $then;
}
my $timeline = $t->get('/timeline')->{json}{databases}[0]{transactions};
is(scalar(grep { !$_->{batch} && !$_->{gap} } @$timeline), 0, 'none is called a transaction');
cmp_ok(scalar(grep { $_->{gap} } @$timeline), '<=', 1, 'what nobody saw when the runner was killed is one gap');
cli_is('the command line says so', 0, qr/ batch$/m, 'timeline');

# --- it goes over to WAL mode ---
is(($app->selectrow_array('PRAGMA journal_mode=WAL'))[0], 'wal', 'the application may go over to WAL mode');
my $wal = capture_is('noticed without a reload', capturing => 1, precision => 'transaction');
$app->do('INSERT INTO t(filler) VALUES(NULL)') for 1 .. 5;
ok($t->wait_until(30, 'each', sub { $t->capture->{transaction} >= $wal->{transaction} + 5 }), 'from then on each transaction is captured');
my $end = $t->capture->{transaction};
is(rows_at(transaction => $end - $_), rows() - $_, "$_ before the end") for 0 .. 4;
$app->disconnect;
$t->finish;
done_testing;
