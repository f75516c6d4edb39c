#!/usr/bin/perl
# What the system refuses: a file system that is read-only below base_dir, the storage or the application, and databases that the
# application keeps to itself.  The error says what is in the way, nothing is lost, and as soon as it is out of the way the next run
# succeeds.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../lib";
use DBI;
use NgxBackup;
use Test::More;

plan skip_all => 'only root may mount' unless $> == 0;

# In a mount namespace of its own: whatever happens to this test, its mounts are gone with it.
if (!$ENV{NGX_BACKUP_MOUNTS}) {
    plan skip_all => 'mounting is not permitted here' if system(qw(unshare -m true)) != 0;
    exec {'unshare'} 'env', '-m', 'env', 'NGX_BACKUP_MOUNTS=1', $^X, '-It/lib', $0 or die "unshare: $!";
}

my $t = NgxBackup->new(user => 'www-data');
my $dir = $t->{dir};
my $path = "$dir/app/app.db";
$t->{set} = <<CONF;
    backup app {
        base_dir $dir/backups;
        database main { path $path; busy_timeout 1s; }
        files uploads { path $dir/app/uploads; }
        storage local disk { path $dir/storage; }
        restore_root $dir/restored;
        restore_in_place on;
        min_free 0;
        thread_pool backup;
    }
CONF
$t->write('app/uploads/one', 'the first file');
my $app = NgxBackup::connect_db($path);
$app->do($_) for 'PRAGMA journal_mode=WAL', 'CREATE TABLE t(v)', 'INSERT INTO t VALUES(1)';
$t->own(glob "$path*");

sub read_only {
    my ($what) = @_;
    system('mount', '--bind', "$dir/$what", "$dir/$what") == 0 && system('mount', '-o', 'remount,bind,ro', "$dir/$what") == 0
        or BAIL_OUT("mount $dir/$what: $?");
    return;
}

# Whoever looks there at this moment holds it no longer than that; what stays open or mapped is of no harm.
sub writable {
    my ($what) = @_;
    $t->wait_until(5, "umount $what", sub { system("umount $dir/$what 2>/dev/null") == 0 })
        or system('umount', '-l', "$dir/$what") == 0
        or BAIL_OUT("umount $dir/$what: $?");
    return;
}

sub recover { return $t->wait_job($t->post('/recovery', {recovery_type => 'database', @_})->{json}{id}) }

sub fails {
    my ($name, $job, $code, $says) = @_;
    is($job->{status}, 'failed', "$name fails") or diag(explain $job);
    is($job->{problem}{code}, $code, "as $code");
    like($job->{error}, $says, 'and says what to do');
    return;
}

my $count = 0;

sub completes {
    my ($when) = @_;
    my $job = $t->backup;
    is($job->{status}, 'completed', "a backup $when completes") or diag(explain $job);
    is($t->get('/list')->{json}{total}, ++$count, 'and is listed beside those before');
    is(scalar(grep { !$_->{done} } @{ $t->get('/jobs')->{json}{jobs} }), 0, 'no job is left open');
    is(`find $dir/backups/spool -type f ! -name '.*' | wc -l`, "0\n", 'nothing is left in the spool');
    return $job->{backup_id};
}

sub values_now { return join ',', @{ $app->selectcol_arrayref('SELECT v FROM t ORDER BY v') } }

# --- from the start ---
read_only('backups');
$t->start;
ok($t->logs(qr/\[warn\].*$dir\/backups" cannot be written: mount it writable/), 'nginx starts, and warns of a read-only base_dir');
for my $path ('/status', '/health') {
    my $r;
    my $says = qr{base_dir $dir/backups: .*: Read-only file system; mount it writable};
    ok($t->wait_until(10, $path, sub { $r = $t->get($path); $r->{content} =~ $says }), "$path says why") or diag($r->{content});
    is($r->{status}, 503, "$path is not there");
}
my $r = $t->post('/create', {});
is($r->{json}{code}, 'PermissionDenied', 'no job is taken in');
like($r->{json}{detail}, qr{base_dir $dir/backups: .*: Read-only file system; mount it writable}, 'for the same reason');
writable('backups');
my $first = completes('as soon as it is writable');

# --- while it runs ---
read_only('backups');
fails('a backup through a read-only base_dir', $t->backup, 'PermissionDenied', qr{$dir/backups/\S+: Read-only file system; mount it writable});
is($t->get('/status')->{status}, 200, 'status answers');
ok($t->wait_until(10, 'health', sub { $t->get('/health')->{json}{status} eq 'fail' }), 'health says that it failed');
writable('backups');
completes('after that');

read_only('storage');
fails('a backup to a read-only storage', $t->backup, 'PermissionDenied', qr{local disk: .*: Read-only file system; mount it writable});
ok($t->wait_until(10, 'health', sub { $t->get('/health')->{json}{checks}{'storage_disk:accessible'}[0]{status} eq 'fail' }),
    'health tells that the storage cannot be written');
fails('a test of it', $t->wait_job($t->post('/test', {})->{json}{id}), 'PermissionDenied', qr/Read-only file system; mount it writable/);
my $job = recover(restore_to_original => JSON::PP::false, target_directory => "$dir/restored/x");
is($job->{status}, 'completed', 'it still gives back what it holds') or diag(explain $job);
writable('storage');
completes('after that');

$app->do('INSERT INTO t VALUES(2)');
$app->disconnect;    # its last connection closes with a checkpoint, so that nothing holds the file system
read_only('app');
fails('a backup of a read-only database', $t->backup, 'PermissionDenied', qr{database $path: .*: Read-only file system; mount it writable});
fails('a recovery of it', recover(), 'PermissionDenied', qr{database $path: .*: Read-only file system; mount it writable});
writable('app');
$app = NgxBackup::connect_db($path);
is(values_now(), '1,2', 'the database is as it was');
completes('after that');

# --- a database that the application keeps to itself, and that is not captured for that reason ---
sub configured {
    my ($conf) = @_;
    $t->write('nginx.conf', $conf);
    my @old = $t->workers;
    $t->hup;
    ok($t->wait_until(20, 'old workers leave', sub { !grep { !$t->gone($_) } @old }), 'nginx is configured anew');
    return;
}

{
    my $captured = $t->conf;
    configured($captured =~ s/(busy_timeout 1s;)/$1 pitr_window off;/r);
    my $owner = NgxBackup::connect_db($path);
    $app->disconnect;
    $owner->do($_) for 'PRAGMA locking_mode=EXCLUSIVE', 'INSERT INTO t VALUES(3)';
    fails('a backup of a database in locking_mode=EXCLUSIVE', $t->backup, 'Busy', qr{database $path: .*locking_mode=EXCLUSIVE});
    fails('a recovery of it', recover(), 'Busy', qr{database $path: .*locking_mode=EXCLUSIVE});
    $owner->disconnect;
    $app = NgxBackup::connect_db($path);
    is(values_now(), '1,2,3', 'nothing of it changed');
    $first = completes('when it has let go');
    configured($captured);
}

# --- a transaction that does not end ---
$app->do('BEGIN IMMEDIATE');
$app->do('INSERT INTO t VALUES(4)');
is($t->backup->{status}, 'completed', 'a backup waits for no writer');
$count++;
fails('a recovery', recover(backup_id => $first), 'Busy', qr{database $path: .*: another connection holds a lock; end long transactions});
$app->do('COMMIT');
is(values_now(), '1,2,3,4', 'the transaction was not disturbed');
is(recover(backup_id => $first)->{status}, 'completed', 'after it the recovery completes');
is(values_now(), '1,2,3', 'and the database is as it was backed up');

$app->disconnect;
$t->stop;
$t->finish;
done_testing();
