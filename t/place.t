#!/usr/bin/perl
# Recoveries by workers without rights: the privileged helper puts files and databases back, with everything that belongs to
# them, also when processes die on the way.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use NgxBackup;
use Test::More;
use Time::HiRes qw(sleep);

plan skip_all => 'only root may start the helper' if $> != 0;

my ($app, $group) = (43210, 43211); # nobody has these numbers

sub new_app {
    my (%arg) = @_;
    my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, %arg);
    $t->{tree} = "$t->{dir}/app/uploads";
    return $t;
}

sub run { my (@command) = @_; system(@command) == 0 or die "@command: $?"; return }

sub put {
    my ($path, $content, $mode, $uid, $gid) = @_;
    open my $out, '>:raw', $path or die "$path: $!";
    print {$out} $content;
    close $out or die "$path: $!";
    chown $uid // $app, $gid // $group, $path;
    chmod $mode // 0640, $path;
    return;
}

sub noise { my ($len, $seed) = @_; srand $seed; return join '', map { pack 'N', int rand 2**32 } 1 .. $len / 4 }

# Of everything a kind, the application's own and closed to others.
sub make_tree {
    my ($t) = @_;
    my $dir = $t->{tree};
    for my $name ('', '/sub', '/sub/deep', '/empty', '/shared', '/many') {
        mkdir "$dir$name";
        chown $app, $group, "$dir$name";
        chmod 0750, "$dir$name";
    }
    put("$dir/small", 'small');
    put("$dir/nothing", '');
    put("$dir/middle", noise(20_000, 1));
    put("$dir/sub/large", noise(6 << 20, 2), 0600);
    put("$dir/sub/deep/odd", 'odd', 0444, 1234, 4321);
    put("$dir/sub/program", '#!/bin/sh', 06755);
    put("$dir/able", 'able', 0750);
    run('setcap', 'cap_net_raw+ep', "$dir/able");
    put("$dir/noted", 'noted');
    run('setfattr', '-n', 'user.note', '-v', 'kept', "$dir/noted");
    run('setfacl', '-m', 'u:1234:rw', "$dir/noted");
    run('setfacl', '-d', '-m', 'g:4321:rx', "$dir/sub");
    run('setfattr', '-n', 'user.dir', '-v', 'kept', "$dir/sub/deep");
    put("$dir/many/$_", "file $_" x $_) for 1 .. 150;
    link "$dir/small", "$dir/sub/second" or die;
    link "$dir/small", "$dir/third" or die;
    symlink '../elsewhere', "$dir/sub/link" or die;
    run('mkfifo', '-m', '0620', "$dir/pipe");
    run('truncate', '-s', '3M', "$dir/sparse");
    run('dd', 'if=/dev/zero', 'of=' . "$dir/sparse", 'bs=4096', 'seek=300', 'count=1', 'conv=notrunc', 'status=none');
    chown $app, $group, "$dir/pipe", "$dir/sparse";
    chmod 02770, "$dir/shared";
    run('chown', '-h', "1234:$group", "$dir/sub/link");
    run('touch', '-h', '-d', '2001-02-03 04:05:06.789', "$dir/sub/link", "$dir/small", "$dir/sub/large", "$dir/pipe");
    run('touch', '-d', '2002-03-04 05:06:07.891', "$dir/sub/deep", "$dir/empty", "$dir/many", "$dir/sub", "$dir/shared");
    run('chmod', '0750', "$t->{dir}/app");
    run('chown', "$app:$group", "$t->{dir}/app");
    return;
}

# Everything that a file has, as text.
sub picture {
    my ($dir) = @_;
    my $text = `cd '$dir' && find . -mindepth 1 \\( -type d -printf '%p %y %m %U:%G %T@\\n' -o -printf '%p %y %m %U:%G %T@ %s %n %l\\n' \\) |
        LC_ALL=C sort; find . -type f -exec sha256sum {} + | LC_ALL=C sort -k2; getfattr -R -P -h -d -m - . 2>&1 | grep -v '^\$';
        find . -type f -samefile small | LC_ALL=C sort`;
    return $text;
}

sub same {
    my ($got, $wanted, $name) = @_;
    return ok(1, $name) if $got eq $wanted;
    my %want = map { $_ => 1 } split /\n/, $wanted;
    my %have = map { $_ => 1 } split /\n/, $got;
    diag("missing: $_") for grep { !$have{$_} } sort keys %want;
    diag("too much: $_") for grep { !$want{$_} } sort keys %have;
    return ok(0, $name);
}

sub leftovers { my ($dir) = @_; return scalar(() = `find '$dir' -name '.ngx-backup-*'`) }

sub active {
    my ($t) = @_;
    return $t->wait_until(20, 'the helper is active', sub {
        my $r = $t->get('/status');
        return $r->{status} == 200 && ($r->{json}{helper}{state} // '') eq 'active';
    });
}

sub recover {
    my ($t, %body) = @_;
    my $r = $t->post('/recovery', {recovery_type => 'files', %body});
    return $r->{json} if $r->{status} != 202;
    return $t->wait_job($r->{json}{id});
}

sub spoil {
    my ($t) = @_;
    my $dir = $t->{tree};
    unlink "$dir/small", "$dir/third", "$dir/sub/link", "$dir/pipe", "$dir/sub/large";
    run('rm', '-rf', "$dir/many", "$dir/shared");
    put("$dir/middle", noise(20_000, 9));
    put("$dir/nothing", 'something', 0666, 0, 0);
    chmod 0777, "$dir/sub/deep/odd", "$dir/empty";
    chown 0, 0, "$dir/sub/deep/odd", "$dir/sparse", "$dir/sub/deep";
    run('setfattr', '-x', 'user.note', "$dir/noted");
    run('setfattr', '-n', 'user.new', '-v', 'x', "$dir/noted");
    run('setfacl', '-b', "$dir/noted");
    put("$dir/extra", 'extra');
    mkdir "$dir/more";
    put("$dir/more/extra", 'extra');
    symlink 'x', "$dir/many";
    return;
}

subtest 'in place, with everything that belongs to a file' => sub {
    my $t = new_app(set_more => 'restore_setuid on; restore_safety off;');
    make_tree($t);
    my $before = picture($t->{tree});
    $t->start;
    active($t);
    my $backup = $t->backup;
    is($backup->{status}, 'completed', 'a worker without rights backs the tree up') or diag(explain($backup));
    spoil($t);
    my $plan = $t->post('/recovery', {recovery_type => 'files', dry_run => JSON::PP::true, delete_extra => JSON::PP::true});
    is($plan->{status}, 200, 'a dry run looks through the helper') or diag(explain($plan));
    my $job = recover($t, delete_extra => JSON::PP::true);
    is($job->{status}, 'completed', 'a recovery in place') or diag(explain($job));
    same(picture($t->{tree}), $before, 'everything is as it was');
    is(leftovers($t->{tree}), 0, 'no temporaries');
    $job = recover($t);
    is($job->{status}, 'completed', 'once more');
    is($job->{files_restored}, 0, 'what is right is not written again') or diag(explain($job));
    same(picture($t->{tree}), $before, 'and all is the same');
    # Parts: by a pattern, and with what is there kept aside.
    unlink "$t->{tree}/many/7", "$t->{tree}/small";
    put("$t->{tree}/many/8", 'changed');
    $job = recover($t, file_patterns => ['many/*'], overwrite => 'rename');
    is($job->{status}, 'completed', 'a pattern');
    is($t->read("$t->{tree}/many/7"), 'file 7' x 7, 'what it selects comes back');
    ok(!-e "$t->{tree}/small", 'and nothing else');
    my ($aside) = glob "$t->{tree}/many/8.before-*";
    is($aside && $t->read($aside), 'changed', 'what was there is kept aside');
    is(join(':', (stat "$t->{tree}/many/8")[4, 5]), "$app:$group", 'the owner is as before');
    $t->finish;
};

subtest 'what the helper withholds is said' => sub {
    my $t = new_app(set_more => 'restore_safety off;');
    make_tree($t);
    $t->start;
    active($t);
    $t->backup;
    unlink "$t->{tree}/sub/program", "$t->{tree}/able";
    my $job = recover($t);
    is($job->{status}, 'warning', 'set-user-id bits do not come back by themselves');
    like(join("\n", @{ $job->{result}{warnings} // $job->{warnings} // [] }), qr/2 files .*restore_setuid on/, 'the warning names the directive')
        or diag(explain($job));
    is(sprintf('%o', (stat "$t->{tree}/sub/program")[2] & 07777), '755', 'the file is there without');
    $t->finish;
};

subtest 'into a directory' => sub {
    my $t = new_app(set_more => 'restore_setuid on;');
    make_tree($t);
    chown $app, $group, "$t->{dir}/restored";
    chmod 0750, "$t->{dir}/restored";
    my $before = picture($t->{tree});
    $t->start;
    active($t);
    $t->backup;
    my $job = recover($t, target_directory => "$t->{dir}/restored/a/b");
    is($job->{status}, 'completed', 'a recovery below directories that have to be made') or diag(explain($job));
    same(picture("$t->{dir}/restored/a/b/uploads"), $before, 'everything is there');
    is(join(':', (stat "$t->{dir}/restored/a")[4, 5]), "$app:$group", 'what was made on the way belongs to the owner above');
    $t->finish;
};

done_testing;
