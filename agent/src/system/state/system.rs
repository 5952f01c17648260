//! The operating system: `os-release(5)` and `uname(2)`.

use std::collections::BTreeMap;

use crate::by_insertion::by_insertion;

/// The system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct System {
    pub(super) kernel: Kernel,
    /// The keys of `os-release(5)`.
    pub(super) release: BTreeMap<String, String>,
    /// Host name with its domain.
    pub(super) fqdn: String,
}

impl System {
    /// The value of a key of `os-release(5)`, or nothing.
    pub(super) fn release(&self, key: &str) -> &str {
        self.release.get(key).map_or("", String::as_str)
    }
}

/// The fields of `uname(2)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) sysname: String,
    pub(super) nodename: String,
    pub(super) release: String,
    pub(super) version: String,
    pub(super) machine: String,
    pub(super) domainname: String,
}

/// Parses `os-release(5)`. Lines that make no sense are passed over.
pub(super) fn parse_release(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(str::trim);
    let pairs = lines.filter_map(|line| line.split_once('='));
    let pairs = pairs.filter(|(key, _)| !key.is_empty() && key.bytes().all(is_key));
    by_insertion(pairs.map(|(key, value)| (key.to_owned(), unquote(value))))
}

fn is_key(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_'
}

/// What a shell would make of it, without substitutions: the format has none.
fn unquote(value: &str) -> String {
    for quote in ['"', '\''] {
        let inner = value.strip_prefix(quote);
        if let Some(inner) = inner.and_then(|inner| inner.strip_suffix(quote)) {
            return match quote {
                '"' => unescape(inner),
                _ => inner.to_owned(),
            };
        }
    }
    unescape(value)
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(sign) = rest.next() {
        plain.push(match sign {
            '\\' => rest.next().unwrap_or('\\'),
            other => other,
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_unquoted() {
        let release = parse_release(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n\
             A='a b'\nB=\"say \\\"hi\\\" \\$\"\nC=\n",
        );
        let find = |key: &str| release[key].as_str();
        assert_eq!(find("PRETTY_NAME"), "Debian GNU/Linux 12 (bookworm)");
        assert_eq!((find("VERSION_ID"), find("ID")), ("12", "debian"));
        assert_eq!(
            (find("A"), find("B"), find("C")),
            ("a b", "say \"hi\" $", "")
        );
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        assert!(parse_release("# ID=x\n\nfoo\n=bar\nid=x\n").is_empty());
        assert_eq!(parse_release("A=\"open\nB=\"")["A"], "\"open");
    }
}
