#!/usr/bin/perl
# Nothing answers without credentials, roles are kept, and every write is in the log.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use NgxBackup;
use Test::More;

my $t = NgxBackup->new(user => 'www-data');
my $dir = $t->{dir};
$t->write('htpasswd', "anna:{PLAIN}secret\n");
my $bearer = "backup_auth bearer; backup_token_file $dir/tokens;";
$t->{location} = <<CONF;
        location /admin/backup { backup_api app; $bearer }
        location = /health { backup_health app; $bearer }
        location = /open { backup_health app; }
        location /viewer { backup_api app; backup_auth external; }
        location /operator { backup_api app; backup_auth external role=operator; }
        location /basic { auth_basic x; auth_basic_user_file $dir/htpasswd; backup_api app; backup_auth external role=admin; }
        location /denied { deny all; backup_api app; backup_auth external role=admin; }
        location /limited { limit_except GET { deny all; } backup_api app; backup_auth external role=admin; }
        location /nested { backup_api app; $bearer location /nested/open { backup_health app; } }
        location /files/ { $bearer }
CONF
$t->start;
my $invalid = {backup_type => 'sideways'};

my %refused;
for my $case (
    ['no token', token => ''],
    ['wrong token', token => 'nxb_wrong'],
    ['the hash instead of the token', token => (split /[:\n]/, $t->read('tokens'))[2]],
    ['empty token', token => '', headers => {authorization => 'Bearer '}],
    ['another scheme', token => '', headers => {authorization => 'Basic YWRtaW46YWRtaW4='}],
    ['a very long token', token => 'x' x 6000],
  ) {
    my ($name, %arg) = @$case;
    my $r = $t->get('/status', %arg);
    is($r->{status}, 401, "$name: 401");
    is($r->{headers}{'content-type'}, 'application/problem+json', "$name: a problem document");
    like($r->{headers}{'www-authenticate'}, qr/^Bearer/, "$name: WWW-Authenticate");
    is($r->{json}{code}, 'Unauthorized', "$name: code");
    is($r->{json}{instance}, '/admin/backup/status', "$name: instance");
    is($r->{json}{request_id}, $r->{headers}{'x-request-id'}, "$name: request id");
    delete $r->{json}{request_id};
    $refused{$NgxBackup::json->encode($r->{json})}++;
}
is(scalar keys %refused, 1, 'unknown and wrong credentials get the same text');
is($t->get('/nowhere', token => '')->{status}, 401, 'also where there is nothing');
is($t->post('/create', {}, token => '')->{status}, 401, 'also with a body');

is($t->get('', token => 'viewer')->{status}, 200, 'a viewer reads');
is($t->get('', token => '', headers => {authorization => "bearer  $NgxBackup::token{viewer}"})->{status}, 200,
    'the scheme is not case-sensitive');
for my $case (
    ['viewer', 'POST', '/create', 403], ['viewer', 'POST', '/recovery', 403], ['viewer', 'POST', '/test', 403],
    ['viewer', 'DELETE', '/backups/x', 403], ['viewer', 'POST', '/jobs/x/cancel', 403],
    ['operator', 'POST', '/create', 422], ['operator', 'POST', '/validate-recovery', 422], ['operator', 'POST', '/verify', 422],
    ['operator', 'POST', '/jobs/x/cancel', 404], ['operator', 'POST', '/recovery', 403], ['operator', 'POST', '/cleanup', 403],
    ['operator', 'DELETE', '/backups/x', 403],
    ['admin', 'POST', '/recovery', 422], ['admin', 'POST', '/cleanup', 422],
  ) {
    my ($role, $method, $path, $status) = @$case;
    my $r = $t->request($method, $path, token => $role, $method eq 'POST' ? (body => {nonsense => 1}) : ());
    is($r->{status}, $status, "$role: $method $path: $status");
    is($r->{json}{status}, $status, "$role: $method $path: and a problem that says so") or diag($r->{content});
}

# Health
$t->wait_until(20, 'health', sub { ($t->get('//open', token => '')->{json} // {})->{timestamp} });
my $open = $t->get('//open', token => '');
is_deeply([sort keys %{ $open->{json} }], [qw(healthy status timestamp)], 'open health tells little');
is($open->{headers}{'content-type'}, 'application/health+json', 'its media type');
is($open->{json}{status}, 'warn', 'there is no backup yet');
is($open->{status}, 200, 'which is a warning, and no failure');
for my $to ('', 'admin') {
    my $told = $t->get('//health', token => $to);
    is_deeply([$told->{status}, @{ $told->{json} }{qw(status healthy)}], [200, 'warn', JSON::PP::true], "health is healthy for '$to'");
}
ok(!$t->get('//health', token => '')->{json}{checks}, 'no details for nobody');
ok(!$t->get('//health', token => 'nxb_wrong')->{json}{checks}, 'no details for a wrong token');
ok($t->get('//health')->{json}{checks}, 'details for a token');
is($t->get('/health', token => '')->{status}, 401, 'health of the API is not open');
is($t->get('//nested/open', token => '')->{status}, $open->{status}, 'a location inside an API location is its own');

# External
is($t->get('//viewer/', token => '')->{status}, 200, 'external: viewer by default');
is($t->request('POST', '//viewer/create', token => '', body => $invalid)->{status}, 403, 'external: viewer may not write');
is($t->request('POST', '//operator/create', token => '', body => $invalid)->{status}, 422, 'external: role=operator may');
for my $site (['cross-site', 403], ['same-site', 403], ['same-origin', 422], ['none', 422]) {
    is($t->request('POST', '//operator/create', token => '', body => $invalid, headers => {'Sec-Fetch-Site' => $site->[0]})->{status},
        $site->[1], "external: a write from $site->[0]");
}
# A page of another site can make an old browser send a POST without a body, or with one of these types, and no more.
my $host = "127.0.0.1:$t->{port}";
for my $case (
    ['nothing', {}, 403], ['a form', {'content-type' => 'application/x-www-form-urlencoded'}, 403], ['a text', {'content-type' => 'text/plain'}, 403],
    ['JSON', {'content-type' => 'application/json'}, 404], ['X-Requested-With', {'X-Requested-With' => 'curl'}, 404],
    ['its own Origin', {origin => "http://$host"}, 404], ['another Origin', {origin => 'http://example.org'}, 403],
    ['an Origin that ends like it', {origin => "http://x.$host"}, 403], ['no Origin', {origin => 'null'}, 403],
    ['another site that says so', {'content-type' => 'application/json', 'Sec-Fetch-Site' => 'cross-site'}, 403],
  ) {
    my ($name, $headers, $status) = @$case;
    my $r = $t->request('POST', '//operator/jobs/none/cancel', token => '', headers => $headers);
    is($r->{status}, $status, "external: an empty POST with $name: $status");
    like($r->{json}{detail}, qr/send Content-Type/, 'says what to send') if $status == 403;
}
is($t->request('DELETE', '//basic/backups/none', token => '', headers => {authorization => 'Basic YW5uYTpzZWNyZXQ=', Prefer => 'wait=20'})->{status},
    404, 'external: DELETE is a method that no page can send so');
is($t->request('POST', '/jobs/none/cancel')->{status}, 404, 'a token is never added by a browser');

my $r = $t->get('//basic/status', token => '');
is($r->{status}, 401, 'auth_basic guards');
is($r->{headers}{'content-type'}, 'application/problem+json', 'its refusal is a problem document');
like($r->{headers}{'www-authenticate'}, qr/^Basic/, 'with its own challenge');
is($r->{json}{code}, 'Unauthorized', 'and a code');
is($t->get('//basic/', token => '', headers => {authorization => 'Basic YW5uYTpzZWNyZXQ='})->{status}, 200, 'auth_basic lets in');
is($t->request('POST', '//basic/create', token => '', body => $invalid, headers => {authorization => 'Basic YW5uYTpzZWNyZXQ='})->{status},
    422, 'and its user writes');
$r = $t->get('//denied/');
is($r->{status}, 403, 'deny');
is($r->{json}{code}, 'Forbidden', 'deny is a problem document');
is($t->get('//limited/', token => '')->{status}, 200, 'limit_except: the method that is allowed');
is($t->request('POST', '//limited/create', token => '', body => $invalid)->{json}{status}, 403, 'limit_except: another');
unlike($t->get('//files/none')->{headers}{'content-type'}, qr/problem/, 'other locations keep their error pages');

my @audit = grep { /audit/ } $t->log_lines;
ok((grep { /user "operator" \(operator\) from 127\.0\.0\.1: create: 422.*request id [0-9a-f]{32}/ } @audit), 'a write is audited');
ok((grep { /user "viewer" \(viewer\) from 127\.0\.0\.1: create: 403/ } @audit), 'a refused write too');
ok((grep { /user "-" \(nobody\) from 127\.0\.0\.1: create: 401/ } @audit), 'and one without credentials');
ok((grep { /user "anna" \(admin\)/ } @audit), 'the user of auth_basic is named');
ok(!(grep { /$NgxBackup::token{admin}|nxb_wrong/ } $t->log_lines), 'no token is in the log');

$t->finish;
done_testing;
