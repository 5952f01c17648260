//! Deserializes JSON written by Go, in which a nil map or slice is `null`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Deserializes a value; `null` becomes its default.
///
/// # Errors
///
/// Those of deserializing the value.
pub fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Deserializes a map without the keys whose value is `null`; `null` itself becomes an empty map.
///
/// # Errors
///
/// Those of deserializing the values.
pub(crate) fn without_nulls<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let map: BTreeMap<String, Option<T>> = null_as_default(deserializer)?;
    let mut set = BTreeMap::new();
    set.extend(
        map.into_iter()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    Ok(set)
}
