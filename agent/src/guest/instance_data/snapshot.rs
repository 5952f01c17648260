//! A snapshot of the instance data.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vsock_agent_protocol::guest_api::GuestInfo;

/// A complete copy of the instance data.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) info: GuestInfo,
    /// Keys that are visible to the guest and have a value.
    pub(crate) config: BTreeMap<String, String>,
    /// A YAML mapping, as text.
    pub(crate) meta_data: String,
    pub(crate) devices: Map<String, Value>,
}

/// A field of the reply to `GET /1.0` that marks saved data of an earlier boot.
const SAVED: &str = "vsock_agent_kept";

impl Snapshot {
    /// Marks the snapshot as one of an earlier boot.
    pub(crate) fn marked_as_saved(mut self) -> Self {
        self.info.other.insert(SAVED.to_owned(), true.into());
        self
    }
}

/// Prints no values: they may be secrets.
impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("keys", &self.config.len())
            .field("devices", &self.devices.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use vsock_agent_metadata::Instance as _;
    use vsock_agent_protocol::guest_api::GuestState;

    use super::*;

    #[test]
    fn the_newer_of_two_cloud_init_keys_has_precedence() {
        let snapshot = |keys: &[(&str, &str)]| Snapshot {
            info: GuestInfo::new("none".to_owned(), GuestState::Started),
            config: keys
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            meta_data: String::new(),
            devices: Map::new(),
        };
        let both = snapshot(&[("user.user-data", "old"), ("cloud-init.user-data", "new")]);
        assert_eq!(both.cloud_init("user-data"), Some("new"));
        let old = snapshot(&[("user.user-data", "old")]);
        assert_eq!(old.cloud_init("user-data"), Some("old"));
        assert_eq!(old.cloud_init("vendor-data"), None);
        assert!(!format!("{both:?}").contains("old"), "{both:?}");
    }
}
