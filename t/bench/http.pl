#!/usr/bin/perl
# t/bench/http.pl: what the module costs those who only want pages: how many requests of status and health a second nginx answers
# beside "return 200", and how long proxied requests take while a full backup runs, with restic as the comparison.
#
# Prints figures and fails on wrong answers, never on slow ones.  PERCENT=10 makes the backed-up set smaller; SECONDS=5 is how
# long each load lasts.
use strict;
use warnings;
use File::Path qw(make_path);
use File::Temp qw(tempdir);
use Test::More;
use Time::HiRes qw(sleep time);
use NgxBackup;

my $percent = $ENV{PERCENT} // 100;
my $seconds = $ENV{SECONDS} // 5;
my $root = tempdir('ngx-backup-bench-XXXXXX', TMPDIR => 1, CLEANUP => 1);
chmod 0755, $root;
my $tools = ($ENV{NGX_BACKUP_BUILD} // 'build') . '/tools';

# One load of wrk: requests a second, and milliseconds of the 99th of a hundred.
sub load {
    my ($connections, $url, @headers) = @_;
    my @command = ('wrk', '-t1', "-c$connections", "-d${seconds}s", '--latency', (map { ('-H', $_) } @headers), $url);
    open my $pipe, '-|', @command or die "wrk: $!\n";
    my $said = do { local $/; <$pipe> };
    close $pipe or die "@command: $said\n";
    die "$url: $said\n" if $said =~ /Non-2xx/;
    my ($rate) = $said =~ m{Requests/sec:\s+([0-9.]+)} or die "$said\n";
    my ($value, $unit) = $said =~ /99%\s+([0-9.]+)(us|ms|s)/ or die "$said\n";
    return ($rate, $value * { us => 0.001, ms => 1, s => 1000 }->{$unit});
}

sub say_row { my ($what, $value, $unit, $note) = @_; printf "%-44s %10.2f %-4s %s\n", $what, $value, $unit, $note // ''; return }

sub verdict { my ($ratio, $bar, $met) = @_; return sprintf '%.2f of it, bar %s: %s', $ratio, $bar, $met ? 'met' : 'NOT met' }

sub rates {
    my ($t) = @_;
    my $base = "http://127.0.0.1:$t->{port}";
    my $auth = "Authorization: Bearer $NgxBackup::token{viewer}";
    my ($plain) = load(16, "$base/plain");
    say_row('return 200', $plain, '/s');
    for (['/health, open', '/health'], ['/status', '/admin/backup/status', $auth]) {
        my ($what, $path, @headers) = @$_;
        my ($rate) = load(16, "$base$path", @headers);
        say_row($what, $rate, '/s', verdict($rate / $plain, '0.8', $rate >= 0.8 * $plain));
    }
    return;
}

# Runs a load while something else does; that has to last longer than the load.
sub proxied {
    my ($t) = @_;
    return (load(4, "http://127.0.0.1:$t->{port}/app"))[1];
}

sub beside {
    my ($t) = @_;
    my $idle = proxied($t);
    say_row('proxied request, idle, p99', $idle, 'ms');
    my $r = $t->post('/create', { backup_type => 'full' });
    die "create: $r->{status}: $r->{content}\n" if $r->{status} != 202;
    my $during = proxied($t);
    my $done = $t->get("/jobs/$r->{json}{id}")->{json}{done};
    my $job = $t->wait_job($r->{json}{id}, 600);
    die "backup: $job->{status}\n" if $job->{status} ne 'completed';
    say_row('during a full backup, p99', $during, 'ms',
        verdict($during / $idle, '1.3', $during <= 1.3 * $idle) . ($done ? ' (it ended before the load did)' : ''));
    $ENV{RESTIC_PASSWORD} = 'benchmark';
    $ENV{RESTIC_CACHE_DIR} = "$root/cache";
    system('restic', '-q', '-r', "$root/restic", 'init') == 0 or die "restic init\n";
    my $pid = fork // die "fork: $!\n";
    exec 'restic', '-q', '-r', "$root/restic", 'backup', "$root/data" or die "restic: $!\n" if !$pid;
    my $peer = proxied($t);
    waitpid $pid, 0;
    die "restic backup\n" if $?;
    say_row('during restic backup, p99', $peer, 'ms', sprintf '%.2f of idle', $peer / $idle);
    return;
}

print "set http: generating\n";
system("$tools/gendata", 'M', "$root/data", $percent) == 0 or die "gendata\n";
system "chmod -R a+rX '$root/data'";
my $port = NgxBackup::free_port();
my $t = NgxBackup->new;
$t->{set} = <<"CONF";
    backup app {
        base_dir $t->{dir}/backups;
        files uploads { path $root/data/uploads; }
        storage local disk { path $t->{dir}/storage; }
        thread_pool backup;
    }
CONF
$t->{http} = "server { listen 127.0.0.1:$port; location / { return 200 '" . 'x' x 2000 . "'; } }";
$t->{server} = "location = /plain { return 200 'ok'; } location = /app { proxy_pass http://127.0.0.1:$port; }";
$t->start;
rates($t);
beside($t);
$t->finish;
done_testing();
