#!/usr/bin/perl
# t/lib/reader.pl: an independent reader of a repository, written from docs/repository-format.md alone.  It
# proves that the page is complete, and is the last resort of somebody who has the page and not the program.
#
#   reader.pl DIRECTORY [--key FILE | --passphrase FILE] [--backup ID] [--restore TARGET] [--quiet]
#
# Checks every object's name against its bytes, the index against the packs' own directories, and every chunk against its
# id; prints each backup with the SHA-256 of each file and database; with --restore writes them below
# TARGET/<backup id>/{files/<name>/…,databases/<name>}.  Exit 1 when anything was wrong; each finding is a line "damaged: …".
#
# Perl's own modules; zstd frames go through the command "zstd", and with --key Crypt::AuthEnc::GCM (Debian: libcryptx-perl) decrypts.
# scrypt is that of the command "openssl kdf" (OpenSSL 3), which shows the passphrase in the list of processes: use it when nobody else is there.
use strict;
use warnings;
no warnings 'portable';    # 64-bit numbers
use Compress::Zlib ();
use Digest::SHA qw(hmac_sha256 sha256 sha256_hex);
use File::Path qw(make_path);
use File::Temp qw(tempfile);
use Getopt::Long qw(GetOptions);
use JSON::PP ();
use POSIX qw(mkfifo);
use Time::HiRes ();

use constant {
    HEADER => 80, CHUNK_MAX => 8 << 20, PACK_MAX => 80 << 20, FANOUT => 1024, ZERO_ID => "\0" x 32,
    KIND_PACK => 1, KIND_META => 2, KIND_INDEX => 3, KIND_SNAPSHOT => 4,
    T_FILE => 1, T_BLOCK => 2, T_TREE => 3, T_MAP => 4, T_BLOB => 5,
};

my ($wanted, $target, $quiet, $key_file, $pass_file);
GetOptions('key=s' => \$key_file, 'passphrase=s' => \$pass_file, 'backup=s' => \$wanted, 'restore=s' => \$target, 'quiet' => \$quiet) && @ARGV == 1
    or die "usage: $0 DIRECTORY [--key FILE | --passphrase FILE] [--backup ID] [--restore TARGET] [--quiet]\n";
my $root = $ARGV[0];
my $findings = 0;
my ($uuid, $id_key, %secret, %packs, %where, @cached);

# --- small tools ---

sub finding { chomp(my $line = "@_"); print "damaged: $line\n"; $findings++; return }
sub say_line { print "@_\n" unless $quiet; return }

sub slurp {
    my ($path) = @_;
    open my $in, '<:raw', $path or die "$path: $!\n";
    local $/;
    my $bytes = <$in>;
    close $in;
    return defined $bytes ? $bytes : '';
}

# Object names below a prefix, sorted; temporaries mean nothing.
sub objects {
    my ($prefix) = @_;
    my @names;
    my @todo = ($prefix);
    while (defined(my $name = shift @todo)) {
        opendir my $dir, "$root/$name" or next;
        for my $part (sort grep { !/^\./ } readdir $dir) {
            -d "$root/$name/$part" ? push @todo, "$name/$part" : push @names, "$name/$part";
        }
        closedir $dir;
    }
    return sort @names;
}

# A cursor over bytes: every field is checked to be there.
sub cursor { my ($bytes) = @_; return { b => $bytes, at => 0 } }
sub left { my ($c) = @_; return length($c->{b}) - $c->{at} }

sub take {
    my ($c, $n) = @_;
    die "cut off\n" if $n > left($c);
    my $bytes = substr $c->{b}, $c->{at}, $n;
    $c->{at} += $n;
    return $bytes;
}
sub u8 { return unpack 'C', take($_[0], 1) }
sub u16 { return unpack 'v', take($_[0], 2) }
sub u32 { return unpack 'V', take($_[0], 4) }
sub u64 { return unpack 'Q<', take($_[0], 8) }
sub i64 { return unpack 'q<', take($_[0], 8) }

# Names are bytes; this is their printable form, and back.
sub escape {
    my ($bytes) = @_;
    my $out = '';
    while (length $bytes) {
        if ($bytes =~ s/^( [\x20-\x5b\x5d-\x7e] | \xc2[\xa0-\xbf] | [\xc3-\xdf][\x80-\xbf]
                         | \xe0[\xa0-\xbf][\x80-\xbf] | [\xe1-\xec\xee\xef][\x80-\xbf]{2} | \xed[\x80-\x9f][\x80-\xbf]
                         | \xf0[\x90-\xbf][\x80-\xbf]{2} | [\xf1-\xf3][\x80-\xbf]{3} | \xf4[\x80-\x8f][\x80-\xbf]{2} )//x) {
            $out .= $1;
        } else {
            $out .= sprintf '\\x%02x', ord substr $bytes, 0, 1, '';
        }
    }
    return $out;
}

sub unescape {
    my ($text) = @_;
    $text =~ s/\\x([0-9a-f]{2})/chr hex $1/gei;
    return $text;
}

sub crc32c {
    my ($crc) = (0xffffffff);
    for my $byte (unpack 'C*', $_[0]) {
        $crc ^= $byte;
        $crc = $crc & 1 ? ($crc >> 1) ^ 0x82f63b78 : $crc >> 1 for 1 .. 8;
    }
    return $crc ^ 0xffffffff;
}

# XXH64, seed 0.  "use integer" wraps at 64 bits; shifts need unsigned numbers and stand outside of it.
{
    my ($P1, $P2, $P3, $P4, $P5) =
        (0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9, 0x85ebca77c2b2ae63, 0x27d4eb2f165667c5);
    my $mul = sub { use integer; my $r = $_[0] * $_[1]; no integer; return $r & 0xffffffffffffffff };
    my $add = sub { use integer; my $r = $_[0] + $_[1]; no integer; return $r & 0xffffffffffffffff };
    my $rotl = sub { return (($_[0] << $_[1]) & 0xffffffffffffffff) | ($_[0] >> (64 - $_[1])) };
    my $round = sub { return $mul->($rotl->($add->($_[0], $mul->($_[1], $P2)), 31), $P1) };

    sub xxh64 {
        my ($data) = @_;
        my ($len, $at, $h) = (length $data, 0);
        if ($len >= 32) {
            my @v = ($add->($P1, $P2), $P2, 0, $add->(~$P1, 1));
            for (; $at + 32 <= $len; $at += 32) {
                my @word = unpack 'Q<4', substr $data, $at, 32;
                $v[$_] = $round->($v[$_], $word[$_]) for 0 .. 3;
            }
            $h = $rotl->($v[0], 1);
            $h = $add->($h, $rotl->($v[1], 7));
            $h = $add->($h, $rotl->($v[2], 12));
            $h = $add->($h, $rotl->($v[3], 18));
            $h = $add->($mul->($h ^ $round->(0, $_), $P1), $P4) for @v;
        } else {
            $h = $P5;
        }
        $h = $add->($h, $len);
        for (; $at + 8 <= $len; $at += 8) {
            $h = $add->($mul->($rotl->($h ^ $round->(0, unpack 'Q<', substr $data, $at, 8), 27), $P1), $P4);
        }
        if ($at + 4 <= $len) {
            $h = $add->($mul->($rotl->($h ^ $mul->(unpack('V', substr $data, $at, 4), $P1), 23), $P2), $P3);
            $at += 4;
        }
        for (; $at < $len; $at++) {
            $h = $mul->($rotl->($h ^ $mul->(ord(substr $data, $at, 1), $P5), 11), $P1);
        }
        $h = $mul->($h ^ $h >> 33, $P2);
        $h = $mul->($h ^ $h >> 29, $P3);
        return $h ^ $h >> 32;
    }
}

# --- objects ---

sub unzstd {
    my ($bytes) = @_;
    my ($file, $path) = tempfile('reader-XXXXXX', TMPDIR => 1, UNLINK => 1);
    binmode $file;
    print {$file} $bytes;
    close $file or die "$path: $!\n";
    open my $in, '-|:raw', 'zstd', '-d', '-q', '-c', $path or die "zstd: $!\n";
    local $/;
    my $out = <$in>;
    my $ok = close $in;
    unlink $path;
    return $ok && defined $out ? $out : undef;
}

sub decompress {
    my ($codec, $bytes, $raw) = @_;
    my $out = $codec == 0 ? $bytes : $codec == 1 ? unzstd($bytes) : $codec == 2 ? Compress::Zlib::memGunzip($bytes) : undef;
    die "codec $codec: the data is damaged\n" if !defined $out || length $out != $raw;
    return $out;
}

sub hkdf {
    my ($input, $salt, $info, $length) = @_;
    my $prk = hmac_sha256($input, length $salt ? $salt : "\0" x 32);
    my ($out, $block) = ('', '');
    for (my $n = 1; length $out < $length; $n++) {
        $block = hmac_sha256($block . $info . chr $n, $prk);
        $out .= $block;
    }
    return substr $out, 0, $length;
}

# AES-256-GCM; the tag lies behind.
sub open_sealed {
    my ($key, $nonce, $aad, $bytes) = @_;
    die "cut off\n" if length $bytes < 16;
    my ($sealed, $tag) = (substr($bytes, 0, -16), substr $bytes, -16);
    my $plain = Crypt::AuthEnc::GCM::gcm_decrypt_verify('AES', $key, $nonce, $aad, $sealed, $tag);
    return $plain // die "it is damaged, or for another key\n";
}

# The object's own key, from what check_header has seen to be there; undef without encryption.
sub object_key {
    my ($object) = @_;
    return undef if !%secret;    # in a list, too
    my (undef, $kind, undef, $epoch, $of, $salt, $commitment) = unpack 'a8 v v V a16 a32 a16', $object;
    my $secret = $secret{$epoch} // die "epoch $epoch is not in the keyring\n";
    my $both = hkdf($secret, $salt, 'ngx-backup/' . pack('v', $kind) . $of, 48);
    die "of another key, or its header is damaged\n" if substr($both, 32) ne $commitment;
    return substr $both, 0, 32;
}

sub part {
    my ($object, $key, $domain, $position, $aad, $bytes) = @_;
    return $bytes if !defined $key;
    return open_sealed($key, pack('N Q>', $domain, $position), substr($object, 0, HEADER) . $aad, $bytes);
}

sub chunk_id { my ($text) = @_; return defined $id_key ? hmac_sha256($text, $id_key) : sha256($text) }

sub check_header {
    my ($object, $kind) = @_;
    my $c = cursor($object);
    my $magic = take($c, 8);
    my ($is, $flags, $epoch) = (u16($c), u16($c), u32($c));
    my $of = take($c, 16);
    take($c, 32);
    my $commitment = take($c, 16);
    die "wrong magic\n" if $magic ne "NGXBKP\0\1";
    die "kind $is instead of $kind\n" if $is != $kind;
    die "unknown flags\n" if $flags;
    die "epoch or commitment of an encrypted object\n" if !%secret && ($epoch || $commitment ne "\0" x 16);
    die "of another repository\n" if $of ne $uuid;
    return;
}

sub whole_object {
    my ($object, $kind) = @_;
    check_header($object, $kind);
    my $c = cursor($object);
    take($c, HEADER);
    my $aad = take($c, 5);
    my ($codec, $raw) = unpack 'C V', $aad;
    return decompress($codec, part($object, object_key($object), 3, 0, $aad, take($c, left($c))), $raw);
}

sub check_names {
    my $count = 0;
    for my $folder (qw(packs meta index snapshots)) {
        for my $name (objects($folder)) {
            my $pattern = $folder =~ /^(?:packs|meta)$/ ? qr{^$folder/([0-9a-f]{2})/(\1[0-9a-f]{62})$}
                : $folder eq 'index' ? qr{^index/()[0-9A-Z]{26}-([0-9a-f]{64})$}
                : qr{^snapshots/()[a-z][a-z0-9_]{0,62}-([0-9a-f]{64})$};
            if ($name !~ $pattern) {
                finding("$name: not a name of an object");
            } elsif (sha256_hex(slurp("$root/$name")) ne $2) {
                finding("$name: its SHA-256 differs from its name");
            }
            $count++;
        }
    }
    say_line("$count objects have the content that their names say");
    return;
}

# --- packs ---

# The directory: id => { offset, stored, raw, type, codec }.
sub read_directory {
    my ($pack, $kind) = @_;
    die "impossible length\n" if length $pack < HEADER + 32 || length $pack > PACK_MAX;
    check_header($pack, $kind);
    my $trailer = substr $pack, -32;
    my ($offset, $length, $count, $raw, $codec, $crc, $magic) = unpack 'V6a8', $trailer;
    die "the trailer is damaged\n" if $magic ne 'NGXBKEND' || $crc != crc32c(substr $trailer, 0, 20);
    die "the directory lies elsewhere\n" if $offset < HEADER || $offset + $length + 32 != length $pack || $raw != 46 * $count;
    my $c = cursor(decompress($codec, part($pack, object_key($pack), 2, 0, '', substr($pack, $offset, $length)), $raw));
    my (%entries, $before);
    for (1 .. $count) {
        my $id = take($c, 32);
        my %e = (offset => u32($c), stored => u32($c), raw => u32($c), type => u8($c), codec => u8($c));
        die "the directory is not sorted\n" if defined $before && $before ge $id;
        die "a frame lies outside\n" if $e{offset} < HEADER || $e{offset} + $e{stored} > $offset || $e{raw} > CHUNK_MAX;
        die "a chunk of the wrong type\n" if $e{type} < 1 || $e{type} > 5 || ($e{type} >= 3) != ($kind == KIND_META);
        $entries{$id} = \%e;
        $before = $id;
    }
    return \%entries;
}

# All chunks of a pack, each checked against its id.  One run of zstd does for all frames: it joins what it reads.
sub decode_pack {
    my ($name) = @_;
    my $pack = slurp("$root/$name");
    my $entries = read_directory($pack, $packs{$name}{kind});
    my $key = object_key($pack);
    my (%chunks, @zstd);
    for my $id (sort { $entries->{$a}{offset} <=> $entries->{$b}{offset} } keys %$entries) {
        my $e = $entries->{$id};
        my $frame = eval {
            part($pack, $key, 1, $e->{offset}, pack('C C V', @$e{qw(type codec raw)}), substr $pack, $e->{offset}, $e->{stored});
        };
        if (!defined $frame) {
            $chunks{$id} = undef;
            next;
        }
        if ($e->{codec} == 1) {
            push @zstd, [$id, $e, $frame];
        } else {
            $chunks{$id} = eval { decompress($e->{codec}, $frame, $e->{raw}) };
        }
    }
    my $joined = @zstd ? unzstd(join '', map { $_->[2] } @zstd) : '';
    my $sum = 0;
    $sum += $_->[1]{raw} for @zstd;
    my $at = 0;
    for my $z (@zstd) {
        my ($id, $e, $frame) = @$z;
        # When one of them is damaged, take them one by one.
        $chunks{$id} = defined $joined && length $joined == $sum ? substr $joined, $at, $e->{raw}
            : eval { decompress(1, $frame, $e->{raw}) };
        $at += $e->{raw};
    }
    for my $id (keys %chunks) {
        next if defined $chunks{$id} && chunk_id(chr($entries->{$id}{type}) . $chunks{$id}) eq $id;
        finding("$name: chunk " . unpack('H*', $id) . ' does not have its id');
        delete $chunks{$id};
    }
    return \%chunks;
}

sub chunk {
    my ($id, $raw) = @_;
    return "\0" x $raw if $id eq ZERO_ID && defined $raw;
    my $hex = unpack 'H*', $id;
    my $name = $where{$id} or die "chunk $hex is in no pack\n";
    my ($hit) = grep { $_->[0] eq $name } @cached;
    if (!$hit) {
        $hit = [$name, decode_pack($name)];
        unshift @cached, $hit;
        $#cached = 7 if @cached > 8;
    }
    my $bytes = $hit->[1]{$id};
    die "chunk $hex is damaged\n" if !defined $bytes;
    die "chunk $hex has another length\n" if defined $raw && length $bytes != $raw;
    return $bytes;
}

# --- the index, compared with the packs ---

sub read_segment {
    my ($text) = @_;
    my $c = cursor($text);
    die "wrong magic\n" if take($c, 8) ne 'NGXBKIDX';
    die "unknown version\n" if u32($c) != 1;
    my ($packs, $entries, $superseded) = (u32($c), u32($c), u32($c));
    my @fan = unpack 'V256', take($c, 1024);
    my @packs = map { my $p = take($c, 32); [$p, u32($c), u16($c), u16($c), i64($c)] } 1 .. $packs;
    my (@entries, @below, $before);
    for (1 .. $entries) {
        my $id = take($c, 32);
        my ($pack, $offset, $stored, $raw, $high, $what) = unpack 'VVVvCC', take($c, 16);
        die "the entries are not sorted\n" if defined $before && $before ge $id;
        die "an entry names no pack\n" if $pack >= $packs;
        push @entries, { id => $id, pack => $pack, offset => $offset, stored => $stored, raw => $raw | $high << 16,
            type => $what >> 4, codec => $what & 15 };
        $below[ord $id]++;
        $before = $id;
    }
    my $sum = 0;
    for my $i (0 .. 255) {
        $sum += $below[$i] || 0;
        die "the fan-out is wrong\n" if $fan[$i] != $sum;
    }
    my @superseded = map { take($c, u8($c)) } 1 .. $superseded;
    die "the checksum differs\n" if xxh64(substr $text, 0, $c->{at}) != u64($c);
    die "bytes behind the end\n" if left($c);
    return { packs => \@packs, entries => \@entries, superseded => \@superseded };
}

sub check_index {
    my %segments;
    for my $name (objects('index')) {
        $segments{$name} = eval { read_segment(whole_object(slurp("$root/$name"), KIND_INDEX)) };
        finding("$name: $@") if !$segments{$name};
    }
    my %old = map { $_ => 1 } map { @{ $_->{superseded} } } grep { $_ } values %segments;
    my (%indexed, $entries);
    for my $name (sort grep { $segments{$_} && !$old{$_} } keys %segments) {
        my $s = $segments{$name};
        my @names;
        for my $p (@{ $s->{packs} }) {
            my ($id, $size, $kind) = @$p;
            my $hex = unpack 'H*', $id;
            my $pack = ($kind == KIND_META ? 'meta' : 'packs') . '/' . substr($hex, 0, 2) . "/$hex";
            push @names, $pack;
            $indexed{$pack} = 1;
            if (!$packs{$pack}) {
                finding("$name: $pack is missing or damaged");
            } elsif ($packs{$pack}{size} != $size || $packs{$pack}{kind} != $kind) {
                finding("$name: $pack has another size or kind");
            }
        }
        for my $e (@{ $s->{entries} }) {
            my $pack = $packs{ $names[$e->{pack}] } or next;
            my $d = $pack->{entries}{ $e->{id} };
            finding("$name: chunk " . unpack('H*', $e->{id}) . " is not in $names[$e->{pack}] as the index says")
                if !$d || grep { $d->{$_} != $e->{$_} } qw(offset stored raw type codec);
            $entries++;
        }
    }
    for my $pack (sort keys %packs) {
        say_line("$pack is in no index segment") if !$indexed{$pack};
    }
    say_line(($entries || 0) . ' index entries agree with the directories of ' . keys(%packs) . ' packs');
    return;
}

sub read_packs {
    for my $kind (KIND_PACK, KIND_META) {
        for my $name (objects($kind == KIND_META ? 'meta' : 'packs')) {
            my $pack = slurp("$root/$name");
            my $entries = eval { read_directory($pack, $kind) };
            if (!$entries) {
                finding("$name: $@");
                next;
            }
            $packs{$name} = { kind => $kind, size => length $pack, entries => $entries };
            $where{$_} = $name for keys %$entries;
        }
    }
    return;
}

# --- maps, trees ---

# The chunks of a map: [id, raw] …
sub map_chunks {
    my ($id, $count, $depth) = @_;
    my $span = FANOUT**$depth;
    my $items = int(($count + $span - 1) / $span);
    my $node = chunk($id);
    die "a node of a map has the wrong length\n" if length $node != $items * ($depth ? 32 : 36) || $items > FANOUT;
    my $c = cursor($node);
    return map { [take($c, 32), u32($c)] } 1 .. $items if !$depth;
    my @chunks;
    for (1 .. $items) {
        my $n = $count < $span ? $count : $span;
        push @chunks, map_chunks(take($c, 32), $n, $depth - 1);
        $count -= $n;
    }
    return @chunks;
}

sub read_entry {
    my ($c) = @_;
    my %e = (name => take($c, u16($c)), type => u8($c), flags => u16($c), mode => u32($c), uid => u32($c), gid => u32($c));
    $e{user} = take($c, u8($c));
    $e{group} = take($c, u8($c));
    $e{$_} = i64($c) for qw(mtime ctime);
    $e{$_} = u64($c) for qw(size device inode);
    $e{links} = u32($c);
    if ($e{type} == 1) {
        $e{sha256} = take($c, 32);
        $e{inline} = take($c, u16($c)) if $e{flags} & 1;
        $e{chunks} = [map { [take($c, 32), u32($c)] } 1 .. u32($c)] if $e{flags} & 2;
        @e{qw(map map_count depth)} = (take($c, 32), u64($c), u8($c)) if $e{flags} & 4;
        @e{qw(extents data)} = (take($c, 32), u64($c)) if $e{flags} & 8;
    } elsif ($e{type} == 2) {
        @e{qw(root count)} = (take($c, 32), u64($c));
    } elsif ($e{type} == 3) {
        $e{target} = take($c, u16($c));
    } elsif ($e{type} != 4) {
        die "an entry of unknown type\n";
    }
    $e{attrs} = take($c, 32) if $e{flags} & 16;
    die "an entry with a name that cannot be\n" if $e{name} =~ m{^\.{0,2}$|[/\0]} || length $e{name} > 255;
    die "an entry with unknown flags\n" if $e{flags} & ~63;
    return \%e;
}

# The entries below a node; the first name and the number are what its branch says.
sub read_node {
    my ($id, $first, $below, $level) = @_;
    die "branches nested too deep\n" if $level > 8;
    my $c = cursor(chunk($id));
    my ($kind, $version, $count) = (u8($c), u8($c), u32($c));
    die "a node of unknown kind\n" if $version != 1 || $kind < 1 || $kind > 2;
    my @entries;
    for (1 .. $count) {
        if ($kind == 1) {
            push @entries, read_entry($c);
        } else {
            my $name = take($c, u16($c));
            my $child = take($c, 32);
            push @entries, read_node($child, $name, u64($c), $level + 1);
        }
    }
    die "bytes behind the end of a node\n" if left($c);
    die "a node without entries below a branch\n" if !@entries && (defined $first || $kind == 2);
    die "a node that its branch describes otherwise\n"
        if defined $first && ($entries[0]{name} ne $first || @entries != $below);
    for my $i (1 .. $#entries) {
        die "entries in wrong order\n" if $entries[$i - 1]{name} ge $entries[$i]{name};
    }
    return @entries;
}

sub read_extents {
    my ($id) = @_;
    my $c = cursor(chunk($id));
    my @extents = map { [u64($c), u64($c)] } 1 .. u32($c);
    die "bytes behind the extents\n" if left($c);
    return @extents;
}

sub check_attributes {
    my ($id) = @_;
    my $c = cursor(chunk($id));
    for (1 .. u32($c)) {
        take($c, u16($c));
        take($c, u32($c));
    }
    die "bytes behind the attributes\n" if left($c);
    return;
}

# Give a file's content to a function, piece by piece, zeros of holes included.
sub each_piece {
    my ($e, $fn) = @_;
    my @pieces = defined $e->{inline} ? ([undef, length $e->{inline}, $e->{inline}])
        : $e->{chunks} ? @{ $e->{chunks} }
        : $e->{map} ? map_chunks($e->{map}, $e->{map_count}, $e->{depth})
        : ();
    my @extents = $e->{extents} ? read_extents($e->{extents}) : ([0, $e->{size}]);
    my ($at, $buffer) = (0, '');
    for my $extent (@extents) {
        my ($offset, $length) = @$extent;
        die "extents in wrong order\n" if $offset < $at || $offset + $length > $e->{size};
        zeros($offset - $at, $fn);
        $at = $offset + $length;
        while ($length > 0) {
            if (!length $buffer) {
                my $piece = shift @pieces or die "less content than the file is long\n";
                $buffer = defined $piece->[2] ? $piece->[2] : chunk($piece->[0], $piece->[1]);
            }
            my $some = substr $buffer, 0, $length, '';
            $length -= length $some;
            $fn->($some);
        }
    }
    zeros($e->{size} - $at, $fn);
    die "more content than the file is long\n" if @pieces || length $buffer;
    return;
}

sub zeros {
    my ($length, $fn) = @_;
    for (; $length > 0; $length -= 1 << 20) {
        $fn->("\0" x ($length < 1 << 20 ? $length : 1 << 20));
    }
    return;
}

# --- backups ---

sub write_to {
    my ($path) = @_;
    open my $out, '>:raw', $path or die "$path: $!\n";
    return $out;
}

sub do_file {
    my ($e, $shown, $path) = @_;
    my $sha = Digest::SHA->new(256);
    my $out = defined $path ? write_to($path) : undef;
    each_piece($e, sub { $sha->add($_[0]); print {$out} $_[0] or die "$path: $!\n" if $out });
    if ($out) { close $out or die "$path: $!\n" }
    my $digest = $sha->digest;
    die "the content has another SHA-256 than the entry\n" if $digest ne $e->{sha256};
    say_line(unpack('H*', $digest) . "  $shown");
    return;
}

# Returns the number of its entries.
sub do_directory {
    my ($id, $shown, $path) = @_;
    my @entries = read_node($id, undef, undef, 1);
    for my $e (@entries) {
        my $name = "$shown/" . escape($e->{name});
        my $to = defined $path ? "$path/$e->{name}" : undef;
        eval {
            check_attributes($e->{attrs}) if $e->{attrs};
            if ($e->{type} == 1) {
                do_file($e, $name, $to);
            } elsif ($e->{type} == 2) {
                mkdir $to or die "$to: $!\n" if defined $to;
                say_line("directory  $name");
                my $count = do_directory($e->{root}, $name, $to);
                die "the directory has another number of entries\n" if $count != $e->{count};
            } elsif ($e->{type} == 3) {
                symlink $e->{target}, $to or die "$to: $!\n" if defined $to;
                say_line('link  ' . $name . ' -> ' . escape($e->{target}));
            } else {
                mkfifo($to, 0600) or die "$to: $!\n" if defined $to;
                say_line("fifo  $name");
            }
            if (defined $to && $e->{type} != 3) {
                chmod $e->{mode}, $to or die "$to: $!\n";
                Time::HiRes::utime(time, $e->{mtime} / 1e9, $to);
            }
            1;
        } or finding("$name: $@");
    }
    return scalar @entries;
}

sub do_database {
    my ($db, $shown, $path) = @_;
    my $id = pack 'H*', $db->{map};
    my $sha = Digest::SHA->new(256);
    my $out = defined $path ? write_to($path) : undef;
    my ($bytes, $blocks) = ($db->{page_count} * $db->{page_size}, 0);
    my @chunks = map_chunks($id, $db->{blocks}, $db->{depth});
    for my $i (0 .. $#chunks) {
        my $length = $i < $#chunks ? $db->{block_size} : $bytes - $i * $db->{block_size};
        die "block $i has another length\n" if $chunks[$i][1] != $length;
        my $block = chunk($chunks[$i][0], $length);
        $sha->add($block);
        print {$out} $block or die "$path: $!\n" if $out;
        $blocks++;
    }
    if ($out) { close $out or die "$path: $!\n" }
    die "the map has another number of blocks\n" if $blocks != $db->{blocks};
    say_line($sha->hexdigest . "  $shown ($db->{page_count} pages of $db->{page_size})");
    return;
}

sub do_backup {
    my ($name) = @_;
    my $s = JSON::PP->new->decode(whole_object(slurp("$root/$name"), KIND_SNAPSHOT));
    die "unknown format\n" if $s->{format} != 1;
    die "it belongs to another backup id\n" if $name !~ m{^snapshots/\Q$s->{backup_id}\E-[0-9a-f]{64}$};
    return if defined $wanted && $s->{backup_id} ne $wanted;
    say_line("backup $s->{backup_id} ($s->{kind}) of $s->{set} on $s->{host}");
    my $dir = defined $target ? "$target/$s->{backup_id}" : undef;
    if (defined $dir) {
        make_path("$dir/files", "$dir/databases");
    }
    for my $tree (@{ $s->{trees} }) {
        my $to = defined $dir ? "$dir/files/" . unescape($tree->{name}) : undef;
        eval {
            die "a name with a slash\n" if unescape($tree->{name}) =~ m{^\.{0,2}$|/};
            mkdir $to or die "$to: $!\n" if defined $to;
            my $count = do_directory(pack('H*', $tree->{root}), $tree->{name}, $to);
            die "the root has another number of entries\n" if $count != $tree->{entries};
            1;
        } or finding("$s->{backup_id}: $tree->{name}: $@");
    }
    for my $db (@{ $s->{databases} }) {
        my $to = defined $dir ? "$dir/databases/" . unescape($db->{name}) : undef;
        eval {
            die "a name with a slash\n" if unescape($db->{name}) =~ m{^\.{0,2}$|/};
            do_database($db, $db->{name}, $to);
            1;
        } or finding("$s->{backup_id}: $db->{name}: $@");
    }
    return 1;
}

# --- keys ---

# The 32 bytes of a key file: as they are, or as people write them.
sub read_key {
    my ($bytes) = @_;
    return $bytes if length $bytes == 32;
    (my $text = uc $bytes) =~ s/[-\s]//g;
    die "$key_file: not a key\n" if $text !~ /^[A-Z2-7]{56}$/;
    my $bits = join '', map { sprintf '%05b', index 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567', $_ } split //, $text;
    my ($key, $check) = unpack 'a32 a3', pack 'B*', $bits;
    die "$key_file: mistyped\n" if substr(hmac_sha256($key, 'ngx-backup key'), 0, 3) ne $check;
    return $key;
}

# The secret of a slot by a passphrase.
sub scrypt {
    my ($pass, $how) = @_;
    open my $in, '-|:raw', qw(openssl kdf -keylen 32 -binary -kdfopt maxmem_bytes:1073741824), map({ ('-kdfopt', $_) } 'hexpass:' . unpack('H*', $pass),
        "hexsalt:$how->{salt}", "n:$how->{n}", "r:$how->{r}", "p:$how->{p}"), 'SCRYPT' or die "openssl: $!\n";
    my $secret = do { local $/; <$in> };
    close $in or die "openssl kdf failed\n";
    return $secret;
}

# The keyring from whichever slot this key or passphrase opens.
sub open_keyring {
    my ($kind, $given, $check) = @_;
    for my $name (objects('keys')) {
        my $slot = eval { JSON::PP->new->decode(slurp("$root/$name")) } or next;
        next if $slot->{kind} ne $kind || $slot->{repository} ne unpack 'H*', $uuid;
        my $key = $kind eq 'key' ? $given : scrypt($given, $slot->{scrypt});
        my ($kek, $verifier) = unpack 'a32 a16', hkdf($key, $slot->{id}, 'ngx-backup key slot', 48);
        next if $verifier ne pack 'H*', $slot->{verifier};
        my $c = cursor(open_sealed($kek, pack('H*', $slot->{nonce}), $slot->{id}, pack 'H*', $slot->{wrapped}));
        die "$name: an unknown keyring\n" if u8($c) != 1;
        my $id = take($c, 32);
        take($c, 32);    # the chunker's
        my %secrets = map { my $epoch = u32($c); i64($c); ($epoch => take($c, 32)) } 1 .. u32($c);
        die "$name: bytes behind the end\n" if left($c);
        next if hmac_sha256("\0ngx-backup keyring$uuid", $id) ne pack 'H*', $check;
        $id_key = $id;
        %secret = %secrets;
        return;
    }
    die "this $kind opens no key slot\n";
}

binmode STDOUT, ':raw';
my $format = JSON::PP->new->decode(slurp("$root/FORMAT"));
die "$root: not a repository\n" if ($format->{format} || '') ne 'ngx-backup repository';
die "$root: format $format->{version} is newer than this reader\n" if $format->{version} > 1;
$uuid = pack 'H*', $format->{repository};
if ($format->{encrypted}) {
    die "$root: the repository is encrypted: give --key FILE or --passphrase FILE\n" if !defined($key_file // $pass_file);
    require Crypt::AuthEnc::GCM;
    my ($kind, $given) = defined $key_file ? ('key', read_key(slurp($key_file))) : ('passphrase', slurp($pass_file) =~ s/\r?\n\z//r);
    open_keyring($kind, $given, $format->{keyring});
}
check_names();
read_packs();
check_index();
my $backups = 0;
for my $name (objects('snapshots')) {
    my $done = eval { do_backup($name) || 0 };
    finding("$name: $@") if !defined $done;
    $backups += $done || 0;
}
print "there is no backup $wanted\n" and exit 1 if defined $wanted && !$backups;
print "$backups backups, $findings findings\n";
exit($findings ? 1 : 0);
