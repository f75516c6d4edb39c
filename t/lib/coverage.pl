#!/usr/bin/perl
# t/lib/coverage.pl SUMMARY: line coverage of each folder of src, from what "gcovr --json-summary" wrote.  Called by ./dev coverage.
use strict;
use warnings;
use JSON::PP ();

@ARGV == 1 or die "usage: $0 SUMMARY\n";
open my $in, '<', $ARGV[0] or die "$ARGV[0]: $!\n";
my $summary = do { local $/; JSON::PP->new->decode(<$in>) };
close $in;
my %folder;
for my $file (@{ $summary->{files} }) {
    my ($name) = $file->{filename} =~ m{^src/([^/]+)/} or next;
    $folder{$name}{$_} += $file->{"line_$_"} for qw(total covered);
}
printf "%-10s %6d lines %6.1f %%\n", $_, $folder{$_}{total}, 100 * $folder{$_}{covered} / ($folder{$_}{total} || 1) for sort keys %folder;
