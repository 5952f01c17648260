//! Who is at the other end of a TCP connection within this machine: the user of the socket there.
//!
//! The kernel says it in `/proc/net/tcp` and `tcp6` (`proc(5)`, Linux `net/ipv4/tcp_ipv4.c`), by the
//! addresses of both ends. The user is the one who made the socket (`sock_i_uid`), whoever has it by
//! now: a root program that hands a connected socket on has handed its answers on.
//!
//! A socket that its owner has closed is shown as root's, with inode 0; such rows are passed over.
//! Nobody else can have the same two ends meanwhile, because our own end of the connection is still
//! there: between the look and the answer the peer can go, but not become someone else.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The kernel's lists. Programs reach an IPv4 address from sockets of both kinds.
const LISTS: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// How often they are read: a row can be missed while the kernel's table changes below the reader.
const LOOKS: u32 = 3;

/// The user of the socket at `peer` that is connected to `own`. `None` if there is none in this
/// machine, or in another network namespace of it.
///
/// # Errors
///
/// What reading the lists says.
pub(super) fn user(peer: SocketAddr, own: SocketAddr) -> io::Result<Option<u32>> {
    let port = format!(":{:04X} ", peer.port());
    for list in (0..LOOKS).flat_map(|_| LISTS) {
        let file = match File::open(list) {
            // Without IPv6 there is one list.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        for line in BufReader::new(file).lines() {
            let line = line?;
            // There may be thousands of rows, and a port is quickly told from another.
            if line.contains(&port)
                && let Some(row) = parse(&line)
                && same(row.local, peer)
                && same(row.remote, own)
            {
                return Ok(Some(row.user));
            }
        }
    }
    Ok(None)
}

#[derive(Debug, PartialEq, Eq)]
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    user: u32,
}

/// A row of a list. `None` for the heading, and for a socket that nobody has any more.
fn parse(line: &str) -> Option<Row> {
    let mut words = line.split_ascii_whitespace();
    let local = address(words.nth(1)?)?;
    let remote = address(words.next()?)?;
    let user = words.nth(4)?.parse().ok()?;
    let inode: u64 = words.nth(1)?.parse().ok()?;
    (inode != 0).then_some(Row {
        local,
        remote,
        user,
    })
}

/// `0100007F:0050`: words of the address as the processor has them, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    let mut rest = words;
    while !rest.is_empty() {
        let (word, after) = rest.split_at_checked(8)?;
        bytes.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
        rest = after;
    }
    let ip = match bytes.len() {
        4 => Ipv4Addr::from(*bytes.first_chunk()?).into(),
        16 => IpAddr::from(Ipv6Addr::from(*bytes.first_chunk()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Whether two addresses are one, an IPv4 one in IPv6's clothes included.
fn same(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::unistd::geteuid;

    use super::*;

    #[test]
    fn rows_are_read_as_the_kernel_writes_them() {
        let words = if cfg!(target_endian = "little") {
            ["0100007F:0050", "FEA9FEA9:E1F0"]
        } else {
            ["7F000001:0050", "A9FEA9FE:E1F0"]
        };
        let row = |inode| {
            let [local, remote] = words;
            format!(
                "   3: {local} {remote} 01 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0 20 4 30 10 -1"
            )
        };
        let expected = Row {
            local: "127.0.0.1:80".parse().unwrap(),
            remote: "169.254.169.254:57840".parse().unwrap(),
            user: 1000,
        };
        assert_eq!(parse(&row(77)), Some(expected));
        assert_eq!(parse(&row(0)), None, "closed by its owner");
        assert_eq!(parse("  sl  local_address rem_address   st tx_queue"), None);
        assert_eq!(parse(""), None);
        assert_eq!(address("0000000000000000FFFF00000100007F:zz"), None);
        assert_eq!(address("0100007F00:0050"), None);
    }

    #[test]
    fn the_user_at_the_other_end_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, peer) = listener.accept().unwrap();
        let own = served.local_addr().unwrap();
        assert_eq!(user(peer, own).unwrap(), Some(geteuid().as_raw()));
        drop(client);
        assert_eq!(user(peer, own).unwrap(), None, "it has gone");
    }
}
