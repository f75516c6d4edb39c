#!/usr/bin/perl
# t/crash/reloads.pl [N]: N reloads (default 50) during full backups, while requests are proxied through the same nginx: none may fail, the backup
# completes, and the old workers leave without spinning.  Called by ./dev crash.
use strict;
use warnings;

use HTTP::Tiny;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(sleep time);
use NgxBackup;

my $reloads = shift // 50;
my $upstream = NgxBackup::free_port();
my $t = NgxBackup->new(server => "location /app/ { proxy_pass http://127.0.0.1:$upstream; }");
for my $n (1 .. 150) {
    $t->write("app/uploads/$n.bin", join '', map { pack 'Q', rand 2**62 } 1 .. 50_000 * (1 + $n % 9));
}
my $application = start_application();
$t->start;
my $client = start_client();
my $id = $t->post('/create', { backup_type => 'full' })->{json}{id};
my $began = time;
for (1 .. $reloads) {
    $t->hup;
    sleep 0.05;
}
note(sprintf '%d reloads in %.1f s', $reloads, time - $began);
my $job = $t->wait_job($id, 300);
is($job->{status}, 'completed', 'the backup completes') or diag(explain($job));
ok($t->wait_until(30, 'old workers leave', sub { $t->workers == $t->{workers} }), 'old workers left');
sleep 1;
my ($worker) = $t->workers;
my $cpu = $t->cpu($worker);
sleep 2;
cmp_ok($t->cpu($worker) - $cpu, '<', 0.5, 'no worker spins');
kill 'TERM', $client;
waitpid $client, 0;
my ($good, $bad) = split ' ', $t->read('client.txt') // '0 1';
is($bad, 0, "none of $good proxied requests failed");
cmp_ok($good, '>', $reloads, 'and there were many');
kill 'TERM', $application;
waitpid $application, 0;
$t->finish;
done_testing();

sub start_application {
    my $server = IO::Socket::INET->new(LocalAddr => "127.0.0.1:$upstream", Listen => 128, ReuseAddr => 1) or die "listen: $!";
    my $pid = fork // die "fork: $!";
    return $pid if $pid;
    $SIG{TERM} = sub { POSIX::_exit(0) };
    while (1) {
        my $c = $server->accept or next;
        my $head = '';
        while ($head !~ /\r\n\r\n/) { sysread($c, $head, 4096, length $head) or last }
        print {$c} "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
        close $c;
    }
}

sub start_client {
    my $pid = fork // die "fork: $!";
    return $pid if $pid;
    my ($go, $good, $bad) = (1, 0, 0);
    $SIG{TERM} = sub { $go = 0 };
    my $http = HTTP::Tiny->new(timeout => 10, keep_alive => 0);
    while ($go) {
        my $r = $http->get("http://127.0.0.1:$t->{port}/app/x");
        $r->{success} ? $good++ : $bad++;
        sleep 0.005;
    }
    $t->write('client.txt', "$good $bad");
    POSIX::_exit(0);
}
