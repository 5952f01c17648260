//! Reading what Go writes: a nil map or slice becomes JSON `null`.

use serde::{Deserialize, Deserializer};

/// Reads a value, taking `null` for its default.
///
/// # Errors
///
/// Whatever the value's own reader says of anything that is not `null`.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
