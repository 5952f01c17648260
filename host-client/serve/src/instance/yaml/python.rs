//! Checks for values that `PyYAML`'s safe loader cannot construct, so that it refuses the whole text.
//!
//! The loader derives the type of a plain scalar from its form (`yaml/resolver.py`), and then fails if
//! the type has no such value (`yaml/constructor.py`).

use super::{Content, Node};

const PREFIX: &str = "tag:yaml.org,2002:";

/// Most digits of an integer in Python (`sys.int_info.default_max_str_digits`).
const MAX_INT_DIGITS: usize = 4300;

/// Why a plain scalar cannot be constructed; `None` if it can.
fn implicit_problem(text: &str) -> Option<&'static str> {
    if text == "=" {
        return Some("'=' alone needs quotes: cloud-init has no value for it");
    }
    if text == "<<" {
        return Some("'<<' is only for keys, and needs quotes here");
    }
    if is_int(text) {
        return int_problem(text);
    }
    timestamp_problem(text)
}

/// Whether a plain scalar has the form of an integer.
fn is_int(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let all = |text: &str, fits: fn(u8) -> bool| {
        !text.is_empty() && text.bytes().all(|b| b == b'_' || fits(b))
    };
    if let Some(binary) = digits.strip_prefix("0b") {
        return all(binary, |b| matches!(b, b'0' | b'1'));
    }
    if let Some(hexadecimal) = digits.strip_prefix("0x") {
        return all(hexadecimal, |b| b.is_ascii_hexdigit());
    }
    if let Some(octal) = digits.strip_prefix('0') {
        return octal.is_empty() || all(octal, |b| matches!(b, b'0'..=b'7'));
    }
    digits.starts_with(|c: char| c.is_ascii_digit()) && all(digits, |b| b.is_ascii_digit())
}

/// Whether a plain scalar has the form of a number, a boolean or a date.
fn has_other_type(text: &str) -> bool {
    const WORDS: [&str; 9] = [
        "yes", "no", "true", "false", "on", "off", ".inf", ".nan", "+.inf",
    ];
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match digits.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.strip_prefix(['+', '-'])),
        None => (digits, Some("0")),
    };
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let is_float = mantissa.split_once('.').is_some_and(|(whole, fraction)| {
        all_digits(whole) && all_digits(fraction) && mantissa.len() > 1
    }) && exponent.is_some_and(all_digits);
    let mut parts = digits.split(':');
    let is_sixties = digits.contains(':')
        && parts.all(|part| part.parse::<f64>().is_ok() && !part.starts_with(['+', '-']));
    let is_date = text.len() >= 8
        && text.get(..5).is_some_and(|start| {
            start.ends_with('-') && start.bytes().take(4).all(|b| b.is_ascii_digit())
        })
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || b" tTzZ:.+-".contains(&b));
    let word = text.to_lowercase();
    is_int(text) || is_float || is_sixties || is_date || WORDS.contains(&&word[..])
}

fn int_problem(text: &str) -> Option<&'static str> {
    let digits = text.trim_start_matches(['+', '-']).replace('_', "");
    let is_decimal = !digits.starts_with('0');
    if matches!(&digits[..], "0b" | "0x") {
        Some("a number without digits")
    } else if is_decimal && digits.len() > MAX_INT_DIGITS {
        Some("a number of more than 4300 digits needs quotes")
    } else {
        None
    }
}

/// A point in time that there is not, such as 2020-13-45. Looks like
/// `2001-12-14`, or `2001-12-14t21:59:43.10-05:00` with a space in place of the `t`.
fn timestamp_problem(text: &str) -> Option<&'static str> {
    const NO_SUCH_TIME: Option<&str> = Some("a date or time that does not exist needs quotes");
    let (date, time) = match text.find(['T', 't', ' ', '\t']) {
        Some(at) => (
            &text[..at],
            Some(text[at + 1..].trim_start_matches([' ', '\t'])),
        ),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let year = number(parts.next()?, 4..=4)?;
    let short = if time.is_some() { 1..=2 } else { 2..=2 };
    let month = number(parts.next()?, short.clone())?;
    let day = number(parts.next()?, short)?;
    if parts.next().is_some() {
        return None;
    }
    let days = match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let is_date = year > 0 && (1..=12).contains(&month) && (1..=days).contains(&day);
    match time {
        None => (!is_date).then_some(NO_SUCH_TIME).flatten(),
        Some(time) => {
            let is_time = is_time(time)?;
            (!(is_date && is_time)).then_some(NO_SUCH_TIME).flatten()
        }
    }
}

/// Whether the time of day exists; `None` for text of another form.
fn is_time(text: &str) -> Option<bool> {
    let (clock, zone) = match text.find([' ', '\t', 'Z', '+', '-']) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut parts = clock.split(':');
    let hour = number(parts.next()?, 1..=2)?;
    let minute = number(parts.next()?, 2..=2)?;
    let second = number(parts.next()?, 2..=2)?;
    if parts.next().is_some() {
        return None;
    }
    let zone = zone.trim_start_matches([' ', '\t']);
    let zone_exists = match zone.strip_prefix(['+', '-']) {
        None if matches!(zone, "" | "Z") => true,
        None => return None,
        Some(offset) => {
            let (hours, minutes) = offset.split_once(':').unwrap_or((offset, "00"));
            let minutes = number(minutes, 2..=2)?;
            number(hours, 1..=2)? * 60 + minutes < 24 * 60
        }
    };
    Some(hour < 24 && minute < 60 && second < 60 && zone_exists)
}

fn number(text: &str, length: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let fits = length.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    fits.then(|| text.parse().ok()).flatten()
}

impl Node {
    /// Why the safe loader cannot construct this node, apart from its children. `resolve` finds the
    /// node of an alias.
    pub(super) fn value_problem<'a>(
        &'a self,
        resolve: &dyn Fn(&'a Node) -> &'a Node,
    ) -> Option<&'static str> {
        match (&self.content, self.tag.as_deref()) {
            (Content::Scalar { text, plain: true }, None)
            | (Content::Scalar { text, .. }, Some("!")) => implicit_problem(text),
            (Content::Mapping(pairs), None) => pairs.iter().find_map(|(key, value)| {
                let merges = key.is_merge();
                (merges && !can_be_merged(value, resolve))
                    .then_some("the value of '<<' must be a mapping or a list of mappings")
            }),
            (_, None) => None,
            (content, Some(tag)) => {
                let fits = tag
                    .strip_prefix(PREFIX)
                    .is_some_and(|name| fits(name, content));
                (!fits).then_some("a tag that cloud-init does not know, or of another type")
            }
        }
    }

    /// Whether it is a string in Python: not a number, a boolean, a date or `None`.
    pub(in crate::instance) fn is_string(&self) -> bool {
        match (&self.content, self.tag.as_deref()) {
            (Content::Scalar { text, plain }, None) => {
                !plain || !(self.is_null() || has_other_type(text))
            }
            (Content::Scalar { .. }, Some(tag)) => tag.ends_with(":str"),
            _ => false,
        }
    }

    /// Whether this is the key that merges another mapping.
    pub(super) fn is_merge(&self) -> bool {
        self.has_no_tag()
            && matches!(&self.content, Content::Scalar { text, plain: true } if text == "<<")
    }

    /// Whether this key is `=`, which is text as a key.
    pub(super) fn is_value_key(&self) -> bool {
        self.has_no_tag()
            && matches!(&self.content, Content::Scalar { text, plain: true } if text == "=")
    }
}

fn can_be_merged<'a>(value: &'a Node, resolve: &dyn Fn(&'a Node) -> &'a Node) -> bool {
    let is_mapping = |node: &Node| matches!(node.content, Content::Mapping(_));
    let value = resolve(value);
    match &value.content {
        Content::Sequence(items) => items.iter().all(|item| is_mapping(resolve(item))),
        _ => is_mapping(value),
    }
}

/// Whether a value with this standard tag can be constructed from this content.
fn fits(name: &str, content: &Content) -> bool {
    let is_pair =
        |node: &Node| matches!(&node.content, Content::Mapping(pairs) if pairs.len() == 1);
    match (name, content) {
        ("str" | "null", Content::Scalar { .. })
        | ("seq", Content::Sequence(_))
        | ("map" | "set", Content::Mapping(_)) => true,
        ("bool", Content::Scalar { text, .. }) => {
            let word = text.to_lowercase();
            matches!(&word[..], "yes" | "no" | "true" | "false" | "on" | "off")
        }
        ("int", Content::Scalar { text, .. }) => is_int(text) && int_problem(text).is_none(),
        ("float", Content::Scalar { text, .. }) => {
            let text = text.replace('_', "").to_lowercase();
            text.parse::<f64>().is_ok() || matches!(&text[..], ".inf" | "+.inf" | "-.inf" | ".nan")
        }
        ("binary", Content::Scalar { text, .. }) => is_base64(text),
        ("omap" | "pairs", Content::Sequence(items)) => items.iter().all(is_pair),
        _ => false,
    }
}

/// Whether Python decodes it as base64. Other characters are ignored; the rest must be a multiple of
/// four.
fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches(['=', '\n', ' ']);
    let is_digit = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    let count = digits.bytes().filter(|b| is_digit(*b)).count();
    let padding = text.bytes().filter(|b| *b == b'=').count();
    text.is_ascii() && count % 4 != 1 && (count % 4 == 0 || padding >= 4 - count % 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_that_do_not_exist_are_refused() {
        for text in [
            "2020-13-45",
            "2001-02-29",
            "0000-01-01",
            "2001-01-01T24:00:00Z",
            "2001-01-01 1:60:00",
            "2001-1-1t1:00:00.5 +24:00",
        ] {
            assert!(implicit_problem(text).is_some(), "{text}");
        }
        for text in [
            "2020-12-31",
            "2000-02-29",
            "2001-1-1",
            "2001-01-01 1:2:3",
            "2001-01-01x",
            "2020-13",
            "2001-12-14t21:59:43.10-05:00",
            "1.2.3",
            "2001-13-01-01",
            "2001-13-01 x",
        ] {
            assert_eq!(implicit_problem(text), None, "{text}");
        }
    }

    #[test]
    fn integers_without_digits_or_with_too_many_are_refused() {
        for text in ["0x_", "-0b_", &"1".repeat(4301), "=", "<<"] {
            assert!(implicit_problem(text).is_some(), "{text}");
        }
        for text in [
            "0",
            "0_",
            "0x1_f",
            "1_0",
            &"1".repeat(4300),
            "0o7",
            "_",
            "-",
            "",
            "0xg_",
        ] {
            assert_eq!(implicit_problem(text), None, "{text}");
        }
    }
}
