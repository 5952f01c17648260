//! Instance data: the configuration of a virtual machine that its host provides.
//!
//! [`Instance`] is the data of one machine, changed by the keys of `agent-cli config`. Values that
//! make cloud-init fail are refused. [`InstanceStore`] stores each instance in a file. [`view::GuestView`] is
//! the part that the guest can read. There is no network code here.

mod check;
mod key;
mod ssh_keys;
mod store;
mod view;
mod yaml;

use std::collections::BTreeMap;

use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;
use uuid::Uuid;

use self::key::{GUEST_API, Key};
pub(crate) use self::view::GuestView;
pub use self::{
    check::CheckError,
    key::KeyError,
    store::{InstanceStore, Stamp, StoreError},
    yaml::YamlError,
};
use vsock_agent_protocol::guest_api::{
    Devices, MAX_ANSWER_BYTES, MAX_DATA_BYTES, MAX_KEYS, MAX_VALUE_BYTES, is_hidden_key,
};

/// Keys with data for cloud-init. A change of one gives the instance a new instance-id.
const CLOUD_INIT_DATA: [&str; 6] = [
    "cloud-init.network-config",
    "cloud-init.user-data",
    "cloud-init.vendor-data",
    "user.network-config",
    "user.user-data",
    "user.vendor-data",
];

/// The data of one virtual machine. It is serialized as its file stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Instance {
    /// Name of the machine. A renamed machine is a new instance.
    name: String,
    /// The generated instance-id, replaced when cloud-init must run again.
    uuid: Uuid,
    /// Used instead of the generated one if it is set.
    instance_id: Option<String>,
    /// Used instead of the machine's name if it is set.
    hostname: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    config: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Devices::is_empty")]
    devices: Devices,
}

/// A key to set, or without a value to unset.
pub type Assignment = (String, Option<String>);

/// A warning about a value that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// The key.
    pub key: String,
    /// The warning.
    pub text: &'static str,
}

impl Instance {
    /// An instance without keys, with a new instance-id.
    ///
    /// # Errors
    ///
    /// [`InstanceError::Random`] when the system has no random numbers.
    pub fn new(name: &str) -> Result<Self, InstanceError> {
        random_uuid().map(|uuid| Self::empty(name.to_owned(), uuid))
    }

    const fn empty(name: String, uuid: Uuid) -> Self {
        Self {
            name,
            uuid,
            instance_id: None,
            hostname: None,
            config: BTreeMap::new(),
            devices: Devices::new(),
        }
    }

    /// Name of the machine.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The instance-id of cloud-init.
    #[must_use]
    pub fn instance_id(&self) -> String {
        self.instance_id
            .clone()
            .unwrap_or_else(|| self.uuid.to_string())
    }

    /// The guest's host name: the one that was set, or the machine's name as a valid host name.
    #[must_use]
    pub fn hostname(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| {
            let name = self.name.replace('_', "-");
            name.trim_matches(['-', '.']).to_owned()
        })
    }

    /// Whether the guest may read its data (`security.devlxd`).
    #[must_use]
    pub(crate) fn is_guest_api_on(&self) -> bool {
        self.config
            .get(GUEST_API)
            .is_none_or(|value| value == "true")
    }

    /// All keys that are set, with their values.
    #[must_use]
    pub const fn config(&self) -> &BTreeMap<String, String> {
        &self.config
    }

    /// The devices.
    #[must_use]
    pub const fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The value of a key; `None` if it has none. The value of `devices.NAME` has a line for each key.
    ///
    /// # Errors
    ///
    /// [`InstanceError::Key`] for an invalid key.
    pub fn get(&self, key: &str) -> Result<Option<String>, InstanceError> {
        Ok(match Key::parse(key)? {
            Key::Config(key) => self.config.get(&key).cloned(),
            Key::InstanceId => Some(self.instance_id()),
            Key::Hostname => Some(self.hostname()),
            Key::Device { name, key } => self
                .devices
                .get(&name)
                .and_then(|device| device.get(&key).cloned()),
            Key::WholeDevice(name) => self.devices.get(&name).map(|device| {
                let lines = device.iter().map(|(key, value)| format!("{key}: {value}"));
                lines.collect::<Vec<_>>().join("\n")
            }),
        })
    }

    /// The whole instance as YAML.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let text = |text: &str| yaml::Node::text(text);
        let mapping = |pairs| yaml::Node::new(yaml::Content::Mapping(pairs));
        let table = |entries: &BTreeMap<String, String>| {
            let pairs = entries.iter().map(|(key, value)| (text(key), text(value)));
            mapping(pairs.collect())
        };
        let devices = self.devices.iter();
        let devices = devices.map(|(name, device)| (text(name), table(device)));
        let root = mapping(vec![
            (text("name"), text(&self.name)),
            (text("instance-id"), text(&self.instance_id())),
            (text("hostname"), text(&self.hostname())),
            (text("config"), table(&self.config)),
            (text("devices"), mapping(devices.collect())),
        ]);
        root.to_yaml()
    }

    /// Makes all of these changes, or none. An empty value unsets the key.
    ///
    /// # Errors
    ///
    /// [`InstanceError`] with the key of the first change that is not possible.
    pub fn apply(&mut self, changes: &[Assignment]) -> Result<Vec<Remark>, InstanceError> {
        let mut next = self.clone();
        let mut remarks = Vec::new();
        for (key, value) in changes {
            let value = value.as_deref().filter(|value| !value.is_empty());
            next.assign(key, value, &mut remarks)?;
        }
        next.check_whole()?;
        if next.cloud_init_data() != self.cloud_init_data() {
            next.uuid = random_uuid()?;
        }
        *self = next;
        Ok(remarks)
    }

    fn assign(
        &mut self,
        text: &str,
        value: Option<&str>,
        remarks: &mut Vec<Remark>,
    ) -> Result<(), InstanceError> {
        let key = Key::parse(text)?;
        if let Some(value) = value
            && let Some(warning) = check_value(&key, text, value)?
        {
            remarks.push(Remark {
                key: text.to_owned(),
                text: warning,
            });
        }
        match (key, value.map(str::to_owned)) {
            (Key::Config(key), Some(value)) => drop(self.config.insert(key, value)),
            (Key::Config(key), None) => drop(self.config.remove(&key)),
            (Key::InstanceId, value) => self.instance_id = value,
            (Key::Hostname, value) => self.hostname = value,
            (Key::Device { name, key }, Some(value)) => {
                drop(self.devices.entry(name).or_default().insert(key, value));
            }
            (Key::Device { name, key }, None) => {
                if let Some(device) = self.devices.get_mut(&name) {
                    device.remove(&key);
                    if device.is_empty() {
                        self.devices.remove(&name);
                    }
                }
            }
            (Key::WholeDevice(name), None) => drop(self.devices.remove(&name)),
            (Key::WholeDevice(_), Some(_)) => {
                return Err(InstanceError::Value {
                    key: text.to_owned(),
                    source: CheckError::Kind("set by key, such as devices.NAME.type=nic"),
                });
            }
        }
        Ok(())
    }

    /// Checks the limits of all keys together.
    fn check_whole(&self) -> Result<(), InstanceError> {
        let (mut keys, mut bytes) = (0, 0);
        for (key, value) in &self.config {
            keys += 1;
            bytes += key.len() + value.len();
        }
        for (name, device) in &self.devices {
            if !device.contains_key("type") {
                return Err(InstanceError::DeviceType { name: name.clone() });
            }
            keys += device.len();
            for (key, value) in device {
                bytes += name.len() + key.len() + value.len();
            }
        }
        if keys > MAX_KEYS {
            return Err(InstanceError::TooManyKeys);
        }
        if bytes > MAX_DATA_BYTES {
            return Err(InstanceError::TooLarge);
        }
        match GuestView::of(self).too_large() {
            Some(key) => Err(InstanceError::AnswerTooLarge {
                key: key.to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// The data whose change needs a new instance-id: that for cloud-init, the SSH keys, and the names
    /// of network interfaces, which the network configuration refers to.
    fn cloud_init_data(&self) -> Vec<(&str, &str)> {
        let of_cloud_init = |key: &str| CLOUD_INIT_DATA.contains(&key) || is_hidden_key(key);
        let config = self.config.iter();
        let config = config.map(|(key, value)| (&key[..], &value[..]));
        let is_nic = |device: &BTreeMap<String, String>| {
            device.get("type").is_some_and(|kind| kind == "nic")
        };
        let interfaces = self.devices.iter().filter(|(_, device)| is_nic(device));
        let interfaces = interfaces
            .map(|(name, device)| (&name[..], device.get("name").map_or("", String::as_str)));
        config
            .filter(|(key, _)| of_cloud_init(key))
            .chain(interfaces)
            .collect()
    }
}

/// The warning about a network configuration.
const NO_NETWORK: &str = "a guest that uses one of the agent's metadata services \
    (`metadata` in its configuration) does not receive this: of those clouds only openstack has a \
    network configuration, with Ethernet devices, addresses, routes and name servers";

/// Checks a single value. Returns a warning about one that is accepted.
fn check_value(key: &Key, text: &str, value: &str) -> Result<Option<&'static str>, InstanceError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(InstanceError::ValueTooLarge {
            key: text.to_owned(),
        });
    }
    let checked = match (key, text) {
        (_, _) if value.contains('\0') => Err(CheckError::Kind("text without a zero byte")),
        (Key::InstanceId, _) => check::instance_id(value).map(|()| None),
        (Key::Hostname, _) => check::hostname(value).map(|()| None),
        (_, GUEST_API) => check::boolean(value).map(|()| None),
        (_, "user.meta-data") => check::meta_data(value).map(|()| None),
        (_, key) if is_hidden_key(key) => check::ssh_key(value).map(|()| None),
        (_, key) if !CLOUD_INIT_DATA.contains(&key) => Ok(None),
        (_, key) if key.ends_with(".network-config") => {
            check::network_config(value).map(|()| Some(NO_NETWORK))
        }
        _ => check::cloud_data(value),
    };
    checked.map_err(|source| InstanceError::Value {
        key: text.to_owned(),
        source,
    })
}

/// A random UUID.
fn random_uuid() -> Result<Uuid, InstanceError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| InstanceError::Random)?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

/// Why an instance cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// The key is invalid.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Cloud-init could not use the value.
    #[error("the value of {key} is invalid")]
    Value {
        /// The key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: CheckError,
    },
    /// The value is larger than [`MAX_VALUE_BYTES`].
    #[error("the value of {key} is larger than {MAX_VALUE_BYTES} bytes")]
    ValueTooLarge {
        /// The key.
        key: String,
    },
    /// A device has no `type`. Cloud-init 22.4 then uses none of the data.
    #[error("device {name} needs a type: set devices.{name}.type with it, such as nic or disk")]
    DeviceType {
        /// The device.
        name: String,
    },
    /// More than [`MAX_KEYS`].
    #[error("an instance has at most {MAX_KEYS} keys")]
    TooManyKeys,
    /// More than [`MAX_DATA_BYTES`].
    #[error("the data of an instance has at most {MAX_DATA_BYTES} bytes")]
    TooLarge,
    /// The reply to the guest is larger than [`MAX_ANSWER_BYTES`], the most that an agent reads. It
    /// includes the SSH keys, and is JSON, in which a control character takes six bytes.
    #[error("{key} as JSON is larger than the {MAX_ANSWER_BYTES} bytes that an agent reads")]
    AnswerTooLarge {
        /// The key, or `devices`.
        key: String,
    },
    /// The system has no random numbers for an instance-id.
    #[error("the system has no random numbers")]
    Random,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(instance: &mut Instance, key: &str, value: &str) -> Result<Vec<Remark>, InstanceError> {
        instance.apply(&[(key.to_owned(), Some(value.to_owned()))])
    }

    fn demo() -> Instance {
        Instance::new("demo").unwrap()
    }

    #[test]
    fn only_data_for_cloud_init_changes_the_instance_id() {
        let mut instance = demo();
        let mut ids = vec![instance.instance_id()];
        for (key, value) in [
            ("cloud-init.user-data", "#cloud-config\na: b\n"),
            ("user.vendor-data", "#!/bin/sh\n"),
            ("cloud-init.network-config", "version: 2\n"),
            ("cloud-init.ssh-keys.ann", "ann:ssh-rsa A"),
            ("devices.eth0.type", "nic"),
        ] {
            set(&mut instance, key, value).unwrap();
            ids.push(instance.instance_id());
        }
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count);
        let id = instance.instance_id();
        for (key, value) in [
            ("user.x", "y"),
            ("user.meta-data", "a: b"),
            ("hostname", "other"),
            ("cloud-init.user-data", "#cloud-config\na: b\n"),
            ("devices.eth0.hwaddr", "00:16:3e:00:00:01"),
            ("devices.root.type", "disk"),
        ] {
            set(&mut instance, key, value).unwrap();
        }
        assert_eq!(instance.instance_id(), id);
    }

    #[test]
    fn a_set_instance_id_is_kept_until_it_is_unset() {
        let mut instance = demo();
        let generated = instance.instance_id();
        set(&mut instance, "instance-id", "i-1").unwrap();
        set(&mut instance, "user.user-data", "#!/bin/sh\n").unwrap();
        assert_eq!(instance.instance_id(), "i-1");
        set(&mut instance, "instance-id", "").unwrap();
        assert_ne!(instance.instance_id(), generated);
        assert_eq!(instance.instance_id().len(), 36);
    }

    #[test]
    fn apply_with_an_invalid_value_changes_nothing() {
        let mut instance = demo();
        set(&mut instance, "user.a", "b").unwrap();
        let before = instance.clone();
        let changes = [
            ("user.a".to_owned(), Some("c".to_owned())),
            (
                "cloud-init.network-config".to_owned(),
                Some("a: [".to_owned()),
            ),
        ];
        let error = instance.apply(&changes).unwrap_err();
        assert!(
            matches!(error, InstanceError::Value { key, .. } if key == "cloud-init.network-config")
        );
        assert_eq!(instance, before);
    }

    #[test]
    fn values_that_are_too_large_as_json_are_refused() {
        let mut instance = demo();
        let text = "\u{1}".repeat(3 << 20);
        let error = set(&mut instance, "user.a", &text).unwrap_err();
        assert!(matches!(error, InstanceError::AnswerTooLarge { key } if key == "user.a"));
        set(
            &mut instance,
            "user.a",
            &"\n".repeat(MAX_VALUE_BYTES - 1000),
        )
        .unwrap();
        // Not shown to the guest itself, only in the user-data.
        let key = format!("ann:ssh-rsa {}", "A".repeat(MAX_VALUE_BYTES - 100));
        let keys =
            ["a", "b", "c"].map(|name| (format!("cloud-init.ssh-keys.{name}"), Some(key.clone())));
        assert!(matches!(
            instance.apply(&keys).unwrap_err(),
            InstanceError::AnswerTooLarge { .. }
        ));
    }

    #[test]
    fn a_device_needs_a_type_and_is_unset_as_a_whole() {
        let mut instance = demo();
        let error = set(&mut instance, "devices.eth0.hwaddr", "x").unwrap_err();
        assert!(matches!(error, InstanceError::DeviceType { name } if name == "eth0"));
        set(&mut instance, "devices.eth0.type", "nic").unwrap();
        set(&mut instance, "devices.eth0.hwaddr", "x").unwrap();
        let shown = instance.get("devices.eth0").unwrap();
        assert_eq!(shown.unwrap(), "hwaddr: x\ntype: nic");
        set(&mut instance, "devices.eth0", "nic").unwrap_err();
        set(&mut instance, "devices.eth0", "").unwrap();
        assert!(instance.devices().is_empty());
    }

    #[test]
    fn text_that_cloud_init_ignores_has_a_remark() {
        let remarks = set(&mut demo(), "user.user-data", "hello").unwrap();
        assert_eq!(remarks.len(), 1);
        assert!(set(&mut demo(), "user.x", "hello").unwrap().is_empty());
        let remarks = set(&mut demo(), "cloud-init.network-config", "version: 2\n").unwrap();
        let texts = remarks.iter().map(|remark| remark.text);
        assert_eq!(texts.collect::<Vec<_>>(), [NO_NETWORK]);
    }

    #[test]
    fn instance_data_has_limits_of_keys_and_bytes() {
        let mut instance = demo();
        let large = "x".repeat(MAX_VALUE_BYTES + 1);
        let error = set(&mut instance, "user.a", &large).unwrap_err();
        assert!(matches!(error, InstanceError::ValueTooLarge { .. }));
        let many: Vec<Assignment> = (0..=MAX_KEYS)
            .map(|number| (format!("user.{number}"), Some("x".to_owned())))
            .collect();
        assert_eq!(instance.apply(&many), Err(InstanceError::TooManyKeys));
        let large = "x".repeat(MAX_VALUE_BYTES);
        let much: Vec<Assignment> = (0..5)
            .map(|number| (format!("user.{number}"), Some(large.clone())))
            .collect();
        assert_eq!(instance.apply(&much), Err(InstanceError::TooLarge));
    }

    #[test]
    fn a_vm_name_is_converted_to_a_host_name() {
        assert_eq!(Instance::new("my_vm.").unwrap().hostname(), "my-vm");
    }
}
