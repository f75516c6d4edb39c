#!/usr/bin/perl
# GET /metrics: well-formed by the exposition format's own rules, agrees with status, and counters never fall.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use NgxBackup;
use Test::More;
use Time::HiRes qw(sleep time);

# Parses the text as a scraper would: {sample with its labels => value}; complains of what breaks the format.
sub parse {
    my ($text) = @_;
    my (%value, %type, %help, @wrong);
    my $family = '';
    push @wrong, 'the last line has no end' unless $text =~ /\n\z/;
    for my $line (split /\n/, $text) {
        if ($line =~ /^# HELP ([a-z_:][a-z0-9_:]*) \S/i) {
            push @wrong, "$1 comes twice" if $help{$1}++;
            $family = $1;
        } elsif ($line =~ /^# TYPE ([a-z_:][a-z0-9_:]*) (counter|gauge|histogram)$/i) {
            push @wrong, "TYPE of $1 is not behind its HELP" unless $family eq $1 && !$type{$1};
            $type{$1} = $2;
        } elsif ($line =~ /^([a-z_:][a-z0-9_:]*)\{((?:[a-z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)+)\} (-?[0-9.]+(?:e[+-]?\d+)?)$/i) {
            my ($name, $labels, $number) = ($1, $2, $3);
            my $base = $name;
            $base =~ s/_(bucket|sum|count)$// if ($type{$family} // '') eq 'histogram';
            push @wrong, "$name stands outside its family" unless $base eq $family;
            push @wrong, "$name\{$labels} comes twice" if exists $value{"$name\{$labels}"};
            push @wrong, "counter $name does not end in _total" if ($type{$family} // '') eq 'counter' && $name !~ /_total$/;
            $value{"$name\{$labels}"} = $number;
        } else {
            push @wrong, "not in the format: $line";
        }
    }
    return (\%value, \%type, \@wrong);
}

sub scrape {
    my ($t, $name) = @_;
    my $r = $t->get('/metrics', token => 'viewer');
    is($r->{status}, 200, "$name: answers");
    like($r->{headers}{'content-type'}, qr{^text/plain; version=0\.0\.4}, "$name: content type");
    my ($value, $type, $wrong) = parse($r->{content});
    is("@$wrong", '', "$name: well-formed");
    return ($value, $type);
}

sub value { my ($all, $name, $labels) = @_; return $all->{"nginx_backup_$name\{backup=\"app\"" . ($labels ? ",$labels" : '') . '}'} }

# The figures are published every few seconds.
sub scrape_when {
    my ($t, $name, $check) = @_;
    $t->wait_until(20, $name, sub { my ($v) = parse($t->get('/metrics')->{content}); return $check->($v) });
    return scrape($t, $name);
}

my $t = NgxBackup->new(user => 'www-data', helper => $> == 0 ? $NgxBackup::helper : undef, daemon => 1);
$t->write("app/uploads/f$_", "file $_\n" x $_) for 1 .. 10;
$t->start;

my ($v, $type) = scrape_when($t, 'before the first backup', sub { value($_[0], 'up') });
is(value($v, 'up'), 1, 'up');
is(value($v, 'backups'), 0, 'no backup');
ok(!defined value($v, 'last_backup_timestamp_seconds'), 'and no time of one');
is($t->get('/metrics', token => '')->{status}, 401, 'not for everybody');
is($t->request('POST', '/metrics', body => {})->{status}, 405, 'only to be read');

my $before = time;
is($t->backup->{status}, 'completed', 'a full backup');
$t->write('app/uploads/f3', 'changed');
sleep 0.1;
is($t->backup({backup_type => 'incremental'})->{status}, 'completed', 'an incremental');
is($t->wait_job($t->post('/verify', {level => 1})->{json}{id})->{status}, 'completed', 'a verification');

($v, $type) = scrape_when($t, 'after three jobs', sub { (value($_[0], 'jobs_total', 'type="verify",status="completed"') // 0) == 1 });
is(value($v, 'jobs_total', 'type="full",status="completed"'), 1, 'one full backup');
is(value($v, 'jobs_total', 'type="incremental",status="completed"'), 1, 'one incremental');
is(value($v, 'job_duration_seconds_count', 'type="full"'), 1, 'the histogram counts it');
is(value($v, 'job_duration_seconds_bucket', 'type="full",le="+Inf"'), 1, 'in its last bucket, too');
my @buckets = map { value($v, 'job_duration_seconds_bucket', "type=\"full\",le=\"$_\"") } qw(1 5 15 60 300 900 1800 3600 +Inf);
is(join(' ', sort { $a <=> $b } @buckets), "@buckets", 'buckets are cumulative');
is(value($v, 'last_files', 'type="incremental",state="changed"'), 1, 'one file changed');
is(value($v, 'last_files', 'type="full",state="new"'), 10, 'ten were new');
is(value($v, 'backups'), 2, 'two backups');
cmp_ok(value($v, 'last_backup_timestamp_seconds'), '>=', int $before, 'the newest is new');
cmp_ok(value($v, 'stored_bytes_total'), '>', 0, 'bytes were stored');
my $status = $t->get('/status')->{json};
is(value($v, 'storage_bytes', 'storage="disk"'), $status->{backup_system}{storage_backends}[0]{total_size}, 'agrees with status');
is(value($v, 'healthy'), $t->get('/health')->{json}{status} eq 'pass' ? 1 : 0, 'agrees with health');
is(value($v, 'helper_up'), 1, 'the helper') if $> == 0;

rename "$t->{dir}/app/uploads", "$t->{dir}/app/gone" or die $!;
is($t->backup->{status}, 'failed', 'a backup that fails');
rename "$t->{dir}/app/gone", "$t->{dir}/app/uploads" or die $!;
my ($w) = scrape_when($t, 'after a failure', sub { (value($_[0], 'jobs_total', 'type="full",status="failed"') // 0) == 1 });
is(value($w, 'last_status', 'type="full"'), 0, 'the last one was not good');
cmp_ok(value($w, 'last_attempt_timestamp_seconds', 'type="full"'), '>=', value($w, 'last_success_timestamp_seconds', 'type="full"'), 'attempt and success');

$t->hup;
$t->wait_until(20, 'a new runner', sub { $t->get('/status')->{status} == 200 });
my ($x, $types) = scrape_when($t, 'after a reload', sub { defined value($_[0], 'jobs_total', 'type="full",status="failed"') });
my @fell = grep { my ($name) = /^nginx_backup_(\w+?)(?:_bucket|_sum|_count)?\{/; ($types->{"nginx_backup_$name"} // 'gauge') ne 'gauge'
    && $name !~ /^helper_/ && ($x->{$_} // -1) < $w->{$_} } keys %$w;
is("@fell", '', 'no counter fell');

open my $docs, '<', "$FindBin::Bin/../docs/api.md" or die $!;
my $text = do { local $/; <$docs> };
my @unknown = grep { my ($name) = /^nginx_backup_(\w+)/; index($text, "`$name`") < 0 } keys %$types;
is("@unknown", '', 'every metric is in docs/api.md');

$t->stop('QUIT');
$t->allow_log(qr/\[error\]/);
$t->finish;
done_testing;
