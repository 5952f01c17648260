//! Default directories of the identity and of the config share.

use std::{
    env,
    path::{Path, PathBuf},
};

use vsock_agent_transport::is_our_own;

use super::{ConfigError, program::Program};
use crate::{http::identity, lxd_host::config_share};

/// The directory of an installed identity.
const INSTALLED: &str = "/etc/vsock-agent";

/// Set by the service manager (`systemd.exec(5)`, Credentials).
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// The directories to search, in order of precedence.
#[derive(Debug, Clone)]
pub(super) struct Folders {
    /// The working directory, if it is searched.
    working: Option<PathBuf>,
    others: Vec<PathBuf>,
}

impl Folders {
    /// The working directory, where the units of LXD and Incus copy the config share to; the agent's own copy
    /// of the share; the service manager's credentials; the installed identity.
    ///
    /// `vsock-agent` searches the working directory only if no other user can write to it.
    pub(super) fn default_for(program: Program) -> Self {
        let is_searched = |folder: &PathBuf| match program {
            Program::ReplacesAgentOf(_) => true,
            Program::Own => is_our_own(folder),
        };
        let working = env::current_dir().ok().filter(is_searched);
        let credentials = env::var_os(CREDENTIALS_VARIABLE).map(PathBuf::from);
        let mut others = vec![PathBuf::from(config_share::FETCHED)];
        others.extend(credentials);
        others.push(PathBuf::from(INSTALLED));
        Self { working, others }
    }

    /// The directory of the identity: `named`, or the first one with a certificate.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NoIdentity`].
    pub(super) fn identity(&self, named: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
        if let Some(folder) = named {
            return Ok(folder);
        }
        let mut folders = self.working.iter().chain(&self.others);
        let found = folders.find(|folder| folder.join(identity::CERTIFICATE_FILE).exists());
        found.cloned().ok_or_else(|| ConfigError::NoIdentity {
            searched: self
                .working
                .iter()
                .chain(&self.others)
                .map(|folder| folder.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// The directory of the config share: `named`, or the working directory in place of LXD's or Incus's
    /// agent, or that of the identity.
    pub(super) fn share(
        &self,
        named: Option<PathBuf>,
        program: Program,
        identity: Option<&Path>,
    ) -> Option<PathBuf> {
        named.or_else(|| match program {
            Program::ReplacesAgentOf(_) => self.working.clone(),
            Program::Own => identity.map(Path::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vsock_agent_protocol::version::Family;

    use super::*;

    fn folders(working: &Path, others: &[&Path]) -> Folders {
        Folders {
            working: Some(working.to_owned()),
            others: others.iter().map(|path| path.to_path_buf()).collect(),
        }
    }

    #[test]
    fn the_identity_is_in_the_first_directory_with_a_certificate() {
        let parent = env::temp_dir().join(format!("agent-folders-{}", std::process::id()));
        let [first, second, third] = ["1", "2", "3"].map(|name| parent.join(name));
        for folder in [&second, &third] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join(identity::CERTIFICATE_FILE), "").unwrap();
        }
        let usual = folders(&first, &[&second, &third]);
        assert_eq!(usual.identity(None).unwrap(), second);
        assert_eq!(usual.identity(Some(first.clone())).unwrap(), first);
        let error = folders(&first, &[&parent]).identity(None).unwrap_err();
        assert!(
            error.to_string().contains(parent.to_str().unwrap()),
            "{error}"
        );
        fs::remove_dir_all(&parent).unwrap();
    }

    #[test]
    fn a_stand_in_has_the_config_share_in_its_working_directory() {
        let usual = folders(Path::new("/run/incus_agent"), &[]);
        let secrets = Some(Path::new("/secrets"));
        let stand_in = Program::ReplacesAgentOf(Family::Incus);
        let share = |program, identity| usual.share(None, program, identity);
        assert_eq!(share(stand_in, secrets), Some("/run/incus_agent".into()));
        assert_eq!(share(Program::Own, secrets), Some("/secrets".into()));
        assert_eq!(share(Program::Own, None), None);
        let named = usual.share(Some("/named".into()), stand_in, secrets);
        assert_eq!(named, Some("/named".into()));
    }
}
