#!/usr/bin/perl
# demo/transcriber.pl DIR PORT: a stand-in for the application that ngx-backup protects.  It keeps a SQLite database in WAL mode
# (app.db), audio in uploads/ and texts in transcripts/, accepts uploads over HTTP, and "transcribes" something every second.
#
#   GET  /            how many jobs and segments there are, as JSON
#   POST /upload      the body becomes an audio file with a job in the database
use strict;
use warnings;
use DBI;
use IO::Select;
use IO::Socket::INET;
use POSIX ();

my ($dir, $port) = @ARGV;
die "usage: transcriber.pl DIR PORT\n" unless defined $port;
my $running = 1;
$SIG{INT} = $SIG{TERM} = sub { $running = 0 };
$SIG{PIPE} = 'IGNORE';
srand(1);

mkdir "$dir/$_" for qw(uploads transcripts);
my $db = connect_database();
my $server = IO::Socket::INET->new(LocalAddr => "127.0.0.1:$port", Listen => 64, ReuseAddr => 1)
    or die "127.0.0.1:$port: $!\n";
add_job(audio()) for 1 .. 20;
transcribe() for 1 .. 15;

my $select = IO::Select->new($server);
my $next = time;
while ($running) {
    if ($select->can_read(0.2)) {
        my $client = $server->accept or next;
        attempt(sub { answer($client) }) or print {$client} "HTTP/1.0 500 Error\r\nContent-Length: 0\r\n\r\n";
        close $client;
    }
    if (time >= $next) {
        attempt(\&transcribe);
        $next = time + 1;
    }
}
$db->disconnect;

# What fails leaves no transaction open, which would keep everybody else from writing: a recovery, too.
sub attempt {
    my ($code) = @_;
    return 1 if eval { $code->(); 1 };
    warn $@;
    eval { $db->rollback } unless $db->{AutoCommit};
    return;
}

sub connect_database {
    my $handle = DBI->connect("dbi:SQLite:dbname=$dir/app.db", '', '', { RaiseError => 1, PrintError => 0, AutoCommit => 1 });
    $handle->sqlite_busy_timeout(30_000);
    $handle->do('PRAGMA journal_mode=WAL');
    $handle->do('PRAGMA synchronous=NORMAL');
    $handle->do('CREATE TABLE IF NOT EXISTS jobs(id INTEGER PRIMARY KEY, audio TEXT UNIQUE, status TEXT, created TEXT)');
    $handle->do('CREATE TABLE IF NOT EXISTS segments(id INTEGER PRIMARY KEY, job INTEGER REFERENCES jobs, at REAL, text TEXT)');
    return $handle;
}

# A tone in a WAV header: compressible as speech is, different each time.
sub audio {
    my ($seconds, $pitch) = (1 + int rand 4, 100 + rand 400);
    my $samples = pack 's<*', map { int(8000 * sin($_ * $pitch / 8000) + rand 200) } 1 .. 8000 * $seconds;
    return 'RIFF' . pack('V', 36 + length $samples) . 'WAVEfmt ' . pack('VvvVVvv', 16, 1, 1, 8000, 16000, 2, 16)
        . 'data' . pack('V', length $samples) . $samples;
}

sub write_file {
    my ($path, $bytes) = @_;
    open my $out, '>:raw', "$path.part" or die "$path: $!";
    print {$out} $bytes;
    close $out or die "$path: $!";
    rename "$path.part", $path or die "$path: $!";
}

sub add_job {
    my ($bytes) = @_;
    $db->begin_work;
    $db->do(q{INSERT INTO jobs(status, created) VALUES('queued', strftime('%Y-%m-%dT%H:%M:%fZ'))});
    my $id = $db->last_insert_id;
    my $name = sprintf '%04d_recording.wav', $id;
    write_file("$dir/uploads/$name", $bytes);
    $db->do('UPDATE jobs SET audio = ? WHERE id = ?', undef, $name, $id);
    $db->commit;
    return $id;
}

sub transcribe {
    my @words = qw(nginx keeps the only copy safe while someone speaks and nobody notices a backup at all);
    my ($job) = $db->selectrow_array(q{SELECT id FROM jobs WHERE status = 'queued' ORDER BY id LIMIT 1});
    if (!defined $job) {
        add_job(audio());
        return;
    }
    $db->begin_work;
    my $text = '';
    for my $n (1 .. 8) {
        my $line = join ' ', map { $words[rand @words] } 1 .. 12;
        $db->do('INSERT INTO segments(job, at, text) VALUES(?, ?, ?)', undef, $job, $n * 2.5, $line);
        $text .= "$line\n";
    }
    $db->do(q{UPDATE jobs SET status = 'completed' WHERE id = ?}, undef, $job);
    write_file(sprintf("$dir/transcripts/%04d.txt", $job), $text);
    $db->commit;
}

sub answer {
    my ($client) = @_;
    my $head = '';
    while ($head !~ /\r?\n\r?\n/) {
        sysread($client, $head, 4096, length $head) or return;
        return if length $head > 65_536;
    }
    my ($request, $body) = split /\r?\n\r?\n/, $head, 2;
    my ($status, $answer) = ('404 Not Found', '{"detail":"not found"}');
    if ($request =~ m{^GET / }) {
        my ($jobs) = $db->selectrow_array('SELECT count(*) FROM jobs');
        my ($segments) = $db->selectrow_array('SELECT count(*) FROM segments');
        ($status, $answer) = ('200 OK', qq({"jobs":$jobs,"segments":$segments}));
    } elsif ($request =~ m{^POST /upload }) {
        my ($length) = $request =~ /^Content-Length:\s*(\d+)/mi;
        while (length $body < ($length // 0)) {
            sysread($client, $body, 65_536, length $body) or return;
        }
        my $id = add_job($body);
        ($status, $answer) = ('201 Created', qq({"id":$id}));
    }
    print {$client} "HTTP/1.0 $status\r\nContent-Type: application/json\r\nContent-Length: ",
        length($answer) + 1, "\r\nConnection: close\r\n\r\n$answer\n";
}
