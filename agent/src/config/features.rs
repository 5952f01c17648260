//! The features that are enabled for the host, by the option `features` and by Incus's
//! `/etc/incus-agent.yml`.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use vsock_agent_metadata::yaml::{self, Node, YamlError};

use crate::by_insertion::by_insertion;

/// The configuration file of Incus's agent.
pub(super) const FILE: &str = "/etc/incus-agent.yml";

/// A part of the agent that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Feature {
    /// Running commands.
    Exec,
    /// Files by SFTP.
    Files,
    /// LXD's guest API (`devlxd`).
    GuestApi,
    /// Metrics of the guest.
    Metrics,
    /// Mounting shared directories of the host.
    Mounts,
    /// Forwarding connections to TCP ports of the guest.
    PortForward,
    /// The state of the guest.
    State,
}

impl Feature {
    const ALL: [Self; 7] = [
        Self::Exec,
        Self::Files,
        Self::GuestApi,
        Self::Metrics,
        Self::Mounts,
        Self::PortForward,
        Self::State,
    ];

    /// The name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Files => "files",
            Self::GuestApi => "guestapi",
            Self::Metrics => "metrics",
            Self::Mounts => "mounts",
            Self::PortForward => "port-forward",
            Self::State => "state",
        }
    }
}

/// The enabled features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features(BTreeSet<Feature>);

/// An error in the features.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeaturesError {
    /// The file exists and cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// The file is not supported YAML.
    #[error("invalid YAML in {0}")]
    Parse(PathBuf, #[source] YamlError),
    /// This part of the file is not a map of booleans.
    #[error("{1} in {0}: expected a map of features to true or false")]
    Shape(PathBuf, String),
    /// There is no feature of this name.
    #[error("unknown feature {0:?}, expected one of {known}", known = Feature::ALL.map(Feature::name).join(", "))]
    Unknown(String),
}

impl FromStr for Feature {
    type Err = FeaturesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|feature| feature.name() == text);
        found.ok_or_else(|| FeaturesError::Unknown(text.to_owned()))
    }
}

impl Features {
    /// All features, the default.
    #[must_use]
    pub fn all() -> Self {
        Self::only(Feature::ALL)
    }

    /// Only these features.
    #[must_use]
    pub fn only(features: impl IntoIterator<Item = Feature>) -> Self {
        Self(by_insertion(features))
    }

    /// Whether the feature is enabled.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }

    /// The features that are enabled in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self::only(self.0.iter().copied().filter(|feature| other.has(*feature)))
    }

    /// Reads Incus's file. Without the key `features` all are enabled, otherwise those that are true.
    ///
    /// # Errors
    ///
    /// [`FeaturesError`]. The features that the file disables are unknown then.
    pub(super) fn read(path: &Path) -> Result<Self, FeaturesError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::all()),
            Err(error) => return Err(FeaturesError::Read(path.to_owned(), error)),
        };
        let root =
            yaml::parse(&text).map_err(|error| FeaturesError::Parse(path.to_owned(), error))?;
        let Some(root) = root else {
            return Ok(Self::all());
        };
        Self::of(&root).map_err(|wrong| FeaturesError::Shape(path.to_owned(), wrong))
    }

    /// Parses the root of the file. `Err` names the invalid part.
    fn of(root: &Node) -> Result<Self, String> {
        let whole = || "the file".to_owned();
        if !matches!(root, Node::Map(_)) || root.entries().any(|(name, _)| name == "<<") {
            return Err(whole());
        }
        let mut all = root.entries().filter(|(name, _)| *name == "features");
        let Some((name, switches)) = all.next() else {
            return Ok(Self::all());
        };
        match switches {
            _ if all.next().is_some() => Err(format!("{name} twice")),
            node if node.is_null() => Ok(Self::all()),
            Node::Map(pairs) if pairs.len() == switches.entries().count() => {
                Self::parse_switches(switches)
            }
            _ => Err(name.to_owned()),
        }
    }

    fn parse_switches(switches: &Node) -> Result<Self, String> {
        let mut on = BTreeSet::new();
        let mut names = BTreeSet::new();
        for (name, value) in switches.entries() {
            let is_on = value.truth().ok_or_else(|| format!("feature {name}"))?;
            if !names.insert(name) {
                return Err(format!("feature {name} twice"));
            }
            // Unknown features are ignored, as by Incus's agent.
            if let Some(feature) = name.parse().ok().filter(|_| is_on) {
                on.insert(feature);
            }
        }
        Ok(Self(on))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Features, FeaturesError> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("agent-features-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).unwrap();
        let features = Features::read(&path);
        fs::remove_file(&path).unwrap();
        features
    }

    #[test]
    fn without_features_in_the_file_all_are_enabled() {
        let missing = Features::read(Path::new("/nowhere/incus-agent.yml"));
        assert_eq!(missing.unwrap(), Features::all());
        for text in ["", "other: 1\n", "features:\n", "features: null\n"] {
            assert_eq!(read(text).unwrap(), Features::all(), "{text}");
        }
    }

    #[test]
    fn features_that_are_not_true_are_disabled() {
        let text = "features:\n  exec: true\n  port-forward: yes\n  files: false\n  other: true\n";
        let expected = Features::only([Feature::Exec, Feature::PortForward]);
        assert_eq!(read(text).unwrap(), expected);
        assert_eq!(read("features: {}\n").unwrap(), Features::only([]));
    }

    #[test]
    fn features_are_read_in_all_styles_of_yaml() {
        for text in [
            "  features:\n    exec: false\n    files: true\n",
            "\u{feff}features: {exec: false, files: true}\n",
            "--- {features: {exec: false, files: true}}\n",
            "? features\n: {exec: false, files: true}\n",
            "\"features\": {\"exec\": off, 'files': !!bool on}\n",
            "a: &f {files: yes}\nfeatures: *f\n",
        ] {
            assert_eq!(
                read(text).unwrap(),
                Features::only([Feature::Files]),
                "{text:?}"
            );
        }
    }

    #[test]
    fn an_invalid_features_file_is_an_error() {
        for text in [
            "features: [exec]\n",
            "features: {exec: true\n",
            "features: off\n",
            "features: {exec: maybe}\n",
            "features: {exec: }\n",
            "features: {exec: true, exec: false}\n",
            "features: {exec: true}\nfeatures: {exec: false}\n",
            "features: {<<: {exec: true}}\n",
            "<<: {features: {exec: false}}\n",
            "features: {[exec]: true}\n",
            "- features\n",
            "features\n",
            "a: 1\n---\nfeatures: {exec: false}\n",
        ] {
            let error = read(text).unwrap_err();
            assert!(!error.to_string().is_empty(), "{text}");
        }
    }

    #[test]
    fn an_unknown_feature_is_refused_with_the_known_ones() {
        assert_eq!(
            "port-forward".parse::<Feature>().unwrap(),
            Feature::PortForward
        );
        let error = "shell".parse::<Feature>().unwrap_err().to_string();
        assert!(
            error.contains("shell") && error.contains("exec, files"),
            "{error}"
        );
    }
}
