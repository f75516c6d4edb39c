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
    chmod 02751, $t->{tree};
    utime 1_700_000_000, 1_700_000_000, $t->{tree};
    my $itself = sub { my @st = stat $_[0]; return sprintf '%d:%d %o %d', @st[4, 5], $st[2] & 07777, $st[9] };
    my ($before, $root) = (picture($t->{tree}), $itself->($t->{tree}));
    $t->start;
    active($t);
    $t->backup;
    my $job = recover($t, target_directory => "$t->{dir}/restored/a/b");
    is($job->{status}, 'completed', 'a recovery below directories that have to be made') or diag(explain($job));
    same(picture("$t->{dir}/restored/a/b/uploads"), $before, 'everything is there');
    is($itself->("$t->{dir}/restored/a/b/uploads"), $root, 'the directory of the tree, too');
    chmod 0700, "$t->{dir}/restored/a/b/uploads";
    is(recover($t, target_directory => "$t->{dir}/restored/a/b")->{status}, 'completed', 'once more');
    is((stat "$t->{dir}/restored/a/b/uploads")[2] & 07777, 0700, 'where it was there, it stays as it is');
    is(join(':', (stat "$t->{dir}/restored/a")[4, 5]), "$app:$group", 'what was made on the way belongs to the owner above');
    $t->finish;
};

# --- databases ---

sub make_database {
    my ($t, $journal, $dir) = @_;
    $dir //= "$t->{dir}/data";
    mkdir $dir;
    my $path = "$dir/app.db";
    unlink glob "$path*";
    run('sqlite3', $path, '.output /dev/null', "pragma journal_mode=$journal; create table t(a, b); " .
        "with recursive n(i) as (select 1 union all select i+1 from n where i<2000) insert into t select i, hex(randomblob(50)) from n;");
    chown $app, $group, $dir, glob "$path*";
    chmod 0640, glob "$path*";
    chmod 0750, $dir;
    return $path;
}

sub digest_of { my ($path) = @_; return scalar `sqlite3 '$path' 'select count(*), sum(length(b)), min(b), max(b) from t' 2>&1` }

sub database_app {
    my $t = new_app(set_more => '');
    $t->{set_more} = "database main { path $t->{dir}/data/app.db; } restore_safety off;";
    return $t;
}

subtest 'a database that is missing, damaged, or in use' => sub {
    my $t = database_app();
    my $path = make_database($t, 'wal');
    my $before = digest_of($path);
    $t->start;
    active($t);
    my $backup = $t->backup;
    is($backup->{status}, 'completed', 'a backup') or diag(explain($backup));
    my $back = sub {
        my ($name) = @_;
        is(digest_of($path), $before, "$name: the content is back");
        is(sprintf('%d:%d %o', (stat $path)[4, 5], (stat $path)[2] & 07777), "$app:$group 640", 'with owner and mode');
        is(leftovers("$t->{dir}/data"), 0, 'no temporaries');
        return;
    };
    unlink glob "$path*";
    my $job = recover($t, recovery_type => 'database');
    is($job->{status}, 'completed', 'a missing one') or diag(explain($job));
    $back->('missing');
    put($path, 'no database at all' x 1000);
    $job = recover($t, recovery_type => 'database');
    is($job->{status}, 'completed', 'one that is damaged') or diag(explain($job));
    $back->('damaged');
    my ($aside) = glob "$path.before-*";
    like($t->read($aside) // '', qr/^no database/, 'the old file is kept aside');
    # An idle connection in a rollback mode holds no lock, but the file is open.
    put($path, 'no database at all' x 1000);
    open my $held, '+<', $path or die;
    $job = recover($t, recovery_type => 'database');
    is($job->{status}, 'failed', 'a file that somebody has open is not replaced') or diag(explain($job));
    like($job->{error}, qr/is open in/, 'and it is said');
    like($t->read($path), qr/^no database/, 'it is as it was');
    close $held;
    is(recover($t, recovery_type => 'database')->{status}, 'completed', 'when it is closed, it is');
    $back->('closed');
    $job = recover($t, recovery_type => 'database', target_directory => "$t->{dir}/restored/x");
    is($job->{status}, 'completed', 'into a directory') or diag(explain($job));
    is(digest_of("$t->{dir}/restored/x/app.db"), $before, 'the content is there');
    is(sprintf('%d:%d %o', (stat "$t->{dir}/restored/x/app.db")[4, 5], (stat _)[2] & 07777), "$app:$group 640", 'with its owner and mode');
    $t->finish;
};

subtest 'a directory above that of the database is closed' => sub {
    my $t = new_app();
    my $dir = "$t->{dir}/closed/data";
    $t->{set_more} = "database main { path $dir/app.db; wal on; } restore_safety off;";
    mkdir "$t->{dir}/closed";
    my $path = make_database($t, 'wal', $dir);
    chown $app, $group, "$t->{dir}/closed";
    chmod 0750, "$t->{dir}/closed";
    my $before = digest_of($path);
    $t->start;
    active($t);
    my $backup = $t->backup;
    is($backup->{status}, 'completed', 'a backup') or diag(explain($backup));
    run('sqlite3', $path, 'delete from t');
    chown $app, $group, glob "$path*";
    my $job = recover($t, recovery_type => 'database');
    is($job->{status}, 'completed', 'a live recovery') or diag(explain($job));
    is($job->{databases}[0]{method}, 'live', 'which it is');
    is(digest_of($path), $before, 'the rows are back');
    unlink glob "$path*";
    $job = recover($t, recovery_type => 'database');
    is($job->{status}, 'completed', 'and one of a missing file') or diag(explain($job));
    is(digest_of($path), $before, 'they are back again');
    $t->finish;
};

# --- deaths ---

# Only whole files, old or new; before: path => content that was there.
sub whole {
    my ($t, $wanted, $name) = @_;
    my @half;
    for my $file (sort keys %$wanted) {
        my $now = $t->read("$t->{tree}/$file");
        push @half, $file if defined $now && $now ne $wanted->{$file} && $now ne 'old';
    }
    is("@half", '', $name);
    return;
}

subtest 'processes that die in the middle' => sub {
    my $t = new_app(set_more => 'restore_safety off;', daemon => 1, workers => 1);
    my (%wanted, $victim);
    for my $name ('', '/sub') {
        mkdir "$t->{tree}$name";
        chown $app, $group, "$t->{tree}$name";
        chmod 0750, "$t->{tree}$name";
    }
    for my $i (1 .. 600) {
        my $file = ($i % 2 ? 'sub/' : '') . "f$i";
        $wanted{$file} = $i % 50 ? noise(4000 + 4 * $i, $i) : noise(2 << 20, $i);
        put("$t->{tree}/$file", $wanted{$file});
    }
    my $before = `cd '$t->{tree}' && find . -type f -printf '%p %m %U:%G %T@\n' | LC_ALL=C sort`;
    $t->start;
    active($t);
    is($t->backup->{status}, 'completed', 'a backup');
    my %kill = (
        conversation => sub { my ($s) = $t->supervisors; my ($a) = $t->workers($s); return $t->workers($a) },
        agent => sub { my ($s) = $t->supervisors; return ($t->workers($s))[0] },
        supervisor => sub { return ($t->supervisors)[-1] },
        worker => sub { return $t->runner },
    );
    for my $who (qw(conversation agent supervisor worker)) {
        put("$t->{tree}/$_", 'old') for grep { /[1-4]$/ } keys %wanted;
        unlink map { "$t->{tree}/$_" } grep { /[5-9]$/ } keys %wanted;
        my $r = $t->post('/recovery', {recovery_type => 'files'});
        is($r->{status}, 202, "recovery while the $who dies");
        # When the first temporaries are there.
        $t->wait_until(10, 'it is at work', sub { leftovers($t->{tree}) > 0 || $t->get("/jobs/$r->{json}{id}")->{json}{done} });
        # A conversation whose worker is dead still ends what it was asked.
        my @talks = $kill{conversation}->();
        kill 'KILL', $kill{$who}->();
        $t->wait_until(20, 'the conversations end', sub { !grep { !$t->gone($_) } @talks }) if $who eq 'worker';
        my $job = $t->wait_job($r->{json}{id});
        like($job->{status} // 'none', qr/^(failed|completed)$/, "it ends: " . ($job->{status} // ''));
        like($job->{error}, qr/helper|stopped|ended|process/i, 'and says why') if ($job->{status} // '') eq 'failed';
        whole($t, \%wanted, 'no half file is in place');
        # A supervisor is started by the next reload.
        $t->hup if $who eq 'supervisor';
        active($t);
        my $again;
        # The operation that a conversation was in the middle of may end after the first of them.
        ok(
            $t->wait_until(
                30, 'the next one works',
                sub { ($again = recover($t))->{status} eq 'completed' && leftovers($t->{tree}) == 0 }
            ),
            'the next one succeeds, and removes the temporaries'
        ) or diag(explain($again));
        same(scalar `cd '$t->{tree}' && find . -type f -printf '%p %m %U:%G %T@\n' | LC_ALL=C sort`, $before, 'all is as it was');
    }
    $t->allow_log(qr/exited on signal 9|privileged helper|killed/);
    $t->finish;
};

done_testing;
