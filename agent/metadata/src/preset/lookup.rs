//! Finds the route of a path, and lists the folders that the routes form.

use http::{HeaderValue, Method, StatusCode};

use super::Preset;
use crate::{
    route::Route,
    scope::{DOCUMENT_VERSION, Scope, VERSION, Values},
    template::Template,
};

/// The result of a lookup.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A reply.
    Answer {
        status: StatusCode,
        kind: HeaderValue,
        text: String,
    },
    /// The entries of a folder, one a line.
    Listing(String),
    /// The path has routes for these methods only.
    WrongMethod(Vec<Method>),
    Nothing,
}

impl Preset {
    /// Looks up a decoded path. Repeated slashes count as one, and one at the end is ignored: clients
    /// send both, and the services accept both.
    pub(crate) fn find_path(&self, values: &Values<'_>, method: &Method, path: &str) -> Found {
        if !path.starts_with('/') {
            return Found::Nothing;
        }
        let path = &plain(path);
        // HEAD is GET without a body, which is removed later.
        let method = match *method {
            Method::HEAD => &Method::GET,
            _ => method,
        };
        let scope = values.scope();
        let mut others = Vec::new();
        for route in &self.routes {
            for (own, scope) in self.candidates(route, scope, path) {
                if plain(&own) != *path {
                    continue;
                }
                if route.method != *method {
                    others.push(route.method.clone());
                } else if let Some(text) = route.body.render(&scope) {
                    return Found::Answer {
                        status: route.status,
                        kind: route.kind.clone(),
                        text,
                    };
                }
            }
        }
        match self.list(scope, path) {
            Some(listing) if *method == Method::GET => Found::Listing(listing),
            Some(_) => Found::WrongMethod(vec![Method::GET]),
            None if others.is_empty() => Found::Nothing,
            None => Found::WrongMethod(others),
        }
    }

    /// The paths of a route that may match `path`, and the scope of each.
    fn candidates<'a>(
        &'a self,
        route: &'a Route,
        scope: Scope<'a>,
        path: &'a str,
    ) -> impl Iterator<Item = (String, Scope<'a>)> {
        let scopes = self.versions(&route.path, scope, path);
        let scopes = scopes.flat_map(move |scope| -> Box<dyn Iterator<Item = Scope<'a>>> {
            match &route.each {
                None => Box::new(std::iter::once(scope)),
                Some(list) => Box::new(scope.each(list)),
            }
        });
        scopes.filter_map(move |scope| {
            let has_values = route.when.as_ref().is_none_or(|name| scope.has(name))
                && route.body.has_values(&scope);
            if has_values {
                Some((route.path.render(&scope)?, scope))
            } else {
                None
            }
        })
    }

    /// One scope for each version in the path, or one without.
    fn versions<'a>(
        &'a self,
        template: &Template,
        scope: Scope<'a>,
        path: &'a str,
    ) -> Box<dyn Iterator<Item = Scope<'a>> + 'a> {
        let lists = [
            (VERSION, &self.versions),
            (DOCUMENT_VERSION, &self.document_versions),
        ];
        let Some((name, versions)) = lists.into_iter().find(|(name, _)| template.uses(name)) else {
            return Box::new(std::iter::once(scope));
        };
        let named = versions.iter().filter(|version| {
            let mut words = path.split('/');
            words.any(|word| word == version.as_str())
        });
        Box::new(named.map(move |version| scope.at_version(name, version)))
    }

    /// The entries of the folder at a path. `None` if it is no folder, or has no listing.
    fn list(&self, scope: Scope<'_>, path: &str) -> Option<String> {
        let folder = format!("{path}/");
        let is_listed = self.listings.iter().any(|listing| {
            let mut scopes = self.versions(listing, scope, path);
            scopes.any(|scope| {
                let listed = listing.render(&scope);
                listed.is_some_and(|listed| folder.starts_with(&(listed + "/")))
            })
        });
        if !is_listed {
            return None;
        }
        let shown = self
            .routes
            .iter()
            .filter(|route| !route.hidden && route.method == Method::GET);
        let paths = shown.flat_map(|route| self.candidates(route, scope, path));
        let mut names: Vec<String> = Vec::new();
        for (own, _) in paths {
            let rest = own.strip_prefix(&folder).unwrap_or_default();
            let end = rest.find('/').map_or(rest.len(), |slash| slash + 1);
            let name = rest.get(..end).unwrap_or_default();
            if !name.is_empty() && !names.iter().any(|own| own == name) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        (!names.is_empty()).then(|| names.join("\n"))
    }
}

/// A path without redundant slashes: `/a/b` for `//a/b/`, and an empty string for `/`.
pub(crate) fn plain(path: &str) -> String {
    let words = path.split('/').filter(|word| !word.is_empty());
    words.flat_map(|word| ["/", word]).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::instance::tests::instance;

    fn get(preset: &str, path: &str) -> Option<String> {
        let preset = Preset::find(preset).unwrap();
        let instance = instance();
        let values = preset.values(&instance);
        match preset.find_path(&values, &Method::GET, path) {
            Found::Answer { text, .. } | Found::Listing(text) => Some(text),
            Found::WrongMethod(_) | Found::Nothing => None,
        }
    }

    /// Every leaf below a folder, as a client that walks the tree sees it.
    fn walk(preset: &str, folder: &str, leaves: &mut Vec<String>) {
        let listing = get(preset, folder).unwrap_or_else(|| panic!("{folder} is listed"));
        for name in listing.lines() {
            let name = match name.split_once('=') {
                Some((index, _)) => format!("{index}/openssh-key"),
                None => name.to_owned(),
            };
            let path = format!("{folder}{name}");
            if name.ends_with('/') {
                walk(preset, &path, leaves)
            } else {
                let value = get(preset, &path).unwrap_or_else(|| panic!("{path} is there"));
                leaves.push(format!("{name}={value}"));
            }
        }
    }

    #[test]
    fn whatever_is_listed_is_there() {
        for (preset, version) in [
            ("ec2", "2021-03-23"),
            ("aliyun", "2016-01-01"),
            ("openstack", "latest"),
        ] {
            let mut leaves = Vec::new();
            walk(preset, &format!("/{version}/meta-data/"), &mut leaves);
            assert!(leaves.contains(&"instance-id=i-1".to_owned()), "{leaves:?}");
            assert!(
                leaves
                    .iter()
                    .any(|leaf| leaf.ends_with("openssh-key=ssh-rsa A a")),
                "{leaves:?}"
            );
            assert!(
                leaves.contains(&"mac=00:16:3e:00:00:01".to_owned()),
                "{leaves:?}"
            );
        }
    }

    #[test]
    fn alibabas_keys_are_folders() {
        let keys = get("aliyun", "/2016-01-01/meta-data/public-keys/");
        assert_eq!(keys.as_deref(), Some("0/\n1/"));
    }

    #[test]
    fn amazons_tree_is_as_amazons() {
        let get = |path| get("ec2", path);
        assert!(get("/").unwrap().starts_with("1.0\n2007-01-19\n"));
        for folder in ["/latest", "/latest/"] {
            assert_eq!(
                get(folder).as_deref(),
                Some("dynamic\nmeta-data\nuser-data")
            );
        }
        assert_eq!(get("/latest/meta-data"), get("/latest/meta-data/"));
        assert!(
            get("/1.0/meta-data/")
                .unwrap()
                .contains("\nplacement/\npublic-keys/")
        );
        assert_eq!(
            get("/latest/meta-data/public-keys/").as_deref(),
            Some("0=key-0\n1=key-1")
        );
        assert_eq!(
            get("/latest/meta-data/placement/region").as_deref(),
            Some("here")
        );
        assert_eq!(
            get("/latest/dynamic/").as_deref(),
            Some("instance-identity/")
        );
        let document = get("/latest/dynamic/instance-identity/document").unwrap();
        let document: Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document["instanceId"], "i-1");
        assert_eq!(document.get("privateIp"), None);
        for path in [
            "//latest/meta-data/instance-id",
            "/latest//meta-data/instance-id",
            "/latest/meta-data/instance-id/",
            "/2024-04-11/meta-data/instance-id",
        ] {
            assert_eq!(get(path).as_deref(), Some("i-1"), "{path}");
        }
        for (path, expected) in [
            ("/latest/meta-data/services/domain", "amazonaws.com"),
            ("/latest/meta-data/services/partition", "aws"),
            (
                "/latest/meta-data/network/interfaces/macs/00:16:3e:00:00:01/device-number",
                "0",
            ),
            ("/latest/user-data/", "#cloud-config\n{}\n"),
            ("/latest/meta-data/placement/availability-zone/", "local"),
        ] {
            assert_eq!(get(path).as_deref(), Some(expected), "{path}");
        }
        let document = get("/latest/dynamic/instance-identity/document/");
        assert!(document.unwrap().contains("i-1"));
        assert_eq!(get("//"), get("/"));
        assert_eq!(get("/latest//"), get("/latest/"));
        for path in [
            "",
            "latest",
            "/2000-01-01/meta-data/",
            "/latest/meta-data/none",
            "/latest/meta-data/public-keys/2/openssh-key",
            "/latest/meta",
            "/latest/meta-data/local-ipv4",
            "/latest/vendor-data",
            "/1.0/latest/meta-data/",
        ] {
            assert_eq!(get(path), None, "{path}");
        }
    }

    #[test]
    fn openstacks_documents_are_as_openstacks() {
        let json = |path: &str| -> Value {
            serde_json::from_str(&get("openstack", path).unwrap()).unwrap()
        };
        let versions = get("openstack", "/openstack").unwrap();
        let expected = ["2012-08-10", "2013-04-04", "2018-08-27", "latest"];
        for version in expected {
            assert!(versions.lines().any(|line| line == version), "{versions}");
            let meta = json(&format!("/openstack/{version}/meta_data.json"));
            assert_eq!(meta["uuid"], "i-1", "{version}");
        }
        assert_eq!(get("openstack", "/openstack/2009-04-04/user_data"), None);
        assert_eq!(get("openstack", "/2018-08-27/meta-data/"), None);
        let meta = json("/openstack/latest/meta_data.json");
        assert_eq!(meta["uuid"], "i-1");
        assert_eq!(meta["public_keys"]["key-1"], "ssh-rsa B b");
        let network = json("/openstack/latest/network_data.json");
        assert_eq!(
            network["links"][0]["ethernet_mac_address"],
            "00:16:3e:00:00:01"
        );
        assert_eq!(
            json("/openstack/latest/vendor_data.json"),
            serde_json::json!({})
        );
    }

    #[test]
    fn openstacks_network_is_the_configured_one() {
        let config = "version: 2\nethernets: {eth0: {addresses: [192.0.2.7/24]}}\n";
        let mut instance = instance();
        let key = "cloud-init.network-config".to_owned();
        instance.config.insert(key, config.to_owned());
        let preset = Preset::find("openstack").unwrap();
        let values = preset.values(&instance);
        let path = "/openstack/latest/network_data.json";
        let Found::Answer { text, .. } = preset.find_path(&values, &Method::GET, path) else {
            panic!("{path} is there");
        };
        let network: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(network["networks"][0]["ip_address"], "192.0.2.7");
    }

    #[test]
    fn a_cloud_is_a_file() {
        let text = r#"
            address = "169.254.42.42"
            routes = [
                { path = "/conf", json = { id = "${instance-id}" } },
                { path = "/done", method = "POST", status = 204, text = "" },
                { path = "/role", text = "${config.user.a.b}" },
            ]
        "#;
        let preset = Preset::parse("own", text).unwrap();
        let instance = instance();
        let values = preset.values(&instance);
        let find = |method, path| preset.find_path(&values, &method, path);
        let text = |found| match found {
            Found::Answer { status, text, .. } => (status.as_u16(), text),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            text(find(Method::HEAD, "/conf")),
            (200, r#"{"id":"i-1"}"#.to_owned())
        );
        assert_eq!(text(find(Method::POST, "/done")), (204, String::new()));
        assert_eq!(text(find(Method::GET, "/role")), (200, "c".to_owned()));
        assert_eq!(
            find(Method::GET, "/done"),
            Found::WrongMethod(vec![Method::POST])
        );
        assert_eq!(find(Method::GET, "/"), Found::Nothing);
    }
}
