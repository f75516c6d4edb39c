#!/usr/bin/perl
# Single tables of the past come back into the live database, by REST and by the command line: from a backup and from a moment
# between backups, with a plan that counts, a safety backup that undoes it, and refusals that change nothing.
use strict;
use warnings;
use DBI;
use FindBin;
use lib "$FindBin::Bin/lib";
use NgxBackup qw(cli);
use Test::More;

plan skip_all => 'only root may start the helper' if $> != 0;

my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, daemon => 1);
my $path = "$t->{dir}/app/app.db";
$t->{set} = $t->set_conf =~ s/(files uploads)/database main { path $path; pitr_window 7d;
    check "SELECT count(*) = 0 FROM notes WHERE body = 'never'"; } $1/r;

my $app = NgxBackup::connect_db($path);
$app->do($_) for split /;\s*/, <<'SQL';
PRAGMA journal_mode=WAL;
CREATE TABLE users(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE);
CREATE TABLE notes(id INTEGER PRIMARY KEY, user INTEGER REFERENCES users, body TEXT);
CREATE VIRTUAL TABLE words USING fts5(body);
INSERT INTO users(name) VALUES('ann'), ('bob'), ('eve');
INSERT INTO notes(user, body) SELECT id, 'note of ' || name FROM users;
INSERT INTO words SELECT body FROM notes
SQL

# Only its owner may read it: everything goes through the helper.
my $owner = getpwnam 'games';
chown $owner, $owner, map { "$path$_" } '', '-wal', '-shm';
chmod 0640, map { "$path$_" } '', '-wal', '-shm';
chown $owner, $owner, "$t->{dir}/app";
chmod 0750, "$t->{dir}/app";
$t->start;
$t->operator;

sub one { my ($sql) = @_; return ($app->selectrow_array($sql))[0] }

sub recover {
    my (%body) = @_;
    my $r = $t->post('/recovery', { recovery_type => 'database', %body });
    is($r->{status}, 202, 'a recovery is taken') or diag(explain($r->{json}));
    my $job = $t->wait_job($r->{json}{id});
    is($job->{status}, 'completed', 'and completed') or diag(explain($job));
    return $job->{result} // $job;
}

sub transaction { return $t->capture->{transaction} // 0 }

ok($t->wait_until(30, 'capture', sub { $t->capture->{capturing} }), 'it is captured');
my $backup = $t->wait_job($t->post('/create', { backup_type => 'full' })->{json}{id});
is($backup->{status}, 'completed', 'a backup');
my $before = transaction();

# A moment between backups, and then the mistake.
$app->do("INSERT INTO notes(user, body) VALUES(1, 'after the backup')");
ok($t->wait_until(20, 'captured', sub { transaction() > $before }), 'a commit is captured');
my $moment = transaction();
$app->begin_work;
$app->do('DELETE FROM words');
$app->do('DELETE FROM notes WHERE user < 3');
$app->do("UPDATE notes SET body = 'spoilt'");
$app->do("INSERT INTO users(name) VALUES('dan')");
$app->commit;

subtest 'a plan counts, and changes nothing' => sub {
    my $r = $t->post('/recovery', { recovery_type => 'database', tables => ['notes', 'words'], transaction => $moment, dry_run => \1 });
    is($r->{status}, 200, 'answered at once') or diag(explain($r->{json}));
    my $plan = $r->{json}{plan}[0];
    is($plan->{action}, 'tables, live', 'what it would do');
    is_deeply($plan->{tables}[0],
        { name => 'notes', action => 'replace', rows_now => 1, rows_then => 4, only_now => 1, only_then => 4 }, 'counts of rows');
    is($plan->{tables}[1]{only_then}, 3, 'of a virtual table as well');
    is(one('SELECT count(*) FROM notes'), 1, 'nothing has changed');
};

my $safety;
subtest 'tables as of a transaction, under a reader' => sub {
    my $reader = NgxBackup::connect_db($path);
    $reader->do('BEGIN');
    my ($seen) = $reader->selectrow_array('SELECT count(*) FROM notes');
    my $result = recover(tables => ['notes', 'WORDS'], transaction => $moment);
    is($result->{databases}[0]{method}, 'tables', 'it says how');
    is_deeply($result->{databases}[0]{tables},
        [{ name => 'notes', action => 'replaced', rows => 4 }, { name => 'words', action => 'replaced', rows => 3 }], 'and what');
    is($result->{transaction}, $moment, 'as of when');
    $safety = $result->{safety_backup};
    ok($safety, 'a safety backup was taken');
    is(($reader->selectrow_array('SELECT count(*) FROM notes'))[0], $seen, 'a reader keeps what it saw');
    $reader->do('COMMIT');
    is(one("SELECT count(*) FROM notes WHERE body LIKE '%note of%'"), 3, 'rows are back');
    is(one("SELECT count(*) FROM notes WHERE body = 'after the backup'"), 1, 'also the one that no backup had');
    is(one("SELECT count(*) FROM words WHERE words MATCH 'bob'"), 1, 'they can be searched for');
    is(one("SELECT count(*) FROM users WHERE name = 'dan'"), 1, 'other tables are as they are today');
    is(one('PRAGMA integrity_check'), 'ok', 'the database is sound');
    $reader->disconnect;
};

subtest 'by the command line, from a backup, and undone' => sub {
    my ($code, $out) = cli(qw(recover --table notes --backup-id), $safety, '--dry-run');
    is($code, 0, 'a plan') or diag($out);
    like($out, qr/only_now: 4/, 'printed');
    ($code, $out) = cli(qw(recover --table notes --backup-id), $safety);
    is($code, 0, 'undone with the safety backup') or diag($out);
    is(one('SELECT group_concat(body) FROM notes'), 'spoilt', 'rows as before the recovery');
    ($code, $out) = cli(qw(recover --table users --table absent));
    isnt($code, 0, 'a table that was not there');
    like($out, qr/there was no table absent; there were notes, users, words/, 'is refused with a list');
    ($code, $out) = cli('recover', '--storage', "file://$t->{dir}/repo", '--target', "$t->{dir}/x", qw(--table notes));
    isnt($code, 0, 'without nginx it is no live database');
    like($out, qr/through nginx/, 'and it says so');
};

subtest 'the check of the configuration is asked before anybody sees the rows' => sub {
    my $last = transaction();
    $app->do("INSERT INTO notes(user, body) VALUES(3, 'never')");
    ok($t->wait_until(20, 'captured', sub { transaction() > $last }), 'a moment of which it is not true');
    my $never = transaction();
    $app->do("UPDATE notes SET body = 'today'");
    my $r = $t->post('/recovery', { recovery_type => 'database', tables => ['notes'], transaction => $never });
    my $job = $t->wait_job($r->{json}{id});
    is($job->{status}, 'failed', 'a recovery to it fails') or diag(explain($job));
    like($job->{error}, qr/nothing is changed: database main: check "SELECT count.*" is not true of it/, 'and says what is not true');
    is(one("SELECT group_concat(DISTINCT body) FROM notes"), 'today', 'nothing has changed');
    recover(tables => ['notes'], transaction => $never, verify => \0);
    is(one("SELECT count(*) FROM notes WHERE body = 'never'"), 1, 'unless it is left out');
};

subtest 'what cannot be is refused before a job' => sub {
    for my $wrong (
        [{ tables => ['nope'] }, 422, qr/there was no table nope/],
        [{ tables => ['words_data'] }, 422, qr/part of a virtual table/],
        [{ tables => ['notes'], transaction => 99_999 }, 422, qr/no transaction 99999/],
        [{ tables => ['notes'], recovery_type => 'full' }, 422, qr/recovery_type/],
        [{ tables => [] }, 422, qr/1 to 1000/],
        [{ tables => ['notes'], target_directory => "$t->{dir}/restored/x", restore_to_original => \0 }, 422, qr/database itself/],
    ) {
        my $r = $t->post('/recovery', { recovery_type => 'database', %{ $wrong->[0] } });
        is($r->{status}, $wrong->[1], "refused: $wrong->[2]") or diag(explain($r->{json}));
        like(($r->{json}{detail} // '') . ' ' . explain($r->{json}{errors} // ''), $wrong->[2], 'and why');
    }
    $app->do('ALTER TABLE notes ADD COLUMN mood TEXT');
    my $r = $t->post('/recovery', { recovery_type => 'database', tables => ['notes'], transaction => $moment });
    is($r->{status}, 409, 'another table today');
    like($r->{json}{detail}, qr/is another one today .*mood TEXT/, 'says what differs');
    $app->do('DELETE FROM users WHERE name = ?', undef, 'eve');
    $app->do('DELETE FROM notes');
};

subtest 'a dropped table comes back' => sub {
    $app->do('DROP TABLE notes');
    $app->do("INSERT INTO users(id, name) VALUES(3, 'eve')");
    my $result = recover(tables => ['notes'], transaction => $moment);
    is($result->{databases}[0]{tables}[0]{action}, 'created', 'made again');
    is(one('SELECT count(*) FROM notes'), 4, 'with its rows');
    ok($t->wait_until(20, 'captured', sub { transaction() > $moment + 5 }), 'the recovery is captured, too');
};

$app->disconnect;
$t->finish;
done_testing();
