//! The configuration: from the arguments, the environment and the configuration file, in this order of
//! precedence. It is read and validated before a socket is bound.

mod command_line;
mod features;
mod folders;
mod guest;
mod options;
mod program;

use std::{
    env,
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tracing::Level;
use vsock_agent_metadata::{Preset, PresetConfig, PresetError};
use vsock_agent_protocol::{
    address::{Cid, DEFAULT_PORT, VsockAddress},
    version::Family,
};

use self::{folders::Folders, guest::Host, options::Options, program::Program};
use crate::{
    exec::ExecPolicy,
    http::listen::ListenAddress,
    lxd_host::{
        config_share::{self, ConfigShare},
        status_port,
    },
};

pub(crate) use self::command_line::{CommandLine, Flags};
pub(crate) use self::features::FeaturesError;
pub use self::features::{Feature, Features};
pub use self::guest::{CloudInit, GuestConfig};

/// The default configuration file. May be missing.
const DEFAULT_FILE: &str = "/etc/vsock-agent/config.toml";

/// The default address to listen on.
const DEFAULT_ADDRESS: ListenAddress = ListenAddress::Vsock(VsockAddress {
    cid: Cid::ANY,
    port: DEFAULT_PORT,
});

/// The validated configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The addresses to listen on; at least one.
    pub listen: Vec<ListenAddress>,
    /// How clients authenticate.
    pub security: Security,
    /// The context ids that may connect by AF_VSOCK. Connections of others are closed at once.
    pub allowed_cids: Vec<Cid>,
    /// Whether running commands end when the agent stops. Otherwise they keep running without output.
    pub end_commands: bool,
    /// The flavour of the host.
    pub family: Family,
    /// The features that are enabled.
    pub features: Features,
    /// The commands that are allowed.
    pub exec_policy: ExecPolicy,
    /// The configuration of the instance data.
    pub guest: GuestConfig,
    /// The log level.
    pub log: Level,
    /// The guest's `/`, for files and mounts of the host, and for cloud-init.
    pub root: PathBuf,
    /// The config share, which the host provides before it connects.
    pub share: Option<ConfigShare>,
    /// The virtio ports for the agent's status. Missing ones are ignored.
    pub status_ports: Vec<PathBuf>,
}

/// How clients authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Mutual TLS with the identity in this directory: `agent.crt`, `agent.key`, and the clients'
    /// certificates in `server.crt`.
    Tls(PathBuf),
    /// No authentication: everyone who can connect to a listener is root in the guest.
    Plain,
}

/// An error in the configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown key.
    #[error("the configuration file {path}, line {line}: {reason}")]
    Parse {
        /// The path of the file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The error.
        reason: String,
    },
    /// The arguments are invalid.
    #[error("invalid arguments, see --help")]
    Arguments(#[from] lexopt::Error),
    /// A value is invalid.
    #[error("{origin}")]
    Value {
        /// The option.
        option: String,
        /// Its name in the arguments, the environment or the file.
        origin: String,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A preset does not exist, or its file is invalid.
    #[error("invalid metadata service")]
    Preset(#[from] PresetError),
    /// The features in Incus's file cannot be read.
    #[error("cannot read the features")]
    Features(#[from] FeaturesError),
    /// TLS is enabled, and no directory has a certificate.
    #[error(
        "no agent.crt in {searched}: install the identity there, name its directory with --identity, \
         or disable TLS with --plain"
    )]
    NoIdentity {
        /// The searched directories.
        searched: String,
    },
}

impl ConfigError {
    fn value(option: &str, origin: String, source: options::Fault) -> Self {
        Self::Value {
            option: option.to_owned(),
            origin,
            source,
        }
    }
}

impl Config {
    /// Reads the configuration file, and merges it with `flags`, which include the environment.
    ///
    /// # Errors
    ///
    /// The first [`ConfigError`].
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let file = match &flags.options.config {
            Some(path) => Options::of_file(path)?,
            None if Path::new(DEFAULT_FILE).exists() => Options::of_file(Path::new(DEFAULT_FILE))?,
            None => Options::default(),
        };
        let program = Program::named(env::args_os().next().as_deref());
        let mut config = merge(flags, file, program, &Folders::default_for(program))?;
        if config.family == Family::Incus {
            let switches = Features::read(Path::new(features::FILE))?;
            config.features = config.features.and(&switches);
        }
        Ok(config)
    }
}

fn merge(
    flags: Flags,
    file: Options,
    program: Program,
    folders: &Folders,
) -> Result<Config, ConfigError> {
    let log = flags.level().or(file.log).unwrap_or(Level::INFO);
    let options = flags.options.or(file);
    let listen = options.listen.filter(|list| !list.is_empty());
    let listen = listen.unwrap_or_else(|| vec![DEFAULT_ADDRESS]);
    let allowed_cids = options.allow_cid.filter(|list| !list.is_empty());
    let security = if options.plain.unwrap_or_default() {
        Security::Plain
    } else {
        Security::Tls(folders.identity(options.identity)?)
    };
    let identity = match &security {
        Security::Tls(folder) => Some(folder.as_path()),
        Security::Plain => None,
    };
    // LXD's and Incus's hosts provide a share and announce their address. An agent that does not listen on
    // AF_VSOCK does not connect by it either.
    let looks_for_host = program == Program::Own
        && options.share.is_none()
        && identity != Some(Path::new(config_share::FETCHED))
        && listen
            .iter()
            .any(|address| matches!(address, ListenAddress::Vsock(_)));
    let share = folders.share(options.share, program, identity);
    let family = options.family.unwrap_or(program.family());
    let presets: Vec<Arc<Preset>> = options
        .metadata
        .unwrap_or_default()
        .iter()
        .map(|word| Preset::find(word).map(Arc::new))
        .collect::<Result<_, _>>()?;
    let (host, default_host) = match options.host {
        Some(Host::Off) => (None, None),
        Some(Host::At(address)) => (Some(address), None),
        None => (None, looks_for_host.then_some(guest::DEFAULT_HOST)),
    };
    // cloud-init detects a metadata service itself, but would prefer the socket of the guest API.
    let usual_cloud_init = if presets.is_empty() {
        CloudInit::default()
    } else {
        CloudInit::Off
    };
    let guest = GuestConfig {
        host,
        default_host,
        sockets: guest::sockets(options.guest_socket.unwrap_or_default(), family),
        cloud_init: options.cloud_init.unwrap_or(usual_cloud_init),
        cloud_init_reboot: options.cloud_init_reboot.unwrap_or_default(),
        ready_timeout: options.ready_timeout.map(Duration::from_secs),
        presets: PresetConfig {
            presets,
            only_with_token: options.metadata_token.unwrap_or_default(),
            for_all_users: options.metadata_all_users.unwrap_or_default(),
        },
    };
    Ok(Config {
        listen,
        security,
        allowed_cids: allowed_cids.unwrap_or_else(|| vec![Cid::HOST]),
        end_commands: options.end_commands.unwrap_or_default(),
        family,
        features: options.features.map_or_else(Features::all, Features::only),
        exec_policy: ExecPolicy {
            users: options.exec_users,
            commands: options.exec_commands,
        },
        guest,
        log,
        root: PathBuf::from("/"),
        share: share.map(ConfigShare::new),
        status_ports: status_port::KNOWN.map(PathBuf::from).to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Options, ConfigError> {
        Options::of_toml(Path::new("file"), text)
    }

    fn file(text: &str) -> Options {
        read(text).unwrap()
    }

    fn merge(flags: Flags, file: Options) -> Result<Config, ConfigError> {
        super::merge(
            flags,
            file,
            Program::Own,
            &Folders::default_for(Program::Own),
        )
    }

    fn parse(arguments: &[&str]) -> Result<Flags, ConfigError> {
        match CommandLine::of(arguments.iter().map(Into::into))? {
            CommandLine::Serve(flags) => Ok(*flags),
            other => panic!("{other:?}"),
        }
    }

    fn parsed(arguments: &[&str]) -> Flags {
        parse(arguments).unwrap()
    }

    fn plain_flags() -> Flags {
        parsed(&["--plain"])
    }

    /// Whether a value of this option is refused.
    fn is_of(error: &ConfigError, name: &str) -> bool {
        matches!(error, ConfigError::Value { option, .. } if option == name)
    }

    #[test]
    fn the_defaults_are_the_lxd_port_and_the_host_only() {
        let config = merge(plain_flags(), Options::default()).unwrap();
        assert_eq!(config.listen, ["vsock:any:8443".parse().unwrap()]);
        assert_eq!(config.allowed_cids, [Cid::HOST]);
    }

    #[test]
    fn an_argument_overrides_the_file() {
        let flags = parsed(&["--plain", "--listen", "unix:/a"]);
        let config = merge(flags, file(r#"listen = ["unix:/b"]"#)).unwrap();
        assert_eq!(config.listen, ["unix:/a".parse().unwrap()]);
    }

    #[test]
    fn the_default_family_is_lxd() {
        let family = |flags, file| merge(flags, file).map(|config| config.family);
        let said = |text: &str| parse(&["--plain", "--family", text]);
        assert_eq!(family(plain_flags(), file("")).unwrap(), Family::Lxd);
        let incus = || file("family = \"incus\"");
        assert_eq!(family(plain_flags(), incus()).unwrap(), Family::Incus);
        assert_eq!(family(said("lxd").unwrap(), incus()).unwrap(), Family::Lxd);
        let error = said("docker").unwrap_err();
        assert!(is_of(&error, "family"), "{error}");
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused() {
        let error = read("plain = true\nlistn = []").unwrap_err().to_string();
        assert!(
            error.contains("line 2") && error.contains("\"listn\"") && error.contains("listen"),
            "{error}"
        );
    }

    #[test]
    fn features_and_exec_restrictions_are_configurable() {
        let text = "features = [\"exec\", \"state\"]\nexec-users = [\"ann\"]\n\
                    exec-commands = [\"/bin/df **\"]\n";
        let config = merge(plain_flags(), file(text)).unwrap();
        let expected = Features::only([Feature::Exec, Feature::State]);
        assert_eq!(config.features, expected);
        assert_eq!(config.exec_policy.users, Some(vec!["ann".to_owned()]));
        assert_eq!(config.exec_policy.commands.unwrap().len(), 1);

        let nothing = "features = []\nexec-users = []\nexec-commands = []\n";
        let config = merge(plain_flags(), file(nothing)).unwrap();
        assert_eq!(config.features, Features::only([]));
        assert_eq!(config.exec_policy.users, Some(Vec::new()));
        assert_eq!(config.exec_policy.commands, Some(Vec::new()));

        let config = merge(plain_flags(), file("")).unwrap();
        assert_eq!(config.features, Features::all());
        assert_eq!(config.exec_policy, ExecPolicy::default());
        for text in ["features = [\"exce\"]", "exec-commands = [\"df\"]"] {
            read(text).unwrap_err();
        }
    }

    #[test]
    fn an_unknown_log_level_is_named_in_the_error() {
        let error = anyhow::Error::from(parse(&["--log", "loud"]).unwrap_err());
        assert!(format!("{error:#}").contains("loud"), "{error:#}");
    }

    #[test]
    fn the_program_name_sets_the_default_family() {
        let family = |flags| {
            let program = Program::ReplacesAgentOf(Family::Incus);
            let merged = super::merge(
                flags,
                file(""),
                program,
                &Folders::default_for(Program::Own),
            );
            merged.unwrap().family
        };
        assert_eq!(family(plain_flags()), Family::Incus);
        assert_eq!(family(parsed(&["--plain", "--family", "lxd"])), Family::Lxd);
    }

    #[test]
    fn the_default_host_is_tried_only_on_af_vsock_without_another_host() {
        let looked_for = |flags: Flags, text: &str, program| {
            let config = super::merge(
                flags,
                file(text),
                program,
                &Folders::default_for(Program::Own),
            )
            .unwrap();
            config.guest.default_host.map(|address| address.to_string())
        };
        let own = |text: &str| looked_for(plain_flags(), text, Program::Own);
        let usual = Some("vsock:2:8444".to_owned());
        assert_eq!(own(""), usual);
        assert_eq!(own(r#"listen = ["unix:/a", "vsock:any:1024"]"#), usual);
        for text in [
            r#"listen = ["unix:/a"]"#,
            r#"host = "unix:/a""#,
            r#"host = "off""#,
            r#"share = "/a""#,
        ] {
            assert_eq!(own(text), None, "{text}");
        }
        let stand_in = Program::ReplacesAgentOf(Family::Lxd);
        assert_eq!(looked_for(plain_flags(), "", stand_in), None);
        let identity = |folder: &str| parsed(&["--identity", folder]);
        let fetched = identity(config_share::FETCHED);
        assert_eq!(looked_for(fetched, "", Program::Own), None);
        assert_eq!(looked_for(identity("/a"), "", Program::Own), usual);
    }

    #[test]
    fn the_host_may_be_an_address_or_off() {
        let host = |text: &str| {
            let file = read(text)?;
            merge(plain_flags(), file).map(|config| config.guest.host)
        };
        let named = Some("vsock:2:1".parse().unwrap());
        assert_eq!(host(r#"host = "vsock:2:1""#).unwrap(), named);
        assert_eq!(host(r#"host = "off""#).unwrap(), None);
        let error = host(r#"host = "none""#).unwrap_err();
        assert!(is_of(&error, "host"), "{error}");
    }

    #[test]
    fn the_flags_of_lxds_and_incuss_agents_are_accepted() {
        for (arguments, level) in [
            (vec!["-d"], Level::DEBUG),
            (vec!["--debug"], Level::DEBUG),
            (vec!["-v"], Level::INFO),
            (vec!["--verbose"], Level::INFO),
            (vec!["-d", "-v"], Level::DEBUG),
            (vec!["-d", "--log", "error"], Level::ERROR),
            (vec![], Level::WARN),
        ] {
            let flags = parsed(&[&["-s", "/secrets"], arguments.as_slice()].concat());
            let config = merge(flags, file("log = \"warn\"")).unwrap();
            assert_eq!(config.log, level, "{arguments:?}");
            assert_eq!(config.security, Security::Tls("/secrets".into()));
            assert_eq!(config.share, Some(ConfigShare::new("/secrets".into())));
        }
        let flags = parsed(&["--secrets-location", "/a", "more", "-d", "words"]);
        assert_eq!(flags.ignored(), ["more", "words"]);
        assert!(flags.debugs());
    }
}
