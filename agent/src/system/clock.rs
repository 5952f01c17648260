//! Timestamps of the API.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The current time, in RFC 3339.
pub(crate) fn now() -> String {
    write(OffsetDateTime::now_utc())
}

/// A time in seconds since 1970, in RFC 3339.
pub(crate) fn at(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    write(time.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

fn write(time: OffsetDateTime) -> String {
    // The formatter only fails for years beyond 9999.
    time.format(&Rfc3339).unwrap_or_default()
}
