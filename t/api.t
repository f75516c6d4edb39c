#!/usr/bin/perl
# Routes, methods, media types, limits, and the problem documents of everything that can be wrong with a request.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use NgxBackup;
use Test::More;

my $t = NgxBackup->new(user => 'www-data');
my $dir = $t->{dir};
$t->{location} = <<CONF;
        location /admin/backup {
            backup_api app;
            backup_auth bearer;
            backup_token_file $dir/tokens;
        }
        location /slash/ { backup_api app; backup_auth external role=admin; client_body_buffer_size 1k; }
        location /limit { backup_api app; backup_auth external role=admin; limit_except GET { allow all; } }
        location /if { backup_api app; backup_auth external role=admin; if (\$arg_x) { set \$y 1; } }
        location /small { backup_api app; backup_auth external role=admin; client_max_body_size 10; }
        location = /again { rewrite ^ /admin/backup/config; }
        location = /health { backup_health app; }
CONF
$t->start;

sub problem_is {
    my ($name, $r, $status, $code) = @_;
    is($r->{status}, $status, "$name: $status");
    is($r->{headers}{'content-type'}, 'application/problem+json', "$name: media type");
    is($r->{headers}{'cache-control'}, 'no-store', "$name: not cached");
    my $p = $r->{json} // {};
    is($p->{status}, $status, "$name: status in the document");
    is($p->{code}, $code, "$name: code");
    ok(length($p->{$_} // ''), "$name: has $_") for qw(type title detail instance request_id);
    return $p;
}

for my $path ('', '/') {
    my $r = $t->get($path);
    is($r->{status}, 200, "index at '$path'");
    is($r->{json}{backup}, 'app', "index at '$path': names the set");
    is($r->{json}{links}{status}, '/admin/backup/status', "index at '$path': links");
}
is($t->get('//slash/', token => '')->{json}{links}{list}, '/slash/list', 'a location with a slash');
is($t->get('//again')->{json}{name}, $t->get('/config')->{json}{name}, 'after a rewrite');

$t->wait_until(20, 'status', sub { $t->get('/status')->{status} == 200 }) or fail('no status');
my $r = $t->get('/status');
is($r->{headers}{'content-type'}, 'application/json', 'status is JSON');
is($r->{headers}{'cache-control'}, 'no-store', 'and not cached');
like($r->{headers}{'x-request-id'}, qr/^[0-9a-f]{32}$/, 'X-Request-ID');
for my $member (qw(orchestrator database files compression current_operations)) {
    ok(exists $r->{json}{backup_system}{$member}, "status has backup_system.$member");
}
# The tag changes only with the content, which may be just about to: bounded tries.
my $same;
for (1 .. 5) {
    my $tag = $t->get('/status')->{headers}{etag};
    $same = $t->get('/status', headers => {'If-None-Match' => $tag});
    last if $same->{status} == 304;
}
is($same->{status}, 304, 'If-None-Match');
is($same->{content} // '', '', 'without a body');
$r = $t->request('HEAD', '/status');
is($r->{status}, 200, 'HEAD');
is($r->{content} // '', '', 'HEAD has no body');
cmp_ok($r->{headers}{'content-length'}, '>', 100, 'but its length');
my $config = $t->get('/config')->{content};
like($config, qr/uploads/, 'config tells the sources');

problem_is('unknown resource', $t->get('/nowhere'), 404, 'NotFound');
problem_is('too deep', $t->get('/jobs/a/b/c'), 404, 'NotFound');
problem_is('only a prefix of a name', $t->get('x'), 404, 'NotFound');
problem_is('empty part', $t->get('/jobs//cancel'), 404, 'NotFound') if 0;    # nginx merges slashes
problem_is('strange id', $t->get('/backups/a%2f..%2fb'), 404, 'NotFound');
problem_is('id with a blank', $t->get('/backups/a%20b'), 404, 'NotFound');
problem_is('very long id', $t->get('/backups/' . 'a' x 500), 404, 'NotFound');
problem_is('no such backup', $t->get('/backups/full_20000101_000000'), 404, 'NotFound');
problem_is('no such job', $t->get('/jobs/full_20000101_000000'), 404, 'NotFound');
problem_is('cancel of no job', $t->request('POST', '/jobs/full_20000101_000000/cancel'), 404, 'NotFound');

for my $case (
    ['POST', '/status', 'GET, HEAD'], ['PUT', '/list', 'GET, HEAD'], ['GET', '/create', 'POST'], ['DELETE', '/jobs/x', 'GET, HEAD'],
    ['POST', '/backups/x', 'GET, HEAD, DELETE'], ['GET', '/jobs/x/cancel', 'POST'], ['OPTIONS', '/', 'GET, HEAD'],
    ['POST', '//health', 'GET, HEAD'],
  ) {
    my ($method, $path, $allow) = @$case;
    $r = $t->request($method, $path);
    problem_is("$method $path", $r, 405, 'MethodNotAllowed');
    is($r->{headers}{allow}, $allow, "$method $path: Allow");
}

problem_is('not JSON', $t->post('/create', \'{"backup_type": '), 400, 'Malformed');
problem_is('garbage after it', $t->post('/create', \'{} x'), 400, 'Malformed');
problem_is('a member twice', $t->post('/create', \'{"tags": [], "tags": []}'), 400, 'Malformed');
problem_is('not UTF-8', $t->post('/create', \"{\"description\": \"\xff\"}"), 400, 'Malformed');
problem_is('a NUL', $t->post('/create', \"{\"description\": \"\\u0000\"}"), 400, 'Malformed');
problem_is('nested too deep', $t->post('/create', \('[' x 5000 . ']' x 5000)), 400, 'Malformed');
problem_is('not an object', $t->post('/create', \'[]'), 422, 'Invalid');
problem_is('form data', $t->post('/create', \'backup_type=full', headers => {'content-type' => 'application/x-www-form-urlencoded'}),
    415, 'UnsupportedMediaType');
problem_is('nearly the media type', $t->post('/create', \'{}', headers => {'content-type' => 'application/jsonx'}), 415,
    'UnsupportedMediaType');
my $p = problem_is('unknown member', $t->post('/create', {backup_typ => 'full'}), 422, 'Invalid');
is($p->{errors}[0]{pointer}, '#/backup_typ', 'points at it');
$p = problem_is('wrong types', $t->post('/create', {backup_type => 5, upload_to_storage => 'maybe'}), 422, 'Invalid');
is(scalar @{ $p->{errors} }, 2, 'all of them at once');
is($t->post('/create', {backup_type => 'x'}, headers => {'content-type' => 'application/json; charset=utf-8'})->{status}, 422,
    'a charset is fine');
problem_is('unknown type', $t->post('/create', {backup_type => 'weird'}), 422, 'Invalid');
problem_is('recovery without a type', $t->post('/recovery', {}), 422, 'Invalid');
problem_is('a target outside every restore_root',
    $t->post('/recovery', {recovery_type => 'files', restore_to_original => JSON::PP::false, target_directory => '/etc/x'}), 403,
    'Forbidden');

problem_is('a very long Idempotency-Key', $t->post('/create', {}, headers => {'Idempotency-Key' => 'k' x 300}), 422, 'Invalid');

# Sizes: 64 KiB is the limit however the body comes, and a body in a temporary file is read like any other.
my $fits = {backup_type => 'weird', description => 'x' x 60_000};
problem_is('a large body in memory', $t->post('/create', $fits), 422, 'Invalid');
problem_is('a large body in a file', $t->request('POST', '//slash/create', token => '', body => $fits), 422, 'Invalid');
problem_is('too large', $t->post('/create', {description => 'x' x 70_000}), 413, 'TooLarge');
sub chunked {
    my ($path, $bytes) = @_;
    my $left = $bytes;
    my $head = '{"x": "';
    my $r = $t->http->request('POST', "http://127.0.0.1:$t->{port}$path", {
        headers => {'content-type' => 'application/json', authorization => "Bearer $NgxBackup::token{admin}"},
        content => sub {
            if ($head ne '') { my $h = $head; $head = ''; return $h }
            return '' if $left <= 0;
            $left -= 8192;
            return 'y' x 8192;
        },
    });
    $r->{json} = eval { $NgxBackup::json->decode($r->{content}) };
    return $r;
}
problem_is('too large in chunks', chunked('/admin/backup/create', 100_000), 413, 'TooLarge');
problem_is('far too large in chunks', chunked('/admin/backup/create', 2_000_000), 413, 'TooLarge');
problem_is("more than nginx's own limit", $t->request('POST', '//small/create', token => '', body => {backup_type => 'weird'}), 413,
    'TooLarge');
problem_is('limit_except keeps the handler', $t->request('POST', '//limit/create', token => '', body => {x => 1}), 422, 'Invalid');
is($t->get('//if/?x=', token => '')->{status}, 200, 'a location with if, when it is false');

for my $query ('limit=0', 'limit=501', 'limit=x', 'since=yesterday', 'until=2025-99-01', 'typ=full', '=x', 'limit', 'ag=5', 'torage=x',
    'tag%20=x', 'type%20since=x', 'type+since=x', 'TYPE=full') {
    problem_is("list?$query", $t->get("/list?$query"), 422, 'Invalid');
}
problem_is('status with a parameter it does not have', $t->get('/jobs?wait=3'), 422, 'Invalid');
$r = $t->get('/list?limit=5&type=full&since=2020-01-01T00:00:00%2B02:00');
is($r->{status}, 200, 'list with filters') or diag($r->{content});
is_deeply($r->{json}{backups}, [], 'nothing yet');
is_deeply($t->get('/jobs')->{json}{jobs}, [], 'no jobs yet');

# A client that leaves while its body is awaited or its answer is made.
for my $part ('', '{"backup_type"') {
    my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $t->{port}) or die;
    print {$s} "POST /admin/backup/create HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer $NgxBackup::token{admin}\r\n"
        . "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n$part";
    close $s;
}
for (1 .. 20) {
    my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $t->{port}) or die;
    print {$s} "GET /admin/backup/list HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer $NgxBackup::token{admin}\r\n\r\n";
    close $s;
}
is($t->get('')->{status}, 200, 'clients that leave do no harm');

# Two requests in one connection.
my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $t->{port}) or die;
my $auth = "Host: x\r\nAuthorization: Bearer $NgxBackup::token{admin}\r\n";
print {$s} "GET /admin/backup/jobs HTTP/1.1\r\n$auth\r\nGET /admin/backup/list HTTP/1.1\r\n${auth}Connection: close\r\n\r\n";
my $both = do { local $/; <$s> };
is(() = $both =~ m{HTTP/1\.1 200}g, 2, 'pipelined requests are both answered');

# The page's table has every code that there is, at its status.
{
    my %row;
    for my $line (split /\n/, $t->read("$FindBin::Bin/../docs/api.md")) {
        my ($status, $codes) = $line =~ /^\| (\d{3}) \| ([^|]*) \|/ or next;
        $row{"$status $_"}++ for $codes =~ /`(\w+)`/g;
    }
    my %code;
    my ($table, $own) = map { $t->read("$FindBin::Bin/../src/$_") } 'base/err.h', 'nginx/answer.c';
    $code{"$1 $2"}++ while $table =~ /^\s*X\(\w+, \d+, \d+, ([45]\d\d), "(\w+)"/mg;
    $code{"$1 $2"}++ while $own =~ /\{ (\d{3}), "(\w+)"/g;
    # An interrupted call of the API is told as unavailable.
    delete $code{'503 Interrupted'};
    cmp_ok(scalar keys %code, '>', 25, 'the codes are found');
    is_deeply([sort keys %row], [sort keys %code], 'docs/api.md has all of them, and no other');
}

# Whatever the answer, the body is no part of the next request on the connection.
sub twice {
    my ($name, $line, %arg) = @_;
    my $body = $arg{body} // "GET /admin/backup/nowhere HTTP/1.1\r\n$auth\r\n";
    my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $t->{port}) or die;
    my $length = $arg{length} // 'Content-Length: ' . length $body;
    my $head = join "\r\n", @{ $arg{head} // ['Authorization: Bearer ' . $NgxBackup::token{ $arg{token} // 'admin' }] };
    print {$s} "$line HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n$head\r\n$length\r\n\r\n$body"
        . "GET /admin/backup/jobs HTTP/1.1\r\n${auth}Connection: close\r\n\r\n";
    my $said = do { local $/; <$s> };
    is_deeply([$said =~ m{HTTP/1\.1 (\d+)}g], [$arg{status}, 200], "$name: two requests, two answers") or diag($said);
    return;
}
twice('a parameter it does not have', 'POST /admin/backup/create?x=1', status => 422);
twice('a wrong value', 'GET /admin/backup/list?limit=0', status => 422);
twice('in chunks', 'POST /admin/backup/create?x=1', length => 'Transfer-Encoding: chunked', body => "3\r\nGET\r\n0\r\n\r\n", status => 422);
twice('no such resource', 'POST /admin/backup/nowhere', status => 404);
twice('no such method', 'POST /admin/backup/list', status => 405);
twice('a strange id', 'POST /admin/backup/jobs/a%20b/cancel', status => 404);
twice('no such job', 'POST /admin/backup/jobs/a/cancel', status => 404);
twice('no such backup', 'GET /admin/backup/backups/a', status => 404);
twice('no such database', 'POST /admin/backup/databases/a/detach', status => 404);
twice('no token', 'POST /admin/backup/create', head => ['X: y'], status => 401);
twice('a role too low', 'POST /admin/backup/create', token => 'viewer', status => 403);
twice('a long key', 'POST /admin/backup/create', head => ["Authorization: Bearer $NgxBackup::token{admin}", 'Idempotency-Key: ' . 'k' x 300],
    status => 422);
twice('not JSON', 'POST /admin/backup/create', status => 400);
twice("from nginx's memory", 'GET /admin/backup/status', status => 200);
twice('the index', 'GET /admin/backup', status => 200);
twice('health', 'POST /health', status => 405);
twice('too large', 'POST /admin/backup/create', body => 'x' x 70_000, status => 413);

$t->finish;
done_testing;
