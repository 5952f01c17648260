//! Attributes of a file in the guest, for people and for programs.

use serde_json::{Map, Value, json};
use vsock_agent_client::protocol::sftp::{Attributes, FileType, PERMISSION_BITS};

/// Whether it is a directory. False if the server does not send the type.
pub(super) fn is_directory(attributes: &Attributes) -> bool {
    attributes.file_type() == Some(FileType::Directory)
}

/// Whether it is a symbolic link. False if the server does not send the type.
pub(super) fn is_link(attributes: &Attributes) -> bool {
    attributes.file_type() == Some(FileType::Link)
}

/// The type in a word; `None` if the server does not tell.
pub(super) fn type_word(attributes: &Attributes) -> Option<&'static str> {
    Some(match attributes.file_type()? {
        FileType::Directory => "directory",
        FileType::Regular => "file",
        FileType::Link => "symlink",
        FileType::BlockDevice => "block device",
        FileType::CharacterDevice => "character device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::Other => "other",
    })
}

/// The fields that a program gets.
pub(super) fn json_fields(attributes: &Attributes) -> Map<String, Value> {
    let mode = attributes
        .permissions
        .map(|mode| format!("{:04o}", mode & PERMISSION_BITS));
    let fields = [
        ("type", json!(type_word(attributes))),
        ("mode", json!(mode)),
        ("size", json!(attributes.size)),
        ("uid", json!(attributes.owner.map(|owner| owner.uid))),
        ("gid", json!(attributes.owner.map(|owner| owner.gid))),
        ("atime", json!(attributes.times.map(|times| times.accessed))),
        ("mtime", json!(attributes.times.map(|times| times.modified))),
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
        // Rounded up, as ls and df do: a size must not look smaller than it is.
        tenths = tenths.div_ceil(1024);
        unit += 1;
    }
    if unit > 0 && tenths < 100 {
        format!("{}.{}{}", tenths / 10, tenths % 10, units[unit])
    } else {
        format!("{}{}", tenths.div_ceil(10), units[unit])
    }
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
    fn dates_are_right_at_their_edges() {
        assert_eq!(time_text(0), "1970-01-01 00:00");
        assert_eq!(time_text(951_782_400), "2000-02-29 00:00");
        assert_eq!(time_text(951_868_799), "2000-02-29 23:59");
        assert_eq!(time_text(1_735_689_599), "2024-12-31 23:59");
        assert_eq!(time_text(u32::MAX), "2106-02-07 06:28");
    }
}
