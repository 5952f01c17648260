//! The instance that the services describe.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::rtnetlink::Rtnetlink;

/// The instance data at one time.
pub trait Instance: fmt::Debug {
    /// The value of a key that the guest may see, such as `user.role`.
    fn config(&self, key: &str) -> Option<&str>;

    /// The meta-data: text, a YAML mapping.
    fn meta_data(&self) -> &str;

    /// The devices by name, as LXD has them.
    fn devices(&self) -> &Map<String, Value>;

    /// A value for cloud-init: of the key `cloud-init.NAME`, or else of the older `user.NAME`.
    fn cloud_init(&self, name: &str) -> Option<&str> {
        self.config(&format!("cloud-init.{name}"))
            .or_else(|| self.config(&format!("user.{name}")))
    }
}

/// The NICs whose hardware address the host has; without any, the machine's own.
pub(crate) fn nics(instance: &dyn Instance) -> Vec<Value> {
    let known = instance.devices().iter().filter_map(|(key, device)| {
        let text = |name: &str| Some(device.get(name)?.as_str()?.to_owned());
        let is_nic = text("type").is_some_and(|kind| kind == "nic");
        let mac = text("hwaddr").filter(|_| is_nic)?.to_ascii_lowercase();
        let name = text("name").unwrap_or_else(|| key.clone());
        let mut nic = json!({ "name": name, "mac": mac });
        for (name, key) in [
            ("ipv4", "ipv4.address"),
            ("ipv6", "ipv6.address"),
            ("mtu", "mtu"),
        ] {
            if let (Some(value), Some(nic)) = (text(key), nic.as_object_mut()) {
                nic.insert(name.to_owned(), value.into());
            }
        }
        Some(nic)
    });
    let known: Vec<_> = known.collect();
    if !known.is_empty() { known } else { own_nics() }
}

fn own_nics() -> Vec<Value> {
    let links = Rtnetlink::open().and_then(|kernel| kernel.links());
    let ethernet = links
        .unwrap_or_default()
        .into_iter()
        .filter(|link| link.address.len() == 6 && link.address != [0; 6]);
    let nics = ethernet.map(|link| {
        let bytes: Vec<_> = link
            .address
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        json!({ "name": link.name, "mac": bytes.join(":"), "mtu": link.mtu })
    });
    nics.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// An instance for tests.
    #[derive(Debug)]
    pub(crate) struct TestInstance {
        pub(crate) config: BTreeMap<String, String>,
        pub(crate) meta_data: String,
        pub(crate) devices: Map<String, Value>,
    }

    impl Instance for TestInstance {
        fn config(&self, key: &str) -> Option<&str> {
            self.config.get(key).map(String::as_str)
        }

        fn meta_data(&self) -> &str {
            &self.meta_data
        }

        fn devices(&self) -> &Map<String, Value> {
            &self.devices
        }
    }

    /// An instance with a little of everything.
    pub(crate) fn instance() -> TestInstance {
        let config = [
            ("cloud-init.user-data", "#cloud-config\n{}\n"),
            ("user.a.b", "c"),
            ("user.empty", ""),
        ];
        let nic = json!({ "type": "nic", "hwaddr": "00:16:3E:00:00:01", "mtu": "1500" });
        TestInstance {
            config: config
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            meta_data: "instance-id: first\nlocal-hostname: guest\nregion: here\n\
                        public-keys:\n- ssh-rsa A a\n- ssh-rsa B b\ninstance-id: i-1\n"
                .to_owned(),
            devices: [("eth0".to_owned(), nic)].into_iter().collect(),
        }
    }
}
