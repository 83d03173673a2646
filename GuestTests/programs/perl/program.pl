# Regular expressions, formats, pack and unpack, hashes, closures, big numbers, long loops.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use List::Util qw(reduce sum0 shuffle);
use Math::BigInt;
use POSIX qw(floor fmod strtol);

my $state = 12345;
sub number { $state = ($state * 1103515245 + 12345) % 2147483648; return $state }

my $text = join ' ', map { join '', map { chr(97 + number() % 26) } 1 .. 2 + $_ % 7 } 1 .. 40000;
my %count;
$count{$_}++ for split / /, $text;
my @common = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 9];
printf "%-8s %5d\n", $_, $count{$_} for @common;

printf "%d %d %d\n", scalar(() = $text =~ /\b(\w)\w*\1\b/g), scalar(() = $text =~ /(?<=[aeiou])[^aeiou ]{3}(?= )/g),
    scalar(() = $text =~ /(?:a|b|cd?)+?(?!e)/g);
(my $changed = $text) =~ s/(\w+) (\w+)/ucfirst($2) . " " . reverse($1)/ge;
(my $mapped = $changed) =~ tr/a-zA-Z/n-za-mN-ZA-M/;
print sha256_hex($changed), " ", sha256_hex($mapped), "\n";
my $nested = qr{(\((?:[^()]++|(?1))*\))};
my $parens = '(' x 200 . 'x' . ')' x 200;
print $parens =~ /^$nested$/ ? "balanced\n" : "not balanced\n";
"2026-11-25T20:56:42" =~ /^(?<year>\d+)-(?<month>\d\d)-(?<day>\d\d)T/ and print "$+{day}.$+{month}.$+{year}\n";

my @fields = map { [number(), number() - 2**30, number() / 7, "item$_"] } 1 .. 5000;
my $packed = join '', map { pack 'N s< d> Z12 w q f< U', $$_[0], $$_[1] % 30000, $$_[2], $$_[3], $$_[0], $$_[1], $$_[2], 233 } @fields;
print length($packed), " ", sha256_hex($packed =~ s/([^\x00-\xff])/sprintf '%x', ord $1/ger), "\n";
printf "%s %s %s\n", unpack('H*', pack('F', 0.1)), unpack('%32C*', $packed), join ',', unpack '(A2)*', 'abcdefg';
printf "%s\n", join ' ', unpack 'N n C a3 b8', pack 'N n C a3 b8', 305419896, 4660, 171, 'xyz', '10110101';

printf "%.15g|%e|%g|%08.3f|%+d|%x|%o|%b|%s|%5s|%-5s|%vd\n", 1 / 3, 12345.678, 1e-7, -3.14159, 7, 255, 8, 10, 1e21, 'ab', 'cd', '1.22.333';
my ($sum, $float) = (0, 0);
for my $i (1 .. 1_500_000) {
    $sum = ($sum * 31 + ($i ^ ($i >> 3))) & 0xffffffff;
    $float += sqrt($i) * sin($i) / ($i + 1);
}
printf "%d %.12f\n", $sum, $float;
my @sieve = (1) x 200000;
for my $i (2 .. 447) { next unless $sieve[$i]; for (my $j = $i * $i; $j < @sieve; $j += $i) { $sieve[$j] = 0 } }
print sum0(grep { $sieve[$_] } 2 .. $#sieve), "\n";
print Math::BigInt->new(2)->bpow(521)->bsub(1)->bmodpow(65537, Math::BigInt->new(10)->bpow(60)->badd(7)), "\n";
print Math::BigInt->new(150)->bfac, "\n";
my @adders = map { my $n = $_; sub { $_[0] * $n + $n } } 1 .. 100;
my $value = 1;
$value = $_->($value) % 1000003 for (@adders) x 300;
print "$value ", (reduce { ($a * 33 + $b) % 4294967296 } map { number() } 1 .. 100000), "\n";
printf "%s %s %s %s\n", floor(-2.5), fmod(17.5, 3), (strtol 'zz', 36)[0], 7 ** 0.5;
my @sorted = sort { $a <=> $b } map { number() / 1000 } 1 .. 50000;
print sha256_hex("@sorted"), "\n";
print eval { die { code => 42 } } // "caught $@->{code}", "\n";
local $SIG{ALRM} = sub { print "alarm\n" };
kill ALRM => $$;
my $child = fork // die;
exit 7 unless $child;
waitpid $child, 0;
print $? >> 8, "\n";
print `echo from a shell | tr a-z A-Z`;
