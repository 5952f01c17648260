//! The configuration: names for virtual machines, and how to reach the one that was named. `vms.rs`
//! changes it.

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
use serde_json::json;
use vsock_agent_client::{Client, Endpoint, Identity, IdentityFiles, Security, Timeouts};
use vsock_agent_serve::instance::{InstanceStore, Stamp};

use crate::{
    args::{Format, Global},
    output,
};

/// Names the configuration file in place of the usual one.
const CONFIG_VARIABLE: &str = "AGENT_CLI_CONFIG";

/// How long a process that failed waits for what it should not abandon.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(default)]
    vms: BTreeMap<String, Vm>,
}

/// A virtual machine with a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    /// Where its agent is.
    endpoint: String,
    /// Directory of its identity, from the directory of the configuration file.
    identity: Option<PathBuf>,
    /// Without TLS.
    #[serde(default)]
    plain: bool,
}

/// What the command line and the configuration say together.
#[derive(Debug)]
pub(crate) struct Settings {
    global: Global,
    /// The configuration file; `None` if there can be none.
    path: Option<PathBuf>,
    config: Config,
    /// Those that were made, to see them off.
    clients: Mutex<Vec<Client>>,
}

/// A virtual machine that was named on the command line.
#[derive(Debug)]
pub(crate) struct Target {
    /// Its name among the identities.
    pub(crate) name: String,
    endpoint: Endpoint,
    identity: PathBuf,
    plain: bool,
}

impl Settings {
    /// Reads the configuration file; without one there are no names.
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

    /// Gives handshakes with virtual machine monitors a moment to end: some monitors do not stand
    /// it when a client leaves in the middle of one.
    pub(crate) async fn settle(&self) {
        let clients = std::mem::take(&mut *self.made());
        for client in clients {
            // A guest that is still booting may take minutes, which is too long for a user to wait.
            let _ = tokio::time::timeout(SETTLE_TIMEOUT, client.settle()).await;
        }
    }

    fn made(&self) -> MutexGuard<'_, Vec<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent, by the name or endpoint of its machine.
    pub(crate) fn client(&self, vm: &str) -> anyhow::Result<Client> {
        let target = self.target(vm)?;
        let security = target.security(vm)?;
        let seconds = |count: u32| Duration::from_secs(count.max(1).into());
        let mut timeouts = Timeouts::default().with_connect(seconds(self.global.connect_timeout));
        timeouts.silence = self.global.silence_timeout.map(seconds);
        let client = Client::with_timeouts(target.endpoint, security, timeouts);
        self.made().push(client.clone());
        Ok(client)
    }

    /// What a name or endpoint stands for.
    pub(crate) fn target(&self, vm: &str) -> anyhow::Result<Target> {
        let (known, endpoint) = match self.config.vms.get(vm) {
            Some(known) => (Some(known), &known.endpoint[..]),
            None if vm.contains(':') => (None, vm),
            None => return Err(self.unknown(vm)),
        };
        let endpoint = endpoint.parse().with_context(|| match known {
            Some(_) => format!("in {}, vms.{vm}.endpoint", self.shown_path()),
            None => "no such endpoint".to_owned(),
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
        let names: Vec<&str> = self.config.vms.keys().map(String::as_str).collect();
        let known = if names.is_empty() {
            "no names".to_owned()
        } else {
            names.join(", ")
        };
        anyhow!(
            "no virtual machine is named {vm:?}: {} has {known}; add it with `agent-cli vm add \
             {vm} ENDPOINT`, or give an endpoint such as vsock:3",
            self.shown_path()
        )
    }

    /// The path of the configuration file, for messages.
    fn shown_path(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "a configuration that is not there".to_owned(),
        }
    }

    /// The names, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.config.vms.keys().map(String::as_str)
    }

    /// The name, if a machine has it.
    pub(crate) fn known<'a>(&self, vm: &'a str) -> anyhow::Result<&'a str> {
        if self.config.vms.contains_key(vm) && is_name(vm) {
            Ok(vm)
        } else {
            Err(self.unknown(vm))
        }
    }

    /// The data of the machines.
    pub(crate) fn instances(&self) -> anyhow::Result<InstanceStore> {
        Ok(InstanceStore::new(self.directory()?.join("instances")))
    }

    /// What the host process keeps under that name.
    pub(crate) fn host_file(&self, name: &str) -> anyhow::Result<PathBuf> {
        Ok(self.directory()?.join(name))
    }

    /// Which version of the configuration file there is now.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        Stamp::of(self.path.as_deref()?)
    }

    /// The options that were given.
    pub(crate) const fn global(&self) -> &Global {
        &self.global
    }

    /// Where the configuration file is, or would be.
    pub(crate) fn path(&self) -> anyhow::Result<&Path> {
        self.path.as_deref().with_context(|| {
            format!("there is no home directory: HOME or {CONFIG_VARIABLE} has to be set")
        })
    }

    fn directory(&self) -> anyhow::Result<PathBuf> {
        Ok(self
            .path()?
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default())
    }

    /// The default directory of identities.
    fn default_identity(&self) -> PathBuf {
        config_directory().map_or_else(
            || self.directory().unwrap_or_default().join("identity"),
            |directory| directory.join("identity"),
        )
    }

    /// Where `identity init` keeps what it makes for `vm`.
    pub(crate) fn identity_directory(&self, vm: &str, asked: Option<PathBuf>) -> PathBuf {
        asked
            .or_else(|| self.target(vm).ok().map(|target| target.identity))
            .or_else(|| self.global.identity.clone())
            .unwrap_or_else(|| self.default_identity())
    }

    /// The names, for a list: name, endpoint, how it is protected.
    pub(crate) fn list(&self, format: Format) -> anyhow::Result<u8> {
        let vms = &self.config.vms;
        if format == Format::Json {
            let list: Vec<_> = vms
                .iter()
                .map(|(name, vm)| {
                    json!({
                        "name": name,
                        "endpoint": vm.endpoint,
                        "identity": vm.identity,
                        "plain": vm.plain,
                    })
                })
                .collect();
            output::json(&json!(list))?;
            return Ok(0);
        }
        let rows: Vec<Vec<String>> = vms
            .iter()
            .map(|(name, vm)| {
                let security = if vm.plain { "plain" } else { "tls" };
                vec![name.clone(), vm.endpoint.clone(), security.to_owned()]
            })
            .collect();
        for row in output::table(&rows) {
            output::line(&row)?;
        }
        Ok(0)
    }
}

impl Target {
    /// How the agent is spoken to.
    pub(crate) fn security(&self, vm: &str) -> anyhow::Result<Security> {
        Ok(if self.plain {
            Security::Plain
        } else {
            Security::Tls(self.load_identity(vm)?)
        })
    }

    pub(crate) const fn is_plain(&self) -> bool {
        self.plain
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The files an identity is made of.
    pub(crate) fn identity_files(&self) -> anyhow::Result<IdentityFiles> {
        Ok(IdentityFiles::find(&self.identity, &self.name)?)
    }

    fn load_identity(&self, vm: &str) -> anyhow::Result<Identity> {
        let files = self.identity_files()?;
        if let Some(missing) = [&files.certificate, &files.agent]
            .into_iter()
            .find(|path| !path.exists())
        {
            let missing = missing.display();
            bail!(
                "no identity for {vm}: {missing} is not there; make one with `agent-cli identity \
                 init {vm}`, name another directory with --identity, or use --plain with an agent \
                 that was started with --plain"
            );
        }
        let identity = files.read().and_then(|pem| Identity::from_pem(&pem));
        identity.with_context(|| format!("the identity in {} is unusable", self.identity.display()))
    }
}

/// Whether this can be a machine's name, which is also that of files.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    !name.is_empty() && !name.starts_with(['-', '.']) && name.chars().all(fits)
}

/// What is in the file; nothing if it is not there.
pub(crate) fn read_or_empty(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Reads the configuration in `text`, which is that of `path`.
pub(crate) fn parse(path: &Path, text: &str) -> anyhow::Result<Config> {
    toml_edit::de::from_str(text).map_err(|error| {
        // The parser's own report has several lines, with the line it is about and an arrow.
        anyhow!("{} is wrong: {}", path.display(), reason(text, &error))
    })
}

/// What is wrong, and in which line.
fn reason(text: &str, error: &toml_edit::de::Error) -> String {
    match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            format!("line {line}: {}", error.message())
        }
        None => error.message().to_owned(),
    }
}

/// `None` for who has no home: nothing is configured then.
fn config_path() -> Option<PathBuf> {
    match variable(CONFIG_VARIABLE) {
        Some(path) => Some(PathBuf::from(path)),
        None => Some(config_directory()?.join("config.toml")),
    }
}

/// `~/.config/agent-cli` (XDG Base Directory Specification).
fn config_directory() -> Option<PathBuf> {
    // The specification has relative paths ignored.
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

    #[test]
    fn an_unknown_key_is_named_with_its_file_and_line() {
        let text = "[vms.demo]\nendpoint = \"vsock:3\"\nplian = true\n";
        let error = parse(Path::new("/c.toml"), text).unwrap_err().to_string();
        assert!(error.contains("/c.toml"), "{error}");
        assert!(error.contains("plian"), "{error}");
        assert!(error.contains("line 3"), "{error}");
    }

    #[test]
    fn an_identity_is_found_from_the_file_and_the_command_line_wins() {
        let text = "[vms.demo]\nendpoint = \"vsock:3\"\nidentity = \"keys\"\nplain = true\n";
        let path = PathBuf::from("/etc/cli/config.toml");
        let mut settings = Settings {
            global: Global {
                identity: None,
                plain: false,
                connect_timeout: 1,
                silence_timeout: None,
                verbose: 0,
            },
            config: parse(&path, text).unwrap(),
            path: Some(path),
            clients: Mutex::default(),
        };
        let target = settings.target("demo").unwrap();
        assert_eq!(target.identity, Path::new("/etc/cli/keys"));
        assert!(target.plain);
        settings.global.identity = Some("/mine".into());
        let target = settings.target("demo").unwrap();
        assert_eq!(target.identity, Path::new("/mine"));
        assert!(!target.plain);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let text = "vms.demo.endpoint = \"vsock:3\"\nvms.other.endpoint = \"unix:/x\"\n";
        let path = PathBuf::from("/c.toml");
        let settings = Settings {
            global: Global {
                identity: None,
                plain: true,
                connect_timeout: 1,
                silence_timeout: None,
                verbose: 0,
            },
            config: parse(&path, text).unwrap(),
            path: Some(path),
            clients: Mutex::default(),
        };
        let error = settings.target("dmeo").unwrap_err().to_string();
        assert!(
            error.contains("demo, other") && error.contains("/c.toml"),
            "{error}"
        );
    }
}
