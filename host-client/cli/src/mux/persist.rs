//! The time after which the process ends.

use std::{fmt, str::FromStr, time::Duration};

use serde::Deserialize;

/// Longest time: a year.
const MAX_SECONDS: u64 = 365 * 24 * 60 * 60;

/// Time without calls after which the process ends. The default is ten minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Persist(pub(crate) Duration);

impl Default for Persist {
    fn default() -> Self {
        Self(Duration::from_secs(600))
    }
}

impl fmt::Display for Persist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0.as_secs())
    }
}

impl FromStr for Persist {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "" | "s" => Some(1),
            "m" => Some(60),
            "h" => Some(60 * 60),
            _ => None,
        };
        let count: Option<u64> = digits.parse().ok();
        let seconds = count
            .zip(unit)
            .and_then(|(count, unit)| count.checked_mul(unit));
        match seconds {
            Some(seconds @ 1..=MAX_SECONDS) => Ok(Self(Duration::from_secs(seconds))),
            _ => Err(format!("{text:?} is no time such as 30s, 10m or 2h")),
        }
    }
}

impl TryFrom<String> for Persist {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_without_one_it_is_seconds() {
        for (text, seconds) in [("30", 30), ("30s", 30), ("10m", 600), ("2h", 7200)] {
            let persist: Persist = text.parse().unwrap();
            assert_eq!(persist.0, Duration::from_secs(seconds));
            assert_eq!(persist.to_string().parse(), Ok(persist));
        }
        for wrong in [
            "",
            "m",
            "0",
            "-1s",
            "1d",
            "1.5m",
            "1 m",
            "9999999999h",
            "5é",
        ] {
            wrong.parse::<Persist>().unwrap_err();
        }
    }
}
