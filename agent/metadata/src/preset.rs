//! A preset, built-in or from a file.

mod file;
mod lookup;

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

pub(crate) use self::lookup::{Found, plain};
use http::{HeaderName, HeaderValue};
use vsock_agent_protocol::preset;

use crate::{
    Instance, instance, network_data,
    route::Route,
    scope::{COMBINED, NETWORK_DATA, Values},
    template::Template,
    token::TokenRule,
    toml_file,
    user_data::has_content,
};

/// Largest file, in bytes. The largest built-in one has five thousand.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// A metadata service: its address and its routes.
#[derive(Debug, PartialEq, Eq)]
pub struct Preset {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) versions: Vec<String>,
    pub(crate) document_versions: Vec<String>,
    pub(crate) listings: Vec<Template>,
    pub(crate) require: Vec<(HeaderName, HeaderValue)>,
    pub(crate) respond: Vec<(HeaderName, HeaderValue)>,
    pub(crate) token: Option<TokenRule>,
    pub(crate) routes: Vec<Route>,
}

/// Why a preset cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PresetError {
    /// The name is neither a built-in preset nor a path.
    #[error("{0:?} is neither a preset ({known}) nor the path of one", known = known())]
    Unknown(String),
    /// The file cannot be read.
    #[error("cannot read the preset {path}")]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has an error.
    #[error("{file}, line {line}: {reason}")]
    Wrong {
        /// The path, or the name of a built-in preset.
        file: String,
        /// The line of the error, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
}

/// The names of the built-in presets.
pub(crate) fn known() -> String {
    preset::SHIPPED.map(|(name, _)| name).join(", ")
}

impl Preset {
    /// The built-in preset of this name, or that in the file at this path if it contains a slash.
    ///
    /// # Errors
    ///
    /// [`PresetError`].
    pub fn find(word: &str) -> Result<Self, PresetError> {
        if let Some(text) = preset::shipped(word) {
            return Self::parse(word, text);
        }
        if word.contains('/') {
            Self::read(Path::new(word))
        } else {
            Err(PresetError::Unknown(word.to_owned()))
        }
    }

    fn read(path: &Path) -> Result<Self, PresetError> {
        let text = fs::metadata(path).and_then(|found| {
            if found.len() > MAX_FILE_BYTES {
                Err(io::ErrorKind::FileTooLarge.into())
            } else {
                fs::read_to_string(path)
            }
        });
        let text = text.map_err(|source| PresetError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Reads a preset from its text. `name` is for messages.
    ///
    /// # Errors
    ///
    /// [`PresetError::Wrong`], for the first error.
    pub fn parse(name: &str, text: &str) -> Result<Self, PresetError> {
        file::parse(name, text).map_err(|(at, fault)| PresetError::Wrong {
            file: name.to_owned(),
            line: toml_file::line(text, at),
            reason: fault.to_string(),
        })
    }

    /// The cloud-init keys of the instance that this service does not serve.
    pub fn unsupported(&self, instance: &dyn Instance) -> Vec<&'static str> {
        let nics = instance::nics(instance);
        let has = |name| instance.cloud_init(name).is_some_and(has_content);
        let network = instance
            .cloud_init("network-config")
            .filter(|text| !text.is_empty());
        let has_document = network.is_some_and(|text| network_data::of(text, &nics).is_some());
        let uses = |name| self.routes.iter().any(|route| route.uses(name));
        let unsupported = [
            (
                "user-data",
                has("user-data") && !uses("user-data") && !uses(COMBINED),
            ),
            (
                "vendor-data",
                has("vendor-data") && !uses("vendor-data") && !uses(COMBINED),
            ),
            (
                "network-config",
                network.is_some()
                    && !uses("network-config")
                    && !(has_document && uses(NETWORK_DATA)),
            ),
        ];
        let unsupported = unsupported
            .into_iter()
            .filter(|(_, is_unsupported)| *is_unsupported);
        unsupported.map(|(key, _)| key).collect()
    }

    /// The values of its templates for an instance.
    pub(crate) fn values<'a>(&self, instance: &'a dyn Instance) -> Values<'a> {
        Values::new(instance, &self.versions, &self.document_versions)
    }

    /// Its name, or its path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address and port.
    #[must_use]
    pub const fn address(&self) -> (IpAddr, u16) {
        (self.address, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::{TestInstance, instance};

    #[test]
    fn what_a_cloud_has_no_way_for_is_known() {
        let mut instance = instance();
        let mut set = |key: &str, value: &str| {
            instance
                .config
                .insert(format!("cloud-init.{key}"), value.to_owned());
        };
        set("vendor-data", "#!/bin/sh\n");
        set(
            "network-config",
            "version: 2\nethernets: {eth0: {dhcp4: true}}\n",
        );
        let unsupported = |preset: &str, instance: &TestInstance| -> Vec<_> {
            let preset = Preset::find(preset).unwrap();
            preset.unsupported(instance)
        };
        for preset in ["ec2", "aliyun", "outscale"] {
            assert_eq!(
                unsupported(preset, &instance),
                ["network-config"],
                "{preset}"
            );
        }
        assert!(unsupported("openstack", &instance).is_empty());
        let bond = "version: 2\nbonds: {bond0: {}}\n".to_owned();
        instance
            .config
            .insert("cloud-init.network-config".to_owned(), bond);
        assert_eq!(unsupported("openstack", &instance), ["network-config"]);
    }

    #[test]
    fn every_preset_that_is_shipped_is_right() {
        for (name, text) in preset::SHIPPED {
            let preset = Preset::parse(name, text).unwrap();
            assert!(!preset.routes.is_empty(), "{name}");
            let has_token = ["ec2", "aliyun"].contains(&name);
            assert_eq!(preset.token.is_some(), has_token, "{name}");
        }
        assert_eq!(
            Preset::find("aliyun").unwrap().address().0.to_string(),
            "100.100.100.200"
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, reason) in [
            ("", 1, "no address"),
            ("address = \"1.2.3\"\n", 1, "an IP address"),
            (
                "address = \"127.0.0.1\"\nport = 99999\n",
                2,
                "port is not a number",
            ),
            ("address = \"::1\"\n\nadress = 1\n", 3, "adress"),
            (
                "address = \"::1\"\nroutes = [\n  { path = \"a\", text = \"\" },\n]\n",
                3,
                "slash",
            ),
            (
                "address = \"::1\"\nroutes = [\n\n  { path = \"/\" },\n]\n",
                4,
                "one of text",
            ),
            (
                "address = \"::1\"\n[[routes]]\npath = \"/${x}\"\ntext = \"\"\n",
                2,
                "\"x\"",
            ),
            (
                "extends = \"imds\"\nroutes = [{ path = \"/\", text = \"$\" }]\n",
                2,
                "dollar",
            ),
            (
                "extends = \"imds\"\nroutes = [{ path = \"/\", text = \"\", each = \"a\" }]",
                2,
                "each",
            ),
            (
                "extends = \"imds\"\nroutes = [{ path = \"/\", text = \"\", when = \"a\" }]",
                2,
                "\"a\"",
            ),
            (
                "extends = \"imds\"\nroutes = [{ path = \"/\", text = \"\", status = 99 }]",
                2,
                "99",
            ),
            (
                "extends = \"imds\"\nroutes = [{ path = \"/\", text = \"\", method = \"A\" }]",
                2,
                "GET",
            ),
            (
                "extends = \"imds\"\n\nrequire = { \"a b\" = \"c\" }\n",
                3,
                "header",
            ),
            ("extends = \"imds\"\nlistings = [\"/${a}\"]\n", 2, "\"a\""),
            ("\nextends = \"other\"\n", 2, "extended"),
            (
                "extends = \"imds\"\n[token]\npath = \"/\"\nheader = \"a\\n\"\nttl-header = \"b\"\nmax-ttl = 1\n",
                4,
                "header",
            ),
            ("extends = \n", 1, "value"),
        ] {
            let error = Preset::parse("file", text).unwrap_err().to_string();
            let place = format!("file, line {line}: ");
            assert!(
                error.starts_with(&place) && error.contains(reason),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_name_that_is_not_shipped_is_told_with_those_that_are() {
        let error = Preset::find("ec3").unwrap_err().to_string();
        assert!(
            error.contains("ec3") && error.contains("outscale"),
            "{error}"
        );
        let error = Preset::find("/nowhere/x.toml").unwrap_err();
        assert!(matches!(error, PresetError::Read { .. }), "{error}");
    }
}
