#!/usr/bin/perl
# Every transaction of a live database is a restore point: by its time, by its number, in place and undone again, after
# reloads and kills, and from the storage alone.
use strict;
use warnings;
use DBI;
use FindBin;
use lib "$FindBin::Bin/lib";
use File::Path qw(remove_tree);
use JSON::PP ();
use NgxBackup qw(cli);
use POSIX qw(strftime);
use Test::More;
use Time::HiRes qw(sleep time);

plan skip_all => 'only root may start the helper' if $> != 0;

my $false = JSON::PP::false;

# owner: who alone may read the database, so that all goes through the helper.
sub new_app {
    my ($owner) = @_;
    my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, daemon => 1);
    $t->{db} = "$t->{dir}/app/app.db";
    $t->{set} = $t->set_conf =~ s/(files uploads)/database main { path $t->{db}; pitr_window 7d; } $1/r;
    $t->{app} = NgxBackup::connect_db($t->{db});
    $t->{app}->do('PRAGMA journal_mode=WAL');
    $t->{app}->do('CREATE TABLE t(id INTEGER PRIMARY KEY, filler TEXT)');
    my ($uid, $gid) = $owner ? ($owner, $owner) : (getpwnam 'www-data')[2, 3];
    chown $uid, $gid, map { "$t->{db}$_" } '', '-wal', '-shm';
    if ($owner) {
        chmod 0640, map { "$t->{db}$_" } '', '-wal', '-shm';
        chown $owner, $owner, "$t->{dir}/app";
        chmod 0750, "$t->{dir}/app";
    }
    $t->start;
    $t->operator;
    return $t;
}

sub is_captured {
    my ($t, $transaction, $name) = @_;
    ok($t->wait_until(20, 'captured', sub { my $c = $t->capture; $c->{capturing} && $c->{transaction} >= $transaction }), $name)
        or diag(explain($t->capture));
    return;
}

sub add_row {
    my ($t) = @_;
    $t->{app}->do('INSERT INTO t(filler) VALUES(hex(randomblob(200)))');
    return;
}

sub moment {
    my ($time) = @_;
    return strftime('%Y-%m-%dT%H:%M:%S', gmtime $time) . sprintf '.%03dZ', ($time - int $time) * 1000;
}

sub recover {
    my ($t, %body) = @_;
    my $r = $t->post('/recovery', { recovery_type => 'database', %body });
    is($r->{status}, 202, 'recovery is taken') or diag(explain($r));
    return $t->wait_job($r->{json}{id});
}

my $targets = 0;
my $reached;    # the transaction of the last recovery

# The rows of the database as of a moment, in a directory of its own.
sub rows_at {
    my ($t, %moment) = @_;
    my $target = "$t->{dir}/restored/" . ++$targets;
    my $r = $t->post('/recovery', { recovery_type => 'database', %moment, restore_to_original => $false, target_directory => $target });
    return "refused: $r->{json}{detail}" if $r->{status} != 202;
    my $job = $t->wait_job($r->{json}{id});
    return "$job->{status}: " . ($job->{error} // '') if $job->{status} ne 'completed';
    $reached = ($job->{result} // $job)->{transaction};
    my $db = NgxBackup::connect_db("$target/app.db");
    my ($rows) = $db->selectrow_array('SELECT count(*) FROM t');
    $db->disconnect;
    return $rows;
}

sub rows { my ($t) = @_; return ($t->{app}->selectrow_array('SELECT count(*) FROM t'))[0] }

# The past without recovering it: by REST, by the command line, and from the storage alone.
sub query_and_validate {
    my ($t, $at) = @_;
    my $count = 'SELECT count(*) AS n FROM t';
    for my $n (3, 17, 39) {
        my $r = $t->post('/query', { sql => $count, point_in_time => moment($at->[$n]) });
        is($r->{status}, 200, 'a query is answered') or diag(explain($r->{json}));
        is($r->{json}{rows}[0][0], $n, "as of row $n");
        is($r->{json}{transaction}, $n, 'and says of which transaction');
    }
    is($t->post('/query', { sql => $count, transaction => 5 }, token => 'operator')->{status}, 403, 'an admin may ask');
    for my $wrong (
        [{ sql => 'DELETE FROM t' }, 403, 'does not only read|not allowed|refused'],
        [{ sql => 'SELECT * FROM absent' }, 422, 'no such table'],
        [{ sql => "ATTACH '/etc/passwd' AS x" }, 403, 'refused|not allowed'],
        [{ sql => $count, transaction => 4000 }, 422, 'no transaction 4000: the last one is 40'],
        [{ sql => $count, limit => 0 }, 422, 'from 1 to 100000'],
        [{ transaction => 1 }, 422, 'is needed'],
        [{ sql => 'WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n', timeout => 1 }, 504, 'was stopped'],
    ) {
        my $r = $t->post('/query', $wrong->[0]);
        is($r->{status}, $wrong->[1], "refused: $wrong->[2]") or diag(explain($r->{json}));
        like($r->{json}{detail} // '', qr/$wrong->[2]/, 'and why');
    }
    my $r = $t->post('/validate-recovery', { transaction => 23 });
    my $job = $t->wait_job($r->{json}{id});
    is($job->{status}, 'completed', 'a moment is proved') or diag(explain($job));
    is($job->{validation_result}{transaction}, 23, 'the right one');
    my ($code, $out) = cli('query', '--transaction', 9, $count);
    is($code, 0, 'ngx-backup query') or diag($out);
    like($out, qr/^n\n9\nas of 20.*, transaction 9$/, 'prints the rows');
    ok($t->wait_until(40, 'shipped', sub { ($t->capture->{shipped_transaction} // 0) >= 40 }), 'all is on the storage');
    my $capture = $t->capture;
    ok(defined $capture->{$_} && $capture->{$_} >= 0 && $capture->{$_} < 60, "$_: $capture->{$_}") for qw(durable_age_seconds shipped_age_seconds);
    my $checks = $t->get('/health')->{json}{checks};
    is($checks->{"database_main:$_"}[0]{status}, 'pass', "health: $_") for qw(durable_age shipped_age content);
    my $metrics = $t->get('/metrics')->{content};
    like($metrics, qr/^nginx_backup_capture_up\{backup="app",database="main"\} 1$/m, 'metrics: it is captured');
    like($metrics, qr/^nginx_backup_captured_transactions_total\{backup="app",database="main"\} 40$/m, 'metrics: transactions');
    like($metrics, qr/^nginx_backup_shipped_age_seconds\{backup="app",database="main",storage="disk"\} [0-9.]+$/m, 'metrics: what would be lost');
    $r = $t->get('/timeline?limit=5', token => 'viewer');
    is($r->{status}, 200, 'the timeline');
    my $main = $r->{json}{databases}[0];
    is(join(' ', map { $_->{transaction} } @{ $main->{transactions} }), '40 39 38 37 36', 'newest first');
    is($t->get("/timeline?limit=5&cursor=$main->{next_cursor}")->{json}{databases}[0]{transactions}[0]{transaction}, 35, 'and further');
    ok($main->{windows}[0]{recoverable}, 'one window');
    is($t->get('/timeline?since=never')->{status}, 422, 'a wrong time');
    ($code, $out) = cli('timeline', '--limit', 3);
    like($out, qr/any moment from .* transactions \d+ to 40\n/, 'ngx-backup timeline');
    my @storage = ('--storage', "file://$t->{dir}/storage");
    ($code, $out) = cli('query', @storage, '--at', moment($at->[12]), $count);
    is($code, 0, 'from the storage alone') or diag($out);
    like($out, qr/^n\n12\nas of 20/, 'the same');
    my $target = "$t->{dir}/offline";
    ($code, $out) = cli('recover', @storage, '--type', 'full', '--at', moment($at->[31]), '--target', $target);
    is($code, 0, 'a full recovery of a moment from the storage alone') or diag($out);
    my $db = NgxBackup::connect_db("$target/app.db");
    is(($db->selectrow_array('SELECT count(*) FROM t'))[0], 31, 'the database');
    $db->disconnect;
    ok(-d "$target/uploads", 'and the files');
    return;
}

sub any_transaction {
    my ($owner) = @_;
    my $t = new_app($owner);
    is_captured($t, 0, 'it captures');
    like($t->get('/config')->{content}, qr/"pitr_window_seconds":\s*604800/, 'the configuration says for how long');
    is($t->backup({ backup_type => 'full' })->{status}, 'completed', 'a backup');
    my @at;
    for my $n (1 .. 40) {
        add_row($t);
        sleep 0.15;
        $at[$n] = time;
        sleep 0.01;
    }
    is_captured($t, 40, 'every commit is a transaction');
    is($t->capture->{transaction}, 40, 'and nothing else is');
    is(rows_at($t, point_in_time => moment($at[7])), 7, 'by time');
    is(rows_at($t, transaction => 23), 23, 'by number');
    is(rows_at($t, point_in_time => moment($at[40])), 40, 'the last one');
    query_and_validate($t, \@at);

    is($t->post('/databases/main/detach', undef, token => 'operator')->{status}, 403, 'an admin may detach');
    is((cli('detach', 'main'))[0], 0, 'ngx-backup detach');
    ok($t->wait_until(20, 'detached', sub { my $c = $t->capture; $c->{detached} && !$c->{capturing} }), 'let go of');
    is((cli('attach', 'main'))[0], 0, 'ngx-backup attach');
    is_captured($t, 40, 'and captured again');
    is($t->capture->{gaps}, 0, 'nothing happened meanwhile');

    my $job = recover($t, transaction => 11);
    is($job->{status}, 'completed', 'in place') or diag(explain($job));
    is(rows($t), 11, 'the application sees it');
    add_row($t);
    is_captured($t, 42, 'the recovery is a transaction as well');
    $job = recover($t, transaction => 40);
    is($job->{status}, 'completed', 'undone') or diag(explain($job));
    is(rows($t), 40, 'all is as before');
    is(($t->{app}->selectrow_array('PRAGMA integrity_check'))[0], 'ok', 'and sound');

    for my $wrong (
        [{ recovery_type => 'database', point_in_time => '2020-01-01T00:00:00Z' }, 'before the first transaction'],
        [{ recovery_type => 'database', point_in_time => moment(time + 3600) }, 'future'],
        [{ recovery_type => 'database', transaction => 4000 }, 'no transaction 4000'],
        [{ recovery_type => 'files', point_in_time => '2020-01-01T00:00:00Z' }, 'no backup of the files'],
        [{ recovery_type => 'database', transaction => 3, backup_id => 'latest' }, 'excludes'],
        [{ recovery_type => 'database', transaction => 0 }, 'from 1 to'],
        [{ recovery_type => 'database', point_in_time => 'yesterday' }, 'must be a time'],
    ) {
        my $r = $t->post('/recovery', $wrong->[0]);
        is($r->{status}, 422, "refused: $wrong->[1]");
        ok(index($r->{json}{detail} // '', $wrong->[1]) >= 0, 'says why') or diag(explain($r->{json}));
    }
    $t->{app}->disconnect;
    $t->stop('QUIT');
    $t->finish;
    return;
}

# A process that does something with the database over and over until SIGTERM; its exit says whether it was ever disturbed.
sub user_of {
    my ($t, $code) = @_;
    my $pid = fork // die "fork: $!";
    return $pid if $pid;
    my $stop = 0;
    local $SIG{TERM} = sub { $stop = 1 };
    my $db = NgxBackup::connect_db($t->{db});
    my $fine = eval { $code->($db) until $stop; 1 };
    warn $@ unless $fine;
    POSIX::_exit($fine ? 0 : 1);
}

subtest 'in place under readers and writers' => sub {
    my $t = new_app();
    is_captured($t, 0, 'it captures');
    is($t->backup({ backup_type => 'full' })->{status}, 'completed', 'a backup');
    add_row($t) for 1 .. 50;
    is_captured($t, 50, 'fifty rows');
    $t->{app}->disconnect;
    my $readers = sub {
        my ($db) = @_;
        $db->begin_work;
        my ($first) = $db->selectrow_array('SELECT count(*) FROM t');
        my ($most) = $db->selectrow_array('SELECT max(id) FROM t');
        my ($again) = $db->selectrow_array('SELECT count(*) FROM t');
        my ($check) = $db->selectrow_array('PRAGMA quick_check');
        $db->commit;
        die "$first rows became $again\n" if $first != $again;
        die "$check\n" if $check ne 'ok' || $most < $first;
    };
    my $writers = sub {
        my ($db) = @_;
        $db->do('INSERT INTO t(filler) VALUES(hex(randomblob(300)))');
        sleep 0.005;
    };
    my @users = ((map { user_of($t, $readers) } 1 .. 4), (map { user_of($t, $writers) } 1 .. 2));
    sleep 0.5;
    my $content = sub {
        my ($last) = @_;
        my $db = NgxBackup::connect_db($t->{db});
        my $rows = $db->selectcol_arrayref('SELECT id || filler FROM t WHERE id <= ? ORDER BY id', undef, $last);
        $db->disconnect;
        return $rows;
    };
    my $before = $content->(1e9);
    cmp_ok(scalar @$before, '>', 50, 'they write');
    my $job = recover($t, transaction => 20);
    is($job->{status}, 'completed', 'recovered while they read and write') or diag(explain($job));
    # What they wrote in place of it meanwhile has the same numbers.
    isnt("@{ $content->(scalar @$before) }", "@$before", 'it is another content');
    my $undo = recover($t, backup_id => ($job->{result} // $job)->{safety_backup});
    is($undo->{status}, 'completed', 'undone with the safety backup') or diag(explain($undo));
    sleep 0.3;
    kill 'TERM', @users;
    is(join(' ', map { waitpid $_, 0; $? >> 8 } @users), '0 0 0 0 0 0', 'nobody was disturbed');
    $t->{app} = NgxBackup::connect_db($t->{db});
    ok("@{ $content->(scalar @$before) }" eq "@$before", 'every row that was there is back, and none of those written meanwhile is among them');
    is(($t->{app}->selectrow_array('PRAGMA integrity_check'))[0], 'ok', 'and sound');
    ok($t->wait_until(20, 'the last transaction', sub { rows_at($t, point_in_time => moment(time)) eq rows($t) }), 'and all of it captured');
    is($t->capture->{gaps}, 0, 'no gap');
    $t->{app}->disconnect;
    $t->stop('QUIT');
    $t->finish;
};

# Before all of it, behind it, and in a time that nobody saw.
subtest 'a refusal tells what can be had' => sub {
    my $t = new_app();
    is_captured($t, 0, 'it captures');
    is($t->backup({ backup_type => 'full' })->{status}, 'completed', 'a backup');
    add_row($t);
    is_captured($t, 1, 'a row');
    is($t->post('/databases/main/detach')->{status}, 200, 'detached');
    ok($t->wait_until(20, 'detached', sub { !$t->capture->{capturing} }), 'let go of');
    sleep 0.1;
    add_row($t);
    $t->{app}->do('PRAGMA wal_checkpoint(TRUNCATE)');
    add_row($t);
    is($t->post('/databases/main/attach')->{status}, 200, 'attached');
    is_captured($t, 2, 'and captured again');
    my $main = $t->get('/timeline?database=main&limit=1&since=' . moment(time + 60))->{json}{databases}[0];
    is(scalar @{ $main->{transactions} }, 0, 'no transactions are asked for');
    my $gap = $main->{gaps}[0] // {};
    is($gap->{reason}, 'unseen', 'and still it tells the gap') or diag(explain($main));
    my $inside = $gap->{to} =~ s/\.\d+Z$/Z/r;
    $inside = $gap->{from} =~ s/Z$/1Z/r if $inside le $gap->{from};
    my %times = (before => '2020-01-01T00:00:00Z', future => moment(time + 3600), inside => $inside);
    for my $which (sort keys %times) {
        for my $type ('database', $which eq 'inside' ? () : 'full') {
            my $r = $t->post('/recovery', { recovery_type => $type, point_in_time => $times{$which} });
            is($r->{status}, 422, "refused: $which, $type") or diag(explain($r->{json}));
            my $window = $r->{json}{recovery_window} // {};
            is($window->{database}, 'main', 'of this database');
            ok(defined $window->{earliest} && $window->{earliest} lt $window->{latest}, 'from when to when') or diag(explain($window));
            is(scalar @{ $window->{gaps} // [] }, $which eq 'inside' ? 1 : 0, 'and the gap');
        }
    }
    $t->{app}->disconnect;
    $t->stop('QUIT');
    $t->finish;
};

subtest 'any transaction comes back' => sub { any_transaction(0) };
subtest 'without a right to the database, too' => sub { any_transaction(12345) };

subtest 'reloads, kills and a lost base_dir' => sub {
    my $t = new_app();
    $t->allow_log(qr/exited on signal 9/, qr/privileged helper/);
    is_captured($t, 0, 'it captures');
    is($t->backup({ backup_type => 'full' })->{status}, 'completed', 'a backup');
    for my $round (1 .. 3) {
        my $before = $t->runner;
        add_row($t) for 1 .. 5;
        $t->hup;
        add_row($t) for 1 .. 5;
        ok($t->wait_until(20, 'the old runner leaves', sub { $t->gone($before) }), "reload $round");
        add_row($t);
    }
    is_captured($t, 33, 'nothing is missing');
    is($t->capture->{gaps}, 0, 'no gap');
    my $runner = $t->runner;
    kill 'KILL', $runner;
    add_row($t) for 1 .. 7;
    ok($t->wait_until(20, 'a new runner', sub { ($t->runner // $runner) != $runner }), 'the runner is killed');
    # Single transactions, or one for all of them when the log began anew meanwhile.
    ok($t->wait_until(20, 'captured', sub { my $c = $t->capture; $c->{capturing} && $c->{transaction} > 33 }), 'it goes on');
    add_row($t);
    is(rows_at($t, transaction => $_), $_, "transaction $_") for 5, 17, 33;
    ok($t->wait_until(20, 'the last transaction', sub { rows_at($t, point_in_time => moment(time)) eq '41' }), 'the last transaction');
    my $last = $reached;
    ok($t->wait_until(40, 'shipped', sub { ($t->capture->{shipped_transaction} // 0) >= $last }), 'all is on the storage');
    my $cleanup = sub { my $r = $t->post('/cleanup', {}); return $t->wait_job($r->{json}{id})->{cleanup_result}{segments_deleted} };
    is($cleanup->(), 0, 'nothing is old enough to be removed');
    $t->stop('QUIT');
    remove_tree("$t->{dir}/backups");
    $t->start;
    is_captured($t, 0, 'with a new base_dir');
    is(rows_at($t, transaction => $_), $_, "transaction $_, from the storage") for 5, 33;
    is($t->backup({ backup_type => 'full' })->{status}, 'completed', 'a later backup');
    $t->{set} =~ s/pitr_window 7d/pitr_window 1s/ or die;
    $t->stop('QUIT');
    $t->start;
    is_captured($t, 0, 'with a window of a second');
    sleep 1.1;
    my $r = $t->post('/cleanup', {});
    my $result = $t->wait_job($r->{json}{id})->{cleanup_result};
    ok($result->{segments_deleted} > 0, 'what is older than the window goes');
    my @begins = grep { grep { /moments of pitr_window/ } @{ $_->{reasons} } } @{ $result->{kept} };
    is(scalar @begins, 1, 'one backup stays for what is inside');
    like(rows_at($t, transaction => 5), qr/refused/, 'and cannot be had any more');
    $t->{app}->disconnect;
    $t->stop('QUIT');
    $t->finish;
};

done_testing;
