#!/usr/bin/perl
# Nothing written about a helper, and one installed where packages put it: nginx finds it there, uses it, and names it.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use File::Copy qw(copy);
use NgxBackup;
use Test::More;

plan skip_all => 'only root has a helper' unless $> == 0;
plan skip_all => 'a helper is installed on this machine' if !$ENV{NGX_BACKUP_MOUNTS} && -e '/usr/lib/ngx-backup';

# In a mount namespace of its own, where it is installed on a layer above /usr/lib.
if (!$ENV{NGX_BACKUP_MOUNTS}) {
    plan skip_all => 'mounting is not permitted here' if system(qw(unshare -m true)) != 0;
    exec {'unshare'} 'env', '-m', 'env', 'NGX_BACKUP_MOUNTS=1', $^X, '-It/lib', $0 or die "unshare: $!";
}

my $t = NgxBackup->new(user => 'www-data', helper => '');
my $layer = "$t->{dir}/layer";
mkdir $_ or die "$_: $!" for $layer, "$layer/up", "$layer/work";
# A layer on top of another one may be refused: then it lies in memory.
my $mount = sub { system("mount -t overlay -o lowerdir=/usr/lib,upperdir=$layer/up,workdir=$layer/work none /usr/lib 2>/dev/null") == 0 };
$mount->() or system('mount', '-t', 'tmpfs', 'none', $layer) == 0 && mkdir("$layer/up") && mkdir("$layer/work") && $mount->()
    or do { $t->finish; plan skip_all => 'no layer can be mounted above /usr/lib' };

my $path = '/usr/lib/ngx-backup/ngx-backup-helper';
mkdir '/usr/lib/ngx-backup' or die "/usr/lib/ngx-backup: $!";
copy($NgxBackup::helper, $path) or die "$path: $!";
chmod 0755, $path;

my ($ok, $said) = $t->check;
ok($ok, 'nginx -t accepts it') or diag($said);
unlike($said, qr/privileged helper/, 'and warns of nothing');

# What no worker may read.
$t->write('app/uploads/secret', 'of the application alone');
chown 0, 0, "$t->{dir}/app/uploads/secret";
chmod 0600, "$t->{dir}/app/uploads/secret";
$t->start;
my $state = sub { $t->get('/status')->{json}{helper} // {} };
ok($t->wait_until(10, 'the helper', sub { ($state->()->{state} // '') eq 'active' }), 'it is active') or diag(explain $state->());
my $job = $t->backup;
is($job->{status}, 'completed', 'a backup') or diag(explain $job);
is($job->{unreadable_total}, 0, 'with what only root may read');
is(scalar($t->supervisors), 1, 'one is running');

$t->stop;
$t->finish;
done_testing();
