#!/usr/bin/perl
# t/format.t: docs/repository-format.md is true and complete: a reader that shares no code with the program gives back every
# byte of a repository that the program wrote, and notices every damage.
use strict;
use warnings;
use Cwd qw(abs_path);
use Digest::SHA;
use File::Basename qw(dirname);
use File::Find qw(find);
use File::Temp qw(tempdir);
use Test::More;

my $top = abs_path(dirname(abs_path(__FILE__)) . '/..');
my $build = abs_path($ENV{NGX_BACKUP_BUILD} || "$top/build");
my $mkrepo = "$build/tools/mkrepo";
-x $mkrepo or plan skip_all => "no $mkrepo: run make tools";
my $reader = "$top/t/lib/reader.pl";

sub reader {
    my (@args) = @_;
    open my $in, '-|:raw', $^X, $reader, @args or die "$reader: $!";
    local $/;
    my $out = <$in>;
    close $in;
    return ($? >> 8, defined $out ? $out : '');
}

# Everything below a directory: path => what it is, in one line.
sub facts {
    my ($dir) = @_;
    my %facts;
    find({ no_chdir => 1, wanted => sub {
        my $path = $File::Find::name;
        my ($mode, $mtime) = (lstat $path)[2, 9];
        my $fact = -l _ ? 'link ' . readlink($path) : -d _ ? 'directory' : -p _ ? 'fifo' : 'file';
        if ($fact eq 'file') {
            open my $in, '<:raw', $path or die "$path: $!";
            $fact .= ' ' . Digest::SHA->new(256)->addfile($in)->hexdigest;
        }
        # What the reader makes itself for want of an entry: the backup's own directories and the roots.
        my $name = substr $path, length $dir;
        $fact .= sprintf ' %04o', $mode & 07777 if $name =~ m{/files/tree/} && !-l $path;
        $fact .= " $mtime" if $fact =~ /^file/ && $name =~ m{/files/tree/};
        $facts{$name} = $fact;
    } }, $dir);
    return \%facts;
}

for my $codec (qw(zstd gzip raw)) {
    my $dir = tempdir('ngx-backup-format-XXXXXX', TMPDIR => 1, CLEANUP => 1);
    is(system($mkrepo, $dir, $codec), 0, "$codec: a repository is made");
    my ($code, $out) = reader("$dir/storage", '--restore', "$dir/restored");
    is($code, 0, "$codec: the reader finds nothing wrong") or diag($out);
    like($out, qr/^2 backups, 0 findings$/m, "$codec: both backups are read");
    is_deeply(facts("$dir/restored"), facts("$dir/expected"), "$codec: all files and databases come back")
        or diag($out);
    next if $codec ne 'zstd';

    ($code, $out) = reader("$dir/storage", '--backup', 'full_20251015_143002', '--quiet');
    is($code, 0, 'one backup by its id');
    like($out, qr/^1 backups/m, 'and only that one');
    ($code) = reader("$dir/storage", '--backup', 'full_1', '--quiet');
    is($code, 1, 'a backup that is not there');

    # One flipped bit in any object is seen.
    my @objects;
    find({ no_chdir => 1, wanted => sub { push @objects, $_ if -f } }, map { "$dir/storage/$_" } qw(packs meta index snapshots));
    for my $object (sort @objects) {
        my $size = -s $object;
        my $at = int($size / 3);
        open my $file, '+<:raw', $object or die "$object: $!";
        my $flip = sub {
            seek $file, $at, 0;
            read $file, my $byte, 1;
            seek $file, $at, 0;
            print {$file} chr(ord($byte) ^ 4);
            $file->flush;
        };
        $flip->();
        ($code, $out) = reader("$dir/storage", '--quiet');
        (my $name = $object) =~ s{.*/storage/}{};
        ok($code == 1 && $out =~ /^damaged: \Q$name\E: its SHA-256/m, "a flipped bit in $name is found") or diag($out);
        $flip->();
        close $file;
    }

    # An object that is gone.
    my ($meta) = grep { m{/meta/} } sort @objects;
    rename $meta, "$dir/away" or die $!;
    ($code, $out) = reader("$dir/storage", '--quiet');
    ok($code == 1 && $out =~ /is missing or damaged/, 'a pack that is gone is missed');
    rename "$dir/away", $meta or die $!;
    ($code) = reader("$dir/storage", '--quiet');
    is($code, 0, 'mended, all is well again');
}

# With encryption: nothing but the page and a key is needed.
SKIP: {
    skip 'Crypt::AuthEnc::GCM is not installed (libcryptx-perl)', 1 if !eval { require Crypt::AuthEnc::GCM; 1 };
    for my $codec (qw(zstd raw)) {
        my $dir = tempdir('ngx-backup-format-XXXXXX', TMPDIR => 1, CLEANUP => 1);
        my @key = ('--key', "$dir/key");
        is(system($mkrepo, $dir, $codec, 'encrypted'), 0, "$codec: an encrypted repository is made");
        my ($code, $out) = reader("$dir/storage", @key, '--restore', "$dir/restored");
        is($code, 0, "$codec: the reader finds nothing wrong") or diag($out);
        like($out, qr/^2 backups, 0 findings$/m, "$codec: both backups are read");
        is_deeply(facts("$dir/restored"), facts("$dir/expected"), "$codec: all files and databases come back") or diag($out);
        ($code, $out) = reader("$dir/storage", @key, '--backup', 'full_20251015_143002', '--quiet');
        like($out, qr/^1 backups/m, 'one backup by its id');
        next if $codec ne 'zstd';

        # By passphrase alone.
        open my $pass, '>', "$dir/pass" or die $!;
        print {$pass} "pa\xc3\x9fword of a person\n";
        close $pass;
        chmod 0600, "$dir/pass", "$dir/key";
        is(system("$build/ngx-backup key add --storage file://$dir/storage --key-file $dir/key --new-passphrase-file $dir/pass >$dir/said 2>&1"), 0,
            'a passphrase is added') or diag(`cat $dir/said`);
        ($code, $out) = reader("$dir/storage", '--passphrase', "$dir/pass", '--quiet');
        ok($code == 0 && $out =~ /^2 backups, 0 findings$/m, 'a reader opens it by the passphrase') or diag($out);

        # Content that is exchanged under a name that fits is noticed by the seal alone.
        my @packs;
        find({ no_chdir => 1, wanted => sub { push @packs, $_ if -f } }, "$dir/storage/packs");
        open my $file, '<:raw', $packs[0] or die "$packs[0]: $!";
        my $bytes = do { local $/; <$file> };
        close $file;
        substr($bytes, 100, 1) ^= "\4";
        my $hex = Digest::SHA::sha256_hex($bytes);
        mkdir "$dir/storage/packs/" . substr $hex, 0, 2;
        open my $forged, '>:raw', "$dir/storage/packs/" . substr($hex, 0, 2) . "/$hex" or die $!;
        print {$forged} $bytes;
        close $forged;
        unlink $packs[0];
        ($code, $out) = reader("$dir/storage", @key, '--quiet');
        ok($code == 1 && $out =~ /is missing or damaged/, 'a forged pack is found') or diag($out);

        open my $other, '>', "$dir/other" or die $!;
        print {$other} 'x' x 32;
        close $other;
        ($code, $out) = reader("$dir/storage", '--key', "$dir/other", '--quiet');
        isnt($code, 0, 'another key opens nothing');
        ($code) = reader("$dir/storage", '--quiet');
        isnt($code, 0, 'nor does no key');
    }
}

done_testing();
