//! The guest's clock, as the API writes it.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The time, in RFC 3339.
pub(crate) fn now() -> String {
    // The formatter only fails for years beyond 9999.
    OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default()
}
