package NgxBackup;

# t/lib/NgxBackup.pm: a real nginx with the module, in a directory and on a port of its own.
#
#   my $t = NgxBackup->new(user => 'www-data');      # or as the invoker; conf parts: main, http, set, server, location
#   $t->start;
#   my $r = $t->post('/create', {backup_type => 'full'});        # {status, headers, json, content}
#   $t->wait_job($r->{json}{id});
#
# $NGINX and $NGX_MODULE choose the binaries; $NGX_BACKUP_BUILD the build directory (default build), whose own nginx is
# taken when there is one.  Everything is awaited
# with a bound.  The end of the object stops nginx and fails the test when the log has an [alert], [emerg] or "unknown
# process", or when a process is left: say allow_log(qr/…/) for what a test provokes itself.

use strict;
use warnings;

use Cwd qw(abs_path);
use Digest::SHA qw(sha256_hex);
use File::Basename qw(basename dirname);
use File::Copy qw(copy);
use File::Path qw(make_path remove_tree);
use File::Temp qw(tempdir);
use Exporter qw(import);
use HTTP::Tiny;
use IO::Socket::INET;
use JSON::PP;
use POSIX qw(:sys_wait_h setpgid _exit);
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(cli cli_is);

my $root = abs_path(dirname(__FILE__) . '/../..');
my $build = abs_path($ENV{NGX_BACKUP_BUILD} // "$root/build") // "$root/build";
# nginx itself takes $NGINX for sockets that it inherits, and would not become a daemon.
our $nginx = delete $ENV{NGINX} // (grep { -x } "$build/nginx/objs/nginx", '/usr/sbin/nginx')[0] // 'nginx';
our $module = $ENV{NGX_MODULE} // "$build/ngx_http_backup_module.so";
our $program = "$build/ngx-backup";
our $helper = "$build/ngx-backup-helper";
our $json = JSON::PP->new->canonical->allow_nonref;
our %token = map { $_ => "nxb_test_token_of_$_" } qw(viewer operator admin);

# The sanitized module needs its runtime before anything else; nginx itself frees little at its end.
my @preload;
if ($ENV{NGX_SANITIZE}) {
    chomp(my $asan = `gcc -print-file-name=libasan.so`);
    chomp(my $ubsan = `gcc -print-file-name=libubsan.so`);
    @preload = ("LD_PRELOAD=$asan:$ubsan", 'ASAN_OPTIONS=detect_leaks=0:abort_on_error=1',
        'UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1');
}

# A test that is stopped, or whose reader is gone, ends its nginx too.
$SIG{$_} = sub { exit 1 } for qw(INT TERM HUP PIPE);

BAIL_OUT("$module is missing: make module") unless -e $module;

sub free_port {
    my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', LocalPort => 0) or die "no free port: $!";
    return $s->sockport;
}

sub new {
    my ($class, %arg) = @_;
    my $self = bless {workers => 2, allowed => [], pid => 0, owner => $$, daemon => 0, %arg}, $class;
    $self->{user} = undef if $> != 0;
    $self->{dir} = tempdir('ngx-backup-test.XXXXXX', TMPDIR => 1, CLEANUP => 0);
    chmod 0755, $self->{dir};
    $self->{port} = free_port();
    make_path(map { "$self->{dir}/$_" } qw(app/uploads app/transcripts backups storage restored tmp html));
    $self->write('tokens', join '', map { "$_:$_:" . sha256_hex($token{$_}) . "\n" } sort keys %token);
    chmod 0600, "$self->{dir}/tokens";
    $self->own(qw(app app/uploads app/transcripts backups storage restored tmp html));
    return $self;
}

# Give files to the workers' user.
sub own {
    my ($self, @names) = @_;
    return unless defined $self->{user};
    my ($uid, $gid) = (getpwnam $self->{user})[2, 3];
    chown $uid, $gid, map { m{^/} ? $_ : "$self->{dir}/$_" } @names;
    return;
}

sub write {
    my ($self, $name, $content) = @_;
    my $path = $name =~ m{^/} ? $name : "$self->{dir}/$name";
    make_path(dirname $path);
    open my $out, '>:raw', $path or die "$path: $!";
    print {$out} $content;
    close $out or die "$path: $!";
    $self->own($path) if $path =~ m{/app/};
    return $path;
}

# Another user may not be able to look into the build directory: a copy of what it runs or loads, for everybody.
sub lend {
    my ($self, $path) = @_;
    my $copy = "$self->{dir}/" . basename($path);
    copy($path, $copy) && chmod 0755, $copy or die "$path: $!";
    return $copy;
}

sub read {
    my ($self, $name) = @_;
    my $path = $name =~ m{^/} ? $name : "$self->{dir}/$name";
    open my $in, '<:raw', $path or return;
    local $/;
    return scalar <$in>;
}

sub set_conf {
    my ($self) = @_;
    my $dir = $self->{dir};
    return $self->{set} // <<CONF;
    backup app {
        base_dir $dir/backups;
        files uploads { path $dir/app/uploads; exclude *.tmp; }
        storage local disk { path $dir/storage; }
        restore_root $dir/restored;
        restore_in_place on;
        min_free 0;
        thread_pool backup;
        @{[ $self->{set_more} // '' ]}
    }
CONF
}

sub conf {
    my ($self) = @_;
    my $dir = $self->{dir};
    my $user = $> == 0 ? 'user ' . ($self->{user} // 'root') . ';' : '';
    my $daemon = $self->{daemon} ? 'on' : 'off';
    my $location = $self->{location} // <<CONF;
        location /admin/backup {
            backup_api app;
            backup_auth bearer;
            backup_token_file $dir/tokens;
        }
        location = /health { backup_health app; }
CONF
    # What is installed on this machine is not what is tested.
    my $http = $self->{http} // '';
    my $helper = $self->{helper} // 'off';
    $helper = $http =~ /backup_helper/ || $helper eq '' ? '' : "backup_helper $helper;";
    # A binary upgrade starts from the environment that nginx was told to keep.
    my $env = join ' ', map { 'env ' . (split /=/)[0] . ';' } @preload;
    return <<CONF;
load_module $module;
$env
daemon $daemon;
pid $dir/nginx.pid;
error_log $dir/error.log @{[ $self->{log_level} // 'notice' ]};
$user
worker_processes $self->{workers};
@{[ $self->{main} // 'thread_pool backup threads=4 max_queue=512;' ]}
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path $dir/tmp/body;
    proxy_temp_path $dir/tmp/proxy;
    fastcgi_temp_path $dir/tmp/fastcgi;
    uwsgi_temp_path $dir/tmp/uwsgi;
    scgi_temp_path $dir/tmp/scgi;
    $helper
    $http
@{[ $self->set_conf ]}
    server {
        listen 127.0.0.1:$self->{port};
        root $dir/html;
        @{[ $self->{server} // '' ]}
$location
    }
}
CONF
}

sub command {
    my ($self, @more) = @_;
    return ('env', @preload, $nginx, '-p', $self->{dir}, '-c', "$self->{dir}/nginx.conf", '-e', "$self->{dir}/error.log",
        @more);
}

# nginx -t with this configuration: (accepted, what it said)
sub check {
    my ($self, $conf) = @_;
    $self->write('nginx.conf', $conf // $self->conf);
    my @command = $self->command('-t', '-q');
    my $pid = open my $out, '-|' // die;
    if (!$pid) {
        open STDERR, '>&', \*STDOUT;
        exec @command or _exit(127);
    }
    my $said = do { local $/; <$out> } // '';
    close $out;
    return ($? == 0, $said);
}

sub wait_until {
    my ($self, $seconds, $what, $check) = @_;
    my $until = time + $seconds;
    while (1) {
        my $got = $check->();
        return $got if $got;
        last if time > $until;
        sleep 0.02;
    }
    diag("not within $seconds s: $what");
    return;
}

sub start {
    my ($self) = @_;
    $self->write('nginx.conf', $self->conf);
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        setpgid(0, 0);
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', "$self->{dir}/stdout.log";
        open STDERR, '>>', "$self->{dir}/stdout.log";
        exec $self->command or _exit(127);
    }
    $self->{group} = $pid;
    if ($self->{daemon}) {
        waitpid $pid, 0;
        $self->wait_until(10, 'pid file', sub { -s "$self->{dir}/nginx.pid" });
        chomp($pid = $self->read('nginx.pid') // 0);
    } else {
        setpgid($pid, $pid);
    }
    $self->{pid} = $pid;
    $self->wait_until(20, 'nginx answers', sub {
        return 1 if IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port});
        return 1 if !$self->{daemon} && waitpid($pid, WNOHANG) == $pid;
        return;
    });
    BAIL_OUT('nginx does not start: ' . ($self->read('error.log') // '') . ($self->read('stdout.log') // ''))
        unless IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port});
    return $self;
}

sub http {
    my ($self) = @_;
    return $self->{http_client} //= HTTP::Tiny->new(timeout => 60, keep_alive => 0, agent => 'test');
}

# One request.  body: a JSON value, or \"raw bytes".  token: a role's name, '' for none.
sub request {
    my ($self, $method, $path, %arg) = @_;
    my %headers = %{ $arg{headers} // {} };
    my $token = $arg{token} // 'admin';
    $headers{authorization} = 'Bearer ' . ($token{$token} // $token) if $token ne '';
    my %options = (headers => \%headers);
    if (exists $arg{body}) {
        $options{content} = ref $arg{body} eq 'SCALAR' ? ${ $arg{body} } : $json->encode($arg{body});
        $headers{'content-type'} //= 'application/json';
    }
    my $prefix = $path =~ m{^//} ? '' : '/admin/backup';
    (my $rest = $path) =~ s{^//}{/};
    my $r = $self->http->request($method, "http://127.0.0.1:$self->{port}$prefix$rest", \%options);
    $r->{json} = eval { $json->decode($r->{content}) };
    return $r;
}

sub get { my ($self, $path, %arg) = @_; return $self->request('GET', $path, %arg) }
sub post { my ($self, $path, $body, %arg) = @_; return $self->request('POST', $path, body => $body, %arg) }

sub wait_job {
    my ($self, $id, $seconds) = @_;
    my $job;
    $self->wait_until($seconds // 60, "the end of job $id", sub {
        my $r = $self->get("/jobs/$id?wait=5");
        $job = $r->{json} if $r->{status} == 200;
        return $job && $job->{done};
    });
    return $job;
}

# Make a backup and wait for it.
sub backup {
    my ($self, $body) = @_;
    my $r = $self->post('/create', $body // {backup_type => 'full'});
    return $r->{json} unless $r->{status} == 202;
    return $self->wait_job($r->{json}{id});
}

# It does, or soon will.
sub logs {
    my ($self, $pattern) = @_;
    return $self->wait_until(10, "log: $pattern", sub { grep { /$pattern/ } $self->log_lines });
}

sub log_lines { my ($self) = @_; return split /\n/, $self->read('error.log') // '' }
sub allow_log { my ($self, @re) = @_; push @{ $self->{allowed} }, @re; return }

# Process ids of the workers, or of the one that runs the jobs.
sub workers {
    my ($self, $master) = @_;
    $master //= $self->{pid};
    my @pids = map { m{/(\d+)/} } glob '/proc/[0-9]*/stat';
    return grep {
        my $stat = $self->read("/proc/$_/stat") // '';
        $stat =~ /\) [^Z] (\d+)/ && $1 == $master
    } @pids;
}

sub runner {
    my ($self) = @_;
    my ($pid) = map { /\] (\d+)#\d+: backup .* runs its jobs now/ } reverse $self->log_lines;
    return $pid;
}

# Seconds of CPU that a process has used.
sub cpu {
    my ($self, $pid) = @_;
    my $stat = $self->read("/proc/$pid/stat") or return;
    my @field = split ' ', $stat =~ s/^.*\) //sr;
    return ($field[11] + $field[12]) / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

sub hup {
    my ($self) = @_;
    my $before = () = grep { /reconfiguring/ } $self->log_lines;
    kill 'HUP', $self->{pid};
    $self->wait_until(10, 'the reload', sub { (grep { /reconfiguring/ } $self->log_lines) > $before });
    return;
}

sub gone { my ($self, $pid) = @_; return !kill(0, $pid) || ($self->read("/proc/$pid/stat") // '') =~ /\) Z / }

sub stop {
    my ($self, $signal) = @_;
    return unless $self->{pid};
    kill $signal // 'QUIT', $self->{pid};
    my $ended = $self->wait_until(30, 'nginx ends', sub {
        return waitpid($self->{pid}, WNOHANG) != 0 unless $self->{daemon};
        return $self->gone($self->{pid});
    });
    if (!$ended) {
        kill 'KILL', -$self->{pid};
        waitpid $self->{pid}, 0 unless $self->{daemon};
        fail('nginx ended by itself');
    }
    $self->{pid} = 0;
    return;
}

# Supervisors of the privileged helper that nginx has spoken to, the newest last.
sub supervisors {
    my ($self) = @_;
    my %last;
    my @named = map { /privileged helper \S+, process (\d+)/ } $self->log_lines;
    $last{ $named[$_] } = $_ for 0 .. $#named;
    my @order = sort { $last{$a} <=> $last{$b} } keys %last;
    return @order;
}

# Process ids below a process, at any depth.
sub below {
    my ($self, @parents) = @_;
    my @children = map { $self->workers($_) } @parents;
    push @children, $self->below(@children) if @children;
    return @children;
}

# What holds after every test, whatever it was about.
sub finish {
    my ($self) = @_;
    return if $self->{finished}++;
    $self->stop;
    my @bad = grep { /\[(?:alert|emerg)\]|unknown process|AddressSanitizer|runtime error:/ }
        $self->log_lines, split /\n/, $self->read('stdout.log') // '';
    for my $re (@{ $self->{allowed} }) {
        @bad = grep { $_ !~ $re } @bad;
    }
    is_deeply(\@bad, [], 'nothing alarming in the log');
    # A killed worker may take a moment to vanish.
    return unless $self->{group};
    my $left = sub { grep { kill 0, $_ } map { m{/(\d+)/} } grep {
            (($self->read("$_") // '') =~ /\) [^Z] \d+ (\d+)/) && $1 == $self->{group} } glob '/proc/[0-9]*/stat' };
    $self->wait_until(5, 'no process left', sub { !$left->() });
    is(scalar($left->()), 0, 'no process left');
    if (my @supervisors = $self->supervisors) {
        ok($self->wait_until(5, 'the helper ends', sub { !grep { !$self->gone($_) } @supervisors }), 'no helper left');
    }
    diag(join "\n", $self->log_lines) if $ENV{SHOW_LOG};
    return;
}

sub DESTROY {
    my ($self) = @_;
    return if $$ != $self->{owner};
    local ($?, $@);
    if ($self->{group} && !$self->{finished}) {
        # A server in the background is not in the group, and there may be two after an upgrade.
        my @said = grep { $_ } $self->{pid}, map { $self->read($_) } 'nginx.pid', 'nginx.pid.oldbin';
        my @pids = grep { !$self->gone($_) } map { /^(\d+)$/ } @said;
        if (@pids) {
            kill 'KILL', -$self->{group}, @pids, $self->below(@pids);
            waitpid $self->{pid}, 0 if $self->{pid} && !$self->{daemon};
            diag('finish was not called');
        }
    }
    remove_tree($self->{dir}) if $self->{dir} && !$ENV{KEEP};
    return;
}

# A database as its application opens it.
sub connect_db {
    my ($path) = @_;
    my $db = DBI->connect("dbi:SQLite:dbname=$path", '', '', { RaiseError => 1, PrintError => 0 });
    $db->sqlite_busy_timeout(20_000);
    return $db;
}

# What status says of the first captured database; {} when it says nothing.
sub capture {
    my ($t) = @_;
    my $r = $t->get('/status');
    return {} unless $r->{status} == 200;
    my $found = {};
    my @todo = $r->{json};
    while (@todo) {
        my $one = shift @todo;
        if (ref $one eq 'HASH') {
            $found = $one->{captures}[0] if $one->{captures};
            push @todo, grep { ref } values %{$one};
        }
    }
    return $found // {};
}

# --- the command line, as an operator types it ---

# From now on it knows where nginx is, and its token.
sub operator {
    my ($t) = @_;
    $t->write('token', "$token{admin}\n");
    chmod 0600, "$t->{dir}/token";
    $ENV{NGX_BACKUP_URL} = "http://127.0.0.1:$t->{port}/admin/backup";
    $ENV{NGX_BACKUP_TOKEN_FILE} = "$t->{dir}/token";
    return;
}

# Exit code and what it prints.
sub cli {
    my (@arguments) = @_;
    my $pid = open my $pipe, '-|';
    die "fork: $!" unless defined $pid;
    if (!$pid) {
        open STDERR, '>&', \*STDOUT;
        exec $program, @arguments or die "$program: $!";
    }
    my $output = do { local $/; <$pipe> } // '';
    close $pipe;
    return ($? >> 8, $output);
}

# A test of both; what it printed.
sub cli_is {
    my ($name, $code, $pattern, @arguments) = @_;
    my ($got, $output) = cli(@arguments);
    ok($got == $code && $output =~ $pattern, $name)
        or diag("ngx-backup @arguments: exit $got, wanted $code and $pattern:\n$output");
    return $output;
}

1;
