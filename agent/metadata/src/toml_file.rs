//! What the readers of TOML files share: they go through the values themselves, because the code
//! that `serde` makes for each type is several times as large.

use toml::de::DeValue;

/// The line of a byte in a text, counted from 1.
pub fn line(text: &str, byte: usize) -> usize {
    1 + text
        .bytes()
        .take(byte)
        .filter(|byte| *byte == b'\n')
        .count()
}

/// The number, if the value is one in the range of `N`.
pub fn number<N: TryFrom<u64>>(value: &DeValue<'_>) -> Option<N> {
    let number = value.as_integer()?;
    let number = u64::from_str_radix(number.as_str(), number.radix()).ok()?;
    N::try_from(number).ok()
}
