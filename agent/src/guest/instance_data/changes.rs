//! Events about changes for programs in the guest, each once.
//!
//! A change comes as an event of the host or, if the host could not send it, as a difference of two
//! snapshots. The host may send the event after the snapshot.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use vsock_agent_protocol::event::{CONFIG, DEVICE};

use super::Snapshot;
use crate::by_insertion::by_insertion;

/// A change, in the form of the host's events.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    pub(super) kind: String,
    pub(super) metadata: Value,
}

/// The kind of a change, and its key or device.
type Subject = (String, String);

/// The changes that were published.
#[derive(Debug, Default)]
pub(super) struct ReportedChanges {
    /// From events of the host, since the last snapshot.
    events: BTreeSet<Subject>,
    /// From differences of snapshots, with the new value or action.
    inferred: BTreeMap<Subject, Value>,
}

impl ReportedChanges {
    /// Records an event of the host. True if it is to be published.
    pub(super) fn host_event(&mut self, kind: &str, metadata: &Value) -> bool {
        let Some((subject, outcome)) = parse(kind, metadata) else {
            return true;
        };
        let was_inferred = self.inferred.remove(&subject).as_ref() == Some(outcome);
        self.events.insert(subject);
        !was_inferred
    }

    /// The differences of two snapshots that are to be published. None for the first snapshot.
    pub(super) fn snapshot_changes(
        &mut self,
        old: Option<&Snapshot>,
        new: &Snapshot,
    ) -> Vec<Change> {
        let mut changes = old.map_or_else(Vec::new, |old| changes(old, new));
        changes.retain(|change| {
            let Some((subject, outcome)) = parse(&change.kind, &change.metadata) else {
                return false;
            };
            let is_new = !self.events.contains(&subject);
            if is_new {
                self.inferred.insert(subject, outcome.clone());
            }
            is_new
        });
        self.events.clear();
        changes
    }
}

fn parse<'a>(kind: &str, metadata: &'a Value) -> Option<(Subject, &'a Value)> {
    let (name, outcome) = match kind {
        CONFIG => ("key", "value"),
        DEVICE => ("name", "action"),
        _ => return None,
    };
    let subject = metadata.get(name)?.as_str()?;
    let outcome = metadata.get(outcome)?;
    Some(((kind.to_owned(), subject.to_owned()), outcome))
}

fn changes(old: &Snapshot, new: &Snapshot) -> Vec<Change> {
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    let config = either(old.config.keys(), new.config.keys());
    let config = config
        .into_iter()
        .map(|key| (key, old.config.get(key), new.config.get(key)))
        .filter(|(_, was, is)| was != is)
        .map(|(key, was, is)| Change {
            kind: CONFIG.to_owned(),
            metadata: json!({ "key": key, "old_value": text(was), "value": text(is) }),
        });
    let devices = either(old.devices.keys(), new.devices.keys());
    let devices = devices
        .into_iter()
        .map(|name| (name, old.devices.get(name), new.devices.get(name)))
        .filter(|(_, was, is)| was != is)
        .map(|(name, was, is)| {
            let action = match (was, is) {
                (None, _) => "added",
                (_, None) => "removed",
                _ => "updated",
            };
            Change {
                kind: DEVICE.to_owned(),
                metadata: json!({ "action": action, "name": name, "config": is.or(was) }),
            }
        });
    config.chain(devices).collect()
}

fn either<'a>(
    old: impl Iterator<Item = &'a String>,
    new: impl Iterator<Item = &'a String>,
) -> BTreeSet<&'a String> {
    by_insertion(old.chain(new))
}

#[cfg(test)]
mod tests {
    use vsock_agent_protocol::guest_api::{GuestInfo, GuestState};

    use super::*;

    fn snapshot(keys: &[(&str, &str)], devices: Value) -> Snapshot {
        let text = |text: &str| text.to_owned();
        Snapshot {
            info: GuestInfo::new(text("none"), GuestState::Started),
            config: keys.iter().map(|(key, is)| (text(key), text(is))).collect(),
            meta_data: String::new(),
            devices: serde_json::from_value(devices).unwrap(),
        }
    }

    fn key(key: &str, was: &str, is: &str) -> Change {
        Change {
            kind: CONFIG.to_owned(),
            metadata: json!({ "key": key, "old_value": was, "value": is }),
        }
    }

    #[test]
    fn a_snapshot_reports_changes_without_a_host_event() {
        let old = snapshot(
            &[("user.a", "1"), ("user.b", "1"), ("user.gone", "1")],
            json!({ "eth0": { "type": "nic" }, "same": {} }),
        );
        let new = snapshot(
            &[("user.a", "2"), ("user.b", "2")],
            json!({ "eth0": { "type": "none" }, "same": {}, "eth1": {} }),
        );
        let mut reported = ReportedChanges::default();
        let event = key("user.a", "1", "2");
        assert!(reported.host_event(&event.kind, &event.metadata));
        let inferred = reported.snapshot_changes(Some(&old), &new);
        let device = |action: &str, name: &str, config: Value| Change {
            kind: DEVICE.to_owned(),
            metadata: json!({ "action": action, "name": name, "config": config }),
        };
        assert_eq!(
            inferred,
            [
                key("user.b", "1", "2"),
                key("user.gone", "1", ""),
                device("updated", "eth0", json!({ "type": "none" })),
                device("added", "eth1", json!({})),
            ]
        );
        assert!(reported.snapshot_changes(Some(&new), &new).is_empty());
    }

    #[test]
    fn a_host_event_is_dropped_if_a_snapshot_has_reported_the_change() {
        let [one, two] = ["1", "2"].map(|value| snapshot(&[("user.a", value)], json!({})));
        let mut reported = ReportedChanges::default();
        assert_eq!(
            reported.snapshot_changes(Some(&one), &two),
            [key("user.a", "1", "2")]
        );
        let late = key("user.a", "1", "2");
        assert!(!reported.host_event(&late.kind, &late.metadata));
        assert!(
            reported.host_event(&late.kind, &late.metadata),
            "another change"
        );
        assert_eq!(
            reported.snapshot_changes(Some(&two), &one),
            [],
            "the host has sent an event"
        );
        assert_eq!(
            reported.snapshot_changes(Some(&one), &two),
            [key("user.a", "1", "2")]
        );
        let other = key("user.a", "2", "3");
        assert!(reported.host_event(&other.kind, &other.metadata));
        assert!(
            reported.host_event(&late.kind, &late.metadata),
            "back again"
        );
    }

    #[test]
    fn unknown_host_events_are_published() {
        let mut reported = ReportedChanges::default();
        for metadata in [json!(null), json!({ "key": 1 }), json!({ "key": "user.a" })] {
            assert!(reported.host_event(CONFIG, &metadata));
        }
    }
}
