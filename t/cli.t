#!/usr/bin/perl
# The command line against a real nginx, and on a storage alone with nginx stopped: what an operator types, its answers and exit codes.
use strict;
use warnings;

use File::Path qw(make_path remove_tree);
use JSON::PP;
use Test::More;
use lib 't/lib';
use NgxBackup qw(cli cli_is);

my $t = NgxBackup->new(user => 'www-data');
my $dir = $t->{dir};
$ENV{TMPDIR} = "$dir/tmp";

sub sql { my ($sql) = @_; my $answer = `sqlite3 $dir/app/app.db "$sql"`; chomp $answer; $t->own('app/app.db', map { "app/app.db-$_" } qw(wal shm)); return $answer }

# --- without anything ---
cli_is('help', 0, qr/backup .*make a backup now/, '--help');
cli_is('no command', 2, qr/which command/);
cli_is('an unknown command', 2, qr/no command 'frobnicate'/, 'frobnicate');
cli_is('an unknown option', 2, qr/no option --frobnicate/, 'list', '--frobnicate');
cli_is('an option of another command', 2, qr/'list' does not take --target/, 'list', '--target', '/x');
cli_is('an option without value', 2, qr/--type needs a value/, 'backup', '--type');
cli_is('a missing argument', 2, qr/usage: ngx-backup show/, 'show');
cli_is('nginx is not there', 1, qr/cannot connect: is nginx running/, 'status', '--url', 'http://127.0.0.1:1/admin/backup');

# --- keys and tokens ---
cli_is('a new key', 0, qr/([A-Z2-7]{4}-){13}[A-Z2-7]{4}/, 'key', 'new', "$dir/k1.key");
cli_is('a key is never overwritten', 2, qr/exists/, 'key', 'new', "$dir/k1.key");
is((stat "$dir/k1.key")[2] & 0777, 0600, 'a key file is private');
my $token = decode_json((cli('token', 'new', '--role', 'admin', '--name', 'op', '--json'))[1]);
cli_is('a token needs a known role', 2, qr/no role/, 'token', 'new', '--role', 'god', '--name', 'op');
$t->write('tokens', "$token->{line}\n");
$t->write('token', "$token->{token}\n");
$t->write('k2.key', "not a key\n");
chmod 0600, "$dir/tokens", "$dir/token", "$dir/k2.key";
$t->own('k1.key', 'tokens');

# --- an application ---
sql('PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); '
        . 'INSERT INTO t(v) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 5000) SELECT hex(randomblob(20)) FROM n;');
$t->write("app/uploads/2025/$_.wav", "audio $_ " x 1000) for 1 .. 20;
$t->write("app/transcripts/$_.txt", "text $_") for 1 .. 20;
$t->own('app/uploads/2025');
$t->{set} = <<"CONF";
backup app {
    base_dir $dir/backups;
    database main { path $dir/app/app.db; wal on; }
    files uploads { path $dir/app/uploads; exclude *.tmp; }
    files transcripts { path $dir/app/transcripts; }
    encryption { key k1 $dir/k1.key; }
    storage local disk { path $dir/storage; }
    restore_root $dir/restored;
    restore_in_place on;
    min_free 0;
    thread_pool backup;
}
CONF
$t->{server} = 'location /guarded { backup_api app; backup_auth external role=operator; }';
$t->start;
$ENV{NGX_BACKUP_URL} = "http://127.0.0.1:$t->{port}/admin/backup";
cli_is('without a token', 1, qr/asks for a token/, 'list');
$ENV{NGX_BACKUP_TOKEN_FILE} = "$dir/token";

cli_is('no backup yet', 0, qr/No backup yet/, 'list');
my ($code, $output) = cli('backup', '--type', 'full', '--description', 'first', '--tag', 'one', '--tag', 'two', '--json');
my $job = eval { decode_json($output) } // {};
is($code, 0, 'a full backup') or diag($output);
like($job->{id}, qr/^full_\d{8}_\d{6}/, 'its job says its id');
is($job->{stats}{files}, 40, 'all files are in it');
cmp_ok($job->{stats}{bytes_stored}, '>', 1000, 'and something was stored');
my $full = $job->{id};
cli_is('list', 0, qr/^\Q$full\E +completed/m, 'list');
cli_is('list by tag', 0, qr/No backup yet/, 'list', '--tag', 'three');
cli_is('show', 0, qr/description: first/, 'show', $full);
cli_is('show what is not there', 1, qr/there is no backup/, 'show', 'full_19990101_000000');
my $before = sql('SELECT count(*), sum(length(v)) FROM t');
$t->write('app/uploads/new.wav', 'new');
cli_is('an incremental backup', 0, qr/files_new: 1$/m, 'backup');
cli_is('status', 0, qr/service_running: yes/, 'status');
cli_is('validate', 0, qr/valid: yes/, 'validate', '--deep');
cli_is('verify', 0, qr/findings_total: 0/, 'verify', '--level', '2');
cli_is('verify by restoring', 0, qr/findings_total: 0/, 'verify', '--level', '3');
cli_is('test', 0, qr/overall_success: yes/, 'test');
cli_is('cleanup plan', 0, qr/younger than retention/, 'cleanup', '--dry-run');
cli_is('cleanup', 0, qr/completed/, 'cleanup');
cli_is('jobs', 0, qr/\Q$full\E +completed/, 'jobs');
cli_is('cancel what has ended', 1, qr/is completed/, 'cancel', $full);
{
    local $ENV{NGX_BACKUP_URL} = "http://127.0.0.1:$t->{port}/guarded";
    delete local $ENV{NGX_BACKUP_TOKEN_FILE};
    cli_is('where something else guards the location', 1, qr/is completed/, 'cancel', $full);
}

# --- recovery through nginx ---
sql('DELETE FROM t WHERE id % 2');
unlink "$dir/app/uploads/2025/3.wav";
$t->write('app/uploads/2025/4.wav', 'damaged');
cli_is('the plan of a recovery', 0, qr/action: create/, 'recover', '--dry-run', '--backup-id', $full);
ok(!-e "$dir/app/uploads/2025/3.wav", 'a plan changes nothing');
cli_is('recovery of the database in place', 0, qr/safety_backup: safety_/, 'recover', '--type', 'database', '--backup-id', $full);
is(sql('SELECT count(*), sum(length(v)) FROM t'), $before, 'the rows are back');
cli_is('recovery of files in place', 0, qr/completed/, 'recover', '--type', 'files', '--backup-id', $full);
ok($t->read('app/uploads/2025/4.wav') eq 'audio 4 ' x 1000, 'the damaged file is as it was');
ok(-e "$dir/app/uploads/2025/3.wav", 'the deleted file is back');
is($t->read('app/uploads/new.wav'), 'new', 'what the backup has not stays');
cli_is('recovery by pattern into a directory', 0, qr/files_restored|completed/, 'recover', '--type', 'files', '--pattern', '1?.wav',
    '--target', "$dir/restored/some");
unlink "$dir/app/uploads/2025/5.wav", "$dir/app/transcripts/5.txt";
sql("UPDATE t SET v = 'today' WHERE id = 1");
cli_is('some files by pattern, without a type', 0, qr/files_restored: 1$/m, 'recover', '--pattern', '5.wav', '--backup-id', $full);
is(sql('SELECT v FROM t WHERE id = 1'), 'today', 'leave the database as it is');
cli_is('some files by path, without a type', 0, qr/files_restored: 1$/m, 'recover', '--path', 'transcripts/5.txt', '--backup-id', $full);
is(sql('SELECT v FROM t WHERE id = 1'), 'today', 'leave it, too');
cli_is('files and database at once are not narrowed', 2, qr{#/file_patterns needs "recovery_type": "files"}, 'recover', '--type', 'full', '--pattern', '*.wav');
unlink "$dir/app/uploads/2025/5.wav";
cli_is('one database, without a type', 0, qr/safety_backup: safety_/, 'recover', '--database', 'main', '--backup-id', $full);
is(sql('SELECT count(*), sum(length(v)) FROM t'), $before, 'brings the database back');
ok(!-e "$dir/app/uploads/2025/5.wav", 'and no file');
cli_is('and all of it without any option', 0, qr/files_restored: 1$/m, 'recover', '--backup-id', $full);
my @found = map { s{.*/}{}r } glob "$dir/restored/some/uploads/2025/*";
is_deeply([sort @found], [map {"1$_.wav"} 0 .. 9], 'exactly the files that match');
cli_is('outside of every restore_root', 1, qr/outside every restore_root/, 'recover', '--target', '/var/tmp/elsewhere');
cli_is('an unknown backup', 1, qr/there is no backup/, 'recover', '--backup-id', 'full_19990101_000000', '--target', "$dir/restored/x");

# --- without nginx ---
$t->stop;
my @offline = ('--storage', "file://$dir/storage", '--key-file', "$dir/k1.key");
cli_is('list offline', 0, qr/^\Q$full\E /m, 'list', @offline);
my $listed = cli_is('the list says what a backup took', 0, qr/^\Q$full\E .* \d\S* \S*B$/m, 'list', @offline);
unlike($listed, qr/^\Q$full\E .* 0 B$/m, 'and that was not nothing');
cli_is('show offline', 0, qr/page_count/, 'show', $full, @offline);
cli_is('verify offline', 0, qr/ 0 findings/, 'verify', '--level', '2', @offline);
cli_is('recover needs a target offline', 2, qr/needs --target/, 'recover', @offline);
my $plan = cli_is('a dry run offline into what is not there', 0, qr/action: create/, 'recover', @offline, '--backup-id', $full, '--target', "$dir/bare/deep", '--dry-run');
like($plan, qr{path: \Q$dir\E/bare/deep/app\.db}, 'names where things would go');
ok(!-e "$dir/bare", 'and makes nothing');
cli_is('recover offline', 0, qr/source_backup: \Q$full\E/, 'recover', @offline, '--backup-id', $full, '--target', "$dir/bare");
is(`diff -r $dir/bare/transcripts $dir/app/transcripts`, '', 'the files are equal');
is(`sqlite3 $dir/bare/app.db 'SELECT count(*), sum(length(v)) FROM t'`, "$before\n", 'and so is the database');
cli_is('one path offline', 0, qr/files_restored: 1$/m, 'recover', @offline, '--path', 'uploads/2025/7.wav', '--target', "$dir/one");
is(join(' ', `cd $dir/one && find . -type f`), "./uploads/2025/7.wav\n", 'nothing but that file');
cli_is('a path in no tree', 2, qr/begins with the name of a files block/, 'recover', @offline, '--path', 'nowhere/x', '--target', "$dir/two");
ok(!-e "$dir/one/app.db", 'and no database');
cli_is('files and database at once offline', 2, qr/choose files: leave out --type full/, 'recover', @offline, '--type', 'full', '--pattern', '*.wav', '--target', "$dir/two");
cli('key', 'new', "$dir/k3.key");
cli_is('a second key is added', 0, qr/added, and proved/, 'key', 'add', @offline, '--new-key-file', "$dir/k3.key", '--label', 'spare');
cli_is('and opens', 0, qr/spare/, 'key', 'list', '--storage', "file://$dir/storage", '--key-file', "$dir/k3.key");
cli('key', 'new', "$dir/k4.key");
cli_is('a wrong key', 12, qr/opens none of the 2 key slots/, 'list', '--storage', "file://$dir/storage", '--key-file', "$dir/k4.key");
cli_is('no key', 2, qr/encrypted: give its key/, 'list', '--storage', "file://$dir/storage");
cli_is('not a key', 2, qr/not a key/, 'list', '--storage', "file://$dir/storage", '--key-file', "$dir/k2.key");

# --- a passphrase, and slots that go ---
$t->write('pass', "correct horse battery\n");
$t->write('pass2', "incorrect horse\n");
chmod 0600, "$dir/pass", "$dir/pass2";
my @pass = ('--storage', "file://$dir/storage", '--passphrase-file', "$dir/pass");
cli_is('a passphrase is added', 0, qr/added, and proved/, 'key', 'add', @offline, '--new-passphrase-file', "$dir/pass", '--label', 'people');
my $slots = cli_is('key list shows it', 0, qr/ passphrase .* people$/m, 'key', 'list', @pass);
cli_is('verify by passphrase', 0, qr/ 0 findings/, 'verify', '--level', '2', @pass);
cli_is('recover by passphrase', 0, qr/source_backup: \Q$full\E/, 'recover', @pass, '--backup-id', $full, '--target', "$dir/by-pass");
is(`diff -r $dir/by-pass/transcripts $dir/app/transcripts`, '', 'the files are equal');
cli_is('another passphrase', 12, qr/opens none of the 3 key slots/, 'list', '--storage', "file://$dir/storage", '--passphrase-file', "$dir/pass2");
cli_is('both', 2, qr/not both/, 'list', @pass, '--key-file', "$dir/k1.key");
my %slot = map { /^(\S+) +(\S+) +\S+ *(.*?)$/ ? ($3 || $2, $1) : () } split /\n/, $slots;
my ($first) = grep { $_ ne 'people' && $_ ne 'spare' && $_ ne 'LABEL' } keys %slot;
cli_is('the first key goes', 0, qr/removed/, 'key', 'remove', $slot{$first}, @pass);
cli_is('and opens no more', 12, qr/opens none of the 2/, 'list', @offline);
cli_is('a slot that is not there', 1, qr/./, 'key', 'remove', '01ARZ3NDEKTSV4RRFFQ69G5FAV', @pass);
cli_is('the spare goes', 0, qr/removed/, 'key', 'remove', $slot{spare}, @pass);
cli_is('the last one stays', 1, qr/last/, 'key', 'remove', $slot{people}, @pass);
cli_is('the key comes back', 0, qr/added, and proved/, 'key', 'add', @pass, '--new-key-file', "$dir/k1.key");
cli_is('so does the spare', 0, qr/added, and proved/, 'key', 'add', @offline, '--new-key-file', "$dir/k3.key");
cli_is('and the passphrase goes', 0, qr/removed/, 'key', 'remove', $slot{people}, @offline);
cli_is('list by the key again', 0, qr/^\Q$full\E /m, 'list', @offline);

chmod 0644, "$dir/k3.key";
cli_is('a key that everybody can read', 2, qr/chmod o=/, 'list', '--storage', "file://$dir/storage", '--key-file', "$dir/k3.key");
make_path("$dir/empty");
cli_is('no repository', 10, qr/holds no repository/, 'list', '--storage', "file://$dir/empty", '--key-file', "$dir/k1.key");
cli_is('not a storage', 2, qr/not a storage URL/, 'list', '--storage', 'ftp://x/y');

$t->finish;
done_testing();
