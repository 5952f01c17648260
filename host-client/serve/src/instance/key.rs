//! The keys of an instance.

use std::fmt;

/// Longest key, in bytes. It is part of the path of a request.
const MAX_KEY_BYTES: usize = 255;

/// LXD's key for whether a guest may read its data. The default is `true`.
pub(super) const GUEST_API: &str = "security.devlxd";

/// A parsed key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// `user.*`, `cloud-init.*` or `security.devlxd`.
    Config(String),
    /// `instance-id`, instead of the generated one.
    InstanceId,
    /// `hostname`, instead of the machine's name.
    Hostname,
    /// `devices.NAME.KEY`.
    Device { name: String, key: String },
    /// `devices.NAME`, which can only be read or removed.
    WholeDevice(String),
}

impl Key {
    /// Parses a key.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if it is too long, has a character that is not allowed, or an unknown prefix.
    pub(super) fn parse(text: &str) -> Result<Self, KeyError> {
        let wrong = |reason| KeyError {
            key: text.to_owned(),
            reason,
        };
        if text.len() > MAX_KEY_BYTES {
            return Err(wrong(Reason::TooLong));
        }
        if text.contains(|c: char| c.is_control() || c.is_whitespace() || c == '/' || c == '=') {
            return Err(wrong(Reason::Character));
        }
        match text {
            GUEST_API => return Ok(Self::Config(text.to_owned())),
            "instance-id" => return Ok(Self::InstanceId),
            "hostname" => return Ok(Self::Hostname),
            _ => {}
        }
        if let Some(rest) = text.strip_prefix("devices.") {
            return match rest.split_once('.') {
                Some((name, key)) if !name.is_empty() && !key.is_empty() => Ok(Self::Device {
                    name: name.to_owned(),
                    key: key.to_owned(),
                }),
                None if !rest.is_empty() => Ok(Self::WholeDevice(rest.to_owned())),
                _ => Err(wrong(Reason::Unknown)),
            };
        }
        let rest = ["user.", "cloud-init.ssh-keys.", "cloud-init."]
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix));
        match rest {
            Some(rest) if !rest.is_empty() => Ok(Self::Config(text.to_owned())),
            _ => Err(wrong(Reason::Unknown)),
        }
    }
}

/// An invalid key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid key {key:?}: {reason}")]
pub struct KeyError {
    key: String,
    reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    TooLong,
    Character,
    Unknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "it has more than {MAX_KEY_BYTES} bytes"),
            Self::Character => {
                f.write_str("'/', '=', spaces and control characters are not allowed")
            }
            Self::Unknown => f.write_str(
                "the keys are user.*, cloud-init.*, devices.NAME.KEY, hostname, instance-id and \
                 security.devlxd",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_all_kinds_are_parsed() {
        for key in [
            "user.a",
            "user.ä.b-c",
            "cloud-init.user-data",
            "security.devlxd",
        ] {
            assert_eq!(Key::parse(key), Ok(Key::Config(key.to_owned())));
        }
        assert_eq!(Key::parse("hostname"), Ok(Key::Hostname));
        assert_eq!(
            Key::parse("devices.eth0.boot.priority"),
            Ok(Key::Device {
                name: "eth0".to_owned(),
                key: "boot.priority".to_owned()
            })
        );
        assert_eq!(
            Key::parse("devices.eth0"),
            Ok(Key::WholeDevice("eth0".to_owned()))
        );
    }

    #[test]
    fn invalid_keys_are_refused() {
        let long = format!("user.{}", "x".repeat(300));
        for key in [
            "",
            "user.",
            "user",
            "limits.cpu",
            "user.a/b",
            "user.a b",
            "user.a\n",
            "user.a=b",
            "devices.",
            "devices..a",
            "devices.a.",
            "cloud-init.",
            "cloud-init.ssh-keys.",
            "volatile.uuid",
            &long,
        ] {
            Key::parse(key).unwrap_err();
        }
    }
}
