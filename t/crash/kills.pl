#!/usr/bin/perl
# t/crash/kills.pl [N]: N times (default 200) kill -9 of the worker that runs the jobs, at random moments of backups and recoveries, while an
# application writes.  Afterwards: no listed backup is damaged, no lock stays, the next run succeeds, and every backup's database is
# exactly some commit of the writer.  Called by ./dev crash.
use strict;
use warnings;

use DBI;
use File::Path qw(make_path remove_tree);
use List::Util qw(first);
use Test::More;
use Time::HiRes qw(sleep time);
use NgxBackup;

my $kills = shift // 200;
my $t = NgxBackup->new;
my $dir = $t->{dir};
$t->allow_log(qr/exited on signal 9/);
srand($ENV{SEED} // 1);

for my $n (1 .. 60) {
    $t->write("app/uploads/$n.bin", join '', map { pack 'Q', rand 2**62 } 1 .. 4000 * (1 + $n % 9));
    $t->write("app/transcripts/$_/$n.txt", "text $_ $n " x (1 + rand 300)) for 1 .. 10;
}
my $writer = start_writer();
$t->{set} = <<"CONF";
backup app {
    base_dir $dir/backups;
    database main { path $dir/app/app.db; }
    files uploads { path $dir/app/uploads; }
    files transcripts { path $dir/app/transcripts; }
    storage local disk { path $dir/storage; }
    restore_root $dir/restored;
    restore_in_place on;
    restore_safety off;
    min_free 0;
    thread_pool backup;
}
CONF
$t->start;
is($t->backup->{status}, 'completed', 'a first backup');

my (%requests, $round);
my $began = time;
for $round (1 .. $kills) {
    my $kind = (qw(full incremental target database))[$round % 4];
    my $answer =
          $kind eq 'target' ? $t->post('/recovery', { recovery_type => 'full', restore_to_original => \0, target_directory => "$dir/restored/r$round" })
        : $kind eq 'database' ? $t->post('/recovery', { recovery_type => 'database' })
        : $t->post('/create', { backup_type => $kind });
    $requests{ $answer->{status} }++;
    sleep rand 0.35;
    my $runner = $t->runner;
    kill 'KILL', $runner;
    $t->wait_until(20, 'another runner', sub { my $next = $t->runner; $next && $next != $runner });
    $t->write("app/uploads/new$round.bin", "new $round " x 5000);
    remove_tree(glob "$dir/restored/*") if $round % 10 == 0;
    note(sprintf '%d of %d kills, %.0f s', $round, $kills, time - $began) if $round % 20 == 0;
}
diag('answers: ' . join ', ', map {"$requests{$_} x $_"} sort keys %requests);

# Whatever is queued still runs to its end.
ok($t->wait_until(300, 'the queue is empty', sub {
    my $status = $t->get('/jobs?limit=500')->{json}{jobs};
    return !grep { !$_->{done} } @$status;
}), 'every job ended');
is($t->backup({ backup_type => 'incremental' })->{status}, 'completed', 'the next backup succeeds');
is($t->backup({ backup_type => 'full' })->{status}, 'completed', 'and a full one');
my $verify = $t->wait_job($t->post('/verify', { level => 3 })->{json}{id}, 600);
is($verify->{status}, 'completed', 'no backup is damaged: every chunk is right, every database passes its check')
    or diag(explain($verify));
kill 'TERM', $writer;
waitpid $writer, 0;
my @backups = map { $_->{backup_id} } @{ $t->get('/list?limit=500')->{json}{backups} };
cmp_ok(scalar @backups, '>', 3, scalar(@backups) . ' backups are listed');
my $wrong = 0;
for my $id (@backups) {
    my $job = $t->wait_job($t->post('/recovery', { recovery_type => 'database', backup_id => $id, restore_to_original => \0,
                target_directory => "$dir/restored/$id" })->{json}{id}, 120);
    my $copy = eval { database("$dir/restored/$id/app.db") };
    my ($head, $rows, $sum) = $copy ? $copy->selectrow_array('SELECT commits, (SELECT count(*) FROM t), (SELECT coalesce(sum(v), 0) FROM t) FROM head') : (-1, 0, 0);
    my ($want_rows, $want_sum) = $copy ? $copy->selectrow_array('SELECT rows, total FROM head') : (-1, -1);
    $wrong++, diag("$id: $job->{status}: $head commits, $rows rows instead of $want_rows")
        if $job->{status} ne 'completed' || $rows != $want_rows || $sum != $want_sum;
}
is($wrong, 0, 'each holds the database as it was after some commit');
is(scalar(glob "$dir/restored/*/.ngx-backup-*"), undef, 'no temporary is left');
is($t->get('/health')->{status}, 200, 'healthy');
$t->finish;
remove_tree($dir);
done_testing();

sub database {
    my ($path) = @_;
    my $db = DBI->connect("dbi:SQLite:dbname=$path", '', '', { RaiseError => 1, PrintError => 0 });
    $db->sqlite_busy_timeout(60_000);
    return $db;
}

sub start_writer {
    my $db = database("$dir/app/app.db");
    $db->do('PRAGMA journal_mode=WAL');
    $db->do('CREATE TABLE head(commits INTEGER, rows INTEGER, total INTEGER)');
    $db->do('INSERT INTO head VALUES(0, 0, 0)');
    $db->do('CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, filler BLOB)');
    $db->disconnect;
    $t->own('app/app.db');
    my $pid = fork // die "fork: $!";
    return $pid if $pid;
    my $go = 1;
    $SIG{TERM} = sub { $go = 0 };
    my $writer = database("$dir/app/app.db");
    while ($go) {
        eval {
            $writer->begin_work;
            $writer->do('INSERT INTO t(v, filler) VALUES(?, randomblob(?))', undef, int rand 1000, int rand 3000) for 1 .. 5;
            $writer->do('DELETE FROM t WHERE id <= (SELECT max(id) FROM t) - 2000');
            $writer->do('UPDATE head SET commits = commits + 1, rows = (SELECT count(*) FROM t), total = (SELECT sum(v) FROM t)');
            $writer->commit;
            1;
        } or eval { $writer->rollback };
        sleep 0.002;
    }
    $writer->disconnect;
    POSIX::_exit(0);
}
