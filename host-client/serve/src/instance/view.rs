//! The part of an instance that its guest can read, and its changes.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::{Instance, ssh_keys};
use vsock_agent_protocol::{
    envelope::Envelope,
    event::{self, NewEvent},
    guest_api::{
        ConfigChange, DeviceChange, Devices, MAX_ANSWER_BYTES, is_guest_key, is_hidden_key,
    },
};

/// The data that a guest can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestView {
    /// Values by key. The SSH keys are merged into the user-data and vendor-data.
    pub(crate) config: BTreeMap<String, String>,
    /// Meta-data for cloud-init: a YAML mapping.
    pub(crate) meta_data: String,
    /// The devices.
    pub(crate) devices: Devices,
    /// Whether the guest may read any of this.
    pub(crate) is_allowed: bool,
}

impl GuestView {
    /// The view of `instance`.
    #[must_use]
    pub(crate) fn of(instance: &Instance) -> Self {
        let shown = |key: &str| is_guest_key(key) && !is_hidden_key(key);
        let mut config = instance.config.clone();
        config.retain(|key, _| shown(key));
        merge_ssh_keys(instance, &mut config);
        let mut meta_data = format!(
            "instance-id: {}\nlocal-hostname: {}\n",
            scalar(&instance.instance_id()),
            scalar(&instance.hostname())
        );
        if let Some(more) = instance.config.get("user.meta-data") {
            meta_data.push_str(more);
        }
        Self {
            config,
            meta_data,
            devices: instance.devices.clone(),
            is_allowed: instance.is_guest_api_on(),
        }
    }

    /// The key, `user.meta-data` or `devices` whose reply is larger than an agent reads. The agent then
    /// gets no data.
    pub(super) fn too_large(&self) -> Option<&str> {
        let texts = self.config.iter().map(|(key, value)| (&key[..], value));
        let mut texts = texts.chain([("user.meta-data", &self.meta_data)]);
        let large = texts.find(|(_, text)| is_too_large(text));
        let large = large.map(|(key, _)| key);
        large.or_else(|| is_too_large(&self.devices).then_some("devices"))
    }

    /// The changes since `old`, as LXD's events.
    #[must_use]
    pub(crate) fn changes_since(&self, old: &Self) -> Vec<NewEvent> {
        let text = |value: Option<&String>| value.cloned().unwrap_or_default();
        let config = changed_keys(&old.config, &self.config).map(|key| {
            let mut change = ConfigChange::default();
            change.key.clone_from(key);
            change.old_value = text(old.config.get(key));
            change.value = text(self.config.get(key));
            NewEvent::new(event::CONFIG, json!(change))
        });
        let devices = changed_keys(&old.devices, &self.devices).map(|name| {
            let (was, is) = (old.devices.get(name), self.devices.get(name));
            let action = match (was, is) {
                (None, _) => "added",
                (_, None) => "removed",
                _ => "updated",
            };
            let mut change = DeviceChange::default();
            change.action = action.to_owned();
            change.name.clone_from(name);
            change.config = is.or(was).cloned().unwrap_or_default();
            NewEvent::new(event::DEVICE, json!(change))
        });
        config.chain(devices).collect()
    }
}

/// Whether the reply has more than [`MAX_ANSWER_BYTES`].
fn is_too_large(metadata: impl Serialize) -> bool {
    let reply = serde_json::to_vec(&Envelope::sync(metadata));
    reply.is_ok_and(|reply| reply.len() > MAX_ANSWER_BYTES)
}

/// Keys with different values, or that only one of the two has: first those of `old` alone.
fn changed_keys<'a, V: PartialEq>(
    old: &'a BTreeMap<String, V>,
    new: &'a BTreeMap<String, V>,
) -> impl Iterator<Item = &'a String> {
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let changed = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(value));
    gone.chain(changed.map(|(key, _)| key))
}

/// Merges the SSH keys into the user-data and vendor-data that cloud-init will use: `cloud-init.*` if
/// it is set, else `user.*`.
fn merge_ssh_keys(instance: &Instance, config: &mut BTreeMap<String, String>) {
    let keys = instance.config.iter().filter(|(key, _)| is_hidden_key(key));
    let keys: Vec<&str> = keys.map(|(_, value)| &value[..]).collect();
    if keys.is_empty() {
        return;
    }
    let effective = |kind: &str| {
        let (lxd, user) = (format!("cloud-init.{kind}"), format!("user.{kind}"));
        let is_user = config.contains_key(&user) && !config.contains_key(&lxd);
        if is_user { user } else { lxd }
    };
    let (user, vendor) = (effective("user-data"), effective("vendor-data"));
    let text = |key: &str| config.get(key).map(String::as_str);
    let merged = ssh_keys::merge(text(&user), text(&vendor), &keys);
    let both = [(user, merged.user_data), (vendor, merged.vendor_data)];
    config.extend(
        both.into_iter()
            .filter_map(|(key, value)| Some((key, value?))),
    );
}

/// A name as a YAML scalar, with quotes if it could be read as a number or a boolean.
fn scalar(name: &str) -> String {
    let is_word = (uuid::Uuid::parse_str(name).is_ok() && name.contains('-'))
        || (name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.contains(['-', '.', '_'])
            && !name.contains(':'));
    if is_word || is_plain_word(name) {
        name.to_owned()
    } else {
        format!("\"{name}\"")
    }
}

/// Whether it is letters and digits, and not a `bool` or `null` of YAML 1.1.
fn is_plain_word(name: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let lower = name.to_ascii_lowercase();
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric())
        && !WORDS.contains(&&lower[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(config: &[(&str, &str)]) -> Instance {
        let mut instance = Instance::new("demo").unwrap();
        let changes: Vec<_> = config
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned())))
            .collect();
        instance.apply(&changes).unwrap();
        instance
    }

    #[test]
    fn a_guest_sees_only_user_and_cloud_init_keys() {
        let view = GuestView::of(&instance(&[
            ("user.a", "b"),
            ("cloud-init.x", "y"),
            ("security.devlxd", "false"),
        ]));
        assert_eq!(
            view.config.keys().collect::<Vec<_>>(),
            ["cloud-init.x", "user.a"]
        );
        assert!(!view.is_allowed);
    }

    #[test]
    fn meta_data_is_the_id_the_host_name_and_the_appended_text() {
        let instance = instance(&[("user.meta-data", "a: b\n"), ("hostname", "web")]);
        let id = instance.instance_id();
        let expected = format!("instance-id: {id}\nlocal-hostname: web\na: b\n");
        assert_eq!(GuestView::of(&instance).meta_data, expected);
    }

    #[test]
    fn names_that_yaml_reads_as_another_type_are_quoted() {
        assert_eq!(scalar("i-1"), "i-1");
        assert_eq!(scalar("demo"), "demo");
        let uuid = "01234567-0123-4567-0123-456701234567";
        assert_eq!(scalar(uuid), uuid);
        for name in [
            "123",
            "1e5",
            "yes",
            "Null",
            "12:30",
            "a:b",
            "0x10",
            "2001-01-01",
            // A UUID without hyphens, too.
            "01234567012345670123456701234567",
            "12345678901234567890123456789012",
        ] {
            assert_eq!(scalar(name), format!("\"{name}\""));
        }
    }

    #[test]
    fn ssh_keys_are_merged_into_the_effective_user_data() {
        let key = ("cloud-init.ssh-keys.ann", "ann:ssh-rsa AAAA");
        let view = GuestView::of(&instance(&[key]));
        let keys: Vec<_> = view.config.keys().collect();
        assert_eq!(keys, ["cloud-init.user-data", "cloud-init.vendor-data"]);
        let view = GuestView::of(&instance(&[key, ("user.user-data", "#cloud-config\n")]));
        assert!(view.config["user.user-data"].contains("AAAA"));
        assert!(!view.config.contains_key("cloud-init.user-data"));
        assert!(!view.config.contains_key("cloud-init.ssh-keys.ann"));
    }

    #[test]
    fn each_change_is_an_event() {
        let old = GuestView::of(&instance(&[
            ("user.same", "1"),
            ("user.gone", "1"),
            ("user.other", "1"),
            ("devices.root.type", "disk"),
        ]));
        let new = GuestView::of(&instance(&[
            ("user.same", "1"),
            ("user.other", "2"),
            ("devices.eth0.type", "nic"),
        ]));
        let events: Vec<String> = new
            .changes_since(&old)
            .into_iter()
            .map(|change| format!("{} {}", change.kind, change.metadata))
            .collect();
        assert_eq!(
            events,
            [
                r#"config {"key":"user.gone","old_value":"1","value":""}"#,
                r#"config {"key":"user.other","old_value":"1","value":"2"}"#,
                r#"device {"action":"removed","config":{"type":"disk"},"name":"root"}"#,
                r#"device {"action":"added","config":{"type":"nic"},"name":"eth0"}"#,
            ]
        );
        assert!(new.changes_since(&new).is_empty());
    }
}
