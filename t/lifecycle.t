#!/usr/bin/perl
# Reload, quit, stop and kill -9 while a job runs: it ends cleanly or comes back, no worker spins, no lock stays.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use DBI;
use Fcntl qw(O_RDWR F_SETFD FD_CLOEXEC);
use IO::Socket::INET;
use NgxBackup;
use Test::More;
use Time::HiRes qw(sleep time);

# Text that compresses slowly: at level 16 this is some seconds of work, in steps short enough to be stopped between.
my @words = map { join '', map { chr(97 + rand 26) } 1 .. 3 + rand 8 } 1 .. 3000;
my $megabytes = 16;

sub new_app {
    my (%arg) = @_;
    my $t = NgxBackup->new(user => 'www-data', %arg);
    $t->{set_more} = 'compression zstd level=16; ' . ($arg{grace} // 'shutdown_grace 0s;');
    for my $n (1 .. $megabytes) {
        my $text = '';
        $text .= $words[rand @words] . ' ' while length $text < 1 << 20;
        $t->write("app/uploads/$n.txt", $text);
    }
    return $t->start;
}

# A full backup that has begun and is not about to end.
sub begin {
    my ($t) = @_;
    my $id = $t->post('/create', {backup_type => 'full'})->{json}{id};
    $t->wait_until(20, 'the job stores something', sub {
        my $job = $t->get("/jobs/$id")->{json};
        return $job->{done} || ($job->{status} eq 'running' && ($job->{progress_detail}{bytes_done} // 0) > 1 << 20);
    });
    return $id;
}

sub is_running {
    my ($t, $id, $name) = @_;
    my $job = $t->get("/jobs/$id")->{json};
    ok(!$job->{done}, "$name: the job was still running") or diag(explain($job));
    return;
}

# Every file of the backup, read back.
sub recovers {
    my ($t, $id, $name) = @_;
    my $r = $t->post('/recovery', {recovery_type => 'files', backup_id => $id, restore_to_original => JSON::PP::false,
            target_directory => "$t->{dir}/restored/$id"});
    my $job = $t->wait_job($r->{json}{id});
    is($job->{status}, 'completed', "$name: recovered") or diag(explain($job // $r));
    is(system('diff', '-rq', "$t->{dir}/app/uploads", "$t->{dir}/restored/$id/uploads"), 0, "$name: nothing differs");
    return;
}

subtest 'a job outlives reloads' => sub {
    my $t = new_app();
    my $id = begin($t);
    is_running($t, $id, 'before');
    my $failed = 0;
    for (1 .. 5) {
        $t->hup;
        $failed++ if $t->get('')->{status} != 200;
        $failed++ if $t->get('/status')->{status} != 200;
    }
    is($failed, 0, 'requests are answered all the time');
    my $job = $t->wait_job($id, 120);
    is($job->{status}, 'completed', 'the backup is completed') or diag(explain($job));
    recovers($t, $id, 'reloaded');
    ok($t->wait_until(20, 'old workers leave', sub { $t->workers == $t->{workers} }), 'old workers left');
    $t->finish;
};

subtest 'a reload waits for the job within its grace, asleep' => sub {
    my $t = new_app(grace => 'shutdown_grace 2m;');
    my $id = begin($t);
    my $old = $t->runner;
    my ($idle) = grep { $_ != $old } $t->workers;
    $t->hup;
    ok($t->wait_until(10, 'the idle worker leaves', sub { $t->gone($idle) }), 'a worker without a job leaves at once');
    # The event loop's own thread, not those that work.
    my $loop = sub {
        my $stat = $t->read("/proc/$old/task/$old/stat") or return;
        my @field = split ' ', $stat =~ s/^.*\) //sr;
        return ($field[11] + $field[12]) / POSIX::sysconf(POSIX::_SC_CLK_TCK());
    };
    my ($from, $at) = ($loop->(), time);
    sleep 1;
    my $to = $loop->();
    SKIP: {
        skip 'the job ended too early', 1 unless defined $from && defined $to;
        cmp_ok(($to - $from) / (time - $at), '<', 0.3, 'the event loop of the old runner sleeps');
    }
    is($t->wait_job($id, 120)->{status}, 'completed', 'the job is completed');
    ok(!(grep { /$id.*(?:was interrupted|interrupted after)/ } $t->log_lines), 'by the old worker, without an interruption');
    ok($t->wait_until(10, 'the old runner leaves', sub { $t->gone($old) }), 'the old runner left');
    ok($t->wait_until(10, 'a new runner', sub { $t->runner != $old }), 'a new one runs the jobs');
    is($t->backup({backup_type => 'incremental'})->{status}, 'completed', 'and does');
    $t->finish;
};

for my $signal ('QUIT', 'TERM') {
    subtest "$signal during a job" => sub {
        my $t = new_app();
        my $id = begin($t);
        is_running($t, $id, $signal);
        my $began = time;
        $t->stop($signal);
        ok(!(grep { /exited on signal/ } $t->log_lines), 'no worker had to be killed');
        ok($t->logs(qr/$id interrupted after/), 'the job was interrupted, not waited for');
        note(sprintf '%s took %.2f s', $signal, time - $began);
        $t->start;
        is($t->get("/jobs/$id")->{status}, 200, 'the job is known after the start');
        my $job = $t->wait_job($id, 120);
        is($job->{status}, 'completed', 'it is resumed and completed') or diag(explain($job));
        recovers($t, $id, $signal);
        $t->finish;
    };
}

subtest 'kill -9 of the runner during a job' => sub {
    my $t = new_app();
    $t->allow_log(qr/exited on signal 9/);
    my $id = begin($t);
    for (1 .. 3) {
        my $runner = $t->runner;
        kill 'KILL', $runner;
        ok($t->wait_until(20, 'another runner', sub { $t->runner != $runner }), "kill $_: another worker runs the jobs");
        is($t->get('')->{status}, 200, "kill $_: requests are answered");
    }
    my $job = $t->wait_job($id, 120);
    is($job->{status}, 'completed', 'the backup is completed') or diag(explain($job));
    recovers($t, $id, 'killed');
    my $verify = $t->post('/verify', {level => 2})->{json};
    is($t->wait_job($verify->{id})->{status}, 'completed', 'nothing on the storage is damaged');
    $t->finish;
};

subtest 'cancel a running and a queued job' => sub {
    my $t = new_app();
    my $id = begin($t);
    my $queued = $t->post('/create', {backup_type => 'full'})->{json}{id};
    my $r = $t->request('POST', "/jobs/$queued/cancel", token => 'operator');
    is($r->{status}, 200, 'a queued job is canceled at once') or diag($r->{content});
    is($r->{json}{status}, 'canceled', 'and says so');
    # Asked of any worker, so through several connections.
    $r = $t->request('POST', "/jobs/$id/cancel", token => 'operator');
    is($r->{status}, 202, 'a running one is asked to stop') or diag($r->{content});
    is($r->{json}{status}, 'canceling', 'and is canceling');
    is($t->wait_job($id, 30)->{status}, 'canceled', 'and then canceled');
    is($t->request('POST', "/jobs/$id/cancel", token => 'operator')->{status}, 409, 'once more is a conflict');
    $t->finish;
};

subtest 'a wish to cancel outlives the runner' => sub {
    my $t = new_app(grace => 'shutdown_grace 2m;');
    $t->allow_log(qr/exited on signal 9/);
    my $id = begin($t);
    my $runner = $t->runner;
    # It does not see the wish, and dies: so whoever comes next has to know.  A worker that is only about to stop
    # can still be the one that the kernel wakes for the next connection, and no other would take it.
    kill 'STOP', $runner;
    ok($t->wait_until(20, 'the stop', sub { $t->read("/proc/$runner/stat") =~ /\) T / }), 'the runner stopped');
    is($t->request('POST', "/jobs/$id/cancel", token => 'operator')->{status}, 202, 'asked to stop');
    is($t->get("/jobs/$id")->{json}{status}, 'canceling', 'it is canceling');
    kill 'KILL', $runner;
    ok($t->wait_until(20, 'another runner', sub { $t->runner != $runner }), 'another worker runs the jobs');
    is($t->wait_job($id, 120)->{status}, 'canceled', 'the job is canceled, not run again');
    ok(!(grep { /$id was cut off and is queued again/ } $t->log_lines), 'nor queued');
    $t->finish;
};

subtest 'a started server in the background' => sub {
    my $t = NgxBackup->new(user => 'www-data', daemon => 1);
    $t->start;
    is($t->backup->{status}, 'completed', 'a backup under daemon on');
    $t->hup;
    is($t->backup({backup_type => 'incremental'})->{status}, 'completed', 'and after a reload');
    $t->finish;
};

subtest 'a binary upgrade during a job' => sub {
    my $t = new_app(daemon => 1);
    my $id = begin($t);
    my $old = $t->{pid};
    kill 'USR2', $old;
    ok($t->wait_until(20, 'the new master', sub { -e "$t->{dir}/nginx.pid.oldbin" && -s "$t->{dir}/nginx.pid" }), 'a new master');
    chomp($t->{pid} = $t->read('nginx.pid'));
    is($t->get('')->{status}, 200, 'requests are answered by both');
    kill 'QUIT', $old;
    ok($t->wait_until(30, 'the old master leaves', sub { $t->gone($old) }), 'the old master left');
    is($t->wait_job($id, 120)->{status}, 'completed', 'the backup is completed by the new one');
    recovers($t, $id, 'upgraded');
    $t->finish;
};

subtest 'a set that cannot run says why, and runs when it can' => sub {
    my $t = NgxBackup->new(user => 'www-data');
    mkdir "$t->{dir}/backups/catalog.db";
    $t->own('backups/catalog.db');
    $t->start;
    my $r = $t->wait_until(20, 'the reason', sub {
        my $r = $t->get('/status');
        return $r->{status} == 503 && $r->{json}{detail} =~ /catalog/ && $r;
    });
    ok($r, 'status is 503 with the reason') or diag(explain($t->get('/status')));
    is($t->get('//health', token => '')->{status}, 503, 'health fails');
    like($t->get('/health')->{json}{output}, qr/catalog/, 'and says why to whom it may');
    cmp_ok($t->post('/create', {})->{status}, '>=', 500, 'nothing is accepted');
    is($t->get('')->{status}, 200, 'nginx is alive');
    ok($t->logs(qr/cannot run.*catalog/), 'the log says why');
    rmdir "$t->{dir}/backups/catalog.db";
    ok($t->wait_until(20, 'status', sub { $t->get('/status')->{status} == 200 }), 'it runs when the cause is gone');
    is($t->backup->{status}, 'completed', 'and backs up');
    $t->finish;
};

subtest 'a reload does not wait for a question' => sub {
    my $t = NgxBackup->new(user => 'www-data');
    $t->{set_more} = "database main { path $t->{dir}/app/app.db; }";
    my $db = DBI->connect("dbi:SQLite:dbname=$t->{dir}/app/app.db", '', '', {RaiseError => 1});
    $db->do('PRAGMA journal_mode=WAL');
    $db->do('CREATE TABLE t(a)');
    $t->own(map { "app/app.db$_" } '', '-wal', '-shm');
    $t->start;
    is($t->backup->{status}, 'completed', 'a backup');
    my @old = $t->workers;
    my $body = $NgxBackup::json->encode(
        {sql => 'WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c', timeout => 60});
    my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $t->{port}) or die;
    print {$s} "POST /admin/backup/query HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer $NgxBackup::token{admin}\r\n"
        . "Content-Type: application/json\r\nConnection: close\r\nContent-Length: @{[ length $body ]}\r\n\r\n$body";
    ok($t->wait_until(20, 'the question is at work', sub { grep { ($t->cpu($_) // 0) > 0.5 } @old }), 'it counts and counts');
    $t->hup;
    my $said = do { local $/; <$s> };
    like($said, qr{^HTTP/1\.1 503 .*is leaving: ask again}s, 'it is told to ask again');
    ok($t->wait_until(20, 'old workers leave', sub { !grep { !$t->gone($_) } @old }), 'old workers left');
    $db->disconnect;
    $t->finish;
};

subtest 'one process' => sub {
    my $t = NgxBackup->new(user => 'www-data', main => 'thread_pool backup threads=2; master_process off;');
    $t->start;
    is($t->backup->{status}, 'completed', 'a backup under master_process off');
    $t->finish;
};

subtest 'sets come and go with the configuration' => sub {
    my $t = NgxBackup->new(user => 'www-data');
    $t->start;
    is($t->backup->{status}, 'completed', 'one set');
    my $conf = $t->conf;
    my $more = $t->set_conf =~ s/backup app/backup other/r =~ s{/backups;}{/backups2;}r =~ s{/storage;}{/storage2;}r;
    $t->write('nginx.conf', $conf =~ s/(\n\s+server)/\n$more$1/r =~ s{location = /health}{location /other { backup_api other; backup_auth external role=admin; } $&}r);
    $t->hup;
    $t->wait_until(10, 'the second set', sub { $t->get('//other/')->{status} == 200 });
    my $r = $t->request('POST', '//other/create', body => {backup_type => 'full'}, headers => {Prefer => 'wait=20'});
    is($r->{json}{status}, 'completed', 'a second set after a reload') or diag($r->{content});
    is($t->get('/list')->{json}{total}, 1, 'the first is as before');
    # Without the module: its code must not be needed by what is left.
    $t->write('nginx.conf', $conf =~ s/load_module.*//r =~ s/backup_helper.*//r =~ s/backup app \{.*?\n    \}\n//sr =~ s/location \/admin.*?\n        \}\n//sr
        =~ s/location = \/health.*//r);
    $t->hup;
    $t->wait_until(10, 'no API', sub { $t->get('')->{status} == 404 });
    is($t->get('')->{status}, 404, 'without the module nginx goes on');
    $t->write('nginx.conf', $conf);
    $t->hup;
    $t->wait_until(10, 'the API', sub { $t->get('')->{status} == 200 });
    is($t->backup({backup_type => 'incremental'})->{status}, 'completed', 'and with it again');
    $t->finish;
};

# A directory that answers no call, as that of a server that is gone: a file system whose other end we hold and never read.
subtest 'a storage that hangs' => sub {
    my $CLONE_NEWNS = 0x20000;
    plan skip_all => 'needs root and its own mounts' unless $> == 0 && -e '/dev/fuse' && syscall(272, $CLONE_NEWNS) == 0
        && system('mount --make-rprivate /') == 0;
    my $t = NgxBackup->new(user => 'www-data')->start;
    is($t->backup->{status}, 'completed', 'a backup');
    ok($t->wait_until(20, 'health', sub { $t->get('/health')->{json}{status} eq 'pass' }), 'healthy');
    sysopen my $fuse, '/dev/fuse', O_RDWR or die "/dev/fuse: $!";
    fcntl $fuse, F_SETFD, 0;
    my $options = 'allow_other,rootmode=40000,user_id=0,group_id=0,fd=' . fileno $fuse;
    my $mounted = system("mount -i -t fuse -o $options none $t->{dir}/storage") == 0;
    fcntl $fuse, F_SETFD, FD_CLOEXEC;
    if (!$mounted) {
        $t->finish;
        return;
    }
    my $storage;
    ok($t->wait_until(60, 'the status', sub {
        $storage = $t->get('/status')->{json}{backup_system}{storage_backends}[0];
        return $storage->{no_answer_since};
    }), 'status tells since when it has not answered');
    ok(!$storage->{accessible}, 'it is not accessible');
    cmp_ok($storage->{checked}, 'le', $storage->{no_answer_since}, 'and when it last was looked at');
    cmp_ok($storage->{disk_free}, '>', 0, 'with what was seen then');
    my $r = $t->get('/health');
    is($r->{status}, 503, 'health fails');
    like($NgxBackup::json->encode($r->{json}), qr/has not answered since/, 'and says why');
    for (1 .. 2) {
        my $before = $t->get('/status')->{json}{timestamp};
        ok($t->wait_until(30, 'another status', sub { $t->get('/status')->{json}{timestamp} ne $before }), 'status goes on');
    }
    # Not by a reload: in that the master itself looks at the directory.
    my @old = $t->workers;
    kill 'QUIT', @old;
    ok($t->wait_until(30, 'old workers leave', sub { !grep { !$t->gone($_) } @old }), 'and no old worker waits for it');
    close $fuse;
    system("umount -l $t->{dir}/storage");
    ok($t->wait_until(30, 'the storage', sub { $t->get('/health')->{status} == 200 }), 'healthy again');
    is($t->backup->{status}, 'completed', 'and backs up');
    $t->finish;
};

done_testing;
