//! The values of templates, by name.
//!
//! ```text
//! instance-id  hostname  user-data  vendor-data  network-config
//! combined-user-data   both user-data and vendor-data, a MIME message if there are both
//! network-data     the network-config in OpenStack's JSON, if it can be expressed
//! meta.KEY         of the meta-data, such as meta.region
//! config.KEY       any key of the instance, such as config.user.role
//! nics             list: name, mac, and ipv4, ipv6, mtu if the host gives them; nics.0.mac
//! public-keys      list: name, key
//! versions         list: the preset's; version: the one of this request
//! document-versions, document-version   the same of a second tree with versions of its own
//! item.FIELD  index   in a loop: the current item and its number
//! ```

use std::{borrow::Cow, cell::OnceCell};

use serde_json::Value;

use crate::{
    Instance, instance, network_data, user_data,
    yaml::{self, Node},
};

/// Values of the instance that are one text.
const TEXTS: [&str; 7] = [
    COMBINED,
    NETWORK_DATA,
    "instance-id",
    "hostname",
    "user-data",
    "vendor-data",
    "network-config",
];

/// The user-data and vendor-data as one text.
pub(crate) const COMBINED: &str = "combined-user-data";

/// The network configuration as `OpenStack` has it.
pub(crate) const NETWORK_DATA: &str = "network-data";

/// Those that are lists, and can be looped over.
pub(crate) const LISTS: [&str; 4] = ["nics", "public-keys", "versions", "document-versions"];

/// The version of a request, of those of either list.
pub(crate) const VERSION: &str = "version";
pub(crate) const DOCUMENT_VERSION: &str = "document-version";

/// The values of one request.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    instance: &'a dyn Instance,
    /// The meta-data; `None` if they are empty, or no YAML.
    meta_data: Option<Node>,
    nics: Value,
    keys: Value,
    versions: Value,
    document_versions: Value,
    combined: OnceCell<Option<String>>,
    network_data: OnceCell<Option<String>>,
}

impl<'a> Values<'a> {
    pub(crate) fn new(
        instance: &'a dyn Instance,
        versions: &[String],
        document_versions: &[String],
    ) -> Self {
        let meta_data = yaml::parse(instance.meta_data()).unwrap_or_default();
        let keys = meta_data.as_ref().map(public_keys).unwrap_or_default();
        Self {
            instance,
            meta_data,
            nics: instance::nics(instance).into(),
            keys: keys.into(),
            versions: versions.into(),
            document_versions: document_versions.into(),
            combined: OnceCell::new(),
            network_data: OnceCell::new(),
        }
    }

    fn combined(&self) -> Option<&str> {
        let combined = self.combined.get_or_init(|| {
            let text = |name| self.instance.cloud_init(name);
            let combined = user_data::combine(text("user-data"), text("vendor-data"))?;
            Some(combined.into_owned())
        });
        combined.as_deref()
    }

    fn network_data(&self) -> Option<&str> {
        let document = self.network_data.get_or_init(|| {
            let config = self.instance.cloud_init("network-config")?;
            let nics = self.nics.as_array().map_or(&[][..], Vec::as_slice);
            Some(network_data::of(config, nics)?.to_string())
        });
        document.as_deref()
    }

    /// The scope outside of any loop.
    pub(crate) const fn scope(&self) -> Scope<'_> {
        Scope {
            values: self,
            version: None,
            item: None,
        }
    }
}

/// The values that a template can use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    values: &'a Values<'a>,
    /// The name of the version, and its value.
    version: Option<(&'static str, &'a str)>,
    item: Option<(usize, &'a Value)>,
}

impl<'a> Scope<'a> {
    /// This scope with a version.
    pub(crate) const fn at_version(self, name: &'static str, version: &'a str) -> Self {
        Self {
            version: Some((name, version)),
            ..self
        }
    }

    /// This scope with each item of a list, in turn.
    pub(crate) fn each(self, list: &str) -> impl Iterator<Item = Self> {
        let items = self.list(list).iter().enumerate();
        items.map(move |item| Self {
            item: Some(item),
            ..self
        })
    }

    /// Whether this value exists and is not empty.
    pub(crate) fn has(&self, name: &str) -> bool {
        if LISTS.contains(&name) {
            !self.list(name).is_empty()
        } else {
            self.text(name).is_some()
        }
    }

    /// A value as text, lists as lines. `None` if it is empty.
    pub(crate) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        let instance = self.values.instance;
        let text = match name {
            "instance-id" => self.meta(name)?.into(),
            "hostname" => self.meta("local-hostname")?.into(),
            "user-data" | "vendor-data" | "network-config" => instance.cloud_init(name)?.into(),
            COMBINED => self.values.combined()?.into(),
            NETWORK_DATA => self.values.network_data()?.into(),
            VERSION | DOCUMENT_VERSION => {
                let (own, version) = self.version?;
                (own == name).then_some(version)?.into()
            }
            "index" => self.item?.0.to_string().into(),
            _ => {
                if let Some(key) = name.strip_prefix("config.") {
                    instance.config(key)?.into()
                } else if let Some(key) = name.strip_prefix("meta.") {
                    self.meta(key)?.into()
                } else if let Some(field) = name.strip_prefix("item.") {
                    plain(self.item?.1.get(field)?)?
                } else {
                    let (list, at) = name.split_once('.').unwrap_or((name, ""));
                    let list = self.list(list);
                    match at.split_once('.') {
                        Some((at, field)) => {
                            plain(list.get(at.parse::<usize>().ok()?)?.get(field)?)?
                        }
                        None => lines(list).into(),
                    }
                }
            }
        };
        (!text.is_empty()).then_some(text)
    }

    /// A scalar of the meta-data.
    fn meta(&self, key: &str) -> Option<&'a str> {
        self.values.meta_data.as_ref()?.get(key)?.text()
    }

    fn list(&self, name: &str) -> &'a [Value] {
        let list = match name {
            "nics" => &self.values.nics,
            "public-keys" => &self.values.keys,
            "versions" => &self.values.versions,
            "document-versions" => &self.values.document_versions,
            _ => return &[],
        };
        list.as_array().map_or(&[], Vec::as_slice)
    }
}

/// Whether this is the name of a value.
pub(crate) fn is_known(name: &str, has_item: bool) -> bool {
    let after = |prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|rest: &str| !rest.is_empty())
    };
    let is_of_list = || {
        let mut words = name.splitn(3, '.');
        let list = words.next().unwrap_or_default();
        let is_number = words.next().is_some_and(|at| at.parse::<usize>().is_ok());
        LISTS.contains(&list) && is_number && words.next().is_some()
    };
    TEXTS.contains(&name)
        || [VERSION, DOCUMENT_VERSION, "versions", "document-versions"].contains(&name)
        || after("meta.")
        || after("config.")
        || (has_item && (name == "index" || after("item.")))
        || is_of_list()
}

fn plain(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(text.into()),
        Value::Number(number) => Some(number.to_string().into()),
        _ => None,
    }
}

fn lines(list: &[Value]) -> String {
    let lines: Vec<_> = list.iter().filter_map(plain).collect();
    lines.join("\n")
}

/// The SSH keys of the meta-data, as cloud-init finds them there: text with a key on each line, a
/// list of such texts, or a map of either.
fn public_keys(meta_data: &Node) -> Vec<Value> {
    let Some(node) = meta_data.get("public-keys") else {
        return Vec::new();
    };
    let values = node.entries().map(|(_, value)| value);
    let texts = std::iter::once(node)
        .chain(values)
        .flat_map(|node| std::iter::once(node).chain(node.items()))
        .filter_map(Node::text);
    let keys = texts.flat_map(str::lines).map(str::trim);
    keys.filter(|key| !key.is_empty())
        .enumerate()
        .map(|(at, key)| serde_json::json!({ "name": format!("key-{at}"), "key": key }))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::instance::tests::{TestInstance, instance};

    pub(crate) fn with_scope<T>(run: impl FnOnce(&Scope<'_>) -> T) -> T {
        let instance = instance();
        let versions = ["1", "latest"].map(str::to_owned);
        run(&Values::new(&instance, &versions, &[]).scope())
    }

    #[test]
    fn items_are_spoken_of_in_loops_only() {
        with_scope(|scope| {
            assert_eq!(scope.text("item.key"), None);
            let keys: Vec<_> = scope.each("public-keys").collect();
            let said = |name| -> Vec<String> {
                keys.iter()
                    .map(|scope| scope.text(name).unwrap().into_owned())
                    .collect()
            };
            assert_eq!(said("item.key"), ["ssh-rsa A a", "ssh-rsa B b"]);
            assert_eq!(said("index"), ["0", "1"]);
            assert_eq!(scope.each("nothing").count(), 0);
            assert_eq!(scope.text("nics.0.mtu").as_deref(), Some("1500"));
            assert_eq!(scope.text("nics.1.mac"), None);
            assert!(scope.has("nics") && !scope.has("vendor-data"));
        });
    }

    #[test]
    fn keys_are_written_in_several_ways() {
        let found = |text: &str| -> Vec<String> {
            let root = yaml::parse(text).unwrap().unwrap();
            public_keys(&root)
                .iter()
                .map(|key| key["key"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(found("public-keys: [a, 'b c']\n"), ["a", "b c"]);
        assert_eq!(found("public-keys: ssh-rsa A\n"), ["ssh-rsa A"]);
        assert_eq!(found("public-keys: {x: a, y: [b]}\n"), ["a", "b"]);
        assert_eq!(found("public-keys: |\n  a x\n\n  b y\n"), ["a x", "b y"]);
        assert_eq!(
            found("public-keys:\n- |\n  a\n  b\n- >-\n  c\n  d\n"),
            ["a", "b", "c d"]
        );
        assert_eq!(
            found("public-keys: {x: &x [a], y: \"b\\nc\", z: *x}\n"),
            ["a", "b", "c", "a"]
        );
        assert_eq!(found("public-keys: !!str a\n"), ["a"]);
        assert_eq!(found("public-keys: [null, '', a]\n"), ["a"]);
        assert!(found("public-keys:\n").is_empty());
        assert!(found("a: 1\n").is_empty());
    }

    #[test]
    fn meta_data_are_read_as_yaml() {
        let instance = TestInstance {
            meta_data: "instance-id: >-\n  i-1\nlocal-hostname: &h web\nzone: *h\nregion: null\n"
                .to_owned(),
            ..instance()
        };
        let values = Values::new(&instance, &[], &[]);
        let text = |name| values.scope().text(name).map(Cow::into_owned);
        assert_eq!(text("instance-id").as_deref(), Some("i-1"));
        assert_eq!(text("hostname").as_deref(), Some("web"));
        assert_eq!(text("meta.zone").as_deref(), Some("web"));
        assert_eq!(text("meta.region"), None);
    }

    #[test]
    fn only_names_that_can_mean_something_are_known() {
        for name in [
            "hostname",
            "meta.x",
            "config.user.x",
            "nics.0.mac",
            "versions",
            "version",
        ] {
            assert!(is_known(name, false), "{name}");
        }
        for name in [
            "", "meta.", "x", "nics", "nics.mac", "nics.0", "item.x", "index",
        ] {
            assert!(!is_known(name, false), "{name}");
        }
        assert!(is_known("item.x", true) && is_known("index", true));
    }
}
