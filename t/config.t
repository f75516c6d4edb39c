#!/usr/bin/perl
# nginx -t accepts what the documentation shows, and says of each mistake what is wrong, in which file and line.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use NgxBackup;
use Test::More;

my $t = NgxBackup->new;
my $dir = $t->{dir};

my %part = (
    base => "base_dir $dir/backups;",
    files => "files uploads { path $dir/app/uploads; }",
    storage => "storage local disk { path $dir/storage; }",
    pool => 'thread_pool backup;',
);

# The whole configuration with these parts of the set, or other parts of it.
sub conf_of {
    my (%arg) = @_;
    local $t->{set} = "    backup app {\n        "
        . join("\n        ", $arg{set} // join("\n        ", map { $arg{$_} // $part{$_} } qw(base files storage pool)), $arg{more} // '')
        . "\n    }\n    " . ($arg{second} // '');
    local $t->{http} = $arg{http} // '';
    local $t->{main} = $arg{main} if exists $arg{main};
    local $t->{location} = $arg{location} if exists $arg{location};
    return $t->conf;
}

sub accepts {
    my ($name, %arg) = @_;
    my ($ok, $said) = $t->check(conf_of(%arg));
    ok($ok, "accepted: $name") or diag($said);
    return $said;
}

sub rejects {
    my ($name, $re, %arg) = @_;
    my ($ok, $said) = $t->check(conf_of(%arg));
    ok(!$ok, "rejected: $name");
    like($said, qr/\[emerg\].*$re.* in \S+:\d+/s, "says why: $name");
    return;
}

accepts('the least');
accepts('everything', main => 'thread_pool backup threads=2; thread_pool small threads=2;',
    pool => 'thread_pool backup short=small;', http => 'backup_zone b:1m; backup_helper off;', more => <<CONF);
        pitr_window 2w;
        ship_interval 1m;
        database main { path $dir/app/app.db; wal require; busy_timeout 10s; pitr_window 3d;
                        check "SELECT count(*) > 0 FROM users"; check "SELECT max(id) < 10 FROM notes"; }
        files more { path $dir/app/transcripts; match *.txt **/*.md; exclude *.tmp /cache/; max_file_size 100m;
                     one_file_system on; xattrs off; cachedir off; }
        compression gzip level=9;
        retention database=30d files=1w;
        restore_root $dir/restored;
        restore_in_place on;
        restore_safety off;
        min_free 1g;
        shutdown_grace 10s;
        health_max_age 2d;
CONF

$t->write('parts.conf', "compression zstd level=7;\n");
$t->write('disk.conf', "path $dir/storage;\n");
accepts('include in a set and in a storage',
    storage => "include $dir/parts.conf; storage local disk { include $dir/disk.conf; }");

$t->write('k1.key', join '', map { chr 128 + $_ } 1 .. 32);
chmod 0600, "$dir/k1.key";
accepts("compression $_", more => "compression $_;") for 'off', 'zstd', 'gzip', 'gzip level=1', 'zstd level=19';
accepts('a key file', more => "encryption { key k1 $dir/k1.key; }");

rejects('ship_interval too short', 'ship_interval must be 1s to 1h', more => 'ship_interval 10ms;');
rejects('ship_interval off', 'ship_interval must be 1s to 1h', more => 'ship_interval off;');
rejects('a database whose name cannot be captured', 'database Main: its name must be in lower case.*pitr_window off',
    more => "database Main { path $dir/app/app.db; }");
accepts('that database not captured', more => "pitr_window off; database Main { path $dir/app/app.db; }");
rejects('unknown directive', 'unknown directive "shedule"', more => 'shedule x;');
rejects('a directive of a later version', 'unknown directive "schedule"', more => 'schedule full "0 2 * * *";');
rejects('directive in the wrong block', '"wal" directive is not allowed here', more => 'wal on;');
rejects('duplicate directive', '"compression" directive is duplicate', more => 'compression zstd; compression gzip;');
rejects('duplicate base_dir', '"base_dir" directive is duplicate', more => "base_dir $dir/x;");
rejects('unknown compression', 'unknown compression "lzma"', more => 'compression lzma;');
rejects('compression level', 'level=1 to level=19', more => 'compression zstd level=40;');
rejects('compression off with a level', 'level', more => 'compression off level=1;');
rejects('flag', '"on" or "off"', more => 'restore_in_place yes;');
rejects('time', 'invalid time "database=soon"', more => 'retention database=soon;');
rejects('retention of what', 'database=TIME or files=TIME', more => 'retention 30d;');
rejects('size', 'invalid size "much"', more => 'min_free much;');
rejects('wal value', '"on", "off" or "require"', more => "database main { path $dir/a.db; wal maybe; }");
rejects('set without source', 'database|files', files => '');
rejects('set without storage', 'storage', storage => '');
rejects('unknown storage driver', 'ftp', more => 'storage ftp x { host y; }');
rejects('unknown storage setting', 'unknown setting "bucket"', storage => "storage local disk { path $dir/storage; bucket b; }");
rejects('storage without path', '"path" is missing', storage => 'storage local disk { }');
rejects('storage setting with two values', 'invalid number of arguments', storage => "storage local disk { path $dir/a b; }");
rejects('database without path', 'path', more => 'database main { wal on; }');
rejects('two databases of one name', 'main', more => "database main { path $dir/a.db; } database main { path $dir/b.db; }");
my $captured = sub { my ($what, $name) = @_; return (more => "database @{[ $name // 'main' ]} { path $dir/a.db; $what }") };
rejects('pitr_window that is no time', 'invalid time "a week"', $captured->('pitr_window "a week";'));
rejects('pitr_window with two values', 'invalid number of arguments in "pitr_window"', $captured->('pitr_window 7d 30d;'));
rejects('pitr_window twice', '"pitr_window" directive is duplicate', $captured->('pitr_window 7d; pitr_window 8d;'));
rejects('pitr_window of files', '"pitr_window" directive is not allowed here', more => "files f { path $dir/app/transcripts; pitr_window 7d; }");
rejects('pitr_window and a name in upper case', 'database Main: its name must be in lower case',
    $captured->('pitr_window 7d;', 'Main'));
accepts('a name in upper case without it', $captured->('pitr_window off;', 'Main'));
rejects('check without SQL', 'invalid number of arguments in "check"', $captured->('check;'));
rejects('check whose SQL has no quotes', 'invalid number of arguments in "check"', $captured->('check SELECT 1;'));
rejects('empty check', 'empty value in "check"', $captured->(q(check '';)));
rejects('check outside of a database', '"check" directive is not allowed here', more => 'check "SELECT 1";');
rejects('bad pattern', 'exclude|pattern', files => "files uploads { path $dir/app/uploads; exclude '[a'; }");
like(accepts('base_dir inside a source', base => "base_dir $dir/app/uploads/backups;"), qr/\[warn\].*left out/,
    'warned: base_dir inside a source is left out');
like(accepts('a storage inside a source', storage => "storage local disk { path $dir/app/uploads/storage; }"), qr/\[warn\].*left out/,
    'warned: a storage inside a source is left out');
rejects('a source inside a storage', 'contain itself', files => "files uploads { path $dir/storage/x; }");
rejects('a database inside base_dir', 'lies in base_dir', more => "database main { path $dir/backups/a.db; }");
rejects('a storage inside base_dir', 'must not lie in each other', storage => "storage local disk { path $dir/backups/storage; }");
symlink "$dir/storage", "$dir/link" or die "symlink: $!";
rejects('a source inside a storage through a link', 'contain itself', files => "files uploads { path $dir/link/x; }");
rejects('a source inside base_dir', 'contain itself', files => "files uploads { path $dir/backups/x; }");
rejects('relative source', 'absolute', files => 'files uploads { path uploads; }');
rejects('missing key file', 'k9.key', more => "encryption { key k9 $dir/k9.key; }");
rejects('empty encryption', 'names no key', more => 'encryption { }');
rejects('missing thread pool', 'unknown thread pool "nowhere"', pool => 'thread_pool nowhere;');
rejects('short pool is the job pool', 'would wait behind', pool => 'thread_pool backup short=backup;');
accepts('the pool named backup by default', pool => '');
rejects('no pool named backup', 'unknown thread pool "backup"', pool => '', main => '');
rejects('the pool of short calls for jobs', 'would wait behind', pool => 'thread_pool default;');
rejects('jobs on nginx\'s own pool', 'jobs need a thread pool of their own', pool => 'thread_pool default short=backup;');
rejects('jobs on another set\'s pool of short calls', 'the short= pool of one is the jobs\' pool of the other', main => 'thread_pool backup threads=2; thread_pool other threads=2;',
    http => "backup other { base_dir $dir/other; files x { path $dir/app/transcripts; } storage local d { path $dir/storage; } thread_pool other short=backup; }");
rejects('two sets of one name', 'defined twice', second => "backup app { $part{files} $part{storage} $part{pool} }");
rejects('two sets with one base_dir', 'has the base_dir of', second => "backup b { $part{base} $part{files} $part{storage} $part{pool} }");
rejects('zone', 'NAME:SIZE', http => 'backup_zone 2m;');
rejects('small zone', 'too small', http => 'backup_zone b:16k;');
rejects('a helper that is not there', 'install ngx-backup-helper there', http => 'backup_helper /nowhere/h;');

chmod 0644, "$dir/k1.key";
rejects('key file open to everybody', 'open to everybody', more => "encryption { key k1 $dir/k1.key; }");

my $tokens = "backup_token_file $dir/tokens;";
rejects('api without auth', 'without "backup_auth"', location => 'location /a { backup_api app; }');
rejects('unknown set', 'no "backup nobody', location => 'location /a { backup_api nobody; backup_auth external; }');
rejects('health of an unknown set', 'no "backup nobody', location => 'location /a { backup_health nobody; }');
rejects('bearer without tokens', 'needs "backup_token_file"', location => 'location /a { backup_api app; backup_auth bearer; }');
rejects('unknown auth', '"bearer" or', location => 'location /a { backup_api app; backup_auth none; }');
rejects('unknown role', 'role=viewer', location => 'location /a { backup_api app; backup_auth external role=god; }');
rejects('api in a regular expression', 'plain prefix', location => "location ~ /a { backup_api app; backup_auth bearer; $tokens }");
rejects('api and health in one place', 'already', location => 'location /a { backup_health app; backup_api app; }');
rejects('missing token file', 'nowhere', location => "location /a { backup_api app; backup_auth bearer; backup_token_file $dir/nowhere; }");
$t->write('tokens.bad', "ci:admin:1234\n");
chmod 0600, "$dir/tokens.bad";
rejects('bad token line', 'line 1', location => "location /a { backup_api app; backup_auth bearer; backup_token_file $dir/tokens.bad; }");
$t->write('tokens.empty', "# none\n");
chmod 0600, "$dir/tokens.empty";
rejects('no token', 'has no token', location => "location /a { backup_api app; backup_auth bearer; backup_token_file $dir/tokens.empty; }");
chmod 0644, "$dir/tokens.empty";
rejects('token file open to everybody', 'open to everybody',
    location => "location /a { backup_api app; backup_auth bearer; backup_token_file $dir/tokens.empty; }");

# Neither root nor any event settings are needed to look at a configuration.
{
    my $conf = conf_of();
    $conf =~ s/events \{.*?\}/events {}/;
    my ($ok, $said) = $t->check($conf);
    ok($ok, 'empty events {}') or diag($said);
    SKIP: {
        skip 'not root', 1 unless $> == 0;
        my $o = NgxBackup->new(user => 'www-data');
        $o->own('.', 'tokens');
        my $module = $o->lend($NgxBackup::module);
        $o->write('nginx.conf', $o->conf =~ s/^user .*$//mr =~ s/^load_module .*$/load_module $module;/mr);
        my $said2 = `setpriv --reuid=www-data --regid=www-data --clear-groups @{[ join ' ', $o->command('-t') ]} 2>&1`;
        is($?, 0, 'nginx -t as an ordinary user') or diag($said2);
        $o->finish;
    }
}

SKIP: {
    skip 'not root', 5 unless $> == 0;
    my $o = NgxBackup->new(user => 'www-data');
    chown 0, 0, "$o->{dir}/backups";
    my ($ok, $said) = $o->check;
    ok(!$ok, 'rejected: base_dir that the workers cannot write');
    $o->allow_log(qr/cannot write to/);
    like($said, qr/user "www-data" cannot write to "\S+backups"/, 'says which and who');
    chmod 0775, "$o->{dir}/backups";
    chown 0, (getpwnam 'www-data')[3], "$o->{dir}/backups";
    ok(($o->check)[0], 'accepted: base_dir of a group of the workers');
    my $set = $o->set_conf;
    $o->write('closed/state/note', '');
    chown +(getpwnam 'www-data')[2, 3], "$o->{dir}/closed/state";
    chmod 0700, "$o->{dir}/closed";
    $o->{set} = $set =~ s{base_dir \S+;}{base_dir $o->{dir}/closed/state;}r;
    ($ok, $said) = $o->check;
    like($said, qr/cannot write to "\S+state", since it may not enter "\S+closed": chmod o\+x/, 'nor below a directory that is closed to them');
    $o->{set} = undef;
    rmdir "$o->{dir}/backups";
    $o->start;
    $o->wait_until(20, 'status', sub { $o->get('/status')->{status} == 200 });
    my @st = stat "$o->{dir}/backups";
    is_deeply([$st[2] & 0777, $st[4]], [0700, (getpwnam 'www-data')[2]], 'base_dir is made for the workers');
    $o->finish;
}

# Root can read every key; the workers cannot, and would fail with each backup.
SKIP: {
    skip 'not root', 1 unless $> == 0;
    my $o = NgxBackup->new(user => 'www-data');
    my $key = $o->write('keys/k1.key', join '', map { chr 128 + $_ } 1 .. 32);
    my $phrase = $o->write('keys/phrase', "a long passphrase of many words
");
    chmod 0700, $key, $phrase;
    chmod 0755, "$o->{dir}/keys";
    my $user = getpwnam 'www-data';
    my $group = getgrnam 'www-data';
    my $says = sub {
        my ($name, $re, $encryption) = @_;
        local $o->{set_more} = "encryption { $encryption }";
        my ($ok, $said) = $o->check;
        is($ok, !defined $re, "a secret: $name") or diag($said);
        like($said, qr/\[emerg\] .*$re/, 'says what to do') if defined $re;
    };
    $says->('a key of root', qr/user "www-data" cannot read "\Q$key\E": chown www-data \Q$key\E/, "key k1 $key;");
    $says->('a passphrase of root', qr/cannot read "\Q$phrase\E": chown www-data/, "passphrase_file $phrase;");
    chown $user, 0, $key;
    $says->('of the workers', undef, "key k1 $key;");
    chmod 0200, $key;
    $says->('that they cannot read', qr/chmod u\+r \Q$key\E/, "key k1 $key;");
    chmod 0400, $key;
    chmod 0700, "$o->{dir}/keys";
    $says->('in a directory of root', qr{may not enter "\Q$o->{dir}\E/keys": chgrp that}, "key k1 $key;");
    chmod 0750, "$o->{dir}/keys";
    chown 0, $group, "$o->{dir}/keys";
    $says->('in a directory of their group', undef, "key k1 $key;");
    chown 0, 0, $key;
    if (system("setfacl -m u:www-data:r $key 2>/dev/null") == 0) {
        $says->('by an access control list', undef, "key k1 $key;");
    }
    $o->{set_more} = "encryption { key k1 $key; }";
    chown $user, 0, $key;
    $o->start;
    is($o->get('')->{status}, 200, 'a start with it');
    chown 0, 0, $key;
    chmod 0600, $key;
    $o->allow_log(qr/cannot read/);
    $o->hup;
    is($o->get('')->{status}, 200, 'a reload goes on, and says it');
    ok($o->logs(qr/emerg.*cannot read "\Q$key\E"/), 'in the error log');
    unlink "$o->{dir}/error.log";
    $o->finish;
}

# What is above base_dir and a storage is the operator's: made by nginx, it would be in the place of a disk that is not mounted.
{
    local $part{base} = "base_dir $dir/no/backups;";
    my ($ok, $said) = $t->check(conf_of());
    ok(!$ok, 'rejected: base_dir in a directory that is not there');
    like($said, qr{\[emerg\].*/no/backups: the directory above it, \S+/no, does not exist: create it, or mount its disk}, 'says what to do');
    $part{base} = "base_dir $dir/tokens;";
    ($ok, $said) = $t->check(conf_of());
    ok(!$ok, 'rejected: base_dir that is a file');
    like($said, qr/tokens is not a directory/, 'says so');
}
{
    local $part{storage} = "storage local disk { path $dir/no/storage; }";
    like(accepts('a storage whose disk is not mounted'), qr/\[warn\].*mount its disk; until then its backups fail/, 'warned: backups fail until then');
    $t->{set} = "backup app { @{[ join ' ', @part{qw(base files storage pool)} ]} }";
    $t->start;
    $t->wait_until(20, 'status', sub { $t->get('/status')->{status} == 200 });
    my $job = $t->wait_job($t->post('/create', {})->{json}{id});
    is($job->{status}, 'failed', 'nginx runs, and a backup fails');
    like($job->{error}, qr/mount its disk/, 'with what to do');
    ok(!-e "$dir/no", 'and nothing is made there');
    $t->stop;
}

# nginx -t makes nothing.
{
    local $part{base} = "base_dir $dir/not-there;";
    accepts('base_dir that is not there yet');
    ok(!-e "$dir/not-there", 'nginx -t makes no directory');
}
unlink "$dir/error.log";
$t->finish;
done_testing;
