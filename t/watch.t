#!/usr/bin/perl
# Incremental backups that go by what the helper's watcher tells: what they list, and what ends or interrupts the watching.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use JSON::PP ();
use NgxBackup;
use Test::More;
use Time::HiRes qw(sleep time);

plan skip_all => 'only root may start the helper' if $> != 0;

my $DIRS = 40;

sub new_app {
    my (%arg) = @_;
    my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, daemon => 1);
    $t->{set} = $t->set_conf =~ s/exclude \*\.tmp;/$arg{files}/r if $arg{files};
    for my $n (1 .. $DIRS) {
        mkdir "$t->{dir}/app/uploads/d$n" or die $!;
        $t->write("app/uploads/d$n/f$_", "file $_ of $n\n") for 1 .. 5;
    }
    $t->start;
    return $t;
}

sub watch_status {
    my ($t) = @_;
    my $r = $t->get('/status');
    return {} unless $r->{status} == 200;
    my $files = ($r->{json}{backup_system} // $r->{json}{components} // $r->{json})->{files} // {};
    return $files->{watch}[0] // {};
}

sub is_watched {
    my ($t, $name) = @_;
    ok($t->wait_until(20, 'watching', sub { watch_status($t)->{watching} }), $name) or diag(explain(watch_status($t)));
    ok($t->get('/status')->{json}{configuration}{realtime_monitoring}, 'status says so in both places');
    return;
}

sub backup {
    my ($t, $type, $status) = @_;
    sleep 0.1;    # past the time in which a file system's clock stands still
    my $job = $t->backup({backup_type => $type});
    is($job->{status}, $status // 'completed', "$type backup") or diag(explain($job));
    return ($job->{result} // $job)->{stats};
}

sub by_changes {
    my ($t, $listed, $changed, $name) = @_;
    my $stats = backup($t, 'incremental');
    is($stats->{scan}, 'changes', "$name: goes by changes");
    is($stats->{dirs_listed}, $listed, "$name: directories listed");
    is($stats->{files_changed} + $stats->{files_new}, $changed, "$name: files changed");
    return $stats;
}

subtest 'an incremental lists only what changed' => sub {
    my $t = new_app();
    is_watched($t, 'status says that it watches');
    my $stats = backup($t, 'full');
    is($stats->{scan}, 'walk', 'a full backup walks');
    my $files = $stats->{files};
    ok($t->wait_until(20, 'status', sub { (watch_status($t)->{next_incremental} // '') eq 'changes' }), 'the next need not');
    by_changes($t, 0, 0, 'nothing');
    $t->write('app/uploads/d3/f2', 'changed');
    $t->write('app/uploads/d7/new', 'new');
    $stats = by_changes($t, 2, 2, 'two directories');
    is($stats->{files}, $files + 1, 'all files are counted');
    rename "$t->{dir}/app/uploads/d9", "$t->{dir}/app/uploads/renamed" or die $!;
    $stats = by_changes($t, 2, 5, 'a directory moves');
    is($stats->{files}, $files + 1, 'no file is lost');
    is($stats->{files_removed}, 5, 'nor counted twice');
    my $recovery = $t->post('/recovery', {backup_id => 'latest', recovery_type => 'files', restore_to_original => JSON::PP::false, target_directory => "$t->{dir}/restored/x"});
    is($t->wait_job($recovery->{json}{id})->{status}, 'completed', 'recovery');
    my $diff = `diff -r $t->{dir}/app/uploads \$(find $t->{dir}/restored/x -type d -name uploads | head -1) 2>&1`;
    is($diff, '', 'what comes back is what was there');
    $t->stop('QUIT');
    $t->finish;
};

subtest 'after a reload it goes on' => sub {
    my $t = new_app();
    is_watched($t, 'watched');
    backup($t, 'full');
    for my $round (1 .. 3) {
        my $before = $t->runner;
        $t->write("app/uploads/d$round/f1", "before reload $round");
        $t->hup;
        $t->write("app/uploads/d$round/f2", "during reload $round");
        ok($t->wait_until(20, 'the old runner leaves', sub { $t->gone($before) }), 'the old runner leaves');
        $t->write("app/uploads/d$round/f3", "after reload $round");
        by_changes($t, 1, 3, "reload $round");
    }
    $t->stop('QUIT');
    $t->start;
    ok($t->wait_until(20, 'watching', sub { (grep { /are noticed from now on/ } $t->log_lines) == 5 }), 'watched again');
    is(backup($t, 'incremental')->{scan}, 'walk', 'after a restart it walks');
    by_changes($t, 0, 0, 'and then');
    $t->stop('QUIT');
    $t->finish;
};

subtest 'what nobody saw is found by a walk' => sub {
    my $t = new_app();
    $t->allow_log(qr/privileged helper/, qr/exited on signal 9/);
    is_watched($t, 'watched');
    backup($t, 'full');
    my ($supervisor) = $t->supervisors;
    my ($agent) = $t->workers($supervisor);
    kill 'KILL', $agent;
    $t->write('app/uploads/d5/f5', 'unseen');
    ok($t->wait_until(30, 'watching again', sub {
        my @now = $t->workers($supervisor);
        @now && $now[0] != $agent && (grep { /are noticed from now on/ } $t->log_lines) == 2;
    }), 'a new helper watches again');
    my $stats = backup($t, 'incremental');
    is($stats->{scan}, 'walk', 'the next backup walks');
    is($stats->{files_changed}, 1, 'and finds it');
    by_changes($t, 0, 0, 'then');
    my $runner = $t->runner;
    kill 'KILL', $runner;
    $t->write('app/uploads/d6/f5', 'unseen');
    ok($t->wait_until(20, 'a new runner', sub { ($t->runner // $runner) != $runner }), 'a new runner');
    ok($t->wait_until(20, 'watching', sub { (grep { /are noticed from now on/ } $t->log_lines) == 3 }), 'watches');
    $stats = backup($t, 'incremental');
    is($stats->{scan}, 'walk', 'walks');
    is($stats->{files_changed}, 1, 'and finds it');
    $t->stop('QUIT');
    $t->finish;
};

subtest 'a full backup names what the watcher had missed' => sub {
    my $t = new_app();
    is_watched($t, 'watched');
    backup($t, 'full');
    # A second name elsewhere: nobody tells of what is written through it.
    link "$t->{dir}/app/uploads/d4/f4", "$t->{dir}/outside" or die $!;
    $t->write('outside', 'written behind the watcher');
    by_changes($t, 0, 0, 'nobody knows');
    my $job = $t->backup({backup_type => 'full'});
    is($job->{status}, 'warning', 'a warning') or diag(explain($job));
    my $result = $job->{result} // $job;
    is($result->{stats}{watch_missed}, 1, 'counted');
    like(join("\n", @{ $result->{warnings} // [] }), qr{had missed a change in .*/d4}, 'and named');
    my $metrics = '';
    ok($t->wait_until(20, 'the metric', sub {
            $metrics = $t->get('/metrics')->{content} // '';
            return $metrics =~ /^nginx_backup_watch_missed_total\{[^}]*\} 1$/m;
        }), 'the metric counts it') or diag($metrics);
    like($metrics, qr/^nginx_backup_watched\{[^}]*files="uploads"[^}]*\} 1$/m, 'and says that it is watched');
    $t->stop('QUIT');
    $t->finish;
};

# Nothing is told of what happens in a mount, also when it came after the first look.
subtest 'what is mounted later is listed by every backup' => sub {
    my $t = new_app(files => 'one_file_system off;');
    is_watched($t, 'watched');
    my $point = "$t->{dir}/app/uploads/d2/a mount";
    mkdir $point or die $!;
    backup($t, 'full');
    if (system("mount -t tmpfs none '$point' 2>/dev/null") != 0) {
        $t->stop('QUIT');
        $t->finish;
        plan skip_all => 'nothing can be mounted here';
    }
    my $done = eval {
        $t->write('app/uploads/d2/a mount/one', 'first');
        is(backup($t, 'incremental')->{scan}, 'walk', 'a new mount makes a walk');
        $t->write('app/uploads/d2/a mount/one', 'changed');
        mkdir "$point/deep" or die $!;
        by_changes($t, 2, 1, 'in the mount');
        $t->write('app/uploads/d2/a mount/deep/two', 'new');
        by_changes($t, 2, 1, 'and deeper');
        1;
    };
    is($done, 1, 'all was tried') or diag($@);
    system("umount '$point'");
    my $stats = backup($t, 'incremental');
    is($stats->{scan}, 'walk', 'so does a mount that is gone');
    is($stats->{files_removed}, 2, 'and its files are');
    $t->stop('QUIT');
    $t->finish;
};

subtest 'without a helper backups walk, and status says why' => sub {
    my $t = NgxBackup->new(user => 'www-data');
    $t->start;
    backup($t, 'full');
    is(backup($t, 'incremental')->{scan}, 'walk', 'walks');
    my $status;
    $t->wait_until(10, 'status', sub { ($status = watch_status($t))->{reason} });
    ok(!$status->{watching}, 'not watching');
    like($status->{reason} // '', qr/privileged helper/, 'and why');
    ok(!$t->get('/status')->{json}{configuration}{realtime_monitoring}, 'in both places');
    $t->stop('QUIT');
    $t->finish;
};

done_testing;
