#!/usr/bin/perl
# Really full file systems below a storage, base_dir, a target directory and the application itself: the error says what to do, nothing
# is lost, and as soon as there is room the next run succeeds.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../lib";
use File::Path qw(make_path);
use JSON::PP ();
use NgxBackup;
use Test::More;

plan skip_all => 'only root may mount' unless $> == 0;

# In a mount namespace of its own: whatever happens to this test, its mounts are gone with it.
if (!$ENV{NGX_BACKUP_MOUNTS}) {
    plan skip_all => 'mounting is not permitted here' if system('unshare -m true 2>/dev/null') != 0;
    exec {'unshare'} 'env', '-m', 'env', 'NGX_BACKUP_MOUNTS=1', $^X, '-It/lib', $0 or die "unshare: $!";
}

my $t = NgxBackup->new(user => 'www-data');
my $dir = $t->{dir};
my $disk = "$dir/disk";
my $false = JSON::PP::false;
my $data = '';    # 8 MiB that do not compress
{
    open my $in, '<:raw', '/dev/urandom' or die "/dev/urandom: $!";
    read $in, $data, 8 << 20;
}
$t->allow_log(qr/No space left|disk is full|MiB free/);

# An ext4 of 24 MiB, or where there are no loop devices a tmpfs.
make_path($disk);
system(qq{truncate -s 24M $dir/image && mkfs.ext4 -q -m 0 $dir/image && mount -o loop $dir/image $disk 2>/dev/null}) == 0
    or system("mount -t tmpfs -o size=24m none $disk 2>/dev/null") == 0
    or do { $t->finish; plan skip_all => 'mounting is not permitted here' };
chmod 0755, $disk;
make_path(map { "$disk/$_" } qw(storage base out app));
$t->own(map { "$disk/$_" } qw(storage base out app));

sub free_kib { my ($kib) = `df -k --output=avail $disk` =~ /(\d+)\s*$/; return $kib }

# Leave so many KiB.
sub fill {
    my ($leave) = @_;
    unlink "$disk/ballast";
    my $kib = free_kib() - $leave;
    open my $out, '>:raw', "$disk/ballast" or die "$disk/ballast: $!";
    my $block = "\1" x 1024;
    for (1 .. $kib) { syswrite $out, $block or last }
    close $out;
    cmp_ok(free_kib(), '<=', $leave + 64, "$leave KiB are left");
    return;
}
sub empty { unlink "$disk/ballast" or die "$disk/ballast: $!"; return }

sub sql { my ($file, $sql) = @_; my $answer = `sqlite3 $file "$sql"`; $t->own(glob "$file*"); chomp $answer; return $answer }

# nginx with parts of a set on the disk that fills up.
sub run_with {
    my (%at) = @_;
    my %path = (base => "$dir/backups", storage => "$dir/storage", out => "$dir/restored", app => "$dir/app", %at);
    $t->stop;
    system("rm -rf $dir/app $dir/backups $dir/storage $dir/restored $disk/*/*");
    make_path("$path{app}/uploads", @path{qw(base storage out)});
    $t->own(values %path, "$path{app}/uploads");
    $t->{set} = <<CONF;
    backup app {
        base_dir $path{base};
        database main { path $path{app}/app.db; pitr_window off; }
        files uploads { path $path{app}/uploads; }
        storage local disk { path $path{storage}; }
        restore_root $path{out};
        restore_in_place on;
        min_free 0;
        thread_pool backup;
    }
CONF
    $t->write("$path{app}/uploads/small", 'the first file');
    sql("$path{app}/app.db", 'PRAGMA journal_mode=WAL; CREATE TABLE t(v); INSERT INTO t VALUES(1)');
    $t->own("$path{app}/uploads/small");
    $t->start;
    my $job = $t->backup;
    is($job->{status}, 'completed', 'a backup while there is room') or diag(explain $job);
    return ($job->{backup_id}, \%path);
}

sub add_data {
    my ($path) = @_;
    $t->write("$path->{app}/uploads/big", $data);
    $t->own("$path->{app}/uploads/big");
    return;
}

sub fails_for_space {
    my ($name, $job) = @_;
    is($job->{status}, 'failed', "$name fails") or diag(explain $job);
    like($job->{error}, qr/No space left|disk is full|MiB free|no room|free space|make room|free some space/, 'for want of space');
    is($job->{problem}{code}, 'NoSpace', 'as its code says');
    return;
}

sub sound {
    my ($count) = @_;
    my $list = $t->get('/list')->{json};
    is($list->{total}, $count, "$count backups are listed");
    my $job = $t->wait_job($t->post('/verify', {level => 2})->{json}{id});
    is($job->{status}, 'completed', 'and sound') or diag(explain $job);
    my @open = grep { !$_->{done} } @{ $t->get('/jobs')->{json}{jobs} };
    is(scalar @open, 0, 'no job is left open');
    return;
}

# --- the storage ---
{
    my ($first, $path) = run_with(storage => "$disk/storage");
    fill(1024);
    add_data($path);
    fails_for_space('a backup to a full storage', $t->backup);
    fails_for_space('and once more', $t->backup({backup_type => 'incremental'}));
    sound(1);
    empty();
    is($t->backup({backup_type => 'incremental'})->{status}, 'completed', 'with room it completes');
    sound(2);
    is(`find $path->{base}/spool -type f ! -name '.*' | wc -l`, "0\n", 'nothing is left in the spool');
}

# --- base_dir ---
{
    my ($first, $path) = run_with(base => "$disk/base");
    fill(1024);
    add_data($path);
    fails_for_space('a backup through a full spool', $t->backup);
    sound(1);
    fill(0);
    my $r = $t->post('/create', {});
    if ($r->{status} == 202) {    # there was a page left in the log of the catalog
        is($t->wait_job($r->{json}{id})->{status}, 'failed', 'a job that was taken in fails');
    } else {
        is($r->{status}, 507, 'no job is taken in when the catalog has no room');
        is($r->{json}{code}, 'NoSpace', 'with the reason');
    }
    is($t->get('/status')->{status}, 200, 'status answers');
    empty();
    is($t->backup->{status}, 'completed', 'with room it completes');
    sound(2);
}

# --- a directory to recover into ---
{
    my ($first, $path) = run_with(out => "$disk/out");
    add_data($path);
    my $id = $t->backup->{backup_id};
    fill(1024);
    my %request = (recovery_type => 'full', backup_id => $id, restore_to_original => $false, target_directory => "$disk/out/x");
    fails_for_space('a recovery', $t->wait_job($t->post('/recovery', \%request)->{json}{id}));
    is(`find $disk/out -size +1M`, '', 'half a file is not there');
    empty();
    my $job = $t->wait_job($t->post('/recovery', \%request)->{json}{id});
    is($job->{status}, 'completed', 'with room it completes') or diag(explain $job);
    is(`diff -r $disk/out/x/uploads $path->{app}/uploads 2>&1`, '', 'and is equal');
}

# --- the application's own disk ---
{
    my ($first, $path) = run_with(app => "$disk/app");
    my $db = "$path->{app}/app.db";
    sql($db, 'INSERT INTO t SELECT randomblob(4000000)');
    add_data($path);
    my $id = $t->backup->{backup_id};
    sql($db, 'DELETE FROM t WHERE length(v) > 1; INSERT INTO t VALUES(2); VACUUM; PRAGMA wal_checkpoint(TRUNCATE)');
    unlink "$path->{app}/uploads/big";
    fill(1024);
    my %request = (backup_id => $id);
    fails_for_space('a recovery of the database', $t->wait_job($t->post('/recovery', {%request, recovery_type => 'database'})->{json}{id}));
    is(sql($db, 'PRAGMA integrity_check; SELECT group_concat(v) FROM t'), "ok\n1,2", 'the database is as it was');
    fails_for_space('a recovery of the files', $t->wait_job($t->post('/recovery', {%request, recovery_type => 'files'})->{json}{id}));
    is($t->read("$path->{app}/uploads/small"), 'the first file', 'what was there is as it was');
    empty();
    my $job = $t->wait_job($t->post('/recovery', {%request, recovery_type => 'full'})->{json}{id});
    is($job->{status}, 'completed', 'with room both come back') or diag(explain $job);
    is(sql($db, 'SELECT count(*), max(length(v)) FROM t'), '2|4000000', 'the database');
    ok($t->read("$path->{app}/uploads/big") eq $data, 'and the files');
    is(`find $disk/app -name '.*' -type f`, '', 'nothing is left beside them');
}

$t->stop;
system("umount $disk") == 0 or diag("umount $disk: $?");
$t->finish;
done_testing();
