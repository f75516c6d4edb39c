#!/usr/bin/perl
# The requests that every application of this kind begins with, as their operators have always typed them: each curl line is run as it stands, but for
# host and port, a token, and the id of the backup.  Then: names that are no text, an empty directory and a sparse file lost and back, and backup after
# backup under a writer, each of which is a commit that the writer made.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use Digest::SHA;
use File::Find;
use JSON::PP;
use NgxBackup;
use POSIX qw(WNOHANG);
use Test::More;
use Time::HiRes qw(time sleep);

plan skip_all => 'only root may mount' if $> != 0;

# One of the lines names /tmp/recovered_audio: in a mount namespace of its own that is nobody else's.
my $audio = '/tmp/recovered_audio';
my $owner = $$;
if (!$ENV{NGX_BACKUP_MOUNTS}) {
    plan skip_all => 'mounting is not permitted here' if system('unshare -m mount -t tmpfs none /mnt 2>/dev/null') != 0;
    exec {'unshare'} 'env', '-m', 'env', 'NGX_BACKUP_MOUNTS=1', 'sh', '-c', "mkdir -p $audio && mount -t tmpfs none $audio && exec \"\$@\"", 'sh', $^X,
        '-It/lib', $0
        or die "unshare: $!";
}
END { local $?; system "umount -l $audio; rmdir $audio 2>/dev/null" if $ENV{NGX_BACKUP_MOUNTS} && $$ == $owner }

my $tools = ($ENV{NGX_BACKUP_BUILD} // "$FindBin::Bin/../build") . '/tools';
my $t = NgxBackup->new(user => 'www-data');
my $dir = $t->{dir};
my $uploads = "$dir/app/uploads";
$t->{set_more} = "database main { path $dir/app/app.db; wal on; } files transcripts { path $dir/app/transcripts; } restore_root /tmp/recovered_audio;";
$t->{location} = <<CONF;
    location /admin/backup { backup_api app; backup_auth bearer; backup_token_file $dir/tokens; }
    location = /admin/backup/health { backup_health app; }
CONF

my (undef, %line) = split /^## (\w+)\n/m, <<'LINES';
## full
curl -X POST http://localhost:8000/admin/backup/create \
  -H "Content-Type: application/json" \
  -d '{"backup_type": "full", "upload_to_storage": true}'
## incremental
curl -X POST http://localhost:8000/admin/backup/create \
  -H "Content-Type: application/json" \
  -d '{"backup_type": "incremental", "upload_to_storage": true}'
## database
curl -X POST http://localhost:8000/admin/backup/recovery \
  -H "Content-Type: application/json" \
  -d '{
    "recovery_type": "database",
    "backup_id": "full_20251015_143000",
    "restore_to_original": true
  }'
## files
curl -X POST http://localhost:8000/admin/backup/recovery \
  -H "Content-Type: application/json" \
  -d '{
    "recovery_type": "files",
    "file_patterns": ["*.wav", "*.mp3"],
    "restore_to_original": false,
    "target_directory": "/tmp/recovered_audio"
  }'
## status
curl http://localhost:8000/admin/backup/status
## health
curl http://localhost:8000/admin/backup/health
LINES

# What curl prints, as JSON; id: of the backup, token: '' for none.
sub curl {
    my ($name, %arg) = @_;
    chomp(my $command = $line{$name} // die "no line $name");
    $command =~ s/localhost:8000/127.0.0.1:$t->{port}/ or die;
    $command =~ s/full_20251015_143000/$arg{id}/ if $arg{id};
    $command =~ s/^curl/curl -H "Authorization: Bearer \$TOKEN"/ unless ($arg{token} // 'x') eq '';
    local $ENV{TOKEN} = $NgxBackup::token{admin};
    my $said = `$command 2>/dev/null`;
    my $answer = eval { decode_json($said) };
    ok($? == 0 && $answer, "curl: $name") or diag("$command: $said");
    return $answer // {};
}

sub job_of {
    my ($name, %arg) = @_;
    my $id = curl($name, %arg)->{id};
    my $job = $t->wait_job($id // 'none') // {};
    is($job->{status}, 'completed', "$name is completed") or diag(explain($job));
    return $job;
}

# --- the application ---

my $odd = "no text \xff\xfe\n.wav";
my %content = (
    'one.wav' => 'sound' x 4000,
    "two\nlines.wav" => 'sound of two lines',
    $odd => 'sound of no text',
    'music.mp3' => "music \0" x 9000,
    "deep/er/\xe4.mp3" => 'music of no text',
    'notes.txt' => 'neither',
);
$t->write("app/uploads/$_", $content{$_}) for keys %content;
mkdir "$uploads/empty" or die;
{
    # 5 GiB, of which 12 bytes are written.
    open my $sparse, '>:raw', "$uploads/sparse.bin" or die;
    truncate $sparse, 5 << 30 or die;
    sysseek $sparse, (4 << 30) + 5, 0;
    syswrite $sparse, 'in the middle';
}
$t->write('app/transcripts/one.txt', 'text');
sub sql { my ($sql) = @_; my $said = `sqlite3 $dir/app/app.db "$sql" 2>&1`; system 'chown', '-R', 'www-data:www-data', "$dir/app"; return $said }
sql("CREATE TABLE jobs(id INTEGER PRIMARY KEY, name TEXT); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 1000) "
        . "INSERT INTO jobs SELECT i, 'job ' || i FROM n");

# Everything of each name; of the sparse file what it takes on the disk, and its bytes that are not zeros.
sub picture {
    my ($root, $wanted) = @_;
    my %picture;
    find({no_chdir => 1, wanted => sub {
        my $name = substr $_, length $root;
        my @st = lstat $_;
        return if $name eq '' || ($wanted && !(-f _ && $name =~ $wanted));
        my $what = sprintf '%o %d:%d %d', @st[2, 4, 5, 9];
        if (-f _ && $st[7] > 1 << 30) {
            open my $in, '<:raw', $_ or die;
            sysseek $in, (4 << 30) + 5, 0;
            sysread $in, my $bytes, 100;
            $what .= " $st[7] bytes, " . ($st[12] < 1000 ? 'sparse' : "$st[12] blocks") . ' ' . $bytes =~ s/\0+$//r;
        } elsif (-f _) {
            $what .= ' ' . Digest::SHA->new(256)->addfile($_)->hexdigest;
        }
        $picture{$name} = $what;
    }}, $root);
    return \%picture;
}

$t->start;
my $before = picture($uploads);
is(scalar(grep { /sparse in the middle$/ } values %$before), 1, 'the sparse file is one');
my $full = job_of('full');
like($full->{id}, qr/^full_\d{8}_\d{6}$/, 'its id says type and time');
is(job_of('incremental')->{stats}{files_new}, 0, 'an incremental one after it has nothing new');
my $status = curl('status');
is($status->{backup_system}{orchestrator}{statistics}{total_backups} // 0, 2, 'status counts both') or diag(explain($status));
is(curl('health', token => $_)->{status}, 'pass', 'healthy, ' . ($_ eq '' ? 'without a token' : 'with one')) for '', 'admin';

# --- the database ---
my $rows = sql('SELECT count(*), sum(id), max(name) FROM jobs');
sql('DELETE FROM jobs WHERE id % 3');
my $job = job_of('database', id => $full->{id});
is($job->{source_backup}, $full->{id}, 'of that very backup');
is(sql('SELECT count(*), sum(id), max(name) FROM jobs'), $rows, 'every row is back');
is(sql('PRAGMA integrity_check'), "ok\n", 'and sound');

# --- all files ---
system('find', $uploads, '-mindepth', '1', '-delete') == 0 or die;
my $r = $t->post('/recovery', {recovery_type => 'files', backup_id => $full->{id}});
$job = $t->wait_job($r->{json}{id});
is($job->{status}, 'completed', 'recovery of all files in place') or diag(explain($job));
my $after = picture($uploads);
is_deeply($after, $before, 'names, contents, owners, modes and times') or diag(explain([$before, $after]));

# --- some files ---
job_of('files');
my $found = picture('/tmp/recovered_audio/uploads', qr/./);
is_deeply([sort keys %$found], [sort map { "/$_" } grep { /\.(wav|mp3)$/ } keys %content], 'exactly those that match');
is($t->read("/tmp/recovered_audio/uploads/$_"), $content{$_}, 'content of ' . s/[^ -~]/?/gr) for grep { /\.(wav|mp3)$/ } sort keys %content;

# --- one writer, many backups ---
my $db = "$dir/app/app.db";
unlink "$uploads/sparse.bin"; # a full backup reads the zeros, too
unlink glob "$db*";
system("$tools/chaos", 'make', $db, 'wal', 4096, 'none') == 0 or die;
system 'chown', '-R', 'www-data:www-data', "$dir/app";
my ($user, $group) = (getpwnam 'www-data')[2, 3];
my $chaos = $t->lend("$tools/chaos");
my $writer = fork // die;
if (!$writer) {
    ($), $>) = ("$group $group", $user);
    POSIX::setgid($group);
    POSIX::setuid($user);
    $ENV{CHAOS_PAUSE} = 4000;
    exec $chaos, 'write', $db, "$dir/app/log", 7, 100 or POSIX::_exit(127);
}
$t->wait_until(20, 'the first commits', sub { -s "$dir/app/log" });
my (@made, %commits);
for (1 .. 20) {
    my $from = time;
    $r = $t->post('/create', {backup_type => 'full'}, headers => {Prefer => 'wait=30'});
    $job = $t->wait_job($r->{json}{id});
    push @made, [$job->{id}, join(' ', $job->{status}, @{ $job->{warnings} }), int($from * 1e9), int(time * 1e9)];
}
is(waitpid($writer, WNOHANG), 0, 'the writer has written all the time');
kill 'TERM', $writer;
waitpid $writer, 0;
is($?, 0, 'and met no error');
for my $one (@made) {
    my ($id, $state, $from, $to) = @$one;
    my $target = "$dir/restored/$id";
    $r = $t->post('/recovery', {recovery_type => 'database', backup_id => $id, target_directory => $target}, headers => {Prefer => 'wait=30'});
    $job = $t->wait_job($r->{json}{id});
    my $sound = `sqlite3 $target/app.db 'PRAGMA integrity_check'`;
    my $said = `$tools/chaos judge $target/app.db $from $to $dir/app/log 2>&1`;
    ok($state eq 'completed' && $job->{status} eq 'completed' && $sound eq "ok\n" && $said =~ /commit (\d+): ok/, "$id is a commit of the writer")
        or diag("backup $state, recovery $job->{status}, check $sound, $said");
    $commits{$1}++ if $said =~ /commit (\d+)/;
}
cmp_ok(scalar(keys %commits), '>', 1, 'not always the same one');
$t->finish;
done_testing;
