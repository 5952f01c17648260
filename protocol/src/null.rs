//! Reading what Go writes: a nil map or slice becomes JSON `null`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Reads a value, taking `null` for its default.
///
/// # Errors
///
/// Whatever the value's own reader says of anything that is not `null`.
pub fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads a map without the keys that are `null`; `null` itself is an empty map.
///
/// # Errors
///
/// Whatever the values' own reader says of anything that is not `null`.
pub(crate) fn without_nulls<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let map: BTreeMap<String, Option<T>> = null_as_default(deserializer)?;
    let set = map
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)));
    Ok(crate::by_insertion(set))
}
