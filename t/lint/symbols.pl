#!/usr/bin/perl
# t/lint/symbols.pl MODULE HELPER: the module exports what nginx looks up and nothing else; the helper links libc only.
use strict;
use warnings;

my ($module, $helper) = @ARGV;
my $bad = 0;

my %wanted = map { $_ => 1 } qw(ngx_modules ngx_module_names ngx_module_order);
for my $line (`nm -D --defined-only $module`) {
    my ($name) = $line =~ /\s(\S+)$/ or next;
    next if delete $wanted{$name};
    print "$module exports $name\n";
    $bad++;
}
print("$module does not export $_\n"), $bad++ for sort keys %wanted;

for my $line (`ldd $helper`) {
    next if $line =~ m{linux-vdso|libc\.so|ld-linux|not a dynamic|statically};
    print "$helper links more than libc: $line";
    $bad++;
}
exit($bad ? 1 : 0);
