#!/usr/bin/perl
# The main road through REST: back up a live application, lose it, get it back; waiting, repeating, canceling, deleting.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use DBI;
use File::Path qw(remove_tree);
use JSON::PP ();
use NgxBackup;
use POSIX ();
use Test::More;

my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my $t = NgxBackup->new(user => 'www-data');
my $dir = $t->{dir};
$t->write('k1.key', join '', map { chr rand 256 } 1 .. 32);
chmod 0600, "$dir/k1.key";
$t->own('k1.key');
$t->{set_more} = "database main { path $dir/app/app.db; } files transcripts { path $dir/app/transcripts; }
        encryption { key k1 $dir/k1.key; }";

my $db = DBI->connect("dbi:SQLite:dbname=$dir/app/app.db", '', '', {RaiseError => 1, AutoCommit => 1});
$db->do('PRAGMA journal_mode=WAL');
$db->do('CREATE TABLE jobs(id INTEGER PRIMARY KEY, name TEXT)');
$db->do('INSERT INTO jobs(name) VALUES (?)', undef, "job $_") for 1 .. 500;
$t->own(map { "app/app.db$_" } '', '-wal', '-shm');
my %file = map { ("uploads/audio $_.wav" => "audio $_ " x 5000) } 1 .. 20;
$file{"transcripts/$_/deep/a.txt"} = "text $_\n" x 50 for 1 .. 30;
$file{'uploads/same.wav'} = $file{'uploads/audio 1.wav'};
$t->write("app/$_", $file{$_}) for keys %file;
system 'chown', '-R', 'www-data:www-data', "$dir/app" if $> == 0;
$t->start;

# Full
my $r = $t->post('/create', {backup_type => 'full', upload_to_storage => $true, description => 'the first', tags => ['a', 'b']});
is($r->{status}, 202, 'create is accepted') or diag($r->{content});
my $id = $r->{json}{id};
like($id, qr/^full_\d{8}_\d{6}$/, 'its id says type and time');
is($r->{headers}{location}, "/admin/backup/jobs/$id", 'Location');
ok($r->{headers}{'retry-after'}, 'Retry-After');
is($r->{json}{links}{self}, "/admin/backup/jobs/$id", 'link to itself');
is($r->{json}{requested_by}, 'admin', 'who asked');
is($r->{json}{request_id}, $r->{headers}{'x-request-id'}, 'the request it came from');
my $job = $t->wait_job($id);
is($job->{status}, 'completed', 'the backup is completed') or diag(explain($job));
is($job->{success}, $true, 'with success');
is($job->{links}{result}, "/admin/backup/backups/$id", 'link to the backup');
$r = $t->get("/backups/$id");
is($r->{status}, 200, 'the backup') or diag($r->{content});
is($r->{json}{backup_id}, $id, 'by its id');
is($r->{json}{description}, 'the first', 'with its description');
is_deeply($r->{json}{tags}, ['a', 'b'], 'and tags');
$r = $t->get('/list?tag=a');
is_deeply([map { $_->{backup_id} } @{ $r->{json}{backups} }], [$id], 'it is in the list');
is_deeply($t->get('/list?tag=none')->{json}{backups}, [], 'and not under another tag');

# Requests go first: threads that worked for a job are nicer than the worker itself.
my $runner = $t->runner;
my $nice = sub { my ($tid) = @_; my @stat = split ' ', ($t->read("/proc/$runner/task/$tid/stat") // '') =~ s/^.*\) //sr; return $stat[16] };
my @threads = map { m{(\d+)$} } glob "/proc/$runner/task/*";
ok((grep { $nice->($_) == $nice->($runner) + 10 } @threads), 'the threads of jobs have a lower priority');
cmp_ok((grep { $nice->($_) == $nice->($runner) } @threads), '>', 4, 'all others the usual one');

# Prefer: wait, and the second of the same second
$r = $t->post('/create', {backup_type => 'incremental'}, headers => {Prefer => 'respond-async, wait=20'});
is($r->{status}, 200, 'Prefer: wait gives the finished job') or diag($r->{content});
is($r->{json}{status}, 'completed', 'completed');
ok($r->{headers}{'preference-applied'}, 'Preference-Applied');
my @two = map { $t->post('/create', {backup_type => 'full'}) } 1 .. 2;
is($_->{status}, 202, 'two backups in one second are both accepted') for @two;
isnt($two[0]{json}{id}, $two[1]{json}{id}, 'under two ids');
is($t->wait_job($_->{json}{id})->{status}, 'completed', 'and completed') for @two;

# Idempotency
my %key = (headers => {'Idempotency-Key' => '"2f1c"'});
my $first = $t->post('/create', {backup_type => 'full', description => 'once'}, %key);
my $second = $t->post('/create', {backup_type => 'full', description => 'once'}, %key);
is($second->{json}{id}, $first->{json}{id}, 'the same key gives the same job');
is($second->{headers}{'idempotency-replayed'}, 'true', 'and says so');
is($t->post('/create', {backup_type => 'incremental'}, %key)->{status}, 422, 'with another body it is refused');
%key = (headers => {'Idempotency-Key' => '"for a test"', Prefer => 'wait=25'});
is($t->post('/test', {}, %key)->{status}, 200, 'a key on one operation');
$r = $t->post('/cleanup', {}, %key);
is($r->{status}, 422, 'is refused on another');
like($r->{json}{detail}, qr/another operation/, 'and the problem says so');
is($t->post('/test', {}, %key, token => 'operator')->{status}, 422, 'and for another user');
$t->wait_job($first->{json}{id});

# Everything is lost
sub content_of {
    my ($root) = @_;
    my %got;
    my @todo = ('');
    while (defined(my $at = shift @todo)) {
        for my $path (glob(($root . ($at eq '' ? '' : "/$at")) =~ s/([ \\])/\\$1/gr . '/*')) {
            my $rel = substr $path, 1 + length $root;
            if (-d $path) { push @todo, $rel } else { $got{$rel} = $t->read($path) }
        }
    }
    return \%got;
}
my $rows = $db->selectall_arrayref('SELECT * FROM jobs ORDER BY id');
$db->do('DELETE FROM jobs WHERE id % 2 = 0');
unlink "$dir/app/uploads/same.wav";
remove_tree("$dir/app/transcripts/3");
$t->write('app/uploads/audio 2.wav', 'overwritten');

$r = $t->post('/recovery', {recovery_type => 'full', backup_id => $id, dry_run => $true});
is($r->{status}, 200, 'a dry run answers at once') or diag($r->{content});
is($db->selectrow_array('SELECT count(*) FROM jobs'), 250, 'and changes nothing');
ok(!-e "$dir/app/uploads/same.wav", 'nothing at all');

# The application writes just then: the recovery waits for it, so that it has not ended when it is asked for again.
$db->do('BEGIN IMMEDIATE');
$r = $t->post('/recovery', {recovery_type => 'full', backup_id => $id});
is($r->{status}, 202, 'recovery in place') or diag($r->{content});
my $again = $t->post('/recovery', {recovery_type => 'full', backup_id => $id});
$db->do('ROLLBACK');
is($again->{status}, 409, 'the same again is a conflict') or diag($again->{content});
is($again->{headers}{location}, "/admin/backup/jobs/$r->{json}{id}", 'and names the first');
is($again->{headers}{'content-type'}, 'application/problem+json', 'in a problem document');
is_deeply([@{ $again->{json} }{qw(status code type title instance request_id)}],
    [409, 'Conflict', 'urn:ngx-backup:problem:Conflict', 'Another operation is in the way', '/admin/backup/recovery',
        $again->{headers}{'x-request-id'}], 'that says what it is');
like($again->{json}{detail}, qr/queued or running already: \Q$r->{json}{id}\E/, 'and which job');
$job = $t->wait_job($r->{json}{id});
is($job->{status}, 'completed', 'recovery is completed') or diag(explain($job));
is_deeply($db->selectall_arrayref('SELECT * FROM jobs ORDER BY id'), $rows, 'every row is back, seen through the open connection');
is($db->selectrow_array('PRAGMA integrity_check'), 'ok', 'the database is sound');
my $got = content_of("$dir/app");
delete @{$got}{grep { /^app\.db/ } keys %$got};
is_deeply($got, \%file, 'every file is back');

# To a directory
$r = $t->post('/recovery', {recovery_type => 'files', file_patterns => ['*.wav'], restore_to_original => $false,
        target_directory => "$dir/restored/audio"}, headers => {Prefer => 'wait=25'});
is($r->{status}, 200, 'recovery by pattern to a directory') or diag($r->{content});
is($r->{json}{status}, 'completed', 'completed') or diag($r->{content});
my %wav = map { $_ => $file{$_} } grep { /\.wav$/ } keys %file;
is_deeply(content_of("$dir/restored/audio"), \%wav, 'exactly those files');

for my $kind (['validate-recovery', {backup_id => $id, deep => $true}], ['verify', {level => 3}], ['test', undef]) {
    my ($name, $body) = @$kind;
    $r = $t->request('POST', "/$name", headers => {Prefer => 'wait=25'}, $body ? (body => $body) : ());
    is($r->{status}, 200, $name) or diag($r->{content});
    is($r->{json}{status}, 'completed', "$name is completed") or diag($r->{content});
}

# Delete and clean up
$r = $t->request('DELETE', "/backups/$two[0]{json}{id}", headers => {Prefer => 'wait=25'});
is($r->{status}, 200, 'delete') or diag($r->{content});
is($t->get("/backups/$two[0]{json}{id}")->{status}, 404, 'it is gone');
is($t->request('DELETE', '/backups/full_20000101_000000')->{status}, 404, 'there is no job for deleting what is not there');
$r = $t->post('/cleanup', {dry_run => $true});
is($r->{status}, 200, 'cleanup, dry run') or diag($r->{content});
$r = $t->post('/cleanup', {}, headers => {Prefer => 'wait=25'});
is($r->{json}{status}, 'completed', 'cleanup') or diag($r->{content});

# Jobs, in pages
my (@ids, $cursor);
for (1 .. 50) {
    $r = $t->get('/jobs?limit=3' . ($cursor ? "&cursor=$cursor" : ''));
    push @ids, map { $_->{id} } @{ $r->{json}{jobs} };
    $cursor = $r->{json}{next_cursor} or last;
}
my %seen;
$seen{$_}++ for @ids;
is(scalar(keys %seen), scalar(@ids), 'pages do not repeat jobs');
is(scalar(@ids), $r->{json}{total}, 'and leave out none');

my $health = $t->wait_until(15, 'health', sub { my $h = $t->get('//health', token => ''); $h->{status} == 200 && $h });
is($health->{json}{status}, 'pass', 'healthy after a backup') or diag($t->get('/health')->{content});
my $status = $t->get('/status')->{json};
cmp_ok($status->{backup_system}{orchestrator}{statistics}{total_backups}, '>=', 3, 'status counts backups');

$db->disconnect;
$t->finish;
done_testing;
