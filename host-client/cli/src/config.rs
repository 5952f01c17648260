//! The configuration file, which names virtual machines, and the command line's options. `vms.rs`
//! changes the file.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use tokio::time::Instant;
use vsock_agent_client::{Client, Endpoint, Identity, IdentityFiles, Security, Timeouts};
use vsock_agent_serve::instance::{InstanceStore, Stamp};

use crate::{
    args::Global,
    mux::{self, Persist},
};

/// Environment variable with the path of the configuration file.
const CONFIG_VARIABLE: &str = "AGENT_CLI_CONFIG";

/// Longest wait for unfinished handshakes after a failure.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time that a call has to connect itself after the process of `mux` could not.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Whether the first call starts the process of `mux`, and the time after which that ends.
    pub(crate) persist: Option<Persist>,
    /// By name.
    #[serde(default)]
    pub(crate) vms: BTreeMap<String, Vm>,
}

/// A virtual machine in the configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vm {
    /// The endpoint of its agent.
    pub(crate) endpoint: String,
    /// Directory of its identity, relative to that of the configuration file.
    pub(crate) identity: Option<PathBuf>,
    /// Whether the connection has no TLS.
    #[serde(default)]
    pub(crate) plain: bool,
}

/// The options of the command line together with the configuration file.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) global: Global,
    /// The configuration file; `None` if the user has no home directory.
    path: Option<PathBuf>,
    pub(crate) config: Config,
    /// All clients, for [`Settings::settle`].
    clients: Mutex<Vec<Client>>,
}

/// The agent of a virtual machine, and the credentials for it.
#[derive(Debug)]
pub(crate) struct Target {
    /// Name or endpoint, as given.
    name: String,
    pub(crate) endpoint: Endpoint,
    /// Directory of the identity.
    identity: PathBuf,
    pub(crate) plain: bool,
}

impl Settings {
    /// Reads the configuration file. A missing file is empty.
    pub(crate) fn new(global: Global) -> anyhow::Result<Self> {
        let path = config_path();
        let config = match &path {
            Some(path) => parse(path, &read_or_empty(path)?)?,
            None => Config::default(),
        };
        Ok(Self {
            global,
            path,
            config,
            clients: Mutex::default(),
        })
    }

    /// Waits for unfinished handshakes with virtual machine monitors. Some monitors fail when a client
    /// disconnects during a handshake.
    pub(crate) async fn settle(&self) {
        let clients = std::mem::take(&mut *self.clients());
        for client in clients {
            // With a guest that boots, a handshake can take minutes.
            let _ = tokio::time::timeout(SETTLE_TIMEOUT, client.settle()).await;
        }
    }

    fn clients(&self) -> MutexGuard<'_, Vec<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client for the agent of `vm`, a name or an endpoint.
    pub(crate) fn client(&self, vm: &str) -> anyhow::Result<Client> {
        let target = self.target(vm)?;
        let security = target.security()?;
        Ok(self.connecting(target.endpoint, security, self.timeouts()))
    }

    /// The same for calls and commands, by the process of `mux` if one runs.
    pub(crate) async fn caller(&self, vm: &str) -> anyhow::Result<Client> {
        let target = self.target(vm)?;
        let security = target.security()?;
        let mut timeouts = self.timeouts();
        if !self.global.http1 {
            let asked = Instant::now();
            let by_mux = mux::client(self, &target, &security, timeouts).await;
            if let Some(client) = by_mux {
                return Ok(client);
            }
            // It may have tried to connect.
            let left = timeouts.connect.saturating_sub(asked.elapsed());
            timeouts.connect = left.max(MIN_CONNECT_TIMEOUT);
        }
        Ok(self.connecting(target.endpoint, security, timeouts))
    }

    /// A client that connects itself.
    fn connecting(&self, endpoint: Endpoint, security: Security, timeouts: Timeouts) -> Client {
        let client = if self.global.http1 {
            Client::over_http1(endpoint, security, timeouts)
        } else {
            Client::with_timeouts(endpoint, security, timeouts)
        };
        self.clients().push(client.clone());
        client
    }

    fn timeouts(&self) -> Timeouts {
        let seconds = |count: u32| Duration::from_secs(count.max(1).into());
        let mut timeouts = Timeouts::default().with_connect(seconds(self.global.connect_timeout));
        timeouts.silence = self.global.silence_timeout.map(seconds);
        timeouts
    }

    /// Resolves a name or an endpoint.
    pub(crate) fn target(&self, vm: &str) -> anyhow::Result<Target> {
        let (known, endpoint) = match self.config.vms.get(vm) {
            Some(known) => (Some(known), &known.endpoint[..]),
            None if vm.contains(':') => (None, vm),
            None => return Err(self.unknown(vm)),
        };
        let endpoint = endpoint.parse().with_context(|| match known {
            Some(_) => format!("in {}, vms.{vm}.endpoint", self.shown_path()),
            None => "invalid endpoint".to_owned(),
        })?;
        let identity = match (
            &self.global.identity,
            known.and_then(|vm| vm.identity.as_ref()),
        ) {
            (Some(directory), _) => directory.clone(),
            (None, Some(directory)) => self.directory().unwrap_or_default().join(directory),
            (None, None) => self.default_identity(),
        };
        // An identity on the command line enables TLS, whatever is in the configuration.
        let plain = self.global.plain
            || (self.global.identity.is_none() && known.is_some_and(|known| known.plain));
        Ok(Target {
            name: vm.to_owned(),
            endpoint,
            identity,
            plain,
        })
    }

    /// The error for an unknown name.
    pub(crate) fn unknown(&self, vm: &str) -> anyhow::Error {
        let mut names = self.names().collect::<Vec<_>>().join(", ");
        if names.is_empty() {
            names.push_str("no names");
        }
        anyhow!(
            "no virtual machine is named {vm:?}: {} has {names}; add it with `agent-cli vm add \
             {vm} ENDPOINT`, or give an endpoint such as vsock:3",
            self.shown_path()
        )
    }

    /// The path of the configuration file, for messages.
    fn shown_path(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "the missing configuration file".to_owned(),
        }
    }

    /// The names of the virtual machines, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.config.vms.keys().map(String::as_str)
    }

    /// Returns `vm` if it is the name of a virtual machine.
    pub(crate) fn known<'a>(&self, vm: &'a str) -> anyhow::Result<&'a str> {
        if self.config.vms.contains_key(vm) && is_name(vm) {
            Ok(vm)
        } else {
            Err(self.unknown(vm))
        }
    }

    /// The instance data of the virtual machines.
    pub(crate) fn instances(&self) -> anyhow::Result<InstanceStore> {
        Ok(InstanceStore::new(self.directory()?.join("instances")))
    }

    /// The current version of the configuration file.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        Stamp::of(self.path.as_deref()?)
    }

    /// The path of the configuration file, which need not exist.
    pub(crate) fn path(&self) -> anyhow::Result<&Path> {
        self.path.as_deref().with_context(|| {
            format!("there is no home directory: HOME or {CONFIG_VARIABLE} has to be set")
        })
    }

    /// The directory of the configuration file.
    pub(crate) fn directory(&self) -> anyhow::Result<PathBuf> {
        let parent = self.path()?.parent();
        Ok(parent.map(Path::to_owned).unwrap_or_default())
    }

    /// The default directory of identities.
    fn default_identity(&self) -> PathBuf {
        config_directory()
            .or_else(|| self.directory().ok())
            .unwrap_or_default()
            .join("identity")
    }

    /// The directory in which `identity init` creates the identity of `vm`. `option` overrides it.
    pub(crate) fn identity_directory(&self, vm: &str, option: Option<PathBuf>) -> PathBuf {
        option
            .or_else(|| self.target(vm).ok().map(|target| target.identity))
            .or_else(|| self.global.identity.clone())
            .unwrap_or_else(|| self.default_identity())
    }
}

impl Target {
    /// Loads the credentials for the agent.
    pub(crate) fn security(&self) -> anyhow::Result<Security> {
        if self.plain {
            return Ok(Security::Plain);
        }
        let files = self.identity_files()?;
        let mut paths = [&files.certificate, &files.agent].into_iter();
        if let Some(missing) = paths.find(|path| !path.exists()) {
            bail!(
                "no identity for {vm}: {} does not exist; create one with `agent-cli identity init \
                 {vm}`, name another directory with --identity, or use --plain with an agent that \
                 was started with --plain",
                missing.display(),
                vm = self.name
            );
        }
        let identity = files.read().and_then(|pem| Identity::from_pem(&pem));
        identity
            .map(Security::Tls)
            .with_context(|| format!("the identity in {} is unusable", self.identity.display()))
    }

    pub(crate) fn identity_files(&self) -> anyhow::Result<IdentityFiles> {
        Ok(IdentityFiles::find(&self.identity, &self.name)?)
    }
}

/// Whether `name` can name a virtual machine. It is also part of file names.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    !name.is_empty() && !name.starts_with(['-', '.']) && name.chars().all(fits)
}

/// Reads a file. A missing file is empty.
pub(crate) fn read_or_empty(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Parses `text`, the content of `path`.
pub(crate) fn parse(path: &Path, text: &str) -> anyhow::Result<Config> {
    toml_edit::de::from_str(text).map_err(|error| {
        // The parser's own message has several lines.
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(String::new(), |before| {
            format!("line {}: ", before.matches('\n').count() + 1)
        });
        anyhow!("{} is invalid: {line}{}", path.display(), error.message())
    })
}

/// The path of the configuration file; `None` without a home directory.
fn config_path() -> Option<PathBuf> {
    match variable(CONFIG_VARIABLE) {
        Some(path) => Some(PathBuf::from(path)),
        None => Some(config_directory()?.join("config.toml")),
    }
}

/// `~/.config/agent-cli` (XDG Base Directory Specification).
fn config_directory() -> Option<PathBuf> {
    // The specification requires that relative paths are ignored.
    let absolute = |path: &PathBuf| path.is_absolute();
    let base = variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(absolute)
        // Without HOME, the home directory in /etc/passwd.
        .or_else(|| Some(std::env::home_dir().filter(absolute)?.join(".config")))?;
    Some(base.join("agent-cli"))
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(path: &str, text: &str) -> Settings {
        let path = PathBuf::from(path);
        Settings {
            global: Global {
                identity: None,
                plain: false,
                http1: false,
                connect_timeout: 1,
                silence_timeout: None,
                verbose: 0,
            },
            config: parse(&path, text).unwrap(),
            path: Some(path),
            clients: Mutex::default(),
        }
    }

    #[test]
    fn the_error_for_an_unknown_key_has_its_name_file_and_line() {
        let text = "[vms.demo]\nendpoint = \"vsock:3\"\nplian = true\n";
        let error = parse(Path::new("/c.toml"), text).unwrap_err().to_string();
        assert!(error.contains("/c.toml"), "{error}");
        assert!(error.contains("plian"), "{error}");
        assert!(error.contains("line 3"), "{error}");
    }

    #[test]
    fn identity_of_the_command_line_overrides_the_configuration_file() {
        let text = "[vms.demo]\nendpoint = \"vsock:3\"\nidentity = \"keys\"\nplain = true\n";
        let mut settings = settings("/etc/cli/config.toml", text);
        let target = settings.target("demo").unwrap();
        assert_eq!(target.identity, Path::new("/etc/cli/keys"));
        assert!(target.plain);
        settings.global.identity = Some("/mine".into());
        let target = settings.target("demo").unwrap();
        assert_eq!(target.identity, Path::new("/mine"));
        assert!(!target.plain);
    }

    #[test]
    fn the_error_for_an_unknown_vm_lists_the_known_names() {
        let text = "vms.demo.endpoint = \"vsock:3\"\nvms.other.endpoint = \"unix:/x\"\n";
        let settings = settings("/c.toml", text);
        let error = settings.target("dmeo").unwrap_err().to_string();
        assert!(
            error.contains("demo, other") && error.contains("/c.toml"),
            "{error}"
        );
    }
}
