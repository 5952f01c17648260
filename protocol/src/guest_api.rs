//! The guest API, by which programs in the guest read their instance data: LXD's `devlxd`, Incus's
//! `dev_incus`.
//!
//! The same paths are used twice. The agent requests them from the host, which replies in [`Envelope`]s; a
//! program in the guest requests them from the agent, which replies without: lists and objects as JSON,
//! values as plain text. `GET` of [`INFO`], [`CONFIG`], [`config_key`], [`META_DATA`] and [`DEVICES`], and
//! `PATCH` of [`INFO`] are sent to the host, and to our own host one request for all values
//! ([`CONFIG_WITH_VALUES`]); [`EVENTS`] are served in the guest. Each request for a [`HostRoute`] is
//! forwarded to the host.
//!
//! [`Envelope`]: crate::envelope::Envelope

mod host_route;

use std::{borrow::Cow, collections::BTreeMap};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::null::null_as_default;

pub use self::host_route::{HostFeature, HostRoute, UbuntuPro};

/// The instance ([`GuestInfo`]); `PATCH` reports its state ([`StateReport`]).
pub const INFO: &str = "/1.0";
/// The paths of all keys that have a value, as they are, without escapes.
pub const CONFIG: &str = "/1.0/config";
/// The same with the values: an object of them by key. A host that does not support the query, such as
/// LXD's and Incus's, replies with the paths alone, and so does one whose reply would be larger than
/// [`MAX_ANSWER_BYTES`].
pub const CONFIG_WITH_VALUES: &str = "/1.0/config?recursion=1";
/// Meta-data for cloud-init: text, a YAML mapping.
pub const META_DATA: &str = "/1.0/meta-data";
/// The devices ([`Devices`]).
pub const DEVICES: &str = "/1.0/devices";
/// Changes as they happen, by websocket or as a stream of JSON lines.
pub const EVENTS: &str = "/1.0/events";

/// Largest value of a key and largest meta-data, in bytes. Cloud-init's own user-data is limited to
/// far less by most clouds; LXD has no limit.
pub const MAX_VALUE_BYTES: usize = 4 * 1024 * 1024;
/// Largest configuration and devices of an instance together, in bytes of keys and values.
pub const MAX_DATA_BYTES: usize = 16 * 1024 * 1024;
/// Largest answer of the host that an agent reads, in bytes: the largest value with a backslash before
/// each byte.
pub const MAX_ANSWER_BYTES: usize = 2 * MAX_VALUE_BYTES;
/// Most keys an instance has.
pub const MAX_KEYS: usize = 10_000;

/// Everything but the unreserved characters of RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The path of a key's value, escaped.
#[must_use]
pub fn config_key(key: &str) -> String {
    format!("{CONFIG}/{}", utf8_percent_encode(key, RESERVED))
}

/// The key of a path, with its escapes decoded. `None` when the path is not one of a key, or the key is
/// not UTF-8.
#[must_use]
pub fn key_of_path(path: &str) -> Option<Cow<'_, str>> {
    let key = path.strip_prefix(CONFIG)?.strip_prefix('/')?;
    let key = percent_decode_str(key).decode_utf8().ok()?;
    (!key.is_empty()).then_some(key)
}

/// Whether a guest may ever see this key: `user.*` and `cloud-init.*`.
#[must_use]
pub fn is_guest_key(key: &str) -> bool {
    key.starts_with("user.") || key.starts_with("cloud-init.")
}

/// Whether this key of a guest is hidden: the host merges these SSH keys into the user-data and the
/// vendor-data.
#[must_use]
pub fn is_hidden_key(key: &str) -> bool {
    key.starts_with("cloud-init.ssh-keys.")
}

/// The instance, as in `GET /1.0`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GuestInfo {
    /// `1.0`.
    #[serde(default = "api_version")]
    pub api_version: String,
    /// `virtual-machine`.
    #[serde(default = "instance_type")]
    pub instance_type: String,
    /// Name of the host, or of its member in a cluster.
    #[serde(default)]
    pub location: String,
    /// The state that the instance has reported. LXD 5.0 leaves it empty.
    #[serde(default)]
    pub state: String,
    /// Fields of other versions, such as `auth` and `supported_storage_drivers`.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl GuestInfo {
    /// A virtual machine on `location`.
    #[must_use]
    pub fn new(location: String, state: GuestState) -> Self {
        let mut other = serde_json::Map::new();
        other.insert("auth".to_owned(), "untrusted".into());
        Self {
            api_version: api_version(),
            instance_type: instance_type(),
            location,
            state: state.name().to_owned(),
            other,
        }
    }
}

fn api_version() -> String {
    "1.0".to_owned()
}

fn instance_type() -> String {
    "virtual-machine".to_owned()
}

/// The state of an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum GuestState {
    /// It runs.
    #[default]
    Started,
    /// Its workload is ready.
    Ready,
}

impl GuestState {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Started => "Started",
            Self::Ready => "Ready",
        }
    }
}

/// The body of `PATCH /1.0`. The reply is an empty result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StateReport {
    /// The current state.
    pub state: GuestState,
}

impl From<GuestState> for StateReport {
    fn from(state: GuestState) -> Self {
        Self { state }
    }
}

/// Devices by name: key to value, `type` always among them, and `hwaddr` for a `nic`.
pub type Devices = BTreeMap<String, BTreeMap<String, String>>;

/// The metadata of an event of kind [`CONFIG`](crate::event::CONFIG): a key has a new value, or none
/// (empty).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ConfigChange {
    /// The key.
    pub key: String,
    /// The old value.
    #[serde(default, deserialize_with = "null_as_default")]
    pub old_value: String,
    /// The new value.
    #[serde(default, deserialize_with = "null_as_default")]
    pub value: String,
}

/// The metadata of an event of kind [`DEVICE`](crate::event::DEVICE).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeviceChange {
    /// `added`, `removed` or `updated`.
    pub action: String,
    /// The device.
    pub name: String,
    /// Its configuration.
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_path() {
        for key in [
            "user.a",
            "user.ä€ b",
            "user.a/b?c#d%41",
            "cloud-init.user-data",
        ] {
            assert_eq!(key_of_path(&config_key(key)).unwrap(), key);
        }
        assert_eq!(config_key("user.a_b~c"), "/1.0/config/user.a_b~c");
        assert_eq!(config_key("user.a b"), "/1.0/config/user.a%20b");
    }

    #[test]
    fn a_path_without_a_key_has_none() {
        for path in [
            "/1.0/config",
            "/1.0/config/",
            "/1.0/configx",
            "/1.0/config/%ff",
        ] {
            assert_eq!(key_of_path(path), None, "{path}");
        }
    }

    #[test]
    fn guests_have_two_kinds_of_keys() {
        assert!(is_guest_key("user.x") && is_guest_key("cloud-init.user-data"));
        for key in ["volatile.uuid", "limits.cpu", "user", "cloud-init", ""] {
            assert!(!is_guest_key(key), "{key}");
        }
        assert!(is_hidden_key("cloud-init.ssh-keys.ann"));
    }
}
