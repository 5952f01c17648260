//! Attributes of a file in the guest, as text and as JSON.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use vsock_agent_client::protocol::sftp::{Attributes, FileType, PERMISSION_BITS};

/// Whether the file is a directory. False if the server does not send the type.
pub(super) fn is_directory(attributes: &Attributes) -> bool {
    attributes.file_type() == Some(FileType::Directory)
}

/// Whether the file is a symbolic link. False if the server does not send the type.
pub(super) fn is_link(attributes: &Attributes) -> bool {
    attributes.file_type() == Some(FileType::Link)
}

/// The name of the file's type; `None` if the server does not send the type.
pub(super) fn type_name(attributes: &Attributes) -> Option<&'static str> {
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

/// The attributes as fields of a JSON object. Attributes that the server does not send are null.
pub(super) fn json_fields(attributes: &Attributes) -> Map<String, Value> {
    let mode = attributes
        .permissions
        .map(|mode| format!("{:04o}", mode & PERMISSION_BITS));
    let fields = [
        ("type", json!(type_name(attributes))),
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

/// Formats a size with a unit of 1024: `1.5K`. Rounds up, as ls and df do.
pub(super) fn size_text(bytes: u64) -> String {
    let (mut tenths, mut unit) = (u128::from(bytes) * 10, 0);
    let units = ["", "K", "M", "G", "T", "P", "E"];
    while tenths >= 10_240 && unit + 1 < units.len() {
        tenths = tenths.div_ceil(1024);
        unit += 1;
    }
    if unit > 0 && tenths < 100 {
        format!("{}.{}{}", tenths / 10, tenths % 10, units[unit])
    } else {
        format!("{}{}", tenths.div_ceil(10), units[unit])
    }
}

/// Formats seconds since 1970 as a date and time in UTC.
pub(super) fn time_text(seconds: u32) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds.into());
    let time = time.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, _) = time.to_hms();
    let month = u8::from(month);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_formatted_in_units_and_rounded_up() {
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
    fn times_are_formatted_as_utc_dates() {
        assert_eq!(time_text(0), "1970-01-01 00:00");
        assert_eq!(time_text(951_782_400), "2000-02-29 00:00");
        assert_eq!(time_text(951_868_799), "2000-02-29 23:59");
        assert_eq!(time_text(1_735_689_599), "2024-12-31 23:59");
        assert_eq!(time_text(u32::MAX), "2106-02-07 06:28");
    }
}
