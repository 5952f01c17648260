# Sends requests to a socket of this machine. Uses no module of perl, as there are none:
#
#   probe.pl scan CID FIRST LAST                          ports of AF_VSOCK that accept a connection
#   probe.pl (unix PATH | tcp A.B.C.D PORT | vsock CID PORT) < REQUESTS
#
# A request is a line, "METHOD PATH [HEADER: VALUE]"; each has a connection of its own, and a line
# of output: the request, " => ", and all that came back, escaped.

my ($AF_UNIX, $AF_INET, $AF_VSOCK, $SOCK_STREAM) = (1, 2, 40, 1);
$SIG{PIPE} = 'IGNORE';
$| = 1;

sub dial {
    my ($kind, @where) = @_;
    my ($family, $address);
    if ($kind eq 'unix') {
        ($family, $address) = ($AF_UNIX, pack('S Z108', $AF_UNIX, $where[0]));
    } elsif ($kind eq 'tcp') {
        my @bytes = split /\./, $where[0];
        ($family, $address) = ($AF_INET, pack('S n C4 x8', $AF_INET, $where[1], @bytes));
    } else {
        # struct sockaddr_vm (include/uapi/linux/vm_sockets.h)
        ($family, $address) = ($AF_VSOCK, pack('S S L L x4', $AF_VSOCK, 0, $where[1], $where[0]));
    }
    socket(my $socket, $family, $SOCK_STREAM, 0) or die "socket: $!";
    return connect($socket, $address) ? $socket : undef;
}

my ($kind, @where) = @ARGV;
if ($kind eq 'scan') {
    alarm 120;
    for my $port ($where[1] .. $where[2]) {
        print "$port\n" if dial('vsock', $where[0], $port);
    }
    exit 0;
}
while (my $line = <STDIN>) {
    chomp $line;
    my ($method, $path, $header) = split / /, $line, 3;
    # A socket that neither answers nor closes ends all of this.
    alarm 30;
    print "$line => ";
    my $socket = dial($kind, @where);
    if (!$socket) {
        print "no connection: $!\n";
        next;
    }
    my $request = "$method $path HTTP/1.1\r\nHost: socket\r\nConnection: close\r\n";
    $request .= "$header\r\n" if defined $header;
    syswrite($socket, "$request\r\n");
    while (sysread($socket, my $piece, 65536)) {
        $piece =~ s/([^ -\[\]-~])/sprintf('\\x%02x', ord $1)/ge;
        print $piece;
    }
    print "\n";
}
