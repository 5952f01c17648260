//! What programs in the guest hear of a change: each once, whether the host tells it or a new
//! snapshot shows it.
//!
//! A host tells changes to the agents that it reaches. What changed while it did not reach this one
//! shows when everything is fetched again, and may be told after all.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use vsock_agent_protocol::{
    by_insertion,
    event::{CONFIG, DEVICE},
};

use super::Snapshot;

/// A change, as hosts tell it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    pub(super) kind: String,
    pub(super) metadata: Value,
}

/// The kind of a change, and the key or device that it is of.
type Subject = (String, String);

/// What was told already.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// By the host, since the last snapshot.
    heard: BTreeSet<Subject>,
    /// By a snapshot, and not by the host: the outcomes.
    shown: BTreeMap<Subject, Value>,
}

impl Told {
    /// Whether programs are to hear of something that the host tells.
    pub(super) fn hear(&mut self, kind: &str, metadata: &Value) -> bool {
        let Some((subject, outcome)) = parse(kind, metadata) else {
            return true;
        };
        let was_shown = self.shown.remove(&subject).as_ref() == Some(outcome);
        self.heard.insert(subject);
        !was_shown
    }

    /// What programs are to hear of because `new` has it and `old` had not. Of the first snapshot
    /// there is nothing to tell.
    pub(super) fn show(&mut self, old: Option<&Snapshot>, new: &Snapshot) -> Vec<Change> {
        let mut changes = old.map_or_else(Vec::new, |old| changes(old, new));
        changes.retain(|change| {
            let Some((subject, outcome)) = parse(&change.kind, &change.metadata) else {
                return false;
            };
            let is_unheard = !self.heard.contains(&subject);
            if is_unheard {
                self.shown.insert(subject, outcome.clone());
            }
            is_unheard
        });
        self.heard.clear();
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
    fn a_new_snapshot_tells_what_the_host_did_not() {
        let old = snapshot(
            &[("user.a", "1"), ("user.b", "1"), ("user.gone", "1")],
            json!({ "eth0": { "type": "nic" }, "same": {} }),
        );
        let new = snapshot(
            &[("user.a", "2"), ("user.b", "2")],
            json!({ "eth0": { "type": "none" }, "same": {}, "eth1": {} }),
        );
        let mut told = Told::default();
        let heard = key("user.a", "1", "2");
        assert!(told.hear(&heard.kind, &heard.metadata));
        let shown = told.show(Some(&old), &new);
        let device = |action: &str, name: &str, config: Value| Change {
            kind: DEVICE.to_owned(),
            metadata: json!({ "action": action, "name": name, "config": config }),
        };
        assert_eq!(
            shown,
            [
                key("user.b", "1", "2"),
                key("user.gone", "1", ""),
                device("updated", "eth0", json!({ "type": "none" })),
                device("added", "eth1", json!({})),
            ]
        );
        assert!(told.show(Some(&new), &new).is_empty());
    }

    #[test]
    fn what_a_snapshot_has_shown_the_host_tells_to_nobody_again() {
        let [one, two] = ["1", "2"].map(|value| snapshot(&[("user.a", value)], json!({})));
        let mut told = Told::default();
        assert_eq!(told.show(Some(&one), &two), [key("user.a", "1", "2")]);
        let late = key("user.a", "1", "2");
        assert!(!told.hear(&late.kind, &late.metadata));
        assert!(told.hear(&late.kind, &late.metadata), "another change");
        assert_eq!(told.show(Some(&two), &one), [], "the host has told of it");
        assert_eq!(told.show(Some(&one), &two), [key("user.a", "1", "2")]);
        let other = key("user.a", "2", "3");
        assert!(told.hear(&other.kind, &other.metadata));
        assert!(told.hear(&late.kind, &late.metadata), "back again");
    }

    #[test]
    fn what_is_not_understood_is_passed_on() {
        let mut told = Told::default();
        for metadata in [json!(null), json!({ "key": 1 }), json!({ "key": "user.a" })] {
            assert!(told.hear(CONFIG, &metadata));
        }
    }
}
