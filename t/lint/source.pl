#!/usr/bin/perl
# t/lint/source.pl: the rules that no compiler knows: which folder may include which, calls that are banned, long lines.
use strict;
use warnings;

my %below = (
    base    => [],
    crypto  => [qw(base)],
    storage => [qw(base)],
    repo    => [qw(storage crypto base)],
    sqlite  => [qw(repo storage crypto base helper)],
    files   => [qw(repo storage crypto base helper)],
    engine  => [qw(sqlite files repo storage crypto base helper)],
    helper  => [qw(base)],
    nginx   => [qw(engine sqlite files repo storage crypto base helper)],
    cli     => [qw(engine sqlite files repo storage crypto base)],
);

# Calls that have no bound, no thread safety, or end the process a library lives in.
my %banned = map { $_ => 1 } qw(strcpy strcat sprintf vsprintf gets strtok atoi atol atoll tmpnam mktemp
    localtime gmtime ctime asctime strerror getpwuid getgrgid getpwnam getgrnam readdir_r alloca system popen
    rand srand random);
my %banned_in_library = map { $_ => 1 } qw(exit _exit abort signal sigaction printf puts perror assert);

my $bad = 0;
sub complain { print "$_[0]\n"; $bad++ }

sub check_file {
    my ($file) = @_;
    my ($folder) = $file =~ m{^src/([^/]+)/};
    open my $in, '<', $file or die "$file: $!\n";
    my $text = do { local $/; <$in> };
    close $in;
    complain("$file: the first comment must say what the file is for") unless $text =~ m{^/\*\n \* \Q$folder\E/};

    my @include = $text =~ /^#include [<"]([^>"]+)[>"]/mg;
    for my $include (@include) {
        complain("$file: only src/nginx may include $include") if $include =~ /^ngx_/ && $folder ne 'nginx';
        my ($other) = $include =~ m{^([a-z]+)/[a-z_]+\.h$} or next;
        next if !exists $below{$other} || $other eq $folder;
        complain("$file: $folder may not include $include: arrows go down only")
            unless grep { $_ eq $other } @{ $below{$folder} };
    }
    (my $code = $text) =~ s{/\*.*?\*/|"(?:[^"\\\n]|\\.)*"}{ my $m = $&; $m =~ tr/\n//cd; $m }gse;
    my $number = 0;
    for my $line (split /\n/, $code) {
        $number++;
        while ($line =~ /(?<![\w.>])([a-z_]\w*)\s*\(/g) {
            complain("$file:$number: $1 is banned") if $banned{$1};
            complain("$file:$number: $1 does not belong into a library")
                if $banned_in_library{$1} && $folder !~ /^(?:cli|helper|nginx)$/;
        }
    }
    my $limit = $folder eq 'nginx' ? 80 : 100;
    $number = 0;
    for my $line (split /\n/, $text) {
        $number++;
        utf8::decode(my $wide = $line);
        complain("$file:$number: longer than $limit columns") if length $wide > $limit;
        complain("$file:$number: blank at the end") if $line =~ /\s$/;
        complain("$file:$number: tab") if $line =~ /\t/;
    }
}

my @files = sort split /\n/, `find src -name '*.[ch]'`;
check_file($_) for @files;

# Tests are programs of their own, so they may end themselves; what has no bound, or is a shell, they may not either.
my @anywhere = qw(strcpy strcat sprintf vsprintf gets strtok tmpnam mktemp alloca system popen);

sub check_test {
    my ($file) = @_;
    open my $in, '<', $file or die "$file: $!\n";
    while (my $line = <$in>) {
        $line =~ s{"(?:[^"\\]|\\.)*"}{}g;
        for my $call (@anywhere) {
            complain("$file:$.: $call is banned") if $line =~ /(?<![\w.>])$call\s*\(/;
        }
    }
    close $in;
}

check_test($_) for sort split /\n/, `find t -name '*.[ch]'`;

# Every source is in the list, and everything in the list is there.
my %listed;
for my $list (keys %below, 'helper_client') {
    chomp(my $names = `BK_LIST=1 sh -c '. ./config; echo \$bk_$list'`);
    my $folder = $list =~ s/_client//r;
    $listed{"src/$folder/$_.c"} = 1 for split ' ', $names;
}
for my $file (grep { /\.c$/ } @files) {
    complain("$file: not in config") unless delete $listed{$file};
}
complain("$_: in config, but there is no such file") for sort keys %listed;

print "$bad complaints\n" if $bad;
exit($bad ? 1 : 0);
