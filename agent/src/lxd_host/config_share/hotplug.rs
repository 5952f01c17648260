//! Mounts and unmounts shared directories while the guest runs, on the host's `device` events.
//!
//! Called by `api/events.rs`. Changes are applied in order.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use vsock_agent_protocol::{null_as_default, version::Family};

use super::mounts::{self, Mount};
use crate::system::bounded;

/// Time for a new device to appear. LXD's agent waits 2.5 s, Incus's 10 s.
const ADD_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two attempts to mount it.
const ADD_PAUSE: Duration = Duration::from_millis(500);

/// Time limit of one `mount(2)` or `umount2(2)`.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Applies changes of shared directories. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Hotplug {
    root: PathBuf,
    /// The default tag of a share is this and the name of its device.
    prefix: &'static str,
    /// Held while a change is applied.
    turn: Arc<Mutex<()>>,
}

/// A change of a shared directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Mount it.
    Add(Mount),
    /// Unmount it.
    Remove(Mount),
}

/// The metadata of a `device` event.
#[derive(Debug, Deserialize)]
struct Device {
    action: String,
    #[serde(default, deserialize_with = "null_as_default")]
    name: String,
    config: Option<Config>,
    mount: Option<Tag>,
}

#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(rename = "type", default, deserialize_with = "null_as_default")]
    kind: String,
    #[serde(default, deserialize_with = "null_as_default")]
    path: PathBuf,
}

/// The tag of the virtiofs device, and its mount options.
#[derive(Debug, Default, Deserialize)]
struct Tag {
    #[serde(default, deserialize_with = "null_as_default")]
    source: String,
    #[serde(default)]
    options: Option<Vec<String>>,
}

impl Hotplug {
    /// For the guest whose `/` is `root`.
    pub(crate) fn new(root: PathBuf, family: Family) -> Self {
        Self {
            root,
            prefix: match family {
                Family::Lxd => "lxd_",
                Family::Incus => "incus_",
            },
            turn: Arc::default(),
        }
    }

    /// Parses an event. `None` if it is not about a shared directory.
    pub(crate) fn change(&self, metadata: &serde_json::Value) -> Option<Change> {
        let device = Device::deserialize(metadata).ok()?;
        let config = device.config.unwrap_or_default();
        let has_path = config.path.file_name().is_some();
        if config.kind != "disk" || !has_path {
            return None;
        }
        let tag = device.mount.unwrap_or_default();
        let source = if tag.source.is_empty() {
            format!("{}{}", self.prefix, device.name)
        } else {
            tag.source
        };
        let share = Mount {
            source,
            target: config.path,
            fstype: mounts::VIRTIOFS.to_owned(),
            options: tag.options,
        };
        match device.action.as_str() {
            "added" => Some(Change::Add(share)),
            "removed" => Some(Change::Remove(share)),
            _ => None,
        }
    }

    /// Applies a change after the earlier ones. Errors are logged.
    pub(crate) async fn apply(&self, change: Change) {
        let _turn = self.turn.lock().await;
        match change {
            Change::Add(mount) => self.add(mount).await,
            Change::Remove(mount) => self.remove(mount).await,
        }
    }

    async fn add(&self, mount: Mount) {
        let deadline = Instant::now() + ADD_TIMEOUT;
        loop {
            let (root, share) = (self.root.clone(), mount.clone());
            let work = move || mounts::mount(&root, &share);
            let Some(result) = bounded::within(CALL_TIMEOUT, "mount", work).await else {
                return;
            };
            let Mount { source, target, .. } = &mount;
            match result {
                Ok(how) => {
                    tracing::info!(source, ?target, ?how, "mounted a share of the host");
                    return;
                }
                Err(error) if error.is_final() || Instant::now() >= deadline => {
                    tracing::error!(source, ?target, %error, "cannot mount a share of the host");
                    return;
                }
                Err(_) => sleep(ADD_PAUSE).await,
            }
        }
    }

    async fn remove(&self, mount: Mount) {
        let root = self.root.clone();
        let work = move || {
            let result = mounts::unmount(&root, &mount.source, &mount.target);
            let Mount { source, target, .. } = mount;
            match result {
                Ok(count) => {
                    tracing::info!(source, ?target, count, "unmounted a share of the host")
                }
                Err(error) => {
                    tracing::error!(source, ?target, %error, "cannot unmount a share of the host")
                }
            }
        };
        bounded::within(CALL_TIMEOUT, "unmount", work).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn change(family: Family, metadata: &Value) -> Option<Change> {
        Hotplug::new("/".into(), family).change(metadata)
    }

    fn share(source: &str, options: Option<Vec<String>>) -> Mount {
        Mount {
            source: source.to_owned(),
            target: "/mnt/data".into(),
            fstype: "virtiofs".to_owned(),
            options,
        }
    }

    #[test]
    fn an_event_of_a_disk_with_a_path_changes_a_share() {
        let config = json!({ "type": "disk", "path": "/mnt/data", "source": "/srv" });
        let added = json!({ "action": "added", "name": "data", "config": config });
        let removed = json!({ "action": "removed", "name": "data", "config": config });
        let lxd = |metadata| change(Family::Lxd, metadata);
        assert_eq!(lxd(&added), Some(Change::Add(share("lxd_data", None))));
        assert_eq!(lxd(&removed), Some(Change::Remove(share("lxd_data", None))));
        let incus = change(Family::Incus, &added);
        assert_eq!(incus, Some(Change::Add(share("incus_data", None))));
        let mount = json!({ "source": "tag", "target": "/x", "options": ["ro"] });
        let tagged = json!({ "action": "added", "config": config, "mount": mount });
        let options = Some(vec!["ro".to_owned()]);
        assert_eq!(lxd(&tagged), Some(Change::Add(share("tag", options))));
    }

    #[test]
    fn events_of_other_devices_change_no_share() {
        for (action, config) in [
            ("updated", json!({ "type": "disk", "path": "/mnt/data" })),
            ("added", json!({ "type": "nic", "path": "/mnt/data" })),
            ("added", json!({ "type": "disk", "path": "/" })),
            ("added", json!({ "type": "disk" })),
            ("added", Value::Null),
        ] {
            let metadata = json!({ "action": action, "name": "data", "config": config });
            assert_eq!(change(Family::Lxd, &metadata), None, "{metadata}");
        }
        assert_eq!(change(Family::Lxd, &Value::Null), None);
    }
}
