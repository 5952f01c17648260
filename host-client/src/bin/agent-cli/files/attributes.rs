//! Attributes of a file in the guest, for people and for programs.

use serde_json::{Map, Value, json};
use vsock_agent_client::protocol::sftp::Attributes;

/// Type bits of a mode (`inode(7)`).
const TYPE_MASK: u32 = 0o170_000;
pub(super) const TYPE_DIRECTORY: u32 = 0o040_000;
pub(super) const TYPE_REGULAR: u32 = 0o100_000;
pub(super) const TYPE_LINK: u32 = 0o120_000;

/// The bits of a mode that can be set.
pub(super) const MODE_BITS: u32 = 0o7777;

/// The type bits, if the server gave a mode with some.
pub(super) fn file_type(attributes: &Attributes) -> Option<u32> {
    let kind = attributes.permissions? & TYPE_MASK;
    (kind != 0).then_some(kind)
}

/// Whether it is a directory, as far as the server tells.
pub(super) fn is_directory(attributes: &Attributes) -> bool {
    file_type(attributes) == Some(TYPE_DIRECTORY)
}

/// Whether it is a symbolic link, as far as the server tells.
pub(super) fn is_link(attributes: &Attributes) -> bool {
    file_type(attributes) == Some(TYPE_LINK)
}

/// The type in a word; `None` if the server does not tell.
pub(super) fn type_word(attributes: &Attributes) -> Option<&'static str> {
    Some(match file_type(attributes)? {
        TYPE_DIRECTORY => "directory",
        TYPE_REGULAR => "file",
        TYPE_LINK => "symlink",
        0o060_000 => "block device",
        0o020_000 => "character device",
        0o010_000 => "fifo",
        0o140_000 => "socket",
        _ => "other",
    })
}

/// The fields that a program gets.
pub(super) fn json_fields(attributes: &Attributes) -> Map<String, Value> {
    let mode = attributes
        .permissions
        .map(|mode| format!("{:04o}", mode & MODE_BITS));
    let fields = [
        ("type", json!(type_word(attributes))),
        ("mode", json!(mode)),
        ("size", json!(attributes.size)),
        ("uid", json!(attributes.owner.map(|owner| owner.0))),
        ("gid", json!(attributes.owner.map(|owner| owner.1))),
        ("atime", json!(attributes.times.map(|times| times.0))),
        ("mtime", json!(attributes.times.map(|times| times.1))),
    ];
    fields
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect()
}

/// A size in the largest unit that leaves a number, of 1024 each: `1.5K`.
pub(super) fn size_text(bytes: u64) -> String {
    let (mut tenths, mut unit) = (u128::from(bytes) * 10, 0);
    let units = ["", "K", "M", "G", "T", "P", "E"];
    while tenths >= 10_240 && unit + 1 < units.len() {
        // Rounded up, as ls and df do it: what needs room must not look smaller than it is.
        tenths = tenths.div_ceil(1024);
        unit += 1;
    }
    match unit > 0 && tenths < 100 {
        true => format!("{}.{}{}", tenths / 10, tenths % 10, units[unit]),
        false => format!("{}{}", tenths.div_ceil(10), units[unit]),
    }
}

/// A mode as `ls -l` writes it.
pub(super) fn mode_text(mode: u32) -> String {
    let kind = match mode & TYPE_MASK {
        TYPE_DIRECTORY => 'd',
        TYPE_LINK => 'l',
        0o060_000 => 'b',
        0o020_000 => 'c',
        0o010_000 => 'p',
        0o140_000 => 's',
        TYPE_REGULAR => '-',
        _ => '?',
    };
    let bit = |bits: u32, letter: char| match mode & bits {
        0 => '-',
        _ => letter,
    };
    let execute = |bits: u32, special: u32, both: char, only: char| match (
        mode & bits != 0,
        mode & special != 0,
    ) {
        (true, true) => both,
        (false, true) => only,
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        execute(0o100, 0o4000, 's', 'S'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        execute(0o010, 0o2000, 's', 'S'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        execute(0o001, 0o1000, 't', 'T'),
    ]
    .iter()
    .collect()
}

/// Seconds since 1970 as a date in UTC. The days are counted in years that begin in March, so
/// that the leap day comes last (H. Hinnant, "chrono-compatible low-level date algorithms").
pub(super) fn time_text(seconds: u32) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..=9 => (era * 400 + year, month + 3),
        _ => (era * 400 + year + 1, month - 9),
    };
    format!(
        "{year:04}-{month:02}-{date:02} {:02}:{:02}",
        rest / 3600,
        rest / 60 % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_smaller_than_they_are() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1025, "1.1K"),
            (10 * 1024, "10K"),
            (10 * 1024 + 1, "11K"),
            (1024 * 1024 - 1, "1.0M"),
            (3 << 30, "3.0G"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(size_text(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn modes_look_as_ls_shows_them() {
        assert_eq!(mode_text(0o100_644), "-rw-r--r--");
        assert_eq!(mode_text(0o041_777), "drwxrwxrwt");
        assert_eq!(mode_text(0o104_711), "-rws--x--x");
        assert_eq!(mode_text(0o120_777), "lrwxrwxrwx");
    }

    #[test]
    fn dates_are_right_at_their_edges() {
        assert_eq!(time_text(0), "1970-01-01 00:00");
        assert_eq!(time_text(951_782_400), "2000-02-29 00:00");
        assert_eq!(time_text(951_868_799), "2000-02-29 23:59");
        assert_eq!(time_text(1_735_689_599), "2024-12-31 23:59");
        assert_eq!(time_text(u32::MAX), "2106-02-07 06:28");
    }
}
