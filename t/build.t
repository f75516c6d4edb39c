#!/usr/bin/perl
# A packager's CFLAGS reach every file of the module, and take away none of the flags that it needs.
use strict;
use warnings;

use File::Temp qw(tempdir);
use Test::More;

my $build = tempdir('ngx-backup-build-XXXXXX', TMPDIR => 1, CLEANUP => 1);
my @make = ('make', "BUILD=$build", 'CFLAGS=-O1 -DBK_PACKAGER=1');
delete @ENV{qw(MAKEFLAGS MFLAGS MAKEOVERRIDES)};

sub output {
    my (@command) = @_;
    my $pid = open my $pipe, '-|';
    die "fork: $!" unless defined $pid;
    if (!$pid) {
        open STDERR, '>&', \*STDOUT;
        exec @command or die "$command[0]: $!";
    }
    my $text = do { local $/; <$pipe> } // '';
    close $pipe;
    return $text;
}

my $said = output(@make, '-s', "$build/nginx/objs/Makefile");
is($?, 0, 'the module is configured') or diag($said);

# What would be run: a whole build takes too long here.
$said = output(@make, '-n', 'module') =~ s/\\\n\s*/ /gr;
my %command = map { m{-o objs/(addon/\S+)\.o} ? ($1 => $_) : () } split /\n/, $said;
cmp_ok(scalar keys %command, '>', 50, 'it has its files') or diag($said);
for my $flag ('-D_GNU_SOURCE', '-D_FILE_OFFSET_BITS=64', '-std=gnu11', '-DBK_PACKAGER=1', '-fPIC', '-Werror') {
    is(join(' ', grep { index($command{$_}, $flag) < 0 } sort keys %command), '', "each is compiled with $flag");
}

done_testing();
