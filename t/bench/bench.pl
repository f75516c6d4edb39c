#!/usr/bin/perl
# t/bench/bench.pl [M|N|db …]: generates the reference sets and measures full backup, unchanged backup, restore and repository
# size of ngx-backup (through a real nginx), restic, borg, tar|zstd, cp -a and sqlite3 .backup.
#
# A benchmark prints figures and ratios; it fails on wrong results, never on slow ones.  PERCENT=10 makes the sets smaller;
# RUNS=3 takes the median of so many runs (default 1); KEEP=1 keeps the directory.
use strict;
use warnings;
use Cwd qw(abs_path);
use File::Temp qw(tempdir);
use JSON::PP;
use File::Path qw(remove_tree make_path);
use Time::HiRes qw(time);
use Test::More;
use NgxBackup;

my $percent = $ENV{PERCENT} // 100;
my $runs = $ENV{RUNS} // 1;
my $root = tempdir('ngx-backup-bench-XXXXXX', TMPDIR => 1, CLEANUP => !$ENV{KEEP});
chmod 0755, $root;
my $tools = ($ENV{NGX_BACKUP_BUILD} // 'build') . '/tools';
$tools = abs_path($tools);
my %result;    # set, measure, program

$ENV{RESTIC_PASSWORD} = $ENV{BORG_PASSPHRASE} = 'benchmark';
$ENV{RESTIC_CACHE_DIR} = "$root/restic-cache";
$ENV{BORG_BASE_DIR} = "$root/borg-base";
$ENV{BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK} = 'yes';

sub run_command {
    my (@command) = @_;
    my $started = time;
    my $pid = fork // die "fork: $!\n";
    if (!$pid) {
        open STDOUT, '>', "$root/out.txt";
        open STDERR, '>&', \*STDOUT;
        exec @command or die "$command[0]: $!\n";
    }
    waitpid $pid, 0;
    die "@command failed:\n" . slurp("$root/out.txt") if $?;
    return time - $started;
}

sub slurp {
    my ($file) = @_;
    open my $in, '<', $file or return '';
    local $/;
    return scalar <$in>;
}

# ext4 looks long for a free inode after many files were deleted, so nothing is removed between measurements: each restore
# gets a directory of its own, and all of them go at the end of the set.
my (@used, $fresh_count);

sub fresh_dir {
    my $dir = "$root/out" . ++$fresh_count;
    push @used, $dir;
    return $dir;
}

# Everything measured starts from the same state of the page cache: warm (the files were just read).
sub warm { my ($dir) = @_; system "tar -cf - -C '$dir' . 2>/dev/null | cat > /dev/null"; return }

sub median { my @v = sort { $a <=> $b } @_; return $v[$#v / 2] }

# code returns seconds; it is run RUNS times with before() in front of each, and never pays for what was written before it.
sub measure {
    my ($set, $what, $program, $before, $code) = @_;
    my @seconds;
    for (1 .. $runs) {
        $before->() if $before;
        system 'sync';
        push @seconds, $code->();
    }
    $result{$set}{$what}{$program} = median(@seconds);
    printf "  %-10s %-22s %-12s %8.2f s\n", $set, $what, $program, $result{$set}{$what}{$program};
    return;
}

sub size_of { my ($dir) = @_; my ($kb) = `du -sk --apparent-size '$dir'` =~ /^(\d+)/; return $kb / 1024 }

sub same_tree {
    my ($one, $other) = @_;
    my $differences = `diff -r --no-dereference '$one' '$other' 2>&1 | head -n 5`;
    die "restored tree differs:\n$differences" if $differences ne '';
    return;
}

sub peer_restic {
    my ($set, $data) = @_;
    my @restic = ('restic', '-q', '-r', "$root/restic");
    measure($set, 'full', 'restic', sub { remove_tree("$root/restic"); run_command(@restic, 'init'); warm($data) },
        sub { run_command(@restic, 'backup', $data) });
    $result{$set}{size}{restic} = size_of("$root/restic");
    measure($set, 'unchanged', 'restic', undef, sub { run_command(@restic, 'backup', $data) });
    measure($set, '100 changed', 'restic', sub { change_some($data) }, sub { run_command(@restic, 'backup', $data) })
        if $set eq 'N';
    measure($set, 'restore', 'restic', undef, sub { run_command(@restic, 'restore', 'latest', '--target', fresh_dir()) });
    return;
}

# A line more in a hundred files of a set, in as many directories as there are.
my $turn = 0;

sub change_some {
    my ($data) = @_;
    my @dirs = grep { -d } glob "$data/*";
    @dirs = ($data) unless @dirs;
    $turn++;
    for my $n (0 .. 99) {
        my $dir = $dirs[$n * @dirs / 100 % @dirs];
        my @files = grep { -f } glob "$dir/*";
        open my $out, '>>', $files[($turn * 7 + $n) % @files] or die "$dir: $!\n";
        print {$out} "line $turn\n";
        close $out;
    }
    select undef, undef, undef, 0.2;    # the clock of the file system has to tick
    return;
}

sub peer_borg {
    my ($set, $data) = @_;
    my $n = 0;
    measure($set, 'full', 'borg',
        sub { remove_tree("$root/borg"); run_command('borg', 'init', '-e', 'repokey', "$root/borg"); warm($data) },
        sub { run_command('borg', 'create', '-C', 'zstd,3', "$root/borg\::full" . $n++, $data) });
    $result{$set}{size}{borg} = size_of("$root/borg");
    measure($set, 'unchanged', 'borg', undef,
        sub { run_command('borg', 'create', '-C', 'zstd,3', "$root/borg\::again" . $n++, $data) });
    measure($set, 'restore', 'borg', sub { my $out = fresh_dir(); make_path($out); chdir $out },
        sub { run_command('borg', 'extract', "$root/borg\::full" . ($runs - 1)) });
    chdir '/';
    return;
}

sub peer_simple {
    my ($set, $data) = @_;
    measure($set, 'full', 'tar|zstd', sub { unlink "$root/all.tar.zst"; warm($data) },
        sub { run_command('sh', '-c', "tar -C '$data' -cf - . | zstd -q -3 -T2 -o '$root/all.tar.zst'") });
    $result{$set}{size}{'tar|zstd'} = (-s "$root/all.tar.zst") / 1048576;
    unlink "$root/all.tar.zst";
    measure($set, 'restore', 'cp -a', sub { warm($data) }, sub { run_command('cp', '-a', $data, fresh_dir()) });
    # What cp leaves to the page cache, a restore that is durable has to write.
    measure($set, 'restore', 'cp -a, sync -f', sub { warm($data) },
        sub { my $out = fresh_dir(); run_command('sh', '-c', 'cp -a "$1" "$2" && sync -f "$2"', 'sh', $data, $out) });
    return;
}

# The machine's own limit: as many bytes as a repository has, written in one file and flushed.
sub disk_limit {
    my ($set, $mib) = @_;
    measure($set, 'full', 'dd, fsync', sub { unlink "$root/limit" },
        sub { run_command('dd', 'if=/dev/zero', "of=$root/limit", 'bs=1M', 'count=' . int($mib + 1), 'conv=fsync') });
    unlink "$root/limit";
    return;
}

sub ours {
    my ($set, $data, %sources) = @_;
    my $nginx;
    my $fresh = sub {
        $nginx->finish if $nginx;
        $nginx = NgxBackup->new;
        make_path("$nginx->{dir}/restored");
        $nginx->{set} = configuration($nginx->{dir}, %sources);
        $nginx->start;
        warm($data);
    };
    measure($set, 'full', 'ngx-backup', $fresh, sub { job_seconds($nginx, '/create', { backup_type => 'full' }) });
    $result{$set}{size}{'ngx-backup'} = size_of("$nginx->{dir}/storage");
    disk_limit($set, $result{$set}{size}{'ngx-backup'});
    measure($set, 'unchanged', 'ngx-backup', undef,
        sub { job_seconds($nginx, '/create', { backup_type => 'incremental' }) });
    my ($out, $n) = ('', 0);
    measure($set, 'restore', 'ngx-backup', sub { $out = "$nginx->{dir}/restored/" . $n++ },
        sub { job_seconds($nginx, '/recovery', { recovery_type => 'full', restore_to_original => JSON::PP::false,
                    target_directory => $out }) });
    my ($peak) = ($nginx->read('/proc/' . $nginx->runner . '/status') // '') =~ /^VmHWM:\s+(\d+)/m;
    $result{$set}{memory}{'ngx-backup'} = $peak / 1024;
    my %files = %{ $sources{files} // {} };
    same_tree($files{$_}, "$out/$_") for sort keys %files;
    $nginx->finish;
    return;
}

# With the helper, whose watcher tells what changed.
sub ours_watched {
    my ($set, $data, %sources) = @_;
    my $nginx = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper);
    $nginx->{set} = configuration($nginx->{dir}, %sources);
    $nginx->own('bench.key');
    $nginx->start;
    my $noticed = sub { grep { /are noticed from now on/ } $nginx->log_lines };
    $nginx->wait_until(60, 'watching', $noticed) or die "not watched\n";
    job_seconds($nginx, '/create', { backup_type => 'full' });
    my $by_changes = sub {
        my ($listed) = @_;
        my ($seconds, $job) = run_job($nginx, '/create', { backup_type => 'incremental' });
        my $stats = ($job->{result} // $job)->{stats};
        die "it walked\n" if $stats->{scan} ne 'changes';
        die "$stats->{dirs_listed} directories listed\n" if $stats->{dirs_listed} > $listed;
        return $seconds;
    };
    measure($set, 'watched', 'ngx-backup', undef, sub { $by_changes->(0) });
    measure($set, '100 changed', 'ngx-backup', sub { change_some($data) }, sub { $by_changes->(100) }) if $set eq 'N';
    $result{$set}{watched}{restic} = $result{$set}{unchanged}{restic};
    $nginx->stop('QUIT');
    $nginx->finish;
    return;
}

sub configuration {
    my ($dir, %sources) = @_;
    my %files = %{ $sources{files} // {} };
    my %databases = %{ $sources{databases} // {} };
    run_command("$NgxBackup::program", 'key', 'new', "$dir/bench.key");
    return join "\n", 'backup app {', "base_dir $dir/backups;", (map { "files $_ { path $files{$_}; }" } sort keys %files),
        (map { "database $_ { path $databases{$_}; }" } sort keys %databases),
        "storage local disk { path $dir/storage; }", "encryption { key k1 $dir/bench.key; }",
        "restore_root $dir/restored;", 'thread_pool backup;', '}';
}

sub job_seconds {
    return (run_job(@_))[0];
}

sub run_job {
    my ($nginx, $path, $body) = @_;
    my $started = time;
    my $answer = $nginx->post($path, $body);
    die "$path: $answer->{status}: $answer->{content}\n" if $answer->{status} != 202;
    my $job = $nginx->wait_job($answer->{json}{id}, 600);
    my $seconds = time - $started;
    die "$path: $job->{status}: " . ($job->{error} // '') . "\n" if $job->{status} ne 'completed';
    return ($seconds, $job);
}

# What capload printed, for people and as figures.
sub capload {
    my ($name, @arguments) = @_;
    run_command("$tools/capload", @arguments);
    my $text = slurp("$root/out.txt");
    printf "  %-28s %s\n", $name, $_ for split /\n/, $text;
    my ($rate) = $text =~ m{= ([0-9.]+)/s};
    my ($longest) = $text =~ /^stall:.* max=([0-9.]+)/m;
    my ($half, $most) = $text =~ /^(?:written|durable):.* p50=([0-9.]+) .*p99=([0-9.]+)/m;
    return { rate => $rate, longest => $longest, half => $half, most => $most };
}

sub capture_of {
    my ($nginx) = @_;
    my $r = $nginx->get('/status');
    return $r->{status} == 200 ? $r->{json}{backup_system}{database}{captures}[0] // {} : {};
}

# A database that is captured by nginx; it has a directory of its own.
sub captured {
    my ($db) = @_;
    my $nginx = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper);
    $nginx->{set} = configuration($nginx->{dir}, databases => { main => $db }) =~ s/path \Q$db\E;/path $db; pitr_window 7d;/r;
    $nginx->own('bench.key');
    $nginx->start;
    $nginx->wait_until(120, 'capturing', sub { capture_of($nginx)->{capturing} }) or die "not captured\n";
    return $nginx;
}

sub verdict {
    my ($what, $value, $bar, $good) = @_;
    printf "%-44s %8.2f   %s %s\n", $what, $value, $bar, $good ? 'met' : 'NOT met';
    return;
}

# What capturing every transaction costs the application, and how long a commit takes until it is in base_dir.
sub transactions {
    my ($data) = @_;
    my $seconds = $ENV{SECONDS} // 10;
    my %got;
    make_path("$data/load", "$root/captured");
    my $db = "$data/load/app.db";
    for my $rate (500, 0) {
        my $name = $rate || 'full speed';
        $got{$name}{without} = capload("$name, not captured", 'write', $db, $seconds, $rate);
    }
    for my $rate (500, 0) {
        my $name = $rate || 'full speed';
        $got{$name}{engine} = capload("$name, captured, engine", 'capture', $db, "$root/captured", $seconds, $rate);
    }
    system "chmod -R a+rwX '$data'";
    my $nginx = captured($db);
    for my $rate (500, 0) {
        my $name = $rate || 'full speed';
        $got{$name}{with} = capload("$name, captured by nginx", 'write', $db, $seconds, $rate);
    }
    $got{500}{seen} = capload('500, captured by nginx', 'watch', $db, "$nginx->{dir}/backups/wal/main", $seconds, 500);
    my ($peak) = ($nginx->read('/proc/' . $nginx->runner . '/status') // '') =~ /^VmHWM:\s+(\d+)/m;
    my $gaps = capture_of($nginx)->{gaps};
    $nginx->stop('QUIT');
    $nginx->finish;
    print "\ncapture                                         value   bar\n";
    my %least = (500 => 0.95, 'full speed' => 0.8);
    for my $name (500, 'full speed') {
        my $ratio = $got{$name}{with}{rate} / $got{$name}{without}{rate};
        verdict("throughput with / without, $name", $ratio, ">= $least{$name}", $ratio >= $least{$name});
    }
    verdict('longest stall at 500/s, ms', $got{500}{with}{longest}, '<= 50', $got{500}{with}{longest} <= 50);
    verdict('commit to durable, p50 at 500/s, ms', $got{500}{engine}{half}, '< 5', $got{500}{engine}{half} < 5);
    verdict('commit to durable, p99 at 500/s, ms', $got{500}{engine}{most}, '< 50', $got{500}{engine}{most} < 50);
    verdict('  through nginx, written, p50, ms', $got{500}{seen}{half}, '< 5', $got{500}{seen}{half} < 5);
    verdict('  through nginx, written, p99, ms', $got{500}{seen}{most}, '< 50', $got{500}{seen}{most} < 50);
    printf "%-44s %8.2f\n%-44s %8d\n\n", 'memory of the worker, MiB', $peak / 1024, 'gaps', $gaps;
    return;
}

# What capload says of a database of so many GiB.
sub large_figures {
    my ($data, $gib) = @_;
    make_path("$root/large");
    run_command("$tools/capload", 'large', "$data/large.db", "$root/large", $gib);
    my $text = slurp("$root/out.txt");
    print map { "  $gib GiB: $_\n" } split /\n/, $text;
    remove_tree("$root/large");
    unlink glob "$data/large.db*";
    my %got = (gib => $gib);
    ($got{read}) = $text =~ /^first read: ([0-9.]+) s/m;
    ($got{again}) = $text =~ /^going on: ([0-9.]+) s/m;
    ($got{commit}) = sort { $a <=> $b } $text =~ /^1000 commits: ([0-9.]+) ms/mg;
    ($got{size}) = sort { $b <=> $a } $text =~ /ms each, ([0-9.]+) KiB each/g;
    my ($memory) = sort { $b <=> $a } $text =~ /memory ([0-9.]+) MiB/g;
    $got{hashes} = 2 * $gib;    # 8 bytes for each page of 4 KiB
    $got{rest} = $memory - $got{hashes};
    die "capload said something else:\n$text" if grep { !defined } @got{qw(read again commit size rest)};
    return \%got;
}

# GIB=10: that capturing costs what changes, and memory no more than the hashes, whatever the size.
sub large {
    my ($data) = @_;
    my ($small, $big) = map { large_figures($data, $_) } 1, $ENV{GIB};
    print "\ncapture, $big->{gib} GiB / 1 GiB                        value   bar\n";
    for my $row (['one commit, ms', 'commit', 1.5], ['one commit, KiB captured', 'size', 1.1], ['memory besides the hashes', 'rest', 1.5]) {
        my ($what, $key, $most) = @$row;
        my $ratio = $big->{$key} / $small->{$key};
        verdict($what, $ratio, "<= $most", $ratio <= $most);
    }
    my $read = $big->{read} / $big->{gib} / $small->{read};
    verdict('first read, a GiB', $read, '<= 1.5', $read <= 1.5);
    verdict('going on / first read', $big->{again} / $big->{read}, '<= 0.1', $big->{again} <= 0.1 * $big->{read});
    printf "%-44s %8.2f\n\n", 'the hashes, MiB', $big->{hashes};
    return;
}

# A point in time, so many transactions behind the backup.
sub point_in_time {
    my ($set, $data) = @_;
    my $db = "$data/app.db";
    my $count = 1000 * $percent;
    my $nginx = captured($db);
    make_path("$nginx->{dir}/restored");
    $nginx->own('restored');
    job_seconds($nginx, '/create', { backup_type => 'full' });
    run_command("$tools/capload", 'commits', $db, $count);
    print "  $count transactions: ", slurp("$root/out.txt") =~ /^(commits.*)$/m, "\n";
    my $last = 0;
    $nginx->wait_until(300, 'captured', sub { my $now = capture_of($nginx)->{transaction}; my $same = $now >= $count && $now == $last; $last = $now; sleep 6 unless $same; $same })
        or die "not captured\n";
    my $n = 0;
    my $incremental = $nginx->backup({ backup_type => 'incremental' });
    printf "  an incremental backup after them: %.2f s, read %.0f of %.0f MiB\n", $incremental->{duration_seconds},
        map { $_ / 2**20 } $incremental->{stats}{bytes_read}, -s $db;
    measure($set, 'restore', 'cp', sub { warm($data) }, sub { run_command('cp', $db, fresh_dir()) });
    measure($set, 'restore', 'cp, sync -f', sub { warm($data) },
        sub { my $out = fresh_dir(); run_command('sh', '-c', 'cp "$1" "$2" && sync -f "$2"', 'sh', $db, $out) });
    measure($set, 'restore', 'ngx-backup', undef,
        sub { job_seconds($nginx, '/recovery', { recovery_type => 'database', restore_to_original => JSON::PP::false, transaction => $last,
                    target_directory => "$nginx->{dir}/restored/" . $n++ }) });
    my $rows = sub { my ($file) = @_; return scalar `sqlite3 '$file' 'SELECT count(*), sum(v) FROM capload'` };
    die "another content\n" if $rows->($db) ne $rows->("$nginx->{dir}/restored/0/app.db");
    my $started = time;
    my $r = $nginx->post('/query', { sql => 'SELECT count(*), sum(v) FROM capload', transaction => int($last / 2), timeout => 60 });
    printf "  a query as of transaction %d: %.2f s, %s\n", $last / 2, time - $started, $r->{status} == 200 ? "@{$r->{json}{rows}[0]}" : $r->{content};
    my ($peak) = ($nginx->read('/proc/' . $nginx->runner . '/status') // '') =~ /^VmHWM:\s+(\d+)/m;
    printf "  memory of the worker, peak: %.0f MiB\n", $peak / 1024;
    $nginx->stop('QUIT');
    $nginx->finish;
    return;
}

my %bar = (    # from the project's goals: measure, set → peer → ratio
    full => { M => { restic => 0.35, borg => 0.25, 'tar|zstd' => 0.5 }, N => { restic => 0.5 }, db => { 'sqlite3 .backup' => 1.5 } },
    restore => { db => { cp => 2 }, M => { restic => 0.6, 'cp -a' => 0.6 }, N => { restic => 0.6, 'cp -a' => 0.6 } },
    unchanged => { M => { restic => 0.3 }, N => { restic => 0.3 } },
    watched => { M => { restic => 0.03 }, N => { restic => 0.03 } },
    '100 changed' => { N => { restic => 0.05 } },
    size => { M => { restic => 1, borg => 1, 'tar|zstd' => 1 } },
);

sub table {
    print "\nmeasure     set  program            value    ours/peer   bar\n";
    for my $set (sort keys %result) {
        for my $what (qw(full unchanged watched), '100 changed', qw(restore size memory)) {
            my $row = $result{$set}{$what} or next;
            my $mine = $row->{'ngx-backup'};
            for my $program (sort { ($a ne 'ngx-backup') <=> ($b ne 'ngx-backup') || $a cmp $b } keys %$row) {
                my $unit = $what eq 'size' || $what eq 'memory' ? 'MiB' : 's';
                my $line = sprintf '%-10s  %-3s  %-16s %8.2f %-3s', $what, $set, $program, $row->{$program}, $unit;
                if ($program ne 'ngx-backup' && $mine) {
                    my $ratio = $mine / $row->{$program};
                    my $wanted = $bar{$what}{$set}{$program};
                    $line .= sprintf '  %6.2f', $ratio;
                    $line .= sprintf '   %5.2f %s', $wanted, $ratio <= $wanted ? 'met' : 'NOT met' if $wanted;
                }
                print "$line\n";
            }
        }
    }
    return;
}

my @sets = @ARGV ? @ARGV : qw(M N db);
printf "%s, %d cores; %s; %s; %s; %s\n", map { s/\s+$//r } scalar(`uname -sr`), scalar(`nproc`), scalar(`restic version | cut -c1-14`),
    scalar(`borg --version`), 'sqlite3 ' . substr(`sqlite3 --version`, 0, 6), scalar(`nginx -v 2>&1`);
for my $set (@sets) {
    print "set $set: generating\n";
    my $data = "$root/data-$set";
    if ($set eq 'db') {
        make_path($data);
        run_command("$tools/gendata", 'db', "$data/app.db", 10 * $percent);
        measure($set, 'full', 'sqlite3 .backup', sub { unlink "$root/copy.db"; warm($data) },
            sub { run_command('sqlite3', "$data/app.db", ".backup '$root/copy.db'") });
        unlink "$root/copy.db";
        system "chmod -R a+rwX '$data'";
        ours($set, $data, databases => { main => "$data/app.db" });
        point_in_time($set, $data);
        transactions($data);
        large($data) if $ENV{GIB};
    } else {
        run_command("$tools/gendata", $set, $data, $percent);
        system "chmod -R a+rwX '$data'";
        peer_simple($set, $data);
        peer_restic($set, $data);
        peer_borg($set, $data);
        my %sources = $set eq 'M'
            ? (files => { uploads => "$data/uploads", transcripts => "$data/transcripts" }, databases => { main => "$data/app.db" })
            : (files => { all => $data });
        ours($set, $data, %sources);
        ours_watched($set, $data, %sources);
    }
    remove_tree($data, @used, "$root/restic", "$root/borg") unless $ENV{KEEP};
    @used = ();
}
table();
done_testing();    # of the harness: nothing alarming in the logs
