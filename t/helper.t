#!/usr/bin/perl
# The privileged helper's life: started by nginx's master, told of each reload, replaced when it dies, gone when nginx is.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use NgxBackup;
use Test::More;
use Time::HiRes qw(sleep time);

plan skip_all => 'only root may start the helper' if $> != 0;

my $program = $NgxBackup::helper;
(my $ask = $program) =~ s{[^/]+$}{tools/helperask};

sub new_app {
    my (%arg) = @_;
    return NgxBackup->new(user => 'www-data', helper => $program, %arg);
}

sub helper_status {
    my ($t) = @_;
    my $r = $t->get('/status');
    return $r->{status} == 200 ? $r->{json}{helper} : {state => "status $r->{status}"};
}

# The status is published every few seconds; a self-test asks the helper now.
sub state_is {
    my ($t, $state, $name) = @_;
    my $got;
    ok($t->wait_until(20, "helper is $state", sub { ($got = helper_status($t))->{state} eq $state }), $name)
        or diag(explain($got));
    return $got;
}

sub agent { my ($t) = @_; return ($t->workers(($t->supervisors)[-1]))[0] }

sub fds { my ($pid) = @_; return scalar(() = glob "/proc/$pid/fd/*") }

subtest 'it starts, serves, and ends with nginx' => sub {
    my $t = new_app();
    $t->start;
    my $status = state_is($t, 'active', 'status says active');
    my ($supervisor) = $t->supervisors;
    ok($supervisor, 'the log names the supervisor');
    like($status->{version}, qr/^\d+\.\d+/, 'and which version');
    is($status->{pid}, agent($t), 'and the process');
    is($status->{generation}, 1, 'and the configuration');
    my $stat = $t->read("/proc/$supervisor/stat");
    unlike($stat, qr/\) \S $t->{pid} /, 'the supervisor is not a child of nginx');
    is(join(' ', map { readlink "/proc/$supervisor/fd/$_" } 0 .. 2), '/dev/null /dev/null /dev/null', 'it has no terminal');
    my $health = $t->get('/health')->{json};
    is($health->{checks}{'helper:state'}[0]{status}, 'pass', 'health passes');
    my $id = $t->post('/test', {})->{json}{id};
    my ($check) = grep { $_->{name} eq 'privileged helper' } @{ $t->wait_job($id)->{result}{test_result}{checks}
        // $t->wait_job($id)->{test_result}{checks} // [] };
    is($check->{status}, 'pass', 'the self-test talks to it') or diag(explain($check));
    is($t->backup->{status}, 'completed', 'a backup');
    my @all = ($supervisor, $t->below($supervisor));
    $t->stop('QUIT');
    ok($t->wait_until(5, 'all end', sub { !grep { !$t->gone($_) } @all }), 'everything of it is gone');
    $t->start;
    state_is($t, 'active', 'and it starts again');
    $t->stop('TERM');
    $t->finish;
};

# The figure of a metric of the helper; undef: none.
sub metric {
    my ($t, $name) = @_;
    return ($t->get('/metrics', token => 'viewer')->{content} // '') =~ /^nginx_backup_helper_$name\{backup="app"\} (\S+)$/m ? $1 : undef;
}

sub metric_is {
    my ($t, $name, $value) = @_;
    return ok($t->wait_until(30, $name, sub { (metric($t, $name) // -1) == $value }), "helper_$name is $value") || diag(metric($t, $name) // 'none');
}

# In a container nobody reads the system's log.
subtest 'what it refuses and lacks is in the error log, once, and in the metrics' => sub {
    my $weak = $NgxBackup::helper =~ s{[^/]+$}{tools/weakhelper}r;
    plan skip_all => "$ask or $weak is missing: make tools" unless -x $ask && -x $weak;
    my $t = new_app(daemon => 1);
    $t->start;
    state_is($t, 'active', 'active');
    metric_is($t, up => 1);
    metric_is($t, refused_total => 0);
    my $caged = metric($t, 'caged');
    my $said = () = grep { /its cage is weaker/ } $t->log_lines;
    is($said > 0, !$caged, 'the cage is as it is here');
    my ($worker) = $t->workers;
    system("$ask $worker r/etc r/root >/dev/null");
    metric_is($t, refused_total => 2);
    ok($t->wait_until(20, 'the log', sub { grep { /it refused workers 2 times/ } $t->log_lines }), 'the error log says so');
    $t->write('nginx.conf', $t->conf =~ s/backup_helper [^;]+;/backup_helper $weak;/r);
    $t->hup;
    metric_is($t, caged => 0);
    ok($t->wait_until(20, 'the log', sub { grep { /its cage is weaker here, there is no Landlock:/ } $t->log_lines }), 'so does a weaker cage');
    is($t->backup->{status}, 'completed', 'which works all the same');
    kill 'KILL', ($t->supervisors)[-1];
    metric_is($t, up => 0);
    $t->hup;
    metric_is($t, up => 1);
    $t->stop('QUIT');
    $t->finish;
};

subtest 'each reload gives it the new configuration' => sub {
    my $t = new_app(daemon => 1);
    $t->start;
    state_is($t, 'active', 'active');
    my ($supervisor) = $t->supervisors;
    my $agent = agent($t);
    for my $pid ($supervisor, $agent) {
        my $status = $t->read("/proc/$pid/status") // '';
        my ($rights) = $status =~ /^CapPrm:\s+(\w+)/m;
        # Owners, modes, reading, watching, leases and capabilities of files: nothing else of root.
        is(hex($rights) & ~(1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 21 | 1 << 28 | 1 << 31), 0, "few rights of root: $rights");
        like($status, qr/^NoNewPrivs:\s+1/m, 'and none to come');
    }
    my @before = map { fds($_) } $t->{pid}, $supervisor, $agent;
    for my $generation (2 .. 6) {
        $t->hup;
        $t->wait_until(10, 'the new generation', sub { (() = grep { /privileged helper .* is active/ } $t->log_lines) >= $generation });
    }
    ok($t->wait_until(20, 'generation 6', sub { (helper_status($t)->{generation} // 0) == 6 }), 'workers see the newest generation')
        or diag(explain(helper_status($t)));
    is_deeply([$t->supervisors], [$supervisor], 'one supervisor all the time');
    is(agent($t), $agent, 'and one agent');
    ok($t->wait_until(20, 'old workers leave', sub { $t->workers == $t->{workers} }), 'old workers left');
    ok($t->wait_until(10, 'conversations end', sub { $t->below($agent) <= 2 }), 'their conversations ended');
    is_deeply([map { fds($_) } $t->{pid}, $supervisor, $agent], \@before, 'no descriptor is left in master, supervisor, agent');
    for my $worker ($t->workers) {
        my @control = grep { (readlink($_) // '') eq (readlink("/proc/$supervisor/fd/3") // '?') } glob "/proc/$worker/fd/*";
        is(scalar(@control), 0, 'no worker has the control socket');
    }
    # Switched off, and on again.
    my $conf = $t->conf;
    $t->write('nginx.conf', $conf =~ s/backup_helper [^;]+;/backup_helper off;/r);
    $t->hup;
    ok($t->wait_until(10, 'it ends', sub { $t->gone($supervisor) }), 'a reload with "off" ends it');
    is(state_is($t, 'off', 'status says off')->{pid}, undef, 'without a process');
    $t->write('nginx.conf', $conf);
    $t->hup;
    state_is($t, 'active', 'and a reload brings it back');
    # Without the module nobody would be left to end it.
    my $second = ($t->supervisors)[-1];
    isnt($second, $supervisor, 'as another process');
    $t->write('nginx.conf', $conf =~ s/load_module.*//r =~ s/backup_helper.*//r =~ s/backup app \{.*?\n    \}\n//sr
        =~ s/location \/admin.*?\n        \}\n//sr =~ s/location = \/health.*//r);
    $t->hup;
    ok($t->wait_until(10, 'it ends', sub { $t->gone($second) }), 'a reload without the module ends it');
    $t->finish;
};

subtest 'it may touch what the configuration names, and how' => sub {
    plan skip_all => "$ask is missing: make tools" unless -x $ask;
    my $t = new_app(daemon => 1);
    my $dir = $t->{dir};
    $t->write('app/app.db', '');
    $t->{set_more} = "database main { path $dir/app//app.db; } restore_in_place off;";
    my $conf = $t->conf =~ s/restore_in_place on;//r;
    my $asked = sub {
        my ($idle) = grep { $_ != $t->runner } $t->workers;
        my @line = `$ask $idle @_`;
        return join ' ', map { s{^(yes|no) ([a-z]*)\Q$dir\E/?([^:\n]*).*\n}{$1:$2:$3}r } @line;
    };
    no warnings 'redefine';
    local *NgxBackup::conf = sub { $conf };
    $t->start;
    state_is($t, 'active', 'active');
    my @all = map { ("r$_", "p$_", "w$_", "s$_") } "$dir/app/uploads", "$dir/restored";
    is($asked->(@all), 'yes:r:app/uploads no:p:app/uploads yes:w:app/uploads no:s:app/uploads '
        . 'yes:r:restored yes:p:restored no:w:restored no:s:restored', 'files can be read, only a restore_root be written to');
    is($asked->("rpwd$dir/app/app.db", "r$dir/app", "r$dir/backups", "r$dir", "d$dir/app/other.db"),
        'yes:rpwd:app/app.db no:r:app no:r:backups no:r: no:d:app/other.db', 'the database by its one spelling, and nothing else');
    $conf =~ s/restore_in_place off;/restore_in_place on; files more { path $dir\/html; }/;
    $t->write('nginx.conf', $conf);
    $t->hup;
    ok($t->wait_until(20, 'generation 2', sub { (helper_status($t)->{generation} // 0) == 2 }), 'a reload');
    ok($t->wait_until(20, 'old workers leave', sub { $t->workers == $t->{workers} }), 'old workers left');
    is($asked->("rp$dir/app/uploads", "rpw$dir/html"), 'yes:rp:app/uploads yes:rpw:html', 'in place and more, after a reload');
    $t->finish;
};

subtest 'a killed agent is replaced' => sub {
    my $t = new_app();
    $t->start;
    state_is($t, 'active', 'active');
    my ($supervisor) = $t->supervisors;
    for my $n (1 .. 2) {
        my $agent = agent($t);
        my @talks = $t->below($agent);
        kill 'KILL', $agent;
        ok($t->wait_until(20, 'another agent', sub { my $now = agent($t); $now && $now != $agent }), "kill $n: another agent");
        ok($t->wait_until(5, 'conversations end', sub { !grep { !$t->gone($_) } @talks }), 'the conversations of the old one ended');
    }
    ok($t->wait_until(20, 'the new one answers', sub { (helper_status($t)->{pid} // 0) == agent($t) }), 'the new one answers');
    is_deeply([$t->supervisors], [$supervisor], 'the supervisor is the same');
    $t->finish;
};

subtest 'a killed supervisor takes everything with it; a reload starts another' => sub {
    my $t = new_app(daemon => 1);
    $t->start;
    state_is($t, 'active', 'active');
    my ($supervisor) = $t->supervisors;
    my @below = $t->below($supervisor);
    cmp_ok(scalar(@below), '>=', 1, 'there was an agent');
    kill 'KILL', $supervisor;
    ok($t->wait_until(5, 'all end', sub { !grep { !$t->gone($_) } @below }), 'agent and conversations are gone');
    my $status = state_is($t, 'down', 'status says down');
    like($status->{detail}, qr/reload nginx/, 'and how to mend it');
    my $health = $t->get('/health')->{json};
    is($health->{checks}{'helper:state'}[0]{status}, 'warn', 'health warns');
    like($health->{checks}{'helper:state'}[0]{output}, qr/reload/, 'and says what to do');
    is($t->get('//health', token => '')->{status}, 200, 'but does not fail');
    is($t->backup->{status}, 'completed', 'workers go on with their own rights');
    $t->hup;
    state_is($t, 'active', 'a reload starts another');
    ok($t->logs(qr/\[warn\].*privileged helper: it ended.*starting another/), 'and the log says why');
    $t->finish;
};

subtest 'kill -9 of the master' => sub {
    my $t = new_app(daemon => 1);
    $t->start;
    state_is($t, 'active', 'active');
    my ($supervisor) = $t->supervisors;
    my @all = ($supervisor, $t->below($supervisor));
    my @workers = $t->workers;
    kill 'KILL', $t->{pid};
    my $began = time;
    ok($t->wait_until(10, 'the helper ends', sub { !grep { !$t->gone($_) } @all }), 'the helper is gone');
    note(sprintf 'after %.2f s', time - $began);
    is(scalar(grep { $t->gone($_) } @workers), 0, 'while workers live on');
    kill 'TERM', @workers;
    ok($t->wait_until(10, 'workers end', sub { !grep { !$t->gone($_) } @workers }), 'stopped');
    $t->{pid} = 0;
    $t->finish;
};

subtest 'a binary upgrade: the new helper waits for the old one' => sub {
    my $t = new_app(daemon => 1);
    $t->start;
    state_is($t, 'active', 'active');
    my $old = $t->{pid};
    my ($first) = $t->supervisors;
    kill 'USR2', $old;
    ok($t->wait_until(20, 'the new master', sub { -e "$t->{dir}/nginx.pid.oldbin" && -s "$t->{dir}/nginx.pid" }), 'a new master');
    chomp($t->{pid} = $t->read('nginx.pid'));
    ok($t->wait_until(10, 'the second helper', sub { $t->supervisors == 2 }), 'with a helper of its own');
    my $second = ($t->supervisors)[-1];
    ok($t->logs(qr/process $second: waits/), 'which waits');
    is(scalar($t->workers($second)), 0, 'without an agent');
    ok(!$t->gone($first), 'the first one still serves');
    # Workers of both masters answer; those of the new one know what they wait for.
    my $waits = $t->wait_until(20, 'standby', sub { my $s = helper_status($t); $s->{state} eq 'standby' && $s });
    like($waits->{detail}, qr/takes over when the workers of that master have left/, 'the new workers say that it waits');
    kill 'QUIT', $old;
    ok($t->wait_until(30, 'the old master leaves', sub { $t->gone($old) }), 'the old master left');
    ok($t->wait_until(10, 'its helper ends', sub { $t->gone($first) }), 'and its helper');
    ok($t->wait_until(10, 'the second has an agent', sub { $t->workers($second) }), 'the second takes over');
    is(state_is($t, 'active', 'status says active')->{pid}, agent($t), 'as the second');
    is($t->backup->{status}, 'completed', 'a backup');
    $t->finish;
};

subtest 'an old master without workers keeps nobody waiting' => sub {
    my $t = new_app(daemon => 1);
    $t->start;
    state_is($t, 'active', 'active');
    my ($old, $first) = ($t->{pid}, $t->supervisors);
    kill 'USR2', $old;
    ok($t->wait_until(20, 'the second helper', sub { $t->supervisors == 2 && -s "$t->{dir}/nginx.pid" }), 'a second helper');
    my $second = ($t->supervisors)[-1];
    chomp($t->{pid} = $t->read('nginx.pid'));
    kill 'WINCH', $old;
    ok($t->wait_until(20, 'old workers leave', sub { !grep { $_ != $t->{pid} } $t->workers($old) }),
        'the old workers left, their master stays');
    ok($t->wait_until(30, 'the second serves', sub { $t->workers($second) }), 'the second helper serves');
    state_is($t, 'active', 'active');
    is(scalar($t->workers($first)), 0, 'the first one has no agent');
    # The old version is wanted back: its workers call its own helper again.
    kill 'HUP', $old;
    ok($t->wait_until(20, 'old workers', sub { grep { $_ != $t->{pid} } $t->workers($old) }),
        'workers of the old master again');
    kill 'QUIT', $t->{pid};
    ok($t->wait_until(30, 'the new master leaves', sub { $t->gone($t->{pid}) && $t->gone($second) }), 'the new one leaves');
    $t->{pid} = $old;
    ok($t->wait_until(30, 'the first serves', sub { $t->workers($first) }), 'the first helper serves again');
    state_is($t, 'active', 'active');
    $t->finish;
};

subtest 'a binary upgrade that is taken back' => sub {
    my $t = new_app(daemon => 1);
    $t->start;
    state_is($t, 'active', 'active');
    my ($old, $first) = ($t->{pid}, $t->supervisors);
    kill 'USR2', $old;
    ok($t->wait_until(20, 'the second helper', sub { $t->supervisors == 2 && -s "$t->{dir}/nginx.pid" }), 'a second helper');
    my $second = ($t->supervisors)[-1];
    chomp(my $new = $t->read('nginx.pid'));
    kill 'QUIT', $new;
    ok($t->wait_until(30, 'the new master leaves', sub { $t->gone($new) }), 'the new master left');
    ok($t->wait_until(10, 'its helper ends', sub { $t->gone($second) }), 'and its helper');
    ok(!$t->gone($first), 'the first one goes on');
    is(state_is($t, 'active', 'active')->{generation}, 1, 'with its configuration');
    $t->finish;
};

subtest 'a helper of another version, and one that is none' => sub {
    my $t = new_app();
    $t->allow_log(qr/\[emerg\].*does not start/);
    # Speaks protocol 9, whatever it is asked.
    my $other = $t->write('other-helper', <<'PERL');
#!/usr/bin/perl
use Socket;
open my $control, '+<&=', 3;
recv $control, my $message, 65536, 0;
my ($magic, $version, $verb, $id) = unpack 'LSSL', $message;
send $control, pack('LSSLL', $magic, 9, 4, $id, 0), 0;
sleep 1;
PERL
    chmod 0755, $other;
    $t->{helper} = $other;
    my $fails = sub {
        my ($name, $re) = @_;
        $t->write('error.log', '');
        $t->write('nginx.conf', $t->conf);
        my @command = $t->command;
        my $pid = fork // die;
        if (!$pid) {
            open STDERR, '>', '/dev/null';
            exec @command or POSIX::_exit(127);
        }
        ok($t->wait_until(20, 'nginx ends', sub { waitpid($pid, POSIX::WNOHANG()) == $pid }), "$name: nginx does not start");
        isnt($?, 0, "$name: and says so");
        like(join("\n", grep { /emerg/ } $t->log_lines), $re, "$name: with the reason");
    };
    $fails->('another version', qr/speaks protocol 9.*protocol \d+.*restart nginx/);
    $t->write('none', "#!/bin/sh\nexit 0\n");
    chmod 0755, $t->{helper} = "$t->{dir}/none";
    $fails->('no helper', qr/does not start: it ended/);
    $t->write('broken', "#!/nowhere/at/all\n");
    chmod 0755, $t->{helper} = "$t->{dir}/broken";
    $fails->('not executable', qr/cannot be executed/);
    # Replaced while nginx runs: a reload is no reason to stop.
    $t->{helper} = $program;
    $t->write('error.log', '');
    $t->start;
    state_is($t, 'active', 'the right one');
    my ($supervisor) = $t->supervisors;
    $t->write('nginx.conf', $t->conf =~ s/backup_helper [^;]+;/backup_helper $other;/r);
    $t->hup;
    my $status = state_is($t, 'down', 'a wrong one after a reload: down');
    like($status->{detail}, qr/speaks protocol 9/, 'the status says why');
    is($t->get('')->{status}, 200, 'nginx goes on');
    $t->write('nginx.conf', $t->conf);
    $t->hup;
    state_is($t, 'active', 'the right one again');
    $t->finish;
};

# The helper as a service: its process, once it listens.
sub start_service {
    my ($t, $path) = @_;
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        open STDERR, '>', "$t->{dir}/service.log";
        # With what the systemd unit leaves to it.
        my ($unit) = map { /^CapabilityBoundingSet=(.*)/m } slurp("$FindBin::Bin/../conf/ngx-backup-helper.service");
        my $set = join ',', '-all', map { '+' . lc s/^CAP_//r } split ' ', $unit;
        exec 'setpriv', '--bounding-set', $set, '--no-new-privs', $program, '--listen', $path or POSIX::_exit(127);
    }
    ok($t->wait_until(10, 'the socket', sub { -S $path || waitpid($pid, POSIX::WNOHANG()) == $pid }), 'the service listens');
    return $pid;
}

sub slurp {
    my ($file) = @_;
    open my $in, '<', $file or die "$file: $!";
    local $/;
    return scalar <$in>;
}

sub stop_service {
    my ($pid) = @_;
    kill 'TERM', $pid;
    waitpid $pid, 0;
    return $?;
}

subtest 'as a service of its own' => sub {
    my $t = new_app(daemon => 1);
    my $path = "$t->{dir}/helper.sock";
    $t->{helper} = "external unix:$path";
    $t->start;
    like(state_is($t, 'down', 'without the service: down')->{detail}, qr/start its service, then reload nginx/, 'with what to do');
    my $service = start_service($t, $path);
    is((stat $path)[2] & 0777, 0600, 'only root may connect');
    $t->hup;
    my $status = state_is($t, 'active', 'a reload connects');
    my ($session) = $t->supervisors;
    is(($t->workers($service))[0], $session, 'the supervisor belongs to the service');
    is($status->{pid}, agent($t), 'and has an agent');
    # The runtime of a sanitizer makes system calls of its own.
    ok($status->{caged} || $ENV{NGX_SANITIZE}, 'with all its walls') or diag(explain($status));
    $t->hup;
    ok($t->wait_until(20, 'generation 3', sub { (helper_status($t)->{generation} // 0) >= 3 }), 'a reload keeps the connection');
    is_deeply([$t->supervisors], [$session], 'to the same supervisor');
    # Nobody but root: a worker of the web server that found the socket.
    my $refused = fork // die;
    if (!$refused) {
        chmod 0777, $path;
        POSIX::setuid(65534);
        require Socket;
        socket my $s, Socket::AF_UNIX(), Socket::SOCK_SEQPACKET(), 0 or POSIX::_exit(2);
        connect $s, Socket::pack_sockaddr_un($path) or POSIX::_exit(3);
        my $got = sysread $s, my $byte, 1;
        POSIX::_exit(defined $got && $got == 0 ? 0 : 4);
    }
    waitpid $refused, 0;
    is($? >> 8, 0, 'another user is turned away');
    isnt(system("$program --listen $path 2>/dev/null"), 0, 'a second service does not take the socket away');
    my @all = ($service, $t->below($service));
    is(stop_service($service), 0, 'the service ends when asked');
    ok($t->wait_until(5, 'all end', sub { !grep { !$t->gone($_) } @all }), 'with everything below it');
    ok(!-e $path, 'and without its socket');
    state_is($t, 'down', 'workers see it');
    is($t->backup->{status}, 'completed', 'and go on with their own rights');
    $service = start_service($t, $path);
    $t->hup;
    state_is($t, 'active', 'a reload connects again');
    my $second = ($t->supervisors)[-1];
    my @workers = $t->workers;
    kill 'KILL', $t->{pid};
    ok($t->wait_until(5, 'the session ends', sub { $t->gone($second) }), 'kill -9 of the master ends its supervisor');
    ok(!$t->gone($service), 'not the service');
    kill 'TERM', @workers;
    ok($t->wait_until(10, 'workers end', sub { !grep { !$t->gone($_) } @workers }), 'stopped');
    $t->{pid} = 0;
    stop_service($service);
    $t->finish;
};

subtest 'where the service may listen' => sub {
    my $t = new_app();
    my $complains = sub {
        my ($path, $re, $name) = @_;
        my $said = `$program --listen $path 2>&1`;
        is($? >> 8, 1, "$name: refused");
        like($said, $re, $name);
    };
    mkdir "$t->{dir}/open";
    chmod 0777, "$t->{dir}/open";
    $complains->("$t->{dir}/open/h.sock", qr/nobody else may write to/, 'a directory that others may write to');
    $complains->('helper.sock', qr/absolute path/, 'a relative path');
    $complains->('/nowhere/h.sock', qr/No such file/, 'a missing directory');
    $complains->('/tmp/' . 'x' x 200, qr/107 bytes/, 'a long path');
    like(`$program 2>&1 </dev/null`, qr/nginx starts it by itself/, 'by hand it says what it is');
    is($? >> 8, 2, 'and fails');
    like(`$program --version`, qr/^ngx-backup-helper \d+\.\S+ \(protocol \d+\)$/, '--version');
    $t->finish;
};

subtest 'one process' => sub {
    my $t = new_app(main => 'thread_pool backup threads=2; master_process off;');
    $t->start;
    state_is($t, 'active', 'active under master_process off');
    $t->finish;
};

subtest 'nothing written, nothing installed' => sub {
    plan skip_all => 'a helper is installed on this machine' if -e '/usr/lib/ngx-backup/ngx-backup-helper';
    my $t = new_app(helper => '');
    $t->start;
    like(state_is($t, 'off', 'off')->{detail}, qr/is not installed: workers use their own rights/, 'and why');
    ok($t->logs(qr/\[warn\].*no privileged helper.*or write "backup_helper off"/), 'the log warns');
    is($t->get('/health')->{json}{checks}{'helper:state'}, undef, 'health has nothing to say');
    is($t->backup->{status}, 'completed', 'a backup');
    my $id = $t->post('/test', {})->{json}{id};
    is($t->wait_job($id)->{status}, 'completed', 'the self-test passes');
    $t->finish;
};

subtest 'what nginx -t says' => sub {
    my $t = new_app();
    $t->allow_log(qr/\[emerg\].* in .*nginx\.conf:\d+/);
    my $refuses = sub {
        my ($helper, $re, $name) = @_;
        $t->{helper} = $helper;
        my ($ok, $said) = $t->check;
        ok(!$ok, "$name: refused");
        like($said, $re, $name);
        like($said, qr/nginx\.conf:\d+/, "$name: with file and line");
    };
    $refuses->('/nowhere/helper', qr/install ngx-backup-helper there, or write "backup_helper off"/, 'missing');
    $refuses->("$t->{dir}", qr/not an executable file/, 'a directory');
    $refuses->('helper', qr/must be the absolute path/, 'relative');
    $refuses->('external', qr/needs the socket of the service: unix:PATH/, 'external without a socket');
    $refuses->('external /run/x', qr/unix:PATH/, 'external without unix:');
    $refuses->("$program twice", qr/too many parameters/, 'two values');
    $refuses->("off; backup_helper off", qr/is duplicate/, 'twice');
    $t->write('open', "#!/bin/sh\n");
    chmod 0777, "$t->{dir}/open";
    $refuses->("$t->{dir}/open", qr/can be changed by others than root/, 'writable by others');
    mkdir "$t->{dir}/theirs";
    $t->write('theirs/helper', "#!/bin/sh\n");
    chmod 0755, $t->{helper} = "$t->{dir}/theirs/helper";
    chown 65534, 65534, "$t->{dir}/theirs";
    my (undef, $warned) = $t->check;
    like($warned, qr{\[warn\].*others than root can replace it.*/theirs"}, "somebody else's directory: warned");
    $t->{helper} = $program;
    my ($ok, $said) = $t->check;
    ok($ok, 'the right one is accepted') or diag($said);
    is(scalar($t->supervisors), 0, 'and not started by nginx -t');
    my $many = join ' ', map { "restore_root $t->{dir}/r$_;" } 1 .. 256;
    my $conf = $t->conf =~ s/restore_root [^;]+;/$many/r;
    $t->allow_log(qr/takes at most 256/);
    ($ok, $said) = $t->check($conf);
    ok(!$ok, 'more directories than a helper takes: refused');
    like($said, qr/"app": the privileged helper takes at most 256 .*: configure fewer, or "backup_helper off"/, 'and says what to do');
    ($ok, $said) = $t->check($conf =~ s/backup_helper [^;]+;/backup_helper off;/r);
    ok($ok, 'without it there may be more') or diag($said);

    # A running nginx goes on with what it has, and says so.
    $t->start;
    state_is($t, 'active', 'active before');
    my $more = $t->conf =~ s/restore_root [^;]+;/$many/r;
    $t->write('nginx.conf', $more);
    $t->hup;
    ok($t->wait_until(20, 'a word', sub { (helper_status($t)->{detail} // '') =~ /see the error log/ }), 'after a reload with more the status tells')
        or diag(explain helper_status($t));
    $t->finish;
};

done_testing;
