//! The operating system: `os-release(5)` and `uname(2)`.

use std::{collections::BTreeMap, ffi::OsStr};

use nix::sys::utsname::UtsName;

use crate::by_insertion::by_insertion;

/// The operating system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct System {
    pub(super) uname: Option<UtsName>,
    /// The keys of `os-release(5)`.
    pub(super) release: BTreeMap<String, String>,
    /// Fully qualified host name.
    pub(super) fqdn: String,
}

impl System {
    /// A field of `uname(2)`, empty if that failed.
    pub(super) fn uname(&self, field: fn(&UtsName) -> &OsStr) -> String {
        let uname = self.uname.as_ref();
        uname.map_or_else(String::new, |uname| field(uname).to_string_lossy().into())
    }

    /// The value of a key of `os-release(5)`, empty without one.
    pub(super) fn release(&self, key: &str) -> &str {
        self.release.get(key).map_or("", String::as_str)
    }
}

/// Parses `os-release(5)`. Invalid lines are skipped.
pub(super) fn parse_release(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(str::trim);
    let pairs = lines.filter_map(|line| line.split_once('='));
    let pairs = pairs.filter(|(key, _)| !key.is_empty() && key.bytes().all(is_key));
    by_insertion(pairs.map(|(key, value)| (key.to_owned(), unquote(value))))
}

fn is_key(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_'
}

/// Removes a shell's quotes and escapes.
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
    fn values_of_os_release_are_unquoted() {
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
    fn invalid_lines_of_os_release_are_skipped() {
        assert!(parse_release("# ID=x\n\nfoo\n=bar\nid=x\n").is_empty());
        assert_eq!(parse_release("A=\"open\nB=\"")["A"], "\"open");
    }
}
