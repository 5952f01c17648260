//! Resolves host names by `/etc/hosts` (`hosts(5)`) alone, without the guest's network or NSS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses of a name, in the order of the file. `localhost` needs no entry.
pub(crate) fn addresses(hosts: &str, name: &str) -> Vec<IpAddr> {
    let has_name = |names: &[&str]| names.iter().any(|other| other.eq_ignore_ascii_case(name));
    let lines = lines(hosts).filter(|(_, names)| has_name(names));
    let found: Vec<IpAddr> = lines.map(|(address, _)| address).collect();
    if found.is_empty() && name.eq_ignore_ascii_case("localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    found
}

/// The fully qualified name of a host: the first name on the first line with `host`, if it is `host` with a
/// domain; otherwise `host`.
pub(crate) fn full_name(hosts: &str, host: &str) -> String {
    let line = lines(hosts).find(|(_, names)| names.contains(&host));
    let full = line.and_then(|(_, names)| names.first().copied());
    let has_domain = |name: &&str| name.starts_with(host) && name.contains('.');
    full.filter(has_domain).unwrap_or(host).to_owned()
}

fn lines(hosts: &str) -> impl Iterator<Item = (IpAddr, Vec<&str>)> {
    hosts.lines().filter_map(|line| {
        let line = line.split('#').next()?;
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        Some((address, words.collect()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &str = "127.0.0.1 localhost\n\
                         127.0.1.1\tvm.example.org vm # this one\n\
                         ::1 localhost ip6-localhost\n\
                         nonsense vm\n#10.0.0.9 db\n10.0.0.7 db\n";

    #[test]
    fn a_host_name_has_the_addresses_of_its_lines() {
        let found = addresses(HOSTS, "LocalHost");
        assert_eq!(
            found,
            [
                IpAddr::from(Ipv4Addr::LOCALHOST),
                Ipv6Addr::LOCALHOST.into()
            ]
        );
        assert_eq!(addresses(HOSTS, "db"), [IpAddr::from([10, 0, 0, 7])]);
        assert_eq!(addresses(HOSTS, "other"), [] as [IpAddr; 0]);
        assert_eq!(addresses("", "localhost").len(), 2);
    }

    #[test]
    fn a_fully_qualified_name_comes_from_the_line_of_the_host() {
        assert_eq!(full_name(HOSTS, "vm"), "vm.example.org");
        assert_eq!(full_name(HOSTS, "localhost"), "localhost");
        assert_eq!(full_name("", "vm"), "vm");
    }
}
