#!/usr/bin/perl
# What the past holds, by the command line: which moments there are, that they can be had, and their rows; through nginx, and the same on the storage
# alone when nginx is gone.
use strict;
use warnings;
use DBI;
use FindBin;
use lib "$FindBin::Bin/lib";
use File::Find;
use JSON::PP;
use NgxBackup qw(cli cli_is);
use Test::More;

plan skip_all => 'only root may start the helper' if $> != 0;

my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, daemon => 1);
my $dir = $t->{dir};
my $path = "$dir/app/app.db";
mkdir "$dir/tmp";
$ENV{TMPDIR} = "$dir/tmp";
$t->{set} = $t->set_conf =~ s/(files uploads)/database main { path $path; pitr_window 7d; } database other { path $dir\/app\/other.db; pitr_window off; } $1/r;
my $app = NgxBackup::connect_db($path);
$app->do('PRAGMA journal_mode=WAL');
$app->do('CREATE TABLE t(id INTEGER PRIMARY KEY, v)');
my $other = NgxBackup::connect_db("$dir/app/other.db");
$other->do('CREATE TABLE o(x)');
$other->disconnect;
$t->write('app/uploads/one.txt', 'one');
$t->own('app/uploads/one.txt', 'app/other.db', map { "app/app.db$_" } '', '-wal', '-shm');
$t->start;
$t->operator;
ok($t->wait_until(20, 'captured', sub { $t->capture->{capturing} }), 'it is captured');
is($t->backup({ backup_type => 'full' })->{status}, 'completed', 'a backup to begin from');
for my $n (1 .. 12) {
    my $before = $t->capture->{transaction} // 0;
    $app->do('INSERT INTO t(v) VALUES(?)', undef, "row $n");
    $t->wait_until(20, 'captured', sub { ($t->capture->{transaction} // 0) > $before });
}
my $last = $t->capture->{transaction};
ok($t->wait_until(40, 'shipped', sub { ($t->capture->{shipped_transaction} // 0) >= $last }), 'all is on the storage');
$app->disconnect;

my $five = $last - 7;    # transaction with the fifth row
my $count = 'SELECT count(*) FROM t';
my $endless = 'WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n';

# What is told of a database, but for the last look at it, which only the machine knows.
sub told {
    my ($output) = @_;
    my $answer = decode_json($output);
    for my $database (@{ $answer->{databases} }) {
        delete $_->{to} for @{ $database->{windows} };
    }
    return $answer->{databases};
}

# All questions, asked with these options.
sub questions {
    my ($how, @by) = @_;
    my %told;
    $told{timeline} = told(cli_is("timeline $how", 0, qr/"databases"/, 'timeline', @by, '--json', '--database', 'main'));
    $told{captured} = [map { $_->{database} } @{ told(cli_is("timeline of all $how", 0, qr/"databases"/, 'timeline', @by, '--json')) }];
    my $limited = told(cli_is("timeline, some $how", 0, qr/"next_cursor"/, 'timeline', @by, '--json', '--limit', 2));
    $told{limited} = [map { $_->{transaction} } @{ $limited->[0]{transactions} }];
    cli_is("timeline for people $how", 0, qr/^database main\n  any moment from \S+ to \S+, transactions \d+ to $last\n/, 'timeline', @by);
    my ($moment) = map { $_->{until} } grep { $_->{transaction} == $five } @{ $told{timeline}[0]{transactions} };
    for my $point (['--at', $moment], ['--transaction', $five]) {
        my $output = cli_is("validate @$point $how", 0, qr/"valid":true/, 'validate', @by, '--json', '--database', 'main', @$point);
        my ($result) = decode_json($output)->{validation_result};
        is($result->{transaction}, $five, 'it is that one');
        is($result->{recovery_point}, $moment, 'as of then');
        $told{"validate $point->[0]"} = [map { "$_->{name} $_->{status}" } grep { $_->{name} !~ /application/ } @{ $result->{checks} }];
        like(cli_is("query @$point $how", 0, qr/transaction $five$/, 'query', @by, '--database', 'main', @$point, $count), qr/^5$/m, 'its rows');
    }
    cli_is("validate for people $how", 0, qr/valid: yes/, 'validate', @by, '--transaction', $five, '--database', 'main');
    cli_is("validate a backup, files and all $how", 0, qr/"checksum_verified":true/, 'validate', @by, '--deep', '--json');
    cli_is("validate what is not there $how", 2, qr/no transaction 4000: the last one is $last$/m, 'validate', @by, '--transaction', 4000, '--database', 'main');
    cli_is("no such backup $how", 1, qr/there is no backup "full_19990101_000000"/, 'validate', @by, '--backup-id', 'full_19990101_000000');
    cli_is("timeline of no database $how", 1, qr/there is no database block nope/, 'timeline', @by, '--database', 'nope');
    cli_is("a query that is stopped $how", 1, qr/was stopped after 1000 ms/, 'query', @by, '--database', 'main', '--timeout', 1, $endless);
    cli_is("a timeout that is none $how", 2, qr/timeout/, 'query', @by, '--timeout', 'soon', $count);
    cli_is("a time that is none $how", 2, qr/since/, 'timeline', @by, '--since', 'yesterday');
    cli_is("a limit that is none $how", 2, qr/limit/, 'timeline', @by, '--limit', 0);
    return \%told;
}

my $online = questions('through nginx');
cli_is("a number that is none, told once", 2, qr/^ngx-backup: the request is not valid: \S+ must be a whole number from 1 to \d+\n\z/, qw(query --database main --transaction), $_, $count)
    for 0, 'five', '99999999999999999999';
is_deeply([map { $_->{transaction} } @{ $online->{timeline}[0]{transactions} }], [reverse 1 .. $last], 'every transaction');
is_deeply($online->{captured}, ['main'], 'of the captured database only');
$t->stop;
my @storage = ('--storage', "file://$dir/storage");
is_deeply(questions('from the storage alone', @storage), $online, 'and tell the same');

# One that was damaged is no recovery, and what was found out is told with the failure.
find(sub { if (-f && $File::Find::dir =~ m{/packs?\b}) { truncate $_, (-s $_) / 2 } }, "$dir/storage");
my $output = cli_is('what is damaged is not valid', 1, qr/"valid":false/, 'validate', @storage, '--json');
like($output, qr/"status":"fail"/, 'it says which check');
like($output, qr/^ngx-backup: /m, 'and why');
is_deeply([glob "$dir/tmp/ngx-backup-*"], [], 'no command left anything');
$t->finish;
done_testing;
