//! Incus's switches: with `/etc/incus-agent.yml` a guest says what its host may do.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use vsock_agent_protocol::by_insertion;

use crate::yaml::{self, Node, YamlError, is_true};

/// Where Incus's agent looks.
pub(super) const FILE: &str = "/etc/incus-agent.yml";

/// A part of the agent that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Feature {
    /// Commands.
    Exec,
    /// SFTP.
    Files,
    /// The sockets for programs in the guest.
    GuestApi,
    /// The metrics.
    Metrics,
    /// Shares of the host.
    Mounts,
    /// Connections to TCP ports of the guest.
    PortForward,
    /// The state.
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

    /// Its name in the file.
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

/// What is switched on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features(BTreeSet<Feature>);

/// Why the switches are not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeaturesError {
    /// The file is there, and cannot be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// It is not YAML of a kind that is understood.
    #[error("cannot understand {0}")]
    Parse(PathBuf, #[source] YamlError),
    /// It has something else than switches.
    #[error("features in {0} are no map of switches")]
    Shape(PathBuf),
}

impl Features {
    /// Everything, as without a file.
    #[must_use]
    pub fn all() -> Self {
        Self::only(Feature::ALL)
    }

    /// These, and no others.
    #[must_use]
    pub fn only(features: impl IntoIterator<Item = Feature>) -> Self {
        Self(by_insertion(features))
    }

    /// Whether it is switched on.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }

    /// What the file says: everything if it has no `features`, else what is true in them.
    ///
    /// # Errors
    ///
    /// [`FeaturesError`]: somebody wanted something switched off, and it is not known what.
    pub(super) fn read(path: &Path) -> Result<Self, FeaturesError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::all()),
            Err(error) => return Err(FeaturesError::Read(path.to_owned(), error)),
        };
        let switches = yaml::value_of(&text, "features")
            .map_err(|error| FeaturesError::Parse(path.to_owned(), error))?;
        match switches {
            None => Ok(Self::all()),
            Some(node) if node.is_null() => Ok(Self::all()),
            Some(Node::Map(switches)) => {
                Ok(Self::only(Feature::ALL.into_iter().filter(|feature| {
                    let is_on = |node: &Node| matches!(node, Node::Text(text) if is_true(text));
                    switches
                        .iter()
                        .any(|(name, value)| name == feature.name() && is_on(value))
                })))
            }
            Some(_) => Err(FeaturesError::Shape(path.to_owned())),
        }
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
    fn without_a_word_everything_is_on() {
        let missing = Features::read(Path::new("/nowhere/incus-agent.yml"));
        assert_eq!(missing.unwrap(), Features::all());
        for text in ["", "other: 1\n", "features:\n", "features: null\n"] {
            assert_eq!(read(text).unwrap(), Features::all(), "{text}");
        }
    }

    #[test]
    fn what_is_not_true_is_off() {
        let text = "features:\n  exec: true\n  port-forward: yes\n  files: false\n  other: true\n";
        let expected = Features::only([Feature::Exec, Feature::PortForward]);
        assert_eq!(read(text).unwrap(), expected);
        assert_eq!(read("features: {}\n").unwrap(), Features::only([]));
    }

    #[test]
    fn a_file_that_is_not_understood_is_an_error() {
        for text in [
            "features: [exec]\n",
            "features: {exec: true\n",
            "features: off\n",
        ] {
            read(text).unwrap_err();
        }
    }
}
