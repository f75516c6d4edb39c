#!/usr/bin/perl
# Workers of www-data protect an application whose files only its own user may read: nothing of it is changed for that.
use strict;
use warnings;
use DBI;
use FindBin;
use lib "$FindBin::Bin/lib";
use File::Find qw(find);
use JSON::PP ();
use NgxBackup;
use POSIX qw(_exit WNOHANG);
use Test::More;
use Time::HiRes qw(sleep time);

plan skip_all => 'only root may start the helper' if $> != 0;

my $APP = 12345;    # user and group of the application; no name is needed
my ($false, $true) = (JSON::PP::false, JSON::PP::true);

sub as_app {
    my ($code) = @_;
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        $) = "$APP $APP";
        $( = $APP;
        ($<, $>) = ($APP, $APP);
        umask 0027;
        my $ok = eval { $code->(); 1 };
        warn $@ unless $ok;
        _exit($ok ? 0 : 1);
    }
    return $pid;
}

sub do_as_app {
    my ($code) = @_;
    waitpid as_app($code), 0;
    return is($?, 0, 'the application did its work');
}

sub connect_db {
    my ($path) = @_;
    my $db = DBI->connect("dbi:SQLite:dbname=$path", '', '', {RaiseError => 1, PrintError => 0});
    $db->sqlite_busy_timeout(20_000);
    return $db;
}

# Each transaction adds two rows that belong together.
sub add_pairs {
    my ($path, $count) = @_;
    my $db = connect_db($path);
    for (1 .. $count) {
        $db->begin_work;
        $db->do('INSERT INTO pairs(side, filler) VALUES(?, hex(randomblob(300)))', undef, $_) for 'left', 'right';
        $db->commit;
        sleep 0.002;
    }
    $db->disconnect;
    return;
}

sub app_files {
    my ($t) = @_;
    my $app = "$t->{dir}/app";
    my $make = connect_db("$app/app.db");
    $make->do('PRAGMA journal_mode=WAL');
    $make->do('CREATE TABLE pairs(id INTEGER PRIMARY KEY, side, filler)');
    $make->disconnect;
    mkdir "$app/uploads/d$_" or die $! for 1 .. 5;
    for my $n (1 .. 5) {
        $t->write("app/uploads/d$n/f$_", "file $_ of $n\n" x $_) for 1 .. 40;
    }
    symlink '../f1', "$app/uploads/d1/link" or die $!;
    POSIX::mkfifo("$app/uploads/d1/fifo", 0600) or die $!;
    $t->write('app/uploads/d2/large', join '', map { pack 'N', $_ * 2654435761 % 4294967296 } 1 .. 500_000);
    system 'setfacl', '-m', 'u:33:---', "$app/uploads/d3/f3";
    system 'setfattr', '-n', 'user.note', '-v', 'hello', "$app/uploads/d3/f4";
    find({no_chdir => 1, wanted => sub {
        return system 'chown', '-h', "$APP:$APP", $_ if -l;
        chown $APP, $APP, $_;
        chmod -d $_ ? 0750 : 0640, $_;
    }}, $app);
    sleep 0.1;
    return;
}

sub new_app {
    my (%arg) = @_;
    my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, daemon => 1, %arg);
    my $dir = $t->{dir};
    $t->{set} = <<CONF;
    backup app {
        base_dir $dir/backups;
        database main { path $dir/app/app.db; wal require; }
        files uploads { path $dir/app/uploads; }
        storage local disk { path $dir/storage; }
        restore_root $dir/restored;
        restore_in_place on;
        min_free 0;
        thread_pool backup;
        @{[ $t->{set_more} // '' ]}
    }
CONF
    app_files($t);
    $t->start;
    return $t;
}

sub backup {
    my ($t, $type, $status) = @_;
    my $job = $t->backup({backup_type => $type});
    is($job->{status}, $status // 'completed', "$type backup") or diag(explain($job));
    return $job;
}

sub recover {
    my ($t, %body) = @_;
    my $r = $t->post('/recovery', {backup_id => 'latest', %body});
    my $job = $r->{json}{id} ? $t->wait_job($r->{json}{id}) : $r->{json};
    is($job->{status}, 'completed', "recovery of $body{recovery_type}") or diag(explain($job));
    return $job;
}

sub rows_of {
    my ($path) = @_;
    my $db = connect_db($path);
    my ($check) = $db->selectrow_array('PRAGMA integrity_check');
    my ($left) = $db->selectrow_array("SELECT count(*) FROM pairs WHERE side = 'left'");
    my ($right) = $db->selectrow_array("SELECT count(*) FROM pairs WHERE side = 'right'");
    $db->disconnect;
    is($check, 'ok', 'integrity_check');
    is($left, $right, 'no half transaction');
    return $left;
}

sub find_one {
    my ($dir, $name) = @_;
    my @found;
    find({no_chdir => 1, wanted => sub { push @found, $_ if m{/\Q$name\E$} }}, $dir);
    return $found[0];
}

sub owners_are_as_before {
    my ($t) = @_;
    my @wrong = grep { my @st = lstat $_; @st && ($st[4] != $APP || $st[5] != $APP) } glob "$t->{dir}/app/app.db*";
    is("@wrong", '', 'the database and its companions belong to the application');
    is(sprintf('%o', (stat "$t->{dir}/app")[2] & 07777), '750', 'its directory is as closed as before');
    return;
}

subtest 'files and a live database that www-data may not read' => sub {
    my $t = new_app();
    my $writer = as_app(sub { add_pairs("$t->{dir}/app/app.db", 1500) });
    $t->wait_until(20, 'watching', sub {
        my $s = $t->get('/status')->{json};
        return ($s->{backup_system}{files}{watch} // $s->{files}{watch} // [{}])->[0]{watching};
    });
    my $job = backup($t, 'full');
    is(scalar @{ $job->{warnings} // $job->{result}{warnings} // [] }, 0, 'without a warning') or diag(explain($job));
    my $stats = ($job->{result} // $job)->{stats};
    is($stats->{unreadable}, 0, 'nothing is unreadable');
    is($stats->{files}, 201, 'all files');
    do_as_app(sub {
        open my $out, '>', "$t->{dir}/app/uploads/d4/f4" or die $!;
        print {$out} "changed\n";
        close $out or die $!;
    });
    sleep 0.1;
    $job = backup($t, 'incremental');
    $stats = ($job->{result} // $job)->{stats};
    is($stats->{files_changed}, 1, 'an incremental finds what changed');
    is($stats->{scan}, 'changes', 'by what the watcher told') or diag(explain($stats));

    recover($t, recovery_type => 'full', restore_to_original => $false, target_directory => "$t->{dir}/restored/x");
    my $uploads = find_one("$t->{dir}/restored/x", 'uploads');
    is(`diff -r --no-dereference -x fifo $t->{dir}/app/uploads $uploads 2>&1`, '', 'what comes back is what was there');
    ok(rows_of(find_one("$t->{dir}/restored/x", 'app.db')) > 0, 'the database holds transactions');

    my $before = (stat "$t->{dir}/app/app.db")[1];
    is(recover($t, recovery_type => 'database')->{status}, 'completed', 'in place, while the application writes');
    is((stat "$t->{dir}/app/app.db")[1], $before, 'into the same file');
    waitpid $writer, 0;
    is($?, 0, 'the writer never saw an error');
    ok(rows_of("$t->{dir}/app/app.db") > 0, 'the live database');
    owners_are_as_before($t);
    is($t->get('/status')->{json}{backup_system}{database}{database_exists}, $true, 'status sees the database');
    my $test = $t->wait_job($t->post('/test', {})->{json}{id});
    is($test->{status}, 'completed', 'the self-test passes') or diag(explain($test));
    $t->stop('QUIT');
    $t->finish;
};

subtest 'a hot journal is rolled back' => sub {
    my $t = NgxBackup->new(user => 'www-data', helper => $NgxBackup::helper, daemon => 1);
    my $dir = $t->{dir};
    my $db = "$dir/app/old.db";
    $t->{set} = <<CONF;
    backup app {
        base_dir $dir/backups;
        database old { path $db; wal off; }
        storage local disk { path $dir/storage; }
        restore_root $dir/restored;
        min_free 0;
        thread_pool backup;
    }
CONF
    chown $APP, $APP, "$dir/app";
    chmod 0750, "$dir/app";
    do_as_app(sub {
        my $h = connect_db($db);
        $h->do('CREATE TABLE pairs(id INTEGER PRIMARY KEY, side, filler)');
        $h->do("INSERT INTO pairs(side, filler) VALUES('left', 'x'), ('right', 'y')");
        $h->disconnect;
    });
    my $killed = as_app(sub {
        my $h = connect_db($db);
        $h->do('PRAGMA cache_size=5');
        $h->begin_work;
        $h->do("INSERT INTO pairs(side, filler) VALUES('left', hex(randomblob(2000)))") for 1 .. 300;
        kill 'KILL', $$;
    });
    waitpid $killed, 0;
    ok(-s "$db-journal", 'a writer died in the middle of a transaction');
    $t->start;
    $t->wait_until(20, 'the helper', sub { ($t->get('/status')->{json}{helper}{state} // '') eq 'active' });
    my $status = backup($t, 'full');
    recover($t, recovery_type => 'database', restore_to_original => $false, target_directory => "$dir/restored/x");
    is(rows_of(find_one("$dir/restored/x", 'old.db')), 1, 'the backup holds what was committed');
    is(rows_of($db), 1, 'and so does the database');
    my @wrong = grep { (stat $_)[4] != $APP } glob "$db*";
    is("@wrong", '', 'its files belong to the application');
    $t->stop('QUIT');
    $t->finish;
};

subtest 'without the helper it is said what to do' => sub {
    my $t = new_app(helper => 'off');
    my $job = backup($t, 'full', 'failed');
    like($job->{error}, qr/backup_helper/, 'the job names the directive') or diag(explain($job));
    like($job->{error}, qr/app\.db/, 'and the file');
    owners_are_as_before($t);
    $t->stop('QUIT');
    $t->allow_log(qr/\[error\]/);
    $t->finish;
};

done_testing;
